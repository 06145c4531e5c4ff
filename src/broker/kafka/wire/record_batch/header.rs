//! The 61 bytes that a batch begins with.

use super::{BatchError, Compression};

/// Bytes of a batch before its records.
pub(crate) const HEADER_BYTES: usize = 61;

/// Bytes that the length field does not count: the base offset and the length field itself.
pub(super) const UNCOUNTED: usize = 12;

/// The one message format that is read and written: version 2, of Kafka 0.11 (KIP-98).
pub(super) const MAGIC: i8 = 2;

/// Where the fields begin, as in Kafka's documentation ("Record Batch").
pub(super) mod at {
    pub(crate) const BASE_OFFSET: usize = 0;
    pub(crate) const LENGTH: usize = 8;
    pub(crate) const LEADER_EPOCH: usize = 12;
    pub(crate) const MAGIC: usize = 16;
    pub(crate) const CRC: usize = 17;
    /// What the checksum covers begins here too.
    pub(crate) const ATTRIBUTES: usize = 21;
    pub(crate) const LAST_OFFSET_DELTA: usize = 23;
    pub(crate) const BASE_TIMESTAMP: usize = 27;
    pub(crate) const MAX_TIMESTAMP: usize = 35;
    pub(crate) const PRODUCER_ID: usize = 43;
    pub(crate) const PRODUCER_EPOCH: usize = 51;
    pub(crate) const BASE_SEQUENCE: usize = 53;
    pub(crate) const COUNT: usize = 57;
}

/// Bits of the attributes field.
pub(super) mod attribute {
    pub(crate) const COMPRESSION: i16 = 0x07;
    pub(crate) const LOG_APPEND_TIME: i16 = 0x08;
    pub(crate) const TRANSACTIONAL: i16 = 0x10;
    pub(crate) const CONTROL: i16 = 0x20;
}

/// A batch's header, read without a look at its records. Its checksum is checked when the batch is opened; until
/// then all that is known is that the batch is complete and the fields make sense by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    /// Offset of the first record that the batch was written with. Compaction may have removed that record.
    pub(crate) base_offset: i64,
    /// Size of the whole batch, header included.
    pub(crate) bytes: usize,
    /// Epoch of the leader that appended the batch (KIP-101).
    pub(crate) leader_epoch: i32,
    /// Offset of the last record that the batch was written with, counted from the base offset; never negative.
    pub(crate) last_offset_delta: i32,
    /// What the records' timestamps are counted from, in milliseconds since the Unix epoch. In a batch that waits
    /// for the removal of its tombstones (KIP-534) it is the time of that removal; the records count from it all the
    /// same, so nothing here has to tell the two apart.
    pub(crate) base_timestamp: i64,
    /// The largest timestamp of the records, or when the broker appended the batch (see `log_append_time`).
    pub(crate) max_timestamp: i64,
    /// -1 when the producer was not idempotent.
    pub(crate) producer_id: i64,
    /// -1 when the producer was not idempotent.
    pub(crate) producer_epoch: i16,
    /// Sequence number of the first record; -1 when the producer was not idempotent.
    pub(crate) base_sequence: i32,
    /// How many records the batch claims to hold. Memory must not be reserved by it before the batch was opened.
    pub(crate) count: u32,
    /// How the records are compressed.
    pub(crate) compression: Compression,
    /// The batch holds a marker of the broker, and no events (KIP-98).
    pub(crate) is_control: bool,
    /// The batch belongs to a transaction.
    pub(crate) is_transactional: bool,
    /// The broker wrote its own time, which holds for every record, into `max_timestamp` (KIP-32).
    pub(crate) log_append_time: bool,
}

impl BatchHeader {
    /// The offset to go on with after this batch, whatever records are left in it.
    pub(crate) fn next_offset(&self) -> i64 {
        self.base_offset + i64::from(self.last_offset_delta) + 1
    }

