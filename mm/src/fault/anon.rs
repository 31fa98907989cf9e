//! Faults on base pages.

use super::{Access, FaultInfo};
use crate::{
    addr::{PAGE_BYTES, Pfn, VirtAddr},
    address_space::AddressSpace,
    error::{AllocError, VmFault},
    flags::{AllocFlags, PageFlags, Prot},
    folio::Folio,
    memory::Memory,
    order::Order,
    page::{Page, PageState},
    pgtable::{PageTables, PmdEntry, PmdSlot, PtLock, PteEntry, cursor::Level, entry::Marks},
    platform::Platform,
    slab::Handle,
    vma::Vma,
};

/// What a new page of anonymous memory starts with: contents valid, backed by memory, its only process may write.
pub(super) const NEW_ANON: PageFlags = PageFlags::UPTODATE
    .union(PageFlags::SWAPBACKED)
    .union(PageFlags::EXCLUSIVE);

impl Marks {
    /// What `access` leaves behind.
    pub(crate) fn of_access(access: Access) -> Self {
        if access == Access::Write {
            Self::WRITTEN
        } else {
            Self::READ
        }
    }
}

impl<P: Platform> Memory<P> {
    /// Resolves a fault in a PMD span that is mapped by base pages, or not at all.
    pub(super) fn fault_small(
        &self,
        space: &AddressSpace,
        vma: Handle<Vma>,
        slot: PmdSlot,
        fault: FaultInfo,
    ) -> Result<VmFault, AllocError> {
        let PmdEntry::Table(table) = self.pte_table(space.tables(), slot)? else {
            return Ok(VmFault::Retry);
        };
        match self.table(table).pte(Level::Pte.index(fault.addr)) {
            PteEntry::None if fault.access != Access::Write => {
                Ok(self.fault_zero_small((slot, table), fault))
            }
            PteEntry::None => self.fault_new_small(space, vma, (slot, table), fault),
            PteEntry::Migration { .. } => Ok(self.wait_for_migration(space, fault)),
            seen => match self.fault_existing_small(vma, (slot, table), fault) {
                Existing::Resolved(outcome) => Ok(outcome),
                Existing::Shared => self.copy_on_write(space, vma, (slot, table), fault, seen),
            },
        }
    }

    /// Returns what the PMD entry is, after putting an empty table of PTEs where there was nothing.
    pub(crate) fn pte_table(&self, tree: &PageTables, slot: PmdSlot) -> Result<PmdEntry, AllocError> {
        let entry = self.table(slot.table).pmd(slot.index);
        if entry != PmdEntry::None {
            return Ok(entry);
        }
        let fresh = self.alloc_table()?;
        let pmds = self.lock_table(slot.table);
        let entry = pmds.pmd(slot.index);
        if entry != PmdEntry::None {
            drop(pmds);
            self.free_table(fresh);
            return Ok(entry);
        }
        pmds.set_pmd(slot.index, PmdEntry::Table(fresh));
        tree.count(1);
        Ok(PmdEntry::Table(fresh))
    }

    /// Whether `slot` still leads to the PTE table `table`, whose lock is held.
    pub(super) fn is_linked(&self, slot: PmdSlot, table: Pfn) -> bool {
        self.table(slot.table).pmd(slot.index) == PmdEntry::Table(table)
    }

    /// Maps the zero page where nothing is mapped.
    fn fault_zero_small(&self, (slot, table): (PmdSlot, Pfn), fault: FaultInfo) -> VmFault {
        let zero = self.zero_pages().small();
        let ptes = self.lock_table(table);
        let index = Level::Pte.index(fault.addr);
        if ptes.pte(index) != PteEntry::None || !self.is_linked(slot, table) {
            return VmFault::Retry;
        }
        ptes.set_pte(
            index,
            PteEntry::Present {
                pfn: zero,
                prot: Prot::READ,
                marks: Marks::READ,
            },
        );
        VmFault::Done
    }

