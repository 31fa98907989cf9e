//! Which pages of an address space are to be moved: isolating them by address.
//!
//! Locks: the mmap lock for reading, inside it one table's lock at a time, inside that the LRU lock. None is held on
//! return.

use crate::{
    addr::{PAGE_BYTES, PMD_SIZE, Pfn, VirtAddr, VirtRange},
    address_space::AddressSpace,
    error::Errno,
    folio::{Folio, IsolatedList},
    memory::Memory,
    page::Page,
    pgtable::{PmdEntry, PteEntry, cursor::Level},
    platform::Platform,
    rmap::walk::pages,
};

/// Whose pages may be moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Those that nobody else maps (`MPOL_MF_MOVE`).
    Own,
    /// All (`MPOL_MF_MOVE_ALL`).
    All,
}

impl Reach {
    fn allows(self, page: Page<'_>) -> bool {
        self == Self::All || page.mapcount() == 1
    }
}

/// Why there is no page at an address that could be moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotIsolated {
    /// No area spans the address (`EFAULT`).
    NoArea,
    /// A zero page is mapped there: it is everybody's (`EFAULT`).
    ZeroPage,
    /// Nothing is mapped there, or what was is on its way elsewhere (`ENOENT`).
    Nothing,
    /// Somebody else maps it too, and only pages of one's own were asked for (`EACCES`).
    Shared,
    /// Somebody else has isolated it (`EBUSY`).
    Busy,
}

impl From<NotIsolated> for Errno {
    fn from(why: NotIsolated) -> Self {
        match why {
            NotIsolated::NoArea | NotIsolated::ZeroPage => Self::Fault,
            NotIsolated::Nothing => Self::NoEnt,
            NotIsolated::Shared => Self::Access,
            NotIsolated::Busy => Self::Busy,
        }
    }
}

/// What a walk over a range came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Collected {
    /// Folios that were isolated.
    pub isolated: u32,
    /// Wanted pages that others map too, or have isolated; a huge page that a PMD maps counts once.
    pub refused: u32,
}

impl Collected {
    fn add(&mut self, result: Result<(), NotIsolated>) {
        match result {
            Ok(()) => self.isolated += 1,
            Err(_) => self.refused += 1,
        }
    }
}

impl<P: Platform> Memory<P> {
    /// Returns the frame that is mapped at `addr`; it may be another one the next moment.
    ///
    /// # Errors
    /// [`NotIsolated::NoArea`], [`NotIsolated::ZeroPage`], [`NotIsolated::Nothing`].
    pub fn resident_frame(&self, space: &AddressSpace, addr: VirtAddr) -> Result<Pfn, NotIsolated> {
        let (folio, page) = self.resident_page(space, addr)?;
        self.put(folio);
        Ok(page.pfn())
    }

