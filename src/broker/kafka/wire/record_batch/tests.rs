//! Tests of the codec.

mod differential;
mod fields;
mod hostile;
mod limits;
mod round_trip;

use bytes::Bytes;
use proptest::prelude::*;

use super::decode::Record;
use super::*;

const ALL: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

/// More than the batches here decompress to, unless they are made to.
const LIMIT: usize = 16 << 20;

const PRODUCER: Producer = Producer { id: 4711, epoch: 3 };

/// A record, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Event {
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Event {
    fn new(timestamp: i64, key: &str, value: &str) -> Self {
        Self { timestamp, key: Some(key.into()), value: Some(value.into()), headers: Vec::new() }
    }

    fn append_to(&self, encoder: &mut Encoder) {
        let headers = self.headers.iter().map(|(key, value)| (key.as_slice(), value.as_deref()));
        let (key, value) = (self.key.as_deref(), self.value.as_deref());
        let expected = encoder.bytes() + encoder.size_of(key, value, self.timestamp, headers.clone());
        encoder.append(key, value, self.timestamp, headers);
        assert_eq!(encoder.bytes(), expected, "size_of says what a record adds");
    }
}

impl From<Record<'_>> for Event {
    fn from(record: Record<'_>) -> Self {
        let count = record.headers.len();
        let headers: Vec<_> = record.headers.map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec))).collect();
        assert_eq!(headers.len(), count);
        Self {
            timestamp: record.timestamp,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers,
        }
    }
}

/// A finished, stamped batch.
fn written(events: &[Event], compression: Compression) -> Vec<u8> {
    let mut encoder = Encoder::new(0);
    for event in events {
        event.append_to(&mut encoder);
    }
    let mut batch = encoder.finish(compression).unwrap();
    stamp(&mut batch, PRODUCER, 0, false);
    batch
}

/// The batch's checksum made right again, after something was changed.
fn signed(mut batch: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    batch
}

/// A batch of these bytes in place of records, uncompressed, which says that they are `count`.
fn forged(records: &[u8], count: i32) -> Vec<u8> {
    let mut batch = written(&[Event::new(0, "", "")], Compression::None);
    batch.truncate(HEADER_BYTES);
    batch.extend_from_slice(records);
    let counted = i32::try_from(batch.len()).unwrap() - 12;
    batch[8..12].copy_from_slice(&counted.to_be_bytes());
    batch[23..27].copy_from_slice(&i32::MAX.to_be_bytes());
    batch[57..61].copy_from_slice(&count.to_be_bytes());
    signed(batch)
}

/// The batch at the front of `bytes`, checked and open; None when it is cut short.
fn opened(bytes: &[u8], limit: usize) -> Result<Option<OpenBatch>, BatchError> {
    let Some(header) = peek(bytes)? else { return Ok(None) };
    OpenBatch::open(Bytes::copy_from_slice(&bytes[..header.bytes]), header, limit).map(Some)
}

/// All records of the batch at the front of `bytes`, with their offsets; None when it is cut short.
fn read(bytes: &[u8], limit: usize) -> Result<Option<Vec<(i64, Event)>>, BatchError> {
    let Some(mut open) = opened(bytes, limit)? else { return Ok(None) };
    let mut events = Vec::new();
    while let Some(record) = open.next()? {
        events.push((record.offset, record.into()));
    }
    Ok(Some(events))
}

/// Each event with the offset that it has in a batch that begins at 0.
fn numbered(events: &[Event]) -> Vec<(i64, Event)> {
    (0..).zip(events.iter().cloned()).collect()
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        2 => Just(Vec::new()),
        6 => proptest::collection::vec(any::<u8>(), 0..40),
        3 => proptest::collection::vec(any::<u8>(), 100..600),
        // Lengths of three bytes, and more than a block of any codec.
        1 => (any::<u8>(), 8_000..140_000_usize).prop_map(|(byte, length)| vec![byte; length]),
    ]
}

fn timestamp() -> impl Strategy<Value = i64> {
    prop_oneof![8 => 1_763_900_000_000..1_763_900_100_000_i64, 1 => any::<i64>(), 1 => Just(-1)]
}

fn event() -> impl Strategy<Value = Event> {
    // From a few names, so that some come twice.
    let name = prop_oneof![Just(b"a".to_vec()), Just(b"trace".to_vec()), bytes()];
    let headers = proptest::collection::vec((name, proptest::option::of(bytes())), 0..4);
    let headers = prop_oneof![2 => Just(Vec::new()), 1 => headers];
    (timestamp(), proptest::option::of(bytes()), proptest::option::of(bytes()), headers)
        .prop_map(|(timestamp, key, value, headers)| Event { timestamp, key, value, headers })
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    prop_oneof![
        4 => proptest::collection::vec(event(), 1..12),
        // Offset deltas of two bytes.
        1 => proptest::collection::vec(event(), 100..150),
    ]
}
