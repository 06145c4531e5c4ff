//! What brokers answer to a fetcher, and what becomes of its partitions.

use std::time::Instant;

use super::partition::{Partition, Stuck};
use super::request::Asked;
use super::{Fetcher, PARTITION_PAUSE};
use crate::broker::kafka::error;
use crate::broker::kafka::wire::connection::Connection;
use crate::broker::kafka::wire::error::{WireError, WireErrorKind};
use crate::broker::kafka::wire::response::{
    ErrorCode, FetchResponse, FetchedPartition, ListOffsetsResponse, MetadataResponse,
};
use crate::broker::{BrokerError, BrokerErrorKind};
use crate::delivery::Slot;

impl Fetcher {
    pub(super) fn learn(&mut self, told: Result<MetadataResponse, WireError>) -> Result<(), BrokerError> {
        match told {
            Ok(told) => {
                self.refresh.answered();
                for (topic, partitions) in self.view.learn(told) {
                    match partitions {
                        Err(code) if code.is_denied() => return Err(self.refused(&topic, code)),
                        Err(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION) => self.missing = true,
                        Err(_) | Ok(_) => {}
                    }
                }
                Ok(())
            }
            Err(error) if error.kind.may_pass() => {
                // That the cluster is silent is noticed, and told, where the group is.
                tracing::debug!(target: "fluxmill::kafka", "{}: {}", self.address, error.reason);
                self.refresh.failed();
                Ok(())
            }
            Err(error) => Err(error.into_broker(format!("read from {}", self.address))),
        }
    }

    pub(super) fn refused(&self, topic: &str, code: ErrorCode) -> BrokerError {
        let action = format!("read topic {topic} on {}", self.address);
        BrokerError { kind: BrokerErrorKind::Denied, action, reason: code.to_string() }
    }

    pub(super) fn placed(
        &mut self,
        id: i32,
        connection: Connection,
        slots: &[Slot],
        answer: ListOffsetsResponse,
    ) -> Result<(), BrokerError> {
        self.idle(id, Some(connection), Some(answer.throttle));
        for topic in answer.topics {
            for told in topic.partitions {
                let Some(at) = self.place_of(slots.iter().copied(), &topic.name, told.partition) else { continue };
                if told.error.is_ok() {
                    self.partitions[at].place(told.offset);
                } else {
                    self.partition_failed(id, at, told.error)?;
                }
            }
        }
        Ok(())
    }

    /// Where in the list the partition of this name is, if it is one of these.
    pub(super) fn place_of(&self, mut slots: impl Iterator<Item = Slot>, topic: &str, number: i32) -> Option<usize> {
        let at = self.partitions.iter().position(|partition| {
            let name = &partition.assignment.partition;
            name.partition == number && &*name.topic == topic
        })?;
        // Of an assignment that was given up meanwhile nothing is taken, though the partition may be held again.
        slots.any(|slot| slot == self.partitions[at].assignment.slot).then_some(at)
    }

    pub(super) fn fetched(
        &mut self,
        id: i32,
        connection: Connection,
        asked: &[Asked],
        answer: FetchResponse,
    ) -> Result<(), BrokerError> {
        self.idle(id, Some(connection), Some(answer.throttle));
        if !answer.error.is_ok() {
            let error = WireError::new(WireErrorKind::Closed, &format!("broker {id}"), answer.error);
            return self.failed(id, error);
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.backoff.reset();
            node.failing_since = None;
        }
        let mut is_first = true;
        for topic in answer.topics {
            for fetched in topic.partitions {
                let slots = asked.iter().map(|asked| asked.slot);
                let Some(at) = self.place_of(slots, &topic.name, fetched.partition) else { continue };
                let position = asked.iter().find(|asked| asked.slot == self.partitions[at].assignment.slot);
                if position.map(|asked| asked.position) == self.partitions[at].position {
                    if is_first && !fetched.records.is_empty() {
                        is_first = false;
                        self.turns += 1;
                        self.partitions[at].turn = self.turns;
                    }
                    self.take_in(id, at, fetched)?;
                }
            }
        }
        Ok(())
    }

