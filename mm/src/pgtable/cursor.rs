//! Finding the entries of a range, level by level.
//!
//! ```text
//!   bits 47-39   38-30   29-21   20-12
//!        PGD     PUD     PMD     PTE
//! ```
//! Everything that changes mappings works 2 MiB at a time: it asks for the [`PmdSlot`] of an address, locks its table,
//! and decides by what it finds there.

use super::{Gather, PageTables, PmdEntry, PteEntry};
use crate::{
    addr::{
        ENTRIES, ENTRIES_SHIFT, PAGE_BYTES, PAGE_SHIFT, PMD_SIZE, Pfn, USER_END, VirtAddr, VirtRange,
        to_usize,
    },
    error::AllocError,
    memory::Memory,
    platform::Platform,
};

/// A level of the page-table tree, by what one entry of it spans.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// 512 GiB an entry.
    Pgd,
    /// 1 GiB an entry.
    Pud,
    /// 2 MiB an entry.
    Pmd,
    /// A base page an entry.
    Pte,
}

impl Level {
    const fn shift(self) -> u32 {
        let above_pte = match self {
            Self::Pgd => 3,
            Self::Pud => 2,
            Self::Pmd => 1,
            Self::Pte => 0,
        };
        PAGE_SHIFT + above_pte * ENTRIES_SHIFT
    }

    /// Bytes that one entry spans.
    #[must_use]
    pub const fn entry_bytes(self) -> u64 {
        1 << self.shift()
    }

    /// Which entry of a table of this level belongs to `addr`.
    #[must_use]
    pub fn index(self, addr: VirtAddr) -> usize {
        to_usize(addr.as_u64() >> self.shift()) % ENTRIES
    }

    const fn below(self) -> Option<Self> {
        match self {
            Self::Pgd => Some(Self::Pud),
            Self::Pud => Some(Self::Pmd),
            Self::Pmd => Some(Self::Pte),
            Self::Pte => None,
        }
    }
}

/// Entries of the root that belong to user space.
const USER_ENTRIES: usize = ENTRIES / 2;

/// Where the PMD entry of 2 MiB of an address space lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PmdSlot {
    /// The PMD table.
    pub table: Pfn,
    /// The entry in it.
    pub index: usize,
    /// The 2 MiB that the entry spans.
    pub span: VirtRange,
}

/// Something that a walk over all tables finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Visit {
    /// A table of this level, the root included.
    Table(Level, Pfn),
    /// A PTE table set aside for a huge mapping of the PMD table `of`.
    Deposited {
        /// The PMD table.
        of: Pfn,
        /// The table set aside.
        table: Pfn,
    },
    /// A PMD entry that is neither empty nor a table.
    Pmd(VirtAddr, PmdEntry),
    /// A PTE that is not empty.
    Pte(VirtAddr, PteEntry),
}

/// Splits a range into its parts within one PMD span each.
pub(crate) fn pmd_chunks(range: VirtRange) -> impl Iterator<Item = VirtRange> {
    let mut rest = Some(range).filter(|range| !range.is_empty());
    core::iter::from_fn(move || {
        let left = rest?;
        let chunk = left.intersect(VirtRange::pmd(left.start()))?;
        rest = VirtRange::new(chunk.end(), left.end()).filter(|left| !left.is_empty());
        Some(chunk)
    })
}

impl<P: Platform> Memory<P> {
    /// Finds the PMD entry for `addr`; `None` if a table above it is missing.
    pub(crate) fn pmd_slot(&self, tree: &PageTables, addr: VirtAddr) -> Option<PmdSlot> {
        self.pmd_slot_or_end(tree, addr).ok()
    }

