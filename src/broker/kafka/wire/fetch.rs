//! The fetcher: one connection to each broker that leads a partition, one request on its way on each, and what came
//! back as rows for the lanes.
//!
//! It has no task of its own: its owner calls [`Fetcher::start`] to send what can be sent, [`Fetcher::next`] to wait
//! for an answer, and [`Fetcher::take`] to move rows. Back-pressure is not to fetch: a partition is asked for only
//! while little of it waits for its lane. While rows are decoded, the next answer is already on its way.

mod answers;
mod partition;
mod request;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use rdkafka::message::BorrowedMessage;

use self::answers::stuck_error;
use self::partition::{Partition, Turn};
use self::request::Asked;
use super::cluster::{Backoff, Control, Leader, PATIENCE, Question, View};
use super::connection::{Connection, Options};
use super::error::WireError;
use super::response::{FetchResponse, ListOffsetsResponse, MetadataResponse};
use crate::broker::BrokerError;
use crate::broker::kafka::client::Consumer;
use crate::broker::kafka::group::{Assignment, Plane};
use crate::broker::kafka::log::Lines;
use crate::delivery::{Slot, TopicPartition};
use crate::intake::Lanes;
use crate::spec::{ColumnarSettings, KafkaConnection, Order};

/// How long a partition waits after an error that may pass.
const PARTITION_PAUSE: Duration = Duration::from_millis(100);
/// How long the broker may hold a fetch while other partitions of it have no room: they may have some soon.
const HASTY_WAIT: Duration = Duration::from_millis(5);

/// Something that has ended.
enum Done {
    Metadata(Control, Result<MetadataResponse, WireError>),
    Opened(i32, Result<Connection, WireError>),
    Fetched(i32, Connection, Vec<Asked>, Result<FetchResponse, WireError>),
    Oldest(i32, Connection, Vec<Slot>, Result<ListOffsetsResponse, WireError>),
}

type Work = Pin<Box<dyn Future<Output = Done>>>;

/// A broker that leads partitions, or serves them as a replica.
struct Node {
    connection: Option<Connection>,
    /// Something is on its way: a request, or the connection itself.
    busy: bool,
    not_before: Option<Instant>,
    backoff: Backoff,
    /// Since when nothing came of it.
    failing_since: Option<Instant>,
}

/// See the module.
pub(super) struct Fetcher {
    settings: ColumnarSettings,
    options: Arc<Options>,
    address: String,
    lanes: Lanes,
    /// Lanes found full in the current round, where a partition has but one.
    full: Vec<bool>,
    partitions: Vec<Partition>,
    /// Where partitions end, as far as this run goes.
    ends: BTreeMap<TopicPartition, i64>,
    /// Who begins the next round: lanes are shared, and none may always come first.
    first: usize,
    /// Counts fetches that brought something.
    turns: u64,
    view: View,
    nodes: HashMap<i32, Node>,
    /// None while a question is on its way.
    control: Option<Control>,
    /// Who leads the partitions.
    refresh: Question,
    work: FuturesUnordered<Work>,
    /// What has ended and was not looked at.
    ended: VecDeque<Done>,
    missing: bool,
    /// Since when a partition has no leader.
    leaderless_since: Option<Instant>,
    lines: Lines,
}

impl Fetcher {
    /// Fetches nothing until it is given partitions.
    pub(super) fn new(
        connection: &KafkaConnection,
        settings: &ColumnarSettings,
        options: Options,
        lanes: Lanes,
    ) -> Self {
        let lines = Lines::new(options.client_id.clone());
        let options = Arc::new(options);
        Self {
            settings: settings.clone(),
            control: Some(Control::new(connection, settings, options.clone())),
            options,
            address: crate::broker::kafka::address(connection),
            full: vec![false; lanes.intakes().len()],
            lanes,
            partitions: Vec::new(),
            ends: BTreeMap::new(),
            first: 0,
            turns: 0,
            view: View::default(),
            nodes: HashMap::new(),
            refresh: Question::new(settings.reconnect_backoff),
            work: FuturesUnordered::new(),
            ended: VecDeque::new(),
            missing: false,
            leaderless_since: None,
            lines,
        }
    }

    /// Whether a topic was not known to a broker since the last call.
    pub(super) fn take_missing(&mut self) -> bool {
        std::mem::take(&mut self.missing)
    }

