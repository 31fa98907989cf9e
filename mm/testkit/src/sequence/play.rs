//! Takes each step twice, on the machine and on the model, and compares.

use core::{cell::Cell, ops::ControlFlow};

use mm::{
    Access, Advice, AllocError, ClearRefs, Counter, MapError, MapRequest, PAGE_BYTES, PAGE_SIZE, PMD_SIZE,
    Pfn, Place, Prot, SegvReason, VirtAddr, VirtRange, VmFault, VmaFlags, check::Owners, pin::Pinned,
    platform::CpuId, split_folio::SplitError,
};

use super::{
    Arena, Pages,
    model::{Backing, Entry, Events, Folio, Space, World, chunks, span_of},
    op::{Op, Part, Step, Writing},
};
use crate::{
    machine::{Walk, entry_bits},
    scenario::HUGE,
    sim::{AccessError, Process, Sim},
};

/// Where the heap begins, in pages from the arena's start: in its last span.
const HEAP: u64 = super::PAGES - HUGE + 3;
/// Free pages below which an allocation may well fail.
const SHORT_OF_MEMORY: u64 = mm::HPAGE_PAGES as u64 / 2 + 64;

/// A page that somebody uses by its frame.
struct Held<'s> {
    pinned: Pinned<'s>,
    /// The process and page that it was taken through.
    through: (usize, u64),
    writing: Writing,
    /// Whether that process still has it there.
    attached: bool,
}

/// References that a pin of a base page counts as, besides its own: like Linux's `GUP_PIN_COUNTING_BIAS`.
const PIN_BIAS: usize = 1024;

/// In a word of `/proc/pid/pagemap`: written since `clear_refs`, or new.
const PAGEMAP_SOFT_DIRTY: u64 = 1 << 55;

/// The frames that are held, and how many references that makes, for the checker.
struct HeldFrames(Vec<(Pfn, usize)>);

impl Owners for HeldFrames {
    fn for_each_block(&self, _: &mut dyn FnMut(Pfn, mm::Order)) {}

    fn for_each_reference(&self, visit: &mut dyn FnMut(Pfn)) {
        let references = self.0.iter().flat_map(|&(pfn, nr)| core::iter::repeat_n(pfn, nr));
        references.for_each(visit);
    }
}

/// The machine, its processes, and the model of both.
pub(super) struct Game<'s> {
    pub(super) sim: &'s Sim,
    pub(super) arena: Arena,
    processes: Vec<Option<Process<'s>>>,
    held: Vec<Held<'s>>,
    pub(super) world: World,
    /// The step under way may meet an allocation that fails.
    may_fail: Cell<bool>,
}

/// How a step ended that may have run out of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Done,
    NoMemory,
}

impl Drop for Game<'_> {
    /// After a failure nothing is given back: see [`Process`].
    fn drop(&mut self) {
        self.held.drain(..).for_each(core::mem::forget);
    }
}

impl<'s> Game<'s> {
    pub(super) fn new(sim: &'s Sim, arena: Arena, slots: usize) -> Self {
        let mut game = Self {
            sim,
            arena,
            processes: (0..slots).map(|_| None).collect(),
            held: Vec::new(),
            world: World::new(slots),
            may_fail: Cell::new(false),
        };
        game.start(0);
        game
    }

    fn start(&mut self, slot: usize) {
        let process = match self.sim.start(cpu(slot)) {
            Ok(process) => process,
            Err(error) => return self.allow(error),
        };
        process.set_brk_base(VirtAddr::new(self.addr(HEAP)));
        self.processes[slot] = Some(process);
        self.world.spaces[slot] = Some(Space {
            heap_end: HEAP,
            ..Space::default()
        });
    }

    /// Takes a step and compares everything.
    pub(super) fn step(&mut self, (who, op): &Step, failing: Option<u64>) {
        self.sim.inject_alloc_failure(failing);
        self.may_fail.set(failing.is_some() || self.memory_is_short());
        self.act(*who, op);
        self.sim.inject_alloc_failure(None);
        self.world.forget_free();
        self.detach_pins();
        self.check();
        self.compare();
    }

    fn memory_is_short(&self) -> bool {
        self.sim.nr_free_pages() < SHORT_OF_MEMORY
    }

