//! Rows T1, T2, T7, T8 and T10 of the specification: how often a huge page is mapped and referenced, and what can be
//! asked of its tails. The whole-memory checker runs after every step. What needs no second process is also a scenario.

use std::panic::{AssertUnwindSafe, catch_unwind};

use mm::{
    AllocFlags, Counter, Order, PMD_ORDER, PageFlags, Pfn, VirtAddr,
    check::Damage,
    fault::Access,
    report::{kpagecount, kpageflags},
    split_folio::SplitError,
    trace::Event,
};
use mm_testkit::{
    fixture::{
        Events, N, PAGE, Row, at, cpu, frame, frees_of, machine, map, one_thp, row, split_page, split_pmd,
        unmap,
    },
    scenario::HUGE,
    sim::{FIRMWARE_FRAMES, Process, Sim},
};

/// All base pages, as `nr_anon_pages` counts them.
const ALL: u64 = HUGE;

/// What processes A, B and C do in turn, and the row that it leaves.
type Step = (for<'s> fn(&'s Sim, &mut Vec<Process<'s>>), Row);

/// T1.1 to T1.7.
const THREE: [Step; 7] = [
    (|_, _| (), (1, false, -1, -1, 1, 1, 1, 1, ALL, 1, 0)),
    (
        |_, processes| {
            fork(processes);
            fork(processes);
        },
        (3, false, -1, -1, 3, 3, 3, 3, ALL, 1, 0),
    ),
    (
        |sim, processes| split_pmd(sim, &processes[0]),
        (2, true, 1, 1, 3, 3, N + 2, N + 2, ALL, 1, 0),
    ),
    (
        |sim, processes| unmap(sim, &processes[0], 7, 1),
        (2, true, 1, 0, 3, 2, N + 1, N + 1, ALL, 1, 0),
    ),
    (
        |sim, processes| split_pmd(sim, &processes[1]),
        (1, true, 2, 1, 3, 2, 2 * N, 2 * N, ALL, 1, 0),
    ),
    (
        |sim, processes| unmap(sim, &processes[2], 0, HUGE),
        (0, false, 1, 0, 2, 1, 2 * N - 1, 2 * N - 1, ALL, 0, 0),
    ),
    (
        |sim, processes| unmap(sim, &processes[1], 7, 1),
        (0, false, 1, -1, 2, 0, 2 * N - 2, 2 * N - 2, ALL - 1, 0, 1),
    ),
];

/// T1.8: two processes, and both split.
const BOTH_SPLIT: [Step; 3] = [
    (
        |_, processes| fork(processes),
        (2, false, -1, -1, 2, 2, 2, 2, ALL, 1, 0),
    ),
    (
        |sim, processes| split_pmd(sim, &processes[0]),
        (1, true, 1, 1, 2, 2, N + 1, N + 1, ALL, 1, 0),
    ),
    (
        |sim, processes| split_pmd(sim, &processes[1]),
        (0, false, 1, 1, 2, 2, 2 * N, 2 * N, ALL, 0, 0),
    ),
];

/// T1.9: A splits and unmaps all PTEs, B goes on mapping all of it. DoubleMap outlives the PTEs.
const PTES_GONE: [Step; 3] = [
    BOTH_SPLIT[0],
    BOTH_SPLIT[1],
    (
        |sim, processes| unmap(sim, &processes[0], 0, HUGE),
        (1, true, 0, 0, 1, 1, 1, 1, ALL, 1, 0),
    ),
];

/// T1.10: A splits and unmaps the lower half, B then its PMD: half of the page is mapped by nobody.
const HALF_GONE: [Step; 4] = [
    BOTH_SPLIT[0],
    BOTH_SPLIT[1],
    (
        |sim, processes| unmap(sim, &processes[0], 0, HUGE / 2),
        (1, true, 0, 0, 1, 1, N / 2 + 1, N / 2 + 1, ALL, 1, 0),
    ),
    (
        |sim, processes| unmap(sim, &processes[1], 0, HUGE),
        (0, false, -1, -1, 0, 0, N / 2, N / 2, ALL / 2, 0, 1),
    ),
];

fn fork(processes: &mut Vec<Process<'_>>) {
    let next = u8::try_from(processes.len()).expect("few");
    let child = processes[0].fork(cpu(next)).expect("memory is there");
    processes.push(child);
}

/// Plays `steps` and compares the row after each; `look` sees the page then.
fn play_with(sim: &Sim, steps: &[Step], look: &mut dyn FnMut(Pfn)) -> Pfn {
    let mut processes = vec![one_thp(sim)];
    let head = frame(sim, &processes[0], 0);
    for (nth, (act, expected)) in steps.iter().enumerate() {
        act(sim, &mut processes);
        sim.verify(&processes.iter().collect::<Vec<_>>(), &());
        assert_eq!(row(sim, head), *expected, "step {nth}");
        look(head);
    }
    drop(processes);
    sim.verify(&[], &());
    head
}

fn play(steps: &[Step]) {
    play_with(&machine(), steps, &mut |_| ());
}

#[test]
fn t1_1_one_process_maps_the_page_by_pmd() {
    play(&THREE[..1]);
}

#[test]
fn t1_2_forks_add_one_pmd_each() {
    play(&THREE[..2]);
}

#[test]
fn t1_3_a_split_among_three_enters_double_map() {
    let sim = machine();
    play_with(&sim, &THREE[..3], &mut |_| ());
    let split_once = Events {
        split_pmd: 1,
        ..Events::default()
    };
    assert_eq!(Events::of(&sim), split_once);
}

#[test]
fn t1_4_unmapping_a_subpage_that_others_map_queues_nothing() {
    play(&THREE[..4]);
}

#[test]
fn t1_5_a_second_split_adds_its_own_counts_only() {
    play(&THREE[..5]);
}

#[test]
fn t1_6_the_last_pmd_takes_double_map_along() {
    play(&THREE[..6]);
}

#[test]
fn t1_7_the_last_mapping_of_a_subpage_queues_the_page() {
    play(&THREE);
}

#[test]
fn t1_8_splitting_both_of_two_leaves_no_bias() {
    play(&BOTH_SPLIT);
}

#[test]
fn t1_9_double_map_stays_while_a_pmd_does() {
    let sim = machine();
    let (head, events) = sim
        .machine()
        .events_of(|| play_with(&sim, &PTES_GONE, &mut |_| ()));
    assert_eq!(
        (sim.count(Counter::NrAnonPages), Events::of(&sim).deferred),
        (0, 0)
    );
    assert_eq!(frees_of(&events, head), [(head, N)], "it went as one block");
}

#[test]
fn t1_10_the_last_pmd_finds_half_the_page_unmapped() {
    play(&HALF_GONE);
}

#[test]
fn t2_3_a_raw_question_to_a_tail_is_answered_by_the_tail() {
    let sim = machine();
    let mut steps = 0;
    play_with(&sim, &THREE[..3], &mut |head| {
        steps += 1;
        let page = sim.pages().page(head);
        let double = steps == 3;
        assert_eq!(page.is_double_mapped(), double);
        assert!(
            !page.offset(5).is_double_mapped(),
            "a tail has no flag of its own"
        );
        assert_eq!(page.offset(N - 1).mapcount(), if steps == 1 { 1 } else { 3 });
    });
    assert_eq!(steps, 3);
}

#[test]
fn t2_4_kpagecount_is_the_mapcount_in_every_row() {
    for steps in [&THREE[..], &BOTH_SPLIT, &PTES_GONE, &HALF_GONE] {
        let sim = machine();
        let mut rows = steps.iter().map(|(_, row)| row);
        play_with(&sim, steps, &mut |head| {
            let &(.., mapcount_0, mapcount_7, _, _, _, _, _) = rows.next().expect("as many as steps");
            assert_eq!(kpagecount(&sim, head), mapcount_0.into());
            assert_eq!(kpagecount(&sim, head.offset(7)), mapcount_7.into());
        });
    }
}

#[test]
fn t2_5_each_kind_of_frame_has_its_word() {
    const BUDDY: u64 = 1 << 10;
    const NOPAGE: u64 = 1 << 20;
    const RESERVED: u64 = 1 << 32;
    let sim = machine();
    let words = |pfn| (kpageflags(&sim, pfn), kpagecount(&sim, pfn));
    let all = || (0..sim.pages().frames()).map(|pfn| sim.pages().page(Pfn::new(pfn)));
    let block = all()
        .find(|page| page.state().buddy_order() >= Some(PMD_ORDER))
        .expect("memory is free");
    assert_eq!(words(block.pfn()), (BUDDY, 0));
    let inside = block.offset(5);
    assert_eq!(words(inside.pfn()), (BUDDY, 0));
    assert_eq!(
        (inside.mapcount(), inside.is_anon(), inside.is_mapped()),
        (0, false, false)
    );
    assert_eq!(inside.head().pfn(), inside.pfn());
    let reserved = sim.pages().page(Pfn::new(FIRMWARE_FRAMES - 1));
    assert!(reserved.has(PageFlags::RESERVED));
    assert_eq!(words(reserved.pfn()), (RESERVED, 0));
    for beyond in [sim.pages().frames(), u32::MAX] {
        assert_eq!(words(Pfn::new(beyond)), (NOPAGE, 0));
        assert!(sim.pages().get(Pfn::new(beyond)).is_none());
    }
}

#[test]
fn t6_3_looking_a_subpage_up_takes_one_reference_and_splits_nothing() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    let before = row(&sim, head);
    let (folio, pfn) = sim
        .get_user_page(&a, VirtAddr::new(at(7)), Access::Read)
        .expect("mapped");
    assert_eq!((folio.pfn(), pfn), (head, head.offset(7)));
    let mut held = before;
    held.7 += 1;
    assert_eq!(row(&sim, head), held);
    assert_eq!(Events::of(&sim), Events::default());
    sim.put(folio);
    assert_eq!(row(&sim, head), before);
    sim.verify(&[&a], &());
}

