//! A client of JetStream that blocks, for the tests.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::stream::Config;
use async_nats::jetstream::{self, Context, consumer};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use tokio::runtime::Runtime;

use crate::support::feeder::{FED_AT_MOST, Feeder};
use crate::support::wait::{pace, wait_until};

/// The longest that a message may take that is there.
const READ: Duration = Duration::from_secs(60);
/// The longest that a server may be away from a load.
const AWAY: Duration = Duration::from_secs(120);
/// How long a load waits for an acknowledgement before it publishes once more, and for its server.
const AGAIN: Duration = Duration::from_secs(1);
/// Messages that are published before their acknowledgements are looked at.
const WINDOW: usize = 500;

/// A message: its subject, headers and payload.
pub(crate) type Message = (String, HeaderMap, Vec<u8>);

/// A message that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) subject: String,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Vec<u8>,
}

impl Stored {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.as_str())
    }
}

/// A client of JetStream that blocks.
pub(crate) struct Jet {
    runtime: Runtime,
    context: Context,
}

impl Jet {
    /// Connects.
    ///
    /// # Errors
    /// When that fails.
    pub(crate) fn new(url: &str, options: async_nats::ConnectOptions) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let context = runtime.block_on(async { anyhow::Ok(jetstream::new(options.connect(url).await?)) })?;
        Ok(Self { runtime, context })
    }

    /// Creates a stream that keeps everything on disk.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) fn create(&self, name: &str, subjects: &[&str]) -> anyhow::Result<()> {
        let subjects = subjects.iter().map(|&subject| subject.to_owned()).collect();
        self.create_with(Config { name: name.to_owned(), subjects, ..Config::default() })
    }

    /// Creates a stream.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) fn create_with(&self, config: Config) -> anyhow::Result<()> {
        self.runtime.block_on(self.context.create_stream(config)).map(|_| ()).context("create a stream")
    }

    /// Changes a stream.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) fn update(&self, config: Config) -> anyhow::Result<()> {
        self.runtime.block_on(self.context.update_stream(config)).map(|_| ()).context("change a stream")
    }

    /// Publishes and waits until all is acknowledged.
    ///
    /// # Errors
    /// When something is not.
    pub(crate) fn publish(&self, messages: impl IntoIterator<Item = Message>) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let mut acks = Vec::with_capacity(WINDOW);
            for (subject, headers, payload) in messages {
                acks.push(self.context.publish_with_headers(subject, headers, payload.into()).await?);
                if acks.len() == WINDOW {
                    for ack in acks.drain(..) {
                        ack.await?;
                    }
                }
            }
            for ack in acks {
                ack.await?;
            }
            Ok(())
        })
    }

    /// Publishes until the server has stored everything, which may go away and come back meanwhile. Each message needs
    /// a `Nats-Msg-Id`, or may be stored twice.
    ///
    /// # Errors
    /// When the server stays away.
    pub(crate) fn store(&self, mut messages: Vec<Message>) -> anyhow::Result<()> {
        let deadline = Instant::now() + AWAY;
        while !messages.is_empty() {
            ensure!(Instant::now() < deadline, "{} messages could not be stored", messages.len());
            messages = self.runtime.block_on(async {
                let sent = join_all(messages.into_iter().map(async |message| {
                    let (subject, headers, payload) = message.clone();
                    let sent = self.context.publish_with_headers(subject, headers, payload.into()).await;
                    let stored = match sent {
                        Ok(acknowledgement) => acknowledgement.await.is_ok(),
                        Err(_) => false,
                    };
                    (!stored).then_some(message)
                }));
                sent.await.into_iter().flatten().collect()
            });
        }
        Ok(())
    }

    /// Publishes the messages that `make` gives for 0, 1, 2, ... on a thread of its own, at most `rate` a second, until
    /// it is told to stop; each is stored in the end, whatever the server goes through. See [`store`](Self::store).
    ///
    /// # Errors
    /// When the client cannot connect.
    pub(crate) fn feed_at(url: &str, rate: u64, make: fn(u64) -> Message) -> anyhow::Result<Feeder> {
        // The server comes back soon: a load that waits longer is none.
        let options = async_nats::ConnectOptions::new().reconnect_delay_callback(|_| AGAIN / 10);
        let mut client = Self::new(url, options)?;
        client.context.set_timeout(AGAIN);
        Ok(Feeder::start(move |stop| {
            let mut number = 0;
            while !stop.load(Relaxed) && number < FED_AT_MOST {
                let (portion, began) = (number..number + rate / 50, Instant::now());
                number = portion.end;
                client.store(portion.map(make).collect())?;
                pace((Duration::from_secs(1) / 50).saturating_sub(began.elapsed()));
            }
            Ok(number)
        }))
    }

    /// How many messages a stream has taken so far; 0 while it is not there.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(crate) fn count(&self, stream: &str) -> anyhow::Result<u64> {
        self.runtime.block_on(async {
            match self.context.get_stream(stream).await {
                Ok(stream) => Ok(stream.cached_info().state.last_sequence),
                Err(error) if error.to_string().contains("not found") => Ok(0),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// How many messages a stream holds now.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(crate) fn held(&self, stream: &str) -> anyhow::Result<u64> {
        self.runtime.block_on(async { Ok(self.context.get_stream(stream).await?.cached_info().state.messages) })
    }

    /// Waits until a stream has taken so many messages. A server that is away is waited for.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub(crate) fn wait_for(&self, limit: Duration, stream: &str, messages: u64) -> anyhow::Result<u64> {
        let mut last = 0;
        let found = wait_until(limit, &format!("{messages} messages in {stream}"), || {
            last = self.count(stream).unwrap_or(last);
            Ok((last >= messages).then_some(last))
        });
        found.with_context(|| format!("{last} are there"))
    }

    /// What the server says of a consumer.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn consumer(&self, stream: &str, durable: &str) -> anyhow::Result<consumer::Info> {
        self.runtime.block_on(async {
            let stream = self.context.get_stream(stream).await?;
            Ok(stream.consumer_info(durable).await?)
        })
    }

    /// Creates a consumer.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) fn create_consumer(&self, stream: &str, config: consumer::pull::Config) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let stream = self.context.get_stream(stream).await?;
            stream.create_consumer(config).await?;
            Ok(())
        })
    }

    /// Deletes a stream.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn delete(&self, stream: &str) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            self.context.delete_stream(stream).await?;
            Ok(())
        })
    }

    /// Deletes a consumer.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn delete_consumer(&self, stream: &str, durable: &str) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let stream = self.context.get_stream(stream).await?;
            stream.delete_consumer(durable).await?;
            Ok(())
        })
    }

    /// Everything that a stream holds, in order.
    ///
    /// # Errors
    /// When not all of it comes.
    pub(crate) fn read(&self, stream: &str) -> anyhow::Result<Vec<Stored>> {
        self.runtime.block_on(async {
            let stream = self.context.get_stream(stream).await?;
            let held = stream.cached_info().state.messages;
            let mut read = Vec::new();
            if held == 0 {
                return Ok(read);
            }
            let config = consumer::pull::OrderedConfig::default();
            let mut messages = stream.create_consumer(config).await?.messages().await?;
            while (read.len() as u64) < held {
                let message = tokio::time::timeout(READ, messages.next()).await?.context("the end of a stream")??;
                let (message, _) = message.split();
                read.push(Stored {
                    subject: message.subject.to_string(),
                    headers: message.headers.unwrap_or_default(),
                    payload: message.payload.to_vec(),
                });
            }
            ensure!(read.len() as u64 == held, "{} of {held} messages", read.len());
            Ok(read)
        })
    }
}
