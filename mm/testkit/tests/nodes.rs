//! Nodes: where frames come from, what policies make of it, and what each node has for itself. The whole-memory checker
//! runs after every step.

use mm::{
    AllocFlags, Counter, Destination, MapRequest, Mode, NodeId, NodeMask, Order, PAGE_BYTES, PMD_ORDER,
    PMD_SIZE, Pfn, Place, Placement, Policy, PolicyFlags, Prot, Remains, Remap, ThpMode, VirtAddr, VirtRange,
    VmaFlags, ZeroReads,
    check::Owners,
    deferred_split::Progress,
    error::MapError,
    fault::Access,
    mempolicy::{MbindError, Misplaced},
    migrate::{NotIsolated, Reach},
    platform::CpuId,
};
use mm_testkit::{
    scenario::{HOME, HUGE},
    sim::{AccessError, Config, Process, Sim},
};

const CPU: CpuId = CpuId::new(0);

fn node(number: u32) -> NodeId {
    NodeId::new(number).expect("a small number")
}

fn machine(nr_nodes: u32) -> Sim {
    Sim::boot_nodes(&Config::default(), nr_nodes)
}

fn policy(sim: &Sim, mode: Mode, nodes: u64) -> Policy {
    let online = sim.nodes_with_memory();
    Policy::new(mode, PolicyFlags::empty(), NodeMask::from_bits(nodes), online).expect("a good policy")
}

fn at(page: u64) -> u64 {
    HOME + page * PAGE_BYTES
}

fn range(page: u64, pages: u64) -> VirtRange {
    VirtRange::user(at(page), pages * PAGE_BYTES).expect("user memory")
}

/// A process with `pages` pages of anonymous memory at [`HOME`].
fn process(sim: &Sim, pages: u64) -> Process<'_> {
    let process = sim.start(CPU).expect("memory is there");
    let request = MapRequest {
        hint: HOME,
        len: pages * PAGE_BYTES,
        prot: Prot::READ | Prot::WRITE,
        place: Place::Fixed,
        flags: VmaFlags::empty(),
    };
    sim.mmap(&process, request).expect("nothing is there");
    process
}

/// A byte that tells one page from its neighbours.
fn stamp(page: u64) -> u8 {
    u8::try_from(page % 251).expect("below 251") + 1
}

fn node_of(sim: &Sim, process: &Process<'_>, page: u64) -> Result<u32, NotIsolated> {
    let frame = sim.resident_frame(process, VirtAddr::new(at(page)))?;
    Ok(sim.node_id(frame).number())
}

/// Nodes of the first `pages` pages, which this touches.
fn touched(sim: &Sim, process: &Process<'_>, pages: u64) -> Vec<u32> {
    let node = |page| {
        process.write_byte(at(page), 1).expect("writable");
        node_of(sim, process, page).expect("just written")
    };
    (0..pages).map(node).collect()
}

/// Blocks that a test holds.
struct Blocks(Vec<(Pfn, Order)>);

impl Owners for Blocks {
    fn for_each_block(&self, visit: &mut dyn FnMut(Pfn, Order)) {
        self.0.iter().for_each(|&(pfn, order)| visit(pfn, order));
    }
}

/// Takes every block of `order` that `placement` allows.
fn take_all(sim: &Sim, placement: Placement, order: Order) -> Blocks {
    let flags = AllocFlags::RESERVE;
    let blocks = core::iter::from_fn(|| sim.alloc_pages_from(placement, order, flags).ok());
    Blocks(blocks.map(|pfn| (pfn, order)).collect())
}

fn give_back(sim: &Sim, blocks: Blocks) {
    blocks
        .0
        .into_iter()
        .for_each(|(pfn, order)| sim.free_pages(pfn, order));
}

#[test]
fn every_frame_is_in_one_node_and_every_node_has_its_own_free_memory() {
    for nr in [1, 2, 3] {
        let sim = machine(nr);
        sim.verify(&[], &());
        assert_eq!(sim.nr_nodes(), nr);
        assert_eq!(sim.nodes_with_memory().len(), nr);
        let nodes = || (0..nr).map(node);
        let free: u64 = nodes().map(|node| sim.nr_free_pages_of(node)).sum();
        let managed: u64 = nodes().map(|node| sim.nr_managed_pages_of(node)).sum();
        assert_eq!((free, managed), (sim.nr_free_pages(), sim.nr_managed_pages()));
        for node in nodes() {
            let frames = sim.node_range(node);
            assert!(frames.iter().all(|pfn| sim.node_id(pfn) == node));
            assert!(frames.start().is_aligned(PMD_ORDER));
        }
    }
}

