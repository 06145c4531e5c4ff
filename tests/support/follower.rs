//! A reader of committed events that reads along while they come, as a downstream service does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};

use super::client::{Client, Received};

/// The longest wait for one event.
const POLL: Duration = Duration::from_millis(100);
/// The longest wait for what was there at the end.
const REST: Duration = Duration::from_secs(120);

/// Reads a topic from its beginning on a thread of its own, until it is told to stop.
pub(crate) struct Follower {
    stop: Arc<AtomicBool>,
    reading: Option<JoinHandle<anyhow::Result<Vec<Received>>>>,
}

impl Follower {
    /// Begins to read.
    ///
    /// # Errors
    /// When the topic does not exist.
    pub(crate) fn start(client: &Client, topic: &str) -> anyhow::Result<Self> {
        let consumer = client.consumer()?;
        let mut assigned = TopicPartitionList::new();
        for partition in client.watermarks(topic)?.into_keys() {
            assigned.add_partition_offset(topic, partition, Offset::Offset(0))?;
        }
        consumer.assign(&assigned)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, client, topic) = (stop.clone(), client.clone(), topic.to_owned());
        #[expect(clippy::disallowed_methods, reason = "joined at the end")]
        let reading = std::thread::spawn(move || follow(&consumer, &client, &topic, &stopped));
        Ok(Self { stop, reading: Some(reading) })
    }

    /// Everything that was read, up to what is there now; sorted by partition and offset.
    ///
    /// # Errors
    /// When it could not be read, or did not come in time.
    pub(crate) fn finish(mut self) -> anyhow::Result<Vec<Received>> {
        self.stop.store(true, Relaxed);
        let reading = self.reading.take().context("it is read once")?;
        reading.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(reading) = self.reading.take() {
            let _ = reading.join();
        }
    }
}

fn follow(consumer: &BaseConsumer, client: &Client, topic: &str, stop: &AtomicBool) -> anyhow::Result<Vec<Received>> {
    let mut received = Vec::new();
    let mut rest: Option<(Instant, Vec<(i32, i64)>)> = None;
    loop {
        // Brokers come and go: what is an error now may be read later. What never comes is missed at the end.
        if let Some(Ok(message)) = consumer.poll(POLL) {
            received.push(Received::from_message(&message)?);
            continue;
        }
        if !stop.load(Relaxed) {
            continue;
        }
        let (since, ends) = match &rest {
            Some(rest) => rest,
            None => {
                let ends = client.watermarks(topic)?.into_iter().map(|(partition, (_, high))| (partition, high));
                rest.insert((Instant::now(), ends.collect()))
            }
        };
        let position = consumer.position()?;
        let is_behind = |(partition, end): &&(i32, i64)| {
            let at = position.find_partition(topic, *partition).map(|found| found.offset());
            *end > 0 && !matches!(at, Some(Offset::Offset(at)) if at >= *end)
        };
        let behind: Vec<_> = ends.iter().filter(is_behind).collect();
        if behind.is_empty() {
            received.sort_by_key(|event| (event.partition, event.offset));
            return Ok(received);
        }
        ensure!(since.elapsed() < REST, "the reader of {topic} did not come to {behind:?}");
    }
}
