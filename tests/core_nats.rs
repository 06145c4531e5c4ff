//! Core NATS through the binary, against a real nats-server: what comes goes on in order and once, is shared by the
//! members of a queue group, and what is lost is told.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::{ConnectOptions, HeaderMap, Message};
use support::chain::guest;
use support::core::Core;
use support::nats::{Jet, Nats};
use support::process::{Fluxmill, Signal};
use support::suite::{Case, Suite};

mod support;

/// The longest that a part of a test may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);
/// What is told of a promise that is less than others.
const MAY_BE_LOST: &str = "core NATS keeps nothing, and what goes over it may be lost";
/// What a process says whose server went away.
const OUTAGE: &str = "is not reachable; waiting for it";

fn main() -> ExitCode {
    let mut suite = Suite::default();
    suite.nats("subjects_go_through_a_function_to_subjects", subjects_go_through_a_function_to_subjects);
    suite.nats("a_stop_loses_nothing_that_had_come", a_stop_loses_nothing_that_had_come);
    suite.nats("hops_between_pipelines_lose_nothing_at_starts_and_stops", hops_between_pipelines_lose_nothing);
    suite.nats("nobody_publishes_to_who_may_not_read", nobody_publishes_to_who_may_not_read);
    suite.nats("who_may_not_publish_to_itself_reads_all_the_same", who_may_not_publish_to_itself_reads_all_the_same);
    suite.nats("what_does_not_end_in_time_is_told_to_be_lost", what_does_not_end_in_time_is_told_to_be_lost);
    suite.nats("members_of_a_queue_group_share", members_of_a_queue_group_share);
    suite.nats("what_comes_behind_an_outage_goes_on", what_comes_behind_an_outage_goes_on);
    suite.nats("what_finds_no_room_is_lost_and_told", what_finds_no_room_is_lost_and_told);
    suite.nats("two_lives_do_not_share_ids", two_lives_do_not_share_ids);
    suite.nats("an_event_above_max_payload_fails_alone", an_event_above_max_payload_fails_alone);
    suite.nats("what_is_not_permitted_ends_the_run", what_is_not_permitted_ends_the_run);
    suite.nats("there_is_no_end_to_catch_up_with", there_is_no_end_to_catch_up_with);
    suite.run()
}

/// A server, a client, and a pipeline from `in.>` to what `to` says.
struct Setup {
    nats: Nats,
    core: Core,
    file: PathBuf,
}

/// Where events go when nothing else is said.
const OUT: &str = "core_nats: { subject: \"out.{key}\" }";

impl Setup {
    fn new(case: &Case, to: &str, pipeline: &str) -> anyhow::Result<Self> {
        Self::with(case, "", to, pipeline)
    }

    fn with(case: &Case, settings: &str, to: &str, pipeline: &str) -> anyhow::Result<Self> {
        let nats = Nats::start(settings)?;
        let core = Core::connect(&nats.url(), ConnectOptions::new())?;
        Ok(Self { core, file: file(case, "", to, pipeline)?, nats })
    }

    fn run(&self, case: &Case, more: &[&str], expected: &[&str]) -> anyhow::Result<Fluxmill> {
        let file = self.file.display().to_string();
        let (url, cache) = (self.nats.url(), case.dir().display().to_string());
        let args = ["run", &file].into_iter().chain(more.iter().copied());
        case.start_with(args, &[("NATS", &url), ("XDG_CACHE_HOME", &cache)], expected)
    }

    /// Runs, and waits until it reads.
    fn run_until_it_reads(&self, case: &Case, expected: &[&str]) -> anyhow::Result<Fluxmill> {
        // Longer than a function may hang that is called several times.
        let run = self.run(case, &["--drain-timeout", "90s"], expected)?;
        self.core.wait_for_reader(LIMIT, "in.probe")?;
        Ok(run)
    }
}

fn file(case: &Case, connection: &str, to: &str, pipeline: &str) -> anyhow::Result<PathBuf> {
    let text = format!(
        "name: test\nconnections:\n  edge: {{ nats: {{ servers: [\"${{NATS}}\"]{connection} }} }}\npipelines:\n  main:\n    \
         from: {{ core_nats: {{ subjects: [\"in.>\"], subject_header: subject }} }}\n    to: {{ {to} }}\n{pipeline}"
    );
    case.write("chain.yaml", &text)
}

