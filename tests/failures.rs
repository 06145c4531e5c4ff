//! What goes wrong while a chain runs, on a real Kafka, through the binary: brokers, topics and permissions that are
//! not there, events that are too large, functions that fail. Each is a clear message and the documented exit code or
//! a dead letter with its reason; nothing is lost.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use support::chain::{Chain, guest};
use support::checker::compare;
use support::client::{Client, Received, Record};
use support::kafka::{ADMIN, GUEST, Kafka, PASSWORD, free_ports};
use support::process::{Ended, Fluxmill, Signal};
use support::suite::{Case, Suite};
use support::workload::{numbered, received, sent};

mod support;

/// The longest that a part of a test may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(90);
/// Parts of the WARN and ERROR lines of a run that ends with exit code 1.
const FAILED: [&str; 1] = ["ERROR"];

fn main() -> ExitCode {
    let mut suite = Suite::default();
    suite.kafka("an_unreachable_broker_is_named", an_unreachable_broker_is_named);
    suite.kafka("a_missing_topic_is_named", a_missing_topic_is_named);
    suite.kafka("a_topic_without_permission_is_named", a_topic_without_permission_is_named);
    suite.kafka(
        "an_output_that_may_not_be_written_confirms_nothing",
        an_output_that_may_not_be_written_confirms_nothing,
    );
    suite.kafka("tls_and_sasl_are_passed_on", tls_and_sasl_are_passed_on);
    suite.kafka("a_wrong_password_ends_the_run", a_wrong_password_ends_the_run);
    suite.kafka(
        "an_event_above_the_topics_limit_becomes_a_dead_letter",
        an_event_above_the_topics_limit_becomes_a_dead_letter,
    );
    suite.kafka(
        "an_event_above_the_brokers_limit_becomes_a_dead_letter",
        an_event_above_the_brokers_limit_becomes_a_dead_letter,
    );
    suite.kafka("a_dead_letter_above_the_limit_stops_the_run", a_dead_letter_above_the_limit_stops_the_run);
    suite.kafka("poison_events_become_dead_letters_alone", poison_events_become_dead_letters_alone);
    suite.kafka("on_error_stop_confirms_nothing_behind_the_event", on_error_stop_confirms_nothing_behind_the_event);
    suite.kafka("damaged_compiled_code_is_made_again", damaged_compiled_code_is_made_again);
    suite.kafka(
        "a_function_that_hangs_ends_with_the_drain_deadline",
        a_function_that_hangs_ends_with_the_drain_deadline,
    );
    suite.kafka("a_second_signal_ends_at_once", a_second_signal_ends_at_once);
    suite.run()
}

/// A test's topics, one partition each unless said otherwise, and its pipeline file.
struct Setup {
    chain: Chain,
    client: Client,
    brokers: String,
}

impl Setup {
    fn new(case: &Case, kafka: &Kafka, limits: [&[(&str, &str)]; 3], wasm: Option<PathBuf>) -> anyhow::Result<Self> {
        let names = ["in", "out", "dead"].map(|name| case.topic(name));
        let client = Client::new(&kafka.brokers());
        for (topic, settings) in names.iter().zip(limits) {
            client.create_topic(topic, 1, settings)?;
        }
        let [from, to, dead] = names;
        let client_line = case.kafka_client().line();
        let chain = Chain { from, to, dead, wasm, client: client_line, ..Chain::default() };
        Ok(Self { chain, client, brokers: kafka.brokers() })
    }

    fn shared(case: &Case, wasm: Option<PathBuf>) -> anyhow::Result<Self> {
        Self::new(case, &*case.kafka()?, [&[]; 3], wasm)
    }

    fn produce(&self, events: u64) -> anyhow::Result<()> {
        self.client.produce(&self.chain.from, (0..events).map(|number| numbered(number, 10)))
    }

    fn file(&self, case: &Case) -> anyhow::Result<PathBuf> {
        case.write("chain.yaml", &self.chain.yaml())
    }

    /// Runs until everything is done, which must be with exit code 0.
    fn catch_up(&self, case: &Case, expected: &[&str]) -> anyhow::Result<Ended> {
        case.run(&self.file(case)?, &self.brokers, &["--until-caught-up"], expected)?.finish_well(LIMIT)
    }

    /// Runs to an end that must be with exit code 1.
    fn fail(&self, case: &Case, expected: &[&str]) -> anyhow::Result<Ended> {
        let ended = case.run(&self.file(case)?, &self.brokers, &["--until-caught-up"], expected)?.finish(LIMIT)?;
        ensure!(ended.code == Some(1), "exit code {:?}, signal {:?} instead of 1", ended.code, ended.signal);
        Ok(ended)
    }

