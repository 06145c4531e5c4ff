//! The commands. One file each: a clap struct whose doc comments are the help, and its `execute`.

pub mod check;
pub mod dead_letter;
pub mod demo;
pub mod explain;
pub mod graph;
pub mod run;
pub mod schema;

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{self, ConfigErrors, Loaded};

/// Columns of messages where the terminal does not tell.
const WIDTH: usize = 100;

/// What went well.
pub const EXIT_OK: u8 = 0;
/// It failed while running.
pub const EXIT_FAILED: u8 = 1;
/// Bad usage or configuration; nothing ran.
pub const EXIT_USAGE: u8 = 2;

/// Event chains of sandboxed WebAssembly functions on your own Kafka.
///
/// Exit codes: 0 ok, 1 failed while running, 2 bad usage or configuration.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Run(run::Args),
    Check(check::Args),
    Explain(explain::Args),
    Graph(graph::Args),
    DeadLetter(Box<dead_letter::Args>),
    Schema(schema::Args),
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// What no command expected; the caller prints it and exits with [`EXIT_FAILED`].
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Demo(command) => command.execute(),
            Command::Run(command) => command.execute(),
            Command::Check(command) => command.execute(),
            Command::Explain(command) => command.execute(),
            Command::Graph(command) => command.execute(),
            Command::DeadLetter(command) => command.execute(),
            Command::Schema(command) => command.execute(),
        }
    }
}

/// The process's environment, for variables in pipeline files.
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Prints the mistakes to standard error, in colour on a terminal.
fn report(errors: &ConfigErrors) {
    let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let width = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).unwrap_or(WIDTH);
    // Nothing can be done about a standard error that is closed; the exit code still tells.
    let _ = std::io::stderr().write_all(errors.render(color, width).as_bytes());
}

/// Loads a file; its mistakes are printed, and the exit code returned.
fn load_or_report(path: &Path) -> Result<Loaded, ExitCode> {
    config::load(path, &environment).map_err(|errors| {
        report(&errors);
        ExitCode::from(EXIT_USAGE)
    })
}
