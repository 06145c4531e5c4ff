//! Fluxmill runs event chains: it pulls batches of events from a broker, hands each batch to a stateless WebAssembly
//! function in a fresh sandbox, and publishes what the function returns.
//!
//! The map is in docs/architecture.md. Dependencies point one way: `cli` -> `config`, `pipeline`; `config` -> `spec`;
//! `pipeline` -> `broker`, `function`, `delivery`, `event`; `broker` and `function` never know each other, the YAML or
//! the pipeline.

pub mod broker;
pub mod cli;
pub mod config;
pub mod dead_letter;
pub mod delivery;
pub mod demo;
pub mod event;
pub mod function;
pub mod intake;
pub mod pipeline;
pub mod shutdown;
pub mod spec;
pub mod telemetry;