    /// What a fetch brought for one partition.
    pub(super) fn take_in(&mut self, id: i32, at: usize, fetched: FetchedPartition) -> Result<(), BrokerError> {
        let partition = &mut self.partitions[at];
        if let Some((node, epoch)) = fetched.current_leader {
            let name = &partition.assignment.partition;
            self.view.learn_leader(&name.topic, name.partition, node, epoch);
        }
        if let Some((_, end)) = fetched.diverging {
            // What was read after `end` was cut off from the log when another replica became the leader.
            let last = partition.last().unwrap_or(end);
            return Err(stuck_error(partition, Stuck::WentBack { last, offset: end }));
        }
        if !fetched.error.is_ok() {
            return self.partition_failed(id, at, fetched.error);
        }
        if let Some(replica) = fetched.preferred_replica {
            if self.view.address(replica).is_none() {
                // Until it is known, the leader would only name it again.
                self.refresh.wanted = true;
                partition.wait_until = Some(Instant::now() + PARTITION_PAUSE);
            }
            partition.replica = Some((replica, Instant::now() + self.settings.metadata_age_max));
        }
        let (position, is_empty) = (partition.position, fetched.records.is_empty());
        partition.accept(fetched.records, fetched.aborted).map_err(|stuck| stuck_error(partition, stuck))?;
        if !is_empty && partition.position == position {
            // Not even one whole batch. Kafka sends that much, however large it is (KIP-74); others may do so next time.
            partition.wait_until = Some(Instant::now() + PARTITION_PAUSE);
        }
        Ok(())
    }

    /// A node did not serve one partition.
    pub(super) fn partition_failed(&mut self, id: i32, at: usize, code: ErrorCode) -> Result<(), BrokerError> {
        let partition = &mut self.partitions[at];
        let name = partition.assignment.partition.clone();
        partition.wait_until = Some(Instant::now() + PARTITION_PAUSE);
        let was_replica = partition.replica.take().is_some();
        match code {
            ErrorCode::OFFSET_OUT_OF_RANGE if was_replica => {}
            ErrorCode::OFFSET_OUT_OF_RANGE => {
                tracing::warn!(
                    target: "fluxmill::kafka",
                    "{}/{} has no offset {} any more, goes on with the oldest that is kept",
                    name.topic,
                    name.partition,
                    partition.position.unwrap_or_default()
                );
                partition.position = None;
            }
            ErrorCode::UNKNOWN_TOPIC_OR_PARTITION => {
                self.missing = true;
                self.refresh.wanted = true;
                self.view.forget(&name.topic, name.partition, id);
            }
            code if code.is_denied() => return Err(self.refused(&name.topic, code)),
            code if code.is_stale_metadata() || code == ErrorCode::UNKNOWN_LEADER_EPOCH => {
                self.view.forget(&name.topic, name.partition, id);
                tracing::debug!(target: "fluxmill::kafka", "{}/{}: {code}", name.topic, name.partition);
                self.refresh.wanted = true;
            }
            code if code.is_retriable() || code == ErrorCode::UNKNOWN_SERVER_ERROR => {
                // Not a matter of leaders: somebody may have to look after that broker.
                self.lines.warn("FETCH", &format!("{}/{}: {code}; asked again", name.topic, name.partition));
                self.refresh.wanted = true;
            }
            code => {
                let action = format!("read partition {} of topic {} on {}", name.partition, name.topic, self.address);
                return Err(BrokerError { kind: BrokerErrorKind::Fatal, action, reason: code.to_string() });
            }
        }
        Ok(())
    }
}

pub(super) fn stuck_error(partition: &Partition, stuck: Stuck) -> BrokerError {
    let name = &partition.assignment.partition;
    match stuck {
        Stuck::WentBack { last, offset } => error::went_back(name, last, offset),
        Stuck::Unreadable { offset, error } => BrokerError {
            kind: BrokerErrorKind::Fatal,
            action: format!("read partition {} of topic {}", name.partition, name.topic),
            reason: format!("the record batch at offset {offset} cannot be read: {error}"),
        },
    }
}
