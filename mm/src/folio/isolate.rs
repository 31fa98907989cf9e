//! Isolated folios: taken off the LRU so that nobody else takes them up, each with a reference that the list holds.
//!
//! ```text
//!   LRU list ──isolate──> IsolatedList ──putback (drop)──> LRU list
//!                              │
//!                              └─ pop: moved elsewhere, or freed
//! ```
//! The list is made of the page records' own links, which are free while a page is on no LRU list: isolating allocates
//! nothing, however many pages there are. `nr_isolated_anon` counts what is on such lists.
//!
//! Origin: Linux `isolate_lru_page`, `putback_movable_pages`; differs: a list that goes out of scope puts back what is
//! left on it.

use super::Folio;
use crate::{
    memory::Memory,
    page::{Page, PageList},
    platform::Platform,
};

/// Folios on their way to be moved. Puts back on the LRU what is left when it is dropped.
#[must_use = "what is on it goes back to the LRU at once"]
pub struct IsolatedList<'m, P: Platform> {
    mem: &'m Memory<P>,
    links: PageList,
}

impl<'m, P: Platform> IsolatedList<'m, P> {
    /// An empty list.
    pub const fn new(mem: &'m Memory<P>) -> Self {
        let links = PageList::new();
        Self { mem, links }
    }

    /// Takes `folio` off its LRU list and keeps it, with its reference.
    ///
    /// # Errors
    /// It is on no LRU list, because somebody else has isolated it or it is no program's memory: the folio again.
    pub fn isolate(&mut self, folio: Folio<'m>) -> Result<(), Folio<'m>> {
        if !self.mem.lru_isolate(folio.page()) {
            return Err(folio);
        }
        self.push_back(folio);
        Ok(())
    }

    /// How many folios are on it.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.links.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// The first pages of the folios on it, in order.
    pub fn iter(&self) -> impl Iterator<Item = Page<'m>> {
        self.links.iter(self.mem.pages())
    }

    /// Puts all of them back on the LRU and gives their references back.
    pub fn putback(self) {
        drop(self);
    }

    /// Moves all folios of `other` to the end of this list.
    pub(crate) fn append(&mut self, other: &mut Self) {
        while let Some(folio) = other.pop_front() {
            self.push_back(folio);
        }
    }

    /// Takes the first folio off; it stays isolated.
    pub(crate) fn pop_front(&mut self) -> Option<Folio<'m>> {
        let first = self.links.first(self.mem.pages())?;
        self.links.remove(first);
        Some(Folio::from_raw(first))
    }

    /// Puts an isolated folio at the end.
    pub(crate) fn push_back(&mut self, folio: Folio<'m>) {
        self.links.push_back(folio.into_raw());
    }
}

impl<P: Platform> Memory<P> {
    /// Gives up an isolated folio that was moved, or that nobody but the list had: it does not go back to the LRU.
    pub(crate) fn put_moved(&self, folio: Folio<'_>) {
        self.lru_discard(folio.page());
        self.put(folio);
    }
}

impl<P: Platform> Drop for IsolatedList<'_, P> {
    fn drop(&mut self) {
        while let Some(folio) = self.pop_front() {
            self.mem.lru_putback(folio.page());
            self.mem.put(folio);
        }
    }
}
