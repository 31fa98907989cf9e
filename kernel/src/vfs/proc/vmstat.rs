//! The names of Linux 6.1's `/proc/vmstat`, in its order.

use mm::Counter;

/// What stands where nothing is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Otherwise {
    /// 0: there is nothing here that could be counted (no files in memory, no swap, no reclaim, no khugepaged).
    Zero,
    /// No line: there is something, and nobody counts it.
    Absent,
}

use Otherwise::{Absent, Zero};

/// Each name, and what stands there if `mm` has no counter of that name.
pub(super) const NAMES: &[(&str, Otherwise)] = &[
    ("nr_free_pages", Zero),
    ("nr_zone_inactive_anon", Zero),
    ("nr_zone_active_anon", Zero),
    ("nr_zone_inactive_file", Zero),
    ("nr_zone_active_file", Zero),
    ("nr_zone_unevictable", Zero),
    ("nr_zone_write_pending", Zero),
    ("nr_mlock", Zero),
    ("nr_bounce", Zero),
    ("nr_zspages", Zero),
    ("nr_free_cma", Zero),
    ("numa_hit", Absent),
    ("numa_miss", Absent),
    ("numa_foreign", Absent),
    ("numa_interleave", Absent),
    ("numa_local", Absent),
    ("numa_other", Absent),
    ("nr_inactive_anon", Zero),
    ("nr_active_anon", Zero),
    ("nr_inactive_file", Zero),
    ("nr_active_file", Zero),
    ("nr_unevictable", Zero),
    ("nr_slab_reclaimable", Zero),
    ("nr_slab_unreclaimable", Zero),
    ("nr_isolated_anon", Zero),
    ("nr_isolated_file", Zero),
    ("workingset_nodes", Zero),
    ("workingset_refault_anon", Zero),
    ("workingset_refault_file", Zero),
    ("workingset_activate_anon", Zero),
    ("workingset_activate_file", Zero),
    ("workingset_restore_anon", Zero),
    ("workingset_restore_file", Zero),
    ("workingset_nodereclaim", Zero),
    ("nr_anon_pages", Zero),
    ("nr_mapped", Zero),
    ("nr_file_pages", Zero),
    ("nr_dirty", Zero),
    ("nr_writeback", Zero),
    ("nr_writeback_temp", Zero),
    ("nr_shmem", Zero),
    ("nr_shmem_hugepages", Zero),
    ("nr_shmem_pmdmapped", Zero),
    ("nr_file_hugepages", Zero),
    ("nr_file_pmdmapped", Zero),
    ("nr_anon_transparent_hugepages", Zero),
    ("nr_vmscan_write", Zero),
    ("nr_vmscan_immediate_reclaim", Zero),
    ("nr_dirtied", Zero),
    ("nr_written", Zero),
    ("nr_throttled_written", Zero),
    ("nr_kernel_misc_reclaimable", Zero),
    ("nr_foll_pin_acquired", Absent),
    ("nr_foll_pin_released", Absent),
    ("nr_kernel_stack", Absent),
    ("nr_page_table_pages", Zero),
    ("nr_sec_page_table_pages", Zero),
    ("nr_swapcached", Zero),
    ("pgpromote_success", Zero),
    ("pgpromote_candidate", Zero),
    ("nr_dirty_threshold", Absent),
    ("nr_dirty_background_threshold", Absent),
    ("pgpgin", Zero),
    ("pgpgout", Zero),
    ("pswpin", Zero),
    ("pswpout", Zero),
    ("pgalloc_dma", Absent),
    ("pgalloc_dma32", Absent),
    ("pgalloc_normal", Zero),
    ("pgalloc_movable", Zero),
    ("pgalloc_device", Zero),
    ("allocstall_dma", Zero),
    ("allocstall_dma32", Zero),
    ("allocstall_normal", Zero),
    ("allocstall_movable", Zero),
    ("allocstall_device", Zero),
    ("pgskip_dma", Zero),
    ("pgskip_dma32", Zero),
    ("pgskip_normal", Zero),
    ("pgskip_movable", Zero),
    ("pgskip_device", Zero),
    ("pgfree", Zero),
    ("pgactivate", Absent),
    ("pgdeactivate", Absent),
    ("pglazyfree", Zero),
    ("pgfault", Zero),
    ("pgmajfault", Zero),
    ("pglazyfreed", Zero),
    ("pgrefill", Zero),
    ("pgreuse", Zero),
    ("pgsteal_kswapd", Zero),
    ("pgsteal_direct", Zero),
    ("pgdemote_kswapd", Zero),
    ("pgdemote_direct", Zero),
    ("pgscan_kswapd", Zero),
    ("pgscan_direct", Absent),
    ("pgscan_direct_throttle", Zero),
    ("pgscan_anon", Absent),
    ("pgscan_file", Zero),
    ("pgsteal_anon", Zero),
    ("pgsteal_file", Zero),
    ("zone_reclaim_failed", Zero),
    ("pginodesteal", Zero),
    ("slabs_scanned", Absent),
    ("kswapd_inodesteal", Zero),
    ("kswapd_low_wmark_hit_quickly", Zero),
    ("kswapd_high_wmark_hit_quickly", Zero),
    ("pageoutrun", Zero),
    ("pgrotated", Absent),
    ("drop_pagecache", Absent),
    ("drop_slab", Absent),
    ("oom_kill", Absent),
    ("numa_pte_updates", Zero),
    ("numa_huge_pte_updates", Zero),
    ("numa_hint_faults", Zero),
    ("numa_hint_faults_local", Zero),
    ("numa_pages_migrated", Zero),
    ("pgmigrate_success", Zero),
    ("pgmigrate_fail", Zero),
    ("thp_migration_success", Zero),
    ("thp_migration_fail", Zero),
    ("thp_migration_split", Zero),
    ("compact_migrate_scanned", Zero),
    ("compact_free_scanned", Zero),
    ("compact_isolated", Zero),
    ("compact_stall", Zero),
    ("compact_fail", Zero),
    ("compact_success", Zero),
    ("compact_daemon_wake", Zero),
    ("compact_daemon_migrate_scanned", Zero),
    ("compact_daemon_free_scanned", Zero),
    ("htlb_buddy_alloc_success", Zero),
    ("htlb_buddy_alloc_fail", Zero),
    ("unevictable_pgs_culled", Absent),
    ("unevictable_pgs_scanned", Absent),
    ("unevictable_pgs_rescued", Absent),
    ("unevictable_pgs_mlocked", Zero),
    ("unevictable_pgs_munlocked", Zero),
    ("unevictable_pgs_cleared", Zero),
    ("unevictable_pgs_stranded", Absent),
    ("thp_fault_alloc", Zero),
    ("thp_fault_fallback", Zero),
    ("thp_fault_fallback_charge", Zero),
    ("thp_collapse_alloc", Zero),
    ("thp_collapse_alloc_failed", Zero),
    ("thp_file_alloc", Zero),
    ("thp_file_fallback", Zero),
    ("thp_file_fallback_charge", Zero),
    ("thp_file_mapped", Zero),
    ("thp_split_page", Zero),
    ("thp_split_page_failed", Zero),
    ("thp_deferred_split_page", Zero),
    ("thp_split_pmd", Zero),
    ("thp_scan_exceed_none_pte", Zero),
    ("thp_scan_exceed_swap_pte", Zero),
    ("thp_scan_exceed_share_pte", Zero),
    ("thp_split_pud", Zero),
    ("thp_zero_page_alloc", Zero),
    ("thp_zero_page_alloc_failed", Zero),
    ("thp_swpout", Zero),
    ("thp_swpout_fallback", Zero),
    ("balloon_inflate", Zero),
    ("balloon_deflate", Zero),
    ("balloon_migrate", Zero),
    ("swap_ra", Zero),
    ("swap_ra_hit", Zero),
    ("ksm_swpin_copy", Zero),
    ("cow_ksm", Zero),
    ("direct_map_level2_splits", Absent),
    ("direct_map_level3_splits", Absent),
    ("nr_unstable", Zero),
];

/// The counter of a name. Pages are on their zone's LRU lists and on their node's at once: the same numbers.
pub(super) fn counter(name: &str) -> Option<Counter> {
    let name = match name {
        "nr_zone_inactive_anon" => "nr_inactive_anon",
        "nr_zone_active_anon" => "nr_active_anon",
        "nr_zone_unevictable" => "nr_unevictable",
        name => name,
    };
    Counter::ALL
        .iter()
        .copied()
        .find(|counter| counter.name() == name)
}

/// Whether every counter has a place in [`NAMES`].
pub(super) const fn all_named() -> bool {
    let mut counter = 0;
    while counter < Counter::ALL.len() {
        let mut name = 0;
        while !is_same(NAMES[name].0.as_bytes(), Counter::ALL[counter].name().as_bytes()) {
            name += 1;
            if name == NAMES.len() {
                return false;
            }
        }
        counter += 1;
    }
    true
}

const fn is_same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}
