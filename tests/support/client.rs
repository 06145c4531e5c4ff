//! The tests' own Kafka client: makes topics, produces the workload, reads everything back with all its bytes.

mod topics;

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::util::Timeout;
use rdkafka::{ClientConfig, ClientContext, Message, Offset, TopicPartitionList, bindings};

use super::feeder::{FED_AT_MOST, Feeder};
use super::wait::{pace, wait_until};

/// The longest wait for one answer of a broker.
const REQUEST: Duration = Duration::from_secs(30);
/// The longest wait for the whole of a workload.
const WORKLOAD: Duration = Duration::from_secs(180);
/// Larger than any event of a test.
const LARGEST: &str = "16777216";

/// A header's name and value as they are.
pub(crate) type RawHeader = (Vec<u8>, Option<Vec<u8>>);

/// An event to produce.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// The partition; by the key's hash where there is none.
    pub(crate) partition: Option<i32>,
    /// The key.
    pub(crate) key: Option<Vec<u8>>,
    /// The value; `None` is a tombstone.
    pub(crate) value: Option<Vec<u8>>,
    /// Names and values, in order.
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since the Unix epoch; now where there is none.
    pub(crate) timestamp: Option<i64>,
}

/// An event that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    /// Where it was.
    pub(crate) partition: i32,
    /// Where it was in the partition.
    pub(crate) offset: i64,
    /// The key.
    pub(crate) key: Option<Vec<u8>>,
    /// The value; `None` is a tombstone.
    pub(crate) value: Option<Vec<u8>>,
    /// Names and values, in order; names need not be UTF-8.
    pub(crate) headers: Vec<RawHeader>,
    /// Milliseconds since the Unix epoch.
    pub(crate) timestamp: Option<i64>,
}

impl Received {
    /// The value of the one header of this name, as text.
    ///
    /// # Errors
    /// When there is none or more than one, or its value is no text.
    pub(crate) fn header(&self, name: &str) -> anyhow::Result<&str> {
        let mut named = self.headers.iter().filter(|(found, _)| found == name.as_bytes());
        match (named.next(), named.next()) {
            (Some((_, Some(value))), None) => Ok(std::str::from_utf8(value)?),
            (None, _) => bail!("no header `{name}`"),
            (Some(_), None) => bail!("header `{name}` has no value"),
            (Some(_), Some(_)) => bail!("header `{name}` twice"),
        }
    }
}

/// The client; every call opens its own connections.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    brokers: String,
    settings: Vec<(String, String)>,
}

impl Client {
    /// A client of the broker at `host:port`.
    pub(crate) fn new(brokers: &str) -> Self {
        Self { brokers: brokers.to_owned(), settings: Vec::new() }
    }

    /// The same client with further settings of librdkafka, such as `compression.type=zstd`.
    pub(crate) fn with(&self, settings: impl IntoIterator<Item = String>) -> Self {
        let mut more = self.clone();
        let pairs = settings.into_iter().map(|setting| {
            let (name, value) = setting.split_once('=').unwrap_or((&setting, ""));
            (name.to_owned(), value.to_owned())
        });
        more.settings.extend(pairs);
        more
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config.set("message.max.bytes", LARGEST).set("receive.message.max.bytes", "100000000");
        for (name, value) in &self.settings {
            config.set(name, value);
        }
        config
    }

    fn consumer(&self) -> anyhow::Result<BaseConsumer> {
        // Never a member of a group: partitions are assigned by hand; the client wants a name all the same.
        let mut config = self.config();
        config.set("group.id", "tests").set("enable.auto.commit", "false").set("fetch.message.max.bytes", LARGEST);
        config.set("fetch.wait.max.ms", "10").set("auto.offset.reset", "error").set("enable.partition.eof", "true");
        Ok(config.create()?)
    }

