//! `fluxmill dead-letter` on a real Kafka: what it tells of dead letters, and that a replay takes each once.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::ensure;
use support::chain::guest;
use support::client::{Received, Record};
use support::process::{Ended, Fluxmill};
use support::setup::{LIMIT, Setup};
use support::suite::{Case, Suite};
use support::wait::wait_until;

mod support;

fn main() -> ExitCode {
    let mut suite = Suite::default();
    suite.kafka("letters_are_listed_and_shown", letters_are_listed_and_shown);
    suite.kafka("a_replay_brings_each_event_back_once", a_replay_brings_each_event_back_once);
    suite.kafka("a_replay_that_is_killed_doubles_nothing", a_replay_that_is_killed_doubles_nothing);
    suite.kafka("letters_that_come_meanwhile_are_left", letters_that_come_meanwhile_are_left);
    suite.kafka("a_replay_through_a_mended_function", a_replay_through_a_mended_function);
    suite.kafka("a_function_can_be_tried_out", a_function_can_be_tried_out);
    suite.kafka("an_event_is_not_replayed_for_ever", an_event_is_not_replayed_for_ever);
    suite.kafka("what_cannot_be_done_is_said", what_cannot_be_done_is_said);
    suite.kafka("a_topic_that_is_gone_ends_the_run", a_topic_that_is_gone_ends_the_run);
    suite.kafka("a_topic_that_is_gone_is_waited_for", a_topic_that_is_gone_is_waited_for);
    suite.kafka("a_transaction_waits_for_a_topic_that_is_gone", a_transaction_waits_for_a_topic_that_is_gone);
    suite.run()
}

/// Parts of WARN lines that do no harm: a replay that finds nothing to do may end before it has joined its group, and
/// librdkafka leaves only then.
const EXPECTED: [&str; 2] = ["events failed", "did not take the leave"];

/// Event `number`: every tenth is rejected, every hundredth makes the function trap.
fn event(number: u64) -> Record {
    let word = match (number % 100, number % 10) {
        (7, _) => "trap",
        (_, 3) => "reject",
        _ => "pass",
    };
    Record {
        key: Some(format!("k-{}", number % 20).into_bytes()),
        value: Some(format!("{word} {number}").into_bytes()),
        headers: vec![("tag".to_owned(), Some(number.to_string().into_bytes()))],
        timestamp: Some(1_700_000_000_000 + i64::try_from(number).unwrap_or(0)),
        ..Record::default()
    }
}

/// A pipeline that has given events up, of so many.
struct Letters {
    setup: Setup,
    file: String,
}

impl Letters {
    fn of(case: &Case, events: u64) -> anyhow::Result<Self> {
        let setup = Setup::shared(case, 3, Some("faulty"))?;
        let file = case.write("chain.yaml", &setup.chain.yaml())?;
        setup.client.produce(&setup.chain.from, (0..events).map(event))?;
        setup.catch_up(case, &file, &["events failed"])?;
        Ok(Self { setup, file: file.display().to_string() })
    }

    fn start(&self, case: &Case, args: &[&str]) -> anyhow::Result<Fluxmill> {
        let [command, more @ ..] = args else { anyhow::bail!("no command") };
        let args = ["dead-letter", command, &self.file].into_iter().chain(more.iter().copied());
        case.start(args, &self.setup.brokers, &EXPECTED)
    }

    fn run(&self, case: &Case, args: &[&str]) -> anyhow::Result<Ended> {
        self.start(case, args)?.finish_well(LIMIT)
    }

    /// How many lines a list has.
    fn listed(&self, case: &Case, args: &[&str]) -> anyhow::Result<usize> {
        let args: Vec<_> = ["list"].into_iter().chain(args.iter().copied()).collect();
        Ok(self.run(case, &args)?.stdout.lines().count())
    }

    fn input(&self) -> anyhow::Result<Vec<Received>> {
        self.setup.client.read(&self.setup.chain.from)
    }
}

