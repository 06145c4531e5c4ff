//! The driver's connections: made, used by requests that go out while answers come in, and given up.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use kafka_protocol::messages::{ApiKey, ProduceRequest};
use kafka_protocol::protocol::HeaderVersion;
use tokio_util::sync::CancellationToken;

use super::{Batch, Done, Driver, EAGER_BYTES, REQUEST_BYTES_MAX, REQUESTS_MAX};
use crate::broker::BrokerError;
use crate::broker::kafka::wire::cluster::{Backoff, PATIENCE};
use crate::broker::kafka::wire::connection::{Connection, Requests, Responses};
use crate::broker::kafka::wire::error::{WireError, WireErrorKind};
use crate::broker::kafka::wire::produce::frame::{self, TopicBatches};
use crate::broker::kafka::wire::produce::queue::Verdict;
use crate::broker::kafka::wire::produce::{State, Topic};
use crate::broker::kafka::wire::record_batch::Producer;

pub(super) struct InFlight {
    pub(super) correlation: i32,
    pub(super) version: i16,
    pub(super) deadline: Instant,
    pub(super) batches: Vec<Batch>,
}

/// An open connection.
pub(super) struct Line {
    /// None while a request is being written.
    pub(super) requests: Option<Requests>,
    pub(super) version: i16,
    pub(super) in_flight: VecDeque<InFlight>,
    /// Cancelled when the connection is given up.
    pub(super) cut: CancellationToken,
    pub(super) expires: Option<Instant>,
}

pub(super) enum Node {
    Closed { until: Instant },
    Opening,
    Open(Line),
}

pub(super) struct Broker {
    pub(super) node: Node,
    pub(super) backoff: Backoff,
    /// Counts connections: what an old one still tells is not listened to.
    pub(super) generation: u64,
    /// Since when nothing was answered.
    pub(super) failing_since: Option<Instant>,
    /// The broker asked to be left alone until then (KIP-219).
    pub(super) not_before: Option<Instant>,
}

impl Driver {
    /// Connections on which an answer is overdue are cut.
    pub(super) fn give_up_late(&mut self, now: Instant) -> Result<(), BrokerError> {
        let late = |broker: &Broker| match &broker.node {
            Node::Open(line) => line.in_flight.front().is_some_and(|request| now >= request.deadline),
            _ => false,
        };
        let late: Vec<i32> = self.brokers.iter().filter(|(_, broker)| late(broker)).map(|(id, _)| *id).collect();
        for id in late {
            self.failed(id, WireError::new(WireErrorKind::Timeout, &format!("broker {id}"), "no answer in time"))?;
        }
        Ok(())
    }

    pub(super) fn start_node(
        &mut self,
        id: i32,
        ready: usize,
        now: Instant,
        producer: Producer,
        topics: &[Arc<Topic>],
    ) {
        let Some(address) = self.view.address(id).cloned() else {
            self.metadata.wanted = true;
            return;
        };
        let bounds = self.settings().reconnect_backoff;
        let broker = self.brokers.entry(id).or_insert_with(|| Broker {
            node: Node::Closed { until: now },
            backoff: Backoff::new(bounds),
            generation: 0,
            failing_since: None,
            not_before: None,
        });
        match &mut broker.node {
            Node::Closed { until } if now >= *until => {
                broker.node = Node::Opening;
                let options = self.options.clone();
                self.work.push(Box::pin(async move {
                    Done::Opened(id, Connection::open(&address.host, address.port, &options).await)
                }));
            }
            Node::Closed { .. } | Node::Opening => {}
            Node::Open(line) => {
                let idle = line.in_flight.is_empty();
                if idle && line.expires.is_some_and(|at| now >= at) {
                    line.cut.cancel();
                    broker.node = Node::Closed { until: now };
                    // Comes back here at once.
                    self.shared.work.notify_one();
                    return;
                }
                let expiring = line.expires.is_some_and(|at| now >= at);
                let free = line.requests.is_some() && line.in_flight.len() < REQUESTS_MAX && !expiring;
                let throttled = broker.not_before.is_some_and(|until| now < until);
                if free && !throttled && (idle || ready >= EAGER_BYTES) {
                    self.send(id, now, producer, topics);
                }
            }
        }
    }

