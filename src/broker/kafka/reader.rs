//! Reads a topic from end to end beside every group, for those who only look. Confirms nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message as _, Offset, TopicPartitionList};

use super::client::{Consumer, Note, Notes, Reach};
use super::{CONSUMER, CONSUMER_FIXED, address, error, ffi, layered};
use crate::broker::{BrokerError, BrokerErrorKind};
use crate::spec::KafkaConnection;

/// What a reader calls itself at the broker.
const CLIENT_ID: &str = "fluxmill-reader";
/// How long the cluster may take to be reached, and how long nothing may come before the end.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long each question may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait for the next event before errors are looked at.
const POLL: Duration = Duration::from_millis(100);

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// With the oldest event that is kept.
    Oldest,
    /// With the first event that the group has not confirmed.
    Unconfirmed,
    /// With one event, and go no further: its partition and offset.
    At(i32, i64),
}

/// An event as it lies in a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Milliseconds since the Unix epoch; -1 where the topic has none.
    pub timestamp: i64,
    /// `None`: it has no key.
    pub key: Option<Vec<u8>>,
    /// `None`: a tombstone.
    pub value: Option<Vec<u8>>,
    /// Names and values, in order; null is different from empty.
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// A topic that is read up to where it ended when this was opened. Committed events only.
pub struct Reader {
    consumer: Consumer,
    action: String,
    /// The partitions that were not read to their ends, with these.
    left: BTreeMap<i32, i64>,
}

impl Reader {
    /// Reads a topic in the name of a group, which is not joined.
    ///
    /// # Errors
    /// When the cluster is not reached in time, or the topic does not exist or may not be read.
    pub fn open(connection: &KafkaConnection, topic: &str, group: &str, begin: Begin) -> Result<Self, BrokerError> {
        let address = address(connection);
        let action = format!("read topic {topic} on {address}");
        let failed = |failed: KafkaError| error::failed(action.clone(), &failed);
        let mut config = layered(connection, CLIENT_ID, [CONSUMER, CONSUMER_FIXED]);
        config.set("group.id", group).set("enable.partition.eof", "true").set("auto.offset.reset", "earliest");
        config.remove("group.instance.id");
        let consumer = Notes::consumer(&config, CLIENT_ID).map_err(failed)?;
        let state = Reach::new(&consumer, &address, &[topic], Instant::now() + PATIENCE).all()?.remove(0);
        if let Some(code) = state.error {
            return Err(error::coded(action, code, ""));
        }
        let mut partitions = TopicPartitionList::new();
        for partition in 0..state.partitions {
            match begin {
                Begin::At(only, _) if only != partition => {}
                Begin::At(_, offset) => {
                    partitions.add_partition_offset(topic, partition, Offset::Offset(offset)).map_err(failed)?;
                }
                Begin::Oldest | Begin::Unconfirmed => {
                    partitions.add_partition_offset(topic, partition, Offset::Beginning).map_err(failed)?;
                }
            }
        }
        if begin == Begin::Unconfirmed {
            let confirmed = consumer.committed_offsets(partitions.clone(), QUESTION_TIMEOUT).map_err(failed)?;
            for element in confirmed.elements() {
                if let Offset::Offset(_) = element.offset() {
                    let at = element.offset();
                    partitions.set_partition_offset(topic, element.partition(), at).map_err(failed)?;
                }
            }
        }
        let mut left = BTreeMap::new();
        for element in partitions.elements() {
            let ends = consumer.fetch_watermarks(topic, element.partition(), QUESTION_TIMEOUT);
            let (low, end) = ends.map_err(failed)?;
            let from = if let Offset::Offset(offset) = element.offset() { offset.max(low) } else { low };
            let end = if let Begin::At(_, offset) = begin { end.min(offset.saturating_add(1)) } else { end };
            if from < end {
                left.insert(element.partition(), end);
            }
        }
        consumer.assign(&partitions).map_err(failed)?;
        Ok(Self { consumer, action, left })
    }

    /// The next event; none at the end.
    ///
    /// # Errors
    /// When the broker refuses, or nothing came for long.
    pub fn read(&mut self) -> Result<Option<Record>, BrokerError> {
        let until = Instant::now() + PATIENCE;
        let mut last: Option<BrokerError> = None;
        while !self.left.is_empty() {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    // What came later than the end that was noted is not asked for.
                    let end = self.left.get(&partition).copied().unwrap_or(0);
                    if offset + 1 >= end {
                        self.left.remove(&partition);
                        self.ended(message.topic(), partition)?;
                    }
                    if offset < end {
                        return Ok(Some(Record::of(&message)));
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(self.left.remove(&partition)),
                Some(Err(_)) | None => {}
            }
            while let Some(note) = self.consumer.context().take() {
                let Note::Error(code, reason) = note else { continue };
                // The group is only named, so whether it may be used is of no interest.
                let failed = error::coded(&self.action, code, &reason);
                if failed.kind == BrokerErrorKind::Denied && code != RDKafkaErrorCode::GroupAuthorizationFailed {
                    return Err(failed);
                }
                last = Some(failed);
            }
            if Instant::now() >= until {
                let kind = BrokerErrorKind::Unreachable;
                let reason = format!("nothing came for {} s, and the end was not reached", PATIENCE.as_secs());
                return Err(last.unwrap_or_else(|| BrokerError { kind, action: self.action.clone(), reason }));
            }
        }
        Ok(None)
    }

    /// Nothing more is wanted of a partition.
    fn ended(&self, topic: &str, partition: i32) -> Result<(), BrokerError> {
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, partition);
        self.consumer.pause(&list).map_err(|failed| error::failed(self.action.clone(), &failed))
    }
}

impl Record {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        let headers = ffi::headers(message);
        Self {
            partition: message.partition(),
            offset: message.offset(),
            timestamp: message.timestamp().to_millis().unwrap_or(-1),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))).collect(),
        }
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("action", &self.action).field("left", &self.left).finish_non_exhaustive()
    }
}
