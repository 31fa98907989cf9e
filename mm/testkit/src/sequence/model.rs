//! What must be true: who maps which frame how, what is in it, what is counted.
//!
//! The model never looks at `mm`'s records. It is told which frame a fault has brought in (that is the allocator's free
//! choice) and predicts everything else: what each process's tables say, every counter, every byte.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mm::{Counter, Prot, VmaFlags};

use super::Pages;
use crate::{
    oracle::{Subpages, Thp},
    scenario::HUGE,
};

/// What a page table entry leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Backing {
    /// A zero page.
    Zero,
    /// This frame.
    Frame(u32),
}

/// What one entry maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    /// A span; the frame is its first.
    Pmd(Backing),
    /// A page.
    Pte(Backing),
}

/// Bytes of a page that are not zero.
pub(super) type Bytes = BTreeMap<u16, u8>;

/// One process.
#[derive(Clone, Debug, Default)]
pub(super) struct Space {
    /// The flags of the area around each page.
    pub(super) areas: BTreeMap<u64, VmaFlags>,
    /// Contents of the pages that are not all zero.
    pub(super) bytes: BTreeMap<u64, Bytes>,
    /// Spans that are mapped by a PMD, by their first page.
    pub(super) pmds: BTreeMap<u64, Backing>,
    /// Pages that are mapped by a PTE.
    pub(super) ptes: BTreeMap<u64, Backing>,
    pub(super) heap_end: u64,
    /// Pages that were written since `clear_refs`.
    pub(super) written: BTreeSet<u64>,
    /// Pages that were lazily freed and not written since.
    pub(super) freed: BTreeSet<u64>,
}

impl Space {
    pub(super) fn prot(&self, page: u64) -> Option<Prot> {
        self.areas.get(&page).map(|flags| flags.prot())
    }

    pub(super) fn has_hole(&self, range: &Pages) -> bool {
        range.clone().any(|page| !self.areas.contains_key(&page))
    }

    /// The entry that maps `page`.
    pub(super) fn entry(&self, page: u64) -> Option<Entry> {
        let pmd = self.pmds.get(&span_of(page)).map(|&backing| Entry::Pmd(backing));
        pmd.or_else(|| self.ptes.get(&page).map(|&backing| Entry::Pte(backing)))
    }

    /// The frame behind `page`, in whatever way it is mapped.
    pub(super) fn frame(&self, page: u64) -> Option<u32> {
        match self.entry(page)? {
            Entry::Pmd(Backing::Frame(head)) => Some(head + subpage_number(page - span_of(page))),
            Entry::Pte(Backing::Frame(frame)) => Some(frame),
            _ => None,
        }
    }

    /// Resident pages: zero pages do not count.
    pub(super) fn rss(&self) -> u64 {
        let huge = self.pmds.values().filter(|&&b| b != Backing::Zero).count();
        let small = self.ptes.values().filter(|&&b| b != Backing::Zero).count();
        huge as u64 * HUGE + small as u64
    }

    pub(super) fn store(&mut self, page: u64, offset: u16, byte: u8) {
        let bytes = self.bytes.entry(page).or_default();
        if byte == 0 {
            bytes.remove(&offset);
        } else {
            bytes.insert(offset, byte);
        }
    }

    pub(super) fn load(&self, page: u64, offset: u16) -> u8 {
        let bytes = self.bytes.get(&page);
        bytes.and_then(|bytes| bytes.get(&offset)).copied().unwrap_or(0)
    }
}

/// A unit of memory that some entry or pin leads to.
#[derive(Clone, Debug)]
pub(super) enum Folio {
    Huge(Box<Thp>),
    Small { mappers: BTreeSet<usize>, pins: u32 },
}

impl Folio {
    fn is_free(&self) -> bool {
        match self {
            Self::Huge(thp) => thp.is_free(),
            Self::Small { mappers, pins } => mappers.is_empty() && *pins == 0,
        }
    }

    fn pages(&self) -> u32 {
        match self {
            Self::Huge(_) => mm::HPAGE_PAGES,
            Self::Small { .. } => 1,
        }
    }
}

