//! How often each page is mapped.
//!
//! One compound page may be mapped by PMD entries in some page tables and by PTEs in others. A PMD map or unmap should
//! touch one counter, a PTE map or unmap only that subpage's; reading needs both:
//!
//! ```text
//!   C     = PMD mappings of the compound page                    (first tail, low half of `index`)
//!   P     = PTE mappings of all subpages                         (first tail, high half of `index`)
//!   m[i]  = PTE mappings of subpage i, plus 1 if DOUBLE_MAP      (column `maps`; Linux's raw counter + 1)
//!   mapcount(i) = m[i] + C - (DOUBLE_MAP ? 1 : 0)     total = C + P
//!
//!   C>0        --split_pmd, others left-->  C>0 DM   --last PMD gone-->  C=0        --last PTE gone-->  unmapped
//!   pure PMD                                mixed                        pure PTE
//! ```
//! DOUBLE_MAP solves the one hard question, "did this PTE unmap leave the subpage unmapped?", without looking at C:
//! while it is set every m\[i\] holds one for all PMD mappings together, so m\[i\] reaches 0 only at the true end.
//!
//! Locking: all of it changes only under the folio's mapcount lock, one bit in the head's state word, taken once per
//! batch (up to 512 subpages). Under it the counters are plain loads and stores. An order-0 page has one atomic and no
//! lock. Reports read without the lock and may be stale.
//!
//! The rules form a backend behind [`Backend`], because there are other schemes (Linux 6.2 counts differently) that
//! the same tests must be able to judge. [`DoubleMap`] is Linux's of v4.5 to v6.1 (53f9263baba6), made exact: P lets a
//! map operation see that both kinds are about to coexist and enter DOUBLE_MAP then, where Linux counts such pages
//! twice in `AnonPages` (decision 0003).

use core::cell::Cell;

use super::Page;
use crate::{addr::HPAGE_PAGES, flags::PageFlags, order::PMD_ORDER, platform::Platform};

/// A snapshot of a folio's mappings.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MapCounts {
    /// PMD mappings.
    pub entire: u32,
    /// All page-table entries, PMD and PTE, that map any part.
    pub total: u32,
}

/// What an unmap left behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unmapped {
    /// Base pages that no entry maps any more, of those that the call unmapped.
    pub pages: u32,
    /// The last PMD mapping went away.
    pub last_pmd: bool,
    /// Some subpage is unmapped while another is still mapped, and this call did it: a case for the deferred queue.
    pub partially: bool,
}

