//! What a case works with: it is the lane, and decides when events end.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use fluxmill::broker::{
    Acknowledgement, AnyProducer, AnySink, BrokerError, PublishReport, Sink as _, Source as _, SourceContext, SourceEnd,
};
use fluxmill::delivery::{Slot, Tracker};
use fluxmill::event::{BatchBuilder, EventBatch, Origin, Publication};
use fluxmill::intake::{Bell, Delivery, Intake, Lanes};
use fluxmill::spec::{CommitSpec, Guarantee};
use futures_util::FutureExt as _;
use futures_util::future::select_all;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::suite::Case;
use crate::support::wait::wait_until;
use crate::world::{Event, LIMIT, Reader, World, number, numbers};

/// How long a source may take to end when a case has failed.
const GIVE_UP: Duration = Duration::from_secs(10);
/// Events that are fed in one go.
const PORTION: u64 = 10_000;

/// A broker, and what runs its clients.
pub(crate) struct Stage<'a> {
    pub(crate) case: &'a Case,
    pub(crate) world: Box<dyn World>,
    runtime: Arc<Runtime>,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(case: &'a Case, world: Box<dyn World>) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        Ok(Self { case, world, runtime: Arc::new(runtime) })
    }

    pub(crate) fn place(&self, name: &str, partitions: u16) -> anyhow::Result<String> {
        self.world.place(name, partitions).with_context(|| format!("make {name}"))
    }

    /// Puts numbered events of about so many bytes there.
    pub(crate) fn feed(&self, place: &str, numbers: std::ops::Range<u64>, bytes: usize) -> anyhow::Result<()> {
        let mut first = numbers.start;
        while first < numbers.end {
            let next = (first + PORTION).min(numbers.end);
            let events: Vec<Event> = (first..next).map(|number| Event::numbered(number, bytes)).collect();
            self.world.feed(place, &events).context("feed")?;
            first = next;
        }
        Ok(())
    }

    /// Starts a source on a thread of its own.
    pub(crate) fn read(&self, place: &str, reader: &Reader) -> anyhow::Result<Reading> {
        let source = self.world.source(place, reader)?;
        let (tracker, bell) = (Arc::new(Tracker::default()), Arc::new(Bell::default()));
        let lanes = Lanes::new(reader.lanes, reader.order, reader.limits, &tracker, &bell);
        let (stop, caught_up) = (CancellationToken::new(), CancellationToken::new());
        caught_up.cancel();
        let context = SourceContext {
            lanes: lanes.clone(),
            tracker: tracker.clone(),
            bell: bell.clone(),
            stop: stop.clone(),
            reads: CancellationToken::new(),
            commit: CommitSpec::of(Guarantee::AtLeastOnce),
            caught_up: reader.until_caught_up.then_some(caught_up),
            drain_timeout: reader.drain,
        };
        let (ended, end) = mpsc::sync_channel(1);
        std::thread::spawn(move || ended.send(source.run(context)));
        let reading = Reading { lanes, tracker, bell, stop, end, runtime: self.runtime.clone() };
        self.world.started(place)?;
        Ok(reading)
    }

    /// What publishes to a place the events that this source gives, or others.
    pub(crate) fn publisher(&self, place: &str, reading: Option<&Reading>) -> anyhow::Result<Publisher> {
        let (producer, driver) = self.world.producer(place)?;
        let tracker = reading.map_or_else(Arc::default, |reading| reading.tracker.clone());
        let sink = self.world.sink(&producer, place, &tracker);
        let driver = driver.map(|driver| self.runtime.spawn(driver.run()));
        Ok(Publisher { producer: Some(producer), driver, sink, runtime: self.runtime.clone() })
    }

    /// Runs something beside the case.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }

    /// Runs something, for so long at most.
    pub(crate) fn block_on<T>(&self, what: &str, work: impl Future<Output = T>) -> anyhow::Result<T> {
        self.runtime.block_on(async { tokio::time::timeout(LIMIT, work).await }).with_context(|| what.to_owned())
    }

    /// Each of the events 0, 1, 2, ... is stored once, and those of one key in their order.
    pub(crate) fn ensure_stored_once(&self, place: &str, events: u64) -> anyhow::Result<()> {
        let mut seen = Seen::default();
        let mut last: BTreeMap<(i32, Option<Vec<u8>>), u64> = BTreeMap::new();
        for stored in self.world.stored(place)? {
            let number = number(stored.value.as_deref()).with_context(|| format!("{stored:?}"))?;
            seen.add(number);
            let before = last.insert((stored.partition, stored.key), number);
            ensure!(before.is_none_or(|before| before < number), "{number} is stored behind {before:?}");
        }
        seen.ensure_once(events).with_context(|| format!("what is stored in {place}"))
    }

    /// So many events are confirmed, in all partitions together, where the broker knows.
    pub(crate) fn ensure_confirmed(&self, place: &str, reader: &Reader, events: u64) -> anyhow::Result<()> {
        if !self.world.confirms() {
            return Ok(());
        }
        let confirmed = self.world.confirmed(place, reader)?;
        let sum: u64 = confirmed.values().sum();
        ensure!(sum == events, "{sum} events are confirmed, not {events}: {confirmed:?}");
        Ok(())
    }
}

