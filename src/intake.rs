//! A lane's intake: the bounded place between a source's thread, which appends rows, and the lane's task, which
//! takes batches.
//!
//! Batching is natural: a lane takes what is there as soon as it is free, so batches are small and fast when idle
//! and grow under load. The source never waits here; a full intake refuses the row, and the source goes on serving
//! its broker until the [`Bell`] tells it to try again.

mod lanes;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::delivery::{Segment, SetNumber, Sets, Token, Tracker};
use crate::event::{BatchBuilder, EventBatch, HEADER_OVERHEAD, Origin};
use crate::spec::BatchLimits;

pub use lanes::{Lanes, Run};

/// Sealed batches that may wait beside the one that is being filled, however large they are.
const SEALED_BATCHES_MAX: usize = 2;
/// Bytes that a sealed batch takes beside its events': many small ones must not count for nothing.
const BATCH_OVERHEAD: usize = 4096;
/// Bytes that a row takes beside its key, value and headers.
const ROW_OVERHEAD: usize = 32;

/// A batch on its way through a lane, with the duty to bring it to its end.
#[derive(Debug)]
pub struct Delivery {
    /// The events.
    pub batch: EventBatch,
    /// The duty.
    pub token: Token,
    /// When the first event was appended.
    pub since: Instant,
}

/// The intake has no room; the row was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

#[derive(Default)]
struct Open {
    builder: BatchBuilder,
    segments: Vec<Segment>,
    since: Option<Instant>,
    set: Option<SetNumber>,
}

/// A batch that waits for its lane.
struct Sealed {
    delivery: Delivery,
    bytes: usize,
}

struct State {
    open: Open,
    sealed: VecDeque<Sealed>,
    /// Bytes of the sealed ones.
    sealed_bytes: usize,
    closed: bool,
    /// The open batch goes as it is, whatever `max_wait` says.
    hurried: bool,
    refused: bool,
}

/// The bounded intake of one lane.
pub struct Intake {
    limits: BatchLimits,
    /// Bytes of sealed batches up to which more of them may wait than [`SEALED_BATCHES_MAX`].
    queue_bytes: usize,
    tracker: Arc<Tracker>,
    state: Mutex<State>,
    rows: Notify,
    bell: Arc<Bell>,
}

/// Wakes a source, which waits as a thread or as a task: rung when a lane has room again, when the client has rows, when the source must stop.
#[derive(Debug, Default)]
pub struct Bell {
    rung: Mutex<bool>,
    change: Condvar,
    rings: Notify,
}

impl Bell {
    /// Wakes the thread that waits, or lets its next wait return at once.
    pub fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.change.notify_one();
        self.rings.notify_one();
    }

    /// Waits until the bell was rung since the last wait. For a source that is a task; only one may wait.
    pub async fn rung(&self) {
        self.rings.notified().await;
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Waits until the bell was rung since the last wait, or `timeout` passed; true when it was rung.
    pub fn wait(&self, timeout: Duration) -> bool {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut rung, _) =
            self.change.wait_timeout_while(rung, timeout, |rung| !*rung).unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *rung)
    }
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// The source's hold on an intake while it appends a run of rows.
pub struct Writer<'a> {
    intake: &'a Intake,
    state: MutexGuard<'a, State>,
    appended: bool,
}

impl Intake {
    /// An intake whose batches keep to `limits`. The bell is rung when the lane took a batch after a row was refused.
    pub fn new(limits: BatchLimits, tracker: Arc<Tracker>, bell: Arc<Bell>) -> Self {
        Self {
            limits,
            queue_bytes: 0,
            tracker,
            state: Mutex::new(State {
                open: Open::default(),
                sealed: VecDeque::new(),
                sealed_bytes: 0,
                closed: false,
                hurried: false,
                refused: false,
            }),
            rows: Notify::new(),
            bell,
        }
    }

    /// Lets batches of up to so many bytes wait.
    fn queueing(self, queue_bytes: usize) -> Self {
        Self { queue_bytes, ..self }
    }

