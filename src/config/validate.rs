//! From what the user wrote to what will run. Pure: no file, no network, no clock. Notes every mistake it finds, and
//! goes on with what is left.

mod broker;
pub(crate) mod columnar;
mod connection;
mod core_nats;
mod ends;
pub(crate) mod foreign;
mod kafka;
pub(crate) mod librdkafka;
mod names;
mod nats;
pub(crate) mod properties;
mod together;
mod transactions;
mod wiring;

use std::collections::BTreeMap;

use super::error::{Kind, Mistake, Span};
use super::language::{Delivery, File, Function, LastWord, Order as OrderWord, Pipeline, Then, WhenMissing};
use super::read::Named;
use super::scalar::Text;
use super::units::{show_millis, show_size};
use crate::spec;

use wiring::{Role, Wiring};

/// What the file does not say itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    /// The name of the file's folder.
    pub(crate) folder: Option<&'a str>,
    /// The machine's cores.
    pub(crate) cores: usize,
}

/// Where things stand in the file, for mistakes that are found later.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// Each pipeline's name, and its component.
    pub(crate) pipelines: BTreeMap<String, (Span, Option<Span>)>,
    /// Each topic, by connection and name: where it is first mentioned.
    pub(crate) topics: BTreeMap<(String, String), Span>,
    /// Each connection's name.
    pub(crate) connections: BTreeMap<String, Span>,
}

/// Makes the chain.
pub(crate) fn validate(
    file: &File,
    context: Context<'_>,
    mistakes: &mut Vec<Mistake>,
) -> (Option<spec::ChainSpec>, Places) {
    let mut validator = Validator { file, context, mistakes, places: Places::default(), wiring: Wiring::default() };
    let chain = validator.chain();
    (chain, validator.places)
}

struct Validator<'a> {
    file: &'a File,
    context: Context<'a>,
    mistakes: &'a mut Vec<Mistake>,
    places: Places,
    wiring: Wiring,
}

