//! Kafka transactions of the columnar plane on a real Kafka: what is published and the offsets of what was read become
//! visible together or not at all, whoever fails, and when.

#![allow(clippy::disallowed_methods, reason = "tests are not wired by src/pipeline.rs")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use fluxmill::broker::kafka::{
    ColumnarSink, GroupMetadata, TransactionError, TransactionErrorKind, TransactionSpec, TransactionalProducer,
};
use fluxmill::broker::{Acknowledgement, BrokerErrorKind, Sink as _};
use fluxmill::delivery::{Slot, TopicPartition};
use fluxmill::event::{BatchBuilder, Origin, Publication};
use fluxmill::spec::{ColumnarSettings, KafkaClient, KafkaConnection};
use futures_util::FutureExt as _;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::util::Timeout;
use support::chain::Chain;
use support::client::{Client, Received, Record};
use support::kafka::cluster::Cluster;
use support::kafka::{Kafka, Options, Version};
use support::kcat::Kcat;
use support::process::Signal;
use support::suite::{Case, Suite};
use support::wait::wait_until;

mod support;

/// The longest that a part of a test may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);
/// No transaction of a test grows as old as this, unless it says so.
const TIMEOUT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let mut suite = Suite::default();
    suite.kafka_and_kcat("events_and_offsets_are_visible_after_the_commit", events_and_offsets_are_visible_together);
    suite.kafka_and_kcat("aborted_events_and_offsets_are_never_visible", aborted_is_never_visible);
    suite.kafka("the_next_producer_of_an_id_fences_the_one_before", the_next_producer_fences);
    suite.kafka("a_transaction_older_than_its_timeout_is_fenced", too_old_is_fenced);
    suite.kafka("an_old_generation_and_a_stranger_commit_nothing", an_old_generation_and_a_stranger_commit_nothing);
    suite.kafka("calls_that_make_no_sense_change_nothing", calls_that_make_no_sense);
    suite.kafka("an_event_that_is_refused_leaves_the_others", a_refused_event_leaves_the_others);
    suite.kafka("a_call_that_is_given_up_can_be_called_again", a_call_is_called_again);
    suite.kafka("many_partitions_are_one_transaction", many_partitions);
    suite.kafka("what_a_transaction_costs", what_a_transaction_costs);
    suite.kafka("a_killed_coordinator_halves_nothing", a_killed_coordinator_halves_nothing);
    suite.kafka("moved_coordinators_are_followed", moved_coordinators_are_followed);
    suite.run()
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    // The driver goes on while a test's own client blocks.
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// A producer whose driver runs.
fn producer_with(
    brokers: &str,
    id: &str,
    timeout: Duration,
    settings: ColumnarSettings,
) -> anyhow::Result<TransactionalProducer> {
    let connection = KafkaConnection {
        brokers: brokers.split(',').map(str::to_owned).collect(),
        tls: None,
        sasl: None,
        client: KafkaClient::Columnar(settings.clone()),
        properties: BTreeMap::new(),
    };
    let spec = TransactionSpec { id: id.to_owned(), timeout };
    let (producer, driver) = TransactionalProducer::new(&connection, &settings, "tests", spec)?;
    tokio::spawn(driver.run());
    Ok(producer)
}

/// A producer that has its id.
async fn producer(brokers: &str, id: &str) -> anyhow::Result<TransactionalProducer> {
    let mut producer = producer_with(brokers, id, TIMEOUT, ColumnarSettings::default())?;
    soon(producer.init()).await??;
    Ok(producer)
}

/// Waits, but not for ever.
async fn soon<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    tokio::time::timeout(LIMIT, future).await.context("no answer in time")
}

/// Events `TAG-0`, `TAG-1`, ..., each with its key.
fn events(tag: &str, count: usize) -> Publication {
    publication((0..count).map(|number| format!("{tag}-{number}").into_bytes()))
}

fn publication(values: impl Iterator<Item = Vec<u8>>) -> Publication {
    let mut builder = BatchBuilder::default();
    for (offset, value) in (0..).zip(values) {
        let key = offset.to_string();
        let origin = Origin { slot: Slot(0), offset };
        builder.append(origin, Some(key.as_bytes()), Some(&value), 1_700_000_000_000, std::iter::empty());
    }
    Publication::unchanged(builder.finish())
}

