//! A pipeline between topics of its own, a load on its input, and what came out in the end.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;

use super::chain::{Chain, guest};
use super::checker::{Report, compare};
use super::client::Client;
use super::feeder::Feeder;
use super::kafka::Kafka;
use super::process::{Fluxmill, Signal};
use super::suite::Case;
use super::wait::{pace, wait_until};
use super::workload::{Value, numbered, received, sent};

/// The longest that a part of a test may take on a loaded machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// Keys of the load.
pub(crate) const KEYS: u64 = 1_000;
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
        self.client.wait_for_commits(LIMIT, &self.chain.from, &self.chain.from)
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

    /// Runs the pipeline three times, each ended in order in the middle of something, and then until everything is
    /// done. Gives how many events there were, as the others below.
    pub(crate) fn restarts(&self, case: &Case) -> anyhow::Result<u64> {
        self.one_after_the_other(case, 3, &[], |run| run.stop(LIMIT).map(|_| ()))
    }

    /// As [`restarts`](Self::restarts), so many times and by kill -9.
    pub(crate) fn kills(&self, case: &Case, times: usize, expected: &[&str]) -> anyhow::Result<u64> {
        self.one_after_the_other(case, times, expected, |run| run.kill().map(|_| ()))
    }

    fn one_after_the_other(
        &self,
        case: &Case,
        times: usize,
        expected: &[&str],
        end: impl Fn(Fluxmill) -> anyhow::Result<()>,
    ) -> anyhow::Result<u64> {
        let file = case.write("chain.yaml", &self.chain.yaml())?;
        let load = self.feed()?;
        for _ in 0..times {
            let run = self.run(case, &file, expected)?;
            self.wait_for_more()?;
            end(run)?;
        }
        let events = load.finish()?;
        self.catch_up(case, &file, expected)?;
        Ok(events)
    }

    /// A second process joins the first one's group, and leaves it.
    pub(crate) fn join_and_leave(&self, case: &Case) -> anyhow::Result<u64> {
        let file = case.write("chain.yaml", &self.chain.yaml())?;
        let load = self.feed()?;
        let first = self.run(case, &file, &[])?;
        self.wait_for_more()?;
        let second = self.run(case, &file, &[])?;
        self.wait_for_members(2)?;
        self.wait_for_more()?;
        second.stop(LIMIT)?;
        self.wait_for_members(1)?;
        self.wait_for_more()?;
        let events = load.finish()?;
        self.wait_for_commits()?;
        first.stop(LIMIT)?;
        Ok(events)
    }

    /// A process that hangs for longer than its session: another one takes over, then the first one comes back in the
    /// middle of something. `expected` are parts of their WARN lines: with transactions the second one waits for the end
    /// of the first one's.
    pub(crate) fn freeze(&self, case: &Case, expected: &[&str]) -> anyhow::Result<u64> {
        let file = case.write("chain.yaml", &self.chain.yaml())?;
        let load = self.feed()?;
        let mut frozen = self.run(case, &file, expected)?;
        self.wait_for_more()?;
        frozen.process().signal(Signal::Stop)?;
        let second = self.run(case, &file, expected)?;
        self.wait_for_more()?;
        frozen.process().signal(Signal::Continue)?;
        self.wait_for_members(2)?;
        let events = load.finish()?;
        self.wait_for_commits()?;
        frozen.stop(LIMIT)?;
        second.stop(LIMIT)?;
        Ok(events)
    }

    /// A process that hangs for a while, alone in its group; again, until it says `wanted` of that, since a moment may be
    /// one in which it does no harm.
    pub(crate) fn hang(&self, case: &Case, time: Duration, expected: &[&str], wanted: &str) -> anyhow::Result<u64> {
        const TIMES: usize = 6;
        let file = case.write("chain.yaml", &self.chain.yaml())?;
        let load = self.feed()?;
        let mut run = self.run(case, &file, expected)?;
        for time_left in (0..TIMES).rev() {
            self.wait_for_more()?;
            run.process().signal(Signal::Stop)?;
            pace(time);
            run.process().signal(Signal::Continue)?;
            self.wait_for_more()?;
            if run.output().text().contains(wanted) {
                break;
            }
            ensure!(time_left > 0, "it hung {TIMES} times, and never said: {wanted}");
        }
        let events = load.finish()?;
        self.wait_for_commits()?;
        run.stop(LIMIT)?;
        Ok(events)
    }

    /// The broker is killed twice, and comes back.
    pub(crate) fn kill_broker(&self, case: &Case, kafka: &mut Kafka, expected: &[&str]) -> anyhow::Result<u64> {
        let file = case.write("chain.yaml", &self.chain.yaml())?;
        let load = self.feed()?;
        let run = self.run(case, &file, expected)?;
        for _ in 0..2 {
            self.wait_for_more()?;
            kafka.kill()?;
            kafka.restart()?;
        }
        self.wait_for_more()?;
        let events = load.finish()?;
        self.wait_for_commits()?;
        run.stop(LIMIT)?;
        Ok(events)
    }
}
