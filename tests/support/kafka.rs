//! A real Apache Kafka: one process, KRaft, from the artifacts in Maven Central, on free ports of 127.0.0.1.

use std::fs::{self, File, TryLockError};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use super::client::{Client, Record};
use super::process::{Fluxmill, Process, Signal};
use super::wait::wait_until;

/// The version; tests/support/kafka/pom.xml says the same.
const VERSION: &str = "4.1.0";
/// How long Maven may take to fetch about 55 MB.
const FETCH: Duration = Duration::from_secs(600);
/// How long a broker may take to answer; about 4 s when the machine does nothing else.
const START: Duration = Duration::from_secs(120);
/// The topic of the event that a broker takes before the tests get it.
const READY: &str = "ready";
/// Flags for a JVM that lives for a minute: quick to start, one core's worth of helpers, bounded memory.
const JVM: [&str; 5] =
    ["-Xmx768m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-Djava.awt.headless=true"];
/// The password of both users of [`Options::secure`], and of the key store.
pub(crate) const PASSWORD: &str = "not-a-secret";
/// A user who may do everything.
pub(crate) const ADMIN: &str = "admin";
/// A user who may do only what [`Kafka::allow`] allowed.
pub(crate) const GUEST: &str = "guest";

/// Why there is no broker on this machine, for a person.
#[derive(Clone, Debug)]
pub(crate) struct Missing(pub(crate) String);

/// The class path of Kafka's jars, fetched once for all test processes.
///
/// # Errors
/// When this machine has no Java, or no Maven to fetch the jars with.
pub(crate) fn class_path() -> Result<&'static str, Missing> {
    static FOUND: OnceLock<Result<String, Missing>> = OnceLock::new();
    FOUND.get_or_init(find_class_path).as_deref().map_err(Clone::clone)
}

fn find_class_path() -> Result<String, Missing> {
    if !runs("java", "-version") {
        return Err(Missing("needs `java` (17 or later) to run Apache Kafka".to_owned()));
    }
    let cache = cache_dir();
    let lib = cache.join("lib");
    if !lib.is_dir() {
        if !runs("mvn", "-version") {
            return Err(Missing(format!("needs `mvn` to fetch Apache Kafka {VERSION} once into {}", lib.display())));
        }
        fetch(&cache, &lib).map_err(|error| Missing(format!("cannot fetch Apache Kafka {VERSION}: {error:#}")))?;
    }
    Ok(format!("{}/*", lib.display()))
}

/// Where the jars are kept: `$FLUXMILL_TEST_CACHE`, else beside the build in Cargo's target folder.
fn cache_dir() -> PathBuf {
    let base = match std::env::var_os("FLUXMILL_TEST_CACHE") {
        Some(dir) => PathBuf::from(dir),
        // target/debug/fluxmill
        None => Fluxmill::binary().ancestors().nth(2).map_or_else(std::env::temp_dir, Path::to_path_buf),
    };
    base.join(format!("kafka-{VERSION}"))
}

/// Whether a program is there and runs.
pub(crate) fn runs(program: &str, argument: &str) -> bool {
    let command =
        Command::new(program).arg(argument).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    command.is_ok_and(|status| status.success())
}

/// Fetches the jars beside `lib` and moves them there whole; a lock keeps a second test process from doing the same.
fn fetch(cache: &Path, lib: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(cache)?;
    let lock = File::create(cache.join("lock"))?;
    wait_until(FETCH, "another test process that fetches Kafka", || match lock.try_lock() {
        Ok(()) => Ok(Some(())),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error.into()),
    })?;
    if lib.is_dir() {
        return Ok(());
    }
    let part = TempDir::new_in(cache)?;
    let mut maven = Command::new("mvn");
    maven.args(["-q", "-B", "-f"]).arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/kafka/pom.xml"));
    maven.arg("dependency:copy-dependencies").arg(format!("-DoutputDirectory={}", part.path().display()));
    let mut maven = Process::start("mvn", &mut maven)?;
    let status = maven.wait(FETCH)?;
    ensure!(status.success(), "mvn: {}", maven.output().text().lines().last().unwrap_or("no output").trim());
    fs::rename(part.keep(), lib)?;
    Ok(())
}

