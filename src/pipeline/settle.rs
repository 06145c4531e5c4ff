//! How the rows of one batch come to their end: which rows to call the function with next, what to retry, what to
//! halve. A pure state machine: no clock, no IO, no function.
//!
//! A call that fails as a whole is halved until the poison rows are alone; rows that asked for a retry are run again
//! together, after a wait, until their attempts are used up. Every row ends exactly once: in a call that succeeded
//! (published or dropped) or as a [`FailedRow`].

use std::time::Duration;

use crate::event::{Failure, FailureKind};
use crate::function::{CallError, Fault};
use crate::spec::RetrySpec;

/// Why a row failed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedBy {
    /// The function rejected it.
    Reject,
    /// It asked for a retry until its attempts were used up.
    Attempts,
    /// It asked for a retry that would have come after `max_age`.
    Age,
    /// The sandbox ended the call.
    Fault(Fault),
    /// The broker will not take what the function made of it.
    Publish,
}

impl FailedBy {
    /// The word that dead-letter headers, logs and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            FailedBy::Reject => "reject",
            FailedBy::Attempts => "attempts",
            FailedBy::Age => "age",
            FailedBy::Fault(fault) => fault.as_str(),
            FailedBy::Publish => "publish",
        }
    }
}

/// A row that failed for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedRow {
    /// The row of the batch.
    pub row: u32,
    /// What kind of failure.
    pub by: FailedBy,
    /// The details, in words.
    pub reason: String,
    /// How often the function was called for its sake, halving not counted.
    pub attempts: u32,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Call the function with these rows of the batch.
    Call(Vec<u32>),
    /// Wait this long, then ask again.
    Wait(Duration),
    /// Every row has ended.
    Done,
}

/// The state of one batch on its way to the end.
#[derive(Debug)]
pub struct Settlement {
    policy: RetrySpec,
    /// Sets of rows still to call in this attempt, the next one last.
    calls: Vec<Vec<u32>>,
    /// Rows to run again in the next attempt, with the last reason.
    again: Vec<(u32, String)>,
    attempt: u32,
    /// Rows that timed out alone, once.
    timed_out: Vec<u32>,
    failed: Vec<FailedRow>,
}

