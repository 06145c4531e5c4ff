//! What a dead letter says, and which of them somebody asks for. Pure.
//!
//! A dead letter is an event as it came, with headers behind its own that tell what happened. One that was replayed
//! and failed again has a header of its own in front of those: how often it was replayed.

use jiff::Timestamp;

/// The pipeline's name. The first of the headers that a dead letter has more than its event.
pub const PIPELINE: &str = "fluxmill-pipeline";
/// SHA-256 of the function's component, lower-case hex; empty for a pipeline that copies.
pub const DIGEST: &str = "fluxmill-function-digest";
/// The topic that the event came from.
pub const TOPIC: &str = "fluxmill-source-topic";
/// Its partition.
pub const PARTITION: &str = "fluxmill-source-partition";
/// Its offset.
pub const OFFSET: &str = "fluxmill-source-offset";
/// Its timestamp, milliseconds since the Unix epoch.
pub const TIMESTAMP: &str = "fluxmill-source-timestamp";
/// How often the function was called for its sake.
pub const ATTEMPTS: &str = "fluxmill-attempts";
/// What kind of failure.
pub const KIND: &str = "fluxmill-error-kind";
/// The details, in words.
pub const REASON: &str = "fluxmill-reason";
/// How often the event was replayed. A header of the event, not of the letter: it stays while the event lives.
pub const REPLAYS: &str = "fluxmill-replays";

/// A header: its name, and its value or null.
pub type Header<'a> = (&'a [u8], Option<&'a [u8]>);

/// What a dead letter says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Letter {
    /// So many of its headers, from the first, are the event's own.
    pub own: usize,
    /// The pipeline that gave the event up.
    pub pipeline: String,
    /// The function's digest; empty where there was none.
    pub digest: String,
    /// Where the event came from; empty when its partition was given away meanwhile.
    pub topic: String,
    /// As it was written, and empty with the topic.
    pub partition: String,
    /// As it was written.
    pub offset: String,
    /// As it was written.
    pub timestamp: String,
    /// As it was written.
    pub attempts: String,
    /// A word of docs/delivery.md.
    pub kind: String,
    /// In words.
    pub reason: String,
    /// How often the event was replayed before.
    pub replays: u32,
}

impl Letter {
    /// What these headers say; none when they are not a dead letter's. An event that was given up by several pipelines
    /// in turn has several sets of headers, of which the last counts.
    pub fn of<'a>(headers: impl Iterator<Item = Header<'a>>) -> Option<Self> {
        let text = |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
        let mut letter: Option<Self> = None;
        let mut replays = 0;
        for (at, (name, value)) in headers.enumerate() {
            let Ok(name) = std::str::from_utf8(name) else { continue };
            match (name, &mut letter) {
                (REPLAYS, _) => replays = text(value).parse().unwrap_or(0),
                (PIPELINE, _) => letter = Some(Self { own: at, pipeline: text(value), ..Self::default() }),
                (DIGEST, Some(letter)) => letter.digest = text(value),
                (TOPIC, Some(letter)) => letter.topic = text(value),
                (PARTITION, Some(letter)) => letter.partition = text(value),
                (OFFSET, Some(letter)) => letter.offset = text(value),
                (TIMESTAMP, Some(letter)) => letter.timestamp = text(value),
                (ATTEMPTS, Some(letter)) => letter.attempts = text(value),
                (KIND, Some(letter)) => letter.kind = text(value),
                (REASON, Some(letter)) => letter.reason = text(value),
                _ => {}
            }
        }
        letter.map(|letter| Self { replays, ..letter })
    }

    /// The headers of the event, with the count of this replay instead of that of the one before.
    pub fn restored<'a>(
        &self,
        headers: impl Iterator<Item = Header<'a>> + Clone,
        count: &'a str,
    ) -> impl Iterator<Item = Header<'a>> + Clone {
        let own = headers.take(self.own).filter(|(name, _)| *name != REPLAYS.as_bytes());
        own.chain(std::iter::once((REPLAYS.as_bytes(), Some(count.as_bytes()))))
    }
}

