//! Record batches that are filled and wait: for each partition of a topic one that is open, and those that are sealed.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::super::record_batch::{self, Encoder, Producer};
use super::partitioner::Partitioner;
use super::queue::{Id, Queue};
use super::spares::Spares;
use crate::broker::pending::Pending;
use crate::broker::{BrokerError, BrokerErrorKind};
use crate::event::{EventRef, Publication};
use crate::spec::{ColumnarSettings, Compression};

/// Bytes that a new open batch has room for, before it grows.
const CAPACITY_MIN: usize = 1 << 10;
/// One part in so many of its room a batch does not get if the one before did not need it.
const CAPACITY_FORGOTTEN: usize = 4;

/// A run of records of one publication.
#[derive(Clone, Debug)]
pub(super) struct Share {
    pub(super) publication: Arc<Pending>,
    pub(super) records: u32,
}

/// One record more of this publication, which comes last.
fn count(shares: &mut Vec<Share>, publication: &Arc<Pending>) {
    match shares.last_mut() {
        Some(last) if Arc::ptr_eq(&last.publication, publication) => last.records += 1,
        _ => shares.push(Share { publication: publication.clone(), records: 1 }),
    }
}

/// A record batch that is complete, and whom to tell.
#[derive(Debug)]
pub(super) struct Sealed {
    bytes: Bytes,
    stamped: Option<(Producer, i32)>,
    /// For each record its place in its publication.
    rows: Vec<u32>,
    shares: Vec<Share>,
    /// Bytes that its records were counted with when they came.
    charged: usize,
}

/// A record batch that is being filled.
#[derive(Debug)]
struct Open {
    encoder: Encoder,
    rows: Vec<u32>,
    shares: Vec<Share>,
    since: Instant,
}

impl Open {
    /// An empty one in this memory.
    fn new(memory: Vec<u8>, since: Instant) -> Self {
        Self { encoder: Encoder::reusing(memory), rows: Vec::new(), shares: Vec::new(), since }
    }
}

/// The batches of one partition.
#[derive(Debug, Default)]
pub(super) struct Partition {
    pub(super) queue: Queue<Sealed>,
    /// Nothing is sent before: the broker did not take a batch.
    pub(super) not_before: Option<Instant>,
    open: Option<Open>,
    /// How large the last batches became at most: the next has room for as much, for growing step by step would copy
    /// it several times. What it was long ago is forgotten.
    capacity: usize,
}

/// The batches of one topic.
#[derive(Debug)]
pub(super) struct Batches {
    topic: Arc<str>,
    pub(super) partitions: Vec<Partition>,
    partitioner: Partitioner,
    spares: Spares,
    batch_bytes: usize,
    message_bytes_max: usize,
    pub(super) compression: record_batch::Compression,
}

impl Sealed {
    /// The records' number.
    pub(super) fn records(&self) -> u32 {
        u32::try_from(self.rows.len()).unwrap_or(u32::MAX)
    }

    /// The batch's size.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The batch as it goes to the broker, under this producer and sequence.
    pub(super) fn stamp(&mut self, producer: Producer, sequence: i32, transactional: bool) -> Bytes {
        if self.stamped != Some((producer, sequence)) {
            // Nobody else has the bytes, except a request that has not gone out whole when its connection broke.
            let bytes = std::mem::take(&mut self.bytes);
            let mut bytes = bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            record_batch::stamp(&mut bytes, producer, sequence, transactional);
            self.bytes = bytes.freeze();
            self.stamped = Some((producer, sequence));
        }
        self.bytes.clone()
    }

    /// The broker has it. Returns the bytes that are free again.
    pub(super) fn acknowledge(self) -> usize {
        for share in &self.shares {
            share.publication.acknowledge(share.records);
        }
        self.charged
    }

    /// It is not known to have arrived, and never will be. Returns the bytes that are free again.
    pub(super) fn fail(self, error: &BrokerError) -> usize {
        for share in &self.shares {
            share.publication.fail(error);
        }
        self.charged
    }

