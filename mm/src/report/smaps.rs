//! `/proc/PID/smaps`: what an area has in memory, and with how many it shares it.
//!
//! ```text
//!   entry ──> base page or subpage ──> how often is this very page mapped?   1: private   2 or more: shared
//!                                      its part of Pss: 4 KiB / that number
//! ```
//! How often a subpage is mapped is exact also where one process maps the huge page by a PMD and another by PTEs, so
//! the Pss of all processes adds up to what they use together.
//!
//! Zero pages count for nothing, as in Linux: nobody would get memory back by unmapping them.
//!
//! Locks: the mmap lock for reading over the whole report, so that no area is seen twice or half; inside it the lock of
//! one table at a time.
//!
//! Origin: Linux `smaps_account` as of v6.1. Differs: dirty and referenced marks of a page that is being moved are those
//! of its entry, not none.

use crate::{
    addr::{HPAGE_PAGES, PAGE_BYTES, PMD_SIZE, Pfn, USER_END, VirtAddr, VirtRange},
    address_space::AddressSpace,
    flags::{PageFlags, VmaFlags},
    memory::Memory,
    page::Page,
    pgtable::{PmdEntry, PteEntry, cursor::Level, entry::Marks},
    platform::Platform,
    rmap::walk::pages,
    vma::VmaInfo,
};

/// Fraction bits of a [`Share`].
const SHARE_SHIFT: u32 = 12;

/// Proportional sizes: bytes with twelve bits of fraction. Each page's part is rounded down, as in Linux.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Share(u64);

impl Share {
    /// Whole bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 >> SHARE_SHIFT
    }

    /// The part of one page that falls to one of `mappings`.
    fn of_page(mappings: u32) -> Self {
        Self((PAGE_BYTES << SHARE_SHIFT) / u64::from(mappings.max(1)))
    }

    fn add(&mut self, other: Self) {
        self.0 += other.0;
    }
}

/// Bytes that differ in who else has them and whether they were written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Split {
    /// Not written since they were filled.
    pub clean: u64,
    /// Written.
    pub dirty: u64,
}

impl Split {
    fn add(&mut self, bytes: u64, dirty: bool) {
        let part = if dirty { &mut self.dirty } else { &mut self.clean };
        *part += bytes;
    }
}

/// What an area, or a whole address space, has in memory. All memory is anonymous.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Residency {
    /// Bytes that entries map, zero pages left out.
    pub resident: u64,
    /// The same, each page divided by the number of its mappings.
    pub share: Share,
    /// Of that, what was written.
    pub share_dirty: Share,
    /// Bytes that others map too.
    pub shared: Split,
    /// Bytes that nobody else maps.
    pub private: Split,
    /// Bytes used since the marks were last cleared.
    pub referenced: u64,
    /// Bytes that may be dropped, not having been written since the program said so (`MADV_FREE`).
    pub lazy_free: u64,
    /// Bytes in huge pages that a PMD maps.
    pub by_pmd: u64,
    /// Of [`Self::share`], what is in areas that are locked into memory.
    pub share_locked: Share,
}

impl Residency {
    /// Adds what another area has.
    pub fn merge(&mut self, other: &Self) {
        self.resident += other.resident;
        self.share.add(other.share);
        self.share_dirty.add(other.share_dirty);
        self.shared.clean += other.shared.clean;
        self.shared.dirty += other.shared.dirty;
        self.private.clean += other.private.clean;
        self.private.dirty += other.private.dirty;
        self.referenced += other.referenced;
        self.lazy_free += other.lazy_free;
        self.by_pmd += other.by_pmd;
        self.share_locked.add(other.share_locked);
    }

    /// Adds one base page that `mappings` entries map.
    fn add_page(&mut self, page: Page<'_>, marks: Marks, mappings: u32) {
        let head = page.head();
        let dirty = marks.dirty || head.has(PageFlags::DIRTY);
        let share = Share::of_page(mappings);
        self.resident += PAGE_BYTES;
        self.share.add(share);
        if dirty {
            self.share_dirty.add(share);
        }
        if mappings < 2 {
            self.private.add(PAGE_BYTES, dirty);
        } else {
            self.shared.add(PAGE_BYTES, dirty);
        }
        if !dirty && !head.has(PageFlags::SWAPBACKED) {
            self.lazy_free += PAGE_BYTES;
        }
        if marks.accessed || head.has(PageFlags::REFERENCED) {
            self.referenced += PAGE_BYTES;
        }
    }
}

/// Shows `visit` every area of `space` in address order, with what it has in memory. Takes the mmap lock for reading;
/// `visit` runs under it.
pub fn smaps<P: Platform>(mem: &Memory<P>, space: &AddressSpace, visit: &mut dyn FnMut(VmaInfo, &Residency)) {
    let _mmap = space.lock().read(mem.platform());
    let all = VirtRange::new(VirtAddr::zero(), VirtAddr::new(USER_END));
    let all = all.unwrap_or_else(|| unreachable!("a valid range"));
    for vma in space.areas().overlapping(all) {
        let mut residency = Residency::default();
        mem.for_each_pmd(space.tables(), vma.range(), &mut |slot, chunk| {
            let pmds = mem.lock_table(slot.table);
            match pmds.pmd(slot.index) {
                PmdEntry::None => {}
                PmdEntry::Table(table) => {
                    drop(pmds);
                    add_ptes(mem, table, chunk, &mut residency);
                }
                entry => add_huge(mem, entry, &mut residency),
            }
        });
        if vma.flags().contains(VmaFlags::LOCKED) {
            residency.share_locked = residency.share;
        }
        let info = VmaInfo {
            range: vma.range(),
            flags: vma.flags(),
        };
        visit(info, &residency);
    }
}

/// Adds what one PMD entry maps. Its table is locked. All of it is the area's: no area ends inside a huge entry.
fn add_huge<P: Platform>(mem: &Memory<P>, entry: PmdEntry, residency: &mut Residency) {
    let (pfn, marks, moving) = match entry {
        PmdEntry::Huge { pfn, marks, .. } => (pfn, marks, false),
        PmdEntry::Migration { pfn, marks, .. } => (pfn, marks, true),
        PmdEntry::None | PmdEntry::Table(_) => return,
    };
    if mem.is_zero_page(mem.pages().page(pfn)) {
        return;
    }
    residency.by_pmd += PMD_SIZE;
    for subpage in 0..HPAGE_PAGES {
        let page = mem.pages().page(pfn.offset(subpage));
        residency.add_page(page, marks, mappings(page, moving));
    }
}

/// Adds what the PTEs of `chunk` map.
fn add_ptes<P: Platform>(mem: &Memory<P>, table: Pfn, chunk: VirtRange, residency: &mut Residency) {
    let ptes = mem.lock_table(table);
    for addr in pages(chunk) {
        let (pfn, marks, moving) = match ptes.pte(Level::Pte.index(addr)) {
            PteEntry::None => continue,
            PteEntry::Present { pfn, marks, .. } => (pfn, marks, false),
            PteEntry::Migration { pfn, marks, .. } => (pfn, marks, true),
        };
        let page = mem.pages().page(pfn);
        if !mem.is_zero_page(page) {
            residency.add_page(page, marks, mappings(page, moving));
        }
    }
}

/// A page that is being moved has no mappings to count: Linux calls it private.
fn mappings(page: Page<'_>, moving: bool) -> u32 {
    if moving { 1 } else { page.mapcount() }
}
