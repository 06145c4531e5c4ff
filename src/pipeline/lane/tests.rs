//! Lanes against a function and a sink that do as they are told, on a paused clock.

mod order;
mod simulation;

use std::collections::BTreeMap;
use std::sync::Mutex;

use tokio::sync::watch;

use super::*;
use crate::broker::{BrokerErrorKind, PublishReport};
use crate::delivery::{Slot, TopicPartition, Tracker};
use crate::event::{ColumnSource, Failure, FailureKind, HeaderSource, Origin, Outcome};
use crate::function::{CallError, Fault};
use crate::intake::Bell;
use crate::spec::BatchLimits;

const LIMITS: BatchLimits = BatchLimits { max_events: 4, max_bytes: 1 << 20, max_wait: Duration::ZERO };
const RETRY: RetrySpec = RetrySpec {
    attempts: 3,
    backoff_min: Duration::from_millis(100),
    backoff_max: Duration::from_secs(10),
    max_age: None,
};

/// Publishes each value as it is, except: `trap…` traps, `reject…` is rejected, `retry2…` asks twice for a retry,
/// `drop…` is dropped, `twice…` is published twice.
#[derive(Default)]
struct Obedient {
    seen: Mutex<BTreeMap<String, u32>>,
}

impl Transform for Obedient {
    async fn call(&self, batch: &EventBatch) -> Result<Outcome, CallError> {
        let mut outcome = Outcome {
            causes: Vec::new(),
            outputs: Vec::new(),
            keys: ColumnSource::Inherit,
            values: ColumnSource::Inherit,
            headers: HeaderSource::Inherit,
            failures: Vec::new(),
        };
        for row in 0..batch.len() as u32 {
            let value = text(batch.row(row as usize).value);
            let fail = |kind| Failure { row, kind, reason: value.clone() };
            if value.starts_with("trap") {
                return Err(CallError::Fault { fault: Fault::Trap, reason: value });
            } else if value.starts_with("reject") {
                outcome.failures.push(fail(FailureKind::Reject));
            } else if let Some(times) = value.strip_prefix("retry") {
                let mut seen = self.seen.lock().unwrap();
                let seen = seen.entry(value.clone()).or_insert(0);
                *seen += 1;
                if *seen <= times[..1].parse().unwrap() {
                    outcome.failures.push(fail(FailureKind::Retry));
                } else {
                    outcome.causes.push(row);
                }
            } else if value.starts_with("twice") {
                outcome.causes.extend([row, row]);
            } else if !value.starts_with("drop") {
                outcome.causes.push(row);
            }
        }
        Ok(outcome)
    }
}

/// Remembers what was published, acknowledges while `open`, and refuses values that begin with `refuses`.
#[derive(Clone)]
struct MemorySink {
    published: Arc<Mutex<Vec<String>>>,
    open: watch::Receiver<bool>,
    refuses: &'static str,
    broken: bool,
}

impl Sink for MemorySink {
    async fn publish(&self, publication: Publication) -> Result<Acknowledgement, BrokerError> {
        let mut report = PublishReport::default();
        for at in 0..publication.len() {
            let value = text(publication.event(at).value);
            if value.starts_with(self.refuses) {
                report.refused.push((at as u32, broker_error(BrokerErrorKind::TooLarge)));
            } else {
                self.published.lock().unwrap().push(value);
            }
        }
        let (mut open, broken) = (self.open.clone(), self.broken);
        Ok(Box::pin(async move {
            open.wait_for(|open| *open).await.expect("the test holds the sender");
            if broken { Err(broker_error(BrokerErrorKind::Fatal)) } else { Ok(report) }
        }))
    }
}

fn broker_error(kind: BrokerErrorKind) -> BrokerError {
    BrokerError { kind, action: "publish".into(), reason: "told to".into() }
}

fn text(value: Option<&[u8]>) -> String {
    String::from_utf8(value.unwrap().to_vec()).unwrap()
}

/// A lane with its surroundings.
struct Rig {
    tracker: Arc<Tracker>,
    slot: Slot,
    intake: Arc<Intake>,
    open: watch::Sender<bool>,
    metrics: Arc<PipelineMetrics>,
    published: Arc<Mutex<Vec<String>>>,
    letters: Arc<Mutex<Vec<String>>>,
}

impl Rig {
    fn new() -> Self {
        let tracker = Arc::new(Tracker::default());
        let slot = tracker.assign(TopicPartition { topic: "orders".into(), partition: 0 });
        let intake = Arc::new(Intake::new(LIMITS, tracker.clone(), Arc::new(Bell::default())));
        Self {
            tracker,
            slot,
            intake,
            open: watch::Sender::new(true),
            metrics: Arc::new(PipelineMetrics::new(1)),
            published: Arc::default(),
            letters: Arc::default(),
        }
    }

    fn sink(&self, published: &Arc<Mutex<Vec<String>>>, refuses: &'static str) -> MemorySink {
        MemorySink { published: published.clone(), open: self.open.subscribe(), refuses, broken: false }
    }

    fn lane(&self, last_resort: LastResort<MemorySink>) -> Lane<Obedient, MemorySink> {
        Lane {
            intake: self.intake.clone(),
            transform: Arc::new(Obedient::default()),
            outputs: vec![self.sink(&self.published, "large")],
            order: Order::Partition,
            retry: RETRY,
            last_resort,
            sender: Sender { pipeline: "test".into(), digest: String::new(), replays: false },
            metrics: self.metrics.clone(),
        }
    }

    fn dead_letter(&self) -> LastResort<MemorySink> {
        LastResort::DeadLetter(self.sink(&self.letters, "large2"))
    }

