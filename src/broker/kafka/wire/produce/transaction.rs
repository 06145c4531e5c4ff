//! Transactions (KIP-98, KIP-360, KIP-447): what is published and the offsets of what was read become visible
//! together, or not at all.
//!
//! [`state`] decides, and is pure; [`class`] is its table of errors. The driver asks what `state` wants asked (see
//! `coordinator`), lets a partition's first batch go when the partition has joined, and drops what waits when a
//! transaction has failed. Spoken is the first version of the protocol, which every broker since 2.5 speaks: Produce
//! up to 9, AddPartitionsToTxn and EndTxn up to 3.

pub(super) mod class;
pub(super) mod state;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use self::state::{Machine, Operation, State};
use super::{ColumnarProducer, ColumnarSink, Driver, Shared};
use crate::broker::BrokerError;
use crate::broker::kafka::group::GroupMetadata;
use crate::delivery::TopicPartition;
use crate::spec::{ColumnarSettings, KafkaConnection};

/// What a producer's transactions are called, and how long one may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionSpec {
    /// `transactional.id`: whoever comes later with the same id fences those who were before.
    pub id: String,
    /// `transaction.timeout.ms`: the broker aborts a transaction that is older, and fences its producer.
    pub timeout: Duration,
}

/// What an error of a transaction means for the one who called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionErrorKind {
    /// The call makes no sense where the producer is; nothing has changed.
    Order,
    /// The offsets that were sent were not taken: the group is between two generations, or in a later one than the
    /// metadata says. The transaction is as it was. If the member still has its partitions, send them again with its
    /// metadata of now; or abort.
    Generation,
    /// The transaction has failed: abort it, go back to where it began, and try again.
    Abortable,
    /// Another producer has the transactional id, or the transaction grew older than its timeout. This producer is
    /// finished.
    Fenced,
    /// This producer is finished.
    Fatal,
}

/// An error of a transaction.
#[derive(Clone, Debug)]
pub struct TransactionError {
    /// What the caller branches on.
    pub kind: TransactionErrorKind,
    /// What was being done, and why it failed.
    pub error: BrokerError,
}

impl fmt::Display for TransactionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for TransactionError {}

/// Where a group goes on when the transaction is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offsets {
    pub(super) group: GroupMetadata,
    pub(super) next: Vec<(TopicPartition, i64)>,
}

/// What handle, sinks and driver share.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) spec: TransactionSpec,
    machine: Mutex<Machine>,
    /// Tells the handle that the machine has moved.
    changed: Notify,
}

impl Transaction {
    pub(super) fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine has moved.
    pub(super) fn moved(&self) {
        self.changed.notify_one();
    }

    /// The producer is finished.
    pub(super) fn finish(&self, error: &BrokerError) {
        self.lock().finish(TransactionErrorKind::Fatal, error.clone());
        self.moved();
    }
}

/// A producer whose events are published in transactions: [`begin`](Self::begin), publish,
/// [`send_offsets`](Self::send_offsets), [`commit`](Self::commit).
///
/// A call that is not waited for to its end goes on; the same call again waits for it. After an error of kind
/// [`Abortable`](TransactionErrorKind::Abortable), [`abort`](Self::abort) is the only call that helps; after
/// [`Fenced`](TransactionErrorKind::Fenced) and [`Fatal`](TransactionErrorKind::Fatal), only a new producer.
#[derive(Debug)]
pub struct TransactionalProducer {
    producer: ColumnarProducer,
    transaction: Arc<Transaction>,
}

impl TransactionalProducer {
    /// Sets a producer up, and the driver that must be run for it to do anything. Connects when it is run.
    ///
    /// # Errors
    /// When a setting is not accepted, or a certificate cannot be read.
    pub fn new(
        connection: &KafkaConnection,
        settings: &ColumnarSettings,
        client_id: &str,
        spec: TransactionSpec,
    ) -> Result<(Self, Driver), BrokerError> {
        let machine = Mutex::new(Machine::new(&spec.id));
        let transaction = Arc::new(Transaction { spec, machine, changed: Notify::new() });
        let (producer, driver) = ColumnarProducer::set_up(connection, settings, client_id, Some(transaction.clone()))?;
        Ok((Self { producer, transaction }, driver))
    }

    /// A sink for a topic. What it publishes belongs to the transaction that is open; without one, publishing fails.
    pub fn sink(&self, topic: &str) -> ColumnarSink {
        self.producer.sink(topic)
    }

    /// Takes the transactional id over: fences whoever had it, ends their transaction, and waits until that is done.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn init(&mut self) -> Result<(), TransactionError> {
        self.operate(Operation::Init).await
    }

    /// Opens a transaction. Asks nobody.
    ///
    /// # Errors
    /// When one is open, or the producer is not initialised or finished.
    pub fn begin(&mut self) -> Result<(), TransactionError> {
        self.transaction.lock().begin()
    }

    /// Commits a group's offsets with the transaction: for each partition the next one to read. `group` must be
    /// fresh, from the member that read what the transaction holds.
    ///
    /// # Errors
    /// When the group is in another generation ([`Generation`](TransactionErrorKind::Generation)), the member is not in
    /// its group any more (abortable), or the broker refuses.
    pub async fn send_offsets(
        &mut self,
        next: Vec<(TopicPartition, i64)>,
        group: GroupMetadata,
    ) -> Result<(), TransactionError> {
        {
            let mut machine = self.transaction.lock();
            machine.begin_operation(Operation::SendOffsets)?;
            machine.add_offsets(Arc::new(Offsets { group, next }));
        }
        self.wait(Operation::SendOffsets).await
    }

    /// Waits for every acknowledgement, and commits.
    ///
    /// # Errors
    /// When something was not published (abortable), or the producer is finished. Only when this returns without an
    /// error, or a later [`init`](Self::init) of the same id has, is it known whether the transaction was committed.
    pub async fn commit(&mut self) -> Result<(), TransactionError> {
        self.operate(Operation::Commit).await
    }

    /// Drops what was not sent, and aborts. Acknowledgements that are waited for are errors.
    ///
    /// # Errors
    /// When the producer is finished.
    pub async fn abort(&mut self) -> Result<(), TransactionError> {
        self.operate(Operation::Abort).await
    }

    /// Aborts what is open, within `timeout`, and closes.
    pub async fn close(mut self, timeout: Duration) {
        let open = matches!(self.transaction.lock().state(), State::Open | State::Abortable(_) | State::Aborting);
        if open {
            // If that fails, the broker aborts after the transaction's timeout.
            let _ = tokio::time::timeout(timeout, self.abort()).await;
        }
        self.producer.close(Duration::ZERO).await;
    }

    async fn operate(&self, operation: Operation) -> Result<(), TransactionError> {
        self.transaction.lock().begin_operation(operation)?;
        self.wait(operation).await
    }

    async fn wait(&self, operation: Operation) -> Result<(), TransactionError> {
        let shared: &Shared = &self.producer.shared;
        // Those who wait for room see that there is no transaction any more.
        shared.room.notify_waiters();
        shared.work.notify_one();
        loop {
            if let Some(outcome) = self.transaction.lock().outcome(operation) {
                return outcome;
            }
            self.transaction.changed.notified().await;
        }
    }
}