    /// What the group has confirmed of the input's one partition.
    fn confirmed(&self) -> anyhow::Result<i64> {
        Ok(self.client.committed(&self.chain.from, &self.chain.from)?.get(&0).copied().unwrap_or(0))
    }

    fn read_output(&self) -> anyhow::Result<Vec<Received>> {
        self.client.read(&self.chain.to)
    }

    fn read_dead(&self) -> anyhow::Result<Vec<Received>> {
        self.client.read(&self.chain.dead)
    }
}

/// The message must have each of these parts, in whatever case.
fn ensure_says(ended: &Ended, parts: &[&str]) -> anyhow::Result<()> {
    let text = ended.stderr.to_lowercase();
    for part in parts {
        ensure!(text.contains(&part.to_lowercase()), "the message does not say `{part}`:\n{}", ended.stderr);
    }
    Ok(())
}

fn an_unreachable_broker_is_named(case: &Case) -> anyhow::Result<()> {
    let [port] = free_ports()?;
    let address = format!("127.0.0.1:{port}");
    let [from, to, dead] = ["in", "out", "dead"].map(|name| case.topic(name));
    let chain = Chain { from, to, dead, client: case.kafka_client().line(), ..Chain::default() };
    let file = case.write("chain.yaml", &chain.yaml())?;
    let ended = case.run(&file, &address, &[], &["WARN", "ERROR"])?.finish(LIMIT)?;
    ensure!(ended.code == Some(1), "exit code {:?}", ended.code);
    ensure_says(&ended, &["error", &address])
}

fn a_missing_topic_is_named(case: &Case) -> anyhow::Result<()> {
    let mut setup = Setup::shared(case, None)?;
    setup.produce(10)?;
    for missing in ["from", "to", "dead"] {
        let mut chain = setup.chain.clone();
        let name = case.topic(&format!("no-such-{missing}"));
        match missing {
            "from" => chain.from = name.clone(),
            "to" => chain.to = name.clone(),
            _ => chain.dead = name.clone(),
        }
        let whole = std::mem::replace(&mut setup.chain, chain);
        let ended = setup.fail(case, &FAILED)?;
        setup.chain = whole;
        ensure_says(&ended, &["error", &name, "topics:"])?;
    }
    ensure!(setup.read_output()?.is_empty() && setup.confirmed()? == 0, "something ran");
    Ok(())
}

fn sasl(mechanism: &str, user: &str, password: &str) -> Vec<String> {
    vec![format!("sasl: {{ mechanism: {mechanism}, username: {user}, password: {password} }}")]
}

fn a_topic_without_permission_is_named(case: &Case) -> anyhow::Result<()> {
    let kafka = case.secure_kafka()?;
    let mut setup = Setup::new(case, &kafka, [&[]; 3], None)?;
    setup.produce(10)?;
    setup.brokers = kafka.sasl_brokers();
    setup.chain.connection = sasl("PLAIN", GUEST, PASSWORD);
    let ended = setup.fail(case, &FAILED)?;
    ensure_says(&ended, &[&setup.chain.from, "authoriz"])?;
    ensure!(setup.client.count(&[&setup.chain.to, &setup.chain.dead])? == 0, "something ran");
    Ok(())
}

fn an_output_that_may_not_be_written_confirms_nothing(case: &Case) -> anyhow::Result<()> {
    let kafka = case.secure_kafka()?;
    let mut setup = Setup::new(case, &kafka, [&[]; 3], None)?;
    setup.produce(10)?;
    let Chain { from, to, dead, .. } = &setup.chain;
    kafka.allow("Read", ["--topic", from])?;
    kafka.allow("Read", ["--group", from])?;
    kafka.allow("Describe", ["--topic", to])?;
    kafka.allow("Describe", ["--topic", dead])?;
    setup.brokers = kafka.sasl_brokers();
    setup.chain.connection = sasl("SCRAM-SHA-512", GUEST, PASSWORD);
    let ended = setup.fail(case, &["WARN", "ERROR"])?;
    ensure_says(&ended, &["authoriz"])?;
    ensure!(setup.confirmed()? == 0, "{} confirmed", setup.confirmed()?);
    ensure!(setup.client.count(&[&setup.chain.to, &setup.chain.dead])? == 0, "something was published");
    Ok(())
}

