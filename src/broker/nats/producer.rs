//! Publishes: sinks put messages into a bounded queue, and one driver sends them over one connection, in order, until
//! each is acknowledged.

mod driver;
mod message;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::{address, failed};
use crate::broker::pending::Pending;
use crate::broker::{Acknowledgement, BrokerError, BrokerErrorKind, Sink};
use crate::delivery::{Slot, TopicPartition, Tracker};
use crate::event::Publication;
use crate::spec::NatsConnection;
use message::Numbered;

pub use driver::NatsDriver;

/// Messages that may wait for acknowledgements.
const WINDOW_MESSAGES: usize = 8_192;
/// Bytes that may wait for acknowledgements, in KiB. One message is the least.
const WINDOW_KIB: usize = 64 << 10;

/// A message on its way.
struct Outgoing {
    work: Arc<Pending>,
    /// Which event of the publication.
    at: u32,
    subject: String,
    headers: async_nats::HeaderMap,
    payload: bytes::Bytes,
    /// Whether a stream stores it, and says so.
    is_stored: bool,
    _room: [OwnedSemaphorePermit; 2],
}

/// What all sinks of a producer share.
struct Shared {
    queue: mpsc::Sender<Outgoing>,
    room: [Arc<Semaphore>; 2],
    /// The largest message that the server takes, in bytes, once it is known.
    largest: Arc<OnceCell<usize>>,
    /// Why nothing more can be published, once that is so.
    broken: Arc<Mutex<Option<BrokerError>>>,
    address: String,
}

impl Shared {
    fn why_broken(&self, subject: &str) -> BrokerError {
        let told = self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone();
        told.unwrap_or_else(|| {
            let action = format!("publish to {subject} on {}", self.address);
            failed(BrokerErrorKind::Closed, action, "the producer was closed")
        })
    }
}

/// A producer over one connection.
pub struct NatsProducer {
    shared: Arc<Shared>,
    close: CancellationToken,
    closed: CancellationToken,
}

impl NatsProducer {
    /// Sets a producer up that calls itself `client_id` at the server, with the driver that must be run for it.
    pub fn new(connection: &NatsConnection, client_id: &str) -> (Self, NatsDriver) {
        let (queue, messages) = mpsc::channel(WINDOW_MESSAGES);
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
        let driver = NatsDriver::new(connection.clone(), client_id, messages, largest, broken, [&close, &closed]);
        (Self { shared, close, closed }, driver)
    }

    /// A sink for a subject that a stream stores; `{key}` in it stands for the event's key.
    pub fn sink(&self, subject: &str, sender: Sender) -> NatsSink {
        NatsSink { shared: Arc::clone(&self.shared), subject: subject.into(), sender: Some(Arc::new(sender)) }
    }

    /// A sink for a subject of core NATS, in which `{key}` stands for the event's key. What is acknowledged was sent,
    /// and nobody says whether it arrived.
    pub fn core_sink(&self, subject: &str) -> NatsSink {
        NatsSink { shared: Arc::clone(&self.shared), subject: subject.into(), sender: None }
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

/// Publishes to one subject.
#[derive(Clone)]
pub struct NatsSink {
    shared: Arc<Shared>,
    subject: Arc<str>,
    /// Without one it is core NATS.
    sender: Option<Arc<Sender>>,
}

impl NatsSink {
    /// The id of the event at `at`.
    fn id(
        &self,
        numbered: &Numbered<'_>,
        publication: &Publication,
        at: usize,
        places: &mut BTreeMap<Slot, Option<String>>,
    ) -> Option<String> {
        let sender = self.sender.as_deref()?;
        let origin = publication.input.origin(publication.cause(at) as usize);
        let place = places.entry(origin.slot).or_insert_with(|| sender.place(origin.slot));
        place.as_deref().map(|place| numbered.id(place, origin.offset, at, sender))
    }
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

impl Sink for NatsSink {
    async fn publish(&self, publication: Publication) -> Result<Acknowledgement, BrokerError> {
        // One more than there are, until all were handed over.
        let (work, end) = Pending::new(u32::try_from(publication.len() + 1).unwrap_or(u32::MAX));
        let broken = || self.shared.why_broken(&self.subject);
        let largest = self.shared.largest.get().copied();
        let numbered = Numbered::of(&publication);
        let mut places = BTreeMap::new();
        for at in 0..publication.len() {
            let id = self.id(&numbered, &publication, at, &mut places);
            let number = u32::try_from(at).unwrap_or(u32::MAX);
            let made = message::make(&self.subject, &publication.event(at), id, largest);
            let (subject, headers, payload, bytes) = match made {
                Ok(made) => made,
                Err((kind, reason)) => {
                    let action = format!("publish to {} on {}", self.subject, self.shared.address);
                    work.refuse(number, failed(kind, action, reason));
                    continue;
                }
            };
            let kib = u32::try_from(bytes.div_ceil(1024).clamp(1, WINDOW_KIB)).unwrap_or(u32::MAX);
            let [messages, kibibytes] = &self.shared.room;
            let (Ok(one), Ok(size)) =
                (messages.clone().acquire_owned().await, kibibytes.clone().acquire_many_owned(kib).await)
            else {
                return Err(broken());
            };
            let room = [one, size];
            let (work, is_stored) = (Arc::clone(&work), self.sender.is_some());
            let outgoing = Outgoing { work, at: number, subject, headers, payload, is_stored, _room: room };
            if self.shared.queue.send(outgoing).await.is_err() {
                return Err(broken());
            }
        }
        work.acknowledge(1);
        let (shared, subject) = (Arc::clone(&self.shared), Arc::clone(&self.subject));
        Ok(Box::pin(async move { end.await.unwrap_or_else(|_| Err(shared.why_broken(&subject))) }))
    }
}

impl std::fmt::Debug for NatsProducer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsProducer").field("address", &self.shared.address).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for NatsSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsSink").field("subject", &self.subject).finish_non_exhaustive()
    }
}
