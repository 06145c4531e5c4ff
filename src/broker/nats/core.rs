//! A source on core NATS: subjects, shared by the members of a queue group. At most once: what is published while
//! nobody reads is not kept, and what a process has taken when it crashes is gone with it. A stop that drains
//! loses nothing of what had come; what the server was just sending may be lost, since the client forgets a
//! subscription as soon as it has told the server that it ends.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures_util::stream::SelectAll;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::Instant;

use super::connection::Connection;
use super::row::append;
use super::{address, failed};
use crate::broker::{BrokerError, BrokerErrorKind, CloseLanes, Source, SourceContext, SourceEnd};
use crate::delivery::{Slot, TopicPartition};
use crate::event::Origin;
use crate::spec::{CoreNatsSourceSpec, NatsConnection};

/// Messages that may wait for their lanes, and their bytes. What comes on top is lost, and counted.
const WAITING_MAX: (usize, usize) = (65_536, 64 << 20);
/// How often it is said at most that messages were lost.
const SAY_INTERVAL: Duration = Duration::from_secs(10);
/// How often the server may not say that it has read what is asked for before that is told.
const UNREAD_MAX: u32 = 5;
/// How long to wait before the server is asked once more whether it has read what is asked for.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the server may take to send what it had for this process when that stops.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// The messages of subjects.
#[derive(Debug)]
pub struct CoreSource {
    connection: NatsConnection,
    spec: CoreNatsSourceSpec,
    client_id: String,
}

impl CoreSource {
    /// A source that calls itself `client_id` at the server. Connects when it runs.
    pub fn new(connection: &NatsConnection, spec: &CoreNatsSourceSpec, client_id: &str) -> Self {
        Self { connection: connection.clone(), spec: spec.clone(), client_id: client_id.to_owned() }
    }

    async fn run_in(self, context: &SourceContext) -> Result<SourceEnd, BrokerError> {
        let lanes = CloseLanes(context.lanes.clone());
        let connection = Connection::open(&self.connection, &self.client_id, true).await?;
        let mut subscribers = SelectAll::new();
        for subject in &self.spec.subjects {
            let subscribed = connection.client.queue_subscribe(subject.clone(), self.spec.queue.clone()).await;
            let action = || format!("subscribe to {subject} on {}", connection.address);
            subscribers.push(subscribed.map_err(|error| failed(BrokerErrorKind::Fatal, action(), error))?);
        }
        let partition = TopicPartition { topic: self.spec.subjects.join(",").into(), partition: 0 };
        let slot = context.tracker.assign(partition);
        let waiting = Waiting::new(&self.spec, &connection.address, slot);
        let reader = Reader { connection: &connection, context, subscribers, waiting, slot, unread: 0 };
        let end = reader.work(lanes).await;
        context.tracker.revoke(slot);
        end
    }
}

impl Source for CoreSource {
    fn run(self, context: SourceContext) -> Result<SourceEnd, BrokerError> {
        // However this ends, by an error or a panic too, the lanes must learn that nothing more comes.
        let _lanes = CloseLanes(context.lanes.clone());
        let action = format!("read from {}", address(&self.connection));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| failed(BrokerErrorKind::Fatal, action, error))?;
        let end = runtime.block_on(self.run_in(&context));
        // Looking a server's name up cannot be interrupted, and must not hold the end up.
        runtime.shutdown_background();
        end
    }
}

/// Messages that came and wait for their lanes.
struct Waiting<'a> {
    spec: &'a CoreNatsSourceSpec,
    address: &'a str,
    slot: Slot,
    messages: VecDeque<(Message, i64)>,
    bytes: usize,
    /// The next message's number: its offset.
    next: i64,
    /// Messages that found no room, in all and when it was said last.
    lost: u64,
    said: (u64, Option<Instant>),
}

impl<'a> Waiting<'a> {
    fn new(spec: &'a CoreNatsSourceSpec, address: &'a str, slot: Slot) -> Self {
        Self { spec, address, slot, messages: VecDeque::new(), bytes: 0, next: 0, lost: 0, said: (0, None) }
    }

    fn take(&mut self, message: Message) {
        if self.messages.len() >= WAITING_MAX.0 || self.bytes >= WAITING_MAX.1 {
            self.lost += 1;
            return;
        }
        self.bytes += message.length;
        self.messages.push_back((message, jiff::Timestamp::now().as_millisecond()));
    }

    fn hand_over(&mut self, context: &SourceContext) {
        if self.messages.is_empty() {
            return;
        }
        let mut run = context.lanes.run(0);
        let reading = (self.spec.key, self.spec.subject_header.as_deref());
        while let Some((message, arrived)) = self.messages.front() {
            let origin = Origin { slot: self.slot, offset: self.next };
            if append(&mut run, origin, message, *arrived, reading).is_err() {
                return;
            }
            self.next += 1;
            self.bytes -= message.length;
            self.messages.pop_front();
        }
    }

