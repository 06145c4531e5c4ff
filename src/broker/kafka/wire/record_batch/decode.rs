//! Reading: a batch is opened, then its records are taken one after the other.

use bytes::Bytes;

use super::header::{computed_crc, stored_crc};
use super::varint::{read_i32, read_i64};
use super::{BatchError, BatchHeader, HEADER_BYTES, compression};

/// The fewest bytes that a record has: its length, attributes, two deltas, the lengths of key and value, and the
/// number of headers.
const MIN_RECORD_BYTES: usize = 7;

/// The fewest bytes that a record's header has: the lengths of its key and value.
const MIN_HEADER_BYTES: usize = 2;

/// A batch whose checksum was right, decompressed, on its way from the first record to the last.
#[derive(Debug)]
pub(crate) struct OpenBatch {
    header: BatchHeader,
    /// The records, decompressed.
    records: Bytes,
    next: Cursor,
}

/// A place between two records of an open batch, to come back to. Of use with the batch that it came from only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// Where the next record begins.
    at: usize,
    /// How many records were read.
    read: u32,
}

/// One record. Absent and empty are kept apart, in the key, the value and the headers' values.
#[derive(Clone, Debug)]
pub(crate) struct Record<'a> {
    /// Its place in the partition: inside of what the batch's header says, and as a rule above the record before,
    /// which is not checked.
    pub(crate) offset: i64,
    /// Milliseconds since the Unix epoch: the producer's time, or the broker's in a batch with `log_append_time`.
    pub(crate) timestamp: i64,
    /// The key; None when there is none.
    pub(crate) key: Option<&'a [u8]>,
    /// The value; None in a tombstone.
    pub(crate) value: Option<&'a [u8]>,
    /// The headers in their order, duplicates included.
    pub(crate) headers: RecordHeaders<'a>,
}

impl OpenBatch {
    /// Checks the checksum of `batch` and decompresses its records, to `limit` bytes at most. `header` is what
    /// [`super::peek`] read from it. Records that are not compressed stay where they are, whatever the limit.
    ///
    /// # Errors
    /// When the checksum is wrong, when decompressing fails or passes the limit, and when the batch claims more
    /// records than can be in its bytes.
    pub(crate) fn open(batch: Bytes, header: BatchHeader, limit: usize) -> Result<Self, BatchError> {
        if batch.len() != header.bytes {
            return Err(header.malformed("its length is not the one that its header says"));
        }
        let (stored, computed) = (stored_crc(&batch), computed_crc(&batch));
        if stored != computed {
            return Err(BatchError::Crc { offset: header.base_offset, stored, computed });
        }
        Self::unchecked(&batch, header, limit)
    }

    /// As `open`, for a batch whose checksum need not be right.
    pub(super) fn unchecked(batch: &Bytes, header: BatchHeader, limit: usize) -> Result<Self, BatchError> {
        let stored = batch.slice(HEADER_BYTES.min(batch.len())..);
        // What compaction leaves of a batch may have no records, and then no compressed stream either.
        let records = if stored.is_empty() { stored } else { compression::decompress(stored, &header, limit)? };
        if header.count as usize > records.len() / MIN_RECORD_BYTES {
            return Err(header.malformed("it says that it holds more records than it has bytes for"));
        }
        Ok(Self { header, records, next: Cursor { at: 0, read: 0 } })
    }

    /// The batch's header.
    #[cfg(test)]
    pub(crate) fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The next record; None at the end.
    ///
    /// # Errors
    /// When the record contradicts its bytes, and when bytes follow the last one. Asked again, the answer is the
    /// same.
    // Inlined, so that a record stays in registers: in memory, what is written in parts and then read as a whole
    // waits until all earlier writes have reached the cache.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Result<Option<Record<'_>>, BatchError> {
        let rest = self.records.get(self.next.at..).unwrap_or_default();
        if self.next.read >= self.header.count {
            return if rest.is_empty() { Ok(None) } else { Err(self.header.malformed("bytes follow the last record")) };
        }
        match read_record(rest, &self.header) {
            Ok((record, left)) => {
                self.next = Cursor { at: self.records.len() - left, read: self.next.read + 1 };
                Ok(Some(record))
            }
            Err(what) => Err(self.header.malformed(what)),
        }
    }

    /// Where the batch stands: before the record that `next` gives.
    #[inline]
    pub(crate) fn cursor(&self) -> Cursor {
        self.next
    }

    /// Goes back to where the batch stood, to read a record again.
    #[inline]
    pub(crate) fn rewind(&mut self, to: Cursor) {
        self.next = to;
    }
}

