//! Files that must not be loaded, and compiled code that is kept.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fluxmill::function::{Engine, EngineOptions, Function, LoadError, NotAComponent, Transform};
use fluxmill::spec::{FunctionLimits, FunctionSpec};

use crate::guest;
use crate::support::{LIMITS, block_on, engine, logged, spec, try_load, two};

fn refused(component: &[u8]) -> LoadError {
    try_load(&engine(), component, LIMITS).unwrap_err()
}

#[test]
fn what_is_no_component_is_refused_with_the_way_out() {
    let cases: [(&[u8], NotAComponent, &str); 4] = [
        (&guest::module("", "", "unreachable"), NotAComponent::CoreModule, "wasm-tools component new"),
        (b"(component)", NotAComponent::Text, "wasm-tools parse"),
        (b"", NotAComponent::Truncated, "build the function again"),
        (b"#!/bin/sh\nexit 0", NotAComponent::NotWasm, "must name a component file"),
    ];
    for (bytes, expected, words) in cases {
        let error = refused(bytes);
        assert!(matches!(error, LoadError::NotAComponent { found, .. } if found == expected), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_missing_or_unreadable_file_is_named() {
    let engine = engine();
    let load = |path: &Path| Function::load(&engine, &spec(path), &[]).unwrap_err();
    let missing = load(Path::new("functions/absent.wasm"));
    assert!(matches!(missing, LoadError::NotFound { .. }) && missing.to_string().contains("absent.wasm"), "{missing}");
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(load(folder.path()), LoadError::Unreadable { .. }));
}

#[test]
fn a_broken_component_is_refused() {
    let whole = guest::identity();
    let error = refused(&whole[..whole.len() / 2]);
    assert!(matches!(error, LoadError::Compile { .. }), "{error}");
}

#[test]
fn a_foreign_import_is_refused_by_name() {
    let imports =
        r#"(import "wasi:sockets/tcp@0.2.0" "[method]tcp-socket.is-listening" (func $f (param i32) (result i32)))"#;
    let error = refused(&guest::function_with(imports, "", "(call $f (i32.const 0))"));
    let LoadError::ForeignImport { name, .. } = &error else { panic!("{error}") };
    assert_eq!(name, "wasi:sockets/tcp@0.2.0");
    assert!(error.to_string().contains("which is not granted: functions get no network"), "{error}");

    // Right by name, wrong by type.
    let other = wat::parse_str(
        r#"(component (import "fluxmill:function/log@0.1.0" (instance (export "shout" (func (param "x" string))))))"#,
    );
    let error = refused(&other.unwrap());
    assert!(
        matches!(&error, LoadError::ForeignImport { name, .. } if name == "fluxmill:function/log@0.1.0"),
        "{error}"
    );
}

#[test]
fn a_component_without_the_contract_is_refused() {
    let error = refused(&wat::parse_str("(component)").unwrap());
    assert!(matches!(error, LoadError::WrongExport { .. }), "{error}");
    assert!(error.to_string().contains("does not export the function `transform`; it exports nothing"), "{error}");

    let other = wat::parse_str(
        r#"(component
             (core module $m (func (export "f") (param i32) (result i32) local.get 0))
             (core instance $i (instantiate $m))
             (func (export "transform") (param "x" u32) (result u32) (canon lift (core func $i "f"))))"#,
    );
    let error = refused(&other.unwrap());
    assert!(matches!(error, LoadError::WrongExport { .. }), "{error}");
    assert!(error.to_string().contains("with other types"), "{error}");
}

#[test]
fn the_pinned_digest_must_be_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f.wasm");
    std::fs::write(&path, guest::identity()).unwrap();
    let engine = engine();
    let load = |digest: Option<String>| Function::load(&engine, &FunctionSpec { digest, ..spec(&path) }, &[]);
    let digest = load(None).unwrap().digest().to_owned();
    assert_eq!(digest.len(), 64);
    load(Some(digest.clone())).unwrap();
    let error = load(Some("0".repeat(64))).unwrap_err();
    assert!(matches!(&error, LoadError::DigestMismatch { found, .. } if *found == digest), "{error}");
}

