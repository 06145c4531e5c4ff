//! What a pipeline is made of, and how it is put together: as often as its transactions need it anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::broker::kafka::{self, KafkaProducer, KafkaSink, KafkaSource};
use crate::broker::memory::MemoryBroker;
use crate::broker::nats::{self, CoreSource, NatsProducer, NatsSource, Origins};
use crate::broker::{AnyDriver, AnyProducer, AnySink, AnySource, BrokerError, BrokerErrorKind};
use crate::delivery::Tracker;
use crate::event::{EventBatch, Outcome};
use crate::function::{CallError, Function, PassThrough, Transform};
use crate::intake::{Bell, Intake, Lanes};
use crate::pipeline::RunOptions;
use crate::pipeline::dead_letter::Sender;
use crate::pipeline::lane::{Lane, LastResort};
use crate::pipeline::memory::not_in_memory;
use crate::pipeline::replay::Replay;
use crate::pipeline::turn::Life;
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
    /// Chain and pipeline: begins what must stay the same over restarts.
    full_name: String,
    /// What it calls itself at the broker.
    client: String,
    /// `transactional.id`, where there are transactions: the same one each time that it is built.
    transactional_id: Option<String>,
    pub(super) metrics: Arc<PipelineMetrics>,
    /// Cancelled when this pipeline has to end, which may be later than others of its chain.
    pub(super) stop: CancellationToken,
    pub(super) life: Life,
    pub(super) drain_timeout: Duration,
    replay: Option<Arc<Replay>>,
    /// Where the topics of Kafka are, when not on their brokers.
    memory: Option<MemoryBroker>,
}

/// A pipeline that is ready to run.
pub(super) struct Built {
    pub(super) source: AnySource,
    pub(super) lanes: Vec<Lane<Stage, AnySink>>,
    /// One for each connection that is published to, on NATS up to two; none where the source has the producer of its transactions.
    pub(super) producers: Vec<AnyProducer>,
    /// What must be run for the producers.
    pub(super) drivers: Vec<AnyDriver>,
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

/// What a pipeline reads and publishes with.
struct Publishing {
    source: AnySource,
    producers: Vec<AnyProducer>,
    drivers: Vec<AnyDriver>,
    sinks: Sinks,
}

/// Where a pipeline publishes to.
#[derive(Clone)]
struct Sinks {
    /// In the order of the outputs.
    outputs: Vec<AnySink>,
    last_resort: LastResort<AnySink>,
}

/// The output's name in the ids of messages that are dead letters; no output can have it.
const DEAD_LETTER: &str = "!dead";

impl Plan {
    pub(super) fn new(
        chain: &ChainSpec,
        spec: &PipelineSpec,
        function: Option<Arc<Function>>,
        options: &RunOptions,
    ) -> Self {
        let client = format!("fluxmill-{}-{}", chain.name, spec.name);
        let transactional_id = |source: &KafkaSourceSpec| {
            // A static member comes back as the same producer, and ends at once what a crash left open. Others must not
            // fence each other.
            let instance = source.instance.clone().unwrap_or_else(|| format!("{:016x}", fastrand::u64(..)));
            // There is no slash in a pipeline's or an instance's name: no two of these are alike by chance.
            format!("fluxmill/{}/{}/{instance}", source.group, spec.name)
        };
        let transactional = spec.guarantee == Guarantee::ExactlyOnce;
        Self {
            transactional_id: spec.source.kafka().filter(|_| transactional).map(transactional_id),
            full_name: format!("{}.{}", chain.name, spec.name),
            client,
            metrics: Arc::new(PipelineMetrics::new(spec.outputs.len())),
            spec: spec.clone(),
            connections: chain.connections.clone(),
            function,
            stop: CancellationToken::new(),
            life: Life::default(),
            drain_timeout: options.drain_timeout,
            replay: options.replay.clone(),
            memory: options.memory.clone(),
        }
    }

