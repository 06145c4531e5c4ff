//! What a source makes of the errors that come while it runs: which end it, which are waited out.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::RDKafkaErrorCode;

use super::client::{Consumer, topic_state};
use super::error;
use crate::broker::{BrokerError, BrokerErrorKind};

/// How often the cluster is asked while something is wrong.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
/// How long each question may take.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a topic may be missing. A broker that has just started may not know its topics yet.
const MISSING_MAX: Duration = Duration::from_secs(10);

/// How the cluster is, as far as is known.
#[derive(Debug)]
pub(super) struct Health {
    address: String,
    topics: Vec<String>,
    down: bool,
    missing_since: Option<Instant>,
    probe_at: Instant,
}

impl Health {
    /// All is well.
    pub(super) fn new(address: String, topics: Vec<String>) -> Self {
        Self { address, topics, down: false, missing_since: None, probe_at: Instant::now() }
    }

    /// The cluster has answered.
    pub(super) fn works(&mut self) {
        if std::mem::take(&mut self.down) {
            tracing::info!(target: "fluxmill::kafka", "{} is reachable again", self.address);
        }
    }

    /// Something failed.
    ///
    /// # Errors
    /// When it will not pass.
    pub(super) fn failed(
        &mut self,
        consumer: &Consumer,
        code: RDKafkaErrorCode,
        reason: &str,
    ) -> Result<(), BrokerError> {
        use RDKafkaErrorCode as Code;
        let action = || format!("read from {}", self.address);
        match code {
            Code::AllBrokersDown => {
                if !std::mem::replace(&mut self.down, true) {
                    self.probe_at = Instant::now() + PROBE_INTERVAL;
                    tracing::warn!(target: "fluxmill::kafka", "{} is not reachable; waiting for it", self.address);
                }
            }
            Code::Fatal => {
                let (code, reason) = consumer.client().fatal_error().unwrap_or((code, reason.to_owned()));
                let kind = BrokerErrorKind::Fatal;
                let reason = if code == Code::FencedInstanceId {
                    format!("{reason}; another member runs with the same `instance`")
                } else {
                    reason
                };
                return Err(BrokerError { kind, action: action(), reason });
            }
            Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => self.missing(),
            Code::PollExceeded => consumer.context().lines().warn("POLL", reason),
            // A certificate does not change its mind, but a handshake breaks when its broker does.
            Code::SSL => consumer.context().lines().warn("SSL", reason),
            Code::Authentication if error::is_broken_handshake(reason) => {}
            _ => match error::kind(code) {
                BrokerErrorKind::Denied | BrokerErrorKind::Settings => {
                    return Err(error::coded(action(), code, reason));
                }
                BrokerErrorKind::Unreachable => {
                    tracing::debug!(target: "fluxmill::kafka", "{}: {code}: {reason}", self.address);
                }
                _ => consumer.context().lines().warn("CONSUMER", &format!("{code}: {reason}")),
            },
        }
        Ok(())
    }

    /// A topic is not where it should be.
    pub(super) fn missing(&mut self) {
        self.missing_since.get_or_insert_with(Instant::now);
    }

    /// Asks the cluster, now and then, while something is wrong.
    ///
    /// # Errors
    /// When a topic is gone.
    pub(super) fn check(&mut self, consumer: &Consumer) -> Result<(), BrokerError> {
        if (!self.down && self.missing_since.is_none()) || Instant::now() < self.probe_at {
            return Ok(());
        }
        let mut missing = None;
        for topic in &self.topics {
            match topic_state(consumer, topic, PROBE_TIMEOUT) {
                Ok(state) => missing = missing.or(state.error.map(|code| (topic.clone(), code))),
                Err(_) => {
                    self.probe_at = Instant::now() + PROBE_INTERVAL;
                    return Ok(());
                }
            }
        }
        self.probe_at = Instant::now() + PROBE_INTERVAL;
        self.works();
        match (missing, self.missing_since) {
            (None, _) => self.missing_since = None,
            (Some((topic, code)), Some(since)) if since.elapsed() >= MISSING_MAX => {
                return Err(error::coded(format!("read topic {topic} on {}", self.address), code, ""));
            }
            (Some(_), since) => self.missing_since = since.or_else(|| Some(Instant::now())),
        }
        Ok(())
    }
}
