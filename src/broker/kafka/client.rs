//! What a consumer's callbacks note, for the thread that polls to act on.
//!
//! The callbacks run inside `poll` and only take notes; the polling thread reads them right after, with all of its
//! state at hand. librdkafka asks for no more: a rebalance waits until the assignment is called.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::AdminClient;
use rdkafka::client::OAuthToken;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::util::Timeout;
use rdkafka::{ClientContext, TopicPartitionList};

use super::log::Lines;
use super::token::Tokens;
use super::{error, ffi};
use crate::broker::{BrokerError, BrokerErrorKind};

/// A consumer whose callbacks take notes.
pub(super) type Consumer = BaseConsumer<Notes>;

/// How long one attempt to reach the cluster may take before errors are looked at.
const ATTEMPT: Duration = Duration::from_secs(1);
/// Reasons that an error tells when the cluster was not reached.
const REASONS_MAX: usize = 4;

/// One thing that a callback noted.
#[derive(Debug)]
pub(super) enum Note {
    /// Partitions were assigned to this member.
    Assign(TopicPartitionList),
    /// Partitions were taken from this member. When `lost`, others may hold them already.
    Revoke {
        /// The partitions.
        partitions: TopicPartitionList,
        /// Whether they are gone already.
        lost: bool,
    },
    /// A commit ended: for each partition its offset and error, and an error of the whole.
    Committed(TopicPartitionList, Option<RDKafkaErrorCode>),
    /// Something failed.
    Error(RDKafkaErrorCode, String),
}

/// The context of a consumer.
#[derive(Debug)]
pub(super) struct Notes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    notes: Mutex<VecDeque<Note>>,
    /// Counts callbacks of every kind: what did not change during a poll had nothing to serve.
    served: AtomicU64,
    /// Nobody reads notes any more; rebalances are answered at once.
    detached: AtomicBool,
    /// The offset at the last end of a partition that was told.
    end: AtomicI64,
    lines: Lines,
    tokens: Tokens,
}

/// The offset in librdkafka's words for the end of a partition.
fn end_offset(reason: &str) -> Option<i64> {
    let (_, rest) = reason.split_once(" at offset ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

impl Notes {
    fn new(config: &ClientConfig, name: &str) -> Self {
        Notes(Arc::new(Shared {
            notes: Mutex::default(),
            served: AtomicU64::new(0),
            detached: AtomicBool::new(false),
            end: AtomicI64::new(-1),
            lines: Lines::new(name),
            tokens: Tokens::of(config),
        }))
    }

    /// A consumer with these settings; `name` is its name in the log.
    pub(super) fn consumer(config: &ClientConfig, name: &str) -> KafkaResult<Consumer> {
        let consumer: Consumer = config.create_with_context(Self::new(config, name))?;
        ffi::first_token(consumer.client(), &consumer.context().0.tokens)?;
        Ok(consumer)
    }

    /// A client for admin calls with these settings; `name` is its name in the log.
    pub(super) fn admin(config: &ClientConfig, name: &str) -> KafkaResult<AdminClient<Notes>> {
        let admin: AdminClient<Notes> = config.create_with_context(Self::new(config, name))?;
        ffi::first_token(admin.inner(), &admin.inner().context().0.tokens)?;
        Ok(admin)
    }

    /// The oldest note.
    pub(super) fn take(&self) -> Option<Note> {
        self.0.notes.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// A count that changes with every event that a poll serves.
    pub(super) fn served(&self) -> u64 {
        self.0.served.load(Relaxed)
    }

    /// Where the end was that the last poll told of.
    pub(super) fn end(&self) -> Option<i64> {
        Some(self.0.end.load(Relaxed)).filter(|offset| *offset >= 0)
    }

    /// The consumer's log lines.
    pub(super) fn lines(&self) -> &Lines {
        &self.0.lines
    }

    /// Until the value is dropped, notes are read and rebalances wait to be answered. A consumer that is dropped
    /// waits for its own leave; so this must be dropped first.
    pub(super) fn attach(&self) -> Attached {
        Attached(self.0.clone())
    }

    fn note(&self, note: Note) {
        self.0.served.fetch_add(1, Relaxed);
        self.0.notes.lock().unwrap_or_else(PoisonError::into_inner).push_back(note);
    }
}

/// See [`Notes::attach`].
#[derive(Debug)]
pub(super) struct Attached(Arc<Shared>);

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.detached.store(true, Relaxed);
    }
}

impl ClientContext for Notes {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.0.served.fetch_add(1, Relaxed);
        Ok(self.0.tokens.next()?.into())
    }

    fn log(&self, level: RDKafkaLogLevel, kind: &str, text: &str) {
        self.0.served.fetch_add(1, Relaxed);
        self.0.lines.line(level, kind, text);
    }

    fn stats_raw(&self, _: &[u8]) {
        self.0.served.fetch_add(1, Relaxed);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error::code(&error).unwrap_or(RDKafkaErrorCode::Fail);
        // The end of a partition is told by the poll itself; the place only here, and only in words.
        if code == RDKafkaErrorCode::PartitionEOF {
            self.0.end.store(end_offset(reason).unwrap_or(-1), Relaxed);
        } else {
            self.note(Note::Error(code, reason.to_owned()));
        }
    }
}

