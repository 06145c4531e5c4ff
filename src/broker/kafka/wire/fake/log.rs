//! A partition as a broker keeps it, with what it knows of idempotent producers. Pure.

use std::collections::{HashMap, VecDeque};

use crate::broker::kafka::wire::record_batch::{OpenBatch, peek};
use crate::broker::kafka::wire::response::{Aborted, ErrorCode};

/// Batches of a producer that are recognised when they come again.
const RECENT: usize = 5;

/// A producer: its epoch, the number of its last record, and its last batches by number, size and offset.
#[derive(Debug, Default)]
struct Producer {
    epoch: i16,
    last: i32,
    recent: VecDeque<(i32, u32, i64)>,
}

/// See the module.
#[derive(Debug)]
pub(in crate::broker::kafka::wire) struct Log {
    /// None while there is none.
    pub(in crate::broker::kafka::wire) leader: Option<i32>,
    pub(in crate::broker::kafka::wire) epoch: i32,
    pub(in crate::broker::kafka::wire) start: i64,
    pub(in crate::broker::kafka::wire) end: i64,
    /// The replica that consumers of another rack are sent to.
    pub(in crate::broker::kafka::wire) preferred: Option<i32>,
    /// `max.message.bytes`.
    pub(in crate::broker::kafka::wire) batch_max: usize,
    /// What is said of a larger one.
    pub(in crate::broker::kafka::wire) too_large: ErrorCode,
    /// A value that is refused, with the batch that it is in.
    pub(in crate::broker::kafka::wire) poison: Option<String>,
    /// Whether it is told which it is (KIP-467).
    pub(in crate::broker::kafka::wire) names_poison: bool,
    pub(in crate::broker::kafka::wire) aborted: Vec<Aborted>,
    batches: Vec<Vec<u8>>,
    producers: HashMap<i64, Producer>,
}

impl Log {
    pub(in crate::broker::kafka::wire) fn new(leader: i32) -> Self {
        Self {
            leader: Some(leader),
            epoch: 0,
            start: 0,
            end: 0,
            preferred: None,
            batch_max: 1_048_588,
            too_large: ErrorCode::MESSAGE_TOO_LARGE,
            poison: None,
            names_poison: false,
            aborted: Vec::new(),
            batches: Vec::new(),
            producers: HashMap::new(),
        }
    }

    /// Another node leads, or none.
    pub(in crate::broker::kafka::wire) fn lead(&mut self, leader: Option<i32>) {
        self.leader = leader;
        self.epoch += 1;
    }

    /// Keeps a batch as it is; its base offset is not below the end.
    pub(in crate::broker::kafka::wire) fn keep(&mut self, batch: Vec<u8>) {
        let header = peek(&batch).unwrap().unwrap();
        assert!(header.base_offset >= self.end);
        self.end = header.next_offset();
        self.batches.push(batch);
    }

    /// Appends a batch of an idempotent producer as Kafka's `ProducerStateManager` would allow it; gives its offset.
    pub(in crate::broker::kafka::wire) fn append(&mut self, batch: &[u8]) -> Result<i64, ErrorCode> {
        let header = peek(batch).unwrap().unwrap();
        assert_eq!(header.bytes, batch.len(), "one batch for each partition of a request");
        let open = OpenBatch::open(batch.to_vec().into(), header, 1 << 28);
        open.expect("a batch that can be read");
        if batch.len() > self.batch_max {
            return Err(self.too_large);
        }
        if !self.poisoned(batch).is_empty() {
            return Err(ErrorCode::INVALID_RECORD);
        }
        let (sequence, records) = (header.base_sequence, header.count);
        match self.producers.get(&header.producer_id) {
            Some(known) if header.producer_epoch < known.epoch => return Err(ErrorCode::INVALID_PRODUCER_EPOCH),
            Some(known) if header.producer_epoch > known.epoch && sequence != 0 => {
                return Err(ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER);
            }
            Some(known) if header.producer_epoch == known.epoch => {
                let recent = known.recent.iter().find(|recent| (recent.0, recent.1) == (sequence, records));
                if let Some((.., offset)) = recent {
                    return Ok(*offset);
                }
                if sequence != known.last.wrapping_add(1) & i32::MAX {
                    return Err(ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER);
                }
            }
            _ => {}
        }
        let producer = self.producers.entry(header.producer_id).or_default();
        if producer.epoch != header.producer_epoch {
            producer.recent.clear();
        }
        let offset = self.end;
        producer.epoch = header.producer_epoch;
        producer.last = sequence.wrapping_add(header.last_offset_delta) & i32::MAX;
        producer.recent.push_back((sequence, records, offset));
        if producer.recent.len() > RECENT {
            producer.recent.pop_front();
        }
        let mut batch = batch.to_vec();
        batch[..8].copy_from_slice(&offset.to_be_bytes());
        self.keep(batch);
        Ok(offset)
    }

    /// The records of a batch that are refused, by their place in it.
    pub(in crate::broker::kafka::wire) fn poisoned(&self, batch: &[u8]) -> Vec<i32> {
        let Some(poison) = &self.poison else { return Vec::new() };
        let values = (0..).zip(values(batch));
        values.filter(|(_, value)| value == poison).map(|(index, _)| index).collect()
    }

    /// The batches from the one that holds `offset` on: one at least, then as many as fit.
    pub(in crate::broker::kafka::wire) fn read(&self, offset: i64, most: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = Vec::new();
        for batch in &self.batches {
            let header = peek(batch).unwrap().unwrap();
            if header.next_offset() <= offset {
                continue;
            }
            if !bytes.is_empty() && bytes.len() + batch.len() > most {
                break;
            }
            bytes.extend(batch);
        }
        bytes
    }

    /// The values of all records, in their order.
    pub(in crate::broker::kafka::wire) fn values(&self) -> Vec<String> {
        self.batches.iter().flat_map(|batch| values(batch)).collect()
    }
}

/// The values of a batch's records.
fn values(batch: &[u8]) -> Vec<String> {
    let header = peek(batch).unwrap().unwrap();
    let mut open = OpenBatch::open(batch.to_vec().into(), header, 1 << 28).unwrap();
    let mut values = Vec::new();
    while let Some(record) = open.next().unwrap() {
        values.push(String::from_utf8_lossy(record.value.unwrap_or(b"-")).into_owned());
    }
    values
}