#[test]
fn t7_2_each_page_of_a_split_page_has_the_heads_identity() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = sim.pages().page(frame(&sim, &a, 0));
    let (mapping, index) = (head.own_mapping(), head.index());
    assert_eq!(
        (mapping & 1, index),
        (1, at(0) / PAGE),
        "anonymous, at its linear place"
    );
    for i in 1..N {
        assert_eq!(
            (head.offset(i).own_mapping(), head.offset(i).is_anon()),
            (0, true),
            "tail {i}"
        );
    }
    assert_eq!(split_page(&sim, &a, 0), Ok(head.pfn()));
    for i in 0..N {
        let page = head.offset(i);
        assert_eq!(
            (page.own_mapping(), page.index()),
            (mapping, index + u64::from(i)),
            "page {i}"
        );
    }
    sim.verify(&[&a], &());
}

/// A leak is better than two owners: the page is reported, and nobody gets it again.
#[test]
fn t7_3_a_tail_with_a_mapping_is_reported_at_free_and_never_used_again() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    let (folio, _) = sim
        .get_user_page(&a, VirtAddr::new(at(0)), Access::Read)
        .expect("mapped");
    unmap(&sim, &a, 0, HUGE);
    sim.sabotage(&a, Damage::Mapping(head.offset(9)));
    let freed = catch_unwind(AssertUnwindSafe(|| sim.put(folio)));
    // A build with debug assertions stops here.
    assert_eq!(freed.is_err(), cfg!(debug_assertions));
    if let Err(report) = freed {
        let said = report.downcast_ref::<String>().expect("a panic's words");
        assert!(
            said.contains("bad page: corrupted mapping in tail page"),
            "{said}"
        );
    }
    assert_eq!(
        (sim.nr_bad_pages(), kpageflags(&sim, head) >> 19 & 1),
        (1, 1),
        "HWPOISON"
    );
    while let Ok(pfn) = sim.alloc_pages(PMD_ORDER, AllocFlags::RESERVE) {
        assert_ne!(pfn, head, "it was handed out again");
    }
    while let Ok(pfn) = sim.alloc_pages(Order::ZERO, AllocFlags::RESERVE) {
        assert_ne!(pfn.align_down(PMD_ORDER), head, "part of it was handed out again");
    }
    // The machine is of no use any more.
    core::mem::forget(a);
}

