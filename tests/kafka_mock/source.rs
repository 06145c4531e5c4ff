//! Taking rows, ending them, committing, stopping, sharing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fluxmill::broker::SourceEnd;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::both;
use crate::harness::*;

both! {
    rows_arrive_as_they_were_published,
    each_partition_keeps_its_order_on_one_lane,
    a_full_lane_stops_its_own_partitions_only_and_resumes,
    only_what_has_ended_is_committed_and_a_restart_resumes_there,
    an_abandoned_batch_is_not_committed_and_not_waited_for,
    a_stop_drains_what_was_taken,
    a_failed_commit_is_sent_again_though_nothing_moves,
    a_denied_commit_ends_the_source,
    a_second_member_takes_over_without_loss,
    an_eager_group_loses_nothing_either,
    an_outage_is_waited_out,
}

async fn rows_arrive_as_they_were_published(client: Client) {
    let mock = cluster(&[("orders", 1)]);
    let text = |text: &str| Some(text.as_bytes().to_vec());
    let rows: Vec<Row> = vec![
        (text("key"), text("value"), 1, vec![]),
        (None, text("no key"), 2, vec![(b"a".to_vec(), text("1")), (b"a".to_vec(), text("2"))]),
        (
            Some(vec![]),
            Some(vec![]),
            1_700_000_000_000,
            vec![(b"null".to_vec(), None), (b"empty".to_vec(), Some(vec![]))],
        ),
        (text("tombstone"), None, 4, vec![]),
        (Some(vec![0, 255, 254]), Some(vec![0; 3]), 5, vec![(vec![255, b'x', 254], Some(vec![0, 128]))]),
        (None, None, -1, vec![(vec![], text("no name"))]),
    ];
    fill(&mock, "orders", &rows).await;
    let source = Setup::of(client).run(&mock);
    assert_eq!(source.take_rows(0, rows.len()).await, rows);
    source.stop();
    assert_eq!(source.end().await.unwrap(), SourceEnd::Drained);
    assert_eq!(committed(&mock, "group", "orders", 1), [Some(6)]);
}

async fn each_partition_keeps_its_order_on_one_lane(client: Client) {
    let mock = cluster(&[("orders", 4)]);
    fill(&mock, "orders", &numbers(0..5_000)).await;
    let source = Setup { lanes: 2, ..Setup::of(client) }.run(&mock);
    let next: Arc<Mutex<BTreeMap<i32, (usize, i64)>>> = Arc::default();
    let lane = async |lane: usize| {
        loop {
            let delivery = source.take(lane).await;
            let mut next = next.lock().unwrap();
            for at in 0..delivery.batch.len() {
                let origin = delivery.batch.origin(at);
                let partition = delivery.token.partition(origin.slot).unwrap().partition;
                let (its_lane, offset) = next.entry(partition).or_insert((lane, 0));
                assert_eq!((*its_lane, *offset), (lane, origin.offset), "partition {partition}");
                *offset += 1;
            }
            delivery.token.done();
            if next.values().map(|(_, offset)| offset).sum::<i64>() == 5_000 {
                return;
            }
        }
    };
    tokio::select! {
        () = lane(0) => {}
        () = lane(1) => {}
    }
    let lanes: Vec<usize> = next.lock().unwrap().values().map(|(lane, _)| *lane).collect();
    assert_eq!(lanes.iter().filter(|lane| **lane == 0).count(), 2, "{lanes:?}");
    source.stop();
    assert_eq!(source.end().await.unwrap(), SourceEnd::Drained);
    assert_eq!(committed(&mock, "group", "orders", 4).into_iter().flatten().sum::<i64>(), 5_000);
}

async fn a_full_lane_stops_its_own_partitions_only_and_resumes(client: Client) {
    let mock = cluster(&[("orders", 2)]);
    let setup = Setup {
        lanes: 2,
        max_events: 10,
        properties: &[("queued.min.messages", "50"), ("queued.max.messages.kbytes", "1")],
        ..Setup::of(client)
    };
    let source = setup.run(&mock);
    fill(&mock, "orders", &numbers(0..4_000)).await;
    let ends: Vec<i64> = {
        let asks = rdkafka::ClientConfig::new().set("bootstrap.servers", mock.address()).create();
        let asks: rdkafka::consumer::BaseConsumer = asks.unwrap();
        use rdkafka::consumer::Consumer as _;
        (0..2).map(|partition| asks.fetch_watermarks("orders", partition, DEADLINE).unwrap().1).collect()
    };
    // The lane that stands still has taken something, so that its partition is known.
    let held = source.take(0).await;
    let partition = held.token.partition(held.batch.origin(0).slot).unwrap().partition;
    let (slow, fast) = (ends[partition as usize], ends[1 - partition as usize]);
    assert_eq!(source.take_rows(1, fast as usize).await.len() as i64, fast);
    // What the full lane took is bounded by its intake.
    let first = held.batch.len();
    assert!(first <= 10);
    held.token.done();
    assert_eq!(source.take_rows(0, slow as usize - first).await.len() + first, slow as usize);
    source.stop();
    assert_eq!(source.end().await.unwrap(), SourceEnd::Drained);
    let all: Vec<Option<i64>> = ends.into_iter().map(Some).collect();
    assert_eq!(committed(&mock, "group", "orders", 2), all);
}

