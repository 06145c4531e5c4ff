//! One partition that is fetched: where it stands, what came and waits, and how its rows reach their lane.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use bytes::Bytes;

use super::super::record_batch::{self, BatchError, BatchHeader, Compression, ControlType, OpenBatch};
use super::super::response::Aborted;
use crate::broker::kafka::group::Assignment;
use crate::event::Origin;
use crate::intake::{Full, Lanes, Run};

/// Rows that one partition may append before the next has its turn.
const RUN_MAX: usize = 1024;
/// What so many fetches brought may wait for the lane.
const SETS_MAX: usize = 4;
/// The most bytes that one record batch may be decompressed to. Brokers take batches of about 1 MB unless told
/// otherwise.
const DECOMPRESSED_MAX: usize = 256 << 20;

/// Headers that one record may have. They compress to almost nothing, and take memory all the same.
const HEADERS_MAX: usize = 1_000_000;

/// How a partition's turn ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// There was nothing.
    Empty,
    /// Rows were appended.
    Moved,
    /// Rows may have been appended, then the lane was full.
    Full,
}

/// Why a partition cannot go on.
#[derive(Debug)]
pub(super) enum Stuck {
    /// An offset came that is not above the last one.
    WentBack {
        /// The last one.
        last: i64,
        /// The one that came.
        offset: i64,
    },
    /// The batch at this offset cannot be read.
    Unreadable {
        /// The first offset that cannot be read.
        offset: i64,
        /// Why.
        error: BatchError,
    },
}

/// What one fetch brought for one partition.
#[derive(Debug)]
struct RecordSet {
    bytes: Bytes,
    /// The offset that was asked for; the first batch may begin before it.
    from: i64,
    /// Aborted transactions within it, those that begin last at the front.
    aborted: Vec<Aborted>,
    /// The producers that are within an aborted transaction at the next batch.
    aborting: BTreeSet<i64>,
}

/// One partition that is fetched.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) assignment: Assignment,
    /// The lane that its rows go to, unless they are dealt by something else.
    pub(super) lane: usize,
    /// The next offset to fetch; none until the oldest one was looked up.
    pub(super) position: Option<i64>,
    /// The epoch of the leader that wrote the last batch that came, -1 before the first (KIP-595).
    pub(super) last_epoch: i32,
    /// When it last came first in what a fetch brought, by the fetcher's count.
    pub(super) turn: u64,
    /// Rows at this offset and beyond are not handed over.
    pub(super) stop_at: Option<i64>,
    /// Such a row is the next.
    stopped: bool,
    /// Part of a request that is on its way.
    pub(super) in_flight: bool,
    /// Not to be fetched before.
    pub(super) wait_until: Option<Instant>,
    /// The replica that serves it instead of the leader, and until when (KIP-392).
    pub(super) replica: Option<(i32, Instant)>,
    sets: VecDeque<RecordSet>,
    open: Option<OpenBatch>,
    /// Rows below it were not asked for.
    from: i64,
    /// The offset of the last row that was appended.
    last: Option<i64>,
}

impl Partition {
    /// Nothing was fetched yet.
    pub(super) fn new(assignment: Assignment, lane: usize, position: Option<i64>) -> Self {
        Self {
            assignment,
            lane,
            position,
            last_epoch: -1,
            turn: 0,
            stop_at: None,
            stopped: false,
            in_flight: false,
            wait_until: None,
            replica: None,
            sets: VecDeque::new(),
            open: None,
            from: 0,
            last: None,
        }
    }

    /// Whether more may be fetched while `most` bytes are what may wait. What waits keeps the whole response in memory
    /// that it came with, however little it is.
    pub(super) fn has_room(&self, most: usize) -> bool {
        self.sets.len() < SETS_MAX && self.waiting_bytes() < most
    }

    /// Bytes that came and were not opened.
    fn waiting_bytes(&self) -> usize {
        self.sets.iter().map(|set| set.bytes.len()).sum()
    }

    /// Whether every row that came was handed to the lane.
    pub(super) fn is_handed_over(&self) -> bool {
        self.sets.is_empty() && self.open.is_none()
    }

    /// Whether everything was handed over that may be.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The offset of the last row that was appended.
    pub(super) fn last(&self) -> Option<i64> {
        self.last
    }

    /// The oldest offset that is kept is where to begin.
    pub(super) fn place(&mut self, offset: i64) {
        self.position = Some(offset);
        // What is there was written under another epoch than what was read before.
        self.last_epoch = -1;
    }

    /// Takes what a fetch at the current position brought, and moves the position behind it. Whole batches count,
    /// whatever they hold: compaction and transactions leave batches without rows (KIP-98).
    ///
    /// # Errors
    /// When a batch's header cannot be read.
    pub(super) fn accept(&mut self, bytes: Bytes, mut aborted: Vec<Aborted>) -> Result<(), Stuck> {
        let Some(from) = self.position else { return Ok(()) };
        let (mut at, mut next) = (0, from);
        loop {
            let header = match record_batch::peek(&bytes[at..]) {
                Ok(Some(header)) => header,
                // The broker cuts the last batch where the response is full.
                Ok(None) => break,
                // What comes before it is read first: the next fetch begins with it.
                Err(_) if at > 0 => break,
                Err(error) => return Err(Stuck::Unreadable { offset: next, error }),
            };
            at += header.bytes;
            next = next.max(header.next_offset());
            self.last_epoch = header.leader_epoch;
        }
        self.position = Some(next);
        if at > 0 {
            aborted.sort_by_key(|aborted| std::cmp::Reverse(aborted.first_offset));
            self.sets.push_back(RecordSet { bytes: bytes.slice(..at), from, aborted, aborting: BTreeSet::new() });
        }
        Ok(())
    }

