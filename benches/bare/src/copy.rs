//! The bare columnar copy: one thread fetches and decodes into columns, one encodes them and produces.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::Context;

use crate::batch::{Columns, Encoder};
use crate::codec::Codec;
use crate::wire::{Connection, EARLIEST, partition};

/// How long the broker waits for events.
const WAIT: Duration = Duration::from_millis(50);
/// Columns that wait between the threads.
const WAITING: usize = 8;
/// A batch is sent before it grows beyond this: topics take 1,048,588 bytes by default.
const BATCH_BYTES: usize = 1_000_000;
/// Requests that have no answer yet.
const IN_FLIGHT: usize = 5;
/// What a record may take beside its key and value.
const OVERHEAD: usize = 64;

/// Copies `events` events from the beginning of `input`; gives how many there were.
///
/// # Errors
/// When the broker refuses, or does not answer for half a minute.
pub fn copy(broker: &str, input: &str, output: &str, events: u64, codec: Codec) -> anyhow::Result<u64> {
    let (full, to_produce) = sync_channel(WAITING);
    let (empty, to_fill) = sync_channel(WAITING + 2);
    std::thread::scope(|scope| {
        let fetching = scope.spawn(move || fetch(broker, input, events, &full, &to_fill));
        let produced = produce(broker, output, events, codec, &to_produce, &empty);
        // Whoever waits for the other to go on is told that it does not.
        drop((to_produce, empty));
        // When fetching failed, that is why there was nothing to produce.
        fetching.join().map_err(|_| anyhow::anyhow!("fetching panicked"))??;
        produced
    })
}

fn fetch(
    broker: &str,
    topic: &str,
    events: u64,
    full: &SyncSender<Columns>,
    to_fill: &Receiver<Columns>,
) -> anyhow::Result<()> {
    let mut connection = Connection::open(broker)?;
    let partitions = connection.partitions(topic)?;
    let mut offsets = connection.offsets(topic, partitions, EARLIEST)?;
    let mut fetched = 0;
    while fetched < events {
        let mut columns = to_fill.try_recv().unwrap_or_default();
        columns.clear();
        connection.fetch(topic, &mut offsets, WAIT, &mut columns)?;
        fetched += columns.len() as u64;
        if columns.len() > 0 && full.send(columns).is_err() {
            break;
        }
    }
    Ok(())
}

fn produce(
    broker: &str,
    topic: &str,
    events: u64,
    codec: Codec,
    to_produce: &Receiver<Columns>,
    empty: &SyncSender<Columns>,
) -> anyhow::Result<u64> {
    let mut connection = Connection::open(broker)?;
    let partitions = connection.partitions(topic)?;
    let mut encoders: Vec<Encoder> = (0..partitions).map(|_| Encoder::new(BATCH_BYTES + OVERHEAD)).collect();
    let (mut produced, mut in_flight) = (0, 0);
    while produced < events {
        let columns = to_produce.recv().context("nothing is fetched any more")?;
        for (key, value, time) in columns.iter() {
            let to = partition(key, partitions);
            if encoders[to].len() + key.len() + value.len() + OVERHEAD > BATCH_BYTES && !encoders[to].is_empty() {
                let batch = (i32::try_from(to)?, encoders[to].finish(codec)?);
                send(&mut connection, topic, vec![batch], &mut in_flight)?;
            }
            encoders[to].push(key, value, time);
        }
        produced += columns.len() as u64;
        // Room for later, or none is needed any more.
        let _ = empty.try_send(columns);
        let mut batches = Vec::with_capacity(partitions);
        for (to, encoder) in (0..).zip(&mut encoders).filter(|(_, encoder)| !encoder.is_empty()) {
            batches.push((to, encoder.finish(codec)?));
        }
        send(&mut connection, topic, batches, &mut in_flight)?;
    }
    for _ in 0..in_flight {
        connection.produced()?;
    }
    Ok(produced)
}

fn send(
    connection: &mut Connection,
    topic: &str,
    batches: Vec<(i32, Vec<u8>)>,
    in_flight: &mut usize,
) -> anyhow::Result<()> {
    if *in_flight == IN_FLIGHT {
        connection.produced()?;
        *in_flight -= 1;
    }
    connection.produce(topic, batches)?;
    *in_flight += 1;
    Ok(())
}
