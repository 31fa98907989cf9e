//! Races that Linux once lost (`mm/docs/rows.md`, table C), each played in the one order that showed the defect: a thread
//! stands still in the middle of its operation, at a flush, while another acts.

use std::{
    sync::mpsc::{RecvTimeoutError, TryRecvError, channel},
    thread,
    time::Duration,
};

use mm::{Destination, Remains, Remap, VirtAddr, fault::Access, split_folio::SplitError};
use mm_testkit::{
    fixture::{N, PAGE, at, cpu, frame, machine, map, number, one_thp, range, reads_its_numbers, split_page},
    machine::on_cpu,
    scenario::HUGE,
    sim::{Process, Sim},
};

/// Long enough for whoever does not have to wait.
const PATIENCE: Duration = Duration::from_millis(200);

/// Runs `act` on CPU 3 until its first flush; `meanwhile` runs while it stands there.
fn during_the_flush_of<T: Send, R>(
    sim: &Sim,
    act: impl FnOnce() -> T + Send,
    meanwhile: impl FnOnce() -> R,
) -> (T, R) {
    let held = sim.machine().hold_next_flush();
    thread::scope(|scope| {
        let acting = scope.spawn(|| {
            let _thread = sim.machine().join();
            on_cpu(cpu(3), act)
        });
        held.wait();
        let result = meanwhile();
        drop(held);
        (acting.join().expect("no panic"), result)
    })
}

/// A writes while B turns its PMD into PTEs. The page's mapcounts are between two states; whether A may write in place
/// must not be read from them.
#[test]
fn c1_a_writer_does_not_take_a_page_whose_other_pmd_is_being_split() {
    let sim = machine();
    let a = one_thp(&sim);
    let b = a.fork(cpu(1)).expect("memory is there");
    let head = frame(&sim, &a, 0);
    let split = || sim.split_huge_pmd(&b, VirtAddr::new(at(0)));
    let ((), written) = during_the_flush_of(&sim, split, || a.write_byte(at(5), 0xee));
    assert_eq!(written, Ok(()));
    assert_ne!(frame(&sim, &a, 5), head.offset(5), "A has a copy");
    assert_eq!(frame(&sim, &b, 5), head.offset(5));
    assert_eq!(b.read_byte(at(5)), Ok(number(5)), "B never sees what A wrote");
    reads_its_numbers(&a, &[5]);
    reads_its_numbers(&b, &[]);
    sim.verify(&[&a, &b], &());
}

/// Two huge pages are moved, and one of them has arrived. A walk that looks for the other now would find its new place
/// empty; if it went on to the old one a moment later, that would be empty too. So it waits until all is moved.
#[test]
fn c4_no_walk_looks_for_a_page_while_its_area_moves() {
    let sim = machine();
    let a = sim.start(cpu(0)).expect("memory is there");
    // Across a border of PMD tables: the second page's tables are not the ones that are locked.
    let border = mm::ENTRIES as u64 * HUGE;
    let (from, to) = (border - HUGE, 3 * border - HUGE);
    map(&sim, &a, from, 2 * HUGE);
    a.write_byte(at(from), 1).expect("writable");
    a.write_byte(at(border + 5), 2).expect("writable");
    let second = frame(&sim, &a, border);
    let wish = Remap {
        addr: at(from),
        old_len: 2 * HUGE * PAGE,
        new_len: 2 * HUGE * PAGE,
        destination: Destination::Fixed(at(to)),
        remains: Remains::Nothing,
    };
    let (tell, split) = channel();
    let (moved, waited) = thread::scope(|scope| {
        let (sim, tell) = (&sim, tell);
        let result = during_the_flush_of(
            sim,
            || sim.mremap(&a, wish),
            || {
                scope.spawn(move || {
                    let _thread = sim.machine().join();
                    let folio = sim.try_get(sim.pages().page(second)).expect("it is mapped");
                    let locked = sim.try_lock_folio(&folio).expect("nobody locks");
                    let is_split = on_cpu(cpu(2), || match sim.split_folio(folio, locked, 0) {
                        Ok((folio, locked)) => {
                            drop(locked);
                            sim.put(folio);
                            true
                        }
                        Err((_, folio, locked)) => {
                            drop(locked);
                            sim.put(folio);
                            false
                        }
                    });
                    tell.send(is_split).expect("somebody listens");
                });
                split.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout)
            },
        );
        assert_eq!(split.recv(), Ok(true), "afterwards it is found and split");
        result
    });
    assert_eq!(moved.map(VirtAddr::as_u64), Ok(at(to)));
    assert!(waited, "the walk did not wait for the move");
    assert_eq!(a.read_byte(at(to)), Ok(1));
    assert_eq!(a.read_byte(at(to + HUGE + 5)), Ok(2));
    sim.verify(&[&a], &());
}

