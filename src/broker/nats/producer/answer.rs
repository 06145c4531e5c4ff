//! What the server's answers mean: pure.

use std::borrow::Cow;

use async_nats::{Message, StatusCode};
use serde::Deserialize;

use crate::broker::BrokerErrorKind;

/// The server's error codes that are about one message only: it is too large for the stream.
const TOO_LARGE: u64 = 10_054;
/// "Stream store failed": the reason is in its words.
const STORE_FAILED: u64 = 10_077;
/// The stream's last message has another id than was expected.
const WRONG_LAST_ID: u64 = 10_070;
/// The stream takes no atomic batches.
const NO_BATCHES: u64 = 10_174;
/// A message of the batch did not arrive, or was not taken.
const INCOMPLETE: u64 = 10_176;
/// More messages than the server takes in one batch.
const BATCH_TOO_LARGE: u64 = 10_199;
/// A message of the batch is known already.
const CONTAINS_KNOWN: u64 = 10_201;

/// How an answer begins that says that a message is stored.
const STREAM: &[u8] = b"{\"stream\":\"";

/// What a stream answers to a message.
#[derive(Debug, Deserialize)]
struct Answer {
    error: Option<Refusal>,
    #[serde(default)]
    duplicate: bool,
    #[serde(default)]
    stream: String,
    /// Messages of the batch, where it is the answer to one.
    count: Option<usize>,
}

/// Why it does not take it.
#[derive(Debug, Deserialize)]
struct Refusal {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// What an answer to a message means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Stored,
    /// This message never will be.
    Refused(BrokerErrorKind, String),
    /// Not now.
    Later(String),
    /// No stream takes the subject, as far as the server knows.
    Missing,
}

/// What the answer to the last message of an atomic batch means. Unless it is `Stored`, nothing of it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Committed {
    Stored,
    /// Some of its messages are the reason, and the answer does not say which. `may_pass`: as it stands it may be taken
    /// later.
    Unclear {
        reason: String,
        may_pass: bool,
    },
    /// No batch will be, by the settings of the stream or the server.
    Never(String),
    /// None that is so large.
    TooMany(String),
    /// Not now.
    Later(String),
    /// No stream takes the subject, as far as the server knows.
    Missing,
}

/// What a stream says of a message that it was asked about, and has not stored for that.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// It has it.
    Known,
    /// It would take it.
    New,
    /// It never will.
    Refused(BrokerErrorKind, String),
    /// It does not say now.
    Later(String),
    /// No stream takes the subject, as far as the server knows.
    Missing,
}

/// What an answer to a message means.
pub(super) fn verdict(answer: &Message) -> Verdict {
    if answer.status == Some(StatusCode::NO_RESPONDERS) {
        return Verdict::Missing;
    }
    if is_stored(&answer.payload) {
        return Verdict::Stored;
    }
    match serde_json::from_slice(&answer.payload) {
        Ok(Answer { error: None, .. }) => Verdict::Stored,
        Ok(Answer { error: Some(Refusal { err_code: TOO_LARGE, description, .. }), .. }) => {
            Verdict::Refused(BrokerErrorKind::TooLarge, description)
        }
        // What is wrong with this message, not with the server or the room that it has.
        Ok(Answer { error: Some(Refusal { code: 400, err_code, description }), .. })
            if !is_full(err_code, &description) =>
        {
            Verdict::Refused(BrokerErrorKind::Refused, format!("{description} ({err_code})"))
        }
        Ok(Answer { error: Some(refusal), .. }) => Verdict::Later(refusal.description),
        Err(_) => Verdict::Later("its answer cannot be read".to_owned()),
    }
}

/// Whether this is nearly every answer, which begins with the stream where others begin with the error.
fn is_stored(payload: &[u8]) -> bool {
    const ERROR: &[u8] = b"\"error\"";
    payload.starts_with(STREAM) && !payload.windows(ERROR.len()).any(|window| window == ERROR)
}

