//! Processes that the tests start: output captured line by line, signals, deadlines, an end in `Drop`.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::wait::wait_until;

/// Long enough for a loaded machine, short enough for a person.
const END: Duration = Duration::from_secs(60);

/// The lines that a process wrote, in the order in which they came; `stderr` and `stdout` apart.
#[derive(Default)]
pub(crate) struct Output {
    state: Mutex<OutputState>,
    grown: Condvar,
}

#[derive(Default)]
struct OutputState {
    lines: Vec<Line>,
    open: usize,
}

/// A line of output.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// From standard error rather than standard output.
    pub(crate) stderr: bool,
    /// The text without its end of line; bytes that are no UTF-8 are replaced.
    pub(crate) text: String,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, OutputState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Reads `from` to its end on a thread of its own, which ends when the process closes the pipe.
    fn follow(self: &Arc<Self>, from: impl Read + Send + 'static, stderr: bool) {
        self.lock().open += 1;
        let output = Arc::clone(self);
        #[expect(clippy::disallowed_methods, reason = "ends with the process that it reads from")]
        std::thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut bytes = Vec::new();
            while let Ok(1..) = from.read_until(b'\n', &mut bytes) {
                let text = String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned();
                bytes.clear();
                output.lock().lines.push(Line { stderr, text });
                output.grown.notify_all();
            }
            output.lock().open -= 1;
            output.grown.notify_all();
        });
    }

    /// Every line so far.
    pub(crate) fn lines(&self) -> Vec<Line> {
        self.lock().lines.clone()
    }

    /// Everything so far as one text.
    pub(crate) fn text(&self) -> String {
        self.lock().lines.iter().fold(String::new(), |text, line| text + &line.text + "\n")
    }

    /// Waits for a line for which `wanted` holds, from line `from` on; gives its number and text.
    fn wait_for(
        &self,
        limit: Duration,
        from: usize,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(usize, String), &'static str> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        let mut seen = from;
        loop {
            while let Some(line) = state.lines.get(seen) {
                if wanted(&line.text) {
                    return Ok((seen, line.text.clone()));
                }
                seen += 1;
            }
            if state.open == 0 {
                return Err("the process closed its output first");
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Err("it did not come in time");
            };
            state = self.grown.wait_timeout(state, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    fn wait_closed(&self, limit: Duration) -> anyhow::Result<()> {
        wait_until(limit, "the end of a process's output", || Ok((self.lock().open == 0).then_some(())))
    }
}

/// A signal that tests send.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Signal {
    /// Please end.
    Term,
    /// Please end (Ctrl-C).
    Int,
    /// End now; the process is not asked.
    Kill,
    /// Stop running, as a machine that hangs.
    Stop,
    /// Go on.
    Continue,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Term => "TERM",
            Self::Int => "INT",
            Self::Kill => "KILL",
            Self::Stop => "STOP",
            Self::Continue => "CONT",
        }
    }
}

/// A running process. It never outlives this value, nor the test process, even when that is killed.
pub(crate) struct Process {
    name: String,
    child: Child,
    guard: Child,
    output: Arc<Output>,
}

impl Process {
    /// Starts `command` with no standard input and its output captured.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(name: &str, command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let output = Arc::new(Output::default());
        if let Some(stdout) = child.stdout.take() {
            output.follow(stdout, false);
        }
        if let Some(stderr) = child.stderr.take() {
            output.follow(stderr, true);
        }
        let guard = guard(child.id())?;
        Ok(Self { name: name.to_owned(), child, guard, output })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote so far.
    pub(crate) fn output(&self) -> &Arc<Output> {
        &self.output
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    /// When the system does not say.
    pub(crate) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends a signal. Not an error when the process has ended meanwhile.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub(crate) fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        // The shell's own `kill`: a machine need not have the program. The id is still ours: the child is not reaped.
        let status =
            Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", signal.name(), &self.id().to_string()]).status()?;
        ensure!(status.success() || self.ended()?.is_some(), "{}: SIG{} was not sent", self.name, signal.name());
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub(crate) fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        let status = wait_until(limit, &what, || Ok(self.child.try_wait()?))?;
        self.output.wait_closed(END)?;
        Ok(status)
    }

