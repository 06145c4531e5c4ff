//! Which offsets are to be committed, which are on their way, and what a failed commit means.
//!
//! One commit is on its way at a time; what moves meanwhile goes with the next. A failed one stays wanted, so that it
//! is sent again even when no watermark moves any more; not at once, since a group that is rebalancing refuses in
//! microseconds.

mod transactions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use super::client::Consumer;
use super::{error, ffi};
use crate::broker::{BrokerError, BrokerErrorKind};
use crate::delivery::{TopicPartition, Tracker};

pub(super) use transactions::{Transactions, transaction_lost};

/// How long after a commit failed the next one may be sent.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a commit may be on its way before that is told.
pub(super) const OVERDUE: Duration = Duration::from_secs(10);

/// How a commit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Committed {
    /// All of it is safe.
    Whole,
    /// Something failed and may pass when it is sent again.
    Again,
    /// This member's generation is over: nothing of the partitions that are being revoked can be committed.
    Stale,
}

/// A commit that is on its way.
#[derive(Debug)]
struct Sent {
    partitions: Vec<TopicPartition>,
    /// Since when, or when it was last told to be late.
    since: Instant,
}

/// The offsets to commit.
#[derive(Debug, Default)]
pub(super) struct Commits {
    wanted: BTreeMap<TopicPartition, i64>,
    sent: Option<Sent>,
    /// When the last one failed: not before this.
    pause_until: Option<Instant>,
    /// A failure was told.
    failing: bool,
}

impl Commits {
    /// `next` is to be committed.
    pub(super) fn want(&mut self, partition: TopicPartition, next: i64) {
        self.wanted.insert(partition, next);
    }

    /// What has moved on is to be committed.
    pub(super) fn note(&mut self, tracker: &Tracker) {
        for progress in tracker.progress() {
            self.want(progress.partition, progress.next);
        }
    }

