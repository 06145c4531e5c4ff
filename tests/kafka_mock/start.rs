//! Where a source begins, when it has caught up, and what keeps it from starting.

use std::time::Duration;

use fluxmill::broker::kafka::admin;
use fluxmill::broker::{BrokerErrorKind, SourceEnd};
use fluxmill::spec::{ColumnarSettings, KafkaClient, KafkaConnection, StartOffset, TopicSpec};

use crate::both;
use crate::harness::*;

both! {
    a_run_until_caught_up_ends_by_itself,
    caught_up_at_an_end_that_no_row_reaches,
    two_members_catch_up_together,
    latest_and_a_late_time_begin_at_the_end_and_remember_it,
    a_topic_that_does_not_exist_is_named,
    an_unreachable_broker_is_reported_with_its_address,
}

async fn catch_up(mock: &fluxmill::broker::kafka::mock::MockKafka, client: Client) -> usize {
    let source = Setup { until_caught_up: true, ..Setup::of(client) }.run(mock);
    let mut rows = 0;
    while let Some(delivery) = soon("the source ends", source.intakes[0].take()).await {
        rows += delivery.batch.len();
        delivery.token.done();
    }
    assert_eq!(source.end().await.unwrap(), SourceEnd::Drained);
    rows
}

async fn a_run_until_caught_up_ends_by_itself(client: Client) {
    // More partitions than keys: some stay empty.
    let mock = cluster(&[("orders", 8)]);
    assert_eq!(catch_up(&mock, client).await, 0);
    fill(&mock, "orders", &numbers(0..3)).await;
    assert_eq!(catch_up(&mock, client).await, 3);
    assert_eq!(catch_up(&mock, client).await, 0);
    fill(&mock, "orders", &numbers(0..2_000)).await;
    assert_eq!(catch_up(&mock, client).await, 2_000);
    assert_eq!(committed(&mock, "group", "orders", 8).into_iter().flatten().sum::<i64>(), 2_003);
}

async fn caught_up_at_an_end_that_no_row_reaches(client: Client) {
    let mock = cluster(&[("orders", 1)]);
    fill(&mock, "orders", &numbers(0..5)).await;
    // The group is past every row, and the goal is noted only by the client's word for the end.
    let source = Setup { start: StartOffset::Latest, until_caught_up: true, ..Setup::of(client) }.run(&mock);
    assert!(soon("the source ends", source.intakes[0].take()).await.is_none());
    assert_eq!(source.end().await.unwrap(), SourceEnd::Drained);
    assert_eq!(committed(&mock, "group", "orders", 1), [Some(5)]);
}

async fn two_members_catch_up_together(client: Client) {
    let mock = cluster(&[("orders", 4)]);
    fill(&mock, "orders", &numbers(0..2_000)).await;
    let (one, two) = tokio::join!(catch_up(&mock, client), catch_up(&mock, client));
    assert_eq!(one + two, 2_000);
}

async fn latest_and_a_late_time_begin_at_the_end_and_remember_it(client: Client) {
    for (group, start) in [("latest", StartOffset::Latest), ("time", StartOffset::Time(i64::MAX / 2))] {
        let mock = cluster(&[("orders", 1)]);
        fill(&mock, "orders", &numbers(0..10)).await;
        let source = Setup { group, start, ..Setup::of(client) }.run(&mock);
        until("the start is committed", || committed(&mock, group, "orders", 1) == [Some(10)]).await;
        source.stop();
        assert_eq!(source.end().await.unwrap(), SourceEnd::Drained);
        // What comes while nobody runs is not skipped.
        let rows = numbers(10..20);
        fill(&mock, "orders", &rows).await;
        let source = Setup { group, start, ..Setup::of(client) }.run(&mock);
        assert_eq!(source.take_rows(0, 10).await, rows);
        source.stop();
        assert_eq!(source.end().await.unwrap(), SourceEnd::Drained);
    }
}

async fn a_topic_that_does_not_exist_is_named(client: Client) {
    let mock = cluster(&[("orders", 1)]);
    let source = Setup { topic: "ordres", ..Setup::of(client) }.run(&mock);
    let intake = source.intakes[0].clone();
    let error = source.end().await.unwrap_err();
    assert_eq!(error.kind, BrokerErrorKind::UnknownTopic, "{error}");
    assert!(error.to_string().contains("ordres") && error.to_string().contains("127.0.0.1"), "{error}");
    assert!(soon("the intake is closed", intake.take()).await.is_none());
}

fn nobody(client: Client) -> KafkaConnection {
    // A port that was free a moment ago, and that nobody listens at.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let brokers = vec![format!("127.0.0.1:{port}")];
    let client = match client {
        Client::Columnar => KafkaClient::Columnar(ColumnarSettings::default()),
        Client::Librdkafka => KafkaClient::Librdkafka,
    };
    KafkaConnection { brokers, tls: None, sasl: None, client, properties: Default::default() }
}

async fn an_unreachable_broker_is_reported_with_its_address(client: Client) {
    let connection = nobody(client);
    let error = Setup::of(client).run_at(&connection).end().await.unwrap_err();
    assert_eq!(error.kind, BrokerErrorKind::Unreachable, "{error}");
    let text = error.to_string();
    assert!(text.contains(&connection.brokers[0]) && text.contains("refused"), "{text}");
    let errors = admin::check(&connection, &[], &["orders"], Duration::from_secs(2)).await.unwrap_err();
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].kind, BrokerErrorKind::Unreachable, "{}", errors[0]);
}

fn listed(topic: &str) -> TopicSpec {
    let (connection, topic) = ("main".into(), topic.into());
    TopicSpec { connection, topic, partitions: 4, replication: None, settings: Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_topics_are_told_all_at_once() {
    let mock = cluster(&[("orders", 1)]);
    let connection = with(&mock, Client::Librdkafka, &[]);
    let (orders, payments) = (listed("orders"), listed("payments"));
    assert!(admin::prepare(&connection, &[&orders], &["orders"], DEADLINE).await.unwrap().is_empty());
    let used = ["orders", "payments"];
    assert_eq!(admin::check(&connection, &[&orders, &payments], &used, DEADLINE).await.unwrap(), ["payments"]);
    let used = ["orders", "one", "two"];
    let errors = admin::prepare(&connection, &[&payments], &used, DEADLINE).await.unwrap_err();
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(errors.len(), 2, "{texts:?}");
    assert!(texts[0].contains("topic one") && texts[1].contains("topic two"), "{texts:?}");
    assert!(texts[0].contains("list it under `topics:`"), "{texts:?}");
    assert!(errors.iter().all(|error| error.kind == BrokerErrorKind::UnknownTopic));
    // Nothing was created by asking.
    assert_eq!(admin::check(&connection, &[&payments], &[], DEADLINE).await.unwrap(), ["payments"]);
}