fn tls_and_sasl_are_passed_on(case: &Case) -> anyhow::Result<()> {
    let kafka = case.secure_kafka()?;
    let mut setup = Setup::new(case, &kafka, [&[]; 3], None)?;
    let tls = vec![format!("tls: {{ ca: {} }}", kafka.certificate().display())];
    let ways = [
        (kafka.tls_brokers(), tls),
        (kafka.sasl_brokers(), sasl("PLAIN", ADMIN, PASSWORD)),
        (kafka.sasl_brokers(), sasl("SCRAM-SHA-256", ADMIN, PASSWORD)),
        (kafka.sasl_brokers(), sasl("SCRAM-SHA-512", ADMIN, PASSWORD)),
    ];
    for (round, (brokers, connection)) in ways.into_iter().enumerate() {
        setup.produce(100)?;
        setup.brokers = brokers;
        setup.chain.connection = connection;
        setup.catch_up(case, &[])?;
        let events = setup.read_output()?.len();
        ensure!(events == 100 * (round + 1), "{events} events after round {round}: {:?}", setup.chain.connection);
    }
    Ok(())
}

fn a_wrong_password_ends_the_run(case: &Case) -> anyhow::Result<()> {
    let kafka = case.secure_kafka()?;
    let mut setup = Setup::new(case, &kafka, [&[]; 3], None)?;
    setup.brokers = kafka.sasl_brokers();
    setup.chain.connection = sasl("SCRAM-SHA-256", ADMIN, "wrong-password-of-this-test");
    let ended = setup.fail(case, &["WARN", "ERROR"])?;
    ensure_says(&ended, &["authentication"])?;
    ensure!(!ended.stderr.contains("wrong-password-of-this-test"), "the password is in the log:\n{}", ended.stderr);
    Ok(())
}

/// Nine small events, and in their middle one that only the input takes.
fn with_a_large_one(setup: &Setup, bytes: usize) -> anyhow::Result<Record> {
    let large = Record { value: Some(vec![b'x'; bytes]), ..numbered(4, 10) };
    let records = (0..10).map(|number| if number == 4 { large.clone() } else { numbered(number, 10) });
    setup.client.produce(&setup.chain.from, records)?;
    Ok(large)
}

/// A topic that takes no event of 20,000 bytes.
const SMALL: &[(&str, &str)] = &[("max.message.bytes", "10000")];
/// A topic that takes events of 2 MB; others take about 1 MB.
const LARGE: &[(&str, &str)] = &[("max.message.bytes", "4000000")];

/// A topic with a limit of its own refuses whole batches, so the client's are made smaller than that limit.
fn an_event_above_the_topics_limit_becomes_a_dead_letter(case: &Case) -> anyhow::Result<()> {
    let mut setup = Setup::new(case, &*case.kafka()?, [&[], SMALL, &[]], None)?;
    setup.chain.properties = vec!["batch.size: \"5000\""];
    let large = with_a_large_one(&setup, 20_000)?;
    ensure_large_is_dead(case, &setup, &large)
}

/// With the broker's own limits nothing is to be set but what lets the client send such an event at all.
fn an_event_above_the_brokers_limit_becomes_a_dead_letter(case: &Case) -> anyhow::Result<()> {
    let mut setup = Setup::new(case, &*case.kafka()?, [LARGE, &[], LARGE], None)?;
    setup.chain.properties = vec!["message.max.bytes: \"4000000\""];
    let large = with_a_large_one(&setup, 2_000_000)?;
    ensure_large_is_dead(case, &setup, &large)
}

/// The large event is the only dead letter, with its reason; the others came through.
fn ensure_large_is_dead(case: &Case, setup: &Setup, large: &Record) -> anyhow::Result<()> {
    setup.catch_up(case, &["kind=\"publish\""])?;
    ensure_all_but(setup, &[4], 10)?;
    let dead = setup.read_dead()?;
    ensure!(dead.len() == 1 && dead[0].value == large.value && dead[0].key == large.key, "{} dead letters", dead.len());
    ensure_header(&dead[0], "fluxmill-error-kind", "publish")?;
    ensure_header(&dead[0], "fluxmill-source-offset", "4")?;
    let reason = dead[0].header("fluxmill-reason")?;
    ensure!(reason.contains(&setup.chain.to) && reason.contains("max.message.bytes"), "reason {reason}");
    ensure!(setup.confirmed()? == 10, "{} confirmed", setup.confirmed()?);
    Ok(())
}

fn a_dead_letter_above_the_limit_stops_the_run(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::new(case, &*case.kafka()?, [&[], SMALL, SMALL], None)?;
    with_a_large_one(&setup, 20_000)?;
    let ended = setup.fail(case, &["WARN", "ERROR"])?;
    ensure_says(&ended, &[&setup.chain.dead])?;
    ensure!(setup.confirmed()? <= 4, "{} confirmed, the event that ended nowhere too", setup.confirmed()?);
    Ok(())
}

