//! Frees many base pages at once: what `munmap` and the end of a process give back.
//!
//! A page costs its own record and no more: the LRU lock is taken once for neighbours in the list, the anon_vma they
//! belong to is told once how many are gone, counters change once, and the magazine is opened once.
//!
//! Locks: none held on entry that come after the LRU's.

use super::FLAGS_OF_A_LIFE;
use crate::{addr::Pfn, memory::Memory, order::Order, page::PageState, platform::Platform};

impl<P: Platform> Memory<P> {
    /// Frees order-0 pages whose reference counts have just reached zero. The order of `pfns` changes.
    pub(crate) fn free_small_pages(&self, pfns: &mut [Pfn]) {
        if pfns.is_empty() {
            return;
        }
        self.lru_del_small(pfns);
        let own_mapping = |pfn: &Pfn| self.pages().page(*pfn).own_mapping();
        for relatives in pfns.chunk_by(|a, b| own_mapping(a) == own_mapping(b)) {
            if let Some(anon_vma) = self.anon_vma_of(self.pages().page(relatives[0])) {
                self.put_anon_vma_users(anon_vma, u32::try_from(relatives.len()).unwrap_or(u32::MAX));
            }
        }
        for &pfn in pfns.iter() {
            let page = self.pages().page(pfn);
            page.clear_mapping();
            // No reference is left, so nobody else writes the word: a plain store does.
            page.set_private_state(PageState::of(page.state().flags() & !FLAGS_OF_A_LIFE));
        }
        self.free_blocks(pfns, Order::ZERO);
    }
}
