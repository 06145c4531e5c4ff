//! Random responses, as the kafka-protocol crate encodes them and as they must be decoded.

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages as theirs;
use kafka_protocol::messages::add_partitions_to_txn_response as partitions_added;
use kafka_protocol::messages::api_versions_response::{ApiVersion, FinalizedFeatureKey};
use kafka_protocol::messages::fetch_response as fetched;
use kafka_protocol::messages::list_offsets_response as listed;
use kafka_protocol::messages::metadata_response as described;
use kafka_protocol::messages::produce_response as produced;
use kafka_protocol::messages::txn_offset_commit_response as committed;
use kafka_protocol::protocol::StrBytes;

use crate::broker::kafka::wire::response::cluster::{Broker, Coordinator, Partition, Topic};
use crate::broker::kafka::wire::response::fetch::{FetchedTopic, ListedOffset, ListedTopic};
use crate::broker::kafka::wire::response::produce::ProducedTopic;
use crate::broker::kafka::wire::response::transaction::TopicErrors;
use crate::broker::kafka::wire::response::*;

/// What a test makes its responses of.
pub(super) struct Random(fastrand::Rng);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// The bytes with one to three of them changed.
    pub(super) fn mutated(&mut self, bytes: &[u8]) -> Bytes {
        let mut bytes = bytes.to_vec();
        for _ in 0..self.0.usize(1..=3) {
            let at = self.0.usize(..bytes.len());
            bytes[at] = if self.0.bool() { self.0.u8(..) } else { *self.0.choice(&[0, 0x7f, 0x80, 0xff]).unwrap() };
        }
        bytes.into()
    }

    fn code(&mut self) -> i16 {
        if self.0.bool() { 0 } else { self.0.i16(-1..130) }
    }

    fn millis(&mut self) -> i32 {
        self.0.i32(-1..10_000)
    }

    fn id(&mut self) -> i32 {
        self.0.i32(-1..5)
    }

    fn text(&mut self) -> String {
        // Long enough now and then for a length of two bytes.
        let length = if self.0.u8(..) < 10 { 200 } else { self.0.usize(0..10) };
        (0..length).map(|_| *self.0.choice(&['a', 'Z', '0', '-', 'ß', '€']).unwrap()).collect()
    }

    fn maybe_text(&mut self) -> Option<String> {
        self.0.bool().then(|| self.text())
    }

    fn list<T>(&mut self, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.0.usize(0..4)).map(|_| make(self)).collect()
    }

    fn brokers(&mut self) -> Vec<theirs::BrokerId> {
        self.list(|random| theirs::BrokerId(random.id()))
    }

    /// A tag that no decoder knows.
    fn tag(&mut self) -> (i32, Bytes) {
        (self.0.i32(100..1_000_000), Bytes::from(vec![1; self.0.usize(0..4)]))
    }
}

