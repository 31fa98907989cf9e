//! The page walk of an x86_64 CPU with four levels, from the manual's description of the entries. In builds for tools
//! that run code step by step the tables are as small as `mm`'s.

use std::sync::atomic::{AtomicU64, Ordering};

use mm::{
    addr::{ENTRIES, ENTRIES_SHIFT, PAGE_BYTES, PAGE_SHIFT, PMD_SIZE, Pfn},
    platform::{CpuId, Platform},
};

use super::SimMachine;

/// Bits of a paging-structure entry.
pub mod entry_bits {
    /// Present.
    pub const PRESENT: u64 = 1 << 0;
    /// Writes allowed.
    pub const WRITE: u64 = 1 << 1;
    /// Ring 3 allowed.
    pub const USER: u64 = 1 << 2;
    /// Used since software cleared it.
    pub const ACCESSED: u64 = 1 << 5;
    /// Written since software cleared it.
    pub const DIRTY: u64 = 1 << 6;
    /// In a PMD entry: maps 2 MiB.
    pub const HUGE: u64 = 1 << 7;
    /// The frame's address.
    pub const FRAME: u64 = 0x000f_ffff_ffff_f000;
    /// Execution forbidden.
    pub const NO_EXEC: u64 = 1 << 63;
    /// Not a hardware bit: the positive form of [`NO_EXEC`] in the rights of a [`super::Leaf`].
    pub const EXEC: u64 = 1 << 62;
}
use entry_bits::{ACCESSED, DIRTY, EXEC, FRAME, HUGE, NO_EXEC, PRESENT, USER, WRITE};

/// A translation: what a successful walk finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// First address translated.
    pub start: u64,
    /// Bytes translated: 4 KiB or 2 MiB.
    pub size: u64,
    /// First frame.
    pub pfn: u64,
    /// [`WRITE`], [`USER`] and [`EXEC`] where all levels allow it, [`DIRTY`] of the last level.
    pub rights: u64,
}

/// What the tables say about an address, without touching them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Walk {
    /// A translation.
    Mapped(Leaf),
    /// An entry without the present bit, at this level (4 = PGD, 1 = PTE), with these bits.
    Missing {
        /// Level of the entry.
        level: u32,
        /// Its value.
        entry: u64,
    },
}

/// A table entry in memory.
type Slot = AtomicU64;

impl SimMachine {
    fn slot(&self, table: Pfn, index: u64) -> &Slot {
        assert!(
            table.raw() < self.frames(),
            "a table lies at {table:?}, where there is no memory"
        );
        let offset = usize::try_from(index * 8).expect("invariant: an index below 512");
        let entry = self.frame_ptr(table).wrapping_add(offset);
        // SAFETY: the entry is inside the window and aligned to 8; table entries are only accessed as 64-bit atomics,
        // by mm as well.
        unsafe { AtomicU64::from_ptr(entry.cast()) }
    }

    /// Descends to the last entry for `addr`. Returns it with its level, value and the rights of all levels.
    fn descend(&self, root: Pfn, addr: u64) -> (&Slot, u32, u64, u64) {
        let mut table = root;
        let mut rights = WRITE | USER | EXEC;
        let mut level = 4;
        loop {
            let shift = PAGE_SHIFT + ENTRIES_SHIFT * (level - 1);
            let slot = self.slot(table, (addr >> shift) % ENTRIES as u64);
            let entry = slot.load(Ordering::Acquire);
            rights &= (entry & (WRITE | USER)) | if entry & NO_EXEC == 0 { EXEC } else { 0 };
            if level == 1 || entry & PRESENT == 0 || (level == 2 && entry & HUGE != 0) {
                return (slot, level, entry, rights);
            }
            assert!(
                !(level == 3 && entry & HUGE != 0),
                "a 1 GiB entry in a user address space"
            );
            let number = u32::try_from((entry & FRAME) >> 12).expect("a table below 16 TiB");
            table = Pfn::new(number);
            level -= 1;
        }
    }

    /// Reads the tables, as a debugger would: no bit changes.
    #[must_use]
    pub fn walk(&self, root: Pfn, addr: u64) -> Walk {
        let (_, level, entry, rights) = self.descend(root, addr);
        if entry & PRESENT == 0 {
            return Walk::Missing { level, entry };
        }
        Walk::Mapped(leaf(addr, level, entry, rights))
    }

    /// The bits of the last entry on the way to `addr`.
    #[must_use]
    pub fn entry(&self, root: Pfn, addr: u64) -> u64 {
        self.descend(root, addr).2
    }

    /// Changes the last entry on the way to `addr` behind `mm`'s back, and drops every CPU's translations.
    pub fn edit_entry(&self, root: Pfn, addr: u64, edit: impl FnOnce(u64) -> u64) {
        let (slot, _, entry, _) = self.descend(root, addr);
        slot.store(edit(entry), Ordering::Release);
        for number in (0..64).take(self.nr_cpus() as usize) {
            self.load_cr3(CpuId::new(number));
        }
    }

    /// Writes an entry of a root, as the platform does in the half that is its own, and drops every CPU's translations.
    pub fn set_root_entry(&self, root: Pfn, index: u64, entry: u64) {
        self.slot(root, index).store(entry, Ordering::Release);
        for number in (0..64).take(self.nr_cpus() as usize) {
            self.load_cr3(CpuId::new(number));
        }
    }

    /// Walks for an access that needs `need`, setting accessed and dirty bits; `None` is a page fault.
    pub(super) fn walk_and_mark(&self, root: Pfn, addr: u64, need: u64) -> Option<Leaf> {
        loop {
            let (slot, level, entry, rights) = self.descend(root, addr);
            let wanted = need & (WRITE | USER | EXEC);
            if entry & PRESENT == 0 || rights & wanted != wanted {
                return None;
            }
            let marked = entry | ACCESSED | (need & DIRTY);
            // A locked compare-exchange, as the processor does it: an entry that changed meanwhile is walked again.
            if slot
                .compare_exchange(entry, marked, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
            {
                return Some(leaf(addr, level, marked, rights));
            }
        }
    }
}

fn leaf(addr: u64, level: u32, entry: u64, rights: u64) -> Leaf {
    let size = if level == 2 { PMD_SIZE } else { PAGE_BYTES };
    let frame = entry & FRAME & !(size - 1);
    Leaf {
        start: addr & !(size - 1),
        size,
        pfn: frame >> 12,
        rights: rights | (entry & DIRTY),
    }
}
