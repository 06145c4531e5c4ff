//! The fetcher against a cluster whose answers go wrong.

use std::time::Duration;

use kafka_protocol::messages::fetch_response::{EpochEndOffset, LeaderIdAndEpoch};
use kafka_protocol::messages::{ApiKey, BrokerId};

use super::*;
use crate::broker::BrokerErrorKind;
use crate::broker::kafka::client::Notes;
use crate::broker::kafka::wire::fake::{Cluster, Fault, Log, Raw};
use crate::broker::kafka::wire::response::ErrorCode;
use crate::delivery::{TopicPartition, Tracker};
use crate::intake::Bell;
use crate::spec::BatchLimits;

/// Nothing here takes this long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(30);

/// Codes after which a partition is asked for again.
const PASSING: [ErrorCode; 9] = [
    ErrorCode::NOT_LEADER_OR_FOLLOWER,
    ErrorCode::LEADER_NOT_AVAILABLE,
    ErrorCode::UNKNOWN_TOPIC_OR_PARTITION,
    ErrorCode::FENCED_LEADER_EPOCH,
    ErrorCode::UNKNOWN_LEADER_EPOCH,
    ErrorCode::OFFSET_NOT_AVAILABLE,
    ErrorCode::REPLICA_NOT_AVAILABLE,
    ErrorCode::KAFKA_STORAGE_ERROR,
    ErrorCode::CORRUPT_MESSAGE,
];

fn settings() -> ColumnarSettings {
    ColumnarSettings {
        fetch_wait: Duration::from_millis(20),
        reconnect_backoff: (Duration::from_millis(5), Duration::from_millis(20)),
        socket_timeout: Duration::from_millis(500),
        ..ColumnarSettings::default()
    }
}

/// A fetcher, its lanes, and what they took.
struct Reader {
    fetcher: Fetcher,
    lanes: Lanes,
    tracker: Arc<Tracker>,
    consumer: Arc<Consumer>,
    /// Lanes that take nothing.
    stalled: Vec<usize>,
    /// Topic, partition, offset and value.
    rows: Vec<(String, i32, i64, String)>,
}

impl Reader {
    fn new(cluster: &Cluster, settings: &ColumnarSettings, lanes: usize) -> Self {
        let (tracker, bell) = (Arc::new(Tracker::default()), Arc::new(Bell::default()));
        let limits = BatchLimits { max_events: 100, max_bytes: 1 << 20, max_wait: Duration::ZERO };
        let lanes = Lanes::new(lanes, Order::Partition, limits, &tracker, &bell);
        let connection = cluster.connection(settings);
        let options = Options::new(&connection, "test").unwrap();
        let mut config = rdkafka::ClientConfig::new();
        config.set("group.id", "test");
        Self {
            fetcher: Fetcher::new(&connection, settings, options, lanes.clone()),
            lanes,
            tracker,
            consumer: Arc::new(Notes::consumer(&config, "test").unwrap()),
            stalled: Vec::new(),
            rows: Vec::new(),
        }
    }

    fn begin(&mut self, topic: &str, partition: i32, position: Option<i64>) -> Slot {
        let partition = TopicPartition { topic: topic.into(), partition };
        let assignment = Assignment { slot: self.tracker.assign(partition.clone()), partition };
        self.fetcher.begin(&self.consumer, &assignment, position).unwrap();
        assignment.slot
    }

    fn lanes(&mut self) {
        for (lane, intake) in self.lanes.intakes().iter().enumerate() {
            if self.stalled.contains(&lane) {
                continue;
            }
            while let Some(delivery) = intake.take().now_or_never().flatten() {
                for at in 0..delivery.batch.len() {
                    let origin = delivery.batch.origin(at);
                    // A row whose partition was given up meanwhile is somebody else's.
                    let Some(name) = delivery.token.partition(origin.slot) else { continue };
                    let value = String::from_utf8_lossy(delivery.batch.row(at).value.unwrap_or(b"-")).into_owned();
                    self.rows.push((name.topic.to_string(), name.partition, origin.offset, value));
                }
                delivery.token.done();
            }
        }
    }

    /// Goes on until something is so, as a source does.
    async fn until(&mut self, mut is_so: impl FnMut(&Self) -> bool) -> Result<(), BrokerError> {
        let work = async {
            loop {
                self.fetcher.start();
                let moved = self.fetcher.take()?;
                self.lanes();
                if is_so(self) {
                    return Ok(());
                }
                if !moved {
                    tokio::select! {
                        biased;
                        ended = self.fetcher.next() => ended?,
                        () = tokio::time::sleep(Duration::from_millis(5)) => {}
                    }
                }
            }
        };
        tokio::time::timeout(DEADLINE, work).await.expect("it hangs")
    }

