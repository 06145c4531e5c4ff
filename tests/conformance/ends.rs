//! How events end, and how sources do: what comes again, what does not, and who gets it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use fluxmill::broker::SourceEnd;

use crate::stage::{Reading, Seen, Stage, wait_for_confirmed};
use crate::support::wait::wait_until;
use crate::world::{LIMIT, Reader, numbers};

/// A drain that is meant to be in vain.
const SHORT: Duration = Duration::from_millis(200);

/// A batch that is given up, and everything behind it, comes again to the next source; what was confirmed before does
/// not.
pub(super) fn redelivery(stage: &Stage<'_>) -> anyhow::Result<()> {
    const EVENTS: u64 = 300;
    let (place, reader) = (stage.place("in", 1)?, Reader::default());
    stage.feed(&place, 0..EVENTS, 100)?;
    let reading = stage.read(&place, &reader)?;
    let (one, two, three) = (reading.take()?, reading.take()?, reading.take()?);
    let first = one.batch.len() as u64;
    one.token.done();
    three.token.done();
    // As a lane does that fails. A drain of two minutes must not wait for it.
    let given_up = numbers(&two);
    drop(two);
    let start = Instant::now();
    reading.give_up(stage.world.confirms())?;
    ensure!(start.elapsed() < reader.drain / 2, "it waited {:?} in vain", start.elapsed());
    stage.ensure_confirmed(&place, &reader, first)?;

    let reading = stage.read(&place, &reader)?;
    let again = reading.take()?;
    ensure!(numbers(&again)[0] == first && given_up[0] == first, "{:?} came again", numbers(&again));
    // This one ends with nothing done.
    drop(again);
    reading.give_up(stage.world.confirms())?;
    stage.ensure_confirmed(&place, &reader, first)?;

    let (reading, mut seen) = (stage.read(&place, &reader)?, Seen::default());
    (0..first).for_each(|number| seen.add(number));
    reading.take_until(&mut seen, EVENTS)?;
    reading.finish(&mut seen)?;
    seen.ensure_once(EVENTS)?;
    stage.ensure_confirmed(&place, &reader, EVENTS)
}

/// Batches that end before an earlier one confirm nothing; once that has ended they are confirmed all together.
pub(super) fn out_of_order(stage: &Stage<'_>) -> anyhow::Result<()> {
    const EVENTS: u64 = 300;
    let (place, reader) = (stage.place("in", 1)?, Reader { drain: SHORT, ..Reader::default() });
    stage.feed(&place, 0..EVENTS, 100)?;
    let reading = stage.read(&place, &reader)?;
    let (one, two, three) = (reading.take()?, reading.take()?, reading.take()?);
    three.token.done();
    two.token.done();
    // The first one is in flight until its time is up.
    reading.give_up(stage.world.confirms())?;
    stage.ensure_confirmed(&place, &reader, 0)?;
    // Too late: its place is not this source's any more.
    one.token.done();

    let reader = Reader { drain: LIMIT, ..reader };
    let (reading, mut seen) = (stage.read(&place, &reader)?, Seen::default());
    let (one, two) = (reading.take()?, reading.take()?);
    ensure!(numbers(&one)[0] == 0, "it began at {}", numbers(&one)[0]);
    [&one, &two].into_iter().for_each(|delivery| seen.take(delivery));
    let both = seen.all();
    two.token.done();
    one.token.done();
    wait_for_confirmed(stage, &place, &reader, both)?;
    reading.take_until(&mut seen, EVENTS)?;
    reading.finish(&mut seen)?;
    seen.ensure_once(EVENTS)?;
    stage.ensure_confirmed(&place, &reader, EVENTS)
}

/// Sources that end in order, one after the other, take each event once; the last one ends by itself.
pub(super) fn restart(stage: &Stage<'_>) -> anyhow::Result<()> {
    const EVENTS: u64 = 4_000;
    let place = stage.place("in", 2)?;
    let reader = Reader { lanes: 2, ..Reader::default() };
    stage.feed(&place, 0..EVENTS, 100)?;
    let mut seen = Seen::default();
    for _ in 0..3 {
        let (reading, before) = (stage.read(&place, &reader)?, seen.different());
        reading.take_until(&mut seen, (before + EVENTS / 5).min(EVENTS))?;
        reading.finish(&mut seen)?;
        stage.ensure_confirmed(&place, &reader, seen.all())?;
    }
    let reader = Reader { until_caught_up: true, ..reader };
    stage.read(&place, &reader)?.catch_up(&mut seen)?;
    seen.ensure_once(EVENTS)?;
    stage.ensure_confirmed(&place, &reader, EVENTS)?;
    // Nothing is left.
    let mut rest = Seen::default();
    stage.read(&place, &reader)?.catch_up(&mut rest)?;
    ensure!(rest.all() == 0, "{} events came again", rest.all());
    Ok(())
}

/// Ends the events of a source at once, on tasks beside the case, until it is stopped; gives what came.
fn attend(stage: &Stage<'_>, reading: &Reading) -> Arc<Mutex<Seen>> {
    let seen = Arc::<Mutex<Seen>>::default();
    for lane in reading.intakes() {
        let (lane, seen) = (lane.clone(), seen.clone());
        stage.spawn(async move {
            while let Some(delivery) = lane.take().await {
                seen.lock().unwrap_or_else(PoisonError::into_inner).take(&delivery);
                delivery.token.done();
            }
        });
    }
    seen
}

