//! Events on their way: each once, in bounds, in order, no faster than they end.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use fluxmill::broker::Sink as _;
use fluxmill::event::Publication;
use fluxmill::intake::Delivery;
use fluxmill::spec::{BatchLimits, Order};
use futures_util::future::try_join_all;

use crate::stage::{Reading, Seen, Stage};
use crate::world::{Event, Reader, numbers, stands_still};

/// Longer than any case: a batch goes only when it is full.
const NEVER: Duration = Duration::from_secs(3600);

/// Everything that is there is taken once, and what is published is stored once.
pub(super) fn delivery(stage: &Stage<'_>) -> anyhow::Result<()> {
    const EVENTS: u64 = 5_000;
    let (from, to) = (stage.place("in", 4)?, stage.place("out", 4)?);
    let reader = Reader { lanes: 2, ..Reader::default() };
    // Half of it is there before the source, half comes while it waits.
    stage.feed(&from, 0..EVENTS / 2, 100)?;
    let reading = stage.read(&from, &reader)?;
    let publisher = stage.publisher(&to, Some(&reading))?;
    let mut seen = Seen::default();
    for part in [EVENTS / 2, EVENTS] {
        while seen.different() < part {
            let delivery = reading.take()?;
            seen.take(&delivery);
            publisher.pass_on(delivery)?;
        }
        if part < EVENTS {
            stage.feed(&from, part..EVENTS, 100)?;
        }
    }
    reading.finish(&mut seen)?;
    seen.ensure_once(EVENTS)?;
    stage.ensure_stored_once(&to, EVENTS)?;
    stage.ensure_confirmed(&from, &reader, EVENTS)
}

/// Batches end at `max_events` and `max_bytes`, an event above `max_bytes` is alone, and what is less waits `max_wait`.
pub(super) fn batching(stage: &Stage<'_>) -> anyhow::Result<()> {
    let limits = BatchLimits { max_events: 7, max_bytes: 1 << 20, max_wait: NEVER };
    let sizes = batches_of(stage, "events", limits, &[100; 7 * 7], 7)?;
    ensure!(sizes == [7; 7], "batches of {sizes:?} events, max_events is 7");
    // Each event has 300 bytes or 2,000.
    let limits = BatchLimits { max_events: 1_000, max_bytes: 1_000, max_wait: NEVER };
    let values = [300, 300, 300, 300, 2_000, 300, 300, 300, 300, 2_000].map(|bytes| bytes - KEY);
    let sizes = batches_of(stage, "bytes", limits, &values, 6)?;
    ensure!(sizes == [3, 1, 1, 3, 1, 1], "batches of {sizes:?} events, max_bytes is 1,000");
    let limits = BatchLimits { max_events: 1_000, max_bytes: 1 << 20, max_wait: Duration::from_secs(1) };
    let (place, reader) = (stage.place("wait", 1)?, Reader { limits, ..Reader::default() });
    stage.feed(&place, 0..3, 10)?;
    let reading = stage.read(&place, &reader)?;
    let delivery = reading.take()?;
    ensure!(delivery.since.elapsed() >= limits.max_wait, "it went after {:?}", delivery.since.elapsed());
    ensure!(numbers(&delivery) == [0, 1, 2], "a batch of {:?}", numbers(&delivery));
    delivery.token.done();
    reading.finish(&mut Seen::default())?;
    stage.ensure_confirmed(&place, &reader, 3)
}

/// Bytes of a numbered event's key.
const KEY: usize = 4;

/// How many events each of the first batches has when events with values of so many bytes are there.
fn batches_of(
    stage: &Stage<'_>,
    name: &str,
    limits: BatchLimits,
    values: &[usize],
    batches: usize,
) -> anyhow::Result<Vec<usize>> {
    let (place, reader) = (stage.place(name, 1)?, Reader { limits, ..Reader::default() });
    let events: Vec<Event> = (0_u64..).zip(values).map(|(number, bytes)| Event::numbered(number, *bytes)).collect();
    stage.world.feed(&place, &events)?;
    let reading = stage.read(&place, &reader)?;
    let (mut sizes, mut next) = (Vec::new(), 0);
    for _ in 0..batches {
        let delivery = reading.take()?;
        let length = delivery.batch.len();
        let expected: Vec<u64> = (next..next + length as u64).collect();
        ensure!(numbers(&delivery) == expected, "not in order: {:?}", numbers(&delivery));
        next += length as u64;
        sizes.push(length);
        delivery.token.done();
    }
    reading.finish(&mut Seen::default())?;
    stage.ensure_confirmed(&place, &reader, values.len() as u64)?;
    Ok(sizes)
}

/// What the lanes saw: of each partition, or of each key, which lane it came by and what came last.
type Last = BTreeMap<(i32, Vec<u8>), (usize, i64)>;

