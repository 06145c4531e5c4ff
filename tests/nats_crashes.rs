//! Engines and a nats-server that die, stop and hang at random, between two streams, with an output whose duplicate
//! window is too short and with one that covers every outage: what was lost, doubled, invented or reordered. One
//! command with a seed prints the table of docs/reliability.md.
//!
//! `FLUXMILL_NATS_CRASHES` says how many faults there are, and `FLUXMILL_NATS_CRASHES_SEED` which.

use std::collections::HashMap;
use std::ops::Range;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use async_nats::HeaderMap;
use support::crashes::{Faults, Reports, ensure_letters, event, reports};
use support::nats::setup::{Chain, LIMIT, Setup};
use support::nats::{Jet, Message, Nats};
use support::process::{Ended, Fluxmill, Signal};
use support::suite::{Case, Suite};
use support::wait::{pace, wait_until};
use support::workload::{Numbered, stored};

mod support;

/// Events per second of the load, at most; it goes on until the last fault is over. A busy machine has to keep up.
const RATE: u64 = 500;
/// How many faults there are, unless the environment says otherwise.
const FAULTS: u32 = 8;
/// Engines that run all the time: one reads, the others wait for its end.
const ENGINES: usize = 2;
/// The least that a file may say.
const ACK_WAIT: &str = ", ack_wait: 1s";
/// Longer than the ack wait; shorter than it takes a server to give a connection up, after which two would read.
const FROZEN: Duration = Duration::from_secs(3);
/// Bounds what is in flight, and so what is published once more after each fault.
const BATCH: &str = "batch: { max_events: 100 }";
/// Longer than a process may be frozen, so that no call is too late for that.
const FUNCTION: &str = ", limits: { timeout: 10s }";

/// What an engine says when it begins to read, or to wait.
const READS: &str = "reading stream IN by durable consumer test-main";
const WAITS: &str = "another process reads stream IN by durable consumer test-main";
/// What one ends with that misses deliveries since another reads too: after an outage of the server, on a busy machine,
/// the one that waited may be back long before the one that read (docs/nats.md).
const GAVE_WAY: &str = "its messages go to another process, too";
/// What one ends with that could not finish in time when it was stopped: on a busy machine, or when another reads too.
const GAVE_UP: &str = "what was in flight did not end within";

fn main() -> ExitCode {
    let mut suite = Suite::default();
    suite.nats("at_least_once", at_least_once);
    suite.nats("effectively_once", effectively_once);
    suite.run_one_by_one()
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    EngineKilled,
    EnginesKilled,
    ServerKilled,
    AllKilled,
    EngineStopped,
    EngineFrozen,
    ServerStopped,
}

impl support::crashes::Fault for Fault {
    const ALL: &'static [Self] = &[
        Self::EngineKilled,
        Self::EnginesKilled,
        Self::ServerKilled,
        Self::AllKilled,
        Self::EngineStopped,
        Self::EngineFrozen,
        Self::ServerStopped,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::EngineKilled => "engine that reads killed (-9), the other takes over",
            Self::EnginesKilled => "both engines killed (-9), started again",
            Self::ServerKilled => "server killed (-9), started again",
            Self::AllKilled => "server and both engines killed (-9), started again",
            Self::EngineStopped => "engine that reads stopped (SIGTERM), the other takes over",
            Self::EngineFrozen => "engine that reads frozen for longer than its ack wait",
            Self::ServerStopped => "server stopped in order, started again",
        }
    }

    fn kills(self) -> bool {
        matches!(self, Self::EngineKilled | Self::EnginesKilled | Self::ServerKilled | Self::AllKilled)
    }

    fn choose(random: &mut fastrand::Rng) -> Self {
        match random.u8(..20) {
            0..6 => Self::EngineKilled,
            6..10 => Self::EnginesKilled,
            10..15 => Self::ServerKilled,
            15..17 => Self::AllKilled,
            17 => Self::EngineStopped,
            18 => Self::EngineFrozen,
            _ => Self::ServerStopped,
        }
    }
}

/// Event `number` of the load as a message that the server knows when it comes once more.
fn message(number: u64) -> Message {
    let record = event(number);
    let key = String::from_utf8(record.key.unwrap_or_default()).unwrap_or_default();
    let mut headers = HeaderMap::new();
    headers.insert("Fluxmill-Key", key.as_str());
    headers.insert("Nats-Msg-Id", number.to_string().as_str());
    (format!("in.{key}"), headers, record.value.unwrap_or_default())
}