    /// Makes a new base page anonymous memory of `vma` at `addr`: identity, mapcount, LRU place. Its reference becomes
    /// that of the entry that the caller, who holds the table's lock, sets next.
    pub(crate) fn adopt_new_small<'a>(&self, folio: Folio<'a>, vma: Handle<Vma>, addr: VirtAddr) -> Page<'a> {
        let page = folio.into_raw();
        self.make_anon(page, vma, addr.align_down(PAGE_BYTES));
        self.rmap_new_small(page);
        self.lru_add(page);
        self.mlock_mapped(page, vma);
        page
    }

    fn fault_new_small(
        &self,
        space: &AddressSpace,
        vma: Handle<Vma>,
        (slot, table): (PmdSlot, Pfn),
        fault: FaultInfo,
    ) -> Result<VmFault, AllocError> {
        let placement = self.placement_in(vma, fault.addr, Order::ZERO);
        let folio = self.alloc_folio_from(placement, Order::ZERO, AllocFlags::ZERO)?;
        let page = folio.page();
        page.set_private_state(PageState::of(NEW_ANON));
        let ptes = self.lock_table(table);
        let index = Level::Pte.index(fault.addr);
        let taken = ptes.pte(index) != PteEntry::None;
        if taken || !self.is_linked(slot, table) {
            drop(ptes);
            self.put(folio);
            return Ok(VmFault::Retry);
        }
        let page = self.adopt_new_small(folio, vma, fault.addr);
        let marks = Marks::of_access(fault.access);
        ptes.set_pte(
            index,
            PteEntry::Present {
                pfn: page.pfn(),
                prot: vma.prot(),
                marks,
            },
        );
        space.add_rss(1);
        Ok(VmFault::Done)
    }

    /// The entry is there: somebody was faster, the marks are missing, or it is a write to what was read-only.
    fn fault_existing_small(
        &self,
        vma: Handle<Vma>,
        (slot, table): (PmdSlot, Pfn),
        fault: FaultInfo,
    ) -> Existing {
        let ptes = self.lock_table(table);
        let index = Level::Pte.index(fault.addr);
        let PteEntry::Present { pfn, prot, marks } = ptes.pte(index) else {
            return Existing::Resolved(VmFault::Retry);
        };
        if !self.is_linked(slot, table) {
            return Existing::Resolved(VmFault::Retry);
        }
        let page = self.pages().page(pfn);
        let writes = fault.access == Access::Write;
        if writes
            && !prot.contains(Prot::WRITE)
            && (self.is_zero_page(page) || !self.take_if_sole_owner(page))
        {
            return Existing::Shared;
        }
        let marks = marks.union(Marks::of_access(fault.access));
        let prot = self.rights_of_entry(page, vma, (prot, marks));
        // No flush: a CPU that faults has dropped its own translation of the address, and another CPU that still has
        // the weaker one faults in its turn, finds all as it should be, and goes on.
        self.set_pte_keeping_marks(&ptes, index, PteEntry::Present { pfn, prot, marks });
        Existing::Resolved(VmFault::Done)
    }

    /// Replaces a live entry without losing a mark that the hardware sets at this moment.
    pub(crate) fn set_pte_keeping_marks(&self, ptes: &PtLock<'_, P>, index: usize, entry: PteEntry) {
        let mut current = ptes.load(index);
        loop {
            let now = crate::pgtable::RawPte(current).decode();
            let merged = match (entry, now) {
                (PteEntry::Present { pfn, prot, marks }, PteEntry::Present { marks: late, .. }) => {
                    PteEntry::Present {
                        pfn,
                        prot,
                        marks: marks.union(late),
                    }
                }
                _ => entry,
            };
            match ptes.compare_exchange(index, current, merged.encode().0) {
                Ok(_) => return,
                Err(found) => current = found,
            }
        }
    }

    /// The rights that an entry which maps `page` may have now: what its area allows; to write, only if the page is
    /// this process's alone, and nobody waits to see the first write by its fault.
    pub(crate) fn rights_of_entry(
        &self,
        page: Page<'_>,
        vma: Handle<Vma>,
        (now, marks): (Prot, Marks),
    ) -> Prot {
        let unnoticed = marks.soft_dirty || !vma.tracks_writes();
        let may_write = now.contains(Prot::WRITE) || (page.is_exclusive() && unnoticed);
        if may_write {
            vma.prot()
        } else {
            vma.prot().write_protected()
        }
    }
}

/// What a fault on an entry that is there comes to.
pub(super) enum Existing {
    /// It is dealt with.
    Resolved(VmFault),
    /// The page is also somebody else's, or a zero page: it must be copied to be written.
    Shared,
}
