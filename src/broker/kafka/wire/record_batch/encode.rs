//! Writing: records are appended to an open batch, which is then finished and stamped.

use bytes::Bytes;

use super::decode::OpenBatch;
use super::header::{MAGIC, UNCOUNTED, at, attribute, attributes, computed_crc, put};
use super::varint::{MAX_BYTES, len_i64, push_i64};
use super::{BatchError, Compression, HEADER_BYTES, compression, peek};

/// A batch that records are appended to. Their offset deltas are 0, 1, 2 and so on; their timestamps are counted from
/// the first one's, and may lie before it.
#[derive(Debug)]
pub(crate) struct Encoder {
    /// Space for the header, then the records, not compressed yet.
    batch: Vec<u8>,
    count: u32,
    base_timestamp: i64,
    max_timestamp: i64,
}

/// Who a batch is from, as the broker told it (InitProducerId).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Producer {
    /// The producer id.
    pub(crate) id: i64,
    /// Its epoch.
    pub(crate) epoch: i16,
}

/// The sizes of a record's parts.
struct Sizes {
    /// What the record's length field says.
    body: usize,
    /// How many headers there are.
    headers: usize,
}

impl Encoder {
    /// An empty batch with room for `capacity` bytes, header included. It grows past that when it must.
    pub(crate) fn new(capacity: usize) -> Self {
        Self::reusing(Vec::with_capacity(capacity.max(HEADER_BYTES)))
    }

    /// An empty batch in the memory of `buffer`, whose content is dropped.
    pub(crate) fn reusing(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.resize(HEADER_BYTES, 0);
        Self { batch: buffer, count: 0, base_timestamp: 0, max_timestamp: i64::MIN }
    }

    /// How many records were appended.
    pub(crate) fn len(&self) -> u32 {
        self.count
    }

    /// Whether none was.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Size of the batch as it stands, header included, without compression.
    pub(crate) fn bytes(&self) -> usize {
        self.batch.len()
    }

    /// How many bytes this record would add if it was appended now.
    #[inline]
    pub(crate) fn size_of<'a>(
        &self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        timestamp: i64,
        headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + Clone,
    ) -> usize {
        let body = self.sizes(key, value, self.timestamp_delta(timestamp), headers).body;
        len_i64(body as i64) + body
    }

    /// Appends a record, whatever its size. The caller keeps the batch well below 2 GiB, the most that a batch can
    /// have.
    #[inline]
    pub(crate) fn append<'a>(
        &mut self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        timestamp: i64,
        headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + Clone,
    ) {
        let _ = self.append_within(usize::MAX, key, value, timestamp, headers);
    }

    /// Appends a record if it adds at most `room` bytes to the batch. Returns how many it added.
    ///
    /// # Errors
    /// How many it would have added.
    // Inlined for the same reason as `OpenBatch::next`.
    #[inline(always)]
    pub(crate) fn append_within<'a>(
        &mut self,
        room: usize,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        timestamp: i64,
        headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + Clone,
    ) -> Result<usize, usize> {
        let base_timestamp = if self.count == 0 { timestamp } else { self.base_timestamp };
        let timestamp_delta = timestamp.wrapping_sub(base_timestamp);
        let sizes = self.sizes(key, value, timestamp_delta, headers.clone());
        let size = len_i64(sizes.body as i64) + sizes.body;
        if size > room {
            return Err(size);
        }
        self.base_timestamp = base_timestamp;
        self.max_timestamp = self.max_timestamp.max(timestamp);

        self.batch.reserve(MAX_BYTES + sizes.body);
        self.varint(sizes.body as i64);
        // The attributes, which have no meaning so far.
        self.batch.push(0);
        self.varint(timestamp_delta);
        self.varint(i64::from(self.count));
        self.varint(length(key));
        self.batch.extend_from_slice(key.unwrap_or_default());
        self.varint(length(value));
        self.batch.extend_from_slice(value.unwrap_or_default());
        self.varint(sizes.headers as i64);
        for (key, value) in headers {
            self.varint(key.len() as i64);
            self.batch.extend_from_slice(key);
            self.varint(length(value));
            self.batch.extend_from_slice(value.unwrap_or_default());
        }
        self.count += 1;
        Ok(size)
    }

    /// Writes the header and compresses the records. Producer fields are those of a producer that is not idempotent,
    /// and the checksum is missing: [`stamp`] writes both.
    ///
    /// # Errors
    /// When there are no records, when the batch passes 2 GiB, and when compressing fails.
    pub(crate) fn finish(self, compression: Compression) -> Result<Vec<u8>, BatchError> {
        Ok(self.finish_and_free(compression)?.0)
    }

    /// As `finish`; beside the batch the memory that it was written in, none where the batch has that itself.
    ///
    /// # Errors
    /// As `finish`.
    pub(crate) fn finish_and_free(self, compression: Compression) -> Result<(Vec<u8>, Vec<u8>), BatchError> {
        let last = self.count.checked_sub(1).ok_or_else(|| unwritable("it has no records"))?;
        if self.batch.len() > i32::MAX as usize {
            return Err(unwritable("it is larger than 2 GiB"));
        }
        let (mut batch, memory) = compression::compress(self.batch, compression)?;
        let counted =
            i32::try_from(batch.len().saturating_sub(UNCOUNTED)).map_err(|_| unwritable("it is larger than 2 GiB"))?;
        put(&mut batch, at::BASE_OFFSET, 0_i64.to_be_bytes());
        put(&mut batch, at::LENGTH, counted.to_be_bytes());
        // The leader writes its epoch.
        put(&mut batch, at::LEADER_EPOCH, (-1_i32).to_be_bytes());
        put(&mut batch, at::MAGIC, MAGIC.to_be_bytes());
        put(&mut batch, at::ATTRIBUTES, compression.code().to_be_bytes());
        put(&mut batch, at::LAST_OFFSET_DELTA, last.to_be_bytes());
        put(&mut batch, at::BASE_TIMESTAMP, self.base_timestamp.to_be_bytes());
        put(&mut batch, at::MAX_TIMESTAMP, self.max_timestamp.to_be_bytes());
        put(&mut batch, at::PRODUCER_ID, (-1_i64).to_be_bytes());
        put(&mut batch, at::PRODUCER_EPOCH, (-1_i16).to_be_bytes());
        put(&mut batch, at::BASE_SEQUENCE, (-1_i32).to_be_bytes());
        put(&mut batch, at::COUNT, self.count.to_be_bytes());
        Ok((batch, memory))
    }

    /// From the first record's timestamp, which this one is when there is none yet. It wraps, and so does what reads
    /// it: every timestamp comes back.
    #[inline(always)]
    fn timestamp_delta(&self, timestamp: i64) -> i64 {
        if self.count == 0 { 0 } else { timestamp.wrapping_sub(self.base_timestamp) }
    }

    #[inline(always)]
    fn sizes<'a>(
        &self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        timestamp_delta: i64,
        headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) -> Sizes {
        let (mut count, mut bytes) = (0, 0);
        for (key, value) in headers {
            count += 1;
            bytes += sized(Some(key)) + sized(value);
        }
        let deltas = len_i64(timestamp_delta) + len_i64(i64::from(self.count));
        let body = 1 + deltas + sized(key) + sized(value) + len_i64(count as i64) + bytes;
        Sizes { body, headers: count }
    }

    #[inline(always)]
    fn varint(&mut self, value: i64) {
        push_i64(&mut self.batch, value);
    }
}

