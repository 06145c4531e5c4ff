//! A lane: one task that owns order. It runs the function over one batch at a time and publishes in order; it does
//! not wait for acknowledgements before it takes the next batch, up to a bound. With `order: none` it does not wait
//! for rows that are run again either.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt, TryFutureExt};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::broker::{Acknowledgement, BrokerError, BrokerErrorKind, Sink};
use crate::delivery::Token;
use crate::event::{EventBatch, Publication};
use crate::function::Transform;
use crate::intake::{Delivery, Intake};
use crate::pipeline::dead_letter::{self, Sender};
use crate::pipeline::route::{Part, Routed, route, route_last};
use crate::pipeline::settle::{FailedBy, FailedRow, Settlement, Step};
use crate::spec::{Order, RetrySpec};
use crate::telemetry::metrics::PipelineMetrics;

/// How long batches may take to tell why, when one has learnt only that its producer is gone.
const CAUSE_TIMEOUT: Duration = Duration::from_millis(100);
/// Batches of one lane that may wait for acknowledgements at once.
const IN_FLIGHT_BATCHES_MAX: usize = 8;
/// The same where rows that are run again wait there too, and must not hold up others; as long as it is
/// [`UNORDERED_BYTES_MAX`] at most.
const UNORDERED_BATCHES_MAX: usize = 64;
/// Bytes of memory that batches and what came of them may hold beyond [`IN_FLIGHT_BATCHES_MAX`] of them.
const UNORDERED_BYTES_MAX: usize = 64 << 20;
/// A pipeline whose events fail says so in the log at most this often for each lane.
const FAILURE_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// What happens to an event that cannot be processed.
#[derive(Clone, Debug)]
pub enum LastResort<S> {
    /// It is published, with its reason.
    DeadLetter(S),
    /// The pipeline stops; the event is not confirmed.
    Stop,
    /// It is counted and forgotten.
    Drop,
}

/// What ends a lane, and with it the pipeline.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// The broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// `then: stop`.
    #[error("event at {place} failed ({}): {reason}; `on_error.then` is `stop`", by.as_str())]
    Stop {
        /// Topic, partition and offset.
        place: String,
        /// What kind of failure.
        by: FailedBy,
        /// The details, in words.
        reason: String,
    },
    /// The topic of the dead letters is gone. Nothing was confirmed.
    #[error("event at {place} failed ({}), and its dead letter cannot be published: {source}", by.as_str())]
    NoLetters {
        /// Topic, partition and offset.
        place: String,
        /// What kind of failure the event had.
        by: FailedBy,
        /// What the broker says of the topic.
        source: BrokerError,
    },
    /// An event failed and its dead letter was refused too. Nothing was confirmed.
    #[error("event at {place} failed ({}), and its dead letter was refused: {source}", by.as_str())]
    DeadLetter {
        /// Topic, partition and offset.
        place: String,
        /// What kind of failure the event had.
        by: FailedBy,
        /// Why the letter was refused.
        source: BrokerError,
    },
}

/// One lane of a pipeline.
#[derive(Debug)]
pub struct Lane<T, S> {
    /// Where batches come from.
    pub intake: Arc<Intake>,
    /// The function.
    pub transform: Arc<T>,
    /// Where each output's events go.
    pub outputs: Vec<S>,
    /// What is kept in order.
    pub order: Order,
    /// How failed events are run again.
    pub retry: RetrySpec,
    /// Where events go that cannot be processed.
    pub last_resort: LastResort<S>,
    /// What dead letters say about this pipeline.
    pub sender: Sender,
    /// The pipeline's counts.
    pub metrics: Arc<PipelineMetrics>,
}

/// A batch on its way to its end.
struct Work {
    delivery: Delivery,
    /// When the function was first called for it; later by what it waited for its transaction.
    begun: Instant,
    settlement: Settlement,
    parts: Vec<Part>,
    waiting: Vec<(Routed, Acknowledgement)>,
}

impl Work {
    /// Bytes of memory that it holds.
    fn memory(&self) -> usize {
        let parts = self.parts.iter().map(|part| part.input.memory() + part.outcome.memory());
        parts.sum::<usize>() + self.delivery.batch.memory()
    }
}

impl LaneError {
    /// Whether it says no more than that a producer is gone, of which another one may know why.
    pub fn follows(&self) -> bool {
        matches!(self, Self::Broker(BrokerError { kind: BrokerErrorKind::Closed, .. }))
    }
}

/// A batch that was handed to the sinks, until it has ended; then what of it failed, and the memory that it held.
type InFlight<'a> = BoxFuture<'a, Result<(Vec<FailedRow>, usize), LaneError>>;

impl<T: Transform, S: Sink> Lane<T, S> {
    /// Runs until the intake is closed and everything taken from it has ended.
    ///
    /// # Errors
    /// What ends the pipeline. Batches in flight are then dropped and count as not delivered.
    pub async fn run(self) -> Result<(), LaneError> {
        let (calls, mut in_flight) = (Mutex::new(()), FuturesUnordered::new());
        let Err(mut error) = self.work(&calls, &mut in_flight).await else { return Ok(()) };
        // A batch may only have learnt that its producer was closed, and another one why.
        while error.follows()
            && let Ok(Some(ended)) = tokio::time::timeout(CAUSE_TIMEOUT, in_flight.next()).await
        {
            error = ended.err().unwrap_or(error);
        }
        Err(error)
    }

