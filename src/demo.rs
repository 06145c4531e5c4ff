//! The demo: the chain of pipelines/orders on a Kafka inside the process, with orders made up on the way. What runs is
//! the real chain, from its file, through the real client; only the broker is a mock.

mod meter;
mod orders;
mod screen;
mod summary;
mod view;

use std::collections::VecDeque;
use std::io::Write as _;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::broker::kafka::mock::MockKafka;
use crate::broker::kafka::{LibrdkafkaProducer, LibrdkafkaSink};
use crate::broker::{Acknowledgement, Sink as _};
use crate::config;
use crate::delivery::Slot;
use crate::demo::meter::{Flow, Meter};
use crate::demo::orders::Orders;
use crate::demo::view::{EventLine, Phase};
use crate::event::{BatchBuilder, Origin, Publication};
use crate::function::EngineOptions;
use crate::intake::Delivery;
use crate::pipeline::{self, RunOptions, Tap};
use crate::spec::{ChainSpec, ConnectionSpec, KafkaSourceSpec, StartOffset};

pub use screen::{Restore, Screen};
pub use summary::Summary;

/// The files of the example, as they are in pipelines/orders.
const FILES: [(&str, &[u8]); 3] = [
    ("chain.yaml", include_bytes!("../pipelines/orders/chain.yaml")),
    ("functions/payment.wasm", include_bytes!("../pipelines/orders/functions/payment.wasm")),
    ("functions/notification.wasm", include_bytes!("../pipelines/orders/functions/notification.wasm")),
];
/// The topic that orders are sent to.
const ENTRY: &str = "orders";
/// Partitions of topics that the chain's file does not list.
const PARTITIONS: u16 = 1;
/// Orders on their way at once. The mock keeps 5 MiB a partition, an order has some 250 bytes: all of them would fit
/// into one partition four times.
const OUTSTANDING_MAX: u64 = 5_000;
/// How often orders are sent, and at most how many at once.
const SEND_INTERVAL: Duration = Duration::from_millis(10);
const SEND_MAX: u64 = 500;
/// How often the picture is drawn, and how often a line is printed where there is no terminal.
const DRAW_INTERVAL: Duration = Duration::from_millis(250);
const LINE_INTERVAL: Duration = Duration::from_secs(1);
/// Events shown at once.
const EVENTS_SHOWN: usize = 5;
/// Bytes of an event that are shown.
const EVENT_BYTES_SHOWN: usize = 200;
/// How long what is on its way may take to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);

/// What the demo is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Orders a second; fewer are sent when the chain does not keep up.
    pub rate: u32,
    /// Orders in all; `None` goes on until stopped.
    pub count: Option<u64>,
    /// How long to send orders; `None` goes on until stopped.
    pub duration: Option<Duration>,
    /// The same seed makes the same orders.
    pub seed: u64,
}

