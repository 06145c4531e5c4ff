//! The columnar client against real brokers of two releases, through the binary: what it writes others read byte for
//! byte, and the reverse; what it may not see it does not see; limits, partitions, and a network that misbehaves.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use support::chain::Chain;
use support::checker::compare;
use support::client::{Client, Received, Record};
use support::kafka::{Kafka, Options, Version};
use support::kcat::{Kcat, Produce};
use support::proxy::Weather;
use support::suite::{Case, Suite};
use support::transactions::Transactions;
use support::wait::{pace, wait_for, wait_until};
use support::workload::{Content, contents, numbered, odd, received, sent};

mod support;

/// The longest that a part of a test may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(90);
/// Codecs, and the property that makes the client use each.
const CODECS: [(&str, &str); 5] = [
    ("none", "compression.type: \"none\""),
    ("gzip", "compression.type: \"gzip\""),
    ("snappy", "compression.type: \"snappy\""),
    ("lz4", "compression.type: \"lz4\""),
    ("zstd", "compression.type: \"zstd\""),
];
const VERSIONS: [Version; 2] = [Version::V4_1, Version::V3_9];

fn main() -> ExitCode {
    let mut suite = Suite::default();
    suite.kafka("every_codec_crosses_both_ways", every_codec_crosses_both_ways);
    suite.kafka_and_kcat("kcat_reads_what_kcat_wrote", kcat_reads_what_kcat_wrote);
    suite.kafka("java_reads_every_codec", java_reads_every_codec);
    suite.kafka("the_brokers_time_is_read_and_stands", the_brokers_time_is_read_and_stands);
    suite.kafka("times_may_go_back", times_may_go_back);
    suite.kafka("compaction_leaves_gaps", compaction_leaves_gaps);
    suite.kafka("only_committed_events_are_seen", only_committed_events_are_seen);
    suite.kafka("an_open_transaction_holds_what_is_behind_it", an_open_transaction_holds_what_is_behind_it);
    suite.kafka("the_brokers_limit_is_met_to_the_byte", the_brokers_limit_is_met_to_the_byte);
    suite.kafka("batches_above_the_limit_are_split", batches_above_the_limit_are_split);
    suite.kafka("an_event_larger_than_a_fetch_passes", an_event_larger_than_a_fetch_passes);
    suite.kafka("an_event_above_the_clients_limit_becomes_a_dead_letter", an_event_above_the_clients_limit);
    suite.kafka("keys_go_where_other_clients_send_them", keys_go_where_other_clients_send_them);
    suite.kafka("events_without_a_key_spread", events_without_a_key_spread);
    suite.kafka("an_offset_that_is_gone_is_passed_over", an_offset_that_is_gone_is_passed_over);
    suite.kafka("a_topic_that_is_deleted_ends_the_run", a_topic_that_is_deleted_ends_the_run);
    suite.kafka("a_bad_network_loses_and_doubles_nothing", a_bad_network_loses_and_doubles_nothing);
    suite.run()
}

/// Topics and a pipeline file of a copy between them.
struct Copy {
    kafka: Arc<Kafka>,
    client: Client,
    chain: Chain,
    brokers: String,
}

/// What a topic is made with: partitions and settings.
type Made<'a> = (i32, &'a [(&'a str, &'a str)]);

impl Copy {
    fn new(case: &Case, version: Version, name: &str, from: Made<'_>, to: Made<'_>) -> anyhow::Result<Self> {
        let kafka = case.kafka_of(version)?;
        let client = Client::new(&kafka.brokers());
        let topic = |end: &str| case.topic(&format!("{name}.{end}"));
        let chain = Chain { from: topic("in"), to: topic("out"), dead: topic("dead"), ..Chain::default() };
        client.create_topic(&chain.from, from.0, from.1)?;
        client.create_topic(&chain.to, to.0, to.1)?;
        client.create_topic(&chain.dead, 1, &[("max.message.bytes", "30000000")])?;
        let brokers = kafka.brokers();
        Ok(Self { kafka, client, chain, brokers })
    }

    fn plain(case: &Case, version: Version, name: &str) -> anyhow::Result<Self> {
        Self::new(case, version, name, (3, &[]), (3, &[]))
    }

