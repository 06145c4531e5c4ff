//! NATS through the binary, against a real nats-server: streams in and out, Kafka on one side, restarts, kills of either,
//! refusals, back-pressure.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::stream::{Config, DiscardPolicy};
use support::chain::{guest, repository};
use support::checker::{Seen, compare};
use support::client::Client;
use support::nats::setup::{Chain, LIMIT, Setup, exactly_once, message};
use support::nats::{Message, Nats, Stored};
use support::process::{Fluxmill, Signal};
use support::suite::{Case, Suite};
use support::wait::wait_until;
use support::workload::{contents, odd};

mod support;

fn main() -> ExitCode {
    let mut suite = Suite::default();
    suite.nats("a_stream_goes_through_a_function_to_another", a_stream_goes_through_a_function_to_another);
    suite.nats("keys_keep_their_order_over_lanes", keys_keep_their_order_over_lanes);
    suite.nats("a_work_queue_is_emptied", a_work_queue_is_emptied);
    suite.nats("parts_of_a_stream_are_read", parts_of_a_stream_are_read);
    suite.nats_and_kafka("kafka_over_nats_to_kafka_keeps_every_byte", kafka_over_nats_to_kafka_keeps_every_byte);
    suite.nats_and_kafka("readings_by_subject_become_alerts_in_kafka", readings_by_subject_become_alerts_in_kafka);
    suite.nats("restarts_lose_and_double_nothing", restarts_lose_and_double_nothing);
    suite.nats("kill_9_loses_and_doubles_nothing", kill_9_loses_and_doubles_nothing);
    suite.nats("a_killed_server_loses_and_doubles_nothing", a_killed_server_loses_and_doubles_nothing);
    suite.nats("a_slow_function_past_the_ack_wait_runs_once", a_slow_function_past_the_ack_wait_runs_once);
    suite.nats("a_message_too_large_is_a_dead_letter", a_message_too_large_is_a_dead_letter);
    suite.nats_and_kafka("an_event_above_max_payload_is_a_dead_letter", an_event_above_max_payload_is_a_dead_letter);
    suite.nats("sigterm_ends_a_run_whose_server_is_gone", sigterm_ends_a_run_whose_server_is_gone);
    suite.nats("a_second_process_waits_and_takes_over", a_second_process_waits_and_takes_over);
    suite.nats("a_full_stream_is_waited_for", a_full_stream_is_waited_for);
    suite.run()
}

/// What a process says whose server went away.
const OUTAGE: [&str; 2] = ["is not reachable; waiting for it", "sent again until it works"];

fn a_stream_goes_through_a_function_to_another(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(case, &Chain { wasm: Some("identity"), ..Chain::default() })?;
    let mut headers = HeaderMap::new();
    headers.insert("trace", "abc");
    headers.insert("Nats-Msg-Id", "first");
    headers.insert("Fluxmill-Key", "a.b c");
    setup.jet.publish([("in.first".to_owned(), headers, b"value".to_vec())])?;
    setup.feed(0..5_000)?;
    setup.catch_up(case, &[])?;
    let stored = setup.jet.read("OUT")?;
    ensure!(stored.len() == 5_001, "{} messages", stored.len());
    let first = &stored[0];
    ensure!(first.subject == "out.a%2Eb%20c" && first.payload == b"value", "{first:?}");
    ensure!(first.header("trace") == Some("abc") && first.header("Fluxmill-Key") == Some("a.b c"), "{first:?}");
    ensure!(first.header("Nats-Msg-Id") == Some("IN:1:test.main:default:0"), "{first:?}");
    let numbers: Vec<u64> = stored[1..].iter().filter_map(number).collect();
    ensure!(numbers == (0..5_000).collect::<Vec<_>>(), "not in order");
    let consumer = setup.jet.consumer("IN", "test-main")?;
    ensure!(consumer.ack_floor.stream_sequence == 5_001 && consumer.num_ack_pending == 0, "{consumer:?}");
    // Nothing is left to do.
    setup.catch_up(case, &[])?;
    ensure!(setup.jet.count("OUT")? == 5_001, "something was run again");
    Ok(())
}