/// Message `number`, of one of a hundred keys.
fn message(number: u64) -> (String, HeaderMap, Vec<u8>) {
    let key = format!("k-{}", number % 100);
    let mut headers = HeaderMap::new();
    headers.insert("Fluxmill-Key", key.as_str());
    (format!("in.{key}"), headers, format!("{number} {}", "x".repeat(100)).into_bytes())
}

fn numbers(messages: &[Message]) -> Vec<u64> {
    messages.iter().filter_map(|message| number(&message.payload)).collect()
}

fn number(payload: &[u8]) -> Option<u64> {
    std::str::from_utf8(payload).ok()?.split(' ').next()?.parse().ok()
}

/// A count of the last line, such as `received`.
fn counted(stderr: &str, name: &str) -> anyhow::Result<u64> {
    let line = stderr.lines().rfind(|line| line.contains(&format!("{name}="))).context("no counts")?;
    let text = line.split(&format!("{name}=")).nth(1).context("no count")?;
    Ok(text.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().parse()?)
}

fn subjects_go_through_a_function_to_subjects(case: &Case) -> anyhow::Result<()> {
    let function = format!("    function: {{ wasm: \"{}\" }}\n", guest("identity").display());
    let setup = Setup::new(case, OUT, &function)?;
    let mut listener = setup.core.listen("out.>")?;
    let run = setup.run_until_it_reads(case, &[])?;
    let mut headers = HeaderMap::new();
    headers.insert("trace", "abc");
    headers.insert("Fluxmill-Key", "a.b c");
    setup.core.publish([("in.first".to_owned(), headers, b"value".to_vec())])?;
    setup.core.publish((0..5_000).map(message))?;
    let came = listener.take(LIMIT, 5_001)?;
    let first = &came[0];
    ensure!(first.subject.as_str() == "out.a%2Eb%20c" && &*first.payload == b"value", "{first:?}");
    let header = |name| first.headers.as_ref().and_then(|headers| headers.get(name)).map(|value| value.as_str());
    ensure!(header("trace") == Some("abc") && header("subject") == Some("in.first"), "{first:?}");
    // The server would not know what to do with it.
    ensure!(header("Nats-Msg-Id").is_none(), "{first:?}");
    ensure!(numbers(&came[1..]) == (0..5_000).collect::<Vec<_>>(), "not in order");
    let ended = run.stop(LIMIT)?;
    ensure!(ended.stderr.matches(MAY_BE_LOST).count() == 1, "{}", ended.stderr);
    Ok(())
}

/// What the server had for this process when it was told to stop goes through.
fn a_stop_loses_nothing_that_had_come(case: &Case) -> anyhow::Result<()> {
    const EVENTS: u64 = 30_000;
    let setup = Setup::new(case, OUT, "    batch: { max_events: 10 }\n")?;
    let mut listener = setup.core.listen("out.>")?;
    let run = setup.run_until_it_reads(case, &[])?;
    setup.core.publish((0..EVENTS).map(message))?;
    run.stop(LIMIT)?;
    let found = numbers(&listener.rest()?);
    ensure!(found == (0..EVENTS).collect::<Vec<_>>(), "{} of {EVENTS} came", found.len());
    Ok(())
}