    /// Appends these values from `first`; true when all had room.
    fn append(&self, first: i64, values: &[&str]) -> bool {
        let mut writer = self.intake.writer();
        values.iter().enumerate().all(|(at, value)| {
            let origin = Origin { slot: self.slot, offset: first + at as i64 };
            writer.append(origin, None, Some(value.as_bytes()), 0, std::iter::empty()).is_ok()
        })
    }

    fn published(&self) -> Vec<String> {
        self.published.lock().unwrap().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_retried_event_keeps_its_place_and_good_ones_run_once() {
    let rig = Rig::new();
    assert!(rig.append(0, &["a", "retry2", "b", "drop"]));
    rig.intake.close();
    let before = Instant::now();
    rig.lane(rig.dead_letter()).run().await.unwrap();
    assert_eq!(rig.published(), ["a", "retry2", "b"]);
    let waited = before.elapsed();
    assert!(waited >= Duration::from_millis(150) && waited <= Duration::from_millis(301), "{waited:?}");
    assert_eq!(rig.tracker.next(rig.slot), Some(4));
    assert_eq!((rig.metrics.processed.get(), rig.metrics.dropped.get()), (3, 1));
    assert_eq!((rig.metrics.calls.get(), rig.metrics.retried.get()), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn failed_events_become_dead_letters_and_the_counts_add_up() {
    let rig = Rig::new();
    assert!(rig.append(0, &["a", "trap", "twice", "reject", "retry9", "large", "drop", "b"]));
    rig.intake.close();
    rig.lane(rig.dead_letter()).run().await.unwrap();
    assert_eq!(rig.published(), ["a", "twice", "twice", "b"]);
    assert_eq!(*rig.letters.lock().unwrap(), ["trap", "reject", "retry9", "large"]);
    assert_eq!((rig.metrics.processed.get(), rig.metrics.dropped.get(), rig.metrics.dead_lettered.get()), (3, 1, 4));
    assert_eq!(rig.tracker.next(rig.slot), Some(8));
    assert_eq!(rig.metrics.ended(), rig.metrics.received.get());
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_is_refused_stops_the_lane_and_confirms_nothing() {
    let rig = Rig::new();
    assert!(rig.append(0, &["a", "large2"]));
    rig.intake.close();
    let error = rig.lane(rig.dead_letter()).run().await.unwrap_err();
    assert!(matches!(&error, LaneError::DeadLetter { place, .. } if place == "orders[0]@1"), "{error}");
    assert_eq!(rig.tracker.next(rig.slot), Some(0));
    assert_eq!(rig.tracker.abandoned(), 1);
}

#[tokio::test(start_paused = true)]
async fn stop_confirms_nothing_of_the_batch() {
    let rig = Rig::new();
    assert!(rig.append(0, &["a", "reject", "b"]));
    rig.intake.close();
    let error = rig.lane(LastResort::Stop).run().await.unwrap_err();
    assert!(matches!(&error, LaneError::Stop { by: FailedBy::Reject, .. }), "{error}");
    assert_eq!(rig.tracker.next(rig.slot), Some(0));
}

#[tokio::test(start_paused = true)]
async fn drop_counts_and_goes_on() {
    let rig = Rig::new();
    assert!(rig.append(0, &["a", "reject", "b"]));
    rig.intake.close();
    rig.lane(LastResort::Drop).run().await.unwrap();
    assert_eq!((rig.metrics.discarded.get(), rig.metrics.processed.get()), (1, 2));
    assert_eq!(rig.tracker.next(rig.slot), Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_publish_error_ends_the_lane_and_confirms_nothing() {
    let rig = Rig::new();
    assert!(rig.append(0, &["a"]));
    let mut lane = rig.lane(rig.dead_letter());
    lane.outputs[0].broken = true;
    let error = lane.run().await.unwrap_err();
    assert!(matches!(error, LaneError::Broker(BrokerError { kind: BrokerErrorKind::Fatal, .. })));
    assert_eq!(rig.tracker.next(rig.slot), Some(0));
}

/// Without acknowledgements a lane takes a bounded number of batches, and goes on when they come.
#[tokio::test(start_paused = true)]
async fn batches_in_flight_are_bounded() {
    let rig = Rig::new();
    rig.open.send_replace(false);
    let mut lane = pin!(rig.lane(rig.dead_letter()).run());
    let (mut next, mut refusals) = (0i64, 0);
    while refusals < 3 {
        // The clock is paused: a timeout passes only when the lane has nothing left to do.
        let ended = tokio::time::timeout(Duration::from_millis(1), &mut lane).await;
        assert!(ended.is_err(), "the lane ended");
        if rig.append(next, &["e"]) {
            next += 1;
        } else {
            refusals += 1;
        }
        assert!(next < 1000, "the lane takes without bound");
    }
    assert_eq!(rig.metrics.batches.get(), IN_FLIGHT_BATCHES_MAX as u64);
    assert_eq!(rig.tracker.next(rig.slot), Some(0));
    rig.open.send_replace(true);
    rig.intake.close();
    lane.await.unwrap();
    assert_eq!(rig.published().len() as i64, next);
    assert_eq!(rig.tracker.next(rig.slot), Some(next));
}

#[tokio::test(start_paused = true)]
async fn a_refused_event_tells_the_attempts_that_it_took() {
    let rig = Rig::new();
    assert!(rig.append(0, &["a", "retry1"]));
    let mut lane = rig.lane(rig.dead_letter());
    lane.outputs[0].refuses = "retry";
    let (work, wait) = lane.publish(rig.intake.take().await.unwrap(), &tokio::sync::Mutex::default()).await.unwrap();
    assert!(wait.is_none());
    let failed = lane.finish(work).await.unwrap();
    let told: Vec<_> = failed.iter().map(|failure| (failure.row, failure.by, failure.attempts)).collect();
    assert_eq!(told, [(1, FailedBy::Publish, 2)]);
}
