//! What the answers of the coordinators mean, as Apache Kafka's own client has it: the handlers' `handleResponse` in
//! `clients/src/main/java/org/apache/kafka/clients/producer/internals/TransactionManager.java`. Where that file is
//! silent, what librdkafka does decides (`rdkafka_txnmgr.c`).

use super::super::super::response::ErrorCode;

/// Who was asked what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Api {
    /// Any broker, where a coordinator is.
    FindCoordinator,
    /// The transaction's coordinator, for an id or a new epoch.
    InitProducerId,
    /// The transaction's coordinator, to let partitions join.
    AddPartitions,
    /// The transaction's coordinator, to let a group's offsets join.
    AddOffsets,
    /// The group's coordinator, to hold offsets until the transaction ends.
    CommitOffsets,
    /// The transaction's coordinator, to commit or to abort.
    End,
    /// A partition's leader.
    Produce,
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum Class {
    /// It is done.
    Done,
    /// The same request may succeed very soon: the markers of the transaction before are still being written.
    Soon,
    /// The same request may succeed later.
    Again,
    /// The coordinator is another broker by now: look it up, and ask that one.
    Moved,
    /// The group is in another generation than the request says: the offsets are not taken, and nothing else happened.
    Generation,
    /// The transaction must be aborted.
    Abortable {
        /// And numbers or the id are not to be trusted any more: a new epoch must follow (KIP-360).
        bump: bool,
    },
    /// Another producer has taken the transactional id over, or the broker has ended the transaction for its age.
    Fenced,
    /// Nothing more can be done with this producer.
    Fatal,
}

/// What the answer `code` means. Answers of [`Api::Produce`] that do not concern transactions are none of this table's
/// business: it is asked only for those that end a transaction.
pub(in super::super) fn class(api: Api, code: ErrorCode) -> Class {
    if code.is_ok() {
        return Class::Done;
    }
    if api == Api::Produce {
        return produced(code);
    }
    match code {
        _ if code.is_stale_coordinator() && api != Api::FindCoordinator => Class::Moved,
        ErrorCode::REQUEST_TIMED_OUT if api == Api::CommitOffsets => Class::Moved,
        ErrorCode::CONCURRENT_TRANSACTIONS => Class::Soon,
        _ if code.is_retriable() => Class::Again,
        // Old coordinators say the former where they mean the latter.
        ErrorCode::INVALID_PRODUCER_EPOCH | ErrorCode::PRODUCER_FENCED if api != Api::FindCoordinator => Class::Fenced,
        ErrorCode::TRANSACTION_ABORTABLE => Class::Abortable { bump: false },
        _ => by_api(api, code),
    }
}

fn by_api(api: Api, code: ErrorCode) -> Class {
    let (joins, ends) = (matches!(api, Api::AddPartitions | Api::AddOffsets), api == Api::End);
    match code {
        ErrorCode::UNKNOWN_PRODUCER_ID | ErrorCode::INVALID_PRODUCER_ID_MAPPING if joins || ends => {
            Class::Abortable { bump: true }
        }
        ErrorCode::GROUP_AUTHORIZATION_FAILED if api != Api::InitProducerId => Class::Abortable { bump: false },
        // A member that goes from one generation to the next keeps its partitions until it says otherwise. Kafka's own
        // client aborts: it is asked to rebalance by its user, between two transactions.
        ErrorCode::ILLEGAL_GENERATION | ErrorCode::STALE_MEMBER_EPOCH | ErrorCode::REBALANCE_IN_PROGRESS
            if api == Api::CommitOffsets =>
        {
            Class::Generation
        }
        // Not a member any more: who is goes on from the committed offsets.
        ErrorCode::UNKNOWN_MEMBER_ID | ErrorCode::FENCED_INSTANCE_ID if api == Api::CommitOffsets => {
            Class::Abortable { bump: false }
        }
        ErrorCode::TRANSACTIONAL_ID_AUTHORIZATION_FAILED | ErrorCode::INVALID_TXN_STATE => Class::Fatal,
        // What is wrong with some partitions, such as a permission, may be right with those of the next transaction.
        _ if api == Api::AddPartitions => Class::Abortable { bump: false },
        _ => Class::Fatal,
    }
}

/// `TransactionManager.maybeTransitionToErrorState`: a batch that is given up ends its transaction, and numbers are
/// missing for good.
fn produced(code: ErrorCode) -> Class {
    match code {
        ErrorCode::PRODUCER_FENCED => Class::Fenced,
        ErrorCode::CLUSTER_AUTHORIZATION_FAILED
        | ErrorCode::TRANSACTIONAL_ID_AUTHORIZATION_FAILED
        | ErrorCode::UNSUPPORTED_VERSION => Class::Fatal,
        _ => Class::Abortable { bump: true },
    }
}
