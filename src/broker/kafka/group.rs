//! Membership in a consumer group: assignments, revocations, commits, start offsets, and what to make of errors. The
//! control plane of a source; it never touches a row.
//!
//! Everything happens on the thread that calls [`Group::serve`], which must be often: it is what keeps the member in
//! its group. While revoked partitions drain, the others go on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;

use super::client::{Attached, Consumer, Note, Notes, Reach};
use super::commit::{Commits, Committed, OVERDUE, Transactions, transaction_lost};
use super::error;
use super::ffi;
use super::health::Health;
use super::member::Member;
use super::start;
use crate::broker::{BrokerError, BrokerErrorKind, SourceContext};
use crate::delivery::{Slot, TopicPartition, Tracker};
use crate::intake::Bell;
use crate::spec::{KafkaConnection, KafkaSourceSpec, StartOffset};

/// How long the first connection may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last commit of a partition may take after its events have ended.
const LAST_COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait after start offsets could not be looked up.
const LOOKUP_PAUSE: Duration = Duration::from_secs(1);
/// How long to wait for the bell. Nothing depends on it but the pace of commits and probes.
const IDLE_WAIT: Duration = Duration::from_millis(50);
/// How long to wait for what is in flight before the group is served again.
const DRAIN_WAIT: Duration = Duration::from_millis(10);
/// Events of the group served in one call, so that rows get their turn.
const EVENTS_MAX: usize = 64;

/// A partition that this member holds.
#[derive(Clone, Debug)]
pub(super) struct Assignment {
    /// This assignment of it.
    pub(super) slot: Slot,
    /// Which one.
    pub(super) partition: TopicPartition,
}

/// A member as its group's coordinator knows it: what offsets are committed with in a transaction (KIP-447).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMetadata {
    /// The group.
    pub group: String,
    /// The group's generation, or the member's epoch (KIP-848).
    pub generation: i32,
    /// The member's id.
    pub member: String,
    /// `group.instance.id`, where there is one.
    pub instance: Option<String>,
}

impl GroupMetadata {
    /// What a consumer's membership is now; none when it has no group. Take it anew for each transaction: a member
    /// has another generation after each rebalance.
    pub fn of<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<Self> {
        ffi::group_metadata(consumer)
    }
}

/// The data plane, as the group sees it.
pub(super) trait Plane {
    /// Whether the rows come by other ways than librdkafka's. It is then told that it has no partitions: as a member of
    /// the group it has them all the same, but it neither asks where they begin nor follows their leaders. (While it
    /// does, librdkafka 2.12 can lock itself up when a broker dies that leads one of them: its issue 5476.)
    const FETCHES: bool;

    /// A partition is about to be assigned: get ready for its rows. `position` is where the group says to begin; none
    /// is the oldest event that is kept, or, for a plane that does not fetch, what librdkafka finds.
    ///
    /// # Errors
    /// When its rows could not be taken.
    fn begin(
        &mut self,
        consumer: &Arc<Consumer>,
        assignment: &Assignment,
        position: Option<i64>,
    ) -> Result<(), BrokerError>;

    /// Take no more rows of this assignment, and forget those that no batch has taken.
    fn stop(&mut self, slot: Slot);