#[test]
fn a_strict_request_gets_frames_of_its_node_or_nothing() {
    let sim = machine(3);
    let before = sim.nr_free_pages();
    for order in [Order::ZERO, PMD_ORDER, Order::MAX] {
        for wanted in [0, 1, 2].map(node) {
            let rest: u64 = [0, 1, 2]
                .map(node)
                .into_iter()
                .filter(|&other| other != wanted)
                .map(|node| sim.nr_free_pages_of(node))
                .sum();
            let taken = take_all(&sim, Placement::only(wanted), order);
            assert!(taken.0.iter().all(|&(pfn, _)| sim.node_id(pfn) == wanted));
            if order == Order::ZERO {
                assert_eq!(sim.nr_free_pages_of(wanted), 0, "all of it was to be had");
            }
            assert_eq!(
                sim.nr_free_pages(),
                rest + sim.nr_free_pages_of(wanted),
                "and nothing else"
            );
            sim.verify(&[], &taken);
            give_back(&sim, taken);
            sim.verify(&[], &());
        }
    }
    assert_eq!(sim.nr_free_pages(), before);
}

#[test]
fn a_request_without_wishes_takes_the_nearest_node_first() {
    let sim = machine(3);
    let all = take_all(&sim, Placement::near(node(1)), Order::ZERO);
    let nodes: Vec<u32> = all.0.iter().map(|&(pfn, _)| sim.node_id(pfn).number()).collect();
    assert_eq!(sim.nr_free_pages(), 0);
    // Node 1, then 2, then 0: each used up before the next.
    let turns: Vec<u32> = nodes.chunk_by(|a, b| a == b).map(|run| run[0]).collect();
    assert_eq!(turns, [1, 2, 0]);
    sim.verify(&[], &all);
    give_back(&sim, all);
    sim.verify(&[], &());
}

#[test]
fn frames_freed_by_another_cpu_go_home() {
    let sim = machine(2);
    let far = take_all(&sim, Placement::only(node(1)), Order::ZERO);
    mm_testkit::machine::on_cpu(CpuId::new(1), || give_back(&sim, far));
    assert_eq!(sim.nr_free_pages_of(node(1)), sim.nr_managed_pages_of(node(1)));
    sim.verify(&[], &());
}

#[test]
fn faults_follow_the_policy_of_the_area() {
    let sim = machine(2);
    sim.set_thp_mode(ThpMode::Never);
    let process = process(&sim, 40);
    assert_eq!(touched(&sim, &process, 2), [0, 0], "by default the nearest");
    sim.set_policy(&process, range(2, 4), policy(&sim, Mode::Bind, 0b10))
        .expect("mapped");
    sim.set_policy(&process, range(6, 4), policy(&sim, Mode::Preferred, 0b10))
        .expect("mapped");
    sim.set_policy(&process, range(10, 8), policy(&sim, Mode::Interleave, 0b11))
        .expect("mapped");
    assert_eq!(process.nr_areas(), 5);
    sim.verify(&[&process], &());
    let nodes = touched(&sim, &process, 20);
    assert_eq!(nodes[2..10], [1; 8]);
    // In turn by the page's place, whoever comes first; HOME is even.
    assert_eq!(nodes[10..18], [0, 1, 0, 1, 0, 1, 0, 1]);
    assert_eq!(nodes[18..], [0, 0]);
    sim.set_policy(&process, range(0, 40), Policy::DEFAULT)
        .expect("mapped");
    assert_eq!(process.nr_areas(), 1, "areas that agree again are one again");
    assert_eq!(touched(&sim, &process, 20), nodes, "and nothing has moved");
    sim.verify(&[&process], &());
}

#[test]
fn huge_pages_interleave_too() {
    let sim = machine(2);
    let process = process(&sim, 4 * HUGE);
    sim.set_policy(&process, range(0, 4 * HUGE), policy(&sim, Mode::Interleave, 0b11))
        .expect("mapped");
    for huge in 0..4 {
        process.write_byte(at(huge * HUGE + 5), 1).expect("writable");
    }
    let first = u32::from(!(HOME / PMD_SIZE).is_multiple_of(2));
    let nodes = [0, 1, 2, 3].map(|huge| node_of(&sim, &process, huge * HUGE));
    assert_eq!(nodes, [first, 1 - first, first, 1 - first].map(Ok));
    assert_eq!(sim.count(Counter::NrAnonThps), 4);
    sim.verify(&[&process], &());
}

