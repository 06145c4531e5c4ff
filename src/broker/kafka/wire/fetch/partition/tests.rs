//! One partition: which rows of what a broker sends reach the lane.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use proptest::prelude::*;

use super::*;
use crate::broker::kafka::wire::fake::{LOG_APPEND_TIME, Log, Raw, TIME, set};
use crate::delivery::Tracker;
use crate::spec::{BatchLimits, Order};

/// A partition, and the lane that it fills.
struct Bench {
    partition: Partition,
    lanes: Lanes,
    rows: Vec<(i64, String)>,
}

impl Bench {
    fn at(position: i64) -> Self {
        Self::with(position, 1_000_000, 1 << 20)
    }

    fn with(position: i64, max_events: usize, max_bytes: usize) -> Self {
        let tracker = Arc::new(Tracker::default());
        let partition = crate::delivery::TopicPartition { topic: "orders".into(), partition: 3 };
        let slot = tracker.assign(partition.clone());
        let limits = BatchLimits { max_events, max_bytes, max_wait: Duration::ZERO };
        Self {
            partition: Partition::new(Assignment { slot, partition }, 0, Some(position)),
            lanes: Lanes::new(1, Order::Partition, limits, &tracker, &Arc::default()),
            rows: Vec::new(),
        }
    }

    /// The lane takes a batch, if there is one.
    fn lane(&mut self) -> bool {
        let Some(delivery) = self.lanes.intakes()[0].take().now_or_never().flatten() else { return false };
        for at in 0..delivery.batch.len() {
            let event = delivery.batch.row(at);
            let value = String::from_utf8_lossy(event.value.unwrap_or(b"-")).into_owned();
            self.rows.push((delivery.batch.origin(at).offset, value));
        }
        delivery.token.done();
        true
    }

    /// Everything that came reaches the lane.
    fn all(&mut self) -> Result<Vec<i64>, Stuck> {
        let result = loop {
            match self.partition.take(&self.lanes) {
                Ok(Turn::Empty) => break Ok(()),
                Ok(_) => while self.lane() {},
                Err(stuck) => break Err(stuck),
            }
        };
        while self.lane() {}
        result.map(|()| self.rows.iter().map(|(offset, _)| *offset).collect())
    }

    /// The offsets that a fetch brings.
    fn fetch(&mut self, bytes: Bytes, aborted: &[(i64, i64)]) -> Vec<i64> {
        let aborted = aborted.iter().map(|&(producer_id, first_offset)| Aborted { producer_id, first_offset });
        self.partition.accept(bytes, aborted.collect()).unwrap();
        self.all().unwrap()
    }
}

#[test]
fn rows_below_the_position_are_skipped() {
    let mut bench = Bench::at(7);
    assert_eq!(bench.fetch(set([Raw::whole(0, 4), Raw::whole(5, 9), Raw::whole(10, 11)]), &[]), [7, 8, 9, 10, 11]);
    assert_eq!(bench.partition.position, Some(12));
    assert_eq!(bench.partition.last(), Some(11));
    assert!(bench.partition.is_handed_over());
}

#[test]
fn what_compaction_left_moves_the_position_whole() {
    let mut bench = Bench::at(0);
    let batches = [Raw::of(0, 9, [2, 5]), Raw::of(10, 19, []), Raw::of(30, 39, [30, 39])];
    assert_eq!(bench.fetch(set(batches), &[]), [2, 5, 30, 39]);
    assert_eq!(bench.partition.position, Some(40));
    // Only a batch without rows.
    assert_eq!(bench.fetch(set([Raw::of(40, 49, [])]), &[]).len(), 4);
    assert_eq!(bench.partition.position, Some(50));
    assert!(bench.partition.is_handed_over());
}

