//! What a cluster's test asks its brokers again and again, spoken by hand: it takes milliseconds, where Kafka's own
//! tools start a JVM each, and librdkafka cannot do some of it at all.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic};
use kafka_protocol::messages::elect_leaders_request::TopicPartitions;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_response::MetadataResponsePartition;
use kafka_protocol::messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, BrokerId, ElectLeadersRequest,
    ElectLeadersResponse, FetchRequest, FetchResponse, ListOffsetsRequest, ListOffsetsResponse, MetadataRequest,
    MetadataResponse, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};

/// The longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(30);
const ANSWER_MS: i32 = 30_000;
/// Larger than any answer.
const LARGEST: usize = 4 << 20;
/// Bytes that one fetch may bring, and how long the broker waits for some.
const FETCH_BYTES: i32 = 1 << 20;
const FETCH_WAIT_MS: i32 = 20;
/// `read_committed`.
const READ_COMMITTED: i8 = 1;
/// The timestamp that stands for the end of a partition.
const LATEST: i64 = -1;
/// ELECTION_NOT_NEEDED: it leads already.
const NOT_NEEDED: i16 = 84;
/// The one that is to lead is not in sync at the moment (PREFERRED_LEADER_NOT_AVAILABLE).
const NOT_IN_SYNC: i16 = 80;

/// A partition as a broker sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    /// Its number.
    pub(crate) id: i32,
    /// The broker that leads it, if one does.
    pub(crate) leader: Option<i32>,
    /// The brokers that keep it, in the order of preference.
    pub(crate) replicas: Vec<i32>,
    /// Those of them that have all of it.
    pub(crate) in_sync: Vec<i32>,
}

/// What a broker knows of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// The brokers that are there.
    pub(crate) brokers: Vec<i32>,
    /// All topics, Kafka's own included.
    pub(crate) topics: BTreeMap<String, Vec<Partition>>,
}

/// What a broker has of a partition.
pub(super) struct Fetched {
    /// Record batches, the last of them perhaps cut.
    pub(super) records: Bytes,
    /// Aborted transactions among them: the first offset and the producer.
    pub(super) aborted: Vec<(i64, i64)>,
    /// Why it has nothing, or 0.
    pub(super) error: i16,
}

/// A connection to a broker, which passes what it is asked on to the controller.
pub(super) struct Admin(TcpStream);

impl Admin {
    /// Connects to the broker at `port`.
    ///
    /// # Errors
    /// When it does not listen.
    pub(super) fn connect(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    /// What this broker knows.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn view(&mut self) -> anyhow::Result<View> {
        let answer: MetadataResponse = self.call(&MetadataRequest::default().with_topics(None), 9)?;
        let ids = |list: &[BrokerId]| list.iter().map(|id| id.0).collect();
        let partition = |found: &MetadataResponsePartition| Partition {
            id: found.partition_index,
            leader: Some(found.leader_id.0).filter(|leader| *leader >= 0),
            replicas: ids(&found.replica_nodes),
            in_sync: ids(&found.isr_nodes),
        };
        let topics = answer.topics.iter().filter_map(|topic| {
            let partitions = topic.partitions.iter().map(partition).collect();
            Some((topic.name.as_ref()?.to_string(), partitions))
        });
        Ok(View { brokers: answer.brokers.iter().map(|broker| broker.node_id.0).collect(), topics: topics.collect() })
    }

