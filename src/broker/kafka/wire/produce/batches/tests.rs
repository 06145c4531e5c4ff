//! Batches of one topic: what is encoded, what is counted, who is told.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::sync::oneshot;

use super::super::queue::Id;
use super::*;
use crate::broker::kafka::wire::record_batch::{OpenBatch, peek};
use crate::broker::pending::Ended;
use crate::delivery::Slot;
use crate::event::{BatchBuilder, Origin};

/// An event: key, value, timestamp, headers.
type Event = (Option<Vec<u8>>, Option<Vec<u8>>, i64, Vec<(Vec<u8>, Option<Vec<u8>>)>);

fn settings() -> ColumnarSettings {
    ColumnarSettings::default()
}

fn batches(partitions: usize, settings: &ColumnarSettings) -> Batches {
    Batches::new("orders".into(), partitions, settings)
}

fn publication(events: &[Event]) -> Publication {
    let mut builder = BatchBuilder::default();
    for (key, value, timestamp, headers) in events {
        let headers = headers.iter().map(|(name, value)| (name.as_slice(), value.as_deref()));
        let origin = Origin { slot: Slot(0), offset: 0 };
        builder.append(origin, key.as_deref(), value.as_deref(), *timestamp, headers);
    }
    Publication::unchanged(builder.finish())
}

fn event(value: &str) -> Event {
    (None, Some(value.into()), 1, Vec::new())
}

/// Appends a publication of its own; gives the bytes by which what waits has grown.
fn append(batches: &mut Batches, events: &[Event]) -> (usize, oneshot::Receiver<Ended>) {
    let (pending, ended) = Pending::new(u32::try_from(events.len()).unwrap());
    (batches.append(&publication(events), &pending, Instant::now()), ended)
}

fn read(batch: &Bytes) -> Vec<Event> {
    let mut open = OpenBatch::open(batch.clone(), peek(batch).unwrap().unwrap(), 1 << 28).unwrap();
    let mut events = Vec::new();
    while let Some(record) = open.next().unwrap() {
        let headers = record.headers.map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec)));
        let (key, value) = (record.key.map(<[u8]>::to_vec), record.value.map(<[u8]>::to_vec));
        events.push((key, value, record.timestamp, headers.collect()));
    }
    events
}

/// The next batch of a partition as it is sent, and its name in the queue.
fn next(batches: &mut Batches, at: usize) -> Option<(Id, Bytes)> {
    let next = batches.partitions[at].queue.next(0, false)?;
    let stamped = next.payload.stamp(Producer { id: 1, epoch: 0 }, next.sequence, false);
    Some((next.id, stamped))
}

/// Everything of a partition is acknowledged. Gives the events, batch by batch, and the bytes that are free again.
fn acknowledged(batches: &mut Batches, at: usize) -> (Vec<Vec<Event>>, usize) {
    batches.seal(at);
    let (mut all, mut free) = (Vec::new(), 0);
    while let Some((id, bytes)) = next(batches, at) {
        all.push(read(&bytes));
        free += batches.partitions[at].queue.acknowledge(id).unwrap().acknowledge();
    }
    (all, free)
}

fn rows(ended: &mut oneshot::Receiver<Ended>) -> Vec<(u32, BrokerErrorKind)> {
    let report = ended.try_recv().expect("it has ended").unwrap();
    report.refused.into_iter().map(|(row, error)| (row, error.kind)).collect()
}

fn refusal() -> BrokerError {
    BrokerError { kind: BrokerErrorKind::Refused, action: "publish".into(), reason: "poison".into() }
}

#[test]
fn events_are_encoded_as_they_are() {
    let events: Vec<Event> = vec![
        (Some(b"key".to_vec()), Some(b"value".to_vec()), 1_700_000_000_000, vec![]),
        (None, Some(vec![]), -1, vec![(b"a".to_vec(), Some(b"1".to_vec())), (b"a".to_vec(), None)]),
        (Some(vec![]), None, i64::MAX, vec![(vec![], Some(vec![]))]),
        (None, None, 0, vec![(vec![255, 0], Some(vec![0, 255]))]),
    ];
    for compression in [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd]
    {
        let mut batches = batches(1, &ColumnarSettings { compression, ..settings() });
        let (grown, mut ended) = append(&mut batches, &events);
        let (all, free) = acknowledged(&mut batches, 0);
        assert_eq!(all, std::slice::from_ref(&events), "{compression:?}");
        assert_eq!(free, grown);
        assert_eq!(rows(&mut ended), []);
    }
}

