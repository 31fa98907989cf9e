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

use core::cell::Cell;

use crate::{
    addr::{HPAGE_PAGES, PAGE_BYTES, Pfn, VirtRange, to_usize},
    address_space::AddressSpace,
    counter::Counter,
    flags::{PageFlags, Prot},
    memory::Memory,
    order::{Order, PMD_ORDER},
    page::Page,
    pgtable::{
        MigrationKind, PmdEntry, PmdSlot, PteEntry,
        cursor::{Level, pmd_chunks},
        entry::Marks,
    },
    platform::{Platform, Stride},
    rmap::{Run, walk::Place},
    sabotage::sabotage,
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

/// A set of subpages.
struct Subpages([Cell<u64>; (HPAGE_PAGES as usize).div_ceil(u64::BITS as usize)]);

impl Subpages {
    fn all() -> Self {
        Self([const { Cell::new(u64::MAX) }; _])
    }

    fn none() -> Self {
        Self([const { Cell::new(0) }; _])
    }

    fn at(&self, i: u32) -> (&Cell<u64>, u64) {
        (&self.0[(i / u64::BITS) as usize], 1 << (i % u64::BITS))
    }

    fn insert(&self, i: u32) {
        let (word, bit) = self.at(i);
        word.set(word.get() | bit);
    }

    /// Takes a subpage out; returns whether it was in.
    fn remove(&self, i: u32) -> bool {
        let (word, bit) = self.at(i);
        let before = word.get();
        word.set(before & !bit);
        before & bit != 0
    }
}

/// The base pages that a huge page was just torn into. They stay frozen until the first entry leads to them again; the
/// reference of that entry, and any other, is then stored instead of added.
pub(crate) struct Parts {
    frozen: Subpages,
    /// Thawed with a reference of the splitter's besides.
    held: Subpages,
    /// References that somebody will have of each part in the end, besides the entries'.
    kept: u32,
}

impl Parts {
    /// All parts but the first are frozen; of each, the caller will have `kept` references.
    pub(crate) fn new(kept: u32) -> Self {
        let parts = Self {
            frozen: Subpages::all(),
            held: Subpages::none(),
            kept,
        };
        parts.frozen.remove(0);
        parts
    }

    /// Part `i` was thawed by other means.
    pub(crate) fn thawed(&self, i: u32) {
        self.frozen.remove(i);
    }

    /// Thaws a part to which an entry of kind `kind` will lead, with that entry's reference; false if it is thawed.
    ///
    /// An entry that is not shared is the page's only one: `fork` makes both of two shared. Of a shared page others may
    /// follow, so that it must not go away with this one.
    fn thaw(&self, i: u32, page: Page<'_>, kind: MigrationKind) -> bool {
        if !self.frozen.remove(i) {
            return false;
        }
        let shared = kind == MigrationKind::Read;
        if shared {
            self.held.insert(i);
        }
        page.ref_thaw(self.kept + 1 + u32::from(shared));
        true
    }

    /// The parts for which [`Parts::settle`] has something to do.
    pub(crate) fn unsettled(&self) -> impl Iterator<Item = u32> {
        let words = self.frozen.0.iter().zip(&self.held.0).zip((0..).step_by(64));
        words.flat_map(|((frozen, held), first)| {
            let left = frozen.get() | held.get();
            let bits = if left == 0 {
                0
            } else {
                u64::BITS.min(HPAGE_PAGES - first)
            };
            (0..bits)
                .filter(move |bit| left >> bit & 1 == 1)
                .map(move |bit| first + bit)
        })
    }

    /// After all entries: thaws part `i` if none leads to it; returns how many references the splitter has to give back.
    pub(crate) fn settle(&self, i: u32, page: Page<'_>) -> u32 {
        if self.frozen.remove(i) {
            page.ref_thaw(self.kept.max(1));
            return u32::from(self.kept == 0);
        }
        u32::from(self.held.remove(i))
    }
}

/// A page that moved, or did not: where entries that name a frame of it lead now.
#[derive(Clone, Copy)]
pub(crate) struct Move<'a> {
    from: Pfn,
    nr: u32,
    to: Page<'a>,
    parts: Option<&'a Parts>,
}

impl<'a> Move<'a> {
    /// The `nr` frames from `from` are now those from `to`.
    pub(crate) fn new(from: Pfn, nr: u32, to: Page<'a>) -> Self {
        Self {
            from,
            nr,
            to,
            parts: None,
        }
    }

    /// The huge page at `head` has become base pages.
    pub(crate) fn split(head: Page<'a>, parts: &'a Parts) -> Self {
        Self {
            parts: Some(parts),
            ..Self::new(head.pfn(), HPAGE_PAGES, head)
        }
    }

