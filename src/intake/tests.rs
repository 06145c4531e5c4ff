//! The intake's bounds and its timing, on a paused clock.

use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::delivery::{Slot, TopicPartition};

fn intake(max_events: usize, max_bytes: usize, max_wait: Duration) -> (Arc<Tracker>, Slot, Intake) {
    let tracker = Arc::new(Tracker::default());
    let slot = tracker.assign(TopicPartition { topic: "orders".into(), partition: 0 });
    let limits = BatchLimits { max_events, max_bytes, max_wait };
    (tracker.clone(), slot, Intake::new(limits, tracker, Arc::new(Bell::default())))
}

fn append(intake: &Intake, slot: Slot, offset: i64, bytes: usize) -> Result<(), Full> {
    let value = vec![b'v'; bytes];
    intake.writer().append(Origin { slot, offset }, None, Some(&value), 0, std::iter::empty())
}

#[tokio::test(start_paused = true)]
async fn a_full_intake_refuses_and_rings_when_it_has_room() {
    let (tracker, slot, intake) = intake(2, 1 << 20, Duration::ZERO);
    let room = 2 * (SEALED_BATCHES_MAX as i64 + 1);
    for offset in 0..room {
        append(&intake, slot, offset, 1).unwrap();
    }
    assert_eq!(append(&intake, slot, room, 1), Err(Full));
    assert!(!intake.bell.wait(Duration::ZERO));
    let first = intake.take().await.unwrap();
    assert_eq!(first.batch.offsets.to_vec(), [0, 1]);
    assert!(intake.bell.wait(Duration::ZERO), "the source is told that there is room");
    append(&intake, slot, room, 1).unwrap();
    assert_eq!(tracker.next(slot), Some(0));
    first.token.done();
    assert_eq!(tracker.next(slot), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_cut_parts_what_came_before_from_what_comes_after() {
    let tracker = Arc::new(Tracker::transactional());
    let slot = tracker.assign(TopicPartition { topic: "orders".into(), partition: 0 });
    let limits = BatchLimits { max_events: 10, max_bytes: 1 << 20, max_wait: Duration::ZERO };
    let intake = Intake::new(limits, tracker.clone(), Arc::new(Bell::default()));
    let sets = tracker.sets().unwrap();
    append(&intake, slot, 0, 1).unwrap();
    append(&intake, slot, 1, 1).unwrap();
    let first = sets.cut();
    append(&intake, slot, 2, 1).unwrap();
    sets.open(first);

    let (before, after) = (intake.take().await.unwrap(), intake.take().await.unwrap());
    assert_eq!((before.batch.offsets.to_vec(), after.batch.offsets.to_vec()), (vec![0, 1], vec![2]));
    assert!(before.token.admitted().now_or_never().is_some());
    assert!(after.token.admitted().now_or_never().is_none(), "its transaction has not begun");
    assert!(!sets.is_ended(first));
    before.token.done();
    assert!(sets.is_ended(first));
    assert_eq!(tracker.next(slot), Some(2), "what is committed with the first transaction");
    let second = sets.cut();
    sets.open(second);
    assert!(after.token.admitted().now_or_never().is_some());
    after.token.done();
    assert!(sets.is_ended(second));
}

#[tokio::test(start_paused = true)]
async fn the_wait_counts_from_the_first_event() {
    let wait = Duration::from_millis(100);
    let (_, slot, intake) = intake(10, 1 << 20, wait);
    append(&intake, slot, 0, 1).unwrap();
    let before = Instant::now();
    tokio::time::advance(Duration::from_millis(60)).await;
    append(&intake, slot, 1, 1).unwrap();
    assert_eq!(intake.take().await.unwrap().batch.len(), 2);
    assert_eq!(before.elapsed(), wait);
}

#[tokio::test(start_paused = true)]
async fn a_full_batch_does_not_wait() {
    let (_, slot, intake) = intake(2, 1 << 20, Duration::from_secs(60));
    append(&intake, slot, 0, 1).unwrap();
    append(&intake, slot, 1, 1).unwrap();
    let before = Instant::now();
    assert_eq!(intake.take().await.unwrap().batch.len(), 2);
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_batch_in_a_hurry_does_not_wait_but_the_next_does() {
    let wait = Duration::from_secs(60);
    let (_, slot, intake) = intake(10, 1 << 20, wait);
    append(&intake, slot, 0, 1).unwrap();
    intake.hurry();
    let before = Instant::now();
    assert_eq!(intake.take().await.unwrap().batch.len(), 1);
    assert_eq!(before.elapsed(), Duration::ZERO);
    append(&intake, slot, 1, 1).unwrap();
    assert_eq!(intake.take().await.unwrap().batch.len(), 1);
    assert_eq!(before.elapsed(), wait);
}

#[tokio::test(start_paused = true)]
async fn a_closed_intake_gives_what_is_left() {
    let (_, slot, intake) = intake(10, 1 << 20, Duration::from_secs(60));
    append(&intake, slot, 0, 1).unwrap();
    intake.close();
    assert_eq!(intake.take().await.unwrap().batch.len(), 1);
    assert!(intake.take().await.is_none());
}

proptest! {
    /// Whatever is appended and taken: nothing is lost or reordered, and every batch keeps to its bounds.
    #[test]
    fn bounds_and_order_hold(
        sizes in prop::collection::vec(0..60usize, 1..200),
        take_every in 1..20usize,
        max_events in 1..10usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let max_bytes = 100;
            let (tracker, slot, intake) = intake(max_events, max_bytes, Duration::ZERO);
            let mut offsets = Vec::new();
            let mut ended = |delivery: Delivery| {
                let bytes = delivery.batch.values.value_data().len();
                assert!(delivery.batch.len() <= max_events && (bytes <= max_bytes || delivery.batch.len() == 1));
                offsets.extend(delivery.batch.offsets.iter().copied());
                delivery.token.done();
            };
            for (offset, &bytes) in sizes.iter().enumerate() {
                while append(&intake, slot, offset as i64, bytes) == Err(Full) {
                    ended(intake.take().await.unwrap());
                }
                if offset % take_every == 0 {
                    ended(intake.take().await.unwrap());
                }
            }
            intake.close();
            while let Some(delivery) = intake.take().await {
                ended(delivery);
            }
            assert_eq!(offsets, (0..sizes.len() as i64).collect::<Vec<_>>());
            assert_eq!(tracker.next(slot), Some(sizes.len() as i64));
        });
    }
}
