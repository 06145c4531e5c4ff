//! Events as columns: the batch that a source fills, a function receives and a sink reads.
//!
//! No broker types and no WebAssembly types live here. Everything is in Arrow layout, so that a batch crosses into
//! a function, and from a function's outcome into a broker's record batch, without an object for each event.

mod builder;
mod outcome;
mod publication;

use arrow_array::{Array, BinaryArray};
use arrow_buffer::{Buffer, OffsetBuffer, ScalarBuffer};

pub(crate) use builder::HEADER_OVERHEAD;
pub use builder::{BatchBuilder, HeaderBuilder};
pub use outcome::{ColumnSource, Failure, FailureKind, HeaderSource, Outcome, OutcomeError};
pub use publication::{Publication, Rows};

use crate::delivery::Slot;

/// Where an event came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// One assignment of one partition (or stream) to this process.
    pub slot: Slot,
    /// The event's offset in its partition, or its sequence number in its stream.
    pub offset: i64,
}

/// The headers of all rows of a batch, flattened; order and duplicates are kept.
#[derive(Clone, Debug)]
pub struct HeaderColumn {
    /// Row i owns entries `rows[i]..rows[i + 1]`; `None` when no row has a header.
    pub rows: Option<OffsetBuffer<i32>>,
    /// Header names as bytes: a broker does not promise UTF-8.
    pub names: BinaryArray,
    /// Header values; null is different from empty.
    pub values: BinaryArray,
}

impl HeaderColumn {
    /// A column in which no row has a header.
    pub fn empty() -> Self {
        let none = || BinaryArray::new(OffsetBuffer::new_empty(), Buffer::from_vec(Vec::<u8>::new()), None);
        Self { rows: None, names: none(), values: none() }
    }

    /// Bytes of memory that the column holds.
    fn memory(&self) -> usize {
        self.names.get_buffer_memory_size() + self.values.get_buffer_memory_size()
    }

    /// The headers of one row.
    ///
    /// # Panics
    /// When `row` is out of range.
    #[inline]
    pub fn row(&self, row: usize) -> Headers<'_> {
        let range = match &self.rows {
            Some(rows) => rows[row] as usize..rows[row + 1] as usize,
            None => 0..0,
        };
        Headers { column: self, range }
    }
}

/// The headers of one event, in order: (name, value or null).
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    column: &'a HeaderColumn,
    range: std::ops::Range<usize>,
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.range.next()?;
        Some((self.column.names.value(entry), nullable(&self.column.values, entry)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.range.size_hint()
    }
}

impl ExactSizeIterator for Headers<'_> {}

/// A batch of events in Arrow layout. Cloning shares the buffers.
#[derive(Clone, Debug)]
pub struct EventBatch {
    /// Null: the event has no key.
    pub keys: BinaryArray,
    /// Null: a tombstone.
    pub values: BinaryArray,
    /// Headers of each event.
    pub headers: HeaderColumn,
    /// Milliseconds since the Unix epoch.
    pub timestamps: ScalarBuffer<i64>,
    /// The partition assignment each event came by.
    pub slots: ScalarBuffer<u32>,
    /// The offset of each event.
    pub offsets: ScalarBuffer<i64>,
}

/// One event of a batch, by reference.
#[derive(Clone, Debug)]
pub struct EventRef<'a> {
    /// `None`: the event has no key.
    pub key: Option<&'a [u8]>,
    /// `None`: a tombstone.
    pub value: Option<&'a [u8]>,
    /// The event's headers, in order.
    pub headers: Headers<'a>,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
}

impl EventBatch {
    /// The number of events.
    pub fn len(&self) -> usize {
        self.timestamps.len()
    }

    /// Whether the batch has no events.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that the batch holds, about.
    pub fn memory(&self) -> usize {
        let fixed = size_of::<i64>() + size_of::<u32>() + size_of::<i64>();
        let columns = self.keys.get_buffer_memory_size() + self.values.get_buffer_memory_size();
        columns + self.headers.memory() + fixed * self.len()
    }

    /// One event.
    ///
    /// # Panics
    /// When `row` is out of range.
    pub fn row(&self, row: usize) -> EventRef<'_> {
        EventRef {
            key: nullable(&self.keys, row),
            value: nullable(&self.values, row),
            headers: self.headers.row(row),
            timestamp: self.timestamps[row],
        }
    }

    /// Where one event came from.
    pub fn origin(&self, row: usize) -> Origin {
        Origin { slot: Slot(self.slots[row]), offset: self.offsets[row] }
    }

    /// A new batch with copies of the chosen rows, in the order given.
    ///
    /// # Panics
    /// When a row is out of range.
    pub fn select(&self, rows: &[u32]) -> EventBatch {
        let mut builder = BatchBuilder::with_capacity(rows.len());
        for &row in rows {
            let row = row as usize;
            let event = self.row(row);
            builder.append(self.origin(row), event.key, event.value, event.timestamp, event.headers);
        }
        builder.finish()
    }
}

/// The value at `row`, or `None` where it is null.
pub(crate) fn nullable(column: &BinaryArray, row: usize) -> Option<&[u8]> {
    column.is_valid(row).then(|| column.value(row))
}

#[cfg(test)]
mod tests;
