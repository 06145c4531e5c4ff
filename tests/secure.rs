//! TLS and SASL against real brokers of two releases: every mechanism with and without TLS, sessions that expire, and
//! what a person is told when a setting is wrong. Through the binary, whose group is librdkafka's and whose events are
//! the columnar client's; and by the columnar producer alone, so that each of them is seen to refuse.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use fluxmill::broker::kafka::KafkaProducer;
use fluxmill::broker::{BrokerError, BrokerErrorKind, Sink as _};
use fluxmill::delivery::Slot;
use fluxmill::event::{BatchBuilder, Origin, Publication};
use fluxmill::spec::{
    ColumnarSettings, KafkaClient, KafkaConnection, SaslMechanism, SaslSpec, Secret, TlsSpec, TokenSource,
};
use support::chain::Chain;
use support::checker::compare;
use support::client::Client;
use support::kafka::{ADMIN, GUEST, Kafka, Options, PASSWORD, Version, token};
use support::process::{Ended, Process};
use support::proxy::Proxy;
use support::suite::{Case, Suite};
use support::wait::wait_until;
use support::workload::{numbered, received, sent};

mod support;

/// The longest that a part of a test may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(90);
/// How long tokens are good for.
const LIFETIME: Duration = Duration::from_secs(600);
const VERSIONS: [Version; 2] = [Version::V4_1, Version::V3_9];
const PASSWORDS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];
/// Never to be seen in any output.
const WRONG: &str = "wrong-secret-of-this-test";

fn main() -> ExitCode {
    let mut suite = Suite::default();
    suite.kafka("every_mechanism_works", every_mechanism_works);
    suite.kafka("sessions_that_expire_lose_nothing", sessions_that_expire_lose_nothing);
    suite.kafka("wrong_credentials_are_told", wrong_credentials_are_told);
    suite.kafka("wrong_certificates_are_told", wrong_certificates_are_told);
    suite.kafka("wrong_ports_are_told", wrong_ports_are_told);
    suite.kafka("the_columnar_client_refuses_by_itself", the_columnar_client_refuses_by_itself);
    suite.kafka("a_producer_that_was_refused_closes_at_once", a_producer_that_was_refused_closes_at_once);
    suite.run()
}

/// A secure broker, topics, and a pipeline file of a copy between them.
struct Copy {
    client: Client,
    chain: Chain,
}

impl Copy {
    fn new(case: &Case, kafka: &Kafka, name: &str) -> anyhow::Result<Self> {
        let client = Client::new(&kafka.brokers());
        let topic = |end: &str| case.topic(&format!("{name}.{end}"));
        let chain = Chain { from: topic("in"), to: topic("out"), dead: topic("dead"), ..Chain::default() };
        for topic in [&chain.from, &chain.to, &chain.dead] {
            client.create_topic(topic, 2, &[])?;
        }
        Ok(Self { client, chain })
    }

    fn end(&mut self, case: &Case, way: &Way, expected: &[&str]) -> anyhow::Result<Ended> {
        self.chain.connection.clone_from(&way.connection);
        let file = case.write("chain.yaml", &self.chain.yaml())?;
        case.run(&file, &way.brokers, &["--until-caught-up"], expected)?.finish(LIMIT)
    }
}

/// How to reach a broker: where, and lines of the connection.
#[derive(Clone, Debug)]
struct Way {
    brokers: String,
    connection: Vec<String>,
}

fn way(brokers: String, connection: &[String]) -> Way {
    Way { brokers, connection: connection.to_vec() }
}

fn tls(ca: &Path) -> String {
    format!("tls: {{ ca: {} }}", ca.display())
}

fn password(mechanism: &str, user: &str, password: &str) -> String {
    format!("sasl: {{ mechanism: {mechanism}, username: {user}, password: {password} }}")
}

fn token_file(case: &Case, name: &str, text: &str) -> anyhow::Result<String> {
    Ok(format!("sasl: {{ mechanism: OAUTHBEARER, token_file: {} }}", case.write(name, text)?.display()))
}

