//! What a pipeline is made of, and how it is put together: as often as its transactions need it anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::broker::BrokerError;
use crate::broker::kafka::{self, Driver, KafkaProducer, KafkaSink, KafkaSource};
use crate::delivery::Tracker;
use crate::function::{Function, PassThrough};
use crate::intake::{Bell, Intake};
use crate::pipeline::dead_letter::Sender;
use crate::pipeline::lane::{Lane, LastResort};
use crate::spec::{
    ChainSpec, ConnectionSpec, Guarantee, KafkaConnection, KafkaSourceSpec, PipelineSpec, SourceSpec, TargetSpec,
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
}

/// A pipeline that is ready to run.
pub(super) struct Built {
    pub(super) source: KafkaSource,
    pub(super) lanes: Vec<AnyLane>,
    /// One for each connection that is published to; none where the source has the producer of its transactions.
    pub(super) producers: BTreeMap<String, KafkaProducer>,
    /// What must be run for the producers.
    pub(super) drivers: Vec<Driver>,
    pub(super) intakes: Vec<Arc<Intake>>,
    pub(super) tracker: Arc<Tracker>,
    pub(super) bell: Arc<Bell>,
}

/// Lanes are generic, so that tests run them without a sandbox; what runs here is one of two.
pub(super) enum AnyLane {
    Function(Lane<Function, KafkaSink>),
    PassThrough(Lane<PassThrough, KafkaSink>),
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
        stop: CancellationToken,
        drain_timeout: Duration,
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
            drain_timeout,
        }
    }

    /// The pipeline's name.
    pub(super) fn name(&self) -> &str {
        &self.spec.name
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
        let intake = |_| Arc::new(Intake::new(self.spec.batch, tracker.clone(), bell.clone()));
        let intakes: Vec<_> = (0..self.spec.lanes).map(intake).collect();
        let lanes = intakes.iter().map(|intake| self.lane(intake.clone(), &sinks)).collect();
        Ok(Built { source, lanes, producers, drivers, intakes, tracker, bell })
    }

    fn lane(&self, intake: Arc<Intake>, sinks: &BTreeMap<TargetSpec, KafkaSink>) -> AnyLane {
        let outputs = self.spec.outputs.iter().map(|output| sinks[&output.target].clone()).collect();
        let last_resort = match &self.spec.on_error.then {
            crate::spec::LastResort::DeadLetter(target) => LastResort::DeadLetter(sinks[target].clone()),
            crate::spec::LastResort::Stop => LastResort::Stop,
            crate::spec::LastResort::Drop => LastResort::Drop,
        };
        let digest = self.function.as_ref().map_or_else(String::new, |function| function.digest().to_owned());
        let sender = Sender { pipeline: self.spec.name.clone(), digest };
        let (metrics, retry) = (self.metrics.clone(), self.spec.on_error.retry);
        match self.function.clone() {
            Some(transform) => {
                AnyLane::Function(Lane { intake, transform, outputs, retry, last_resort, sender, metrics })
            }
            None => {
                let transform = Arc::new(PassThrough);
                AnyLane::PassThrough(Lane { intake, transform, outputs, retry, last_resort, sender, metrics })
            }
        }
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
