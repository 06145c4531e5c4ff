//! Reads the topics of a group, as a member of it, on one thread.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::group::{MemberId, Term};
use super::{Shared, State, unreachable};
use crate::broker::{BrokerError, CloseLanes, Source, SourceContext, SourceEnd};
use crate::delivery::{Slot, TopicPartition};
use crate::event::Origin;
use crate::spec::{KafkaSourceSpec, StartOffset};

/// Events that one partition may hand over before the next has its turn.
const RUN_MAX: usize = 512;
/// How long to wait for the bell. Nothing depends on it but the pace of commits.
const IDLE_WAIT: Duration = Duration::from_millis(50);
/// How long to wait for what is in flight before the group is looked at again.
const DRAIN_WAIT: Duration = Duration::from_millis(10);
/// How long the last commit may take after the events have ended: the broker may be away.
const LAST_COMMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The events of a consumer group's topics.
#[derive(Debug)]
pub struct MemorySource {
    shared: Arc<Shared>,
    spec: KafkaSourceSpec,
}

impl MemorySource {
    pub(super) fn new(shared: Arc<Shared>, spec: &KafkaSourceSpec) -> Self {
        Self { shared, spec: spec.clone() }
    }
}

impl Source for MemorySource {
    fn run(self, context: SourceContext) -> Result<SourceEnd, BrokerError> {
        // However this ends, by an error or a panic too, the lanes must learn that nothing more comes.
        let lanes = CloseLanes(context.lanes.clone());
        let mut member = Member::join(&self, &context)?;
        while !context.stop.is_cancelled() {
            member.serve()?;
            let moved = member.hand_over();
            if member.is_caught_up() {
                break;
            }
            if !moved {
                member.pause();
            }
        }
        drop(lanes);
        let until = Instant::now() + context.drain_timeout;
        while !member.is_drained() && !member.waits_in_vain() && Instant::now() < until {
            context.tracker.wait_drained(&member.slots(), DRAIN_WAIT);
            member.serve()?;
        }
        let drained = member.is_drained();
        let committed = member.commit_all(until.max(Instant::now() + LAST_COMMIT_TIMEOUT))?;
        Ok(if drained && committed { SourceEnd::Drained } else { SourceEnd::DrainTimedOut })
    }
}

/// A partition that this member holds.
struct Held {
    partition: TopicPartition,
    slot: Slot,
    term: Term,
    /// The lane that its events go to, unless they are dealt by something else.
    lane: usize,
    /// The next event to hand over.
    position: i64,
    /// It is to go to another member, at the latest at this time.
    until: Option<Instant>,
}

/// A member of a group.
struct Member<'a> {
    shared: &'a Shared,
    spec: &'a KafkaSourceSpec,
    context: &'a SourceContext,
    id: MemberId,
    held: Vec<Held>,
    commit_at: Instant,
    /// Where the partitions end, once that was to be noted; nothing is handed over behind that.
    ends: Option<BTreeMap<TopicPartition, i64>>,
    /// Who begins the next round: lanes are shared, and none may always come first.
    first: usize,
}

impl<'a> Member<'a> {
    fn join(source: &'a MemorySource, context: &'a SourceContext) -> Result<Self, BrokerError> {
        let MemorySource { shared, spec } = source;
        let mut state = shared.lock();
        if state.away {
            return Err(unreachable(format!("read topics {}", spec.topics.join(", "))));
        }
        check(&state, spec)?;
        let id = state.groups.entry(spec.group.clone()).or_default().join(&spec.topics, &context.bell);
        drop(state);
        // The others are to give partitions up.
        shared.changed();
        let commit_at = Instant::now() + context.commit.interval;
        Ok(Self { shared, spec, context, id, held: Vec::new(), commit_at, ends: None, first: 0 })
    }

    /// Commits what has ended, and takes and gives partitions as the group wants it.
    fn serve(&mut self) -> Result<(), BrokerError> {
        let shared = self.shared;
        let mut state = shared.lock();
        if state.away {
            return Ok(());
        }
        check(&state, self.spec)?;
        self.forget_lost(&mut state);
        if self.commit_at <= Instant::now() || self.ends.is_some() {
            self.commit(&mut state);
        }
        self.note_ends(&state);
        let changed = self.rebalance(&mut state);
        drop(state);
        if changed {
            shared.changed();
        }
        Ok(())
    }