    /// Where the topics of Kafka are, when not on their brokers.
    pub(super) fn memory(&self) -> Option<&MemoryBroker> {
        self.memory.as_ref()
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
        let transactional = self.transactional_id.as_ref().map(|_| Tracker::transactional());
        let (tracker, bell) = (Arc::new(transactional.unwrap_or_default()), Arc::new(Bell::default()));
        let publishing = match (&self.transactional_id, self.spec.source.kafka()) {
            (Some(id), Some(source)) => self.publishing_in_transactions(source, id).await?,
            _ => self.publishing(&tracker).await?,
        };
        let Publishing { source, producers, drivers, sinks } = publishing;
        let intakes = Lanes::new(self.spec.lanes, self.spec.order, self.spec.batch, &tracker, &bell);
        let lanes = intakes.intakes().iter().map(|intake| self.lane(intake.clone(), &tracker, &sinks)).collect();
        Ok(Built { source, lanes, producers, drivers, intakes, tracker, bell })
    }

    /// Where the dead letters go, where the pipeline waits while that is gone.
    pub(super) fn awaited_letters(&self) -> Option<(&ConnectionSpec, &TargetSpec)> {
        match &self.spec.on_error.then {
            crate::spec::LastResort::DeadLetter(target) if self.spec.on_error.when_missing == WhenMissing::Wait => {
                Some((&self.connections[target.connection()], target))
            }
            _ => None,
        }
    }

    fn lane(&self, intake: Arc<Intake>, tracker: &Arc<Tracker>, sinks: &Sinks) -> Lane<Stage, AnySink> {
        let digest = self.function.as_ref().map_or_else(String::new, |function| function.digest().to_owned());
        let sender = Sender { pipeline: self.spec.name.clone(), digest, replays: self.replay.is_some() };
        let (metrics, order, retry) = (self.metrics.clone(), self.spec.order, self.spec.on_error.retry);
        let replay = self.replay.clone().map(|replay| (replay, tracker.clone()));
        let transform = Arc::new(Stage { function: self.function.clone(), replay });
        let Sinks { outputs, last_resort } = sinks.clone();
        Lane { intake, transform, outputs, order, retry, last_resort, sender, metrics }
    }

    /// Each connection has producers of its own, and the source commits by itself.
    async fn publishing(&self, tracker: &Arc<Tracker>) -> Result<Publishing, BrokerError> {
        let (mut producers, mut drivers) = (BTreeMap::new(), Vec::new());
        for (key, targets) in self.targets() {
            let producer = match (&self.connections[key.0], &self.memory) {
                (ConnectionSpec::Kafka(_), Some(memory)) => AnyProducer::Memory(memory.producer()),
                (ConnectionSpec::Nats(_), Some(_)) => return Err(not_in_memory("NATS", self.name())),
                (ConnectionSpec::Kafka(connection), None) => {
                    let (producer, driver) =
                        KafkaProducer::connect(&fitting(connection, &targets).await, &self.client)?;
                    drivers.extend(driver.map(|driver| AnyDriver::Kafka(Box::new(driver))));
                    AnyProducer::Kafka(producer)
                }
                (ConnectionSpec::Nats(connection), None) => {
                    let (producer, driver) = NatsProducer::new(connection, &self.client, key.1);
                    drivers.push(AnyDriver::Nats(Box::new(driver)));
                    AnyProducer::Nats(producer)
                }
            };
            producers.insert(key, producer);
        }
        let life = format!("{:016x}", fastrand::u64(..));
        let sinks = self.sinks(|target, output| match &producers[&producer_of(target)] {
            AnyProducer::Kafka(producer) => AnySink::Kafka(producer.sink(target.place())),
            AnyProducer::Nats(producer) => AnySink::Nats(match target {
                TargetSpec::CoreNats { subject, .. } => producer.core_sink(subject),
                _ => producer.sink(target.place(), self.sender(output, tracker, &life)),
            }),
            AnyProducer::Memory(producer) => AnySink::Memory(producer.sink(target.place())),
        });
        let (source, producers) = (self.source()?, producers.into_values().collect());
        Ok(Publishing { source, producers, drivers, sinks })
    }

