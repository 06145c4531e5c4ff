//! A consumer group: its members, who holds which partition, and what is committed. Pure but for the members' bells.
//!
//! A partition that is to go to another member stays with the one that has it until that lets it go: nobody else takes
//! it before. Each time that a partition is taken is a term of its own, and only within it offsets are committed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::delivery::TopicPartition;
use crate::intake::Bell;

/// A member, by the order in which they came.
pub(super) type MemberId = u64;
/// One member's hold on one partition.
pub(super) type Term = u64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Group {
    members: BTreeMap<MemberId, Member>,
    held: BTreeMap<TopicPartition, Term>,
    committed: BTreeMap<TopicPartition, i64>,
    /// Counts members and terms.
    last: u64,
    /// Events that were handed out.
    pub(super) fetched: u64,
}

#[derive(Debug)]
struct Member {
    topics: Vec<String>,
    bell: Arc<Bell>,
}

impl Group {
    /// Takes a member in, which is rung when something has changed.
    pub(super) fn join(&mut self, topics: &[String], bell: &Arc<Bell>) -> MemberId {
        self.last += 1;
        self.members.insert(self.last, Member { topics: topics.to_vec(), bell: bell.clone() });
        self.last
    }

    /// A member goes; what it held it must have let go.
    pub(super) fn leave(&mut self, member: MemberId) {
        self.members.remove(&member);
    }

    pub(super) fn members(&self) -> usize {
        self.members.len()
    }

    pub(super) fn ring(&self) {
        self.members.values().for_each(|member| member.bell.ring());
    }

    /// The partitions that a member is to have, of topics with so many partitions: they go round among those who read
    /// the topic.
    pub(super) fn share(
        &self,
        member: MemberId,
        partitions: impl Fn(&str) -> usize,
    ) -> impl Iterator<Item = TopicPartition> {
        let topics: BTreeSet<&String> = self.members.values().flat_map(|member| &member.topics).collect();
        let mut share = Vec::new();
        let mut turn = 0;
        for topic in topics {
            let reads = |(id, member): (&MemberId, &Member)| member.topics.contains(topic).then_some(*id);
            let readers: Vec<MemberId> = self.members.iter().filter_map(reads).collect();
            for partition in (0..).take(partitions(topic)) {
                if readers[turn % readers.len()] == member {
                    share.push(TopicPartition { topic: topic.as_str().into(), partition });
                }
                turn += 1;
            }
        }
        share.into_iter()
    }

    /// Begins a term; none while somebody has the partition.
    pub(super) fn take(&mut self, partition: &TopicPartition) -> Option<Term> {
        if self.held.contains_key(partition) {
            return None;
        }
        self.last += 1;
        self.held.insert(partition.clone(), self.last);
        Some(self.last)
    }

    /// Whether the term goes on.
    pub(super) fn holds(&self, partition: &TopicPartition, term: Term) -> bool {
        self.held.get(partition) == Some(&term)
    }

    /// Ends a term; one that has ended is ignored.
    pub(super) fn let_go(&mut self, partition: &TopicPartition, term: Term) {
        if self.holds(partition, term) {
            self.held.remove(partition);
        }
    }

    /// Ends all terms.
    pub(super) fn lose_all(&mut self) {
        self.held.clear();
    }

    /// Commits an offset, if the term goes on.
    pub(super) fn commit(&mut self, partition: &TopicPartition, term: Term, next: i64) {
        if self.holds(partition, term) {
            self.committed.insert(partition.clone(), next);
        }
    }

    /// The offset that is committed for a partition.
    pub(super) fn position(&self, partition: &TopicPartition) -> Option<i64> {
        self.committed.get(partition).copied()
    }

    /// What is committed for a topic.
    pub(super) fn committed(&self, topic: &str) -> BTreeMap<i32, i64> {
        let its = self.committed.iter().filter(|(partition, _)| &*partition.topic == topic);
        its.map(|(partition, next)| (partition.partition, *next)).collect()
    }
}