    /// A row came from librdkafka where none should.
    fn stray(&mut self, message: &BorrowedMessage<'_>);

    /// An offset of this assignment's partition before which every row was handed to its lane, and none is left that may
    /// be; none while rows wait.
    fn end(&self, slot: Slot) -> Option<i64>;

    /// Hand no row over at these offsets or beyond them, of partitions that are held or will be.
    fn stop_at(&mut self, ends: &BTreeMap<TopicPartition, i64>);
}

/// Partitions on their way to another member.
#[derive(Debug)]
struct Revoking {
    partitions: TopicPartitionList,
    slots: Vec<Slot>,
    names: Vec<TopicPartition>,
    drain_until: Instant,
    commit_until: Instant,
}

/// A member of a consumer group.
pub(super) struct Group {
    // First, so that it is dropped before the consumer, whose drop waits for its own leave.
    _attached: Attached,
    consumer: Member,
    /// See [`Plane::FETCHES`].
    fetches: bool,
    tracker: Arc<Tracker>,
    bell: Arc<Bell>,
    start: StartOffset,
    topics: Vec<String>,
    assigned: Vec<Assignment>,
    /// Rebalances that were not answered yet, and when to try the next.
    rebalances: VecDeque<Note>,
    retry_at: Option<Instant>,
    revoking: Option<Revoking>,
    commits: Commits,
    /// This member's id when it was last given partitions.
    member: Option<String>,
    /// By which offsets are committed; none when they are committed by themselves.
    transactions: Option<Transactions>,
    commit_interval: Duration,
    commit_at: Instant,
    commit_action: String,
    drain_timeout: Duration,
    health: Health,
}

impl Group {
    /// Connects, and makes sure that the topics can be read. The group is joined by [`Group::join`].
    ///
    /// # Errors
    /// When the cluster is not reached in time, or a topic does not exist or may not be read.
    pub(super) fn connect<P: Plane>(
        connection: &KafkaConnection,
        spec: &KafkaSourceSpec,
        client_id: &str,
        context: &SourceContext,
        transactions: Option<Transactions>,
    ) -> Result<Self, BrokerError> {
        let address = super::address(connection);
        let config = super::consumer(connection, spec, client_id, context.caught_up.is_some());
        let action = format!("set up a consumer for {address}");
        let mut consumer = Notes::consumer(&config, client_id).map_err(|error| error::failed(action, &error))?;
        let bell = context.bell.clone();
        consumer.set_nonempty_callback(move || bell.ring());
        let names: Vec<&str> = spec.topics.iter().map(String::as_str).collect();
        let states = Reach::new(&consumer, &address, &names, Instant::now() + CONNECT_TIMEOUT).all()?;
        for state in &states {
            if let Some(code) = state.error {
                return Err(error::coded(format!("read topic {} on {address}", state.name), code, ""));
            }
        }
        let most = super::max_poll_interval(&config) * 3 / 4;
        let group = Self {
            _attached: consumer.context().attach(),
            consumer: Member::new(consumer, &address),
            fetches: P::FETCHES,
            tracker: context.tracker.clone(),
            bell: context.bell.clone(),
            start: spec.start,
            topics: spec.topics.clone(),
            assigned: Vec::new(),
            rebalances: VecDeque::new(),
            retry_at: None,
            revoking: None,
            commits: Commits::default(),
            member: None,
            transactions,
            commit_interval: context.commit.interval,
            commit_at: Instant::now() + context.commit.interval,
            commit_action: format!("commit offsets of group {} on {address}", spec.group),
            // The broker takes a member that does not answer a rebalance within its poll interval for dead.
            drain_timeout: context.drain_timeout.min(most),
            health: Health::new(address, spec.topics.clone()),
        };
        Ok(group)
    }

    /// Joins the group.
    ///
    /// # Errors
    /// When librdkafka does not take the subscription.
    pub(super) fn join(&self) -> Result<(), BrokerError> {
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        self.consumer.subscribe(&topics).map_err(|error| error::failed("subscribe", &error))
    }

    /// The consumer, to ask the cluster with.
    pub(super) fn consumer(&self) -> &Consumer {
        &self.consumer
    }

    /// The topics that are read.
    pub(super) fn topics(&self) -> &[String] {
        &self.topics
    }

    /// The partitions that are held.
    pub(super) fn assigned(&self) -> &[Assignment] {
        &self.assigned
    }

    /// Everything of this partition up to `next` has ended, though the tracker cannot know.
    pub(super) fn passed(&mut self, partition: &TopicPartition, next: i64) {
        // What the tracker knows comes first: it is less.
        self.commits.note(&self.tracker);
        self.commits.want(partition.clone(), next);
    }

