//! How much of a zone must stay free, and for whom.
//!
//! The sizes follow Linux's rule of thumb: `min_free_kbytes = 4 * sqrt(managed kB)`, shared out among the zones by
//! size; `low` and `high` a quarter and a half above `min`.

use crate::{flags::AllocFlags, sync::AtomicU32};

/// Limits of one zone, in base pages.
pub struct Watermarks {
    min: AtomicU32,
}

impl Watermarks {
    pub(super) const fn new() -> Self {
        Self {
            min: AtomicU32::new(0),
        }
    }

    /// Below this many free pages only allocations that give memory back succeed.
    #[must_use]
    pub fn min(&self) -> u32 {
        self.min.load_relaxed()
    }

    /// Below this, allocations with a fallback fail and background reclaim should run.
    #[must_use]
    pub fn low(&self) -> u32 {
        self.min() + self.min() / 4
    }

    /// Above this, background reclaim may rest.
    #[must_use]
    pub fn high(&self) -> u32 {
        self.min() + self.min() / 2
    }

    /// Sets the limits for a zone that holds `zone` of the machine's `all` managed pages.
    pub(crate) fn set(&self, zone: u32, all: u64) {
        let kilobytes = all * 4;
        let min_pages = (kilobytes * 16).isqrt() / 4;
        let share = min_pages * u64::from(zone) / all.max(1);
        self.min.store_relaxed(u32::try_from(share).unwrap_or(u32::MAX));
    }

    /// Whether `nr` of `free` pages may be taken.
    pub(super) fn allow(&self, free: u32, nr: u32, flags: AllocFlags) -> bool {
        let floor = if flags.contains(AllocFlags::RESERVE) {
            0
        } else if flags.contains(AllocFlags::OPPORTUNISTIC) {
            self.low()
        } else {
            self.min()
        };
        free >= floor.saturating_add(nr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_allocation_has_its_floor() {
        let marks = Watermarks::new();
        marks.set(1 << 17, 1 << 17);
        assert_eq!((marks.min(), marks.low(), marks.high()), (724, 905, 1086));
        assert!(marks.allow(724 + 1, 1, AllocFlags::empty()));
        assert!(!marks.allow(724, 1, AllocFlags::empty()));
        assert!(marks.allow(1, 1, AllocFlags::RESERVE));
        assert!(!marks.allow(0, 1, AllocFlags::RESERVE));
        assert!(!marks.allow(905 + 511, 512, AllocFlags::OPPORTUNISTIC));
        assert!(marks.allow(905 + 512, 512, AllocFlags::OPPORTUNISTIC));
    }
}
