//! Atomic batches on NATS through the binary, against a real nats-server: what is stored is whole, whatever is
//! killed, and nothing is lost or doubled.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::stream::{Config, DiscardPolicy};
use fluxmill::broker::Sink as _;
use fluxmill::broker::nats::{NatsProducer, Origins, Sender};
use fluxmill::delivery::{TopicPartition, Tracker};
use fluxmill::event::{BatchBuilder, Origin, Publication};
use fluxmill::spec::{NatsAuth, NatsConnection};
use support::chain::guest;
use support::kafka::listen;
use support::nats::{Jet, Nats, Stored};
use support::process::Fluxmill;
use support::suite::{Case, Suite};
use support::wait::wait_until;

mod support;

fn main() -> ExitCode {
    let mut suite = Suite::default();
    suite.nats("batches_are_stored_whole_and_in_order", batches_are_stored_whole_and_in_order);
    suite.nats("kill_9_leaves_only_whole_batches", kill_9_leaves_only_whole_batches);
    suite.nats("a_killed_server_leaves_only_whole_batches", a_killed_server_leaves_only_whole_batches);
    suite.nats("what_waits_twice_is_stored_once", what_waits_twice_is_stored_once);
    suite.nats("what_is_stored_already_is_left_out", what_is_stored_already_is_left_out);
    suite.nats("messages_too_large_are_dead_letters", messages_too_large_are_dead_letters);
    suite.nats("sizes_around_the_bound_are_stored_or_dead_letters", sizes_around_the_bound_are_stored_or_dead_letters);
    suite.nats("a_subject_without_a_stream_ends_the_run", a_subject_without_a_stream_ends_the_run);
    suite.nats("a_full_stream_is_waited_for_in_order", a_full_stream_is_waited_for_in_order);
    suite.nats("a_server_that_takes_small_batches_gets_them", a_server_that_takes_small_batches_gets_them);
    suite.nats("a_server_that_takes_smaller_batches_is_told", a_server_that_takes_smaller_batches_is_told);
    suite.nats("a_stream_that_takes_no_batches_is_told", a_stream_that_takes_no_batches_is_told);
    suite.nats("two_streams_for_one_output_are_told", two_streams_for_one_output_are_told);
    suite.nats("a_server_that_knows_no_batches_is_told", a_server_that_knows_no_batches_is_told);
    suite.run()
}

/// The longest that a part of a test may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);
/// What a process says whose server went away.
const OUTAGE: [&str; 2] = ["is not reachable; waiting for it", "sent again until it works"];
/// A server that takes a hundred messages in a batch.
const SMALL_BATCHES: &str = ", limits { batch { max_msgs: 100 } }";
/// Bytes of a message too large for OUT, where that has a bound.
const LARGE: usize = 3_000;

/// A server; a pipeline's file, from `in.>` of the stream IN to OUT, where each event is stored twice.
struct Setup {
    nats: Nats,
    jet: Jet,
    file: PathBuf,
}

impl Setup {
    /// `out` is more for the stream OUT, such as `max_messages: 5`; `lines` are further lines of the pipeline.
    fn new(case: &Case, out: &str, lines: &[&str]) -> anyhow::Result<Self> {
        Self::on(Nats::start("")?, case, out, lines)
    }

    fn on(nats: Nats, case: &Case, out: &str, lines: &[&str]) -> anyhow::Result<Self> {
        let jet = nats.client()?;
        jet.create("IN", &["in.>"])?;
        Ok(Self { jet, file: case.write("chain.yaml", &yaml(out, lines))?, nats })
    }

    fn feed(&self, numbers: std::ops::Range<u64>) -> anyhow::Result<()> {
        self.jet.publish(numbers.map(|number| message(&number.to_string())))
    }

    fn run(&self, case: &Case, more: &[&str], expected: &[&str]) -> anyhow::Result<Fluxmill> {
        start(case, "run", &self.file, &self.nats.url(), more, expected)
    }