#[test]
fn t8_1_a_pmd_split_is_one_event_however_many_share_the_page() {
    let sim = machine();
    let a = one_thp(&sim);
    let (b, c) = (a.fork(cpu(1)), a.fork(cpu(2)));
    split_pmd(&sim, &a);
    assert_eq!(Events::of(&sim), SPLIT_PMD);
    drop((b, c));
    sim.verify(&[&a], &());
}

const SPLIT_PMD: Events = Events {
    split_page: 0,
    split_page_failed: 0,
    deferred: 0,
    split_pmd: 1,
};

#[test]
fn t8_2_a_failed_page_split_counts_as_failed_only() {
    let sim = machine();
    let a = one_thp(&sim);
    let pin = sim
        .pin_user_page(&a, VirtAddr::new(at(3)), Access::Read)
        .expect("mapped");
    assert!(matches!(split_page(&sim, &a, 0), Err(SplitError::Pinned { .. })));
    let failed = Events {
        split_page_failed: 1,
        ..Events::default()
    };
    assert_eq!(Events::of(&sim), failed);
    sim.unpin(pin);
    sim.verify(&[&a], &());
}

#[test]
fn t8_3_splitting_a_pmd_of_the_zero_page_counts_too() {
    let sim = machine();
    let a = sim.start(cpu(0)).expect("memory is there");
    map(&sim, &a, 0, HUGE);
    assert_eq!(a.read_byte(at(5)), Ok(0));
    assert_eq!(sim.count(Counter::ThpZeroPageAlloc), 1);
    split_pmd(&sim, &a);
    assert_eq!(Events::of(&sim), SPLIT_PMD);
    assert_eq!((a.rss_pages(), a.read_byte(at(5))), (0, Ok(0)));
    split_pmd(&sim, &a);
    assert_eq!(Events::of(&sim), SPLIT_PMD, "a table is not split again");
    sim.verify(&[&a], &());
}

