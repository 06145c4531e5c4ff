//! The codecs that the records of a batch may be compressed with, as the Java clients write and read them.
//!
//! What is read stops at a limit, whatever the compressed bytes promise: no buffer here grows past it.

mod snappy;
mod zstandard;

use std::fmt;
use std::io::{self, Read, Write};

use bytes::Bytes;
use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};

use super::{BatchError, BatchHeader, HEADER_BYTES};

/// How records are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Compression {
    /// Not at all.
    None,
    /// A gzip stream.
    Gzip,
    /// Blocks of Snappy in the framing of the Java library (xerial); a bare block is read too.
    Snappy,
    /// An LZ4 frame of independent blocks.
    Lz4,
    /// Zstandard frames (KIP-110).
    Zstd,
}

impl Compression {
    /// The number that stands for it in a batch's attributes.
    pub(super) const fn code(self) -> i16 {
        self as i16
    }

    /// What `code` stands for, if anything.
    pub(super) const fn from_code(code: i16) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            1 => Some(Self::Gzip),
            2 => Some(Self::Snappy),
            3 => Some(Self::Lz4),
            4 => Some(Self::Zstd),
            _ => None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// Why decompressing ended.
#[derive(Debug)]
pub(super) enum Stopped {
    /// The bytes are no stream of the codec.
    Broken(String),
    /// More would come than is allowed.
    TooLarge,
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

impl From<snap::Error> for Stopped {
    fn from(error: snap::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// The records in `stored`, decompressed as `header` says.
///
/// # Errors
/// When they are larger than `limit`, or the compressed bytes are broken.
pub(super) fn decompress(stored: Bytes, header: &BatchHeader, limit: usize) -> Result<Bytes, BatchError> {
    if header.compression == Compression::None {
        return Ok(stored);
    }
    inflate(&stored, header.compression, limit).map(Bytes::from).map_err(|stopped| match stopped {
        Stopped::TooLarge => BatchError::TooLarge { offset: header.base_offset, limit },
        Stopped::Broken(reason) => BatchError::Codec { offset: header.base_offset, codec: header.compression, reason },
    })
}

/// What `stored` decompresses to, in a buffer that is never larger than `limit` and one byte.
pub(super) fn inflate(stored: &[u8], compression: Compression, limit: usize) -> Result<Vec<u8>, Stopped> {
    match compression {
        Compression::None => Ok(stored.to_vec()),
        Compression::Gzip => read_all(flate2::bufread::MultiGzDecoder::new(stored), stored.len(), limit),
        Compression::Snappy => snappy::decompress(stored, limit),
        // Beside the buffer it holds two blocks, of 4 MiB each at most (8 MiB in the legacy format).
        Compression::Lz4 => read_all(FrameDecoder::new(stored), stored.len(), limit),
        Compression::Zstd => zstandard::decompress(stored, limit),
    }
}

/// `batch`, which begins with space for a header, with everything behind that compressed; and the memory that is free
/// then, none where nothing was to compress.
///
/// # Errors
/// When the codec fails, which it does for want of memory only.
pub(super) fn compress(batch: Vec<u8>, compression: Compression) -> Result<(Vec<u8>, Vec<u8>), BatchError> {
    let records = batch.get(HEADER_BYTES..).unwrap_or_default();
    let output = || {
        let mut output = Vec::with_capacity(HEADER_BYTES + records.len() / 2);
        output.resize(HEADER_BYTES, 0);
        output
    };
    let written = match compression {
        Compression::None => return Ok((batch, Vec::new())),
        Compression::Gzip => write_gzip(records, output()),
        Compression::Snappy => snappy::compress(records, output()).map_err(|error| error.to_string()),
        Compression::Lz4 => write_lz4(records, output()),
        Compression::Zstd => zstandard::compress(records, output()),
    };
    let written = written.map_err(|reason| BatchError::Unwritable(format!("{compression}: {reason}")))?;
    Ok((written, batch))
}

/// What a decoder gives, to its end. The buffer never grows past `limit` and one byte, by which more is noticed.
fn read_all(mut decoder: impl Read, stored: usize, limit: usize) -> Result<Vec<u8>, Stopped> {
    let most = limit.saturating_add(1);
    let mut output = Vec::with_capacity(stored.saturating_mul(4).min(most));
    loop {
        let room = output.capacity() - output.len();
        if room == 0 {
            output.reserve_exact(output.len().max(4096).min(most - output.len()));
            continue;
        }
        // The room is filled and no more: `read_to_end` does not grow a buffer that the end of `take` fits into.
        let read = decoder.by_ref().take(room as u64).read_to_end(&mut output)?;
        if output.len() > limit {
            return Err(Stopped::TooLarge);
        }
        if read < room {
            return Ok(output);
        }
    }
}

fn write_gzip(records: &[u8], output: Vec<u8>) -> Result<Vec<u8>, String> {
    let mut encoder = flate2::write::GzEncoder::new(output, flate2::Compression::default());
    encoder.write_all(records).and_then(|()| encoder.finish()).map_err(|error| error.to_string())
}

fn write_lz4(records: &[u8], output: Vec<u8>) -> Result<Vec<u8>, String> {
    // The Java clients refuse blocks that depend on each other, and write blocks of this size.
    let frame = FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max64KB);
    let mut encoder = FrameEncoder::with_frame_info(frame, output);
    encoder.write_all(records).map_err(|error| error.to_string())?;
    encoder.finish().map_err(|error| error.to_string())
}