    fn catch_up(&self, case: &Case, expected: &[&str]) -> anyhow::Result<()> {
        self.run(case, &["--until-caught-up"], expected)?.finish_well(LIMIT).map(|_| ())
    }

    /// Everything in OUT is in whole batches, and so is each event.
    fn whole(&self) -> anyhow::Result<Vec<Stored>> {
        let stored = self.jet.read("OUT")?;
        ensure!(are_whole(&stored)?, "the last batch is in parts");
        Ok(stored)
    }

    /// What OUT has once the server has stored the batch that it was storing: a consumer sees the beginning of that one,
    /// but of no other.
    fn settled(&self) -> anyhow::Result<Vec<Stored>> {
        wait_until(LIMIT, "the last batch to be whole", || {
            let stored = self.jet.read("OUT")?;
            Ok(are_whole(&stored)?.then_some(stored))
        })
    }

    /// OUT has the first events, each twice, in order.
    fn all(&self, events: u64) -> anyhow::Result<()> {
        let stored = self.whole()?;
        let found: Vec<u64> = stored.iter().filter_map(number).collect();
        let wanted: Vec<u64> = (0..events).flat_map(|number| [number, number]).collect();
        ensure!(found.len() == wanted.len(), "{} messages instead of {}", found.len(), wanted.len());
        ensure!(found == wanted, "not in order");
        Ok(())
    }
}

fn yaml(out: &str, lines: &[&str]) -> String {
    let mut text = format!(
        "name: test\nconnections:\n  edge: {{ nats: {{ servers: [\"${{NATS}}\"] }} }}\nstreams:\n  IN: {{ subjects: \
         [\"in.>\"] }}\n  OUT: {{ subjects: [\"out.>\"], atomic: true, duplicate_window: 10m{out} }}\n  DEAD: {{ subjects: \
         [dead] }}\npipelines:\n  main:\n    from: {{ nats: {{ stream: IN }} }}\n    function: {{ wasm: \"{}\" }}\n    to: {{ \
         nats: {{ subject: \"out.{{key}}\", atomic: true }} }}\n    on_error: {{ then: {{ dead_letter: {{ nats: {{ subject: \
         dead }} }} }} }}\n",
        guest("faulty").display()
    );
    lines.iter().for_each(|line| {
        let _ = writeln!(text, "    {line}");
    });
    text
}

fn start(
    case: &Case,
    command: &str,
    file: &std::path::Path,
    url: &str,
    more: &[&str],
    expected: &[&str],
) -> anyhow::Result<Fluxmill> {
    let (file, cache) = (file.display().to_string(), case.dir().display().to_string());
    let args = [command, &file].into_iter().chain(more.iter().copied());
    case.start_with(args, &[("NATS", url), ("XDG_CACHE_HOME", &cache)], expected)
}

/// The function stores twice what begins with that word.
fn message(text: &str) -> (String, HeaderMap, Vec<u8>) {
    let mut headers = HeaderMap::new();
    headers.insert("Fluxmill-Key", format!("k-{}", text.len()));
    ("in.a".to_owned(), headers, format!("twice {text}").into_bytes())
}

fn number(stored: &Stored) -> Option<u64> {
    std::str::from_utf8(&stored.payload).ok()?.split(' ').nth(1)?.parse().ok()
}

