//! The producer against a cluster whose answers go wrong: nothing lost, nothing doubled, order kept.

use std::future::Future;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use kafka_protocol::messages::ApiKey;
use kafka_protocol::messages::produce_response::BatchIndexAndErrorMessage;
use kafka_protocol::protocol::StrBytes;
use tokio::task::JoinHandle;

use super::*;
use crate::broker::kafka::wire::fake::{Cluster, Fault};
use crate::broker::kafka::wire::response::ErrorCode;
use crate::delivery::Slot;
use crate::event::{BatchBuilder, Origin};

/// Nothing here takes this long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long a topic may be missing in these tests.
const MISSING: Duration = Duration::from_millis(300);

/// Codes after which a batch is sent again.
const PASSING: [ErrorCode; 8] = [
    ErrorCode::NOT_LEADER_OR_FOLLOWER,
    ErrorCode::LEADER_NOT_AVAILABLE,
    ErrorCode::UNKNOWN_TOPIC_OR_PARTITION,
    ErrorCode::NOT_ENOUGH_REPLICAS,
    ErrorCode::NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    ErrorCode::REQUEST_TIMED_OUT,
    ErrorCode::KAFKA_STORAGE_ERROR,
    ErrorCode::CORRUPT_MESSAGE,
];

fn settings() -> ColumnarSettings {
    ColumnarSettings {
        reconnect_backoff: (Duration::from_millis(5), Duration::from_millis(20)),
        connect_timeout: Duration::from_millis(500),
        request_timeout: Duration::from_millis(100),
        socket_timeout: Duration::from_millis(400),
        ..ColumnarSettings::default()
    }
}

/// A producer whose driver runs.
struct Writer {
    producer: ColumnarProducer,
    driver: JoinHandle<()>,
}

impl Writer {
    fn new(cluster: &Cluster, settings: &ColumnarSettings) -> Self {
        let connection = cluster.connection(settings);
        let (producer, mut driver) = ColumnarProducer::new(&connection, settings, "test").unwrap();
        driver.missing_max = MISSING;
        #[expect(clippy::disallowed_methods, reason = "a driver of a test, which the test joins")]
        let driver = tokio::spawn(driver.run());
        Self { producer, driver }
    }

    /// Publishes and waits for the end.
    async fn publish(&self, topic: &str, values: &[String]) -> Result<PublishReport, BrokerError> {
        ended(self.producer.sink(topic).publish(publication(values))).await
    }

    /// Publishes one value after the other, each as a publication, without waiting for the ends in between.
    async fn stream(&self, topic: &str, values: &[String]) -> Vec<Result<PublishReport, BrokerError>> {
        let sink = self.producer.sink(topic);
        let mut ends = Vec::new();
        for value in values {
            ends.push(soon(sink.publish(publication(std::slice::from_ref(value)))).await.unwrap());
        }
        soon(join_all(ends)).await
    }

    async fn close(self) {
        let start = Instant::now();
        soon(self.producer.close(DEADLINE)).await;
        assert!(start.elapsed() < DEADLINE / 2, "bytes were never given back");
        soon(self.driver).await.unwrap();
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("it hangs")
}

async fn ended(
    publishing: impl Future<Output = Result<Acknowledgement, BrokerError>>,
) -> Result<PublishReport, BrokerError> {
    soon(soon(publishing).await?).await
}

/// Events with these values, without keys.
fn publication(values: &[String]) -> Publication {
    let mut builder = BatchBuilder::default();
    for value in values {
        let origin = Origin { slot: Slot(0), offset: 0 };
        builder.append(origin, None, Some(value.as_bytes()), 1_700_000_000_000, std::iter::empty());
    }
    Publication::unchanged(builder.finish())
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|number| format!("{number:04}")).collect()
}

fn rows(report: &PublishReport) -> Vec<(u32, BrokerErrorKind)> {
    report.refused.iter().map(|(row, error)| (*row, error.kind)).collect()
}

#[track_caller]
fn all_taken(ends: &[Result<PublishReport, BrokerError>]) {
    for end in ends {
        assert!(end.as_ref().unwrap().refused.is_empty(), "{end:?}");
    }
}

