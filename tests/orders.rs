//! The example pipelines/orders on a real Kafka, end to end through the binary: 200,000 orders, each in exactly one
//! final topic, through restarts and kills. And the same file with another connection on a real nats-server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::HeaderMap;
use support::chain::{repository, with_setting};
use support::checker::{Report, Seen, compare};
use support::client::{Client, Received, Record};
use support::nats::{Nats, Stored};
use support::suite::{Case, Suite};
use support::wait::wait_until;
use support::workload::{Kind, customer, kind, order, order_number};

mod support;

/// How many orders go through.
const ORDERS: u64 = 200_000;
/// How many go through on NATS, whose server in these tests has each message on disk before it acknowledges it.
const ORDERS_ON_NATS: u64 = 40_000;
/// How often a chain with transactions is killed.
const KILLS: i64 = 6;
/// The longest that a part of a test may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(180);
/// Part of the WARN lines about the broken orders.
const EXPECTED: [&str; 1] = ["kind=\"reject\" reason=\"not the expected JSON"];
/// The topics in which an order's way through the example ends.
const ENDS: [&str; 4] = ["notifications", "payment-reviews", "orders.payment.dead", "orders.notification.dead"];

fn main() -> ExitCode {
    let mut suite = Suite::default();
    suite.kafka("each_order_ends_once_through_a_graceful_restart", each_order_ends_once_through_a_graceful_restart);
    suite.kafka("kill_9_loses_no_order", kill_9_loses_no_order);
    suite.kafka("kill_9_ends_every_order_once_where_it_says_so", kill_9_ends_every_order_once_where_it_says_so);
    suite.nats("the_same_file_runs_on_nats", the_same_file_runs_on_nats);
    suite.run()
}

fn produce_orders(client: &Client) -> anyhow::Result<()> {
    client.create_topic("orders", 4, &[])?;
    client.produce("orders", (0..ORDERS).map(order))
}

/// The pipeline file as it is in the repository, stopped by SIGTERM in the middle and started again.
fn each_order_ends_once_through_a_graceful_restart(case: &Case) -> anyhow::Result<()> {
    let kafka = case.own_kafka()?;
    let client = Client::new(&kafka.brokers());
    produce_orders(&client)?;
    let file = example(case, None)?;
    let total = i64::try_from(ORDERS)?;

    let first = case.run(&file, &kafka.brokers(), &[], &EXPECTED)?;
    client.wait_for_events(LIMIT, &ENDS, total / 10)?;
    first.stop(LIMIT)?;
    let between = client.count(&ENDS)?;
    ensure!(between < total, "all was done before the restart: the test proves nothing");
    case.note(&format!("{between} of {total} orders had ended at the restart"));

    let second = case.run(&file, &kafka.brokers(), &[], &EXPECTED)?;
    client.wait_for_events(LIMIT, &ENDS, total)?;
    second.stop(LIMIT)?;
    // Nothing is left, and a run over nothing ends by itself.
    case.run(&file, &kafka.brokers(), &["--until-caught-up"], &[])?.finish_well(LIMIT)?;

    let ends = read_ends(&client)?;
    check(&ends, ORDERS).exactly_once().map_err(anyhow::Error::msg)?;
    check_places(&ends)?;
    check_dead_letters(&ends["orders.payment.dead"])?;
    check_forwarded(&ends["payment-reviews"])
}

/// The same with kill -9 three times. At least once: orders may end twice, in order all the same.
fn kill_9_loses_no_order(case: &Case) -> anyhow::Result<()> {
    let kafka = case.own_kafka()?;
    let client = Client::new(&kafka.brokers());
    produce_orders(&client)?;
    // A process that was killed is missed sooner than after 45 seconds.
    let file = example(case, Some("properties: { session.timeout.ms: \"6000\" }"))?;
    let total = i64::try_from(ORDERS)?;

    for round in 1..=3 {
        let killed = case.run(&file, &kafka.brokers(), &[], &EXPECTED)?;
        let ended = client.wait_for_events(LIMIT, &ENDS, total * round / 5)?;
        killed.kill()?;
        ensure!(ended < total, "all was done before kill {round}: the test proves nothing");
    }
    let last = case.run(&file, &kafka.brokers(), &[], &EXPECTED)?;
    wait_for_all_orders(&client)?;
    last.stop(LIMIT)?;

    let ends = read_ends(&client)?;
    let report = check(&ends, ORDERS);
    case.note(&format!("kill -9 three times: {}", report.describe()));
    report.at_least_once().map_err(anyhow::Error::msg)?;
    check_places(&ends)
}

