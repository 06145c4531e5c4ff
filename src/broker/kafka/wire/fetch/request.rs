//! The requests of a fetcher, and what was asked by them.

use std::time::Duration;

use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{BrokerId, FetchRequest, ListOffsetsRequest};
use kafka_protocol::protocol::StrBytes;

use super::super::cluster::{Leader, topic_name};
use super::partition::Partition;
use crate::delivery::Slot;
use crate::spec::ColumnarSettings;

/// A consumer, not a replica.
const CONSUMER: BrokerId = BrokerId(-1);
/// `read_committed`.
const READ_COMMITTED: i8 = 1;
/// The timestamp that asks for the oldest offset that is kept.
const OLDEST: i64 = -2;
/// No fetch session (KIP-227): each request names all of its partitions.
const NO_SESSION: (i32, i32) = (0, -1);

/// What was asked for one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) slot: Slot,
    pub(super) position: i64,
}

/// A fetch of these partitions, for which the broker may wait so long.
pub(super) fn fetch<'a>(
    settings: &ColumnarSettings,
    partitions: impl Iterator<Item = (&'a Partition, Leader)>,
    wait: Duration,
) -> (FetchRequest, Vec<Asked>) {
    // In the order in which their partitions come: the first may fill the answer.
    let mut topics: Vec<FetchTopic> = Vec::new();
    let mut asked = Vec::new();
    for (partition, leader) in partitions {
        let Some(position) = partition.position else { continue };
        let name = &partition.assignment.partition;
        let bytes = i32::try_from(settings.partition_fetch_bytes).unwrap_or(i32::MAX);
        let wanted = FetchPartition::default()
            .with_partition(name.partition)
            .with_fetch_offset(position)
            .with_partition_max_bytes(bytes)
            .with_current_leader_epoch(leader.epoch)
            .with_last_fetched_epoch(partition.last_epoch);
        match topics.iter_mut().find(|topic| *topic.topic.0 == *name.topic) {
            Some(topic) => topic.partitions.push(wanted),
            None => {
                let topic = FetchTopic::default().with_topic(topic_name(&name.topic));
                topics.push(topic.with_partitions(vec![wanted]));
            }
        }
        asked.push(Asked { slot: partition.assignment.slot, position });
    }
    let request = FetchRequest::default()
        .with_replica_id(CONSUMER)
        .with_max_wait_ms(i32::try_from(wait.as_millis()).unwrap_or(i32::MAX))
        .with_min_bytes(settings.fetch_min_bytes)
        .with_max_bytes(i32::try_from(settings.fetch_bytes).unwrap_or(i32::MAX))
        .with_isolation_level(READ_COMMITTED)
        .with_session_id(NO_SESSION.0)
        .with_session_epoch(NO_SESSION.1)
        .with_topics(topics)
        .with_rack_id(StrBytes::from_string(settings.rack.clone().unwrap_or_default()));
    (request, asked)
}

/// Asks for the oldest offset that each of these partitions keeps.
pub(super) fn oldest<'a>(partitions: impl Iterator<Item = (&'a Partition, Leader)>) -> (ListOffsetsRequest, Vec<Slot>) {
    let mut topics: std::collections::BTreeMap<&str, Vec<ListOffsetsPartition>> = Default::default();
    let mut slots = Vec::new();
    for (partition, leader) in partitions {
        let name = &partition.assignment.partition;
        topics.entry(&name.topic).or_default().push(
            ListOffsetsPartition::default()
                .with_partition_index(name.partition)
                .with_current_leader_epoch(leader.epoch)
                .with_timestamp(OLDEST),
        );
        slots.push(partition.assignment.slot);
    }
    let topics = topics.into_iter().map(|(topic, partitions)| {
        ListOffsetsTopic::default().with_name(topic_name(topic)).with_partitions(partitions)
    });
    let request = ListOffsetsRequest::default()
        .with_replica_id(CONSUMER)
        .with_isolation_level(READ_COMMITTED)
        .with_topics(topics.collect());
    (request, slots)
}