    /// Finds the PMD entry for `addr`, or says where the span ends that has no table for it.
    fn pmd_slot_or_end(&self, tree: &PageTables, addr: VirtAddr) -> Result<PmdSlot, VirtAddr> {
        // The upper half of the root is the platform's.
        if addr.as_u64() >= USER_END {
            return Err(addr);
        }
        let mut table = tree.root();
        for level in [Level::Pgd, Level::Pud] {
            let PmdEntry::Table(next) = self.table(table).pmd(level.index(addr)) else {
                let end = (addr.as_u64() | (level.entry_bytes() - 1)).saturating_add(1);
                return Err(VirtAddr::new_truncate(end.min(USER_END)));
            };
            table = next;
        }
        Ok(PmdSlot {
            table,
            index: Level::Pmd.index(addr),
            span: VirtRange::pmd(addr),
        })
    }

    /// Shows `visit` the PMD entries of `range` that have a table, each with the part of the range that it spans. Costs
    /// one walk per 2 MiB where there are tables, per 1 GiB or 512 GiB where there are none.
    pub(crate) fn for_each_pmd(
        &self,
        tree: &PageTables,
        range: VirtRange,
        visit: &mut dyn FnMut(PmdSlot, VirtRange),
    ) {
        let mut addr = range.start();
        while addr < range.end() {
            match self.pmd_slot_or_end(tree, addr) {
                Ok(slot) => {
                    if let Some(chunk) = range
                        .intersect(slot.span)
                        .and_then(|chunk| VirtRange::new(addr, chunk.end()))
                    {
                        visit(slot, chunk);
                    }
                    addr = slot.span.end();
                }
                Err(end) if end > addr => addr = end,
                Err(_) => return,
            }
        }
    }

    /// Shows `visit` the PMD tables of `range`, each with the part of the range that it spans.
    pub(crate) fn for_each_pmd_table(
        &self,
        tree: &PageTables,
        range: VirtRange,
        visit: &mut dyn FnMut(Pfn, VirtRange),
    ) {
        let mut addr = range.start();
        while addr < range.end() {
            // The last table's span ends where user space does.
            let end = (addr.as_u64() | (Level::Pud.entry_bytes() - 1)).saturating_add(1);
            let next = match self.pmd_slot_or_end(tree, addr) {
                Ok(slot) => {
                    let end = VirtAddr::new_truncate(end.min(range.end().as_u64()));
                    VirtRange::new(addr, end)
                        .into_iter()
                        .for_each(|part| visit(slot.table, part));
                    end
                }
                Err(end) => end,
            };
            if next <= addr {
                return;
            }
            addr = next;
        }
    }

    /// Finds the PMD entry for `addr`, adding the tables above it.
    ///
    /// # Errors
    /// No frame for a table. Tables added before that stay, empty.
    pub(crate) fn pmd_slot_alloc(&self, tree: &PageTables, addr: VirtAddr) -> Result<PmdSlot, AllocError> {
        let mut table = tree.root();
        for level in [Level::Pgd, Level::Pud] {
            table = self.subtable(tree, table, level.index(addr))?;
        }
        Ok(PmdSlot {
            table,
            index: Level::Pmd.index(addr),
            span: VirtRange::pmd(addr),
        })
    }

    /// Returns the table below entry `index` of `parent`, adding one if there is none.
    fn subtable(&self, tree: &PageTables, parent: Pfn, index: usize) -> Result<Pfn, AllocError> {
        if let PmdEntry::Table(table) = self.table(parent).pmd(index) {
            return Ok(table);
        }
        let fresh = self.alloc_table()?;
        let locked = self.lock_table(parent);
        if let PmdEntry::Table(table) = locked.pmd(index) {
            drop(locked);
            self.free_table(fresh);
            return Ok(table);
        }
        locked.set_pmd(index, PmdEntry::Table(fresh));
        tree.count(1);
        Ok(fresh)
    }

    /// Removes the tables under `range` that serve nothing outside `gap`, the surrounding hole between two areas.
    /// Everything in `range` is unmapped already, and the mmap lock is held for writing.
    pub(crate) fn remove_tables(
        &self,
        tree: &PageTables,
        range: VirtRange,
        gap: VirtRange,
        gather: &mut Gather<'_, P>,
    ) {
        self.remove_tables_below(tree, (Level::Pgd, tree.root(), 0), range, gap, gather);
    }

