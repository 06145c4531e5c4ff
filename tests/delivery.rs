//! What is promised of every event, on a real Kafka, through the binary: nothing lost by kills, stops, outages and
//! rebalances; nothing doubled by what ends in order; every byte as it was.

use std::process::{Command, ExitCode};

use anyhow::ensure;
use support::client::Record;
use support::kafka::Kafka;
use support::process::{Process, Signal};
use support::setup::{LIMIT, Setup};
use support::suite::{Case, Suite};
use support::workload::{Content, contents, odd};

mod support;

fn main() -> ExitCode {
    let mut suite = Suite::default();
    suite.kafka("a_copy_keeps_every_byte", a_copy_keeps_every_byte);
    suite.kafka("a_function_that_touches_nothing_keeps_every_byte", a_function_that_touches_nothing_keeps_every_byte);
    suite.kafka_and_kcat("header_names_need_not_be_utf_8", header_names_need_not_be_utf_8);
    suite.kafka("graceful_restarts_lose_and_double_nothing", graceful_restarts_lose_and_double_nothing);
    suite.kafka("kill_9_loses_nothing", kill_9_loses_nothing);
    suite.kafka("a_second_process_joins_and_leaves", a_second_process_joins_and_leaves);
    suite.kafka("keys_keep_their_order_over_many_lanes", keys_keep_their_order_over_many_lanes);
    suite.kafka("kill_9_with_keys_over_many_lanes_loses_nothing", kill_9_with_keys_over_many_lanes_loses_nothing);
    suite.kafka("without_order_nothing_is_lost", without_order_nothing_is_lost);
    suite.kafka("a_frozen_process_loses_nothing", a_frozen_process_loses_nothing);
    suite.kafka("a_killed_broker_loses_nothing", a_killed_broker_loses_nothing);
    suite.kafka("sigterm_ends_a_run_whose_broker_is_gone", sigterm_ends_a_run_whose_broker_is_gone);
    suite.kafka("sigterm_ends_a_run_whose_broker_hangs", sigterm_ends_a_run_whose_broker_hangs);
    suite.run()
}

/// Parts of the WARN lines of a process that lost its membership.
const LOST: [&str; 2] = ["group session timed out", "partitions were lost"];
/// Parts of the WARN lines of a process whose broker went away: the membership may be lost by that, too.
const OUTAGE: [&str; 6] = [
    ": no answer for ",
    "is not reachable",
    "sent again until it works",
    "Failed to acquire idempotence PID",
    "group session timed out",
    "partitions were lost",
];

fn a_copy_keeps_every_byte(case: &Case) -> anyhow::Result<()> {
    keeps_every_byte(case, None)
}

fn a_function_that_touches_nothing_keeps_every_byte(case: &Case) -> anyhow::Result<()> {
    keeps_every_byte(case, Some("identity"))
}

fn keeps_every_byte(case: &Case, wasm: Option<&str>) -> anyhow::Result<()> {
    let setup = Setup::shared(case, 3, wasm)?;
    setup.client.produce(&setup.chain.from, odd())?;
    let file = case.write("chain.yaml", &setup.chain.yaml())?;
    setup.catch_up(case, &file, &[])?;

    let before = contents(&setup.client.read(&setup.chain.from)?);
    let after = contents(&setup.client.read(&setup.chain.to)?);
    ensure_same(&before, &after)?;
    // What the client wrote is what it reads: an oddity that got lost on the way in would prove nothing.
    let mut written: Vec<Content> = odd().into_iter().map(content).collect();
    written.sort();
    ensure_same(&written, &before)
}

fn content(record: Record) -> Content {
    let headers = record.headers.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect();
    (record.key, record.value, headers, record.timestamp)
}

fn ensure_same(before: &[Content], after: &[Content]) -> anyhow::Result<()> {
    for (before, after) in before.iter().zip(after) {
        ensure!(before == after, "an event changed:\nbefore {before:?}\nafter  {after:?}");
    }
    ensure!(before.len() == after.len(), "{} events instead of {}", after.len(), before.len());
    Ok(())
}

/// Kafka says that header names are UTF-8 and checks nothing; a second client writes such a name.
fn header_names_need_not_be_utf_8(case: &Case) -> anyhow::Result<()> {
    use std::os::unix::ffi::OsStrExt;

    let setup = Setup::shared(case, 1, Some("identity"))?;
    let value = case.write("value", "value")?;
    let mut kcat = Command::new("kcat");
    kcat.args(["-P", "-b", &setup.brokers, "-t", &setup.chain.from, "-H"]);
    kcat.arg(std::ffi::OsStr::from_bytes(b"na\xff\xfeme=va\xfflue")).arg(&value);
    let mut kcat = Process::start("kcat", &mut kcat)?;
    ensure!(kcat.wait(LIMIT)?.success(), "kcat: {}", kcat.output().text());
    let file = case.write("chain.yaml", &setup.chain.yaml())?;
    setup.catch_up(case, &file, &[])?;
    let after = setup.client.read(&setup.chain.to)?;
    ensure!(
        after.len() == 1 && after[0].headers == [(b"na\xff\xfeme".to_vec(), Some(b"va\xfflue".to_vec()))],
        "{after:?}"
    );
    Ok(())
}