    /// Copies what is there.
    fn run(&self, case: &Case, expected: &[&str]) -> anyhow::Result<()> {
        let file = case.write(&format!("{}.yaml", self.chain.from), &self.chain.yaml())?;
        case.run(&file, &self.brokers, &["--until-caught-up"], expected)?.finish_well(LIMIT).map(|_| ())
    }

    fn input(&self) -> anyhow::Result<Vec<Received>> {
        self.client.read(&self.chain.from)
    }

    fn output(&self) -> anyhow::Result<Vec<Received>> {
        self.client.read(&self.chain.to)
    }

    fn dead(&self) -> anyhow::Result<Vec<Received>> {
        self.client.read(&self.chain.dead)
    }
}

fn content(record: Record) -> Content {
    let headers = record.headers.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect();
    (record.key, record.value, headers, record.timestamp)
}

fn sorted(records: Vec<Record>) -> Vec<Content> {
    let mut contents: Vec<Content> = records.into_iter().map(content).collect();
    contents.sort();
    contents
}

fn ensure_same(what: &str, expected: &[Content], found: &[Content]) -> anyhow::Result<()> {
    for (expected, found) in expected.iter().zip(found) {
        ensure!(expected == found, "{what}: an event changed:\nfrom {expected:?}\nto   {found:?}");
    }
    ensure!(expected.len() == found.len(), "{what}: {} events instead of {}", found.len(), expected.len());
    Ok(())
}

/// Events with every oddity, and enough of the others for many blocks of every codec.
fn all_sorts() -> Vec<Record> {
    let many = (0..3_000).map(|number| Record { timestamp: Some(1_700_000_000_000), ..numbered(number, 50) });
    odd().into_iter().chain(many).collect()
}

/// The broker compresses the input (in Java), the client the output; the broker's disk tells that both did.
fn every_codec_crosses_both_ways(case: &Case) -> anyhow::Result<()> {
    for version in VERSIONS {
        for (codec, property) in CODECS {
            let name = format!("{version:?}.{codec}");
            let kept = if codec == "none" { "uncompressed" } else { codec };
            let mut copy = Copy::new(case, version, &name, (3, &[("compression.type", kept)]), (3, &[]))?;
            copy.chain.properties = vec![property];
            copy.client.produce(&copy.chain.from, all_sorts())?;
            copy.run(case, &[])?;
            let before = contents(&copy.input()?);
            ensure_same(&name, &sorted(all_sorts()), &before)?;
            ensure_same(&name, &before, &contents(&copy.output()?))?;
            for topic in [&copy.chain.from, &copy.chain.to] {
                let found = copy.kafka.segment_codecs(topic)?;
                ensure!(found.iter().eq([&codec]), "{topic} is kept as {found:?} instead of {codec}");
            }
        }
    }
    Ok(())
}

/// An older librdkafka at both ends.
fn kcat_reads_what_kcat_wrote(case: &Case) -> anyhow::Result<()> {
    for version in VERSIONS {
        let kcat = Kcat::new(&case.kafka_of(version)?.brokers())?;
        let long = b"\x00\xff\x80\n".repeat(30_000);
        let events = [
            (b"a\nb\x00\xff".as_slice(), long.as_slice()),
            (b"", b"no key"),
            (b"tombstone", b""),
            (b"", b""),
            (b"\xff\xfe", b"\x80 not utf-8"),
        ];
        for (codec, property) in CODECS {
            let name = format!("{version:?}.{codec}");
            let mut copy = Copy::new(case, version, &name, (1, &[]), (1, &[]))?;
            copy.chain.properties = vec![property];
            let headers: [(&[u8], &[u8]); 3] = [(b"h", b"1"), (b"h", b"\xfe\xff"), (b"na\xff\xfeme", b"2")];
            let how = Produce { compression: Some(codec), headers: &headers, ..Produce::default() };
            kcat.produce(&copy.chain.from, how, events)?;
            copy.run(case, &[])?;
            let (before, after) = (kcat.read(&copy.chain.from, &[])?, kcat.read(&copy.chain.to, &[])?);
            ensure!(before.len() == events.len() && before[0].headers.len() == 3, "{name}: {before:?}");
            // Offsets and times too: nothing else was written there.
            ensure!(before == after, "{name}: {before:?} became {after:?}");
            ensure!(after == copy.output()?, "{name}: two clients read what they read differently");
        }
    }
    Ok(())
}

