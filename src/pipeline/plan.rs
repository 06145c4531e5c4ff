//! What a pipeline is made of, and how it is put together: as often as its transactions need it anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::broker::BrokerError;
use crate::broker::kafka::{self, Driver, KafkaProducer, KafkaSink, KafkaSource};
use crate::delivery::Tracker;
use crate::event::{EventBatch, Outcome};
use crate::function::{CallError, Function, PassThrough, Transform};
use crate::intake::{Bell, Intake, Lanes};
use crate::pipeline::RunOptions;
use crate::pipeline::dead_letter::Sender;
use crate::pipeline::lane::{Lane, LastResort};
use crate::pipeline::replay::Replay;
use crate::spec::{
    ChainSpec, CommitSpec, ConnectionSpec, Guarantee, KafkaConnection, KafkaSourceSpec, PipelineSpec, SourceSpec,
    TargetSpec, WhenMissing,
};
use crate::telemetry::metrics::PipelineMetrics;

/// How long it may take to tell the settings of topics, which a chain can do without.
const SETTINGS_TIMEOUT: Duration = Duration::from_secs(5);

/// Everything that a pipeline is built from.
pub(super) struct Plan {
    spec: PipelineSpec,
    connections: BTreeMap<String, ConnectionSpec>,
    function: Option<Arc<Function>>,
    /// What it calls itself at the broker.
    client: String,
    /// `transactional.id`, where there are transactions: the same one each time that it is built.
    transactional_id: Option<String>,
    pub(super) metrics: Arc<PipelineMetrics>,
    pub(super) stop: CancellationToken,
    pub(super) drain_timeout: Duration,
    replay: Option<Arc<Replay>>,
}

/// A pipeline that is ready to run.
pub(super) struct Built {
    pub(super) source: KafkaSource,
    pub(super) lanes: Vec<Lane<Stage, KafkaSink>>,
    /// One for each connection that is published to; none where the source has the producer of its transactions.
    pub(super) producers: BTreeMap<String, KafkaProducer>,
    /// What must be run for the producers.
    pub(super) drivers: Vec<Driver>,
    /// The lanes' intakes, as the source sees them.
    pub(super) intakes: Lanes,
    pub(super) tracker: Arc<Tracker>,
    pub(super) bell: Arc<Bell>,
}

/// What a lane calls.
pub(super) struct Stage {
    /// None copies.
    function: Option<Arc<Function>>,
    /// Its input are dead letters.
    replay: Option<(Arc<Replay>, Arc<Tracker>)>,
}

impl Stage {
    async fn run(&self, batch: &EventBatch) -> Result<Outcome, CallError> {
        match &self.function {
            Some(function) => function.call(batch).await,
            None => PassThrough.call(batch).await,
        }
    }
}

impl Transform for Stage {
    async fn call(&self, batch: &EventBatch) -> Result<Outcome, CallError> {
        match &self.replay {
            None => self.run(batch).await,
            Some((replay, tracker)) => {
                replay.call(batch, tracker, |events| async move { self.run(&events).await }).await
            }
        }
    }
}

/// Where a pipeline publishes to.
struct Publishing {
    source: KafkaSource,
    producers: BTreeMap<String, KafkaProducer>,
    drivers: Vec<Driver>,
    sinks: BTreeMap<TargetSpec, KafkaSink>,
}

impl Plan {
    pub(super) fn new(
        chain: &ChainSpec,
        spec: &PipelineSpec,
        function: Option<Arc<Function>>,
        options: &RunOptions,
        stop: CancellationToken,
    ) -> Self {
        let client = format!("fluxmill-{}-{}", chain.name, spec.name);
        let SourceSpec::Kafka(source) = &spec.source;
        // A static member comes back as the same producer, and ends at once what a crash left open. Others must not
        // fence each other.
        let instance = source.instance.clone().unwrap_or_else(|| format!("{:016x}", fastrand::u64(..)));
        let transactional = spec.guarantee == Guarantee::ExactlyOnce;
        Self {
            // There is no slash in a pipeline's or an instance's name: no two of these are alike by chance.
            transactional_id: transactional.then(|| format!("fluxmill/{}/{}/{instance}", source.group, spec.name)),
            client,
            metrics: Arc::new(PipelineMetrics::new(spec.outputs.len())),
            spec: spec.clone(),
            connections: chain.connections.clone(),
            function,
            stop,
            drain_timeout: options.drain_timeout,
            replay: options.replay.clone(),
        }
    }

    /// The pipeline's name.
    pub(super) fn name(&self) -> &str {
        &self.spec.name
    }

    /// How often progress is confirmed.
    pub(super) fn commit(&self) -> CommitSpec {
        self.spec.commit
    }

