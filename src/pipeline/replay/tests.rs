//! Letters in, events out.

use std::sync::Arc;

use super::*;
use crate::dead_letter;
use crate::delivery::TopicPartition;
use crate::event::{Origin, Publication, Rows};

/// A batch of letters: the reason of each, the topic that it came from, and how often it was replayed.
fn letters(tracker: &Tracker, letters: &[(&str, &str, u32)]) -> EventBatch {
    let slot = tracker.assign(TopicPartition { topic: "dead".into(), partition: 3 });
    let mut builder = BatchBuilder::default();
    for (offset, (reason, topic, replays)) in letters.iter().enumerate() {
        let replays = replays.to_string();
        let headers = [
            ("tag", "own"),
            (dead_letter::REPLAYS, replays.as_str()),
            (dead_letter::PIPELINE, "payment"),
            (dead_letter::TOPIC, topic),
            (dead_letter::REASON, reason),
        ];
        let headers = headers.iter().map(|(name, value)| (name.as_bytes(), Some(value.as_bytes())));
        let origin = Origin { slot, offset: offset as i64 };
        builder.append(origin, Some(b"key"), Some(reason.as_bytes()), 7, headers);
    }
    builder.finish()
}

fn replay(back: bool) -> Replay {
    let topics = [("orders".to_owned(), 0), ("returns".to_owned(), 1)];
    Replay {
        filter: Filter { reason: Some("mended".into()), ..Filter::default() },
        most: 3,
        back: back.then(|| topics.into_iter().collect()),
        counts: ReplayCounts::default(),
    }
}

/// What is published: value, output and headers.
fn published(batch: &EventBatch, outcome: Outcome) -> Vec<(String, usize, Vec<String>)> {
    outcome.check(batch.len(), 2).unwrap();
    let outcome = Arc::new(outcome);
    let publication = Publication { input: batch.clone(), outcome: outcome.clone(), rows: Rows::All };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let shown = |at: usize| {
        let event = publication.event(at);
        let headers = event.headers.map(|(name, value)| format!("{}={}", text(name), text(value.unwrap()))).collect();
        (text(event.value.unwrap()), outcome.output(at), headers)
    };
    (0..outcome.len()).map(shown).collect()
}

fn own(replays: u32) -> Vec<String> {
    vec!["tag=own".to_owned(), format!("{}={replays}", dead_letter::REPLAYS)]
}

#[tokio::test]
async fn letters_that_are_asked_for_go_back_to_their_topics() {
    let (tracker, replay) = (Tracker::default(), replay(true));
    let batch = letters(
        &tracker,
        &[
            ("mended 1", "orders", 0),
            ("other", "orders", 0),
            ("mended 2", "returns", 2),
            ("mended 3", "elsewhere", 0),
            ("mended 4", "orders", 3),
        ],
    );
    let pass = |events: EventBatch| async move { Ok(Outcome::pass_through(events.len())) };
    let outcome = replay.call(&batch, &tracker, pass).await.unwrap();
    assert_eq!(published(&batch, outcome), [("mended 1".into(), 0, own(1)), ("mended 2".into(), 1, own(3))]);
    // Looked at once more, since something in the batch was to be run again, they are no more than they were.
    replay.call(&batch, &tracker, |events| async move { Ok(Outcome::pass_through(events.len())) }).await.unwrap();
    let ReplayCounts { others, foreign, worn_out, homeless, .. } = &replay.counts;
    assert_eq!([others, foreign, worn_out, homeless].map(|count| count.load(Relaxed)), [1, 0, 1, 1]);
}

#[tokio::test]
async fn what_a_function_says_of_its_rows_is_meant_for_the_letters() {
    let (tracker, replay) = (Tracker::default(), replay(false));
    let batch = letters(&tracker, &[("other", "x", 0), ("mended 1", "x", 0), ("mended 2", "x", 0)]);
    let outcome = replay
        .call(&batch, &tracker, |events| async move {
            assert_eq!(events.row(0).headers.count(), 2, "it sees the event, not the letter");
            let failure = Failure { row: 1, kind: FailureKind::Reject, reason: "still".into() };
            Ok(Outcome { causes: vec![0, 0], failures: vec![failure], ..Outcome::pass_through(0) })
        })
        .await
        .unwrap();
    assert_eq!((outcome.causes.as_slice(), outcome.failures[0].row), (&[1, 1][..], 2));
    assert_eq!(published(&batch, outcome), [("mended 1".into(), 0, own(1)), ("mended 1".into(), 0, own(1))]);

    let asks = |_| async { Err(CallError::Retry("later".into())) };
    let outcome = replay.call(&batch, &tracker, asks).await.unwrap();
    assert_eq!(outcome.failures.iter().map(|failure| failure.row).collect::<Vec<_>>(), [1, 2]);
    assert!(outcome.is_empty());
}
