//! F8: moves pages to other frames under running programs.
//!
//! ```text
//!   source: isolated,           entries say             references            target: mapped where
//!   mapped, one reference ──>   "being moved"    ──>    frozen: 1 -> 0  ──>   the source was; on the LRU
//!   of the list's               (migration_entry)       identity, flags,
//!        │                            │                 contents copied       source: free
//!        │ nothing maps it:           │ somebody uses the frame:
//!        │ no walk at all (S18)       │ all entries back, target untouched and given back
//! ```
//! | file | does |
//! |---|---|
//! | this | a list of isolated folios, several passes, targets from and back to the caller |
//! | `one` | one folio, one attempt |
//! | `collect` | which pages of an address space, and why not |
//!
//! The protocol, for one folio: lock the source, then, without waiting, the target; install migration entries; freeze the
//! source's references from exactly one, the list's, to none. That is the point of no return: before it nothing about
//! the target changes, so that a target which is not used goes back as it came (S20, C9); after it nothing can fail.
//! Identity, flags and contents go over, the deferred queue's membership too; then the entries become mappings of the
//! target.
//!
//! A huge page moves whole, by one PMD entry per process that maps it so. If no huge target is to be had it is split and
//! its base pages move one by one.
//!
//! It stands on F8 because it decides by policy (how often to try, when to wait, when to split); its steps are F7's.
//!
//! Locks: none held on entry. Takes the folio lock of the source and inside it that of the target, the anon_vma's lock
//! for reading for each of the two walks, not in between: `fork`, `mprotect`, `munmap` and faults go on meanwhile. The
//! mmap lock is not taken, and must not be held: a fault that waits for a page to arrive holds it for reading.
//!
//! Origin: Linux `migrate_pages` as of v6.1 (68711a746345 for `put_new`, 2ebba6b7e1d9 for the unmapped fast path;
//! 8bdd63809160 is the story of changing the target too early); A5. Differs: decision 0011.

mod collect;
mod one;

pub use collect::{Collected, NotIsolated, Reach};

use crate::{
    counter::Counter,
    error::{AllocError, Errno},
    folio::{Folio, IsolatedList},
    memory::Memory,
    order::{Order, PMD_ORDER},
    page::Page,
    platform::Platform,
};

/// How often a page is tried that somebody else uses.
const PASSES: u32 = 10;
/// From which pass on a caller who may sleep waits for folio locks.
const FIRST_WAITING_PASS: u32 = 3;

/// How much a migration may do to get on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MigrateMode {
    /// Passes by what is locked: for callers that others wait for.
    Async,
    /// Sleeps until a folio lock is free, after a few attempts without.
    Sync,
}

/// Why a page was not moved. It is where it was, mapped as before (a huge page perhaps by PTEs).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MigrateError {
    /// Somebody has it locked. Try again (`EAGAIN`).
    Locked,
    /// Somebody holds references besides the page tables and the list. Try again when they are gone (`EAGAIN`).
    Pinned {
        /// References that entries and the list account for.
        expected: u32,
        /// References found.
        found: u32,
    },
    /// It is no anonymous memory that can be found through its areas. Do not try again (`EBUSY`).
    Busy,
    /// No target was to be had (`ENOMEM`).
    NoMemory(AllocError),
    /// Folios of this size are never moved (`ENOSYS`).
    Unsupported,
}

impl MigrateError {
    /// Whether another attempt may well succeed.
    #[must_use]
    pub const fn is_worth_retrying(self) -> bool {
        matches!(self, Self::Locked | Self::Pinned { .. })
    }
}

impl From<MigrateError> for Errno {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Locked | MigrateError::Pinned { .. } => Self::Again,
            MigrateError::Busy => Self::Busy,
            MigrateError::NoMemory(_) => Self::NoMem,
            MigrateError::Unsupported => Self::NoSys,
        }
    }
}

/// Whether folios of this size are moved at all: base pages, and what a PMD maps (Linux
/// `hugepage_migration_supported`, 100873d7a777).
#[must_use]
pub const fn migration_supported(order: Order) -> bool {
    order.raw() == Order::ZERO.raw() || order.raw() == PMD_ORDER.raw()
}

/// What became of a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Migrated {
    /// Folios that were moved, or that nobody wanted any more.
    pub moved: u32,
    /// Folios that were not; they are still on the list.
    pub failed: u32,
    /// Huge pages that were split because no huge target was to be had; each is counted above by its base pages.
    pub split: u32,
    /// Why the last of those that failed did.
    pub error: Option<MigrateError>,
}

