//! One table page: its entries decoded, the lock in its record, and the tables that are set aside in it.

use super::{
    PmdEntry, PteEntry, RawPmd, RawPte,
    entry::{Marks, MigrationKind},
};
use crate::{
    addr::{ENTRIES, Pfn},
    counter::Counter,
    error::AllocError,
    flags::{AllocFlags, PageFlags},
    memory::Memory,
    order::Order,
    page::{Page, PageState},
    platform::Platform,
    sync::AtomicU64,
    table::Table,
};

impl Table {
    /// Reads and decodes a PTE.
    #[must_use]
    pub fn pte(&self, index: usize) -> PteEntry {
        RawPte(self.load(index)).decode()
    }

    /// Reads and decodes a PMD entry, once.
    #[must_use]
    pub fn pmd(&self, index: usize) -> PmdEntry {
        RawPmd(self.load(index)).decode()
    }

    /// Publishes a PTE.
    pub fn set_pte(&self, index: usize, entry: PteEntry) {
        self.store(index, entry.encode().0);
    }

    /// Publishes a PMD entry.
    pub fn set_pmd(&self, index: usize, entry: PmdEntry) {
        self.store(index, entry.encode().0);
    }
}

/// Runs: neighbouring PTEs that map neighbouring pages with the same rights. The table's lock is held.
///
/// The hardware only ever sets marks, and a dirty bit only where writing is allowed. So an entry whose dirty bit it may
/// still set is changed by a locked operation, that no write be forgotten; all others by plain stores. What may get lost
/// is an accessed bit set at this very moment.
impl Table {
    /// Length of the run that the PTE at `index` begins, at most `max`.
    pub(crate) fn run_length(&self, index: usize, max: usize) -> usize {
        self.length_of(index, max, &RawPte::without_marks)
    }

    /// The same, whether or not writing is allowed: after `clear_refs` that is not the same in all of an area.
    pub(crate) fn frames_length(&self, index: usize, max: usize) -> usize {
        self.length_of(index, max, &|raw| raw.without_marks() & RawPte::ALL_BUT_WRITE)
    }

    fn length_of(&self, index: usize, max: usize, compared: &dyn Fn(RawPte) -> u64) -> usize {
        let raw = |entry: &AtomicU64| compared(RawPte(entry.load_relaxed()));
        let entries = self.entries(index, max);
        let mut next = raw(&entries[0]);
        let follows = |entry: &&AtomicU64| {
            next = RawPte(next).of_next_frame().0;
            raw(entry) == next
        };
        1 + entries[1..].iter().take_while(follows).count()
    }

    /// Empties the `nr` PTEs from `index`; returns the marks that any of them had.
    pub(crate) fn take_run(&self, index: usize, nr: usize) -> Marks {
        let mut seen = 0;
        for entry in self.entries(index, nr) {
            let mut raw = entry.load_relaxed();
            if RawPte(raw).may_get_dirty() {
                raw = entry.swap_acqrel(RawPte::NONE.0);
            } else {
                entry.store_relaxed(RawPte::NONE.0);
            }
            seen |= raw;
        }
        Marks::of(seen)
    }

    /// Makes the `nr` PTEs from `index` migration entries of one kind that keep their marks; returns the marks that any of
    /// them had.
    pub(crate) fn hide_run(&self, index: usize, nr: usize, kind: MigrationKind) -> Marks {
        let mut seen = 0;
        for entry in self.entries(index, nr) {
            let mut raw = entry.load_relaxed();
            if RawPte(raw).may_get_dirty() {
                // Hidden first: what the hardware has marked by then is final.
                raw = entry.swap_acqrel(RawPte(raw).moving(kind).0);
            }
            entry.store_relaxed(RawPte(raw).moving(kind).0);
            seen |= raw;
        }
        Marks::of(seen)
    }

