//! `fluxmill dead-letter`: what failed for good, looked at and run again.

mod list;
mod replay;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use jiff::Timestamp;

use crate::broker::BrokerError;
use crate::broker::kafka::reader::{Begin, Reader, Record};
use crate::cli::{EXIT_FAILED, EXIT_USAGE};
use crate::config::Loaded;
use crate::dead_letter::{Filter, Letter};
use crate::spec::{KafkaConnection, KafkaSourceSpec, LastResort, PipelineSpec, TargetSpec};

/// Characters of a key or a reason in one line.
const SHOWN_MAX: usize = 80;
/// The words for kinds of failure (docs/delivery.md).
const KINDS: [&str; 8] = ["reject", "attempts", "age", "trap", "timeout", "memory", "output", "publish"];

/// List, show and replay dead letters: the events that pipelines gave up.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(list::Args),
    Show(show::Args),
    Replay(replay::Args),
}

impl Args {
    /// Runs the command.
    ///
    /// # Errors
    /// When standard output cannot be written, or the runtime or the signals cannot be set up.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::List(command) => command.execute(),
            Command::Show(command) => command.execute(),
            Command::Replay(command) => command.execute(),
        }
    }
}

/// Which dead letters.
#[derive(Debug, clap::Args)]
struct Selection {
    /// The pipeline that gave the events up
    #[arg(long, value_name = "NAME")]
    pipeline: Option<String>,
    /// The kind of failure
    #[arg(long, value_name = "WORD", value_parser = KINDS)]
    kind: Option<String>,
    /// A part of the reason, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// The event's key
    #[arg(long, value_name = "TEXT")]
    key: Option<String>,
    /// Events of this time or later, such as 2026-01-31T00:00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Events before this time
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// The letter at this partition and offset of the dead-letter topic, such as 0@17
    #[arg(long, value_name = "PARTITION@OFFSET", value_parser = place)]
    at: Option<(i32, i64)>,
}

impl Selection {
    fn filter(&self) -> Filter {
        Filter {
            pipeline: self.pipeline.clone(),
            kind: self.kind.clone(),
            reason: self.reason.clone(),
            key: self.key.clone(),
            since: self.since,
            until: self.until,
            at: self.at,
        }
    }
}

fn place(text: &str) -> Result<(i32, i64), String> {
    let place = text.split_once('@').and_then(|(partition, offset)| {
        let (partition, offset): (i32, i64) = (partition.parse().ok()?, offset.parse().ok()?);
        (partition >= 0 && offset >= 0).then_some((partition, offset))
    });
    place.ok_or_else(|| "write partition and offset, such as 0@17".to_owned())
}

/// A dead-letter topic of a file, and a pipeline that writes to it.
struct LetterTopic<'a> {
    connection_name: &'a str,
    connection: &'a KafkaConnection,
    topic: &'a str,
    pipeline: &'a PipelineSpec,
    /// What the pipeline reads; none when that is not Kafka's.
    home: Option<&'a KafkaSourceSpec>,
}

impl LetterTopic<'_> {
    /// The pipeline's consumer group, in whose name the topic is looked at.
    fn group(&self) -> &str {
        self.home.map_or("fluxmill-reader", |home| &home.group)
    }
}

/// A dead letter that was asked for.
struct Found {
    letter: Letter,
    record: Record,
}

fn usage(message: &str) -> ExitCode {
    eprintln!("error: {message}");
    ExitCode::from(EXIT_USAGE)
}

fn failed(error: &BrokerError) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(EXIT_FAILED)
}