    /// Whether the broker answers and knows itself.
    pub(crate) fn answers(&self) -> bool {
        self.consumer().is_ok_and(|consumer| {
            consumer.fetch_metadata(None, Duration::from_secs(2)).is_ok_and(|found| !found.brokers().is_empty())
        })
    }

    /// The topics of the broker, its own left out.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub(crate) fn topics(&self) -> anyhow::Result<Vec<String>> {
        let found = self.consumer()?.fetch_metadata(None, REQUEST)?;
        Ok(found.topics().iter().map(|topic| topic.name().to_owned()).filter(|name| !name.starts_with("__")).collect())
    }

    /// Produces all of `records` in order and waits until the broker has acknowledged them.
    ///
    /// # Errors
    /// When one of them is not acknowledged.
    pub(crate) fn produce(&self, topic: &str, records: impl IntoIterator<Item = Record>) -> anyhow::Result<()> {
        let producer = self.producer()?;
        for record in records {
            producer.send(topic, &record)?;
        }
        producer.flush()
    }

    /// Produces the events that `make` gives for 0, 1, 2, ... on a thread of its own, about 50,000 a second, until it
    /// is told to stop: there is always work while a test disturbs it.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub(crate) fn feed(&self, topic: &str, make: fn(u64) -> Record) -> anyhow::Result<Feeder> {
        self.feed_at(50_000, topic, make)
    }

    /// [`feed`](Self::feed) at about another rate, in events per second; for tests that take longer.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub(crate) fn feed_at(&self, rate: u64, topic: &str, make: fn(u64) -> Record) -> anyhow::Result<Feeder> {
        let producer = self.producer()?;
        let topic = topic.to_owned();
        Ok(Feeder::start(move |stop| {
            let mut number = 0;
            while !stop.load(Relaxed) && number < FED_AT_MOST {
                for _ in 0..rate / 100 {
                    producer.send(&topic, &make(number))?;
                    number += 1;
                }
                pace(Duration::from_millis(10));
            }
            producer.flush()?;
            Ok(number)
        }))
    }

    fn producer(&self) -> anyhow::Result<Load> {
        let mut config = self.config();
        config.set("enable.idempotence", "true").set("linger.ms", "5").set("partitioner", "murmur2_random");
        config.set("queue.buffering.max.messages", "1000000");
        Ok(Load { producer: config.create_with_context(Reports::default())? })
    }

    /// The low and high watermark of each partition of a topic.
    ///
    /// # Errors
    /// When the topic does not exist or the broker does not answer.
    pub(crate) fn watermarks(&self, topic: &str) -> anyhow::Result<BTreeMap<i32, (i64, i64)>> {
        let consumer = self.consumer()?;
        partitions(&consumer, topic)?
            .into_iter()
            .map(|partition| Ok((partition, consumer.fetch_watermarks(topic, partition, REQUEST)?)))
            .collect()
    }

    /// How many events the topics have together; 0 for those that do not exist.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub(crate) fn count<S: AsRef<str>>(&self, topics: &[S]) -> anyhow::Result<i64> {
        count(&self.consumer()?, topics)
    }

    /// Waits until the topics together hold `events` events; gives how many there are by then.
    ///
    /// # Errors
    /// When they do not within `limit`.
    pub(crate) fn wait_for_events<S: AsRef<str>>(
        &self,
        limit: Duration,
        topics: &[S],
        events: i64,
    ) -> anyhow::Result<i64> {
        let consumer = self.consumer()?;
        let mut last = 0;
        let names: Vec<&str> = topics.iter().map(AsRef::as_ref).collect();
        wait_until(limit, &format!("{events} events in {names:?}"), || {
            match count(&consumer, topics) {
                Ok(found) => last = found,
                Err(error) if is_too_young(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
            Ok((last >= events).then_some(last))
        })
        .with_context(|| format!("{last} events are there"))
    }

    /// What a group has committed for a topic, by partition; partitions without an offset are left out.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub(crate) fn committed(&self, group: &str, topic: &str) -> anyhow::Result<BTreeMap<i32, i64>> {
        let consumer: BaseConsumer = self.config().set("group.id", group).create()?;
        let mut wanted = TopicPartitionList::new();
        for partition in partitions(&consumer, topic)? {
            wanted.add_partition(topic, partition);
        }
        let found = consumer.committed_offsets(wanted, REQUEST)?;
        Ok(found
            .elements()
            .iter()
            .filter_map(|element| match element.offset() {
                Offset::Offset(offset) => Some((element.partition(), offset)),
                _ => None,
            })
            .collect())
    }

    /// Waits until a group has confirmed everything that a topic holds.
    ///
    /// # Errors
    /// When it does not, within `limit`; with what it has confirmed.
    pub(crate) fn wait_for_commits(&self, limit: Duration, group: &str, topic: &str) -> anyhow::Result<()> {
        let mut stands = String::new();
        wait_until(limit, "the group to have confirmed everything", || {
            let (ends, committed) = (self.watermarks(topic)?, self.committed(group, topic)?);
            stands = format!("{topic} ends at {ends:?}, committed is {committed:?}");
            Ok(ends.iter().all(|(at, (_, high))| *high == 0 || committed.get(at) == Some(high)).then_some(()))
        })
        .with_context(|| stands)
    }

    /// How many members a consumer group has once it is stable; `None` while it is not.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub(crate) fn members(&self, group: &str) -> anyhow::Result<Option<usize>> {
        let found = self.consumer()?.fetch_group_list(Some(group), REQUEST)?;
        let group = found.groups().iter().find(|found| found.name() == group);
        Ok(group.filter(|group| group.state() == "Stable").map(|group| group.members().len()))
    }

    /// Everything that a topic holds now, partition by partition.
    ///
    /// # Errors
    /// When the topic does not exist, or not all of it comes in time.
    pub(crate) fn read(&self, topic: &str) -> anyhow::Result<Vec<Received>> {
        let consumer = self.consumer()?;
        let mut assigned = TopicPartitionList::new();
        let mut open = BTreeMap::new();
        for (partition, (low, high)) in self.watermarks(topic)? {
            if high > low {
                assigned.add_partition_offset(topic, partition, Offset::Offset(low))?;
                open.insert(partition, high);
            }
        }
        consumer.assign(&assigned)?;
        let deadline = Instant::now() + WORKLOAD;
        let mut received = Vec::new();
        while !open.is_empty() {
            ensure!(Instant::now() < deadline, "reading {topic}: {} of it missing after {WORKLOAD:?}", open.len());
            match consumer.poll(Timeout::After(Duration::from_millis(100))) {
                // The end of a partition tells what an offset alone cannot: after it come only markers, no events.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.remove(&partition);
                }
                Some(Err(error)) => bail!("reading {topic}: {error}"),
                Some(Ok(message)) if open.get(&message.partition()).is_some_and(|high| message.offset() < *high) => {
                    received.push(Received::from_message(&message)?);
                }
                // Newer than this call, or nothing yet.
                Some(Ok(_)) | None => {}
            }
        }
        received.sort_by_key(|event| (event.partition, event.offset));
        Ok(received)
    }
}

