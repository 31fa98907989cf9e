//! F5: areas of an address space: which pages may be touched, and how.
//!
//! ```text
//!   address ──>   [ vma r-x ]   gap   [ vma rw- ][ vma r-- ]      gap      [ stack, grows down ]
//! ```
//! Areas never overlap, are not empty, and are page aligned. Neighbours that agree in everything are one area
//! ([`Vma::continues`]).
//!
//! Locks: all fields change only under the mmap lock held for writing; whoever holds it for reading sees them stable.
//! The one exception is `anon_vma`, which the first fault sets, once, by compare-exchange.

mod tree;

pub use tree::VmaTree;

use crate::{
    addr::{PAGE_SHIFT, VirtAddr, VirtRange},
    anon_vma::AnonVma,
    flags::{Prot, VmaFlags},
    slab::{CacheId, Handle, Link, Object},
    sync::{AtomicU32, AtomicU64},
};

/// An area. Reached through handles; see the module's head for who may change what.
#[derive(Debug)]
pub struct Vma {
    start: AtomicU64,
    end: AtomicU64,
    flags: AtomicU32,
    anon_vma: Link<AnonVma>,
    node: tree::Node,
}

impl Object for Vma {
    const CACHE: CacheId = CacheId::Vma;
}

impl Vma {
    pub(crate) fn new(range: VirtRange, flags: VmaFlags, anon_vma: Option<Handle<AnonVma>>) -> Self {
        Self {
            start: AtomicU64::new(range.start().as_u64()),
            end: AtomicU64::new(range.end().as_u64()),
            flags: AtomicU32::new(flags.bits()),
            anon_vma: Link::new(anon_vma),
            node: tree::Node::new(range.start()),
        }
    }

    /// First address.
    #[must_use]
    pub fn start(&self) -> VirtAddr {
        VirtAddr::new_truncate(self.start.load_relaxed())
    }

    /// First address past it.
    #[must_use]
    pub fn end(&self) -> VirtAddr {
        VirtAddr::new_truncate(self.end.load_relaxed())
    }

    /// Its addresses.
    #[must_use]
    pub fn range(&self) -> VirtRange {
        VirtRange::new(self.start(), self.end())
            .unwrap_or_else(|| unreachable!("areas are aligned and not empty"))
    }

    /// Its properties.
    #[must_use]
    pub fn flags(&self) -> VmaFlags {
        VmaFlags::from_bits_retain(self.flags.load_relaxed())
    }

    /// What a program may do with it now.
    #[must_use]
    pub fn prot(&self) -> Prot {
        self.flags().prot()
    }

    /// The identity of its anonymous pages; none before the first fault.
    #[must_use]
    pub fn anon_vma(&self) -> Option<Handle<AnonVma>> {
        self.anon_vma.get()
    }

    /// Linear index of the page at `addr`: what its pages keep in their records.
    pub(crate) fn linear_index(&self, addr: VirtAddr) -> u64 {
        crate::vm_assert!(self.range().contains(addr));
        addr.as_u64() >> PAGE_SHIFT
    }

    pub(crate) fn set_flags(&self, flags: VmaFlags) {
        self.flags.store_relaxed(flags.bits());
    }

    /// Gives the area its identity unless another fault just did; returns whether `fresh` is it.
    pub(crate) fn init_anon_vma(&self, fresh: Handle<AnonVma>) -> bool {
        self.anon_vma.set_if_none(fresh)
    }

    pub(crate) fn set_anon_vma(&self, anon_vma: Option<Handle<AnonVma>>) {
        self.anon_vma.set(anon_vma);
    }

    /// Whether an area with these properties that begins where this one ends could be part of it.
    pub(crate) fn continues(&self, flags: VmaFlags, anon_vma: Option<Handle<AnonVma>>) -> bool {
        let same_pages = match (self.anon_vma(), anon_vma) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => true,
        };
        self.flags() == flags && same_pages
    }
}

/// What others may know about an area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmaInfo {
    /// Its addresses.
    pub range: VirtRange,
    /// Its properties.
    pub flags: VmaFlags,
}
