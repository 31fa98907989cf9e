//! One huge page in several processes: fork, copy-on-write, splitting the page, the deferred queue, pins, zero pages.
//! The rows are those of the specification; the whole-memory checker runs after every step.

use mm::{Counter, MapRequest, Place, Prot, VirtAddr, VmaFlags, fault::Access, rmap::MappedBy};
use mm_testkit::{
    fixture::{
        N, WHOLE, at, cpu, frame, machine, number, one_thp, range, reads_its_numbers, split_pmd, unmap,
    },
    scenario::{HOME, HUGE},
};

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

/// Hardware cannot let a page be written that it does not let be read. So what may only be written is readable; while it
/// is shared, and for writing a fault is wanted, it must go on being so, or a read would fault for ever.
#[test]
fn what_may_only_be_written_is_readable_while_it_is_shared() {
    let sim = machine();
    let a = one_thp(&sim);
    a.run(|| sim.mprotect(&a, range(0, HUGE), mm::Prot::WRITE))
        .expect("an area");
    let b = a.fork(cpu(1)).expect("memory is there");
    reads_its_numbers(&a, &[]);
    reads_its_numbers(&b, &[]);
    sim.verify(&[&a, &b], &());
    b.run(|| sim.split_huge_pmd(&b, VirtAddr::new(at(0))));
    b.run(|| sim.mprotect(&b, range(8, 1), mm::Prot::READ))
        .expect("an area");
    b.run(|| sim.mprotect(&b, range(8, 1), mm::Prot::WRITE))
        .expect("an area");
    reads_its_numbers(&b, &[]);
    b.write_byte(at(8), 9).expect("and may be written");
    sim.verify(&[&a, &b], &());
}

#[test]
fn rights_taken_from_the_huge_zero_page_stay_taken_when_it_is_split() {
    let sim = machine();
    let process = sim.start(cpu(0)).expect("memory is there");
    let request = MapRequest {
        hint: HOME,
        len: WHOLE,
        prot: Prot::READ | Prot::WRITE,
        place: Place::Fixed,
        flags: VmaFlags::empty(),
    };
    sim.mmap(&process, request).expect("nothing is there");
    assert_eq!(process.read_byte(at(5)), Ok(0));
    let protect = |pages, prot| sim.mprotect(&process, pages, prot).expect("mapped");
    protect(range(0, HUGE), Prot::empty());
    protect(range(0, 1), Prot::READ);
    assert_eq!(sim.count(Counter::ThpSplitPmd), 1, "it was mapped whole");
    assert_eq!(process.read_byte(at(0)), Ok(0));
    let refused = process.read_byte(at(5)).expect_err("nobody may read it");
    assert!(matches!(refused, mm_testkit::sim::AccessError::Segv(_)));
    sim.verify(&[&process], &());
}