fn java_reads_every_codec(case: &Case) -> anyhow::Result<()> {
    const EACH: u64 = 2_000;
    for version in VERSIONS {
        let mut copy = Copy::new(case, version, &format!("{version:?}"), (1, &[]), (1, &[]))?;
        for ((_, property), round) in CODECS.into_iter().zip(0..) {
            copy.client.produce(&copy.chain.from, (round * EACH..(round + 1) * EACH).map(|at| numbered(at, 50)))?;
            copy.chain.properties = vec![property];
            copy.run(case, &[])?;
        }
        let found = copy.kafka.segment_codecs(&copy.chain.to)?;
        ensure!(found.len() == CODECS.len(), "{found:?}");
        let events = EACH * CODECS.len() as u64;
        let lines = copy.kafka.read_with_java(&copy.chain.to, usize::try_from(events)?)?;
        let text = |bytes: Option<Vec<u8>>| String::from_utf8(bytes.unwrap_or_default());
        for (number, line) in (0..events).zip(&lines) {
            let Record { key, value, .. } = numbered(number, 50);
            let expected = format!("{}\t{}", text(key)?, text(value)?);
            ensure!(*line == expected, "event {number}: {line} instead of {expected}");
        }
        ensure!(lines.len() as u64 == events, "{} lines", lines.len());
    }
    Ok(())
}

fn the_brokers_time_is_read_and_stands(case: &Case) -> anyhow::Result<()> {
    let append_time: &[_] = &[("message.timestamp.type", "LogAppendTime")];
    for version in VERSIONS {
        let now = || anyhow::Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?);
        let start = now()?;
        let read = Copy::new(case, version, &format!("{version:?}.read"), (2, append_time), (2, &[]))?;
        read.client.produce(&read.chain.from, odd())?;
        read.run(case, &[])?;
        let before = contents(&read.input()?);
        let by_broker = |events: &[Content]| events.iter().all(|event| event.3.is_some_and(|time| time >= start));
        ensure!(by_broker(&before), "{before:?}");
        ensure_same("read", &before, &contents(&read.output()?))?;

        let written = Copy::new(case, version, &format!("{version:?}.written"), (2, &[]), (2, append_time))?;
        written.client.produce(&written.chain.from, odd())?;
        written.run(case, &[])?;
        let after = contents(&written.output()?);
        ensure!(by_broker(&after), "{after:?}");
        let timeless = |mut events: Vec<Content>| {
            events.iter_mut().for_each(|event| event.3 = None);
            events.sort();
            events
        };
        ensure_same("written", &timeless(contents(&written.input()?)), &timeless(after))?;
    }
    Ok(())
}

/// Within one record batch times are counted from the first one's, in both directions.
fn times_may_go_back(case: &Case) -> anyhow::Result<()> {
    let copy = Copy::new(case, Version::default(), "copy", (1, &[]), (1, &[]))?;
    let times = [1_700_000_000_000, 5, 253_402_300_799_999, 0, 1_699_999_999_999, i64::MAX / 2, 1];
    let records: Vec<Record> =
        times.into_iter().map(|time| Record { timestamp: Some(time), ..numbered(7, 1) }).collect();
    copy.client.produce(&copy.chain.from, records)?;
    copy.run(case, &[])?;
    let found: Vec<_> = copy.output()?.iter().map(|event| event.timestamp).collect();
    // A librdkafka producer takes 0 for "now".
    let before: Vec<_> = copy.input()?.iter().map(|event| event.timestamp).collect();
    ensure!(found == before && found[1] == Some(5) && found[5] == Some(i64::MAX / 2), "{found:?} of {before:?}");
    Ok(())
}

