//! `fluxmill demo`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use crate::cli::{EXIT_FAILED, EXIT_OK, EXIT_USAGE};
use crate::config;
use crate::demo::{self, Options, Restore, Screen};
use crate::shutdown;
use crate::telemetry::logs;

/// Orders that fail are part of the show; the picture has them, so the log need not.
const LOG_FILTER: &str = "warn,fluxmill::pipeline::lane=error";

/// Watch an event chain at work; nothing needs to be installed.
///
/// Starts a Kafka inside the process, runs the chain of pipelines/orders on it, and sends it orders. Ctrl-C stops the
/// orders, drains the chain and prints the counts.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Orders a second; fewer are sent when the chain does not keep up
    #[arg(long, default_value_t = 1000, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,

    /// End after this many orders
    #[arg(long, value_name = "NUMBER")]
    count: Option<u64>,

    /// End after sending orders for this long, such as 30s
    #[arg(long, value_parser = config::parse_duration, value_name = "DURATION")]
    duration: Option<Duration>,

    /// The same seed makes the same orders
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    seed: u64,
}

impl Args {
    /// Runs the command.
    ///
    /// # Errors
    /// When the demo cannot be set up, or its chain fails.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let screen = Screen::is_there().then(Screen::default);
        let logging = match screen.clone() {
            Some(screen) => logs::init_to(LOG_FILTER, move || screen.clone()),
            None => logs::init(LOG_FILTER),
        };
        if let Err(error) = logging {
            eprintln!("error: {error:#}");
            return Ok(ExitCode::from(EXIT_USAGE));
        }
        let restore = screen.clone().map(Restore);
        let options = Options { rate: self.rate, count: self.count, duration: self.duration, seed: self.seed };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
        let result = runtime.block_on(async {
            let stop = CancellationToken::new();
            shutdown::with_signals(&stop, demo::run(&options, screen.as_ref(), stop.clone())).await
        });
        runtime.shutdown_background();
        drop(restore);
        let Some(summary) = result.context("listen to signals")? else {
            eprintln!("stopped at once by a second signal");
            return Ok(ExitCode::from(EXIT_FAILED));
        };
        let summary = summary?;
        print!("\n{}", summary.render());
        Ok(ExitCode::from(if summary.wrong.is_empty() { EXIT_OK } else { EXIT_FAILED }))
    }
}
