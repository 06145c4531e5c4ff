//! Connections against brokers that play a script, in this process and over TCP.

mod auth;
mod broker;
mod encrypted;
mod large;

use kafka_protocol::messages::{ApiVersionsRequest, FetchRequest, MetadataRequest, MetadataResponse};

use super::*;
use broker::{Broker, Caller, Script, options};

/// Long enough that only a test which hangs would see it.
const LONG: Duration = Duration::from_secs(60);

async fn open(script: &Script) -> Result<Connection, WireError> {
    Connection::open("127.0.0.1", script.port, &options()).await
}

/// The error of a set-up against a broker that plays this.
async fn refused<F: Future<Output = ()> + Send + 'static>(
    play: impl FnOnce(Broker) -> F + Send + 'static,
) -> WireError {
    let script = Script::play(play);
    let error = open(&script).await.unwrap_err();
    assert!(error.reason.starts_with(&format!("127.0.0.1:{}: ", script.port)), "{error}");
    script.end().await;
    error
}

#[tokio::test]
async fn versions_are_negotiated() {
    let script = Script::play(async |mut broker| {
        broker.versions(&[(1, 0, 11), (3, 8, 12), (22, 5, 6)]).await;
        let (caller, _) = broker.request::<MetadataRequest>().await;
        assert_eq!((caller.version, caller.client_id.as_deref()), (8, Some("fluxmill-test")));
        broker.answer::<MetadataRequest>(&caller, &MetadataResponse::default()).await;
    });
    let mut connection = open(&script).await.unwrap();
    assert_eq!(connection.version::<FetchRequest>().unwrap(), 11);
    let error = connection.version::<kafka_protocol::messages::InitProducerIdRequest>().unwrap_err();
    assert_eq!(error.kind, WireErrorKind::Unsupported);
    assert!(error.reason.contains("`client: librdkafka`"), "{error}");
    connection.version::<kafka_protocol::messages::EndTxnRequest>().unwrap_err();
    assert_eq!(connection.expires(), None);
    connection.call(&MetadataRequest::default(), LONG).await.unwrap();
    script.end().await;
}

#[tokio::test]
async fn a_broker_that_does_not_know_the_newest_version_is_asked_in_the_oldest() {
    let script = Script::play(async |mut broker| {
        let (caller, request) = broker.request::<ApiVersionsRequest>().await;
        assert_eq!((caller.version, &*request.client_software_name), (3, "fluxmill"));
        let answer = kafka_protocol::messages::ApiVersionsResponse::default().with_error_code(35);
        broker.answer::<ApiVersionsRequest>(&Caller { version: 0, ..caller }, &answer).await;
        let (caller, _) = broker.request::<ApiVersionsRequest>().await;
        assert_eq!(caller.version, 0);
        broker.answer_versions(&caller, &[(1, 4, 12)]).await;
    });
    assert_eq!(open(&script).await.unwrap().version::<FetchRequest>().unwrap(), 12);
    script.end().await;
}

#[tokio::test]
async fn a_broker_that_knows_no_version_at_all_is_refused() {
    let error = refused(async |mut broker| {
        for _ in 0..2 {
            let (caller, _) = broker.request::<ApiVersionsRequest>().await;
            let answer = kafka_protocol::messages::ApiVersionsResponse::default().with_error_code(35);
            broker.answer::<ApiVersionsRequest>(&Caller { version: 0, ..caller }, &answer).await;
        }
    });
    let error = error.await;
    assert_eq!(error.kind, WireErrorKind::Unsupported);
    assert!(error.reason.contains("UNSUPPORTED_VERSION (35)"), "{error}");
}

#[tokio::test]
async fn an_answer_to_another_request_is_refused() {
    let script = Script::play(async |mut broker| {
        broker.versions(&[(3, 0, 12)]).await;
        let (caller, _) = broker.request::<MetadataRequest>().await;
        let other = Caller { correlation: caller.correlation + 1, ..caller };
        broker.answer::<MetadataRequest>(&other, &MetadataResponse::default()).await;
    });
    let mut connection = open(&script).await.unwrap();
    let error = connection.call(&MetadataRequest::default(), LONG).await.unwrap_err();
    assert_eq!(error.kind, WireErrorKind::Malformed);
    assert_eq!(error.into_broker("look").kind, BrokerErrorKind::Fatal);
    script.end().await;
}

