//! `fluxmill run`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::cli::{EXIT_FAILED, EXIT_OK, EXIT_USAGE, load_or_report, report};
use crate::config::{self, Loaded};
use crate::function::EngineOptions;
use crate::pipeline::{self, Chain, RunOptions, StartError};
use crate::shutdown;
use crate::telemetry::logs;

/// What is logged when nothing else is asked for. async-nats tells of each message that finds no room.
const LOG_FILTER: &str = "info,async_nats=warn";

/// Run pipelines until stopped.
///
/// The first SIGINT or SIGTERM stops intake, finishes what is in flight, commits, and exits with 0; a second one
/// exits at once (what was in flight is delivered again at the next start).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pipeline files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// End once everything that was there at the start has been processed, through the whole chain
    #[arg(long)]
    until_caught_up: bool,

    /// How long what is in flight may take to end when stopping, such as 30s
    #[arg(long, default_value = "30s", value_parser = config::parse_duration, value_name = "DURATION")]
    drain_timeout: Duration,

    /// Compile functions anew instead of keeping compiled code in the cache folder
    #[arg(long)]
    no_cache: bool,
}

impl Args {
    /// Runs the command.
    ///
    /// # Errors
    /// When the runtime, the log or the signals cannot be set up.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        if let Err(error) = logs::init(LOG_FILTER) {
            eprintln!("error: {error:#}");
            return Ok(ExitCode::from(EXIT_USAGE));
        }
        let loaded: Vec<_> = self.files.iter().map(|file| load_or_report(file)).collect();
        let loaded = match loaded.into_iter().collect::<Result<Vec<Loaded>, ExitCode>>() {
            Ok(loaded) => loaded,
            Err(code) => return Ok(code),
        };
        let cache = if self.no_cache { None } else { EngineOptions::default_cache() };
        let options = RunOptions {
            until_caught_up: self.until_caught_up,
            drain_timeout: self.drain_timeout,
            cache,
            replay: None,
            memory: None,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
        let code = runtime.block_on(run(&loaded, &options));
        // After a second signal a source may still sit in a call to its broker; nothing waits for it.
        runtime.shutdown_background();
        code
    }
}

async fn run(loaded: &[Loaded], options: &RunOptions) -> anyhow::Result<ExitCode> {
    let stop = CancellationToken::new();
    let code = shutdown::with_signals(&stop, start_and_wait(loaded, options, stop.clone())).await;
    Ok(code.context("listen to signals")?.unwrap_or_else(|| {
        tracing::error!("stopped at once by a second signal; what was in flight will be delivered again");
        ExitCode::from(EXIT_FAILED)
    }))
}

async fn start_and_wait(loaded: &[Loaded], options: &RunOptions, stop: CancellationToken) -> ExitCode {
    let specs: Vec<_> = loaded.iter().map(|loaded| loaded.spec.clone()).collect();
    let started = tokio::select! {
        biased;
        () = stop.cancelled() => {
            tracing::info!("stopped before anything ran");
            return ExitCode::from(EXIT_OK);
        }
        started = pipeline::start(&specs, options, stop.clone()) => started,
    };
    let mut chain = match started {
        Ok(chain) => chain,
        Err(error) => return report_start(loaded, &error),
    };
    for (name, _) in chain.pipelines() {
        tracing::info!(pipeline = name, "running");
    }
    let result = chain.wait().await;
    report_counts(&chain);
    match result {
        Ok(()) => ExitCode::from(EXIT_OK),
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// Says why the chain did not start: a function that cannot be loaded is a mistake of the file, shown in its place.
fn report_start(loaded: &[Loaded], error: &StartError) -> ExitCode {
    match error {
        StartError::Function { chain, pipeline, source } => {
            let has = |loaded: &&Loaded| loaded.spec.pipelines.iter().any(|spec| spec.name == *pipeline);
            let owner = loaded.iter().filter(|loaded| loaded.spec.name == *chain).find(has);
            let owner = owner.expect("the pipeline is one of those loaded");
            report(&owner.error_at_function(pipeline, source.to_string(), None));
            ExitCode::from(EXIT_USAGE)
        }
        StartError::Loop(_) | StartError::NotKept(_) | StartError::SharedGroup(_) => {
            eprintln!("error: {error}");
            ExitCode::from(EXIT_USAGE)
        }
        StartError::Engine(_) | StartError::Broker(_) => {
            eprintln!("error: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn report_counts(chain: &Chain) {
    for (name, metrics) in chain.pipelines() {
        tracing::info!(
            pipeline = name,
            received = metrics.received.get(),
            processed = metrics.processed.get(),
            dropped = metrics.dropped.get(),
            dead_lettered = metrics.dead_lettered.get(),
            discarded = metrics.discarded.get(),
            published = metrics.published.iter().map(|counter| counter.get()).sum::<u64>(),
            "ended"
        );
    }
}
