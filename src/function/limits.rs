//! What one sandbox may hold: linear memory, tables, instances. Time is the engine's, output the contract's.

use wasmtime::ResourceLimiter;

/// Core instances of one sandbox. Components made of dynamically linked libraries (Python) have about thirty.
pub(super) const CORE_INSTANCES_MAX: u32 = 64;
/// Linear memories of one sandbox. Each reserves 4 GiB of address space, whatever it uses.
pub(super) const MEMORIES_MAX: u32 = 2;
/// Tables of one sandbox: the program's own and those of the shims that wrap it.
pub(super) const TABLES_MAX: u32 = 8;
/// Elements of one table.
pub(super) const TABLE_ELEMENTS_MAX: usize = 65_536;
/// Host resources (streams, pollables, descriptors) that one sandbox may hold at once.
pub(super) const HANDLES_MAX: usize = 1_024;

/// Counts a sandbox's memory over all of its linear memories, and remembers that it refused some.
#[derive(Debug)]
pub(super) struct Limiter {
    allowed: usize,
    used: usize,
    /// What the last growth added: taken back when the growth failed after it was allowed.
    last: usize,
    /// Bytes in all that the function asked for when it was refused.
    refused: Option<usize>,
}

impl Limiter {
    /// A limiter that allows so many bytes of linear memory.
    pub(super) fn new(allowed: usize) -> Self {
        Self { allowed, used: 0, last: 0, refused: None }
    }

    /// The bytes that the function would have had if it had not been refused, if it was.
    ///
    /// A refused `memory.grow` only returns -1; that the function then aborts looks like any other trap.
    pub(super) fn refused(&self) -> Option<usize> {
        self.refused
    }

    /// Bytes of linear memory that are allowed.
    pub(super) fn allowed(&self) -> usize {
        self.allowed
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        let total = self.used.saturating_add(more);
        if total > self.allowed {
            self.refused = Some(total);
            return Ok(false);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            // The function's own declared bound, not ours: it refused itself.
            return Ok(false);
        }
        (self.used, self.last) = (total, more);
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.used -= std::mem::take(&mut self.last);
        Ok(())
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES_MAX as usize
    }

    fn tables(&self) -> usize {
        TABLES_MAX as usize
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 65_536;

    #[test]
    fn memory_is_counted_over_all_memories_of_a_sandbox() {
        let mut limiter = Limiter::new(4 * PAGE);
        assert!(limiter.memory_growing(0, 2 * PAGE, None).unwrap());
        assert!(limiter.memory_growing(0, PAGE, None).unwrap());
        assert!(!limiter.memory_growing(2 * PAGE, 4 * PAGE, None).unwrap());
        assert_eq!(limiter.refused(), Some(5 * PAGE));
        assert!(limiter.memory_growing(2 * PAGE, 3 * PAGE, None).unwrap());
    }

    #[test]
    fn a_bound_of_its_own_is_not_our_refusal_and_a_failed_growth_is_taken_back() {
        let mut limiter = Limiter::new(4 * PAGE);
        assert!(!limiter.memory_growing(PAGE, 2 * PAGE, Some(PAGE)).unwrap());
        assert_eq!(limiter.refused(), None);
        assert!(limiter.memory_growing(0, 4 * PAGE, None).unwrap());
        limiter.memory_grow_failed(wasmtime::Error::msg("no memory")).unwrap();
        assert!(limiter.memory_growing(0, 4 * PAGE, None).unwrap());
    }
}
