//! What will run: plain, resolved data. No serde, no spans; `config` makes it from what the user wrote.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Everything one pipeline file (or several together) asks for.
#[derive(Clone, Debug)]
pub struct ChainSpec {
    /// The chain's name; prefixes default consumer groups and dead-letter topics.
    pub name: String,
    /// Connections by name.
    pub connections: BTreeMap<String, ConnectionSpec>,
    /// Topics to create when they are missing.
    pub topics: Vec<TopicSpec>,
    /// The pipelines, in the order of the file.
    pub pipelines: Vec<PipelineSpec>,
    /// Whether pipelines may form a loop.
    pub allow_loop: bool,
}

/// How to reach a broker.
#[derive(Clone, Debug)]
pub enum ConnectionSpec {
    /// Apache Kafka, or what speaks its protocol.
    Kafka(KafkaConnection),
}

/// How to reach a Kafka cluster.
#[derive(Clone)]
pub struct KafkaConnection {
    /// Bootstrap addresses, `host:port`.
    pub brokers: Vec<String>,
    /// TLS, when asked for.
    pub tls: Option<TlsSpec>,
    /// SASL, when asked for.
    pub sasl: Option<SaslSpec>,
    /// Further librdkafka settings; those that would break a guarantee were refused.
    pub properties: BTreeMap<String, String>,
}

/// TLS settings; the system's roots are used where no CA is given.
#[derive(Clone, Debug, Default)]
pub struct TlsSpec {
    /// CA certificates (PEM).
    pub ca: Option<PathBuf>,
    /// Client certificate (PEM).
    pub certificate: Option<PathBuf>,
    /// Client key (PEM).
    pub key: Option<PathBuf>,
}

/// SASL settings.
#[derive(Clone, Debug)]
pub struct SaslSpec {
    /// The mechanism.
    pub mechanism: SaslMechanism,
    /// The user name.
    pub username: String,
    /// The password; never printed.
    pub password: Secret,
}

/// SASL mechanisms that librdkafka serves here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaslMechanism {
    /// PLAIN (RFC 4616).
    Plain,
    /// SCRAM-SHA-256 (RFC 7677).
    ScramSha256,
    /// SCRAM-SHA-512.
    ScramSha512,
}

/// A value that must not reach a log or a terminal.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// A topic to create when it is missing.
#[derive(Clone, Debug)]
pub struct TopicSpec {
    /// The connection's name.
    pub connection: String,
    /// The topic's name.
    pub topic: String,
    /// The number of partitions.
    pub partitions: i32,
    /// The replication factor; `None` leaves it to the broker.
    pub replication: Option<i32>,
    /// Topic settings, such as `retention.ms`.
    pub settings: BTreeMap<String, String>,
}

/// One pipeline.
#[derive(Clone, Debug)]
pub struct PipelineSpec {
    /// The pipeline's name.
    pub name: String,
    /// Where events come from.
    pub source: SourceSpec,
    /// The bounds of a batch.
    pub batch: BatchLimits,
    /// What keeps its order.
    pub order: Order,
    /// Functions that run at once, at least 1.
    pub lanes: usize,
    /// What is promised.
    pub guarantee: Guarantee,
    /// The function; `None` copies the events.
    pub function: Option<FunctionSpec>,
    /// Where published events go; never empty, the first is the default.
    pub outputs: Vec<OutputSpec>,
    /// What happens to events that fail.
    pub on_error: OnErrorSpec,
}

impl PipelineSpec {
    /// Everything that the pipeline publishes to: its outputs in order, then its dead letter.
    pub fn targets(&self) -> impl Iterator<Item = &TargetSpec> {
        let dead_letter = match &self.on_error.then {
            LastResort::DeadLetter(target) => Some(target),
            LastResort::Stop | LastResort::Drop => None,
        };
        self.outputs.iter().map(|output| &output.target).chain(dead_letter)
    }
}

/// Where events come from.
#[derive(Clone, Debug)]
pub enum SourceSpec {
    /// A consumer group on Kafka topics.
    Kafka(KafkaSourceSpec),
}

/// A consumer group on Kafka topics.
#[derive(Clone, Debug)]
pub struct KafkaSourceSpec {
    /// The connection's name.
    pub connection: String,
    /// The topics; never empty.
    pub topics: Vec<String>,
    /// The consumer group.
    pub group: String,
    /// The static member's id (KIP-345), when asked for.
    pub instance: Option<String>,
    /// Where to begin on partitions for which the group has no offset.
    pub start: StartOffset,
}

