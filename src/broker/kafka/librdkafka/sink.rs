//! Columns to Kafka: one idempotent producer for a pipeline, and a sink for each topic it publishes to.
//!
//! Back-pressure comes from delivery reports: when the producer's queue is full, publishing waits until a report has
//! made room. Nothing sleeps and nothing polls for it.

use std::future::ready;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext, PurgeConfig};

use super::deliveries::{Deliveries, Ticket, not_published};
use crate::broker::kafka::ffi::{self, Queue, Report, Told, Topic};
use crate::broker::kafka::log::Lines;
use crate::broker::kafka::token::Tokens;
use crate::broker::kafka::{self, address, error};
use crate::broker::{Acknowledgement, BrokerError, BrokerErrorKind, PublishReport, Sink};
use crate::event::Publication;
use crate::spec::KafkaConnection;

/// Rows handed over before other tasks of the runtime get their turn.
const RUN_MAX: usize = 512;
/// How long the producer's thread waits for reports before it looks whether it is to end.
const SERVE_WAIT: Duration = Duration::from_millis(100);
/// How long purged events may take to be told as such.
const PURGE_TIMEOUT: Duration = Duration::from_secs(1);

/// The producer's context. Reports reach it only while the client is being dropped; before, [`Queue`] has them.
struct Context {
    deliveries: Arc<Deliveries>,
    lines: Arc<Lines>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, kind: &str, text: &str) {
        self.lines.line(level, kind, text);
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "fluxmill::kafka", "{error}: {reason}");
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let result = match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(error::code(error).unwrap_or(RDKafkaErrorCode::Fail)),
        };
        self.deliveries.report(std::iter::once(Report { opaque, result, bytes: 0 }));
    }
}

/// The client and its topics. Topics go first.
struct Live {
    topics: Vec<(String, Topic<Context>)>,
    client: Arc<BaseProducer<Context>>,
}

struct Shared {
    /// None once the producer was closed.
    live: RwLock<Option<Live>>,
    deliveries: Arc<Deliveries>,
    address: String,
}

/// One idempotent producer: acks=all, murmur2 partitioning, order kept within each partition.
///
/// Close it with [`LibrdkafkaProducer::close`], on a thread that may block. Dropped unclosed, it gives up what is in
/// flight, and may block its thread for about a second.
pub struct LibrdkafkaProducer {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for LibrdkafkaProducer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LibrdkafkaProducer").field("address", &self.shared.address).finish_non_exhaustive()
    }
}

