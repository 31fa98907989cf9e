//! F7: makes 512 base pages of one huge page. May fail, and then the page is as it was.
//!
//! ```text
//!   folio, mapped             every entry says          references frozen:        512 pages, each frozen;
//!   by PMDs and PTEs    ──>   "being moved"       ──>   1 -> 0, nobody     ──>    thawed when an entry leads to it
//!                             counts are all 0          gets in                   again; the others are free
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
    addr::HPAGE_PAGES,
    anon_vma::AnonVma,
    counter::Counter,
    flags::PageFlags,
    folio::{Folio, FolioLocked, IsolatedList},
    memory::Memory,
    migration_entry::{Move, Parts, WholePmd},
    order::PMD_ORDER,
    page::{Page, PageState},
    platform::Platform,
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
pub type Split<'m, P> = Result<(Folio<'m>, FolioLocked<'m, P>), NotSplit<'m, P>>;

/// Why not, and the folio's reference and lock.
pub type NotSplit<'m, P> = (SplitError, Folio<'m>, FolioLocked<'m, P>);

/// What a new base page keeps of the huge page's flags.
const KEPT: PageFlags = PageFlags::REFERENCED
    .union(PageFlags::SWAPBACKED)
    .union(PageFlags::MLOCKED)
    .union(PageFlags::UPTODATE)
    .union(PageFlags::ACTIVE)
    .union(PageFlags::UNEVICTABLE)
    .union(PageFlags::DIRTY)
    .union(PageFlags::LRU);

/// What the caller of a split gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Keep {
    /// This subpage, locked, with a reference.
    One(u32),
    /// Every part, unlocked, with a reference to each.
    All,
}

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
        let subpage = if crate::sabotage::sabotage!(self, ReferenceOnHead) {
            0
        } else {
            subpage % HPAGE_PAGES
        };
        let (head, locked) = self.split_locked(folio, locked, Keep::One(subpage))?;
        if subpage == 0 {
            return Ok((Folio::from_raw(head), locked));
        }
        drop(locked);
        self.put_refs(head, 1);
        let kept = head.offset(subpage);
        Ok((Folio::from_raw(kept), self.adopt_lock(kept)))
    }

    /// Splits an isolated huge page into base pages that go on `list`, unlocked and isolated, those that nothing maps
    /// too.
    ///
    /// # Errors
    /// As [`Memory::split_folio`]; the page is still isolated.
    pub(crate) fn split_isolated<'m>(
        &'m self,
        folio: Folio<'m>,
        locked: FolioLocked<'m, P>,
        list: &mut IsolatedList<'m, P>,
    ) -> Result<(), NotSplit<'m, P>> {
        let (head, locked) = self.split_locked(folio, locked, Keep::All)?;
        drop(locked);
        for page in (0..HPAGE_PAGES).map(|i| head.offset(i)) {
            list.push_back(Folio::from_raw(page));
        }
        Ok(())
    }

    /// Splits; the first page, which is returned, keeps reference and lock, whatever else is kept.
    fn split_locked<'m>(
        &'m self,
        folio: Folio<'m>,
        locked: FolioLocked<'m, P>,
        keep: Keep,
    ) -> Result<(Page<'m>, FolioLocked<'m, P>), NotSplit<'m, P>> {
        match self.try_split(folio.page(), keep) {
            Ok(()) => {
                self.add(Counter::ThpSplitPage, 1);
                Ok((folio.into_raw(), locked))
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

    fn try_split(&self, head: Page<'_>, keep: Keep) -> Result<(), SplitError> {
        if let Some(error) = self.split_hindrance(head) {
            return Err(error);
        }
        let anon_vma = self.anon_vma_of(head).ok_or(SplitError::Busy)?;
        let key = self.migration_key(head);
        let exclusive = head.state().flags() & PageFlags::EXCLUSIVE;
        let result = {
            let _walk = anon_vma.lock().write(self.platform());
            let index = head.index();
            self.for_each_place(&anon_vma, index, HPAGE_PAGES, &mut |place| {
                self.install_migration_entries(head, place, WholePmd::Split);
            });
            let result = self.freeze_and_tear(head, anon_vma, exclusive, keep);
            // Nothing moved, but what the entries named may be base pages by now.
            let moved = match &result {
                Ok(parts) => Move::split(head, parts),
                Err(_) => Move::new(head.pfn(), HPAGE_PAGES, head),
            };
            self.for_each_place(&anon_vma, index, HPAGE_PAGES, &mut |place| {
                self.remove_migration_entries(moved, place);
            });
            result.map(|parts| self.settle(head, &parts))
        };
        // Whoever found a page being moved looks again.
        self.platform().wake(key);
        result
    }

    /// Freezes the folio and makes base pages of it. All but the first and the one that is kept stay frozen until an
    /// entry leads to them; and unlocked, for who gets a reference to one then finds it whole.
    fn freeze_and_tear(
        &self,
        head: Page<'_>,
        anon_vma: Handle<AnonVma>,
        exclusive: PageFlags,
        keep: Keep,
    ) -> Result<Parts, SplitError> {
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
        if flags.contains(PageFlags::LRU) {
            lru.insert_tails(head, HPAGE_PAGES - 1);
        }
        let state = (flags & KEPT) | exclusive;
        head.release_tails(mapping, index, PageState::of(state));
        let parts = Parts::new(u32::from(keep == Keep::All));
        if let Keep::One(kept) = keep
            && kept != 0
        {
            let kept_page = head.offset(kept);
            kept_page.set_private_state(PageState::of(state | PageFlags::LOCKED));
            kept_page.ref_thaw(1);
            parts.thawed(kept);
        }
        // Somebody may be asking to be woken at this moment: keep that, drop what made it a compound page.
        head.retain_flags(KEPT | PageFlags::LOCKED | PageFlags::WAITERS);
        head.ref_thaw(1);
        Ok(parts)
    }

    /// Gives back what the split still holds of the parts: those that nothing maps are free then.
    fn settle(&self, head: Page<'_>, parts: &Parts) {
        for i in parts.unsettled() {
            let page = head.offset(i);
            let left = parts.settle(i, page);
            if left > 0 {
                self.put_refs(page, left);
            }
        }
    }
}
