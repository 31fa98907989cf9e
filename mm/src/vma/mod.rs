//! F5: areas of an address space: which pages may be touched, and how.
//!
//! ```text
//!   address ──>   [ vma r-x ]   gap   [ vma rw- ][ vma r-- ]      gap      [ stack, grows down ]
//! ```
//! Areas never overlap, are not empty, and are page aligned. Neighbours that agree in everything are one area
//! (`Vma::continues_in`).
//!
//! Locks: all fields change only under the mmap lock held for writing; whoever holds it for reading sees them stable.
//! The ends also need the lock of the area's anon_vma, because rmap walks read
//! them without the mmap lock. The one exception is `anon_vma`, which the first fault sets, once (see `anon`).

mod anon;
mod tree;

pub use tree::VmaTree;

use crate::{
    addr::{PAGE_SHIFT, VirtAddr, VirtRange},
    address_space::AddressSpace,
    anon_vma::AnonVma,
    flags::{Prot, VmaFlags},
    policy::{Policy, PolicyCell},
    slab::{CacheId, Handle, Link, Object},
    sync::{AtomicU32, AtomicU64},
};

/// An area. Reached through handles; see the module's head for who may change what.
#[derive(Debug)]
pub struct Vma {
    start: AtomicU64,
    end: AtomicU64,
    flags: AtomicU32,
    /// Linear index of its first page: what pages keep in their records. Moves along with the area.
    first_index: AtomicU64,
    anon_vma: Link<AnonVma>,
    /// Where its new pages come from.
    policy: PolicyCell,
    /// Neighbours on the anon_vma's list. Under its lock.
    on_list: anon::Node,
    space: Handle<AddressSpace>,
    node: tree::Node,
}

impl Object for Vma {
    const CACHE: CacheId = CacheId::Vma;
}

impl Vma {
    /// An area of `space` that has no pages yet.
    pub(crate) fn new(space: Handle<AddressSpace>, range: VirtRange, flags: VmaFlags) -> Self {
        Self::moved(space, range, flags, range.start().as_u64() >> PAGE_SHIFT)
    }

    /// An area of `space` whose first page has the linear index `first_index`.
    pub(crate) fn moved(
        space: Handle<AddressSpace>,
        range: VirtRange,
        flags: VmaFlags,
        first_index: u64,
    ) -> Self {
        Self {
            start: AtomicU64::new(range.start().as_u64()),
            end: AtomicU64::new(range.end().as_u64()),
            flags: AtomicU32::new(flags.bits()),
            first_index: AtomicU64::new(first_index),
            anon_vma: Link::new(None),
            policy: PolicyCell::new(Policy::DEFAULT),
            on_list: anon::Node::new(),
            space,
            node: tree::Node::new(),
        }
    }

    /// The same area with another policy.
    #[must_use]
    pub(crate) fn with_policy(self, policy: Policy) -> Self {
        self.policy.set(policy);
        self
    }

    /// Where its new pages come from.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy.get()
    }

    /// Changes where its new pages come from. The mmap lock is held for writing.
    pub(crate) fn set_policy(&self, policy: Policy) {
        self.policy.set(policy);
    }

    /// The address space it belongs to.
    pub(crate) fn space(&self) -> Handle<AddressSpace> {
        self.space
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
        self.first_index.load_relaxed() + ((addr - self.start()) >> PAGE_SHIFT)
    }

    /// Whether writes since `clear_refs` are told apart here: only what an entry says counts then.
    pub(crate) fn tracks_writes(&self) -> bool {
        !self.flags().contains(VmaFlags::SOFTDIRTY)
    }

    pub(crate) fn set_flags(&self, flags: VmaFlags) {
        self.flags.store_relaxed(flags.bits());
    }

    /// Whether `above`, which begins where this area ends, could be part of it: same properties, pages that go on
    /// counting, and not two different identities. If only one of them is soft-dirty, both together are.
    pub(crate) fn continues_in(&self, above: &Self) -> bool {
        let same_pages = match (self.anon_vma(), above.anon_vma()) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => true,
        };
        let goes_on = self.linear_index(self.end()) == above.first_index.load_relaxed();
        let alike = (self.flags() ^ above.flags()) & !VmaFlags::SOFTDIRTY == VmaFlags::empty();
        let same_wishes = alike && self.policy() == above.policy();
        self.end() == above.start() && same_wishes && goes_on && same_pages
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