    fn act(&mut self, nth: usize, op: &Op) {
        let alive: Vec<usize> = (0..self.processes.len())
            .filter(|&slot| self.processes[slot].is_some())
            .collect();
        if alive.is_empty() {
            return self.start(0);
        }
        let who = alive[nth % alive.len()];
        let last = self.arena.pages;
        match *op {
            Op::Map(part, prot, place) => self.with(part, |game, range| game.map(who, range, prot, place)),
            Op::Unmap(part) => self.with(part, |game, range| game.unmap(who, range)),
            Op::Protect(part, prot) => self.with(part, |game, range| game.protect(who, range, prot)),
            Op::Advise(part, advice) => self.with(part, |game, range| game.advise(who, range, advice)),
            Op::Fill(part, byte) => self.with(part, |game, range| {
                range.clone().for_each(|page| game.write(who, page, 0, byte));
            }),
            Op::Write(page, offset, byte) if page < last => self.write(who, page, offset, byte),
            Op::Read(page, offset) if page < last => self.read(who, page, offset),
            Op::Fetch(page) if page < last => self.fetch(who, page),
            Op::SplitPmd(page) if page < last => self.split_pmd(who, page),
            Op::SplitFolio(page) if page < last => self.split_folio(who, page),
            Op::Pin(page, writing) if page < last => self.pin(who, page, writing),
            Op::Remap(part, len, to, remains) => {
                self.with(part, |game, range| game.remap(who, range, len, to, remains));
            }
            Op::Migrate(part, reach) => self.with(part, |game, range| game.migrate(who, range, reach)),
            Op::ClearRefs(what) => self.clear_refs(who, what),
            Op::Brk(pages) => self.brk(who, HEAP + pages.min(last - HEAP)),
            Op::Unpin(nth) if !self.held.is_empty() => self.unpin(nth % self.held.len()),
            Op::WriteThroughPin(nth, offset, byte) if !self.held.is_empty() => {
                self.write_through_pin(nth % self.held.len(), offset, byte);
            }
            Op::OtherCpu => self.other_cpu(who),
            Op::Fork => self.fork(who),
            Op::Exit => self.exit(who),
            Op::Shrink(budget) => self.shrink(budget),
            Op::ShrinkZero => _ = self.sim.shrink_huge_zero_page(),
            // The page that user space lacks; nothing to act on.
            _ => {}
        }
    }

    /// Ends everything; the machine must be as it was before the first process. Returns what happened until then.
    pub(super) fn finish(mut self) -> Events {
        let events = self.world.events;
        while let Some(held) = self.held.pop() {
            self.sim.unpin(held.pinned);
        }
        self.processes.clear();
        self.sim.shrink_huge_zero_page();
        self.sim.verify(&[], &());
        events
    }

    // ---- addresses

    pub(super) fn addr(&self, page: u64) -> u64 {
        self.arena.home + page * PAGE_BYTES
    }

    pub(super) fn virt(&self, range: &Pages) -> VirtRange {
        let (start, end) = (self.addr(range.start), self.addr(range.end));
        VirtRange::new(VirtAddr::new(start), VirtAddr::new(end)).expect("aligned and in order")
    }

    fn with(&mut self, part: Part, f: impl FnOnce(&mut Self, &Pages)) {
        let range = part.at..(part.at + part.pages).min(self.arena.pages);
        if !range.is_empty() {
            f(self, &range);
        }
    }

