//! A cluster, sources on threads of their own, and waiting with deadlines.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use fluxmill::broker::kafka::mock::MockKafka;
use fluxmill::broker::kafka::{KafkaProducer, KafkaSink, KafkaSource, LibrdkafkaProducer};
use fluxmill::broker::{BrokerError, PublishReport, Sink, Source as _, SourceContext, SourceEnd};
use fluxmill::delivery::{Slot, Tracker};
use fluxmill::event::{BatchBuilder, EventBatch, Origin, Publication};
use fluxmill::intake::{Bell, Delivery, Intake, Lanes};
use fluxmill::spec::{
    BatchLimits, ColumnarSettings, CommitSpec, Guarantee, KafkaClient, KafkaConnection, KafkaSourceSpec, Order,
    StartOffset,
};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Nothing here takes this long unless it hangs: longer than a session (45 s), after which a group is whole again at last.
pub const DEADLINE: Duration = Duration::from_secs(100);

/// A row: key, value, timestamp, headers.
pub type Row = (Option<Vec<u8>>, Option<Vec<u8>>, i64, Vec<(Vec<u8>, Option<Vec<u8>>)>);

/// A cluster with topics. With `RUST_LOG` set, the test shows its log.
pub fn cluster(topics: &[(&str, u16)]) -> MockKafka {
    // Another test may have set it up already.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    let mock = MockKafka::start(1).unwrap();
    for (topic, partitions) in topics {
        mock.create_topic(topic, *partitions).unwrap();
    }
    mock
}

/// The client that a case is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Columnar,
    Librdkafka,
}

/// Runs each of these cases for both clients.
#[macro_export]
macro_rules! both {
    ($($case:ident,)*) => {
        mod columnar {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    super::$case($crate::harness::Client::Columnar).await;
                }
            )*
        }

        mod librdkafka {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    super::$case($crate::harness::Client::Librdkafka).await;
                }
            )*
        }
    };
}

/// How a client connects. Of the properties, the columnar client knows those that the cases here use.
pub fn with(mock: &MockKafka, client: Client, properties: &[(&str, &str)]) -> KafkaConnection {
    let mut connection = mock.connection();
    if client == Client::Columnar {
        let mut settings = ColumnarSettings {
            fetch_wait: Duration::from_millis(5),
            reconnect_backoff: (Duration::from_millis(10), Duration::from_millis(100)),
            ..ColumnarSettings::default()
        };
        for (name, value) in properties {
            match *name {
                "message.max.bytes" => settings.message_bytes_max = value.parse().unwrap(),
                "queue.buffering.max.kbytes" => settings.buffer_bytes = value.parse::<usize>().unwrap() << 10,
                _ => {}
            }
        }
        connection.client = KafkaClient::Columnar(settings);
    }
    // The mock answers an idle fetch only at the end of its wait.
    connection.properties.insert("fetch.wait.max.ms".into(), "5".into());
    // Once a group had a member, the mock waits for a second less than this whenever one comes or goes.
    connection.properties.insert("session.timeout.ms".into(), "2000".into());
    connection.properties.insert("heartbeat.interval.ms".into(), "100".into());
    for (name, value) in properties {
        connection.properties.insert((*name).into(), (*value).into());
    }
    connection
}

pub fn batch(rows: &[Row]) -> EventBatch {
    let mut builder = BatchBuilder::default();
    for (at, (key, value, timestamp, headers)) in rows.iter().enumerate() {
        let headers = headers.iter().map(|(name, value)| (name.as_slice(), value.as_deref()));
        let origin = Origin { slot: Slot(0), offset: at as i64 };
        builder.append(origin, key.as_deref(), value.as_deref(), *timestamp, headers);
    }
    builder.finish()
}

/// Rows with a number each as key and value.
pub fn numbers(range: std::ops::Range<u32>) -> Vec<Row> {
    let row = |number: u32| {
        let text = number.to_string().into_bytes();
        (Some(text.clone()), Some(text), 1_700_000_000_000 + i64::from(number), Vec::new())
    };
    range.map(row).collect()
}

pub fn row(batch: &EventBatch, at: usize) -> Row {
    let event = batch.row(at);
    let headers = event.headers.map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))).collect();
    (event.key.map(<[u8]>::to_vec), event.value.map(<[u8]>::to_vec), event.timestamp, headers)
}

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {DEADLINE:?}"),
    }
}

/// A producer, and what drives it.
pub struct Publisher {
    producer: KafkaProducer,
    driver: Option<JoinHandle<()>>,
}

impl Publisher {
    pub fn connect(mock: &MockKafka, client: Client, properties: &[(&str, &str)]) -> Self {
        let (producer, driver) = KafkaProducer::connect(&with(mock, client, properties), "test").unwrap();
        Self { producer, driver: driver.map(|driver| tokio::spawn(driver.run())) }
    }

    pub fn sink(&self, topic: &str) -> KafkaSink {
        self.producer.sink(topic)
    }

    pub async fn close(self, timeout: Duration) {
        // librdkafka's blocks its thread.
        let runtime = tokio::runtime::Handle::current();
        let producer = self.producer;
        tokio::task::spawn_blocking(move || runtime.block_on(producer.close(timeout))).await.unwrap();
        if let Some(driver) = self.driver {
            soon("the driver ends", driver).await.unwrap();
        }
    }
}

