//! Three brokers, and faults all the time: leaders move, brokers are killed and stopped and hang, the network breaks.
//! Meanwhile a producer of the columnar client writes numbered events and one of its sources reads them. In the end
//! an independent client reads everything: each event that was acknowledged is there, once, and in order.
//!
//! One producer after the other, each set otherwise. `FLUXMILL_FAULTS` is the number of faults (12 without it), `FLUXMILL_FAULTS_SEED` repeats a run's choices.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use fluxmill::broker::kafka::{KafkaProducer, KafkaSource};
use fluxmill::broker::{Acknowledgement, Sink as _, Source as _, SourceContext, SourceEnd};
use fluxmill::delivery::{Slot, Tracker};
use fluxmill::event::{BatchBuilder, Origin, Publication};
use fluxmill::intake::{Bell, Lanes};
use fluxmill::spec::{
    BatchLimits, ColumnarSettings, CommitSpec, Compression, Guarantee, KafkaClient, KafkaConnection, KafkaSourceSpec,
    Order, StartOffset,
};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use support::environment::setting;
use support::kafka::Version;
use support::kafka::cluster::{BROKERS, Cluster, Partition};
use support::process::Signal;
use support::proxy::Weather;
use support::suite::{Case, Suite};
use support::wait::{pace, wait_until};
use tokio_util::sync::CancellationToken;

mod support;

const PARTITIONS: i32 = 6;
/// Faults of a run that is not told otherwise: what a change can wait for.
const FAULTS: u32 = 12;
/// The longest that it may take until events pass again after a fault has ended, or all is read.
const LIMIT: Duration = Duration::from_secs(120);
/// Events that have to be acknowledged between two faults.
const BETWEEN: u64 = 2_000;
/// Faults that one producer lives through; then another one goes on, set otherwise.
const FAULTS_EACH: u32 = 6;
/// Events that may wait for their acknowledgement.
const UNACKNOWLEDGED: u64 = 20_000;
/// Publications in one burst, and how often one comes.
const BURST: usize = 30;
const BURST_EVERY: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let mut suite = Suite::default();
    suite.kafka("nothing_is_lost_doubled_or_reordered", nothing_is_lost_doubled_or_reordered);
    suite.run()
}

/// What happens to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// Some partitions get another leader; the old one lives on.
    LeadersMove,
    /// A broker is killed (kill -9), and comes back when others lead.
    Killed,
    /// A broker is killed, and comes back before it is missed.
    KilledShortly,
    /// Two brokers are killed and come back: meanwhile the third alone may acknowledge nothing.
    TwoKilled,
    /// A broker is ended in order, and comes back.
    Stopped,
    /// A broker hangs until others lead, then goes on.
    Hangs,
    /// All connections of one or all brokers are cut.
    Cut,
    /// Connections of a broker are cut in the middle of answers, again and again.
    CutInAnswers,
    /// Nothing passes to and from a broker for a while; connections stay open.
    Stalled,
    /// A few bytes pass at a time.
    Trickle,
}

impl Fault {
    fn choose(random: &mut fastrand::Rng) -> Self {
        match random.u32(..100) {
            0..28 => Self::LeadersMove,
            28..37 => Self::Killed,
            37..40 => Self::TwoKilled,
            40..46 => Self::KilledShortly,
            46..54 => Self::Stopped,
            54..59 => Self::Hangs,
            59..76 => Self::Cut,
            76..86 => Self::CutInAnswers,
            86..94 => Self::Stalled,
            _ => Self::Trickle,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::LeadersMove => "leaders moved",
            Self::Killed => "broker killed, others led",
            Self::KilledShortly => "broker killed, back at once",
            Self::TwoKilled => "two brokers killed",
            Self::Stopped => "broker stopped in order",
            Self::Hangs => "broker hung",
            Self::Cut => "connections cut",
            Self::CutInAnswers => "connections cut in answers",
            Self::Stalled => "network stalled",
            Self::Trickle => "network trickled",
        }
    }