/// `delivery: exactly_once` in both pipelines, killed in the middle again and again: each order has one end, for those
/// who read committed events. The last run ends by itself when the whole chain has caught up.
fn kill_9_ends_every_order_once_where_it_says_so(case: &Case) -> anyhow::Result<()> {
    let kafka = case.own_kafka()?;
    let client = Client::new(&kafka.brokers());
    produce_orders(&client)?;
    let file = in_transactions(case)?;
    let expected = [EXPECTED[0], "look up where to begin"];
    let begun = || -> anyhow::Result<i64> { Ok(client.committed("orders.payment", "orders")?.values().sum()) };

    for round in 1..=KILLS {
        let killed = case.run(&file, &kafka.brokers(), &[], &expected)?;
        let wanted = i64::try_from(ORDERS)? * round / (KILLS + 2);
        wait_until(LIMIT, "orders to be processed", || Ok((begun()? >= wanted).then_some(())))?;
        killed.kill()?;
    }
    ensure!(begun()? < i64::try_from(ORDERS)?, "all was done before the last kill: the test proves nothing");
    case.run(&file, &kafka.brokers(), &["--until-caught-up"], &expected)?.finish_well(LIMIT)?;

    let ends = read_ends(&client)?;
    let report = check(&ends, ORDERS);
    case.note(&format!("kill -9 {KILLS} times: {}", report.describe()));
    report.exactly_once().map_err(anyhow::Error::msg)?;
    check_places(&ends)?;
    check_dead_letters(&ends["orders.payment.dead"])
}

/// The example with nothing changed but what its connection is: stopped by SIGTERM in the middle, and killed twice. What
/// the streams keep is there once, since the windows of the server cover it.
fn the_same_file_runs_on_nats(case: &Case) -> anyhow::Result<()> {
    let nats = Nats::start("")?;
    let jet = nats.client()?;
    let file = on_nats(case)?;
    jet.create("orders", &["orders"])?;
    jet.publish((0..ORDERS_ON_NATS).map(|number| as_message(&order(number))))?;
    let (file, url, cache) = (file.display().to_string(), nats.url(), case.dir().display().to_string());
    let run = |more: &[&str], expected: &[&str]| {
        let args = ["run", &file].into_iter().chain(more.iter().copied());
        case.start_with(args, &[("NATS", &url), ("XDG_CACHE_HOME", &cache)], expected)
    };
    let ended = || -> anyhow::Result<u64> { ENDS.into_iter().map(|topic| jet.count(&topic.replace('.', "-"))).sum() };
    for round in 1..=3 {
        let running = run(&[], &EXPECTED)?;
        let wanted = ORDERS_ON_NATS * round / 5;
        wait_until(LIMIT, "orders to end", || Ok((ended()? >= wanted).then_some(())))?;
        if round == 1 { running.stop(LIMIT).map(drop)? } else { running.kill().map(drop)? }
    }
    ensure!(ended()? < ORDERS_ON_NATS, "all was done before the last kill: the test proves nothing");
    run(&["--until-caught-up"], &EXPECTED)?.finish_well(LIMIT)?;

    let mut ends = BTreeMap::new();
    for topic in ENDS {
        let stored = jet.read(&topic.replace('.', "-"))?;
        ends.insert(topic, stored.iter().map(as_received).collect::<anyhow::Result<Vec<_>>>()?);
    }
    let report = check(&ends, ORDERS_ON_NATS);
    case.note(&format!("on NATS, stopped once and killed twice: {}", report.describe()));
    report.exactly_once().map_err(anyhow::Error::msg)?;
    check_places(&ends)?;
    check_dead_letters(&ends["orders.payment.dead"])?;
    check_forwarded(&ends["payment-reviews"])
}

