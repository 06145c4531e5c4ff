//! Offsets that are committed in transactions, together with what was published.
//!
//! One transaction holds one set of events (see [`crate::delivery::Sets`]): it is cut off, its last event ends, its
//! offsets join the transaction and the transaction is committed; then the events of the next set may be published,
//! whose functions run meanwhile. All of it on the source's thread, which hands rows out.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Commits, OVERDUE};
use crate::broker::kafka::group::GroupMetadata;
use crate::broker::kafka::{TransactionError, TransactionErrorKind, TransactionalProducer};
use crate::broker::{BrokerError, BrokerErrorKind};
use crate::delivery::{SetNumber, Sets, TopicPartition, Tracker};
use crate::intake::Lanes;

/// How long the broker may take at the end. It aborts itself what is left open, after `transaction.timeout.ms`.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait when the group does not take offsets, or has no generation.
const GENERATION_PAUSE: Duration = Duration::from_millis(20);

/// Where the transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Rows are added to its set.
    Filling,
    /// Its set was cut off; events of it have not ended.
    Closing(SetNumber),
    /// It is being committed.
    Committing(SetNumber),
}

/// How a commit ended, and what was to be committed.
type Ended = (Vec<(TopicPartition, i64)>, Result<(), TransactionError>);
type Commit = Pin<Box<dyn Future<Output = (TransactionalProducer, Ended)>>>;

/// See the module.
pub(in super::super) struct Transactions {
    /// None while a commit has it.
    producer: Option<TransactionalProducer>,
    tracker: Arc<Tracker>,
    lanes: Lanes,
    /// A set that holds so many events is cut off.
    max_events: Option<u64>,
    phase: Phase,
    /// The commit that is under way.
    commit: Option<Commit>,
    /// How the last one ended, until somebody looks.
    ended: Option<Ended>,
    /// Offsets that the group did not take are not sent before.
    not_before: Option<Instant>,
}

impl Transactions {
    /// Takes the transactional id over, which ends what another run left open, and begins the first transaction.
    /// `tracker` must have sets.
    ///
    /// # Errors
    /// When the broker refuses.
    pub(in super::super) async fn begin(
        mut producer: TransactionalProducer,
        tracker: Arc<Tracker>,
        lanes: Lanes,
        max_events: Option<u64>,
    ) -> Result<Self, BrokerError> {
        inited(&mut producer).await.map_err(failed)?;
        producer.begin().map_err(failed)?;
        sets(&tracker).open(sets(&tracker).filling());
        Ok(Self {
            producer: Some(producer),
            tracker,
            lanes,
            max_events,
            phase: Phase::Filling,
            commit: None,
            ended: None,
            not_before: None,
        })
    }

    /// Whether nothing is on its way to a commit.
    pub(in super::super) fn is_settled(&self) -> bool {
        self.phase == Phase::Filling
    }

    /// Whether [`Transactions::advance`] would do something now.
    pub(in super::super) fn is_due(&self) -> bool {
        match self.phase {
            Phase::Filling => self.max_events.is_some_and(|most| sets(&self.tracker).sealed() >= most),
            Phase::Closing(set) => self.may_commit(set),
            Phase::Committing(_) => self.ended.is_some(),
        }
    }

    /// Waits until the commit that is under way has ended. Cancel-safe.
    pub(in super::super) async fn moved(&mut self) {
        let Some(commit) = &mut self.commit else { return std::future::pending().await };
        let (producer, ended) = commit.await;
        (self.commit, self.producer, self.ended) = (None, Some(producer), Some(ended));
    }

