//! `fluxmill dead-letter show`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use super::{File, Found, each, failed, harmless, letter_topics, place, time, usage};
use crate::broker::kafka::reader::Begin;
use crate::cli::{EXIT_FAILED, EXIT_OK, load_or_report};
use crate::dead_letter::Filter;

/// Show one dead letter whole: what happened to the event, and the event.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: File,
    /// Its partition and offset in the dead-letter topic, as `list` tells them
    #[arg(value_name = "PARTITION@OFFSET", value_parser = place)]
    at: (i32, i64),
    /// The pipeline that gave the event up, where the file has several dead-letter topics
    #[arg(long, value_name = "NAME")]
    pipeline: Option<String>,
    /// Nothing but the event's value, byte for byte
    #[arg(long)]
    value: bool,
}

impl Args {
    pub(super) fn execute(self) -> anyhow::Result<ExitCode> {
        let loaded = match load_or_report(&self.file.file) {
            Ok(loaded) => loaded,
            Err(code) => return Ok(code),
        };
        let topics = match letter_topics(&loaded, self.pipeline.as_deref()) {
            Ok(topics) => topics,
            Err(code) => return Ok(code),
        };
        let [topic] = topics.as_slice() else {
            let names: Vec<_> = topics.iter().map(|topic| topic.pipeline.name.as_str()).collect();
            return Ok(usage(&format!("which one's? Add --pipeline with one of {}", names.join(", "))));
        };
        let filter = Filter { at: Some(self.at), ..Filter::default() };
        let mut shown = None;
        let read = each(topic, topic.group(), Begin::At(self.at.0, self.at.1), &filter, |found| {
            shown = Some(found);
            Ok(false)
        })?;
        if let Err(error) = read {
            return Ok(failed(&error));
        }
        let Some(found) = shown else {
            let (partition, offset) = self.at;
            eprintln!("error: there is no dead letter at {partition}@{offset} of {}", topic.topic);
            return Ok(ExitCode::from(EXIT_FAILED));
        };
        let mut out = std::io::stdout();
        match (self.value, &found.record.value) {
            (true, Some(value)) => out.write_all(value)?,
            (true, None) => eprintln!("the event has no value: it is a tombstone"),
            (false, _) => out.write_all(whole(topic.topic, &found).as_bytes())?,
        }
        Ok(ExitCode::from(EXIT_OK))
    }
}

fn whole(topic: &str, Found { letter, record }: &Found) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<10} {}", if value.is_empty() { "-" } else { value });
    };
    let text = |text: &str| harmless(Some(text.as_bytes()));
    line("letter", &format!("{topic} {}@{}", record.partition, record.offset));
    line("pipeline", &text(&letter.pipeline));
    line("function", &text(&letter.digest));
    line("kind", &text(&letter.kind));
    line("reason", &text(&letter.reason));
    line("attempts", &text(&letter.attempts));
    line("replays", &letter.replays.to_string());
    let [from, partition, offset] = [&letter.topic, &letter.partition, &letter.offset].map(|said| text(said));
    line("event", &if from.is_empty() { String::new() } else { format!("{from} {partition}@{offset}") });
    line("time", &time(record.timestamp));
    line("key", &harmless(record.key.as_deref()));
    for (name, value) in &record.headers[..letter.own] {
        line("header", &format!("{}: {}", harmless(Some(name)), harmless(value.as_deref())));
    }
    line(
        "value",
        &match &record.value {
            None => "none (a tombstone)".to_owned(),
            Some(value) => format!("{} bytes", value.len()),
        },
    );
    if let Some(value) = &record.value {
        match std::str::from_utf8(value) {
            // Lines stay lines; what would move the cursor does not.
            Ok(value) => value.lines().for_each(|line| out += &format!("{}\n", text(line))),
            Err(_) => out += &format!("{}\n", value.escape_ascii()),
        }
    }
    out
}
