//! The copy. What makes it fast, each tried against the plain way of async-nats:
//!
//! - Messages are asked for by requests of its own, into one subscription: no context is copied for each message.
//! - Acknowledgements of what is published come to one subscription, too, and are counted: no channel, timer and boxed
//!   future for each message.
//! - One acknowledgement for everything that was published, and is acknowledged itself.
//! - A connection for each direction.

use std::collections::VecDeque;

use anyhow::{Context as _, bail, ensure};
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::{Client, HeaderMap, HeaderName, HeaderValue, Message, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};

/// Messages that are asked for at once; the next request goes out when half of them came.
const PULL: usize = 5_000;
/// Messages that may wait for acknowledgements.
const WINDOW: usize = 8_192;
/// How many messages are acknowledged at once, at least, but for the last.
const ACKNOWLEDGE: usize = 1_000;

/// What is added to each message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Adds {
    /// Nothing.
    Nothing,
    /// An id made of where it came from: as a program does that wants no doubled message after a crash.
    Id,
    /// The id, the key and the time, as Fluxmill writes them.
    IdKeyTime,
}

/// Copies the first `events` messages of a stream to another one.
///
/// # Errors
/// When the server refuses anything.
pub async fn copy(url: &str, input: &str, output: &str, events: u64, adds: Adds) -> anyhow::Result<()> {
    let reading = async_nats::ConnectOptions::new().subscription_capacity(65_536).connect(url).await?;
    let writing = async_nats::ConnectOptions::new().subscription_capacity(65_536).connect(url).await?;
    let context = async_nats::jetstream::new(reading.clone());
    let name = format!("copy-{output}");
    let config = pull::Config {
        durable_name: Some(name.clone()),
        ack_policy: AckPolicy::All,
        max_ack_pending: 100_000,
        ..pull::Config::default()
    };
    context.get_stream(input).await?.create_consumer(config).await?;
    let mut source = Source::new(&reading, format!("$JS.API.CONSUMER.MSG.NEXT.{input}.{name}")).await?;
    let mut sink = Sink::new(&writing).await?;
    let (mut copied, mut subject) = (0, String::new());
    while copied < events {
        let message = source.next(&mut sink).await?;
        copied += 1;
        subject.clear();
        subject.push_str(output);
        subject.push_str(&message.subject[input.len()..]);
        let mut headers = message.headers.unwrap_or_default();
        let reply = message.reply.context("a message without a place to acknowledge it")?;
        if adds != Adds::Nothing {
            headers.insert(NATS_MESSAGE_ID, format!("{input}:{copied}:{name}:default:0"));
        }
        if adds == Adds::IdKeyTime {
            headers.insert(HeaderName::from_static("Fluxmill-Key"), &subject[output.len() + 1..]);
            let nanos: u64 = reply.rsplit('.').nth(1).context("no time")?.parse()?;
            headers.insert(HeaderName::from_static("Fluxmill-Timestamp"), HeaderValue::from(nanos / 1_000_000));
        }
        sink.publish(&subject, headers, message.payload, reply).await?;
        if sink.ended >= ACKNOWLEDGE {
            sink.ended = 0;
            let reply = sink.last.take().context("nothing was acknowledged")?;
            reading.publish(reply, "+ACK".into()).await?;
        }
    }
    sink.finish().await?;
    let reply = sink.last.take().context("nothing was acknowledged")?;
    reading.request(reply, "+ACK".into()).await?;
    Ok(())
}

/// The messages of a consumer.
struct Source<'a> {
    client: &'a Client,
    ask: String,
    inbox: String,
    messages: Subscriber,
    asked: usize,
}

impl<'a> Source<'a> {
    async fn new(client: &'a Client, ask: String) -> anyhow::Result<Self> {
        let inbox = client.new_inbox();
        let messages = client.subscribe(inbox.clone()).await?;
        Ok(Self { client, ask, inbox, messages, asked: 0 })
    }

    /// The next message. What is published is seen to meanwhile.
    async fn next(&mut self, sink: &mut Sink<'_>) -> anyhow::Result<Message> {
        loop {
            if self.asked <= PULL / 2 {
                let request = format!(r#"{{"batch":{PULL},"expires":30000000000}}"#);
                self.client.publish_with_reply(self.ask.clone(), self.inbox.clone(), request.into()).await?;
                self.asked += PULL;
            }
            let message = match self.messages.next().now_or_never() {
                Some(message) => message,
                None => tokio::select! {
                    message = self.messages.next() => message,
                    ended = sink.end_some(), if !sink.waiting.is_empty() => {
                        ended?;
                        continue;
                    }
                },
            };
            let message = message.context("the connection is closed")?;
            match message.status {
                None => {
                    self.asked -= 1;
                    return Ok(message);
                }
                Some(status) => bail!("{status} {}", message.description.unwrap_or_default()),
            }
        }
    }
}

/// What is published.
struct Sink<'a> {
    client: &'a Client,
    inbox: Subject,
    answers: Subscriber,
    /// Where to acknowledge what each message was made of; in the order in which answers come.
    waiting: VecDeque<Subject>,
    /// The last of those whose answers came, and how many there were since it was taken.
    last: Option<Subject>,
    ended: usize,
}

impl<'a> Sink<'a> {
    async fn new(client: &'a Client) -> anyhow::Result<Self> {
        let inbox = client.new_inbox();
        let answers = client.subscribe(inbox.clone()).await?;
        Ok(Self { client, inbox: inbox.into(), answers, waiting: VecDeque::new(), last: None, ended: 0 })
    }

    async fn publish(
        &mut self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
        from: Subject,
    ) -> anyhow::Result<()> {
        let reply = self.inbox.clone();
        match headers.is_empty() {
            true => self.client.publish_with_reply(subject.to_owned(), reply, payload).await?,
            false => self.client.publish_with_reply_and_headers(subject.to_owned(), reply, headers, payload).await?,
        }
        self.waiting.push_back(from);
        while self.waiting.len() >= WINDOW {
            self.end_some().await?;
        }
        Ok(())
    }

    /// Waits for an answer, and takes all that are there.
    async fn end_some(&mut self) -> anyhow::Result<()> {
        let mut answer = self.answers.next().await;
        while let Some(stored) = answer {
            // The stream answers in the order in which it stores, and it stores in the order of this connection.
            let is_stored = stored.payload.starts_with(b"{\"stream\":") && stored.status.is_none();
            ensure!(is_stored, "not stored: {:?} {}", stored.status, String::from_utf8_lossy(&stored.payload));
            self.last = Some(self.waiting.pop_front().context("an answer to nothing")?);
            self.ended += 1;
            match self.answers.next().now_or_never() {
                Some(next) => answer = next,
                None => return Ok(()),
            }
        }
        bail!("the connection is closed")
    }

    async fn finish(&mut self) -> anyhow::Result<()> {
        while !self.waiting.is_empty() {
            self.end_some().await?;
        }
        Ok(())
    }
}
