//! Sources, producers and sinks on either data plane.

use std::time::Duration;

use super::librdkafka::{LibrdkafkaProducer, LibrdkafkaSink, LibrdkafkaSource};
use super::wire::{ColumnarProducer, ColumnarSink, ColumnarSource, Driver, TransactionSpec, TransactionalProducer};
use crate::broker::{Acknowledgement, BrokerError, BrokerErrorKind, Sink, Source, SourceContext, SourceEnd};
use crate::event::Publication;
use crate::spec::{KafkaClient, KafkaConnection, KafkaSourceSpec};

/// The events of a consumer group's topics.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a pipeline")]
pub enum KafkaSource {
    /// By the columnar client.
    Columnar(ColumnarSource),
    /// By librdkafka.
    Librdkafka(LibrdkafkaSource),
}

impl KafkaSource {
    /// A source that calls itself `client_id` at the broker. Connects when it runs.
    ///
    /// # Errors
    /// When a setting is not accepted.
    pub fn new(connection: &KafkaConnection, spec: &KafkaSourceSpec, client_id: &str) -> Result<Self, BrokerError> {
        Ok(match &connection.client {
            KafkaClient::Columnar(settings) => {
                Self::Columnar(ColumnarSource::new(connection, settings, spec, client_id)?)
            }
            KafkaClient::Librdkafka => Self::Librdkafka(LibrdkafkaSource::new(connection, spec, client_id)?),
        })
    }

    /// Commits offsets in this producer's transactions, with what its sinks publish. The tracker that the source runs
    /// with must be [transactional](crate::delivery::Tracker::transactional).
    ///
    /// # Errors
    /// When the source is librdkafka's, which has no transactions here.
    pub fn with_transactions(self, producer: TransactionalProducer) -> Result<Self, BrokerError> {
        match self {
            Self::Columnar(source) => Ok(Self::Columnar(source.with_transactions(producer))),
            Self::Librdkafka(_) => Err(no_transactions()),
        }
    }
}

/// Sets a producer of transactions up under this transactional id, and the driver that must be run for it.
///
/// # Errors
/// When a setting is not accepted, and for `client: librdkafka`.
pub fn transactional(
    connection: &KafkaConnection,
    client_id: &str,
    id: &str,
) -> Result<(TransactionalProducer, Driver), BrokerError> {
    match &connection.client {
        KafkaClient::Columnar(settings) => {
            let spec = TransactionSpec { id: id.to_owned(), timeout: settings.transaction_timeout };
            TransactionalProducer::new(connection, settings, client_id, spec)
        }
        KafkaClient::Librdkafka => Err(no_transactions()),
    }
}

fn no_transactions() -> BrokerError {
    BrokerError {
        kind: BrokerErrorKind::Settings,
        action: "publish in transactions".into(),
        reason: "`client: librdkafka` has none here; write `client: columnar`".into(),
    }
}

impl Source for KafkaSource {
    fn run(self, context: SourceContext) -> Result<SourceEnd, BrokerError> {
        match self {
            Self::Columnar(source) => source.run(context),
            Self::Librdkafka(source) => source.run(context),
        }
    }
}

/// One idempotent producer: acks=all, murmur2 partitioning, order kept within each partition.
#[derive(Debug)]
pub enum KafkaProducer {
    /// The columnar client.
    Columnar(ColumnarProducer),
    /// librdkafka.
    Librdkafka(LibrdkafkaProducer),
}

impl KafkaProducer {
    /// Sets a producer up, with the driver that must be run for it, if it needs one. Does not block, and does not wait
    /// for the cluster: publishing does.
    ///
    /// # Errors
    /// When a setting is not accepted.
    pub fn connect(connection: &KafkaConnection, client_id: &str) -> Result<(Self, Option<Driver>), BrokerError> {
        Ok(match &connection.client {
            KafkaClient::Columnar(settings) => {
                let (producer, driver) = ColumnarProducer::new(connection, settings, client_id)?;
                (Self::Columnar(producer), Some(driver))
            }
            KafkaClient::Librdkafka => (Self::Librdkafka(LibrdkafkaProducer::connect(connection, client_id)?), None),
        })
    }

    /// A sink for a topic. Many may share one topic; each is cheap to clone. For a name that cannot be a topic's,
    /// publishing fails.
    pub fn sink(&self, topic: &str) -> KafkaSink {
        match self {
            Self::Columnar(producer) => KafkaSink::Columnar(producer.sink(topic)),
            Self::Librdkafka(producer) => KafkaSink::Librdkafka(producer.sink(topic)),
        }
    }

    /// Waits up to `timeout` until everything published is acknowledged, then closes; what was not is given up with
    /// a warning, and its acknowledgements are errors. Sinks that are left publish nothing any more. For librdkafka
    /// this blocks its thread: give it one that may.
    pub async fn close(self, timeout: Duration) {
        match self {
            Self::Columnar(producer) => producer.close(timeout).await,
            Self::Librdkafka(producer) => producer.close(timeout),
        }
    }
}

/// Publishes to one topic.
#[derive(Clone, Debug)]
pub enum KafkaSink {
    /// By the columnar client.
    Columnar(ColumnarSink),
    /// By librdkafka.
    Librdkafka(LibrdkafkaSink),
}

impl Sink for KafkaSink {
    async fn publish(&self, publication: Publication) -> Result<Acknowledgement, BrokerError> {
        match self {
            Self::Columnar(sink) => sink.publish(publication).await,
            Self::Librdkafka(sink) => sink.publish(publication).await,
        }
    }
}