/// Whether all batches are there as a whole, and so each event; not when the last one is only the beginning of one.
fn are_whole(stored: &[Stored]) -> anyhow::Result<bool> {
    let mut batches: Vec<(&str, Vec<&Stored>)> = Vec::new();
    for message in stored {
        let id = message.header("Nats-Batch-Id").context("no batch")?;
        match batches.last_mut() {
            Some((last, messages)) if *last == id => messages.push(message),
            _ => batches.push((id, vec![message])),
        }
    }
    let last = batches.len();
    for (at, (id, messages)) in (1..).zip(&batches) {
        let count = messages.len();
        let numbers = messages.iter().map(|message| message.header("Nats-Batch-Sequence").unwrap_or_default());
        ensure!(numbers.eq((1..=count).map(|nth| nth.to_string())), "batch {id} of {count} messages is in parts");
        let ends = messages.iter().position(|message| message.header("Nats-Batch-Commit").is_some());
        if ends.is_none() && at == last {
            return Ok(false);
        }
        ensure!(ends == Some(count - 1), "batch {id} of {count} messages ends at {ends:?}");
    }
    let halves: Vec<_> = numbers(stored).into_iter().filter(|(_, count)| *count != 2).collect();
    ensure!(halves.is_empty(), "not twice: {halves:?}");
    Ok(true)
}

/// How often each number is there.
fn numbers(stored: &[Stored]) -> BTreeMap<u64, usize> {
    let mut counts = BTreeMap::new();
    stored.iter().filter_map(number).for_each(|number| *counts.entry(number).or_default() += 1);
    counts
}

fn batches_are_stored_whole_and_in_order(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(case, "", &[])?;
    setup.feed(0..5_000)?;
    setup.catch_up(case, &[])?;
    setup.all(5_000)?;
    let stored = setup.jet.read("OUT")?;
    let ids: BTreeSet<_> = stored.iter().filter_map(|stored| stored.header("Nats-Msg-Id")).collect();
    ensure!(ids.len() == 10_000 && ids.contains("IN:1:test.main:default:1"), "{} ids", ids.len());
    let batches: BTreeSet<_> = stored.iter().filter_map(|stored| stored.header("Nats-Batch-Id")).collect();
    // Of 1,000 events at most, and so of 2,000 messages, each cut in two.
    ensure!((10..=100).contains(&batches.len()), "{} batches", batches.len());
    let consumer = setup.jet.consumer("IN", "test-main")?;
    ensure!(consumer.ack_floor.stream_sequence == 5_000 && consumer.num_ack_pending == 0, "{consumer:?}");
    Ok(())
}

fn kill_9_leaves_only_whole_batches(case: &Case) -> anyhow::Result<()> {
    const EVENTS: u64 = 30_000;
    // Other batches each time.
    let setup = Setup::new(case, "", &["batch: { max_events: 300 }", "lanes: 1"])?;
    setup.feed(0..EVENTS)?;
    for _ in 0..5 {
        let run = setup.run(case, &[], &OUTAGE)?;
        let now = setup.jet.count("OUT")?;
        setup.jet.wait_for(LIMIT, "OUT", (now + 3_000).min(2 * EVENTS))?;
        run.kill()?;
        let stored = setup.settled()?;
        case.note(&format!("{} messages in whole batches after a kill", stored.len()));
    }
    setup.catch_up(case, &OUTAGE)?;
    setup.all(EVENTS)
}

fn a_killed_server_leaves_only_whole_batches(case: &Case) -> anyhow::Result<()> {
    const EVENTS: u64 = 30_000;
    let mut setup = Setup::new(case, "", &["lanes: 1"])?;
    setup.feed(0..EVENTS)?;
    let run = setup.run(case, &[], &OUTAGE)?;
    for _ in 0..4 {
        let now = setup.jet.count("OUT")?;
        setup.jet.wait_for(LIMIT, "OUT", (now + 4_000).min(2 * EVENTS))?;
        setup.nats.kill()?;
        setup.nats.restart()?;
        setup.jet = setup.nats.client()?;
    }
    setup.jet.wait_for(LIMIT, "OUT", 2 * EVENTS)?;
    let ended = run.stop(LIMIT)?;
    ensure!(ended.stderr.contains("is reachable again"), "{}", ended.stderr);
    setup.all(EVENTS)
}

