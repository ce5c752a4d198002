//! An allocator that counts what is taken, whatever allocator does the work.
//!
//! The resident memory of a process would not do to measure a step by: pages that were freed stay resident, so the next step seems to take nothing.

use std::{
    alloc::{GlobalAlloc, Layout},
    ffi::c_long,
    hint::black_box,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Smaller blocks are not counted: tensors are larger, and everything else is left undisturbed.
const COUNTED_BYTES_MIN: usize = 4096;

static TAKEN: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// A global allocator that lets another do the work and counts. A program that wants micro-batches to be fitted to memory installs it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counting<A>(pub A);

/// True if the program has [`Counting`] as its allocator.
pub fn is_counted() -> bool {
    let _probe = black_box(Vec::<u8>::with_capacity(COUNTED_BYTES_MIN));
    TAKEN.load(Ordering::Relaxed) > 0
}

/// Does `work` and says how many bytes more than before were taken at the worst moment, by all threads. One caller at a time.
pub fn peak_during<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = TAKEN.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let done = work();
    (done, PEAK.load(Ordering::Relaxed).saturating_sub(before) as u64)
}

/// How long freed pages are kept for what comes next. A training step takes and frees gigabytes; faulted in anew each time, they cost a twentieth of it.
const PAGES_KEPT_MS: c_long = 10_000;

/// Lets mimalloc keep freed pages from one training step to the next.
#[expect(unsafe_code, reason = "mimalloc's options are set by a C function")]
pub fn keep_freed_pages() {
    /// `mi_option_purge_delay` of mimalloc's header; the bindings leave it out.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: sets a number that mimalloc reads when it frees; any thread may do so at any time.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, PAGES_KEPT_MS) }
}

fn take(bytes: usize) {
    if bytes >= COUNTED_BYTES_MIN {
        let taken = TAKEN.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if taken > PEAK.load(Ordering::Relaxed) {
            PEAK.fetch_max(taken, Ordering::Relaxed);
        }
    }
}

fn give_back(bytes: usize) {
    if bytes >= COUNTED_BYTES_MIN {
        TAKEN.fetch_sub(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call is handed on as it came, and its result handed back; counting allocates nothing.
#[expect(unsafe_code, reason = "an allocator is an unsafe trait")]
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counting<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the same contract.
        let block = unsafe { self.0.alloc(layout) };
        if !block.is_null() {
            take(layout.size());
        }
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the same contract.
        let block = unsafe { self.0.alloc_zeroed(layout) };
        if !block.is_null() {
            take(layout.size());
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        give_back(layout.size());
        // SAFETY: the caller keeps the same contract.
        unsafe { self.0.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller keeps the same contract.
        let moved = unsafe { self.0.realloc(block, layout, size) };
        if !moved.is_null() {
            // Both are there while the bytes are moved.
            take(size);
            give_back(layout.size());
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    /// So that this crate's tests run as the program does.
    #[global_allocator]
    static ALLOCATOR: super::Counting<mimalloc::MiMalloc> = super::Counting(mimalloc::MiMalloc);

    #[test]
    fn the_program_is_counted() {
        assert!(super::is_counted());
    }
}
