//! A function that was loaded, and its calls: a fresh sandbox for each.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, ComponentExportIndex, InstancePre};
use wasmtime::error::Context as _;
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi::{WasiCtxView, WasiView};

use super::abi::{BatchErrorOut, BatchParts, Params, Results};
use super::cache::hex;
use super::engine::{Engine, PAGE};
use super::error::{LoadError, check_header};
use super::journal::Journal;
use super::limits::{HANDLES_MAX, Limiter};
use super::wasi::Wasi;
use super::{CallError, Fault, Transform, fault, imports};
use crate::event::{EventBatch, Outcome};
use crate::spec::{FunctionLimits, FunctionSpec};

/// The function of the contract.
const EXPORT: &str = "transform";
/// The largest component file, in bytes.
const COMPONENT_BYTES_MAX: u64 = 256 << 20;
/// The longest timeout that is kept; more means the same.
const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What the pipeline file says to a function.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) config: BTreeMap<String, String>,
    pub(super) outputs: Arc<Vec<String>>,
}

/// What one sandbox holds on the host's side.
pub(super) struct State {
    settings: Arc<Settings>,
    journal: Arc<Journal>,
    limiter: Limiter,
    wasi: Option<Box<Wasi>>,
}

impl State {
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        // Made at its first use: most functions never ask, and random generators cost more than a sandbox.
        self.wasi.get_or_insert_with(|| Box::new(Wasi::new(&self.journal))).view()
    }
}

/// A function that was loaded and can be called.
pub struct Function {
    engine: Engine,
    pre: InstancePre<State>,
    transform: ComponentExportIndex,
    digest: String,
    limits: FunctionLimits,
    settings: Arc<Settings>,
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Function").field("digest", &self.digest).field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Function {
    /// Reads the component, checks it, and compiles it or takes the compiled code from the cache. Blocks, for seconds
    /// when a large component is compiled; do it before events flow.
    ///
    /// # Errors
    /// A [`LoadError`] that says what to do instead.
    pub fn load(engine: &Engine, spec: &FunctionSpec, output_names: &[String]) -> Result<Self, LoadError> {
        let path = &spec.wasm;
        let limits = spec.limits;
        if limits.memory > engine.memory() {
            let reason =
                format!("it holds sandboxes of {} bytes, but `limits.memory` is {}", engine.memory(), limits.memory);
            return Err(LoadError::Engine { reason });
        }
        let bytes = read(path)?;
        check_header(&bytes, path)?;
        let digest = hex(&Sha256::digest(&bytes));
        if let Some(expected) = spec.digest.as_ref().filter(|expected| **expected != digest) {
            return Err(LoadError::DigestMismatch { path: path.clone(), expected: expected.clone(), found: digest });
        }
        let component = compile(engine, &bytes, &digest, path)?;
        let pre = imports::link(engine.linker(), &component, path)?;
        let transform = find_export(&pre, path)?;
        let pages = component.resources_required().and_then(|needed| needed.max_initial_memory_size).unwrap_or(0);
        let needed = pages.saturating_mul(PAGE as u64);
        if needed > limits.memory as u64 {
            return Err(LoadError::Memory { path: path.clone(), needed, allowed: limits.memory as u64 });
        }
        let settings = Settings { config: spec.config.clone(), outputs: Arc::new(output_names.to_vec()) };
        Ok(Self { engine: engine.clone(), pre, transform, digest, limits, settings: Arc::new(settings) })
    }

    /// The SHA-256 of the component, lower-case hex.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    fn store(&self, journal: &Arc<Journal>, deadline: Instant) -> Store<State> {
        let state = State {
            settings: self.settings.clone(),
            journal: journal.clone(),
            limiter: Limiter::new(self.limits.memory),
            wasi: None,
        };
        let mut store = Store::new(self.engine.wasmtime(), state);
        store.limiter(|state| &mut state.limiter);
        // What the function may hand over in one host call or as its result: checked before anything is copied.
        store.set_hostcall_fuel(self.limits.output);
        store.set_max_component_handles(HANDLES_MAX);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |_| {
            Ok(if Instant::now() >= deadline {
                UpdateDeadline::Interrupt
            } else {
                UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now()))
            })
        });
        store
    }

    async fn run(&self, store: &mut Store<State>, batch: &EventBatch) -> wasmtime::Result<Results> {
        let instance = self.pre.instantiate_async(&mut *store).await.context(fault::Starting)?;
        let transform = instance.get_typed_func::<Params<'_>, Results>(&mut *store, &self.transform)?;
        let parts = BatchParts::new(batch);
        transform.call_async(&mut *store, parts.lower()).await
    }
}

