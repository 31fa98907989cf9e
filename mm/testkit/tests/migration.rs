//! Rows T6.2, T16 to T21 of the specification, and race C19: pages that move to other frames under running processes.
//!
//! What happens in the middle of a migration is done when the machine copies a page: the entries say "being moved" then,
//! and only folio locks are held.

#![expect(
    clippy::disallowed_types,
    reason = "a flag between the test's own threads is no protocol of mm's"
)]

use std::{
    cell::{Cell, RefCell},
    sync::atomic::{AtomicBool, Ordering},
};

use mm::{
    AllocError, AllocFlags, Counter, MapRequest, MigrateError, MigrateMode, Order, PMD_ORDER, PageFlags, Pfn,
    Place, Prot, VirtAddr, VmaFlags,
    check::{Damage, Owners},
    error::SegvReason,
    fault::Access,
    folio::{Folio, IsolatedList},
    migrate::{Migrated, NotIsolated, Reach, Targets},
    page::Page,
    report::{kpageflags, pagemap, smaps},
    trace::Event,
};
use mm_testkit::{
    fixture::{
        N, PAGE, RW, at, cpu, frame, machine, number, one_thp, range, reads_its_numbers, row, split_pmd,
        unmap, write_numbers,
    },
    machine::{SimMachine, Walk, entry_bits, on_cpu, with_copy_hook},
    scenario::HUGE,
    sim::{AccessError, Process, Sim},
};

type List<'m> = IsolatedList<'m, SimMachine>;

/// Maps `pages` pages from `page` on.
fn map_pages(sim: &Sim, process: &Process<'_>, page: u64, pages: u64, flags: VmaFlags) {
    let request = MapRequest {
        hint: at(page),
        len: pages * PAGE,
        prot: RW,
        place: Place::Fixed,
        flags,
    };
    sim.mmap(process, request).expect("room");
}

/// A process with `pages` base pages from [`HOME`](mm_testkit::scenario::HOME) on, each of which begins with its number.
fn base_pages(sim: &Sim, pages: u64) -> Process<'_> {
    let process = sim.start(cpu(0)).expect("memory is there");
    map_pages(sim, &process, 0, pages, VmaFlags::NOHUGEPAGE);
    write_numbers(&process, 0, pages);
    process
}

