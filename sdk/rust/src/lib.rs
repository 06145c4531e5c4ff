#![doc = include_str!("../README.md")]
//!
//! # Where to look
//! - [`function!`] makes a handler the component's function; [`Handler`](handler::Handler) says which forms it takes.
//! - [`Event`] is what a handler reads, [`Emit`] where it publishes, [`Error`] how it fails one event.
//! - [`Batch`] and the column types ([`EventBatch`], [`BinaryColumn`], [`HeaderColumn`], [`Outcome`]) are for those
//!   who want columns.
//! - [`info!`], [`warn!`] and their like write to the log, see [`log`](mod@log).
//! - [`testing`] runs a function on plain events.
//!
//! The crate is no runtime and no framework: what a function may do beyond reading its events is what the host grants.

mod batch;
#[doc(hidden)]
pub mod bindings;
mod column;
mod emit;
mod error;
pub mod handler;
#[cfg(all(feature = "heap", target_arch = "wasm32", target_os = "unknown", not(target_feature = "atomics")))]
mod heap;
pub mod log;
mod settings;
pub mod testing;

pub use batch::{Batch, Event, Headers};
pub use bindings::fluxmill::function::types::{
    BinaryColumn, BinarySource, EventBatch, Failure, FailureKind, HeaderColumn, HeaderSource, Outcome,
};
pub use emit::{Draft, Emit, Target, ValueWriter};
pub use error::{Error, OrFail};

/// What the macros call. Not for people.
#[doc(hidden)]
pub mod __private {
    #[cfg(target_arch = "wasm32")]
    pub use crate::handler::call;
    pub use crate::handler::is_handler;
}

/// The guide's examples are compiled and run with the crate's own.
#[cfg(doctest)]
#[doc = include_str!("../functions.md")]
pub struct Guide;
