//! F7: `madvise`: what a program says it will do with its memory.
//!
//! | advice | acts on | does |
//! |---|---|---|
//! | huge pages, fork, dumps, reading order | areas | sets a flag; areas are cut and joined for it |
//! | not needed | entries | unmaps: the next access finds zeroes |
//! | free | entries, pages | clears the dirty marks: what is not written again may be dropped |
//! | cold | entries, pages | clears the accessed marks |
//! | page out | entries, pages | the same, and drops what is free. There is no swap: the rest stays |
//! | populate | entries | faults pages in |
//!
//! A lazily freed page (free) has lost `SWAPBACKED` and `DIRTY`, and its entry the dirty mark. It is still there: reading
//! finds the old bytes, writing keeps the page. Who may drop it is page out today, and reclaim when there is one.
//!
//! Advice on part of a huge page that no entry but ours maps splits the page itself, so that the part has a state of
//! its own; a huge page that others map too, or that somebody has pinned, is passed by (Linux does the same).
//!
//! Locks: the mmap lock for writing where areas change, for reading otherwise; inside it, one at a time, a table's lock,
//! or the folio lock while a page is split.
//!
//! Origin: Linux `mm/madvise.c` as of v6.1. Differs: page out does not split a huge page that it cannot write anywhere,
//! and lazily freed pages stay on the list of anonymous ones.

use crate::{
    addr::{HPAGE_PAGES, PAGE_BYTES, Pfn, VirtAddr, VirtRange},
    address_space::AddressSpace,
    counter::Counter,
    error::{MapError, VmFault},
    fault::Access,
    flags::{PageFlags, Prot, VmaFlags},
    folio::Folio,
    mapping::covered,
    memory::Memory,
    page::Page,
    pgtable::{Gather, PmdEntry, PmdSlot, PtLock, PteEntry, RawPmd, RawPte, cursor::Level, entry::Marks},
    platform::{Platform, Stride},
    rmap::Run,
};

/// What `madvise` is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// Nothing in particular; takes back `Sequential` and `Random`.
    Normal,
    /// It will be read in order.
    Sequential,
    /// It will be read in no order.
    Random,
    /// It will be used soon. There is nowhere to read it from: nothing is done.
    WillNeed,
    /// The contents are not needed: the next access finds zeroes. Not for memory that is locked.
    DontNeed,
    /// The same, also for memory that is locked.
    DontNeedLocked,
    /// The contents are not needed unless they are written again.
    Free,
    /// It will not be used soon.
    Cold,
    /// It will not be used for long.
    PageOut,
    /// Pages shall be there to be read.
    PopulateRead,
    /// Pages shall be there to be written.
    PopulateWrite,
    /// Use huge pages.
    HugePage,
    /// Do not use huge pages.
    NoHugePage,
    /// A child of `fork` does not get it.
    DontFork,
    /// It does.
    DoFork,
    /// A child of `fork` finds zeroes there.
    WipeOnFork,
    /// It finds the contents.
    KeepOnFork,
    /// Dumps leave it out.
    DontDump,
    /// They do not.
    DoDump,
}

/// What happens to the pages of an area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Aging {
    Free,
    Cold,
    Out,
}

impl Aging {
    fn marks(self, marks: Marks) -> Marks {
        Marks {
            accessed: false,
            dirty: marks.dirty && self != Self::Free,
            ..marks
        }
    }

    fn of_pte(self, entry: PteEntry) -> PteEntry {
        let PteEntry::Present { pfn, prot, marks } = entry else {
            return entry;
        };
        let marks = self.marks(marks);
        PteEntry::Present { pfn, prot, marks }
    }

    fn of_pmd(self, entry: PmdEntry) -> PmdEntry {
        let PmdEntry::Huge {
            pfn,
            prot,
            marks,
            valid,
        } = entry
        else {
            return entry;
        };
        let marks = self.marks(marks);
        PmdEntry::Huge {
            pfn,
            prot,
            marks,
            valid,
        }
    }
}

