//! Where messages are acknowledged, by their numbers in the stream.

use std::collections::VecDeque;

use async_nats::Subject;

/// What was delivered and is not acknowledged, in order.
#[derive(Debug, Default)]
pub(super) struct Replies(VecDeque<(u64, Subject)>);

impl Replies {
    /// A message was delivered; once more, where it has this number already.
    pub(super) fn insert(&mut self, number: u64, reply: Subject) {
        if self.last().is_none_or(|last| last < number) {
            return self.0.push_back((number, reply));
        }
        match self.0.binary_search_by_key(&number, |(number, _)| *number) {
            Ok(at) => self.0[at].1 = reply,
            Err(at) => self.0.insert(at, (number, reply)),
        }
    }

    /// The newest message.
    pub(super) fn last(&self) -> Option<u64> {
        self.0.back().map(|(number, _)| *number)
    }

    /// What has a lower number than `next`, in order.
    pub(super) fn before(&self, next: u64) -> impl DoubleEndedIterator<Item = &(u64, Subject)> {
        self.0.range(..self.0.partition_point(|(number, _)| *number < next))
    }

    /// The first and the last message above `floor`.
    pub(super) fn above(&self, floor: u64) -> Option<(u64, u64)> {
        let first = self.0.get(self.0.partition_point(|(number, _)| *number <= floor))?.0;
        Some((first, self.last()?))
    }

    /// Forgets what has a lower number than `next`.
    pub(super) fn forget_before(&mut self, next: u64) {
        self.0.drain(..self.0.partition_point(|(number, _)| *number < next));
    }

    /// Forgets what has this number or a higher one.
    pub(super) fn forget_from(&mut self, first: u64) {
        self.0.truncate(self.0.partition_point(|(number, _)| *number < first));
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a map.
        #[test]
        fn replies_are_those_of_a_map(steps in prop::collection::vec((0..6_u8, 0..40_u64), 1..100)) {
            let (mut replies, mut map) = (Replies::default(), BTreeMap::new());
            for (nth, (step, number)) in steps.into_iter().enumerate() {
                match step {
                    0..=2 => {
                        let reply = Subject::from(format!("{nth}"));
                        replies.insert(number, reply.clone());
                        map.insert(number, reply);
                    }
                    3 => {
                        replies.forget_before(number);
                        map = map.split_off(&number);
                    }
                    4 => {
                        replies.forget_from(number);
                        map.split_off(&number);
                    }
                    _ => {
                        let before = replies.before(number).map(|(number, reply)| (number, reply));
                        prop_assert!(before.eq(map.range(..number)));
                        let above = map.range(number + 1..);
                        let ends = above.clone().next().zip(above.clone().next_back());
                        prop_assert_eq!(replies.above(number), ends.map(|(first, last)| (*first.0, *last.0)));
                    }
                }
                prop_assert_eq!(replies.last(), map.keys().next_back().copied());
            }
        }
    }
}