#[tokio::test]
async fn all_partitions_of_all_brokers_get_their_events() {
    let cluster = Cluster::start(3, &[("orders", 5), ("payments", 1)]);
    let writer = Writer::new(&cluster, &settings());
    let (orders, payments) = (numbers(0..2_000), numbers(0..500));
    let (one, two) = tokio::join!(writer.stream("orders", &orders), writer.publish("payments", &payments));
    all_taken(&one);
    all_taken(&[two]);
    let mut all: Vec<String> = (0..5).flat_map(|partition| cluster.values("orders", partition)).collect();
    all.sort_unstable();
    assert_eq!(all, orders);
    assert_eq!(cluster.values("payments", 0), payments);
    writer.close().await;
}

#[tokio::test]
async fn what_may_pass_is_sent_again_but_not_at_once() {
    for code in PASSING {
        for after in [false, true] {
            let cluster = Cluster::start(1, &[("orders", 1)]);
            let writer = Writer::new(&cluster, &settings());
            all_taken(&[writer.publish("orders", &numbers(0..3)).await]);
            let (start, before) = (Instant::now(), cluster.count(ApiKey::Produce));
            let fault = || if after { Fault::SayAfter(code) } else { Fault::Say(code) };
            cluster.fail(ApiKey::Produce, [fault(), fault(), fault()]);
            all_taken(&writer.stream("orders", &numbers(3..50)).await);
            assert!(start.elapsed() >= 3 * driver::RETRY_PAUSE, "{code}: after {:?}", start.elapsed());
            assert!(!cluster.has_faults());
            assert!(cluster.count(ApiKey::Produce) - before < 20, "{code}");
            assert_eq!(cluster.values("orders", 0), numbers(0..50), "{code}");
            writer.close().await;
        }
    }
}

#[tokio::test]
async fn a_broken_connection_is_made_again_and_nothing_is_doubled() {
    for api in [ApiKey::Produce, ApiKey::Metadata, ApiKey::InitProducerId, ApiKey::ApiVersions] {
        let cluster = Cluster::start(1, &[("orders", 2)]);
        cluster.fail(api, [Fault::HangUp, Fault::HangUpAfter, Fault::HalfAnswer, Fault::Silence, Fault::HangUpAfter]);
        let writer = Writer::new(&cluster, &settings());
        all_taken(&writer.stream("orders", &numbers(0..100)).await);
        all_taken(&writer.stream("orders", &numbers(100..200)).await);
        let mut all = Vec::new();
        for partition in 0..2 {
            let values = cluster.values("orders", partition);
            assert!(values.is_sorted(), "{api:?}: {values:?}");
            all.extend(values);
        }
        all.sort_unstable();
        assert_eq!(all, numbers(0..200), "{api:?}");
        writer.close().await;
    }
}

#[tokio::test]
async fn a_batch_that_the_broker_has_already_is_acknowledged() {
    let cluster = Cluster::start(1, &[("orders", 1)]);
    let writer = Writer::new(&cluster, &settings());
    cluster.fail(ApiKey::Produce, [Fault::SayAfter(ErrorCode::DUPLICATE_SEQUENCE_NUMBER)]);
    all_taken(&[writer.publish("orders", &numbers(0..10)).await]);
    all_taken(&[writer.publish("orders", &numbers(10..20)).await]);
    assert_eq!(cluster.values("orders", 0), numbers(0..20));
    writer.close().await;
}

#[tokio::test]
async fn numbers_that_the_broker_does_not_take_begin_anew() {
    let codes =
        [ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER, ErrorCode::UNKNOWN_PRODUCER_ID, ErrorCode::INVALID_PRODUCER_EPOCH];
    for code in codes {
        let cluster = Cluster::start(1, &[("orders", 1)]);
        let writer = Writer::new(&cluster, &settings());
        all_taken(&[writer.publish("orders", &numbers(0..10)).await]);
        cluster.say(ApiKey::Produce, code, 2);
        all_taken(&writer.stream("orders", &numbers(10..30)).await);
        assert_eq!(cluster.values("orders", 0), numbers(0..30), "{code}");
        assert!(!cluster.has_faults() && cluster.count(ApiKey::Produce) < 40, "{code}");
        let ids = if code == ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER { 1 } else { 3 };
        assert_eq!(cluster.count(ApiKey::InitProducerId), ids, "{code}");
        writer.close().await;
    }
}

