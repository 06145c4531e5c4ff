//! Every property that librdkafka 2.12 knows, from its CONFIGURATION.md: the name, the name that it is another name of,
//! and what it takes. Made from that file; a test of the Kafka broker holds it against the library that is linked.
//! Refuses to judge: which ones a user may set is said by `properties` and `columnar`.

/// What a property takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Takes {
    /// Any text.
    Text,
    /// `true` or `false`.
    Flag,
    /// A whole number from the first to the second.
    Whole(i64, i64),
    /// A number from the first to the second; it may have a fraction.
    Decimal(i64, i64),
    /// One of these words.
    Word(&'static [&'static str]),
    /// Some of these words, separated by commas.
    Words(&'static [&'static str]),
    /// A function or a pointer: only a program can set it.
    Program,
}

/// A property.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Property {
    /// Its name.
    pub(crate) name: &'static str,
    /// The name that it is another name of.
    pub(crate) alias_of: Option<&'static str>,
    /// What it takes.
    pub(crate) takes: Takes,
}

impl Property {
    /// The property of a name.
    pub(crate) fn find(name: &str) -> Option<&'static Property> {
        KNOWN.iter().find(|property| property.name == name)
    }

    /// The same for all names of one property.
    pub(crate) fn canonical(&self) -> &'static str {
        self.alias_of.unwrap_or(self.name)
    }
}

macro_rules! alias {
    () => {
        None
    };
    ($of:literal) => {
        Some($of)
    };
}

/// Defines the table.
macro_rules! known {
    ($($name:literal $(= $of:literal)? => $takes:expr;)*) => {
        /// Every property, in the order of CONFIGURATION.md.
        pub(crate) const KNOWN: &[Property] =
            &[$(Property { name: $name, alias_of: alias!($($of)?), takes: $takes },)*];
    };
}

use Takes::{Decimal, Flag, Program, Text, Whole, Word, Words};

