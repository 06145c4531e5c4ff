//! Messages each by itself: sends what is queued, in order, and sees each to its acknowledgement.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::inbox::{Answered, Inbox};
use super::{ACK_TIMEOUT, MISSING_MAX, PAUSE, SAY_INTERVAL};
use crate::broker::nats::connection::Connection;
use crate::broker::nats::failed;
use crate::broker::nats::mapping::Subject;
use crate::broker::nats::producer::answer::{Verdict, stream, verdict};
use crate::broker::nats::producer::message::Message;
use crate::broker::nats::producer::{Outgoing, publishing};
use crate::broker::nats::window::Window;
use crate::broker::{BrokerError, BrokerErrorKind};

/// Messages that are sent before answers are looked at.
const RUN_MAX: usize = 256;
/// The same while the server takes nothing.
const TRIES: usize = 1;

/// A driver that is connected.
pub(super) struct Sending<'a> {
    connection: &'a Connection,
    queue: &'a mut mpsc::Receiver<Vec<Outgoing>>,
    window: &'a mut Window<Outgoing>,
    answers: Subscriber,
    /// Where answers come to.
    inbox: Inbox,
    epoch: u64,
    /// When something was answered last, or sent while nothing was on its way.
    heard: Instant,
    /// Whether something was answered since `heard` was set.
    heard_some: bool,
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
        queue: &'a mut mpsc::Receiver<Vec<Outgoing>>,
        window: &'a mut Window<Outgoing>,
    ) -> Result<Self, BrokerError> {
        let (inbox, answers) = Inbox::open(connection).await?;
        let (epoch, now) = (connection.link.epoch().unwrap_or(0), Instant::now());
        Ok(Self {
            connection,
            queue,
            window,
            answers,
            inbox,
            epoch,
            heard: now,
            heard_some: false,
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
            if let Some(refusal) = self.connection.refusal(|| format!("publish on {}", self.connection.address)) {
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
            self.take_all()?;
            let has_room = !self.waits || self.window.on_way() < TRIES;
            if may_send && self.window.is_behind() && has_room {
                tokio::task::yield_now().await;
                continue;
            }
            let wake = if may_send { self.heard + ACK_TIMEOUT } else { self.send_at.max(Instant::now() + PAUSE) };
            tokio::select! {
                biased;
                answer = self.answers.next(), if self.window.awaits() => {
                    let Some(answer) = answer else { return Err(self.gone()) };
                    self.take(&answer)?;
                    self.take_all()?;
                }
                // Not `heard`: what is queued has to be sent first.
                run = self.queue.recv() => match run {
                    Some(run) => run.into_iter().for_each(|outgoing| self.window.push(outgoing)),
                    None => return Err(self.gone()),
                },
                () = self.connection.link.changed() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Deals with all answers that are there.
    fn take_all(&mut self) -> Result<(), BrokerError> {
        while let Some(Some(answer)) = self.answers.next().now_or_never() {
            self.take(&answer)?;
        }
        // Once for all of them: a look at the clock costs as much as an answer.
        if std::mem::take(&mut self.heard_some) {
            self.heard = Instant::now();
        }
        Ok(())
    }

    fn gone(&self) -> BrokerError {
        failed(BrokerErrorKind::Closed, format!("publish on {}", self.connection.address), "the producer was closed")
    }

    /// Sends what is queued and what has to be sent again, as much as makes one run.
    async fn send(&mut self) -> Result<(), BrokerError> {
        let (mut unanswered, mut target): (Vec<u64>, Option<Arc<Subject>>) = (Vec::new(), None);
        for _ in 0..if self.waits { TRIES } else { RUN_MAX } {
            if !self.window.is_behind()
                && let Ok(run) = self.queue.try_recv()
            {
                run.into_iter().for_each(|outgoing| self.window.push(outgoing));
            }
            if !self.window.awaits() {
                self.heard = Instant::now();
            }
            let Some((number, outgoing)) = self.window.next() else { break };
            let made =
                outgoing.message.take().map_or_else(|| outgoing.run.work.maker.message(outgoing.at as usize), Ok);
            let message = match made {
                Ok(message) => message,
                Err(unmade) => {
                    self.refuse(number, unmade.kind, unmade.reason);
                    continue;
                }
            };
            let (client, Message { subject, headers, payload, .. }) = (&self.connection.client, message);
            // What goes to other subjects may be stored by another stream.
            let to = outgoing.run.work.maker.target();
            if !target.as_ref().is_some_and(|target| Arc::ptr_eq(target, to)) {
                target = Some(Arc::clone(to));
                self.inbox.end_run();
            }
            let reply = outgoing.run.work.maker.is_stored().then(|| self.inbox.lend(number));
            let sent = match &reply {
                Some(reply) => client.publish_with_reply_and_headers(subject, reply.clone(), headers, payload).await,
                None => {
                    unanswered.push(number);
                    client.publish_with_headers(subject, headers, payload).await
                }
            };
            match sent {
                Ok(()) => {}
                // The server that it is connected to now takes less than the one before.
                Err(error) if error.kind() == async_nats::client::PublishErrorKind::MaxPayloadExceeded => {
                    reply.iter().for_each(|reply| self.inbox.take_back(reply));
                    self.refuse(number, BrokerErrorKind::TooLarge, error.to_string());
                }
                Err(error) => {
                    let action = publishing(outgoing.subject(), &self.connection.address);
                    return Err(failed(BrokerErrorKind::Fatal, action, error));
                }
            }
        }
        self.inbox.end_run();
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
            outgoing.pending().acknowledge(1);
        }
    }

    /// From the first that is not acknowledged on, everything is sent again after a pause.
    fn send_again(&mut self, pause: Duration) {
        self.window.rewind();
        self.inbox.forget();
        (self.heard, self.send_at) = (Instant::now(), Instant::now() + pause);
    }

    fn refuse(&mut self, number: u64, kind: BrokerErrorKind, reason: String) {
        if let Some(outgoing) = self.window.end(number) {
            let action = publishing(outgoing.subject(), &self.connection.address);
            outgoing.pending().refuse(outgoing.at, failed(kind, action, reason));
        }
    }

    /// Deals with an answer.
    fn take(&mut self, answer: &async_nats::Message) -> Result<(), BrokerError> {
        let verdict = verdict(answer);
        let stored_by = (verdict == Verdict::Stored).then(|| stream(answer));
        let answered = self.inbox.answered(&answer.subject, stored_by.as_deref());
        self.heard_some |= answered != Answered::Nothing;
        let numbers = match answered {
            Answered::Nothing | Answered::Some => return Ok(()),
            Answered::These(numbers) => numbers,
            Answered::Unclear => {
                self.send_again(Duration::ZERO);
                return Ok(());
            }
        };
        let number = numbers.start;
        match verdict {
            Verdict::Stored => {
                numbers.for_each(|number| self.end(number));
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
                    let subject = self.window.get(number).map_or("", Outgoing::subject);
                    let address = &self.connection.address;
                    tracing::warn!(target: "fluxmill::nats", "publish to {subject} on {address}: {reason}; sent again until it works");
                }
                self.send_again(PAUSE);
            }
            Verdict::Missing => {
                let since = *self.missing_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= MISSING_MAX {
                    let subject = self.window.get(number).map_or("", Outgoing::subject);
                    let action = publishing(subject, &self.connection.address);
                    return Err(failed(BrokerErrorKind::UnknownTopic, action, "no stream stores this subject"));
                }
                self.send_again(PAUSE);
            }
        }
        Ok(())
    }
}