fn graceful_restarts_lose_and_double_nothing(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::shared(case, 4, Some("identity"))?;
    let events = setup.restarts(case)?;
    setup.report(events)?.exactly_once().map_err(anyhow::Error::msg)
}

fn kill_9_loses_nothing(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::shared(case, 4, Some("identity"))?;
    let events = setup.kills(case, 3, &[])?;
    setup.ensure_nothing_lost(case, events)
}

/// A rebalance in order: the first process drains what it gives up, so that nothing is done twice.
fn a_second_process_joins_and_leaves(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::shared(case, 4, Some("identity"))?;
    let events = setup.join_and_leave(case)?;
    setup.report(events)?.exactly_once().map_err(anyhow::Error::msg)
}

/// Fewer partitions than lanes.
fn over_many_lanes(case: &Case, order: &str) -> anyhow::Result<Setup> {
    let mut setup = Setup::shared(case, 2, Some("identity"))?;
    setup.chain.pipeline.extend([format!("order: {order}"), "lanes: 8".to_owned()]);
    Ok(setup)
}

fn keys_keep_their_order_over_many_lanes(case: &Case) -> anyhow::Result<()> {
    let setup = over_many_lanes(case, "key")?;
    let events = setup.join_and_leave(case)?;
    setup.report(events)?.exactly_once().map_err(anyhow::Error::msg)
}

fn kill_9_with_keys_over_many_lanes_loses_nothing(case: &Case) -> anyhow::Result<()> {
    let setup = over_many_lanes(case, "key")?;
    let events = setup.kills(case, 3, &[])?;
    setup.ensure_nothing_lost(case, events)
}

fn without_order_nothing_is_lost(case: &Case) -> anyhow::Result<()> {
    let setup = over_many_lanes(case, "none")?;
    let events = setup.kills(case, 3, &[])?;
    let report = setup.report(events)?;
    case.note(&report.describe());
    ensure!(report.lost.is_empty() && report.unseen.is_empty(), "{}", report.describe());
    Ok(())
}

fn a_frozen_process_loses_nothing(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::shared(case, 4, Some("identity"))?;
    let events = setup.freeze(case, &LOST)?;
    setup.ensure_nothing_lost(case, events)
}

fn a_killed_broker_loses_nothing(case: &Case) -> anyhow::Result<()> {
    let mut kafka = case.own_kafka()?;
    let setup = Setup::new(case, kafka.brokers(), 4, Some("identity"))?;
    let events = setup.kill_broker(case, &mut kafka, &OUTAGE)?;
    setup.ensure_nothing_lost(case, events)
}

/// A commit that is never answered must not hold the end up: librdkafka waits for it before it leaves the group.
fn sigterm_ends_a_run_whose_broker_hangs(case: &Case) -> anyhow::Result<()> {
    sigterm_without_a_broker(case, |kafka| kafka.signal(Signal::Stop), |kafka| kafka.signal(Signal::Continue))
}

fn sigterm_ends_a_run_whose_broker_is_gone(case: &Case) -> anyhow::Result<()> {
    sigterm_without_a_broker(case, Kafka::kill, Kafka::restart)
}

/// What cannot be published or confirmed any more is not waited for without end, and is there after the next start.
fn sigterm_without_a_broker(
    case: &Case,
    take: impl FnOnce(&mut Kafka) -> anyhow::Result<()>,
    give_back: impl FnOnce(&mut Kafka) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut kafka = case.own_kafka()?;
    let setup = Setup::new(case, kafka.brokers(), 4, Some("identity"))?;
    let file = case.write("chain.yaml", &setup.chain.yaml())?;
    let load = setup.feed()?;
    let mut run = setup.run(case, &file, &["WARN", "ERROR"])?;
    setup.wait_for_more()?;
    take(&mut kafka)?;
    run.process().signal(Signal::Term)?;
    let ended = run.finish(LIMIT);
    give_back(&mut kafka)?;
    let ended = ended?;
    ensure!(matches!(ended.code, Some(0 | 1)), "exit code {:?}, signal {:?}", ended.code, ended.signal);
    let events = load.finish()?;
    setup.catch_up(case, &file, &OUTAGE)?;
    setup.ensure_nothing_lost(case, events)
}