/// Runs the demo until it has sent its orders or `stop` is cancelled, drains the chain, and returns the counts.
/// Without a screen, lines are printed.
///
/// # Errors
/// When the demo cannot be set up, or the chain fails.
pub async fn run(options: &Options, screen: Option<&Screen>, stop: CancellationToken) -> anyhow::Result<Summary> {
    let mock = MockKafka::start(1)?;
    say(&format!("A Kafka inside this process serves {0}; look in with: kcat -b {0} -L", mock.address()))?;
    let folder = tempfile::tempdir().context("make a folder for the example")?;
    let chain = load(folder.path(), mock.address())?;
    create_topics(&mock, &chain)?;
    say("Loading the functions and joining the consumer groups (the first time, functions are compiled) ...")?;

    let run = RunOptions {
        until_caught_up: false,
        drain_timeout: DRAIN_TIMEOUT,
        cache: EngineOptions::default_cache(),
        replay: None,
        memory: None,
    };
    let chain_stop = CancellationToken::new();
    let mut running = pipeline::start(std::slice::from_ref(&chain), &run, chain_stop.clone()).await?;
    let flow = Arc::new(Flow::new(&chain, ENTRY, running.pipelines()));
    let tap = tap(&mock, &chain)?;
    let producer = LibrdkafkaProducer::connect(&mock.connection(), "fluxmill-demo-orders")?;
    let mut show = Show::new(flow.clone(), screen, mock.address());
    let mut sender = Sender::new(options, producer.sink(ENTRY), flow.clone());

    let mut ended = pin!(running.wait());
    let mut draw = interval(if screen.is_some() { DRAW_INTERVAL } else { LINE_INTERVAL });
    let mut send = interval(SEND_INTERVAL);
    send.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut drain_until = None;
    loop {
        tokio::select! {
            result = &mut ended => {
                result?;
                anyhow::bail!("the chain ended before it was stopped");
            }
            delivery = tap.next() => match delivery {
                Some(delivery) => show.seen(&flow, delivery),
                None => {
                    tap.end().await?;
                    anyhow::bail!("the final topics are read no more");
                }
            },
            result = sender.acknowledged() => result?,
            _ = send.tick() => {
                if drain_until.is_none() {
                    sender.send().await?;
                    if stop.is_cancelled() || sender.is_complete() {
                        drain_until = Some(Instant::now() + DRAIN_TIMEOUT);
                    }
                }
                let drained = sender.is_settled() && flow.outstanding() == 0;
                if drain_until.is_some_and(|until| drained || Instant::now() >= until) {
                    break;
                }
            }
            _ = draw.tick() => show.draw(if drain_until.is_some() { Phase::Draining } else { Phase::Running })?,
        }
    }
    show.draw(Phase::Draining)?;
    chain_stop.cancel();
    ended.await?;
    // The mock goes when this function ends; a consumer that is left would complain.
    tokio::time::timeout(DRAIN_TIMEOUT, tap.end()).await.context("wait for the last consumer to leave")??;
    if let Some(screen) = screen {
        screen.leave()?;
    }
    Ok(Summary::of(&flow))
}

/// Writes the example into a folder and loads it as any other file is loaded.
fn load(folder: &Path, address: &str) -> anyhow::Result<ChainSpec> {
    std::fs::create_dir(folder.join("functions")).context("make a folder for the example")?;
    for (name, bytes) in FILES {
        std::fs::write(folder.join(name), bytes).with_context(|| format!("write the example's {name}"))?;
    }
    let environment = |name: &str| (name == "KAFKA_BROKERS").then(|| address.to_owned());
    let mut chain = config::load(&folder.join("chain.yaml"), &environment)?.spec;
    for connection in chain.connections.values_mut() {
        let ConnectionSpec::Kafka(connection) = connection else { continue };
        // librdkafka's default. Said here, the mock is not asked what its topics take: it never answers that.
        connection.properties.entry("batch.size".into()).or_insert_with(|| "1000000".into());
    }
    Ok(chain)
}

/// The mock has no admin calls, so the chain cannot create its topics itself.
fn create_topics(mock: &MockKafka, chain: &ChainSpec) -> anyhow::Result<()> {
    for topic in meter::topics(chain) {
        let listed = chain.topics.iter().find(|listed| listed.topic == topic);
        let partitions = listed.and_then(|listed| u16::try_from(listed.partitions).ok()).unwrap_or(PARTITIONS);
        mock.create_topic(&topic, partitions)?;
    }
    Ok(())
}

/// Reads back what the chain publishes at its ends.
fn tap(mock: &MockKafka, chain: &ChainSpec) -> anyhow::Result<Tap> {
    let source = KafkaSourceSpec {
        connection: String::new(),
        topics: meter::ends(chain),
        group: "demo.tap".into(),
        instance: None,
        start: StartOffset::Earliest,
    };
    Ok(pipeline::tap(&mock.connection(), &source, "fluxmill-demo-tap")?)
}

/// Sends orders at a rate, never further ahead of the chain than it may.
struct Sender {
    orders: Orders,
    sink: LibrdkafkaSink,
    flow: Arc<Flow>,
    rate: f64,
    /// Orders that may still be sent.
    left: u64,
    until: Option<Instant>,
    /// Orders that are due, and since when.
    due: f64,
    at: Instant,
    sent: u64,
    waiting: FuturesUnordered<Sent>,
}

type Sent = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<u64>> + Send>>;

impl Sender {
    fn new(options: &Options, sink: LibrdkafkaSink, flow: Arc<Flow>) -> Self {
        let at = Instant::now();
        Self {
            orders: Orders::new(options.seed),
            sink,
            flow,
            rate: f64::from(options.rate),
            left: options.count.unwrap_or(u64::MAX),
            until: options.duration.map(|duration| at + duration),
            due: 0.0,
            at,
            sent: 0,
            waiting: FuturesUnordered::new(),
        }
    }