fn number(stored: &Stored) -> Option<u64> {
    std::str::from_utf8(&stored.payload).ok()?.split(' ').next()?.parse().ok()
}

fn keys_keep_their_order_over_lanes(case: &Case) -> anyhow::Result<()> {
    let lines = &["order: key", "lanes: 4", "batch: { max_events: 50 }"];
    let setup = Setup::new(case, &Chain { wasm: Some("identity"), pipeline: lines, ..Chain::default() })?;
    setup.feed(0..20_000)?;
    setup.catch_up(case, &[])?;
    exactly_once(&setup.report(20_000)?)
}

fn a_work_queue_is_emptied(case: &Case) -> anyhow::Result<()> {
    use async_nats::jetstream::stream::RetentionPolicy;
    let setup = Setup::new(case, &Chain::default())?;
    setup.jet.create_with(Config {
        name: "WORK".into(),
        subjects: vec!["work.>".into()],
        retention: RetentionPolicy::WorkQueue,
        ..Config::default()
    })?;
    let text = std::fs::read_to_string(&setup.file)?.replace("stream: IN", "stream: WORK");
    std::fs::write(&setup.file, text)?;
    setup.jet.publish((0..3_000).map(|nth| {
        let (subject, headers, payload) = message(nth);
        (subject.replace("in.", "work."), headers, payload)
    }))?;
    setup.catch_up(case, &[])?;
    exactly_once(&setup.report(3_000)?)?;
    ensure!(setup.jet.held("WORK")? == 0, "the work queue is not empty");
    Ok(())
}

/// Filters and deleted messages leave gaps in the numbers, which hold nothing up.
fn parts_of_a_stream_are_read(case: &Case) -> anyhow::Result<()> {
    let input = ", subjects: [in.k-1, in.k-7], key: last_token, subject_header: subject";
    let setup = Setup::new(case, &Chain { input, ..Chain::default() })?;
    setup.jet.publish((0..2_000).map(message).map(|(subject, _, payload)| (subject, HeaderMap::new(), payload)))?;
    setup.catch_up(case, &[])?;
    let stored = setup.jet.read("OUT")?;
    ensure!(stored.len() == 40, "{} messages", stored.len());
    ensure!(stored.iter().all(|stored| matches!(stored.subject.as_str(), "out.k-1" | "out.k-7")), "{stored:?}");
    ensure!(stored[0].header("subject") == Some("in.k-1") && stored[0].header("Fluxmill-Key") == Some("k-1"));
    let consumer = setup.jet.consumer("IN", "test-main")?;
    ensure!(consumer.num_ack_pending == 0 && consumer.num_pending == 0, "{consumer:?}");
    Ok(())
}

fn kafka_over_nats_to_kafka_keeps_every_byte(case: &Case) -> anyhow::Result<()> {
    let (nats, brokers) = (Nats::start("")?, case.kafka()?.brokers());
    let client = Client::new(&brokers);
    let [from, to] = ["in", "out"].map(|name| case.topic(name));
    for topic in [&from, &to] {
        client.create_topic(topic, 3, &[])?;
    }
    let file = case.write(
        "chain.yaml",
        &format!(
            "name: test\nconnections:\n  main: {{ kafka: {{ brokers: [\"${{KAFKA_BROKERS}}\"] }} }}\n  edge: {{ nats: {{ \
             servers: [\"${{NATS}}\"] }} }}\nstreams:\n  MID: {{ subjects: [\"mid.>\"] }}\npipelines:\n  out:\n    from: {{ \
             kafka: {{ topics: [{from}] }} }}\n    to: {{ nats: {{ subject: mid.events }} }}\n  back:\n    from: {{ nats: {{ \
             stream: MID }} }}\n    function: {{ wasm: \"{}\" }}\n    to: {{ kafka: {{ topic: {to} }} }}\n",
            guest("identity").display()
        ),
    )?;
    client.produce(&from, odd())?;
    let (file, url, cache) = (file.display().to_string(), nats.url(), case.dir().display().to_string());
    let env = [("NATS", url.as_str()), ("KAFKA_BROKERS", &brokers), ("XDG_CACHE_HOME", &cache)];
    case.start_with(["run", &file, "--until-caught-up"], &env, &[])?.finish_well(LIMIT)?;
    let (before, after) = (contents(&client.read(&from)?), contents(&client.read(&to)?));
    for (before, after) in before.iter().zip(&after) {
        ensure!(before == after, "an event changed:\nbefore {before:?}\nafter  {after:?}");
    }
    ensure!(before.len() == after.len(), "{} events instead of {}", after.len(), before.len());
    Ok(())
}

