//! The single values of the language: texts, numbers, sizes, durations, files and secrets.

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use super::error::{Kind, Mistake, Span};
use super::read::{Read, Reader};
use super::shape::{FieldShape, Need, Object, Shape, Word};
use super::tree::{Body, Node};
use super::units;
use crate::spec::{Secret, StartOffset};

/// Bytes of a secret's file at most.
const SECRET_MAX: u64 = 64 * 1024;

/// Defines texts that mean something.
macro_rules! texts {
    ($($(#[doc = $doc:literal])* $name:ident = $what:literal, $example:literal;)*) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Debug)]
        pub(crate) struct $name(pub(crate) String);

        impl Read for $name {
            fn shape() -> Shape {
                Shape::Text { what: $what, example: $example }
            }

            fn read(node: &Node, at: &Span, reader: &mut Reader<'_>) -> Option<Self> {
                reader.scalar(node, at, &Self::shape()).map(Self)
            }
        }
    )*};
}

texts! {
    /// The chain's name.
    ChainName = "a name", "orders";
    /// A connection's name.
    ConnectionName = "the name of a connection", "main";
    /// A topic.
    TopicName = "a topic", "orders";
    /// A topic to write to.
    TargetTopic = "a topic", "payments";
    /// A consumer group.
    GroupName = "a consumer group", "orders.payment";
    /// A static member.
    InstanceName = "the name of a group member", "worker-1";
    /// Broker addresses.
    Broker = "a broker's `host:port`", "\"localhost:9092\"";
    /// A server's address.
    Server = "a server's `nats://host:port`", "\"nats://localhost:4222\"";
    /// A stream.
    StreamName = "a stream", "ORDERS";
    /// Subjects of a stream.
    SubjectFilter = "a subject", "orders.>";
    /// A subject to write to.
    TargetSubject = "a subject", "payments";
    /// A durable consumer.
    DurableName = "the name of a durable consumer", "orders-payment";
    /// A queue group.
    QueueName = "the name of a queue group", "orders-payment";
    /// A header's name.
    HeaderText = "the name of a header", "subject";
    /// A value of a setting.
    Text = "a text", "\"100\"";
    /// A user name.
    UserName = "a user name", "fluxmill";
    /// A digest.
    Digest = "a digest", "sha256:...";
}

/// Defines what the keys are that a user chooses.
macro_rules! keys {
    ($($(#[doc = $doc:literal])* $name:ident = $what:literal, $example:literal;)*) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug)]
        pub(crate) enum $name {}

        impl super::read::KeyName for $name {
            const WHAT: &'static str = $what;
            const EXAMPLE: &'static str = $example;
        }
    )*};
}

keys! {
    /// A connection's name.
    ConnectionKey = "the name of a connection", "main";
    /// A pipeline's name.
    PipelineKey = "the name of a pipeline", "payment";
    /// An output's name.
    OutputKey = "the name of an output", "approved";
    /// A topic.
    TopicKey = "a topic", "orders";
    /// A stream.
    StreamKey = "a stream", "ORDERS";
    /// A librdkafka property.
    PropertyKey = "a librdkafka property", "fetch.wait.max.ms";
    /// A topic setting.
    SettingKey = "a topic setting", "retention.ms";
    /// A key that a function reads.
    ConfigKey = "the name of a value", "currency";
}

/// `true` or `false`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flag(pub(crate) bool);

impl Read for Flag {
    fn shape() -> Shape {
        Shape::Flag
    }

    fn read(node: &Node, at: &Span, reader: &mut Reader<'_>) -> Option<Self> {
        let text = reader.scalar(node, at, &Self::shape())?;
        match text.as_str() {
            "true" => Some(Self(true)),
            "false" => Some(Self(false)),
            _ => {
                reader.unknown_word(node, &text, &Self::shape(), &["true", "false"]);
                None
            }
        }
    }
}

/// A whole number with bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whole<const MIN: u64, const MAX: u64>(pub(crate) u64);

impl<const MIN: u64, const MAX: u64> Read for Whole<MIN, MAX> {
    fn shape() -> Shape {
        Shape::Whole { min: MIN, max: MAX }
    }

    fn read(node: &Node, at: &Span, reader: &mut Reader<'_>) -> Option<Self> {
        let text = reader.scalar(node, at, &Self::shape())?;
        let Ok(value) = text.trim().parse::<u64>() else {
            reader.malformed(node, &text, &Self::shape(), format!("write a number from {MIN} to {MAX}"));
            return None;
        };
        reader.bounded(node, value, (MIN, MAX), |number| number.to_string()).map(Self)
    }
}

/// Bytes with bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size<const MIN: u64, const MAX: u64>(pub(crate) u64);

impl<const MIN: u64, const MAX: u64> Size<MIN, MAX> {
    /// As a length in memory.
    pub(crate) fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl<const MIN: u64, const MAX: u64> Read for Size<MIN, MAX> {
    fn shape() -> Shape {
        Shape::Size { min: MIN, max: MAX }
    }

    fn read(node: &Node, at: &Span, reader: &mut Reader<'_>) -> Option<Self> {
        let text = reader.scalar(node, at, &Self::shape())?;
        match units::size(&text) {
            Ok(value) => reader.bounded(node, value, (MIN, MAX), units::show_size).map(Self),
            Err(error) => {
                reader.bad_quantity(node, &text, &Self::shape(), error);
                None
            }
        }
    }
}

/// A time span with bounds, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Millis<const MIN: u64, const MAX: u64>(pub(crate) u64);

impl<const MIN: u64, const MAX: u64> Millis<MIN, MAX> {
    /// As a duration.
    pub(crate) fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl<const MIN: u64, const MAX: u64> Read for Millis<MIN, MAX> {
    fn shape() -> Shape {
        Shape::Duration { min: MIN, max: MAX }
    }

    fn read(node: &Node, at: &Span, reader: &mut Reader<'_>) -> Option<Self> {
        let text = reader.scalar(node, at, &Self::shape())?;
        match units::millis(&text) {
            Ok(value) => reader.bounded(node, value, (MIN, MAX), units::show_millis).map(Self),
            Err(error) => {
                reader.bad_quantity(node, &text, &Self::shape(), error);
                None
            }
        }
    }
}

/// Two time spans with bounds, the first not above the second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MillisRange<const MIN: u64, const MAX: u64> {
    /// The first.
    pub(crate) low: Duration,
    /// The second.
    pub(crate) high: Duration,
}

impl<const MIN: u64, const MAX: u64> Read for MillisRange<MIN, MAX> {
    fn shape() -> Shape {
        Shape::Range { min: MIN, max: MAX }
    }

    fn read(node: &Node, at: &Span, reader: &mut Reader<'_>) -> Option<Self> {
        let text = reader.scalar(node, at, &Self::shape())?;
        let (low, high) = match units::range(&text) {
            Ok(range) => range,
            Err(error) => {
                reader.bad_quantity(node, &text, &Self::shape(), error);
                return None;
            }
        };
        let low = reader.bounded(node, low, (MIN, MAX), units::show_millis)?;
        let high = reader.bounded(node, high, (MIN, MAX), units::show_millis)?;
        if low > high {
            let help =
                format!("write the shorter one first: `{}..{}`", units::show_millis(high), units::show_millis(low));
            reader.malformed(node, &text, &Self::shape(), help);
            return None;
        }
        Some(Self { low: Duration::from_millis(low), high: Duration::from_millis(high) })
    }
}

/// Where a group without an offset begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start(pub(crate) StartOffset);

impl Read for Start {
    fn shape() -> Shape {
        let word = |word, doc: &str| Word { word, doc: doc.to_owned() };
        Shape::Any(vec![
            Shape::Words(vec![
                word("earliest", "with the oldest event that is kept"),
                word("latest", "with events that come after the start"),
            ]),
            Shape::Text { what: "an RFC 3339 time", example: "2026-01-31T00:00:00Z" },
        ])
    }

    fn read(node: &Node, at: &Span, reader: &mut Reader<'_>) -> Option<Self> {
        let text = reader.scalar(node, at, &Self::shape())?;
        match text.as_str() {
            "earliest" => return Some(Self(StartOffset::Earliest)),
            "latest" => return Some(Self(StartOffset::Latest)),
            _ => {}
        }
        let looks_like_a_time = text.starts_with(|first: char| first.is_ascii_digit());
        match text.parse::<Timestamp>() {
            Ok(time) if time.as_millisecond() >= 0 => Some(Self(StartOffset::Time(time.as_millisecond()))),
            _ if looks_like_a_time => {
                let help = "write date, time and zone of 1970 or later, such as `2026-01-31T00:00:00Z`";
                reader.malformed(node, &text, &Self::shape(), help);
                None
            }
            _ => {
                reader.unknown_word(node, &text, &Self::shape(), &["earliest", "latest", "2026-01-31T00:00:00Z"]);
                None
            }
        }
    }
}

/// Defines paths of files that exist.
macro_rules! paths {
    ($($(#[doc = $doc:literal])* $name:ident = $example:literal;)*) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Debug)]
        pub(crate) struct $name(pub(crate) PathBuf);

        impl Read for $name {
            fn shape() -> Shape {
                Shape::Text { what: "a path", example: $example }
            }

            fn read(node: &Node, at: &Span, reader: &mut Reader<'_>) -> Option<Self> {
                existing_file(node, at, reader, &Self::shape()).map(Self)
            }
        }
    )*};
}

paths! {
    /// A component.
    WasmFile = "functions/payment.wasm";
    /// Certificates or a key.
    PemFile = "ca.pem";
    /// What holds a bearer token.
    TokenFile = "/run/secrets/kafka-token";
    /// What holds a secret.
    SecretFile = "password.txt";
}

fn existing_file(node: &Node, at: &Span, reader: &mut Reader<'_>, shape: &Shape) -> Option<PathBuf> {
    let text = reader.scalar(node, at, shape)?;
    let path = reader.resolve(&text);
    let (message, help) = match std::fs::metadata(&path) {
        Ok(found) if found.is_file() => return Some(path),
        Ok(_) => (format!("`{}` is no file", path.display()), "write the path of a file"),
        Err(error) => (
            format!("`{}` cannot be read: {}", path.display(), plain(&error)),
            "paths are relative to the folder of this file; is it built, and is it there?",
        ),
    };
    reader.mistake(Mistake::at(Kind::MissingFile, node.span.clone(), message).help(help));
    None
}

/// A secret: a text, or what a file holds.
#[derive(Clone, Debug)]
pub(crate) struct SecretValue(pub(crate) Secret);

impl SecretValue {
    fn file() -> Object {
        Object {
            name: "SecretFile",
            doc: "A secret that a file holds; one line break at its end is left out.".to_owned(),
            fields: vec![FieldShape {
                key: "file",
                doc: "The file, relative to the folder of the pipeline file.".to_owned(),
                need: Need::Required,
                shape: SecretFile::shape(),
            }],
            later: &[],
        }
    }
}

impl Read for SecretValue {
    fn shape() -> Shape {
        Shape::Any(vec![Shape::Text { what: "a text", example: "${KAFKA_PASSWORD}" }, Shape::Object(Self::file())])
    }

    fn read(node: &Node, at: &Span, reader: &mut Reader<'_>) -> Option<Self> {
        if !matches!(node.body, Body::Map(_)) {
            let text = reader.scalar(node, at, &Self::shape())?;
            if text.is_empty() {
                let mistake = Mistake::at(Kind::SecretFile, node.span.clone(), "the secret is empty");
                reader.mistake(mistake.help("set its variable, or write `{ file: password.txt }`"));
                return None;
            }
            return Some(Self(Secret(text)));
        }
        let entries = reader.object(node, at, &Self::file())?;
        let path = reader.field::<SecretFile>(&entries, "file", Need::Required);
        let file = path.value?.0;
        match secret_of(&file) {
            Ok(secret) => Some(Self(Secret(secret))),
            Err(why) => {
                let message = format!("`{}` holds no secret that can be used: {why}", file.display());
                let help = "write the secret, as text, into the file, and nothing else";
                reader.mistake(Mistake::at(Kind::SecretFile, path.span, message).help(help));
                None
            }
        }
    }
}

fn secret_of(file: &std::path::Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let open = std::fs::File::open(file).and_then(|file| file.take(SECRET_MAX + 1).read_to_end(&mut bytes));
    open.map_err(|error| plain(&error))?;
    if bytes.len() as u64 > SECRET_MAX {
        return Err(format!("it is larger than {}", units::show_size(SECRET_MAX)));
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    if text.is_empty() { Err("it is empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// An I/O error without the operating system's number.
pub(crate) fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        std::io::ErrorKind::NotADirectory => "a part of the path is no folder".to_owned(),
        std::io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
        _ => error.to_string(),
    }
}
