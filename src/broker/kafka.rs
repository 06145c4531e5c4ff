//! Apache Kafka, and what speaks its protocol.
//!
//! `group` is the control plane: membership, rebalances, commits, start offsets, all by librdkafka. `admin` looks at
//! topics and creates them. There are two data planes, which move events between the broker and columns: `wire`, the
//! columnar one, and `librdkafka`; `client` in a connection's settings says which ([`KafkaClient`]). `either` is what
//! the pipeline sees. Nothing here knows functions, pipelines or YAML.
//!
//! This file is the one place where settings of librdkafka are chosen.

pub mod admin;
mod caught_up;
mod client;
mod commit;
mod either;
mod error;
mod ffi;
mod group;
mod health;
mod librdkafka;
mod log;
mod member;
pub mod mock;
pub mod reader;
mod start;
mod token;
mod wire;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};

use crate::broker::{BrokerError, BrokerErrorKind};
use crate::spec::{DATA_PROPERTIES, KafkaClient, KafkaConnection, KafkaSourceSpec, SaslSpec};

pub use either::{KafkaProducer, KafkaSink, KafkaSource, transactional};
pub use group::GroupMetadata;
pub use librdkafka::{LibrdkafkaProducer, LibrdkafkaSink};
pub(in crate::broker) use wire::partition_of_key;
pub use wire::{ColumnarSink, Driver, TransactionError, TransactionErrorKind, TransactionSpec, TransactionalProducer};

/// Settings of every client; `properties:` may change them.
const BASE: &[(&str, &str)] = &[
    ("reconnect.backoff.max.ms", "2000"),
    // A broker that hangs up on an idle connection is no news.
    ("log.connection.close", "false"),
    // Broker errors come as events, and are told apart there.
    ("socket.keepalive.enable", "true"),
];

/// Settings of consumers; `properties:` may change them.
const CONSUMER: &[(&str, &str)] = &[
    ("partition.assignment.strategy", "cooperative-sticky"),
    ("isolation.level", "read_committed"),
    // Each partition has a queue of its own, so this bounds each partition: what may wait in memory is at most this,
    // and one fetch more, for every partition that is held.
    ("queued.max.messages.kbytes", "16384"),
    ("queued.min.messages", "20000"),
    // When a queue was full, look again soon. The default of a second makes a sawtooth.
    ("fetch.queue.backoff.ms", "5"),
    // How long the broker may hold a fetch that finds nothing; new events answer it at once.
    ("fetch.wait.max.ms", "100"),
];

/// Settings of consumers that the guarantees rest on; nothing may change them.
const CONSUMER_FIXED: &[(&str, &str)] = &[
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // A misspelt topic must be an error, not a new topic.
    ("allow.auto.create.topics", "false"),
];

/// Settings of producers; `properties:` may change them.
const PRODUCER: &[(&str, &str)] = &[
    // Events come in whole batches already. This only lets the rows of one batch meet in one request.
    ("linger.ms", "2"),
    // The bound of what waits for acknowledgements; past it, publishing waits for delivery reports.
    ("queue.buffering.max.messages", "200000"),
    ("queue.buffering.max.kbytes", "65536"),
    // The default of 1,000,000 would refuse here what the broker may take; the broker's own limit decides. Record
    // batches stay small all the same: `batch.size` bounds them, and one event is the least that a batch holds.
    ("message.max.bytes", "33554432"),
];

/// Settings of producers that the guarantees rest on; nothing may change them.
const PRODUCER_FIXED: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    ("acks", "all"),
    // The Java clients' partitioner: the same key goes to the same partition, whoever publishes it.
    ("partitioner", "murmur2_random"),
    // Waits for the broker as long as it takes. What bounds the wait is the pipeline's shutdown.
    ("message.timeout.ms", "0"),
];

/// librdkafka's default for `max.poll.interval.ms`.
const MAX_POLL_INTERVAL_MS: u64 = 300_000;

/// The cluster as messages name it.
fn address(connection: &KafkaConnection) -> String {
    format!("kafka at {}", connection.brokers.join(", "))
}