fn wire(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn maybe(text: Option<&String>) -> Option<StrBytes> {
    text.map(|text| wire(text))
}

fn millis(millis: i32) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn some_id(id: i32) -> Option<i32> {
    (id != -1).then_some(id)
}

pub(super) fn api_versions(random: &mut Random, version: i16) -> (theirs::ApiVersionsResponse, ApiVersionsResponse) {
    let error = random.code();
    let apis = random.list(|r| ApiRange { api: r.0.i16(..), min: r.0.i16(..), max: r.0.i16(..) });
    let keys = apis.iter().map(|range| {
        let key = ApiVersion::default().with_api_key(range.api);
        key.with_min_version(range.min).with_max_version(range.max)
    });
    let mut response = theirs::ApiVersionsResponse::default().with_error_code(error).with_api_keys(keys.collect());
    if version >= 1 {
        response = response.with_throttle_time_ms(random.millis());
    }
    if version >= 3 {
        let feature = FinalizedFeatureKey::default().with_name(wire("kraft.version")).with_max_version_level(1);
        response = response.with_finalized_features(vec![feature]).with_finalized_features_epoch(9);
    }
    (response, ApiVersionsResponse { error: ErrorCode(error), apis })
}

pub(super) fn metadata(random: &mut Random, version: i16) -> (theirs::MetadataResponse, MetadataResponse) {
    let (throttle, controller) = (random.millis(), random.id());
    let brokers = random.list(|r| Broker { id: r.id(), host: r.text(), port: r.0.u16(..), rack: r.maybe_text() });
    let mut tag = random.tag();
    let their_brokers = brokers.iter().map(|broker| {
        let made = described::MetadataResponseBroker::default().with_node_id(theirs::BrokerId(broker.id));
        let made = made.with_host(wire(&broker.host)).with_port(broker.port.into());
        made.with_rack(maybe(broker.rack.as_ref())).with_unknown_tagged_field(tag.0, tag.1.clone())
    });
    let their_brokers = their_brokers.collect();
    let (mut their_topics, mut topics) = (Vec::new(), Vec::new());
    for _ in 0..random.0.usize(0..4) {
        let (error, name) = (random.code(), random.text());
        let partitions = random.list(|random| {
            let (error, id) = (ErrorCode(random.code()), random.0.i32(..));
            Partition { error, id, leader: some_id(random.id()), leader_epoch: random.id() }
        });
        let theirs = partitions.iter().map(|partition| {
            let made = described::MetadataResponsePartition::default().with_error_code(partition.error.0);
            let made = made.with_partition_index(partition.id).with_leader_epoch(partition.leader_epoch);
            let made = made.with_leader_id(theirs::BrokerId(partition.leader.unwrap_or(-1)));
            let made = made.with_replica_nodes(random.brokers()).with_isr_nodes(random.brokers());
            made.with_offline_replicas(random.brokers())
        });
        let theirs = theirs.collect();
        let made = described::MetadataResponseTopic::default().with_error_code(error).with_partitions(theirs);
        let made = made.with_name(Some(theirs::TopicName(wire(&name)))).with_is_internal(random.0.bool());
        their_topics.push(if version >= 8 { made.with_topic_authorized_operations(random.0.i32(..)) } else { made });
        topics.push(Topic { error: ErrorCode(error), name, partitions });
    }
    let made = theirs::MetadataResponse::default().with_throttle_time_ms(throttle).with_brokers(their_brokers);
    let made = made.with_cluster_id(maybe(random.maybe_text().as_ref())).with_topics(their_topics);
    tag = random.tag();
    let made = made.with_controller_id(theirs::BrokerId(controller)).with_unknown_tagged_field(tag.0, tag.1);
    (made, MetadataResponse { throttle: millis(throttle), brokers, controller: some_id(controller), topics })
}

fn fetched_partition(random: &mut Random, version: i16) -> (fetched::PartitionData, FetchedPartition) {
    let aborted = random.list(|r| Aborted { producer_id: r.0.i64(..), first_offset: r.0.i64(..) });
    let their_aborted = aborted.iter().map(|aborted| {
        let made = fetched::AbortedTransaction::default().with_producer_id(theirs::ProducerId(aborted.producer_id));
        made.with_first_offset(aborted.first_offset)
    });
    let their_aborted: Vec<_> = their_aborted.collect();
    let records = random.list(|random| random.0.u8(..));
    let flexible = version >= 12;
    let ours = FetchedPartition {
        partition: random.0.i32(..),
        error: ErrorCode(random.code()),
        high_watermark: random.0.i64(..),
        last_stable_offset: random.0.i64(..),
        log_start_offset: random.0.i64(..),
        diverging: (flexible && random.0.bool()).then(|| (random.0.i32(0..), random.0.i64(..))),
        current_leader: (flexible && random.0.bool()).then(|| (random.0.i32(0..), random.0.i32(0..))),
        preferred_replica: some_id(random.id()),
        records: Bytes::from(records),
        aborted,
    };
    let null = ours.aborted.is_empty() && random.0.bool();
    let mut made = fetched::PartitionData::default()
        .with_partition_index(ours.partition)
        .with_error_code(ours.error.0)
        .with_high_watermark(ours.high_watermark)
        .with_last_stable_offset(ours.last_stable_offset)
        .with_log_start_offset(ours.log_start_offset)
        .with_aborted_transactions((!null).then_some(their_aborted))
        .with_preferred_read_replica(theirs::BrokerId(ours.preferred_replica.unwrap_or(-1)))
        .with_records((!ours.records.is_empty() || random.0.bool()).then(|| ours.records.clone()));
    if let Some((epoch, end)) = ours.diverging {
        let diverging = fetched::EpochEndOffset::default().with_epoch(epoch).with_end_offset(end);
        made = made.with_diverging_epoch(diverging);
    }
    if let Some((id, epoch)) = ours.current_leader {
        let leader = fetched::LeaderIdAndEpoch::default().with_leader_id(theirs::BrokerId(id));
        made = made.with_current_leader(leader.with_leader_epoch(epoch));
    }
    if flexible {
        let tag = random.tag();
        made = made.with_snapshot_id(fetched::SnapshotId::default().with_epoch(3));
        made = made.with_unknown_tagged_field(tag.0, tag.1);
    }
    (made, ours)
}

pub(super) fn fetch(random: &mut Random, version: i16) -> (theirs::FetchResponse, FetchResponse) {
    let (throttle, error, session) = (random.millis(), random.code(), random.0.i32(..));
    let (mut their_topics, mut topics) = (Vec::new(), Vec::new());
    for _ in 0..random.0.usize(0..3) {
        let name = random.text();
        let (theirs, partitions) = random.list(|random| fetched_partition(random, version)).into_iter().unzip();
        let made = fetched::FetchableTopicResponse::default().with_topic(theirs::TopicName(wire(&name)));
        their_topics.push(made.with_partitions(theirs));
        topics.push(FetchedTopic { name, partitions });
    }
    let made = theirs::FetchResponse::default().with_throttle_time_ms(throttle).with_error_code(error);
    let made = made.with_session_id(session).with_responses(their_topics);
    (made, FetchResponse { throttle: millis(throttle), error: ErrorCode(error), session, topics })
}

fn produced_partition(random: &mut Random, version: i16) -> (produced::PartitionProduceResponse, ProducedPartition) {
    let with_words = version >= 8;
    let record_errors = random.list(|random| (random.0.u32(..1 << 31), random.maybe_text()));
    let ours = ProducedPartition {
        partition: random.0.i32(..),
        error: ErrorCode(random.code()),
        base_offset: random.0.i64(..),
        log_append_time: random.0.i64(..),
        log_start_offset: random.0.i64(..),
        record_errors: if with_words { record_errors } else { Vec::new() },
        message: random.maybe_text().filter(|_| with_words),
    };
    let their_errors = ours.record_errors.iter().map(|(index, message)| {
        let made = produced::BatchIndexAndErrorMessage::default().with_batch_index(*index as i32);
        made.with_batch_index_error_message(maybe(message.as_ref()))
    });
    let made = produced::PartitionProduceResponse::default()
        .with_index(ours.partition)
        .with_error_code(ours.error.0)
        .with_base_offset(ours.base_offset)
        .with_log_append_time_ms(ours.log_append_time)
        .with_log_start_offset(ours.log_start_offset)
        .with_record_errors(their_errors.collect())
        .with_error_message(maybe(ours.message.as_ref()));
    (made, ours)
}

pub(super) fn produce(random: &mut Random, version: i16) -> (theirs::ProduceResponse, ProduceResponse) {
    let throttle = random.millis();
    let (mut their_topics, mut topics) = (Vec::new(), Vec::new());
    for _ in 0..random.0.usize(0..3) {
        let name = random.text();
        let (theirs, partitions) = random.list(|random| produced_partition(random, version)).into_iter().unzip();
        let made = produced::TopicProduceResponse::default().with_name(theirs::TopicName(wire(&name)));
        their_topics.push(made.with_partition_responses(theirs));
        topics.push(ProducedTopic { name, partitions });
    }
    let made = theirs::ProduceResponse::default().with_throttle_time_ms(throttle).with_responses(their_topics);
    (made, ProduceResponse { throttle: millis(throttle), topics })
}

pub(super) fn list_offsets(random: &mut Random, _: i16) -> (theirs::ListOffsetsResponse, ListOffsetsResponse) {
    let throttle = random.millis();
    let topics = random.list(|random| ListedTopic {
        name: random.text(),
        partitions: random.list(|random| ListedOffset {
            partition: random.0.i32(..),
            error: ErrorCode(random.code()),
            timestamp: random.0.i64(..),
            offset: random.0.i64(..),
            leader_epoch: random.id(),
        }),
    });
    let theirs = topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|ours| {
            listed::ListOffsetsPartitionResponse::default()
                .with_partition_index(ours.partition)
                .with_error_code(ours.error.0)
                .with_timestamp(ours.timestamp)
                .with_offset(ours.offset)
                .with_leader_epoch(ours.leader_epoch)
        });
        let made = listed::ListOffsetsTopicResponse::default().with_name(theirs::TopicName(wire(&topic.name)));
        made.with_partitions(partitions.collect())
    });
    let made = theirs::ListOffsetsResponse::default().with_throttle_time_ms(throttle).with_topics(theirs.collect());
    (made, ListOffsetsResponse { throttle: millis(throttle), topics })
}