async fn hand_over(sink: &ColumnarSink, publication: Publication) -> anyhow::Result<Acknowledgement> {
    Ok(soon(sink.publish(publication)).await??)
}

/// Publishes, and waits for the acknowledgement.
async fn publish(sink: &ColumnarSink, publication: Publication) -> anyhow::Result<()> {
    let report = soon(hand_over(sink, publication).await?).await??;
    ensure!(report.refused.is_empty(), "refused: {:?}", report.refused);
    Ok(())
}

fn kind<T: std::fmt::Debug>(result: Result<T, TransactionError>) -> anyhow::Result<TransactionErrorKind> {
    match result {
        Ok(done) => bail!("{done:?}, where an error was due"),
        Err(error) => Ok(error.kind),
    }
}

/// The values that a reader of committed events sees, sorted.
fn committed(client: &Client, topic: &str) -> anyhow::Result<Vec<String>> {
    Ok(values(&client.read(topic)?))
}

/// The values that a reader of all events sees, sorted.
fn uncommitted(client: &Client, topic: &str) -> anyhow::Result<Vec<String>> {
    Ok(values(&all(client).read(topic)?))
}

/// A client to which transactions mean nothing.
fn all(client: &Client) -> Client {
    client.with(["isolation.level=read_uncommitted".to_owned()])
}

fn values(events: &[Received]) -> Vec<String> {
    let text = |event: &Received| String::from_utf8_lossy(event.value.as_deref().unwrap_or_default()).into_owned();
    let mut values: Vec<String> = events.iter().map(text).collect();
    values.sort();
    values
}

fn expected(tags: &[(&str, usize)]) -> Vec<String> {
    let each = |(tag, count): &(&str, usize)| (0..*count).map(|at| format!("{tag}-{at}")).collect::<Vec<_>>();
    let mut values: Vec<String> = tags.iter().flat_map(each).collect();
    values.sort();
    values
}

/// The one member of a group, and the input that it reads, of one partition.
struct Member {
    consumer: BaseConsumer,
    topic: String,
    group: String,
    client: Client,
}

impl Member {
    fn join(brokers: &str, topic: &str) -> anyhow::Result<Self> {
        Self::join_as(brokers, topic, None)
    }

    fn join_as(brokers: &str, topic: &str, instance: Option<&str>) -> anyhow::Result<Self> {
        let client = Client::new(brokers);
        client.create_topic(topic, 1, &[])?;
        client.produce(topic, (0..10).map(|_| Record { value: Some(b"in".to_vec()), ..Record::default() }))?;
        let group = format!("{topic}.group");
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("group.id", &group).set("enable.auto.commit", "false");
        if let Some(instance) = instance {
            config.set("group.instance.id", instance);
        }
        let consumer: BaseConsumer = config.set("auto.offset.reset", "earliest").create()?;
        consumer.subscribe(&[topic])?;
        wait_until(LIMIT, "an assignment", || {
            consumer.poll(Timeout::After(Duration::from_millis(10))).transpose()?;
            Ok((consumer.assignment()?.count() > 0).then_some(()))
        })?;
        Ok(Self { consumer, topic: topic.to_owned(), group, client })
    }

    /// One whose broker was away for longer than its session is on its way back for a moment.
    fn metadata(&self) -> anyhow::Result<GroupMetadata> {
        wait_until(LIMIT, "the membership", || {
            let metadata = GroupMetadata::of(&self.consumer).context("no group")?;
            ensure!(metadata.group == self.group, "{metadata:?}");
            if metadata.generation > 0 && !metadata.member.is_empty() {
                return Ok(Some(metadata));
            }
            drop(self.consumer.poll(Timeout::After(Duration::from_millis(10))));
            Ok(None)
        })
    }

    fn next(&self, offset: i64) -> Vec<(TopicPartition, i64)> {
        vec![(TopicPartition { topic: self.topic.as_str().into(), partition: 0 }, offset)]
    }

    /// Without waiting for an open transaction.
    fn offset(&self) -> anyhow::Result<Option<i64>> {
        Ok(all(&self.client).committed(&self.group, &self.topic)?.get(&0).copied())
    }
}