/// As when a partition came back while what was published of it waited: both go together at first, and the server takes
/// no batch that has one id twice.
fn what_waits_twice_is_stored_once(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(case, "", &[])?;
    let subjects = vec!["out.>".to_owned()];
    setup.jet.create_with(Config { name: "OUT".into(), subjects, allow_atomic_publish: true, ..Config::default() })?;
    let tracker = Arc::new(Tracker::default());
    let slot = tracker.assign(TopicPartition { topic: "in".into(), partition: 0 });
    let mut events = BatchBuilder::default();
    for offset in 0..10 {
        let value = format!("value {offset}");
        events.append(Origin { slot, offset }, Some(b"key"), Some(value.as_bytes()), 0, std::iter::empty());
    }
    let events = events.finish();
    let connection = NatsConnection { servers: vec![setup.nats.url()], tls: None, auth: NatsAuth::None };
    let (producer, driver) = NatsProducer::new(&connection, "test", true);
    let (pipeline, output) = ("test.main".to_owned(), "default".to_owned());
    let sink = producer.sink("out.{key}", Sender { pipeline, output, tracker, origins: Origins::Partitions });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let once = sink.publish(Publication::unchanged(events.clone())).await?;
        let twice = sink.publish(Publication::unchanged(events)).await?;
        let stored = async { anyhow::Ok([once.await?, twice.await?]) };
        let reports = tokio::select! {
            reports = tokio::time::timeout(LIMIT, stored) => reports.context("it is not stored")??,
            ended = driver.run() => bail!("the producer has ended: {ended:?}"),
        };
        ensure!(reports.iter().all(|report| report.refused.is_empty()), "{reports:?}");
        anyhow::Ok(())
    })?;
    let stored = setup.jet.read("OUT")?;
    ensure!(stored.len() == 10, "{} messages", stored.len());
    Ok(())
}

/// Everything is run again, in batches of other sizes, and some more.
fn what_is_stored_already_is_left_out(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(case, "", &["batch: { max_events: 70 }"])?;
    setup.feed(0..1_000)?;
    setup.catch_up(case, &[])?;
    setup.all(1_000)?;
    setup.jet.delete_consumer("IN", "test-main")?;
    setup.feed(1_000..1_030)?;
    case.write("chain.yaml", &yaml("", &["batch: { max_events: 200 }"]))?;
    setup.catch_up(case, &[])?;
    setup.all(1_030)?;
    let consumer = setup.jet.consumer("IN", "test-main")?;
    ensure!(consumer.ack_floor.stream_sequence == 1_030, "{consumer:?}");
    Ok(())
}

/// Those that the stream never takes are found among those that it does.
fn messages_too_large_are_dead_letters(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(case, ", max_message_size: 1KiB", &[])?;
    setup.feed(0..50)?;
    for nth in 0..2 {
        setup.jet.publish([message(&format!("large-{nth} {}", "x".repeat(LARGE)))])?;
        setup.feed(50 + nth..51 + nth)?;
    }
    setup.catch_up(case, &["events failed"])?;
    setup.all(52)?;
    let dead = setup.jet.read("DEAD")?;
    ensure!(dead.len() == 2, "{} dead letters", dead.len());
    for letter in &dead {
        ensure!(letter.header("fluxmill-error-kind") == Some("publish"), "{:?}", letter.headers);
        let reason = letter.header("fluxmill-reason").unwrap_or_default();
        ensure!(reason.contains("message size exceeds maximum allowed"), "{reason}");
    }
    Ok(())
}

/// A message gets headers in its batch: what fits into the stream without these is not sent again for ever.
fn sizes_around_the_bound_are_stored_or_dead_letters(case: &Case) -> anyhow::Result<()> {
    const SIZES: std::ops::Range<usize> = 500..1_000;
    let setup = Setup::new(case, ", max_message_size: 1KiB", &["batch: { max_events: 100 }"])?;
    setup.jet.publish(SIZES.step_by(5).map(|bytes| message(&format!("{bytes} {}", "x".repeat(bytes)))))?;
    setup.catch_up(case, &["events failed"])?;
    let (stored, dead) = (setup.whole()?.len(), setup.jet.read("DEAD")?.len());
    case.note(&format!("{} events stored, {dead} dead letters", stored / 2));
    ensure!(stored / 2 + dead == SIZES.step_by(5).count() && stored > 0 && dead > 0, "{stored} stored, {dead} dead");
    Ok(())
}

