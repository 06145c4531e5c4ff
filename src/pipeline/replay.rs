//! Dead letters as input: which are taken, and the event that each of them was.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

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

/// What becomes of a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterFate {
    /// It is taken; its event goes back by this output.
    Taken(u8),
    /// It was not asked for.
    Other,
    /// It is no dead letter of Fluxmill.
    Foreign,
    /// Its event was replayed too often already.
    WornOut,
    /// Its event came from a topic that is none of the pipeline's.
    Homeless,
}

/// How many letters were not taken, each counted once.
#[derive(Debug, Default)]
pub struct ReplayCounts {
    /// See [`LetterFate::Other`].
    pub others: AtomicU64,
    /// See [`LetterFate::Foreign`].
    pub foreign: AtomicU64,
    /// See [`LetterFate::WornOut`].
    pub worn_out: AtomicU64,
    /// See [`LetterFate::Homeless`].
    pub homeless: AtomicU64,
    /// The last offset of each partition that was looked at: a batch that is halved is looked at again.
    last: Mutex<BTreeMap<i32, i64>>,
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

    /// What becomes of a letter, of an event with this key and time; `at` is the letter's own partition and offset.
    pub fn fate(&self, letter: Option<&Letter>, key: Option<&[u8]>, timestamp: i64, at: (i32, i64)) -> LetterFate {
        let Some(letter) = letter else { return LetterFate::Foreign };
        if !self.filter.selects(letter, key, timestamp, at) {
            return LetterFate::Other;
        }
        if letter.replays >= self.most {
            return LetterFate::WornOut;
        }
        match &self.back {
            None => LetterFate::Taken(0),
            Some(back) => back.get(&letter.topic).map_or(LetterFate::Homeless, |&home| LetterFate::Taken(home)),
        }
    }

    /// The letter in this row and the output that its event goes back to, if it is taken.
    fn take(&self, batch: &EventBatch, row: usize, tracker: &Tracker) -> Option<(Letter, u8)> {
        let (event, origin) = (batch.row(row), batch.origin(row));
        let letter = Letter::of(event.headers);
        // Of a partition that was given away nothing is confirmed: its letters are the next owner's.
        let at = (tracker.partition(origin.slot)?.partition, origin.offset);
        let fate = self.fate(letter.as_ref(), event.key, event.timestamp, at);
        self.counts.note(fate, at);
        match fate {
            LetterFate::Taken(home) => letter.map(|letter| (letter, home)),
            _ => None,
        }
    }
}

impl ReplayCounts {
    fn note(&self, fate: LetterFate, (partition, offset): (i32, i64)) {
        let count = match fate {
            LetterFate::Taken(_) => return,
            LetterFate::Other => &self.others,
            LetterFate::Foreign => &self.foreign,
            LetterFate::WornOut => &self.worn_out,
            LetterFate::Homeless => &self.homeless,
        };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let last = last.entry(partition).or_insert(-1);
        if offset > *last {
            *last = offset;
            count.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