/// What happened, as far as `/proc/vmstat` counts it. The model predicts all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Events {
    /// PMDs that became PTEs.
    pub split_pmd: u64,
    /// Huge pages that became base pages.
    pub split_page: u64,
    /// Huge pages that did not because somebody used them.
    pub split_page_failed: u64,
    /// Huge pages that became partly unmapped.
    pub deferred: u64,
    /// Huge pages that faults brought in.
    pub fault_alloc: u64,
    /// Base pages that moved to other frames, those of huge pages included.
    pub migrated: u64,
    /// Huge pages that did.
    pub migrated_huge: u64,
    /// Base pages that could not move.
    pub not_migrated: u64,
    /// Huge pages that could not.
    pub not_migrated_huge: u64,
    /// Huge pages that were split because there was no room for them elsewhere.
    pub migration_split: u64,
    /// Base pages that were dropped because they were lazily freed, those of huge pages included.
    pub lazily_freed: u64,
}

impl Events {
    pub(super) fn migration_failed(&mut self, huge: bool) {
        self.not_migrated += if huge { HUGE } else { 1 };
        self.not_migrated_huge += u64::from(huge);
    }

    /// Each with its counter.
    #[must_use]
    pub fn counters(&self) -> [(Counter, u64); 10] {
        [
            (Counter::ThpSplitPmd, self.split_pmd),
            (Counter::ThpSplitPage, self.split_page),
            (Counter::ThpSplitPageFailed, self.split_page_failed),
            (Counter::ThpDeferredSplitPage, self.deferred),
            (Counter::ThpFaultAlloc, self.fault_alloc),
            (Counter::PgMigrateSuccess, self.migrated),
            (Counter::ThpMigrationSuccess, self.migrated_huge),
            (Counter::PgMigrateFail, self.not_migrated),
            (Counter::ThpMigrationFail, self.not_migrated_huge),
            (Counter::ThpMigrationSplit, self.migration_split),
        ]
    }
}

/// All processes and all their memory.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) spaces: Vec<Option<Space>>,
    /// By first frame.
    pub(super) folios: BTreeMap<u32, Folio>,
    /// Huge pages that wait to be split, oldest first.
    pub(super) queue: VecDeque<u32>,
    pub(super) events: Events,
}

pub(super) fn span_of(page: u64) -> u64 {
    page - page % HUGE
}

fn subpage_number(offset: u64) -> u32 {
    u32::try_from(offset).expect("below the pages of a span")
}

/// The parts of `range` in each span.
pub(super) fn chunks(range: &Pages) -> Vec<Pages> {
    let spans = (span_of(range.start)..range.end).step_by(usize::try_from(HUGE).expect("small"));
    spans
        .map(|span| range.start.max(span)..range.end.min(span + HUGE))
        .filter(|chunk| !chunk.is_empty())
        .collect()
}

impl World {
    pub(super) fn new(slots: usize) -> Self {
        Self {
            spaces: vec![None; slots],
            ..Self::default()
        }
    }

    /// # Panics
    /// If nobody is in the slot.
    pub(super) fn space(&mut self, who: usize) -> &mut Space {
        self.spaces[who].as_mut().expect("the process is alive")
    }

    /// The folio around a frame, and its first frame.
    pub(super) fn folio(&mut self, frame: u32) -> (u32, &mut Folio) {
        let found = self.folios.range_mut(..=frame).next_back();
        let (&head, folio) = found.expect("a mapped frame belongs to a folio");
        assert!(frame < head + folio.pages(), "frame {frame} belongs to no folio");
        (head, folio)
    }

    /// How many processes map a frame.
    pub(super) fn mapcount(&mut self, frame: u32) -> u32 {
        match self.folio(frame) {
            (head, Folio::Huge(thp)) => thp.mapcount((frame - head) as usize),
            (_, Folio::Small { mappers, .. }) => mappers.len().try_into().expect("few"),
        }
    }

    /// References to the folio around a frame that are not entries.
    pub(super) fn pins(&mut self, frame: u32) -> u32 {
        match self.folio(frame).1 {
            Folio::Huge(thp) => thp.pins(),
            Folio::Small { pins, .. } => *pins,
        }
    }

