//! Second pass: compares each frame's record with its tally, and the counters with the sums.

use super::{
    Checker, Scratch, Seen, Tally, Violation,
    violation::{Rule, about, equal},
};
use crate::{
    addr::Pfn,
    address_space::AddressSpace,
    counter::Counter,
    flags::PageFlags,
    order::Order,
    page::{Page, PageState},
    platform::Platform,
};

/// A compound page that the pass over the frames is inside.
struct Compound {
    head: Pfn,
    end: Pfn,
    ptes: u64,
    double: bool,
    pmds: u32,
    /// References that were found.
    refs: u32,
    /// Subpages that some entry maps.
    mapped: u32,
}

impl<'c, P: Platform, S: Scratch + ?Sized> Checker<'c, P, S> {
    pub(super) fn frames(&mut self) -> Result<(), Violation> {
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
            exclusive(page, tally.ptes)?;
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
            refs: tally.refs,
            mapped: 0,
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

    /// Checks what a used order-0 page, block or head must be.
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
        // Anonymous memory that is on no list is on its way somewhere.
        if page.is_anon() && flag == 0 {
            self.sums.isolated += u64::from(page.compound_order().nr_pages());
        }
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
            PageFlags::DOUBLE_MAP | PageFlags::TAILS_EXCLUSIVE
        } else {
            PageFlags::empty()
        };
        let own = u64::from((PageFlags::EXCLUSIVE | double).bits());
        let link = PageState::new_tail(compound.head).raw();
        about(page, Rule::CompoundLinks, link, page.state().raw() & !own)?;
        about(page, Rule::TailReferences, 0u32, page.refs_hint())?;
        about(page, Rule::TailMapping, 0u32, page.own_mapping())?;
        about(page, Rule::CompoundLinks, Seen::empty().bits(), tally.seen.bits())?;
        about(page, Rule::CompoundLinks, 0u32, tally.refs + tally.pmds)?;
        self.subpage(page, tally, compound)
    }

    fn subpage(&mut self, page: Page<'c>, tally: Tally, compound: &mut Compound) -> Result<(), Violation> {
        compound.ptes += u64::from(tally.ptes);
        let mapped = tally.ptes + compound.pmds;
        compound.mapped += u32::from(mapped > 0);
        self.sums.anon_pages += u64::from(mapped > 0);
        exclusive(page, mapped)?;
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
        self.waits_or_need_not(head, &compound)?;
        // Whoever pins has a reference, besides those of the entries.
        let (pins, others) = (head.pins_hint(), u64::from(compound.refs) - pmds - compound.ptes);
        about(head, Rule::Pins, others.min(pins.into()), pins)?;
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

    /// A huge page of which a part is mapped and a part is not waits to be split: else that part is lost until exit.
    fn waits_or_need_not(&self, head: Page<'_>, compound: &Compound) -> Result<(), Violation> {
        let nr = head.compound_order().nr_pages();
        let partly = head.is_anon() && 0 < compound.mapped && compound.mapped < nr;
        let waits = head.has(PageFlags::QUEUED);
        about(
            head,
            Rule::DeferredQueue,
            u32::from(partly || waits),
            u32::from(waits),
        )
    }

    pub(super) fn counters(&self, spaces: &[&AddressSpace]) -> Result<(), Violation> {
        let (mem, sums) = (self.mem, &self.sums);
        let [inactive, active, unevictable] = sums.lru;
        for (counter, sum) in [
            (Counter::NrAnonPages, sums.anon_pages),
            (Counter::NrAnonThps, sums.anon_thps),
            (Counter::NrPageTable, sums.tables),
            (Counter::NrSlabUnreclaimable, sums.slabs),
            (Counter::NrInactiveAnon, inactive),
            (Counter::NrActiveAnon, active),
            (Counter::NrUnevictable, unevictable),
            // Nobody moves pages while this runs, so each is on its list.
            (Counter::NrMlock, unevictable),
            (Counter::NrIsolatedAnon, sums.isolated),
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

/// Exclusive is what one entry maps at the most: the process that has it writes without asking.
fn exclusive(page: Page<'_>, mapped: u32) -> Result<(), Violation> {
    let shared = page.is_exclusive() && mapped > 1;
    about(page, Rule::Exclusive, 0u32, u32::from(shared))
}
