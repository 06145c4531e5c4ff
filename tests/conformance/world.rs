//! What a broker has to provide so that the cases can run on it: its clients, and its own view of what was stored and
//! what is confirmed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fluxmill::broker::{AnyDriver, AnyProducer, AnySink, AnySource, BrokerError};
use fluxmill::delivery::Tracker;
use fluxmill::event::EventBatch;
use fluxmill::intake::Delivery;
use fluxmill::spec::{BatchLimits, Order};

use crate::support::wait::wait_until;

/// The longest that a part of a case may take on a loaded machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// An event as the cases know it, whatever the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Milliseconds since the Unix epoch.
    pub(crate) timestamp: i64,
}

/// 2024-01-01 00:00:00 UTC in milliseconds: a timestamp that no clock would give.
const DAY: i64 = 1_704_067_200_000;
/// Keys of the numbered events.
const KEYS: u64 = 50;

impl Event {
    /// Event `number`, on one of a few keys; its value begins with the number and has so many bytes at least.
    pub(crate) fn numbered(number: u64, bytes: usize) -> Self {
        let mut value = format!("{number} ").into_bytes();
        value.resize(value.len().max(bytes), b'x');
        let key = Some(format!("k-{:02}", number % KEYS).into_bytes());
        let timestamp = DAY + i64::try_from(number).unwrap_or(0);
        Self { key, value: Some(value), headers: Vec::new(), timestamp }
    }

    /// The event of a batch at `row`.
    pub(crate) fn of(batch: &EventBatch, row: usize) -> Self {
        let event = batch.row(row);
        Self {
            key: event.key.map(<[u8]>::to_vec),
            value: event.value.map(<[u8]>::to_vec),
            headers: event.headers.map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))).collect(),
            timestamp: event.timestamp,
        }
    }
}

/// The number that a value begins with.
pub(crate) fn number(value: Option<&[u8]>) -> Option<u64> {
    std::str::from_utf8(value?).ok()?.split(' ').next()?.parse().ok()
}

/// The numbers of a batch's events.
pub(crate) fn numbers(delivery: &Delivery) -> Vec<u64> {
    (0..delivery.batch.len()).filter_map(|row| number(delivery.batch.row(row).value)).collect()
}

/// An event as the broker keeps it.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) partition: i32,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
}

/// Who reads, and how.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    /// The consumer group, or the durable consumer.
    pub(crate) name: &'static str,
    pub(crate) lanes: usize,
    pub(crate) order: Order,
    pub(crate) limits: BatchLimits,
    /// How long a stop waits for what is in flight.
    pub(crate) drain: Duration,
    /// Ends by itself when everything is done that is there.
    pub(crate) until_caught_up: bool,
    /// How long a reader may be silent, or a message unconfirmed, before the broker gives it to others; so long that it
    /// plays no part where there is none.
    pub(crate) patience: Option<Duration>,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            name: "reader",
            lanes: 1,
            order: Order::Partition,
            limits: BatchLimits { max_events: 50, max_bytes: 1 << 20, max_wait: Duration::ZERO },
            drain: LIMIT,
            until_caught_up: false,
            patience: None,
        }
    }
}

/// What a case asks of the broker beyond being there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing.
    Nothing,
    /// It goes away and comes back, with what it has confirmed.
    Outage,
    /// Its clients here may neither read nor write.
    Denial,
}

/// A broker.
pub(crate) trait World {
    /// Makes a place for events, with so many partitions where the broker knows them; gives its name.
    fn place(&self, name: &str, partitions: u16) -> anyhow::Result<String>;

    /// Puts events there by the broker's own client, and waits until they are stored.
    fn feed(&self, place: &str, events: &[Event]) -> anyhow::Result<()>;

    /// A source of the events of a place.
    fn source(&self, place: &str, reader: &Reader) -> Result<AnySource, BrokerError>;

    /// A source of this place was started: from now on it can miss nothing, where a broker keeps nothing.
    fn started(&self, _place: &str) -> anyhow::Result<()> {
        Ok(())
    }

    /// What publishes to a place, and what must be run for it.
    fn producer(&self, place: &str) -> Result<(AnyProducer, Option<AnyDriver>), BrokerError>;

    /// A sink of that producer. The tracker knows where the events come from.
    fn sink(&self, producer: &AnyProducer, place: &str, tracker: &Arc<Tracker>) -> AnySink;

    /// Everything that is stored there, partition by partition in order, as the broker's own client reads it.
    fn stored(&self, place: &str) -> anyhow::Result<Vec<Stored>>;

    /// How many events of each partition are confirmed by this reader, from the first, as the broker says.
    fn confirmed(&self, place: &str, reader: &Reader) -> anyhow::Result<BTreeMap<i32, u64>>;

    /// Whether it knows what readers have confirmed.
    fn confirms(&self) -> bool {
        true
    }

    /// How many events the broker has handed out to this reader, each time counted; none where it does not know.
    fn taken(&self, _place: &str, _reader: &Reader) -> anyhow::Result<Option<u64>> {
        Ok(None)
    }

    /// How far a source whose lanes take nothing may run ahead, in events: intake, buffers, and what was asked for.
    fn ahead_max(&self) -> u64 {
        u64::MAX
    }

    /// How many events the broker hands out before one of them must be confirmed, if it has such a bound.
    fn unconfirmed_max(&self) -> Option<u64> {
        None
    }

    /// More events than any window of it or of its clients holds.
    fn many(&self) -> u64 {
        110_000
    }

    /// About the largest value that a place takes, in bytes.
    fn largest(&self) -> usize;

    /// The shortest [`Reader::patience`] that it knows.
    fn patience(&self) -> Duration;

    /// Whether several readers of one name share the partitions; else all but one wait.
    fn shares(&self) -> bool {
        true
    }

    /// Goes away, as a process that is killed.
    fn go_away(&self) -> anyhow::Result<()>;

    /// Comes back.
    fn come_back(&self) -> anyhow::Result<()>;
}

/// Waits until the broker hands nothing out any more; gives how many events it has, where it knows.
pub(crate) fn stands_still(world: &dyn World, place: &str, reader: &Reader, least: u64) -> anyhow::Result<Option<u64>> {
    if world.taken(place, reader)?.is_none() {
        return Ok(None);
    }
    let (mut before, mut times) = (0, 0);
    wait_until(LIMIT, "the source to stand still", || {
        let now = world.taken(place, reader)?.unwrap_or(0);
        times = if now == before && now >= least { times + 1 } else { 0 };
        before = now;
        Ok((times >= 20).then_some(()))
    })?;
    Ok(Some(before))
}
