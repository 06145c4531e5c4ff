//! Sources, producers and sinks of whatever broker a pipeline file names.

use std::time::Duration;

use super::kafka::{Driver, KafkaProducer, KafkaSink, KafkaSource};
use super::memory::{MemoryProducer, MemorySink, MemorySource};
use super::nats::{CoreSource, NatsDriver, NatsProducer, NatsSink, NatsSource};
use super::{Acknowledgement, BrokerError, Sink, Source, SourceContext, SourceEnd};
use crate::event::Publication;

/// Where events come from.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a pipeline")]
pub enum AnySource {
    /// Topics of Kafka.
    Kafka(KafkaSource),
    /// A stream of NATS.
    Nats(NatsSource),
    /// Subjects of core NATS.
    CoreNats(CoreSource),
    /// Topics in memory.
    Memory(MemorySource),
}

impl Source for AnySource {
    fn run(self, context: SourceContext) -> Result<SourceEnd, BrokerError> {
        match self {
            Self::Kafka(source) => source.run(context),
            Self::Nats(source) => source.run(context),
            Self::CoreNats(source) => source.run(context),
            Self::Memory(source) => source.run(context),
        }
    }
}

/// What publishes on one connection.
#[derive(Debug)]
pub enum AnyProducer {
    /// To Kafka.
    Kafka(KafkaProducer),
    /// To NATS.
    Nats(NatsProducer),
    /// In memory.
    Memory(MemoryProducer),
}

impl AnyProducer {
    /// Waits up to `timeout` until everything published is acknowledged, then closes; what was not is given up. For
    /// librdkafka this blocks its thread: give it one that may.
    pub async fn close(self, timeout: Duration) {
        match self {
            Self::Kafka(producer) => producer.close(timeout).await,
            Self::Nats(producer) => producer.close(timeout).await,
            Self::Memory(producer) => producer.close(timeout).await,
        }
    }
}

/// What must be run for a producer until that is closed. One in memory needs none.
pub enum AnyDriver {
    /// Kafka's.
    Kafka(Box<Driver>),
    /// NATS's.
    Nats(Box<NatsDriver>),
}

impl AnyDriver {
    /// Runs until the producer is closed.
    ///
    /// # Errors
    /// Why it cannot go on, where its sinks do not tell that alone.
    pub async fn run(self) -> Result<(), BrokerError> {
        match self {
            Self::Kafka(driver) => {
                driver.run().await;
                Ok(())
            }
            Self::Nats(driver) => driver.run().await,
        }
    }
}

/// Where events go.
#[derive(Clone, Debug)]
pub enum AnySink {
    /// A topic of Kafka.
    Kafka(KafkaSink),
    /// A subject of NATS.
    Nats(NatsSink),
    /// A topic in memory.
    Memory(MemorySink),
}

impl Sink for AnySink {
    async fn publish(&self, publication: Publication) -> Result<Acknowledgement, BrokerError> {
        match self {
            Self::Kafka(sink) => sink.publish(publication).await,
            Self::Nats(sink) => sink.publish(publication).await,
            Self::Memory(sink) => sink.publish(publication).await,
        }
    }
}
