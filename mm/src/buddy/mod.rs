//! F3: the frame allocator.
//!
//! ```text
//!   alloc_pages / free_pages
//!        |  orders 0 to 3 and 9                   other orders, or the magazine is empty or full
//!   this CPU's magazine (arrays of pfns)  <------------->  zone: one free list per order, buddies merge
//!        |                                                   |
//!   no locked operation (see `magazine`)                    zone lock, taken once per batch
//! ```
//! * **Magazines** are arrays of frame numbers: an allocation touches the array, the page's reference count and nothing
//!   else. They are refilled with a whole run of 2^k pages, one list operation per run.
//! * **No allocation fails while any CPU's magazine holds what it may have**: before failing, every magazine is emptied
//!   into the zones, where the pages merge and the watermarks decide. So cached pages count as free ([`Memory::nr_free_pages`]).
//! * **Watermarks**: below `min` only [`AllocFlags::RESERVE`] allocations succeed, below `low` no opportunistic ones.
//! * **Nodes**: a [`Placement`] says which nodes a block may come from. A magazine holds blocks of its CPU's own node
//!   only: what comes from another is taken from that node's zones, what is of another goes back to them.
//! * Allocation never reclaims (decision 0001).
//! * In builds with debug assertions a freed page is filled with a pattern, and the pattern is checked when it is
//!   handed out again.
//!
//! State of a free page's record: first of a block in a zone: `BUDDY` and the order; any other free page: all zero.
//!
//! Locks: a walk guard or the drain lock, inside it a zone lock.

mod free_area;
mod magazine;
mod poison;
mod watermark;
mod zone;

pub(crate) use magazine::{Cache, Magazine};
pub use watermark::Watermarks;
pub use zone::{Zone, ZoneKind};

use crate::{
    addr::{Pfn, PfnRange},
    counter::Counter,
    error::AllocError,
    flags::{AllocFlags, PageFlags},
    memory::Memory,
    node::NodeId,
    order::Order,
    page::{Page, PageState, compound::BadPage},
    platform::Platform,
    policy::Placement,
    trace::Event,
};

impl<P: Platform> Memory<P> {
    /// Takes `2^order` frames, aligned to their size. They are one block with one reference on its first page, which
    /// is the caller's; it is not a compound page (see [`Memory::alloc_folio`](crate::memory::Memory::alloc_folio)).
    /// Contents are arbitrary unless [`AllocFlags::ZERO`] is given.
    ///
    /// Locks: takes a zone's, and when memory is short the drain lock. Context: any that may take a spin lock, outside
    /// walk guards; never sleeps.
    ///
    /// # Errors
    /// Nothing free at the watermark that `flags` allow; nothing changed.
    pub fn alloc_pages(&self, order: Order, flags: AllocFlags) -> Result<Pfn, AllocError> {
        self.alloc_pages_from(Placement::near(self.local_node()), order, flags)
    }

    /// [`Memory::alloc_pages`], from the nodes that `placement` allows.
    ///
    /// # Errors
    /// Nothing free there at the watermark that `flags` allow; nothing changed.
    pub fn alloc_pages_from(
        &self,
        placement: Placement,
        order: Order,
        flags: AllocFlags,
    ) -> Result<Pfn, AllocError> {
        let error = AllocError { order };
        if self.allocation_must_fail(flags) {
            return Err(error);
        }
        let pfn = self.take_block(placement, order, flags).ok_or(error)?;
        self.poison_check(pfn, order);
        if flags.contains(AllocFlags::ZERO) {
            for i in 0..order.nr_pages() {
                self.clear_frame(pfn.offset(i));
            }
        }
        self.pages().page(pfn).ref_init();
        if P::TRACE {
            self.platform().trace(Event::Alloc { pfn, order });
        }
        Ok(pfn)
    }

    /// Gives back a block from [`Memory::alloc_pages`] whose one reference is the caller's.
    ///
    /// A record that is not as a free page's must be (invariant I11) is reported as a bad page and its block leaks:
    /// a leak is better than a page with two owners.
    pub fn free_pages(&self, pfn: Pfn, order: Order) {
        let page = self.pages().page(pfn);
        // The later pages of a block have no references of their own: one that has is somebody else's block. To look at
        // each is for builds with debug assertions.
        let is_ours = |i| page.offset(i).refs_hint() == 0;
        let whole = pfn.is_aligned(order) && (!cfg!(debug_assertions) || (1..order.nr_pages()).all(is_ours));
        if whole && page.refs_hint() == 1 && page.ref_sub_and_test(1) {
            self.free_block(pfn, order);
        } else {
            self.report_bad_page(pfn, BadPage::Referenced);
        }
    }