    /// Goes on until so many rows have come.
    async fn read(&mut self, rows: usize) -> Result<(), BrokerError> {
        self.until(|reader| reader.rows.len() >= rows).await
    }

    /// The offsets of a partition's rows, in the order in which they came.
    fn offsets(&self, topic: &str, partition: i32) -> Vec<i64> {
        self.rows.iter().filter(|row| row.0 == topic && row.1 == partition).map(|row| row.2).collect()
    }
}

/// So many rows in batches of ten.
fn fill(log: &mut Log, rows: i64) {
    let from = log.end;
    for base in (from..from + rows).step_by(10) {
        let mut raw = Raw::whole(base, base + 9);
        raw.epoch = log.epoch;
        log.keep(raw.bytes());
    }
}

/// One topic of one partition with rows.
fn cluster(brokers: usize, rows: i64) -> Cluster {
    let cluster = Cluster::start(brokers, &[("orders", 1)]);
    cluster.log("orders", 0, |log| fill(log, rows));
    cluster
}

#[tokio::test]
async fn all_partitions_of_all_brokers_are_read_in_order() {
    let cluster = Cluster::start(3, &[("orders", 5), ("payments", 2)]);
    let mut reader = Reader::new(&cluster, &settings(), 2);
    for (topic, partitions) in [("orders", 5), ("payments", 2)] {
        for partition in 0..partitions {
            cluster.log(topic, partition as usize, |log| fill(log, 500));
            reader.begin(topic, partition, if partition % 2 == 0 { None } else { Some(5) });
        }
    }
    reader.read(7 * 500 - 3 * 5).await.unwrap();
    for (topic, partitions) in [("orders", 5), ("payments", 2)] {
        for partition in 0..partitions {
            let from = if partition % 2 == 0 { 0 } else { 5 };
            assert_eq!(reader.offsets(topic, partition), (from..500).collect::<Vec<_>>(), "{topic}/{partition}");
        }
    }
}