async fn only_what_has_ended_is_committed_and_a_restart_resumes_there(client: Client) {
    let mock = cluster(&[("orders", 1)]);
    fill(&mock, "orders", &numbers(0..50)).await;
    let setup = Setup { max_events: 10, drain_timeout: Duration::from_millis(100), ..Setup::of(client) };
    let source = setup.run(&mock);
    let (one, two, three) = (source.take(0).await, source.take(0).await, source.take(0).await);
    let end_of_one = one.batch.origin(one.batch.len() - 1).offset + 1;
    assert!(!three.batch.is_empty());
    three.token.done();
    one.token.done();
    source.stop();
    // The second is neither ended nor given up: its time runs out.
    assert_eq!(source.end().await.unwrap(), SourceEnd::DrainTimedOut);
    assert_eq!(committed(&mock, "group", "orders", 1), [Some(end_of_one)]);
    // Too late: its partition is not ours any more.
    two.token.done();

    let source = Setup::of(client).run(&mock);
    let first = source.take(0).await;
    assert_eq!(first.batch.origin(0).offset, end_of_one);
    let rest = 50 - end_of_one as usize - first.batch.len();
    first.token.done();
    source.take_rows(0, rest).await;
    source.stop();
    assert_eq!(source.end().await.unwrap(), SourceEnd::Drained);
    assert_eq!(committed(&mock, "group", "orders", 1), [Some(50)]);
}

async fn an_abandoned_batch_is_not_committed_and_not_waited_for(client: Client) {
    let mock = cluster(&[("orders", 1)]);
    fill(&mock, "orders", &numbers(0..20)).await;
    let source = Setup { max_events: 10, ..Setup::of(client) }.run(&mock);
    let one = source.take(0).await;
    let end_of_one = one.batch.origin(one.batch.len() - 1).offset + 1;
    one.token.done();
    drop(source.take(0).await.token);
    source.stop();
    assert_eq!(source.end().await.unwrap(), SourceEnd::DrainTimedOut);
    assert_eq!(committed(&mock, "group", "orders", 1), [Some(end_of_one)]);
}

async fn a_stop_drains_what_was_taken(client: Client) {
    let mock = cluster(&[("orders", 1)]);
    fill(&mock, "orders", &numbers(0..200)).await;
    let source = Setup { max_events: 10, ..Setup::of(client) }.run(&mock);
    let in_flight = source.take(0).await;
    source.stop();
    let mut last = in_flight.batch.origin(in_flight.batch.len() - 1).offset;
    let mut deliveries = vec![in_flight];
    while let Some(delivery) = soon("the intake closes", source.intakes[0].take()).await {
        last = delivery.batch.origin(delivery.batch.len() - 1).offset;
        deliveries.push(delivery);
    }
    // No more than the intake holds beside what was in flight, though 200 wait at the broker.
    assert!(last < 50, "{last}");
    deliveries.into_iter().rev().for_each(|delivery| delivery.token.done());
    assert_eq!(source.end().await.unwrap(), SourceEnd::Drained);
    assert_eq!(committed(&mock, "group", "orders", 1), [Some(last + 1)]);
}

async fn a_failed_commit_is_sent_again_though_nothing_moves(client: Client) {
    let mock = cluster(&[("orders", 1)]);
    fill(&mock, "orders", &numbers(0..20)).await;
    let errors = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR; 2];
    mock.cluster().unwrap().request_errors(RDKafkaApiKey::OffsetCommit, &errors);
    let source = Setup::of(client).run(&mock);
    source.take_rows(0, 20).await;
    until("committed", || committed(&mock, "group", "orders", 1) == [Some(20)]).await;
    source.stop();
    assert_eq!(source.end().await.unwrap(), SourceEnd::Drained);
}

async fn a_denied_commit_ends_the_source(client: Client) {
    let mock = cluster(&[("orders", 1)]);
    fill(&mock, "orders", &numbers(0..20)).await;
    let errors = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED; 1];
    mock.cluster().unwrap().request_errors(RDKafkaApiKey::OffsetCommit, &errors);
    let source = Setup::of(client).run(&mock);
    source.take_rows(0, 20).await;
    let intake = source.intakes[0].clone();
    assert_eq!(source.end().await.unwrap_err().kind, fluxmill::broker::BrokerErrorKind::Denied);
    assert!(soon("the intake is closed", intake.take()).await.is_none());
}

