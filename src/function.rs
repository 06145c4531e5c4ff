//! The only door to WebAssembly: loads components and calls them, a fresh sandbox for each batch.
//!
//! Everything that comes back from a function is checked here; nothing behind this door is believed, and nothing in
//! front of it knows wasmtime. It starts no task and no thread: the pipeline's wiring gives [`Engine::tick_until`] one.

mod abi;
mod cache;
mod engine;
mod error;
mod fault;
mod imports;
mod journal;
mod limits;
mod sandbox;
mod wasi;

pub use engine::{Engine, EngineOptions};
pub use error::{LoadError, NotAComponent};
pub use sandbox::Function;

use crate::event::{EventBatch, Outcome};

/// Why a call failed as a whole.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The function asked for the batch to be run again.
    #[error("the function asked for a retry: {0}")]
    Retry(String),
    /// The function refused the batch.
    #[error("the function rejected the batch: {0}")]
    Reject(String),
    /// The sandbox ended the call, or did not believe its result.
    #[error("{fault}: {reason}")]
    Fault {
        /// What kind of fault.
        fault: Fault,
        /// The details, in words.
        reason: String,
    },
}

/// What went wrong in a sandbox. Running the same rows again would go wrong again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The function trapped: a panic, an index out of bounds, a stack overflow.
    Trap,
    /// It ran longer than `limits.timeout`.
    Timeout,
    /// It asked for more memory than `limits.memory`.
    Memory,
    /// It returned more than `limits.output`, or something that cannot be true.
    Output,
}

impl Fault {
    /// The word that dead-letter headers, logs and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::Trap => "trap",
            Fault::Timeout => "timeout",
            Fault::Memory => "memory",
            Fault::Output => "output",
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a lane calls: a function over a batch. The sandbox is one; tests have others.
pub trait Transform: Send + Sync + 'static {
    /// Runs the function over the batch. The outcome was checked: it can be believed.
    ///
    /// # Errors
    /// The batch failed as a whole; nothing of it was published.
    fn call(&self, batch: &EventBatch) -> impl Future<Output = Result<Outcome, CallError>> + Send;
}

/// The function of a pipeline that has none: every event is published unchanged to the first output.
#[derive(Clone, Copy, Debug)]
pub struct PassThrough;

impl Transform for PassThrough {
    async fn call(&self, batch: &EventBatch) -> Result<Outcome, CallError> {
        Ok(Outcome::pass_through(batch.len()))
    }
}
