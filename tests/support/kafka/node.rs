//! One process of Apache Kafka, its folder and its settings; what it is part of is up to the caller.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{bail, ensure};
use tempfile::TempDir;

use super::jars::{Version, java};
use crate::support::process::{Process, Signal};

/// How long a broker may take to answer; about 4 s when the machine does nothing else.
pub(super) const START: Duration = Duration::from_secs(120);
/// Any cluster id will do: 16 bytes in URL-safe base64.
const CLUSTER: &str = "Zmx1eG1pbGwtdGVzdHMtMQ";

/// What every broker of the tests is set to. One that was killed comes back only when its old session has timed out,
/// so that is short; the groups' is left to each test. Leaders move only when a test says so.
pub(super) const SETTINGS: &str = "\
auto.create.topics.enable=false
auto.leader.rebalance.enable=false
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.heartbeat.interval.ms=250
broker.session.timeout.ms=2000
num.partitions=1
log.retention.ms=-1
log.message.timestamp.after.max.ms=9223372036854775807
log.cleaner.backoff.ms=200
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
log.cleaner.dedupe.buffer.size=4194304
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
";

/// How often the topics of Kafka itself are kept, of `brokers` brokers.
pub(super) fn replication(brokers: usize) -> String {
    let in_sync = brokers.saturating_sub(1).max(1);
    format!(
        "default.replication.factor={brokers}\n\
         min.insync.replicas={in_sync}\n\
         offsets.topic.replication.factor={brokers}\n\
         transaction.state.log.replication.factor={brokers}\n\
         transaction.state.log.min.isr={in_sync}\n\
         share.coordinator.state.topic.replication.factor={brokers}\n\
         share.coordinator.state.topic.min.isr={in_sync}\n"
    )
}

/// A process that may run or not. It ends, and its folder goes, when this value is dropped.
pub(super) struct Node {
    // Before the folder: the process must have ended when that is removed.
    process: Option<Process>,
    dir: TempDir,
    version: Version,
}

impl Node {
    /// A folder for a node that does not run yet.
    ///
    /// # Errors
    /// When there is none to be had.
    pub(super) fn new(version: Version) -> anyhow::Result<Self> {
        Ok(Self { process: None, dir: TempDir::with_prefix("fluxmill-kafka-")?, version })
    }

    /// Its folder.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its release.
    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// Writes its settings and starts the tool that makes its folder a node's, `more` being further arguments of that;
    /// to be waited for by [`wait_to_end`].
    ///
    /// # Errors
    /// When the tool cannot be started.
    pub(super) fn format(&self, settings: &str, more: &[String]) -> anyhow::Result<Process> {
        let file = self.dir().join("server.properties");
        fs::write(&file, format!("{settings}log.dirs={}\n", self.dir().join("log").display()))?;
        let mut format = java(self.version)?;
        format.args(["kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c"]).arg(file).args(more);
        Process::start("StorageTool", &mut format)
    }

    /// Starts the process; does not wait until it is any use.
    ///
    /// # Errors
    /// When it runs already, or cannot be started.
    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        ensure!(self.process.is_none(), "the broker still runs");
        let mut kafka = java(self.version)?;
        kafka.arg("kafka.Kafka").arg(self.dir().join("server.properties"));
        self.process = Some(Process::start("Kafka", &mut kafka)?);
        Ok(())
    }

    /// Whether it was started and not ended by the test.
    pub(super) fn is_started(&self) -> bool {
        self.process.is_some()
    }

    /// Passes when the process runs.
    ///
    /// # Errors
    /// When it ended by itself, with what it wrote.
    pub(super) fn ensure_running(&mut self) -> anyhow::Result<()> {
        let Some(process) = &mut self.process else { bail!("the broker was not started") };
        if let Some(status) = process.ended()? {
            bail!("Kafka ended ({status}):\n{}", process.output().text());
        }
        Ok(())
    }

    /// Ends it at once, as a power cut of its process would.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// When it does not end.
    pub(super) fn stop(&mut self) -> anyhow::Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.signal(Signal::Term)?;
        process.wait(START).map(|_| ())
    }

    /// Holds it as a machine that hangs would be held, or lets it go on.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        self.process.as_mut().map_or(Ok(()), |process| process.signal(signal))
    }
}

/// Waits for a tool to end well.
///
/// # Errors
/// When it does not, with what it wrote.
pub(super) fn wait_to_end(mut tool: Process, name: &str) -> anyhow::Result<()> {
    let status = tool.wait(START)?;
    ensure!(status.success(), "{name} ({status}):\n{}", tool.output().text());
    Ok(())
}
