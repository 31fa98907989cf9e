//! Areas: where they are placed, how stacks and the heap grow, what is joined and cut, and what it costs. What is
//! expected is what Linux 6.1 does.

use std::time::{Duration, Instant};

use mm::{
    Advice, Limit, MapError, MapRequest, PAGE_BYTES, Place, Prot, SegvReason, USER_END, VirtAddr, VirtRange,
    VmaFlags,
    addr::STACK_GUARD_BYTES,
    address_space::{MAX_AREAS, MIN_ADDR},
    platform::CpuId,
};
use mm_testkit::{
    scenario::{HOME, HUGE},
    sim::{AccessError, Config, Process, Sim},
};
use proptest::prelude::*;

const PAGE: u64 = PAGE_BYTES;
const RW: Prot = Prot::READ.union(Prot::WRITE);
const NOT_MAPPED: Result<(), AccessError> = Err(AccessError::Segv(SegvReason::NotMapped));

fn with_process(f: impl FnOnce(&Sim, &Process<'_>)) {
    let sim = Sim::boot(&Config::default());
    {
        let process = sim.start(CpuId::new(0)).expect("memory is there");
        f(&sim, &process);
        sim.verify(&[&process], &());
    }
    sim.verify(&[], &());
}

fn range(addr: u64, len: u64) -> VirtRange {
    VirtRange::user(addr, len).expect("user memory")
}

fn map_with(
    process: &Process<'_>,
    sim: &Sim,
    (hint, len): (u64, u64),
    place: Place,
    flags: VmaFlags,
) -> Result<u64, MapError> {
    let request = MapRequest {
        hint,
        len,
        prot: RW,
        place,
        flags,
    };
    process.run(|| sim.mmap(process, request)).map(VirtAddr::as_u64)
}

fn map_at(process: &Process<'_>, sim: &Sim, addr: u64, len: u64) {
    let placed = map_with(process, sim, (addr, len), Place::Fixed, VmaFlags::empty());
    assert_eq!(placed, Ok(addr));
}

fn map_near(process: &Process<'_>, sim: &Sim, hint: u64, len: u64) -> Result<u64, MapError> {
    map_with(process, sim, (hint, len), Place::Hint, VmaFlags::empty())
}

fn map_stack_at(process: &Process<'_>, sim: &Sim, addr: u64, len: u64) {
    let placed = map_with(process, sim, (addr, len), Place::Fixed, VmaFlags::GROWSDOWN);
    assert_eq!(placed, Ok(addr));
}

fn unmap(process: &Process<'_>, sim: &Sim, addr: u64, len: u64) -> Result<(), MapError> {
    process.run(|| sim.munmap(process, range(addr, len)))
}

fn protect(process: &Process<'_>, sim: &Sim, addr: u64, prot: Prot) {
    let changed = process.run(|| sim.mprotect(process, range(addr, PAGE), prot));
    assert_eq!(changed, Ok(()));
}

// Hints.

#[test]
fn a_hint_means_the_page_it_lies_in() {
    with_process(|sim, process| {
        assert_eq!(map_near(process, sim, HOME + 0x123, PAGE), Ok(HOME));
        assert_eq!(
            map_near(process, sim, HOME + 3 * PAGE - 1, PAGE),
            Ok(HOME + 2 * PAGE)
        );
    });
}

#[test]
fn a_hint_below_the_lowest_address_means_that_address() {
    with_process(|sim, process| {
        assert_eq!(map_near(process, sim, PAGE, PAGE), Ok(MIN_ADDR));
        // Taken now: as high as there is room.
        assert_eq!(map_near(process, sim, PAGE, PAGE), Ok(USER_END - PAGE));
    });
}

#[test]
fn a_hint_inside_the_first_page_is_none() {
    with_process(|sim, process| {
        assert_eq!(map_near(process, sim, PAGE - 1, PAGE), Ok(USER_END - PAGE));
    });
}

#[test]
fn a_hint_that_does_not_fit_is_only_a_hint() {
    with_process(|sim, process| {
        map_at(process, sim, HOME + PAGE, PAGE);
        assert_eq!(map_near(process, sim, HOME, 2 * PAGE), Ok(USER_END - 2 * PAGE));
        assert_eq!(
            map_near(process, sim, USER_END - PAGE, 2 * PAGE),
            Ok(USER_END - 4 * PAGE)
        );
    });
}

// The room below a stack.

#[test]
fn nothing_is_placed_in_the_guard_below_a_stack() {
    with_process(|sim, process| {
        let stack = map_with(process, sim, (0, 4 * PAGE), Place::Hint, VmaFlags::GROWSDOWN);
        assert_eq!(stack, Ok(USER_END - 4 * PAGE));
        let stack = USER_END - 4 * PAGE;
        let next = map_near(process, sim, 0, 4 * PAGE);
        assert_eq!(next, Ok(stack - STACK_GUARD_BYTES - 4 * PAGE));
        // So a program that runs over the low end of its stack is told, and writes into nobody's memory.
        assert_eq!(process.write_byte(stack - 5 * PAGE, 1), NOT_MAPPED);
        // Below an area that does not grow nothing stays free.
        assert_eq!(
            map_near(process, sim, 0, PAGE),
            Ok(stack - STACK_GUARD_BYTES - 5 * PAGE)
        );
    });
}

#[test]
fn a_hint_into_the_guard_below_a_stack_is_not_followed() {
    let stack = HOME + 2 * STACK_GUARD_BYTES;
    with_process(|sim, process| {
        map_stack_at(process, sim, stack, PAGE);
        let highest_free = stack - STACK_GUARD_BYTES - PAGE;
        assert_eq!(
            map_near(process, sim, highest_free + PAGE, PAGE),
            Ok(USER_END - PAGE)
        );
        assert_eq!(map_near(process, sim, highest_free, PAGE), Ok(highest_free));
    });
}

#[test]
fn a_fixed_place_may_be_in_the_guard_below_a_stack() {
    let stack = HOME + 2 * STACK_GUARD_BYTES;
    with_process(|sim, process| {
        map_stack_at(process, sim, stack, PAGE);
        map_at(process, sim, stack - PAGE, PAGE);
        let no_replace = map_with(
            process,
            sim,
            (stack - 3 * PAGE, PAGE),
            Place::FixedNoReplace,
            VmaFlags::empty(),
        );
        assert_eq!(no_replace, Ok(stack - 3 * PAGE));
    });
}

/// The guard moves along with the stack, and goes with it.
#[test]
fn the_search_for_room_follows_a_stack() {
    let stack = USER_END - 8 * PAGE;
    with_process(|sim, process| {
        map_stack_at(process, sim, stack, PAGE);
        // Above the stack is room for 7 pages; 8 go below its guard.
        let len = 8 * PAGE;
        let placed = map_near(process, sim, 0, len).expect("there is room");
        assert_eq!(placed, stack - STACK_GUARD_BYTES - len);
        assert_eq!(unmap(process, sim, placed, len), Ok(()));
        assert_eq!(process.write_byte(stack - 2 * PAGE, 1), Ok(()));
        let placed = map_near(process, sim, 0, len).expect("there is room");
        assert_eq!(placed, stack - 2 * PAGE - STACK_GUARD_BYTES - len);
        assert_eq!(unmap(process, sim, placed, len), Ok(()));
        assert_eq!(unmap(process, sim, stack - 2 * PAGE, 3 * PAGE), Ok(()));
        assert_eq!(map_near(process, sim, 0, len), Ok(USER_END - len));
    });
}

#[test]
fn the_heap_does_not_grow_into_the_guard_below_a_stack() {
    let stack = HOME + STACK_GUARD_BYTES + 8 * PAGE;
    with_process(|sim, process| {
        process.set_brk_base(VirtAddr::new(HOME));
        map_stack_at(process, sim, stack, PAGE);
        assert_eq!(heap_after(process, sim, 8 * PAGE), 0);
        assert_eq!(heap_after(process, sim, 7 * PAGE), 7 * PAGE);
    });
}

/// A page stays free above the heap.
#[test]
fn the_heap_keeps_a_page_away_from_what_lies_above() {
    with_process(|sim, process| {
        process.set_brk_base(VirtAddr::new(HOME));
        map_at(process, sim, HOME + 8 * PAGE, PAGE);
        assert_eq!(heap_after(process, sim, 8 * PAGE), 0);
        assert_eq!(heap_after(process, sim, 7 * PAGE - 3), 7 * PAGE - 3);
        // Within the last page nothing has to be asked.
        assert_eq!(heap_after(process, sim, 7 * PAGE), 7 * PAGE);
        assert_eq!(heap_after(process, sim, 7 * PAGE + 1), 7 * PAGE);
    });
}

/// Asks for a heap of `bytes`; returns how large it is then.
fn heap_after(process: &Process<'_>, sim: &Sim, bytes: u64) -> u64 {
    process.run(|| sim.brk(process, VirtAddr::new(HOME + bytes))) - VirtAddr::new(HOME)
}

#[test]
fn the_heap_may_end_where_user_space_ends() {
    with_process(|sim, process| {
        let (base, end) = (VirtAddr::new(USER_END - 3 * PAGE), VirtAddr::new(USER_END));
        process.set_brk_base(base);
        assert_eq!(process.run(|| sim.brk(process, end)), end);
        assert_eq!(process.write_byte(USER_END - 1, 1), Ok(()));
    });
}

// Growing stacks.

#[test]
fn a_stack_grows_to_the_lowest_address_and_never_over_address_zero() {
    with_process(|sim, process| {
        let stack = MIN_ADDR + 16 * PAGE;
        map_stack_at(process, sim, stack, PAGE);
        assert_eq!(process.read_byte(0).map(drop), NOT_MAPPED);
        assert_eq!(process.write_byte(MIN_ADDR - 1, 1), NOT_MAPPED);
        assert_eq!(process.total_vm_pages(), 1, "a refused access extends nothing");
        assert_eq!(process.write_byte(MIN_ADDR, 1), Ok(()));
        assert_eq!(process.total_vm_pages(), 17);
        assert_eq!(process.read_byte(MIN_ADDR - PAGE).map(drop), NOT_MAPPED);
    });
}

#[test]
fn a_stack_keeps_its_distance_from_memory_below() {
    let (below, stack) = (HOME, HOME + 2 * STACK_GUARD_BYTES);
    with_process(|sim, process| {
        map_at(process, sim, below, PAGE);
        map_stack_at(process, sim, stack, PAGE);
        let lowest = below + PAGE + STACK_GUARD_BYTES;
        assert_eq!(process.write_byte(lowest - 1, 1), NOT_MAPPED);
        assert_eq!(process.write_byte(lowest, 1), Ok(()));
    });
}

/// What nobody may touch, and what grows down itself, may be close.
#[test]
fn a_stack_may_grow_close_to_a_guard_area_or_another_stack() {
    let stack = HOME + 64 * PAGE;
    with_process(|sim, process| {
        map_at(process, sim, HOME, PAGE);
        protect(process, sim, HOME, Prot::empty());
        map_stack_at(process, sim, stack, PAGE);
        assert_eq!(process.write_byte(HOME + PAGE, 1), Ok(()));
        assert_eq!(
            process.write_byte(HOME, 1),
            Err(AccessError::Segv(SegvReason::Access))
        );
    });
    with_process(|sim, process| {
        map_stack_at(process, sim, HOME, PAGE);
        map_stack_at(process, sim, stack, PAGE);
        assert_eq!(process.write_byte(HOME + PAGE, 1), Ok(()));
    });
}

// Joining and cutting.

/// While its rights differed, an area was used next to its other half. Both took the same identity, so they are one
/// again once the rights agree.
#[test]
fn areas_that_were_used_while_their_rights_differed_join_again() {
    for (used_first, used_then) in [(0, 1), (1, 0)] {
        with_process(|sim, process| {
            map_at(process, sim, HOME, 2 * PAGE);
            protect(process, sim, HOME + PAGE, Prot::READ);
            assert_eq!(process.nr_areas(), 2);
            for page in [used_first, used_then] {
                process.read_byte(HOME + page * PAGE).expect("readable");
            }
            protect(process, sim, HOME + PAGE, RW);
            assert_eq!(process.nr_areas(), 1);
            process.write_byte(HOME + PAGE, 1).expect("writable");
        });
    }
}

/// Only what could be one area shares an identity: not areas that differ in more than their rights, nor with a hole
/// in between.
#[test]
fn areas_that_cannot_join_keep_identities_of_their_own() {
    with_process(|sim, process| {
        map_at(process, sim, HOME, 3 * PAGE);
        let advised = process.run(|| sim.madvise(process, range(HOME + PAGE, PAGE), Advice::NoHugePage));
        assert_eq!(advised, Ok(()));
        (0..3).for_each(|page| process.write_byte(HOME + page * PAGE, 1).expect("writable"));
        let advised = process.run(|| sim.madvise(process, range(HOME, 3 * PAGE), Advice::NoHugePage));
        assert_eq!(advised, Ok(()));
        assert_eq!(process.nr_areas(), 3);
    });
}

#[test]
#[cfg_attr(miri, ignore = "makes as many areas as there may be")]
fn with_as_many_areas_as_there_may_be_memory_can_still_be_given_back() {
    with_process(|sim, process| {
        let area = |n: u32| HOME + u64::from(n) * 4 * PAGE;
        let made = (0..).take_while(|&n| {
            let placed = map_with(process, sim, (area(n), 3 * PAGE), Place::Fixed, VmaFlags::empty());
            placed.is_ok()
        });
        assert_eq!(made.count(), MAX_AREAS as usize);
        // A hole in the middle makes one area two; an end that goes leaves one.
        assert_eq!(unmap(process, sim, area(5) + PAGE, PAGE), Err(MapError::NoSpace));
        assert_eq!(process.nr_areas(), MAX_AREAS);
        assert_eq!(unmap(process, sim, area(5) + 2 * PAGE, PAGE), Ok(()));
        assert_eq!(unmap(process, sim, area(6), PAGE), Ok(()));
        assert_eq!(process.nr_areas(), MAX_AREAS);
        // Cut at both ends, but two areas: none is left over.
        assert_eq!(unmap(process, sim, area(7) + 2 * PAGE, 3 * PAGE), Ok(()));
        assert_eq!(process.nr_areas(), MAX_AREAS);
        assert_eq!(unmap(process, sim, area(9), 3 * PAGE), Ok(()));
        assert_eq!(unmap(process, sim, area(11) + PAGE, PAGE), Ok(()));
        assert_eq!(process.nr_areas(), MAX_AREAS);
    });
}

// Cost.

/// What an operation on untouched memory costs is not a matter of how much address space it is: with a walk from the
/// root for each 2 MiB these take many seconds, so a second is a generous limit.
#[test]
#[cfg_attr(miri, ignore = "measures time")]
fn untouched_address_space_costs_nothing() {
    with_process(|sim, process| {
        let len = USER_END / 4 * 3;
        let flags = VmaFlags::NORESERVE;
        let start = map_with(process, sim, (0, len), Place::Hint, flags).expect("there is room");
        process.write_byte(start, 1).expect("writable");
        process.write_byte(start + len - 1, 1).expect("writable");
        let all = range(start, len);
        let quickly = |what: &str, does: &mut dyn FnMut() -> Result<(), MapError>| {
            let begun = Instant::now();
            assert_eq!(process.run(does), Ok(()), "{what}");
            assert!(
                begun.elapsed() < Duration::from_secs(1),
                "{what}: {:?}",
                begun.elapsed()
            );
        };
        quickly("mprotect", &mut || sim.mprotect(process, all, Prot::READ));
        quickly("fork", &mut || {
            let child = sim.fork_space(process)?;
            sim.put_space(child);
            Ok(())
        });
        quickly("madvise", &mut || sim.madvise(process, all, Advice::DontNeed));
        quickly("munmap", &mut || sim.munmap(process, all));
        assert_eq!(process.nr_areas(), 0);
        // Nor does it where no area is.
        quickly("munmap of a hole", &mut || sim.munmap(process, all));
    });
}

// The tree of areas.

/// In which order a program makes and removes its areas.
#[derive(Clone, Copy, Debug)]
enum Order {
    Up,
    Down,
    /// From both ends to the middle.
    Inwards,
    /// Like the digits of the numbers read from right to left.
    Reversed,
    /// By a random odd factor.
    Scattered(u64),
}

impl Order {
    /// Which of `1 << bits` comes at position `i`.
    fn nth(self, i: u64, bits: u32) -> u64 {
        let last = (1 << bits) - 1;
        match self {
            Self::Up => i,
            Self::Down => last - i,
            Self::Inwards if i.is_multiple_of(2) => i / 2,
            Self::Inwards => last - i / 2,
            Self::Reversed => i.reverse_bits() >> (64 - bits),
            Self::Scattered(factor) => i.wrapping_mul(factor | 1) & last,
        }
    }
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![
        Just(Order::Up),
        Just(Order::Down),
        Just(Order::Inwards),
        Just(Order::Reversed),
        any::<u64>().prop_map(Order::Scattered),
    ]
}

/// The most that a balanced tree of `areas` may be high.
fn height_limit(areas: u32) -> u32 {
    // Whole numbers are exact as f64, and the limit is small and positive.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small positive number"
    )]
    {
        (1.45 * f64::from(areas + 2).log2()) as u32
    }
}

