//! Record batches of message format 2 (KIP-98): bytes in, bytes out.
//!
//! A batch is opened once ([`OpenBatch::open`] checks its checksum and decompresses it) and then read record by
//! record, with no object for any of them: a [`Record`] borrows from the batch. The way back is an [`Encoder`], which
//! writes each record once, where it stays. Nothing here knows connections, topics or columns.
//!
//! Everything that is read may come from a broken or hostile broker. Lengths, counts and varints are believed only
//! as far as there are bytes, decompression stops at a limit that the caller gives, and a failure is always a
//! [`BatchError`].
//!
//! This module is complete in itself, so that the fuzzer and the benchmark can be built from its files alone: it names
//! nothing of the crate around it.

mod compression;
mod decode;
mod encode;
mod header;
#[cfg(test)]
mod tests;
mod varint;

pub(crate) use compression::Compression;
pub(crate) use decode::{ControlType, OpenBatch, control_type};
pub(crate) use encode::{Encoder, Producer, reencode, stamp};
pub(crate) use header::{BatchHeader, HEADER_BYTES, peek};

/// Why a batch cannot be read or written. `offset` is the batch's base offset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BatchError {
    /// Bytes changed on the way, on the broker's disk or in the network.
    #[error(
        "the record batch at offset {offset} is corrupt: its checksum is {computed:#010x}, and {stored:#010x} is \
         written in it"
    )]
    Crc {
        /// The batch.
        offset: i64,
        /// What the header says.
        stored: u32,
        /// What the bytes say.
        computed: u32,
    },
    /// Written by a producer from before Kafka 0.11, and never converted.
    #[error(
        "the record batch at offset {offset} is of message format {magic}; only format 2, of Kafka 0.11 and later, is \
         read"
    )]
    Magic {
        /// The batch.
        offset: i64,
        /// The format.
        magic: i8,
    },
    /// The checksum may be right, and still the fields contradict each other.
    #[error("the record batch at offset {offset} is malformed: {what}")]
    Malformed {
        /// The batch.
        offset: i64,
        /// What does not fit.
        what: &'static str,
    },
    /// The compressed bytes are no stream of the codec.
    #[error("the record batch at offset {offset} cannot be decompressed by {codec}: {reason}")]
    Codec {
        /// The batch.
        offset: i64,
        /// The codec.
        codec: Compression,
        /// In the codec's own words.
        reason: String,
    },
    /// The records take more memory than is allowed for a batch.
    #[error("the record batch at offset {offset} is larger than {limit} bytes when it is decompressed")]
    TooLarge {
        /// The batch.
        offset: i64,
        /// The most that is allowed, in bytes.
        limit: usize,
    },
    /// A batch that is written holds at least one record, its size is a 31-bit number, and its codec finds memory.
    #[error("a record batch cannot be written: {0}")]
    Unwritable(String),
}
