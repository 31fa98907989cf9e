//! Random sequences of what programs do with memory, against a model: which pages exist with which rights and contents,
//! and what each huge page's counters must be. After every step the whole-memory checker runs, the translation caches
//! are compared with the tables, and every page's contents with the model.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
};

use mm::{
    Advice, Counter, MapError, MapRequest, PAGE_BYTES, PMD_SIZE, Pfn, Place, Prot, SegvReason, USER_END,
    VirtAddr, VirtRange, VmaFlags, platform::CpuId,
};
use mm_testkit::{
    fixture::cases,
    machine::Walk,
    oracle::{N, Subpages, Thp},
    scenario::{HOME, HUGE},
    sim::{AccessError, Config, MANY_FRAMES, Process, Sim},
};
use proptest::prelude::*;

/// Pages of the part of user space that is used: 4 spans of 2 MiB. Heap: the last.
const PAGES: u64 = 4 * HUGE;
const HEAP: u64 = PAGES - HUGE + 3;
const PROCESSES: usize = 2;
/// Of an oracle, the number of its only process.
const ME: usize = 0;

#[derive(Clone, Debug)]
enum Op {
    Map {
        at: u64,
        pages: u64,
        prot: Prot,
        place: Place,
    },
    Unmap {
        at: u64,
        pages: u64,
    },
    Protect {
        at: u64,
        pages: u64,
        prot: Prot,
    },
    Advise {
        at: u64,
        pages: u64,
        advice: Advice,
    },
    Write {
        at: u64,
        byte: u8,
    },
    /// Every page of the range.
    Fill {
        at: u64,
        pages: u64,
        byte: u8,
    },
    Read {
        at: u64,
    },
    Fetch {
        at: u64,
    },
    Split {
        at: u64,
    },
    /// Moves the end of the heap, in pages from its start.
    Brk {
        pages: u64,
    },
    /// Lets the next accesses come from another CPU of the same process.
    Move,
}

fn place_in_span() -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(0u64), 2 => Just(7), 2 => Just(HUGE - 1), 2 => Just(HUGE / 2), 3 => 0..HUGE]
}

fn page() -> impl Strategy<Value = u64> {
    (0..PAGES / HUGE, place_in_span()).prop_map(|(span, page)| span * HUGE + page)
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(1u64), 1 => Just(2), 3 => Just(HUGE), 2 => Just(2 * HUGE), 1 => Just(HUGE - 7), 2 => 1..HUGE]
}