fn compaction_leaves_gaps(case: &Case) -> anyhow::Result<()> {
    let compacted: &[_] = &[
        ("cleanup.policy", "compact"),
        ("segment.bytes", "1048576"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("delete.retention.ms", "0"),
    ];
    for version in VERSIONS {
        let copy = Copy::new(case, version, &format!("{version:?}"), (1, compacted), (1, &[]))?;
        // Ten keys in the front are never written again; then whole segments of a few keys, over and over.
        let lasting = (0..10).map(|number| Record { key: Some(format!("l-{number}").into_bytes()), ..numbered(0, 1) });
        let again = (0..40_000).map(|number| numbered(number, 7));
        let gone = (0..3).map(|number| Record { value: None, ..numbered(number, 7) });
        copy.client.produce(&copy.chain.from, lasting.chain(again).chain(gone))?;
        let high = copy.client.watermarks(&copy.chain.from)?[&0].1;
        let mut last = 0;
        let before = wait_until(LIMIT, "the topic to be compacted", || {
            let events = copy.input()?;
            let settled = events.len() == last && events.len() < usize::try_from(high)? / 2;
            last = events.len();
            Ok(settled.then_some(events))
        })?;
        let offsets: Vec<i64> = before.iter().map(|event| event.offset).collect();
        ensure!(offsets.windows(2).any(|pair| pair[1] > pair[0] + 1), "there are no gaps");
        copy.run(case, &[])?;
        let after = copy.input()?;
        let (before, after, out) = (contents(&before), contents(&after), contents(&copy.output()?));
        // More may have been compacted meanwhile.
        ensure!(out.iter().all(|event| before.contains(event)), "an event came that is not in the topic");
        ensure!(after.iter().all(|event| out.contains(event)), "{} events of {}", out.len(), after.len());
        let confirmed = copy.client.committed(&copy.chain.from, &copy.chain.from)?;
        ensure!(confirmed.get(&0) == Some(&high), "{confirmed:?} confirmed of {high}");
        case.note(&format!("{} of {high} events were left", before.len()));
    }
    Ok(())
}

fn values(name: &str, numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|number| format!("{name} {number} {}", "x".repeat(100))).collect()
}

/// Two producers whose transactions cross, and events of nobody's between them.
fn only_committed_events_are_seen(case: &Case) -> anyhow::Result<()> {
    for version in VERSIONS {
        let copy = Copy::new(case, version, &format!("{version:?}"), (2, &[]), (2, &[]))?;
        let topic = &copy.chain.from;
        let one = Transactions::new(&copy.brokers, &format!("{topic}.one"), topic)?;
        let two = Transactions::new(&copy.brokers, &format!("{topic}.two"), topic)?;
        for round in 0..6 {
            one.begin()?;
            two.begin()?;
            for part in 0..3 {
                let numbers = part * 20..(part + 1) * 20;
                one.publish(0, values(&format!("one {round}"), numbers.clone()))?;
                two.publish(0, values(&format!("two {round}"), numbers.clone()))?;
                copy.client.produce(topic, [Record { partition: Some(0), ..numbered(round, 1) }])?;
                two.publish(1, values(&format!("two {round}"), numbers))?;
            }
            match round % 3 {
                0 => (one.commit()?, two.abort()?),
                1 => (one.abort()?, two.commit()?),
                // The last thing of both partitions.
                _ => (one.abort()?, two.abort()?),
            };
        }
        copy.run(case, &[])?;
        let (before, after) = (contents(&copy.input()?), contents(&copy.output()?));
        ensure_same(topic, &before, &after)?;
        // Two rounds of 60 each of `one`, two of 120 of `two`, 18 of nobody.
        ensure!(after.len() == 2 * 60 + 2 * 120 + 18, "{} events", after.len());
        let ends: BTreeMap<i32, i64> =
            copy.client.watermarks(topic)?.into_iter().map(|(at, (_, high))| (at, high)).collect();
        let confirmed = copy.client.committed(topic, topic)?;
        ensure!(confirmed == ends, "{confirmed:?} confirmed of {ends:?}");
    }
    Ok(())
}

fn an_open_transaction_holds_what_is_behind_it(case: &Case) -> anyhow::Result<()> {
    let copy = Copy::new(case, Version::default(), "copy", (1, &[]), (1, &[]))?;
    let topic = &copy.chain.from;
    let open = Transactions::new(&copy.brokers, topic, topic)?;
    copy.client.produce(topic, (0..10).map(|number| numbered(number, 1)))?;
    open.begin()?;
    open.publish(0, values("open", 0..50))?;
    copy.client.produce(topic, (10..20).map(|number| numbered(number, 1)))?;
    let file = case.write("chain.yaml", &copy.chain.yaml())?;
    let mut run = case.run(&file, &copy.brokers, &[], &[])?;
    copy.client.wait_for_events(LIMIT, &[&copy.chain.to], 10)?;
    wait_until(LIMIT, "the first ten to be confirmed", || {
        Ok((copy.client.committed(topic, topic)?.get(&0) == Some(&10)).then_some(()))
    })?;
    ensure!(copy.client.count(&[&copy.chain.to])? == 10, "events behind an open transaction were read");
    ensure!(run.process().ended()?.is_none(), "it has ended");
    open.abort()?;
    copy.client.wait_for_events(LIMIT, &[&copy.chain.to], 20)?;
    run.stop(LIMIT)?;
    let input: Vec<_> = (0..20).map(|number| sent(&numbered(number, 1))).collect();
    compare(&input, &received(&copy.output()?)).exactly_once().map_err(anyhow::Error::msg)
}

