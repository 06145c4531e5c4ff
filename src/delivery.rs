//! When an event counts as delivered: the token that travels with a batch, and each partition's watermark.
//!
//! An offset is confirmed only when every event up to it has ended: published and acknowledged, dropped by the
//! function, or dead-lettered and acknowledged. Nothing here knows a broker or reads a clock, except the one wait
//! with a deadline that draining needs.

mod sets;
mod watermark;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

pub use sets::{SetNumber, Sets};
pub use watermark::Watermark;

/// One assignment of one partition to this process. A partition that is revoked and comes back gets a new slot, so
/// that late acknowledgements of the old assignment find nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number.
    pub partition: i32,
}

/// The events of one slot in one batch: from the first offset to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The assignment.
    pub slot: Slot,
    /// The first event's offset.
    pub first: i64,
    /// The last event's offset.
    pub last: i64,
}

/// How far a partition's events have ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The partition.
    pub partition: TopicPartition,
    /// The offset to commit: the lowest whose event has not ended.
    pub next: i64,
}

#[derive(Debug)]
struct Assigned {
    partition: TopicPartition,
    watermark: Watermark,
    /// What [`Tracker::progress`] reported last.
    reported: Option<i64>,
}

#[derive(Debug, Default)]
struct State {
    next_slot: u32,
    slots: HashMap<Slot, Assigned>,
    /// The last that were revoked, oldest first.
    revoked: VecDeque<(Slot, TopicPartition)>,
    abandoned: u64,
}

/// Revoked slots whose partitions are known.
const REVOKED_MAX: usize = 1024;

/// The watermarks of all partitions assigned to one source. Shared by the source and the tokens of its batches.
#[derive(Debug, Default)]
pub struct Tracker {
    state: Mutex<State>,
    ended: Condvar,
    changes: Notify,
    sets: Option<Sets>,
}

impl Tracker {
    /// A tracker of events that are published in transactions, each of which holds one set of them.
    pub fn transactional() -> Self {
        Self { sets: Some(Sets::default()), ..Self::default() }
    }

    /// The sets, where events are published in transactions.
    pub fn sets(&self) -> Option<&Sets> {
        self.sets.as_ref()
    }

    /// Begins an assignment.
    pub fn assign(&self, partition: TopicPartition) -> Slot {
        let mut state = self.lock();
        let slot = Slot(state.next_slot);
        state.next_slot += 1;
        state.slots.insert(slot, Assigned { partition, watermark: Watermark::default(), reported: None });
        slot
    }

    /// Ends an assignment: from now on acknowledgements of its events are ignored, and it makes no progress.
    pub fn revoke(&self, slot: Slot) {
        let mut state = self.lock();
        if let Some(assigned) = state.slots.remove(&slot) {
            if state.revoked.len() == REVOKED_MAX {
                state.revoked.pop_front();
            }
            state.revoked.push_back((slot, assigned.partition));
        }
        drop(state);
        self.changed();
    }

    /// The partition of a slot, although it may have been revoked some time ago: where its events came from, not whose
    /// they are.
    pub fn origin(&self, slot: Slot) -> Option<TopicPartition> {
        let state = self.lock();
        let assigned = state.slots.get(&slot).map(|assigned| &assigned.partition);
        let revoked = || state.revoked.iter().rfind(|(revoked, _)| *revoked == slot).map(|(_, partition)| partition);
        assigned.or_else(revoked).cloned()
    }

    /// The partition of a slot, unless it was revoked.
    pub fn partition(&self, slot: Slot) -> Option<TopicPartition> {
        self.lock().slots.get(&slot).map(|assigned| assigned.partition.clone())
    }

    /// A batch took its first event of this slot.
    pub fn begin(&self, slot: Slot, first: i64) {
        if let Some(assigned) = self.lock().slots.get_mut(&slot) {
            assigned.watermark.begin(first);
        }
    }

    /// All events of these segments, a batch of this set, have ended.
    pub fn end(&self, segments: &[Segment], set: Option<SetNumber>) {
        let mut state = self.lock();
        for segment in segments {
            if let Some(assigned) = state.slots.get_mut(&segment.slot) {
                assigned.watermark.end(segment.first, segment.last);
            }
        }
        drop(state);
        // After the watermarks: whoever sees that the set has ended commits what they say.
        if let (Some(sets), Some(set)) = (&self.sets, set) {
            sets.end(set);
        }
        self.changed();
    }

    /// The partitions whose watermark moved since the last call, with the offset to commit.
    pub fn progress(&self) -> Vec<Progress> {
        let mut moved = Vec::new();
        for assigned in self.lock().slots.values_mut() {
            let next = assigned.watermark.next();
            if let Some(next) = next
                && assigned.reported != Some(next)
            {
                assigned.reported = Some(next);
                moved.push(Progress { partition: assigned.partition.clone(), next });
            }
        }
        moved
    }