/// A server, the engines on it, and everything that happens to them.
struct World<'a> {
    case: &'a Case,
    setup: Setup,
    engines: Vec<Fluxmill>,
    /// The parts of the output that were stored from the beginning of an outage until everything was that was there at
    /// its end.
    outages: Vec<Range<u64>>,
    /// How many engines ended since another read too.
    gave_way: u32,
    /// How many stops gave up what was in flight.
    gave_up: u32,
    random: fastrand::Rng,
}

impl World<'_> {
    fn start(&self) -> anyhow::Result<Fluxmill> {
        self.setup.run(self.case, &[], &["WARN", GAVE_WAY, GAVE_UP])
    }

    /// Starts those that are missing, one after the other: of two that start at once both may read.
    fn start_all(&mut self) -> anyhow::Result<()> {
        while self.engines.len() < ENGINES {
            self.settle()?;
            let started = self.start()?;
            self.engines.push(started);
        }
        Ok(())
    }

    /// Waits until each engine reads or waits: before that it needs the server.
    fn settle(&mut self) -> anyhow::Result<()> {
        for engine in &mut self.engines {
            engine.process().wait_for_line(LIMIT, "stream IN by durable consumer test-main")?;
        }
        Ok(())
    }

    fn kill_engines(&mut self) -> anyhow::Result<()> {
        self.engines.drain(..).try_for_each(Fluxmill::kill)
    }

    /// SIGTERM.
    fn stop(&mut self, mut engine: Fluxmill) -> anyhow::Result<()> {
        engine.process().signal(Signal::Term)?;
        let ended = engine.finish(LIMIT)?;
        if ended.code == Some(1) && ended.stderr.contains(GAVE_UP) {
            self.gave_up += 1;
        } else if ended.code != Some(0) {
            self.ensure_gave_way(&ended)?;
        }
        Ok(())
    }

    /// Starts an engine again that gave way, as whoever supervises it would. No other end is expected.
    fn mind(&mut self) -> anyhow::Result<()> {
        for at in 0..self.engines.len() {
            if self.engines[at].process().ended()?.is_some() {
                let ended = self.engines.remove(at).finish(LIMIT)?;
                self.ensure_gave_way(&ended)?;
                let again = self.start()?;
                self.engines.insert(at, again);
            }
        }
        Ok(())
    }

    fn ensure_gave_way(&mut self, ended: &Ended) -> anyhow::Result<()> {
        let gave_way = ended.code == Some(1) && ended.stderr.contains(GAVE_WAY);
        ensure!(gave_way, "exit code {:?}, signal {:?}", ended.code, ended.signal);
        self.gave_way += 1;
        Ok(())
    }

    /// Waits for an engine that reads; gives which it is.
    fn wait_for_reader(&mut self) -> anyhow::Result<usize> {
        let reads = |engine: &Fluxmill| {
            let text = engine.output().text();
            text.rfind(READS) > text.rfind(WAITS)
        };
        wait_until(LIMIT, "an engine that reads", || {
            self.mind()?;
            Ok(self.engines.iter().position(reads))
        })
    }

    fn take_reader(&mut self) -> anyhow::Result<Fluxmill> {
        let reader = self.wait_for_reader()?;
        Ok(self.engines.remove(reader))
    }

    /// Waits until everything is confirmed that is in the input now.
    fn catch_up(&mut self) -> anyhow::Result<()> {
        let fed = self.setup.jet.count("IN")?;
        wait_until(LIMIT, &format!("everything up to {fed} to be confirmed"), || {
            self.mind()?;
            // A server that has just started may answer late.
            let confirmed = self.setup.jet.consumer("IN", "test-main").map_or(0, |info| info.ack_floor.stream_sequence);
            Ok((confirmed >= fed).then_some(()))
        })
    }

    fn restart_server(&mut self) -> anyhow::Result<()> {
        // Engines may have tried to reach it several times.
        pace(Duration::from_millis(self.random.u64(..1_500)));
        self.setup.nats.restart()?;
        self.setup.jet = self.setup.nats.client()?;
        Ok(())
    }

    /// Ends the server while engines run, and starts it again; gives how many events were stored before.
    fn end_server(&mut self, end: fn(&mut Nats) -> anyhow::Result<()>) -> anyhow::Result<u64> {
        let stored = self.setup.jet.count("OUT")?;
        end(&mut self.setup.nats)?;
        self.restart_server()?;
        Ok(stored)
    }

    /// Lets it happen, and waits until it is over.
    fn happen(&mut self, fault: Fault) -> anyhow::Result<()> {
        pace(Duration::from_millis(self.random.u64(..500)));
        self.mind()?;
        let mut outage = None;
        match fault {
            Fault::EngineKilled => {
                self.take_reader()?.kill()?;
                self.wait_for_reader()?;
            }
            Fault::EnginesKilled => self.kill_engines()?,
            Fault::ServerKilled => outage = Some(self.end_server(Nats::kill)?),
            Fault::AllKilled => {
                self.setup.nats.kill()?;
                self.kill_engines()?;
                self.restart_server()?;
            }
            Fault::EngineStopped => {
                let reader = self.take_reader()?;
                self.stop(reader)?;
                self.wait_for_reader()?;
            }
            Fault::EngineFrozen => {
                let mut frozen = self.take_reader()?;
                frozen.process().signal(Signal::Stop)?;
                pace(FROZEN);
                frozen.process().signal(Signal::Continue)?;
                self.engines.insert(0, frozen);
            }
            Fault::ServerStopped => outage = Some(self.end_server(Nats::stop)?),
        }
        self.start_all()?;
        self.settle()?;
        self.catch_up()?;
        if let Some(start) = outage {
            // By the first time all clients are back; what is there by now includes all that they may have held before.
            self.catch_up()?;
            self.outages.push(start + 1..self.setup.jet.count("OUT")? + 1);
        }
        Ok(())
    }

    /// Events that are reordered in a part of the output where docs/nats.md promises that none is.
    fn reordered_without_outage(&self, [out, _]: &Reports, output: &[Numbered]) -> usize {
        let mut first = HashMap::new();
        for (sequence, event) in (1_u64..).zip(output) {
            first.entry(&event.id).or_insert(sequence);
        }
        let is_excused = |sequence: &u64| self.outages.iter().any(|outage| outage.contains(sequence));
        out.reordered.iter().filter(|(id, _)| !first.get(id).is_some_and(is_excused)).count()
    }
}