fn unwritable(why: &str) -> BatchError {
    BatchError::Unwritable(why.into())
}

/// What a length field says: -1 for nothing.
#[inline(always)]
fn length(bytes: Option<&[u8]>) -> i64 {
    bytes.map_or(-1, |bytes| bytes.len() as i64)
}

/// Size of bytes and of the length before them.
#[inline(always)]
fn sized(bytes: Option<&[u8]>) -> usize {
    len_i64(length(bytes)) + bytes.map_or(0, <[u8]>::len)
}

/// Writes who a finished batch is from, the sequence number of its first record and whether it belongs to a
/// transaction; then its checksum. May be done again, for a retry under a new epoch.
pub(crate) fn stamp(batch: &mut [u8], producer: Producer, base_sequence: i32, transactional: bool) {
    let kept = attributes(batch) & !attribute::TRANSACTIONAL;
    let bit = if transactional { attribute::TRANSACTIONAL } else { 0 };
    put(batch, at::ATTRIBUTES, (kept | bit).to_be_bytes());
    put(batch, at::PRODUCER_ID, producer.id.to_be_bytes());
    put(batch, at::PRODUCER_EPOCH, producer.epoch.to_be_bytes());
    put(batch, at::BASE_SEQUENCE, base_sequence.to_be_bytes());
    let crc = computed_crc(batch);
    put(batch, at::CRC, crc.to_be_bytes());
}

/// A new batch with those records of a finished one for whose index `keep` says yes: a half of it, when the broker
/// found it too large, or all but those that it refused. It has to be stamped.
///
/// # Errors
/// When nothing is kept, and when `batch` was not made by [`Encoder::finish`].
pub(crate) fn reencode(
    batch: &[u8],
    compression: Compression,
    mut keep: impl FnMut(u32) -> bool,
) -> Result<Vec<u8>, BatchError> {
    let header = peek(batch)?.ok_or_else(|| unwritable("it is cut short"))?;
    // Ours, so it fits into memory: it did when it was written.
    let mut open = OpenBatch::unchecked(&Bytes::copy_from_slice(batch), header, i32::MAX as usize)?;
    let mut encoder = Encoder::new(batch.len());
    let mut index = 0;
    while let Some(record) = open.next()? {
        if keep(index) {
            encoder.append(record.key, record.value, record.timestamp, record.headers);
        }
        index += 1;
    }
    encoder.finish(compression)
}
