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
//! | I1 | a tail has no references, and leads to a head that spans it |
//! | I2 | a head's references: one per PMD, one per PTE of any subpage, one per owner |
//! | I3 I4 I6 | each subpage's mapcount, the compound and total mapcounts |
//! | I5 | DOUBLE_MAP while PMDs and PTEs map the folio together, and only while a PMD does |
//! | I7 | `nr_anon_pages`, `nr_anon_transparent_hugepages` |
//! | I8 | members of the deferred split queue |
//! | I9 | one deposited table per huge mapping |
//! | I10 | no migration entry, no invalidated huge entry is left behind |
//! | I11 | a free frame: on one list, once, merged, without references, mappings or flags, contents untouched |
//! | I13 | resident pages, tables, areas of each address space |
//!
//! I12 is about translation caches, which only the platform sees; the simulated machine checks it.

#[cfg(feature = "sabotage")]
mod damage;

use core::fmt;

#[cfg(feature = "sabotage")]
pub use damage::Damage;

use crate::{
    addr::{ENTRIES, Pfn, VirtAddr, VirtRange, to_usize},
    address_space::{AddressSpace, VmKind},
    buddy::Magazine,
    counter::Counter,
    flags::{PageFlags, Prot},
    folio::LruKind,
    memory::Memory,
    order::{Order, PMD_ORDER},
    page::{Page, PageState},
    pgtable::{PmdEntry, PteEntry, cursor::Visit},
    platform::Platform,
    vma::Vma,
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

/// Which rule was broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// I1: a tail has no references of its own.
    TailReferences,
    /// I1: tails lead to a head that spans them, and heads have all their tails.
    CompoundLinks,
    /// I2: references of a folio or block.
    References,
    /// I3: mapcount of one page.
    Mapcount,
    /// I4: PMD mappings of a folio.
    EntireMapcount,
    /// I4: all mappings of a folio.
    TotalMapcount,
    /// I5: the DOUBLE_MAP flag.
    DoubleMap,
    /// I7 and the other sums: a vmstat counter.
    Count(Counter),
    /// I8: who is on the deferred split queue.
    DeferredQueue,
    /// I9: deposited tables of one PMD table.
    DepositedTables,
    /// I10: an entry that must not outlive its operation.
    TransientEntry,
    /// I11: a free frame is on one list, once.
    FreeListed,
    /// I11: a free frame's record is clear.
    FreeRecord,
    /// I11: two free buddies are one block.
    FreeMerged,
    /// I11: nobody wrote to a free frame.
    FreeContents,
    /// The number of free pages.
    FreeCount,
    /// The number of managed pages.
    ManagedCount,
    /// A frame that is neither free nor anybody's.
    Lost,
    /// A hole or reserved frame is used by somebody.
    NotMemory,
    /// A record that was found corrupt earlier.
    BadPage,
    /// The LRU flag and the lists.
    Lru,
    /// A page table that is linked twice, or whose record does not say that it is one.
    Table,
    /// An entry outside every area, or with rights that its area does not give.
    EntryRights,
    /// A mapped page names another anon_vma or index than the area that maps it.
    Relation,
    /// I13: resident pages of a space.
    Rss,
    /// Page tables of a space.
    SpaceTables,
    /// Areas of a space: order, number, size.
    Areas,
    /// The tree of a space's areas: balance, and what it remembers of heights and gaps.
    AreaTree,
    /// Objects in the slabs.
    SlabObjects,
}

impl Rule {
    /// The invariant's name in the design, or `-` for rules without a number.
    #[must_use]
    pub const fn invariant(self) -> &'static str {
        match self {
            Self::TailReferences | Self::CompoundLinks => "I1",
            Self::References => "I2",
            Self::Mapcount => "I3",
            Self::EntireMapcount | Self::TotalMapcount => "I4",
            Self::DoubleMap => "I5",
            Self::Count(Counter::NrAnonPages | Counter::NrAnonThps) => "I7",
            Self::DeferredQueue => "I8",
            Self::DepositedTables => "I9",
            Self::TransientEntry => "I10",
            Self::FreeListed | Self::FreeRecord | Self::FreeMerged | Self::FreeContents => "I11",
            Self::Rss => "I13",
            _ => "-",
        }
    }
}

