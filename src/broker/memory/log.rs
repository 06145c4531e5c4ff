//! A topic: what its partitions hold, and to which of them an event goes. Pure.

use std::sync::Arc;

use crate::broker::kafka::partition_of_key;
use crate::event::{EventRef, HEADER_OVERHEAD};

/// An event as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryEvent {
    /// `None`: the event has no key.
    pub key: Option<Vec<u8>>,
    /// `None`: a tombstone.
    pub value: Option<Vec<u8>>,
    /// Names and values or null, in order.
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
}

impl MemoryEvent {
    /// Bytes of key, value and headers.
    pub fn bytes(&self) -> usize {
        let bytes = |part: &Option<Vec<u8>>| part.as_ref().map_or(0, Vec::len);
        let headers = self.headers.iter().map(|(name, value)| name.len() + bytes(value) + HEADER_OVERHEAD);
        bytes(&self.key) + bytes(&self.value) + headers.sum::<usize>()
    }
}

impl From<EventRef<'_>> for MemoryEvent {
    fn from(event: EventRef<'_>) -> Self {
        Self {
            key: event.key.map(<[u8]>::to_vec),
            value: event.value.map(<[u8]>::to_vec),
            headers: event.headers.map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))).collect(),
            timestamp: event.timestamp,
        }
    }
}

/// An event and where it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryRecord {
    /// The partition's number.
    pub partition: i32,
    /// The offset in the partition.
    pub offset: i64,
    /// The event.
    pub event: Arc<MemoryEvent>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Topic {
    partitions: Vec<Vec<Arc<MemoryEvent>>>,
    /// Where the keyless events of the next publication go.
    next: usize,
}

impl Topic {
    /// A topic of so many partitions, at least one.
    pub(super) fn new(partitions: usize) -> Self {
        Self { partitions: vec![Vec::new(); partitions], next: 0 }
    }

    /// How many partitions it has.
    pub(super) fn partitions(&self) -> usize {
        self.partitions.len()
    }

    /// Appends the events of one publication: each to the partition of its key, by the rule of Kafka's clients, and
    /// those without a key together to one, which is another each time.
    pub(super) fn append(&mut self, events: Vec<Arc<MemoryEvent>>) {
        let count = self.partitions.len();
        let keyless = self.next % count;
        self.next = keyless + 1;
        for event in events {
            let at = event.key.as_ref().map_or(keyless, |key| partition_of_key(key, count));
            self.partitions[at].push(event);
        }
    }

    /// The offset behind the last event of a partition.
    pub(super) fn end(&self, partition: i32) -> i64 {
        let length = self.partition(partition).map_or(0, <[_]>::len);
        i64::try_from(length).unwrap_or(i64::MAX)
    }

    /// The first event of a partition at or after this time, in milliseconds since the Unix epoch; its end if there is
    /// none.
    pub(super) fn at_time(&self, partition: i32, time: i64) -> i64 {
        let events = self.partition(partition).unwrap_or_default();
        let found = events.iter().position(|event| event.timestamp >= time);
        found.map_or_else(|| self.end(partition), |found| i64::try_from(found).unwrap_or(i64::MAX))
    }

    /// Up to `most` events of a partition from this offset on, and none at `end` or behind it.
    pub(super) fn fetch(
        &self,
        partition: i32,
        from: i64,
        end: Option<i64>,
        most: usize,
    ) -> impl Iterator<Item = Arc<MemoryEvent>> {
        let events = self.partition(partition).unwrap_or_default();
        let index = |offset: i64| usize::try_from(offset).unwrap_or(0).min(events.len());
        let (from, end) = (index(from), end.map_or(events.len(), index));
        events[from..end.max(from)].iter().take(most).cloned()
    }

    /// Everything, partition by partition.
    pub(super) fn records(&self) -> impl Iterator<Item = MemoryRecord> {
        (0..).zip(&self.partitions).flat_map(|(partition, events)| {
            let record = move |(offset, event): (i64, &Arc<MemoryEvent>)| MemoryRecord {
                partition,
                offset,
                event: event.clone(),
            };
            (0..).zip(events).map(record)
        })
    }

    fn partition(&self, partition: i32) -> Option<&[Arc<MemoryEvent>]> {
        self.partitions.get(usize::try_from(partition).ok()?).map(Vec::as_slice)
    }
}