/// What tests/guests/faulty does with an event whose value begins with the word, and what its dead letter says.
const FAULTS: [(&str, &str, &str); 6] = [
    ("trap", "trap", "1"),
    ("loop", "timeout", "1"),
    ("memory", "memory", "1"),
    ("output", "output", "1"),
    ("reject", "reject", "1"),
    ("retry", "attempts", "2"),
];

/// Ten thousand events with a few poison ones far apart: each ends alone, the others once and in order.
fn poison_events_become_dead_letters_alone(case: &Case) -> anyhow::Result<()> {
    const EVENTS: u64 = 10_000;
    let mut setup = Setup::shared(case, Some(guest("faulty")))?;
    setup.chain.function = vec!["limits: { timeout: 300ms, memory: 32MiB, output: 4MiB }".to_owned()];
    let mut poison = BTreeMap::new();
    for (at, (word, kind, attempts)) in (0_u64..).zip(FAULTS) {
        poison.insert(700 + at * 1_511, (word, kind, attempts));
    }
    let event = |number: u64| {
        let mut record = numbered(number, 10);
        if let Some((word, ..)) = poison.get(&number) {
            record.value = Some(format!("{word} {number}").into_bytes());
            record.headers = vec![("own".to_owned(), Some(b"1".to_vec())), ("own".to_owned(), None)];
            record.timestamp = Some(1_700_000_000_000);
        }
        record
    };
    setup.client.produce(&setup.chain.from, (0..EVENTS).map(event))?;
    setup.catch_up(case, &["WARN"])?;

    ensure_all_but(&setup, &poison.keys().copied().collect::<Vec<_>>(), EVENTS)?;
    let dead = setup.read_dead()?;
    ensure!(dead.len() == poison.len(), "{} dead letters instead of {}", dead.len(), poison.len());
    for (letter, (number, (_, kind, attempts))) in dead.iter().zip(&poison) {
        ensure_letter(&setup, letter, &event(*number), *number, (kind, attempts))?;
    }
    ensure!(setup.confirmed()? == i64::try_from(EVENTS)?, "{} confirmed", setup.confirmed()?);
    Ok(())
}

/// A dead letter is its event as it was, and behind the event's own headers everything that design promises.
fn ensure_letter(
    setup: &Setup,
    letter: &Received,
    event: &Record,
    number: u64,
    (kind, attempts): (&str, &str),
) -> anyhow::Result<()> {
    ensure!(letter.key == event.key && letter.value == event.value, "{letter:?} was {event:?}");
    ensure!(letter.timestamp == event.timestamp, "{letter:?} was at {:?}", event.timestamp);
    let own: Vec<_> = event.headers.iter().map(|(name, value)| (name.clone().into_bytes(), value.clone())).collect();
    ensure!(letter.headers.starts_with(&own), "its own headers come first: {letter:?}");
    for (name, value) in [
        ("fluxmill-pipeline", "main"),
        ("fluxmill-source-topic", &setup.chain.from),
        ("fluxmill-source-partition", "0"),
        ("fluxmill-source-offset", &number.to_string()),
        ("fluxmill-source-timestamp", &event.timestamp.unwrap_or(0).to_string()),
        ("fluxmill-attempts", attempts),
        ("fluxmill-error-kind", kind),
    ] {
        ensure_header(letter, name, value)?;
    }
    ensure!(!letter.header("fluxmill-reason")?.is_empty(), "no reason: {letter:?}");
    let digest = letter.header("fluxmill-function-digest")?;
    let hex = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    ensure!(hex, "the digest is `{digest}`");
    Ok(())
}

fn ensure_header(event: &Received, name: &str, value: &str) -> anyhow::Result<()> {
    let found = event.header(name).with_context(|| format!("{event:?}"))?;
    ensure!(found == value, "{name} is `{found}` instead of `{value}`: {event:?}");
    Ok(())
}

/// The output has each of the first `events` numbered events but these, once and in order.
fn ensure_all_but(setup: &Setup, left_out: &[u64], events: u64) -> anyhow::Result<()> {
    let numbers = (0..events).filter(|number| !left_out.contains(number));
    let input: Vec<_> = numbers.map(|number| sent(&numbered(number, 10))).collect();
    compare(&input, &received(&setup.read_output()?)).exactly_once().map_err(anyhow::Error::msg)
}

