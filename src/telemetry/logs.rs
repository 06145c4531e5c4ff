//! Log lines to stderr. `FLUXMILL_LOG` takes a filter such as `debug` or `fluxmill::kafka=trace,info`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Begins to log; a filter that cannot be read is an error that says so.
///
/// # Errors
/// The filter's mistake, in words.
pub fn init(default: &str) -> anyhow::Result<()> {
    init_to(default, std::io::stderr)
}

/// The same, through a writer that shares stderr with something else.
///
/// # Errors
/// The filter's mistake, in words.
pub fn init_to(default: &str, writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static) -> anyhow::Result<()> {
    let filter = match std::env::var("FLUXMILL_LOG") {
        Ok(filter) => EnvFilter::try_new(&filter).map_err(|error| {
            anyhow::anyhow!("FLUXMILL_LOG is {filter:?}: {error}; write for example FLUXMILL_LOG=info")
        })?,
        Err(_) => EnvFilter::new(default),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    Ok(())
}