    /// Serves what the group has to tell, moves rebalances on and commits progress. Does not wait.
    ///
    /// # Errors
    /// When this member cannot go on.
    pub(super) fn serve(&mut self, plane: &mut impl Plane) -> Result<(), BrokerError> {
        for _ in 0..EVENTS_MAX {
            let before = self.consumer.context().served();
            // Errors are noted by the context as well, with their reason.
            let stray = self.consumer.poll(Duration::ZERO).and_then(Result::ok);
            if let Some(message) = &stray {
                plane.stray(message);
            }
            let none = stray.is_none();
            drop(stray);
            while let Some(note) = self.consumer.context().take() {
                self.act(note)?;
            }
            if none && self.consumer.context().served() == before {
                break;
            }
        }
        self.rebalance(plane)?;
        self.health.check(&self.consumer)?;
        let now = Instant::now();
        if now >= self.commit_at || self.is_due() {
            self.commit()?;
        }
        Ok(())
    }

    /// Whether a transaction can be taken further now.
    pub(super) fn is_due(&self) -> bool {
        self.transactions.as_ref().is_some_and(Transactions::is_due)
    }

    /// Waits until a transaction that is being committed has ended. Cancel-safe.
    pub(super) async fn transaction_moved(&mut self) {
        match &mut self.transactions {
            Some(transactions) => transactions.moved().await,
            None => std::future::pending().await,
        }
    }

    /// Whether everything that was taken has ended.
    pub(super) fn is_drained(&self) -> bool {
        self.assigned.iter().all(|assignment| self.tracker.drained(&[assignment.slot]))
    }

    /// Whether a batch was abandoned: it will never end, and its pipeline is ending.
    pub(super) fn waits_in_vain(&self) -> bool {
        self.tracker.abandoned() > 0
    }

    /// Waits until there may be something to do: an answer of the broker, rows, room, or the end of what is awaited.
    /// While draining, that is everything that was taken; else it is what is being given up.
    pub(super) fn pause(&self, draining: bool) {
        let slots: Vec<Slot> = match &self.revoking {
            Some(revoking) => revoking.slots.clone(),
            None if draining => self.assigned.iter().map(|assignment| assignment.slot).collect(),
            None => Vec::new(),
        };
        if self.tracker.drained(&slots) || self.waits_in_vain() {
            self.bell.wait(IDLE_WAIT);
        } else {
            self.tracker.wait_drained(&slots, DRAIN_WAIT);
        }
    }

    /// As [`Group::pause`], for a source that is a task.
    pub(super) async fn rest(&mut self, draining: bool) {
        let closing = self.transactions.as_ref().is_some_and(|transactions| !transactions.is_settled());
        let awaits_end = (draining || closing || self.revoking.is_some()) && !self.waits_in_vain();
        let (bell, tracker) = (self.bell.clone(), self.tracker.clone());
        tokio::select! {
            () = bell.rung() => {}
            () = tracker.change(), if awaits_end => {}
            () = self.transaction_moved() => {}
            () = tokio::time::sleep(IDLE_WAIT) => {}
        }
    }

    /// A topic is not known to the brokers that have its partitions.
    pub(super) fn missing(&mut self) {
        self.health.missing();
    }

    /// Commits what has ended, now, and waits for the broker's answer; false when `until` passed first.
    ///
    /// # Errors
    /// When the broker refuses for good.
    pub(super) fn commit_all(&mut self, plane: &mut impl Plane, until: Instant) -> Result<bool, BrokerError> {
        let until = until.max(Instant::now() + LAST_COMMIT_TIMEOUT);
        loop {
            if let Some(all) = self.committed_by(until)? {
                return Ok(all);
            }
            self.bell.wait(IDLE_WAIT);
            self.serve(plane)?;
        }
    }