    /// Lets it happen, and waits until it is over.
    fn happen(self, cluster: &mut Cluster, topic: &str, random: &mut fastrand::Rng) -> anyhow::Result<()> {
        let broker = random.i32(1..=BROKERS as i32);
        match self {
            Self::LeadersMove => {
                let moved: Vec<i32> = (0..PARTITIONS).filter(|_| random.bool()).collect();
                if !moved.is_empty() {
                    cluster.move_leaders(topic, &moved, broker)?;
                }
            }
            Self::Killed => {
                cluster.kill(broker)?;
                wait_for_others(cluster, topic, broker)?;
                cluster.restart(broker)?;
            }
            Self::KilledShortly => {
                cluster.kill(broker)?;
                cluster.restart(broker)?;
            }
            Self::TwoKilled => {
                let others: Vec<i32> = (1..=BROKERS as i32).filter(|id| *id != broker).collect();
                for id in &others {
                    cluster.kill(*id)?;
                }
                // The one that is left learns that it is alone, and says so.
                wait_until(LIMIT, "the last broker to be alone", || {
                    let alone = |partition: &Partition| partition.leader.is_none() || partition.in_sync.len() < 2;
                    Ok(cluster.partitions(topic).is_ok_and(|all| all.iter().all(alone)).then_some(()))
                })?;
                cluster.restart_all(&others)?;
            }
            Self::Stopped => {
                cluster.stop(broker)?;
                cluster.restart(broker)?;
            }
            Self::Hangs => {
                cluster.signal(broker, Signal::Stop)?;
                wait_for_others(cluster, topic, broker)?;
                cluster.signal(broker, Signal::Continue)?;
                cluster.wait_until_in_sync()?;
            }
            Self::Cut => {
                let all = random.bool();
                for id in (1..=BROKERS as i32).filter(|id| all || *id == broker) {
                    cluster.proxy(id)?.cut();
                }
            }
            Self::CutInAnswers => {
                let (times, after) = (1 + random.u64(..4), random.u64(1..400));
                let proxy = cluster.proxy(broker)?;
                let before = proxy.times_cut();
                proxy.set(Weather { cut_after: Some(after), ..Weather::default() });
                // Nobody needs to talk to a broker that leads nothing.
                let cut = wait_until(Duration::from_secs(10), "cut connections", || {
                    Ok((proxy.times_cut() >= before + times).then_some(()))
                });
                proxy.set(Weather::default());
                cut.or_else(|_| Ok::<_, anyhow::Error>(()))?;
            }
            Self::Stalled => {
                let time = Duration::from_millis(random.u64(100..6_000));
                cluster.proxy(broker)?.set(Weather { stalled: true, ..Weather::default() });
                pace(time);
                cluster.proxy(broker)?.set(Weather::default());
            }
            Self::Trickle => {
                let (time, trickle) = (Duration::from_millis(random.u64(200..2_000)), random.usize(1..200));
                let delay = Duration::from_millis(random.u64(..5));
                cluster.proxy(broker)?.set(Weather { trickle, delay, ..Weather::default() });
                pace(time);
                cluster.proxy(broker)?.set(Weather::default());
            }
        }
        Ok(())
    }
}

/// Waits until this broker leads no partition.
fn wait_for_others(cluster: &Cluster, topic: &str, broker: i32) -> anyhow::Result<()> {
    wait_until(LIMIT, "others to lead", || {
        // The broker that is asked may be the one that hangs.
        let Ok(leaders) = cluster.leaders_but(topic, broker) else { return Ok(None) };
        Ok((leaders.len() == PARTITIONS as usize && leaders.values().all(|id| *id != broker)).then_some(()))
    })
}

