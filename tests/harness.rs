//! The support of the other tests, itself tested: a cluster whose leaders move and whose brokers are killed, the
//! listeners with all their mechanisms, the network that misbehaves, the second client.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::ensure;
use support::client::{Client, Record};
use support::kafka::cluster::Cluster;
use support::kafka::{ADMIN, Kafka, Options, PASSWORD, Version, token};
use support::kcat::{Kcat, Produce};
use support::process::Signal;
use support::proxy::{Proxy, Weather};
use support::suite::{Case, Suite};
use support::wait::{wait_for, wait_until};
use support::workload::{contents, numbered};

mod support;

/// The longest that a part of a test may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let mut suite = Suite::default();
    suite.kafka("leaders_move_and_brokers_come_back", leaders_move_and_brokers_come_back);
    suite.kafka("the_older_release_runs", the_older_release_runs);
    suite.kafka("every_mechanism_is_offered", every_mechanism_is_offered);
    suite.kafka("a_broker_behind_a_proxy", a_broker_behind_a_proxy);
    suite.kafka("the_proxy_does_what_it_is_told", the_proxy_does_what_it_is_told);
    suite.kafka_and_kcat("kcat_writes_and_reads_every_codec", kcat_writes_and_reads_every_codec);
    suite.run()
}

fn leaders_move_and_brokers_come_back(case: &Case) -> anyhow::Result<()> {
    const MOVES: i32 = 240;
    let start = Instant::now();
    let mut cluster = Cluster::start(Version::default())?;
    case.note(&format!("the cluster runs after {:.1?}", start.elapsed()));
    let (client, topic) = (cluster.client(), case.topic("moved"));
    client.create_topic(&topic, 4, &[])?;
    cluster.wait_until_in_sync()?;

    let load = client.feed(&topic, |number| numbered(number, 100))?;
    let start = Instant::now();
    for number in 0..MOVES {
        let (partition, to) = (number % 4, 1 + (number / 4) % 3);
        cluster.move_leaders(&topic, &[partition], to)?;
        ensure!(cluster.leaders(&topic)?[&partition] == to, "{topic}[{partition}] is not led by {to}");
    }
    case.note(&format!("{MOVES} leaders moved in {:.1?}", start.elapsed()));
    cluster.move_leaders(&topic, &[0, 1, 2, 3], 2)?;

    let start = Instant::now();
    cluster.kill(2)?;
    wait_until(LIMIT, "others to lead", || {
        let leaders = cluster.leaders(&topic)?;
        Ok((leaders.len() == 4 && leaders.values().all(|id| *id != 2)).then_some(()))
    })?;
    case.note(&format!("others lead {:.1?} after kill -9", start.elapsed()));
    let start = Instant::now();
    cluster.restart(2)?;
    case.note(&format!("all in sync {:.1?} after the restart began", start.elapsed()));
    cluster.stop(1)?;
    cluster.restart(1)?;
    cluster.signal(3, Signal::Stop)?;
    wait_until(LIMIT, "others to lead", || Ok(cluster.leaders(&topic)?.values().all(|id| *id != 3).then_some(())))?;
    cluster.signal(3, Signal::Continue)?;
    cluster.wait_until_in_sync()?;

    let events = load.finish()?;
    let found = client.count(&[&topic])?;
    // Not exactly: librdkafka's producer, idempotent as it is, was seen to double a batch when its broker hung.
    ensure!(u64::try_from(found)? >= events, "{found} of {events} events");
    Ok(())
}

fn the_older_release_runs(case: &Case) -> anyhow::Result<()> {
    let kafka = Kafka::start(Options { version: Version::V3_9, ..Options::default() })?;
    let (client, topic) = (Client::new(&kafka.brokers()), case.topic("old"));
    client.create_topic(&topic, 1, &[])?;
    client.produce(&topic, (0..10).map(|number| numbered(number, 3)))?;
    let lines = kafka.read_with_java(&topic, 10)?;
    ensure!(lines.len() == 10 && lines[9].starts_with("k-0\t9 xxx"), "{lines:?}");
    Ok(())
}