impl LibrdkafkaProducer {
    /// Sets a producer up. Does not block, and does not wait for the cluster: publishing does.
    ///
    /// # Errors
    /// When a setting is not accepted.
    #[expect(clippy::disallowed_methods, reason = "delivery reports need a thread; the producer joins it")]
    pub fn connect(connection: &KafkaConnection, client_id: &str) -> Result<Self, BrokerError> {
        let address = address(connection);
        let action = format!("set up a producer for {address}");
        let (deliveries, lines) = (Arc::new(Deliveries::default()), Arc::new(Lines::new(client_id)));
        let context = Context { deliveries: deliveries.clone(), lines: lines.clone() };
        let config = kafka::producer(connection, client_id)?;
        let tokens = Tokens::of(&config);
        let client: BaseProducer<Context> =
            config.create_with_context(context).map_err(|error| error::failed(&action, &error))?;
        let client = Arc::new(client);
        ffi::first_token(client.client(), &tokens).map_err(|error| error::failed(&action, &error))?;
        let fatal = |reason: &str| BrokerError {
            kind: BrokerErrorKind::Fatal,
            action: action.clone(),
            reason: reason.to_owned(),
        };
        let queue = Queue::new(&client).ok_or_else(|| fatal("the client has no queue"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let reports = Reports {
            queue,
            client: client.clone(),
            deliveries: deliveries.clone(),
            lines,
            tokens,
            address,
            down: false,
        };
        let address = reports.address.clone();
        let thread = std::thread::Builder::new()
            .name("kafka-reports".into())
            .spawn({
                let stop = stop.clone();
                move || reports.serve(&stop)
            })
            .map_err(|error| fatal(&error.to_string()))?;
        let live = RwLock::new(Some(Live { topics: Vec::new(), client }));
        Ok(Self { shared: Arc::new(Shared { live, deliveries, address }), stop, thread: Some(thread) })
    }

    /// A sink for a topic. Many may share one topic; each is cheap to clone. For a name that cannot be a topic's,
    /// publishing fails.
    pub fn sink(&self, topic: &str) -> LibrdkafkaSink {
        LibrdkafkaSink { shared: self.shared.clone(), topic: topic.into(), handle: self.handle(topic) }
    }

    fn handle(&self, topic: &str) -> Result<usize, BrokerError> {
        let mut live = self.shared.live.write().unwrap_or_else(PoisonError::into_inner);
        let Some(live) = live.as_mut() else { return Err(closed(&self.shared.address)) };
        if let Some(index) = live.topics.iter().position(|(name, _)| name == topic) {
            return Ok(index);
        }
        let action = || format!("publish to topic {topic} on {}", self.shared.address);
        let handle = Topic::new(&live.client, topic).map_err(|code| error::coded(action(), code, ""))?;
        live.topics.push((topic.to_owned(), handle));
        Ok(live.topics.len() - 1)
    }

    /// Waits up to `timeout` until everything published is acknowledged, then closes; what was not is given up with
    /// a warning, and its acknowledgements are errors. Blocks: call it on a thread that may. Sinks that are left
    /// publish nothing any more.
    pub fn close(mut self, timeout: Duration) {
        let given_up = self.shut(timeout);
        if given_up > 0 {
            let address = &self.shared.address;
            tracing::warn!(target: "fluxmill::kafka", "{given_up} events were not acknowledged by {address} at the end");
        }
    }

    /// Closes; returns how many events were given up.
    fn shut(&mut self, timeout: Duration) -> i32 {
        let Some(thread) = self.thread.take() else { return 0 };
        let mut given_up = 0;
        let client = {
            let live = self.shared.live.read().unwrap_or_else(PoisonError::into_inner);
            live.as_ref().map(|live| live.client.clone())
        };
        if let Some(client) = client
            && !ffi::flush(&client, timeout)
        {
            given_up = client.in_flight_count();
            client.purge(PurgeConfig::default().queue().inflight());
            ffi::flush(&client, PURGE_TIMEOUT);
        }
        self.stop.store(true, Relaxed);
        if thread.join().is_err() {
            tracing::error!(target: "fluxmill::kafka", "the thread that takes delivery reports panicked");
        }
        self.shared.deliveries.fail_all(&closed(&self.shared.address));
        let live = self.shared.live.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(live);
        given_up
    }
}

impl Drop for LibrdkafkaProducer {
    fn drop(&mut self) {
        self.shut(Duration::ZERO);
    }
}

fn closed(address: &str) -> BrokerError {
    BrokerError {
        kind: BrokerErrorKind::Closed,
        action: format!("publish to {address}"),
        reason: "the producer was closed".into(),
    }
}

/// What the producer's thread works with.
struct Reports {
    queue: Queue<Context>,
    client: Arc<BaseProducer<Context>>,
    deliveries: Arc<Deliveries>,
    lines: Arc<Lines>,
    tokens: Tokens,
    address: String,
    down: bool,
}

impl Reports {
    fn serve(mut self, stop: &AtomicBool) {
        while !stop.load(Relaxed) {
            let mut reported = false;
            let mut failed = None;
            self.queue.serve(SERVE_WAIT, |told| match told {
                Told::Reports(reports) => {
                    self.deliveries.report(reports);
                    reported = true;
                }
                Told::Error(code, reason) => failed = Some((code, reason)),
                Told::Line(level, kind, text) => self.lines.line(level, &kind, &text),
                Told::TokenWanted => ffi::next_token(self.client.client(), &self.tokens),
            });
            if reported {
                // Only now: the room is there once the reports are freed.
                self.deliveries.ring();
                if std::mem::take(&mut self.down) {
                    tracing::info!(target: "fluxmill::kafka", "{} takes events again", self.address);
                }
            }
            if let Some((code, reason)) = failed {
                self.failed(code, &reason);
            }
        }
    }

    /// An error that concerns the whole client.
    fn failed(&mut self, code: RDKafkaErrorCode, reason: &str) {
        let action = format!("publish to {}", self.address);
        match code {
            RDKafkaErrorCode::Fatal => {
                let (code, reason) = self.client.client().fatal_error().unwrap_or((code, reason.to_owned()));
                let kind = match error::kind(code) {
                    BrokerErrorKind::Denied => BrokerErrorKind::Denied,
                    _ => BrokerErrorKind::Fatal,
                };
                self.deliveries.fail_all(&BrokerError { kind, action, reason });
            }
            RDKafkaErrorCode::Authentication if error::is_broken_handshake(reason) => {}
            RDKafkaErrorCode::AllBrokersDown => {
                if !std::mem::replace(&mut self.down, true) {
                    tracing::warn!(target: "fluxmill::kafka", "{} is not reachable; waiting for it", self.address);
                }
            }
            // One topic's trouble is told by its own reports.
            _ if error::kind(code) == BrokerErrorKind::Denied && code != RDKafkaErrorCode::TopicAuthorizationFailed => {
                self.deliveries.fail_all(&error::coded(action, code, reason));
            }
            _ => tracing::debug!(target: "fluxmill::kafka", "{action}: {code}: {reason}"),
        }
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        // Without this thread no acknowledgement comes any more; those who wait must learn of it.
        self.deliveries.fail_all(&closed(&self.address));
    }
}

/// Publishes to one topic.
#[derive(Clone)]
pub struct LibrdkafkaSink {
    shared: Arc<Shared>,
    topic: Arc<str>,
    /// The topic's place among those of the producer.
    handle: Result<usize, BrokerError>,
}

impl std::fmt::Debug for LibrdkafkaSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LibrdkafkaSink").field("topic", &self.topic).finish_non_exhaustive()
    }
}

