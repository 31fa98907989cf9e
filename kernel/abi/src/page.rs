//! Bits of `/proc/kpageflags` (`KPF_*`) and `/proc/PID/pagemap` (`PM_*`), as Linux 6.1 numbers them.
//!
//! A bit number here is ABI: `page-types` stops at a bit without a name, so nothing else may ever be set.

/// Bit numbers of one `/proc/kpageflags` word.
pub mod kpf {
    /// The page's lock bit is taken.
    pub const LOCKED: u32 = 0;
    /// An I/O error happened.
    pub const ERROR: u32 = 1;
    /// Referenced since the last scan.
    pub const REFERENCED: u32 = 2;
    /// Contents are valid.
    pub const UPTODATE: u32 = 3;
    /// Contents differ from the backing store.
    pub const DIRTY: u32 = 4;
    /// On an LRU list.
    pub const LRU: u32 = 5;
    /// On an active LRU list.
    pub const ACTIVE: u32 = 6;
    /// Holds slab objects.
    pub const SLAB: u32 = 7;
    /// Being written to its backing store.
    pub const WRITEBACK: u32 = 8;
    /// To be reclaimed as soon as written.
    pub const RECLAIM: u32 = 9;
    /// Inside a free block of the buddy allocator.
    pub const BUDDY: u32 = 10;
    /// Mapped by some page table (of a compound page: any part).
    pub const MMAP: u32 = 11;
    /// Anonymous.
    pub const ANON: u32 = 12;
    /// In the swap cache.
    pub const SWAPCACHE: u32 = 13;
    /// Backed by swap or memory only.
    pub const SWAPBACKED: u32 = 14;
    /// Head of a compound page.
    pub const COMPOUND_HEAD: u32 = 15;
    /// Tail of a compound page.
    pub const COMPOUND_TAIL: u32 = 16;
    /// hugetlbfs page.
    pub const HUGE: u32 = 17;
    /// On the unevictable list.
    pub const UNEVICTABLE: u32 = 18;
    /// Hardware found it broken.
    pub const HWPOISON: u32 = 19;
    /// No page record exists for this frame number.
    pub const NOPAGE: u32 = 20;
    /// Merged by KSM.
    pub const KSM: u32 = 21;
    /// Part of a transparent huge page.
    pub const THP: u32 = 22;
    /// Logically offline.
    pub const OFFLINE: u32 = 23;
    /// The zero page, small or huge.
    pub const ZERO_PAGE: u32 = 24;
    /// Not accessed since marked idle.
    pub const IDLE: u32 = 25;
    /// Used as a page table.
    pub const PGTABLE: u32 = 26;
    /// Reserved: not the allocator's to give.
    pub const RESERVED: u32 = 32;
    /// Locked into memory by `mlock`.
    pub const MLOCKED: u32 = 33;
    /// In 6.1 the exclusive marker of an anonymous page.
    pub const MAPPEDTODISK: u32 = 34;
    /// Filesystem private data.
    pub const PRIVATE: u32 = 35;
    /// On the first tail of a compound page: the DoubleMap flag (a documented debugging aid of ours).
    pub const PRIVATE_2: u32 = 36;
    /// Owner's own use.
    pub const OWNER_PRIVATE: u32 = 37;
    /// Architecture's own use.
    pub const ARCH: u32 = 38;
    /// Mapped uncached.
    pub const UNCACHED: u32 = 39;
    /// Soft-dirty.
    pub const SOFTDIRTY: u32 = 40;
    /// Architecture's own use, second bit.
    pub const ARCH_2: u32 = 41;
}

/// Bit numbers of one `/proc/PID/pagemap` word.
pub mod pm {
    /// Width of the frame number that starts at bit 0.
    pub const PFN_BITS: u32 = 55;
    /// Written since soft-dirty was last cleared.
    pub const SOFT_DIRTY: u32 = 55;
    /// Mapped exactly once.
    pub const MMAP_EXCLUSIVE: u32 = 56;
    /// Write-protected through userfaultfd.
    pub const UFFD_WP: u32 = 57;
    /// File page or shared anonymous page.
    pub const FILE: u32 = 61;
    /// In swap, or a migration entry.
    pub const SWAP: u32 = 62;
    /// Present.
    pub const PRESENT: u32 = 63;
}
