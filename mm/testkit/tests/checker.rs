//! Each rule of the checker and of the simulated machine, broken once: it must be noticed, and named.

use mm::{
    Advice, Counter, ENTRIES, MapRequest, Order, PAGE_SHIFT, PageFlags, Pfn, Place, Prot, VirtAddr,
    VirtRange, VmaFlags,
    addr::ENTRIES_SHIFT,
    check::{Damage, Owners, Rule},
    platform::{CpuId, Nanos, Platform, Stride, WaitKey},
};
use mm_testkit::{
    machine::{Walk, on_cpu},
    scenario::{HOME, HUGE},
    sim::{Config, FIRMWARE_FRAMES, Process, Sim},
};

/// Pages at home: a huge page; behind it a huge page that is split and lacks page 7; behind it base pages without
/// write permission.
const SPLIT: u64 = HUGE;
const SMALL: u64 = 2 * HUGE;

fn addr(page: u64) -> VirtAddr {
    VirtAddr::new(HOME + page * 4096)
}

fn range(first: u64, pages: u64) -> VirtRange {
    VirtRange::new(addr(first), addr(first + pages)).expect("aligned")
}

fn populate(process: &Process<'_>, sim: &Sim) {
    let request = MapRequest {
        hint: HOME,
        len: (2 * HUGE + 16) * 4096,
        prot: Prot::READ | Prot::WRITE,
        place: Place::Fixed,
        flags: VmaFlags::empty(),
    };
    sim.mmap(process, request).expect("there is room");
    for page in [0, SPLIT, SMALL, SMALL + 1] {
        process
            .write_byte(addr(page).as_u64(), 1)
            .expect("it may be written");
    }
    sim.madvise(process, range(SPLIT + 7, 1), Advice::DontNeed)
        .expect("it is mapped");
    sim.mprotect(process, range(SMALL, 16), Prot::READ)
        .expect("it is mapped");
}

/// The frame behind a page.
fn frame(process: &Process<'_>, sim: &Sim, page: u64) -> Pfn {
    match sim.machine().walk(process.root(), addr(page).as_u64()) {
        Walk::Mapped(leaf) => {
            let offset = (addr(page).as_u64() - leaf.start) / 4096;
            Pfn::new(u32::try_from(leaf.pfn + offset).expect("a frame number"))
        }
        missing => panic!("page {page}: {missing:?}"),
    }
}