fn events_and_offsets_are_visible_together(case: &Case) -> anyhow::Result<()> {
    let (brokers, client, topic) = (case.kafka()?.brokers(), case.client()?, case.topic("out"));
    client.create_topic(&topic, 3, &[])?;
    let member = Member::join(&brokers, &case.topic("in"))?;
    runtime()?.block_on(async {
        let mut producer = producer(&brokers, &topic).await?;
        producer.begin()?;
        publish(&producer.sink(&topic), events("one", 100)).await?;
        soon(producer.send_offsets(member.next(5), member.metadata()?)).await??;
        soon(producer.send_offsets(member.next(7), member.metadata()?)).await??;
        ensure!(committed(&client, &topic)?.is_empty(), "visible before the commit");
        ensure!(uncommitted(&client, &topic)? == expected(&[("one", 100)]), "not there before the commit");
        ensure!(member.offset()?.is_none(), "offsets are visible before the commit");
        soon(producer.commit()).await??;
        let read = || -> anyhow::Result<bool> { Ok(committed(&client, &topic)? == expected(&[("one", 100)])) };
        wait_until(LIMIT, "the committed events", || Ok(read()?.then_some(())))?;
        ensure!(values(&Kcat::new(&brokers)?.read(&topic, &[])?) == expected(&[("one", 100)]), "kcat");
        wait_until(LIMIT, "the committed offset", || Ok((member.offset()? == Some(7)).then_some(())))?;
        producer.close(LIMIT).await;
        Ok(())
    })
}

fn aborted_is_never_visible(case: &Case) -> anyhow::Result<()> {
    let (brokers, client) = (case.kafka()?.brokers(), case.client()?);
    let [out, copy, dead] = ["out", "copy", "dead"].map(|name| case.topic(name));
    for topic in [&out, &copy, &dead] {
        client.create_topic(topic, 3, &[])?;
    }
    let member = Member::join(&brokers, &case.topic("in"))?;
    runtime()?.block_on(async {
        let mut producer = producer(&brokers, &out).await?;
        let sink = producer.sink(&out);
        producer.begin()?;
        publish(&sink, events("kept", 30)).await?;
        soon(producer.send_offsets(member.next(3), member.metadata()?)).await??;
        soon(producer.commit()).await??;
        for round in 0..3 {
            producer.begin()?;
            publish(&sink, events(&format!("gone{round}"), 100)).await?;
            soon(producer.send_offsets(member.next(9), member.metadata()?)).await??;
            // Some of it has not been sent yet.
            let unsent = hand_over(&sink, events("gone", 1_000)).await?;
            soon(producer.abort()).await??;
            let _ = soon(unsent).await?;
        }
        producer.begin()?;
        publish(&sink, events("more", 20)).await?;
        soon(producer.commit()).await??;
        producer.close(LIMIT).await;
        anyhow::Ok(())
    })?;
    let whole = expected(&[("kept", 30), ("more", 20)]);
    wait_until(LIMIT, "the committed events", || Ok((committed(&client, &out)? == whole).then_some(())))?;
    let kcat = Kcat::new(&brokers)?;
    ensure!(values(&kcat.read(&out, &["isolation.level=read_committed"])?) == whole, "kcat");
    let everything = values(&kcat.read(&out, &["isolation.level=read_uncommitted"])?);
    ensure!(everything.len() >= whole.len() + 300, "aborted events are not in the log: {}", everything.len());
    ensure!(member.offset()? == Some(3), "{:?}", member.offset()?);
    // What Fluxmill reads by the columnar client.
    let chain = Chain { from: out, to: copy.clone(), dead, ..Chain::default() };
    let file = case.write("fluxmill.yaml", &chain.yaml())?;
    case.run(&file, &brokers, &["--until-caught-up"], &[])?.finish_well(LIMIT)?;
    ensure!(committed(&client, &copy)? == whole, "the columnar source reads something else");
    Ok(())
}

