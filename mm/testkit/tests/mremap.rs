//! `mremap`: growing, shrinking and moving, at 2 MiB and page boundaries. After every step the whole-memory checker runs,
//! and compares every cached translation with the tables.

use std::collections::BTreeMap;

use mm::{
    Counter, Destination, Limit, MapError, MapRequest, PAGE_BYTES, Pfn, Place, Prot, Remains, Remap,
    SegvReason, USER_END, VirtAddr, VirtRange, VmaFlags, fault::Access, platform::CpuId, rmap::MappedBy,
};
use mm_testkit::{
    scenario::{HOME, HUGE},
    sim::{AccessError, Config, MANY_FRAMES, Process, Sim},
};
use proptest::prelude::*;

const PAGE: u64 = PAGE_BYTES;
const WHOLE: u64 = HUGE * PAGE;
const RW: Prot = Prot::READ.union(Prot::WRITE);
const NOT_MAPPED: AccessError = AccessError::Segv(SegvReason::NotMapped);

fn at(page: u64) -> u64 {
    HOME + page * PAGE
}

fn number(page: u64) -> u8 {
    u8::try_from(page % 251).expect("small") + 1
}

fn with_process(f: impl FnOnce(&Sim, &mut Process<'_>)) {
    let sim = Sim::boot(&Config::default());
    {
        let mut process = sim.start(CpuId::new(0)).expect("memory is there");
        f(&sim, &mut process);
        sim.verify(&[&process], &());
    }
    sim.verify(&[], &());
}

fn map(sim: &Sim, process: &Process<'_>, page: u64, pages: u64) {
    let request = MapRequest {
        hint: at(page),
        len: pages * PAGE,
        prot: RW,
        place: Place::Fixed,
        flags: VmaFlags::empty(),
    };
    process
        .run(|| sim.mmap(process, request))
        .expect("nothing is there");
}

fn fill(process: &Process<'_>, page: u64, pages: u64) {
    (page..page + pages).for_each(|page| process.write_byte(at(page), number(page)).expect("writable"));
}

/// Whether `pages` pages from `now` on begin with the numbers of those from `then` on.
fn holds(process: &Process<'_>, now: u64, then: u64, pages: u64) {
    for i in 0..pages {
        assert_eq!(process.read_byte(at(now + i)), Ok(number(then + i)), "page {i}");
    }
}

fn is_empty(process: &Process<'_>, page: u64, pages: u64) {
    (page..page + pages).for_each(|page| assert_eq!(process.read_byte(at(page)), Ok(0), "page {page}"));
}

fn is_gone(process: &Process<'_>, page: u64, pages: u64) {
    (page..page + pages)
        .for_each(|page| assert_eq!(process.read_byte(at(page)), Err(NOT_MAPPED), "page {page}"));
}

fn word(sim: &Sim, process: &Process<'_>, page: u64) -> u64 {
    mm::report::pagemap(sim, process, VirtAddr::new(at(page)))
}

fn frame(sim: &Sim, process: &Process<'_>, page: u64) -> Pfn {
    let word = word(sim, process, page);
    assert_ne!(word >> 63, 0, "page {page} is present");
    Pfn::new(u32::try_from(word & ((1 << 55) - 1)).expect("a frame number"))
}

fn remap(
    sim: &Sim,
    process: &Process<'_>,
    (page, old, new): (u64, u64, u64),
    destination: Destination,
) -> Result<u64, MapError> {
    let request = Remap {
        addr: at(page),
        old_len: old * PAGE,
        new_len: new * PAGE,
        destination,
        remains: Remains::Nothing,
    };
    process.run(|| sim.mremap(process, request)).map(VirtAddr::as_u64)
}

fn move_to(sim: &Sim, process: &Process<'_>, from: u64, pages: u64, to: u64) {
    let moved = remap(sim, process, (from, pages, pages), Destination::Fixed(at(to)));
    assert_eq!(moved, Ok(at(to)));
}

/// The page is one folio, mapped by `by` at exactly these addresses.
fn mapped_at(sim: &Sim, head: Pfn, by: MappedBy, expected: &[u64]) {
    let mut found = Vec::new();
    sim.for_each_mapping(sim.pages().page(head), &mut |mapping| {
        assert_eq!(mapping.by, by);
        found.push(mapping.addr.as_u64());
    });
    found.sort_unstable();
    assert_eq!(found, expected);
}

// Resizing.

#[test]
fn area_shrinks_in_place() {
    with_process(|sim, process| {
        map(sim, process, 0, 8);
        fill(process, 0, 8);
        assert_eq!(remap(sim, process, (0, 8, 3), Destination::Stay), Ok(at(0)));
        holds(process, 0, 0, 3);
        is_gone(process, 3, 5);
        assert_eq!(process.total_vm_pages(), 3);
    });
}

#[test]
fn area_grows_in_place_and_joins_what_follows() {
    with_process(|sim, process| {
        map(sim, process, 0, 8);
        fill(process, 0, 8);
        assert_eq!(remap(sim, process, (2, 6, 10), Destination::Stay), Ok(at(2)));
        holds(process, 0, 0, 8);
        is_empty(process, 8, 4);
        assert_eq!((process.nr_areas(), process.total_vm_pages()), (1, 12));
        // Something in the way: only who may move gets more.
        map(sim, process, 20, 1);
        fill(process, 20, 1);
        assert_eq!(
            remap(sim, process, (0, 12, 30), Destination::Stay),
            Err(MapError::NoSpace)
        );
        let moved = remap(sim, process, (0, 12, 30), Destination::Anywhere).expect("there is room");
        assert_eq!(moved, USER_END - 30 * PAGE);
        assert_eq!(process.read_byte(moved + 7 * PAGE), Ok(number(7)));
        assert_eq!(process.read_byte(moved + 12 * PAGE), Ok(0));
        is_gone(process, 0, 12);
        holds(process, 20, 20, 1);
    });
}

#[test]
fn middle_of_an_area_grows_only_elsewhere() {
    with_process(|sim, process| {
        map(sim, process, 0, 8);
        fill(process, 0, 8);
        let moved = remap(sim, process, (2, 3, 5), Destination::Anywhere).expect("there is room");
        assert_eq!(process.read_byte(moved + PAGE), Ok(number(3)));
        assert_eq!(process.read_byte(moved + 4 * PAGE), Ok(0));
        is_gone(process, 2, 3);
        holds(process, 0, 0, 2);
        holds(process, 5, 5, 3);
        assert_eq!(process.nr_areas(), 3);
    });
}

// Moving huge pages.

#[test]
fn whole_huge_page_moves_as_one_entry() {
    with_process(|sim, process| {
        process.run_on(CpuId::new(1));
        process.run_on(CpuId::new(0));
        map(sim, process, 0, 2 * HUGE);
        fill(process, 0, 2 * HUGE);
        let heads = [frame(sim, process, 0), frame(sim, process, HUGE)];
        // To another table of PMDs, and back into the first.
        let far = 600 * HUGE;
        for (from, to) in [(0, far), (far, 4 * HUGE)] {
            move_to(sim, process, from, 2 * HUGE, to);
            sim.verify(&[process], &());
            holds(process, to, 0, 2 * HUGE);
            is_gone(process, from, 1);
            assert_eq!([frame(sim, process, to), frame(sim, process, to + HUGE)], heads);
            mapped_at(sim, heads[1], MappedBy::Pmd, &[at(to + HUGE)]);
        }
        assert_eq!(sim.count(Counter::ThpSplitPmd), 0);
        assert_eq!(sim.count(Counter::NrAnonThps), 2);
        // What was moved can be split: both ways to it are known.
        let (folio, _) = sim
            .get_user_page(process, VirtAddr::new(at(4 * HUGE)), Access::Read)
            .expect("mapped");
        let locked = sim.try_lock_folio(&folio).expect("nobody holds it");
        let (folio, locked) = sim
            .split_folio(folio, locked, 0)
            .map_err(|(error, ..)| error)
            .expect("alone");
        drop(locked);
        sim.put(folio);
        holds(process, 4 * HUGE, 0, 2 * HUGE);
    });
}

#[test]
fn huge_zero_page_and_table_of_ptes_move_as_one_entry() {
    with_process(|sim, process| {
        map(sim, process, 0, 2 * HUGE);
        is_empty(process, 0, 1);
        fill(process, HUGE, 1);
        sim.split_huge_pmd(process, VirtAddr::new(at(HUGE)));
        let tables = process.pgtable_bytes();
        move_to(sim, process, 0, 2 * HUGE, 4 * HUGE);
        assert_eq!(process.pgtable_bytes(), tables);
        sim.verify(&[process], &());
        is_empty(process, 4 * HUGE, HUGE);
        holds(process, 5 * HUGE, HUGE, 1);
        assert_eq!(process.rss_pages(), HUGE);
    });
}

#[test]
fn parts_of_a_huge_page_move_as_base_pages() {
    with_process(|sim, process| {
        map(sim, process, 0, 3 * HUGE);
        fill(process, 0, 3 * HUGE);
        let head = frame(sim, process, HUGE);
        // Not alike in their 2 MiB spans: every chunk ends in two.
        move_to(sim, process, HUGE - 3, HUGE + 5, 8 * HUGE + 1);
        sim.verify(&[process], &());
        holds(process, 8 * HUGE + 1, HUGE - 3, HUGE + 5);
        is_gone(process, HUGE - 3, HUGE + 5);
        holds(process, 0, 0, HUGE - 3);
        holds(process, 2 * HUGE + 2, 2 * HUGE + 2, HUGE - 2);
        assert_eq!(frame(sim, process, 8 * HUGE + 4), head, "no page was copied");
        assert_eq!(sim.count(Counter::ThpSplitPmd), 3);
        assert_eq!(
            sim.count(Counter::ThpDeferredSplitPage),
            0,
            "nothing was unmapped"
        );
    });
}

#[test]
fn move_within_one_table_keeps_what_lies_around() {
    with_process(|sim, process| {
        map(sim, process, 0, 16);
        fill(process, 0, 16);
        move_to(sim, process, 2, 3, 9);
        sim.verify(&[process], &());
        holds(process, 9, 2, 3);
        holds(process, 0, 0, 2);
        holds(process, 5, 5, 4);
        holds(process, 12, 12, 4);
        is_gone(process, 2, 3);
        // Back where it came from, so that the areas are one again but for what the move replaced.
        move_to(sim, process, 9, 3, 2);
        holds(process, 0, 0, 9);
        assert_eq!(process.nr_areas(), 2);
    });
}

#[test]
fn area_left_behind_is_there_and_empty() {
    with_process(|sim, process| {
        map(sim, process, 0, 2 * HUGE);
        fill(process, 0, 2 * HUGE);
        let request = Remap {
            addr: at(1),
            old_len: HUGE * PAGE,
            new_len: HUGE * PAGE,
            destination: Destination::Hint(at(8 * HUGE)),
            remains: Remains::EmptyArea,
        };
        let moved = process.run(|| sim.mremap(process, request)).map(VirtAddr::as_u64);
        assert_eq!(moved, Ok(at(8 * HUGE)));
        sim.verify(&[process], &());
        holds(process, 8 * HUGE, 1, HUGE);
        is_empty(process, 1, HUGE);
        fill(process, 1, HUGE);
        sim.verify(&[process], &());
        holds(process, 0, 0, 2 * HUGE);
        assert_eq!(process.total_vm_pages(), 3 * HUGE);
    });
}

/// The child shares the pages: moving them in one process leaves the other's where they are.
#[test]
fn shared_pages_move_in_one_process_only() {
    let sim = Sim::boot(&Config::default());
    let parent = sim.start(CpuId::new(0)).expect("memory is there");
    map(&sim, &parent, 0, HUGE);
    fill(&parent, 0, HUGE);
    let head = frame(&sim, &parent, 0);
    let child = parent.fork(CpuId::new(1)).expect("memory is there");
    move_to(&sim, &child, 0, HUGE, 4 * HUGE);
    sim.verify(&[&parent, &child], &());
    mapped_at(&sim, head, MappedBy::Pmd, &[at(0), at(4 * HUGE)]);
    move_to(&sim, &child, 4 * HUGE, 7, 8 * HUGE);
    sim.verify(&[&parent, &child], &());
    child.write_byte(at(8 * HUGE), 0xee).expect("writable");
    holds(&parent, 0, 0, HUGE);
    holds(&child, 4 * HUGE + 7, 7, HUGE - 7);
    sim.verify(&[&parent, &child], &());
}

// The rows of the specification.

/// T27.2: subpage i of huge page i, for four of them, in neighbouring addresses; then each is split through there.
#[test]
fn t27_2_subpages_of_four_huge_pages_side_by_side() {
    with_process(|sim, process| {
        map(sim, process, 0, 4 * HUGE);
        fill(process, 0, 4 * HUGE);
        (1..4).for_each(|i| move_to(sim, process, i * HUGE + i, 1, i));
        sim.verify(&[process], &());
        let is_thp = |pfn| mm::report::kpageflags(sim, pfn) >> 22 & 1 == 1;
        for i in 0..4 {
            holds(process, i, i * HUGE + i, 1);
            assert!(is_thp(frame(sim, process, i)), "page {i}");
        }
        for i in 0..4 {
            let (folio, pfn) = sim
                .get_user_page(process, VirtAddr::new(at(i)), Access::Read)
                .expect("mapped");
            let subpage = pfn.since(folio.pfn());
            let locked = sim.try_lock_folio(&folio).expect("nobody holds it");
            let (folio, locked) = sim
                .split_folio(folio, locked, subpage)
                .map_err(|(error, ..)| error)
                .expect("nobody holds it");
            drop(locked);
            sim.put(folio);
            sim.verify(&[process], &());
        }
        for i in 0..4 {
            holds(process, i, i * HUGE + i, 1);
            assert!(!is_thp(frame(sim, process, i)), "page {i}");
        }
        assert_eq!(sim.count(Counter::ThpSplitPage), 4);
    });
}

/// T27.3: one huge page in three places of one address space.
#[test]
fn t27_3_one_huge_page_in_three_places() {
    with_process(|sim, process| {
        map(sim, process, 0, HUGE);
        fill(process, 0, HUGE);
        let head = frame(sim, process, 0);
        move_to(sim, process, 3, 2, 4 * HUGE);
        move_to(sim, process, 7, 4, 8 * HUGE + 1);
        sim.verify(&[process], &());
        let mut places: Vec<u64> = (0..HUGE)
            .map(|page| match page {
                3..5 => 4 * HUGE + page - 3,
                7..11 => 8 * HUGE + 1 + page - 7,
                _ => page,
            })
            .map(at)
            .collect();
        places.sort_unstable();
        mapped_at(sim, head, MappedBy::Pte, &places);
        let counts = sim.pages().page(head).map_counts();
        assert_eq!((counts.entire, u64::from(counts.total)), (0, HUGE));
        assert_eq!(u64::from(sim.pages().page(head).refs_hint()), HUGE);
        process
            .run(|| sim.munmap(process, VirtRange::user(at(4 * HUGE), PAGE).expect("a page")))
            .expect("no memory is needed");
        sim.verify(&[process], &());
        assert_eq!(u64::from(sim.pages().page(head).map_counts().total), HUGE - 1);
        assert_eq!(sim.pages().page(head).offset(3).mapcount(), 0);
        assert_eq!(sim.count(Counter::ThpDeferredSplitPage), 1);
    });
}

// What is refused.

#[test]
fn bad_wishes_are_refused_and_change_nothing() {
    with_process(|sim, process| {
        map(sim, process, 0, 8);
        map(sim, process, 8 * HUGE, 2);
        fill(process, 0, 8);
        fill(process, 8 * HUGE, 2);
        let before = (process.nr_areas(), process.total_vm_pages(), process.rss_pages());
        let fixed = |page| Destination::Fixed(at(page));
        let (invalid, bad, full) = (MapError::Invalid, MapError::BadRange, MapError::NoSpace);
        let cases = [
            (
                "unaligned",
                at(0) + 1,
                PAGE,
                2 * PAGE,
                Destination::Anywhere,
                invalid,
            ),
            ("no new length", at(0), PAGE, 0, Destination::Anywhere, invalid),
            (
                "a new length that wraps",
                at(0),
                PAGE,
                u64::MAX,
                Destination::Anywhere,
                invalid,
            ),
            ("no old length", at(0), 0, PAGE, Destination::Anywhere, invalid),
            (
                "an old length that wraps",
                at(0),
                u64::MAX,
                PAGE,
                Destination::Anywhere,
                invalid,
            ),
            ("a hole", at(100), PAGE, PAGE, Destination::Anywhere, bad),
            ("the kernel", 1 << 63, PAGE, PAGE, Destination::Anywhere, bad),
            (
                "more than the area",
                at(0),
                9 * PAGE,
                10 * PAGE,
                Destination::Anywhere,
                bad,
            ),
            (
                "more than there is",
                at(0),
                8 * PAGE,
                USER_END,
                Destination::Anywhere,
                full,
            ),
            (
                "more than space",
                at(0),
                8 * PAGE,
                1 << 62,
                Destination::Anywhere,
                full,
            ),
            (
                "a length that wraps with what is before it",
                at(7),
                PAGE,
                PAGE.wrapping_neg(),
                Destination::Anywhere,
                full,
            ),
            (
                "an unaligned place",
                at(0),
                PAGE,
                PAGE,
                Destination::Fixed(at(20) + 1),
                invalid,
            ),
            (
                "a place past the end",
                at(0),
                PAGE,
                2 * PAGE,
                Destination::Fixed(USER_END - PAGE),
                invalid,
            ),
            ("onto itself", at(0), PAGE, PAGE, fixed(0), invalid),
            ("overlapping below", at(1), 4 * PAGE, 4 * PAGE, fixed(0), invalid),
            ("overlapping above", at(0), 4 * PAGE, 4 * PAGE, fixed(3), invalid),
            (
                "to a place, more than the area",
                at(0),
                9 * PAGE,
                9 * PAGE,
                fixed(8 * HUGE),
                bad,
            ),
            (
                "to a place, no old length",
                at(0),
                0,
                PAGE,
                fixed(8 * HUGE),
                invalid,
            ),
        ];
        for (name, addr, old_len, new_len, destination, expected) in cases {
            let request = Remap {
                addr,
                old_len,
                new_len,
                destination,
                remains: Remains::Nothing,
            };
            assert_eq!(
                process.run(|| sim.mremap(process, request)),
                Err(expected),
                "{name}"
            );
            sim.verify(&[process], &());
            let after = (process.nr_areas(), process.total_vm_pages(), process.rss_pages());
            assert_eq!(after, before, "{name}");
        }
        holds(process, 0, 0, 8);
        holds(process, 8 * HUGE, 8 * HUGE, 2);
        let resized = Remap {
            addr: at(0),
            old_len: PAGE,
            new_len: 2 * PAGE,
            destination: Destination::Hint(0),
            remains: Remains::EmptyArea,
        };
        assert_eq!(process.run(|| sim.mremap(process, resized)), Err(invalid));
    });
}

#[test]
fn limits_hold_for_what_is_new() {
    with_process(|sim, process| {
        map(sim, process, 0, 8);
        fill(process, 0, 8);
        process.set_limit(Limit::Total, 10 * PAGE);
        assert_eq!(
            remap(sim, process, (0, 8, 11), Destination::Anywhere),
            Err(MapError::NoSpace)
        );
        assert_eq!(remap(sim, process, (0, 8, 10), Destination::Stay), Ok(at(0)));
        // A move is not more, and no peak; an area that is left behind is.
        move_to(sim, process, 0, 10, 100);
        assert_eq!(process.peak_vm_pages(), 10);
        let leaving = Remap {
            addr: at(100),
            old_len: PAGE,
            new_len: PAGE,
            destination: Destination::Hint(0),
            remains: Remains::EmptyArea,
        };
        assert_eq!(
            process.run(|| sim.mremap(process, leaving)),
            Err(MapError::NoSpace)
        );
        holds(process, 100, 0, 8);
    });
}

// Failing allocations.

/// Moves at page boundaries with the `nth` allocation failing; returns whether one was.
fn move_with_failure(nth: u64) -> bool {
    let sim = Sim::boot(&Config {
        frames: MANY_FRAMES,
        nr_cpus: 1,
        holes: Vec::new(),
    });
    let before = sim.nr_free_pages();
    let process = sim.start(CpuId::new(0)).expect("memory is there");
    map(&sim, &process, 0, 3 * HUGE + 9);
    fill(&process, 0, 3 * HUGE + 9);
    // Into the middle of another area, which is cut for it; over five tables of PTEs that are not there, in two tables
    // of PMDs that are not there.
    let border = (1 << 30) / WHOLE * HUGE;
    let to = (2 * border - 2 * HUGE + 5) + if mm::ENTRIES == 512 { 0 } else { 64 * HUGE };
    map(&sim, &process, to - 3, 3 * HUGE + 20);
    let areas = process.nr_areas();
    sim.inject_alloc_failure(Some(nth));
    let moved = remap(
        &sim,
        &process,
        (2, 3 * HUGE, 3 * HUGE),
        Destination::Fixed(at(to)),
    );
    let injected = !sim.alloc_failure_pending();
    sim.inject_alloc_failure(None);
    sim.verify(&[&process], &());
    if let Err(error) = moved {
        assert!(matches!(error, MapError::NoMemory(_)), "{error:?}");
        assert!(injected);
        holds(&process, 0, 0, 3 * HUGE + 9);
        sim.verify(&[&process], &());
        assert!(
            process.nr_areas() <= areas + 1,
            "at most the cut of what was replaced is left"
        );
        move_to(&sim, &process, 2, 3 * HUGE, to);
    }
    sim.verify(&[&process], &());
    holds(&process, to, 2, 3 * HUGE);
    holds(&process, 0, 0, 2);
    holds(&process, 3 * HUGE + 2, 3 * HUGE + 2, 7);
    drop(process);
    sim.verify(&[], &());
    assert_eq!(sim.nr_free_pages(), before, "pages leaked");
    injected
}

#[test]
fn every_allocation_of_a_move_may_fail() {
    let failures = (1..).take_while(|&nth| move_with_failure(nth)).count();
    assert!(failures >= 8, "cuts, an area, tables of two levels: {failures}");
}

// Against a model.

/// Pages that the model has.
const SPACE: u64 = 5 * HUGE;

#[derive(Clone, Debug)]
enum Op {
    Map(u64, u64),
    Unmap(u64, u64),
    Write(u64, u64),
    Split(u64),
    Move { from: u64, old: u64, new: u64, to: u64 },
    Resize { from: u64, old: u64, new: u64 },
    Leave { from: u64, pages: u64, to: u64 },
}

/// Page numbers and lengths, often at the ends of 2 MiB.
fn page() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0..5u64).prop_map(|span| span * HUGE),
        (0..5u64, 0..3u64).prop_map(|(span, off)| span * HUGE + off),
        0..SPACE
    ]
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![1..4u64, Just(HUGE), Just(2 * HUGE), 1..2 * HUGE]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (page(), length()).prop_map(|(page, pages)| Op::Map(page, pages)),
        1 => (page(), length()).prop_map(|(page, pages)| Op::Unmap(page, pages)),
        3 => (page(), length()).prop_map(|(page, pages)| Op::Write(page, pages)),
        1 => page().prop_map(Op::Split),
        4 => (page(), length(), length(), page())
            .prop_map(|(from, old, new, to)| Op::Move { from, old, new, to }),
        3 => (page(), length(), page()).prop_map(|(from, pages, to)| Op::Move { from, old: pages, new: pages, to }),
        2 => (page(), length(), length()).prop_map(|(from, old, new)| Op::Resize { from, old, new }),
        2 => (page(), length(), page()).prop_map(|(from, pages, to)| Op::Leave { from, pages, to }),
    ]
}

