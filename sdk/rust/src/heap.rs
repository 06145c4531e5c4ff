//! The function's heap: the standard library's allocator (dlmalloc), but on memory that the component begins with.
//!
//! A fresh sandbox gets each batch, so each would grow its memory first, and each growth changes the protection of
//! pages in the host, which costs more than the call of a small function. What is in the component's own memory from
//! the start is there for nothing: a page that is not touched takes no memory.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::wasm32::memory_grow;
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use dlmalloc::{Allocator, Dlmalloc};

/// Room for a batch of a thousand small events and what a function makes of them. More is grown as it is needed.
const FIRST_BYTES: usize = 2 << 20;
const PAGE: usize = 64 << 10;

#[global_allocator]
static HEAP: Heap = Heap(UnsafeCell::new(Dlmalloc::new_with_allocator(Memory)));

static FIRST: First = First { bytes: UnsafeCell::new([0; FIRST_BYTES]), taken: AtomicBool::new(false) };

/// The memory that the component begins with. The bytes come first, so that they are aligned as the whole is.
#[repr(C, align(16))]
struct First {
    bytes: UnsafeCell<[u8; FIRST_BYTES]>,
    taken: AtomicBool,
}

// SAFETY: who finds it not taken has it alone.
unsafe impl Sync for First {}

struct Heap(UnsafeCell<Dlmalloc<Memory>>);

// SAFETY: a component has one thread, and no allocation happens within another.
unsafe impl Sync for Heap {}

/// Where the heap's memory comes from.
struct Memory;

// SAFETY: each region is given out once: the first one behind a flag, the others by the machine.
unsafe impl Allocator for Memory {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        if size <= FIRST_BYTES && !FIRST.taken.swap(true, Relaxed) {
            return (FIRST.bytes.get().cast(), FIRST_BYTES, 0);
        }
        let pages = size.div_ceil(PAGE);
        match memory_grow(0, pages) {
            usize::MAX => (ptr::null_mut(), 0, 0),
            // The last bytes of the address space are left out: a pointer behind them would be null.
            page => {
                let bytes = pages * PAGE - if page + pages == 1 << 16 { 16 } else { 0 };
                ((page * PAGE) as *mut u8, bytes, 0)
            }
        }
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        ptr::null_mut()
    }

    fn free_part(&self, _: *mut u8, _: usize, _: usize) -> bool {
        false
    }

    fn free(&self, _: *mut u8, _: usize) -> bool {
        false
    }

    fn can_release_part(&self, _: u32) -> bool {
        false
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        PAGE
    }
}

// SAFETY: it does what dlmalloc does, which the standard library uses too.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: there is one thread, so the heap is borrowed once; the rest is the caller's promise.
        unsafe { (*self.0.get()).malloc(layout.size(), layout.align()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { (*self.0.get()).calloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, bytes: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { (*self.0.get()).free(bytes, layout.size(), layout.align()) }
    }

    unsafe fn realloc(&self, bytes: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe { (*self.0.get()).realloc(bytes, layout.size(), layout.align(), size) }
    }
}
