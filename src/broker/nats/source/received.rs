//! Messages that were delivered: in which order they are taken, which are dropped, and how they are acknowledged.

use std::collections::VecDeque;

use async_nats::{Message, Subject};

use super::replies::Replies;
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
    replies: Replies,
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
        Self { spec, waiting: VecDeque::new(), replies: Replies::default(), last: 0, lost: None, next: 1, old: 0 }
    }

    /// The consumer was set back: deliveries are counted anew, and old ones cannot be acknowledged any more. Everything
    /// up to `floor` is confirmed.
    pub(super) fn expect_anew(&mut self, floor: u64) {
        let before = self.lost.filter(|(_, last)| *last > floor);
        self.lost = match (before, self.replies.above(floor)) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (one, other) => one.or(other),
        };
        self.replies.clear();
        self.next = 1;
        self.last = self.last.max(floor);
    }

    /// Takes a message; one that was taken before, or lies behind `end`, is dropped. False when one before it is missing.
    pub(super) fn take(&mut self, mut message: Message, end: Option<u64>) -> bool {
        let Some(reply) = message.reply.take() else { return true };
        let Some(delivered) = Delivered::of(&reply) else { return true };
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
        self.replies.insert(delivered.stream, reply);
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
        self.replies.forget_from(first.stream);
        self.waiting.clear();
    }

    /// The last message that was taken.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Where to acknowledge everything before `next`, in order, and what its last message is; none when there is nothing.
    /// Unless for `each`, one for all is enough, that of the last.
    pub(super) fn ended(&self, next: u64, each: bool) -> Option<(Vec<Subject>, u64)> {
        let mut before = self.replies.before(next);
        let (last, reply) = before.next_back()?;
        let others = before.filter(|_| each).map(|(_, reply)| reply.clone());
        Some((others.chain([reply.clone()]).collect(), *last))
    }

    /// Everything up to this message is acknowledged.
    pub(super) fn acknowledged(&mut self, last: u64) {
        self.replies.forget_before(last + 1);
    }

    /// Whether something before `next` is not acknowledged.
    pub(super) fn owes(&self, next: u64) -> bool {
        self.replies.before(next).next().is_some() || self.lost.is_some_and(|(first, _)| first < next)
    }

    /// Whether something that was taken has to come again before it can be acknowledged.
    pub(super) fn lacks(&self) -> bool {
        self.lost.is_some()
    }

    /// Where to tell that messages are worked on: all that were delivered before the last call of this, or waited longer.
    pub(super) fn old(&mut self) -> Vec<Subject> {
        let old = self.replies.before(self.old + 1).map(|(_, reply)| reply.clone()).collect();
        self.old = self.replies.last().unwrap_or(self.old);
        old
    }
}

#[cfg(test)]
mod tests;
