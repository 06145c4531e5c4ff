//! The columnar data plane: Kafka's protocol spoken by Fluxmill itself, from record batches straight to columns and
//! back, with no object for each event. Groups, commits and administration stay with librdkafka (see `group`).

mod cluster;
mod connection;
mod error;
#[cfg(test)]
mod fake;
mod fetch;
mod produce;
mod record_batch;
mod response;
mod sasl;
mod source;
mod stream;
mod tls;
mod versions;

use std::sync::Arc;

use crate::broker::BrokerError;
use crate::spec::{ColumnarSettings, KafkaConnection};

pub(in crate::broker) use produce::partition_of_key;
pub use produce::{ColumnarProducer, ColumnarSink, Driver};
pub use produce::{TransactionError, TransactionErrorKind, TransactionSpec, TransactionalProducer};
pub use source::ColumnarSource;

/// Connects as the data plane will, and asks a broker who the others are.
///
/// # Errors
/// What is in the way, in words that name Fluxmill's settings; [`Unreachable`](crate::broker::BrokerErrorKind) may
/// pass.
pub(super) async fn try_out(
    connection: &KafkaConnection,
    settings: &ColumnarSettings,
    client_id: &str,
) -> Result<(), BrokerError> {
    let options = connection::Options::new(connection, client_id)?;
    let control = cluster::Control::new(connection, settings, Arc::new(options));
    let (_, told) = control.metadata(Vec::new()).await;
    told.map(|_| ()).map_err(|error| error.into_broker(format!("connect to {}", super::address(connection))))
}
