//! librdkafka properties that Fluxmill's own client has not, each with the reason and what to write instead.

/// A property that the columnar client has not.
pub(crate) struct Foreign {
    /// The property.
    pub(crate) name: &'static str,
    /// The value that says what the columnar client does anyway.
    pub(crate) same: Option<&'static str>,
    /// Why, as the end of "is not for the columnar client: ...".
    pub(crate) why: &'static str,
    /// What to write instead.
    pub(crate) instead: &'static str,
}

macro_rules! same {
    () => {
        None
    };
    ($same:literal) => {
        Some($same)
    };
}

/// Defines the table.
macro_rules! foreign {
    ($($($name:literal $(= $same:literal)?)|+ => $why:literal, $instead:literal;)*) => {
        /// Every property that is not for the columnar client.
        pub(crate) const FOREIGN: &[Foreign] =
            &[$($(Foreign { name: $name, same: same!($($same)?), why: $why, instead: $instead },)+)*];
    };
}

foreign! {
    "client.id" => "brokers know it by the pipeline's name", "delete it";
    "queued.min.messages" | "queued.max.messages.kbytes" =>
        "it has no such queue; it is bounded by `fetch.max.bytes`",
        "delete it";
    "fetch.queue.backoff.ms" => "it has no such queue; it fetches as soon as there is room", "delete it";
    "fetch.error.backoff.ms" | "retry.backoff.ms" | "retry.backoff.max.ms" =>
        "it asks again after a tenth of a second; only connections wait by `reconnect.backoff.ms`",
        "delete it";
    "check.crcs" = "true" => "it checks every record batch that it reads", "delete it";
    "consume.callback.max.messages" => "it has no callbacks", "delete it";
    "batch.num.messages" => "it bounds record batches by bytes", "write `batch.size`";
    "queue.buffering.max.messages" =>
        "it bounds by bytes what waits for acknowledgements",
        "write `queue.buffering.max.kbytes`";
    "queue.buffering.backpressure.threshold" => "it has no such queue", "delete it";
    "sticky.partitioning.linger.ms" => "it has no timer for events without a key", "delete it";
    "message.copy.max.bytes" => "it makes no object of an event, so there is nothing to copy", "delete it";
    "compression.level" = "-1" => "it compresses with each codec's default level", "delete it";
    "produce.offset.report" => "nothing reads such reports", "delete it";
    "topic.metadata.refresh.fast.interval.ms" | "topic.metadata.refresh.fast.cnt" | "topic.metadata.refresh.sparse" = "true"
        | "topic.metadata.propagation.max.ms" =>
        "it looks for a leader when it lost one, and by `metadata.max.age.ms`",
        "write `metadata.max.age.ms`";
    "metadata.recovery.strategy" = "rebootstrap" | "metadata.recovery.rebootstrap.trigger.ms" =>
        "it goes back to `brokers` when it reaches no other",
        "delete it";
    "broker.address.family" = "any" | "client.dns.lookup" = "use_all_dns_ips" =>
        "it tries every address that a name has",
        "delete it, and write addresses of that kind under `brokers` and in the brokers' `advertised.listeners`";
    "broker.address.ttl" => "it looks a name up for each new connection", "delete it";
    "connections.max.idle.ms" => "it leaves closing idle connections to the brokers", "delete it";
    "socket.keepalive.enable" => "it finds a dead connection by `socket.timeout.ms`", "write `socket.timeout.ms`";
    "socket.send.buffer.bytes" = "0" | "socket.receive.buffer.bytes" = "0" =>
        "it leaves the buffers of sockets to the system",
        "delete it";
    "socket.nagle.disable" = "true" => "it sends at once, always", "delete it";
    "socket.max.fails" = "1" => "it gives a connection up when one answer is late", "delete it";
    "api.version.request" = "true" | "api.version.fallback.ms" = "0" | "broker.version.fallback" =>
        "it asks each broker what it speaks, and talks to none that does not say",
        "delete it";
    "api.version.request.timeout.ms" =>
        "that belongs to setting a connection up",
        "write `socket.connection.setup.timeout.ms`";
    "enable.ssl.certificate.verification" = "true" | "ssl.endpoint.identification.algorithm" = "https" =>
        "it checks the certificate and the name of every broker",
        "delete it, and trust the brokers' authority by `tls: { ca: ca.pem }`";
    "ssl.cipher.suites" | "ssl.curves.list" | "ssl.sigalgs.list" =>
        "it speaks TLS 1.2 and 1.3 with a fixed set of safe ciphers",
        "delete it";
    "ssl.key.password" =>
        "it reads keys without a passphrase",
        "decrypt the key (`openssl pkey -in client.key -out plain.key`) and write `tls: { key: plain.key }`";
    "ssl.key.pem" | "ssl.certificate.pem" =>
        "it reads keys and certificates from files",
        "write `tls: { certificate: client.pem, key: client.key }`";
    "ssl.ca.pem" | "ssl.ca.certificate.stores" => "it reads authorities from a file", "write `tls: { ca: ca.pem }`";
    "ssl.keystore.location" | "ssl.keystore.password" =>
        "it reads PEM, no key stores",
        "write `tls: { certificate: client.pem, key: client.key }`";
    "ssl.crl.location" => "it reads no lists of revoked certificates", "delete it";
}
