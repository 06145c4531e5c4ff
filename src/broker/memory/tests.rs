//! What the broker is told to do wrong, who holds what, and its bounds. That it does the rest as Kafka does is for
//! tests/conformance.rs.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use futures_util::FutureExt as _;
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::group::Group;
use super::*;
use crate::broker::{PublishReport, Sink as _, Source as _, SourceContext, SourceEnd};
use crate::delivery::{Slot, TopicPartition, Tracker};
use crate::event::{BatchBuilder, Origin, Publication};
use crate::intake::{Bell, Delivery, Lanes};
use crate::spec::{BatchLimits, CommitSpec, Guarantee, Order, StartOffset};

/// Nothing here takes this long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(30);

fn event(number: i64) -> MemoryEvent {
    let text = |text: String| Some(text.into_bytes());
    MemoryEvent {
        key: text(format!("k-{number}")),
        value: text(number.to_string()),
        headers: Vec::new(),
        timestamp: number,
    }
}

fn publication(numbers: std::ops::Range<i64>) -> Publication {
    let mut builder = BatchBuilder::default();
    for number in numbers {
        let MemoryEvent { key, value, timestamp, .. } = event(number);
        let origin = Origin { slot: Slot(0), offset: number };
        builder.append(origin, key.as_deref(), value.as_deref(), timestamp, std::iter::empty());
    }
    Publication::unchanged(builder.finish())
}

fn values(broker: &MemoryBroker, topic: &str) -> Vec<Vec<u8>> {
    broker.read(topic).unwrap().into_iter().filter_map(|record| record.event.value.clone()).collect()
}

/// A source of the topic `in`, at work; one lane.
struct Running {
    lanes: Lanes,
    stop: CancellationToken,
    bell: Arc<Bell>,
    end: mpsc::Receiver<Result<SourceEnd, BrokerError>>,
}

impl Running {
    #[expect(clippy::disallowed_methods, reason = "tests are not wired by src/pipeline.rs")]
    fn start(broker: &MemoryBroker, start: StartOffset) -> Self {
        let (tracker, bell) = (Arc::new(Tracker::default()), Arc::new(Bell::default()));
        let limits = BatchLimits { max_events: 10, max_bytes: 1 << 20, max_wait: Duration::ZERO };
        let lanes = Lanes::new(1, Order::Partition, limits, &tracker, &bell);
        let stop = CancellationToken::new();
        let context = SourceContext {
            lanes: lanes.clone(),
            tracker,
            bell: bell.clone(),
            stop: stop.clone(),
            reads: CancellationToken::new(),
            commit: CommitSpec::of(Guarantee::AtLeastOnce),
            caught_up: None,
            drain_timeout: Duration::from_millis(100),
        };
        let spec = KafkaSourceSpec {
            connection: "main".into(),
            topics: vec!["in".into()],
            group: "group".into(),
            instance: None,
            start,
        };
        let source = broker.source(&spec);
        let (ended, end) = mpsc::sync_channel(1);
        std::thread::spawn(move || ended.send(source.run(context)));
        Self { lanes, stop, bell, end }
    }

    async fn take(&self) -> Delivery {
        let taken = tokio::time::timeout(DEADLINE, self.lanes.intakes()[0].take()).await;
        taken.expect("a batch in time").expect("the source goes on")
    }

    fn end(self) -> Result<SourceEnd, BrokerError> {
        self.stop.cancel();
        self.bell.ring();
        self.end.recv_timeout(DEADLINE).expect("the source ends")
    }
}

#[test]
fn keys_go_where_kafkas_clients_send_them() {
    // By the hash that Kafka's own tests have for this key: 479470107.
    let mut topic = Topic::new(8);
    topic.append(vec![Arc::new(MemoryEvent { key: Some(b"abc".to_vec()), ..MemoryEvent::default() })]);
    let at: Vec<i32> = topic.records().map(|record| record.partition).collect();
    assert_eq!(at, [479_470_107 % 8]);
    // Those without a key stay together, in another partition each time.
    for _ in 0..2 {
        topic.append(vec![Arc::default(), Arc::default()]);
    }
    assert_eq!((0..8).map(|partition| topic.end(partition)).filter(|end| *end == 2).count(), 2);
}