#[test]
fn control_batches_hold_no_rows_and_are_passed_at_the_end() {
    let mut bench = Bench::at(0);
    let batches = [Raw::whole(0, 1).by(7), Raw::marker(2, 7, true)];
    assert_eq!(bench.fetch(set(batches), &[]), [0, 1]);
    assert_eq!(bench.partition.position, Some(3));
    assert!(bench.partition.is_handed_over(), "nothing waits behind the marker");
    // A fetch that brings nothing but a marker.
    bench.partition.accept(set([Raw::marker(3, 8, false)]), Vec::new()).unwrap();
    assert_eq!(bench.partition.position, Some(4));
    assert!(!bench.partition.is_handed_over());
    assert_eq!(bench.all().unwrap(), [0, 1]);
    assert!(bench.partition.is_handed_over());
}

#[test]
fn aborted_transactions_of_several_producers_are_skipped() {
    let batches = || {
        set([
            Raw::whole(0, 1).by(1),
            Raw::whole(2, 3).by(2),
            Raw::whole(4, 4),
            Raw::whole(5, 6).by(1),
            Raw::marker(7, 1, false),
            Raw::whole(8, 9).by(1),
            Raw::whole(10, 11).by(2),
            Raw::marker(12, 2, true),
            Raw::marker(13, 1, true),
            Raw::whole(14, 14).by(2),
            Raw::marker(15, 2, false),
            // Not in a transaction, though of the same producer.
            Raw::whole(16, 16),
        ])
    };
    let visible = [2, 3, 4, 8, 9, 10, 11, 16];
    for aborted in [[(1, 0), (2, 14)], [(2, 14), (1, 0)]] {
        assert_eq!(Bench::at(0).fetch(batches(), &aborted), visible, "{aborted:?}");
    }
    // From the middle of an aborted transaction on: the broker tells of it though it began before.
    let rest: Vec<i64> = visible.iter().copied().filter(|offset| *offset >= 6).collect();
    assert_eq!(Bench::at(6).fetch(batches(), &[(2, 14), (1, 0)]), rest);
}

#[test]
fn an_aborted_transaction_goes_on_in_the_next_fetch() {
    let mut bench = Bench::at(0);
    assert_eq!(bench.fetch(set([Raw::whole(0, 1), Raw::whole(2, 3).by(1)]), &[(1, 2)]), [0, 1]);
    let rest = [Raw::whole(4, 5).by(1), Raw::marker(6, 1, false), Raw::whole(7, 7).by(1), Raw::marker(8, 1, true)];
    assert_eq!(bench.fetch(set(rest), &[(1, 2)]), [0, 1, 7]);
}

#[test]
fn the_time_of_the_broker_holds_where_the_topic_says_so() {
    let mut bench = Bench::at(0);
    let mut stamped = Raw::whole(1, 2);
    stamped.attributes |= LOG_APPEND_TIME;
    stamped.max_timestamp = TIME + 5_000;
    bench.partition.accept(set([Raw::whole(0, 0), stamped]), Vec::new()).unwrap();
    assert_eq!(bench.partition.take(&bench.lanes).unwrap(), Turn::Moved);
    let delivery = bench.lanes.intakes()[0].take().now_or_never().flatten().unwrap();
    assert_eq!(&delivery.batch.timestamps[..], [TIME, TIME + 5_000, TIME + 5_000]);
    delivery.token.done();
}

#[test]
fn a_batch_that_is_cut_off_is_fetched_again() {
    let whole = set([Raw::whole(0, 4), Raw::whole(5, 9)]);
    let first = Raw::whole(0, 4).bytes().len();
    for length in first..whole.len() {
        let mut bench = Bench::at(0);
        assert_eq!(bench.fetch(whole.slice(..length), &[]), [0, 1, 2, 3, 4], "{length} bytes");
        assert_eq!(bench.partition.position, Some(5));
        assert_eq!(bench.partition.waiting_bytes(), 0);
    }
    let mut bench = Bench::at(0);
    assert!(bench.fetch(whole.slice(..first - 1), &[]).is_empty());
    assert_eq!(bench.partition.position, Some(0));
}

#[test]
fn every_codec_is_read() {
    for codec in [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let mut bytes = Raw::whole(0, 99).compressed(codec);
        bytes.extend(Raw::whole(100, 149).bytes());
        bytes.extend(Raw::whole(150, 299).compressed(codec));
        let mut bench = Bench::with(50, 7, 1 << 20);
        assert_eq!(bench.fetch(bytes.into(), &[]), (50..300).collect::<Vec<_>>(), "{codec}");
    }
}