/// Also when the last message of the batch has one, which gets the answer.
fn a_subject_without_a_stream_ends_the_run(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(case, "", &[])?;
    let subjects = vec!["out.k-1".to_owned()];
    setup.jet.create_with(Config { name: "OUT".into(), subjects, allow_atomic_publish: true, ..Config::default() })?;
    // Of keys `k-2` and `k-1`.
    setup.jet.publish([message("10"), message("1")])?;
    let ended = setup.run(case, &[], &["ERROR", "WARN"])?.finish(LIMIT)?;
    ensure!(ended.code == Some(1), "exit code {:?}", ended.code);
    let told = "publish to out.k-2 on ";
    ensure!(ended.stderr.contains(told), "no `{told}` in {}", ended.stderr);
    ensure!(ended.stderr.contains("no stream stores this subject"), "{}", ended.stderr);
    ensure!(setup.whole()?.is_empty(), "a part of the batch is stored");
    Ok(())
}

fn a_full_stream_is_waited_for_in_order(case: &Case) -> anyhow::Result<()> {
    const EVENTS: u64 = 10_000;
    let out = ", max_messages: 3000, discard: new";
    let setup = Setup::new(case, out, &["batch: { max_events: 400 }"])?;
    setup.feed(0..EVENTS)?;
    let mut run = setup.run(case, &["--until-caught-up"], &["sent again until it works"])?;
    run.process().wait_for_line(LIMIT, "sent again until it works")?;
    setup.whole()?;
    setup.jet.update(Config {
        name: "OUT".into(),
        subjects: vec!["out.>".into()],
        discard: DiscardPolicy::New,
        duplicate_window: Duration::from_secs(600),
        allow_direct: true,
        allow_atomic_publish: true,
        ..Config::default()
    })?;
    run.finish_well(LIMIT)?;
    setup.all(EVENTS)
}

/// Events are run in batches that it takes, so these do not go together beyond that.
fn a_server_that_takes_small_batches_gets_them(case: &Case) -> anyhow::Result<()> {
    let nats = Nats::start_with(SMALL_BATCHES, "")?;
    let setup = Setup::on(nats, case, "", &["batch: { max_events: 40 }"])?;
    setup.feed(0..3_000)?;
    setup.catch_up(case, &[])?;
    setup.all(3_000)
}

fn a_server_that_takes_smaller_batches_is_told(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::on(Nats::start_with(SMALL_BATCHES, "")?, case, "", &["batch: { max_events: 100 }"])?;
    setup.feed(0..1_000)?;
    let ended = setup.run(case, &[], &["ERROR", "WARN"])?.finish(LIMIT)?;
    ensure!(ended.code == Some(1), "exit code {:?}", ended.code);
    let told = "write a smaller `batch.max_events`";
    ensure!(ended.stderr.contains(told), "no `{told}` in {}", ended.stderr);
    Ok(())
}

/// At the start, by `check --connect`, and when it is so only later.
fn a_stream_that_takes_no_batches_is_told(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(case, "", &[])?;
    let mut config = Config { name: "OUT".into(), subjects: vec!["out.>".into()], ..Config::default() };
    setup.jet.create_with(config.clone())?;
    setup.feed(0..10)?;
    for (command, more) in [("run", &[][..]), ("check", &["--connect"])] {
        let run = start(case, command, &setup.file, &setup.nats.url(), more, &["ERROR", "WARN"])?;
        let ended = run.finish(LIMIT)?;
        ensure!(ended.code == Some(1), "exit code {:?}", ended.code);
        for told in ["publish atomic batches to subject out.{key}", "stream OUT takes none", "--allow-batch"] {
            ensure!(ended.stderr.contains(told), "{command}: no `{told}` in {}", ended.stderr);
        }
    }
    config.allow_atomic_publish = true;
    setup.jet.update(config.clone())?;
    let run = setup.run(case, &[], &["ERROR", "WARN"])?;
    setup.jet.wait_for(LIMIT, "OUT", 20)?;
    config.allow_atomic_publish = false;
    setup.jet.update(config)?;
    setup.feed(10..20)?;
    let ended = run.finish(LIMIT)?;
    ensure!(ended.code == Some(1), "exit code {:?}", ended.code);
    ensure!(ended.stderr.contains("stream OUT takes no atomic batches: set its `allow_atomic`"), "{}", ended.stderr);
    setup.all(10)
}

