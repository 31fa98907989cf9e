//! F7: reaches the pages of an address space from outside: takes a reference to what is mapped, faulting it in first.
//!
//! The first try takes no lock ([`gup_fast`](crate::gup_fast)); what it refuses is looked up here.
//!
//! Locks: takes the mmap lock for reading and the table's lock; none is held on return. The page's contents may be
//! used for as long as the reference is held, whatever happens to the mapping.

use core::marker::PhantomData;

use crate::{
    addr::{PAGE_BYTES, PAGE_SIZE, PMD_SIZE, Pfn, VirtAddr, VirtRange, to_usize},
    address_space::AddressSpace,
    error::VmFault,
    fault::{Access, FaultInfo},
    flags::PageFlags,
    folio::Folio,
    memory::Memory,
    pgtable::{PmdEntry, PteEntry, Visit, cursor::Level, entry::Marks},
    platform::Platform,
};

impl<P: Platform> Memory<P> {
    /// Takes a reference to the page that `addr` is mapped to for `access`, after faulting it in if need be; returns
    /// the folio and the frame of the very page (S6: looking a page up never splits anything).
    ///
    /// # Errors
    /// What the fault ended with, if not in a mapping.
    pub fn get_user_page(
        &self,
        space: &AddressSpace,
        addr: VirtAddr,
        access: Access,
    ) -> Result<(Folio<'_>, Pfn), VmFault> {
        if let Some(found) = self.get_user_page_fast(space, addr, access) {
            return Ok(found);
        }
        loop {
            if let Some(found) = self.lookup_page(space, addr, access) {
                return Ok(found);
            }
            match self.handle_fault(space, FaultInfo { addr, access }) {
                VmFault::Done | VmFault::Retry => {}
                failed => return Err(failed),
            }
        }
    }

    /// Takes a page for input or output: it will be used by its frame number, whatever happens to its mappings. While it
    /// is pinned its folio is not split, and `fork` gives the child a copy.
    ///
    /// # Errors
    /// As [`Memory::get_user_page`].
    pub fn pin_user_page(
        &self,
        space: &AddressSpace,
        addr: VirtAddr,
        access: Access,
    ) -> Result<Pinned<'_>, VmFault> {
        loop {
            let forks = space.nr_forks();
            let (folio, pfn) = self.get_user_page(space, addr, access)?;
            // Nobody ever writes to a zero page, so there is nothing to keep apart; and everybody shares its counts.
            if !self.is_zero_page(folio.page()) {
                folio.page().pin_add();
                // Whoever takes a page by its frame uses it where no entry gets an accessed mark.
                folio.page().set_flags(PageFlags::REFERENCED);
            }
            let pinned = Pinned { folio, pfn };
            // A fork that looked before the mark was there has shared the page.
            if forks.is_multiple_of(2) && space.nr_forks() == forks {
                return Ok(pinned);
            }
            self.unpin(pinned);
            // Waits for the fork to end.
            drop(space.lock().read(self.platform()));
        }
    }

    /// Ends a pin.
    pub fn unpin(&self, pinned: Pinned<'_>) {
        if !self.is_zero_page(pinned.folio.page()) {
            pinned.folio.page().pin_sub();
        }
        self.put(pinned.folio);
    }

    /// The bytes of a pinned page from `offset` on, to be read.
    ///
    /// # Panics
    /// If `offset` is past the page.
    pub fn pinned_bytes<'p>(&self, pinned: &'p Pinned<'_>, offset: usize) -> UserBytes<'p> {
        assert!(offset < PAGE_SIZE, "offset {offset} is past the page");
        UserBytes {
            start: self.platform().frame_ptr(pinned.pfn).wrapping_add(offset),
            len: PAGE_SIZE - offset,
            writable: false,
            _page: PhantomData,
        }
    }

    /// How many references to its folio a pin is: one, and what marks a base page as pinned.
    #[must_use]
    pub fn nr_pin_refs(&self, pinned: &Pinned<'_>) -> u32 {
        let page = pinned.folio.page();
        if self.is_zero_page(page) {
            1
        } else {
            1 + page.pin_refs()
        }
    }

    /// Makes a translation that allows `access` exist for every page of `range` (`MAP_POPULATE`).
    ///
    /// # Errors
    /// What the first fault that failed ended with; pages below it are there.
    pub fn populate(&self, space: &AddressSpace, range: VirtRange, access: Access) -> Result<(), VmFault> {
        let mut addr = range.start();
        while addr < range.end() {
            let (folio, _) = self.get_user_page(space, addr, access)?;
            self.put(folio);
            addr = self.end_of_translation(space, addr);
        }
        Ok(())
    }

    /// Where the translation of `addr` ends: a huge page needs one look, not 512. What is unmapped meanwhile counts as a
    /// base page.
    fn end_of_translation(&self, space: &AddressSpace, addr: VirtAddr) -> VirtAddr {
        let _mmap = space.lock().read(self.platform());
        match self.leaf(space.tables(), addr) {
            Some(Visit::Pmd(start, _)) => start + PMD_SIZE,
            _ => addr + PAGE_BYTES,
        }
    }

    /// Runs `f` on the bytes from `addr` to the end of its page.
    ///
    /// # Errors
    /// As [`Memory::get_user_page`]; `f` was not run.
    pub fn with_user_page(
        &self,
        space: &AddressSpace,
        addr: VirtAddr,
        access: Access,
        f: &mut dyn FnMut(UserBytes<'_>),
    ) -> Result<(), VmFault> {
        let (folio, pfn) = self.get_user_page(space, addr, access)?;
        let offset = to_usize(addr.as_u64() % PAGE_BYTES);
        let start = self.platform().frame_ptr(pfn).wrapping_add(offset);
        f(UserBytes {
            start,
            len: PAGE_SIZE - offset,
            writable: access == Access::Write,
            _page: PhantomData,
        });
        self.put(folio);
        Ok(())
    }

    /// Takes a reference to what is mapped at `addr` now and allows `access`. A write leaves its mark in the entry now:
    /// the caller will write past it.
    fn lookup_page(&self, space: &AddressSpace, addr: VirtAddr, access: Access) -> Option<(Folio<'_>, Pfn)> {
        let _mmap = space.lock().read(self.platform());
        let slot = self.pmd_slot(space.tables(), addr)?;
        let pmds = self.lock_table(slot.table);
        let marked = |marks: Marks| marks.union(marks_of(access));
        match pmds.pmd(slot.index) {
            PmdEntry::Huge {
                pfn,
                prot,
                marks,
                valid: true,
            } if access.allowed_by(prot) => {
                let subpage = u32::try_from(addr.as_u64() % PMD_SIZE / PAGE_BYTES).ok()?;
                let folio = self.try_get(self.pages().page(pfn))?;
                let entry = PmdEntry::Huge {
                    pfn,
                    prot,
                    marks: marked(marks),
                    valid: true,
                };
                self.set_pmd_keeping_marks(&pmds, slot.index, entry);
                Some((folio, pfn.offset(subpage)))
            }
            PmdEntry::Table(table) => {
                drop(pmds);
                let ptes = self.lock_table(table);
                let index = Level::Pte.index(addr);
                let PteEntry::Present { pfn, prot, marks } = ptes.pte(index) else {
                    return None;
                };
                if !access.allowed_by(prot) {
                    return None;
                }
                let folio = self.try_get(self.pages().page(pfn))?;
                self.set_pte_keeping_marks(
                    &ptes,
                    index,
                    PteEntry::Present {
                        pfn,
                        prot,
                        marks: marked(marks),
                    },
                );
                Some((folio, pfn))
            }
            _ => None,
        }
    }
}

