//! SASL, with credentials that are right and that are not.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use kafka_protocol::messages::{
    SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse,
};
use kafka_protocol::protocol::StrBytes;
use sha2::{Digest as _, Sha256, Sha512};

use super::broker::{Broker, Script, options};
use super::*;
use crate::spec::{SaslMechanism, SaslSpec, Secret, TokenSource};

const APIS: [(i16, i16, i16); 3] = [(3, 0, 12), (17, 0, 1), (36, 0, 2)];
const REFUSED: &str = "Authentication failed due to\ninvalid credentials";

fn password(mechanism: SaslMechanism, password: &str) -> SaslSpec {
    SaslSpec::Password { mechanism, username: "app".into(), password: Secret(password.into()) }
}

fn with(sasl: SaslSpec) -> Options {
    Options { sasl: Some(sasl), ..options() }
}

impl Broker {
    /// Lets a client use this mechanism.
    async fn mechanism(&mut self, name: &str) {
        self.versions(&APIS).await;
        let (caller, request) = self.request::<SaslHandshakeRequest>().await;
        assert_eq!(&*request.mechanism, name);
        self.answer::<SaslHandshakeRequest>(&caller, &SaslHandshakeResponse::default()).await;
    }

    /// Answers a step: by the bytes of the mechanism, or an error.
    async fn step(&mut self, answer: impl FnOnce(&[u8]) -> Result<Vec<u8>, ()>) {
        let (caller, request) = self.request::<SaslAuthenticateRequest>().await;
        let response = SaslAuthenticateResponse::default();
        let response = match answer(&request.auth_bytes) {
            Ok(bytes) => response.with_auth_bytes(Bytes::from(bytes)).with_session_lifetime_ms(10_000),
            Err(()) => response.with_error_code(58).with_error_message(Some(StrBytes::from_static_str(REFUSED))),
        };
        self.answer::<SaslAuthenticateRequest>(&caller, &response).await;
    }
}

/// The error of an authentication; no error holds a secret.
async fn denied(script: Script, sasl: SaslSpec) -> WireError {
    let error = Connection::open("127.0.0.1", script.port, &with(sasl)).await.unwrap_err();
    script.end().await;
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    error
}

async fn plain_broker(mut broker: Broker) {
    broker.mechanism("PLAIN").await;
    broker.step(|message| if message == b"\0app\0hunter2" { Ok(Vec::new()) } else { Err(()) }).await;
}

#[tokio::test]
async fn plain() {
    let script = Script::play(plain_broker);
    let options = with(password(SaslMechanism::Plain, "hunter2"));
    assert!(!format!("{options:?}").contains("hunter2"));
    let before = Instant::now();
    let connection = Connection::open("127.0.0.1", script.port, &options).await.unwrap();
    let expires = connection.expires().unwrap();
    assert!(expires >= before + Duration::from_millis(8500), "85 % of the lifetime");
    assert!(expires <= Instant::now() + Duration::from_millis(8500));
    script.end().await;

    let error = denied(Script::play(plain_broker), password(SaslMechanism::Plain, "hunter2x")).await;
    assert_eq!(error.kind, WireErrorKind::Denied);
    let words = "the broker refused user `app` (PLAIN): Authentication failed due to invalid credentials";
    assert!(error.reason.ends_with(words), "{error}");
    assert_eq!(error.into_broker("connect").kind, BrokerErrorKind::Denied);
}

