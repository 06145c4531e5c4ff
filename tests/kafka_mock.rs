//! The Kafka source and sink against librdkafka's mock cluster: real sockets, no broker to install. What the mock
//! cannot show (durability, transactions, admin calls) is tested on a real broker.

#![allow(clippy::disallowed_methods, reason = "tests are not wired by src/pipeline.rs")]

#[path = "kafka_mock/harness.rs"]
mod harness;
#[path = "kafka_mock/sink.rs"]
mod sink;
#[path = "kafka_mock/source.rs"]
mod source;
#[path = "kafka_mock/start.rs"]
mod start;
