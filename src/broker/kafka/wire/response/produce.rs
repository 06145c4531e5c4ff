//! What is written: Produce and InitProducerId.

use std::time::Duration;

use super::{ErrorCode, Malformed, Reader, Response};

/// What became of a record batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProducedPartition {
    /// The partition.
    pub(crate) partition: i32,
    /// Such as `NOT_LEADER_OR_FOLLOWER`.
    pub(crate) error: ErrorCode,
    /// The offset of the batch's first record; -1 when it is not known.
    pub(crate) base_offset: i64,
    /// The broker's time, where the topic stores that instead of the producer's; else -1.
    pub(crate) log_append_time: i64,
    /// The oldest offset that is kept; -1 when it is not known.
    pub(crate) log_start_offset: i64,
    /// The records that the broker refused, by their place in the batch, each with the broker's words (KIP-467).
    pub(crate) record_errors: Vec<(u32, Option<String>)>,
    /// The broker's words on the error.
    pub(crate) message: Option<String>,
}

/// What became of a topic's record batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProducedTopic {
    /// The topic.
    pub(crate) name: String,
    /// Its partitions.
    pub(crate) partitions: Vec<ProducedPartition>,
}

/// What became of the record batches of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProduceResponse {
    /// How long this client is throttled.
    pub(crate) throttle: Duration,
    /// The topics.
    pub(crate) topics: Vec<ProducedTopic>,
}

impl Response for ProduceResponse {
    fn decode(reader: &mut Reader, version: i16) -> Result<Self, Malformed> {
        let topics = reader.array(3, |reader| {
            let name = reader.string()?;
            let partitions = reader.array(30, |reader| produced(reader, version))?;
            reader.skip_tagged()?;
            Ok(ProducedTopic { name, partitions })
        })?;
        let throttle = reader.throttle()?;
        reader.skip_tagged()?;
        Ok(Self { throttle, topics })
    }
}

fn produced(reader: &mut Reader, version: i16) -> Result<ProducedPartition, Malformed> {
    let (partition, error) = (reader.i32()?, ErrorCode(reader.i16()?));
    let (base_offset, log_append_time) = (reader.i64()?, reader.i64()?);
    let log_start_offset = reader.i64()?;
    let (mut record_errors, mut message) = (Vec::new(), None);
    if version >= 8 {
        record_errors = reader.array(5, |reader| {
            let index = u32::try_from(reader.i32()?).map_err(|_| reader.malformed("a negative place in a batch"))?;
            let message = reader.nullable_string()?;
            reader.skip_tagged()?;
            Ok((index, message))
        })?;
        message = reader.nullable_string()?;
    }
    reader.skip_tagged()?;
    Ok(ProducedPartition { partition, error, base_offset, log_append_time, log_start_offset, record_errors, message })
}

/// A producer's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InitProducerIdResponse {
    /// How long this client is throttled.
    pub(crate) throttle: Duration,
    /// Such as `CONCURRENT_TRANSACTIONS`.
    pub(crate) error: ErrorCode,
    /// The producer's id.
    pub(crate) producer_id: i64,
    /// Its epoch.
    pub(crate) producer_epoch: i16,
}

impl Response for InitProducerIdResponse {
    fn decode(reader: &mut Reader, _version: i16) -> Result<Self, Malformed> {
        let (throttle, error) = (reader.throttle()?, ErrorCode(reader.i16()?));
        let (producer_id, producer_epoch) = (reader.i64()?, reader.i16()?);
        reader.skip_tagged()?;
        Ok(Self { throttle, error, producer_id, producer_epoch })
    }
}
