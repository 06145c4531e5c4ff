//! Bearer tokens for librdkafka's clients (SASL OAUTHBEARER, RFC 7628, KIP-255).
//!
//! librdkafka asks for a token when a client is made, and again when four fifths of the token's life have passed. It asks
//! by an event on the client's queue. Consumers serve that queue while they are polled, the producer's thread serves its
//! own, and an admin client serves none. So each client is given its first token right away, which also spares the first
//! connection the wait for a poll.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rdkafka::client::OAuthToken;
use rdkafka::config::ClientConfig;

use crate::spec::{Secret, TokenSource};

/// Bytes of a token at most.
const TOKEN_MAX: u64 = 64 * 1024;
/// Who a token is for when it does not say so.
const PRINCIPAL: &str = "fluxmill";
/// How long a token lives when it does not say so.
const LIFE: Duration = Duration::from_secs(3600);
/// How old what was read from a file may be. Nobody tells when a file changes, and a token may be withdrawn before it
/// expires.
const FILE_AGE_MAX: Duration = Duration::from_secs(300);
/// How long to go on with an old token before the source is asked again.
const RETRY: Duration = Duration::from_secs(60);

/// The key of a client's settings that holds a file's path. librdkafka leaves its meaning to the application.
const FILE_KEY: &str = "sasl.oauthbearer.config";
/// The key that holds a token itself. OAUTHBEARER has no password; the libraries show this key's value nowhere.
const VALUE_KEY: &str = "sasl.password";

/// Notes in a client's settings where its tokens come from.
pub(super) fn note(source: &TokenSource, config: &mut ClientConfig) {
    match source {
        TokenSource::Value(token) => config.set(VALUE_KEY, &token.0),
        TokenSource::File(path) => config.set(FILE_KEY, path.to_string_lossy()),
    };
}

/// A token, whose it is, and how long librdkafka may use it before it asks again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    value: Secret,
    principal: String,
    until_ms: i64,
}

impl From<Token> for OAuthToken {
    fn from(token: Token) -> Self {
        OAuthToken { token: token.value.0, principal_name: token.principal, lifetime_ms: token.until_ms }
    }
}

/// Where one client's tokens come from.
#[derive(Debug)]
pub(super) struct Tokens {
    source: Option<TokenSource>,
    last: Mutex<Option<Token>>,
}

impl Tokens {
    /// The source that was noted in the settings, if any.
    pub(super) fn of(config: &ClientConfig) -> Self {
        let source = match (config.get("sasl.mechanism"), config.get(FILE_KEY), config.get(VALUE_KEY)) {
            (Some("OAUTHBEARER"), Some(path), _) => Some(TokenSource::File(path.into())),
            (Some("OAUTHBEARER"), None, Some(token)) => Some(TokenSource::Value(Secret(token.to_owned()))),
            _ => None,
        };
        Self { source, last: Mutex::default() }
    }

    /// Whether the client authenticates by tokens.
    pub(super) fn are_used(&self) -> bool {
        self.source.is_some()
    }

    /// The token to use now.
    ///
    /// When there is none that can be used, the last one is given again, with a warning: connections that are open
    /// need no token, and the broker refuses one that is no good.
    ///
    /// # Errors
    /// When there never was one.
    pub(super) fn next(&self) -> Result<Token, String> {
        let now_ms = now_ms();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match (self.read(now_ms), last.as_mut()) {
            (Ok(token), _) => {
                *last = Some(token.clone());
                Ok(token)
            }
            (Err(reason), Some(token)) => {
                tracing::warn!(target: "fluxmill::kafka", "{reason}; the token before is used");
                token.until_ms = later(now_ms, RETRY);
                Ok(token.clone())
            }
            (Err(reason), None) => Err(reason),
        }
    }

    /// Whether this token was given last.
    #[cfg(test)]
    pub(super) fn last_is(&self, token: &str) -> bool {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().is_some_and(|last| last.value.0 == token)
    }

    fn read(&self, now_ms: i64) -> Result<Token, String> {
        match &self.source {
            None => Err("the client has no source of tokens".to_owned()),
            Some(TokenSource::Value(token)) => token_of(&token.0, "the token", now_ms, LIFE),
            Some(TokenSource::File(path)) => {
                let text = text_of(path)?;
                let token = token_of(text.trim(), &format!("the token in {}", path.display()), now_ms, FILE_AGE_MAX)?;
                Ok(Token { until_ms: token.until_ms.min(later(now_ms, FILE_AGE_MAX)), ..token })
            }
        }
    }
}

/// What a token's file holds.
///
/// # Errors
/// When it cannot be read, or is too large for a token.
pub(super) fn text_of(path: &Path) -> Result<String, String> {
    use std::io::Read as _;
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(TOKEN_MAX + 1).read_to_string(&mut text));
    match read {
        Ok(_) if text.len() as u64 > TOKEN_MAX => Err(format!("{} is too large for a token", path.display())),
        Ok(_) => Ok(text),
        Err(error) => Err(format!("the token in {} cannot be read: {error}", path.display())),
    }
}

/// Looks whether a token, which errors name as `what`, has only characters that a token has. RFC 6750 allows fewer; what
/// is refused here would end a message early, and librdkafka would show it in its error.
///
/// # Errors
/// When it has others, or none.
pub(super) fn check(text: &str, what: &str) -> Result<(), String> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("{what} is empty or has characters that no token has"));
    }
    Ok(())
}

