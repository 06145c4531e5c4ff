//! How long an event takes from one stream to another, at a fixed rate and by open loop: an event's time begins when it
//! was due, not when the publisher came to send it, so that whatever holds the publisher up counts too.

use std::collections::VecDeque;
use std::fmt;
use std::future::IntoFuture as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::{self, consumer};
use futures_util::StreamExt as _;
use tokio::runtime::Handle;

/// How long the first event may take: what is measured may still be starting.
const FIRST: Duration = Duration::from_secs(60);
/// Between two attempts to get the first event through.
const KNOCK: Duration = Duration::from_millis(100);
/// How long the last event may take.
const LAST: Duration = Duration::from_secs(30);
/// Not counted, at the same rate as the rest: caches fill, code is compiled, batches find their size.
const WARM_UP: Duration = Duration::from_secs(3);
/// Bytes of an event's value; its time and its number are in front.
const BYTES: usize = 250;
/// Messages that may wait for acknowledgements: several seconds' worth.
const WINDOW: usize = 4_000;
/// The number of events that only knock.
const NO_NUMBER: u64 = u64::MAX;

/// What is sent.
pub struct Plan {
    /// Events per second.
    pub rate: u64,
    /// For how long, without warming up.
    pub time: Duration,
}

/// The times of the counted events.
pub struct Latencies {
    /// In microseconds, sorted.
    micros: Vec<u64>,
    sent: u64,
    doubled: u64,
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |part: f64| {
            let last = self.micros.len().saturating_sub(1);
            let micros = self.micros.get((last as f64 * part).ceil() as usize).copied().unwrap_or(0);
            micros as f64 / 1000.0
        };
        write!(
            f,
            "sent={} received={} doubled={} p50={:.3} p90={:.3} p99={:.3} p99.9={:.3} max={:.3}",
            self.sent,
            self.micros.len(),
            self.doubled,
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            at(1.0)
        )
    }
}

#[derive(Default)]
struct Shared {
    ready: AtomicBool,
    received: AtomicU64,
}

/// Publishes to `input` and waits for the same events in `output`.
///
/// # Errors
/// When the server refuses, or events do not come.
pub async fn measure(url: &str, input: &str, output: &str, plan: &Plan) -> anyhow::Result<Latencies> {
    let warm_up = plan.rate * WARM_UP.as_secs();
    let total = warm_up + plan.rate * plan.time.as_secs();
    let shared = Shared::default();
    let sending = async {
        let client = async_nats::connect(url).await?;
        let context = jetstream::new(client);
        knock(&context, input, &shared).await?;
        let (input, rate, runtime) = (input.to_owned(), plan.rate, Handle::current());
        // A thread of its own, which sleeps more exactly than a task.
        tokio::task::spawn_blocking(move || send(&runtime, &context, &input, total, rate)).await?
    };
    let receiving = receive(url, output, total, &shared);
    let ((), (times, doubled)) = tokio::try_join!(sending, receiving)?;
    let mut micros = times[usize::try_from(warm_up)?..].to_vec();
    micros.sort_unstable();
    Ok(Latencies { sent: micros.len() as u64, micros, doubled })
}

/// Microseconds since the Unix epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_micros() as u64)
}

fn event(stream: &str, number: u64, due: u64) -> (String, Vec<u8>) {
    let mut value = vec![b'.'; BYTES];
    value[..8].copy_from_slice(&due.to_be_bytes());
    value[8..16].copy_from_slice(&number.to_be_bytes());
    (format!("{stream}.c-{:04}", number % 1000), value)
}

/// Sends events that are not counted until one of them has come through.
async fn knock(context: &jetstream::Context, input: &str, shared: &Shared) -> anyhow::Result<()> {
    let start = Instant::now();
    while !shared.ready.load(Relaxed) {
        ensure!(start.elapsed() < FIRST, "no event came through");
        let (subject, value) = event(input, NO_NUMBER, now());
        context.publish(subject, value.into()).await?.await?;
        tokio::time::sleep(KNOCK).await;
    }
    Ok(())
}

/// Sends `total` events, each when it is due; those that became due meanwhile follow at once.
fn send(runtime: &Handle, context: &jetstream::Context, input: &str, total: u64, rate: u64) -> anyhow::Result<()> {
    let (start, start_micros) = (Instant::now(), now());
    let mut acks = VecDeque::new();
    for sent in 0..total {
        let early = Duration::from_micros(sent * 1_000_000 / rate).saturating_sub(start.elapsed());
        if !early.is_zero() {
            std::thread::sleep(early);
        }
        let (subject, value) = event(input, sent, start_micros + sent * 1_000_000 / rate);
        acks.push_back(runtime.block_on(context.publish(subject, value.into()))?.into_future());
        while acks.len() > WINDOW {
            acks.pop_front().map_or(Ok(()), |ack| runtime.block_on(ack).map(|_| ()))?;
        }
    }
    for ack in acks {
        runtime.block_on(ack)?;
    }
    Ok(())
}

/// Takes what comes until `total` events came; gives the microseconds of each number.
async fn receive(url: &str, output: &str, total: u64, shared: &Shared) -> anyhow::Result<(Vec<u64>, u64)> {
    let context = jetstream::new(async_nats::connect(url).await?);
    let config = pull::OrderedConfig { deliver_policy: DeliverPolicy::New, ..pull::OrderedConfig::default() };
    let consumer: consumer::Consumer<pull::OrderedConfig> =
        context.get_stream(output).await?.create_consumer(config).await?;
    let mut messages = consumer.messages().await?;
    let (mut times, mut doubled) = (vec![0; usize::try_from(total)?], 0);
    while shared.received.load(Relaxed) < total {
        let patience = if shared.ready.load(Relaxed) { LAST } else { FIRST };
        let message = tokio::time::timeout(patience, messages.next()).await;
        let received = shared.received.load(Relaxed);
        let message = message.with_context(|| format!("{received} of {total} events came"))?;
        let (message, now) = (message.context("the end of a stream")??, now());
        let value = &message.payload;
        let word = |at: usize| value.get(at..at + 8).and_then(|word| word.try_into().ok()).map(u64::from_be_bytes);
        let (due, number) = word(0).zip(word(8)).context("an event that this program did not send")?;
        if number == NO_NUMBER {
            shared.ready.store(true, Relaxed);
            continue;
        }
        let time = times.get_mut(usize::try_from(number)?).context("an event of another run")?;
        if *time == 0 {
            // A microsecond at least: 0 stands for one that did not come.
            *time = now.saturating_sub(due).max(1);
            shared.received.fetch_add(1, Relaxed);
        } else {
            doubled += 1;
        }
    }
    Ok((times, doubled))
}