#[test]
fn a_batch_is_sealed_before_it_is_too_large() {
    let mut batches = batches(1, &ColumnarSettings { batch_bytes: 1_000, ..settings() });
    let events: Vec<Event> = (0..100).map(|number| event(&format!("{number:0100}"))).collect();
    let (grown, _ended) = append(&mut batches, &events);
    let (all, free) = acknowledged(&mut batches, 0);
    assert_eq!(free, grown);
    assert!(all.iter().all(|batch| batch.len() <= 9), "{:?}", all.iter().map(Vec::len).collect::<Vec<_>>());
    assert!(all.len() <= 13);
    assert_eq!(all.concat(), events);
    // One event is the least that a batch holds.
    let large = [event("a"), event(&"x".repeat(5_000)), event("b")];
    append(&mut batches, &large).1.close();
    let sizes: Vec<usize> = acknowledged(&mut batches, 0).0.iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, 1, 1]);
}

#[test]
fn what_is_larger_than_the_client_sends_is_refused_where_it_stands() {
    let mut batches = batches(1, &ColumnarSettings { message_bytes_max: 1_000, ..settings() });
    let large = event(&"x".repeat(1_000));
    let (grown, mut ended) = append(&mut batches, &[large.clone(), event("a"), large.clone(), event("b")]);
    let (all, free) = acknowledged(&mut batches, 0);
    assert_eq!(all, [[event("a"), event("b")]]);
    assert_eq!(free, grown);
    let report = ended.try_recv().unwrap().unwrap();
    assert_eq!(report.refused.iter().map(|refused| refused.0).collect::<Vec<_>>(), [0, 2]);
    assert!(report.refused[0].1.to_string().contains("`message.max.bytes` = 1000"), "{}", report.refused[0].1);
    // Nothing is left open of a publication that was refused whole.
    let (grown, mut ended) = append(&mut batches, &[large]);
    assert_eq!((grown, rows(&mut ended)), (0, vec![(0, BrokerErrorKind::TooLarge)]));
    assert!(batches.partitions[0].open().is_none());
}

#[test]
fn keyless_events_stay_together_and_keys_where_they_belong() {
    let mut batches = batches(4, &ColumnarSettings { batch_bytes: 1_000, ..settings() });
    let keyed = |key: &str| (Some(key.as_bytes().to_vec()), Some(b"value".to_vec()), 1, Vec::new());
    let keyed: Vec<Event> = ["21", "foobar", "abc"].map(keyed).to_vec();
    append(&mut batches, &keyed).1.close();
    append(&mut batches, &keyed).1.close();
    let keyless: Vec<Event> = (0..300).map(|number| event(&format!("{number:050}"))).collect();
    append(&mut batches, &keyless).1.close();
    let mut by_key: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
    let mut used = 0;
    for at in 0..4 {
        let all = acknowledged(&mut batches, at).0;
        let of: Vec<usize> = all.iter().map(|batch| batch.iter().filter(|event| event.0.is_none()).count()).collect();
        // A batch is filled before the next partition has its turn.
        assert!(of.iter().rev().skip(1).all(|count| *count == 0 || *count > 8), "{of:?}");
        used += usize::from(of.iter().sum::<usize>() > 0);
        for event in all.concat() {
            if let Some(key) = event.0 {
                by_key.entry(key).or_default().push(at);
            }
        }
    }
    assert!(used > 1, "a sealed batch sends keyless events elsewhere");
    // murmur2, as the Java client has it.
    let at = |hash: i32| (hash & i32::MAX) as usize % 4;
    assert_eq!(by_key[&b"21".to_vec()], [at(-973_932_308); 2]);
    assert_eq!(by_key[&b"foobar".to_vec()], [at(-790_332_482); 2]);
    assert_eq!(by_key[&b"abc".to_vec()], [at(479_470_107); 2]);
}

#[test]
fn a_topic_grows_and_never_shrinks() {
    let mut batches = batches(2, &settings());
    batches.grow(1);
    assert_eq!(batches.partitions.len(), 2);
    batches.grow(5);
    assert_eq!(batches.partitions.len(), 5);
}

