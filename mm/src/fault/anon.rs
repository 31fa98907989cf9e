//! Faults on base pages.

use super::{Access, FaultInfo};
use crate::{
    addr::PAGE_BYTES,
    address_space::AddressSpace,
    error::{AllocError, VmFault},
    flags::{AllocFlags, PageFlags, Prot},
    memory::Memory,
    order::Order,
    page::{Page, PageState},
    pgtable::{PmdEntry, PmdSlot, PtLock, PteEntry, cursor::Level, entry::Marks},
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
    pub(super) fn of_access(access: Access) -> Self {
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
        let PmdEntry::Table(table) = self.pte_table(space, slot)? else {
            return Ok(VmFault::Retry);
        };
        let index = Level::Pte.index(fault.addr);
        match self.table(table).pte(index) {
            PteEntry::None => self.fault_new_small(space, vma, (slot, table), fault),
            _ => Ok(self.fault_existing_small(vma, (slot, table), fault)),
        }
    }

    /// Returns what the PMD entry is, after putting an empty table of PTEs where there was nothing.
    fn pte_table(&self, space: &AddressSpace, slot: PmdSlot) -> Result<PmdEntry, AllocError> {
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
        space.tables().count(1);
        Ok(PmdEntry::Table(fresh))
    }

    fn fault_new_small(
        &self,
        space: &AddressSpace,
        vma: Handle<Vma>,
        (slot, table): (PmdSlot, crate::addr::Pfn),
        fault: FaultInfo,
    ) -> Result<VmFault, AllocError> {
        let folio = self.alloc_folio(Order::ZERO, AllocFlags::ZERO)?;
        let page = folio.page();
        page.set_private_state(PageState::of(NEW_ANON));
        let ptes = self.lock_table(table);
        let index = Level::Pte.index(fault.addr);
        let taken = ptes.pte(index) != PteEntry::None;
        if taken || self.table(slot.table).pmd(slot.index) != PmdEntry::Table(table) {
            drop(ptes);
            self.put(folio);
            return Ok(VmFault::Retry);
        }
        self.make_anon(page, vma, fault.addr.align_down(PAGE_BYTES));
        self.rmap_new_small(page);
        self.lru_add(page);
        // From here on the entry is the one that holds the reference.
        let page = folio.into_raw();
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

    /// The entry is there: somebody was faster, the marks are missing, or it is a first write to what was read-only.
    fn fault_existing_small(
        &self,
        vma: Handle<Vma>,
        (slot, table): (PmdSlot, crate::addr::Pfn),
        fault: FaultInfo,
    ) -> VmFault {
        let ptes = self.lock_table(table);
        let index = Level::Pte.index(fault.addr);
        let PteEntry::Present { pfn, prot, marks } = ptes.pte(index) else {
            return VmFault::Retry;
        };
        if self.table(slot.table).pmd(slot.index) != PmdEntry::Table(table) {
            return VmFault::Retry;
        }
        let rights = self.rights_after_fault(self.pages().page(pfn), vma, prot);
        let marks = marks.union(Marks::of_access(fault.access));
        // No flush: a CPU that faults has dropped its own translation of the address, and another CPU that still has
        // the weaker one faults in its turn, finds all as it should be, and goes on.
        self.set_pte_keeping_marks(
            &ptes,
            index,
            PteEntry::Present {
                pfn,
                prot: rights,
                marks,
            },
        );
        VmFault::Done
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

    /// The rights that an existing mapping of `page` gets: what its area allows now. Writing needs a page that is
    /// nobody else's, or a mapping that could write already; nothing shares anonymous pages yet, so all are.
    pub(crate) fn rights_after_fault(&self, page: Page<'_>, vma: Handle<Vma>, now: Prot) -> Prot {
        let may_write = now.contains(Prot::WRITE) || page.has(PageFlags::EXCLUSIVE);
        crate::vm_assert!(may_write, "{page:?}: shared anonymous memory does not exist yet");
        if may_write {
            vma.prot()
        } else {
            vma.prot() & !Prot::WRITE
        }
    }
}