#[test]
fn offsets_that_go_back_are_an_error_after_the_rows_before() {
    // A header that is right, and records whose offsets are not.
    let mut wrong = Raw::whole(0, 9);
    wrong.records[6].0 = 2;
    let mut bench = Bench::at(0);
    bench.partition.accept(set([wrong]), Vec::new()).unwrap();
    assert!(matches!(bench.all(), Err(Stuck::WentBack { last: 5, offset: 2 })));
    assert_eq!(bench.rows.len(), 6);
    // A log that was cut off and written anew, below what was read.
    let mut bench = Bench::at(0);
    bench.fetch(set([Raw::whole(0, 9)]), &[]);
    bench.partition.position = Some(4);
    bench.partition.accept(set([Raw::whole(4, 12)]), Vec::new()).unwrap();
    assert!(matches!(bench.all(), Err(Stuck::WentBack { last: 9, offset: 4 })));
}

#[test]
fn a_corrupt_batch_is_an_error_after_the_rows_before() {
    let mut bytes = set([Raw::whole(0, 4), Raw::whole(5, 9)]).to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let mut bench = Bench::at(2);
    bench.partition.accept(bytes.into(), Vec::new()).unwrap();
    let Err(Stuck::Unreadable { offset, error }) = bench.all() else { panic!("the checksum is wrong") };
    assert_eq!(offset, 5);
    assert!(matches!(error, BatchError::Crc { offset: 5, .. }), "{error}");
    assert_eq!(bench.rows.iter().map(|row| row.0).collect::<Vec<_>>(), [2, 3, 4]);
}

#[test]
fn what_comes_before_an_unreadable_header_is_read_first() {
    let mut old = Raw::whole(5, 9).bytes();
    old[16] = 1; // the message format
    let bytes = [Raw::whole(0, 4).bytes(), old.clone()].concat();
    let mut bench = Bench::at(0);
    assert_eq!(bench.fetch(bytes.into(), &[]), [0, 1, 2, 3, 4]);
    assert_eq!(bench.partition.position, Some(5));
    let stuck = bench.partition.accept(old.into(), Vec::new()).unwrap_err();
    assert!(matches!(stuck, Stuck::Unreadable { offset: 5, error: BatchError::Magic { offset: 5, magic: 1 } }));
}

#[test]
fn a_full_lane_resumes_in_the_middle_of_a_batch() {
    let mut bench = Bench::with(0, 10, 1 << 20);
    bench.partition.accept(set([Raw::whole(0, 99)]), Vec::new()).unwrap();
    // Two sealed batches and an open one.
    assert_eq!(bench.partition.take(&bench.lanes).unwrap(), Turn::Full);
    assert_eq!(bench.partition.last(), Some(29));
    assert_eq!(bench.partition.take(&bench.lanes).unwrap(), Turn::Full);
    assert!(bench.lane());
    assert_eq!(bench.partition.take(&bench.lanes).unwrap(), Turn::Full);
    assert_eq!(bench.partition.last(), Some(39));
    assert_eq!(bench.all().unwrap(), (0..100).collect::<Vec<_>>());
}

#[test]
fn a_turn_has_an_end() {
    let mut bench = Bench::at(0);
    bench.partition.accept(set([Raw::whole(0, 2_999)]), Vec::new()).unwrap();
    assert_eq!(bench.partition.take(&bench.lanes).unwrap(), Turn::Moved);
    assert_eq!(bench.partition.last(), Some(RUN_MAX as i64 - 1));
}

