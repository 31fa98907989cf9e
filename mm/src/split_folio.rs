//! F7: makes 512 base pages of one huge page. May fail, and then the page is as it was.
//!
//! ```text
//!   folio, mapped             every entry says          references frozen:        512 pages, each with one
//!   by PMDs and PTEs    ──>   "being moved"       ──>   1 -> 0, nobody     ──>    reference and its lock held,
//!                             counts are all 0          gets in                   entries lead to them again
//!        │  more references than        │  somebody got one
//!        │  entries: Pinned             │  meanwhile: put all entries back, Pinned
//! ```
//! A reference that is no entry's is a pin: somebody uses the frames by their numbers and would see the page change under
//! him. It is looked for twice: cheaply before anything is touched, and for good by the freeze, a compare-exchange from
//! exactly one reference, the caller's, to none.
//!
//! Order is everything while the pages come apart: a tail's flags, mapping and index are written before its state word
//! says that it is no tail any more, and that before it has a reference to take.
//!
//! Locks: the caller holds the folio lock and one reference; both end up on the subpage that he names. Takes the
//! anon_vma's lock for writing (no other walk of these mappings meanwhile), inside it page tables one at a time, then the
//! deferred queue's and the LRU lock.
//!
//! Nothing is allocated.
//!
//! Origin: Linux e9b61f19858a (v4.5) thp: reintroduce split_huge_page(); the freeze is of 4.10; A3, S5. Differs: an entry
//! that is replaced for the split never puts the page on the deferred queue.

use crate::{
    addr::{HPAGE_PAGES, VirtRange},
    anon_vma::AnonVma,
    counter::Counter,
    flags::{PageFlags, Prot, VmaFlags},
    folio::{Folio, FolioLocked},
    memory::Memory,
    order::PMD_ORDER,
    page::{Page, PageState},
    pgtable::{
        MigrationKind, PmdEntry, PteEntry, RawPte,
        cursor::{Level, pmd_chunks},
    },
    platform::{Platform, Stride},
    rmap::{
        Run,
        walk::{Place, pages},
    },
    slab::Handle,
};

/// Why a folio was not split. It is as it was, but may be mapped by PTEs where it was mapped by PMDs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SplitError {
    /// It is no huge page (any more). Nothing to do.
    NotHuge,
    /// Somebody holds references besides the page tables and the caller. Try again when they are gone (`EAGAIN`).
    Pinned {
        /// References that entries and the caller account for.
        expected: u32,
        /// References found.
        found: u32,
    },
    /// Nothing maps it, or it is the zero page: there is nobody to split it for (`EBUSY`).
    Busy,
}

/// How a split ended: reference and lock of the page that was asked for, or of the whole as before.
pub type Split<'m, P> = Result<(Folio<'m>, FolioLocked<'m, P>), (SplitError, Folio<'m>, FolioLocked<'m, P>)>;

/// What a new base page keeps of the huge page's flags.
const KEPT: PageFlags = PageFlags::REFERENCED
    .union(PageFlags::SWAPBACKED)
    .union(PageFlags::MLOCKED)
    .union(PageFlags::UPTODATE)
    .union(PageFlags::ACTIVE)
    .union(PageFlags::UNEVICTABLE)
    .union(PageFlags::DIRTY)
    .union(PageFlags::LRU);