/// What becomes of reading `number`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    Fine,
    Warning,
    Critical,
    Broken,
}

fn reading(number: u64) -> Reading {
    match number % 100 {
        7 | 57 => Reading::Warning,
        13 => Reading::Critical,
        29 => Reading::Broken,
        _ => Reading::Fine,
    }
}

fn device(number: u64) -> String {
    format!("fridge-{}", number % 41)
}

/// A reading as its sensor publishes it: no key, and the device in the subject.
fn published(number: u64) -> Message {
    let device = device(number);
    let value = match reading(number) {
        Reading::Fine => "4.5",
        Reading::Warning => "9.25",
        Reading::Critical => "-20",
        Reading::Broken => "12 C",
    };
    let mut headers = HeaderMap::new();
    headers.insert("number", number.to_string());
    let payload = format!("{{\"device_id\":\"{device}\",\"metric\":\"temperature\",\"value\":{value}}}");
    (format!("readings.{device}"), headers, payload.into_bytes())
}

/// The example at the edge, as it is in the repository: each reading beyond its range is one alert at the centre, and each
/// that cannot be read one dead letter at the edge.
fn readings_by_subject_become_alerts_in_kafka(case: &Case) -> anyhow::Result<()> {
    const READINGS: u64 = 6_000;
    let (nats, brokers) = (Nats::start("")?, case.kafka()?.brokers());
    let (jet, client) = (nats.client()?, Client::new(&brokers));
    let file = repository("pipelines/iot/edge.yaml").display().to_string();
    let (url, cache) = (nats.url(), case.dir().display().to_string());
    let env = [("NATS_SERVERS", url.as_str()), ("KAFKA_BROKERS", &brokers), ("XDG_CACHE_HOME", &cache)];
    let start = |more: &[&str]| {
        let args = ["run", &file].into_iter().chain(more.iter().copied());
        case.start_with(args, &env, &["events failed"])
    };
    // Over nothing: it makes the stream and the topic.
    start(&["--until-caught-up"])?.finish_well(LIMIT)?;
    jet.publish((0..READINGS / 2).map(published))?;
    let run = start(&[])?;
    client.wait_for_events(LIMIT, &["alerts"], 1)?;
    jet.publish((READINGS / 2..READINGS).map(published))?;
    run.stop(LIMIT)?;
    start(&["--until-caught-up"])?.finish_well(LIMIT)?;

    let is_alert = |number: &u64| matches!(reading(*number), Reading::Warning | Reading::Critical);
    let input: Vec<_> =
        (0..READINGS).filter(is_alert).map(|number| Seen { key: device(number).into_bytes(), id: number }).collect();
    let alerts = client.read("alerts")?;
    let mut output = Vec::new();
    for partition in alerts.chunk_by(|a, b| a.partition == b.partition) {
        let mut seen = Vec::new();
        for alert in partition {
            let number = alert.header("number")?.parse()?;
            let severity = if reading(number) == Reading::Critical { "critical" } else { "warning" };
            ensure!(alert.header("severity")? == severity, "{alert:?}");
            seen.push(Seen { key: alert.key.clone().unwrap_or_default(), id: number });
        }
        output.push(seen);
    }
    let report = compare(&input, &output);
    case.note(&report.describe());
    exactly_once(&report)?;
    let mut letters = Vec::new();
    for letter in jet.read("iot-edge-alert-dead")? {
        let number = letter.header("number").context("no number")?.parse()?;
        // It cannot be read, and tells its device all the same.
        ensure!(letter.header("Fluxmill-Key") == Some(&device(number)), "{letter:?}");
        letters.push(number);
    }
    // Those of two batches are in no order.
    letters.sort_unstable();
    let broken: Vec<u64> = (0..READINGS).filter(|number| reading(*number) == Reading::Broken).collect();
    ensure!(letters == broken, "{} dead letters instead of {}", letters.len(), broken.len());
    Ok(())
}

