//! A CPU's own free pages: two stacks of frame numbers, one for base pages and one for huge pages.
//!
//! All-zero bytes are a valid, empty magazine: per-CPU memory starts zeroed.

use crate::{
    addr::Pfn,
    order::{Order, PMD_ORDER},
};

/// Base pages that a magazine holds.
pub const SMALL_SLOTS: usize = 256;
/// Huge pages that a magazine holds.
pub const HUGE_SLOTS: usize = 16;

/// A stack in an array.
#[repr(C)]
struct Stack<const SLOTS: usize> {
    used: u32,
    pfns: [u32; SLOTS],
}

impl<const SLOTS: usize> Stack<SLOTS> {
    fn push(&mut self, pfn: u32) {
        self.pfns[self.used as usize] = pfn;
        self.used += 1;
    }

    fn pop(&mut self) -> Option<u32> {
        self.used = self.used.checked_sub(1)?;
        Some(self.pfns[self.used as usize])
    }

    fn held(&self) -> &[u32] {
        &self.pfns[..self.used as usize]
    }

    /// Gives up the upper half, the whole if it is one.
    fn take_half(&mut self) -> &[u32] {
        let (end, keep) = (self.used as usize, self.used / 2);
        self.used = keep;
        &self.pfns[keep as usize..end]
    }
}

/// A CPU's magazine. Guarded by the spin lock around it.
#[repr(C)]
pub struct Magazine {
    small: Stack<SMALL_SLOTS>,
    huge: Stack<HUGE_SLOTS>,
}

impl Magazine {
    pub(super) fn is_full(&self, order: Order) -> bool {
        self.held(order).len()
            == if order == PMD_ORDER {
                HUGE_SLOTS
            } else {
                SMALL_SLOTS
            }
    }

    pub(super) fn is_empty(&self, order: Order) -> bool {
        self.held(order).is_empty()
    }

    /// The first frames of the blocks of `order` that it holds.
    #[must_use]
    pub fn held(&self, order: Order) -> &[u32] {
        if order == PMD_ORDER {
            self.huge.held()
        } else {
            self.small.held()
        }
    }

    /// Base pages in all blocks together.
    #[must_use]
    pub fn nr_pages(&self) -> u64 {
        u64::from(self.small.used) + u64::from(self.huge.used) * u64::from(PMD_ORDER.nr_pages())
    }

    pub(super) fn push(&mut self, order: Order, pfn: Pfn) {
        if order == PMD_ORDER {
            self.huge.push(pfn.raw())
        } else {
            self.small.push(pfn.raw())
        }
    }

    /// Takes in `nr` base pages from `first`, so that they come out lowest first.
    pub(super) fn push_run(&mut self, first: Pfn, nr: u32) {
        let used = self.small.used as usize;
        let end = first.raw() + nr;
        for (slot, pfn) in self.small.pfns[used..used + nr as usize]
            .iter_mut()
            .zip((first.raw()..end).rev())
        {
            *slot = pfn;
        }
        self.small.used += nr;
    }

    pub(super) fn pop(&mut self, order: Order) -> Option<Pfn> {
        let pfn = if order == PMD_ORDER {
            self.huge.pop()
        } else {
            self.small.pop()
        };
        pfn.map(Pfn::new)
    }

    pub(super) fn take_spill(&mut self, order: Order) -> &[u32] {
        if order == PMD_ORDER {
            self.huge.take_half()
        } else {
            self.small.take_half()
        }
    }
}
