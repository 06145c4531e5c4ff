//! What lanes make of an order, with the source's half of it.

use super::*;
use crate::intake::Lanes;

/// Takes its time for each batch, and publishes it as it is.
struct Slow(Duration);

impl Transform for Slow {
    async fn call(&self, batch: &EventBatch) -> Result<Outcome, CallError> {
        tokio::time::sleep(self.0).await;
        Ok(Outcome::pass_through(batch.len()))
    }
}

/// Runs rows of one partition, with keys of so many customers, through lanes: how long it takes.
async fn time_for(rows: i64, customers: i64, lanes: usize, order: Order) -> Duration {
    let (rig, bell) = (Rig::new(), Arc::new(Bell::default()));
    let limits = BatchLimits { max_events: 50, ..LIMITS };
    let dealt = Lanes::new(lanes, order, limits, &rig.tracker, &bell);
    let mut running = tokio::task::JoinSet::new();
    for intake in dealt.intakes() {
        let lane = Lane {
            intake: intake.clone(),
            transform: Arc::new(Slow(Duration::from_millis(10))),
            outputs: vec![rig.sink(&rig.published, "-")],
            order,
            retry: RETRY,
            last_resort: LastResort::<MemorySink>::Drop,
            sender: Sender { pipeline: "test".into(), digest: String::new(), replays: false },
            metrics: rig.metrics.clone(),
        };
        running.spawn(lane.run());
    }
    let before = Instant::now();
    let mut next = 0;
    while next < rows {
        let mut run = dealt.run(0);
        while next < rows {
            let key = format!("customer-{}", next % customers);
            let origin = Origin { slot: rig.slot, offset: next };
            if run.append(origin, Some(key.as_bytes()), Some(b"v"), 0, std::iter::empty()).is_err() {
                break;
            }
            next += 1;
        }
        drop(run);
        if next < rows {
            bell.rung().await;
        }
    }
    dealt.close();
    while let Some(ended) = running.join_next().await {
        ended.unwrap().unwrap();
    }
    assert_eq!(rig.tracker.next(rig.slot), Some(rows));
    assert_eq!(rig.metrics.published[0].get(), rows as u64);
    before.elapsed()
}

/// Eight lanes on one partition, ten milliseconds for each batch: at least six times what one lane does.
#[tokio::test(start_paused = true)]
async fn keys_of_one_partition_run_side_by_side() {
    let one = time_for(20_000, 1_000, 1, Order::Key).await;
    assert_eq!(one.as_secs(), 4, "400 batches");
    for order in [Order::Key, Order::None] {
        let eight = time_for(20_000, 1_000, 8, order).await;
        assert!(one >= eight * 6, "{order:?}: {one:?} against {eight:?}");
    }
    let by_partition = time_for(20_000, 1_000, 8, Order::Partition).await;
    assert!(by_partition >= one, "a partition has one lane");
}

#[tokio::test(start_paused = true)]
async fn without_order_a_retry_holds_nothing_but_itself() {
    let rig = Rig::new();
    // The first of the two calls that it asks for a retry in is undone by the trap.
    assert!(rig.append(0, &["a", "retry2", "b", "trap"]) && rig.append(4, &["c", "reject", "d"]));
    rig.intake.close();
    let mut lane = rig.lane(rig.dead_letter());
    lane.order = Order::None;
    let mut run = pin!(lane.run());
    // The clock is paused: a timeout passes only when the lane has nothing left to do but wait for the retry.
    assert!(tokio::time::timeout(Duration::from_millis(1), &mut run).await.is_err());
    assert_eq!(rig.published(), ["a", "b", "c", "d"]);
    assert_eq!(rig.tracker.next(rig.slot), Some(0), "what it is in is not confirmed");
    run.await.unwrap();
    assert_eq!(rig.published(), ["a", "b", "c", "d", "retry2"]);
    assert_eq!(*rig.letters.lock().unwrap(), ["reject", "trap"]);
    assert_eq!(rig.tracker.next(rig.slot), Some(7));
    assert_eq!(rig.metrics.ended(), rig.metrics.received.get());
}

#[tokio::test(start_paused = true)]
async fn batches_that_wait_for_a_retry_are_bounded() {
    let rig = Rig::new();
    let mut lane = rig.lane(rig.dead_letter());
    lane.order = Order::None;
    lane.retry = RetrySpec { attempts: 100, backoff_min: Duration::from_secs(10), ..RETRY };
    let mut run = pin!(lane.run());
    let (mut next, mut refusals) = (0i64, 0);
    while refusals < 3 {
        assert!(tokio::time::timeout(Duration::from_millis(1), &mut run).await.is_err(), "the lane ended");
        if rig.append(next, &[format!("retry1-{next}").as_str()]) {
            next += 1;
        } else {
            refusals += 1;
        }
        assert!(next < 1000, "the lane takes without bound");
    }
    assert_eq!(rig.metrics.batches.get(), UNORDERED_BATCHES_MAX as u64);
    rig.intake.close();
    run.await.unwrap();
    assert_eq!(rig.published().len() as i64, next);
    assert_eq!(rig.tracker.next(rig.slot), Some(next));
}
