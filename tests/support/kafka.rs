//! A real Apache Kafka: KRaft, from the artifacts in Maven Central, on free ports of 127.0.0.1. One process here; three
//! of them in [`cluster`].

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, ensure};

pub(crate) use self::jars::{Missing, Version, class_path, runs};
use self::node::{Node, START, wait_to_end};
pub(crate) use self::secure::{ADMIN, GUEST, PASSWORD, token};
use super::client::{Client, Record};
use super::process::{Process, Signal};
use super::proxy::Proxy;
use super::wait::wait_until;

mod admin;
pub(crate) mod cluster;
pub(crate) mod follower;
mod jars;
mod node;
mod secure;
mod segments;

/// The topic of the event that a broker takes before the tests get it.
const READY: &str = "ready";

/// What a broker is started with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// The release.
    pub(crate) version: Version,
    /// Listeners with TLS and with SASL (PLAIN, SCRAM, OAUTHBEARER), and an authorizer for [`GUEST`].
    pub(crate) secure: bool,
    /// With `secure`: how long a SASL client may go on before it has to authenticate again.
    pub(crate) reauthenticate: Option<Duration>,
    /// Further settings, such as `message.max.bytes=2000000`.
    pub(crate) settings: Vec<&'static str>,
}

/// A running broker. It ends, and its folder goes, when this value is dropped.
pub(crate) struct Kafka {
    node: Node,
    ports: Ports,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    plain: u16,
    controller: u16,
    /// Behind a proxy: where the broker listens, and where it says that it does.
    behind: u16,
    proxied: Option<u16>,
    sasl: u16,
    tls: u16,
    sasl_tls: u16,
}