/// How often each value occurs.
fn counted(events: &[Received]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for event in events {
        let value = String::from_utf8_lossy(event.value.as_deref().unwrap_or_default()).into_owned();
        *counts.entry(value).or_default() += 1;
    }
    counts
}

fn letters_are_listed_and_shown(case: &Case) -> anyhow::Result<()> {
    let letters = Letters::of(case, 200)?;
    ensure!(letters.listed(case, &[])? == 22, "twenty were rejected and two trapped");
    let since = "2023-11-14T22:13:20.100Z";
    for (args, count) in [
        (vec!["--kind", "trap"], 2),
        (vec!["--kind", "reject", "--reason", "ASKED to"], 20),
        (vec!["--reason", "no such reason"], 0),
        (vec!["--key", "k-13"], 10),
        (vec!["--since", since], 11),
        (vec!["--until", since], 11),
        (vec!["--limit", "5"], 5),
        (vec!["--pipeline", "main"], 22),
    ] {
        let listed = letters.listed(case, &args)?;
        ensure!(listed == count, "{args:?}: {listed} instead of {count}");
    }
    let list = letters.run(case, &["list", "--kind", "trap", "--json", "--limit", "1"])?;
    let letter: serde_json::Value = serde_json::from_str(&list.stdout)?;
    ensure!(letter["pipeline"] == "main" && letter["kind"] == "trap" && letter["key"] == "k-7", "{letter}");
    let at = format!("{}@{}", letter["partition"], letter["offset"]);
    ensure!(letters.listed(case, &["--at", &at])? == 1, "{at}");

    let shown = letters.run(case, &["show", &at])?.stdout;
    let value = letters.run(case, &["show", &at, "--value"])?.stdout;
    ensure!(value.trim_end() == "trap 7" || value.trim_end() == "trap 107", "{value}");
    let from = &letters.setup.chain.from;
    for part in
        ["kind       trap", "key        k-7", "header     tag: ", value.trim_end(), &format!("event      {from} ")]
    {
        ensure!(shown.contains(part), "no {part:?} in\n{shown}");
    }
    ensure!(!shown.contains("header     fluxmill"), "the headers of the letter are no headers of the event:\n{shown}");
    Ok(())
}

fn a_replay_brings_each_event_back_once(case: &Case) -> anyhow::Result<()> {
    let letters = Letters::of(case, 200)?;
    let before = letters.input()?.len();
    let planned = letters.run(case, &["replay", "--kind", "reject", "--dry-run"])?;
    ensure!(planned.stdout.lines().count() == 20, "{}", planned.stdout);
    ensure!(letters.input()?.len() == before, "a dry run replays nothing");
    let replayed = letters.run(case, &["replay", "--kind", "reject"])?.stdout;
    let from = &letters.setup.chain.from;
    ensure!(replayed.contains(&format!("20 events published to {from}\n2 events not asked for\n")), "{replayed}");

    let input = letters.input()?;
    let back: Vec<_> = input.iter().filter(|event| event.header("fluxmill-replays").is_ok()).collect();
    ensure!(back.len() == 20 && input.len() == before + 20, "{} of {}", back.len(), input.len());
    for event in back {
        let first = input.iter().find(|first| first.value == event.value).map(|first| (&first.key, first.timestamp));
        ensure!(first == Some((&event.key, event.timestamp)), "{event:?}");
        ensure!(event.headers.len() == 2 && event.header("tag").is_ok(), "{event:?}");
        ensure!(event.header("fluxmill-replays")? == "1", "{event:?}");
    }

    let again = letters.run(case, &["replay", "--kind", "reject"])?.stdout;
    ensure!(again.contains("no letters that this command has not taken before"), "{again}");
    ensure!(letters.run(case, &["replay", "--kind", "reject", "--dry-run"])?.stdout.is_empty(), "nothing is left");
    // What one way of replaying has taken says nothing about another.
    letters.run(case, &["replay", "--kind", "trap"])?;
    ensure!(letters.input()?.len() == before + 22);
    letters.run(case, &["replay", "--kind", "reject", "--again", "2"])?;
    ensure!(letters.input()?.len() == before + 42);
    Ok(())
}

