//! What is read: Fetch and ListOffsets.

use std::time::Duration;

use bytes::Bytes;

use super::{ErrorCode, Malformed, Reader, Response};

/// A transaction that was aborted: records of this producer from this offset on, until its abort marker, were never
/// committed (KIP-98).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Aborted {
    /// The producer.
    pub(crate) producer_id: i64,
    /// The first offset of the transaction.
    pub(crate) first_offset: i64,
}

/// What was fetched of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FetchedPartition {
    /// The partition.
    pub(crate) partition: i32,
    /// Such as `OFFSET_OUT_OF_RANGE`.
    pub(crate) error: ErrorCode,
    /// The offset behind the last record that all in-sync replicas have.
    pub(crate) high_watermark: i64,
    /// The offset before which every transaction has ended.
    pub(crate) last_stable_offset: i64,
    /// The oldest offset that is kept.
    pub(crate) log_start_offset: i64,
    /// Where the log of the leader parts from what this client read: an epoch and the offset at its end (KIP-595).
    pub(crate) diverging: Option<(i32, i64)>,
    /// The leader's id and epoch, when the broker knows of a newer one.
    pub(crate) current_leader: Option<(i32, i32)>,
    /// The aborted transactions among the records, when only committed ones were asked for.
    pub(crate) aborted: Vec<Aborted>,
    /// The replica that this client should read from (KIP-392).
    pub(crate) preferred_replica: Option<i32>,
    /// Record batches, shared with the response. The last one may be cut short.
    pub(crate) records: Bytes,
}

/// What was fetched of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FetchedTopic {
    /// The topic.
    pub(crate) name: String,
    /// Its partitions.
    pub(crate) partitions: Vec<FetchedPartition>,
}

/// What was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FetchResponse {
    /// How long this client is throttled.
    pub(crate) throttle: Duration,
    /// An error of the whole, such as `FETCH_SESSION_ID_NOT_FOUND`.
    pub(crate) error: ErrorCode,
    /// The fetch session (KIP-227); 0 without one.
    pub(crate) session: i32,
    /// The topics.
    pub(crate) topics: Vec<FetchedTopic>,
}

impl Response for FetchResponse {
    fn decode(reader: &mut Reader, _version: i16) -> Result<Self, Malformed> {
        let throttle = reader.throttle()?;
        let (error, session) = (ErrorCode(reader.i16()?), reader.i32()?);
        let topics = reader.array(3, |reader| {
            let name = reader.string()?;
            let partitions = reader.array(36, fetched)?;
            reader.skip_tagged()?;
            Ok(FetchedTopic { name, partitions })
        })?;
        reader.skip_tagged()?;
        Ok(Self { throttle, error, session, topics })
    }
}

fn fetched(reader: &mut Reader) -> Result<FetchedPartition, Malformed> {
    let (partition, error) = (reader.i32()?, ErrorCode(reader.i16()?));
    let (high_watermark, last_stable_offset) = (reader.i64()?, reader.i64()?);
    let log_start_offset = reader.i64()?;
    let aborted = reader.nullable_array(16, |reader| {
        let aborted = Aborted { producer_id: reader.i64()?, first_offset: reader.i64()? };
        reader.skip_tagged()?;
        Ok(aborted)
    })?;
    let preferred_replica = Some(reader.i32()?).filter(|replica| *replica >= 0);
    let records = reader.nullable_bytes()?.unwrap_or_default();
    let (mut diverging, mut current_leader) = (None, None);
    reader.tagged(|tag, field| {
        match tag {
            0 => diverging = Some((field.i32()?, field.i64()?)).filter(|(epoch, _)| *epoch >= 0),
            1 => current_leader = Some((field.i32()?, field.i32()?)).filter(|(id, epoch)| *id >= 0 && *epoch >= 0),
            _ => {}
        }
        Ok(())
    })?;
    Ok(FetchedPartition {
        partition,
        error,
        high_watermark,
        last_stable_offset,
        log_start_offset,
        diverging,
        current_leader,
        aborted: aborted.unwrap_or_default(),
        preferred_replica,
        records,
    })
}

/// What was found of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListedOffset {
    /// The partition.
    pub(crate) partition: i32,
    /// Such as `NOT_LEADER_OR_FOLLOWER`.
    pub(crate) error: ErrorCode,
    /// The timestamp of the record there, in milliseconds since the Unix epoch; -1 when none was asked for.
    pub(crate) timestamp: i64,
    /// The offset; -1 when there is none at or after the time that was asked for.
    pub(crate) offset: i64,
    /// The leader's epoch at that offset; -1 when it is not known.
    pub(crate) leader_epoch: i32,
}

/// What was found of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListedTopic {
    /// The topic.
    pub(crate) name: String,
    /// Its partitions.
    pub(crate) partitions: Vec<ListedOffset>,
}

/// Offsets by time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListOffsetsResponse {
    /// How long this client is throttled.
    pub(crate) throttle: Duration,
    /// The topics.
    pub(crate) topics: Vec<ListedTopic>,
}

impl Response for ListOffsetsResponse {
    fn decode(reader: &mut Reader, _version: i16) -> Result<Self, Malformed> {
        let throttle = reader.throttle()?;
        let topics = reader.array(3, |reader| {
            let name = reader.string()?;
            let partitions = reader.array(26, |reader| {
                let (partition, error) = (reader.i32()?, ErrorCode(reader.i16()?));
                let (timestamp, offset, leader_epoch) = (reader.i64()?, reader.i64()?, reader.i32()?);
                reader.skip_tagged()?;
                Ok(ListedOffset { partition, error, timestamp, offset, leader_epoch })
            })?;
            reader.skip_tagged()?;
            Ok(ListedTopic { name, partitions })
        })?;
        reader.skip_tagged()?;
        Ok(Self { throttle, topics })
    }
}
