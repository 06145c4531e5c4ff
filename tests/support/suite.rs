//! Tests that need a broker: named as others, run by the same command, and reported as ignored, with the reason, on a
//! machine that has none. With `FLUXMILL_REQUIRE_BROKERS=1` they fail there instead.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Context;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tempfile::TempDir;

use super::client::Client;
use super::kafka::{self, Kafka, Missing, Options};
use super::process::{Fluxmill, Output};

/// The brokers that the tests of one binary share; each is started by the first test that asks for it.
#[derive(Default)]
struct Brokers {
    plain: Mutex<Option<Arc<Kafka>>>,
    secure: Mutex<Option<Arc<Kafka>>>,
}

impl Brokers {
    fn get(&self, secure: bool) -> anyhow::Result<Arc<Kafka>> {
        let place = if secure { &self.secure } else { &self.plain };
        // Held while it starts: the others wait for the same broker.
        let mut place: MutexGuard<'_, Option<Arc<Kafka>>> =
            place.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(kafka) = &*place {
            return Ok(Arc::clone(kafka));
        }
        let kafka = Arc::new(Kafka::start(Options { secure })?);
        *place = Some(Arc::clone(&kafka));
        Ok(kafka)
    }
}

/// What one test works with: its own folder and topics, brokers, the binary.
pub(crate) struct Case {
    name: String,
    brokers: Arc<Brokers>,
    dir: TempDir,
    outputs: RefCell<Vec<Arc<Output>>>,
}

impl Case {
    /// The broker that all tests share. It is never stopped.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn kafka(&self) -> anyhow::Result<Arc<Kafka>> {
        self.brokers.get(false)
    }

    /// The shared broker with TLS, SASL and an authorizer.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn secure_kafka(&self) -> anyhow::Result<Arc<Kafka>> {
        self.brokers.get(true)
    }

    /// A broker for this test alone, to be stopped and killed.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn own_kafka(&self) -> anyhow::Result<Kafka> {
        Kafka::start(Options::default())
    }

    /// A client of the shared broker.
    ///
    /// # Errors
    /// When that does not start.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(&self.kafka()?.brokers()))
    }

    /// The name of a topic or group that no other test uses.
    pub(crate) fn topic(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }

    /// This test's folder.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file into this test's folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir().join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// Starts `fluxmill run FILE` with further arguments against `brokers`, its cache in this test's folder.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn run(&self, file: &Path, brokers: &str, more: &[&str], expected: &[&str]) -> anyhow::Result<Fluxmill> {
        let file = file.display().to_string();
        let cache = self.dir().display().to_string();
        let args = ["run", &file].into_iter().chain(more.iter().copied());
        let env = [("KAFKA_BROKERS", brokers), ("XDG_CACHE_HOME", &cache)];
        let fluxmill = Fluxmill::start(args, &env, expected)?;
        self.outputs.borrow_mut().push(Arc::clone(fluxmill.output()));
        Ok(fluxmill)
    }

    /// A line about this test for whoever reads the run: measured, not judged.
    pub(crate) fn note(&self, text: &str) {
        println!("note {}: {text}", self.name);
    }

    /// What the processes of a failed test wrote.
    fn failed(&self, error: &anyhow::Error) -> Failed {
        const SHOWN: usize = 200;
        let mut text = format!("{error:#}\n");
        for (number, output) in self.outputs.borrow().iter().enumerate() {
            let lines = output.lines();
            text += &format!("--- output of process {} ({} lines, the last {SHOWN})\n", number + 1, lines.len());
            for line in lines.iter().skip(lines.len().saturating_sub(SHOWN)) {
                text += &line.text;
                text += "\n";
            }
        }
        text.into()
    }
}

/// The tests of one binary.
#[derive(Default)]
pub(crate) struct Suite {
    brokers: Arc<Brokers>,
    trials: Vec<Trial>,
}

impl Suite {
    /// Adds a test that needs Kafka.
    pub(crate) fn kafka(&mut self, name: &'static str, test: fn(&Case) -> anyhow::Result<()>) {
        self.add(name, || None, test);
    }

    /// Adds a test that needs Kafka and a second client, `kcat`.
    pub(crate) fn kafka_and_kcat(&mut self, name: &'static str, test: fn(&Case) -> anyhow::Result<()>) {
        self.add(name, || (!kafka::runs("kcat", "-V")).then(|| Missing("needs `kcat`".to_owned())), test);
    }

    fn add(&mut self, name: &'static str, missing: fn() -> Option<Missing>, test: fn(&Case) -> anyhow::Result<()>) {
        let brokers = Arc::clone(&self.brokers);
        self.trials.push(Trial::ignorable_test(name, move || {
            if let Some(missing) = kafka::class_path().err().or_else(missing) {
                if std::env::var_os("FLUXMILL_REQUIRE_BROKERS").is_some_and(|value| value == "1") {
                    return Err(format!("FLUXMILL_REQUIRE_BROKERS=1, and: {}", missing.0).into());
                }
                return Ok(Completion::ignored_with(missing.0));
            }
            let dir = TempDir::with_prefix("fluxmill-test-").map_err(|error| format!("no folder: {error}"))?;
            let case = Case { name: name.to_owned(), brokers, dir, outputs: RefCell::default() };
            match test(&case) {
                Ok(()) => Ok(Completion::Completed),
                Err(error) => Err(case.failed(&error)),
            }
        }));
    }

    /// Runs what the command line asks for, then ends the brokers.
    pub(crate) fn run(self) -> ExitCode {
        let Self { brokers, trials } = self;
        let code = libtest_mimic::run(&Arguments::from_args(), trials).exit_code();
        drop(brokers);
        code
    }
}