impl Settlement {
    /// A batch of `rows` rows that is yet to be called.
    pub fn new(rows: u32, policy: RetrySpec) -> Self {
        Self {
            policy,
            calls: vec![(0..rows).collect()],
            again: Vec::new(),
            attempt: 1,
            timed_out: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// What to do next, when the batch was first called `age` ago. `dice`, from 0 to 1, says how much of its upper half a wait
    /// keeps: those who failed together must not come back together. After [`Step::Call`], tell what came of it by
    /// [`Self::succeeded`] or [`Self::failed`].
    pub fn next(&mut self, age: Duration, dice: f64) -> Step {
        match self.calls.pop() {
            Some(rows) => Step::Call(rows),
            None if self.again.is_empty() => Step::Done,
            None => {
                let wait = backoff(self.policy, self.attempt).mul_f64(0.5 + dice / 2.0);
                if self.policy.max_age.is_some_and(|most| age.saturating_add(wait) > most) {
                    for (row, reason) in std::mem::take(&mut self.again) {
                        self.fail(row, FailedBy::Age, reason);
                    }
                    return Step::Done;
                }
                self.attempt += 1;
                let mut rows: Vec<u32> = self.again.drain(..).map(|(row, _)| row).collect();
                rows.sort_unstable();
                self.calls.push(rows);
                Step::Wait(wait)
            }
        }
    }

    /// A call with `rows` returned; `failures` count within them.
    pub fn succeeded(&mut self, rows: &[u32], failures: &[Failure]) {
        for failure in failures {
            let row = rows[failure.row as usize];
            match failure.kind {
                FailureKind::Reject => self.fail(row, FailedBy::Reject, failure.reason.clone()),
                FailureKind::Retry => self.retry(row, failure.reason.clone()),
            }
        }
    }

    /// A call with `rows` failed as a whole.
    pub fn failed(&mut self, mut rows: Vec<u32>, error: &CallError) {
        let (by, reason) = match error {
            CallError::Retry(reason) => {
                for row in rows {
                    self.retry(row, reason.clone());
                }
                return;
            }
            CallError::Reject(reason) => (FailedBy::Reject, reason),
            CallError::Fault { fault, reason } => (FailedBy::Fault(*fault), reason),
        };
        match rows.len() {
            0 => {}
            // The whole process may have been paused, so the clock alone condemns nobody.
            1 if by == FailedBy::Fault(Fault::Timeout) && !self.timed_out.contains(&rows[0]) => {
                self.timed_out.push(rows[0]);
                self.calls.push(rows);
            }
            1 => self.fail(rows[0], by, reason.clone()),
            len => {
                let second = rows.split_off(len / 2);
                self.calls.push(second);
                self.calls.push(rows);
            }
        }
    }

    /// How many attempts were begun; 1 while nothing was retried.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The rows that failed for good.
    pub fn into_failed(self) -> Vec<FailedRow> {
        self.failed
    }

    fn retry(&mut self, row: u32, reason: String) {
        if self.attempt < self.policy.attempts {
            self.again.push((row, reason));
        } else {
            self.fail(row, FailedBy::Attempts, reason);
        }
    }

    fn fail(&mut self, row: u32, by: FailedBy, reason: String) {
        self.failed.push(FailedRow { row, by, reason, attempts: self.attempt });
    }
}

/// The wait after attempt number `attempt`: doubling from `backoff_min`, never above `backoff_max`.
fn backoff(policy: RetrySpec, attempt: u32) -> Duration {
    let factor = 1u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
    policy.backoff_min.saturating_mul(factor).min(policy.backoff_max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const POLICY: RetrySpec = RetrySpec {
        attempts: 3,
        backoff_min: Duration::from_millis(100),
        backoff_max: Duration::from_millis(150),
        max_age: None,
    };

    /// What to do next, right away, when no wait is shortened.
    fn next(settlement: &mut Settlement) -> Step {
        settlement.next(Duration::ZERO, 1.0)
    }

    /// What a row does to the call it is in.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Row {
        Good,
        Traps,
        Rejects,
        /// Asks for a retry this many times, then passes.
        Retries(u32),
    }

    /// Runs the machine against a function whose rows behave so; returns calls and how often each row ended well.
    fn run(rows: &[Row]) -> (usize, BTreeMap<u32, u32>, Vec<FailedRow>) {
        let mut settlement = Settlement::new(rows.len() as u32, POLICY);
        let (mut calls, mut good) = (0, BTreeMap::new());
        loop {
            match next(&mut settlement) {
                Step::Done => return (calls, good, settlement.into_failed()),
                Step::Wait(wait) => assert!(wait <= POLICY.backoff_max),
                Step::Call(set) => {
                    calls += 1;
                    if set.iter().any(|&row| rows[row as usize] == Row::Traps) {
                        let trap = CallError::Fault { fault: Fault::Trap, reason: "unreachable".into() };
                        settlement.failed(set, &trap);
                        continue;
                    }
                    let attempt = settlement.attempt();
                    let mut failures = Vec::new();
                    for (at, &row) in set.iter().enumerate() {
                        let kind = match rows[row as usize] {
                            Row::Rejects => Some(FailureKind::Reject),
                            Row::Retries(times) if attempt <= times => Some(FailureKind::Retry),
                            _ => None,
                        };
                        match kind {
                            Some(kind) => failures.push(Failure { row: at as u32, kind, reason: String::new() }),
                            None => *good.entry(row).or_insert(0) += 1,
                        }
                    }
                    settlement.succeeded(&set, &failures);
                }
            }
        }
    }

    fn row() -> impl Strategy<Value = Row> {
        prop_oneof![6 => Just(Row::Good), 1 => Just(Row::Traps), 1 => Just(Row::Rejects), 2 => (1..5u32).prop_map(Row::Retries)]
    }

    proptest! {
        #[test]
        fn every_row_ends_once(rows in prop::collection::vec(row(), 1..80)) {
            let (_, good, failed) = run(&rows);
            for (at, row) in rows.iter().enumerate() {
                let at = at as u32;
                let failures: Vec<_> = failed.iter().filter(|failed| failed.row == at).collect();
                let well = good.get(&at).copied().unwrap_or(0);
                prop_assert_eq!(failures.len() as u32 + well, 1, "row {} ({:?})", at, row);
                let expected = match row {
                    Row::Good => None,
                    Row::Traps => Some(FailedBy::Fault(Fault::Trap)),
                    Row::Rejects => Some(FailedBy::Reject),
                    Row::Retries(times) if *times < POLICY.attempts => None,
                    Row::Retries(_) => Some(FailedBy::Attempts),
                };
                prop_assert_eq!(failures.first().map(|failed| failed.by), expected);
            }
        }

        /// The bound that docs promise for one poison row.
        #[test]
        fn one_poison_row_costs_few_calls(len in 1..2000usize, at in any::<prop::sample::Index>()) {
            let mut rows = vec![Row::Good; len];
            rows[at.index(len)] = Row::Traps;
            let (calls, _, failed) = run(&rows);
            prop_assert_eq!(failed.len(), 1);
            prop_assert!(calls as f64 <= 2.0 + 2.0 * (len as f64).log2().ceil(), "{} calls for {} rows", calls, len);
        }
    }

    #[test]
    fn backoff_doubles_up_to_its_bound() {
        let waits: Vec<u128> = (1..4).map(|attempt| backoff(POLICY, attempt).as_millis()).collect();
        assert_eq!(waits, [100, 150, 150]);
        assert_eq!(backoff(POLICY, 4000), POLICY.backoff_max);
    }

    #[test]
    fn a_row_that_times_out_alone_has_a_second_chance() {
        let timeout = CallError::Fault { fault: Fault::Timeout, reason: "1s".into() };
        let mut settlement = Settlement::new(1, POLICY);
        assert_eq!(next(&mut settlement), Step::Call(vec![0]));
        settlement.failed(vec![0], &timeout);
        assert_eq!(next(&mut settlement), Step::Call(vec![0]));
        settlement.failed(vec![0], &timeout);
        assert_eq!(next(&mut settlement), Step::Done);
        assert_eq!(settlement.into_failed()[0].by, FailedBy::Fault(Fault::Timeout));
    }

    #[test]
    fn a_batch_that_asks_for_a_retry_is_run_again_whole() {
        let mut settlement = Settlement::new(2, POLICY);
        assert_eq!(next(&mut settlement), Step::Call(vec![0, 1]));
        settlement.failed(vec![0, 1], &CallError::Retry("later".into()));
        assert_eq!(next(&mut settlement), Step::Wait(Duration::from_millis(100)));
        assert_eq!(next(&mut settlement), Step::Call(vec![0, 1]));
        settlement.succeeded(&[0, 1], &[]);
        assert_eq!(next(&mut settlement), Step::Done);
    }

    #[test]
    fn no_retry_comes_after_its_time() {
        let policy = RetrySpec { attempts: 100, max_age: Some(Duration::from_secs(1)), ..POLICY };
        let asks = CallError::Retry("later".into());
        let mut settlement = Settlement::new(2, policy);
        let mut age = Duration::ZERO;
        let reached = loop {
            match settlement.next(age, 0.0) {
                Step::Call(rows) => settlement.failed(rows, &asks),
                Step::Wait(wait) => {
                    age += wait;
                    assert!(age <= Duration::from_secs(1));
                }
                Step::Done => break age,
            }
        };
        assert!(reached > Duration::from_millis(900), "{reached:?}");
        let failed = settlement.into_failed();
        assert_eq!(
            failed.iter().map(|failed| (failed.row, failed.by)).collect::<Vec<_>>(),
            [(0, FailedBy::Age), (1, FailedBy::Age)]
        );
        assert!(failed.iter().all(|failed| failed.reason == "later" && failed.attempts > 10));
    }

    #[test]
    fn chance_takes_at_most_half_of_a_wait() {
        for (dice, wait) in [(0.0, 50), (0.5, 75), (1.0, 100)] {
            let mut settlement = Settlement::new(1, POLICY);
            assert_eq!(settlement.next(Duration::ZERO, dice), Step::Call(vec![0]));
            settlement.failed(vec![0], &CallError::Retry(String::new()));
            assert_eq!(settlement.next(Duration::ZERO, dice), Step::Wait(Duration::from_millis(wait)));
        }
    }
}
