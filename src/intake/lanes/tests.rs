//! To which lane rows go, and what a full one holds up.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::delivery::{Slot, TopicPartition};
use crate::intake::Delivery;

struct Bench {
    lanes: Lanes,
    tracker: Arc<Tracker>,
    slot: Slot,
    next: i64,
}

impl Bench {
    fn new(count: usize, order: Order, max_events: usize) -> Self {
        let tracker = Arc::new(Tracker::default());
        let slot = tracker.assign(TopicPartition { topic: "orders".into(), partition: 0 });
        let limits = BatchLimits { max_events, max_bytes: 1 << 20, max_wait: Duration::ZERO };
        Self { lanes: Lanes::new(count, order, limits, &tracker, &Arc::default()), tracker, slot, next: 0 }
    }

    /// Appends rows with these keys, as far as there is room: how many it was.
    fn append(&mut self, keys: impl IntoIterator<Item = Option<String>>) -> usize {
        let mut run = self.lanes.run(0);
        let before = self.next;
        for key in keys {
            let origin = Origin { slot: self.slot, offset: self.next };
            let appended = run.append(origin, key.as_deref().map(str::as_bytes), None, 0, std::iter::empty());
            if appended.is_err() {
                break;
            }
            self.next += 1;
        }
        usize::try_from(self.next - before).unwrap()
    }

    fn take(&self, lane: usize) -> Option<Delivery> {
        self.lanes.intakes()[lane].take().now_or_never().flatten()
    }

    /// How many rows wait in each lane; they are taken.
    fn waiting(&self) -> Vec<usize> {
        let in_lane = |lane| {
            std::iter::from_fn(move || self.take(lane)).map(|delivery| {
                let rows = delivery.batch.len();
                delivery.token.done();
                rows
            })
        };
        (0..self.lanes.intakes().len()).map(|lane| in_lane(lane).sum()).collect()
    }
}

fn key(number: usize) -> Option<String> {
    Some(format!("customer-{number}"))
}

#[test]
fn keys_are_dealt_evenly_and_keyless_rows_stay_at_home() {
    let mut bench = Bench::new(8, Order::Key, 10_000);
    assert_eq!(bench.append((0..8_000).map(key)), 8_000);
    let waiting = bench.waiting();
    assert!(waiting.iter().all(|rows| (850..1_150).contains(rows)), "{waiting:?}");
    assert_eq!(bench.append((0..100).map(|_| None)), 100);
    assert_eq!(bench.waiting(), [100, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_partition_stays_in_its_lane() {
    let mut bench = Bench::new(4, Order::Partition, 10);
    assert_eq!(bench.append((0..100).map(key)), 30, "two sealed batches and an open one");
    assert_eq!(bench.waiting(), [30, 0, 0, 0]);
}

#[test]
fn without_order_rows_go_where_there_is_room() {
    let mut bench = Bench::new(3, Order::None, 10);
    assert_eq!(bench.append((0..200).map(key)), 90, "until every lane is full");
    assert_eq!(bench.waiting(), [30, 30, 30]);
    for _ in 0..6 {
        assert_eq!(bench.append([key(0)]), 1);
    }
    assert_eq!(bench.waiting(), [2, 2, 2], "a run is dealt to the next lane");
}

#[test]
fn a_slow_key_does_not_hold_the_others_until_much_waits_for_it() {
    let mut bench = Bench::new(8, Order::Key, 10);
    let slow = lane_of(b"customer-0", 8);
    let mut others = 0;
    // One event of ten is for the slow lane, which takes none.
    while bench.append([key(0)]) == 1 {
        others +=
            bench.append((1..).map(key).filter(|key| lane_of(key.as_deref().unwrap().as_bytes(), 8) != slow).take(9));
        for lane in (0..8).filter(|lane| *lane != slow) {
            while let Some(delivery) = bench.take(lane) {
                delivery.token.done();
            }
        }
        assert!(others < 1_000_000, "it has no bound");
    }
    let batches = QUEUE_BYTES / super::super::BATCH_OVERHEAD;
    assert!(others > 9 * 10 * (batches - batches / 10), "{others}");
    assert_eq!(bench.tracker.next(bench.slot), Some(0), "nothing behind it is confirmed");
    let waiting = bench.waiting();
    assert_eq!(bench.tracker.next(bench.slot), Some(bench.next));
    assert!(waiting[slow] > 10 * (batches - batches / 10));
}

proptest! {
    /// Lanes take and end batches in any order: rows of a key keep theirs, nothing is lost, and the watermark passes no
    /// row that has not ended.
    #[test]
    fn keys_keep_their_order_and_the_watermark_is_right(
        keys in prop::collection::vec(prop::option::weighted(0.9, 0..20usize), 1..300),
        count in 1..9usize,
        max_events in 1..8usize,
        seed in any::<u64>(),
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bench = Bench::new(count, Order::Key, max_events);
        let mut taken: Vec<Delivery> = Vec::new();
        let mut seen: BTreeMap<Vec<u8>, Vec<i64>> = BTreeMap::new();
        let mut open: std::collections::BTreeSet<i64> = (0..keys.len() as i64).collect();
        while !open.is_empty() {
            match random.u8(..3) {
                0 => {
                    let rest = keys[bench.next as usize..].iter().map(|number| number.and_then(key)).take(random.usize(1..20));
                    bench.append(rest.collect::<Vec<_>>());
                }
                1 => if let Some(delivery) = bench.take(random.usize(..count)) {
                    for row in 0..delivery.batch.len() {
                        let key = delivery.batch.row(row).key.unwrap_or(b"-").to_vec();
                        seen.entry(key).or_default().push(delivery.batch.origin(row).offset);
                    }
                    taken.push(delivery);
                },
                _ if taken.is_empty() => {}
                _ => {
                    let delivery = taken.swap_remove(random.usize(..taken.len()));
                    delivery.batch.offsets.iter().for_each(|offset| { open.remove(offset); });
                    delivery.token.done();
                }
            }
            let lowest = open.first().copied().unwrap_or(keys.len() as i64);
            prop_assert!(bench.tracker.next(bench.slot).is_none_or(|next| next <= lowest));
        }
        prop_assert_eq!(bench.tracker.next(bench.slot), Some(keys.len() as i64));
        prop_assert!(seen.values().all(|offsets| offsets.is_sorted()));
        prop_assert_eq!(seen.values().map(Vec::len).sum::<usize>(), keys.len());
    }
}