/// A target from the allocator, as large as the source.
fn fresh<'m>(sim: &'m Sim) -> impl FnMut(Page<'m>) -> Result<Folio<'m>, AllocError> {
    |source| sim.alloc_folio(source.compound_order(), AllocFlags::empty())
}

/// The first `pages` pages of a process, off the LRU.
fn isolate<'m>(sim: &'m Sim, process: &Process<'_>, pages: u64) -> List<'m> {
    let mut list = List::new(sim);
    let collected = sim.isolate_pages_in(process, range(0, pages), Reach::All, &mut |_| true, &mut list);
    assert_eq!((collected.isolated, collected.refused), (list.len(), 0));
    list
}

/// Moves the first `pages` pages of a process to wherever the allocator says.
fn migrate(sim: &Sim, process: &Process<'_>, pages: u64) -> Migrated {
    let mut list = isolate(sim, process, pages);
    sim.migrate_pages(&mut list, &mut Targets::new(&mut fresh(sim)), MigrateMode::Sync)
}

/// Moves the first `pages` pages of a process, and does `meanwhile` while entries say that the first of them is being
/// moved.
fn migrate_and(sim: &Sim, process: &Process<'_>, pages: u64, meanwhile: &dyn Fn()) -> Migrated {
    let ran = Cell::new(false);
    let hook = || {
        ran.set(true);
        meanwhile();
    };
    let done = with_copy_hook(&hook, || migrate(sim, process, pages));
    assert!(ran.get(), "a page was copied");
    done
}

/// What a list of isolated folios holds, for the checker.
struct Held(Vec<Pfn>);

impl Owners for Held {
    fn for_each_block(&self, _: &mut dyn FnMut(Pfn, Order)) {}

    fn for_each_reference(&self, visit: &mut dyn FnMut(Pfn)) {
        self.0.iter().for_each(|&pfn| visit(pfn));
    }
}

fn held(list: &List<'_>) -> Held {
    Held(list.iter().map(Page::pfn).collect())
}

/// The same, and what others hold.
fn held_with(list: &List<'_>, others: &[Pfn]) -> Held {
    Held(held(list).0.into_iter().chain(others.iter().copied()).collect())
}

/// How many walks over all places of a page `f` makes: each takes the lock of an anon_vma once.
fn rmap_walks<T>(sim: &Sim, f: impl FnOnce() -> T) -> (T, usize) {
    let (result, events) = sim.machine().events_of(f);
    let walks = events
        .iter()
        .filter(|event| matches!(event, Event::RmapWalk { .. }));
    (result, walks.count())
}

fn protect(sim: &Sim, process: &Process<'_>, pages: u64, prot: Prot) {
    process
        .run(|| sim.mprotect(process, range(0, pages), prot))
        .expect("all of it is mapped");
}

fn count<const K: usize>(sim: &Sim, counters: [Counter; K]) -> [u64; K] {
    counters.map(|counter| sim.count(counter))
}

const OUTCOMES: [Counter; 5] = [
    Counter::PgMigrateSuccess,
    Counter::PgMigrateFail,
    Counter::ThpMigrationSuccess,
    Counter::ThpMigrationFail,
    Counter::ThpMigrationSplit,
];

const READ_ONLY: Result<(), AccessError> = Err(AccessError::Segv(SegvReason::Access));

const ONE_MOVED: Migrated = Migrated {
    moved: 1,
    failed: 0,
    split: 0,
    error: None,
};

#[test]
fn t16_1_same_address_new_frame() {
    let sim = machine();
    let process = base_pages(&sim, 1);
    let (old, faults) = (frame(&sim, &process, 0), sim.count(Counter::PgFault));
    let free = sim.nr_free_pages();
    assert_eq!(migrate(&sim, &process, 1), ONE_MOVED);
    sim.verify(&[&process], &());
    assert_ne!(frame(&sim, &process, 0), old);
    assert_eq!(process.read_byte(at(0)), Ok(number(0)));
    process.write_byte(at(0), 9).expect("writable as before");
    assert_eq!(sim.count(Counter::PgFault), faults, "and without a fault");
    assert_eq!(sim.nr_free_pages(), free, "the old frame is free");
    assert_eq!(process.rss_pages(), 1);
    let counted = [Counter::PgMigrateSuccess, Counter::PgMigrateFail].map(|counter| sim.count(counter));
    assert_eq!(counted, [1, 0]);
}

#[test]
fn t16_1_a_huge_page_moves_whole() {
    let sim = machine();
    let process = one_thp(&sim);
    let (old, faults) = (frame(&sim, &process, 0), sim.count(Counter::PgFault));
    let flags = kpageflags(&sim, old);
    let free = sim.nr_free_pages();
    assert_eq!(migrate(&sim, &process, HUGE), ONE_MOVED);
    sim.verify(&[&process], &());
    let new = frame(&sim, &process, 0);
    assert_ne!(new, old);
    assert_eq!(frame(&sim, &process, HUGE - 1), new.offset(N - 1), "in one piece");
    assert_eq!(
        kpageflags(&sim, new),
        flags | 1 << 4,
        "the entry's dirty bit was noted on the way"
    );
    assert_eq!(
        (sim.count(Counter::NrAnonThps), sim.count(Counter::ThpSplitPmd)),
        (1, 0)
    );
    reads_its_numbers(&process, &[]);
    process.write_byte(at(3), 9).expect("writable as before");
    assert_eq!(sim.count(Counter::PgFault), faults);
    assert_eq!((sim.nr_free_pages(), process.rss_pages()), (free, HUGE));
    assert_eq!(count(&sim, OUTCOMES), [HUGE, 0, 1, 0, 0]);
}

#[test]
fn t16_2_fork_in_the_middle_shares_the_new_page() {
    for huge in [false, true] {
        let sim = machine();
        let a = if huge { one_thp(&sim) } else { base_pages(&sim, 1) };
        let pages = if huge { HUGE } else { 1 };
        let child = RefCell::new(None);
        let old = frame(&sim, &a, 0);
        let done = migrate_and(&sim, &a, pages, &|| {
            // That it is exclusive only the entry remembers: so fork can end it, also if the page then stays.
            assert_eq!(kpageflags(&sim, old) >> 34 & 1, 0);
            *child.borrow_mut() = Some(a.fork(cpu(1)).expect("memory is there"));
        });
        assert_eq!(done, ONE_MOVED);
        let b = child.into_inner().expect("forked");
        sim.verify(&[&a, &b], &());
        let pfn = frame(&sim, &a, 0);
        assert_eq!(frame(&sim, &b, 0), pfn, "both lead to where it is now");
        assert_eq!(sim.pages().page(pfn).mapcount(), 2);
        assert_eq!(kpageflags(&sim, pfn) >> 34 & 1, 0, "nobody has it alone");
        assert_eq!((a.rss_pages(), b.rss_pages()), (pages, pages));
        b.write_byte(at(0), 0xbb).expect("a copy of its own");
        a.write_byte(at(0), 0xaa).expect("its own");
        assert_eq!((a.read_byte(at(0)), b.read_byte(at(0))), (Ok(0xaa), Ok(0xbb)));
        sim.verify(&[&a, &b], &());
    }
}

#[test]
fn t16_3_munmap_in_the_middle_leaks_nothing() {
    for huge in [false, true] {
        let sim = machine();
        let empty = sim.start(cpu(1)).expect("memory is there");
        let before = sim.nr_free_pages();
        drop(empty);
        let a = if huge { one_thp(&sim) } else { base_pages(&sim, 1) };
        let pages = if huge { HUGE } else { 1 };
        let done = migrate_and(&sim, &a, pages, &|| unmap(&sim, &a, 0, pages));
        assert_eq!(done, ONE_MOVED, "it arrived, though nobody waits for it");
        sim.verify(&[&a], &());
        assert_eq!(a.rss_pages(), 0);
        assert_eq!(count(&sim, [Counter::NrAnonPages, Counter::NrAnonThps]), [0, 0]);
        assert_eq!(sim.nr_free_pages(), before, "old and new are free");
    }
}

/// Part of a huge page goes while it moves: what is left of the mapping comes back as PTEs, and the folio waits to be
/// split, as it would if it had stood still.
#[test]
fn t16_3_part_of_a_huge_page_goes_in_the_middle() {
    let sim = machine();
    let a = one_thp(&sim);
    let done = migrate_and(&sim, &a, HUGE, &|| unmap(&sim, &a, 7, 1));
    assert_eq!(done, ONE_MOVED);
    sim.verify(&[&a], &());
    reads_its_numbers(&a, &[7]);
    assert_eq!(a.rss_pages(), HUGE - 1);
    assert_eq!(
        (sim.nr_deferred_splits(), sim.count(Counter::ThpDeferredSplitPage)),
        (1, 1)
    );
    let free = sim.nr_free_pages();
    assert_eq!(sim.split_deferred(1).split, 1);
    assert_eq!(sim.nr_free_pages(), free + 1);
    sim.verify(&[&a], &());
}

#[test]
fn t16_5_pagemap_shows_a_swap_entry_in_the_middle() {
    const KINDS: [(u64, &str); 3] = [(23, "shared"), (24, "read-only"), (25, "writable")];
    for huge in [false, true] {
        for (swap_type, what) in KINDS {
            let sim = machine();
            let a = if huge { one_thp(&sim) } else { base_pages(&sim, 8) };
            let pages = if huge { HUGE } else { 8 };
            let other = (swap_type == 23).then(|| a.fork(cpu(1)).expect("memory is there"));
            if swap_type == 24 {
                protect(&sim, &a, pages, Prot::READ);
            }
            // Base pages move one by one: the first is on its way.
            let page = if huge { 7 } else { 0 };
            let old = frame(&sim, &a, page);
            let (rss, thp) = (Cell::new(0), Cell::new(0));
            let word = Cell::new(0);
            migrate_and(&sim, &a, pages, &|| {
                word.set(pagemap(&sim, &a, VirtAddr::new(at(page))));
                smaps(&sim, &a, &mut |_, area| {
                    rss.set(area.resident);
                    thp.set(area.by_pmd);
                });
            });
            let word = word.get();
            assert_eq!(word >> 62, 0b01, "{what}: swapped, not present");
            assert_eq!(word & 0x1f, swap_type, "{what}");
            assert_eq!(word >> 56 & 1, 0, "{what}: not exclusively mapped");
            assert_eq!(
                word >> 5 & ((1 << 50) - 1),
                u64::from(old.raw()),
                "{what}: where it is still"
            );
            let expected = (pages * PAGE, if huge { HUGE * PAGE } else { 0 });
            assert_eq!((rss.get(), thp.get()), expected, "{what}: smaps counts it");
            let all: Vec<&Process<'_>> = [Some(&a), other.as_ref()].into_iter().flatten().collect();
            sim.verify(&all, &());
        }
    }
}

/// A thread that touches the page in the middle sleeps, and goes on when the page has arrived.
#[test]
fn a_fault_in_the_middle_waits() {
    for huge in [false, true] {
        let sim = machine();
        sim.machine().allow_stale_use();
        let mut a = if huge { one_thp(&sim) } else { base_pages(&sim, 1) };
        let pages = if huge { HUGE } else { 1 };
        a.run_on(cpu(1));
        let (go, started) = std::sync::mpsc::channel();
        let started = Cell::new(Some(started));
        std::thread::scope(|scope| {
            let (sim, a) = (&sim, &a);
            let spawned = Cell::new(None);
            let done = migrate_and(sim, a, pages, &|| {
                let go = go.clone();
                spawned.set(Some(scope.spawn(move || {
                    let _thread = sim.machine().join();
                    go.send(()).expect("the test waits");
                    a.read_byte(at(0))
                })));
                let started = started.take().expect("one copy hook");
                started.recv().expect("the thread runs");
                // It is about to fault, or sleeps already; both must end well.
                std::thread::sleep(std::time::Duration::from_millis(20));
            });
            assert_eq!(done, ONE_MOVED);
            let reader = spawned.take().expect("spawned");
            assert_eq!(reader.join().expect("no panic"), Ok(number(0)));
        });
        sim.verify(&[&a], &());
    }
}

/// Every order of the steps of a completing migration (read the entry, set the mapping) and of `mprotect` (change the
/// area, change the entry), as a model: what is mapped writable in the end lies in an area that may be written, if the
/// area is asked when the mapping is set. Asked earlier, or not at all, one order breaks it.
#[test]
fn t17_1_model_of_all_orders() {
    #[derive(Clone, Copy, PartialEq)]
    enum Entry {
        Migration { write: bool },
        Present { writable: bool },
    }
    #[derive(Clone, Copy, PartialEq)]
    enum Asks {
        WhenSetting,
        WhenReading,
        Never,
    }
    #[derive(Clone, Copy, PartialEq)]
    enum Step {
        Read,
        Set,
        ChangeArea,
        ChangeEntry,
    }
    use Step::{ChangeArea, ChangeEntry, Read, Set};
    const ORDERS: [[Step; 4]; 6] = [
        [Read, Set, ChangeArea, ChangeEntry],
        [Read, ChangeArea, Set, ChangeEntry],
        [Read, ChangeArea, ChangeEntry, Set],
        [ChangeArea, Read, Set, ChangeEntry],
        [ChangeArea, Read, ChangeEntry, Set],
        [ChangeArea, ChangeEntry, Read, Set],
    ];
    fn ends_writable(asks: Asks, order: [Step; 4]) -> bool {
        let (mut area_writable, mut entry) = (true, Entry::Migration { write: true });
        let (mut read, mut asked) = (false, true);
        for step in order {
            match step {
                Read => {
                    read = entry == Entry::Migration { write: true };
                    asked = asks != Asks::WhenReading || area_writable;
                }
                Set => {
                    let may = asks != Asks::WhenSetting || area_writable;
                    let writable = read && asked && may;
                    entry = Entry::Present { writable };
                }
                ChangeArea => area_writable = false,
                ChangeEntry => {
                    entry = match entry {
                        Entry::Migration { .. } => Entry::Migration { write: false },
                        Entry::Present { .. } => Entry::Present { writable: false },
                    }
                }
            }
        }
        entry == Entry::Present { writable: true }
    }
    let breaks = |asks| ORDERS.iter().any(|&order| ends_writable(asks, order));
    assert!(!breaks(Asks::WhenSetting));
    assert!(breaks(Asks::WhenReading));
    assert!(breaks(Asks::Never));
}

/// The real thing, at the three places where `mprotect` can come: before the entries, between, and after.
#[test]
fn t17_1_mprotect_before_in_and_after_a_migration() {
    for huge in [false, true] {
        for place in 0..3 {
            let sim = machine();
            let a = if huge { one_thp(&sim) } else { base_pages(&sim, 1) };
            let pages = if huge { HUGE } else { 1 };
            let take_write = |now| {
                if place == now {
                    protect(&sim, &a, pages, Prot::READ);
                }
            };
            take_write(0);
            assert_eq!(migrate_and(&sim, &a, pages, &|| take_write(1)), ONE_MOVED);
            take_write(2);
            sim.verify(&[&a], &());
            assert_eq!(a.write_byte(at(0), 1), READ_ONLY);
            assert_eq!(a.read_byte(at(0)), Ok(number(0)));
            protect(&sim, &a, pages, RW);
            let reuse = sim.count(Counter::PgAlloc);
            a.write_byte(at(0), 1).expect("writable again");
            assert_eq!(
                sim.count(Counter::PgAlloc),
                reuse,
                "its own page still, not a copy"
            );
            sim.verify(&[&a], &());
        }
    }
}

/// The race itself: `mprotect` has changed the area and not come to the entry yet when the page arrives. What the entry
/// says is not enough then.
#[test]
#[cfg_attr(miri, ignore = "the area spans more than there is there")]
fn t17_1_the_page_arrives_between_the_area_and_its_entry() {
    // So far away that it has a PMD table of its own: the one that `mprotect` is busy with is locked.
    const FAR: u64 = HUGE * HUGE;
    let sim = machine();
    let a = sim.start(cpu(0)).expect("memory is there");
    map_pages(&sim, &a, 0, FAR + HUGE, VmaFlags::empty());
    write_numbers(&a, 0, 1);
    // Only part of the last huge page is inside the area: a base page.
    unmap(&sim, &a, FAR + 9, HUGE - 9);
    a.write_byte(at(FAR), 1).expect("writable");
    let mut list = List::new(&sim);
    let far = VirtAddr::new(at(FAR));
    sim.isolate_page_at(&a, far, Reach::All, &mut list)
        .expect("mapped");
    std::thread::scope(|scope| {
        let (gate, protector) = (Cell::new(None), Cell::new(None));
        let begin_mprotect = || {
            let (sim, a) = (&sim, &a);
            gate.set(Some(sim.machine().hold_next_flush()));
            protector.set(Some(scope.spawn(move || {
                let _thread = sim.machine().join();
                on_cpu(cpu(2), || {
                    sim.mprotect(a, range(0, FAR + 9), Prot::READ).expect("mapped");
                });
            })));
            let held = gate.take().expect("set above");
            held.wait();
            gate.set(Some(held));
        };
        let done = with_copy_hook(&begin_mprotect, || {
            sim.migrate_pages(&mut list, &mut Targets::new(&mut fresh(&sim)), MigrateMode::Sync)
        });
        assert_eq!(done, ONE_MOVED);
        // Still in its first huge page: the area is read-only already, the far entry is nobody's business but ours.
        let Walk::Mapped(leaf) = sim.machine().walk(a.root(), at(FAR)) else {
            panic!("the page has arrived");
        };
        assert_eq!(leaf.rights & entry_bits::WRITE, 0, "read-only, as its area is");
        drop(gate.take());
        protector.take().expect("the hook ran").join().expect("no panic");
    });
    sim.verify(&[&a], &());
    assert_eq!(a.write_byte(at(FAR), 2), READ_ONLY);
}

/// The right to write comes and goes while the page is on its way: what holds at the end counts.
#[test]
fn t17_1_mprotect_there_and_back_in_the_middle() {
    for huge in [false, true] {
        let sim = machine();
        let a = if huge { one_thp(&sim) } else { base_pages(&sim, 1) };
        let pages = if huge { HUGE } else { 1 };
        let done = migrate_and(&sim, &a, pages, &|| {
            protect(&sim, &a, pages, Prot::READ);
            protect(&sim, &a, pages, RW);
        });
        assert_eq!(done, ONE_MOVED);
        sim.verify(&[&a], &());
        a.write_byte(at(0), 1).expect("at the cost of a fault");
        sim.verify(&[&a], &());
    }
}

/// Part of a huge page loses the right to write in the middle.
#[test]
fn t17_1_mprotect_of_a_part_splits_the_entry() {
    let sim = machine();
    let a = one_thp(&sim);
    let done = migrate_and(&sim, &a, HUGE, &|| protect(&sim, &a, 8, Prot::READ));
    assert_eq!(done, ONE_MOVED);
    sim.verify(&[&a], &());
    assert_eq!(a.write_byte(at(7), 1), READ_ONLY);
    a.write_byte(at(8), number(8)).expect("outside");
    reads_its_numbers(&a, &[]);
    assert_eq!(sim.nr_deferred_splits(), 0, "all of it is mapped");
}

#[test]
fn t18_1_what_nothing_maps_costs_no_walk() {
    // Step by step there is less memory.
    const PAGES: u64 = if cfg!(miri) { 64 } else { 1000 };
    let sim = machine();
    let a = base_pages(&sim, PAGES);
    let free = sim.nr_free_pages();
    let mut list = isolate(&sim, &a, PAGES);
    unmap(&sim, &a, 0, PAGES);
    sim.verify(&[&a], &held(&list));
    assert_eq!(
        sim.count(Counter::NrIsolatedAnon),
        PAGES,
        "isolated, mapped by nobody"
    );
    let (done, walks) = rmap_walks(&sim, || {
        sim.migrate_pages(&mut list, &mut Targets::new(&mut fresh(&sim)), MigrateMode::Sync)
    });
    assert_eq!((u64::from(done.moved), done.failed, walks), (PAGES, 0, 0));
    sim.verify(&[&a], &());
    assert!(sim.nr_free_pages() >= free + PAGES, "nobody wanted them");
}

#[test]
fn t18_2_a_mapped_page_costs_two_walks() {
    for huge in [false, true] {
        let sim = machine();
        let a = if huge { one_thp(&sim) } else { base_pages(&sim, 1) };
        let b = a.fork(cpu(1)).expect("memory is there");
        let (done, walks) = rmap_walks(&sim, || migrate(&sim, &a, if huge { HUGE } else { 1 }));
        assert_eq!((done, walks), (ONE_MOVED, 2));
        sim.verify(&[&a, &b], &());
    }
}

#[test]
fn t18_3_refusal_of_what_nothing_maps_costs_no_walk() {
    let sim = machine();
    let a = base_pages(&sim, 1);
    let pin = sim
        .pin_user_page(&a, VirtAddr::new(at(0)), Access::Read)
        .expect("mapped");
    let mut list = isolate(&sim, &a, 1);
    unmap(&sim, &a, 0, 1);
    let (done, walks) = rmap_walks(&sim, || {
        sim.migrate_pages(&mut list, &mut Targets::new(&mut fresh(&sim)), MigrateMode::Sync)
    });
    assert_eq!((done.failed, walks), (1, 0));
    assert!(matches!(done.error, Some(MigrateError::Pinned { .. })));
    list.putback();
    sim.unpin(pin);
    sim.verify(&[&a], &());
}

/// Every target that was not used comes back, once for each time it was given out. Three of eight pages are pinned.
#[test]
fn t19_1_unused_targets_come_back() {
    const PINNED: [u64; 3] = [1, 4, 6];
    let sim = machine();
    let a = base_pages(&sim, 8);
    let hold = |page| sim.get_user_page(&a, VirtAddr::new(at(page)), Access::Write);
    let users = PINNED.map(|page| hold(page).expect("mapped").0);
    let frames: Vec<(u64, Pfn)> = (0..8).map(|page| (page, frame(&sim, &a, page))).collect();
    let before = |wanted| {
        frames
            .iter()
            .find(|&&(page, _)| page == wanted)
            .expect("one of eight")
            .1
    };
    let given = RefCell::new(Vec::new());
    let mut returned = 0;
    let mut list = isolate(&sim, &a, 8);
    let done = {
        let mut get_new = |source: Page<'_>| {
            let target = sim.alloc_folio(source.compound_order(), AllocFlags::empty())?;
            given.borrow_mut().push((target.pfn(), source.pfn()));
            Ok(target)
        };
        let mut put_new = |target: Folio<'_>| {
            let mut given = given.borrow_mut();
            let known = given.iter().position(|&(pfn, _)| pfn == target.pfn());
            let (_, source) = given.swap_remove(known.expect("given out, and not come back yet"));
            assert!(PINNED.iter().any(|&page| before(page) == source));
            returned += 1;
            sim.put(target);
        };
        let mut targets = Targets::returning(&mut get_new, &mut put_new);
        sim.migrate_pages(&mut list, &mut targets, MigrateMode::Sync)
    };
    assert_eq!((done.moved, done.failed, list.len()), (5, 3, 3));
    let kept = given.into_inner();
    assert_eq!(kept.len(), 5, "what did not come back is in use");
    assert_eq!(returned % 3, 0, "one for each attempt at one of the three");
    sim.verify(&[&a], &held_with(&list, &users.each_ref().map(Folio::pfn)));
    assert_eq!(count(&sim, OUTCOMES), [5, 3, 0, 0, 0]);
    for page in 0..8 {
        let moved = !PINNED.contains(&page);
        assert_eq!(frame(&sim, &a, page) != before(page), moved, "page {page}");
        assert_eq!(a.read_byte(at(page)), Ok(number(page)));
    }
    list.putback();
    users.into_iter().for_each(|user| sim.put(user));
    assert_eq!(migrate(&sim, &a, 8).moved, 8, "nothing holds them now");
    sim.verify(&[&a], &());
}