#[test]
fn a_bound_area_gets_no_memory_from_elsewhere() {
    let sim = machine(2);
    let process = process(&sim, 4 * HUGE);
    sim.set_policy(&process, range(0, 2 * HUGE), policy(&sim, Mode::Bind, 0b10))
        .expect("mapped");
    let far = take_all(&sim, Placement::only(node(1)), Order::ZERO);
    let before = sim.nr_free_pages();
    let denied = process.write_byte(at(0), 1);
    assert!(matches!(denied, Err(AccessError::NoMemory(_))), "{denied:?}");
    sim.verify(&[&process], &far);
    assert!(before - sim.nr_free_pages() <= 4, "page tables at most");
    sim.set_policy(&process, range(0, 2 * HUGE), policy(&sim, Mode::Preferred, 0b10))
        .expect("mapped");
    process.write_byte(at(0), 1).expect("a wish, not a demand");
    assert_eq!(node_of(&sim, &process, 0), Ok(0));
    sim.verify(&[&process], &far);
    give_back(&sim, far);
}

#[test]
fn the_policy_of_the_task_holds_where_the_area_has_none() {
    let sim = machine(2);
    sim.set_thp_mode(ThpMode::Never);
    let process = process(&sim, 8);
    sim.set_policy(&process, range(4, 4), policy(&sim, Mode::Local, 0))
        .expect("mapped");
    sim.machine().set_task_policy(CPU, policy(&sim, Mode::Bind, 0b10));
    assert_eq!(touched(&sim, &process, 8), [1, 1, 1, 1, 0, 0, 0, 0]);
    sim.verify(&[&process], &());
}

#[test]
fn children_and_copies_have_the_policies_too() {
    let sim = machine(2);
    sim.set_thp_mode(ThpMode::Never);
    let parent = process(&sim, 4);
    assert_eq!(touched(&sim, &parent, 4), [0; 4]);
    let wish = policy(&sim, Mode::Bind, 0b10);
    sim.set_policy(&parent, range(1, 2), wish).expect("mapped");
    let child = parent.fork(CpuId::new(1)).expect("memory is there");
    assert_eq!(sim.policy_at(&child, VirtAddr::new(at(2))), Some(wish));
    assert_eq!(sim.policy_at(&child, VirtAddr::new(at(3))), Some(Policy::DEFAULT));
    assert_eq!(
        touched(&sim, &child, 4),
        [0, 1, 1, 0],
        "what is copied on write goes where it should"
    );
    assert_eq!(node_of(&sim, &parent, 1), Ok(0));
    sim.verify(&[&parent, &child], &());
}

#[test]
fn holes_have_no_policy() {
    let sim = machine(2);
    let process = process(&sim, 4);
    let wish = policy(&sim, Mode::Bind, 0b10);
    assert_eq!(
        sim.set_policy(&process, range(2, 4), wish),
        Err(MapError::BadRange)
    );
    assert_eq!(
        sim.set_policy(&process, range(9, 1), Policy::DEFAULT),
        Err(MapError::BadRange)
    );
    assert_eq!(
        sim.policy_at(&process, VirtAddr::new(at(2))),
        Some(Policy::DEFAULT),
        "nothing changed"
    );
    assert_eq!(sim.policy_at(&process, VirtAddr::new(at(4))), None);
    assert_eq!(process.nr_areas(), 1);
    sim.set_policy(&process, range(2, 4), Policy::DEFAULT)
        .expect("no wish for a hole");
    let nothing = [node_of(&sim, &process, 0), node_of(&sim, &process, 4)];
    assert_eq!(nothing, [Err(NotIsolated::Nothing), Err(NotIsolated::NoArea)]);
    process.read_byte(at(0)).expect("readable");
    assert_eq!(sim.zero_reads(), ZeroReads::ZeroPage);
    assert_eq!(node_of(&sim, &process, 0), Err(NotIsolated::ZeroPage));
    sim.verify(&[&process], &());
}