fn nothing_is_lost_doubled_or_reordered(case: &Case) -> anyhow::Result<()> {
    let faults = setting("FLUXMILL_FAULTS")?.unwrap_or(FAULTS);
    let seed = setting("FLUXMILL_FAULTS_SEED")?.unwrap_or_else(|| fastrand::u64(..));
    case.note(&format!("FLUXMILL_FAULTS={faults} FLUXMILL_FAULTS_SEED={seed}"));
    let mut random = fastrand::Rng::with_seed(seed);
    let mut cluster = Cluster::start(Version::default())?;
    let topic = case.topic("numbers");
    cluster.client().create_topic(&topic, PARTITIONS, &[])?;
    cluster.wait_until_in_sync()?;

    let start = Instant::now();
    let reader = Reading::start(&connection(&cluster, &mut random), &topic)?;
    let mut writer = None;
    let mut written = 0;
    let mut happened: BTreeMap<Fault, (u32, Duration)> = BTreeMap::new();
    for number in 1..=faults {
        if number % FAULTS_EACH == 1 {
            written = writer.take().map_or(Ok(0), Writing::finish)?;
            let connection = connection(&cluster, &mut random);
            writer = Some(Writing::start(&connection, &topic, written, random.fork())?);
        }
        let writer = writer.as_ref().context("no producer")?;
        writer.wait_for_more()?;
        let fault = Fault::choose(&mut random);
        let began = Instant::now();
        fault.happen(&mut cluster, &topic, &mut random).with_context(|| format!("fault {number}, {}", fault.name()))?;
        writer.wait_for_more().with_context(|| format!("after fault {number}, {}", fault.name()))?;
        let (times, time) = happened.entry(fault).or_default();
        (*times, *time) = (*times + 1, *time + began.elapsed());
    }
    written = writer.map_or(Ok(written), Writing::finish)?;
    let source = reader.finish(written)?;
    let found =
        Found::new(written, &cluster.client().read(&topic)?.iter().map(numbered).collect::<Result<Vec<_>, _>>()?);

    let mut table = format!("{:<28} {:>6} {:>9}\n", "fault", "times", "seconds");
    for (fault, (times, time)) in &happened {
        table += &format!("{:<28} {times:>6} {:>9.1}\n", fault.name(), time.as_secs_f64());
    }
    table += &format!("{:<28} {faults:>6} {:>9.1}\n\n", "all", start.elapsed().as_secs_f64());
    table += &format!("{:<28} {:>9} {:>6} {:>9} {:>9}\n", "", "events", "lost", "duplicate", "reordered");
    for (name, found) in [("in the topic, by librdkafka", &found), ("as the columnar source read", &source)] {
        let Found { events, lost, duplicate, reordered } = found;
        table += &format!("{name:<28} {events:>9} {lost:>6} {duplicate:>9} {reordered:>9}\n");
    }
    case.note(&format!("{written} events were acknowledged\n{table}"));
    let events = written;
    ensure!(found == Found { events, lost: 0, duplicate: 0, reordered: 0 }, "{found:?} of {written}");
    ensure!(source.lost == 0 && source.reordered == 0, "the source read {source:?} of {written}");
    Ok(())
}

/// The columnar client through the proxies, set to what this seed says.
fn connection(cluster: &Cluster, random: &mut fastrand::Rng) -> KafkaConnection {
    use Compression::{Gzip, Lz4, None, Snappy, Zstd};
    let choose = |random: &mut fastrand::Rng, list: &[usize]| list[random.usize(..list.len())];
    let settings = ColumnarSettings {
        // Small ones are sealed while others are on their way, so that many are.
        batch_bytes: choose(random, &[1_000, 4_000, 16_000, 1_000_000]),
        compression: [None, Gzip, Snappy, Lz4, Zstd][random.usize(..5)],
        linger: Duration::from_millis(choose(random, &[0, 0, 5]) as u64),
        // Shorter than the network stalls.
        socket_timeout: Duration::from_secs(2),
        request_timeout: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(2),
        ..ColumnarSettings::default()
    };
    let property = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    KafkaConnection {
        brokers: cluster.proxied(),
        tls: Option::None,
        sasl: Option::None,
        client: KafkaClient::Columnar(settings),
        properties: [property("session.timeout.ms", "45000"), property("heartbeat.interval.ms", "1000")].into(),
    }
}

/// The number of an event.
fn numbered(event: &support::client::Received) -> anyhow::Result<(i32, u64)> {
    Ok((event.partition, number(event.value.as_deref())?))
}

