//! Authentication by SASL (KIP-43, KIP-152): PLAIN, SCRAM and OAUTHBEARER, and for how long it holds (KIP-368).
//!
//! No secret is ever part of an error. Names and passwords are sent as the UTF-8 that was written: Apache Kafka does
//! not prepare them either (SASLprep, RFC 4013), so a password that is not ASCII must be written in the same form here
//! and at the broker.

mod scram;

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::{SaslAuthenticateRequest, SaslHandshakeRequest};
use kafka_protocol::protocol::StrBytes;

use super::connection::Connection;
use super::error::{WireError, WireErrorKind, words};
use super::response::{ErrorCode, SaslAuthenticateResponse};
use crate::broker::kafka::token;
use crate::spec::{SaslMechanism, SaslSpec, Secret, TokenSource};
use scram::Scram;

/// The set-up has a deadline of its own, which is earlier.
const NO_LIMIT: Duration = Duration::from_secs(3600);

/// Authenticates a connection; gives for how long, where the broker sets a limit.
///
/// # Errors
/// [`WireErrorKind::Denied`] when the broker refuses, in its words; [`WireErrorKind::Settings`] when it does not know
/// the mechanism, or a name, password or token cannot be sent.
pub(super) async fn authenticate(connection: &mut Connection, spec: &SaslSpec) -> Result<Option<Duration>, WireError> {
    let peer = connection.peer().to_owned();
    let (name, who) = match spec {
        SaslSpec::Password { mechanism, username, .. } => (mechanism.name(), format!("user `{username}`")),
        SaslSpec::Token(_) => ("OAUTHBEARER", "the token".to_owned()),
    };
    handshake(connection, name).await?;
    let mut steps = Steps { connection, name, who };
    match spec {
        SaslSpec::Password { mechanism: SaslMechanism::Plain, username, password } => {
            let message = plain(username, password).map_err(|reason| settings(&peer, reason))?;
            steps.step(message).await.map(|answer| answer.lifetime)
        }
        SaslSpec::Password { mechanism: SaslMechanism::ScramSha256, username, password } => {
            let (scram, first) = Scram::begin::<scram::Sha256>(username, password, scram::nonce(&peer)?);
            by_scram(&mut steps, scram, first).await
        }
        SaslSpec::Password { mechanism: SaslMechanism::ScramSha512, username, password } => {
            let (scram, first) = Scram::begin::<scram::Sha512>(username, password, scram::nonce(&peer)?);
            by_scram(&mut steps, scram, first).await
        }
        SaslSpec::Token(source) => {
            let token = token(source).map_err(|reason| match source {
                TokenSource::Value(_) => settings(&peer, reason),
                // Whatever keeps the file fresh may be writing it just now.
                TokenSource::File(_) => WireError::new(WireErrorKind::Unreachable, &peer, reason),
            })?;
            by_token(&mut steps, &token).await
        }
    }
}

fn settings(peer: &str, reason: impl std::fmt::Display) -> WireError {
    WireError::new(WireErrorKind::Settings, peer, reason)
}

/// Asks for a mechanism.
async fn handshake(connection: &mut Connection, name: &'static str) -> Result<(), WireError> {
    let request = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(name));
    let response = connection.call(&request, NO_LIMIT).await?;
    let reason = match response.error {
        ErrorCode::NONE => return Ok(()),
        ErrorCode::UNSUPPORTED_SASL_MECHANISM => {
            format!("the broker does not take {name}, but {}", words(&response.mechanisms.join(", ")))
        }
        ErrorCode::ILLEGAL_SASL_STATE => "this port takes no SASL; does it expect clients without it?".to_owned(),
        error => format!("the broker refused {name}: {error}"),
    };
    Err(settings(connection.peer(), reason))
}

/// An authentication that is under way.
struct Steps<'a> {
    connection: &'a mut Connection,
    name: &'static str,
    who: String,
}

