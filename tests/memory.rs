//! The example pipelines/orders in memory, with its own components and its own file: no broker, the same results; and
//! with a broker that fails.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use fluxmill::broker::memory::{MemoryBroker, MemoryEvent, MemoryRecord};
use fluxmill::pipeline::{self, RunOptions, StartError};
use fluxmill::spec::ChainSpec;
use support::chain::repository;
use support::checker::{Report, Seen, compare};
use support::client::{Received, Record};
use support::workload::{Kind, customer, kind, order, order_number};
use tokio_util::sync::CancellationToken;

mod support;

const ORDERS: u64 = 3_000;
/// The longest that a run may take on a loaded machine, its compiling included.
const LIMIT: Duration = Duration::from_secs(240);
/// The topics in which an order's way through the example ends.
const ENDS: [&str; 4] = ["notifications", "payment-reviews", "orders.payment.dead", "orders.notification.dead"];

fn chain() -> anyhow::Result<ChainSpec> {
    // Nobody listens there: whoever connects fails.
    let environment = |name: &str| (name == "KAFKA_BROKERS").then(|| "127.0.0.1:9".to_owned());
    let loaded = fluxmill::config::load(&repository("pipelines/orders/chain.yaml"), &environment);
    Ok(loaded.map_err(|errors| anyhow::anyhow!("{errors}"))?.spec)
}

fn options(memory: &MemoryBroker) -> RunOptions {
    RunOptions { until_caught_up: true, drain_timeout: LIMIT, cache: None, replay: None, memory: Some(memory.clone()) }
}

/// A broker with all orders.
fn with_orders() -> anyhow::Result<MemoryBroker> {
    let memory = MemoryBroker::default();
    memory.create_topic("orders", 4)?;
    memory.publish("orders", (0..ORDERS).map(|number| stored(order(number))))?;
    Ok(memory)
}

fn stored(record: Record) -> MemoryEvent {
    MemoryEvent {
        key: record.key,
        value: record.value,
        headers: record.headers.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect(),
        timestamp: record.timestamp.unwrap_or_default(),
    }
}

fn received(record: MemoryRecord) -> Received {
    let MemoryRecord { partition, offset, event } = record;
    let MemoryEvent { key, value, headers, timestamp } = (*event).clone();
    Received { partition, offset, key, value, headers, timestamp: Some(timestamp) }
}

async fn run(memory: &MemoryBroker) -> anyhow::Result<()> {
    let mut running = pipeline::start(&[chain()?], &options(memory), CancellationToken::new()).await?;
    tokio::time::timeout(LIMIT, running.wait()).await.context("the chain does not end")??;
    Ok(())
}

/// What became of the orders.
fn ends(memory: &MemoryBroker) -> anyhow::Result<BTreeMap<&'static str, Vec<Received>>> {
    ENDS.into_iter().map(|topic| Ok((topic, memory.read(topic)?.into_iter().map(received).collect()))).collect()
}

fn report(ends: &BTreeMap<&str, Vec<Received>>) -> Report<Option<u64>> {
    let input: Vec<_> = (0..ORDERS).map(|number| Seen { key: customer(number), id: Some(number) }).collect();
    let seen = |event: &Received| {
        let key = String::from_utf8_lossy(event.key.as_deref().unwrap_or_default()).into_owned();
        Seen { key, id: order_number(event) }
    };
    let partitions = ends.values().flat_map(|events| events.chunk_by(|a, b| a.partition == b.partition));
    let output: Vec<_> = partitions.map(|events| events.iter().map(seen).collect()).collect();
    compare(&input, &output)
}