fn restarts_lose_and_double_nothing(case: &Case) -> anyhow::Result<()> {
    ended_in_the_middle(case, &[], |run| run.stop(LIMIT).map(|_| ()))
}

fn kill_9_loses_and_doubles_nothing(case: &Case) -> anyhow::Result<()> {
    ended_in_the_middle(case, &[], |run| run.kill().map(|_| ()))
}

fn ended_in_the_middle(
    case: &Case,
    expected: &[&str],
    end: impl Fn(Fluxmill) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    const EVENTS: u64 = 60_000;
    // A window that covers whatever a loaded machine takes.
    let chain = Chain { wasm: Some("identity"), out: ", duplicate_window: 10m", ..Chain::default() };
    let setup = Setup::new(case, &chain)?;
    setup.feed(0..EVENTS)?;
    for _ in 0..4 {
        let run = setup.run(case, &[], expected)?;
        let now = setup.jet.count("OUT")?;
        setup.jet.wait_for(LIMIT, "OUT", (now + 5_000).min(EVENTS))?;
        end(run)?;
    }
    setup.catch_up(case, expected)?;
    let report = setup.report(EVENTS)?;
    case.note(&report.describe());
    exactly_once(&report)
}

fn a_killed_server_loses_and_doubles_nothing(case: &Case) -> anyhow::Result<()> {
    const EVENTS: u64 = 60_000;
    let chain = Chain { wasm: Some("identity"), out: ", duplicate_window: 10m", ..Chain::default() };
    let mut setup = Setup::new(case, &chain)?;
    setup.feed(0..EVENTS)?;
    let run = setup.run(case, &[], &OUTAGE)?;
    for _ in 0..3 {
        let now = setup.jet.count("OUT")?;
        setup.jet.wait_for(LIMIT, "OUT", (now + 5_000).min(EVENTS))?;
        setup.nats.kill()?;
        setup.nats.restart()?;
        setup.jet = setup.nats.client()?;
    }
    setup.jet.wait_for(LIMIT, "OUT", EVENTS)?;
    let ended = run.stop(LIMIT)?;
    ensure!(ended.stderr.contains("is reachable again"), "{}", ended.stderr);
    let report = setup.report(EVENTS)?;
    case.note(&report.describe());
    ensure!(report.lost.is_empty() && report.doubled.is_empty() && report.unseen.is_empty(), "{}", report.describe());
    let consumer = setup.jet.consumer("IN", "test-main")?;
    ensure!(consumer.ack_floor.stream_sequence == EVENTS, "{consumer:?}");
    Ok(())
}

