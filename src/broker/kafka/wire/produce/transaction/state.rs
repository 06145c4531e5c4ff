//! Where a transactional producer is, and what it has to ask next. Pure: no clock, no IO, no bytes.
//!
//! One question is under way at a time, as in Kafka's own client. A question whose answer was lost is asked again: the
//! coordinator takes each of them twice without harm, and whether partitions joined must be known before the
//! transaction can be ended, because a coordinator refuses to end a transaction that it does not know.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::super::super::record_batch::Producer;
use super::super::super::response::ErrorCode;
use super::class::{Api, Class, class};
use super::{Offsets, TransactionError, TransactionErrorKind};
use crate::broker::{BrokerError, BrokerErrorKind};
use crate::delivery::TopicPartition;

/// Where the producer is.
#[derive(Clone, Debug)]
pub(in super::super) enum State {
    /// Nothing was asked yet.
    Uninitialised,
    /// It is getting its id and epoch, the first ones or, after an abort, the next ones.
    Initialising,
    /// No transaction is open.
    Ready,
    /// A transaction is open.
    Open,
    /// It is being committed.
    Committing,
    /// It is being aborted.
    Aborting,
    /// It has failed and must be aborted.
    Abortable(TransactionError),
    /// The producer is finished.
    Finished(TransactionError),
}

/// What the caller waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Operation {
    Init,
    SendOffsets,
    Commit,
    Abort,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Ask {
    /// An id and an epoch; the epoch after this one when there is one already.
    Init { current: Option<Producer> },
    /// Let partitions join.
    AddPartitions(Vec<TopicPartition>),
    /// Let a group's offsets join.
    AddOffsets(Arc<Offsets>),
    /// Hold a group's offsets until the transaction ends.
    CommitOffsets(Arc<Offsets>),
    /// End the transaction.
    End { commit: bool },
}

/// How a question was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Answer {
    /// With one code.
    Code(ErrorCode),
    /// With a code for each partition that was named.
    Partitions(Vec<(TopicPartition, ErrorCode)>),
    /// With an id and an epoch.
    Identity(Producer),
    /// The coordinator could not be looked up.
    NoCoordinator(ErrorCode),
    /// Not at all, and whether the question arrived is not known.
    Lost,
}

impl Answer {
    /// What it says, in words: of several partitions, the first that is refused.
    pub(in super::super) fn reason(&self) -> String {
        match self {
            Self::Code(code) | Self::NoCoordinator(code) => code.to_string(),
            Self::Partitions(partitions) => partitions
                .iter()
                .find(|(_, code)| !code.is_ok())
                .map_or_else(String::new, |(at, code)| format!("{}/{}: {code}", at.topic, at.partition)),
            Self::Identity(_) => "done".to_owned(),
            Self::Lost => "no answer".to_owned(),
        }
    }
}

/// When to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum When {
    /// At once.
    Now,
    /// In a moment.
    Soon,
    /// After a wait that grows.
    Later,
    /// After a wait that grows, when the coordinator was looked up.
    LookUp,
}

/// What made a transaction fail that may be tried again from its beginning: those who wait for it learn no more than
/// that, unless the same would happen again.
pub(in super::super) fn worth_another(error: BrokerError) -> BrokerError {
    use BrokerErrorKind as Kind;
    let kind = match error.kind {
        Kind::Denied | Kind::Settings | Kind::UnknownTopic | Kind::Closed => error.kind,
        Kind::Unreachable | Kind::TooLarge | Kind::Refused | Kind::Aborted | Kind::Fatal => Kind::Aborted,
    };
    BrokerError { kind, ..error }
}