    /// Takes hold of the intake to append rows. Hold it for one run of rows, not longer: the lane waits meanwhile.
    pub fn writer(&self) -> Writer<'_> {
        let mut state = self.lock();
        // What comes after a cut is of the next set, and so of another batch. There is one cut at a time, so that one
        // sealed batch more is the most that this can make.
        let filling = self.tracker.sets().map(Sets::filling);
        if !state.open.builder.is_empty() && state.open.set != filling {
            self.put_aside(&mut state);
        }
        Writer { intake: self, state, appended: false }
    }

    /// No row will come any more. What is there can still be taken.
    pub fn close(&self) {
        self.lock().closed = true;
        self.rows.notify_one();
    }

    /// What is there goes as soon as the lane is free, without waiting for more: its partitions are being given up.
    pub fn hurry(&self) {
        let mut state = self.lock();
        state.hurried = !state.open.builder.is_empty();
        drop(state);
        self.rows.notify_one();
    }

    /// Waits for the next batch; `None` when the intake was closed and is empty. Only one task may take.
    ///
    /// Cancel-safe: a batch is removed only when it is returned.
    pub async fn take(&self) -> Option<Delivery> {
        loop {
            let until = {
                let mut state = self.lock();
                if let Some(delivery) = self.pop(&mut state) {
                    let refused = std::mem::take(&mut state.refused);
                    drop(state);
                    if refused {
                        self.bell.ring();
                    }
                    return Some(delivery);
                }
                if state.closed && state.open.builder.is_empty() {
                    return None;
                }
                state.open.since.map(|since| since + self.limits.max_wait)
            };
            match until {
                Some(until) => {
                    tokio::select! {
                        () = self.rows.notified() => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
                None => self.rows.notified().await,
            }
        }
    }

    /// The next batch if it may go now: a sealed one, or the open one when it has waited long enough.
    fn pop(&self, state: &mut State) -> Option<Delivery> {
        if let Some(Sealed { delivery, bytes }) = state.sealed.pop_front() {
            state.sealed_bytes -= bytes;
            return Some(delivery);
        }
        let since = state.open.since?;
        let limits = &self.limits;
        let full = state.open.builder.len() >= limits.max_events || state.open.builder.bytes() >= limits.max_bytes;
        let due = full
            || state.closed
            || std::mem::take(&mut state.hurried)
            || limits.max_wait.is_zero()
            || since.elapsed() >= limits.max_wait;
        due.then(|| self.seal(&mut state.open))
    }

    /// Closes the open batch, which waits for its lane.
    fn put_aside(&self, state: &mut State) {
        let bytes = sealed_bytes(&state.open.builder);
        let delivery = self.seal(&mut state.open);
        state.sealed_bytes += bytes;
        state.sealed.push_back(Sealed { delivery, bytes });
    }

    fn seal(&self, open: &mut Open) -> Delivery {
        let (segments, set, events) = (std::mem::take(&mut open.segments), open.set.take(), open.builder.len());
        if let (Some(sets), Some(set)) = (self.tracker.sets(), set) {
            sets.seal(set, events as u64);
        }
        Delivery {
            batch: open.builder.finish(),
            token: Token::new(self.tracker.clone(), segments, set),
            since: open.since.take().expect("a batch that is sealed has a first row"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that a batch takes when it is sealed.
fn sealed_bytes(builder: &BatchBuilder) -> usize {
    BATCH_OVERHEAD + builder.bytes() + ROW_OVERHEAD * builder.len()
}

impl Writer<'_> {
    /// Appends one row.
    ///
    /// # Errors
    /// [`Full`] when the lane has as many rows waiting as it may; append it again after the bell was rung.
    #[inline(always)]
    pub fn append<'a>(
        &mut self,
        origin: Origin,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        timestamp: i64,
        headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + Clone,
    ) -> Result<(), Full> {
        let limits = &self.intake.limits;
        let header_bytes: usize =
            headers.clone().map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len) + HEADER_OVERHEAD).sum();
        let bytes = key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len) + header_bytes;
        let state = &mut *self.state;
        let open = &mut state.open;
        let full = open.builder.len() >= limits.max_events
            || (!open.builder.is_empty() && open.builder.bytes() + bytes > limits.max_bytes);
        if full {
            let waiting = state.sealed_bytes + sealed_bytes(&open.builder);
            if state.sealed.len() >= SEALED_BATCHES_MAX && waiting > self.intake.queue_bytes {
                state.refused = true;
                return Err(Full);
            }
            self.intake.put_aside(state);
        }
        let open = &mut state.open;
        match open.segments.iter_mut().rfind(|segment| segment.slot == origin.slot) {
            Some(segment) => segment.last = origin.offset,
            None => {
                self.intake.tracker.begin(origin.slot, origin.offset);
                open.segments.push(Segment { slot: origin.slot, first: origin.offset, last: origin.offset });
            }
        }
        open.builder.append(origin, key, value, timestamp, headers);
        if open.since.is_none() {
            open.since = Some(Instant::now());
            open.set = self.intake.tracker.sets().map(Sets::begin);
        }
        self.appended = true;
        Ok(())
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if self.appended {
            self.intake.rows.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
