//! A load on a thread of its own, whichever the broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use anyhow::Context;

/// The end of a load that nobody stops, in events.
pub(crate) const FED_AT_MOST: u64 = 3_000_000;

/// A load that goes on until it is told to stop.
pub(crate) struct Feeder {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<u64>>>,
}

impl Feeder {
    /// Starts it. `work` ends soon after its flag is set, and gives how many events the broker has acknowledged.
    pub(crate) fn start(work: impl FnOnce(&AtomicBool) -> anyhow::Result<u64> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        #[expect(clippy::disallowed_methods, reason = "joined by `finish`, told to stop when this is dropped")]
        let thread = std::thread::spawn(move || work(&stopped));
        Self { stop, thread: Some(thread) }
    }

    /// Stops it; gives how many events the broker has acknowledged, which is all of them.
    ///
    /// # Errors
    /// When one was not acknowledged.
    pub(crate) fn finish(mut self) -> anyhow::Result<u64> {
        self.stop.store(true, Relaxed);
        let thread = self.thread.take().context("already stopped")?;
        thread.join().map_err(|_| anyhow::anyhow!("the load panicked"))?
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}