#[track_caller]
fn assert_flat(process: &Process<'_>, sim: &Sim) {
    let (height, areas) = (sim.area_tree_height(process), process.nr_areas());
    assert!(
        height <= height_limit(areas),
        "{areas} areas in a tree of height {height}"
    );
}

const BITS: u32 = if cfg!(miri) { 5 } else { 11 };

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 1 } else { 12 },
        failure_persistence: None,
        max_shrink_iters: 20,
        ..ProptestConfig::default()
    })]

    /// Whatever a program does, its areas make no deep tree: the kernel descends it on a small stack.
    #[test]
    fn no_order_of_areas_makes_a_deep_tree(made in order(), removed in order(), kept in 1..16_u64, stacks in any::<bool>()) {
        with_process(|sim, process| {
            let flags = if stacks { VmaFlags::GROWSDOWN } else { VmaFlags::empty() };
            let area = |n: u64| HOME + n * 2 * PAGE;
            for i in 0..1 << BITS {
                let at = area(made.nth(i, BITS));
                assert_eq!(map_with(process, sim, (at, PAGE), Place::Fixed, flags), Ok(at));
                assert_flat(process, sim);
            }
            sim.verify(&[process], &());
            // Some go one by one, some many at once, so that the tree loses a whole side.
            for i in (0..1 << BITS).filter(|i| i % 16 < kept) {
                assert_eq!(unmap(process, sim, area(removed.nth(i, BITS)), PAGE), Ok(()));
                assert_flat(process, sim);
            }
            sim.verify(&[process], &());
            assert_eq!(unmap(process, sim, HOME, PAGE << BITS), Ok(()));
            assert_flat(process, sim);
            sim.verify(&[process], &());
            for i in 0..1 << (BITS - 2) {
                map_at(process, sim, area(made.nth(i, BITS - 2)), PAGE);
                assert_flat(process, sim);
            }
        });
    }

    /// The search for room finds the highest hole that fits, as a search through all areas does.
    #[test]
    fn the_highest_hole_that_fits_is_found(
        areas in prop::collection::vec((0..600_u64, 1..9_u64, any::<bool>()), 0..40),
        lens in prop::collection::vec(1..400_u64, 1..8),
    ) {
        with_process(|sim, process| {
            let top = HOME + 1024 * PAGE;
            process.set_mmap_top(VirtAddr::new(top));
            for (at, pages, is_stack) in areas {
                let flags = if is_stack { VmaFlags::GROWSDOWN } else { VmaFlags::empty() };
                let at = HOME + at * 2 * PAGE;
                assert_eq!(map_with(process, sim, (at, pages * PAGE), Place::Fixed, flags), Ok(at));
            }
            for len in lens.into_iter().map(|pages| pages * PAGE) {
                let expected = highest_hole(process, sim, len, top);
                assert_eq!(map_near(process, sim, 0, len), expected.ok_or(MapError::NoSpace));
            }
        });
    }
}