/// The targets come from a list of the caller's own, as compaction's do, and go back to it.
#[test]
fn t19_2_returned_targets_are_used_again() {
    let sim = machine();
    let a = base_pages(&sim, 4);
    let pin = sim
        .pin_user_page(&a, VirtAddr::new(at(2)), Access::Write)
        .expect("mapped");
    let shelf = RefCell::new(Vec::new());
    for _ in 0..4 {
        let target = sim.alloc_folio(Order::ZERO, AllocFlags::empty());
        shelf.borrow_mut().push(target.expect("memory is there"));
    }
    let attempt = || {
        let mut list = isolate(&sim, &a, 4);
        let mut get_new = |_: Page<'_>| {
            let none = AllocError { order: Order::ZERO };
            shelf.borrow_mut().pop().ok_or(none)
        };
        let mut put_new = |target| shelf.borrow_mut().push(target);
        let mut targets = Targets::returning(&mut get_new, &mut put_new);
        sim.migrate_pages(&mut list, &mut targets, MigrateMode::Async)
    };
    let allocated = sim.count(Counter::PgAlloc);
    let first = attempt();
    assert_eq!((first.moved, first.failed, shelf.borrow().len()), (3, 1, 1));
    sim.unpin(pin);
    let page = frame(&sim, &a, 2);
    let second = attempt();
    // One target for four pages: the rest finds none.
    assert_eq!((second.moved, second.failed, shelf.borrow().len()), (1, 3, 0));
    assert!(matches!(second.error, Some(MigrateError::NoMemory(_))));
    assert_eq!(sim.count(Counter::PgAlloc), allocated, "nothing was allocated");
    assert_eq!(frame(&sim, &a, 2), page, "it was not its turn");
    (0..4).for_each(|page| assert_eq!(a.read_byte(at(page)), Ok(number(page))));
    sim.verify(&[&a], &());
}

