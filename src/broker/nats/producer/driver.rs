//! Sends what is queued, in order, and sees each message to its acknowledgement.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{StatusCode, Subscriber};
use futures_util::{FutureExt as _, StreamExt as _};
use serde::Deserialize;
use tokio::sync::{OnceCell, mpsc};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Outgoing;
use crate::broker::nats::connection::Connection;
use crate::broker::nats::failed;
use crate::broker::nats::window::Window;
use crate::broker::{BrokerError, BrokerErrorKind};
use crate::spec::NatsConnection;

/// How long an acknowledgement may take before everything without one is sent again.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait before something is sent again that the server did not take for the moment.
const PAUSE: Duration = Duration::from_millis(250);
/// How long no stream may take a subject: a server that has just started may not know its streams yet.
const MISSING_MAX: Duration = Duration::from_secs(10);
/// Messages that are sent before answers are looked at.
const RUN_MAX: usize = 256;

/// The same while the server takes nothing.
const TRIES: usize = 1;
/// How often it is said at most that something is not taken.
const SAY_INTERVAL: Duration = Duration::from_secs(30);

/// The server's error codes that are about one message only: it is too large for the stream.
const TOO_LARGE: u64 = 10_054;

/// What must be run for a producer.
pub struct NatsDriver {
    connection: NatsConnection,
    client_id: String,
    queue: mpsc::Receiver<Outgoing>,
    largest: Arc<OnceCell<usize>>,
    broken: Arc<Mutex<Option<BrokerError>>>,
    close: CancellationToken,
    closed: DropGuard,
}

/// What a stream answers to a message.
#[derive(Debug, Deserialize)]
struct Answer {
    error: Option<Refusal>,
}

/// Why it does not take it.
#[derive(Debug, Deserialize)]
struct Refusal {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// What an answer means.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Stored,
    /// This message never will be.
    Refused(BrokerErrorKind, String),
    /// Not now.
    Later(String),
    /// No stream takes the subject, as far as the server knows.
    Missing,
}

impl NatsDriver {
    pub(super) fn new(
        connection: NatsConnection,
        client_id: &str,
        queue: mpsc::Receiver<Outgoing>,
        largest: Arc<OnceCell<usize>>,
        broken: Arc<Mutex<Option<BrokerError>>>,
        [close, closed]: [&CancellationToken; 2],
    ) -> Self {
        let (client_id, close, closed) = (client_id.to_owned(), close.clone(), closed.clone().drop_guard());
        Self { connection, client_id, queue, largest, broken, close, closed }
    }

    /// Runs until the producer is closed. What cannot go on is told to whoever publishes.
    pub async fn run(self) {
        let Self { connection, client_id, mut queue, largest, broken, close, closed } = self;
        let mut window = Window::default();
        let work = async {
            let connection = Connection::open(&connection, &client_id, false).await?;
            // Who waits for it has nothing queued yet.
            let _ = largest.set(connection.client.max_payload());
            Sending::new(&connection, &mut queue, &mut window).await?.run().await
        };
        let failure = tokio::select! {
            failure = work => failure.err(),
            () = close.cancelled() => None,
        };
        if let Some(error) = failure {
            *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
            window.drain().for_each(|outgoing| outgoing.work.fail(&error));
            let refuse = async {
                while let Some(outgoing) = queue.recv().await {
                    outgoing.work.fail(&error);
                }
            };
            tokio::select! {
                () = refuse => {}
                () = close.cancelled() => {}
            }
        }
        drop((queue, window, closed));
    }
}

impl std::fmt::Debug for NatsDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsDriver").field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

/// A driver that is connected.
struct Sending<'a> {
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
    async fn new(
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

    async fn run(mut self) -> Result<(), BrokerError> {
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
            let (client, subject) = (&self.connection.client, outgoing.subject.clone());
            let (headers, payload) = (outgoing.headers.clone(), outgoing.payload.clone());
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
                    let action = format!("publish to {} on {}", outgoing.subject, self.connection.address);
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
            let action = format!("publish to {} on {}", outgoing.subject, self.connection.address);
            outgoing.work.refuse(outgoing.at, failed(kind, action, reason));
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
                    let subject = self.window.get(number).map_or("", |outgoing| &outgoing.subject);
                    let address = &self.connection.address;
                    tracing::warn!(target: "fluxmill::nats", "publish to {subject} on {address}: {reason}; sent again until it works");
                }
                self.send_again(PAUSE);
            }
            Verdict::Missing => {
                let since = *self.missing_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= MISSING_MAX {
                    let subject = self.window.get(number).map_or("", |outgoing| &outgoing.subject);
                    let action = format!("publish to {subject} on {}", self.connection.address);
                    return Err(failed(BrokerErrorKind::UnknownTopic, action, "no stream stores this subject"));
                }
                self.send_again(PAUSE);
            }
        }
        Ok(())
    }
}

/// What an answer means.
fn verdict(answer: &async_nats::Message) -> Verdict {
    if answer.status == Some(StatusCode::NO_RESPONDERS) {
        return Verdict::Missing;
    }
    match serde_json::from_slice(&answer.payload) {
        Ok(Answer { error: None }) => Verdict::Stored,
        Ok(Answer { error: Some(Refusal { err_code: TOO_LARGE, description, .. }) }) => {
            Verdict::Refused(BrokerErrorKind::TooLarge, description)
        }
        // What is wrong with this message, not with the server or the room that it has.
        Ok(Answer { error: Some(Refusal { code: 400, err_code, description }) })
            if !is_full(err_code, &description) =>
        {
            Verdict::Refused(BrokerErrorKind::Refused, format!("{description} ({err_code})"))
        }
        Ok(Answer { error: Some(refusal) }) => Verdict::Later(refusal.description),
        Err(_) => Verdict::Later("its answer cannot be read".to_owned()),
    }
}

/// Whether a stream has reached a bound.
fn is_full(err_code: u64, description: &str) -> bool {
    // 10077 is "stream store failed": the reason is in its words.
    err_code == 10_077 || description.contains("maximum messages") || description.contains("maximum bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(payload: &str, status: Option<StatusCode>) -> async_nats::Message {
        async_nats::Message {
            subject: "_INBOX.x.7".into(),
            reply: None,
            payload: payload.to_owned().into(),
            headers: None,
            status,
            description: None,
            length: 0,
        }
    }

    #[test]
    fn answers_are_told_apart() {
        let of = |payload| verdict(&answer(payload, None));
        assert_eq!(of(r#"{"stream":"X","seq":1}"#), Verdict::Stored);
        assert_eq!(of(r#"{"stream":"X","seq":1,"duplicate":true}"#), Verdict::Stored);
        let too_large =
            r#"{"error":{"code":400,"err_code":10054,"description":"message size exceeds maximum allowed"}}"#;
        assert!(matches!(of(too_large), Verdict::Refused(BrokerErrorKind::TooLarge, _)));
        let full = r#"{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"}}"#;
        assert!(matches!(of(full), Verdict::Later(_)));
        let wrong = r#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 5"}}"#;
        assert!(matches!(of(wrong), Verdict::Refused(BrokerErrorKind::Refused, _)));
        assert!(matches!(of("?"), Verdict::Later(_)));
        assert_eq!(verdict(&answer("", Some(StatusCode::NO_RESPONDERS))), Verdict::Missing);
    }
}
