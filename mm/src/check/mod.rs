//! F9: the whole-memory checker: recounts everything that is counted, and looks for what belongs to nobody.
//!
//! ```text
//!   free lists, magazines ─┐
//!   page tables of spaces ─┤                      one pass over all frames
//!   LRU, deferred queue   ─┼──> a Tally per frame ───────────────────────────> first Violation, or none
//!   owners outside mm     ─┘    (references, PTEs, PMDs, where it was seen)
//! ```
//! Everything that may lead to a frame is walked once and leaves a mark in the frame's [`Tally`]; then each record is
//! compared with its tally. So the cost is linear in memory and mappings, and nothing is allocated: the caller lends
//! the tallies.
//!
//! Call it at quiet points: no operation of `mm` is under way on any CPU, nothing is being migrated. It takes the locks
//! of lists one at a time, reads everything else without locks and changes nothing.
//!
//! | rule | what is compared |
//! |---|---|
//! | I1 | a tail has no references and no mapping of its own, and leads to a head that spans it |
//! | I2 | a head's references: one per PMD, one per PTE of any subpage, one per owner |
//! | I3 I4 I6 | each subpage's mapcount, the compound and total mapcounts |
//! | I5 | DOUBLE_MAP while PMDs and PTEs map the folio together, and only while a PMD does |
//! | I7 | `nr_anon_pages`, `nr_anon_transparent_hugepages` |
//! | I8 | members of the deferred split queue: each fit to be split, each partly unmapped huge page among them |
//! | I9 | one deposited table per huge mapping |
//! | I10 | no migration entry, no invalidated huge entry is left behind |
//! | I11 | a free frame: on one list, once, merged, without references, mappings or flags, contents untouched |
//! | I13 | resident pages, tables, areas of each address space |
//! | - | what is exclusive is mapped once at the most; who pins has a reference |
//!
//! I12 is about translation caches, which only the platform sees; the simulated machine checks it.
//!
//! `walk` is the first pass, `compare` the second, `violation` what they say.

mod compare;
#[cfg(feature = "sabotage")]
mod damage;
mod violation;
mod walk;

#[cfg(feature = "sabotage")]
pub use damage::Damage;
use violation::sum_violation;
pub use violation::{Rule, Snapshot, Violation};

use crate::{
    addr::{Pfn, to_usize},
    address_space::AddressSpace,
    memory::Memory,
    order::Order,
    page::Page,
    platform::Platform,
};

/// What the walks found out about one frame. The caller lends one per frame; any value will do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// References that something found holds; those to a compound page are with its head.
    refs: u32,
    /// PTEs that map this frame.
    ptes: u32,
    /// PMD entries that map the huge page that starts here.
    pmds: u32,
    seen: Seen,
}

bitflags::bitflags! {
    /// Where a frame was found.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    struct Seen: u32 {
        /// In a block on a free list, or in a magazine.
        const FREE = 1 << 0;
        /// A page table of some space.
        const TABLE = 1 << 1;
        /// On an LRU list.
        const LRU = 1 << 2;
        /// On the deferred split queue.
        const QUEUED = 1 << 3;
        /// In a block that an owner outside `mm` named.
        const OWNED = 1 << 4;
    }
}

/// Where the checker keeps its tallies. A slice will do; a kernel without so long a slice puts pieces together.
pub trait Scratch {
    /// The tally of a frame below [`Platform::frames`].
    fn tally(&mut self, pfn: Pfn) -> &mut Tally;
}

impl Scratch for [Tally] {
    fn tally(&mut self, pfn: Pfn) -> &mut Tally {
        &mut self[pfn.index()]
    }
}

/// Names what others hold, so that the sums come out exact.
pub trait Owners {
    /// Visits every block from [`Memory::alloc_pages`] that has not been freed.
    fn for_each_block(&self, visit: &mut dyn FnMut(Pfn, Order));

    /// Visits a page of the folio for every reference to a folio that somebody outside `mm` holds.
    fn for_each_reference(&self, visit: &mut dyn FnMut(Pfn)) {
        let _ = visit;
    }
}

/// Nobody holds anything.
impl Owners for () {
    fn for_each_block(&self, _: &mut dyn FnMut(Pfn, Order)) {}
}

/// Checks everything. `spaces` are all address spaces there are; `owners` names what `mm` cannot see; `scratch` has a
/// tally for every frame.
///
/// # Errors
/// The first rule found broken. Nothing is changed in any case.
pub fn check<P: Platform, S: Scratch + ?Sized>(
    mem: &Memory<P>,
    spaces: &[&AddressSpace],
    owners: &dyn Owners,
    scratch: &mut S,
) -> Result<(), Violation> {
    let mut checker = Checker {
        mem,
        scratch,
        sums: Sums::default(),
    };
    checker.clear();
    checker.free_lists()?;
    checker.magazines()?;
    checker.lru()?;
    checker.deferred_queue()?;
    checker.owners(owners)?;
    for (nth, space) in spaces.iter().enumerate() {
        checker.space(space)?;
        checker.areas(space, &spaces[..nth])?;
    }
    checker.frames()?;
    checker.counters(spaces)
}

/// What is summed up on the way.
#[derive(Default)]
struct Sums {
    free: u64,
    managed: u64,
    anon_pages: u64,
    anon_thps: u64,
    tables: u64,
    slabs: u64,
    slab_objects: u64,
    lru: [u64; 3],
    isolated: u64,
    areas: u64,
    anon_vmas: u64,
}

struct Checker<'c, P: Platform, S: Scratch + ?Sized> {
    mem: &'c Memory<P>,
    scratch: &'c mut S,
    sums: Sums,
}

impl<'c, P: Platform, S: Scratch + ?Sized> Checker<'c, P, S> {
    fn all_frames(&self) -> impl Iterator<Item = Pfn> + use<P, S> {
        (0..self.mem.pages().frames()).map(Pfn::new)
    }

    fn page(&self, pfn: Pfn) -> Result<Page<'c>, Violation> {
        let found = u64::from(pfn.raw());
        let limit = u64::from(self.mem.pages().frames());
        self.mem
            .pages()
            .get(pfn)
            .ok_or_else(|| sum_violation(Rule::NotMemory, limit, found))
    }
}

const _: () = assert!(size_of::<Tally>() == 16);

const _: () = {
    // The checker's indices into tallies are frame numbers.
    assert!(to_usize(u32::MAX as u64) == u32::MAX as usize);
};
