//! `mlock` and relatives: which pages are locked into memory, and what is counted. The checker compares the unevictable
//! list with the marks and the counters after every step.

use mm::{
    Access, Advice, Counter, FaultInfo, Limit, Locking, MapError, MapRequest, PAGE_BYTES, Place, Prot,
    VirtAddr, VirtRange, VmFault, VmaFlags, platform::CpuId,
};
use mm_testkit::{
    scenario::{HOME, HUGE},
    sim::{Config, Process, Sim},
};

const PAGE: u64 = PAGE_BYTES;
const RW: Prot = Prot::READ.union(Prot::WRITE);

fn at(page: u64) -> u64 {
    HOME + page * PAGE
}

fn range(page: u64, pages: u64) -> VirtRange {
    VirtRange::user(at(page), pages * PAGE).expect("user memory")
}

fn with_process(f: impl FnOnce(&Sim, &Process<'_>)) {
    let sim = Sim::boot(&Config::default());
    {
        let process = sim.start(CpuId::new(0)).expect("memory is there");
        f(&sim, &process);
        sim.verify(&[&process], &());
    }
    sim.verify(&[], &());
    assert_eq!(locked(&sim), 0);
}

fn map_with(
    sim: &Sim,
    process: &Process<'_>,
    page: u64,
    pages: u64,
    flags: VmaFlags,
) -> Result<(), MapError> {
    let request = MapRequest {
        hint: at(page),
        len: pages * PAGE,
        prot: RW,
        place: Place::Fixed,
        flags,
    };
    process.run(|| sim.mmap(process, request)).map(drop)
}

fn map(sim: &Sim, process: &Process<'_>, page: u64, pages: u64) {
    assert_eq!(map_with(sim, process, page, pages, VmaFlags::empty()), Ok(()));
}

fn fill(process: &Process<'_>, page: u64, pages: u64) {
    (page..page + pages).for_each(|page| process.write_byte(at(page), 7).expect("writable"));
}

fn lock(sim: &Sim, process: &Process<'_>, page: u64, pages: u64, locking: Locking) -> Result<(), MapError> {
    let result = process.run(|| sim.mlock(process, range(page, pages), locking));
    sim.verify(&[process], &());
    result
}

/// Base pages that are locked now.
fn locked(sim: &Sim) -> u64 {
    assert_eq!(sim.count(Counter::NrMlock), sim.count(Counter::NrUnevictable));
    sim.count(Counter::NrMlock)
}

#[test]
fn pages_of_a_locked_area_are_unevictable() {
    with_process(|sim, process| {
        map(sim, process, 0, 16);
        fill(process, 0, 4);
        assert_eq!(lock(sim, process, 2, 6, Locking::Whole), Ok(()));
        assert_eq!(
            (locked(sim), process.locked_pages(), process.nr_areas()),
            (2, 6, 3)
        );
        process
            .run(|| sim.populate_areas(process, range(2, 6)))
            .expect("memory is there");
        assert_eq!(locked(sim), 6);
        // Faults outside do not lock, faults inside do.
        fill(process, 8, 4);
        let drop_locked = process.run(|| sim.madvise(process, range(4, 2), Advice::DontNeedLocked));
        assert_eq!((drop_locked, locked(sim)), (Ok(()), 4));
        fill(process, 4, 2);
        assert_eq!(locked(sim), 6);
        assert_eq!(lock(sim, process, 0, 16, Locking::Unlocked), Ok(()));
        assert_eq!(
            (locked(sim), process.locked_pages(), process.nr_areas()),
            (0, 0, 1)
        );
        assert_eq!(sim.count(Counter::UnevictableMlocked), 8);
    });
}

#[test]
fn huge_page_is_locked_while_one_entry_maps_it() {
    with_process(|sim, process| {
        map(sim, process, 0, HUGE);
        fill(process, 0, HUGE);
        assert_eq!(lock(sim, process, 0, HUGE, Locking::Whole), Ok(()));
        assert_eq!(locked(sim), HUGE);
        // Mapped by PTEs no one entry could let go of it.
        process.run(|| sim.split_huge_pmd(process, VirtAddr::new(at(0))));
        sim.verify(&[process], &());
        assert_eq!((locked(sim), process.locked_pages()), (0, HUGE));
        // Its parts as pages of their own are locked again.
        let (folio, _) = sim
            .get_user_page(process, VirtAddr::new(at(0)), Access::Read)
            .expect("mapped");
        let guard = sim.try_lock_folio(&folio).expect("nobody holds it");
        let (folio, guard) = sim
            .split_folio(folio, guard, 0)
            .map_err(|(error, ..)| error)
            .expect("alone");
        drop(guard);
        sim.put(folio);
        sim.verify(&[process], &());
        assert_eq!(locked(sim), HUGE);
    });
}

#[test]
fn unaligned_lock_cuts_area_and_huge_page() {
    with_process(|sim, process| {
        map(sim, process, 0, 2 * HUGE);
        fill(process, 0, 2 * HUGE);
        assert_eq!(lock(sim, process, HUGE - 3, HUGE, Locking::Whole), Ok(()));
        assert_eq!(sim.count(Counter::ThpSplitPmd), 2);
        assert_eq!((locked(sim), process.locked_pages()), (0, HUGE));
    });
}

#[test]
fn locked_on_fault_means_what_faults_bring() {
    with_process(|sim, process| {
        map(sim, process, 0, 8);
        fill(process, 0, 2);
        assert_eq!(lock(sim, process, 0, 8, Locking::OnFault), Ok(()));
        process
            .run(|| sim.populate_areas(process, range(0, 8)))
            .expect("nothing to do");
        assert_eq!((locked(sim), process.rss_pages()), (2, 2));
        fill(process, 5, 1);
        assert_eq!(locked(sim), 3);
        // Nothing that is locked is dropped.
        for advice in [Advice::DontNeed, Advice::Free, Advice::Cold, Advice::PageOut] {
            let advised = process.run(|| sim.madvise(process, range(0, 8), advice));
            assert_eq!(advised, Err(MapError::Invalid), "{advice:?}");
        }
    });
}

#[test]
fn child_locks_nothing_and_copies_are_locked() {
    let sim = Sim::boot(&Config::default());
    {
        let parent = sim.start(CpuId::new(0)).expect("memory is there");
        map(&sim, &parent, 0, HUGE + 8);
        fill(&parent, 0, HUGE + 8);
        assert_eq!(lock(&sim, &parent, 0, HUGE + 8, Locking::Whole), Ok(()));
        assert_eq!(locked(&sim), HUGE + 8);
        let child = parent.fork(CpuId::new(1)).expect("memory is there");
        sim.verify(&[&parent, &child], &());
        assert_eq!((child.locked_pages(), locked(&sim)), (0, HUGE + 8));
        // The parent gets a copy, and locks that instead.
        fill(&parent, HUGE + 1, 1);
        sim.verify(&[&parent, &child], &());
        assert_eq!(locked(&sim), HUGE + 8);
        // What the parent unmaps stays with the child, unlocked.
        parent
            .run(|| sim.munmap(&parent, range(0, HUGE + 4)))
            .expect("memory is there");
        sim.verify(&[&parent, &child], &());
        assert_eq!((locked(&sim), parent.locked_pages()), (4, 4));
    }
    sim.verify(&[], &());
    assert_eq!(locked(&sim), 0);
}

#[test]
fn holes_and_limits_refuse() {
    with_process(|sim, process| {
        map(sim, process, 0, 4);
        map(sim, process, 6, 4);
        assert_eq!(lock(sim, process, 2, 6, Locking::Whole), Err(MapError::NotMapped));
        assert_eq!(process.locked_pages(), 2, "up to the hole");
        assert_eq!(lock(sim, process, 5, 3, Locking::Whole), Err(MapError::NotMapped));
        assert_eq!(process.locked_pages(), 2);
        process.set_limit(Limit::Locked, 5 * PAGE);
        assert_eq!(lock(sim, process, 6, 4, Locking::Whole), Err(MapError::NoSpace));
        assert_eq!(lock(sim, process, 6, 3, Locking::Whole), Ok(()));
        // What is locked already does not count twice.
        assert_eq!(lock(sim, process, 6, 3, Locking::OnFault), Ok(()));
        let locked = map_with(sim, process, 20, 1, VmaFlags::LOCKED);
        assert_eq!(locked, Err(MapError::LockLimit));
        let all = process.run(|| sim.mlock_all(process, Some(Locking::Whole), Locking::Whole));
        assert_eq!(all, Err(MapError::NoSpace));
        assert_eq!(lock(sim, process, 0, 4, Locking::Unlocked), Ok(()));
        let locked = map_with(sim, process, 20, 1, VmaFlags::LOCKED);
        assert_eq!(locked, Ok(()));
        assert_eq!(
            (process.locked_pages(), process.rss_pages()),
            (4, 1),
            "and faulted in"
        );
    });
}

#[test]
fn what_comes_later_is_locked_too() {
    with_process(|sim, process| {
        process.set_brk_base(VirtAddr::new(at(64)));
        map(sim, process, 0, 4);
        let all = process.run(|| sim.mlock_all(process, Some(Locking::Whole), Locking::Whole));
        assert_eq!(all, Ok(()));
        process.run(|| sim.populate_all_locked(process));
        assert_eq!((locked(sim), process.rss_pages()), (4, 4));
        map(sim, process, 8, 4);
        assert_eq!((locked(sim), process.rss_pages()), (8, 8));
        let end = VirtAddr::new(at(67));
        assert_eq!(process.run(|| sim.brk(process, end)), end);
        assert_eq!((locked(sim), process.locked_pages()), (11, 11));
        let none = process.run(|| sim.mlock_all(process, Some(Locking::Unlocked), Locking::Unlocked));
        assert_eq!((none, locked(sim), process.locked_pages()), (Ok(()), 0, 0));
        map(sim, process, 16, 4);
        assert_eq!(process.rss_pages(), 11);
    });
}

#[test]
fn locked_stack_grows_within_its_limit() {
    with_process(|sim, process| {
        let flags = VmaFlags::GROWSDOWN | VmaFlags::LOCKED;
        assert_eq!(map_with(sim, process, 600, 2, flags), Ok(()));
        process.set_limit(Limit::Locked, 4 * PAGE);
        let push = |page| {
            let (addr, access) = (VirtAddr::new(at(page)), Access::Write);
            process.run(|| sim.handle_fault(process, FaultInfo { addr, access }))
        };
        assert_eq!(push(598), VmFault::Done);
        assert_eq!((process.locked_pages(), locked(sim)), (4, 3));
        assert!(matches!(push(597), VmFault::SigSegv(_)));
    });
}

#[test]
fn what_a_locked_area_drops_is_not_locked_elsewhere() {
    with_process(|sim, process| {
        map(sim, process, 0, 8);
        fill(process, 0, 8);
        assert_eq!(lock(sim, process, 0, 8, Locking::Whole), Ok(()));
        let child = process.fork(CpuId::new(1)).expect("room");
        assert_eq!(locked(sim), 8);
        let dropped = process.run(|| sim.madvise(process, range(2, 4), Advice::DontNeedLocked));
        assert_eq!((dropped, locked(sim)), (Ok(()), 4));
        sim.verify(&[process, &child], &());
    });
}
