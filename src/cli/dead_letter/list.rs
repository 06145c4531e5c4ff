//! `fluxmill dead-letter list`.

use std::io::Write as _;
use std::process::ExitCode;

use serde_json::json;

use super::{File, Found, Selection, brief, failed, load, read, sources, time};
use crate::broker::kafka::reader::Begin;
use crate::cli::EXIT_OK;

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
        let loaded = match load(&self.file.file) {
            Ok(loaded) => loaded,
            Err(code) => return Ok(code),
        };
        let sources = match sources(&loaded, self.selection.pipeline.as_deref()) {
            Ok(sources) => sources,
            Err(code) => return Ok(code),
        };
        let (filter, most) = (self.selection.filter(), self.limit.unwrap_or(usize::MAX));
        let begin = filter.at.map_or(Begin::Oldest, |(partition, offset)| Begin::At(partition, offset));
        let (mut listed, mut looked) = (0, 0);
        for source in &sources {
            if listed >= most {
                break;
            }
            let read = read(source, source.group(), begin, &filter, |found| {
                let line = if self.json { object(source.topic, &found) } else { line(source.topic, &found) };
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
        "key": record.key.as_deref().map(String::from_utf8_lossy),
    })
    .to_string()
}