/// The slow way: from the top down, area by area.
fn highest_hole(process: &Process<'_>, sim: &Sim, len: u64, top: u64) -> Option<u64> {
    let mut areas = Vec::new();
    let _ = sim.for_each_vma(process, &mut |area| {
        let guard = if area.flags.contains(VmaFlags::GROWSDOWN) {
            STACK_GUARD_BYTES
        } else {
            0
        };
        areas.push((
            area.range.start().as_u64().saturating_sub(guard),
            area.range.end().as_u64(),
        ));
        core::ops::ControlFlow::Continue(())
    });
    let mut end = top;
    for (start, area_end) in areas.into_iter().rev().chain([(0, MIN_ADDR)]) {
        if end >= area_end + len {
            return Some(end - len);
        }
        // A guard reaches no farther than the hole it is in.
        end = start.min(top);
    }
    None
}

/// Huge pages keep out of what is too small for them, wherever it was placed.
#[test]
fn a_hinted_area_is_backed_as_it_lies() {
    with_process(|sim, process| {
        let len = 2 * HUGE * PAGE;
        assert_eq!(map_near(process, sim, HOME + 1, len), Ok(HOME));
        process.write_byte(HOME, 1).expect("writable");
        assert_eq!(sim.count(mm::Counter::NrAnonThps), 1);
    });
}

