//! librdkafka's log lines, passed on to tracing without line storms.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;

/// A line of one kind is logged at most this often; what was held back is counted on the next.
const INTERVAL: Duration = Duration::from_secs(10);
/// Kinds that are remembered. librdkafka has a few dozen.
const KINDS_MAX: usize = 256;

/// Passes lines on, at most one of a kind within [`INTERVAL`].
#[derive(Debug)]
pub(super) struct Lines {
    client: String,
    last: Mutex<HashMap<String, (Instant, u64)>>,
}

impl Lines {
    /// For the client named `client`.
    pub(super) fn new(client: impl Into<String>) -> Self {
        Self { client: client.into(), last: Mutex::default() }
    }

    /// A line of librdkafka's own.
    pub(super) fn line(&self, level: RDKafkaLogLevel, kind: &str, text: &str) {
        use RDKafkaLogLevel as Level;
        // Connection failures and polls that were late come again as error events, which are told apart and reported
        // there; settings of the other kind of client are told of because one connection's properties serve both.
        // And a broker that has just started is asked again for a producer id until it has one.
        let known = matches!(kind, "FAIL" | "ERROR" | "CONFWARN" | "COMMITFAIL" | "MAXPOLL")
            || (text.contains("Failed to acquire idempotence PID") && text.ends_with("retrying"));
        match level {
            _ if known => tracing::debug!(target: "fluxmill::kafka", client = self.client, "{kind}: {text}"),
            Level::Emerg | Level::Alert | Level::Critical | Level::Error | Level::Warning => self.warn(kind, text),
            Level::Notice | Level::Info | Level::Debug => {
                tracing::debug!(target: "fluxmill::kafka", client = self.client, "{kind}: {text}");
            }
        }
    }

    /// A warning of this kind.
    pub(super) fn warn(&self, kind: &str, text: &str) {
        if let Some(held_back) = self.pass(kind, Instant::now()) {
            let more = if held_back == 0 { String::new() } else { format!(" ({held_back} more like it)") };
            tracing::warn!(target: "fluxmill::kafka", client = self.client, "{text}{more}");
        }
    }

    /// Whether a line of this kind may pass now; how many were held back since the last.
    fn pass(&self, kind: &str, now: Instant) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, held_back)) = last.get_mut(kind) {
            if now.duration_since(*at) < INTERVAL {
                *held_back += 1;
                return None;
            }
            *at = now;
            return Some(std::mem::take(held_back));
        }
        if last.len() < KINDS_MAX {
            last.insert(kind.to_owned(), (now, 0));
        }
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_one_line_and_a_count() {
        let lines = Lines::new("test");
        let start = Instant::now();
        assert_eq!(lines.pass("OFFSET", start), Some(0));
        for _ in 0..100 {
            assert_eq!(lines.pass("OFFSET", start), None);
        }
        assert_eq!(lines.pass("OTHER", start), Some(0));
        assert_eq!(lines.pass("OFFSET", start + INTERVAL), Some(100));
    }
}