    /// Refuses the records for which there is an error. Returns what is left, and the bytes that are free again.
    pub(super) fn without(
        self,
        compression: record_batch::Compression,
        mut error: impl FnMut(u32) -> Option<BrokerError>,
    ) -> (Option<(Sealed, u32)>, usize) {
        let errors: Vec<Option<BrokerError>> = (0..self.records()).map(&mut error).collect();
        let kept = self.part(compression, |record| errors[record as usize].is_none());
        for ((share, row), error) in self.each().zip(errors) {
            if let Some(error) = error {
                share.publication.refuse(row, error);
            }
        }
        match kept {
            Some(kept) => (Some(kept), 0),
            None => (None, self.charged),
        }
    }

    /// Two halves, for a broker that takes no batch as large as this one.
    pub(super) fn halves(self, compression: record_batch::Compression) -> Vec<(Sealed, u32)> {
        let middle = self.records() / 2;
        let first = self.part(compression, |record| record < middle);
        let second = self.part(compression, |record| record >= middle);
        let mut halves: Vec<_> = first.into_iter().chain(second).collect();
        // What the whole was counted with is given back once.
        for (half, _) in halves.iter_mut().skip(1) {
            half.charged = 0;
        }
        halves
    }

    /// A batch of only some of the records; none when there are none.
    fn part(&self, compression: record_batch::Compression, keep: impl Fn(u32) -> bool) -> Option<(Sealed, u32)> {
        let mut rows = Vec::new();
        let mut shares: Vec<Share> = Vec::new();
        for (record, (share, row)) in (0..).zip(self.each()) {
            if !keep(record) {
                continue;
            }
            rows.push(row);
            count(&mut shares, &share.publication);
        }
        let records = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        if records == 0 {
            return None;
        }
        let bytes = record_batch::reencode(&self.bytes, compression, &keep);
        let bytes = bytes.expect("a batch that was encoded here can be read here");
        Some((Sealed { bytes: bytes.into(), stamped: None, rows, shares, charged: self.charged }, records))
    }

    /// Each record's publication and its place there.
    fn each(&self) -> impl Iterator<Item = (&Share, u32)> {
        let shares = self.shares.iter().flat_map(|share| std::iter::repeat_n(share, share.records as usize));
        shares.zip(self.rows.iter().copied())
    }
}

impl Partition {
    /// Whether nothing waits and nothing is on its way.
    fn is_empty(&self) -> bool {
        self.open.is_none() && self.queue.is_empty()
    }

    /// When the first record of the open batch came, and the batch's size so far.
    pub(super) fn open(&self) -> Option<(Instant, usize)> {
        self.open.as_ref().map(|open| (open.since, open.encoder.bytes()))
    }

    /// Seals the open batch.
    fn seal(&mut self, compression: record_batch::Compression, spares: &mut Spares) {
        let Some(Open { encoder, rows, shares, .. }) = self.open.take() else { return };
        let charged = encoder.bytes();
        self.capacity = charged.max(self.capacity - self.capacity / CAPACITY_FORGOTTEN);
        let records = encoder.len();
        let finished = encoder.finish_and_free(compression);
        let (bytes, memory) = finished.expect("compressing into memory does not fail");
        spares.keep(memory);
        let bytes = spares.fitted(bytes);
        self.queue.push(Sealed { bytes: bytes.into(), stamped: None, rows, shares, charged }, records);
    }

    /// Takes everything out that has not ended. Returns the bytes that are free again.
    pub(super) fn fail(&mut self, error: &BrokerError) -> usize {
        let mut free = 0;
        if let Some(open) = self.open.take() {
            free += open.encoder.bytes();
            open.shares.iter().for_each(|share| share.publication.fail(error));
        }
        free + self.queue.drain().map(|sealed| sealed.fail(error)).sum::<usize>()
    }
}

impl Batches {
    /// A topic of so many partitions, at least one.
    pub(super) fn new(topic: Arc<str>, partitions: usize, settings: &ColumnarSettings) -> Self {
        let mut batches = Self {
            topic,
            partitions: Vec::new(),
            partitioner: Partitioner::default(),
            spares: Spares::default(),
            batch_bytes: settings.batch_bytes,
            message_bytes_max: settings.message_bytes_max,
            compression: codec(settings.compression),
        };
        batches.grow(partitions);
        batches
    }

