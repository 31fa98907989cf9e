//! F0: flag sets. Where Linux exports a flag's number, ours is the same number.

use bitflags::bitflags;

bitflags! {
    /// The low half of a page's state word.
    ///
    /// Bits 0 to 26 that `/proc/kpageflags` exports stand at the number it exports them with, so that a report is a
    /// mask and not a table. The numbers it computes (MMAP, ANON, THP, IDLE, HUGE, KSM) are free here and hold locks
    /// and marks of our own; [`PageFlags::EXPORTED`] keeps those from leaking out.
    ///
    /// | flag | set by | cleared by | lock |
    /// |---|---|---|---|
    /// | `LOCKED` | folio lock | unlock | itself |
    /// | `UPTODATE`, `SWAPBACKED` | the fault, before the page is mapped | free | none needed: page still private |
    /// | `DIRTY` | a dirty entry moved to the page | free | atomic |
    /// | `LRU` | LRU add | LRU delete | LRU lock |
    /// | `HEAD`, `TAIL` | compound prepare | compound destroy | page private |
    /// | `BUDDY` | free | allocate | zone lock |
    /// | `SLAB`, `PGTABLE`, `RESERVED` | owner, after allocation | owner, before free | page private |
    /// | `EXCLUSIVE` | anonymous fault | sharing | page-table lock |
    /// | `TAILS_EXCLUSIVE` (first tail) | PMD split of an exclusive page | sharing, free | mapcount lock |
    /// | `DOUBLE_MAP` (first tail) | PMD split that leaves other PMD mappings | last PMD unmap | mapcount lock |
    /// | `QUEUED` (head) | deferred queue | queue removal | queue lock |
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct PageFlags: u32 {
        /// The folio lock is held.
        const LOCKED = 1 << 0;
        /// An I/O error happened.
        const ERROR = 1 << 1;
        /// Referenced since the last scan.
        const REFERENCED = 1 << 2;
        /// The contents are valid.
        const UPTODATE = 1 << 3;
        /// The contents differ from the backing store.
        const DIRTY = 1 << 4;
        /// On an LRU list.
        const LRU = 1 << 5;
        /// On an active LRU list.
        const ACTIVE = 1 << 6;
        /// Holds slab objects.
        const SLAB = 1 << 7;
        /// Being written back.
        const WRITEBACK = 1 << 8;
        /// To be reclaimed soon.
        const RECLAIM = 1 << 9;
        /// First page of a free block; the high half of the word is its order.
        const BUDDY = 1 << 10;
        /// The mapcount lock of a large folio is held (head only).
        const MAPCOUNT_LOCK = 1 << 11;
        /// The page-table lock of a table page is held.
        const PT_LOCK = 1 << 12;
        /// In the swap cache.
        const SWAPCACHE = 1 << 13;
        /// Backed by memory or swap only.
        const SWAPBACKED = 1 << 14;
        /// First page of a compound page; the high half is order and destructor.
        const HEAD = 1 << 15;
        /// Other page of a compound page; the high half is the head's number.
        const TAIL = 1 << 16;
        /// On the unevictable list.
        const UNEVICTABLE = 1 << 18;
        /// Hardware found it broken, or its record was found corrupt: never handed out again.
        const HWPOISON = 1 << 19;
        /// No memory here: a hole between memory banks. A record exists because the array is one piece.
        const NOPAGE = 1 << 20;
        /// First tail: every tail is [`PageFlags::EXCLUSIVE`], whatever it says itself.
        const TAILS_EXCLUSIVE = 1 << 21;
        /// On the deferred split queue (head only).
        const QUEUED = 1 << 22;
        /// Logically offline.
        const OFFLINE = 1 << 23;
        /// The zero page.
        const ZERO = 1 << 24;
        /// Holds a page table.
        const PGTABLE = 1 << 26;
        /// Not the allocator's to give: firmware, kernel image, page records.
        const RESERVED = 1 << 27;
        /// Locked into memory.
        const MLOCKED = 1 << 28;
        /// Anonymous and mapped by one process only; it may write without asking. Exported as bit 34 (Linux 6.1).
        const EXCLUSIVE = 1 << 29;
        /// First tail: every subpage's mapcount holds one for all PMD mappings together.
        const DOUBLE_MAP = 1 << 30;
        /// Somebody sleeps for the folio lock.
        const WAITERS = 1 << 31;

        /// The bits that `/proc/kpageflags` shows as they are.
        const EXPORTED = Self::LOCKED.bits() | Self::ERROR.bits() | Self::REFERENCED.bits() | Self::UPTODATE.bits()
            | Self::DIRTY.bits() | Self::LRU.bits() | Self::ACTIVE.bits() | Self::SLAB.bits()
            | Self::WRITEBACK.bits() | Self::RECLAIM.bits() | Self::BUDDY.bits() | Self::SWAPBACKED.bits()
            | Self::HEAD.bits() | Self::TAIL.bits() | Self::UNEVICTABLE.bits() | Self::HWPOISON.bits()
            | Self::NOPAGE.bits() | Self::OFFLINE.bits() | Self::ZERO.bits() | Self::PGTABLE.bits();

        /// What must not be set on a page that is given back (invariant I11).
        const CHECKED_AT_FREE = Self::LOCKED.bits() | Self::LRU.bits() | Self::ACTIVE.bits() | Self::SLAB.bits()
            | Self::WRITEBACK.bits() | Self::SWAPCACHE.bits() | Self::UNEVICTABLE.bits() | Self::MLOCKED.bits()
            | Self::BUDDY.bits() | Self::PGTABLE.bits() | Self::RESERVED.bits() | Self::QUEUED.bits()
            | Self::MAPCOUNT_LOCK.bits() | Self::PT_LOCK.bits() | Self::NOPAGE.bits() | Self::HWPOISON.bits();
    }
}

