//! One folio, one attempt.

use super::{MigrateError, MigrateMode, Targets, migration_supported};
use crate::{
    anon_vma::AnonVma,
    flags::PageFlags,
    folio::{Folio, FolioLocked},
    memory::Memory,
    migration_entry::{Move, WholePmd},
    order::Order,
    page::Page,
    platform::Platform,
    sabotage::sabotage,
    slab::Handle,
};

/// What the target takes over of the source's flags. The exclusive marks travel in the entries.
const MOVED: PageFlags = PageFlags::ERROR
    .union(PageFlags::REFERENCED)
    .union(PageFlags::UPTODATE)
    .union(PageFlags::DIRTY)
    .union(PageFlags::ACTIVE)
    .union(PageFlags::SWAPBACKED)
    .union(PageFlags::UNEVICTABLE)
    .union(PageFlags::MLOCKED);

/// Whether an attempt may sleep for the source's lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Patience {
    /// It passes by.
    Try,
    /// It sleeps.
    Wait,
}

impl Patience {
    pub(super) fn of(mode: MigrateMode, pass: u32) -> Self {
        match mode {
            MigrateMode::Sync if pass >= super::FIRST_WAITING_PASS => Self::Wait,
            MigrateMode::Sync | MigrateMode::Async => Self::Try,
        }
    }
}

/// How an attempt ended that moved nothing.
enum Outcome {
    /// Nobody has the page any more: there is nothing to move.
    Gone,
    /// It stays where it is.
    Refused(MigrateError),
}

/// Whether the source was on the deferred queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Waiting {
    /// It waited for a split: so does the target.
    Queued,
    /// It did not.
    No,
}

impl<'m> Targets<'_, 'm> {
    /// Gives a target back that was not used. It is as it came: nothing about it changes before the point of no return.
    fn put_back<P: Platform>(&mut self, mem: &'m Memory<P>, target: Folio<'m>) {
        crate::vm_assert!(
            target.is_pristine(),
            "{target:?}: was changed though nothing was moved to it"
        );
        match &mut self.put_new {
            Some(put_new) if sabotage!(mem, DoublePutNew) => {
                let again = Folio::from_raw(target.page());
                put_new(target);
                put_new(again);
            }
            Some(put_new) => put_new(target),
            None => mem.put(target),
        }
    }
}