/// The window is over before anything can be published once more.
fn at_least_once(case: &Case) -> anyhow::Result<()> {
    let (window, pipeline) = (", duplicate_window: 100ms", &[BATCH]);
    let [out, dead] = run(case, Chain { out: window, dead: window, pipeline, ..Chain::default() })?;
    ensure!(out.lost.is_empty() && out.unseen.is_empty(), "{}", out.describe());
    ensure_letters(&dead, false)
}

/// Many lanes, on which the order of each key has to be kept.
fn effectively_once(case: &Case) -> anyhow::Result<()> {
    let (window, pipeline) = (", duplicate_window: 10m", &[BATCH, "order: key", "lanes: 4"]);
    let [out, dead] = run(case, Chain { out: window, dead: window, pipeline, ..Chain::default() })?;
    ensure!(out.lost.is_empty() && out.unseen.is_empty() && out.doubled.is_empty(), "{}", out.describe());
    ensure_letters(&dead, true)
}

/// Lets faults happen to a pipeline with these settings, and compares what went in with what came out and with the dead
/// letters. Their order is looked at here.
fn run(case: &Case, chain: Chain) -> anyhow::Result<Reports> {
    let (mut faults, random) = Faults::plan(case, "FLUXMILL_NATS_CRASHES", FAULTS)?;
    let chain = Chain { wasm: Some("faulty"), input: ACK_WAIT, function: FUNCTION, ..chain };
    let setup = Setup::new(case, &chain)?;
    let load = Jet::feed_at(&setup.nats.url(), RATE, message)?;
    let mut world = World { case, setup, engines: Vec::new(), outages: Vec::new(), gave_way: 0, gave_up: 0, random };
    world.start_all()?;
    world.settle()?;
    world.catch_up()?;
    faults.happen(|fault| world.happen(fault))?;
    let acknowledged = load.finish()?;
    world.catch_up()?;
    for engine in std::mem::take(&mut world.engines) {
        world.stop(engine)?;
    }
    let [fed, output, dead] = ["IN", "OUT", "DEAD"].map(|stream| world.setup.jet.read(stream));
    let (fed, output, dead) = (stored(&fed?), stored(&output?), stored(&dead?));
    let reports = reports(std::slice::from_ref(&fed), vec![output.clone()], vec![dead]);
    let reordered = world.reordered_without_outage(&reports, &output);
    let more = [
        (world.gave_up, "stops gave up what was in flight"),
        (world.gave_way, "engines ended since another read too, started again"),
        (u32::try_from(reordered)?, "events reordered without an outage of the server"),
    ];
    case.note(&faults.table(&more, &reports));
    // The server's own promise, without which the others mean nothing.
    ensure!(fed.len() as u64 == acknowledged, "{} events are stored, {acknowledged} were acknowledged", fed.len());
    ensure!(reordered == 0, "{reordered} events reordered without an outage of the server");
    Ok(reports)
}