#[test]
fn memory_that_is_not_there_is_refused_before_any_call() {
    let limits = |memory| FunctionLimits { memory, ..LIMITS };
    let large = guest::function_with("", "(memory $other 2000)", "(memory.size $other)");
    let error = try_load(&engine(), &large, limits(64 << 20)).unwrap_err();
    assert!(matches!(error, LoadError::Memory { needed: 131_072_000, .. }), "{error}");
    let component = guest::function_with("", "(memory $other 40)", "(memory.size $other)");
    let error = try_load(&engine(), &component, limits(1 << 20)).unwrap_err();
    assert!(matches!(error, LoadError::Memory { needed: 2_621_440, allowed: 1_048_576, .. }), "{error}");
    let error = try_load(&engine(), &component, limits(1 << 30)).unwrap_err();
    assert!(matches!(error, LoadError::Engine { .. }), "{error}");
}

/// A cache folder, and a component beside it.
struct Kept {
    folder: tempfile::TempDir,
    component: PathBuf,
}

impl Kept {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let component = folder.path().join("f.wasm");
        std::fs::write(&component, guest::identity()).unwrap();
        Self { folder, component }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn load(&self) -> (Engine, Function) {
        let options = EngineOptions { sandboxes: 1, memory: 64 << 20, cache: Some(self.cache()) };
        let engine = Engine::new(options).unwrap();
        let function = Function::load(&engine, &spec(&self.component), &["out".to_owned()]).unwrap();
        (engine, function)
    }

    /// Loads and calls; returns the published events and what was logged.
    fn run(&self) -> (usize, String) {
        logged(|| {
            let (engine, function) = self.load();
            block_on(&engine, function.call(&two())).unwrap().len()
        })
    }

    fn files(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.cache()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

#[test]
fn compiled_code_is_kept_and_used() {
    let kept = Kept::new();
    assert_eq!(kept.run(), (2, String::new()));
    let [file] = &kept.files()[..] else { panic!("{:?}", kept.files()) };
    assert_eq!(kept.cache().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    // Code of another function under this one's name shows that it is the kept code that runs.
    let other = Kept::new();
    std::fs::write(&other.component, guest::returns(&[], &[])).unwrap();
    assert_eq!(other.run(), (0, String::new()));
    std::fs::copy(&other.files()[0], file).unwrap();
    assert_eq!(kept.run(), (0, String::new()));
}

#[test]
fn damaged_compiled_code_is_made_again() {
    let kept = Kept::new();
    kept.run();
    let file = kept.files().remove(0);
    let whole = std::fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x40;
    for damaged in [&flipped, &whole[..whole.len() - 1], &whole[..10], b""] {
        std::fs::write(&file, damaged).unwrap();
        let (published, log) = kept.run();
        assert_eq!(published, 2);
        assert_eq!(log.matches("WARN").count(), 1, "{log}");
        assert!(log.contains("will be made again"), "{log}");
        assert_eq!(std::fs::read(&file).unwrap().len(), whole.len());
        assert_eq!(kept.run(), (2, String::new()), "written whole again");
    }
}

#[test]
fn a_cache_that_cannot_be_used_is_done_without() {
    let kept = Kept::new();
    std::fs::write(kept.cache(), "a file").unwrap();
    let (published, log) = kept.run();
    assert_eq!((published, log.matches("WARN").count()), (2, 1), "{log}");

    let open = Kept::new();
    std::fs::create_dir(open.cache()).unwrap();
    std::fs::set_permissions(open.cache(), PermissionsExt::from_mode(0o777)).unwrap();
    let (published, log) = open.run();
    assert_eq!((published, open.files().len()), (2, 0));
    assert!(log.contains("must be yours alone"), "{log}");
}

#[test]
fn many_may_fill_the_cache_at_once() {
    let kept = Kept::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| kept.load());
        }
    });
    assert_eq!(kept.files().len(), 1);
    assert_eq!(kept.run(), (2, String::new()));
}