/// Which stream says so, and in which domain: hub and leaf may have streams of one name. Nothing for an answer that
/// does not begin with it.
pub(super) fn stream(answer: &Message) -> Cow<'_, [u8]> {
    const DOMAIN: &[u8] = b"\"domain\":\"";
    let text = |from: &'_ [u8]| from.iter().position(|byte| *byte == b'"').unwrap_or(from.len());
    let rest = answer.payload.strip_prefix(STREAM).unwrap_or_default();
    let name = &rest[..text(rest)];
    match rest.windows(DOMAIN.len()).position(|window| window == DOMAIN) {
        None => Cow::Borrowed(name),
        Some(at) => {
            let domain = &rest[at + DOMAIN.len()..];
            Cow::Owned([name, b"@", &domain[..text(domain)]].concat())
        }
    }
}

/// What the answer to the last message of an atomic batch of so many messages means.
pub(super) fn committed(answer: &Message, messages: usize) -> Committed {
    if answer.status == Some(StatusCode::NO_RESPONDERS) {
        return Committed::Missing;
    }
    let Ok(Answer { error, stream, count, .. }) = serde_json::from_slice(&answer.payload) else {
        return Committed::Later("its answer cannot be read".to_owned());
    };
    let Some(Refusal { code, err_code, description }) = error else {
        // A server that does not know batches stores each message as it comes.
        let never = || Committed::Never(format!("stream {stream} stored messages of an atomic batch one by one"));
        return if count == Some(messages) { Committed::Stored } else { never() };
    };
    match err_code {
        NO_BATCHES => Committed::Never(format!(
            "stream {stream} takes no atomic batches: set its `allow_atomic`, or write `atomic: false`"
        )),
        BATCH_TOO_LARGE => Committed::TooMany(format!("{description} messages: write a smaller `batch.max_events`")),
        CONTAINS_KNOWN | INCOMPLETE | TOO_LARGE => Committed::Unclear { reason: description, may_pass: true },
        _ if code == 400 && !is_full(err_code, &description) => {
            Committed::Unclear { reason: format!("{description} ({err_code})"), may_pass: false }
        }
        _ => Committed::Later(description),
    }
}

/// What is said of a message that was sent with an id that the stream's last message cannot have, and by which stream.
pub(super) fn asked(answer: &Message) -> (Asked, String) {
    let read: Option<Answer> = serde_json::from_slice(&answer.payload).ok();
    let stream = read.as_ref().map_or_else(String::new, |answer| answer.stream.clone());
    let asked = match (read, verdict(answer)) {
        // The server looks for the message's own id first.
        (Some(Answer { duplicate: true, .. }), _) => Asked::Known,
        (Some(Answer { error: Some(Refusal { err_code: WRONG_LAST_ID, .. }), .. }), _) => Asked::New,
        (_, Verdict::Refused(kind, reason)) => Asked::Refused(kind, reason),
        (_, Verdict::Later(reason)) => Asked::Later(reason),
        (_, Verdict::Missing) => Asked::Missing,
        (_, Verdict::Stored) => Asked::Known,
    };
    (asked, stream)
}

