//! F1: the only door to atomics and locks.
//!
//! | lock | waits by | holds off | guards |
//! |---|---|---|---|
//! | [`SpinLock`] | spinning | preemption, not interrupts | lists of a zone, LRU, slabs, who may drain magazines |
//! | bit locks in a page's state word (floor F2) | spinning | preemption | one page table; one folio's mapcounts |
//! | [`RwLock`] | sleeping ([`Platform::wait`](crate::Platform::wait)) | nothing | an address space's areas |
//!
//! Interrupts stay on under every lock: a CPU that spins must still answer a shootdown whose sender holds the lock it
//! waits for. Interrupt handlers therefore never take any of these. The order between locks is the table in
//! `docs/locking.md`.

mod atomic;
mod rwlock;
mod spin;

pub use atomic::{AtomicPtr, AtomicU32, AtomicU64, spin_hint};
pub use rwlock::{ReadGuard, RwLock, WriteGuard};
pub use spin::{SpinGuard, SpinLock};