/// The file of the example with a connection to NATS.
fn on_nats(case: &Case) -> anyhow::Result<PathBuf> {
    let text = std::fs::read_to_string(repository("pipelines/orders/chain.yaml"))?;
    let kafka = text.lines().find(|line| line.contains("main: { kafka:")).context("no connection to Kafka")?;
    let changed = text.replace(kafka, "  main: { nats: { servers: [\"${NATS}\"] } }");
    let functions = repository("pipelines/orders/functions");
    case.write("chain.yaml", &changed.replace("wasm: functions/", &format!("wasm: {}/", functions.display())))
}

/// An order as whoever writes to NATS sends it: docs/nats.md.
fn as_message(record: &Record) -> (String, HeaderMap, Vec<u8>) {
    let mut headers = HeaderMap::new();
    let text = |bytes: &Option<Vec<u8>>| String::from_utf8_lossy(bytes.as_deref().unwrap_or_default()).into_owned();
    headers.insert("Fluxmill-Key", text(&record.key).as_str());
    headers.insert("Fluxmill-Timestamp", record.timestamp.unwrap_or_default().to_string().as_str());
    record.headers.iter().for_each(|(name, value)| headers.append(name.as_str(), text(value).as_str()));
    ("orders".to_owned(), headers, record.value.clone().unwrap_or_default())
}

/// What a stream holds as an event, whose headers are of names that come in order.
fn as_received(stored: &Stored) -> anyhow::Result<Received> {
    let names = stored.header("Fluxmill-Headers").unwrap_or_default().split(',').filter(|name| !name.is_empty());
    let mut used: BTreeMap<&str, usize> = BTreeMap::new();
    let mut headers = Vec::new();
    for name in names {
        let nth = used.entry(name).or_default();
        let value =
            stored.headers.get_all(name).nth(*nth).with_context(|| format!("no header {name} in {stored:?}"))?;
        *nth += 1;
        headers.push((name.as_bytes().to_vec(), Some(value.as_str().as_bytes().to_vec())));
    }
    let timestamp = stored.header("Fluxmill-Timestamp").and_then(|time| time.parse().ok());
    let (key, value) = (stored.header("Fluxmill-Key").map(|key| key.as_bytes().to_vec()), Some(stored.payload.clone()));
    Ok(Received { partition: 0, offset: 0, key, value, headers, timestamp })
}

/// The example, each pipeline with transactions and as a static member: it takes over at once from one that was killed.
fn in_transactions(case: &Case) -> anyhow::Result<PathBuf> {
    let text = std::fs::read_to_string(repository("pipelines/orders/chain.yaml"))?;
    let mut changed = with_setting(&text, "properties: { session.timeout.ms: \"6000\" }")?;
    for topic in ["orders", "payments"] {
        let from = format!("    from: {{ topics: [{topic}] }}\n");
        ensure!(changed.contains(&from), "the example does not read {topic} any more");
        let member = format!("    from: {{ kafka: {{ topics: [{topic}], instance: one }} }}\n");
        changed = changed.replace(&from, &format!("{member}    delivery: exactly_once\n"));
    }
    let functions = repository("pipelines/orders/functions");
    let changed = changed.replace("wasm: functions/", &format!("wasm: {}/", functions.display()));
    case.write("chain.yaml", &format!("name: orders\n{}", without_name(&changed)))
}

/// The pipeline file of the example; a copy where a setting of its connection is added, or the client is chosen.
fn example(case: &Case, setting: Option<&str>) -> anyhow::Result<PathBuf> {
    let file = repository("pipelines/orders/chain.yaml");
    let text = std::fs::read_to_string(&file)?;
    let mut changed = case.kafka_client().put_into(&text)?;
    if let Some(setting) = setting {
        changed = with_setting(&changed, setting)?;
    }
    if changed == text {
        return Ok(file);
    }
    let functions = repository("pipelines/orders/functions");
    let changed = changed.replace("wasm: functions/", &format!("wasm: {}/", functions.display()));
    case.write("chain.yaml", &format!("name: orders\n{}", without_name(&changed)))
}