#[test]
fn t19_3_without_put_new_targets_are_freed() {
    for huge in [false, true] {
        let sim = machine();
        let a = if huge { one_thp(&sim) } else { base_pages(&sim, 1) };
        let pin = sim
            .pin_user_page(&a, VirtAddr::new(at(0)), Access::Write)
            .expect("mapped");
        let free = sim.nr_free_pages();
        let done = migrate(&sim, &a, if huge { HUGE } else { 1 });
        assert_eq!((done.moved, done.failed), (0, 1));
        assert_eq!(sim.nr_free_pages(), free);
        sim.unpin(pin);
        sim.verify(&[&a], &());
    }
}

/// The source loses its last mapping while a target is looked for: there is nothing to move, and that is a success.
#[test]
fn t19_4_a_source_that_is_freed_meanwhile() {
    for huge in [false, true] {
        let sim = machine();
        let a = if huge { one_thp(&sim) } else { base_pages(&sim, 1) };
        let pages = if huge { HUGE } else { 1 };
        let mut list = isolate(&sim, &a, pages);
        let mut returned = Vec::new();
        let mut given = Vec::new();
        let (done, walks) = rmap_walks(&sim, || {
            let mut get_new = |source: Page<'_>| {
                unmap(&sim, &a, 0, pages);
                let target = sim.alloc_folio(source.compound_order(), AllocFlags::empty())?;
                given.push(target.pfn());
                Ok(target)
            };
            let mut put_new = |target: Folio<'_>| {
                returned.push(target.pfn());
                sim.put(target);
            };
            let mut targets = Targets::returning(&mut get_new, &mut put_new);
            sim.migrate_pages(&mut list, &mut targets, MigrateMode::Sync)
        });
        assert_eq!((done, walks), (ONE_MOVED, 0));
        assert_eq!((given.len(), &returned), (1, &given));
        sim.verify(&[&a], &());
        assert_eq!(
            count(&sim, [Counter::NrAnonPages, Counter::NrIsolatedAnon]),
            [0, 0]
        );
    }
}

