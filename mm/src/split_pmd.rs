//! F7: turns one PMD mapping of a huge page into a table of 512 PTEs. Cannot fail.
//!
//! ```text
//!   PMD: Huge(pfn)          PMD: invalid, PS kept        PMD: Table(t)
//!                    ──>    CPUs flushed          ──>    t: pfn, pfn+1, … pfn+511, same rights
//!   t deposited             t withdrawn, filled
//! ```
//! The page itself stays one compound page, and other page tables go on mapping it by PMD. Nothing is allocated (the
//! table was deposited when the huge page was mapped), no page lock is needed, and pins do not matter: a pin is a
//! reference to the folio, and the folio does not change.
//!
//! Between "invalid" and "Table" the hardware has no translation, so no CPU ever holds a 2 MiB and a 4 KiB translation
//! of one address (invariant I12), and the accessed and dirty bits are read when nobody can set them any more.
//!
//! Locks: mmap lock held (reading is enough); takes the PMD table's lock, inside it the folio's mapcount lock.
//!
//! Origin: Linux eef1b3ba053a (v4.5) thp: implement split_huge_pmd(); differs: one batch under the mapcount lock
//! instead of 512 atomics.

use crate::{
    addr::{ENTRIES, HPAGE_PAGES, PAGE_SHIFT, Pfn, VirtAddr},
    address_space::AddressSpace,
    counter::Counter,
    flags::{PageFlags, Prot},
    memory::Memory,
    pgtable::{
        PmdEntry, PmdSlot, PtLock, PteEntry, RawPmd,
        entry::{Marks, MigrationKind},
    },
    platform::{Platform, Stride},
    trace::Event,
};

impl<P: Platform> Memory<P> {
    /// Splits the huge mapping around `addr`, if there is one. Doing it twice is doing it once.
    pub fn split_huge_pmd(&self, space: &AddressSpace, addr: VirtAddr) {
        let _mmap = space.lock().read(self.platform());
        if let Some(slot) = self.pmd_slot(space.tables(), addr) {
            self.split_pmd_slot(space, slot);
        }
    }

    /// Splits the mapping in `slot` if it is huge. The mmap lock is held.
    pub(crate) fn split_pmd_slot(&self, space: &AddressSpace, slot: PmdSlot) {
        let pmds = self.lock_table(slot.table);
        match pmds.pmd(slot.index) {
            PmdEntry::None | PmdEntry::Table(_) => {}
            PmdEntry::Huge { pfn, .. } if self.is_zero_page(self.pages().page(pfn)) => {
                self.split_zero(space, pmds, slot, pfn);
            }
            PmdEntry::Huge { pfn, .. } => self.split_present(space, &pmds, slot, pfn),
            PmdEntry::Migration { pfn, kind, marks } => self.split_migration(&pmds, slot, (pfn, kind, marks)),
        }
    }

    fn split_present(&self, space: &AddressSpace, pmds: &PtLock<'_, P>, slot: PmdSlot, pfn: Pfn) {
        self.add(Counter::ThpSplitPmd, 1);
        if P::TRACE {
            self.platform().trace(Event::SplitPmd { pfn });
        }
        let old = self.invalidate_pmd(space, pmds, slot);
        let PmdEntry::Huge { pfn, prot, marks, .. } = old else {
            unreachable!("a huge entry stays one while its lock is held")
        };
        let head = self.pages().page(pfn);
        if marks.dirty {
            head.set_flags(PageFlags::DIRTY);
        }
        // Each PTE will hold a reference; the PMD's own becomes the first of them.
        self.get_refs(head, HPAGE_PAGES - 1);
        let table = self.withdraw_table(pmds);
        // Neighbouring entries differ in their frame number alone.
        let first = PteEntry::Present { pfn, prot, marks }.encode().0;
        self.table(table).fill(|i| first + (i << PAGE_SHIFT));
        self.rmap_split_pmd(head);
        // What PTEs map of a huge page is not locked into memory: no one of them could let go of it.
        if head.has(PageFlags::MLOCKED) {
            self.munlock_page(head);
        }
        // Release: whoever finds the table finds it filled.
        pmds.set_pmd(slot.index, PmdEntry::Table(table));
    }

    /// The huge zero page: 512 times the small one, to be read only. Its reference goes after the flush.
    fn split_zero(&self, space: &AddressSpace, pmds: PtLock<'_, P>, slot: PmdSlot, huge: Pfn) {
        self.add(Counter::ThpSplitPmd, 1);
        // With the rights that it had: they may have been taken away.
        let prot = match self.invalidate_pmd(space, &pmds, slot) {
            PmdEntry::Huge { prot, .. } => prot,
            _ => Prot::empty(),
        };
        let table = self.withdraw_table(&pmds);
        let zero = PteEntry::Present {
            pfn: self.zero_pages().small(),
            prot,
            marks: Marks::READ,
        };
        self.table(table).fill(|_| zero.encode().0);
        pmds.set_pmd(slot.index, PmdEntry::Table(table));
        drop(pmds);
        self.put_refs(self.pages().page(huge), 1);
    }

    /// A page that is being moved: the table holds migration entries of the same kind for its parts.
    fn split_migration(
        &self,
        pmds: &PtLock<'_, P>,
        slot: PmdSlot,
        (pfn, kind, marks): (Pfn, MigrationKind, Marks),
    ) {
        self.add(Counter::ThpSplitPmd, 1);
        let table = self.withdraw_table(pmds);
        let ptes = self.table(table);
        for i in 0..HPAGE_PAGES {
            ptes.set_pte(
                i as usize,
                PteEntry::Migration {
                    pfn: pfn.offset(i),
                    kind,
                    marks,
                },
            );
        }
        pmds.set_pmd(slot.index, PmdEntry::Table(table));
    }

    /// Hides a huge entry from the hardware and waits until no CPU uses it; returns what it was, with the marks the
    /// hardware had set by then.
    pub(crate) fn invalidate_pmd(
        &self,
        space: &AddressSpace,
        pmds: &PtLock<'_, P>,
        slot: PmdSlot,
    ) -> PmdEntry {
        let before = pmds.pmd(slot.index);
        let PmdEntry::Huge { pfn, prot, marks, .. } = before else {
            return before;
        };
        let hidden = PmdEntry::Huge {
            pfn,
            prot,
            marks,
            valid: false,
        };
        let hidden = if crate::sabotage::sabotage!(self, TransientNonePmd) {
            RawPmd::NONE
        } else {
            hidden.encode()
        };
        let at_swap = RawPmd(pmds.swap(slot.index, hidden.0)).decode();
        self.platform().flush_tlb(space.cpus(), slot.span, Stride::Pmd);
        // Until the flush a CPU that has the translation may still have set a mark in the hidden entry.
        let PmdEntry::Huge { marks: late, .. } = pmds.pmd(slot.index) else {
            return at_swap;
        };
        let PmdEntry::Huge {
            pfn,
            prot,
            marks,
            valid,
        } = at_swap
        else {
            return at_swap;
        };
        PmdEntry::Huge {
            pfn,
            prot,
            marks: marks.union(late),
            valid,
        }
    }
}

const _: () = assert!(ENTRIES == HPAGE_PAGES as usize);