impl Validator<'_> {
    fn chain(&mut self) -> Option<spec::ChainSpec> {
        let file = self.file;
        let name = self.name();
        let connections = self.connections();
        let (mut topics, of_topics) = self.topics();
        let mut streams = self.streams(of_topics);
        let listed = topics.len();
        let mut pipelines = Vec::new();
        let written = file.pipelines.value.as_ref().map_or(&[][..], |map| &map.entries);
        if file.pipelines.value.is_some() && written.is_empty() {
            let span = file.pipelines.span.clone();
            let help = "add one: `copy: { from: { topics: [orders] }, to: { topic: copies } }`";
            self.mistakes.push(Mistake::at(Kind::EmptyCollection, span, "there are no pipelines").help(help));
        }
        for (nth, pipeline) in written.iter().enumerate() {
            let mut made = self.pipeline(nth, pipeline, name.as_deref());
            let default = made.as_ref().filter(|_| pipeline.value.as_ref().is_some_and(uses_default_dead_letter));
            streams.extend(default.and_then(|made| nats::default_dead_letter_stream(made, &streams)));
            if let Some(topic) = made.as_ref().and_then(default_dead_letter_topic) {
                let is_listed =
                    |known: &spec::TopicSpec| (&known.connection, &known.topic) == (&topic.connection, &topic.topic);
                if pipeline.value.as_ref().is_some_and(uses_default_dead_letter) && !topics.iter().any(is_listed) {
                    topics.push(topic);
                }
            }
            if let (Some(made), Some(value)) = (&mut made, &pipeline.value) {
                self.mistakes.extend(transactions::check(made, &connections, &value.delivery.span));
                let retry = value.on_error.value.as_ref().and_then(|on_error| on_error.retry.value.as_ref());
                let place = retry.map_or(&value.delivery.span, |retry| &retry.max_age.span);
                self.mistakes.extend(transactions::bound_age(made, &connections, place));
                if let Some(commit) = &value.commit.value {
                    self.mistakes.extend(transactions::check_commit(made, &commit.max_events.span));
                    self.mistakes.extend(transactions::bound_interval(made, &connections, &commit.interval.span));
                }
            }
            pipelines.extend(made);
        }
        debug_assert!(topics.len() >= listed, "default dead letters are only added");
        let allow_loop = file.allow_loop.value.is_some_and(|flag| flag.0);
        self.mistakes.extend(self.wiring.check(allow_loop));
        Some(spec::ChainSpec { name: name?, connections, topics, streams, pipelines, allow_loop })
    }

    fn name(&mut self) -> Option<String> {
        let field = &self.file.name;
        if let Some(name) = &field.value {
            return self.checked(names::chain(&name.0), &field.span).then(|| name.0.clone());
        }
        if field.is_written() {
            return None;
        }
        if let Some(folder) = self.context.folder.filter(|folder| names::chain(folder).is_ok()) {
            return Some(folder.to_owned());
        }
        let message = match self.context.folder {
            Some(folder) => {
                format!("the chain has no name, and its folder's name `{}` cannot be one", folder.escape_debug())
            }
            None => "the chain has no name, and its folder has none".to_owned(),
        };
        let help = "add `name: orders` at the top; names have letters, digits, `-`, `_` and `.`";
        self.mistakes.push(Mistake::at(Kind::BadName, field.span.clone(), message).help(help));
        None
    }

    /// Notes the mistake, if it is one.
    fn checked(&mut self, result: Result<(), names::Refusal>, span: &Span) -> bool {
        match result {
            Ok(()) => true,
            Err(refusal) => {
                self.mistakes.push(Mistake::at(refusal.kind, span.clone(), refusal.message).help(refusal.help));
                false
            }
        }
    }

    fn place(&mut self, connection: &str, topic: &str, span: &Span) {
        self.places.topics.entry((connection.to_owned(), topic.to_owned())).or_insert_with(|| span.clone());
    }

    fn pipeline(&mut self, nth: usize, entry: &Named<Pipeline>, chain: Option<&str>) -> Option<spec::PipelineSpec> {
        let named = self.checked(names::pipeline(&entry.name), &entry.span);
        let pipeline = entry.value.as_ref()?;
        let wasm = pipeline.function.value.as_ref().map(|function| function.wasm.span.clone());
        self.places.pipelines.insert(entry.name.clone(), (entry.span.clone(), wasm));
        self.wiring.pipelines.push((nth, entry.name.clone(), entry.span.clone()));
        let prefix = chain.map(|chain| format!("{chain}.{}", entry.name));
        let source = self.source(nth, pipeline, prefix.as_deref());
        let outputs = self.outputs(nth, entry, pipeline);
        let on_error = self.on_error(nth, entry, pipeline, prefix.as_deref(), source.as_ref());
        let function =
            pipeline.function.value.as_ref().map(|function| self.function(pipeline, function, source.as_ref()));
        let batch = pipeline.batch.value.as_ref()?;
        let lanes = pipeline.lanes.value.map_or(self.context.cores.clamp(1, 256), |lanes| lanes.0 as usize);
        let guarantee = pipeline.delivery.value.map(|delivery| match delivery {
            Delivery::AtLeastOnce => spec::Guarantee::AtLeastOnce,
            Delivery::ExactlyOnce => spec::Guarantee::ExactlyOnce,
        })?;
        let commit = pipeline.commit.value.as_ref()?;
        let mut spec = spec::PipelineSpec {
            name: entry.name.clone(),
            source: source?,
            batch: spec::BatchLimits {
                max_events: batch.max_events.value?.0 as usize,
                max_bytes: batch.max_bytes.value?.bytes(),
                max_wait: batch.max_wait.value?.duration(),
            },
            order: pipeline.order.value.map(|order| match order {
                OrderWord::Partition => spec::Order::Partition,
                OrderWord::Key => spec::Order::Key,
                OrderWord::None => spec::Order::None,
            })?,
            lanes,
            guarantee,
            commit: spec::CommitSpec {
                max_events: commit.max_events.value.map(|events| events.0),
                ..spec::CommitSpec::of(guarantee)
            },
            function: function.map_or(Some(None), |function| function.map(Some))?,
            outputs: outputs?,
            on_error: on_error?,
        };
        if let Some(interval) = commit.interval.value {
            spec.commit.interval = interval.duration();
        }
        self.fits_atomic_batches(&spec, &batch.max_events.span);
        named.then_some(spec)
    }

    fn outputs(&mut self, nth: usize, entry: &Named<Pipeline>, pipeline: &Pipeline) -> Option<Vec<spec::OutputSpec>> {
        let (to, outputs) = (&pipeline.to, &pipeline.outputs);
        match (&to.key, &outputs.key) {
            (Some(to), Some(outputs)) => {
                let message = format!("`{}` has both `to` and `outputs`", entry.name);
                self.mistakes.push(
                    Mistake::at(Kind::ToOrOutputs, outputs.clone(), message)
                        .other(to.clone(), "`to` is here")
                        .help("keep `to` for a single output, or list them all under `outputs`"),
                );
            }
            (None, None) => {
                let message = format!("`{}` has neither `to` nor `outputs`", entry.name);
                let help = "add `to: { topic: payments }`";
                self.mistakes.push(Mistake::at(Kind::ToOrOutputs, entry.span.clone(), message).help(help));
            }
            _ => {}
        }
        let mut made = Vec::new();
        let mut whole = true;
        if let Some(target) = &to.value {
            let target = self.target(nth, target, Role::Output);
            whole &= target.is_some();
            made.extend(target.map(|target| spec::OutputSpec { name: "default".to_owned(), target }));
        }
        if let Some(map) = &outputs.value {
            self.output_count(map.entries.len(), &outputs.span);
            for output in &map.entries {
                whole &= self.checked(names::output(&output.name), &output.span);
                let target = output.value.as_ref().and_then(|target| self.target(nth, target, Role::Output));
                whole &= target.is_some();
                made.extend(target.map(|target| spec::OutputSpec { name: output.name.clone(), target }));
            }
        }
        (whole && !made.is_empty()).then_some(made)
    }

    fn output_count(&mut self, count: usize, span: &Span) {
        let (kind, message) = match count {
            0 => (Kind::EmptyCollection, "`outputs` names no output".to_owned()),
            1..=255 => return,
            _ => (Kind::OutOfBounds, format!("a pipeline has at most 255 outputs, but here are {count}")),
        };
        let help = if count == 0 { "add one: `approved: { topic: payments }`" } else { "split the pipeline in two" };
        self.mistakes.push(Mistake::at(kind, span.clone(), message).help(help));
    }

    fn on_error(
        &mut self,
        nth: usize,
        entry: &Named<Pipeline>,
        pipeline: &Pipeline,
        prefix: Option<&str>,
        source: Option<&spec::SourceSpec>,
    ) -> Option<spec::OnErrorSpec> {
        let on_error = pipeline.on_error.value.as_ref()?;
        let mut when_missing = spec::WhenMissing::Stop;
        let then = match &on_error.then.value {
            Some(Then::Word(LastWord::Stop)) => Some(spec::LastResort::Stop),
            Some(Then::Word(LastWord::Drop)) => Some(spec::LastResort::Drop),
            Some(Then::DeadLetter(dead)) => {
                when_missing = match dead.when_missing.value? {
                    WhenMissing::Stop => spec::WhenMissing::Stop,
                    WhenMissing::Wait => spec::WhenMissing::Wait,
                };
                let target = dead.dead_letter.value.as_ref();
                let target = target.and_then(|target| self.target(nth, target, Role::DeadLetter));
                if when_missing == spec::WhenMissing::Wait && matches!(target, Some(spec::TargetSpec::CoreNats { .. }))
                {
                    let message = "core NATS has nothing that could be missing, or be waited for";
                    let mistake = Mistake::at(Kind::OneBroker, dead.when_missing.span.clone(), message);
                    self.mistakes
                        .push(mistake.help("delete `when_missing`, or send dead letters to a stream or a topic"));
                }
                target.map(spec::LastResort::DeadLetter)
            }
            None if on_error.then.is_written() => None,
            None => self.default_dead_letter(nth, entry, prefix, source),
        };
        let retry = on_error.retry.value.as_ref()?;
        let backoff = retry.backoff.value?;
        let retry = spec::RetrySpec {
            attempts: u32::try_from(retry.attempts.value?.0).unwrap_or(u32::MAX),
            backoff_min: backoff.low,
            backoff_max: backoff.high,
            max_age: retry.max_age.value.map(|age| age.duration()),
        };
        Some(spec::OnErrorSpec { retry, then: then?, when_missing })
    }

    /// Dead letters go where the input comes from.
    fn default_dead_letter(
        &mut self,
        nth: usize,
        entry: &Named<Pipeline>,
        prefix: Option<&str>,
        source: Option<&spec::SourceSpec>,
    ) -> Option<spec::LastResort> {
        let (topic, source) = (format!("{}.dead", prefix?), source?);
        if names::pipeline(&entry.name).is_err() {
            return None;
        }
        let (connection, span, role) = (Some(source.connection().to_owned()), &entry.span, Role::DeadLetter);
        let target = match source {
            spec::SourceSpec::Kafka(_) => self.kafka_topic(nth, connection, &topic, span, role),
            spec::SourceSpec::Nats(_) => self.stored_subject(nth, connection, &topic, span, role),
            spec::SourceSpec::CoreNats(_) => self.core_subject(nth, connection, &topic, span, role),
        };
        target.map(spec::LastResort::DeadLetter)
    }

    fn function(
        &mut self,
        pipeline: &Pipeline,
        function: &Function,
        source: Option<&spec::SourceSpec>,
    ) -> Option<spec::FunctionSpec> {
        let digest = match &function.digest.value {
            None if function.digest.is_written() => return None,
            None => None,
            Some(text) => match names::digest(&text.0) {
                Ok(hex) => Some(hex),
                Err(refusal) => {
                    self.checked(Err(refusal), &function.digest.span);
                    return None;
                }
            },
        };
        let limits = function.limits.value.as_ref()?;
        self.limits(pipeline, function, source);
        // Memory comes in pages of WebAssembly.
        let memory = limits.memory.value?.bytes().next_multiple_of(64 * 1024);
        Some(spec::FunctionSpec {
            wasm: function.wasm.value.as_ref()?.0.clone(),
            digest,
            config: texts(&function.config.value.as_ref()?.entries),
            limits: spec::FunctionLimits {
                timeout: limits.timeout.value?.duration(),
                memory,
                output: limits.output.value?.bytes(),
            },
        })
    }

    /// Limits against what surrounds the function.
    fn limits(&mut self, pipeline: &Pipeline, function: &Function, source: Option<&spec::SourceSpec>) {
        let Some(limits) = &function.limits.value else { return };
        // NATS waits for as long as it is told that an event is worked on.
        let connection = source.and_then(spec::SourceSpec::kafka).map(|kafka| kafka.connection.as_str());
        if let (Some(timeout), Some(connection)) = (limits.timeout.value, connection) {
            let interval = self.poll_interval(connection);
            if timeout.0 >= interval {
                let message = format!(
                    "the function may run for {}, but the broker gives a consumer up after {}",
                    show_millis(timeout.0),
                    show_millis(interval)
                );
                let longer = show_millis(timeout.0.saturating_mul(2));
                let help = format!(
                    "write a shorter timeout, or raise `max.poll.interval.ms` above it in the `properties` of connection `{connection}` (to {}, which is {longer})",
                    timeout.0.saturating_mul(2)
                );
                let span = limits.timeout.span.clone();
                self.mistakes.push(Mistake::at(Kind::TimeoutAbovePoll, span, message).help(help));
            }
        }
        let batch =
            pipeline.batch.value.as_ref().and_then(|batch| batch.max_bytes.value.map(|most| (most, &batch.max_bytes)));
        if let (Some(memory), Some((most, field))) = (limits.memory.value, batch)
            && memory.0 <= most.0
        {
            let message = format!(
                "a batch may hold {}, but the function has only {} of memory",
                show_size(most.0),
                show_size(memory.0)
            );
            let written = if limits.memory.is_written() { &limits.memory.span } else { &field.span };
            let help = "raise `limits.memory` to several times `batch.max_bytes`, or lower `batch.max_bytes`";
            self.mistakes.push(Mistake::at(Kind::MemoryBelowBatch, written.clone(), message).help(help));
        }
    }
}

fn texts(entries: &[Named<Text>]) -> BTreeMap<String, String> {
    entries.iter().filter_map(|entry| Some((entry.name.clone(), entry.value.as_ref()?.0.clone()))).collect()
}

fn uses_default_dead_letter(pipeline: &Pipeline) -> bool {
    pipeline.on_error.value.as_ref().is_some_and(|on_error| !on_error.then.is_written())
}

/// The topic of a pipeline's dead letter, to be created with one partition.
fn default_dead_letter_topic(pipeline: &spec::PipelineSpec) -> Option<spec::TopicSpec> {
    match &pipeline.on_error.then {
        spec::LastResort::DeadLetter(spec::TargetSpec::Kafka { connection, topic }) => Some(spec::TopicSpec {
            connection: connection.clone(),
            topic: topic.clone(),
            partitions: 1,
            replication: None,
            settings: BTreeMap::new(),
        }),
        spec::LastResort::DeadLetter(spec::TargetSpec::Nats { .. } | spec::TargetSpec::CoreNats { .. }) => None,
        spec::LastResort::Stop | spec::LastResort::Drop => None,
    }
}
