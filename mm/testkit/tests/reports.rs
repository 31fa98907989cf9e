//! What the reports about address spaces say, smaps and the sizes by kind, and what the settings change. Expected values are those of the
//! specification, in the kB that `/proc` prints.

use mm::{
    Counter, MapRequest, Place, Prot, ThpMode, VirtAddr, VirtRange, VmKind, VmaFlags, VmaInfo, ZeroReads,
    platform::CpuId,
    report::{Residency, smaps},
};
use mm_testkit::{
    scenario::{HOME, HUGE},
    sim::{Config, Process, Sim},
};

const PAGE: u64 = 4096;
const WHOLE: u64 = HUGE * PAGE;
const KIB: u64 = 1024;

fn machine() -> Sim {
    Sim::boot(&Config {
        nr_cpus: 3,
        ..Config::default()
    })
}

fn start(sim: &Sim) -> Process<'_> {
    sim.start(CpuId::new(0)).expect("memory is there")
}

fn map(sim: &Sim, process: &Process<'_>, bytes: u64, prot: Prot, flags: VmaFlags) -> VirtRange {
    let request = MapRequest {
        hint: HOME,
        len: bytes,
        prot,
        place: Place::Fixed,
        flags,
    };
    sim.mmap(process, request).expect("nothing is there");
    VirtRange::user(HOME, bytes).expect("user memory")
}

const RW: Prot = Prot::READ.union(Prot::WRITE);

/// A process with one huge page, written once.
fn one_thp(sim: &Sim) -> Process<'_> {
    let process = start(sim);
    map(sim, &process, WHOLE, RW, VmaFlags::empty());
    process.write_byte(HOME, 1).expect("writable");
    process
}

fn rollup(sim: &Sim, process: &Process<'_>) -> Residency {
    let mut sum = Residency::default();
    smaps(sim, process, &mut |_, residency| sum.merge(residency));
    sum
}

/// Rss, Pss, Shared_Clean, Shared_Dirty, Private_Clean, Private_Dirty, Referenced, AnonHugePages, in kB.
fn row(sim: &Sim, process: &Process<'_>) -> [u64; 8] {
    let sum = rollup(sim, process);
    [
        sum.resident,
        sum.share.bytes(),
        sum.shared.clean,
        sum.shared.dirty,
        sum.private.clean,
        sum.private.dirty,
        sum.referenced,
        sum.by_pmd,
    ]
    .map(|bytes| bytes / KIB)
}

fn split(process: &Process<'_>, sim: &Sim) {
    process.run(|| sim.split_huge_pmd(process, VirtAddr::new(HOME)));
}

fn unmap(process: &Process<'_>, sim: &Sim, page: u64) {
    let range = VirtRange::user(HOME + page * PAGE, PAGE).expect("user memory");
    process
        .run(|| sim.munmap(process, range))
        .expect("memory is there");
}

#[test]
fn smaps_is_exact_while_pmds_and_ptes_share_a_page() {
    let sim = machine();
    let a = one_thp(&sim);
    assert_eq!(row(&sim, &a), [2048, 2048, 0, 0, 0, 2048, 2048, 2048]);
    let b = a.fork(CpuId::new(1)).expect("memory is there");
    assert_eq!(row(&sim, &a), [2048, 1024, 0, 2048, 0, 0, 2048, 2048]);
    // The child has not used anything yet, so its entry is old; its dirty mark is the parent's.
    let of_child = row(&sim, &b);
    assert_eq!((of_child[0], of_child[1], of_child[7]), (2048, 1024, 2048));
    assert_eq!(of_child[6], 0, "not referenced by the child");
    split(&a, &sim);
    assert_eq!(row(&sim, &a), [2048, 1024, 0, 2048, 0, 0, 2048, 0]);
    assert_eq!(row(&sim, &b)[7], 2048, "still mapped by a PMD there");
    unmap(&a, &sim, 7);
    assert_eq!(row(&sim, &a), [2044, 1022, 0, 2044, 0, 0, 2044, 0]);
    assert_eq!(row(&sim, &b)[..6], [2048, 1026, 0, 2044, 0, 4]);
    sim.verify(&[&a, &b], &());
}

#[test]
fn shares_of_three_are_rounded_down_page_by_page() {
    let sim = machine();
    let a = one_thp(&sim);
    let b = a.fork(CpuId::new(1)).expect("memory is there");
    let c = b.fork(CpuId::new(2)).expect("memory is there");
    let expected = (((PAGE << 12) / 3) * HUGE) >> 12;
    for process in [&a, &b, &c] {
        assert_eq!(rollup(&sim, process).share.bytes(), expected);
    }
    assert_eq!(expected / KIB, 682, "as Linux prints it");
}

#[test]
fn zero_pages_are_nobodys_memory() {
    let sim = machine();
    let a = start(&sim);
    map(&sim, &a, WHOLE + PAGE, RW, VmaFlags::empty());
    a.read_byte(HOME).expect("readable");
    a.read_byte(HOME + WHOLE).expect("readable");
    assert_eq!(rollup(&sim, &a), Residency::default());
    a.write_byte(HOME + WHOLE, 1).expect("writable");
    assert_eq!(row(&sim, &a), [4, 4, 0, 0, 0, 4, 4, 0]);
}

#[test]
fn each_area_has_its_own_line() {
    let sim = machine();
    let a = one_thp(&sim);
    unmap(&a, &sim, 7);
    let mut areas = Vec::new();
    smaps(&sim, &a, &mut |vma, residency| {
        areas.push((vma.range.start().as_u64(), vma.range.bytes(), residency.resident));
    });
    let above = HOME + 8 * PAGE;
    let (lower, upper) = (7 * PAGE, WHOLE - 8 * PAGE);
    assert_eq!(areas, [(HOME, lower, lower), (above, upper, upper)]);
}

