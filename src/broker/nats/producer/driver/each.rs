//! Messages each by itself: sends what is queued, in order, and sees each to its acknowledgement.

use std::time::Duration;

use async_nats::Subscriber;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{ACK_TIMEOUT, MISSING_MAX, PAUSE, SAY_INTERVAL};
use crate::broker::nats::connection::Connection;
use crate::broker::nats::failed;
use crate::broker::nats::producer::Outgoing;
use crate::broker::nats::producer::answer::{Verdict, verdict};
use crate::broker::nats::window::Window;
use crate::broker::{BrokerError, BrokerErrorKind};

/// Messages that are sent before answers are looked at.
const RUN_MAX: usize = 256;
/// The same while the server takes nothing.
const TRIES: usize = 1;

/// A driver that is connected.
pub(super) struct Sending<'a> {
    connection: &'a Connection,
    queue: &'a mut mpsc::Receiver<Outgoing>,
    window: &'a mut Window<Outgoing>,
    answers: Subscriber,
    /// What answers are sent to, without the number.
    inbox: String,
    epoch: u64,
    /// When the first that was sent is overdue.
    heard: Instant,
    send_at: Instant,
    missing_since: Option<Instant>,
    /// Whether the last answer was that nothing is taken now.
    waits: bool,
    /// When that was said last.
    said: Option<Instant>,
}

impl<'a> Sending<'a> {
    pub(super) async fn new(
        connection: &'a Connection,
        queue: &'a mut mpsc::Receiver<Outgoing>,
        window: &'a mut Window<Outgoing>,
    ) -> Result<Self, BrokerError> {
        let inbox = connection.client.new_inbox();
        let action = || format!("publish on {}", connection.address);
        let answers = connection.client.subscribe(format!("{inbox}.*")).await;
        let answers = answers.map_err(|error| failed(BrokerErrorKind::Fatal, action(), error))?;
        let (epoch, now) = (connection.link.epoch().unwrap_or(0), Instant::now());
        Ok(Self {
            connection,
            queue,
            window,
            answers,
            inbox,
            epoch,
            heard: now,
            send_at: now,
            missing_since: None,
            waits: false,
            said: None,
        })
    }

