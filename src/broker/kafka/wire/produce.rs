//! The producer: idempotent, acks=all, as many record batches on their way as the broker can recognise.
//!
//! Whoever publishes encodes its events into the open batches of their partitions ([`batches`]) and waits for one
//! acknowledgement. The [`Driver`] is the only one that talks to brokers: it seals and sends batches as soon as a
//! broker is free, so that batches are small and fast when idle and grow under load. What an answer means is decided
//! by [`queue`], which is pure.

mod batches;
mod coordinator;
mod driver;
mod frame;
mod partitioner;
mod queue;
mod spares;
mod transaction;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::batches::Batches;
use self::transaction::Transaction;
use super::connection::Options;
use crate::broker::pending::Pending;
use crate::broker::{Acknowledgement, BrokerError, BrokerErrorKind, PublishReport, Sink};
use crate::event::Publication;
use crate::spec::{ColumnarSettings, KafkaConnection};

pub use self::driver::Driver;
pub(in crate::broker) use self::partitioner::partition_of_key;
pub use self::transaction::{TransactionError, TransactionErrorKind, TransactionSpec, TransactionalProducer};

/// What is known of a topic that is published to.
#[derive(Debug)]
enum State {
    /// Nothing yet; the driver asks.
    Unknown,
    /// Its batches.
    Known(Batches),
    /// Nothing more can be published to it.
    Failed(BrokerError),
}

/// A topic that is published to.
#[derive(Debug)]
struct Topic {
    name: Arc<str>,
    state: Mutex<State>,
}

impl Topic {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody waits for the brokers to know it: when it is missing, only those whose events are on their way.
    fn is_wanted(&self, is_missing: bool) -> bool {
        match &*self.lock() {
            State::Unknown => true,
            State::Known(batches) => is_missing && !batches.is_empty(),
            State::Failed(_) => false,
        }
    }

    /// Whether events of it have not ended.
    fn holds_events(&self) -> bool {
        matches!(&*self.lock(), State::Known(batches) if !batches.is_empty())
    }

    /// Nothing more can be published to it; nothing that is on its way is known to arrive. Returns the bytes that are
    /// free again.
    #[must_use]
    fn fail(&self, error: &BrokerError) -> usize {
        let mut state = self.lock();
        let free = match &mut *state {
            State::Known(batches) => batches.partitions.iter_mut().map(|partition| partition.fail(error)).sum(),
            State::Unknown => 0,
            State::Failed(_) => return 0,
        };
        *state = State::Failed(error.clone());
        free
    }
}

/// What publishers and the driver share.
#[derive(Debug)]
struct Shared {
    settings: ColumnarSettings,
    address: String,
    /// For a transactional producer.
    transaction: Option<Arc<Transaction>>,
    topics: RwLock<Vec<Arc<Topic>>>,
    /// Why nothing more can be published at all.
    dead: Mutex<Option<BrokerError>>,
    /// Bytes of events that have not ended.
    buffered: AtomicUsize,
    /// Tells publishers: there is room, or a topic is known, or all is over.
    room: Notify,
    /// Tells the driver: there is something to do.
    work: Notify,
}

impl Shared {
    fn dead(&self) -> Option<BrokerError> {
        self.dead.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn topics(&self) -> Vec<Arc<Topic>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nothing more can be published, and nothing that is on its way can be known to have arrived.
    fn fail_all(&self, error: &BrokerError) {
        // First, so that no topic is added that nobody fails.
        self.dead.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.clone());
        if let Some(transaction) = &self.transaction {
            transaction.finish(error);
        }
        for topic in self.topics() {
            self.fail(&topic, error);
        }
    }

    /// Nothing more can be published to this topic.
    fn fail(&self, topic: &Topic, error: &BrokerError) {
        self.release(topic.fail(error));
    }

    /// Whether events may be published now, if that is a question of transactions.
    fn publishable(&self) -> Result<(), BrokerError> {
        self.transaction.as_ref().map_or(Ok(()), |transaction| transaction.lock().publishable())
    }

    fn release(&self, bytes: usize) {
        self.buffered.fetch_sub(bytes, Relaxed);
        self.room.notify_waiters();
    }
}

/// One idempotent producer: acks=all, murmur2 partitioning, order kept within each partition.
#[derive(Debug)]
pub struct ColumnarProducer {
    shared: Arc<Shared>,
    stop: DropGuard,
}

impl ColumnarProducer {
    /// Sets a producer up, and the driver that must be run for it to do anything. Connects when it is run.
    ///
    /// # Errors
    /// When a setting is not accepted, or a certificate cannot be read.
    pub fn new(
        connection: &KafkaConnection,
        settings: &ColumnarSettings,
        client_id: &str,
    ) -> Result<(Self, Driver), BrokerError> {
        Self::set_up(connection, settings, client_id, None)
    }

