//! Requests to one broker over one connection, each answered before the next, or several on their way.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiKey, BrokerId, FetchRequest, FetchResponse, ListOffsetsRequest, ListOffsetsResponse, MetadataRequest,
    MetadataResponse, ProduceRequest, ProduceResponse, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};

use crate::batch::{Columns, decode};

/// How long an answer may take beyond what the broker is let wait.
const ANSWER: Duration = Duration::from_secs(30);
const ANSWER_MS: i32 = 30_000;
/// Larger than any answer to what is asked here.
const LARGEST: usize = 64 << 20;
/// Bytes of one answer to a fetch, and of one partition in it.
const FETCH_BYTES: i32 = 4 << 20;
const PARTITION_BYTES: i32 = 1 << 20;
const FETCH: i16 = 11;
const PRODUCE: i16 = 9;
const LIST_OFFSETS: i16 = 5;
const METADATA: i16 = 9;

/// The end of a partition, for [`Connection::offsets`].
pub const LATEST: i64 = -1;
/// Its beginning.
pub const EARLIEST: i64 = -2;

/// A connection to the broker.
pub struct Connection {
    stream: TcpStream,
    out: BytesMut,
    room: Vec<u8>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When the broker does not listen.
    pub fn open(broker: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(broker).with_context(|| format!("connecting to {broker}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER))?;
        Ok(Self { stream, out: BytesMut::new(), room: Vec::new() })
    }

    /// How many partitions a topic has.
    ///
    /// # Errors
    /// When there is no such topic.
    pub fn partitions(&mut self, topic: &str) -> anyhow::Result<usize> {
        let wanted = MetadataRequestTopic::default().with_name(Some(name(topic)));
        self.send(ApiKey::Metadata, &MetadataRequest::default().with_topics(Some(vec![wanted])), METADATA)?;
        let answer: MetadataResponse = self.receive(METADATA)?;
        let found = answer.topics.first().context("no answer about the topic")?;
        ensure!(found.error_code == 0, "topic {topic}: error code {}", found.error_code);
        Ok(found.partitions.len())
    }

    /// The offset of each partition at `time`, which is [`EARLIEST`] or [`LATEST`].
    ///
    /// # Errors
    /// When the broker refuses.
    pub fn offsets(&mut self, topic: &str, partitions: usize, time: i64) -> anyhow::Result<Vec<i64>> {
        let wanted = (0..i32::try_from(partitions)?)
            .map(|partition| ListOffsetsPartition::default().with_partition_index(partition).with_timestamp(time));
        let wanted = ListOffsetsTopic::default().with_name(name(topic)).with_partitions(wanted.collect());
        let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![wanted]);
        self.send(ApiKey::ListOffsets, &request, LIST_OFFSETS)?;
        let answer: ListOffsetsResponse = self.receive(LIST_OFFSETS)?;
        let mut offsets = vec![0; partitions];
        for found in answer.topics.iter().flat_map(|topic| &topic.partitions) {
            ensure!(found.error_code == 0, "{topic}[{}]: error code {}", found.partition_index, found.error_code);
            *offsets.get_mut(usize::try_from(found.partition_index)?).context("a partition too many")? = found.offset;
        }
        Ok(offsets)
    }

    /// Appends what the partitions have from `offsets` on, and moves these; waits for events `wait` at most.
    ///
    /// # Errors
    /// When the broker refuses, or what it sends is damaged.
    pub fn fetch(
        &mut self,
        topic: &str,
        offsets: &mut [i64],
        wait: Duration,
        into: &mut Columns,
    ) -> anyhow::Result<()> {
        let wanted = (0..).zip(offsets.iter()).map(|(partition, offset)| {
            FetchPartition::default()
                .with_partition(partition)
                .with_fetch_offset(*offset)
                .with_partition_max_bytes(PARTITION_BYTES)
                .with_current_leader_epoch(-1)
        });
        let wanted = FetchTopic::default().with_topic(name(topic)).with_partitions(wanted.collect());
        let request = FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(i32::try_from(wait.as_millis())?)
            .with_min_bytes(1)
            .with_max_bytes(FETCH_BYTES)
            // No fetch session (KIP-227).
            .with_session_epoch(-1)
            .with_topics(vec![wanted]);
        self.send(ApiKey::Fetch, &request, FETCH)?;
        let answer: FetchResponse = self.receive(FETCH)?;
        for found in answer.responses.iter().flat_map(|topic| &topic.partitions) {
            ensure!(found.error_code == 0, "{topic}[{}]: error code {}", found.partition_index, found.error_code);
            let offset = offsets.get_mut(usize::try_from(found.partition_index)?).context("a partition too many")?;
            let mut rest = found.records.as_deref().unwrap_or_default();
            while let Some((length, next)) = decode(rest, *offset, into, &mut self.room)? {
                rest = &rest[length..];
                *offset = next;
            }
        }
        Ok(())
    }

    /// Sends a batch for each of these partitions, `acks=all`; the answer is taken by [`produced`](Self::produced).
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn produce(&mut self, topic: &str, batches: Vec<(i32, Vec<u8>)>) -> anyhow::Result<()> {
        let parts = batches.into_iter().map(|(partition, batch)| {
            PartitionProduceData::default().with_index(partition).with_records(Some(Bytes::from(batch)))
        });
        let data = TopicProduceData::default().with_name(name(topic)).with_partition_data(parts.collect());
        let request = ProduceRequest::default().with_acks(-1).with_timeout_ms(ANSWER_MS).with_topic_data(vec![data]);
        self.send(ApiKey::Produce, &request, PRODUCE)
    }

    /// Takes the answer to the oldest [`produce`](Self::produce) that has none.
    ///
    /// # Errors
    /// When the broker refused a batch.
    pub fn produced(&mut self) -> anyhow::Result<()> {
        let answer: ProduceResponse = self.receive(PRODUCE)?;
        for part in answer.responses.iter().flat_map(|topic| &topic.partition_responses) {
            ensure!(part.error_code == 0, "produce to partition {}: error code {}", part.index, part.error_code);
        }
        Ok(())
    }

    fn send<Q: Encodable + HeaderVersion>(&mut self, api: ApiKey, request: &Q, version: i16) -> anyhow::Result<()> {
        self.out.clear();
        self.out.put_u32(0);
        let header = RequestHeader::default()
            .with_request_api_key(api as i16)
            .with_request_api_version(version)
            .with_client_id(Some(StrBytes::from_static_str("bare")));
        header.encode(&mut self.out, Q::header_version(version))?;
        request.encode(&mut self.out, version)?;
        let length = u32::try_from(self.out.len() - 4)?;
        self.out[..4].copy_from_slice(&length.to_be_bytes());
        Ok(self.stream.write_all(&self.out)?)
    }

    fn receive<A: Decodable + HeaderVersion>(&mut self, version: i16) -> anyhow::Result<A> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).context("no answer")?;
        let length = usize::try_from(u32::from_be_bytes(length))?;
        ensure!(length <= LARGEST, "an answer of {length} bytes");
        let mut body = Vec::with_capacity(length);
        (&mut self.stream).take(length as u64).read_to_end(&mut body)?;
        ensure!(body.len() == length, "an answer was cut short");
        let mut body = Bytes::from(body);
        ResponseHeader::decode(&mut body, A::header_version(version))?;
        A::decode(&mut body, version)
    }
}

fn name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}

/// The partition of a key, as Kafka's own clients choose it (murmur2).
#[inline]
pub fn partition(key: &[u8], partitions: usize) -> usize {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c_u32 ^ key.len() as u32;
    let (words, rest) = key.as_chunks::<4>();
    for word in words {
        let mut part = u32::from_le_bytes(*word).wrapping_mul(M);
        part = (part ^ (part >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ part;
    }
    if !rest.is_empty() {
        let part = rest.iter().rev().fold(0, |part, byte| part << 8 | u32::from(*byte));
        hash = (hash ^ part).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^= hash >> 15;
    (hash & 0x7fff_ffff) as usize % partitions
}

#[cfg(test)]
mod tests {
    #[test]
    fn keys_are_hashed_as_by_kafka() {
        // From Kafka's own UtilsTest.testMurmur2, made positive, modulo a prime.
        for (key, hash) in [("21", -973_932_308_i32), ("foobar", -790_332_482), ("abc", 479_470_107)] {
            let expected = (hash.cast_unsigned() & 0x7fff_ffff) as usize % 1_000_003;
            assert_eq!(super::partition(key.as_bytes(), 1_000_003), expected, "{key}");
        }
    }
}
