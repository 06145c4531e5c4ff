//! Signals. The first SIGINT or SIGTERM asks for an orderly end, the second ends at once.

use std::future::Future;
use std::io;
use std::pin::pin;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Drives `work`; cancels `stop` at the first signal. `None` when a second signal came before `work` ended.
///
/// # Errors
/// When signals cannot be listened to.
pub async fn with_signals<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> io::Result<Option<T>> {
    let mut signals =
        Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? };
    let mut work = pin!(work);
    tokio::select! {
        biased;
        () = signals.next() => {}
        done = &mut work => return Ok(Some(done)),
    }
    tracing::info!("stopping: finishing what is in flight; a second signal ends at once");
    stop.cancel();
    tokio::select! {
        biased;
        () = signals.next() => Ok(None),
        done = &mut work => Ok(Some(done)),
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