/// A mapcount scheme for large folios. Every method needs the mapcount lock, proved by [`Locked`].
pub trait Backend {
    /// A new folio gets its first mapping, a PMD.
    fn map_new_pmd(folio: &Locked<'_>);
    /// `nr` subpages from `first` each get one PTE mapping more; returns how many of them had none at all.
    fn map_ptes(folio: &Locked<'_>, first: u32, nr: u32) -> u32;
    /// One PMD mapping more; returns how many base pages had no mapping before.
    fn map_pmd(folio: &Locked<'_>) -> u32;
    /// `nr` subpages from `first` each lose one PTE mapping.
    fn unmap_ptes(folio: &Locked<'_>, first: u32, nr: u32) -> Unmapped;
    /// One PMD mapping less.
    fn unmap_pmd(folio: &Locked<'_>) -> Unmapped;
    /// One PMD mapping becomes a PTE mapping of every subpage; returns whether it was the last PMD mapping.
    fn split_pmd(folio: &Locked<'_>) -> bool;
}

/// The scheme in use.
pub type Mapcount = DoubleMap;

/// The lock on a large folio's mapcounts, held.
#[must_use]
pub struct Locked<'a> {
    head: Page<'a>,
    /// Flags of the head that go together with the lock bit.
    until_unlock: Cell<PageFlags>,
}

/// [`Locked`], with preemption held off for as long as it lives.
#[must_use]
pub struct MapcountGuard<'a, P: Platform> {
    // Dropped, and so unlocked, before preemption is allowed again.
    locked: Locked<'a>,
    _preempt: P::PreemptGuard,
}

impl<'a, P: Platform> core::ops::Deref for MapcountGuard<'a, P> {
    type Target = Locked<'a>;

    fn deref(&self) -> &Locked<'a> {
        &self.locked
    }
}

impl<'a> Page<'a> {
    /// Takes the mapcount lock of the large folio that starts here.
    pub(crate) fn lock_mapcount<P: Platform>(self, platform: &P) -> MapcountGuard<'a, P> {
        crate::vm_assert!(self.compound_order() == PMD_ORDER, "{self:?}: not a large folio");
        let preempt = platform.preempt_off();
        self.lock_bit(PageFlags::MAPCOUNT_LOCK);
        MapcountGuard {
            locked: Locked {
                head: self,
                until_unlock: Cell::new(PageFlags::MAPCOUNT_LOCK),
            },
            _preempt: preempt,
        }
    }

    /// Adds a mapping to an order-0 page; returns whether it is the first.
    pub(crate) fn map_small(self) -> bool {
        self.maps_word().fetch_add_relaxed(1) == 0
    }

    /// Adds a mapping to an order-0 page of which all mappings became migration entries, and which nobody but the caller
    /// turns back; returns whether it is the first. From 0 nobody else can raise the count: a plain store does.
    pub(crate) fn remap_small(self) -> bool {
        if self.maps_word().load_relaxed() != 0 {
            return self.map_small();
        }
        self.maps_word().store_relaxed(1);
        true
    }

    /// Removes a mapping from an order-0 page; returns whether it was the last.
    pub(crate) fn unmap_small(self) -> bool {
        let before = self.maps_word().fetch_sub_acqrel(1);
        crate::vm_assert!(before > 0, "{self:?}: unmapped more often than mapped");
        before == 1
    }

    /// Page-table entries that map this page, itself or as part of its compound page. Accepts any page in any state
    /// and takes nothing; without a reference the answer may be stale.
    ///
    /// Origin: Linux `page_mapcount` (53f9263baba6); valid on tails from the start.
    #[must_use]
    pub fn mapcount(self) -> u32 {
        let own = self.maps_word().load_relaxed();
        let head = self.head();
        if head.compound_order() < crate::order::Order::MIN_WITH_QUEUE {
            return own;
        }
        let both = own.wrapping_add(head.map_counts().entire);
        // A stale mix of words could read as -1; a count is never negative.
        both.saturating_sub(u32::from(head.is_double_mapped()))
    }

    /// This record's own counter in Linux's form: -1 for none.
    #[must_use]
    pub fn raw_mapcount(self) -> i32 {
        self.maps_word().load_relaxed().wrapping_sub(1).cast_signed()
    }

    /// Counts of the folio that this page is part of. See [`Page::mapcount`] for what that is worth without locks.
    #[must_use]
    pub fn map_counts(self) -> MapCounts {
        let head = self.head();
        if head.compound_order() < crate::order::Order::MIN_WITH_QUEUE {
            return MapCounts {
                entire: 0,
                total: head.maps_word().load_relaxed(),
            };
        }
        let (entire, ptes) = unpack(head.counter_word().load_relaxed());
        MapCounts {
            entire,
            total: entire.wrapping_add(ptes),
        }
    }

    /// Whether any entry maps any part of the folio that this page is part of.
    #[must_use]
    pub fn is_mapped(self) -> bool {
        self.map_counts().total != 0
    }

    /// Whether one process alone maps this page, itself or as part of its compound page, and may write to it without
    /// asking. Exact while the lock of the page table is held that maps it.
    #[must_use]
    pub fn is_exclusive(self) -> bool {
        let state = self.state();
        state.flags().contains(PageFlags::EXCLUSIVE)
            || state
                .head_link()
                .and_then(|head| self.array.get(head.offset(1)))
                .is_some_and(|first| first.has(PageFlags::TAILS_EXCLUSIVE))
    }

    /// Whether the folio that starts here has PMD and PTE mappings at once. Asked of a tail: no.
    #[must_use]
    pub fn is_double_mapped(self) -> bool {
        let large = self.compound_order() >= crate::order::Order::MIN_WITH_QUEUE;
        large
            && self
                .array
                .get(self.pfn.offset(1))
                .is_some_and(|tail| tail.has(PageFlags::DOUBLE_MAP))
    }

    /// Where the folio that starts here keeps C and P.
    fn counter_word(self) -> &'a crate::sync::AtomicU64 {
        &self.array.index()[self.pfn.index() + 1]
    }
}

const EXCLUSIVE: u64 = PageFlags::EXCLUSIVE.bits() as u64;

/// Splits the counter word into C and P.
#[expect(clippy::cast_possible_truncation, reason = "the two halves of the word")]
const fn unpack(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

const fn pack(entire: u32, ptes: u32) -> u64 {
    entire as u64 | (ptes as u64) << 32
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let before = self.head.clear_flags(self.until_unlock.get());
        crate::vm_assert!(
            before.contains(PageFlags::MAPCOUNT_LOCK),
            "{:?}: lock was not held",
            self.head
        );
    }
}

impl<'a> Locked<'a> {
    fn read(&self) -> (u32, u32) {
        unpack(self.head.counter_word().load_relaxed())
    }