impl<P: Platform> Memory<P> {
    /// Splits the huge page that `folio` is into base pages. On success the caller's reference and lock are those of
    /// the page that was its `subpage`; all others are unlocked, and those that nothing maps are free.
    ///
    /// # Errors
    /// See [`SplitError`]; reference and lock are still those of the whole.
    pub fn split_folio<'m>(
        &'m self,
        folio: Folio<'m>,
        locked: FolioLocked<'m, P>,
        subpage: u32,
    ) -> Split<'m, P> {
        let head = folio.page();
        match self.try_split(head) {
            Ok(()) => {
                self.add(Counter::ThpSplitPage, 1);
                let kept = head.offset(subpage % HPAGE_PAGES);
                // Every page is locked and has a reference of the split's now; all but one are given back.
                locked.forget();
                core::mem::forget(folio);
                for page in (0..HPAGE_PAGES)
                    .map(|i| head.offset(i))
                    .filter(|&page| page != kept)
                {
                    drop(self.adopt_lock(page));
                    self.put_refs(page, 1);
                }
                Ok((Folio::from_raw(kept), self.adopt_lock(kept)))
            }
            Err(error) => {
                if error != SplitError::NotHuge {
                    self.add(Counter::ThpSplitPageFailed, 1);
                }
                Err((error, folio, locked))
            }
        }
    }

    /// The references that a huge page has beyond those of its entries and one caller; `None` if it is none. For
    /// reports and for the cheap look before a split: exact only while nobody changes anything.
    #[must_use]
    pub fn split_hindrance(&self, page: Page<'_>) -> Option<SplitError> {
        let head = page.head();
        if head.compound_order() != PMD_ORDER {
            return Some(SplitError::NotHuge);
        }
        let total = head.map_counts().total;
        if self.is_zero_page(head) || !head.is_anon() || total == 0 {
            return Some(SplitError::Busy);
        }
        let (expected, found) = (total + 1, head.refs_hint());
        (expected != found).then_some(SplitError::Pinned { expected, found })
    }

    fn try_split(&self, head: Page<'_>) -> Result<(), SplitError> {
        if let Some(error) = self.split_hindrance(head) {
            return Err(error);
        }
        let anon_vma = self.anon_vma_of(head).ok_or(SplitError::Busy)?;
        let key = self.migration_key(head);
        let result = {
            let _walk = anon_vma.lock().write(self.platform());
            let index = head.index();
            self.for_each_place(&anon_vma, index, HPAGE_PAGES, &mut |place| {
                self.unmap_for_split(head, place)
            });
            let result = self.freeze_and_tear(head, anon_vma);
            self.for_each_place(&anon_vma, index, HPAGE_PAGES, &mut |place| {
                self.remap_after_split(head, place)
            });
            result
        };
        // Whoever found a page being moved looks again.
        self.platform().wake(key);
        result
    }

    /// Replaces every entry in `place` that maps part of the folio by one that says it is being moved.
    fn unmap_for_split(&self, head: Page<'_>, place: Place) {
        let space = place.vma.space();
        for chunk in pmd_chunks(place.range) {
            let Some(slot) = self.pmd_slot(space.tables(), chunk.start()) else {
                continue;
            };
            if let PmdEntry::Huge { pfn, .. } = self.table(slot.table).pmd(slot.index)
                && pfn == head.pfn()
            {
                self.split_pmd_slot(&space, slot);
            }
            // A walker that must not miss a mapping takes the table's lock even if the entries look empty: whoever
            // has just cleared one may not have changed the counts yet (C5).
            let pmds = self.lock_table(slot.table);
            let PmdEntry::Table(table) = pmds.pmd(slot.index) else {
                continue;
            };
            drop(pmds);
            self.unmap_ptes_for_split(head, &space, table, chunk);
        }
    }

    fn unmap_ptes_for_split(
        &self,
        head: Page<'_>,
        space: &crate::address_space::AddressSpace,
        table: crate::addr::Pfn,
        chunk: VirtRange,
    ) {
        let ptes = self.lock_table(table);
        let mut batch: Option<Run<'_>> = None;
        let mut removed = 0;
        let remove = |run: Option<Run<'_>>| {
            if let Some(run) = run {
                self.rmap_remove_ptes_for_migration(run);
            }
        };
        for addr in pages(chunk) {
            let slot = Level::Pte.index(addr);
            let PteEntry::Present { pfn, .. } = ptes.pte(slot) else {
                continue;
            };
            let page = self.pages().page(pfn);
            if page.head() != head {
                continue;
            }
            let PteEntry::Present { prot, marks, .. } = RawPte(ptes.swap(slot, hidden(page))).decode() else {
                continue;
            };
            let kind = match (prot.contains(Prot::WRITE), page.has(PageFlags::EXCLUSIVE)) {
                (true, _) => MigrationKind::Write,
                (false, true) => MigrationKind::ReadExclusive,
                (false, false) => MigrationKind::Read,
            };
            if marks.dirty && !head.has(PageFlags::DIRTY) {
                head.set_flags(PageFlags::DIRTY);
            }
            ptes.set_pte(slot, PteEntry::Migration { pfn, kind, marks });
            removed += 1;
            batch = Some(match batch.take() {
                Some(run) if run.is_followed_by(page) => run.grown(),
                full => {
                    remove(full);
                    Run::of(page)
                }
            });
        }
        remove(batch);
        if removed > 0 {
            self.platform().flush_tlb(space.cpus(), chunk, Stride::Page);
            // The entries' references; the caller's own keeps the folio.
            let last = head.ref_sub_and_test(removed);
            crate::vm_assert!(
                !last,
                "{head:?}: a folio that is being split lost its last reference"
            );
        }
    }

    /// Freezes the folio and makes base pages of it.
    fn freeze_and_tear(&self, head: Page<'_>, anon_vma: Handle<AnonVma>) -> Result<(), SplitError> {
        let node = self.node_of(head.pfn());
        let mut queue = node.deferred().lock(self.platform());
        if !head.ref_freeze(1) {
            let found = head.refs_hint();
            return Err(SplitError::Pinned { expected: 1, found });
        }
        queue.forget(head);
        drop(queue);
        anon_vma.get(HPAGE_PAGES - 1);
        let (mapping, index) = (head.own_mapping(), head.index());
        let flags = head.state().flags();
        head.offset(1).set_index(0);
        let mut lru = node.lru().lock(self.platform());
        let kept = (flags & KEPT) | PageFlags::LOCKED;
        for i in (1..HPAGE_PAGES).rev() {
            let tail = head.offset(i);
            tail.set_identity(mapping, index + u64::from(i));
            if flags.contains(PageFlags::LRU) {
                lru.insert_behind(head, tail);
            }
            tail.set_private_state(PageState::of(kept));
            tail.ref_thaw(1);
        }
        // Somebody may be asking to be woken at this moment: keep that, drop what made it a compound page.
        head.retain_flags(KEPT | PageFlags::LOCKED | PageFlags::WAITERS);
        head.ref_thaw(1);
        Ok(())
    }

    /// Makes every entry in `place` that says a part of the folio is being moved lead to that part again, be it a base
    /// page by now or not.
    fn remap_after_split(&self, head: Page<'_>, place: Place) {
        let space = place.vma.space();
        for chunk in pmd_chunks(place.range) {
            let Some(slot) = self.pmd_slot(space.tables(), chunk.start()) else {
                continue;
            };
            let PmdEntry::Table(table) = self.table(slot.table).pmd(slot.index) else {
                continue;
            };
            let ptes = self.lock_table(table);
            for addr in pages(chunk) {
                let slot = Level::Pte.index(addr);
                let PteEntry::Migration { pfn, kind, marks } = ptes.pte(slot) else {
                    continue;
                };
                if pfn < head.pfn() || pfn.since(head.pfn()) >= HPAGE_PAGES {
                    continue;
                }
                let page = self.pages().page(pfn);
                self.get_refs(page.head(), 1);
                self.rmap_restore(page, kind != MigrationKind::Read);
                // The area may have lost its right to write meanwhile (S17): what the entry remembers is not enough.
                let may_write = kind == MigrationKind::Write && place.vma.flags().contains(VmaFlags::WRITE);
                let prot = place.vma.prot();
                let prot = if may_write { prot } else { prot & !Prot::WRITE };
                ptes.set_pte(slot, PteEntry::Present { pfn, prot, marks });
            }
        }
    }
}

/// What stands in the entry while its marks are collected: the hardware must not see it.
fn hidden(page: Page<'_>) -> u64 {
    let (kind, marks) = (MigrationKind::Read, crate::pgtable::entry::Marks::default());
    PteEntry::Migration {
        pfn: page.pfn(),
        kind,
        marks,
    }
    .encode()
    .0
}