/// A token with what its claims say, when it is a JSON Web Token (RFC 7519). `what` names it in errors; the token itself
/// is in none.
fn token_of(text: &str, what: &str, now_ms: i64, life: Duration) -> Result<Token, String> {
    check(text, what)?;
    let claims = claims(text);
    let claim = |name: &str| claims.as_ref().and_then(|claims| claims.get(name));
    let principal = claim("sub").and_then(|subject| subject.as_str());
    let principal = principal.filter(|subject| !subject.is_empty() && !subject.contains(char::is_control));
    let until_ms = match claim("exp").and_then(serde_json::Value::as_f64) {
        None => later(now_ms, life),
        // Seconds; the conversion saturates.
        Some(seconds) => (seconds * 1000.0) as i64,
    };
    if until_ms <= now_ms {
        return Err(format!("{what} has expired"));
    }
    // Asked once a day is seldom enough; librdkafka counts in microseconds, and claims can be absurd.
    let until_ms = until_ms.min(later(now_ms, Duration::from_secs(24 * 3600)));
    Ok(Token { value: Secret(text.to_owned()), principal: principal.unwrap_or(PRINCIPAL).to_owned(), until_ms })
}

/// The claims of a JSON Web Token: the second of its three parts.
fn claims(token: &str) -> Option<serde_json::Value> {
    let mut parts = token.split('.');
    let (_, body, _) = (parts.next()?, parts.next()?, parts.next()?);
    let body = BASE64_URL_SAFE_NO_PAD.decode(body.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&body).ok()
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn later(now_ms: i64, wait: Duration) -> i64 {
    now_ms.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_700_000_000_000;

    fn jwt(claims: &str) -> String {
        format!("eyJhbGciOiJub25lIn0.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims))
    }

    fn read(text: &str) -> Result<(String, i64), String> {
        token_of(text, "the token", NOW, LIFE).map(|token| (token.principal, token.until_ms - NOW))
    }

    #[test]
    fn a_token_says_whose_it_is_and_how_long_it_lives() {
        let hour = 3_600_000;
        assert_eq!(read(&jwt(r#"{"sub":"orders","exp":1700000060}"#)), Ok(("orders".into(), 60_000)));
        assert_eq!(read(&jwt(r#"{"sub":"orders","exp":1700000000.5}"#)), Ok(("orders".into(), 500)));
        assert_eq!(read(&jwt(r#"{"sub":"orders"}"#)), Ok(("orders".into(), hour)));
        assert_eq!(read(&jwt(r#"{"exp":1700000060}"#)), Ok(("fluxmill".into(), 60_000)));
        assert_eq!(read(&jwt(r#"{"sub":7,"exp":"soon"}"#)), Ok(("fluxmill".into(), hour)));
        assert_eq!(read(&jwt(r#"{"sub":"a\u0000b","exp":1e300}"#)), Ok(("fluxmill".into(), 24 * hour)));
        for opaque in ["opaque", "a.b", "a.b.c", "..", &jwt("[]"), &jwt("no json")] {
            assert_eq!(read(opaque), Ok(("fluxmill".into(), hour)), "{opaque}");
        }
    }

    #[test]
    fn tokens_that_cannot_be_used() {
        assert_eq!(read(&jwt(r#"{"exp":1700000000}"#)), Err("the token has expired".into()));
        assert!(read(&jwt(r#"{"exp":-1e300}"#)).is_err());
        for text in ["", "hunter2 hunter2", "hunter2\u{1}", "hünter2"] {
            let reason = read(text).expect_err(text);
            assert!(reason.contains("no token has") && !reason.contains("nter2"), "{reason}");
        }
    }

    #[test]
    fn a_file_is_read_anew_and_missed_only_at_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let mut config = ClientConfig::new();
        config.set("sasl.mechanism", "OAUTHBEARER");
        note(&TokenSource::File(path.clone()), &mut config);
        let tokens = Tokens::of(&config);
        assert!(tokens.are_used());
        assert!(tokens.next().unwrap_err().contains(&path.display().to_string()));
        std::fs::write(&path, "first\n").unwrap();
        let first = tokens.next().unwrap();
        assert_eq!(first.value.0, "first");
        assert!(first.until_ms <= later(now_ms(), FILE_AGE_MAX));
        std::fs::write(&path, jwt(r#"{"exp":1}"#)).unwrap();
        assert_eq!(tokens.next().unwrap().value.0, "first", "an expired one is not taken");
        std::fs::write(&path, "second").unwrap();
        assert_eq!(tokens.next().unwrap().value.0, "second");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(tokens.next().unwrap().value.0, "second");
        std::fs::write(&path, vec![b'a'; 64 * 1024 + 1]).unwrap();
        assert_eq!(tokens.next().unwrap().value.0, "second");
        assert!(!format!("{tokens:?}").contains("second"));
    }

    #[test]
    fn no_token_without_the_mechanism() {
        let mut config = ClientConfig::new();
        config.set("sasl.mechanism", "PLAIN").set("sasl.password", "hunter2");
        assert!(!Tokens::of(&config).are_used());
        assert!(Tokens::of(&config).next().is_err());
    }

    proptest! {
        #[test]
        fn any_claims_are_read(claims in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = read(&format!("a.{}.b", BASE64_URL_SAFE_NO_PAD.encode(claims)));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
            let _ = read(&text);
        }
    }
}