    fn write(&self, entire: u32, ptes: u32) {
        self.head.counter_word().store_relaxed(pack(entire, ptes));
    }

    /// The counts, exact while the lock is held.
    #[must_use]
    pub fn counts(&self) -> MapCounts {
        let (entire, ptes) = self.read();
        MapCounts {
            entire,
            total: entire + ptes,
        }
    }

    fn is_double(&self) -> bool {
        self.head.offset(1).has(PageFlags::DOUBLE_MAP)
    }

    /// The counters of `nr` subpages from `first`.
    fn subpages(&self, first: u32, nr: u32) -> &'a [crate::sync::AtomicU32] {
        crate::vm_assert!(first + nr <= HPAGE_PAGES);
        let start = self.head.pfn().index() + first as usize;
        &self.head.array().maps()[start..start + nr as usize]
    }

    /// Adds one to each counter; returns how many were 0. Plain stores: the lock makes us the only writer.
    fn increment(&self, first: u32, nr: u32) -> u32 {
        let mut fresh = 0;
        for count in self.subpages(first, nr) {
            let before = count.load_relaxed();
            fresh += u32::from(before == 0);
            count.store_relaxed(before + 1);
        }
        fresh
    }

    /// Makes each counter, all of which are equal, `count`.
    fn set_all(&self, count: u32) {
        for word in self.subpages(0, HPAGE_PAGES) {
            word.store_relaxed(count);
        }
    }

    /// Takes one from each counter; returns how many are 0 now.
    fn decrement(&self, first: u32, nr: u32) -> u32 {
        let mut gone = 0;
        for count in self.subpages(first, nr) {
            let before = count.load_relaxed();
            crate::vm_assert!(
                before > 0,
                "{:?}: subpage unmapped more often than mapped",
                self.head
            );
            gone += u32::from(before == 1);
            count.store_relaxed(before.wrapping_sub(1));
        }
        gone
    }

    /// Marks each tail as mapped by one process only: one bit says it of all. None says it of itself.
    pub(crate) fn mark_tails_exclusive(&self) {
        self.head.offset(1).set_flags(PageFlags::TAILS_EXCLUSIVE);
    }

    /// Marks `nr` subpages from `first` as mapped by one process only.
    pub(crate) fn set_exclusive(&self, first: u32, nr: u32) {
        let tails = first.max(1)..first + nr;
        if tails == (1..HPAGE_PAGES) {
            self.change_tails(tails, |state| state & !EXCLUSIVE);
            self.mark_tails_exclusive();
        } else if !self.head.offset(1).has(PageFlags::TAILS_EXCLUSIVE) {
            self.change_tails(tails, |state| state | EXCLUSIVE);
        }
        if first == 0 {
            self.head.set_flags(PageFlags::EXCLUSIVE);
        }
    }

    /// Takes the exclusive mark off a page that PMDs map, when the lock is given back: one locked operation for both.
    pub(crate) fn share_whole(&self) {
        self.until_unlock
            .set(PageFlags::MAPCOUNT_LOCK | PageFlags::EXCLUSIVE);
    }