    /// Makes the `nr` migration entries from `index` present entries: the first as `to` says, the others for the frames that
    /// follow. Each keeps its marks.
    pub(crate) fn show_run(&self, index: usize, nr: usize, to: PteEntry) {
        let mut next = to.encode();
        for entry in self.entries(index, nr) {
            entry.store_release(next.with_marks_of(RawPte(entry.load_relaxed())).0);
            next = next.of_next_frame();
        }
    }

    /// Takes the right to write from the `nr` PTEs, or the one huge entry, from `index`, and copies them, as not used yet, to `child`.
    pub(crate) fn share_run(&self, index: usize, nr: usize, child: &Self) {
        let pairs = self.entries(index, nr).iter().zip(child.entries(index, nr));
        for (entry, copy) in pairs {
            let mut raw = entry.load_relaxed();
            let shared = RawPte(raw).read_only();
            if RawPte(raw).may_get_dirty() {
                raw = entry.fetch_and_acqrel(RawPte::ALL_BUT_WRITE);
            } else if shared.0 != raw {
                entry.store_relaxed(shared.0);
            }
            copy.store_relaxed(RawPte(raw).read_only().old().0);
        }
    }
}

/// The lock of one table page, held. Gives access to the table.
#[must_use]
pub struct PtLock<'m, P: Platform> {
    table: &'m Table,
    page: Page<'m>,
    _preempt: P::PreemptGuard,
}

impl<P: Platform> core::ops::Deref for PtLock<'_, P> {
    type Target = Table;

    fn deref(&self) -> &Table {
        self.table
    }
}

impl<'m, P: Platform> PtLock<'m, P> {
    /// The record of the table page.
    #[must_use]
    pub fn page(&self) -> Page<'m> {
        self.page
    }

    /// Replaces a PTE by what `change` makes of it, again if the hardware sets a mark meanwhile; returns whether it
    /// differs. Stale translations are the caller's to flush.
    pub(crate) fn update_pte(&self, index: usize, change: &dyn Fn(PteEntry) -> PteEntry) -> bool {
        self.update(index, &|raw| change(RawPte(raw).decode()).encode().0)
    }

    /// [`Self::update_pte`] for a PMD entry.
    pub(crate) fn update_pmd(&self, index: usize, change: &dyn Fn(PmdEntry) -> PmdEntry) -> bool {
        self.update(index, &|raw| change(RawPmd(raw).decode()).encode().0)
    }

    fn update(&self, index: usize, change: &dyn Fn(u64) -> u64) -> bool {
        let mut now = self.table.load(index);
        loop {
            let wanted = change(now);
            if wanted == now {
                return false;
            }
            match self.table.compare_exchange(index, now, wanted) {
                Ok(_) => return true,
                Err(found) => now = found,
            }
        }
    }
}

impl<P: Platform> Drop for PtLock<'_, P> {
    fn drop(&mut self) {
        self.page.unlock_bit(PageFlags::PT_LOCK);
    }
}

/// The locks of two tables, in the order in which they were named, or of one that was named twice.
#[must_use]
pub(crate) enum PtLockPair<'m, P: Platform> {
    Same(PtLock<'m, P>),
    Two(PtLock<'m, P>, PtLock<'m, P>),
}

impl<'m, P: Platform> PtLockPair<'m, P> {
    /// The first table named, and the second.
    pub(crate) fn both(&self) -> (&PtLock<'m, P>, &PtLock<'m, P>) {
        match self {
            Self::Same(one) => (one, one),
            Self::Two(first, second) => (first, second),
        }
    }
}

/// "No table" in a deposit link; frame 0 never holds a page table of ours (it is never given to the allocator as a
/// table because links of 0 mean none).
const NO_TABLE: u64 = 0;

impl<P: Platform> Memory<P> {
    /// Allocates an empty table.
    pub(crate) fn alloc_table(&self) -> Result<Pfn, AllocError> {
        self.alloc_table_with(AllocFlags::ZERO)
    }