#[test]
fn all_who_wait_learn_of_a_failure_and_the_bytes_are_free() {
    let mut batches = batches(1, &ColumnarSettings { batch_bytes: 200, ..settings() });
    let (grown, mut ended): (Vec<usize>, Vec<_>) =
        (0..10).map(|number| append(&mut batches, &[event(&number.to_string().repeat(50))])).unzip();
    let free = batches.partitions[0].fail(&refusal());
    assert_eq!(free, grown.iter().sum::<usize>());
    for ended in &mut ended {
        assert!(ended.try_recv().unwrap().is_err());
    }
    assert!(batches.partitions[0].queue.is_empty() && batches.partitions[0].open().is_none());
}

/// What a broker says of a batch.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Takes,
    Halve,
    Without,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// However batches are cut and whatever is refused: each event ends once, in its place in its publication; what
    /// is kept stays in order; and every byte that was counted is given back.
    #[test]
    fn everything_that_was_counted_is_given_back(
        sizes in prop::collection::vec(prop::collection::vec((0..120usize, any::<bool>()), 1..12), 1..12),
        batch_bytes in 80..800usize,
        message_bytes_max in 60..140usize,
        answers in prop::collection::vec(prop_oneof![Just(Answer::Takes), Just(Answer::Halve), Just(Answer::Without)], 1..60),
        codec in prop_oneof![Just(Compression::None), Just(Compression::Lz4)],
    ) {
        let settings = ColumnarSettings { batch_bytes, message_bytes_max, compression: codec, ..settings() };
        let mut batches = batches(1, &settings);
        let (mut grown, mut free, mut ends) = (0, 0, Vec::new());
        let (mut expected, mut got) = (Vec::new(), Vec::new());
        for (at, publication) in sizes.iter().enumerate() {
            let events: Vec<Event> = publication.iter().enumerate().map(|(row, (size, poison))| {
                let poison = if *poison { "!" } else { "." };
                event(&format!("{at},{row}{poison}{}", "x".repeat(*size)))
            }).collect();
            let (more, ended) = append(&mut batches, &events);
            grown += more;
            ends.push((events, ended));
        }
        batches.seal(0);
        let poisoned = |event: &Event| event.1.as_ref().unwrap().contains(&b'!');
        let mut answers = answers.into_iter().chain(std::iter::repeat(Answer::Without));
        // The queue sends one after the other until it knows that the broker takes its numbers.
        while let Some((id, bytes)) = next(&mut batches, 0) {
            let events = read(&bytes);
            let bad = events.iter().any(poisoned);
            let compression = batches.compression;
            let queue = &mut batches.partitions[0].queue;
            match answers.next().unwrap() {
                Answer::Halve if events.len() > 1 => {
                    queue.replace(id, |sealed| sealed.halves(compression));
                }
                Answer::Takes | Answer::Halve if !bad => {
                    got.extend(events);
                    free += queue.acknowledge(id).unwrap().acknowledge();
                }
                _ if !bad => {
                    got.extend(events);
                    free += queue.acknowledge(id).unwrap().acknowledge();
                }
                _ => {
                    queue.replace(id, |sealed| {
                        let (kept, freed) =
                            sealed.without(compression, |record| poisoned(&events[record as usize]).then(refusal));
                        free += freed;
                        kept.into_iter().collect()
                    });
                }
            }
            if batches.partitions[0].queue.is_settled() {
                batches.partitions[0].queue.begin_epoch();
            }
        }
        prop_assert!(batches.partitions[0].queue.is_empty());
        prop_assert_eq!(free, grown);
        for (events, mut ended) in ends {
            let report = ended.try_recv().expect("every publication has ended").unwrap();
            let mut refused = report.refused.into_iter().map(|(row, error)| (row, error.kind)).peekable();
            for (row, event) in events.into_iter().enumerate() {
                let kind = refused.next_if(|(at, _)| *at == row as u32).map(|(_, kind)| kind);
                match kind {
                    Some(BrokerErrorKind::Refused) => prop_assert!(poisoned(&event)),
                    Some(kind) => {
                        prop_assert_eq!(kind, BrokerErrorKind::TooLarge);
                        prop_assert!(event.1.unwrap().len() + 20 > message_bytes_max);
                    }
                    None => expected.push(event),
                }
            }
            prop_assert!(refused.next().is_none());
        }
        prop_assert_eq!(got, expected);
    }
}
