//! Talks to brokers for a producer: leaders, the producer's id, and the batches of all partitions.
//!
//! One task, no locks held while it waits. For each broker one connection, on which requests go out while answers
//! come in.

mod answers;
mod lines;
mod questions;
mod transact;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use self::lines::{Broker, Node};
use self::transact::Coordination;
use super::super::cluster::{Control, PATIENCE, Question, View};
use super::super::connection::{Connection, Options, Requests, Responses, Sent};
use super::super::error::WireError;
use super::super::record_batch::Producer;
use super::super::response::{InitProducerIdResponse, MetadataResponse};
use super::batches::Batches;
use super::coordinator::Coordinators;
use super::queue::Id;
use super::transaction::state::{Answer, Ask};
use super::{Shared, State, Topic, closed};
use crate::broker::BrokerError;
use crate::broker::kafka::log::Lines;
use crate::spec::{ColumnarSettings, KafkaConnection};

/// Requests on their way on one connection: as many as keep a partition's batches recognisable.
const REQUESTS_MAX: usize = super::queue::IN_FLIGHT_MAX;
/// While a request is on its way, another goes when this much waits. Less waits for the answer, and goes together.
const EAGER_BYTES: usize = 256 << 10;
/// Batches that go in one request, in bytes. Brokers take requests of 100 MB unless told otherwise.
const REQUEST_BYTES_MAX: usize = 8 << 20;
/// How often time is looked at when nothing else happens.
const TICK: Duration = Duration::from_millis(500);
/// How long a topic may be missing. A broker that has just started may not know its topics yet.
const MISSING_MAX: Duration = Duration::from_secs(10);
/// How long a partition waits before a batch that was not taken is sent again.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// A batch that is on its way, by where it comes from.
#[derive(Clone, Debug)]
struct Batch {
    topic: Arc<Topic>,
    partition: i32,
    id: Id,
}

/// Something that has ended.
enum Done {
    Metadata(Control, Result<MetadataResponse, WireError>),
    ProducerId(Control, Result<InitProducerIdResponse, WireError>),
    Coordinated(Box<Coordinators>, Ask, Result<Answer, WireError>),
    Opened(i32, Result<Connection, WireError>),
    Written(i32, u64, Requests, Result<Sent, WireError>),
    Answered(i32, u64, Responses, Result<(i32, Bytes), WireError>),
}

type Work = Pin<Box<dyn Future<Output = Done> + Send>>;

/// What must happen before new batches are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Renewal {
    /// A new epoch: some numbers are missing for good.
    Epoch,
    /// A new producer id: the brokers do not know this one.
    Id,
}

/// Runs a producer. See the module.
pub struct Driver {
    shared: Arc<Shared>,
    options: Arc<Options>,
    stop: CancellationToken,
    lines: Lines,
    view: View,
    brokers: HashMap<i32, Broker>,
    /// None while a question is on its way.
    control: Option<Control>,
    metadata: Question,
    identity: Question,
    producer: Option<Producer>,
    renewal: Option<Renewal>,
    /// For a transactional producer.
    coordination: Option<Coordination>,
    /// Topics that the brokers do not know, and since when.
    missing: HashMap<Arc<str>, Instant>,
    /// Since when events wait for a partition without a leader.
    leaderless_since: Option<Instant>,
    /// When the next partition may be sent to again.
    retry_at: Option<Instant>,
    /// Who begins the next request: no partition may always come last.
    first: usize,
    down: bool,
    /// How long a topic may be missing.
    pub(super) missing_max: Duration,
    work: FuturesUnordered<Work>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("address", &self.shared.address).finish_non_exhaustive()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Without a driver no acknowledgement comes any more; those who wait must learn of it.
        self.shared.fail_all(&closed(&self.shared.address));
    }
}

impl Driver {
    pub(super) fn new(
        connection: &KafkaConnection,
        shared: Arc<Shared>,
        options: Options,
        stop: CancellationToken,
        client_id: &str,
    ) -> Self {
        let options = Arc::new(options);
        let question = || Question::new(shared.settings.reconnect_backoff);
        let coordination = shared.transaction.as_ref().map(|transaction| {
            let spec = transaction.spec.clone();
            Coordination::new(Coordinators::new(connection, &shared.settings, options.clone(), spec))
        });
        Self {
            control: Some(Control::new(connection, &shared.settings, options.clone())),
            metadata: question(),
            identity: question(),
            options,
            stop,
            lines: Lines::new(client_id),
            view: View::default(),
            brokers: HashMap::new(),
            producer: None,
            renewal: None,
            coordination,
            missing: HashMap::new(),
            leaderless_since: None,
            retry_at: None,
            first: 0,
            down: false,
            missing_max: MISSING_MAX,
            work: FuturesUnordered::new(),
            shared,
        }
    }

