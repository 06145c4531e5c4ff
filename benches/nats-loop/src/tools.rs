//! Streams around a measurement.

use std::fmt;

use anyhow::ensure;
use async_nats::jetstream::{self, Context, stream};

/// Messages that are published before their acknowledgements are looked at.
const WINDOW: usize = 2_000;
/// Keys of the events, each a token of their subjects.
const CUSTOMERS: u64 = 1_000;

async fn context(url: &str) -> anyhow::Result<Context> {
    Ok(jetstream::new(async_nats::connect(url).await?))
}

/// Creates a stream on disk that stores `name.>`.
pub async fn make(url: &str, name: &str) -> anyhow::Result<()> {
    let config = stream::Config {
        name: name.to_owned(),
        subjects: vec![format!("{name}.>")],
        storage: stream::StorageType::File,
        allow_direct: true,
        allow_atomic_publish: true,
        ..stream::Config::default()
    };
    context(url).await?.create_stream(config).await?;
    Ok(())
}

/// Fills a stream with events of exactly `bytes` bytes. The same numbers give the same events.
pub async fn load(url: &str, name: &str, events: u64, bytes: usize) -> anyhow::Result<()> {
    make(url, name).await?;
    let (context, mut random) = (context(url).await?, fastrand::Rng::with_seed(7));
    let mut acks = Vec::with_capacity(WINDOW);
    for number in 0..events {
        let (subject, value) = event(name, number, random.u64(0..CUSTOMERS), bytes)?;
        acks.push(context.publish(subject, value.into()).await?);
        if acks.len() == WINDOW || number + 1 == events {
            for ack in acks.drain(..) {
                ack.await?;
            }
        }
    }
    Ok(())
}

fn event(stream: &str, number: u64, customer: u64, bytes: usize) -> anyhow::Result<(String, String)> {
    let mut value = format!(r#"{{"order_id":"o-{number:08}","customer_id":"c-{customer:04}","note":""#);
    const END: &str = r#""}"#;
    ensure!(value.len() + END.len() <= bytes, "an event has {} bytes at least", value.len() + END.len());
    value.extend(std::iter::repeat_n("leave it at the door ", bytes / 20 + 1));
    value.truncate(bytes - END.len());
    value.push_str(END);
    Ok((format!("{stream}.c-{customer:04}"), value))
}

/// Deletes streams.
pub async fn drop_streams(url: &str, names: &[&str]) -> anyhow::Result<()> {
    let context = context(url).await?;
    for name in names {
        context.delete_stream(name).await?;
    }
    Ok(())
}

/// What is in a stream.
pub struct Span {
    events: u64,
    first_ms: i128,
    last_ms: i128,
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "events={} first_ms={} last_ms={}", self.events, self.first_ms, self.last_ms)
    }
}

/// How many messages a stream has, and when it stored the first and the last.
pub async fn span(url: &str, name: &str) -> anyhow::Result<Span> {
    let stream = context(url).await?.get_stream(name).await?;
    let state = &stream.cached_info().state;
    let millis = |time: time::OffsetDateTime| time.unix_timestamp_nanos() / 1_000_000;
    Ok(Span { events: state.messages, first_ms: millis(state.first_timestamp), last_ms: millis(state.last_timestamp) })
}
