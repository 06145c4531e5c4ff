//! Publishes: sinks put messages into a bounded queue, and one driver sends them over one connection, in order, until
//! each is acknowledged; or atomic batches of them, one at a time.

mod answer;
mod batch;
mod driver;
mod message;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::{address, failed};
use crate::broker::nats::mapping::Subject;
use crate::broker::pending::Pending;
use crate::broker::{Acknowledgement, BrokerError, BrokerErrorKind, Sink};
use crate::delivery::{Slot, TopicPartition, Tracker};
use crate::event::Publication;
use crate::spec::{ATOMIC_BATCH_MAX, NatsConnection};
use batch::{Batch, Cut, cut, take_out};
use driver::Queued;
use message::{Maker, Message, Unmade};

pub use driver::NatsDriver;

/// Messages that may wait for acknowledgements.
const WINDOW_MESSAGES: usize = 8_192;
/// Bytes that may wait for acknowledgements, in KiB. One message is the least.
const WINDOW_KIB: usize = 64 << 10;

/// Bytes of the headers that a message gets as one of an atomic batch, or when its stream is asked about it, at most.
const BATCH_HEADERS: usize = 160;

/// Messages that are handed to the driver at once.
const RUN_MESSAGES: usize = 64;

/// A publication on its way.
struct Work {
    /// Who waits for it.
    pending: Arc<Pending>,
    maker: Maker,
}

/// Messages that have their room together.
struct Run {
    work: Arc<Work>,
    _room: [OwnedSemaphorePermit; 2],
}

/// A message on its way.
struct Outgoing {
    run: Arc<Run>,
    /// Which event of the publication.
    at: u32,
    /// Until it is sent.
    message: Option<Message>,
}

impl Outgoing {
    fn pending(&self) -> &Pending {
        &self.run.work.pending
    }

    fn subject(&self) -> &str {
        self.run.work.maker.subject()
    }
}

/// Where sinks put what they publish.
enum Queue {
    /// Messages, each by itself.
    Each(mpsc::Sender<Vec<Outgoing>>),
    /// Atomic batches.
    Whole(mpsc::Sender<Batch>),
}

/// What all sinks of a producer share.
struct Shared {
    queue: Queue,
    room: [Arc<Semaphore>; 2],
    /// The largest message that the server takes, in bytes, once it is known.
    largest: Arc<OnceCell<usize>>,
    /// Why nothing more can be published, once that is so.
    broken: Arc<Mutex<Option<BrokerError>>>,
    address: String,
}

/// How errors of a subject begin.
const PUBLISH_TO: &str = "publish to ";

/// What is being done, as errors say it.
fn publishing(subject: &str, address: &str) -> String {
    format!("{PUBLISH_TO}{subject} on {address}")
}

impl Shared {
    /// Waits for room for so many messages and bytes; none when there will be none.
    async fn room(&self, messages: usize, bytes: usize) -> Option<[OwnedSemaphorePermit; 2]> {
        let permits = |count: usize, most: usize| u32::try_from(count.clamp(1, most)).unwrap_or(u32::MAX);
        let (count, kib) = (permits(messages, WINDOW_MESSAGES), permits(bytes.div_ceil(1024), WINDOW_KIB));
        let [messages, kibibytes] = self.room.clone();
        Some([messages.acquire_many_owned(count).await.ok()?, kibibytes.acquire_many_owned(kib).await.ok()?])
    }
}

/// A producer over one connection.
pub struct NatsProducer {
    shared: Arc<Shared>,
    close: CancellationToken,
    closed: CancellationToken,
}

impl NatsProducer {
    /// Sets a producer up that calls itself `client_id` at the server, with the driver that must be run for it. What is
    /// published goes in atomic batches when `atomic`, else message by message.
    pub fn new(connection: &NatsConnection, client_id: &str, atomic: bool) -> (Self, NatsDriver) {
        let (queue, queued) = if atomic {
            let (queue, batches) = mpsc::channel(WINDOW_MESSAGES);
            (Queue::Whole(queue), Queued::Whole(batches))
        } else {
            let (queue, messages) = mpsc::channel(WINDOW_MESSAGES);
            (Queue::Each(queue), Queued::Each(messages))
        };
        let room = [WINDOW_MESSAGES, WINDOW_KIB].map(|permits| Arc::new(Semaphore::new(permits)));
        let (largest, broken) = (Arc::new(OnceCell::new()), Arc::default());
        let (close, closed) = (CancellationToken::new(), CancellationToken::new());
        let shared = Arc::new(Shared {
            queue,
            room,
            largest: Arc::clone(&largest),
            broken: Arc::clone(&broken),
            address: address(connection),
        });
        let driver = NatsDriver::new(connection.clone(), client_id, queued, largest, broken, [&close, &closed]);
        (Self { shared, close, closed }, driver)
    }

