//! Publishing: room, order, refusals, errors, the end.

use std::time::Duration;

use fluxmill::broker::BrokerErrorKind;
use fluxmill::broker::Sink as _;
use fluxmill::event::{Outcome, Publication, Rows};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::both;
use crate::harness::*;

/// Room for a few events.
fn little_room(client: Client) -> &'static [(&'static str, &'static str)] {
    match client {
        Client::Columnar => &[("queue.buffering.max.kbytes", "1")],
        Client::Librdkafka => &[("queue.buffering.max.messages", "10")],
    }
}

both! {
    a_full_queue_is_waited_for_and_lanes_keep_their_order,
    a_selection_is_published_by_place,
    an_event_that_is_too_large_is_refused_and_the_others_pass,
    what_the_broker_answers_decides,
    a_close_that_cannot_wait_fails_what_is_in_flight,
    a_publisher_that_waits_for_room_learns_of_the_close,
}

async fn a_full_queue_is_waited_for_and_lanes_keep_their_order(client: Client) {
    let mock = cluster(&[("orders", 1)]);
    let producer = Publisher::connect(&mock, client, little_room(client));
    let (one, two) = (producer.sink("orders"), producer.sink("orders"));
    let (ones, twos) = (numbers(0..1_000), numbers(1_000..2_000));
    let (first, second) = tokio::join!(publish(&one, &ones), publish(&two, &twos));
    assert!(first.unwrap().refused.is_empty() && second.unwrap().refused.is_empty());
    let source = Setup::of(Client::Librdkafka).run(&mock);
    let rows = source.take_rows(0, 2_000).await;
    let (got_ones, got_twos): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| ones.contains(row));
    assert_eq!(got_ones, ones);
    assert_eq!(got_twos, twos);
    source.stop();
    source.end().await.unwrap();
    producer.close(DEADLINE).await;
}

async fn a_selection_is_published_by_place(client: Client) {
    let mock = cluster(&[("orders", 1)]);
    let producer = Publisher::connect(&mock, client, &[]);
    let rows = numbers(0..4);
    let outcome = Outcome::pass_through(4).into();
    let publication = Publication { input: batch(&rows), outcome, rows: Rows::Some(vec![3, 1]) };
    let acknowledged = producer.sink("orders").publish(publication).await.unwrap();
    assert!(soon("acknowledge", acknowledged).await.unwrap().refused.is_empty());
    let nothing = Publication { input: batch(&[]), outcome: Outcome::pass_through(0).into(), rows: Rows::All };
    let acknowledged = producer.sink("orders").publish(nothing).await.unwrap();
    assert!(soon("acknowledge", acknowledged).await.unwrap().refused.is_empty());
    let source = Setup::of(Client::Librdkafka).run(&mock);
    assert_eq!(source.take_rows(0, 2).await, [rows[3].clone(), rows[1].clone()]);
    source.stop();
    source.end().await.unwrap();
    producer.close(DEADLINE).await;
}

async fn an_event_that_is_too_large_is_refused_and_the_others_pass(client: Client) {
    let mock = cluster(&[("orders", 1)]);
    let producer = Publisher::connect(&mock, client, &[("message.max.bytes", "2000")]);
    let mut rows = numbers(0..4);
    rows[1].1 = Some(vec![7; 5_000]);
    rows[3].1 = Some(vec![7; 5_000]);
    let report = publish(&producer.sink("orders"), &rows).await.unwrap();
    let refused: Vec<_> = report.refused.iter().map(|(row, error)| (*row, error.kind)).collect();
    assert_eq!(refused, [(1, BrokerErrorKind::TooLarge), (3, BrokerErrorKind::TooLarge)]);
    let words = match client {
        Client::Columnar => "`message.max.bytes` = 2000",
        Client::Librdkafka => "5001 bytes",
    };
    assert!(report.refused[0].1.reason.contains(words), "{}", report.refused[0].1);
    let source = Setup::of(Client::Librdkafka).run(&mock);
    assert_eq!(source.take_rows(0, 2).await, [rows[0].clone(), rows[2].clone()]);
    source.stop();
    source.end().await.unwrap();
    producer.close(DEADLINE).await;
}

async fn what_the_broker_answers_decides(client: Client) {
    use RDKafkaRespErr as Code;
    let mock = cluster(&[("orders", 1)]);
    let answers = [
        (Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, BrokerErrorKind::Denied),
        (Code::RD_KAFKA_RESP_ERR_INVALID_RECORD, BrokerErrorKind::Fatal),
    ];
    for (answer, kind) in answers {
        if (client, kind) == (Client::Columnar, BrokerErrorKind::Fatal) {
            // The columnar client looks for the event that is refused, and finds none here.
            continue;
        }
        let producer = Publisher::connect(&mock, client, &[]);
        mock.cluster().unwrap().request_errors(RDKafkaApiKey::Produce, &[answer]);
        let error = publish(&producer.sink("orders"), &numbers(0..3)).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.action.contains("orders"), "{error}");
        producer.close(DEADLINE).await;
    }
    let producer = Publisher::connect(&mock, client, &[]);
    mock.cluster().unwrap().request_errors(RDKafkaApiKey::Produce, &[Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
    let report = publish(&producer.sink("orders"), &numbers(0..1)).await.unwrap();
    assert_eq!(report.refused[0].1.kind, BrokerErrorKind::TooLarge);
    // An answer that may pass is not the end: the client sends the events again.
    mock.cluster().unwrap().request_errors(RDKafkaApiKey::Produce, &[Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS]);
    assert!(publish(&producer.sink("orders"), &numbers(0..3)).await.unwrap().refused.is_empty());
    producer.close(DEADLINE).await;
}

async fn a_close_that_cannot_wait_fails_what_is_in_flight(client: Client) {
    let mock = cluster(&[("orders", 1)]);
    let producer = Publisher::connect(&mock, client, &[]);
    let sink = producer.sink("orders");
    assert!(publish(&sink, &numbers(0..1)).await.unwrap().refused.is_empty());
    mock.cluster().unwrap().broker_down(-1).unwrap();
    let acknowledged = sink.publish(Publication::unchanged(batch(&numbers(1..4)))).await.unwrap();
    producer.close(Duration::from_millis(50)).await;
    let error = soon("acknowledge", acknowledged).await.unwrap_err();
    assert_eq!(error.kind, BrokerErrorKind::Closed, "{error}");
    assert!(publish(&sink, &numbers(0..1)).await.is_err());
}

async fn a_publisher_that_waits_for_room_learns_of_the_close(client: Client) {
    let mock = cluster(&[("orders", 1)]);
    let producer = Publisher::connect(&mock, client, little_room(client));
    let sink = producer.sink("orders");
    mock.cluster().unwrap().broker_down(-1).unwrap();
    let rows = numbers(0..100);
    let publish = async { publish(&sink, &rows).await.unwrap_err() };
    let (error, ()) = tokio::join!(publish, producer.close(Duration::from_millis(50)));
    assert!(error.reason.contains("closed") || error.reason.contains("given up"), "{error}");
}
