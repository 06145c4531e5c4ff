//! The binary from outside, without a broker: help, exit codes, messages.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use support::chain::{Chain, guest, repository};
use support::process::{Ended, Fluxmill};
use tempfile::TempDir;

mod support;

/// No command here waits for anything.
const LIMIT: Duration = Duration::from_secs(60);

fn fluxmill(args: &[&str]) -> Ended {
    let run = Fluxmill::start(args, &[("KAFKA_BROKERS", "127.0.0.1:1")], &[]).expect("the binary starts");
    run.finish(LIMIT).expect("an end without a WARN or ERROR line")
}

/// A folder with one pipeline file, given as the lines of its function.
fn folder(wasm: Option<PathBuf>, function: &[&str]) -> (TempDir, String) {
    let folder = TempDir::new().expect("a folder");
    let [from, to, dead] = ["in", "out", "dead"].map(str::to_owned);
    let function = function.iter().map(|&line| line.to_owned()).collect();
    let chain = Chain { from, to, dead, wasm, function, ..Chain::default() };
    let file = folder.path().join("chain.yaml");
    fs::write(&file, chain.yaml()).expect("write the file");
    (folder, file.display().to_string())
}

/// Commands that refuse a file that is wrong in itself.
const BOTH: [&str; 2] = ["check", "run"];

/// Each of the commands refuses the file: exit code 2, all of these words, and where in the file.
fn refused(commands: &[&str], file: &str, said: &[&str]) {
    for &command in commands {
        let ended = fluxmill(&[command, file]);
        assert_eq!(ended.code, Some(2), "{command} {file}: {ended:?}");
        assert_eq!(ended.stdout, "", "{command}: mistakes belong on standard error");
        for part in said.iter().chain(&["chain.yaml"]) {
            assert!(ended.stderr.contains(part), "{command} does not say `{part}`:\n{}", ended.stderr);
        }
    }
}

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let ended = fluxmill(&["--help"]);
    assert_eq!(ended.code, Some(0));
    for word in ["run", "check", "explain", "graph", "schema", "demo", "Exit codes: 0 ok"] {
        assert!(ended.stdout.contains(word), "no `{word}` in:\n{}", ended.stdout);
    }
    assert!(fluxmill(&["--version"]).stdout.contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn bad_usage_exits_with_2_and_says_what_is_there() {
    for args in
        [&[][..], &["ran"], &["run"], &["check", "--no-such-flag", "x.yaml"], &["run", "--drain-timeout", "5", "x"]]
    {
        let ended = fluxmill(args);
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
        assert!(ended.stderr.contains("Usage") || ended.stderr.contains("--help"), "{args:?}:\n{}", ended.stderr);
        assert_eq!(ended.stdout, "", "{args:?}");
    }
}

#[test]
fn a_file_that_is_not_there_exits_with_2() {
    for command in ["check", "run", "explain", "graph"] {
        let ended = fluxmill(&[command, "no-such-file.yaml"]);
        assert_eq!(ended.code, Some(2), "{command}: {ended:?}");
        assert!(ended.stderr.contains("no-such-file.yaml"), "{command}:\n{}", ended.stderr);
    }
}

#[test]
fn all_mistakes_of_a_file_come_at_once_with_their_places() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("chain.yaml");
    let text = "name: x\nconnections:\n  main: { kafka: { brokrs: [\"b:1\"] } }\npipelines:\n  p:\n    \
                from: { kafka: { topics: [in] } }\n    batch: { max_bytes: 100 }\n    to: { kafka: { topic: out } }\n";
    fs::write(&file, text).expect("write the file");
    refused(&BOTH, &file.display().to_string(), &["chain.yaml:3:", "chain.yaml:7:", "brokers", "MiB"]);
}

#[test]
fn a_component_that_is_none_exits_with_2() {
    let (folder, file) = folder(Some(PathBuf::from("f.wasm")), &[]);
    let wasm = folder.path().join("f.wasm");
    refused(&BOTH, &file, &["f.wasm"]);
    fs::write(&wasm, b"\0asm\x01\0\0\0").expect("write");
    refused(&BOTH, &file, &["core WebAssembly module, but a function is a component"]);
    fs::write(&wasm, b"no wasm at all").expect("write");
    refused(&BOTH, &file, &["f.wasm"]);
    fs::write(&wasm, b"").expect("write");
    refused(&BOTH, &file, &["f.wasm"]);
}

#[test]
fn a_component_with_an_import_that_nobody_grants_exits_with_2() {
    let (folder, file) = folder(Some(PathBuf::from("f.wasm")), &[]);
    let component = r#"(component (import "acme:store/db@1.0.0" (instance (export "get" (func)))))"#;
    fs::write(folder.path().join("f.wasm"), wat::parse_str(component).expect("a component")).expect("write");
    refused(&BOTH, &file, &["acme:store/db"]);
}

#[test]
fn a_component_with_another_digest_exits_with_2() {
    let digest = format!("digest: \"sha256:{}\"", "0".repeat(64));
    let (_folder, file) = folder(Some(guest("identity")), &[&digest]);
    refused(&BOTH, &file, &["digest"]);
}

#[test]
fn a_broker_that_is_not_there_is_told_by_check_and_exits_with_1() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("chain.yaml");
    // Port 1 of this machine refuses connections.
    let text = "name: x\nconnections:\n  main: { kafka: { brokers: [\"127.0.0.1:1\"] } }\npipelines:\n  p:\n    \
                from: { kafka: { topics: [a] } }\n    to: { kafka: { topic: b } }\n";
    std::fs::write(&file, text).expect("write");
    let ended = fluxmill(&["check", "--connect", &file.display().to_string()]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
    assert!(ended.stderr.contains("chain.yaml:3:") && ended.stderr.contains("127.0.0.1:1"), "{}", ended.stderr);
}

#[test]
fn the_other_commands_print_and_exit_with_0() {
    let (_folder, file) = folder(Some(guest("identity")), &[]);
    assert_eq!(fluxmill(&["check", &file]).code, Some(0));
    let explained = fluxmill(&["explain", &file]);
    assert_eq!(explained.code, Some(0), "{explained:?}");
    assert!(explained.stdout.contains("dead"), "{}", explained.stdout);
    let drawn = fluxmill(&["graph", &file]);
    assert_eq!(drawn.code, Some(0), "{drawn:?}");
    assert!(drawn.stdout.contains("out"), "{}", drawn.stdout);
    let schema = fluxmill(&["schema"]);
    assert_eq!(schema.code, Some(0));
    let schema: serde_json::Value = serde_json::from_str(&schema.stdout).expect("a JSON Schema is JSON");
    assert!(schema["properties"]["pipelines"].is_object(), "{schema}");
}

/// Every YAML file of the repository is either checked here, or a golden mistake, or is named here as something else.
#[test]
fn every_pipeline_file_of_the_repository_is_good() {
    let mut checked = 0;
    for path in support::files::with_extension(&["yaml", "yml"]) {
        let relative = path.strip_prefix(repository("")).expect("in the repository");
        if relative.starts_with("tests/config") || relative.starts_with("compose") {
            continue;
        }
        assert_good(&path);
        checked += 1;
    }
    assert!(checked >= 2, "only {checked} files found");
}

fn assert_good(path: &Path) {
    let ended = fluxmill(&["check", &path.display().to_string()]);
    assert_eq!(ended.code, Some(0), "{}:\n{}", path.display(), ended.stderr);
}
