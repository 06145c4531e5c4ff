//! `fluxmill dead-letter replay`.
//!
//! A replay is a pipeline like any other: it reads the dead-letter topic in a group of its own up to where it ends now,
//! and publishes the events of the letters that are asked for, with its offsets in the same transactions. So it can be
//! interrupted and begun again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::Context;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{File, Selection, Source, failed, load, read, sources, usage};
use crate::broker::kafka::reader::Begin;
use crate::cli::dead_letter::list::line;
use crate::cli::{EXIT_FAILED, EXIT_OK, EXIT_USAGE};
use crate::config::Loaded;
use crate::dead_letter::Filter;
use crate::function::EngineOptions;
use crate::pipeline::{self, Chain, Replay, ReplayCounts, RunOptions};
use crate::shutdown;
use crate::spec::{
    ChainSpec, ConnectionSpec, Guarantee, KafkaClient, KafkaSourceSpec, LastResort, Order, OutputSpec, PipelineSpec,
    SourceSpec, StartOffset, TargetSpec,
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
/// The same command takes each letter once, however often it is interrupted and begun again (`--again` takes all once
/// more). Letters that come while it runs are left to the next one.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: File,
    #[command(flatten)]
    selection: Selection,
    /// Through the pipeline's function, or through this component in its place
    #[arg(long, value_name = "WASM", num_args = 0..=1)]
    through: Option<Option<PathBuf>>,
    /// Publish everything to this topic, which must exist; events that fail are counted and left: to try a function out
    #[arg(long, value_name = "TOPIC")]
    to: Option<String>,
    /// Leave events that were replayed so often already
    #[arg(long, value_name = "NUMBER", default_value = "10", value_parser = clap::value_parser!(u32).range(1..))]
    max_replays: u32,
    /// Letters that this command took before, too
    #[arg(long)]
    again: bool,
    /// Only list what would be replayed
    #[arg(long)]
    dry_run: bool,
}

impl Args {
    pub(super) fn execute(self) -> anyhow::Result<ExitCode> {
        let loaded = match load(&self.file.file) {
            Ok(loaded) => loaded,
            Err(code) => return Ok(code),
        };
        let source = match source(&loaded, self.selection.pipeline.as_deref()) {
            Ok(source) => source,
            Err(code) => return Ok(code),
        };
        let filter = Filter { pipeline: Some(source.pipeline.name.clone()), ..self.selection.filter() };
        let group = self.group(&source, &filter);
        let (spec, back) = match self.pipeline(&source, group.clone()) {
            Ok(made) => made,
            Err(message) => return Ok(usage(&message)),
        };
        if self.dry_run {
            return self.list(&source, &group, &filter, back.as_ref());
        }
        if let Err(error) = logs::init("warn") {
            eprintln!("error: {error:#}");
            return Ok(ExitCode::from(EXIT_USAGE));
        }
        let spec = with_guarantee(spec, &loaded.spec);
        if spec.guarantee == Guarantee::AtLeastOnce {
            eprintln!(
                "note: without transactions between these connections; what is interrupted may replay some twice"
            );
        }
        let chain = ChainSpec { topics: Vec::new(), pipelines: vec![spec], allow_loop: true, ..loaded.spec.clone() };
        let replay = Arc::new(Replay { filter, most: self.max_replays, back, counts: ReplayCounts::default() });
        let options = RunOptions {
            until_caught_up: true,
            drain_timeout: DRAIN_TIMEOUT,
            cache: EngineOptions::default_cache(),
            replay: Some(replay.clone()),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
        let stop = CancellationToken::new();
        let run = shutdown::with_signals(&stop, run(&chain, &options, stop.clone()));
        let code = runtime.block_on(run).context("listen to signals")?;
        runtime.shutdown_background();
        Ok(code.unwrap_or_else(|| ExitCode::from(EXIT_FAILED)))
    }

    /// A group for each way of replaying: what one has taken says nothing about another.
    fn group(&self, source: &Source<'_>, filter: &Filter) -> String {
        let mut said = Sha256::new();
        let mut say = |text: &str| {
            said.update(text.len().to_le_bytes());
            said.update(text);
        };
        let texts = [&filter.pipeline, &filter.kind, &filter.reason, &filter.key, &self.to];
        texts.into_iter().for_each(|text| say(text.as_deref().unwrap_or("\0")));
        say(&format!(
            "{:?} {:?}",
            filter.since.map(|at| at.as_millisecond()),
            filter.until.map(|at| at.as_millisecond())
        ));
        say(&format!("{:?} {} {}", filter.at, self.through.is_some(), source.topic));
        if self.again {
            say(&fastrand::u64(..).to_string());
        }
        let digest: String = said.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("{}.replay.{digest}", source.group())
    }

    /// The pipeline of the replay, and the output for each topic that events go back to.
    fn pipeline(
        &self,
        source: &Source<'_>,
        group: String,
    ) -> Result<(PipelineSpec, Option<BTreeMap<String, u8>>), String> {
        let LastResort::DeadLetter(TargetSpec::Kafka { connection, topic }) = &source.pipeline.on_error.then else {
            return Err(format!("pipeline {} has no dead letters", source.pipeline.name));
        };
        let mut spec = source.pipeline.clone();
        let SourceSpec::Kafka(home) = &source.pipeline.source;
        spec.source = SourceSpec::Kafka(KafkaSourceSpec {
            connection: connection.clone(),
            topics: vec![topic.clone()],
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
                let TargetSpec::Kafka { topic, .. } = &mut output.target;
                topic.clone_from(to);
            }
            spec.on_error.then = LastResort::Drop;
        }
        Ok((spec, back))
    }

    fn list(
        &self,
        source: &Source<'_>,
        group: &str,
        filter: &Filter,
        back: Option<&BTreeMap<String, u8>>,
    ) -> anyhow::Result<ExitCode> {
        let mut count = 0_u64;
        let read = read(source, group, Begin::Unconfirmed, filter, |found| {
            let is_taken = found.letter.replays < self.max_replays
                && back.is_none_or(|back| back.contains_key(&found.letter.topic));
            if is_taken {
                println!("{}", line(source.topic, &found));
                count += 1;
            }
            Ok(true)
        })?;
        match read {
            Ok(_) => {
                eprintln!("{} would be replayed", events(count));
                Ok(ExitCode::from(EXIT_OK))
            }
            Err(error) => Ok(failed(&error)),
        }
    }
}

/// The one pipeline whose letters are replayed.
fn source<'a>(loaded: &'a Loaded, pipeline: Option<&str>) -> Result<Source<'a>, ExitCode> {
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
    let mut sources = sources(loaded, name)?;
    Ok(sources.remove(0))
}