/// The call takes several times the ack wait; the server delivers nothing again.
fn a_slow_function_past_the_ack_wait_runs_once(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(
        case,
        &Chain {
            wasm: Some("faulty"),
            input: ", ack_wait: 1s",
            function: ", limits: { timeout: 4s }",
            ..Chain::default()
        },
    )?;
    let messages = ["loop", "one", "two"].map(|word| ("in.a".to_owned(), HeaderMap::new(), word.as_bytes().to_vec()));
    setup.jet.publish(messages)?;
    setup.catch_up(case, &["events failed"])?;
    let (out, dead) = (setup.jet.read("OUT")?, setup.jet.read("DEAD")?);
    ensure!(out.len() == 2 && dead.len() == 1, "{} and {}", out.len(), dead.len());
    ensure!(dead[0].header("fluxmill-error-kind") == Some("timeout"), "{:?}", dead[0]);
    let consumer = setup.jet.consumer("IN", "test-main")?;
    ensure!(consumer.delivered.consumer_sequence == 3, "delivered again: {consumer:?}");
    Ok(())
}

fn a_message_too_large_is_a_dead_letter(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(case, &Chain { out: ", max_message_size: 1KiB", ..Chain::default() })?;
    setup.feed(0..10)?;
    setup.jet.publish([("in.large".to_owned(), HeaderMap::new(), vec![b'x'; 2_000])])?;
    setup.feed(10..20)?;
    setup.catch_up(case, &["events failed"])?;
    exactly_once(&setup.report(20)?)?;
    let dead = setup.jet.read("DEAD")?;
    ensure!(dead.len() == 1 && dead[0].payload.len() == 2_000, "{} dead letters", dead.len());
    let header = |name| dead[0].header(name).unwrap_or_default();
    ensure!(header("fluxmill-error-kind") == "publish", "{:?}", dead[0].headers);
    ensure!(
        header("fluxmill-source-topic") == "IN" && header("fluxmill-source-offset") == "11",
        "{:?}",
        dead[0].headers
    );
    ensure!(header("Nats-Msg-Id") == "IN:11:test.main:!dead:0", "{:?}", dead[0].headers);
    Ok(())
}

fn an_event_above_max_payload_is_a_dead_letter(case: &Case) -> anyhow::Result<()> {
    let (nats, brokers) = (Nats::start("max_payload: 100KB")?, case.kafka()?.brokers());
    let client = Client::new(&brokers);
    let [from, dead] = ["in", "dead"].map(|name| case.topic(name));
    for topic in [&from, &dead] {
        client.create_topic(topic, 1, &[])?;
    }
    let file = case.write(
        "chain.yaml",
        &format!(
            "name: test\nconnections:\n  main: {{ kafka: {{ brokers: [\"${{KAFKA_BROKERS}}\"] }} }}\n  edge: {{ nats: {{ \
             servers: [\"${{NATS}}\"] }} }}\nstreams:\n  OUT: {{ subjects: [out] }}\npipelines:\n  main:\n    from: {{ kafka: \
             {{ topics: [{from}] }} }}\n    to: {{ nats: {{ subject: out }} }}\n    on_error: {{ then: {{ dead_letter: {{ \
             kafka: {{ topic: {dead} }} }} }} }}\n"
        ),
    )?;
    let record = |bytes| support::client::Record { value: Some(vec![b'x'; bytes]), ..Default::default() };
    client.produce(&from, [record(10), record(200_000), record(20)])?;
    let (file, url, cache) = (file.display().to_string(), nats.url(), case.dir().display().to_string());
    let env = [("NATS", url.as_str()), ("KAFKA_BROKERS", &brokers), ("XDG_CACHE_HOME", &cache)];
    case.start_with(["run", &file, "--until-caught-up"], &env, &["events failed"])?.finish_well(LIMIT)?;
    let stored = nats.client()?.read("OUT")?;
    let sizes: Vec<usize> = stored.iter().map(|stored| stored.payload.len()).collect();
    ensure!(sizes == [10, 20], "{sizes:?}");
    ensure!(stored[1].header("Nats-Msg-Id") == Some(&format!("{from}:0:2:test.main:default:0")), "{:?}", stored[1]);
    let dead = client.read(&dead)?;
    ensure!(dead.len() == 1 && dead[0].header("fluxmill-reason")?.contains("max_payload"), "{dead:?}");
    Ok(())
}