impl ConsumerContext for Notes {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, what: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let assigns = what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.0.detached.load(Relaxed) {
            // The consumer is being dropped: it wants nothing, and lets go of what it has. librdkafka takes any answer for
            // that by then, also where it was never told of these partitions.
            let result = match (assigns, consumer.rebalance_protocol()) {
                (true, RebalanceProtocol::Cooperative) => consumer.incremental_assign(&TopicPartitionList::new()),
                (false, RebalanceProtocol::Cooperative) => consumer.incremental_unassign(partitions),
                _ => consumer.unassign(),
            };
            if let Err(error) = result {
                tracing::debug!(target: "fluxmill::kafka", "leaving: {error}");
            }
        } else if assigns {
            self.note(Note::Assign(partitions.clone()));
        } else {
            self.note(Note::Revoke { partitions: partitions.clone(), lost: consumer.assignment_lost() });
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        let code = result.err().map(|error| error::code(&error).unwrap_or(RDKafkaErrorCode::Fail));
        self.note(Note::Committed(offsets.clone(), code));
    }

    fn main_queue_min_poll_interval(&self) -> Timeout {
        Timeout::After(Duration::from_secs(1))
    }
}

/// A topic as the cluster describes it.
#[derive(Clone, Debug)]
pub(super) struct TopicState {
    /// Its name.
    pub(super) name: String,
    /// How many partitions it has.
    pub(super) partitions: i32,
    /// Whether each partition has a leader.
    pub(super) led: bool,
    /// Why it cannot be used.
    pub(super) error: Option<RDKafkaErrorCode>,
}

/// Asks the cluster for a topic, once, for at most `timeout`.
pub(super) fn topic_state(consumer: &Consumer, name: &str, timeout: Duration) -> Result<TopicState, KafkaError> {
    let metadata = consumer.fetch_metadata(Some(name), timeout)?;
    let unknown = || TopicState {
        name: name.to_owned(),
        partitions: 0,
        led: false,
        error: Some(RDKafkaErrorCode::UnknownTopicOrPartition),
    };
    let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name) else { return Ok(unknown()) };
    Ok(TopicState {
        name: name.to_owned(),
        partitions: i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX),
        led: !topic.partitions().is_empty() && topic.partitions().iter().all(|partition| partition.leader() >= 0),
        error: topic.error().map(Into::into),
    })
}

/// Asks the cluster for topics, again and again until a deadline.
pub(super) struct Reach<'a> {
    consumer: &'a Consumer,
    address: &'a str,
    topics: &'a [&'a str],
    deadline: Instant,
    reasons: Vec<String>,
    states: Vec<TopicState>,
}

