//! Events for the tests: orders as the example has them, numbered events, and events with odd bytes.

use std::collections::HashMap;

use super::checker::Seen;
use super::client::{RawHeader, Received, Record};
use super::nats::Stored;

/// 2024-01-01 00:00:00 UTC in milliseconds: a timestamp that no clock would give.
const DAY: i64 = 1_704_067_200_000;

/// What the example's first function makes of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Paid, then notified.
    Small,
    /// Over the limit: to be reviewed.
    Large,
    /// No JSON that it can read.
    Broken,
}

/// What becomes of order `number`.
pub(crate) fn kind(number: u64) -> Kind {
    match (number % 101, number % 97) {
        (7, _) => Kind::Broken,
        (_, 13) => Kind::Large,
        _ => Kind::Small,
    }
}

/// The customer of order `number`; the key of its event.
pub(crate) fn customer(number: u64) -> String {
    format!("c-{:04}", number.wrapping_mul(2_654_435_761) % 5_000)
}

/// Order `number` as the example's generator writes them, with a header twice.
pub(crate) fn order(number: u64) -> Record {
    let customer = customer(number);
    let amount = match kind(number) {
        Kind::Large => 100_000_000 + number,
        Kind::Small | Kind::Broken => 100 + number % 900,
    };
    let mut value = format!(
        "{{\"order_id\":\"o-{number:07}\",\"customer_id\":\"{customer}\",\"amount_cents\":{amount},\"currency\":\"EUR\",\
         \"items\":[{{\"sku\":\"sku-{}\",\"quantity\":{}}}]}}",
        number % 500,
        1 + number % 4
    );
    if kind(number) == Kind::Broken {
        value.truncate(value.len() - 2);
    }
    let tag = |value: &str| ("tag".to_owned(), Some(value.as_bytes().to_vec()));
    Record {
        key: Some(customer.into_bytes()),
        value: Some(value.into_bytes()),
        headers: vec![tag("first"), tag(&number.to_string())],
        timestamp: Some(DAY + i64::try_from(number).unwrap_or(0)),
        partition: None,
    }
}

/// The number of the order that an event of the example is about: each names it as `order_id`, the broken ones too.
pub(crate) fn order_number(event: &Received) -> Option<u64> {
    let value = std::str::from_utf8(event.value.as_deref()?).ok()?;
    let (_, rest) = value.split_once("\"order_id\"")?;
    let (_, rest) = rest.split_once("o-")?;
    rest.get(..7)?.parse().ok()
}

/// Event `number` of a workload whose values are their numbers, on one of `keys` keys.
pub(crate) fn numbered(number: u64, keys: u64) -> Record {
    Record {
        key: Some(format!("k-{}", number % keys).into_bytes()),
        value: Some(format!("{number} {}", "x".repeat(100)).into_bytes()),
        ..Record::default()
    }
}

/// A value that a checker's report shows by its beginning only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Value(Option<Vec<u8>>);

impl Value {
    /// Whether it begins so.
    pub(crate) fn starts_with(&self, start: &[u8]) -> bool {
        self.0.as_deref().is_some_and(|value| value.starts_with(start))
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            None => f.write_str("tombstone"),
            Some(value) => write!(f, "\"{}\"", value[..value.len().min(12)].escape_ascii()),
        }
    }
}

/// What a numbered event is to the checker: its key and its value.
pub(crate) type Numbered = Seen<Option<Vec<u8>>, Value>;

/// A numbered event, and which of its like it is.
pub(crate) type Nth = Seen<Option<Vec<u8>>, (Value, usize)>;

/// What was sent.
pub(crate) fn sent(record: &Record) -> Numbered {
    Seen { key: record.key.clone(), id: Value(record.value.clone()) }
}

/// What was read, partition by partition.
pub(crate) fn received(events: &[Received]) -> Vec<Vec<Numbered>> {
    let seen = |event: &Received| Seen { key: event.key.clone(), id: Value(event.value.clone()) };
    events.chunk_by(|a, b| a.partition == b.partition).map(|events| events.iter().map(seen).collect()).collect()
}

/// What was read of a stream of NATS.
pub(crate) fn stored(messages: &[Stored]) -> Vec<Numbered> {
    let key = |message: &Stored| message.header("Fluxmill-Key").map(|key| key.as_bytes().to_vec());
    let seen = |message: &Stored| Seen { key: key(message), id: Value(Some(message.payload.clone())) };
    messages.iter().map(seen).collect()
}

