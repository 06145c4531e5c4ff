//! The jars of Apache Kafka: fetched once by Maven, kept for all test processes, one folder for each version.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use tempfile::TempDir;

use crate::support::process::{Fluxmill, Process};
use crate::support::wait::wait_until;

/// How long Maven may take to fetch about 55 MB.
const FETCH: Duration = Duration::from_secs(600);
/// Flags for a JVM that lives for a minute: quick to start, one core's worth of helpers, bounded memory.
const JVM: [&str; 5] =
    ["-Xmx768m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-Djava.awt.headless=true"];

/// A release of Apache Kafka.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// The last line before 4: older versions of most requests, the old group coordinator.
    V3_9,
    /// The one that tests use when the version does not matter.
    #[default]
    V4_1,
}

impl Version {
    /// As Maven knows it; tests/support/kafka/pom.xml has the default.
    fn name(self) -> &'static str {
        match self {
            Self::V3_9 => "3.9.1",
            Self::V4_1 => "4.1.0",
        }
    }
}

/// Why there is no broker on this machine, for a person.
#[derive(Clone, Debug)]
pub(crate) struct Missing(pub(crate) String);

/// The class path of Kafka's jars.
///
/// # Errors
/// When this machine has no Java, or no Maven to fetch the jars with.
pub(crate) fn class_path(version: Version) -> Result<String, Missing> {
    static FOUND: Mutex<BTreeMap<Version, Result<String, Missing>>> = Mutex::new(BTreeMap::new());
    // Held while they are fetched: the other tests of this process wait for the same jars.
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    found.entry(version).or_insert_with(|| find(version)).clone()
}

fn find(version: Version) -> Result<String, Missing> {
    if !runs("java", "-version") {
        return Err(Missing("needs `java` (17 or later) to run Apache Kafka".to_owned()));
    }
    let cache = cache_dir(version);
    let lib = cache.join("lib");
    if !lib.is_dir() {
        let name = version.name();
        if !runs("mvn", "-version") {
            return Err(Missing(format!("needs `mvn` to fetch Apache Kafka {name} once into {}", lib.display())));
        }
        fetch(version, &cache, &lib)
            .map_err(|error| Missing(format!("cannot fetch Apache Kafka {name}: {error:#}")))?;
    }
    Ok(format!("{}/*", lib.display()))
}

/// Where the jars are kept: `$FLUXMILL_TEST_CACHE`, else beside the build in Cargo's target folder.
fn cache_dir(version: Version) -> PathBuf {
    let base = match std::env::var_os("FLUXMILL_TEST_CACHE") {
        Some(dir) => PathBuf::from(dir),
        // target/debug/fluxmill
        None => Fluxmill::binary().ancestors().nth(2).map_or_else(std::env::temp_dir, Path::to_path_buf),
    };
    base.join(format!("kafka-{}", version.name()))
}

/// Whether a program is there and runs.
pub(crate) fn runs(program: &str, argument: &str) -> bool {
    let command =
        Command::new(program).arg(argument).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    command.is_ok_and(|status| status.success())
}

/// Fetches the jars beside `lib` and moves them there whole; a lock keeps a second test process from doing the same.
fn fetch(version: Version, cache: &Path, lib: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(cache)?;
    let lock = File::create(cache.join("lock"))?;
    wait_until(FETCH, "another test process that fetches Kafka", || match lock.try_lock() {
        Ok(()) => Ok(Some(())),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error.into()),
    })?;
    if lib.is_dir() {
        return Ok(());
    }
    let part = TempDir::new_in(cache)?;
    let mut maven = Command::new("mvn");
    maven.args(["-q", "-B", "-f"]).arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/kafka/pom.xml"));
    maven.arg(format!("-Dkafka.version={}", version.name())).arg("dependency:copy-dependencies");
    maven.arg(format!("-DoutputDirectory={}", part.path().display()));
    let mut maven = Process::start("mvn", &mut maven)?;
    let status = maven.wait(FETCH)?;
    ensure!(status.success(), "mvn: {}", maven.output().text().lines().last().unwrap_or("no output").trim());
    fs::rename(part.keep(), lib)?;
    Ok(())
}

/// A JVM with Kafka's classes, to which the class to run and its arguments are still to be added.
///
/// # Errors
/// When the jars cannot be had.
pub(super) fn java(version: Version) -> anyhow::Result<Command> {
    let class_path = class_path(version).map_err(|missing| anyhow::anyhow!(missing.0))?;
    let mut java = Command::new("java");
    java.args(JVM).arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn").args(["-cp", &class_path]);
    Ok(java)
}
