//! A real nats-server with JetStream on a free port of 127.0.0.1, its store in a folder of its own, and a client.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::stream::Config;
use async_nats::jetstream::{self, Context, consumer};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::kafka::{Missing, listen, runs};
use super::process::{Process, Signal};
use super::wait::wait_until;

/// The longest that a server may take to start.
const START: Duration = Duration::from_secs(60);
/// Messages that are published before their acknowledgements are looked at.
const WINDOW: usize = 500;

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
        let dir = TempDir::with_prefix("fluxmill-nats-")?;
        let port = listen("127.0.0.1")?.local_addr()?.port();
        let store = dir.path().join("store");
        // Every write is on disk before it is acknowledged: what was acknowledged survives a kill.
        let text = format!(
            "host: 127.0.0.1\nport: {port}\njetstream {{ store_dir: \"{}\", sync_interval: always }}\n{settings}\n",
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

/// A message that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) subject: String,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Vec<u8>,
}

impl Stored {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.as_str())
    }
}

/// A client of JetStream that blocks.
pub(crate) struct Jet {
    runtime: Runtime,
    context: Context,
}

impl Jet {
    /// Connects.
    ///
    /// # Errors
    /// When that fails.
    pub(crate) fn new(url: &str, options: async_nats::ConnectOptions) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let context = runtime.block_on(async { anyhow::Ok(jetstream::new(options.connect(url).await?)) })?;
        Ok(Self { runtime, context })
    }

    /// Creates a stream that keeps everything on disk.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) fn create(&self, name: &str, subjects: &[&str]) -> anyhow::Result<()> {
        let subjects = subjects.iter().map(|&subject| subject.to_owned()).collect();
        self.create_with(Config { name: name.to_owned(), subjects, ..Config::default() })
    }

    /// Creates a stream.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) fn create_with(&self, config: Config) -> anyhow::Result<()> {
        self.runtime.block_on(self.context.create_stream(config)).map(|_| ()).context("create a stream")
    }

    /// Changes a stream.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) fn update(&self, config: Config) -> anyhow::Result<()> {
        self.runtime.block_on(self.context.update_stream(config)).map(|_| ()).context("change a stream")
    }

    /// Publishes and waits until all is acknowledged.
    ///
    /// # Errors
    /// When something is not.
    pub(crate) fn publish(
        &self,
        messages: impl IntoIterator<Item = (String, HeaderMap, Vec<u8>)>,
    ) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let mut acks = Vec::with_capacity(WINDOW);
            for (subject, headers, payload) in messages {
                acks.push(self.context.publish_with_headers(subject, headers, payload.into()).await?);
                if acks.len() == WINDOW {
                    for ack in acks.drain(..) {
                        ack.await?;
                    }
                }
            }
            for ack in acks {
                ack.await?;
            }
            Ok(())
        })
    }

    /// How many messages a stream has taken so far; 0 while it is not there.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(crate) fn count(&self, stream: &str) -> anyhow::Result<u64> {
        self.runtime.block_on(async {
            match self.context.get_stream(stream).await {
                Ok(stream) => Ok(stream.cached_info().state.last_sequence),
                Err(error) if error.to_string().contains("not found") => Ok(0),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// How many messages a stream holds now.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(crate) fn held(&self, stream: &str) -> anyhow::Result<u64> {
        self.runtime.block_on(async { Ok(self.context.get_stream(stream).await?.cached_info().state.messages) })
    }

    /// Waits until a stream has taken so many messages. A server that is away is waited for.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub(crate) fn wait_for(&self, limit: Duration, stream: &str, messages: u64) -> anyhow::Result<u64> {
        let mut last = 0;
        let found = wait_until(limit, &format!("{messages} messages in {stream}"), || {
            last = self.count(stream).unwrap_or(last);
            Ok((last >= messages).then_some(last))
        });
        found.with_context(|| format!("{last} are there"))
    }

    /// What the server says of a consumer.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn consumer(&self, stream: &str, durable: &str) -> anyhow::Result<consumer::Info> {
        self.runtime.block_on(async {
            let stream = self.context.get_stream(stream).await?;
            Ok(stream.consumer_info(durable).await?)
        })
    }

    /// Creates a consumer.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) fn create_consumer(&self, stream: &str, config: consumer::pull::Config) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let stream = self.context.get_stream(stream).await?;
            stream.create_consumer(config).await?;
            Ok(())
        })
    }

    /// Everything that a stream holds, in order.
    ///
    /// # Errors
    /// When not all of it comes.
    pub(crate) fn read(&self, stream: &str) -> anyhow::Result<Vec<Stored>> {
        use futures_util::StreamExt as _;
        self.runtime.block_on(async {
            let stream = self.context.get_stream(stream).await?;
            let held = stream.cached_info().state.messages;
            let mut read = Vec::new();
            if held == 0 {
                return Ok(read);
            }
            let config = consumer::pull::OrderedConfig::default();
            let mut messages = stream.create_consumer(config).await?.messages().await?;
            while (read.len() as u64) < held {
                let message = tokio::time::timeout(START, messages.next()).await?.context("the end of a stream")??;
                let (message, _) = message.split();
                read.push(Stored {
                    subject: message.subject.to_string(),
                    headers: message.headers.unwrap_or_default(),
                    payload: message.payload.to_vec(),
                });
            }
            ensure!(read.len() as u64 == held, "{} of {held} messages", read.len());
            Ok(read)
        })
    }
}