/// Total, exec, stack, data, in pages.
fn sizes(process: &Process<'_>) -> [u64; 4] {
    let of = |kind| process.vm_pages(kind);
    [
        process.total_vm_pages(),
        of(VmKind::Exec),
        of(VmKind::Stack),
        of(VmKind::Data),
    ]
}

#[test]
fn t14_1_private_writable_memory_is_data() {
    let sim = machine();
    let a = start(&sim);
    let range = map(&sim, &a, 256 * PAGE, RW, VmaFlags::empty());
    assert_eq!(sizes(&a), [256, 0, 0, 256]);
    sim.verify(&[&a], &());
    a.run(|| sim.munmap(&a, range)).expect("memory is there");
    assert_eq!(sizes(&a), [0; 4]);
}

/// Shared mappings do not exist yet, so the rule is asked for its answer.
#[test]
fn t14_2_shared_writable_memory_is_no_data() {
    let flags = VmaFlags::READ | VmaFlags::WRITE | VmaFlags::SHARED;
    assert_eq!(VmKind::of(flags), None);
}

#[test]
fn t14_3_a_read_only_stack_is_a_stack() {
    let sim = machine();
    let a = start(&sim);
    map(&sim, &a, 8 * PAGE, Prot::READ, VmaFlags::GROWSDOWN);
    assert_eq!(sizes(&a), [8, 0, 8, 0]);
    // Growing counts too.
    a.read_byte(HOME - 2 * PAGE).expect("the stack grows");
    assert_eq!(sizes(&a), [10, 0, 10, 0]);
    sim.verify(&[&a], &());
}

#[test]
fn t14_4_an_executable_stack_is_a_stack() {
    let sim = machine();
    let a = start(&sim);
    map(&sim, &a, 8 * PAGE, Prot::READ | Prot::EXEC, VmaFlags::GROWSDOWN);
    assert_eq!(sizes(&a), [8, 0, 8, 0]);
}

#[test]
fn t14_5_mprotect_moves_pages_from_data_to_exec() {
    let sim = machine();
    let a = start(&sim);
    map(&sim, &a, 64 * PAGE, RW, VmaFlags::empty());
    let part = VirtRange::user(HOME + 16 * PAGE, 16 * PAGE).expect("user memory");
    a.run(|| sim.mprotect(&a, part, Prot::READ | Prot::EXEC))
        .expect("mapped");
    assert_eq!(sizes(&a), [64, 16, 0, 48]);
    sim.verify(&[&a], &());
    let child = a.fork(CpuId::new(1)).expect("memory is there");
    assert_eq!(sizes(&child), sizes(&a));
    a.run(|| sim.mprotect(&a, part, RW)).expect("mapped");
    assert_eq!(sizes(&a), [64, 0, 0, 64]);
    sim.verify(&[&a, &child], &());
}

#[test]
fn the_thp_mode_decides_which_faults_get_huge_pages() {
    let advised = VmaFlags::HUGEPAGE;
    let declined = VmaFlags::NOHUGEPAGE;
    for (mode, flags, huge) in [
        (ThpMode::Always, VmaFlags::empty(), 1),
        (ThpMode::Always, declined, 0),
        (ThpMode::Madvise, VmaFlags::empty(), 0),
        (ThpMode::Madvise, advised, 1),
        (ThpMode::Never, VmaFlags::empty(), 0),
        (ThpMode::Never, advised, 0),
    ] {
        let sim = machine();
        sim.set_thp_mode(mode);
        assert_eq!(sim.thp_mode(), mode);
        let a = start(&sim);
        let range = map(&sim, &a, WHOLE, RW, flags);
        a.write_byte(HOME, 1).expect("writable");
        assert_eq!(sim.count(Counter::NrAnonThps), huge, "{mode:?} {flags:?}");
        let flags = sim.vma_at(&a, range.start()).expect("mapped").flags;
        let vma = VmaInfo { range, flags };
        assert_eq!(sim.thp_eligible(vma), huge == 1, "{mode:?} {flags:?}");
        sim.verify(&[&a], &());
    }
}

#[test]
fn an_area_without_a_whole_span_is_not_eligible() {
    let sim = machine();
    let flags = VmaFlags::READ | VmaFlags::WRITE;
    let eligible = |start, pages| {
        let range = VirtRange::user(start, pages * PAGE).expect("user memory");
        sim.thp_eligible(VmaInfo { range, flags })
    };
    assert!(eligible(HOME, HUGE));
    assert!(!eligible(HOME, HUGE - 1));
    assert!(!eligible(HOME + PAGE, 2 * HUGE - 2));
    assert!(eligible(HOME + PAGE, 2 * HUGE - 1));
}

#[test]
fn without_the_huge_zero_page_a_read_gets_a_page_of_its_own() {
    let sim = machine();
    sim.set_zero_reads(ZeroReads::OwnPage);
    let a = start(&sim);
    map(&sim, &a, WHOLE, RW, VmaFlags::empty());
    assert_eq!(a.read_byte(HOME), Ok(0));
    let counts = |counter| sim.count(counter);
    assert_eq!(
        (counts(Counter::ThpFaultAlloc), counts(Counter::ThpZeroPageAlloc)),
        (1, 0)
    );
    a.write_byte(HOME + 5 * PAGE, 1).expect("writable");
    assert_eq!(counts(Counter::ThpSplitPmd), 0, "it is written in place");
    sim.verify(&[&a], &());
}