/// In transactions, where all of it is on one connection that has them.
fn with_guarantee(mut spec: PipelineSpec, chain: &ChainSpec) -> PipelineSpec {
    let SourceSpec::Kafka(source) = &spec.source;
    let ConnectionSpec::Kafka(connection) = &chain.connections[&source.connection];
    let is_home = |TargetSpec::Kafka { connection, .. }: &TargetSpec| *connection == source.connection;
    spec.guarantee = match &connection.client {
        KafkaClient::Columnar(settings) if spec.targets().all(is_home) => {
            let most = settings.transaction_timeout / 2;
            spec.on_error.retry.max_age = Some(spec.on_error.retry.max_age.map_or(most, |age| age.min(most)));
            Guarantee::ExactlyOnce
        }
        KafkaClient::Columnar(_) | KafkaClient::Librdkafka => Guarantee::AtLeastOnce,
    };
    spec
}

async fn run(chain: &ChainSpec, options: &RunOptions, stop: CancellationToken) -> ExitCode {
    let mut running = match pipeline::start(std::slice::from_ref(chain), options, stop).await {
        Ok(running) => running,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(EXIT_FAILED);
        }
    };
    let result = running.wait().await;
    if let (Some(replay), [spec]) = (&options.replay, chain.pipelines.as_slice()) {
        print!("{}", summary(&running, spec, &replay.counts));
    }
    match result {
        Ok(()) => ExitCode::from(EXIT_OK),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn events(count: u64) -> String {
    if count == 1 { "1 event".to_owned() } else { format!("{count} events") }
}

/// What became of the letters, in words.
fn summary(running: &Chain, spec: &PipelineSpec, counts: &ReplayCounts) -> String {
    let mut out = String::new();
    let Some((_, metrics)) = running.pipelines().first() else { return out };
    for (output, published) in spec.outputs.iter().zip(&metrics.published) {
        let TargetSpec::Kafka { topic, .. } = &output.target;
        out += &format!("{} published to {topic}\n", events(published.get()));
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
    if metrics.received.get() == 0 {
        out += "no letters that this command has not taken before; --again takes all once more\n";
    }
    out
}
