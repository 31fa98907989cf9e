//! Huge pages by hand: splitting them because somebody says so, giving back what is kept for later.
//!
//! Used by the files in [`vfs::knob`](crate::vfs::knob) and by the monitor. Nothing here waits for a page that somebody
//! else has locked.

use core::ops::ControlFlow;

use mm::{
    AddressSpace, HPAGE_PAGES, PAGE_BYTES, PMD_ORDER, PageFlags, Pfn, Platform, USER_END, VirtAddr,
    VirtRange,
    report::{Mapped, mapped_at},
    split_folio::SplitError,
};

use crate::platform::mm;

/// What was given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dropped {
    /// Folios of the deferred queue that were looked at.
    pub scanned: u32,
    /// Of those, how many were split.
    pub split: u32,
    /// Pages of the huge zero page.
    pub zero_pages: u32,
}

/// Tries to split each folio that waits on the deferred queue, once, and gives the huge zero page back unless somebody
/// maps it.
pub fn drop_reclaimable() -> Dropped {
    let progress = mm().split_deferred(u32::MAX);
    Dropped {
        scanned: progress.scanned,
        split: progress.split,
        zero_pages: mm().shrink_huge_zero_page(),
    }
}

/// How many huge pages were found, and how many of them were split.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SplitCount {
    /// Huge pages found.
    pub tried: u64,
    /// Huge pages split.
    pub split: u64,
}

impl SplitCount {
    fn add(&mut self, result: Result<(), Refusal>) {
        match result {
            Err(Refusal::NotHuge | Refusal::Gone) => {}
            Err(Refusal::Locked | Refusal::Split(_)) => self.tried += 1,
            Ok(()) => {
                self.tried += 1;
                self.split += 1;
            }
        }
    }
}

/// Why a huge page was not split.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The frame is no part of a huge page.
    NotHuge,
    /// The page is free, or being freed.
    Gone,
    /// Somebody has it locked.
    Locked,
    /// See there.
    Split(SplitError),
}

/// Splits the huge page that the frame is part of into base pages.
///
/// # Errors
/// See [`Refusal`]; the page is as it was, but may be mapped by PTEs where it was mapped by PMDs.
pub fn split_frame(pfn: Pfn) -> Result<(), Refusal> {
    let page = mm().pages().get(pfn).ok_or(Refusal::Gone)?;
    if page.head().compound_order() != PMD_ORDER {
        return Err(Refusal::NotHuge);
    }
    let folio = mm().try_get(page.head()).ok_or(Refusal::Gone)?;
    // Only now is it sure to stay what it is.
    if folio.page().compound_order() != PMD_ORDER {
        mm().put(folio);
        return Err(Refusal::NotHuge);
    }
    let Some(locked) = mm().try_lock_folio(&folio) else {
        mm().put(folio);
        return Err(Refusal::Locked);
    };
    let (result, folio, locked) = match mm().split_folio(folio, locked, 0) {
        Ok((folio, locked)) => (Ok(()), folio, locked),
        Err((error, folio, locked)) => (Err(Refusal::Split(error)), folio, locked),
    };
    drop(locked);
    mm().put(folio);
    result
}

/// Tries to split every huge page on an LRU list.
pub fn split_all() -> SplitCount {
    let mut count = SplitCount::default();
    let mut pfn = 0;
    while pfn < mm().platform().frames() {
        let page = mm().pages().page(Pfn::new(pfn));
        let is_head = page.has(PageFlags::HEAD) && page.compound_order() == PMD_ORDER;
        if is_head && page.has(PageFlags::LRU) {
            count.add(split_frame(Pfn::new(pfn)));
            pfn += HPAGE_PAGES;
        } else {
            pfn += 1;
        }
    }
    count
}

/// Tries to split every huge page that `space` maps between `start` and `end`, page by page, up to the first address
/// without an area. Those that somebody holds are passed by.
pub fn split_range(space: &AddressSpace, start: u64, end: u64) -> SplitCount {
    let mut count = SplitCount::default();
    let (start, end) = (start & !(PAGE_BYTES - 1), (end & !(PAGE_BYTES - 1)).min(USER_END));
    let Some(range) = VirtRange::user(start, end.saturating_sub(start)).filter(|range| !range.is_empty())
    else {
        return count;
    };
    let mut areas_end = start;
    // The areas first: looking a page up takes the mmap lock that this walk holds.
    let _ = mm().for_each_vma(space, &mut |vma| {
        if vma.range.end().as_u64() <= areas_end {
            return ControlFlow::Continue(());
        }
        if vma.range.start().as_u64() > areas_end {
            return ControlFlow::Break(());
        }
        areas_end = vma.range.end().as_u64();
        ControlFlow::Continue(())
    });
    let mut addr = range.start();
    while addr.as_u64() < end.min(areas_end) {
        let mut next = addr + PAGE_BYTES;
        if let Some(Mapped { pfn, span }) = mapped_at(mm(), space, addr)
            && mm().pages().page(pfn).head().compound_order() == PMD_ORDER
        {
            let result = split_unless_held(pfn);
            if result.is_ok() {
                // What the entry spanned are base pages now.
                next = span.end();
            }
            count.add(result);
        }
        addr = next;
    }
    count
}

/// The precheck of Linux: what is pinned is not even tried, so that no failure is counted.
fn split_unless_held(pfn: Pfn) -> Result<(), Refusal> {
    let page = mm().pages().page(pfn);
    let folio = mm().try_get(page.head()).ok_or(Refusal::Gone)?;
    let hindrance = mm().split_hindrance(folio.page());
    mm().put(folio);
    match hindrance {
        Some(error) => Err(Refusal::Split(error)),
        None => split_frame(pfn),
    }
}

/// The frame that is mapped at `addr`, if one is.
#[must_use]
pub fn mapped_frame(space: &AddressSpace, addr: VirtAddr) -> Option<Pfn> {
    mapped_at(mm(), space, addr).map(|mapped| mapped.pfn)
}
