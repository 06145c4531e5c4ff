//! The machine by hand, and against a model of a coordinator that loses questions and answers.

mod model;

use super::class::{Api, Class, class};
use super::state::{Answer, Ask, Machine, Operation, State, When};
use super::*;
use crate::broker::BrokerErrorKind;
use crate::broker::kafka::wire::record_batch::Producer;
use crate::broker::kafka::wire::response::ErrorCode;

const FIRST: Producer = Producer { id: 7, epoch: 0 };

fn offsets(group: &str) -> Arc<Offsets> {
    let group = GroupMetadata { group: group.into(), generation: 1, member: "m".into(), instance: None };
    Arc::new(Offsets { group, next: vec![(partition(0), 5)] })
}

fn partition(partition: i32) -> TopicPartition {
    TopicPartition { topic: "out".into(), partition }
}

fn error() -> BrokerError {
    BrokerError { kind: BrokerErrorKind::Fatal, action: "publish".into(), reason: "failed".into() }
}

/// One that has its id.
fn ready() -> Machine {
    let mut machine = Machine::new("t");
    machine.begin_operation(Operation::Init).unwrap();
    let ask = machine.next(true).unwrap();
    assert_eq!(ask, Ask::Init { current: None });
    assert!(machine.next(true).is_none(), "two questions at a time");
    assert_eq!(machine.answered(&ask, Answer::Identity(FIRST)), When::Now);
    machine.outcome(Operation::Init).unwrap().unwrap();
    machine
}

/// One whose transaction partition 0 has joined.
fn open() -> Machine {
    let mut machine = ready();
    machine.begin().unwrap();
    assert!(!machine.join(&"out".into(), 0));
    expect(&mut machine, Ask::AddPartitions(vec![partition(0)]), ErrorCode::NONE);
    assert!(machine.join(&"out".into(), 0));
    machine
}

/// The next question, answered.
fn expect(machine: &mut Machine, ask: Ask, code: ErrorCode) -> When {
    assert_eq!(machine.next(true).as_ref(), Some(&ask));
    machine.answered(&ask, Answer::Code(code))
}

fn kind(machine: &mut Machine, operation: Operation) -> Option<TransactionErrorKind> {
    machine.outcome(operation).and_then(Result::err).map(|error| error.kind)
}

#[test]
fn a_transaction_asks_in_order() {
    let mut machine = open();
    machine.begin_operation(Operation::SendOffsets).unwrap();
    machine.add_offsets(offsets("g"));
    expect(&mut machine, Ask::AddOffsets(offsets("g")), ErrorCode::NONE);
    assert!(machine.outcome(Operation::SendOffsets).is_none());
    expect(&mut machine, Ask::CommitOffsets(offsets("g")), ErrorCode::NONE);
    machine.outcome(Operation::SendOffsets).unwrap().unwrap();
    machine.begin_operation(Operation::Commit).unwrap();
    // Another batch waits, whose partition has to join first.
    assert!(!machine.join(&"out".into(), 3));
    expect(&mut machine, Ask::AddPartitions(vec![partition(3)]), ErrorCode::NONE);
    assert!(machine.next(false).is_none(), "not everything is acknowledged");
    expect(&mut machine, Ask::End { commit: true }, ErrorCode::NONE);
    machine.outcome(Operation::Commit).unwrap().unwrap();
    machine.begin().unwrap();
    assert!(!machine.join(&"out".into(), 0), "joined the transaction before");
}

#[test]
fn answers_say_when_to_go_on() {
    let cases = [
        (ErrorCode::CONCURRENT_TRANSACTIONS, When::Soon),
        (ErrorCode::COORDINATOR_LOAD_IN_PROGRESS, When::Later),
        (ErrorCode::NOT_COORDINATOR, When::LookUp),
        (ErrorCode::COORDINATOR_NOT_AVAILABLE, When::LookUp),
    ];
    for (code, when) in cases {
        let mut machine = open();
        machine.begin_operation(Operation::Commit).unwrap();
        assert_eq!(expect(&mut machine, Ask::End { commit: true }, code), when, "{code}");
        assert!(machine.outcome(Operation::Commit).is_none());
        expect(&mut machine, Ask::End { commit: true }, ErrorCode::NONE);
        machine.outcome(Operation::Commit).unwrap().unwrap();
    }
}