#[tokio::test]
async fn what_may_pass_is_asked_for_again_but_not_at_once() {
    for api in [ApiKey::Fetch, ApiKey::ListOffsets] {
        for code in PASSING {
            let cluster = cluster(1, 100);
            cluster.say(api, code, 3);
            let mut reader = Reader::new(&cluster, &settings(), 1);
            reader.begin("orders", 0, None);
            let start = Instant::now();
            reader.read(100).await.unwrap();
            assert_eq!(reader.offsets("orders", 0), (0..100).collect::<Vec<_>>(), "{api:?} {code}");
            assert!(start.elapsed() >= 3 * PARTITION_PAUSE, "{api:?} {code}: after {:?}", start.elapsed());
            assert_eq!(reader.fetcher.take_missing(), code == ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
        }
    }
}

#[tokio::test]
async fn a_broken_connection_is_made_again_and_nothing_is_read_twice() {
    for api in [ApiKey::Fetch, ApiKey::ListOffsets, ApiKey::Metadata, ApiKey::ApiVersions] {
        let cluster = cluster(2, 200);
        let faults = [Fault::HangUp, Fault::HangUpAfter, Fault::HalfAnswer, Fault::Silence, Fault::HangUp];
        cluster.fail(api, faults);
        let settings = ColumnarSettings { connect_timeout: Duration::from_millis(300), ..settings() };
        let mut reader = Reader::new(&cluster, &settings, 1);
        reader.begin("orders", 0, None);
        reader.read(200).await.unwrap();
        assert_eq!(reader.offsets("orders", 0), (0..200).collect::<Vec<_>>(), "{api:?}");
    }
}

#[tokio::test]
async fn the_leader_is_followed() {
    let cluster = cluster(2, 100);
    let mut reader = Reader::new(&cluster, &settings(), 1);
    reader.begin("orders", 0, Some(0));
    reader.read(100).await.unwrap();
    for leader in [Some(1), Some(0), None, Some(1)] {
        cluster.log("orders", 0, |log| log.lead(leader));
        if leader.is_some() {
            cluster.log("orders", 0, |log| fill(log, 50));
            let rows = reader.rows.len() + 50;
            reader.read(rows).await.unwrap();
        } else {
            // No leader is told of a few times.
            let asked = cluster.count(ApiKey::Metadata);
            reader.until(|_| cluster.count(ApiKey::Metadata) >= asked + 3).await.unwrap();
        }
    }
    assert_eq!(reader.offsets("orders", 0), (0..250).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_leader_that_a_fetch_tells_of_is_believed() {
    let cluster = cluster(2, 100);
    let mut reader = Reader::new(&cluster, &settings(), 1);
    reader.begin("orders", 0, Some(0));
    reader.read(100).await.unwrap();
    cluster.lock().topic_errors.insert("orders".into(), ErrorCode::LEADER_NOT_AVAILABLE);
    cluster.fail(
        ApiKey::Fetch,
        [Fault::Fetched(Box::new(|answer| {
            let told = &mut answer.responses[0].partitions[0];
            told.error_code = ErrorCode::NOT_LEADER_OR_FOLLOWER.0;
            told.current_leader = LeaderIdAndEpoch::default().with_leader_id(BrokerId(1)).with_leader_epoch(1);
        }))],
    );
    cluster.log("orders", 0, |log| {
        log.lead(Some(1));
        fill(log, 100);
    });
    reader.read(200).await.unwrap();
    assert_eq!(reader.offsets("orders", 0), (0..200).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_topic_that_was_made_anew_is_found_with_its_lower_epochs() {
    let cluster = Cluster::start(2, &[("orders", 1)]);
    for _ in 0..4 {
        cluster.log("orders", 0, |log| log.lead(Some(0)));
    }
    let mut reader = Reader::new(&cluster, &settings(), 1);
    reader.begin("orders", 0, None);
    let asked = cluster.count(ApiKey::Fetch);
    reader.until(|_| cluster.count(ApiKey::Fetch) > asked + 1).await.unwrap();
    cluster.log("orders", 0, |log| {
        *log = Log::new(1);
        fill(log, 20);
    });
    reader.read(20).await.unwrap();
    assert_eq!(reader.offsets("orders", 0), (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_throttled_client_waits() {
    let cluster = cluster(1, 100);
    cluster.fail(ApiKey::Fetch, [Fault::Throttle(300)]);
    let mut reader = Reader::new(&cluster, &settings(), 1);
    reader.begin("orders", 0, Some(0));
    reader.read(100).await.unwrap();
    let start = Instant::now();
    cluster.log("orders", 0, |log| fill(log, 10));
    reader.read(110).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(250), "after {:?}", start.elapsed());
}

#[tokio::test]
async fn an_offset_that_is_gone_is_followed_by_the_oldest_one() {
    let cluster = cluster(1, 100);
    cluster.log("orders", 0, |log| {
        log.lead(Some(0));
        fill(log, 100);
        log.start = 150;
    });
    let mut reader = Reader::new(&cluster, &settings(), 1);
    reader.begin("orders", 0, Some(20));
    reader.read(50).await.unwrap();
    assert_eq!(reader.offsets("orders", 0), (150..200).collect::<Vec<_>>());
    // Of what comes now no epoch of before is told.
    assert_eq!(reader.fetcher.partitions[0].last_epoch, 1);
}

#[tokio::test]
async fn a_log_that_was_cut_off_below_what_was_read_is_an_error() {
    let cluster = cluster(1, 100);
    let mut reader = Reader::new(&cluster, &settings(), 1);
    reader.begin("orders", 0, Some(0));
    reader.read(100).await.unwrap();
    cluster.fail(
        ApiKey::Fetch,
        [Fault::Fetched(Box::new(|answer| {
            let told = &mut answer.responses[0].partitions[0];
            told.diverging_epoch = EpochEndOffset::default().with_epoch(0).with_end_offset(60);
        }))],
    );
    let error = reader.read(101).await.unwrap_err();
    assert_eq!(error.kind, BrokerErrorKind::Fatal);
    assert_eq!(error.action, "read partition 0 of topic orders");
    assert!(error.reason.contains("from 99 to 60"), "{error}");
    // Where the broker does not tell: the offset is above the end.
    let mut reader = Reader::new(&cluster, &settings(), 1);
    reader.begin("orders", 0, Some(0));
    reader.read(100).await.unwrap();
    cluster.log("orders", 0, |log| {
        *log = Log::new(0);
        fill(log, 10);
    });
    let error = reader.read(101).await.unwrap_err();
    assert!(error.reason.contains("from 99 to 0"), "{error}");
}

#[tokio::test]
async fn a_corrupt_batch_is_named() {
    let cluster = cluster(1, 20);
    let mut batch = Raw::whole(20, 29).bytes();
    *batch.last_mut().unwrap() ^= 1;
    cluster.log("orders", 0, |log| log.keep(batch));
    let mut reader = Reader::new(&cluster, &settings(), 1);
    reader.begin("orders", 0, Some(0));
    let error = reader.read(30).await.unwrap_err();
    assert_eq!(error.kind, BrokerErrorKind::Fatal);
    assert_eq!(error.action, "read partition 0 of topic orders");
    assert!(error.reason.contains("offset 20") && error.reason.contains("checksum"), "{error}");
    reader.lanes();
    assert_eq!(reader.offsets("orders", 0), (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_client_that_may_not_read_is_told_so() {
    let code = ErrorCode::TOPIC_AUTHORIZATION_FAILED;
    for api in [ApiKey::Fetch, ApiKey::ListOffsets, ApiKey::Metadata] {
        let cluster = cluster(1, 10);
        if api == ApiKey::Metadata {
            cluster.lock().topic_errors.insert("orders".into(), code);
        }
        cluster.say(api, code, 1);
        let mut reader = Reader::new(&cluster, &settings(), 1);
        reader.begin("orders", 0, None);
        let error = reader.read(1).await.unwrap_err();
        assert_eq!(error.kind, BrokerErrorKind::Denied, "{api:?}: {error}");
        assert!(error.action.contains("topic orders"), "{error}");
    }
}

#[tokio::test]
async fn a_preferred_replica_is_read_and_its_loss_survived() {
    let cluster = cluster(2, 100);
    cluster.log("orders", 0, |log| log.preferred = Some(1));
    let settings = ColumnarSettings { rack: Some("here".into()), ..settings() };
    let mut reader = Reader::new(&cluster, &settings, 1);
    reader.begin("orders", 0, Some(0));
    reader.read(100).await.unwrap();
    cluster.log("orders", 0, |log| fill(log, 100));
    reader.read(200).await.unwrap();
    let of = |node| cluster.lock().requests.iter().filter(|asked| **asked == (node, ApiKey::Fetch)).count();
    assert_eq!(of(0), 1, "the leader named it once");
    // It fails while it is asked, then another time before; the leader serves from then on.
    cluster.fail(ApiKey::Fetch, [Fault::HangUpAfter]);
    cluster.log("orders", 0, |log| fill(log, 100));
    reader.read(300).await.unwrap();
    cluster.log("orders", 0, |log| {
        log.preferred = None;
        fill(log, 100);
    });
    reader.read(400).await.unwrap();
    assert_eq!(reader.offsets("orders", 0), (0..400).collect::<Vec<_>>());
    assert!(of(0) > 1);
}

#[tokio::test]
async fn a_preferred_replica_that_is_not_known_is_asked_for_in_peace() {
    let cluster = cluster(2, 100);
    cluster.log("orders", 0, |log| log.preferred = Some(1));
    cluster.lock().hidden = vec![1];
    let settings = ColumnarSettings { rack: Some("here".into()), ..settings() };
    let mut reader = Reader::new(&cluster, &settings, 1);
    reader.begin("orders", 0, Some(0));
    reader.until(|_| cluster.count(ApiKey::Fetch) >= 1).await.unwrap();
    let start = Instant::now();
    reader.until(|_| cluster.count(ApiKey::Fetch) >= 4).await.unwrap();
    assert!(start.elapsed() >= 2 * PARTITION_PAUSE, "three fetches in {:?}", start.elapsed());
    cluster.lock().hidden.clear();
    reader.read(100).await.unwrap();
    assert_eq!(reader.offsets("orders", 0), (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_full_lane_is_not_fetched_for_and_others_go_on() {
    let cluster = Cluster::start(1, &[("orders", 2)]);
    let settings = ColumnarSettings { partition_fetch_bytes: 2_000, ..settings() };
    let mut reader = Reader::new(&cluster, &settings, 2);
    for partition in 0..2 {
        cluster.log("orders", partition, |log| fill(log, 5_000));
        reader.begin("orders", partition as i32, Some(0));
    }
    reader.stalled = vec![0];
    reader.read(5_000).await.unwrap();
    assert_eq!(reader.offsets("orders", 1), (0..5_000).collect::<Vec<_>>());
    let stalled = &reader.fetcher.partitions[0];
    assert!(!stalled.has_room(2_000) && stalled.position.unwrap() < 1_000, "{:?}", stalled.position);
    reader.stalled.clear();
    reader.read(10_000).await.unwrap();
    assert_eq!(reader.offsets("orders", 0), (0..5_000).collect::<Vec<_>>());
}

/// Each fetch brings a little, and keeps all of its response in memory while that waits.
#[tokio::test]
async fn few_responses_wait_for_a_full_lane() {
    let cluster = Cluster::start(1, &[("orders", 1)]);
    let mut reader = Reader::new(&cluster, &settings(), 1);
    reader.begin("orders", 0, Some(0));
    reader.stalled = vec![0];
    let mut asked = 0;
    for _ in 0..100 {
        cluster.log("orders", 0, |log| fill(log, 10));
        let wanted = reader.fetcher.partitions[0].position.unwrap() + 10;
        let full = |reader: &Reader| !reader.fetcher.partitions[0].has_room(1 << 20);
        reader.until(|reader| full(reader) || reader.fetcher.partitions[0].position == Some(wanted)).await.unwrap();
        if full(&reader) {
            asked = cluster.count(ApiKey::Fetch);
            break;
        }
    }
    assert!(asked > 0, "it fetches on and on");
}

#[tokio::test]
async fn no_topic_always_comes_first() {
    let cluster = Cluster::start(1, &[("a", 2), ("b", 2)]);
    let settings = ColumnarSettings { fetch_bytes: 4_000, partition_fetch_bytes: 4_000, ..settings() };
    let mut reader = Reader::new(&cluster, &settings, 1);
    for (topic, partition) in [("a", 0), ("a", 1), ("b", 0), ("b", 1)] {
        cluster.log(topic, partition, |log| fill(log, 5_000));
        reader.begin(topic, partition as i32, Some(0));
    }
    reader.read(10_000).await.unwrap();
    for (topic, partition) in [("a", 0), ("a", 1), ("b", 0), ("b", 1)] {
        let read = reader.offsets(topic, partition).len();
        assert!(read > 1_000, "{topic}/{partition} has {read} of 10000");
    }
}

#[tokio::test]
async fn no_partition_of_a_lane_always_comes_first() {
    let cluster = Cluster::start(1, &[("orders", 2)]);
    let mut reader = Reader::new(&cluster, &settings(), 1);
    for partition in 0..2 {
        cluster.log("orders", partition, |log| fill(log, 2_000));
        reader.begin("orders", partition as i32, Some(0));
    }
    reader.stalled = vec![0];
    let waits = |reader: &Reader| reader.fetcher.partitions.iter().all(|partition| !partition.is_handed_over());
    reader.until(waits).await.unwrap();
    for _ in 0..10 {
        reader.lanes.intakes()[0].take().now_or_never().flatten().unwrap().token.done();
        // A round with room, and one without.
        reader.fetcher.take().unwrap();
        reader.fetcher.take().unwrap();
    }
    for partition in &reader.fetcher.partitions {
        assert!(partition.last().is_some_and(|last| last > 400), "{:?} of 1300", partition.last());
    }
}

#[tokio::test]
async fn a_partition_that_comes_back_begins_where_the_group_says() {
    let cluster = cluster(1, 100);
    let mut reader = Reader::new(&cluster, &settings(), 1);
    let first = reader.begin("orders", 0, Some(0));
    reader.read(100).await.unwrap();
    // Given up while a fetch is on its way, which brings rows that are not taken.
    reader.fetcher.start();
    reader.fetcher.stop(first);
    reader.tracker.revoke(first);
    let second = reader.begin("orders", 0, Some(95));
    cluster.log("orders", 0, |log| fill(log, 10));
    reader.read(115).await.unwrap();
    let expected: Vec<i64> = (0..100).chain(95..110).collect();
    assert_eq!(reader.offsets("orders", 0), expected);
    assert_eq!((reader.fetcher.end(first), reader.fetcher.end(second)), (None, Some(110)));
}

#[tokio::test]
async fn the_end_is_reached_behind_a_marker() {
    let cluster = cluster(1, 10);
    cluster.log("orders", 0, |log| {
        log.keep(Raw::whole(10, 12).by(1).bytes());
        log.keep(Raw::marker(13, 1, false).bytes());
        log.aborted.push(super::super::response::Aborted { producer_id: 1, first_offset: 10 });
    });
    let mut reader = Reader::new(&cluster, &settings(), 1);
    let slot = reader.begin("orders", 0, Some(0));
    reader.until(|reader| reader.fetcher.end(slot) == Some(14)).await.unwrap();
    assert_eq!(reader.offsets("orders", 0), (0..10).collect::<Vec<_>>());
}
