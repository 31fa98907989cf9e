//! Getting at a mapped page without locks: what it gives, what it refuses, what it costs (S9, S10, C13, C17).

use mm::{
    Advice, MapRequest, Pfn, Place, Prot, USER_END, VirtAddr, VirtRange, VmaFlags, fault::Access,
    platform::CpuId, trace::Event,
};
use mm_testkit::{
    machine::{entry_bits, on_cpu},
    scenario::{HOME, HUGE},
    sim::{Config, Process, Sim},
};

const PAGE: u64 = 4096;
/// The bit of an entry whose page is being moved.
const MIGRATION: u64 = 1 << 10;
const WHOLE: u64 = HUGE * PAGE;

fn cpu(number: u8) -> CpuId {
    CpuId::new(number)
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(HOME + page * PAGE)
}

fn machine() -> Sim {
    Sim::boot(&Config {
        nr_cpus: 3,
        ..Config::default()
    })
}

/// A process on CPU 0 that has written one huge page, page by page its number.
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
    for page in 0..HUGE {
        let byte = u8::try_from(page % 251).expect("small");
        process.write_byte(at(page).as_u64(), byte).expect("writable");
    }
    process
}

fn frame(sim: &Sim, process: &Process<'_>, page: u64) -> Pfn {
    let word = mm::report::pagemap(sim, process, at(page));
    assert_ne!(word >> 63, 0, "page {page} is present");
    Pfn::new(u32::try_from(word & ((1 << 55) - 1)).expect("a frame number"))
}

/// The frame that the fast way finds; the reference is given back.
fn fast(sim: &Sim, process: &Process<'_>, addr: VirtAddr, access: Access) -> Option<Pfn> {
    process.run(|| {
        let (folio, pfn) = sim.get_user_page_fast(process, addr, access)?;
        sim.put(folio);
        Some(pfn)
    })
}

fn split_pmd(sim: &Sim, process: &Process<'_>) {
    process.run(|| sim.split_huge_pmd(process, at(0)));
}

#[test]
fn s10_any_subpage_costs_one_reference_on_the_head() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    for mapped_by in ["PMD", "PTE"] {
        let before = sim.pages().page(head).refs_hint();
        for page in [0, 7, HUGE - 1] {
            let (found, events) = sim
                .machine()
                .events_of(|| a.run(|| sim.get_user_page_fast(&a, at(page), Access::Write)));
            let (folio, pfn) = found.expect("mapped, and written before");
            assert_eq!(pfn, frame(&sim, &a, page), "page {page} by {mapped_by}");
            assert_eq!(folio.pfn(), head);
            assert_eq!(sim.pages().page(head).refs_hint(), before + 1);
            assert!(
                matches!(events[..], [Event::RefMod { pfn, val: 1, .. }] if pfn == head),
                "one change of one count, by {mapped_by}: {events:?}"
            );
            if page > 0 && mapped_by == "PMD" {
                assert_eq!(sim.pages().page(pfn).refs_hint(), 0, "a tail's count stays 0");
            }
            a.run(|| sim.put(folio));
        }
        sim.verify(&[&a], &());
        split_pmd(&sim, &a);
    }
}

#[test]
fn what_would_need_a_change_is_refused() {
    let sim = machine();
    let a = one_thp(&sim);
    let mut looked_at = 0;
    for mapped_by in ["PMD", "PTE"] {
        let refuses = |what: &str, access, edit: fn(u64) -> u64| {
            let entry = sim.machine().entry(a.root(), HOME);
            assert!(
                fast(&sim, &a, at(0), access).is_some(),
                "before: {what} by {mapped_by}"
            );
            sim.machine().edit_entry(a.root(), HOME, edit);
            let found = fast(&sim, &a, at(0), access);
            sim.machine().edit_entry(a.root(), HOME, |_| entry);
            assert_eq!(found, None, "{what} by {mapped_by}");
        };
        refuses("nothing there", Access::Read, |_| 0);
        refuses("not accessed lately", Access::Read, |entry| {
            entry & !entry_bits::ACCESSED
        });
        refuses("clean", Access::Write, |entry| entry & !entry_bits::DIRTY);
        refuses("not writable", Access::Write, |entry| entry & !entry_bits::WRITE);
        refuses("hidden from the hardware", Access::Read, |entry| {
            entry & !entry_bits::PRESENT
        });
        refuses("being moved", Access::Read, |entry| {
            entry & !(entry_bits::PRESENT | entry_bits::HUGE) | MIGRATION
        });
        assert_eq!(fast(&sim, &a, at(0), Access::Exec), None, "not executable");
        looked_at += 1;
        split_pmd(&sim, &a);
    }
    assert_eq!(looked_at, 2);
    assert_eq!(fast(&sim, &a, at(HUGE), Access::Read), None, "no area there");
    assert_eq!(fast(&sim, &a, VirtAddr::new(USER_END), Access::Read), None);
    sim.verify(&[&a], &());
}

