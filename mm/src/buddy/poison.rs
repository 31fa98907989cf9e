//! Free pages are filled with a pattern, so that a write through a stale pointer or translation is found when the page
//! is handed out again. Only in builds with debug assertions.
//!
//! The record's index word says whether a free page holds the pattern: pages that have never been allocated do not.

use crate::{
    addr::{PAGE_SIZE, Pfn},
    memory::Memory,
    order::Order,
    page::Page,
    platform::Platform,
};

const PATTERN: u64 = 0xaaaa_5555_dead_f4ee;
const POISONED: u64 = 1;
/// Miri runs byte by byte: there a sample of the page has to do.
const WORDS: usize = if cfg!(miri) { 8 } else { PAGE_SIZE / 8 };

impl<P: Platform> Memory<P> {
    pub(super) fn poison(&self, pfn: Pfn, order: Order) {
        if !cfg!(debug_assertions) {
            return;
        }
        for i in 0..order.nr_pages() {
            self.free_words(pfn.offset(i)).fill(PATTERN);
            self.pages().page(pfn.offset(i)).set_index(POISONED);
        }
    }

    pub(super) fn poison_check(&self, pfn: Pfn, order: Order) {
        if !cfg!(debug_assertions) {
            return;
        }
        for i in 0..order.nr_pages() {
            let page = self.pages().page(pfn.offset(i));
            if page.index() == POISONED {
                let intact = self.free_words(page.pfn()).iter().all(|&word| word == PATTERN);
                assert!(intact, "{page:?}: written to while it was free");
            }
            page.set_index(0);
        }
    }

    /// Whether nobody wrote to a free page since it was filled with the pattern. Also true where it never was.
    pub(crate) fn poison_is_intact(&self, page: Page<'_>) -> bool {
        !cfg!(debug_assertions)
            || page.index() != POISONED
            || self.free_words(page.pfn()).iter().all(|&word| word == PATTERN)
    }

    #[expect(
        clippy::mut_from_ref,
        reason = "the bytes of a free frame are nobody's; see the safety note"
    )]
    fn free_words(&self, pfn: Pfn) -> &mut [u64] {
        let start = self.platform().frame_ptr(pfn).cast::<u64>();
        // SAFETY: the frame is neither on a list nor handed out at this moment, so this call is alone with its bytes;
        // callers do not keep the slice.
        unsafe { core::slice::from_raw_parts_mut(start, WORDS) }
    }
}
