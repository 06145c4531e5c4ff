//! A source on JetStream: one durable consumer, read by pull requests, on one thread.
//!
//! **Order.** Messages are taken in the order of the stream. Each delivery carries how many there were; when one is
//! missing, or the connection was another, the consumer is set back to what is confirmed, and what is delivered once
//! more is dropped up to the last message that was taken. So an acknowledgement, which is for everything up to its
//! message, is never for a message that did not come.

mod hold;
mod received;
mod replies;

use std::collections::VecDeque;
use std::future::pending;
use std::time::Duration;

use async_nats::{StatusCode, Subscriber};
use futures_util::future::LocalBoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::Instant;

use super::connection::{Connection, REQUEST_TIMEOUT};
use super::consumer::Durable;
use super::{address, failed};
use crate::broker::{BrokerError, BrokerErrorKind, CloseLanes, Source, SourceContext, SourceEnd};
use crate::delivery::{Slot, TopicPartition};
use crate::spec::{NatsConnection, NatsSourceSpec};
use hold::Hold;
use received::Received;

/// Messages that are asked for at once.
const PULL_MESSAGES: usize = 2_000;
/// Bytes that are asked for at once; more where the server takes larger messages.
const PULL_BYTES: usize = 8 << 20;
/// How long the server may hold a request.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// How often the server says that it holds one, and how long it may be silent.
const HEARTBEAT: Duration = Duration::from_secs(5);
const SILENCE_MAX: Duration = Duration::from_secs(13);
/// How long to wait before something is asked again that failed.
const PAUSE: Duration = Duration::from_millis(200);
/// How often the ends are asked for in a run that is to catch up.
const ASK_INTERVAL: Duration = Duration::from_millis(200);
/// How long a consumer may be missing: a server that has just started may not know it yet.
const MISSING_MAX: Duration = Duration::from_secs(10);
/// So many missing messages within this time, on one connection, are somebody else's doing.
const GAPS: (usize, Duration) = (5, Duration::from_secs(60));

/// The messages of a durable consumer.
#[derive(Debug)]
pub struct NatsSource {
    connection: NatsConnection,
    spec: NatsSourceSpec,
    client_id: String,
}

impl NatsSource {
    /// A source that calls itself `client_id` at the server. Connects when it runs.
    pub fn new(connection: &NatsConnection, spec: &NatsSourceSpec, client_id: &str) -> Self {
        Self { connection: connection.clone(), spec: spec.clone(), client_id: client_id.to_owned() }
    }

    async fn run_in(self, context: &SourceContext) -> Result<SourceEnd, BrokerError> {
        let lanes = CloseLanes(context.lanes.clone());
        let connection = Connection::open(&self.connection, &self.client_id, true).await?;
        let Some(hold) = Hold::get(&connection, &self.spec, &context.stop).await? else {
            return Ok(SourceEnd::Drained);
        };
        let durable = Durable::open(&connection, &self.spec).await?;
        let NatsSourceSpec { stream, durable: name, .. } = &self.spec;
        tracing::info!(target: "fluxmill::nats", "reading stream {stream} by durable consumer {name}");
        let partition = TopicPartition { topic: self.spec.stream.as_str().into(), partition: 0 };
        let slot = context.tracker.assign(partition);
        let reader = Reader::new(&self.spec, &connection, &durable, context, (slot, hold));
        let end = reader.work(lanes).await;
        context.tracker.revoke(slot);
        end
    }
}

impl Source for NatsSource {
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

/// Something on its way to the server; at its end, up to which message it was confirmed, if it was.
type Sent<'a> = Option<LocalBoxFuture<'a, Option<u64>>>;

/// A source at work.
struct Reader<'a> {
    connection: &'a Connection,
    durable: &'a Durable,
    context: &'a SourceContext,
    received: Received<'a>,
    slot: Slot,
    hold: Hold,
    /// Where messages come to; none before the consumer was set back for the first time on this connection.
    inbox: Option<(String, Subscriber)>,
    /// The connection that the inbox is on.
    epoch: u64,
    /// Messages that were asked for and have not come.
    asked: usize,
    ask_at: Instant,
    heard: Instant,
    acknowledgement: Sent<'a>,
    progress: Sent<'a>,
    acknowledge_at: Instant,
    progress_at: Instant,
    progress_interval: Duration,
    gaps: VecDeque<Instant>,
    missing_since: Option<Instant>,
    /// In a run that is to catch up: the stream's last message when it was to be noted, and when to ask again.
    end: Option<u64>,
    end_at: Instant,
}

