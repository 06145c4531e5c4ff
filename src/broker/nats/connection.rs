//! Connections: who this is, TLS, and what is known of the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerError};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::Notify;

use super::{address, failed};
use crate::broker::{BrokerError, BrokerErrorKind};
use crate::spec::{NatsAuth, NatsConnection};

/// How long a connection may take to be set up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one question may take.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The first and the longest wait before another attempt to connect.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Messages that may wait for whoever subscribed. More than are ever asked for.
const SUBSCRIPTION_CAPACITY: usize = 65_536;

/// How long the server may take to answer a round trip.
const ROUND_TRIP_TIMEOUT: Duration = Duration::from_secs(1);
/// How the subjects of round trips end.
const ROUND_TRIP: &str = ".fluxmill-round-trip";

/// The oldest server that knows atomic batches.
const OLDEST_WITH_BATCHES: (i64, i64, i64) = (2, 12, 0);

/// What a connection is like now. Shared with the client, which tells it.
#[derive(Debug, Default)]
pub(super) struct Link {
    address: String,
    /// Whether this link is the one that tells of outages.
    speaks: bool,
    down: AtomicBool,
    /// Grows each time that the server was reached.
    epoch: AtomicU64,
    /// Messages that came and found no room.
    slow: AtomicU64,
    denied: Mutex<Option<String>>,
    /// Told when the server does not permit a round trip.
    no_round_trip: Notify,
    change: Notify,
}

impl Link {
    /// Which connection this is, counted from 1; none while there is none.
    pub(super) fn epoch(&self) -> Option<u64> {
        let epoch = self.epoch.load(Ordering::Acquire);
        (!self.down.load(Ordering::Acquire)).then_some(epoch)
    }

    /// How many messages found no room, at least: the client may not tell of all.
    pub(super) fn slow(&self) -> u64 {
        self.slow.load(Ordering::Relaxed)
    }

    /// What the server does not permit, in its words.
    pub(super) fn denied(&self) -> Option<String> {
        self.denied.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the next change. Only one task may wait.
    pub(super) async fn changed(&self) {
        self.change.notified().await;
    }

    fn note(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.epoch.fetch_add(1, Ordering::AcqRel);
                if self.down.swap(false, Ordering::AcqRel) && self.speaks {
                    tracing::info!(target: "fluxmill::nats", "{} is reachable again", self.address);
                }
            }
            Event::Disconnected => {
                if !self.down.swap(true, Ordering::AcqRel) && self.speaks {
                    tracing::warn!(target: "fluxmill::nats", "{} is not reachable; waiting for it", self.address);
                }
            }
            Event::SlowConsumer(_) => {
                // A stream's server delivers it again; of core NATS it is lost, and its source tells.
                if self.slow.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::debug!(target: "fluxmill::nats", "{}: a message found no room", self.address);
                }
            }
            Event::ServerError(ServerError::Other(words)) if words.contains(ROUND_TRIP) => {
                self.no_round_trip.notify_waiters();
            }
            Event::ServerError(ServerError::Other(words)) if words.to_lowercase().contains("permissions violation") => {
                tracing::error!(target: "fluxmill::nats", "{}: what was tried is not permitted: {words}", self.address);
                *self.denied.lock().unwrap_or_else(PoisonError::into_inner) = Some(words.clone());
            }
            Event::ServerError(error) => tracing::debug!(target: "fluxmill::nats", "{}: {error}", self.address),
            Event::ClientError(error) => tracing::debug!(target: "fluxmill::nats", "{}: {error}", self.address),
            Event::LameDuckMode | Event::Draining | Event::Closed => {}
        }
        self.change.notify_one();
    }
}

/// A connection and what is known of it. It is set up anew for ever once it was there.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) link: Arc<Link>,
    pub(super) address: String,
}

impl Connection {
    /// Connects; `speaks` says whether this connection logs that the server is gone.
    ///
    /// # Errors
    /// When no server is reached, or it refuses.
    pub(super) async fn open(connection: &NatsConnection, name: &str, speaks: bool) -> Result<Self, BrokerError> {
        let address = address(connection);
        let link = Arc::new(Link { address: address.clone(), speaks, ..Link::default() });
        let told = link.clone();
        let options = options(connection)?
            .name(name)
            .connection_timeout(CONNECT_TIMEOUT)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .ping_interval(Duration::from_secs(5))
            .max_reconnects(None)
            .reconnect_delay_callback(|attempts| {
                let doubled = RECONNECT.0.saturating_mul(1 << attempts.min(8));
                if attempts <= 1 { Duration::ZERO } else { doubled.min(RECONNECT.1) }
            })
            .event_callback(move |event| {
                told.note(&event);
                async {}
            });
        let action = format!("connect to {address}");
        let connect = async {
            let client = options.connect(connection.servers.as_slice()).await?;
            // The client tells of its first connection by an event, too, some time later: whoever took that for another
            // connection would send again what is on its way.
            while link.epoch() == Some(0) {
                link.changed().await;
            }
            Ok::<_, async_nats::ConnectError>(client)
        };
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connect).await;
        let client = match connected {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => {
                let kind = match error.kind() {
                    ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                        BrokerErrorKind::Denied
                    }
                    ConnectErrorKind::ServerParse => BrokerErrorKind::Settings,
                    ConnectErrorKind::Tls => BrokerErrorKind::Settings,
                    _ => BrokerErrorKind::Unreachable,
                };
                // The server refuses what is too old in the same words as what is wrong.
                return Err(match expired(&connection.auth, Timestamp::now()) {
                    Some(at) if kind == BrokerErrorKind::Denied => {
                        failed(kind, action, format!("{error}: the credentials expired at {at}"))
                    }
                    _ => failed(kind, action, error),
                });
            }
            Err(_) => {
                let reason = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
                return Err(failed(BrokerErrorKind::Unreachable, action, reason));
            }
        };
        Ok(Self { client, link, address })
    }

    /// What the server does not permit, as an error of what was being done.
    pub(super) fn refusal(&self, action: impl FnOnce() -> String) -> Option<BrokerError> {
        self.link.denied().map(|words| failed(BrokerErrorKind::Denied, action(), words))
    }
}