pub async fn publish(sink: &impl Sink, rows: &[Row]) -> Result<PublishReport, BrokerError> {
    let acknowledged = soon("publish", sink.publish(Publication::unchanged(batch(rows)))).await?;
    soon("acknowledge", acknowledged).await
}

/// Publishes rows that the broker takes.
pub async fn fill(mock: &MockKafka, topic: &str, rows: &[Row]) {
    let producer = LibrdkafkaProducer::connect(&with(mock, Client::Librdkafka, &[]), "fill").unwrap();
    assert!(publish(&producer.sink(topic), rows).await.unwrap().refused.is_empty());
    tokio::task::spawn_blocking(move || producer.close(DEADLINE)).await.unwrap();
}

/// The offsets that a group has committed on the partitions of a topic.
pub fn committed(mock: &MockKafka, group: &str, topic: &str, partitions: i32) -> Vec<Option<i64>> {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", mock.address()).set("group.id", group).create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, partitions - 1);
    let list = consumer.committed_offsets(list, DEADLINE).unwrap();
    let offset = |partition| match list.find_partition(topic, partition).unwrap().offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    };
    (0..partitions).map(offset).collect()
}

/// How a source is run.
pub struct Setup {
    pub client: Client,
    pub group: &'static str,
    pub topic: &'static str,
    pub start: StartOffset,
    pub lanes: usize,
    pub max_events: usize,
    pub drain_timeout: Duration,
    pub until_caught_up: bool,
    pub properties: &'static [(&'static str, &'static str)],
}

impl Setup {
    pub fn of(client: Client) -> Self {
        Self {
            client,
            group: "group",
            topic: "orders",
            start: StartOffset::Earliest,
            lanes: 1,
            max_events: 100,
            drain_timeout: DEADLINE,
            until_caught_up: false,
            properties: &[],
        }
    }

    pub fn run(self, mock: &MockKafka) -> Running {
        let connection = with(mock, self.client, self.properties);
        self.run_at(&connection)
    }

    pub fn run_at(self, connection: &KafkaConnection) -> Running {
        let (tracker, bell) = (Arc::new(Tracker::default()), Arc::new(Bell::default()));
        let limits = BatchLimits { max_events: self.max_events, max_bytes: 1 << 20, max_wait: Duration::ZERO };
        let lanes = Lanes::new(self.lanes, Order::Partition, limits, &tracker, &bell);
        let intakes = lanes.intakes().to_vec();
        let (stop, caught_up) = (CancellationToken::new(), CancellationToken::new());
        caught_up.cancel();
        let context = SourceContext {
            lanes,
            tracker,
            bell: bell.clone(),
            stop: stop.clone(),
            reads: CancellationToken::new(),
            commit: CommitSpec::of(Guarantee::AtLeastOnce),
            caught_up: self.until_caught_up.then_some(caught_up),
            drain_timeout: self.drain_timeout,
        };
        let spec = KafkaSourceSpec {
            connection: "main".into(),
            topics: vec![self.topic.into()],
            group: self.group.into(),
            instance: None,
            start: self.start,
        };
        let source = KafkaSource::new(connection, &spec, "test").unwrap();
        let (ended, end) = mpsc::channel();
        std::thread::spawn(move || ended.send(source.run(context)));
        Running { intakes, bell, stop, end }
    }
}

/// A source that runs.
pub struct Running {
    pub intakes: Vec<Arc<Intake>>,
    bell: Arc<Bell>,
    stop: CancellationToken,
    end: mpsc::Receiver<Result<SourceEnd, BrokerError>>,
}

impl Running {
    /// The next batch of a lane.
    pub async fn take(&self, lane: usize) -> Delivery {
        soon("take a batch", self.intakes[lane].take()).await.expect("the source goes on")
    }

    /// Takes and ends batches of a lane until it has seen `rows` rows.
    pub async fn take_rows(&self, lane: usize, rows: usize) -> Vec<Row> {
        let mut taken = Vec::new();
        while taken.len() < rows {
            let delivery = self.take(lane).await;
            taken.extend((0..delivery.batch.len()).map(|at| row(&delivery.batch, at)));
            delivery.token.done();
        }
        taken
    }

    pub fn stop(&self) {
        self.stop.cancel();
        self.bell.ring();
    }

    /// Waits for the source's end.
    pub async fn end(self) -> Result<SourceEnd, BrokerError> {
        let end = self.end;
        tokio::task::spawn_blocking(move || end.recv_timeout(DEADLINE)).await.unwrap().expect("the source ends in time")
    }
}

/// Counts how often each row was delivered, by partition and offset.
#[derive(Default)]
pub struct Seen(pub BTreeMap<(i32, i64), u32>);

impl Seen {
    pub fn batch(&mut self, delivery: &Delivery) {
        for at in 0..delivery.batch.len() {
            let origin = delivery.batch.origin(at);
            // A row whose partition was lost meanwhile is delivered to someone else.
            if let Some(partition) = delivery.token.partition(origin.slot) {
                *self.0.entry((partition.partition, origin.offset)).or_default() += 1;
            }
        }
    }
}

/// Waits until something is so.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    while !is_so() {
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        ticks.tick().await;
    }
}