#[test]
fn each_node_has_a_deferred_queue_and_none_waits_for_another() {
    let sim = machine(2);
    let process = process(&sim, 4 * HUGE);
    sim.set_policy(&process, range(0, 4 * HUGE), policy(&sim, Mode::Interleave, 0b11))
        .expect("mapped");
    for huge in 0..4 {
        process.write_byte(at(huge * HUGE), 1).expect("writable");
        process
            .run(|| sim.munmap(&process, range(huge * HUGE + 7, 1)))
            .expect("memory for the cut");
    }
    let waiting = || [0, 1].map(|number| sim.nr_deferred_splits_of(node(number)));
    assert_eq!(waiting(), [2, 2]);
    sim.verify(&[&process], &());
    // Those of one node are pinned and can never be split.
    let is_pinned = |&huge: &u64| node_of(&sim, &process, huge * HUGE) == Ok(0);
    let pins: Vec<_> = (0..4)
        .filter(is_pinned)
        .map(|huge| {
            sim.get_user_page(&process, VirtAddr::new(at(huge * HUGE)), Access::Read)
                .expect("mapped")
        })
        .collect();
    let split: u32 = (0..4).map(|_| sim.split_deferred(1).split).sum();
    assert_eq!(
        (split, waiting()),
        (2, [2, 0]),
        "one at a time, and the pinned ones hold up nobody"
    );
    pins.into_iter().for_each(|(folio, _)| sim.put(folio));
    assert_eq!(sim.split_deferred(10), Progress { scanned: 2, split: 2 });
    sim.verify(&[&process], &());
}

#[test]
fn mbind_moves_what_lies_elsewhere() {
    let sim = machine(2);
    let process = process(&sim, 2 * HUGE);
    for huge in [0, 1] {
        (0..HUGE).for_each(|page| {
            process
                .write_byte(at(huge * HUGE + page), stamp(page))
                .expect("writable")
        });
    }
    let wish = policy(&sim, Mode::Bind, 0b10);
    let bind = |pages: VirtRange, misplaced| sim.mbind(&process, pages, (wish, wish.nodes()), misplaced);
    let nodes = || [0, HUGE - 1, HUGE, 2 * HUGE - 1].map(|page| node_of(&sim, &process, page));
    assert_eq!(bind(range(0, 1), Misplaced::Refuse), Err(MbindError::Misplaced));
    assert_eq!(
        sim.policy_at(&process, VirtAddr::new(HOME)),
        Some(Policy::DEFAULT),
        "nothing changed"
    );
    assert_eq!(bind(range(0, HUGE), Misplaced::Stay), Ok(()));
    assert_eq!(nodes(), [Ok(0); 4], "a policy moves nothing by itself");
    assert_eq!(bind(range(0, HUGE), Misplaced::MustMove(Reach::Own)), Ok(()));
    assert_eq!(nodes(), [Ok(1), Ok(1), Ok(0), Ok(0)]);
    let count = sim.count(Counter::ThpMigrationSuccess);
    assert_eq!(count, 1, "whole");
    sim.verify(&[&process], &());
    let child = process.fork(CpuId::new(1)).expect("memory is there");
    let second = range(HUGE, HUGE);
    assert_eq!(
        bind(second, Misplaced::Move(Reach::Own)),
        Ok(()),
        "shared pages stay"
    );
    assert_eq!(
        bind(second, Misplaced::MustMove(Reach::Own)),
        Err(MbindError::Misplaced),
        "and it is said"
    );
    assert_eq!(node_of(&sim, &process, HUGE), Ok(0));
    assert_eq!(bind(second, Misplaced::MustMove(Reach::All)), Ok(()));
    assert_eq!(node_of(&sim, &child, HUGE), Ok(1), "for both");
    sim.verify(&[&process, &child], &());
    for page in 0..2 * HUGE {
        assert_eq!(child.read_byte(at(page)), Ok(stamp(page % HUGE)));
    }
}

#[test]
fn a_pinned_page_does_not_move() {
    let sim = machine(2);
    let process = process(&sim, HUGE);
    process.write_byte(at(0), 1).expect("writable");
    let (folio, frame) = sim
        .get_user_page(&process, VirtAddr::new(at(7)), Access::Write)
        .expect("mapped");
    let wish = policy(&sim, Mode::Bind, 0b10);
    let bound = sim.mbind(
        &process,
        range(0, HUGE),
        (wish, wish.nodes()),
        Misplaced::MustMove(Reach::All),
    );
    assert_eq!(bound, Err(MbindError::Misplaced));
    let nodes = (NodeMask::from_bits(0b01), NodeMask::from_bits(0b10));
    assert_eq!(sim.migrate_space(&process, nodes, Reach::All), Ok(1));
    assert_eq!(sim.resident_frame(&process, VirtAddr::new(at(7))), Ok(frame));
    sim.put(folio);
    sim.verify(&[&process], &());
    assert_eq!(sim.migrate_space(&process, nodes, Reach::All), Ok(0));
    assert_eq!(node_of(&sim, &process, 7), Ok(1));
    sim.verify(&[&process], &());
}

