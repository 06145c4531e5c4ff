//! What brokers say of batches, and what becomes of these.

use std::time::Instant;

use bytes::Bytes;
use kafka_protocol::messages::ProduceRequest;

use super::lines::{self, Broker, Node};
use super::transact::Judged;
use super::{Batch, Driver, RETRY_PAUSE, Renewal};
use crate::broker::kafka::wire::connection::decode;
use crate::broker::kafka::wire::produce::batches::Sealed;
use crate::broker::kafka::wire::produce::queue::Verdict;
use crate::broker::kafka::wire::produce::{State, Topic};
use crate::broker::kafka::wire::record_batch;
use crate::broker::kafka::wire::response::{ErrorCode, ProduceResponse, ProducedPartition};
use crate::broker::{BrokerError, BrokerErrorKind};

impl Driver {
    pub(super) fn answered(&mut self, id: i32, correlation: i32, body: Bytes) -> Result<(), BrokerError> {
        let Some(Broker { node: Node::Open(line), .. }) = self.brokers.get_mut(&id) else { return Ok(()) };
        let Some(request) = line.in_flight.pop_front() else {
            return self.failed(id, lines::confused(id, "an answer to nothing"));
        };
        if request.correlation != correlation {
            line.in_flight.push_front(request);
            return self.failed(id, lines::confused(id, "an answer to another request"));
        }
        let answer: ProduceResponse = match decode::<ProduceRequest>(body, request.version) {
            Ok(answer) => answer,
            Err(error) => {
                line.in_flight.push_front(request);
                return self.failed(id, error);
            }
        };
        if let Some(broker) = self.brokers.get_mut(&id) {
            broker.failing_since = None;
            broker.not_before = (!answer.throttle.is_zero()).then(|| Instant::now() + answer.throttle);
        }
        if std::mem::take(&mut self.down) {
            tracing::info!(target: "fluxmill::kafka", "{} takes events again", self.shared.address);
        }
        let mut free = 0;
        for batch in &request.batches {
            let of_topic = answer.topics.iter().filter(|topic| *topic.name == *batch.topic.name);
            let mut partitions = of_topic.flat_map(|topic| &topic.partitions);
            match partitions.find(|produced| produced.partition == batch.partition) {
                Some(produced) => free += self.ended(id, batch, produced)?,
                // The broker says nothing of it; it is asked once more.
                None => self.not_taken(batch, Verdict::Again),
            }
        }
        if free > 0 {
            self.shared.release(free);
        }
        Ok(())
    }

    /// What a node says of a batch. Returns the bytes that are free again.
    pub(super) fn ended(
        &mut self,
        node: i32,
        batch: &Batch,
        produced: &ProducedPartition,
    ) -> Result<usize, BrokerError> {
        let code = produced.error;
        if let Judged::Ended = self.judge(batch, code)? {
            return Ok(0);
        }
        match code {
            ErrorCode::NONE | ErrorCode::DUPLICATE_SEQUENCE_NUMBER => {
                let sealed = match &mut *batch.topic.lock() {
                    State::Known(batches) => batches.acknowledge(batch.partition as usize, batch.id),
                    _ => None,
                };
                // Told without the lock: who waits may publish at once.
                Ok(sealed.map_or(0, Sealed::acknowledge))
            }
            ErrorCode::MESSAGE_TOO_LARGE | ErrorCode::RECORD_LIST_TOO_LARGE => Ok(self.split(batch, code)),
            ErrorCode::INVALID_RECORD | ErrorCode::INVALID_TIMESTAMP => Ok(self.refuse(batch, produced)),
            ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER => {
                let before = self.renewal;
                self.not_taken(batch, Verdict::OutOfOrder);
                // Behind an event that was refused it is no news.
                if self.renewal > before {
                    let topic = &batch.topic.name;
                    self.lines.warn("SEQUENCE", &format!("{topic}/{}: {code}; begins a new epoch", batch.partition));
                }
                Ok(0)
            }
            ErrorCode::UNKNOWN_PRODUCER_ID | ErrorCode::INVALID_PRODUCER_EPOCH => {
                self.not_taken(batch, Verdict::Stale);
                Ok(0)
            }
            code if code.is_denied() => {
                self.shared.fail(&batch.topic, &self.not_published(&batch.topic, code));
                Ok(0)
            }
            code if code.is_retriable() => {
                let topic = &batch.topic.name;
                if code.is_stale_metadata() {
                    self.view.forget(topic, batch.partition, node);
                } else {
                    self.lines.warn("PRODUCE", &format!("{topic}/{}: {code}; sent again", batch.partition));
                }
                self.metadata.wanted = true;
                self.not_taken(batch, Verdict::Again);
                Ok(0)
            }
            code => Err(self.not_published(&batch.topic, code)),
        }
    }