fn with_machine<T>(f: impl FnOnce(&Sim, &Process<'_>) -> T) -> T {
    let sim = Sim::boot(&Config::default());
    let process = sim.start(CpuId::new(0)).expect("memory is there");
    populate(&process, &sim);
    sim.verify(&[&process], &());
    let result = f(&sim, &process);
    // A machine that was broken on purpose cannot be torn down in order.
    core::mem::forget(process);
    result
}

fn notices(damage: impl FnOnce(&Sim, &Process<'_>) -> Damage) {
    with_machine(|sim, process| {
        let damage = damage(sim, process);
        sim.sabotage(process, damage);
        let violation = sim
            .check(&[process], &())
            .expect_err("the damage was not noticed");
        assert_eq!(
            violation.rule,
            damage.rule(),
            "{damage:?} was taken for: {violation}"
        );
        assert!(!violation.to_string().is_empty());
    });
}

macro_rules! notices {
    ($($test:ident: |$sim:ident, $process:ident| $damage:expr;)*) => {
        $(#[test] fn $test() { notices(|$sim, $process| $damage); })*
    };
}

notices! {
    a_head_with_a_reference_too_many: |sim, process| Damage::Reference(frame(process, sim, 0));
    a_base_page_with_a_reference_too_many: |sim, process| Damage::Reference(frame(process, sim, SMALL));
    a_table_with_a_reference_too_many: |_sim, process| Damage::Reference(process.root());
    a_subpage_with_a_mapping_too_many: |sim, process| Damage::Mapcount(frame(process, sim, 9));
    a_split_subpage_with_a_mapping_too_many: |sim, process| Damage::Mapcount(frame(process, sim, SPLIT + 9));
    a_base_page_with_a_mapping_too_many: |sim, process| Damage::Mapcount(frame(process, sim, SMALL));
    a_compound_mapcount_too_high: |sim, process| Damage::CompoundMapcounts(frame(process, sim, 0), 1, 1);
    a_total_mapcount_too_high: |sim, process| Damage::CompoundMapcounts(frame(process, sim, 0), 0, 1);
    double_map_without_pmds: |sim, process| Damage::DoubleMap(frame(process, sim, SPLIT));
    a_tail_of_another_head: |sim, process| {
        Damage::TailLink(frame(process, sim, 9), frame(process, sim, SPLIT))
    };
    a_page_that_claims_to_be_queued: |sim, process| {
        Damage::SetFlags(frame(process, sim, 0), PageFlags::QUEUED)
    };
    a_partly_unmapped_page_that_does_not_wait: |sim, process| Damage::Unqueue(frame(process, sim, SPLIT));
    a_tail_with_a_mapping_of_its_own: |sim, process| Damage::Mapping(frame(process, sim, 9));
    a_pin_without_a_reference: |sim, process| Damage::Pin(frame(process, sim, 0));
    a_pin_on_a_split_page_without_a_reference: |sim, process| Damage::Pin(frame(process, sim, SPLIT));
    a_bad_page: |sim, process| Damage::SetFlags(frame(process, sim, SMALL), PageFlags::HWPOISON);
    a_page_that_left_the_lru: |sim, process| Damage::ClearFlags(frame(process, sim, 0), PageFlags::LRU);
    a_free_page_with_a_flag: |sim, _process| Damage::SetFlags(free_page(sim), PageFlags::UPTODATE);
    a_page_with_a_wrong_index: |sim, process| Damage::Index(frame(process, sim, SMALL));
    a_wrong_nr_anon_pages: |_sim, _process| Damage::Count(Counter::NrAnonPages);
    a_wrong_nr_anon_thps: |_sim, _process| Damage::Count(Counter::NrAnonThps);
    a_wrong_nr_page_table_pages: |_sim, _process| Damage::Count(Counter::NrPageTable);
    a_wrong_nr_slab: |_sim, _process| Damage::Count(Counter::NrSlabUnreclaimable);
    a_wrong_nr_inactive_anon: |_sim, _process| Damage::Count(Counter::NrInactiveAnon);
    a_wrong_nr_active_anon: |_sim, _process| Damage::Count(Counter::NrActiveAnon);
    a_wrong_pgalloc: |_sim, _process| Damage::Count(Counter::PgAlloc);
    a_huge_mapping_without_its_table: |_sim, _process| Damage::Withdraw(addr(0));
    an_entry_left_invalid: |_sim, _process| Damage::Invalidate(addr(0));
    a_writable_entry_in_a_read_only_area: |_sim, _process| Damage::MakeWritable(addr(SMALL));
    a_wrong_rss: |_sim, _process| Damage::Rss;
    a_wrong_number_of_tables: |_sim, _process| Damage::Tables;
    a_wrong_size_of_areas: |_sim, _process| Damage::TotalVm;
    a_tree_of_areas_with_a_wrong_height: |_sim, _process| Damage::AreaTree;
    a_page_freed_twice: |_sim, _process| Damage::FreeTwice;
    a_page_that_nobody_has: |_sim, _process| Damage::Lose;
    buddies_that_did_not_merge: |_sim, _process| Damage::Unmerge;
    a_forgotten_object: |_sim, _process| Damage::LeakObject;
}

/// Some page inside a free block, not its first.
fn free_page(sim: &Sim) -> Pfn {
    let pages = (0..sim.pages().frames()).map(|pfn| sim.pages().page(Pfn::new(pfn)));
    let block = pages
        .into_iter()
        .find(|page| page.state().flags().contains(PageFlags::BUDDY))
        .expect("memory is free");
    block.pfn().offset(1)
}

#[test]
fn a_tail_with_references() {
    with_machine(|sim, process| {
        sim.sabotage(process, Damage::Reference(frame(process, sim, 9)));
        assert_eq!(
            sim.check(&[process], &()).expect_err("not noticed").rule,
            Rule::TailReferences
        );
    });
}

#[test]
fn a_shared_page_that_is_said_to_be_exclusive() {
    for page in [0, SPLIT, SPLIT + 9, SMALL] {
        with_machine(|sim, process| {
            let child = process.fork(CpuId::new(1)).expect("memory is there");
            sim.verify(&[process, &child], &());
            let damage = Damage::Share(frame(process, sim, page));
            sim.sabotage(process, damage);
            let violation = sim.check(&[process, &child], &()).expect_err("not noticed");
            assert_eq!(violation.rule, damage.rule(), "{page}: {violation}");
            core::mem::forget(child);
        });
    }
}

#[test]
#[should_panic(expected = "holds page records")]
fn page_records_cannot_be_released() {
    with_machine(|sim, _| {
        let records = (FIRMWARE_FRAMES..sim.pages().frames()).map(Pfn::new);
        let first = records
            .into_iter()
            .find(|&pfn| sim.pages().page(pfn).has(PageFlags::RESERVED))
            .expect("they are reserved");
        sim.release(mm::PfnRange::new(first, first.offset(1)).expect("in order"));
    });
}

#[test]
#[cfg(debug_assertions)]
fn a_free_page_that_was_written_to() {
    with_machine(|sim, process| {
        let pfn = sim
            .alloc_pages(Order::ZERO, mm::AllocFlags::empty())
            .expect("memory is there");
        sim.free_pages(pfn, Order::ZERO);
        sim.machine().fill_frames(pfn, 1, 0x11);
        let violation = sim.check(&[process], &()).expect_err("not noticed");
        assert_eq!(
            (violation.rule, violation.page.map(|page| page.pfn)),
            (Rule::FreeContents, Some(pfn))
        );
    });
}

#[test]
fn a_block_that_no_owner_names() {
    let block = Order::new(3).expect("an order");
    with_machine(|sim, process| {
        let pfn = sim
            .alloc_pages(block, mm::AllocFlags::empty())
            .expect("memory is there");
        let violation = sim.check(&[process], &()).expect_err("not noticed");
        assert_eq!((violation.rule, violation.found), (Rule::References, 1));
        sim.verify(&[process], &One(pfn, block));
        // Named with the wrong size, its rest is lost.
        let half = block.down().expect("an order");
        assert_eq!(
            sim.check(&[process], &One(pfn, half))
                .expect_err("not noticed")
                .rule,
            Rule::Lost
        );
    });
}

#[test]
fn an_owner_of_what_is_not_memory_or_not_his() {
    with_machine(|sim, process| {
        let rule = |pfn| {
            sim.check(&[process], &One(pfn, Order::ZERO))
                .expect_err("not noticed")
                .rule
        };
        assert_eq!(rule(Pfn::new(FIRMWARE_FRAMES - 1)), Rule::NotMemory);
        assert_eq!(rule(Pfn::new(u32::MAX)), Rule::NotMemory);
        assert_eq!(rule(frame(process, sim, SMALL)), Rule::References);
        assert_eq!(rule(free_page(sim)), Rule::FreeListed);
    });
}

#[test]
fn a_space_that_was_not_shown() {
    with_machine(|sim, _| {
        assert!(sim.check(&[], &()).is_err());
    });
}

/// One block that somebody owns.
struct One(Pfn, Order);

impl Owners for One {
    fn for_each_block(&self, visit: &mut dyn FnMut(Pfn, Order)) {
        visit(self.0, self.1);
    }
}

/// Which entry belongs to a page, in a table that many levels above the PTEs.
fn index_at(level: u32, page: u64) -> usize {
    let above = addr(page).as_u64() >> (PAGE_SHIFT + level * ENTRIES_SHIFT);
    usize::try_from(above).expect("fits") % ENTRIES
}

/// Changes the PTE of a page behind `mm`'s back, without a flush.
fn store_pte(sim: &Sim, process: &Process<'_>, page: u64, raw: u64) {
    let mut table = process.root();
    for level in [3, 2, 1] {
        let index = index_at(level, page);
        // SAFETY: the walk goes through tables of a live space that nobody else uses.
        let entry = unsafe { sim.machine().table(table) }.load(index);
        table = Pfn::new(u32::try_from((entry & 0x000f_ffff_ffff_f000) >> 12).expect("a frame number"));
    }
    let index = index_at(0, page);
    // SAFETY: as above.
    unsafe { sim.machine().table(table) }.store(index, raw);
}

#[test]
fn a_translation_that_outlived_its_entry_is_found_at_rest() {
    with_machine(|sim, process| {
        process.read_byte(addr(SMALL).as_u64()).expect("it may be read");
        store_pte(sim, process, SMALL, 0);
        assert!(
            sim.machine()
                .check_tlbs()
                .expect_err("not noticed")
                .contains("not present")
        );
    });
}

#[test]
#[should_panic(expected = "a stale translation was used")]
fn a_translation_that_outlived_its_entry_is_found_in_use() {
    with_machine(|sim, process| {
        process.read_byte(addr(SMALL).as_u64()).expect("it may be read");
        store_pte(sim, process, SMALL, 0);
        let _ = process.read_byte(addr(SMALL).as_u64());
    });
}

#[test]
#[should_panic(expected = "I12")]
fn a_small_entry_published_before_the_flush_is_noticed() {
    with_machine(|sim, process| {
        process.read_byte(addr(0).as_u64()).expect("it may be read");
        // As a wrong split would: the table is there while the CPU still holds the large translation.
        let pmd_table = {
            let mut table = process.root();
            for level in [3, 2] {
                let index = index_at(level, 0);
                // SAFETY: as in `store_pte`.
                let entry = unsafe { sim.machine().table(table) }.load(index);
                table =
                    Pfn::new(u32::try_from((entry & 0x000f_ffff_ffff_f000) >> 12).expect("a frame number"));
            }
            table
        };
        let index = |page| index_at(1, page);
        // SAFETY: as in `store_pte`.
        let pmds = unsafe { sim.machine().table(pmd_table) };
        pmds.store(index(0), pmds.load(index(SPLIT)));
        sim.machine()
            .flush_tlb(sim.machine().all_cpus(), range(0, HUGE), Stride::Pmd);
    });
}

#[test]
#[should_panic(expected = "a deadlock")]
fn sleeping_for_what_nobody_can_bring_is_noticed() {
    let sim = Sim::boot(&Config::default());
    sim.machine().wait(WaitKey::external(1), None, &mut || true);
}

#[test]
fn a_sleep_with_a_deadline_ends_and_time_has_passed() {
    let sim = Sim::boot(&Config::default());
    sim.machine()
        .wait(WaitKey::external(1), Some(Nanos(5000)), &mut || true);
    assert!(sim.machine().now() >= Nanos(5000));
}

#[test]
#[should_panic(expected = "with preemption off")]
fn sleeping_with_preemption_off_is_noticed() {
    let sim = Sim::boot(&Config::default());
    let _guard = sim.machine().preempt_off();
    sim.machine().wait(WaitKey::external(1), None, &mut || false);
}

#[test]
#[should_panic(expected = "never returns")]
fn a_flush_inside_ones_own_walk_is_noticed() {
    let sim = Sim::boot(&Config::default());
    let _walk = sim.machine().lockless_walk();
    sim.machine()
        .flush_tlb(sim.machine().all_cpus(), range(0, 1), Stride::Page);
}

#[test]
#[should_panic(expected = "changed its CPU with preemption off")]
fn changing_the_cpu_with_preemption_off_is_noticed() {
    let sim = Sim::boot(&Config::default());
    let _guard = sim.machine().preempt_off();
    on_cpu(CpuId::new(1), || ());
}