    /// Where what was in `pfn` is now; `None` if it is not of this page.
    fn target(&self, pfn: Pfn) -> Option<Page<'a>> {
        (pfn >= self.from && pfn.since(self.from) < self.nr).then(|| self.to.offset(pfn.since(self.from)))
    }

    /// Thaws `page` with the reference of an entry that will lead to it, if it is a frozen part.
    fn thaws(&self, page: Page<'_>, kind: MigrationKind) -> bool {
        self.parts
            .is_some_and(|parts| parts.thaw(page.pfn().since(self.to.pfn()), page, kind))
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
        let mut removed = 0;
        let mut addr = chunk.start();
        while addr < chunk.end() {
            let index = Level::Pte.index(addr);
            let mut nr = 1;
            if let PteEntry::Present { pfn, prot, .. } = ptes.pte(index)
                && let first = self.pages().page(pfn)
                && first.head() == head
            {
                let run = self.run_of_ptes(&ptes, index, (addr, chunk.end()), pfn);
                let kind = kind_of(first, prot);
                // Entries that may write lead to pages that are this process's alone; of others each must be asked.
                let alike = |i: &u32| kind == MigrationKind::Write || kind_of(first.offset(*i), prot) == kind;
                nr = (0..run.nr).take_while(alike).fold(0, |nr, _| nr + 1);
                note_dirty(head, ptes.hide_run(index, nr as usize, kind));
                self.rmap_remove_ptes_for_migration(Run { nr, ..run });
                removed += nr;
            }
            addr += u64::from(nr) * PAGE_BYTES;
        }
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
            #[cfg(feature = "sabotage")]
            let early = self.table(slot.table).pmd(slot.index);
            let pmds = self.lock_table(slot.table);
            match pmds.pmd(slot.index) {
                PmdEntry::Table(table) => {
                    drop(pmds);
                    fresh += self.remove_from_ptes(moved, place.vma, table, chunk);
                }
                PmdEntry::Migration { pfn, kind, marks } => {
                    // Broken: what was read before the lock was taken is believed.
                    #[cfg(feature = "sabotage")]
                    let kind = match early {
                        PmdEntry::Migration { kind: stale, .. } if sabotage!(self, StaleWriteRight) => stale,
                        _ => kind,
                    };
                    let Some(head) = moved.target(pfn) else { continue };
                    crate::vm_assert!(
                        head.compound_order() == PMD_ORDER,
                        "{head:?}: a PMD entry leads to a base page"
                    );
                    self.get_refs(head, 1);
                    fresh += self.rmap_restore_pmd(head, kind != MigrationKind::Read);
                    self.mlock_mapped(head, place.vma);
                    let (pfn, prot) = (head.pfn(), self.rights_again(place.vma, kind));
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
        let end = Level::Pte.index(chunk.start()) + to_usize(chunk.nr_pages());
        let mut index = Level::Pte.index(chunk.start());
        let mut fresh = 0;
        while index < end {
            let mut nr = 1;
            if let PteEntry::Migration { pfn, kind, .. } = ptes.pte(index)
                && let Some(page) = moved.target(pfn)
            {
                let left = moved.nr - pfn.since(moved.from);
                nr = ptes.run_length(index, (end - index).min(left as usize));
                fresh += self.restore_pages((moved, vma), page, nr, kind);
                let to = PteEntry::Present {
                    pfn: page.pfn(),
                    prot: self.rights_again(vma, kind),
                    marks: Marks::default(),
                };
                ptes.show_run(index, nr, to);
            }
            index += nr;
        }
        self.add(Counter::NrAnonPages, i64::from(fresh));
        fresh
    }

    /// References and mapcounts of the `nr` pages from `first`, which entries of kind `kind` will map again. Returns how
    /// many of them no entry mapped.
    fn restore_pages(
        &self,
        (moved, vma): (Move<'_>, Handle<Vma>),
        first: Page<'_>,
        nr: usize,
        kind: MigrationKind,
    ) -> u32 {
        let exclusive = kind != MigrationKind::Read;
        let nr = u32::try_from(nr).unwrap_or_else(|_| unreachable!("at most a table"));
        let run = Run::of(first).grown_by(nr - 1);
        if run.head.compound_order() > Order::ZERO {
            self.get_refs(run.head, nr);
            return self.rmap_restore_ptes(run, exclusive);
        }
        let restore = |i| {
            let page = first.offset(i);
            if !moved.thaws(page, kind) {
                self.get_refs(page, 1);
            }
            let fresh = self.rmap_restore_small(page, exclusive);
            self.mlock_mapped(page, vma);
            u32::from(fresh)
        };
        (0..nr).map(restore).sum()
    }

    /// The rights of a mapping that comes back: what the area allows now; to write, only if the entry allowed it too.
    fn rights_again(&self, vma: Handle<Vma>, kind: MigrationKind) -> Prot {
        let prot = vma.prot();
        if kind != MigrationKind::Write {
            return prot.write_protected();
        }
        if sabotage!(self, StaleWriteRight) {
            return prot | Prot::WRITE;
        }
        prot
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
