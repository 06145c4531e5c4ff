//! Where a group begins on partitions for which it has no offset.

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

/// The offsets to begin at, for those of `partitions` where the group has none. Empty for
/// [`StartOffset::Earliest`], which is librdkafka's own answer.
///
/// # Errors
/// When the cluster did not answer in time; nothing was changed.
pub(super) fn positions(
    consumer: &Consumer,
    start: StartOffset,
    partitions: &TopicPartitionList,
) -> Result<Vec<(TopicPartition, i64)>, KafkaError> {
    if start == StartOffset::Earliest || partitions.count() == 0 {
        return Ok(Vec::new());
    }
    let mut ends = Vec::new();
    let committed = consumer.committed_offsets(partitions.clone(), QUESTION_TIMEOUT)?;
    for element in committed.elements() {
        element.error()?;
        if !matches!(element.offset(), Offset::Offset(_)) {
            let (_, end) = consumer.fetch_watermarks(element.topic(), element.partition(), QUESTION_TIMEOUT)?;
            let topic = Arc::from(element.topic());
            ends.push((TopicPartition { topic, partition: element.partition() }, end));
        }
    }
    let StartOffset::Time(time) = start else { return Ok(ends) };
    // The ends were asked for first. Where no event is as late as `time`, the first that can be is at the end of
    // before the question: one that came in between is not skipped.
    let mut times = TopicPartitionList::with_capacity(ends.len());
    for (partition, _) in &ends {
        times.add_partition_offset(&partition.topic, partition.partition, Offset::Offset(time.max(0)))?;
    }
    if ends.is_empty() {
        return Ok(ends);
    }
    let found = consumer.offsets_for_times(times, QUESTION_TIMEOUT)?;
    for (partition, position) in &mut ends {
        let Some(element) = found.find_partition(&partition.topic, partition.partition) else { continue };
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            *position = offset;
        }
    }
    Ok(ends)
}
