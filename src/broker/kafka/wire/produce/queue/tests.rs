//! The queue against a model of brokers that append, lose requests and answers, move leaders and refuse.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

/// What a broker knows of the producer on one partition, as Kafka's `ProducerStateManager` keeps it; every replica
/// has the same.
#[derive(Default)]
struct Log {
    records: Vec<u32>,
    epoch: Option<i16>,
    last_sequence: i32,
    recent: VecDeque<(i32, u32)>,
}

enum Said {
    Appended,
    Duplicate,
    OutOfOrder,
    Stale,
}

impl Log {
    fn append(&mut self, epoch: i16, sequence: i32, records: &[u32]) -> Said {
        match self.epoch {
            Some(known) if epoch < known => return Said::Stale,
            Some(known) if epoch > known && sequence != 0 => return Said::OutOfOrder,
            Some(known) if epoch == known => {
                if self.recent.contains(&(sequence, records.len() as u32)) {
                    return Said::Duplicate;
                }
                if sequence != advance(self.last_sequence, 1) {
                    return Said::OutOfOrder;
                }
            }
            // A broker that knows nothing of the producer takes any number.
            _ => {}
        }
        if self.epoch != Some(epoch) {
            self.recent.clear();
        }
        self.epoch = Some(epoch);
        self.last_sequence = advance(sequence, records.len() as u32 - 1);
        self.recent.push_back((sequence, records.len() as u32));
        if self.recent.len() > IN_FLIGHT_MAX {
            self.recent.pop_front();
        }
        self.records.extend(records);
        Said::Appended
    }
}

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// So many records come.
    Push(u32),
    Send,
    /// The oldest request on the wire reaches its node and its answer comes back.
    Serve,
    /// It reaches its node; the answer says that it timed out.
    TimedOut,
    /// All that is on the wire to the leader is lost before it arrives, or with its answers.
    Cut {
        arrived: usize,
    },
    /// The other node leads.
    Move,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1..4u32).prop_map(Act::Push),
        6 => Just(Act::Send),
        6 => Just(Act::Serve),
        1 => Just(Act::TimedOut),
        1 => (0..6usize).prop_map(|arrived| Act::Cut { arrived }),
        1 => Just(Act::Move),
    ]
}

/// What happens where no answer is lost.
fn calm_act() -> impl Strategy<Value = Act> {
    prop_oneof![4 => (1..4u32).prop_map(Act::Push), 6 => Just(Act::Send), 6 => Just(Act::Serve)]
}

/// A batch, its epoch, its sequence and its records.
type Request = (Id, i16, i32, Vec<u32>);

#[derive(Default)]
struct World {
    queue: Queue<Vec<u32>>,
    log: Log,
    epoch: i16,
    frozen: bool,
    /// Requests on the wire, for each node: a connection keeps its order.
    wire: BTreeMap<i32, VecDeque<Request>>,
    leader: i32,
    pushed: u32,
    /// Records divisible by this are refused.
    poison: u32,
    refused: Vec<u32>,
    /// All of it is one transaction: gaps are closed, and no epoch begins.
    one_epoch: bool,
}

impl World {
    fn send(&mut self) -> bool {
        let Some(next) = self.queue.next(self.leader, self.frozen) else { return false };
        let request = (next.id, self.epoch, next.sequence, next.payload.clone());
        self.wire.entry(self.leader).or_default().push_back(request);
        true
    }

    fn serve(&mut self, node: i32, timed_out: bool) {
        let Some((id, epoch, sequence, records)) = self.wire.get_mut(&node).and_then(VecDeque::pop_front) else {
            return;
        };
        if node != self.leader {
            self.frozen |= self.queue.answer(id, Verdict::Again);
        } else if records.iter().any(|record| record % self.poison == 0) {
            self.refuse(id);
        } else {
            match self.log.append(epoch, sequence, &records) {
                Said::Appended | Said::Duplicate if timed_out => self.frozen |= self.queue.answer(id, Verdict::Again),
                Said::Appended | Said::Duplicate => drop(self.queue.acknowledge(id)),
                Said::OutOfOrder => {
                    let expected = self.queue.is_cut_off(id);
                    let broken = self.queue.answer(id, Verdict::OutOfOrder);
                    assert!(expected || !broken || !self.one_epoch, "this would end the transaction");
                    self.frozen |= broken;
                }
                Said::Stale => self.frozen |= self.queue.answer(id, Verdict::Stale),
            }
        }
        self.begin_epoch();
    }

    fn refuse(&mut self, id: Id) {
        let (poison, refused) = (self.poison, &mut self.refused);
        self.frozen |= self.queue.replace(id, |mut records| {
            if records.len() > 1 && records.len() % 2 == 0 {
                let second = records.split_off(records.len() / 2);
                return vec![(records.clone(), records.len() as u32), (second.clone(), second.len() as u32)];
            }
            let (bad, good): (Vec<u32>, Vec<u32>) = records.into_iter().partition(|record| record % poison == 0);
            refused.extend(bad);
            if good.is_empty() { Vec::new() } else { vec![(good.clone(), good.len() as u32)] }
        });
    }