/// Tells events apart that are alike, by which of them it is.
fn told_apart(lists: Vec<Vec<Numbered>>) -> Vec<Vec<Nth>> {
    let mut times: HashMap<Value, usize> = HashMap::new();
    let mut nth = |id: Value| {
        let time = times.entry(id.clone()).or_default();
        *time += 1;
        (id, *time)
    };
    lists.into_iter().map(|list| list.into_iter().map(|Seen { key, id }| Seen { key, id: nth(id) }).collect()).collect()
}

/// What went in, told apart, and what came out, told apart as far as the input goes: what came out more often is the
/// last of its like once more.
pub(crate) fn both_told_apart(input: Vec<Vec<Numbered>>, output: Vec<Vec<Numbered>>) -> (Vec<Nth>, Vec<Vec<Nth>>) {
    let (input, mut output) = (told_apart(input).concat(), told_apart(output));
    let mut most: HashMap<&Value, usize> = HashMap::new();
    for Seen { id: (value, nth), .. } in &input {
        let most = most.entry(value).or_default();
        *most = (*most).max(*nth);
    }
    for Seen { id: (value, nth), .. } in output.iter_mut().flatten() {
        *nth = most.get(value).map_or(*nth, |most| (*nth).min(*most));
    }
    (input, output)
}

/// Events with every oddity that Kafka carries and that this client can write: no two are alike.
pub(crate) fn odd() -> Vec<Record> {
    let every_byte: Vec<u8> = (0..=u8::MAX).collect();
    let key = |key: &[u8]| Record { key: Some(key.to_vec()), value: Some(b"plain".to_vec()), ..Record::default() };
    let header = |name: &str, value: Option<&[u8]>| (name.to_owned(), value.map(<[u8]>::to_vec));
    let headers = |list: Vec<(String, Option<Vec<u8>>)>| Record { headers: list, ..key(b"headers") };
    let records = vec![
        Record { key: None, value: Some(b"no key".to_vec()), ..Record::default() },
        Record { key: Some(Vec::new()), value: Some(b"empty key".to_vec()), ..Record::default() },
        Record { value: Some(every_byte.clone()), ..key(&every_byte) },
        Record { value: None, ..key(b"tombstone") },
        Record { value: None, headers: vec![header("why", Some(b"gone"))], ..key(b"tombstone with header") },
        Record { value: Some(Vec::new()), ..key(b"empty value") },
        Record { key: None, value: None, ..Record::default() },
        Record { value: Some(vec![0; 300_000]), ..key(b"large") },
        Record { value: Some(b"\xff\xfe not utf-8 \x80".to_vec()), ..key(b"\x80\x00\xff") },
        Record { timestamp: Some(1), ..key(b"at the epoch") },
        Record { timestamp: Some(253_402_300_799_999), ..key(b"in the year 9999") },
        headers(vec![
            header("a", Some(b"1")),
            header("a", Some(b"1")),
            header("a", Some(b"2")),
            header("a", Some(b"1")),
        ]),
        headers(vec![header("b", Some(b"1")), header("a", Some(b"2")), header("b", Some(b"3"))]),
        headers(vec![header("null", None), header("empty", Some(b"")), header("null", None)]),
        headers(vec![
            header("bytes", Some(&every_byte)),
            header("größe", Some("ß".as_bytes())),
            header("", Some(b"no name")),
        ]),
        headers((0..300).map(|number| header(&format!("h{number}"), Some(&[0; 20]))).collect()),
    ];
    records
        .into_iter()
        .enumerate()
        .map(|(number, record)| Record {
            timestamp: record.timestamp.or(Some(DAY + i64::try_from(number).unwrap_or(0))),
            ..record
        })
        .collect()
}

/// What a received event is when its place is left out, to compare with others.
pub(crate) type Content = (Option<Vec<u8>>, Option<Vec<u8>>, Vec<RawHeader>, Option<i64>);

/// The contents of these events, sorted.
pub(crate) fn contents(events: &[Received]) -> Vec<Content> {
    let mut contents: Vec<Content> = events
        .iter()
        .map(|event| (event.key.clone(), event.value.clone(), event.headers.clone(), event.timestamp))
        .collect();
    contents.sort();
    contents
}
