//! Dead letters as input: which are taken, and the event that each of them was.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::dead_letter::{Filter, Letter};
use crate::delivery::Tracker;
use crate::event::{BatchBuilder, EventBatch, Failure, FailureKind, HeaderSource, Outcome};
use crate::function::CallError;

/// A replay: its input are dead letters.
#[derive(Debug)]
pub struct Replay {
    /// Which of them are taken.
    pub filter: Filter,
    /// An event that was replayed so often is not replayed again.
    pub most: u32,
    /// Where events go back to: for each topic that they came from, the pipeline's output. None where a function says.
    pub back: Option<BTreeMap<String, u8>>,
    /// What became of the letters.
    pub counts: ReplayCounts,
}

/// What became of the letters that were read.
#[derive(Debug, Default)]
pub struct ReplayCounts {
    /// Taken.
    pub taken: AtomicU64,
    /// Not asked for.
    pub others: AtomicU64,
    /// No dead letters of Fluxmill.
    pub foreign: AtomicU64,
    /// Replayed too often already.
    pub worn_out: AtomicU64,
    /// From a topic that is none of the pipeline's.
    pub homeless: AtomicU64,
}

impl Replay {
    /// Runs the events of the letters that are asked for, as they were, through `call`, and gives the outcome for the
    /// letters: those that are not asked for are dropped.
    pub(super) async fn call<F, O>(&self, batch: &EventBatch, tracker: &Tracker, call: F) -> Result<Outcome, CallError>
    where
        F: FnOnce(EventBatch) -> O,
        O: Future<Output = Result<Outcome, CallError>>,
    {
        let (mut rows, mut homes, mut events) = (Vec::new(), Vec::new(), BatchBuilder::default());
        for row in 0..batch.len() {
            let Some((letter, home)) = self.take(batch, row, tracker) else { continue };
            let (event, count) = (batch.row(row), (letter.replays + 1).to_string());
            let headers = letter.restored(event.headers, &count);
            events.append(batch.origin(row), event.key, event.value, event.timestamp, headers);
            rows.push(u32::try_from(row).expect("a batch has fewer than 2^32 rows"));
            homes.push(home);
        }
        if rows.is_empty() {
            return Ok(Outcome { causes: Vec::new(), ..Outcome::pass_through(0) });
        }
        let events = events.finish();
        let mut outcome = match call(events.clone()).await {
            Ok(outcome) => outcome,
            // Said of the whole batch, it is meant for those that it was called with.
            Err(CallError::Retry(reason)) => {
                let retry = |row: usize| Failure { row: row as u32, kind: FailureKind::Retry, reason: reason.clone() };
                Outcome { failures: (0..rows.len()).map(retry).collect(), ..Outcome::pass_through(0) }
            }
            Err(error) => return Err(error),
        };
        if self.back.is_some() {
            outcome.outputs = homes;
        }
        if matches!(outcome.headers, HeaderSource::Inherit) {
            // Key and value of a letter are those of its event; its headers are not.
            outcome.headers = HeaderSource::Replace(events.select(&outcome.causes).headers);
        }
        outcome.causes.iter_mut().for_each(|cause| *cause = rows[*cause as usize]);
        outcome.failures.iter_mut().for_each(|failure| failure.row = rows[failure.row as usize]);
        Ok(outcome)
    }

    /// The letter in this row and the output that its event goes back to, if it is taken. A batch that is halved, and a
    /// letter that is run again, are counted each time: the counts are of what was looked at.
    fn take(&self, batch: &EventBatch, row: usize, tracker: &Tracker) -> Option<(Letter, u8)> {
        let (event, origin) = (batch.row(row), batch.origin(row));
        let passed = |count: &AtomicU64| {
            count.fetch_add(1, Relaxed);
            None
        };
        let Some(letter) = Letter::of(event.headers) else { return passed(&self.counts.foreign) };
        let partition = tracker.partition(origin.slot).map_or(-1, |source| source.partition);
        if !self.filter.selects(&letter, event.key, event.timestamp, (partition, origin.offset)) {
            return passed(&self.counts.others);
        }
        if letter.replays >= self.most {
            return passed(&self.counts.worn_out);
        }
        let home = match &self.back {
            None => 0,
            Some(back) => match back.get(&letter.topic) {
                Some(&home) => home,
                None => return passed(&self.counts.homeless),
            },
        };
        self.counts.taken.fetch_add(1, Relaxed);
        Some((letter, home))
    }
}

#[cfg(test)]
mod tests;