fn the_next_producer_fences(case: &Case) -> anyhow::Result<()> {
    let (brokers, client, topic) = (case.kafka()?.brokers(), case.client()?, case.topic("out"));
    client.create_topic(&topic, 2, &[])?;
    let member = Member::join(&brokers, &case.topic("in"))?;
    runtime()?.block_on(async {
        for (round, sends) in [true, false].into_iter().enumerate() {
            let mut first = producer(&brokers, &topic).await?;
            let sink = first.sink(&topic);
            first.begin()?;
            publish(&sink, events("zombie", 50)).await?;
            soon(first.send_offsets(member.next(4), member.metadata()?)).await??;
            let mut second = producer(&brokers, &topic).await?;
            if sends {
                // The broker of a partition fences an epoch in words of its own; the coordinator has the last one.
                ensure!(publish(&sink, events("late", 50)).await.is_err(), "a zombie published");
                ensure!(kind(soon(first.commit()).await?)? == TransactionErrorKind::Abortable, "the commit");
                ensure!(kind(soon(first.abort()).await?)? == TransactionErrorKind::Fenced, "the abort");
            } else {
                ensure!(kind(soon(first.commit()).await?)? == TransactionErrorKind::Fenced, "the commit");
            }
            ensure!(kind(first.begin())? == TransactionErrorKind::Fenced, "another transaction");
            ensure!(sink.publish(events("late", 1)).await.is_err(), "another event");
            first.close(LIMIT).await;
            second.begin()?;
            publish(&second.sink(&topic), events(&format!("next{round}"), 50)).await?;
            soon(second.commit()).await??;
            second.close(LIMIT).await;
        }
        anyhow::Ok(())
    })?;
    let whole = expected(&[("next0", 50), ("next1", 50)]);
    wait_until(LIMIT, "the second producer's events", || Ok((committed(&client, &topic)? == whole).then_some(())))?;
    ensure!(member.offset()?.is_none(), "a zombie's offsets");
    Ok(())
}

fn too_old_is_fenced(case: &Case) -> anyhow::Result<()> {
    let settings = vec!["transaction.abort.timed.out.transaction.cleanup.interval.ms=100"];
    let kafka = Kafka::start(Options { settings, ..Options::default() })?;
    let (brokers, client, topic) = (kafka.brokers(), Client::new(&kafka.brokers()), case.topic("out"));
    client.create_topic(&topic, 1, &[])?;
    let markers = |written: i64| {
        wait_until(LIMIT, "the broker to abort", || {
            Ok(all(&client).watermarks(&topic)?.get(&0).is_some_and(|(_, high)| *high == written).then_some(()))
        })
    };
    runtime()?.block_on(async {
        let short = Duration::from_millis(500);
        let mut first = producer_with(&brokers, &topic, short, ColumnarSettings::default())?;
        soon(first.init()).await??;
        first.begin()?;
        publish(&first.sink(&topic), events("old", 10)).await?;
        markers(11)?;
        ensure!(kind(soon(first.commit()).await?)? == TransactionErrorKind::Fenced, "the commit");
        let mut second = producer_with(&brokers, &topic, short, ColumnarSettings::default())?;
        soon(second.init()).await??;
        second.begin()?;
        publish(&second.sink(&topic), events("old", 10)).await?;
        markers(22)?;
        ensure!(publish(&second.sink(&topic), events("late", 10)).await.is_err(), "a late event");
        ensure!(kind(soon(second.abort()).await?)? == TransactionErrorKind::Fenced, "the abort");
        let mut third = producer(&brokers, &topic).await?;
        third.begin()?;
        publish(&third.sink(&topic), events("new", 10)).await?;
        soon(third.commit()).await??;
        anyhow::Ok(())
    })?;
    wait_until(LIMIT, "the new events", || Ok((committed(&client, &topic)? == expected(&[("new", 10)])).then_some(())))
}

