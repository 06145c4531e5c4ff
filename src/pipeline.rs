//! The wiring: builds pipelines from their spec, and is the only file that spawns tasks and threads. A task that
//! ends early or panics ends its pipeline, and with it the chain, with an error.

mod dead_letter;
mod error;
mod lane;
mod memory;
mod plan;
mod replay;
mod route;
mod settle;
mod tap;
mod topology;
mod turn;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::broker::memory::MemoryBroker;
use crate::broker::{
    AnyDriver, AnyProducer, AnySink, BrokerError, BrokerErrorKind, Source, SourceContext, SourceEnd, kafka, nats,
};
use crate::function::{Engine, EngineOptions, Function, LoadError};
use crate::pipeline::lane::{Lane, LaneError};
use crate::pipeline::plan::{Built, Plan, Stage};
use crate::pipeline::turn::{Life, Turn};
use crate::spec::{ChainSpec, ConnectionSpec, PipelineSpec, SourceSpec, TargetSpec};
use crate::telemetry::metrics::PipelineMetrics;

use error::Failure;
pub use error::{RunError, StartError};
pub use replay::{LetterFate, Replay, ReplayCounts};
pub use tap::{Tap, tap};
pub use topology::{Topology, streams_on, topics_on};

/// How long the broker may take to answer before the chain runs.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long to wait before a pipeline whose transaction has failed begins anew; it doubles with each time in a row.
const REBUILD_PAUSE_MIN: Duration = Duration::from_millis(100);
/// How often in a row a pipeline is built anew before its last failure ends it.
const REBUILDS_MAX: u32 = 100;
/// The longest such wait. A pipeline that ran longer than this begins with the shortest.
const REBUILD_PAUSE_MAX: Duration = Duration::from_secs(10);
/// How often a topic that is gone is looked for, and how long one look may take. A stop may have to wait for it.
const COME_BACK_PAUSE: Duration = Duration::from_secs(1);
const COME_BACK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a producer may take to hand over what is left when its pipeline ends in an orderly way.
const PRODUCER_CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long lanes may take to end once everything of theirs has ended.
const LANES_END_TIMEOUT: Duration = Duration::from_secs(1);

/// How a chain is run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// End once everything that was there at the start has been processed, through the whole chain.
    pub until_caught_up: bool,
    /// How long what is in flight may take to end when the chain stops.
    pub drain_timeout: Duration,
    /// The folder of compiled functions; `None` compiles anew at each start.
    pub cache: Option<PathBuf>,
    /// What the pipelines read are dead letters, and the events of these are what they run.
    pub replay: Option<Arc<Replay>>,
    /// Where the topics of all connections to Kafka are, instead of on their brokers, which are not connected to.
    pub memory: Option<MemoryBroker>,
}

/// A running chain.
#[derive(Debug)]
pub struct Chain {
    pipelines: Vec<(String, Arc<PipelineMetrics>)>,
    running: JoinSet<Result<(), RunError>>,
    stop: CancellationToken,
    ticking: Arc<AtomicBool>,
}

