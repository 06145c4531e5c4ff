//! Record batches as brokers keep them, written byte by byte after Kafka's documentation: what the encoder here would
//! never write, such as gaps, control batches and checksums that are wrong.

use bytes::Bytes;

use crate::broker::kafka::wire::record_batch::{Compression, Encoder, Producer, stamp};

/// Bits of the attributes field.
pub(in crate::broker::kafka::wire) const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;

/// When the records of a batch were written, unless a test says something else.
pub(in crate::broker::kafka::wire) const TIME: i64 = 1_700_000_000_000;

/// A record: its offset from the base, key and value.
type Record = (i32, Option<Vec<u8>>, Option<Vec<u8>>);

/// A record batch to be.
#[derive(Clone, Debug)]
pub(in crate::broker::kafka::wire) struct Raw {
    pub(in crate::broker::kafka::wire) base: i64,
    /// The offset from the base of the last record that the batch was written with.
    pub(in crate::broker::kafka::wire) last: i32,
    pub(in crate::broker::kafka::wire) records: Vec<Record>,
    pub(in crate::broker::kafka::wire) attributes: i16,
    pub(in crate::broker::kafka::wire) max_timestamp: i64,
    pub(in crate::broker::kafka::wire) producer: i64,
    pub(in crate::broker::kafka::wire) epoch: i32,
}

impl Raw {
    /// The records at these offsets are left of those from `base` to `last`; each has its offset as value.
    pub(in crate::broker::kafka::wire) fn of(base: i64, last: i64, left: impl IntoIterator<Item = i64>) -> Self {
        let record = |offset: i64| {
            (i32::try_from(offset - base).unwrap(), Some(b"key".to_vec()), Some(offset.to_string().into_bytes()))
        };
        Self {
            base,
            last: i32::try_from(last - base).unwrap(),
            records: left.into_iter().map(record).collect(),
            attributes: 0,
            max_timestamp: TIME,
            producer: -1,
            epoch: 0,
        }
    }

    /// All records from `base` to `last`.
    pub(in crate::broker::kafka::wire) fn whole(base: i64, last: i64) -> Self {
        Self::of(base, last, base..=last)
    }

    /// Part of a producer's transaction.
    pub(in crate::broker::kafka::wire) fn by(mut self, producer: i64) -> Self {
        self.producer = producer;
        self.attributes |= TRANSACTIONAL;
        self
    }

    /// The end of a producer's transaction.
    pub(in crate::broker::kafka::wire) fn marker(base: i64, producer: i64, commits: bool) -> Self {
        let mut raw = Self::whole(base, base).by(producer);
        raw.attributes |= CONTROL;
        let mut key = 0_i16.to_be_bytes().to_vec();
        key.extend(i16::from(commits).to_be_bytes());
        raw.records = vec![(0, Some(key), Some(vec![0; 6]))];
        raw
    }

    /// The bytes, with a checksum that is right.
    pub(in crate::broker::kafka::wire) fn bytes(&self) -> Vec<u8> {
        let mut batch = self.base.to_be_bytes().to_vec();
        batch.extend(0_i32.to_be_bytes()); // its length, later
        batch.extend(self.epoch.to_be_bytes());
        batch.push(2);
        batch.extend(0_u32.to_be_bytes()); // its checksum, later
        batch.extend(self.attributes.to_be_bytes());
        batch.extend(self.last.to_be_bytes());
        batch.extend(TIME.to_be_bytes());
        batch.extend(self.max_timestamp.to_be_bytes());
        batch.extend(self.producer.to_be_bytes());
        batch.extend(0_i16.to_be_bytes());
        batch.extend(0_i32.to_be_bytes());
        batch.extend(i32::try_from(self.records.len()).unwrap().to_be_bytes());
        for (delta, key, value) in &self.records {
            let mut record = vec![0];
            varint(&mut record, 0);
            varint(&mut record, i64::from(*delta));
            for bytes in [key, value] {
                varint(&mut record, bytes.as_ref().map_or(-1, |bytes| bytes.len() as i64));
                record.extend(bytes.iter().flatten());
            }
            varint(&mut record, 0);
            varint(&mut batch, record.len() as i64);
            batch.extend(record);
        }
        let length = i32::try_from(batch.len() - 12).unwrap();
        batch[8..12].copy_from_slice(&length.to_be_bytes());
        let crc = crc32c::crc32c(&batch[21..]);
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
        batch
    }

    /// The same records as the encoder writes them, compressed; without gaps.
    pub(in crate::broker::kafka::wire) fn compressed(&self, compression: Compression) -> Vec<u8> {
        let mut encoder = Encoder::new(0);
        for (_, key, value) in &self.records {
            encoder.append(key.as_deref(), value.as_deref(), TIME, std::iter::empty());
        }
        let mut batch = encoder.finish(compression).unwrap();
        stamp(&mut batch, Producer { id: self.producer, epoch: 0 }, 0, self.attributes & TRANSACTIONAL != 0);
        batch[..8].copy_from_slice(&self.base.to_be_bytes());
        batch
    }
}

/// Batches one behind the other, as a fetch brings them.
pub(in crate::broker::kafka::wire) fn set(batches: impl IntoIterator<Item = Raw>) -> Bytes {
    batches.into_iter().flat_map(|batch| batch.bytes()).collect::<Vec<u8>>().into()
}

fn varint(bytes: &mut Vec<u8>, value: i64) {
    let mut left = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while left >= 0x80 {
        bytes.push(left as u8 | 0x80);
        left >>= 7;
    }
    bytes.push(left as u8);
}
