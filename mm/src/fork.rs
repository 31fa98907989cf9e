//! F7: gives a child the memory of its parent.
//!
//! ```text
//!   parent: PMD -> folio, W          parent: PMD -> folio, read-only
//!                             ──>                  folio: C+1, one reference more, exclusive mark gone
//!                                    child:  PMD -> folio, read-only, old
//! ```
//! Nothing is copied but entries: both sides lose the right to write and the page its exclusive mark; whoever writes
//! first gets a copy (see `fault::cow`). PTEs go in runs: neighbouring entries that map neighbouring pages of one folio
//! cost one batch on its counters together.
//!
//! A table for a huge mapping of the child is allocated while both tables are locked: an allocation never waits. When
//! one fails the child is thrown away; the parent keeps its pages, read-only, and gets its rights back fault by fault.
//!
//! A page that must not be shared because it is pinned may be on its way elsewhere: whoever moves it has yet to find the
//! pin. `fork` waits until the page is back, and copies it then.
//!
//! Locks: the parent's mmap lock for writing (the child is not known to anybody yet), the child's table before the
//! parent's.
//!
//! Origin: Linux `copy_huge_pmd`, `copy_pte_range`; A11.

use crate::{
    addr::{HPAGE_PAGES, PAGE_BYTES, PMD_SIZE, Pfn, VirtAddr, VirtRange, to_usize},
    address_space::{AddressSpace, MmRef},
    error::{AllocError, MapError},
    flags::{PageFlags, Prot, VmaFlags},
    memory::Memory,
    order::Order,
    pgtable::{
        Gather, MigrationKind, PmdEntry, PmdSlot, PtLock, PteEntry, RawPte,
        cursor::{Level, pmd_chunks},
    },
    platform::{Platform, Stride},
    rmap::Run,
    slab::Handle,
    vma::Vma,
};

/// How an attempt to copy a page ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Copied {
    /// The child has one of its own.
    Yes,
    /// The entry changed meanwhile: somebody moves the page. Look again.
    Changed,
}

impl<P: Platform> Memory<P> {
    /// Makes an address space that shares all private memory of `parent` until one of them writes.
    ///
    /// # Errors
    /// [`MapError::NoMemory`]: nothing is left of the child; the parent is as before but for rights that come back by
    /// faults.
    pub fn fork_space(&self, parent: &AddressSpace) -> Result<MmRef, MapError> {
        let child = self.new_space()?;
        match self.copy_space(parent, &child) {
            Ok(()) => Ok(child),
            Err(error) => {
                self.put_space(child);
                Err(error.into())
            }
        }
    }

    fn copy_space(&self, parent: &AddressSpace, child: &AddressSpace) -> Result<(), AllocError> {
        let _mmap = parent.lock().write(self.platform());
        parent.note_fork();
        child.inherit(parent);
        let mut gather = Gather::new(self, parent.tables());
        let copied = parent
            .areas()
            .overlapping(crate::zap::user_range())
            .filter(|vma| !vma.flags().contains(VmaFlags::DONTCOPY))
            .try_for_each(|vma| self.copy_area(parent, child, vma, &mut gather));
        // The parent's writable translations are stale now, whether or not all went well.
        gather.finish();
        parent.note_fork();
        copied
    }

    fn copy_area(
        &self,
        parent: &AddressSpace,
        child: &AddressSpace,
        vma: Handle<Vma>,
        gather: &mut Gather<'_, P>,
    ) -> Result<(), AllocError> {
        let first_index = vma.linear_index(vma.start());
        // A child locks its own memory, or none.
        let flags = vma.flags() & !VmaFlags::LOCK;
        let copy = Vma::moved(child.handle(), vma.range(), flags, first_index);
        let copy = self.insert_area(child, copy.with_policy(vma.policy()))?;
        if vma.flags().contains(VmaFlags::WIPEONFORK) {
            return Ok(());
        }
        let Some(anon_vma) = vma.anon_vma() else {
            return Ok(());
        };
        self.join_anon_vma_behind(copy, vma, anon_vma);
        let mut copied = Ok(());
        self.for_each_pmd_table(parent.tables(), vma.range(), &mut |from, range| {
            if copied.is_ok() {
                copied = self.copy_pmds((parent, child), (from, range), gather);
            }
        });
        copied
    }

