//! Rows T3 of the specification: huge pages that are partly unmapped wait, once, to be split. What needs no draining and
//! no second process is also a scenario.

use mm::{Counter, Pfn, VirtAddr, fault::Access, report::kpagecount};
use mm_testkit::{
    fixture::{
        Events, N, at, cpu, frame, frees_of, machine, map, one_thp, range, reads_its_numbers, row, split_pmd,
        unmap, write_numbers,
    },
    scenario::HUGE,
    sim::{Config, Sim},
};

const QUEUED_ONCE: Events = Events {
    split_page: 0,
    split_page_failed: 0,
    deferred: 1,
    split_pmd: 1,
};

const SPLIT_TOO: Events = Events {
    split_page: 1,
    ..QUEUED_ONCE
};

#[test]
fn t3_1_unmapping_one_page_queues_and_frees_nothing() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    let free = sim.nr_free_pages();
    let ((), events) = sim.machine().events_of(|| unmap(&sim, &a, 7, 1));
    assert_eq!(Events::of(&sim), QUEUED_ONCE);
    assert_eq!(
        row(&sim, head),
        (0, false, 0, -1, 1, 0, N - 1, N - 1, HUGE - 1, 0, 1)
    );
    assert_eq!((frees_of(&events, head), sim.nr_free_pages()), (vec![], free));
    assert_eq!((sim.nr_deferred_splits(), a.rss_pages()), (1, HUGE - 1));
    assert_eq!(kpagecount(&sim, head.offset(7)), 0);
    sim.verify(&[&a], &());
}

#[test]
fn t3_2_draining_the_queue_frees_what_nobody_maps() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    unmap(&sim, &a, 7, 1);
    let free = sim.nr_free_pages();
    let (progress, events) = sim.machine().events_of(|| sim.split_deferred(10));
    assert_eq!((progress.scanned, progress.split), (1, 1));
    sim.verify(&[&a], &());
    assert_eq!((Events::of(&sim), sim.nr_deferred_splits()), (SPLIT_TOO, 0));
    assert_eq!(
        frees_of(&events, head),
        [(head.offset(7), 1)],
        "the dropped page and no other"
    );
    assert_eq!(sim.nr_free_pages(), free + 1);
    for i in (0..N).filter(|&i| i != 7) {
        let page = sim.pages().page(head.offset(i));
        let order = page.compound_order().raw();
        assert_eq!(
            (page.refs_hint(), page.mapcount(), order, page.head().pfn()),
            (1, 1, 0, page.pfn())
        );
    }
    assert_eq!(kpagecount(&sim, head.offset(7)), 0);
    assert_eq!(a.rss_pages(), HUGE - 1);
    reads_its_numbers(&a, &[7]);
}

#[test]
fn t3_3_every_other_page_is_one_event_and_half_the_memory() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    let odd: Vec<u64> = (1..HUGE).step_by(2).collect();
    odd.iter().for_each(|&page| unmap(&sim, &a, page, 1));
    assert_eq!(Events::of(&sim), QUEUED_ONCE);
    assert_eq!(
        row(&sim, head),
        (0, false, 0, -1, 1, 0, N / 2, N / 2, HUGE / 2, 0, 1)
    );
    assert_eq!(sim.nr_deferred_splits(), 1);
    let free = sim.nr_free_pages();
    let (progress, events) = sim.machine().events_of(|| sim.split_deferred(10));
    assert_eq!(progress.split, 1);
    let mut freed = frees_of(&events, head);
    freed.sort_unstable();
    let expected: Vec<(Pfn, u32)> = (1..N).step_by(2).map(|i| (head.offset(i), 1)).collect();
    assert_eq!(freed, expected);
    assert_eq!(sim.nr_free_pages(), free + HUGE / 2);
    assert_eq!((Events::of(&sim), sim.nr_deferred_splits()), (SPLIT_TOO, 0));
    reads_its_numbers(&a, &odd);
    sim.verify(&[&a], &());
}