    /// Says how many messages were lost, if there are more than when that was said last; `slow` found no room in the
    /// client.
    fn tell(&mut self, slow: u64, ends: bool) {
        let (all, (told, at)) = (self.lost + slow, self.said);
        if all == told || !(ends || at.is_none_or(|at| at.elapsed() >= SAY_INTERVAL)) {
            return;
        }
        self.said = (all, Some(Instant::now()));
        let (new, address, subjects) = (all - told, self.address, self.spec.subjects.join(", "));
        tracing::warn!(target: "fluxmill::nats", "{address}: {new} messages of {subjects} came faster than they are processed and are lost ({all} so far)");
    }
}

/// A source at work.
struct Reader<'a> {
    connection: &'a Connection,
    context: &'a SourceContext,
    subscribers: SelectAll<Subscriber>,
    waiting: Waiting<'a>,
    slot: Slot,
    /// How often the server did not say that it has read the subscriptions.
    unread: u32,
}

impl Reader<'_> {
    async fn work(mut self, lanes: CloseLanes) -> Result<SourceEnd, BrokerError> {
        let context = self.context;
        while !context.stop.is_cancelled() {
            let begins = !context.reads.is_cancelled() && self.reads().await;
            if let Some(refusal) = self.connection.refusal(|| format!("subscribe on {}", self.connection.address)) {
                return Err(refusal);
            }
            if begins {
                context.reads.cancel();
                let (subjects, queue) = (self.waiting.spec.subjects.join(", "), &self.waiting.spec.queue);
                tracing::info!(target: "fluxmill::nats", "reads {subjects} in queue group {queue}");
            }
            self.waiting.hand_over(context);
            self.waiting.tell(self.connection.link.slow(), false);
            let message = tokio::select! {
                message = self.subscribers.next() => Some(message.ok_or_else(|| self.gone())?),
                () = context.bell.rung() => None,
                () = self.connection.link.changed() => None,
                () = context.stop.cancelled() => None,
                // What was lost is told although nothing comes any more.
                () = tokio::time::sleep(if context.reads.is_cancelled() { SAY_INTERVAL } else { PAUSE }) => None,
            };
            self.take(message);
        }
        self.leave().await;
        let until = Instant::now() + context.drain_timeout;
        let tracker = &context.tracker;
        while !self.waiting.messages.is_empty() && tracker.abandoned() == 0 && Instant::now() < until {
            self.waiting.hand_over(context);
            tokio::select! {
                () = context.bell.rung() => {}
                () = tracker.change() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
        drop(lanes);
        while !tracker.drained(&[self.slot]) && tracker.abandoned() == 0 && Instant::now() < until {
            tokio::select! {
                () = tracker.change() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
        let drained = self.waiting.messages.is_empty() && tracker.drained(&[self.slot]);
        self.waiting.lost += self.waiting.messages.len() as u64;
        self.waiting.tell(self.connection.link.slow(), true);
        Ok(if drained { SourceEnd::Drained } else { SourceEnd::Lost })
    }

    /// Whether what is published from now on comes, unless that was refused.
    async fn reads(&mut self) -> bool {
        let comes = self.connection.round_trip().await;
        // A refusal to subscribe comes before the answer, but by another way.
        tokio::task::yield_now().await;
        self.unread += u32::from(!comes);
        if self.unread == UNREAD_MAX && !comes {
            let (address, subjects) = (&self.connection.address, self.waiting.spec.subjects.join(", "));
            tracing::warn!(target: "fluxmill::nats", "{address} does not say that it has read who reads {subjects}; pipelines that publish there wait for that");
        }
        comes
    }

    /// Takes a message, and all that came with it. Unconstrained: as much may have come as the connection reads in its
    /// turn, and what stays in the subscription for long is lost.
    fn take(&mut self, message: Option<Message>) {
        message.into_iter().for_each(|message| self.waiting.take(message));
        while let Some(Some(message)) = tokio::task::unconstrained(self.subscribers.next()).now_or_never() {
            self.waiting.take(message);
        }
    }

    /// Takes what the server had for this process, asks for nothing more, and takes what was on its way.
    async fn leave(&mut self) {
        self.connection.round_trip().await;
        self.take(None);
        for subscriber in self.subscribers.iter_mut() {
            // A connection that is gone has nothing on its way.
            let _ = subscriber.drain().await;
        }
        let rest = async {
            while let Some(message) = self.subscribers.next().await {
                self.waiting.take(message);
            }
        };
        let _ = tokio::time::timeout(LEAVE_TIMEOUT, rest).await;
    }

    fn gone(&self) -> BrokerError {
        let action = format!("read from {}", self.connection.address);
        failed(BrokerErrorKind::Closed, action, "the subscription was ended")
    }
}
