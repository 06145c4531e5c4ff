//! A broker that plays a script to one client.

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{ApiVersionsRequest, ApiVersionsResponse, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable as _, Encodable as _, HeaderVersion, Request};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::Options;

/// Options without TLS and SASL.
pub(super) fn options() -> Options {
    Options {
        client_id: "fluxmill-test".into(),
        tls: None,
        sasl: None,
        connect_timeout: Duration::from_secs(60),
        max_response: 1 << 24,
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A script that is being played.
pub(super) struct Script {
    /// Where it listens on 127.0.0.1.
    pub(super) port: u16,
    task: JoinHandle<()>,
}

/// The broker's end of a connection.
pub(super) struct Broker(Box<dyn Stream>);

/// Who made a request, and how.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) version: i16,
    pub(super) correlation: i32,
    pub(super) client_id: Option<String>,
}

impl Script {
    /// Plays to the first client that connects.
    pub(super) fn play<F: Future<Output = ()> + Send + 'static>(
        play: impl FnOnce(Broker) -> F + Send + 'static,
    ) -> Self {
        Self::accept(None, play)
    }

    /// Plays to the first client, by TLS; ends quietly when the handshake fails.
    pub(super) fn play_tls<F: Future<Output = ()> + Send + 'static>(
        acceptor: TlsAcceptor,
        play: impl FnOnce(Broker) -> F + Send + 'static,
    ) -> Self {
        Self::accept(Some(acceptor), play)
    }

    #[expect(clippy::disallowed_methods, reason = "a broker of a test, which the test joins")]
    fn accept<F: Future<Output = ()> + Send + 'static>(
        acceptor: Option<TlsAcceptor>,
        play: impl FnOnce(Broker) -> F + Send + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            match acceptor {
                None => play(Broker(Box::new(stream))).await,
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        play(Broker(Box::new(stream))).await;
                    }
                }
            }
        });
        Self { port, task }
    }

    /// Waits until the script has ended, and fails if it did.
    pub(super) async fn end(self) {
        self.task.await.unwrap();
    }
}

impl Broker {
    /// The next request, which must be this one.
    pub(super) async fn request<R: Request>(&mut self) -> (Caller, R) {
        let length = self.0.read_u32().await.unwrap();
        let mut frame = vec![0; length as usize];
        self.0.read_exact(&mut frame).await.unwrap();
        let mut frame = Bytes::from(frame);
        let (key, version) = ((&frame[..]).get_i16(), (&frame[2..]).get_i16());
        assert_eq!(key, R::KEY);
        let header = RequestHeader::decode(&mut frame, R::header_version(version)).unwrap();
        let request = R::decode(&mut frame, version).unwrap();
        assert!(frame.is_empty(), "the request goes on behind its end");
        let client_id = header.client_id.map(|id| id.to_string());
        (Caller { version, correlation: header.correlation_id, client_id }, request)
    }

    /// Answers a request.
    pub(super) async fn answer<R: Request>(&mut self, caller: &Caller, response: &R::Response) {
        let frame = frame::<R>(caller, response);
        self.send(&frame).await;
    }

    /// Answers the first request of a client: APIs by key, oldest and newest version.
    pub(super) async fn versions(&mut self, apis: &[(i16, i16, i16)]) {
        let (caller, _) = self.request::<ApiVersionsRequest>().await;
        self.answer_versions(&caller, apis).await;
    }

    /// See [`Self::versions`].
    pub(super) async fn answer_versions(&mut self, caller: &Caller, apis: &[(i16, i16, i16)]) {
        let keys = apis.iter().map(|&(key, min, max)| {
            ApiVersion::default().with_api_key(key).with_min_version(min).with_max_version(max)
        });
        let response = ApiVersionsResponse::default().with_api_keys(keys.collect());
        self.answer::<ApiVersionsRequest>(caller, &response).await;
    }

    /// Sends bytes. A client that has hung up already does not matter.
    pub(super) async fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes).await;
        let _ = self.0.flush().await;
    }

    /// Waits until the client hangs up.
    pub(super) async fn end(&mut self) {
        let _ = self.0.read_to_end(&mut Vec::new()).await;
    }
}

/// A response with its length, as it is sent.
pub(super) fn frame<R: Request>(caller: &Caller, response: &R::Response) -> BytesMut {
    let mut body = BytesMut::new();
    let header = ResponseHeader::default().with_correlation_id(caller.correlation);
    header.encode(&mut body, R::Response::header_version(caller.version)).unwrap();
    response.encode(&mut body, caller.version).unwrap();
    let mut frame = BytesMut::from(&u32::try_from(body.len()).unwrap().to_be_bytes()[..]);
    frame.extend_from_slice(&body);
    frame
}