/// Killed again and again in the middle, begun again until it ends: readers of committed events see each event once.
fn a_replay_that_is_killed_doubles_nothing(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::shared(case, 3, Some("faulty"))?;
    let file = case.write("chain.yaml", &setup.chain.yaml())?;
    let events = 200_000_u64;
    let broken = |number| Record { value: Some(format!("reject {number}").into_bytes()), ..event(number) };
    setup.client.produce(&setup.chain.from, (0..events).map(broken))?;
    setup.catch_up(case, &file, &["events failed"])?;
    let letters = Letters { setup, file: file.display().to_string() };
    let topic = &letters.setup.chain.from;
    let mut kills = 0;
    for _ in 0..10 {
        let before = letters.setup.client.count(&[topic])?;
        let mut replay = letters.start(case, &["replay"])?;
        let more = wait_until(LIMIT, "a replay that does something", || {
            let ended = replay.process().ended()?.is_some();
            Ok((ended || letters.setup.client.count(&[topic])? > before + 2_000).then_some(!ended))
        })?;
        // One that ends at this very moment was not killed in the middle.
        if !more || replay.kill().is_err() {
            break;
        }
        kills += 1;
    }
    letters.run(case, &["replay"])?;
    let counts = counted(&letters.input()?);
    // Without transactions some come back more than once.
    let once = case.kafka_client().line().is_none();
    let is_wrong = |count: usize| if once { count != 2 } else { count < 2 };
    let wrong: Vec<_> = counts.iter().filter(|(_, count)| is_wrong(**count)).take(5).collect();
    case.note(&format!("{kills} kills, {} events", counts.len()));
    ensure!(kills > 0 && counts.len() as u64 == events && wrong.is_empty(), "{kills} kills, wrong: {wrong:?}");
    Ok(())
}

/// Letters that a replay makes itself are behind the end that it has noted, whatever the partitions' lengths.
fn letters_that_come_meanwhile_are_left(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::shared(case, 3, Some("faulty"))?;
    let file = case.write("chain.yaml", &setup.chain.yaml())?;
    // Nearly all of one key, and so in one partition.
    let broken = |number: u64| Record {
        key: Some(if number.is_multiple_of(50) { number.to_string() } else { "most".to_owned() }.into_bytes()),
        value: Some(format!("reject {number}").into_bytes()),
        ..event(number)
    };
    let events = 60_000;
    setup.client.produce(&setup.chain.from, (0..events).map(broken))?;
    setup.catch_up(case, &file, &["events failed"])?;
    let letters = Letters { setup, file: file.display().to_string() };
    for _ in 0..2 {
        let said = letters.run(case, &["replay", "--through"])?.stdout;
        ensure!(said.contains(&format!("{events} events failed again")), "{said}");
    }
    let replayed = letters.run(case, &["list", "--json"])?.stdout;
    let (mut once, mut twice) = (0, 0);
    for line in replayed.lines() {
        let letter: serde_json::Value = serde_json::from_str(line)?;
        once += u64::from(letter["replays"] == 1);
        twice += u64::from(letter["replays"] == 2);
    }
    ensure!((once, twice) == (events, events), "{once} and {twice} of {events}");
    Ok(())
}

fn a_replay_through_a_mended_function(case: &Case) -> anyhow::Result<()> {
    let letters = Letters::of(case, 200)?;
    let output = letters.setup.client.count(&[&letters.setup.chain.to])?;
    // Not mended: they are dead letters again, which still tell where the event came from.
    let again = letters.run(case, &["replay", "--kind", "reject", "--through"])?.stdout;
    ensure!(again.contains("20 events failed again, and are dead letters again"), "{again}");
    ensure!(letters.listed(case, &["--kind", "reject"])? == 40);
    let list = letters.run(case, &["list", "--kind", "reject", "--json"])?.stdout;
    let told: Vec<serde_json::Value> = list.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(told.iter().all(|letter| letter["source"]["topic"] == *letters.setup.chain.from), "{list}");
    ensure!(told.iter().filter(|letter| letter["replays"] == 1).count() == 20, "{list}");

    let mended = format!("--through={}", guest("identity").display());
    let run = letters.run(case, &["replay", "--kind", "trap", &mended])?.stdout;
    ensure!(run.contains(&format!("2 events published to {}", letters.setup.chain.to)), "{run}");
    let events = letters.setup.client.read(&letters.setup.chain.to)?;
    ensure!(events.len() as i64 >= output + 2, "{}", events.len());
    let trapped = events.iter().filter(|event| event.value.as_deref().is_some_and(|value| value.starts_with(b"trap")));
    ensure!(
        trapped.clone().count() == 2 && trapped.clone().all(|event| event.headers.len() == 2),
        "{:?}",
        trapped.collect::<Vec<_>>()
    );
    Ok(())
}

