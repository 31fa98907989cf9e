//! F7: forgets which pages were used, or written, so that the next look tells what was since.
//!
//! | what | entries | pages | the next write |
//! |---|---|---|---|
//! | referenced | accessed mark cleared | `REFERENCED` cleared | is nothing special |
//! | soft-dirty | soft-dirty mark and right to write cleared | - | faults, and leaves the mark again |
//!
//! A new area is soft-dirty as a whole, whatever its entries say; so is one that absorbs another which is.
//!
//! Locks: the mmap lock, for writing where areas change; inside it one table's lock at a time. Stale translations are
//! flushed before the call returns.
//!
//! Origin: Linux `clear_refs_write` as of v6.1. Differs: an entry of a page that is being moved loses its right to
//! write too, so that no write after the move goes unnoticed.

use crate::{
    addr::VirtRange,
    address_space::AddressSpace,
    flags::{PageFlags, Prot, VmaFlags},
    memory::Memory,
    pgtable::{Gather, MigrationKind, PmdEntry, PteEntry, cursor::Level, entry::Marks},
    platform::{Platform, Stride},
    rmap::walk::pages,
    zap::user_range,
};

/// What to forget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClearRefs {
    /// Which pages were used.
    Referenced,
    /// Which pages were written.
    SoftDirty,
    /// How many pages were resident at most.
    PeakRss,
}

impl ClearRefs {
    fn marks(self, marks: Marks) -> Marks {
        match self {
            Self::Referenced => marks.old(),
            Self::SoftDirty => Marks {
                soft_dirty: false,
                ..marks
            },
            Self::PeakRss => marks,
        }
    }

    fn prot(self, prot: Prot) -> Prot {
        if self == Self::SoftDirty {
            prot.write_protected()
        } else {
            prot
        }
    }

    fn kind(self, kind: MigrationKind) -> MigrationKind {
        match (self, kind) {
            (Self::SoftDirty, MigrationKind::Write) => MigrationKind::ReadExclusive,
            _ => kind,
        }
    }

    fn of_pte(self, entry: PteEntry) -> PteEntry {
        match entry {
            PteEntry::None => entry,
            PteEntry::Present { pfn, prot, marks } => PteEntry::Present {
                pfn,
                prot: self.prot(prot),
                marks: self.marks(marks),
            },
            PteEntry::Migration { pfn, kind, marks } => PteEntry::Migration {
                pfn,
                kind: self.kind(kind),
                marks: self.marks(marks),
            },
        }
    }

    fn of_pmd(self, entry: PmdEntry) -> PmdEntry {
        match entry {
            PmdEntry::None | PmdEntry::Table(_) => entry,
            PmdEntry::Huge {
                pfn,
                prot,
                marks,
                valid,
            } => PmdEntry::Huge {
                pfn,
                prot: self.prot(prot),
                marks: self.marks(marks),
                valid,
            },
            PmdEntry::Migration { pfn, kind, marks } => PmdEntry::Migration {
                pfn,
                kind: self.kind(kind),
                marks: self.marks(marks),
            },
        }
    }
}

impl<P: Platform> Memory<P> {
    /// Forgets it for all of `space`. A page that is pinned stays soft-dirty: who holds it may write to it without a
    /// fault.
    pub fn clear_refs(&self, space: &AddressSpace, what: ClearRefs) {
        match what {
            ClearRefs::PeakRss => space.reset_peak_rss(),
            ClearRefs::Referenced => {
                let _mmap = space.lock().read(self.platform());
                self.clear_entries(space, what);
            }
            ClearRefs::SoftDirty => {
                let _mmap = space.lock().write(self.platform());
                for vma in space.areas().overlapping(user_range()) {
                    self.set_area_flags(space, vma, vma.flags() & !VmaFlags::SOFTDIRTY);
                }
                self.clear_entries(space, what);
            }
        }
    }

    fn clear_entries(&self, space: &AddressSpace, what: ClearRefs) {
        let mut gather = Gather::new(self, space.tables());
        self.for_each_pmd(space.tables(), user_range(), &mut |slot, chunk| {
            let pmds = self.lock_table(slot.table);
            match pmds.pmd(slot.index) {
                PmdEntry::None => {}
                PmdEntry::Table(table) => {
                    drop(pmds);
                    self.clear_ptes(table, chunk, what, &mut gather);
                }
                PmdEntry::Huge { pfn, .. } | PmdEntry::Migration { pfn, .. } => {
                    if self.forgets(self.pages().page(pfn), what)
                        && pmds.update_pmd(slot.index, &|entry| what.of_pmd(entry))
                    {
                        gather.stale(chunk, Stride::Pmd);
                    }
                }
            }
        });
        gather.finish();
    }

    fn clear_ptes(
        &self,
        table: crate::addr::Pfn,
        chunk: VirtRange,
        what: ClearRefs,
        gather: &mut Gather<'_, P>,
    ) {
        let ptes = self.lock_table(table);
        for addr in pages(chunk) {
            let index = Level::Pte.index(addr);
            let (PteEntry::Present { pfn, .. } | PteEntry::Migration { pfn, .. }) = ptes.pte(index) else {
                continue;
            };
            if self.forgets(self.pages().page(pfn), what)
                && ptes.update_pte(index, &|entry| what.of_pte(entry))
            {
                gather.stale(VirtRange::page(addr), Stride::Page);
            }
        }
    }

    /// Makes the page forget its part; returns whether its entries may, too.
    fn forgets(&self, page: crate::page::Page<'_>, what: ClearRefs) -> bool {
        let head = page.head();
        if what == ClearRefs::Referenced && head.has(PageFlags::REFERENCED) {
            head.clear_flags(PageFlags::REFERENCED);
        }
        what != ClearRefs::SoftDirty || !page.maybe_pinned()
    }
}