known! {
    "builtin.features" => Text;
    "client.id" => Text;
    "metadata.broker.list" => Text;
    "bootstrap.servers" = "metadata.broker.list" => Text;
    "message.max.bytes" => Whole(1000, 1_000_000_000);
    "message.copy.max.bytes" => Whole(0, 1_000_000_000);
    "receive.message.max.bytes" => Whole(1000, 2_147_483_647);
    "max.in.flight.requests.per.connection" => Whole(1, 1_000_000);
    "max.in.flight" = "max.in.flight.requests.per.connection" => Whole(1, 1_000_000);
    "metadata.recovery.strategy" => Word(&["none", "rebootstrap"]);
    "metadata.recovery.rebootstrap.trigger.ms" => Whole(0, 2_147_483_647);
    "topic.metadata.refresh.interval.ms" => Whole(-1, 3_600_000);
    "metadata.max.age.ms" => Whole(1, 86_400_000);
    "topic.metadata.refresh.fast.interval.ms" => Whole(1, 60000);
    "topic.metadata.refresh.fast.cnt" => Whole(0, 1000);
    "topic.metadata.refresh.sparse" => Flag;
    "topic.metadata.propagation.max.ms" => Whole(0, 3_600_000);
    "topic.blacklist" => Text;
    "debug" => Words(&[
        "generic", "broker", "topic", "metadata", "feature", "queue", "msg", "protocol", "cgrp", "security",
        "fetch", "interceptor", "plugin", "consumer", "admin", "eos", "mock", "assignor", "conf",
        "telemetry", "all",
    ]);
    "socket.timeout.ms" => Whole(10, 300_000);
    "socket.blocking.max.ms" => Whole(1, 60000);
    "socket.send.buffer.bytes" => Whole(0, 100_000_000);
    "socket.receive.buffer.bytes" => Whole(0, 100_000_000);
    "socket.keepalive.enable" => Flag;
    "socket.nagle.disable" => Flag;
    "socket.max.fails" => Whole(0, 1_000_000);
    "broker.address.ttl" => Whole(0, 86_400_000);
    "broker.address.family" => Word(&["any", "v4", "v6"]);
    "socket.connection.setup.timeout.ms" => Whole(1000, 2_147_483_647);
    "connections.max.idle.ms" => Whole(0, 2_147_483_647);
    "reconnect.backoff.jitter.ms" => Whole(0, 3_600_000);
    "reconnect.backoff.ms" => Whole(0, 3_600_000);
    "reconnect.backoff.max.ms" => Whole(0, 3_600_000);
    "statistics.interval.ms" => Whole(0, 86_400_000);
    "enabled_events" => Whole(0, 2_147_483_647);
    "error_cb" => Program;
    "throttle_cb" => Program;
    "stats_cb" => Program;
    "log_cb" => Program;
    "log_level" => Whole(0, 7);
    "log.queue" => Flag;
    "log.thread.name" => Flag;
    "enable.random.seed" => Flag;
    "log.connection.close" => Flag;
    "background_event_cb" => Program;
    "socket_cb" => Program;
    "connect_cb" => Program;
    "closesocket_cb" => Program;
    "open_cb" => Program;
    "resolve_cb" => Program;
    "opaque" => Program;
    "default_topic_conf" => Program;
    "internal.termination.signal" => Whole(0, 128);
    "api.version.request" => Flag;
    "api.version.request.timeout.ms" => Whole(1, 300_000);
    "api.version.fallback.ms" => Whole(0, 604_800_000);
    "broker.version.fallback" => Text;
    "allow.auto.create.topics" => Flag;
    "security.protocol" => Word(&["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"]);
    "ssl.cipher.suites" => Text;
    "ssl.curves.list" => Text;
    "ssl.sigalgs.list" => Text;
    "ssl.key.location" => Text;
    "ssl.key.password" => Text;
    "ssl.key.pem" => Text;
    "ssl_key" => Program;
    "ssl.certificate.location" => Text;
    "ssl.certificate.pem" => Text;
    "ssl_certificate" => Program;
    "ssl.ca.location" => Text;
    "https.ca.location" => Text;
    "https.ca.pem" => Text;
    "ssl.ca.pem" => Text;
    "ssl_ca" => Program;
    "ssl.ca.certificate.stores" => Text;
    "ssl.crl.location" => Text;
    "ssl.keystore.location" => Text;
    "ssl.keystore.password" => Text;
    "ssl.providers" => Text;
    "ssl.engine.location" => Text;
    "ssl.engine.id" => Text;
    "ssl_engine_callback_data" => Program;
    "enable.ssl.certificate.verification" => Flag;
    "ssl.endpoint.identification.algorithm" => Word(&["none", "https"]);
    "ssl.certificate.verify_cb" => Program;
    "sasl.mechanisms" => Text;
    "sasl.mechanism" = "sasl.mechanisms" => Text;
    "sasl.kerberos.service.name" => Text;
    "sasl.kerberos.principal" => Text;
    "sasl.kerberos.kinit.cmd" => Text;
    "sasl.kerberos.keytab" => Text;
    "sasl.kerberos.min.time.before.relogin" => Whole(0, 86_400_000);
    "sasl.username" => Text;
    "sasl.password" => Text;
    "sasl.oauthbearer.config" => Text;
    "enable.sasl.oauthbearer.unsecure.jwt" => Flag;
    "oauthbearer_token_refresh_cb" => Program;
    "sasl.oauthbearer.method" => Word(&["default", "oidc"]);
    "sasl.oauthbearer.client.id" => Text;
    "sasl.oauthbearer.client.credentials.client.id" = "sasl.oauthbearer.client.id" => Text;
    "sasl.oauthbearer.client.credentials.client.secret" = "sasl.oauthbearer.client.secret" => Text;
    "sasl.oauthbearer.client.secret" => Text;
    "sasl.oauthbearer.scope" => Text;
    "sasl.oauthbearer.extensions" => Text;
    "sasl.oauthbearer.token.endpoint.url" => Text;
    "sasl.oauthbearer.grant.type" => Word(&["client_credentials", "urn:ietf:params:oauth:grant-type:jwt-bearer"]);
    "sasl.oauthbearer.assertion.algorithm" => Word(&["RS256", "ES256"]);
    "sasl.oauthbearer.assertion.private.key.file" => Text;
    "sasl.oauthbearer.assertion.private.key.passphrase" => Text;
    "sasl.oauthbearer.assertion.private.key.pem" => Text;
    "sasl.oauthbearer.assertion.file" => Text;
    "sasl.oauthbearer.assertion.claim.aud" => Text;
    "sasl.oauthbearer.assertion.claim.exp.seconds" => Whole(1, 2_147_483_647);
    "sasl.oauthbearer.assertion.claim.iss" => Text;
    "sasl.oauthbearer.assertion.claim.jti.include" => Flag;
    "sasl.oauthbearer.assertion.claim.nbf.seconds" => Whole(0, 2_147_483_647);
    "sasl.oauthbearer.assertion.claim.sub" => Text;
    "sasl.oauthbearer.assertion.jwt.template.file" => Text;
    "sasl.oauthbearer.metadata.authentication.type" => Word(&["none", "azure_imds"]);
    "plugin.library.paths" => Text;
    "interceptors" => Program;
    "group.id" => Text;
    "group.instance.id" => Text;
    "partition.assignment.strategy" => Text;
    "session.timeout.ms" => Whole(1, 3_600_000);
    "heartbeat.interval.ms" => Whole(1, 3_600_000);
    "group.protocol.type" => Text;
    "group.protocol" => Word(&["classic", "consumer"]);
    "group.remote.assignor" => Text;
    "coordinator.query.interval.ms" => Whole(1, 3_600_000);
    "max.poll.interval.ms" => Whole(1, 86_400_000);
    "enable.auto.commit" => Flag;
    "auto.commit.interval.ms" => Whole(0, 86_400_000);
    "enable.auto.offset.store" => Flag;
    "queued.min.messages" => Whole(1, 10_000_000);
    "queued.max.messages.kbytes" => Whole(1, 2_097_151);
    "fetch.wait.max.ms" => Whole(0, 300_000);
    "fetch.queue.backoff.ms" => Whole(0, 300_000);
    "fetch.message.max.bytes" => Whole(1, 1_000_000_000);
    "max.partition.fetch.bytes" = "fetch.message.max.bytes" => Whole(1, 1_000_000_000);
    "fetch.max.bytes" => Whole(0, 2_147_483_135);
    "fetch.min.bytes" => Whole(1, 100_000_000);
    "fetch.error.backoff.ms" => Whole(0, 300_000);
    "offset.store.method" => Word(&["none", "file", "broker"]);
    "isolation.level" => Word(&["read_uncommitted", "read_committed"]);
    "consume_cb" => Program;
    "rebalance_cb" => Program;
    "offset_commit_cb" => Program;
    "enable.partition.eof" => Flag;
    "check.crcs" => Flag;
    "client.rack" => Text;
    "transactional.id" => Text;
    "transaction.timeout.ms" => Whole(1000, 2_147_483_647);
    "enable.idempotence" => Flag;
    "enable.gapless.guarantee" => Flag;
    "queue.buffering.max.messages" => Whole(0, 2_147_483_647);
    "queue.buffering.max.kbytes" => Whole(1, 2_147_483_647);
    "queue.buffering.max.ms" => Decimal(0, 900_000);
    "linger.ms" = "queue.buffering.max.ms" => Decimal(0, 900_000);
    "message.send.max.retries" => Whole(0, 2_147_483_647);
    "retries" = "message.send.max.retries" => Whole(0, 2_147_483_647);
    "retry.backoff.ms" => Whole(1, 300_000);
    "retry.backoff.max.ms" => Whole(1, 300_000);
    "queue.buffering.backpressure.threshold" => Whole(1, 1_000_000);
    "compression.codec" => Word(&["none", "gzip", "snappy", "lz4", "zstd"]);
    "compression.type" = "compression.codec" => Word(&["none", "gzip", "snappy", "lz4", "zstd"]);
    "batch.num.messages" => Whole(1, 1_000_000);
    "batch.size" => Whole(1, 2_147_483_647);
    "delivery.report.only.error" => Flag;
    "dr_cb" => Program;
    "dr_msg_cb" => Program;
    "sticky.partitioning.linger.ms" => Whole(0, 900_000);
    "client.dns.lookup" => Word(&["use_all_dns_ips", "resolve_canonical_bootstrap_servers_only"]);
    "enable.metrics.push" => Flag;
    "request.required.acks" => Whole(-1, 1000);
    "acks" = "request.required.acks" => Whole(-1, 1000);
    "request.timeout.ms" => Whole(1, 900_000);
    "message.timeout.ms" => Whole(0, 2_147_483_647);
    "delivery.timeout.ms" = "message.timeout.ms" => Whole(0, 2_147_483_647);
    "queuing.strategy" => Word(&["fifo", "lifo"]);
    "produce.offset.report" => Flag;
    "partitioner" => Text;
    "partitioner_cb" => Program;
    "msg_order_cmp" => Program;
    "compression.level" => Whole(-1, 12);
    "auto.commit.enable" => Flag;
    "auto.offset.reset" => Word(&["smallest", "earliest", "beginning", "largest", "latest", "end", "error"]);
    "offset.store.path" => Text;
    "offset.store.sync.interval.ms" => Whole(-1, 86_400_000);
    "consume.callback.max.messages" => Whole(0, 1_000_000);
}