/// What an operation on a reference costs is one atomic; the events count them. How long it takes is a bench.
#[test]
fn t10_2_a_reference_to_a_tail_is_one_operation_on_its_head() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    let changed = |pfn: Pfn, val, count| Event::RefMod { pfn, val, count };
    for i in [0, 7, N - 1] {
        let page = sim.pages().page(head.offset(i));
        let (folio, got) = sim
            .machine()
            .events_of(|| sim.try_get(page).expect("it is mapped"));
        assert_eq!(got, [changed(head, 1, 2)], "subpage {i}");
        let ((), put) = sim.machine().events_of(|| sim.put(folio));
        assert_eq!(put, [changed(head, -1, 1)], "subpage {i}");
        assert_eq!((page.offset(0).refs_hint() > 0, page.mapcount()), (i == 0, 1));
    }
    sim.verify(&[&a], &());
}

#[test]
fn t10_3_the_last_reference_through_a_tail_frees_one_block() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    let folio = sim
        .try_get(sim.pages().page(head.offset(7)))
        .expect("it is mapped");
    let tail = folio.leak(sim.pages().page(head.offset(7)));
    unmap(&sim, &a, 0, HUGE);
    assert_eq!(row(&sim, head), (0, false, -1, -1, 0, 0, 0, 1, 0, 0, 0));
    // SAFETY: `leak` gave up one reference, and it is given back once.
    let ((), events) = sim.machine().events_of(|| unsafe { sim.put_leaked(tail) });
    assert_eq!((tail, frees_of(&events, head)), (head.offset(7), vec![(head, N)]));
    sim.verify(&[&a], &());
}

#[test]
fn t10_4_every_one_of_a_thousand_pins_keeps_the_page_whole() {
    const PINS: u32 = 1000;
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    let pin = |i: u32| {
        let page = u64::from(i * 7 % N);
        let pin = sim
            .pin_user_page(&a, VirtAddr::new(at(page)), Access::Read)
            .expect("mapped");
        assert_eq!(pin.pfn(), head.offset(i * 7 % N));
        pin
    };
    let pins: Vec<_> = (0..PINS).map(pin).collect();
    for (dropped, pin) in (0..).zip(pins) {
        let found = PINS - dropped;
        let refused = SplitError::Pinned {
            expected: 2,
            found: 2 + found,
        };
        assert_eq!(split_page(&sim, &a, u64::from(dropped % N)), Err(refused));
        sim.unpin(pin);
    }
    assert_eq!(Events::of(&sim).split_page_failed, u64::from(PINS));
    assert_eq!(row(&sim, head), (1, false, -1, -1, 1, 1, 1, 1, ALL, 1, 0));
    assert_eq!(split_page(&sim, &a, 0), Ok(head));
    sim.verify(&[&a], &());
}