    /// Runs until it cannot go on.
    pub(super) async fn run(mut self) -> Result<(), BrokerError> {
        loop {
            let epoch = self.connection.link.epoch();
            if let Some(epoch) = epoch
                && epoch != self.epoch
            {
                // What was on its way may be lost.
                self.epoch = epoch;
                self.send_again(Duration::ZERO);
            }
            if let Some(refusal) = self.connection.refusal(&format!("publish on {}", self.connection.address)) {
                return Err(refusal);
            }
            if self.window.awaits() && self.heard.elapsed() >= ACK_TIMEOUT && epoch.is_some() {
                self.send_again(Duration::ZERO);
            }
            // While nothing is taken, one at a time shows when that is over: more could be stored in front of it.
            let tries = self.waits && self.window.awaits();
            let may_send = epoch == Some(self.epoch) && Instant::now() >= self.send_at && !tries;
            if may_send {
                self.send().await?;
            }
            let wake = if may_send && self.window.is_behind() {
                Instant::now()
            } else if may_send {
                self.heard + ACK_TIMEOUT
            } else {
                self.send_at.max(Instant::now() + PAUSE)
            };
            tokio::select! {
                biased;
                answer = self.answers.next(), if self.window.awaits() => {
                    let Some(answer) = answer else { return Err(self.gone()) };
                    self.take(&answer)?;
                    while let Some(Some(answer)) = self.answers.next().now_or_never() {
                        self.take(&answer)?;
                    }
                }
                // Not `heard`: what is queued has to be sent first.
                outgoing = self.queue.recv() => match outgoing {
                    Some(outgoing) => self.window.push(outgoing),
                    None => return Err(self.gone()),
                },
                () = self.connection.link.changed() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    fn gone(&self) -> BrokerError {
        failed(BrokerErrorKind::Closed, format!("publish on {}", self.connection.address), "the producer was closed")
    }

    /// Sends what is queued and what has to be sent again, as much as makes one run.
    async fn send(&mut self) -> Result<(), BrokerError> {
        let mut unanswered = Vec::new();
        for _ in 0..if self.waits { TRIES } else { RUN_MAX } {
            if let Ok(outgoing) = self.queue.try_recv() {
                self.window.push(outgoing);
            }
            if !self.window.awaits() {
                self.heard = Instant::now();
            }
            let Some((number, outgoing)) = self.window.next() else { break };
            let (client, subject) = (&self.connection.client, outgoing.message.subject.clone());
            let (headers, payload) = (outgoing.message.headers.clone(), outgoing.message.payload.clone());
            let sent = if outgoing.is_stored {
                let reply = format!("{}.{number}", self.inbox);
                client.publish_with_reply_and_headers(subject, reply, headers, payload).await
            } else {
                unanswered.push(number);
                client.publish_with_headers(subject, headers, payload).await
            };
            match sent {
                Ok(()) => {}
                // The server that it is connected to now takes less than the one before.
                Err(error) if error.kind() == async_nats::client::PublishErrorKind::MaxPayloadExceeded => {
                    self.refuse(number, BrokerErrorKind::TooLarge, error.to_string());
                }
                Err(error) => {
                    let action = format!("publish to {} on {}", outgoing.message.subject, self.connection.address);
                    return Err(failed(BrokerErrorKind::Fatal, action, error));
                }
            }
        }
        if !unanswered.is_empty() && self.connection.client.flush().await.is_ok() {
            // Nobody will say more of them than that the system took them.
            for number in unanswered {
                self.end(number);
            }
        }
        Ok(())
    }

    fn end(&mut self, number: u64) {
        if let Some(outgoing) = self.window.end(number) {
            outgoing.work.acknowledge(1);
        }
    }

    /// From the first that is not acknowledged on, everything is sent again after a pause.
    fn send_again(&mut self, pause: Duration) {
        self.window.rewind();
        (self.heard, self.send_at) = (Instant::now(), Instant::now() + pause);
    }

    fn refuse(&mut self, number: u64, kind: BrokerErrorKind, reason: String) {
        if let Some(outgoing) = self.window.end(number) {
            let action = format!("publish to {} on {}", outgoing.message.subject, self.connection.address);
            outgoing.work.refuse(outgoing.message.at, failed(kind, action, reason));
        }
    }

    /// Deals with an answer.
    fn take(&mut self, answer: &async_nats::Message) -> Result<(), BrokerError> {
        let number = answer.subject.rsplit('.').next().and_then(|number| number.parse::<u64>().ok());
        // An answer to what was sent once more has come before.
        let Some(number) = number.filter(|number| self.window.get(*number).is_some()) else { return Ok(()) };
        self.heard = Instant::now();
        match verdict(answer) {
            Verdict::Stored => {
                self.end(number);
                self.missing_since = None;
                if std::mem::take(&mut self.waits) {
                    tracing::debug!(target: "fluxmill::nats", "{}: takes messages again", self.connection.address);
                }
            }
            Verdict::Refused(kind, reason) => self.refuse(number, kind, reason),
            Verdict::Later(reason) => {
                self.waits = true;
                if self.said.is_none_or(|said| said.elapsed() >= SAY_INTERVAL) {
                    self.said = Some(Instant::now());
                    let subject = self.window.get(number).map_or("", |outgoing| outgoing.message.subject.as_str());
                    let address = &self.connection.address;
                    tracing::warn!(target: "fluxmill::nats", "publish to {subject} on {address}: {reason}; sent again until it works");
                }
                self.send_again(PAUSE);
            }
            Verdict::Missing => {
                let since = *self.missing_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= MISSING_MAX {
                    let subject = self.window.get(number).map_or("", |outgoing| outgoing.message.subject.as_str());
                    let action = format!("publish to {subject} on {}", self.connection.address);
                    return Err(failed(BrokerErrorKind::UnknownTopic, action, "no stream stores this subject"));
                }
                self.send_again(PAUSE);
            }
        }
        Ok(())
    }
}