/// Nobody waits for the walks of a CPU that the space does not count among its own.
#[test]
fn a_cpu_that_does_not_run_the_space_takes_the_slow_way() {
    let sim = machine();
    let a = one_thp(&sim);
    let elsewhere = on_cpu(cpu(1), || sim.get_user_page_fast(&a, at(3), Access::Read));
    assert!(elsewhere.is_none());
    let (folio, pfn) = on_cpu(cpu(1), || sim.get_user_page(&a, at(3), Access::Read)).expect("mapped");
    assert_eq!(pfn, frame(&sim, &a, 3));
    sim.put(folio);
}

/// T9.2 as far as one step at a time shows it: while a PMD is hidden for the flush of its split, the fast way finds
/// nothing; before and after, the same page.
#[test]
fn t9_2_while_a_pmd_is_split_it_falls_back() {
    let sim = machine();
    let a = one_thp(&sim);
    let page = frame(&sim, &a, 7);
    assert_eq!(fast(&sim, &a, at(7), Access::Read), Some(page));
    let held = sim.machine().hold_next_flush();
    std::thread::scope(|scope| {
        let splitter = scope.spawn(|| {
            let _thread = sim.machine().join();
            on_cpu(cpu(2), || sim.split_huge_pmd(&a, at(0)));
        });
        held.wait();
        assert_eq!(
            fast(&sim, &a, at(7), Access::Read),
            None,
            "neither there nor gone"
        );
        drop(held);
        splitter.join().expect("no panic");
    });
    assert_eq!(fast(&sim, &a, at(7), Access::Read), Some(page));
    sim.verify(&[&a], &());
}

/// C17: pins taken while the parent forks belong to pages that stay the parent's own.
#[test]
fn c17_what_is_pinned_stays_the_parents() {
    let sim = machine();
    let a = one_thp(&sim);
    let pin = a
        .run(|| sim.pin_user_page(&a, at(7), Access::Write))
        .expect("mapped");
    let b = a.fork(cpu(1)).expect("memory is there");
    a.write_byte(at(7).as_u64(), 0xaa).expect("writable");
    assert_eq!(frame(&sim, &a, 7), pin.pfn(), "the write did not go to a copy");
    assert_ne!(frame(&sim, &b, 7), pin.pfn(), "the child has the copy");
    assert_eq!(b.read_byte(at(7).as_u64()), Ok(7));
    sim.unpin(pin);
    sim.verify(&[&a, &b], &());
}

/// Two CPUs: one looks pages up without locks, the other splits the PMD, drops pages and maps them again. Whatever is
/// found is what the address maps or mapped during the walk: never a page that somebody else has got meanwhile, so its
/// bytes are zeroes or the page's own number.
#[test]
fn what_is_found_while_mappings_change_is_never_somebody_elses() {
    let sim = machine();
    sim.machine().allow_stale_use();
    let mut a = one_thp(&sim);
    let rounds = if cfg!(miri) { 3 } else { 300 };
    a.run_on(cpu(0));
    a.space().enter(cpu(1));
    let (found, done) = (mm::sync::AtomicU32::new(0), mm::sync::AtomicU32::new(0));
    std::thread::scope(|scope| {
        let walker = scope.spawn(|| {
            let _thread = sim.machine().join();
            on_cpu(cpu(1), || {
                let mut page = 0;
                while done.load_acquire() == 0 {
                    page = (page + 7) % HUGE;
                    let Some((folio, pfn)) = sim.get_user_page_fast(&a, at(page), Access::Read) else {
                        continue;
                    };
                    let byte = sim.machine().byte(pfn.start().as_u64());
                    let own = u8::try_from(page % 251).expect("small");
                    assert!(byte == own || byte == 0, "page {page}: found {byte}");
                    sim.put(folio);
                    found.fetch_add_relaxed(1);
                }
            });
        });
        let mut round = 0;
        // Until both had their turns.
        while round < rounds || found.load_relaxed() < 100 && !walker.is_finished() {
            let first = round * 11 % (HUGE - 1);
            let range = VirtRange::user(at(first).as_u64(), 2 * PAGE).expect("user memory");
            let dropped = a.run(|| sim.madvise(&a, range, Advice::DontNeed));
            assert_eq!(dropped, Ok(()));
            for page in [first, first + 1] {
                let byte = u8::try_from(page % 251).expect("small");
                a.write_byte(at(page).as_u64(), byte).expect("writable");
            }
            round += 1;
        }
        done.store_release(1);
        walker.join().expect("no panic");
    });
    a.space().leave(cpu(1));
    sim.verify(&[&a], &());
}