impl Kafka {
    /// Starts a broker and waits until it takes events.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start(options: Options) -> anyhow::Result<Self> {
        Self::start_on(&options, None)
    }

    /// Starts a broker with a further listener that is reached through a proxy only: whoever begins at
    /// [`Proxy::address`] is sent back there by the broker for everything, and whoever begins at
    /// [`brokers`](Self::brokers) never comes near it.
    ///
    /// # Errors
    /// When either does not start.
    pub(crate) fn start_behind_proxy(options: Options) -> anyhow::Result<(Self, Proxy)> {
        let proxy = Proxy::start()?;
        let kafka = Self::start_on(&options, Some(proxy.port()))?;
        proxy.forward_to(kafka.ports.behind);
        Ok((kafka, proxy))
    }

    fn start_on(options: &Options, proxied: Option<u16>) -> anyhow::Result<Self> {
        let node = Node::new(options.version)?;
        let [plain, controller, behind, sasl, tls, sasl_tls] = free_ports()?;
        let ports = Ports { plain, controller, behind, proxied, sasl, tls, sasl_tls };
        let mut users = Vec::new();
        if options.secure {
            secure::make_certificate(node.dir())?;
            users = secure::scram_users();
        }
        let mut kafka = Self { node, ports };
        wait_to_end(kafka.node.format(&kafka.settings(options), &users)?, "StorageTool")?;
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

    /// `host:port` of the listener with SASL over TLS.
    pub(crate) fn sasl_tls_brokers(&self) -> String {
        format!("localhost:{}", self.ports.sasl_tls)
    }

    /// The certificate that the TLS listeners show (PEM); its own authority.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.node.dir().join("certificate.pem")
    }

    /// Ends the broker at once, as a power cut of its process would.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.node.kill()
    }

    /// Ends the broker in order.
    ///
    /// # Errors
    /// When it does not end.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        self.node.stop()
    }

    /// Holds the broker as a machine that hangs would be held ([`Signal::Stop`]), or lets it go on.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        self.node.signal(signal)
    }

    /// Starts the broker again on the same ports with the same data, and waits until it takes events.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        self.node.start()?;
        let client = Client::new(&self.brokers());
        wait_until(START, "Kafka to answer", || {
            self.node.ensure_running()?;
            Ok(client.answers().then_some(()))
        })?;
        make_ready(&client)
    }

    /// Allows [`GUEST`] an operation, such as `Read`, on a resource, such as `["--topic", "orders"]`.
    ///
    /// # Errors
    /// When Kafka's own tool reports one.
    pub(crate) fn allow(&self, operation: &str, resource: [&str; 2]) -> anyhow::Result<()> {
        let mut acl = jars::java(self.node.version())?;
        acl.args(["org.apache.kafka.tools.AclCommand", "--bootstrap-server", &self.brokers(), "--add"]);
        acl.args(["--allow-principal", &format!("User:{GUEST}"), "--operation", operation]).args(resource);
        wait_to_end(Process::start("AclCommand", &mut acl)?, "AclCommand")
    }

    /// Reads `events` events with Kafka's own consumer in Java; gives a line `KEY<tab>VALUE` for each, partition by
    /// partition as they came. For events whose key and value are text without line breaks.
    ///
    /// # Errors
    /// When they do not come.
    pub(crate) fn read_with_java(&self, topic: &str, events: usize) -> anyhow::Result<Vec<String>> {
        let mut consumer = jars::java(self.node.version())?;
        consumer.args(["org.apache.kafka.tools.consumer.ConsoleConsumer", "--bootstrap-server", &self.brokers()]);
        consumer.args(["--topic", topic, "--from-beginning", "--max-messages", &events.to_string()]);
        // `--property` goes with Kafka 5, its successor came with 4.2.
        consumer.args(["--property", "print.key=true", "--timeout-ms", "30000"]);
        let mut process = Process::start("ConsoleConsumer", &mut consumer)?;
        let status = process.wait(START)?;
        ensure!(status.success(), "ConsoleConsumer ({status}):\n{}", process.output().text());
        Ok(process.output().lines().into_iter().filter(|line| !line.stderr).map(|line| line.text).collect())
    }

    /// With which codecs the record batches of a topic lie on the broker's disk, each named once.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) fn segment_codecs(&self, topic: &str) -> anyhow::Result<BTreeSet<&'static str>> {
        segments::codecs(&self.node.dir().join("log"), topic)
    }

    fn settings(&self, options: &Options) -> String {
        let Ports { plain, controller, behind, proxied, sasl, tls, sasl_tls } = self.ports;
        let mut text = format!(
            "{SETTINGS}{replication}\
             process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT,\
             SASL:SASL_PLAINTEXT,TLS:SSL,SASL_TLS:SASL_SSL\n",
            SETTINGS = node::SETTINGS,
            replication = node::replication(1),
        );
        let mut listeners = vec![format!("PLAINTEXT://127.0.0.1:{plain}")];
        if options.secure {
            listeners.push(format!("SASL://127.0.0.1:{sasl}"));
            listeners.push(format!("TLS://localhost:{tls}"));
            listeners.push(format!("SASL_TLS://localhost:{sasl_tls}"));
            text += &secure::settings(self.node.dir(), options.reauthenticate);
        }
        let mut advertised = listeners.clone();
        if let Some(proxied) = proxied {
            listeners.push(format!("PROXIED://127.0.0.1:{behind}"));
            advertised.push(format!("PROXIED://127.0.0.1:{proxied}"));
        }
        text += &format!("listeners={},CONTROLLER://127.0.0.1:{controller}\n", listeners.join(","));
        text += &format!("advertised.listeners={}\n", advertised.join(","));
        for setting in &options.settings {
            text += &format!("{setting}\n");
        }
        text
    }
}

/// A broker answers before it can give out producer ids; after one event it does both.
fn make_ready(client: &Client) -> anyhow::Result<()> {
    if !client.topics()?.iter().any(|topic| topic == READY) {
        client.create_topic(READY, 1, &[])?;
    }
    client.produce(READY, [Record::default()])
}

/// Listens on a free port from below the range that systems give to outgoing connections: a client that knocks at the
/// port of a broker that is down must not be given that very port as its own.
pub(crate) fn listen(host: &str) -> anyhow::Result<TcpListener> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let attempt = |_| {
        let number = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Relaxed));
        let candidate = 20_000 + u16::try_from(number % 12_000).ok()?;
        TcpListener::bind((host, candidate)).ok()
    };
    (0..1000).find_map(attempt).context("no free port")
}

/// Ports that were free a moment ago, all different. For other processes only: one that was started at the very same
/// time holds a copy of everything that was open here, until it is itself, and such a port cannot be taken again at once.
pub(crate) fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    let listeners: Vec<_> = (0..N).map(|_| listen("127.0.0.1")).collect::<Result<_, _>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