// Limits.

/// T14.6: of all areas, data alone counts against RLIMIT_DATA; every way to more data is closed.
#[test]
fn t14_6_rlimit_data_compares_data_only() {
    with_process(|sim, process| {
        let map_prot = |page: u64, pages: u64, prot, flags| {
            let request = MapRequest {
                hint: HOME + page * PAGE,
                len: pages * PAGE,
                prot,
                place: Place::Fixed,
                flags,
            };
            process.run(|| sim.mmap(process, request)).map(drop)
        };
        let none = VmaFlags::empty();
        process.set_brk_base(VirtAddr::new(HOME + 600 * PAGE));
        process.set_limit(Limit::Data, 8 * PAGE);
        assert_eq!(map_prot(0, 6, RW, none), Ok(()));
        assert_eq!(map_prot(100, 64, Prot::READ, none), Ok(()));
        assert_eq!(map_prot(200, 64, RW, VmaFlags::GROWSDOWN), Ok(()));
        assert_eq!(map_prot(300, 3, RW, none), Err(MapError::NoSpace));
        assert_eq!(map_prot(300, 2, RW, none), Ok(()));
        // In the place of data as much data may come.
        assert_eq!(map_prot(0, 6, RW, none), Ok(()));
        let heap = VirtAddr::new(HOME + 601 * PAGE);
        assert_ne!(process.run(|| sim.brk(process, heap)), heap);
        let writable = process.run(|| sim.mprotect(process, range(HOME + 100 * PAGE, PAGE), RW));
        assert_eq!(writable, Err(MapError::NoSpace));
        assert_eq!(process.nr_areas(), 4, "nothing stays cut");
        assert_eq!(unmap(process, sim, HOME + 300 * PAGE, PAGE), Ok(()));
        assert_eq!(process.run(|| sim.brk(process, heap)), heap);
        // While the limit is 0 its ceiling holds instead (as in Linux, for programs that set it so).
        process.set_limit(Limit::Data, 0);
        process.set_limit(Limit::DataCeiling, 9 * PAGE);
        assert_eq!(map_prot(400, 1, RW, none), Ok(()));
        assert_eq!(map_prot(401, 1, RW, none), Err(MapError::NoSpace));
    });
}
