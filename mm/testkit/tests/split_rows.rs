//! Rows T4 and T5 of the specification: splitting a PMD never fails, splitting the page fails while somebody else holds
//! it. What needs no second process and no race is also a scenario.

use mm::{
    Counter, VirtAddr,
    fault::Access,
    report::{kpagecount, kpageflags, smaps},
    split_folio::SplitError,
};
use mm_testkit::{
    fixture::{
        Events, N, WHOLE, at, cpu, frame, machine, number, one_thp, reads_its_numbers, row, split_page,
        split_pmd, unmap,
    },
    machine::on_cpu,
    scenario::HUGE,
    sim::{Process, Sim},
};

/// Kibibytes that a process maps by PMD (`AnonHugePages`), and in all (`Rss`).
fn huge_and_resident_kib(sim: &Sim, process: &Process<'_>) -> (u64, u64) {
    let mut sums = (0, 0);
    smaps(sim, process, &mut |_, area| {
        sums.0 += area.by_pmd / 1024;
        sums.1 += area.resident / 1024;
    });
    sums
}

const WHOLE_KIB: u64 = WHOLE / 1024;

const SPLIT_ONCE: Events = Events {
    split_page: 1,
    split_page_failed: 0,
    deferred: 0,
    split_pmd: 1,
};

#[test]
fn t4_2_a_pin_stays_good_over_a_pmd_split() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    let pin = sim
        .pin_user_page(&a, VirtAddr::new(at(9)), Access::Write)
        .expect("it is mapped");
    let ours = 1;
    assert_eq!(row(&sim, head), (1, false, -1, -1, 1, 1, 1, 1 + ours, HUGE, 1, 0));
    split_pmd(&sim, &a);
    assert_eq!(row(&sim, head), (0, false, 0, 0, 1, 1, N, N + ours, HUGE, 0, 0));
    assert_eq!((pin.pfn(), frame(&sim, &a, 9)), (head.offset(9), head.offset(9)));
    // What the program writes, whoever has the pin sees, and the other way round.
    a.write_byte(at(9), 0xa5).expect("writable");
    assert_eq!(sim.machine().frame_bytes(pin.pfn(), 1)[0], 0xa5);
    sim.machine().fill_frames(pin.pfn(), 1, 0x5a);
    assert_eq!(a.read_byte(at(9)), Ok(0x5a));
    sim.unpin(pin);
    assert_eq!(row(&sim, head).7, N);
    reads_its_numbers(&a, &[9]);
    sim.verify(&[&a], &());
}

#[test]
fn t4_4_splitting_one_processs_pmd_leaves_the_others() {
    let sim = machine();
    let a = one_thp(&sim);
    let b = a.fork(cpu(1)).expect("memory is there");
    split_pmd(&sim, &a);
    assert_eq!(huge_and_resident_kib(&sim, &a), (0, WHOLE_KIB));
    assert_eq!(huge_and_resident_kib(&sim, &b), (WHOLE_KIB, WHOLE_KIB));
    assert_eq!((a.rss_pages(), b.rss_pages()), (HUGE, HUGE));
    reads_its_numbers(&a, &[]);
    reads_its_numbers(&b, &[]);
    sim.verify(&[&a, &b], &());
}

#[test]
fn t5_1_one_process_splits_its_page() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    assert_eq!(split_page(&sim, &a, 0), Ok(head));
    sim.verify(&[&a], &());
    assert_eq!(Events::of(&sim), SPLIT_ONCE);
    assert_eq!(sim.nr_deferred_splits(), 0);
    assert_eq!(
        (sim.count(Counter::NrAnonThps), sim.count(Counter::NrAnonPages)),
        (0, HUGE)
    );
    for i in 0..N {
        let page = sim.pages().page(head.offset(i));
        assert_eq!(kpageflags(&sim, page.pfn()), 0x4_0000_5838, "subpage {i}");
        assert_eq!(
            (kpagecount(&sim, page.pfn()), page.refs_hint()),
            (1, 1),
            "subpage {i}"
        );
    }
    assert_eq!(a.rss_pages(), HUGE);
    reads_its_numbers(&a, &[]);
    a.write_byte(at(5), 9).expect("still writable");
}

#[test]
fn t5_2_a_pinned_page_refuses_and_stays_as_it_was() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    let before = row(&sim, head);
    let pin = sim
        .pin_user_page(&a, VirtAddr::new(at(7)), Access::Write)
        .expect("it is mapped");
    assert_eq!(pin.pfn(), head.offset(7));
    let refused = SplitError::Pinned {
        expected: 2,
        found: 3,
    };
    assert_eq!(split_page(&sim, &a, 0), Err(refused));
    let failed = Events {
        split_page_failed: 1,
        ..Events::default()
    };
    assert_eq!(Events::of(&sim), failed);
    assert_eq!(
        huge_and_resident_kib(&sim, &a),
        (WHOLE_KIB, WHOLE_KIB),
        "still mapped by PMD"
    );
    sim.unpin(pin);
    assert_eq!(row(&sim, head), before);
    assert_eq!(split_page(&sim, &a, 0), Ok(head));
    sim.verify(&[&a], &());
}