#[tokio::test]
async fn half_a_response_and_then_the_end() {
    for bytes in [&[][..], &[0, 0], &[0, 0, 0, 100], &[0, 0, 0, 100, 0, 0, 0, 1, 0, 0]] {
        let script = Script::play(async |mut broker| {
            broker.versions(&[(3, 0, 12)]).await;
            broker.request::<MetadataRequest>().await;
            broker.send(bytes).await;
        });
        let mut connection = open(&script).await.unwrap();
        let error = connection.call(&MetadataRequest::default(), LONG).await.unwrap_err();
        assert_eq!(error.kind, WireErrorKind::Closed);
        assert!(error.reason.ends_with("the broker closed the connection; does this port expect SASL?"));
        assert_eq!(error.into_broker("look").kind, BrokerErrorKind::Unreachable);
        script.end().await;
    }
}

#[tokio::test]
async fn a_body_that_is_cut_short_is_malformed() {
    let script = Script::play(async |mut broker| {
        broker.versions(&[(3, 0, 12)]).await;
        let (caller, _) = broker.request::<MetadataRequest>().await;
        broker.send(&[&[0, 0, 0, 7][..], &caller.correlation.to_be_bytes(), &[0, 0, 0]].concat()).await;
    });
    let mut connection = open(&script).await.unwrap();
    let error = connection.call(&MetadataRequest::default(), LONG).await.unwrap_err();
    assert_eq!(error.kind, WireErrorKind::Malformed);
    assert!(error.reason.contains("Metadata: malformed response at byte 0"), "{error}");
    script.end().await;
}

#[tokio::test]
async fn no_answer_in_time() {
    let script = Script::play(async |mut broker| {
        broker.versions(&[(1, 0, 12)]).await;
        broker.request::<FetchRequest>().await;
        broker.end().await;
    });
    let mut connection = open(&script).await.unwrap();
    tokio::time::pause();
    let begin = Instant::now();
    let request = FetchRequest::default().with_max_wait_ms(500);
    let error = connection.call(&request, Duration::from_secs(30)).await.unwrap_err();
    assert_eq!(error.kind, WireErrorKind::Timeout);
    assert!(error.reason.ends_with("no answer to Fetch within 30500 ms"), "{error}");
    assert!(begin.elapsed() >= Duration::from_millis(30_500));
    drop(connection);
    script.end().await;
}

#[tokio::test]
async fn a_set_up_that_takes_too_long() {
    let script = Script::play(async |mut broker| broker.end().await);
    let options = Options { connect_timeout: Duration::from_millis(50), ..options() };
    let error = Connection::open("127.0.0.1", script.port, &options).await.unwrap_err();
    assert_eq!(error.kind, WireErrorKind::Timeout);
    assert!(error.reason.ends_with(" within 50 ms"), "{error}");
    script.end().await;
}

#[tokio::test]
async fn nobody_listens() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = Connection::open("127.0.0.1", port, &options()).await.unwrap_err();
    assert_eq!(error.kind, WireErrorKind::Unreachable);
    let error = Connection::open("name.invalid", port, &options()).await.unwrap_err();
    assert_eq!(error.kind, WireErrorKind::Unreachable);
    assert!(error.reason.contains("the name cannot be resolved"), "{error}");
}

#[tokio::test]
async fn a_broker_that_hangs_up_during_the_set_up_was_never_reached() {
    let error = refused(async |mut broker| {
        broker.request::<ApiVersionsRequest>().await;
    });
    let error = error.await;
    assert_eq!(error.kind, WireErrorKind::Unreachable);
    assert!(error.reason.ends_with("does this port expect TLS?"), "{error}");
}

#[tokio::test]
async fn what_is_no_response_says_what_it_may_be() {
    // An alert of TLS, a text protocol, a negative length, a length without room for the correlation id.
    let cases: [(&'static [u8], _, _); 4] = [
        (&[0x15, 3, 3, 0, 2, 2, 70], WireErrorKind::Settings, "does this port expect TLS?"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", WireErrorKind::Malformed, "a response of 1213486160 bytes"),
        (&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1], WireErrorKind::Malformed, "an impossible length"),
        (&[0, 0, 0, 3, 0, 0, 0], WireErrorKind::Malformed, "an impossible length"),
    ];
    for (bytes, kind, words) in cases {
        let error = refused(async move |mut broker| {
            broker.request::<ApiVersionsRequest>().await;
            broker.send(bytes).await;
        });
        let error = error.await;
        assert_eq!(error.kind, kind);
        assert!(error.reason.contains(words), "{error}");
    }
}
