//! NATS, by async-nats: streams of JetStream, and core NATS.
//!
//! `source` reads a stream by a durable consumer, `core` reads subjects that nothing keeps, `producer` publishes to
//! both, each over a connection of its own; `admin` looks at streams and creates them; `mapping` is what an event is on NATS. Nothing here knows functions, pipelines or YAML.

pub mod admin;
mod connection;
mod consumer;
mod core;
mod mapping;
mod producer;
mod row;
mod source;
mod window;

use crate::broker::{BrokerError, BrokerErrorKind};
use crate::spec::NatsConnection;

pub use core::CoreSource;
pub use producer::{NatsDriver, NatsProducer, NatsSink, Origins, Sender};
pub use source::NatsSource;

/// The system as messages name it.
fn address(connection: &NatsConnection) -> String {
    format!("nats at {}", connection.servers.join(", "))
}

/// An error of what was done here.
fn failed(kind: BrokerErrorKind, action: impl Into<String>, reason: impl std::fmt::Display) -> BrokerError {
    BrokerError { kind, action: action.into(), reason: reason.to_string() }
}
