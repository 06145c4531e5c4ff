//! One partition's watermark: the lowest offset whose event has not ended. Pure.
//!
//! It follows the batches that hold a partition's events, not the numbers in between, so that the gaps which
//! compaction and control records leave cost nothing. A batch is known by its first offset; since every event
//! belongs to one batch, first offsets are unique.

use std::collections::BTreeSet;

/// The contiguous progress of one partition. Costs a set operation for each batch, nothing for each event.
#[derive(Clone, Debug, Default)]
pub struct Watermark {
    /// First offsets of the batches that have not ended.
    open: BTreeSet<i64>,
    /// One past the highest offset that ended.
    ended: Option<i64>,
}

impl Watermark {
    /// A batch took its first event, at `first`.
    pub fn begin(&mut self, first: i64) {
        let new = self.open.insert(first);
        debug_assert!(new, "offset {first} was taken twice");
    }

    /// All events of the batch that began at `first` have ended; `last` is its last offset. A batch that was never begun is ignored.
    pub fn end(&mut self, first: i64, last: i64) {
        if self.open.remove(&first) {
            self.ended = self.ended.max(Some(last + 1));
        }
    }

    /// The offset to commit: the first of the lowest open batch, or one past the last that ended. `None` before the first event.
    pub fn next(&self) -> Option<i64> {
        self.open.first().copied().or(self.ended)
    }

    /// Whether every batch that began has ended.
    pub fn is_drained(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::Watermark;
    use proptest::prelude::*;

    /// Events at growing offsets with gaps, dealt to batches over lanes; the batches end in any order.
    fn schedule() -> impl Strategy<Value = (Vec<i64>, Vec<usize>, Vec<usize>)> {
        (1..60usize).prop_flat_map(|events| {
            let gaps = prop::collection::vec(1..5i64, events);
            let batches = prop::collection::vec(0..8usize, events);
            let order = Just((0..8usize).collect::<Vec<_>>()).prop_shuffle();
            (gaps, batches, order)
        })
    }

    proptest! {
        /// Against the naive model: the watermark never passes an event that has not ended, and reaches the end.
        #[test]
        fn never_passes_an_open_event((gaps, batches, order) in schedule()) {
            let offsets: Vec<i64> = gaps.iter().scan(0, |at, gap| { *at += gap; Some(*at) }).collect();
            let mut watermark = Watermark::default();
            let mut spans: Vec<Option<(i64, i64)>> = vec![None; 8];
            for (&offset, &batch) in offsets.iter().zip(&batches) {
                match &mut spans[batch] {
                    Some((_, last)) => *last = offset,
                    none => { watermark.begin(offset); *none = Some((offset, offset)); }
                }
            }
            let mut ended = vec![false; offsets.len()];
            let mut before = watermark.next().unwrap();
            for batch in order {
                let Some((first, last)) = spans[batch] else { continue };
                watermark.end(first, last);
                for (at, &b) in batches.iter().enumerate() { ended[at] |= b == batch; }
                let next = watermark.next().unwrap();
                let lowest_open = offsets.iter().zip(&ended).find(|(_, ended)| !**ended).map(|(offset, _)| *offset);
                prop_assert!(next >= before, "the watermark went back");
                match lowest_open {
                    // Nothing open may be passed; and it reaches the lowest open event's own batch.
                    Some(open) => prop_assert!(next <= open),
                    None => prop_assert_eq!(next, offsets.last().unwrap() + 1),
                }
                prop_assert_eq!(watermark.is_drained(), lowest_open.is_none());
                before = next;
            }
        }
    }

    #[test]
    fn ends_out_of_order() {
        let mut watermark = Watermark::default();
        watermark.begin(0);
        watermark.begin(10);
        watermark.end(10, 19);
        assert_eq!(watermark.next(), Some(0));
        watermark.end(0, 9);
        assert_eq!(watermark.next(), Some(20));
    }
}
