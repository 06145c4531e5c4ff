//! Atomic batches: one at a time, in order, each until it is stored. What waits meanwhile for the same target goes
//! together in the next one: the server makes a store for each batch, so that many small ones take long.
//!
//! Batches on their way together are stored in the order in which they end, so there is never a second one.
//!
//! **What was stored before.** A server that finds one message of a batch among those it knows refuses the batch. So
//! does one whose answer to the same batch was lost; and after a crash events come again in other batches than before.
//! Then the stream is asked about each message, by publishing it with an expectation that it cannot meet
//! (`Nats-Expected-Last-Msg-Id`): a server says that it knows a message before it says that, and stores nothing either
//! way. What it knows has ended, what it will never take is refused, and the rest is sent as a batch again.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use async_nats::client::{PublishError, PublishErrorKind};
use async_nats::header::{
    NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL, NATS_BATCH_ID, NATS_BATCH_SEQUENCE, NATS_EXPECTED_LAST_MESSAGE_ID,
};
use async_nats::{HeaderMap, HeaderName, Subscriber};
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{ACK_TIMEOUT, MISSING_MAX, PAUSE, SAY_INTERVAL};
use crate::broker::nats::connection::Connection;
use crate::broker::nats::failed;
use crate::broker::nats::producer::answer::{Asked, Committed, asked, committed};
use crate::broker::nats::producer::batch::{Batch, take_out};
use crate::broker::nats::producer::message::Message;
use crate::broker::nats::producer::publishing;
use crate::broker::{BrokerError, BrokerErrorKind};
use crate::spec::ATOMIC_BATCH_MAX;

/// What the ids that no message has are made of: those of Fluxmill begin with a stream's or a topic's name.
const NO_MESSAGE: &str = "!";
/// How often a batch may be refused in a row for a reason that none of its messages is asked about gives.
const UNCLEAR_MAX: u32 = 3;

/// A driver that is connected.
pub(super) struct Batches<'a> {
    connection: &'a Connection,
    queue: &'a mut mpsc::Receiver<Batch>,
    /// What was taken from the queue, and how much of that is on its way.
    taken: &'a mut VecDeque<Batch>,
    together: usize,
    /// Messages of several batches that go together at most.
    most: usize,
    answers: Subscriber,
    /// What answers are sent to, without the number.
    inbox: String,
    /// The number of the next question.
    next: u64,
    /// The connection that is counted on; 0 before the first one.
    epoch: u64,
    missing_since: Option<Instant>,
    /// How often in a row the batch was refused without a reason that may pass.
    unclear: u32,
    /// When it was said last that nothing is taken.
    said: Option<Instant>,
}

impl<'a> Batches<'a> {
    pub(super) async fn new(
        connection: &'a Connection,
        queue: &'a mut mpsc::Receiver<Batch>,
        taken: &'a mut VecDeque<Batch>,
    ) -> Result<Self, BrokerError> {
        let inbox = connection.client.new_inbox();
        let action = || format!("publish on {}", connection.address);
        let answers = connection.client.subscribe(format!("{inbox}.*")).await;
        let answers = answers.map_err(|error| failed(BrokerErrorKind::Fatal, action(), error))?;
        Ok(Self {
            connection,
            queue,
            taken,
            together: 0,
            most: ATOMIC_BATCH_MAX,
            answers,
            inbox,
            next: 1,
            epoch: 0,
            missing_since: None,
            unclear: 0,
            said: None,
        })
    }

    /// Runs until it cannot go on.
    pub(super) async fn run(mut self) -> Result<(), BrokerError> {
        loop {
            if self.taken.is_empty() {
                let Some(batch) = self.queue.recv().await else {
                    return Err(self.failed(BrokerErrorKind::Closed, "the producer was closed"));
                };
                self.taken.push_back(batch);
            }
            self.gather();
            self.unclear = 0;
            while self.messages().next().is_some() {
                self.step().await?;
            }
            self.taken.drain(..self.together);
            self.together = 0;
        }
    }

    /// Takes as much of what waits as goes to the same place and fits into one batch.
    fn gather(&mut self) {
        let mut messages = 0;
        for at in 0.. {
            if at == self.taken.len() {
                let Ok(batch) = self.queue.try_recv() else { return };
                self.taken.push_back(batch);
            }
            messages += self.taken[at].messages.len();
            let fits = messages <= self.most && Arc::ptr_eq(&self.taken[at].target, &self.taken[0].target);
            if at > 0 && !fits {
                return;
            }
            self.together = at + 1;
        }
    }