/// A batch of these events, for a sink.
pub(crate) fn batch(events: &[Event]) -> EventBatch {
    let mut builder = BatchBuilder::default();
    for (at, event) in events.iter().enumerate() {
        let origin = Origin { slot: Slot(0), offset: i64::try_from(at).unwrap_or(i64::MAX) };
        let headers = event.headers.iter().map(|(name, value)| (name.as_slice(), value.as_deref()));
        builder.append(origin, event.key.as_deref(), event.value.as_deref(), event.timestamp, headers);
    }
    builder.finish()
}

/// How often each event was seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    times: BTreeMap<u64, u32>,
    all: u64,
}

impl Seen {
    pub(crate) fn add(&mut self, number: u64) {
        *self.times.entry(number).or_default() += 1;
        self.all += 1;
    }

    /// Notes the events of a batch.
    pub(crate) fn take(&mut self, delivery: &Delivery) {
        numbers(delivery).into_iter().for_each(|number| self.add(number));
    }

    /// Notes what another has seen.
    pub(crate) fn join(&mut self, other: &Self) {
        for (number, times) in &other.times {
            (0..*times).for_each(|_| self.add(*number));
        }
    }

    /// How many different ones.
    pub(crate) fn different(&self) -> u64 {
        self.times.len() as u64
    }

    /// How many, each time counted.
    pub(crate) fn all(&self) -> u64 {
        self.all
    }

    /// Of 0, 1, 2, ... each was seen at least once.
    pub(crate) fn ensure_complete(&self, events: u64) -> anyhow::Result<()> {
        let lost: Vec<u64> = (0..events).filter(|number| !self.times.contains_key(number)).collect();
        ensure!(lost.is_empty(), "{} events are lost, the first is {}", lost.len(), lost[0]);
        ensure!(self.different() == events, "{} events instead of {events}", self.different());
        Ok(())
    }

    /// Of 0, 1, 2, ... each was seen once.
    pub(crate) fn ensure_once(&self, events: u64) -> anyhow::Result<()> {
        self.ensure_complete(events)?;
        let doubled: Vec<_> = self.times.iter().filter(|(_, times)| **times > 1).collect();
        ensure!(doubled.is_empty(), "{} events came more than once, the first is {:?}", doubled.len(), doubled[0]);
        Ok(())
    }
}

/// A source at work.
pub(crate) struct Reading {
    lanes: Lanes,
    pub(crate) tracker: Arc<Tracker>,
    bell: Arc<Bell>,
    stop: CancellationToken,
    end: mpsc::Receiver<Result<SourceEnd, BrokerError>>,
    runtime: Arc<Runtime>,
}

impl Reading {
    pub(crate) fn intakes(&self) -> &[Arc<Intake>] {
        self.lanes.intakes()
    }

    /// The next batch of any lane; none when the source takes no more.
    pub(crate) fn next(&self) -> anyhow::Result<Option<Delivery>> {
        let any = async {
            let mut open: Vec<&Arc<Intake>> = self.intakes().iter().collect();
            while !open.is_empty() {
                let (taken, at, _) = select_all(open.iter().map(|intake| intake.take().boxed())).await;
                match taken {
                    Some(delivery) => return Some(delivery),
                    None => open.swap_remove(at),
                };
            }
            None
        };
        let next = self.runtime.block_on(async { tokio::time::timeout(LIMIT, any).await });
        next.context("no event came in time")
    }

    /// The next batch of a source that must not end.
    pub(crate) fn take(&self) -> anyhow::Result<Delivery> {
        match self.next()? {
            Some(delivery) => Ok(delivery),
            None => bail!("the source has ended: {:?}", self.end.recv_timeout(LIMIT)),
        }
    }

    /// Takes and ends batches until so many different events were seen.
    pub(crate) fn take_until(&self, seen: &mut Seen, events: u64) -> anyhow::Result<()> {
        while seen.different() < events {
            let delivery = self.take()?;
            seen.take(&delivery);
            delivery.token.done();
        }
        Ok(())
    }

