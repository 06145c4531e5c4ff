//! Rows from librdkafka's partition queues to the lanes' intakes. The data plane of a source; it knows nothing of the
//! group but which partitions it holds.
//!
//! Each partition has a queue of its own, so a lane that is full stops its own partitions and no others: their queues
//! fill up to a bound, and librdkafka stops fetching them. The row that a full lane refused is kept, and is the first
//! when there is room again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use rdkafka::consumer::Consumer as _;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;

use crate::broker::kafka::caught_up::Goal;
use crate::broker::kafka::client::{Consumer, Notes};
use crate::broker::kafka::group::{Assignment, Group, Plane};
use crate::broker::kafka::{self, error, ffi};
use crate::broker::{BrokerError, BrokerErrorKind, CloseLanes, Source, SourceContext, SourceEnd};
use crate::delivery::{Slot, TopicPartition};
use crate::event::Origin;
use crate::intake::{Bell, Full, Lanes, Run};
use crate::spec::{KafkaConnection, KafkaSourceSpec, Order};

/// Rows that one partition may append before the next has its turn.
const RUN_MAX: usize = 512;

/// Kafka's own value for an event without a timestamp. It is passed on as it is, and is published as it is.
const NO_TIMESTAMP: i64 = -1;

/// The events of a consumer group's topics.
#[derive(Debug)]
pub struct LibrdkafkaSource {
    connection: KafkaConnection,
    spec: KafkaSourceSpec,
    client_id: String,
}

impl LibrdkafkaSource {
    /// A source that calls itself `client_id` at the broker. Connects when it runs.
    ///
    /// # Errors
    /// When librdkafka does not know a setting, or not its value.
    pub fn new(connection: &KafkaConnection, spec: &KafkaSourceSpec, client_id: &str) -> Result<Self, BrokerError> {
        kafka::check_consumer(connection, spec, client_id)?;
        Ok(Self { connection: connection.clone(), spec: spec.clone(), client_id: client_id.to_owned() })
    }
}

impl Source for LibrdkafkaSource {
    fn run(self, context: SourceContext) -> Result<SourceEnd, BrokerError> {
        // However this ends, by an error or a panic too, the lanes must learn that nothing more comes.
        let lanes = CloseLanes(context.lanes.clone());
        let mut group = Group::connect::<Rows>(&self.connection, &self.spec, &self.client_id, &context, None)?;
        let mut goal = context.caught_up.clone().map(|take| Goal::new(&self.connection, take));
        let mut rows = Rows::new(context.lanes.clone(), context.bell.clone());
        group.join()?;
        loop {
            group.serve(&mut rows)?;
            if context.stop.is_cancelled() {
                break;
            }
            let moved = rows.take()?;
            if let Some(goal) = &mut goal
                && goal.is_reached(&mut group, &mut rows, &context.tracker)?
            {
                break;
            }
            if !moved {
                group.pause(false);
            }
        }
        drop(lanes);
        let until = Instant::now() + context.drain_timeout;
        while !group.is_drained() && !group.waits_in_vain() && Instant::now() < until {
            group.pause(true);
            group.serve(&mut rows)?;
        }
        let drained = group.is_drained();
        let committed = group.commit_all(&mut rows, until)?;
        // The queues hold the consumer, and dropping the consumer leaves the group.
        drop(rows);
        drop(group);
        Ok(if drained && committed { SourceEnd::Drained } else { SourceEnd::DrainTimedOut })
    }
}

/// A row that no intake has taken yet. Its bytes are its own: librdkafka's buffer holds a whole fetch.
struct Parked {
    offset: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    timestamp: i64,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Parked {
    fn new(message: &BorrowedMessage<'_>) -> Self {
        Self {
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            timestamp: message.timestamp().to_millis().unwrap_or(NO_TIMESTAMP),
            headers: ffi::headers(message).map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))).collect(),
        }
    }

    fn append(&self, slot: Slot, run: &mut Run<'_>) -> Result<(), Full> {
        let headers = self.headers.iter().map(|(name, value)| (name.as_slice(), value.as_deref()));
        let origin = Origin { slot, offset: self.offset };
        run.append(origin, self.key.as_deref(), self.value.as_deref(), self.timestamp, headers)
    }
}

