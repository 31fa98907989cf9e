//! The LRU lists: pages that reclaim may look at, coldest last.
//!
//! A page joins at the fault that creates it and leaves when it is freed; being on a list takes no reference. The
//! `LRU` flag is set exactly while the page is linked, and changes under the node's LRU lock together with the counts.
//! Whoever wants to move a page takes it off first (see [`super::IsolatedList`]): only one can.
//!
//! A page that is locked into memory (`MLOCKED`) is on a list of its own, where reclaim does not look. Linux counts by how
//! many areas it is locked; here it is so from the first that says so to the first that does not any more: two processes
//! would have to lock a page that they share and do not write.

use crate::{
    addr::Pfn,
    counter::Counter,
    flags::PageFlags,
    memory::Memory,
    page::{Page, PageList, PageState},
    platform::Platform,
};

/// Which list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LruKind {
    /// Anonymous, not used lately; every new page begins here (Linux 5.9 and later).
    InactiveAnon,
    /// Anonymous, used.
    ActiveAnon,
    /// Locked into memory.
    Unevictable,
}

/// Number of lists.
const NR_LISTS: usize = LruKind::ALL.len();

impl LruKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::InactiveAnon, Self::ActiveAnon, Self::Unevictable];

    /// The list that a page with these flags is on.
    pub(crate) fn of(flags: PageFlags) -> Self {
        if flags.contains(PageFlags::UNEVICTABLE) {
            Self::Unevictable
        } else if flags.contains(PageFlags::ACTIVE) {
            Self::ActiveAnon
        } else {
            Self::InactiveAnon
        }
    }

    fn counter(self) -> Counter {
        match self {
            Self::InactiveAnon => Counter::NrInactiveAnon,
            Self::ActiveAnon => Counter::NrActiveAnon,
            Self::Unevictable => Counter::NrUnevictable,
        }
    }
}

/// The lists of one node, by kind.
#[derive(Debug, Default)]
pub struct LruLists([PageList; NR_LISTS]);

impl LruLists {
    pub(crate) const fn new() -> Self {
        Self([const { PageList::new() }; NR_LISTS])
    }

    /// One of the lists.
    #[must_use]
    pub fn list(&self, kind: LruKind) -> &PageList {
        &self.0[kind as usize]
    }

    /// Puts the tails of a folio that is being split behind its head. The counts do not change: its pages were counted
    /// there.
    pub(crate) fn insert_tails(&mut self, head: Page<'_>, nr: u32) {
        self.list_mut(LruKind::of(head.state().flags()))
            .insert_run_after(head, nr);
    }

    fn list_mut(&mut self, kind: LruKind) -> &mut PageList {
        &mut self.0[kind as usize]
    }
}

/// What a page loses that goes off its list for good.
const OF_A_LIST: PageFlags = PageFlags::LRU
    .union(PageFlags::ACTIVE)
    .union(PageFlags::UNEVICTABLE)
    .union(PageFlags::MLOCKED);

impl<P: Platform> Memory<P> {
    /// Puts an anonymous page that is on no list at the warm end of its list.
    pub(crate) fn lru_add(&self, head: Page<'_>) {
        let mut lru = self.node_of(head.pfn()).lru().lock(self.platform());
        let before = head.set_flags(PageFlags::LRU);
        crate::vm_assert!(
            !before.contains(PageFlags::LRU),
            "{head:?}: on an LRU list already"
        );
        let kind = LruKind::of(before);
        lru.list_mut(kind).push_front(head);
        self.add(kind.counter(), i64::from(head.compound_order().nr_pages()));
    }

    /// Takes a page off its list.
    pub(crate) fn lru_del(&self, head: Page<'_>) {
        let mut lru = self.node_of(head.pfn()).lru().lock(self.platform());
        let before = head.clear_flags(OF_A_LIST);
        crate::vm_assert!(before.contains(PageFlags::LRU), "{head:?}: not on an LRU list");
        let kind = LruKind::of(before);
        lru.list_mut(kind).remove(head);
        let pages = i64::from(head.compound_order().nr_pages());
        self.add(kind.counter(), -pages);
        self.count_cleared(before, pages);
    }

    /// Counts pages that are locked until they are freed.
    fn count_cleared(&self, flags: PageFlags, pages: i64) {
        if flags.contains(PageFlags::MLOCKED) {
            self.add(Counter::NrMlock, -pages);
            self.add(Counter::UnevictableCleared, pages);
        }
    }

