//! A coordinator as `TransactionCoordinator.scala` has it, as far as one producer can see it.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Empty,
    Ongoing,
    Ended { commit: bool },
}

#[derive(Debug)]
struct Coordinator {
    phase: Phase,
    epoch: i16,
    partitions: BTreeSet<i32>,
    group: bool,
    offsets: bool,
    /// What was committed: the partitions that had joined, and whether offsets had.
    committed: Vec<(BTreeSet<i32>, bool)>,
    aborts: usize,
}

impl Coordinator {
    fn take(&mut self, ask: &Ask) -> Answer {
        match ask {
            Ask::Init { .. } => {
                assert_ne!(self.phase, Phase::Ongoing, "a new epoch where an end was due");
                self.epoch += 1;
                self.phase = Phase::Empty;
                return Answer::Identity(Producer { epoch: self.epoch, ..FIRST });
            }
            Ask::AddPartitions(partitions) => {
                self.join();
                self.partitions.extend(partitions.iter().map(|partition| partition.partition));
                return Answer::Partitions(partitions.iter().map(|at| (at.clone(), ErrorCode::NONE)).collect());
            }
            Ask::AddOffsets(_) => {
                self.join();
                self.group = true;
            }
            Ask::CommitOffsets(_) => {
                assert!(self.phase == Phase::Ongoing && self.group, "offsets of a group that has not joined");
                self.offsets = true;
            }
            Ask::End { commit } => match self.phase {
                Phase::Ongoing => {
                    if *commit {
                        self.committed.push((std::mem::take(&mut self.partitions), self.offsets));
                    } else {
                        self.aborts += 1;
                    }
                    self.phase = Phase::Ended { commit: *commit };
                }
                Phase::Ended { commit: before } if before == *commit => {}
                _ => return Answer::Code(ErrorCode::INVALID_TXN_STATE),
            },
        }
        Answer::Code(ErrorCode::NONE)
    }

    fn join(&mut self) {
        if self.phase != Phase::Ongoing {
            (self.partitions, self.group, self.offsets) = (BTreeSet::new(), false, false);
            self.phase = Phase::Ongoing;
        }
    }
}

/// What becomes of a question.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Answered,
    LostBefore,
    LostAfter,
    Refused(i16),
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Publish(i32),
    SendOffsets,
    Commit,
    Abort,
    /// A produce request fails.
    Fail(bool),
    Ask(Fate),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let fate = prop_oneof![
        6 => Just(Fate::Answered),
        1 => Just(Fate::LostBefore),
        1 => Just(Fate::LostAfter),
        // May pass, elsewhere, soon; then those of which a transaction dies.
        2 => prop::sample::select(vec![14i16, 15, 16, 51, 120]).prop_map(Fate::Refused),
    ];
    let act = prop_oneof![
        4 => (0..4i32).prop_map(Act::Publish),
        2 => Just(Act::SendOffsets),
        2 => Just(Act::Commit),
        1 => Just(Act::Abort),
        1 => any::<bool>().prop_map(Act::Fail),
        12 => fate.prop_map(Act::Ask),
    ];
    prop::collection::vec(act, 1..200)
}

/// What one transaction was to hold.
#[derive(Debug, Default)]
struct Meant {
    partitions: BTreeSet<i32>,
    offsets: bool,
}

struct Run {
    machine: Machine,
    coordinator: Coordinator,
    meant: Meant,
    waits: Option<Operation>,
}

impl Run {
    fn act(&mut self, act: Act) {
        let topic: Arc<str> = "out".into();
        match act {
            Act::Publish(at) if self.machine.publishable().is_ok() => {
                self.machine.join(&topic, at);
                self.meant.partitions.insert(at);
            }
            Act::SendOffsets
                if self.waits.is_none() && self.machine.begin_operation(Operation::SendOffsets).is_ok() =>
            {
                self.machine.add_offsets(offsets("g"));
                self.meant.offsets = true;
                self.waits = Some(Operation::SendOffsets);
            }
            Act::Commit | Act::Abort if !matches!(self.waits, Some(Operation::Commit | Operation::Abort)) => {
                let operation = if matches!(act, Act::Commit) { Operation::Commit } else { Operation::Abort };
                if self.machine.begin_operation(operation).is_ok() {
                    self.waits = Some(operation);
                }
            }
            Act::Fail(bump) => self.machine.fail(error(), bump),
            Act::Ask(fate) => self.ask(fate),
            _ => {}
        }
        self.hear();
    }

