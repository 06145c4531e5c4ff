//! `fluxmill dead-letter replay`.
//!
//! A replay is a pipeline like any other: it reads the dead-letter topic in a group of its own up to where it ends now,
//! and publishes the events of the letters that are asked for, with its offsets in the same transactions. So it can be
//! interrupted and begun again.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::Context;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{File, LetterTopic, Selection, each, failed, letter_topics, usage};
use crate::broker::kafka::reader::Begin;
use crate::cli::dead_letter::list::line;
use crate::cli::{EXIT_FAILED, EXIT_OK, EXIT_USAGE, load_or_report};
use crate::config::Loaded;
use crate::dead_letter::Filter;
use crate::function::EngineOptions;
use crate::pipeline::{self, Chain, LetterFate, Replay, ReplayCounts, RunOptions};
use crate::shutdown;
use crate::spec::{
    ChainSpec, Guarantee, KafkaClient, KafkaSourceSpec, LastResort, Order, OutputSpec, PipelineSpec, SourceSpec,
    StartOffset, TargetSpec,
};
use crate::telemetry::logs;

/// The member of a replay's group: one that begins again takes over at once, and two at a time fence each other.
const INSTANCE: &str = "replay";
/// How long what is in flight may take to end after a signal.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Run the events of dead letters again.
///
/// They are published to the topics that they came from, as they were, with one header more: `fluxmill-replays`, how
/// often that happened. With `--through` they are run through the pipeline's function instead, and what it returns goes
/// to the pipeline's outputs; events that fail again become dead letters again.
///
/// The same command takes each letter once, however often it is interrupted and begun again. Letters that come while it
/// runs are left to the next one.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: File,
    #[command(flatten)]
    selection: Selection,
    /// Through the pipeline's function, or through this component in its place
    #[arg(long, value_name = "WASM", num_args = 0..=1, require_equals = true)]
    through: Option<Option<PathBuf>>,
    /// Publish everything to this topic, which must exist; events that fail are counted and left: to try a function out
    #[arg(long, value_name = "TOPIC")]
    to: Option<String>,
    /// Leave events that were replayed so often already
    #[arg(long, value_name = "NUMBER", default_value = "10", value_parser = clap::value_parser!(u32).range(1..))]
    max_replays: u32,
    /// All letters once more, those that this command took before too. Any word will do: with the same word it is the
    /// same command, and can be interrupted and begun again
    #[arg(long, value_name = "WORD")]
    again: Option<String>,
    /// Only list what would be replayed
    #[arg(long)]
    dry_run: bool,
}