    /// Partitions that were lost are forgotten: others may have them, and not even what has ended may be committed.
    fn forget_lost(&mut self, state: &mut State) {
        let Some(group) = state.groups.get(&self.spec.group) else { return };
        let tracker = &self.context.tracker;
        let before = self.held.len();
        self.held.retain(|held| {
            let holds = group.holds(&held.partition, held.term);
            if !holds {
                tracker.revoke(held.slot);
            }
            holds
        });
        let lost = before - self.held.len();
        if lost > 0 {
            tracing::warn!(target: "fluxmill::memory", "{lost} partitions were lost; what was in flight is delivered again");
        }
    }

    /// Commits what has ended.
    fn commit(&mut self, state: &mut State) {
        self.commit_at = Instant::now() + self.context.commit.interval;
        let Some(group) = state.groups.get_mut(&self.spec.group) else { return };
        for held in &self.held {
            if let Some(next) = self.context.tracker.next(held.slot) {
                group.commit(&held.partition, held.term, next);
            }
        }
    }

    /// Begins to give partitions up that others are to have, lets go of those that have drained, and takes those that
    /// are free. Whether others have to know.
    fn rebalance(&mut self, state: &mut State) -> bool {
        let State { topics, groups, .. } = &mut *state;
        let Some(group) = groups.get_mut(&self.spec.group) else { return false };
        let share: BTreeSet<TopicPartition> =
            group.share(self.id, |topic| topics.get(topic).map_or(0, |topic| topic.partitions())).collect();
        let (now, in_vain) = (Instant::now(), self.waits_in_vain());
        let (tracker, lanes) = (&self.context.tracker, &self.context.lanes);
        let before = self.held.len();
        self.held.retain_mut(|held| {
            if share.contains(&held.partition) {
                held.until = None;
                return true;
            }
            let until = *held.until.get_or_insert_with(|| {
                lanes.hurry_from(held.lane);
                now + self.context.drain_timeout
            });
            let drained = tracker.drained(&[held.slot]);
            if !drained && !in_vain && now < until {
                return true;
            }
            if !drained {
                let text = "a partition did not drain in time; what was in flight is delivered again";
                tracing::warn!(target: "fluxmill::memory", "{text}");
            }
            if let Some(next) = tracker.next(held.slot) {
                group.commit(&held.partition, held.term, next);
            }
            group.let_go(&held.partition, held.term);
            tracker.revoke(held.slot);
            false
        });
        let changed = self.held.len() != before;
        if !self.context.stop.is_cancelled() {
            for partition in share {
                self.take(state, partition);
            }
        }
        changed
    }

    /// Takes a partition, unless somebody has it.
    fn take(&mut self, state: &mut State, partition: TopicPartition) {
        let State { topics, groups, .. } = state;
        let Some(group) = groups.get_mut(&self.spec.group) else { return };
        let (Some(topic), Some(term)) = (topics.get(&*partition.topic), group.take(&partition)) else { return };
        let position = group.position(&partition).unwrap_or_else(|| {
            let start = match self.spec.start {
                StartOffset::Earliest => return 0,
                StartOffset::Latest => topic.end(partition.partition),
                StartOffset::Time(time) => topic.at_time(partition.partition, time),
            };
            // Committed at once: a restart before the first event must not skip what came meanwhile.
            group.commit(&partition, term, start);
            start
        });
        let slot = self.context.tracker.assign(partition.clone());
        let held = |lane: &usize| self.held.iter().filter(|held| held.lane == *lane).count();
        let lane = (0..self.context.lanes.intakes().len()).min_by_key(held).unwrap_or(0);
        self.held.push(Held { partition, slot, term, lane, position, until: None });
    }