fn an_old_generation_and_a_stranger_commit_nothing(case: &Case) -> anyhow::Result<()> {
    let (brokers, client, topic) = (case.kafka()?.brokers(), case.client()?, case.topic("out"));
    client.create_topic(&topic, 2, &[])?;
    let member = Member::join_as(&brokers, &case.topic("in"), Some("one"))?;
    runtime()?.block_on(async {
        let mut producer = producer(&brokers, &topic).await?;
        let fresh = member.metadata()?;
        ensure!(fresh.instance.as_deref() == Some("one"), "{fresh:?}");
        let zombies = [
            // Another member has its name.
            GroupMetadata { member: "nobody".into(), ..fresh.clone() },
            GroupMetadata { member: "nobody".into(), instance: None, ..fresh.clone() },
        ];
        for zombie in zombies {
            producer.begin()?;
            publish(&producer.sink(&topic), events("zombie", 10)).await?;
            let error = soon(producer.send_offsets(member.next(5), zombie)).await?;
            ensure!(kind(error)? == TransactionErrorKind::Abortable, "somebody else");
            ensure!(kind(soon(producer.commit()).await?)? == TransactionErrorKind::Abortable, "its commit");
            ensure!(producer.sink(&topic).publish(events("zombie", 1)).await.is_err(), "another event");
            soon(producer.abort()).await??;
        }
        producer.begin()?;
        publish(&producer.sink(&topic), events("good", 10)).await?;
        let old = GroupMetadata { generation: fresh.generation - 1, ..fresh.clone() };
        let error = soon(producer.send_offsets(member.next(7), old)).await?;
        ensure!(kind(error)? == TransactionErrorKind::Generation, "an old generation");
        ensure!(kind(soon(producer.commit()).await?)? == TransactionErrorKind::Order, "a commit without the offsets");
        soon(producer.send_offsets(member.next(6), fresh)).await??;
        soon(producer.commit()).await??;
        producer.close(LIMIT).await;
        anyhow::Ok(())
    })?;
    let good = expected(&[("good", 10)]);
    wait_until(LIMIT, "the good events", || Ok((committed(&client, &topic)? == good).then_some(())))?;
    wait_until(LIMIT, "the offset", || Ok((member.offset()? == Some(6)).then_some(())))
}

fn calls_that_make_no_sense(case: &Case) -> anyhow::Result<()> {
    let (brokers, client, topic) = (case.kafka()?.brokers(), case.client()?, case.topic("out"));
    client.create_topic(&topic, 1, &[])?;
    runtime()?.block_on(async {
        let mut producer = producer_with(&brokers, &topic, TIMEOUT, ColumnarSettings::default())?;
        let sink = producer.sink(&topic);
        ensure!(kind(producer.begin())? == TransactionErrorKind::Order, "begin before init");
        ensure!(kind(soon(producer.commit()).await?)? == TransactionErrorKind::Order, "commit before init");
        soon(producer.init()).await??;
        ensure!(kind(soon(producer.init()).await?)? == TransactionErrorKind::Order, "init twice");
        ensure!(kind(soon(producer.commit()).await?)? == TransactionErrorKind::Order, "commit of nothing");
        ensure!(kind(soon(producer.abort()).await?)? == TransactionErrorKind::Order, "abort of nothing");
        let metadata = GroupMetadata { group: topic.clone(), generation: -1, member: String::new(), instance: None };
        let sent = soon(producer.send_offsets(Vec::new(), metadata)).await?;
        ensure!(kind(sent)? == TransactionErrorKind::Order, "offsets for nothing");
        ensure!(soon(sink.publish(events("none", 1))).await?.is_err(), "an event for nothing");
        producer.begin()?;
        ensure!(kind(producer.begin())? == TransactionErrorKind::Order, "begin twice");
        // Nobody has joined: neither asks the broker.
        soon(producer.commit()).await??;
        producer.begin()?;
        soon(producer.abort()).await??;
        producer.begin()?;
        publish(&sink, events("good", 1)).await?;
        soon(producer.commit()).await??;
        producer.close(LIMIT).await;
        anyhow::Ok(())
    })?;
    wait_until(LIMIT, "the event", || Ok((committed(&client, &topic)? == expected(&[("good", 1)])).then_some(())))
}

fn a_refused_event_leaves_the_others(case: &Case) -> anyhow::Result<()> {
    let (brokers, client, topic) = (case.kafka()?.brokers(), case.client()?, case.topic("out"));
    client.create_topic(&topic, 1, &[("max.message.bytes", "20000")])?;
    let size = |at: usize| if at % 100 == 50 { 30_000 } else { 1_000 };
    let value = |at: usize| format!("{at:0width$}", width = size(at)).into_bytes();
    runtime()?.block_on(async {
        let settings = ColumnarSettings { batch_bytes: 5_000, ..ColumnarSettings::default() };
        let mut producer = producer_with(&brokers, &topic, TIMEOUT, settings)?;
        soon(producer.init()).await??;
        for _ in 0..3 {
            producer.begin()?;
            let handed = hand_over(&producer.sink(&topic), publication((0..600).map(value))).await?;
            let refused = soon(handed).await??.refused;
            let rows: Vec<_> = refused.iter().map(|(row, error)| (*row, error.kind)).collect();
            let large = (0..6).map(|at| (at * 100 + 50, BrokerErrorKind::TooLarge)).collect::<Vec<_>>();
            ensure!(rows == large, "{rows:?}");
            soon(producer.commit()).await??;
        }
        producer.close(LIMIT).await;
        anyhow::Ok(())
    })?;
    let order = |events: &[Received]| -> Vec<usize> {
        let text = |event: &Received| String::from_utf8_lossy(event.value.as_deref().unwrap_or_default()).parse();
        events.iter().map(|event| text(event).unwrap_or(usize::MAX)).collect()
    };
    let once: Vec<usize> = (0..600).filter(|at| at % 100 != 50).collect();
    let whole = [&once[..], &once[..], &once[..]].concat();
    wait_until(LIMIT, "the other events in order", || Ok((order(&client.read(&topic)?) == whole).then_some(())))
}

