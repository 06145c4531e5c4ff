//! TLS: who is believed, and what is said when nobody is.

use std::path::PathBuf;
use std::sync::Arc;

use kafka_protocol::messages::{MetadataRequest, MetadataResponse};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::broker::{Broker, Script, options};
use super::*;
use crate::spec::TlsSpec;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/broker/kafka/wire/connection/tests/certificates").join(name)
}

/// A broker with this certificate, which may ask clients for theirs.
fn acceptor(name: &str, asks: bool) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file("ca.pem")).unwrap()).unwrap();
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = if asks {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let certificate = CertificateDer::from_pem_file(file(&format!("{name}.pem"))).unwrap();
    let key = PrivateKeyDer::from_pem_file(file(&format!("{name}.key"))).unwrap();
    TlsAcceptor::from(Arc::new(builder.with_single_cert(vec![certificate], key).unwrap()))
}

fn spec(ca: &str, client: Option<&str>) -> TlsSpec {
    TlsSpec {
        ca: Some(file(ca)),
        certificate: client.map(|name| file(&format!("{name}.pem"))),
        key: client.map(|name| file(&format!("{name}.key"))),
    }
}

fn with(spec: &TlsSpec) -> Options {
    Options { tls: Some(Tls::new(spec).unwrap()), ..options() }
}

/// Answers Metadata, if the client gets that far.
async fn metadata(mut broker: Broker) {
    broker.versions(&[(3, 0, 12)]).await;
    let (caller, _) = broker.request::<MetadataRequest>().await;
    broker.answer::<MetadataRequest>(&caller, &MetadataResponse::default()).await;
    broker.end().await;
}

async fn hang_up(_: Broker) {}

#[tokio::test]
async fn an_encrypted_connection() {
    for (asks, client) in [(false, None), (true, Some("client"))] {
        for host in ["localhost", "127.0.0.1"] {
            let script = Script::play_tls(acceptor("broker", asks), metadata);
            let mut connection = Connection::open(host, script.port, &with(&spec("ca.pem", client))).await.unwrap();
            connection.call(&MetadataRequest::default(), LONG).await.unwrap();
            drop(connection);
            script.end().await;
        }
    }
}

/// The error of a connection to a broker with this certificate.
async fn refused(certificate: &str, ca: &str) -> WireError {
    let script = Script::play_tls(acceptor(certificate, false), hang_up);
    let error = Connection::open("localhost", script.port, &with(&spec(ca, None))).await.unwrap_err();
    script.end().await;
    error
}

#[tokio::test]
async fn a_certificate_that_is_not_believed() {
    let error = refused("broker", "other-ca.pem").await;
    assert_eq!(error.kind, WireErrorKind::Settings);
    let words = "the broker's certificate is signed by a CA that is not trusted; check `tls: { ca }`";
    assert!(error.reason.ends_with(words), "{error}");

    let error = refused("elsewhere", "ca.pem").await;
    assert_eq!(error.kind, WireErrorKind::Settings);
    assert!(error.reason.contains("is not for `localhost`"), "{error}");
    assert!(error.reason.contains("kafka.example"), "{error}");

    let error = refused("expired", "ca.pem").await;
    assert_eq!(error.kind, WireErrorKind::Denied);
    assert!(error.reason.ends_with("the broker's certificate has expired"), "{error}");
}

/// As `openssl req -x509` makes them: its own CA. Its name is `localhost` alone.
#[tokio::test]
async fn a_certificate_that_is_its_own_authority() {
    let script = Script::play_tls(acceptor("own-ca", false), metadata);
    let options = with(&spec("own-ca.pem", None));
    let mut connection = Connection::open("localhost", script.port, &options).await.unwrap();
    connection.call(&MetadataRequest::default(), LONG).await.unwrap();
    drop(connection);
    script.end().await;

    let script = Script::play_tls(acceptor("own-ca", false), hang_up);
    let error = Connection::open("127.0.0.1", script.port, &options).await.unwrap_err();
    assert!(error.reason.contains("is not for `127.0.0.1`"), "{error}");
    script.end().await;

    let error = refused("own-ca", "ca.pem").await;
    assert_eq!(error.kind, WireErrorKind::Settings);
    assert!(error.reason.contains("is a CA's own, and not in the file"), "{error}");
}

#[tokio::test]
async fn a_broker_that_asks_for_a_certificate_and_gets_none() {
    let script = Script::play_tls(acceptor("broker", true), hang_up);
    let error = Connection::open("localhost", script.port, &with(&spec("ca.pem", None))).await.unwrap_err();
    assert_eq!(error.kind, WireErrorKind::Denied, "{error}");
    assert!(error.reason.contains("the broker asks for a client certificate"), "{error}");
    assert_eq!(error.into_broker("connect").kind, BrokerErrorKind::Denied);
    script.end().await;
}

#[tokio::test]
async fn a_broker_that_does_not_speak_tls() {
    for bytes in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0, 0, 0, 10, 0, 0, 0, 1, 0, 35, 0, 0, 0, 0], &[]] {
        let script = Script::play(async move |mut broker| {
            broker.send(bytes).await;
            if !bytes.is_empty() {
                broker.end().await;
            }
        });
        let error = Connection::open("localhost", script.port, &with(&spec("ca.pem", None))).await.unwrap_err();
        let kind = if bytes.is_empty() { WireErrorKind::Unreachable } else { WireErrorKind::Settings };
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.reason.ends_with("does this port expect TLS?"), "{error}");
        script.end().await;
    }
}

#[tokio::test]
async fn a_client_without_tls_at_a_port_that_expects_it() {
    let script = Script::play_tls(acceptor("broker", false), hang_up);
    let error = Connection::open("localhost", script.port, &options()).await.unwrap_err();
    assert!(error.reason.contains("does this port expect TLS?"), "{error}");
    script.end().await;
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let broken = folder.path().join("broken.pem");
    std::fs::write(&broken, "-----BEGIN CERTIFICATE-----\n*secret*\n-----END CERTIFICATE-----\n").unwrap();
    let passphrase = folder.path().join("passphrase.key");
    std::fs::write(&passphrase, "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
        .unwrap();
    let good = spec("ca.pem", Some("client"));
    let cases = [
        (TlsSpec { ca: Some("none.pem".into()), ..good.clone() }, "cannot read `none.pem`"),
        (TlsSpec { ca: Some(empty.clone()), ..good.clone() }, "holds no certificate (PEM)"),
        (TlsSpec { ca: Some(broken), ..good.clone() }, "holds no certificate that can be read"),
        (TlsSpec { key: Some(empty), ..good.clone() }, "holds no private key"),
        (TlsSpec { key: Some(passphrase), ..good.clone() }, "`client: librdkafka`"),
        (TlsSpec { key: Some(file("broker.key")), ..good.clone() }, "cannot be used"),
        (TlsSpec { key: None, ..good.clone() }, "needs its key"),
    ];
    for (spec, words) in cases {
        let reason = Tls::new(&spec).unwrap_err();
        assert!(reason.contains(words) && !reason.contains("secret"), "{reason}");
    }
    Tls::new(&good).unwrap();
}
