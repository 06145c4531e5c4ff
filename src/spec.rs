//! What will run: plain, resolved data. No serde, no spans; `config` makes it from what the user wrote.

mod nats;
mod places;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

pub use nats::{
    ATOMIC_BATCH_MAX, CoreNatsSourceSpec, Discard, NatsAuth, NatsConnection, NatsKey, NatsSourceSpec, Retention,
    Storage, StreamSpec, subjects_meet, without_dots,
};

/// Everything one pipeline file (or several together) asks for.
#[derive(Clone, Debug)]
pub struct ChainSpec {
    /// The chain's name; prefixes default consumer groups and dead-letter topics.
    pub name: String,
    /// Connections by name.
    pub connections: BTreeMap<String, ConnectionSpec>,
    /// Topics to create when they are missing.
    pub topics: Vec<TopicSpec>,
    /// Streams to create when they are missing.
    pub streams: Vec<StreamSpec>,
    /// The pipelines, in the order of the file.
    pub pipelines: Vec<PipelineSpec>,
    /// Whether pipelines may form a loop.
    pub allow_loop: bool,
}

/// How to reach a broker.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a chain has a handful of connections")]
pub enum ConnectionSpec {
    /// Apache Kafka, or what speaks its protocol.
    Kafka(KafkaConnection),
    /// NATS with JetStream.
    Nats(NatsConnection),
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
    /// Which client moves the events.
    pub client: KafkaClient,
    /// Further librdkafka settings; those that would break a guarantee were refused.
    pub properties: BTreeMap<String, String>,
}

/// Which client moves a connection's events. Groups, commits and administration are librdkafka's with both.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a chain has a handful of connections")]
pub enum KafkaClient {
    /// Fluxmill's own: record batches straight to columns and back.
    Columnar(ColumnarSettings),
    /// librdkafka, with all its settings.
    Librdkafka,
}

/// What the columnar client can be set to. Each setting has librdkafka's name and meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnarSettings {
    /// `fetch.max.bytes`: about how many bytes one fetch response may hold.
    pub fetch_bytes: usize,
    /// `max.partition.fetch.bytes`: about how many of them may be of one partition.
    pub partition_fetch_bytes: usize,
    /// `fetch.min.bytes`: how many bytes the broker waits for before it answers.
    pub fetch_min_bytes: i32,
    /// `fetch.wait.max.ms`: how long it waits for them.
    pub fetch_wait: Duration,
    /// `client.rack`: where this process runs, so that a replica nearby may serve it (KIP-392).
    pub rack: Option<String>,
    /// `receive.message.max.bytes`: the largest response that is accepted.
    pub response_bytes_max: usize,
    /// `compression.type`: how record batches are compressed.
    pub compression: Compression,
    /// `linger.ms`: how long a record batch that is not full waits for more events.
    pub linger: Duration,
    /// `batch.size`: about how many bytes a record batch may hold, before compression. One event is the least.
    pub batch_bytes: usize,
    /// `message.max.bytes`: the largest event that is sent.
    pub message_bytes_max: usize,
    /// `queue.buffering.max.kbytes`, in bytes: how much may wait for acknowledgements.
    pub buffer_bytes: usize,
    /// `request.timeout.ms`: how long the broker may wait for its replicas.
    pub request_timeout: Duration,
    /// `socket.timeout.ms`: how long an answer may take, on top of what the request lets the broker wait.
    pub socket_timeout: Duration,
    /// `transaction.timeout.ms`: how long a transaction may take before the broker aborts it.
    pub transaction_timeout: Duration,
    /// `socket.connection.setup.timeout.ms`: how long a connection may take to be set up.
    pub connect_timeout: Duration,
    /// `reconnect.backoff.ms` and `reconnect.backoff.max.ms`: the first and the longest wait before another attempt.
    pub reconnect_backoff: (Duration, Duration),
    /// `metadata.max.age.ms`: how old the known leaders may be.
    pub metadata_age_max: Duration,
}

/// Properties of [`KafkaConnection::properties`] that concern moving events and nothing else, with both of their names.
/// Under the columnar client they are in [`ColumnarSettings`], and librdkafka is not told: it would hold them against
/// settings of its own, and refuse.
pub const DATA_PROPERTIES: &[&str] = &[
    "fetch.max.bytes",
    "max.partition.fetch.bytes",
    "fetch.message.max.bytes",
    "fetch.min.bytes",
    "fetch.wait.max.ms",
    "receive.message.max.bytes",
    "compression.type",
    "compression.codec",
    "linger.ms",
    "queue.buffering.max.ms",
    "batch.size",
    "message.max.bytes",
    "queue.buffering.max.kbytes",
    "request.timeout.ms",
    "transaction.timeout.ms",
];

impl ColumnarSettings {
    /// How long a transaction may be filled before it is committed: a quarter of what it may take.
    pub fn transaction_interval_max(&self) -> Duration {
        self.transaction_timeout / 4
    }

    /// How long after its first call an event of a transaction may be run again: half of what a transaction may take. A
    /// quarter may have gone before it joined; the rest is for the last call and the commit.
    pub fn transaction_age_max(&self) -> Duration {
        self.transaction_timeout / 2
    }
}

