//! `madvise` and `clear_refs`: what each advice does to areas, entries and pages, whole and in parts.

use mm::{
    Advice, ClearRefs, Counter, MapError, MapRequest, PAGE_BYTES, Pfn, Place, Prot, SegvReason, VirtAddr,
    VirtRange, VmaFlags, fault::Access, platform::CpuId, report::Residency,
};
use mm_testkit::{
    scenario::{HOME, HUGE},
    sim::{AccessError, Config, Process, Sim},
};

const PAGE: u64 = PAGE_BYTES;
const RW: Prot = Prot::READ.union(Prot::WRITE);
const SOFT_DIRTY: u64 = 1 << 55;

fn at(page: u64) -> u64 {
    HOME + page * PAGE
}

fn range(page: u64, pages: u64) -> VirtRange {
    VirtRange::user(at(page), pages * PAGE).expect("user memory")
}

fn with_process(f: impl FnOnce(&Sim, &Process<'_>)) {
    let sim = Sim::boot(&Config::default());
    {
        let process = sim.start(CpuId::new(0)).expect("memory is there");
        f(&sim, &process);
        sim.verify(&[&process], &());
    }
    sim.verify(&[], &());
}

fn map(sim: &Sim, process: &Process<'_>, page: u64, pages: u64, prot: Prot) {
    let request = MapRequest {
        hint: at(page),
        len: pages * PAGE,
        prot,
        place: Place::Fixed,
        flags: VmaFlags::empty(),
    };
    process
        .run(|| sim.mmap(process, request))
        .expect("nothing is there");
}

fn number(page: u64) -> u8 {
    u8::try_from(page % 251).expect("small") + 1
}

fn fill(process: &Process<'_>, page: u64, pages: u64) {
    (page..page + pages).for_each(|page| process.write_byte(at(page), number(page)).expect("writable"));
}

fn holds(process: &Process<'_>, page: u64, pages: u64) {
    (page..page + pages)
        .for_each(|page| assert_eq!(process.read_byte(at(page)), Ok(number(page)), "page {page}"));
}

fn advise(sim: &Sim, process: &Process<'_>, page: u64, pages: u64, advice: Advice) -> Result<(), MapError> {
    let result = process.run(|| sim.madvise(process, range(page, pages), advice));
    sim.verify(&[process], &());
    result
}

fn clear(sim: &Sim, process: &Process<'_>, what: ClearRefs) {
    process.run(|| sim.clear_refs(process, what));
    sim.verify(&[process], &());
}

fn total(sim: &Sim, process: &Process<'_>) -> Residency {
    let mut sum = Residency::default();
    mm::report::smaps(sim, process, &mut |_, residency| sum.merge(residency));
    sum
}

fn word(sim: &Sim, process: &Process<'_>, page: u64) -> u64 {
    mm::report::pagemap(sim, process, VirtAddr::new(at(page)))
}

fn frame(sim: &Sim, process: &Process<'_>, page: u64) -> Pfn {
    Pfn::new(u32::try_from(word(sim, process, page) & (SOFT_DIRTY - 1)).expect("a frame number"))
}

// Areas.

#[test]
fn advice_about_areas_cuts_and_joins_them() {
    let pairs = [
        (Advice::HugePage, Advice::NoHugePage, VmaFlags::HUGEPAGE),
        (Advice::Sequential, Advice::Normal, VmaFlags::SEQ_READ),
        (Advice::Random, Advice::Normal, VmaFlags::RAND_READ),
        (Advice::DontFork, Advice::DoFork, VmaFlags::DONTCOPY),
        (Advice::WipeOnFork, Advice::KeepOnFork, VmaFlags::WIPEONFORK),
        (Advice::DontDump, Advice::DoDump, VmaFlags::DONTDUMP),
    ];
    with_process(|sim, process| {
        map(sim, process, 0, 9, RW);
        fill(process, 0, 9);
        for (give, take, flag) in pairs {
            assert_eq!(advise(sim, process, 3, 3, give), Ok(()));
            assert_eq!(process.nr_areas(), 3, "{give:?}");
            let flags = |page| {
                sim.vma_at(process, VirtAddr::new(at(page)))
                    .expect("an area")
                    .flags
            };
            assert!(flags(4).contains(flag), "{give:?}");
            assert!(!flags(2).contains(flag) && !flags(6).contains(flag), "{give:?}");
            assert_eq!(advise(sim, process, 0, 9, take), Ok(()));
            assert_eq!(process.nr_areas(), 1, "{take:?}");
            assert!(!flags(4).contains(flag), "{take:?}");
        }
        holds(process, 0, 9);
    });
}

#[test]
fn children_get_what_advice_lets_them() {
    let sim = Sim::boot(&Config::default());
    let parent = sim.start(CpuId::new(0)).expect("memory is there");
    map(&sim, &parent, 0, 9, RW);
    fill(&parent, 0, 9);
    assert_eq!(advise(&sim, &parent, 3, 3, Advice::DontFork), Ok(()));
    assert_eq!(advise(&sim, &parent, 6, 3, Advice::WipeOnFork), Ok(()));
    let child = parent.fork(CpuId::new(1)).expect("memory is there");
    sim.verify(&[&parent, &child], &());
    holds(&child, 0, 3);
    assert_eq!(
        child.read_byte(at(4)),
        Err(AccessError::Segv(SegvReason::NotMapped))
    );
    assert_eq!(child.read_byte(at(7)), Ok(0));
    holds(&parent, 0, 9);
}

// Free, cold, page out.

#[test]
fn freed_memory_stays_until_somebody_drops_it() {
    with_process(|sim, process| {
        map(sim, process, 0, 8, RW);
        fill(process, 0, 8);
        assert_eq!(advise(sim, process, 0, 6, Advice::Free), Ok(()));
        assert_eq!(total(sim, process).lazy_free, 6 * PAGE);
        assert_eq!(sim.count(Counter::PgLazyFree), 6);
        holds(process, 0, 8);
        // What is written again is kept.
        fill(process, 2, 2);
        assert_eq!(total(sim, process).lazy_free, 4 * PAGE);
        assert_eq!(advise(sim, process, 0, 8, Advice::PageOut), Ok(()));
        assert_eq!(sim.count(Counter::PgLazyFreed), 4);
        holds(process, 2, 2);
        holds(process, 6, 2);
        assert_eq!([0, 1, 4, 5].map(|page| process.read_byte(at(page))), [Ok(0); 4]);
    });
}

#[test]
fn whole_huge_page_is_freed_as_one() {
    with_process(|sim, process| {
        map(sim, process, 0, HUGE, RW);
        fill(process, 0, HUGE);
        assert_eq!(advise(sim, process, 0, HUGE, Advice::Free), Ok(()));
        let sum = total(sim, process);
        assert_eq!((sum.lazy_free, sum.by_pmd), (HUGE * PAGE, HUGE * PAGE));
        assert_eq!(sim.count(Counter::ThpSplitPmd), 0);
        fill(process, 0, 1);
        assert_eq!(advise(sim, process, 0, HUGE, Advice::PageOut), Ok(()));
        holds(process, 0, HUGE);
        assert_eq!(advise(sim, process, 0, HUGE, Advice::Free), Ok(()));
        assert_eq!(advise(sim, process, 0, HUGE, Advice::PageOut), Ok(()));
        assert_eq!(process.rss_pages(), 0);
        assert_eq!(sim.count(Counter::PgLazyFreed), HUGE);
        assert_eq!(process.read_byte(at(3)), Ok(0));
    });
}

#[test]
fn part_of_a_huge_page_is_freed_by_splitting_it() {
    with_process(|sim, process| {
        map(sim, process, 0, HUGE, RW);
        fill(process, 0, HUGE);
        assert_eq!(advise(sim, process, 3, 5, Advice::Free), Ok(()));
        assert_eq!(sim.count(Counter::ThpSplitPage), 1);
        assert_eq!(total(sim, process).lazy_free, 5 * PAGE);
        holds(process, 0, HUGE);
        // Mapped by PTEs it is split just so.
        map(sim, process, HUGE, HUGE, RW);
        fill(process, HUGE, HUGE);
        process.run(|| sim.split_huge_pmd(process, VirtAddr::new(at(HUGE))));
        assert_eq!(advise(sim, process, HUGE + 1, 2, Advice::Cold), Ok(()));
        assert_eq!(sim.count(Counter::ThpSplitPage), 2);
        assert_eq!(advise(sim, process, 0, 2 * HUGE, Advice::PageOut), Ok(()));
        assert_eq!(process.rss_pages(), 2 * HUGE - 5);
        holds(process, 8, 2 * HUGE - 8);
    });
}

#[test]
fn what_others_have_too_is_passed_by() {
    let sim = Sim::boot(&Config::default());
    let parent = sim.start(CpuId::new(0)).expect("memory is there");
    map(&sim, &parent, 0, 2 * HUGE, RW);
    fill(&parent, 0, HUGE + 4);
    let child = parent.fork(CpuId::new(1)).expect("memory is there");
    for advice in [Advice::Free, Advice::Cold, Advice::PageOut] {
        for (page, pages) in [(0, HUGE), (3, 2), (HUGE, 4)] {
            let advised = parent.run(|| sim.madvise(&parent, range(page, pages), advice));
            assert_eq!(advised, Ok(()));
            sim.verify(&[&parent, &child], &());
        }
    }
    assert_eq!(total(&sim, &parent).lazy_free, 0);
    assert_eq!(
        sim.count(Counter::ThpSplitPage) + sim.count(Counter::ThpSplitPageFailed),
        0
    );
    holds(&child, 0, HUGE + 4);
}

#[test]
fn pinned_page_is_neither_split_nor_dropped() {
    with_process(|sim, process| {
        map(sim, process, 0, HUGE, RW);
        fill(process, 0, HUGE);
        let pin = sim
            .pin_user_page(process, VirtAddr::new(at(4)), Access::Write)
            .expect("mapped");
        let advise = |page, pages, advice| process.run(|| sim.madvise(process, range(page, pages), advice));
        assert_eq!(advise(3, 5, Advice::Free), Ok(()));
        assert_eq!(
            sim.count(Counter::ThpSplitPage) + sim.count(Counter::ThpSplitPageFailed),
            0
        );
        assert_eq!(advise(0, HUGE, Advice::Free), Ok(()));
        assert_eq!(advise(0, HUGE, Advice::PageOut), Ok(()));
        assert_eq!(sim.count(Counter::PgLazyFreed), 0);
        sim.unpin(pin);
        holds(process, 0, HUGE);
    });
}

#[test]
fn cold_memory_counts_as_not_referenced() {
    with_process(|sim, process| {
        map(sim, process, 0, HUGE + 8, RW);
        fill(process, 0, HUGE + 8);
        assert_eq!(total(sim, process).referenced, (HUGE + 8) * PAGE);
        assert_eq!(advise(sim, process, 0, HUGE + 4, Advice::Cold), Ok(()));
        assert_eq!(total(sim, process).referenced, 4 * PAGE);
        holds(process, 0, 2);
        assert_eq!(total(sim, process).referenced, (HUGE + 4) * PAGE);
        clear(sim, process, ClearRefs::Referenced);
        assert_eq!(total(sim, process).referenced, 0);
        assert_eq!(total(sim, process).private.dirty, (HUGE + 8) * PAGE);
    });
}

// Populate.

#[test]
fn populated_memory_is_there() {
    with_process(|sim, process| {
        map(sim, process, 0, 4 * HUGE, RW);
        assert_eq!(
            advise(sim, process, HUGE, 2 * HUGE, Advice::PopulateWrite),
            Ok(())
        );
        assert_eq!(process.rss_pages(), 2 * HUGE);
        assert_eq!(advise(sim, process, 0, HUGE, Advice::PopulateRead), Ok(()));
        assert_eq!(process.rss_pages(), 2 * HUGE, "by the zero page");
        assert_ne!(word(sim, process, 5) >> 63, 0);
        map(sim, process, 8 * HUGE, 4, Prot::READ);
        map(sim, process, 8 * HUGE + 2, 2, Prot::empty());
        let write = advise(sim, process, 8 * HUGE, 2, Advice::PopulateWrite);
        assert_eq!(write, Err(MapError::Invalid));
        let read = advise(sim, process, 8 * HUGE, 3, Advice::PopulateRead);
        assert_eq!(read, Err(MapError::Invalid));
        assert_ne!(
            word(sim, process, 8 * HUGE + 1) >> 63,
            0,
            "what comes before is there"
        );
        let hole = advise(sim, process, 4 * HUGE - 2, 4, Advice::PopulateWrite);
        assert_eq!(hole, Err(MapError::NotMapped));
        assert_ne!(word(sim, process, 4 * HUGE - 1) >> 63, 0);
    });
}

// Soft-dirty.

/// Only the page that was written to may be written to without a fault: the PTEs are not all alike.
#[test]
fn a_page_that_goes_as_a_whole_after_clear_refs_is_not_queued() {
    with_process(|sim, process| {
        map(sim, process, 0, HUGE, RW);
        fill(process, 0, HUGE);
        clear(sim, process, ClearRefs::SoftDirty);
        process.run(|| sim.split_huge_pmd(process, VirtAddr::new(at(0))));
        process.write_byte(at(3), 9).expect("writable");
        process
            .run(|| sim.munmap(process, range(0, HUGE)))
            .expect("memory is there");
        let deferred = sim.count(Counter::ThpDeferredSplitPage);
        assert_eq!((deferred, sim.count(Counter::NrAnonPages)), (0, 0));
    });
}

#[test]
fn writes_since_clear_refs_are_told_page_by_page() {
    with_process(|sim, process| {
        map(sim, process, 0, HUGE + 12, RW);
        assert_eq!(word(sim, process, 3), SOFT_DIRTY, "new, though nothing is there");
        fill(process, 0, HUGE + 8);
        let head = frame(sim, process, 0);
        clear(sim, process, ClearRefs::SoftDirty);
        let soft = |page| word(sim, process, page) & SOFT_DIRTY != 0;
        assert!((0..HUGE + 12).all(|page| !soft(page)));
        holds(process, 0, HUGE + 8);
        assert!((0..HUGE + 12).all(|page| !soft(page)), "reading is not writing");
        process.write_byte(at(HUGE + 3), 9).expect("writable");
        let dirty: Vec<u64> = (0..HUGE + 12).filter(|&page| soft(page)).collect();
        assert_eq!(dirty, [HUGE + 3]);
        process.write_byte(at(7), 9).expect("writable");
        assert_eq!(frame(sim, process, 0), head, "no copy is made to see a write");
        assert_eq!(
            (sim.count(Counter::ThpSplitPmd), sim.count(Counter::NrAnonThps)),
            (0, 1)
        );
        assert!((0..HUGE).all(soft), "a huge page is written as a whole");
        // What was never there is written when it comes.
        process.write_byte(at(HUGE + 10), 9).expect("writable");
        assert!(soft(HUGE + 10) && !soft(HUGE + 11));
        assert_eq!(process.read_byte(at(HUGE + 11)), Ok(0));
        assert!(!soft(HUGE + 11));
    });
}

#[test]
fn rights_given_back_do_not_hide_a_write() {
    with_process(|sim, process| {
        map(sim, process, 0, HUGE + 12, RW);
        fill(process, 0, HUGE + 8);
        clear(sim, process, ClearRefs::SoftDirty);
        for prot in [Prot::READ, RW] {
            let changed = process.run(|| sim.mprotect(process, range(0, HUGE + 12), prot));
            assert_eq!(changed, Ok(()));
        }
        holds(process, 0, HUGE + 8);
        let soft = |page| word(sim, process, page) & SOFT_DIRTY != 0;
        assert!(!soft(3) && !soft(HUGE + 3));
        process.write_byte(at(3), 9).expect("writable");
        process.write_byte(at(HUGE + 3), 9).expect("writable");
        assert!(soft(3) && soft(HUGE + 3) && !soft(HUGE + 4));
        // A new area makes what it joins soft-dirty.
        map(sim, process, HUGE + 12, 1, RW);
        assert_eq!(process.nr_areas(), 1);
        assert!(soft(HUGE + 4));
    });
}

#[test]
fn peak_of_residency_can_be_forgotten() {
    with_process(|sim, process| {
        map(sim, process, 0, 8, RW);
        fill(process, 0, 8);
        assert_eq!(advise(sim, process, 2, 6, Advice::DontNeed), Ok(()));
        assert_eq!((process.rss_pages(), process.peak_rss_pages()), (2, 8));
        clear(sim, process, ClearRefs::PeakRss);
        assert_eq!(process.peak_rss_pages(), 2);
    });
}