/// The record at the front of `input`, and how many bytes are left behind it; or what is wrong with it.
#[inline(always)]
fn read_record<'a>(input: &'a [u8], header: &BatchHeader) -> Result<(Record<'a>, usize), &'static str> {
    const CUT: &str = "a record ends before its fields do";
    let mut rest = input;
    let length = read_i32(&mut rest).ok_or("a record's length is no number")?;
    let length = usize::try_from(length).map_err(|_| "a record's length is negative")?;
    let (mut body, behind) = rest.split_at_checked(length).ok_or("a record is longer than its batch")?;
    // The attributes of a record have no meaning so far.
    let Some((_, after)) = body.split_first() else { return Err(CUT) };
    body = after;
    let timestamp_delta = read_i64(&mut body).ok_or(CUT)?;
    let offset_delta = read_i32(&mut body).ok_or(CUT)?;
    if offset_delta < 0 || offset_delta > header.last_offset_delta {
        return Err("a record's offset is outside of its batch");
    }
    let key = read_bytes(&mut body)?;
    let value = read_bytes(&mut body)?;
    let headers = read_headers(body)?;
    let timestamp =
        if header.log_append_time { header.max_timestamp } else { header.base_timestamp.wrapping_add(timestamp_delta) };
    let offset = header.base_offset + i64::from(offset_delta);
    Ok((Record { offset, timestamp, key, value, headers }, behind.len()))
}

/// Bytes that are preceded by their length; -1 stands for none.
#[inline(always)]
fn read_bytes<'a>(input: &mut &'a [u8]) -> Result<Option<&'a [u8]>, &'static str> {
    const CUT: &str = "a key or value is longer than its record";
    let length = read_i32(input).ok_or(CUT)?;
    if let Ok(length) = usize::try_from(length) {
        let (bytes, rest) = input.split_at_checked(length).ok_or(CUT)?;
        *input = rest;
        return Ok(Some(bytes));
    }
    if length == -1 { Ok(None) } else { Err("the length of a key or value is negative") }
}

/// The headers, which fill the rest of a record.
#[inline(always)]
fn read_headers(mut input: &[u8]) -> Result<RecordHeaders<'_>, &'static str> {
    // Most records have none: one byte, a zero.
    if let [0] = input {
        return Ok(RecordHeaders { input: &[], left: 0 });
    }
    let count = read_i32(&mut input).ok_or("the number of headers is no number")?;
    let left = u32::try_from(count).map_err(|_| "the number of headers is negative")?;
    check_headers(input, left)?;
    Ok(RecordHeaders { input, left })
}

/// Reads all headers once, so that nothing can fail later.
#[inline(never)]
fn check_headers(mut input: &[u8], count: u32) -> Result<(), &'static str> {
    if count as usize > input.len() / MIN_HEADER_BYTES {
        return Err("a record says that it has more headers than it has bytes for");
    }
    for _ in 0..count {
        read_header(&mut input)?;
    }
    if input.is_empty() { Ok(()) } else { Err("a record is longer than its fields") }
}

fn read_header<'a>(input: &mut &'a [u8]) -> Result<(&'a [u8], Option<&'a [u8]>), &'static str> {
    let key = read_bytes(input)?.ok_or("a header has no key")?;
    Ok((key, read_bytes(input)?))
}

/// A record's headers: key, and value unless it is null. They were read once already, so going through them does not
/// fail.
#[derive(Clone, Debug)]
pub(crate) struct RecordHeaders<'a> {
    input: &'a [u8],
    left: u32,
}

impl<'a> Iterator for RecordHeaders<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        read_header(&mut self.input).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for RecordHeaders<'_> {}

/// What a control batch's record says (KIP-98).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ControlType {
    /// The producer's open transaction on the partition was aborted.
    Abort,
    /// It was committed.
    Commit,
    /// Something else, which consumers skip: a leader change of the metadata quorum, or what later versions have.
    Other(i16),
}

/// What the record of a control batch says. None when its key is too short to say anything, or of a negative version.
pub(crate) fn control_type(record: &Record<'_>) -> Option<ControlType> {
    let (version, rest) = record.key?.split_first_chunk()?;
    let kind = i16::from_be_bytes(*rest.first_chunk()?);
    (i16::from_be_bytes(*version) >= 0).then_some(match kind {
        0 => ControlType::Abort,
        1 => ControlType::Commit,
        other => ControlType::Other(other),
    })
}
