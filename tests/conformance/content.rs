//! What an event is: every byte of it, and how large it may be.

use anyhow::ensure;
use fluxmill::broker::BrokerErrorKind;
use fluxmill::event::Publication;

use crate::stage::{Seen, Stage, batch};
use crate::support::workload::odd;
use crate::world::{Event, Reader};

/// Tombstones, headers (any bytes, twice, in order, null), keys of any bytes, empty or none, and timestamps are the same
/// behind the source as before the sink.
pub(super) fn content(stage: &Stage<'_>) -> anyhow::Result<()> {
    let (place, reader) = (stage.place("odd", 1)?, Reader::default());
    let mut events: Vec<Event> = odd()
        .into_iter()
        .map(|record| Event {
            key: record.key,
            value: record.value.map(|value| value[..value.len().min(50_000)].to_vec()),
            headers: record.headers.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect(),
            timestamp: record.timestamp.unwrap_or_default(),
        })
        .collect();
    events.push(Event {
        headers: vec![
            (vec![0xff, b'x', 0xfe], Some(vec![0, 0x80, b'\n'])),
            (b"a:b".to_vec(), Some(b" blank ".to_vec())),
        ],
        ..Event::numbered(1, 10)
    });
    let (reading, publisher) = (stage.read(&place, &reader)?, stage.publisher(&place, None)?);
    let report = publisher.publish(Publication::unchanged(batch(&events)))?;
    ensure!(report.refused.is_empty(), "refused: {:?}", report.refused);
    let mut read = Vec::new();
    while read.len() < events.len() {
        let delivery = reading.take()?;
        read.extend((0..delivery.batch.len()).map(|row| Event::of(&delivery.batch, row)));
        delivery.token.done();
    }
    for (sent, read) in events.iter().zip(&read) {
        ensure!(sent == read, "an event changed:\nbefore {sent:?}\nafter  {read:?}");
    }
    ensure!(read.len() == events.len(), "{} events instead of {}", read.len(), events.len());
    reading.finish(&mut Seen::default())?;
    stage.ensure_confirmed(&place, &reader, events.len() as u64)
}

/// An event above what the place takes is refused alone, by its kind; those around it are stored.
pub(super) fn too_large(stage: &Stage<'_>) -> anyhow::Result<()> {
    let place = stage.place("large", 1)?;
    let above = stage.world.largest() + 1;
    let sizes = [10, above, 10, 10, above];
    let events: Vec<Event> = (0_u64..).zip(sizes).map(|(number, bytes)| Event::numbered(number, bytes)).collect();
    let publisher = stage.publisher(&place, None)?;
    let report = publisher.publish(Publication::unchanged(batch(&events)))?;
    let refused: Vec<_> = report.refused.iter().map(|(row, error)| (*row, error.kind)).collect();
    let expected = [1, 4].map(|row| (row, BrokerErrorKind::TooLarge));
    ensure!(refused == expected, "refused: {:?}", report.refused);
    let report = publisher.publish(Publication::unchanged(batch(&[Event::numbered(5, 10)])))?;
    ensure!(report.refused.is_empty(), "the next one is refused: {:?}", report.refused);
    let stored: Vec<_> = stage.world.stored(&place)?.into_iter().map(|stored| stored.value).collect();
    let expected: Vec<_> = [0, 2, 3, 5].map(|number| Event::numbered(number, 10).value).into();
    ensure!(stored == expected, "{stored:?} is stored");
    Ok(())
}
