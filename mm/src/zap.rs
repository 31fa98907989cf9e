//! F7: removes mappings and gives back what they held.
//!
//! ```text
//!   range:      |····[==========|==========|=====]···|        2 MiB spans
//!                     part       whole      part
//!   PMD huge:         split_pmd, remove     split_pmd,
//!                     then PTEs  the PMD    then PTEs
//! ```
//! A huge page that the range covers wholly goes by removing one entry; one that it covers partly has that one mapping
//! split first, which cannot fail, and so zapping cannot either. PTEs are removed in runs: neighbouring entries that
//! map neighbouring pages of one folio cost one rmap batch together.
//!
//! Every page outlives the TLB flush: it is held by the [`Gather`].
//!
//! Locks: mmap lock held (reading is enough to zap; removing tables needs writing); takes one table's lock at a time.
//!
//! Origin: Linux `zap_pmd_range`, `zap_huge_pmd`; A10 in `docs/design.md`.

use crate::{
    addr::{HPAGE_PAGES, PAGE_BYTES, Pfn, VirtAddr, VirtRange, to_usize},
    address_space::{AddressSpace, MmRef},
    counter::Counter,
    flags::PageFlags,
    memory::Memory,
    page::Page,
    pgtable::{Gather, PmdEntry, PmdSlot, PtLock, PteEntry, RawPmd, RawPte, cursor::Level},
    platform::{Platform, Stride},
    rmap::Run,
};

impl<P: Platform> Memory<P> {
    /// Unmaps all pages of `range`. The mmap lock is held; areas and tables stay.
    pub(crate) fn zap_range(&self, space: &AddressSpace, range: VirtRange, gather: &mut Gather<'_, P>) {
        self.for_each_pmd(space.tables(), range, &mut |slot, chunk| {
            self.zap_chunk(space, slot, chunk, gather)
        });
    }

    /// Unmaps `chunk`, which lies in the span of one PMD.
    fn zap_chunk(&self, space: &AddressSpace, slot: PmdSlot, chunk: VirtRange, gather: &mut Gather<'_, P>) {
        loop {
            match self.table(slot.table).pmd(slot.index) {
                PmdEntry::None => return,
                PmdEntry::Table(table) => return self.zap_ptes(space, table, chunk, gather),
                _ if chunk == slot.span => {
                    if self.zap_huge_pmd(space, slot, gather) {
                        return;
                    }
                }
                _ => self.split_pmd_slot(space, slot),
            }
        }
    }

    /// Removes a whole huge mapping; returns false if it is not one any more.
    fn zap_huge_pmd(&self, space: &AddressSpace, slot: PmdSlot, gather: &mut Gather<'_, P>) -> bool {
        let pmds = self.lock_table(slot.table);
        let entry = pmds.pmd(slot.index);
        if matches!(entry, PmdEntry::None | PmdEntry::Table(_)) {
            return false;
        }
        let entry = RawPmd(pmds.swap(slot.index, RawPmd::NONE.0)).decode();
        let table = self.withdraw_table(&pmds);
        space.tables().count(-1);
        match entry {
            PmdEntry::Huge { pfn, marks, .. } => {
                let head = self.pages().page(pfn);
                if !self.is_zero_page(head) {
                    if marks.dirty {
                        mark_dirty(head);
                    }
                    self.rmap_remove_pmd(head);
                    space.add_rss(-i64::from(HPAGE_PAGES));
                }
                gather.page(head, 1, slot.span, Stride::Pmd);
            }
            _ => space.add_rss(-i64::from(HPAGE_PAGES)),
        }
        // While others may fault here, a base page must not be mapped before the last CPU has dropped the huge
        // translation (I12).
        gather.flush_if_shared();
        // The deposited table was never visible to the hardware: it needs no flush, only the lock to be gone.
        drop(pmds);
        self.free_table(table);
        true
    }

    /// Removes the PTEs of `chunk`.
    fn zap_ptes(&self, space: &AddressSpace, table: Pfn, chunk: VirtRange, gather: &mut Gather<'_, P>) {
        let ptes = self.lock_table(table);
        let mut removed = 0;
        let mut addr = chunk.start();
        while addr < chunk.end() {
            let row = VirtRange::new(addr, chunk.end()).unwrap_or(chunk);
            let (passed, gone) = self.zap_base_pages(&ptes, row, gather);
            removed += gone;
            addr += passed * PAGE_BYTES;
            if addr == chunk.end() {
                break;
            }
            let index = Level::Pte.index(addr);
            let mut nr = 1;
            match ptes.pte(index) {
                PteEntry::None => {}
                PteEntry::Migration { .. } => {
                    ptes.set_pte(index, PteEntry::None);
                    removed += 1;
                }
                PteEntry::Present { pfn, .. } => {
                    let part = (addr, chunk.end());
                    // As one, so that a page that goes as a whole is not found to be partly unmapped on the way.
                    let run = self.run_up_to(part, pfn, &|max| ptes.frames_length(index, max));
                    nr = run.nr;
                    let range = VirtRange::of_pages(addr, nr);
                    let marks = ptes.take_run(index, nr as usize);
                    if self.is_zero_page(run.head) {
                        gather.stale(range, Stride::Page);
                    } else {
                        if marks.dirty {
                            mark_dirty(run.head);
                        }
                        self.rmap_remove_ptes(run);
                        gather.page(run.head, nr, range, Stride::Page);
                        removed += i64::from(nr);
                    }
                }
            }
            addr += u64::from(nr) * PAGE_BYTES;
        }
        space.add_rss(-removed);
    }

