//! Tests that need a broker: named as others, run by the same command, and reported as ignored, with the reason, on a
//! machine that has none. With `FLUXMILL_REQUIRE_BROKERS=1` they fail there instead.
//!
//! `FLUXMILL_TEST_CLIENT=librdkafka|columnar|both` names the client that the tests' pipelines use.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use anyhow::Context;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tempfile::TempDir;

use super::chain;
use super::client::Client;
use super::kafka::{self, Kafka, Missing, Options, Version};
use super::nats;
use super::process::{Fluxmill, Output};

/// The brokers that the tests of one binary share; each is started by the first test that asks for it.
#[derive(Default)]
struct Brokers {
    plain: Mutex<BTreeMap<Version, Arc<Kafka>>>,
    secure: Mutex<BTreeMap<Version, Arc<Kafka>>>,
}

impl Brokers {
    fn get(&self, version: Version, secure: bool) -> anyhow::Result<Arc<Kafka>> {
        let place = if secure { &self.secure } else { &self.plain };
        // Held while it starts: the others wait for the same broker.
        let mut place: MutexGuard<'_, BTreeMap<Version, Arc<Kafka>>> =
            place.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(kafka) = place.get(&version) {
            return Ok(Arc::clone(kafka));
        }
        let kafka = Arc::new(Kafka::start(Options { version, secure, ..Options::default() })?);
        place.insert(version, Arc::clone(&kafka));
        Ok(kafka)
    }
}

/// Which client moves the events of the pipelines that the tests write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KafkaClient {
    /// The one that a pipeline file gets that does not name one.
    Default,
    /// The one of this name.
    Named(&'static str),
}

impl KafkaClient {
    /// By `FLUXMILL_TEST_CLIENT`: a name; `both`, which runs every test with each; or nothing.
    fn wanted() -> Result<Vec<Self>, String> {
        match std::env::var("FLUXMILL_TEST_CLIENT").as_deref() {
            Err(_) | Ok("") => Ok(vec![Self::Default]),
            Ok("columnar") => Ok(vec![Self::Named("columnar")]),
            Ok("librdkafka") => Ok(vec![Self::Named("librdkafka")]),
            Ok("both") => Ok(vec![Self::Named("columnar"), Self::Named("librdkafka")]),
            Ok(other) => {
                Err(format!("FLUXMILL_TEST_CLIENT={other} is none of `columnar`, `librdkafka`, `both`, and nothing"))
            }
        }
    }

    /// The name of a test when it runs with this client; also the first part of the names of its topics.
    fn test(self, name: &str) -> String {
        match self {
            Self::Default => name.to_owned(),
            Self::Named(client) => format!("{name}.{client}"),
        }
    }

    /// What the connection of a pipeline file says of it.
    pub(crate) fn line(self) -> Option<String> {
        match self {
            Self::Default => None,
            Self::Named(client) => Some(format!("client: {client}")),
        }
    }

    /// The same for a pipeline file that is there: the line goes in front of the brokers of its one connection.
    ///
    /// # Errors
    /// When the file names no brokers.
    pub(crate) fn put_into(self, text: &str) -> anyhow::Result<String> {
        self.line().map_or_else(|| Ok(text.to_owned()), |line| chain::with_setting(text, &line))
    }
}