    /// Where the next event of a partition will be, which this broker must lead; batches of an open transaction count.
    ///
    /// # Errors
    /// When it does not lead it, or does not answer.
    pub(super) fn end(&mut self, topic: &str, partition: i32) -> anyhow::Result<i64> {
        let wanted = ListOffsetsPartition::default().with_partition_index(partition).with_timestamp(LATEST);
        let wanted = ListOffsetsTopic::default().with_name(name(topic)).with_partitions(vec![wanted]);
        let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![wanted]);
        let answer: ListOffsetsResponse = self.call(&request, 5)?;
        let found = answer.topics.first().and_then(|topic| topic.partitions.first()).context("no answer")?;
        ensure!(found.error_code == 0, "the end of {topic}[{partition}]: error code {}", found.error_code);
        Ok(found.offset)
    }

    /// The events of a partition from an offset on, as far as they are committed; the broker waits for some.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn fetch(&mut self, topic: &str, partition: i32, offset: i64) -> anyhow::Result<Fetched> {
        let wanted = FetchPartition::default()
            .with_partition(partition)
            .with_fetch_offset(offset)
            .with_partition_max_bytes(FETCH_BYTES);
        let wanted = FetchTopic::default().with_topic(name(topic)).with_partitions(vec![wanted]);
        let request = FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(FETCH_WAIT_MS)
            .with_min_bytes(1)
            .with_max_bytes(FETCH_BYTES)
            .with_isolation_level(READ_COMMITTED)
            .with_topics(vec![wanted]);
        let answer: FetchResponse = self.call(&request, 4)?;
        let found = answer.responses.into_iter().next().and_then(|topic| topic.partitions.into_iter().next());
        let found = found.context("no answer")?;
        let aborted = found.aborted_transactions.unwrap_or_default();
        let aborted = aborted.iter().map(|aborted| (aborted.first_offset, aborted.producer_id.0)).collect();
        Ok(Fetched { records: found.records.unwrap_or_default(), aborted, error: found.error_code })
    }

    /// Makes these the replicas of each of these partitions, in this order; the first is the one that shall lead. Where
    /// none is added nothing is moved, and this is done when the answer is there.
    ///
    /// # Errors
    /// When the controller refuses.
    pub(super) fn order_replicas(&mut self, topic: &str, replicas: &[(i32, Vec<i32>)]) -> anyhow::Result<()> {
        let partitions = replicas.iter().map(|(partition, replicas)| {
            let replicas = replicas.iter().map(|id| BrokerId(*id)).collect();
            ReassignablePartition::default().with_partition_index(*partition).with_replicas(Some(replicas))
        });
        let topic = ReassignableTopic::default().with_name(name(topic)).with_partitions(partitions.collect());
        let request = AlterPartitionReassignmentsRequest::default().with_timeout_ms(ANSWER_MS).with_topics(vec![topic]);
        let answer: AlterPartitionReassignmentsResponse = self.call(&request, 0)?;
        let parts = answer.responses.iter().flat_map(|topic| &topic.partitions).map(|part| part.error_code);
        let codes: Vec<i16> = std::iter::once(answer.error_code).chain(parts).collect();
        ensure!(codes.iter().all(|code| *code == 0), "ordering the replicas: error codes {codes:?}");
        Ok(())
    }

    /// Makes the first replica of each of these partitions its leader; false while one is not in sync.
    ///
    /// # Errors
    /// When the controller refuses for another reason.
    pub(super) fn elect_first(&mut self, topic: &str, partitions: Vec<i32>) -> anyhow::Result<bool> {
        let topic = TopicPartitions::default().with_topic(name(topic)).with_partitions(partitions);
        let request = ElectLeadersRequest::default()
            .with_election_type(0)
            .with_topic_partitions(Some(vec![topic]))
            .with_timeout_ms(ANSWER_MS);
        let answer: ElectLeadersResponse = self.call(&request, 2)?;
        let parts = answer.replica_election_results.iter().flat_map(|topic| &topic.partition_result);
        let codes: Vec<i16> = std::iter::once(answer.error_code).chain(parts.map(|part| part.error_code)).collect();
        let known = |code: &i16| matches!(*code, 0 | NOT_NEEDED | NOT_IN_SYNC);
        ensure!(codes.iter().all(known), "electing: error codes {codes:?}");
        Ok(!codes.contains(&NOT_IN_SYNC))
    }

    fn call<Q, A>(&mut self, request: &Q, version: i16) -> anyhow::Result<A>
    where
        Q: Request + Encodable + HeaderVersion,
        A: Decodable + HeaderVersion,
    {
        let mut bytes = BytesMut::new();
        bytes.put_u32(0);
        let header = RequestHeader::default()
            .with_request_api_key(Q::KEY)
            .with_request_api_version(version)
            .with_client_id(Some(StrBytes::from_static_str("tests")));
        header.encode(&mut bytes, Q::header_version(version))?;
        request.encode(&mut bytes, version)?;
        let length = u32::try_from(bytes.len() - 4)?;
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        self.0.write_all(&bytes)?;

        let mut length = [0; 4];
        self.0.read_exact(&mut length).context("no answer")?;
        let length = usize::try_from(u32::from_be_bytes(length))?;
        if length > LARGEST {
            bail!("an answer of {length} bytes");
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        let mut body = Bytes::from(body);
        ResponseHeader::decode(&mut body, A::header_version(version))?;
        A::decode(&mut body, version)
    }
}

fn name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}
