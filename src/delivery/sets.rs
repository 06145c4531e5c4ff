//! Closed sets of events, one for each transaction.
//!
//! A transaction holds what a set of events was turned into and the offsets behind them, so outputs and offsets drift
//! apart unless the set is closed: every event belongs to one set, a set is cut off before it is committed, and what
//! comes behind the cut may run through its function but is published only when the set before it is committed.
//! Then the watermarks, at the moment when the last event of a set has ended, are the offsets to commit with it,
//! whatever lanes the events went to.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Which set, counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetNumber(pub u64);

#[derive(Debug, Default)]
struct State {
    /// The set that events are added to.
    filling: SetNumber,
    /// The set whose events may be published, and all before it.
    open: Option<SetNumber>,
    /// Batches that have not ended, by set; none with 0.
    left: BTreeMap<SetNumber, usize>,
    /// Events of the set that is being filled, in batches that take no more.
    sealed: u64,
}

/// The sets of one source. Shared by the source, which cuts them, and the batches of its lanes.
#[derive(Debug, Default)]
pub struct Sets {
    state: Mutex<State>,
    opened: Notify,
}

impl Sets {
    /// A batch begins: it belongs to the set that is being filled, and is counted there until [`Sets::end`].
    pub fn begin(&self) -> SetNumber {
        let mut state = self.lock();
        let set = state.filling;
        *state.left.entry(set).or_default() += 1;
        set
    }

    /// A batch of this set takes no more events, and has so many.
    pub fn seal(&self, set: SetNumber, events: u64) {
        let mut state = self.lock();
        if state.filling == set {
            state.sealed += events;
        }
    }

    /// Events of the set that is being filled, in batches that take no more.
    pub fn sealed(&self) -> u64 {
        self.lock().sealed
    }

    /// A batch of this set has ended.
    pub fn end(&self, set: SetNumber) {
        let mut state = self.lock();
        if let Some(left) = state.left.get_mut(&set) {
            *left -= 1;
            if *left == 0 {
                state.left.remove(&set);
            }
        }
    }

    /// The set that events are added to. Changed by [`Sets::cut`] only.
    pub fn filling(&self) -> SetNumber {
        self.lock().filling
    }

    /// Closes the set that is being filled, and begins the next. Must not happen between the rows of one partition
    /// that different lanes take: the thread that hands rows out cuts.
    pub fn cut(&self) -> SetNumber {
        let mut state = self.lock();
        let closed = state.filling;
        state.filling.0 += 1;
        state.sealed = 0;
        closed
    }

    /// Whether every batch of this set and of those before it has ended.
    pub fn is_ended(&self, set: SetNumber) -> bool {
        self.lock().left.first_key_value().is_none_or(|(first, _)| *first > set)
    }

    /// From now on the events of this set may be published.
    pub fn open(&self, set: SetNumber) {
        self.lock().open = Some(set);
        self.opened.notify_waiters();
    }

    /// Waits until the events of this set may be published.
    pub async fn opened(&self, set: SetNumber) {
        loop {
            let opened = self.opened.notified();
            // Made before the look, it misses nothing that comes after it.
            if self.lock().open.is_some_and(|open| open >= set) {
                return;
            }
            opened.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_set_has_ended_with_its_last_batch_and_those_before_it() {
        let sets = Sets::default();
        let (one, two) = (sets.begin(), sets.begin());
        let first = sets.cut();
        let later = sets.begin();
        assert!(one == first && two == first && later == sets.filling() && later > first);
        sets.end(one);
        assert!(!sets.is_ended(first));
        sets.end(later);
        sets.end(two);
        assert!(sets.is_ended(first) && sets.is_ended(later));
    }

    #[test]
    fn a_set_counts_the_events_of_its_sealed_batches() {
        let sets = Sets::default();
        let first = sets.begin();
        sets.seal(first, 7);
        sets.seal(first, 3);
        assert_eq!(sets.sealed(), 10);
        sets.cut();
        // A batch that was open when its set was cut off.
        sets.seal(first, 5);
        assert_eq!(sets.sealed(), 0);
        sets.seal(sets.begin(), 2);
        assert_eq!(sets.sealed(), 2);
    }

    #[test]
    fn nothing_is_published_before_its_set_is_open() {
        let sets = Sets::default();
        let first = sets.cut();
        let second = sets.filling();
        let mut waits = Box::pin(sets.opened(second));
        assert!(sets.opened(first).now_or_never().is_none());
        assert!((&mut waits).now_or_never().is_none());
        sets.open(first);
        assert!(sets.opened(first).now_or_never().is_some());
        assert!((&mut waits).now_or_never().is_none());
        sets.open(second);
        assert!(waits.now_or_never().is_some());
    }

    proptest! {
        /// Against the plain list of batches: a set has ended when no batch of it, or before it, is left.
        #[test]
        fn is_ended_is_what_a_list_says(steps in prop::collection::vec(0..4_u8, 1..200)) {
            let sets = Sets::default();
            let mut list: Vec<SetNumber> = Vec::new();
            for step in steps {
                match step {
                    0 => drop(sets.cut()),
                    1 | 2 => list.push(sets.begin()),
                    _ if list.is_empty() => {}
                    _ => sets.end(list.swap_remove(list.len() / 2)),
                }
                for number in 0..=sets.filling().0 {
                    let set = SetNumber(number);
                    prop_assert_eq!(sets.is_ended(set), list.iter().all(|open| *open > set));
                }
            }
        }
    }
}