/// Starts chains: creates missing topics, loads the functions, connects, begins to consume. Cancel `stop` to drain.
///
/// # Errors
/// [`StartError`]; nothing was consumed then.
pub async fn start(chains: &[ChainSpec], options: &RunOptions, stop: CancellationToken) -> Result<Chain, StartError> {
    let topology = Topology::of(chains);
    if let Some(shared) = topology.a_shared_group() {
        return Err(StartError::SharedGroup(shared));
    }
    if options.until_caught_up
        && let Some(path) = topology.a_loop()
    {
        return Err(StartError::Loop(path));
    }
    for (chain, pipeline) in topology.pipelines().filter(|(_, pipeline)| pipeline.is_at_most_once()) {
        let name = format!("{}/{}", chain.name, pipeline.name);
        if options.until_caught_up && matches!(pipeline.source, SourceSpec::CoreNats(_)) {
            return Err(StartError::NotKept(name));
        }
        tracing::info!("pipeline {name}: core NATS keeps nothing, and what goes over it may be lost");
    }
    // What the files say wrong comes first: it needs no broker to be told.
    let engine = engine(chains, options).map_err(StartError::Engine)?;
    let mut functions = Vec::new();
    for (chain, pipeline) in topology.pipelines() {
        functions.push(load(chain, pipeline, engine.as_ref()).await?.map(Arc::new));
    }
    match &options.memory {
        Some(memory) => memory::prepare(memory, chains).map_err(StartError::Broker)?,
        None => prepare_topics(chains).await?,
    }
    let mut plans = Vec::new();
    for ((chain, spec), function) in topology.pipelines().zip(functions) {
        let plan = Plan::new(chain, spec, function, options);
        let built = plan.build().await.map_err(|error| StartError::Broker(vec![error]))?;
        plans.push((plan, built));
    }

    let ticking = Arc::new(AtomicBool::new(true));
    if let Some(engine) = &engine {
        spawn_ticker(engine, ticking.clone());
    }
    let mut chain = Chain { pipelines: Vec::new(), running: JoinSet::new(), stop, ticking };
    let lives: Vec<Life> = plans.iter().map(|(plan, _)| plan.life.clone()).collect();
    for (index, (plan, built)) in plans.into_iter().enumerate() {
        let upstream = topology.upstream(index).iter().map(|&at| lives[at].ended.clone()).collect();
        let caught_up = options.until_caught_up.then_some(upstream);
        chain.pipelines.push((plan.name().to_owned(), plan.metrics.clone()));
        let turn = Turn::of(&topology, index, &lives, chain.stop.clone());
        chain.running.spawn(run_in_turn(plan, built, caught_up, turn));
    }
    Ok(chain)
}

impl Chain {
    /// Each pipeline's name and counts, in the order of the files.
    pub fn pipelines(&self) -> &[(String, Arc<PipelineMetrics>)] {
        &self.pipelines
    }

    /// Waits until all pipelines have ended. When one fails, the others are drained.
    ///
    /// # Errors
    /// The first failure; the others' are logged.
    pub async fn wait(&mut self) -> Result<(), RunError> {
        let mut first = None;
        while let Some(ended) = self.running.join_next().await {
            let result = ended.unwrap_or_else(|error| Err(panicked("the chain", "a pipeline", &error)));
            if let Err(error) = result {
                self.stop.cancel();
                match &first {
                    None => first = Some(error),
                    Some(_) => tracing::error!("{error}"),
                }
            }
        }
        first.map_or(Ok(()), Err)
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        self.stop.cancel();
        self.ticking.store(false, Ordering::Relaxed);
    }
}

/// Runs a pipeline as long as it is its turn.
async fn run_in_turn(
    plan: Plan,
    built: Built,
    caught_up: Option<Vec<CancellationToken>>,
    turn: Turn,
) -> Result<(), RunError> {
    let _life = plan.life.guard();
    // A chain that is dropped ends its sources too.
    let stop = plan.stop.clone().drop_guard();
    if !turn.begin().await {
        plan.stop.cancel();
    }
    let mut running = std::pin::pin!(run(plan, built, caught_up));
    tokio::select! {
        ended = &mut running => return ended,
        () = turn.end() => drop(stop),
    }
    running.await
}

/// Runs a pipeline until it is stopped, or caught up after these upstream pipelines have ended. One whose transaction
/// has failed, or that was thrown out of its group, or that waits for the topic of its dead letters, is built anew: what
/// is not confirmed is read again.
async fn run(plan: Plan, first: Built, caught_up: Option<Vec<CancellationToken>>) -> Result<(), RunError> {
    let (mut built, mut pause, mut rebuilds) = (first, REBUILD_PAUSE_MIN, 0);
    loop {
        let begun = Instant::now();
        let Err(error) = built.run(&plan, caught_up.clone()).await else { return Ok(()) };
        if plan.stop.is_cancelled() {
            return Err(if error.may_pass(false) { RunError::Undone(Box::new(error)) } else { error });
        }
        if begun.elapsed() > REBUILD_PAUSE_MAX {
            (pause, rebuilds) = (REBUILD_PAUSE_MIN, 0);
        }
        let letters = plan.awaited_letters().filter(|_| error.lacks_letters());
        if letters.is_some() {
            tracing::warn!("{error}; waits until the topic is there again, and reads nothing meanwhile");
        } else if error.may_pass(rebuilds > 0) && rebuilds < REBUILDS_MAX {
            tracing::warn!("{error}; the pipeline begins anew, and what is not confirmed is processed again");
        } else {
            return Err(error);
        }
        rebuilds += u32::from(letters.is_none());
        let ready = async {
            match letters {
                Some((connection, target)) => match plan.memory() {
                    Some(memory) => memory::come_back(memory, target, COME_BACK_PAUSE).await,
                    None => come_back(connection, target).await,
                },
                None => tokio::time::sleep(pause).await,
            }
        };
        tokio::select! {
            () = ready => pause = (pause * 2).min(REBUILD_PAUSE_MAX),
            // Nothing is in flight.
            () = plan.stop.cancelled() => return Ok(()),
        }
        built = plan.build().await.map_err(|source| RunError::Source { pipeline: plan.name().to_owned(), source })?;
    }
}

