//! `fluxmill dead-letter list`.

use std::io::Write as _;
use std::process::ExitCode;

use serde_json::json;

use super::{File, Found, Selection, brief, each, failed, letter_topics, time};
use crate::broker::kafka::reader::Begin;
use crate::cli::{EXIT_OK, load_or_report};

/// List dead letters, each in a line.
///
/// The topics are read from the oldest event that is kept; nothing is confirmed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: File,
    #[command(flatten)]
    selection: Selection,
    /// No more than so many
    #[arg(long, value_name = "NUMBER")]
    limit: Option<usize>,
    /// Each as a JSON object, with everything but the event's value
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn execute(self) -> anyhow::Result<ExitCode> {
        let loaded = match load_or_report(&self.file.file) {
            Ok(loaded) => loaded,
            Err(code) => return Ok(code),
        };
        let topics = match letter_topics(&loaded, self.selection.pipeline.as_deref()) {
            Ok(topics) => topics,
            Err(code) => return Ok(code),
        };
        let (filter, most) = (self.selection.filter(), self.limit.unwrap_or(usize::MAX));
        let begin = filter.at.map_or(Begin::Oldest, |(partition, offset)| Begin::At(partition, offset));
        let (mut listed, mut looked) = (0, 0);
        for topic in &topics {
            if listed >= most {
                break;
            }
            let read = each(topic, topic.group(), begin, &filter, |found| {
                let line = if self.json { object(topic.topic, &found) } else { line(topic.topic, &found) };
                writeln!(std::io::stdout(), "{line}")?;
                listed += 1;
                Ok(listed < most)
            })?;
            match read {
                Ok(events) => looked += events,
                Err(error) => return Ok(failed(&error)),
            }
        }
        let s = if listed == 1 { "" } else { "s" };
        eprintln!("{listed} dead letter{s} of {looked} events that were looked at");
        Ok(ExitCode::from(EXIT_OK))
    }
}

/// What a line says, in this order: place, time, pipeline, kind, calls, replays, key, reason.
pub(super) fn line(topic: &str, Found { letter, record }: &Found) -> String {
    let replays = if letter.replays > 0 { format!(", replayed {}", letter.replays) } else { String::new() };
    format!(
        "{topic} {}@{}  {}  {}  {} ({}{replays})  key {}  {}",
        record.partition,
        record.offset,
        time(record.timestamp),
        brief(Some(letter.pipeline.as_bytes())),
        brief(Some(letter.kind.as_bytes())),
        match letter.attempts.as_str() {
            "1" => "1 call".to_owned(),
            calls => format!("{} calls", brief(Some(calls.as_bytes()))),
        },
        brief(record.key.as_deref()),
        brief(Some(letter.reason.as_bytes())),
    )
}

fn object(topic: &str, Found { letter, record }: &Found) -> String {
    let text = |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let own = |(name, value): &(Vec<u8>, Option<Vec<u8>>)| json!([text(Some(name)), text(value.as_deref())]);
    json!({
        "topic": topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "pipeline": letter.pipeline,
        "function_digest": letter.digest,
        "source": { "topic": letter.topic, "partition": letter.partition, "offset": letter.offset },
        "kind": letter.kind,
        "attempts": letter.attempts,
        "replays": letter.replays,
        "reason": letter.reason,
        "key": text(record.key.as_deref()),
        "headers": record.headers[..letter.own].iter().map(own).collect::<Vec<_>>(),
    })
    .to_string()
}