/// The record of a page at the moment of a violation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// The page.
    pub pfn: Pfn,
    /// Its own flags.
    pub flags: PageFlags,
    /// Its own reference count.
    pub refs: u32,
    /// `page_mapcount`.
    pub mapcount: u32,
    /// Its own raw mapcount.
    pub raw_mapcount: i32,
    /// Its own mapping word.
    pub mapping: u64,
    /// Its own index word.
    pub index: u64,
    /// First page of its compound page.
    pub head: Pfn,
}

impl Snapshot {
    fn of(page: Page<'_>) -> Self {
        Self {
            pfn: page.pfn(),
            flags: page.state().flags(),
            refs: page.refs_hint(),
            mapcount: page.mapcount(),
            raw_mapcount: page.raw_mapcount(),
            mapping: page.own_mapping(),
            index: page.index(),
            head: page.head().pfn(),
        }
    }
}

/// A rule that does not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// What the recount says.
    pub expected: u64,
    /// What the record or counter says.
    pub found: u64,
    /// The page that it is about, if it is about one.
    pub page: Option<Snapshot>,
    /// The address that it is about, if it is about one.
    pub addr: Option<VirtAddr>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:?}: expected {:#x}, found {:#x}",
            self.rule.invariant(),
            self.rule,
            self.expected,
            self.found
        )?;
        if let Some(addr) = self.addr {
            write!(f, " at {:#x}", addr.as_u64())?;
        }
        if let Some(page) = self.page {
            write!(
                f,
                "; page: pfn:{} refcount:{} mapcount:{} raw:{} mapping:{:#x} index:{:#x} head:{} flags:{:?}",
                page.pfn,
                page.refs,
                page.mapcount,
                page.raw_mapcount,
                page.mapping,
                page.index,
                page.head,
                page.flags
            )?;
        }
        Ok(())
    }
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
    lru: [u64; 2],
    areas: u64,
    anon_vmas: u64,
}

struct Checker<'c, P: Platform, S: Scratch + ?Sized> {
    mem: &'c Memory<P>,
    scratch: &'c mut S,
    sums: Sums,
}

/// A compound page that the pass over the frames is inside.
struct Compound {
    head: Pfn,
    end: Pfn,
    ptes: u64,
    double: bool,
    pmds: u32,
}

fn ensure(holds: bool, violation: impl FnOnce() -> Violation) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(violation()) }
}

fn sum_violation(rule: Rule, expected: u64, found: u64) -> Violation {
    Violation {
        rule,
        expected,
        found,
        page: None,
        addr: None,
    }
}

fn equal(rule: Rule, expected: u64, found: u64) -> Result<(), Violation> {
    ensure(expected == found, || sum_violation(rule, expected, found))
}

