//! A lane: one task that owns order. It runs the function over one batch at a time and publishes in order; it does
//! not wait for acknowledgements before it takes the next batch, up to a bound.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::broker::{Acknowledgement, BrokerError, Sink};
use crate::delivery::Token;
use crate::event::{EventBatch, Publication};
use crate::function::Transform;
use crate::intake::{Delivery, Intake};
use crate::pipeline::dead_letter::{self, Sender};
use crate::pipeline::route::{Part, Routed, route};
use crate::pipeline::settle::{FailedBy, FailedRow, Settlement, Step};
use crate::spec::RetrySpec;
use crate::telemetry::metrics::PipelineMetrics;

/// Batches of one lane that may wait for acknowledgements at once.
const IN_FLIGHT_BATCHES_MAX: usize = 8;
/// A pipeline whose events fail says so in the log at most this often for each lane.
const FAILURE_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// What happens to an event that cannot be processed.
#[derive(Debug)]
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
    /// How failed events are run again.
    pub retry: RetrySpec,
    /// Where events go that cannot be processed.
    pub last_resort: LastResort<S>,
    /// What dead letters say about this pipeline.
    pub sender: Sender,
    /// The pipeline's counts.
    pub metrics: Arc<PipelineMetrics>,
}

/// A batch whose events were handed to the sinks.
struct Published {
    delivery: Delivery,
    parts: Vec<Part>,
    waiting: Vec<(Routed, Acknowledgement)>,
    failed: Vec<FailedRow>,
}

impl<T: Transform, S: Sink> Lane<T, S> {
    /// Runs until the intake is closed and everything taken from it has ended.
    ///
    /// # Errors
    /// What ends the pipeline. Batches in flight are then dropped and count as not delivered.
    pub async fn run(self) -> Result<(), LaneError> {
        let mut in_flight = FuturesUnordered::new();
        let mut log = FailureLog::default();
        loop {
            let delivery = tokio::select! {
                biased;
                Some(ended) = in_flight.next(), if !in_flight.is_empty() => {
                    log.note(ended?);
                    continue;
                }
                delivery = self.intake.take(), if in_flight.len() < IN_FLIGHT_BATCHES_MAX => delivery,
            };
            let Some(delivery) = delivery else { break };
            let mut work = pin!(self.publish(delivery));
            let published = loop {
                tokio::select! {
                    biased;
                    published = &mut work => break published?,
                    Some(ended) = in_flight.next(), if !in_flight.is_empty() => log.note(ended?),
                }
            };
            in_flight.push(self.finish(published));
        }
        while let Some(ended) = in_flight.next().await {
            log.note(ended?);
        }
        Ok(())
    }

    /// Runs the function over a batch and hands what it published to the sinks, in order.
    async fn publish(&self, delivery: Delivery) -> Result<Published, LaneError> {
        self.metrics.batches.add(1);
        self.metrics.received.add(delivery.batch.len() as u64);
        let (parts, failed) = self.settle(&delivery.batch).await;
        delivery.token.admitted().await;
        let mut waiting = Vec::new();
        for routed in route(&parts, self.outputs.len()) {
            let acknowledgement = self.outputs[routed.output].publish(routed.publication.clone()).await?;
            waiting.push((routed, acknowledgement));
        }
        Ok(Published { delivery, parts, waiting, failed })
    }

    /// Brings every row to its end in the function: a part of a call that succeeded, or failed for good.
    async fn settle(&self, batch: &EventBatch) -> (Vec<Part>, Vec<FailedRow>) {
        let rows = u32::try_from(batch.len()).expect("a batch has fewer than 2^32 rows");
        let mut settlement = Settlement::new(rows, self.retry);
        let mut parts = Vec::new();
        loop {
            match settlement.next() {
                Step::Done => return (parts, settlement.into_failed()),
                Step::Wait(wait) => tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await,
                Step::Call(rows) => {
                    self.metrics.calls.add(1);
                    if settlement.attempt() > 1 {
                        self.metrics.retried.add(rows.len() as u64);
                    }
                    let input = if rows.len() == batch.len() { batch.clone() } else { batch.select(&rows) };
                    match self.transform.call(&input).await {
                        Ok(outcome) => {
                            settlement.succeeded(&rows, &outcome.failures);
                            let attempt = settlement.attempt();
                            parts.push(Part { rows, input, outcome: Arc::new(outcome), attempt });
                        }
                        Err(error) => settlement.failed(rows, &error),
                    }
                }
            }
        }
    }

    /// Waits for the acknowledgements, deals with what failed, and confirms the batch. Returns what failed.
    async fn finish(&self, published: Published) -> Result<Vec<FailedRow>, LaneError> {
        let Published { delivery: Delivery { batch, token, since }, parts, waiting, mut failed } = published;
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
                let letters = dead_letter::letters(&self.sender, batch, token, failed);
                let report = sink.publish(Publication::unchanged(letters)).await?.await?;
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
    fn note(&mut self, failed: Vec<FailedRow>) {
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
