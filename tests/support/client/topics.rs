//! Topics made, changed and deleted by the tests' own client.

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Runtime;

use super::{Client, REQUEST};

impl Client {
    fn admin(&self) -> anyhow::Result<(AdminClient<DefaultClientContext>, AdminOptions, Runtime)> {
        let options = AdminOptions::new().request_timeout(Some(REQUEST)).operation_timeout(Some(REQUEST));
        Ok((self.config().create()?, options, tokio::runtime::Builder::new_current_thread().enable_all().build()?))
    }

    /// Makes a topic with these settings, kept as often as the brokers say by default.
    ///
    /// # Errors
    /// When the broker refuses, or it exists.
    pub(crate) fn create_topic(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        let (admin, options, runtime) = self.admin()?;
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
        for (name, value) in settings {
            new = new.set(name, value);
        }
        for result in runtime.block_on(admin.create_topics([&new], &options))? {
            result.map_err(|(topic, code)| anyhow::anyhow!("creating {topic}: {code}"))?;
        }
        Ok(())
    }

    /// Deletes a topic.
    ///
    /// # Errors
    /// When the broker refuses.
    pub(crate) fn delete_topic(&self, topic: &str) -> anyhow::Result<()> {
        let (admin, options, runtime) = self.admin()?;
        for result in runtime.block_on(admin.delete_topics(&[topic], &options))? {
            result.map_err(|(topic, code)| anyhow::anyhow!("deleting {topic}: {code}"))?;
        }
        Ok(())
    }

    /// Takes all events of a partition before this offset away.
    ///
    /// # Errors
    /// When the broker refuses.
    pub(crate) fn delete_before(&self, topic: &str, partition: i32, offset: i64) -> anyhow::Result<()> {
        let (admin, options, runtime) = self.admin()?;
        let mut before = TopicPartitionList::new();
        before.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        for element in runtime.block_on(admin.delete_records(&before, &options))?.elements() {
            element.error()?;
        }
        Ok(())
    }
}