impl Args {
    pub(super) fn execute(self) -> anyhow::Result<ExitCode> {
        let loaded = match load_or_report(&self.file.file) {
            Ok(loaded) => loaded,
            Err(code) => return Ok(code),
        };
        let topic = match letter_topic(&loaded, self.selection.pipeline.as_deref()) {
            Ok(topic) => topic,
            Err(code) => return Ok(code),
        };
        let filter = Filter { pipeline: Some(topic.pipeline.name.clone()), ..self.selection.filter() };
        let group = self.group(&topic, &filter);
        let (spec, back) = match self.pipeline(&topic, group.clone()) {
            Ok(made) => made,
            Err(message) => return Ok(usage(&message)),
        };
        let replay = Arc::new(Replay { filter, most: self.max_replays, back, counts: ReplayCounts::default() });
        if self.dry_run {
            return dry_run(&topic, &group, &replay);
        }
        if let Err(error) = logs::init("warn") {
            eprintln!("error: {error:#}");
            return Ok(ExitCode::from(EXIT_USAGE));
        }
        let spec = with_guarantee(spec, &loaded.spec);
        if spec.guarantee == Guarantee::AtLeastOnce {
            eprintln!(
                "note: no transactions: they need `client: columnar`, and letters and outputs on one connection. An \
                 interruption may replay some events twice"
            );
        }
        let chain = ChainSpec { topics: Vec::new(), pipelines: vec![spec], allow_loop: true, ..loaded.spec.clone() };
        let options = RunOptions {
            until_caught_up: true,
            drain_timeout: DRAIN_TIMEOUT,
            cache: EngineOptions::default_cache(),
            replay: Some(replay.clone()),
            memory: None,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
        let stop = CancellationToken::new();
        let run = shutdown::with_signals(&stop, run(&chain, &options, stop.clone()));
        let code = runtime.block_on(run).context("listen to signals")?;
        runtime.shutdown_background();
        code.unwrap_or_else(|| Ok(ExitCode::from(EXIT_FAILED)))
    }

    /// A group for each way of replaying: what one has taken says nothing about another.
    fn group(&self, topic: &LetterTopic<'_>, filter: &Filter) -> String {
        let mut said = Sha256::new();
        let mut say = |text: &str| {
            said.update(text.len().to_le_bytes());
            said.update(text);
        };
        let texts = [&filter.pipeline, &filter.kind, &filter.reason, &filter.key, &self.to, &self.again];
        texts.into_iter().for_each(|text| say(text.as_deref().unwrap_or("\0")));
        say(&format!(
            "{:?} {:?}",
            filter.since.map(|at| at.as_millisecond()),
            filter.until.map(|at| at.as_millisecond())
        ));
        say(&format!("{:?} {} {} {}", filter.at, self.through.is_some(), self.max_replays, topic.topic));
        topic.pipeline.source.places().iter().for_each(|topic| say(topic));
        let digest: String = said.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("{}.replay.{digest}", topic.group())
    }

    /// The pipeline of the replay, and the output for each topic that events go back to.
    fn pipeline(
        &self,
        topic: &LetterTopic<'_>,
        group: String,
    ) -> Result<(PipelineSpec, Option<BTreeMap<String, u8>>), String> {
        let mut spec = topic.pipeline.clone();
        let (Some(home), false) =
            (topic.home, topic.pipeline.targets().any(|to| !matches!(to, TargetSpec::Kafka { .. })))
        else {
            let name = &spec.name;
            return Err(format!(
                "pipeline {name} reads from NATS or writes to it, and replay is not available there yet"
            ));
        };
        spec.source = SourceSpec::Kafka(KafkaSourceSpec {
            connection: topic.connection_name.to_owned(),
            topics: vec![topic.topic.to_owned()],
            group,
            instance: Some(INSTANCE.to_owned()),
            start: StartOffset::Earliest,
        });
        spec.order = Order::Partition;
        let mut back = None;
        match (&self.through, &mut spec.function) {
            (None, function) => {
                *function = None;
                let target =
                    |topic: &String| TargetSpec::Kafka { connection: home.connection.clone(), topic: topic.clone() };
                let output = |topic: &String| OutputSpec { name: topic.clone(), target: target(topic) };
                spec.outputs = home.topics.iter().map(output).collect();
                let place = |(at, topic): (usize, &String)| Ok((topic.clone(), u8::try_from(at)?));
                let places: Result<BTreeMap<_, _>, std::num::TryFromIntError> =
                    home.topics.iter().enumerate().map(place).collect();
                back = Some(places.map_err(|_| "the pipeline reads more than 256 topics".to_owned())?);
            }
            (Some(_), None) => {
                return Err(format!("pipeline {} has no function that --through could use", spec.name));
            }
            (Some(None), Some(_)) => {}
            (Some(Some(wasm)), Some(function)) => {
                function.wasm.clone_from(wasm);
                function.digest = None;
            }
        }
        if let Some(to) = &self.to {
            for output in &mut spec.outputs {
                if let TargetSpec::Kafka { topic, .. } = &mut output.target {
                    topic.clone_from(to);
                }
            }
            spec.on_error.then = LastResort::Drop;
        }
        Ok((spec, back))
    }
}

/// Lists what a replay would take.
fn dry_run(topic: &LetterTopic<'_>, group: &str, replay: &Replay) -> anyhow::Result<ExitCode> {
    let mut count = 0_u64;
    let looked = each(topic, group, Begin::Unconfirmed, &replay.filter, |found| {
        let (record, letter) = (&found.record, Some(&found.letter));
        let at = (record.partition, record.offset);
        if matches!(replay.fate(letter, record.key.as_deref(), record.timestamp, at), LetterFate::Taken(_)) {
            writeln!(std::io::stdout(), "{}", line(topic.topic, &found))?;
            count += 1;
        }
        Ok(true)
    })?;
    Ok(match looked {
        Ok(_) => {
            eprintln!("{} would be replayed", events(count));
            ExitCode::from(EXIT_OK)
        }
        Err(error) => failed(&error),
    })
}

/// The one pipeline whose letters are replayed.
fn letter_topic<'a>(loaded: &'a Loaded, pipeline: Option<&str>) -> Result<LetterTopic<'a>, ExitCode> {
    let has_letters = |spec: &&PipelineSpec| matches!(spec.on_error.then, LastResort::DeadLetter(_));
    let named: Vec<_> = loaded.spec.pipelines.iter().filter(has_letters).map(|spec| spec.name.as_str()).collect();
    let name = match (pipeline, named.as_slice()) {
        (Some(name), _) => Some(name),
        (None, [only]) => Some(*only),
        (None, []) => None,
        (None, several) => {
            return Err(usage(&format!("whose letters? Add --pipeline with one of {}", several.join(", "))));
        }
    };
    Ok(letter_topics(loaded, name)?.remove(0))
}

