//! The free lists of one zone, and the merging and splitting of blocks.
//!
//! ```text
//!   order 10 | o-o         free: look at the buddy (pfn ^ 2^order); if it is the first page of a free block of the
//!   …        |                   same order, take it off its list and go on one order up
//!   order 1  | o-o-o-o     alloc: take the smallest block that is large enough; give back the upper halves
//!   order 0  | o
//! ```

use crate::{
    addr::{Pfn, PfnRange},
    order::Order,
    page::{Page, PageArray, PageList, PageState},
};

/// Free blocks by order. Guarded by the zone lock.
#[derive(Debug)]
pub(super) struct FreeAreas {
    lists: [PageList; Order::COUNT],
    /// Bit n: list n is not empty.
    occupied: u32,
    /// Base pages on all lists.
    nr_free: u32,
}

impl FreeAreas {
    pub(super) const fn new() -> Self {
        Self {
            lists: [const { PageList::new() }; Order::COUNT],
            occupied: 0,
            nr_free: 0,
        }
    }

    pub(super) fn nr_free(&self) -> u32 {
        self.nr_free
    }

    /// Number of blocks of each order.
    pub(super) fn blocks(&self) -> [u64; Order::COUNT] {
        core::array::from_fn(|order| u64::from(self.lists[order].len()))
    }

    /// The blocks of one order.
    pub(super) fn list(&self, order: Order) -> &PageList {
        &self.lists[order.index()]
    }

    /// Adds a block, merging it with its free buddies inside `zone`.
    pub(super) fn free(&mut self, array: &PageArray, zone: PfnRange, pfn: Pfn, order: Order) {
        self.nr_free += order.nr_pages();
        let (mut pfn, mut order) = (pfn, order);
        while let Some(larger) = order.up() {
            let buddy = pfn.buddy(order);
            if !zone.contains(buddy) || array.page(buddy).state() != PageState::new_buddy(order) {
                break;
            }
            self.unlink(array.page(buddy), order);
            pfn = pfn.align_down(larger);
            order = larger;
        }
        self.link(array.page(pfn), order);
    }

    /// Takes a block of exactly `order`, splitting a larger one if need be.
    pub(super) fn alloc(&mut self, array: &PageArray, order: Order) -> Option<Pfn> {
        let large_enough = self.occupied >> order.index() << order.index();
        let mut found = Order::new(u8::try_from(large_enough.trailing_zeros()).ok()?)?;
        let page = self.lists[found.index()].first(array)?;
        self.unlink(page, found);
        while found > order {
            found = found.down()?;
            self.link(page.offset(found.nr_pages()), found);
        }
        self.nr_free -= order.nr_pages();
        Some(page.pfn())
    }

    /// Largest order from `least` to `most` with a block; `most` if only larger blocks are left.
    pub(super) fn best_run(&self, least: Order, most: Order) -> Option<Order> {
        let usable = self.occupied >> least.index() << least.index();
        let up_to_most = usable & ((2 << most.index()) - 1);
        match (up_to_most, usable) {
            (0, 0) => None,
            (0, _) => Some(most),
            _ => Order::new(u8::try_from(up_to_most.ilog2()).ok()?),
        }
    }

    fn link(&mut self, page: Page<'_>, order: Order) {
        page.set_private_state(PageState::new_buddy(order));
        self.lists[order.index()].push_front(page);
        self.occupied |= 1 << order.index();
    }

    fn unlink(&mut self, page: Page<'_>, order: Order) {
        let list = &mut self.lists[order.index()];
        list.remove(page);
        if list.is_empty() {
            self.occupied &= !(1 << order.index());
        }
        page.set_private_state(PageState::CLEAR);
    }
}