fn a_call_is_called_again(case: &Case) -> anyhow::Result<()> {
    let (brokers, client, topic) = (case.kafka()?.brokers(), case.client()?, case.topic("out"));
    client.create_topic(&topic, 2, &[])?;
    // Asked once on the driver's own thread, so that nothing is answered before a call has been given up. A timeout of
    // zero would not do: it ends with the timer's next millisecond, and an end takes half of one.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut producer = producer_with(&brokers, &topic, TIMEOUT, ColumnarSettings::default())?;
        ensure!(producer.init().now_or_never().is_none(), "init without a wait");
        soon(producer.init()).await??;
        producer.begin()?;
        let _unheard = hand_over(&producer.sink(&topic), events("one", 100)).await?;
        ensure!(producer.commit().now_or_never().is_none(), "commit without a wait");
        ensure!(kind(soon(producer.abort()).await?)? == TransactionErrorKind::Order, "abort of a commit");
        soon(producer.commit()).await??;
        producer.begin()?;
        publish(&producer.sink(&topic), events("two", 100)).await?;
        ensure!(producer.abort().now_or_never().is_none(), "abort without a wait");
        soon(producer.abort()).await??;
        producer.begin()?;
        producer.close(LIMIT).await;
        anyhow::Ok(())
    })?;
    wait_until(LIMIT, "the events", || Ok((committed(&client, &topic)? == expected(&[("one", 100)])).then_some(())))
}

fn many_partitions(case: &Case) -> anyhow::Result<()> {
    const PARTITIONS: i32 = 200;
    let (brokers, client) = (case.kafka()?.brokers(), case.client()?);
    let [one, two] = ["one", "two"].map(|name| case.topic(name));
    for topic in [&one, &two] {
        client.create_topic(topic, PARTITIONS, &[])?;
    }
    runtime()?.block_on(async {
        let mut producer = producer(&brokers, &one).await?;
        for tag in ["a", "b", "gone"] {
            let start = Instant::now();
            producer.begin()?;
            for topic in [&one, &two] {
                publish(&producer.sink(topic), events(tag, 5_000)).await?;
            }
            let published = start.elapsed();
            if tag == "gone" {
                soon(producer.abort()).await??;
            } else {
                soon(producer.commit()).await??;
            }
            let ended = start.elapsed() - published;
            case.note(&format!("{tag}: 2 x {PARTITIONS} partitions: published in {published:?}, ended in {ended:?}"));
        }
        producer.close(LIMIT).await;
        anyhow::Ok(())
    })?;
    let whole = expected(&[("a", 5_000), ("b", 5_000)]);
    for topic in [&one, &two] {
        wait_until(LIMIT, "all events", || Ok((committed(&client, topic)? == whole).then_some(())))?;
    }
    Ok(())
}

/// Milliseconds for each of `count` transactions.
fn per_transaction(start: Instant, count: usize) -> f64 {
    start.elapsed().as_secs_f64() * 1_000.0 / count as f64
}