fn append(message: &BorrowedMessage<'_>, slot: Slot, run: &mut Run<'_>) -> Result<(), Full> {
    let origin = Origin { slot, offset: message.offset() };
    let timestamp = message.timestamp().to_millis().unwrap_or(NO_TIMESTAMP);
    run.append(origin, message.key(), message.payload(), timestamp, ffi::headers(message))
}

/// A partition whose rows are taken.
struct Partition {
    assignment: Assignment,
    /// The lane that its rows go to, unless they are dealt by something else.
    lane: usize,
    consumer: Arc<Consumer>,
    queue: PartitionQueue<Notes>,
    /// The offset of the last row that came.
    last: Option<i64>,
    /// Rows to append before those of the queue; one at most, unless rows came by a way they should not.
    parked: VecDeque<Parked>,
    /// Rows at this offset and beyond are not handed over.
    stop_at: Option<i64>,
    /// Such a row has come.
    stopped: bool,
    /// Where the partition's end was when it was last reached; all rows before it were in the queue before.
    end: Option<i64>,
}

/// How a partition's turn ended.
enum Turn {
    /// There was nothing.
    Empty,
    /// Rows were appended.
    Moved,
    /// Rows may have been appended, then the lane was full.
    Full,
    /// An offset came that is not above the last one.
    WentBack(i64),
}

/// The partitions whose rows are taken, and the lanes they go to.
pub(super) struct Rows {
    lanes: Lanes,
    bell: Arc<Bell>,
    partitions: Vec<Partition>,
    /// Where partitions end, as far as this run goes.
    ends: BTreeMap<TopicPartition, i64>,
    /// Lanes found full in the current round, where a partition has but one.
    full: Vec<bool>,
    /// Who begins the next round: lanes are shared, and none may always come first.
    first: usize,
}

impl Rows {
    fn new(lanes: Lanes, bell: Arc<Bell>) -> Self {
        let full = vec![false; lanes.intakes().len()];
        Self { lanes, bell, partitions: Vec::new(), ends: BTreeMap::new(), full, first: 0 }
    }

    /// One round: each partition whose lane has room appends a run of rows. True when rows moved.
    ///
    /// # Errors
    /// When a partition's offsets went back: the topic was truncated, or deleted and made anew. The watermark only
    /// rises, so it would confirm events that were never processed; the next start begins with what is kept.
    fn take(&mut self) -> Result<bool, BrokerError> {
        self.full.fill(false);
        let count = self.partitions.len();
        let mut moved = false;
        for turn in 0..count {
            let partition = &mut self.partitions[(self.first + turn) % count];
            if self.full[partition.lane] || partition.stopped {
                continue;
            }
            match partition.take(&self.lanes) {
                Turn::Empty => {}
                Turn::Moved => moved = true,
                Turn::Full => self.full[partition.lane] = self.lanes.order() == Order::Partition,
                Turn::WentBack(offset) => {
                    let last = partition.last.unwrap_or_default();
                    return Err(error::went_back(&partition.assignment.partition, last, offset));
                }
            }
        }
        self.first = if count == 0 { 0 } else { (self.first + 1) % count };
        Ok(moved)
    }
}

