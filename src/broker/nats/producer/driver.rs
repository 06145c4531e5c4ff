//! What must be run for a producer: the only one that sends over its connection.

mod each;
mod inbox;
mod whole;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{OnceCell, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Batch, Outgoing};
use crate::broker::BrokerError;
use crate::broker::nats::connection::Connection;
use crate::broker::nats::window::Window;
use crate::spec::NatsConnection;
use each::Sending;
use whole::Batches;

/// How long an acknowledgement may take before everything without one is sent again.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait before something is sent again that the server did not take for the moment.
const PAUSE: Duration = Duration::from_millis(250);
/// How long no stream may take a subject: a server that has just started may not know its streams yet.
const MISSING_MAX: Duration = Duration::from_secs(10);
/// How often it is said at most that something is not taken.
const SAY_INTERVAL: Duration = Duration::from_secs(30);

/// What must be run for a producer.
pub struct NatsDriver {
    connection: NatsConnection,
    client_id: String,
    pub(super) queue: Queued,
    largest: Arc<OnceCell<usize>>,
    broken: Arc<Mutex<Option<BrokerError>>>,
    close: CancellationToken,
    closed: DropGuard,
}

/// Sends until it cannot go on.
type Work<'a> = BoxFuture<'a, Result<(), BrokerError>>;

/// What is to be sent.
pub(super) enum Queued {
    /// Messages, each by itself.
    Each(mpsc::Receiver<Vec<Outgoing>>),
    /// Atomic batches.
    Whole(mpsc::Receiver<Batch>),
}

impl NatsDriver {
    pub(super) fn new(
        connection: NatsConnection,
        client_id: &str,
        queue: Queued,
        largest: Arc<OnceCell<usize>>,
        broken: Arc<Mutex<Option<BrokerError>>>,
        [close, closed]: [&CancellationToken; 2],
    ) -> Self {
        let (client_id, close, closed) = (client_id.to_owned(), close.clone(), closed.clone().drop_guard());
        Self { connection, client_id, queue, largest, broken, close, closed }
    }

    /// Runs until the producer is closed.
    ///
    /// # Errors
    /// Why it cannot go on; whoever publishes is told too.
    pub async fn run(self) -> Result<(), BrokerError> {
        let Self { connection, client_id, queue, largest, broken, close, closed } = self;
        let connected = OnceCell::new();
        let connect = async {
            let connection = Connection::open(&connection, &client_id, false).await?;
            // Who waits for it has nothing queued yet.
            let _ = largest.set(connection.client.max_payload());
            let _ = connected.set(connection.clone());
            Ok(connection)
        };
        let until_closed = async |work: Work<'_>| {
            let ended = tokio::select! {
                ended = work => ended,
                () = close.cancelled() => Ok(()),
            };
            *broken.lock().unwrap_or_else(PoisonError::into_inner) = ended.as_ref().err().cloned();
            ended
        };
        let ended = match queue {
            Queued::Each(mut queue) => {
                let mut window = Window::default();
                let work = async { Sending::new(&connect.await?, &mut queue, &mut window).await?.run().await };
                let ended = until_closed(Box::pin(work)).await;
                match (&ended, connected.get()) {
                    (Err(error), _) => window.drain().for_each(|outgoing| outgoing.pending().fail(error)),
                    // Core NATS acknowledges nothing: whoever closes may rely on it that the server has all.
                    (Ok(()), Some(connection)) => _ = connection.round_trip().await,
                    (Ok(()), None) => {}
                }
                ended
            }
            Queued::Whole(mut queue) => {
                let mut taken = VecDeque::new();
                let work = async { Batches::new(&connect.await?, &mut queue, &mut taken).await?.run().await };
                let ended = until_closed(Box::pin(work)).await;
                if let Err(error) = &ended {
                    taken.iter().for_each(|batch: &Batch| batch.work.fail(error));
                }
                ended
            }
        };
        drop(closed);
        ended
    }
}

impl std::fmt::Debug for NatsDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsDriver").field("client_id", &self.client_id).finish_non_exhaustive()
    }
}
