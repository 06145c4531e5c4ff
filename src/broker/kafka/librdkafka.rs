//! The librdkafka data plane: its whole client, for clusters and settings that the columnar one does not know.
//!
//! It moves rows one by one between librdkafka's queues and columns. The one thread that is started here, the
//! producer's, belongs to its [`LibrdkafkaProducer`] and is joined by it.

mod deliveries;
mod sink;
mod source;

pub use sink::{LibrdkafkaProducer, LibrdkafkaSink};
pub use source::LibrdkafkaSource;