    async fn work<'a>(
        &'a self,
        calls: &'a Mutex<()>,
        in_flight: &mut FuturesUnordered<InFlight<'a>>,
    ) -> Result<(), LaneError> {
        let (mut log, mut held) = (FailureLog::default(), 0);
        loop {
            let may_take = self.may_take(in_flight.len(), held);
            let delivery = tokio::select! {
                biased;
                Some(ended) = in_flight.next(), if !in_flight.is_empty() => {
                    let (failed, memory) = ended?;
                    held -= memory;
                    log.note(&failed);
                    continue;
                }
                delivery = self.intake.take(), if may_take => delivery,
            };
            let Some(delivery) = delivery else { break };
            let mut publish = pin!(self.publish(delivery, calls));
            let (work, wait) = loop {
                tokio::select! {
                    biased;
                    published = &mut publish => break published?,
                    Some(ended) = in_flight.next(), if !in_flight.is_empty() => {
                        let (failed, memory) = ended?;
                        held -= memory;
                        log.note(&failed);
                    }
                }
            };
            let memory = work.memory();
            held += memory;
            in_flight.push(match wait {
                None => self.finish(work).map_ok(move |failed| (failed, memory)).boxed(),
                Some(wait) => self.retry(work, wait, calls).map_ok(move |failed| (failed, memory)).boxed(),
            });
        }
        while let Some(ended) = in_flight.next().await {
            log.note(&ended?.0);
        }
        Ok(())
    }

    /// Whether another batch may be taken beside so many in flight, which hold so much memory.
    fn may_take(&self, in_flight: usize, held: usize) -> bool {
        let more = self.order == Order::None && in_flight < UNORDERED_BATCHES_MAX && held < UNORDERED_BYTES_MAX;
        in_flight < IN_FLIGHT_BATCHES_MAX || more
    }

    /// Runs the function over a batch and hands what it published to the sinks. Where there is an order to keep, that is
    /// after all of its rows have come to their end, in the order of the rows. Where there is none, it is what every
    /// call makes, at once; rows that are to be run again are left with the time to wait before.
    async fn publish(&self, delivery: Delivery, calls: &Mutex<()>) -> Result<(Work, Option<Duration>), LaneError> {
        self.metrics.batches.add(1);
        self.metrics.received.add(delivery.batch.len() as u64);
        let rows = u32::try_from(delivery.batch.len()).expect("a batch has fewer than 2^32 rows");
        let settlement = Settlement::new(rows, self.retry);
        let mut work = Work { delivery, begun: Instant::now(), settlement, parts: Vec::new(), waiting: Vec::new() };
        let mut wait = self.call(&mut work, calls).await?;
        if self.order == Order::None {
            return Ok((work, wait));
        }
        while let Some(pause) = wait {
            tokio::time::sleep(pause).await;
            wait = self.call(&mut work, calls).await?;
        }
        let routed = route(&work.parts, self.outputs.len());
        self.hand_over(&mut work, routed).await?;
        Ok((work, None))
    }

    /// Runs the rows that are left to their end, after a wait, and sees the batch to its own.
    async fn retry(&self, mut work: Work, first: Duration, calls: &Mutex<()>) -> Result<Vec<FailedRow>, LaneError> {
        let mut wait = Some(first);
        while let Some(pause) = wait {
            tokio::time::sleep(pause).await;
            wait = self.call(&mut work, calls).await?;
        }
        self.finish(work).await
    }

    /// Calls the function until every row has ended, or is to be run again after the time that is returned.
    async fn call(&self, work: &mut Work, calls: &Mutex<()>) -> Result<Option<Duration>, LaneError> {
        loop {
            let rows = match work.settlement.next(work.begun.elapsed(), fastrand::f64()) {
                Step::Done => return Ok(None),
                Step::Wait(wait) => return Ok(Some(wait)),
                Step::Call(rows) => rows,
            };
            let (batch, attempt) = (&work.delivery.batch, work.settlement.attempt());
            self.metrics.calls.add(1);
            if attempt > 1 {
                self.metrics.retried.add(rows.len() as u64);
            }
            let input = if rows.len() == batch.len() { batch.clone() } else { batch.select(&rows) };
            // A lane calls for one batch at a time: it has one sandbox. Publishing may have to wait for another batch.
            let turn = calls.lock().await;
            let outcome = self.transform.call(&input).await;
            drop(turn);
            match outcome {
                Err(error) => work.settlement.failed(rows, &error),
                Ok(outcome) => {
                    work.settlement.succeeded(&rows, &outcome.failures);
                    work.parts.push(Part { rows, input, outcome: Arc::new(outcome), attempt });
                    if self.order == Order::None {
                        let routed = route_last(&work.parts, self.outputs.len());
                        self.hand_over(work, routed).await?;
                    }
                }
            }
        }
    }

    /// Hands events to the sinks, in order.
    async fn hand_over(&self, work: &mut Work, routed: Vec<Routed>) -> Result<(), LaneError> {
        let since = Instant::now();
        work.delivery.token.admitted().await;
        work.begun += since.elapsed();
        for routed in routed {
            let acknowledgement = self.outputs[routed.output].publish(routed.publication.clone()).await?;
            work.waiting.push((routed, acknowledgement));
        }
        Ok(())
    }

    /// Waits for the acknowledgements, deals with what failed, and confirms the batch. Returns what failed.
    async fn finish(&self, work: Work) -> Result<Vec<FailedRow>, LaneError> {
        let Work { delivery: Delivery { batch, token, since }, begun: _, settlement, parts, waiting } = work;
        let mut failed = settlement.into_failed();
        // Where nothing was handed over: dead letters are published too.
        token.admitted().await;
        for (routed, acknowledgement) in waiting {
            let report = acknowledgement.await?;
            let refused = report.refused.len();
            for (at, error) in report.refused {
                let part = &parts[routed.part];
                let row = part.rows[routed.publication.cause(at as usize) as usize];
                let reason = error.to_string();
                failed.push(FailedRow { row, by: FailedBy::Publish, reason, attempts: part.attempt });
            }
            self.metrics.published[routed.output].add((routed.publication.len() - refused) as u64);
        }
        failed.sort_by_key(|failure| failure.row);
        failed.dedup_by_key(|failure| failure.row);
        self.let_go(&batch, &token, &failed).await?;
        self.count(batch.len(), &parts, &failed);
        self.metrics.latency.record(since.elapsed(), batch.len() as u64);
        token.done();
        Ok(failed)
    }

    /// Does with failed rows what `on_error.then` says.
    async fn let_go(&self, batch: &EventBatch, token: &Token, failed: &[FailedRow]) -> Result<(), LaneError> {
        let Some(first) = failed.first() else { return Ok(()) };
        match &self.last_resort {
            LastResort::Drop => Ok(()),
            LastResort::Stop => {
                let (place, reason) = (place(batch, token, first.row), first.reason.clone());
                Err(LaneError::Stop { place, by: first.by, reason })
            }
            LastResort::DeadLetter(sink) => {
                let letters = Publication::unchanged(dead_letter::letters(&self.sender, batch, token, failed));
                let published = async { sink.publish(letters).await?.await };
                let report = published.await.map_err(|source| match source.kind {
                    BrokerErrorKind::UnknownTopic => {
                        LaneError::NoLetters { place: place(batch, token, first.row), by: first.by, source }
                    }
                    _ => LaneError::Broker(source),
                })?;
                match report.refused.into_iter().next() {
                    None => Ok(()),
                    Some((at, source)) => {
                        let failure = &failed[at as usize];
                        let place = place(batch, token, failure.row);
                        Err(LaneError::DeadLetter { place, by: failure.by, source })
                    }
                }
            }
        }
    }

    fn count(&self, rows: usize, parts: &[Part], failed: &[FailedRow]) {
        let mut caused: Vec<u32> = Vec::with_capacity(rows);
        for part in parts {
            caused.extend(part.outcome.causes.iter().map(|&cause| part.rows[cause as usize]));
        }
        if !caused.is_sorted() {
            caused.sort_unstable();
        }
        caused.dedup();
        let refused = failed.iter().filter(|failure| caused.binary_search(&failure.row).is_ok()).count();
        let processed = caused.len() - refused;
        self.metrics.processed.add(processed as u64);
        self.metrics.dropped.add((rows - processed - failed.len()) as u64);
        match self.last_resort {
            LastResort::Drop => self.metrics.discarded.add(failed.len() as u64),
            LastResort::DeadLetter(_) | LastResort::Stop => self.metrics.dead_lettered.add(failed.len() as u64),
        }
    }
}

/// Where an event came from, in words.
fn place(batch: &EventBatch, token: &Token, row: u32) -> String {
    let origin = batch.origin(row as usize);
    match token.partition(origin.slot) {
        Some(source) => format!("{}[{}]@{}", source.topic, source.partition, origin.offset),
        None => format!("a revoked partition, offset {}", origin.offset),
    }
}

/// Says what failed, without a line for each event.
#[derive(Default)]
struct FailureLog {
    last: Option<Instant>,
    unsaid: usize,
}

impl FailureLog {
    fn note(&mut self, failed: &[FailedRow]) {
        let Some(first) = failed.first() else { return };
        self.unsaid += failed.len();
        if self.last.is_none_or(|last| last.elapsed() >= FAILURE_LOG_INTERVAL) {
            let (kind, reason) = (first.by.as_str(), &first.reason);
            tracing::warn!(events = self.unsaid, kind, reason, "events failed");
            self.last = Some(Instant::now());
            self.unsaid = 0;
        }
    }
}

#[cfg(test)]
mod tests;
