//! What goes into a batch comes out of it, byte for byte.

use proptest::prelude::*;

use super::*;

type Header = (Vec<u8>, Option<Vec<u8>>);
type Event = (Option<Vec<u8>>, Option<Vec<u8>>, Vec<Header>, i64);

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..8)
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let header = (bytes(), prop::option::of(bytes()));
    let headers = prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(header, 1..4)];
    prop::collection::vec((prop::option::of(bytes()), prop::option::of(bytes()), headers, any::<i64>()), 0..20)
}

fn build(events: &[Event]) -> EventBatch {
    let mut builder = BatchBuilder::default();
    for (offset, (key, value, headers, timestamp)) in events.iter().enumerate() {
        let origin = Origin { slot: Slot(7), offset: offset as i64 };
        let headers = headers.iter().map(|(name, value)| (name.as_slice(), value.as_deref()));
        builder.append(origin, key.as_deref(), value.as_deref(), *timestamp, headers);
    }
    let bytes = events.iter().map(|(key, value, headers, _)| {
        let header = |(name, value): &Header| name.len() + value.as_ref().map_or(0, Vec::len) + HEADER_OVERHEAD;
        key.as_ref().map_or(0, Vec::len)
            + value.as_ref().map_or(0, Vec::len)
            + headers.iter().map(header).sum::<usize>()
    });
    assert_eq!(builder.bytes(), bytes.sum::<usize>());
    builder.finish()
}

fn owned(event: EventRef<'_>) -> Event {
    let headers = event.headers.map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))).collect();
    (event.key.map(<[u8]>::to_vec), event.value.map(<[u8]>::to_vec), headers, event.timestamp)
}

proptest! {
    #[test]
    fn a_batch_keeps_its_events(events in events()) {
        let batch = build(&events);
        prop_assert_eq!(batch.len(), events.len());
        let kept: Vec<Event> = (0..batch.len()).map(|row| owned(batch.row(row))).collect();
        prop_assert_eq!(kept, events);
    }

    #[test]
    fn selected_rows_are_the_same_events(events in events(), picks in prop::collection::vec(any::<prop::sample::Index>(), 0..10)) {
        prop_assume!(!events.is_empty());
        let batch = build(&events);
        let rows: Vec<u32> = picks.iter().map(|pick| pick.index(events.len()) as u32).collect();
        let selected = batch.select(&rows);
        for (at, &row) in rows.iter().enumerate() {
            prop_assert_eq!(owned(selected.row(at)), events[row as usize].clone());
            prop_assert_eq!(selected.origin(at), batch.origin(row as usize));
        }
    }

    /// What a publication inherits is the cause's, what it replaces is its own, the timestamp is always the cause's.
    #[test]
    fn a_publication_inherits_from_the_cause(events in events(), own in events(), replaced in any::<[bool; 3]>()) {
        prop_assume!(!events.is_empty() && !own.is_empty());
        let (input, replacement) = (build(&events), build(&own));
        let causes: Vec<u32> = (0..own.len()).map(|at| (at * 7 % events.len()) as u32).collect();
        let outcome = Outcome {
            causes: causes.clone(),
            outputs: Vec::new(),
            keys: if replaced[0] { ColumnSource::Replace(replacement.keys) } else { ColumnSource::Inherit },
            values: if replaced[1] { ColumnSource::Replace(replacement.values) } else { ColumnSource::Inherit },
            headers: if replaced[2] { HeaderSource::Replace(replacement.headers) } else { HeaderSource::Inherit },
            failures: Vec::new(),
        };
        outcome.check(events.len(), 1).unwrap();
        let publication = Publication { input, outcome: std::sync::Arc::new(outcome), rows: Rows::All };
        for (at, &cause) in causes.iter().enumerate() {
            let (from, new) = (&events[cause as usize], &own[at]);
            let expected = (
                if replaced[0] { &new.0 } else { &from.0 }.clone(),
                if replaced[1] { &new.1 } else { &from.1 }.clone(),
                if replaced[2] { &new.2 } else { &from.2 }.clone(),
                from.3,
            );
            prop_assert_eq!(owned(publication.event(at)), expected);
        }
        let one_by_one = (0..publication.len()).map(|at| owned(publication.event(at)));
        prop_assert!(publication.events().map(owned).eq(one_by_one));
    }
}
