//! The `fluxmill` binary: parse, run the command, exit.

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::Parser;
use fluxmill::cli::{Cli, EXIT_FAILED};
use mimalloc::MiMalloc;

/// What is on NATS costs objects for each message, made by one thread and dropped by another, of which the system's
/// allocator makes a fifth of all work (docs/performance.md).
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    match Cli::parse().execute() {
        Ok(code) => code,
        // Whoever reads the output, such as `head`, has read enough.
        Err(error)
            if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe) =>
        {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}
