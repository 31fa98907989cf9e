//! F6: keeps mapcounts, and the totals that follow from them, equal to the page tables.
//!
//! Whoever sets or clears an entry calls the matching function here while holding that entry's page-table lock. These
//! change the folio's mapcounts under its mapcount lock and, in the same breath:
//!
//! | counter | counts |
//! |---|---|
//! | `nr_anon_pages` | distinct base pages that some entry maps (I7) |
//! | `nr_anon_transparent_hugepages` | huge pages that some PMD maps |
//!
//! Removal is where a huge page is found to be partly unmapped; it is put on the deferred split queue then, once, and
//! not when one batch unmaps all of it (Linux queues it on the first PTE of a full unmap up to 6.1).
//!
//! Locks: page-table lock held; takes the folio's mapcount lock, inside it the deferred queue's.
//!
//! Origin: Linux 53f9263baba6 (v4.5), 9a982250f773 (deferred split); differs as said in [`crate::page::mapcount`].

pub(crate) mod walk;

pub use walk::{MappedBy, Mapping};

use crate::{
    counter::Counter,
    flags::{PageFlags, VmaFlags},
    memory::Memory,
    order::Order,
    page::{
        Page,
        mapcount::{Backend, Mapcount, Unmapped},
    },
    platform::Platform,
    sabotage::sabotage,
    slab::Handle,
    vma::Vma,
};

/// A run of neighbouring subpages of one folio: what one batch of PTEs maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run<'a> {
    /// The folio.
    pub(crate) head: Page<'a>,
    /// First subpage.
    pub(crate) first: u32,
    /// Number of subpages.
    pub(crate) nr: u32,
}

impl<'a> Run<'a> {
    /// A run of one page.
    pub(crate) fn of(page: Page<'a>) -> Self {
        let head = page.head();
        Self {
            head,
            first: page.pfn().since(head.pfn()),
            nr: 1,
        }
    }

    /// The run with the next `more` subpages.
    pub(crate) fn grown_by(self, more: u32) -> Self {
        Self {
            nr: self.nr + more,
            ..self
        }
    }

    /// Subpages of the folio from the first of the run on.
    pub(crate) fn room(&self) -> u32 {
        self.head.compound_order().nr_pages() - self.first
    }
}

impl PartialEq for Page<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.pfn() == other.pfn()
    }
}

impl Eq for Page<'_> {}

impl<P: Platform> Memory<P> {
    /// Makes `head` anonymous memory of `vma` at `addr`; its `mapping` and index are what rmap walks find it by. The
    /// page is still private to the caller; `vma` has an anon_vma.
    pub(crate) fn make_anon(&self, head: Page<'_>, vma: Handle<Vma>, addr: crate::addr::VirtAddr) {
        let anon_vma = vma
            .anon_vma()
            .expect("invariant: the fault has prepared the anon_vma");
        anon_vma.get(1);
        head.set_anon(anon_vma.to_bits(self.platform()), vma.linear_index(addr));
    }

    /// The first PMD mapping of a new huge page.
    pub(crate) fn rmap_new_huge(&self, head: Page<'_>) {
        let folio = head.lock_mapcount(self.platform());
        Mapcount::map_new_pmd(&folio);
        self.add(Counter::NrAnonThps, 1);
        self.add(Counter::NrAnonPages, i64::from(crate::addr::HPAGE_PAGES));
    }

    /// The first PTE mapping of a new base page.
    pub(crate) fn rmap_new_small(&self, page: Page<'_>) {
        let first = page.map_small();
        crate::vm_assert!(first, "{page:?}: new page is mapped already");
        self.add(Counter::NrAnonPages, 1);
    }

    /// PTEs stopped mapping `run`. Its references are still the caller's to give back.
    pub(crate) fn rmap_remove_ptes(&self, run: Run<'_>) {
        if run.head.compound_order() == Order::ZERO {
            if run.head.unmap_small() {
                self.add(Counter::NrAnonPages, -1);
            }
            return;
        }
        let folio = run.head.lock_mapcount(self.platform());
        let gone = Mapcount::unmap_ptes(&folio, run.first, run.nr);
        self.account_unmapped(run.head, gone);
    }

    /// An entry of `vma` maps a page for itself, a base page by a PTE or a huge page by a PMD: an area that is locked into
    /// memory locks it. The entry's table is locked.
    pub(crate) fn mlock_mapped(&self, head: Page<'_>, vma: Handle<Vma>) {
        if vma.flags().contains(VmaFlags::LOCKED) {
            self.mlock_page(head);
        }
    }

    /// The opposite of [`Self::mlock_mapped`].
    pub(crate) fn munlock_unmapped(&self, head: Page<'_>, vma: Handle<Vma>) {
        if vma.flags().contains(VmaFlags::LOCKED) && head.has(PageFlags::MLOCKED) {
            self.munlock_page(head);
        }
    }

    /// A PMD stopped mapping the huge page at `head`.
    pub(crate) fn rmap_remove_pmd(&self, head: Page<'_>) {
        let folio = head.lock_mapcount(self.platform());
        let gone = Mapcount::unmap_pmd(&folio);
        self.account_unmapped(head, gone);
    }

