//! A source on the columnar plane: the group's member by librdkafka and the fetcher, on one thread.

use std::time::{Duration, Instant};

use super::connection::Options;
use super::fetch::Fetcher;
use super::produce::TransactionalProducer;
use crate::broker::kafka::caught_up::Goal;
use crate::broker::kafka::commit::Transactions;
use crate::broker::kafka::group::Group;
use crate::broker::{BrokerError, BrokerErrorKind, CloseLanes, Source, SourceContext, SourceEnd};
use crate::spec::{ColumnarSettings, KafkaConnection, KafkaSourceSpec};

/// How often the group is served while rows move. Often enough for everything that it has to tell.
const SERVE_INTERVAL: Duration = Duration::from_millis(5);

/// The events of a consumer group's topics.
#[derive(Debug)]
pub struct ColumnarSource {
    connection: KafkaConnection,
    settings: ColumnarSettings,
    spec: KafkaSourceSpec,
    client_id: String,
    /// In whose transactions offsets are committed, if they are.
    producer: Option<TransactionalProducer>,
}

impl ColumnarSource {
    /// A source that calls itself `client_id` at the broker. Connects when it runs.
    ///
    /// # Errors
    /// When a setting is not accepted, or a certificate cannot be read.
    pub fn new(
        connection: &KafkaConnection,
        settings: &ColumnarSettings,
        spec: &KafkaSourceSpec,
        client_id: &str,
    ) -> Result<Self, BrokerError> {
        crate::broker::kafka::check_consumer(connection, spec, client_id)?;
        // Made again when it runs; here only for the mistakes.
        Options::new(connection, client_id)?;
        Ok(Self {
            connection: connection.clone(),
            settings: settings.clone(),
            spec: spec.clone(),
            client_id: client_id.to_owned(),
            producer: None,
        })
    }

    /// Commits offsets in this producer's transactions, with what its sinks publish. The tracker that the source runs
    /// with must be [transactional](crate::delivery::Tracker::transactional).
    #[must_use]
    pub fn with_transactions(self, producer: TransactionalProducer) -> Self {
        Self { producer: Some(producer), ..self }
    }

    async fn run_in(mut self, context: &SourceContext) -> Result<SourceEnd, BrokerError> {
        let (tracker, lanes) = (context.tracker.clone(), context.lanes.clone());
        let transactions = match self.producer.take() {
            Some(producer) => tokio::select! {
                begun = Transactions::begin(producer, tracker, lanes, context.commit.max_events) => Some(begun?),
                () = context.stop.cancelled() => return Ok(SourceEnd::Drained),
            },
            None => None,
        };
        let mut group =
            Group::connect::<Fetcher>(&self.connection, &self.spec, &self.client_id, context, transactions)?;
        let end = self.work(&mut group, context).await;
        group.close().await;
        end
    }

    async fn work(&self, group: &mut Group, context: &SourceContext) -> Result<SourceEnd, BrokerError> {
        let lanes = CloseLanes(context.lanes.clone());
        let mut goal = context.caught_up.clone().map(|take| Goal::new(&self.connection, take));
        let options = Options::new(&self.connection, &self.client_id)?;
        let mut fetcher = Fetcher::new(&self.connection, &self.settings, options, context.lanes.clone());
        group.join()?;
        let mut serve_at = Instant::now();
        loop {
            let now = Instant::now();
            if now >= serve_at || group.is_due() {
                if fetcher.take_missing() {
                    group.missing();
                }
                group.serve(&mut fetcher)?;
                serve_at = now + SERVE_INTERVAL;
            }
            if context.stop.is_cancelled() {
                break;
            }
            fetcher.start();
            let moved = fetcher.take()?;
            if let Some(goal) = &mut goal
                && goal.is_reached(group, &mut fetcher, &context.tracker)?
            {
                break;
            }
            if moved {
                tokio::select! {
                    biased;
                    ended = fetcher.next() => ended?,
                    () = group.transaction_moved() => {}
                    () = tokio::task::yield_now() => {}
                }
            } else {
                tokio::select! {
                    biased;
                    ended = fetcher.next() => ended?,
                    () = group.rest(false) => serve_at = now,
                }
            }
        }
        drop(lanes);
        let until = Instant::now() + context.drain_timeout;
        while !group.is_drained() && !group.waits_in_vain() && Instant::now() < until {
            group.rest(true).await;
            group.serve(&mut fetcher)?;
        }
        let drained = group.is_drained();
        let committed = group.all_committed(&mut fetcher, until).await?;
        Ok(if drained && committed { SourceEnd::Drained } else { SourceEnd::DrainTimedOut })
    }
}

impl Source for ColumnarSource {
    fn run(self, context: SourceContext) -> Result<SourceEnd, BrokerError> {
        // However this ends, by an error or a panic too, the lanes must learn that nothing more comes.
        let _lanes = CloseLanes(context.lanes.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
            let action = "begin to read".to_owned();
            BrokerError { kind: BrokerErrorKind::Fatal, action, reason: error.to_string() }
        })?;
        let end = runtime.block_on(self.run_in(&context));
        // Looking a broker's name up cannot be interrupted, and must not hold the end up.
        runtime.shutdown_background();
        end
    }
}
