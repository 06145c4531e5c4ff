//! Transactions by librdkafka's own producer, for what a reader of committed events must and must not see.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

/// The longest that one step may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A transactional producer. An open transaction is aborted when this value is dropped, as far as the broker hears.
pub(crate) struct Transactions {
    producer: BaseProducer,
    topic: String,
}

impl Transactions {
    /// For one topic of the broker at `host:port`, under this transactional id; in small record batches.
    ///
    /// # Errors
    /// When the broker refuses.
    pub(crate) fn new(brokers: &str, id: &str, topic: &str) -> anyhow::Result<Self> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("transactional.id", id).set("batch.num.messages", "7");
        let producer: BaseProducer = config.create()?;
        producer.init_transactions(LIMIT)?;
        Ok(Self { producer, topic: topic.to_owned() })
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// When one is open already.
    pub(crate) fn begin(&self) -> anyhow::Result<()> {
        Ok(self.producer.begin_transaction()?)
    }

    /// Publishes values to a partition, and waits until the broker has them.
    ///
    /// # Errors
    /// When it does not take them.
    pub(crate) fn publish(&self, partition: i32, values: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        for value in values {
            let record = BaseRecord::to(&self.topic).partition(partition).key("k").payload(&value);
            self.producer.send(record).map_err(|(error, _)| error)?;
        }
        Ok(self.producer.flush(LIMIT)?)
    }

    /// Commits the transaction.
    ///
    /// # Errors
    /// When the broker refuses.
    pub(crate) fn commit(&self) -> anyhow::Result<()> {
        Ok(self.producer.commit_transaction(LIMIT)?)
    }

    /// Aborts the transaction.
    ///
    /// # Errors
    /// When the broker refuses.
    pub(crate) fn abort(&self) -> anyhow::Result<()> {
        Ok(self.producer.abort_transaction(LIMIT)?)
    }
}