impl Built {
    /// Runs until stopped, or until caught up after these upstream pipelines have ended.
    async fn run(self, plan: &Plan, caught_up: Option<Vec<CancellationToken>>) -> Result<(), RunError> {
        let Self { source, lanes, producers, drivers, intakes, tracker, bell } = self;
        let (name, drain_timeout) = (plan.name(), plan.drain_timeout);
        let (stop, transactional) = (plan.stop.child_token(), tracker.sets().is_some());
        let take_the_end = CancellationToken::new();
        let context = SourceContext {
            lanes: intakes,
            tracker,
            bell: bell.clone(),
            stop: stop.clone(),
            reads: plan.life.reads.clone(),
            commit: plan.commit(),
            caught_up: caught_up.is_some().then(|| take_the_end.clone()),
            drain_timeout,
        };
        let mut source = spawn_source(name, source, context);
        let mut tasks = spawn_lanes(lanes);
        let mut drivers = spawn_drivers(name, drivers);
        let mut failure = Failure::default();
        let mut upstream = std::pin::pin!(async {
            for ended in caught_up.into_iter().flatten() {
                ended.cancelled().await;
            }
            take_the_end.cancel();
            bell.ring();
        });
        let (mut upstream_ended, mut stopping) = (false, false);
        let end = loop {
            tokio::select! {
                end = &mut source => break end,
                Some(lane) = tasks.join_next() => {
                    if let Some(error) = lane_error(name, lane) {
                        failure.note(error);
                        stop.cancel();
                    }
                }
                Some(driver) = drivers.join_next() => {
                    if let Some(error) = driver_error(name, driver, transactional) {
                        failure.note(error);
                        stop.cancel();
                    }
                }
                () = &mut upstream, if !upstream_ended => upstream_ended = true,
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    bell.ring();
                }
            }
            if failure.knows_cause() {
                tasks.abort_all();
            }
        };
        if let Some(error) = source_error(name, end, drain_timeout) {
            failure.note(error);
        }
        if failure.knows_cause() {
            tasks.abort_all();
        }
        end_lanes(name, &mut tasks, &mut failure).await;
        // Nothing is left to publish after an orderly end; after a failure what is left must not wait.
        let timeout = if failure.is_none() { PRODUCER_CLOSE_TIMEOUT } else { Duration::ZERO };
        close(producers, timeout).await;
        while let Some(driver) = drivers.join_next().await {
            // Its producer is closed now.
            driver_error(name, driver, true).into_iter().for_each(|error| failure.note(error));
        }
        failure.end()
    }
}

/// Joins the lanes, which have nothing more to take.
async fn end_lanes(name: &str, lanes: &mut JoinSet<Result<(), LaneError>>, failure: &mut Failure) {
    let deadline = tokio::time::Instant::now() + LANES_END_TIMEOUT;
    loop {
        match tokio::time::timeout_at(deadline, lanes.join_next()).await {
            Ok(None) => return,
            Ok(Some(lane)) => lane_error(name, lane).into_iter().for_each(|error| failure.note(error)),
            // What is left is of partitions that were lost: others process it, and it must not hold the end up.
            Err(_) => lanes.shutdown().await,
        }
    }
}

