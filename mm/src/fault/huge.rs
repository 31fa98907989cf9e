//! Faults on huge pages.

use super::{
    Access, FaultInfo,
    anon::{Existing, NEW_ANON},
};
use crate::{
    addr::{HPAGE_PAGES, PMD_SIZE, Pfn, VirtRange},
    address_space::AddressSpace,
    counter::Counter,
    error::{AllocError, VmFault},
    flags::{AllocFlags, Prot},
    folio::Folio,
    memory::Memory,
    order::PMD_ORDER,
    page::Page,
    pgtable::{PmdEntry, PmdSlot, PtLock, RawPmd, cursor::Level, entry::Marks},
    platform::Platform,
    settings::ThpMode,
    slab::Handle,
    vma::{Vma, VmaInfo},
};

/// How an attempt at a huge page ended.
pub(super) enum Outcome {
    /// The fault is dealt with.
    Resolved(VmFault),
    /// No huge page is to be had: use a base page.
    Fallback,
}

/// Whether the span of a PMD may be one huge page of `vma`: all of it inside the area, and huge pages allowed there.
pub(super) fn eligible(mode: ThpMode, vma: Handle<Vma>, span: VirtRange) -> bool {
    vma.range().covers(span) && mode.allows(vma.flags())
}

impl<P: Platform> Memory<P> {
    /// Whether a fault in the area could be given a huge page: it may have one, and one fits.
    #[must_use]
    pub fn thp_eligible(&self, vma: VmaInfo) -> bool {
        let (start, end) = (vma.range.start().as_u64(), vma.range.end().as_u64());
        let last_span = (end & !(PMD_SIZE - 1)).checked_sub(PMD_SIZE);
        self.thp_mode().allows(vma.flags) && last_span.is_some_and(|span| span >= start)
    }

    /// Maps a new, zeroed huge page where nothing is mapped.
    pub(super) fn fault_new_huge(
        &self,
        space: &AddressSpace,
        vma: Handle<Vma>,
        slot: PmdSlot,
        fault: FaultInfo,
    ) -> Result<Outcome, AllocError> {
        let placement = self.placement_in(vma, slot.span.start(), PMD_ORDER);
        let Ok(folio) = self.alloc_folio_from(placement, PMD_ORDER, AllocFlags::OPPORTUNISTIC) else {
            self.add(Counter::ThpFaultFallback, 1);
            return Ok(Outcome::Fallback);
        };
        let (folio, table) = self.with_deposit(folio)?;
        self.clear_huge(folio.pfn(), Level::Pte.index(fault.addr));
        let outcome = self.publish_huge(space, slot, (folio, table), |head| {
            self.prepare_new_huge(head, vma, slot.span);
            space.add_rss(i64::from(HPAGE_PAGES));
            self.add(Counter::ThpFaultAlloc, 1);
            (vma.prot(), Marks::of_access(fault.access))
        });
        Ok(Outcome::Resolved(outcome))
    }

