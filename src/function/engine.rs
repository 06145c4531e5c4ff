//! The engine that compiles functions and holds their sandboxes: one for a process, sized to its pipelines.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use wasmtime::component::Linker;
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::cache::Cache;
use super::error::LoadError;
use super::imports;
use super::limits::{CORE_INSTANCES_MAX, MEMORIES_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX};
use super::sandbox::State;

/// How often the epoch advances. A function that computes yields to the runtime at each tick, and that is when its
/// deadline is looked at.
pub(super) const TICK: Duration = Duration::from_millis(5);
/// Sandboxes that one engine may hold.
const SANDBOXES_MAX: u32 = 4_096;
/// Address space that each linear memory reserves, so that compiled code needs no bounds checks.
const RESERVATION: u64 = 4 << 30;
/// WebAssembly's page, in bytes.
pub(super) const PAGE: usize = 64 * 1024;
/// Bytes of a memory that stay resident between calls: they are cleared in place, which is cheaper than to fault
/// them in again (16 µs instead of 31 for a call that touches 64 KiB).
const MEMORY_KEPT: usize = 1 << 20;
/// The same for a table.
const TABLE_KEPT: usize = 64 * 1024;

/// How to set up an [`Engine`].
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Sandboxes that live at once, at most: the sum of all lanes. A call beyond that waits for its turn. A small
    /// pool starts faster: 50 take 0.4 ms, 1,000 take 4.
    pub sandboxes: u32,
    /// The largest `limits.memory` of all functions, in bytes.
    pub memory: usize,
    /// The folder of compiled code; `None` compiles each time.
    pub cache: Option<PathBuf>,
}

impl EngineOptions {
    /// Options with the cache in its usual place.
    pub fn new(sandboxes: u32, memory: usize) -> Self {
        Self { sandboxes, memory, cache: Self::default_cache() }
    }

    /// The usual folder of compiled code: `$FLUXMILL_CACHE_DIR`, else `$XDG_CACHE_HOME/fluxmill`, else
    /// `~/.cache/fluxmill`; `None` when none of these variables is set.
    pub fn default_cache() -> Option<PathBuf> {
        cache_folder(|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
    }
}

fn cache_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    variable("FLUXMILL_CACHE_DIR")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("fluxmill")))
        .or_else(|| Some(variable("HOME")?.join(".cache").join("fluxmill")))
}

/// Compiles functions and holds their sandboxes. Cloning shares it.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    engine: wasmtime::Engine,
    linker: Linker<State>,
    sandboxes: Semaphore,
    memory: usize,
    cache: Option<Cache>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("memory", &self.0.memory).field("cache", &self.0.cache).finish_non_exhaustive()
    }
}

impl Engine {
    /// Reserves the sandboxes. A cache folder that cannot be used is said once in the log, and done without.
    ///
    /// # Errors
    /// [`LoadError::Engine`] when an option is out of bounds, or the address space cannot be reserved.
    pub fn new(options: EngineOptions) -> Result<Self, LoadError> {
        let refuse = |reason: String| LoadError::Engine { reason };
        let sandboxes = options.sandboxes;
        if sandboxes == 0 || sandboxes > SANDBOXES_MAX {
            return Err(refuse(format!(
                "{sandboxes} sandboxes, but 1 to {SANDBOXES_MAX} are possible; change `lanes`"
            )));
        }
        if options.memory < PAGE || options.memory as u64 > RESERVATION {
            return Err(refuse(format!(
                "{} bytes of memory, but a function has 64KiB to 4GiB; change `limits.memory`",
                options.memory
            )));
        }
        let engine = wasmtime::Engine::new(&config(sandboxes)).map_err(|error| {
            let reserve = u64::from(sandboxes * MEMORIES_MAX) * (RESERVATION >> 30);
            refuse(format!(
                "{sandboxes} sandboxes reserve {reserve} GiB of address space (not memory), and that failed: {error:#}; \
                 allow it (`ulimit -v unlimited`), or use fewer `lanes`"
            ))
        })?;
        let linker = imports::linker(&engine).map_err(|error| refuse(format!("{error:#}")))?;
        let cache = options.cache.and_then(|folder| Cache::open(folder, &engine));
        let sandboxes = Semaphore::new(sandboxes as usize);
        Ok(Self(Arc::new(Inner { engine, linker, sandboxes, memory: options.memory, cache })))
    }

