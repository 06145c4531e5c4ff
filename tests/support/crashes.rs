//! Faults that happen at random to a system under load, and what became of its events: what the crash tests share,
//! whichever the broker.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::checker::{Report, compare};
use super::client::Record;
use super::environment::setting;
use super::suite::Case;
use super::workload::{Numbered, Value, both_told_apart};

/// Keys of the load.
const KEYS: u64 = 1_000;

/// Event `number` of the load: of a hundred, one is rejected by the function `faulty` and one makes it trap.
pub(crate) fn event(number: u64) -> Record {
    let word = match number % 100 {
        17 => "reject",
        71 => "trap",
        _ => "pass",
    };
    Record {
        key: Some(format!("k-{}", number.wrapping_mul(2_654_435_761) % KEYS).into_bytes()),
        value: Some(format!("{word} {number} {}", "x".repeat(100)).into_bytes()),
        ..Record::default()
    }
}

/// What can happen.
pub(crate) trait Fault: Copy + Ord + 'static {
    /// Each of them.
    const ALL: &'static [Self];

    /// What it is, in the table.
    fn name(self) -> &'static str;

    /// Whether it is a kill -9.
    fn kills(self) -> bool;

    /// One of them, by chance.
    fn choose(random: &mut fastrand::Rng) -> Self;
}

/// The faults of one run.
pub(crate) struct Faults<F> {
    plan: Vec<F>,
    /// How often each happened, and how long that took in all.
    happened: BTreeMap<F, (u32, Duration)>,
    start: Instant,
}

impl<F: Fault> Faults<F> {
    /// As many as the environment says under `variable`, or else `count`: each of them once, in any order; then at
    /// random. Also gives the source of further choices. A note says how to make them all again.
    ///
    /// # Errors
    /// When the environment says no number.
    pub(crate) fn plan(case: &Case, variable: &str, count: u32) -> anyhow::Result<(Self, fastrand::Rng)> {
        let count = setting(variable)?.unwrap_or(count);
        let seed = setting(&format!("{variable}_SEED"))?.unwrap_or_else(|| fastrand::u64(..));
        case.note(&format!("{variable}={count} {variable}_SEED={seed}"));
        let mut random = fastrand::Rng::with_seed(seed);
        let mut plan = F::ALL.to_vec();
        random.shuffle(&mut plan);
        plan.extend((plan.len()..count as usize).map(|_| F::choose(&mut random)));
        plan.truncate(count as usize);
        Ok((Self { plan, happened: BTreeMap::new(), start: Instant::now() }, random))
    }

    /// Lets them happen, one after the other.
    ///
    /// # Errors
    /// The first of `happen`, with the fault that it is about.
    pub(crate) fn happen(&mut self, mut happen: impl FnMut(F) -> anyhow::Result<()>) -> anyhow::Result<()> {
        for (number, &fault) in (1..).zip(&self.plan) {
            let begun = Instant::now();
            happen(fault).with_context(|| format!("fault {number}, {}", fault.name()))?;
            let (times, time) = self.happened.entry(fault).or_default();
            *times += 1;
            *time += begun.elapsed();
        }
        Ok(())
    }

    /// What happened and what became of the events; `more` are further lines, left out where they count nothing.
    pub(crate) fn table(&self, more: &[(u32, &str)], [out, dead]: &Reports) -> String {
        let kills: u32 = self.happened.iter().filter(|(fault, _)| fault.kills()).map(|(_, (times, _))| times).sum();
        let mut table = format!("{} faults, {kills} of them kills, in {:.0?}:", self.plan.len(), self.start.elapsed());
        for (fault, (times, time)) in &self.happened {
            table += &format!("\n{times:>6} x {}, {:.1?} each", fault.name(), *time / *times);
        }
        for (times, what) in more.iter().filter(|(times, _)| *times > 0) {
            table += &format!("\n{times:>6} {what}");
        }
        for (what, report) in [("published", out), ("dead letters", dead)] {
            let Report { sent, lost, unseen, .. } = report;
            let (lost, doubled, unseen) = (lost.len(), report.too_many(), unseen.len());
            table += &format!("\n{what}: sent {sent}, lost {lost}, doubled {doubled}, unseen {unseen}");
        }
        // Dead letters of two batches are in no order.
        table += &format!("; published and reordered {}", out.reordered.len());
        table
    }
}

/// What became of the events that the function forwards, and of the others.
pub(crate) type Reports = [Report<(Value, usize)>; 2];

/// The events that the function forwards against the output, the others against the dead letters. What the load's own
/// client doubled has to come out as often.
pub(crate) fn reports(fed: &[Vec<Numbered>], out: Vec<Vec<Numbered>>, dead: Vec<Vec<Numbered>>) -> Reports {
    let part = |forwarded: bool| -> Vec<Vec<Numbered>> {
        let chosen = |list: &Vec<Numbered>| {
            list.iter().filter(|event| event.id.starts_with(b"pass ") == forwarded).cloned().collect()
        };
        fed.iter().map(chosen).collect()
    };
    let compared = |input, output| {
        let (input, output) = both_told_apart(input, output);
        compare(&input, &output)
    };
    [compared(part(true), out), compared(part(false), dead)]
}

/// None of the dead letters lost or invented, and none doubled where each has to be there `once`. Those of two batches
/// are in no order.
///
/// # Errors
/// Otherwise, with counts and examples.
pub(crate) fn ensure_letters<I: std::fmt::Debug>(dead: &Report<I>, once: bool) -> anyhow::Result<()> {
    let are_right = dead.lost.is_empty() && dead.unseen.is_empty() && (!once || dead.doubled.is_empty());
    ensure!(are_right, "dead letters: {}", dead.describe());
    Ok(())
}
