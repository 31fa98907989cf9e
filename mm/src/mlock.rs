//! F7: areas whose pages stay in memory: `mlock` and relatives.
//!
//! | area | what it maps | the page |
//! |---|---|---|
//! | locked | huge page by PMD | `MLOCKED`, unevictable, as a whole |
//! | locked | base page | `MLOCKED`, unevictable |
//! | locked | part of a huge page by PTE | not locked: no entry could let go of it for all |
//! | locked as faults bring it (`LOCKONFAULT`) | the same | the same, but nothing is faulted in |
//!
//! Pages become locked when an entry of a locked area comes to map them: here, in a fault, or at the end of a migration.
//! They stop being locked when such an entry goes. What is counted by areas (`VmLck`) changes with the areas.
//!
//! Locks: the mmap lock for writing while areas change, inside it one table's lock at a time, inside that the LRU lock.
//! Pages are faulted in without any.
//!
//! Origin: Linux `mm/mlock.c` as of v6.1. Differs: see `folio::lru`.

use crate::{
    addr::{PAGE_BYTES, VirtAddr, VirtRange},
    address_space::{AddressSpace, Limit},
    error::MapError,
    fault::Access,
    flags::{Prot, VmaFlags},
    mapping::covered,
    memory::Memory,
    order::Order,
    page::Page,
    pgtable::{PmdEntry, PteEntry, cursor::Level},
    platform::Platform,
    rmap::walk::pages,
    slab::Handle,
    vma::Vma,
    zap::user_range,
};

/// How an area is locked into memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Locking {
    /// Not at all.
    Unlocked,
    /// All of it. Its pages are to be faulted in by [`Memory::populate_areas`].
    Whole,
    /// What faults bring (`MLOCK_ONFAULT`).
    OnFault,
}

impl Locking {
    /// The flags that an area has then.
    pub(crate) const fn flags(self) -> VmaFlags {
        match self {
            Self::Unlocked => VmaFlags::empty(),
            Self::Whole => VmaFlags::LOCKED,
            Self::OnFault => VmaFlags::LOCK,
        }
    }
}

impl<P: Platform> Memory<P> {
    /// Locks the areas of `range` into memory, or unlocks them.
    ///
    /// # Errors
    /// [`MapError::NotMapped`]: part of the range is a hole; up to there it is done (as Linux does).
    /// [`MapError::NoSpace`]: more than may be locked, or an area could not be cut. [`MapError::NoMemory`]. After the
    /// last two nothing changed.
    pub fn mlock(&self, space: &AddressSpace, range: VirtRange, locking: Locking) -> Result<(), MapError> {
        let _mmap = space.lock().write(self.platform());
        if locking != Locking::Unlocked && !may_lock(space, range) {
            return Err(MapError::NoSpace);
        }
        let mapped = covered(space, range);
        if space.areas().containing(range.start()).is_none() {
            return mapped;
        }
        self.isolate_range(space, range)?;
        let mut reached = range.start();
        for vma in space.areas().overlapping(range) {
            if vma.start() > reached {
                break;
            }
            reached = vma.end();
            self.lock_area(space, vma, locking);
        }
        self.merge_range(space, range);
        mapped
    }

    /// Locks all areas into memory that there are (`current`), and all that come later, or unlocks them.
    ///
    /// # Errors
    /// [`MapError::NoSpace`]: there is more than may be locked. Nothing changed.
    pub fn mlock_all(
        &self,
        space: &AddressSpace,
        current: Option<Locking>,
        future: Locking,
    ) -> Result<(), MapError> {
        let _mmap = space.lock().write(self.platform());
        let locks = current.is_some_and(|locking| locking != Locking::Unlocked);
        if locks && space.total_vm_pages().saturating_mul(PAGE_BYTES) > space.limit(Limit::Locked) {
            return Err(MapError::NoSpace);
        }
        space.set_future_locking(future.flags());
        if let Some(locking) = current {
            for vma in space.areas().overlapping(user_range()) {
                self.lock_area(space, vma, locking);
            }
            self.merge_range(space, user_range());
        }
        Ok(())
    }

    fn lock_area(&self, space: &AddressSpace, vma: Handle<Vma>, locking: Locking) {
        let was_locked = vma.flags().contains(VmaFlags::LOCKED);
        let flags = (vma.flags() & !VmaFlags::LOCK) | locking.flags();
        self.set_area_flags(space, vma, flags);
        match (was_locked, locking) {
            (false, Locking::Whole | Locking::OnFault) => {
                self.for_each_lockable(space, vma.range(), &mut |page| self.mlock_page(page));
            }
            (true, Locking::Unlocked) => {
                self.for_each_lockable(space, vma.range(), &mut |page| self.munlock_page(page));
            }
            _ => {}
        }
    }

