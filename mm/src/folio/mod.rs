//! F3: operations on a whole unit of memory: an order-0 page or a compound page.
//!
//! | handle | what having one tells you | ends by |
//! |---|---|---|
//! | [`Folio`] | it is a head or order-0 page, and one of its references is yours | [`Memory::put`], or becoming an entry's |
//! | [`FolioLocked`] | its lock bit is yours | drop |
//!
//! Where the type says "folio" no tail can stand: what Linux found out with `VM_BUG_ON_PAGE(PageTail(page))` does not
//! compile here.
//!
//! Freeing: whoever gives the last reference takes the page off the LRU list and, if it is a transparent huge page,
//! off the deferred split queue, before the allocator sees it (invariant I8).

mod batch;
mod deferred;
mod isolate;
mod lock;
mod lru;

pub use deferred::DeferredQueue;
pub use isolate::IsolatedList;
pub use lock::FolioLocked;
pub use lru::{LruKind, LruLists};

use crate::{
    addr::Pfn,
    error::AllocError,
    flags::{AllocFlags, PageFlags},
    memory::Memory,
    order::{Order, PMD_ORDER},
    page::{Destructor, Page, PageState},
    platform::Platform,
    policy::Placement,
    trace::Event,
};

/// A head or order-0 page with one reference that is the holder's.
///
/// Not `Copy`; to drop one without [`Memory::put`] is a defect that builds with debug assertions report.
#[must_use = "a folio is a reference that must be put"]
pub struct Folio<'a> {
    page: Page<'a>,
}

impl<'a> Folio<'a> {
    /// Takes over a reference that the caller owns.
    pub(crate) fn from_raw(page: Page<'a>) -> Self {
        crate::vm_assert!(
            page.state().head_link().is_none(),
            "{page:?}: a folio is never a tail"
        );
        Self { page }
    }

    /// Gives the reference to somebody who keeps it in another form: a page-table entry, a list.
    pub(crate) fn into_raw(self) -> Page<'a> {
        let page = self.page;
        core::mem::forget(self);
        page
    }

    /// Gives the reference to somebody who remembers only the frame number of `page`, which is part of this folio: a
    /// pipe buffer, a DMA engine. [`Memory::put_leaked`] gives it back.
    ///
    /// # Panics
    /// If `page` is not part of this folio.
    #[must_use = "the reference is lost without the number"]
    pub fn leak(self, page: Page<'_>) -> Pfn {
        assert!(
            page.head().pfn() == self.pfn(),
            "{page:?} is not part of {self:?}"
        );
        let _ = self.into_raw();
        page.pfn()
    }

    /// Its first page.
    #[must_use]
    pub fn page(&self) -> Page<'a> {
        self.page
    }

    /// The frame number of its first page.
    #[must_use]
    pub fn pfn(&self) -> Pfn {
        self.page.pfn()
    }

    /// Its size.
    #[must_use]
    pub fn order(&self) -> Order {
        self.page.compound_order()
    }

    /// Whether it is as the allocator made it: no flag, no identity, no mapping. What was to become the target of a
    /// migration, and did not, must be (Linux 8bdd63809160). What those may do who try any frame there is does not
    /// count: take a reference for a moment, and the lock.
    #[must_use]
    pub fn is_pristine(&self) -> bool {
        let (page, order) = (self.page, self.order());
        let lock = u64::from((PageFlags::LOCKED | PageFlags::WAITERS).bits());
        let fresh = match order {
            Order::ZERO => PageState::CLEAR,
            _ => PageState::new_head(order, page.state().destructor()),
        };
        let unused = page.state().raw() & !lock == fresh.raw() && !page.is_mapped();
        unused && page.own_mapping() == 0 && page.index() == 0
    }
}

impl core::fmt::Debug for Folio<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "folio {:?}", self.page)
    }
}

impl Drop for Folio<'_> {
    fn drop(&mut self) {
        crate::assert::vm_assert_on_drop!(false, "{:?}: reference dropped without put", self.page);
    }
}