/// A batch cannot be in both; this shows only with the first key that leads to the other.
fn two_streams_for_one_output_are_told(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(case, "", &[])?;
    let text = yaml("", &[]).replace("  OUT: { subjects: [\"out.>\"], atomic: true, duplicate_window: 10m }\n", "");
    std::fs::write(&setup.file, text)?;
    for (name, subject) in [("ONE", "out.k-1"), ("TWO", "out.k-2")] {
        let subjects = vec![subject.to_owned()];
        setup.jet.create_with(Config {
            name: name.into(),
            subjects,
            allow_atomic_publish: true,
            ..Config::default()
        })?;
    }
    let ended = setup.run(case, &[], &["ERROR", "WARN"])?.finish(LIMIT)?;
    ensure!(ended.code == Some(1), "exit code {:?}", ended.code);
    let told = "a batch is within one stream, but ONE and TWO store some of its subjects";
    ensure!(ended.stderr.contains(told), "{}", ended.stderr);
    Ok(())
}

/// The same server, that says it is an older one.
fn a_server_that_knows_no_batches_is_told(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(case, "", &[])?;
    let url = older(&setup.nats.url())?;
    for (command, more) in [("run", &[][..]), ("check", &["--connect"])] {
        let ended = start(case, command, &setup.file, &url, more, &["ERROR", "WARN"])?.finish(LIMIT)?;
        ensure!(ended.code == Some(1), "exit code {:?}", ended.code);
        let told = "the server is version 2.11.99; atomic batches need 2.12 or newer";
        ensure!(ended.stderr.contains(told), "{command}: {}", ended.stderr);
    }
    Ok(())
}

/// The address of a way to this server on which it says that it is version 2.11.99.
fn older(url: &str) -> anyhow::Result<String> {
    let (server, listener) = (url.replace("nats://", ""), listen("127.0.0.1")?);
    let address = format!("nats://{}", listener.local_addr()?);
    #[expect(clippy::disallowed_methods, reason = "it ends with the test process, which ends with this suite")]
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(&server)) else { return };
            // One client at a time is all there is.
            if pass(&client, &server).is_err() {
                let _ = client.shutdown(Shutdown::Both);
            }
        }
    });
    Ok(address)
}

/// Passes on what both say until one of them ends.
fn pass(client: &TcpStream, server: &TcpStream) -> anyhow::Result<()> {
    let mut answers = BufReader::new(server.try_clone()?);
    let mut info = String::new();
    answers.read_line(&mut info)?;
    let (before, after) = info.split_once("\"version\":\"").context("no version")?;
    let (_, after) = after.split_once('"').context("no version")?;
    write!(&*client, "{before}\"version\":\"2.11.99\"{after}")?;
    let (mut from, to) = (client.try_clone()?, server.try_clone()?);
    #[expect(clippy::disallowed_methods, reason = "it ends with its connections")]
    let upward = std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut &to);
        to.shutdown(Shutdown::Both)
    });
    let mut bytes = [0; 4096];
    loop {
        match answers.read(&mut bytes)? {
            0 => break,
            count => (&*client).write_all(&bytes[..count])?,
        }
    }
    client.shutdown(Shutdown::Both)?;
    drop(upward.join());
    Ok(())
}