    /// The offset to commit for a slot; `None` before its first event, or after it was revoked.
    pub fn next(&self, slot: Slot) -> Option<i64> {
        self.lock().slots.get(&slot).and_then(|assigned| assigned.watermark.next())
    }

    /// Whether every event of these slots that was taken has ended.
    pub fn drained(&self, slots: &[Slot]) -> bool {
        Self::is_drained(&self.lock(), slots)
    }

    /// Waits until every event of these slots that was taken has ended; false when `timeout` passed first, or when a
    /// batch was abandoned, after which waiting is in vain.
    pub fn wait_drained(&self, slots: &[Slot], timeout: Duration) -> bool {
        let (guard, _) = self
            .ended
            .wait_timeout_while(self.lock(), timeout, |state| state.abandoned == 0 && !Self::is_drained(state, slots))
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        Self::is_drained(&guard, slots)
    }

    /// The batches whose token was dropped without an outcome; their events are not delivered.
    pub fn abandoned(&self) -> u64 {
        self.lock().abandoned
    }

    /// Waits until batches have ended, or were abandoned, or a slot was revoked, since the last wait. Only one task may
    /// wait.
    pub async fn change(&self) {
        self.changes.notified().await;
    }

    fn changed(&self) {
        self.ended.notify_all();
        self.changes.notify_one();
    }

    fn is_drained(state: &State, slots: &[Slot]) -> bool {
        slots.iter().filter_map(|slot| state.slots.get(slot)).all(|assigned| assigned.watermark.is_drained())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held ends the pipeline anyway; the counts stay whole, since no code in between can stop half-way.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The duty to bring a batch to its end. Dropped without [`Token::done`], its events count as *not delivered*.
#[must_use = "a token that is dropped means that its events were not delivered"]
#[derive(Debug)]
pub struct Token {
    tracker: Arc<Tracker>,
    segments: Vec<Segment>,
    set: Option<SetNumber>,
}

impl Token {
    /// A token for these segments, each of which was begun at `tracker`, as was the batch in its set if it has one.
    pub fn new(tracker: Arc<Tracker>, segments: Vec<Segment>, set: Option<SetNumber>) -> Self {
        Self { tracker, segments, set }
    }

    /// Waits until the events of the batch may be published: at once, unless they belong to a transaction that has to
    /// wait for the one before.
    pub async fn admitted(&self) {
        if let (Some(sets), Some(set)) = (self.tracker.sets(), self.set) {
            sets.opened(set).await;
        }
    }

    /// Every event of the batch has ended.
    pub fn done(mut self) {
        self.tracker.end(&std::mem::take(&mut self.segments), self.set);
    }

    /// The partition that a slot of this batch stands for, unless it was revoked.
    pub fn partition(&self, slot: Slot) -> Option<TopicPartition> {
        self.tracker.partition(slot)
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        if !self.segments.is_empty() {
            self.tracker.lock().abandoned += 1;
            self.tracker.changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders(partition: i32) -> TopicPartition {
        TopicPartition { topic: "orders".into(), partition }
    }

    #[test]
    fn a_dropped_token_holds_the_watermark() {
        let tracker = Arc::new(Tracker::default());
        let slot = tracker.assign(orders(0));
        tracker.begin(slot, 5);
        drop(Token::new(tracker.clone(), vec![Segment { slot, first: 5, last: 9 }], None));
        assert_eq!(tracker.next(slot), Some(5));
        assert_eq!(tracker.abandoned(), 1);
        assert!(!tracker.drained(&[slot]));
    }

    #[test]
    fn late_acknowledgements_after_a_revoke_are_ignored() {
        let tracker = Arc::new(Tracker::default());
        let old = tracker.assign(orders(0));
        tracker.begin(old, 5);
        let token = Token::new(tracker.clone(), vec![Segment { slot: old, first: 5, last: 9 }], None);
        tracker.revoke(old);
        let new = tracker.assign(orders(0));
        token.done();
        assert_eq!(tracker.next(new), None);
        assert!(tracker.progress().is_empty());
        assert_eq!((tracker.partition(old), tracker.origin(old)), (None, Some(orders(0))));
    }

    #[test]
    fn progress_is_reported_once() {
        let tracker = Arc::new(Tracker::default());
        let slot = tracker.assign(orders(3));
        tracker.begin(slot, 5);
        Token::new(tracker.clone(), vec![Segment { slot, first: 5, last: 9 }], None).done();
        assert_eq!(tracker.progress(), vec![Progress { partition: orders(3), next: 10 }]);
        assert!(tracker.progress().is_empty());
        assert!(tracker.wait_drained(&[slot], Duration::ZERO));
    }
}
