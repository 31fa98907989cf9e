//! First pass: walks everything that may lead to a frame, and leaves a mark in the frame's tally.

use super::{
    Checker, Owners, Scratch, Seen, Tally, Violation,
    violation::{Rule, about, ensure, equal, sum_violation},
};
use crate::{
    addr::{ENTRIES, Pfn, VirtAddr, VirtRange},
    address_space::{AddressSpace, VmKind},
    buddy::Magazine,
    flags::{PageFlags, Prot},
    folio::LruKind,
    order::{Order, PMD_ORDER},
    page::{Page, PageState},
    pgtable::{PmdEntry, PteEntry, cursor::Visit},
    platform::Platform,
    vma::Vma,
};

impl<'c, P: Platform, S: Scratch + ?Sized> Checker<'c, P, S> {
    pub(super) fn clear(&mut self) {
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

    pub(super) fn free_lists(&mut self) -> Result<(), Violation> {
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

    pub(super) fn magazines(&mut self) -> Result<(), Violation> {
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
        let (local, its) = (self.mem.local_node(), self.mem.node_id(pfn));
        about(page, Rule::FreeListed, local.number(), its.number())?;
        self.mark_free(page, order)
    }

    /// A page that was found on a list of `node` is one of its pages.
    fn on_its_node(&self, page: Page<'_>, node: usize, rule: Rule) -> Result<(), Violation> {
        let its = self.mem.node_id(page.pfn()).index();
        about(page, rule, node as u64, its as u64)
    }

    pub(super) fn lru(&mut self) -> Result<(), Violation> {
        let mem = self.mem;
        for (number, node) in mem.nodes().iter().enumerate() {
            let lists = node.lru().lock(mem.platform());
            for (nth, kind) in LruKind::ALL.into_iter().enumerate() {
                let mut walked = 0;
                for page in lists.list(kind).iter(mem.pages()) {
                    walked += 1;
                    self.sums.lru[nth] += u64::from(page.compound_order().nr_pages());
                    let own = LruKind::of(page.state().flags());
                    about(page, Rule::Lru, kind as u32, own as u32)?;
                    let is_locked = page.has(PageFlags::MLOCKED);
                    about(
                        page,
                        Rule::Lru,
                        u32::from(kind == LruKind::Unevictable),
                        u32::from(is_locked),
                    )?;
                    self.on_its_node(page, number, Rule::Lru)?;
                    self.mark(page, Seen::LRU, Rule::Lru)?;
                }
                equal(Rule::Lru, u64::from(lists.list(kind).len()), walked)?;
            }
        }
        Ok(())
    }

    pub(super) fn deferred_queue(&mut self) -> Result<(), Violation> {
        let mem = self.mem;
        for (number, node) in mem.nodes().iter().enumerate() {
            let queue = node.deferred().lock(mem.platform());
            let mut walked = 0;
            for head in queue.iter(mem.pages()) {
                walked += 1;
                let fit =
                    head.compound_order() >= Order::MIN_WITH_QUEUE && head.is_anon() && head.refs_hint() > 0;
                about(head, Rule::DeferredQueue, 1u32, u32::from(fit))?;
                self.on_its_node(head, number, Rule::DeferredQueue)?;
                self.mark(head, Seen::QUEUED, Rule::DeferredQueue)?;
            }
            equal(Rule::DeferredQueue, u64::from(queue.len()), walked)?;
        }
        Ok(())
    }

    pub(super) fn owners(&mut self, owners: &dyn Owners) -> Result<(), Violation> {
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

    pub(super) fn space(&mut self, space: &AddressSpace) -> Result<(), Violation> {
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
        let shared = prot.contains(Prot::WRITE) && !page.is_exclusive();
        about(page, Rule::EntryRights, 0u32, u32::from(shared)).map_err(at)?;
        let identity = vma
            .anon_vma()
            .map_or(0, |anon_vma| anon_vma.to_bits(self.mem.platform()));
        about(page, Rule::Relation, identity, page.mapping()).map_err(at)?;
        let index = page.head().index() + page.subpage() as u64;
        about(page, Rule::Relation, vma.linear_index(addr), index).map_err(at)
    }

    /// Compares the areas with the space's totals, and counts each anon_vma when its first area is met.
    pub(super) fn areas(&mut self, space: &AddressSpace, earlier: &[&AddressSpace]) -> Result<(), Violation> {
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