    /// Takes the exclusive mark off `nr` subpages from `first`.
    pub(crate) fn clear_exclusive(&self, first: u32, nr: u32) {
        let tails = first.max(1)..first + nr;
        if self.head.offset(1).has(PageFlags::TAILS_EXCLUSIVE) {
            // The others are told each for itself before the bit that said it of all goes.
            self.change_tails(1..tails.start, |state| state | EXCLUSIVE);
            self.change_tails(tails.end..HPAGE_PAGES, |state| state | EXCLUSIVE);
            self.head.offset(1).clear_flags(PageFlags::TAILS_EXCLUSIVE);
        } else {
            self.change_tails(tails, |state| state & !EXCLUSIVE);
        }
        if first == 0 && self.head.has(PageFlags::EXCLUSIVE) {
            self.head.clear_flags(PageFlags::EXCLUSIVE);
        }
    }

    /// Rewrites the state words of tails. They are written under this lock alone, so plain stores do.
    fn change_tails(&self, tails: core::ops::Range<u32>, change: impl Fn(u64) -> u64) {
        let start = self.head.pfn().index();
        for word in &self.head.array().state()[start + tails.start as usize..start + tails.end as usize] {
            let (before, after) = (word.load_relaxed(), change(word.load_relaxed()));
            if before != after {
                word.store_relaxed(after);
            }
        }
    }

    /// Lets every subpage's counter hold one for all PMD mappings; returns how many subpages had none.
    fn enter_double(&self) -> u32 {
        self.head.offset(1).set_flags(PageFlags::DOUBLE_MAP);
        self.increment(0, HPAGE_PAGES)
    }

    /// Undoes [`Self::enter_double`]; returns how many subpages are left without a mapping.
    fn leave_double(&self) -> u32 {
        self.head.offset(1).clear_flags(PageFlags::DOUBLE_MAP);
        self.decrement(0, HPAGE_PAGES)
    }
}

/// Linux's scheme of v4.5 to v6.1, made exact. See the module's head.
pub struct DoubleMap;

impl Backend for DoubleMap {
    fn map_new_pmd(folio: &Locked<'_>) {
        crate::vm_assert!(folio.counts() == MapCounts::default());
        folio.write(1, 0);
    }

    fn map_ptes(folio: &Locked<'_>, first: u32, nr: u32) -> u32 {
        let (entire, ptes) = folio.read();
        if entire > 0 && !folio.is_double() {
            folio.enter_double();
        }
        folio.write(entire, ptes + nr);
        folio.increment(first, nr)
    }

    fn map_pmd(folio: &Locked<'_>) -> u32 {
        let (entire, ptes) = folio.read();
        folio.write(entire + 1, ptes);
        match (entire, ptes) {
            (0, 0) => HPAGE_PAGES,
            (0, _) => folio.enter_double(),
            _ => 0,
        }
    }

    fn unmap_ptes(folio: &Locked<'_>, first: u32, nr: u32) -> Unmapped {
        let (entire, ptes) = folio.read();
        crate::vm_assert!(ptes >= nr);
        folio.write(entire, ptes - nr);
        let pages = folio.decrement(first, nr);
        Unmapped {
            pages,
            last_pmd: false,
            partially: pages > 0 && entire + ptes > nr,
        }
    }

    fn unmap_pmd(folio: &Locked<'_>) -> Unmapped {
        let (entire, ptes) = folio.read();
        crate::vm_assert!(entire > 0);
        folio.write(entire - 1, ptes);
        if entire > 1 {
            return Unmapped {
                pages: 0,
                last_pmd: false,
                partially: false,
            };
        }
        let pages = if folio.is_double() {
            folio.leave_double()
        } else {
            HPAGE_PAGES
        };
        Unmapped {
            pages,
            last_pmd: true,
            partially: pages > 0 && ptes > 0,
        }
    }

    fn split_pmd(folio: &Locked<'_>) -> bool {
        let (entire, ptes) = folio.read();
        crate::vm_assert!(entire > 0);
        folio.write(entire - 1, ptes + HPAGE_PAGES);
        let double = folio.is_double();
        match (entire > 1, double) {
            // Others remain: the bias for them and this table's own count.
            (true, false) => {
                folio.enter_double();
                folio.increment(0, HPAGE_PAGES);
                false
            }
            (true, true) => {
                folio.increment(0, HPAGE_PAGES);
                false
            }
            // The last one, sole owner: every subpage gets this table's count.
            (false, false) if ptes == 0 => {
                folio.set_all(1);
                true
            }
            (false, false) => {
                folio.increment(0, HPAGE_PAGES);
                true
            }
            // The last one of several: the bias becomes this table's count, one for one.
            (false, true) => {
                folio.head.offset(1).clear_flags(PageFlags::DOUBLE_MAP);
                true
            }
        }
    }
}

