//! F7: `mprotect`: changes the rights of areas and of the entries under them.
//!
//! A huge mapping that the range covers wholly keeps its PMD and changes as one; one that it covers partly has that
//! mapping split first. A huge entry is invalidated, flushed, then written anew, never simply overwritten: in between
//! no walker may take it for nothing (Linux f72e7dcdd252).
//!
//! Rights that grow are written into the entries at once where the page is exclusive to this process, so that no fault
//! is needed to use them (Linux 64fe24a3e05e, v6.1).
//!
//! Locks: the mmap lock for writing, inside it one table's lock at a time. Stale translations are flushed before the
//! call returns.

use crate::{
    addr::{PAGE_BYTES, Pfn, VirtRange},
    address_space::AddressSpace,
    error::MapError,
    flags::{Prot, VmaFlags},
    mapping::covered,
    memory::Memory,
    pgtable::{Gather, MigrationKind, PmdEntry, PmdSlot, PteEntry, cursor::Level},
    platform::{Platform, Stride},
    slab::Handle,
    vma::Vma,
};

impl<P: Platform> Memory<P> {
    /// Gives all pages of `range` the rights `prot`.
    ///
    /// # Errors
    /// [`MapError::NotMapped`]: part of the range is a hole; up to there the rights are changed (as Linux does).
    /// [`MapError::NoSpace`]: an area would become more data than the process may have; up to there the rights are
    /// changed, too. [`MapError::NoSpace`], [`MapError::NoMemory`]: an area could not be cut; no right changed.
    pub fn mprotect(&self, space: &AddressSpace, range: VirtRange, prot: Prot) -> Result<(), MapError> {
        let _mmap = space.lock().write(self.platform());
        let mut mapped = covered(space, range);
        self.isolate_range(space, range)?;
        let mut gather = Gather::new(self, space.tables());
        let mut reached = range.start();
        for vma in space.areas().overlapping(range) {
            if vma.start() > reached {
                break;
            }
            reached = vma.end();
            let flags = (vma.flags() & !VmaFlags::ACCESS) | VmaFlags::from_prot(prot);
            if turns_into_too_much_data(space, vma, flags) {
                mapped = Err(MapError::NoSpace);
                break;
            }
            self.set_area_flags(space, vma, flags);
            self.protect_pages(space, vma, &mut gather);
        }
        gather.finish();
        self.merge_range(space, range);
        mapped
    }

    fn protect_pages(&self, space: &AddressSpace, vma: Handle<Vma>, gather: &mut Gather<'_, P>) {
        self.for_each_pmd(space.tables(), vma.range(), &mut |slot, chunk| {
            if chunk != slot.span {
                self.split_pmd_slot(space, slot);
            }
            // A split of the page itself needs no mmap lock: it may make a table of a huge entry in between.
            if !self.protect_huge(space, vma, slot)
                && let PmdEntry::Table(table) = self.table(slot.table).pmd(slot.index)
            {
                self.protect_ptes(table, vma, chunk, gather);
            }
        });
    }

    /// Changes a huge entry; returns false if it is none.
    fn protect_huge(&self, space: &AddressSpace, vma: Handle<Vma>, slot: PmdSlot) -> bool {
        let pmds = self.lock_table(slot.table);
        let (pfn, prot, marks) = match pmds.pmd(slot.index) {
            PmdEntry::Huge { pfn, prot, marks, .. } => (pfn, prot, marks),
            PmdEntry::Migration { pfn, kind, marks } => {
                let kind = kind_allowed(vma, kind);
                pmds.set_pmd(slot.index, PmdEntry::Migration { pfn, kind, marks });
                return true;
            }
            PmdEntry::None | PmdEntry::Table(_) => return false,
        };
        let wanted = self.rights_of_entry(self.pages().page(pfn), vma, (prot, marks));
        if wanted == prot {
            return true;
        }
        let PmdEntry::Huge { marks, .. } = self.invalidate_pmd(space, &pmds, slot) else {
            unreachable!("a huge entry stays one while its lock is held")
        };
        pmds.set_pmd(
            slot.index,
            PmdEntry::Huge {
                pfn,
                prot: wanted,
                marks,
                valid: true,
            },
        );
        true
    }

    fn protect_ptes(&self, table: Pfn, vma: Handle<Vma>, chunk: VirtRange, gather: &mut Gather<'_, P>) {
        let ptes = self.lock_table(table);
        let mut addr = chunk.start();
        while addr < chunk.end() {
            let index = Level::Pte.index(addr);
            match ptes.pte(index) {
                PteEntry::None => {}
                PteEntry::Migration { pfn, kind, marks } => {
                    let kind = kind_allowed(vma, kind);
                    ptes.set_pte(index, PteEntry::Migration { pfn, kind, marks });
                }
                PteEntry::Present { pfn, prot, marks } => {
                    let wanted = self.rights_of_entry(self.pages().page(pfn), vma, (prot, marks));
                    if wanted != prot {
                        let entry = PteEntry::Present {
                            pfn,
                            prot: wanted,
                            marks,
                        };
                        self.set_pte_keeping_marks(&ptes, index, entry);
                        gather.stale(VirtRange::page(addr), Stride::Page);
                    }
                }
            }
            addr += PAGE_BYTES;
        }
    }
}

/// Whether the process has all the data that it may have, and these flags make the area data too.
fn turns_into_too_much_data(space: &AddressSpace, vma: Handle<Vma>, flags: VmaFlags) -> bool {
    let pages = vma.range().nr_pages();
    flags.contains(VmaFlags::WRITE) && !space.may_expand(flags, pages) && space.may_expand(vma.flags(), pages)
}

/// What the entry of a page that is being moved may become again in `vma`: a right to write that the area does not
/// give is lost, and comes back by a fault.
fn kind_allowed(vma: Handle<Vma>, kind: MigrationKind) -> MigrationKind {
    if kind == MigrationKind::Write && !vma.prot().contains(Prot::WRITE) {
        MigrationKind::ReadExclusive
    } else {
        kind
    }
}
