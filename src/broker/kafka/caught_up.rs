//! When a run that is to stop once it has caught up has caught up.
//!
//! The goal is set when all that publishes to the topics has ended: the end of every partition, also of those that
//! other members of the group hold. A partition is done when the group's offset is at that end. Control records and compacted events may
//! be the last before the end; no event says so, but librdkafka tells that the end was reached.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::client::{Consumer, Notes, topic_state};
use super::group::{Group, Plane};
use super::{error, observer};
use crate::broker::{BrokerError, BrokerErrorKind};
use crate::delivery::{TopicPartition, Tracker};
use crate::spec::KafkaConnection;

/// What the client that asks for the ends calls itself at the broker.
const CLIENT_ID: &str = "fluxmill-ends";
/// How long each question for an end may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the group's offsets are asked for.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// How long that may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// The goal of a run.
pub(super) struct Goal {
    connection: KafkaConnection,
    /// Asks for the ends; made when it is needed.
    asker: Option<Consumer>,
    /// Cancelled when the ends are to be noted.
    take_ends: CancellationToken,
    /// The ends that are not reached yet; none before they were noted.
    ends: Option<BTreeMap<TopicPartition, i64>>,
    ask_at: Instant,
}

impl Goal {
    /// A goal that is set once `take_ends` is cancelled.
    pub(super) fn new(connection: &KafkaConnection, take_ends: CancellationToken) -> Self {
        Self { connection: connection.clone(), asker: None, take_ends, ends: None, ask_at: Instant::now() }
    }

    /// Whether every end was reached, by this member or another.
    ///
    /// # Errors
    /// When the broker refuses to tell.
    pub(super) fn is_reached(
        &mut self,
        group: &mut Group,
        rows: &mut impl Plane,
        tracker: &Tracker,
    ) -> Result<bool, BrokerError> {
        if !self.take_ends.is_cancelled() {
            return Ok(false);
        }
        let ask = Instant::now() >= self.ask_at;
        let Some(ends) = &mut self.ends else {
            if ask {
                if let Some(mut ends) = waited_out(self.ask(group.topics()))? {
                    rows.stop_at(&ends.iter().map(|(partition, (_, end))| (partition.clone(), *end)).collect());
                    ends.retain(|_, (low, end)| low < end);
                    self.ends = Some(ends.into_iter().map(|(partition, (_, end))| (partition, end)).collect());
                }
                let pause = if self.ends.is_some() { Duration::ZERO } else { ASK_INTERVAL };
                self.ask_at = Instant::now() + pause;
            }
            return Ok(self.ends.as_ref().is_some_and(BTreeMap::is_empty));
        };
        let mut passed = Vec::new();
        for held in group.assigned() {
            let Some(&end) = ends.get(&held.partition) else { continue };
            if tracker.next(held.slot).is_some_and(|next| next >= end) {
                ends.remove(&held.partition);
            } else if let Some(seen) = rows.end(held.slot)
                && seen >= end
                && tracker.drained(&[held.slot])
            {
                ends.remove(&held.partition);
                // Not the end that was noted: who held the partition before may have gone beyond it.
                passed.push((held.partition.clone(), seen));
            }
        }
        for (partition, seen) in passed {
            // So that other members, and the next run, see that nothing is left before the end.
            group.passed(&partition, seen);
        }
        if !ends.is_empty() && ask {
            forget_committed(ends, group.consumer())?;
            self.ask_at = Instant::now() + ASK_INTERVAL;
        }
        Ok(self.ends.as_ref().is_some_and(BTreeMap::is_empty))
    }

    /// The first offsets and the ends of all partitions of these topics. What lies in a transaction that is still open
    /// counts: an upstream pipeline that has ended has committed its last one, but its markers may be on their way.
    fn ask(&mut self, topics: &[String]) -> Result<BTreeMap<TopicPartition, (i64, i64)>, BrokerError> {
        let asker = match self.asker.take() {
            Some(asker) => asker,
            None => {
                let mut config = observer(&self.connection, CLIENT_ID);
                config.set("isolation.level", "read_uncommitted");
                Notes::consumer(&config, CLIENT_ID).map_err(|error| error::failed("ask for ends", &error))?
            }
        };
        // Kept for the next time: its connection may take longer than one question.
        ends(self.asker.insert(asker), topics)
    }
}

fn ends(consumer: &Consumer, topics: &[String]) -> Result<BTreeMap<TopicPartition, (i64, i64)>, BrokerError> {
    let mut ends = BTreeMap::new();
    for name in topics {
        let state = topic_state(consumer, name, QUESTION_TIMEOUT)
            .map_err(|error| error::failed(format!("ask for the partitions of topic {name}"), &error))?;
        let topic: Arc<str> = Arc::from(name.as_str());
        for partition in 0..state.partitions {
            let (low, end) = consumer.fetch_watermarks(name, partition, QUESTION_TIMEOUT).map_err(|error| {
                error::failed(format!("ask for the end of partition {partition} of topic {name}"), &error)
            })?;
            ends.insert(TopicPartition { topic: topic.clone(), partition }, (low, end));
        }
    }
    Ok(ends)
}

/// None for what may pass: an outage, a leader or a coordinator on the move.
fn waited_out<T>(result: Result<T, BrokerError>) -> Result<Option<T>, BrokerError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind == BrokerErrorKind::Denied => Err(error),
        Err(error) => {
            tracing::debug!(target: "fluxmill::kafka", "{error}; asked again");
            Ok(None)
        }
    }
}

/// Forgets the ends that the group's offsets have reached.
fn forget_committed(ends: &mut BTreeMap<TopicPartition, i64>, consumer: &Consumer) -> Result<(), BrokerError> {
    let mut list = TopicPartitionList::with_capacity(ends.len());
    for partition in ends.keys() {
        list.add_partition(&partition.topic, partition.partition);
    }
    let asked = consumer.committed_offsets(list, ASK_TIMEOUT);
    let asked = asked.map_err(|error| error::failed("ask for the group's offsets", &error));
    let Some(committed) = waited_out(asked)? else { return Ok(()) };
    for element in committed.elements() {
        if let Offset::Offset(offset) = element.offset() {
            let partition = TopicPartition { topic: Arc::from(element.topic()), partition: element.partition() };
            if ends.get(&partition).is_some_and(|end| offset >= *end) {
                ends.remove(&partition);
            }
        }
    }
    Ok(())
}