/// Whether a stream has reached a bound.
fn is_full(err_code: u64, description: &str) -> bool {
    err_code == STORE_FAILED || description.contains("maximum messages") || description.contains("maximum bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(payload: &str, status: Option<StatusCode>) -> Message {
        Message {
            subject: "_INBOX.x.7".into(),
            reply: None,
            payload: payload.to_owned().into(),
            headers: None,
            status,
            description: None,
            length: 0,
        }
    }

    fn error(code: u64, err_code: u64, description: &str) -> Message {
        let text = format!(
            r#"{{"error":{{"code":{code},"err_code":{err_code},"description":"{description}"}},"stream":"X","seq":0}}"#
        );
        answer(&text, None)
    }

    #[test]
    fn answers_are_told_apart() {
        let of = |payload| verdict(&answer(payload, None));
        assert_eq!(of(r#"{"stream":"X","seq":1}"#), Verdict::Stored);
        assert_eq!(of(r#"{"stream":"X","seq":1,"duplicate":true}"#), Verdict::Stored);
        let too_large = error(400, 10_054, "message size exceeds maximum allowed");
        assert!(matches!(verdict(&too_large), Verdict::Refused(BrokerErrorKind::TooLarge, _)));
        assert!(matches!(verdict(&error(503, 10_077, "maximum messages exceeded")), Verdict::Later(_)));
        let wrong = error(400, 10_071, "wrong last sequence: 5");
        assert!(matches!(verdict(&wrong), Verdict::Refused(BrokerErrorKind::Refused, _)));
        // In whatever order it is written.
        let turned = r#"{"stream":"X","seq":0,"error":{"code":503,"err_code":10077,"description":"no room"}}"#;
        assert!(matches!(of(turned), Verdict::Later(_)));
        assert!(matches!(of("?"), Verdict::Later(_)));
        assert_eq!(verdict(&answer("", Some(StatusCode::NO_RESPONDERS))), Verdict::Missing);
    }

    /// As nats-server 2.15.2 says it.
    #[test]
    fn answers_to_batches_are_told_apart() {
        let stored = r#"{"stream":"X","seq":3,"batch":"one","count":3}"#;
        assert_eq!(committed(&answer(stored, None), 3), Committed::Stored);
        // A server that knows no batches, or not all of this one.
        for alone in [r#"{"stream":"X","seq":3}"#, stored] {
            assert!(matches!(committed(&answer(alone, None), 2), Committed::Never(_)), "{alone}");
        }
        for (err_code, description) in [
            (10_201, "atomic publish batch contains duplicate message id"),
            (10_176, "atomic publish batch is incomplete"),
            (10_054, "message size exceeds maximum allowed"),
        ] {
            let told = committed(&error(400, err_code, description), 3);
            assert!(matches!(told, Committed::Unclear { may_pass: true, .. }), "{told:?}");
        }
        let other = committed(&error(400, 10_071, "wrong last sequence: 5"), 3);
        assert!(matches!(other, Committed::Unclear { may_pass: false, .. }), "{other:?}");
        let disabled = committed(&error(400, 10_174, "atomic publish is disabled"), 3);
        assert!(matches!(&disabled, Committed::Never(reason) if reason.contains("stream X")), "{disabled:?}");
        let large = committed(&error(400, 10_199, "atomic publish batch is too large: 1000"), 3);
        assert!(matches!(&large, Committed::TooMany(reason) if reason.contains("1000 messages")), "{large:?}");
        for (code, err_code, description) in
            [(429, 10_210, "atomic publish too many inflight"), (503, 10_077, "maximum messages exceeded")]
        {
            assert!(matches!(committed(&error(code, err_code, description), 3), Committed::Later(_)), "{err_code}");
        }
        assert_eq!(committed(&answer("", Some(StatusCode::NO_RESPONDERS)), 1), Committed::Missing);
    }

    #[test]
    fn what_a_stream_knows_is_told() {
        let known = answer(r#"{"stream":"X","seq":6,"duplicate": true}"#, None);
        assert_eq!(asked(&known), (Asked::Known, "X".to_owned()));
        assert_eq!(asked(&error(400, 10_070, "wrong last msg ID: 5")), (Asked::New, "X".to_owned()));
        let large = asked(&error(400, 10_054, "message size exceeds maximum allowed")).0;
        assert!(matches!(large, Asked::Refused(BrokerErrorKind::TooLarge, _)), "{large:?}");
        assert!(matches!(asked(&error(503, 10_008, "JetStream system temporarily unavailable")).0, Asked::Later(_)));
        assert_eq!(asked(&answer("", Some(StatusCode::NO_RESPONDERS))).0, Asked::Missing);
    }
}