/// Takes and ends batches until the intake closes.
async fn work(source: &Running, seen: &Mutex<Seen>) {
    while let Some(delivery) = soon("take a batch", source.intakes[0].take()).await {
        seen.lock().unwrap().batch(&delivery);
        delivery.token.done();
    }
}

/// That nothing is doubled either is tested on a real broker. The mock refuses a member that syncs after its leader,
/// so that it joins once more, and meanwhile the commits of those that give partitions up.
async fn a_second_member_takes_over_without_loss(client: Client) {
    let mock = cluster(&[("orders", 4)]);
    fill(&mock, "orders", &numbers(0..2_000)).await;
    let first = Setup { max_events: 50, ..Setup::of(client) }.run(&mock);
    let (seen_first, seen_second) = (Mutex::new(Seen::default()), Mutex::new(Seen::default()));
    // A batch is in flight while the second member joins: its partition must not move before it has ended.
    let in_flight = first.take(0).await;
    seen_first.lock().unwrap().batch(&in_flight);
    let second = Setup { max_events: 50, ..Setup::of(client) }.run(&mock);
    let sum = || committed(&mock, "group", "orders", 4).into_iter().flatten().sum::<i64>();
    let script = async {
        in_flight.token.done();
        // Rows go on until the second member has its share.
        let mut sent = 2_000;
        while seen_second.lock().unwrap().0.is_empty() {
            assert!(sent < 200_000, "the second member got nothing");
            fill(&mock, "orders", &numbers(sent..sent + 200)).await;
            sent += 200;
        }
        until("all rows are committed", || sum() == i64::from(sent)).await;
        first.stop();
        second.stop();
        sent as usize
    };
    let (sent, (), ()) = tokio::join!(script, work(&first, &seen_first), work(&second, &seen_second));
    assert_eq!(first.end().await.unwrap(), SourceEnd::Drained);
    assert_eq!(second.end().await.unwrap(), SourceEnd::Drained);
    let mut rows = seen_first.into_inner().unwrap().0;
    rows.append(&mut seen_second.into_inner().unwrap().0);
    assert_eq!(rows.len(), sent);
}

async fn an_eager_group_loses_nothing_either(client: Client) {
    let mock = cluster(&[("orders", 2)]);
    fill(&mock, "orders", &numbers(0..300)).await;
    let eager = || Setup { properties: &[("partition.assignment.strategy", "range")], ..Setup::of(client) };
    let first = eager().run(&mock);
    first.take_rows(0, 300).await;
    let sum = || committed(&mock, "group", "orders", 2).into_iter().flatten().sum::<i64>();
    until("committed", || sum() == 300).await;
    let second = eager().run(&mock);
    let (seen_first, seen_second) = (Mutex::new(Seen::default()), Mutex::new(Seen::default()));
    let script = async {
        let mut sent = 300;
        while seen_second.lock().unwrap().0.is_empty() {
            assert!(sent < 100_000, "the second member got nothing");
            fill(&mock, "orders", &numbers(sent..sent + 100)).await;
            sent += 100;
        }
        // No count of doubles here either.
        until("all rows are committed", || sum() == i64::from(sent)).await;
        first.stop();
        second.stop();
        sent as usize
    };
    let (sent, (), ()) = tokio::join!(script, work(&first, &seen_first), work(&second, &seen_second));
    assert_eq!(first.end().await.unwrap(), SourceEnd::Drained);
    assert_eq!(second.end().await.unwrap(), SourceEnd::Drained);
    let mut rows = seen_first.into_inner().unwrap().0;
    rows.append(&mut seen_second.into_inner().unwrap().0);
    assert_eq!(rows.len() + 300, sent, "every row once at least, and none of the 300 that were committed");
}

async fn an_outage_is_waited_out(client: Client) {
    let mock = cluster(&[("orders", 1)]);
    fill(&mock, "orders", &numbers(0..10)).await;
    let source = Setup::of(client).run(&mock);
    source.take_rows(0, 10).await;
    mock.cluster().unwrap().broker_down(-1).unwrap();
    let producer = Publisher::connect(&mock, client, &[]);
    let sink = producer.sink("orders");
    let rows = numbers(10..20);
    let published = publish(&sink, &rows);
    let up = async { mock.cluster().unwrap().broker_up(-1).unwrap() };
    let (published, ()) = tokio::join!(published, up);
    assert!(published.unwrap().refused.is_empty());
    assert_eq!(source.take_rows(0, 10).await, rows);
    // Who stops before its group is whole again may not commit its last events, which then come again.
    until("committed", || committed(&mock, "group", "orders", 1) == [Some(20)]).await;
    source.stop();
    assert_eq!(source.end().await.unwrap(), SourceEnd::Drained);
    producer.close(DEADLINE).await;
}
