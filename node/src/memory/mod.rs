//! The machine's memory: how much of it training may take, and who has taken it.
//!
//! - [`Memory`]: what the parts in training share
//! - `machine`: what the operating system says is there
//! - [`Counting`]: an allocator that tells how much a piece of work took

mod allocator;
mod machine;

use std::sync::{
    Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicU64, Ordering},
};

pub use self::allocator::{Counting, is_counted, keep_freed_pages, peak_during};

/// The share of the available memory that training may take; the rest is for the network, for blobs on their way, and for whoever else uses the
/// machine.
const TRAINING_SHARE: f64 = 0.75;
/// What is assumed to be available where the system does not tell, in bytes.
const ASSUMED_BYTES: u64 = 4 << 30;

/// The memory that the parts in training on this machine share. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// What the operator allows.
    limit: Option<u64>,
    /// What was there at the start.
    at_start: u64,
    reserved: AtomicU64,
    /// Held for reading by a part that computes, for writing by one that measures.
    computing: RwLock<()>,
}

/// Memory that a part may take; given back when this is dropped.
#[derive(Debug)]
pub struct Reservation {
    memory: Memory,
    bytes: u64,
}

/// While this is held no other part computes, so that what is measured is one's own.
#[derive(Debug)]
pub struct Alone<'a> {
    memory: &'a Memory,
    _computing: RwLockWriteGuard<'a, ()>,
}

impl Memory {
    /// All that training may take: `limit` bytes, or a share of what is available now.
    pub fn new(limit: Option<u64>) -> Self {
        let at_start = for_training(machine::available_bytes());
        Self(Arc::new(Shared { limit, at_start, reserved: AtomicU64::new(0), computing: RwLock::new(()) }))
    }

    /// To be held while a part computes.
    pub fn computing(&self) -> RwLockReadGuard<'_, ()> {
        self.0.computing.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no part computes.
    pub fn alone(&self) -> Alone<'_> {
        Alone { memory: self, _computing: self.0.computing.write().unwrap_or_else(PoisonError::into_inner) }
    }
}

impl Alone<'_> {
    /// Bytes that no part has reserved, and that are really there.
    pub fn left_bytes(&self) -> u64 {
        let shared = &self.memory.0;
        let unreserved = |total: u64| total.saturating_sub(shared.reserved.load(Ordering::Relaxed));
        match shared.limit {
            Some(limit) => unreserved(limit),
            None => unreserved(shared.at_start).min(for_training(machine::available_bytes())),
        }
    }

    /// Takes so many bytes.
    pub fn reserve(&self, bytes: u64) -> Reservation {
        self.memory.0.reserved.fetch_add(bytes, Ordering::Relaxed);
        Reservation { memory: self.memory.clone(), bytes }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.0.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn for_training(available: Option<u64>) -> u64 {
    available.map_or(ASSUMED_BYTES, |bytes| (bytes as f64 * TRAINING_SHARE) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_gone_until_it_is_given_back() {
        let memory = Memory::new(Some(100));
        let kept = memory.alone().reserve(30);
        let dropped = memory.clone().alone().reserve(90);
        assert_eq!(memory.alone().left_bytes(), 0);
        drop(dropped);
        assert_eq!(memory.alone().left_bytes(), 70);
        drop(kept);
        assert_eq!(memory.alone().left_bytes(), 100);
    }

    #[test]
    fn nobody_computes_while_one_measures() {
        let memory = Memory::new(Some(0));
        let computing = memory.computing();
        assert!(memory.0.computing.try_write().is_err());
        drop(computing);
        let _alone = memory.alone();
        assert!(memory.0.computing.try_read().is_err());
    }
}