impl<'a> Reader<'a> {
    fn new(
        spec: &'a NatsSourceSpec,
        connection: &'a Connection,
        durable: &'a Durable,
        context: &'a SourceContext,
        (slot, hold): (Slot, Hold),
    ) -> Self {
        let (now, progress_interval) = (Instant::now(), spec.ack_wait / 3);
        Self {
            connection,
            durable,
            context,
            received: Received::new(spec),
            slot,
            hold,
            inbox: None,
            epoch: 0,
            asked: 0,
            ask_at: now,
            heard: now,
            acknowledgement: None,
            progress: None,
            acknowledge_at: now + context.commit.interval,
            progress_at: now + progress_interval,
            progress_interval,
            gaps: VecDeque::new(),
            missing_since: None,
            end: None,
            end_at: now,
        }
    }

    async fn work(mut self, lanes: CloseLanes) -> Result<SourceEnd, BrokerError> {
        while !self.context.stop.is_cancelled() {
            if let Some(refusal) = self.connection.refusal(|| self.durable.action()) {
                return Err(refusal);
            }
            if self.connection.link.epoch().is_some_and(|epoch| epoch != self.epoch) || self.inbox.is_none() {
                self.begin_anew(false).await?;
            }
            self.ask().await;
            self.received.hand_over(&self.context.lanes, self.slot);
            if self.is_caught_up().await {
                break;
            }
            self.serve(false).await?;
        }
        drop(lanes);
        self.received.forget_waiting();
        let until = Instant::now() + self.context.drain_timeout;
        let tracker = &self.context.tracker;
        while !tracker.drained(&[self.slot]) && tracker.abandoned() == 0 && Instant::now() < until {
            self.serve(true).await?;
        }
        let drained = tracker.drained(&[self.slot]);
        let confirmed = self.confirm_all(until).await?;
        Ok(if drained && confirmed { SourceEnd::Drained } else { SourceEnd::DrainTimedOut })
    }

    /// Sets the consumer back to what is confirmed, and reads on from there on an inbox of its own. Does nothing while
    /// there is no connection. `ends`: nothing more is taken.
    async fn begin_anew(&mut self, ends: bool) -> Result<(), BrokerError> {
        let Some(epoch) = self.connection.link.epoch() else { return Ok(()) };
        self.inbox = None;
        self.progress = None;
        if let Some(acknowledgement) = self.acknowledgement.take()
            && epoch == self.epoch
            && let Some(last) = acknowledgement.await
        {
            // It must not come behind what it is for is set back.
            self.received.acknowledged(last);
        }
        let name = self.connection.client.new_inbox();
        let Ok(inbox) = self.connection.client.subscribe(name.clone()).await else { return Ok(()) };
        let set_back = tokio::select! {
            set_back = self.durable.set_back() => set_back,
            () = self.context.stop.cancelled(), if !ends => return Ok(()),
        };
        let floor = match set_back {
            Some(set_back) => set_back?,
            None => {
                tokio::time::sleep(PAUSE).await;
                return self.missed().await;
            }
        };
        self.missing_since = None;
        self.received.expect_anew(floor);
        self.inbox = Some((name, inbox));
        self.epoch = epoch;
        (self.asked, self.heard) = (0, Instant::now());
        Ok(())
    }

    /// The consumer did not answer.
    async fn missed(&mut self) -> Result<(), BrokerError> {
        let since = *self.missing_since.get_or_insert_with(Instant::now);
        if self.connection.link.epoch().is_some() && self.durable.is_gone().await {
            if since.elapsed() >= MISSING_MAX {
                let reason = "the stream or the consumer was deleted";
                return Err(failed(BrokerErrorKind::UnknownTopic, self.durable.action(), reason));
            }
        } else {
            self.missing_since = None;
        }
        Ok(())
    }

