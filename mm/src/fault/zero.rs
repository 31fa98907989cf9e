//! The zero pages: what reading memory that was never written finds.
//!
//! | page | made | given back | mapped |
//! |---|---|---|---|
//! | 4 KiB | with the page records | never | by PTE, without reference, mapcount or rss |
//! | 2 MiB | by the first read fault of a whole span | when nobody maps it and memory is short | by PMD, one reference each, without mapcount or rss |
//!
//! The machine's own reference keeps the huge one between uses. A mapping's reference goes through the gather like any
//! other page's, so that it is not reused before the TLB flush (C12).

use crate::{
    addr::HPAGE_PAGES,
    counter::Counter,
    error::AllocError,
    flags::{AllocFlags, PageFlags},
    folio::Folio,
    memory::Memory,
    order::PMD_ORDER,
    platform::Platform,
};

impl<P: Platform> Memory<P> {
    /// Takes a reference to the 2 MiB zero page, making it if need be.
    pub(super) fn get_huge_zero_page(&self) -> Result<Folio<'_>, AllocError> {
        if let Some(folio) = self
            .zero_pages()
            .huge()
            .and_then(|pfn| self.try_get(self.pages().page(pfn)))
        {
            return Ok(folio);
        }
        let fresh = self
            .alloc_folio(PMD_ORDER, AllocFlags::OPPORTUNISTIC)
            .inspect_err(|_| {
                self.add(Counter::ThpZeroPageAllocFailed, 1);
            })?;
        (0..HPAGE_PAGES).for_each(|i| self.clear_frame(fresh.pfn().offset(i)));
        fresh.page().set_flags(PageFlags::ZERO | PageFlags::UPTODATE);
        self.add(Counter::ThpZeroPageAlloc, 1);
        match self.zero_pages().offer_huge(fresh.pfn()) {
            Ok(()) => {
                // One reference for the caller, one for the machine.
                self.get_refs(fresh.page(), 1);
                Ok(fresh)
            }
            Err(other) => {
                fresh.page().clear_flags(PageFlags::ZERO);
                self.put(fresh);
                self.try_get(self.pages().page(other))
                    .ok_or(AllocError { order: PMD_ORDER })
            }
        }
    }

    /// Gives the 2 MiB zero page back if nobody maps it; returns the pages that are free now.
    pub fn shrink_huge_zero_page(&self) -> u32 {
        let Some(pfn) = self.zero_pages().huge() else {
            return 0;
        };
        let head = self.pages().page(pfn);
        // The machine's reference is the last one: nobody can take another meanwhile, because it is frozen.
        if !head.ref_freeze(1) {
            return 0;
        }
        self.zero_pages().forget_huge();
        head.clear_flags(PageFlags::ZERO);
        head.ref_init();
        self.put_refs(head, 1);
        HPAGE_PAGES
    }
}
