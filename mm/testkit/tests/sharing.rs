//! One huge page in several processes: fork, copy-on-write, splitting the page, the deferred queue, pins, zero pages.
//! The rows are those of the specification; the whole-memory checker runs after every step.

use mm::{
    Counter, MapRequest, Pfn, Place, Prot, VirtAddr, VirtRange, VmaFlags, fault::Access, platform::CpuId,
    rmap::MappedBy, split_folio::SplitError,
};
use mm_testkit::{
    scenario::{HOME, HUGE},
    sim::{Config, Process, Sim},
};

const PAGE: u64 = 4096;
const WHOLE: u64 = HUGE * PAGE;
const N: u32 = mm::HPAGE_PAGES;

fn cpu(number: u8) -> CpuId {
    CpuId::new(number)
}

fn machine() -> Sim {
    Sim::boot(&Config {
        nr_cpus: 4,
        ..Config::default()
    })
}

fn at(page: u64) -> u64 {
    HOME + page * PAGE
}

fn range(page: u64, pages: u64) -> VirtRange {
    VirtRange::user(at(page), pages * PAGE).expect("user memory")
}

/// A process with one huge page at [`HOME`], each base page beginning with its number.
fn one_thp(sim: &Sim) -> Process<'_> {
    let process = sim.start(cpu(0)).expect("memory is there");
    let request = MapRequest {
        hint: HOME,
        len: WHOLE,
        prot: Prot::READ | Prot::WRITE,
        place: Place::Fixed,
        flags: VmaFlags::empty(),
    };
    sim.mmap(&process, request).expect("nothing is there");
    (0..HUGE).for_each(|page| process.write_byte(at(page), number(page)).expect("writable"));
    assert_eq!(sim.count(Counter::NrAnonThps), 1, "one huge page backs it");
    process
}

fn number(page: u64) -> u8 {
    u8::try_from(page % 251).expect("small") + 1
}

fn frame(sim: &Sim, process: &Process<'_>, page: u64) -> Pfn {
    let word = mm::report::pagemap(sim, process, VirtAddr::new(at(page)));
    assert_ne!(word >> 63, 0, "page {page} is present");
    Pfn::new(u32::try_from(word & ((1 << 55) - 1)).expect("a frame number"))
}

/// C, DoubleMap, raw 0, raw 7, mapcount 0, mapcount 7, total, references, AnonPages, AnonTHPs.
type Row = (u32, bool, i32, i32, u32, u32, u32, u32, u64, u64);

fn row(sim: &Sim, head: Pfn) -> Row {
    let page = sim.pages().page(head);
    let (counts, seventh) = (page.map_counts(), page.offset(7));
    (
        counts.entire,
        page.is_double_mapped(),
        page.raw_mapcount(),
        seventh.raw_mapcount(),
        page.mapcount(),
        seventh.mapcount(),
        counts.total,
        page.refs_hint(),
        sim.count(Counter::NrAnonPages),
        sim.count(Counter::NrAnonThps),
    )
}

fn unmap(sim: &Sim, process: &Process<'_>, page: u64, pages: u64) {
    process
        .run(|| sim.munmap(process, range(page, pages)))
        .expect("unmapping needs no memory here");
}

fn split_pmd(sim: &Sim, process: &Process<'_>) {
    process.run(|| sim.split_huge_pmd(process, VirtAddr::new(HOME)));
}

/// Splits the page itself, by its subpage `page`, as a caller who looked it up through `process` would.
fn split_page(sim: &Sim, process: &Process<'_>, page: u64) -> Result<Pfn, SplitError> {
    let (folio, pfn) = sim
        .get_user_page(process, VirtAddr::new(at(page)), Access::Read)
        .expect("it is mapped");
    let subpage = pfn.since(folio.pfn());
    let locked = sim.try_lock_folio(&folio).expect("nobody holds it");
    match sim.split_folio(folio, locked, subpage) {
        Ok((folio, locked)) => {
            let kept = folio.pfn();
            let page = folio.page();
            assert_eq!(
                page.refs_hint(),
                page.mapcount() + 1,
                "its maps' and the caller's"
            );
            drop(locked);
            sim.put(folio);
            Ok(kept)
        }
        Err((error, folio, locked)) => {
            drop(locked);
            sim.put(folio);
            Err(error)
        }
    }
}