    /// Asks for more messages, unless enough were asked for or wait.
    async fn ask(&mut self) {
        let Some((inbox, _)) = &self.inbox else { return };
        let wanted = self.received.lacks() || self.end.is_none_or(|end| self.received.last() < end);
        let few = self.asked + self.received.waiting() <= PULL_MESSAGES / 2;
        if !wanted || !few || self.connection.link.epoch() != Some(self.epoch) || Instant::now() < self.ask_at {
            return;
        }
        let bytes = PULL_BYTES.max(2 * self.connection.client.max_payload());
        let request = serde_json::json!({
            "batch": PULL_MESSAGES,
            "max_bytes": bytes,
            "expires": PULL_EXPIRES.as_nanos() as u64,
            "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
        });
        let request = self.connection.client.publish_with_reply(
            self.durable.next_subject(),
            inbox.clone(),
            request.to_string().into(),
        );
        if request.await.is_ok() {
            if self.asked == 0 {
                self.heard = Instant::now();
            }
            self.asked += PULL_MESSAGES;
        }
    }

    /// Waits for whatever comes next, and deals with it. `ends`: nothing more is taken.
    async fn serve(&mut self, ends: bool) -> Result<(), BrokerError> {
        let now = Instant::now();
        if now >= self.acknowledge_at {
            self.acknowledge_at = now + self.context.commit.interval;
            self.hold.forget();
            self.acknowledge();
        }
        if now >= self.progress_at {
            self.progress_at = now + self.progress_interval;
            self.keep();
        }
        if self.asked > 0 && self.heard.elapsed() > SILENCE_MAX {
            tracing::debug!(target: "fluxmill::nats", "{}: silence; begun anew", self.durable.action());
            self.inbox = None;
            return Ok(());
        }
        let next_tick = self.acknowledge_at.min(self.progress_at).min(self.ask_at.max(now + PAUSE));
        let inbox = self.inbox.as_mut();
        let tracker = &self.context.tracker;
        let message = tokio::select! {
            biased;
            confirmed = finish(&mut self.acknowledgement) => {
                self.acknowledgement = None;
                confirmed.into_iter().for_each(|last| self.received.acknowledged(last));
                None
            }
            _ = finish(&mut self.progress) => { self.progress = None; None }
            message = async { match inbox { Some((_, inbox)) => inbox.next().await, None => pending().await } }, if self.received.has_room() => message,
            () = self.context.bell.rung() => None,
            () = self.connection.link.changed() => None,
            () = tracker.change(), if ends || self.end.is_some() => None,
            () = self.context.stop.cancelled(), if !ends => None,
            () = tokio::time::sleep_until(next_tick) => None,
        };
        let mut next = message;
        if next.is_some() {
            self.heard = Instant::now();
        }
        while let Some(message) = next {
            self.receive(message).await?;
            next = match &mut self.inbox {
                Some((_, inbox)) if self.received.has_room() => inbox.next().now_or_never().flatten(),
                _ => None,
            };
        }
        Ok(())
    }

    /// Takes a message, or what the server says of a request.
    async fn receive(&mut self, message: async_nats::Message) -> Result<(), BrokerError> {
        let Some(status) = message.status.filter(|status| *status != StatusCode::OK) else {
            self.asked = self.asked.saturating_sub(1);
            if !self.received.take(message, self.end) {
                return self.gap();
            }
            return Ok(());
        };
        if status == StatusCode::IDLE_HEARTBEAT {
            return Ok(());
        }
        let unserved = message.headers.as_ref().and_then(|headers| headers.get("Nats-Pending-Messages"));
        match unserved.and_then(|unserved| unserved.as_str().parse::<usize>().ok()) {
            Some(unserved) => self.asked = self.asked.saturating_sub(unserved),
            None => {
                let words = message.description.as_deref().unwrap_or_default();
                tracing::debug!(target: "fluxmill::nats", "{}: {status} {words}", self.durable.action());
                self.asked = 0;
                self.ask_at = Instant::now() + PAUSE;
                if status == StatusCode::NO_RESPONDERS || words.to_lowercase().contains("deleted") {
                    self.inbox = None;
                }
            }
        }
        Ok(())
    }