fn what_a_transaction_costs(case: &Case) -> anyhow::Result<()> {
    const COUNT: usize = 1_000;
    let (brokers, client, topic) = (case.kafka()?.brokers(), case.client()?, case.topic("out"));
    client.create_topic(&topic, 1, &[])?;
    let member = Member::join(&brokers, &case.topic("in"))?;
    runtime()?.block_on(async {
        let mut producer = producer(&brokers, &topic).await?;
        let sink = producer.sink(&topic);
        for offsets in [false, true] {
            let mut commits = Vec::new();
            let start = Instant::now();
            for number in 0..COUNT {
                producer.begin()?;
                let handed = hand_over(&sink, events("small", 10)).await?;
                if offsets {
                    soon(producer.send_offsets(member.next(number as i64), member.metadata()?)).await??;
                }
                soon(handed).await??;
                let commit = Instant::now();
                soon(producer.commit()).await??;
                commits.push(commit.elapsed());
            }
            let each = per_transaction(start, COUNT);
            commits.sort();
            let [half, most] = [COUNT / 2, COUNT * 99 / 100].map(|at| commits[at].as_secs_f64() * 1_000.0);
            let what = if offsets { "with offsets" } else { "without offsets" };
            case.note(&format!(
                "{COUNT} transactions of 10 events {what}: {each:.2} ms each; the commit {half:.2} ms at p50, \
                 {most:.2} ms at p99"
            ));
        }
        producer.close(LIMIT).await;
        anyhow::Ok(())
    })?;
    with_librdkafka(case, &brokers, &topic, &member)?;
    ensure!(member.offset()?.is_some(), "no offset");
    Ok(())
}

/// The same by librdkafka, with the waits that its documents advise.
fn with_librdkafka(case: &Case, brokers: &str, topic: &str, member: &Member) -> anyhow::Result<()> {
    const COUNT: usize = 100;
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("transactional.id", format!("{topic}.librdkafka"));
    let producer: BaseProducer = config.set("linger.ms", "0").set("retry.backoff.ms", "10").create()?;
    producer.init_transactions(LIMIT)?;
    let start = Instant::now();
    for _ in 0..COUNT {
        producer.begin_transaction()?;
        for _ in 0..10 {
            let record: BaseRecord<'_, str, str> = BaseRecord::to(topic).payload("small").key("key");
            producer.send(record).map_err(|(error, _)| error)?;
        }
        let mut offsets = rdkafka::TopicPartitionList::new();
        offsets.add_partition_offset(&member.topic, 0, rdkafka::Offset::Offset(1))?;
        let metadata = member.consumer.group_metadata().context("no group")?;
        producer.send_offsets_to_transaction(&offsets, &metadata, LIMIT)?;
        producer.commit_transaction(LIMIT)?;
    }
    let each = per_transaction(start, COUNT);
    case.note(&format!("{COUNT} transactions of 10 events with offsets by librdkafka: {each:.2} ms each"));
    Ok(())
}

/// Ends the transaction, as a task that goes on while brokers come and go.
async fn end(
    mut producer: TransactionalProducer,
    commits: bool,
) -> (TransactionalProducer, Result<(), TransactionError>) {
    let ended = if commits { producer.commit().await } else { producer.abort().await };
    (producer, ended)
}

/// Waits until these events, and no others, are what a reader of committed ones sees.
fn ensure_visible(client: &Client, topic: &str, visible: &[(String, usize)]) -> anyhow::Result<()> {
    let tags: Vec<(&str, usize)> = visible.iter().map(|(tag, count)| (tag.as_str(), *count)).collect();
    let whole = expected(&tags);
    wait_until(LIMIT, "what was committed and nothing else", || Ok((committed(client, topic)? == whole).then_some(())))
}

/// When the broker is killed.
#[derive(Clone, Copy, Debug)]
enum Kill {
    /// Before the transaction is ended.
    Before,
    /// While it is being ended.
    During,
    /// While its partitions are joining.
    Joining,
    /// While it has some of its events, and others are on their way.
    Publishing,
}