    /// Appends a run of rows.
    ///
    /// # Errors
    /// When what came cannot be read, or its offsets went back. The rows before are appended.
    pub(super) fn take(&mut self, lanes: &Lanes) -> Result<Turn, Stuck> {
        let (mut left, home) = (RUN_MAX, self.lane);
        let mut run = None;
        while left > 0 {
            if self.open.is_none() {
                // Lanes are not held while a batch is decompressed: they would wait.
                if self.next_is_compressed() {
                    run = None;
                }
                if !self.open_next()? {
                    break;
                }
            }
            let run = run.get_or_insert_with(|| lanes.run(home));
            match self.append(run, &mut left)? {
                Ok(()) => {}
                Err(Full) => return Ok(Turn::Full),
            }
        }
        Ok(if left == RUN_MAX { Turn::Empty } else { Turn::Moved })
    }

    /// Appends rows of the open batch, `left` at most; the batch is closed at its end.
    fn append(&mut self, run: &mut Run<'_>, left: &mut usize) -> Result<Result<(), Full>, Stuck> {
        let Some(open) = &mut self.open else { return Ok(Ok(())) };
        let slot = self.assignment.slot;
        while *left > 0 {
            let before = open.cursor();
            let offset = self.last.map_or(self.from, |last| last + 1);
            let Some(record) = open.next().map_err(|error| Stuck::Unreadable { offset, error })? else {
                self.open = None;
                break;
            };
            if record.offset < self.from {
                continue;
            }
            if let Some(last) = self.last
                && record.offset <= last
            {
                return Err(Stuck::WentBack { last, offset: record.offset });
            }
            if record.headers.len() > HEADERS_MAX {
                let error = BatchError::Malformed { offset, what: "a record has more than a million headers" };
                return Err(Stuck::Unreadable { offset: record.offset, error });
            }
            if self.stop_at.is_some_and(|end| record.offset >= end) {
                open.rewind(before);
                self.stopped = true;
                *left = 0;
                break;
            }
            let (offset, origin) = (record.offset, Origin { slot, offset: record.offset });
            if run.append(origin, record.key, record.value, record.timestamp, record.headers).is_err() {
                open.rewind(before);
                return Ok(Err(Full));
            }
            self.last = Some(offset);
            *left -= 1;
        }
        Ok(Ok(()))
    }

    fn next_is_compressed(&self) -> bool {
        let header = self.sets.front().and_then(|set| record_batch::peek(&set.bytes).ok().flatten());
        header.is_some_and(|header| header.compression != Compression::None)
    }

    /// Opens the next batch that has rows for a reader of committed events; false when there is none.
    fn open_next(&mut self) -> Result<bool, Stuck> {
        while let Some(set) = self.sets.front_mut() {
            let unreadable = |offset, error| Stuck::Unreadable { offset, error };
            let header = record_batch::peek(&set.bytes).map_err(|error| unreadable(set.from, error))?;
            let Some(header) = header else {
                self.sets.pop_front();
                continue;
            };
            let batch = set.bytes.split_to(header.bytes);
            let (from, offset) = (set.from, header.base_offset.max(set.from));
            let hidden = set.hides(&header, &batch).map_err(|error| unreadable(offset, error))?;
            if set.bytes.is_empty() {
                self.sets.pop_front();
            }
            if hidden || header.next_offset() <= from {
                continue;
            }
            let open = OpenBatch::open(batch, header, DECOMPRESSED_MAX).map_err(|error| unreadable(offset, error))?;
            self.from = from;
            self.open = Some(open);
            return Ok(true);
        }
        Ok(false)
    }
}

impl RecordSet {
    /// Whether a reader of committed events does not see this batch: control batches, and those of aborted
    /// transactions (KIP-98, "Reading Transactional Messages"). Batches must come in order.
    fn hides(&mut self, header: &BatchHeader, batch: &Bytes) -> Result<bool, BatchError> {
        let last_offset = header.next_offset() - 1;
        while let Some(aborted) = self.aborted.pop_if(|aborted| aborted.first_offset <= last_offset) {
            self.aborting.insert(aborted.producer_id);
        }
        if header.is_control {
            let mut control = OpenBatch::open(batch.clone(), *header, DECOMPRESSED_MAX)?;
            if let Some(record) = control.next()?
                && record_batch::control_type(&record) == Some(ControlType::Abort)
            {
                self.aborting.remove(&header.producer_id);
            }
            return Ok(true);
        }
        Ok(header.is_transactional && self.aborting.contains(&header.producer_id))
    }
}

#[cfg(test)]
mod tests;
