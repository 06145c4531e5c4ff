//! Publishes: events are stored at once and acknowledged at once, unless the broker is away, or was told to be late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{MemoryEvent, Shared, State, failed};
use crate::broker::pending::Pending;
use crate::broker::{Acknowledgement, BrokerError, BrokerErrorKind, Sink};
use crate::event::Publication;

/// Events of one producer that may wait for acknowledgements; one publication is the least.
const WINDOW_EVENTS: u64 = 100_000;

/// What all sinks of a producer share.
#[derive(Debug)]
struct Producer {
    id: u64,
    closed: AtomicBool,
    shared: Arc<Shared>,
}

/// A publication whose events wait to be stored, or to be acknowledged.
#[derive(Debug)]
pub(super) struct Waiting {
    producer: u64,
    topic: Arc<str>,
    publication: Publication,
    work: Arc<Pending>,
}

/// A producer.
#[derive(Debug)]
pub struct MemoryProducer(Arc<Producer>);

impl MemoryProducer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        // Tells producers apart, and nothing else.
        let id = fastrand::u64(..);
        Self(Arc::new(Producer { id, closed: AtomicBool::new(false), shared }))
    }

    /// A sink for a topic.
    pub fn sink(&self, topic: &str) -> MemorySink {
        MemorySink { producer: self.0.clone(), topic: topic.into() }
    }

    /// Waits up to `timeout` until everything published is acknowledged, then closes; what was not is given up, and its
    /// acknowledgements are errors.
    pub async fn close(self, timeout: Duration) {
        let Self(producer) = self;
        let mut changes = producer.shared.changes.subscribe();
        let all = async {
            // The sender lives in what the producer holds.
            while producer.shared.lock().unacknowledged(producer.id) > 0 && changes.changed().await.is_ok() {}
        };
        if tokio::time::timeout(timeout, all).await.is_err() {
            tracing::warn!(target: "fluxmill::memory", "what was not acknowledged is given up");
        }
        producer.closed.store(true, Ordering::Release);
        let mut state = producer.shared.lock();
        let State { outgoing, unacknowledged, .. } = &mut *state;
        for queue in [outgoing, unacknowledged] {
            queue.retain(|waiting| {
                let stays = waiting.producer != producer.id;
                if !stays {
                    waiting.work.fail(&closed(&waiting.topic));
                }
                stays
            });
        }
        drop(state);
        producer.shared.changed();
    }
}

fn closed(topic: &str) -> BrokerError {
    failed(BrokerErrorKind::Closed, action(topic), "the producer was closed")
}

fn action(topic: &str) -> String {
    format!("publish to topic {topic}")
}

/// Publishes to one topic.
#[derive(Clone, Debug)]
pub struct MemorySink {
    producer: Arc<Producer>,
    topic: Arc<str>,
}

impl Sink for MemorySink {
    async fn publish(&self, publication: Publication) -> Result<Acknowledgement, BrokerError> {
        let Producer { id, closed: is_closed, shared } = &*self.producer;
        let (work, end) = Pending::new(u32::try_from(publication.len() + 1).unwrap_or(u32::MAX));
        let events = publication.len() as u64;
        let waiting = Waiting { producer: *id, topic: self.topic.clone(), publication, work };
        let mut changes = shared.changes.subscribe();
        loop {
            {
                let mut state = shared.lock();
                if is_closed.load(Ordering::Acquire) {
                    return Err(closed(&self.topic));
                }
                let before = state.unacknowledged(*id);
                if before == 0 || before + events <= WINDOW_EVENTS {
                    state.outgoing.push_back(waiting);
                    state.take_in();
                    break;
                }
            }
            // The sender lives in what the producer holds.
            let _ = changes.changed().await;
        }
        shared.changed();
        let topic = self.topic.clone();
        Ok(Box::pin(async move { end.await.unwrap_or_else(|_| Err(closed(&topic))) }))
    }
}

impl State {
    /// Events of a producer that are on their way or not acknowledged.
    fn unacknowledged(&self, producer: u64) -> u64 {
        let all = self.outgoing.iter().chain(&self.unacknowledged);
        // An empty publication waits, too.
        all.filter(|waiting| waiting.producer == producer).map(|waiting| waiting.publication.len().max(1) as u64).sum()
    }

    /// Stores what is on its way, in order, unless the broker is away.
    pub(super) fn take_in(&mut self) {
        while !self.away
            && let Some(waiting) = self.outgoing.pop_front()
        {
            match self.take(&waiting) {
                Ok(()) if self.holds_acknowledgements => self.unacknowledged.push_back(waiting),
                Ok(()) => waiting.acknowledge(),
                Err(error) => waiting.work.fail(&error),
            }
        }
    }

    /// Stores a publication, but for the events that are too large.
    fn take(&mut self, waiting: &Waiting) -> Result<(), BrokerError> {
        let Waiting { topic, publication, work, .. } = waiting;
        self.check(topic, || action(topic))?;
        if let Some(kind) = self.failing.pop_front() {
            return Err(failed(kind, action(topic), "the memory broker was told to fail"));
        }
        let (mut taken, mut refused) = (Vec::new(), Vec::new());
        for (at, event) in (0..).zip(publication.events()) {
            let event = MemoryEvent::from(event);
            match event.bytes() {
                bytes if bytes > self.limits.event_bytes => refused.push((at, bytes)),
                _ => taken.push(Arc::new(event)),
            }
        }
        let stored = u32::try_from(taken.len()).unwrap_or(u32::MAX);
        self.store(topic, taken)?;
        for (at, bytes) in refused {
            let reason = format!("{bytes} bytes, and {} is the most", self.limits.event_bytes);
            work.refuse(at, failed(BrokerErrorKind::TooLarge, action(topic), reason));
        }
        // All but one, which stands for the publication: it is there also when that is empty.
        work.acknowledge(stored);
        Ok(())
    }
}

impl Waiting {
    /// All of it is safe.
    pub(super) fn acknowledge(&self) {
        self.work.acknowledge(1);
    }
}
