//! Record batches (format 2) to columns and back; events without headers.

use anyhow::{Context, ensure};

use crate::codec::Codec;

/// Bytes of a batch's header, from the base offset to the number of records.
const HEADER: usize = 61;
/// Bytes in front of what a batch's length counts.
const PREFIX: usize = 12;

/// Events as columns.
#[derive(Default)]
pub struct Columns {
    keys: Column,
    values: Column,
    timestamps: Vec<i64>,
}

#[derive(Default)]
struct Column {
    /// Where each part ends in `bytes`.
    ends: Vec<usize>,
    bytes: Vec<u8>,
}

impl Column {
    fn push(&mut self, part: &[u8]) {
        self.bytes.extend_from_slice(part);
        self.ends.push(self.bytes.len());
    }

    fn clear(&mut self) {
        self.ends.clear();
        self.bytes.clear();
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |end| &self.bytes[std::mem::replace(&mut start, *end)..*end])
    }
}

impl Columns {
    /// How many events there are.
    pub fn len(&self) -> usize {
        self.timestamps.len()
    }

    /// Forgets all events and keeps the room.
    pub fn clear(&mut self) {
        self.keys.clear();
        self.values.clear();
        self.timestamps.clear();
    }

    /// Key, value, timestamp of each.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8], i64)> {
        self.keys.iter().zip(self.values.iter()).zip(&self.timestamps).map(|((key, value), time)| (key, value, *time))
    }

    /// The values.
    pub fn values(&self) -> impl Iterator<Item = &[u8]> {
        self.values.iter()
    }
}

/// Appends the events of the first batch in `bytes` from offset `from` on; gives how long that batch was and the offset
/// behind it, or nothing when it is cut short. `room` is for what is decompressed.
///
/// # Errors
/// When it is damaged, or has what is not measured: control batches, headers.
pub fn decode(bytes: &[u8], from: i64, into: &mut Columns, room: &mut Vec<u8>) -> anyhow::Result<Option<(usize, i64)>> {
    if bytes.len() < HEADER {
        return Ok(None);
    }
    let length = usize::try_from(i32_at(bytes, 8))? + PREFIX;
    let Some(batch) = bytes.get(..length) else { return Ok(None) };
    ensure!(length >= HEADER && batch[16] == 2, "no batch of format 2");
    ensure!(crc32c::crc32c(&batch[21..]) == i32_at(batch, 17).cast_unsigned(), "a batch is damaged");
    let attributes = u16::from_be_bytes([batch[21], batch[22]]);
    ensure!(attributes & 0x20 == 0, "a control batch");
    // LogAppendTime: the broker's time counts for all.
    let append_time = (attributes & 8 != 0).then(|| i64_at(batch, 35));
    let (base, base_time) = (i64_at(batch, 0), i64_at(batch, 27));
    let records = match Codec::of(attributes)? {
        Codec::None => &batch[HEADER..],
        codec => {
            codec.decompress(&batch[HEADER..], room)?;
            room.as_slice()
        }
    };
    let mut at = 0;
    for _ in 0..i32_at(batch, 57) {
        let record = record(records, &mut at).context("a record is cut short")?;
        ensure!(record.headers == 0, "an event with headers");
        if base + record.offset >= from {
            into.keys.push(record.key);
            into.values.push(record.value);
            into.timestamps.push(append_time.unwrap_or(base_time + record.time));
        }
    }
    Ok(Some((length, base + i64::from(i32_at(batch, 23)) + 1)))
}

struct Record<'a> {
    offset: i64,
    time: i64,
    key: &'a [u8],
    value: &'a [u8],
    headers: i64,
}

#[inline]
fn record<'a>(bytes: &'a [u8], at: &mut usize) -> Option<Record<'a>> {
    // Its length and its attributes, which say nothing that is not said again.
    varint(bytes, at)?;
    *at += 1;
    let (time, offset) = (varint(bytes, at)?, varint(bytes, at)?);
    let (key, value) = (part(bytes, at)?, part(bytes, at)?);
    Some(Record { offset, time, key, value, headers: varint(bytes, at)? })
}

/// No key and no value are taken for empty ones.
#[inline]
fn part<'a>(bytes: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let length = usize::try_from(varint(bytes, at)?.max(0)).ok()?;
    let part = bytes.get(*at..at.checked_add(length)?)?;
    *at += length;
    Some(part)
}

