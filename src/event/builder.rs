//! Builds batches row by row: one copy from the network's buffer into Arrow buffers.

use arrow_array::{BinaryArray, builder::BinaryBuilder};
use arrow_buffer::{OffsetBuffer, ScalarBuffer};

use super::{EventBatch, HeaderColumn, Origin};

/// Builds a [`HeaderColumn`]. Costs nothing while no row has a header.
#[derive(Debug, Default)]
pub struct HeaderBuilder {
    /// Ends of each row's entries; empty until the first header is seen.
    ends: Vec<i32>,
    /// Rows before the first header was seen.
    rows: usize,
    names: BinaryBuilder,
    values: BinaryBuilder,
}

impl HeaderBuilder {
    /// Appends one row's headers; returns their size in bytes.
    pub fn append<'a>(&mut self, headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> usize {
        let mut bytes = 0;
        let mut any = false;
        for (name, value) in headers {
            any = true;
            bytes += name.len() + value.map_or(0, <[u8]>::len);
            self.names.append_value(name);
            self.values.append_option(value);
        }
        if any && self.ends.is_empty() {
            self.ends.resize(self.rows, 0);
        }
        self.rows += 1;
        if any || !self.ends.is_empty() {
            self.ends.push(self.names.len_entries());
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

/// The number of entries as Arrow counts them. Batches are bounded far below `i32::MAX` entries.
trait Entries {
    fn len_entries(&self) -> i32;
}

impl Entries for BinaryBuilder {
    fn len_entries(&self) -> i32 {
        use arrow_array::builder::ArrayBuilder;
        i32::try_from(self.len()).expect("a batch has fewer than 2^31 headers")
    }
}

/// Builds an [`EventBatch`].
#[derive(Debug, Default)]
pub struct BatchBuilder {
    keys: BinaryBuilder,
    values: BinaryBuilder,
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
            keys: BinaryBuilder::with_capacity(rows, 0),
            values: BinaryBuilder::with_capacity(rows, 0),
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

    /// Bytes of keys, values, header names and header values so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends one event, copying its bytes.
    ///
    /// # Panics
    /// When the keys or values of one batch pass 2 GiB; callers bound a batch by bytes long before.
    pub fn append<'a>(
        &mut self,
        origin: Origin,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        timestamp: i64,
        headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) {
        self.bytes += key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
        self.keys.append_option(key);
        self.values.append_option(value);
        self.bytes += self.headers.append(headers);
        self.timestamps.push(timestamp);
        self.slots.push(origin.slot.0);
        self.offsets.push(origin.offset);
    }

    /// The finished batch; the builder is empty again.
    pub fn finish(&mut self) -> EventBatch {
        self.bytes = 0;
        let (keys, values): (BinaryArray, BinaryArray) = (self.keys.finish(), self.values.finish());
        EventBatch {
            keys,
            values,
            headers: self.headers.finish(),
            timestamps: std::mem::take(&mut self.timestamps).into(),
            slots: std::mem::take(&mut self.slots).into(),
            offsets: std::mem::take(&mut self.offsets).into(),
        }
    }
}