impl<'a> Reach<'a> {
    /// Nothing was asked yet.
    pub(super) fn new(consumer: &'a Consumer, address: &'a str, topics: &'a [&'a str], deadline: Instant) -> Self {
        Self { consumer, address, topics, deadline, reasons: Vec::new(), states: Vec::new() }
    }

    /// Asks until all is known.
    ///
    /// # Errors
    /// When the cluster was not reached in time, with what was in the way; at once when it refuses.
    pub(super) fn all(mut self) -> Result<Vec<TopicState>, BrokerError> {
        loop {
            if let Some(states) = self.attempt()? {
                return Ok(states);
            }
        }
    }

    /// Asks once, which takes at most [`ATTEMPT`] for one topic; the answer when all is known.
    ///
    /// # Errors
    /// As [`Reach::all`].
    pub(super) fn attempt(&mut self) -> Result<Option<Vec<TopicState>>, BrokerError> {
        let Some(topic) = self.topics.get(self.states.len()) else { return Ok(Some(std::mem::take(&mut self.states))) };
        let left = self.deadline.saturating_duration_since(Instant::now());
        let error = match topic_state(self.consumer, topic, left.min(ATTEMPT).max(Duration::from_millis(1))) {
            Ok(state) => {
                self.states.push(state);
                return Ok(None);
            }
            Err(error) => error,
        };
        let action = || format!("connect to {}", self.address);
        for (code, reason) in errors(self.consumer) {
            let refused = matches!(error::kind(code), BrokerErrorKind::Denied | BrokerErrorKind::Settings);
            if refused && !error::is_broken_handshake(&reason) {
                return Err(error::coded(action(), code, &reason));
            }
            // Without the time that each attempt took.
            let reason = reason.split(" (after ").next().unwrap_or_default();
            let known = self.reasons.len() >= REASONS_MAX || self.reasons.iter().any(|known| known == reason);
            if code != RDKafkaErrorCode::AllBrokersDown && !known {
                self.reasons.push(reason.to_owned());
            }
        }
        if !left.is_zero() {
            return Ok(None);
        }
        let reason = if self.reasons.is_empty() { error.to_string() } else { self.reasons.join("; ") };
        Err(BrokerError { kind: BrokerErrorKind::Unreachable, action: action(), reason })
    }
}

/// The errors that wait to be told. For a consumer that has no assignment yet.
fn errors(consumer: &Consumer) -> Vec<(RDKafkaErrorCode, String)> {
    let notes = consumer.context();
    let mut errors = Vec::new();
    loop {
        let before = notes.served();
        drop(consumer.poll(Duration::ZERO));
        while let Some(note) = notes.take() {
            if let Note::Error(code, reason) = note {
                errors.push((code, reason));
            }
        }
        if notes.served() == before {
            return errors;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::broker::kafka::token;
    use crate::spec::TokenSource;

    /// Settings of a client that reaches nobody and authenticates by a token in a file.
    fn settings(group: Option<&str>, file: &Path) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:1").set("security.protocol", "sasl_plaintext");
        config.set("sasl.mechanism", "OAUTHBEARER");
        if let Some(group) = group {
            config.set("group.id", group);
        }
        token::note(&TokenSource::File(file.to_owned()), &mut config);
        config
    }

    #[test]
    fn a_consumer_that_is_polled_gets_new_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        for group in [None, Some("group")] {
            std::fs::write(&file, "first").unwrap();
            let consumer = Notes::consumer(&settings(group, &file), "test").unwrap();
            assert!(consumer.context().0.tokens.last_is("first"), "given at once");
            std::fs::write(&file, "second").unwrap();
            // librdkafka asked when the client was made; the question waits in the queue.
            let asked = (0..100).any(|_| {
                drop(consumer.poll(Duration::from_millis(50)));
                consumer.context().0.tokens.last_is("second")
            });
            assert!(asked, "{group:?}");
        }
    }

    #[test]
    fn no_client_without_a_token() {
        let config = settings(None, Path::new("no/such/token"));
        let errors = [Notes::consumer(&config, "test").err(), Notes::admin(&config, "test").err()];
        for error in errors {
            let error = error::failed("connect", &error.expect("no client"));
            assert_eq!(error.kind, BrokerErrorKind::Settings);
            assert!(error.reason.contains("no/such/token"), "{error}");
        }
    }

    #[test]
    fn an_admin_client_has_its_token() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "first").unwrap();
        let admin = Notes::admin(&settings(None, &file), "test").unwrap();
        assert!(admin.inner().context().0.tokens.last_is("first"));
    }

    #[test]
    fn an_end_has_an_offset() {
        let words = "Fetch from broker 1 reached end of partition at offset 42 (HighwaterMark 43)";
        assert_eq!(end_offset(words), Some(42));
        assert_eq!(end_offset("something else"), None);
    }
}
