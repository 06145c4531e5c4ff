//! Engines with a clock, functions from bytes, batches, and the log of the test's thread.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fluxmill::delivery::Slot;
use fluxmill::event::{BatchBuilder, EventBatch, HeaderColumn, Origin, Outcome};
use fluxmill::function::{CallError, Engine, EngineOptions, Fault, Function, LoadError, Transform};
use fluxmill::spec::{FunctionLimits, FunctionSpec};

/// Far longer than any call here takes that should end by itself, on however busy a machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// For calls that must not end by themselves.
pub(crate) const SHORT: Duration = Duration::from_millis(100);

pub(crate) const LIMITS: FunctionLimits = FunctionLimits { timeout: LONG, memory: 8 << 20, output: 1 << 20 };

pub(crate) fn engine() -> Engine {
    Engine::new(EngineOptions { sandboxes: 2, memory: 64 << 20, cache: None }).unwrap()
}

pub(crate) fn spec(path: &Path) -> FunctionSpec {
    let config = BTreeMap::from([("currency".to_owned(), "EUR".to_owned())]);
    FunctionSpec { wasm: path.to_owned(), digest: None, config, limits: LIMITS }
}

/// Loads a component with the outputs `approved` and `review`.
pub(crate) fn try_load(engine: &Engine, component: &[u8], limits: FunctionLimits) -> Result<Function, LoadError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(component).unwrap();
    let spec = FunctionSpec { limits, ..spec(file.path()) };
    Function::load(engine, &spec, &["approved".to_owned(), "review".to_owned()])
}

/// Runs one call while the engine's clock ticks.
pub(crate) fn call_with(component: &[u8], limits: FunctionLimits, batch: &EventBatch) -> Result<Outcome, CallError> {
    let engine = engine();
    let function = try_load(&engine, component, limits).unwrap();
    block_on(&engine, function.call(batch))
}

pub(crate) fn call(component: &[u8], batch: &EventBatch) -> Result<Outcome, CallError> {
    call_with(component, LIMITS, batch)
}

/// The fault that a call of two events ended with.
pub(crate) fn fault(component: &[u8]) -> (Fault, String) {
    as_fault(call(component, &two()))
}

pub(crate) fn as_fault(result: Result<Outcome, CallError>) -> (Fault, String) {
    match result {
        Err(CallError::Fault { fault, reason }) => {
            assert!(reason.len() <= 512 && !reason.contains('\n'), "one short line: {reason}");
            (fault, reason)
        }
        other => panic!("no fault, but {other:?}"),
    }
}

/// Runs a future on this thread while the engine's clock ticks on another.
pub(crate) fn block_on<F: Future>(engine: &Engine, future: F) -> F::Output {
    with_runtime(engine, |runtime| runtime.block_on(future))
}

/// Lends a runtime of this thread while the engine's clock ticks on another.
pub(crate) fn with_runtime<T>(engine: &Engine, work: impl FnOnce(&tokio::runtime::Runtime) -> T) -> T {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| engine.tick_until(|| stopped.load(Ordering::Relaxed)));
        let _stop = Stop(&stopped);
        work(&tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap())
    })
}

/// One event: key, value, headers, timestamp.
pub(crate) type Row = (Option<Vec<u8>>, Option<Vec<u8>>, Vec<(Vec<u8>, Option<Vec<u8>>)>, i64);

pub(crate) fn batch(rows: &[Row]) -> EventBatch {
    let mut builder = BatchBuilder::with_capacity(rows.len());
    for (at, (key, value, headers, timestamp)) in rows.iter().enumerate() {
        let origin = Origin { slot: Slot(0), offset: at as i64 };
        let headers = headers.iter().map(|(name, value)| (&name[..], value.as_deref()));
        builder.append(origin, key.as_deref(), value.as_deref(), *timestamp, headers);
    }
    builder.finish()
}

pub(crate) fn two() -> EventBatch {
    batch(&[(Some(b"a".into()), Some(b"one".into()), vec![], 1), (None, Some(b"two".into()), vec![], 2)])
}

/// The rows of a batch from `from` on, without a copy: Arrow slices whose offsets do not start at zero.
pub(crate) fn slice(batch: &EventBatch, from: usize, rows: usize) -> EventBatch {
    EventBatch {
        keys: batch.keys.slice(from, rows),
        values: batch.values.slice(from, rows),
        headers: HeaderColumn {
            rows: batch.headers.rows.as_ref().map(|offsets| offsets.slice(from, rows)),
            ..batch.headers.clone()
        },
        timestamps: batch.timestamps.slice(from, rows),
        slots: batch.slots.slice(from, rows),
        offsets: batch.offsets.slice(from, rows),
    }
}

thread_local!(static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });

struct ThreadLog;

impl Write for ThreadLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.with_borrow_mut(|log| log.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What was logged on this thread while `work` ran.
pub(crate) fn logged<T>(work: impl FnOnce() -> T) -> (T, String) {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::new("fluxmill=debug"))
            .with_ansi(false)
            .with_writer(|| ThreadLog)
            .init();
    });
    LOG.take();
    let result = work();
    (result, String::from_utf8(LOG.take()).unwrap())
}
