//! Zstandard. A batch is decompressed at one go, straight into its buffer: a stream would keep a window beside it,
//! whose size (up to 128 MiB and more) the compressed bytes choose.

use std::io::Write;

use zstd::zstd_safe::{self, DCtx};

use super::Stopped;

/// The level of Kafka's default (`compression.zstd.level`).
const LEVEL: i32 = 3;

/// What the library answers when the output is full: the negative of its error code 70, `dstSize_tooSmall`, whose
/// number is part of its stable interface.
const OUTPUT_FULL: usize = 0_usize.wrapping_sub(70);

/// Output to begin with when the frame does not say its size, which streaming producers do not know.
const MIN_GUESS: usize = 128 * 1024;

pub(super) fn decompress(stored: &[u8], limit: usize) -> Result<Vec<u8>, Stopped> {
    let mut context = DCtx::try_create().ok_or_else(|| Stopped::Broken("no memory".into()))?;
    let said = zstd_safe::get_frame_content_size(stored).ok().flatten();
    let said = said.map(|said| usize::try_from(said).unwrap_or(usize::MAX));
    if said.is_some_and(|said| said > limit) {
        return Err(Stopped::TooLarge);
    }
    // Not more than a guess even when the frame says its size, because other frames may follow it.
    let mut room = said.unwrap_or(stored.len().saturating_mul(16).max(MIN_GUESS)).min(limit);
    loop {
        // Memory that is not written to costs next to nothing, so the guess is generous.
        let mut output = Vec::with_capacity(room);
        match context.decompress(&mut output, stored) {
            Ok(_) if output.len() > limit => return Err(Stopped::TooLarge),
            Ok(_) => return Ok(output),
            Err(OUTPUT_FULL) if room >= limit => return Err(Stopped::TooLarge),
            Err(OUTPUT_FULL) => room = room.saturating_mul(4).max(MIN_GUESS).min(limit),
            Err(code) => return Err(Stopped::Broken(zstd_safe::get_error_name(code).into())),
        }
    }
}

/// Appends `records` as one frame, which says its size.
pub(super) fn compress(records: &[u8], output: Vec<u8>) -> Result<Vec<u8>, String> {
    let frame = || {
        let mut encoder = zstd::stream::write::Encoder::new(output, LEVEL)?;
        encoder.set_pledged_src_size(Some(records.len() as u64))?;
        encoder.write_all(records)?;
        encoder.finish()
    };
    frame().map_err(|error: std::io::Error| error.to_string())
}
