//! A second client of Kafka: `kcat`, an older librdkafka of its own. What one client wrote and another one reads is
//! what both say it is.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use super::client::{RawHeader, Received};
use super::process::Process;

/// The longest that one call may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Stands between events, and between key and value, in the file that `kcat` reads: no byte of a test's key or value
/// may be one of these (ASCII's own separators).
const EVENT: char = '\u{1e}';
const KEY: char = '\u{1f}';

/// `kcat` for one broker.
pub(crate) struct Kcat {
    brokers: String,
    dir: TempDir,
}

/// How events are produced.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Produce<'a> {
    /// Every event goes to this partition; by the key's hash where there is none.
    pub(crate) partition: Option<i32>,
    /// `none`, `gzip`, `snappy`, `lz4` or `zstd`.
    pub(crate) compression: Option<&'a str>,
    /// Each event gets these headers; neither part may have a zero byte, nor the name a `=`.
    pub(crate) headers: &'a [(&'a [u8], &'a [u8])],
    /// Further settings of librdkafka, such as `batch.num.messages=10`.
    pub(crate) settings: &'a [&'a str],
}

impl Kcat {
    /// For the broker at `host:port`.
    ///
    /// # Errors
    /// When there is no folder to be had.
    pub(crate) fn new(brokers: &str) -> anyhow::Result<Self> {
        Ok(Self { brokers: brokers.to_owned(), dir: TempDir::with_prefix("fluxmill-kcat-")? })
    }

    /// Produces these keys and values in order; an empty one is null. They must not have the bytes 0x1e and 0x1f.
    ///
    /// # Errors
    /// When `kcat` reports one.
    pub(crate) fn produce<'a>(
        &self,
        topic: &str,
        how: Produce<'_>,
        events: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> anyhow::Result<()> {
        use std::os::unix::ffi::OsStrExt;

        let mut bytes = Vec::new();
        for (key, value) in events {
            let clean = |part: &[u8]| !part.iter().any(|byte| [EVENT as u8, KEY as u8].contains(byte));
            ensure!(clean(key) && clean(value), "an event has a byte that stands between events");
            for part in [key, &[KEY as u8], value, &[EVENT as u8]] {
                bytes.extend_from_slice(part);
            }
        }
        let file = self.dir.path().join("events");
        fs::write(&file, bytes)?;
        let mut kcat = Command::new("kcat");
        kcat.args(["-P", "-b", &self.brokers, "-t", topic, "-Z", "-l"]);
        kcat.args(["-D", &EVENT.to_string(), "-K", &KEY.to_string()]);
        if let Some(partition) = how.partition {
            kcat.args(["-p", &partition.to_string()]);
        }
        if let Some(compression) = how.compression {
            kcat.args(["-z", compression]);
        }
        for (name, value) in how.headers {
            kcat.arg("-H").arg(std::ffi::OsStr::from_bytes(&[name, b"=".as_slice(), value].concat()));
        }
        for setting in how.settings {
            kcat.args(["-X", setting]);
        }
        let mut process = Process::start("kcat", kcat.arg(&file))?;
        ensure!(process.wait(LIMIT)?.success(), "kcat: {}", process.output().text());
        Ok(())
    }

    /// Everything that a topic holds now, partition by partition; `settings` as `isolation.level=read_uncommitted`.
    /// Values of headers must not have a `,`.
    ///
    /// # Errors
    /// When `kcat` reports one, or writes what cannot be read.
    pub(crate) fn read(&self, topic: &str, settings: &[&str]) -> anyhow::Result<Vec<Received>> {
        let file = self.dir.path().join("read");
        let mut shell = Command::new("sh");
        // Bytes as they are, which the lines of a captured process are not.
        shell.args(["-c", "exec kcat \"$@\" >\"$0\""]).arg(&file);
        shell.args(["-C", "-b", &self.brokers, "-t", topic, "-o", "beginning", "-e", "-q"]);
        shell.args(["-f", "%p %o %T %K %S %h\\n%k%s\\n"]);
        for setting in settings {
            shell.args(["-X", setting]);
        }
        let mut process = Process::start("kcat", &mut shell)?;
        ensure!(process.wait(LIMIT)?.success(), "kcat: {}", process.output().text());
        parse(&file)
    }

    /// [`read`](Self::read), as the JSON that `kcat -J` makes of each event; for text only.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn read_json(&self, topic: &str) -> anyhow::Result<Vec<serde_json::Value>> {
        let mut kcat = Command::new("kcat");
        kcat.args(["-C", "-b", &self.brokers, "-t", topic, "-o", "beginning", "-e", "-q", "-J"]);
        let mut process = Process::start("kcat", &mut kcat)?;
        ensure!(process.wait(LIMIT)?.success(), "kcat: {}", process.output().text());
        let lines = process.output().lines().into_iter().filter(|line| !line.stderr);
        lines.map(|line| Ok(serde_json::from_str(&line.text)?)).collect()
    }
}

/// Reads what [`Kcat::read`] asked for: a line about each event, then its key and value and a line break.
fn parse(file: &Path) -> anyhow::Result<Vec<Received>> {
    let bytes = fs::read(file)?;
    let mut rest = bytes.as_slice();
    let mut events = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'\n').context("no line about an event")?;
        let (line, after) = rest.split_at(end);
        let mut parts = line.splitn(6, |byte| *byte == b' ');
        let mut number = || -> anyhow::Result<i64> {
            Ok(std::str::from_utf8(parts.next().context("too short a line about an event")?)?.parse()?)
        };
        let (partition, offset, timestamp, key, value) = (number()?, number()?, number()?, number()?, number()?);
        let headers = headers(parts.next().unwrap_or_default())?;
        rest = &after[1..];
        let mut take = |length: i64| -> anyhow::Result<Option<Vec<u8>>> {
            // A length below zero is no key or no value at all.
            let Ok(length) = usize::try_from(length) else { return Ok(None) };
            let (part, after) = rest.split_at_checked(length).context("an event is cut short")?;
            rest = after;
            Ok(Some(part.to_vec()))
        };
        let (key, value) = (take(key)?, take(value)?);
        let Some((b'\n', after)) = rest.split_first() else { bail!("no line break behind an event") };
        rest = after;
        let partition = i32::try_from(partition)?;
        events.push(Received { partition, offset, key, value, headers, timestamp: Some(timestamp) });
    }
    events.sort_by_key(|event| (event.partition, event.offset));
    Ok(events)
}

/// `a=1,b=NULL`.
fn headers(text: &[u8]) -> anyhow::Result<Vec<RawHeader>> {
    let pairs = text.split(|byte| *byte == b',').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let at = pair.iter().position(|byte| *byte == b'=').context("a header without `=`")?;
            let value = Some(&pair[at + 1..]).filter(|value| *value != b"NULL");
            Ok((pair[..at].to_vec(), value.map(<[u8]>::to_vec)))
        })
        .collect()
}
