//! NATS through the binary, against a real nats-server: streams in and out, Kafka on one side, restarts, kills of either,
//! refusals, back-pressure.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{Config, DiscardPolicy};
use support::chain::guest;
use support::checker::{Report, Seen, compare};
use support::client::Client;
use support::nats::{Jet, Nats, Stored, certificates};
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
    suite.nats("restarts_lose_and_double_nothing", restarts_lose_and_double_nothing);
    suite.nats("kill_9_loses_and_doubles_nothing", kill_9_loses_and_doubles_nothing);
    suite.nats("a_killed_server_loses_and_doubles_nothing", a_killed_server_loses_and_doubles_nothing);
    suite.nats("a_slow_function_past_the_ack_wait_runs_once", a_slow_function_past_the_ack_wait_runs_once);
    suite.nats("a_message_too_large_is_a_dead_letter", a_message_too_large_is_a_dead_letter);
    suite.nats_and_kafka("an_event_above_max_payload_is_a_dead_letter", an_event_above_max_payload_is_a_dead_letter);
    suite.nats("what_is_not_permitted_ends_the_run", what_is_not_permitted_ends_the_run);
    suite.nats("sigterm_ends_a_run_whose_server_is_gone", sigterm_ends_a_run_whose_server_is_gone);
    suite.nats("a_second_process_waits_and_takes_over", a_second_process_waits_and_takes_over);
    suite.nats("tokens_and_nkeys_sign_in", tokens_and_nkeys_sign_in);
    suite.nats_and_certificates("both_sides_show_certificates", both_sides_show_certificates);
    suite.nats("a_full_stream_is_waited_for", a_full_stream_is_waited_for);
    suite.nats("a_consumer_with_other_settings_is_refused", a_consumer_with_other_settings_is_refused);
    suite.nats("check_asks_the_server", check_asks_the_server);
    suite.run()
}

/// The longest that a part of a test may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);
/// What a process says whose server went away.
const OUTAGE: [&str; 2] = ["is not reachable; waiting for it", "sent again until it works"];
/// What is in flight when a process is killed.
const KEYS: u64 = 100;

/// A pipeline from `in.>` of the stream IN to OUT.
#[derive(Default)]
struct Chain {
    wasm: Option<&'static str>,
    /// More for the input, such as `ack_wait: 1s`.
    input: &'static str,
    /// More for OUT, such as `max_messages: 5`.
    out: &'static str,
    /// Further lines of the pipeline.
    pipeline: &'static [&'static str],
    /// Further lines of the function.
    function: &'static str,
    /// More for the connection.
    connection: &'static str,
}

impl Chain {
    fn yaml(&self) -> String {
        let Self { input, out, connection, .. } = self;
        let mut text = format!(
            "name: test\nconnections:\n  edge: {{ nats: {{ servers: [\"${{NATS}}\"]{connection} }} }}\nstreams:\n  \
             IN: {{ subjects: [\"in.>\"] }}\n  OUT: {{ subjects: [\"out.>\"]{out} }}\n  DEAD: {{ subjects: [dead] }}\n\
             pipelines:\n  main:\n    from: {{ nats: {{ stream: IN{input} }} }}\n    to: {{ nats: {{ subject: \
             \"out.{{key}}\" }} }}\n    on_error:\n      retry: {{ attempts: 2, backoff: 10ms..50ms }}\n      then: {{ \
             dead_letter: {{ nats: {{ subject: dead }} }} }}\n"
        );
        if let Some(wasm) = self.wasm {
            let _ = writeln!(text, "    function: {{ wasm: \"{}\"{} }}", guest(wasm).display(), self.function);
        }
        self.pipeline.iter().for_each(|line| {
            let _ = writeln!(text, "    {line}");
        });
        text
    }
}

/// A server, and a pipeline's file.
struct Setup {
    nats: Nats,
    jet: Jet,
    file: PathBuf,
}

impl Setup {
    fn new(case: &Case, chain: &Chain) -> anyhow::Result<Self> {
        Self::with(case, chain, "")
    }

