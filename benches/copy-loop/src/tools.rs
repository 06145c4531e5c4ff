//! Topics for a measurement: made, filled, read back, dropped.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Message, Offset, TopicPartitionList};

/// How long the broker may take to answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How long the last events of a load may take to be acknowledged.
const FLUSH: Duration = Duration::from_secs(120);

/// What is in a topic.
#[derive(Debug)]
pub struct Span {
    /// Events, counted by offsets.
    pub events: i64,
    /// When the broker appended the first, in milliseconds since the Unix epoch.
    pub first_ms: i64,
    /// When it appended the last.
    pub last_ms: i64,
}

fn admin(brokers: &str) -> anyhow::Result<AdminClient<DefaultClientContext>> {
    Ok(ClientConfig::new().set("bootstrap.servers", brokers).create()?)
}

/// Creates topics whose timestamps are the broker's append times.
pub fn make(brokers: &str, partitions: i32, topics: &[&str]) -> anyhow::Result<()> {
    let new = topics.iter().map(|topic| {
        NewTopic::new(topic, partitions, TopicReplication::Fixed(1)).set("message.timestamp.type", "LogAppendTime")
    });
    let new: Vec<_> = new.collect();
    let options = AdminOptions::new().operation_timeout(Some(ANSWER)).request_timeout(Some(ANSWER));
    for result in futures_executor::block_on(admin(brokers)?.create_topics(&new, &options))? {
        result.map_err(|(topic, code)| anyhow::anyhow!("create {topic}: {code}"))?;
    }
    Ok(())
}

/// Deletes topics.
pub fn drop_topics(brokers: &str, topics: &[&str]) -> anyhow::Result<()> {
    let options = AdminOptions::new().operation_timeout(Some(ANSWER)).request_timeout(Some(ANSWER));
    for result in futures_executor::block_on(admin(brokers)?.delete_topics(topics, &options))? {
        result.map_err(|(topic, code)| anyhow::anyhow!("delete {topic}: {code}"))?;
    }
    Ok(())
}

/// Fills a topic with orders. The same number gives the same events.
pub fn load(brokers: &str, topic: &str, events: u64) -> anyhow::Result<()> {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("linger.ms", "5")
        .set("batch.num.messages", "10000")
        .set("queue.buffering.max.messages", "500000")
        .set("partitioner", "murmur2_random")
        .create()?;
    let mut random = fastrand::Rng::with_seed(7);
    for number in 0..events {
        let (key, value) = order(number, &mut random);
        let mut record = BaseRecord::to(topic).key(&key).payload(&value);
        while let Err((error, back)) = producer.send(record) {
            match error {
                KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => {
                    record = back;
                    std::thread::sleep(Duration::from_millis(1));
                }
                error => return Err(error).context("load"),
            }
        }
    }
    producer.flush(FLUSH)?;
    let span = span(brokers, topic)?;
    ensure!(span.events >= 0 && span.events as u64 == events, "{} of {events} events are in {topic}", span.events);
    Ok(())
}

/// Key and value of an order; the value has about 250 bytes.
fn order(number: u64, random: &mut fastrand::Rng) -> (String, String) {
    let key = format!("c-{:04}", random.u32(0..1000));
    let amount = if number.is_multiple_of(10) { random.u32(0..1000) } else { random.u32(0..10_000) };
    let (first, second, time) = (number % 97, number % 13, 1_763_900_000_000 + number);
    let value = format!(
        r#"{{"order_id":"o-{number:09}","customer_id":"{key}","amount_cents":{amount},"currency":"EUR","status":"created","items":[{{"sku":"sku-{first}","qty":2}},{{"sku":"sku-{second}","qty":1}}],"ts":{time},"note":"leave the parcel at the door, please, and ring twice"}}"#
    );
    (key, value)
}

/// Reads back what is in a topic.
pub fn span(brokers: &str, topic: &str) -> anyhow::Result<Span> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "copy-loop-span")
        .set("enable.auto.commit", "false")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER)?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    let mut span = Span { events: 0, first_ms: i64::MAX, last_ms: i64::MIN };
    for partition in 0..i32::try_from(partitions)? {
        let (low, high) = consumer.fetch_watermarks(topic, partition, ANSWER)?;
        if high == low {
            continue;
        }
        span.events += high - low;
        span.first_ms = span.first_ms.min(appended(&consumer, topic, partition, low)?);
        span.last_ms = span.last_ms.max(appended(&consumer, topic, partition, high - 1)?);
    }
    ensure!(span.events > 0, "{topic} is empty");
    Ok(span)
}

/// When the event at `offset` was appended.
fn appended(consumer: &BaseConsumer, topic: &str, partition: i32, offset: i64) -> anyhow::Result<i64> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    consumer.assign(&list)?;
    let deadline = std::time::Instant::now() + ANSWER;
    while std::time::Instant::now() < deadline {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) if message.partition() == partition && message.offset() == offset => {
                return message.timestamp().to_millis().context("the event has no timestamp");
            }
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(_)) | None => {}
        }
    }
    bail!("{topic}[{partition}]@{offset} was not delivered within {ANSWER:?}")
}
