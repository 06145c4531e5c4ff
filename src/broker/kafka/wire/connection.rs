//! Connections to one broker: TCP or TLS, the versions negotiated, the client authenticated.
//!
//! A [`Connection`] makes one call at a time; its halves, [`Requests`] and [`Responses`], may have many under way,
//! which a broker answers in their order. Nothing here starts a task, reconnects or retries: the owner does.

mod halves;
mod setup;

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::error::{WireError, WireErrorKind};
use super::response::{Call, decode as decode_response};
use super::tls::Tls;
use crate::broker::{BrokerError, BrokerErrorKind};
use crate::spec::{ColumnarSettings, KafkaClient, KafkaConnection, SaslSpec};

pub(crate) use halves::{Requests, Responses, Sent};

/// How connections are made.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The name of this client in the broker's log and quotas.
    pub(crate) client_id: String,
    /// TLS, when asked for.
    pub(crate) tls: Option<Tls>,
    /// SASL, when asked for.
    pub(crate) sasl: Option<SaslSpec>,
    /// How long the whole set-up may take: name, TCP, TLS, versions, authentication.
    pub(crate) connect_timeout: Duration,
    /// The largest response that is accepted, in bytes.
    pub(crate) max_response: usize,
}

impl Options {
    /// From the settings of a connection; reads the certificate files.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub(crate) fn new(connection: &KafkaConnection, client_id: &str) -> Result<Self, BrokerError> {
        let settings = match &connection.client {
            KafkaClient::Columnar(settings) => settings.clone(),
            KafkaClient::Librdkafka => ColumnarSettings::default(),
        };
        let tls = connection.tls.as_ref().map(Tls::new).transpose().map_err(|reason| BrokerError {
            kind: BrokerErrorKind::Settings,
            action: format!("set up TLS for {}", connection.brokers.join(",")),
            reason,
        })?;
        Ok(Self {
            client_id: client_id.to_owned(),
            tls,
            sasl: connection.sasl.clone(),
            connect_timeout: settings.connect_timeout,
            max_response: settings.response_bytes_max,
        })
    }
}

/// A connection to one broker.
///
/// After an error, and after a future of it that was dropped before its end, answers no longer belong to their
/// requests: drop the connection too.
pub(crate) struct Connection {
    requests: Requests,
    responses: Responses,
    expires: Option<Instant>,
    /// Whether the broker takes requests of this client: not sure before it answered one, where there was no
    /// authentication.
    welcome: bool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer()).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects to a broker, negotiates versions and authenticates. `host` is a name, or an address, with or without
    /// brackets.
    ///
    /// # Errors
    /// When that fails or takes longer than [`Options::connect_timeout`]. The reason names the address.
    pub(crate) async fn open(host: &str, port: u16, options: &Options) -> Result<Self, WireError> {
        setup::open(host, port, options).await
    }

    /// The broker's address, for people.
    pub(crate) fn peer(&self) -> &str {
        self.requests.peer()
    }

    /// The version in which this broker is asked.
    ///
    /// # Errors
    /// When there is no common one.
    pub(crate) fn version<R: Call>(&self) -> Result<i16, WireError> {
        self.requests.version::<R>()
    }

    /// When the owner should have opened a new connection, since the broker ends this one (KIP-368): after 85 % of the
    /// session's lifetime, as Apache Kafka's own clients do at the earliest. By the runtime's clock.
    pub(crate) fn expires(&self) -> Option<Instant> {
        self.expires
    }

    /// Sends a request and waits for its answer, for no longer than `timeout` on top of what the request itself lets
    /// the broker wait.
    ///
    /// # Errors
    /// When the connection fails, the answer is not one, or none comes in time.
    pub(crate) async fn call<R: Call>(&mut self, request: &R, timeout: Duration) -> Result<R::Response, WireError> {
        let limit = timeout.saturating_add(request.broker_wait());
        let result = match tokio::time::timeout(limit, self.exchange(request)).await {
            Ok(result) => result,
            Err(_) => {
                let reason = format!("no answer to {:?} within {} ms", R::API, limit.as_millis());
                Err(WireError::new(WireErrorKind::Timeout, self.peer(), reason))
            }
        };
        match result {
            Err(mut error) if error.kind == WireErrorKind::Closed && !self.welcome => {
                // A broker does not say why it hangs up on a request that its port does not allow yet.
                error.reason.push_str("; does this port expect SASL?");
                Err(error)
            }
            result => {
                self.welcome = true;
                result
            }
        }
    }

    async fn exchange<R: Call>(&mut self, request: &R) -> Result<R::Response, WireError> {
        let version = self.version::<R>()?;
        let body = self.ask(request, version).await?;
        let response = decode_response::<R>(body, version);
        response.map_err(|error| WireError::malformed(self.peer(), &format!("{:?}", R::API), error))
    }

    /// Sends a request in this version; gives the body of the answer.
    async fn ask<R: Call>(&mut self, request: &R, version: i16) -> Result<Bytes, WireError> {
        let sent = match self.requests.send_as(request, version).await {
            Ok(sent) => sent,
            Err(error) => return Err(self.last_words(error).await),
        };
        let (correlation, body) = self.responses.receive().await?;
        if correlation == sent.correlation {
            return Ok(body);
        }
        let reason = format!("an answer to request {correlation}, where {} was asked", sent.correlation);
        Err(WireError::new(WireErrorKind::Malformed, self.peer(), reason))
    }

    /// Why a connection that cannot be written to any more has ended: the other side may have said so before, as TLS
    /// does when it refuses this client's certificate.
    async fn last_words(&mut self, error: WireError) -> WireError {
        if error.kind != WireErrorKind::Closed {
            return error;
        }
        match self.responses.receive().await {
            Err(said) if said.kind != WireErrorKind::Closed => said,
            _ => error,
        }
    }

    /// The halves, for requests that are sent before earlier ones are answered.
    pub(crate) fn split(self) -> (Requests, Responses) {
        (self.requests, self.responses)
    }
}

/// Decodes the body of a response, as [`Responses::receive`] gave it, to a request that was sent in this version.
///
/// # Errors
/// When it does not follow the protocol.
pub(crate) fn decode<R: Call>(body: Bytes, version: i16) -> Result<R::Response, WireError> {
    decode_response::<R>(body, version)
        .map_err(|error| WireError::malformed("response", &format!("{:?}", R::API), error))
}
