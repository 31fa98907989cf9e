//! `/proc/kpageflags` and `/proc/kpagecount`: one word per frame, as Linux 6.1 computes it.
//!
//! Origin: Linux `stable_page_flags` as of v6.1. A tail shows its own flag word, not its head's. Whether PMDs and PTEs
//! map a folio at once was to be seen on the first tail in 4.5 (bit 36) and is hidden in 6.1: it is hidden here too, but
//! for the console ([`kpageflags_with_double_map`]).

use crate::{addr::Pfn, flags::PageFlags, memory::Memory, order::Order, page::Page, platform::Platform};

/// Linux 6.1 exports its exclusive mark where it exports "mapped to disk".
const EXCLUSIVE: u64 = 1 << 34;
const MMAP: u64 = 1 << 11;
const ANON: u64 = 1 << 12;
const BUDDY: u64 = 1 << 10;
const SLAB: u64 = 1 << 7;
const NOPAGE: u64 = 1 << 20;
const THP: u64 = 1 << 22;
const ZERO_PAGE: u64 = 1 << 24;

/// Flags that stand elsewhere in our word than where they are exported.
const MOVED: [(PageFlags, u32); 2] = [(PageFlags::RESERVED, 32), (PageFlags::MLOCKED, 33)];
/// Bit of the DoubleMap flag, where it is shown: Linux 4.5 kept it in the first tail's PRIVATE_2.
const DOUBLE_MAP: u64 = 1 << 36;

/// Returns the flags of a frame as `/proc/kpageflags` shows them. Any number is accepted.
#[must_use]
pub fn kpageflags<P: Platform>(mem: &Memory<P>, pfn: Pfn) -> u64 {
    let Some(page) = mem.pages().get(pfn) else {
        return NOPAGE;
    };
    let flags = page.state().flags();
    if flags.contains(PageFlags::NOPAGE) {
        return NOPAGE;
    }
    let mut word = u64::from((flags & PageFlags::EXPORTED).bits());
    for (flag, bit) in MOVED {
        word |= u64::from(flags.contains(flag)) << bit;
    }
    if page.is_exclusive() {
        word |= EXCLUSIVE;
    }
    if flags.contains(PageFlags::SWAPCACHE | PageFlags::SWAPBACKED) {
        word |= u64::from(PageFlags::SWAPCACHE.bits());
    }
    if mem.is_zero_page(page) {
        word |= ZERO_PAGE;
    }
    if word == 0 && inside_free_block(page) {
        return BUDDY;
    }
    if word & SLAB == 0 && page.is_mapped() {
        word |= MMAP;
    }
    if page.is_anon() {
        word |= ANON;
    }
    if is_thp(page, flags) {
        word |= THP;
    }
    word
}

/// The same, and bit 36 on the first tail of a folio that PMDs and PTEs map at once: for the console, to look at the
/// mapcount scheme from outside.
#[must_use]
pub fn kpageflags_with_double_map<P: Platform>(mem: &Memory<P>, pfn: Pfn) -> u64 {
    let is_first_tail = |page: Page<'_>| page.has(PageFlags::TAIL | PageFlags::DOUBLE_MAP);
    let is_marked = mem.pages().get(pfn).is_some_and(is_first_tail);
    kpageflags(mem, pfn) | if is_marked { DOUBLE_MAP } else { 0 }
}

/// Returns how many page-table entries map a frame, as `/proc/kpagecount` shows it. Any number is accepted.
#[must_use]
pub fn kpagecount<P: Platform>(mem: &Memory<P>, pfn: Pfn) -> u64 {
    let Some(page) = mem.pages().get(pfn) else {
        return 0;
    };
    let flags = page.state().flags();
    if flags.intersects(PageFlags::NOPAGE | PageFlags::SLAB | PageFlags::PGTABLE | PageFlags::BUDDY) {
        return 0;
    }
    u64::from(page.mapcount())
}

fn is_thp(page: Page<'_>, flags: PageFlags) -> bool {
    if !flags.intersects(PageFlags::HEAD | PageFlags::TAIL) {
        return false;
    }
    let head = page.head();
    head.has(PageFlags::LRU) || head.is_anon() || head.has(PageFlags::ZERO)
}

/// Whether some free block starts at or below the page and reaches over it.
fn inside_free_block(page: Page<'_>) -> bool {
    Order::all().any(|order| {
        let first = page.array().get(page.pfn().align_down(order));
        first
            .and_then(|first| first.state().buddy_order())
            .is_some_and(|free| free >= order)
    })
}