impl<P: Platform> Memory<P> {
    /// Moves `source`, which is isolated and whose reference is the list's. Returns how many base pages that were.
    ///
    /// A page that nobody but the list has any more is not moved but freed: that is a success too.
    ///
    /// # Errors
    /// See [`MigrateError`]; the source again, mapped as before.
    pub(super) fn migrate_folio<'m>(
        &'m self,
        source: Folio<'m>,
        targets: &mut Targets<'_, 'm>,
        patience: Patience,
    ) -> Result<u32, (MigrateError, Folio<'m>)> {
        let pages = source.order().nr_pages();
        if !migration_supported(source.order()) {
            return Err((MigrateError::Unsupported, source));
        }
        if source.page().refs_hint() == 1 {
            self.put_moved(source);
            return Ok(pages);
        }
        let target = match (targets.get_new)(source.page()) {
            Ok(target) => target,
            Err(error) => return Err((MigrateError::NoMemory(error), source)),
        };
        assert!(
            target.order() == source.order() && target.is_pristine(),
            "{target:?}: no fit target for {source:?}"
        );
        match self.move_locked(&source, &target, patience) {
            Ok(()) => {
                self.lru_add(target.page());
                self.put(target);
            }
            Err(Outcome::Gone) => targets.put_back(self, target),
            Err(Outcome::Refused(error)) => {
                targets.put_back(self, target);
                return Err((error, source));
            }
        }
        self.put_moved(source);
        Ok(pages)
    }

    /// The folio lock of a page that is to be moved.
    pub(super) fn lock_source<'m>(
        &'m self,
        source: &Folio<'m>,
        patience: Patience,
    ) -> Option<FolioLocked<'m, P>> {
        match patience {
            Patience::Try => self.try_lock_folio(source),
            Patience::Wait => Some(self.lock_folio(source)),
        }
    }

    fn move_locked<'m>(
        &'m self,
        source: &Folio<'m>,
        target: &Folio<'m>,
        patience: Patience,
    ) -> Result<(), Outcome> {
        let locked = self
            .lock_source(source, patience)
            .ok_or(Outcome::Refused(MigrateError::Locked))?;
        let (from, to) = (source.page(), target.page());
        if sabotage!(self, TargetTouchedEarly) {
            to.set_identity(from.own_mapping(), from.index());
        }
        let (mappings, found) = (from.map_counts().total, from.refs_hint());
        let expected = mappings + 1;
        if found != expected {
            // Somebody uses the frame: nothing needs to be touched to find that out.
            return Err(Outcome::Refused(MigrateError::Pinned { expected, found }));
        }
        if mappings == 0 {
            // The last mapping went while a target was looked for. No walk would find anything (S18).
            return Err(Outcome::Gone);
        }
        // The source's reference keeps the anon_vma.
        let anon_vma = self
            .anon_vma_of(from)
            .ok_or(Outcome::Refused(MigrateError::Busy))?;
        // Nobody knows the target but those who try any frame there is; they do not keep it long.
        let target_locked = self
            .try_lock_folio(target)
            .ok_or(Outcome::Refused(MigrateError::Locked))?;
        self.unmap_to_migrate(from, anon_vma);
        let frozen = self.freeze_to_migrate(from);
        if frozen.is_ok() {
            self.fill_target(from, to, anon_vma);
            from.ref_thaw(1);
        }
        let now = if frozen.is_ok() { to } else { from };
        let mapped = self.remap_after_migration(from, now, anon_vma);
        self.queue_again(now, frozen == Ok(Waiting::Queued), mapped);
        drop(target_locked);
        drop(locked);
        // Whoever found the page being moved looks again. The source still names the anon_vma they wait for.
        self.platform().wake(self.migration_key(from));
        frozen.map(drop).map_err(Outcome::Refused)
    }

    fn unmap_to_migrate(&self, from: Page<'_>, anon_vma: Handle<AnonVma>) {
        let _walk = anon_vma.lock().read(self.platform());
        let nr = from.compound_order().nr_pages();
        self.for_each_place(&anon_vma, from.index(), nr, &mut |place| {
            self.install_migration_entries(from, place, WholePmd::Keep);
        });
    }

    /// Makes the entries that name `from` mappings of `now`; returns how many of its base pages are mapped.
    fn remap_after_migration(&self, from: Page<'_>, now: Page<'_>, anon_vma: Handle<AnonVma>) -> u32 {
        let _walk = anon_vma.lock().read(self.platform());
        let nr = from.compound_order().nr_pages();
        let moved = Move::new(from.pfn(), nr, now);
        let mut mapped = 0;
        self.for_each_place(&anon_vma, from.index(), nr, &mut |place| {
            mapped += self.remove_migration_entries(moved, place);
        });
        mapped
    }

    /// The point of no return: afterwards nobody can get a reference to `from`, and nobody but the list has one.
    fn freeze_to_migrate(&self, from: Page<'_>) -> Result<Waiting, MigrateError> {
        let freeze = || match from.ref_freeze(1) {
            true => Ok(()),
            false => {
                let found = from.refs_hint();
                Err(MigrateError::Pinned { expected: 1, found })
            }
        };
        if from.compound_order() == Order::ZERO {
            return freeze().map(|()| Waiting::No);
        }
        // Under the queue's lock, so that nobody meets a queued folio without references that is not being freed.
        let mut queue = self.node_of(from.pfn()).deferred().lock(self.platform());
        freeze()?;
        let waiting = if from.has(PageFlags::QUEUED) {
            Waiting::Queued
        } else {
            Waiting::No
        };
        queue.forget(from);
        Ok(waiting)
    }

    /// Gives the target identity, flags and contents of the source, which is frozen and mapped nowhere.
    fn fill_target(&self, from: Page<'_>, to: Page<'_>, anon_vma: Handle<AnonVma>) {
        anon_vma.get(1);
        to.set_identity(from.own_mapping(), from.index());
        to.set_flags(from.state().flags() & MOVED);
        // What is counted by this flag is now the target.
        from.clear_flags(PageFlags::MLOCKED);
        for i in 0..from.compound_order().nr_pages() {
            let [from, to] = [from, to].map(|page| self.platform().frame_ptr(page.offset(i).pfn()));
            // SAFETY: the target's frames are the caller's own; the source is frozen and no entry leads to it, so
            // nobody writes to it.
            unsafe { self.platform().copy_page(to, from) };
        }
    }

    /// Sees to it that a huge page of which only a part is mapped waits on the deferred queue: because the source did,
    /// or because a part was unmapped while entries said that it was being moved.
    fn queue_again(&self, now: Page<'_>, was_queued: bool, mapped: u32) {
        if was_queued {
            self.requeue_deferred(now);
        } else if mapped > 0 && mapped < now.compound_order().nr_pages() {
            self.queue_deferred_split(now);
        }
    }
}