fn prot() -> impl Strategy<Value = Prot> {
    prop_oneof![
        6 => Just(Prot::READ | Prot::WRITE),
        2 => Just(Prot::READ),
        1 => Just(Prot::empty()),
        1 => Just(Prot::READ | Prot::EXEC),
        1 => Just(Prot::WRITE),
        1 => Just(Prot::all()),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let advice = prop_oneof![
        5 => Just(Advice::DontNeed),
        1 => Just(Advice::NoHugePage),
        1 => Just(Advice::HugePage),
        1 => Just(Advice::Normal),
    ];
    let place =
        prop_oneof![3 => Just(Place::Fixed), 3 => Just(Place::FixedNoReplace), 1 => Just(Place::Hint)];
    prop_oneof![
        4 => (page(), length(), prot(), place)
            .prop_map(|(at, pages, prot, place)| Op::Map { at, pages, prot, place }),
        3 => (page(), length()).prop_map(|(at, pages)| Op::Unmap { at, pages }),
        3 => (page(), length(), prot()).prop_map(|(at, pages, prot)| Op::Protect { at, pages, prot }),
        4 => (page(), length(), advice).prop_map(|(at, pages, advice)| Op::Advise { at, pages, advice }),
        6 => (page(), any::<u8>()).prop_map(|(at, byte)| Op::Write { at, byte }),
        3 => (page(), length(), any::<u8>()).prop_map(|(at, pages, byte)| Op::Fill { at, pages, byte }),
        2 => page().prop_map(|at| Op::Read { at }),
        1 => page().prop_map(|at| Op::Fetch { at }),
        2 => page().prop_map(|at| Op::Split { at }),
        1 => (0..HUGE).prop_map(|pages| Op::Brk { pages }),
        1 => Just(Op::Move),
    ]
}

thread_local! {
    /// Where the arena begins, and how many of its pages are there.
    static ARENA: Cell<(u64, u64)> = const { Cell::new((HOME, PAGES)) };
}

/// The last spans of user space, where a page is missing from the last.
fn topmost() -> (u64, u64) {
    (USER_END + PAGE_BYTES - PAGES * PAGE_BYTES, PAGES - 1)
}

fn home() -> u64 {
    ARENA.get().0
}

fn addr(page: u64) -> u64 {
    home() + page * 4096
}

/// The part of the arena that `pages` pages at `at` are.
fn clip(at: u64, pages: u64) -> core::ops::Range<u64> {
    at..(at + pages).min(ARENA.get().1)
}

fn virt(range: &core::ops::Range<u64>) -> VirtRange {
    VirtRange::new(VirtAddr::new(addr(range.start)), VirtAddr::new(addr(range.end)))
        .expect("aligned and in order")
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct ModelPage {
    prot: Prot,
    byte: u8,
}

/// What a process should see, and what its huge pages should count.
struct Model {
    pages: BTreeMap<u64, ModelPage>,
    /// Huge pages by first frame: the span at which it is mapped, and its oracle.
    thps: BTreeMap<u32, (u64, Thp)>,
    /// Spans that the huge zero page is mapped at.
    zeros: BTreeSet<u64>,
    heap_end: u64,
    /// Events of huge pages that are gone.
    past_splits: u64,
    past_deferrals: u64,
}

impl Model {
    fn new() -> Self {
        Self {
            pages: BTreeMap::new(),
            thps: BTreeMap::new(),
            zeros: BTreeSet::new(),
            heap_end: HEAP,
            past_splits: 0,
            past_deferrals: 0,
        }
    }

    fn has_hole(&self, range: &core::ops::Range<u64>) -> bool {
        range.clone().any(|page| !self.pages.contains_key(&page))
    }

    fn thps_in(&mut self, range: &core::ops::Range<u64>) -> impl Iterator<Item = (u64, &mut Thp)> {
        let range = range.clone();
        let touches = move |start: u64| start < range.end && range.start < start + HUGE;
        self.thps
            .values_mut()
            .filter(move |(start, _)| touches(*start))
            .map(|(start, thp)| (*start, thp))
    }

    /// An operation that cuts areas at the ends of `range` splits the huge mappings that the cuts go through.
    fn cut(&mut self, range: &core::ops::Range<u64>) {
        self.split_zeros(|start| {
            [range.start, range.end]
                .iter()
                .any(|cut| start < *cut && *cut < start + HUGE)
        });
        for (start, thp) in self.thps_in(range) {
            if [range.start, range.end]
                .iter()
                .any(|cut| start < *cut && *cut < start + HUGE)
            {
                thp.split_pmd(ME);
            }
        }
    }

    /// Mappings of the huge zero page for which `gone` holds are mapped by base pages from now on.
    fn split_zeros(&mut self, gone: impl Fn(u64) -> bool) {
        let before = self.zeros.len();
        self.zeros.retain(|&start| !gone(start));
        self.past_splits += (before - self.zeros.len()) as u64;
    }

    /// The pages of `range` lose what they hold, in one operation.
    fn zap(&mut self, range: &core::ops::Range<u64>) {
        self.zeros
            .retain(|&start| start < range.start || range.end < start + HUGE);
        self.split_zeros(|start| start < range.end && range.start < start + HUGE);
        for (start, thp) in self.thps_in(range) {
            let first = range.start.max(start) - start;
            let nr = range.end.min(start + HUGE) - start - first;
            thp.zap(
                ME,
                &Subpages::run(
                    usize::try_from(first).expect("small"),
                    usize::try_from(nr).expect("small"),
                ),
            );
        }
        self.forget_free();
    }

    /// The same, area by area: each is dealt with by itself, so what one page loses to two areas counts as two
    /// operations.
    fn zap_areas(&mut self, areas: &[core::ops::Range<u64>], range: &core::ops::Range<u64>) {
        for area in areas {
            let part = area.start.max(range.start)..area.end.min(range.end);
            if part.start < part.end {
                self.zap(&part);
            }
        }
    }

    fn forget_free(&mut self) {
        let (splits, deferrals) = (&mut self.past_splits, &mut self.past_deferrals);
        self.thps.retain(|_, (_, thp)| {
            if thp.is_free() {
                *splits += u64::from(thp.shares().split_pmd);
                *deferrals += u64::from(thp.shares().deferred);
            }
            !thp.is_free()
        });
    }

    fn splits(&self) -> u64 {
        self.past_splits
            + self
                .thps
                .values()
                .map(|(_, thp)| u64::from(thp.shares().split_pmd))
                .sum::<u64>()
    }

    fn deferrals(&self) -> u64 {
        self.past_deferrals
            + self
                .thps
                .values()
                .map(|(_, thp)| u64::from(thp.shares().deferred))
                .sum::<u64>()
    }
}

/// One process with its model.
struct Player<'s> {
    sim: &'s Sim,
    process: Process<'s>,
    cpus: [CpuId; 2],
    model: Model,
}

impl<'s> Player<'s> {
    fn new(sim: &'s Sim, number: u8) -> Self {
        let cpus = [CpuId::new(2 * number), CpuId::new(2 * number + 1)];
        let process = sim.start(cpus[0]).expect("memory is there");
        process.set_brk_base(VirtAddr::new(addr(HEAP)));
        Self {
            sim,
            process,
            cpus,
            model: Model::new(),
        }
    }

    fn step(&mut self, op: &Op) {
        match *op {
            // The page that user space lacks.
            Op::Write { at, .. } | Op::Read { at } | Op::Fetch { at } | Op::Split { at }
                if at >= ARENA.get().1 => {}
            Op::Map { at, .. } | Op::Unmap { at, .. } | Op::Protect { at, .. } | Op::Advise { at, .. }
                if at >= ARENA.get().1 => {}
            Op::Map {
                at,
                pages,
                prot,
                place,
            } => self.map(&clip(at, pages), prot, place),
            Op::Unmap { at, pages } => self.unmap(&clip(at, pages)),
            Op::Protect { at, pages, prot } => self.protect(&clip(at, pages), prot),
            Op::Advise { at, pages, advice } => self.advise(&clip(at, pages), advice),
            Op::Write { at, byte } => self.write(at, byte),
            Op::Fill { at, pages, byte } => clip(at, pages).for_each(|page| self.write(page, byte)),
            Op::Read { at } => self.read(at),
            Op::Fetch { at } => self.fetch(at),
            Op::Split { at } => self.split(at),
            Op::Brk { pages } => self.brk(HEAP + pages.min(ARENA.get().1 - HEAP)),
            Op::Move => {
                self.cpus.swap(0, 1);
                self.process.run_on(self.cpus[0]);
            }
        }
    }

    fn map(&mut self, range: &core::ops::Range<u64>, prot: Prot, place: Place) {
        let len = (range.end - range.start) * 4096;
        let request = MapRequest {
            hint: addr(range.start),
            len,
            prot,
            place,
            flags: VmaFlags::empty(),
        };
        let free = range.clone().all(|page| !self.model.pages.contains_key(&page));
        let areas = self.areas();
        let result = self.sim.mmap(&self.process, request);
        match (place, free) {
            (Place::FixedNoReplace, false) => return assert_eq!(result, Err(MapError::Occupied)),
            (Place::Hint, false) => {
                // Somewhere else: not where anything is, nor in the arena; given back at once.
                let found = result.expect("there is room");
                let range = VirtRange::user(found.as_u64(), len).expect("user memory");
                let outside = found.as_u64() + len <= addr(0) || found.as_u64() >= addr(PAGES);
                assert!(outside || home() != HOME);
                return assert_eq!(self.sim.munmap(&self.process, range), Ok(()));
            }
            _ => assert_eq!(result, Ok(VirtAddr::new(addr(range.start)))),
        }
        self.model.cut(range);
        self.model.zap_areas(&areas, range);
        self.model
            .pages
            .extend(range.clone().map(|page| (page, ModelPage { prot, byte: 0 })));
    }

    fn unmap(&mut self, range: &core::ops::Range<u64>) {
        let areas = self.areas();
        assert_eq!(self.sim.munmap(&self.process, virt(range)), Ok(()));
        self.model.cut(range);
        self.model.zap_areas(&areas, range);
        range.clone().for_each(|page| _ = self.model.pages.remove(&page));
    }

    fn protect(&mut self, range: &core::ops::Range<u64>, prot: Prot) {
        let expected = if self.model.has_hole(range) {
            Err(MapError::NotMapped)
        } else {
            Ok(())
        };
        assert_eq!(self.sim.mprotect(&self.process, virt(range), prot), expected);
        self.model.cut(range);
        for page in range.clone() {
            let Some(page) = self.model.pages.get_mut(&page) else {
                break;
            };
            page.prot = prot;
        }
    }

    fn advise(&mut self, range: &core::ops::Range<u64>, advice: Advice) {
        let expected = if self.model.has_hole(range) {
            Err(MapError::NotMapped)
        } else {
            Ok(())
        };
        let areas = self.areas();
        assert_eq!(self.sim.madvise(&self.process, virt(range), advice), expected);
        match advice {
            Advice::DontNeed => {
                self.model.zap_areas(&areas, range);
                self.model
                    .pages
                    .range_mut(range.clone())
                    .for_each(|(_, page)| page.byte = 0);
            }
            Advice::HugePage | Advice::NoHugePage => self.model.cut(range),
            Advice::Normal => {}
        }
    }

    /// What an access to a page must end with, except for memory running out.
    fn verdict(&self, page: u64, allowed: impl Fn(Prot) -> bool) -> Result<ModelPage, AccessError> {
        match self.model.pages.get(&page) {
            None => Err(AccessError::Segv(SegvReason::NotMapped)),
            Some(page) if !allowed(page.prot) => Err(AccessError::Segv(SegvReason::Access)),
            Some(page) => Ok(*page),
        }
    }

    fn write(&mut self, page: u64, byte: u8) {
        let expected = self.verdict(page, |prot| prot.contains(Prot::WRITE)).map(|_| ());
        assert_eq!(self.process.write_byte(addr(page), byte), expected);
        if expected.is_ok() {
            self.model.pages.entry(page).and_modify(|page| page.byte = byte);
            // A write gives the page a frame of its own; the rest of the span goes on reading zeroes.
            self.model.split_zeros(|start| start == page - page % HUGE);
            self.meet(page);
        }
    }

    fn read(&mut self, page: u64) {
        let expected = self.verdict(page, |prot| !prot.is_empty()).map(|page| page.byte);
        assert_eq!(self.process.read_byte(addr(page)), expected);
        if expected.is_ok() {
            self.meet(page);
        }
    }

    fn fetch(&mut self, page: u64) {
        let expected = self
            .verdict(page, |prot| prot.contains(Prot::EXEC))
            .map(|page| page.byte);
        assert_eq!(self.process.fetch(addr(page)), expected);
        if expected.is_ok() {
            self.meet(page);
        }
    }

    /// After an access: if a new huge page is there now, follows it from here on.
    fn meet(&mut self, page: u64) {
        let Walk::Mapped(leaf) = self.sim.machine().walk(self.process.root(), addr(page)) else {
            panic!("page {page} was just used")
        };
        let head = u32::try_from(leaf.pfn).expect("a frame number");
        let start = (leaf.start - home()) / 4096;
        if leaf.size == PMD_SIZE && !self.sim.pages().page(Pfn::new(head)).is_anon() {
            self.model.zeros.insert(start);
        } else if leaf.size == PMD_SIZE {
            self.model
                .thps
                .entry(head)
                .or_insert_with(|| (start, Thp::map_new(ME)));
        }
    }

    fn split(&mut self, page: u64) {
        self.sim.split_huge_pmd(&self.process, VirtAddr::new(addr(page)));
        self.model
            .thps_in(&(page..page + 1))
            .for_each(|(_, thp)| thp.split_pmd(ME));
        self.model.split_zeros(|start| start == page - page % HUGE);
    }

    fn brk(&mut self, end: u64) {
        let old = self.model.heap_end;
        let areas = self.areas();
        let moved = self.sim.brk(&self.process, VirtAddr::new(addr(end)));
        let grown = old..end.max(old);
        // A page above the heap stays free.
        let blocked = !grown.is_empty() && (old..=end).any(|page| self.model.pages.contains_key(&page));
        if blocked {
            return assert_eq!(moved, VirtAddr::new(addr(old)));
        }
        assert_eq!(moved, VirtAddr::new(addr(end)));
        let given = end.min(old)..old;
        if !given.is_empty() {
            self.model.cut(&given);
            self.model.zap_areas(&areas, &given);
            given.for_each(|page| _ = self.model.pages.remove(&page));
        }
        let prot = Prot::READ | Prot::WRITE;
        self.model
            .pages
            .extend(grown.map(|page| (page, ModelPage { prot, byte: 0 })));
        self.model.heap_end = end;
    }

    fn areas(&self) -> Vec<core::ops::Range<u64>> {
        let mut areas = Vec::new();
        let page = |at: VirtAddr| (at.as_u64() - home()) / 4096;
        let _ = self.sim.for_each_vma(&self.process, &mut |area| {
            areas.push(page(area.range.start())..page(area.range.end()));
            core::ops::ControlFlow::Continue(())
        });
        areas
    }

    /// Compares everything that the model knows.
    fn compare(&self) {
        let mut rights = BTreeMap::new();
        let _ = self.sim.for_each_vma(&self.process, &mut |area| {
            let first = (area.range.start().as_u64() - home()) / 4096;
            rights.extend((first..first + area.range.nr_pages()).map(|page| (page, area.flags.prot())));
            core::ops::ControlFlow::Continue(())
        });
        assert!(
            rights.iter().eq(self
                .model
                .pages
                .iter()
                .map(|(page, model)| (page, &model.prot))
                .collect::<Vec<_>>())
        );
        for (&page, model) in &self.model.pages {
            assert_eq!(self.contents(page), model.byte, "contents of page {page}");
        }
        for (&head, (_, thp)) in &self.model.thps {
            thp.verify();
            self.compare_thp(Pfn::new(head), thp);
        }
    }

    /// The first byte of a page, as the tables have it, without faulting: what is not there is zero.
    fn contents(&self, page: u64) -> u8 {
        match self.sim.machine().walk(self.process.root(), addr(page)) {
            Walk::Mapped(leaf) => self
                .sim
                .machine()
                .byte(leaf.pfn * 4096 + (addr(page) - leaf.start)),
            // Rights may be taken away without the page: the frame is still in the entry.
            Walk::Missing { level: 1, entry } => self.sim.machine().byte(entry & 0x000f_ffff_ffff_f000),
            Walk::Missing { level: 2, entry } if entry != 0 => self
                .sim
                .machine()
                .byte((entry & 0x000f_ffff_ffff_f000 & !(PMD_SIZE - 1)) + addr(page) % PMD_SIZE),
            Walk::Missing { .. } => 0,
        }
    }

    fn compare_thp(&self, pfn: Pfn, thp: &Thp) {
        let head = self.sim.pages().page(pfn);
        let counts = head.map_counts();
        let row = thp.row();
        assert_eq!((counts.entire, counts.total), (row.entire, row.total));
        assert_eq!(head.refs_hint(), row.refs);
        assert_eq!(head.is_double_mapped(), row.double_map);
        for (i, subpage) in (0..).zip(0..N) {
            assert_eq!(head.offset(i).mapcount(), thp.mapcount(subpage));
        }
    }
}

fn play(ops: &[(usize, Op)]) {
    let sim = Sim::boot(&Config {
        frames: MANY_FRAMES,
        nr_cpus: 4,
        holes: vec![
            MANY_FRAMES / 2..MANY_FRAMES / 2 + 3,
            MANY_FRAMES - 9..MANY_FRAMES - 8,
        ],
    });
    let before = sim.nr_free_pages();
    {
        let mut players = [Player::new(&sim, 0), Player::new(&sim, 1)];
        for (who, op) in ops {
            players[*who].step(op);
            if !cfg!(miri) {
                let [a, b] = &players;
                sim.verify(&[&a.process, &b.process], &());
            }
            players[*who].compare();
            let sum = |part: fn(&Model) -> u64| players.iter().map(|player| part(&player.model)).sum::<u64>();
            assert_eq!(sim.count(Counter::ThpSplitPmd), sum(Model::splits));
            assert_eq!(sim.count(Counter::ThpDeferredSplitPage), sum(Model::deferrals));
        }
        let [a, b] = &players;
        sim.verify(&[&a.process, &b.process], &());
    }
    sim.verify(&[], &());
    sim.shrink_huge_zero_page();
    sim.verify(&[], &());
    assert_eq!(sim.nr_free_pages(), before);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(96, 2),
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn programs_see_what_the_model_sees(
        ops in prop::collection::vec((0..PROCESSES, op()), 1..if cfg!(miri) { 8 } else { 80 }),
    ) {
        ARENA.set((HOME, PAGES));
        play(&ops);
    }

    #[test]
    fn so_they_do_at_the_top_of_user_space(
        ops in prop::collection::vec((0..PROCESSES, op()), 1..if cfg!(miri) { 8 } else { 40 }),
    ) {
        ARENA.set(topmost());
        play(&ops);
    }
}
