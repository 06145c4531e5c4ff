//! The codecs that are measured, as Kafka frames them.

use std::io::{Read, Write};
use std::str::FromStr;

use anyhow::{Context, bail};
use lz4_flex::frame::{FrameDecoder, FrameEncoder};

/// A codec; the number is Kafka's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// None at all.
    None = 0,
    /// LZ4 frames.
    Lz4 = 3,
    /// Zstandard.
    Zstd = 4,
}

impl Codec {
    /// By the attributes of a batch.
    ///
    /// # Errors
    /// When it is one that is not measured.
    pub fn of(attributes: u16) -> anyhow::Result<Self> {
        match attributes & 7 {
            0 => Ok(Self::None),
            3 => Ok(Self::Lz4),
            4 => Ok(Self::Zstd),
            other => bail!("codec {other}"),
        }
    }

    /// Puts what `from` holds into `into`, which is cleared first.
    ///
    /// # Errors
    /// When it was not compressed by this codec.
    pub fn decompress(self, from: &[u8], into: &mut Vec<u8>) -> anyhow::Result<()> {
        into.clear();
        match self {
            Self::None => into.extend_from_slice(from),
            Self::Lz4 => {
                FrameDecoder::new(from).read_to_end(into).context("lz4")?;
            }
            Self::Zstd => {
                zstd::Decoder::with_buffer(from)?.read_to_end(into).context("zstd")?;
            }
        }
        Ok(())
    }

    /// Appends `from`, compressed.
    ///
    /// # Errors
    /// When the codec has one.
    pub fn compress(self, from: &[u8], into: &mut Vec<u8>) -> anyhow::Result<()> {
        match self {
            Self::None => into.extend_from_slice(from),
            Self::Lz4 => {
                let mut encoder = FrameEncoder::new(into);
                encoder.write_all(from)?;
                encoder.finish()?;
            }
            Self::Zstd => zstd::stream::copy_encode(from, into, 3)?,
        }
        Ok(())
    }
}

impl FromStr for Codec {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        match name {
            "none" => Ok(Self::None),
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd),
            _ => bail!("codec `{name}` is none of none, lz4, zstd"),
        }
    }
}