    /// Puts the pipeline together. Nothing is consumed before it is run.
    ///
    /// # Errors
    /// When a client does not accept its settings.
    pub(super) async fn build(&self) -> Result<Built, BrokerError> {
        let SourceSpec::Kafka(source) = &self.spec.source;
        let (tracker, publishing) = match &self.transactional_id {
            None => (Tracker::default(), self.publishing(source).await?),
            Some(id) => (Tracker::transactional(), self.publishing_in_transactions(source, id).await?),
        };
        let Publishing { source, producers, drivers, sinks } = publishing;
        let (tracker, bell) = (Arc::new(tracker), Arc::new(Bell::default()));
        let intakes = Lanes::new(self.spec.lanes, self.spec.order, self.spec.batch, &tracker, &bell);
        let lanes = intakes.intakes().iter().map(|intake| self.lane(intake.clone(), &tracker, &sinks)).collect();
        Ok(Built { source, lanes, producers, drivers, intakes, tracker, bell })
    }

    /// The topic of the dead letters, where the pipeline waits while it is gone.
    pub(super) fn awaited_letters(&self) -> Option<(&KafkaConnection, &str)> {
        match &self.spec.on_error.then {
            crate::spec::LastResort::DeadLetter(TargetSpec::Kafka { connection, topic })
                if self.spec.on_error.when_missing == WhenMissing::Wait =>
            {
                Some((self.connection(connection), topic))
            }
            _ => None,
        }
    }

    fn lane(
        &self,
        intake: Arc<Intake>,
        tracker: &Arc<Tracker>,
        sinks: &BTreeMap<TargetSpec, KafkaSink>,
    ) -> Lane<Stage, KafkaSink> {
        let outputs = self.spec.outputs.iter().map(|output| sinks[&output.target].clone()).collect();
        let last_resort = match &self.spec.on_error.then {
            crate::spec::LastResort::DeadLetter(target) => LastResort::DeadLetter(sinks[target].clone()),
            crate::spec::LastResort::Stop => LastResort::Stop,
            crate::spec::LastResort::Drop => LastResort::Drop,
        };
        let digest = self.function.as_ref().map_or_else(String::new, |function| function.digest().to_owned());
        let sender = Sender { pipeline: self.spec.name.clone(), digest, replays: self.replay.is_some() };
        let (metrics, order, retry) = (self.metrics.clone(), self.spec.order, self.spec.on_error.retry);
        let replay = self.replay.clone().map(|replay| (replay, tracker.clone()));
        let transform = Arc::new(Stage { function: self.function.clone(), replay });
        Lane { intake, transform, outputs, order, retry, last_resort, sender, metrics }
    }

    /// Each connection has a producer of its own, and the source commits by itself.
    async fn publishing(&self, source: &KafkaSourceSpec) -> Result<Publishing, BrokerError> {
        let (mut producers, mut drivers, mut sinks) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        for (name, targets) in self.targets() {
            let (producer, driver) = KafkaProducer::connect(&self.fitting(name, &targets).await, &self.client)?;
            sinks.extend(targets.into_iter().map(|target| (target.clone(), producer.sink(topic(target)))));
            producers.insert(name.to_owned(), producer);
            drivers.extend(driver);
        }
        let source = KafkaSource::new(self.connection(&source.connection), source, &self.client)?;
        Ok(Publishing { source, producers, drivers, sinks })
    }

    /// The source's connection has one producer for everything, in whose transactions the source commits.
    async fn publishing_in_transactions(&self, source: &KafkaSourceSpec, id: &str) -> Result<Publishing, BrokerError> {
        let targets: Vec<_> = self.spec.targets().collect();
        let connection = self.fitting(&source.connection, &targets).await;
        let (producer, driver) = kafka::transactional(&connection, &self.client, id)?;
        let sink = |target: &TargetSpec| KafkaSink::Columnar(producer.sink(topic(target)));
        let sinks = targets.into_iter().map(|target| (target.clone(), sink(target))).collect();
        let source = KafkaSource::new(self.connection(&source.connection), source, &self.client)?;
        let source = source.with_transactions(producer)?;
        Ok(Publishing { source, producers: BTreeMap::new(), drivers: vec![driver], sinks })
    }

    /// What is published to on each connection.
    fn targets(&self) -> BTreeMap<&str, Vec<&TargetSpec>> {
        let mut targets: BTreeMap<&str, Vec<&TargetSpec>> = BTreeMap::new();
        for target in self.spec.targets() {
            let TargetSpec::Kafka { connection, .. } = target;
            targets.entry(connection).or_default().push(target);
        }
        targets
    }

    /// A connection with batches that these topics take.
    async fn fitting(&self, connection: &str, targets: &[&TargetSpec]) -> KafkaConnection {
        let topics: Vec<&str> = targets.iter().map(|target| topic(target)).collect();
        kafka::admin::with_fitting_batches(self.connection(connection), &topics, SETTINGS_TIMEOUT).await
    }

    fn connection(&self, name: &str) -> &KafkaConnection {
        let ConnectionSpec::Kafka(connection) = &self.connections[name];
        connection
    }
}

fn topic(TargetSpec::Kafka { topic, .. }: &TargetSpec) -> &str {
    topic
}