/// The machine.
#[derive(Debug)]
pub(in super::super) struct Machine {
    name: String,
    state: State,
    /// What the caller waits for, or did not wait for to its end.
    operation: Option<Operation>,
    producer: Option<Producer>,
    /// The broker can be asked for the next epoch (KIP-360).
    can_bump: bool,
    /// The next epoch is needed.
    bump: bool,
    /// The coordinator knows of the transaction.
    started: bool,
    /// It may know: a question of which that is not known was refused when it was asked again.
    perhaps: bool,
    wanted: BTreeSet<TopicPartition>,
    joined: BTreeMap<Arc<str>, BTreeSet<i32>>,
    /// Whether what was asked last joined is not known yet.
    joining: Option<Ask>,
    groups: BTreeSet<String>,
    offsets: VecDeque<Arc<Offsets>>,
    /// Why offsets were not taken, though the transaction can go on; told once.
    untaken: Option<BrokerError>,
    /// Offsets that were not taken must be before the transaction may be committed.
    owes_offsets: bool,
    /// Offsets may still arrive at their coordinator.
    unsure: bool,
    asking: bool,
    /// The end was asked for: from then on only its coordinator knows how the transaction ends.
    ending: bool,
}

impl Machine {
    /// For a transactional id.
    pub(in super::super) fn new(id: &str) -> Self {
        Self {
            name: format!("transaction {id}"),
            state: State::Uninitialised,
            operation: None,
            producer: None,
            can_bump: true,
            bump: false,
            started: false,
            perhaps: false,
            wanted: BTreeSet::new(),
            joined: BTreeMap::new(),
            joining: None,
            groups: BTreeSet::new(),
            offsets: VecDeque::new(),
            untaken: None,
            owes_offsets: false,
            unsure: false,
            asking: false,
            ending: false,
        }
    }

    pub(in super::super) fn state(&self) -> &State {
        &self.state
    }

    /// The brokers cannot be asked for the next epoch: what needs one is the end of the producer.
    pub(in super::super) fn cannot_bump(&mut self) {
        self.can_bump = false;
    }

    /// Whether what is to be published may be.
    ///
    /// # Errors
    /// Why not.
    pub(in super::super) fn publishable(&self) -> Result<(), BrokerError> {
        match &self.state {
            State::Open => Ok(()),
            State::Abortable(error) | State::Finished(error) => Err(error.error.clone()),
            // Who gives a transaction up tells why.
            State::Aborting | State::Initialising | State::Ready => {
                let error = self.order("publish", "the transaction was given up").error;
                Err(BrokerError { kind: BrokerErrorKind::Closed, ..error })
            }
            State::Uninitialised | State::Committing => Err(self.order("publish", "no transaction is open").error),
        }
    }

    /// Begins an operation, or waits on for one that is under way.
    ///
    /// # Errors
    /// When it makes no sense where the producer is, and when the producer is finished or the transaction has failed.
    pub(in super::super) fn begin_operation(&mut self, operation: Operation) -> Result<(), TransactionError> {
        if self.operation == Some(operation) && operation != Operation::SendOffsets {
            return Ok(());
        }
        let next = match (operation, &self.state) {
            (_, State::Finished(error)) => return Err(error.clone()),
            (Operation::Abort, State::Abortable(_) | State::Open) => State::Aborting,
            (_, State::Abortable(error)) => return Err(error.clone()),
            (Operation::Init, State::Uninitialised) => State::Initialising,
            (Operation::SendOffsets, State::Open) => State::Open,
            (Operation::Commit, State::Open) if self.owes_offsets => {
                return Err(self.misused(operation, "offsets were not taken: send them again, or abort"));
            }
            (Operation::Commit, State::Open) => State::Committing,
            (_, State::Uninitialised | State::Initialising) => {
                return Err(self.misused(operation, "`init` comes first"));
            }
            (_, State::Committing | State::Aborting) => {
                return Err(self.misused(operation, "the transaction is being ended: call that again"));
            }
            (_, State::Ready | State::Open) => return Err(self.misused(operation, "it makes no sense here")),
        };
        if operation == Operation::Abort {
            // What has not been asked need not be. What was asked and not answered may still arrive.
            self.wanted.clear();
            self.offsets.clear();
        }
        self.operation = Some(operation);
        self.state = next;
        Ok(())
    }