/// Each pipeline reads before the one in front of it begins, and until that has ended: whatever the first has confirmed
/// has come out of the last.
fn hops_between_pipelines_lose_nothing(case: &Case) -> anyhow::Result<()> {
    const ROUND: u64 = 10_000;
    const READS: [&str; 3] = ["reads b.> in queue group", "reads a.> in queue group", "reading stream IN"];
    let setup = Setup::new(case, OUT, "")?;
    let text = r#"
name: test
connections: { edge: { nats: { servers: ["${NATS}"] } } }
streams: { IN: { subjects: ["in.>"] }, OUT: { subjects: ["out.>"] } }
pipelines:
  first: { from: { nats: { stream: IN } }, to: { core_nats: { subject: "a.{key}" } }, batch: { max_events: 10 } }
  middle: { from: { core_nats: { subjects: ["a.>"] } }, to: { core_nats: { subject: "b.{key}" } } }
  last: { from: { core_nats: { subjects: ["b.>"] } }, to: { nats: { subject: "out.{key}" } } }
"#;
    std::fs::write(&setup.file, text)?;
    let jet = setup.nats.client()?;
    jet.create("IN", &["in.>"])?;
    for round in 0..3 {
        jet.publish((round * ROUND..(round + 1) * ROUND).map(message))?;
        let came = jet.count("OUT")?;
        let run = setup.run(case, &[], &[])?;
        // The first one has taken a lot more by then.
        jet.wait_for(LIMIT, "OUT", came + 100)?;
        let ended = run.stop(LIMIT)?;
        let begun: Vec<_> =
            ended.stderr.lines().filter_map(|line| READS.iter().find(|it| line.contains(**it))).collect();
        ensure!(begun == READS.iter().collect::<Vec<_>>(), "they began in the order {begun:?}");
        let (confirmed, came) = (jet.consumer("IN", "test-first")?.ack_floor.stream_sequence, jet.count("OUT")?);
        case.note(&format!("{confirmed} confirmed, {came} came out"));
        ensure!(came == confirmed, "{confirmed} confirmed, {came} came out");
    }
    let found: Vec<_> = jet.read("OUT")?.iter().filter_map(|stored| number(&stored.payload)).collect();
    ensure!(found.iter().copied().eq(0..found.len() as u64), "not each of them once, in order");
    Ok(())
}

fn what_does_not_end_in_time_is_told_to_be_lost(case: &Case) -> anyhow::Result<()> {
    let function = format!(
        "    function: {{ wasm: \"{}\", limits: {{ timeout: 5s }} }}\n    on_error: {{ retry: {{ attempts: 1 }}, then: drop }}\n",
        guest("faulty").display()
    );
    let setup = Setup::new(case, OUT, &function)?;
    let mut run = setup.run(case, &["--drain-timeout", "100ms"], &["ERROR", "WARN"])?;
    run.process().wait_for_line(LIMIT, "reads in.> in queue group")?;
    setup.core.publish([("in.a".to_owned(), HeaderMap::new(), b"loop".to_vec())])?;
    run.process().signal(Signal::Term)?;
    let ended = run.finish(LIMIT)?;
    ensure!(ended.code == Some(1), "exit code {:?}", ended.code);
    let told = "did not end within 100ms; its broker keeps nothing, and it is lost";
    ensure!(ended.stderr.contains(told), "{}", ended.stderr);
    Ok(())
}

/// What the second pipeline is not permitted to hear the first one does not take from its stream.
fn nobody_publishes_to_who_may_not_read(case: &Case) -> anyhow::Result<()> {
    let settings = "authorization { users: [ { user: admin, password: secret1 }, { user: app, password: secret2, \
                    permissions: { subscribe: { deny: \"a.>\" } } } ] }";
    let nats = Nats::start(settings)?;
    let admin = || ConnectOptions::with_user_and_password("admin".into(), "secret1".into());
    let jet = Jet::new(&nats.url(), admin())?;
    let text = r#"
name: test
connections: { edge: { nats: { servers: ["${NATS}"], user: app, password: secret2 } } }
pipelines:
  first: { from: { nats: { stream: IN } }, to: { core_nats: { subject: "a.{key}" } } }
  second: { from: { core_nats: { subjects: ["a.>"] } }, to: { core_nats: { subject: "b.{key}" } } }
"#;
    let file = case.write("chain.yaml", text)?;
    jet.create("IN", &["in.>"])?;
    jet.publish((0..1_000).map(message))?;
    let setup = Setup { core: Core::connect(&nats.url(), admin())?, file, nats };
    let ended = setup.run(case, &[], &["ERROR", "WARN"])?.finish(LIMIT)?;
    ensure!(ended.code == Some(1), "exit code {:?}", ended.code);
    ensure!(ended.stderr.contains("Permissions Violation for Subscription to \"a.>\""), "{}", ended.stderr);
    let first = ended.stderr.lines().find(|line| line.contains("ended") && line.contains("\"first\""));
    let taken = counted(first.context("no counts")?, "received")?;
    ensure!(taken == 0, "{taken} events were taken");
    Ok(())
}

