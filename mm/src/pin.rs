//! F7: reaches the pages of an address space from outside: takes a reference to what is mapped, faulting it in first.
//!
//! Locks: takes the mmap lock for reading and the table's lock; none is held on return. The page's contents may be
//! used for as long as the reference is held, whatever happens to the mapping.

use crate::{
    addr::{PAGE_BYTES, PAGE_SIZE, PMD_SIZE, Pfn, VirtAddr, to_usize},
    address_space::AddressSpace,
    error::VmFault,
    fault::{Access, FaultInfo},
    flags::Prot,
    folio::Folio,
    memory::Memory,
    pgtable::{PmdEntry, PteEntry, cursor::Level},
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

    /// Runs `f` on the bytes from `addr` to the end of its page.
    ///
    /// # Errors
    /// As [`Memory::get_user_page`]; `f` was not run.
    pub fn with_user_page(
        &self,
        space: &AddressSpace,
        addr: VirtAddr,
        access: Access,
        f: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), VmFault> {
        let (folio, pfn) = self.get_user_page(space, addr, access)?;
        let offset = to_usize(addr.as_u64() % PAGE_BYTES);
        let start = self.platform().frame_ptr(pfn).wrapping_add(offset);
        // SAFETY: the reference keeps the frame; programs that write to it at the same time race with `f` as they
        // would with a system call's copy, byte by byte, and the kernel never trusts such bytes twice.
        f(unsafe { core::slice::from_raw_parts_mut(start, PAGE_SIZE - offset) });
        self.put(folio);
        Ok(())
    }

    /// Takes a reference to what is mapped at `addr` now and allows `access`.
    fn lookup_page(&self, space: &AddressSpace, addr: VirtAddr, access: Access) -> Option<(Folio<'_>, Pfn)> {
        let _mmap = space.lock().read(self.platform());
        let slot = self.pmd_slot(space.tables(), addr)?;
        let allows = |prot: Prot| !prot.is_empty() && (access != Access::Write || prot.contains(Prot::WRITE));
        let pmds = self.lock_table(slot.table);
        match pmds.pmd(slot.index) {
            PmdEntry::Huge {
                pfn,
                prot,
                valid: true,
                ..
            } if allows(prot) => {
                let subpage = u32::try_from(addr.as_u64() % PMD_SIZE / PAGE_BYTES).ok()?;
                let page = self.pages().page(pfn.offset(subpage));
                self.try_get(page).map(|folio| (folio, page.pfn()))
            }
            PmdEntry::Table(table) => {
                drop(pmds);
                let ptes = self.lock_table(table);
                match ptes.pte(Level::Pte.index(addr)) {
                    PteEntry::Present { pfn, prot, .. } if allows(prot) => {
                        self.try_get(self.pages().page(pfn)).map(|folio| (folio, pfn))
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }
}
