//! What a driver does for transactions: asks the coordinators what the producer's state wants asked, and drops what
//! waits when a transaction has failed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lines::Node;
use super::{Batch, Done, Driver, Renewal, State, Topic};
use crate::broker::kafka::wire::cluster::{Backoff, PATIENCE};
use crate::broker::kafka::wire::error::WireError;
use crate::broker::kafka::wire::produce::batches::Batches;
use crate::broker::kafka::wire::produce::coordinator::Coordinators;
use crate::broker::kafka::wire::produce::transaction::TransactionErrorKind;
use crate::broker::kafka::wire::produce::transaction::class::{Api, Class, class};
use crate::broker::kafka::wire::produce::transaction::state::{Answer, Ask, State as Phase, When, worth_another};
use crate::broker::kafka::wire::record_batch::Producer;
use crate::broker::kafka::wire::response::ErrorCode;
use crate::broker::{BrokerError, BrokerErrorKind};

/// Waits while the markers of the transaction before are still being written.
const SOON: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
/// Waits after other errors that may pass.
const LATER: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The coordinators, and when to ask them again.
pub(super) struct Coordination {
    /// None while a question is on its way.
    coordinators: Option<Coordinators>,
    pub(super) not_before: Instant,
    /// Since when the same is asked again and again.
    again_since: Option<Instant>,
    soon: Backoff,
    later: Backoff,
}

impl Coordination {
    pub(super) fn new(coordinators: Coordinators) -> Self {
        Self {
            coordinators: Some(coordinators),
            not_before: Instant::now(),
            again_since: None,
            soon: Backoff::new(SOON),
            later: Backoff::new(LATER),
        }
    }
}

/// What a transactional producer does with a broker's answer.
pub(super) enum Judged {
    /// What any producer does.
    AsUsual,
    /// Nothing more.
    Ended,
}

impl Driver {
    /// Moves the transaction on. Does not wait.
    pub(super) fn transact(&mut self, now: Instant, topics: &[Arc<Topic>]) {
        let Some(transaction) = self.shared.transaction.clone() else { return };
        let failed = match transaction.lock().state() {
            Phase::Abortable(error) => Some(error.error.clone()),
            Phase::Aborting => Some(aborted(&transaction.spec.id)),
            _ => None,
        };
        if let Some(error) = failed {
            self.drop_waiting(topics, &error);
            // The handle may wait for a commit that has failed, publishers for room.
            transaction.moved();
            self.shared.room.notify_waiters();
        }
        let quiet = self.is_quiet(topics);
        let Some(coordination) = &mut self.coordination else { return };
        if now < coordination.not_before || coordination.coordinators.is_none() {
            return;
        }
        let ask = transaction.lock().next(quiet);
        let Some(ask) = ask else {
            // To end a transaction that nobody has joined, nobody has to be asked.
            transaction.moved();
            return;
        };
        let Some(coordinators) = coordination.coordinators.take() else { return };
        let producer = self.producer.unwrap_or(Producer { id: -1, epoch: -1 });
        self.work.push(Box::pin(async move {
            let (coordinators, ask, answer) = coordinators.ask(ask, producer).await;
            Done::Coordinated(Box::new(coordinators), ask, answer)
        }));
    }

    /// Whether nothing waits and nothing is on its way. What waits asks for its partition.
    fn is_quiet(&self, topics: &[Arc<Topic>]) -> bool {
        let mut quiet = self.brokers.values().all(|broker| match &broker.node {
            Node::Open(line) => line.in_flight.is_empty(),
            Node::Closed { .. } | Node::Opening => true,
        });
        for topic in topics {
            let State::Known(batches) = &*topic.lock() else { continue };
            for (at, partition) in (0..).zip(&batches.partitions) {
                if partition.open().is_some() || !partition.queue.is_empty() {
                    quiet = false;
                    self.joined(batches, at);
                }
            }
        }
        quiet
    }

    /// Whether batches of this partition may be sent. For a transaction it must have joined.
    pub(super) fn joined(&self, batches: &Batches, at: usize) -> bool {
        let Some(transaction) = &self.shared.transaction else { return true };
        transaction.lock().join(batches.topic(), i32::try_from(at).unwrap_or(i32::MAX))
    }

    /// How long a batch that is not full waits: not at all when the transaction is about to end.
    pub(super) fn linger(&self) -> Duration {
        match &self.shared.transaction {
            Some(transaction) if matches!(transaction.lock().state(), Phase::Committing) => Duration::ZERO,
            _ => self.settings().linger,
        }
    }

    /// Drops what was not sent; what is on its way is waited for, and belongs to nobody any more.
    fn drop_waiting(&mut self, topics: &[Arc<Topic>], error: &BrokerError) {
        let (mut free, mut missing) = (0, self.renewal.take().is_some());
        for topic in topics {
            let State::Known(batches) = &mut *topic.lock() else { continue };
            for partition in &mut batches.partitions {
                missing |= partition.queue.has_numbers_waiting();
                free += partition.fail(error);
            }
        }
        if missing && let Some(transaction) = &self.shared.transaction {
            transaction.lock().fail(error.clone(), true);
        }
        if free > 0 {
            self.shared.release(free);
        }
    }

    /// The transaction, if there is one, has failed, and numbers are missing or not known.
    pub(super) fn fail_transaction(&mut self, error: &BrokerError) {
        if let Some(transaction) = &self.shared.transaction {
            transaction.lock().fail(error.clone(), true);
            transaction.moved();
            // Comes back here at once, to drop what waits.
            self.shared.work.notify_one();
        }
    }