/// What one test works with: its own folder and topics, brokers, the binary.
pub(crate) struct Case {
    name: String,
    client: KafkaClient,
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
        self.brokers.get(Version::default(), false)
    }

    /// The broker of this release that all tests share.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn kafka_of(&self, version: Version) -> anyhow::Result<Arc<Kafka>> {
        self.brokers.get(version, false)
    }

    /// The shared broker of this release with TLS, SASL and an authorizer.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn secure_kafka_of(&self, version: Version) -> anyhow::Result<Arc<Kafka>> {
        self.brokers.get(version, true)
    }

    /// The shared broker with TLS, SASL and an authorizer.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn secure_kafka(&self) -> anyhow::Result<Arc<Kafka>> {
        self.brokers.get(Version::default(), true)
    }

    /// A broker for this test alone, to be stopped and killed.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn own_kafka(&self) -> anyhow::Result<Kafka> {
        Kafka::start(Options::default())
    }

    /// Which client this test's pipelines use.
    pub(crate) fn kafka_client(&self) -> KafkaClient {
        self.client
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
        self.start(["run", &file].into_iter().chain(more.iter().copied()), brokers, expected)
    }

    /// Starts the binary with these arguments against `brokers`, its cache in this test's folder.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start<'a>(
        &self,
        args: impl IntoIterator<Item = &'a str>,
        brokers: &str,
        expected: &[&str],
    ) -> anyhow::Result<Fluxmill> {
        let cache = self.dir().display().to_string();
        self.start_with(args, &[("KAFKA_BROKERS", brokers), ("XDG_CACHE_HOME", &cache)], expected)
    }

    /// Starts the binary with these arguments and this environment.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start_with<'a>(
        &self,
        args: impl IntoIterator<Item = &'a str>,
        env: &[(&str, &str)],
        expected: &[&str],
    ) -> anyhow::Result<Fluxmill> {
        let fluxmill = Fluxmill::start(args, env, expected)?;
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

/// Why there is no Kafka on this machine, if there is none.
pub(crate) fn no_kafka() -> Option<Missing> {
    kafka::class_path(Version::default()).err()
}

fn no_kcat() -> Option<Missing> {
    (!kafka::runs("kcat", "-V")).then(|| Missing("needs `kcat`".to_owned()))
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
        self.add(name, no_kafka, test);
    }

    /// Adds a test that needs nats-server.
    pub(crate) fn nats(&mut self, name: &'static str, test: fn(&Case) -> anyhow::Result<()>) {
        self.add_with(KafkaClient::Default, name, nats::missing, test);
    }

    /// Adds a test that needs nats-server and certificates.
    pub(crate) fn nats_and_certificates(&mut self, name: &'static str, test: fn(&Case) -> anyhow::Result<()>) {
        self.add_with(KafkaClient::Default, name, || nats::missing().or_else(nats::no_certificates), test);
    }

    /// Adds a test that needs nats-server and Kafka.
    pub(crate) fn nats_and_kafka(&mut self, name: &'static str, test: fn(&Case) -> anyhow::Result<()>) {
        self.add_with(KafkaClient::Default, name, || nats::missing().or_else(no_kafka), test);
    }

    /// Adds a test that needs Kafka and a second client, `kcat`.
    pub(crate) fn kafka_and_kcat(&mut self, name: &'static str, test: fn(&Case) -> anyhow::Result<()>) {
        self.add(name, || no_kafka().or_else(no_kcat), test);
    }

    fn add(&mut self, name: &'static str, missing: fn() -> Option<Missing>, test: fn(&Case) -> anyhow::Result<()>) {
        match KafkaClient::wanted() {
            Ok(clients) => clients.into_iter().for_each(|client| self.add_with(client, name, missing, test)),
            Err(error) => self.trials.push(Trial::test(name, || Err(error.into()))),
        }
    }

    fn add_with(
        &mut self,
        client: KafkaClient,
        name: &'static str,
        missing: fn() -> Option<Missing>,
        test: fn(&Case) -> anyhow::Result<()>,
    ) {
        let trial = self.trial(client, client.test(name), missing, test);
        self.trials.push(trial);
    }

    /// Adds a test of a suite that gives its tests their names.
    pub(crate) fn named(
        &mut self,
        kind: &str,
        name: String,
        missing: fn() -> Option<Missing>,
        test: impl FnOnce(&Case) -> anyhow::Result<()> + Send + 'static,
    ) {
        let said = format!("{kind}: {name} ok");
        let test = move |case: &Case| test(case).inspect(|()| println!("{said}"));
        let trial = self.trial(KafkaClient::Default, name, missing, test).with_kind(kind);
        self.trials.push(trial);
    }

    /// Adds a test of such a suite that does not apply here: it is shown as ignored, with the reason.
    pub(crate) fn does_not_apply(&mut self, kind: &str, name: String, reason: &'static str) {
        let said = format!("{kind}: {name} does not apply: {reason}");
        let test = move || {
            println!("{said}");
            Ok(Completion::ignored_with(reason))
        };
        self.trials.push(Trial::ignorable_test(name, test).with_kind(kind));
    }

    fn trial(
        &self,
        client: KafkaClient,
        name: String,
        missing: fn() -> Option<Missing>,
        test: impl FnOnce(&Case) -> anyhow::Result<()> + Send + 'static,
    ) -> Trial {
        let brokers = Arc::clone(&self.brokers);
        Trial::ignorable_test(name.clone(), move || {
            if let Some(missing) = missing() {
                if std::env::var_os("FLUXMILL_REQUIRE_BROKERS").is_some_and(|value| value == "1") {
                    return Err(format!("FLUXMILL_REQUIRE_BROKERS=1, and: {}", missing.0).into());
                }
                return Ok(Completion::ignored_with(missing.0));
            }
            let dir = TempDir::with_prefix("fluxmill-test-").map_err(|error| format!("no folder: {error}"))?;
            let case = Case { name, client, brokers, dir, outputs: RefCell::default() };
            let start = Instant::now();
            let result = test(&case);
            case.note(&format!("took {:.1?}", start.elapsed()));
            match result {
                Ok(()) => Ok(Completion::Completed),
                Err(error) => Err(case.failed(&error)),
            }
        })
    }

    /// Runs what the command line asks for, then ends the brokers.
    pub(crate) fn run(self) -> ExitCode {
        self.run_on(None)
    }

    /// As [`run`](Self::run), one test after the other unless the command line says otherwise: for tests that each take
    /// a whole machine.
    pub(crate) fn run_one_by_one(self) -> ExitCode {
        self.run_on(Some(1))
    }

    fn run_on(self, threads: Option<usize>) -> ExitCode {
        let Self { brokers, trials } = self;
        let mut arguments = Arguments::from_args();
        arguments.test_threads = arguments.test_threads.or(threads);
        let code = libtest_mimic::run(&arguments, trials).exit_code();
        drop(brokers);
        code
    }
}
