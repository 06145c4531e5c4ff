//! What lies on a broker's disk: the record batches as the broker keeps them, without any client in between.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};

/// Bytes in front of a batch's length and with it.
const PREFIX: usize = 12;
/// Where a batch has its attributes: two bytes, the codec in the three lowest bits.
const ATTRIBUTES: std::ops::Range<usize> = 21..23;

/// The codecs of all batches of a topic.
pub(super) fn codecs(log: &Path, topic: &str) -> anyhow::Result<BTreeSet<&'static str>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(log)? {
        let folder = entry?.path();
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.rsplit_once('-').is_some_and(|(name, partition)| name == topic && partition.parse::<u32>().is_ok()) {
            for entry in fs::read_dir(&folder)? {
                let file = entry?.path();
                if file.extension().is_some_and(|extension| extension == "log") {
                    codecs_of(&fs::read(&file)?, &mut found).with_context(|| file.display().to_string())?;
                }
            }
        }
    }
    Ok(found)
}

fn codecs_of(mut rest: &[u8], found: &mut BTreeSet<&'static str>) -> anyhow::Result<()> {
    while let Some(length) = rest.get(8..PREFIX) {
        let length = usize::try_from(u32::from_be_bytes([length[0], length[1], length[2], length[3]]))?;
        if length == 0 {
            // Room that the broker took for later.
            return Ok(());
        }
        let attributes = rest.get(ATTRIBUTES).context("a batch without attributes")?;
        let name = match attributes[1] & 7 {
            0 => "none",
            1 => "gzip",
            2 => "snappy",
            3 => "lz4",
            4 => "zstd",
            other => anyhow::bail!("codec {other}"),
        };
        found.insert(name);
        ensure!(rest.len() >= PREFIX + length, "a batch is cut short");
        rest = &rest[PREFIX + length..];
    }
    Ok(())
}