#[test]
fn a_full_node_takes_nothing_and_nothing_is_lost() {
    let sim = machine(2);
    let process = process(&sim, HUGE + 4);
    (0..HUGE + 4).for_each(|page| process.write_byte(at(page), stamp(page)).expect("writable"));
    let far = take_all(&sim, Placement::only(node(1)), Order::ZERO);
    let nodes = (NodeMask::from_bits(0b01), NodeMask::from_bits(0b10));
    assert!(sim.migrate_space(&process, nodes, Reach::All).is_err());
    sim.verify(&[&process], &far);
    give_back(&sim, far);
    (0..HUGE + 4).for_each(|page| assert_eq!(process.read_byte(at(page)), Ok(stamp(page))));
    assert_eq!(sim.migrate_space(&process, nodes, Reach::All), Ok(0));
    (0..HUGE + 4).for_each(|page| assert_eq!(node_of(&sim, &process, page), Ok(1), "page {page}"));
    sim.verify(&[&process], &());
}

/// A huge page that waits to be split goes on waiting where it arrives.
#[test]
fn the_deferred_queue_follows_the_page() {
    let sim = machine(2);
    let process = process(&sim, HUGE);
    process.write_byte(at(0), 1).expect("writable");
    process
        .run(|| sim.munmap(&process, range(7, 1)))
        .expect("memory for the cut");
    let waiting = || [0, 1].map(|number| sim.nr_deferred_splits_of(node(number)));
    assert_eq!(waiting(), [1, 0]);
    let nodes = (NodeMask::from_bits(0b01), NodeMask::from_bits(0b10));
    assert_eq!(sim.migrate_space(&process, nodes, Reach::All), Ok(0));
    assert_eq!(waiting(), [0, 1]);
    sim.verify(&[&process], &());
    assert_eq!(sim.split_deferred(1), Progress { scanned: 1, split: 1 });
    sim.verify(&[&process], &());
}

#[test]
fn each_node_says_what_it_is_used_for() {
    let sim = machine(2);
    let process = process(&sim, 2 * HUGE);
    sim.set_policy(&process, range(HUGE, HUGE), policy(&sim, Mode::Bind, 0b10))
        .expect("mapped");
    process.write_byte(at(0), 1).expect("writable");
    process.write_byte(at(HUGE), 1).expect("writable");
    let uses = [0, 1].map(|number| mm::report::node_uses(&sim, node(number)));
    assert_eq!(uses.map(|uses| (uses.anon, uses.huge)), [(HUGE, 1); 2]);
    assert_eq!(uses.map(|uses| uses.inactive), [HUGE; 2]);
    assert_eq!(uses[0].tables + uses[1].tables, sim.count(Counter::NrPageTable));
    assert_eq!(uses[1].tables, 0, "tables come from the nearest node");
}

#[test]
fn policies_go_along_when_areas_are_cut_and_moved() {
    let sim = machine(2);
    sim.set_thp_mode(ThpMode::Never);
    let process = process(&sim, 16);
    let wish = policy(&sim, Mode::Bind, 0b10);
    sim.set_policy(&process, range(0, 8), wish).expect("mapped");
    let told = |page| sim.policy_at(&process, VirtAddr::new(at(page)));
    process
        .run(|| sim.munmap(&process, range(2, 1)))
        .expect("memory for the cut");
    assert_eq!(
        [told(1), told(2), told(3), told(8)],
        [Some(wish), None, Some(wish), Some(Policy::DEFAULT)]
    );
    // One that has pages, and one that has none.
    assert_eq!(touched(&sim, &process, 2), [1, 1]);
    for (from, to) in [(0, 32), (4, 40)] {
        let request = Remap {
            addr: at(from),
            old_len: 2 * PAGE_BYTES,
            new_len: 3 * PAGE_BYTES,
            destination: Destination::Fixed(at(to)),
            remains: Remains::Nothing,
        };
        process
            .run(|| sim.mremap(&process, request))
            .expect("there is room");
        assert_eq!(
            [told(from), told(to), told(to + 2)],
            [None, Some(wish), Some(wish)]
        );
        process.write_byte(at(to + 2), 1).expect("writable");
        assert_eq!(node_of(&sim, &process, to + 2), Ok(1));
        sim.verify(&[&process], &());
    }
}
