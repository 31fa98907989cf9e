//! F5: what the anonymous pages of one or more areas have in common.
//!
//! A page of anonymous memory names its `AnonVma` in its `mapping` word; through it every area that may map the page
//! is found. Areas that were one once (split by a partial `mprotect`, say) share one.
//!
//! Locks: the count changes under the mmap lock held for writing, or for reading plus the area's page table lock.

use crate::{
    memory::Memory,
    platform::Platform,
    slab::{CacheId, Handle, Object},
    sync::AtomicU32,
};

/// The identity of anonymous memory.
#[derive(Debug)]
pub struct AnonVma {
    /// Areas that use it.
    areas: AtomicU32,
}

impl Object for AnonVma {
    const CACHE: CacheId = CacheId::AnonVma;
}

impl AnonVma {
    /// One that one area uses.
    pub(crate) fn new() -> Self {
        Self {
            areas: AtomicU32::new(1),
        }
    }

    /// Areas that use it.
    #[must_use]
    pub fn areas(&self) -> u32 {
        self.areas.load_relaxed()
    }

    /// One area more uses it.
    pub(crate) fn get(&self) {
        self.areas.fetch_add_relaxed(1);
    }
}

impl<P: Platform> Memory<P> {
    /// One area less uses it; the last one takes it along.
    pub(crate) fn put_anon_vma(&self, anon_vma: Handle<AnonVma>) {
        if anon_vma.areas.fetch_sub_acqrel(1) == 1 {
            // SAFETY: no area leads to it any more, and the pages that name it are unmapped: nobody follows that name.
            unsafe { self.free_object(anon_vma) }
        }
    }
}
