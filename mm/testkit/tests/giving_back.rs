//! Giving memory back: what the allocator refuses to take, and pages that go while another CPU faults.

#![expect(
    clippy::disallowed_types,
    reason = "the threads are the host's, not the machine's"
)]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, Ordering},
};

use mm::{
    AddressSpace, Advice, Counter, MapRequest, Order, PAGE_BYTES, PMD_SIZE, PageFlags, Pfn, Place, Prot,
    VirtAddr, VirtRange, VmaFlags,
    check::Damage,
    fault::{Access, FaultInfo},
    flags::AllocFlags,
    platform::CpuId,
};
use mm_testkit::{
    machine::on_cpu,
    scenario::{HOME, HUGE},
    sim::{Config, Process, Sim},
};

fn map(sim: &Sim, process: &Process<'_>, len: u64) {
    let request = MapRequest {
        hint: HOME,
        len,
        prot: Prot::READ | Prot::WRITE,
        place: Place::Fixed,
        flags: VmaFlags::empty(),
    };
    process.run(|| sim.mmap(process, request)).expect("there is room");
}

/// Gives back a block of `pages` by `free`, which must be reported. With debug assertions a report is a panic.
fn assert_refused(sim: &Sim, pages: u64, free: impl FnOnce()) {
    let before = sim.nr_free_pages();
    let outcome = catch_unwind(AssertUnwindSafe(free));
    assert_eq!(outcome.is_err(), cfg!(debug_assertions));
    assert_eq!(sim.nr_bad_pages(), 1);
    // A folio's identity may go, and be the last object of its frame; the block itself must leak.
    assert!(sim.nr_free_pages() < before + pages);
}

fn blocks(sim: &Sim, nr: usize) -> Vec<Pfn> {
    let one = |_| {
        sim.alloc_pages(Order::ZERO, AllocFlags::empty())
            .expect("memory is there")
    };
    on_cpu(CpuId::new(0), || (0..nr).map(one).collect())
}

/// The second page is somebody else's: taken along, it would be handed out a second time.
#[test]
fn a_block_is_not_taken_along_with_its_neighbour() {
    let sim = Sim::boot(&Config::default());
    let two = Order::new(1).expect("an order");
    let all = blocks(&sim, 8);
    let first = all
        .iter()
        .find(|pfn| pfn.is_aligned(two) && all.contains(&pfn.offset(1)));
    let first = *first.expect("two neighbours among eight");
    assert_refused(&sim, 1, || on_cpu(CpuId::new(0), || sim.free_pages(first, two)));
    assert_eq!(
        sim.pages().page(first.offset(1)).refs_hint(),
        1,
        "still its owner's"
    );
}

/// Only the place is wrong: the second page is nobody's.
#[test]
fn a_block_is_not_taken_at_a_place_where_none_can_be() {
    let sim = Sim::boot(&Config::default());
    let two = Order::new(1).expect("an order");
    let all = blocks(&sim, 8);
    let odd = all
        .iter()
        .find(|pfn| !pfn.is_aligned(two) && all.contains(&pfn.offset(1)));
    let odd = *odd.expect("two neighbours among eight");
    on_cpu(CpuId::new(0), || sim.free_pages(odd.offset(1), Order::ZERO));
    assert_refused(&sim, 1, || on_cpu(CpuId::new(0), || sim.free_pages(odd, two)));
}

#[test]
fn a_page_that_another_still_refers_to_is_not_taken() {
    let sim = Sim::boot(&Config::default());
    let page = blocks(&sim, 1)[0];
    let process = sim.start(CpuId::new(1)).expect("memory is there");
    sim.sabotage(&process, Damage::Reference(page));
    assert_refused(&sim, 1, || {
        on_cpu(CpuId::new(0), || sim.free_pages(page, Order::ZERO))
    });
}

/// A huge page whose first record has a flag that no free page may have is not broken up and given out again.
#[test]
fn a_huge_page_with_a_forbidden_flag_is_not_taken() {
    for flag in [PageFlags::HWPOISON, PageFlags::LOCKED, PageFlags::WRITEBACK] {
        refuses_huge_page(|head| Damage::SetFlags(head, flag));
    }
}

/// Nor one with a subpage that is still mapped, or that somebody still refers to.
#[test]
fn a_huge_page_with_a_tail_in_use_is_not_taken() {
    refuses_huge_page(|head| Damage::Mapcount(head.offset(3)));
    refuses_huge_page(|head| Damage::Reference(head.offset(3)));
}

fn refuses_huge_page(damage: impl FnOnce(Pfn) -> Damage) {
    let sim = Sim::boot(&Config::default());
    let process = sim.start(CpuId::new(0)).expect("memory is there");
    map(&sim, &process, HUGE * PAGE_BYTES);
    process.write_byte(HOME, 1).expect("writable");
    let addr = VirtAddr::new(HOME);
    let (folio, head) = process
        .run(|| sim.get_user_page(&process, addr, Access::Read))
        .expect("mapped");
    process
        .run(|| sim.munmap(&process, VirtRange::pmd(addr)))
        .expect("no cut");
    let damage = damage(head);
    sim.sabotage(&process, damage);
    assert_refused(&sim, HUGE, || process.run(|| sim.put(folio)));
    assert!(sim.pages().page(head).has(PageFlags::HWPOISON), "{damage:?}");
}

/// I12: a base page must not be mapped in a span whose huge translation another CPU may still have. The only block
/// that is large enough is held back until the flush, so whoever faults in between gets base pages.
#[test]
#[cfg_attr(miri, ignore = "runs until luck has had its chance")]
fn nothing_is_mapped_where_a_huge_page_is_about_to_be_flushed() {
    const ROUNDS: usize = 1500;
    let sim = Sim::boot(&Config {
        frames: 2 * mm::HPAGE_PAGES,
        ..Config::default()
    });
    let process = sim.start(CpuId::new(0)).expect("memory is there");
    let range = VirtRange::user(HOME, PMD_SIZE).expect("user memory");
    let space: &AddressSpace = &process;
    let stop = AtomicBool::new(false);
    let _main = sim.machine().join();
    std::thread::scope(|threads| {
        threads.spawn(|| {
            on_cpu(CpuId::new(1), || {
                let _other = sim.machine().join();
                let addr = VirtAddr::new(HOME + PAGE_BYTES);
                let access = Access::Write;
                // Relaxed: nothing else is told by it.
                while !stop.load(Ordering::Relaxed) {
                    let _ = sim.handle_fault(space, FaultInfo { addr, access });
                }
            })
        });
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..ROUNDS {
                map(&sim, &process, PMD_SIZE);
                let _ = process.write_byte(HOME, 1);
                let dropped = process.run(|| sim.madvise(&process, range, Advice::DontNeed));
                assert_eq!(dropped, Ok(()));
                process.run(|| sim.munmap(&process, range)).expect("no cut");
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    assert!(
        sim.count(Counter::ThpFaultAlloc) > 0,
        "there were huge pages to drop"
    );
    sim.verify(&[&process], &());
}
