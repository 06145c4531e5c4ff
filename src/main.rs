//! The `fluxmill` binary: parse, run the command, exit.

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::Parser;
use fluxmill::cli::{Cli, EXIT_FAILED};

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