    fn cut(&mut self, arrived: usize) {
        let lost = std::mem::take(self.wire.entry(self.leader).or_default());
        for (place, (id, epoch, sequence, records)) in lost.into_iter().enumerate() {
            if place < arrived && !records.iter().any(|record| record % self.poison == 0) {
                self.log.append(epoch, sequence, &records);
            }
            self.frozen |= self.queue.answer(id, Verdict::Again);
        }
        self.begin_epoch();
    }

    fn begin_epoch(&mut self) {
        if self.frozen && self.queue.is_settled() {
            if self.one_epoch {
                self.queue.close_gap();
            } else {
                self.epoch += 1;
                self.queue.begin_epoch();
            }
            self.frozen = false;
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Push(records) => {
                let records: Vec<u32> = (0..records).map(|record| self.pushed + 1 + record).collect();
                self.pushed += records.len() as u32;
                let count = records.len() as u32;
                self.queue.push(records, count);
            }
            Act::Send => drop(self.send()),
            Act::Serve => self.serve(self.leader, false),
            Act::TimedOut => self.serve(self.leader, true),
            Act::Cut { arrived } => self.cut(arrived),
            Act::Move => self.leader = 1 - self.leader,
        }
    }
}

impl World {
    fn run(mut self, acts: Vec<Act>) {
        for act in acts {
            self.act(act);
        }
        for _ in 0..10_000 {
            if self.queue.is_empty() {
                break;
            }
            self.send();
            let nodes: Vec<i32> = self.wire.keys().copied().collect();
            for node in nodes {
                self.serve(node, false);
            }
        }
        assert!(self.queue.is_empty(), "it never ends: {:?}", self.queue);
        let (refused, kept): (Vec<u32>, Vec<u32>) = (1..=self.pushed).partition(|record| record % self.poison == 0);
        assert_eq!(self.log.records, kept);
        self.refused.sort_unstable();
        assert_eq!(self.refused, refused);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever is lost, moved and refused: in the end the log has every record that was not refused once, in order.
    #[test]
    fn every_record_once_and_in_order(acts in prop::collection::vec(act(), 1..120), poison in prop_oneof![Just(u32::MAX), 1..40u32]) {
        World { poison, ..World::default() }.run(acts);
    }

    /// The same within a transaction, where only answers come, under one epoch.
    #[test]
    fn refused_batches_leave_no_gaps(acts in prop::collection::vec(calm_act(), 1..120), poison in 1..40u32) {
        World { poison, one_epoch: true, ..World::default() }.run(acts);
    }
}

#[test]
fn numbers_begin_again_after_the_last() {
    assert_eq!(advance(i32::MAX, 1), 0);
    assert_eq!(advance(i32::MAX - 1, 3), 1);
    assert_eq!(advance(7, 3), 10);
}

#[test]
fn no_more_are_in_flight_than_a_broker_recognises() {
    let mut queue = Queue::default();
    for _ in 0..10 {
        queue.push((), 1);
    }
    let first = queue.next(1, false).unwrap().id;
    assert!(!queue.can_send(1, false), "nothing is sent behind the first batch of an epoch");
    queue.acknowledge(first);
    let sent = std::iter::from_fn(|| queue.next(1, false).map(|next| next.sequence)).collect::<Vec<_>>();
    assert_eq!(sent, [1, 2, 3, 4, 5]);
    assert!(!queue.can_send(1, false));
}

#[test]
fn who_was_idle_is_not_known_any_more() {
    let mut queue = Queue::default();
    let send = |queue: &mut Queue<()>| queue.next(1, false).map(|next| next.id);
    queue.push((), 1);
    let alone = send(&mut queue).unwrap();
    queue.acknowledge(alone);
    queue.push((), 1);
    queue.push((), 1);
    let first = send(&mut queue).unwrap();
    assert_eq!(send(&mut queue), None);
    queue.acknowledge(first);
    let last = send(&mut queue).unwrap();
    queue.replace(last, |()| Vec::new());
    queue.push((), 1);
    queue.push((), 1);
    assert!(send(&mut queue).is_some());
    assert_eq!(send(&mut queue), None, "what was refused proves nothing for what comes later");
}

#[test]
fn nothing_follows_to_another_node() {
    let mut queue = Queue::default();
    for payload in ['0', 'a', 'b'] {
        queue.push(payload, 1);
    }
    let first = queue.next(1, false).unwrap().id;
    queue.acknowledge(first);
    let first = queue.next(1, false).unwrap().id;
    assert!(queue.next(2, false).is_none(), "the first may yet arrive at the old leader");
    queue.answer(first, Verdict::Again);
    assert_eq!(*queue.next(2, false).unwrap().payload, 'a');
    assert!(queue.next(2, false).is_none(), "nothing goes behind a batch that is sent again");
}
