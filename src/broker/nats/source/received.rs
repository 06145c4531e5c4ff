//! Messages that were delivered: in which order they are taken, which are dropped, and how they are acknowledged.

use std::collections::{BTreeMap, VecDeque};

use async_nats::Message;

use crate::broker::nats::consumer::Delivered;
use crate::broker::nats::row::append;
use crate::delivery::Slot;
use crate::event::Origin;
use crate::intake::Lanes;
use crate::spec::NatsSourceSpec;

/// Messages that may wait for their lanes.
const WAITING_MAX: usize = 4_000;

/// What was delivered and is not acknowledged.
pub(super) struct Received<'a> {
    spec: &'a NatsSourceSpec,
    /// Taken and not handed over, in order.
    waiting: VecDeque<(Message, Delivered)>,
    /// Where each message is acknowledged that was delivered since the consumer was set back. What was delivered before
    /// that comes again.
    replies: BTreeMap<u64, Box<str>>,
    /// The last message that was taken.
    last: u64,
    /// The first and the last message that were not acknowledged when the consumer was set back, until they came again.
    lost: Option<(u64, u64)>,
    /// The consumer's number of the next delivery.
    next: u64,
    /// Messages up to here were delivered before the server was told last that they are worked on.
    old: u64,
}

impl<'a> Received<'a> {
    pub(super) fn new(spec: &'a NatsSourceSpec) -> Self {
        Self { spec, waiting: VecDeque::new(), replies: BTreeMap::new(), last: 0, lost: None, next: 1, old: 0 }
    }

    /// The consumer was set back: deliveries are counted anew, and old ones cannot be acknowledged any more. Everything
    /// up to `floor` is confirmed.
    pub(super) fn expect_anew(&mut self, floor: u64) {
        let unconfirmed = |at: &&u64| **at > floor;
        let first = self.replies.keys().find(unconfirmed).copied();
        let last = self.replies.keys().next_back().filter(unconfirmed).copied();
        let before = self.lost.filter(|(_, last)| *last > floor);
        self.lost = match (before, first.zip(last)) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (one, other) => one.or(other),
        };
        self.replies.clear();
        self.next = 1;
        self.last = self.last.max(floor);
    }

    /// Takes a message; one that was taken before, or lies behind `end`, is dropped. False when one before it is missing.
    pub(super) fn take(&mut self, message: Message, end: Option<u64>) -> bool {
        let Some(reply) = &message.reply else { return true };
        let Some(delivered) = Delivered::of(reply) else { return true };
        if delivered.consumer != self.next {
            return false;
        }
        self.next += 1;
        if self.lost.is_some_and(|(_, last)| delivered.stream >= last) {
            self.lost = None;
        }
        if end.is_some_and(|end| delivered.stream > end.max(self.last)) {
            self.last = self.last.max(end.unwrap_or_default());
            return true;
        }
        // A copy: the message's own part of the connection's buffer would keep all of that.
        self.replies.insert(delivered.stream, reply.as_str().into());
        if delivered.stream > self.last {
            self.last = delivered.stream;
            self.waiting.push_back((message, delivered));
        }
        true
    }

    /// Hands what waits to the lanes, as far as they have room.
    pub(super) fn hand_over(&mut self, lanes: &Lanes, slot: Slot) {
        if self.waiting.is_empty() {
            return;
        }
        let mut run = lanes.run(0);
        while let Some((message, delivered)) = self.waiting.front() {
            let offset = i64::try_from(delivered.stream).unwrap_or(i64::MAX);
            let reading = (self.spec.key, self.spec.subject_header.as_deref());
            if append(&mut run, Origin { slot, offset }, message, delivered.timestamp, reading).is_err() {
                return;
            }
            self.waiting.pop_front();
        }
    }

    /// How many messages wait for their lanes.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether another message may be taken.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    /// Nothing more is handed over. What was not is delivered again at the next start.
    pub(super) fn forget_waiting(&mut self) {
        let Some((_, first)) = self.waiting.front() else { return };
        self.replies.split_off(&first.stream);
        self.waiting.clear();
    }

    /// The last message that was taken.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Where to acknowledge everything before `next`, in order, and what its last message is; none when there is nothing.
    pub(super) fn ended(&self, next: u64) -> Option<(Vec<String>, u64)> {
        let replies: Vec<String> = self.replies.range(..next).map(|(_, reply)| reply.to_string()).collect();
        let (last, _) = self.replies.range(..next).next_back()?;
        Some((replies, *last))
    }

    /// Everything up to this message is acknowledged.
    pub(super) fn acknowledged(&mut self, last: u64) {
        self.replies = self.replies.split_off(&(last + 1));
    }

    /// Whether something before `next` is not acknowledged.
    pub(super) fn owes(&self, next: u64) -> bool {
        self.replies.range(..next).next().is_some() || self.lost.is_some_and(|(first, _)| first < next)
    }

    /// Whether something that was taken has to come again before it can be acknowledged.
    pub(super) fn lacks(&self) -> bool {
        self.lost.is_some()
    }

    /// Where to tell that messages are worked on: all that were delivered before the last call of this, or waited longer.
    pub(super) fn old(&mut self) -> Vec<String> {
        let old = self.replies.range(..=self.old).map(|(_, reply)| reply.to_string()).collect();
        self.old = self.replies.last_key_value().map_or(self.old, |(last, _)| *last);
        old
    }
}

#[cfg(test)]
mod tests;