    /// Gives back a block that nobody references any more.
    pub(crate) fn free_block(&self, pfn: Pfn, order: Order) {
        self.free_blocks(&mut [pfn], order);
    }

    /// Gives back blocks of one order that nobody references any more. Their order in `pfns` changes.
    pub(crate) fn free_blocks(&self, pfns: &mut [Pfn], order: Order) {
        let local = self.local_node();
        let (mut freed, mut near) = (0, 0);
        for i in 0..pfns.len() {
            let pfn = pfns[i];
            if !self.prepare_free(pfn, order) {
                continue;
            }
            freed += i64::from(order.nr_pages());
            if Magazine::caches(order) && self.node_id(pfn) == local {
                pfns.swap(near, i);
                near += 1;
            } else {
                self.zone_of(pfn).free(self, pfn, order);
            }
        }
        self.add(Counter::PgFree, freed);
        let mut rest = &pfns[..near];
        if rest.is_empty() {
            return;
        }
        self.with_own_magazine(|magazine| {
            while !rest.is_empty() {
                if magazine.room(order) == 0 {
                    self.spill(magazine, order);
                }
                let taken = magazine.push(order, rest);
                rest = &rest[taken..];
            }
        });
    }

    /// Makes the record of a block that is about to be free what a free page's is; false if it cannot be trusted.
    fn prepare_free(&self, pfn: Pfn, order: Order) -> bool {
        let page = self.pages().page(pfn);
        if let Err(reason) = check_free(page) {
            self.report_bad_page(pfn, reason);
            return false;
        }
        page.set_private_state(PageState::CLEAR);
        self.poison(pfn, order);
        if P::TRACE {
            self.platform().trace(Event::Free { pfn, order });
        }
        true
    }

    /// Returns frames that are reserved to the allocator. They count as memory that is managed from then on. Frame 0
    /// stays reserved: a link or an object address of 0 means "none".
    ///
    /// # Panics
    /// If a frame of the range is not reserved: it would be handed out twice. If one holds page records: nothing would be
    /// true any more after its first use. Frames below that one have been released then.
    pub fn release(&self, range: PfnRange) {
        let mut pfn = range.start().max(Pfn::new(1));
        while pfn < range.end() {
            let zone = self.zone_of(pfn);
            let left = range.end().since(pfn).min(zone.range().end().since(pfn));
            let order = pfn.largest_block(left);
            for i in 0..order.nr_pages() {
                let page = self.pages().page(pfn.offset(i));
                assert!(
                    page.state() == PageState::of(PageFlags::RESERVED),
                    "{page:?}: released but not reserved"
                );
                assert!(
                    !self.metadata().contains(page.pfn()),
                    "{page:?}: released but holds page records"
                );
                page.set_private_state(PageState::CLEAR);
            }
            zone.add_managed(order.nr_pages());
            zone.free(self, pfn, order);
            pfn = pfn.offset(order.nr_pages());
        }
        self.set_watermarks();
    }

    /// Pages that an allocation could have, those in magazines included.
    #[must_use]
    pub fn nr_free_pages(&self) -> u64 {
        let cached: u64 = self
            .per_cpu_all()
            .iter()
            .map(|cpu| cpu.cache().nr_pages_hint())
            .sum();
        cached + self.zones().map(|zone| u64::from(zone.nr_free())).sum::<u64>()
    }

    /// Pages that were ever given to the allocator.
    #[must_use]
    pub fn nr_managed_pages(&self) -> u64 {
        self.zones().map(|zone| u64::from(zone.nr_managed())).sum()
    }

    /// Pages of one node that an allocation could have. Magazines are filled from the node of their CPU.
    #[must_use]
    pub fn nr_free_pages_of(&self, node: NodeId) -> u64 {
        let zones = self.node(node).zones().iter();
        let listed: u64 = zones.map(|zone| u64::from(zone.nr_free())).sum();
        let caches = self.per_cpu_all().iter().map(|cpu| cpu.cache().nr_pages_hint());
        let cached = if node == self.local_node() {
            caches.sum()
        } else {
            0
        };
        listed + cached
    }

    /// Pages of one node that were ever given to the allocator.
    #[must_use]
    pub fn nr_managed_pages_of(&self, node: NodeId) -> u64 {
        let zones = self.node(node).zones().iter();
        zones.map(|zone| u64::from(zone.nr_managed())).sum()
    }

