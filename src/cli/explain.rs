//! `fluxmill explain`: the resolved plan, every default included, and what is promised, in words.

mod nats;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::load_or_report;
use crate::config::{columnar_settings, show_duration, show_size};
use crate::spec::{
    ChainSpec, ColumnarSettings, ConnectionSpec, DATA_PROPERTIES, FunctionSpec, Guarantee, KafkaClient,
    KafkaConnection, LastResort, Order, PipelineSpec, SaslSpec, SourceSpec, StartOffset, TargetSpec, TlsSpec,
    TokenSource, TopicSpec, WhenMissing, is_secret,
};

/// Characters of settings in one line.
const SETTINGS_WIDTH: usize = 100;

const AT_LEAST_ONCE: &str = "  guarantee: at least once
  A crash loses nothing: an offset is committed only when every event up to it was published and acknowledged by
  all in-sync replicas, dropped by the function, or ended as below. Events after the last commit are run again, so
  some are published twice, an older one perhaps behind newer ones. A stop that drains in time repeats none.
  Readers see events as soon as they are published, and must expect doubled ones; each keeps its key.
";
const EXACTLY_ONCE: &str =
    "  guarantee: exactly once, for readers of committed events (`isolation.level=read_committed`)
  What events became, their dead letters and their offsets are committed together, one transaction after the other.
  A crash undoes the transaction that was open, and its events are run again; what was undone is never seen.
  Readers of uncommitted events see it, and then its events once more. An event that waits for its retry holds the
  transaction that it is in.
  Readers see events when their transaction is committed: as often as `commit` says, or as the slowest batch allows.
";

const BY_PARTITION: &str =
    "  Order: events of a partition are run and published in order, one batch at a time, so that a partition is never
  faster than one lane. An event that waits for its retry holds those behind it.
";
const BY_KEY: &str = "  Order: events of a partition that have the same key are run and published in order, and so are those that have no
  key. Keys are dealt to all lanes, also within a partition, and overtake each other. An event that waits for its
  retry holds the keys of its lane.
";
const BY_NOTHING: &str = "  Order: none is kept, not even of one key. Any lane takes any event, and what a call makes is published at once. An
  event that waits for its retry holds no other.
";
const UNTIL_FULL: &str =
    "  The others go on until much waits: 4MiB for a lane that is held, with `none` 64 batches or 64MiB in a lane.
";
const UNTIL_COMMITTED: &str =
    "  The others go on to the end of the transaction; what was read after it waits until it is committed.
";

/// Print what a pipeline file means: every default, and what is promised.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pipeline file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Args {
    /// Runs the command.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let loaded = match load_or_report(&self.file) {
            Ok(loaded) => loaded,
            Err(code) => return Ok(code),
        };
        std::io::stdout().write_all(explain(&loaded.spec).as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The plan in words.
pub fn explain(chain: &ChainSpec) -> String {
    let mut out = format!("chain {}\n", chain.name);
    for (name, connection) in &chain.connections {
        match connection {
            ConnectionSpec::Kafka(connection) => explain_connection(&mut out, name, connection),
            ConnectionSpec::Nats(connection) => nats::connection(&mut out, name, connection),
        }
    }
    if !chain.topics.is_empty() {
        out.push_str("\ntopics created at the start when they are missing\n");
        chain.topics.iter().for_each(|topic| explain_topic(&mut out, topic));
    }
    if !chain.streams.is_empty() {
        out.push_str("\nstreams created at the start when they are missing\n");
        chain.streams.iter().for_each(|stream| nats::stream(&mut out, stream));
    }
    if chain.allow_loop {
        out.push_str("\nloops are allowed: an event may come back to a topic that it came from\n");
    }
    for pipeline in &chain.pipelines {
        explain_pipeline(&mut out, pipeline);
        explain_guarantee(&mut out, pipeline);
    }
    out
}

/// A line of the plan.
fn line(out: &mut String, key: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "  {key:<12} {value}");
}

fn explain_connection(out: &mut String, name: &str, connection: &KafkaConnection) {
    let _ = writeln!(out, "\nconnection {name} (kafka)");
    line(out, "brokers", connection.brokers.join(", "));
    line(out, "tls", trusts(connection.tls.as_ref()));
    match &connection.sasl {
        None => line(out, "sasl", "none"),
        Some(SaslSpec::Password { mechanism, username, .. }) => {
            let mechanism = mechanism.name();
            line(out, "sasl", format!("{mechanism}, user {username}, password ***"));
        }
        Some(SaslSpec::Token(TokenSource::Value(_))) => line(out, "sasl", "OAUTHBEARER, token ***"),
        Some(SaslSpec::Token(TokenSource::File(path))) => {
            line(out, "sasl", format!("OAUTHBEARER, token from {}", path.display()));
        }
    }
    match &connection.client {
        KafkaClient::Columnar(settings) => {
            line(out, "client", "columnar (Fluxmill's own; groups and commits by librdkafka)");
            line(out, "settings", columnar(settings));
        }
        KafkaClient::Librdkafka => line(out, "client", "librdkafka (for events, groups and commits)"),
    }
    let mut properties = connection.properties.clone();
    if matches!(connection.client, KafkaClient::Columnar(_)) {
        properties.retain(|name, _| !DATA_PROPERTIES.contains(&name.as_str()));
    }
    if !properties.is_empty() {
        line(out, "properties", pairs(&properties));
    }
}

