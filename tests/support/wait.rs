//! Waiting for something with a deadline. The only place of the tests that lets time pass.

use std::time::{Duration, Instant};

use anyhow::bail;

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(10);

/// Looks at `ready` until it has something, `limit` at most. An error of `ready` ends the wait at once.
///
/// # Errors
/// When the time is over, naming `what` was waited for.
pub(crate) fn wait_until<T>(
    limit: Duration,
    what: &str,
    mut ready: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = ready()? {
            return Ok(found);
        }
        if start.elapsed() > limit {
            bail!("waited {limit:?} in vain for: {what}");
        }
        std::thread::sleep(INTERVAL);
    }
}

/// [`wait_until`] for a plain condition.
///
/// # Errors
/// When the time is over.
pub(crate) fn wait_for(limit: Duration, what: &str, mut ready: impl FnMut() -> bool) -> anyhow::Result<()> {
    wait_until(limit, what, || Ok(ready().then_some(())))
}

/// Lets time pass between two portions of a load. Never a way to wait for something: that is [`wait_until`].
pub(crate) fn pace(portion: Duration) {
    std::thread::sleep(portion);
}