    /// Copies the entries of `range`, which the PMD table `from` spans: huge pages in a row under one taking of the
    /// locks.
    fn copy_pmds(
        &self,
        (parent, child): (&AddressSpace, &AddressSpace),
        (from, range): (Pfn, VirtRange),
        gather: &mut Gather<'_, P>,
    ) -> Result<(), AllocError> {
        let mut rest = Some(range);
        while let Some(range) = rest.filter(|rest| !rest.is_empty()) {
            let Some(first) = self.first_used_pmd(from, range) else {
                return Ok(());
            };
            let to = self.pmd_slot_alloc(child.tables(), first)?;
            let range = VirtRange::new(first, range.end()).unwrap_or(range);
            let stop = {
                let into = self.lock_table(to.table);
                let out = self.lock_table(from);
                self.share_pmds(child, (&out, &into), range, gather)?
            };
            rest = None;
            if let Some(addr) = stop {
                let slot = PmdSlot {
                    table: from,
                    index: Level::Pmd.index(addr),
                    span: VirtRange::pmd(addr),
                };
                let chunk = range.intersect(slot.span).unwrap_or(range);
                // A huge page stopped the row because it must be copied, which is done by base pages.
                self.split_pmd_slot(parent, slot);
                self.copy_ptes((parent, child), (slot, chunk), gather)?;
                rest = VirtRange::new(chunk.end(), range.end());
            }
        }
        Ok(())
    }

    /// Where the first entry of `table` in `range` is that holds anything.
    fn first_used_pmd(&self, table: Pfn, range: VirtRange) -> Option<VirtAddr> {
        let table = self.table(table);
        pmd_chunks(range)
            .map(VirtRange::start)
            .find(|&addr| table.pmd(Level::Pmd.index(addr)) != PmdEntry::None)
    }

    /// Whether a page must not be shared: it is this process's alone and somebody holds its frame for input or output.
    fn must_copy(&self, page: crate::page::Page<'_>) -> bool {
        page.maybe_pinned() && page.is_exclusive()
    }

    /// The same of a page that is being moved: that it is this process's alone is known to its entry only.
    fn must_copy_moving(&self, pfn: Pfn, kind: MigrationKind) -> bool {
        kind != MigrationKind::Read && self.pages().page(pfn).maybe_pinned()
    }

    /// Shares the huge pages of `range` until an entry that is a table or whose page must be copied; returns its address.
    fn share_pmds(
        &self,
        child: &AddressSpace,
        (out, into): (&PtLock<'_, P>, &PtLock<'_, P>),
        range: VirtRange,
        gather: &mut Gather<'_, P>,
    ) -> Result<Option<VirtAddr>, AllocError> {
        let row = Level::Pmd.index(range.start())..=Level::Pmd.index(range.end() - 1);
        let (mut tables, mut huge_pages) = (0, 0);
        let mut stop = Ok(None);
        for index in row.clone() {
            let entry = out.pmd(index);
            match entry {
                PmdEntry::None => continue,
                PmdEntry::Huge { pfn, .. } if !self.must_copy(self.pages().page(pfn)) => {}
                PmdEntry::Migration { pfn, kind, .. } if !self.must_copy_moving(pfn, kind) => {}
                PmdEntry::Table(_) | PmdEntry::Huge { .. } | PmdEntry::Migration { .. } => {
                    let up_to = (index - row.start()) as u64 * PMD_SIZE;
                    let addr = range.start().align_down(PMD_SIZE) + up_to;
                    stop = Ok(Some(addr.max(range.start())));
                    break;
                }
            }
            let deposit = match self.alloc_deposit() {
                Ok(deposit) => deposit,
                Err(error) => {
                    stop = Err(error);
                    break;
                }
            };
            self.deposit_table(into, deposit);
            tables += 1;
            huge_pages += self.share_pmd((out, into), index, entry);
        }
        if tables > 0 {
            child.tables().count(tables);
            child.add_rss(huge_pages * i64::from(HPAGE_PAGES));
            gather.stale(range, Stride::Pmd);
        }
        stop
    }