/// What it would find out by a message to itself it learns from the refusal.
fn who_may_not_publish_to_itself_reads_all_the_same(case: &Case) -> anyhow::Result<()> {
    let permissions = "publish: { allow: \"out.>\" }, subscribe: { allow: [\"in.>\", \"_INBOX.>\"] }";
    let settings = format!(
        "authorization {{ users: [ {{ user: admin, password: secret1 }}, {{ user: app, password: secret2, permissions: {{ \
         {permissions} }} }} ] }}"
    );
    let nats = Nats::start(&settings)?;
    let options = ConnectOptions::with_user_and_password("admin".into(), "secret1".into());
    let core = Core::connect(&nats.url(), options)?;
    let to = "core_nats: { subject: \"out.{key}\" }";
    let setup = Setup { file: file(case, ", user: app, password: secret2", to, "")?, core, nats };
    let mut listener = setup.core.listen("out.>")?;
    let mut run = setup.run(case, &[], &[])?;
    run.process().wait_for_line(LIMIT, "reads in.> in queue group test-main")?;
    setup.core.publish((0..1_000).map(message))?;
    run.stop(LIMIT)?;
    ensure!(numbers(&listener.rest()?) == (0..1_000).collect::<Vec<_>>(), "not all of them came");
    Ok(())
}

fn members_of_a_queue_group_share(case: &Case) -> anyhow::Result<()> {
    const EVENTS: u64 = 20_000;
    let setup = Setup::new(case, OUT, "")?;
    let mut listener = setup.core.listen("out.>")?;
    let one = setup.run_until_it_reads(case, &[])?;
    let mut two = setup.run(case, &[], &[])?;
    two.process().wait_for_line(LIMIT, "reads in.> in queue group test-main")?;
    setup.core.publish((0..EVENTS).map(message))?;
    let mut found = numbers(&listener.take(LIMIT, EVENTS as usize)?);
    found.sort_unstable();
    ensure!(found == (0..EVENTS).collect::<Vec<_>>(), "not each of them once");
    for run in [one, two] {
        let received = counted(&run.stop(LIMIT)?.stderr, "received")?;
        ensure!(received > EVENTS / 10, "one of them received {received}");
    }
    ensure!(numbers(&listener.rest()?).is_empty(), "more came than was sent");
    Ok(())
}

fn what_comes_behind_an_outage_goes_on(case: &Case) -> anyhow::Result<()> {
    let mut setup = Setup::new(case, OUT, "")?;
    let run = setup.run_until_it_reads(case, &[OUTAGE])?;
    setup.nats.kill()?;
    setup.nats.restart()?;
    setup.core = Core::connect(&setup.nats.url(), ConnectOptions::new())?;
    let mut listener = setup.core.listen("out.>")?;
    setup.core.wait_for_reader(LIMIT, "in.probe")?;
    setup.core.publish((0..5_000).map(message))?;
    ensure!(numbers(&listener.take(LIMIT, 5_000)?) == (0..5_000).collect::<Vec<_>>(), "not in order");
    let ended = run.stop(LIMIT)?;
    ensure!(ended.stderr.contains("is reachable again"), "{}", ended.stderr);
    Ok(())
}

/// A function that hangs, and more than may wait for it: what is lost is counted, and nothing else is.
fn what_finds_no_room_is_lost_and_told(case: &Case) -> anyhow::Result<()> {
    const EVENTS: u64 = 300_000;
    const LOST: &str = "came faster than they are processed and are lost";
    let function = format!(
        "    function: {{ wasm: \"{}\", limits: {{ timeout: 5s }} }}\n    lanes: 1\n    batch: {{ max_events: 1000 }}\n    \
         on_error: {{ retry: {{ attempts: 1 }}, then: drop }}\n",
        guest("faulty").display()
    );
    let setup = Setup::new(case, OUT, &function)?;
    let run = setup.run_until_it_reads(case, &["events failed", LOST])?;
    setup.core.publish([("in.a".to_owned(), HeaderMap::new(), b"loop".to_vec())])?;
    setup.core.publish((0..EVENTS).map(message))?;
    let ended = run.stop(LIMIT)?;
    let told = ended.stderr.lines().rfind(|line| line.contains(LOST)).context("nothing is told of what was lost")?;
    let lost = told.split('(').nth(1).and_then(|text| text.split(' ').next()).context("no count")?.parse::<u64>()?;
    let received = counted(&ended.stderr, "received")?;
    case.note(&format!("{received} received, {lost} lost"));
    // The probes come on top: one at least.
    ensure!(lost > 0 && received + lost > EVENTS, "{received} received, {lost} lost, of {EVENTS}");
    ensure!(received + lost < EVENTS + 1_000, "{received} received, {lost} lost, of {EVENTS}");
    Ok(())
}