/// The halves of a split whose bias comes late: see [`crate::sabotage::Broken::LateBias`].
#[cfg(feature = "sabotage")]
impl DoubleMap {
    /// Does everything but the bias for the PMDs that are left; nothing if there is none to add.
    pub(crate) fn split_pmd_unbiased(folio: &Locked<'_>) -> bool {
        let (entire, ptes) = folio.read();
        let wants_bias = entire > 1 && !folio.is_double();
        if wants_bias {
            folio.write(entire - 1, ptes + HPAGE_PAGES);
            folio.increment(0, HPAGE_PAGES);
        }
        wants_bias
    }

    /// Adds the bias.
    pub(crate) fn add_bias(folio: &Locked<'_>) {
        folio.enter_double();
    }
}

#[cfg(test)]
mod tests {
    //! The golden rows of mm's specification for one huge page in several address spaces, on the bare counters.

    use super::*;
    use crate::{flags::AllocFlags, memory::Memory, testing::Bench};

    const N: u32 = HPAGE_PAGES;
    const PAGES: i64 = N as i64;

    /// A huge page and what is true of it: which address spaces map it how.
    struct Subject<'a> {
        mem: &'a Memory<Bench>,
        head: Page<'a>,
        /// Distinct base pages that are mapped, as the counters say.
        mapped: i64,
    }

    impl<'a> Subject<'a> {
        fn new(mem: &'a Memory<Bench>) -> Self {
            let head = mem
                .alloc_folio(PMD_ORDER, AllocFlags::empty())
                .expect("room")
                .into_raw();
            DoubleMap::map_new_pmd(&head.lock_mapcount(mem.platform()));
            Self {
                mem,
                head,
                mapped: i64::from(HPAGE_PAGES),
            }
        }

        fn locked<R>(&self, f: impl FnOnce(&Locked<'a>) -> R) -> R {
            f(&self.head.lock_mapcount(self.mem.platform()))
        }

        fn fork(&mut self) {
            self.mapped += i64::from(self.locked(DoubleMap::map_pmd));
        }

        fn split(&self) -> bool {
            self.locked(DoubleMap::split_pmd)
        }

        fn unmap_ptes(&mut self, first: u32, nr: u32) -> Unmapped {
            let gone = self.locked(|folio| DoubleMap::unmap_ptes(folio, first, nr));
            self.mapped -= i64::from(gone.pages);
            gone
        }

        fn unmap_pmd(&mut self) -> Unmapped {
            let gone = self.locked(DoubleMap::unmap_pmd);
            self.mapped -= i64::from(gone.pages);
            gone
        }

        /// C, DM, raw 0, raw 7, mapcount 0, mapcount 7, total, mapped base pages.
        fn row(&self) -> (u32, bool, i32, i32, u32, u32, u32, i64) {
            let (counts, seventh) = (self.head.map_counts(), self.head.offset(7));
            (
                counts.entire,
                self.head.is_double_mapped(),
                self.head.raw_mapcount(),
                seventh.raw_mapcount(),
                self.head.mapcount(),
                seventh.mapcount(),
                counts.total,
                self.mapped,
            )
        }

        fn finish(self) {
            assert_eq!(self.head.map_counts().total, 0, "the test leaves nothing mapped");
            self.mem.put_refs(self.head, 1);
        }
    }

    #[test]
    fn three_spaces_split_and_unmap_in_turn() {
        let mem = Bench::memory(4 * N);
        let mut page = Subject::new(&mem);
        assert_eq!(page.row(), (1, false, -1, -1, 1, 1, 1, PAGES));
        page.fork();
        page.fork();
        assert_eq!(page.row(), (3, false, -1, -1, 3, 3, 3, PAGES));
        assert!(!page.split());
        assert_eq!(page.row(), (2, true, 1, 1, 3, 3, N + 2, PAGES));
        assert!(!page.unmap_ptes(7, 1).partially);
        assert_eq!(page.row(), (2, true, 1, 0, 3, 2, N + 1, PAGES));
        assert!(!page.split());
        assert_eq!(page.row(), (1, true, 2, 1, 3, 2, 2 * N, PAGES));
        assert_eq!(
            page.unmap_pmd(),
            Unmapped {
                pages: 0,
                last_pmd: true,
                partially: false
            }
        );
        assert_eq!(page.row(), (0, false, 1, 0, 2, 1, 2 * N - 1, PAGES));
        assert_eq!(
            page.unmap_ptes(7, 1),
            Unmapped {
                pages: 1,
                last_pmd: false,
                partially: true
            }
        );
        assert_eq!(page.row(), (0, false, 1, -1, 2, 0, 2 * N - 2, PAGES - 1));
        for (first, nr) in [(0, 7), (8, N - 8), (0, 7), (8, N - 8)] {
            page.unmap_ptes(first, nr);
        }
        page.finish();
    }

    #[test]
    fn t1_8_two_splits_leave_no_bias() {
        let mem = Bench::memory(4 * N);
        let mut page = Subject::new(&mem);
        page.fork();
        assert!(!page.split());
        assert_eq!(
            (page.head.offset(7).mapcount(), page.head.map_counts().total),
            (2, N + 1)
        );
        assert!(page.split());
        assert_eq!(page.row(), (0, false, 1, 1, 2, 2, 2 * N, PAGES));
        assert_eq!(page.unmap_ptes(0, N).pages, 0);
        let gone = page.unmap_ptes(0, N);
        assert_eq!(
            gone,
            Unmapped {
                pages: N,
                last_pmd: false,
                partially: false
            },
            "one batch is no partial unmap"
        );
        page.finish();
    }

    #[test]
    fn last_pmd_takes_along_what_no_pte_maps() {
        let mem = Bench::memory(4 * N);
        let mut page = Subject::new(&mem);
        page.fork();
        page.split();
        assert_eq!(page.unmap_ptes(0, N / 2).pages, 0);
        assert_eq!(
            page.unmap_pmd(),
            Unmapped {
                pages: N / 2,
                last_pmd: true,
                partially: true
            }
        );
        assert_eq!((page.mapped, page.head.map_counts().total), (PAGES / 2, N / 2));
        page.unmap_ptes(N / 2, N / 2);
        page.finish();
    }

    #[test]
    fn full_pte_unmap_under_another_pmd_is_not_partial() {
        let mem = Bench::memory(4 * N);
        let mut page = Subject::new(&mem);
        page.fork();
        page.split();
        assert!(!page.unmap_ptes(0, N).partially);
        assert_eq!(page.row(), (1, true, 0, 0, 1, 1, 1, PAGES));
        assert_eq!(
            page.unmap_pmd(),
            Unmapped {
                pages: N,
                last_pmd: true,
                partially: false
            }
        );
        page.finish();
    }

    /// Linux counts these pages twice in AnonPages: PTEs come back first, then a PMD.
    #[test]
    fn mixed_remap_counts_every_page_once() {
        let mem = Bench::memory(4 * N);
        let mut page = Subject::new(&mem);
        page.unmap_pmd();
        let fresh = page.locked(|folio| DoubleMap::map_ptes(folio, 0, N));
        assert_eq!(fresh, N);
        assert_eq!(page.locked(DoubleMap::map_pmd), 0);
        page.mapped = PAGES;
        assert_eq!(page.row(), (1, true, 1, 1, 2, 2, N + 1, PAGES));
        assert!(!page.unmap_ptes(0, N).partially, "the PMD still maps all of it");
        assert_eq!(page.unmap_pmd().pages, N);
        page.finish();
    }

    #[test]
    fn pte_map_beside_a_pmd_enters_double_map() {
        let mem = Bench::memory(4 * N);
        let mut page = Subject::new(&mem);
        assert_eq!(page.locked(|folio| DoubleMap::map_ptes(folio, 3, 2)), 0);
        assert_eq!(
            (page.head.offset(3).mapcount(), page.head.offset(5).mapcount()),
            (2, 1)
        );
        assert_eq!(
            page.unmap_pmd(),
            Unmapped {
                pages: N - 2,
                last_pmd: true,
                partially: true
            }
        );
        page.unmap_ptes(3, 2);
        page.finish();
    }
}
