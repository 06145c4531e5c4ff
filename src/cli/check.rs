//! `fluxmill check`: finds every mistake before anything runs.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::broker::{BrokerError, BrokerErrorKind, kafka, nats};
use crate::cli::{EXIT_FAILED, EXIT_OK, EXIT_USAGE, environment, report};
use crate::config::{self, ConfigErrors, Loaded};
use crate::function::{Engine, EngineOptions, Function};
use crate::pipeline::{streams_on, topics_on};
use crate::spec::{ChainSpec, ConnectionSpec};

/// How long a broker may take to answer.
const BROKER_TIMEOUT: Duration = Duration::from_secs(15);

/// Check pipeline files: every mistake at once, each with its place and what to write instead.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pipeline files.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Ask the brokers, too: are they there, are the topics, may we use them?
    #[arg(long)]
    connect: bool,
}

impl Args {
    /// Runs the command.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let (mut wrong, mut refused) = (false, false);
        for path in &self.files {
            let checked = config::load(path, &environment).and_then(|loaded| components(&loaded).map(|()| loaded));
            let loaded = match checked {
                Ok(loaded) => loaded,
                Err(errors) => {
                    report(&errors);
                    wrong = true;
                    continue;
                }
            };
            if self.connect
                && let Err(errors) = brokers(&loaded)
            {
                report(&errors);
                refused = true;
                continue;
            }
            let (pipelines, topics) = (loaded.spec.pipelines.len(), topic_count(&loaded));
            let (file, s) = (loaded.file(), |n| if n == 1 { "" } else { "s" });
            let line = format!("ok: {file}: {pipelines} pipeline{}, {topics} topic{}\n", s(pipelines), s(topics));
            std::io::stdout().write_all(line.as_bytes())?;
        }
        // What a broker says may change without the file.
        let code = match (wrong, refused) {
            (true, _) => EXIT_USAGE,
            (false, true) => EXIT_FAILED,
            (false, false) => EXIT_OK,
        };
        Ok(ExitCode::from(code))
    }
}

/// Topics that the chain reads and writes, dead letters included.
fn topic_count(loaded: &Loaded) -> usize {
    loaded.spec.used_topics().len()
}

/// Loads every component as `run` would: what is wrong with each is a mistake at its place.
fn components(loaded: &Loaded) -> Result<(), ConfigErrors> {
    let functions: Vec<_> =
        loaded.spec.pipelines.iter().filter_map(|pipeline| Some((pipeline, pipeline.function.as_ref()?))).collect();
    let Some(memory) = functions.iter().map(|(_, function)| function.limits.memory).max() else { return Ok(()) };
    let mut found: Option<ConfigErrors> = None;
    let engine = Engine::new(EngineOptions::new(1, memory));
    for (pipeline, function) in functions {
        let outputs: Vec<String> = pipeline.outputs.iter().map(|output| output.name.clone()).collect();
        let refused = match &engine {
            Ok(engine) => Function::load(engine, function, &outputs).err().map(|error| error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(message) = refused {
            add(&mut found, loaded.error_at_function(&pipeline.name, message, None));
        }
    }
    found.map_or(Ok(()), Err)
}

/// Asks every broker: what it says about a topic is a mistake at the topic, the rest at the connection.
fn brokers(loaded: &Loaded) -> Result<(), ConfigErrors> {
    let mut found: Option<ConfigErrors> = None;
    for (name, connection) in &loaded.spec.connections {
        let used: Vec<&str> =
            loaded.spec.used_topics().into_iter().filter(|(on, _)| on == name).map(|(_, topic)| topic).collect();
        for error in ask_broker(&loaded.spec, name, connection).err().into_iter().flatten() {
            let topics = loaded.spec.topics.iter().filter(|topic| topic.connection == *name).map(|topic| &topic.topic);
            let streams = loaded.spec.streams.iter().filter(|stream| stream.connection == *name);
            let listed = topics.chain(streams.map(|stream| &stream.name)).map(String::as_str);
            let errors = match topic_in(&error.action, used.iter().copied().chain(listed)) {
                Some(topic) => {
                    loaded.error_at_topic(name, topic, error.to_string(), help_of(connection, &error, topic))
                }
                None => loaded.error_at_connection(name, error.to_string(), None),
            };
            add(&mut found, errors);
        }
    }
    found.map_or(Ok(()), Err)
}

fn add(found: &mut Option<ConfigErrors>, errors: ConfigErrors) {
    match found {
        Some(found) => found.merge(errors),
        None => *found = Some(errors),
    }
}

/// The longest of the topics that an action names as a whole word.
fn topic_in<'t>(action: &str, topics: impl Iterator<Item = &'t str>) -> Option<&'t str> {
    let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '{' | '}');
    let words: Vec<&str> = action.split(|c| !in_name(c)).collect();
    topics.filter(|topic| words.contains(topic)).max_by_key(|topic| topic.len())
}

