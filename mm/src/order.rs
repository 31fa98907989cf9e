//! F0: power-of-two numbers of base pages.

use crate::addr::ENTRIES_SHIFT;

/// A power-of-two number of base pages that the buddy allocator can hand out.
///
/// Having one tells you that it is at most [`Order::MAX`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(transparent)]
pub struct Order(u8);

/// The order of a page that one PMD entry maps.
#[expect(clippy::cast_possible_truncation, reason = "9")]
pub const PMD_ORDER: Order = Order(ENTRIES_SHIFT as u8);

impl Order {
    /// One base page.
    pub const ZERO: Order = Order(0);
    /// The largest block the allocator hands out.
    pub const MAX: Order = Order(10);
    /// Number of different orders.
    pub const COUNT: usize = Self::MAX.0 as usize + 1;

    /// Returns the order, or `None` past [`Order::MAX`].
    #[must_use]
    pub const fn new(order: u8) -> Option<Self> {
        if order <= Self::MAX.0 {
            Some(Self(order))
        } else {
            None
        }
    }

    /// Returns the smallest order of at least `pages` pages, or `None` if no block is that large.
    #[must_use]
    pub const fn fitting(pages: u32) -> Option<Self> {
        if pages == 0 || pages > Self::MAX.nr_pages() {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most 10")]
        Some(Self(pages.next_power_of_two().trailing_zeros() as u8))
    }

    /// Returns the largest order of at most `pages` pages, or `None` for 0.
    #[must_use]
    pub const fn at_most(pages: u32) -> Option<Self> {
        match pages.checked_ilog2() {
            #[expect(clippy::cast_possible_truncation, reason = "below 32")]
            Some(log2) => Some(if log2 > Self::MAX.0 as u32 {
                Self::MAX
            } else {
                Self(log2 as u8)
            }),
            None => None,
        }
    }

    /// log2 of the number of pages.
    #[must_use]
    pub const fn raw(self) -> u8 {
        self.0
    }

    /// The order as an index into per-order arrays.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Number of base pages.
    #[must_use]
    pub const fn nr_pages(self) -> u32 {
        1 << self.0
    }

    /// The next larger order, or `None` at the largest.
    #[must_use]
    pub const fn up(self) -> Option<Self> {
        Self::new(self.0 + 1)
    }

    /// The next smaller order, or `None` at 0.
    #[must_use]
    pub const fn down(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(order) => Some(Self(order)),
            None => None,
        }
    }

    /// All orders, smallest first.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        (0..=Self::MAX.0).map(Self)
    }
}

const _: () = assert!(PMD_ORDER.0 <= Order::MAX.0 && PMD_ORDER.0 >= 2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fitting_is_the_smallest_that_holds() {
        assert_eq!(Order::fitting(0), None);
        assert_eq!(Order::fitting(1), Some(Order::ZERO));
        assert_eq!(Order::fitting(3).map(Order::raw), Some(2));
        assert_eq!(Order::fitting(1024), Some(Order::MAX));
        assert_eq!(Order::fitting(1025), None);
        assert_eq!(Order::at_most(0), None);
        assert_eq!(Order::at_most(7).map(Order::raw), Some(2));
        assert_eq!(Order::at_most(u32::MAX), Some(Order::MAX));
    }
}