fn number(value: Option<&[u8]>) -> anyhow::Result<u64> {
    let text = std::str::from_utf8(value.context("no value")?)?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

/// What was found of the events 0, 1, 2, ...
#[derive(Debug, PartialEq, Eq)]
struct Found {
    events: u64,
    lost: u64,
    duplicate: u64,
    reordered: u64,
}

impl Found {
    /// Of events that were written in the order of their numbers, as they are in their partitions.
    fn new(written: u64, events: &[(i32, u64)]) -> Self {
        let mut times = vec![0_u64; usize::try_from(written).unwrap_or(0)];
        let mut last: BTreeMap<i32, u64> = BTreeMap::new();
        let mut reordered = 0;
        for (partition, number) in events {
            let Some(times) = usize::try_from(*number).ok().and_then(|at| times.get_mut(at)) else {
                // Nobody wrote it.
                reordered += 1;
                continue;
            };
            *times += 1;
            let last = last.entry(*partition).or_insert(*number);
            // A repetition may lie behind later events; only the first coming has to be in order.
            reordered += u64::from(*times == 1 && *number < *last);
            *last = (*last).max(*number);
        }
        Self {
            events: events.len() as u64,
            lost: times.iter().filter(|times| **times == 0).count() as u64,
            duplicate: times.iter().map(|times| times.saturating_sub(1)).sum(),
            reordered,
        }
    }
}

/// A producer that writes numbered events on a thread of its own, in bursts.
struct Writing {
    stop: CancellationToken,
    acknowledged: Arc<AtomicU64>,
    thread: Option<JoinHandle<anyhow::Result<u64>>>,
}

impl Writing {
    fn start(connection: &KafkaConnection, topic: &str, first: u64, random: fastrand::Rng) -> anyhow::Result<Self> {
        let (stop, acknowledged) = (CancellationToken::new(), Arc::new(AtomicU64::new(first)));
        let (connection, topic) = (connection.clone(), topic.to_owned());
        let (stopped, count) = (stop.clone(), Arc::clone(&acknowledged));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        #[expect(clippy::disallowed_methods, reason = "joined by `finish`, told to stop when this is dropped")]
        let thread = std::thread::spawn(move || runtime.block_on(write(&connection, &topic, random, stopped, &count)));
        Ok(Self { stop, acknowledged, thread: Some(thread) })
    }

    /// Waits until more was acknowledged.
    fn wait_for_more(&self) -> anyhow::Result<()> {
        let until = self.acknowledged.load(Relaxed) + BETWEEN;
        wait_until(LIMIT, "acknowledgements", || {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            ensure!(!ended, "the producer has ended");
            Ok((self.acknowledged.load(Relaxed) >= until).then_some(()))
        })
    }

    /// Stops, waits for every acknowledgement, and gives the number behind the last event.
    fn finish(mut self) -> anyhow::Result<u64> {
        self.stop.cancel();
        let thread = self.thread.take().context("it has ended")?;
        thread.join().map_err(|_| anyhow::anyhow!("the producer panicked"))?
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn write(
    connection: &KafkaConnection,
    topic: &str,
    mut random: fastrand::Rng,
    stop: CancellationToken,
    acknowledged: &AtomicU64,
) -> anyhow::Result<u64> {
    let (producer, driver) = KafkaProducer::connect(connection, "faults")?;
    #[expect(clippy::disallowed_methods, reason = "awaited below")]
    let driver = tokio::spawn(driver.context("no driver")?.run());
    let sink = producer.sink(topic);
    let mut number = acknowledged.load(Relaxed);
    let mut waiting = FuturesUnordered::new();
    let mut bursts = tokio::time::interval(BURST_EVERY);
    bursts.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let count = |(rows, acknowledged): (u64, Result<_, _>)| -> anyhow::Result<u64> {
        let report: fluxmill::broker::PublishReport = acknowledged?;
        ensure!(report.refused.is_empty(), "an event was refused: {:?}", report.refused[0]);
        Ok(rows)
    };
    while !stop.is_cancelled() {
        tokio::select! {
            Some(ended) = waiting.next() => {
                acknowledged.fetch_add(count(ended)?, Relaxed);
            }
            _ = bursts.tick(), if number - acknowledged.load(Relaxed) < UNACKNOWLEDGED => {
                for _ in 0..1 + random.usize(..BURST) {
                    let rows = 1 + random.u64(..20);
                    let publication = publication(number..number + rows, &mut random);
                    number += rows;
                    // There is room for all that may be unacknowledged: this does not wait for long.
                    let ended = sink.publish(publication).await?;
                    waiting.push(with(rows, ended));
                }
            }
        }
    }
    let rest = async {
        while let Some(ended) = waiting.next().await {
            acknowledged.fetch_add(count(ended)?, Relaxed);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(LIMIT, rest).await.context("acknowledgements did not come")??;
    ensure!(acknowledged.load(Relaxed) == number, "{number} events were published");
    producer.close(LIMIT).await;
    tokio::time::timeout(LIMIT, driver).await.context("the driver does not end")??;
    Ok(number)
}

async fn with(
    rows: u64,
    ended: Acknowledgement,
) -> (u64, Result<fluxmill::broker::PublishReport, fluxmill::broker::BrokerError>) {
    (rows, ended.await)
}

/// Events of these numbers, on a hundred keys.
fn publication(numbers: std::ops::Range<u64>, random: &mut fastrand::Rng) -> Publication {
    let mut builder = BatchBuilder::default();
    for number in numbers {
        let key = format!("k-{}", random.u32(..100));
        let value = format!("{number} {}", "x".repeat(random.usize(..100)));
        let origin = Origin { slot: Slot(0), offset: i64::try_from(number).unwrap_or(0) };
        builder.append(origin, Some(key.as_bytes()), Some(value.as_bytes()), 1_700_000_000_000, std::iter::empty());
    }
    Publication::unchanged(builder.finish())
}

/// A source, and a thread that takes its batches.
struct Reading {
    stop: CancellationToken,
    bell: Arc<Bell>,
    /// Partition and number of each event as it came.
    events: Arc<Mutex<Vec<(i32, u64)>>>,
    threads: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Reading {
    fn start(connection: &KafkaConnection, topic: &str) -> anyhow::Result<Self> {
        let (tracker, bell, stop) = (Arc::new(Tracker::default()), Arc::new(Bell::default()), CancellationToken::new());
        let limits = BatchLimits { max_events: 1_000, max_bytes: 1 << 20, max_wait: Duration::ZERO };
        let lanes = Lanes::new(1, Order::Partition, limits, &tracker, &bell);
        let intake = lanes.intakes()[0].clone();
        let context = SourceContext {
            lanes,
            tracker,
            bell: bell.clone(),
            stop: stop.clone(),
            reads: CancellationToken::new(),
            commit: CommitSpec::of(Guarantee::AtLeastOnce),
            caught_up: None,
            drain_timeout: LIMIT,
        };
        let spec = KafkaSourceSpec {
            connection: "main".into(),
            topics: vec![topic.into()],
            group: topic.into(),
            instance: None,
            start: StartOffset::Earliest,
        };
        let source = KafkaSource::new(connection, &spec, "faults")?;
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = events.clone();
        #[expect(clippy::disallowed_methods, reason = "joined by `finish`, told to stop when this is dropped")]
        let source = std::thread::spawn(move || {
            let end = source.run(context)?;
            ensure!(end == SourceEnd::Drained, "the source ended as {end:?}");
            Ok(())
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        #[expect(clippy::disallowed_methods, reason = "ends with the source, joined by `finish`")]
        let taker = std::thread::spawn(move || {
            runtime.block_on(async {
                while let Some(delivery) = intake.take().await {
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    for at in 0..delivery.batch.len() {
                        let slot = delivery.batch.origin(at).slot;
                        // A partition that was lost meanwhile comes again.
                        if let Some(partition) = delivery.token.partition(slot) {
                            seen.push((partition.partition, number(delivery.batch.row(at).value)?));
                        }
                    }
                    drop(seen);
                    delivery.token.done();
                }
                Ok(())
            })
        });
        Ok(Self { stop, bell, events, threads: vec![source, taker] })
    }

    /// Waits until as many events were read as there are, and stops.
    fn finish(mut self, events: u64) -> anyhow::Result<Found> {
        let seen = |found: &Self| found.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let waited = wait_until(LIMIT, "the source to read everything", || {
            ensure!(!self.threads.iter().any(JoinHandle::is_finished), "the source has ended");
            let found = self.events.lock().unwrap_or_else(PoisonError::into_inner).len();
            // Only then is it worth to look which ones.
            Ok((found as u64 >= events && Found::new(events, &seen(&self)).lost == 0).then_some(()))
        });
        self.stop.cancel();
        self.bell.ring();
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow::anyhow!("the source panicked"))??;
        }
        // Told as lost, with the rest.
        if let Err(error) = waited {
            println!("{error:#}");
        }
        Ok(Found::new(events, &seen(&self)))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.stop.cancel();
        self.bell.ring();
    }
}