    /// Sets aside now what a later split of the mapping of `folio` needs (I9).
    fn with_deposit<'m>(&'m self, folio: Folio<'m>) -> Result<(Folio<'m>, Pfn), AllocError> {
        match self.alloc_deposit() {
            Ok(table) => Ok((folio, table)),
            Err(error) => {
                self.put(folio);
                Err(error)
            }
        }
    }

    /// Maps a folio by one entry, and deposits the table that goes with it, if nothing is mapped there; otherwise gives
    /// both back. `prepare` runs under the PMD table's lock, when nothing can fail any more, and says what the entry allows.
    fn publish_huge<'m>(
        &'m self,
        space: &AddressSpace,
        slot: PmdSlot,
        (folio, table): (Folio<'m>, Pfn),
        prepare: impl FnOnce(Page<'m>) -> (Prot, Marks),
    ) -> VmFault {
        let pmds = self.lock_table(slot.table);
        if pmds.pmd(slot.index) != PmdEntry::None {
            drop(pmds);
            self.free_table(table);
            self.put(folio);
            return VmFault::Retry;
        }
        self.deposit_table(&pmds, table);
        space.tables().count(1);
        let head = folio.into_raw();
        let (prot, marks) = prepare(head);
        pmds.set_pmd(
            slot.index,
            PmdEntry::Huge {
                pfn: head.pfn(),
                prot,
                marks,
                valid: true,
            },
        );
        VmFault::Done
    }

    /// Turns a fresh compound page into anonymous memory of `vma`, mapped once by PMD. The PMD table is locked.
    fn prepare_new_huge(&self, head: Page<'_>, vma: Handle<Vma>, span: VirtRange) {
        head.set_flags(NEW_ANON);
        self.make_anon(head, vma, span.start());
        self.rmap_new_huge(head);
        self.lru_add(head);
        self.mlock_mapped(head, vma);
    }

    /// Zeroes a huge page, the base page that faulted last, so that it is in the cache when the program goes on.
    fn clear_huge(&self, pfn: Pfn, faulting: usize) {
        let others = (0..HPAGE_PAGES).filter(|&i| i as usize != faulting);
        others.for_each(|i| self.clear_frame(pfn.offset(i)));
        self.clear_frame(Pfn::new(pfn.raw() + u32::try_from(faulting).unwrap_or(0)));
    }

    /// Maps the huge zero page where nothing is mapped.
    pub(super) fn fault_zero_huge(&self, space: &AddressSpace, slot: PmdSlot) -> Result<Outcome, AllocError> {
        let Ok(folio) = self.get_huge_zero_page() else {
            return Ok(Outcome::Fallback);
        };
        let mapped = self.with_deposit(folio)?;
        let outcome = self.publish_huge(space, slot, mapped, |_| (Prot::READ, Marks::READ));
        Ok(Outcome::Resolved(outcome))
    }

    /// The span is mapped by one entry already: somebody was faster, or it is a write to what was read-only.
    pub(super) fn fault_existing_huge(&self, vma: Handle<Vma>, slot: PmdSlot, fault: FaultInfo) -> Existing {
        let pmds = self.lock_table(slot.table);
        let PmdEntry::Huge {
            pfn,
            prot,
            marks,
            valid: true,
        } = pmds.pmd(slot.index)
        else {
            return Existing::Resolved(VmFault::Retry);
        };
        let head = self.pages().page(pfn);
        let writes = fault.access == Access::Write;
        if writes
            && !prot.contains(Prot::WRITE)
            && (self.is_zero_page(head) || !self.take_if_sole_owner(head))
        {
            return Existing::Shared;
        }
        let marks = marks.union(Marks::of_access(fault.access));
        let prot = self.rights_of_entry(head, vma, (prot, marks));
        self.set_pmd_keeping_marks(
            &pmds,
            slot.index,
            PmdEntry::Huge {
                pfn,
                prot,
                marks,
                valid: true,
            },
        );
        Existing::Resolved(VmFault::Done)
    }

    /// Replaces a live huge entry without losing a mark that the hardware sets at this moment.
    pub(crate) fn set_pmd_keeping_marks(&self, pmds: &PtLock<'_, P>, index: usize, entry: PmdEntry) {
        let mut current = pmds.load(index);
        loop {
            let merged = match (entry, RawPmd(current).decode()) {
                (
                    PmdEntry::Huge {
                        pfn,
                        prot,
                        marks,
                        valid,
                    },
                    PmdEntry::Huge { marks: late, .. },
                ) => PmdEntry::Huge {
                    pfn,
                    prot,
                    marks: marks.union(late),
                    valid,
                },
                _ => entry,
            };
            match pmds.compare_exchange(index, current, merged.encode().0) {
                Ok(_) => return,
                Err(found) => current = found,
            }
        }
    }
}
