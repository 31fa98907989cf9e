//! The page-table tree of one address space: its root, its size, and who may have translations from it.

use crate::{
    addr::{PAGE_SHIFT, Pfn},
    platform::{CpuId, CpuMask},
    sync::AtomicU64,
};

/// The page tables of one address space, from the root down.
#[derive(Debug)]
pub struct PageTables {
    root: Pfn,
    nr_tables: AtomicU64,
    cpus: AtomicU64,
}

impl PageTables {
    /// A tree that is only a root.
    pub(crate) fn new(root: Pfn) -> Self {
        Self {
            root,
            nr_tables: AtomicU64::new(1),
            cpus: AtomicU64::new(0),
        }
    }

    /// The frame of the top-level table.
    #[must_use]
    pub fn root(&self) -> Pfn {
        self.root
    }

    /// Bytes in tables of all levels, deposited ones included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.nr_tables.load_relaxed() << PAGE_SHIFT
    }

    /// Whether the root is all that is left.
    pub(crate) fn is_bare(&self) -> bool {
        self.nr_tables.load_relaxed() == 1
    }

    /// Counts tables that were added, or removed.
    pub(crate) fn count(&self, tables: i64) {
        let before = self.nr_tables.fetch_add_relaxed(tables.cast_unsigned());
        crate::vm_assert!(
            before.checked_add_signed(tables).is_some(),
            "more tables removed than there were"
        );
    }

    /// Notes that `cpu` may have translations.
    pub(crate) fn enter(&self, cpu: CpuId) {
        self.cpus.fetch_or_acqrel(1 << cpu.index());
    }

    /// Notes that `cpu` has none left.
    pub(crate) fn leave(&self, cpu: CpuId) {
        self.cpus.fetch_and_acqrel(!(1 << cpu.index()));
    }

    /// CPUs that may have translations.
    #[must_use]
    pub fn cpus(&self) -> CpuMask {
        CpuMask::from_bits(self.cpus.load_acquire())
    }
}