fn help_of(connection: &ConnectionSpec, error: &BrokerError, topic: &str) -> Option<String> {
    let listed = match connection {
        ConnectionSpec::Kafka(_) => {
            format!("create it, or list it under `topics`: `{topic}: {{ partitions: 8 }}`")
        }
        ConnectionSpec::Nats(_) if error.action.starts_with("find subject") => {
            let subject = topic.replace("{key}", "*");
            format!("create a stream for it, or list one under `streams`: `OUT: {{ subjects: [\"{subject}\"] }}`")
        }
        ConnectionSpec::Nats(_) => {
            format!("create it, or list it under `streams`: `{topic}: {{ subjects: [orders] }}`")
        }
    };
    (error.kind == BrokerErrorKind::UnknownTopic).then_some(listed)
}

/// Asks one broker, within its own deadline.
fn ask_broker(chain: &ChainSpec, name: &str, connection: &ConnectionSpec) -> Result<(), Vec<BrokerError>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        let action = format!("ask {}", connection.addresses().join(", "));
        vec![BrokerError { kind: BrokerErrorKind::Fatal, action, reason: error.to_string() }]
    })?;
    let asked = match connection {
        ConnectionSpec::Kafka(connection) => {
            let (created, used) = topics_on(chain, name);
            runtime.block_on(kafka::admin::check(connection, &created, &used, BROKER_TIMEOUT))
        }
        ConnectionSpec::Nats(connection) => {
            let (created, used) = streams_on(chain, name);
            runtime.block_on(nats::admin::check(connection, &created, &used, BROKER_TIMEOUT))
        }
    };
    asked.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_found_as_whole_words() {
        let topics = ["orders", "orders.payment.dead", "pay"];
        let find = |action| topic_in(action, topics.into_iter());
        assert_eq!(find("describe topic orders"), Some("orders"));
        assert_eq!(find("describe topic orders.payment.dead"), Some("orders.payment.dead"));
        assert_eq!(find("create topic `pay` (3 partitions)"), Some("pay"));
        assert_eq!(find("connect to payments:9092"), None);
    }

    fn load(wasm: &[u8]) -> (tempfile::TempDir, Loaded) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("chain.yaml");
        std::fs::write(folder.path().join("f.wasm"), wasm).expect("write");
        let text = "name: test\nconnections: { main: { kafka: { brokers: [\"b:1\"] } } }\npipelines:\n  p:\n    \
                    from: { kafka: { topics: [in] } }\n    function: { wasm: f.wasm }\n    to: { kafka: { topic: out } }\n";
        std::fs::write(&file, text).expect("write");
        let loaded = config::load(&file, &|_| None).unwrap_or_else(|errors| panic!("{errors}"));
        (folder, loaded)
    }

    #[test]
    fn a_core_module_is_refused_at_its_place() {
        let (_folder, loaded) = load(b"\0asm\x01\0\0\0");
        let errors = components(&loaded).expect_err("a core module");
        assert_eq!(errors.position(&errors.mistakes()[0]), Some((6, 23)));
        assert!(errors.to_string().contains("a core WebAssembly module, but a function is a component"), "{errors}");
    }

    #[test]
    fn topics_are_counted_with_dead_letters() {
        let (_folder, loaded) = load(b"\0asm\x0d\0\x01\0");
        assert_eq!(topic_count(&loaded), 3);
    }
}
