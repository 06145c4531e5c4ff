//! The language: every key, its type, its default and its meaning. The reader, the JSON Schema and the reference all
//! come from here.

use super::error::Span;
use super::read::{Field, Item, Map, Read, Reader};
use super::scalar::{
    Broker, ChainName, ConfigKey, ConnectionKey, ConnectionName, Digest, Flag, GroupName, InstanceName, Millis,
    MillisRange, OutputKey, PemFile, PipelineKey, PropertyKey, SecretValue, SettingKey, Size, Start, StreamKey,
    TargetTopic, Text, TokenFile, TopicKey, TopicName, UserName, WasmFile, Whole,
};
use super::shape::{FieldShape, Need, Object, Shape, Word};
use super::tree::{Body, Node};

/// The doc comment's lines as one text.
pub(crate) fn doc(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

macro_rules! need {
    (required) => {
        Need::Required
    };
    (default $text:literal) => {
        Need::Default($text)
    };
    (optional $text:literal) => {
        Need::Optional($text)
    };
}

/// Defines mappings: a type for what is read, and their shape.
macro_rules! objects {
    ($(
        $(#[doc = $doc:literal])*
        struct $name:ident {
            $($(#[doc = $field_doc:literal])* $field:ident: $type:ty = $need:ident $(($text:literal))?,)*
        }
        later { $($later:literal => $instead:literal,)* }
    )*) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Debug)]
        pub(crate) struct $name {
            $($(#[doc = $field_doc])* pub(crate) $field: Field<$type>,)*
        }

        impl $name {
            /// Its shape.
            pub(crate) fn object() -> Object {
                Object {
                    name: stringify!($name),
                    doc: doc(&[$($doc),*]),
                    fields: vec![$(FieldShape {
                        key: stringify!($field),
                        doc: doc(&[$($field_doc),*]),
                        need: need!($need $($text)?),
                        shape: <$type>::shape(),
                    },)*],
                    later: &[$(($later, $instead),)*],
                }
            }
        }

        impl Read for $name {
            fn shape() -> Shape {
                Shape::Object(Self::object())
            }

            fn read(node: &Node, at: &Span, reader: &mut Reader<'_>) -> Option<Self> {
                let entries = reader.object(node, at, &Self::object())?;
                Some(Self { $($field: reader.field(&entries, stringify!($field), need!($need $($text)?)),)* })
            }
        }
    )*};
}

/// Defines choices of words.
macro_rules! words {
    ($(
        $(#[doc = $doc:literal])*
        enum $name:ident { $($(#[doc = $word_doc:literal])* $variant:ident = $word:literal,)* }
        later { $($later:literal => $instead:literal,)* }
    )*) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[doc = $word_doc])* $variant,)* }

        impl Read for $name {
            fn shape() -> Shape {
                Shape::Words(vec![$(Word { word: $word, doc: doc(&[$($word_doc),*]) },)*])
            }

            fn read(node: &Node, at: &Span, reader: &mut Reader<'_>) -> Option<Self> {
                let text = reader.scalar(node, at, &Self::shape())?;
                match text.as_str() {
                    $($word => Some(Self::$variant),)*
                    $($later => {
                        reader.later_word(node, $later, $instead);
                        None
                    })*
                    _ => {
                        reader.unknown_word(node, &text, &Self::shape(), &[$($word),*]);
                        None
                    }
                }
            }
        }
    )*};
}

// Behind the macros, which it uses.
mod nats;

pub(crate) use nats::{
    CoreNatsInput, CoreNatsTarget, Discard, KeyPlace, Nats, NatsInput, NatsTarget, Retention, Storage, Stream,
    TopicsAre,
};

objects! {
    /// A pipeline file: one event chain.
    struct File {
        /// The chain's name. It begins the names of default consumer groups and dead-letter topics.
        name: ChainName = optional("the name of the file's folder"),
        /// How to reach the brokers.
        connections: Map<ConnectionKey, Connection> = required,
        /// Topics to create at the start when they are missing. A missing topic that is not listed is an error before anything runs.
        topics: Map<TopicKey, Topic> = default("{}"),
        /// Streams of NATS to create at the start when they are missing. A missing one that is not listed is an error before anything runs.
        streams: Map<StreamKey, Stream> = default("{}"),
        /// The pipelines. What one writes another may read: that makes them a chain.
        pipelines: Map<PipelineKey, Pipeline> = required,
        /// Whether pipelines may form a loop, so that an event can come back to a topic that it came from.
        allow_loop: Flag = default("false"),
    }
    later {}

    /// How to reach a broker: either `kafka` or `nats`.
    struct Connection {
        /// Apache Kafka, or what speaks its protocol.
        kafka: Kafka = optional("`nats`"),
        /// NATS, with JetStream or without.
        nats: Nats = optional("`kafka`"),
    }
    later {
        "memory" => "write `kafka: { brokers: [\"localhost:9092\"] }`: this version reaches Kafka and NATS only",
    }

    /// How to reach a Kafka cluster.
    struct Kafka {
        /// Bootstrap addresses, each `host:port`; one text may hold several, separated by commas.
        brokers: Vec<Item<Broker>> = required,
        /// TLS. `{}` trusts the system's roots.
        tls: Tls = optional("none"),
        /// SASL authentication.
        sasl: Sasl = optional("none"),
        /// Which client moves the events. Groups, commits and the cluster's topics are librdkafka's with both.
        client: Client = default("columnar"),
        /// Further settings, by librdkafka's names. Those that would break a delivery guarantee, or that Fluxmill sets itself, are refused by name; so are those that the columnar client cannot honour, under `client: columnar`. See [librdkafka properties](#librdkafka-properties).
        properties: Map<PropertyKey, Text> = default("{}"),
    }
    later {}

    /// TLS settings. Paths are relative to the folder of the file.
    struct Tls {
        /// CA certificates (PEM) to trust.
        ca: PemFile = optional("the system's"),
        /// Client certificate (PEM); `key` belongs to it.
        certificate: PemFile = optional("none"),
        /// Client key (PEM); `certificate` belongs to it.
        key: PemFile = optional("none"),
    }
    later {}

    /// SASL settings: a mechanism with `username` and `password`, or `OAUTHBEARER` with `token` or `token_file`.
    struct Sasl {
        /// The mechanism.
        mechanism: Mechanism = required,
        /// The user name.
        username: UserName = optional("none; `OAUTHBEARER` takes none, the others need one"),
        /// The password: a text (`${VAR}`) or `{ file: path }`. It is never printed.
        password: SecretValue = optional("none; `OAUTHBEARER` takes none, the others need one"),
        /// A bearer token that stays the same: a text (`${VAR}`) or `{ file: path }`, read at the start. It is never printed.
        token: SecretValue = optional("`token_file`, for `OAUTHBEARER`"),
        /// A file with a bearer token that something else keeps fresh; it is read again at each authentication.
        token_file: TokenFile = optional("`token`, for `OAUTHBEARER`"),
    }
    later {}

    /// A topic to create when it is missing. One that exists is left as it is. On a connection to NATS it is a stream of that name, with `-` for `.`, that stores the subject of that name.
    struct Topic {
        /// The number of partitions. A stream of NATS has none.
        partitions: Whole<1, 100_000> = required,
        /// The replication factor.
        replication: Whole<1, 100> = optional("the broker's default"),
        /// Topic settings, such as `retention.ms`.
        settings: Map<SettingKey, Text> = default("{}"),
        /// The connection.
        connection: ConnectionName = optional("the only connection; of several, the only one to Kafka"),
    }
    later {}

    /// A pipeline: events from topics, through a function, to topics.
    struct Pipeline {
        /// Where events come from.
        from: Input = required,
        /// The bounds of a batch.
        batch: Batch = default("{}"),
        /// What keeps its order.
        order: Order = default("partition"),
        /// Functions that run at once.
        lanes: Whole<1, 256> = optional("the machine's cores"),
        /// What is promised of every event.
        delivery: Delivery = default("at_least_once"),
        /// How often progress is confirmed to the broker.
        commit: Commit = default("{}"),
        /// The function.
        function: Function = optional("none: events are copied"),
        /// Where events go, when there is one output. The function knows it as `default`. Write either `to` or `outputs`.
        to: Target = optional("`outputs`"),
        /// Where events go, by name; the first is the default. Write either `to` or `outputs`.
        outputs: Map<OutputKey, Target> = optional("`to`"),
        /// What happens to events that fail.
        on_error: OnError = default("{}"),
    }
    later {}

    /// How often progress is confirmed to the broker: what is not is processed again after a crash. With `delivery: exactly_once` it is how often a transaction is committed, and so how long what came out waits to be seen.
    struct Commit {
        /// The time in between.
        interval: Millis<1, 60_000> = optional("200ms; 100ms with `delivery: exactly_once`"),
        /// About how many events a transaction may hold: it is committed before that time is over once batches with so many were taken by lanes. With `delivery: exactly_once` only.
        max_events: Whole<1, 1_000_000_000> = optional("no bound"),
    }
    later {}

    /// Where events come from: `topics` of whatever broker the connection reaches, or what only one of them has: `kafka`, `nats` or `core_nats`.
    struct Input {
        /// Topics. On a connection to NATS it is one: the stream of that name, with `-` for `.`, and in it the subject of that name; or, where the connection says `topics: core`, the subject alone.
        topics: Vec<Item<TopicName>> = optional("`kafka`, `nats` or `core_nats`"),
        /// With `topics`: the connection.
        connection: ConnectionName = optional("the only connection"),
        /// With `topics`: the consumer group; on NATS the durable consumer, with `-` for `.`, or the queue group.
        group: GroupName = optional("`<chain>.<pipeline>`"),
        /// With `topics`: where to begin where nothing is confirmed yet: `earliest`, `latest`, or a time in RFC 3339. Core NATS has only what comes.
        start: Start = default("earliest"),
        /// A consumer group on Kafka topics.
        kafka: KafkaInput = optional("`topics`"),
        /// A durable consumer on a stream of NATS.
        nats: NatsInput = optional("`topics`"),
        /// Subjects of core NATS, which keeps nothing: at most once.
        core_nats: CoreNatsInput = optional("`topics`"),
    }
    later {
        "memory" => "write `topics: [orders]`: this version reads from Kafka and NATS only",
    }

    /// A consumer group on Kafka topics.
    struct KafkaInput {
        /// The connection.
        connection: ConnectionName = optional("the only connection"),
        /// The topics.
        topics: Vec<Item<TopicName>> = required,
        /// The consumer group. All processes with the same group share the work.
        group: GroupName = optional("`<chain>.<pipeline>`"),
        /// A name for this member of the group that stays the same over restarts (KIP-345): a quick restart then moves no partitions. Every process needs its own.
        instance: InstanceName = optional("none"),
        /// Where to begin on partitions for which the group has no offset yet: `earliest`, `latest`, or a time in RFC 3339.
        start: Start = default("earliest"),
    }
    later {}

    /// The hard bounds of a batch. One event larger than `max_bytes` is a batch of its own.
    struct Batch {
        /// Events at most.
        max_events: Whole<1, 1_000_000> = default("1000"),
        /// Bytes of keys, values and headers at most.
        max_bytes: Size<1, 0x4000_0000> = default("1MiB"),
        /// How long a batch that is not full may wait for more, counted from its first event. With `0ms` a batch is what is there: small when idle, large under load.
        max_wait: Millis<0, 300_000> = default("0ms"),
    }
    later {}

    /// A function: a WebAssembly component, run in a fresh sandbox for each batch.
    struct Function {
        /// The component, relative to the folder of the file.
        wasm: WasmFile = required,
        /// The digest that the component must have: `sha256:` and 64 hexadecimal digits.
        digest: Digest = optional("not checked"),
        /// Values that the function may read.
        config: Map<ConfigKey, Text> = default("{}"),
        /// What one call may use.
        limits: Limits = default("{}"),
    }
    later {
        "grants" => "delete it: functions of this version get nothing but their events and their `config`",
    }

    /// What one call of a function may use. A call that wants more fails.
    struct Limits {
        /// Wall time of one call.
        timeout: Millis<1, 86_400_000> = default("1s"),
        /// Linear memory; rounded up to whole pages of 64KiB.
        memory: Size<0x1_0000, 0x1_0000_0000> = default("64MiB"),
        /// Bytes of everything that one call returns.
        output: Size<1, 0x4000_0000> = default("16MiB"),
    }
    later {}

    /// Where events go: a `topic` of whatever broker the connection reaches, or what only one of them has: `kafka`, `nats` or `core_nats`.
    struct Target {
        /// A topic. On a connection to NATS it is the subject of that name.
        topic: TargetTopic = optional("`kafka`, `nats` or `core_nats`"),
        /// With `topic`: the connection.
        connection: ConnectionName = optional("the only connection"),
        /// A Kafka topic.
        kafka: KafkaTarget = optional("`topic`"),
        /// A subject of NATS that a stream stores.
        nats: NatsTarget = optional("`topic`"),
        /// A subject of core NATS, which keeps nothing: at most once.
        core_nats: CoreNatsTarget = optional("`topic`"),
    }
    later {
        "memory" => "write `topic: payments`: this version writes to Kafka and NATS only",
    }

    /// A Kafka topic to write to.
    struct KafkaTarget {
        /// The topic.
        topic: TargetTopic = required,
        /// The connection.
        connection: ConnectionName = optional("the only connection"),
    }
    later {}

    /// What happens to events that fail.
    struct OnError {
        /// How often and when a failed event is run again.
        retry: Retry = default("{}"),
        /// What happens when that is used up, or the event was rejected: `dead_letter`, `stop` or `drop`.
        then: Then = optional("a dead letter to the topic `<chain>.<pipeline>.dead`, created with one partition when it is missing; for input from NATS to that subject, in the stream `<chain>-<pipeline>-dead`; for core NATS to that subject alone"),
    }
    later {}

    /// How often and when a failed event is run again.
    struct Retry {
        /// Calls in all, the first one included.
        attempts: Whole<1, 100> = default("3"),
        /// The wait before the second call and the longest wait; it doubles in between.
        backoff: MillisRange<1, 3_600_000> = default("100ms..10s"),
        /// How long after its first call an event may be run again, whatever attempts are left.
        max_age: Millis<1, 86_400_000> = optional("no bound but `attempts`; half of `transaction.timeout.ms` with `delivery: exactly_once`, and no more"),
    }
    later {}

    /// A dead letter: the event, byte for byte, with headers that say why it failed.
    struct DeadLetter {
        /// Where it goes.
        dead_letter: Target = required,
        /// What happens while that topic is gone: `stop` or `wait`.
        when_missing: WhenMissing = default("stop"),
    }
    later {}
}

words! {
    /// A SASL mechanism.
    enum Mechanism {
        /// salted challenge and response with SHA-512
        Scram512 = "SCRAM-SHA-512",
        /// the same with SHA-256, RFC 7677
        Scram256 = "SCRAM-SHA-256",
        /// user and password in the clear: use it with TLS only
        Plain = "PLAIN",
        /// a bearer token, RFC 7628, in the clear: use it with TLS only
        OauthBearer = "OAUTHBEARER",
    }
    later { "GSSAPI" => "SCRAM-SHA-512", }

    /// Which client moves events.
    enum Client {
        /// Fluxmill's own: record batches become columns, and columns record batches, without an object for each event
        Columnar = "columnar",
        /// the C library: slower, with all of its properties
        Librdkafka = "librdkafka",
    }
    later {}

    /// What keeps its order.
    enum Order {
        /// all events of a partition, and so all of a key; a partition has one lane
        Partition = "partition",
        /// the events of a partition that have the same key; its keys share all lanes
        Key = "key",
        /// nothing: events take any lane, and one that is run again waits alone
        None = "none",
    }
    later {}

    /// What is promised.
    enum Delivery {
        /// nothing is lost; after a crash some events are published twice
        AtLeastOnce = "at_least_once",
        /// what events became and their offsets are committed together; for readers with `isolation.level=read_committed`. Needs `client: columnar`, and input, outputs and dead letters on one connection
        ExactlyOnce = "exactly_once",
    }
    later {}

    /// A last resort in one word.
    enum LastWord {
        /// the pipeline stops; the event is not confirmed
        Stop = "stop",
        /// the event is counted and forgotten
        Drop = "drop",
    }
    later {}

    /// What happens while the topic of the dead letters is gone. Nothing is confirmed that needs it, whatever this says.
    enum WhenMissing {
        /// the pipeline ends with an error, and the chain with it
        Stop = "stop",
        /// the pipeline reads nothing until the topic is there again; then it begins anew, and what is not confirmed is processed again
        Wait = "wait",
    }
    later {}
}

/// What happens to an event that cannot be processed.
#[derive(Clone, Debug)]
pub(crate) enum Then {
    /// It is published elsewhere.
    DeadLetter(Box<DeadLetter>),
    /// One word.
    Word(LastWord),
}

impl Read for Then {
    fn shape() -> Shape {
        Shape::Any(vec![DeadLetter::shape(), LastWord::shape()])
    }

    fn read(node: &Node, at: &Span, reader: &mut Reader<'_>) -> Option<Self> {
        if matches!(node.body, Body::Map(_)) {
            return DeadLetter::read(node, at, reader).map(|dead| Then::DeadLetter(Box::new(dead)));
        }
        let text = reader.scalar(node, at, &Self::shape())?;
        match text.as_str() {
            "stop" => Some(Then::Word(LastWord::Stop)),
            "drop" => Some(Then::Word(LastWord::Drop)),
            "dead_letter" => {
                let help = "write `then: { dead_letter: { topic: orders.dead } }`, or leave `then` out";
                reader.malformed(node, &text, &Self::shape(), help);
                None
            }
            _ => {
                reader.unknown_word(node, &text, &Self::shape(), &["stop", "drop", "dead_letter"]);
                None
            }
        }
    }
}