    /// Unmaps the base pages at the front of `row`, and passes by what is empty; stops at anything else. Returns how many
    /// entries it passed and how many pages it unmapped.
    fn zap_base_pages(&self, ptes: &PtLock<'_, P>, row: VirtRange, gather: &mut Gather<'_, P>) -> (u64, i64) {
        let (mut passed, mut removed, mut unmapped) = (0, 0, 0);
        for entry in ptes.entries(Level::Pte.index(row.start()), to_usize(row.nr_pages())) {
            let mut raw = RawPte(entry.load_relaxed());
            if raw != RawPte::NONE {
                let Some((page, flags)) = self.base_page_of(raw) else {
                    break;
                };
                if raw.may_get_dirty() {
                    raw = RawPte(entry.swap_acqrel(RawPte::NONE.0));
                } else {
                    entry.store_relaxed(RawPte::NONE.0);
                }
                if raw.is_dirty() && !flags.contains(PageFlags::DIRTY) {
                    page.set_flags(PageFlags::DIRTY);
                }
                unmapped += i64::from(page.unmap_small());
                if removed == 0 {
                    gather.stale(row, Stride::Page);
                }
                gather.base_page(page, row);
                removed += 1;
            }
            passed += 1;
        }
        if unmapped > 0 {
            self.add(Counter::NrAnonPages, -unmapped);
        }
        (passed, removed)
    }

    /// The page that a PTE maps, with its flags, if that is an order-0 page and not the zero page. The table is locked.
    pub(crate) fn base_page_of(&self, raw: RawPte) -> Option<(Page<'_>, PageFlags)> {
        let page = self.pages().page(raw.frame()?);
        let flags = page.state().flags();
        (!flags.intersects(NO_BASE_PAGE)).then_some((page, flags))
    }

    /// The run that begins with the PTE at `index`, which maps `pfn` at the start of the range and ends with its folio or
    /// the range.
    pub(crate) fn run_of_ptes(
        &self,
        ptes: &PtLock<'_, P>,
        index: usize,
        range: (VirtAddr, VirtAddr),
        pfn: Pfn,
    ) -> Run<'_> {
        self.run_up_to(range, pfn, &|max| ptes.run_length(index, max))
    }

    /// The run from `pfn` on whose length `length` finds, given the most that it may be.
    fn run_up_to(
        &self,
        (addr, end): (VirtAddr, VirtAddr),
        pfn: Pfn,
        length: &dyn Fn(usize) -> usize,
    ) -> Run<'_> {
        let run = Run::of(self.pages().page(pfn));
        let left = (end - addr) / PAGE_BYTES;
        let nr = length(to_usize(left.min(u64::from(run.room()))));
        run.grown_by(u32::try_from(nr - 1).unwrap_or_else(|_| unreachable!("at most a table")))
    }

    /// Gives back a user of a space. The last one unmaps everything (Linux `exit_mmap`) and frees the space.
    pub fn put_space(&self, space: MmRef) {
        let Some(space) = self.drop_user(space) else {
            return;
        };
        {
            let _mmap = space.lock().write(self.platform());
            let mut gather = Gather::new(self, space.tables());
            let mut areas = space.areas().overlapping(user_range());
            areas.by_ref().for_each(|vma| {
                self.unlock_pages(&space, vma);
                self.zap_range(&space, vma.range(), &mut gather);
            });
            // Each area goes before its tables: once it is off its list no rmap walk comes into them. What lies below it
            // is gone already; a table that the next area needs too goes with that one.
            while let Some(vma) = space.areas().find(VirtAddr::zero()) {
                let range = vma.range();
                self.remove_area(&space, vma);
                let next = space.areas().find(range.end());
                let end = next.map_or(user_range().end(), |next| next.start());
                let gap = VirtRange::new(VirtAddr::zero(), end).unwrap_or(range);
                self.remove_tables(space.tables(), range, gap, &mut gather);
            }
            gather.finish();
        }
        self.free_space(space);
    }
}

/// All that user space may use, rounded up to what the lower half of the root spans.
pub(crate) fn user_range() -> VirtRange {
    let end = VirtAddr::new(crate::addr::USER_END);
    VirtRange::new(VirtAddr::zero(), end).unwrap_or_else(|| unreachable!("a valid range"))
}

/// What says of a mapped page that it is part of a folio, or the zero page, which is no memory that is managed.
const NO_BASE_PAGE: PageFlags = PageFlags::HEAD
    .union(PageFlags::TAIL)
    .union(PageFlags::RESERVED)
    .union(PageFlags::NOPAGE);

/// Sets the dirty flag without a locked operation where it is set already.
fn mark_dirty(head: crate::page::Page<'_>) {
    if !head.has(PageFlags::DIRTY) {
        head.set_flags(PageFlags::DIRTY);
    }
}