    /// A sink for a subject that a stream stores; `{key}` in it stands for the event's key.
    pub fn sink(&self, subject: &str, sender: Sender) -> NatsSink {
        self.sink_of(subject, Some(sender))
    }

    /// A sink for a subject of core NATS, in which `{key}` stands for the event's key. What is acknowledged was sent,
    /// and nobody says whether it arrived. Not for atomic batches, which streams store.
    pub fn core_sink(&self, subject: &str) -> NatsSink {
        self.sink_of(subject, None)
    }

    fn sink_of(&self, subject: &str, sender: Option<Sender>) -> NatsSink {
        let (shared, subject) = (Arc::clone(&self.shared), Arc::new(Subject::new(subject)));
        NatsSink { shared, subject, sender: sender.map(Arc::new) }
    }

    /// Waits up to `timeout` until everything published is acknowledged, then closes; what was not is given up, and its
    /// acknowledgements are errors.
    pub async fn close(self, timeout: Duration) {
        let Self { shared, close, closed } = self;
        if !timeout.is_zero() {
            let all = shared.room[0].acquire_many(u32::try_from(WINDOW_MESSAGES).unwrap_or(u32::MAX));
            if tokio::time::timeout(timeout, all).await.is_err() {
                tracing::warn!(target: "fluxmill::nats", "{}: what was not acknowledged is given up", shared.address);
            }
        }
        close.cancel();
        closed.cancelled().await;
    }
}

/// Who publishes: what makes the ids of its messages, the same ones each time that an event is run.
#[derive(Debug)]
pub struct Sender {
    /// Chain and pipeline, `orders.payment`.
    pub pipeline: String,
    /// The output.
    pub output: String,
    /// Where the events of a slot come from.
    pub tracker: Arc<Tracker>,
    /// What that is.
    pub origins: Origins,
}

/// What the events come from that a pipeline publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Partitions of topics.
    Partitions,
    /// A stream, which has no partitions.
    Stream,
    /// Nothing keeps them, and their numbers begin anew each time that the pipeline does. This tells one time from the
    /// others.
    Unkept(String),
}

impl Sender {
    /// Where the events of a slot come from, as a message's id begins.
    fn place(&self, slot: Slot) -> Option<String> {
        self.tracker.origin(slot).map(|TopicPartition { topic, partition }| match &self.origins {
            Origins::Partitions => format!("{topic}:{partition}"),
            Origins::Stream => topic.to_string(),
            Origins::Unkept(life) => life.clone(),
        })
    }
}

/// Publishes to one subject.
#[derive(Clone)]
pub struct NatsSink {
    shared: Arc<Shared>,
    subject: Arc<Subject>,
    /// Without one it is core NATS.
    sender: Option<Arc<Sender>>,
}

impl NatsSink {
    /// What a failure of the producer is to this sink: that nobody stores the subject of another one has only closed it.
    fn told(&self, error: BrokerError) -> BrokerError {
        let subject = error.action.strip_prefix(PUBLISH_TO).and_then(|rest| rest.split(' ').next());
        let is_own = subject.is_none_or(|subject| self.subject.may_be(subject));
        match error.kind {
            BrokerErrorKind::UnknownTopic if !is_own => BrokerError { kind: BrokerErrorKind::Closed, ..error },
            _ => error,
        }
    }

    /// Why nothing more can be published.
    fn why_broken(&self) -> BrokerError {
        let told = self.shared.broken.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match told {
            Some(error) => self.told(error),
            None => self.refusal(BrokerErrorKind::Closed, "the producer was closed".to_owned()),
        }
    }

    fn refusal(&self, kind: BrokerErrorKind, reason: String) -> BrokerError {
        failed(kind, publishing(self.subject.template(), &self.shared.address), reason)
    }