    /// Sends a node the next batch of each of its partitions.
    pub(super) fn send(&mut self, id: i32, now: Instant, producer: Producer, topics: &[Arc<Topic>]) {
        let (mut batches, mut bytes) = (Vec::new(), 0);
        let mut named: Vec<TopicBatches<'_>> = Vec::new();
        for turn in 0..topics.len() {
            let topic = &topics[(self.first + turn) % topics.len()];
            let State::Known(known) = &mut *topic.lock() else { continue };
            let count = known.partitions.len();
            let mut partitions = Vec::new();
            for turn in 0..count {
                let at = (self.first + turn) % count;
                let leads = self.view.leader(&topic.name, at as i32).is_some_and(|leader| leader.node == Some(id));
                if !leads || bytes >= REQUEST_BYTES_MAX || self.sendable(known, at, id, now) == 0 {
                    continue;
                }
                let frozen = self.renewal.is_some();
                if !known.partitions[at].queue.can_send(id, frozen) {
                    known.seal(at);
                }
                let Some(next) = known.partitions[at].queue.next(id, frozen) else { continue };
                let batch = next.payload.stamp(producer, next.sequence, self.coordination.is_some());
                bytes += batch.len();
                partitions.push((at as i32, batch));
                batches.push(Batch { topic: topic.clone(), partition: at as i32, id: next.id });
            }
            if !partitions.is_empty() {
                named.push(TopicBatches { name: &topic.name, partitions });
            }
        }
        self.first = self.first.wrapping_add(1);
        if batches.is_empty() {
            return;
        }
        let timeout = self.shared.settings.request_timeout;
        let deadline = now + timeout + self.shared.settings.socket_timeout;
        let Some(Broker { node: Node::Open(line), generation, .. }) = self.brokers.get_mut(&id) else { return };
        let Some(mut requests) = line.requests.take() else { return };
        let (version, generation, cut) = (line.version, *generation, line.cut.clone());
        let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        let transaction = self.shared.transaction.as_ref().map(|transaction| &*transaction.spec.id);
        let pieces = frame::produce(version, transaction, timeout_ms, &named);
        let correlation = requests.next_correlation();
        line.in_flight.push_back(InFlight { correlation, version, deadline, batches });
        self.work.push(Box::pin(async move {
            let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
            let written = tokio::select! {
                written = requests.send_pieces(ApiKey::Produce, version, ProduceRequest::header_version(version), &pieces) => written,
                () = cut.cancelled() => Err(closed_here()),
            };
            Done::Written(id, generation, requests, written)
        }));
    }

    /// The connection of this generation, unless it was given up.
    pub(super) fn line(&mut self, id: i32, generation: u64) -> Option<&mut Line> {
        match self.brokers.get_mut(&id) {
            Some(Broker { node: Node::Open(line), generation: current, .. }) if *current == generation => Some(line),
            _ => None,
        }
    }

    /// Waits for the next answer. Always, so that a connection that the broker closes is noticed.
    pub(super) fn listen(&mut self, id: i32, generation: u64, mut responses: Responses) {
        let Some(line) = self.line(id, generation) else { return };
        let cut = line.cut.clone();
        self.work.push(Box::pin(async move {
            let answer = tokio::select! {
                answer = responses.receive() => answer,
                () = cut.cancelled() => Err(closed_here()),
            };
            Done::Answered(id, generation, responses, answer)
        }));
    }

    pub(super) fn opened(&mut self, id: i32, opened: Result<Connection, WireError>) -> Result<(), BrokerError> {
        let opened = opened.and_then(|connection| Ok((connection.version::<ProduceRequest>()?, connection)));
        let (version, connection) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.failed(id, error),
        };
        let Some(broker) = self.brokers.get_mut(&id) else { return Ok(()) };
        let expires = connection.expires().map(tokio::time::Instant::into_std);
        let (requests, responses) = connection.split();
        broker.generation += 1;
        broker.backoff.reset();
        let generation = broker.generation;
        broker.node = Node::Open(Line {
            requests: Some(requests),
            version,
            in_flight: VecDeque::new(),
            cut: CancellationToken::new(),
            expires,
        });
        self.listen(id, generation, responses);
        Ok(())
    }

    /// A connection failed: of what was on its way nobody knows whether it arrived.
    pub(super) fn failed(&mut self, id: i32, error: WireError) -> Result<(), BrokerError> {
        if !error.kind.may_pass() {
            return Err(error.into_broker(format!("publish to {}", self.shared.address)));
        }
        let Some(broker) = self.brokers.get_mut(&id) else { return Ok(()) };
        let was_busy = !matches!(&broker.node, Node::Open(line) if line.in_flight.is_empty());
        let until = if was_busy { broker.backoff.next() } else { Instant::now() };
        let old = std::mem::replace(&mut broker.node, Node::Closed { until });
        if was_busy {
            // A broker that hangs up on an idle connection is no news.
            let address = &self.shared.address;
            tracing::debug!(target: "fluxmill::kafka", "broker {id} of {address}: {}", error.reason);
            if broker.failing_since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
                let text = format!("broker {id} of {address} is not reachable: {}; waiting for it", error.reason);
                self.lines.warn("BROKER", &text);
            }
            self.metadata.wanted = true;
        }
        let Node::Open(line) = old else { return Ok(()) };
        line.cut.cancel();
        for batch in line.in_flight.into_iter().flat_map(|request| request.batches) {
            self.unanswered(&batch, Verdict::Again);
        }
        Ok(())
    }
}

/// The connection was given up on this side.
fn closed_here() -> WireError {
    WireError::new(WireErrorKind::Closed, "the broker", "the connection was given up")
}

/// The broker does not keep to the order of requests.
pub(super) fn confused(id: i32, what: &str) -> WireError {
    WireError::new(WireErrorKind::Malformed, &format!("broker {id}"), what)
}
