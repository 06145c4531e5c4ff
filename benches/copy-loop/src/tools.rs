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

/// How many of the events that were loaded come out of the functions of the measurements.
#[derive(Debug, Default)]
pub struct Kept {
    /// Of the filter: the events of all but the first 190 customers.
    pub filtered: u64,
    /// Of the pricing: the orders that are not small.
    pub priced: u64,
}

/// Fills a topic with orders whose values have exactly `bytes` bytes. The same numbers give the same events.
pub fn load(brokers: &str, topic: &str, events: u64, bytes: usize, compression: &str) -> anyhow::Result<Kept> {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("linger.ms", "5")
        .set("batch.num.messages", "10000")
        .set("queue.buffering.max.messages", "500000")
        .set("partitioner", "murmur2_random")
        .set("compression.type", compression)
        .create()?;
    let mut random = fastrand::Rng::with_seed(7);
    let mut kept = Kept::default();
    for number in 0..events {
        let order = Order::random(number, &mut random);
        kept.filtered += u64::from(order.customer >= 190);
        kept.priced += u64::from(order.amount >= order::LEAST_CENTS);
        let (key, value) = (order.key(), order.value(bytes)?);
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
    Ok(kept)
}

/// What differs from order to order.
struct Order {
    number: u64,
    customer: u32,
    amount: i64,
}

impl Order {
    fn random(number: u64, random: &mut fastrand::Rng) -> Self {
        let customer = random.u32(0..1000);
        let amount = if number.is_multiple_of(10) { random.i64(0..1000) } else { random.i64(0..10_000) };
        Self { number, customer, amount }
    }

    fn key(&self) -> String {
        format!("c-{:04}", self.customer)
    }

    /// An order of `bytes` bytes: a time, as many items as fit, and a note that fills the rest; the smallest have none
    /// of these.
    fn value(&self, bytes: usize) -> anyhow::Result<String> {
        let Self { number, customer, amount } = self;
        // Room for the note's name and a few words.
        const NOTE: usize = 60;
        const WORDS: &str = "leave the parcel at the door, please, and ring twice; ";
        let mut value = format!(
            r#"{{"order_id":"o-{number:08}","customer_id":"c-{customer:04}","amount_cents":{amount:>4},"currency":"EUR","status":"new""#
        );
        let item = |at: u64| format!(r#"{{"sku":"sku-{:02}","qty":{}}},"#, (number + at) % 97, 1 + at % 4);
        let (list, time) = (r#","items":[]"#.len(), format!(r#","ts":{}"#, 1_763_900_000_000 + number));
        let room = bytes.checked_sub(value.len() + 1).context("an order has 100 bytes at least")?;
        if let Some(room) = room.checked_sub(list + time.len() + NOTE) {
            let items: String = (0..u64::try_from(room / item(0).len())?).map(item).collect();
            value += &format!(r#","items":[{}]{time}"#, items.trim_end_matches(','));
        }
        let begin = r#","note":""#;
        if bytes > value.len() + 1 {
            let text = bytes.checked_sub(value.len() + begin.len() + 2);
            let text = text.context("an order of 101 to 109 bytes cannot be made")?;
            value += begin;
            value.extend(WORDS.chars().cycle().take(text));
            value.push('"');
        }
        value.push('}');
        ensure!(value.len() == bytes, "an order of {} instead of {bytes} bytes", value.len());
        Ok(value)
    }
}

/// Reads back what is in a topic.
pub fn span(brokers: &str, topic: &str) -> anyhow::Result<Span> {
    let (consumer, partitions) = reader(brokers, topic, false)?;
    let mut span = Span { events: 0, first_ms: i64::MAX, last_ms: i64::MIN };
    for partition in 0..partitions {
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

/// As [`span`], of committed events only and by reading all of them: the markers of transactions have offsets too.
pub fn committed(brokers: &str, topic: &str) -> anyhow::Result<Span> {
    let (consumer, mut open) = reader(brokers, topic, true)?;
    let mut list = TopicPartitionList::new();
    for partition in 0..open {
        list.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    let mut span = Span { events: 0, first_ms: i64::MAX, last_ms: i64::MIN };
    let mut deadline = std::time::Instant::now() + ANSWER;
    while open > 0 {
        ensure!(std::time::Instant::now() < deadline, "{topic} was not read within {ANSWER:?} of the last event");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let time = message.timestamp().to_millis().context("the event has no timestamp")?;
                span.events += 1;
                (span.first_ms, span.last_ms) = (span.first_ms.min(time), span.last_ms.max(time));
                deadline = std::time::Instant::now() + ANSWER;
            }
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(error)) => return Err(error.into()),
            None => {}
        }
    }
    ensure!(span.events > 0, "{topic} is empty");
    Ok(span)
}

/// A consumer, and how many partitions the topic has. It tells of their ends when it is asked to.
fn reader(brokers: &str, topic: &str, tells_ends: bool) -> anyhow::Result<(BaseConsumer, i32)> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "copy-loop-span")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", tells_ends.to_string())
        .set("fetch.wait.max.ms", "10")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER)?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    Ok((consumer, i32::try_from(partitions)?))
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
