//! A network between a client and a broker that misbehaves when told to: it delays, trickles, stalls, cuts and refuses.
//!
//! Bytes are never changed and never reordered: whatever a client makes of it is what it would make of a bad network.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::kafka::listen;

/// Connections at the same time; more are refused.
const CONNECTIONS: usize = 64;
/// Bytes that are on their way in one direction of a connection.
const BUFFER: usize = 64 * 1024;
/// How long connecting to the broker may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How often a thread that waits for bytes looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(20);
/// How long one write to a peer that does not read may block.
const WRITE: Duration = Duration::from_secs(10);

/// What the network does to what passes from now on; the default is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Weather {
    /// Every piece waits this long before it is passed on, in each direction.
    pub(crate) delay: Duration,
    /// At most this many bytes in one write, each write its own packet; 0 is no limit.
    pub(crate) trickle: usize,
    /// Nothing passes at all; connections stay open.
    pub(crate) stalled: bool,
    /// New connections are closed at once.
    pub(crate) refuse: bool,
    /// Each connection is cut when this many more bytes have gone to the client; in the middle of an answer, that is.
    pub(crate) cut_after: Option<u64>,
}

/// The proxy. It ends with all its connections when this value is dropped.
pub(crate) struct Proxy {
    host: &'static str,
    port: u16,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    accepted: AtomicU64,
    cut: AtomicU64,
}

#[derive(Default)]
struct State {
    weather: Weather,
    /// Grows when the weather changes, for what counts from then on.
    changes: u64,
    target: Option<u16>,
    ended: bool,
    open: Vec<(u64, [TcpStream; 2])>,
    pumps: Vec<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a free port. Connections are refused until [`forward_to`](Self::forward_to).
    ///
    /// # Errors
    /// When there is no free port.
    pub(crate) fn start() -> anyhow::Result<Self> {
        Self::start_at("127.0.0.1")
    }

    /// Listens on a free port of another address of this machine, such as 127.0.0.2.
    ///
    /// # Errors
    /// When there is no free port.
    pub(crate) fn start_at(host: &'static str) -> anyhow::Result<Self> {
        let listener = listen(host)?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        #[expect(clippy::disallowed_methods, reason = "joined in `drop`")]
        let accepting = std::thread::spawn(move || accepting.accept(&listener));
        Ok(Self { host, port, shared, accepting: Some(accepting) })
    }

    /// The port that clients connect to.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// `host:port` that clients connect to.
    pub(crate) fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// From now on new connections lead to this port of 127.0.0.1.
    pub(crate) fn forward_to(&self, port: u16) {
        self.shared.lock().target = Some(port);
    }

    /// Changes the weather, for connections that are open and for new ones.
    pub(crate) fn set(&self, weather: Weather) {
        let mut state = self.shared.lock();
        state.weather = weather;
        state.changes += 1;
        self.shared.changed.notify_all();
    }

    /// Cuts every connection that is open now, with whatever is on its way; gives how many there were.
    pub(crate) fn cut(&self) -> usize {
        let mut state = self.shared.lock();
        let open = std::mem::take(&mut state.open);
        self.shared.changed.notify_all();
        for (_, ends) in &open {
            self.shared.close(ends);
        }
        open.len()
    }