/// What a broker is started with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// Listeners with TLS and with SASL (PLAIN, SCRAM), and an authorizer for [`GUEST`].
    pub(crate) secure: bool,
}

/// A running broker. It ends, and its folder goes, when this value is dropped.
pub(crate) struct Kafka {
    // Before the folder: the process must have ended when that is removed.
    process: Option<Process>,
    dir: TempDir,
    ports: Ports,
    secure: bool,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    plain: u16,
    controller: u16,
    sasl: u16,
    tls: u16,
}

impl Kafka {
    /// Starts a broker and waits until it takes events.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start(options: Options) -> anyhow::Result<Self> {
        let class_path = class_path().map_err(|missing| anyhow::anyhow!(missing.0))?;
        let dir = TempDir::with_prefix("fluxmill-kafka-")?;
        let [plain, controller, sasl, tls] = free_ports()?;
        let ports = Ports { plain, controller, sasl, tls };
        let mut kafka = Self { process: None, dir, ports, secure: options.secure };
        if options.secure {
            kafka.make_certificate()?;
        }
        fs::write(kafka.dir.path().join("server.properties"), kafka.properties())?;
        kafka.format(class_path)?;
        kafka.restart()?;
        Ok(kafka)
    }

    /// `host:port` of the listener without any security.
    pub(crate) fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.ports.plain)
    }

    /// `host:port` of the listener with SASL, no TLS.
    pub(crate) fn sasl_brokers(&self) -> String {
        format!("127.0.0.1:{}", self.ports.sasl)
    }

    /// `host:port` of the listener with TLS, no SASL.
    pub(crate) fn tls_brokers(&self) -> String {
        format!("localhost:{}", self.ports.tls)
    }

    /// The certificate that the TLS listener shows (PEM); its own authority.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.dir.path().join("certificate.pem")
    }

    /// Ends the broker at once, as a power cut of its process would.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Ends the broker in order.
    ///
    /// # Errors
    /// When it does not end.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.signal(Signal::Term)?;
        process.wait(START).map(|_| ())
    }

    /// Starts the broker again on the same ports with the same data, and waits until it takes events.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        ensure!(self.process.is_none(), "the broker still runs");
        let class_path = class_path().map_err(|missing| anyhow::anyhow!(missing.0))?;
        let mut java = java(class_path);
        java.arg("kafka.Kafka").arg(self.dir.path().join("server.properties"));
        let client = Client::new(&self.brokers());
        let process = self.process.insert(Process::start("Kafka", &mut java)?);
        wait_until(START, "Kafka to answer", || {
            if let Some(status) = process.ended()? {
                bail!("Kafka ended ({status}):\n{}", process.output().text());
            }
            Ok(client.answers().then_some(()))
        })?;
        // A broker answers before it can give out producer ids; after one event it does both.
        if !client.topics()?.iter().any(|topic| topic == READY) {
            client.create_topic(READY, 1, &[])?;
        }
        client.produce(READY, [Record::default()])
    }

    /// Allows [`GUEST`] an operation, such as `Read`, on a resource, such as `["--topic", "orders"]`.
    ///
    /// # Errors
    /// When Kafka's own tool reports one.
    pub(crate) fn allow(&self, operation: &str, resource: [&str; 2]) -> anyhow::Result<()> {
        let class_path = class_path().map_err(|missing| anyhow::anyhow!(missing.0))?;
        let mut acl = java(class_path);
        acl.args(["org.apache.kafka.tools.AclCommand", "--bootstrap-server", &self.brokers(), "--add"]);
        acl.args(["--allow-principal", &format!("User:{GUEST}"), "--operation", operation]).args(resource);
        run(&mut acl, "AclCommand")
    }

    /// A broker that was killed comes back only when its old session has timed out, so that is short; the groups' is
    /// left to each test.
    fn properties(&self) -> String {
        let Ports { plain, controller, sasl, tls } = self.ports;
        let logs = self.dir.path().join("log");
        let mut text = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             controller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=PLAINTEXT\n\
             log.dirs={logs}\n\
             auto.create.topics.enable=false\n\
             group.initial.rebalance.delay.ms=0\n\
             group.min.session.timeout.ms=1000\n\
             broker.heartbeat.interval.ms=250\n\
             broker.session.timeout.ms=2000\n\
             num.partitions=1\n\
             log.retention.ms=-1\n\
             log.message.timestamp.after.max.ms=9223372036854775807\n\
             offsets.topic.num.partitions=4\n\
             offsets.topic.replication.factor=1\n\
             transaction.state.log.num.partitions=4\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             share.coordinator.state.topic.replication.factor=1\n\
             share.coordinator.state.topic.min.isr=1\n\
             log.cleaner.dedupe.buffer.size=4194304\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SSL\n\
             listeners=PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller}",
            logs = logs.display()
        );
        if self.secure {
            let store = self.dir.path().join("keys.p12");
            text += &format!(
                ",SASL://127.0.0.1:{sasl},TLS://localhost:{tls}\n\
                 authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                 super.users=User:ANONYMOUS;User:{ADMIN}\n\
                 sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
                 listener.name.sasl.plain.sasl.jaas.config=\
                 org.apache.kafka.common.security.plain.PlainLoginModule required \
                 user_{ADMIN}=\"{PASSWORD}\" user_{GUEST}=\"{PASSWORD}\";\n\
                 listener.name.sasl.scram-sha-256.sasl.jaas.config=\
                 org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
                 listener.name.sasl.scram-sha-512.sasl.jaas.config=\
                 org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
                 ssl.keystore.type=PKCS12\n\
                 ssl.keystore.location={store}\n\
                 ssl.keystore.password={PASSWORD}\n\
                 ssl.key.password={PASSWORD}\n",
                store = store.display()
            );
        }
        text + "\n"
    }

    /// Writes the metadata that a broker needs before its first start, the SCRAM users among them.
    fn format(&self, class_path: &str) -> anyhow::Result<()> {
        let mut format = java(class_path);
        // Any cluster id will do: 16 bytes in URL-safe base64.
        format.args(["kafka.tools.StorageTool", "format", "-t", "Zmx1eG1pbGwtdGVzdHMtMQ", "-c"]);
        format.arg(self.dir.path().join("server.properties"));
        if self.secure {
            for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
                for user in [ADMIN, GUEST] {
                    format.arg("--add-scram").arg(format!("{mechanism}=[name={user},password={PASSWORD}]"));
                }
            }
        }
        run(&mut format, "StorageTool")
    }

    /// A self-signed certificate for `localhost`, by the tool that comes with Java.
    fn make_certificate(&self) -> anyhow::Result<()> {
        let store = self.dir.path().join("keys.p12");
        let keytool = |arguments: &[&str]| {
            let mut keytool = Command::new("keytool");
            keytool.args(arguments).args(["-alias", "kafka", "-storetype", "PKCS12", "-storepass", PASSWORD]);
            keytool.arg("-keystore").arg(&store);
            keytool
        };
        let name = ["-dname", "CN=localhost", "-ext", "san=dns:localhost,ip:127.0.0.1", "-ext", "bc:c=ca:true"];
        let mut make = keytool(&["-genkeypair", "-keyalg", "EC", "-groupname", "secp256r1", "-validity", "2"]);
        run(make.args(name), "keytool")?;
        let mut export = keytool(&["-exportcert", "-rfc"]);
        run(export.arg("-file").arg(self.certificate()), "keytool")
    }
}

fn java(class_path: &str) -> Command {
    let mut java = Command::new("java");
    java.args(JVM).arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn").args(["-cp", class_path]);
    java
}

/// Runs a tool to its end.
fn run(command: &mut Command, name: &str) -> anyhow::Result<()> {
    let mut process = Process::start(name, command)?;
    let status = process.wait(START)?;
    ensure!(status.success(), "{name} ({status}):\n{}", process.output().text());
    Ok(())
}

/// Ports that were free a moment ago, all different, from below the range that systems give to outgoing connections: a
/// client that knocks at the port of a broker that is down must not be given that very port as its own.
pub(crate) fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut listeners = Vec::with_capacity(N);
    let mut ports = [0; N];
    for port in &mut ports {
        *port = (0..1000)
            .find_map(|_| {
                let number = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Relaxed));
                let candidate = 20_000 + u16::try_from(number % 12_000).ok()?;
                listeners.push(TcpListener::bind(("127.0.0.1", candidate)).ok()?);
                Some(candidate)
            })
            .context("no free port")?;
    }
    Ok(ports)
}
