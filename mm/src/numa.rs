//! F7: which node the pages of an area come from: policies of areas.
//!
//! ```text
//!   fault ── policy of the area ── none? ── policy of the task ── none? ── the nearest node
//!                 │                              │
//!                 └──────── Placement ───────────┘ ──> the allocator
//! ```
//! A policy decides about pages that come after it; pages that are there stay where they are unless somebody moves them.
//! Two areas with different policies are never one.
//!
//! Locks: an area's policy changes under the mmap lock held for writing. A task's is the platform's.
//!
//! Origin: Linux `do_mbind`, `vma_alloc_folio`, `do_get_mempolicy` (v6.1). Differs: an interleaved huge page that its
//! node does not have comes from another node; only then is it made of base pages.

use crate::{
    addr::{VirtAddr, VirtRange},
    address_space::AddressSpace,
    error::MapError,
    mapping::covered,
    memory::Memory,
    order::Order,
    platform::Platform,
    policy::{Mode, Placement, Policy},
    slab::Handle,
    vma::Vma,
};

impl<P: Platform> Memory<P> {
    /// From where a new page of `vma` at `addr` should come.
    pub(crate) fn placement_in(&self, vma: Handle<Vma>, addr: VirtAddr, order: Order) -> Placement {
        let local = self.local_node();
        if self.nr_nodes() == 1 {
            return Placement::near(local);
        }
        let policy = match vma.policy() {
            of_area if of_area.mode() != Mode::Default => of_area,
            _ => self.platform().task_policy(),
        };
        // The page's place in its object, so that it does not depend on where areas are cut.
        let turn = vma.linear_index(addr) >> order.index();
        policy.placement(local, self.nodes_with_memory(), turn)
    }

    /// Gives the areas in `range` a policy for the pages that they get from now on.
    ///
    /// Locks: the mmap lock for writing.
    ///
    /// # Errors
    /// [`MapError::BadRange`]: part of the range is a hole, and the policy is not the default one; or all of it is.
    /// Others as [`Memory::munmap`]. In all cases no policy has changed.
    pub fn set_policy(&self, space: &AddressSpace, range: VirtRange, policy: Policy) -> Result<(), MapError> {
        let _mmap = space.lock().write(self.platform());
        self.set_policy_locked(space, range, policy)
    }

    /// [`Memory::set_policy`] under the mmap lock held for writing.
    pub(crate) fn set_policy_locked(
        &self,
        space: &AddressSpace,
        range: VirtRange,
        policy: Policy,
    ) -> Result<(), MapError> {
        check_areas(space, range, policy)?;
        self.isolate_range(space, range)?;
        for vma in space.areas().overlapping(range) {
            vma.set_policy(policy);
        }
        self.merge_range(space, range);
        Ok(())
    }

    /// The policy of the area around `addr`; `None`: there is no area.
    #[must_use]
    pub fn policy_at(&self, space: &AddressSpace, addr: VirtAddr) -> Option<Policy> {
        let _mmap = space.lock().read(self.platform());
        space.areas().containing(addr).map(|vma| vma.policy())
    }
}

/// Whether a policy may be set on `range`: the default one over holes too, if anything is there at all.
pub(crate) fn check_areas(space: &AddressSpace, range: VirtRange, policy: Policy) -> Result<(), MapError> {
    if space.areas().overlapping(range).next().is_none() {
        return Err(MapError::BadRange);
    }
    if policy == Policy::DEFAULT {
        return Ok(());
    }
    covered(space, range).map_err(|_| MapError::BadRange)
}