/// The flags that some advice sets and clears.
fn flags_of(advice: Advice) -> Option<(VmaFlags, VmaFlags)> {
    let none = VmaFlags::empty();
    let reading = VmaFlags::SEQ_READ | VmaFlags::RAND_READ;
    Some(match advice {
        Advice::Normal => (none, reading),
        Advice::Sequential => (VmaFlags::SEQ_READ, VmaFlags::RAND_READ),
        Advice::Random => (VmaFlags::RAND_READ, VmaFlags::SEQ_READ),
        Advice::HugePage => (VmaFlags::HUGEPAGE, VmaFlags::NOHUGEPAGE),
        Advice::NoHugePage => (VmaFlags::NOHUGEPAGE, VmaFlags::HUGEPAGE),
        Advice::DontFork => (VmaFlags::DONTCOPY, none),
        Advice::DoFork => (none, VmaFlags::DONTCOPY),
        Advice::WipeOnFork => (VmaFlags::WIPEONFORK, none),
        Advice::KeepOnFork => (none, VmaFlags::WIPEONFORK),
        Advice::DontDump => (VmaFlags::DONTDUMP, none),
        Advice::DoDump => (none, VmaFlags::DONTDUMP),
        _ => return None,
    })
}

impl<P: Platform> Memory<P> {
    /// Applies `advice` to all areas in `range`.
    ///
    /// # Errors
    /// [`MapError::NotMapped`]: part of the range is a hole; the rest was advised (as Linux does), but nothing is
    /// populated past it. [`MapError::Invalid`]: an area is locked and the advice is not for that, or its rights do not
    /// allow what is to be populated; up to there it was followed. [`MapError::BadRange`]: contents that should be
    /// populated are not to be had. Others as [`Memory::munmap`].
    pub fn madvise(&self, space: &AddressSpace, range: VirtRange, advice: Advice) -> Result<(), MapError> {
        match advice {
            Advice::WillNeed => {
                let _mmap = space.lock().read(self.platform());
                covered(space, range)
            }
            Advice::DontNeed | Advice::DontNeedLocked => self.dont_need(space, range, advice),
            Advice::Free => self.age(space, range, Aging::Free),
            Advice::Cold => self.age(space, range, Aging::Cold),
            Advice::PageOut => self.age(space, range, Aging::Out),
            Advice::PopulateRead => self.populate_for(space, range, Access::Read),
            Advice::PopulateWrite => self.populate_for(space, range, Access::Write),
            _ => match flags_of(advice) {
                Some(flags) => self.change_flags(space, range, flags),
                None => Err(MapError::Invalid),
            },
        }
    }

    fn change_flags(
        &self,
        space: &AddressSpace,
        range: VirtRange,
        (set, clear): (VmaFlags, VmaFlags),
    ) -> Result<(), MapError> {
        let _mmap = space.lock().write(self.platform());
        let wanted = |flags: VmaFlags| (flags | set) & !clear;
        // What is so already costs no cut, which could fail.
        let is_so = |vma: &crate::vma::Vma| wanted(vma.flags()) == vma.flags();
        if !space.areas().overlapping(range).all(|vma| is_so(&vma)) {
            self.isolate_range(space, range)?;
            for vma in space.areas().overlapping(range) {
                self.set_area_flags(space, vma, wanted(vma.flags()));
            }
            self.merge_range(space, range);
        }
        covered(space, range)
    }

    fn dont_need(&self, space: &AddressSpace, range: VirtRange, advice: Advice) -> Result<(), MapError> {
        let forbidden = match advice {
            Advice::DontNeedLocked => VmaFlags::empty(),
            _ => VmaFlags::LOCKED,
        };
        self.for_parts(space, range, forbidden, &mut |part, gather| {
            if let Some(vma) = space.areas().containing(part.start()) {
                self.unlock_pages_in(space, vma, part);
            }
            self.zap_range(space, part, gather);
        })
    }

