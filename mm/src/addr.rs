//! F0: frame numbers, addresses, ranges. Every unit conversion of the crate.
//!
//! | unit | type | what having one tells you |
//! |---|---|---|
//! | frame number | [`Pfn`] | below 2^32 (16 TiB); *not* that the frame exists |
//! | byte address | [`PhysAddr`], [`VirtAddr`] | valid for the architecture (52 bits, canonical) |
//! | frames | [`PfnRange`] | `start <= end` |
//! | pages of an address space | [`VirtRange`] | page aligned, `start <= end` |
//!
//! Raw integers exist only in page-table entries, at the ABI and in `/proc` formats.

use core::fmt;

pub use x86_64::{PhysAddr, VirtAddr};

use crate::order::Order;

/// log2 of the base page size.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a base page.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// Bytes in a base page, in the width of addresses.
pub const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;
/// Entries in one page table of any level, and so base pages in a PMD-mapped huge page: 512 on the hardware. Tools that
/// run code step by step get a machine with smaller tables, so that they reach the rare branches too.
pub const ENTRIES: usize = if cfg!(any(miri, loom, feature = "small")) {
    16
} else {
    512
};
/// log2 of [`ENTRIES`].
pub const ENTRIES_SHIFT: u32 = ENTRIES.trailing_zeros();
/// Base pages in a PMD-mapped huge page, in the width of counters.
pub const HPAGE_PAGES: u32 = 1 << ENTRIES_SHIFT;
/// Bytes that one PMD entry maps.
pub const PMD_SIZE: u64 = PAGE_BYTES << ENTRIES_SHIFT;
/// First address that user space may not use. One page below the canonical limit, so that no return to user space
/// can ever load a non-canonical instruction pointer.
pub const USER_END: u64 = (1 << (PAGE_SHIFT + 4 * ENTRIES_SHIFT - 1)) - PAGE_BYTES;
const _: () = assert!(ENTRIES != 512 || USER_END == 0x7fff_ffff_f000);

/// Room that stays free below an area that grows down (Linux `stack_guard_gap`).
pub const STACK_GUARD_BYTES: u64 = 256 * PAGE_BYTES;

/// Widens a count or index; lossless on the only target this crate supports.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "usize is 64 bits on x86_64")]
pub const fn to_usize(n: u64) -> usize {
    const { assert!(size_of::<usize>() == 8) }
    n as usize
}

/// A page frame number.
///
/// Having one tells you that it fits the 32 bits in which links are stored, not that the frame exists: ask the page
/// array.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Pfn(u32);

impl Pfn {
    /// Wraps a frame number.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Returns the frame that holds `addr`, or `None` past 16 TiB.
    #[must_use]
    pub fn containing(addr: PhysAddr) -> Option<Self> {
        u32::try_from(addr.as_u64() >> PAGE_SHIFT).ok().map(Self)
    }

    /// Returns the bare number.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// Returns the number as an index into per-frame columns.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Returns the address of the frame's first byte.
    #[must_use]
    pub const fn start(self) -> PhysAddr {
        PhysAddr::new((self.0 as u64) << PAGE_SHIFT)
    }

    /// Returns the frame `n` frames further up.
    ///
    /// # Panics
    /// Past 2^32 frames.
    #[must_use]
    pub const fn offset(self, n: u32) -> Self {
        match self.0.checked_add(n) {
            Some(sum) => Self(sum),
            None => panic!("frame number past 16 TiB"),
        }
    }

    /// Returns how many frames `self` lies above `base`.
    #[must_use]
    pub const fn since(self, base: Pfn) -> u32 {
        self.0 - base.0
    }

    /// Returns the first frame of the naturally aligned block of `order` around `self`.
    #[must_use]
    pub const fn align_down(self, order: Order) -> Self {
        Self(self.0 & !(order.nr_pages() - 1))
    }

    /// Returns the order of the largest block that may start here and is at most `pages` long (at least one page).
    #[must_use]
    pub fn largest_block(self, pages: u32) -> Order {
        let aligned = 1_u32.checked_shl(self.0.trailing_zeros()).unwrap_or(u32::MAX);
        Order::at_most(pages.min(aligned)).unwrap_or(Order::ZERO)
    }

    /// Whether a block of `order` may start here.
    #[must_use]
    pub const fn is_aligned(self, order: Order) -> bool {
        self.0 & (order.nr_pages() - 1) == 0
    }

    /// Returns the other half of the block of the next order that `self`'s block of `order` belongs to.
    #[must_use]
    pub const fn buddy(self, order: Order) -> Self {
        Self(self.0 ^ order.nr_pages())
    }
}

impl fmt::Debug for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfn {:#x}", self.0)
    }
}

impl fmt::Display for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A run of frames, `start` included, `end` not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PfnRange {
    start: Pfn,
    end: Pfn,
}

impl PfnRange {
    /// Returns the run, or `None` if it ends before it starts.
    #[must_use]
    pub const fn new(start: Pfn, end: Pfn) -> Option<Self> {
        if start.0 <= end.0 {
            Some(Self { start, end })
        } else {
            None
        }
    }

    /// First frame.
    #[must_use]
    pub const fn start(self) -> Pfn {
        self.start
    }

    /// First frame past the run.
    #[must_use]
    pub const fn end(self) -> Pfn {
        self.end
    }

