//! What a failed event becomes: its original key, value, headers and timestamp, plus headers that say what happened.

use crate::delivery::Token;
use crate::event::{BatchBuilder, EventBatch};
use crate::pipeline::settle::FailedRow;

/// The longest reason that a dead letter carries, in bytes.
const REASON_BYTES_MAX: usize = 1024;

/// What every dead letter of one pipeline says about it.
#[derive(Clone, Debug)]
pub struct Sender {
    /// The pipeline's name.
    pub pipeline: String,
    /// SHA-256 of the function's component, lower-case hex; empty for a pipeline that copies.
    pub digest: String,
}

/// The dead letters of these rows, in the order given.
pub fn letters(sender: &Sender, batch: &EventBatch, token: &Token, failed: &[FailedRow]) -> EventBatch {
    let mut builder = BatchBuilder::with_capacity(failed.len());
    for failure in failed {
        let row = failure.row as usize;
        let (event, origin) = (batch.row(row), batch.origin(row));
        // A partition that was revoked meanwhile has no name any more; its events are delivered again elsewhere.
        let source = token.partition(origin.slot);
        let (topic, partition) = match &source {
            Some(source) => (&*source.topic, source.partition.to_string()),
            None => ("", String::new()),
        };
        let (offset, timestamp) = (origin.offset.to_string(), event.timestamp.to_string());
        let attempts = failure.attempts.to_string();
        let said: [(&str, &str); 9] = [
            ("fluxmill-pipeline", &sender.pipeline),
            ("fluxmill-function-digest", &sender.digest),
            ("fluxmill-source-topic", topic),
            ("fluxmill-source-partition", &partition),
            ("fluxmill-source-offset", &offset),
            ("fluxmill-source-timestamp", &timestamp),
            ("fluxmill-attempts", &attempts),
            ("fluxmill-error-kind", failure.by.as_str()),
            ("fluxmill-reason", capped(&failure.reason)),
        ];
        let said = said.iter().map(|(name, value)| (name.as_bytes(), Some(value.as_bytes())));
        builder.append(origin, event.key, event.value, event.timestamp, event.headers.chain(said));
    }
    builder.finish()
}

fn capped(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::delivery::{TopicPartition, Tracker};
    use crate::event::Origin;
    use crate::pipeline::settle::FailedBy;

    #[test]
    fn a_letter_keeps_the_event_and_says_what_happened() {
        let tracker = Arc::new(Tracker::default());
        let slot = tracker.assign(TopicPartition { topic: "orders".into(), partition: 3 });
        let mut builder = BatchBuilder::default();
        let own: [(&[u8], Option<&[u8]>); 2] = [(b"a", Some(b"1")), (b"a", None)];
        builder.append(Origin { slot, offset: 41 }, Some(b"k"), None, 7, own.into_iter());
        let batch = builder.finish();
        let sender = Sender { pipeline: "payment".into(), digest: "ab12".into() };
        let reason = "é".repeat(REASON_BYTES_MAX);
        let failed = FailedRow { row: 0, by: FailedBy::Reject, reason, attempts: 2 };
        let token = Token::new(tracker, Vec::new(), None);
        let letters = letters(&sender, &batch, &token, &[failed]);
        let letter = letters.row(0);
        assert_eq!((letter.key, letter.value, letter.timestamp), (Some(&b"k"[..]), None, 7));
        let headers: Vec<_> = letter.headers.collect();
        assert_eq!(headers[..2], own);
        let header = |name: &str| {
            let found = headers.iter().find(|(n, _)| *n == name.as_bytes()).unwrap();
            std::str::from_utf8(found.1.unwrap()).unwrap()
        };
        assert_eq!(header("fluxmill-source-topic"), "orders");
        assert_eq!(header("fluxmill-source-partition"), "3");
        assert_eq!(header("fluxmill-source-offset"), "41");
        assert_eq!(header("fluxmill-attempts"), "2");
        assert_eq!(header("fluxmill-error-kind"), "reject");
        assert_eq!(header("fluxmill-reason").len(), REASON_BYTES_MAX);
    }
}