#[test]
fn a_full_broker_takes_a_publication_whole_or_not() {
    let broker = MemoryBroker::new(MemoryLimits { bytes: 20, ..MemoryLimits::default() });
    broker.create_topic("in", 1).unwrap();
    broker.publish("in", (0..4).map(event)).unwrap();
    let error = broker.publish("in", (4..6).map(event)).unwrap_err();
    assert!(error.kind == BrokerErrorKind::Fatal && error.reason.contains("20 bytes"), "{error}");
    broker.publish("in", [event(4)]).unwrap();
    assert_eq!(values(&broker, "in").len(), 5);
}

#[test]
fn topics_are_made_once_and_missed_all_at_once() {
    let broker = MemoryBroker::default();
    assert_eq!(broker.create_topic("in", 0).unwrap_err().kind, BrokerErrorKind::Settings);
    broker.create_topic("in", 1).unwrap();
    assert_eq!(broker.create_topic("in", 1).unwrap_err().kind, BrokerErrorKind::Settings);
    let listed = TopicSpec {
        connection: "main".into(),
        topic: "out".into(),
        partitions: 3,
        replication: None,
        settings: BTreeMap::new(),
    };
    let errors = broker.prepare(&[&listed], &["in", "out", "one", "two"]).unwrap_err();
    let kinds: Vec<_> = errors.iter().map(|error| error.kind).collect();
    assert_eq!(kinds, [BrokerErrorKind::UnknownTopic; 2], "{errors:?}");
    assert!(broker.prepare(&[&listed], &["in", "out"]).unwrap().is_empty(), "it was made already");
}

#[tokio::test]
async fn acknowledgements_are_late_when_told_to() {
    let broker = MemoryBroker::default();
    broker.create_topic("out", 2).unwrap();
    let producer = broker.producer();
    let sink = producer.sink("out");
    broker.hold_acknowledgements();
    let mut first = sink.publish(publication(0..3)).await.unwrap();
    assert!((&mut first).now_or_never().is_none() && values(&broker, "out").len() == 3);
    broker.release_acknowledgements();
    assert!(first.await.unwrap().refused.is_empty());
    // A close gives up what is not acknowledged.
    broker.hold_acknowledgements();
    let second = sink.publish(publication(3..4)).await.unwrap();
    producer.close(Duration::from_millis(20)).await;
    assert_eq!(second.await.unwrap_err().kind, BrokerErrorKind::Closed);
    let Err(error) = sink.publish(publication(4..5)).await else { panic!("a closed producer published") };
    assert_eq!(error.kind, BrokerErrorKind::Closed);
}

#[tokio::test]
async fn a_producer_waits_while_too_much_is_unacknowledged() {
    let broker = MemoryBroker::default();
    broker.create_topic("out", 1).unwrap();
    let (producer, other) = (broker.producer(), broker.producer());
    let sink = producer.sink("out");
    broker.hold_acknowledgements();
    let first = sink.publish(publication(0..90_000)).await.unwrap();
    let mut second = Box::pin(sink.publish(publication(0..20_000)));
    assert!((&mut second).now_or_never().is_none());
    // Others have a window of their own.
    assert!(other.sink("out").publish(publication(0..1)).now_or_never().is_some());
    broker.release_acknowledgements();
    let second: Result<PublishReport, BrokerError> = second.await.unwrap().await;
    assert!(first.await.is_ok() && second.is_ok());
    assert_eq!(values(&broker, "out").len(), 110_001);
}

#[tokio::test]
async fn publications_fail_when_told_to_and_nothing_of_them_is_stored() {
    let broker = MemoryBroker::default();
    broker.create_topic("out", 1).unwrap();
    let sink = broker.producer().sink("out");
    broker.fail_publication(BrokerErrorKind::Aborted);
    let failed = sink.publish(publication(0..3)).await.unwrap().await;
    assert_eq!(failed.unwrap_err().kind, BrokerErrorKind::Aborted);
    sink.publish(publication(3..4)).await.unwrap().await.unwrap();
    assert_eq!(values(&broker, "out"), [b"3"]);
    let error = broker.producer().sink("nowhere").publish(publication(0..1)).await.unwrap().await.unwrap_err();
    assert_eq!(error.kind, BrokerErrorKind::UnknownTopic);
}