/// What each mapped page holds.
#[derive(Default)]
struct Model {
    pages: BTreeMap<u64, u8>,
    stamp: u8,
}

impl Model {
    fn remove(&mut self, page: u64, pages: u64) {
        self.pages.retain(|at, _| !(page..page + pages).contains(at));
    }

    fn add(&mut self, page: u64, pages: u64) {
        self.remove(page, pages);
        self.pages.extend((page..page + pages).map(|page| (page, 0)));
    }

    /// What the pages hold that are moved away; they are gone then.
    fn take(&mut self, page: u64, pages: u64) -> Vec<u8> {
        (page..page + pages)
            .map(|page| self.pages.remove(&page).expect("an area moves as a whole"))
            .collect()
    }

    fn put(&mut self, page: u64, pages: u64, contents: &[u8]) {
        self.add(page, pages);
        self.pages.extend(
            contents
                .iter()
                .enumerate()
                .map(|(i, &byte)| (page + i as u64, byte)),
        );
    }

    fn moved(&mut self, (from, old, new): (u64, u64, u64), to: u64) {
        let kept = old.min(new);
        self.remove(to, new);
        self.remove(from + kept, old - kept);
        let contents = self.take(from, kept);
        self.put(to, new, &contents);
    }

    fn run(&mut self, sim: &Sim, process: &Process<'_>, op: &Op) {
        match *op {
            Op::Map(page, pages) => {
                map(sim, process, page, pages);
                self.add(page, pages);
            }
            Op::Unmap(page, pages) => {
                let range = VirtRange::user(at(page), pages * PAGE).expect("user memory");
                process
                    .run(|| sim.munmap(process, range))
                    .expect("memory is there");
                self.remove(page, pages);
            }
            Op::Write(page, pages) => {
                self.stamp = self.stamp.wrapping_add(1).max(1);
                for page in page..page + pages {
                    if let Some(byte) = self.pages.get_mut(&page) {
                        *byte = self.stamp;
                        process.write_byte(at(page), self.stamp).expect("writable");
                    }
                }
            }
            Op::Split(page) => process.run(|| sim.split_huge_pmd(process, VirtAddr::new(at(page)))),
            Op::Move { from, old, new, to } => {
                let moved = remap(sim, process, (from, old, new), Destination::Fixed(at(to)));
                if moved.is_ok() {
                    self.moved((from, old, new), to);
                }
            }
            Op::Resize { from, old, new } => {
                let resized = remap(sim, process, (from, old, new), Destination::Anywhere);
                if let Ok(addr) = resized {
                    let to = addr.wrapping_sub(HOME) / PAGE;
                    if to == from && old >= new {
                        self.remove(from + new, old - new);
                    } else if to == from {
                        self.pages.extend((from + old..from + new).map(|page| (page, 0)));
                    } else {
                        self.moved((from, old, new), to);
                    }
                }
            }
            Op::Leave { from, pages, to } => {
                let request = Remap {
                    addr: at(from),
                    old_len: pages * PAGE,
                    new_len: pages * PAGE,
                    destination: Destination::Fixed(at(to)),
                    remains: Remains::EmptyArea,
                };
                if process.run(|| sim.mremap(process, request)).is_ok() {
                    self.moved((from, pages, pages), to);
                    self.add(from, pages);
                }
            }
        }
    }

