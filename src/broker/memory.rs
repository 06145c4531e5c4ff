//! A broker inside the process, for tests and for chains that are to run without one: topics with partitions, consumer
//! groups with offsets, acknowledgements, and failures on demand. What it does, it does as Kafka does it.
//!
//! It keeps everything in memory and deletes nothing, up to a bound of bytes, at which publishing fails. It has no
//! transactions and no sessions: a member of a group is there until its source ends.
//!
//! `log` is the topics, `group` who reads what, both pure; `source` and `sink` are what pipelines have of it. Whatever
//! changes, changes under one lock, and then everybody who waits looks again.

mod group;
mod log;
mod sink;
mod source;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::broker::{BrokerError, BrokerErrorKind};
use crate::spec::{KafkaSourceSpec, TopicSpec};
use group::Group;
use log::Topic;
use sink::Waiting;

pub use log::{MemoryEvent, MemoryRecord};
pub use sink::{MemoryProducer, MemorySink};
pub use source::MemorySource;

/// What it may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimits {
    /// Bytes of all events together; publishing beyond it fails.
    pub bytes: usize,
    /// Bytes of one event, headers included; a larger one is refused.
    pub event_bytes: usize,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        // The second is Kafka's own default.
        Self { bytes: 512 << 20, event_bytes: 1_048_576 }
    }
}

/// A broker. Clones are handles on the same one.
#[derive(Clone, Debug, Default)]
pub struct MemoryBroker {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Told of every change that somebody may wait for.
    changes: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    limits: MemoryLimits,
    topics: BTreeMap<String, Topic>,
    groups: BTreeMap<String, Group>,
    /// Bytes of all events.
    bytes: usize,
    /// It cannot be reached.
    away: bool,
    /// Topics that nobody may read or write.
    denied: BTreeSet<String>,
    /// Why the next publications fail, one after the other.
    failing: VecDeque<BrokerErrorKind>,
    holds_acknowledgements: bool,
    /// Not stored yet.
    outgoing: VecDeque<Waiting>,
    /// Stored.
    unacknowledged: VecDeque<Waiting>,
}

