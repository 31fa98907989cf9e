//! F1: the numbers of `/proc/vmstat`: per-CPU, summed by the reader.
//!
//! Each CPU adds to its own array, so no line is shared on a hot path; one CPU's value may be negative (a page
//! allocated here, freed there), the sum is exact when nobody is running.

use crate::sync::AtomicU64;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident => $text:literal,)*) => {
        /// One number of `/proc/vmstat`.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum Counter { $($(#[$doc])* $name,)* }

        impl Counter {
            /// All of them, in the order in which Linux 6.1 prints them.
            pub const ALL: &'static [Counter] = &[$(Counter::$name,)*];

            /// The name in `/proc/vmstat`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Counter::$name => $text,)* }
            }
        }
    };
}

counters! {
    /// Base pages that are locked into memory.
    NrMlock => "nr_mlock",
    /// Base pages on the inactive anonymous LRU lists.
    NrInactiveAnon => "nr_inactive_anon",
    /// Base pages on the active anonymous LRU lists.
    NrActiveAnon => "nr_active_anon",
    /// Base pages that reclaim has nothing to look for in: those that are locked into memory.
    NrUnevictable => "nr_unevictable",
    /// Base pages in slabs that reclaim cannot shrink.
    NrSlabUnreclaimable => "nr_slab_unreclaimable",
    /// Base pages of anonymous memory that were taken off the LRU lists to be moved.
    NrIsolatedAnon => "nr_isolated_anon",
    /// Distinct base pages of anonymous memory that some page table maps (invariant I7).
    NrAnonPages => "nr_anon_pages",
    /// Huge pages that some PMD maps. Counted in huge pages, not base pages.
    NrAnonThps => "nr_anon_transparent_hugepages",
    /// Pages that hold page tables, deposited ones included.
    NrPageTable => "nr_page_table_pages",
    /// Base pages handed out.
    PgAlloc => "pgalloc_normal",
    /// Base pages given back.
    PgFree => "pgfree",
    /// Base pages that were made ready to be dropped (`MADV_FREE`).
    PgLazyFree => "pglazyfree",
    /// Page faults that were resolved.
    PgFault => "pgfault",
    /// Base pages that were ready to be dropped and were.
    PgLazyFreed => "pglazyfreed",
    /// Write faults on shared memory that found it was theirs alone by then.
    PgReuse => "pgreuse",
    /// Base pages moved to other frames.
    PgMigrateSuccess => "pgmigrate_success",
    /// Base pages that were to be moved and could not be.
    PgMigrateFail => "pgmigrate_fail",
    /// Huge pages moved whole.
    ThpMigrationSuccess => "thp_migration_success",
    /// Huge pages that were to be moved and could not be, whole or in parts.
    ThpMigrationFail => "thp_migration_fail",
    /// Huge pages split in order to move their parts.
    ThpMigrationSplit => "thp_migration_split",
    /// Base pages that were locked into memory.
    UnevictableMlocked => "unevictable_pgs_mlocked",
    /// Base pages that were no longer locked while somebody had them.
    UnevictableMunlocked => "unevictable_pgs_munlocked",
    /// Base pages that were locked until they were freed.
    UnevictableCleared => "unevictable_pgs_cleared",
    /// Huge pages put in by a page fault.
    ThpFaultAlloc => "thp_fault_alloc",
    /// Faults that wanted a huge page and got a small one because none was free.
    ThpFaultFallback => "thp_fault_fallback",
    /// Huge pages split into base pages.
    ThpSplitPage => "thp_split_page",
    /// Attempts at that which failed.
    ThpSplitPageFailed => "thp_split_page_failed",
    /// Huge pages put on the deferred split queue.
    ThpDeferredSplitPage => "thp_deferred_split_page",
    /// PMD mappings turned into tables of PTEs.
    ThpSplitPmd => "thp_split_pmd",
    /// Huge zero pages allocated.
    ThpZeroPageAlloc => "thp_zero_page_alloc",
    /// Attempts at that which failed.
    ThpZeroPageAllocFailed => "thp_zero_page_alloc_failed",
}

impl Counter {
    /// Whether it counts how often something happened, and so never goes down. The others count what there is now.
    #[must_use]
    pub const fn is_event(self) -> bool {
        !matches!(self.name().as_bytes(), [b'n', b'r', b'_', ..])
    }
}

/// Number of counters.
pub const NR_COUNTERS: usize = Counter::ALL.len();

/// One CPU's share of every counter.
#[repr(C)]
pub struct CpuCounters {
    values: [AtomicU64; NR_COUNTERS],
}

impl CpuCounters {
    /// Adds `delta`. Only the owning CPU calls this, with preemption off.
    pub(crate) fn add(&self, counter: Counter, delta: i64) {
        let value = &self.values[counter as usize];
        // Relaxed load and store, no locked operation: one writer, and readers sum up snapshots anyway.
        value.store_relaxed(value.load_relaxed().wrapping_add_signed(delta));
    }

    /// One CPU's share; may be "negative" (wrapped).
    pub(crate) fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize].load_relaxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    #[test]
    fn t8_4_events_are_counted_past_32_bits() {
        let mem = Bench::memory(64);
        let events = Counter::ALL.iter().filter(|counter| counter.is_event());
        for &counter in events {
            let before = mem.count(counter);
            mem.add(counter, i64::from(u32::MAX));
            mem.add(counter, 1);
            assert_eq!(mem.count(counter), before + (1 << 32), "{}", counter.name());
        }
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "ThpSplitPmd goes down")]
    fn t8_4_an_event_is_never_taken_back() {
        Bench::memory(64).add(Counter::ThpSplitPmd, -1);
    }

    #[test]
    fn what_there_is_now_is_no_event() {
        assert!(!Counter::NrAnonPages.is_event());
        assert!(Counter::PgFree.is_event() && Counter::ThpSplitPage.is_event());
    }
}