    fn with(case: &Case, chain: &Chain, settings: &str) -> anyhow::Result<Self> {
        let nats = Nats::start(settings)?;
        let jet = nats.client()?;
        jet.create("IN", &["in.>"])?;
        Ok(Self { jet, file: case.write("chain.yaml", &chain.yaml())?, nats })
    }

    fn feed(&self, numbers: std::ops::Range<u64>) -> anyhow::Result<()> {
        self.jet.publish(numbers.map(message))
    }

    fn run(&self, case: &Case, more: &[&str], expected: &[&str]) -> anyhow::Result<Fluxmill> {
        let file = self.file.display().to_string();
        let (url, cache) = (self.nats.url(), case.dir().display().to_string());
        let args = ["run", &file].into_iter().chain(more.iter().copied());
        case.start_with(args, &[("NATS", &url), ("XDG_CACHE_HOME", &cache)], expected)
    }

    fn catch_up(&self, case: &Case, expected: &[&str]) -> anyhow::Result<()> {
        self.run(case, &["--until-caught-up"], expected)?.finish_well(LIMIT).map(|_| ())
    }

    /// What became of the first events of the load.
    fn report(&self, events: u64) -> anyhow::Result<Report<Vec<u8>>> {
        let seen = |key: &str, payload: &[u8]| Seen { key: key.to_owned(), id: payload.to_vec() };
        let key = |headers: &HeaderMap| headers.get("Fluxmill-Key").map_or("", |key| key.as_str()).to_owned();
        let input: Vec<_> = (0..events).map(message).map(|(_, headers, value)| seen(&key(&headers), &value)).collect();
        let output = self.jet.read("OUT")?;
        let output = output.iter().map(|stored| seen(&key(&stored.headers), &stored.payload)).collect();
        Ok(compare(&input, &[output]))
    }
}

fn message(number: u64) -> (String, HeaderMap, Vec<u8>) {
    let key = format!("k-{}", number % KEYS);
    let mut headers = HeaderMap::new();
    headers.insert("Fluxmill-Key", key.as_str());
    (format!("in.{key}"), headers, format!("{number} {}", "x".repeat(100)).into_bytes())
}

fn exactly_once<I: std::fmt::Debug>(report: &Report<I>) -> anyhow::Result<()> {
    report.exactly_once().map_err(anyhow::Error::msg)
}

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