/// Whom a client trusts, and as whom it comes.
fn trusts(tls: Option<&TlsSpec>) -> String {
    let Some(tls) = tls else { return "none: events and passwords cross the network in the clear".to_owned() };
    let ca = tls.ca.as_ref().map_or("the system's roots".to_owned(), |ca| ca.display().to_string());
    let client = match (&tls.certificate, &tls.key) {
        (Some(certificate), Some(key)) => format!(", client {} with key {}", certificate.display(), key.display()),
        _ => String::new(),
    };
    format!("trusts {ca}{client}")
}

/// Where reading begins where nothing is confirmed yet: `when`.
fn start(start: StartOffset, when: &str) -> String {
    match start {
        StartOffset::Earliest => format!("earliest: where {when}, with the oldest event that is kept"),
        StartOffset::Latest => format!("latest: where {when}, with events that come from now on"),
        StartOffset::Time(time) => {
            let time =
                jiff::Timestamp::from_millisecond(time).map_or_else(|_| format!("{time} ms"), |time| time.to_string());
            format!("where {when}, with the first event at or after {time}")
        }
    }
}

/// What the columnar client is set to, several lines of it.
fn columnar(settings: &ColumnarSettings) -> String {
    let mut text = String::new();
    let mut width = 0;
    for (name, value) in columnar_settings(settings) {
        if value.is_empty() {
            continue;
        }
        let pair = format!("{name}={}", value.escape_debug());
        if width > 0 && width + pair.len() + 2 > SETTINGS_WIDTH {
            let _ = write!(text, ",\n  {:<12} ", "");
            width = 0;
        } else if width > 0 {
            text.push_str(", ");
            width += 2;
        }
        width += pair.len();
        text.push_str(&pair);
    }
    text
}

fn explain_topic(out: &mut String, topic: &TopicSpec) {
    let replication = topic.replication.map_or("the broker's replication".to_owned(), |n| format!("replication {n}"));
    let settings = if topic.settings.is_empty() { String::new() } else { format!(", {}", pairs(&topic.settings)) };
    let s = if topic.partitions == 1 { "" } else { "s" };
    let _ = writeln!(
        out,
        "  {} on {}: {} partition{s}, {replication}{settings}",
        topic.topic, topic.connection, topic.partitions
    );
}

/// `a=1, b=2`; secrets are stars.
fn pairs(values: &BTreeMap<String, String>) -> String {
    let pair = |(key, value): (&String, &String)| {
        let value = if is_secret(key) { "***".to_owned() } else { value.escape_debug().to_string() };
        format!("{key}={value}")
    };
    values.iter().map(pair).collect::<Vec<_>>().join(", ")
}

fn explain_pipeline(out: &mut String, pipeline: &PipelineSpec) {
    let _ = writeln!(out, "\npipeline {}", pipeline.name);
    match &pipeline.source {
        SourceSpec::Kafka(source) => {
            let topics = source.topics.join(", ");
            line(out, "from", format!("{topics} on {}, group {}", source.connection, source.group));
            if let Some(instance) = &source.instance {
                line(out, "instance", format!("{instance} (a restart within the session timeout moves no partitions)"));
            }
            line(out, "start", start(source.start, "the group has no offset"));
        }
        SourceSpec::Nats(source) => nats::source(out, source),
        SourceSpec::CoreNats(source) => nats::core_source(out, source),
    }
    let (batch, limits) = (&pipeline.batch, pipeline.function.as_ref());
    let bytes = show_size(batch.max_bytes as u64);
    let wait = show_duration(batch.max_wait);
    line(out, "batch", format!("at most {} events and {bytes}, waits {wait} for more", batch.max_events));
    line(
        out,
        "order",
        match pipeline.order {
            Order::Partition if nats::reads(pipeline).is_some() => {
                "partition: events keep the order in which they come"
            }
            Order::Partition => "partition: events of a partition, and so of a key, keep their order",
            Order::Key if nats::reads(pipeline).is_some() => "key: events that have the same key keep their order",
            Order::Key => "key: events of a partition that have the same key keep their order",
            Order::None => "none: events may overtake each other",
        },
    );
    line(out, "lanes", format!("{} at once", pipeline.lanes));
    let (interval, commit) = (show_duration(pipeline.commit.interval), &pipeline.commit);
    let events = commit.max_events.map_or_else(String::new, |events| format!(", or after {events} events"));
    if !matches!(pipeline.source, SourceSpec::CoreNats(_)) {
        line(out, "commit", format!("every {interval}{events}"));
    }
    match limits {
        None => line(out, "function", "none: events are copied as they are"),
        Some(function) => explain_function(out, function),
    }
    for (nth, output) in pipeline.outputs.iter().enumerate() {
        let default = if nth == 0 && pipeline.outputs.len() > 1 { " (the default)" } else { "" };
        line(out, "output", format!("{} -> {}{default}", output.name, target(&output.target)));
    }
    let retry = &pipeline.on_error.retry;
    let (least, most) = (show_duration(retry.backoff_min), show_duration(retry.backoff_max));
    line(
        out,
        "retry",
        match retry.attempts {
            1 => "never: an event is run once".to_owned(),
            attempts => {
                let age = retry.max_age.map_or_else(String::new, |age| format!(", none after {}", show_duration(age)));
                format!("{attempts} calls in all, waiting {least} first and {most} at most{age}")
            }
        },
    );
    line(
        out,
        "then",
        match &pipeline.on_error.then {
            LastResort::DeadLetter(to) => {
                let waits = match pipeline.on_error.when_missing {
                    WhenMissing::Stop => "",
                    WhenMissing::Wait => ", waited for while it is missing",
                };
                format!("dead letter -> {}{waits}", target(to))
            }
            LastResort::Stop => "stop".to_owned(),
            LastResort::Drop => "drop".to_owned(),
        },
    );
}

