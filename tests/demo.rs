//! The demo as a user without a terminal sees it: it needs nothing, ends well, and its counts add up.
#![allow(clippy::disallowed_methods, reason = "tests are not wired by src/pipeline.rs")]

use std::time::Duration;

use anyhow::{Context, ensure};
use support::process::{Ended, Fluxmill, Signal};

#[allow(dead_code, reason = "a part of what tests on a broker share")]
mod support {
    pub(crate) mod process;
    pub(crate) mod wait;
}

/// Long enough to compile the functions on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Before this, orders are on their way.
const START_LIMIT: Duration = Duration::from_secs(14);

/// The first number in a line, which may have commas.
fn number(text: &str) -> anyhow::Result<u64> {
    let word = text.split_whitespace().find(|word| word.starts_with(|char: char| char.is_ascii_digit()));
    Ok(word.with_context(|| format!("no number in `{text}`"))?.replace(',', "").parse()?)
}

/// What the summary says: orders sent, and how many ended in which topic.
fn summary(ended: &Ended) -> anyhow::Result<(u64, Vec<(String, u64)>)> {
    let line = ended.stdout.lines().find(|line| line.contains(" orders = ")).context("no summary")?;
    let (sent, places) = line.split_once(" = ").context("no sum")?;
    let places = places.split(" + ").map(|place| {
        let (_, topic) = place.split_once(' ').context("no topic")?;
        Ok((topic.to_owned(), number(place)?))
    });
    Ok((number(sent)?, places.collect::<anyhow::Result<_>>()?))
}

fn check(ended: &Ended) -> anyhow::Result<u64> {
    let (sent, places) = summary(ended)?;
    let total: u64 = places.iter().map(|(_, count)| count).sum();
    ensure!(sent == total, "{sent} orders were sent, {total} have ended:\n{}", ended.stdout);
    ensure!(ended.stdout.contains("the counts add up"), "{}", ended.stdout);
    ensure!(!ended.stdout.contains('\x1b'), "escapes without a terminal:\n{}", ended.stdout);
    Ok(sent)
}

#[test]
fn a_count_of_orders_ends_by_itself_and_adds_up() -> anyhow::Result<()> {
    let cache = tempfile::tempdir()?;
    let folder = cache.path().to_str().context("the path is UTF-8")?;
    let demo = Fluxmill::start(["demo", "--count", "2000", "--rate", "2000"], &[("FLUXMILL_CACHE_DIR", folder)], &[])?;
    let ended = demo.finish_well(LIMIT)?;
    ensure!(check(&ended)? == 2_000, "{}", ended.stdout);
    let (_, places) = summary(&ended)?;
    for topic in ["notifications", "payment-reviews", "orders.payment.dead"] {
        let (_, count) = places.iter().find(|(place, _)| place == topic).context(topic)?;
        ensure!(*count > 0, "nothing ended in {topic}:\n{}", ended.stdout);
    }
    Ok(())
}

#[test]
fn an_interrupt_lets_everything_end() -> anyhow::Result<()> {
    let mut demo = Fluxmill::start(["demo", "--rate", "3000"], &[], &[])?;
    // It takes two seconds, and more on a loaded machine; a call that the mock never answers takes longer than this.
    demo.process().wait_for_line(START_LIMIT, " s  orders ")?;
    demo.process().wait_for_line(LIMIT, "orders 3,")?;
    demo.process().signal(Signal::Int)?;
    let ended = demo.finish_well(LIMIT)?;
    ensure!(check(&ended)? > 0, "{}", ended.stdout);
    Ok(())
}

#[test]
fn a_rate_of_nothing_is_refused() -> anyhow::Result<()> {
    let ended = Fluxmill::start(["demo", "--rate", "0"], &[], &[])?.finish(LIMIT)?;
    ensure!(ended.code == Some(2) && ended.stderr.contains("1..=1000000"), "{ended:?}");
    Ok(())
}
