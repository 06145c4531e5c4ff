//! What a driver asks of any broker: who leads which partition, and a producer id.

use std::sync::Arc;
use std::time::Instant;

use kafka_protocol::messages::{InitProducerIdRequest, ProducerId};

use super::{Done, Driver};
use crate::broker::kafka::wire::error::WireError;
use crate::broker::kafka::wire::produce::batches::Batches;
use crate::broker::kafka::wire::produce::{State, Topic};
use crate::broker::kafka::wire::record_batch::Producer;
use crate::broker::kafka::wire::response::{ErrorCode, InitProducerIdResponse, MetadataResponse};
use crate::broker::{BrokerError, BrokerErrorKind};

impl Driver {
    /// Asks for leaders and for a producer id, where that is due.
    pub(super) fn ask(&mut self, now: Instant, topics: &[Arc<Topic>]) {
        for topic in topics {
            let missing_since = self.missing.get(&topic.name);
            if !topic.is_wanted(missing_since.is_some()) {
                continue;
            }
            self.metadata.wanted = true;
            if missing_since.is_some_and(|since| now.duration_since(*since) >= self.missing_max) {
                let action = format!("publish to topic {} on {}", topic.name, self.shared.address);
                let words = "it is gone, or was made anew with fewer partitions";
                let reason = format!("{}: {words}", ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
                let error = BrokerError { kind: BrokerErrorKind::UnknownTopic, action, reason };
                if topic.holds_events() {
                    // Those who publish elsewhere learn that they have to begin anew, and no more.
                    self.fail_transaction(&BrokerError { kind: BrokerErrorKind::Aborted, ..error.clone() });
                }
                self.shared.fail(topic, &error);
            }
        }
        if self.metadata.is_due(now, self.settings().metadata_age_max) && !topics.is_empty() {
            let Some(control) = self.control.take() else { return };
            self.metadata.wanted = false;
            let names = topics.iter().map(|topic| topic.name.clone()).collect();
            self.work.push(Box::pin(async move {
                let (control, told) = control.metadata(names).await;
                Done::Metadata(control, told)
            }));
        } else if self.producer.is_none() && self.coordination.is_none() && now >= self.identity.not_before {
            let Some(mut control) = self.control.take() else { return };
            self.work.push(Box::pin(async move {
                let request = InitProducerIdRequest::default()
                    .with_transactional_id(None)
                    .with_producer_id(ProducerId(-1))
                    .with_producer_epoch(-1);
                let told = control.ask(&request).await;
                Done::ProducerId(control, told)
            }));
        }
    }

    pub(super) fn learn(&mut self, told: Result<MetadataResponse, WireError>) -> Result<(), BrokerError> {
        let now = Instant::now();
        let told = match told {
            Ok(told) => told,
            Err(error) if error.kind.may_pass() => {
                // Brokers that come back may know it again.
                self.missing.clear();
                self.metadata.failed();
                return self.silent(&error);
            }
            Err(error) => return Err(error.into_broker(format!("publish to {}", self.shared.address))),
        };
        self.metadata.answered();
        let topics = self.shared.topics();
        for (name, partitions) in self.view.learn(told) {
            let Some(topic) = topics.iter().find(|topic| topic.name == name) else { continue };
            match partitions {
                Ok(partitions) if self.topic_is_known(topic, partitions) => {
                    self.missing.remove(&name);
                }
                // It has fewer partitions than events wait for: it was made anew, or this broker is behind.
                Ok(_) | Err(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION) => {
                    self.missing.entry(name).or_insert(now);
                }
                Err(code) if code.is_retriable() => self.metadata.wanted = true,
                Err(code) => {
                    let error = self.not_published(topic, code);
                    self.fail_transaction(&error);
                    self.shared.fail(topic, &error);
                }
            }
        }
        self.shared.room.notify_waiters();
        Ok(())
    }

    /// A topic has so many partitions; false when it had more.
    fn topic_is_known(&self, topic: &Arc<Topic>, partitions: usize) -> bool {
        let mut state = topic.lock();
        match &mut *state {
            State::Known(batches) if partitions < batches.partitions.len() => return false,
            State::Known(batches) => batches.grow(partitions),
            State::Unknown if partitions > 0 => {
                *state = State::Known(Batches::new(topic.name.clone(), partitions, &self.shared.settings));
            }
            State::Unknown | State::Failed(_) => {}
        }
        true
    }

    pub(super) fn identified(&mut self, told: Result<InitProducerIdResponse, WireError>) -> Result<(), BrokerError> {
        let action = || format!("ask {} for a producer id", self.shared.address);
        match told {
            Ok(told) if told.error.is_ok() => {
                self.producer = Some(Producer { id: told.producer_id, epoch: told.producer_epoch });
                self.identity.backoff.reset();
                Ok(())
            }
            Ok(told) if told.error.is_retriable() => {
                self.identity.failed();
                Ok(())
            }
            Ok(told) => {
                let mut reason = told.error.to_string();
                if told.error == ErrorCode::CLUSTER_AUTHORIZATION_FAILED {
                    // Whoever may write to some topic gets one (KIP-679).
                    reason
                        .push_str("; this user may write to no topic: allow it `Write` on those that it publishes to");
                }
                Err(BrokerError { kind: told.error.kind(), action: action(), reason })
            }
            Err(error) if error.kind.may_pass() => {
                self.identity.failed();
                self.silent(&error)
            }
            Err(error) => Err(error.into_broker(action())),
        }
    }

    /// No broker answers.
    pub(super) fn silent(&mut self, error: &WireError) -> Result<(), BrokerError> {
        tracing::debug!(target: "fluxmill::kafka", "{}: {}", self.shared.address, error.reason);
        if !std::mem::replace(&mut self.down, true) {
            tracing::warn!(target: "fluxmill::kafka", "{} is not reachable; waiting for it", self.shared.address);
        }
        Ok(())
    }
}