    /// Sends everything that can be sent now. Does not wait.
    pub(super) fn start(&mut self) {
        let now = Instant::now();
        self.start_metadata(now);
        let mut wanted: Vec<i32> =
            self.partitions.iter().filter_map(|partition| self.node_of(partition, now)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        for node in wanted {
            self.start_node(node, now);
        }
        // Only a future that was polled has sent anything.
        while let Some(Some(done)) = self.work.next().now_or_never() {
            self.ended.push_back(done);
        }
    }

    /// Waits for an answer and takes it in. Cancel-safe.
    ///
    /// # Errors
    /// When a broker refuses for good, or a partition cannot go on.
    pub(super) async fn next(&mut self) -> Result<(), BrokerError> {
        let done = match self.ended.pop_front() {
            Some(done) => done,
            None => match self.work.next().await {
                Some(done) => done,
                None => std::future::pending().await,
            },
        };
        self.handle(done)
    }

    /// One round: each partition whose lane has room appends a run of rows. True when rows moved.
    ///
    /// # Errors
    /// When what came cannot be read, or offsets went back.
    pub(super) fn take(&mut self) -> Result<bool, BrokerError> {
        self.full.fill(false);
        let count = self.partitions.len();
        let (mut moved, mut any) = (false, false);
        for turn in 0..count {
            let partition = &mut self.partitions[(self.first + turn) % count];
            if self.full[partition.lane] || partition.is_handed_over() || partition.is_stopped() {
                continue;
            }
            let before = partition.last();
            let turn = partition.take(&self.lanes);
            any |= partition.last() != before;
            match turn {
                Ok(Turn::Empty) => {}
                Ok(Turn::Moved) => moved = true,
                Ok(Turn::Full) => self.full[partition.lane] = self.lanes.order() == Order::Partition,
                Err(stuck) => return Err(stuck_error(partition, stuck)),
            }
        }
        // A round in which nothing had room was nobody's turn.
        self.first = (self.first + usize::from(any)) % count.max(1);
        Ok(moved)
    }

    /// The broker to fetch a partition from, if it is known.
    fn node_of(&self, partition: &Partition, now: Instant) -> Option<i32> {
        if let Some((node, until)) = partition.replica
            && now < until
            && self.view.address(node).is_some()
        {
            return Some(node);
        }
        self.leader(partition)?.node
    }

    fn leader(&self, partition: &Partition) -> Option<Leader> {
        let name = &partition.assignment.partition;
        self.view.leader(&name.topic, name.partition)
    }

    fn start_metadata(&mut self, now: Instant) {
        if self.partitions.is_empty() || now < self.refresh.not_before {
            return;
        }
        let is_led = |partition: &Partition| self.leader(partition).is_some_and(|leader| leader.node.is_some());
        let leaderless = self.partitions.iter().filter(|partition| !is_led(partition)).count();
        if leaderless == 0 {
            self.leaderless_since = None;
        } else if now.duration_since(*self.leaderless_since.get_or_insert(now)) >= PATIENCE {
            self.lines.warn("LEADERS", &format!("{leaderless} partitions have no leader; waiting for one"));
        }
        if !(self.refresh.is_due(now, self.settings.metadata_age_max) || leaderless > 0) {
            return;
        }
        let Some(control) = self.control.take() else { return };
        self.refresh.wanted = false;
        let mut topics: Vec<Arc<str>> =
            self.partitions.iter().map(|partition| partition.assignment.partition.topic.clone()).collect();
        topics.sort_unstable();
        topics.dedup();
        self.work.push(Box::pin(async move {
            let (control, told) = control.metadata(topics).await;
            Done::Metadata(control, told)
        }));
    }

    fn start_node(&mut self, id: i32, now: Instant) {
        let Some(address) = self.view.address(id).cloned() else { return };
        let backoff = || Backoff::new(self.settings.reconnect_backoff);
        let node = self.nodes.entry(id).or_insert_with(|| Node {
            connection: None,
            busy: false,
            not_before: None,
            backoff: backoff(),
            failing_since: None,
        });
        if node.busy || node.not_before.is_some_and(|until| now < until) {
            return;
        }
        let connection = node.connection.take().filter(|open| open.expires().is_none_or(|at| now < at.into_std()));
        let Some(connection) = connection else {
            node.busy = true;
            let options = self.options.clone();
            self.work.push(Box::pin(async move {
                Done::Opened(id, Connection::open(&address.host, address.port, &options).await)
            }));
            return;
        };
        self.send(id, connection, now);
    }

    /// Sends a node the next request that there is for it.
    fn send(&mut self, id: i32, mut connection: Connection, now: Instant) {
        let ready = |partition: &&Partition| {
            !partition.in_flight
                && partition.wait_until.is_none_or(|until| until <= now)
                && self.node_of(partition, now) == Some(id)
        };
        let mut ours: Vec<&Partition> = self.partitions.iter().filter(ready).collect();
        // The first may fill the answer: whose turn was longest ago comes first.
        ours.sort_by_key(|partition| partition.turn);
        let unplaced: Vec<&Partition> = ours.iter().copied().filter(|partition| partition.position.is_none()).collect();
        let timeout = self.settings.socket_timeout;
        if !unplaced.is_empty() {
            let pairs = unplaced.iter().filter_map(|partition| Some((*partition, self.leader(partition)?)));
            let (request, slots) = request::oldest(pairs);
            self.mark(&slots);
            self.busy(id);
            self.work.push(Box::pin(async move {
                let answer = connection.call(&request, timeout).await;
                Done::Oldest(id, connection, slots, answer)
            }));
            return;
        }
        let has_room = |partition: &&&Partition| partition.has_room(self.settings.partition_fetch_bytes);
        let roomy: Vec<&Partition> = ours.iter().filter(has_room).copied().collect();
        if roomy.is_empty() {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.connection = Some(connection);
            }
            return;
        }
        let wait = if roomy.len() < ours.len() { HASTY_WAIT } else { self.settings.fetch_wait };
        let wait = wait.min(self.settings.fetch_wait);
        let pairs = roomy.iter().filter_map(|partition| Some((*partition, self.leader(partition)?)));
        let (request, asked) = request::fetch(&self.settings, pairs, wait);
        let slots: Vec<Slot> = asked.iter().map(|asked| asked.slot).collect();
        self.mark(&slots);
        self.busy(id);
        self.work.push(Box::pin(async move {
            let answer = connection.call(&request, timeout).await;
            Done::Fetched(id, connection, asked, answer)
        }));
    }