pub(super) fn init_producer_id(
    random: &mut Random,
    _: i16,
) -> (theirs::InitProducerIdResponse, InitProducerIdResponse) {
    let (throttle, error) = (random.millis(), random.code());
    let (producer_id, producer_epoch) = (random.0.i64(..), random.0.i16(..));
    let made = theirs::InitProducerIdResponse::default().with_throttle_time_ms(throttle).with_error_code(error);
    let made = made.with_producer_id(theirs::ProducerId(producer_id)).with_producer_epoch(producer_epoch);
    let error = ErrorCode(error);
    (made, InitProducerIdResponse { throttle: millis(throttle), error, producer_id, producer_epoch })
}

pub(super) fn find_coordinator(
    random: &mut Random,
    _: i16,
) -> (theirs::FindCoordinatorResponse, FindCoordinatorResponse) {
    let (throttle, error, message) = (random.millis(), random.code(), random.maybe_text());
    let coordinator =
        (error == 0).then(|| Coordinator { id: random.id(), host: random.text(), port: random.0.u16(..) });
    let mut made = theirs::FindCoordinatorResponse::default().with_throttle_time_ms(throttle);
    made = made.with_error_code(error).with_error_message(maybe(message.as_ref())).with_port(-1);
    if let Some(coordinator) = &coordinator {
        made = made.with_node_id(theirs::BrokerId(coordinator.id)).with_port(coordinator.port.into());
        made = made.with_host(wire(&coordinator.host));
    }
    (made, FindCoordinatorResponse { throttle: millis(throttle), error: ErrorCode(error), message, coordinator })
}

