//! The LRU lists: pages that reclaim may look at, coldest last.
//!
//! A page joins at the fault that creates it and leaves when it is freed; being on a list takes no reference. The
//! `LRU` flag is set exactly while the page is linked, and changes under the node's LRU lock together with the counts.
//! Whoever wants to move a page takes it off first (see [`super::IsolatedList`]): only one can.

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
}

impl LruKind {
    /// The list that a page with these flags is on.
    fn of(flags: PageFlags) -> Self {
        if flags.contains(PageFlags::ACTIVE) {
            Self::ActiveAnon
        } else {
            Self::InactiveAnon
        }
    }

    fn counter(self) -> Counter {
        match self {
            Self::InactiveAnon => Counter::NrInactiveAnon,
            Self::ActiveAnon => Counter::NrActiveAnon,
        }
    }
}

/// The lists of one node.
#[derive(Debug, Default)]
pub struct LruLists {
    inactive_anon: PageList,
    active_anon: PageList,
}

impl LruLists {
    pub(crate) const fn new() -> Self {
        Self {
            inactive_anon: PageList::new(),
            active_anon: PageList::new(),
        }
    }

    /// One of the lists.
    #[must_use]
    pub fn list(&self, kind: LruKind) -> &PageList {
        match kind {
            LruKind::InactiveAnon => &self.inactive_anon,
            LruKind::ActiveAnon => &self.active_anon,
        }
    }

    /// Puts a page that came out of `head`'s folio behind it. The counts do not change: its pages were counted there.
    pub(crate) fn insert_behind(&mut self, head: Page<'_>, page: Page<'_>) {
        self.list_mut(LruKind::of(head.state().flags()))
            .insert_after(head, page);
    }

    fn list_mut(&mut self, kind: LruKind) -> &mut PageList {
        match kind {
            LruKind::InactiveAnon => &mut self.inactive_anon,
            LruKind::ActiveAnon => &mut self.active_anon,
        }
    }
}

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
        let before = head.clear_flags(PageFlags::LRU | PageFlags::ACTIVE);
        crate::vm_assert!(before.contains(PageFlags::LRU), "{head:?}: not on an LRU list");
        let kind = LruKind::of(before);
        lru.list_mut(kind).remove(head);
        self.add(kind.counter(), -i64::from(head.compound_order().nr_pages()));
    }

    /// Takes those of the order-0 pages that are on a list off it. They have no references left.
    pub(super) fn lru_del_small(&self, pfns: &[Pfn]) {
        let same_node = |a: &Pfn, b: &Pfn| core::ptr::eq(self.node_of(*a), self.node_of(*b));
        for neighbours in pfns.chunk_by(same_node) {
            let mut lru = self.node_of(neighbours[0]).lru().lock(self.platform());
            let mut removed = [LruKind::InactiveAnon, LruKind::ActiveAnon].map(|kind| (kind, 0));
            for page in neighbours.iter().map(|&pfn| self.pages().page(pfn)) {
                let flags = page.state().flags();
                if !flags.contains(PageFlags::LRU) {
                    continue;
                }
                let kind = LruKind::of(flags);
                lru.list_mut(kind).remove(page);
                // Nobody else writes the word of a page without references: a plain store does.
                page.set_private_state(PageState::of(flags & !(PageFlags::LRU | PageFlags::ACTIVE)));
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
        head.clear_flags(PageFlags::ACTIVE | PageFlags::UNEVICTABLE | PageFlags::MLOCKED);
        self.add(
            Counter::NrIsolatedAnon,
            -i64::from(head.compound_order().nr_pages()),
        );
    }
}