#[tokio::test]
async fn a_batch_in_the_middle_fails_and_none_overtakes_it() {
    let cluster = Cluster::start(1, &[("orders", 1)]);
    let settings = ColumnarSettings { batch_bytes: 300_000, ..settings() };
    for code in [ErrorCode::NOT_ENOUGH_REPLICAS, ErrorCode::REQUEST_TIMED_OUT] {
        let writer = Writer::new(&cluster, &settings);
        all_taken(&[writer.publish("orders", &["first".into()]).await]);
        // Each is a batch of its own, large enough to be sent while others are on their way.
        let large: Vec<String> = (0..8).map(|number| format!("{number}{}", "x".repeat(280_000))).collect();
        let before = cluster.values("orders", 0).len();
        cluster.fail(ApiKey::Produce, [Fault::Say(code), Fault::SayAfter(code)]);
        all_taken(&writer.stream("orders", &large).await);
        let values = cluster.values("orders", 0);
        let firsts: Vec<&str> = values[before..].iter().map(|value| &value[..1]).collect();
        assert_eq!(firsts, ["0", "1", "2", "3", "4", "5", "6", "7"], "{code}");
        writer.close().await;
    }
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_halved_and_one_event_refused() {
    for code in [ErrorCode::MESSAGE_TOO_LARGE, ErrorCode::RECORD_LIST_TOO_LARGE] {
        let cluster = Cluster::start(1, &[("orders", 1)]);
        cluster.log("orders", 0, |log| {
            log.batch_max = 500;
            log.too_large = code;
        });
        let writer = Writer::new(&cluster, &settings());
        all_taken(&[writer.publish("orders", &["first".into()]).await]);
        let mut values = numbers(0..200);
        values[70] = "7".repeat(600);
        values[199] = "9".repeat(600);
        // Behind it, so that its numbers are in use.
        let later = numbers(200..250);
        let (report, ends) = tokio::join!(writer.publish("orders", &values), writer.stream("orders", &later));
        let report = report.unwrap();
        assert_eq!(rows(&report), [(70, BrokerErrorKind::TooLarge), (199, BrokerErrorKind::TooLarge)]);
        assert!(report.refused[0].1.to_string().contains("max.message.bytes"), "{}", report.refused[0].1);
        all_taken(&ends);
        let mut expected = vec!["first".to_owned()];
        expected.extend(numbers(0..250).into_iter().filter(|value| value != "0070" && value != "0199"));
        assert_eq!(cluster.values("orders", 0), expected);
        writer.close().await;
    }
}

#[tokio::test]
async fn events_that_the_broker_will_not_take_are_refused_alone() {
    for names_them in [true, false] {
        let cluster = Cluster::start(1, &[("orders", 1)]);
        cluster.log("orders", 0, |log| {
            log.poison = Some("0013".into());
            log.names_poison = names_them;
        });
        let writer = Writer::new(&cluster, &settings());
        all_taken(&[writer.publish("orders", &["first".into()]).await]);
        let (one, two) = (numbers(0..20), numbers(20..40));
        let (one, two) = tokio::join!(writer.publish("orders", &one), writer.publish("orders", &two));
        let one = one.unwrap();
        assert_eq!(rows(&one), [(13, BrokerErrorKind::Refused)], "names them: {names_them}");
        let words = if names_them { "poison" } else { "INVALID_RECORD" };
        assert!(one.refused[0].1.reason.contains(words), "{}", one.refused[0].1);
        all_taken(&[two]);
        all_taken(&[writer.publish("orders", &numbers(40..50)).await]);
        let mut expected = vec!["first".to_owned()];
        expected.extend(numbers(0..50).into_iter().filter(|value| value != "0013"));
        assert_eq!(cluster.values("orders", 0), expected);
        writer.close().await;
    }
}

#[tokio::test]
async fn a_refusal_that_names_no_event_of_the_batch_is_no_loop() {
    let cluster = Cluster::start(1, &[("orders", 1)]);
    let instead = || {
        Fault::ProducedInstead(Box::new(|said| {
            said.error_code = ErrorCode::INVALID_RECORD.0;
            said.record_errors = vec![
                BatchIndexAndErrorMessage::default()
                    .with_batch_index(99)
                    .with_batch_index_error_message(Some(StrBytes::from_static_str("who?"))),
            ];
        }))
    };
    cluster.fail(ApiKey::Produce, std::iter::repeat_with(instead).take(50));
    let writer = Writer::new(&cluster, &settings());
    let report = writer.publish("orders", &numbers(0..4)).await.unwrap();
    assert_eq!(rows(&report).len(), 4);
    assert!(cluster.count(ApiKey::Produce) < 10);
    writer.close().await;
}

#[tokio::test]
async fn a_client_that_may_not_write_is_told_so_and_others_go_on() {
    let cluster = Cluster::start(1, &[("orders", 1), ("payments", 1), ("secrets", 1)]);
    cluster.lock().topic_errors.insert("secrets".into(), ErrorCode::TOPIC_AUTHORIZATION_FAILED);
    let writer = Writer::new(&cluster, &settings());
    let error = writer.publish("secrets", &numbers(0..3)).await.unwrap_err();
    assert_eq!((error.kind, &*error.action), (BrokerErrorKind::Denied, "publish to topic secrets"));
    cluster.say(ApiKey::Produce, ErrorCode::TOPIC_AUTHORIZATION_FAILED, 1);
    let error = writer.publish("orders", &numbers(0..3)).await.unwrap_err();
    assert_eq!((error.kind, &*error.action), (BrokerErrorKind::Denied, "publish to topic orders"));
    assert!(error.reason.contains("TOPIC_AUTHORIZATION_FAILED"), "{error}");
    all_taken(&[writer.publish("payments", &numbers(0..3)).await]);
    // What was given up counts no more: there is room, and the end is not waited for.
    assert_eq!(writer.producer.shared.buffered.load(Relaxed), 0);
    writer.close().await;
}

#[tokio::test]
async fn codes_that_no_attempt_can_cure_end_it_in_their_kind() {
    for (code, kind) in [
        (ErrorCode::UNSUPPORTED_COMPRESSION_TYPE, BrokerErrorKind::Settings),
        (ErrorCode::UNSUPPORTED_FOR_MESSAGE_FORMAT, BrokerErrorKind::Fatal),
        (ErrorCode::CLUSTER_AUTHORIZATION_FAILED, BrokerErrorKind::Denied),
    ] {
        let cluster = Cluster::start(1, &[("orders", 1)]);
        cluster.say(ApiKey::Produce, code, 1);
        let writer = Writer::new(&cluster, &settings());
        let error = writer.publish("orders", &numbers(0..3)).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.reason.contains(&code.to_string()), "{error}");
        assert_eq!(writer.producer.shared.buffered.load(Relaxed), 0);
        writer.close().await;
    }
}

