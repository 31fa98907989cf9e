//! Every allocation fails once: the k-th of a sequence, for every k until the sequence runs through. Each time the
//! right error comes out, nothing leaks, and the checker finds nothing; and when the same thing is tried again, it works.

use std::collections::BTreeMap;

use mm::{
    Advice, AllocError, Destination, Locking, MapError, MapRequest, Place, Prot, Remains, Remap, VirtAddr,
    VirtRange, VmaFlags, platform::CpuId,
};
use mm_testkit::{
    scenario::{HOME, HUGE},
    sim::{AccessError, Config, MANY_FRAMES, Process, Sim},
};

/// What a step may end with when an allocation fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Failed {
    /// It said so.
    NoMemory(AllocError),
    /// The heap stayed where it was.
    HeapUnmoved,
}

fn addr(page: u64) -> u64 {
    HOME + page * 4096
}

fn range(first: u64, pages: u64) -> VirtRange {
    VirtRange::user(addr(first), pages * 4096).expect("a user range")
}

fn outcome<T>(result: Result<T, MapError>) -> Result<(), Failed> {
    match result {
        Ok(_) => Ok(()),
        Err(MapError::NoMemory(error)) => Err(Failed::NoMemory(error)),
        Err(other) => panic!("not an answer to a failed allocation: {other:?}"),
    }
}

fn access<T>(result: Result<T, AccessError>) -> Result<(), Failed> {
    match result {
        Ok(_) => Ok(()),
        Err(AccessError::NoMemory(error)) => Err(Failed::NoMemory(error)),
        Err(other) => panic!("not an answer to a failed allocation: {other:?}"),
    }
}

type Step = (&'static str, fn(&Sim, &Process<'_>) -> Result<(), Failed>);

fn map(sim: &Sim, process: &Process<'_>, first: u64, pages: u64, place: Place) -> Result<(), Failed> {
    let prot = Prot::READ | Prot::WRITE;
    let request = MapRequest {
        hint: addr(first),
        len: pages * 4096,
        prot,
        place,
        flags: VmaFlags::empty(),
    };
    outcome(sim.mmap(process, request))
}

fn touch(process: &Process<'_>, first: u64, pages: u64) -> Result<(), Failed> {
    (first..first + pages)
        .try_for_each(|page| access(process.write_byte(addr(page), page.to_le_bytes()[0] | 1)))
}

const MAP_OVER: &str = "map over what is there";

/// The demonstration's sequence: what the program does, the pages of its own image, heap and stack included.
const DEMONSTRATION: &[Step] = &[
    ("map the image", |sim, process| {
        map(sim, process, 16 * HUGE + 3, 20, Place::Fixed)
    }),
    ("load the image", |_, process| touch(process, 16 * HUGE + 3, 20)),
    ("protect the text", |sim, process| {
        outcome(sim.mprotect(process, range(16 * HUGE + 3, 8), Prot::READ | Prot::EXEC))
    }),
    ("grow the heap", |sim, process| {
        process.set_brk_base(VirtAddr::new(addr(20 * HUGE)));
        let end = VirtAddr::new(addr(20 * HUGE + 33));
        if sim.brk(process, end) == end {
            Ok(())
        } else {
            Err(Failed::HeapUnmoved)
        }
    }),
    ("use the heap", |_, process| touch(process, 20 * HUGE, 33)),
    ("map 8 MiB", |sim, process| {
        map(sim, process, 0, 4 * HUGE, Place::FixedNoReplace)
    }),
    ("touch them", |_, process| touch(process, 0, 4 * HUGE)),
    ("drop one page", |sim, process| {
        outcome(sim.madvise(process, range(HUGE + HUGE / 2, 1), Advice::DontNeed))
    }),
    ("unmap one page", |sim, process| {
        outcome(sim.munmap(process, range(2 * HUGE + 7, 1)))
    }),
    ("use the dropped page again", |_, process| {
        touch(process, HUGE + HUGE / 2, 1)
    }),
    ("protect the middle of a huge page", |sim, process| {
        outcome(sim.mprotect(process, range(3 * HUGE + 5, 9), Prot::READ))
    }),
    ("advise against huge pages", |sim, process| {
        outcome(sim.madvise(process, range(HUGE / 2, 3), Advice::NoHugePage))
    }),
    (MAP_OVER, |sim, process| {
        map(sim, process, 3 * HUGE - 1, 2, Place::Fixed)
    }),
    ("map anywhere", |sim, process| {
        map(sim, process, 0, HUGE, Place::Hint)
    }),
    ("unmap it all", |sim, process| {
        outcome(sim.munmap(process, range(0, 4 * HUGE)))
    }),
];