    /// Allocates a table to be set aside. Its contents are arbitrary: whoever withdraws it for use writes every entry.
    pub(crate) fn alloc_deposit(&self) -> Result<Pfn, AllocError> {
        self.alloc_table_with(AllocFlags::empty())
    }

    fn alloc_table_with(&self, flags: AllocFlags) -> Result<Pfn, AllocError> {
        let pfn = self.take_frame(flags)?;
        let page = self.pages().page(pfn);
        page.set_private_state(PageState::of(PageFlags::PGTABLE));
        page.set_index(NO_TABLE);
        self.add(Counter::NrPageTable, 1);
        Ok(pfn)
    }

    /// Frees a table that no entry leads to and no CPU walks any more.
    pub(crate) fn free_table(&self, pfn: Pfn) {
        let page = self.pages().page(pfn);
        crate::vm_assert!(page.has(PageFlags::PGTABLE), "{page:?}: not a table");
        crate::vm_assert!(
            page.index() == NO_TABLE,
            "{page:?}: tables are still deposited here"
        );
        page.set_private_state(PageState::CLEAR);
        self.add(Counter::NrPageTable, -1);
        self.free_pages(pfn, Order::ZERO);
    }

    /// The entries of a table page.
    pub(crate) fn table(&self, pfn: Pfn) -> &Table {
        crate::vm_assert!(
            self.pages().page(pfn).has(PageFlags::PGTABLE),
            "{pfn:?}: not a table"
        );
        // SAFETY: the record says that the frame holds a table; the caller reached it through an address space whose
        // mmap lock it holds, or from whose CPUs it walks lock-free, so it stays one.
        unsafe { self.platform().table(pfn) }
    }

    /// Takes the lock of a table page.
    pub(crate) fn lock_table(&self, pfn: Pfn) -> PtLock<'_, P> {
        let preempt = self.platform().preempt_off();
        let page = self.pages().page(pfn);
        page.lock_bit(PageFlags::PT_LOCK);
        PtLock {
            table: self.table(pfn),
            page,
            _preempt: preempt,
        }
    }

    /// Takes the locks of two tables of one level in the order of their frames, or the one lock if they are the same:
    /// whoever needs two comes here, so that nobody takes them the other way round.
    pub(crate) fn lock_tables(&self, a: Pfn, b: Pfn) -> PtLockPair<'_, P> {
        if a == b {
            return PtLockPair::Same(self.lock_table(a));
        }
        let low = self.lock_table(a.min(b));
        let high = self.lock_table(a.max(b));
        if a < b {
            PtLockPair::Two(low, high)
        } else {
            PtLockPair::Two(high, low)
        }
    }

    /// Sets a PTE table aside for a huge mapping in the locked PMD table. The tables of one PMD table form a stack
    /// through their records' index words; which one belongs to which mapping does not matter.
    pub(crate) fn deposit_table(&self, pmds: &PtLock<'_, P>, table: Pfn) {
        self.pages().page(table).set_index(pmds.page.index());
        pmds.page.set_index(u64::from(table.raw()));
    }

    /// Takes a table back that was set aside.
    ///
    /// # Panics
    /// If none is: invariant I9 is broken.
    pub(crate) fn withdraw_table(&self, pmds: &PtLock<'_, P>) -> Pfn {
        let table = self.deposited(pmds.page.pfn()).next();
        let table = table.expect("invariant I9: every huge mapping has a deposited table");
        let page = self.pages().page(table);
        pmds.page.set_index(page.index());
        page.set_index(NO_TABLE);
        table
    }

    /// The tables set aside in a PMD table.
    pub(crate) fn deposited(&self, pmd_table: Pfn) -> impl Iterator<Item = Pfn> {
        let follow = |table: Pfn| {
            let link = self.pages().page(table).index();
            u32::try_from(link)
                .ok()
                .filter(|_| link != NO_TABLE)
                .map(Pfn::new)
        };
        core::iter::successors(follow(pmd_table), move |&table| follow(table)).take(ENTRIES)
    }
}
