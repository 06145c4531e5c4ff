//! Why a chain does not start, and why one that ran has failed: what begins anew, what ends it, and which of several
//! failures is the cause.

use std::time::Duration;

use crate::broker::{BrokerError, BrokerErrorKind};
use crate::function::LoadError;
use crate::pipeline::lane::LaneError;

/// Why a chain did not start. Nothing was consumed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A function cannot be loaded.
    #[error("pipeline {pipeline}: {source}")]
    Function {
        /// The chain's name.
        chain: String,
        /// The pipeline's name.
        pipeline: String,
        /// Why not.
        source: LoadError,
    },
    /// The sandboxes cannot be set up on this machine.
    #[error(transparent)]
    Engine(LoadError),
    /// The broker says no, in one or more ways.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Broker(Vec<BrokerError>),
    /// Two files whose pipelines would take each other's events.
    #[error("{0}; each would see only a part of the events: give one of them another `group`")]
    SharedGroup(String),
    /// `until_caught_up` on a loop, which never is.
    #[error("--until-caught-up cannot end on a loop: {0}; run the chain without it")]
    Loop(String),
    /// `until_caught_up` where there is no end to reach.
    #[error(
        "--until-caught-up has no end to reach: pipeline {0} reads core NATS, which keeps nothing; run the chain without it"
    )]
    NotKept(String),
}

/// Why a chain that ran has failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A lane ended the pipeline.
    #[error("pipeline {pipeline}: {source}")]
    Lane {
        /// The pipeline's name.
        pipeline: String,
        /// Why.
        source: LaneError,
    },
    /// The source ended the pipeline.
    #[error("pipeline {pipeline}: {source}")]
    Source {
        /// The pipeline's name.
        pipeline: String,
        /// Why.
        source: BrokerError,
    },
    /// A producer cannot go on.
    #[error("pipeline {pipeline}: {source}")]
    Producer {
        /// The pipeline's name.
        pipeline: String,
        /// Why.
        source: BrokerError,
    },
    /// What was in flight did not end in time. It was not confirmed and will be delivered again.
    #[error(
        "pipeline {pipeline}: what was in flight did not end within {timeout:?}; it is not confirmed, and will be delivered again"
    )]
    DrainTimedOut {
        /// The pipeline's name.
        pipeline: String,
        /// The deadline that passed.
        timeout: Duration,
    },
    /// The same, where nothing keeps it.
    #[error(
        "pipeline {pipeline}: what was in flight did not end within {timeout:?}; its broker keeps nothing, and it is lost"
    )]
    Lost {
        /// The pipeline's name.
        pipeline: String,
        /// The deadline that passed.
        timeout: Duration,
    },
    /// What would have been begun anew, had the pipeline not been stopping.
    #[error("{0}; it was stopping: what is not confirmed is processed again at the next start")]
    Undone(Box<RunError>),
    /// A defect of Fluxmill.
    #[error("pipeline {pipeline}: {task} ended unexpectedly: {reason}; please report this as a defect of Fluxmill")]
    Panic {
        /// The pipeline's name.
        pipeline: String,
        /// Which task.
        task: &'static str,
        /// What is known.
        reason: String,
    },
}

impl RunError {
    /// Whether a transaction or a membership was lost, so that beginning anew is all that is needed; or, when it is being tried again,
    /// the broker is not there for the moment.
    pub(super) fn may_pass(&self, again: bool) -> bool {
        match self.broker_error_kind() {
            Some(BrokerErrorKind::Aborted) => true,
            Some(BrokerErrorKind::Unreachable) => again,
            _ => false,
        }
    }

    /// Whether it is the topic of the dead letters that is gone.
    pub(super) fn lacks_letters(&self) -> bool {
        matches!(self, Self::Lane { source: LaneError::NoLetters { .. }, .. })
    }

    /// Whether others may have more to tell: a lane only that its producer is gone, a producer not whose event it was.
    fn follows(&self) -> bool {
        match self {
            Self::Lane { source, .. } => source.follows(),
            Self::Producer { .. } => true,
            _ => false,
        }
    }

    fn broker_error_kind(&self) -> Option<BrokerErrorKind> {
        match self {
            Self::Lane { source: LaneError::Broker(source), .. }
            | Self::Producer { source, .. }
            | Self::Source { source, .. } => Some(source.kind),
            _ => None,
        }
    }

    /// Which of two failures of one pipeline is the cause: the first, unless it may follow from the other. Where a
    /// transaction has failed, others learn no more than that their producer was closed; and where something else has
    /// failed, its transaction fails too. What a lane has given up does not end in time.
    fn or(self, later: Self) -> Self {
        let weight = |error: &Self| match (error, error.broker_error_kind()) {
            (Self::DrainTimedOut { .. } | Self::Lost { .. }, _) | (_, Some(BrokerErrorKind::Closed)) => 0,
            (Self::Producer { .. }, _) => 1,
            (_, Some(BrokerErrorKind::Aborted)) => 2,
            _ => 3,
        };
        if weight(&later) > weight(&self) { later } else { self }
    }
}

/// By what a pipeline has failed, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Failure(Option<RunError>);

impl Failure {
    pub(super) fn note(&mut self, error: RunError) {
        self.0 = Some(match self.0.take() {
            Some(first) => first.or(error),
            None => error,
        });
    }

    /// Whether nothing has failed.
    pub(super) fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Whether nobody has to be heard any more to know why.
    pub(super) fn knows_cause(&self) -> bool {
        self.0.as_ref().is_some_and(|error| !error.follows())
    }

    /// How the pipeline has ended.
    pub(super) fn end(self) -> Result<(), RunError> {
        self.0.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(kind: BrokerErrorKind) -> RunError {
        let source = BrokerError { kind, action: "publish".into(), reason: format!("{kind:?}") };
        RunError::Lane { pipeline: "payment".into(), source: LaneError::Broker(source) }
    }

    /// One failure brings others with it, in any order; only the first cause says what to do.
    #[test]
    fn the_cause_of_a_failure_is_told() {
        let place = || "orders[0]@5".to_owned();
        let stop = RunError::Lane {
            pipeline: "payment".into(),
            source: LaneError::Stop {
                place: place(),
                by: crate::pipeline::settle::FailedBy::Reject,
                reason: "bad".into(),
            },
        };
        for cause in [stop, lane(BrokerErrorKind::Denied), lane(BrokerErrorKind::Fatal)] {
            let text = cause.to_string();
            let cause = lane(BrokerErrorKind::Aborted).or(lane(BrokerErrorKind::Closed)).or(cause);
            let cause = cause.or(lane(BrokerErrorKind::Aborted)).or(lane(BrokerErrorKind::Closed));
            assert_eq!(cause.to_string(), text);
            assert!(!cause.may_pass(false));
        }
        let aborted = lane(BrokerErrorKind::Closed).or(lane(BrokerErrorKind::Aborted));
        assert!(aborted.may_pass(false));
        assert!(
            lane(BrokerErrorKind::Unreachable).may_pass(true) && !lane(BrokerErrorKind::Unreachable).may_pass(false)
        );
    }
}
