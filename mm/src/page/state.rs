//! The hot word of a page record as a value: flags in the low half, a link or an order in the high half.
//!
//! ```text
//!   63            40 39    32 31                0
//!  |  destructor    |  order |  flags, HEAD      |   head of a compound page
//!  |      pfn of the head    |  flags, TAIL      |   tail: one load tells that it is a tail and of what
//!  |       order             |  BUDDY            |   first page of a free block
//!  |         0               |  flags            |   any other page
//! ```

use super::Destructor;
use crate::{addr::Pfn, flags::PageFlags, order::Order};

/// A value of the state word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PageState(u64);

impl PageState {
    /// A page nobody knows anything about: no flag set.
    pub(crate) const CLEAR: Self = Self(0);

    pub(crate) const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    pub(crate) const fn raw(self) -> u64 {
        self.0
    }

    /// An order-0 page with these flags.
    pub(crate) const fn of(flags: PageFlags) -> Self {
        Self(flags.bits() as u64)
    }

    /// The head of a compound page.
    pub(crate) const fn new_head(order: Order, destructor: Destructor) -> Self {
        let high = order.raw() as u64 | (destructor as u64) << 8;
        Self(high << 32 | PageFlags::HEAD.bits() as u64)
    }

    /// A tail of the compound page at `head`.
    pub(crate) const fn new_tail(head: Pfn) -> Self {
        Self((head.raw() as u64) << 32 | PageFlags::TAIL.bits() as u64)
    }

    /// The first page of a free block.
    pub(crate) const fn new_buddy(order: Order) -> Self {
        Self((order.raw() as u64) << 32 | PageFlags::BUDDY.bits() as u64)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the word")]
    const fn halves(self) -> (u32, u32) {
        ((self.0 >> 32) as u32, self.0 as u32)
    }

    /// The flags.
    #[must_use]
    pub const fn flags(self) -> PageFlags {
        PageFlags::from_bits_retain(self.halves().1)
    }

    /// The head's number, if this is a tail.
    #[must_use]
    pub const fn head_link(self) -> Option<Pfn> {
        if self.flags().contains(PageFlags::TAIL) {
            Some(Pfn::new(self.halves().0))
        } else {
            None
        }
    }

    /// Order of the compound page that starts here, 0 if none does.
    #[must_use]
    pub const fn compound_order(self) -> Order {
        if !self.flags().contains(PageFlags::HEAD) {
            return Order::ZERO;
        }
        order_of(self.halves().0)
    }

    /// How the compound page that starts here is freed.
    #[must_use]
    pub const fn destructor(self) -> Destructor {
        if self.flags().contains(PageFlags::HEAD)
            && self.halves().0 >> 8 & 0xff == Destructor::TransHuge as u32
        {
            Destructor::TransHuge
        } else {
            Destructor::Compound
        }
    }

    /// Order of the free block that starts here, if one does.
    #[must_use]
    pub const fn buddy_order(self) -> Option<Order> {
        if self.flags().contains(PageFlags::BUDDY) {
            Some(order_of(self.halves().0))
        } else {
            None
        }
    }
}

/// A reader without a lock may see a word mid-change: an impossible order reads as 0.
const fn order_of(high: u32) -> Order {
    match Order::new((high & 0xff) as u8) {
        Some(order) => order,
        None => Order::ZERO,
    }
}

impl core::fmt::Debug for PageState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (high, _) = self.halves();
        write!(f, "{:?}", self.flags())?;
        match (self.head_link(), self.buddy_order()) {
            (Some(head), _) => write!(f, " of {head:?}"),
            (None, Some(order)) => write!(f, " order {}", order.raw()),
            (None, None) if high != 0 => write!(f, " order {}", self.compound_order().raw()),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_what_it_was_made_of() {
        let head = PageState::new_head(crate::order::PMD_ORDER, Destructor::TransHuge);
        assert_eq!(
            (head.compound_order(), head.head_link()),
            (crate::order::PMD_ORDER, None)
        );
        assert_eq!(head.destructor(), Destructor::TransHuge);
        let tail = PageState::new_tail(Pfn::new(0x8000_0001));
        assert_eq!(
            (tail.head_link(), tail.compound_order()),
            (Some(Pfn::new(0x8000_0001)), Order::ZERO)
        );
        let free = PageState::new_buddy(Order::MAX);
        assert_eq!(
            (free.buddy_order(), free.compound_order()),
            (Some(Order::MAX), Order::ZERO)
        );
        assert_eq!(PageState::CLEAR.flags(), PageFlags::empty());
    }
}