fn what_is_not_permitted_ends_the_run(case: &Case) -> anyhow::Result<()> {
    const USERS: &str = "authorization { users: [ { user: admin, password: secret1 }, { user: app, password: secret2, \
                         permissions: { publish: { deny: \"out.>\" } } } ] }";
    let nats = Nats::start(USERS)?;
    let options = async_nats::ConnectOptions::with_user_and_password("admin".into(), "secret1".into());
    let jet = Jet::new(&nats.url(), options)?;
    jet.create("IN", &["in.>"])?;
    jet.publish((0..10).map(message))?;
    let chain = Chain { connection: ", user: app, password: secret2", ..Chain::default() };
    let setup = Setup { file: case.write("chain.yaml", &chain.yaml())?, jet, nats };
    let ended = setup.run(case, &["--until-caught-up"], &["ERROR", "WARN"])?.finish(LIMIT)?;
    ensure!(ended.code == Some(1), "exit code {:?}", ended.code);
    ensure!(ended.stderr.to_lowercase().contains("permissions violation for publish"), "{}", ended.stderr);
    ensure!(!ended.stderr.contains("secret2"), "a secret is shown");
    // A wrong password is told at the start.
    let chain = Chain { connection: ", user: app, password: wrong", ..Chain::default() };
    case.write("chain.yaml", &chain.yaml())?;
    let ended = setup.run(case, &[], &["ERROR", "WARN"])?.finish(LIMIT)?;
    ensure!(ended.code == Some(1) && ended.stderr.contains("authorization violation"), "{}", ended.stderr);
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

fn a_consumer_with_other_settings_is_refused(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(case, &Chain::default())?;
    let config = pull::Config {
        durable_name: Some("test-main".into()),
        ack_policy: AckPolicy::Explicit,
        max_deliver: 3,
        ..pull::Config::default()
    };
    setup.jet.create_consumer("IN", config)?;
    let ended = setup.run(case, &[], &["ERROR", "WARN"])?.finish(LIMIT)?;
    ensure!(ended.code == Some(1), "exit code {:?}", ended.code);
    for told in ["ack_policy is Explicit, not All", "max_deliver is 3, not -1", "write another `durable`"] {
        ensure!(ended.stderr.contains(told), "no `{told}` in {}", ended.stderr);
    }
    Ok(())
}

fn check_asks_the_server(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(case, &Chain::default())?;
    let check = |expected: &[&str]| {
        let file = setup.file.display().to_string();
        let env = [("NATS", setup.nats.url())];
        let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        case.start_with(["check", "--connect", &file], &env, expected)?.finish(LIMIT)
    };
    ensure!(check(&[])?.code == Some(0), "what is listed need not be there");
    let text = std::fs::read_to_string(&setup.file)?;
    let text = text.replace("  OUT: { subjects: [\"out.>\"] }\n", "").replace("stream: IN", "stream: GONE");
    std::fs::write(&setup.file, text)?;
    let ended = check(&[])?;
    ensure!(ended.code == Some(1), "exit code {:?}", ended.code);
    for told in ["find stream GONE", "find subject out.{key}", "list it under `streams`"] {
        ensure!(ended.stderr.contains(told), "no `{told}` in {}", ended.stderr);
    }
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

/// A user's seed and its public key, of the documents of NATS.
const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
const KEY: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";

fn tokens_and_nkeys_sign_in(case: &Case) -> anyhow::Result<()> {
    case.write("user.nk", &format!("{SEED}\n"))?;
    let nkey = format!("authorization {{ users: [ {{ nkey: {KEY} }} ] }}");
    for (settings, connection, options) in [
        (
            "authorization { token: secret1 }",
            ", token: secret1",
            async_nats::ConnectOptions::with_token("secret1".into()),
        ),
        (&nkey, ", nkey: { file: user.nk }", async_nats::ConnectOptions::with_nkey(SEED.into())),
    ] {
        let nats = Nats::start(settings)?;
        let jet = Jet::new(&nats.url(), options)?;
        let file = case.write("chain.yaml", &Chain { connection, ..Chain::default() }.yaml())?;
        jet.create("IN", &["in.>"])?;
        let setup = Setup { file, jet, nats };
        setup.feed(0..100)?;
        setup.catch_up(case, &[])?;
        exactly_once(&setup.report(100)?)?;
        // Without it nothing is reached.
        case.write("chain.yaml", &Chain::default().yaml())?;
        let ended = setup.run(case, &[], &["ERROR", "WARN"])?.finish(LIMIT)?;
        ensure!(ended.code == Some(1) && ended.stderr.contains("authorization violation"), "{}", ended.stderr);
    }
    Ok(())
}

fn both_sides_show_certificates(case: &Case) -> anyhow::Result<()> {
    certificates(case.dir())?;
    let path = |name: &str| case.dir().join(name);
    let settings = format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        path("server.pem"),
        path("server.key"),
        path("ca.pem")
    );
    let nats = Nats::start(&settings)?;
    let options = async_nats::ConnectOptions::new().require_tls(true).add_root_certificates(path("ca.pem"));
    let jet = Jet::new(&nats.url(), options.add_client_certificate(path("client.pem"), path("client.key")))?;
    jet.create("IN", &["in.>"])?;
    let connection = ", tls: { ca: ca.pem, certificate: client.pem, key: client.key }";
    let file = case.write("chain.yaml", &Chain { connection, ..Chain::default() }.yaml())?;
    let setup = Setup { file, jet, nats };
    setup.feed(0..100)?;
    setup.catch_up(case, &[])?;
    exactly_once(&setup.report(100)?)?;
    // Whoever signed the server's certificate must be trusted.
    case.write("chain.yaml", &Chain { connection: ", tls: {}", ..Chain::default() }.yaml())?;
    let ended = setup.run(case, &[], &["ERROR", "WARN"])?.finish(LIMIT)?;
    ensure!(ended.code == Some(1) && ended.stderr.to_lowercase().contains("certificate"), "{}", ended.stderr);
    Ok(())
}
