//! F7: areas whose pages stay in memory: faulting them in.
//!
//! Locks: none held on entry.

use crate::{
    addr::{VirtAddr, VirtRange},
    address_space::AddressSpace,
    error::MapError,
    fault::Access,
    flags::{Prot, VmaFlags},
    memory::Memory,
    platform::Platform,
};

impl<P: Platform> Memory<P> {
    /// Faults in what is locked in the `len` bytes from `start` on, as far as that goes: what is missing comes by page
    /// faults later.
    pub(crate) fn populate_locked(&self, space: &AddressSpace, start: VirtAddr, len: u64) {
        if let Some(range) = VirtRange::user(start.as_u64(), len) {
            let _ = self.populate_areas(space, range);
        }
    }

    /// Faults in the pages of all areas in `range` but those that are locked as faults bring them: for writing where
    /// the area allows it, so that no copy is left to be made.
    ///
    /// # Errors
    /// [`MapError::NotMapped`]: a hole, or an area that allows nothing. [`MapError::NoMemory`]. What comes before it is
    /// there.
    pub(crate) fn populate_areas(&self, space: &AddressSpace, range: VirtRange) -> Result<(), MapError> {
        let mut from = range.start();
        while from < range.end() {
            let vma = self.vma_at(space, from).ok_or(MapError::NotMapped)?;
            let end = vma.range.end().min(range.end());
            let access = match vma.flags.prot() {
                prot if prot.contains(Prot::WRITE) => Access::Write,
                prot if prot.contains(Prot::READ) => Access::Read,
                prot if prot.contains(Prot::EXEC) => Access::Exec,
                _ => return Err(MapError::NotMapped),
            };
            if !vma.flags.contains(VmaFlags::LOCKONFAULT)
                && let Some(part) = VirtRange::new(from, end)
            {
                self.populate(space, part, access).map_err(MapError::from)?;
            }
            from = end;
        }
        Ok(())
    }
}