/// The marks that an entry must have when the kernel gets at its page for a program.
pub(crate) const fn marks_of(access: Access) -> Marks {
    match access {
        Access::Write => Marks::WRITTEN,
        Access::Read | Access::Exec => Marks::ACCESSED,
    }
}

/// A page that somebody uses by its frame number. Ends by [`Memory::unpin`].
#[derive(Debug)]
#[must_use = "a pin must be ended"]
pub struct Pinned<'a> {
    folio: Folio<'a>,
    pfn: Pfn,
}

impl Pinned<'_> {
    /// The frame of the very page.
    #[must_use]
    pub fn pfn(&self) -> Pfn {
        self.pfn
    }
}

/// Bytes of a page that a program may be using at the same time: they are copied, never referred to.
#[derive(Debug)]
pub struct UserBytes<'a> {
    start: *mut u8,
    len: usize,
    writable: bool,
    _page: PhantomData<&'a ()>,
}

impl UserBytes<'_> {
    /// How many there are: at least one, up to the end of the page.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none: never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes out; returns how many: as many as there are, or fit.
    pub fn read(&self, to: &mut [u8]) -> usize {
        let n = self.len.min(to.len());
        // SAFETY: the page has a reference while `self` lives and holds `len` bytes from here; `to` is the caller's own
        // memory. A program that writes at the same time decides which of its bytes are read, and nothing else.
        unsafe { core::ptr::copy_nonoverlapping(self.start, to.as_mut_ptr(), n) };
        n
    }

    /// Copies bytes in; returns how many: as many as there is room for.
    ///
    /// # Panics
    /// If the page was not asked for to be written.
    pub fn write(&mut self, from: &[u8]) -> usize {
        assert!(self.writable, "the page was asked for to be read");
        let n = self.len.min(from.len());
        // SAFETY: as for `read`, the other way round; the mapping allowed writing when the reference was taken.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), self.start, n) };
        n
    }
}