fn count<S: AsRef<str>>(consumer: &BaseConsumer, topics: &[S]) -> anyhow::Result<i64> {
    let found = consumer.fetch_metadata(None, REQUEST)?;
    let mut count = 0;
    for topic in found.topics().iter().filter(|found| topics.iter().any(|topic| topic.as_ref() == found.name())) {
        for partition in topic.partitions() {
            let (low, high) = consumer.fetch_watermarks(topic.name(), partition.id(), REQUEST)?;
            count += high - low;
        }
    }
    Ok(count)
}

/// A topic that was made a moment ago is known before its partitions have their leaders.
fn is_too_young(error: &anyhow::Error) -> bool {
    use RDKafkaErrorCode::{LeaderNotAvailable, NotLeaderForPartition, UnknownPartition, UnknownTopicOrPartition};
    let code = error.downcast_ref::<KafkaError>().and_then(KafkaError::rdkafka_error_code);
    matches!(code, Some(LeaderNotAvailable | NotLeaderForPartition | UnknownPartition | UnknownTopicOrPartition))
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> anyhow::Result<Vec<i32>> {
    let found = consumer.fetch_metadata(Some(topic), REQUEST)?;
    let found = found.topics().first().context("no answer about the topic")?;
    ensure!(found.error().is_none() && !found.partitions().is_empty(), "topic {topic}: {:?}", found.error());
    Ok(found.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect())
}

impl Record {
    fn base<'a>(&'a self, topic: &'a str) -> BaseRecord<'a, [u8], [u8]> {
        let mut base = BaseRecord::to(topic);
        base.partition = self.partition;
        base.key = self.key.as_deref();
        base.payload = self.value.as_deref();
        base.timestamp = self.timestamp;
        if !self.headers.is_empty() {
            let headers = self.headers.iter().fold(OwnedHeaders::new(), |headers, (name, value)| {
                headers.insert(Header { key: name, value: value.as_deref() })
            });
            base = base.headers(headers);
        }
        base
    }
}

impl Received {
    fn from_message(message: &BorrowedMessage<'_>) -> anyhow::Result<Self> {
        Ok(Self {
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers(message)?,
            timestamp: message.timestamp().to_millis(),
        })
    }
}

/// The headers as bytes: the client's own reader panics on a name that is not UTF-8.
fn headers(message: &BorrowedMessage<'_>) -> anyhow::Result<Vec<RawHeader>> {
    let mut list = std::ptr::null_mut();
    // SAFETY: the message lives as long as the borrow, and the list belongs to the message.
    match unsafe { bindings::rd_kafka_message_headers(message.ptr(), &raw mut list) } {
        bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => {}
        bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__NOENT => return Ok(Vec::new()),
        error => bail!("headers: {error:?}"),
    }
    let mut headers = Vec::new();
    loop {
        let (mut name, mut value, mut size) = (std::ptr::null(), std::ptr::null(), 0);
        // SAFETY: the list was given above and is not changed meanwhile; the rest are places for the answer.
        let error = unsafe {
            bindings::rd_kafka_header_get_all(list, headers.len(), &raw mut name, &raw mut value, &raw mut size)
        };
        if error != bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(headers);
        }
        // SAFETY: a name ends with a zero byte; it lives as long as the message.
        let name = unsafe { CStr::from_ptr(name) }.to_bytes().to_vec();
        // SAFETY: `size` bytes are readable from `value`, which lives as long as the message.
        let value =
            (!value.is_null()).then(|| unsafe { std::slice::from_raw_parts(value.cast::<u8>(), size) }.to_vec());
        headers.push((name, value));
    }
}

/// A producer and what it was told.
struct Load {
    producer: BaseProducer<Reports>,
}

impl Load {
    fn send(&self, topic: &str, record: &Record) -> anyhow::Result<()> {
        let deadline = Instant::now() + WORKLOAD;
        let mut next = record.base(topic);
        while let Err((error, back)) = self.producer.send(next) {
            let full = matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
            ensure!(full && Instant::now() < deadline, "producing to {topic}: {error}");
            self.producer.poll(Duration::from_millis(10));
            next = back;
        }
        self.producer.poll(Duration::ZERO);
        Ok(())
    }

    fn flush(&self) -> anyhow::Result<()> {
        self.producer.flush(WORKLOAD).context("producing")?;
        let failed = self.producer.context().failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        ensure!(failed.is_empty(), "{} events not acknowledged, the first: {}", failed.len(), failed[0]);
        Ok(())
    }
}

/// Keeps the delivery reports that are errors.
#[derive(Default)]
struct Reports {
    failed: std::sync::Mutex<Vec<String>>,
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(error.to_string());
        }
    }
}