    fn refuse(&self, work: &Work, Unmade { at, kind, reason, .. }: Unmade) {
        work.pending.refuse(at, self.refusal(kind, reason));
    }

    /// Each message goes by itself, as soon as there is room for it and the few next to it.
    async fn publish_each(&self, queue: &mpsc::Sender<Vec<Outgoing>>, work: &Arc<Work>) -> Option<()> {
        let mut next = 0;
        while next < work.maker.len() {
            let end = (next + RUN_MESSAGES).min(work.maker.len());
            let (mut messages, mut bytes) = (Vec::with_capacity(end - next), 0);
            for at in next..end {
                match work.maker.message(at) {
                    Ok(message) => {
                        bytes += message.bytes;
                        messages.push(message);
                    }
                    Err(unmade) => self.refuse(work, unmade),
                }
            }
            next = end;
            if messages.is_empty() {
                continue;
            }
            let run = Arc::new(Run { work: Arc::clone(work), _room: self.shared.room(messages.len(), bytes).await? });
            let outgoing = |message: Message| Outgoing { run: run.clone(), at: message.at, message: Some(message) };
            queue.send(messages.into_iter().map(outgoing).collect()).await.ok()?;
        }
        Some(())
    }

    /// All go together, as far as they fit into one batch.
    async fn publish_whole(&self, queue: &mpsc::Sender<Batch>, work: &Arc<Work>) -> Option<()> {
        let causes: Vec<u32> = (0..work.maker.len()).map(|at| work.maker.cause(at)).collect();
        for cut in cut(&causes, ATOMIC_BATCH_MAX) {
            let range = match cut {
                Cut::Fits(range) => range,
                Cut::TooMany(range) => {
                    let events = range.len();
                    let reason = format!(
                        "{events} events were made of one, and an atomic batch holds at most {ATOMIC_BATCH_MAX}"
                    );
                    for at in range {
                        let at = u32::try_from(at).unwrap_or(u32::MAX);
                        work.pending.refuse(at, self.refusal(BrokerErrorKind::Refused, reason.clone()));
                    }
                    continue;
                }
            };
            let (mut messages, mut refused) = (Vec::with_capacity(range.len()), BTreeSet::new());
            for at in range {
                match work.maker.message(at) {
                    Ok(message) => messages.push(message),
                    Err(unmade) => {
                        refused.insert(unmade.cause);
                        self.refuse(work, unmade);
                    }
                }
            }
            take_out(&work.pending, &mut messages, &refused);
            if messages.is_empty() {
                continue;
            }
            // Room for all of it at once: two that had half of theirs would wait for each other.
            let room = self.shared.room(messages.len(), messages.iter().map(|message| message.bytes).sum()).await?;
            let (work, target) = (Arc::clone(&work.pending), Arc::clone(&self.subject));
            queue.send(Batch { work, target, messages, _room: room }).await.ok()?;
        }
        Some(())
    }
}

impl Sink for NatsSink {
    async fn publish(&self, publication: Publication) -> Result<Acknowledgement, BrokerError> {
        // One more than there are, until all were handed over.
        let (pending, end) = Pending::new(u32::try_from(publication.len() + 1).unwrap_or(u32::MAX));
        let reserved = if matches!(self.shared.queue, Queue::Whole(_)) { BATCH_HEADERS } else { 0 };
        let largest = self.shared.largest.get().map(|largest| largest.saturating_sub(reserved));
        let maker = Maker::new(publication, &self.subject, self.sender.as_ref(), largest);
        let work = Arc::new(Work { pending, maker });
        let handed_over = match &self.shared.queue {
            Queue::Each(queue) => self.publish_each(queue, &work).await,
            Queue::Whole(queue) => self.publish_whole(queue, &work).await,
        };
        handed_over.ok_or_else(|| self.why_broken())?;
        work.pending.acknowledge(1);
        let sink = self.clone();
        Ok(Box::pin(async move {
            match end.await {
                Ok(ended) => ended.map_err(|error| sink.told(error)),
                Err(_) => Err(sink.why_broken()),
            }
        }))
    }
}

impl std::fmt::Debug for NatsProducer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsProducer").field("address", &self.shared.address).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for NatsSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsSink").field("subject", &self.subject.template()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