impl Partition {
    fn take(&mut self, lanes: &Lanes) -> Turn {
        let Self { assignment, lane, consumer, queue, last, parked, stop_at, stopped, end } = self;
        let slot = assignment.slot;
        // Lanes are not held for nothing: they would wait.
        let mut next = if parked.is_empty() {
            match poll(consumer, queue, end) {
                Some(message) => Some(message),
                None => return Turn::Empty,
            }
        } else {
            None
        };
        let mut run = lanes.run(*lane);
        while let Some(row) = parked.front() {
            if row.append(slot, &mut run).is_err() {
                return Turn::Full;
            }
            parked.pop_front();
        }
        for _ in 0..RUN_MAX {
            let Some(message) = next.take().or_else(|| poll(consumer, queue, end)) else { break };
            let offset = message.offset();
            if last.is_some_and(|last| offset <= last) {
                return Turn::WentBack(offset);
            }
            if stop_at.is_some_and(|end| offset >= end) {
                *stopped = true;
                return Turn::Moved;
            }
            *last = Some(offset);
            if append(&message, slot, &mut run).is_err() {
                parked.push_back(Parked::new(&message));
                return Turn::Full;
            }
        }
        Turn::Moved
    }
}

/// The next message of a queue.
fn poll<'a>(
    consumer: &Consumer,
    queue: &'a PartitionQueue<Notes>,
    end: &mut Option<i64>,
) -> Option<BorrowedMessage<'a>> {
    loop {
        match queue.poll(Duration::ZERO)? {
            Ok(message) => return Some(message),
            Err(KafkaError::PartitionEOF(_)) => *end = consumer.context().end(),
            // The context has noted it, with its reason.
            Err(_) => {}
        }
    }
}

impl Plane for Rows {
    const FETCHES: bool = false;

    fn begin(&mut self, consumer: &Arc<Consumer>, assignment: &Assignment, _: Option<i64>) -> Result<(), BrokerError> {
        let name = &assignment.partition;
        let Some(mut queue) = consumer.split_partition_queue(&name.topic, name.partition) else {
            return Err(BrokerError {
                kind: BrokerErrorKind::Fatal,
                action: format!("take partition {} of topic {}", name.partition, name.topic),
                reason: "the client gave no queue for it".into(),
            });
        };
        let bell = self.bell.clone();
        queue.set_nonempty_callback(move || bell.ring());
        let held = |lane: usize| self.partitions.iter().filter(|partition| partition.lane == lane).count();
        let lane = (0..self.full.len()).min_by_key(|&lane| held(lane)).unwrap_or(0);
        let (assignment, consumer, parked) = (assignment.clone(), consumer.clone(), VecDeque::new());
        let stop_at = self.ends.get(&assignment.partition).copied();
        let partition =
            Partition { assignment, lane, consumer, queue, last: None, parked, stop_at, stopped: false, end: None };
        self.partitions.push(partition);
        Ok(())
    }

    fn stop(&mut self, slot: Slot) {
        if let Some(partition) = self.partitions.iter().find(|partition| partition.assignment.slot == slot) {
            self.lanes.hurry_from(partition.lane);
        }
        self.partitions.retain(|partition| partition.assignment.slot != slot);
    }

    fn end(&self, slot: Slot) -> Option<i64> {
        let partition = self.partitions.iter().find(|partition| partition.assignment.slot == slot)?;
        if partition.stopped { partition.stop_at } else { partition.end.filter(|_| partition.parked.is_empty()) }
    }

    fn stop_at(&mut self, ends: &BTreeMap<TopicPartition, i64>) {
        self.ends.clone_from(ends);
        for partition in &mut self.partitions {
            partition.stop_at = ends.get(&partition.assignment.partition).copied();
        }
    }

    fn stray(&mut self, message: &BorrowedMessage<'_>) {
        let (topic, number) = (message.topic(), message.partition());
        tracing::error!(target: "fluxmill::kafka", "a row of {topic}/{number} came by the queue of the group");
        let is_its = |partition: &&mut Partition| {
            let name = &partition.assignment.partition;
            &*name.topic == topic && name.partition == number
        };
        // A row of a partition that is not held was not confirmed either: it is delivered again.
        if let Some(partition) = self.partitions.iter_mut().find(is_its) {
            partition.parked.push_back(Parked::new(message));
        }
    }
}