fn remap(sim: &Sim, process: &Process<'_>, request: Remap) -> Result<(), Failed> {
    outcome(sim.mremap(process, request))
}

fn moved(first: u64, pages: u64, to: Destination, remains: Remains) -> Remap {
    Remap {
        addr: addr(first),
        old_len: pages * 4096,
        new_len: pages * 4096,
        destination: to,
        remains,
    }
}

/// What else a program does with its areas.
const AREAS: &[Step] = &[
    ("map 6 MiB", |sim, process| {
        map(sim, process, 0, 3 * HUGE, Place::Fixed)
    }),
    ("touch them", |_, process| touch(process, 0, 3 * HUGE)),
    ("free a part", |sim, process| {
        outcome(sim.madvise(process, range(3, 5), Advice::Free))
    }),
    ("advise a part", |sim, process| {
        outcome(sim.madvise(process, range(HUGE / 2, 2), Advice::DontFork))
    }),
    ("advise it back", |sim, process| {
        outcome(sim.madvise(process, range(HUGE / 2, 2), Advice::DoFork))
    }),
    ("lock a part", |sim, process| {
        outcome(sim.mlock(process, range(HUGE + 1, 3), Locking::Whole))
    }),
    ("unlock it", |sim, process| {
        outcome(sim.mlock(process, range(0, 3 * HUGE), Locking::Unlocked))
    }),
    ("move a part", |sim, process| {
        let to = Destination::Fixed(addr(9 * HUGE + 5));
        remap(sim, process, moved(2 * HUGE - 4, 9, to, Remains::Nothing))
    }),
    ("move a part and leave its area", |sim, process| {
        let to = Destination::Fixed(addr(12 * HUGE + 1));
        remap(sim, process, moved(2 * HUGE + 9, 7, to, Remains::EmptyArea))
    }),
    ("populate", |sim, process| {
        outcome(sim.madvise(process, range(2 * HUGE + 9, 7), Advice::PopulateWrite))
    }),
    ("grow elsewhere", |sim, process| {
        let wish = moved(9 * HUGE + 6, 4, Destination::Anywhere, Remains::Nothing);
        remap(
            sim,
            process,
            Remap {
                new_len: 9 * 4096,
                ..wish
            },
        )
    }),
    ("drop what is free", |sim, process| {
        outcome(sim.madvise(process, range(0, HUGE), Advice::PageOut))
    }),
];

