//! Doubly linked lists of pages through the `next` and `prev` columns. A page is on one list at most; which one its
//! flags say. The list's owner holds the lock that guards the links of its members.

use super::{Page, PageArray};
use crate::addr::Pfn;

/// "No page" in a link.
const NONE: u32 = u32::MAX;

/// A list of pages. Does not own a reference to them.
#[derive(Debug)]
pub struct PageList {
    first: u32,
    last: u32,
    len: u32,
}

impl Default for PageList {
    fn default() -> Self {
        Self::new()
    }
}

fn page_at(array: &PageArray, link: u32) -> Option<Page<'_>> {
    (link != NONE).then(|| array.page(Pfn::new(link)))
}

impl Page<'_> {
    /// The numbers of its neighbours, behind and before it; `NONE` for none.
    pub(crate) fn links(self) -> (u32, u32) {
        let i = self.pfn().index();
        (
            self.array().next()[i].load_relaxed(),
            self.array().prev()[i].load_relaxed(),
        )
    }

    fn set_next(self, link: u32) {
        self.array().next()[self.pfn().index()].store_relaxed(link);
    }

    fn set_prev(self, link: u32) {
        self.array().prev()[self.pfn().index()].store_relaxed(link);
    }
}

impl PageList {
    /// An empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            first: NONE,
            last: NONE,
            len: 0,
        }
    }

    /// How many pages are on it.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts `page` first.
    pub(crate) fn push_front(&mut self, page: Page<'_>) {
        let link = page.pfn().raw();
        page.set_next(self.first);
        page.set_prev(NONE);
        match page_at(page.array(), self.first) {
            Some(first) => first.set_prev(link),
            None => self.last = link,
        }
        self.first = link;
        self.len += 1;
    }

    /// Puts `page` last.
    pub(crate) fn push_back(&mut self, page: Page<'_>) {
        let link = page.pfn().raw();
        page.set_next(NONE);
        page.set_prev(self.last);
        match page_at(page.array(), self.last) {
            Some(last) => last.set_next(link),
            None => self.first = link,
        }
        self.last = link;
        self.len += 1;
    }

    /// Puts the `nr` pages that follow `anchor` in memory right behind it, in order; it is on this list. `nr` is not 0.
    pub(crate) fn insert_run_after(&mut self, anchor: Page<'_>, nr: u32) {
        let (link, next) = (anchor.pfn().raw(), anchor.links().0);
        let array = anchor.array();
        let run = anchor.pfn().index()..=anchor.pfn().index() + nr as usize;
        for (word, link) in array.next()[run.clone()].iter().zip(link + 1..) {
            word.store_relaxed(link);
        }
        for (word, link) in array.prev()[run].iter().skip(1).zip(link..) {
            word.store_relaxed(link);
        }
        let last = anchor.offset(nr);
        last.set_next(next);
        match page_at(array, next) {
            Some(after) => after.set_prev(last.pfn().raw()),
            None => self.last = last.pfn().raw(),
        }
        self.len += nr;
    }

    /// Takes `page` off. It must be on this list.
    pub(crate) fn remove(&mut self, page: Page<'_>) {
        self.remove_between(page, page.links());
    }

    /// Takes `page` off that has these neighbours.
    pub(crate) fn remove_between(&mut self, page: Page<'_>, (next, prev): (u32, u32)) {
        crate::vm_assert!(self.len > 0);
        match page_at(page.array(), prev) {
            Some(before) => before.set_next(next),
            None => self.first = next,
        }
        match page_at(page.array(), next) {
            Some(after) => after.set_prev(prev),
            None => self.last = prev,
        }
        self.len -= 1;
    }

    /// The first page.
    #[must_use]
    pub fn first<'a>(&self, array: &'a PageArray) -> Option<Page<'a>> {
        page_at(array, self.first)
    }

    /// Visits the pages from first to last, at most `len` of them, so that even a damaged list ends.
    pub fn iter<'a>(&self, array: &'a PageArray) -> impl Iterator<Item = Page<'a>> {
        let mut link = self.first;
        (0..self.len).map_while(move |_| {
            let page = page_at(array, link)?;
            link = page.links().0;
            Some(page)
        })
    }
}