    /// These are not ours any more.
    pub(super) fn forget<'a>(&mut self, partitions: impl IntoIterator<Item = &'a TopicPartition>) {
        for partition in partitions {
            self.wanted.remove(partition);
        }
    }

    /// Whether something of these is not committed, or may be on its way.
    pub(super) fn owes(&self, partitions: &[TopicPartition]) -> bool {
        partitions.iter().any(|partition| {
            self.wanted.contains_key(partition)
                || self.sent.as_ref().is_some_and(|sent| sent.partitions.contains(partition))
        })
    }

    /// Whether nothing is wanted and nothing is on its way.
    pub(super) fn is_settled(&self) -> bool {
        self.wanted.is_empty() && self.sent.is_none()
    }

    /// Whether a commit may be sent now, and there is something to commit.
    pub(super) fn may_send(&self, now: Instant) -> bool {
        self.sent.is_none() && !self.wanted.is_empty() && self.pause_until.is_none_or(|until| now >= until)
    }

    /// Whether a commit has been on its way for long. True once in a while.
    pub(super) fn is_overdue(&mut self, now: Instant) -> bool {
        let Some(sent) = self.sent.as_mut().filter(|sent| now.duration_since(sent.since) >= OVERDUE) else {
            return false;
        };
        sent.since = now;
        true
    }

    /// Sends what is wanted, unless a commit is on its way already or the last one failed just now.
    ///
    /// # Errors
    /// When librdkafka does not take it.
    pub(super) fn send(&mut self, consumer: &Consumer, now: Instant, action: &str) -> Result<(), BrokerError> {
        if !self.may_send(now) {
            return Ok(());
        }
        let mut offsets = TopicPartitionList::with_capacity(self.wanted.len());
        for (partition, &next) in &self.wanted {
            offsets
                .add_partition_offset(&partition.topic, partition.partition, Offset::Offset(next))
                .map_err(|error| error::failed(action, &error))?;
        }
        ffi::commit(consumer, &offsets).map_err(|code| error::coded(action, code, ""))?;
        self.all_sent(now);
        Ok(())
    }

    /// Everything that is wanted is on its way.
    fn all_sent(&mut self, now: Instant) {
        self.sent = Some(Sent { partitions: self.wanted.keys().cloned().collect(), since: now });
    }

    /// The commit that was sent has ended, at `now`.
    ///
    /// # Errors
    /// When the broker refuses for good.
    pub(super) fn ended(
        &mut self,
        offsets: &TopicPartitionList,
        whole: Option<RDKafkaErrorCode>,
        now: Instant,
        action: &str,
    ) -> Result<Committed, BrokerError> {
        let mut failed = whole.filter(|code| *code != RDKafkaErrorCode::NoOffset);
        for element in offsets.elements() {
            let own = element.error().err().and_then(|error| error::code(&error));
            failed = failed.or(own);
            if let (None, None, Offset::Offset(next)) = (whole, own, element.offset()) {
                let partition = TopicPartition { topic: Arc::from(element.topic()), partition: element.partition() };
                self.committed(&partition, next);
            }
        }
        self.sent = None;
        self.pause_until = failed.map(|_| now + PAUSE);
        let Some(code) = failed else {
            if std::mem::take(&mut self.failing) {
                tracing::info!(target: "fluxmill::kafka", "{action}: works again");
            }
            return Ok(Committed::Whole);
        };
        self.failure(code, action)
    }

    /// Everything that is wanted is about to be committed in a transaction.
    fn begin_transaction(&mut self) -> Vec<(TopicPartition, i64)> {
        self.all_sent(Instant::now());
        self.wanted.iter().map(|(partition, next)| (partition.clone(), *next)).collect()
    }

    /// That transaction is committed.
    fn end_transaction(&mut self, offsets: &[(TopicPartition, i64)]) {
        offsets.iter().for_each(|(partition, next)| self.committed(partition, *next));
        self.sent = None;
    }

    fn committed(&mut self, partition: &TopicPartition, next: i64) {
        // What moved on since it was sent stays wanted.
        if self.wanted.get(partition).is_some_and(|wanted| *wanted <= next) {
            self.wanted.remove(partition);
        }
    }

    fn failure(&mut self, code: RDKafkaErrorCode, action: &str) -> Result<Committed, BrokerError> {
        use RDKafkaErrorCode as Code;
        match code {
            // A member's epoch is stale until its next heartbeat brings it the group's (KIP-848).
            Code::RebalanceInProgress | Code::AssignmentLost | Code::StaleMemberEpoch => Ok(Committed::Again),
            Code::IllegalGeneration | Code::UnknownMemberId | Code::FencedMemberEpoch => Ok(Committed::Stale),
            Code::Fatal | Code::FencedInstanceId => Err(error::coded(action, code, "")),
            _ if error::kind(code) == BrokerErrorKind::Denied => Err(error::coded(action, code, "")),
            _ => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(target: "fluxmill::kafka", "{action}: {code}; sent again until it works");
                }
                Ok(Committed::Again)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders(partition: i32) -> TopicPartition {
        TopicPartition { topic: "orders".into(), partition }
    }

    fn list(offsets: &[(i32, i64)]) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for &(partition, offset) in offsets {
            list.add_partition_offset("orders", partition, Offset::Offset(offset)).unwrap();
        }
        list
    }

    fn sent(wanted: &[(i32, i64)]) -> Commits {
        let mut commits = Commits::default();
        for &(partition, next) in wanted {
            commits.want(orders(partition), next);
        }
        commits.all_sent(Instant::now());
        commits
    }

    #[test]
    fn a_failed_commit_stays_wanted() {
        let mut commits = sent(&[(0, 5)]);
        let ended =
            commits.ended(&list(&[(0, 5)]), Some(RDKafkaErrorCode::WaitingForCoordinator), Instant::now(), "commit");
        assert_eq!(ended.unwrap(), Committed::Again);
        assert!(commits.owes(&[orders(0)]) && commits.sent.is_none());
    }

    #[test]
    fn what_moved_on_meanwhile_stays_wanted() {
        let mut commits = sent(&[(0, 5), (1, 7)]);
        commits.want(orders(0), 6);
        assert_eq!(commits.ended(&list(&[(0, 5), (1, 7)]), None, Instant::now(), "commit").unwrap(), Committed::Whole);
        assert!(commits.owes(&[orders(0)]) && !commits.owes(&[orders(1)]));
    }

    #[test]
    fn a_refused_commit_is_not_sent_again_at_once() {
        let now = Instant::now();
        let mut commits = sent(&[(0, 5)]);
        assert!(!commits.may_send(now));
        let refused = Some(RDKafkaErrorCode::RebalanceInProgress);
        assert_eq!(commits.ended(&list(&[(0, 5)]), refused, now, "commit").unwrap(), Committed::Again);
        commits.want(orders(0), 6);
        assert!(!commits.may_send(now) && commits.may_send(now + PAUSE));
        commits.ended(&list(&[(0, 5)]), None, now, "commit").unwrap();
        assert!(commits.may_send(now));
    }

    #[test]
    fn a_commit_that_is_late_is_told_of_once_in_a_while() {
        let now = Instant::now();
        let mut commits = sent(&[(0, 5)]);
        commits.all_sent(now);
        assert!(!commits.is_overdue(now));
        assert!(commits.is_overdue(now + OVERDUE) && !commits.is_overdue(now + OVERDUE));
        assert!(commits.is_overdue(now + 2 * OVERDUE));
        commits.ended(&list(&[(0, 5)]), None, now, "commit").unwrap();
        assert!(!commits.is_overdue(now + 4 * OVERDUE));
    }

    #[test]
    fn an_old_generation_is_told_apart_and_a_denial_ends() {
        let mut commits = sent(&[(0, 5)]);
        let mut ended = |code| commits.ended(&list(&[(0, 5)]), Some(code), Instant::now(), "commit");
        assert_eq!(ended(RDKafkaErrorCode::IllegalGeneration).unwrap(), Committed::Stale);
        let denied = ended(RDKafkaErrorCode::GroupAuthorizationFailed);
        assert_eq!(denied.unwrap_err().kind, BrokerErrorKind::Denied);
    }
}