/// A page that somebody begins to use between the look and the freeze: the target has not been touched by then.
#[test]
fn t20_1_a_refused_migration_leaves_the_target_pristine() {
    for huge in [false, true] {
        let sim = machine();
        let a = if huge { one_thp(&sim) } else { base_pages(&sim, 1) };
        let pages = if huge { HUGE } else { 1 };
        let head = frame(&sim, &a, 0);
        let flags = kpageflags(&sim, head);
        let gate = sim.machine().hold_next_flush();
        let attempts = std::thread::scope(|scope| {
            let migrator = scope.spawn(|| {
                let _thread = sim.machine().join();
                on_cpu(cpu(2), || refuse_one_attempt(&sim, &a, pages))
            });
            gate.wait();
            // The entries say "being moved"; a reference is had by the frame's number all the same.
            let user = sim.try_get(sim.pages().page(head)).expect("in use");
            drop(gate);
            let attempts = migrator.join().expect("no panic");
            sim.put(user);
            attempts
        });
        assert!(
            attempts > 1,
            "the first failed at the freeze, the others at the look"
        );
        assert_eq!(frame(&sim, &a, 0), head, "where it was");
        assert_eq!(
            kpageflags(&sim, head),
            flags | 1 << 4,
            "dirty by the entry, else as before"
        );
        sim.verify(&[&a], &());
        let faults = sim.count(Counter::PgFault);
        (0..pages).for_each(|page| assert_eq!(a.read_byte(at(page)), Ok(number(page))));
        a.write_byte(at(0), 5).expect("writable");
        assert_eq!(sim.count(Counter::PgFault), faults, "mapped as before");
        assert_eq!(migrate(&sim, &a, pages), ONE_MOVED, "nobody uses it now");
        sim.verify(&[&a], &());
    }
}