    /// A source that commits by itself.
    fn source(&self) -> Result<AnySource, BrokerError> {
        Ok(match (&self.spec.source, &self.connections[self.spec.source.connection()], &self.memory) {
            (SourceSpec::Kafka(source), ConnectionSpec::Kafka(_), Some(memory)) => {
                AnySource::Memory(memory.source(source))
            }
            (_, ConnectionSpec::Nats(_), Some(_)) => return Err(not_in_memory("NATS", self.name())),
            (SourceSpec::Kafka(source), ConnectionSpec::Kafka(connection), None) => {
                AnySource::Kafka(KafkaSource::new(connection, source, &self.client)?)
            }
            (SourceSpec::Nats(source), ConnectionSpec::Nats(connection), None) => {
                AnySource::Nats(NatsSource::new(connection, source, &self.client))
            }
            (SourceSpec::CoreNats(source), ConnectionSpec::Nats(connection), None) => {
                AnySource::CoreNats(CoreSource::new(connection, source, &self.client))
            }
            _ => return Err(other_broker(self.spec.source.connection())),
        })
    }

    /// Who publishes on NATS to an output, in this life of the pipeline.
    fn sender(&self, output: &str, tracker: &Arc<Tracker>, life: &str) -> nats::Sender {
        nats::Sender {
            pipeline: self.full_name.clone(),
            output: output.to_owned(),
            tracker: tracker.clone(),
            origins: match self.spec.source {
                SourceSpec::Kafka(_) => Origins::Partitions,
                SourceSpec::Nats(_) => Origins::Stream,
                SourceSpec::CoreNats(_) => Origins::Unkept(life.to_owned()),
            },
        }
    }

    /// A sink for each output and for the dead letters.
    fn sinks(&self, sink: impl Fn(&TargetSpec, &str) -> AnySink) -> Sinks {
        let outputs = self.spec.outputs.iter().map(|output| sink(&output.target, &output.name)).collect();
        let last_resort = match &self.spec.on_error.then {
            crate::spec::LastResort::DeadLetter(target) => LastResort::DeadLetter(sink(target, DEAD_LETTER)),
            crate::spec::LastResort::Stop => LastResort::Stop,
            crate::spec::LastResort::Drop => LastResort::Drop,
        };
        Sinks { outputs, last_resort }
    }

    /// The source's connection has one producer for everything, in whose transactions the source commits.
    async fn publishing_in_transactions(&self, source: &KafkaSourceSpec, id: &str) -> Result<Publishing, BrokerError> {
        if self.memory.is_some() {
            return Err(not_in_memory("`delivery: exactly_once`", self.name()));
        }
        let ConnectionSpec::Kafka(home) = &self.connections[&source.connection] else {
            return Err(other_broker(&source.connection));
        };
        let targets: Vec<_> = self.spec.targets().collect();
        let (producer, driver) = kafka::transactional(&fitting(home, &targets).await, &self.client, id)?;
        let sinks = self.sinks(|target, _| AnySink::Kafka(KafkaSink::Columnar(producer.sink(target.place()))));
        let source = KafkaSource::new(home, source, &self.client)?.with_transactions(producer)?;
        let (source, drivers) = (AnySource::Kafka(source), vec![AnyDriver::Kafka(Box::new(driver))]);
        Ok(Publishing { source, producers: Vec::new(), drivers, sinks })
    }

    /// What is published to by each producer.
    fn targets(&self) -> BTreeMap<(&str, bool), Vec<&TargetSpec>> {
        let mut targets: BTreeMap<(&str, bool), Vec<&TargetSpec>> = BTreeMap::new();
        for target in self.spec.targets() {
            targets.entry(producer_of(target)).or_default().push(target);
        }
        targets
    }
}

/// Which producer publishes to a target: the connection's, or on NATS the one of its atomic batches.
fn producer_of(target: &TargetSpec) -> (&str, bool) {
    (target.connection(), target.is_atomic())
}

/// A connection with batches that these topics take.
async fn fitting(connection: &KafkaConnection, targets: &[&TargetSpec]) -> KafkaConnection {
    let topics: Vec<&str> = targets.iter().map(|target| target.place()).collect();
    kafka::admin::with_fitting_batches(connection, &topics, SETTINGS_TIMEOUT).await
}

/// The configuration refuses it.
fn other_broker(connection: &str) -> BrokerError {
    let reason = format!("connection {connection} is one to another kind of broker");
    BrokerError { kind: BrokerErrorKind::Settings, action: "read events".into(), reason }
}