    /// The broker takes no batch as large as this one: it is halved, or its one event is refused.
    pub(super) fn split(&mut self, batch: &Batch, code: ErrorCode) -> usize {
        let error = |bytes: usize| BrokerError {
            kind: BrokerErrorKind::TooLarge,
            action: format!("publish to topic {}", batch.topic.name),
            reason: format!("an event of {bytes} bytes is more than the topic's `max.message.bytes` allows: {code}"),
        };
        self.replace(batch, |sealed, compression| {
            if sealed.records() > 1 {
                return (sealed.halves(compression), 0);
            }
            let bytes = sealed.len();
            let (kept, free) = sealed.without(compression, |_| Some(error(bytes)));
            (kept.into_iter().collect(), free)
        })
    }

    /// The broker will not take some records of a batch (KIP-467); it took none of them.
    pub(super) fn refuse(&mut self, batch: &Batch, produced: &ProducedPartition) -> usize {
        let error = |words: Option<&String>| BrokerError {
            kind: BrokerErrorKind::Refused,
            action: format!("publish to topic {}", batch.topic.name),
            reason: words.or(produced.message.as_ref()).cloned().unwrap_or_else(|| produced.error.to_string()),
        };
        self.replace(batch, |sealed, compression| {
            let names_one = produced.record_errors.iter().any(|(index, _)| *index < sealed.records());
            if !names_one && sealed.records() > 1 {
                // It does not say which.
                return (sealed.halves(compression), 0);
            }
            let alone = sealed.records() == 1;
            let (kept, free) = sealed.without(compression, |record| {
                let named = produced.record_errors.iter().find(|(index, _)| *index == record);
                (named.is_some() || alone).then(|| error(named.and_then(|(_, words)| words.as_ref())))
            });
            (kept.into_iter().collect(), free)
        })
    }

    /// Puts other batches in the place of one that the broker will not take.
    pub(super) fn replace(
        &mut self,
        batch: &Batch,
        with: impl FnOnce(Sealed, record_batch::Compression) -> (Vec<(Sealed, u32)>, usize),
    ) -> usize {
        let State::Known(batches) = &mut *batch.topic.lock() else { return 0 };
        let (compression, mut freed) = (batches.compression, 0);
        let queue = &mut batches.partitions[batch.partition as usize].queue;
        let broken = queue.replace(batch.id, |sealed| {
            let (parts, free) = with(sealed, compression);
            freed = free;
            parts
        });
        if broken {
            self.renewal = self.renewal.max(Some(Renewal::Epoch));
        }
        freed
    }

    /// The broker answered that it does not have a batch, or may not: it is not sent again at once.
    pub(super) fn not_taken(&mut self, batch: &Batch, verdict: Verdict) {
        if let State::Known(batches) = &mut *batch.topic.lock() {
            batches.partitions[batch.partition as usize].not_before = Some(Instant::now() + RETRY_PAUSE);
        }
        self.unanswered(batch, verdict);
    }

    /// The broker does not have a batch, or may not.
    pub(super) fn unanswered(&mut self, batch: &Batch, verdict: Verdict) {
        if self.is_orphan() {
            return;
        }
        let renewal = if verdict == Verdict::Stale { Renewal::Id } else { Renewal::Epoch };
        let State::Known(batches) = &mut *batch.topic.lock() else { return };
        let queue = &mut batches.partitions[batch.partition as usize].queue;
        let expected = verdict == Verdict::OutOfOrder && queue.is_cut_off(batch.id);
        if queue.answer(batch.id, verdict) && (expected || !self.renew_in_transaction(batch, renewal)) {
            self.renewal = self.renewal.max(Some(renewal));
        }
    }

    pub(super) fn not_published(&self, topic: &Topic, code: ErrorCode) -> BrokerError {
        BrokerError { kind: code.kind(), action: format!("publish to topic {}", topic.name), reason: code.to_string() }
    }
}
