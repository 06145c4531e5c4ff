//! A real nats-server with JetStream on a free port of 127.0.0.1, its store in a folder of its own, and a client.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

pub(crate) use self::jet::{Jet, Message, Stored};
use super::kafka::{Missing, listen, runs};
use super::process::{Process, Signal};
use super::wait::wait_until;

mod jet;
pub(crate) mod operator;
pub(crate) mod setup;

/// The longest that a server may take to start.
const START: Duration = Duration::from_secs(60);

/// The program: what `FLUXMILL_NATS_SERVER` names, or the one on the path, or where `go install` puts it.
fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("FLUXMILL_NATS_SERVER") {
        return path.into();
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let installed = home.join("go/bin/nats-server");
    if installed.is_file() { installed } else { "nats-server".into() }
}

/// Why there is no server on this machine, if there is none.
pub(crate) fn missing() -> Option<Missing> {
    let needs = "needs nats-server: `go install github.com/nats-io/nats-server/v2@v2.15.2`, or FLUXMILL_NATS_SERVER";
    (!runs(&program().display().to_string(), "--version")).then(|| Missing(needs.to_owned()))
}

/// Why no certificates can be made on this machine, if none can.
pub(crate) fn no_certificates() -> Option<Missing> {
    (!runs("openssl", "version")).then(|| Missing("needs `openssl`".to_owned()))
}

/// Makes `ca.pem`, `server.pem` with `server.key` for 127.0.0.1, and `client.pem` with `client.key` in a folder.
///
/// # Errors
/// When that fails.
pub(crate) fn certificates(dir: &std::path::Path) -> anyhow::Result<()> {
    let openssl = |arguments: &str| {
        let mut command = std::process::Command::new("openssl");
        command.args(arguments.split(' ')).current_dir(dir);
        let mut process = Process::start("openssl", &mut command)?;
        ensure!(process.wait(START)?.success(), "{}", process.output().text());
        anyhow::Ok(())
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=tests -days 2"))?;
    for (name, is) in [("server", "serverAuth"), ("client", "clientAuth")] {
        let text = format!("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage={is}\n");
        std::fs::write(dir.join(format!("{name}.ext")), text)?;
        openssl(&format!("req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"))?;
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 2 -extfile {name}.ext"
        ))?;
    }
    Ok(())
}

/// A running server. It ends, and its folder goes, when this value is dropped.
pub(crate) struct Nats {
    dir: TempDir,
    port: u16,
    process: Process,
}

impl Nats {
    /// Starts a server with further settings, such as `max_payload: 2MB`.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start(settings: &str) -> anyhow::Result<Self> {
        Self::start_with("", settings)
    }

    /// The same, with further settings of JetStream, such as `, limits { max_request_batch: 10 }`.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start_with(jetstream: &str, settings: &str) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("fluxmill-nats-")?;
        let port = listen("127.0.0.1")?.local_addr()?.port();
        let store = dir.path().join("store");
        // Every write is on disk before it is acknowledged: what was acknowledged survives a kill.
        let text = format!(
            "host: 127.0.0.1\nport: {port}\njetstream {{ store_dir: \"{}\", sync_interval: always{jetstream} }}\n{settings}\n",
            store.display()
        );
        std::fs::write(dir.path().join("server.conf"), text)?;
        let process = Self::run(&dir, port)?;
        Ok(Self { dir, port, process })
    }

    fn run(dir: &TempDir, port: u16) -> anyhow::Result<Process> {
        let mut command = std::process::Command::new(program());
        command.arg("-c").arg(dir.path().join("server.conf"));
        let process = Process::start("nats-server", &mut command)?;
        process.wait_for_line(START, "Server is ready").with_context(|| process.output().text())?;
        wait_until(START, "nats-server to listen", || Ok(std::net::TcpStream::connect(("127.0.0.1", port)).ok()))?;
        Ok(process)
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills it, as a power cut does.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// When it does not end.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        self.process.signal(Signal::Term)?;
        self.process.wait(START).map(drop)
    }

    /// Starts it again on the same port, with its store.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        self.process = Self::run(&self.dir, self.port)?;
        Ok(())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub(crate) fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        self.process.signal(signal)
    }

    /// A client.
    ///
    /// # Errors
    /// When it cannot connect.
    pub(crate) fn client(&self) -> anyhow::Result<Jet> {
        Jet::new(&self.url(), async_nats::ConnectOptions::new())
    }
}
