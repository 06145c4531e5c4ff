//! The batches of one partition on their way to the broker: which may be sent next, under which sequence number, and
//! what an answer means for it. Pure: no clock, no IO, no bytes.
//!
//! An idempotent producer numbers its records for each partition. The broker appends a batch only when its first
//! number follows the last one that it has, and recognises the last five batches (KIP-98). So sending again cannot
//! double a batch, and a later batch cannot overtake one that is missing. Four rules make that hold even where the
//! broker knows nothing of this producer yet, and would take any number:
//!
//! - nothing is sent behind the first batch of an epoch until the broker has it, nor behind the first after nothing was
//!   on its way: who was idle for long is forgotten (`producer.id.expiration.ms`, KIP-98, KIP-854);
//! - while batches are in flight to one node, none goes to another;
//! - a batch that is sent again is sent only when it is the first, and nothing is sent behind it until it has ended;
//! - when numbers are missing for good, since a batch was refused after later ones had got theirs, everything starts
//!   from zero under a new epoch (KIP-360), but only when no batch is left of which nobody knows whether it arrived.

use std::collections::VecDeque;

/// Batches of one partition that may be in flight at once: as many as a broker recognises.
pub(super) const IN_FLIGHT_MAX: usize = 5;

/// Names a batch of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id(u64);

/// What an answer says of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may have been appended, or not: send it again. Also when no answer came.
    Again,
    /// It was not appended, because the batch before it is missing.
    OutOfOrder,
    /// It was not appended, because the broker does not know this producer, or knows a later epoch.
    Stale,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    InFlight { node: i32 },
}

#[derive(Debug)]
struct Entry<B> {
    id: Id,
    payload: B,
    records: u32,
    sequence: Option<i32>,
    state: State,
    /// It was sent before, under the sequence that it has.
    again: bool,
    /// It may have been appended already.
    unsure: bool,
    /// It cannot have been appended: numbers before its own are missing for good.
    cut_off: bool,
}

impl<B> Entry<B> {
    fn forget_number(&mut self) {
        self.sequence = None;
        self.again = false;
        self.unsure = false;
        self.cut_off = false;
    }
}

/// A batch that is to be sent now.
#[derive(Debug)]
pub(super) struct Next<'a, B> {
    pub(super) id: Id,
    pub(super) payload: &'a mut B,
    pub(super) sequence: i32,
}

/// The batches of one partition, oldest first.
#[derive(Debug)]
pub(super) struct Queue<B> {
    entries: VecDeque<Entry<B>>,
    next_id: u64,
    next_sequence: i32,
    /// The broker has a batch of this epoch, and more have waited for it ever since.
    proven: bool,
    /// Nothing new may be sent before a new epoch.
    broken: bool,
    /// The first number that is missing because a batch was refused for good.
    gap: Option<i32>,
}

impl<B> Default for Queue<B> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), next_id: 0, next_sequence: 0, proven: false, broken: false, gap: None }
    }
}

impl<B> Queue<B> {
    /// Whether nothing waits and nothing is in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a batch at the end.
    pub(super) fn push(&mut self, payload: B, records: u32) {
        let entry = self.entry(payload, records, None);
        self.entries.push_back(entry);
    }

    /// Whether [`Queue::next`] would send something to `node`.
    pub(super) fn can_send(&self, node: i32, frozen: bool) -> bool {
        self.sendable(node, frozen).is_some()
    }