impl Connection {
    /// Waits until the server has read all that was sent over this connection, and all has come that it had for it
    /// until then. False when that is not known.
    ///
    /// The client has no ping that says when its pong comes; what a client sends to itself is answered in the same order
    /// (<https://docs.nats.io/reference/reference-protocols/nats-protocol>). So is a refusal, for those who may not.
    pub(super) async fn round_trip(&self) -> bool {
        let refused = self.link.no_round_trip.notified();
        let trip = async {
            let subject = format!("{}{ROUND_TRIP}", self.client.new_inbox());
            let Ok(mut back) = self.client.subscribe(subject.clone()).await else { return false };
            self.client.publish(subject, Bytes::new()).await.is_ok() && back.next().await.is_some()
        };
        if self.link.epoch().is_none() {
            return false;
        }
        tokio::select! {
            came = trip => came,
            () = refused => true,
            () = tokio::time::sleep(ROUND_TRIP_TIMEOUT) => false,
        }
    }

    /// Why the server that this is connected to cannot be given atomic batches, if it cannot.
    pub(super) fn knows_no_batches(&self) -> Option<String> {
        let (major, minor, patch) = OLDEST_WITH_BATCHES;
        let version = || self.client.server_info().version;
        (!self.client.is_server_compatible(major, minor, patch))
            .then(|| format!("the server is version {}; atomic batches need {major}.{minor} or newer", version()))
    }
}

/// How this client says who it is, and whom it trusts.
fn options(connection: &NatsConnection) -> Result<ConnectOptions, BrokerError> {
    let mut options = match &connection.auth {
        NatsAuth::None => ConnectOptions::new(),
        NatsAuth::Password { user, password } => {
            ConnectOptions::with_user_and_password(user.clone(), password.0.clone())
        }
        NatsAuth::Token(token) => ConnectOptions::with_token(token.0.clone()),
        NatsAuth::Nkey(seed) => ConnectOptions::with_nkey(seed.0.trim().to_owned()),
        NatsAuth::Credentials(text) => {
            // Their last line needs its end, which secrets are read without. The error may show what could not be read.
            ConnectOptions::with_credentials(&format!("{}\n", text.0)).map_err(|_| {
                let action = format!("read the credentials for {}", address(connection));
                failed(BrokerErrorKind::Settings, action, "they hold no JWT and seed as `nsc` writes them")
            })?
        }
    };
    if let Some(tls) = &connection.tls {
        options = options.require_tls(true);
        if let Some(ca) = &tls.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
    }
    Ok(options)
}

/// What of a user's JWT is looked at here.
#[derive(Deserialize)]
struct Claims {
    /// Seconds since 1970; none for one that does not expire.
    exp: Option<i64>,
}

/// When the credentials expired, if they have. None for what cannot be read: the server has the last word.
fn expired(auth: &NatsAuth, now: Timestamp) -> Option<Timestamp> {
    let NatsAuth::Credentials(text) = auth else { return None };
    let (_, jwt) = text.0.split_once("-----BEGIN NATS USER JWT-----")?;
    let claims = URL_SAFE_NO_PAD.decode(jwt.split_whitespace().next()?.split('.').nth(1)?).ok()?;
    let at = Timestamp::from_second(serde_json::from_slice::<Claims>(&claims).ok()?.exp?).ok()?;
    (at <= now).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Secret;

    #[test]
    fn credentials_that_expired_are_known() {
        let now = Timestamp::from_second(1_000).expect("a time");
        let of = |claims: &str| {
            let jwt = format!("e30.{}.signature", URL_SAFE_NO_PAD.encode(claims));
            let text = format!("-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n");
            expired(&NatsAuth::Credentials(Secret(text)), now).map(Timestamp::as_second)
        };
        assert_eq!(of(r#"{"exp":999,"sub":"U"}"#), Some(999));
        assert_eq!(of(r#"{"exp":1000}"#), Some(1000));
        for good in [r#"{"exp":1001}"#, r#"{"sub":"U"}"#, "no JSON", ""] {
            assert_eq!(of(good), None, "{good}");
        }
        for text in ["", "-----BEGIN NATS USER JWT-----", "-----BEGIN NATS USER JWT-----\nno-jwt\n"] {
            assert_eq!(expired(&NatsAuth::Credentials(Secret(text.to_owned())), now), None, "{text}");
        }
        assert_eq!(expired(&NatsAuth::None, now), None);
    }
}