    /// One round: each partition hands a run of events over. True when some moved.
    fn hand_over(&mut self) -> bool {
        let (count, mut moved) = (self.held.len(), 0);
        for turn in 0..count {
            let held = &mut self.held[(self.first + turn) % count];
            if held.until.is_some() {
                continue;
            }
            let end = self.ends.as_ref().and_then(|ends| ends.get(&held.partition).copied());
            let events: Vec<_> = {
                let state = self.shared.lock();
                match state.topics.get(&*held.partition.topic) {
                    Some(topic) if !state.away => {
                        topic.fetch(held.partition.partition, held.position, end, RUN_MAX).collect()
                    }
                    _ => Vec::new(),
                }
            };
            if events.is_empty() {
                continue;
            }
            let mut run = self.context.lanes.run(held.lane);
            for event in events {
                let headers = event.headers.iter().map(|(name, value)| (name.as_slice(), value.as_deref()));
                let origin = Origin { slot: held.slot, offset: held.position };
                let (key, value) = (event.key.as_deref(), event.value.as_deref());
                if run.append(origin, key, value, event.timestamp, headers).is_err() {
                    break;
                }
                held.position += 1;
                moved += 1;
            }
        }
        self.first = if count == 0 { 0 } else { (self.first + 1) % count };
        if moved > 0
            && let Some(group) = self.shared.lock().groups.get_mut(&self.spec.group)
        {
            group.fetched += moved;
        }
        moved > 0
    }

    /// Waits until there may be something to do.
    fn pause(&self) {
        let awaits_end = self.ends.is_some() || self.held.iter().any(|held| held.until.is_some());
        let slots = self.slots();
        if awaits_end && !self.context.tracker.drained(&slots) && !self.waits_in_vain() {
            self.context.tracker.wait_drained(&slots, DRAIN_WAIT);
        } else {
            self.context.bell.wait(IDLE_WAIT);
        }
    }

    /// In a run that is to catch up: notes where the partitions end, when it is time.
    fn note_ends(&mut self, state: &State) {
        let is_time = self.context.caught_up.as_ref().is_some_and(|take_ends| take_ends.is_cancelled());
        if self.ends.is_some() || !is_time {
            return;
        }
        let mut ends = BTreeMap::new();
        for name in &self.spec.topics {
            let Some(topic) = state.topics.get(name) else { continue };
            for partition in (0..).take(topic.partitions()) {
                ends.insert(TopicPartition { topic: name.as_str().into(), partition }, topic.end(partition));
            }
        }
        self.ends = Some(ends);
    }

    /// Whether everything up to the noted ends is confirmed, by this member or another.
    fn is_caught_up(&self) -> bool {
        let (Some(ends), state) = (&self.ends, self.shared.lock()) else { return false };
        let Some(group) = state.groups.get(&self.spec.group) else { return false };
        ends.iter().all(|(partition, end)| group.position(partition).unwrap_or(0) >= *end)
    }

    fn slots(&self) -> Vec<Slot> {
        self.held.iter().map(|held| held.slot).collect()
    }

    fn is_drained(&self) -> bool {
        self.context.tracker.drained(&self.slots())
    }

    /// Whether a batch was abandoned: it will never end, and its pipeline is ending.
    fn waits_in_vain(&self) -> bool {
        self.context.tracker.abandoned() > 0
    }

    /// Commits what has ended; false when the broker is away until then.
    fn commit_all(&mut self, until: Instant) -> Result<bool, BrokerError> {
        loop {
            let mut state = self.shared.lock();
            if !state.away {
                check(&state, self.spec)?;
                self.forget_lost(&mut state);
                self.commit(&mut state);
                return Ok(true);
            }
            drop(state);
            if Instant::now() >= until {
                return Ok(false);
            }
            self.context.bell.wait(IDLE_WAIT);
        }
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        // Late acknowledgements must find nothing.
        self.held.iter().for_each(|held| self.context.tracker.revoke(held.slot));
        let mut state = self.shared.lock();
        if let Some(group) = state.groups.get_mut(&self.spec.group) {
            self.held.iter().for_each(|held| group.let_go(&held.partition, held.term));
            group.leave(self.id);
        }
        drop(state);
        self.shared.changed();
    }
}

/// Whether this source may read its topics.
fn check(state: &State, spec: &KafkaSourceSpec) -> Result<(), BrokerError> {
    spec.topics.iter().try_for_each(|topic| state.check(topic, || format!("read topic {topic}")))
}