    /// Lets a locked area, whose pages are about to be unmapped, let go of them.
    pub(crate) fn unlock_pages(&self, space: &AddressSpace, vma: Handle<Vma>) {
        self.unlock_pages_in(space, vma, vma.range());
    }

    /// [`Self::unlock_pages`] for a part of the area.
    pub(crate) fn unlock_pages_in(&self, space: &AddressSpace, vma: Handle<Vma>, part: VirtRange) {
        if vma.flags().contains(VmaFlags::LOCKED) {
            self.for_each_lockable(space, part, &mut |page| self.munlock_page(page));
        }
    }

    /// Shows `visit` the pages that `range`, part of an area, maps each as a whole. The table that holds the entry is
    /// locked.
    fn for_each_lockable(&self, space: &AddressSpace, range: VirtRange, visit: &mut dyn FnMut(Page<'_>)) {
        let mut lockable = |page: Page<'_>| {
            if !self.is_zero_page(page) {
                visit(page);
            }
        };
        self.for_each_pmd(space.tables(), range, &mut |slot, chunk| {
            let pmds = self.lock_table(slot.table);
            match pmds.pmd(slot.index) {
                PmdEntry::Huge { pfn, .. } => lockable(self.pages().page(pfn)),
                PmdEntry::Table(table) => {
                    drop(pmds);
                    let ptes = self.lock_table(table);
                    for addr in pages(chunk) {
                        if let PteEntry::Present { pfn, .. } = ptes.pte(Level::Pte.index(addr)) {
                            let page = self.pages().page(pfn);
                            if page.head().compound_order() == Order::ZERO {
                                lockable(page);
                            }
                        }
                    }
                }
                PmdEntry::None | PmdEntry::Migration { .. } => {}
            }
        });
    }

    /// Faults in what is locked in the `len` bytes from `start` on, as far as that goes: what is missing comes by page
    /// faults later.
    pub(crate) fn populate_locked(&self, space: &AddressSpace, start: VirtAddr, len: u64) {
        if let Some(range) = VirtRange::user(start.as_u64(), len) {
            let _ = self.populate_areas(space, range);
        }
    }

    /// Faults in the pages of every area that is locked as a whole, as far as that goes.
    pub fn populate_all_locked(&self, space: &AddressSpace) {
        let mut from = VirtAddr::zero();
        while let Some(area) = self.next_area(space, from) {
            from = area.end();
            let _ = self.populate_areas(space, area);
        }
    }

    /// The first area that ends above `from`.
    fn next_area(&self, space: &AddressSpace, from: VirtAddr) -> Option<VirtRange> {
        let _mmap = space.lock().read(self.platform());
        space.areas().find(from).map(|vma| vma.range())
    }

    /// Faults in the pages of all areas in `range` but those that are locked as faults bring them: for writing where
    /// the area allows it, so that no copy is left to be made.
    ///
    /// # Errors
    /// [`MapError::NotMapped`]: a hole, or an area that allows nothing. [`MapError::NoMemory`]. What comes before it is
    /// there.
    pub fn populate_areas(&self, space: &AddressSpace, range: VirtRange) -> Result<(), MapError> {
        let mut from = range.start();
        while from < range.end() {
            let vma = self.vma_at(space, from).ok_or(MapError::NotMapped)?;
            let end = vma.range.end().min(range.end());
            let access = match vma.flags.prot() {
                prot if prot.contains(Prot::WRITE) => Access::Write,
                prot if prot.contains(Prot::READ) => Access::Read,
                prot if prot.contains(Prot::EXEC) => Access::Exec,
                _ => return Err(MapError::NotMapped),
            };
            if !vma.flags.contains(VmaFlags::LOCKONFAULT)
                && let Some(part) = VirtRange::new(from, end)
            {
                self.populate(space, part, access).map_err(MapError::from)?;
            }
            from = end;
        }
        Ok(())
    }
}

/// Whether all of `range` may be locked; what is locked already does not count twice.
fn may_lock(space: &AddressSpace, range: VirtRange) -> bool {
    let limit = space.limit(Limit::Locked) / PAGE_BYTES;
    let already = || -> u64 {
        let areas = space.areas().overlapping(range);
        let locked = areas.filter(|vma| vma.flags().contains(VmaFlags::LOCKED));
        locked
            .filter_map(|vma| vma.range().intersect(range))
            .map(VirtRange::nr_pages)
            .sum()
    };
    let all = space.locked_pages() + range.nr_pages();
    all <= limit || all - already() <= limit
}