/// Creates the topics that are listed and missing, and makes sure that all others exist.
async fn prepare_topics(chains: &[ChainSpec]) -> Result<(), StartError> {
    let mut errors = Vec::new();
    for chain in chains {
        for name in chain.connections.keys() {
            if !chain.used_topics().iter().any(|(on, _)| on == name) {
                continue;
            }
            let connection = &chain.connections[name];
            tracing::info!(connection = name, brokers = connection.addresses().join(","), "connecting");
            let prepared = match connection {
                ConnectionSpec::Kafka(connection) => {
                    let (create, used) = topology::topics_on(chain, name);
                    kafka::admin::prepare(connection, &create, &used, PREPARE_TIMEOUT).await
                }
                ConnectionSpec::Nats(connection) => {
                    let (create, used) = topology::streams_on(chain, name);
                    nats::admin::prepare(connection, &create, &used, PREPARE_TIMEOUT).await
                }
            };
            match prepared {
                Ok(created) if created.is_empty() => {}
                Ok(created) => tracing::info!(topics = created.join(", "), "created missing topics"),
                Err(more) => errors.extend(more),
            }
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(StartError::Broker(errors)) }
}

/// Whether a topic is not there, or nobody says whether it is.
fn is_absent(error: &BrokerError) -> bool {
    matches!(error.kind, BrokerErrorKind::UnknownTopic | BrokerErrorKind::Unreachable)
}

/// Waits until a topic, or a stream that takes a subject, is there. Cancel-safe, but for a look that is under way and
/// ends unseen.
#[expect(clippy::disallowed_methods, reason = "this is the wiring file")]
async fn come_back(connection: &ConnectionSpec, target: &TargetSpec) {
    let (topic, atomic) = (target.place(), target.is_atomic());
    loop {
        let (connection, name, runtime) = (connection.clone(), topic.to_owned(), tokio::runtime::Handle::current());
        let look = move || match &connection {
            ConnectionSpec::Kafka(connection) => {
                runtime.block_on(kafka::admin::check(connection, &[], &[&name], COME_BACK_TIMEOUT))
            }
            ConnectionSpec::Nats(connection) => {
                let used = nats::admin::Used { subjects: vec![(&name, atomic)], ..Default::default() };
                runtime.block_on(nats::admin::check(connection, &[], &used, COME_BACK_TIMEOUT))
            }
        };
        // Looking blocks, and other pipelines run.
        match tokio::task::spawn_blocking(look).await {
            Ok(Err(errors)) if errors.iter().all(is_absent) => {}
            Ok(Ok(_)) => {
                tracing::info!(topic, "the topic of the dead letters is there again");
                return;
            }
            // What else is wrong with it is told by the pipeline when it begins anew.
            Ok(Err(_)) | Err(_) => return,
        }
        tokio::time::sleep(COME_BACK_PAUSE).await;
    }
}

/// One engine for all functions: as many sandboxes as their pipelines have lanes, each as large as the largest needs.
/// `None` when no pipeline has a function.
fn engine(chains: &[ChainSpec], options: &RunOptions) -> Result<Option<Engine>, LoadError> {
    let with_function = || {
        let pipelines = chains.iter().flat_map(|chain| &chain.pipelines);
        pipelines.filter_map(|pipeline| pipeline.function.as_ref().map(|function| (pipeline.lanes, function)))
    };
    let Some(memory) = with_function().map(|(_, function)| function.limits.memory).max() else { return Ok(None) };
    let sandboxes = u32::try_from(with_function().map(|(lanes, _)| lanes).sum::<usize>()).unwrap_or(u32::MAX);
    Engine::new(EngineOptions { sandboxes, memory, cache: options.cache.clone() }).map(Some)
}

#[expect(clippy::disallowed_methods, reason = "this is the wiring file")]
async fn load(chain: &ChainSpec, spec: &PipelineSpec, engine: Option<&Engine>) -> Result<Option<Function>, StartError> {
    let (Some(function), Some(engine)) = (spec.function.clone(), engine.cloned()) else { return Ok(None) };
    let outputs: Vec<String> = spec.outputs.iter().map(|output| output.name.clone()).collect();
    // Compiling takes up to seconds; the pipelines that run already must not wait for it.
    let loaded = tokio::task::spawn_blocking(move || Function::load(&engine, &function, &outputs)).await;
    match loaded {
        Ok(loaded) => loaded.map(Some).map_err(|source| StartError::Function {
            chain: chain.name.clone(),
            pipeline: spec.name.clone(),
            source,
        }),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Gives the source a thread of its own; the receiver fails when that thread panics.
#[expect(clippy::disallowed_methods, reason = "this is the wiring file")]
fn spawn_source(
    name: &str,
    source: impl Source,
    context: SourceContext,
) -> oneshot::Receiver<Result<SourceEnd, BrokerError>> {
    let (ended, end) = oneshot::channel();
    let span = tracing::info_span!("pipeline", name);
    let thread = std::thread::Builder::new().name(format!("source-{name}"));
    let run = move || {
        let _span = span.entered();
        // The receiver is gone only when the whole chain was dropped.
        let _ = ended.send(source.run(context));
    };
    thread.spawn(run).expect("the system starts a thread");
    end
}

fn spawn_lanes(lanes: Vec<Lane<Stage, AnySink>>) -> JoinSet<Result<(), LaneError>> {
    use tracing::Instrument;
    let mut tasks = JoinSet::new();
    for lane in lanes {
        let span = tracing::info_span!("pipeline", name = lane.sender.pipeline);
        tasks.spawn(lane.run().instrument(span));
    }
    tasks
}

/// Drives the deadlines of all functions until the chain is dropped.
#[expect(clippy::disallowed_methods, reason = "this is the wiring file")]
fn spawn_ticker(engine: &Engine, ticking: Arc<AtomicBool>) {
    let engine = engine.clone();
    let thread = std::thread::Builder::new().name("epochs".into());
    let tick = move || engine.tick_until(|| !ticking.load(Ordering::Relaxed));
    thread.spawn(tick).expect("the system starts a thread");
}

/// Runs the producers' drivers until their producers are closed.
fn spawn_drivers(pipeline: &str, drivers: Vec<AnyDriver>) -> JoinSet<Result<(), BrokerError>> {
    use tracing::Instrument;
    let mut tasks = JoinSet::new();
    for driver in drivers {
        tasks.spawn(driver.run().instrument(tracing::info_span!("pipeline", name = pipeline)));
    }
    tasks
}

/// Closing a producer of librdkafka blocks.
#[expect(clippy::disallowed_methods, reason = "this is the wiring file")]
async fn close(producers: Vec<AnyProducer>, timeout: Duration) {
    let runtime = tokio::runtime::Handle::current();
    let close = move || producers.into_iter().for_each(|producer| runtime.block_on(producer.close(timeout)));
    if tokio::task::spawn_blocking(close).await.is_err() {
        tracing::error!("closing a producer panicked");
    }
}

/// Why the source's end is a failure, if it is one.
fn source_error(
    pipeline: &str,
    end: Result<Result<SourceEnd, BrokerError>, oneshot::error::RecvError>,
    timeout: Duration,
) -> Option<RunError> {
    let pipeline = pipeline.to_owned();
    match end {
        Ok(Ok(SourceEnd::Drained)) => None,
        Ok(Ok(SourceEnd::DrainTimedOut)) => Some(RunError::DrainTimedOut { pipeline, timeout }),
        Ok(Ok(SourceEnd::Lost)) => Some(RunError::Lost { pipeline, timeout }),
        Ok(Err(source)) => Some(RunError::Source { pipeline, source }),
        Err(_) => Some(RunError::Panic { pipeline, task: "the source", reason: "its thread panicked".into() }),
    }
}

/// Why a producer's driver has ended, if that is a failure. It runs until its producer is closed, which it may be
/// (`is_closed`) where the source has the producer, as in transactions, and when the lanes have ended.
fn driver_error(
    pipeline: &str,
    driver: Result<Result<(), BrokerError>, JoinError>,
    is_closed: bool,
) -> Option<RunError> {
    match driver {
        Ok(Ok(())) if is_closed => None,
        Ok(Ok(())) => {
            let (pipeline, reason) = (pipeline.to_owned(), "it returned".to_owned());
            Some(RunError::Panic { pipeline, task: "a producer", reason })
        }
        Ok(Err(source)) => Some(RunError::Producer { pipeline: pipeline.to_owned(), source }),
        Err(error) => Some(panicked(pipeline, "a producer", &error)),
    }
}

fn lane_error(pipeline: &str, lane: Result<Result<(), LaneError>, JoinError>) -> Option<RunError> {
    match lane {
        Ok(Ok(())) => None,
        Ok(Err(source)) => Some(RunError::Lane { pipeline: pipeline.to_owned(), source }),
        // Lanes are aborted only after a failure that is already known.
        Err(error) if error.is_cancelled() => None,
        Err(error) => Some(panicked(pipeline, "a lane", &error)),
    }
}

fn panicked(pipeline: &str, task: &'static str, error: &JoinError) -> RunError {
    RunError::Panic { pipeline: pipeline.to_owned(), task, reason: error.to_string() }
}