#[inline]
fn varint(bytes: &[u8], at: &mut usize) -> Option<i64> {
    let (mut number, mut shift) = (0_u64, 0);
    loop {
        let byte = *bytes.get(*at)?;
        *at += 1;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some((number >> 1).cast_signed() ^ -(number & 1).cast_signed());
        }
        shift += 7;
        if shift > 63 {
            return None;
        }
    }
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(std::array::from_fn(|byte| bytes[at + byte]))
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(std::array::from_fn(|byte| bytes[at + byte]))
}

/// A batch that is being written.
pub struct Encoder {
    bytes: Vec<u8>,
    records: i32,
    first_time: i64,
    last_time: i64,
}

impl Encoder {
    /// With room for about `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity);
        bytes.resize(HEADER, 0);
        Self { bytes, records: 0, first_time: 0, last_time: i64::MIN }
    }

    /// Whether nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// How long the batch is before compression.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends an event.
    #[inline]
    pub fn push(&mut self, key: &[u8], value: &[u8], time: i64) {
        if self.records == 0 {
            self.first_time = time;
        }
        self.last_time = self.last_time.max(time);
        let delta = time - self.first_time;
        let (key_len, value_len) = (key.len() as i64, value.len() as i64);
        let number = i64::from(self.records);
        let length = 2
            + varint_len(delta)
            + varint_len(number)
            + varint_len(key_len)
            + key.len()
            + varint_len(value_len)
            + value.len();
        let out = &mut self.bytes;
        put_varint(out, length as i64);
        out.push(0);
        put_varint(out, delta);
        put_varint(out, number);
        put_varint(out, key_len);
        out.extend_from_slice(key);
        put_varint(out, value_len);
        out.extend_from_slice(value);
        out.push(0);
        self.records += 1;
    }

    /// The batch; the encoder begins anew.
    ///
    /// # Errors
    /// When the codec has one.
    pub fn finish(&mut self, codec: Codec) -> anyhow::Result<Vec<u8>> {
        let capacity = self.bytes.capacity();
        let mut done = std::mem::replace(self, Self::new(capacity));
        let mut batch = std::mem::take(&mut done.bytes);
        if codec != Codec::None {
            let mut small = Vec::with_capacity(batch.len() / 2);
            small.resize(HEADER, 0);
            codec.compress(&batch[HEADER..], &mut small)?;
            batch = small;
        }
        let mut put = |at: usize, bytes: &[u8]| batch[at..at + bytes.len()].copy_from_slice(bytes);
        put(12, &(-1_i32).to_be_bytes());
        put(16, &[2]);
        put(21, &(codec as u16).to_be_bytes());
        put(23, &(done.records - 1).to_be_bytes());
        put(27, &done.first_time.to_be_bytes());
        put(35, &done.last_time.to_be_bytes());
        // No producer: id, epoch, sequence.
        put(43, &[0xff; 14]);
        put(57, &done.records.to_be_bytes());
        let length = i32::try_from(batch.len() - PREFIX)?;
        batch[8..12].copy_from_slice(&length.to_be_bytes());
        let crc = crc32c::crc32c(&batch[21..]);
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
        Ok(batch)
    }
}

#[inline]
fn put_varint(out: &mut Vec<u8>, number: i64) {
    let mut rest = zigzag(number);
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[inline]
fn varint_len(number: i64) -> usize {
    (70 - (zigzag(number) | 1).leading_zeros() as usize) / 7
}

#[inline]
fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::{Columns, Encoder, decode};
    use crate::codec::Codec;

    #[test]
    fn what_was_written_is_read() {
        for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
            let mut encoder = Encoder::new(1000);
            let long = vec![7; 20_000];
            encoder.push(b"key", b"value", 1_763_900_000_000);
            encoder.push(b"", &long, 1_763_899_999_000);
            let batch = encoder.finish(codec).unwrap();
            assert!(encoder.is_empty());
            let (mut columns, mut room) = (Columns::default(), Vec::new());
            assert_eq!(decode(&batch[..batch.len() - 1], 0, &mut columns, &mut room).unwrap(), None);
            assert_eq!(decode(&batch, 0, &mut columns, &mut room).unwrap(), Some((batch.len(), 2)));
            let read: Vec<_> = columns.iter().collect();
            assert_eq!(
                read,
                [
                    (b"key".as_slice(), b"value".as_slice(), 1_763_900_000_000),
                    (b"", long.as_slice(), 1_763_899_999_000)
                ]
            );
            columns.clear();
            decode(&batch, 1, &mut columns, &mut room).unwrap();
            assert_eq!(columns.len(), 1);
        }
    }
}