fn on_error_stop_confirms_nothing_behind_the_event(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::shared(case, Some(guest("faulty")))?;
    let poison = Record { value: Some(b"reject 50".to_vec()), ..numbered(50, 10) };
    let records = (0..100).map(|number| if number == 50 { poison.clone() } else { numbered(number, 10) });
    setup.client.produce(&setup.chain.from, records)?;
    let yaml = setup.chain.yaml();
    let then = yaml.find("then:").context("no `then:`")?;
    let file = case.write("stop.yaml", &format!("{}then: stop\n", &yaml[..then]))?;
    let ended = case.run(&file, &setup.brokers, &["--until-caught-up"], &["WARN", "ERROR"])?.finish(LIMIT)?;
    ensure!(ended.code == Some(1), "exit code {:?}", ended.code);
    ensure_says(&ended, &["main"])?;
    ensure!(setup.confirmed()? <= 50, "{} confirmed", setup.confirmed()?);
    ensure!(setup.read_dead()?.is_empty(), "a dead letter");
    Ok(())
}

fn damaged_compiled_code_is_made_again(case: &Case) -> anyhow::Result<()> {
    let setup = Setup::shared(case, Some(guest("identity")))?;
    setup.produce(10)?;
    setup.catch_up(case, &[])?;
    let files = compiled(case.dir())?;
    ensure!(!files.is_empty(), "no compiled code is kept under {}", case.dir().display());
    for (round, damage) in [None, Some(0), Some(100), Some(usize::MAX)].into_iter().enumerate() {
        for file in &files {
            let mut bytes = fs::read(file)?;
            match damage {
                // Cut short.
                None => bytes.truncate(bytes.len() / 2),
                Some(at) => {
                    let at = at.min(bytes.len() - 1);
                    bytes[at] ^= 0x55;
                }
            }
            fs::write(file, bytes)?;
        }
        setup.produce(10)?;
        let ended = setup.catch_up(case, &["compiled code"])?;
        ensure_says(&ended, &["compiled code"])?;
        let events = setup.read_output()?.len();
        ensure!(events == 10 * (round + 2), "{events} events after round {round}");
    }
    // It was made again each time: now nothing is said.
    setup.catch_up(case, &[]).map(|_| ())
}

/// The files of the cache of compiled functions.
fn compiled(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "fluxcode") {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// Starts a run whose one event hangs in its function for a minute, and waits until it does.
fn start_hanging(case: &Case, setup: &mut Setup, more: &[&str]) -> anyhow::Result<Fluxmill> {
    setup.chain.function = vec!["limits: { timeout: 60s }".to_owned()];
    // Its own batch: when the first event is out, the second one is in the function.
    setup.chain.pipeline = vec!["batch: { max_events: 1 }".to_owned(), "lanes: 1".to_owned()];
    let hanging = Record { value: Some(b"loop 1".to_vec()), ..numbered(1, 10) };
    setup.client.produce(&setup.chain.from, [numbered(0, 10), hanging])?;
    let run = case.run(&setup.file(case)?, &setup.brokers, more, &["WARN", "ERROR"])?;
    setup.client.wait_for_events(LIMIT, &[&setup.chain.to], 1)?;
    Ok(run)
}

fn a_function_that_hangs_ends_with_the_drain_deadline(case: &Case) -> anyhow::Result<()> {
    let mut setup = Setup::shared(case, Some(guest("faulty")))?;
    let mut run = start_hanging(case, &mut setup, &["--drain-timeout", "1s"])?;
    run.process().signal(Signal::Term)?;
    let ended = run.finish(Duration::from_secs(30))?;
    ensure!(ended.code == Some(1), "exit code {:?}, signal {:?}", ended.code, ended.signal);
    ensure_says(&ended, &["did not end within 1s"])?;
    ensure!(setup.confirmed()? <= 1, "{} confirmed", setup.confirmed()?);
    Ok(())
}

fn a_second_signal_ends_at_once(case: &Case) -> anyhow::Result<()> {
    let mut setup = Setup::shared(case, Some(guest("faulty")))?;
    let mut run = start_hanging(case, &mut setup, &["--drain-timeout", "60s"])?;
    run.process().signal(Signal::Term)?;
    run.process().wait_for_line(LIMIT, "stopping")?;
    run.process().signal(Signal::Int)?;
    let ended = run.finish(Duration::from_secs(10))?;
    ensure!(ended.code == Some(1), "exit code {:?}, signal {:?}", ended.code, ended.signal);
    ensure_says(&ended, &["second signal"])?;
    ensure!(setup.confirmed()? <= 1, "{} confirmed", setup.confirmed()?);
    Ok(())
}