/// Where a pipeline's dead letters go; for all pipelines that have such a place, each topic once.
fn letter_topics<'a>(loaded: &'a Loaded, pipeline: Option<&str>) -> Result<Vec<LetterTopic<'a>>, ExitCode> {
    let pipelines = &loaded.spec.pipelines;
    if let Some(name) = pipeline
        && !pipelines.iter().any(|pipeline| pipeline.name == name)
    {
        let names: Vec<_> = pipelines.iter().map(|pipeline| pipeline.name.as_str()).collect();
        return Err(usage(&format!("{} has no pipeline {name}; it has {}", loaded.file(), names.join(", "))));
    }
    let (mut topics, mut on_nats) = (Vec::<LetterTopic<'a>>::new(), Vec::new());
    for spec in pipelines.iter().filter(|spec| pipeline.is_none_or(|name| spec.name == name)) {
        let (connection_name, topic) = match &spec.on_error.then {
            LastResort::DeadLetter(TargetSpec::Kafka { connection, topic }) => (connection, topic),
            LastResort::DeadLetter(TargetSpec::Nats { subject, .. } | TargetSpec::CoreNats { subject, .. }) => {
                on_nats.push(format!("those of {} go to {subject} on NATS", spec.name));
                continue;
            }
            LastResort::Stop | LastResort::Drop => continue,
        };
        let Some(connection) = loaded.spec.connections[connection_name].kafka() else { continue };
        let known = |known: &LetterTopic<'_>| known.topic == topic && known.connection.brokers == connection.brokers;
        if !topics.iter().any(known) {
            let home = spec.source.kafka();
            topics.push(LetterTopic { connection_name, connection, topic, pipeline: spec, home });
        }
    }
    if !on_nats.is_empty() {
        let instead = "read them with `nats stream view`, and publish them to their subject again";
        let told = format!("dead letters on NATS are not available here yet: {}; {instead}", on_nats.join(", "));
        if topics.is_empty() {
            return Err(usage(&told));
        }
        eprintln!("note: {told}");
    }
    if topics.is_empty() {
        let who = pipeline.map_or_else(|| loaded.file().to_owned(), |name| format!("pipeline {name}"));
        return Err(usage(&format!("{who} has no dead letters: `on_error.then` is `stop` or `drop`")));
    }
    Ok(topics)
}

/// Reads a topic's dead letters that are asked for, up to its end, and gives each of them to `found` for as long as that
/// wants more. How many events were looked at.
fn each(
    topic: &LetterTopic<'_>,
    group: &str,
    begin: Begin,
    filter: &Filter,
    mut found: impl FnMut(Found) -> anyhow::Result<bool>,
) -> anyhow::Result<Result<u64, BrokerError>> {
    let mut reader = match Reader::open(topic.connection, topic.topic, group, begin) {
        Ok(reader) => reader,
        Err(error) => return Ok(Err(error)),
    };
    let mut looked = 0;
    loop {
        let record = match reader.read() {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(Ok(looked)),
            Err(error) => return Ok(Err(error)),
        };
        looked += 1;
        let headers = record.headers.iter().map(|(name, value)| (name.as_slice(), value.as_deref()));
        let Some(letter) = Letter::of(headers) else { continue };
        let at = (record.partition, record.offset);
        if filter.selects(&letter, record.key.as_deref(), record.timestamp, at) && !found(Found { letter, record })? {
            return Ok(Ok(looked));
        }
    }
}

/// Bytes for one line of a terminal: what would move the cursor is escaped, what is too long is cut.
fn brief(bytes: Option<&[u8]>) -> String {
    let Some(bytes) = bytes else { return "-".to_owned() };
    let text = harmless(Some(bytes));
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Text for a terminal: what would move the cursor, or turn the direction of writing, is escaped.
fn harmless(bytes: Option<&[u8]>) -> String {
    let Some(bytes) = bytes else { return "-".to_owned() };
    let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}');
    let mut text = String::with_capacity(bytes.len());
    for c in String::from_utf8_lossy(bytes).chars() {
        if c.is_control() || turns(c) { text.extend(c.escape_default()) } else { text.push(c) }
    }
    text
}

fn time(millis: i64) -> String {
    Timestamp::from_millisecond(millis).map_or_else(|_| format!("{millis} ms"), |time| time.to_string())
}

/// The file of a command.
#[derive(Debug, clap::Args)]
struct File {
    /// The pipeline file
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_one_line() {
        assert_eq!(brief(None), "-");
        assert_eq!(brief(Some(b"it's \"a\"\nb\x1b[2J\xff")), "it's \"a\"\\nb\\u{1b}[2J\u{fffd}");
        assert_eq!(brief(Some("\u{9b}1m \u{202e}x".as_bytes())), "\\u{9b}1m \\u{202e}x");
        assert_eq!(brief(Some("é".repeat(100).as_bytes())), format!("{}...", "é".repeat(SHOWN_MAX)));
    }

    #[test]
    fn a_place_has_a_partition_and_an_offset() {
        assert_eq!(place("3@17"), Ok((3, 17)));
        for wrong in ["17", "3@", "@17", "3@x", "", "0@-1", "-1@0"] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }
}