fn about(
    page: Page<'_>,
    rule: Rule,
    expected: impl Into<u64>,
    found: impl Into<u64>,
) -> Result<(), Violation> {
    let (expected, found) = (expected.into(), found.into());
    ensure(expected == found, || Violation {
        page: Some(Snapshot::of(page)),
        ..sum_violation(rule, expected, found)
    })
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

    fn clear(&mut self) {
        for pfn in self.all_frames() {
            *self.scratch.tally(pfn) = Tally::default();
        }
    }

    /// Notes that `page` was found in a place where no page may be twice.
    fn mark(&mut self, page: Page<'_>, place: Seen, rule: Rule) -> Result<(), Violation> {
        let tally = self.scratch.tally(page.pfn());
        let twice = tally.seen.contains(place);
        tally.seen |= place;
        about(page, rule, 0u32, u32::from(twice))
    }

    fn mark_free(&mut self, first: Page<'_>, order: Order) -> Result<(), Violation> {
        self.sums.free += u64::from(order.nr_pages());
        for i in 0..order.nr_pages() {
            self.mark(first.offset(i), Seen::FREE, Rule::FreeListed)?;
        }
        Ok(())
    }

    fn free_lists(&mut self) -> Result<(), Violation> {
        let mem = self.mem;
        let mut result = Ok(());
        for zone in mem.zones() {
            let mut on_lists = 0u64;
            zone.for_each_list(mem, &mut |order, list| {
                let mut walked = 0;
                for page in list.iter(mem.pages()) {
                    walked += 1;
                    on_lists += u64::from(order.nr_pages());
                    if result.is_ok() {
                        result = self.free_block(zone.range().contains(page.pfn()), page, order);
                    }
                }
                result = result.and_then(|()| equal(Rule::FreeListed, u64::from(list.len()), walked));
            });
            result = result.and_then(|()| equal(Rule::FreeCount, on_lists, u64::from(zone.nr_free())));
        }
        result
    }

    fn free_block(&mut self, in_zone: bool, page: Page<'c>, order: Order) -> Result<(), Violation> {
        about(
            page,
            Rule::FreeListed,
            1u32,
            u32::from(in_zone && page.pfn().is_aligned(order)),
        )?;
        about(
            page,
            Rule::FreeRecord,
            PageState::new_buddy(order).raw(),
            page.state().raw(),
        )?;
        let buddy = self
            .mem
            .pages()
            .get(page.pfn().buddy(order))
            .filter(|_| order < Order::MAX);
        let unmerged = buddy.is_some_and(|buddy| {
            let same_zone = core::ptr::eq(self.mem.zone_of(buddy.pfn()), self.mem.zone_of(page.pfn()));
            same_zone && buddy.state() == PageState::new_buddy(order)
        });
        about(page, Rule::FreeMerged, 0u32, u32::from(unmerged))?;
        self.mark_free(page, order)
    }

    fn magazines(&mut self) -> Result<(), Violation> {
        let mem = self.mem;
        let mut result = Ok(());
        mem.with_all_magazines(&mut |magazine| {
            for order in Magazine::orders() {
                for &pfn in magazine.held(order) {
                    if result.is_ok() {
                        result = self.cached_block(Pfn::new(pfn), order);
                    }
                }
            }
        });
        result
    }

    fn cached_block(&mut self, pfn: Pfn, order: Order) -> Result<(), Violation> {
        let page = self.page(pfn)?;
        about(page, Rule::FreeRecord, PageState::CLEAR.raw(), page.state().raw())?;
        about(page, Rule::FreeListed, 1u32, u32::from(pfn.is_aligned(order)))?;
        self.mark_free(page, order)
    }

    fn lru(&mut self) -> Result<(), Violation> {
        let mem = self.mem;
        for node in mem.nodes() {
            let lists = node.lru().lock(mem.platform());
            for (nth, kind) in [LruKind::InactiveAnon, LruKind::ActiveAnon]
                .into_iter()
                .enumerate()
            {
                let mut walked = 0;
                for page in lists.list(kind).iter(mem.pages()) {
                    walked += 1;
                    self.sums.lru[nth] += u64::from(page.compound_order().nr_pages());
                    let active = page.has(PageFlags::ACTIVE);
                    about(
                        page,
                        Rule::Lru,
                        u32::from(kind == LruKind::ActiveAnon),
                        u32::from(active),
                    )?;
                    self.mark(page, Seen::LRU, Rule::Lru)?;
                }
                equal(Rule::Lru, u64::from(lists.list(kind).len()), walked)?;
            }
        }
        Ok(())
    }

    fn deferred_queue(&mut self) -> Result<(), Violation> {
        let mem = self.mem;
        for node in mem.nodes() {
            let queue = node.deferred().lock(mem.platform());
            let mut walked = 0;
            for head in queue.iter(mem.pages()) {
                walked += 1;
                let fit =
                    head.compound_order() >= Order::MIN_WITH_QUEUE && head.is_anon() && head.refs_hint() > 0;
                about(head, Rule::DeferredQueue, 1u32, u32::from(fit))?;
                self.mark(head, Seen::QUEUED, Rule::DeferredQueue)?;
            }
            equal(Rule::DeferredQueue, u64::from(queue.len()), walked)?;
        }
        Ok(())
    }

    fn owners(&mut self, owners: &dyn Owners) -> Result<(), Violation> {
        let mut result = Ok(());
        owners.for_each_block(&mut |pfn, order| {
            if result.is_ok() {
                result = self.owned_block(pfn, order);
            }
        });
        result?;
        let mut result = Ok(());
        owners.for_each_reference(&mut |pfn| match self.page(pfn) {
            Ok(page) => self.scratch.tally(page.head().pfn()).refs += 1,
            Err(violation) => result = Err(violation),
        });
        result
    }

    fn owned_block(&mut self, pfn: Pfn, order: Order) -> Result<(), Violation> {
        for i in 0..order.nr_pages() {
            let page = self.page(pfn.offset(i))?;
            self.mark(page, Seen::OWNED, Rule::Lost)?;
        }
        self.scratch.tally(pfn).refs += 1;
        Ok(())
    }

    fn space(&mut self, space: &AddressSpace) -> Result<(), Violation> {
        let mut totals = SpaceTotals::default();
        let mut result = Ok(());
        self.mem.visit_tables(space.tables(), &mut |visit| {
            if result.is_ok() {
                result = self.visit(space, visit, &mut totals);
            }
        });
        result?;
        totals.end_pmd_table()?;
        self.sums.tables += totals.tables;
        equal(Rule::SpaceTables, totals.tables * 4096, space.pgtable_bytes())?;
        equal(Rule::Rss, totals.rss, space.rss_pages())
    }

    fn visit(
        &mut self,
        space: &AddressSpace,
        visit: Visit,
        totals: &mut SpaceTotals,
    ) -> Result<(), Violation> {
        match visit {
            Visit::Table(level, pfn) => {
                if level == crate::pgtable::cursor::Level::Pmd {
                    totals.end_pmd_table()?;
                }
                totals.tables += 1;
                self.table(pfn)
            }
            Visit::Deposited { table, .. } => {
                totals.tables += 1;
                totals.deposited += 1;
                self.table(table)
            }
            Visit::Pmd(
                addr,
                PmdEntry::Huge {
                    pfn,
                    prot,
                    valid: true,
                    ..
                },
            ) => {
                totals.huge += 1;
                if self.is_zero(addr, pfn, prot)? {
                    self.scratch.tally(pfn).refs += 1;
                    return Ok(());
                }
                totals.rss += ENTRIES as u64;
                self.mapping(space, addr, pfn, prot)?;
                let tally = self.scratch.tally(pfn);
                tally.pmds += 1;
                tally.refs += 1;
                let page = self.page(pfn)?;
                about(
                    page,
                    Rule::CompoundLinks,
                    u32::from(PMD_ORDER.raw()),
                    u32::from(page.compound_order().raw()),
                )
            }
            Visit::Pte(addr, PteEntry::Present { pfn, prot, .. }) => {
                if self.is_zero(addr, pfn, prot)? {
                    return Ok(());
                }
                totals.rss += 1;
                self.mapping(space, addr, pfn, prot)?;
                self.scratch.tally(pfn).ptes += 1;
                let head = self.page(pfn)?.head();
                self.scratch.tally(head.pfn()).refs += 1;
                Ok(())
            }
            Visit::Pmd(addr, _) | Visit::Pte(addr, _) => Err(Violation {
                addr: Some(addr),
                ..sum_violation(Rule::TransientEntry, 0, 1)
            }),
        }
    }

    fn table(&mut self, pfn: Pfn) -> Result<(), Violation> {
        let page = self.page(pfn)?;
        about(page, Rule::Table, 1u32, u32::from(page.has(PageFlags::PGTABLE)))?;
        self.scratch.tally(pfn).refs += 1;
        self.mark(page, Seen::TABLE, Rule::Table)
    }

    /// Whether an entry leads to a zero page, which it must not allow to be written.
    fn is_zero(&self, addr: VirtAddr, pfn: Pfn, prot: Prot) -> Result<bool, Violation> {
        let page = self.page(pfn)?;
        let zero = self.mem.is_zero_page(page);
        let writes = zero && prot.contains(Prot::WRITE);
        let at = |violation: Violation| Violation {
            addr: Some(addr),
            ..violation
        };
        about(page, Rule::EntryRights, 0u32, u32::from(writes)).map_err(at)?;
        Ok(zero)
    }

    /// Compares an entry with the area it lies in and the page it leads to.
    fn mapping(&self, space: &AddressSpace, addr: VirtAddr, pfn: Pfn, prot: Prot) -> Result<(), Violation> {
        let page = self.page(pfn)?;
        let at = |violation: Violation| Violation {
            addr: Some(addr),
            ..violation
        };
        let Some(vma) = space.areas().containing(addr) else {
            return about(page, Rule::EntryRights, 0u32, 1u32).map_err(at);
        };
        // Hardware cannot take reading away from a page that may be written or executed.
        let granted = if vma.prot().is_empty() {
            Prot::empty()
        } else {
            vma.prot() | Prot::READ
        };
        about(page, Rule::EntryRights, granted.bits(), (granted | prot).bits()).map_err(at)?;
        // Who may write without asking has the page alone.
        let shared = prot.contains(Prot::WRITE) && !page.has(PageFlags::EXCLUSIVE);
        about(page, Rule::EntryRights, 0u32, u32::from(shared)).map_err(at)?;
        let identity = vma
            .anon_vma()
            .map_or(0, |anon_vma| anon_vma.to_bits(self.mem.platform()));
        about(page, Rule::Relation, identity, page.mapping()).map_err(at)?;
        let index = page.head().index() + page.subpage() as u64;
        about(page, Rule::Relation, vma.linear_index(addr), index).map_err(at)
    }

    /// Compares the areas with the space's totals, and counts each anon_vma when its first area is met.
    fn areas(&mut self, space: &AddressSpace, earlier: &[&AddressSpace]) -> Result<(), Violation> {
        let (mut nr, mut pages, mut end) = (0u64, 0u64, 0u64);
        let mut kinds = VmKind::ALL.map(|kind| (kind, 0u64));
        for vma in all_areas(space) {
            nr += 1;
            let own = kinds
                .iter_mut()
                .filter(|(kind, _)| VmKind::of(vma.flags()) == Some(*kind));
            own.for_each(|(_, pages)| *pages += vma.range().nr_pages());
            pages += vma.range().nr_pages();
            let start = vma.start().as_u64();
            ensure(start >= end && vma.end() > vma.start(), || {
                sum_violation(Rule::Areas, end, start)
            })?;
            end = vma.end().as_u64();
            let Some(anon_vma) = vma.anon_vma() else { continue };
            let mut before = all_areas(space).take_while(|other| other.start() < vma.start());
            let known = before.any(|other| other.anon_vma() == Some(anon_vma))
                || earlier
                    .iter()
                    .any(|space| all_areas(space).any(|other| other.anon_vma() == Some(anon_vma)));
            self.sums.anon_vmas += u64::from(!known);
        }
        self.sums.areas += nr;
        space.areas().check().map_err(|vma| Violation {
            addr: Some(vma.start()),
            ..sum_violation(Rule::AreaTree, 0, 1)
        })?;
        equal(Rule::Areas, nr, u64::from(space.nr_areas()))?;
        for (kind, pages) in kinds {
            equal(Rule::Areas, pages, space.vm_pages(kind))?;
        }
        equal(Rule::Areas, pages, space.total_vm_pages())
    }

    fn frames(&mut self) -> Result<(), Violation> {
        let mut inside: Option<Compound> = None;
        for pfn in self.all_frames() {
            let page = self.page(pfn)?;
            let tally = *self.scratch.tally(pfn);
            if inside.as_ref().is_some_and(|compound| compound.end == pfn) {
                self.end_of_compound(inside.take())?;
            }
            match &mut inside {
                Some(compound) => self.tail(page, tally, compound)?,
                None => inside = self.first(page, tally)?,
            }
        }
        self.end_of_compound(inside)
    }

    /// Checks a frame that is no tail; returns the compound page that starts there, if one does.
    fn first(&mut self, page: Page<'c>, tally: Tally) -> Result<Option<Compound>, Violation> {
        let flags = page.state().flags();
        if flags.intersects(PageFlags::NOPAGE | PageFlags::RESERVED) {
            about(page, Rule::NotMemory, 0u32, u32::from(tally != Tally::default()))?;
            return Ok(None);
        }
        self.sums.managed += 1;
        about(
            page,
            Rule::BadPage,
            0u32,
            u32::from(flags.contains(PageFlags::HWPOISON)),
        )?;
        about(
            page,
            Rule::CompoundLinks,
            0u32,
            u32::from(flags.contains(PageFlags::TAIL)),
        )?;
        if tally.seen.contains(Seen::FREE) {
            return self.free(page, tally).map(|()| None);
        }
        self.used(page, tally)?;
        if !flags.contains(PageFlags::HEAD) {
            about(page, Rule::Mapcount, tally.ptes, page.mapcount())?;
            self.sums.anon_pages += u64::from(tally.ptes > 0);
            return Ok(None);
        }
        let order = page.compound_order();
        about(
            page,
            Rule::CompoundLinks,
            1u32,
            u32::from(order > Order::ZERO && page.pfn().is_aligned(order)),
        )?;
        let mut compound = Compound {
            head: page.pfn(),
            end: page.pfn().offset(order.nr_pages()),
            ptes: 0,
            double: page.is_double_mapped(),
            pmds: tally.pmds,
        };
        self.sums.anon_thps += u64::from(tally.pmds > 0);
        self.subpage(page, tally, &mut compound)?;
        Ok(Some(compound))
    }

    fn free(&mut self, page: Page<'c>, tally: Tally) -> Result<(), Violation> {
        about(page, Rule::FreeListed, Seen::FREE.bits(), tally.seen.bits())?;
        about(page, Rule::FreeRecord, 0u32, tally.refs + tally.ptes + tally.pmds)?;
        let flags = page.state().flags();
        about(page, Rule::FreeRecord, 0u32, (flags - PageFlags::BUDDY).bits())?;
        about(page, Rule::FreeRecord, 0u32, page.refs_hint())?;
        about(page, Rule::FreeRecord, 0u32, page.mapcount())?;
        about(page, Rule::FreeRecord, 0u32, page.own_mapping())?;
        about(
            page,
            Rule::FreeContents,
            1u32,
            u32::from(self.mem.poison_is_intact(page)),
        )
    }

    /// Checks what a used order-0 page, block or head must be.
    /// Counts an anon_vma that no area names any more, only folios that somebody holds, when the first of them is met.
    fn orphaned_anon_vma(&mut self, page: Page<'c>) {
        let orphaned = self
            .mem
            .anon_vma_of(page)
            .is_some_and(|anon_vma| anon_vma.areas().get().is_none());
        if orphaned && page.state().head_link().is_none() {
            let mut before = self.all_frames().take_while(|&pfn| pfn < page.pfn());
            let known = before.any(|pfn| self.mem.pages().page(pfn).own_mapping() == page.own_mapping());
            self.sums.anon_vmas += u64::from(!known);
        }
    }

    fn used(&mut self, page: Page<'c>, mut tally: Tally) -> Result<(), Violation> {
        self.orphaned_anon_vma(page);
        let flags = page.state().flags();
        if flags.contains(PageFlags::SLAB) {
            self.sums.slabs += 1;
            // The index word of a slab: objects in use in its low half.
            self.sums.slab_objects += page.index() & u64::from(u32::MAX);
            tally.refs += 1;
        }
        // The machine keeps the huge zero page.
        tally.refs += u32::from(flags.contains(PageFlags::ZERO));
        let place = |flag, seen| {
            (
                u32::from(flags.contains(flag)),
                u32::from(tally.seen.contains(seen)),
            )
        };
        let (flag, seen) = place(PageFlags::LRU, Seen::LRU);
        about(page, Rule::Lru, seen, flag)?;
        let (flag, seen) = place(PageFlags::QUEUED, Seen::QUEUED);
        about(page, Rule::DeferredQueue, seen, flag)?;
        let (flag, seen) = place(PageFlags::PGTABLE, Seen::TABLE);
        about(page, Rule::Table, seen, flag)?;
        // The later pages of an owner's block have no references; anything else without any is lost.
        let inside_block = tally.refs == 0 && tally.seen.contains(Seen::OWNED);
        about(
            page,
            Rule::Lost,
            1u32,
            u32::from(tally.refs > 0 || inside_block || page.refs_hint() > 0),
        )?;
        about(page, Rule::References, tally.refs, page.refs_hint())
    }

    fn tail(&mut self, page: Page<'c>, tally: Tally, compound: &mut Compound) -> Result<(), Violation> {
        self.sums.managed += 1;
        // Of its own a tail has its exclusive marker; the first one also carries its folio's DOUBLE_MAP.
        let first = page.pfn() == compound.head.offset(1);
        let double = if first {
            PageFlags::DOUBLE_MAP
        } else {
            PageFlags::empty()
        };
        let own = u64::from((PageFlags::EXCLUSIVE | double).bits());
        let link = PageState::new_tail(compound.head).raw();
        about(page, Rule::CompoundLinks, link, page.state().raw() & !own)?;
        about(page, Rule::TailReferences, 0u32, page.refs_hint())?;
        about(page, Rule::CompoundLinks, Seen::empty().bits(), tally.seen.bits())?;
        about(page, Rule::CompoundLinks, 0u32, tally.refs + tally.pmds)?;
        self.subpage(page, tally, compound)
    }

    fn subpage(&mut self, page: Page<'c>, tally: Tally, compound: &mut Compound) -> Result<(), Violation> {
        compound.ptes += u64::from(tally.ptes);
        let mapped = tally.ptes + compound.pmds;
        self.sums.anon_pages += u64::from(mapped > 0);
        let raw = i64::from(tally.ptes) - 1 + i64::from(compound.double);
        about(
            page,
            Rule::Mapcount,
            raw.cast_unsigned(),
            i64::from(page.raw_mapcount()).cast_unsigned(),
        )?;
        about(page, Rule::Mapcount, mapped, page.mapcount())
    }

    fn end_of_compound(&self, compound: Option<Compound>) -> Result<(), Violation> {
        let Some(compound) = compound else { return Ok(()) };
        let head = self.page(compound.head)?;
        let pmds = u64::from(compound.pmds);
        about(head, Rule::EntireMapcount, pmds, head.map_counts().entire)?;
        about(
            head,
            Rule::TotalMapcount,
            pmds + compound.ptes,
            head.map_counts().total,
        )?;
        // The flag may outlive the last PTE while a PMD is left, never the last PMD.
        let must = pmds > 0 && compound.ptes > 0;
        let may = pmds > 0;
        about(
            head,
            Rule::DoubleMap,
            u32::from(if compound.double { may } else { must }),
            u32::from(compound.double),
        )
    }

    fn counters(&self, spaces: &[&AddressSpace]) -> Result<(), Violation> {
        let (mem, sums) = (self.mem, &self.sums);
        let [inactive, active] = sums.lru;
        for (counter, sum) in [
            (Counter::NrAnonPages, sums.anon_pages),
            (Counter::NrAnonThps, sums.anon_thps),
            (Counter::NrPageTable, sums.tables),
            (Counter::NrSlabUnreclaimable, sums.slabs),
            (Counter::NrInactiveAnon, inactive),
            (Counter::NrActiveAnon, active),
            // What was handed out and not given back is what is not free now.
            (
                Counter::PgAlloc,
                mem.count(Counter::PgFree) + sums.managed - sums.free,
            ),
        ] {
            equal(Rule::Count(counter), sum, mem.count(counter))?;
        }
        equal(Rule::FreeCount, sums.free, mem.nr_free_pages())?;
        equal(Rule::ManagedCount, sums.managed, mem.nr_managed_pages())?;
        let objects = spaces.len() as u64 + sums.areas + sums.anon_vmas;
        equal(Rule::SlabObjects, objects, sums.slab_objects)
    }
}

/// What one space's tables add up to.
#[derive(Default)]
struct SpaceTotals {
    tables: u64,
    rss: u64,
    /// Of the PMD table being walked.
    deposited: u64,
    huge: u64,
}

impl SpaceTotals {
    fn end_pmd_table(&mut self) -> Result<(), Violation> {
        let (huge, deposited) = (
            core::mem::take(&mut self.huge),
            core::mem::take(&mut self.deposited),
        );
        equal(Rule::DepositedTables, huge, deposited)
    }
}

/// The areas of a space, without its lock: nobody changes them while the checker runs.
fn all_areas(space: &AddressSpace) -> impl Iterator<Item = crate::slab::Handle<Vma>> {
    let (bottom, top) = (VirtAddr::zero(), VirtAddr::new(crate::addr::USER_END));
    VirtRange::new(bottom, top)
        .into_iter()
        .flat_map(|all| space.areas().overlapping(all))
}

const _: () = assert!(size_of::<Tally>() == 16);
const _: () = {
    // The checker's indices into tallies are frame numbers.
    assert!(to_usize(u32::MAX as u64) == u32::MAX as usize);
};