/// Over several lanes that run at once, the events of a partition, or of a key, stay on one lane and in their order, and
/// are stored in that order.
pub(super) fn order(stage: &Stage<'_>) -> anyhow::Result<()> {
    const EVENTS: u64 = 10_000;
    for (name, order) in [("partitions", Order::Partition), ("keys", Order::Key)] {
        let (from, to) = (stage.place(&format!("in-{name}"), 4)?, stage.place(&format!("out-{name}"), 4)?);
        stage.feed(&from, 0..EVENTS, 50)?;
        let reader = Reader { lanes: 4, order, ..Reader::default() };
        let reading = stage.read(&from, &reader)?;
        let publisher = stage.publisher(&to, Some(&reading))?;
        let state: Mutex<(Seen, Last)> = Mutex::default();
        let lanes = (0..reader.lanes).map(|lane| {
            let (state, reading, sink) = (&state, &reading, publisher.sink());
            async move {
                while let Some(delivery) = reading.intakes()[lane].take().await {
                    {
                        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                        ensure_in_order(&mut state.1, lane, order, &delivery)?;
                        state.0.take(&delivery);
                        if state.0.different() == EVENTS {
                            reading.stop();
                        }
                    }
                    let report = sink.publish(Publication::unchanged(delivery.batch)).await?.await?;
                    ensure!(report.refused.is_empty(), "{:?}", report.refused);
                    delivery.token.done();
                }
                anyhow::Ok(())
            }
        });
        stage.block_on("all events", try_join_all(lanes))??;
        ensure_drained(&reading)?;
        let (seen, last) = state.into_inner().unwrap_or_else(PoisonError::into_inner);
        seen.ensure_once(EVENTS).with_context(|| name.to_owned())?;
        if order == Order::Key {
            let mut lanes: Vec<usize> = last.values().map(|(lane, _)| *lane).collect();
            lanes.sort_unstable();
            lanes.dedup();
            ensure!(lanes.len() > 1, "all keys were on lane {lanes:?}");
        }
        stage.ensure_stored_once(&to, EVENTS)?;
        stage.ensure_confirmed(&from, &reader, EVENTS)?;
    }
    Ok(())
}

fn ensure_in_order(last: &mut Last, lane: usize, order: Order, delivery: &Delivery) -> anyhow::Result<()> {
    for row in 0..delivery.batch.len() {
        let origin = delivery.batch.origin(row);
        let partition = delivery.token.partition(origin.slot).context("a partition was taken away")?.partition;
        let key = match order {
            Order::Key => delivery.batch.row(row).key.unwrap_or_default().to_vec(),
            Order::Partition | Order::None => Vec::new(),
        };
        let before = last.insert((partition, key), (lane, origin.offset));
        ensure!(
            before.is_none_or(|(its, offset)| its == lane && offset < origin.offset),
            "offset {} of partition {partition} on lane {lane}, after {before:?}",
            origin.offset
        );
    }
    Ok(())
}

fn ensure_drained(reading: &Reading) -> anyhow::Result<()> {
    let end = reading.end()??;
    ensure!(end == fluxmill::broker::SourceEnd::Drained, "it ended as {end:?}");
    Ok(())
}

/// While nothing is taken, or nothing ends, the source stands still within its bounds; it goes on when events end, and
/// none is lost or doubled. More is unconfirmed at once than any window holds.
pub(super) fn back_pressure(stage: &Stage<'_>) -> anyhow::Result<()> {
    let (place, events) = (stage.place("in", 1)?, stage.world.many());
    let limits = BatchLimits { max_events: 100, max_bytes: 1 << 20, max_wait: Duration::ZERO };
    let reader = Reader { limits, ..Reader::default() };
    stage.feed(&place, 0..events, 10)?;
    let reading = stage.read(&place, &reader)?;
    // The lane takes nothing.
    match stands_still(&*stage.world, &place, &reader, 1)? {
        Some(taken) => {
            stage.case.note(&format!("{taken} of {events} events were fetched while the lane took none"));
            let most = stage.world.ahead_max();
            ensure!(taken <= most, "{taken} events were fetched while the lane took none, {most} at most");
        }
        None => stage.case.note("this broker does not tell how far a reader has fetched"),
    }
    // It takes all that comes, and none of it ends.
    let (mut seen, mut held, mut next) = (Seen::default(), Vec::new(), 0);
    let unconfirmed = stage.world.unconfirmed_max().unwrap_or(events);
    let mut take = |seen: &mut Seen| {
        let delivery = reading.take()?;
        for number in numbers(&delivery) {
            ensure!(number == next, "{number} instead of {next}");
            next += 1;
        }
        seen.take(&delivery);
        Ok(delivery.token)
    };
    while seen.all() < unconfirmed.min(events) {
        held.push(take(&mut seen)?);
    }
    if unconfirmed < events {
        stands_still(&*stage.world, &place, &reader, unconfirmed)?;
        ensure!(reading.ready().is_none(), "more than {unconfirmed} events without a confirmation");
    }
    ensure!(seen.all() == unconfirmed.min(events), "{} events were taken", seen.all());
    stage.ensure_confirmed(&place, &reader, 0)?;
    stage.case.note(&format!("{} events in {} batches were unconfirmed at once", seen.all(), held.len()));
    held.drain(..).for_each(fluxmill::delivery::Token::done);
    while seen.all() < events {
        take(&mut seen)?.done();
    }
    reading.finish(&mut seen)?;
    seen.ensure_once(events)?;
    stage.ensure_confirmed(&place, &reader, events)
}
