//! What the pipeline needs of a broker. Each broker is a folder; none knows functions, pipelines or YAML.

mod any;
pub mod kafka;
pub mod memory;
pub mod nats;
mod pending;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::delivery::Tracker;
use crate::event::Publication;
use crate::intake::{Bell, Lanes};
use crate::spec::CommitSpec;

pub use any::{AnyDriver, AnyProducer, AnySink, AnySource};

/// What an error means for the one who called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerErrorKind {
    /// The broker cannot be reached.
    Unreachable,
    /// A topic or a stream does not exist.
    UnknownTopic,
    /// The broker refused: credentials, or no permission.
    Denied,
    /// A setting that the client or the broker does not accept.
    Settings,
    /// One event is larger than the broker takes; others may pass.
    TooLarge,
    /// The broker will not take one event, whatever its size; others may pass.
    Refused,
    /// What is not confirmed has to be begun anew: the transaction has failed, and nothing of it will be seen, or this
    /// process was thrown out of its group.
    Aborted,
    /// The producer was closed: something else is the cause.
    Closed,
    /// Anything else that ends the pipeline.
    Fatal,
}

/// An error of a broker: what was being done, and in which words it failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{action}: {reason}")]
pub struct BrokerError {
    /// What the caller branches on.
    pub kind: BrokerErrorKind,
    /// What was being done, such as "publish to topic payments".
    pub action: String,
    /// Why it failed.
    pub reason: String,
}

/// What a source is given to run with.
#[derive(Debug)]
pub struct SourceContext {
    /// The lanes. The source deals its rows to them, and closes them all at its end.
    pub lanes: Lanes,
    /// Where the source begins assignments and reads what to commit.
    pub tracker: Arc<Tracker>,
    /// Rung when a lane has room again and when `stop` was cancelled. The source may ring it too.
    pub bell: Arc<Bell>,
    /// Cancelled when intake must stop: drain what is in flight, commit, leave, return.
    pub stop: CancellationToken,
    /// Cancelled by a source whose broker keeps nothing, once what is published from now on reaches it.
    pub reads: CancellationToken,
    /// How often progress is confirmed.
    pub commit: CommitSpec,
    /// When given: once this is cancelled, note the ends of all partitions, and return, as after `stop`, when
    /// everything up to there has ended. Upstream pipelines have ended by then.
    pub caught_up: Option<CancellationToken>,
    /// How long draining may take before what is in flight is given up (it is then delivered again).
    pub drain_timeout: std::time::Duration,
}

/// Closes lanes when dropped.
pub(crate) struct CloseLanes(pub(crate) Lanes);

impl Drop for CloseLanes {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// How a source ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceEnd {
    /// Everything that was taken has ended and is committed.
    Drained,
    /// The drain deadline passed; what had not ended will be delivered again.
    DrainTimedOut,
    /// The drain deadline passed; what had not ended is lost, since the broker keeps nothing.
    Lost,
}

/// Where events come from.
pub trait Source: Send + 'static {
    /// Runs until stopped or caught up. Blocks: the caller gives it a thread of its own.
    ///
    /// # Errors
    /// When the broker refuses, or the client cannot go on. Unreachable brokers are waited for, once one was reached.
    fn run(self, context: SourceContext) -> Result<SourceEnd, BrokerError>;
}

/// The events of one publication that the broker will never take.
#[derive(Clone, Debug, Default)]
pub struct PublishReport {
    /// Positions in the publication, ascending, each with its reason.
    pub refused: Vec<(u32, BrokerError)>,
}

/// Resolves when every event of a publication was acknowledged or refused.
pub type Acknowledgement = Pin<Box<dyn Future<Output = Result<PublishReport, BrokerError>> + Send>>;

/// Where events go.
pub trait Sink: Send + Sync + 'static {
    /// Hands a publication to the client, in order; waits while the client has no room. The events are safe only
    /// when the acknowledgement resolves.
    ///
    /// # Errors
    /// When nothing more can be published.
    fn publish(&self, publication: Publication) -> impl Future<Output = Result<Acknowledgement, BrokerError>> + Send;
}
