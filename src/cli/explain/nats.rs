//! What `explain` says of NATS.

use std::fmt::Write as _;

use super::{line, start, trusts};
use crate::config::{show_duration, show_size};
use crate::spec::{
    CoreNatsSourceSpec, Discard, NatsAuth, NatsConnection, NatsKey, NatsSourceSpec, PipelineSpec, Retention,
    SourceSpec, Storage, StreamSpec, TargetSpec,
};

const FROM_NATS: &str = "  guarantee: at least once
  A crash loses nothing: a message is acknowledged only when every event up to it was published and acknowledged,
  dropped by the function, or ended as below. Events after the last acknowledgement are run again. A stop that drains
  in time repeats none.
";
const TO_NATS: &str =
    "  To NATS it is effectively once, as long as the stream's duplicate window covers the time between an event's two
  publications, and functions make the same of the same event: each message has an id made of where its event came
  from, and the server drops what it knows. The ids of a longer outage are forgotten, and its events are doubled.
  Readers see events as soon as they are published.
";
const REORDERED: &str = "  After an outage of the server, or when its stream was full, a newer event may stand in front of an older one of its
  key, but not in atomic outputs.
";
const FROM_CORE: &str = "  guarantee: AT MOST ONCE
  Core NATS keeps nothing: what is published while no process of the queue group reads is lost, and so is what a
  process has taken when it crashes, and what comes faster than it is processed. A stop that drains in time loses
  nothing of what had come, but may lose what the server was just sending.
";
const TO_CORE: &str =
    "  To core NATS nothing is promised but that it was sent: who listens at that moment has it, and nobody acknowledges
  it. What is on its way when the connection breaks is LOST. Pipelines of this run that read it begin before this one
  and end after it, unless they feed it in turn. What is run again after a crash is sent again.
";
const IN_BATCHES: &str =
    "  Atomic outputs are stored batch by batch, of 1000 messages at most, each as a whole or not at all. What one event
  became there is never parted; nor is what a batch of events became, unless it is more, or some of it is run again. An
  event of which more than 1000 are made, or of which one is refused, fails as a whole.
";
const BY_SUBJECT: &str =
    "  Order: events of each of these subjects are run and published in the order in which they come, one batch at a time:
  by one lane, whatever `lanes` says. Processes of one queue group share them in no order.
";
const BY_STREAM: &str =
    "  Order: events of the stream are run and published in order, one batch at a time: by one lane, whatever `lanes`
  says. An event that waits for its retry holds those behind it.
";

pub(super) fn connection(out: &mut String, name: &str, connection: &NatsConnection) {
    let _ = writeln!(out, "\nconnection {name} (nats)");
    line(out, "servers", connection.servers.join(", "));
    line(out, "tls", trusts(connection.tls.as_ref()));
    let auth = match &connection.auth {
        NatsAuth::None => "none".to_owned(),
        NatsAuth::Password { user, .. } => format!("user {user}, password ***"),
        NatsAuth::Token(_) => "token ***".to_owned(),
        NatsAuth::Nkey(_) => "nkey ***".to_owned(),
        NatsAuth::Credentials(_) => "credentials ***".to_owned(),
    };
    line(out, "sign-in", auth);
}

pub(super) fn stream(out: &mut String, stream: &StreamSpec) {
    let storage = match stream.storage {
        Storage::File => "on disk",
        Storage::Memory => "IN MEMORY, gone when the server ends",
    };
    let retention = match stream.retention {
        Retention::Limits => "limits",
        Retention::Interest => "interest",
        Retention::WorkQueue => "work queue",
    };
    let s = if stream.replicas == 1 { "y" } else { "ies" };
    let _ = write!(
        out,
        "  {} on {}: {}; {storage}, {} cop{s}, {retention}, duplicates known for {}",
        stream.name,
        stream.connection,
        stream.subjects.join(", "),
        stream.replicas,
        show_duration(stream.duplicate_window)
    );
    let mut bounds = Vec::new();
    bounds.extend(stream.max_age.map(|age| format!("{} old", show_duration(age))));
    bounds.extend(stream.max_bytes.map(show_size));
    bounds.extend(stream.max_messages.map(|count| format!("{count} messages")));
    bounds.extend(stream.max_message_bytes.map(|bytes| format!("{} a message", show_size(u64::from(bytes)))));
    if !bounds.is_empty() {
        let gives_way = match stream.discard {
            Discard::Old => "the oldest go first, read or not",
            Discard::New => "new ones wait",
        };
        let _ = write!(out, "; at most {}: {gives_way}", bounds.join(", "));
    }
    if stream.atomic {
        out.push_str("; takes atomic batches");
    }
    out.push('\n');
}

pub(super) fn source(out: &mut String, source: &NatsSourceSpec) {
    let subjects = if source.subjects.is_empty() { "all".to_owned() } else { source.subjects.join(", ") };
    line(out, "from", format!("stream {} on {}, {subjects} of its subjects", source.stream, source.connection));
    line(out, "durable", format!("{}, by one process at a time", source.durable));
    line(out, "start", start(source.start, "the durable consumer is created"));
    let wait = show_duration(source.ack_wait);
    line(out, "ack wait", format!("{wait}; what is being worked on is kept from being delivered again"));
    key_and_subject(out, source.key, source.subject_header.as_deref());
}

pub(super) fn core_source(out: &mut String, source: &CoreNatsSourceSpec) {
    let subjects = source.subjects.join(", ");
    line(out, "from", format!("core NATS, {subjects} on {}, queue group {}", source.connection, source.queue));
    key_and_subject(out, source.key, source.subject_header.as_deref());
}

fn key_and_subject(out: &mut String, key: NatsKey, header: Option<&str>) {
    let key = match key {
        NatsKey::Header => "the header Fluxmill-Key; without it there is none",
        NatsKey::LastToken => "the header Fluxmill-Key, or else the last token of the subject",
    };
    line(out, "key", key);
    if let Some(header) = header {
        line(out, "subject", format!("in the header {header}"));
    }
}

/// What is promised of what goes to NATS, if anything does.
pub(super) fn publishes(pipeline: &PipelineSpec) -> String {
    let mut text = String::new();
    // What nothing keeps is never published again.
    let again = !matches!(pipeline.source, SourceSpec::CoreNats(_));
    if again && pipeline.targets().any(|target| matches!(target, TargetSpec::Nats { .. })) {
        text += TO_NATS;
        if pipeline.targets().any(|target| matches!(target, TargetSpec::Nats { atomic: false, .. })) {
            text += REORDERED;
        }
    }
    if pipeline.targets().any(TargetSpec::is_atomic) {
        text += IN_BATCHES;
    }
    if pipeline.targets().any(|target| matches!(target, TargetSpec::CoreNats { .. })) {
        text += TO_CORE;
    }
    text
}

/// What is promised of an input from NATS, and what keeps its order; none for another input.
pub(super) fn reads(pipeline: &PipelineSpec) -> Option<(&'static str, &'static str)> {
    match &pipeline.source {
        SourceSpec::Kafka(_) => None,
        SourceSpec::Nats(_) => Some((FROM_NATS, BY_STREAM)),
        SourceSpec::CoreNats(_) => Some((FROM_CORE, BY_SUBJECT)),
    }
}
