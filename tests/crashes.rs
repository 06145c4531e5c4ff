//! Engines and brokers that die, hang, join and leave at random, on three brokers, for each guarantee: what was lost,
//! doubled, invented or reordered. One command with a seed prints the table of docs/reliability.md.
//!
//! `FLUXMILL_CRASHES` says how many faults there are, and `FLUXMILL_CRASHES_SEED` which.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use support::chain::{Chain, guest};
use support::crashes::{Faults, Reports, ensure_letters, event, reports};
use support::kafka::Version;
use support::kafka::cluster::{BROKERS, Cluster};
use support::kafka::follower::Follower;
use support::process::{Fluxmill, Signal};
use support::suite::{Case, Suite};
use support::wait::pace;
use support::workload::{Numbered, received};

mod support;

/// The longest that a part of a test may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(180);
const PARTITIONS: i32 = 4;
/// Events per second of the load; it goes on until the last fault is over.
const RATE: u64 = 2_000;
/// How many faults there are, unless the environment says otherwise.
const FAULTS: u32 = 8;
/// How many events have to come out between two faults.
const MORE: i64 = 1_000;
/// Engines that run all the time, each a member of its own name.
const ENGINES: usize = 2;
/// Longer than the session of a member that hangs.
const FROZEN: Duration = Duration::from_secs(8);

/// What a process says that could not commit its last transaction: on a busy machine it may be too old by then.
const GAVE_UP: &str = "it was stopping: what is not confirmed is processed again at the next start";
/// For how long dead letters have no leader: longer than it takes before that is told.
const AWAY: Duration = Duration::from_secs(10);
/// What is told: letters wait, or the markers of the transaction that has the last ones.
const WAITED: [&str; 2] =
    ["events wait for a partition that has no leader", "CONCURRENT_TRANSACTIONS (51); asked again"];

fn main() -> ExitCode {
    let mut suite = Suite::default();
    suite.kafka("at_least_once", at_least_once);
    suite.kafka("exactly_once", exactly_once);
    suite.kafka("exactly_once_with_keys_over_many_lanes", exactly_once_with_keys_over_many_lanes);
    suite.run_one_by_one()
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    EngineKilled,
    EngineStopped,
    EngineAdded,
    EngineFrozen,
    BrokerKilled,
    BrokerStopped,
    LettersAway,
}

impl support::crashes::Fault for Fault {
    const ALL: &'static [Self] = &[
        Self::EngineKilled,
        Self::EngineStopped,
        Self::EngineAdded,
        Self::EngineFrozen,
        Self::BrokerKilled,
        Self::BrokerStopped,
        Self::LettersAway,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::EngineKilled => "engine killed (-9), started again",
            Self::EngineStopped => "engine stopped (SIGTERM), started again",
            Self::EngineAdded => "engine added, removed (SIGTERM)",
            Self::EngineFrozen => "engine frozen for longer than its session",
            Self::BrokerKilled => "broker killed (-9), started again",
            Self::BrokerStopped => "broker stopped in order, started again",
            Self::LettersAway => "dead-letter topic away, with its broker",
        }
    }

    fn kills(self) -> bool {
        matches!(self, Self::EngineKilled | Self::BrokerKilled)
    }

    fn choose(random: &mut fastrand::Rng) -> Self {
        match random.u8(..20) {
            0..10 => Self::EngineKilled,
            10..12 => Self::EngineStopped,
            12..14 => Self::EngineAdded,
            14..16 => Self::EngineFrozen,
            16..18 => Self::BrokerKilled,
            18 => Self::BrokerStopped,
            _ => Self::LettersAway,
        }
    }
}

/// Three brokers, the engines on them, and everything that happens to them.
struct World<'a> {
    case: &'a Case,
    cluster: Cluster,
    chain: Chain,
    engines: Vec<Fluxmill>,
    /// How many stops gave up what was in flight: on a busy machine a transaction may not be committed in time.
    gave_up: u32,
    random: fastrand::Rng,
}