    /// Shares one huge page; returns how many the child's resident size grows by.
    fn share_pmd(&self, (out, into): (&PtLock<'_, P>, &PtLock<'_, P>), index: usize, entry: PmdEntry) -> i64 {
        match entry {
            PmdEntry::Huge { pfn, .. } => {
                let head = self.pages().page(pfn);
                self.get_refs(head, 1);
                let resident = !self.is_zero_page(head);
                if resident {
                    self.rmap_dup_pmd(head);
                }
                out.share_run(index, 1, into);
                i64::from(resident)
            }
            PmdEntry::Migration { pfn, marks, .. } => {
                let kind = MigrationKind::Read;
                let shared = PmdEntry::Migration { pfn, kind, marks };
                out.set_pmd(index, shared);
                into.set_pmd(index, shared);
                1
            }
            PmdEntry::None | PmdEntry::Table(_) => unreachable!("no huge page"),
        }
    }

    fn copy_ptes(
        &self,
        (parent, child): (&AddressSpace, &AddressSpace),
        (from, chunk): (PmdSlot, VirtRange),
        gather: &mut Gather<'_, P>,
    ) -> Result<(), AllocError> {
        let PmdEntry::Table(source) = self.table(from.table).pmd(from.index) else {
            return Ok(());
        };
        let to = self.pmd_slot_alloc(child.tables(), chunk.start())?;
        let PmdEntry::Table(target) = self.pte_table(child.tables(), to)? else {
            unreachable!("nobody else knows the child")
        };
        let mut rest = Some(chunk);
        // A page that must be copied needs a frame, which is not to be had under a lock: stop there, and go on.
        while let Some(range) = rest.take() {
            let stopped = {
                let into = self.lock_table(target);
                let out = self.lock_table(source);
                self.share_ptes(child, (&out, &into), range, gather)
            };
            if let Some(at) = stopped {
                let next = match self.copy_pinned_page((parent, child), (source, target), at)? {
                    Copied::Yes => at + PAGE_BYTES,
                    Copied::Changed => at,
                };
                rest = VirtRange::new(next, chunk.end()).filter(|rest| !rest.is_empty());
            }
        }
        Ok(())
    }

    /// Copies entries, a run at a time, until one whose page must be copied; returns its address.
    fn share_ptes(
        &self,
        child: &AddressSpace,
        (out, into): (&PtLock<'_, P>, &PtLock<'_, P>),
        range: VirtRange,
        gather: &mut Gather<'_, P>,
    ) -> Option<VirtAddr> {
        let mut rss = 0;
        let mut addr = range.start();
        let mut stopped = None;
        while addr < range.end() {
            let row = VirtRange::new(addr, range.end()).unwrap_or(range);
            let (passed, shared) = self.share_base_pages(out, into, row, gather);
            rss += shared;
            addr += passed * PAGE_BYTES;
            if addr == range.end() {
                break;
            }
            let index = Level::Pte.index(addr);
            let mut nr = 1;
            match out.pte(index) {
                PteEntry::None => {}
                PteEntry::Migration { pfn, kind, marks } => {
                    if self.must_copy_moving(pfn, kind) {
                        stopped = Some(addr);
                        break;
                    }
                    let kind = MigrationKind::Read;
                    let shared = PteEntry::Migration { pfn, kind, marks };
                    out.set_pte(index, shared);
                    into.set_pte(index, shared);
                    rss += 1;
                }
                PteEntry::Present { pfn, prot, .. } => {
                    let mut run = self.run_of_ptes(out, index, (addr, range.end()), pfn);
                    if run.head.maybe_pinned() {
                        run = Run::of(self.pages().page(pfn));
                        if self.must_copy(self.pages().page(pfn)) {
                            stopped = Some(addr);
                            break;
                        }
                    }
                    nr = run.nr;
                    if !self.is_zero_page(run.head) {
                        self.get_refs(run.head, nr);
                        self.rmap_dup_ptes(run);
                        rss += i64::from(nr);
                        if prot.contains(Prot::WRITE) {
                            gather.stale(VirtRange::of_pages(addr, nr), Stride::Page);
                        }
                    }
                    out.share_run(index, nr as usize, into);
                }
            }
            addr += u64::from(nr) * PAGE_BYTES;
        }
        child.add_rss(rss);
        stopped
    }