    /// Whether the transaction that a batch belongs to has failed: of the batch it only matters that its fate is not
    /// known, or that it was not appended.
    pub(super) fn is_orphan(&self) -> bool {
        let Some(transaction) = &self.shared.transaction else { return false };
        let mut machine = transaction.lock();
        let orphan = matches!(machine.state(), Phase::Abortable(_) | Phase::Aborting);
        if orphan {
            machine.fail(aborted(&transaction.spec.id), true);
        }
        orphan
    }

    /// What a broker's answer to a batch means for the transaction.
    pub(super) fn judge(&mut self, batch: &Batch, code: ErrorCode) -> Result<Judged, BrokerError> {
        let Some(transaction) = self.shared.transaction.clone() else { return Ok(Judged::AsUsual) };
        match code {
            ErrorCode::NONE | ErrorCode::DUPLICATE_SEQUENCE_NUMBER => return Ok(Judged::AsUsual),
            _ if self.is_orphan() => return Ok(Judged::Ended),
            // What has its own way of going on within the transaction.
            ErrorCode::MESSAGE_TOO_LARGE
            | ErrorCode::RECORD_LIST_TOO_LARGE
            | ErrorCode::INVALID_RECORD
            | ErrorCode::INVALID_TIMESTAMP
            | ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER => return Ok(Judged::AsUsual),
            code if code.is_retriable() => return Ok(Judged::AsUsual),
            _ => {}
        }
        let error = self.not_published(&batch.topic, code);
        match class(Api::Produce, code) {
            Class::Fenced => {
                let error = worth_another(error);
                transaction.lock().finish(TransactionErrorKind::Fenced, error.clone());
                return Err(error);
            }
            Class::Fatal => transaction.lock().finish(TransactionErrorKind::Fatal, error.clone()),
            _ => {
                self.fail_transaction(&error);
                // A topic that may not be written to is not tried again.
                return Ok(if code.is_denied() { Judged::AsUsual } else { Judged::Ended });
            }
        }
        Err(error)
    }

    /// A batch of an open transaction needs numbers that the broker will not take: a transaction cannot go on under
    /// the next epoch.
    pub(super) fn renew_in_transaction(&mut self, batch: &Batch, why: Renewal) -> bool {
        if self.shared.transaction.is_none() {
            return false;
        }
        let what = if why == Renewal::Id { "the broker does not know this producer" } else { "numbers are missing" };
        let error = BrokerError {
            kind: BrokerErrorKind::Aborted,
            action: format!("publish to topic {}", batch.topic.name),
            reason: format!("{what}; the transaction must be aborted"),
        };
        self.fail_transaction(&error);
        true
    }

    /// A coordinator has answered, or not.
    pub(super) fn coordinated(
        &mut self,
        mut coordinators: Box<Coordinators>,
        ask: &Ask,
        answer: Result<Answer, WireError>,
    ) -> Result<(), BrokerError> {
        let (Some(transaction), Some(coordination)) = (self.shared.transaction.clone(), &mut self.coordination) else {
            return Ok(());
        };
        let action = || format!("transaction {} on {}", transaction.spec.id, self.shared.address);
        let answer = answer.map_err(|error| error.into_broker(action()))?;
        let mut machine = transaction.lock();
        if matches!(ask, Ask::Init { .. }) && matches!(answer, Answer::Identity(_)) && !coordinators.bumps {
            machine.cannot_bump();
        }
        let when = machine.answered(ask, answer.clone());
        let finished = match machine.state() {
            Phase::Finished(error) => Some(error.error.clone()),
            _ => None,
        };
        drop(machine);
        let now = Instant::now();
        coordination.not_before = match when {
            When::Now => {
                coordination.again_since = None;
                coordination.soon.reset();
                coordination.later.reset();
                now
            }
            When::Soon => coordination.soon.next(),
            When::Later | When::LookUp => coordination.later.next(),
        };
        if when != When::Now && coordination.again_since.get_or_insert(now).elapsed() >= PATIENCE {
            // Such as markers of the transaction before that cannot be written, since a partition has no leader.
            self.lines.warn("TRANSACTION", &format!("{}: {}; asked again", action(), answer.reason()));
        }
        if when == When::LookUp {
            coordinators.forget(ask);
        }
        coordination.coordinators = Some(*coordinators);
        match answer {
            Answer::Identity(producer) => self.begin_epoch(producer),
            // A topic may be gone: nobody else looks, since nothing is sent to its leaders before it has joined.
            Answer::Partitions(told) => {
                self.metadata.wanted |= told.iter().any(|(_, code)| *code == ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
            }
            _ => {}
        }
        transaction.moved();
        finished.map_or(Ok(()), Err)
    }

    fn begin_epoch(&mut self, producer: Producer) {
        let Producer { id, epoch } = producer;
        tracing::debug!(target: "fluxmill::kafka", "{}: producer {id}, epoch {epoch}", self.shared.address);
        self.producer = Some(producer);
        self.renewal = None;
        for topic in self.shared.topics() {
            if let State::Known(batches) = &mut *topic.lock() {
                batches.partitions.iter_mut().for_each(|partition| partition.queue.begin_epoch());
            }
        }
    }
}

fn aborted(id: &str) -> BrokerError {
    BrokerError {
        kind: BrokerErrorKind::Aborted,
        action: format!("publish in transaction {id}"),
        reason: "the transaction was aborted".into(),
    }
}