/// A record batch of one event has 61 bytes for itself and a few for the event's lengths.
fn the_brokers_limit_is_met_to_the_byte(case: &Case) -> anyhow::Result<()> {
    for version in VERSIONS {
        let limit: &[_] = &[("max.message.bytes", "10000")];
        let mut copy = Copy::new(case, version, &format!("{version:?}"), (1, &[]), (1, limit))?;
        // Each event is a batch of its own.
        copy.chain.properties = vec!["batch.size: \"1\""];
        let sizes = [9_926, 9_927, 9_928, 9_929, 9_930];
        let event = |size: usize| Record { value: Some(vec![b'x'; size]), ..Record::default() };
        copy.client.produce(&copy.chain.from, sizes.map(event))?;
        copy.run(case, &["kind=\"publish\""])?;
        let lengths = |events: Vec<Received>| -> Vec<usize> {
            events.iter().map(|event| event.value.as_ref().map_or(0, Vec::len)).collect()
        };
        let (passed, dead) = (lengths(copy.output()?), lengths(copy.dead()?));
        ensure!(passed == sizes[..3] && dead == sizes[3..], "{passed:?} passed, {dead:?} are dead letters");
    }
    Ok(())
}

/// The client's batches are larger than the topic takes; nothing is set.
fn batches_above_the_limit_are_split(case: &Case) -> anyhow::Result<()> {
    const EVENTS: u64 = 20_000;
    let limit: &[_] = &[("max.message.bytes", "10000")];
    for (codec, property) in [CODECS[0], CODECS[3]] {
        let mut copy = Copy::new(case, Version::default(), codec, (1, &[]), (2, limit))?;
        copy.chain.properties = vec![property];
        // No codec makes it small.
        let large: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(30_000).collect();
        let noise = |number: u64| {
            let noise = std::iter::repeat_with(fastrand::alphanumeric).take(60).collect::<String>();
            Record { value: Some(format!("{number} {noise}").into_bytes()), ..numbered(number, 100) }
        };
        let records: Vec<Record> = (0..EVENTS)
            .map(|at| if at == 7_777 { Record { value: Some(large.clone()), ..numbered(at, 100) } } else { noise(at) })
            .collect();
        copy.client.produce(&copy.chain.from, records.clone())?;
        copy.run(case, &["kind=\"publish\""])?;
        let input: Vec<_> =
            (0..).zip(&records).filter(|(at, _)| *at != 7_777).map(|(_, record)| sent(record)).collect();
        compare(&input, &received(&copy.output()?)).exactly_once().map_err(anyhow::Error::msg).context(codec)?;
        let dead = copy.dead()?;
        ensure!(dead.len() == 1 && dead[0].value == Some(large), "{codec}: {} dead letters", dead.len());
    }
    Ok(())
}

/// More than `max.partition.fetch.bytes` and `fetch.max.bytes`: the broker sends one batch at least.
fn an_event_larger_than_a_fetch_passes(case: &Case) -> anyhow::Result<()> {
    let large: &[_] = &[("max.message.bytes", "9000000")];
    let copy = Copy::new(case, Version::default(), "copy", (1, large), (1, large))?;
    let sizes = [10, 6_000_000, 20, 1_048_576, 8_500_000, 30];
    let event = |size: usize| Record { value: Some(vec![b'x'; size]), timestamp: Some(1), ..Record::default() };
    copy.client.produce(&copy.chain.from, sizes.map(event))?;
    copy.run(case, &[])?;
    ensure_same("large", &contents(&copy.input()?), &contents(&copy.output()?))
}

