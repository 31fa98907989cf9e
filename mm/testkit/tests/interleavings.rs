//! Pairs of operations, the second in between any two steps of the first: whatever the order, the machine is sound, and
//! both did what they should.
//!
//! The second comes in wherever the first is about to take a lock or to flush ([`mm_testkit::machine::interleave`]).

use mm::{
    Advice, AllocFlags, MapRequest, MigrateMode, Place, Prot, VirtAddr, VirtRange, VmaFlags,
    folio::IsolatedList,
    migrate::{Reach, Targets},
    platform::CpuId,
};
use mm_testkit::{
    machine::interleave,
    scenario::{HOME, HUGE},
    sim::{Config, Process, Sim},
};

const PAGE: u64 = 4096;
const RW: Prot = Prot::READ.union(Prot::WRITE);
/// More points than any operation has.
const MANY: u32 = 4000;

fn at(page: u64) -> u64 {
    HOME + page * PAGE
}

fn range(page: u64, pages: u64) -> VirtRange {
    VirtRange::user(at(page), pages * PAGE).expect("user memory")
}

fn cpu(number: u8) -> CpuId {
    CpuId::new(number)
}

fn machine(prepare: &dyn Fn(&Sim)) -> Sim {
    let nr_cpus = 4;
    let sim = Sim::boot(&Config {
        nr_cpus,
        ..Config::default()
    });
    sim.machine().allow_stale_use();
    prepare(&sim);
    sim
}

/// A process with `thps` huge pages, all bytes that it looks at 7.
fn with_thps(sim: &Sim, thps: u64) -> Process<'_> {
    let process = sim.start(cpu(0)).expect("memory is there");
    let request = MapRequest {
        hint: HOME,
        len: thps * HUGE * PAGE,
        prot: RW,
        place: Place::Fixed,
        flags: VmaFlags::empty(),
    };
    sim.mmap(&process, request).expect("nothing is there");
    (0..thps * HUGE).for_each(|page| process.write_byte(at(page), 7).expect("writable"));
    process
}

/// Plays `pair` with the second at each point of the first, until the first has no more.
fn at_each_point(mut pair: impl FnMut(u32) -> bool) {
    let reached = (1..MANY).take_while(|&nth| pair(nth)).count();
    assert!(reached > 0, "the first operation takes no lock");
}

/// S1: two processes share a page; one splits its PMD while the other unmaps its own.
pub(crate) fn last_pmd_goes_while_another_is_split(prepare: &dyn Fn(&Sim)) {
    at_each_point(|nth| {
        let sim = machine(prepare);
        let a = with_thps(&sim, 1);
        let b = a.fork(cpu(1)).expect("memory is there");
        let reached = interleave(
            sim.machine(),
            nth,
            || a.run(|| sim.split_huge_pmd(&a, VirtAddr::new(HOME))),
            || b.run(|| sim.munmap(&b, range(0, HUGE))).expect("mapped"),
        );
        sim.verify(&[&a, &b], &());
        reached
    });
}

/// C15: two folios that wait on the deferred queue side by side are freed at the same time.
pub(crate) fn neighbours_on_the_queue_are_freed(prepare: &dyn Fn(&Sim)) {
    at_each_point(|nth| {
        let sim = machine(prepare);
        let a = with_thps(&sim, 3);
        let b = a.fork(cpu(1)).expect("memory is there");
        // Each process is left with one of the first two; the third waits behind them.
        for thp in 0..3 {
            for process in [&a, &b] {
                process
                    .run(|| sim.munmap(process, range(thp * HUGE + 3, 1)))
                    .expect("mapped");
            }
        }
        a.run(|| sim.munmap(&a, range(0, HUGE))).expect("mapped");
        b.run(|| sim.munmap(&b, range(HUGE, HUGE))).expect("mapped");
        assert_eq!(sim.nr_deferred_splits(), 3);
        let reached = interleave(
            sim.machine(),
            nth,
            || a.run(|| sim.munmap(&a, range(HUGE, HUGE))).expect("mapped"),
            || b.run(|| sim.munmap(&b, range(0, HUGE))).expect("mapped"),
        );
        sim.verify(&[&a, &b], &());
        if reached {
            assert_eq!(sim.nr_deferred_splits(), 1);
        }
        reached
    });
}

/// S17: an area loses the right to write while its pages are being moved.
pub(crate) fn right_to_write_goes_while_pages_move(prepare: &dyn Fn(&Sim)) {
    at_each_point(|nth| {
        let sim = machine(prepare);
        let a = with_thps(&sim, 1);
        let migrate = || {
            let mut list = IsolatedList::new(&sim);
            sim.isolate_pages_in(&a, range(0, HUGE), Reach::All, &mut |_| true, &mut list);
            let mut fresh =
                |page: mm::page::Page<'_>| sim.alloc_folio(page.compound_order(), AllocFlags::empty());
            sim.migrate_pages(&mut list, &mut Targets::new(&mut fresh), MigrateMode::Sync);
        };
        let reached = interleave(
            sim.machine(),
            nth,
            || a.run(migrate),
            || {
                let done =
                    mm_testkit::machine::on_cpu(cpu(3), || sim.mprotect(&a, range(0, HUGE), Prot::READ));
                done.expect("mapped");
            },
        );
        sim.verify(&[&a], &());
        reached
    });
}

/// C11: a PMD is split while `MADV_DONTNEED` drops what it maps.
pub(crate) fn contents_are_dropped_while_the_pmd_is_split(prepare: &dyn Fn(&Sim)) {
    at_each_point(|nth| {
        let sim = machine(prepare);
        let a = with_thps(&sim, 1);
        let reached = interleave(
            sim.machine(),
            nth,
            || a.run(|| sim.split_huge_pmd(&a, VirtAddr::new(HOME))),
            || {
                let advice = Advice::DontNeed;
                let done = mm_testkit::machine::on_cpu(cpu(3), || sim.madvise(&a, range(0, HUGE), advice));
                done.expect("mapped");
            },
        );
        sim.verify(&[&a], &());
        let left = if reached { 0 } else { 7 };
        for page in 0..HUGE {
            assert_eq!(a.read_byte(at(page)), Ok(left), "page {page}, point {nth}");
        }
        reached
    });
}

/// Nothing is broken.
fn sound(_: &Sim) {}

#[test]
fn the_last_pmd_may_go_while_another_is_split() {
    last_pmd_goes_while_another_is_split(&sound);
}

#[test]
fn neighbours_on_the_queue_may_be_freed_together() {
    neighbours_on_the_queue_are_freed(&sound);
}

#[test]
fn the_right_to_write_may_go_while_pages_move() {
    right_to_write_goes_while_pages_move(&sound);
}

#[test]
fn contents_may_be_dropped_while_the_pmd_is_split() {
    contents_are_dropped_while_the_pmd_is_split(&sound);
}
