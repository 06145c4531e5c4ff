//! A client of core NATS that blocks, and somebody who listens.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::{Client, ConnectOptions, HeaderMap, Message, Subscriber};
use futures_util::StreamExt as _;
use tokio::runtime::Runtime;

use super::wait::wait_until;

/// What is sent to find out whether somebody reads.
pub(crate) const PROBE: &[u8] = b"probe";
/// Messages that may wait for whoever listens.
const CAPACITY: usize = 1_000_000;

/// See the module. Clones are the same client.
#[derive(Clone)]
pub(crate) struct Core {
    runtime: Arc<Runtime>,
    client: Client,
}

/// Who listens to a subject.
pub(crate) struct Listener {
    core: Core,
    subscriber: Subscriber,
}

impl Core {
    /// Connects.
    ///
    /// # Errors
    /// When that fails.
    pub(crate) fn connect(url: &str, options: ConnectOptions) -> anyhow::Result<Self> {
        // With a thread of its own, so that messages are taken while nobody asks for them.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let options = options.subscription_capacity(CAPACITY);
        let client = runtime.block_on(options.connect(url))?;
        Ok(Self { runtime: Arc::new(runtime), client })
    }

    /// Publishes, and waits until the server has taken all of it.
    ///
    /// # Errors
    /// When that fails.
    pub(crate) fn publish(
        &self,
        messages: impl IntoIterator<Item = (String, HeaderMap, Vec<u8>)>,
    ) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            for (subject, headers, payload) in messages {
                self.client.publish_with_headers(subject, headers, payload.into()).await?;
            }
            // The answer to what comes last says that the server has all before it.
            let last = self.client.new_inbox();
            let mut answer = self.client.subscribe(last.clone()).await?;
            self.client.publish(last, "".into()).await?;
            tokio::time::timeout(Duration::from_secs(60), answer.next()).await?.context("the connection ended")?;
            Ok(())
        })
    }

    /// Listens to a subject from now on.
    ///
    /// # Errors
    /// When that fails.
    pub(crate) fn listen(&self, subject: &str) -> anyhow::Result<Listener> {
        let subscriber = self.runtime.block_on(self.client.subscribe(subject.to_owned()))?;
        self.publish([])?;
        Ok(Listener { core: self.clone(), subscriber })
    }

    /// Waits until somebody reads a subject. Who does gets [`PROBE`] for it.
    ///
    /// # Errors
    /// When nobody does within `limit`.
    pub(crate) fn wait_for_reader(&self, limit: Duration, subject: &str) -> anyhow::Result<()> {
        wait_until(limit, &format!("somebody to read {subject}"), || {
            let inbox = self.client.new_inbox();
            let mut listener = self.listen(&inbox)?;
            let asked = self.client.publish_with_reply(subject.to_owned(), inbox, PROBE.into());
            self.runtime.block_on(asked)?;
            // When nobody reads the server says so, before it answers what comes later.
            Ok(listener.rest()?.is_empty().then_some(()))
        })
    }
}

impl Listener {
    /// The next messages but for the probes.
    ///
    /// # Errors
    /// When there are not so many within `limit`.
    pub(crate) fn take(&mut self, limit: Duration, count: usize) -> anyhow::Result<Vec<Message>> {
        let mut taken = Vec::with_capacity(count);
        let all = async {
            while taken.len() < count {
                let message = self.subscriber.next().await.context("the connection ended")?;
                if message.payload != PROBE {
                    taken.push(message);
                }
            }
            anyhow::Ok(())
        };
        let ended = self.core.runtime.block_on(async { tokio::time::timeout(limit, all).await });
        let found = taken.len();
        ended.with_context(|| format!("{found} of {count} messages came"))??;
        Ok(taken)
    }

    /// What has come until now, but for the probes.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(crate) fn rest(&mut self) -> anyhow::Result<Vec<Message>> {
        // Whatever the server had for us before is here when this is.
        self.core.publish([])?;
        let mut taken = Vec::new();
        let mut next =
            || self.core.runtime.block_on(async { futures_util::FutureExt::now_or_never(self.subscriber.next()) });
        while let Some(Some(message)) = next() {
            if message.payload != PROBE {
                taken.push(message);
            }
        }
        Ok(taken)
    }
}