/// Tries to move a page that somebody else uses; every target that comes back is looked at. Returns how many did.
fn refuse_one_attempt(sim: &Sim, process: &Process<'_>, pages: u64) -> u32 {
    let mut list = isolate(sim, process, pages);
    let mut attempts = 0;
    let mut put_new = |target: Folio<'_>| {
        attempts += 1;
        assert!(target.is_pristine());
        let page = target.page();
        let large = page.compound_order() == PMD_ORDER;
        let fresh = if large {
            PageFlags::HEAD
        } else {
            PageFlags::empty()
        };
        assert_eq!(page.state().flags(), fresh);
        assert_eq!((page.own_mapping(), page.index()), (0, 0));
        assert_eq!((page.refs_hint(), page.map_counts().total), (1, 0));
        sim.put(target);
    };
    let mut get_new = fresh(sim);
    let mut targets = Targets::returning(&mut get_new, &mut put_new);
    let done = sim.migrate_pages(&mut list, &mut targets, MigrateMode::Async);
    assert_eq!((done.moved, done.failed), (0, 1));
    assert!(matches!(done.error, Some(MigrateError::Pinned { .. })));
    attempts
}

/// A target that is not as the allocator made it is refused before anything happens.
#[test]
#[should_panic(expected = "no fit target")]
fn t20_3_a_used_target_is_noticed() {
    let sim = machine();
    let a = base_pages(&sim, 1);
    let mut list = isolate(&sim, &a, 1);
    let mut get_new = |source: Page<'_>| {
        let target = sim.alloc_folio(source.compound_order(), AllocFlags::empty())?;
        sim.sabotage(&a, Damage::SetFlags(target.pfn(), PageFlags::SWAPBACKED));
        Ok(target)
    };
    let _ = sim.migrate_pages(&mut list, &mut Targets::new(&mut get_new), MigrateMode::Sync);
}

/// What the debug check of every returned target asks: a fresh folio is pristine, one with anything left on it is not.
#[test]
fn t20_3_a_changed_target_is_told_from_a_fresh_one() {
    for order in [Order::ZERO, PMD_ORDER] {
        for left_over in [PageFlags::SWAPBACKED, PageFlags::DIRTY, PageFlags::ACTIVE] {
            let sim = machine();
            let a = sim.start(cpu(0)).expect("memory is there");
            let target = sim
                .alloc_folio(order, AllocFlags::empty())
                .expect("memory is there");
            assert!(target.is_pristine());
            sim.sabotage(&a, Damage::SetFlags(target.pfn(), left_over));
            assert!(!target.is_pristine(), "{left_over:?}");
            sim.sabotage(&a, Damage::ClearFlags(target.pfn(), left_over));
            sim.sabotage(&a, Damage::Index(target.pfn()));
            assert!(!target.is_pristine(), "an index");
            sim.put(target);
        }
    }
}

/// A walker that looks at a PMD twice may see it change in between, from one that is being changed to a huge one or a
/// table. The way of old cleared it for a moment. One look, and an entry that is never empty on the way, leave nothing to
/// go wrong (Linux f72e7dcdd252).
#[test]
fn t21_1_model_of_a_walker_and_a_pmd_that_changes() {
    #[derive(Clone, Copy, PartialEq)]
    enum Pmd {
        None,
        Huge,
        Invalid,
    }
    /// What the walker of old took from its two looks: "neither none nor huge, so a table".
    fn takes_for_a_table(first: Pmd, second: Pmd) -> bool {
        first != Pmd::None && second != Pmd::Huge && second != Pmd::Invalid
    }
    let breaks = |history: &[Pmd], looks_once: bool| {
        (0..history.len()).any(|first| {
            let last = if looks_once { first } else { history.len() - 1 };
            (first..=last).any(|second| takes_for_a_table(history[first], history[second]))
        })
    };
    let cleared = [Pmd::Huge, Pmd::None, Pmd::Huge];
    let invalidated = [Pmd::Huge, Pmd::Invalid, Pmd::Huge];
    assert!(
        breaks(&cleared, false),
        "two looks, an empty entry between: a lock at address 0"
    );
    assert!(!breaks(&cleared, true));
    assert!(!breaks(&invalidated, false));
    assert!(!breaks(&invalidated, true));
}

/// The real thing: while a PMD is invalidated, under its lock, no look at it sees nothing or a table.
#[test]
fn t21_1_a_pmd_on_its_way_is_never_empty() {
    let sim = machine();
    let a = one_thp(&sim);
    let gate = sim.machine().hold_next_flush();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _thread = sim.machine().join();
            on_cpu(cpu(2), || assert_eq!(migrate(&sim, &a, HUGE), ONE_MOVED));
        });
        gate.wait();
        // The report looks once, without the lock.
        assert_ne!(pagemap(&sim, &a, VirtAddr::new(at(3))) >> 62, 0);
        drop(gate);
    });
    sim.verify(&[&a], &());
    reads_its_numbers(&a, &[]);
}