    /// Empties every CPU's magazine into the zones.
    pub fn drain_all_magazines(&self) {
        self.with_all_magazines(&mut |magazine| {
            for order in Magazine::orders() {
                while !magazine.held(order).is_empty() {
                    self.spill(magazine, order);
                }
            }
        });
    }

    fn take_block(&self, placement: Placement, order: Order, flags: AllocFlags) -> Option<Pfn> {
        let is_near = placement.first() == self.local_node();
        let cached = (is_near && Magazine::caches(order))
            .then(|| self.with_own_magazine(|magazine| magazine.pop(order)))
            .flatten();
        let pfn = match cached {
            Some(pfn) => pfn,
            None => self.take_block_from_zones(&placement, order, flags)?,
        };
        self.add(Counter::PgAlloc, i64::from(order.nr_pages()));
        Some(pfn)
    }

    /// Takes a block that the magazine does not hold, and fills the magazine while at it.
    #[cold]
    fn take_block_from_zones(&self, placement: &Placement, order: Order, flags: AllocFlags) -> Option<Pfn> {
        self.try_take_block(placement, order, flags).or_else(|| {
            if !placement.allows(self.local_node()) || !self.is_draining_worth_it(order, flags) {
                return None;
            }
            self.drain_all_magazines();
            self.try_take_block(placement, order, flags)
        })
    }

    /// Whether what is missing may sit in a magazine, here or on another CPU, or merge once it is out of them.
    /// Draining disturbs every CPU, so a request that has a fallback causes it only for a block that is there whole.
    fn is_draining_worth_it(&self, order: Order, flags: AllocFlags) -> bool {
        let mut caches = self.per_cpu_all().iter().map(|cpu| cpu.cache());
        if flags.contains(AllocFlags::OPPORTUNISTIC) {
            caches.any(|cache| cache.may_hold(order))
        } else {
            caches.any(|cache| cache.nr_pages_hint() > 0)
        }
    }

    fn try_take_block(&self, placement: &Placement, order: Order, flags: AllocFlags) -> Option<Pfn> {
        let first = self.try_take_from(placement.first(), order, flags);
        if first.is_some() || self.nr_nodes() == 1 {
            return first;
        }
        let mut others = placement.others(self.nodes_with_memory());
        others.find_map(|node| self.try_take_from(node, order, flags))
    }

    /// Takes a block from one node: its zones are asked highest first, because the low ones are scarce.
    fn try_take_from(&self, node: NodeId, order: Order, flags: AllocFlags) -> Option<Pfn> {
        let zones = || self.node(node).zones().iter().rev();
        if !Magazine::caches(order) || node != self.local_node() {
            return zones().find_map(|zone| zone.alloc(self, order, flags));
        }
        self.with_own_magazine(|magazine| {
            if let Some(pfn) = magazine.pop(order) {
                return Some(pfn);
            }
            zones().find(|zone| zone.refill(self, magazine, order, flags))?;
            magazine.pop(order)
        })
    }

    /// Moves part of a magazine's pages of `order` to the zones.
    fn spill(&self, magazine: &mut Magazine<'_>, order: Order) {
        let spilled = magazine.take_spill(order);
        let mut rest = spilled;
        while let Some((&first, _)) = rest.split_first() {
            let zone = self.zone_of(Pfn::new(first));
            let of_zone = rest
                .iter()
                .take_while(|&&pfn| zone.range().contains(Pfn::new(pfn)))
                .count();
            let (batch, others) = rest.split_at(of_zone);
            zone.free_batch(self, batch, order);
            rest = others;
        }
    }

    /// Marks a page whose record is corrupt so that it is never used again, and counts it.
    pub(crate) fn report_bad_page(&self, pfn: Pfn, reason: BadPage) {
        self.pages().page(pfn).set_flags(PageFlags::HWPOISON);
        self.note_bad_page(pfn, reason);
    }
}

/// Checks invariant I11 on the first page of a block that is about to be free.
fn check_free(page: Page<'_>) -> Result<(), BadPage> {
    if !(page.state().flags() & (PageFlags::CHECKED_AT_FREE | PageFlags::HEAD | PageFlags::TAIL)).is_empty() {
        return Err(BadPage::Flags);
    }
    // Another cache line, for what the last unmap has asserted already.
    if cfg!(debug_assertions) && page.raw_mapcount() != -1 {
        return Err(BadPage::StillMapped);
    }
    if page.refs_hint() != 0 {
        return Err(BadPage::Referenced);
    }
    Ok(())
}