/// Which dead letters are asked for. Everything that is given must be so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The pipeline that gave the event up.
    pub pipeline: Option<String>,
    /// The kind of failure.
    pub kind: Option<String>,
    /// A part of the reason, in upper or lower case.
    pub reason: Option<String>,
    /// The event's key.
    pub key: Option<String>,
    /// The first of the times, of the event itself.
    pub since: Option<Timestamp>,
    /// The time before which they are.
    pub until: Option<Timestamp>,
    /// The letter's own partition and offset in the dead-letter topic.
    pub at: Option<(i32, i64)>,
}

impl Filter {
    /// Whether a letter is asked for, whose event has this key and time; `at` is the letter's own partition and offset.
    pub fn selects(&self, letter: &Letter, key: Option<&[u8]>, timestamp: i64, at: (i32, i64)) -> bool {
        let equal = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|wanted| wanted == is);
        let contains = |part: &String| letter.reason.to_lowercase().contains(&part.to_lowercase());
        equal(&self.pipeline, &letter.pipeline)
            && equal(&self.kind, &letter.kind)
            && self.reason.as_ref().is_none_or(contains)
            && self.key.as_ref().is_none_or(|wanted| key == Some(wanted.as_bytes()))
            && self.since.is_none_or(|since| timestamp >= since.as_millisecond())
            && self.until.is_none_or(|until| timestamp < until.as_millisecond())
            && self.at.is_none_or(|wanted| wanted == at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers<'a>(list: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = Header<'a>> + Clone {
        list.iter().map(|(name, value)| (name.as_bytes(), Some(value.as_bytes())))
    }

    const TWICE: [(&str, &str); 9] = [
        ("tag", "first"),
        (PIPELINE, "payment"),
        (REASON, "old"),
        ("tag", "second"),
        (REPLAYS, "2"),
        (PIPELINE, "notification"),
        (KIND, "reject"),
        (REASON, "No such Customer"),
        (OFFSET, "17"),
    ];

    #[test]
    fn the_last_set_of_headers_counts() {
        let letter = Letter::of(headers(&TWICE)).unwrap();
        assert_eq!((letter.own, letter.replays), (5, 2));
        assert_eq!((letter.pipeline.as_str(), letter.reason.as_str()), ("notification", "No such Customer"));
        assert_eq!((letter.kind.as_str(), letter.offset.as_str(), letter.topic.as_str()), ("reject", "17", ""));
        assert_eq!(Letter::of(headers(&[("tag", "x"), (KIND, "reject")])), None);
    }

    #[test]
    fn an_event_comes_back_with_its_own_headers_and_a_count() {
        let letter = Letter::of(headers(&TWICE)).unwrap();
        let restored: Vec<_> = letter.restored(headers(&TWICE), "3").collect();
        let expected = [("tag", "first"), (PIPELINE, "payment"), (REASON, "old"), ("tag", "second"), (REPLAYS, "3")];
        assert_eq!(restored, headers(&expected).collect::<Vec<_>>());
    }

    #[test]
    fn everything_that_is_given_must_be_so() {
        let letter = Letter::of(headers(&TWICE)).unwrap();
        let time = |millis| Some(Timestamp::from_millisecond(millis).unwrap());
        let selects = |filter: Filter| filter.selects(&letter, Some(b"c-1"), 1_000, (3, 40));
        let text = |text: &str| Some(text.to_owned());
        assert!(selects(Filter::default()));
        assert!(selects(Filter {
            pipeline: text("notification"),
            kind: text("reject"),
            reason: text("such customer"),
            key: text("c-1"),
            since: time(1_000),
            until: time(1_001),
            at: Some((3, 40)),
        }));
        for filter in [
            Filter { pipeline: text("payment"), ..Filter::default() },
            Filter { kind: text("rej"), ..Filter::default() },
            Filter { reason: text("other"), ..Filter::default() },
            Filter { key: text("c"), ..Filter::default() },
            Filter { since: time(1_001), ..Filter::default() },
            Filter { until: time(1_000), ..Filter::default() },
            Filter { at: Some((3, 41)), ..Filter::default() },
        ] {
            assert!(!selects(filter.clone()), "{filter:?}");
        }
    }
}
