//! What must be run for a producer: the only one that sends over its connection.

mod each;
mod inbox;
mod pace;
mod whole;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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

    /// Runs until the producer is closed. What cannot go on is told to whoever publishes.
    pub async fn run(self) {
        let Self { connection, client_id, queue, largest, broken, close, closed } = self;
        let connected = OnceCell::new();
        let connect = async {
            let connection = Connection::open(&connection, &client_id, false).await?;
            // Who waits for it has nothing queued yet.
            let _ = largest.set(connection.client.max_payload());
            let _ = connected.set(connection.clone());
            Ok(connection)
        };
        let until_closed = UntilClosed { close: &close, broken: &broken };
        match queue {
            Queued::Each(mut queue) => {
                let mut window = Window::default();
                let work =
                    Box::pin(async { Sending::new(&connect.await?, &mut queue, &mut window).await?.run().await });
                if let Some(error) = until_closed.failure(work).await {
                    window.drain().for_each(|outgoing| outgoing.pending().fail(&error));
                    let fail = |run: Vec<Outgoing>| run.iter().for_each(|outgoing| outgoing.pending().fail(&error));
                    until_closed.refuse(&mut queue, fail).await;
                } else if let Some(connection) = connected.get() {
                    // Core NATS acknowledges nothing: whoever closes may rely on it that the server has all.
                    connection.round_trip().await;
                }
            }
            Queued::Whole(mut queue) => {
                let mut current = None;
                let work =
                    Box::pin(async { Batches::new(&connect.await?, &mut queue, &mut current).await?.run().await });
                if let Some(error) = until_closed.failure(work).await {
                    current.into_iter().for_each(|batch: Batch| batch.work.fail(&error));
                    until_closed.refuse(&mut queue, |batch| batch.work.fail(&error)).await;
                }
            }
        }
        drop(closed);
    }
}

/// What ends with the producer.
struct UntilClosed<'a> {
    close: &'a CancellationToken,
    broken: &'a Mutex<Option<BrokerError>>,
}

impl UntilClosed<'_> {
    /// Why the work cannot go on; none when the producer was closed.
    async fn failure(&self, work: impl Future<Output = Result<(), BrokerError>>) -> Option<BrokerError> {
        let failure = tokio::select! {
            failure = work => failure.err(),
            () = self.close.cancelled() => None,
        };
        if let Some(error) = &failure {
            *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
        }
        failure
    }

    /// Gives back what is still queued.
    async fn refuse<T>(&self, queue: &mut mpsc::Receiver<T>, fail: impl Fn(T)) {
        let refuse = async {
            while let Some(queued) = queue.recv().await {
                fail(queued);
            }
        };
        tokio::select! {
            () = refuse => {}
            () = self.close.cancelled() => {}
        }
    }
}

impl std::fmt::Debug for NatsDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsDriver").field("client_id", &self.client_id).finish_non_exhaustive()
    }
}