/// The numbers of what nothing keeps begin anew with each process; its messages must not be taken for those of before.
fn two_lives_do_not_share_ids(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(case, "nats: { subject: stored }", "")?;
    let text = std::fs::read_to_string(&setup.file)?;
    std::fs::write(
        &setup.file,
        format!("{text}streams: {{ STORED: {{ subjects: [stored], duplicate_window: 10m }} }}\n"),
    )?;
    let jet = setup.nats.client()?;
    for life in 0..2 {
        let run = setup.run_until_it_reads(case, &[])?;
        setup.core.publish((life * 100..life * 100 + 100).map(message))?;
        run.stop(LIMIT)?;
    }
    let stored = jet.read("STORED")?;
    let numbers: Vec<u64> = stored.iter().filter_map(|stored| number(&stored.payload)).collect();
    ensure!(numbers == (0..200).collect::<Vec<_>>(), "{numbers:?}");
    Ok(())
}

fn an_event_above_max_payload_fails_alone(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::with(case, "max_payload: 1KB", OUT, "    on_error: { then: drop }\n")?;
    let mut listener = setup.core.listen("out.>")?;
    let run = setup.run_until_it_reads(case, &["events failed"])?;
    // It gets headers on the way.
    let large = ("in.k-0".to_owned(), HeaderMap::new(), vec![b'x'; 1_020]);
    setup.core.publish([message(0), large, message(1)])?;
    ensure!(numbers(&listener.take(LIMIT, 2)?) == [0, 1], "not the others");
    let ended = run.stop(LIMIT)?;
    ensure!(counted(&ended.stderr, "discarded")? == 1, "{}", ended.stderr);
    ensure!(ended.stderr.contains("max_payload"), "{}", ended.stderr);
    Ok(())
}

fn what_is_not_permitted_ends_the_run(case: &Case) -> anyhow::Result<()> {
    for (what, deny) in [("subscription", "subscribe: { deny: \"in.>\" }"), ("publish", "publish: { deny: \"out.>\" }")]
    {
        let settings = format!(
            "authorization {{ users: [ {{ user: admin, password: secret1 }}, {{ user: app, password: secret2, permissions: \
             {{ {deny} }} }} ] }}"
        );
        let nats = Nats::start(&settings)?;
        let options = ConnectOptions::with_user_and_password("admin".into(), "secret1".into());
        let core = Core::connect(&nats.url(), options)?;
        let setup = Setup { file: file(case, ", user: app, password: secret2", OUT, "")?, core, nats };
        let mut run = setup.run(case, &[], &["ERROR", "WARN"])?;
        if what == "publish" {
            // The server says so when it was tried, and then nothing more can be published.
            setup.core.wait_for_reader(LIMIT, "in.probe")?;
            run.process().wait_for_line(LIMIT, "is not permitted: ")?;
            setup.core.publish([message(1)])?;
        }
        let ended = run.finish(LIMIT)?;
        ensure!(ended.code == Some(1), "exit code {:?}", ended.code);
        let told = format!("permissions violation for {what}");
        ensure!(ended.stderr.to_lowercase().contains(&told), "no `{told}` in {}", ended.stderr);
    }
    Ok(())
}

fn there_is_no_end_to_catch_up_with(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(case, OUT, "")?;
    let ended = setup.run(case, &["--until-caught-up"], &[])?.finish(LIMIT)?;
    let told = ended.stderr.contains("pipeline test/main reads core NATS, which keeps nothing");
    ensure!(ended.code == Some(2) && told, "exit code {:?}: {}", ended.code, ended.stderr);
    Ok(())
}