    fn remove_tables_below(
        &self,
        tree: &PageTables,
        (level, table, base): (Level, Pfn, u64),
        range: VirtRange,
        gap: VirtRange,
        gather: &mut Gather<'_, P>,
    ) {
        let Some(below) = level.below() else { return };
        let first = range.start().as_u64().max(base) - base;
        let last = (range.end().as_u64() - 1 - base).min(level.entry_bytes() * ENTRIES as u64 - 1);
        for index in first >> level.shift()..=last >> level.shift() {
            let start = base + (index << level.shift());
            let PmdEntry::Table(child) = self.table(table).pmd(to_usize(index)) else {
                continue;
            };
            self.remove_tables_below(tree, (below, child, start), range, gap, gather);
            // The topmost entries span a page that user space never has: it keeps no table alive.
            let end = (start + level.entry_bytes()).min(USER_END);
            if gap.start().as_u64() <= start && end <= gap.end().as_u64() {
                crate::vm_assert!(
                    self.table(child).is_empty(),
                    "a table is removed that still maps something"
                );
                self.lock_table(table).set_pmd(to_usize(index), PmdEntry::None);
                tree.count(-1);
                let span = VirtRange::new(VirtAddr::new(start), VirtAddr::new(end));
                gather.table(child, span.unwrap_or(range));
            }
        }
    }

    /// Shows `visit` every table and every used entry of `space`, in address order. Takes no lock: an entry that
    /// changes meanwhile is seen before or after. The caller keeps tables from being freed (mmap lock).
    pub(crate) fn visit_tables(&self, tree: &PageTables, visit: &mut dyn FnMut(Visit)) {
        self.visit_table(Level::Pgd, tree.root(), 0, visit);
    }

    fn visit_table(&self, level: Level, pfn: Pfn, base: u64, visit: &mut dyn FnMut(Visit)) {
        visit(Visit::Table(level, pfn));
        if level == Level::Pmd {
            self.deposited(pfn)
                .for_each(|table| visit(Visit::Deposited { of: pfn, table }));
        }
        let entries = if level == Level::Pgd {
            USER_ENTRIES
        } else {
            ENTRIES
        };
        let table = self.table(pfn);
        for index in 0..entries {
            let start = base + index as u64 * level.entry_bytes();
            let addr = VirtAddr::new_truncate(start);
            let Some(below) = level.below() else {
                let entry = table.pte(index);
                if entry != PteEntry::None {
                    visit(Visit::Pte(addr, entry));
                }
                continue;
            };
            match table.pmd(index) {
                PmdEntry::None => {}
                PmdEntry::Table(child) => self.visit_table(below, child, start, visit),
                entry => visit(Visit::Pmd(addr, entry)),
            }
        }
    }

    /// Reads the leaf entry that translates `addr`, without locks: a snapshot for reports.
    pub(crate) fn leaf(&self, tree: &PageTables, addr: VirtAddr) -> Option<Visit> {
        let slot = self.pmd_slot(tree, addr)?;
        match self.table(slot.table).pmd(slot.index) {
            PmdEntry::None => None,
            PmdEntry::Table(table) => {
                let entry = self.table(table).pte(Level::Pte.index(addr));
                (entry != PteEntry::None).then_some(Visit::Pte(addr.align_down(PAGE_BYTES), entry))
            }
            entry => Some(Visit::Pmd(addr.align_down(PMD_SIZE), entry)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_end_at_pmd_boundaries_and_cover_the_range() {
        const HUGE: u64 = PMD_SIZE;
        let range = VirtRange::user(HUGE - PAGE_BYTES, 2 * HUGE + 2 * PAGE_BYTES).expect("a user range");
        let chunks = pmd_chunks(range).map(|chunk| (chunk.start().as_u64(), chunk.end().as_u64()));
        let whole = |n: u64| (n * HUGE, (n + 1) * HUGE);
        let expected = [
            (HUGE - PAGE_BYTES, HUGE),
            whole(1),
            whole(2),
            (3 * HUGE, 3 * HUGE + PAGE_BYTES),
        ];
        assert!(chunks.eq(expected));
    }
}