    pub(super) fn malformed(&self, what: &'static str) -> BatchError {
        BatchError::Malformed { offset: self.base_offset, what }
    }
}

/// The header at the front of `bytes`. None when the batch is cut short, as the last one of a fetch may be, and when
/// there are no bytes.
///
/// # Errors
/// When the batch is of an older message format, or its header cannot be right.
pub(crate) fn peek(bytes: &[u8]) -> Result<Option<BatchHeader>, BatchError> {
    // The magic byte comes first: before version 2 the other fields lie elsewhere.
    let Some(&magic) = bytes.get(at::MAGIC) else { return Ok(None) };
    let magic = magic.cast_signed();
    let base_offset = i64::from_be_bytes(field(bytes, at::BASE_OFFSET));
    if magic != MAGIC {
        return Err(BatchError::Magic { offset: base_offset, magic });
    }
    let malformed = |what| BatchError::Malformed { offset: base_offset, what };
    let counted = i32::from_be_bytes(field(bytes, at::LENGTH));
    let size = usize::try_from(counted).ok().and_then(|counted| counted.checked_add(UNCOUNTED));
    let size = size.filter(|size| *size >= HEADER_BYTES).ok_or_else(|| malformed("it has no room for its header"))?;
    if bytes.len() < size {
        return Ok(None);
    }
    let attributes = i16::from_be_bytes(field(bytes, at::ATTRIBUTES));
    let header = BatchHeader {
        base_offset,
        bytes: size,
        leader_epoch: i32::from_be_bytes(field(bytes, at::LEADER_EPOCH)),
        last_offset_delta: i32::from_be_bytes(field(bytes, at::LAST_OFFSET_DELTA)),
        base_timestamp: i64::from_be_bytes(field(bytes, at::BASE_TIMESTAMP)),
        max_timestamp: i64::from_be_bytes(field(bytes, at::MAX_TIMESTAMP)),
        producer_id: i64::from_be_bytes(field(bytes, at::PRODUCER_ID)),
        producer_epoch: i16::from_be_bytes(field(bytes, at::PRODUCER_EPOCH)),
        base_sequence: i32::from_be_bytes(field(bytes, at::BASE_SEQUENCE)),
        count: u32::try_from(i32::from_be_bytes(field(bytes, at::COUNT)))
            .map_err(|_| malformed("the number of records is negative"))?,
        compression: Compression::from_code(attributes & attribute::COMPRESSION)
            .ok_or_else(|| malformed("the compression codec is none that Kafka has"))?,
        is_control: attributes & attribute::CONTROL != 0,
        is_transactional: attributes & attribute::TRANSACTIONAL != 0,
        log_append_time: attributes & attribute::LOG_APPEND_TIME != 0,
    };
    if header.base_offset < 0 || header.last_offset_delta < 0 {
        return Err(malformed("an offset is negative"));
    }
    // From here on, no offset inside of the batch, nor the next one, passes what 64 bits hold.
    if header.base_offset > i64::MAX - i64::from(header.last_offset_delta) - 1 {
        return Err(malformed("its last offset is none"));
    }
    Ok(Some(header))
}

/// The `N` bytes at `at`; zeros where the bytes end earlier, which a caller that checked the length does not see.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

/// Writes `value` at `at`. A batch without a whole header is left as it is: there is none, all are made by `finish`.
pub(super) fn put<const N: usize>(batch: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(field) = batch.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *field = value;
    }
}

/// The attributes field.
pub(super) fn attributes(batch: &[u8]) -> i16 {
    i16::from_be_bytes(field(batch, at::ATTRIBUTES))
}

/// The checksum that the header says.
pub(super) fn stored_crc(batch: &[u8]) -> u32 {
    u32::from_be_bytes(field(batch, at::CRC))
}

/// The checksum of what the batch holds: CRC-32C from the attributes to the end.
pub(super) fn computed_crc(batch: &[u8]) -> u32 {
    crc32c::crc32c(batch.get(at::ATTRIBUTES..).unwrap_or_default())
}
