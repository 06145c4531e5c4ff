//! A pipeline between topics of its own, a load on its input, and what came out in the end.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;

use super::chain::{Chain, guest};
use super::checker::{Report, compare};
use super::client::{Client, Feeder};
use super::process::Fluxmill;
use super::suite::Case;
use super::wait::wait_until;
use super::workload::{Value, numbered, received, sent};

/// The longest that a part of a test may take on a loaded machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// Keys of the load.
const KEYS: u64 = 1_000;
/// How many events have to come out between two disturbances.
const MORE: i64 = 20_000;

/// A test's three topics and its pipeline file.
pub(crate) struct Setup {
    pub(crate) chain: Chain,
    pub(crate) client: Client,
    pub(crate) brokers: String,
}

impl Setup {
    pub(crate) fn new(case: &Case, brokers: String, partitions: i32, wasm: Option<&str>) -> anyhow::Result<Self> {
        let [from, to, dead] = ["in", "out", "dead"].map(|name| case.topic(name));
        let client = Client::new(&brokers);
        for topic in [&from, &to, &dead] {
            client.create_topic(topic, partitions, &[])?;
        }
        let client_line = case.kafka_client().line();
        let chain = Chain { from, to, dead, wasm: wasm.map(guest), client: client_line, ..Chain::default() };
        Ok(Self { chain, client, brokers })
    }

    pub(crate) fn shared(case: &Case, partitions: i32, wasm: Option<&str>) -> anyhow::Result<Self> {
        Self::new(case, case.kafka()?.brokers(), partitions, wasm)
    }

    /// Starts a load on the input.
    pub(crate) fn feed(&self) -> anyhow::Result<Feeder> {
        self.client.feed(&self.chain.from, |number| numbered(number, KEYS))
    }

    /// Waits until more has come out: the pipeline runs, and while it is fed it is in the middle of something.
    pub(crate) fn wait_for_more(&self) -> anyhow::Result<()> {
        let now = self.client.count(&[&self.chain.to])?;
        self.client.wait_for_events(LIMIT, &[&self.chain.to], now + MORE).map(|_| ())
    }

    /// Waits until the group has confirmed everything that is there.
    pub(crate) fn wait_for_commits(&self) -> anyhow::Result<()> {
        let ends = self.client.watermarks(&self.chain.from)?;
        wait_until(LIMIT, "the group to have confirmed everything", || {
            let committed = self.client.committed(&self.chain.from, &self.chain.from)?;
            Ok(ends.iter().all(|(at, (_, high))| *high == 0 || committed.get(at) == Some(high)).then_some(()))
        })
    }

    /// Waits until the group is at rest with this many members.
    pub(crate) fn wait_for_members(&self, members: usize) -> anyhow::Result<()> {
        let what = format!("a group of {members}");
        wait_until(LIMIT, &what, || Ok((self.client.members(&self.chain.from)? == Some(members)).then_some(())))
    }

    /// Compares the first `events` events of the load with what came out.
    pub(crate) fn report(&self, events: u64) -> anyhow::Result<Report<Value>> {
        ensure!(self.client.count(&[&self.chain.dead])? == 0, "there are dead letters");
        let input: Vec<_> = (0..events).map(|number| sent(&numbered(number, KEYS))).collect();
        Ok(compare(&input, &received(&self.client.read(&self.chain.to)?)))
    }

    /// [`report`](Self::report) where doubled events are allowed; they are counted and printed.
    pub(crate) fn ensure_nothing_lost(&self, case: &Case, events: u64) -> anyhow::Result<()> {
        let report = self.report(events)?;
        case.note(&report.describe());
        report.at_least_once().map_err(anyhow::Error::msg)
    }

    pub(crate) fn run(&self, case: &Case, file: &Path, expected: &[&str]) -> anyhow::Result<Fluxmill> {
        case.run(file, &self.brokers, &[], expected)
    }

    /// Runs until everything is done.
    pub(crate) fn catch_up(&self, case: &Case, file: &Path, expected: &[&str]) -> anyhow::Result<()> {
        case.run(file, &self.brokers, &["--until-caught-up"], expected)?.finish_well(LIMIT).map(|_| ())
    }
}