    /// As [`Group::commit_all`], for a source that is a task.
    ///
    /// # Errors
    /// When the broker refuses for good, or the transaction has failed.
    pub(super) async fn all_committed(&mut self, plane: &mut impl Plane, until: Instant) -> Result<bool, BrokerError> {
        let until = until.max(Instant::now() + LAST_COMMIT_TIMEOUT);
        loop {
            if let Some(all) = self.committed_by(until)? {
                return Ok(all);
            }
            self.rest(false).await;
            self.serve(plane)?;
        }
    }

    /// Commits what has ended. Whether all of it is committed; none while there is time to wait for it.
    fn committed_by(&mut self, until: Instant) -> Result<Option<bool>, BrokerError> {
        self.commit()?;
        let settled = self.commits.is_settled() && self.transactions.as_ref().is_none_or(Transactions::is_settled);
        Ok((settled || Instant::now() >= until).then_some(settled))
    }

    /// Aborts a transaction that was left open, and leaves the group: whoever gets the partitions next must not have to
    /// wait for its end.
    pub(super) async fn close(mut self) {
        if let Some(transactions) = self.transactions.take() {
            transactions.close().await;
        }
    }

    fn act(&mut self, note: Note) -> Result<(), BrokerError> {
        match note {
            Note::Assign(_) | Note::Revoke { .. } => self.rebalances.push_back(note),
            Note::Error(code, reason) => {
                let result = self.health.failed(&self.consumer, code, &reason);
                result.map_err(|error| self.cause(error))?;
            }
            Note::Committed(offsets, whole) => {
                let now = Instant::now();
                let ended = self.commits.ended(&offsets, whole, now, &self.commit_action);
                match ended.map_err(|error| self.cause(error))? {
                    Committed::Whole => self.health.works(),
                    Committed::Again => {}
                    Committed::Stale => {
                        if let Some(revoking) = &mut self.revoking {
                            revoking.commit_until = now;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), BrokerError> {
        let now = Instant::now();
        if self.commits.is_overdue(now) {
            let text = format!("{}: no answer for {} s; waiting for it", self.commit_action, OVERDUE.as_secs());
            self.consumer.context().lines().warn("OVERDUE", &text);
        }
        let Some(transactions) = &mut self.transactions else {
            self.commit_at = now + self.commit_interval;
            self.commits.note(&self.tracker);
            if !self.commits.may_send(now) || !self.is_same_member() {
                return Ok(());
            }
            return self.commits.send(&self.consumer, now, &self.commit_action);
        };
        if self.tracker.abandoned() > 0 {
            return Err(transaction_lost("events of it will not end"));
        }
        let committed =
            transactions.advance(&mut self.commits, || same_member(&self.consumer, self.member.as_ref()))?;
        if committed {
            self.health.works();
        }
        if transactions.is_settled() {
            self.commit_at = now + self.commit_interval;
        }
        Ok(())
    }

    /// Whether this is the member that was given the partitions, if any were.
    fn is_same_member(&self) -> bool {
        self.member.is_none() || same_member(&self.consumer, self.member.as_ref()).is_some()
    }

    /// An error of this member, unless it is its own next self that has fenced it: then it only has to begin anew.
    fn cause(&self, error: BrokerError) -> BrokerError {
        let fenced =
            self.consumer.client().fatal_error().is_some_and(|(code, _)| code == RDKafkaErrorCode::FencedInstanceId);
        if !fenced || self.is_same_member() {
            return error;
        }
        let reason = "this member was thrown out of its group, and is on its way back".to_owned();
        BrokerError { kind: BrokerErrorKind::Aborted, action: self.commit_action.clone(), reason }
    }

    /// Answers rebalances, one after the other, as far as they can be answered now.
    fn rebalance(&mut self, plane: &mut impl Plane) -> Result<(), BrokerError> {
        loop {
            if self.revoking.is_some() && !self.let_go(plane)? {
                return Ok(());
            }
            let now = Instant::now();
            if self.retry_at.is_some_and(|at| now < at) {
                return Ok(());
            }
            match self.rebalances.pop_front() {
                Some(Note::Assign(partitions)) => {
                    self.retry_at = None;
                    if let Some(again) = self.assign(partitions, plane)? {
                        self.retry_at = Some(now + LOOKUP_PAUSE);
                        self.rebalances.push_front(Note::Assign(again));
                    }
                }
                Some(Note::Revoke { partitions, lost }) => self.revoke(partitions, lost, plane)?,
                Some(Note::Committed(..) | Note::Error(..)) | None => return Ok(()),
            }
        }
    }

    /// Takes partitions; gives them back when the cluster did not say in time where to begin.
    fn assign<P: Plane>(
        &mut self,
        mut partitions: TopicPartitionList,
        plane: &mut P,
    ) -> Result<Option<TopicPartitionList>, BrokerError> {
        let places = match start::places(&self.consumer, self.start, &partitions, P::FETCHES) {
            Ok(places) => places,
            Err(error) => {
                let action = format!("look up where to begin: {error}; tried again");
                self.consumer.context().lines().warn("START", &action);
                return Ok(Some(partitions));
            }
        };
        for (partition, place) in &places {
            let offset = rdkafka::Offset::Offset(place.offset);
            partitions
                .set_partition_offset(&partition.topic, partition.partition, offset)
                .map_err(|error| error::failed("set where to begin", &error))?;
            if !place.committed {
                // Committed at once: a restart before the first event must not skip what came meanwhile.
                self.commits.want(partition.clone(), place.offset);
            }
        }
        for partition in names(&partitions) {
            let slot = self.tracker.assign(partition.clone());
            let position = places.get(&partition).map(|place| place.offset);
            let assignment = Assignment { slot, partition };
            // Before the assignment: a queue that is split off later stalls, or has missed rows.
            plane.begin(&self.consumer, &assignment, position)?;
            self.assigned.push(assignment);
        }
        self.answer(true, &partitions)?;
        if partitions.count() > 0 {
            let member = GroupMetadata::of(&self.consumer).map(|group| group.member);
            if self.transactions.is_some() && self.member.is_some() && self.member != member {
                // What it held then is lost.
                return Err(transaction_lost("this member was thrown out of its group"));
            }
            self.member = member;
        }
        tracing::debug!(target: "fluxmill::kafka", "assigned {partitions:?}");
        Ok(None)
    }

    /// Begins to give partitions up, or forgets them when they are lost already.
    fn revoke(
        &mut self,
        partitions: TopicPartitionList,
        lost: bool,
        plane: &mut impl Plane,
    ) -> Result<(), BrokerError> {
        let names = names(&partitions);
        let slots: Vec<Slot> =
            self.assigned.iter().filter(|held| names.contains(&held.partition)).map(|held| held.slot).collect();
        for &slot in &slots {
            plane.stop(slot);
        }
        let now = Instant::now();
        let (drain_until, commit_until) = if lost {
            let text = format!("{} partitions were lost; what was in flight is delivered again", names.len());
            self.consumer.context().lines().warn("LOST", &text);
            (now, now)
        } else {
            let drain_until = now + self.drain_timeout;
            (drain_until, drain_until + LAST_COMMIT_TIMEOUT)
        };
        if lost {
            // Others may hold them: not even what has ended may be committed.
            slots.iter().for_each(|&slot| self.tracker.revoke(slot));
            self.commits.forget(&names);
        }
        self.revoking = Some(Revoking { partitions, slots, names, drain_until, commit_until });
        match self.transactions {
            Some(_) if lost => Err(transaction_lost("partitions were lost whose events it may hold")),
            _ => Ok(()),
        }
    }

    /// Lets go of revoked partitions once they have drained and are committed, or the time is up; true when it did.
    fn let_go(&mut self, plane: &mut impl Plane) -> Result<bool, BrokerError> {
        let Some(revoking) = &self.revoking else { return Ok(true) };
        let now = Instant::now();
        let drained = self.tracker.drained(&revoking.slots);
        if !drained && !self.waits_in_vain() && now < revoking.drain_until {
            return Ok(false);
        }
        let commit_until = revoking.commit_until;
        if now < commit_until {
            let names = revoking.names.clone();
            self.commit()?;
            if self.commits.owes(&names) {
                return Ok(false);
            }
        }
        if self.transactions.is_some() && (!drained || now >= commit_until) {
            return Err(transaction_lost("partitions are taken away whose events it holds"));
        }
        let Some(revoking) = self.revoking.take() else { return Ok(true) };
        if !drained {
            let text = "revoked partitions did not drain in time; what was in flight is delivered again";
            self.consumer.context().lines().warn("DRAIN", text);
        }
        for &slot in &revoking.slots {
            plane.stop(slot);
            self.tracker.revoke(slot);
        }
        self.commits.forget(&revoking.names);
        self.assigned.retain(|held| !revoking.slots.contains(&held.slot));
        self.answer(false, &revoking.partitions)?;
        tracing::debug!(target: "fluxmill::kafka", "revoked {:?}", revoking.partitions);
        Ok(true)
    }

    /// Tells librdkafka that partitions were taken, or let go.
    fn answer(&self, takes: bool, partitions: &TopicPartitionList) -> Result<(), BrokerError> {
        let nothing = TopicPartitionList::new();
        let partitions = if self.fetches { &nothing } else { partitions };
        let cooperative = matches!(self.consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let (action, result) = match (takes, cooperative) {
            (true, true) => ("take partitions", self.consumer.incremental_assign(partitions)),
            (true, false) => ("take partitions", self.consumer.assign(partitions)),
            (false, true) => ("let go of partitions", self.consumer.incremental_unassign(partitions)),
            (false, false) => ("let go of partitions", self.consumer.unassign()),
        };
        result.map_err(|error: KafkaError| error::failed(action, &error))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Late acknowledgements must find nothing.
        for assignment in &self.assigned {
            self.tracker.revoke(assignment.slot);
        }
        // The consumer waits for its own leave when it is dropped, and for the answer to every rebalance before that.
        let revoking = self.revoking.take().map(|revoking| revoking.partitions);
        let noted = std::iter::from_fn(|| self.consumer.context().take());
        let waiting = std::mem::take(&mut self.rebalances).into_iter().chain(noted).filter_map(|note| match note {
            Note::Revoke { partitions, .. } => Some((false, partitions)),
            // What it was about to be given it does not take.
            Note::Assign(_) => Some((true, TopicPartitionList::new())),
            Note::Committed(..) | Note::Error(..) => None,
        });
        let unanswered: Vec<_> = revoking.map(|partitions| (false, partitions)).into_iter().chain(waiting).collect();
        for (takes, partitions) in unanswered {
            if let Err(error) = self.answer(takes, &partitions) {
                tracing::debug!(target: "fluxmill::kafka", "leaving: {error}");
            }
        }
    }
}

/// What the membership is, if it is still that of this id. A member that was thrown out is on its way back under another
/// id or none, and must not commit: to the broker its new self is as good as the old; and a static one is fenced by it
/// (KIP-345).
fn same_member(consumer: &Consumer, id: Option<&String>) -> Option<GroupMetadata> {
    GroupMetadata::of(consumer).filter(|now| Some(&now.member) == id)
}

/// The partitions of a list.
fn names(partitions: &TopicPartitionList) -> Vec<TopicPartition> {
    let name = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| TopicPartition {
        topic: Arc::from(element.topic()),
        partition: element.partition(),
    };
    partitions.elements().iter().map(name).collect()
}
