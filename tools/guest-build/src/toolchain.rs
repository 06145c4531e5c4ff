//! Finds a Rust compiler for WebAssembly: three ways, in order of how usual they are.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::bail;

const PREVIEW_2: &str = "wasm32-wasip2";
const BARE: &str = "wasm32-unknown-unknown";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// A way to compile for WebAssembly.
#[derive(Debug)]
pub(crate) struct Toolchain {
    /// What it is, for people.
    name: &'static str,
    /// The cargo to run.
    pub(crate) cargo: PathBuf,
    /// The rustc to run, where it is not the one that cargo would run itself.
    pub(crate) rustc: Option<PathBuf>,
    /// The target triple.
    pub(crate) target: &'static str,
    /// The linker, and with it: the standard library is built from its source.
    pub(crate) build_std: Option<PathBuf>,
    /// The compiler's own folder; its path must not end up in components.
    pub(crate) sysroot: PathBuf,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.target)
    }
}

/// The first way that works here.
///
/// # Errors
/// None does; the error names all three.
pub(crate) fn find(dir: &Path) -> anyhow::Result<Toolchain> {
    let current = std::env::var_os("RUSTC").map_or_else(|| PathBuf::from("rustc"), PathBuf::from);
    search(dir, &current, Path::new(DEBIAN_RUSTC))
}

fn search(dir: &Path, current: &Path, debian_rustc: &Path) -> anyhow::Result<Toolchain> {
    if let Some(sysroot) = sysroot(current, dir) {
        for target in [PREVIEW_2, BARE] {
            if has_target(&sysroot, target) {
                let cargo = PathBuf::from("cargo");
                return Ok(Toolchain {
                    name: "the current toolchain",
                    cargo,
                    rustc: None,
                    target,
                    build_std: None,
                    sysroot,
                });
            }
        }
    }
    if let Some(toolchain) = debian(dir, debian_rustc) {
        return Ok(toolchain);
    }
    bail!(
        "no Rust compiler for WebAssembly. One of these gives one:\n\
         \x20 1. rustup target add {PREVIEW_2}\n\
         \x20 2. rustup target add {BARE}\n\
         \x20 3. on Debian: apt-get install rustc-web cargo-web rust-web-src lld-19"
    )
}

/// Debian's compiler, with its target installed, or with the standard library's source and a linker.
fn debian(dir: &Path, rustc: &Path) -> Option<Toolchain> {
    let sysroot = sysroot(rustc, dir)?;
    if !Path::new(DEBIAN_CARGO).is_file() {
        return None;
    }
    let has_source = sysroot.join("lib/rustlib/src/rust/library/std/Cargo.toml").is_file();
    let build_std = match has_target(&sysroot, BARE) {
        true => None,
        false if has_source => Some(wasm_linker()?),
        false => return None,
    };
    let (cargo, rustc) = (PathBuf::from(DEBIAN_CARGO), Some(rustc.to_path_buf()));
    Some(Toolchain { name: "Debian's toolchain", cargo, rustc, target: BARE, build_std, sysroot })
}

/// `wasm-ld`, or Debian's newest `wasm-ld-N`.
fn wasm_linker() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let find = |name: &str| folders.iter().map(|folder| folder.join(name)).find(|file| file.is_file());
    find("wasm-ld").or_else(|| (14..40).rev().find_map(|version| find(&format!("wasm-ld-{version}"))))
}

fn sysroot(rustc: &Path, dir: &Path) -> Option<PathBuf> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).current_dir(dir).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(path.trim()))
}

fn has_target(sysroot: &Path, target: &str) -> bool {
    let Ok(libraries) = sysroot.join("lib/rustlib").join(target).join("lib").read_dir() else { return false };
    libraries.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libstd-"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A folder with a compiler that knows its sysroot and nothing else; removed at the end.
    struct Compiler(PathBuf);

    impl Compiler {
        fn new(name: &str, files: &[&str]) -> Self {
            let dir = std::env::temp_dir().join(format!("guest-build-{}-{name}", std::process::id()));
            for file in files {
                let file = dir.join("lib/rustlib").join(file);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, "").unwrap();
            }
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("rustc"), format!("#!/bin/sh\necho {}\n", dir.display())).unwrap();
            fs::set_permissions(dir.join("rustc"), fs::Permissions::from_mode(0o755)).unwrap();
            Self(dir)
        }

        fn rustc(&self) -> PathBuf {
            self.0.join("rustc")
        }
    }

    impl Drop for Compiler {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const NO_COMPILER: &str = "/nowhere/rustc";
    const LIB_PREVIEW_2: &str = "wasm32-wasip2/lib/libstd-1.rlib";
    const LIB_BARE: &str = "wasm32-unknown-unknown/lib/libstd-1.rlib";

    fn target_of(current: &Compiler) -> anyhow::Result<&'static str> {
        Ok(search(Path::new("/"), &current.rustc(), Path::new(NO_COMPILER))?.target)
    }

    #[test]
    fn the_usual_target_comes_first() {
        assert_eq!(target_of(&Compiler::new("both", &[LIB_BARE, LIB_PREVIEW_2])).unwrap(), PREVIEW_2);
        assert_eq!(target_of(&Compiler::new("bare", &[LIB_BARE])).unwrap(), BARE);
    }

    #[test]
    fn without_a_compiler_all_three_ways_are_named() {
        let other = Compiler::new("none", &["x86_64-unknown-linux-gnu/lib/libstd-1.rlib"]);
        let error = target_of(&other).unwrap_err().to_string();
        for way in ["rustup target add wasm32-wasip2", "rustup target add wasm32-unknown-unknown", "apt-get install"] {
            assert!(error.contains(way), "{error}");
        }
    }
}
