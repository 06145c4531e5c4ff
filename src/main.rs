//! The `fluxmill` binary: parse, run the command, exit.

use std::process::ExitCode;

use clap::Parser;
use fluxmill::cli::{Cli, EXIT_FAILED};

fn main() -> ExitCode {
    match Cli::parse().execute() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}