fn every_mechanism_works(case: &Case) -> anyhow::Result<()> {
    for version in VERSIONS {
        let kafka = case.secure_kafka_of(version)?;
        let tls = tls(&kafka.certificate());
        let mut ways = vec![way(kafka.tls_brokers(), std::slice::from_ref(&tls))];
        let by_token = token_file(case, "token", &token(ADMIN, LIFETIME))?;
        let passwords = PASSWORDS.map(|mechanism| password(mechanism, ADMIN, PASSWORD));
        for sasl in passwords.into_iter().chain([by_token]) {
            ways.push(way(kafka.sasl_brokers(), std::slice::from_ref(&sasl)));
            ways.push(way(kafka.sasl_tls_brokers(), &[sasl, tls.clone()]));
        }
        let mut copy = Copy::new(case, &kafka, &format!("{version:?}"))?;
        for (round, way) in (1_u64..).zip(&ways) {
            let numbers = (round - 1) * 100..round * 100;
            copy.client.produce(&copy.chain.from, numbers.map(|number| numbered(number, 10)))?;
            let ended = copy.end(case, way, &[]).with_context(|| format!("{way:?}"))?;
            ensure!(ended.code == Some(0), "exit code {:?}: {way:?}", ended.code);
            let input: Vec<_> = (0..round * 100).map(|number| sent(&numbered(number, 10))).collect();
            let report = compare(&input, &received(&copy.client.read(&copy.chain.to)?));
            report.exactly_once().map_err(anyhow::Error::msg).with_context(|| format!("{way:?}"))?;
        }
    }
    Ok(())
}

/// The broker ends each session after a few seconds (KIP-368), in the middle of the load.
fn sessions_that_expire_lose_nothing(case: &Case) -> anyhow::Result<()> {
    const SESSION: Duration = Duration::from_secs(3);
    let options = Options { secure: true, reauthenticate: Some(SESSION), ..Options::default() };
    let kafka = Kafka::start(options)?;
    let mut copy = Copy::new(case, &kafka, "copy")?;
    let load = copy.client.feed(&copy.chain.from, |number| numbered(number, 100))?;
    copy.chain.connection = vec![password("SCRAM-SHA-512", ADMIN, PASSWORD), tls(&kafka.certificate())];
    let file = case.write("chain.yaml", &copy.chain.yaml())?;
    let run = case.run(&file, &kafka.sasl_tls_brokers(), &[], &[])?;
    let start = Instant::now();
    wait_until(LIMIT, "several sessions to pass", || {
        let now = copy.client.count(&[&copy.chain.to])?;
        copy.client.wait_for_events(LIMIT, &[&copy.chain.to], now + 1_000)?;
        Ok((start.elapsed() > SESSION * 5).then_some(()))
    })?;
    let events = load.finish()?;
    wait_until(LIMIT, "the group to have confirmed everything", || {
        let committed = copy.client.committed(&copy.chain.from, &copy.chain.from)?;
        let ends = copy.client.watermarks(&copy.chain.from)?;
        Ok(ends.iter().all(|(at, (_, high))| committed.get(at) == Some(high)).then_some(()))
    })?;
    run.stop(LIMIT)?;
    let input: Vec<_> = (0..events).map(|number| sent(&numbered(number, 100))).collect();
    let report = compare(&input, &received(&copy.client.read(&copy.chain.to)?));
    report.exactly_once().map_err(anyhow::Error::msg)
}