fn explain_function(out: &mut String, function: &FunctionSpec) {
    line(out, "function", function.wasm.display());
    let digest = function.digest.as_ref().map_or("not checked".to_owned(), |digest| format!("sha256:{digest}"));
    line(out, "digest", digest);
    if !function.config.is_empty() {
        line(out, "config", pairs(&function.config));
    }
    let limits = &function.limits;
    let (memory, output) = (show_size(limits.memory as u64), show_size(limits.output as u64));
    line(out, "limits", format!("{} a call, {memory} of memory, {output} returned", show_duration(limits.timeout)));
}

fn target(target: &TargetSpec) -> String {
    let how = if target.is_atomic() { ", in atomic batches" } else { "" };
    format!("{} on {}{how}", target.place(), target.connection())
}

/// What is promised, as sentences.
fn explain_guarantee(out: &mut String, pipeline: &PipelineSpec) {
    let attempts = pipeline.on_error.retry.attempts;
    let again =
        if attempts == 1 { String::new() } else { format!("is run again, up to {attempts} calls in all; then it ") };
    let (failed, held) = match &pipeline.on_error.then {
        LastResort::DeadLetter(to) => {
            let to = target(to);
            (
                format!("is published to {to}, byte for byte, with headers that say why"),
                match pipeline.source {
                    SourceSpec::CoreNats(_) => "If a dead letter cannot be published, it is lost.",
                    _ => "If a dead letter cannot be published, its offset is not committed.",
                },
            )
        }
        LastResort::Stop if matches!(pipeline.source, SourceSpec::CoreNats(_)) => {
            ("stops the pipeline, and IS LOST: core NATS does not keep it".to_owned(), "So is what came behind it.")
        }
        LastResort::Stop => (
            "stops the pipeline: its offset is not committed, so it comes first after a restart".to_owned(),
            "Nothing goes past it until the function or the event is mended.",
        ),
        LastResort::Drop => {
            ("is counted and forgotten: IT IS LOST".to_owned(), "Only the metrics tell how many there were.")
        }
    };
    let faults = match pipeline.function {
        Some(_) => {
            "  An event that makes the function trap, run too long, use too much memory or return something impossible is\n  \
             found by halving its batch; the others of the batch are published once.\n"
        }
        None => "",
    };
    let (guarantee, by_partition) = match (nats::reads(pipeline), pipeline.guarantee) {
        (Some(nats), _) => nats,
        (None, Guarantee::AtLeastOnce) => (AT_LEAST_ONCE, BY_PARTITION),
        (None, Guarantee::ExactlyOnce) => (EXACTLY_ONCE, BY_PARTITION),
    };
    let to_nats = nats::publishes(pipeline);
    let order = match pipeline.order {
        Order::Partition => by_partition,
        Order::Key => BY_KEY,
        Order::None => BY_NOTHING,
    };
    let others = match (pipeline.order, pipeline.guarantee) {
        (Order::Partition, _) => "",
        (Order::Key | Order::None, Guarantee::AtLeastOnce) => UNTIL_FULL,
        (Order::Key | Order::None, Guarantee::ExactlyOnce) => UNTIL_COMMITTED,
    };
    let _ = write!(
        out,
        "{guarantee}{to_nats}{order}{others}  \
         An event that may pass later {again}{failed}.\n  \
         An event that the function rejects {failed}. {held}\n{faults}",
    );
}
