//! F3: what the anonymous pages of one or more areas have in common.
//!
//! ```text
//!   page records                      AnonVma                    areas (floor F5)
//!   mapping ──────────┐          ┌── users: areas + folios
//!   mapping ──────────┼────────> │   lock
//!   mapping ──────────┘          └── areas ─> area ─> area ─> …   every area that may map one of these pages
//! ```
//! A page of anonymous memory names its `AnonVma` in its `mapping` word; through it every area that may map the page is
//! found. `fork` gives the child's areas the same one (decision 0008), and areas that were one once share it.
//!
//! It lives as long as an area or a folio names it: so whoever holds a folio may follow its `mapping`.
//!
//! Locks: `lock`, sleeping. Held for writing to change the list, or the ends of an area that is on it; held for reading
//! to walk it. Inside the mmap lock and the folio lock, outside page-table locks.

use crate::{
    memory::Memory,
    page::Page,
    platform::Platform,
    slab::{CacheId, Handle, Link, Object},
    sync::{AtomicU32, RwLock},
};

/// The identity of anonymous memory.
#[derive(Debug)]
pub struct AnonVma {
    users: AtomicU32,
    lock: RwLock,
    /// The first area; what an area is, floor F5 knows.
    areas: Link<()>,
}

impl Object for AnonVma {
    const CACHE: CacheId = CacheId::AnonVma;
}

impl AnonVma {
    /// One that has one user, the caller, and no area.
    pub(crate) fn new() -> Self {
        Self {
            users: AtomicU32::new(1),
            lock: RwLock::new(),
            areas: Link::new(None),
        }
    }

    /// Areas and folios that name it.
    #[must_use]
    pub fn users(&self) -> u32 {
        self.users.load_relaxed()
    }

    /// `nr` users more.
    pub(crate) fn get(&self, nr: u32) {
        self.users.fetch_add_relaxed(nr);
    }

    /// The lock of the list of areas.
    pub(crate) fn lock(&self) -> &RwLock {
        &self.lock
    }

    /// The first area on the list. Hold the lock.
    pub(crate) fn areas(&self) -> &Link<()> {
        &self.areas
    }
}

impl<P: Platform> Memory<P> {
    /// One user less; the last one takes it along.
    pub(crate) fn put_anon_vma(&self, anon_vma: Handle<AnonVma>) {
        self.put_anon_vma_users(anon_vma, 1);
    }

    /// `nr` users less.
    pub(crate) fn put_anon_vma_users(&self, anon_vma: Handle<AnonVma>, nr: u32) {
        if anon_vma.users.fetch_sub_acqrel(nr) == nr {
            crate::vm_assert!(
                anon_vma.areas.get().is_none(),
                "an anon_vma goes away with areas on its list"
            );
            // SAFETY: no area and no folio names it any more.
            unsafe { self.free_object(anon_vma) }
        }
    }

    /// The identity of the anonymous memory that a page is part of. The caller holds a reference to its folio.
    pub(crate) fn anon_vma_of(&self, page: Page<'_>) -> Option<Handle<AnonVma>> {
        if !page.is_anon() {
            return None;
        }
        // SAFETY: an anonymous folio names an `AnonVma` and is one of its users for as long as it has references.
        unsafe { Handle::from_bits(self.platform(), page.mapping()) }
    }
}
