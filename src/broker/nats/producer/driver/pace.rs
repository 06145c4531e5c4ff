//! How many messages are on their way at once: pure.
//!
//! More than the server works on only wait there, and each of them is a subject more that it has to know: see `inbox`. As
//! many as arrive while one message goes there and back, twice, keep a server busy, however far it is.

use std::time::Duration;

use tokio::time::Instant;

/// As few as that even where the server is near.
const LEAST: usize = 512;
/// As many as that even where it is far.
const MOST: usize = 8_192;
/// How long answers are counted before they make a rate.
const INTERVAL: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub(super) struct Pace {
    limit: usize,
    /// The shortest time there and back that was seen.
    shortest: Option<Duration>,
    /// A message whose time is taken, and when it was sent.
    timed: Option<(u64, Instant)>,
    /// Answers since then.
    answers: usize,
    since: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { limit: LEAST, shortest: None, timed: None, answers: 0, since: now }
    }

    /// How many messages may be on their way.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// A message is sent. The clock is asked only when its time is taken.
    pub(super) fn sent(&mut self, number: u64, now: impl FnOnce() -> Instant) {
        if self.timed.is_none() {
            self.timed = Some((number, now()));
        }
    }

    /// A message was answered.
    pub(super) fn answered(&mut self, number: u64, now: impl FnOnce() -> Instant) {
        self.answers += 1;
        if let Some((_, sent)) = self.timed.take_if(|(timed, _)| *timed == number) {
            let time = now() - sent;
            self.shortest = Some(self.shortest.map_or(time, |shortest| shortest.min(time)));
        }
    }

    /// All answers that were there have been counted.
    pub(super) fn settle(&mut self, now: Instant) {
        let passed = now - self.since;
        if let Some(shortest) = self.shortest
            && passed >= INTERVAL
        {
            let meanwhile = self.answers as f64 * shortest.as_secs_f64() / passed.as_secs_f64();
            self.limit = ((2.0 * meanwhile) as usize).clamp(LEAST, MOST);
            (self.answers, self.since) = (0, now);
        }
    }

    /// What was on its way is not waited for; the server may be another one.
    pub(super) fn forget(&mut self, now: Instant) {
        *self = Self::new(now);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// The limit after two seconds, with a server that is so far away, takes so many messages a second one after the
    /// other, and always has some to take; and how many it took in the last one.
    fn run(way: Duration, rate: u64) -> (usize, usize) {
        let begin = Instant::now();
        let (mut pace, mut on_way, mut number) = (Pace::new(begin), VecDeque::new(), 0);
        let each = Duration::from_nanos(1_000_000_000 / rate);
        let (mut busy, mut taken) = (begin, 0);
        for tick in 0..20_000 {
            let now = begin + Duration::from_micros(100) * tick;
            while on_way.front().is_some_and(|(_, answered)| *answered <= now) {
                let (number, _) = on_way.pop_front().unwrap();
                pace.answered(number, || now);
                taken += usize::from(tick >= 10_000);
            }
            pace.settle(now);
            while on_way.len() < pace.limit() {
                pace.sent(number, || now);
                busy = busy.max(now + way / 2) + each;
                on_way.push_back((number, busy + way / 2));
                number += 1;
            }
        }
        (pace.limit(), taken)
    }

    #[test]
    fn a_server_that_is_near_gets_few_and_is_busy_all_the_same() {
        let (limit, taken) = run(Duration::from_micros(300), 100_000);
        assert!(limit == LEAST && taken > 95_000, "{limit}, {taken}");
    }

    #[test]
    fn a_server_that_is_far_is_busy_too() {
        let (limit, taken) = run(Duration::from_millis(50), 50_000);
        assert!((2_500..=MOST).contains(&limit) && taken > 45_000, "{limit}, {taken}");
    }

    #[test]
    fn there_is_a_bound() {
        let (limit, taken) = run(Duration::from_millis(200), 100_000);
        assert!(limit == MOST && taken > 30_000, "{limit}, {taken}");
    }
}