impl MemoryBroker {
    /// A broker without topics.
    pub fn new(limits: MemoryLimits) -> Self {
        let broker = Self::default();
        broker.shared.lock().limits = limits;
        broker
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// When it exists, or is to have no partition.
    pub fn create_topic(&self, name: &str, partitions: u16) -> Result<(), BrokerError> {
        let mut state = self.shared.lock();
        let reason = if partitions == 0 {
            "it is to have no partition"
        } else if state.topics.contains_key(name) {
            "it exists"
        } else {
            state.topics.insert(name.to_owned(), Topic::new(usize::from(partitions)));
            return Ok(());
        };
        Err(failed(BrokerErrorKind::Settings, format!("create topic {name}"), reason))
    }

    /// Creates the listed topics that are missing. Returns their names.
    ///
    /// # Errors
    /// All at once: every used topic that neither exists nor is listed, and every one that cannot be created.
    pub fn prepare(&self, create: &[&TopicSpec], used: &[&str]) -> Result<Vec<String>, Vec<BrokerError>> {
        let (mut made, mut errors) = (Vec::new(), Vec::new());
        for topic in create.iter().filter(|topic| !self.has(&topic.topic)) {
            match self.create_topic(&topic.topic, u16::try_from(topic.partitions).unwrap_or(u16::MAX)) {
                Ok(()) => made.push(topic.topic.clone()),
                Err(error) => errors.push(error),
            }
        }
        for name in used.iter().filter(|name| !create.iter().any(|topic| topic.topic == **name) && !self.has(name)) {
            errors.push(unknown(format!("find topic {name}")));
        }
        if errors.is_empty() { Ok(made) } else { Err(errors) }
    }

    /// Whether there is a topic of this name.
    pub fn has(&self, topic: &str) -> bool {
        self.shared.lock().topics.contains_key(topic)
    }

    /// Stores events, as a client of somebody else would: by their keys, in order.
    ///
    /// # Errors
    /// When the topic does not exist, or there is no room. Nothing is stored then.
    pub fn publish(&self, topic: &str, events: impl IntoIterator<Item = MemoryEvent>) -> Result<(), BrokerError> {
        let events: Vec<Arc<MemoryEvent>> = events.into_iter().map(Arc::new).collect();
        self.shared.lock().store(topic, events)?;
        self.shared.changed();
        Ok(())
    }

    /// Everything in a topic, partition by partition, in order.
    ///
    /// # Errors
    /// When the topic does not exist.
    pub fn read(&self, topic: &str) -> Result<Vec<MemoryRecord>, BrokerError> {
        let state = self.shared.lock();
        let found = state.topics.get(topic).ok_or_else(|| unknown(format!("read topic {topic}")))?;
        Ok(found.records().collect())
    }

    /// The offsets that a group has committed for a topic, by partition; those without one are left out.
    pub fn committed(&self, group: &str, topic: &str) -> BTreeMap<i32, i64> {
        self.shared.lock().groups.get(group).map_or_else(BTreeMap::new, |group| group.committed(topic))
    }

    /// How many events were handed out to the members of a group, each time counted.
    pub fn fetched(&self, group: &str) -> u64 {
        self.shared.lock().groups.get(group).map_or(0, |group| group.fetched)
    }

    /// How many members a group has.
    pub fn members(&self, group: &str) -> usize {
        self.shared.lock().groups.get(group).map_or(0, Group::members)
    }

    /// A source of the events of a group's topics. Joins the group when it runs.
    pub fn source(&self, spec: &KafkaSourceSpec) -> MemorySource {
        MemorySource::new(self.shared.clone(), spec)
    }

    /// What publishes.
    pub fn producer(&self) -> MemoryProducer {
        MemoryProducer::new(self.shared.clone())
    }

    /// Cannot be reached from now on: what is published waits, sources get nothing and confirm nothing, new ones fail.
    pub fn go_away(&self) {
        self.change(|state| state.away = true);
    }

    /// Can be reached again.
    pub fn come_back(&self) {
        self.change(|state| {
            state.away = false;
            state.take_in();
        });
    }

    /// Nobody may read or write this topic from now on.
    pub fn deny(&self, topic: &str) {
        self.change(|state| {
            state.denied.insert(topic.to_owned());
        });
    }

    /// Everybody may again.
    pub fn permit(&self, topic: &str) {
        self.change(|state| {
            state.denied.remove(topic);
        });
    }

    /// The next publication that is not failing yet fails with an error of this kind; nothing of it is stored.
    pub fn fail_publication(&self, kind: BrokerErrorKind) {
        self.change(|state| state.failing.push_back(kind));
    }

    /// What is published from now on is stored, and acknowledged late: by
    /// [`release_acknowledgements`](Self::release_acknowledgements).
    pub fn hold_acknowledgements(&self) {
        self.change(|state| state.holds_acknowledgements = true);
    }

    /// Acknowledges what is stored, and what is published from now on at once.
    pub fn release_acknowledgements(&self) {
        self.change(|state| {
            state.holds_acknowledgements = false;
            state.unacknowledged.drain(..).for_each(|waiting| waiting.acknowledge());
        });
    }

    /// All members of a group lose their partitions, as those do whose session has expired: what they have not confirmed
    /// is delivered again, to whoever gets the partitions next.
    pub fn revoke(&self, group: &str) {
        self.change(|state| {
            if let Some(group) = state.groups.get_mut(group) {
                group.lose_all();
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.lock());
        self.shared.changed();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes everybody who waits for something to change.
    fn changed(&self) {
        self.lock().groups.values().for_each(Group::ring);
        self.changes.send_replace(());
    }
}

impl State {
    /// Whether this topic can be used; `action` is what for.
    fn check(&self, topic: &str, action: impl Fn() -> String) -> Result<(), BrokerError> {
        if !self.topics.contains_key(topic) {
            return Err(unknown(action()));
        }
        if self.denied.contains(topic) {
            return Err(failed(BrokerErrorKind::Denied, action(), format!("topic {topic} is not permitted")));
        }
        Ok(())
    }

    /// Stores events behind those that are there, all or none.
    fn store(&mut self, topic: &str, events: Vec<Arc<MemoryEvent>>) -> Result<(), BrokerError> {
        let action = || format!("publish to topic {topic}");
        let Some(found) = self.topics.get_mut(topic) else { return Err(unknown(action())) };
        let bytes = self.bytes + events.iter().map(|event| event.bytes()).sum::<usize>();
        if bytes > self.limits.bytes {
            let reason = format!("the memory broker holds {} bytes of events at most", self.limits.bytes);
            return Err(failed(BrokerErrorKind::Fatal, action(), reason));
        }
        self.bytes = bytes;
        found.append(events);
        Ok(())
    }
}

/// An error of what was done here.
fn failed(kind: BrokerErrorKind, action: String, reason: impl Into<String>) -> BrokerError {
    BrokerError { kind, action, reason: reason.into() }
}

fn unknown(action: String) -> BrokerError {
    let reason = "it does not exist in memory; list it under `topics:`";
    failed(BrokerErrorKind::UnknownTopic, action, reason)
}

fn unreachable(action: String) -> BrokerError {
    failed(BrokerErrorKind::Unreachable, action, "the memory broker is away")
}