/// Where a consumer group without an offset begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartOffset {
    /// The oldest event that is kept.
    Earliest,
    /// Events that come after the start.
    Latest,
    /// The first event at or after this time, in milliseconds since the Unix epoch.
    Time(i64),
}

/// The hard bounds of a batch. One event larger than `max_bytes` is a batch of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Events at most.
    pub max_events: usize,
    /// Bytes of keys, values and headers at most.
    pub max_bytes: usize,
    /// How long a batch that is not full may wait for more, counted from its first event.
    pub max_wait: Duration,
}

/// What keeps its order on the way through a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// All events of a partition.
    Partition,
}

/// What is promised of every event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarantee {
    /// Nothing is lost; after a crash some events are published twice.
    AtLeastOnce,
}

/// A function and what it may use.
#[derive(Clone)]
pub struct FunctionSpec {
    /// The component.
    pub wasm: PathBuf,
    /// The SHA-256 that the component must have, lower-case hex.
    pub digest: Option<String>,
    /// What the function reads by `settings.get`.
    pub config: BTreeMap<String, String>,
    /// Its limits.
    pub limits: FunctionLimits,
}

/// What one call of a function may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionLimits {
    /// Wall time of one call.
    pub timeout: Duration,
    /// Bytes of linear memory.
    pub memory: usize,
    /// Bytes of everything that one call returns.
    pub output: usize,
}

/// A named output.
#[derive(Clone, Debug)]
pub struct OutputSpec {
    /// The name that the function uses.
    pub name: String,
    /// Where its events go.
    pub target: TargetSpec,
}

/// Where events are published.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TargetSpec {
    /// A Kafka topic.
    Kafka {
        /// The connection's name.
        connection: String,
        /// The topic's name.
        topic: String,
    },
}

/// What happens to events that fail.
#[derive(Clone, Debug)]
pub struct OnErrorSpec {
    /// How often and when a failed event is run again.
    pub retry: RetrySpec,
    /// What happens when that is used up, or the event was rejected.
    pub then: LastResort,
}

/// How often and when a failed event is run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetrySpec {
    /// Calls in all, the first one included; at least 1.
    pub attempts: u32,
    /// The wait before the second call; it doubles with each further one.
    pub backoff_min: Duration,
    /// The longest wait.
    pub backoff_max: Duration,
}

/// What happens to an event that cannot be processed.
#[derive(Clone, Debug)]
pub enum LastResort {
    /// It is published, with its reason, to this target.
    DeadLetter(TargetSpec),
    /// The pipeline stops; the event is not confirmed.
    Stop,
    /// It is counted and forgotten.
    Drop,
}

impl ChainSpec {
    /// Every topic that the pipelines read or write, dead letters included, as connection and topic.
    pub fn used_topics(&self) -> std::collections::BTreeSet<(&str, &str)> {
        let mut used = std::collections::BTreeSet::new();
        for pipeline in &self.pipelines {
            let SourceSpec::Kafka(source) = &pipeline.source;
            used.extend(source.topics.iter().map(|topic| (source.connection.as_str(), topic.as_str())));
            used.extend(pipeline.targets().map(|TargetSpec::Kafka { connection, topic }| (&**connection, &**topic)));
        }
        used
    }
}

/// Whether the value under such a key is a secret: it is then shown as `***`.
pub fn is_secret(key: &str) -> bool {
    const PARTS: &[&str] = &["password", "passphrase", "secret", "token", "credential", "private", "apikey", "api_key"];
    let key = key.to_lowercase();
    PARTS.iter().any(|part| key.contains(part)) || matches!(key.as_str(), "ssl.key.pem" | "sasl.oauthbearer.config")
}

/// Shows settings with every secret masked.
struct Masked<'a>(&'a BTreeMap<String, String>);

impl std::fmt::Debug for Masked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |(key, value): (&'_ String, &'_ String)| {
            (key.clone(), if is_secret(key) { "***".to_owned() } else { value.clone() })
        };
        f.debug_map().entries(self.0.iter().map(shown)).finish()
    }
}

impl std::fmt::Debug for KafkaConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaConnection")
            .field("brokers", &self.brokers)
            .field("tls", &self.tls)
            .field("sasl", &self.sasl)
            .field("properties", &Masked(&self.properties))
            .finish()
    }
}

impl std::fmt::Debug for FunctionSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FunctionSpec")
            .field("wasm", &self.wasm)
            .field("digest", &self.digest)
            .field("config", &Masked(&self.config))
            .field("limits", &self.limits)
            .finish()
    }
}