    fn ask(&mut self, fate: Fate) {
        // Everything that has joined is acknowledged at once.
        let topic: Arc<str> = "out".into();
        let mut quiet = true;
        if matches!(self.machine.state(), State::Committing) {
            for at in &self.meant.partitions {
                quiet &= self.machine.join(&topic, *at);
            }
        }
        let Some(ask) = self.machine.next(quiet) else { return };
        assert!(self.machine.next(quiet).is_none(), "two questions at a time");
        let answer = match fate {
            Fate::Answered => self.coordinator.take(&ask),
            Fate::LostBefore => Answer::Lost,
            Fate::LostAfter => {
                self.coordinator.take(&ask);
                Answer::Lost
            }
            // An end that may have been reached is not refused later.
            Fate::Refused(120) if matches!(ask, Ask::End { .. }) => self.coordinator.take(&ask),
            Fate::Refused(code) => Answer::Code(ErrorCode(code)),
        };
        self.machine.answered(&ask, answer);
    }

    /// Hears how what was waited for has ended, and opens the next transaction.
    fn hear(&mut self) {
        let Some(operation) = self.waits else { return };
        let (commits, aborts) = (self.coordinator.committed.len(), self.coordinator.aborts);
        let Some(outcome) = self.machine.outcome(operation) else { return };
        self.waits = None;
        match (operation, outcome) {
            (Operation::Commit, Ok(())) => {
                let meant = std::mem::take(&mut self.meant);
                if !meant.partitions.is_empty() || meant.offsets {
                    let held = self.coordinator.committed.pop().expect("said to be committed, and was not");
                    assert_eq!(held, (meant.partitions, meant.offsets));
                }
                assert!(self.coordinator.committed.is_empty(), "{commits} commits for one");
            }
            (Operation::Abort, Ok(())) => {
                self.meant = Meant::default();
                assert_eq!(commits, 0, "aborted, and committed all the same");
                assert_ne!(self.coordinator.phase, Phase::Ongoing, "{aborts} aborts, and still open");
            }
            (_, Err(error)) => {
                assert_eq!(error.kind, TransactionErrorKind::Abortable, "{error}");
                assert_eq!(commits, 0, "failed, and committed all the same");
                return;
            }
            (_, Ok(())) => return,
        }
        self.machine.begin().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever is lost, refused or given up: what is said to be committed is, as a whole and once, and what is said
    /// to be aborted is not; and the coordinator is never asked what it would not expect.
    #[test]
    fn what_is_said_of_a_transaction_is_true(acts in acts()) {
        let coordinator = Coordinator {
            phase: Phase::Empty,
            epoch: 0,
            partitions: BTreeSet::new(),
            group: false,
            offsets: false,
            committed: Vec::new(),
            aborts: 0,
        };
        let mut run = Run { machine: ready(), coordinator, meant: Meant::default(), waits: None };
        run.machine.begin().unwrap();
        for act in acts {
            run.act(act);
        }
        // In the end everything passes.
        if run.waits.is_none() || run.waits == Some(Operation::SendOffsets) {
            run.waits = None;
            run.act(Act::Abort);
        }
        for _ in 0..20 {
            run.act(Act::Ask(Fate::Answered));
        }
        if run.waits.is_none() && matches!(run.machine.state(), State::Abortable(_)) {
            run.act(Act::Abort);
            for _ in 0..20 {
                run.act(Act::Ask(Fate::Answered));
            }
        }
        prop_assert!(run.waits.is_none(), "hangs in {:?}", run.machine.state());
        prop_assert!(matches!(run.machine.state(), State::Open), "{:?}", run.machine.state());
    }
}
