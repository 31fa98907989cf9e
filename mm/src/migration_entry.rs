//! F7: entries that say "this page is being moved": put in place of mappings, and turned into mappings again.
//!
//! ```text
//!   Present(pfn, W)  ──install──>  Migration(pfn, Write)          ──remove──>  Present(pfn or another, W)
//!   Present(pfn, r)                Migration(pfn, ReadExclusive)               Present(…, r), page exclusive
//!                                  Migration(pfn, Read)                        Present(…, r)
//! ```
//! A migration entry names the page that moves. It holds no mapping and no reference, but it counts as resident: rss
//! does not change. While an entry stands, a fault on it waits; `fork` copies it and makes it `Read` on both sides;
//! `mprotect` takes `Write` from it; zapping only clears it. That the page is exclusive to one process is remembered by
//! the entry alone meanwhile, so that `fork` can end it there.
//!
//! The accessed and dirty bits travel in the entry. Whether a mapping becomes writable again is decided when it is made,
//! under its table's lock, by the entry *and* by what the area allows at that moment (Linux d3cb8bf6081b is the story of
//! asking the entry alone): losing the right costs a fault, granting too much breaks `mprotect`.
//!
//! Locks: the caller holds the folio lock of the page that moves, a reference to it, and the anon_vma's lock, for
//! reading or writing; takes one table's lock at a time, and takes it even where the entry looks empty: whoever has just
//! cleared an entry may not have changed the counts yet (C5). Nothing is allocated.
//!
//! Origin: Linux `try_to_migrate`, `remove_migration_ptes` as of v6.1; S16, S17. Differs: works in runs of entries.

use crate::{
    addr::{Pfn, VirtRange},
    address_space::AddressSpace,
    flags::{PageFlags, Prot},
    memory::Memory,
    order::{Order, PMD_ORDER},
    page::Page,
    pgtable::{
        MigrationKind, PmdEntry, PmdSlot, PteEntry, RawPte,
        cursor::{Level, pmd_chunks},
        entry::Marks,
    },
    platform::{Platform, Stride},
    rmap::{
        Run,
        walk::{Place, pages},
    },
    slab::Handle,
    vma::Vma,
};

/// What becomes of a PMD that maps the page whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WholePmd {
    /// One migration entry of its own size: the page stays whole.
    Keep,
    /// It is split first: the page is about to be.
    Split,
}

/// A page that moved, or did not: where entries that name a frame of it lead now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Move<'a> {
    from: Pfn,
    nr: u32,
    to: Page<'a>,
}

impl<'a> Move<'a> {
    /// The `nr` frames from `from` are now those from `to`.
    pub(crate) fn new(from: Pfn, nr: u32, to: Page<'a>) -> Self {
        Self { from, nr, to }
    }

    /// Where what was in `pfn` is now; `None` if it is not of this page.
    fn target(&self, pfn: Pfn) -> Option<Page<'a>> {
        (pfn >= self.from && pfn.since(self.from) < self.nr).then(|| self.to.offset(pfn.since(self.from)))
    }
}

impl<P: Platform> Memory<P> {
    /// Replaces every entry in `place` that maps part of the folio at `head` by one that says it is being moved.
    pub(crate) fn install_migration_entries(&self, head: Page<'_>, place: Place, whole: WholePmd) {
        let space = place.vma.space();
        for chunk in pmd_chunks(place.range) {
            let Some(slot) = self.pmd_slot(space.tables(), chunk.start()) else {
                continue;
            };
            if whole == WholePmd::Split
                && matches!(self.table(slot.table).pmd(slot.index), PmdEntry::Huge { pfn, .. } if pfn == head.pfn())
            {
                self.split_pmd_slot(&space, slot);
            }
            if let Some(table) = self.install_in_pmd(head, &space, slot) {
                self.install_in_ptes(head, &space, table, chunk);
            }
        }
    }

    /// Replaces a PMD entry that maps the page whole. Returns the table, if there is one to go on with.
    fn install_in_pmd(&self, head: Page<'_>, space: &AddressSpace, slot: PmdSlot) -> Option<Pfn> {
        let pmds = self.lock_table(slot.table);
        match pmds.pmd(slot.index) {
            PmdEntry::Table(table) => return Some(table),
            PmdEntry::Huge { pfn, .. } if pfn == head.pfn() => {}
            _ => return None,
        }
        let PmdEntry::Huge { pfn, prot, marks, .. } = self.invalidate_pmd(space, &pmds, slot) else {
            unreachable!("a huge entry stays one while its lock is held")
        };
        let kind = kind_of(head, prot);
        note_dirty(head, marks);
        pmds.set_pmd(slot.index, PmdEntry::Migration { pfn, kind, marks });
        self.rmap_remove_pmd_for_migration(head);
        put_entry_refs(head, 1);
        None
    }