#[test]
fn an_abort_does_not_wait_for_a_topic_that_is_gone() {
    let mut machine = open();
    assert!(!machine.join(&"out".into(), 1));
    let ask = || Ask::AddPartitions(vec![partition(1)]);
    assert_eq!(expect(&mut machine, ask(), ErrorCode::UNKNOWN_TOPIC_OR_PARTITION), When::Later);
    machine.begin_operation(Operation::Abort).unwrap();
    // It may have joined as far as is known here, until that is refused once more.
    assert_eq!(expect(&mut machine, ask(), ErrorCode::UNKNOWN_TOPIC_OR_PARTITION), When::Now);
    expect(&mut machine, Ask::End { commit: false }, ErrorCode::NONE);
    machine.outcome(Operation::Abort).unwrap().unwrap();
}

#[test]
fn offsets_of_an_old_generation_are_sent_again_before_the_commit() {
    let mut machine = open();
    machine.begin_operation(Operation::SendOffsets).unwrap();
    machine.add_offsets(offsets("g"));
    expect(&mut machine, Ask::AddOffsets(offsets("g")), ErrorCode::NONE);
    expect(&mut machine, Ask::CommitOffsets(offsets("g")), ErrorCode::ILLEGAL_GENERATION);
    assert_eq!(kind(&mut machine, Operation::SendOffsets), Some(TransactionErrorKind::Generation));
    machine.publishable().unwrap();
    assert_eq!(machine.begin_operation(Operation::Commit).unwrap_err().kind, TransactionErrorKind::Order);
    machine.begin_operation(Operation::SendOffsets).unwrap();
    machine.add_offsets(offsets("g"));
    assert!(machine.outcome(Operation::SendOffsets).is_none());
    expect(&mut machine, Ask::CommitOffsets(offsets("g")), ErrorCode::NONE);
    machine.outcome(Operation::SendOffsets).unwrap().unwrap();
    machine.begin_operation(Operation::Commit).unwrap();
}

#[test]
fn what_a_stranger_sends_is_aborted_without_a_new_epoch() {
    let mut machine = open();
    machine.begin_operation(Operation::SendOffsets).unwrap();
    machine.add_offsets(offsets("g"));
    expect(&mut machine, Ask::AddOffsets(offsets("g")), ErrorCode::NONE);
    expect(&mut machine, Ask::CommitOffsets(offsets("g")), ErrorCode::UNKNOWN_MEMBER_ID);
    assert_eq!(kind(&mut machine, Operation::SendOffsets), Some(TransactionErrorKind::Abortable));
    machine.publishable().unwrap_err();
    assert!(machine.next(true).is_none(), "nothing is asked before the abort");
    assert_eq!(machine.begin_operation(Operation::Commit).unwrap_err().kind, TransactionErrorKind::Abortable);
    machine.begin_operation(Operation::Abort).unwrap();
    assert!(machine.next(false).is_none(), "something is on its way");
    expect(&mut machine, Ask::End { commit: false }, ErrorCode::NONE);
    machine.outcome(Operation::Abort).unwrap().unwrap();
    machine.begin().unwrap();
}

/// Who publishes while another gives the transaction up learns nothing of the cause, and must not take this for it.
#[test]
fn what_comes_after_an_abort_is_not_the_cause_of_it() {
    let mut machine = open();
    machine.begin_operation(Operation::Abort).unwrap();
    assert_eq!(machine.publishable().unwrap_err().kind, BrokerErrorKind::Closed);
    expect(&mut machine, Ask::End { commit: false }, ErrorCode::NONE);
    machine.outcome(Operation::Abort).unwrap().unwrap();
    assert_eq!(machine.publishable().unwrap_err().kind, BrokerErrorKind::Closed);
    machine.begin().unwrap();
    machine.begin_operation(Operation::Commit).unwrap();
    assert_eq!(machine.publishable().unwrap_err().kind, BrokerErrorKind::Fatal, "nobody publishes then");
}

#[test]
fn a_denied_topic_is_told_though_others_were_not_attempted() {
    let mut machine = ready();
    machine.begin().unwrap();
    for at in 0..3 {
        machine.join(&"out".into(), at);
    }
    let ask = machine.next(true).unwrap();
    let not_attempted = ErrorCode(55);
    let codes = [not_attempted, ErrorCode::TOPIC_AUTHORIZATION_FAILED, not_attempted];
    machine.answered(&ask, Answer::Partitions((0..3).map(|at| (partition(at), codes[at as usize])).collect()));
    assert_eq!(machine.publishable().unwrap_err().kind, BrokerErrorKind::Denied);
}

