//! One CPU's translation cache: as large as it needs to be, so that nothing leaves it by luck.

use std::collections::BTreeMap;

use mm::{
    addr::{PAGE_BYTES, PMD_SIZE, Pfn, VirtRange},
    platform::Stride,
};

use super::walk::{Leaf, Walk, entry_bits};

/// A cached translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TlbEntry {
    /// The PGD it was walked from.
    pub root: Pfn,
    /// First address.
    pub start: u64,
    /// Bytes: 4 KiB or 2 MiB.
    pub size: u64,
    /// First frame.
    pub pfn: u64,
    /// As [`Leaf::rights`].
    pub rights: u64,
}

/// The cache. A CPU runs one address space at a time, and loading CR3 empties it, so the root is not part of the key.
#[derive(Default)]
pub struct Tlb {
    small: BTreeMap<u64, TlbEntry>,
    large: BTreeMap<u64, TlbEntry>,
}

impl TlbEntry {
    /// Whether an access that needs these rights may use it.
    pub(super) fn allows(&self, need: u64) -> bool {
        self.rights & need == need
    }

    pub(super) fn leaf(&self) -> Leaf {
        Leaf {
            start: self.start,
            size: self.size,
            pfn: self.pfn,
            rights: self.rights,
        }
    }

    /// Why the tables forbid this translation, if they do. A cached right that the tables extend is allowed: using it
    /// ends in a fault that finds nothing to do.
    pub(super) fn staleness(&self, now: &Walk) -> Option<&'static str> {
        let Walk::Mapped(leaf) = now else {
            return Some("the entry is not present");
        };
        let pfn = leaf.pfn + (self.start.max(leaf.start) - leaf.start) / PAGE_BYTES;
        let own = self.pfn + (self.start.max(leaf.start) - self.start) / PAGE_BYTES;
        if leaf.size != self.size {
            Some("the entry has another size")
        } else if pfn != own {
            Some("the entry maps another frame")
        } else if self.rights & !leaf.rights & entry_bits::DIRTY != 0 {
            Some("the entry was made clean, so a write would be lost")
        } else if self.rights & !leaf.rights != 0 {
            Some("the entry grants less")
        } else {
            None
        }
    }
}

impl Tlb {
    pub(super) fn clear(&mut self) {
        self.small.clear();
        self.large.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.small.len() + self.large.len()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &TlbEntry> {
        self.small.values().chain(self.large.values())
    }

    pub(super) fn lookup(&self, root: Pfn, addr: u64) -> Option<TlbEntry> {
        let small = self.small.get(&(addr & !(PAGE_BYTES - 1)));
        let found = small
            .or_else(|| self.large.get(&(addr & !(PMD_SIZE - 1))))
            .copied();
        assert!(
            found.is_none_or(|entry| entry.root == root),
            "address spaces were switched without loading CR3"
        );
        found
    }

    /// Caches `leaf`. Returns an entry of the other size that translates the same address, if one is there.
    pub(super) fn insert(&mut self, root: Pfn, leaf: &Leaf) -> Option<TlbEntry> {
        let entry = TlbEntry {
            root,
            start: leaf.start,
            size: leaf.size,
            pfn: leaf.pfn,
            rights: leaf.rights,
        };
        if leaf.size == PMD_SIZE {
            self.large.insert(leaf.start, entry);
            self.small
                .range(leaf.start..leaf.start + PMD_SIZE)
                .next()
                .map(|(_, other)| *other)
        } else {
            self.small.insert(leaf.start, entry);
            self.large.get(&(leaf.start & !(PMD_SIZE - 1))).copied()
        }
    }

    /// Drops what translates `addr`: INVLPG.
    pub(super) fn invalidate_page(&mut self, addr: u64) -> Vec<TlbEntry> {
        let small = self.small.remove(&(addr & !(PAGE_BYTES - 1)));
        let large = self.large.remove(&(addr & !(PMD_SIZE - 1)));
        small.into_iter().chain(large).collect()
    }

    /// Drops what INVLPG at each `stride` of `range` drops, and returns it. With a stride of 2 MiB, small
    /// translations between the steps stay, as they do in hardware.
    pub(super) fn invalidate(&mut self, range: VirtRange, stride: Stride) -> Vec<TlbEntry> {
        let (start, end) = (range.start().as_u64(), range.end().as_u64());
        let step = match stride {
            Stride::Page => PAGE_BYTES,
            Stride::Pmd => PMD_SIZE,
        };
        let hit = |page: u64| {
            let first = page.max(start);
            // The first step at or after `first` must lie inside the page.
            start + (first - start).next_multiple_of(step)
        };
        let small: Vec<u64> = self
            .small
            .range(start..end)
            .map(|(&page, _)| page)
            .filter(|&page| hit(page) < page + PAGE_BYTES)
            .collect();
        let first_large = start & !(PMD_SIZE - 1);
        let large: Vec<u64> = self
            .large
            .range(first_large..end.max(first_large))
            .map(|(&page, _)| page)
            .filter(|&page| hit(page) < (page + PMD_SIZE).min(end))
            .collect();
        let small = small.into_iter().filter_map(|page| self.small.remove(&page));
        let mut dropped: Vec<TlbEntry> = small.collect();
        dropped.extend(large.into_iter().filter_map(|page| self.large.remove(&page)));
        dropped
    }
}

#[cfg(test)]
mod tests {
    use mm::addr::VirtAddr;

    use super::*;

    fn leaf(start: u64, size: u64) -> Leaf {
        Leaf {
            start,
            size,
            pfn: start >> 12,
            rights: entry_bits::USER,
        }
    }

    fn range(start: u64, end: u64) -> VirtRange {
        VirtRange::new(VirtAddr::new(start), VirtAddr::new(end)).expect("aligned")
    }

    #[test]
    fn a_flush_by_2_mib_leaves_small_translations_between_its_steps() {
        let mut tlb = Tlb::default();
        for page in [0x20_0000, 0x20_1000, 0x40_0000] {
            assert_eq!(tlb.insert(Pfn::new(1), &leaf(page, PAGE_BYTES)), None);
        }
        assert_eq!(tlb.insert(Pfn::new(1), &leaf(0x60_0000, PMD_SIZE)), None);
        let dropped = tlb.invalidate(range(0x20_0000, 0x80_0000), Stride::Pmd);
        assert_eq!(dropped.len(), 3);
        assert!(tlb.lookup(Pfn::new(1), 0x20_1000).is_some());
    }

    #[test]
    fn flushing_one_page_drops_the_large_translation_around_it() {
        let mut tlb = Tlb::default();
        assert_eq!(tlb.insert(Pfn::new(1), &leaf(0x20_0000, PMD_SIZE)), None);
        assert_eq!(tlb.invalidate(range(0x20_7000, 0x20_8000), Stride::Page).len(), 1);
    }

    #[test]
    fn both_sizes_for_one_address_are_noticed() {
        let mut tlb = Tlb::default();
        assert_eq!(tlb.insert(Pfn::new(1), &leaf(0x20_0000, PMD_SIZE)), None);
        assert!(tlb.insert(Pfn::new(1), &leaf(0x20_7000, PAGE_BYTES)).is_some());
    }
}