fn reads_its_numbers(process: &Process<'_>, except: &[u64]) {
    for page in (0..HUGE).filter(|page| !except.contains(page)) {
        assert_eq!(process.read_byte(at(page)), Ok(number(page)), "page {page}");
    }
}

#[test]
fn t1_1_to_t1_7_three_processes_share_one_page() {
    let sim = machine();
    let all = u64::from(N);
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    assert_eq!(row(&sim, head), (1, false, -1, -1, 1, 1, 1, 1, all, 1));
    let b = a.fork(cpu(1)).expect("memory is there");
    let c = a.fork(cpu(2)).expect("memory is there");
    sim.verify(&[&a, &b, &c], &());
    assert_eq!(row(&sim, head), (3, false, -1, -1, 3, 3, 3, 3, all, 1));
    split_pmd(&sim, &a);
    sim.verify(&[&a, &b, &c], &());
    assert_eq!(row(&sim, head), (2, true, 1, 1, 3, 3, N + 2, N + 2, all, 1));
    unmap(&sim, &a, 7, 1);
    assert_eq!(row(&sim, head), (2, true, 1, 0, 3, 2, N + 1, N + 1, all, 1));
    split_pmd(&sim, &b);
    assert_eq!(row(&sim, head), (1, true, 2, 1, 3, 2, 2 * N, 2 * N, all, 1));
    unmap(&sim, &c, 0, HUGE);
    sim.verify(&[&a, &b, &c], &());
    assert_eq!(
        row(&sim, head),
        (0, false, 1, 0, 2, 1, 2 * N - 1, 2 * N - 1, all, 0)
    );
    assert_eq!(sim.count(Counter::ThpDeferredSplitPage), 0);
    unmap(&sim, &b, 7, 1);
    sim.verify(&[&a, &b, &c], &());
    assert_eq!(
        row(&sim, head),
        (0, false, 1, -1, 2, 0, 2 * N - 2, 2 * N - 2, all - 1, 0)
    );
    assert_eq!(sim.count(Counter::ThpDeferredSplitPage), 1);
    reads_its_numbers(&a, &[7]);
    reads_its_numbers(&b, &[7]);
}

/// T1.9: the mark outlives the last PTE while a PMD is left. That is no damage, and no partial unmap either.
#[test]
fn t1_9_double_map_stays_while_a_pmd_does() {
    let sim = machine();
    let all = u64::from(N);
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    let b = a.fork(cpu(1)).expect("memory is there");
    split_pmd(&sim, &a);
    unmap(&sim, &a, 0, HUGE);
    sim.verify(&[&a, &b], &());
    assert_eq!(row(&sim, head), (1, true, 0, 0, 1, 1, 1, 1, all, 1));
    assert_eq!(sim.count(Counter::ThpDeferredSplitPage), 0);
    unmap(&sim, &b, 0, HUGE);
    sim.verify(&[&a, &b], &());
    assert_eq!(sim.count(Counter::NrAnonPages), 0);
}

#[test]
fn shared_huge_page_is_copied_one_base_page_at_a_time() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    assert_eq!(mm::report::kpageflags(&sim, head), 0x4_0040_d828);
    let b = a.fork(cpu(1)).expect("memory is there");
    assert_eq!(
        mm::report::kpageflags(&sim, head),
        0x40_d828,
        "shared: no longer exclusive"
    );
    b.write_byte(at(9), 0xee).expect("writable");
    sim.verify(&[&a, &b], &());
    assert_eq!(
        sim.count(Counter::ThpSplitPmd),
        1,
        "only the writer's PMD is split"
    );
    let page = sim.pages().page(head);
    assert_eq!((page.map_counts().entire, page.refs_hint()), (1, N));
    assert_eq!((page.offset(9).mapcount(), page.offset(8).mapcount()), (1, 2));
    assert_eq!(a.read_byte(at(9)), Ok(number(9)));
    assert_eq!(b.read_byte(at(9)), Ok(0xee));
    reads_its_numbers(&b, &[9]);
    // The parent writes too: its PMD is shared no less.
    a.write_byte(at(3), 0xdd).expect("writable");
    sim.verify(&[&a, &b], &());
    assert_eq!(b.read_byte(at(3)), Ok(number(3)));
    reads_its_numbers(&a, &[3]);
}