    /// The batch that is to be sent to `node`, the partition's leader, now; it counts as in flight from here on. With
    /// `frozen` a new epoch is due, and only what may have arrived is sent.
    pub(super) fn next(&mut self, node: i32, frozen: bool) -> Option<Next<'_, B>> {
        let at = self.sendable(node, frozen)?;
        let entry = &mut self.entries[at];
        let sequence = match entry.sequence {
            Some(sequence) => sequence,
            None => {
                let sequence = self.next_sequence;
                self.next_sequence = advance(sequence, entry.records);
                sequence
            }
        };
        entry.sequence = Some(sequence);
        entry.state = State::InFlight { node };
        Some(Next { id: entry.id, payload: &mut entry.payload, sequence })
    }

    /// Whether a batch that is added now could be sent to `node` at once.
    pub(super) fn takes_more(&self, node: i32, frozen: bool) -> bool {
        self.is_next(self.entries.len(), node) && !(frozen || self.broken)
    }

    fn sendable(&self, node: i32, frozen: bool) -> Option<usize> {
        let at = self.entries.iter().position(|entry| entry.state == State::Waiting)?;
        let entry = &self.entries[at];
        let may = self.is_next(at, node) && (at == 0 || !entry.again) && (entry.unsure || !(frozen || self.broken));
        may.then_some(at)
    }

    /// Whether a batch at this place may follow those before it to `node`.
    fn is_next(&self, at: usize, node: i32) -> bool {
        let elsewhere = |entry: &Entry<B>| entry.again || entry.state != State::InFlight { node };
        at < IN_FLIGHT_MAX && (at == 0 || self.proven) && !self.entries.range(..at).any(elsewhere)
    }

    /// The broker has the batch; gives it back, unless it has ended before.
    pub(super) fn acknowledge(&mut self, id: Id) -> Option<B> {
        let at = self.find(id)?;
        let entry = self.entries.remove(at);
        self.proven = !self.entries.is_empty();
        entry.map(|entry| entry.payload)
    }

    /// The broker does not have the batch, or may not; true when a new epoch is needed.
    pub(super) fn answer(&mut self, id: Id, verdict: Verdict) -> bool {
        let Some(at) = self.find(id) else { return false };
        let entry = &mut self.entries[at];
        entry.state = State::Waiting;
        entry.again = true;
        entry.unsure = verdict == Verdict::Again && !entry.cut_off;
        // The first one should have been the broker's next: what it has is not what this producer knows.
        if verdict == Verdict::Stale || (verdict == Verdict::OutOfOrder && at == 0) {
            self.break_off(at);
        }
        self.broken
    }

    /// The numbers from this batch on are not to be used any more.
    fn break_off(&mut self, at: usize) {
        self.broken = true;
        for entry in self.entries.range_mut(at..).filter(|entry| entry.sequence.is_some()) {
            entry.cut_off = true;
            entry.unsure = false;
        }
    }

    /// The broker will never take the batch as it is: others take its place. True when a new epoch is needed.
    pub(super) fn replace(&mut self, id: Id, with: impl FnOnce(B) -> Vec<(B, u32)>) -> bool {
        let Some(at) = self.find(id) else { return false };
        let Some(old) = self.entries.remove(at) else { return false };
        let parts = with(old.payload);
        let whole = parts.iter().map(|(_, records)| records).sum::<u32>() == old.records;
        let mut sequence = old.sequence;
        let later_have_theirs = self.entries.range(at..).any(|entry| entry.sequence.is_some());
        match sequence {
            Some(first) if !whole && !later_have_theirs => {
                self.next_sequence = first;
                sequence = None;
            }
            Some(first) if !whole => {
                // Behind an earlier gap, this is none.
                self.gap = if old.cut_off { self.gap } else { Some(first) };
                self.break_off(at);
                sequence = None;
            }
            _ => {}
        }
        for (place, (payload, records)) in parts.into_iter().enumerate() {
            let mut entry = self.entry(payload, records, sequence);
            // It has its numbers: like a batch that is sent again, it goes alone.
            entry.again = sequence.is_some();
            entry.cut_off = sequence.is_some() && old.cut_off;
            sequence = sequence.map(|sequence| advance(sequence, records));
            self.entries.insert(at + place, entry);
        }
        self.proven &= !self.entries.is_empty();
        self.broken
    }

    /// Whether it is known of every batch whether it was appended.
    pub(super) fn is_settled(&self) -> bool {
        // Behind a batch that has numbers and was not appended, nothing can have been.
        let mut missing = false;
        self.entries.iter().all(|entry| {
            missing |= entry.sequence.is_some() && !entry.unsure;
            entry.state == State::Waiting && (missing || !entry.unsure)
        })
    }

    /// A new epoch has begun: everything that waits is numbered anew. The queue must be settled.
    pub(super) fn begin_epoch(&mut self) {
        debug_assert!(self.is_settled(), "a batch may have arrived under the old epoch");
        self.next_sequence = 0;
        self.proven = false;
        self.broken = false;
        self.gap = None;
        self.entries.iter_mut().for_each(Entry::forget_number);
    }

    /// Numbers what waits behind a batch that was refused for good as if that had never been, under the same epoch.
    /// The queue must be settled, by answers alone: a batch that still may arrive under its old number would be
    /// appended twice.
    pub(super) fn close_gap(&mut self) {
        let Some(first) = self.gap.take() else { return };
        debug_assert!(self.is_settled(), "a batch may have arrived under its old number");
        self.next_sequence = first;
        self.broken = false;
        let behind = self.entries.iter().position(|entry| entry.cut_off || entry.sequence.is_none());
        let behind = behind.unwrap_or(self.entries.len());
        self.entries.range_mut(behind..).for_each(Entry::forget_number);
    }

    /// Whether the batch cannot have been appended, because a batch before it was refused.
    pub(super) fn is_cut_off(&self, id: Id) -> bool {
        self.find(id).is_some_and(|at| self.entries[at].cut_off)
    }

    /// Whether a batch has numbers and is not on its way: without it, they are missing.
    pub(super) fn has_numbers_waiting(&self) -> bool {
        self.entries.iter().any(|entry| entry.sequence.is_some() && entry.state == State::Waiting)
    }

    /// Takes everything out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = B> {
        self.proven = false;
        std::mem::take(&mut self.entries).into_iter().map(|entry| entry.payload)
    }

    fn find(&self, id: Id) -> Option<usize> {
        self.entries.iter().position(|entry| entry.id == id)
    }

    fn entry(&mut self, payload: B, records: u32, sequence: Option<i32>) -> Entry<B> {
        let id = Id(self.next_id);
        self.next_id += 1;
        Entry { id, payload, records, sequence, state: State::Waiting, again: false, unsure: false, cut_off: false }
    }
}

/// The sequence `by` records after this one: after `i32::MAX` comes zero.
fn advance(sequence: i32, by: u32) -> i32 {
    let next = (i64::from(sequence) + i64::from(by)) & i64::from(i32::MAX);
    i32::try_from(next).unwrap_or(0)
}

#[cfg(test)]
mod tests;