    pub(super) fn pin(&mut self, frame: u32) {
        match self.folio(frame).1 {
            Folio::Huge(thp) => thp.pin(1),
            Folio::Small { pins, .. } => *pins += 1,
        }
    }

    pub(super) fn unpin(&mut self, frame: u32) {
        match self.folio(frame).1 {
            Folio::Huge(thp) => thp.unpin(1),
            Folio::Small { pins, .. } => *pins -= 1,
        }
    }

    fn adopt(&mut self, head: u32, folio: Folio) {
        let end = head + folio.pages();
        let below = self.folios.range(..end).next_back();
        let taken = below.is_some_and(|(&other, folio)| other + folio.pages() > head);
        assert!(!taken, "frame {head} was handed out while it is in use");
        self.folios.insert(head, folio);
    }

    /// A fault has mapped a new huge page, or the huge zero page.
    pub(super) fn map_new_huge(&mut self, who: usize, span: u64, backing: Backing) {
        if let Backing::Frame(head) = backing {
            self.adopt(head, Folio::Huge(Box::new(Thp::map_new(who))));
            self.events.fault_alloc += 1;
        }
        self.space(who).pmds.insert(span, backing);
    }

    /// A fault has mapped a new base page, or the zero page.
    pub(super) fn map_new_small(&mut self, who: usize, page: u64, backing: Backing) {
        if let Backing::Frame(frame) = backing {
            let mappers = [who].into();
            self.adopt(frame, Folio::Small { mappers, pins: 0 });
        }
        self.space(who).ptes.insert(page, backing);
    }

    /// `who` maps a frame that others map by a PTE more.
    pub(super) fn map_again(&mut self, who: usize, page: u64, backing: Backing) {
        if let Backing::Frame(frame) = backing {
            match self.folio(frame) {
                (head, Folio::Huge(thp)) => thp.map_ptes(who, &Subpages::run((frame - head) as usize, 1)),
                (_, Folio::Small { mappers, .. }) => {
                    assert!(mappers.insert(who), "one process maps frame {frame} twice");
                }
            }
        }
        self.space(who).ptes.insert(page, backing);
    }

    /// The PMD of `span` becomes PTEs, if there is one.
    pub(super) fn split_pmd(&mut self, who: usize, span: u64) {
        let Some(backing) = self.space(who).pmds.remove(&span) else {
            return;
        };
        self.events.split_pmd += 1;
        if let Backing::Frame(head) = backing {
            self.change(head, |thp| thp.split_pmd(who));
        }
        for page in 0..HUGE {
            let part = match backing {
                Backing::Zero => Backing::Zero,
                Backing::Frame(head) => Backing::Frame(head + subpage_number(page)),
            };
            self.space(who).ptes.insert(span + page, part);
        }
    }

    /// Changes a huge page's mappings; a page that becomes partly unmapped goes to the end of the queue.
    fn change(&mut self, head: u32, change: impl FnOnce(&mut Thp)) {
        let Some(Folio::Huge(thp)) = self.folios.get_mut(&head) else {
            panic!("frame {head} is no huge page")
        };
        let before = thp.shares().deferred;
        change(thp);
        if thp.shares().deferred > before {
            self.queue.push_back(head);
            self.events.deferred += 1;
        }
    }

    /// An operation that cuts areas at the ends of `range` splits the PMDs that the cuts go through.
    pub(super) fn cut(&mut self, who: usize, range: &Pages) {
        for at in [range.start, range.end] {
            if at % HUGE != 0 {
                self.split_pmd(who, span_of(at));
            }
        }
    }

    /// The pages of `range`, which lies in one area, lose what they hold.
    pub(super) fn zap(&mut self, who: usize, range: &Pages) {
        for chunk in chunks(range) {
            let span = span_of(chunk.start);
            if chunk == (span..span + HUGE)
                && let Some(backing) = self.space(who).pmds.remove(&span)
            {
                if let Backing::Frame(head) = backing {
                    self.change(head, |thp| thp.unmap_pmd(who));
                }
                continue;
            }
            self.split_pmd(who, span);
            self.zap_ptes(who, &chunk);
        }
    }

