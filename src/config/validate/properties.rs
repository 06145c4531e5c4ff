//! librdkafka properties that a user may not set: they would break a guarantee, or Fluxmill sets them itself. One
//! table; a property that is not in it is passed on.

/// Why a property is refused, and what to write instead.
pub(crate) struct Refused {
    /// The property.
    pub(crate) name: &'static str,
    /// Why, as the end of "is refused: ...".
    pub(crate) why: &'static str,
    /// What to write instead.
    pub(crate) instead: &'static str,
}

/// Defines the table.
macro_rules! refused {
    ($($($name:literal)|+ => $why:literal, $instead:literal;)*) => {
        /// Every refused property.
        pub(crate) const REFUSED: &[Refused] =
            &[$($(Refused { name: $name, why: $why, instead: $instead },)+)*];
    };
}

refused! {
    "bootstrap.servers" | "metadata.broker.list" => "addresses have a key of their own", "write `brokers: [...]`";
    "group.id" => "the group has a key of its own", "write `from: { kafka: { group: ... } }`";
    "group.instance.id" => "it has a key of its own", "write `from: { kafka: { instance: ... } }`";
    "group.protocol" | "group.remote.assignor" | "partition.assignment.strategy" =>
        "Fluxmill drains partitions before it gives them up, and relies on cooperative-sticky assignment for that",
        "delete it";
    "enable.auto.commit" | "auto.commit.enable" | "auto.commit.interval.ms" | "enable.auto.offset.store" | "offset.store.method" =>
        "an offset is committed only when all events up to it are done; that would commit others",
        "delete it";
    "auto.offset.reset" => "the start has a key of its own", "write `from: { kafka: { start: earliest } }`";
    "enable.partition.eof" => "Fluxmill sets it itself", "delete it";
    "isolation.level" => "with `read_uncommitted` events of aborted transactions would be processed", "delete it: the default is `read_committed`";
    "acks" | "request.required.acks" =>
        "an event counts as published when all in-sync replicas have it; fewer would lose events",
        "delete it";
    "enable.idempotence" | "enable.gapless.guarantee" | "max.in.flight" | "max.in.flight.requests.per.connection"
        | "retries" | "message.send.max.retries" | "queuing.strategy" =>
        "Fluxmill publishes idempotently, so that sending again neither doubles nor reorders events",
        "delete it";
    "message.timeout.ms" | "delivery.timeout.ms" =>
        "an event that waits for its broker is not given up",
        "delete it";
    "delivery.report.only.error" => "every acknowledgement counts: without them nothing would be committed", "delete it";
    "transactional.id" | "transaction.timeout.ms" => "transactions are not available yet", "delete it";
    "partitioner" =>
        "events with the same key must reach the same partition as from any Java client (murmur2)",
        "delete it";
    "allow.auto.create.topics" => "a misspelt topic would be created instead of refused", "list the topic under `topics`";
    "security.protocol" => "it follows from `tls` and `sasl`", "write `tls: {}`, `sasl: {...}`, or both";
    "ssl.ca.location" => "it has a key of its own", "write `tls: { ca: ca.pem }`";
    "ssl.certificate.location" | "ssl.key.location" =>
        "it has a key of its own",
        "write `tls: { certificate: client.pem, key: client.key }`";
    "sasl.mechanism" | "sasl.mechanisms" | "sasl.username" | "sasl.password" =>
        "it has a key of its own",
        "write `sasl: { mechanism: SCRAM-SHA-512, username: ..., password: ... }`";
    "plugin.library.paths" | "ssl.engine.location" | "ssl.providers" => "it loads foreign code into the process", "delete it";
    "test.mock.num.brokers" | "test.mock.broker.rtt" => "it replaces the brokers by a mock that keeps nothing", "delete it";
}

/// Why the property cannot be set to the value.
pub(super) fn refused(name: &str, value: Option<&str>) -> Option<&'static Refused> {
    if name == "isolation.level" && value == Some("read_committed") {
        return None;
    }
    REFUSED.iter().find(|refused| refused.name == name.trim())
}
