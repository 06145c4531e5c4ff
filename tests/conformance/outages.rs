//! A broker that refuses, and one that goes away.

use anyhow::{bail, ensure};
use fluxmill::broker::BrokerErrorKind;
use fluxmill::event::Publication;
use futures_util::FutureExt as _;

use crate::stage::{Seen, Stage, batch};
use crate::support::wait::wait_until;
use crate::world::{Event, LIMIT, Reader};

/// Without permission the source ends with an error of that kind, and so does publishing.
pub(super) fn denied(stage: &Stage<'_>) -> anyhow::Result<()> {
    let place = stage.place("denied", 1)?;
    let reading = stage.read(&place, &Reader::default())?;
    match reading.end()? {
        Err(error) => ensure!(error.kind == BrokerErrorKind::Denied, "{:?}: {error}", error.kind),
        Ok(end) => bail!("the source ended as {end:?}"),
    }
    ensure!(reading.next()?.is_none(), "it took something");
    let publisher = stage.publisher(&place, None)?;
    wait_until(LIMIT, "a refusal", || {
        match publisher.publish(Publication::unchanged(batch(&[Event::numbered(0, 10)]))) {
            Err(error) => ensure!(error.kind == BrokerErrorKind::Denied, "{:?}: {error}", error.kind),
            // A broker that answers nothing refuses what comes after.
            Ok(_) if !stage.world.confirms() => return Ok(None),
            Ok(report) => bail!("it was published: {:?}", report.refused),
        }
        Ok(Some(()))
    })
}

/// A source and a sink outlive a broker that goes away and comes back: nothing is lost, and nothing is stored twice that
/// was not taken twice.
pub(super) fn reconnect(stage: &Stage<'_>) -> anyhow::Result<()> {
    const EVENTS: u64 = 3_000;
    let (from, to) = (stage.place("in", 2)?, stage.place("out", 2)?);
    let reader = Reader { lanes: 2, ..Reader::default() };
    stage.feed(&from, 0..2_000, 100)?;
    let reading = stage.read(&from, &reader)?;
    let publisher = stage.publisher(&to, Some(&reading))?;
    let mut seen = Seen::default();
    for round in 1..=2 {
        while seen.different() < round * 500 {
            let delivery = reading.take()?;
            seen.take(&delivery);
            publisher.pass_on(delivery)?;
        }
        // In flight while it is away: one batch that is on its way out, and one that is not.
        let (on_its_way, held) = (reading.take()?, reading.take()?);
        seen.take(&on_its_way);
        stage.world.go_away()?;
        let mut acknowledgement = publisher.begin(Publication::unchanged(on_its_way.batch))?;
        let early = stage.block_on("a look", async { (&mut acknowledgement).now_or_never() })?;
        ensure!(early.is_none(), "acknowledged by a broker that is away: {early:?}");
        stage.world.come_back()?;
        let report = publisher.end(acknowledgement)?;
        ensure!(report.refused.is_empty(), "refused: {:?}", report.refused);
        on_its_way.token.done();
        seen.take(&held);
        publisher.pass_on(held)?;
    }
    stage.feed(&from, 2_000..EVENTS, 100)?;
    while seen.different() < EVENTS {
        let delivery = reading.take()?;
        seen.take(&delivery);
        publisher.pass_on(delivery)?;
    }
    // Who stops before its group is whole again may not confirm its last events, which then come again: what comes again
    // here is passed on, too.
    wait_until(LIMIT, "everything to be confirmed", || {
        while let Some(delivery) = reading.ready() {
            seen.take(&delivery);
            publisher.pass_on(delivery)?;
        }
        let confirmed: u64 = stage.world.confirmed(&from, &reader)?.values().sum();
        Ok((confirmed == EVENTS).then_some(()))
    })?;
    reading.finish(&mut seen)?;
    seen.ensure_complete(EVENTS)?;
    let mut stored = Seen::default();
    for event in stage.world.stored(&to)? {
        stored.add(crate::world::number(event.value.as_deref()).unwrap_or(u64::MAX));
    }
    stage.case.note(&format!("{EVENTS} events, {} taken, {} stored", seen.all(), stored.all()));
    stored.ensure_complete(EVENTS)?;
    ensure!(stored.all() <= seen.all(), "{} stored, {} taken", stored.all(), seen.all());
    stage.ensure_confirmed(&from, &reader, EVENTS)
}