#[tokio::test]
async fn lost_partitions_come_again_and_late_ends_confirm_nothing() {
    let broker = MemoryBroker::default();
    broker.create_topic("in", 1).unwrap();
    broker.publish("in", (0..10).map(event)).unwrap();
    let running = Running::start(&broker, StartOffset::Earliest);
    let before = running.take().await;
    broker.revoke("group");
    let again = running.take().await;
    assert_eq!((before.batch.offsets[0], again.batch.offsets[0]), (0, 0));
    assert_eq!(before.token.partition(before.batch.origin(0).slot), None, "its assignment has ended");
    before.token.done();
    // The new assignment's batches do not end: nothing may be confirmed.
    assert_eq!(running.end().unwrap(), SourceEnd::DrainTimedOut);
    assert_eq!(broker.committed("group", "in").get(&0).copied().unwrap_or(0), 0);
    drop(again);
}

#[tokio::test]
async fn a_reader_begins_where_it_is_told_to() {
    let broker = MemoryBroker::default();
    broker.create_topic("in", 1).unwrap();
    broker.publish("in", (0..10).map(event)).unwrap();
    let running = Running::start(&broker, StartOffset::Time(7));
    let delivery = running.take().await;
    assert_eq!(delivery.batch.offsets[0], 7);
    drop(delivery);
    let _ = running.end();
    assert_eq!(broker.committed("group", "in"), [(0, 7)].into(), "where it began is confirmed at once");
    assert_eq!(broker.members("group"), 0);

    let other = MemoryBroker::default();
    other.create_topic("in", 1).unwrap();
    other.publish("in", [event(0)]).unwrap();
    let running = Running::start(&other, StartOffset::Latest);
    let partitions = async {
        while other.committed("group", "in").is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, partitions).await.unwrap();
    other.publish("in", [event(1)]).unwrap();
    let delivery = running.take().await;
    assert_eq!(delivery.batch.offsets[0], 1);
    delivery.token.done();
    assert_eq!(running.end().unwrap(), SourceEnd::Drained);
}

#[test]
fn a_broker_that_is_away_is_not_joined() {
    let broker = MemoryBroker::default();
    broker.create_topic("in", 1).unwrap();
    broker.go_away();
    let error = Running::start(&broker, StartOffset::Earliest).end().unwrap_err();
    assert_eq!(error.kind, BrokerErrorKind::Unreachable);
    broker.come_back();
    assert_eq!(Running::start(&broker, StartOffset::Earliest).end().unwrap(), SourceEnd::Drained);
}

proptest! {
    /// Every partition is in the share of one member, of those who read its topic, and the shares differ by one at most
    /// where all read the same.
    #[test]
    fn partitions_are_shared_out(partitions in 1..20usize, members in 1..6usize, topics in 1..4usize) {
        let mut group = Group::default();
        let bell = Arc::new(Bell::default());
        let names: Vec<String> = (0..topics).map(|topic| format!("t-{topic}")).collect();
        let ids: Vec<_> = (0..members).map(|_| group.join(&names, &bell)).collect();
        let shares: Vec<Vec<TopicPartition>> = ids.iter().map(|id| group.share(*id, |_| partitions).collect()).collect();
        let mut all = shares.concat();
        all.sort();
        let count = all.len();
        all.dedup();
        prop_assert_eq!((count, all.len()), (partitions * topics, partitions * topics));
        let sizes = shares.iter().map(Vec::len);
        prop_assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
    }

    /// Whatever members do, a partition has one holder at a time, and only the holder's offsets are committed.
    #[test]
    fn a_partition_has_one_holder(actions in prop::collection::vec((0..3usize, 0..4u8), 1..60)) {
        let mut group = Group::default();
        let partition = TopicPartition { topic: "in".into(), partition: 0 };
        let mut terms: [Option<u64>; 3] = [None; 3];
        let mut committed = None;
        for (next, (member, action)) in (0..).zip(actions) {
            match (action, terms[member]) {
                (0, _) => {
                    let held = terms.iter().flatten().any(|term| group.holds(&partition, *term));
                    let taken = group.take(&partition);
                    prop_assert_eq!(taken.is_none(), held);
                    terms[member] = taken.or(terms[member]);
                }
                (1, Some(term)) => {
                    if group.holds(&partition, term) {
                        committed = Some(next);
                    }
                    group.commit(&partition, term, next);
                }
                (2, Some(term)) => group.let_go(&partition, term),
                (3, _) => group.lose_all(),
                _ => {}
            }
            prop_assert!(terms.iter().flatten().filter(|term| group.holds(&partition, **term)).count() <= 1);
            prop_assert_eq!(group.position(&partition), committed);
        }
    }
}
