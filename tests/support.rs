//! What the tests against a real broker share: brokers, the binary as a process, a client of their own, a checker.
//!
//! Nothing in here knows how Fluxmill works inside; it sees the binary, its output and what is in the topics.
#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]
#![allow(clippy::disallowed_methods, reason = "tests are not wired by src/pipeline.rs")]

pub(crate) mod chain;
pub(crate) mod checker;
pub(crate) mod client;
pub(crate) mod core;
pub(crate) mod crashes;
pub(crate) mod environment;
pub(crate) mod feeder;
pub(crate) mod files;
pub(crate) mod kafka;
pub(crate) mod kcat;
pub(crate) mod nats;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod setup;
pub(crate) mod suite;
pub(crate) mod transactions;
pub(crate) mod wait;
pub(crate) mod workload;
