//! What a failed event becomes: its original key, value, headers and timestamp, plus headers that say what happened.

use crate::dead_letter::{
    ATTEMPTS, DIGEST, Header, KIND, Letter, OFFSET, PARTITION, PIPELINE, REASON, TIMESTAMP, TOPIC,
};
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
    /// Its input are dead letters: one that fails again tells where its event came from at first.
    pub replays: bool,
}

/// The dead letters of these rows, in the order given.
pub fn letters(sender: &Sender, batch: &EventBatch, token: &Token, failed: &[FailedRow]) -> EventBatch {
    let mut builder = BatchBuilder::with_capacity(failed.len());
    for failure in failed {
        let row = failure.row as usize;
        let (event, origin) = (batch.row(row), batch.origin(row));
        let before = if sender.replays { Letter::of(event.headers.clone()) } else { None };
        let replays = before.as_ref().map_or_else(String::new, |before| (before.replays + 1).to_string());
        let own: Vec<Header<'_>> = match &before {
            Some(before) => before.restored(event.headers, &replays).collect(),
            None => event.headers.collect(),
        };
        let [topic, partition, offset, timestamp] = match before {
            Some(before) => [before.topic, before.partition, before.offset, before.timestamp],
            None => {
                // A partition that was revoked meanwhile has no name any more; its events are delivered again elsewhere.
                let (topic, partition) = match token.partition(origin.slot) {
                    Some(source) => (source.topic.to_string(), source.partition.to_string()),
                    None => Default::default(),
                };
                [topic, partition, origin.offset.to_string(), event.timestamp.to_string()]
            }
        };
        let attempts = failure.attempts.to_string();
        let said: [(&str, &str); 9] = [
            (PIPELINE, &sender.pipeline),
            (DIGEST, &sender.digest),
            (TOPIC, &topic),
            (PARTITION, &partition),
            (OFFSET, &offset),
            (TIMESTAMP, &timestamp),
            (ATTEMPTS, &attempts),
            (KIND, failure.by.as_str()),
            (REASON, capped(&failure.reason)),
        ];
        let said = said.iter().map(|(name, value)| (name.as_bytes(), Some(value.as_bytes())));
        builder.append(origin, event.key, event.value, event.timestamp, own.into_iter().chain(said));
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
        let sender = Sender { pipeline: "payment".into(), digest: "ab12".into(), replays: false };
        let reason = "é".repeat(REASON_BYTES_MAX);
        let failed = FailedRow { row: 0, by: FailedBy::Reject, reason, attempts: 2 };
        let token = Token::new(tracker, Vec::new(), None);
        let first = letters(&sender, &batch, &token, &[failed]);
        let letter = first.row(0);
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

        // Replayed, and failed again: it is still the event from where it came at first.
        let failed = FailedRow { row: 0, by: FailedBy::Attempts, reason: "still".into(), attempts: 3 };
        let again = Sender { replays: true, ..sender };
        let second = letters(&again, &first, &token, &[failed]);
        let told = Letter::of(second.row(0).headers).unwrap();
        assert_eq!((told.own, told.replays), (3, 1), "its own two headers, and the count");
        assert_eq!((told.topic.as_str(), told.partition.as_str(), told.offset.as_str()), ("orders", "3", "41"));
        assert_eq!((told.kind.as_str(), told.reason.as_str()), ("attempts", "still"));
        assert_eq!(second.row(0).headers.take(2).collect::<Vec<_>>(), own);
    }
}