/// A's entry is gone and its mapcount is, but its other CPU may still use the translation: the page is held until the
/// flush, so it cannot be split under it.
#[test]
fn c5_a_page_that_is_being_zapped_is_split_after_the_flush() {
    let sim = machine();
    let mut a = one_thp(&sim);
    a.run_on(cpu(2));
    let b = a.fork(cpu(1)).expect("memory is there");
    let head = frame(&sim, &b, 0);
    let zap = || sim.madvise(&a, range(0, HUGE), mm::Advice::DontNeed);
    let (zapped, refused) = during_the_flush_of(&sim, zap, || split_page(&sim, &b, 0));
    zapped.expect("mapped");
    let held = SplitError::Pinned {
        expected: 2,
        found: 3,
    };
    assert_eq!(refused, Err(held));
    assert_eq!(split_page(&sim, &b, 0), Ok(head));
    reads_its_numbers(&b, &[]);
    sim.verify(&[&a, &b], &());
}

/// The last mapping of the huge zero page goes, but a CPU may still read through it.
#[test]
fn c12_the_huge_zero_page_outlives_the_flush() {
    let sim = machine();
    let mut a = sim.start(cpu(0)).expect("memory is there");
    map(&sim, &a, 0, HUGE);
    assert_eq!(a.read_byte(at(1)), Ok(0));
    a.run_on(cpu(2));
    assert_eq!(a.read_byte(at(1)), Ok(0));
    let all = range(0, HUGE);
    let (unmapped, freed) = during_the_flush_of(&sim, || sim.munmap(&a, all), || sim.shrink_huge_zero_page());
    unmapped.expect("mapped");
    assert_eq!(freed, 0, "not while a CPU may use it");
    assert_eq!(sim.shrink_huge_zero_page(), N);
    sim.verify(&[&a], &());
}

/// Splits the page that backs `round`'s subpage, while others may take references at any moment.
fn split(sim: &Sim, process: &Process<'_>, round: u32) -> Result<(), SplitError> {
    let addr = VirtAddr::new(at(u64::from(round) % HUGE));
    let (folio, pfn) = sim.get_user_page(process, addr, Access::Read).expect("mapped");
    let subpage = pfn.since(folio.pfn());
    let locked = sim.try_lock_folio(&folio).expect("nobody locks");
    let (result, folio, locked) = match sim.split_folio(folio, locked, subpage) {
        Ok((folio, locked)) => (Ok(()), folio, locked),
        Err((error, folio, locked)) => (Err(error), folio, locked),
    };
    drop(locked);
    sim.put(folio);
    result
}

/// A reference that a scanner asks for by a tail's number while the page comes apart lands on what that number is then,
/// or nowhere; and it keeps what it landed on.
#[test]
#[cfg_attr(miri, ignore = "takes long")]
fn c16_references_to_tails_while_the_page_comes_apart() {
    const ROUNDS: u32 = 150;
    let sim = machine();
    // Nothing is sent: the scanner ends when the other end is dropped.
    let (go_on, over) = channel::<()>();
    let (splits, taken) = thread::scope(|scope| {
        let scanner = scope.spawn({
            let sim = &sim;
            move || {
                let _thread = sim.machine().join();
                on_cpu(cpu(3), || {
                    let mut taken = 0u32;
                    while over.try_recv() == Err(TryRecvError::Empty) {
                        for page in (0..sim.pages().frames()).step_by(7) {
                            let page = sim.pages().page(mm::Pfn::new(page));
                            let Some(folio) = sim.try_get(page) else { continue };
                            assert_eq!(page.head().pfn(), folio.pfn(), "it stays what it was");
                            assert!(page.head().refs_hint() > 0);
                            sim.put(folio);
                            taken += 1;
                        }
                    }
                    taken
                })
            }
        });
        let mut splits = 0;
        for round in 0..ROUNDS {
            let a = one_thp(&sim);
            match split(&sim, &a, round) {
                Ok(()) => splits += 1,
                Err(SplitError::Pinned { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
            reads_its_numbers(&a, &[]);
        }
        drop(go_on);
        (splits, scanner.join().expect("no panic"))
    });
    assert!(splits > 0 && taken > 0, "{splits} splits, {taken} references");
    sim.verify(&[], &());
}
