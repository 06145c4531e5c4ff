//! Runs cargo and makes components of what it leaves.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use wit_component::ComponentEncoder;

use crate::toolchain::Toolchain;

/// A component starts like a core module, but for the layer in its version field.
const COMPONENT_MAGIC: &[u8] = b"\0asm\x0d\0\x01\0";

/// What cargo built of one function.
#[derive(Debug)]
pub(crate) struct Module {
    /// The function's name.
    pub(crate) name: String,
    /// The core module, or the component.
    file: PathBuf,
}

/// One line of cargo's `--message-format=json`.
#[derive(Deserialize)]
struct Message {
    reason: String,
    target: Option<CargoTarget>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct CargoTarget {
    name: String,
    kind: Vec<String>,
    src_path: PathBuf,
}

/// Builds all functions below `dir`.
///
/// # Errors
/// The build failed; cargo has printed why.
pub(crate) fn build(toolchain: &Toolchain, dir: &Path) -> anyhow::Result<Vec<Module>> {
    let target_dir = target_dir()?;
    let mut cargo = Command::new(&toolchain.cargo);
    cargo.current_dir(dir).args(["build", "--release", "--message-format=json-render-diagnostics", "--target"]);
    cargo.arg(toolchain.target).arg("--target-dir").arg(&target_dir);
    if dir.join("Cargo.lock").is_file() {
        cargo.arg("--locked");
    }
    if let Some(linker) = &toolchain.build_std {
        // A stable compiler builds its own standard library only when told that it is bootstrapping.
        cargo.env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=std,panic_abort");
        cargo.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
    }
    if let Some(rustc) = &toolchain.rustc {
        cargo.env("RUSTC", rustc);
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", rustflags(toolchain, dir, &target_dir)).env_remove("RUSTFLAGS");
    let output = cargo
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", toolchain.cargo.display()))?;
    ensure!(output.status.success(), "the build of {} failed", dir.display());
    modules(&output.stdout, dir)
}

/// The functions among the artifacts that cargo reports.
fn modules(messages: &[u8], dir: &Path) -> anyhow::Result<Vec<Module>> {
    let mut modules: HashMap<String, Module> = HashMap::new();
    for line in messages.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"{")) {
        let message: Message = serde_json::from_slice(line).context("cargo's report is not as expected")?;
        let Some(target) = message.target.filter(|_| message.reason == "compiler-artifact") else { continue };
        if !target.kind.iter().any(|kind| kind == "cdylib") || !target.src_path.starts_with(dir) {
            continue;
        }
        let Some(file) = message.filenames.into_iter().find(|file| file.extension().is_some_and(|e| e == "wasm"))
        else {
            continue;
        };
        let name = target.name;
        if modules.insert(name.clone(), Module { name: name.clone(), file }).is_some() {
            bail!("two functions are named {name}");
        }
    }
    let mut modules: Vec<Module> = modules.into_values().collect();
    modules.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(modules)
}

/// Compiler flags that keep this machine's paths out of the components, after those the user set.
fn rustflags(toolchain: &Toolchain, dir: &Path, target_dir: &Path) -> OsString {
    let mut flags = OsString::new();
    if let Some(encoded) = std::env::var_os("CARGO_ENCODED_RUSTFLAGS") {
        flags = encoded;
    } else if let Ok(plain) = std::env::var("RUSTFLAGS") {
        flags = plain.split_whitespace().collect::<Vec<_>>().join("\x1f").into();
    }
    // The compiler takes the last prefix that fits, so the innermost folders come last.
    let mut prefixes = vec![(toolchain.sysroot.clone(), "/rust")];
    prefixes.extend(std::env::home_dir().map(|home| (home, "/home")));
    prefixes.extend(cargo_home().map(|home| (home, "/cargo")));
    prefixes.extend(repository(dir).map(|root| (root, "/source")));
    prefixes.push((dir.to_path_buf(), "."));
    prefixes.push((target_dir.to_path_buf(), "/target"));
    for (from, to) in prefixes {
        if !flags.is_empty() {
            flags.push("\x1f");
        }
        flags.push("--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    flags
}

/// The checkout that the functions are part of, where their path dependencies may lie.
fn repository(dir: &Path) -> Option<PathBuf> {
    dir.ancestors().find(|folder| folder.join(".git").exists()).map(Path::to_path_buf)
}

fn cargo_home() -> Option<PathBuf> {
    std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
}

/// A folder of its own, outside the functions': `$CARGO_TARGET_DIR/guests`, or one in the user's cache.
fn target_dir() -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os("CARGO_TARGET_DIR") {
        return Ok(std::path::absolute(PathBuf::from(dir).join("guests"))?);
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    match cache {
        Some(cache) => Ok(cache.join("fluxmill/guests")),
        None => bail!("no home folder to build in: set CARGO_TARGET_DIR"),
    }
}

/// The component in, or around, what cargo built.
///
/// # Errors
/// The file is no WebAssembly, or a module that does not keep to its contract.
pub(crate) fn component(module: &Module) -> anyhow::Result<Vec<u8>> {
    let bytes = std::fs::read(&module.file).with_context(|| format!("cannot read {}", module.file.display()))?;
    if bytes.starts_with(COMPONENT_MAGIC) {
        return Ok(bytes);
    }
    ComponentEncoder::default()
        .validate(true)
        .module(&bytes)
        .and_then(|encoder| encoder.encode())
        .with_context(|| format!("{} does not make a component; does it use function!(..)?", module.name))
}

/// Writes the component unless it is there already; says whether it wrote.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write_if_changed(path: &Path, bytes: &[u8]) -> anyhow::Result<bool> {
    if std::fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    let whole = path.with_extension("wasm.new");
    std::fs::write(&whole, bytes)
        .and_then(|()| std::fs::rename(&whole, path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_the_dynamic_libraries_below_the_folder() {
        let line = |reason: &str, kind: &str, name: &str, source: &str, file: &str| {
            format!(
                r#"{{"reason":"{reason}","target":{{"name":"{name}","kind":["{kind}"],"src_path":"{source}"}},"filenames":["{file}"]}}"#
            )
        };
        let report = [
            line("compiler-artifact", "lib", "serde", "/cargo/serde/lib.rs", "/t/libserde.rlib"),
            line("compiler-artifact", "cdylib", "review", "/f/review/src/lib.rs", "/t/review.wasm"),
            line("compiler-artifact", "cdylib", "payment", "/f/payment/src/lib.rs", "/t/payment.wasm"),
            line("compiler-artifact", "cdylib", "foreign", "/elsewhere/src/lib.rs", "/t/foreign.wasm"),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ];
        let modules = modules(report.join("\n").as_bytes(), Path::new("/f")).unwrap();
        let names: Vec<_> = modules.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["payment", "review"]);
    }

    #[test]
    fn two_functions_of_one_name_are_an_error() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"a","kind":["cdylib"],"src_path":"/f/a.rs"},"filenames":["/t/a.wasm"]}"#;
        let report = format!("{line}\n{line}\n");
        let error = modules(report.as_bytes(), Path::new("/f")).unwrap_err();
        assert_eq!(error.to_string(), "two functions are named a");
    }
}