    /// Opens a transaction.
    ///
    /// # Errors
    /// When there is one, or the end of the last was not waited for.
    pub(in super::super) fn begin(&mut self) -> Result<(), TransactionError> {
        match &self.state {
            State::Finished(error) | State::Abortable(error) => Err(error.clone()),
            State::Ready if self.operation.is_none() => {
                self.started = false;
                self.state = State::Open;
                Ok(())
            }
            State::Ready => Err(self.order("begin", "the end of the last operation was not waited for")),
            State::Uninitialised | State::Initialising => Err(self.order("begin", "`init` comes first")),
            _ => Err(self.order("begin", "a transaction is open")),
        }
    }

    /// Adds offsets to those that are sent.
    pub(in super::super) fn add_offsets(&mut self, offsets: Arc<Offsets>) {
        self.untaken = None;
        if !self.offsets.contains(&offsets) {
            self.offsets.push_back(offsets);
        }
    }

    /// How the operation ended; none while it has not. Told once.
    pub(in super::super) fn outcome(&mut self, operation: Operation) -> Option<Result<(), TransactionError>> {
        let outcome = match (&self.state, operation) {
            (State::Finished(error) | State::Abortable(error), _) => Err(error.clone()),
            (State::Ready, Operation::Init | Operation::Commit | Operation::Abort) => Ok(()),
            (State::Open, Operation::SendOffsets) if self.offsets.is_empty() => match self.untaken.take() {
                Some(error) => Err(TransactionError { kind: TransactionErrorKind::Generation, error }),
                None => Ok(()),
            },
            _ => return None,
        };
        self.operation = None;
        Some(outcome)
    }

    /// Whether a partition has joined. One that has not is asked for.
    pub(in super::super) fn join(&mut self, topic: &Arc<str>, partition: i32) -> bool {
        if self.joined.get(topic).is_some_and(|partitions| partitions.contains(&partition)) {
            return true;
        }
        if matches!(self.state, State::Open | State::Committing) {
            let wanted = TopicPartition { topic: topic.clone(), partition };
            if !matches!(&self.joining, Some(Ask::AddPartitions(asked)) if asked.contains(&wanted)) {
                self.wanted.insert(wanted);
            }
        }
        false
    }

    /// The next question. `quiet` says that nothing waits to be published and nothing is on its way.
    pub(in super::super) fn next(&mut self, quiet: bool) -> Option<Ask> {
        if self.asking {
            return None;
        }
        let ask = match self.state {
            State::Initialising => Some(Ask::Init { current: self.producer.filter(|_| self.bump) }),
            State::Open => self.next_to_join(),
            State::Committing => self.next_to_join().or_else(|| quiet.then_some(Ask::End { commit: true })),
            State::Aborting => self.joining.clone().or_else(|| quiet.then_some(Ask::End { commit: false })),
            State::Uninitialised | State::Ready | State::Abortable(_) | State::Finished(_) => None,
        }?;
        if matches!(ask, Ask::End { .. }) && !self.started && !self.perhaps {
            self.ended();
            return self.next(quiet);
        }
        if matches!(ask, Ask::AddPartitions(_) | Ask::AddOffsets(_)) {
            self.joining = Some(ask.clone());
        }
        // Unless an answer says otherwise, it may arrive at any time.
        self.unsure |= matches!(ask, Ask::CommitOffsets(_));
        self.ending |= matches!(ask, Ask::End { .. });
        self.asking = true;
        Some(ask)
    }

    fn next_to_join(&mut self) -> Option<Ask> {
        if self.joining.is_some() {
            return self.joining.clone();
        }
        if !self.wanted.is_empty() {
            return Some(Ask::AddPartitions(std::mem::take(&mut self.wanted).into_iter().collect()));
        }
        let offsets = self.offsets.front()?.clone();
        let joined = self.groups.contains(&offsets.group.group);
        Some(if joined { Ask::CommitOffsets(offsets) } else { Ask::AddOffsets(offsets) })
    }

