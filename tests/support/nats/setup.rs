//! A server, a pipeline between streams of it, a load on its input, and what came out in the end.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::HeaderMap;

use super::Nats;
use super::jet::{Jet, Message};
use crate::support::chain::guest;
use crate::support::checker::{Report, Seen, compare};
use crate::support::process::Fluxmill;
use crate::support::suite::Case;

/// The longest that a part of a test may take on a loaded machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// Keys of the load.
const KEYS: u64 = 100;

/// A pipeline from `in.>` of the stream IN to OUT.
#[derive(Default)]
pub(crate) struct Chain {
    /// A guest of tests/guests; without one the events are copied.
    pub(crate) wasm: Option<&'static str>,
    /// More for the input, such as `, ack_wait: 1s`.
    pub(crate) input: &'static str,
    /// More for OUT, such as `, max_messages: 5`.
    pub(crate) out: &'static str,
    /// More for DEAD.
    pub(crate) dead: &'static str,
    /// Further lines of the pipeline.
    pub(crate) pipeline: &'static [&'static str],
    /// More for the function, such as `, limits: { timeout: 4s }`.
    pub(crate) function: &'static str,
    /// More for the connection, such as `, token: secret`.
    pub(crate) connection: &'static str,
}

impl Chain {
    /// The file; the server's address is in the variable NATS.
    pub(crate) fn yaml(&self) -> String {
        let Self { input, out, dead, connection, .. } = self;
        let mut text = format!(
            "name: test\nconnections:\n  edge: {{ nats: {{ servers: [\"${{NATS}}\"]{connection} }} }}\nstreams:\n  \
             IN: {{ subjects: [\"in.>\"] }}\n  OUT: {{ subjects: [\"out.>\"]{out} }}\n  \
             DEAD: {{ subjects: [dead]{dead} }}\npipelines:\n  main:\n    \
             from: {{ nats: {{ stream: IN{input} }} }}\n    to: {{ nats: {{ subject: \"out.{{key}}\" }} }}\n    \
             on_error:\n      retry: {{ attempts: 2, backoff: 10ms..50ms }}\n      then: {{ \
             dead_letter: {{ nats: {{ subject: dead }} }} }}\n"
        );
        if let Some(wasm) = self.wasm {
            let _ = writeln!(text, "    function: {{ wasm: \"{}\"{} }}", guest(wasm).display(), self.function);
        }
        self.pipeline.iter().for_each(|line| {
            let _ = writeln!(text, "    {line}");
        });
        text
    }
}

/// A server, and a pipeline's file.
pub(crate) struct Setup {
    pub(crate) nats: Nats,
    pub(crate) jet: Jet,
    pub(crate) file: PathBuf,
}

impl Setup {
    pub(crate) fn new(case: &Case, chain: &Chain) -> anyhow::Result<Self> {
        Self::with(case, chain, "")
    }

    /// With further settings of the server.
    pub(crate) fn with(case: &Case, chain: &Chain, settings: &str) -> anyhow::Result<Self> {
        let nats = Nats::start(settings)?;
        let jet = nats.client()?;
        jet.create("IN", &["in.>"])?;
        Ok(Self { jet, file: case.write("chain.yaml", &chain.yaml())?, nats })
    }

    /// Puts these messages of the load into the input.
    pub(crate) fn feed(&self, numbers: std::ops::Range<u64>) -> anyhow::Result<()> {
        self.jet.publish(numbers.map(message))
    }

    pub(crate) fn run(&self, case: &Case, more: &[&str], expected: &[&str]) -> anyhow::Result<Fluxmill> {
        let file = self.file.display().to_string();
        let (url, cache) = (self.nats.url(), case.dir().display().to_string());
        let args = ["run", &file].into_iter().chain(more.iter().copied());
        case.start_with(args, &[("NATS", &url), ("XDG_CACHE_HOME", &cache)], expected)
    }

    /// Runs until everything is done.
    pub(crate) fn catch_up(&self, case: &Case, expected: &[&str]) -> anyhow::Result<()> {
        self.run(case, &["--until-caught-up"], expected)?.finish_well(LIMIT).map(|_| ())
    }

    /// What became of the first events of the load.
    pub(crate) fn report(&self, events: u64) -> anyhow::Result<Report<Vec<u8>>> {
        let seen = |key: &str, payload: &[u8]| Seen { key: key.to_owned(), id: payload.to_vec() };
        let key = |headers: &HeaderMap| headers.get("Fluxmill-Key").map_or("", |key| key.as_str()).to_owned();
        let input: Vec<_> = (0..events).map(message).map(|(_, headers, value)| seen(&key(&headers), &value)).collect();
        let output = self.jet.read("OUT")?;
        let output = output.iter().map(|stored| seen(&key(&stored.headers), &stored.payload)).collect();
        Ok(compare(&input, &[output]))
    }
}

/// What `report` must say where nothing may be lost, doubled or reordered.
pub(crate) fn exactly_once<I: std::fmt::Debug>(report: &Report<I>) -> anyhow::Result<()> {
    report.exactly_once().map_err(anyhow::Error::msg)
}

/// Message `number` of a load, on one of its keys.
pub(crate) fn message(number: u64) -> Message {
    let key = format!("k-{}", number % KEYS);
    let mut headers = HeaderMap::new();
    headers.insert("Fluxmill-Key", key.as_str());
    (format!("in.{key}"), headers, format!("{number} {}", "x".repeat(100)).into_bytes())
}