    /// Ends it at once (SIGKILL) and waits for that.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::Kill)?;
        self.wait(END).map(|_| ())
    }

    /// Waits for a line with `wanted` in it.
    ///
    /// # Errors
    /// When it does not come within `limit`.
    pub(crate) fn wait_for_line(&self, limit: Duration, wanted: &str) -> anyhow::Result<String> {
        match self.output.wait_for(limit, 0, |line| line.contains(wanted)) {
            Ok((_, line)) => Ok(line),
            Err(why) => bail!("{}: no line with `{wanted}`: {why} ({limit:?})", self.name),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // A process that was stopped by SIGSTOP ends by SIGKILL too.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        // Only now: until here the guard must be able to do the same.
        let _ = self.guard.kill();
        let _ = self.guard.wait();
    }
}

/// A shell that waits for the end of this test process (its standard input is a pipe from us), then kills `id`: a
/// test run that is killed leaves no broker behind.
fn guard(id: u32) -> anyhow::Result<Child> {
    Command::new("sh")
        .args(["-c", "read -r _; kill -s KILL \"$0\"", &id.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting sh")
}

/// The binary under test.
pub(crate) struct Fluxmill {
    process: Process,
    /// Parts of WARN and ERROR lines that this test expects.
    expected: Vec<String>,
}

/// How a run of the binary ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit code; `None` after a signal.
    pub(crate) code: Option<i32>,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

impl Fluxmill {
    /// The path of the binary that Cargo built for these tests.
    pub(crate) fn binary() -> PathBuf {
        PathBuf::from(env!("CARGO_BIN_EXE_fluxmill"))
    }

    /// Starts the binary. Logs are on at `info`, colours off.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start<S: AsRef<OsStr>>(
        args: impl IntoIterator<Item = S>,
        env: &[(&str, &str)],
        expected: &[&str],
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(Self::binary());
        command.args(args).env_remove("RUST_LOG").env("NO_COLOR", "1").envs(env.iter().copied());
        let process = Process::start("fluxmill", &mut command)?;
        Ok(Self { process, expected: expected.iter().map(|&part| part.to_owned()).collect() })
    }

    /// The process.
    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it wrote so far.
    pub(crate) fn output(&self) -> &Arc<Output> {
        self.process.output()
    }

    /// Waits for its end and looks through its output.
    ///
    /// # Errors
    /// When it still runs after `limit`, panicked, or wrote a WARN or ERROR line that was not expected.
    pub(crate) fn finish(mut self, limit: Duration) -> anyhow::Result<Ended> {
        let status = self.process.wait(limit)?;
        let lines = self.process.output().lines();
        let unexpected: Vec<&str> = lines
            .iter()
            .map(|line| line.text.as_str())
            .filter(|text| is_alarm(text) && !self.expected.iter().any(|part| text.contains(part)))
            .collect();
        ensure!(unexpected.is_empty(), "lines that this test does not expect:\n{}", unexpected.join("\n"));
        let text = |stderr: bool| {
            lines.iter().filter(|line| line.stderr == stderr).fold(String::new(), |text, line| text + &line.text + "\n")
        };
        Ok(Ended { code: status.code(), signal: status.signal(), stdout: text(false), stderr: text(true) })
    }

    /// SIGTERM, then [`finish`](Self::finish), which must be with exit code 0.
    ///
    /// # Errors
    /// When it ends otherwise.
    pub(crate) fn stop(mut self, limit: Duration) -> anyhow::Result<Ended> {
        self.process.signal(Signal::Term)?;
        self.finish_well(limit)
    }

    /// [`finish`](Self::finish), which must be with exit code 0.
    ///
    /// # Errors
    /// When it ends otherwise.
    pub(crate) fn finish_well(self, limit: Duration) -> anyhow::Result<Ended> {
        let ended = self.finish(limit)?;
        ensure!(ended.code == Some(0), "exit code {:?}, signal {:?} instead of exit code 0", ended.code, ended.signal);
        Ok(ended)
    }

    /// kill -9. Nothing that the process wrote matters after that.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        ensure!(self.process.ended()?.is_none(), "it had ended before it was killed: the test proves nothing");
        self.process.kill()
    }
}

/// A line that a person would have to look at: the level stands among the first words, after the time.
fn is_alarm(line: &str) -> bool {
    line.contains("panicked at") || line.split_whitespace().take(3).any(|word| matches!(word, "WARN" | "ERROR"))
}