    /// A message is missing.
    fn gap(&mut self) -> Result<(), BrokerError> {
        self.inbox = None;
        let now = Instant::now();
        self.gaps.push_back(now);
        self.gaps.retain(|at| now - *at < GAPS.1);
        tracing::debug!(target: "fluxmill::nats", "{}: a message is missing; set back", self.durable.action());
        if self.gaps.len() < GAPS.0 {
            return Ok(());
        }
        let reason = "its messages go to another process, too; each needs a `durable` of its own";
        Err(failed(BrokerErrorKind::Settings, self.durable.action(), reason))
    }

    /// Acknowledges what has ended, unless an acknowledgement is on its way.
    fn acknowledge(&mut self) {
        let Some(next) = self.context.tracker.next(self.slot) else { return };
        if self.acknowledgement.is_some() || self.inbox.is_none() {
            return;
        }
        let (client, each) = (self.connection.client.clone(), !self.durable.acknowledges_all);
        let Some((mut replies, last)) = self.received.ended(u64::try_from(next).unwrap_or(0), each) else { return };
        self.acknowledgement = Some(Box::pin(async move {
            // The answer to the last is one for all: the server takes them in order.
            let confirmed = replies.pop()?;
            for reply in replies {
                client.publish(reply, "+ACK".into()).await.ok()?;
            }
            client.request(confirmed, "+ACK".into()).await.ok().map(|_| last)
        }));
    }

    /// Tells the server that what is in flight is being worked on.
    fn keep(&mut self) {
        let replies = self.received.old();
        if replies.is_empty() || self.progress.is_some() || self.inbox.is_none() {
            return;
        }
        let client = self.connection.client.clone();
        self.progress = Some(Box::pin(async move {
            for reply in replies {
                client.publish(reply, "+WPI".into()).await.ok()?;
            }
            None
        }));
    }

    /// Acknowledges everything that has ended; false when the server does not confirm it in time.
    async fn confirm_all(&mut self, until: Instant) -> Result<bool, BrokerError> {
        let until = until.max(Instant::now() + REQUEST_TIMEOUT);
        let next = |reader: &Self| reader.context.tracker.next(reader.slot).and_then(|next| u64::try_from(next).ok());
        while let Some(next) = next(self)
            && self.received.owes(next)
        {
            if Instant::now() >= until {
                return Ok(false);
            }
            // What was lost with a connection has to be delivered again before it can be acknowledged.
            if self.connection.link.epoch().is_some_and(|epoch| epoch != self.epoch) || self.inbox.is_none() {
                self.begin_anew(true).await?;
            }
            if self.received.lacks() {
                self.ask().await;
            }
            self.acknowledge_at = Instant::now();
            self.serve(true).await?;
        }
        Ok(true)
    }

    /// In a run that is to catch up: whether everything has ended that was there when the end was to be noted.
    async fn is_caught_up(&mut self) -> bool {
        let Some(take_end) = &self.context.caught_up else { return false };
        if !take_end.is_cancelled() || self.inbox.is_none() {
            return false;
        }
        let tracker = &self.context.tracker;
        let idle = self.received.waiting() == 0 && tracker.drained(&[self.slot]);
        if let Some(end) = self.end
            && idle
            && self.received.last() >= end
        {
            return true;
        }
        if Instant::now() < self.end_at {
            return false;
        }
        self.end_at = Instant::now() + ASK_INTERVAL;
        let Some(state) = self.durable.state().await else { return false };
        let end = *self.end.get_or_insert(state.last);
        // Filters and deleted messages: the last that is there may not be the consumer's.
        idle && (end == 0 || (state.pending == 0 && self.received.last() >= state.delivered))
    }
}

/// Waits for what is on its way; for ever when nothing is.
async fn finish(sent: &mut Sent<'_>) -> Option<u64> {
    match sent {
        Some(sent) => sent.await,
        None => pending().await,
    }
}