/// T6.2: what `move_pages` is built from says which page could not be moved and why, and a pinned huge page stays whole.
#[test]
fn t6_2_a_pinned_huge_page_refuses_and_stays_whole() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    let before = row(&sim, head);
    let pin = sim
        .pin_user_page(&a, VirtAddr::new(at(7)), Access::Write)
        .expect("mapped");
    let mut list = List::new(&sim);
    let at_7 = VirtAddr::new(at(7));
    assert_eq!(sim.isolate_page_at(&a, at_7, Reach::Own, &mut list), Ok(()));
    assert_eq!(
        sim.isolate_page_at(&a, at_7, Reach::Own, &mut list),
        Err(NotIsolated::Busy)
    );
    let done = sim.migrate_pages(&mut list, &mut Targets::new(&mut fresh(&sim)), MigrateMode::Sync);
    let pinned = MigrateError::Pinned {
        expected: 2,
        found: 3,
    };
    assert_eq!(
        done,
        Migrated {
            moved: 0,
            failed: 1,
            split: 0,
            error: Some(pinned)
        }
    );
    list.putback();
    sim.unpin(pin);
    assert_eq!(row(&sim, head), before, "as it was, by PMD");
    assert_eq!(count(&sim, OUTCOMES), [0, HUGE, 0, 1, 0]);
    reads_its_numbers(&a, &[]);
    sim.verify(&[&a], &());
}

#[test]
fn isolating_says_why_not() {
    let sim = machine();
    let a = base_pages(&sim, 4);
    unmap(&sim, &a, 2, 1);
    unmap(&sim, &a, 3, 1);
    map_pages(&sim, &a, 3, 1, VmaFlags::NOHUGEPAGE);
    let b = a.fork(cpu(1)).expect("memory is there");
    a.write_byte(at(1), 9).expect("a copy of its own");
    let mut list = List::new(&sim);
    let mut isolate = |page, reach| sim.isolate_page_at(&a, VirtAddr::new(at(page)), reach, &mut list);
    assert_eq!(isolate(0, Reach::Own), Err(NotIsolated::Shared));
    assert_eq!(isolate(1, Reach::Own), Ok(()));
    assert_eq!(isolate(2, Reach::Own), Err(NotIsolated::NoArea));
    assert_eq!(isolate(3, Reach::Own), Err(NotIsolated::Nothing));
    assert_eq!(a.read_byte(at(3)), Ok(0));
    assert_eq!(isolate(3, Reach::All), Err(NotIsolated::ZeroPage));
    assert_eq!(isolate(0, Reach::All), Ok(()));
    assert_eq!(isolate(0, Reach::All), Err(NotIsolated::Busy));
    sim.verify(&[&a, &b], &held(&list));
    assert_eq!(sim.count(Counter::NrIsolatedAnon), 2);
    drop(list);
    assert_eq!(sim.count(Counter::NrIsolatedAnon), 0);
    sim.verify(&[&a, &b], &());
}

/// C19: one process maps a huge page by PTEs, another by its PMD, and it moves. Linux 6.1 counts every page twice then,
/// and queues a page for splitting that is mapped whole.
#[test]
fn c19_mixed_mappings_come_back_and_every_page_counts_once() {
    for split_child in [false, true] {
        let sim = machine();
        let a = one_thp(&sim);
        let b = a.fork(cpu(1)).expect("memory is there");
        let (by_ptes, by_pmd) = if split_child { (&b, &a) } else { (&a, &b) };
        split_pmd(&sim, by_ptes);
        assert_eq!(migrate(&sim, &a, HUGE), ONE_MOVED);
        sim.verify(&[&a, &b], &());
        let head = frame(&sim, &a, 0);
        assert_eq!(row(&sim, head), (1, true, 1, 1, 2, 2, N + 1, N + 1, HUGE, 1, 0));
        unmap(&sim, by_ptes, 0, HUGE);
        assert_eq!(
            count(&sim, [Counter::NrAnonPages, Counter::ThpDeferredSplitPage]),
            [HUGE, 0]
        );
        assert_eq!(sim.nr_deferred_splits(), 0, "the other process maps all of it");
        sim.verify(&[&a, &b], &());
        reads_its_numbers(by_pmd, &[]);
        unmap(&sim, by_pmd, 0, HUGE);
        assert_eq!(count(&sim, [Counter::NrAnonPages, Counter::NrAnonThps]), [0, 0]);
        sim.verify(&[&a, &b], &());
    }
}

/// A huge page that waits on the deferred queue goes on waiting where it is now.
#[test]
fn the_deferred_queue_follows_the_page() {
    let sim = machine();
    let a = one_thp(&sim);
    unmap(&sim, &a, 7, 1);
    assert_eq!(sim.nr_deferred_splits(), 1);
    let old = frame(&sim, &a, 0);
    assert_eq!(migrate(&sim, &a, HUGE), ONE_MOVED);
    sim.verify(&[&a], &());
    let new = frame(&sim, &a, 0);
    assert_ne!(new, old);
    assert_eq!(
        (sim.nr_deferred_splits(), sim.count(Counter::ThpDeferredSplitPage)),
        (1, 1),
        "no new event"
    );
    let free = sim.nr_free_pages();
    assert_eq!(sim.split_deferred(1).split, 1);
    assert_eq!(sim.nr_free_pages(), free + 1);
    sim.verify(&[&a], &());
    reads_its_numbers(&a, &[7]);
}

/// No huge target is to be had: the page is split, and its parts move. What nothing maps of it is freed on the way.
#[test]
fn without_a_huge_target_the_parts_move() {
    let sim = machine();
    let a = one_thp(&sim);
    unmap(&sim, &a, 7, 1);
    let free = sim.nr_free_pages();
    let old = frame(&sim, &a, 0);
    let mut list = isolate(&sim, &a, HUGE);
    let mut get_new = |source: Page<'_>| {
        let order = source.compound_order();
        match order {
            PMD_ORDER => Err(AllocError { order }),
            _ => sim.alloc_folio(order, AllocFlags::empty()),
        }
    };
    let done = sim.migrate_pages(&mut list, &mut Targets::new(&mut get_new), MigrateMode::Sync);
    assert_eq!((done.moved, done.failed, done.split), (N, 0, 1));
    sim.verify(&[&a], &());
    assert_ne!(frame(&sim, &a, 0), old);
    assert_eq!(sim.nr_free_pages(), free + 1, "page 7");
    assert_eq!(count(&sim, OUTCOMES), [HUGE, 0, 0, 0, 1]);
    assert_eq!(count(&sim, [Counter::ThpSplitPage, Counter::NrAnonThps]), [1, 0]);
    assert_eq!(sim.nr_deferred_splits(), 0);
    reads_its_numbers(&a, &[7]);
}