fn a_killed_coordinator_halves_nothing(case: &Case) -> anyhow::Result<()> {
    let mut kafka = case.own_kafka()?;
    let (brokers, client, topic) = (kafka.brokers(), Client::new(&kafka.brokers()), case.topic("out"));
    client.create_topic(&topic, 4, &[])?;
    let member = Member::join(&brokers, &case.topic("in"))?;
    let mut visible: Vec<(String, usize)> = Vec::new();
    let mut offset = None;
    runtime()?.block_on(async {
        let mut producer = producer(&brokers, &topic).await?;
        let rounds = [Kill::Before, Kill::During, Kill::Joining, Kill::Publishing]
            .into_iter()
            .flat_map(|kill| [(kill, true), (kill, false)]);
        for (round, (kill, commits)) in rounds.enumerate() {
            let tag = format!("round{round}");
            producer.begin()?;
            let (sink, mut count) = (producer.sink(&topic), 2_000);
            let handed = hand_over(&sink, events(&tag, count)).await?;
            if !matches!(kill, Kill::Joining) {
                soon(handed).await??;
                soon(producer.send_offsets(member.next(round as i64), member.metadata()?)).await??;
            }
            if matches!(kill, Kill::Publishing) {
                kafka.signal(Signal::Stop)?;
                let mut unheard = hand_over(&sink, events(&format!("{tag}-more"), 1_000)).await?;
                let heard = tokio::time::timeout(Duration::from_millis(100), &mut unheard).await;
                ensure!(heard.is_err(), "a broker that is held has answered");
                count += 1_000;
            }
            if !matches!(kill, Kill::During) {
                kafka.kill()?;
            }
            let end = tokio::spawn(end(producer, commits));
            if matches!(kill, Kill::During) {
                kafka.kill()?;
            }
            kafka.restart()?;
            let (returned, ended) = soon(end).await??;
            producer = returned;
            let committed_it = match ended {
                Ok(()) => commits,
                Err(error) if error.kind == TransactionErrorKind::Abortable => {
                    soon(producer.abort()).await??;
                    false
                }
                Err(error) => bail!("{kill:?}: {error}"),
            };
            case.note(&format!(
                "{kill:?}, then {}: committed {committed_it}",
                if commits { "commit" } else { "abort" }
            ));
            if committed_it {
                visible.push((tag.clone(), 2_000));
                visible.push((format!("{tag}-more"), count - 2_000));
                if !matches!(kill, Kill::Joining) {
                    offset = Some(round as i64);
                }
            }
        }
        // Under the next epoch, for what was on its way when the last one was aborted may still arrive.
        producer.begin()?;
        publish(&producer.sink(&topic), events("last", 100)).await?;
        soon(producer.commit()).await??;
        visible.push(("last".to_owned(), 100));
        producer.close(LIMIT).await;
        anyhow::Ok(())
    })?;
    ensure_visible(&client, &topic, &visible)?;
    wait_until(LIMIT, "the last committed offset", || Ok((member.offset()? == offset).then_some(())))
}

/// The topics in which coordinators keep what they know: whoever leads a partition of them is the coordinator.
const COORDINATORS: [&str; 2] = ["__transaction_state", "__consumer_offsets"];

fn moved_coordinators_are_followed(case: &Case) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Version::default())?;
    let (brokers, client, topic) = (cluster.brokers(), cluster.client(), case.topic("out"));
    client.create_topic(&topic, 4, &[])?;
    let member = Member::join(&brokers, &case.topic("in"))?;
    let mut visible: Vec<(String, usize)> = Vec::new();
    let mut offset = None;
    let rounds = 12;
    runtime()?.block_on(async {
        let mut producer = producer(&brokers, &topic).await?;
        for round in 0..rounds {
            let (tag, commits, to) = (format!("round{round}"), round % 3 != 2, 1 + round % 3);
            producer.begin()?;
            publish(&producer.sink(&topic), events(&tag, 500)).await?;
            let move_all = |topics: &[&str]| -> anyhow::Result<()> {
                topics.iter().try_for_each(|topic| cluster.move_leaders(topic, &[0, 1, 2, 3], to))
            };
            move_all(&COORDINATORS[..1])?;
            soon(producer.send_offsets(member.next(round.into()), member.metadata()?)).await??;
            move_all(&COORDINATORS[1..])?;
            publish(&producer.sink(&topic), events(&format!("{tag}-more"), 100)).await?;
            move_all(&[&topic])?;
            let end = tokio::spawn(end(producer, commits));
            if round == rounds - 1 || round == rounds - 2 {
                // Whoever leads everything now.
                cluster.kill(to)?;
            }
            let (returned, ended) = soon(end).await?.context("the end")?;
            producer = returned;
            ended.with_context(|| format!("round {round}"))?;
            if commits {
                visible.extend([(tag.clone(), 500), (format!("{tag}-more"), 100)]);
                offset = Some(i64::from(round));
            }
            if round >= rounds - 2 {
                cluster.restart(to)?;
            }
        }
        producer.close(LIMIT).await;
        anyhow::Ok(())
    })?;
    ensure_visible(&client, &topic, &visible)?;
    wait_until(LIMIT, "the last committed offset", || Ok((member.offset()? == offset).then_some(())))
}
