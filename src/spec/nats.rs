//! What will run on NATS: connections, streams, inputs.

use std::time::Duration;

use super::{Secret, StartOffset, TlsSpec};

/// How to reach a NATS system.
#[derive(Clone, Debug)]
pub struct NatsConnection {
    /// Addresses, `nats://host:port` or `tls://host:port`; without user and password.
    pub servers: Vec<String>,
    /// TLS, when asked for; the connection is then never without it.
    pub tls: Option<TlsSpec>,
    /// Who this is.
    pub auth: NatsAuth,
}

/// How a client says who it is.
#[derive(Clone, Debug)]
pub enum NatsAuth {
    /// Not at all.
    None,
    /// A user and a password.
    Password {
        /// The user name.
        user: String,
        /// The password; never printed.
        password: Secret,
    },
    /// A token; never printed.
    Token(Secret),
    /// The seed of an nkey; never printed.
    Nkey(Secret),
    /// A credentials file's text, a JWT and the seed of its key; never printed.
    Credentials(Secret),
}

/// Messages of an atomic batch at most: what a server takes unless it is set to less.
pub const ATOMIC_BATCH_MAX: usize = 1000;

/// A stream to create when it is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSpec {
    /// The connection's name.
    pub connection: String,
    /// The stream's name.
    pub name: String,
    /// What it stores: subjects, with wildcards or without.
    pub subjects: Vec<String>,
    /// Where messages are kept.
    pub storage: Storage,
    /// Copies, 1 to 5.
    pub replicas: usize,
    /// How long the server knows the `Nats-Msg-Id` of what was published.
    pub duplicate_window: Duration,
    /// When a message may go.
    pub retention: Retention,
    /// How old a message may get; `None` is no bound.
    pub max_age: Option<Duration>,
    /// Bytes at most; `None` is no bound.
    pub max_bytes: Option<u64>,
    /// Messages at most; `None` is no bound.
    pub max_messages: Option<u64>,
    /// Bytes of one message, headers included; `None` leaves it to the server.
    pub max_message_bytes: Option<u32>,
    /// What gives way when a bound is reached.
    pub discard: Discard,
    /// Whether it takes atomic batches.
    pub atomic: bool,
    /// Whether it is made of a topic, or of dead letters: another stream that stores its subjects does as well, unless it
    /// is read.
    pub implied: bool,
}

impl StreamSpec {
    /// A stream that something else implies, with what holds where nothing is written.
    pub fn implied(connection: &str, name: String, subjects: Vec<String>) -> Self {
        Self {
            connection: connection.to_owned(),
            name,
            subjects,
            storage: Storage::File,
            replicas: 1,
            duplicate_window: Duration::from_secs(120),
            retention: Retention::Limits,
            max_age: None,
            max_bytes: None,
            max_messages: None,
            max_message_bytes: None,
            discard: Discard::Old,
            atomic: false,
            implied: true,
        }
    }
}

/// The name that NATS takes for what has dots in its name elsewhere.
pub fn without_dots(name: &str) -> String {
    name.replace('.', "-")
}

/// Where a stream keeps its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// On disk.
    File,
    /// In memory: gone when the server ends.
    Memory,
}

/// When a stream lets a message go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// When a bound is reached.
    Limits,
    /// When every consumer has acknowledged it.
    Interest,
    /// When its one consumer has acknowledged it.
    WorkQueue,
}

/// What gives way when a stream has reached a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// The oldest messages, read or not.
    Old,
    /// New messages are refused until there is room; whoever publishes waits.
    New,
}

/// A durable consumer on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsSourceSpec {
    /// The connection's name.
    pub connection: String,
    /// The stream.
    pub stream: String,
    /// Which subjects of the stream; all when empty.
    pub subjects: Vec<String>,
    /// The durable consumer.
    pub durable: String,
    /// Where it begins when it is created.
    pub start: StartOffset,
    /// How long a message may stay unacknowledged before the server delivers it again.
    pub ack_wait: Duration,
    /// Where an event's key is.
    pub key: NatsKey,
    /// The header that tells an event's subject, when asked for.
    pub subject_header: Option<String>,
}

/// How long a message may stay unacknowledged where nothing else is written.
const ACK_WAIT: Duration = Duration::from_secs(30);

impl NatsSourceSpec {
    /// An input from this subject of a stream, with what holds where nothing else is written.
    pub fn new(connection: &str, (stream, subject): (String, String), durable: String, start: StartOffset) -> Self {
        Self {
            connection: connection.to_owned(),
            stream,
            subjects: vec![subject],
            durable,
            start,
            ack_wait: ACK_WAIT,
            key: NatsKey::Header,
            subject_header: None,
        }
    }
}

/// A queue group on subjects of core NATS: what is published while nobody reads is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreNatsSourceSpec {
    /// The connection's name.
    pub connection: String,
    /// The subjects; never empty.
    pub subjects: Vec<String>,
    /// The queue group, whose members share the messages.
    pub queue: String,
    /// Where an event's key is.
    pub key: NatsKey,
    /// The header that tells an event's subject, when asked for.
    pub subject_header: Option<String>,
}

/// Where an event's key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NatsKey {
    /// In the header `Fluxmill-Key`; without it there is none.
    Header,
    /// There, and without it in the last token of the subject.
    LastToken,
}

/// Whether two subjects, with wildcards or without, have a subject in common. In a target's subject `{key}` stands for
/// any one token.
pub fn subjects_meet(one: &str, other: &str) -> bool {
    let is_any = |token: &str| token == "*" || token.contains("{key}");
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(left), Some(right)) if left == right || is_any(left) || is_any(right) => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::subjects_meet;

    #[test]
    fn subjects_meet_where_a_message_could_be_of_both() {
        for (one, other) in [
            ("a.b", "a.b"),
            ("a.*", "a.b"),
            ("a.>", "a.b.c"),
            (">", "a"),
            ("*.b", "a.*"),
            ("orders.{key}", "orders.*"),
            ("orders.{key}", "orders.7"),
            ("a.>", "a.*.c"),
        ] {
            assert!(subjects_meet(one, other) && subjects_meet(other, one), "{one} {other}");
        }
        for (one, other) in [("a.b", "a.c"), ("a.>", "a"), ("a.*", "a.b.c"), ("a", "b.>"), ("orders.{key}", "orders")] {
            assert!(!subjects_meet(one, other) && !subjects_meet(other, one), "{one} {other}");
        }
    }
}