/// The file without its own `name:`, which the test sets: the default would be the name of the test's folder.
fn without_name(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with("name:")).fold(String::new(), |text, line| text + line + "\n")
}

/// Waits until the groups of both pipelines have confirmed everything.
fn wait_for_all_orders(client: &Client) -> anyhow::Result<()> {
    for (group, topic) in [("orders.payment", "orders"), ("orders.notification", "payments")] {
        wait_until(LIMIT, &format!("group {group} to have done {topic}"), || {
            let ends = client.watermarks(topic)?;
            let committed = client.committed(group, topic)?;
            let done = ends.iter().all(|(partition, (_, high))| *high == 0 || committed.get(partition) == Some(high));
            Ok(done.then_some(()))
        })?;
    }
    Ok(())
}

fn read_ends(client: &Client) -> anyhow::Result<BTreeMap<&'static str, Vec<Received>>> {
    ENDS.into_iter().map(|topic| Ok((topic, client.read(topic)?))).collect()
}

/// The orders against all events of all final topics; order within each partition of each.
fn check(ends: &BTreeMap<&str, Vec<Received>>, orders: u64) -> Report<Option<u64>> {
    let input: Vec<_> = (0..orders).map(|number| Seen { key: customer(number), id: Some(number) }).collect();
    let output: Vec<_> = ends
        .values()
        .flat_map(|events| events.chunk_by(|a, b| a.partition == b.partition))
        .map(|events| events.iter().map(seen).collect())
        .collect();
    compare(&input, &output)
}

fn seen(event: &Received) -> Seen<String, Option<u64>> {
    let key = String::from_utf8_lossy(event.key.as_deref().unwrap_or_default()).into_owned();
    Seen { key, id: order_number(event) }
}

/// Every order ended where its kind belongs.
fn check_places(ends: &BTreeMap<&str, Vec<Received>>) -> anyhow::Result<()> {
    for (topic, events) in ends {
        for event in events {
            let number = order_number(event).with_context(|| format!("{topic}: no order in {event:?}"))?;
            let place = match kind(number) {
                Kind::Small => "notifications",
                Kind::Large => "payment-reviews",
                Kind::Broken => "orders.payment.dead",
            };
            ensure!(place == *topic, "order {number} ended in {topic} instead of {place}: {event:?}");
        }
    }
    Ok(())
}

/// A dead letter is the order as it was, with its reason behind its own headers.
fn check_dead_letters(events: &[Received]) -> anyhow::Result<()> {
    for event in events {
        let record = order(order_number(event).context("no order")?);
        ensure_untouched(&record, event)?;
        for (name, value) in [
            ("fluxmill-pipeline", "payment"),
            ("fluxmill-source-topic", "orders"),
            ("fluxmill-error-kind", "reject"),
            ("fluxmill-attempts", "1"),
        ] {
            ensure!(event.header(name)? == value, "{name} is not `{value}` in {event:?}");
        }
        ensure!(!event.header("fluxmill-reason")?.is_empty(), "a dead letter without a reason");
    }
    Ok(())
}

/// An order that goes to review is forwarded byte for byte, at its own time.
fn check_forwarded(events: &[Received]) -> anyhow::Result<()> {
    for event in events {
        let record = order(order_number(event).context("no order")?);
        ensure_untouched(&record, event)?;
        ensure!(event.timestamp == record.timestamp, "the timestamp of {event:?} was {:?}", record.timestamp);
        ensure!(event.headers.len() == record.headers.len(), "headers were added to {event:?}");
    }
    Ok(())
}

/// Key, value and the first headers are those of the record.
fn ensure_untouched(record: &Record, event: &Received) -> anyhow::Result<()> {
    ensure!(event.key == record.key && event.value == record.value, "{event:?} was {record:?}");
    for (at, (name, value)) in record.headers.iter().enumerate() {
        let kept = event.headers.get(at).is_some_and(|(found, bytes)| found == name.as_bytes() && bytes == value);
        ensure!(kept, "header {at} of {event:?} was {name}: {value:?}");
    }
    Ok(())
}