/// What every client of this connection is set to.
fn base(connection: &KafkaConnection, client_id: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set_log_level(RDKafkaLogLevel::Info);
    config.set("bootstrap.servers", connection.brokers.join(","));
    config.set("client.id", client_id);
    let protocol = match (&connection.tls, &connection.sasl) {
        (None, None) => "plaintext",
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    if let Some(tls) = &connection.tls {
        // The OpenSSL inside the binary knows no directory of roots: `probe` looks where systems keep them.
        let ca = tls.ca.as_ref().map_or("probe".into(), |path| path.to_string_lossy());
        config.set("ssl.ca.location", ca);
        if let Some(certificate) = &tls.certificate {
            config.set("ssl.certificate.location", certificate.to_string_lossy());
        }
        if let Some(key) = &tls.key {
            config.set("ssl.key.location", key.to_string_lossy());
        }
    }
    match &connection.sasl {
        None => {}
        Some(SaslSpec::Password { mechanism, username, password }) => {
            config.set("sasl.mechanism", mechanism.name());
            config.set("sasl.username", username);
            config.set("sasl.password", &password.0);
        }
        Some(SaslSpec::Token(source)) => {
            config.set("sasl.mechanism", "OAUTHBEARER");
            token::note(source, &mut config);
        }
    }
    config
}

/// `base`, then these defaults, then the user's properties, then what must not change. A client that moves no events is
/// not told of properties that concern nothing else.
fn layered(connection: &KafkaConnection, client_id: &str, tables: [&[(&str, &str)]; 2]) -> ClientConfig {
    let [defaults, fixed] = tables;
    let moves_no_events = !tables.contains(&PRODUCER) && matches!(connection.client, KafkaClient::Columnar(_));
    let mut config = base(connection, client_id);
    for (name, value) in BASE.iter().chain(defaults) {
        config.set(*name, *value);
    }
    let is_data = |name: &str| DATA_PROPERTIES.contains(&name);
    for (name, value) in &connection.properties {
        if !(moves_no_events && is_data(name)) {
            config.set(name, value);
        }
    }
    for (name, value) in fixed {
        config.set(*name, *value);
    }
    config
}

/// The settings of a client that only asks the cluster for metadata.
fn observer(connection: &KafkaConnection, client_id: &str) -> ClientConfig {
    let mut config = layered(connection, client_id, [&[], CONSUMER_FIXED]);
    config.remove("group.id").remove("group.instance.id");
    config
}

/// The settings of a consumer group's member. `until_caught_up` asks librdkafka to tell when a partition's end was
/// reached.
fn consumer(
    connection: &KafkaConnection,
    spec: &KafkaSourceSpec,
    client_id: &str,
    until_caught_up: bool,
) -> ClientConfig {
    let mut config = layered(connection, client_id, [CONSUMER, CONSUMER_FIXED]);
    config.set("group.id", &spec.group);
    if let Some(instance) = &spec.instance {
        config.set("group.instance.id", instance);
    }
    // Where a group without an offset begins is looked up when partitions are assigned (see `group`), except for
    // the earliest. What remains for this setting is a position that the broker no longer has: the oldest event that
    // is kept is the next one then, or events would be skipped. librdkafka logs it.
    config.set("auto.offset.reset", "earliest");
    config.set("enable.partition.eof", if until_caught_up { "true" } else { "false" });
    config
}

/// Looks whether librdkafka takes the settings of a consumer.
///
/// # Errors
/// When it does not know one, or not its value.
fn check_consumer(connection: &KafkaConnection, spec: &KafkaSourceSpec, client_id: &str) -> Result<(), BrokerError> {
    let action = || format!("set up a consumer for {}", address(connection));
    let checked = consumer(connection, spec, client_id, false).create_native_config();
    checked.map(|_| ()).map_err(|failed| error::failed(action(), &failed))
}

/// The settings of a producer.
///
/// # Errors
/// When the largest event would not fit in the producer's queue: it would wait for room for ever.
fn producer(connection: &KafkaConnection, client_id: &str) -> Result<ClientConfig, BrokerError> {
    let config = layered(connection, client_id, [PRODUCER, PRODUCER_FIXED]);
    let number = |name: &str| config.get(name).and_then(|value| value.trim().parse::<u64>().ok());
    // What is no number, librdkafka refuses itself.
    if let (Some(event), Some(queue)) = (number("message.max.bytes"), number("queue.buffering.max.kbytes"))
        && event > queue.saturating_mul(1024)
    {
        return Err(BrokerError {
            kind: BrokerErrorKind::Settings,
            action: format!("set up a producer for {}", address(connection)),
            reason: format!(
                "`message.max.bytes` = {event} does not fit into `queue.buffering.max.kbytes` = {queue}; \
                 write at least {} there",
                event.div_ceil(1024)
            ),
        });
    }
    Ok(config)
}

/// How long a member may go without polling before its group gives it up.
fn max_poll_interval(config: &ClientConfig) -> std::time::Duration {
    let millis = config.get("max.poll.interval.ms").and_then(|value| value.trim().parse().ok());
    std::time::Duration::from_millis(millis.unwrap_or(MAX_POLL_INTERVAL_MS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{ColumnarSettings, SaslMechanism, Secret, StartOffset, TlsSpec, TokenSource};

    fn connection(properties: &[(&str, &str)]) -> KafkaConnection {
        KafkaConnection {
            brokers: vec!["one:9092".into(), "two:9092".into()],
            tls: None,
            sasl: None,
            client: KafkaClient::Librdkafka,
            properties: properties.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
        }
    }

    fn orders(start: StartOffset) -> KafkaSourceSpec {
        KafkaSourceSpec {
            connection: "main".into(),
            topics: vec!["orders".into()],
            group: "orders.payment".into(),
            instance: None,
            start,
        }
    }

    #[test]
    fn properties_change_defaults_but_not_guarantees() {
        let connection = connection(&[
            ("fetch.wait.max.ms", "7"),
            ("linger.ms", "50"),
            ("enable.auto.commit", "true"),
            ("acks", "0"),
            ("partitioner", "random"),
            ("group.id", "other"),
        ]);
        let consumer = consumer(&connection, &orders(StartOffset::Latest), "fluxmill-payment", false);
        assert_eq!(consumer.get("fetch.wait.max.ms"), Some("7"));
        assert_eq!(consumer.get("enable.auto.commit"), Some("false"));
        assert_eq!(consumer.get("auto.offset.reset"), Some("earliest"));
        assert_eq!(consumer.get("group.id"), Some("orders.payment"));
        assert_eq!(consumer.get("bootstrap.servers"), Some("one:9092,two:9092"));
        let producer = producer(&connection, "fluxmill-payment").unwrap();
        assert_eq!(producer.get("linger.ms"), Some("50"));
        assert_eq!(producer.get("acks"), Some("all"));
        assert_eq!(producer.get("partitioner"), Some("murmur2_random"));
    }

    #[test]
    fn every_setting_is_known_to_librdkafka() {
        let mut connection = connection(&[]);
        connection.tls = Some(TlsSpec { ca: Some("ca.pem".into()), certificate: None, key: None });
        let (username, password) = ("app".to_owned(), Secret("secret".into()));
        connection.sasl = Some(SaslSpec::Password { mechanism: SaslMechanism::ScramSha512, username, password });
        for until_caught_up in [false, true] {
            let mut spec = orders(StartOffset::Time(1));
            spec.instance = Some("one".into());
            consumer(&connection, &spec, "c", until_caught_up).create_native_config().unwrap();
        }
        producer(&connection, "c").unwrap().create_native_config().unwrap();
        observer(&connection, "c").create_native_config().unwrap();
        assert_eq!(base(&connection, "c").get("security.protocol"), Some("sasl_ssl"));
    }

    #[test]
    fn properties_of_the_columnar_client_stay_with_it() {
        let mut connection = connection(&[
            ("fetch.max.bytes", "1000"),
            ("receive.message.max.bytes", "5000"),
            ("session.timeout.ms", "6000"),
        ]);
        connection.client = KafkaClient::Columnar(ColumnarSettings::default());
        let consumer = consumer(&connection, &orders(StartOffset::Earliest), "c", false);
        assert_eq!((consumer.get("fetch.max.bytes"), consumer.get("receive.message.max.bytes")), (None, None));
        assert_eq!(consumer.get("session.timeout.ms"), Some("6000"));
        assert_eq!(observer(&connection, "c").get("fetch.max.bytes"), None);
    }

    #[test]
    fn a_token_is_in_no_debug_text() {
        let mut connection = connection(&[]);
        connection.sasl = Some(SaslSpec::Token(TokenSource::Value(Secret("hunter2".into()))));
        let config = base(&connection, "c");
        assert_eq!(config.get("sasl.mechanism"), Some("OAUTHBEARER"));
        assert!(!format!("{config:?} {connection:?}").contains("hunter2"));
    }

    /// The configuration's table was made from librdkafka's documents; this holds it against the library itself.
    #[test]
    fn the_language_knows_the_properties_that_librdkafka_knows() {
        for property in crate::config::properties() {
            let mut config = ClientConfig::new();
            config.set(property, "\u{1}");
            let Err(error) = config.create_native_config() else { continue };
            let text = error.to_string();
            assert!(!text.contains("No such configuration property"), "{property}: {text}");
        }
    }

    #[test]
    fn an_event_that_never_fits_the_queue_is_refused() {
        let connection = connection(&[("message.max.bytes", "100000000")]);
        let error = producer(&connection, "c").unwrap_err();
        assert_eq!(error.kind, BrokerErrorKind::Settings);
        assert!(error.reason.contains("write at least 97657"), "{error}");
    }
}