/// Each of these ends with exit code 1, says these parts, and no secret.
fn ensure_told(case: &Case, kafka: &Kafka, mistakes: &[(&str, Way, &[&str])]) -> anyhow::Result<()> {
    let mut copy = Copy::new(case, kafka, "copy")?;
    copy.client.produce(&copy.chain.from, (0..10).map(|number| numbered(number, 10)))?;
    let mut failed = Vec::new();
    for (name, way, parts) in mistakes {
        let start = Instant::now();
        let ended = copy.end(case, way, &["WARN", "ERROR"])?;
        let is_error = |line: &&str| line.contains("error: ") || line.contains('\u{d7}');
        let said: Vec<&str> = ended.stderr.lines().filter(is_error).collect();
        case.note(&format!("{name} ({:.1?}): {}", start.elapsed(), said.join("\n    ")));
        let text = said.join("\n").to_lowercase();
        let missing = parts.iter().find(|part| !text.contains(&part.to_lowercase()));
        // A mistake in the file is found before anything runs.
        let code = if ended.stderr.contains("config::") { 2 } else { 1 };
        if ended.code != Some(code) || missing.is_some() || said.is_empty() || ended.stderr.contains(WRONG) {
            failed.push(format!("{name}: exit code {:?}, without {missing:?}:\n{}", ended.code, ended.stderr));
        }
    }
    ensure!(copy.client.count(&[&copy.chain.to])? == 0, "something was published");
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

fn wrong_credentials_are_told(case: &Case) -> anyhow::Result<()> {
    let kafka = case.secure_kafka_of(Version::default())?;
    let tls = tls(&kafka.certificate());
    let mut mistakes: Vec<(&str, Way, &[&str])> = Vec::new();
    for mechanism in PASSWORDS {
        let wrong = password(mechanism, ADMIN, WRONG);
        mistakes.push(("wrong password", way(kafka.sasl_brokers(), std::slice::from_ref(&wrong)), &["authentication"]));
        mistakes.push((
            "wrong password, TLS",
            way(kafka.sasl_tls_brokers(), &[wrong, tls.clone()]),
            &["authentication"],
        ));
        let nobody = password(mechanism, "nobody", PASSWORD);
        mistakes.push(("unknown user", way(kafka.sasl_brokers(), &[nobody]), &["authentication"]));
    }
    let bad = token_file(case, "bad-token", &format!("{WRONG}.x.y"))?;
    mistakes.push(("no token", way(kafka.sasl_brokers(), &[bad]), &["token"]));
    let foreign = token_file(case, "foreign-token", &token(GUEST, LIFETIME))?;
    mistakes.push(("a user without permission", way(kafka.sasl_brokers(), &[foreign]), &["authoriz"]));
    let none = format!("sasl: {{ mechanism: OAUTHBEARER, token_file: {} }}", case.dir().join("no-file").display());
    mistakes.push(("no token file", way(kafka.sasl_brokers(), &[none]), &["no-file"]));
    ensure_told(case, &kafka, &mistakes)
}

/// A certificate authority that signed nothing.
fn other_authority(case: &Case) -> anyhow::Result<PathBuf> {
    let (store, pem) = (case.dir().join("other.p12"), case.dir().join("other.pem"));
    let run = |more: &[&str]| -> anyhow::Result<()> {
        let mut keytool = Command::new("keytool");
        keytool.args(more).args(["-alias", "other", "-storetype", "PKCS12", "-storepass", PASSWORD, "-keystore"]);
        let mut keytool = Process::start("keytool", keytool.arg(&store))?;
        ensure!(keytool.wait(LIMIT)?.success(), "keytool: {}", keytool.output().text());
        Ok(())
    };
    run(&["-genkeypair", "-keyalg", "EC", "-groupname", "secp256r1", "-dname", "CN=other", "-ext", "bc:c=ca:true"])?;
    run(&["-exportcert", "-rfc", "-file", &pem.display().to_string()])?;
    Ok(pem)
}

/// A proxy at an address that the broker's certificate does not name, and the port behind it.
fn elsewhere(brokers: &str) -> anyhow::Result<Proxy> {
    let proxy = Proxy::start_at("127.0.0.2")?;
    proxy.forward_to(brokers.rsplit_once(':').context("no port")?.1.parse()?);
    Ok(proxy)
}

fn wrong_certificates_are_told(case: &Case) -> anyhow::Result<()> {
    let kafka = case.secure_kafka_of(Version::default())?;
    let other = other_authority(case)?;
    let proxy = elsewhere(&kafka.tls_brokers())?;
    let empty = case.write("empty.pem", "nothing\n")?;
    let missing = case.dir().join("missing.pem");
    let tls_at = |ca: &Path| way(kafka.tls_brokers(), &[tls(ca)]);
    let mistakes: [(&str, Way, &[&str]); 5] = [
        ("unknown CA", tls_at(&other), &["certificate", "ca"]),
        ("the system's CAs", way(kafka.tls_brokers(), &["tls: {}".to_owned()]), &["certificate", "ca"]),
        ("another name", way(proxy.address(), &[tls(&kafka.certificate())]), &["certificate", "127.0.0.2"]),
        ("no CA in the file", tls_at(&empty), &["empty.pem"]),
        ("no CA file", tls_at(&missing), &["missing.pem"]),
    ];
    ensure_told(case, &kafka, &mistakes)
}

fn wrong_ports_are_told(case: &Case) -> anyhow::Result<()> {
    let kafka = case.secure_kafka_of(Version::default())?;
    let (tls, sasl) = (tls(&kafka.certificate()), password("PLAIN", ADMIN, PASSWORD));
    let at_localhost = |brokers: String| brokers.replace("127.0.0.1", "localhost");
    // Those of which the broker only hangs up take the whole time that a start may take.
    let mistakes: [(&str, Way, &[&str]); 5] = [
        ("TLS port without tls", way(kafka.tls_brokers(), &[]), &["tls"]),
        ("port without TLS with tls", way(at_localhost(kafka.brokers()), &[tls]), &["tls"]),
        ("SASL port without sasl", way(kafka.sasl_brokers(), &[]), &["sasl"]),
        ("port without SASL with sasl", way(kafka.brokers(), std::slice::from_ref(&sasl)), &["sasl"]),
        ("SASL over TLS port with sasl only", way(kafka.sasl_tls_brokers(), &[sasl]), &["tls"]),
    ];
    ensure_told(case, &kafka, &mistakes)
}

/// A connection as the configuration would make it.
fn connection(brokers: &str, tls: Option<&Path>, sasl: Option<SaslSpec>) -> KafkaConnection {
    KafkaConnection {
        brokers: vec![brokers.to_owned()],
        tls: tls.map(|ca| TlsSpec { ca: Some(ca.to_owned()), ..TlsSpec::default() }),
        sasl,
        client: KafkaClient::Columnar(ColumnarSettings::default()),
        properties: [].into(),
    }
}

/// Publishes one event by the columnar producer alone; gives its error.
fn publish(connection: &KafkaConnection, topic: &str) -> anyhow::Result<Option<BrokerError>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (producer, driver) = match KafkaProducer::connect(connection, "secure") {
            Ok(connected) => connected,
            Err(error) => return Ok(Some(error)),
        };
        #[expect(clippy::disallowed_methods, reason = "awaited below")]
        let driver = tokio::spawn(driver.context("no driver")?.run());
        let sink = producer.sink(topic);
        let mut builder = BatchBuilder::default();
        let origin = Origin { slot: Slot(0), offset: 0 };
        builder.append(origin, None, Some(b"value"), 1_700_000_000_000, std::iter::empty());
        let published = async { sink.publish(Publication::unchanged(builder.finish())).await?.await };
        let published = tokio::time::timeout(LIMIT, published).await.context("no answer")?;
        let close = Instant::now();
        producer.close(LIMIT).await;
        ensure!(close.elapsed() < LIMIT / 3, "closing took {:?}", close.elapsed());
        driver.await?;
        Ok(published.err())
    })
}

