//! `delivery: exactly_once` on a real Kafka, through the binary: for those who read committed events nothing is lost,
//! doubled or out of order, however the process ends.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use support::setup::{KEYS, LIMIT, Setup};
use support::suite::{Case, Suite};
use support::wait::wait_until;
use support::workload::numbered;

mod support;

/// How often a process is killed.
const KILLS: usize = 5;
/// Part of what a process says that did not poll in time.
const LATE: &str = "maximum poll interval (6000ms) exceeded";
/// Parts of the WARN lines of a process whose transaction was given up, or whose broker went away.
const AGAIN: [&str; 9] = [
    "; asked again",
    ": no answer for ",
    ": no coordinator for ",
    "is processed again",
    "group session timed out",
    LATE,
    "partitions were lost",
    "is not reachable",
    "look up where to begin",
];

fn main() -> ExitCode {
    let mut suite = Suite::default();
    suite.kafka("graceful_restarts", graceful_restarts);
    suite.kafka("kill_9", kill_9);
    suite.kafka("kill_9_with_keys_over_many_lanes", kill_9_with_keys_over_many_lanes);
    suite.kafka("kill_9_under_another_name", kill_9_under_another_name);
    suite.kafka("a_second_process_joins_and_leaves", a_second_process_joins_and_leaves);
    suite.kafka("a_frozen_process_is_fenced", a_frozen_process_is_fenced);
    suite.kafka("a_transaction_that_is_too_old_is_undone", a_transaction_that_is_too_old_is_undone);
    suite.kafka("a_process_that_does_not_poll_in_time", a_process_that_does_not_poll_in_time);
    suite.kafka("a_killed_broker", a_killed_broker);
    suite.kafka("transactions_are_cut_off_by_count", transactions_are_cut_off_by_count);
    suite.run()
}

fn setup(case: &Case, instance: Option<&'static str>) -> anyhow::Result<Setup> {
    setup_on(case, case.kafka()?.brokers(), instance)
}

fn setup_on(case: &Case, brokers: String, instance: Option<&'static str>) -> anyhow::Result<Setup> {
    let mut setup = Setup::new(case, brokers, 4, Some("identity"))?;
    setup.chain.client = None;
    setup.chain.instance = instance;
    // How long the transaction of a process that hangs holds the others up.
    setup.chain.properties.push("transaction.timeout.ms: \"10000\"");
    setup.chain.pipeline.push("delivery: exactly_once".to_owned());
    Ok(setup)
}

fn ensure_exactly_once(case: &Case, setup: &Setup, events: u64) -> anyhow::Result<()> {
    let report = setup.report(events)?;
    case.note(&report.describe());
    report.exactly_once().map_err(anyhow::Error::msg)
}

fn graceful_restarts(case: &Case) -> anyhow::Result<()> {
    let setup = setup(case, None)?;
    let events = setup.restarts(case)?;
    ensure_exactly_once(case, &setup, events)
}

/// As the same member, which ends the transaction of the one before it.
fn kill_9(case: &Case) -> anyhow::Result<()> {
    killed(case, &setup(case, Some("one"))?, KILLS)
}

/// A transaction holds a closed set of events, whatever lanes they went to.
fn kill_9_with_keys_over_many_lanes(case: &Case) -> anyhow::Result<()> {
    let mut setup = setup(case, Some("one"))?;
    setup.chain.pipeline.extend(["order: key", "lanes: 8"].map(str::to_owned));
    killed(case, &setup, KILLS)
}

/// As another member each time, which waits until the broker has ended the transaction of the one before it.
fn kill_9_under_another_name(case: &Case) -> anyhow::Result<()> {
    killed(case, &setup(case, None)?, 2)
}

fn killed(case: &Case, setup: &Setup, times: usize) -> anyhow::Result<()> {
    let events = setup.kills(case, times, &AGAIN)?;
    // Committed events are read up to the first transaction that is still open: the one of the process that was killed
    // last may be, if nobody took its name over.
    wait_until(LIMIT, "everything to be readable", || Ok(setup.report(events)?.lost.is_empty().then_some(())))?;
    ensure_exactly_once(case, setup, events)
}

fn a_second_process_joins_and_leaves(case: &Case) -> anyhow::Result<()> {
    let setup = setup(case, None)?;
    let events = setup.join_and_leave(case)?;
    ensure_exactly_once(case, &setup, events)
}

fn a_frozen_process_is_fenced(case: &Case) -> anyhow::Result<()> {
    let setup = setup(case, None)?;
    let events = setup.freeze(case, &AGAIN)?;
    ensure_exactly_once(case, &setup, events)
}

/// The broker ends the transaction of a process that hangs, though its session goes on.
fn a_transaction_that_is_too_old_is_undone(case: &Case) -> anyhow::Result<()> {
    let mut setup = setup(case, None)?;
    setup.chain.properties = vec!["transaction.timeout.ms: \"2000\""];
    let events = setup.hang(case, Duration::from_secs(5), &AGAIN, "the pipeline begins anew")?;
    ensure_exactly_once(case, &setup, events)
}

/// Whoever does not poll for `max.poll.interval.ms` is out of the group, whatever its transaction says.
fn a_process_that_does_not_poll_in_time(case: &Case) -> anyhow::Result<()> {
    let mut setup = setup(case, None)?;
    setup.chain.properties.push("max.poll.interval.ms: \"6000\"");
    let events = setup.hang(case, Duration::from_secs(8), &AGAIN, LATE)?;
    ensure_exactly_once(case, &setup, events)
}

fn a_killed_broker(case: &Case) -> anyhow::Result<()> {
    let mut kafka = case.own_kafka()?;
    let setup = setup_on(case, kafka.brokers(), None)?;
    let events = setup.kill_broker(case, &mut kafka, &AGAIN)?;
    ensure_exactly_once(case, &setup, events)
}

fn transactions_are_cut_off_by_count(case: &Case) -> anyhow::Result<()> {
    const EVENTS: u64 = 100_000;
    let mut setup = setup(case, None)?;
    let lines = ["lanes: 1", "batch: { max_events: 100 }", "commit: { interval: 2500ms, max_events: 1000 }"];
    setup.chain.pipeline.extend(lines.map(str::to_owned));
    setup.client.produce(&setup.chain.from, (0..EVENTS).map(|number| numbered(number, KEYS)))?;
    let file = case.write("chain.yaml", &setup.chain.yaml())?;
    setup.catch_up(case, &file, &[])?;
    ensure_exactly_once(case, &setup, EVENTS)?;
    // Each transaction leaves a marker in each partition that it wrote to. One that is being committed lets the lane run
    // ahead by some hundred events.
    let markers = setup.client.count(&[&setup.chain.to])? - i64::try_from(EVENTS)?;
    ensure!(markers >= 50, "{markers} markers of transactions");
    Ok(())
}
