//! What is known of a cluster: its brokers and who leads which partition; and the one connection that such questions
//! go over.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{MetadataRequest, TopicName};
use kafka_protocol::protocol::StrBytes;

use super::connection::{Connection, Options};
use super::error::{WireError, WireErrorKind};
use super::response::{Call, ErrorCode, MetadataResponse};
use crate::spec::{ColumnarSettings, KafkaConnection};

/// Reasons that an error tells when no broker was reached.
const REASONS_MAX: usize = 4;
/// The port of an address without one.
const PORT_DEFAULT: u16 = 9092;

/// How long something may fail before it is told: leaders move all the time.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Where a broker listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl Address {
    /// `host:port`, an IPv6 host in brackets.
    fn parse(text: &str) -> Self {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => match port.parse() {
                Ok(port) => (host, port),
                Err(_) => (text, PORT_DEFAULT),
            },
            None => (text, PORT_DEFAULT),
        };
        Self { host: host.trim_start_matches('[').trim_end_matches(']').to_owned(), port }
    }
}

/// The leader of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leader {
    /// The broker's id; none while the partition has no leader.
    pub(super) node: Option<i32>,
    /// The leader's epoch, -1 where it is not known (KIP-320).
    pub(super) epoch: i32,
}

/// The brokers of a cluster and the leaders of some topics, as they were last told.
#[derive(Debug, Default)]
pub(super) struct View {
    brokers: HashMap<i32, Address>,
    topics: HashMap<Arc<str>, Vec<Leader>>,
}

impl View {
    /// Where a broker listens.
    pub(super) fn address(&self, node: i32) -> Option<&Address> {
        self.brokers.get(&node)
    }

    /// The leader of a partition.
    pub(super) fn leader(&self, topic: &str, partition: i32) -> Option<Leader> {
        self.topics.get(topic)?.get(usize::try_from(partition).ok()?).copied()
    }

    /// Takes over what a broker told. Returns each asked topic's number of partitions, or why it has none.
    pub(super) fn learn(&mut self, told: MetadataResponse) -> Vec<(Arc<str>, Result<usize, ErrorCode>)> {
        for broker in told.brokers {
            self.brokers.insert(broker.id, Address { host: broker.host, port: broker.port });
        }
        let mut topics = Vec::with_capacity(told.topics.len());
        for topic in told.topics {
            let name: Arc<str> = topic.name.into();
            if topic.error == ErrorCode::UNKNOWN_TOPIC_OR_PARTITION {
                // If it is made anew, its epochs begin anew.
                self.topics.remove(&name);
            }
            if !topic.error.is_ok() {
                topics.push((name, Err(topic.error)));
                continue;
            }
            let known = self.topics.entry(name.clone()).or_default();
            // Partitions are numbered from zero: a number beyond their count is not believed.
            known.resize(topic.partitions.len(), Leader { node: None, epoch: -1 });
            for partition in topic.partitions {
                let Some(known) = usize::try_from(partition.id).ok().and_then(|at| known.get_mut(at)) else { continue };
                // An answer of a broker that is behind must not take back what a newer one told.
                if partition.leader_epoch < 0 || partition.leader_epoch >= known.epoch {
                    *known = Leader { node: partition.leader, epoch: partition.leader_epoch };
                }
            }
            topics.push((name, Ok(known.len())));
        }
        topics
    }

    /// A node says that it does not lead a partition. If it is the one that is known here, whoever is told of next is
    /// believed: when a topic was made anew, its epochs begin anew.
    pub(super) fn forget(&mut self, topic: &str, partition: i32, node: i32) {
        let at = usize::try_from(partition).ok();
        if let Some(known) = at.and_then(|at| self.topics.get_mut(topic)?.get_mut(at))
            && known.node == Some(node)
        {
            *known = Leader { node: None, epoch: -1 };
        }
    }

    /// A leader that an answer to another request told of.
    pub(super) fn learn_leader(&mut self, topic: &str, partition: i32, node: i32, epoch: i32) {
        let at = usize::try_from(partition).ok();
        if let Some(known) = at.and_then(|at| self.topics.get_mut(topic)?.get_mut(at))
            && epoch > known.epoch
            && self.brokers.contains_key(&node)
        {
            *known = Leader { node: Some(node), epoch };
        }
    }
}

/// A connection to any broker, for questions that any can answer. One question at a time: a question takes the whole
/// value and gives it back with the answer.
#[derive(Debug)]
pub(super) struct Control {
    options: Arc<Options>,
    bootstrap: Vec<Address>,
    /// Brokers that were told of; asked when the bootstrap addresses are silent.
    known: BTreeSet<Address>,
    connection: Option<Connection>,
    timeout: Duration,
}

impl Control {
    /// Nothing is connected yet.
    pub(super) fn new(connection: &KafkaConnection, settings: &ColumnarSettings, options: Arc<Options>) -> Self {
        let bootstrap = connection.brokers.iter().map(|address| Address::parse(address)).collect();
        Self { options, bootstrap, known: BTreeSet::new(), connection: None, timeout: settings.socket_timeout }
    }

