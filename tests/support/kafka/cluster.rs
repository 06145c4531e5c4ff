//! Three brokers and a controller: leaders move, brokers are killed and come back, and with two of three brokers
//! nothing that was acknowledged may be lost.
//!
//! The controller is a process of its own that no test ends: what is tested is how a client follows the leaders, not
//! how Kafka elects its controller.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};

pub(crate) use super::admin::Partition;
use super::admin::{Admin, View};
use super::jars::Version;
use super::node::{self, Node, START, wait_to_end};
use super::{free_ports, make_ready};
use crate::support::client::Client;
use crate::support::process::Signal;
use crate::support::proxy::Proxy;
use crate::support::wait::wait_until;

/// How many brokers there are; their ids are 1, 2 and 3.
pub(crate) const BROKERS: usize = 3;
/// The longest wait for a leader to be elected or a replica to be in sync again.
const SETTLED: Duration = Duration::from_secs(60);

/// A running cluster. All of its processes end, and their folders go, when this value is dropped.
pub(crate) struct Cluster {
    // In this order they are dropped: brokers that lose their controller complain for longer.
    brokers: Vec<Broker>,
    controller: Node,
}

struct Broker {
    id: i32,
    port: u16,
    node: Node,
    proxy: Proxy,
}

impl Cluster {
    /// Starts the cluster and waits until it takes events on all brokers. Topics are kept three times by default, and
    /// an event is acknowledged when two brokers have it. Each broker has a further listener that is reached through a
    /// proxy only: whoever begins at [`proxied`](Self::proxied) is sent back there for everything.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start(version: Version) -> anyhow::Result<Self> {
        let [port, ports @ ..]: [u16; 2 * BROKERS + 1] = free_ports()?;
        let quorum = format!(
            "{}{}controller.quorum.voters=100@127.0.0.1:{port}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT\n",
            node::SETTINGS,
            node::replication(BROKERS),
        );
        let controller = Node::new(version)?;
        let listeners = format!("listeners=CONTROLLER://127.0.0.1:{port}\n");
        // A controller has no broker among its listeners to name.
        let own = quorum.replace("inter.broker.listener.name=PLAINTEXT\n", "");
        let mut formats =
            vec![controller.format(&format!("{own}process.roles=controller\nnode.id=100\n{listeners}"), &[])?];
        let mut brokers = Vec::with_capacity(BROKERS);
        let (direct, behind) = ports.split_at(BROKERS);
        for ((id, &port), &behind) in (1..).zip(direct).zip(behind) {
            let (node, proxy) = (Node::new(version)?, Proxy::start()?);
            proxy.forward_to(behind);
            let own = format!(
                "process.roles=broker\nnode.id={id}\n\
                 listeners=PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{behind}\n\
                 advertised.listeners=PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxied}\n",
                proxied = proxy.port()
            );
            formats.push(node.format(&format!("{quorum}{own}"), &[])?);
            brokers.push(Broker { id, port, node, proxy });
        }
        for format in formats {
            wait_to_end(format, "StorageTool")?;
        }
        let mut cluster = Self { brokers, controller };
        cluster.controller.start()?;
        for broker in &mut cluster.brokers {
            broker.node.start()?;
        }
        cluster.wait_for_all_brokers()?;
        make_ready(&cluster.client())?;
        cluster.wait_until_in_sync()?;
        Ok(cluster)
    }

    /// `host:port` of all brokers, also of those that are down.
    pub(crate) fn brokers(&self) -> String {
        let addresses: Vec<_> = self.brokers.iter().map(|broker| format!("127.0.0.1:{}", broker.port)).collect();
        addresses.join(",")
    }

    /// The ports of all brokers by their ids, also of those that are down.
    pub(crate) fn ports(&self) -> BTreeMap<i32, u16> {
        self.brokers.iter().map(|broker| (broker.id, broker.port)).collect()
    }

    /// `host:port` of all brokers, each through its proxy.
    pub(crate) fn proxied(&self) -> Vec<String> {
        self.brokers.iter().map(|broker| broker.proxy.address()).collect()
    }

    /// The network in front of a broker, for those who begin at [`proxied`](Self::proxied).
    ///
    /// # Errors
    /// When there is no such broker.
    pub(crate) fn proxy(&mut self, id: i32) -> anyhow::Result<&Proxy> {
        Ok(&self.broker(id)?.proxy)
    }

    /// A client of the whole cluster.
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.brokers())
    }

    fn broker(&mut self, id: i32) -> anyhow::Result<&mut Broker> {
        self.brokers.iter_mut().find(|broker| broker.id == id).with_context(|| format!("there is no broker {id}"))
    }

    /// Ends a broker at once (kill -9). Its partitions have another leader when its session has timed out, after
    /// about 2 s.
    ///
    /// # Errors
    /// When the system refuses, or there is no such broker.
    pub(crate) fn kill(&mut self, id: i32) -> anyhow::Result<()> {
        self.broker(id)?.node.kill()
    }

    /// Ends a broker in order: it gives its partitions away first.
    ///
    /// # Errors
    /// When it does not end.
    pub(crate) fn stop(&mut self, id: i32) -> anyhow::Result<()> {
        self.broker(id)?.node.stop()
    }

    /// Holds a broker as a machine that hangs would be held ([`Signal::Stop`]), or lets it go on.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn signal(&mut self, id: i32, signal: Signal) -> anyhow::Result<()> {
        self.broker(id)?.node.signal(signal)
    }

    /// Starts a broker again that was ended, and waits until all replicas are in sync.
    ///
    /// # Errors
    /// When that does not come to be.
    pub(crate) fn restart(&mut self, id: i32) -> anyhow::Result<()> {
        self.restart_all(&[id])
    }

    /// [`restart`](Self::restart) for several at once.
    ///
    /// # Errors
    /// When that does not come to be.
    pub(crate) fn restart_all(&mut self, ids: &[i32]) -> anyhow::Result<()> {
        for id in ids {
            self.broker(*id)?.node.start()?;
        }
        self.wait_for_all_brokers()?;
        self.wait_until_in_sync()
    }

    /// Waits until every broker sees a leader for every partition of every topic, and all replicas in sync.
    ///
    /// # Errors
    /// When that does not come to be.
    pub(crate) fn wait_until_in_sync(&mut self) -> anyhow::Result<()> {
        wait_until(SETTLED, "all replicas to be in sync", || {
            self.ensure_running()?;
            let settled = |partition: &Partition| {
                partition.leader.is_some() && partition.in_sync.len() == partition.replicas.len()
            };
            let views = self.views();
            Ok(views.iter().all(|view| view.topics.values().flatten().all(settled)).then_some(()))
        })
    }

    fn wait_for_all_brokers(&mut self) -> anyhow::Result<()> {
        wait_until(START, "all brokers to answer", || {
            self.ensure_running()?;
            let views = self.views();
            Ok((views.len() == BROKERS && views.iter().all(|view| view.brokers.len() == BROKERS)).then_some(()))
        })
    }

    /// What each broker knows that answers.
    fn views(&self) -> Vec<View> {
        let started = self.brokers.iter().filter(|broker| broker.node.is_started());
        started.filter_map(|broker| Admin::connect(broker.port).ok()?.view().ok()).collect()
    }

    fn admin(&self) -> anyhow::Result<Admin> {
        let mut started = self.brokers.iter().filter(|broker| broker.node.is_started());
        started.find_map(|broker| Admin::connect(broker.port).ok()).context("no broker listens")
    }

    /// The partitions of a topic, as one of the brokers sees them.
    ///
    /// # Errors
    /// When no broker answers, or it knows no such topic.
    pub(crate) fn partitions(&self, topic: &str) -> anyhow::Result<Vec<Partition>> {
        let mut view = self.admin()?.view()?;
        view.topics.remove(topic).with_context(|| format!("there is no topic {topic}"))
    }

    fn ensure_running(&mut self) -> anyhow::Result<()> {
        self.controller.ensure_running()?;
        let mut started = self.brokers.iter_mut().filter(|broker| broker.node.is_started());
        started.try_for_each(|broker| broker.node.ensure_running())
    }

    /// Who leads each partition of a topic; a partition without a leader is left out.
    ///
    /// # Errors
    /// When no broker answers.
    pub(crate) fn leaders(&self, topic: &str) -> anyhow::Result<BTreeMap<i32, i32>> {
        let partitions = self.partitions(topic)?;
        Ok(partitions.iter().filter_map(|partition| Some((partition.id, partition.leader?))).collect())
    }

    /// [`leaders`](Self::leaders), as another broker than this one sees them: one that hangs does not answer.
    ///
    /// # Errors
    /// When no other broker answers.
    pub(crate) fn leaders_but(&self, topic: &str, broker: i32) -> anyhow::Result<BTreeMap<i32, i32>> {
        let mut others = self.brokers.iter().filter(|other| other.id != broker && other.node.is_started());
        let mut admin = others.find_map(|other| Admin::connect(other.port).ok()).context("no broker listens")?;
        let mut view = admin.view()?;
        let partitions = view.topics.remove(topic).with_context(|| format!("there is no topic {topic}"))?;
        Ok(partitions.iter().filter_map(|partition| Some((partition.id, partition.leader?))).collect())
    }

    /// Waits until a topic that loses nothing holds `events` events, also while brokers come and go; gives how many
    /// there are by then. librdkafka's client may wait half a minute for a broker that was killed.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub(crate) fn wait_for_events(&self, limit: Duration, topic: &str, events: i64) -> anyhow::Result<i64> {
        let mut last = 0;
        wait_until(limit, &format!("{events} events in {topic}"), || {
            last = self.count(topic).unwrap_or(last);
            Ok((last >= events).then_some(last))
        })
        .with_context(|| format!("{last} events are there"))
    }

    /// How many events a topic holds from which none was deleted.
    ///
    /// # Errors
    /// When a partition has no leader that answers.
    pub(crate) fn count(&self, topic: &str) -> anyhow::Result<i64> {
        let mut count = 0;
        for partition in self.partitions(topic)? {
            let leader = self.brokers.iter().find(|broker| partition.leader == Some(broker.id));
            let leader = leader.with_context(|| format!("nobody leads {topic}[{}]", partition.id))?;
            count += Admin::connect(leader.port)?.end(topic, partition.id)?;
        }
        Ok(count)
    }

    /// Leaves all of a topic to one broker: while that is down nobody has it.
    ///
    /// # Errors
    /// When the controller refuses, or the broker is not in sync in time.
    pub(crate) fn leave_to(&self, topic: &str, broker: i32) -> anyhow::Result<()> {
        let partitions = self.partitions(topic)?;
        self.move_leaders(topic, &partitions.iter().map(|found| found.id).collect::<Vec<_>>(), broker)?;
        let alone: Vec<_> = partitions.iter().map(|found| (found.id, vec![broker])).collect();
        self.admin()?.order_replicas(topic, &alone)
    }

    /// Has all brokers keep a topic again, and waits until they do.
    ///
    /// # Errors
    /// When the controller refuses, or that does not come to be.
    pub(crate) fn spread(&mut self, topic: &str) -> anyhow::Result<()> {
        let all: Vec<i32> = self.brokers.iter().map(|broker| broker.id).collect();
        let partitions = self.partitions(topic)?;
        let spread: Vec<_> = partitions.iter().map(|found| (found.id, all.clone())).collect();
        self.admin()?.order_replicas(topic, &spread)?;
        wait_until(SETTLED, &format!("all brokers to keep {topic}"), || {
            Ok(self.partitions(topic)?.iter().all(|found| found.in_sync.len() == BROKERS).then_some(()))
        })
    }

    /// Makes `to` the leader of these partitions, once it is in sync; no data is moved, so that this takes
    /// milliseconds.
    ///
    /// # Errors
    /// When the controller refuses, or the leader is still another one after a while.
    pub(crate) fn move_leaders(&self, topic: &str, partitions: &[i32], to: i32) -> anyhow::Result<()> {
        let mut replicas = Vec::with_capacity(partitions.len());
        for partition in self.partitions(topic)?.iter().filter(|found| partitions.contains(&found.id)) {
            ensure!(partition.replicas.contains(&to), "broker {to} has no replica of {topic}[{}]", partition.id);
            let others = partition.replicas.iter().copied().filter(|id| *id != to);
            replicas.push((partition.id, std::iter::once(to).chain(others).collect()));
        }
        ensure!(replicas.len() == partitions.len(), "{topic} has no partitions {partitions:?}");
        let mut admin = self.admin()?;
        admin.order_replicas(topic, &replicas)?;
        wait_until(SETTLED, &format!("broker {to} to lead {topic}{partitions:?}"), || {
            // On a busy machine a replica falls behind for a moment.
            if !admin.elect_first(topic, partitions.to_vec())? {
                return Ok(None);
            }
            let leaders = self.leaders(topic)?;
            Ok(partitions.iter().all(|partition| leaders.get(partition) == Some(&to)).then_some(()))
        })
    }
}