#[test]
fn last_sharer_writes_without_copying() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    drop(a.fork(cpu(1)).expect("memory is there"));
    a.write_byte(at(0), 0xaa).expect("writable");
    sim.verify(&[&a], &());
    assert_eq!(frame(&sim, &a, 0), head, "the page was its own again");
    assert_eq!(
        (sim.count(Counter::ThpSplitPmd), sim.count(Counter::PgReuse)),
        (0, 1)
    );
    assert_eq!(mm::report::kpageflags(&sim, head) >> 34 & 1, 1, "and says so");
}

#[test]
fn t5_1_one_process_splits_its_page() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    assert_eq!(split_page(&sim, &a, 0), Ok(head));
    sim.verify(&[&a], &());
    assert_eq!(
        (sim.count(Counter::ThpSplitPage), sim.count(Counter::ThpSplitPmd)),
        (1, 1)
    );
    assert_eq!(sim.count(Counter::ThpDeferredSplitPage), 0);
    assert_eq!(
        (sim.count(Counter::NrAnonThps), sim.count(Counter::NrAnonPages)),
        (0, u64::from(N))
    );
    for i in 0..N {
        assert_eq!(
            mm::report::kpageflags(&sim, head.offset(i)),
            0x4_0000_5838,
            "subpage {i}"
        );
        assert_eq!(mm::report::kpagecount(&sim, head.offset(i)), 1);
    }
    assert_eq!(a.rss_pages(), u64::from(N));
    reads_its_numbers(&a, &[]);
    a.write_byte(at(5), 9).expect("still writable");
}

#[test]
fn t5_4_reference_and_lock_end_on_the_subpage_asked_for() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    assert_eq!(split_page(&sim, &a, 11), Ok(head.offset(11)));
    sim.verify(&[&a], &());
    assert_eq!(
        mm::report::kpageflags(&sim, head) & 1,
        0,
        "the first page is unlocked"
    );
}

#[test]
fn t5_5_three_processes_keep_their_bytes_when_the_page_is_split() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    let b = a.fork(cpu(1)).expect("memory is there");
    let c = b.fork(cpu(2)).expect("memory is there");
    assert_eq!(split_page(&sim, &b, 0), Ok(head));
    sim.verify(&[&a, &b, &c], &());
    assert_eq!(sim.count(Counter::ThpSplitPmd), 3);
    for i in [0, 7, N - 1] {
        let page = sim.pages().page(head.offset(i));
        assert_eq!((page.mapcount(), page.refs_hint()), (3, 3));
    }
    [&a, &b, &c]
        .iter()
        .for_each(|process| reads_its_numbers(process, &[]));
    c.write_byte(at(2), 0x77).expect("a copy of its own");
    sim.verify(&[&a, &b, &c], &());
    assert_eq!(a.read_byte(at(2)), Ok(number(2)));
}

#[test]
fn t5_2_a_pinned_page_refuses_and_stays_as_it_was() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    let pin = sim
        .pin_user_page(&a, VirtAddr::new(at(7)), Access::Write)
        .expect("it is mapped");
    assert_eq!(pin.pfn(), head.offset(7));
    assert_eq!(
        split_page(&sim, &a, 0),
        Err(SplitError::Pinned {
            expected: 2,
            found: 3
        })
    );
    assert_eq!(
        (
            sim.count(Counter::ThpSplitPageFailed),
            sim.count(Counter::ThpSplitPmd)
        ),
        (1, 0)
    );
    assert_eq!(row(&sim, head).0, 1, "still mapped by PMD");
    sim.unpin(pin);
    assert_eq!(split_page(&sim, &a, 0), Ok(head));
    sim.verify(&[&a], &());
}

#[test]
fn t3_2_draining_the_queue_frees_what_nobody_maps() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    unmap(&sim, &a, 7, 1);
    assert_eq!(sim.nr_deferred_splits(), 1);
    let free = sim.nr_free_pages();
    let progress = sim.split_deferred(10);
    assert_eq!((progress.scanned, progress.split), (1, 1));
    sim.verify(&[&a], &());
    assert_eq!(sim.nr_free_pages(), free + 1, "the dropped page and no other");
    assert_eq!(
        (sim.nr_deferred_splits(), sim.count(Counter::ThpSplitPage)),
        (0, 1)
    );
    assert_eq!(mm::report::kpagecount(&sim, head.offset(7)), 0);
    reads_its_numbers(&a, &[7]);
}