    /// Takes an answer to the question that was asked.
    pub(in super::super) fn answered(&mut self, ask: &Ask, answer: Answer) -> When {
        self.asking = false;
        if matches!(self.state, State::Finished(_)) {
            return When::Now;
        }
        let api = match (&answer, ask) {
            (Answer::NoCoordinator(_), _) => Api::FindCoordinator,
            (_, Ask::Init { .. }) => Api::InitProducerId,
            (_, Ask::AddPartitions(_)) => Api::AddPartitions,
            (_, Ask::AddOffsets(_)) => Api::AddOffsets,
            (_, Ask::CommitOffsets(_)) => Api::CommitOffsets,
            (_, Ask::End { .. }) => Api::End,
        };
        let code = match &answer {
            Answer::Lost => {
                self.perhaps |= self.joining.is_some();
                return When::LookUp;
            }
            Answer::Identity(producer) => {
                self.producer = Some(*producer);
                self.bump = false;
                self.state = State::Ready;
                return When::Now;
            }
            Answer::Code(code) | Answer::NoCoordinator(code) => *code,
            Answer::Partitions(partitions) => {
                // The worst decides; they are asked for together again.
                // Where one is denied, the coordinator says of the others that they were not attempted.
                let worst = partitions.iter().max_by_key(|(_, code)| (class(api, *code), code.is_denied()));
                worst.map_or(ErrorCode::NONE, |(_, code)| *code)
            }
        };
        if code == ErrorCode::INVALID_TXN_STATE && *ask == (Ask::End { commit: false }) && self.perhaps {
            // It did not know.
            self.ended();
            return When::Now;
        }
        match class(api, code) {
            Class::Done => self.done(ask),
            // What did not join need not: a topic that is gone would hold the abort up for ever.
            Class::Soon | Class::Again if self.gives_up_joining(api) => self.joining = None,
            Class::Soon => return When::Soon,
            Class::Again => return When::Later,
            Class::Moved => return When::LookUp,
            Class::Generation => {
                self.unsure = false;
                if let Ask::CommitOffsets(offsets) = ask {
                    self.offsets.retain(|kept| kept != offsets);
                }
                (self.untaken, self.owes_offsets) = (Some(self.error(api, code)), true);
            }
            Class::Abortable { bump } => self.refused(ask, api, code, bump),
            Class::Fenced => self.finish(TransactionErrorKind::Fenced, self.error(api, code)),
            Class::Fatal => self.finish(TransactionErrorKind::Fatal, self.error(api, code)),
        }
        When::Now
    }

    /// Whether the transaction is being aborted, and what was asked was whether something may join it.
    fn gives_up_joining(&self, api: Api) -> bool {
        matches!(self.state, State::Aborting) && matches!(api, Api::AddPartitions | Api::AddOffsets)
    }

    fn done(&mut self, ask: &Ask) {
        match ask {
            // An id without an error comes as `Answer::Identity`.
            Ask::Init { .. } => {}
            Ask::AddPartitions(partitions) => {
                for TopicPartition { topic, partition } in partitions {
                    self.joined.entry(topic.clone()).or_default().insert(*partition);
                }
                (self.started, self.perhaps, self.joining) = (true, false, None);
            }
            Ask::AddOffsets(offsets) => {
                self.groups.insert(offsets.group.group.clone());
                (self.started, self.perhaps, self.joining) = (true, false, None);
            }
            Ask::CommitOffsets(offsets) => {
                (self.unsure, self.owes_offsets) = (false, false);
                self.offsets.retain(|kept| kept != offsets);
            }
            Ask::End { .. } => self.ended(),
        }
    }