    /// How many connections have been made through it so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.shared.accepted.load(Relaxed)
    }

    /// How many connections it has cut so far.
    pub(crate) fn times_cut(&self) -> u64 {
        self.shared.cut.load(Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.cut();
        // Wakes `accept`, which nothing else can.
        let _ = TcpStream::connect((self.host, self.port));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        let pumps = std::mem::take(&mut self.shared.lock().pumps);
        for pump in pumps {
            let _ = pump.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, ends: &[TcpStream; 2]) {
        self.cut.fetch_add(1, Relaxed);
        for end in ends {
            // Not connected any more is as good.
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for (id, client) in (0..).zip(listener.incoming()) {
            if self.lock().ended {
                return;
            }
            if let Ok(client) = client {
                // An error ends this one connection: the client sees it closed.
                let _ = self.connect(id, client);
            }
        }
    }

    fn connect(self: &Arc<Self>, id: u64, client: TcpStream) -> std::io::Result<()> {
        let target = {
            let state = self.lock();
            let refuse = state.weather.refuse || state.open.len() >= CONNECTIONS;
            state.target.filter(|_| !refuse)
        };
        let Some(target) = target else { return client.shutdown(Shutdown::Both) };
        let broker = TcpStream::connect_timeout(&([127, 0, 0, 1], target).into(), CONNECT)?;
        for end in [&client, &broker] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(LOOK))?;
            end.set_write_timeout(Some(WRITE))?;
        }
        let ends = [client.try_clone()?, broker.try_clone()?];
        let (back, forth) = ([broker.try_clone()?, client.try_clone()?], [client, broker]);
        let mut state = self.lock();
        state.open.push((id, ends));
        state.pumps.retain(|pump| !pump.is_finished());
        for (ends, to_client) in [(forth, false), (back, true)] {
            let shared = Arc::clone(self);
            #[expect(clippy::disallowed_methods, reason = "joined in `drop`, two for each open connection")]
            state.pumps.push(std::thread::spawn(move || shared.pump(id, ends, to_client)));
        }
        drop(state);
        self.accepted.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Passes bytes on in one direction until the connection ends; then it ends in the other one, too.
    fn pump(&self, id: u64, [mut from, mut to]: [TcpStream; 2], to_client: bool) {
        let mut buffer = vec![0; BUFFER];
        let mut budget = Budget::default();
        while self.is_open(id) {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) if self.pass_on(id, &buffer[..read], &mut to, to_client.then_some(&mut budget)).is_none() => {
                    break;
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => break,
            }
        }
        let mut state = self.lock();
        if let Some(at) = state.open.iter().position(|(open, _)| *open == id) {
            let (_, ends) = state.open.swap_remove(at);
            self.changed.notify_all();
            for end in &ends {
                let _ = end.shutdown(Shutdown::Both);
            }
        }
    }

    /// Writes `bytes` as the weather allows; `None` when the connection has ended.
    fn pass_on(&self, id: u64, mut bytes: &[u8], to: &mut TcpStream, mut budget: Option<&mut Budget>) -> Option<()> {
        while !bytes.is_empty() {
            let weather = self.wait_for_weather(id, budget.as_deref_mut())?;
            let mut piece = if weather.trickle == 0 { bytes.len() } else { weather.trickle.min(bytes.len()) };
            let left = budget.as_deref().and_then(|budget| budget.left);
            if let Some(left) = left {
                piece = piece.min(usize::try_from(left).unwrap_or(usize::MAX));
            }
            to.write_all(&bytes[..piece]).ok()?;
            bytes = &bytes[piece..];
            if let (Some(budget), Some(left)) = (budget.as_deref_mut(), left) {
                budget.left = Some(left - piece as u64);
                if budget.left == Some(0) {
                    self.cut.fetch_add(1, Relaxed);
                    return None;
                }
            }
        }
        Some(())
    }

    /// Waits out the delay and any stall; `None` when the connection is cut meanwhile.
    fn wait_for_weather(&self, id: u64, budget: Option<&mut Budget>) -> Option<Weather> {
        let start = Instant::now();
        let mut state = self.lock();
        loop {
            if !state.is_open(id) {
                return None;
            }
            let weather = state.weather;
            let left = weather.delay.saturating_sub(start.elapsed());
            if !weather.stalled && left.is_zero() {
                if let Some(budget) = budget {
                    budget.follow(&state);
                }
                return Some(weather);
            }
            let wait = if weather.stalled { LOOK } else { left };
            state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn is_open(&self, id: u64) -> bool {
        self.lock().is_open(id)
    }
}

impl State {
    fn is_open(&self, id: u64) -> bool {
        !self.ended && self.open.iter().any(|(open, _)| *open == id)
    }
}

/// How many bytes a connection may still pass on to its client.
#[derive(Default)]
struct Budget {
    left: Option<u64>,
    since: Option<u64>,
}

impl Budget {
    /// Begins anew when the weather has changed since the last look.
    fn follow(&mut self, state: &State) {
        if self.since != Some(state.changes) {
            self.since = Some(state.changes);
            // One at least: a connection that passes nothing is what `stalled` is for.
            self.left = state.weather.cut_after.map(|bytes| bytes.max(1));
        }
    }
}
