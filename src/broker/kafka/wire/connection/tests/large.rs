//! Many requests under way, and responses of all sizes.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, FetchRequest, FetchResponse, ProduceRequest};
use kafka_protocol::messages::{TopicName, fetch_response};
use kafka_protocol::protocol::{Encodable as _, HeaderVersion as _, StrBytes};

use super::broker::{Script, frame, options};
use super::*;

/// A fetch with this many bytes of records.
fn fetched(bytes: usize) -> FetchResponse {
    let records = Bytes::from((0..bytes).map(|at| at as u8).collect::<Vec<_>>());
    let partition = fetch_response::PartitionData::default().with_records(Some(records));
    let topic = fetch_response::FetchableTopicResponse::default();
    let topic = topic.with_topic(TopicName(StrBytes::from_static_str("orders"))).with_partitions(vec![partition]);
    FetchResponse::default().with_responses(vec![topic])
}

fn records(response: &crate::broker::kafka::wire::response::FetchResponse) -> &Bytes {
    &response.topics[0].partitions[0].records
}

const SIZES: [usize; 9] = [0, 1, 3_000, 16 << 10, (16 << 10) + 1, 1 << 20, 10, 900_000, 3 << 20];

#[tokio::test]
async fn requests_are_answered_in_their_order() {
    let script = Script::play(async |mut broker| {
        broker.versions(&[(1, 0, 12)]).await;
        let mut callers = Vec::new();
        for _ in SIZES {
            callers.push(broker.request::<FetchRequest>().await.0);
        }
        // All in one, so that responses begin and end inside of reads.
        let mut all = BytesMut::new();
        for (caller, size) in callers.iter().zip(SIZES) {
            all.extend_from_slice(&frame::<FetchRequest>(caller, &fetched(size)));
        }
        broker.send(&all).await;
    });
    let (mut requests, mut responses) = open(&script).await.unwrap().split();
    let mut sent = Vec::new();
    for _ in SIZES {
        sent.push(requests.send(&FetchRequest::default()).await.unwrap());
    }
    for (sent, size) in sent.into_iter().zip(SIZES) {
        let (correlation, body) = responses.receive().await.unwrap();
        assert_eq!(correlation, sent.correlation);
        let response = decode::<FetchRequest>(body, sent.version).unwrap();
        let records = records(&response);
        assert_eq!(records.len(), size);
        assert!(records.iter().enumerate().all(|(at, byte)| *byte == at as u8));
    }
    assert_eq!(responses.receive().await.unwrap_err().kind, WireErrorKind::Closed);
    script.end().await;
}

#[tokio::test]
async fn a_response_that_nobody_waits_for_any_more_is_kept_for_the_next() {
    let (go, mut wait) = tokio::sync::mpsc::channel::<()>(1);
    let script = Script::play(async move |mut broker| {
        broker.versions(&[(1, 0, 12)]).await;
        let (caller, _) = broker.request::<FetchRequest>().await;
        let frame = frame::<FetchRequest>(&caller, &fetched(100_000));
        for part in [&frame[..2], &frame[2..10], &frame[10..50_000], &frame[50_000..]] {
            broker.send(part).await;
            wait.recv().await;
        }
    });
    let (mut requests, mut responses) = open(&script).await.unwrap().split();
    let sent = requests.send(&FetchRequest::default()).await.unwrap();
    let (_, body) = loop {
        tokio::select! {
            biased;
            response = responses.receive() => break response.unwrap(),
            sent = go.send(()) => sent.unwrap(),
        }
    };
    drop(go);
    assert_eq!(records(&decode::<FetchRequest>(body, sent.version).unwrap()).len(), 100_000);
    script.end().await;
}

#[tokio::test]
async fn a_response_longer_than_the_bound_is_not_read() {
    let script = Script::play(async |mut broker| {
        broker.versions(&[(1, 0, 12)]).await;
        let (caller, _) = broker.request::<FetchRequest>().await;
        broker.answer::<FetchRequest>(&caller, &fetched(2000)).await;
        broker.end().await;
    });
    let options = Options { max_response: 1000, ..options() };
    let mut connection = Connection::open("127.0.0.1", script.port, &options).await.unwrap();
    let error = connection.call(&FetchRequest::default(), LONG).await.unwrap_err();
    assert_eq!(error.kind, WireErrorKind::Malformed);
    assert!(error.reason.contains("where 1000 is the most that is accepted"), "{error}");
    drop(connection);
    script.end().await;
}

#[tokio::test]
async fn before_a_broker_shows_who_it_is_its_answers_are_small() {
    let error = refused(async |mut broker| {
        broker.request::<ApiVersionsRequest>().await;
        broker.send(&[0x00, 0x20, 0, 0]).await;
    });
    assert!(error.await.reason.contains("a response of 2097152 bytes, where 1048576"));
}

#[tokio::test]
async fn a_body_in_pieces_is_one_request() {
    use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
    let batch = Bytes::from(vec![7; 300_000]);
    let partition = PartitionProduceData::default().with_index(1).with_records(Some(batch.clone()));
    let topic = TopicProduceData::default().with_name(TopicName(StrBytes::from_static_str("orders")));
    let request =
        ProduceRequest::default().with_acks(-1).with_topic_data(vec![topic.with_partition_data(vec![partition])]);
    let expected = Arc::new(request.clone());
    let script = Script::play(async move |mut broker| {
        broker.versions(&[(0, 0, 9)]).await;
        for _ in 0..2 {
            let (caller, request) = broker.request::<ProduceRequest>().await;
            assert_eq!((caller.version, &request), (9, &*expected));
        }
    });
    let (mut requests, _responses) = open(&script).await.unwrap().split();
    let version = requests.version::<ProduceRequest>().unwrap();
    let mut body = BytesMut::new();
    request.encode(&mut body, version).unwrap();
    body.put_slice(&[]);
    let pieces: Vec<&[u8]> = body.chunks(1999).chain([&[][..]]).collect();
    let header = ProduceRequest::header_version(version);
    let first = requests.send_pieces(ApiKey::Produce, version, header, &pieces).await.unwrap();
    let second = requests.send(&request).await.unwrap();
    assert_eq!(second, Sent { correlation: first.correlation + 1, version });
    script.end().await;
}