fn an_event_above_the_clients_limit(case: &Case) -> anyhow::Result<()> {
    let mut copy = Copy::plain(case, Version::default(), "copy")?;
    copy.chain.properties = vec!["message.max.bytes: \"2000\"", "batch.size: \"1000\""];
    let large = Record { value: Some(vec![b'x'; 3_000]), ..numbered(4, 10) };
    let records = (0..10).map(|at| if at == 4 { large.clone() } else { numbered(at, 10) });
    copy.client.produce(&copy.chain.from, records)?;
    let file = case.write("chain.yaml", &copy.chain.yaml())?;
    // The dead letter is above that limit as well, and there is no other place for it.
    let ended = case.run(&file, &copy.brokers, &["--until-caught-up"], &["WARN", "ERROR"])?.finish(LIMIT)?;
    ensure!(ended.code == Some(1), "exit code {:?}", ended.code);
    ensure!(ended.stderr.contains("`message.max.bytes` = 2000"), "{}", ended.stderr);
    Ok(())
}

fn keys_go_where_other_clients_send_them(case: &Case) -> anyhow::Result<()> {
    let copy = Copy::new(case, Version::default(), "copy", (1, &[]), (7, &[]))?;
    let keys: Vec<Vec<u8>> = (0..600_u32)
        .map(|number| match number {
            0 => Vec::new(),
            _ => (0..number % 37 + 1).map(|at| number.wrapping_mul(2_654_435_761).rotate_left(at) as u8).collect(),
        })
        .collect();
    let records =
        || keys.iter().map(|key| Record { key: Some(key.clone()), value: Some(b"v".to_vec()), ..Record::default() });
    copy.client.produce(&copy.chain.from, records())?;
    copy.run(case, &[])?;
    // librdkafka's `murmur2_random` is the Java client's rule.
    let theirs = case.topic("theirs");
    copy.client.create_topic(&theirs, 7, &[])?;
    copy.client.produce(&theirs, records())?;
    let places = |events: Vec<Received>| -> BTreeMap<Option<Vec<u8>>, BTreeSet<i32>> {
        let mut places = BTreeMap::<_, BTreeSet<i32>>::new();
        for event in events {
            places.entry(event.key).or_default().insert(event.partition);
        }
        places
    };
    let (ours, theirs) = (places(copy.output()?), places(copy.client.read(&theirs)?));
    for (key, place) in &theirs {
        ensure!(ours.get(key) == Some(place), "{key:?} is in {:?} instead of {place:?}", ours.get(key));
    }
    Ok(())
}

fn events_without_a_key_spread(case: &Case) -> anyhow::Result<()> {
    let mut copy = Copy::new(case, Version::default(), "copy", (1, &[]), (4, &[]))?;
    copy.chain.properties = vec!["batch.size: \"5000\""];
    copy.client.produce(&copy.chain.from, (0..20_000).map(|number| Record { key: None, ..numbered(number, 1) }))?;
    copy.run(case, &[])?;
    let ends = copy.client.watermarks(&copy.chain.to)?;
    ensure!(ends.values().map(|(_, high)| high).sum::<i64>() == 20_000, "{ends:?}");
    ensure!(ends.values().all(|(_, high)| (2_000..9_000).contains(high)), "{ends:?}");
    Ok(())
}

/// The broker does not keep any more what the group has not read yet.
fn an_offset_that_is_gone_is_passed_over(case: &Case) -> anyhow::Result<()> {
    let copy = Copy::new(case, Version::default(), "copy", (1, &[]), (1, &[]))?;
    copy.client.produce(&copy.chain.from, (0..10).map(|number| numbered(number, 1)))?;
    copy.run(case, &[])?;
    copy.client.produce(&copy.chain.from, (10..1_000).map(|number| numbered(number, 1)))?;
    copy.client.delete_before(&copy.chain.from, 0, 500)?;
    // The group's own client may look for a moment, too.
    copy.run(case, &["has no offset 10 any more", "offset reset (at offset 10"])?;
    let input: Vec<_> = (0..10).chain(500..1_000).map(|number| sent(&numbered(number, 1))).collect();
    compare(&input, &received(&copy.output()?)).exactly_once().map_err(anyhow::Error::msg)
}

