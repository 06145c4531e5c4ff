//! How long an event takes from one topic to another, at a fixed rate and by open loop: an event's time begins when it
//! was due, not when the producer came to send it, so that whatever holds the producer up counts too.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};

use crate::batch::{Columns, Encoder};
use crate::codec::Codec;
use crate::wire::{Connection, LATEST};

/// How long the broker holds a fetch without events.
const WAIT: Duration = Duration::from_millis(500);
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

/// Produces to `input` and waits for the same events in `output`.
///
/// # Errors
/// When the broker refuses, or events do not come.
pub fn measure(broker: &str, input: &str, output: &str, plan: &Plan) -> anyhow::Result<Latencies> {
    let warm_up = plan.rate * WARM_UP.as_secs();
    let total = warm_up + plan.rate * plan.time.as_secs();
    let mut producer = Producer::new(broker, input)?;
    let mut consumer = Consumer::new(broker, output)?;
    let (ready, stop, received) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let (sent, times) = std::thread::scope(|scope| {
        let consuming = scope.spawn(|| {
            let mut times = vec![0; usize::try_from(total)?];
            let mut doubled = 0;
            while !stop.load(Relaxed) {
                consumer.take(&mut times, &mut doubled, &ready, &received)?;
            }
            anyhow::Ok((times, doubled))
        });
        let sent = producer
            .knock(&ready)
            .and_then(|()| producer.send(total, plan.rate))
            .and_then(|()| wait_until(LAST, || received.load(Relaxed) == total || consuming.is_finished()));
        stop.store(true, Relaxed);
        (sent, consuming.join())
    });
    let (times, doubled) = times.map_err(|_| anyhow::anyhow!("the consumer panicked"))??;
    sent.with_context(|| format!("{} of {total} events came", received.load(Relaxed)))?;
    let mut micros = times[usize::try_from(warm_up)?..].to_vec();
    micros.sort_unstable();
    Ok(Latencies { sent: micros.len() as u64, micros, doubled })
}

fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> anyhow::Result<()> {
    let start = Instant::now();
    while !done() {
        ensure!(start.elapsed() < limit, "waited {limit:?} in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Microseconds since the Unix epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_micros() as u64)
}

struct Producer<'a> {
    connection: Connection,
    topic: &'a str,
    partitions: usize,
    encoder: Encoder,
    requests: usize,
}

impl<'a> Producer<'a> {
    fn new(broker: &str, topic: &'a str) -> anyhow::Result<Self> {
        let mut connection = Connection::open(broker)?;
        let partitions = connection.partitions(topic)?;
        Ok(Self { connection, topic, partitions, encoder: Encoder::new(64 * 1024), requests: 0 })
    }

    fn push(&mut self, number: u64, due: u64) {
        let mut value = [b'.'; BYTES];
        value[..8].copy_from_slice(&due.to_be_bytes());
        value[8..16].copy_from_slice(&number.to_be_bytes());
        self.encoder.push(format!("k-{:04}", number % 1000).as_bytes(), &value, (due / 1000).cast_signed());
    }

    /// Sends what was pushed to the next partition and waits until the broker has it.
    fn flush(&mut self) -> anyhow::Result<()> {
        let partition = i32::try_from(self.requests % self.partitions)?;
        self.requests += 1;
        let batch = self.encoder.finish(Codec::None)?;
        self.connection.produce(self.topic, vec![(partition, batch)])?;
        self.connection.produced()
    }

    /// Sends events that are not counted until one of them has come through.
    fn knock(&mut self, ready: &AtomicBool) -> anyhow::Result<()> {
        let mut next = Instant::now();
        wait_until(FIRST, || {
            if Instant::now() >= next {
                next = Instant::now() + KNOCK;
                self.push(NO_NUMBER, now());
                if let Err(error) = self.flush() {
                    eprintln!("knocking: {error:#}");
                }
            }
            ready.load(Relaxed)
        })
        .context("no event came through")
    }

    /// Sends `total` events, each when it is due; those that became due meanwhile go together.
    fn send(&mut self, total: u64, rate: u64) -> anyhow::Result<()> {
        let (start, start_micros) = (Instant::now(), now());
        let mut sent = 0;
        while sent < total {
            let due = Duration::from_micros(sent * 1_000_000 / rate);
            let early = due.saturating_sub(start.elapsed());
            if !early.is_zero() {
                std::thread::sleep(early);
            }
            let elapsed = u64::try_from(start.elapsed().as_micros())?;
            let due = (elapsed * rate / 1_000_000 + 1).clamp(sent + 1, total);
            while sent < due {
                self.push(sent, start_micros + sent * 1_000_000 / rate);
                sent += 1;
            }
            self.flush()?;
        }
        Ok(())
    }
}

struct Consumer<'a> {
    connection: Connection,
    topic: &'a str,
    offsets: Vec<i64>,
    columns: Columns,
}

impl<'a> Consumer<'a> {
    fn new(broker: &str, topic: &'a str) -> anyhow::Result<Self> {
        let mut connection = Connection::open(broker)?;
        let partitions = connection.partitions(topic)?;
        let offsets = connection.offsets(topic, partitions, LATEST)?;
        Ok(Self { connection, topic, offsets, columns: Columns::default() })
    }

    /// Takes what is there or comes soon; `times` gets the microseconds of each number.
    fn take(
        &mut self,
        times: &mut [u64],
        doubled: &mut u64,
        ready: &AtomicBool,
        received: &AtomicU64,
    ) -> anyhow::Result<()> {
        self.columns.clear();
        self.connection.fetch(self.topic, &mut self.offsets, WAIT, &mut self.columns)?;
        let now = now();
        for value in self.columns.values() {
            let word = |at: usize| value.get(at..at + 8).and_then(|word| word.try_into().ok()).map(u64::from_be_bytes);
            let (due, number) = word(0).zip(word(8)).context("an event that this program did not send")?;
            if number == NO_NUMBER {
                ready.store(true, Relaxed);
                continue;
            }
            let time = times.get_mut(usize::try_from(number)?).context("an event of another run")?;
            if *time == 0 {
                // A microsecond at least: 0 stands for one that did not come.
                *time = now.saturating_sub(due).max(1);
                received.fetch_add(1, Relaxed);
            } else {
                *doubled += 1;
            }
        }
        Ok(())
    }
}