    fn set_up(
        connection: &KafkaConnection,
        settings: &ColumnarSettings,
        client_id: &str,
        transaction: Option<Arc<Transaction>>,
    ) -> Result<(Self, Driver), BrokerError> {
        let options = Options::new(connection, client_id)?;
        let shared = Arc::new(Shared {
            settings: settings.clone(),
            address: crate::broker::kafka::address(connection),
            transaction,
            topics: RwLock::default(),
            dead: Mutex::default(),
            buffered: AtomicUsize::new(0),
            room: Notify::new(),
            work: Notify::new(),
        });
        let stop = CancellationToken::new();
        let driver = Driver::new(connection, shared.clone(), options, stop.clone(), client_id);
        Ok((Self { shared, stop: stop.drop_guard() }, driver))
    }

    /// A sink for a topic. Many may share one topic; each is cheap to clone.
    pub fn sink(&self, topic: &str) -> ColumnarSink {
        let mut topics = self.shared.topics.write().unwrap_or_else(PoisonError::into_inner);
        let known = topics.iter().find(|known| &*known.name == topic).cloned();
        let topic = known.unwrap_or_else(|| {
            let state = match self.shared.dead() {
                Some(error) => State::Failed(error),
                None => State::Unknown,
            };
            let new = Arc::new(Topic { name: topic.into(), state: Mutex::new(state) });
            topics.push(new.clone());
            new
        });
        drop(topics);
        // Who leads its partitions is asked for before the first event comes.
        self.shared.work.notify_one();
        ColumnarSink { shared: self.shared.clone(), topic }
    }

    /// Waits up to `timeout` until everything published is acknowledged, then closes; what was not is given up with
    /// a warning, and its acknowledgements are errors. Sinks that are left publish nothing any more.
    pub async fn close(self, timeout: Duration) {
        let done = async {
            loop {
                let room = self.shared.room.notified();
                tokio::pin!(room);
                room.as_mut().enable();
                if self.shared.buffered.load(Relaxed) == 0 || self.shared.dead().is_some() {
                    return;
                }
                room.await;
            }
        };
        let in_time = tokio::time::timeout(timeout, done).await.is_ok();
        let address = &self.shared.address;
        if !in_time {
            let bytes = self.shared.buffered.load(Relaxed);
            tracing::warn!(target: "fluxmill::kafka", "{bytes} bytes of events were not acknowledged by {address} at the end");
        }
        self.shared.fail_all(&closed(address));
        drop(self.stop);
    }
}

fn closed(address: &str) -> BrokerError {
    BrokerError {
        kind: BrokerErrorKind::Closed,
        action: format!("publish to {address}"),
        reason: "the producer was closed".into(),
    }
}

/// Publishes to one topic.
#[derive(Clone, Debug)]
pub struct ColumnarSink {
    shared: Arc<Shared>,
    topic: Arc<Topic>,
}

impl ColumnarSink {
    /// Appends the events to their batches; false when there is no room yet, or the topic is not known yet.
    fn append(&self, publication: &Publication, pending: &Arc<Pending>) -> Result<bool, BrokerError> {
        let mut state = self.topic.lock();
        if !matches!(*state, State::Failed(_)) {
            // Under the lock: a transaction that is being committed waits for what is in its batches by then.
            self.shared.publishable()?;
        }
        match &mut *state {
            // What waits may pass the bound by one publication for each lane, so that no publication is too large.
            State::Known(_) if self.shared.buffered.load(Relaxed) >= self.shared.settings.buffer_bytes => Ok(false),
            State::Unknown => Ok(false),
            State::Failed(error) => Err(error.clone()),
            State::Known(batches) => {
                let grown = batches.append(publication, pending, Instant::now());
                self.shared.buffered.fetch_add(grown, Relaxed);
                Ok(true)
            }
        }
    }
}

impl Sink for ColumnarSink {
    async fn publish(&self, publication: Publication) -> Result<Acknowledgement, BrokerError> {
        if publication.is_empty() {
            return Ok(Box::pin(std::future::ready(Ok(PublishReport::default()))));
        }
        let rows = u32::try_from(publication.len()).map_err(|_| BrokerError {
            kind: BrokerErrorKind::Fatal,
            action: format!("publish to topic {}", self.topic.name),
            reason: "more than 2^32 events at once".into(),
        })?;
        let (pending, ended) = Pending::new(rows);
        loop {
            // Before the attempt: room that comes right after it must not be missed.
            let room = self.shared.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.append(&publication, &pending)? {
                break;
            }
            room.await;
        }
        self.shared.work.notify_one();
        let address = self.shared.clone();
        Ok(Box::pin(async move { ended.await.unwrap_or_else(|_| Err(closed(&address.address))) }))
    }
}

#[cfg(test)]
mod tests;
