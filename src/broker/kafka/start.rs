//! Where a group begins on partitions for which it has no offset.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::client::Consumer;
use crate::delivery::TopicPartition;
use crate::spec::StartOffset;

/// How long each question to the cluster may take. The thread that asks keeps the member in its group.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Where to begin on one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The first event's offset, at the lowest.
    pub(super) offset: i64,
    /// Whether the group had it.
    pub(super) committed: bool,
}

/// Where to begin, for those of `partitions` that do not simply begin at the oldest event that is kept. With
/// [`StartOffset::Earliest`] the group's own offsets are asked for only when `ask`: librdkafka finds them itself.
///
/// # Errors
/// When the cluster did not answer in time; nothing was changed.
pub(super) fn places(
    consumer: &Consumer,
    start: StartOffset,
    partitions: &TopicPartitionList,
    ask: bool,
) -> Result<BTreeMap<TopicPartition, Place>, KafkaError> {
    let mut places = BTreeMap::new();
    if partitions.count() == 0 || (start == StartOffset::Earliest && !ask) {
        return Ok(places);
    }
    let mut ends = Vec::new();
    let committed = consumer.committed_offsets(partitions.clone(), QUESTION_TIMEOUT)?;
    for element in committed.elements() {
        element.error()?;
        let partition = TopicPartition { topic: Arc::from(element.topic()), partition: element.partition() };
        match element.offset() {
            Offset::Offset(offset) if ask => {
                places.insert(partition, Place { offset, committed: true });
            }
            Offset::Offset(_) => {}
            _ if start == StartOffset::Earliest => {}
            _ => {
                let (_, end) = consumer.fetch_watermarks(element.topic(), element.partition(), QUESTION_TIMEOUT)?;
                ends.push((partition, end));
            }
        }
    }
    if let StartOffset::Time(time) = start {
        at_time(consumer, time, &mut ends)?;
    }
    places.extend(ends.into_iter().map(|(partition, offset)| (partition, Place { offset, committed: false })));
    Ok(places)
}

/// Moves the ends of partitions to their first event at or after `time`, where there is one. Where no event is as
/// late, the first that can be is at the end of before the question: one that came in between is not skipped.
fn at_time(consumer: &Consumer, time: i64, ends: &mut [(TopicPartition, i64)]) -> Result<(), KafkaError> {
    if ends.is_empty() {
        return Ok(());
    }
    let mut times = TopicPartitionList::with_capacity(ends.len());
    for (partition, _) in ends.iter() {
        times.add_partition_offset(&partition.topic, partition.partition, Offset::Offset(time.max(0)))?;
    }
    let found = consumer.offsets_for_times(times, QUESTION_TIMEOUT)?;
    for (partition, position) in ends {
        let Some(element) = found.find_partition(&partition.topic, partition.partition) else { continue };
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            *position = offset;
        }
    }
    Ok(())
}