    /// Locks a page into memory that somebody's locked area maps. Called with the table locked that holds the entry.
    pub(crate) fn mlock_page(&self, head: Page<'_>) {
        let (gained, lost) = (PageFlags::MLOCKED | PageFlags::UNEVICTABLE, PageFlags::ACTIVE);
        if self.change_list(head, PageFlags::empty(), (gained, lost)) {
            let pages = i64::from(head.compound_order().nr_pages());
            self.add(Counter::NrMlock, pages);
            self.add(Counter::UnevictableMlocked, pages);
        }
    }

    /// A locked area lets go of a page that it maps, or does not map it any more as it did.
    pub(crate) fn munlock_page(&self, head: Page<'_>) {
        let lost = PageFlags::MLOCKED | PageFlags::UNEVICTABLE;
        if self.change_list(head, PageFlags::MLOCKED, (PageFlags::empty(), lost)) {
            let pages = i64::from(head.compound_order().nr_pages());
            self.add(Counter::NrMlock, -pages);
            self.add(Counter::UnevictableMunlocked, pages);
        }
    }

    /// Changes the flags of a page that is `now` locked, or not, and moves it to the list that it is to be on then, if it
    /// is on one. Returns false, having done nothing, if the page is not as said.
    fn change_list(&self, head: Page<'_>, now: PageFlags, (gained, lost): (PageFlags, PageFlags)) -> bool {
        let mut lru = self.node_of(head.pfn()).lru().lock(self.platform());
        let before = head.state().flags();
        if before & PageFlags::MLOCKED != now {
            return false;
        }
        head.clear_flags(lost);
        let after = (head.set_flags(gained) | gained) & !lost;
        if before.contains(PageFlags::LRU) {
            let (from, to) = (LruKind::of(before), LruKind::of(after));
            lru.list_mut(from).remove(head);
            lru.list_mut(to).push_front(head);
            let pages = i64::from(head.compound_order().nr_pages());
            self.add(from.counter(), -pages);
            self.add(to.counter(), pages);
        }
        true
    }

    /// Takes those of the order-0 pages that are on a list off it. They have no references left.
    pub(super) fn lru_del_small(&self, pfns: &[Pfn]) {
        let same_node = |a: &Pfn, b: &Pfn| core::ptr::eq(self.node_of(*a), self.node_of(*b));
        for neighbours in pfns.chunk_by(same_node) {
            let mut lru = self.node_of(neighbours[0]).lru().lock(self.platform());
            let mut removed = LruKind::ALL.map(|kind| (kind, 0));
            for page in neighbours.iter().map(|&pfn| self.pages().page(pfn)) {
                let flags = page.state().flags();
                if !flags.contains(PageFlags::LRU) {
                    continue;
                }
                let kind = LruKind::of(flags);
                lru.list_mut(kind).remove(page);
                // Nobody else writes the word of a page without references: a plain store does.
                page.set_private_state(PageState::of(flags & !OF_A_LIST));
                self.count_cleared(flags, 1);
                removed[kind as usize].1 += 1;
            }
            for (kind, nr) in removed.into_iter().filter(|(_, nr)| *nr > 0) {
                self.add(kind.counter(), -nr);
            }
        }
    }

    /// Takes a page that somebody holds a reference to off its list, to be put back by [`Memory::lru_putback`]; whether
    /// it is active stays noted in its flags. Returns false if it is on no list: somebody else has isolated it.
    pub(super) fn lru_isolate(&self, head: Page<'_>) -> bool {
        let mut lru = self.node_of(head.pfn()).lru().lock(self.platform());
        let before = head.clear_flags(PageFlags::LRU);
        if !before.contains(PageFlags::LRU) {
            return false;
        }
        let kind = LruKind::of(before);
        lru.list_mut(kind).remove(head);
        let pages = i64::from(head.compound_order().nr_pages());
        self.add(kind.counter(), -pages);
        self.add(Counter::NrIsolatedAnon, pages);
        true
    }

    /// Puts an isolated page back on a list.
    pub(super) fn lru_putback(&self, head: Page<'_>) {
        self.lru_add(head);
        self.add(
            Counter::NrIsolatedAnon,
            -i64::from(head.compound_order().nr_pages()),
        );
    }

    /// An isolated page will not come back to a list: it is about to be freed.
    pub(super) fn lru_discard(&self, head: Page<'_>) {
        let before = head.clear_flags(OF_A_LIST);
        let pages = i64::from(head.compound_order().nr_pages());
        self.count_cleared(before, pages);
        self.add(Counter::NrIsolatedAnon, -pages);
    }
}
