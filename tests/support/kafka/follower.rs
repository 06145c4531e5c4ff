//! A reader of committed events that reads along while they come, as a downstream service does; spoken by hand, since
//! librdkafka's may lock up when a broker dies (docs/architecture.md).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::{Buf, Bytes};
use kafka_protocol::records::{Record, RecordBatchDecoder};

use super::admin::{Admin, Fetched};
use crate::support::client::Received;
use crate::support::wait::pace;

/// How long to wait before a partition without a leader is looked for again.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest wait for what was there at the end.
const REST: Duration = Duration::from_secs(120);

/// Reads a topic from its beginning on a thread of its own, until it is told where the end is.
pub(crate) struct Follower {
    ends: Arc<std::sync::OnceLock<BTreeMap<i32, i64>>>,
    given_up: Arc<AtomicBool>,
    reading: Option<JoinHandle<anyhow::Result<Vec<Received>>>>,
}

impl Follower {
    /// Begins to read these partitions of a topic, from the brokers at these ports, by their ids.
    pub(crate) fn start(ports: BTreeMap<i32, u16>, topic: &str, partitions: i32) -> Self {
        let (ends, given_up) = (Arc::default(), Arc::<AtomicBool>::default());
        let reader = Reader {
            ports,
            topic: topic.to_owned(),
            leaders: BTreeMap::new(),
            connections: BTreeMap::new(),
            partitions: (0..partitions).map(|partition| (partition, Position::default())).collect(),
            received: Vec::new(),
        };
        let (until, stop) = (Arc::clone(&ends), Arc::clone(&given_up));
        #[expect(clippy::disallowed_methods, reason = "joined at the end, and ended by the drop")]
        let reading = std::thread::spawn(move || reader.read(&until, &stop));
        Self { ends, given_up, reading: Some(reading) }
    }

    /// Everything that was read up to these ends, by partition; sorted by partition and offset.
    ///
    /// # Errors
    /// When it could not be read, or did not come in time.
    pub(crate) fn finish(mut self, ends: BTreeMap<i32, i64>) -> anyhow::Result<Vec<Received>> {
        self.ends.set(ends).ok().context("told twice")?;
        let reading = self.reading.take().context("it is read once")?;
        reading.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.given_up.store(true, Relaxed);
    }
}

/// Where a partition is read.
#[derive(Default)]
struct Position {
    next: i64,
    /// The producers that are within an aborted transaction there.
    aborting: BTreeSet<i64>,
}

struct Reader {
    ports: BTreeMap<i32, u16>,
    topic: String,
    leaders: BTreeMap<i32, i32>,
    connections: BTreeMap<i32, Admin>,
    partitions: BTreeMap<i32, Position>,
    received: Vec<Received>,
}

impl Reader {
    fn read(
        mut self,
        ends: &std::sync::OnceLock<BTreeMap<i32, i64>>,
        given_up: &AtomicBool,
    ) -> anyhow::Result<Vec<Received>> {
        let mut since = None;
        while !given_up.load(Relaxed) {
            for partition in self.partitions.keys().copied().collect::<Vec<_>>() {
                // Brokers come and go: what cannot be read now may be later.
                match self.fetch(partition) {
                    Some(fetched) => self.take(partition, fetched)?,
                    None => pace(PAUSE),
                }
            }
            let Some(ends) = ends.get() else { continue };
            let behind = |(partition, end): &(&i32, &i64)| self.partitions[partition].next < **end;
            let behind: Vec<_> = ends.iter().filter(behind).collect();
            if behind.is_empty() {
                break;
            }
            let since: &Instant = since.get_or_insert_with(Instant::now);
            ensure!(since.elapsed() < REST, "the reader of {} did not come to {behind:?}", self.topic);
        }
        self.received.sort_by_key(|event| (event.partition, event.offset));
        Ok(self.received)
    }

    /// What comes next of a partition; none while nobody serves it.
    fn fetch(&mut self, partition: i32) -> Option<Fetched> {
        let leader = self.leaders.get(&partition).copied().or_else(|| self.look(partition))?;
        if let std::collections::btree_map::Entry::Vacant(vacant) = self.connections.entry(leader) {
            vacant.insert(Admin::connect(*self.ports.get(&leader)?).ok()?);
        }
        let position = self.partitions[&partition].next;
        let fetched = self.connections.get_mut(&leader)?.fetch(&self.topic, partition, position);
        match fetched {
            Ok(fetched) if fetched.error == 0 => Some(fetched),
            Ok(_) => {
                self.leaders.remove(&partition);
                None
            }
            Err(_) => {
                self.connections.remove(&leader);
                self.leaders.retain(|_, known| *known != leader);
                None
            }
        }
    }

    /// Who leads a partition, as any broker says.
    fn look(&mut self, partition: i32) -> Option<i32> {
        let view = self.ports.values().find_map(|port| Admin::connect(*port).ok()?.view().ok())?;
        for found in view.topics.get(&self.topic)? {
            if let Some(leader) = found.leader {
                self.leaders.insert(found.id, leader);
            }
        }
        self.leaders.get(&partition).copied()
    }

    /// Takes the committed events of what was fetched (KIP-98, "Reading Transactional Messages").
    fn take(&mut self, partition: i32, fetched: Fetched) -> anyhow::Result<()> {
        let Fetched { mut records, mut aborted, error: _ } = fetched;
        let position = self.partitions.get_mut(&partition).context("no such partition")?;
        aborted.sort_unstable();
        let mut aborted = aborted.into_iter().peekable();
        while let Some((last, mut batch)) = next_batch(&mut records) {
            while let Some((_, producer)) = aborted.next_if(|(first, _)| *first <= last) {
                position.aborting.insert(producer);
            }
            for record in RecordBatchDecoder::decode(&mut batch)?.records {
                let is_undone = record.transactional && position.aborting.contains(&record.producer_id);
                if record.control {
                    if is_abort(&record) {
                        position.aborting.remove(&record.producer_id);
                    }
                } else if !is_undone && record.offset >= position.next {
                    self.received.push(received(partition, record));
                }
            }
            position.next = position.next.max(last + 1);
        }
        Ok(())
    }
}

/// Takes the next whole batch off, with its last offset.
fn next_batch(records: &mut Bytes) -> Option<(i64, Bytes)> {
    const HEADER: usize = 27;
    let mut header = records.get(..HEADER)?;
    let (base, length) = (header.get_i64(), usize::try_from(header.get_i32()).ok()?);
    let delta = i32::from_be_bytes(records[23..HEADER].try_into().ok()?);
    (records.len() >= 12 + length).then(|| (base + i64::from(delta), records.split_to(12 + length)))
}

/// Whether a marker ends a transaction by undoing it: the key is a version and a type, of which 0 is ABORT.
fn is_abort(record: &Record) -> bool {
    record.key.as_ref().is_some_and(|key| key.get(2..4) == Some(&[0, 0]))
}

fn received(partition: i32, record: Record) -> Received {
    let bytes = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.to_vec());
    let headers = record.headers.into_iter().map(|(name, value)| (name.as_bytes().to_vec(), bytes(value)));
    Received {
        partition,
        offset: record.offset,
        key: bytes(record.key),
        value: bytes(record.value),
        headers: headers.collect(),
        timestamp: Some(record.timestamp),
    }
}
