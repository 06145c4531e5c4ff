//! What is promised of every event while three brokers hand their leaders around and are killed: nothing is lost,
//! nothing doubled, nothing out of order, as long as the process itself lives.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use support::chain::{Chain, guest};
use support::checker::compare;
use support::kafka::Version;
use support::kafka::cluster::{BROKERS, Cluster};
use support::suite::{Case, Suite};
use support::workload::{both_told_apart, numbered, received, sent};

mod support;

/// The longest that a part of a test may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);
/// Keys of the load.
const KEYS: u64 = 1_000;
const PARTITIONS: i32 = 4;
/// Events per second of the load; it goes on until the last fault is over.
const RATE: u64 = 10_000;
/// How many times a leader is moved, of the input and of the output in turn.
const MOVES: i32 = 200;
/// A broker is killed after each of this many moves.
const MOVES_TO_A_KILL: i32 = 40;

fn main() -> ExitCode {
    let mut suite = Suite::default();
    suite.kafka("moved_leaders_and_killed_brokers_double_nothing", moved_leaders_and_killed_brokers_double_nothing);
    suite.run()
}

fn moved_leaders_and_killed_brokers_double_nothing(case: &Case) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Version::default())?;
    let client = cluster.client();
    let [from, to, dead] = ["in", "out", "dead"].map(|name| case.topic(name));
    for topic in [&from, &to, &dead] {
        client.create_topic(topic, PARTITIONS, &[])?;
    }
    cluster.wait_until_in_sync()?;
    let chain = Chain {
        from: from.clone(),
        to: to.clone(),
        dead: dead.clone(),
        wasm: Some(guest("identity")),
        client: case.kafka_client().line(),
        ..Chain::default()
    };
    let file = case.write("chain.yaml", &chain.yaml())?;
    let load = client.feed_at(RATE, &from, |number| numbered(number, KEYS))?;
    let run = case.run(&file, &cluster.brokers(), &[], &["WARN"])?;
    cluster.wait_for_events(LIMIT, &to, 1)?;

    let mut kills = 0;
    for number in 1..=MOVES {
        let topic = if number % 2 == 0 { &from } else { &to };
        let partition = number / 2 % PARTITIONS;
        let leader = cluster.leaders(topic)?[&partition];
        cluster.move_leaders(topic, &[partition], 1 + leader % i32::try_from(BROKERS)?)?;
        if number % MOVES_TO_A_KILL == 0 {
            let id = 1 + kills % i32::try_from(BROKERS)?;
            let before = cluster.wait_for_events(LIMIT, &to, 0)?;
            cluster.kill(id)?;
            // It has to go on without that broker.
            cluster.wait_for_events(LIMIT, &to, before + 1_000)?;
            cluster.restart(id)?;
            kills += 1;
        }
    }
    let events = load.finish()?;
    client.wait_for_commits(LIMIT, &from, &from).or_else(|error| {
        let (out, leaders) = (client.watermarks(&to)?, [cluster.leaders(&from)?, cluster.leaders(&to)?]);
        Err(error.context(format!("the output ends at {out:?}; leaders of both: {leaders:?}")))
    })?;
    run.stop(LIMIT)?;

    ensure!(client.count(&[&dead])? == 0, "there are dead letters");
    let input: Vec<_> = (0..events).map(|number| sent(&numbered(number, KEYS))).collect();
    let [fed, out] = [received(&client.read(&from)?), received(&client.read(&to)?)];
    // The load goes through the same faults by another client. What that doubled has to come out as often.
    let load = compare(&input, &fed);
    case.note(&format!("the load: {}", load.describe()));
    load.at_least_once().map_err(anyhow::Error::msg)?;
    let (fed, out) = both_told_apart(fed, out);
    let report = compare(&fed, &out);
    case.note(&format!("{MOVES} moved leaders, {kills} killed brokers: {}", report.describe()));
    report.exactly_once().map_err(anyhow::Error::msg)
}