    /// Tries once to store what is left of the batch.
    async fn step(&mut self) -> Result<(), BrokerError> {
        match self.commit().await? {
            // It was lost, or may have been.
            None => {}
            Some(Committed::Stored) => {
                self.missing_since = None;
                for batch in self.taken.iter_mut().take(self.together) {
                    let messages = std::mem::take(&mut batch.messages);
                    batch.work.acknowledge(u32::try_from(messages.len()).unwrap_or(u32::MAX));
                }
            }
            Some(Committed::Unclear { reason, may_pass }) => self.sort_out(&reason, may_pass).await?,
            // The server takes fewer messages than are put together here, but perhaps as many as come together.
            Some(Committed::TooMany(_)) if self.together > 1 => (self.most, self.together) = (0, 1),
            Some(Committed::Never(reason) | Committed::TooMany(reason)) => {
                return Err(self.failed(BrokerErrorKind::Settings, reason));
            }
            Some(Committed::Later(reason)) => self.pause(&reason).await,
            Some(Committed::Missing) => {
                let subject = self.subject().to_owned();
                self.missing(&subject)?;
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// Sends what is left of the batch, and waits for what becomes of it; none when that is not known.
    async fn commit(&mut self) -> Result<Option<Committed>, BrokerError> {
        self.connected().await?;
        let number = self.numbers(1).start;
        let id = self.batch_id(number);
        let count = self.messages().count();
        for (nth, message) in self.messages().enumerate() {
            let mut headers = message.headers.clone();
            headers.insert(NATS_BATCH_ID, id.as_str());
            headers.insert(NATS_BATCH_SEQUENCE, (nth + 1).to_string());
            let is_last = nth + 1 == count;
            if is_last {
                headers.insert(NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL);
            }
            match self.send(message, headers, is_last.then_some(number)).await {
                Ok(()) => {}
                // The server that it is connected to now takes less than the one before.
                Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                    return Ok(Some(Committed::Unclear { reason: error.to_string(), may_pass: false }));
                }
                Err(error) => return Err(self.failed(BrokerErrorKind::Fatal, error)),
            }
        }
        Ok(self.answer(&(number..number + 1)).await?.map(|(_, answer)| committed(&answer, count)))
    }

    /// Asks the stream about each message of a batch that it has refused, and ends those that are the reason.
    async fn sort_out(&mut self, reason: &str, may_pass: bool) -> Result<(), BrokerError> {
        let Some((asked, streams)) = self.ask().await? else { return Ok(()) };
        if let [one, other, ..] = streams.iter().collect::<Vec<_>>().as_slice() {
            let reason = format!("an atomic batch is within one stream, but {one} and {other} store its subjects");
            return Err(self.failed(BrokerErrorKind::Settings, reason));
        }
        let (before, address, mut asked) = (asked.len(), &self.connection.address, asked.into_iter());
        let (mut later, mut missing) = (None, None);
        for Batch { work, messages, .. } in self.taken.iter_mut().take(self.together) {
            let (mut refused, mut known) = (BTreeSet::new(), 0);
            let of_batch = std::mem::take(messages);
            for (message, asked) in of_batch.into_iter().zip(asked.by_ref()) {
                match asked {
                    Asked::Known => known += 1,
                    Asked::Refused(kind, reason) => {
                        refused.insert(message.cause);
                        work.refuse(message.at, failed(kind, publishing(&message.subject, address), reason));
                    }
                    Asked::New => messages.push(message),
                    Asked::Missing => {
                        missing = Some(message.subject.clone());
                        messages.push(message);
                    }
                    Asked::Later(reason) => {
                        later = Some(reason);
                        messages.push(message);
                    }
                }
            }
            take_out(work, messages, &refused);
            work.acknowledge(known);
        }
        let ended_some = self.messages().count() < before;
        if let Some(subject) = missing {
            self.missing(&subject)?;
            later = Some(format!("no stream stores {subject}"));
        } else {
            self.missing_since = None;
        }
        if ended_some {
            self.unclear = 0;
            return Ok(());
        }
        // Each by itself they may be taken: with one id in two of them the server refuses both for ever.
        if self.together > 1 {
            self.together = 1;
            return Ok(());
        }
        self.unclear += u32::from(!may_pass && later.is_none());
        if self.unclear >= UNCLEAR_MAX {
            return Err(self.failed(BrokerErrorKind::Fatal, reason));
        }
        self.pause(later.as_deref().unwrap_or(reason)).await;
        Ok(())
    }

    /// No stream takes a subject: for so long only that may be.
    fn missing(&mut self, subject: &str) -> Result<(), BrokerError> {
        let since = *self.missing_since.get_or_insert_with(Instant::now);
        if since.elapsed() < MISSING_MAX {
            return Ok(());
        }
        let action = publishing(subject, &self.connection.address);
        Err(failed(BrokerErrorKind::UnknownTopic, action, "no stream stores this subject"))
    }

    /// What the stream says of each message, and which streams they are of; none when the answers were lost.
    async fn ask(&mut self) -> Result<Option<(Vec<Asked>, BTreeSet<String>)>, BrokerError> {
        self.connected().await?;
        let count = self.messages().count();
        let numbers = self.numbers(count);
        let (mut told, mut missing) = (Vec::new(), 0);
        told.resize_with(count, || None);
        for (number, message) in numbers.clone().zip(self.messages()) {
            let mut headers = message.headers.clone();
            headers.insert(NATS_EXPECTED_LAST_MESSAGE_ID, self.no_message(number));
            match self.send(message, headers, Some(number)).await {
                Ok(()) => missing += 1,
                Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                    let at = usize::try_from(number - numbers.start).unwrap_or(usize::MAX);
                    told[at] = Some(Asked::Refused(BrokerErrorKind::TooLarge, error.to_string()));
                }
                Err(error) => return Err(self.failed(BrokerErrorKind::Fatal, error)),
            }
        }
        let mut streams = BTreeSet::new();
        while missing > 0 {
            let Some((at, answer)) = self.answer(&numbers).await? else { return Ok(None) };
            let (said, stream) = asked(&answer);
            missing -= usize::from(told[at].replace(said).is_none());
            if !stream.is_empty() {
                streams.insert(stream);
            }
        }
        Ok(Some((told.into_iter().flatten().collect(), streams)))
    }

    /// A batch's id: another one each time, since what has come of the one before would be in the way.
    fn batch_id(&self, number: u64) -> String {
        format!("{}-{number}", self.inbox.rsplit('.').next().unwrap_or_default())
    }

    /// An id that no message has, so long that the question is about as large as the message in its batch: what is too
    /// large for the stream there is then too large here.
    fn no_message(&self, number: u64) -> String {
        let sizes = [
            (NATS_BATCH_ID, self.batch_id(number).len()),
            (NATS_BATCH_SEQUENCE, self.messages().count().to_string().len()),
            (NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL.len()),
        ];
        let line = |name: HeaderName, value: usize| AsRef::<str>::as_ref(&name).len() + value + ": \r\n".len();
        let in_batch: usize = sizes.into_iter().map(|(name, value)| line(name, value)).sum();
        NO_MESSAGE.repeat(in_batch.saturating_sub(line(NATS_EXPECTED_LAST_MESSAGE_ID, 0)).max(1))
    }

    async fn send(&self, message: &Message, headers: HeaderMap, number: Option<u64>) -> Result<(), PublishError> {
        let (client, subject, payload) = (&self.connection.client, message.subject.clone(), message.payload.clone());
        match number {
            None => client.publish_with_headers(subject, headers, payload).await,
            Some(number) => {
                let reply = format!("{}.{number}", self.inbox);
                client.publish_with_reply_and_headers(subject, reply, headers, payload).await
            }
        }
    }

    /// The next answer to one of these questions, with its place among them; none when the connection was another
    /// meanwhile, or nothing comes.
    async fn answer(&mut self, numbers: &Range<u64>) -> Result<Option<(usize, async_nats::Message)>, BrokerError> {
        let until = Instant::now() + ACK_TIMEOUT;
        while self.connection.link.epoch() == Some(self.epoch) {
            self.permitted()?;
            tokio::select! {
                biased;
                answer = self.answers.next() => {
                    let Some(answer) = answer else {
                        return Err(self.failed(BrokerErrorKind::Closed, "the producer was closed"));
                    };
                    let number = answer.subject.rsplit('.').next().and_then(|number| number.parse::<u64>().ok());
                    // Another one is of something that was given up.
                    if let Some(number) = number.filter(|number| numbers.contains(number)) {
                        return Ok(Some((usize::try_from(number - numbers.start).unwrap_or(usize::MAX), answer)));
                    }
                }
                () = self.connection.link.changed() => {}
                () = tokio::time::sleep_until(until) => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Waits for a connection, to a server that knows atomic batches.
    async fn connected(&mut self) -> Result<(), BrokerError> {
        loop {
            self.permitted()?;
            match self.connection.link.epoch() {
                Some(epoch) if epoch == self.epoch => return Ok(()),
                // Others would store each message as it comes.
                Some(epoch) => {
                    if let Some(refusal) = self.connection.knows_no_batches() {
                        return Err(self.failed(BrokerErrorKind::Settings, refusal));
                    }
                    self.epoch = epoch;
                }
                None => self.connection.link.changed().await,
            }
        }
    }

    fn permitted(&self) -> Result<(), BrokerError> {
        let refusal = self.connection.refusal(|| format!("publish on {}", self.connection.address));
        refusal.map_or(Ok(()), Err)
    }

    /// Waits before the batch is sent once more, and says why.
    async fn pause(&mut self, reason: &str) {
        if self.said.is_none_or(|said| said.elapsed() >= SAY_INTERVAL) {
            self.said = Some(Instant::now());
            let (subject, address) = (self.subject(), &self.connection.address);
            tracing::warn!(target: "fluxmill::nats", "publish to {subject} on {address}: {reason}; sent again until it works");
        }
        tokio::time::sleep(PAUSE).await;
    }

    /// The numbers of so many questions.
    fn numbers(&mut self, count: usize) -> Range<u64> {
        let first = self.next;
        self.next += count as u64;
        first..self.next
    }

    /// What is left of the batch.
    fn messages(&self) -> impl Iterator<Item = &Message> {
        self.taken.iter().take(self.together).flat_map(|batch| &batch.messages)
    }

    fn subject(&self) -> &str {
        self.messages().next().map_or("", |message| &message.subject)
    }

    fn failed(&self, kind: BrokerErrorKind, reason: impl std::fmt::Display) -> BrokerError {
        failed(kind, publishing(self.subject(), &self.connection.address), reason)
    }
}