    /// Cuts the set off if there is something to commit, and takes the transaction as far as it goes now. `group` is
    /// asked for who this member is when its offsets are about to join; none while it is not the one that was given the
    /// partitions.
    ///
    /// True when one was committed.
    ///
    /// # Errors
    /// When the transaction has failed: what it held will be read again.
    pub(in super::super) fn advance(
        &mut self,
        commits: &mut Commits,
        group: impl FnOnce() -> Option<GroupMetadata>,
    ) -> Result<bool, BrokerError> {
        // Nothing of the set behind the one that is being closed can have ended.
        commits.note(&self.tracker);
        if self.phase == Phase::Filling {
            let sets = sets(&self.tracker);
            if commits.is_settled() && sets.is_ended(sets.filling()) {
                return Ok(false);
            }
            self.phase = Phase::Closing(sets.cut());
            self.lanes.hurry();
        }
        if let Phase::Closing(set) = self.phase {
            if !self.may_commit(set) {
                return Ok(false);
            }
            // Once more: what made the set end has moved on before.
            commits.note(&self.tracker);
            match group().filter(|group| group.generation >= 0) {
                Some(group) => self.start(set, commits.begin_transaction(), group),
                // Between two generations, or about to learn that its partitions are lost.
                None => self.not_before = Some(Instant::now() + GENERATION_PAUSE),
            }
        }
        let Phase::Committing(set) = self.phase else { return Ok(false) };
        let Some((offsets, ended)) = self.ended.take() else { return Ok(false) };
        match ended {
            // A rebalance has begun or ended since. Whoever has the partitions still may commit them.
            Err(error) if error.kind == TransactionErrorKind::Generation => {
                tracing::debug!(target: "fluxmill::kafka", "{error}");
                self.not_before = Some(Instant::now() + GENERATION_PAUSE);
                self.phase = Phase::Closing(set);
                return Ok(false);
            }
            ended => ended.map_err(failed)?,
        }
        commits.end_transaction(&offsets);
        self.phase = Phase::Filling;
        Ok(true)
    }

    fn may_commit(&self, set: SetNumber) -> bool {
        sets(&self.tracker).is_ended(set) && self.not_before.is_none_or(|until| Instant::now() >= until)
    }

    /// Aborts what is open, if the broker answers in time, and closes the producer.
    pub(in super::super) async fn close(mut self) {
        let until = tokio::time::Instant::now() + CLOSE_TIMEOUT;
        if self.commit.is_some() {
            // How it ends only its coordinator knows.
            let _ = tokio::time::timeout_at(until, self.moved()).await;
        }
        if let Some(producer) = self.producer.take() {
            producer.close(until - tokio::time::Instant::now()).await;
        }
    }

    fn start(&mut self, set: SetNumber, offsets: Vec<(TopicPartition, i64)>, group: GroupMetadata) {
        let Some(mut producer) = self.producer.take() else { return };
        let tracker = self.tracker.clone();
        self.phase = Phase::Committing(set);
        self.commit = Some(Box::pin(async move {
            let next = SetNumber(set.0 + 1);
            let committed = async {
                if !offsets.is_empty() {
                    producer.send_offsets(offsets.clone(), group).await?;
                }
                producer.commit().await?;
                producer.begin()
            };
            let committed = committed.await;
            if committed.is_ok() {
                sets(&tracker).open(next);
            }
            (producer, (offsets, committed))
        }));
    }
}

/// Waits for the broker as long as it takes, and says so.
async fn inited(producer: &mut TransactionalProducer) -> Result<(), TransactionError> {
    let mut init = std::pin::pin!(producer.init());
    loop {
        match tokio::time::timeout(OVERDUE, &mut init).await {
            Ok(ended) => return ended,
            Err(_) => tracing::warn!(
                target: "fluxmill::kafka",
                "begin transactions: no coordinator for {} s; waiting for it (are there as many brokers as \
                 `transaction.state.log.replication.factor` says?)",
                OVERDUE.as_secs()
            ),
        }
    }
}

fn sets(tracker: &Tracker) -> &Sets {
    tracker.sets().expect("a source with transactions has a tracker with sets")
}

/// What a failed transaction means for the pipeline.
fn failed(error: TransactionError) -> BrokerError {
    let kind = match error.kind {
        TransactionErrorKind::Generation | TransactionErrorKind::Abortable | TransactionErrorKind::Fenced => {
            BrokerErrorKind::Aborted
        }
        TransactionErrorKind::Order | TransactionErrorKind::Fatal => error.error.kind,
    };
    BrokerError { kind, ..error.error }
}

/// The transaction cannot be committed any more.
pub(in super::super) fn transaction_lost(reason: &str) -> BrokerError {
    let action = "commit a transaction".to_owned();
    BrokerError { kind: BrokerErrorKind::Aborted, action, reason: reason.to_owned() }
}