fn a_topic_that_is_deleted_ends_the_run(case: &Case) -> anyhow::Result<()> {
    for end in ["in", "out"] {
        let copy = Copy::plain(case, Version::default(), end)?;
        let deleted = if end == "in" { &copy.chain.from } else { &copy.chain.to };
        let file = case.write("chain.yaml", &copy.chain.yaml())?;
        let run = case.run(&file, &copy.brokers, &["--drain-timeout", "5s"], &["WARN", "ERROR"])?;
        copy.client.produce(&copy.chain.from, (0..100).map(|number| numbered(number, 10)))?;
        copy.client.wait_for_events(LIMIT, &[&copy.chain.to], 100)?;
        copy.client.delete_topic(deleted)?;
        if end == "out" {
            copy.client.produce(&copy.chain.from, (100..200).map(|number| numbered(number, 10)))?;
        }
        let ended = run.finish(LIMIT).with_context(|| format!("{deleted} was deleted"))?;
        ensure!(ended.code == Some(1), "exit code {:?}", ended.code);
        ensure!(ended.stderr.contains(&format!("topic {deleted}")), "{}", ended.stderr);
        if end == "out" {
            let confirmed = copy.client.committed(&copy.chain.from, &copy.chain.from)?.values().sum::<i64>();
            ensure!(confirmed == 100, "{confirmed} confirmed");
        }
    }
    Ok(())
}

/// Parts of the WARN lines of a process whose broker cannot be reached for a while.
const OUTAGE: [&str; 4] = ["is not reachable", "sent again", "Timed out", ": no answer for "];

fn a_bad_network_loses_and_doubles_nothing(case: &Case) -> anyhow::Result<()> {
    let (kafka, proxy) = Kafka::start_behind_proxy(Options::default())?;
    let client = Client::new(&kafka.brokers());
    let topic = |end: &str| case.topic(end);
    let mut chain = Chain { from: topic("in"), to: topic("out"), dead: topic("dead"), ..Chain::default() };
    for topic in [&chain.from, &chain.to, &chain.dead] {
        client.create_topic(topic, 4, &[])?;
    }
    // Many batches are on their way, and a silent broker is given up before the network comes back.
    chain.properties = vec!["batch.size: \"10000\"", "socket.timeout.ms: \"1500\"", "compression.type: \"lz4\""];
    let file = case.write("chain.yaml", &chain.yaml().replace("\"6000\"", "\"30000\""))?;
    let load = client.feed(&chain.from, |number| numbered(number, 500))?;
    let run = case.run(&file, &proxy.address(), &[], &OUTAGE)?;
    let more = || -> anyhow::Result<()> {
        let now = client.count(&[&chain.to])?;
        client.wait_for_events(LIMIT, &[&chain.to], now + 5_000).map(|_| ())
    };
    let fine = Weather::default();
    more()?;
    for round in 0..12_u64 {
        proxy.cut();
        proxy.set(Weather { cut_after: Some(37 * (round + 1)), ..fine });
        let times = proxy.times_cut() + 3;
        wait_for(LIMIT, "connections to be cut in answers", || proxy.times_cut() >= times)?;
        proxy.set(Weather { trickle: 100 + 50 * usize::try_from(round)?, ..fine });
        pace(Duration::from_millis(300));
        proxy.set(Weather { delay: Duration::from_millis(20 * round), ..fine });
        pace(Duration::from_millis(300));
        proxy.cut();
        if round % 4 == 3 {
            proxy.set(Weather { stalled: true, ..fine });
            pace(Duration::from_secs(3));
        }
        proxy.set(fine);
        more().with_context(|| format!("round {round}"))?;
    }
    let events = load.finish()?;
    wait_until(LIMIT, "the group to have confirmed everything", || {
        let committed = client.committed(&chain.from, &chain.from)?;
        let ends = client.watermarks(&chain.from)?;
        Ok(ends.iter().all(|(at, (_, high))| committed.get(at) == Some(high)).then_some(()))
    })?;
    run.stop(LIMIT)?;
    case.note(&format!("{} connections were cut, {events} events", proxy.times_cut()));
    let input: Vec<_> = (0..events).map(|number| sent(&numbered(number, 500))).collect();
    compare(&input, &received(&client.read(&chain.to)?)).exactly_once().map_err(anyhow::Error::msg)
}