#[test]
fn t3_6_a_pinned_page_waits_its_turn_and_starves_nobody() {
    let sim = machine();
    let a = one_thp(&sim);
    let pin = sim
        .pin_user_page(&a, VirtAddr::new(at(0)), Access::Read)
        .expect("it is mapped");
    unmap(&sim, &a, 7, 1);
    let progress = sim.split_deferred(10);
    assert_eq!((progress.scanned, progress.split), (1, 0));
    assert_eq!(
        (sim.nr_deferred_splits(), sim.count(Counter::ThpSplitPageFailed)),
        (1, 1)
    );
    assert_eq!(
        sim.count(Counter::ThpDeferredSplitPage),
        1,
        "put back is not queued anew"
    );
    sim.unpin(pin);
    assert_eq!(sim.split_deferred(10).split, 1);
    sim.verify(&[&a], &());
    assert_eq!(sim.nr_deferred_splits(), 0);
}

#[test]
fn fork_copies_what_is_pinned() {
    let sim = machine();
    let a = one_thp(&sim);
    let pin = sim
        .pin_user_page(&a, VirtAddr::new(at(7)), Access::Write)
        .expect("it is mapped");
    let b = a.fork(cpu(1)).expect("memory is there");
    let held = [pin.pfn()];
    assert_ne!(frame(&sim, &b, 7), held[0], "the child has a copy");
    a.write_byte(at(7), 0x55).expect("writable");
    assert_eq!(
        frame(&sim, &a, 7),
        held[0],
        "the parent still writes where the pin looks"
    );
    assert_eq!(b.read_byte(at(7)), Ok(number(7)));
    sim.unpin(pin);
    sim.verify(&[&a, &b], &());
}

#[test]
fn rmap_finds_every_mapping_at_both_levels() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    let b = a.fork(cpu(1)).expect("memory is there");
    split_pmd(&sim, &a);
    unmap(&sim, &a, 0, 3);
    let (mut pmds, mut ptes) = (Vec::new(), 0);
    sim.for_each_mapping(
        sim.pages().page(head.offset(5)),
        &mut |mapping| match mapping.by {
            MappedBy::Pmd => pmds.push(mapping.root),
            MappedBy::Pte => ptes += 1,
            MappedBy::Migration => panic!("nothing is being moved"),
        },
    );
    assert_eq!((pmds, ptes), (vec![b.root()], N - 3));
}

#[test]
fn reading_untouched_memory_costs_no_page() {
    let sim = machine();
    let a = sim.start(cpu(0)).expect("memory is there");
    let request = MapRequest {
        hint: HOME,
        len: 2 * WHOLE,
        prot: Prot::READ | Prot::WRITE,
        place: Place::Fixed,
        flags: VmaFlags::empty(),
    };
    sim.mmap(&a, request).expect("nothing is there");
    assert_eq!(a.read_byte(at(1)), Ok(0));
    sim.verify(&[&a], &());
    assert_eq!((a.rss_pages(), sim.count(Counter::NrAnonPages)), (0, 0));
    assert_eq!(sim.count(Counter::ThpZeroPageAlloc), 1);
    let b = a.fork(cpu(1)).expect("memory is there");
    assert_eq!(b.read_byte(at(2)), Ok(0));
    a.write_byte(at(1), 1).expect("writable");
    sim.verify(&[&a, &b], &());
    assert_eq!((a.rss_pages(), b.read_byte(at(1))), (1, Ok(0)));
    assert_eq!(sim.shrink_huge_zero_page(), 0, "the child still maps it");
    drop(b);
    assert_eq!(sim.shrink_huge_zero_page(), N);
    sim.verify(&[&a], &());
}

#[test]
#[cfg_attr(miri, ignore = "takes long")]
fn fork_survives_every_failing_allocation() {
    let sim = machine();
    let a = one_thp(&sim);
    unmap(&sim, &a, 7, 1);
    let free = sim.nr_free_pages();
    for nth in 1.. {
        sim.inject_alloc_failure(Some(nth));
        let child = a.fork(cpu(1));
        let done = sim.alloc_failure_pending();
        sim.inject_alloc_failure(None);
        assert_eq!(child.is_ok(), done, "the failure shows");
        match &child {
            Ok(child) => sim.verify(&[&a, child], &()),
            Err(_) => sim.verify(&[&a], &()),
        }
        drop(child);
        sim.verify(&[&a], &());
        assert_eq!(sim.nr_free_pages(), free, "nothing is lost");
        if done {
            assert!(nth > 5, "there are allocations to fail");
            break;
        }
    }
    reads_its_numbers(&a, &[7]);
}