    /// A PMD mapping became PTEs. What belonged to one process alone as a whole does so page by page.
    pub(crate) fn rmap_split_pmd(&self, head: Page<'_>) {
        #[cfg(feature = "sabotage")]
        if sabotage!(self, LateBias) && Mapcount::split_pmd_unbiased(&head.lock_mapcount(self.platform())) {
            return Mapcount::add_bias(&head.lock_mapcount(self.platform()));
        }
        let folio = head.lock_mapcount(self.platform());
        if head.has(PageFlags::EXCLUSIVE) {
            folio.mark_tails_exclusive();
        }
        if Mapcount::split_pmd(&folio) {
            self.add(Counter::NrAnonThps, -1);
        }
    }

    /// `fork` maps a huge page by one PMD more: from now on nobody may write without asking.
    pub(crate) fn rmap_dup_pmd(&self, head: Page<'_>) {
        let folio = head.lock_mapcount(self.platform());
        if !sabotage!(self, ExclusiveAfterFork) {
            folio.share_whole();
        }
        let fresh = Mapcount::map_pmd(&folio);
        crate::vm_assert!(fresh == 0, "{head:?}: what is copied was mapped before");
    }

    /// `fork` maps a run of pages by PTEs once more.
    pub(crate) fn rmap_dup_ptes(&self, run: Run<'_>) {
        if run.head.compound_order() == Order::ZERO {
            run.head.clear_flags(PageFlags::EXCLUSIVE);
            run.head.map_small();
            return;
        }
        let folio = run.head.lock_mapcount(self.platform());
        folio.clear_exclusive(run.first, run.nr);
        let lost = u32::from(sabotage!(self, LostMapcount));
        Mapcount::map_ptes(&folio, run.first, run.nr - lost);
    }

    /// Migration entries became PTEs again that map `run` of a large folio; `exclusive`: the pages were this process's
    /// alone and are so still. Returns how many of them no entry mapped; the caller counts them.
    pub(crate) fn rmap_restore_ptes(&self, run: Run<'_>, exclusive: bool) -> u32 {
        let folio = run.head.lock_mapcount(self.platform());
        if exclusive {
            folio.set_exclusive(run.first, run.nr);
        }
        Mapcount::map_ptes(&folio, run.first, run.nr)
    }

    /// The same for a base page; returns whether no entry mapped it.
    pub(crate) fn rmap_restore_small(&self, page: Page<'_>, exclusive: bool) -> bool {
        match (exclusive, page.has(PageFlags::EXCLUSIVE)) {
            (true, false) => drop(page.set_flags(PageFlags::EXCLUSIVE)),
            (false, true) => drop(page.clear_flags(PageFlags::EXCLUSIVE)),
            _ => {}
        }
        page.remap_small()
    }

    /// A migration entry became a PMD again that maps the huge page at `head`; as for PTEs.
    pub(crate) fn rmap_restore_pmd(&self, head: Page<'_>, exclusive: bool) -> u32 {
        let folio = head.lock_mapcount(self.platform());
        if exclusive {
            head.set_flags(PageFlags::EXCLUSIVE);
        }
        if folio.counts().entire == 0 {
            self.add(Counter::NrAnonThps, 1);
        }
        let fresh = Mapcount::map_pmd(&folio);
        self.add(Counter::NrAnonPages, i64::from(fresh));
        fresh
    }

    /// PTEs that map `run` became migration entries, which remember whether the pages were exclusive. The folio is
    /// about to be split or moved, so a part of it that nothing maps is no case for the deferred queue.
    pub(crate) fn rmap_remove_ptes_for_migration(&self, run: Run<'_>) {
        if run.head.compound_order() == Order::ZERO {
            run.head.clear_flags(PageFlags::EXCLUSIVE);
            return self.rmap_remove_ptes(run);
        }
        let folio = run.head.lock_mapcount(self.platform());
        folio.clear_exclusive(run.first, run.nr);
        let gone = Mapcount::unmap_ptes(&folio, run.first, run.nr);
        self.add(Counter::NrAnonPages, -i64::from(gone.pages));
    }

    /// A PMD that maps the huge page at `head` became a migration entry; as for PTEs.
    pub(crate) fn rmap_remove_pmd_for_migration(&self, head: Page<'_>) {
        let folio = head.lock_mapcount(self.platform());
        head.clear_flags(PageFlags::EXCLUSIVE);
        let gone = Mapcount::unmap_pmd(&folio);
        if gone.last_pmd {
            self.add(Counter::NrAnonThps, -1);
        }
        self.add(Counter::NrAnonPages, -i64::from(gone.pages));
    }

    /// Called under the mapcount lock.
    fn account_unmapped(&self, head: Page<'_>, gone: Unmapped) {
        if gone.last_pmd {
            self.add(Counter::NrAnonThps, -1);
        }
        if gone.pages > 0 {
            self.add(Counter::NrAnonPages, -i64::from(gone.pages));
        }
        if gone.partially {
            self.queue_deferred_split(head);
        }
    }
}