impl Steps<'_> {
    /// Says something, and gives what the broker answers.
    async fn step(&mut self, message: Vec<u8>) -> Result<SaslAuthenticateResponse, WireError> {
        let request = SaslAuthenticateRequest::default().with_auth_bytes(Bytes::from(message));
        let response = self.connection.call(&request, NO_LIMIT).await?;
        if response.error.is_ok() {
            return Ok(response);
        }
        let reason = match &response.message {
            Some(message) if !message.is_empty() => words(message),
            _ => response.error.to_string(),
        };
        Err(self.refused(&reason))
    }

    fn refused(&self, reason: &str) -> WireError {
        let reason = format!("the broker refused {} ({}): {reason}", self.who, self.name);
        WireError::new(WireErrorKind::Denied, self.connection.peer(), reason)
    }
}

/// PLAIN (RFC 4616): no authorization id, the name, the password.
fn plain(username: &str, password: &Secret) -> Result<Vec<u8>, &'static str> {
    if username.contains('\0') || password.0.contains('\0') {
        return Err("PLAIN cannot send a user name or a password with a NUL character");
    }
    Ok([b"\0", username.as_bytes(), b"\0", password.0.as_bytes()].concat())
}

async fn by_scram(steps: &mut Steps<'_>, scram: Scram, first: Vec<u8>) -> Result<Option<Duration>, WireError> {
    let answer = steps.step(first).await?;
    let (proof, expected) = scram.prove(&answer.challenge).map_err(|error| steps.refused_by_us(&error))?;
    let answer = steps.step(proof).await?;
    expected.verify(&answer.challenge).map_err(|error| steps.refused_by_us(&error))?;
    Ok(answer.lifetime)
}

impl Steps<'_> {
    /// The broker's side of SCRAM did not hold: it is not who knows the password, or does not follow the protocol.
    fn refused_by_us(&self, error: &scram::ScramError) -> WireError {
        let reason = format!("{} as {} failed: {error}", self.name, self.who);
        WireError::new(WireErrorKind::Denied, self.connection.peer(), reason)
    }
}

/// The token, fresh from where it is kept, without white space around it. Files are small and local, so that they are
/// read in place.
fn token(source: &TokenSource) -> Result<Secret, String> {
    let (text, what) = match source {
        TokenSource::Value(token) => (token.0.clone(), "the token".to_owned()),
        TokenSource::File(path) => (token::text_of(path)?, format!("the token in {}", path.display())),
    };
    token::check(text.trim(), &what)?;
    Ok(Secret(text.trim().to_owned()))
}

/// OAUTHBEARER (RFC 7628): the broker takes the token, or says in JSON why not and waits for a last word.
async fn by_token(steps: &mut Steps<'_>, token: &Secret) -> Result<Option<Duration>, WireError> {
    let first = format!("n,,\x01auth=Bearer {}\x01\x01", token.0).into_bytes();
    let answer = steps.step(first).await?;
    if answer.challenge.is_empty() {
        return Ok(answer.lifetime);
    }
    let why = words(&String::from_utf8_lossy(&answer.challenge));
    match steps.step(vec![1]).await {
        // Apache Kafka repeats what it said.
        Err(error) if error.kind == WireErrorKind::Denied && error.reason.contains(&why) => Err(error),
        Err(error) if error.kind == WireErrorKind::Denied => {
            Err(WireError { reason: format!("{}: {why}", error.reason), ..error })
        }
        _ => Err(steps.refused(&why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_is_three_fields() {
        assert_eq!(plain("app", &Secret("pässword".into())).unwrap(), "\0app\0pässword".as_bytes());
        plain("a\0b", &Secret("c".into())).unwrap_err();
        plain("a", &Secret("b\0c".into())).unwrap_err();
    }

    #[test]
    fn a_token_is_read_at_each_authentication() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let source = TokenSource::File(path.clone());
        assert!(token(&source).unwrap_err().contains("token"));
        for fresh in ["first", "second"] {
            std::fs::write(&path, format!("  {fresh}\n")).unwrap();
            assert_eq!(token(&source).unwrap().0, fresh);
        }
        assert_eq!(token(&TokenSource::Value(Secret("a.b-c\n".into()))).unwrap().0, "a.b-c");
        for bad in ["", " \n", "two tokens", "a\x01b"] {
            let error = token(&TokenSource::Value(Secret(bad.into()))).unwrap_err();
            assert!(!error.contains("two"), "{error}");
        }
    }
}
