//! Record batches of hostile brokers. The input is read as it is, and again as a batch whose header claims nothing
//! false, so that the fuzzer gets past the checksum to the codecs and the records.
#![no_main]

#[path = "../../src/broker/kafka/wire"]
mod wire {
    #[allow(dead_code, unused_imports, reason = "the target uses a part of it")]
    pub(crate) mod record_batch;
}

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use wire::record_batch::{BatchError, Compression, OpenBatch, Producer, control_type, peek, reencode, stamp};

/// What a batch may decompress to. Far less than the fuzzer lets an input allocate, so a bomb is found.
const LIMIT: usize = 1 << 20;

/// Where the length field is, what it does not count, and where the message format is.
const LENGTH: std::ops::Range<usize> = 8..12;
const UNCOUNTED: usize = 12;
const MAGIC: usize = 16;

/// Every record of the batches in `bytes`, each read twice; then half of them written again and read back.
fn read(mut bytes: &[u8]) -> Result<(), BatchError> {
    while let Some(header) = peek(bytes)? {
        let (batch, rest) = bytes.split_at(header.bytes);
        bytes = rest;
        let mut open = OpenBatch::open(Bytes::copy_from_slice(batch), header, LIMIT)?;
        let mut values = Vec::new();
        loop {
            let here = open.cursor();
            let Some(record) = open.next()? else { break };
            assert!((header.base_offset..header.next_offset()).contains(&record.offset));
            assert_eq!(record.headers.clone().count(), record.headers.len());
            control_type(&record);
            let length = record.value.map(<[u8]>::len);
            open.rewind(here);
            let again = open.next()?.expect("a record that was there is there again");
            assert_eq!(again.value.map(<[u8]>::len), length);
            values.push(length);
        }
        assert_eq!(values.len(), header.count as usize);
        if let Ok(mut half) = reencode(batch, Compression::None, |index| index % 2 == 0) {
            stamp(&mut half, Producer { id: 1, epoch: 1 }, 0, false);
            let header = peek(&half)?.expect("a batch that was written is whole");
            let mut open = OpenBatch::open(Bytes::from(half), header, LIMIT)?;
            for length in values.iter().step_by(2) {
                let record = open.next()?.expect("a record that was written is there");
                assert_eq!(record.value.map(<[u8]>::len), *length);
            }
            assert!(open.next()?.is_none());
        }
    }
    Ok(())
}

/// The input with a length, a message format and a checksum that are right.
fn honest(input: &[u8]) -> Option<Vec<u8>> {
    let mut batch = input.to_vec();
    let counted = i32::try_from(batch.len().checked_sub(UNCOUNTED)?).ok()?;
    batch.get_mut(LENGTH)?.copy_from_slice(&counted.to_be_bytes());
    *batch.get_mut(MAGIC)? = 2;
    let header = peek(&batch).ok()??;
    let producer = Producer { id: header.producer_id, epoch: header.producer_epoch };
    stamp(&mut batch, producer, header.base_sequence, header.is_transactional);
    Some(batch)
}

fuzz_target!(|input: &[u8]| {
    // An error is an answer, and so is none.
    let _ = read(input);
    if let Some(batch) = honest(input) {
        let _ = read(&batch);
    }
});