impl<P: Platform> Memory<P> {
    /// Allocates an order-0 page or, above that, a compound page, with one reference.
    ///
    /// # Errors
    /// As [`Memory::alloc_pages`].
    pub fn alloc_folio(&self, order: Order, flags: AllocFlags) -> Result<Folio<'_>, AllocError> {
        self.alloc_folio_from(Placement::near(self.local_node()), order, flags)
    }

    /// [`Memory::alloc_folio`], from the nodes that `placement` allows.
    ///
    /// # Errors
    /// As [`Memory::alloc_pages_from`].
    pub fn alloc_folio_from(
        &self,
        placement: Placement,
        order: Order,
        flags: AllocFlags,
    ) -> Result<Folio<'_>, AllocError> {
        let pfn = self.alloc_pages_from(placement, order, flags)?;
        let page = self.pages().page(pfn);
        if order > Order::ZERO {
            let destructor = if order == PMD_ORDER {
                Destructor::TransHuge
            } else {
                Destructor::Compound
            };
            page.prepare_compound(order, destructor);
        }
        Ok(Folio::from_raw(page))
    }

    /// Allocates one frame for the kernel's own use; the one reference is the caller's.
    pub(crate) fn take_frame(&self, flags: AllocFlags) -> Result<Pfn, AllocError> {
        self.alloc_pages(Order::ZERO, flags)
    }

    /// Takes a reference to the folio that `page` is part of (S10: one atomic, whether `page` is a tail or not).
    ///
    /// Returns `None` if there is none to share: the folio is free, frozen, or was split under us.
    #[must_use]
    pub fn try_get<'a>(&'a self, page: Page<'a>) -> Option<Folio<'a>> {
        let head = page.head();
        if !head.ref_get_unless_zero() {
            return None;
        }
        let folio = Folio::from_raw(head);
        // The head may have been split between the look and the count; then this reference protects the wrong page.
        if page.head().pfn() != head.pfn() {
            self.put(folio);
            return None;
        }
        self.trace_ref(head, 1);
        Some(folio)
    }

    /// Gives a reference back; the last one frees the folio, a compound page as one block.
    pub fn put(&self, folio: Folio<'_>) {
        self.put_refs(folio.into_raw(), 1);
    }

    /// Gives back a reference that was [leaked](Folio::leak).
    ///
    /// # Safety
    /// One reference to the folio that `pfn` is part of must have been leaked and not been given back.
    pub unsafe fn put_leaked(&self, pfn: Pfn) {
        self.put_refs(self.pages().page(pfn).head(), 1);
    }

    /// Gives back `nr` references that page-table entries held.
    pub(crate) fn put_refs(&self, head: Page<'_>, nr: u32) {
        if self.drop_refs(head, nr) {
            self.free_folio(head);
        }
    }

    /// Gives back `nr` references; returns whether they were the last: the folio is then the caller's to free.
    #[must_use]
    pub(crate) fn drop_refs(&self, head: Page<'_>, nr: u32) -> bool {
        self.trace_ref(head, -i64::from(nr));
        head.ref_sub_and_test(nr)
    }

    /// Adds `nr` references on behalf of page-table entries; the caller has one already.
    pub(crate) fn get_refs(&self, head: Page<'_>, nr: u32) {
        head.ref_add(nr);
        self.trace_ref(head, i64::from(nr));
    }

    /// Whether a page is the zero page, or part of the huge one.
    pub(crate) fn is_zero_page(&self, page: Page<'_>) -> bool {
        page.pfn() == self.zero_pages().small() || page.head().has(PageFlags::ZERO)
    }

    /// Tells of a change by `val`: of one upwards after it, of one downwards before, as the page may be somebody else's
    /// then. The event holds the count after it either way.
    pub(crate) fn trace_ref(&self, head: Page<'_>, val: i64) {
        if P::TRACE {
            let val = i32::try_from(val).unwrap_or(i32::MAX);
            self.platform().trace(Event::RefMod {
                pfn: head.pfn(),
                val,
                count: head.refs_hint().wrapping_add_signed(val.min(0)),
            });
        }
    }

    /// Frees a folio whose count just reached zero.
    pub(crate) fn free_folio(&self, head: Page<'_>) {
        let state = head.state();
        if !state.flags().contains(PageFlags::HEAD) {
            return self.free_small_pages(&mut [head.pfn()]);
        }
        if state.flags().contains(PageFlags::LRU) {
            self.lru_del(head);
        }
        if state.destructor() == Destructor::TransHuge {
            self.unqueue_deferred_split(head);
        }
        if let Some(anon_vma) = self.anon_vma_of(head) {
            self.put_anon_vma(anon_vma);
        }
        head.clear_mapping();
        head.clear_flags(FLAGS_OF_A_LIFE);
        match head.destroy_compound() {
            Ok(order) => self.free_block(head.pfn(), order),
            Err(reason) => self.report_bad_page(head.pfn(), reason),
        }
    }
}

/// Flags that a page picks up while it is used and that say nothing wrong when they are still set at free.
const FLAGS_OF_A_LIFE: PageFlags = PageFlags::from_bits_retain(
    PageFlags::UPTODATE.bits()
        | PageFlags::DIRTY.bits()
        | PageFlags::REFERENCED.bits()
        | PageFlags::SWAPBACKED.bits()
        | PageFlags::EXCLUSIVE.bits()
        | PageFlags::ERROR.bits()
        | PageFlags::RECLAIM.bits()
        | PageFlags::WAITERS.bits(),
);