/// The cheap look finds nothing; then, while the PMD is being split, somebody takes a reference. The freeze sees it.
#[test]
fn t5_3_a_reference_taken_after_the_look_is_seen_by_the_freeze() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    let held = sim.machine().hold_next_flush();
    let (result, folio) = std::thread::scope(|scope| {
        let splitter = scope.spawn(|| {
            let _thread = sim.machine().join();
            on_cpu(cpu(2), || split_page(&sim, &a, 0))
        });
        held.wait();
        let folio = sim
            .try_get(sim.pages().page(head.offset(7)))
            .expect("the page is in use");
        drop(held);
        (splitter.join().expect("no panic"), folio)
    });
    let refused = SplitError::Pinned {
        expected: 1,
        found: 2,
    };
    assert_eq!(result, Err(refused));
    let (entries, ours) = (N, 1);
    assert_eq!(
        row(&sim, head),
        (0, false, 0, 0, 1, 1, entries, entries + ours, HUGE, 0, 0)
    );
    let failed = Events {
        split_page_failed: 1,
        split_pmd: 1,
        ..Events::default()
    };
    assert_eq!(Events::of(&sim), failed);
    assert_eq!(folio.order(), mm::PMD_ORDER, "still one page");
    assert_eq!(kpageflags(&sim, head) & 1, 0, "nobody holds the lock");
    reads_its_numbers(&a, &[]);
    a.write_byte(at(9), 1).expect("still writable");
    sim.put(folio);
    sim.verify(&[&a], &());
    assert_eq!(split_page(&sim, &a, 0), Ok(head));
    sim.verify(&[&a], &());
}

#[test]
fn t5_4_reference_and_lock_end_on_the_subpage_asked_for() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    let subpage = N / 5;
    let (folio, _) = sim
        .get_user_page(&a, VirtAddr::new(at(0)), Access::Read)
        .expect("mapped");
    let locked = sim.try_lock_folio(&folio).expect("nobody holds it");
    let Ok((folio, locked)) = sim.split_folio(folio, locked, subpage) else {
        panic!("nobody else holds it")
    };
    assert_eq!(folio.pfn(), head.offset(subpage));
    for i in 0..N {
        let page = sim.pages().page(head.offset(i));
        let ours = u32::from(i == subpage);
        let is_locked = kpageflags(&sim, page.pfn()) & 1;
        assert_eq!(
            (page.refs_hint(), is_locked),
            (1 + ours, ours.into()),
            "subpage {i}"
        );
    }
    drop(locked);
    sim.put(folio);
    sim.verify(&[&a], &());
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
    let three_pmds = Events {
        split_pmd: 3,
        ..SPLIT_ONCE
    };
    assert_eq!(Events::of(&sim), three_pmds);
    for i in 0..N {
        let page = sim.pages().page(head.offset(i));
        assert_eq!((page.mapcount(), page.refs_hint()), (3, 3), "subpage {i}");
    }
    [&a, &b, &c]
        .iter()
        .for_each(|process| reads_its_numbers(process, &[]));
    c.write_byte(at(2), 0x77).expect("a copy of its own");
    sim.verify(&[&a, &b, &c], &());
    assert_eq!(a.read_byte(at(2)), Ok(number(2)));
}

#[test]
fn t5_6_what_nobody_maps_is_freed_by_the_split() {
    const BUDDY: u64 = 1 << 10;
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    unmap(&sim, &a, 7, 1);
    let free = sim.nr_free_pages();
    assert_eq!(split_page(&sim, &a, 0), Ok(head));
    assert_eq!(sim.nr_free_pages(), free + 1, "that page and no other");
    // It went to a CPU's magazine, where Linux shows nothing either; in its zone it is a free block.
    assert_eq!(kpageflags(&sim, head.offset(7)), 0);
    sim.drain_all_magazines();
    assert_eq!(kpageflags(&sim, head.offset(7)), BUDDY);
    assert_eq!(sim.nr_deferred_splits(), 0, "no longer waiting to be split");
    reads_its_numbers(&a, &[7]);
    sim.verify(&[&a], &());
}

#[test]
fn t5_7_all_two_mebibytes_stay_as_they_were() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    // Not a multiple of anything: each place has a byte that its neighbours and its page's fellows do not have.
    let bytes: Vec<u8> = (0..WHOLE)
        .map(|at| (at * 31 + at / 4096 * 7).to_le_bytes()[0])
        .collect();
    a.write(at(0), &bytes).expect("writable");
    assert_eq!(split_page(&sim, &a, 3), Ok(head.offset(3)));
    let mut after = vec![0; bytes.len()];
    a.read(at(0), &mut after).expect("readable");
    assert!(after == bytes, "contents changed");
    let frames = sim.machine().frame_bytes(head, N);
    assert!(frames == bytes, "the frames are the same, in the same order");
    for i in 0..N {
        assert!(
            sim.pages().page(head.offset(i)).has(mm::PageFlags::DIRTY),
            "subpage {i}"
        );
    }
    sim.verify(&[&a], &());
}

#[test]
fn t5_8_nobody_splits_a_page_that_nothing_maps() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    let (folio, _) = sim
        .get_user_page(&a, VirtAddr::new(at(0)), Access::Read)
        .expect("mapped");
    unmap(&sim, &a, 0, HUGE);
    assert_eq!(row(&sim, head), (0, false, -1, -1, 0, 0, 0, 1, 0, 0, 0));
    let locked = sim.try_lock_folio(&folio).expect("nobody holds it");
    let Err((error, folio, locked)) = sim.split_folio(folio, locked, 0) else {
        panic!("it was split")
    };
    assert_eq!(error, SplitError::Busy);
    let failed = Events {
        split_page_failed: 1,
        ..Events::default()
    };
    assert_eq!((Events::of(&sim), folio.order()), (failed, mm::PMD_ORDER));
    drop(locked);
    let free = sim.nr_free_pages();
    sim.put(folio);
    assert!(
        sim.nr_free_pages() >= free + u64::from(N),
        "all of it is free now"
    );
    sim.verify(&[&a], &());
}