    /// Neighbouring entries that lead to neighbouring pages of one folio go together.
    pub(super) fn zap_ptes(&mut self, who: usize, chunk: &Pages) {
        let mut run: Option<(u32, u32)> = None;
        for page in chunk.clone() {
            let Some(Backing::Frame(frame)) = self.space(who).ptes.remove(&page) else {
                continue;
            };
            let follows =
                run.filter(|&(first, nr)| frame == first + nr && self.folio(first).0 == self.folio(frame).0);
            run = match follows {
                Some((first, nr)) => Some((first, nr + 1)),
                None => {
                    self.unmap_run(who, run);
                    Some((frame, 1))
                }
            };
        }
        self.unmap_run(who, run);
    }

    fn unmap_run(&mut self, who: usize, run: Option<(u32, u32)>) {
        let Some((first, nr)) = run else { return };
        let head = match self.folio(first) {
            (head, Folio::Huge(_)) => head,
            (_, Folio::Small { mappers, .. }) => {
                assert!(mappers.remove(&who) && nr == 1);
                return;
            }
        };
        let set = Subpages::run((first - head) as usize, nr as usize);
        self.change(head, |thp| thp.unmap_ptes(who, &set));
    }

    /// A huge page becomes base pages: first every PMD that maps it becomes PTEs.
    pub(super) fn split_folio(&mut self, head: u32) {
        for who in 0..self.spaces.len() {
            let Some(space) = &self.spaces[who] else { continue };
            let span = space.pmds.iter().find(|(_, b)| **b == Backing::Frame(head));
            if let Some((&span, _)) = span {
                self.split_pmd(who, span);
            }
        }
        let Some(Folio::Huge(thp)) = self.folios.remove(&head) else {
            panic!("frame {head} is no huge page")
        };
        self.queue.retain(|&queued| queued != head);
        self.events.split_page += 1;
        for (subpage, frame) in (head..).take(mm::ENTRIES).enumerate() {
            let mappers: BTreeSet<usize> = (0..self.spaces.len())
                .filter(|&who| thp.maps(who, subpage))
                .collect();
            if !mappers.is_empty() {
                self.folios.insert(frame, Folio::Small { mappers, pins: 0 });
            }
        }
    }

    /// A folio moved to other frames; whoever mapped it does so still.
    pub(super) fn move_folio(&mut self, from: u32, to: u32) {
        let folio = self.folios.remove(&from).expect("what moves was there");
        let nr = folio.pages();
        self.events.migrated += u64::from(nr);
        let moved = match folio {
            Folio::Huge(thp) => {
                self.events.migrated_huge += 1;
                Folio::Huge(Box::new(thp.mapped_anew()))
            }
            small @ Folio::Small { .. } => small,
        };
        if self.queue.contains(&from) {
            self.queue.retain(|&queued| queued != from);
            self.queue.push_back(to);
        }
        self.adopt(to, moved);
        for space in self.spaces.iter_mut().flatten() {
            for backing in space.pmds.values_mut().chain(space.ptes.values_mut()) {
                if let Backing::Frame(frame) = backing
                    && (from..from + nr).contains(frame)
                {
                    *frame = *frame - from + to;
                }
            }
        }
    }

    /// Forgets what nobody uses any more.
    pub(super) fn forget_free(&mut self) {
        self.folios.retain(|_, folio| !folio.is_free());
        let folios = &self.folios;
        self.queue.retain(|head| folios.contains_key(head));
    }

    /// Distinct base pages that some entry maps, and huge pages that some PMD maps.
    pub(super) fn anon(&self) -> (u64, u64) {
        let share = |folio: &Folio| match folio {
            Folio::Huge(thp) => {
                let shares = thp.shares();
                (u64::from(shares.anon_pages), u64::from(shares.anon_thps))
            }
            Folio::Small { mappers, .. } => (u64::from(!mappers.is_empty()), 0),
        };
        let shares = self.folios.values().map(share);
        shares.fold((0, 0), |(pages, thps), (p, t)| (pages + p, thps + t))
    }
}
