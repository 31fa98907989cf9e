//! Steps that move things: pages to other addresses, contents to other frames.

use std::collections::VecDeque;

use mm::{
    AllocError, AllocFlags, Destination, MapError, MigrateMode, PAGE_BYTES, Pfn, Remains, Remap, VirtAddr,
    VmaFlags,
    folio::{Folio as Handle, IsolatedList},
    migrate::{Collected, Migrated, Reach, Targets},
    page::Page,
};

use super::{
    Pages,
    model::{Backing, Entry, Folio, chunks, span_of},
    play::{Game, Outcome},
};
use crate::scenario::HUGE;

/// How often a migration tries a page that somebody uses.
const PASSES: usize = 10;

/// What a migration asked of its caller, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    /// It got a target for this source.
    Got { source: u32, target: u32 },
    /// It was refused one.
    Refused { source: u32 },
    /// It gave a target back.
    Returned { target: u32 },
}

impl Game<'_> {
    // ---- to other addresses

    /// `mremap` of `old` to a length of `new_len` pages, where it is or to page `to`.
    pub(super) fn remap(&mut self, who: usize, old: &Pages, new_len: u64, to: Option<u64>, remains: Remains) {
        let last = self.arena.pages;
        let start = to.unwrap_or(old.start);
        if start >= last {
            return;
        }
        let new = start..(start + new_len).min(last);
        let request = Remap {
            addr: self.addr(old.start),
            old_len: (old.end - old.start) * PAGE_BYTES,
            new_len: (new.end - new.start) * PAGE_BYTES,
            destination: to.map_or(Destination::Stay, |to| Destination::Fixed(self.addr(to))),
            remains,
        };
        let expected = self.remap_verdict(who, old, &new, to.is_some(), remains);
        let areas = self.areas(who);
        let result = self.on(who, |sim, process| sim.mremap(process, request));
        let outcome = self.judge(result, expected.map(|start| VirtAddr::new(self.addr(start))));
        let cut_off = old.start + (new.end - new.start)..old.end;
        if outcome == Outcome::NoMemory {
            self.remap_failed(who, [to.map(|_| &new), Some(&cut_off)], &areas);
        } else if expected.is_ok() {
            if to.is_some() {
                self.take_away(who, &new, &areas);
            }
            if !cut_off.is_empty() {
                self.take_away(who, &cut_off, &areas);
            }
            let stays = old.start..old.end.min(cut_off.start);
            match to {
                Some(_) => self.move_pages(who, &stays, &new, remains),
                None => self.grow(who, &stays, &new),
            }
        }
    }

    fn remap_verdict(
        &self,
        who: usize,
        old: &Pages,
        new: &Pages,
        moves: bool,
        remains: Remains,
    ) -> Result<u64, MapError> {
        let (old_len, new_len) = (old.end - old.start, new.end - new.start);
        if remains == Remains::EmptyArea && old_len != new_len {
            return Err(MapError::Invalid);
        }
        let areas = self.areas(who);
        let area = areas.iter().find(|(area, _)| area.contains(&old.start));
        let (area, _) = area.ok_or(MapError::BadRange)?;
        if moves && old.start < new.end && new.start < old.end {
            return Err(MapError::Invalid);
        }
        let fits = old.start + old_len.min(new_len) <= area.end;
        match moves {
            true if !fits => Err(MapError::BadRange),
            false if old_len < new_len && !fits => Err(MapError::BadRange),
            false if old_len < new_len => {
                let more = old.end..new.end;
                let room = areas
                    .iter()
                    .all(|(area, _)| area.end <= more.start || more.end <= area.start);
                if room && old.end == area.end {
                    Ok(new.start)
                } else {
                    Err(MapError::NoSpace)
                }
            }
            _ => Ok(new.start),
        }
    }

    /// What was to be replaced or cut off may be gone; nothing has moved.
    fn remap_failed(&mut self, who: usize, may_be_gone: [Option<&Pages>; 2], areas: &[(Pages, VmaFlags)]) {
        for range in may_be_gone
            .into_iter()
            .flatten()
            .filter(|range| !range.is_empty())
        {
            if self.is_gone(who, range) {
                self.take_away(who, range, areas);
            }
        }
        self.note_splits(who);
    }

    fn grow(&mut self, who: usize, stays: &Pages, new: &Pages) {
        let space = self.world.space(who);
        let flags = space.areas[&stays.start];
        space.areas.extend((stays.end..new.end).map(|page| (page, flags)));
    }

    fn move_pages(&mut self, who: usize, from: &Pages, new: &Pages, remains: Remains) {
        self.world.cut(who, from);
        let moved = |page: u64| page - from.start + new.start;
        for chunk in chunks(from) {
            let (span, to) = (span_of(chunk.start), moved(chunk.start));
            let is_whole = chunk == (span..span + HUGE) && to == span_of(to);
            // A table that an earlier failure left at the destination keeps it from moving as one.
            if is_whole && matches!(self.seen(who, to), Some(Entry::Pmd(_))) {
                let space = self.world.space(who);
                let backing = space
                    .pmds
                    .remove(&span)
                    .expect("a PMD does not come from nowhere");
                space.pmds.insert(to, backing);
                continue;
            }
            self.world.split_pmd(who, span);
            let space = self.world.space(who);
            for page in chunk {
                if let Some(backing) = space.ptes.remove(&page) {
                    space.ptes.insert(moved(page), backing);
                }
            }
        }
        let space = self.world.space(who);
        let flags = space.areas[&from.start];
        for page in from.clone() {
            if let Some(bytes) = space.bytes.remove(&page) {
                space.bytes.insert(moved(page), bytes);
            }
            if space.freed.remove(&page) {
                space.freed.insert(moved(page));
            }
            if space.written.remove(&page) {
                space.written.insert(moved(page));
            }
            if remains == Remains::Nothing {
                space.areas.remove(&page);
            }
        }
        space.areas.extend(new.clone().map(|page| (page, flags)));
    }

    // ---- to other frames

    /// Moves the pages in `range` to whatever frames there are.
    pub(super) fn migrate(&mut self, who: usize, range: &Pages, reach: Reach) {
        let (sources, collected) = self.isolated(who, range, reach);
        let virt = self.virt(range);
        let asked = core::cell::RefCell::new(Vec::new());
        let sim = self.sim;
        let mut get_new = |source: Page<'_>| -> Result<Handle<'_>, AllocError> {
            let target = sim.alloc_folio(source.compound_order(), AllocFlags::empty());
            let source = source.pfn().raw();
            asked.borrow_mut().push(match &target {
                Ok(target) => Asked::Got {
                    source,
                    target: target.pfn().raw(),
                },
                Err(_) => Asked::Refused { source },
            });
            target
        };
        let mut put_new = |target: Handle<'_>| {
            asked.borrow_mut().push(Asked::Returned {
                target: target.pfn().raw(),
            });
            sim.put(target);
        };
        let done = self.on(who, |sim, process| {
            let mut list = IsolatedList::new(sim);
            let found = sim.isolate_pages_in(process, virt, reach, &mut |_| true, &mut list);
            assert_eq!(found, collected, "isolated and refused");
            assert!(
                list.iter()
                    .map(Page::pfn)
                    .eq(sources.iter().map(|&head| Pfn::new(head)))
            );
            let mut targets = Targets::returning(&mut get_new, &mut put_new);
            sim.migrate_pages(&mut list, &mut targets, MigrateMode::Sync)
        });
        self.follow_migration(sources, &asked.into_inner(), done);
    }

    /// The folios that isolating `range` should find, and what it should say.
    fn isolated(&mut self, who: usize, range: &Pages, reach: Reach) -> (Vec<u32>, Collected) {
        let (mut sources, mut collected) = (Vec::new(), Collected::default());
        let mut take = |world: &mut super::model::World, frame: u32| {
            let head = world.folio(frame).0;
            let allowed = reach == Reach::All || world.mapcount(frame) == 1;
            if allowed && !sources.contains(&head) {
                sources.push(head);
                collected.isolated += 1;
            } else {
                collected.refused += 1;
            }
        };
        for chunk in chunks(range) {
            let pmd = self.world.space(who).pmds.get(&span_of(chunk.start)).copied();
            if let Some(backing) = pmd {
                if let Backing::Frame(head) = backing {
                    take(&mut self.world, head);
                }
                continue;
            }
            let mut last = None;
            for page in chunk {
                let Some(Backing::Frame(frame)) = self.world.space(who).ptes.get(&page).copied() else {
                    continue;
                };
                let head = self.world.folio(frame).0;
                if last != Some(head) {
                    last = Some(head);
                    take(&mut self.world, frame);
                }
            }
        }
        (sources, collected)
    }

    /// What was asked says where each page is now; the model goes through the list in its turn and says what had to be
    /// asked.
    fn follow_migration(&mut self, sources: Vec<u32>, asked: &[Asked], done: Migrated) {
        let mut asked = asked.iter().copied();
        let mut list = VecDeque::from(sources);
        let (mut failed, mut moved, mut split) = (Vec::new(), 0, 0);
        for _ in 0..PASSES {
            let mut again = VecDeque::new();
            while let Some(source) = list.pop_front() {
                if !self.world.folios.contains_key(&source) {
                    // A part of a huge page that nothing mapped: freed, and that is a success.
                    moved += 1;
                    self.world.events.migrated += 1;
                    continue;
                }
                let (huge, pinned) = (self.is_huge(source), self.world.pins(source) > 0);
                match asked
                    .next()
                    .unwrap_or_else(|| panic!("nothing was asked for frame {source}"))
                {
                    Asked::Got { source: of, target } => {
                        assert_eq!(of, source);
                        if pinned {
                            assert_eq!(asked.next(), Some(Asked::Returned { target }));
                            again.push_back(source);
                        } else {
                            moved += 1;
                            self.world.move_folio(source, target);
                        }
                    }
                    Asked::Refused { source: of } => {
                        assert_eq!(of, source);
                        if !huge {
                            // A large block may be missing although there is memory.
                            self.allow(AllocError {
                                order: mm::Order::ZERO,
                            });
                        }
                        if huge && self.split_to_migrate(source) {
                            split += 1;
                            list.extend((source..).take(mm::ENTRIES));
                        } else {
                            failed.push(source);
                        }
                        if !huge {
                            failed.extend(again.drain(..).chain(list.drain(..)));
                        }
                    }
                    Asked::Returned { target } => panic!("target {target} was given back and is not wanted"),
                }
            }
            if again.is_empty() {
                break;
            }
            list.extend(again);
        }
        failed.extend(list);
        assert_eq!(asked.next(), None, "asked for more than there is to move");
        assert_eq!((done.moved, done.split), (moved, split));
        assert_eq!(done.failed as usize, failed.len());
        for source in failed {
            let huge = self.world.folios.contains_key(&source) && self.is_huge(source);
            self.world.events.migration_failed(huge);
        }
    }

    fn is_huge(&mut self, head: u32) -> bool {
        matches!(self.world.folio(head).1, Folio::Huge(_))
    }

    /// A huge page for which there is no target is split, unless somebody uses it.
    fn split_to_migrate(&mut self, head: u32) -> bool {
        let pinned = self.world.pins(head) > 0;
        if pinned {
            self.world.events.split_page_failed += 1;
        } else {
            self.world.split_folio(head);
            self.world.events.migration_split += 1;
        }
        !pinned
    }
}