fn topic_errors(random: &mut Random) -> Vec<TopicErrors> {
    random.list(|random| TopicErrors {
        name: random.text(),
        partitions: random.list(|random| (random.0.i32(..), ErrorCode(random.code()))),
    })
}

pub(super) fn add_partitions(
    random: &mut Random,
    _: i16,
) -> (theirs::AddPartitionsToTxnResponse, AddPartitionsToTxnResponse) {
    let (throttle, topics) = (random.millis(), topic_errors(random));
    let theirs = topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|(partition, error)| {
            let made = partitions_added::AddPartitionsToTxnPartitionResult::default();
            made.with_partition_index(*partition).with_partition_error_code(error.0)
        });
        let made = partitions_added::AddPartitionsToTxnTopicResult::default();
        made.with_name(theirs::TopicName(wire(&topic.name))).with_results_by_partition(partitions.collect())
    });
    let made = theirs::AddPartitionsToTxnResponse::default().with_throttle_time_ms(throttle);
    let made = made.with_results_by_topic_v3_and_below(theirs.collect());
    (made, AddPartitionsToTxnResponse { throttle: millis(throttle), topics })
}

pub(super) fn txn_offset_commit(
    random: &mut Random,
    _: i16,
) -> (theirs::TxnOffsetCommitResponse, TxnOffsetCommitResponse) {
    let (throttle, topics) = (random.millis(), topic_errors(random));
    let theirs = topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|(partition, error)| {
            let made = committed::TxnOffsetCommitResponsePartition::default();
            made.with_partition_index(*partition).with_error_code(error.0)
        });
        let made = committed::TxnOffsetCommitResponseTopic::default();
        made.with_name(theirs::TopicName(wire(&topic.name))).with_partitions(partitions.collect())
    });
    let made = theirs::TxnOffsetCommitResponse::default().with_throttle_time_ms(throttle);
    (made.with_topics(theirs.collect()), TxnOffsetCommitResponse { throttle: millis(throttle), topics })
}

pub(super) fn add_offsets(random: &mut Random, _: i16) -> (theirs::AddOffsetsToTxnResponse, AddOffsetsToTxnResponse) {
    let (throttle, error) = (random.millis(), random.code());
    let made = theirs::AddOffsetsToTxnResponse::default().with_throttle_time_ms(throttle).with_error_code(error);
    (made, AddOffsetsToTxnResponse { throttle: millis(throttle), error: ErrorCode(error) })
}

pub(super) fn end_txn(random: &mut Random, _: i16) -> (theirs::EndTxnResponse, EndTxnResponse) {
    let (throttle, error) = (random.millis(), random.code());
    let made = theirs::EndTxnResponse::default().with_throttle_time_ms(throttle).with_error_code(error);
    (made, EndTxnResponse { throttle: millis(throttle), error: ErrorCode(error) })
}

pub(super) fn sasl_handshake(random: &mut Random, _: i16) -> (theirs::SaslHandshakeResponse, SaslHandshakeResponse) {
    let (error, mechanisms) = (random.code(), random.list(Random::text));
    let theirs = mechanisms.iter().map(|mechanism| wire(mechanism)).collect();
    let made = theirs::SaslHandshakeResponse::default().with_error_code(error).with_mechanisms(theirs);
    (made, SaslHandshakeResponse { error: ErrorCode(error), mechanisms })
}

pub(super) fn sasl_authenticate(
    random: &mut Random,
    _: i16,
) -> (theirs::SaslAuthenticateResponse, SaslAuthenticateResponse) {
    let (error, message, lifetime) = (random.code(), random.maybe_text(), random.0.i64(-1..3));
    let challenge = Bytes::from(random.list(|random| random.0.u8(..)));
    let made = theirs::SaslAuthenticateResponse::default().with_error_code(error).with_session_lifetime_ms(lifetime);
    let made = made.with_error_message(maybe(message.as_ref())).with_auth_bytes(challenge.clone());
    let lifetime = u64::try_from(lifetime).ok().filter(|millis| *millis > 0).map(Duration::from_millis);
    (made, SaslAuthenticateResponse { error: ErrorCode(error), message, challenge, lifetime })
}