fn count(seen: &Mutex<Seen>) -> u64 {
    seen.lock().unwrap_or_else(PoisonError::into_inner).all()
}

/// Two sources of one reader take each event once between them: they share the partitions, or the second waits. When one
/// ends the other has all.
pub(super) fn take_over(stage: &Stage<'_>) -> anyhow::Result<()> {
    const PORTION: u64 = 500;
    let (place, reader) = (stage.place("in", 4)?, Reader::default());
    let first = stage.read(&place, &reader)?;
    let by_first = attend(stage, &first);
    let mut fed = 0;
    let mut feed = || {
        stage.feed(&place, fed..fed + PORTION, 100)?;
        fed += PORTION;
        anyhow::Ok(fed)
    };
    let mut events = feed()?;
    wait_until(LIMIT, "the first to take all", || Ok((count(&by_first) == events).then_some(())))?;
    let second = stage.read(&place, &reader)?;
    let by_second = attend(stage, &second);
    if stage.world.shares() {
        wait_until(LIMIT, "both to have a part", || {
            events = feed()?;
            Ok((count(&by_second) > 0).then_some(()))
        })?;
    } else {
        events = feed()?;
    }
    let both = || count(&by_first) + count(&by_second);
    wait_until(LIMIT, "all to be taken", || Ok((both() >= events).then_some(())))?;
    if !stage.world.shares() {
        ensure!(count(&by_second) == 0, "the second took {} events", count(&by_second));
    }
    first.stop();
    let end = first.end()??;
    ensure!(end == SourceEnd::Drained, "the first ended as {end:?}");
    let (before, rest) = (count(&by_first), feed()?);
    wait_until(LIMIT, "the second to take the rest", || Ok((both() >= rest).then_some(())))?;
    ensure!(count(&by_first) == before, "the first took events after its end");
    second.stop();
    let end = second.end()??;
    ensure!(end == SourceEnd::Drained, "the second ended as {end:?}");
    stage.case.note(&format!("{before} events by the first, {} by the second", count(&by_second)));
    let mut seen = Seen::default();
    for by in [&by_first, &by_second] {
        seen.join(&by.lock().unwrap_or_else(PoisonError::into_inner));
    }
    seen.ensure_once(rest)?;
    stage.ensure_confirmed(&place, &reader, rest)
}

/// A stop waits for what is in flight, and confirms it; for so long, and no longer.
pub(super) fn drain(stage: &Stage<'_>) -> anyhow::Result<()> {
    const EVENTS: u64 = 100;
    let (place, reader) = (stage.place("in", 1)?, Reader::default());
    stage.feed(&place, 0..EVENTS, 100)?;
    let (reading, mut seen) = (stage.read(&place, &reader)?, Seen::default());
    let held = reading.take()?;
    seen.take(&held);
    reading.stop();
    ensure!(reading.goes_on(SHORT), "it ended while an event was in flight");
    held.token.done();
    reading.finish(&mut seen)?;
    let confirmed = seen.all();
    stage.ensure_confirmed(&place, &reader, confirmed)?;
    seen.ensure_once(confirmed)?;

    stage.feed(&place, EVENTS..EVENTS + 50, 100)?;
    let reader = Reader { drain: SHORT, ..reader };
    let reading = stage.read(&place, &reader)?;
    let held = reading.take()?;
    ensure!(numbers(&held)[0] == confirmed, "it went on at {}", numbers(&held)[0]);
    reading.give_up(stage.world.confirms())?;
    stage.ensure_confirmed(&place, &reader, confirmed)?;
    held.token.done();
    stage.ensure_confirmed(&place, &reader, confirmed)
}

/// Work that takes twice as long as the broker's patience with readers, or with what is not confirmed, is done
/// once.
pub(super) fn slow_function(stage: &Stage<'_>) -> anyhow::Result<()> {
    const EVENTS: u64 = 300;
    let patience = stage.world.patience();
    let (place, reader) = (stage.place("in", 1)?, Reader { patience: Some(patience), ..Reader::default() });
    stage.feed(&place, 0..EVENTS, 100)?;
    let (reading, mut seen) = (stage.read(&place, &reader)?, Seen::default());
    let held = [reading.take()?, reading.take()?];
    held.iter().for_each(|delivery| seen.take(delivery));
    let (start, slow) = (Instant::now(), patience * 2);
    wait_until(LIMIT, "a slow function", || Ok((start.elapsed() >= slow).then_some(())))?;
    held.into_iter().for_each(|delivery| delivery.token.done());
    reading.take_until(&mut seen, EVENTS)?;
    wait_for_confirmed(stage, &place, &reader, EVENTS)?;
    reading.finish(&mut seen)?;
    seen.ensure_once(EVENTS)?;
    if let Some(taken) = stage.world.taken(&place, &reader)? {
        ensure!(taken == EVENTS, "the broker handed {taken} events out, of {EVENTS}");
    }
    Ok(())
}
