use arrow_array::BinaryArray;

use super::*;
use crate::broker::PublishReport;
use crate::delivery::TopicPartition;
use crate::event::{BatchBuilder, ColumnSource, HeaderSource, Origin, Outcome, Rows};
use crate::spec::NatsAuth;

/// A publication of these values, each made of the row that stands beside it.
fn publication(tracker: &Tracker, events: &[(u32, &str)]) -> Publication {
    let slot = tracker.assign(TopicPartition { topic: "IN".into(), partition: 0 });
    let mut builder = BatchBuilder::default();
    for offset in 0..=events.iter().map(|(cause, _)| *cause).max().unwrap_or(0) {
        let origin = Origin { slot, offset: i64::from(offset) };
        builder.append(origin, None, Some(b"value".as_slice()), 0, std::iter::empty());
    }
    let outcome = Outcome {
        causes: events.iter().map(|(cause, _)| *cause).collect(),
        outputs: Vec::new(),
        keys: ColumnSource::Inherit,
        values: ColumnSource::Replace(BinaryArray::from_iter_values(events.iter().map(|(_, value)| value))),
        headers: HeaderSource::Inherit,
        failures: Vec::new(),
    };
    Publication { input: builder.finish(), outcome: Arc::new(outcome), rows: Rows::All }
}

/// Publishes in atomic batches, each of which is stored; gives which events were in each, and what was refused.
async fn publish(largest: usize, events: &[(u32, &str)]) -> (Vec<Vec<u32>>, PublishReport) {
    let connection = NatsConnection { servers: vec!["nats://localhost:1".into()], tls: None, auth: NatsAuth::None };
    let (producer, driver) = NatsProducer::new(&connection, "test", true);
    let Queued::Whole(mut queue) = driver.queue else { panic!("not in batches") };
    producer.shared.largest.set(largest).unwrap();
    let tracker = Arc::new(Tracker::default());
    let publication = publication(&tracker, events);
    let sender =
        Sender { pipeline: "test.main".to_owned(), output: "default".to_owned(), tracker, origins: Origins::Stream };
    let end = producer.sink("out", sender).publish(publication).await.unwrap();
    let mut batches = Vec::new();
    while let Ok(batch) = queue.try_recv() {
        batches.push(batch.messages.iter().map(|message| message.at).collect());
        batch.work.acknowledge(u32::try_from(batch.messages.len()).unwrap());
    }
    (batches, end.await.unwrap())
}

#[tokio::test]
async fn a_publication_is_one_batch() {
    let (batches, report) = publish(1000, &[(0, "a"), (1, "b"), (1, "c"), (3, "d")]).await;
    assert_eq!(batches, [[0, 1, 2, 3]]);
    assert!(report.refused.is_empty(), "{report:?}");
}

#[tokio::test]
async fn an_event_that_became_more_than_a_batch_is_refused_alone() {
    let mut events = vec![(0, "first")];
    events.extend(vec![(1, "many"); ATOMIC_BATCH_MAX + 1]);
    events.push((2, "last"));
    let (batches, report) = publish(1000, &events).await;
    assert_eq!(batches, [[0], [1002]]);
    let rows: Vec<u32> = report.refused.iter().map(|(row, _)| *row).collect();
    assert_eq!(rows, (1..=1001).collect::<Vec<_>>());
    let (_, error) = &report.refused[0];
    assert!(error.kind == BrokerErrorKind::Refused && error.reason.contains("1001 events"), "{error}");
}

#[tokio::test]
async fn what_shares_its_cause_with_a_message_too_large_is_refused_with_it() {
    let large = "x".repeat(500);
    let (batches, report) = publish(500, &[(0, "a"), (1, "b"), (1, &large), (1, "c"), (2, "d")]).await;
    assert_eq!(batches, [[0, 4]]);
    let told: Vec<_> = report.refused.iter().map(|(row, error)| (*row, error.kind)).collect();
    let (refused, large) = (BrokerErrorKind::Refused, BrokerErrorKind::TooLarge);
    assert_eq!(told, [(1, refused), (2, large), (3, refused)]);
}

/// The headers that only batches have must fit, too.
#[tokio::test]
async fn room_is_left_for_the_headers_of_batches() {
    let (largest, value) = (1000, "x".repeat(900));
    let (batches, report) = publish(largest, &[(0, &value)]).await;
    assert!(batches.is_empty() && report.refused.len() == 1, "{report:?}");
    let headers = [
        ("Nats-Batch-Id", format!("{}-{}", "x".repeat(22), u64::MAX)),
        ("Nats-Batch-Sequence", ATOMIC_BATCH_MAX.to_string()),
        ("Nats-Batch-Commit", "1".to_owned()),
        ("Nats-Expected-Last-Msg-Id", "!".to_owned()),
    ];
    let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    assert!(bytes <= BATCH_HEADERS, "{bytes}");
}