    fn verify(&self, sim: &Sim, process: &Process<'_>) {
        assert_eq!(process.total_vm_pages(), self.pages.len() as u64);
        for (&page, &byte) in &self.pages {
            let present = word(sim, process, page) >> 63 == 1;
            assert!(present || byte == 0, "page {page} is lost");
            if present {
                assert_eq!(process.read_byte(at(page)), Ok(byte), "page {page}");
            }
        }
        for page in (0..2 * SPACE).filter(|page| !self.pages.contains_key(page)) {
            assert_eq!(word(sim, process, page) >> 63, 0, "page {page} is left");
        }
        sim.verify(&[process], &());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 32 }, ..ProptestConfig::default() })]

    #[test]
    fn moves_follow_the_model(ops in prop::collection::vec(op(), 1..40)) {
        let sim = Sim::boot(&Config { frames: 2 * MANY_FRAMES, ..Config::default() });
        let before = sim.nr_free_pages();
        {
            let process = sim.start(CpuId::new(0)).expect("memory is there");
            let mut model = Model::default();
            for op in &ops {
                model.run(&sim, &process, op);
                model.verify(&sim, &process);
            }
        }
        sim.verify(&[], &());
        sim.shrink_huge_zero_page();
        assert_eq!(sim.nr_free_pages(), before, "pages leaked");
    }
}