/// Runs `steps` with the `nth` allocation failing; a step that fails is tried again, once. Returns the step that failed
/// and how, or `None` if no allocation was the `nth`.
fn run_with_failure(steps: &[Step], nth: u64) -> (bool, Option<(&'static str, Failed)>) {
    let sim = Sim::boot(&Config {
        frames: MANY_FRAMES,
        nr_cpus: 1,
        holes: Vec::new(),
    });
    let before = sim.nr_free_pages();
    sim.inject_alloc_failure(Some(nth));
    let process = match sim.start(CpuId::new(0)) {
        Ok(process) => process,
        Err(error) => {
            sim.verify(&[], &());
            assert_eq!(
                sim.nr_free_pages(),
                before,
                "leaked when no address space could be made"
            );
            return (true, Some(("start the process", Failed::NoMemory(error))));
        }
    };
    let mut failure = None;
    for (name, step) in steps {
        let areas = process.nr_areas();
        if let Err(failed) = step(&sim, &process) {
            // What a fixed mapping was to replace may be gone.
            let replaced = *name == MAP_OVER;
            assert!(
                replaced || process.nr_areas() == areas,
                "{name}: failed, and left a cut behind"
            );
            assert!(
                failure.is_none(),
                "{name}: a second failure, {failed:?}, after {failure:?}"
            );
            assert!(
                !sim.alloc_failure_pending(),
                "{name}: {failed:?} although no allocation failed"
            );
            failure = Some((*name, failed));
            sim.verify(&[&process], &());
            assert_eq!(
                step(&sim, &process),
                Ok(()),
                "{name}: does not work when it is tried again"
            );
        }
        if !cfg!(miri) {
            sim.verify(&[&process], &());
        }
    }
    let injected = !sim.alloc_failure_pending();
    sim.inject_alloc_failure(None);
    drop(process);
    sim.verify(&[], &());
    assert_eq!(sim.nr_free_pages(), before, "pages leaked after {failure:?}");
    (injected, failure)
}

#[test]
fn every_allocation_of_the_demonstration_may_fail() {
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    let mut survived = 0;
    // Step by step is slow: there only every seventh is tried.
    for nth in (1..).step_by(if cfg!(miri) { 7 } else { 1 }) {
        let (injected, failure) = run_with_failure(DEMONSTRATION, nth);
        if !injected {
            assert_eq!(failure, None);
            break;
        }
        match failure {
            Some((step, _)) => *seen.entry(step).or_default() += 1,
            // A huge page that is not to be had is replaced by base pages: nobody notices.
            None => survived += 1,
        }
        assert!(nth < 100_000, "the sequence never runs through");
    }
    println!("failed: {seen:?}; survived by falling back: {survived}");
    if cfg!(miri) {
        return;
    }
    assert!(survived >= 4, "each huge page can be done without: {survived}");
    for step in [
        "start the process",
        "load the image",
        "grow the heap",
        "touch them",
        "unmap one page",
    ] {
        assert!(seen.contains_key(step), "nothing failed in: {step}");
    }
}

/// One page, one huge page, and children until memory ends: every count is exact at every size, the fork that is refused
/// leaves nothing, and when all are gone the pages are the parent's alone again.
#[test]
fn ten_thousand_children_share_a_page() {
    const CHILDREN: usize = if cfg!(miri) { 20 } else { 10_000 };
    // Four tables each, and their records.
    let sim = Sim::boot(&Config {
        frames: u32::try_from(CHILDREN * 5 + 4096).expect("few enough"),
        nr_cpus: 1,
        holes: Vec::new(),
    });
    let before = sim.nr_free_pages();
    let parent = sim.start(CpuId::new(0)).expect("memory is there");
    map(&sim, &parent, 0, HUGE, Place::Fixed).expect("memory is there");
    touch(&parent, 0, HUGE).expect("memory is there");
    map(&sim, &parent, HUGE, 1, Place::Fixed).expect("memory is there");
    touch(&parent, HUGE, 1).expect("memory is there");
    let frame = |page| {
        let word = mm::report::pagemap(&*sim, &parent, VirtAddr::new(addr(page)));
        mm::Pfn::new(u32::try_from(word & ((1 << 55) - 1)).expect("a frame number"))
    };
    let pages = [frame(0), frame(HUGE)].map(|pfn| sim.pages().page(pfn));
    let mut children = Vec::new();
    let refused = loop {
        match parent.run(|| sim.fork_space(&parent)) {
            Ok(child) => children.push(child),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, MapError::NoMemory(_)), "{refused:?}");
    assert!(children.len() >= CHILDREN, "only {} children", children.len());
    let users = u32::try_from(children.len() + 1).expect("few enough");
    for page in pages {
        assert_eq!((page.mapcount(), page.refs_hint()), (users, users), "{page:?}");
    }
    for child in children.drain(..) {
        parent.run(|| sim.put_space(child));
    }
    for page in pages {
        assert_eq!((page.mapcount(), page.refs_hint()), (1, 1), "{page:?}");
    }
    sim.verify(&[&parent], &());
    touch(&parent, 0, 1).expect("nothing is to be copied");
    touch(&parent, HUGE, 1).expect("nothing is to be copied");
    assert_eq!([frame(0), frame(HUGE)], pages.map(|page| page.pfn()));
    drop(parent);
    sim.verify(&[], &());
    assert_eq!(sim.nr_free_pages(), before);
}

#[test]
#[cfg_attr(miri, ignore = "takes long")]
fn every_allocation_about_areas_may_fail() {
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    for nth in 1.. {
        let (injected, failure) = run_with_failure(AREAS, nth);
        if !injected {
            assert_eq!(failure, None);
            break;
        }
        if let Some((step, _)) = failure {
            *seen.entry(step).or_default() += 1;
        }
        assert!(nth < 100_000, "the sequence never runs through");
    }
    println!("failed: {seen:?}");
    for step in [
        "advise a part",
        "lock a part",
        "move a part",
        "populate",
        "grow elsewhere",
    ] {
        assert!(seen.contains_key(step), "nothing failed in: {step}");
    }
}