    /// Shows `visit` what `range` shares with each area, up to one that has a forbidden flag.
    fn for_parts(
        &self,
        space: &AddressSpace,
        range: VirtRange,
        forbidden: VmaFlags,
        visit: &mut dyn FnMut(VirtRange, &mut Gather<'_, P>),
    ) -> Result<(), MapError> {
        let _mmap = space.lock().read(self.platform());
        let mut gather = Gather::shared(self, space.tables());
        let mut allowed = Ok(());
        for vma in space.areas().overlapping(range) {
            if vma.flags().intersects(forbidden) {
                allowed = Err(MapError::Invalid);
                break;
            }
            if let Some(part) = vma.range().intersect(range) {
                visit(part, &mut gather);
            }
        }
        gather.finish();
        allowed.and_then(|()| covered(space, range))
    }

    fn populate_for(&self, space: &AddressSpace, range: VirtRange, access: Access) -> Result<(), MapError> {
        let mut from = range.start();
        while from < range.end() {
            let vma = self.vma_at(space, from).ok_or(MapError::NotMapped)?;
            let right = if access == Access::Write {
                Prot::WRITE
            } else {
                Prot::READ
            };
            if !vma.flags.prot().contains(right) {
                return Err(MapError::Invalid);
            }
            let end = vma.range.end().min(range.end());
            if let Some(part) = VirtRange::new(from, end) {
                self.populate(space, part, access).map_err(|fault| match fault {
                    VmFault::NeedMemory(error) => MapError::NoMemory(error),
                    _ => MapError::BadRange,
                })?;
            }
            from = end;
        }
        Ok(())
    }

    fn age(&self, space: &AddressSpace, range: VirtRange, aging: Aging) -> Result<(), MapError> {
        self.for_parts(space, range, VmaFlags::LOCKED, &mut |part, gather| {
            self.for_each_pmd(space.tables(), part, &mut |slot, chunk| {
                self.age_chunk(space, (slot, chunk), aging, gather);
            });
        })
    }

    fn age_chunk(
        &self,
        space: &AddressSpace,
        (slot, chunk): (PmdSlot, VirtRange),
        aging: Aging,
        gather: &mut Gather<'_, P>,
    ) {
        let pmds = self.lock_table(slot.table);
        let PmdEntry::Huge { pfn, .. } = pmds.pmd(slot.index) else {
            drop(pmds);
            return self.age_ptes(space, (slot, chunk), aging, gather);
        };
        let head = self.pages().page(pfn);
        if self.is_zero_page(head) || head.map_counts().total != 1 {
            return;
        }
        if chunk == slot.span {
            return self.age_huge(space, pmds, slot, aging, gather);
        }
        let folio = self.try_get(head);
        drop(pmds);
        if let Some(folio) = folio
            && self.split_for_advice(folio)
        {
            self.age_ptes(space, (slot, chunk), aging, gather);
        }
    }

    /// Splits a huge page so that its parts can be told apart; returns whether that went well.
    fn split_for_advice(&self, folio: Folio<'_>) -> bool {
        let Some(locked) = self.try_lock_folio(&folio) else {
            self.put(folio);
            return false;
        };
        // Somebody who holds it by its frames would only make the attempt fail.
        let (is_split, folio, locked) = match self.split_hindrance(folio.page()) {
            None => match self.split_folio(folio, locked, 0) {
                Ok((folio, locked)) => (true, folio, locked),
                Err((_, folio, locked)) => (false, folio, locked),
            },
            Some(_) => (false, folio, locked),
        };
        drop(locked);
        self.put(folio);
        is_split
    }

    fn age_huge(
        &self,
        space: &AddressSpace,
        pmds: PtLock<'_, P>,
        slot: PmdSlot,
        aging: Aging,
        gather: &mut Gather<'_, P>,
    ) {
        let PmdEntry::Huge { pfn, .. } = pmds.pmd(slot.index) else {
            return;
        };
        let head = self.pages().page(pfn);
        self.age_page(head, aging);
        if pmds.update_pmd(slot.index, &|entry| aging.of_pmd(entry)) {
            gather.stale(slot.span, Stride::Pmd);
        }
        if aging == Aging::Out && is_lazily_free(head) {
            self.drop_huge(space, pmds, slot, gather);
        }
    }

    /// Unmaps a huge page unless it was written, or somebody else holds it. The entry is hidden for the look, never
    /// empty: somebody who unmaps would pass it by (C11).
    fn drop_huge(
        &self,
        space: &AddressSpace,
        pmds: PtLock<'_, P>,
        slot: PmdSlot,
        gather: &mut Gather<'_, P>,
    ) {
        let found = self.invalidate_pmd(space, &pmds, slot);
        let PmdEntry::Huge { pfn, marks, .. } = found else {
            return;
        };
        let head = self.pages().page(pfn);
        if marks.dirty || head.refs_hint() != 1 || head.has(PageFlags::DIRTY) {
            pmds.set_pmd(slot.index, found);
            return;
        }
        pmds.swap(slot.index, RawPmd::NONE.0);
        let table = self.withdraw_table(&pmds);
        space.tables().count(-1);
        self.rmap_remove_pmd(head);
        space.add_rss(-i64::from(HPAGE_PAGES));
        self.add(Counter::PgLazyFreed, i64::from(HPAGE_PAGES));
        gather.page(head, 1, slot.span, Stride::Pmd);
        gather.flush_if_shared();
        drop(pmds);
        self.free_table(table);
    }

    fn age_ptes(
        &self,
        space: &AddressSpace,
        (slot, chunk): (PmdSlot, VirtRange),
        aging: Aging,
        gather: &mut Gather<'_, P>,
    ) {
        let PmdEntry::Table(table) = self.table(slot.table).pmd(slot.index) else {
            return;
        };
        let mut at = chunk.start();
        // A huge page that could not be split: it is not tried again for each of its parts.
        let mut whole: Option<Pfn> = None;
        while at < chunk.end() {
            let Some((next, folio)) = self.age_small(space, (table, at..chunk.end()), aging, (whole, gather))
            else {
                return;
            };
            at = next;
            let head = folio.pfn();
            if !self.split_for_advice(folio) {
                whole = Some(head);
            }
        }
    }

    /// Ages base pages up to one that is part of a huge page, other than `whole`, and mapped here alone; returns its
    /// address and a reference.
    fn age_small(
        &self,
        space: &AddressSpace,
        (table, range): (Pfn, core::ops::Range<VirtAddr>),
        aging: Aging,
        (whole, gather): (Option<Pfn>, &mut Gather<'_, P>),
    ) -> Option<(VirtAddr, Folio<'_>)> {
        let ptes = self.lock_table(table);
        let mut addr = range.start;
        while addr < range.end {
            let index = Level::Pte.index(addr);
            if let PteEntry::Present { pfn, .. } = ptes.pte(index) {
                let page = self.pages().page(pfn);
                let is_ours = !self.is_zero_page(page) && page.mapcount() == 1;
                let is_part = page.head().compound_order() > crate::order::Order::ZERO;
                if is_ours && !is_part {
                    self.age_pte(space, (&ptes, addr, page), aging, gather);
                } else if is_ours
                    && Some(page.head().pfn()) != whole
                    && let Some(folio) = self.try_get(page)
                {
                    return Some((addr, folio));
                }
            }
            addr += PAGE_BYTES;
        }
        None
    }

    fn age_pte(
        &self,
        space: &AddressSpace,
        (ptes, addr, page): (&PtLock<'_, P>, VirtAddr, Page<'_>),
        aging: Aging,
        gather: &mut Gather<'_, P>,
    ) {
        let index = Level::Pte.index(addr);
        let range = VirtRange::page(addr);
        self.age_page(page, aging);
        if ptes.update_pte(index, &|entry| aging.of_pte(entry)) {
            gather.stale(range, Stride::Page);
        }
        if aging != Aging::Out || !is_lazily_free(page) {
            return;
        }
        let raw = ptes.swap(index, RawPte::NONE.0);
        let is_written = matches!(RawPte(raw).decode(), PteEntry::Present { marks, .. } if marks.dirty);
        // Nobody sees that it was empty: who looks has the table's lock.
        if is_written || page.refs_hint() != 1 {
            ptes.store(index, raw);
            return;
        }
        self.rmap_remove_ptes(Run::of(page));
        space.add_rss(-1);
        self.add(Counter::PgLazyFreed, 1);
        gather.page(page, 1, range, Stride::Page);
    }

    /// Changes the flags of a page that our entry alone maps; its table is locked.
    fn age_page(&self, head: Page<'_>, aging: Aging) {
        if aging != Aging::Free {
            head.clear_flags(PageFlags::REFERENCED);
            return;
        }
        let lost = PageFlags::REFERENCED | PageFlags::DIRTY | PageFlags::SWAPBACKED;
        if head.clear_flags(lost).contains(PageFlags::SWAPBACKED) {
            let pages = i64::from(head.compound_order().nr_pages());
            self.add(Counter::PgLazyFree, pages);
        }
    }
}

/// Whether the page may be dropped as far as its flags go.
fn is_lazily_free(head: Page<'_>) -> bool {
    !head
        .state()
        .flags()
        .intersects(PageFlags::SWAPBACKED | PageFlags::DIRTY)
}
