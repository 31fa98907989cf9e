//! From a folio to everything that may map it.
//!
//! ```text
//!   folio: index 100 … 611          area A: indices  50 … 900  ->  one place, 512 pages
//!                                   area B: indices 300 … 400  ->  one place, subpages 200 … 300
//!                                   area C: indices 700 … 800  ->  none
//! ```
//! Locks: the anon_vma's lock, held by the caller for as long as the walk lasts. It keeps the areas and their page
//! tables; which entries there are, the walker finds out under each table's lock.

use crate::{
    addr::{PAGE_BYTES, VirtAddr, VirtRange},
    anon_vma::AnonVma,
    memory::Memory,
    page::Page,
    pgtable::{
        PmdEntry, PteEntry,
        cursor::{Level, pmd_chunks},
    },
    platform::Platform,
    slab::Handle,
    trace::Event,
    vma::Vma,
};

/// A part of a folio and where an area may map it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// The area.
    pub(crate) vma: Handle<Vma>,
    /// Where, in the area's address space.
    pub(crate) range: VirtRange,
}

/// A level at which something is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MappedBy {
    /// One entry maps the whole folio.
    Pmd,
    /// An entry maps this base page of it.
    Pte,
    /// An entry says that it is being moved.
    Migration,
}

/// One entry that maps a folio, or a part of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The root of the page tables in which the entry is.
    pub root: crate::addr::Pfn,
    /// The address that it maps.
    pub addr: VirtAddr,
    /// How.
    pub by: MappedBy,
}

impl<P: Platform> Memory<P> {
    /// Shows `visit` every place where the `nr` pages from `first`, linear index `index`, may be mapped. The lock of
    /// `anon_vma` is held.
    pub(crate) fn for_each_place(
        &self,
        anon_vma: &AnonVma,
        index: u64,
        nr: u32,
        visit: &mut dyn FnMut(Place),
    ) {
        if P::TRACE {
            self.platform().trace(Event::RmapWalk { index });
        }
        self.for_each_area_of(anon_vma, &mut |vma| {
            let area_first = vma.linear_index(vma.start());
            let (from, to) = (index.max(area_first), index + u64::from(nr));
            let to = to.min(area_first + vma.range().nr_pages());
            if from >= to {
                return;
            }
            let start = vma.start() + (from - area_first) * PAGE_BYTES;
            let range = VirtRange::new(start, start + (to - from) * PAGE_BYTES);
            visit(Place {
                vma,
                range: range.unwrap_or_else(|| unreachable!("from < to")),
            });
        });
    }

    /// Shows `visit` every entry that maps the folio which `page` is part of: for reports. The caller holds a
    /// reference. Takes the anon_vma's lock for reading.
    pub fn for_each_mapping(&self, page: Page<'_>, visit: &mut dyn FnMut(Mapping)) {
        let head = page.head();
        let Some(anon_vma) = self.anon_vma_of(head) else {
            return;
        };
        let _lock = anon_vma.lock().read(self.platform());
        let nr = head.compound_order().nr_pages();
        let is_ours = |pfn: crate::addr::Pfn| pfn >= head.pfn() && pfn.since(head.pfn()) < nr;
        self.for_each_place(&anon_vma, head.index(), nr, &mut |place| {
            let tables = place.vma.space();
            let root = tables.root();
            for chunk in pmd_chunks(place.range) {
                let Some(slot) = self.pmd_slot(tables.tables(), chunk.start()) else {
                    continue;
                };
                match self.lock_table(slot.table).pmd(slot.index) {
                    PmdEntry::Huge { pfn, .. } if is_ours(pfn) => {
                        visit(Mapping {
                            root,
                            addr: slot.span.start(),
                            by: MappedBy::Pmd,
                        });
                    }
                    PmdEntry::Migration { pfn, .. } if is_ours(pfn) => {
                        visit(Mapping {
                            root,
                            addr: slot.span.start(),
                            by: MappedBy::Migration,
                        });
                    }
                    PmdEntry::Table(table) => {
                        let ptes = self.table(table);
                        for addr in pages(chunk) {
                            let by = match ptes.pte(Level::Pte.index(addr)) {
                                PteEntry::Present { pfn, .. } if is_ours(pfn) => MappedBy::Pte,
                                PteEntry::Migration { pfn, .. } if is_ours(pfn) => MappedBy::Migration,
                                _ => continue,
                            };
                            visit(Mapping { root, addr, by });
                        }
                    }
                    _ => {}
                }
            }
        });
    }
}

/// The addresses of the pages of a range.
pub(crate) fn pages(range: VirtRange) -> impl Iterator<Item = VirtAddr> {
    (0..range.nr_pages()).map(move |i| range.start() + i * PAGE_BYTES)
}