fn every_mechanism_is_offered(case: &Case) -> anyhow::Result<()> {
    let kafka = case.secure_kafka()?;
    let topic = case.topic("secure");
    Client::new(&kafka.brokers()).create_topic(&topic, 1, &[])?;
    let ca = format!("ssl.ca.location={}", kafka.certificate().display());
    let password = |mechanism: &str| {
        [format!("sasl.mechanism={mechanism}"), format!("sasl.username={ADMIN}"), format!("sasl.password={PASSWORD}")]
    };
    let protocol = |name: &str| format!("security.protocol={name}");
    let mut events = 0;
    for (brokers, protocol) in [
        (kafka.sasl_brokers(), vec![protocol("sasl_plaintext")]),
        (kafka.sasl_tls_brokers(), vec![protocol("sasl_ssl"), ca.clone()]),
    ] {
        let client = Client::new(&brokers);
        for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let settings = password(mechanism).into_iter().chain(protocol.clone());
            client.with(settings).produce(&topic, [Record::default()])?;
            events += 1;
        }
        // The client makes unsecured tokens by itself; those of this harness are checked below.
        let own = ["sasl.mechanism=OAUTHBEARER", "enable.sasl.oauthbearer.unsecure.jwt=true"].map(str::to_owned);
        let own = own.into_iter().chain([format!("sasl.oauthbearer.config=principal={ADMIN}")]);
        client.with(own.chain(protocol.clone())).produce(&topic, [Record::default()])?;
        events += 1;
    }
    Client::new(&kafka.tls_brokers()).with([protocol("ssl"), ca]).produce(&topic, [Record::default()])?;
    let found = Client::new(&kafka.brokers()).count(&[&topic])?;
    ensure!(found == events + 1, "{found} events");
    ensure!(authenticates(&kafka.sasl_brokers(), &token(ADMIN, LIMIT))?, "a good token was refused");
    ensure!(!authenticates(&kafka.sasl_brokers(), "no.token.")?, "anything is taken for a token");
    Ok(())
}

/// Whether the broker takes this token: SaslHandshake 1 and SaslAuthenticate 0, byte by byte.
fn authenticates(brokers: &str, token: &str) -> anyhow::Result<bool> {
    /// The answer behind the correlation id.
    fn call(stream: &mut TcpStream, key: i16, version: i16, body: &[u8]) -> anyhow::Result<Vec<u8>> {
        // Correlation id 7, no client id.
        let header = [&key.to_be_bytes()[..], &version.to_be_bytes(), &7_i32.to_be_bytes(), &(-1_i16).to_be_bytes()];
        let request = [&header.concat(), body].concat();
        stream.write_all(&[&u32::try_from(request.len())?.to_be_bytes()[..], &request].concat())?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::try_from(u32::from_be_bytes(length))?];
        stream.read_exact(&mut answer)?;
        Ok(answer.split_off(4))
    }
    let mut stream = TcpStream::connect(brokers)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let answer = call(&mut stream, 17, 1, b"\x00\x0bOAUTHBEARER")?;
    ensure!(answer.starts_with(&[0, 0]), "SaslHandshake: {answer:?}");
    let first = format!("n,,\u{1}auth=Bearer {token}\u{1}\u{1}");
    let body = [&u32::try_from(first.len())?.to_be_bytes()[..], first.as_bytes()].concat();
    let answer = call(&mut stream, 36, 0, &body)?;
    // No error, an empty message, nothing more to say. A refusal would say why (RFC 7628, section 3.2.2).
    Ok(answer == [0; 8])
}

fn a_broker_behind_a_proxy(case: &Case) -> anyhow::Result<()> {
    let (kafka, proxy) = Kafka::start_behind_proxy(Options::default())?;
    let (direct, proxied) = (Client::new(&kafka.brokers()), Client::new(&proxy.address()));
    let topic = case.topic("proxied");
    direct.create_topic(&topic, 2, &[])?;
    ensure!(proxy.accepted() == 0, "who begins at the broker must not come through the proxy");
    let load = proxied.feed(&topic, |number| numbered(number, 100))?;
    direct.wait_for_events(LIMIT, &[&topic], 1000)?;
    ensure!(proxy.cut() > 0, "no connection was open");
    let more = direct.count(&[&topic])? + 5000;
    direct.wait_for_events(LIMIT, &[&topic], more)?;
    proxy.set(Weather { cut_after: Some(500), ..Weather::default() });
    wait_for(LIMIT, "connections to be cut half-way", || proxy.times_cut() >= 5)?;
    proxy.set(Weather { trickle: 100, ..Weather::default() });
    let more = direct.count(&[&topic])? + 500;
    direct.wait_for_events(LIMIT, &[&topic], more)?;
    proxy.set(Weather::default());
    let events = load.finish()?;
    ensure!(u64::try_from(direct.count(&[&topic])?)? == events, "{events} events were acknowledged");
    Ok(())
}

