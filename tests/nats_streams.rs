//! Which streams and consumers of NATS there are, through the binary and against a real nats-server: what is created,
//! what is used as it is, what is refused, and what is waited for.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use support::nats::Jet;
use support::nats::setup::{Chain, LIMIT, Setup};
use support::process::Ended;
use support::suite::{Case, Suite};
use support::wait::wait_until;

mod support;

fn main() -> ExitCode {
    let mut suite = Suite::default();
    suite.nats("check_asks_the_server", check_asks_the_server);
    suite.nats("a_consumer_with_other_settings_is_refused", a_consumer_with_other_settings_is_refused);
    suite.nats("a_topic_that_another_stream_stores_is_told", a_topic_that_another_stream_stores_is_told);
    suite.nats("a_listed_stream_that_meets_another_is_told", a_listed_stream_that_meets_another_is_told);
    suite.nats("dead_letters_go_to_the_stream_that_stores_them", dead_letters_go_to_the_stream_that_stores_them);
    suite.nats("a_stream_of_dead_letters_that_is_gone_is_waited_for", a_stream_of_dead_letters_is_waited_for);
    suite.nats("an_output_that_is_gone_is_not_waited_for", an_output_that_is_gone_is_not_waited_for);
    suite.nats("a_subject_without_a_stream_ends_the_run_beside_others", a_subject_without_a_stream_ends_the_run);
    suite.run()
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

/// A file of topics, one of which is in a stream of another name.
const OF_TOPICS: &str = "name: test
connections:
  edge: { nats: { servers: [\"${NATS}\"] } }
pipelines:
  main:
    from: { topics: [orders.paid] }
    to: { topic: sent }
";

/// Runs a file that is refused before anything is read.
fn refused(case: &Case, setup: &Setup, text: &str) -> anyhow::Result<Ended> {
    std::fs::write(&setup.file, text)?;
    let ended = setup.run(case, &[], &["ERROR", "WARN"])?.finish(LIMIT)?;
    ensure!(ended.code == Some(1), "exit code {:?}: {}", ended.code, ended.stderr);
    Ok(ended)
}

/// With what to write instead.
fn a_topic_that_another_stream_stores_is_told(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(case, &Chain::default())?;
    setup.jet.create("ORDERS", &["orders.>"])?;
    let ended = refused(
        case,
        &setup,
        &format!("{OF_TOPICS}topics: {{ orders.paid: {{ partitions: 1 }}, sent: {{ partitions: 1 }} }}\n"),
    )?;
    for told in [
        "create stream orders-paid on ",
        "stream ORDERS stores orders.paid already, and a subject is in one stream",
        "read it as `nats: { stream: ORDERS, subjects: [\"orders.paid\"] }`, not as a topic",
    ] {
        ensure!(ended.stderr.contains(told), "no `{told}` in {}", ended.stderr);
    }
    Ok(())
}

fn a_listed_stream_that_meets_another_is_told(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(case, &Chain { out: ", duplicate_window: 10m", ..Chain::default() })?;
    setup.jet.create("EVERYTHING", &["out.k-1", "other"])?;
    let text = std::fs::read_to_string(&setup.file)?;
    let ended = refused(case, &setup, &text)?;
    let told =
        "stream EVERYTHING stores out.> already, and a subject is in one stream: use EVERYTHING, or give OUT other";
    ensure!(ended.stderr.contains(told), "no `{told}` in {}", ended.stderr);
    Ok(())
}

/// Nobody has to list it, and it need not have its own.
fn dead_letters_go_to_the_stream_that_stores_them(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(case, &Chain { wasm: Some("faulty"), ..Chain::default() })?;
    setup.jet.create("ALL", &["test.>"])?;
    let text = std::fs::read_to_string(&setup.file)?;
    let (before, after) = text.split_once("      then:").context("no dead letters")?;
    let (_, after) = after.split_once('\n').context("no line")?;
    std::fs::write(&setup.file, format!("{before}{after}"))?;
    setup.jet.publish([event("reject 1"), event("good 2")])?;
    setup.catch_up(case, &["events failed"])?;
    ensure!(setup.jet.count("OUT")? == 1, "the good one did not come out");
    let letters = setup.jet.read("ALL")?;
    ensure!(letters.len() == 1 && letters[0].subject == "test.main.dead", "{letters:?}");
    Ok(())
}

fn event(text: &str) -> (String, HeaderMap, Vec<u8>) {
    let mut headers = HeaderMap::new();
    headers.insert("Fluxmill-Key", text.replace(' ', "-"));
    ("in.a".to_owned(), headers, text.as_bytes().to_vec())
}

/// Good events, and each hundredth one that fails.
fn load(number: u64) -> (String, HeaderMap, Vec<u8>) {
    let (subject, mut headers, payload) =
        event(&format!("{} {number}", if number % 100 == 99 { "reject" } else { "good" }));
    headers.insert("Nats-Msg-Id", number.to_string());
    (subject, headers, payload)
}

/// A chain over several lanes that waits for the stream of its dead letters.
fn waits_for_letters(case: &Case, out: &'static str) -> anyhow::Result<Setup> {
    let lines = &["order: key", "lanes: 4", "batch: { max_events: 2 }"];
    let setup = Setup::new(case, &Chain { wasm: Some("faulty"), pipeline: lines, out, ..Chain::default() })?;
    let text =
        std::fs::read_to_string(&setup.file)?.replace("subject: dead } } }", "subject: dead } }, when_missing: wait }");
    std::fs::write(&setup.file, text)?;
    Ok(setup)
}

/// The lane whose letter cannot be stored is not the only one that learns of it.
fn a_stream_of_dead_letters_is_waited_for(case: &Case) -> anyhow::Result<()> {
    let setup = waits_for_letters(case, ", duplicate_window: 10m")?;
    let mut run = setup.run(case, &[], &["WARN"])?;
    let feeder = Jet::feed_at(&setup.nats.url(), 300, load)?;
    setup.jet.wait_for(LIMIT, "OUT", 50)?;
    setup.jet.delete("DEAD")?;
    run.process().wait_for_line(LIMIT, "waits until the topic is there again")?;
    setup.jet.create("DEAD", &["dead"])?;
    let sent = feeder.finish()?;
    wait_until(LIMIT, "everything to be confirmed", || {
        let consumer = setup.jet.consumer("IN", "test-main")?;
        Ok((consumer.ack_floor.stream_sequence == sent).then_some(()))
    })?;
    run.stop(LIMIT)?;
    let (stored, dead) = (setup.jet.count("OUT")?, setup.jet.read("DEAD")?);
    let letters: BTreeSet<_> = dead.iter().map(|letter| letter.payload.clone()).collect();
    ensure!(stored == sent - sent / 100, "{stored} of {sent} came out");
    // Those of before went with their stream.
    ensure!(letters.len() == dead.len() && (sent / 100).abs_diff(dead.len() as u64) < 5, "{} letters", dead.len());
    Ok(())
}

/// However many others are stored meanwhile, on whose account it would be waited for longer than for ten seconds.
fn a_subject_without_a_stream_ends_the_run(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(case, &Chain { pipeline: &["order: key", "lanes: 4"], ..Chain::default() })?;
    let text = std::fs::read_to_string(&setup.file)?.replace("  OUT: { subjects: [\"out.>\"] }\n", "");
    std::fs::write(&setup.file, text)?;
    setup.jet.create("OUT", &["out.good"])?;
    let feeder = Jet::feed_at(&setup.nats.url(), 300, |number| {
        let (subject, mut headers, payload) = event(&number.to_string());
        headers.insert("Nats-Msg-Id", number.to_string());
        headers.insert("Fluxmill-Key", if number == 500 { "gone" } else { "good" });
        (subject, headers, payload)
    })?;
    let run = setup.run(case, &[], &["ERROR"])?;
    setup.jet.wait_for(LIMIT, "OUT", 500)?;
    let since = Instant::now();
    let ended = run.finish(LIMIT)?;
    feeder.finish()?;
    ensure!(ended.code == Some(1), "exit code {:?}", ended.code);
    ensure!(ended.stderr.contains("no stream stores this subject"), "{}", ended.stderr);
    case.note(&format!("ended after {:?}", since.elapsed()));
    ensure!(since.elapsed() < Duration::from_secs(20), "it was waited for {:?}", since.elapsed());
    Ok(())
}

/// Whatever the others, whose letters go over the same connection, learn of it.
fn an_output_that_is_gone_is_not_waited_for(case: &Case) -> anyhow::Result<()> {
    let setup = waits_for_letters(case, "")?;
    let run = setup.run(case, &[], &["WARN", "ERROR"])?;
    setup.jet.publish([event("good -1")])?;
    setup.jet.wait_for(LIMIT, "OUT", 1)?;
    setup.jet.delete("OUT")?;
    setup.jet.publish(
        (0..40).map(|number| event(&format!("{} {number}", if number % 4 == 0 { "reject" } else { "good" }))),
    )?;
    let ended = run.finish(LIMIT)?;
    ensure!(ended.code == Some(1), "exit code {:?}", ended.code);
    let told = ended.stderr.lines().rfind(|line| line.contains("ERROR")).unwrap_or_default();
    ensure!(told.contains("publish to out.") && told.contains("no stream stores this subject"), "{}", ended.stderr);
    ensure!(!ended.stderr.contains("waits until the topic"), "{}", ended.stderr);
    Ok(())
}