    fn process(&self, who: usize) -> &Process<'s> {
        self.processes[who].as_ref().expect("the process is alive")
    }

    /// The areas of a process, in pages from the arena's start.
    pub(super) fn areas(&self, who: usize) -> Vec<(Pages, VmaFlags)> {
        let mut areas = Vec::new();
        let page = |at: VirtAddr| (at.as_u64() - self.arena.home) / PAGE_BYTES;
        let _ = self.sim.for_each_vma(self.process(who), &mut |area| {
            areas.push((page(area.range.start())..page(area.range.end()), area.flags));
            ControlFlow::Continue(())
        });
        areas
    }

    // ---- results

    /// What a result says, if it is the expected one or memory ran out where it may.
    #[track_caller]
    pub(super) fn judge<T: PartialEq + core::fmt::Debug>(
        &self,
        result: Result<T, MapError>,
        expected: Result<T, MapError>,
    ) -> Outcome {
        if matches!(result, Err(MapError::NoMemory(_))) {
            self.allow(AllocError {
                order: mm::Order::ZERO,
            });
            return Outcome::NoMemory;
        }
        assert_eq!(result, expected);
        Outcome::Done
    }

    #[track_caller]
    pub(super) fn allow(&self, error: AllocError) {
        assert!(
            self.may_fail.get() || self.memory_is_short(),
            "{error:?} although there is memory"
        );
    }

    /// After a step that ran out of memory: it may have split PMDs, and nothing else.
    pub(super) fn note_splits(&mut self, who: usize) {
        let spans: Vec<u64> = self.world.space(who).pmds.keys().copied().collect();
        for span in spans {
            if matches!(self.seen(who, span), None | Some(Entry::Pte(_))) {
                self.world.split_pmd(who, span);
            }
        }
    }

    /// What the tables say about a page, in the model's words.
    pub(super) fn seen(&self, who: usize, page: u64) -> Option<Entry> {
        let number = |raw: u64| u32::try_from(raw).expect("a frame number");
        let backing = |frame: u32| {
            let is_anon = self.sim.pages().page(Pfn::new(frame)).is_anon();
            if is_anon {
                Backing::Frame(frame)
            } else {
                Backing::Zero
            }
        };
        match self.sim.machine().walk(self.process(who).root(), self.addr(page)) {
            Walk::Mapped(leaf) if leaf.size == PMD_SIZE => Some(Entry::Pmd(backing(number(leaf.pfn)))),
            Walk::Mapped(leaf) => Some(Entry::Pte(backing(number(leaf.pfn)))),
            // Rights may be taken away without the page: the frame is still in the entry.
            Walk::Missing { level: 1, entry } if entry != 0 => Some(Entry::Pte(backing(number(
                (entry & entry_bits::FRAME) / PAGE_BYTES,
            )))),
            Walk::Missing { level: 2, entry } if entry != 0 => Some(Entry::Pmd(backing(number(
                (entry & entry_bits::FRAME & !(PMD_SIZE - 1)) / PAGE_BYTES,
            )))),
            Walk::Missing { .. } => None,
        }
    }

    // ---- areas

    fn map(&mut self, who: usize, range: &Pages, prot: Prot, place: Place) {
        let len = (range.end - range.start) * PAGE_BYTES;
        let hint = self.addr(range.start);
        let flags = VmaFlags::empty();
        let request = MapRequest {
            hint,
            len,
            prot,
            place,
            flags,
        };
        let free = range
            .clone()
            .all(|page| self.world.space(who).prot(page).is_none());
        let areas = self.areas(who);
        let result = self.on(who, |sim, process| sim.mmap(process, request));
        if place == Place::Hint && !free {
            return self.mapped_elsewhere(who, result, len);
        }
        let expected = if place == Place::FixedNoReplace && !free {
            Err(MapError::Occupied)
        } else {
            Ok(VirtAddr::new(hint))
        };
        match self.judge(result, expected) {
            Outcome::NoMemory if !free && self.is_gone(who, range) => self.take_away(who, range, &areas),
            Outcome::NoMemory => self.note_splits(who),
            Outcome::Done if expected.is_ok() => {
                self.take_away(who, range, &areas);
                let flags = VmaFlags::from_prot(prot) | VmaFlags::MAY | VmaFlags::SOFTDIRTY;
                self.world
                    .space(who)
                    .areas
                    .extend(range.clone().map(|page| (page, flags)));
            }
            Outcome::Done => {}
        }
    }

    /// Somewhere else: not where anything is, nor in the arena; given back at once.
    fn mapped_elsewhere(&mut self, who: usize, result: Result<VirtAddr, MapError>, len: u64) {
        let found = match result {
            Ok(found) => found.as_u64(),
            Err(MapError::NoMemory(error)) => return self.allow(error),
            Err(other) => panic!("there is room: {other:?}"),
        };
        let inside = found < self.addr(self.arena.pages) && self.addr(0) < found + len;
        assert!(!inside || self.arena.is_topmost(), "{found:#x} lies in the arena");
        let range = VirtRange::user(found, len).expect("user memory");
        // It may have been joined to an area, and is cut out of it again.
        let _ = self
            .on(who, |sim, process| sim.munmap(process, range))
            .or_else(|_| {
                self.sim.inject_alloc_failure(None);
                self.on(who, |sim, process| sim.munmap(process, range))
            });
    }

    pub(super) fn is_gone(&self, who: usize, range: &Pages) -> bool {
        let areas = self.areas(who);
        areas
            .iter()
            .all(|(area, _)| area.end <= range.start || range.end <= area.start)
    }

    /// The model's `munmap`. Each area is dealt with by itself, as it was before it.
    pub(super) fn take_away(&mut self, who: usize, range: &Pages, areas: &[(Pages, VmaFlags)]) {
        self.world.cut(who, range);
        self.zap_areas(who, range, areas);
        let space = self.world.space(who);
        for page in range.clone() {
            space.areas.remove(&page);
            space.bytes.remove(&page);
            space.written.remove(&page);
            space.freed.remove(&page);
        }
    }

    fn zap_areas(&mut self, who: usize, range: &Pages, areas: &[(Pages, VmaFlags)]) {
        for (area, _) in areas {
            let part = area.start.max(range.start)..area.end.min(range.end);
            if !part.is_empty() {
                self.world.zap(who, &part);
            }
        }
    }

    fn unmap(&mut self, who: usize, range: &Pages) {
        let (areas, virt) = (self.areas(who), self.virt(range));
        let result = self.on(who, |sim, process| sim.munmap(process, virt));
        match self.judge(result, Ok(())) {
            Outcome::Done => self.take_away(who, range, &areas),
            Outcome::NoMemory => self.note_splits(who),
        }
    }

    fn hole_error(&mut self, who: usize, range: &Pages) -> Result<(), MapError> {
        let hole = self.world.space(who).has_hole(range);
        if hole { Err(MapError::NotMapped) } else { Ok(()) }
    }

    fn protect(&mut self, who: usize, range: &Pages, prot: Prot) {
        let (expected, virt) = (self.hole_error(who, range), self.virt(range));
        let result = self.on(who, |sim, process| sim.mprotect(process, virt, prot));
        if self.judge(result, expected) == Outcome::NoMemory {
            return self.note_splits(who);
        }
        self.world.cut(who, range);
        let space = self.world.space(who);
        for page in range.clone() {
            // Up to the first hole.
            let Some(flags) = space.areas.get_mut(&page) else {
                break;
            };
            *flags = (*flags & !VmaFlags::ACCESS) | VmaFlags::from_prot(prot);
        }
    }

    fn advise(&mut self, who: usize, range: &Pages, advice: Advice) {
        if let Advice::PopulateRead | Advice::PopulateWrite = advice {
            return self.populate(who, range, advice);
        }
        let (expected, virt) = (self.hole_error(who, range), self.virt(range));
        let areas = self.areas(who);
        let result = self.on(who, |sim, process| sim.madvise(process, virt, advice));
        if self.judge(result, expected) == Outcome::NoMemory {
            return self.note_splits(who);
        }
        let (sequential, random) = (VmaFlags::SEQ_READ, VmaFlags::RAND_READ);
        let none = VmaFlags::empty();
        let (set, clear) = match advice {
            Advice::DontNeed | Advice::DontNeedLocked => {
                self.zap_areas(who, range, &areas);
                let space = self.world.space(who);
                return space.bytes.retain(|page, _| !range.contains(page));
            }
            Advice::Cold | Advice::Free | Advice::PageOut => return self.age(who, range, &areas, advice),
            Advice::Normal => (none, sequential | random),
            Advice::Sequential => (sequential, random),
            Advice::Random => (random, sequential),
            Advice::HugePage => (VmaFlags::HUGEPAGE, VmaFlags::NOHUGEPAGE),
            Advice::NoHugePage => (VmaFlags::NOHUGEPAGE, VmaFlags::HUGEPAGE),
            Advice::DontFork => (VmaFlags::DONTCOPY, none),
            Advice::DoFork => (none, VmaFlags::DONTCOPY),
            Advice::WipeOnFork => (VmaFlags::WIPEONFORK, none),
            Advice::KeepOnFork => (none, VmaFlags::WIPEONFORK),
            Advice::DontDump => (VmaFlags::DONTDUMP, none),
            Advice::DoDump => (none, VmaFlags::DONTDUMP),
            _ => return,
        };
        self.change_flags(who, range, set, clear);
    }

    /// Advice on part of a huge page that is ours alone splits it, unless somebody uses it.
    fn age(&mut self, who: usize, range: &Pages, areas: &[(Pages, VmaFlags)], advice: Advice) {
        for (area, _) in areas {
            let part = area.start.max(range.start)..area.end.min(range.end);
            for chunk in chunks(&part) {
                self.age_chunk(who, &chunk);
                match advice {
                    Advice::Free => self.lazily_free(who, &chunk),
                    Advice::PageOut => self.drop_freed(who, &chunk),
                    _ => {}
                }
            }
        }
    }

    fn age_chunk(&mut self, who: usize, chunk: &Pages) {
        let span = span_of(chunk.start);
        if self.world.space(who).pmds.contains_key(&span) {
            let Some(frame) = self.world.space(who).frame(span) else {
                return;
            };
            let Folio::Huge(thp) = self.world.folio(frame).1 else {
                panic!("a PMD maps a base page")
            };
            if thp.total() != 1 || thp.pins() > 0 || *chunk == (span..span + HUGE) {
                return;
            }
            self.world.split_folio(frame);
        }
        for page in chunk.clone() {
            let Some(frame) = self.world.space(who).frame(page) else {
                continue;
            };
            let is_ours = self.world.mapcount(frame) == 1;
            if let (head, Folio::Huge(thp)) = self.world.folio(frame)
                && is_ours
                && thp.pins() == 0
            {
                self.world.split_folio(head);
            }
        }
    }

    /// What only one entry maps, as a whole, may be dropped until it is written.
    fn lazily_free(&mut self, who: usize, chunk: &Pages) {
        for page in chunk.clone() {
            let Some(frame) = self.world.space(who).frame(page) else {
                continue;
            };
            let by_pte = !self.world.space(who).pmds.contains_key(&span_of(page));
            let is_ours = match self.world.folio(frame).1 {
                Folio::Huge(thp) => {
                    thp.total() == 1 && !by_pte && *chunk == (span_of(page)..span_of(page) + HUGE)
                }
                Folio::Small { mappers, .. } => mappers.len() == 1,
            };
            if is_ours {
                self.world.space(who).freed.insert(page);
            }
        }
    }

    /// What is gone was lazily freed, not written since, and nobody else had it.
    fn drop_freed(&mut self, who: usize, chunk: &Pages) {
        for page in chunk.clone() {
            let Some(frame) = self.world.space(who).frame(page) else {
                continue;
            };
            if self.seen(who, page).is_some() {
                continue;
            }
            let sole = self.world.mapcount(frame) == 1 && self.world.pins(frame) == 0;
            let span = span_of(page);
            let gone = match self.world.space(who).entry(page) {
                Some(Entry::Pmd(_)) => span..span + HUGE,
                _ => page..page + 1,
            };
            let space = self.world.space(who);
            assert!(
                sole && gone.clone().all(|page| space.freed.contains(&page)),
                "page {page} is lost"
            );
            for page in gone.clone() {
                space.bytes.remove(&page);
            }
            self.world.events.lazily_freed += gone.end - gone.start;
            self.world.zap(who, &gone);
        }
    }

    /// Entries lose the right to write, which no access notices: it comes back in the fault.
    fn clear_refs(&mut self, who: usize, what: ClearRefs) {
        self.on(who, |sim, process| sim.clear_refs(process, what));
        if what == ClearRefs::SoftDirty {
            let space = self.world.space(who);
            space.written.clear();
            for flags in space.areas.values_mut() {
                flags.remove(VmaFlags::SOFTDIRTY);
            }
        }
    }

    /// What is so already costs no cut.
    fn change_flags(&mut self, who: usize, range: &Pages, set: VmaFlags, clear: VmaFlags) {
        let wanted = |flags: VmaFlags| (flags | set) & !clear;
        let areas = &self.world.space(who).areas;
        if areas
            .range(range.clone())
            .any(|(_, &flags)| flags != wanted(flags))
        {
            self.world.cut(who, range);
        }
        let areas = self.world.space(who).areas.range_mut(range.clone());
        areas.for_each(|(_, flags)| *flags = wanted(*flags));
    }

    /// Faults pages in, up to the first that cannot be.
    fn populate(&mut self, who: usize, range: &Pages, advice: Advice) {
        let (access, right) = match advice {
            Advice::PopulateWrite => (Access::Write, Prot::WRITE),
            _ => (Access::Read, Prot::READ),
        };
        let space = self.world.space(who);
        let first_refused = range.clone().find_map(|page| match space.prot(page) {
            None => Some((page, MapError::NotMapped)),
            Some(prot) if !prot.contains(right) => Some((page, MapError::Invalid)),
            Some(_) => None,
        });
        let (end, expected) = first_refused.map_or((range.end, Ok(())), |(page, why)| (page, Err(why)));
        let virt = self.virt(range);
        let result = self.on(who, |sim, process| sim.madvise(process, virt, advice));
        let outcome = self.judge(result, expected);
        self.note_splits(who);
        for page in range.start..end {
            if outcome == Outcome::Done || self.seen(who, page) != self.world.space(who).entry(page) {
                self.follow(who, page, access);
            }
        }
    }

    fn brk(&mut self, who: usize, end: u64) {
        let (old, areas) = (self.world.space(who).heap_end, self.areas(who));
        let target = VirtAddr::new(self.addr(end));
        let moved = self.on(who, |sim, process| sim.brk(process, target));
        let grown = old..end.max(old);
        // A page above the heap stays free.
        let space = self.world.space(who);
        let blocked = !grown.is_empty() && (old..=end).any(|page| space.areas.contains_key(&page));
        if moved != target && !blocked {
            self.allow(AllocError {
                order: mm::Order::ZERO,
            });
            assert_eq!(moved.as_u64(), self.addr(old));
            return self.note_splits(who);
        }
        if blocked {
            return assert_eq!(moved.as_u64(), self.addr(old));
        }
        let given = end.min(old)..old;
        if !given.is_empty() {
            self.take_away(who, &given, &areas);
        }
        let flags = VmaFlags::from_prot(Prot::READ | Prot::WRITE) | VmaFlags::MAY | VmaFlags::SOFTDIRTY;
        let space = self.world.space(who);
        space.areas.extend(grown.map(|page| (page, flags)));
        space.heap_end = end;
    }

    // ---- accesses

    /// What an access to a page must end with, except for memory running out.
    fn verdict(&mut self, who: usize, page: u64, allowed: impl Fn(Prot) -> bool) -> Result<(), SegvReason> {
        match self.world.space(who).prot(page) {
            None => Err(SegvReason::NotMapped),
            Some(prot) if !allowed(prot) => Err(SegvReason::Access),
            Some(_) => Ok(()),
        }
    }

    /// Compares how an access ended and follows what it did to the tables; returns what it gave, if it happened.
    #[track_caller]
    fn accessed<T>(
        &mut self,
        (who, page): (usize, u64),
        access: Access,
        result: Result<T, AccessError>,
        expected: Result<(), SegvReason>,
    ) -> Option<T> {
        match result {
            Ok(value) => {
                assert_eq!(Ok(()), expected);
                self.follow(who, page, access);
                Some(value)
            }
            Err(AccessError::NoMemory(error)) => {
                self.allow(error);
                self.note_splits(who);
                None
            }
            Err(error) => {
                assert_eq!(Some(error), expected.err().map(AccessError::Segv));
                None
            }
        }
    }

    fn write(&mut self, who: usize, page: u64, offset: u16, byte: u8) {
        let expected = self.verdict(who, page, |prot| prot.contains(Prot::WRITE));
        let at = self.addr(page) + u64::from(offset);
        let result = self.process(who).write_byte(at, byte);
        if self
            .accessed((who, page), Access::Write, result, expected)
            .is_some()
        {
            let space = self.world.space(who);
            space.store(page, offset, byte);
            space.written.insert(page);
        }
    }

    fn read(&mut self, who: usize, page: u64, offset: u16) {
        let expected = self.verdict(who, page, |prot| !prot.is_empty());
        let at = self.addr(page) + u64::from(offset);
        let result = self.process(who).read_byte(at);
        if let Some(byte) = self.accessed((who, page), Access::Read, result, expected) {
            assert_eq!(
                byte,
                self.world.space(who).load(page, offset),
                "read from page {page}"
            );
        }
    }

    fn fetch(&mut self, who: usize, page: u64) {
        let expected = self.verdict(who, page, |prot| prot.contains(Prot::EXEC));
        let result = self.process(who).fetch(self.addr(page));
        if let Some(byte) = self.accessed((who, page), Access::Exec, result, expected) {
            assert_eq!(
                byte,
                self.world.space(who).load(page, 0),
                "fetched from page {page}"
            );
        }
    }

    /// After an access: what may have changed in the tables, and nothing else, goes over into the model.
    fn follow(&mut self, who: usize, page: u64, access: Access) {
        let span = span_of(page);
        let before = self.world.space(who).entry(page);
        let now = self
            .seen(who, page)
            .unwrap_or_else(|| panic!("page {page} was just used"));
        match (before, now) {
            (None, Entry::Pmd(backing)) => self.world.map_new_huge(who, span, backing),
            (None, Entry::Pte(backing)) => self.world.map_new_small(who, page, backing),
            (Some(before), now) if before == now => {}
            (Some(_), Entry::Pte(Backing::Frame(frame))) => {
                assert_eq!(access, Access::Write, "page {page} moved by {access:?}");
                self.assert_copy_was_needed(who, page);
                self.world.split_pmd(who, span);
                self.world.zap_ptes(who, &(page..page + 1));
                self.world.map_new_small(who, page, Backing::Frame(frame));
            }
            (Some(before), now) => panic!("page {page}: {before:?} became {now:?} by {access:?}"),
        }
        if access == Access::Write {
            let frame = self
                .world
                .space(who)
                .frame(page)
                .expect("no zero page is written to");
            assert_eq!(
                self.world.mapcount(frame),
                1,
                "page {page}: written to while shared"
            );
            let by_pmd = self.world.space(who).pmds.contains_key(&span);
            let space = self.world.space(who);
            space
                .freed
                .retain(|&freed| freed != page && !(by_pmd && span_of(freed) == span));
        }
        // What was copied may be free, and the next page's target.
        self.world.forget_free();
    }

    /// A base page that nobody else has is written to where it is.
    fn assert_copy_was_needed(&mut self, who: usize, page: u64) {
        let Some(Entry::Pte(Backing::Frame(old))) = self.world.space(who).entry(page) else {
            return;
        };
        let (_, folio) = self.world.folio(old);
        let sole = matches!(folio, Folio::Small { mappers, pins: 0 } if mappers.len() == 1);
        assert!(!sole, "page {page} was copied though nobody else had it");
    }

    // ---- folios

    fn split_pmd(&mut self, who: usize, page: u64) {
        let at = VirtAddr::new(self.addr(page));
        self.on(who, |sim, process| sim.split_huge_pmd(process, at));
        self.world.split_pmd(who, span_of(page));
    }

    fn split_folio(&mut self, who: usize, page: u64) {
        let space = self.world.space(who);
        let readable = space.prot(page).is_some_and(|prot| !prot.is_empty());
        let Some(entry) = space.entry(page).filter(|_| readable) else {
            return;
        };
        let expected = self.split_verdict(who, page, entry);
        let at = VirtAddr::new(self.addr(page));
        let (folio, pfn) = self
            .on(who, |sim, process| sim.get_user_page(process, at, Access::Read))
            .expect("it is mapped");
        let subpage = pfn.since(folio.pfn());
        let locked = self.sim.try_lock_folio(&folio).expect("nobody holds it");
        let result = match self.sim.split_folio(folio, locked, subpage) {
            Ok((folio, locked)) => {
                assert_eq!(folio.pfn(), pfn, "the reference is another page's");
                drop(locked);
                self.sim.put(folio);
                Ok(())
            }
            Err((error, folio, locked)) => {
                drop(locked);
                self.sim.put(folio);
                Err(error)
            }
        };
        assert_eq!(result, expected);
        match result {
            Ok(()) => {
                let frame = self.world.space(who).frame(page).expect("no zero page is split");
                let head = self.world.folio(frame).0;
                self.world.split_folio(head);
            }
            Err(SplitError::NotHuge) => {}
            Err(_) => self.world.events.split_page_failed += 1,
        }
    }

    fn split_verdict(&mut self, who: usize, page: u64, entry: Entry) -> Result<(), SplitError> {
        let Some(frame) = self.world.space(who).frame(page) else {
            let huge = entry == Entry::Pmd(Backing::Zero);
            return Err(if huge {
                SplitError::Busy
            } else {
                SplitError::NotHuge
            });
        };
        match self.world.folio(frame).1 {
            Folio::Small { .. } => Err(SplitError::NotHuge),
            Folio::Huge(thp) if thp.pins() > 0 => {
                let (expected, pins) = (thp.total() + 1, thp.pins());
                let found = expected + pins;
                Err(SplitError::Pinned { expected, found })
            }
            Folio::Huge(_) => Ok(()),
        }
    }

    fn pin(&mut self, who: usize, page: u64, writing: Writing) {
        let access = match writing {
            Writing::Yes => Access::Write,
            Writing::No => Access::Read,
        };
        let expected = self.verdict(who, page, |prot| match writing {
            Writing::Yes => prot.contains(Prot::WRITE),
            Writing::No => !prot.is_empty(),
        });
        let at = VirtAddr::new(self.addr(page));
        let result = self.on(who, |sim, process| sim.pin_user_page(process, at, access));
        let result = result.map_err(|fault| match fault {
            VmFault::NeedMemory(error) => AccessError::NoMemory(error),
            VmFault::SigSegv(reason) => AccessError::Segv(reason),
            other => panic!("a pin ended with {other:?}"),
        });
        let Some(pinned) = self.accessed((who, page), access, result, expected) else {
            return;
        };
        match self.world.space(who).frame(page) {
            Some(frame) => {
                assert_eq!(pinned.pfn(), Pfn::new(frame), "another page was pinned");
                self.world.pin(frame);
                let (through, attached) = ((who, page), true);
                self.held.push(Held {
                    pinned,
                    through,
                    writing,
                    attached,
                });
            }
            // A zero page: its references are not the model's business.
            None => self.sim.unpin(pinned),
        }
    }

    fn unpin(&mut self, nth: usize) {
        let held = self.held.swap_remove(nth);
        self.world.unpin(held.pinned.pfn().raw());
        self.sim.unpin(held.pinned);
    }

    /// What a device writes to a page, the process finds there, for as long as it has it.
    fn write_through_pin(&mut self, nth: usize, offset: u16, byte: u8) {
        let held = &self.held[nth];
        if held.writing == Writing::No || !held.attached {
            return;
        }
        let address = u64::from(held.pinned.pfn().raw()) * PAGE_BYTES + u64::from(offset);
        self.sim.machine().set_byte(address, byte);
        let (who, page) = held.through;
        self.world.space(who).store(page, offset, byte);
    }

    /// A process that no longer has the page where it was pinned may get another there.
    fn detach_pins(&mut self) {
        for held in &mut self.held {
            let (who, page) = held.through;
            let space = self.world.spaces[who].as_ref();
            let frame = space.and_then(|space| space.frame(page));
            held.attached &= frame == Some(held.pinned.pfn().raw());
        }
    }

    fn shrink(&mut self, budget: u32) {
        let tried: Vec<u32> = self.world.queue.iter().copied().take(budget as usize).collect();
        let progress = self.sim.split_deferred(budget);
        let mut split = 0;
        for &head in &tried {
            if self.world.pins(head) > 0 {
                // To the end: others have their turn first.
                self.world.queue.retain(|&queued| queued != head);
                self.world.queue.push_back(head);
                self.world.events.split_page_failed += 1;
            } else {
                self.world.split_folio(head);
                split += 1;
            }
        }
        assert_eq!((progress.scanned as usize, progress.split), (tried.len(), split));
    }

    // ---- processes

    pub(super) fn on<T>(&self, who: usize, f: impl FnOnce(&'s Sim, &Process<'s>) -> T) -> T {
        let process = self.process(who);
        process.run(|| f(self.sim, process))
    }

    fn other_cpu(&mut self, who: usize) {
        let process = self.processes[who].as_mut().expect("the process is alive");
        let first = cpu(who);
        let other = if process.cpu() == first {
            CpuId::new(first_cpu(who) + 1)
        } else {
            first
        };
        process.run_on(other);
    }

    fn fork(&mut self, parent: usize) {
        let Some(child) = self.processes.iter().position(Option::is_none) else {
            return;
        };
        match self.process(parent).fork(cpu(child)) {
            Err(MapError::NoMemory(error)) => {
                // Copies of what is pinned have been given back by now: there may have been less memory.
                let copies = self.held.len() as u64 * HUGE;
                if self.sim.nr_free_pages() >= SHORT_OF_MEMORY + copies {
                    self.allow(error);
                }
                self.note_splits(parent);
            }
            Err(other) => panic!("fork: {other:?}"),
            Ok(process) => {
                self.processes[child] = Some(process);
                self.follow_fork(parent, child);
            }
        }
    }

    fn follow_fork(&mut self, parent: usize, child: usize) {
        // A page that is held for input or output may have had to be copied: not as a whole, but after a split.
        self.note_splits(parent);
        let mut ours = self.world.space(parent).clone();
        ours.areas.retain(|_, flags| !flags.contains(VmaFlags::DONTCOPY));
        let areas = ours.areas.clone();
        ours.areas
            .retain(|_, flags| !flags.contains(VmaFlags::WIPEONFORK));
        ours.bytes.retain(|page, _| ours.areas.contains_key(page));
        ours.ptes.retain(|page, _| ours.areas.contains_key(page));
        ours.pmds.retain(|span, _| ours.areas.contains_key(span));
        self.world.spaces[child] = Some(Space {
            areas,
            bytes: ours.bytes,
            written: ours.written,
            freed: ours.freed,
            heap_end: ours.heap_end,
            ..Space::default()
        });
        for (&span, &backing) in &ours.pmds {
            self.world.space(child).pmds.insert(span, backing);
            if let Backing::Frame(head) = backing {
                let (_, Folio::Huge(thp)) = self.world.folio(head) else {
                    panic!("a PMD maps a base page")
                };
                thp.fork(parent, child);
            }
        }
        for (&page, &backing) in &ours.ptes {
            match (backing, self.seen(child, page)) {
                (_, Some(Entry::Pte(seen))) if seen == backing => self.world.map_again(child, page, backing),
                (Backing::Frame(frame), Some(Entry::Pte(Backing::Frame(copy)))) => {
                    assert!(self.world.pins(frame) > 0, "page {page} was copied by fork");
                    self.world.map_new_small(child, page, Backing::Frame(copy));
                }
                (_, seen) => panic!("page {page}: the parent has {backing:?}, the child {seen:?}"),
            }
        }
    }

    fn exit(&mut self, who: usize) {
        let areas = self.areas(who);
        self.processes[who] = None;
        for (area, _) in areas {
            self.world.zap(who, &area);
        }
        self.world.spaces[who] = None;
    }

    // ---- comparing

    fn check(&mut self) {
        if cfg!(miri) {
            return;
        }
        let pinned: Vec<Pfn> = self.held.iter().map(|held| held.pinned.pfn()).collect();
        let held = pinned.into_iter().map(|pfn| (pfn, self.references_of_pin(pfn)));
        let held = HeldFrames(held.collect());
        let processes: Vec<&Process<'_>> = self.processes.iter().flatten().collect();
        self.sim.verify(&processes, &held);
    }

    fn references_of_pin(&mut self, pfn: Pfn) -> usize {
        match self.world.folio(pfn.raw()).1 {
            Folio::Huge(_) => 1,
            Folio::Small { .. } => 1 + PIN_BIAS,
        }
    }

    fn compare(&mut self) {
        for who in 0..self.processes.len() {
            if self.processes[who].is_some() {
                self.compare_areas(who);
                self.compare_tables(who);
                self.compare_bytes(who);
            }
        }
        for (&head, folio) in &self.world.folios {
            self.compare_folio(Pfn::new(head), folio);
        }
        self.compare_counters();
    }

    fn compare_areas(&mut self, who: usize) {
        let areas = self.areas(who);
        self.adopt_soft_dirty(who, &areas);
        let pages = areas.into_iter();
        let pages = pages.flat_map(|(area, flags)| area.map(move |page| (page, flags)));
        let space = self.world.space(who);
        assert!(
            pages.eq(space.areas.iter().map(|(&page, &flags)| (page, flags))),
            "areas of {who}"
        );
    }

    /// An area that absorbs one with new memory counts as new as a whole. Which one that is, is its neighbours'
    /// business; what is new, or written since it was last asked, must be found.
    fn adopt_soft_dirty(&mut self, who: usize, areas: &[(Pages, VmaFlags)]) {
        let space = self.world.space(who);
        for (area, flags) in areas {
            let is_new = flags.contains(VmaFlags::SOFTDIRTY);
            for page in area.clone().filter(|_| is_new) {
                if let Some(flags) = space.areas.get_mut(&page) {
                    flags.insert(VmaFlags::SOFTDIRTY);
                }
            }
        }
        let mut freed = core::mem::take(&mut space.freed);
        freed.retain(|&page| space.entry(page).is_some());
        space.freed = freed;
        let mut written = core::mem::take(&mut space.written);
        written.retain(|&page| space.entry(page).is_some());
        for &page in &written {
            let at = VirtAddr::new(self.addr(page));
            let word = mm::report::pagemap(self.sim, self.process(who), at);
            assert!(
                word & PAGEMAP_SOFT_DIRTY != 0,
                "process {who}, page {page}: written, and not soft-dirty"
            );
        }
        self.world.space(who).written = written;
    }

    fn compare_tables(&mut self, who: usize) {
        let mut page = 0;
        while page < self.arena.pages {
            let seen = self.seen(who, page);
            assert_eq!(
                seen,
                self.world.space(who).entry(page),
                "process {who}, page {page}"
            );
            let huge = matches!(seen, Some(Entry::Pmd(_)));
            page = if huge { span_of(page) + HUGE } else { page + 1 };
        }
        let expected = self.world.space(who).rss();
        assert_eq!(self.process(who).rss_pages(), expected, "rss of process {who}");
    }

    /// Every byte of every page.
    fn compare_bytes(&mut self, who: usize) {
        let space = self.world.spaces[who].as_ref().expect("the process is alive");
        let none = super::model::Bytes::new();
        let mut found = [0; PAGE_SIZE];
        for page in space.areas.keys() {
            let bytes = space.bytes.get(page).unwrap_or(&none);
            let Some(frame) = space.frame(*page) else {
                assert!(bytes.is_empty(), "process {who}, page {page}: contents are lost");
                continue;
            };
            self.sim.machine().read_frame(Pfn::new(frame), &mut found);
            for (&at, byte) in bytes {
                let found = core::mem::take(&mut found[usize::from(at)]);
                assert_eq!(found, *byte, "process {who}, page {page}, byte {at}");
            }
            assert!(
                found == [0; PAGE_SIZE],
                "process {who}, page {page}: bytes that nobody wrote"
            );
        }
    }

    fn compare_folio(&self, pfn: Pfn, folio: &Folio) {
        let head = self.sim.pages().page(pfn);
        match folio {
            Folio::Small { mappers, pins } => {
                assert_eq!(head.mapcount() as usize, mappers.len(), "mapcount of {pfn:?}");
                let pins = *pins as usize * (1 + PIN_BIAS);
                assert_eq!(
                    head.refs_hint() as usize,
                    mappers.len() + pins,
                    "references of {pfn:?}"
                );
            }
            Folio::Huge(thp) => {
                thp.verify();
                let (counts, row) = (head.map_counts(), thp.row());
                assert_eq!(
                    (counts.entire, counts.total),
                    (row.entire, row.total),
                    "counts of {pfn:?}"
                );
                assert_eq!(head.refs_hint(), row.refs, "references of {pfn:?}");
                assert_eq!(head.is_double_mapped(), row.double_map, "DoubleMap of {pfn:?}");
                for (i, subpage) in (0..).zip(0..mm::ENTRIES) {
                    assert_eq!(
                        head.offset(i).mapcount(),
                        thp.mapcount(subpage),
                        "subpage {i} of {pfn:?}"
                    );
                }
            }
        }
    }

    fn compare_counters(&self) {
        let (anon, thps) = self.world.anon();
        let now = [
            (Counter::NrAnonPages, anon),
            (Counter::NrAnonThps, thps),
            (Counter::PgLazyFreed, self.world.events.lazily_freed),
        ];
        for (counter, expected) in now.into_iter().chain(self.world.events.counters()) {
            assert_eq!(self.sim.count(counter), expected, "{}", counter.name());
        }
        assert_eq!(
            self.sim.nr_deferred_splits(),
            self.world.queue.len() as u64,
            "the deferred queue"
        );
    }
}

fn first_cpu(slot: usize) -> u8 {
    u8::try_from(2 * slot).expect("few slots")
}

fn cpu(slot: usize) -> CpuId {
    CpuId::new(first_cpu(slot))
}