    fn install_in_ptes(&self, head: Page<'_>, space: &AddressSpace, table: Pfn, chunk: VirtRange) {
        let ptes = self.lock_table(table);
        let mut batch: Option<Run<'_>> = None;
        let mut removed = 0;
        let remove = |run: Option<Run<'_>>| {
            if let Some(run) = run {
                self.rmap_remove_ptes_for_migration(run);
            }
        };
        for addr in pages(chunk) {
            let slot = Level::Pte.index(addr);
            let PteEntry::Present { pfn, .. } = ptes.pte(slot) else {
                continue;
            };
            let page = self.pages().page(pfn);
            if page.head() != head {
                continue;
            }
            let PteEntry::Present { prot, marks, .. } = RawPte(ptes.swap(slot, hidden(page))).decode() else {
                continue;
            };
            let kind = kind_of(page, prot);
            note_dirty(head, marks);
            ptes.set_pte(slot, PteEntry::Migration { pfn, kind, marks });
            removed += 1;
            batch = Some(match batch.take() {
                Some(run) if run.is_followed_by(page) => run.grown(),
                full => {
                    remove(full);
                    Run::of(page)
                }
            });
        }
        remove(batch);
        if removed > 0 {
            self.platform().flush_tlb(space.cpus(), chunk, Stride::Page);
            put_entry_refs(head, removed);
        }
    }

    /// Makes every entry in `place` that names a frame of the page which moved a mapping again, of where the page is
    /// now. Returns how many base pages of it no entry mapped before.
    pub(crate) fn remove_migration_entries(&self, moved: Move<'_>, place: Place) -> u32 {
        let space = place.vma.space();
        let mut fresh = 0;
        for chunk in pmd_chunks(place.range) {
            let Some(slot) = self.pmd_slot(space.tables(), chunk.start()) else {
                continue;
            };
            let pmds = self.lock_table(slot.table);
            match pmds.pmd(slot.index) {
                PmdEntry::Table(table) => {
                    drop(pmds);
                    fresh += self.remove_from_ptes(moved, place.vma, table, chunk);
                }
                PmdEntry::Migration { pfn, kind, marks } => {
                    let Some(head) = moved.target(pfn) else { continue };
                    crate::vm_assert!(
                        head.compound_order() == PMD_ORDER,
                        "{head:?}: a PMD entry leads to a base page"
                    );
                    self.get_refs(head, 1);
                    fresh += self.rmap_restore_pmd(head, kind != MigrationKind::Read);
                    self.mlock_mapped(head, place.vma);
                    let (pfn, prot) = (head.pfn(), rights_again(place.vma, kind));
                    let valid = true;
                    pmds.set_pmd(
                        slot.index,
                        PmdEntry::Huge {
                            pfn,
                            prot,
                            marks,
                            valid,
                        },
                    );
                }
                PmdEntry::None | PmdEntry::Huge { .. } => {}
            }
        }
        fresh
    }

    fn remove_from_ptes(&self, moved: Move<'_>, vma: Handle<Vma>, table: Pfn, chunk: VirtRange) -> u32 {
        let ptes = self.lock_table(table);
        let mut batch: Option<(Run<'_>, bool)> = None;
        let mut fresh = 0;
        let mut restore = |batch: Option<(Run<'_>, bool)>| {
            if let Some((run, exclusive)) = batch {
                self.get_refs(run.head, run.nr);
                fresh += self.rmap_restore_ptes(run, exclusive);
                if run.head.compound_order() == Order::ZERO {
                    self.mlock_mapped(run.head, vma);
                }
            }
        };
        for addr in pages(chunk) {
            let slot = Level::Pte.index(addr);
            let PteEntry::Migration { pfn, kind, marks } = ptes.pte(slot) else {
                continue;
            };
            let Some(page) = moved.target(pfn) else { continue };
            let exclusive = kind != MigrationKind::Read;
            batch = Some(match batch.take() {
                Some((run, same)) if same == exclusive && run.is_followed_by(page) => (run.grown(), same),
                full => {
                    restore(full);
                    (Run::of(page), exclusive)
                }
            });
            let (pfn, prot) = (page.pfn(), rights_again(vma, kind));
            ptes.set_pte(slot, PteEntry::Present { pfn, prot, marks });
        }
        restore(batch);
        fresh
    }
}

/// What an entry with these rights that maps `page` comes back as.
fn kind_of(page: Page<'_>, prot: Prot) -> MigrationKind {
    match (prot.contains(Prot::WRITE), page.is_exclusive()) {
        (true, _) => MigrationKind::Write,
        (false, true) => MigrationKind::ReadExclusive,
        (false, false) => MigrationKind::Read,
    }
}

/// The rights of a mapping that comes back: what the area allows now; to write, only if the entry allowed it too.
fn rights_again(vma: Handle<Vma>, kind: MigrationKind) -> Prot {
    let prot = vma.prot();
    if kind == MigrationKind::Write {
        prot
    } else {
        prot.write_protected()
    }
}

fn note_dirty(head: Page<'_>, marks: Marks) {
    if marks.dirty && !head.has(PageFlags::DIRTY) {
        head.set_flags(PageFlags::DIRTY);
    }
}

/// Gives back the references of entries that are gone. The caller's own keeps the folio.
fn put_entry_refs(head: Page<'_>, nr: u32) {
    let last = head.ref_sub_and_test(nr);
    crate::vm_assert!(
        !last,
        "{head:?}: a folio that is being moved lost its last reference"
    );
}

/// What stands in the entry while its marks are collected: the hardware must not see it.
fn hidden(page: Page<'_>) -> u64 {
    let (pfn, kind, marks) = (page.pfn(), MigrationKind::Read, Marks::default());
    PteEntry::Migration { pfn, kind, marks }.encode().0
}