    /// An answer that ends the transaction, if it was not being aborted anyway.
    fn refused(&mut self, ask: &Ask, api: Api, code: ErrorCode, bump: bool) {
        match ask {
            Ask::AddPartitions(_) | Ask::AddOffsets(_) => self.joining = None,
            Ask::CommitOffsets(_) => self.unsure = false,
            // The coordinator has forgotten the producer, and the transaction with it.
            Ask::End { .. } => (self.started, self.perhaps, self.ending) = (false, false, false),
            Ask::Init { .. } => {
                // The abort of nothing that must follow asks for an id again.
                let (kind, error) = (TransactionErrorKind::Abortable, self.error(api, code));
                self.state = State::Abortable(TransactionError { kind, error });
            }
        }
        self.fail(self.error(api, code), bump);
    }

    /// The transaction has failed and must be aborted. With `bump`, what was sent may still arrive, or numbers are
    /// missing: the next epoch comes before the next transaction. Without a transaction this is of no consequence.
    pub(in super::super) fn fail(&mut self, error: BrokerError, bump: bool) {
        match self.state {
            State::Uninitialised | State::Initialising | State::Ready | State::Finished(_) => return,
            State::Committing if self.ending => return,
            _ => self.bump |= bump,
        }
        if bump && !self.can_bump {
            self.finish(TransactionErrorKind::Fatal, error);
        } else if !matches!(self.state, State::Aborting | State::Abortable(_)) {
            let error = worth_another(error);
            self.state = State::Abortable(TransactionError { kind: TransactionErrorKind::Abortable, error });
        }
    }

    /// The producer is finished. The first reason counts.
    pub(in super::super) fn finish(&mut self, kind: TransactionErrorKind, error: BrokerError) {
        if !matches!(self.state, State::Finished(_)) {
            let error = if kind == TransactionErrorKind::Fenced { worth_another(error) } else { error };
            self.state = State::Finished(TransactionError { kind, error });
        }
    }

    fn ended(&mut self) {
        let aborted = matches!(self.state, State::Aborting);
        if aborted && std::mem::take(&mut self.unsure) {
            // Offsets that arrive from now on must not get into the next transaction.
            self.bump = true;
        }
        self.joined.clear();
        self.groups.clear();
        (self.started, self.perhaps, self.ending) = (false, false, false);
        (self.untaken, self.owes_offsets) = (None, false);
        // A producer that never had an id gets its first.
        let next = if aborted && (self.bump || self.producer.is_none()) { State::Initialising } else { State::Ready };
        (self.state, self.unsure) = (next, false);
        if self.bump && !self.can_bump {
            let error = self.order("abort", "the broker knows no epoch after this one (Kafka before 2.5)").error;
            self.finish(TransactionErrorKind::Fatal, error);
        }
    }

    fn error(&self, api: Api, code: ErrorCode) -> BrokerError {
        let what = match api {
            Api::FindCoordinator => "find its coordinator",
            Api::InitProducerId => "get an epoch",
            Api::AddPartitions => "add partitions",
            Api::AddOffsets => "add a group's offsets",
            Api::CommitOffsets => "commit a group's offsets",
            Api::End => "end it",
            Api::Produce => "publish",
        };
        BrokerError { kind: code.kind(), action: format!("{}: {what}", self.name), reason: code.to_string() }
    }

    fn misused(&self, operation: Operation, reason: &str) -> TransactionError {
        let name = match operation {
            Operation::Init => "init",
            Operation::SendOffsets => "send offsets",
            Operation::Commit => "commit",
            Operation::Abort => "abort",
        };
        self.order(name, reason)
    }

    fn order(&self, what: &str, reason: &str) -> TransactionError {
        let action = format!("{}: {what}", self.name);
        let error = BrokerError { kind: BrokerErrorKind::Fatal, action, reason: reason.to_owned() };
        TransactionError { kind: TransactionErrorKind::Order, error }
    }
}