    /// Runs until the producer is closed, or nothing more can be published; those who wait are told why.
    pub async fn run(mut self) {
        let stop = self.stop.clone();
        loop {
            if let Err(error) = self.start() {
                self.shared.fail_all(&error);
            }
            let (shared, pause) = (self.shared.clone(), self.pause());
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(done) = self.work.next(), if !self.work.is_empty() => self.handle(done),
                () = shared.work.notified() => Ok(()),
                () = tokio::time::sleep(pause) => Ok(()),
            };
            if let Err(error) = ended {
                self.shared.fail_all(&error);
            }
        }
    }

    fn settings(&self) -> &ColumnarSettings {
        &self.shared.settings
    }

    /// How long until something is due by the clock alone.
    fn pause(&self) -> Duration {
        let linger = self.settings().linger;
        let tick = if linger.is_zero() { TICK } else { TICK.min(linger) };
        let now = Instant::now();
        let waits = self.brokers.values().filter_map(|broker| match &broker.node {
            Node::Closed { until } => Some(*until),
            Node::Open(_) => broker.not_before,
            Node::Opening => None,
        });
        let questions = [&self.metadata, &self.identity].into_iter().map(|question| question.not_before);
        let coordination = self.coordination.iter().map(|coordination| coordination.not_before);
        let next = waits.chain(questions).chain(coordination).chain(self.retry_at).filter(|at| *at > now).min();
        next.map_or(tick, |at| tick.min(at - now))
    }

    /// Sends everything that can be sent now. Does not wait.
    fn start(&mut self) -> Result<(), BrokerError> {
        if self.shared.dead().is_some() {
            return Ok(());
        }
        let (now, topics) = (Instant::now(), self.shared.topics());
        self.retry_at = None;
        self.give_up_late(now)?;
        self.ask(now, &topics);
        self.renew(&topics);
        self.transact(now, &topics);
        let Some(producer) = self.producer else { return Ok(()) };
        let (mut ready, mut leaderless): (BTreeMap<i32, usize>, bool) = Default::default();
        for topic in &topics {
            let State::Known(batches) = &mut *topic.lock() else { continue };
            for at in 0..batches.partitions.len() {
                let until = batches.partitions[at].not_before.filter(|until| now < *until);
                self.retry_at = self.retry_at.into_iter().chain(until).min();
                let Some(leader) = self.view.leader(&topic.name, at as i32) else { continue };
                match leader.node {
                    Some(node) => *ready.entry(node).or_default() += self.sendable(batches, at, node, now),
                    // Whoever leads it next is asked for, if something waits for it.
                    None => leaderless |= batches.waits_in(at),
                }
            }
        }
        self.metadata.wanted |= leaderless;
        if !leaderless {
            self.leaderless_since = None;
        } else if now.duration_since(*self.leaderless_since.get_or_insert(now)) >= PATIENCE {
            self.lines.warn("LEADERS", "events wait for a partition that has no leader");
        }
        for (node, bytes) in ready.into_iter().filter(|(_, bytes)| *bytes > 0) {
            self.start_node(node, bytes, now, producer, &topics);
        }
        Ok(())
    }

    /// Bytes of the next batch that this partition would send to `node` now; at least one if there is any.
    fn sendable(&self, batches: &Batches, at: usize, node: i32, now: Instant) -> usize {
        let (partition, frozen) = (&batches.partitions[at], self.renewal.is_some());
        if partition.not_before.is_some_and(|until| now < until) {
            return 0;
        }
        if partition.queue.can_send(node, frozen) {
            // It was sealed because it is full, or goes once more.
            return if self.joined(batches, at) { EAGER_BYTES } else { 0 };
        }
        match partition.open() {
            // What cannot go yet is not sealed: more may join it.
            Some((since, bytes))
                if now >= since + self.linger()
                    && partition.queue.takes_more(node, frozen)
                    && self.joined(batches, at) =>
            {
                bytes.max(1)
            }
            _ => 0,
        }
    }

    /// Begins a new epoch, or forgets the producer id, once nothing is left that may have arrived under the old one.
    fn renew(&mut self, topics: &[Arc<Topic>]) {
        let Some(renewal) = self.renewal else { return };
        let settled = |topic: &Arc<Topic>| match &*topic.lock() {
            State::Known(batches) => batches.partitions.iter().all(|partition| partition.queue.is_settled()),
            _ => true,
        };
        if !topics.iter().all(settled) {
            return;
        }
        self.renewal = None;
        if self.coordination.is_some() {
            // A transaction ends under the epoch that it has begun under; only a refused batch leaves a gap in it.
            for topic in topics {
                if let State::Known(batches) = &mut *topic.lock() {
                    batches.partitions.iter_mut().for_each(|partition| partition.queue.close_gap());
                }
            }
            return;
        }
        self.producer = match (renewal, self.producer) {
            (Renewal::Epoch, Some(Producer { id, epoch })) if epoch < i16::MAX => {
                Some(Producer { id, epoch: epoch + 1 })
            }
            _ => None,
        };
        for topic in topics {
            if let State::Known(batches) = &mut *topic.lock() {
                batches.partitions.iter_mut().for_each(|partition| partition.queue.begin_epoch());
            }
        }
    }

    fn handle(&mut self, done: Done) -> Result<(), BrokerError> {
        match done {
            Done::Metadata(control, told) => {
                self.control = Some(control);
                self.learn(told)
            }
            Done::ProducerId(control, told) => {
                self.control = Some(control);
                self.identified(told)
            }
            Done::Coordinated(coordinators, ask, answer) => self.coordinated(coordinators, &ask, answer),
            Done::Opened(id, opened) => self.opened(id, opened),
            Done::Written(id, generation, requests, written) => {
                let Some(line) = self.line(id, generation) else { return Ok(()) };
                match written {
                    Ok(_) => {
                        line.requests = Some(requests);
                        Ok(())
                    }
                    Err(error) => self.failed(id, error),
                }
            }
            Done::Answered(id, generation, responses, answer) => {
                if self.line(id, generation).is_none() {
                    return Ok(());
                }
                match answer {
                    Ok((correlation, body)) => {
                        self.listen(id, generation, responses);
                        self.answered(id, correlation, body)
                    }
                    Err(error) => self.failed(id, error),
                }
            }
        }
    }
}
