//! Nanoseconds per record in the record-batch codec: `cargo run --release` in this folder.
//!
//! Decoding checks the checksum and copies keys, values, timestamps and offsets into columns, as the source does.
//! Encoding reads such columns, and writes the checksum. Each figure is the best and the median of many repetitions
//! over one batch that stays in the cache; on a machine that does other things too, the best is the one to compare.

#[path = "../../../src/broker/kafka/wire"]
mod wire {
    #[allow(dead_code, unused_imports, reason = "the benchmark uses a part of it")]
    pub(crate) mod record_batch;
}

use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use wire::record_batch::{BatchError, Compression, Encoder, OpenBatch, Producer, peek, stamp};

/// How often each figure is taken.
const ROUNDS: usize = 41;
/// Records that one round goes through, at least.
const RECORDS: usize = 40_000;
/// More than any batch here takes.
const LIMIT: usize = 64 << 20;

/// Rows of events as the plane holds them: bytes end to end, and where each row's end.
#[derive(Debug, Default, PartialEq)]
struct Columns {
    keys: Vec<u8>,
    key_ends: Vec<u32>,
    values: Vec<u8>,
    value_ends: Vec<u32>,
    timestamps: Vec<i64>,
    offsets: Vec<i64>,
}

impl Columns {
    fn sample(value_bytes: usize, rows: usize) -> Self {
        let mut columns = Self::default();
        for row in 0..rows {
            let key = format!("c-{:06}", row * 7919 % 997);
            let value: Vec<u8> = (0..value_bytes).map(|at| ((row * 31 + at * 7) % 95 + 32) as u8).collect();
            columns.push(row as i64, 1_763_900_000_000 + row as i64, key.as_bytes(), &value);
        }
        columns
    }

    #[inline(always)]
    fn push(&mut self, offset: i64, timestamp: i64, key: &[u8], value: &[u8]) {
        self.keys.extend_from_slice(key);
        self.key_ends.push(self.keys.len() as u32);
        self.values.extend_from_slice(value);
        self.value_ends.push(self.values.len() as u32);
        self.timestamps.push(timestamp);
        self.offsets.push(offset);
    }

    fn clear(&mut self) {
        self.keys.clear();
        self.key_ends.clear();
        self.values.clear();
        self.value_ends.clear();
        self.timestamps.clear();
        self.offsets.clear();
    }

    fn rows(&self) -> usize {
        self.timestamps.len()
    }
}

#[inline(never)]
fn encode(columns: &Columns, buffer: Vec<u8>, compression: Compression) -> Result<Vec<u8>, BatchError> {
    let mut encoder = Encoder::reusing(buffer);
    let (mut key_start, mut value_start) = (0, 0);
    for row in 0..columns.rows() {
        let (key_end, value_end) = (columns.key_ends[row] as usize, columns.value_ends[row] as usize);
        let (key, value) = (&columns.keys[key_start..key_end], &columns.values[value_start..value_end]);
        encoder.append(Some(key), Some(value), columns.timestamps[row], std::iter::empty());
        (key_start, value_start) = (key_end, value_end);
    }
    let mut batch = encoder.finish(compression)?;
    stamp(&mut batch, Producer { id: 1, epoch: 0 }, 0, false);
    Ok(batch)
}

#[inline(never)]
fn decode(batch: &Bytes, columns: &mut Columns) -> Result<(), BatchError> {
    let Some(header) = peek(batch)? else { return Ok(()) };
    let mut open = OpenBatch::open(batch.clone(), header, LIMIT)?;
    while let Some(record) = open.next()? {
        let (key, value) = (record.key.unwrap_or_default(), record.value.unwrap_or_default());
        columns.push(record.offset, record.timestamp, key, value);
    }
    Ok(())
}

/// Best and median nanoseconds per record.
fn time(rows: usize, mut work: impl FnMut() -> Result<(), BatchError>) -> Result<(f64, f64), BatchError> {
    let times = RECORDS.div_ceil(rows);
    let mut rounds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..times {
            work()?;
        }
        rounds.push(start.elapsed().as_nanos() as f64 / (times * rows) as f64);
    }
    rounds.sort_by(f64::total_cmp);
    Ok((rounds[0], rounds[ROUNDS / 2]))
}

fn measure(value_bytes: usize, rows: usize, compression: Compression) -> Result<(), BatchError> {
    let columns = Columns::sample(value_bytes, rows);
    let batch = Bytes::from(encode(&columns, Vec::new(), compression)?);
    let mut decoded = Columns::default();
    decode(&batch, &mut decoded)?;
    assert_eq!(columns, decoded, "what is decoded is what was encoded");
    let reading = time(rows, || {
        decoded.clear();
        decode(black_box(&batch), &mut decoded)?;
        black_box(&decoded);
        Ok(())
    })?;
    let mut buffer = Vec::with_capacity(batch.len() + 100);
    let writing = time(rows, || {
        buffer = encode(black_box(&columns), std::mem::take(&mut buffer), compression)?;
        black_box(&buffer);
        Ok(())
    })?;
    println!(
        "{compression:<6} {value_bytes:>6} B x {rows:<5} decode + CRC {:6.1} best {:6.1} median   encode + CRC {:6.1} \
         best {:6.1} median",
        reading.0, reading.1, writing.0, writing.1
    );
    Ok(())
}

fn main() -> Result<(), BatchError> {
    println!("nanoseconds per record, {ROUNDS} rounds");
    for (value_bytes, rows) in [(100, 1000), (250, 1000), (250, 4000), (1024, 1000), (10240, 100)] {
        measure(value_bytes, rows, Compression::None)?;
    }
    for compression in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        measure(250, 4000, compression)?;
    }
    Ok(())
}