/// Every order ended where its kind belongs; dead letters and reviews are the orders as they were.
fn ensure_in_place(ends: &BTreeMap<&str, Vec<Received>>) -> anyhow::Result<()> {
    for (topic, event) in ends.iter().flat_map(|(topic, events)| events.iter().map(move |event| (topic, event))) {
        let number = order_number(event).with_context(|| format!("{topic}: no order in {event:?}"))?;
        let (place, untouched) = match kind(number) {
            Kind::Small => ("notifications", false),
            Kind::Large => ("payment-reviews", true),
            Kind::Broken => ("orders.payment.dead", true),
        };
        ensure!(place == *topic, "order {number} ended in {topic} instead of {place}");
        let was = received(MemoryRecord {
            partition: event.partition,
            offset: event.offset,
            event: stored(order(number)).into(),
        });
        if untouched {
            ensure!(event.key == was.key && event.value == was.value, "{event:?} was {was:?}");
            ensure!(
                event.headers.starts_with(&was.headers) && event.timestamp == was.timestamp,
                "{event:?} was {was:?}"
            );
        }
        if place == "orders.payment.dead" {
            ensure!(event.header("fluxmill-error-kind")? == "reject", "{event:?}");
            // Empty where the partition was lost meanwhile: then the order has another end, too.
            ensure!(matches!(event.header("fluxmill-source-topic")?, "orders" | ""), "{event:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_order_ends_once_in_its_place() -> anyhow::Result<()> {
    let memory = with_orders()?;
    run(&memory).await?;
    let found = ends(&memory)?;
    report(&found).exactly_once().map_err(anyhow::Error::msg)?;
    ensure_in_place(&found)?;
    let committed: i64 = memory.committed("orders.payment", "orders").values().sum();
    ensure!(committed == i64::try_from(ORDERS)?, "{committed} orders are confirmed");
    // Nothing is left, and a run over nothing ends by itself.
    run(&memory).await?;
    ensure!(ends(&memory)? == found, "something was run again");
    Ok(())
}

/// An outage, late acknowledgements and lost partitions in the middle: nothing is lost, and what ends twice keeps its
/// order.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_fails_loses_no_order() -> anyhow::Result<()> {
    let memory = with_orders()?;
    let mut running = pipeline::start(&[chain()?], &options(&memory), CancellationToken::new()).await?;
    let published = async |events: usize| {
        let count =
            || anyhow::Ok(ENDS.iter().map(|topic| memory.read(topic)).collect::<Result<Vec<_>, _>>()?.concat().len());
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        while count()? < events {
            ticks.tick().await;
        }
        anyhow::Ok(())
    };
    let trouble = async {
        memory.hold_acknowledgements();
        published(1).await?;
        memory.revoke("orders.payment");
        memory.go_away();
        tokio::task::yield_now().await;
        memory.come_back();
        memory.release_acknowledgements();
        published(100).await?;
        memory.revoke("orders.notification");
        anyhow::Ok(())
    };
    tokio::time::timeout(LIMIT, trouble).await.context("no events come out")??;
    tokio::time::timeout(LIMIT, running.wait()).await.context("the chain does not end")??;
    let found = ends(&memory)?;
    report(&found).at_least_once().map_err(anyhow::Error::msg)?;
    ensure_in_place(&found)
}

/// What is not in memory is refused before anything runs, all at once.
#[tokio::test]
async fn what_is_not_in_memory_is_refused() -> anyhow::Result<()> {
    use fluxmill::spec::{ConnectionSpec, Guarantee, NatsAuth, NatsConnection, TargetSpec};
    let mut spec = chain()?;
    let nats = NatsConnection { servers: vec!["nats://127.0.0.1:9".into()], tls: None, auth: NatsAuth::None };
    let mut other = spec.connections["main"].clone();
    if let ConnectionSpec::Kafka(other) = &mut other {
        other.brokers = vec!["elsewhere:9092".into()];
    }
    spec.connections.insert("edge".into(), ConnectionSpec::Nats(nats));
    spec.connections.insert("other".into(), other);
    spec.pipelines[0].outputs[0].target = TargetSpec::Kafka { connection: "other".into(), topic: "payments".into() };
    spec.pipelines[0].guarantee = Guarantee::ExactlyOnce;
    spec.pipelines[1].outputs[0].target =
        TargetSpec::Nats { connection: "edge".into(), subject: "sent".into(), atomic: false };
    let memory = MemoryBroker::default();
    let started = pipeline::start(&[spec], &options(&memory), CancellationToken::new()).await;
    let Err(StartError::Broker(errors)) = started else { panic!("it started: {started:?}") };
    let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let text = text.join("\n");
    for part in [
        "pipeline payment in memory: `delivery: exactly_once` is not in memory yet",
        "pipeline notification in memory: NATS is not in memory yet",
        "topic payments in memory: it is on two clusters, 127.0.0.1:9 and elsewhere:9092",
    ] {
        ensure!(text.contains(part), "no `{part}` in:\n{text}");
    }
    Ok(())
}