    /// Shares the base pages at the front of `row`, and passes by what is empty; stops at anything else. Returns how many
    /// entries it passed and how many pages are shared.
    fn share_base_pages(
        &self,
        out: &PtLock<'_, P>,
        into: &PtLock<'_, P>,
        row: VirtRange,
        gather: &mut Gather<'_, P>,
    ) -> (u64, i64) {
        let (index, nr) = (Level::Pte.index(row.start()), to_usize(row.nr_pages()));
        let (entries, copies) = (out.entries(index, nr), into.entries(index, nr));
        let (mut shared, mut was_writable) = (0, false);
        let mut row_of_pairs = entries.iter().zip(copies).enumerate();
        let stop = row_of_pairs.find_map(|(at, (entry, copy))| {
            let raw = RawPte(entry.load_relaxed());
            if raw == RawPte::NONE {
                return None;
            }
            let Some((page, flags)) = self.base_page_of(raw).filter(|(page, _)| !page.has_many_refs()) else {
                return Some(at);
            };
            self.get_refs(page, 1);
            page.map_small();
            if flags.contains(PageFlags::EXCLUSIVE) {
                page.clear_flags(PageFlags::EXCLUSIVE);
            }
            if raw.is_writable() {
                // A dirty mark that the hardware sets at this moment stays here, which is enough.
                entry.fetch_and_acqrel(RawPte::ALL_BUT_WRITE);
                was_writable = true;
            }
            copy.store_relaxed(raw.read_only().old().0);
            shared += 1;
            None
        });
        if was_writable {
            gather.stale(row, Stride::Page);
        }
        (stop.unwrap_or(nr) as u64, shared)
    }

    /// Gives the child a copy of the page that `source` maps at `addr`; waits instead while it is being moved.
    fn copy_pinned_page(
        &self,
        (parent, child): (&AddressSpace, &AddressSpace),
        (source, target): (Pfn, Pfn),
        addr: VirtAddr,
    ) -> Result<Copied, AllocError> {
        let index = Level::Pte.index(addr);
        // With a reference of our own for the copy: the entry's goes if the page is moved as soon as its pin ends.
        let held = match self.lock_table(source).pte(index) {
            PteEntry::Present { pfn, prot, marks } => self
                .try_get(self.pages().page(pfn))
                .map(|held| (held, pfn, prot, marks)),
            PteEntry::None | PteEntry::Migration { .. } => None,
        };
        let Some((held, pfn, prot, marks)) = held else {
            self.wait_while_moved(parent, addr);
            return Ok(Copied::Changed);
        };
        let vma = child
            .areas()
            .containing(addr)
            .unwrap_or_else(|| unreachable!("its area was copied first"));
        let copy = self.new_anon_copy(pfn, self.placement_in(vma, addr, Order::ZERO));
        self.put(held);
        let page = self.adopt_new_small(copy?, vma, addr);
        self.lock_table(target).set_pte(
            index,
            PteEntry::Present {
                pfn: page.pfn(),
                prot,
                marks: marks.old(),
            },
        );
        child.add_rss(1);
        Ok(Copied::Yes)
    }
}