    fn is_complete(&self) -> bool {
        self.left == 0 || self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// Whether every order that was sent is acknowledged.
    fn is_settled(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sends the orders that are due, as far as the chain keeps up; what is due beyond that is let go.
    async fn send(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        self.due = (self.due + self.rate * (now - self.at).as_secs_f64()).min(SEND_MAX as f64);
        self.at = now;
        let unacknowledged = self.sent - self.flow.generated.get();
        let room = OUTSTANDING_MAX.saturating_sub(self.flow.outstanding() + unacknowledged);
        let count = (self.due as u64).min(room).min(self.left);
        if count == 0 {
            return Ok(());
        }
        self.due -= count as f64;
        self.left -= count;
        self.sent += count;
        let batch = self.batch(count);
        let acknowledgement = self.sink.publish(batch).await?;
        self.waiting.push(Box::pin(settled(acknowledgement, count)));
        Ok(())
    }

    fn batch(&mut self, count: u64) -> Publication {
        let mut builder = BatchBuilder::with_capacity(count as usize);
        for _ in 0..count {
            let timestamp = jiff::Timestamp::now().as_millisecond();
            let order = self.orders.next_at(timestamp);
            // These events come from nowhere; their origin is never looked at.
            let origin = Origin { slot: Slot(0), offset: 0 };
            let key = Some(order.key.as_bytes());
            builder.append(origin, key, Some(&order.value), timestamp, std::iter::empty());
        }
        Publication::unchanged(builder.finish())
    }

    /// Waits for the next acknowledgement; for ever when nothing waits for one.
    async fn acknowledged(&mut self) -> anyhow::Result<()> {
        match self.waiting.next().await {
            Some(count) => {
                self.flow.generated.add(count?);
                Ok(())
            }
            None => std::future::pending().await,
        }
    }
}

async fn settled(acknowledgement: Acknowledgement, count: u64) -> anyhow::Result<u64> {
    let report = acknowledgement.await?;
    match report.refused.into_iter().next() {
        None => Ok(count),
        Some((_, error)) => Err(error.into()),
    }
}

/// Shows the flow on the screen, or as lines.
struct Show<'a> {
    meter: Meter,
    screen: Option<&'a Screen>,
    address: String,
    events: VecDeque<EventLine>,
}

impl<'a> Show<'a> {
    fn new(flow: Arc<Flow>, screen: Option<&'a Screen>, address: &str) -> Self {
        Self { meter: Meter::new(flow), screen, address: address.to_owned(), events: VecDeque::new() }
    }

    /// Counts events that were read back, and keeps the newest of each topic's run to be shown.
    fn seen(&mut self, flow: &Flow, delivery: Delivery) {
        let Delivery { batch, token, .. } = delivery;
        for row in 0..batch.len() {
            let Some(source) = token.partition(batch.origin(row).slot) else { continue };
            let Some(end) = flow.ends.iter().find(|end| *end.topic == *source.topic) else { continue };
            end.seen.add(1);
            let last_of_run = row + 1 == batch.len() || batch.slots[row + 1] != batch.slots[row];
            if last_of_run {
                let event = batch.row(row);
                let text = format!("{}  {}", text(event.key), text(event.value));
                self.events.push_back(EventLine { topic: end.topic.clone(), text });
            }
        }
        while self.events.len() > EVENTS_SHOWN {
            self.events.pop_front();
        }
        token.done();
    }

    fn draw(&mut self, phase: Phase) -> anyhow::Result<()> {
        let frame = self.meter.frame(phase, &self.address, self.events.iter().cloned().collect());
        match self.screen {
            Some(screen) => screen.draw(&frame.picture(Screen::size().0)).context("draw on the terminal")?,
            None => say(&frame.line())?,
        }
        Ok(())
    }
}

/// Prints a line; who reads it may have gone.
fn say(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("write to stdout")
}

fn text(bytes: Option<&[u8]>) -> String {
    bytes.map_or_else(
        || "-".into(),
        |bytes| String::from_utf8_lossy(&bytes[..bytes.len().min(EVENT_BYTES_SHOWN)]).into_owned(),
    )
}
