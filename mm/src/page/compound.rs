//! Compound pages: a run of pages with one identity.
//!
//! ```text
//!   head            tail 1                  tail 2              tail i
//!   HEAD|order      TAIL|head               TAIL|head           TAIL|head
//!   refs = all      refs = 0                refs = 0            refs = 0
//!   maps[0]         maps[1]                 maps[2]             maps[i]      PTE mappings of each subpage
//!   mapping, index  index: compound maps,   next/prev: deferred
//!   next/prev: LRU         all PTE maps     split queue
//!                   next: pins
//! ```
//! A tail's `mapping` stays 0: whoever asks a tail is led to the head, and a value there at free time means that
//! somebody wrote to the wrong record.

use super::{Page, PageState};
use crate::{addr::HPAGE_PAGES, flags::PageFlags, order::Order};

/// How a compound page is taken apart when its last reference is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Destructor {
    /// Nothing but the compound page itself.
    Compound = 0,
    /// A transparent huge page: also leaves the deferred split queue (Linux 9a982250f773).
    TransHuge = 1,
}

/// What a tail may still say of itself when its compound page is freed.
const MARKS_OF_A_TAIL: u64 = PageFlags::EXCLUSIVE.union(PageFlags::TAILS_EXCLUSIVE).bits() as u64;

impl Page<'_> {
    /// Makes the `order` block that starts here, which the caller owns alone (he has its one reference), one compound
    /// page.
    ///
    /// Cost: one store per page, 64 cache lines for 2 MiB.
    pub(crate) fn prepare_compound(self, order: Order, destructor: Destructor) {
        crate::vm_assert!(order > Order::ZERO && self.pfn.is_aligned(order));
        let tail = PageState::new_tail(self.pfn).raw();
        let first = self.pfn.index() + 1;
        for word in &self.array.state()[first..first - 1 + order.nr_pages() as usize] {
            word.store_relaxed(tail);
        }
        if order >= Order::MIN_WITH_QUEUE {
            // No pins: the word was a list link in its last life.
            self.array.next()[first].store_relaxed(0);
        }
        self.set_private_state(PageState::new_head(order, destructor));
    }

    /// Makes the compound page that starts here single pages again; returns its order, or what makes the record
    /// untrustworthy. The caller holds no reference and nobody else does.
    pub(crate) fn destroy_compound(self) -> Result<Order, BadPage> {
        let order = self.compound_order();
        if self.state().flags().intersects(PageFlags::CHECKED_AT_FREE) {
            return Err(BadPage::Flags);
        }
        if order >= Order::MIN_WITH_QUEUE && self.offset(1).index_word().load_relaxed() != 0 {
            return Err(BadPage::StillMapped);
        }
        let tails = self.pfn.index() + 1..self.pfn.index() + order.nr_pages() as usize;
        // To look at each tail costs more than all the rest of a free: for builds with debug assertions, as in Linux
        // since 6.4.
        if cfg!(debug_assertions) {
            tails.clone().try_for_each(|tail| self.check_tail(tail))?;
        }
        for word in &self.array.state()[tails] {
            word.store_relaxed(PageState::CLEAR.raw());
        }
        self.set_private_state(PageState::CLEAR);
        Ok(order)
    }

    /// Makes the tails of the huge page that starts here, which is frozen, pages of their own: of the object `mapping`, as
    /// an own mapping word, with linear indices that follow `index`, and in state `state`. What a tail is comes first: who
    /// finds a page that is no tail finds it whole.
    pub(crate) fn release_tails(self, mapping: u64, index: u64, state: PageState) {
        let tails = self.pfn.index() + 1..self.pfn.index() + HPAGE_PAGES as usize;
        for (word, index) in self.array.index()[tails.clone()].iter().zip(index + 1..) {
            word.store_relaxed(index);
        }
        for word in &self.array.mapping()[tails.clone()] {
            word.store_relaxed(mapping);
        }
        for word in &self.array.state()[tails] {
            word.store_release(state.raw());
        }
    }

    /// Checks the record of a tail, by its frame number, of the compound page that starts here and is about to be free.
    fn check_tail(self, tail: usize) -> Result<(), BadPage> {
        let expected = PageState::new_tail(self.pfn).raw();
        if self.array.state()[tail].load_relaxed() & !MARKS_OF_A_TAIL != expected {
            return Err(BadPage::TailState);
        }
        let counts = [&self.array.maps()[tail], &self.array.refs()[tail]];
        if counts.iter().any(|count| count.load_relaxed() != 0) {
            return Err(BadPage::StillMapped);
        }
        if self.array.mapping()[tail].load_relaxed() != 0 {
            return Err(BadPage::TailMapping);
        }
        Ok(())
    }
}

impl Order {
    /// Smallest compound page with a second tail, where the deferred queue's links lie.
    pub(crate) const MIN_WITH_QUEUE: Order = match Order::new(2) {
        Some(order) => order,
        None => unreachable!(),
    };
}

/// Why a page record cannot be trusted. The page is reported and never used again: a leak is better than two owners.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadPage {
    /// A flag is set that must not be at free.
    Flags,
    /// Some page table still maps it, or its mapcount went wrong.
    StillMapped,
    /// References are left.
    Referenced,
    /// A tail does not say that it belongs to this head.
    TailState,
    /// A tail's mapping was written.
    TailMapping,
}

impl core::fmt::Display for BadPage {
    /// In Linux's words (`bad_page`).
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Flags => "PAGE_FLAGS_CHECK_AT_FREE flag(s) set",
            Self::StillMapped => "nonzero mapcount",
            Self::Referenced => "nonzero _refcount",
            Self::TailState => "compound_head not consistent",
            Self::TailMapping => "corrupted mapping in tail page",
        })
    }
}