    fn mark(&mut self, slots: &[Slot]) {
        for partition in &mut self.partitions {
            partition.in_flight |= slots.contains(&partition.assignment.slot);
        }
    }

    fn busy(&mut self, id: i32) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.busy = true;
        }
    }

    fn handle(&mut self, done: Done) -> Result<(), BrokerError> {
        match done {
            Done::Metadata(control, told) => {
                self.control = Some(control);
                self.learn(told)
            }
            Done::Opened(id, Ok(connection)) => {
                self.idle(id, Some(connection), None);
                Ok(())
            }
            Done::Opened(id, Err(error)) => self.failed(id, error),
            Done::Fetched(id, connection, asked, answer) => {
                for asked in &asked {
                    self.unmark(asked.slot);
                }
                match answer {
                    Ok(answer) => self.fetched(id, connection, &asked, answer),
                    Err(error) => self.failed(id, error),
                }
            }
            Done::Oldest(id, connection, slots, answer) => {
                for slot in &slots {
                    self.unmark(*slot);
                }
                match answer {
                    Ok(answer) => self.placed(id, connection, &slots, answer),
                    Err(error) => self.failed(id, error),
                }
            }
        }
    }

    fn unmark(&mut self, slot: Slot) {
        if let Some(partition) = self.find(slot) {
            partition.in_flight = false;
        }
    }

    fn find(&mut self, slot: Slot) -> Option<&mut Partition> {
        self.partitions.iter_mut().find(|partition| partition.assignment.slot == slot)
    }

    /// A node has nothing on its way. With a throttle time the broker asks to be left alone for a while (KIP-219).
    fn idle(&mut self, id: i32, connection: Option<Connection>, throttle: Option<Duration>) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.busy = false;
            node.connection = connection;
            node.not_before = throttle.filter(|throttle| !throttle.is_zero()).map(|throttle| Instant::now() + throttle);
        }
    }

    /// A connection failed: it is made again, and leaders may have moved.
    fn failed(&mut self, id: i32, error: WireError) -> Result<(), BrokerError> {
        if !error.kind.may_pass() {
            return Err(error.into_broker(format!("read from {}", self.address)));
        }
        tracing::debug!(target: "fluxmill::kafka", "broker {id} of {}: {}", self.address, error.reason);
        self.refresh.wanted = true;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.busy = false;
            node.connection = None;
            node.not_before = Some(node.backoff.next());
            if node.failing_since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
                let text =
                    format!("broker {id} of {} is not reachable: {}; waiting for it", self.address, error.reason);
                self.lines.warn("BROKER", &text);
            }
        }
        for partition in &mut self.partitions {
            // A replica that fails is not asked again; the leader names another.
            partition.replica = partition.replica.filter(|(replica, _)| *replica != id);
        }
        Ok(())
    }
}

impl Plane for Fetcher {
    const FETCHES: bool = true;

    fn begin(&mut self, _: &Arc<Consumer>, assignment: &Assignment, position: Option<i64>) -> Result<(), BrokerError> {
        let held = |lane: usize| self.partitions.iter().filter(|partition| partition.lane == lane).count();
        let lane = (0..self.full.len()).min_by_key(|&lane| held(lane)).unwrap_or(0);
        let mut partition = Partition::new(assignment.clone(), lane, position);
        partition.stop_at = self.ends.get(&assignment.partition).copied();
        self.partitions.push(partition);
        self.refresh.wanted = true;
        Ok(())
    }

    fn stop(&mut self, slot: Slot) {
        if let Some(partition) = self.partitions.iter().find(|partition| partition.assignment.slot == slot) {
            self.lanes.hurry_from(partition.lane);
        }
        self.partitions.retain(|partition| partition.assignment.slot != slot);
    }

    /// librdkafka has nothing to fetch.
    fn stray(&mut self, _: &BorrowedMessage<'_>) {}

    fn end(&self, slot: Slot) -> Option<i64> {
        let partition = self.partitions.iter().find(|partition| partition.assignment.slot == slot)?;
        if partition.is_stopped() {
            partition.stop_at
        } else {
            partition.position.filter(|_| partition.is_handed_over())
        }
    }

    fn stop_at(&mut self, ends: &BTreeMap<TopicPartition, i64>) {
        self.ends.clone_from(ends);
        for partition in &mut self.partitions {
            partition.stop_at = ends.get(&partition.assignment.partition).copied();
        }
    }
}

#[cfg(test)]
mod tests;