/// In transactions, where all of it is on one connection that has them.
fn with_guarantee(mut spec: PipelineSpec, chain: &ChainSpec) -> PipelineSpec {
    let home = spec.source.connection().to_owned();
    let Some(connection) = chain.connections[&home].kafka() else { return spec };
    let is_home = |target: &TargetSpec| *target.connection() == home;
    spec.guarantee = match &connection.client {
        KafkaClient::Columnar(settings) if spec.targets().all(is_home) => {
            let most = settings.transaction_age_max();
            spec.on_error.retry.max_age = Some(spec.on_error.retry.max_age.map_or(most, |age| age.min(most)));
            Guarantee::ExactlyOnce
        }
        KafkaClient::Columnar(_) | KafkaClient::Librdkafka => Guarantee::AtLeastOnce,
    };
    spec
}

async fn run(chain: &ChainSpec, options: &RunOptions, stop: CancellationToken) -> anyhow::Result<ExitCode> {
    let mut running = match pipeline::start(std::slice::from_ref(chain), options, stop.clone()).await {
        Ok(running) => running,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(ExitCode::from(EXIT_FAILED));
        }
    };
    let result = running.wait().await;
    let (Some(replay), [spec]) = (&options.replay, chain.pipelines.as_slice()) else { return Ok(ExitCode::SUCCESS) };
    let is_whole = result.is_ok() && !stop.is_cancelled();
    std::io::stdout().write_all(summary(&running, spec, &replay.counts, is_whole).as_bytes())?;
    match result {
        Ok(()) if is_whole => return Ok(ExitCode::from(EXIT_OK)),
        Ok(()) => eprintln!("interrupted: run the same command again for the rest"),
        Err(error) => eprintln!("error: {error}; what is left is there for the same command"),
    }
    Ok(ExitCode::from(EXIT_FAILED))
}

fn events(count: u64) -> String {
    if count == 1 { "1 event".to_owned() } else { format!("{count} events") }
}

/// What became of the letters, in words; `is_whole` when nothing is left.
fn summary(running: &Chain, spec: &PipelineSpec, counts: &ReplayCounts, is_whole: bool) -> String {
    let mut out = String::new();
    let Some((_, metrics)) = running.pipelines().first() else { return out };
    for (output, published) in spec.outputs.iter().zip(&metrics.published) {
        out += &format!("{} published to {}\n", events(published.get()), output.target.place());
    }
    for (count, what) in [
        (metrics.dead_lettered.get(), "failed again, and are dead letters again"),
        (metrics.discarded.get(), "failed"),
        (counts.others.load(Relaxed), "not asked for"),
        (counts.worn_out.load(Relaxed), "left: replayed too often already (--max-replays)"),
        (counts.homeless.load(Relaxed), "left: the topic that they came from is none of the pipeline's"),
        (counts.foreign.load(Relaxed), "left: no dead letters of Fluxmill"),
    ] {
        if count > 0 {
            out += &format!("{} {what}\n", events(count));
        }
    }
    if is_whole && metrics.received.get() == 0 {
        out += "no letters that this command has not taken before; --again WORD takes all once more\n";
    }
    out
}