impl Default for ColumnarSettings {
    fn default() -> Self {
        Self {
            fetch_bytes: 4 << 20,
            partition_fetch_bytes: 1 << 20,
            fetch_min_bytes: 1,
            fetch_wait: Duration::from_millis(100),
            rack: None,
            response_bytes_max: 100_000_000,
            compression: Compression::None,
            linger: Duration::ZERO,
            batch_bytes: 1_000_000,
            message_bytes_max: 32 << 20,
            buffer_bytes: 64 << 20,
            request_timeout: Duration::from_secs(30),
            socket_timeout: Duration::from_secs(30),
            transaction_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
            reconnect_backoff: (Duration::from_millis(100), Duration::from_secs(2)),
            metadata_age_max: Duration::from_secs(300),
        }
    }
}

/// How record batches are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4 frames.
    Lz4,
    /// Zstandard.
    Zstd,
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
pub enum SaslSpec {
    /// A user and a password.
    Password {
        /// The mechanism.
        mechanism: SaslMechanism,
        /// The user name.
        username: String,
        /// The password; never printed.
        password: Secret,
    },
    /// A bearer token (OAUTHBEARER, RFC 7628).
    Token(TokenSource),
}

/// Where a bearer token comes from.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// The token itself.
    Value(Secret),
    /// A file that something else keeps fresh; read at each authentication.
    File(PathBuf),
}

/// SASL mechanisms with a user and a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaslMechanism {
    /// PLAIN (RFC 4616).
    Plain,
    /// SCRAM-SHA-256 (RFC 7677).
    ScramSha256,
    /// SCRAM-SHA-512.
    ScramSha512,
}

impl SaslMechanism {
    /// The name that SASL has for it.
    pub fn name(self) -> &'static str {
        match self {
            SaslMechanism::Plain => "PLAIN",
            SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
            SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }
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
    /// How often progress is confirmed.
    pub commit: CommitSpec,
    /// The function; `None` copies the events.
    pub function: Option<FunctionSpec>,
    /// Where published events go; never empty, the first is the default.
    pub outputs: Vec<OutputSpec>,
    /// What happens to events that fail.
    pub on_error: OnErrorSpec,
}

impl PipelineSpec {
    /// Whether events may be lost that nothing keeps: those that it reads or publishes by core NATS.
    pub fn is_at_most_once(&self) -> bool {
        matches!(self.source, SourceSpec::CoreNats(_))
            || self.targets().any(|target| matches!(target, TargetSpec::CoreNats { .. }))
    }

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
    /// A durable consumer on a JetStream stream.
    Nats(NatsSourceSpec),
    /// A queue group on subjects of core NATS.
    CoreNats(CoreNatsSourceSpec),
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
    /// All events of a partition that have the same key, and those that have none.
    Key,
    /// Nothing.
    None,
}

/// What is promised of every event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarantee {
    /// Nothing is lost; after a crash some events are published twice.
    AtLeastOnce,
    /// What an event became and its offset are committed in one transaction: for those who read committed events only,
    /// each event has its effect once, crashes or not.
    ExactlyOnce,
}

/// How often progress is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitSpec {
    /// The time in between.
    pub interval: Duration,
    /// A transaction is cut off before that once batches with so many events were taken by lanes.
    pub max_events: Option<u64>,
}

impl CommitSpec {
    /// What holds where nothing else is written.
    pub fn of(guarantee: Guarantee) -> Self {
        let interval = match guarantee {
            Guarantee::AtLeastOnce => Duration::from_millis(200),
            Guarantee::ExactlyOnce => Duration::from_millis(100),
        };
        Self { interval, max_events: None }
    }
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TargetSpec {
    /// A Kafka topic.
    Kafka {
        /// The connection's name.
        connection: String,
        /// The topic's name.
        topic: String,
    },
    /// A subject of a JetStream stream.
    Nats {
        /// The connection's name.
        connection: String,
        /// The subject; `{key}` in it stands for the event's key.
        subject: String,
        /// Whether each publication is stored as a whole or not at all.
        atomic: bool,
    },
    /// A subject of core NATS, which keeps nothing.
    CoreNats {
        /// The connection's name.
        connection: String,
        /// The subject; `{key}` in it stands for the event's key.
        subject: String,
    },
}

/// What happens to events that fail.
#[derive(Clone, Debug)]
pub struct OnErrorSpec {
    /// How often and when a failed event is run again.
    pub retry: RetrySpec,
    /// What happens when that is used up, or the event was rejected.
    pub then: LastResort,
    /// What happens while the topic of the dead letters is gone.
    pub when_missing: WhenMissing,
}

/// What happens while the topic of the dead letters is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenMissing {
    /// The pipeline ends with an error.
    Stop,
    /// The pipeline reads nothing until it is there again.
    Wait,
}

/// How often and when a failed event is run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetrySpec {
    /// Calls in all, the first one included; at least 1.
    pub attempts: u32,
    /// The wait before the second call; it doubles with each further one.
    pub backoff_min: Duration,
    /// The longest wait, before chance shortens it.
    pub backoff_max: Duration,
    /// How long after its first call an event may be run again; `None` leaves it to the attempts.
    pub max_age: Option<Duration>,
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

/// Whether the value under such a key is a secret: it is then shown as `***`.
pub fn is_secret(key: &str) -> bool {
    const PARTS: &[&str] =
        &["password", "passphrase", "secret", "token", "credential", "private", "apikey", "api_key", "nkey"];
    let key = key.to_lowercase();
    // `token_file` names a file; its content is the secret.
    PARTS.iter().any(|part| key.contains(part) && key != "token_file")
        || matches!(key.as_str(), "ssl.key.pem" | "sasl.oauthbearer.config")
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
            .field("client", &self.client)
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
