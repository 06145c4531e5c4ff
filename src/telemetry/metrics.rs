//! Every count in one place. Cheap enough to be always on: a few atomic additions for each batch.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Buckets for a power of two are split in this many.
const SPLIT: usize = 8;
/// Covers 1 µs to 2^32 µs (71 minutes).
const BUCKETS: usize = 33 * SPLIT;

/// A histogram of durations with a relative error of at most 1/8, from a microsecond to an hour.
#[derive(Debug)]
pub struct Histogram {
    buckets: Box<[AtomicU64]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Histogram {
    /// Records `count` events that took `duration` each.
    pub fn record(&self, duration: Duration, count: u64) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.buckets[Self::bucket(micros)].fetch_add(count, Relaxed);
    }

    /// The counts so far, to take quantiles of, or of the difference between two.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect())
    }

    fn bucket(micros: u64) -> usize {
        let micros = micros.max(1);
        let exponent = micros.ilog2() as usize;
        let within = ((micros - (1 << exponent)) * SPLIT as u64) >> exponent;
        (exponent * SPLIT + within as usize).min(BUCKETS - 1)
    }

    fn upper(bucket: usize) -> Duration {
        let (exponent, within) = (bucket / SPLIT, bucket % SPLIT);
        Duration::from_micros((1u64 << exponent) + (((within as u64 + 1) << exponent) / SPLIT as u64))
    }
}

/// A histogram's counts at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot(Vec<u64>);

impl Snapshot {
    /// What was recorded since `earlier`.
    pub fn since(&self, earlier: &Snapshot) -> Snapshot {
        Snapshot(self.0.iter().zip(&earlier.0).map(|(now, then)| now - then).collect())
    }

    /// The duration that a share `q` (0 to 1) of the events stayed under; `None` when there were none.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let total: u64 = self.0.iter().sum();
        if total == 0 {
            return None;
        }
        let rank = ((total as f64 * q).ceil() as u64).clamp(1, total);
        let mut seen = 0;
        let bucket = self.0.iter().position(|&count| {
            seen += count;
            seen >= rank
        })?;
        Some(Histogram::upper(bucket))
    }
}

/// The counts of one pipeline. For every event received exactly one of `processed`, `dropped`, `dead_lettered` and
/// `discarded` is counted in the end; `published` counts the events that came out, of which one input may cause several.
#[derive(Debug, Default)]
pub struct PipelineMetrics {
    /// Events taken by a lane.
    pub received: Counter,
    /// Events that caused at least one published event, all acknowledged.
    pub processed: Counter,
    /// Events for which the function published nothing.
    pub dropped: Counter,
    /// Events that went to the dead-letter topic, acknowledged.
    pub dead_lettered: Counter,
    /// Events that failed and were let go by `then: drop`.
    pub discarded: Counter,
    /// Published events that were acknowledged, for each output.
    pub published: Vec<Counter>,
    /// Batches taken by a lane.
    pub batches: Counter,
    /// Calls of the function.
    pub calls: Counter,
    /// Events that were run again.
    pub retried: Counter,
    /// From the moment a batch's first event was taken in until all of the batch was acknowledged.
    pub latency: Histogram,
}

impl PipelineMetrics {
    /// Counts for a pipeline with this many outputs.
    pub fn new(outputs: usize) -> Self {
        Self { published: (0..outputs).map(|_| Counter::default()).collect(), ..Self::default() }
    }

    /// Events that have ended, in whatever way.
    pub fn ended(&self) -> u64 {
        self.processed.get() + self.dropped.get() + self.dead_lettered.get() + self.discarded.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_an_eighth() {
        let histogram = Histogram::default();
        for micros in 1..=10_000 {
            histogram.record(Duration::from_micros(micros), 1);
        }
        let p99 = histogram.snapshot().quantile(0.99).unwrap().as_micros() as f64;
        assert!((9_900.0..=9_900.0 * 1.125 + 1.0).contains(&p99), "{p99}");
        assert_eq!(histogram.snapshot().since(&histogram.snapshot()).quantile(0.5), None);
    }
}