    /// Whether there is a batch now; it is not ended.
    pub(crate) fn ready(&self) -> Option<Delivery> {
        let _runtime = self.runtime.enter();
        self.intakes().iter().find_map(|intake| intake.take().now_or_never().flatten())
    }

    /// No more events are to be taken.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
        self.bell.ring();
    }

    /// Whether it has not ended within so long.
    pub(crate) fn goes_on(&self, time: Duration) -> bool {
        matches!(self.end.recv_timeout(time), Err(mpsc::RecvTimeoutError::Timeout))
    }

    /// How it ends; what is still in its lanes stays there.
    pub(crate) fn end(&self) -> anyhow::Result<Result<SourceEnd, BrokerError>> {
        self.end.recv_timeout(LIMIT).context("the source does not end")
    }

    /// Stops, ends what is in the lanes, and waits for the end, which must be an orderly one.
    pub(crate) fn finish(self, seen: &mut Seen) -> anyhow::Result<()> {
        self.stop();
        self.catch_up(seen)
    }

    /// As [`finish`](Self::finish), for a source that ends by itself.
    pub(crate) fn catch_up(self, seen: &mut Seen) -> anyhow::Result<()> {
        while let Some(delivery) = self.next()? {
            seen.take(&delivery);
            delivery.token.done();
        }
        let end = self.end()??;
        ensure!(end == SourceEnd::Drained, "it ended as {end:?}");
        Ok(())
    }

    /// Stops with something in flight that does not end. It is lost where the broker knows nothing of confirmations.
    pub(crate) fn give_up(self, confirms: bool) -> anyhow::Result<()> {
        self.stop();
        let end = self.end()??;
        let wanted = if confirms { SourceEnd::DrainTimedOut } else { SourceEnd::Lost };
        ensure!(end == wanted, "it ended as {end:?} with events in flight");
        Ok(())
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        // It must not outlive its broker, also when the case has failed.
        self.stop();
        let _runtime = self.runtime.enter();
        for intake in self.intakes() {
            while intake.take().now_or_never().flatten().is_some() {}
        }
        let _ = self.end.recv_timeout(GIVE_UP);
    }
}

/// A producer at work, and its sink.
pub(crate) struct Publisher {
    producer: Option<AnyProducer>,
    driver: Option<JoinHandle<Result<(), BrokerError>>>,
    sink: AnySink,
    runtime: Arc<Runtime>,
}

impl Publisher {
    /// Hands events to the client; the acknowledgement is still to be waited for.
    pub(crate) fn begin(&self, publication: Publication) -> Result<Acknowledgement, BrokerError> {
        let publish = self.sink.publish(publication);
        self.runtime.block_on(async { tokio::time::timeout(LIMIT, publish).await }).unwrap_or_else(|_| Err(late()))
    }

    /// Waits for an acknowledgement.
    pub(crate) fn end(&self, acknowledgement: Acknowledgement) -> Result<PublishReport, BrokerError> {
        let end = self.runtime.block_on(async { tokio::time::timeout(LIMIT, acknowledgement).await });
        end.unwrap_or_else(|_| Err(late()))
    }

    /// Publishes and waits until it is acknowledged or refused.
    pub(crate) fn publish(&self, publication: Publication) -> Result<PublishReport, BrokerError> {
        self.end(self.begin(publication)?)
    }

    /// A sink for a task of its own.
    pub(crate) fn sink(&self) -> AnySink {
        self.sink.clone()
    }

    /// Publishes a batch as it is, and ends it when all of it is acknowledged.
    pub(crate) fn pass_on(&self, delivery: Delivery) -> anyhow::Result<()> {
        let report = self.publish(Publication::unchanged(delivery.batch))?;
        ensure!(report.refused.is_empty(), "refused: {:?}", report.refused);
        delivery.token.done();
        Ok(())
    }
}

fn late() -> BrokerError {
    use fluxmill::broker::BrokerErrorKind;
    BrokerError { kind: BrokerErrorKind::Fatal, action: "publish".into(), reason: format!("not within {LIMIT:?}") }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        if let Some(producer) = self.producer.take() {
            self.runtime.block_on(producer.close(Duration::ZERO));
        }
        if let Some(driver) = self.driver.take() {
            let _ = self.runtime.block_on(async { tokio::time::timeout(GIVE_UP, driver).await });
        }
    }
}

/// Waits until the broker says that so many events are confirmed.
pub(crate) fn wait_for_confirmed(stage: &Stage<'_>, place: &str, reader: &Reader, events: u64) -> anyhow::Result<()> {
    wait_until(LIMIT, &format!("{events} events to be confirmed"), || {
        let confirmed: u64 = stage.world.confirmed(place, reader)?.values().sum();
        Ok((confirmed == events).then_some(()))
    })
}