impl Transform for Function {
    async fn call(&self, batch: &EventBatch) -> Result<Outcome, CallError> {
        // The wait for a sandbox is not the function's fault: its time begins after it.
        let _sandbox = self.engine.sandbox().await;
        let deadline = Instant::now() + self.limits.timeout.min(TIMEOUT_MAX);
        let journal = Arc::new(Journal::default());
        let mut store = self.store(&journal, deadline);
        // Two guards: the epoch ends a function that computes, the timer one that waits.
        let called = tokio::time::timeout_at(deadline.into(), self.run(&mut store, batch)).await;
        let last_words = journal.finish();
        let result = match called {
            Ok(Ok((result,))) => result,
            Ok(Err(error)) => {
                return Err(fault::of_error(&error, &store.data().limiter, &self.limits, &last_words));
            }
            Err(_elapsed) => return Err(fault::timeout(&self.limits)),
        };
        // The sandbox goes before its result is looked at: another call may have its place.
        drop(store);
        match result {
            Ok(outcome) => {
                let lie = |reason| CallError::Fault { fault: Fault::Output, reason };
                let outcome = outcome
                    .into_outcome(batch.len(), self.settings.outputs.len())
                    .map_err(|error| lie(error.to_string()))?;
                // Passing each event on once is free; to copy events over and over is output like any other. Causes
                // that rise name no row twice, which is the usual case and needs no count.
                if !outcome.causes.is_sorted_by(|one, next| one < next) {
                    let once = Outcome::pass_through(batch.len()).inherited_bytes(batch);
                    let copied = outcome.inherited_bytes(batch).saturating_sub(once);
                    let allowed = self.limits.output;
                    if copied > allowed {
                        return Err(lie(format!("{copied} bytes of copied events, but `limits.output` is {allowed}")));
                    }
                }
                Ok(outcome)
            }
            Err(BatchErrorOut::Retry(reason)) => Err(CallError::Retry(reason)),
            Err(BatchErrorOut::Reject(reason)) => Err(CallError::Reject(reason)),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let refuse = |source: std::io::Error| match source.kind() {
        ErrorKind::NotFound => LoadError::NotFound { path: path.to_owned() },
        _ => LoadError::Unreadable { path: path.to_owned(), source },
    };
    let file = File::open(path).map_err(refuse)?;
    let bytes = file.metadata().map_err(refuse)?.len();
    if bytes > COMPONENT_BYTES_MAX {
        return Err(LoadError::TooLarge { path: path.to_owned(), bytes, allowed: COMPONENT_BYTES_MAX });
    }
    let mut content = Vec::with_capacity(bytes as usize);
    file.take(COMPONENT_BYTES_MAX).read_to_end(&mut content).map_err(refuse)?;
    Ok(content)
}

fn compile(engine: &Engine, bytes: &[u8], digest: &str, path: &Path) -> Result<Component, LoadError> {
    if let Some(component) = engine.cache().and_then(|cache| cache.get(engine.wasmtime(), digest)) {
        return Ok(component);
    }
    let component = Component::from_binary(engine.wasmtime(), bytes)
        .map_err(|error| LoadError::Compile { path: path.to_owned(), reason: format!("{error:#}") })?;
    if let Some(cache) = engine.cache() {
        cache.put(digest, &component);
    }
    Ok(component)
}

fn find_export(pre: &InstancePre<State>, path: &Path) -> Result<ComponentExportIndex, LoadError> {
    let refuse = |found: String| LoadError::WrongExport { path: path.to_owned(), found };
    let component = pre.component();
    match component.get_export(None, EXPORT) {
        Some((ComponentItem::ComponentFunc(function), index)) => {
            function.typecheck::<Params<'_>, Results>(&pre.instance_type()).map_err(|error| {
                refuse(format!("it exports `{EXPORT}`, but with other types than this Fluxmill's ({error:#})"))
            })?;
            Ok(index)
        }
        Some(_) => Err(refuse(format!("its export `{EXPORT}` is no function"))),
        None => {
            let names: Vec<_> =
                component.component_type().exports(pre.engine()).map(|(name, _)| name.to_owned()).collect();
            let there = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
            Err(refuse(format!("it does not export the function `{EXPORT}`; it exports {there}")))
        }
    }
}