    /// Asks for brokers, and for these topics' partitions.
    pub(super) async fn metadata(mut self, topics: Vec<Arc<str>>) -> (Self, Result<MetadataResponse, WireError>) {
        let named = topics.iter().map(|topic| MetadataRequestTopic::default().with_name(Some(topic_name(topic))));
        let request = MetadataRequest::default()
            .with_topics(Some(named.collect()))
            // A misspelt topic must be an error, not a new topic.
            .with_allow_auto_topic_creation(false);
        let answer = self.ask(&request).await;
        if let Ok(told) = &answer {
            let addresses = told.brokers.iter();
            self.known = addresses.map(|broker| Address { host: broker.host.clone(), port: broker.port }).collect();
        }
        (self, answer)
    }

    /// Asks whoever answers. The connection of before comes first; then every address, in turn.
    pub(super) async fn ask<R: Call>(&mut self, request: &R) -> Result<R::Response, WireError> {
        if let Some(mut connection) = self.connection.take()
            && connection.expires().is_none_or(|at| at.into_std() > Instant::now())
            && let Ok(answer) = connection.call(request, self.timeout).await
        {
            self.connection = Some(connection);
            return Ok(answer);
        }
        let mut addresses: Vec<Address> = self.bootstrap.clone();
        fastrand::shuffle(&mut addresses);
        addresses.extend(self.known.iter().filter(|address| !self.bootstrap.contains(address)).cloned());
        let mut reasons: Vec<String> = Vec::new();
        for address in addresses {
            let error = match self.ask_at(&address, request).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            // What will not pass is told at once: credentials, certificates, versions.
            if !error.kind.may_pass() {
                return Err(error);
            }
            if reasons.len() < REASONS_MAX && !reasons.contains(&error.reason) {
                reasons.push(error.reason);
            }
        }
        Err(WireError { kind: WireErrorKind::Unreachable, reason: reasons.join("; ") })
    }

    async fn ask_at<R: Call>(&mut self, address: &Address, request: &R) -> Result<R::Response, WireError> {
        let mut connection = Connection::open(&address.host, address.port, &self.options).await?;
        let answer = connection.call(request, self.timeout).await?;
        self.connection = Some(connection);
        Ok(answer)
    }
}

/// A topic's name as the messages have it.
pub(super) fn topic_name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}

/// How long to wait before the next attempt: doubling, with jitter, up to a bound.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    bounds: (Duration, Duration),
    failures: u32,
}

impl Backoff {
    /// Waits from the first of these to the second.
    pub(super) fn new(bounds: (Duration, Duration)) -> Self {
        Self { bounds, failures: 0 }
    }

    /// An attempt has failed: when to make the next.
    pub(super) fn next(&mut self) -> Instant {
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.failures = (self.failures + 1).min(31);
        let wait = self.bounds.0.saturating_mul(factor).min(self.bounds.1);
        Instant::now() + wait.mul_f64(0.8 + fastrand::f64() * 0.4)
    }

    /// An attempt has succeeded.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// When to ask something again.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) wanted: bool,
    pub(super) not_before: Instant,
    pub(super) backoff: Backoff,
    answered: Instant,
}

impl Question {
    /// It was not asked yet; failures wait between these bounds.
    pub(super) fn new(bounds: (Duration, Duration)) -> Self {
        let now = Instant::now();
        Self { wanted: false, not_before: now, backoff: Backoff::new(bounds), answered: now }
    }

    /// Whether it is due: somebody wants the answer, or the last one is older than `age_max`.
    pub(super) fn is_due(&self, now: Instant, age_max: Duration) -> bool {
        (self.wanted || now.duration_since(self.answered) >= age_max) && now >= self.not_before
    }

    /// It was answered. It is not asked again at once: what has changed may change again.
    pub(super) fn answered(&mut self) {
        self.answered = Instant::now();
        self.not_before = self.answered + self.backoff.bounds.0;
        self.backoff.reset();
    }

    /// It was not answered.
    pub(super) fn failed(&mut self) {
        self.wanted = true;
        self.not_before = self.backoff.next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_and_without_a_port() {
        let parsed = |text: &str| {
            let address = Address::parse(text);
            (address.host, address.port)
        };
        assert_eq!(parsed("broker:19092"), ("broker".into(), 19092));
        assert_eq!(parsed("broker"), ("broker".into(), 9092));
        assert_eq!(parsed("[::1]:19092"), ("::1".into(), 19092));
    }

    #[test]
    fn the_wait_doubles_up_to_its_bound() {
        let mut backoff = Backoff::new((Duration::from_millis(100), Duration::from_millis(300)));
        let mut wait = || backoff.next().saturating_duration_since(Instant::now()).as_millis();
        let waits: Vec<_> = (0..40).map(|_| wait()).collect();
        assert!((70..=120).contains(&waits[0]) && (150..=240).contains(&waits[1]), "{waits:?}");
        assert!(waits[2..].iter().all(|wait| (230..=360).contains(wait)), "{waits:?}");
    }
}