/// Where pages move to: how to get a target for a source, and what to do with one that was not used.
pub struct Targets<'t, 'm> {
    get_new: GetNew<'t, 'm>,
    put_new: Option<PutNew<'t, 'm>>,
}

/// Finds a target: a new folio of the source's size, as the allocator made it.
type GetNew<'t, 'm> = &'t mut dyn FnMut(Page<'m>) -> Result<Folio<'m>, AllocError>;
/// Takes a target back that was not used.
type PutNew<'t, 'm> = &'t mut dyn FnMut(Folio<'m>);

impl<'t, 'm> Targets<'t, 'm> {
    /// Targets from `get_new`; those that are not used are freed.
    pub fn new(get_new: GetNew<'t, 'm>) -> Self {
        let put_new = None;
        Self { get_new, put_new }
    }

    /// Targets from `get_new`; each that is not used goes back to `put_new`, once, as it came.
    pub fn returning(get_new: GetNew<'t, 'm>, put_new: PutNew<'t, 'm>) -> Self {
        Self {
            get_new,
            put_new: Some(put_new),
        }
    }
}

impl<P: Platform> Memory<P> {
    /// Moves the folios on `list` to targets. What is moved leaves the list; what is not is still on it afterwards, in
    /// order of failure, and goes back to the LRU with it.
    ///
    /// When no target is to be had for a base page, the rest is left where it is: the next one would not be had either. A
    /// huge page that has no target and cannot be split stays, and the others are still tried.
    ///
    /// # Panics
    /// If a target is of another size than its source, or not as the allocator made it.
    pub fn migrate_pages<'m>(
        &'m self,
        list: &mut IsolatedList<'m, P>,
        targets: &mut Targets<'_, 'm>,
        mode: MigrateMode,
    ) -> Migrated {
        let mut done = Migrated::default();
        let mut failed = IsolatedList::new(self);
        for pass in 0..PASSES {
            let mut again = IsolatedList::new(self);
            let patience = one::Patience::of(mode, pass);
            while let Some(source) = list.pop_front() {
                match self.migrate_folio(source, targets, patience) {
                    Ok(pages) => {
                        done.moved += 1;
                        self.count_moved(pages);
                    }
                    Err((error, source)) if error.is_worth_retrying() => {
                        done.error = Some(error);
                        again.push_back(source);
                    }
                    Err((MigrateError::NoMemory(error), source)) if source.order() == PMD_ORDER => {
                        if let Err(source) = self.split_to_migrate(source, list, patience) {
                            done.error = Some(MigrateError::NoMemory(error));
                            failed.push_back(source);
                        } else {
                            done.split += 1;
                        }
                    }
                    Err((error, source)) => {
                        done.error = Some(error);
                        failed.push_back(source);
                        if matches!(error, MigrateError::NoMemory(_)) {
                            failed.append(&mut again);
                            failed.append(list);
                        }
                    }
                }
            }
            if again.is_empty() {
                break;
            }
            list.append(&mut again);
        }
        list.append(&mut failed);
        list.iter().for_each(|page| self.count_failed(page));
        done.failed = list.len();
        if done.failed == 0 {
            done.error = None;
        }
        done
    }

    /// Makes base pages of a huge page for which there is no target, and puts them on `list`.
    ///
    /// # Errors
    /// It cannot be split: the page again.
    fn split_to_migrate<'m>(
        &'m self,
        source: Folio<'m>,
        list: &mut IsolatedList<'m, P>,
        patience: one::Patience,
    ) -> Result<(), Folio<'m>> {
        let Some(locked) = self.lock_source(&source, patience) else {
            return Err(source);
        };
        match self.split_isolated(source, locked, list) {
            Ok(()) => {
                self.add(Counter::ThpMigrationSplit, 1);
                Ok(())
            }
            Err((_, source, locked)) => {
                drop(locked);
                Err(source)
            }
        }
    }

    fn count_moved(&self, pages: u32) {
        self.add(Counter::PgMigrateSuccess, i64::from(pages));
        if pages > 1 {
            self.add(Counter::ThpMigrationSuccess, 1);
        }
    }

    fn count_failed(&self, page: Page<'_>) {
        let pages = page.compound_order().nr_pages();
        self.add(Counter::PgMigrateFail, i64::from(pages));
        if pages > 1 {
            self.add(Counter::ThpMigrationFail, 1);
        }
    }
}