fn a_function_can_be_tried_out(case: &Case) -> anyhow::Result<()> {
    let letters = Letters::of(case, 100)?;
    let scratch = case.topic("scratch");
    letters.setup.client.create_topic(&scratch, 1, &[])?;
    let dead = letters.listed(case, &[])?;
    let tried = letters.run(case, &["replay", "--through", "--to", &scratch])?.stdout;
    ensure!(tried.contains("11 events failed"), "{tried}");
    ensure!(letters.listed(case, &[])? == dead, "what fails while it is tried out is no new letter");
    let mended = format!("--through={}", guest("identity").display());
    letters.run(case, &["replay", "--again", "mended", &mended, "--to", &scratch])?;
    ensure!(letters.setup.client.read(&scratch)?.len() == 11);
    Ok(())
}

fn an_event_is_not_replayed_for_ever(case: &Case) -> anyhow::Result<()> {
    let letters = Letters::of(case, 10)?;
    for time in 1..=3 {
        let run = letters.run(case, &["replay", "--kind", "reject", "--through", "--max-replays", "2"])?.stdout;
        let expected = if time < 3 { "1 event failed again" } else { "left: replayed too often already" };
        ensure!(run.contains(expected), "{time}: {run}");
    }
    ensure!(letters.listed(case, &["--kind", "reject"])? == 3);
    Ok(())
}

fn what_cannot_be_done_is_said(case: &Case) -> anyhow::Result<()> {
    let letters = Letters::of(case, 10)?;
    let loops = letters.setup.chain.dead.clone();
    for (args, code, said) in [
        (vec!["list", "--pipeline", "other"], 2, "has no pipeline other; it has main"),
        (vec!["list", "--at", "17"], 2, "write partition and offset, such as 0@17"),
        (vec!["show", "0@99999"], 1, "there is no dead letter at 0@99999"),
        (vec!["show", "99@0"], 1, "there is no dead letter at 99@0"),
        (vec!["replay", "--max-replays", "0"], 2, "0"),
        (vec!["replay", "--to", "no-such-topic"], 1, "find topic no-such-topic: it does not exist"),
        (vec!["replay", "--to", &loops], 1, "--until-caught-up cannot end on a loop"),
        (vec!["replay", "--through=no-such.wasm"], 1, "no-such.wasm"),
        (vec!["list", "--kind", "rejected"], 2, "possible values: reject, attempts"),
        (vec!["list", "--at", "0@-1"], 2, "write partition and offset, such as 0@17"),
    ] {
        let ended = letters.start(case, &args)?.finish(LIMIT)?;
        ensure!(
            ended.code == Some(code) && ended.stderr.contains(said),
            "{args:?}: {:?}\n{}",
            ended.code,
            ended.stderr
        );
    }
    let stops = letters.setup.chain.yaml().replace("then: { dead_letter", "then: stop #");
    let file = case.write("stops.yaml", &stops)?.display().to_string();
    let ended = case.start(["dead-letter", "list", &file], &letters.setup.brokers, &[])?.finish(LIMIT)?;
    ensure!(ended.code == Some(2) && ended.stderr.contains("has no dead letters"), "{}", ended.stderr);
    Ok(())
}

/// Less than a transaction that nobody ends stays open.
const UNDONE: Duration = Duration::from_secs(30);
/// What a run says whose dead letters have no topic.
const GONE: &str = "and its dead letter cannot be published";

