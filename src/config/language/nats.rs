//! What the language says of NATS.

use super::super::read::{Field, Item, Read, Reader};
use super::super::scalar::{
    ConnectionName, DurableName, Flag, HeaderText, Millis, QueueName, SecretValue, Server, Size, Start, StreamName,
    SubjectFilter, TargetSubject, UserName, Whole,
};
use super::super::shape::{FieldShape, Need, Object, Shape, Word};
use super::super::tree::Node;
use super::{Span, Tls, doc};

objects! {
    /// How to reach NATS. Who this is, is said in one way at most: `user` and `password`, `token`, `nkey` or `credentials`.
    struct Nats {
        /// Addresses, each `nats://host:port` or, with TLS, `tls://host:port`.
        servers: Vec<Item<Server>> = required,
        /// TLS. `{}` trusts the system's roots.
        tls: Tls = optional("none, but for `tls://`"),
        /// The user name; `password` belongs to it.
        user: UserName = optional("none"),
        /// The password: a text (`${VAR}`) or `{ file: path }`. It is never printed.
        password: SecretValue = optional("none"),
        /// A token: a text (`${VAR}`) or `{ file: path }`. It is never printed.
        token: SecretValue = optional("none"),
        /// The seed of an nkey (`SU...`): a text (`${VAR}`) or `{ file: path }`. It is never printed.
        nkey: SecretValue = optional("none"),
        /// What `nsc` writes for a user, a JWT and the seed of its key: `{ file: path }`. It is never printed.
        credentials: SecretValue = optional("none"),
        /// What `topics` and `topic` without `nats` are on this connection.
        topics: TopicsAre = default("streams"),
    }
    later {}

    /// A stream of NATS to create when it is missing. One that exists is left as it is.
    struct Stream {
        /// The subjects that it stores, with wildcards or without.
        subjects: Vec<Item<SubjectFilter>> = required,
        /// Where messages are kept.
        storage: Storage = default("file"),
        /// Copies.
        replicas: Whole<1, 5> = default("1"),
        /// How long the server knows what was published, and drops what is published once more. What a pipeline publishes again after an outage that was shorter leaves no doubled events.
        duplicate_window: Millis<100, 604_800_000> = default("2m"),
        /// When a message may go.
        retention: Retention = default("limits"),
        /// How old a message may get; at least `duplicate_window`.
        max_age: Millis<100, 315_360_000_000> = optional("no bound"),
        /// Bytes of all messages.
        max_bytes: Size<1, 0x1_0000_0000_0000> = optional("no bound"),
        /// Messages.
        max_messages: Whole<1, 1_000_000_000_000> = optional("no bound"),
        /// Bytes of one message with its headers.
        max_message_size: Size<1, 0x400_0000> = optional("the server's `max_payload`"),
        /// What gives way when a bound is reached.
        discard: Discard = default("old"),
        /// Whether it takes atomic batches, which targets with `atomic: true` publish. Needs nats-server 2.12.
        atomic: Flag = default("false"),
        /// The connection.
        connection: ConnectionName = optional("the only connection to NATS"),
    }
    later {}

    /// A durable consumer on a stream of NATS. It is created when it is missing, and one process at a time may read by it.
    struct NatsInput {
        /// The connection.
        connection: ConnectionName = optional("the only connection to NATS"),
        /// The stream.
        stream: StreamName = required,
        /// Which of its subjects, with wildcards or without.
        subjects: Vec<Item<SubjectFilter>> = optional("all"),
        /// The durable consumer, which remembers what was confirmed.
        durable: DurableName = optional("`<chain>-<pipeline>`, with `-` for `.`"),
        /// Where it begins when it is created: `earliest`, `latest`, or a time in RFC 3339.
        start: Start = default("earliest"),
        /// How long a message may stay unconfirmed before the server delivers it again. What is being worked on is kept from that.
        ack_wait: Millis<1_000, 3_600_000> = default("30s"),
        /// Where the key of an event is.
        key: KeyPlace = default("header"),
        /// A header to add to each event, with the subject that it was published to.
        subject_header: HeaderText = optional("none"),
    }
    later {}

    /// Subjects of core NATS. Nothing is kept: what is published while nobody reads, and what a process has taken when it crashes, is lost.
    struct CoreNatsInput {
        /// The connection.
        connection: ConnectionName = optional("the only connection to NATS"),
        /// The subjects, with wildcards or without.
        subjects: Vec<Item<SubjectFilter>> = required,
        /// The queue group. All processes with the same one share the messages.
        queue: QueueName = optional("`<chain>-<pipeline>`, with `-` for `.`"),
        /// Where the key of an event is.
        key: KeyPlace = default("header"),
        /// A header to add to each event, with the subject that it was published to.
        subject_header: HeaderText = optional("none"),
    }
    later {}

    /// A subject of core NATS to write to. Whoever listens has it; nobody keeps it.
    struct CoreNatsTarget {
        /// The subject. `{key}` in it stands for the event's key, as one token.
        subject: TargetSubject = required,
        /// The connection.
        connection: ConnectionName = optional("the only connection to NATS"),
    }
    later {}

    /// A subject of NATS to write to. A stream must store it.
    struct NatsTarget {
        /// The subject. `{key}` in it stands for the event's key, as one token: what a token cannot have is written as `%` and two hexadecimal digits, and `_` stands for no key.
        subject: TargetSubject = required,
        /// The connection.
        connection: ConnectionName = optional("the only connection to NATS"),
        /// Whether what one batch of events became here is stored as a whole or not at all, up to 1,000 messages. It is slower. The stream must take atomic batches.
        atomic: Flag = default("false"),
    }
    later {}
}

words! {
    /// Where a stream keeps its messages.
    enum Storage {
        /// on disk
        File = "file",
        /// gone when the server ends
        Memory = "memory",
    }
    later {}

    /// When a stream lets a message go.
    enum Retention {
        /// when a bound is reached
        Limits = "limits",
        /// when every consumer has confirmed it; what comes while there is none goes at once
        Interest = "interest",
        /// when its one consumer has confirmed it
        WorkQueue = "workqueue",
    }
    later {}

    /// What gives way when a stream has reached a bound.
    enum Discard {
        /// the oldest messages, read or not
        Old = "old",
        /// nothing: whoever publishes waits for room
        New = "new",
    }
    later {}

    /// What a topic is on a connection to NATS.
    enum TopicsAre {
        /// a stream and the subject that it stores
        Streams = "streams",
        /// a subject of core NATS, which keeps nothing
        Core = "core",
    }
    later {}

    /// Where the key of an event is.
    enum KeyPlace {
        /// in the header `Fluxmill-Key`; without it the event has none
        Header = "header",
        /// there, and without it in the last token of the subject
        LastToken = "last_token",
    }
    later {}
}
