//! A produce request in pieces, so that record batches go to the socket from where they lie. kafka-protocol's encoder
//! would copy each of them into the request.
//!
//! Layout: Kafka's protocol guide, "Produce API (Key: 0)", versions 7 to 9; the ninth is flexible (KIP-482).

use bytes::{BufMut, Bytes, BytesMut};

/// The first version with compact strings and arrays.
const FLEXIBLE: i16 = 9;
/// All in-sync replicas must have it.
const ACKS_ALL: i16 = -1;

/// The batches for the partitions of one topic.
#[derive(Clone, Debug)]
pub(super) struct TopicBatches<'a> {
    pub(super) name: &'a str,
    /// Partition and batch.
    pub(super) partitions: Vec<(i32, Bytes)>,
}

/// The request's body, to be written piece after piece.
pub(super) fn produce(
    version: i16,
    transactional_id: Option<&str>,
    timeout_ms: i32,
    topics: &[TopicBatches<'_>],
) -> Vec<Bytes> {
    let mut frame = Frame { flexible: version >= FLEXIBLE, buffer: BytesMut::new(), pieces: Vec::new() };
    frame.nullable_string(transactional_id);
    frame.buffer.put_i16(ACKS_ALL);
    frame.buffer.put_i32(timeout_ms);
    frame.count(topics.len());
    for topic in topics {
        frame.string(topic.name);
        frame.count(topic.partitions.len());
        for (partition, batch) in &topic.partitions {
            frame.buffer.put_i32(*partition);
            frame.bytes(batch.clone());
            frame.tags();
        }
        frame.tags();
    }
    frame.tags();
    frame.finish()
}

struct Frame {
    flexible: bool,
    buffer: BytesMut,
    pieces: Vec<Bytes>,
}

impl Frame {
    fn nullable_string(&mut self, text: Option<&str>) {
        match text {
            Some(text) => self.string(text),
            None if self.flexible => self.buffer.put_u8(0),
            None => self.buffer.put_i16(-1),
        }
    }

    fn string(&mut self, text: &str) {
        if self.flexible {
            self.length(text.len() + 1);
        } else {
            // Topics' names and transactional ids are far shorter.
            self.buffer.put_i16(i16::try_from(text.len()).unwrap_or(i16::MAX));
        }
        self.buffer.put_slice(text.as_bytes());
    }

    fn count(&mut self, count: usize) {
        if self.flexible {
            self.length(count + 1);
        } else {
            self.buffer.put_i32(i32::try_from(count).unwrap_or(i32::MAX));
        }
    }

    fn bytes(&mut self, bytes: Bytes) {
        if self.flexible {
            self.length(bytes.len() + 1);
        } else {
            self.buffer.put_i32(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
        }
        self.pieces.push(self.buffer.split().freeze());
        self.pieces.push(bytes);
    }

    fn tags(&mut self) {
        if self.flexible {
            self.buffer.put_u8(0);
        }
    }

    /// An unsigned varint.
    fn length(&mut self, mut length: usize) {
        while length >= 0x80 {
            self.buffer.put_u8(length as u8 | 0x80);
            length >>= 7;
        }
        self.buffer.put_u8(length as u8);
    }

    fn finish(mut self) -> Vec<Bytes> {
        if !self.buffer.is_empty() {
            self.pieces.push(self.buffer.freeze());
        }
        self.pieces
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::ProduceRequest;
    use kafka_protocol::protocol::Decodable;
    use proptest::prelude::*;

    use super::*;

    /// A partition and its bytes.
    type Batch = (i32, Vec<u8>);

    proptest! {
        /// Another implementation of the protocol reads what was written.
        #[test]
        fn another_implementation_reads_it(
            version in 7..=9i16,
            id in prop::option::of("[a-z]{0,200}"),
            timeout in any::<i32>(),
            topics in prop::collection::vec(("[a-z.]{1,200}", prop::collection::vec((any::<i32>(), prop::collection::vec(any::<u8>(), 0..300)), 0..4)), 0..4),
        ) {
            let batches: Vec<TopicBatches<'_>> = topics.iter().map(|(name, partitions)| TopicBatches {
                name,
                partitions: partitions.iter().map(|(index, batch)| (*index, Bytes::from(batch.clone()))).collect(),
            }).collect();
            let mut body = Bytes::from(produce(version, id.as_deref(), timeout, &batches).concat());
            let read = ProduceRequest::decode(&mut body, version).unwrap();
            prop_assert!(body.is_empty());
            prop_assert_eq!(read.transactional_id.map(|id| id.0.to_string()), id);
            prop_assert_eq!((read.acks, read.timeout_ms), (-1, timeout));
            let read: Vec<(String, Vec<Batch>)> = read.topic_data.into_iter().map(|topic| {
                let partitions = topic.partition_data.into_iter();
                let partitions = partitions.map(|data| (data.index, data.records.unwrap_or_default().to_vec()));
                (topic.name.0.to_string(), partitions.collect())
            }).collect();
            prop_assert_eq!(read, topics);
        }
    }
}