/// A run whose dead letters have lost their topic, and has met more events since: of 20, the 3rd, 7th and 13th fail.
fn without_letters(case: &Case, setup: &Setup, yaml: &str) -> anyhow::Result<Fluxmill> {
    let file = case.write("chain.yaml", yaml)?;
    let run = setup.run(case, &file, &["events failed", GONE, "UNKNOWN_TOPIC_OR_PARTITION (3); asked again"])?;
    setup.client.produce(&setup.chain.from, (0..10).map(event))?;
    setup.wait_for_commits()?;
    setup.client.delete_topic(&setup.chain.dead)?;
    // Its leader may take events for a moment longer.
    wait_until(LIMIT, "the topic to be gone", || {
        Ok((!setup.client.topics()?.contains(&setup.chain.dead)).then_some(()))
    })?;
    setup.client.produce(&setup.chain.from, (10..20).map(event))?;
    Ok(run)
}

fn a_topic_that_is_gone_ends_the_run(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::shared(case, 1, Some("faulty"))?;
    let ended = without_letters(case, &setup, &setup.chain.yaml())?.finish(LIMIT)?;
    ensure!(ended.code == Some(1), "{:?}", ended.code);
    ensure!(ended.stderr.contains(GONE) && ended.stderr.contains(&setup.chain.dead), "{}", ended.stderr);
    let confirmed = setup.client.committed(&setup.chain.from, &setup.chain.from)?;
    ensure!(confirmed[&0] <= 13, "the event at 13 has no dead letter: {confirmed:?}");
    Ok(())
}

fn a_topic_that_is_gone_is_waited_for(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::shared(case, 1, Some("faulty"))?;
    ensure_waits(case, &setup)?;
    let out = counted(&setup.client.read(&setup.chain.to)?);
    ensure!(out.len() == 17, "{out:?}");
    Ok(())
}

fn a_transaction_waits_for_a_topic_that_is_gone(case: &Case) -> anyhow::Result<()> {
    let mut setup = Setup::shared(case, 1, Some("faulty"))?;
    // Whichever client is asked for: transactions are this one's.
    setup.chain.client = Some("client: columnar".to_owned());
    // Two lanes: the one that lacks no letter learns of it too.
    setup.chain.pipeline.extend(["delivery: exactly_once", "order: key", "lanes: 2"].map(str::to_owned));
    ensure_waits(case, &setup)?;
    let out = counted(&setup.client.read(&setup.chain.to)?);
    ensure!(out.len() == 17 && out.values().all(|times| *times == 1), "{out:?}");
    let dead = counted(&setup.client.read(&setup.chain.dead)?);
    ensure!(dead.values().all(|times| *times == 1), "{dead:?}");
    Ok(())
}

/// A run waits for the topic of its dead letters, confirms nothing meanwhile that needs one, and goes on when it is
/// there again.
fn ensure_waits(case: &Case, setup: &Setup) -> anyhow::Result<()> {
    let yaml = setup.chain.yaml().replace("} } }\n", "} }, when_missing: wait }\n");
    let mut run = without_letters(case, setup, &yaml)?;
    run.process().wait_for_line(LIMIT, "waits until the topic is there again")?;
    // Whoever reads committed events is not held up meanwhile: what was undone is out of the way.
    let since = Instant::now();
    setup.client.read(&setup.chain.to)?;
    ensure!(since.elapsed() < UNDONE, "an open transaction held readers up for {:?}", since.elapsed());
    let confirmed = setup.client.committed(&setup.chain.from, &setup.chain.from)?;
    ensure!(confirmed[&0] <= 13, "the event at 13 has no dead letter: {confirmed:?}");
    setup.client.create_topic(&setup.chain.dead, 1, &[])?;
    setup.wait_for_commits()?;
    run.stop(LIMIT)?;
    let dead = counted(&setup.client.read(&setup.chain.dead)?);
    ensure!(dead.keys().eq(["reject 13"].iter()), "{dead:?}");
    Ok(())
}