#[tokio::test]
async fn a_topic_that_is_not_there_is_named_and_others_go_on() {
    let cluster = Cluster::start(1, &[("orders", 1)]);
    cluster.lock().topic_errors.insert("no topic".into(), ErrorCode::INVALID_TOPIC_EXCEPTION);
    let writer = Writer::new(&cluster, &settings());
    let error = writer.publish("ordres", &numbers(0..3)).await.unwrap_err();
    assert_eq!(error.kind, BrokerErrorKind::UnknownTopic, "{error}");
    assert!(error.action.contains("ordres") && error.action.contains("127.0.0.1"), "{error}");
    // A name that no topic can have is told of at once.
    let error = writer.publish("no topic", &numbers(0..3)).await.unwrap_err();
    assert_eq!(error.kind, BrokerErrorKind::Settings, "{error}");
    all_taken(&[writer.publish("orders", &numbers(0..3)).await]);
    let asked = cluster.count(ApiKey::Metadata);
    all_taken(&writer.stream("orders", &numbers(3..100)).await);
    assert!(cluster.count(ApiKey::Metadata) < asked + 5, "topics that have failed are asked for on and on");
    writer.close().await;
}

#[tokio::test]
async fn a_topic_that_comes_late_is_waited_for() {
    let cluster = Cluster::start(1, &[("orders", 1)]);
    cluster.lock().topic_errors.insert("orders".into(), ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
    let writer = Writer::new(&cluster, &settings());
    let values = numbers(0..3);
    let comes = async {
        while cluster.count(ApiKey::Metadata) < 3 {
            tokio::task::yield_now().await;
        }
        cluster.lock().topic_errors.clear();
    };
    let (end, ()) = tokio::join!(writer.publish("orders", &values), comes);
    all_taken(&[end]);
    writer.close().await;
}

#[tokio::test]
async fn a_topic_that_is_deleted_while_events_are_on_their_way_is_an_error() {
    let cluster = Cluster::start(1, &[("orders", 1), ("payments", 1)]);
    let writer = Writer::new(&cluster, &settings());
    all_taken(&[writer.publish("orders", &numbers(0..3)).await]);
    cluster.lock().topics.remove("orders");
    let before = cluster.count(ApiKey::Produce);
    let error = writer.publish("orders", &numbers(3..6)).await.unwrap_err();
    assert_eq!(error.kind, BrokerErrorKind::UnknownTopic, "{error}");
    assert!(cluster.count(ApiKey::Produce) - before < 10);
    all_taken(&[writer.publish("payments", &numbers(0..3)).await]);
    writer.close().await;
}

#[tokio::test]
async fn a_partition_without_a_leader_is_waited_for() {
    let cluster = Cluster::start(2, &[("orders", 1)]);
    cluster.log("orders", 0, |log| log.lead(None));
    let writer = Writer::new(&cluster, &settings());
    let values = numbers(0..50);
    let elect = async {
        while cluster.count(ApiKey::Metadata) < 4 {
            tokio::task::yield_now().await;
        }
        cluster.log("orders", 0, |log| log.lead(Some(1)));
    };
    let (ends, ()) = tokio::join!(writer.stream("orders", &values), elect);
    all_taken(&ends);
    assert_eq!(cluster.values("orders", 0), values);
    writer.close().await;
}

#[tokio::test]
async fn the_leader_is_followed() {
    let cluster = Cluster::start(2, &[("orders", 1)]);
    let writer = Writer::new(&cluster, &settings());
    for round in 0..6_u32 {
        let values = numbers(round * 100..round * 100 + 100);
        if round % 2 == 1 {
            // It moves while a batch is on its way, and what the broker did nobody learns.
            cluster.fail(ApiKey::Produce, [Fault::HangUpAfter]);
        }
        let moves = async { cluster.log("orders", 0, |log| log.lead(Some((round % 2) as i32))) };
        let (ends, ()) = tokio::join!(writer.stream("orders", &values), moves);
        all_taken(&ends);
    }
    assert_eq!(cluster.values("orders", 0), numbers(0..600));
    writer.close().await;
}

#[tokio::test]
async fn a_producer_id_is_asked_for_until_there_is_one() {
    let cluster = Cluster::start(1, &[("orders", 1)]);
    let codes = [ErrorCode::COORDINATOR_LOAD_IN_PROGRESS, ErrorCode::COORDINATOR_NOT_AVAILABLE];
    cluster.fail(ApiKey::InitProducerId, codes.map(Fault::Say));
    let writer = Writer::new(&cluster, &settings());
    all_taken(&[writer.publish("orders", &numbers(0..3)).await]);
    assert_eq!(cluster.count(ApiKey::InitProducerId), 3);
    writer.close().await;
    cluster.say(ApiKey::InitProducerId, ErrorCode::CLUSTER_AUTHORIZATION_FAILED, 1);
    let writer = Writer::new(&cluster, &settings());
    let error = writer.publish("orders", &numbers(0..3)).await.unwrap_err();
    assert_eq!(error.kind, BrokerErrorKind::Denied, "{error}");
    assert!(error.action.contains("producer id"), "{error}");
    writer.close().await;
}

#[tokio::test]
async fn a_throttled_client_waits() {
    let cluster = Cluster::start(1, &[("orders", 1)]);
    let writer = Writer::new(&cluster, &settings());
    cluster.fail(ApiKey::Produce, [Fault::Throttle(300)]);
    all_taken(&[writer.publish("orders", &numbers(0..3)).await]);
    let start = Instant::now();
    all_taken(&[writer.publish("orders", &numbers(3..6)).await]);
    assert!(start.elapsed() >= Duration::from_millis(250), "after {:?}", start.elapsed());
    writer.close().await;
}

#[tokio::test]
async fn what_waits_for_its_first_batch_goes_together() {
    let cluster = Cluster::start(1, &[("orders", 1)]);
    let held = Arc::new(Notify::new());
    cluster.fail(ApiKey::Produce, [Fault::Hold(held.clone())]);
    let settings = ColumnarSettings { request_timeout: DEADLINE, ..settings() };
    let writer = Writer::new(&cluster, &settings);
    let sink = writer.producer.sink("orders");
    let mut ends = vec![soon(sink.publish(publication(&["first".into()]))).await.unwrap()];
    while cluster.count(ApiKey::Produce) == 0 {
        tokio::task::yield_now().await;
    }
    for number in 0..60 {
        let value = format!("{number:02}{}", "x".repeat(10_000));
        ends.push(soon(sink.publish(publication(&[value]))).await.unwrap());
        tokio::task::yield_now().await;
    }
    held.notify_one();
    all_taken(&soon(join_all(ends)).await);
    assert_eq!(cluster.count(ApiKey::Produce), 2);
    writer.close().await;
}

#[tokio::test]
async fn a_publisher_waits_for_room_and_learns_of_the_end() {
    let cluster = Cluster::start(1, &[("orders", 1)]);
    cluster.log("orders", 0, |log| log.lead(None));
    let settings = ColumnarSettings { buffer_bytes: 1_000, ..settings() };
    let writer = Writer::new(&cluster, &settings);
    let sink = writer.producer.sink("orders");
    let first = soon(sink.publish(publication(&numbers(0..200)))).await.unwrap();
    let second = sink.publish(publication(&numbers(200..210)));
    tokio::pin!(second);
    assert!(second.as_mut().now_or_never().is_none(), "there is no room");
    cluster.log("orders", 0, |log| log.lead(Some(0)));
    all_taken(&[soon(first).await]);
    all_taken(&[ended(second).await]);
    cluster.log("orders", 0, |log| log.lead(None));
    // The old leader is told of, and refuses.
    let first = soon(sink.publish(publication(&numbers(0..200)))).await.unwrap();
    let second = sink.publish(publication(&numbers(200..210)));
    let ((), second) = tokio::join!(writer.producer.close(Duration::from_millis(50)), ended(second));
    for error in [soon(first).await.unwrap_err(), second.unwrap_err()] {
        assert_eq!(error.kind, BrokerErrorKind::Closed);
        assert!(error.reason.contains("closed"), "{error}");
    }
    assert!(ended(sink.publish(publication(&numbers(0..1)))).await.is_err());
    soon(writer.driver).await.unwrap();
}

#[tokio::test]
async fn a_driver_that_is_dropped_leaves_nobody_waiting() {
    let cluster = Cluster::start(1, &[("orders", 1)]);
    let writer = Writer::new(&cluster, &settings());
    cluster.fail(ApiKey::Produce, [Fault::Silence]);
    let end = soon(writer.producer.sink("orders").publish(publication(&numbers(0..3)))).await.unwrap();
    writer.driver.abort();
    assert!(soon(end).await.unwrap_err().reason.contains("closed"));
    soon(writer.producer.close(DEADLINE)).await;
}

/// Whatever goes wrong, in any order: every event once, in the order in which it was published.
#[tokio::test]
async fn faults_in_any_order_lose_nothing_and_double_nothing() {
    for seed in 0..30 {
        let mut random = fastrand::Rng::with_seed(seed);
        let cluster = Cluster::start(2, &[("orders", 2)]);
        let settings = ColumnarSettings { batch_bytes: random.usize(100..2_000), ..settings() };
        let writer = Writer::new(&cluster, &settings);
        let (mut sent, mut ends) = (0, Vec::new());
        let sink = writer.producer.sink("orders");
        for _ in 0..15 {
            let codes = [
                ErrorCode::NOT_LEADER_OR_FOLLOWER,
                ErrorCode::REQUEST_TIMED_OUT,
                ErrorCode::NOT_ENOUGH_REPLICAS_AFTER_APPEND,
            ];
            let code = *random.choice(&codes).unwrap();
            let api =
                *random.choice(&[ApiKey::Produce, ApiKey::Produce, ApiKey::Metadata, ApiKey::ApiVersions]).unwrap();
            match random.u8(..8) {
                0 => cluster.fail(api, [Fault::HangUp]),
                1 => cluster.fail(api, [Fault::HangUpAfter]),
                2 => cluster.fail(api, [Fault::HalfAnswer]),
                3 => cluster.fail(ApiKey::Produce, [Fault::Say(code)]),
                4 | 5 => cluster.fail(ApiKey::Produce, [Fault::SayAfter(code)]),
                6 => cluster.log("orders", random.usize(..2), |log| log.lead(Some(random.i32(..2).abs() % 2))),
                _ => {}
            }
            for _ in 0..random.u32(1..20) {
                let count = random.u32(1..30);
                ends.push(soon(sink.publish(publication(&numbers(sent..sent + count)))).await.unwrap());
                sent += count;
                if random.bool() {
                    tokio::task::yield_now().await;
                }
            }
        }
        all_taken(&soon(join_all(ends)).await);
        let mut all = Vec::new();
        for partition in 0..2 {
            let values = cluster.values("orders", partition);
            assert!(values.is_sorted(), "seed {seed}: {values:?}");
            all.extend(values);
        }
        all.sort_unstable();
        assert_eq!(all, numbers(0..sent), "seed {seed}");
        writer.close().await;
    }
}