impl World<'_> {
    /// The pipeline file of an engine; the first ones are static members.
    fn file(&self, engine: usize) -> anyhow::Result<PathBuf> {
        let instance = ["one", "two"].get(engine).copied();
        self.case.write(&format!("chain-{engine}.yaml"), &Chain { instance, ..self.chain.clone() }.yaml())
    }

    fn start(&self, engine: usize) -> anyhow::Result<Fluxmill> {
        self.case.run(&self.file(engine)?, &self.cluster.brokers(), &[], &["WARN", GAVE_UP])
    }

    /// SIGTERM. What was in flight ends, or is given up and delivered again.
    fn stop(&mut self, mut engine: Fluxmill) -> anyhow::Result<()> {
        engine.process().signal(Signal::Term)?;
        let ended = engine.finish(LIMIT)?;
        let gave_up = ended.code == Some(1) && ended.stderr.contains(GAVE_UP);
        ensure!(ended.code == Some(0) || gave_up, "exit code {:?}, signal {:?}", ended.code, ended.signal);
        self.gave_up += u32::from(gave_up);
        Ok(())
    }

    fn wait_for_more(&self) -> anyhow::Result<()> {
        let before = self.cluster.wait_for_events(LIMIT, &self.chain.to, 0)?;
        self.cluster.wait_for_events(LIMIT, &self.chain.to, before + MORE).map(drop)
    }

    /// Lets it happen, and waits until it is over.
    fn happen(&mut self, fault: Fault) -> anyhow::Result<()> {
        let (engine, broker) = (self.random.usize(..ENGINES), self.random.i32(1..=BROKERS as i32));
        pace(Duration::from_millis(self.random.u64(..500)));
        match fault {
            Fault::EngineKilled => {
                self.engines.remove(engine).kill()?;
                let again = self.start(engine)?;
                self.engines.insert(engine, again);
            }
            Fault::EngineStopped => {
                let stopped = self.engines.remove(engine);
                self.stop(stopped)?;
                let again = self.start(engine)?;
                self.engines.insert(engine, again);
            }
            Fault::EngineAdded => {
                let added = self.start(ENGINES)?;
                self.wait_for_more()?;
                pace(Duration::from_millis(self.random.u64(..3_000)));
                self.stop(added)?;
            }
            Fault::EngineFrozen => {
                self.engines[engine].process().signal(Signal::Stop)?;
                pace(FROZEN);
                self.wait_for_more()?;
                self.engines[engine].process().signal(Signal::Continue)?;
            }
            Fault::BrokerKilled => {
                self.cluster.kill(broker)?;
                // It has to go on without that broker.
                self.wait_for_more()?;
                self.cluster.restart(broker)?;
            }
            Fault::BrokerStopped => {
                self.cluster.stop(broker)?;
                self.wait_for_more()?;
                self.cluster.restart(broker)?;
            }
            Fault::LettersAway => {
                let dead = self.chain.dead.clone();
                self.cluster.leave_to(&dead, broker)?;
                // Not by kill -9: after that Kafka does not trust the only replica (KIP-966).
                self.cluster.stop(broker)?;
                pace(AWAY);
                ensure!(self.cluster.leaders(&dead)?.is_empty(), "the dead letters are not away");
                self.cluster.restart(broker)?;
                self.cluster.spread(&dead)?;
                let said = |engine: &Fluxmill| engine.output().text();
                let waited = |engine: &Fluxmill| WAITED.iter().any(|words| said(engine).contains(words));
                // librdkafka's client waits without a word.
                let tells = self.chain.client.as_deref() != Some("client: librdkafka");
                ensure!(!tells || self.engines.iter().any(waited), "no engine waited for its dead letters");
            }
        }
        self.wait_for_more()
    }
}

fn at_least_once(case: &Case) -> anyhow::Result<()> {
    let [out, dead] = run(case, case.kafka_client().line(), &[])?;
    out.at_least_once().map_err(anyhow::Error::msg)?;
    ensure_letters(&dead, false)
}

fn exactly_once(case: &Case) -> anyhow::Result<()> {
    ensure_exactly_once(&run(case, None, &["delivery: exactly_once"])?)
}

fn exactly_once_with_keys_over_many_lanes(case: &Case) -> anyhow::Result<()> {
    ensure_exactly_once(&run(case, None, &["delivery: exactly_once", "order: key", "lanes: 8"])?)
}

fn ensure_exactly_once([out, dead]: &Reports) -> anyhow::Result<()> {
    out.exactly_once().map_err(anyhow::Error::msg)?;
    ensure_letters(dead, true)
}

/// Lets faults happen to a pipeline with these settings, and compares what went in with what came out and with the dead
/// letters.
fn run(case: &Case, client: Option<String>, settings: &[&str]) -> anyhow::Result<Reports> {
    let cluster = Cluster::start(Version::default())?;
    let (mut faults, random) = Faults::plan(case, "FLUXMILL_CRASHES", FAULTS)?;
    let feeder = cluster.client();
    let [from, to, dead] = ["in", "out", "dead"].map(|name| case.topic(name));
    for topic in [&from, &to, &dead] {
        feeder.create_topic(topic, PARTITIONS, &[])?;
    }
    let chain = Chain {
        from,
        to,
        dead,
        wasm: Some(guest("faulty")),
        client,
        // How long a transaction holds the others up whose process is gone and does not come back.
        properties: vec!["transaction.timeout.ms: \"10000\""],
        pipeline: settings.iter().map(|&setting| setting.to_owned()).collect(),
        ..Chain::default()
    };
    let mut world = World { case, cluster, chain, engines: Vec::new(), gave_up: 0, random };
    world.cluster.wait_until_in_sync()?;
    let reader = Follower::start(world.cluster.ports(), &world.chain.to, PARTITIONS);
    let load = feeder.feed_at(RATE, &world.chain.from, event)?;
    for engine in 0..ENGINES {
        let started = world.start(engine)?;
        world.engines.push(started);
    }
    world.wait_for_more()?;
    faults.happen(|fault| world.happen(fault))?;
    load.finish()?;
    feeder.wait_for_commits(LIMIT, &world.chain.from, &world.chain.from)?;
    for engine in std::mem::take(&mut world.engines) {
        world.stop(engine)?;
    }
    // Who reads along sees what is there in the end, and in that order: no event that was undone, none late.
    let ends = feeder.watermarks(&world.chain.to)?.into_iter().map(|(partition, (_, high))| (partition, high));
    let (along, afterwards) = (reader.finish(ends.collect())?, feeder.read(&world.chain.to)?);
    ensure!(along == afterwards, "read along: {} events, afterwards: {}", along.len(), afterwards.len());
    let read = |topic: &str| -> anyhow::Result<Vec<Vec<Numbered>>> { Ok(received(&feeder.read(topic)?)) };
    let Chain { from, to, dead, .. } = &world.chain;
    let reports = reports(&read(from)?, read(to)?, read(dead)?);
    case.note(&faults.table(&[(world.gave_up, "stops gave up what was in flight")], &reports));
    Ok(reports)
}