fn the_proxy_does_what_it_is_told(_: &Case) -> anyhow::Result<()> {
    let server = TcpListener::bind("127.0.0.1:0")?;
    let proxy = Proxy::start()?;
    let mut byte = [0; 1];
    let mut refused = TcpStream::connect(proxy.address())?;
    refused.set_read_timeout(Some(LIMIT))?;
    ensure!(refused.read(&mut byte)? == 0, "there is nothing behind it yet");

    proxy.forward_to(server.local_addr()?.port());
    let mut client = TcpStream::connect(proxy.address())?;
    client.set_read_timeout(Some(LIMIT))?;
    let (mut there, _) = server.accept()?;
    there.set_read_timeout(Some(LIMIT))?;
    client.write_all(b"hello")?;
    let mut five = [0; 5];
    there.read_exact(&mut five)?;
    ensure!(five == *b"hello", "bytes changed");

    proxy.set(Weather { delay: Duration::from_millis(200), ..Weather::default() });
    let start = Instant::now();
    there.write_all(b"late!")?;
    client.read_exact(&mut five)?;
    ensure!(start.elapsed() >= Duration::from_millis(200), "it came after {:?}", start.elapsed());

    proxy.set(Weather { stalled: true, ..Weather::default() });
    there.write_all(b"stall")?;
    client.set_read_timeout(Some(Duration::from_millis(200)))?;
    ensure!(client.read(&mut byte).is_err(), "something came through");
    client.set_read_timeout(Some(LIMIT))?;
    proxy.set(Weather { trickle: 2, cut_after: Some(3), ..Weather::default() });
    let mut all = Vec::new();
    // Cut: an end or a reset, as the system likes.
    let _ = client.read_to_end(&mut all);
    ensure!(all == b"sta", "{all:?}");
    ensure!(proxy.times_cut() == 1, "{} cut", proxy.times_cut());
    Ok(())
}

fn kcat_writes_and_reads_every_codec(case: &Case) -> anyhow::Result<()> {
    let kafka = case.kafka()?;
    let (client, kcat) = (case.client()?, Kcat::new(&kafka.brokers())?);
    let value = [b"\x00\xff\n\x80".as_slice(), &[b'v'; 300]].concat();
    let events = [(b"a\nb".as_slice(), value.as_slice()), (b"", b"no key"), (b"tombstone", b""), (b"last", b"1")];
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let topic = case.topic(codec);
        client.create_topic(&topic, 1, &[])?;
        let how = Produce {
            compression: Some(codec),
            headers: &[(b"h", b"1"), (b"h", b"two")],
            partition: Some(0),
            ..Produce::default()
        };
        kcat.produce(&topic, how, events)?;
        let (ours, theirs) = (client.read(&topic)?, kcat.read(&topic, &[])?);
        ensure!(ours == theirs, "{codec}: {ours:?} and {theirs:?}");
        ensure!(ours.len() == 4 && ours[0].value.as_deref() == Some(&value), "{codec}: {ours:?}");
        ensure!(ours[1].key.is_none() && ours[2].value.is_none() && ours[3].headers.len() == 2, "{codec}: {ours:?}");
        let kept = kafka.segment_codecs(&topic)?;
        ensure!(kept.iter().eq([&codec]), "{codec} is kept as {kept:?}");
    }
    let text = case.topic("text");
    client.create_topic(&text, 1, &[])?;
    kcat.produce(&text, Produce::default(), [(b"k".as_slice(), b"v".as_slice())])?;
    let json = kcat.read_json(&text)?;
    ensure!(json.len() == 1 && json[0]["payload"] == "v" && json[0]["key"] == "k", "{json:?}");
    let sums: BTreeMap<_, _> = contents(&client.read(&text)?).into_iter().map(|event| (event.0, event.1)).collect();
    ensure!(sums == BTreeMap::from([(Some(b"k".to_vec()), Some(b"v".to_vec()))]), "{sums:?}");
    Ok(())
}