/// Every allocation on the way fails once. Nothing is lost, and a second attempt moves what is left.
#[test]
#[cfg_attr(miri, ignore = "takes long")]
fn every_failing_allocation_leaves_all_pages_in_place() {
    for huge in [false, true] {
        for nth in 1.. {
            let sim = machine();
            let a = if huge { one_thp(&sim) } else { base_pages(&sim, 5) };
            let pages = if huge { HUGE } else { 5 };
            let free = sim.nr_free_pages();
            sim.inject_alloc_failure(Some(nth));
            let done = migrate(&sim, &a, pages);
            let survived = sim.alloc_failure_pending();
            sim.inject_alloc_failure(None);
            sim.verify(&[&a], &());
            assert_eq!(sim.nr_free_pages(), free);
            let all = u32::try_from(pages).expect("few");
            match (survived, huge) {
                (false, true) => assert_eq!((done.split, done.moved, done.failed), (1, N, 0)),
                (false, false) => {
                    assert_eq!(done.moved, u32::try_from(nth - 1).expect("few"));
                    assert_eq!((done.moved + done.failed, done.error.is_some()), (all, true));
                }
                (true, _) => assert_eq!((done.failed, done.error), (0, None)),
            }
            (0..pages).for_each(|page| assert_eq!(a.read_byte(at(page)), Ok(number(page))));
            assert_eq!(migrate(&sim, &a, pages).failed, 0, "tried again");
            sim.verify(&[&a], &());
            if survived {
                assert!(nth > if huge { 1 } else { 5 }, "there are allocations to fail");
                break;
            }
        }
    }
}

/// A folio lock that is held is passed by, as often as one tries without waiting; who may wait gets it. (An attempt that
/// failed used to give the lock back that somebody else held.)
#[test]
fn who_may_wait_gets_a_locked_page() {
    let sim = machine();
    let a = base_pages(&sim, 1);
    let (folio, _) = sim
        .get_user_page(&a, VirtAddr::new(at(0)), Access::Read)
        .expect("mapped");
    let locked = sim.try_lock_folio(&folio).expect("nobody has it");
    let mut list = isolate(&sim, &a, 1);
    let done = sim.migrate_pages(&mut list, &mut Targets::new(&mut fresh(&sim)), MigrateMode::Async);
    assert_eq!((done.failed, done.error), (1, Some(MigrateError::Locked)));
    std::thread::scope(|scope| {
        let migrator = scope.spawn(|| {
            let _thread = sim.machine().join();
            on_cpu(cpu(2), || {
                sim.migrate_pages(&mut list, &mut Targets::new(&mut fresh(&sim)), MigrateMode::Sync)
            })
        });
        std::thread::sleep(std::time::Duration::from_millis(20));
        // The reference first: what waits for the lock would find it in use.
        sim.put(folio);
        drop(locked);
        assert_eq!(migrator.join().expect("no panic"), ONE_MOVED);
    });
    drop(list);
    sim.verify(&[&a], &());
}

/// T17.2 and T21.2 in small: pages move back and forth, alone and whole, while another thread toggles the right to write,
/// forks, splits PMDs and unmaps, and a third writes and reads back. No store lands while the area is read-only, no byte
/// is lost, and every count is right at the end.
#[test]
#[cfg_attr(miri, ignore = "takes long")]
fn pages_move_under_running_threads() {
    const ROUNDS: u32 = 1000;
    let sim = machine();
    sim.machine().allow_stale_use();
    let a = sim.start(cpu(0)).expect("memory is there");
    map_pages(&sim, &a, 0, 2 * HUGE, VmaFlags::empty());
    map_pages(&sim, &a, 2 * HUGE, 8, VmaFlags::NOHUGEPAGE);
    let all = 2 * HUGE + 8;
    write_numbers(&a, 0, all);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (sim, a, done) = (&sim, &a, &done);
        let mover = scope.spawn(move || {
            let _thread = sim.machine().join();
            on_cpu(cpu(2), || {
                let mut moved = 0;
                while !done.load(Ordering::Relaxed) {
                    let mut list = List::new(sim);
                    sim.isolate_pages_in(a, range(0, all), Reach::All, &mut |_| true, &mut list);
                    let mut get_new = fresh(sim);
                    let mut targets = Targets::new(&mut get_new);
                    moved += sim
                        .migrate_pages(&mut list, &mut targets, MigrateMode::Sync)
                        .moved;
                }
                moved
            })
        });
        let user = scope.spawn(move || {
            let _thread = sim.machine().join();
            while !done.load(Ordering::Relaxed) {
                for page in [0, 7, HUGE, 2 * HUGE - 1, 2 * HUGE, 2 * HUGE + 7] {
                    assert_eq!(a.read_byte(at(page)), Ok(number(page)), "page {page}");
                    // Rewritten where it may be written.
                    let wrote = a.write_byte(at(page), number(page));
                    assert!(wrote.is_ok() || wrote == READ_ONLY, "page {page}: {wrote:?}");
                }
            }
        });
        let stop = StopOnDrop(done);
        let _thread = sim.machine().join();
        on_cpu(cpu(1), || {
            for round in 0..ROUNDS {
                sim.mprotect(a, range(0, all), Prot::READ).expect("mapped");
                // Nobody can write now: what is read twice is the same.
                let addr = VirtAddr::new(at(2 * HUGE));
                let (used, _) = sim.get_user_page(a, addr, Access::Read).expect("mapped");
                let child = sim.fork_space(a).expect("memory is there");
                sim.put(used);
                if round % 8 == 0 {
                    sim.split_huge_pmd(a, VirtAddr::new(at(0)));
                }
                sim.mprotect(a, range(0, all), RW).expect("mapped");
                sim.mprotect(&child, range(0, all), RW).expect("mapped");
                // The child's own from now on, wherever the page was meanwhile.
                for page in [0, 7, 2 * HUGE] {
                    let addr = VirtAddr::new(at(page));
                    sim.with_user_page(&child, addr, Access::Write, &mut |mut bytes| {
                        bytes.write(&[0xff]);
                    })
                    .expect("writable");
                }
                if round % 2 == 0 {
                    sim.munmap(&child, range(3, HUGE)).expect("mapped");
                }
                sim.put_space(child);
            }
        });
        drop(stop);
        user.join().expect("no panic");
        assert!(mover.join().expect("no panic") > 0);
    });
    sim.verify(&[&a], &());
    (0..all).for_each(|page| assert_eq!(a.read_byte(at(page)), Ok(number(page)), "page {page}"));
}

/// Ends the other threads, also when this one fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