    /// Isolates the folio that is mapped at `addr` onto `list`.
    ///
    /// # Errors
    /// See [`NotIsolated`]; nothing changed.
    pub fn isolate_page_at<'m>(
        &'m self,
        space: &AddressSpace,
        addr: VirtAddr,
        reach: Reach,
        list: &mut IsolatedList<'m, P>,
    ) -> Result<(), NotIsolated> {
        let (folio, page) = self.resident_page(space, addr)?;
        self.isolate_folio(folio, page, reach, list)
    }

    /// Isolates the folios that are mapped in `range` and `wanted` onto `list`, each once. `wanted` is asked for the page
    /// that an entry leads to, under that entry's table's lock: it must not enter `mm`.
    pub fn isolate_pages_in<'m>(
        &'m self,
        space: &AddressSpace,
        range: VirtRange,
        reach: Reach,
        wanted: &mut dyn FnMut(Page<'m>) -> bool,
        list: &mut IsolatedList<'m, P>,
    ) -> Collected {
        let mut collected = Collected::default();
        let _mmap = space.lock().read(self.platform());
        self.for_each_pmd(space.tables(), range, &mut |slot, chunk| {
            let pmds = self.lock_table(slot.table);
            let table = match pmds.pmd(slot.index) {
                PmdEntry::Huge { pfn, .. } => {
                    let head = self.pages().page(pfn);
                    if !self.is_zero_page(head) && wanted(head) {
                        collected.add(self.isolate_mapped(head, reach, list));
                    }
                    return;
                }
                PmdEntry::Table(table) => table,
                PmdEntry::None | PmdEntry::Migration { .. } => return,
            };
            drop(pmds);
            let ptes = self.lock_table(table);
            let mut last = None;
            for addr in pages(chunk) {
                let PteEntry::Present { pfn, .. } = ptes.pte(Level::Pte.index(addr)) else {
                    continue;
                };
                let page = self.pages().page(pfn);
                // The other subpages of a folio that was just dealt with.
                let known = last == Some(page.head().pfn());
                if known || self.is_zero_page(page) || !wanted(page) {
                    continue;
                }
                last = Some(page.head().pfn());
                collected.add(self.isolate_mapped(page, reach, list));
            }
        });
        collected
    }

    /// Isolates the folio of a page that an entry maps whose table is locked.
    fn isolate_mapped<'m>(
        &'m self,
        page: Page<'m>,
        reach: Reach,
        list: &mut IsolatedList<'m, P>,
    ) -> Result<(), NotIsolated> {
        let folio = self.try_get(page).ok_or(NotIsolated::Nothing)?;
        self.isolate_folio(folio, page, reach, list)
    }

    fn isolate_folio<'m>(
        &'m self,
        folio: Folio<'m>,
        page: Page<'m>,
        reach: Reach,
        list: &mut IsolatedList<'m, P>,
    ) -> Result<(), NotIsolated> {
        let (folio, why) = match reach.allows(page) {
            true => match list.isolate(folio) {
                Ok(()) => return Ok(()),
                Err(folio) => (folio, NotIsolated::Busy),
            },
            false => (folio, NotIsolated::Shared),
        };
        self.put(folio);
        Err(why)
    }

    /// The page that is mapped at `addr`, with a reference to its folio.
    fn resident_page<'m>(
        &'m self,
        space: &AddressSpace,
        addr: VirtAddr,
    ) -> Result<(Folio<'m>, Page<'m>), NotIsolated> {
        let _mmap = space.lock().read(self.platform());
        if space.areas().containing(addr).is_none() {
            return Err(NotIsolated::NoArea);
        }
        let slot = self.pmd_slot(space.tables(), addr).ok_or(NotIsolated::Nothing)?;
        let pmds = self.lock_table(slot.table);
        match pmds.pmd(slot.index) {
            PmdEntry::Huge { pfn, .. } => {
                let subpage = addr.as_u64() % PMD_SIZE / PAGE_BYTES;
                let subpage = u32::try_from(subpage).unwrap_or_else(|_| unreachable!("below 512"));
                self.referenced(self.pages().page(pfn.offset(subpage)))
            }
            PmdEntry::Table(table) => {
                drop(pmds);
                match self.lock_table(table).pte(Level::Pte.index(addr)) {
                    PteEntry::Present { pfn, .. } => self.referenced(self.pages().page(pfn)),
                    PteEntry::None | PteEntry::Migration { .. } => Err(NotIsolated::Nothing),
                }
            }
            PmdEntry::None | PmdEntry::Migration { .. } => Err(NotIsolated::Nothing),
        }
    }

    /// A page that an entry maps whose table is locked, with a reference.
    fn referenced<'m>(&'m self, page: Page<'m>) -> Result<(Folio<'m>, Page<'m>), NotIsolated> {
        if self.is_zero_page(page) {
            return Err(NotIsolated::ZeroPage);
        }
        let folio = self.try_get(page).ok_or(NotIsolated::Nothing)?;
        Ok((folio, page))
    }
}