/// The pipeline waits while the output takes nothing, and fetches no more than it can hold.
fn a_full_stream_is_waited_for(case: &Case) -> anyhow::Result<()> {
    const EVENTS: u64 = 60_000;
    let out = ", max_messages: 1000, discard: new, duplicate_window: 10m";
    let chain = Chain { out, pipeline: &["lanes: 1", "batch: { max_events: 500 }"], ..Chain::default() };
    let setup = Setup::new(case, &chain)?;
    setup.feed(0..EVENTS)?;
    let mut run = setup.run(case, &["--until-caught-up"], &["sent again until it works"])?;
    run.process().wait_for_line(LIMIT, "sent again until it works")?;
    let mut before = 0;
    // It stands still.
    wait_until(LIMIT, "no more to be fetched", || {
        let delivered = setup.jet.consumer("IN", "test-main")?.delivered.stream_sequence;
        let stands = delivered == std::mem::replace(&mut before, delivered) && delivered > 1_000;
        Ok(stands.then_some(()))
    })?;
    ensure!(before < EVENTS / 2, "{before} of {EVENTS} events were fetched although none could go on");
    setup.jet.update(Config {
        name: "OUT".into(),
        subjects: vec!["out.>".into()],
        discard: DiscardPolicy::New,
        duplicate_window: Duration::from_secs(600),
        allow_direct: true,
        ..Config::default()
    })?;
    run.finish_well(LIMIT)?;
    let report = setup.report(EVENTS)?;
    case.note(&report.describe());
    // What was on its way when there was room again is stored in front of what was refused before: docs/nats.md.
    ensure!(report.lost.is_empty() && report.doubled.is_empty() && report.unseen.is_empty(), "{}", report.describe());
    Ok(())
}

/// What cannot be published or confirmed any more is not waited for without end, and is there after the next start.
fn sigterm_ends_a_run_whose_server_is_gone(case: &Case) -> anyhow::Result<()> {
    const EVENTS: u64 = 30_000;
    let mut setup = Setup::new(case, &Chain { out: ", duplicate_window: 10m", ..Chain::default() })?;
    setup.feed(0..EVENTS)?;
    let mut run = setup.run(case, &["--drain-timeout", "2s"], &["WARN", "ERROR"])?;
    setup.jet.wait_for(LIMIT, "OUT", 1_000)?;
    setup.nats.kill()?;
    run.process().signal(Signal::Term)?;
    let ended = run.finish(LIMIT)?;
    ensure!(matches!(ended.code, Some(0 | 1)), "exit code {:?}, signal {:?}", ended.code, ended.signal);
    setup.nats.restart()?;
    setup.jet = setup.nats.client()?;
    setup.catch_up(case, &[])?;
    exactly_once(&setup.report(EVENTS)?)
}

/// Two processes with one durable consumer: the second waits, and takes over when the first is killed.
fn a_second_process_waits_and_takes_over(case: &Case) -> anyhow::Result<()> {
    const EVENTS: u64 = 20_000;
    let setup = Setup::new(case, &Chain { out: ", duplicate_window: 10m", ..Chain::default() })?;
    setup.feed(0..EVENTS / 2)?;
    let first = setup.run(case, &[], &[])?;
    setup.jet.wait_for(LIMIT, "OUT", 1)?;
    let mut second = setup.run(case, &[], &[])?;
    second.process().wait_for_line(LIMIT, "another process reads stream IN by durable consumer test-main")?;
    setup.jet.wait_for(LIMIT, "OUT", EVENTS / 2)?;
    setup.feed(EVENTS / 2..EVENTS)?;
    first.kill()?;
    setup.jet.wait_for(LIMIT, "OUT", EVENTS)?;
    second.stop(LIMIT)?;
    exactly_once(&setup.report(EVENTS)?)
}