bitflags! {
    /// What a program may do with an area: `PROT_READ`, `PROT_WRITE`, `PROT_EXEC`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Prot: u8 {
        /// May be read.
        const READ = 1;
        /// May be written.
        const WRITE = 2;
        /// May be executed.
        const EXEC = 4;
    }
}

impl Prot {
    /// These rights without writing. Reading stays where there was any right: hardware cannot grant writing without
    /// it, so memory that may be written is readable, also while a page of it is shared (Linux's `PAGE_COPY`).
    #[must_use]
    pub const fn write_protected(self) -> Self {
        if self.is_empty() {
            return self;
        }
        self.difference(Self::WRITE).union(Self::READ)
    }
}

bitflags! {
    /// Properties of a VMA, with the bit numbers of Linux's `VM_*`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct VmaFlags: u32 {
        /// May be read.
        const READ = 0x1;
        /// May be written.
        const WRITE = 0x2;
        /// May be executed.
        const EXEC = 0x4;
        /// Changes are seen by others.
        const SHARED = 0x8;
        /// `mprotect` may allow reading.
        const MAYREAD = 0x10;
        /// `mprotect` may allow writing.
        const MAYWRITE = 0x20;
        /// `mprotect` may allow executing.
        const MAYEXEC = 0x40;
        /// Grows down: a stack.
        const GROWSDOWN = 0x100;
        /// Its pages stay in memory (`mlock`).
        const LOCKED = 0x2000;
        /// `MADV_SEQUENTIAL` was given.
        const SEQ_READ = 0x8000;
        /// `MADV_RANDOM` was given.
        const RAND_READ = 0x1_0000;
        /// `fork` leaves it out (`MADV_DONTFORK`).
        const DONTCOPY = 0x0002_0000;
        /// The child of a `fork` finds zeroes there (`MADV_WIPEONFORK`).
        const WIPEONFORK = 0x0200_0000;
        /// Counts towards the commit limit.
        const ACCOUNT = 0x0010_0000;
        /// `MAP_NORESERVE`.
        const NORESERVE = 0x0020_0000;
        /// With [`Self::LOCKED`]: pages are not faulted in for it (`MLOCK_ONFAULT`).
        const LOCKONFAULT = 0x0008_0000;
        /// Dumps of the program leave it out (`MADV_DONTDUMP`).
        const DONTDUMP = 0x0400_0000;
        /// All of it counts as written since `clear_refs`: it is new, or moved.
        const SOFTDIRTY = 0x0800_0000;
        /// `MADV_HUGEPAGE` was given.
        const HUGEPAGE = 0x2000_0000;
        /// `MADV_NOHUGEPAGE` was given.
        const NOHUGEPAGE = 0x4000_0000;

        /// How it is locked into memory.
        const LOCK = Self::LOCKED.bits() | Self::LOCKONFAULT.bits();
        /// The three current rights.
        const ACCESS = 0x7;
        /// What `mprotect` may always grant on private anonymous memory.
        const MAY = 0x70;
    }
}

impl VmaFlags {
    /// The rights of `prot`.
    #[must_use]
    pub const fn from_prot(prot: Prot) -> Self {
        Self::from_bits_truncate(prot.bits() as u32)
    }

    /// The rights an area with these flags grants now.
    #[must_use]
    pub const fn prot(self) -> Prot {
        #[expect(clippy::cast_possible_truncation, reason = "masked to three bits")]
        Prot::from_bits_truncate((self.bits() & Self::ACCESS.bits()) as u8)
    }
}

bitflags! {
    /// How an allocation may behave.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct AllocFlags: u8 {
        /// Clear the pages.
        const ZERO = 1;
        /// May go below the minimum watermark: for what is needed to give memory back.
        const RESERVE = 2;
        /// Not worth disturbing anyone for: keep clear of the low watermark (a huge page with a small fallback).
        const OPPORTUNISTIC = 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_our_own_is_exported() {
        let own = PageFlags::MAPCOUNT_LOCK
            | PageFlags::PT_LOCK
            | PageFlags::QUEUED
            | PageFlags::WAITERS
            | PageFlags::DOUBLE_MAP;
        assert!((PageFlags::EXPORTED & own).is_empty());
    }

    #[test]
    fn prot_and_vma_flags_agree() {
        for bits in 0..8 {
            let prot = Prot::from_bits_truncate(bits);
            assert_eq!(VmaFlags::from_prot(prot).prot(), prot);
        }
    }
}
