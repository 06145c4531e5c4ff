//! Builds batches row by row: one copy from the network's buffer into Arrow buffers.

use arrow_array::BinaryArray;
use arrow_buffer::{Buffer, NullBufferBuilder, OffsetBuffer, ScalarBuffer};

use super::{EventBatch, HeaderColumn, Origin};

/// Bytes that a header takes in its columns beside its own: two offsets, and their growth. Without it a million empty
/// headers would count for nothing.
pub(crate) const HEADER_OVERHEAD: usize = 16;

/// Builds one binary column. Plain vectors, so that appending a row is two pushes and a copy.
#[derive(Debug)]
struct ColumnBuilder {
    /// Zero, then the end of each row.
    offsets: Vec<i32>,
    data: Vec<u8>,
    nulls: NullBufferBuilder,
}

impl Default for ColumnBuilder {
    fn default() -> Self {
        Self { offsets: vec![0], data: Vec::new(), nulls: NullBufferBuilder::new(0) }
    }
}

impl ColumnBuilder {
    fn with_capacity(rows: usize) -> Self {
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(0);
        Self { offsets, ..Self::default() }
    }

    fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    #[inline]
    fn append(&mut self, value: Option<&[u8]>) {
        match value {
            Some(value) => {
                self.data.extend_from_slice(value);
                self.nulls.append_non_null();
            }
            None => self.nulls.append_null(),
        }
        let end = i32::try_from(self.data.len()).expect("a column of a batch has less than 2 GiB");
        self.offsets.push(end);
    }

    /// The finished column. The builder is empty again, with room for another of this size: the next batch is likely
    /// to be like this one, and growing step by step would copy it several times.
    fn finish(&mut self) -> BinaryArray {
        let rows = self.len();
        let next = Self { data: Vec::with_capacity(self.data.len()), ..Self::with_capacity(rows) };
        let Self { offsets, data, mut nulls } = std::mem::replace(self, next);
        BinaryArray::new(OffsetBuffer::new(ScalarBuffer::from(offsets)), Buffer::from_vec(data), nulls.finish())
    }
}

/// Builds a [`HeaderColumn`]. Costs nothing while no row has a header.
#[derive(Debug, Default)]
pub struct HeaderBuilder {
    /// Ends of each row's entries; empty until the first header is seen.
    ends: Vec<i32>,
    /// Rows before the first header was seen.
    rows: usize,
    names: ColumnBuilder,
    values: ColumnBuilder,
}

impl HeaderBuilder {
    /// Appends one row's headers; returns their size in bytes, what they take in the columns included.
    #[inline]
    pub fn append<'a>(&mut self, headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> usize {
        let mut bytes = 0;
        let mut any = false;
        for (name, value) in headers {
            any = true;
            bytes += name.len() + value.map_or(0, <[u8]>::len) + HEADER_OVERHEAD;
            self.names.append(Some(name));
            self.values.append(value);
        }
        if any && self.ends.is_empty() {
            self.ends.resize(self.rows, 0);
        }
        self.rows += 1;
        if any || !self.ends.is_empty() {
            self.ends.push(i32::try_from(self.names.len()).expect("a batch has fewer than 2^31 headers"));
        }
        bytes
    }

    /// The finished column; the builder is empty again.
    pub fn finish(&mut self) -> HeaderColumn {
        let rows = (!self.ends.is_empty()).then(|| {
            let mut offsets = Vec::with_capacity(self.ends.len() + 1);
            offsets.push(0);
            offsets.append(&mut self.ends);
            OffsetBuffer::new(ScalarBuffer::from(offsets))
        });
        self.rows = 0;
        HeaderColumn { rows, names: self.names.finish(), values: self.values.finish() }
    }
}

/// Builds an [`EventBatch`].
#[derive(Debug, Default)]
pub struct BatchBuilder {
    keys: ColumnBuilder,
    values: ColumnBuilder,
    headers: HeaderBuilder,
    timestamps: Vec<i64>,
    slots: Vec<u32>,
    offsets: Vec<i64>,
    bytes: usize,
}

impl BatchBuilder {
    /// A builder with room for `rows` events.
    pub fn with_capacity(rows: usize) -> Self {
        Self {
            keys: ColumnBuilder::with_capacity(rows),
            values: ColumnBuilder::with_capacity(rows),
            headers: HeaderBuilder::default(),
            timestamps: Vec::with_capacity(rows),
            slots: Vec::with_capacity(rows),
            offsets: Vec::with_capacity(rows),
            bytes: 0,
        }
    }

    /// The number of events so far.
    pub fn len(&self) -> usize {
        self.timestamps.len()
    }

    /// Whether no event was appended yet.
    pub fn is_empty(&self) -> bool {
        self.timestamps.is_empty()
    }

    /// Bytes of keys, values and headers so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends one event, copying its bytes.
    ///
    /// # Panics
    /// When the keys or values of one batch pass 2 GiB; callers bound a batch by bytes long before.
    #[inline]
    pub fn append<'a>(
        &mut self,
        origin: Origin,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        timestamp: i64,
        headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) {
        self.bytes += key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
        self.keys.append(key);
        self.values.append(value);
        self.bytes += self.headers.append(headers);
        self.timestamps.push(timestamp);
        self.slots.push(origin.slot.0);
        self.offsets.push(origin.offset);
    }

    /// The finished batch; the builder is empty again.
    pub fn finish(&mut self) -> EventBatch {
        let rows = self.len();
        self.bytes = 0;
        EventBatch {
            keys: self.keys.finish(),
            values: self.values.finish(),
            headers: self.headers.finish(),
            timestamps: std::mem::replace(&mut self.timestamps, Vec::with_capacity(rows)).into(),
            slots: std::mem::replace(&mut self.slots, Vec::with_capacity(rows)).into(),
            offsets: std::mem::replace(&mut self.offsets, Vec::with_capacity(rows)).into(),
        }
    }
}
