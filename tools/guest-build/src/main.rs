//! `guest-build DIR`: builds the functions of a cargo workspace (or package) into components beside their source.
//!
//! It finds a compiler for WebAssembly, runs cargo, and wraps what is no component yet. It is no package manager: it
//! installs nothing, and says what to install when there is nothing to build with.

mod build;
mod toolchain;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Parser;

/// Build a folder of Rust functions into WebAssembly components.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The folder with the Cargo.toml of the functions.
    dir: PathBuf,
    /// Where the components go, one `<name>.wasm` for each function [default: DIR].
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-build: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let dir = args.dir.canonicalize().with_context(|| format!("no folder {}", args.dir.display()))?;
    ensure!(dir.join("Cargo.toml").is_file(), "no Cargo.toml in {}", args.dir.display());
    let out = args.out.unwrap_or_else(|| args.dir.clone());
    std::fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;

    let toolchain = toolchain::find(&dir)?;
    eprintln!("building with {toolchain}");
    let modules = build::build(&toolchain, &dir)?;
    ensure!(
        !modules.is_empty(),
        "nothing in {} is a function: give its package `[lib] crate-type = [\"cdylib\"]`",
        args.dir.display()
    );
    for module in modules {
        let component = build::component(&module)?;
        let path = out.join(&module.name).with_extension("wasm");
        let written = build::write_if_changed(&path, &component)?;
        let note = if written { "" } else { ", unchanged" };
        println!("{} ({} KiB{note})", path.display(), component.len().div_ceil(1024));
    }
    Ok(())
}