    /// Number of frames.
    #[must_use]
    pub const fn nr_pages(self) -> u32 {
        self.end.0 - self.start.0
    }

    /// Whether `pfn` is in the run.
    #[must_use]
    pub const fn contains(self, pfn: Pfn) -> bool {
        self.start.0 <= pfn.0 && pfn.0 < self.end.0
    }

    /// Visits each frame in order.
    pub fn iter(self) -> impl Iterator<Item = Pfn> {
        (self.start.0..self.end.0).map(Pfn)
    }
}

/// Pages of one address space: page aligned, `start` included, `end` not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VirtRange {
    start: VirtAddr,
    end: VirtAddr,
}

impl VirtRange {
    /// Returns the range, or `None` unless both ends are page aligned and in order.
    #[must_use]
    pub fn new(start: VirtAddr, end: VirtAddr) -> Option<Self> {
        let aligned = start.is_aligned(PAGE_BYTES) && end.is_aligned(PAGE_BYTES);
        (aligned && start <= end).then_some(Self { start, end })
    }

    /// Returns the range of `len` bytes at `addr`, both as a program gave them: `addr` must be page aligned, `len` is
    /// rounded up to pages, the end must not pass [`USER_END`]. `None` otherwise, also when `len` is 0.
    #[must_use]
    pub fn user(addr: u64, len: u64) -> Option<Self> {
        if len == 0 || !addr.is_multiple_of(PAGE_BYTES) {
            return None;
        }
        let len = len.checked_next_multiple_of(PAGE_BYTES)?;
        let end = addr.checked_add(len).filter(|&end| end <= USER_END)?;
        Some(Self {
            start: VirtAddr::new(addr),
            end: VirtAddr::new(end),
        })
    }

    /// Returns the one page around `addr`.
    #[must_use]
    pub fn page(addr: VirtAddr) -> Self {
        let start = addr.align_down(PAGE_BYTES);
        Self {
            start,
            end: start + PAGE_BYTES,
        }
    }

    /// Returns the `nr` pages from the one around `addr` on; the caller knows that they are user space.
    #[must_use]
    pub fn of_pages(addr: VirtAddr, nr: u32) -> Self {
        let start = addr.align_down(PAGE_BYTES);
        Self {
            start,
            end: start + u64::from(nr) * PAGE_BYTES,
        }
    }

    /// Returns the naturally aligned 2 MiB around `addr`.
    ///
    /// The last one of the lower half ends where addresses stop being canonical; its end is then the first address of
    /// the upper half. It still compares above every user address, so no area covers that range.
    #[must_use]
    pub fn pmd(addr: VirtAddr) -> Self {
        let start = addr.align_down(PMD_SIZE);
        Self {
            start,
            end: VirtAddr::new_truncate(start.as_u64() + PMD_SIZE),
        }
    }

    /// First address.
    #[must_use]
    pub const fn start(self) -> VirtAddr {
        self.start
    }

    /// First address past the range.
    #[must_use]
    pub const fn end(self) -> VirtAddr {
        self.end
    }

    /// Size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.end - self.start
    }

    /// Size in base pages.
    #[must_use]
    pub fn nr_pages(self) -> u64 {
        self.bytes() >> PAGE_SHIFT
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Whether `addr` is in the range.
    #[must_use]
    pub fn contains(self, addr: VirtAddr) -> bool {
        self.start <= addr && addr < self.end
    }

    /// Whether all of `inner` is in the range.
    #[must_use]
    pub fn covers(self, inner: VirtRange) -> bool {
        self.start <= inner.start && inner.end <= self.end
    }

    /// Returns what both ranges share, or `None` if nothing.
    #[must_use]
    pub fn intersect(self, other: VirtRange) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Self { start, end })
    }
}

impl fmt::Debug for VirtRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start.as_u64(), self.end.as_u64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_range_rounds_up_and_refuses_what_passes_the_end() {
        let range = VirtRange::user(0x1000, 1).expect("one page");
        assert_eq!(range.nr_pages(), 1);
        assert_eq!(VirtRange::user(0x1001, 1), None);
        assert_eq!(VirtRange::user(0x1000, 0), None);
        assert_eq!(VirtRange::user(USER_END - 0x1000, 0x1001), None);
        assert!(VirtRange::user(USER_END - 0x1000, 0x1000).is_some());
        assert_eq!(VirtRange::user(0x1000, u64::MAX), None);
        assert_eq!(VirtRange::user(u64::MAX - 0xfff, 0x1000), None);
    }

    #[test]
    fn last_pmd_of_user_space_is_covered_by_no_area() {
        let area = VirtRange::user(USER_END - 2 * PMD_SIZE, 2 * PMD_SIZE).expect("below the end");
        let last = VirtRange::pmd(VirtAddr::new(USER_END - 1));
        assert!(!area.covers(last));
        assert_eq!(area.intersect(last).map(VirtRange::end), Some(area.end()));
    }

    #[test]
    fn buddy_of_buddy_is_self() {
        for order in Order::all() {
            let pfn = Pfn::new(0x1234_5000);
            assert_eq!(pfn.buddy(order).buddy(order), pfn);
            assert_eq!(pfn.buddy(order).since(pfn), order.nr_pages());
        }
    }
}