fn secret(mechanism: SaslMechanism, user: &str, password: &str) -> SaslSpec {
    SaslSpec::Password { mechanism, username: user.to_owned(), password: Secret(password.to_owned()) }
}

fn the_columnar_client_refuses_by_itself(case: &Case) -> anyhow::Result<()> {
    use BrokerErrorKind::{Denied, Settings};
    use SaslMechanism::{Plain, ScramSha256, ScramSha512};
    for version in VERSIONS {
        let kafka = case.secure_kafka_of(version)?;
        let topic = case.topic(&format!("{version:?}"));
        Client::new(&kafka.brokers()).create_topic(&topic, 1, &[])?;
        let ca = kafka.certificate();
        let other = other_authority(case);
        let other = if version == VERSIONS[0] { other? } else { case.dir().join("other.pem") };
        let proxy = elsewhere(&kafka.tls_brokers())?;
        let by_token = |token: &str| Some(SaslSpec::Token(TokenSource::Value(Secret(token.to_owned()))));
        let (sasl, sasl_tls) = (kafka.sasl_brokers(), kafka.sasl_tls_brokers());
        let mut mistakes = Vec::new();
        for mechanism in [Plain, ScramSha256, ScramSha512] {
            let wrong = Some(secret(mechanism, ADMIN, WRONG));
            mistakes.push((connection(&sasl, None, wrong.clone()), Denied, "refused user `admin`"));
            mistakes.push((connection(&sasl_tls, Some(&ca), wrong), Denied, "refused user `admin`"));
        }
        mistakes.push((connection(&sasl, None, by_token("no.token.")), Denied, "refused the token"));
        let guest = Some(secret(Plain, GUEST, PASSWORD));
        mistakes.push((connection(&sasl, None, guest), Denied, "AUTHORIZATION_FAILED"));
        mistakes.push((
            connection(&kafka.tls_brokers(), Some(&other), None),
            Settings,
            "not in the file of `tls: { ca }`",
        ));
        mistakes.push((connection(&proxy.address(), Some(&ca), None), Settings, "is not for `127.0.0.2`"));
        mistakes.push((connection(&kafka.tls_brokers(), None, None), Settings, "does this port expect TLS?"));
        for (connection, kind, words) in &mistakes {
            let error = publish(connection, &topic)?.with_context(|| format!("{words}: it was published"))?;
            ensure!(error.kind == *kind && error.reason.contains(words), "{error} ({:?}), without {words}", error.kind);
            ensure!(!error.to_string().contains(WRONG), "{error}");
        }
        ensure!(publish(&connection(&sasl, None, by_token(&token(ADMIN, LIFETIME))), &topic)?.is_none(), "a token");
        ensure!(Client::new(&kafka.brokers()).count(&[&topic])? == 1, "something was published");
    }
    Ok(())
}

/// It may look at the topic and not write to it: what it has is given up, and nothing waits for it.
fn a_producer_that_was_refused_closes_at_once(case: &Case) -> anyhow::Result<()> {
    let kafka = case.secure_kafka_of(Version::default())?;
    let topic = case.topic("closed");
    Client::new(&kafka.brokers()).create_topic(&topic, 1, &[])?;
    // Who may write to no topic at all is not even given a producer id.
    kafka.allow("Write", ["--topic", &case.topic("another")])?;
    kafka.allow("Describe", ["--topic", &topic])?;
    let guest = Some(secret(SaslMechanism::Plain, GUEST, PASSWORD));
    let error = publish(&connection(&kafka.sasl_brokers(), None, guest), &topic)?.context("it was published")?;
    ensure!(error.kind == BrokerErrorKind::Denied && error.action.contains(&topic), "{error}");
    Ok(())
}
