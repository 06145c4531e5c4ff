//! Snappy: the framing of the Java library (xerial), and the bare block that librdkafka writes.

use snap::raw::{Decoder, Encoder, decompress_len, max_compress_len};

use super::Stopped;

/// What the framing begins with; two version numbers follow, of 4 bytes each.
const MAGIC: &[u8; 8] = b"\x82SNAPPY\0";

/// The framing's head as the Java library writes it: version 1, readable by version 1.
const HEAD: &[u8; 16] = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";

/// Bytes that the Java library compresses in one block.
const BLOCK_BYTES: usize = 32 * 1024;

/// Snappy cannot do better: its densest element is a copy of 64 bytes in 3.
const BEST_RATIO: usize = 22;

pub(super) fn decompress(stored: &[u8], limit: usize) -> Result<Vec<u8>, Stopped> {
    let mut output = Vec::new();
    if !stored.starts_with(MAGIC) {
        block(stored, limit, &mut output)?;
        return Ok(output);
    }
    let mut rest = stored.get(HEAD.len()..).ok_or_else(|| cut("head"))?;
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk().ok_or_else(|| cut("block length"))?;
        let length = u32::from_be_bytes(*length) as usize;
        let (compressed, after) = after.split_at_checked(length).ok_or_else(|| cut("block"))?;
        block(compressed, limit, &mut output)?;
        rest = after;
    }
    Ok(output)
}

/// Decompresses one block onto the end of `output`.
fn block(compressed: &[u8], limit: usize, output: &mut Vec<u8>) -> Result<(), Stopped> {
    let length = decompress_len(compressed)?;
    if length > limit.saturating_sub(output.len()) {
        return Err(Stopped::TooLarge);
    }
    if length > compressed.len().saturating_mul(BEST_RATIO) {
        return Err(Stopped::Broken("a block promises more than it can hold".into()));
    }
    let start = output.len();
    if output.capacity() - start < length {
        // As a vector grows by itself, but not past the limit.
        output.reserve_exact(length.max(start.min(limit - start)));
    }
    output.resize(start + length, 0);
    Decoder::new().decompress(compressed, &mut output[start..])?;
    Ok(())
}

fn cut(what: &str) -> Stopped {
    Stopped::Broken(format!("the stream ends inside of a {what}"))
}

/// Appends `records` in the Java library's framing, which every client reads.
pub(super) fn compress(records: &[u8], mut output: Vec<u8>) -> Result<Vec<u8>, snap::Error> {
    let mut encoder = Encoder::new();
    output.extend_from_slice(HEAD);
    for block in records.chunks(BLOCK_BYTES) {
        let length_at = output.len();
        let start = length_at + 4;
        output.resize(start + max_compress_len(block.len()), 0);
        let length = encoder.compress(block, &mut output[start..])?;
        // A block of 32 KB stays far below 4 GiB.
        output[length_at..start].copy_from_slice(&(length as u32).to_be_bytes());
        output.truncate(start + length);
    }
    Ok(output)
}