#[test]
fn missing_numbers_end_in_a_new_epoch() {
    let mut machine = open();
    machine.fail(error(), true);
    machine.begin_operation(Operation::Abort).unwrap();
    expect(&mut machine, Ask::End { commit: false }, ErrorCode::NONE);
    assert!(machine.outcome(Operation::Abort).is_none());
    let ask = machine.next(true).unwrap();
    assert_eq!(ask, Ask::Init { current: Some(FIRST) });
    machine.answered(&ask, Answer::Identity(Producer { epoch: 1, ..FIRST }));
    machine.outcome(Operation::Abort).unwrap().unwrap();
}

#[test]
fn without_new_epochs_missing_numbers_are_the_end() {
    let mut machine = open();
    machine.cannot_bump();
    machine.fail(error(), false);
    machine.fail(error(), true);
    assert_eq!(machine.begin_operation(Operation::Abort).unwrap_err().kind, TransactionErrorKind::Fatal);
}

#[test]
fn a_coordinator_that_has_forgotten_the_producer_is_asked_for_an_epoch_only() {
    for commit in [true, false] {
        let mut machine = open();
        let operation = if commit { Operation::Commit } else { Operation::Abort };
        machine.begin_operation(operation).unwrap();
        expect(&mut machine, Ask::End { commit }, ErrorCode::INVALID_PRODUCER_ID_MAPPING);
        if commit {
            assert_eq!(kind(&mut machine, Operation::Commit), Some(TransactionErrorKind::Abortable));
            machine.begin_operation(Operation::Abort).unwrap();
        }
        assert_eq!(machine.next(true), Some(Ask::Init { current: Some(FIRST) }));
    }
}

#[test]
fn once_the_end_is_asked_for_only_the_coordinator_decides() {
    let mut machine = open();
    machine.begin_operation(Operation::Commit).unwrap();
    let ask = machine.next(true).unwrap();
    machine.fail(error(), true);
    machine.answered(&ask, Answer::Lost);
    machine.fail(error(), true);
    assert!(machine.outcome(Operation::Commit).is_none());
    expect(&mut machine, ask, ErrorCode::NONE);
    machine.outcome(Operation::Commit).unwrap().unwrap();
    machine.begin().unwrap();
}

#[test]
fn offsets_that_may_still_arrive_end_in_a_new_epoch() {
    let mut machine = open();
    machine.begin_operation(Operation::SendOffsets).unwrap();
    machine.add_offsets(offsets("g"));
    expect(&mut machine, Ask::AddOffsets(offsets("g")), ErrorCode::NONE);
    let ask = machine.next(true).unwrap();
    machine.answered(&ask, Answer::Lost);
    machine.begin_operation(Operation::Abort).unwrap();
    expect(&mut machine, Ask::End { commit: false }, ErrorCode::NONE);
    assert_eq!(machine.next(true), Some(Ask::Init { current: Some(FIRST) }));
}

#[test]
fn whether_partitions_joined_is_known_before_the_abort() {
    let mut machine = ready();
    machine.begin().unwrap();
    assert!(!machine.join(&"out".into(), 0));
    let ask = machine.next(false).unwrap();
    machine.answered(&ask, Answer::Lost);
    machine.begin_operation(Operation::Abort).unwrap();
    expect(&mut machine, ask, ErrorCode::NONE);
    expect(&mut machine, Ask::End { commit: false }, ErrorCode::NONE);
    machine.outcome(Operation::Abort).unwrap().unwrap();
}

#[test]
fn the_end_of_a_producer_is_told_to_everyone() {
    let cases = [
        (ErrorCode::PRODUCER_FENCED, TransactionErrorKind::Fenced),
        (ErrorCode::INVALID_PRODUCER_EPOCH, TransactionErrorKind::Fenced),
        (ErrorCode::INVALID_TXN_STATE, TransactionErrorKind::Fatal),
        (ErrorCode::TRANSACTIONAL_ID_AUTHORIZATION_FAILED, TransactionErrorKind::Fatal),
        (ErrorCode::UNSUPPORTED_VERSION, TransactionErrorKind::Fatal),
    ];
    for (code, expected) in cases {
        let mut machine = open();
        machine.begin_operation(Operation::Commit).unwrap();
        expect(&mut machine, Ask::End { commit: true }, code);
        assert_eq!(kind(&mut machine, Operation::Commit), Some(expected), "{code}");
        assert_eq!(machine.begin().unwrap_err().kind, expected);
        assert_eq!(machine.begin_operation(Operation::Abort).unwrap_err().kind, expected);
        machine.publishable().unwrap_err();
        machine.finish(TransactionErrorKind::Fatal, error());
        assert!(matches!(machine.state(), State::Finished(first) if first.kind == expected), "the first reason counts");
    }
}

