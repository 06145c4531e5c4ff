//! `fluxmill schema`: what a pipeline file may say.

use std::io::Write as _;
use std::process::ExitCode;

use crate::config;

/// Print the JSON Schema of pipeline files, for editors.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the reference (docs/configuration.md) instead.
    #[arg(long, hide = true)]
    markdown: bool,
}

impl Args {
    /// Runs the command.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let text = match self.markdown {
            true => config::markdown(),
            false => format!("{:#}\n", config::json_schema()),
        };
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}