    /// The topic's name.
    pub(super) fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// The topic has so many partitions now. It never has fewer.
    pub(super) fn grow(&mut self, partitions: usize) {
        if partitions > self.partitions.len() {
            self.partitions.resize_with(partitions, Partition::default);
        }
    }

    /// Whether nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.partitions.iter().all(Partition::is_empty)
    }

    /// Appends a publication's events to the open batches of their partitions, in order. Full batches are sealed.
    /// Returns the bytes by which what waits has grown.
    pub(super) fn append(&mut self, publication: &Publication, pending: &Arc<Pending>, now: Instant) -> usize {
        let mut grown = 0;
        for (row, event) in (0..).zip(publication.events()) {
            let at = self.partitioner.partition(event.key, self.partitions.len());
            let Some(size) = self.append_to(at, &event, now) else {
                let size = Encoder::new(0).size_of(event.key, event.value, event.timestamp, event.headers);
                pending.refuse(row, too_large(&self.topic, size, self.message_bytes_max));
                continue;
            };
            grown += size;
            // It was appended, so the batch is open.
            let Some(open) = &mut self.partitions[at].open else { continue };
            open.rows.push(row);
            count(&mut open.shares, pending);
        }
        grown
    }

    /// Appends an event to a partition's open batch; a batch that it would make too large is sealed before. Returns the
    /// bytes by which what waits has grown, or nothing when the event is larger than the client sends.
    #[inline(always)]
    fn append_to(&mut self, at: usize, event: &EventRef<'_>, now: Instant) -> Option<usize> {
        let most = self.message_bytes_max;
        let append = |open: &mut Open, room: usize| {
            open.encoder.append_within(room, event.key, event.value, event.timestamp, event.headers.clone())
        };
        if let Some(open) = &mut self.partitions[at].open {
            let room = self.batch_bytes.saturating_sub(open.encoder.bytes());
            match append(open, room.min(most)) {
                Ok(size) => return Some(size),
                Err(size) if size > most => return None,
                Err(_) => self.seal(at),
            }
        }
        let partition = &mut self.partitions[at];
        let mut open = Open::new(self.spares.take(partition.capacity.max(CAPACITY_MIN)), now);
        // One event is the least that a batch holds.
        let size = append(&mut open, most).ok()?;
        partition.open = Some(open);
        Some(size + record_batch::HEADER_BYTES)
    }

    /// A batch has arrived. Returns it; what is left to do is to tell.
    pub(super) fn acknowledge(&mut self, at: usize, id: Id) -> Option<Sealed> {
        let mut sealed = self.partitions[at].queue.acknowledge(id)?;
        if self.compression == record_batch::Compression::None {
            self.spares.keep_sent(std::mem::take(&mut sealed.bytes));
        }
        Some(sealed)
    }

    /// Whether events wait in a partition, which has no leader: those without a key go elsewhere from now on.
    pub(super) fn waits_in(&mut self, at: usize) -> bool {
        self.partitioner.sealed(at);
        !self.partitions[at].is_empty()
    }

    /// Seals a partition's open batch.
    pub(super) fn seal(&mut self, at: usize) {
        self.partitions[at].seal(self.compression, &mut self.spares);
        self.partitioner.sealed(at);
    }
}

/// An event is larger than the client sends.
fn too_large(topic: &str, bytes: usize, most: usize) -> BrokerError {
    BrokerError {
        kind: BrokerErrorKind::TooLarge,
        action: format!("publish to topic {topic}"),
        reason: format!("an event of {bytes} bytes is more than the client's `message.max.bytes` = {most} allows"),
    }
}

/// The codec of a setting.
fn codec(compression: Compression) -> record_batch::Compression {
    match compression {
        Compression::None => record_batch::Compression::None,
        Compression::Gzip => record_batch::Compression::Gzip,
        Compression::Snappy => record_batch::Compression::Snappy,
        Compression::Lz4 => record_batch::Compression::Lz4,
        Compression::Zstd => record_batch::Compression::Zstd,
    }
}

#[cfg(test)]
mod tests;