#[test]
fn the_worst_answer_of_many_partitions_decides() {
    let mut machine = ready();
    machine.begin().unwrap();
    for at in 0..3 {
        machine.join(&"out".into(), at);
    }
    let ask = machine.next(false).unwrap();
    let codes = [ErrorCode::OPERATION_NOT_ATTEMPTED, ErrorCode::NONE, ErrorCode::TOPIC_AUTHORIZATION_FAILED];
    let answer = (0..).map(partition).zip(codes).collect();
    machine.answered(&ask, Answer::Partitions(answer));
    assert!(matches!(machine.state(), State::Abortable(_)));
}

/// `TransactionManager.java`, handler by handler.
#[test]
fn classes_are_those_of_the_java_client() {
    use ErrorCode as E;
    let again = [E::COORDINATOR_LOAD_IN_PROGRESS, E::UNKNOWN_TOPIC_OR_PARTITION, E::NOT_ENOUGH_REPLICAS];
    let abortable = |bump| Class::Abortable { bump };
    let asked = [Api::InitProducerId, Api::AddPartitions, Api::AddOffsets, Api::CommitOffsets, Api::End];
    for api in asked {
        assert!(again.iter().all(|code| class(api, *code) == Class::Again), "{api:?}");
        for code in [E::NOT_COORDINATOR, E::COORDINATOR_NOT_AVAILABLE] {
            assert_eq!(class(api, code), Class::Moved, "{api:?}");
        }
        for code in [E::INVALID_PRODUCER_EPOCH, E::PRODUCER_FENCED] {
            assert_eq!(class(api, code), Class::Fenced, "{api:?}");
        }
        for code in [E::TRANSACTIONAL_ID_AUTHORIZATION_FAILED, E::INVALID_TXN_STATE] {
            assert_eq!(class(api, code), Class::Fatal, "{api:?}");
        }
        assert_eq!(class(api, E::TRANSACTION_ABORTABLE), abortable(false), "{api:?}");
        assert_eq!(class(api, E::CONCURRENT_TRANSACTIONS), Class::Soon, "{api:?}");
        let unknown = if api == Api::AddPartitions { abortable(false) } else { Class::Fatal };
        assert_eq!(class(api, ErrorCode(999)), unknown, "{api:?}");
    }
    for api in [Api::AddPartitions, Api::AddOffsets, Api::End] {
        for code in [E::UNKNOWN_PRODUCER_ID, E::INVALID_PRODUCER_ID_MAPPING] {
            assert_eq!(class(api, code), abortable(true), "{api:?}");
        }
    }
    for code in [E::ILLEGAL_GENERATION, E::STALE_MEMBER_EPOCH, E::REBALANCE_IN_PROGRESS] {
        assert_eq!(class(Api::CommitOffsets, code), Class::Generation, "{code}");
    }
    for code in [E::UNKNOWN_MEMBER_ID, E::FENCED_INSTANCE_ID, E::GROUP_AUTHORIZATION_FAILED] {
        assert_eq!(class(Api::CommitOffsets, code), abortable(false), "{code}");
    }
    assert_eq!(class(Api::CommitOffsets, E::REQUEST_TIMED_OUT), Class::Moved);
    assert_eq!(class(Api::FindCoordinator, E::COORDINATOR_NOT_AVAILABLE), Class::Again);
    assert_eq!(class(Api::FindCoordinator, E::GROUP_AUTHORIZATION_FAILED), abortable(false));
    assert_eq!(class(Api::Produce, E::INVALID_PRODUCER_EPOCH), abortable(true));
    assert_eq!(class(Api::Produce, E::PRODUCER_FENCED), Class::Fenced);
    assert_eq!(class(Api::InitProducerId, E::INVALID_TRANSACTION_TIMEOUT), Class::Fatal);
}