/// Linux up to 6.1 queues the page when the first PTE goes, and takes it off when the last one does.
#[test]
fn t3_4_unmapping_all_ptes_at_once_queues_nothing() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    split_pmd(&sim, &a);
    let before = Events::of(&sim);
    let free = sim.nr_free_pages();
    let ((), events) = sim.machine().events_of(|| unmap(&sim, &a, 0, HUGE));
    assert_eq!(Events::of(&sim).since(before), Events::default());
    assert_eq!(sim.nr_deferred_splits(), 0);
    assert_eq!(frees_of(&events, head), [(head, N)], "as one block");
    assert!(sim.nr_free_pages() >= free + HUGE);
    assert_eq!((a.rss_pages(), sim.count(Counter::NrAnonPages)), (0, 0));
    sim.verify(&[&a], &());
}

#[test]
fn t3_5_unmapping_a_whole_pmd_is_no_event_at_all() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    let ((), events) = sim.machine().events_of(|| unmap(&sim, &a, 0, HUGE));
    assert_eq!(
        (Events::of(&sim), sim.nr_deferred_splits()),
        (Events::default(), 0)
    );
    assert_eq!(frees_of(&events, head), [(head, N)]);
    let counts = (sim.count(Counter::NrAnonPages), sim.count(Counter::NrAnonThps));
    assert_eq!((a.rss_pages(), counts), (0, (0, 0)));
    sim.verify(&[&a], &());
}

#[test]
fn t3_6_a_pinned_page_waits_its_turn_and_starves_nobody() {
    let sim = machine();
    let a = one_thp(&sim);
    let pin = sim
        .pin_user_page(&a, VirtAddr::new(at(0)), Access::Read)
        .expect("it is mapped");
    unmap(&sim, &a, 7, 1);
    // A second one, behind it in the queue, that nobody pins.
    map(&sim, &a, HUGE, HUGE);
    write_numbers(&a, HUGE, HUGE);
    unmap(&sim, &a, HUGE + 7, 1);
    let progress = sim.split_deferred(10);
    assert_eq!((progress.scanned, progress.split), (2, 1), "each is tried once");
    let failed = Events {
        split_page: 1,
        split_page_failed: 1,
        deferred: 2,
        split_pmd: 2,
    };
    assert_eq!(
        (Events::of(&sim), sim.nr_deferred_splits()),
        (failed, 1),
        "put back is not queued anew"
    );
    let progress = sim.split_deferred(10);
    assert_eq!(
        (progress.scanned, progress.split, sim.nr_deferred_splits()),
        (1, 0, 1)
    );
    sim.unpin(pin);
    let free = sim.nr_free_pages();
    assert_eq!(sim.split_deferred(10).split, 1);
    assert_eq!((sim.nr_deferred_splits(), sim.nr_free_pages()), (0, free + 1));
    sim.verify(&[&a], &());
}

/// 2 GiB of huge pages, of which half is unmapped in each.
#[test]
#[cfg_attr(miri, ignore = "takes long")]
fn t3_8_exit_leaves_nothing_on_the_queue() {
    const PAGES: u32 = 1000;
    let sim = Sim::boot(&Config {
        frames: (PAGES + 40) * N,
        ..Config::default()
    });
    let free = sim.nr_free_pages();
    let a = sim.start(cpu(0)).expect("memory is there");
    map(&sim, &a, 0, u64::from(PAGES) * HUGE);
    for page in (0..PAGES).map(|nth| u64::from(nth) * HUGE) {
        a.write_byte(at(page), 1).expect("writable");
        a.run(|| sim.madvise(&a, range(page, HUGE / 2), mm::Advice::DontNeed))
            .expect("mapped");
    }
    let queued = u64::from(PAGES);
    assert_eq!(
        (sim.nr_deferred_splits(), sim.count(Counter::ThpDeferredSplitPage)),
        (queued, queued)
    );
    assert_eq!(a.rss_pages(), queued * HUGE / 2);
    drop(a);
    assert_eq!((sim.nr_deferred_splits(), sim.nr_free_pages()), (0, free));
    assert_eq!(
        (
            sim.count(Counter::ThpDeferredSplitPage),
            sim.count(Counter::ThpSplitPage)
        ),
        (queued, 0)
    );
    sim.verify(&[], &());
}