    /// Advances the epoch every 5 ms until `stopped` says so: the clock of all deadlines. Blocks; give it a thread.
    ///
    /// A function's deadline is wall time, not a number of ticks: at each tick a function that computes looks at the
    /// clock, so it is ended at most one tick, and the time the machine needs to run it again, after its deadline.
    /// Nothing ends a loop without host calls while nobody ticks; a function that waits is ended by the runtime's
    /// timer in any case.
    pub fn tick_until(&self, stopped: impl Fn() -> bool) {
        while !stopped() {
            std::thread::sleep(TICK);
            self.0.engine.increment_epoch();
        }
    }

    pub(super) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.0.engine
    }

    pub(super) fn linker(&self) -> &Linker<State> {
        &self.0.linker
    }

    /// The largest `limits.memory` that a function of this engine may have.
    pub(super) fn memory(&self) -> usize {
        self.0.memory
    }

    pub(super) fn cache(&self) -> Option<&Cache> {
        self.0.cache.as_ref()
    }

    /// Waits for a free sandbox.
    pub(super) async fn sandbox(&self) -> SemaphorePermit<'_> {
        self.0.sandboxes.acquire().await.expect("the semaphore is never closed")
    }
}

fn config(sandboxes: u32) -> Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(sandboxes)
        .total_core_instances(sandboxes * CORE_INSTANCES_MAX)
        .total_memories(sandboxes * MEMORIES_MAX)
        .total_tables(sandboxes * TABLES_MAX)
        .total_stacks(sandboxes)
        // One component may use no more than its share: the pool can then never run dry under the semaphore.
        .max_core_instances_per_component(CORE_INSTANCES_MAX)
        .max_memories_per_component(MEMORIES_MAX)
        .max_tables_per_component(TABLES_MAX)
        .max_memories_per_module(MEMORIES_MAX)
        .max_tables_per_module(TABLES_MAX)
        .table_elements(TABLE_ELEMENTS_MAX)
        // Each call's own limiter is what bounds memory: it can say which limit was passed.
        .max_memory_size(RESERVATION as usize)
        .linear_memory_keep_resident(MEMORY_KEPT)
        .table_keep_resident(TABLE_KEPT)
        // Clears only pages that were touched; where the kernel lacks it (before Linux 6.7), all kept bytes.
        .pagemap_scan(Enabled::Auto);

    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .memory_reservation(RESERVATION)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        // The contract calls one function that returns once; async components would need more state in each store.
        .concurrency_support(false)
        .wasm_component_model(true);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_folder_follows_the_variables() {
        let folder = |set: &[(&str, &str)]| {
            cache_folder(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value)))
        };
        assert_eq!(folder(&[("HOME", "/h")]), Some("/h/.cache/fluxmill".into()));
        assert_eq!(folder(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Some("/x/fluxmill".into()));
        assert_eq!(folder(&[("XDG_CACHE_HOME", "/x"), ("FLUXMILL_CACHE_DIR", "/f")]), Some("/f".into()));
        assert_eq!(folder(&[]), None);
    }

    #[test]
    fn options_out_of_bounds_are_refused() {
        for (sandboxes, memory) in [(0, 1 << 20), (SANDBOXES_MAX + 1, 1 << 20), (1, PAGE - 1), (1, (4 << 30) + 1)] {
            let error = Engine::new(EngineOptions { sandboxes, memory, cache: None }).unwrap_err();
            assert!(matches!(error, LoadError::Engine { .. }), "{error}");
        }
    }
}