/// A batch of a log, or the end of a transaction.
#[derive(Clone, Debug)]
enum Step {
    Batch { producer: Option<i64>, length: i64, left: u16, codec: Compression },
    End { producer: i64, commits: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let codec = prop_oneof![
        4 => Just(Compression::None),
        1 => Just(Compression::Lz4),
        1 => Just(Compression::Zstd),
        1 => Just(Compression::Gzip),
    ];
    let step = prop_oneof![
        4 => (prop::option::of(1..4i64), 1..16i64, any::<u16>(), codec)
            .prop_map(|(producer, length, left, codec)| Step::Batch { producer, length, left, codec }),
        1 => (1..4i64, any::<bool>()).prop_map(|(producer, commits)| Step::End { producer, commits }),
    ];
    prop::collection::vec(step, 1..40)
}

/// A log of those batches with all transactions ended; the offsets that a reader sees; aborted transactions, by
/// producer, first offset and the marker's offset.
fn written(steps: &[Step]) -> (Log, Vec<i64>, Vec<(i64, i64, i64)>) {
    let (mut log, mut seen, mut aborted) = (Log::new(0), Vec::new(), Vec::new());
    let mut open: BTreeMap<i64, (i64, Vec<i64>)> = BTreeMap::new();
    let ends = (1..4).map(|producer| Step::End { producer, commits: producer % 2 == 0 });
    for step in steps.iter().cloned().chain(ends) {
        match step {
            Step::Batch { producer, length, left, codec } => {
                let (base, last) = (log.end, log.end + length - 1);
                let offsets: Vec<i64> = match codec {
                    Compression::None => (base..=last).filter(|offset| left & 1 << (offset - base) != 0).collect(),
                    _ => (base..=last).collect(),
                };
                let mut raw = Raw::of(base, last, offsets.clone());
                match producer {
                    Some(producer) => {
                        raw = raw.by(producer);
                        open.entry(producer).or_insert((base, Vec::new())).1.extend(offsets);
                    }
                    None => seen.extend(offsets),
                }
                log.keep(if codec == Compression::None { raw.bytes() } else { raw.compressed(codec) });
            }
            Step::End { producer, commits } => {
                let Some((first, offsets)) = open.remove(&producer) else { continue };
                if commits {
                    seen.extend(offsets);
                } else {
                    aborted.push((producer, first, log.end));
                }
                log.keep(Raw::marker(log.end, producer, commits).bytes());
            }
        }
    }
    seen.sort_unstable();
    (log, seen, aborted)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Whatever a lane's limits, the size of a fetch, the place to begin and whose turn it is: every row that can be
    /// seen arrives once, in order, as it is.
    #[test]
    fn every_row_arrives_once_and_in_order(
        steps in steps(),
        from in 0..50i64,
        max_events in 1..30usize,
        max_bytes in 1..400usize,
        most in 1..3_000usize,
        seed in any::<u64>(),
    ) {
        let (log, mut expected, aborted) = written(&steps);
        let from = from.min(log.end);
        expected.retain(|offset| *offset >= from);
        let (mut bench, mut random) = (Bench::with(from, max_events, max_bytes), fastrand::Rng::with_seed(seed));
        for _ in 0..100_000 {
            let position = bench.partition.position.unwrap();
            match random.u8(..3) {
                0 if position < log.end => {
                    let mut bytes = log.read(position, most);
                    // More of the log, cut off somewhere.
                    let all = log.read(position, usize::MAX);
                    let cut = random.usize(bytes.len()..=all.len().min(bytes.len() + 100));
                    bytes.extend(&all[bytes.len()..cut]);
                    let mut told: Vec<Aborted> = aborted
                        .iter()
                        .filter(|(.., marker)| *marker >= position)
                        .map(|&(producer_id, first_offset, _)| Aborted { producer_id, first_offset })
                        .collect();
                    random.shuffle(&mut told);
                    bench.partition.accept(bytes.into(), told).unwrap();
                }
                1 => drop(bench.partition.take(&bench.lanes).unwrap()),
                _ => drop(bench.lane()),
            }
            if position == log.end && bench.partition.is_handed_over() && !bench.lane() {
                break;
            }
        }
        prop_assert!(bench.partition.is_handed_over());
        let expected: Vec<(i64, String)> = expected.into_iter().map(|offset| (offset, offset.to_string())).collect();
        prop_assert_eq!(bench.rows, expected);
    }
}