fn hmac(sha512: bool, key: &[u8], text: &[u8]) -> Vec<u8> {
    if sha512 {
        let mut mac = Hmac::<Sha512>::new_from_slice(key).unwrap();
        mac.update(text);
        return mac.finalize().into_bytes().to_vec();
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

/// A broker that knows this password, and says that it does as RFC 5802 asks.
async fn scram_broker(mut broker: Broker, sha512: bool, password: &'static str, honest: bool) {
    broker.mechanism(if sha512 { "SCRAM-SHA-512" } else { "SCRAM-SHA-256" }).await;
    let (mut client_first, mut server_first) = (String::new(), String::new());
    let first = |message: &[u8]| {
        client_first = std::str::from_utf8(message).unwrap().strip_prefix("n,,").unwrap().to_owned();
        let nonce = client_first.strip_prefix("n=app,r=").unwrap();
        server_first = format!("r={nonce}broker,s={},i=4096", BASE64.encode("salt"));
        Ok(server_first.clone().into_bytes())
    };
    broker.step(first).await;
    let last = |message: &[u8]| {
        let (without_proof, proof) = std::str::from_utf8(message).unwrap().split_once(",p=").unwrap();
        let auth_message = format!("{client_first},{server_first},{without_proof}");
        let mut salted = vec![0; if sha512 { 64 } else { 32 }];
        if sha512 {
            pbkdf2::pbkdf2_hmac::<Sha512>(password.as_bytes(), b"salt", 4096, &mut salted);
        } else {
            pbkdf2::pbkdf2_hmac::<Sha256>(password.as_bytes(), b"salt", 4096, &mut salted);
        }
        let client_key = hmac(sha512, &salted, b"Client Key");
        let hash = |key: &[u8]| if sha512 { Sha512::digest(key).to_vec() } else { Sha256::digest(key).to_vec() };
        let signature = hmac(sha512, &hash(&client_key), auth_message.as_bytes());
        let proof = BASE64.decode(proof).unwrap();
        let key: Vec<u8> = proof.iter().zip(&signature).map(|(proof, signature)| proof ^ signature).collect();
        if honest && hash(&key) != hash(&client_key) {
            return Err(());
        }
        let server_key = hmac(sha512, &salted, b"Server Key");
        let signature = hmac(sha512, &server_key, auth_message.as_bytes());
        Ok(format!("v={}", BASE64.encode(signature)).into_bytes())
    };
    broker.step(last).await;
}

#[tokio::test]
async fn scram() {
    for (sha512, mechanism) in [(false, SaslMechanism::ScramSha256), (true, SaslMechanism::ScramSha512)] {
        let script = Script::play(move |broker| scram_broker(broker, sha512, "hunter2", true));
        let options = with(password(mechanism, "hunter2"));
        let connection = Connection::open("127.0.0.1", script.port, &options).await.unwrap();
        assert!(connection.expires().is_some());
        script.end().await;

        let script = Script::play(move |broker| scram_broker(broker, sha512, "hunter2", true));
        let error = denied(script, password(mechanism, "hunter2x")).await;
        assert_eq!(error.kind, WireErrorKind::Denied);
        assert!(error.reason.ends_with("Authentication failed due to invalid credentials"), "{error}");

        // A broker that does not know the password, and takes every proof.
        let script = Script::play(move |broker| scram_broker(broker, sha512, "guess", false));
        let error = denied(script, password(mechanism, "hunter2")).await;
        assert_eq!(error.kind, WireErrorKind::Denied);
        assert!(error.reason.ends_with("could not prove that it knows the password"), "{error}");
    }
}

async fn token_broker(mut broker: Broker) {
    broker.mechanism("OAUTHBEARER").await;
    let mut good = true;
    let answer = |message: &[u8]| {
        good = message == b"n,,\x01auth=Bearer hunter2\x01\x01";
        Ok(if good { Vec::new() } else { br#"{"status":"invalid_token"}"#.to_vec() })
    };
    broker.step(answer).await;
    if !good {
        let last = |message: &[u8]| {
            assert_eq!(message, b"\x01");
            Err(())
        };
        broker.step(last).await;
    }
}

#[tokio::test]
async fn tokens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let source = TokenSource::File(path.clone());
    std::fs::write(&path, "hunter2\n").unwrap();
    let script = Script::play(token_broker);
    let options = with(SaslSpec::Token(source.clone()));
    Connection::open("127.0.0.1", script.port, &options).await.unwrap();
    script.end().await;

    std::fs::write(&path, "hunter2-and-older").unwrap();
    let error = denied(Script::play(token_broker), SaslSpec::Token(source)).await;
    assert_eq!(error.kind, WireErrorKind::Denied);
    assert!(error.reason.contains("Authentication failed due to invalid credentials"), "{error}");
    assert!(error.reason.ends_with(r#"{"status":"invalid_token"}"#), "{error}");
}

#[tokio::test]
async fn a_mechanism_that_the_broker_does_not_take() {
    for (code, mechanisms, words) in [
        (33, vec!["SCRAM-SHA-512", "GSSAPI"], "the broker does not take PLAIN, but SCRAM-SHA-512, GSSAPI"),
        (34, vec![], "this port takes no SASL"),
    ] {
        let script = Script::play(async move |mut broker| {
            broker.versions(&APIS).await;
            let (caller, _) = broker.request::<SaslHandshakeRequest>().await;
            let mechanisms = mechanisms.into_iter().map(StrBytes::from_static_str).collect();
            let response = SaslHandshakeResponse::default().with_error_code(code).with_mechanisms(mechanisms);
            broker.answer::<SaslHandshakeRequest>(&caller, &response).await;
        });
        let error = denied(script, password(SaslMechanism::Plain, "hunter2")).await;
        assert_eq!(error.kind, WireErrorKind::Settings);
        assert!(error.reason.contains(words), "{error}");
    }
}

#[tokio::test]
async fn a_broker_that_hangs_up_during_the_authentication_was_never_reached() {
    let script = Script::play(async |mut broker| {
        broker.mechanism("PLAIN").await;
        broker.request::<SaslAuthenticateRequest>().await;
    });
    let error = denied(script, password(SaslMechanism::Plain, "hunter2")).await;
    assert_eq!(error.kind, WireErrorKind::Unreachable, "{error}");
}