/// How far handing over has come.
enum Handed {
    All,
    /// A run; more can follow at once.
    Run,
    /// The producer has no room.
    Full,
}

impl LibrdkafkaSink {
    /// Hands rows over until all are, a run is, or there is no room.
    fn hand_over(&self, publication: &Publication, ticket: &mut Ticket) -> Result<Handed, BrokerError> {
        let live = self.shared.live.read().unwrap_or_else(PoisonError::into_inner);
        let Some(live) = live.as_ref() else { return Err(closed(&self.shared.address)) };
        let index = *self.handle.as_ref().map_err(Clone::clone)?;
        let Some((_, topic)) = live.topics.get(index) else { return Err(closed(&self.shared.address)) };
        let rows = publication.len();
        for _ in 0..RUN_MAX {
            let at = ticket.handed as usize;
            if at == rows {
                return Ok(Handed::All);
            }
            let event = publication.event(at);
            match topic.produce(&event, ticket.opaque()) {
                Ok(()) => ticket.handed += 1,
                Err(RDKafkaErrorCode::QueueFull) => return Ok(Handed::Full),
                Err(code) => {
                    let bytes = event.key.map_or(0, <[u8]>::len) + event.value.map_or(0, <[u8]>::len);
                    let error = not_published(&self.topic, code, bytes);
                    if error.kind == BrokerErrorKind::TooLarge {
                        ticket.refuse(code, bytes);
                        continue;
                    }
                    // The client's own reason is better than the code of a fatal error.
                    return Err(self.shared.deliveries.dead().unwrap_or(error));
                }
            }
        }
        Ok(if ticket.handed as usize == rows { Handed::All } else { Handed::Run })
    }
}

impl Sink for LibrdkafkaSink {
    async fn publish(&self, publication: Publication) -> Result<Acknowledgement, BrokerError> {
        let deliveries = &self.shared.deliveries;
        if publication.is_empty() {
            return Ok(Box::pin(ready(Ok(PublishReport::default()))));
        }
        let rows = u32::try_from(publication.len()).map_err(|_| BrokerError {
            kind: BrokerErrorKind::Fatal,
            action: format!("publish to topic {}", self.topic),
            reason: "more than 2^32 events at once".into(),
        })?;
        let (mut ticket, ended) = deliveries.begin(&self.topic, rows)?;
        loop {
            // Before the attempt: room that comes right after it must not be missed.
            let room = deliveries.room().notified();
            tokio::pin!(room);
            room.as_mut().enable();
            match self.hand_over(&publication, &mut ticket)? {
                Handed::All => break,
                Handed::Run => tokio::task::yield_now().await,
                Handed::Full => {
                    room.await;
                    if let Some(error) = deliveries.dead() {
                        return Err(error);
                    }
                }
            }
        }
        let address = self.shared.address.clone();
        Ok(Box::pin(async move { ended.await.unwrap_or_else(|_| Err(closed(&address))) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{KafkaClient, SaslSpec, TokenSource};

    fn connection(token: std::path::PathBuf) -> KafkaConnection {
        KafkaConnection {
            brokers: vec!["127.0.0.1:1".into()],
            tls: None,
            sasl: Some(SaslSpec::Token(TokenSource::File(token))),
            client: KafkaClient::Librdkafka,
            properties: Default::default(),
        }
    }

    #[test]
    fn a_producer_without_a_token_is_refused() {
        let error = LibrdkafkaProducer::connect(&connection("no/such/token".into()), "test").expect_err("no token");
        assert_eq!(error.kind, BrokerErrorKind::Settings);
        assert!(error.reason.contains("no/such/token"), "{error}");
    }

    #[test]
    fn a_producer_asks_for_tokens_by_its_queue() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "first").unwrap();
        let config = crate::broker::kafka::producer(&connection(file.clone()), "test").unwrap();
        let tokens = Tokens::of(&config);
        let context = Context { deliveries: Arc::default(), lines: Arc::new(Lines::new("test")) };
        let client: Arc<BaseProducer<Context>> = Arc::new(config.create_with_context(context).unwrap());
        let queue = Queue::new(&client).unwrap();
        let mut asked = false;
        for _ in 0..100 {
            queue.serve(SERVE_WAIT, |told| asked |= matches!(told, Told::TokenWanted));
            if asked {
                break;
            }
        }
        assert!(asked, "librdkafka asks when the client is made");
        ffi::next_token(client.client(), &tokens);
        assert!(tokens.last_is("first"));
        // A failure reaches the client as an error, with its reason and without the token.
        ffi::next_token(client.client(), &Tokens::of(&rdkafka::ClientConfig::new()));
        let mut reasons = Vec::new();
        for _ in 0..100 {
            queue.serve(SERVE_WAIT, |told| {
                if let Told::Error(RDKafkaErrorCode::Authentication, reason) = told {
                    reasons.push(reason);
                }
            });
            if !reasons.is_empty() {
                break;
            }
        }
        assert!(reasons[0].contains("the client has no source of tokens"), "{reasons:?}");
    }
}
