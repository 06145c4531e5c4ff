//! NATS with JetStream, by async-nats.
//!
//! `source` reads a stream by a durable consumer, `producer` publishes, each over a connection of its own; `admin` looks
//! at streams and creates them; `mapping` is what an event is on NATS. Nothing here knows functions, pipelines or YAML.

pub mod admin;
mod connection;
mod consumer;
mod mapping;
mod producer;
mod source;
mod window;

use crate::broker::{BrokerError, BrokerErrorKind};
use crate::spec::NatsConnection;

pub use producer::{NatsDriver, NatsProducer, NatsSink, Sender};
pub use source::NatsSource;

/// The system as messages name it.
fn address(connection: &NatsConnection) -> String {
    format!("nats at {}", connection.servers.join(", "))
}

/// An error of what was done here.
fn failed(kind: BrokerErrorKind, action: impl Into<String>, reason: impl std::fmt::Display) -> BrokerError {
    BrokerError { kind, action: action.into(), reason: reason.to_string() }
}
