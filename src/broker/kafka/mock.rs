//! A Kafka cluster inside the process, for the demo and for tests: librdkafka's mock, which serves real ports on
//! 127.0.0.1.
//!
//! It is no broker to keep anything in. It has no transactions and no admin calls, it keeps everything in memory, and
//! it drops the oldest batches of a partition past 5 MiB or 100,000 batches without a word: a producer must not run
//! further ahead of its consumers than that. Whenever a member joins or leaves a group that had members before, it
//! waits for `session.timeout.ms` less a second.

use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, Producer as _};
use rdkafka::{ClientConfig, ClientContext};

use super::{error, ffi};
use crate::broker::{BrokerError, BrokerErrorKind};
use crate::spec::{KafkaClient, KafkaConnection};

/// How long a group's first member waits for others to join.
const JOIN_DELAY: Duration = Duration::from_millis(10);

/// A cluster, which ends when this is dropped.
pub struct MockKafka {
    owner: BaseProducer<Quiet>,
    address: String,
}

/// The mock's own client has nothing to say.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: rdkafka::config::RDKafkaLogLevel, kind: &str, text: &str) {
        tracing::debug!(target: "fluxmill::kafka", "mock: {kind}: {text}");
    }

    fn error(&self, error: rdkafka::error::KafkaError, reason: &str) {
        tracing::debug!(target: "fluxmill::kafka", "mock: {error}: {reason}");
    }
}

impl rdkafka::producer::ProducerContext for Quiet {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &rdkafka::message::DeliveryResult<'_>, (): ()) {}
}

impl std::fmt::Debug for MockKafka {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MockKafka").field("address", &self.address).finish_non_exhaustive()
    }
}

impl MockKafka {
    /// Starts a cluster of `brokers` brokers.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(brokers: u16) -> Result<Self, BrokerError> {
        let action = "start the mock cluster";
        let owner: BaseProducer<Quiet> = ClientConfig::new()
            .set("test.mock.num.brokers", brokers.to_string())
            .set("client.id", "fluxmill-mock")
            .create_with_context(Quiet)
            .map_err(|error| error::failed(action, &error))?;
        let Some(address) = owner.client().mock_cluster().map(|cluster| cluster.bootstrap_servers()) else {
            return Err(BrokerError {
                kind: BrokerErrorKind::Fatal,
                action: action.into(),
                reason: "the client has no mock cluster".into(),
            });
        };
        ffi::mock_join_delay(owner.client(), JOIN_DELAY);
        Ok(Self { owner, address })
    }

    /// Bootstrap addresses, `host:port`, joined by commas.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// How to connect to it.
    pub fn connection(&self) -> KafkaConnection {
        KafkaConnection {
            brokers: self.address.split(',').map(str::to_owned).collect(),
            tls: None,
            sasl: None,
            client: KafkaClient::Librdkafka,
            properties: Default::default(),
        }
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// When the cluster does not take it.
    pub fn create_topic(&self, name: &str, partitions: u16) -> Result<(), BrokerError> {
        let action = || format!("create topic {name} on the mock cluster");
        let Some(cluster) = self.cluster() else {
            let reason = "the cluster is gone".into();
            return Err(BrokerError { kind: BrokerErrorKind::Fatal, action: action(), reason });
        };
        cluster.create_topic(name, i32::from(partitions), 1).map_err(|error| error::failed(action(), &error))
    }

    /// The cluster itself, to make it fail in tests.
    pub fn cluster(&self) -> Option<MockCluster<'_, impl ClientContext>> {
        self.owner.client().mock_cluster()
    }
}
