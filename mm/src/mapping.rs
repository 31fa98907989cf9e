//! F7: `mmap`, `munmap`, `brk`: which areas exist.
//!
//! Everything is decided and allocated before the first visible change; zapping and splitting PMDs cannot fail, so from
//! there on an operation runs to its end. The one record that cutting an area in two needs is taken first.
//!
//! Locks: the mmap lock for writing.

use crate::{
    addr::{PAGE_BYTES, USER_END, VirtAddr, VirtRange},
    address_space::{AddressSpace, MIN_ADDR},
    error::{AllocError, MapError},
    flags::{Prot, VmaFlags},
    memory::Memory,
    pgtable::Gather,
    platform::Platform,
    slab::Handle,
    vma::Vma,
};

/// Where a mapping should go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// At the hint if there is room, else anywhere.
    Hint,
    /// Exactly there, in place of whatever is there (`MAP_FIXED`).
    Fixed,
    /// Exactly there, if nothing is there (`MAP_FIXED_NOREPLACE`).
    FixedNoReplace,
}

/// A wish for a private anonymous mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapRequest {
    /// Where, as the program said it; 0: no wish.
    pub hint: u64,
    /// How many bytes; rounded up to pages.
    pub len: u64,
    /// Rights.
    pub prot: Prot,
    /// How binding `hint` is.
    pub place: Place,
    /// Further properties: [`VmaFlags::GROWSDOWN`], [`VmaFlags::NORESERVE`], [`VmaFlags::LOCKED`]. Shared memory does
    /// not exist yet.
    pub flags: VmaFlags,
}

impl<P: Platform> Memory<P> {
    /// Makes an area of private anonymous memory; returns where it begins. If it is locked into memory as a whole, its
    /// pages are faulted in, as far as that goes.
    ///
    /// # Errors
    /// [`MapError::LockLimit`]: it would be locked, and more than may be.
    /// [`MapError::Invalid`]: length 0, unaligned fixed place, shared memory asked for.
    /// [`MapError::Occupied`]: only with [`Place::FixedNoReplace`]. [`MapError::NoSpace`]: also a fixed
    /// place past the end of user space. [`MapError::NoMemory`].
    /// After any of them the areas are as before, but what a fixed mapping was to replace may be gone.
    pub fn mmap(&self, space: &AddressSpace, request: MapRequest) -> Result<VirtAddr, MapError> {
        if request.len == 0 || request.flags.contains(VmaFlags::SHARED) {
            return Err(MapError::Invalid);
        }
        let len = request
            .len
            .checked_next_multiple_of(PAGE_BYTES)
            .filter(|&len| len <= USER_END);
        let len = len.ok_or(MapError::NoSpace)?;
        let mmap = space.lock().write(self.platform());
        let flags = VmaFlags::from_prot(request.prot) | request.flags | VmaFlags::PRIVATE_ANON;
        let flags = flags | space.future_locking();
        let range = self.find_place(space, request, len)?;
        if !space.may_lock_more(flags, range.nr_pages()) {
            return Err(MapError::LockLimit);
        }
        let replaced = || covered_pages(space, range);
        let allowed = space.may_expand(flags, range.nr_pages())
            || space.may_expand(flags, range.nr_pages() - replaced());
        if !allowed || !space.has_room_for_areas(1) {
            return Err(MapError::NoSpace);
        }
        self.unmap_locked(space, range)?;
        let vma = self.insert_area(space, Vma::new(space.handle(), range, flags))?;
        self.merge_area(space, vma);
        drop(mmap);
        if flags.contains(VmaFlags::LOCKED) {
            self.populate_locked(space, range.start(), len);
        }
        Ok(range.start())
    }

    pub(crate) fn find_place(
        &self,
        space: &AddressSpace,
        request: MapRequest,
        len: u64,
    ) -> Result<VirtRange, MapError> {
        let areas = space.areas();
        let exactly = || {
            let why = if request.hint.is_multiple_of(PAGE_BYTES) {
                MapError::NoSpace
            } else {
                MapError::Invalid
            };
            VirtRange::user(request.hint, len).ok_or(why)
        };
        match request.place {
            Place::Fixed => exactly(),
            Place::FixedNoReplace => {
                let range = exactly()?;
                let taken = areas.overlapping(range).next().is_some();
                if taken { Err(MapError::Occupied) } else { Ok(range) }
            }
            Place::Hint => {
                // Like Linux: a hint means the page it lies in, and the lowest one allowed if it lies below that.
                let page = request.hint & !(PAGE_BYTES - 1);
                let hinted = (page != 0)
                    .then(|| VirtRange::user(page.max(MIN_ADDR), len))
                    .flatten();
                let hinted = hinted.filter(|&range| areas.is_free(range));
                hinted.map_or_else(|| self.find_hole(space, len), Ok)
            }
        }
    }

    /// Finds the highest room for `len` bytes.
    pub(crate) fn find_hole(&self, space: &AddressSpace, len: u64) -> Result<VirtRange, MapError> {
        let end = space
            .areas()
            .highest_hole(len, space.mmap_limits())
            .ok_or(MapError::NoSpace)?;
        VirtRange::new(end - len, end).ok_or(MapError::NoSpace)
    }

    /// Removes all mappings of `range`; areas that reach over its ends are cut.
    ///
    /// # Errors
    /// [`MapError::NoSpace`]: a cut would make one area too many. [`MapError::NoMemory`]: no record for a cut. In both
    /// cases nothing is unmapped.
    pub fn munmap(&self, space: &AddressSpace, range: VirtRange) -> Result<(), MapError> {
        let _mmap = space.lock().write(self.platform());
        self.unmap_locked(space, range)
    }

    /// [`Memory::munmap`] under the mmap lock held for writing.
    pub(crate) fn unmap_locked(&self, space: &AddressSpace, range: VirtRange) -> Result<(), MapError> {
        let Some(first) = space.areas().overlapping(range).next() else {
            return Ok(());
        };
        // What is cut off goes away again, unless one area is cut at both ends (Linux counts the same way).
        let hole_inside = first.start() < range.start() && range.end() < first.end();
        let nr_new_areas = u32::from(hole_inside);
        self.isolate_range_for(space, range, nr_new_areas)?;
        let mut gather = Gather::new(self, space.tables());
        for vma in space.areas().overlapping(range) {
            self.unlock_pages(space, vma);
            self.zap_range(space, vma.range(), &mut gather);
        }
        while let Some(vma) = space.areas().overlapping(range).next() {
            self.remove_area(space, vma);
        }
        let all = VirtRange::new(VirtAddr::zero(), VirtAddr::new(USER_END)).unwrap_or(range);
        self.remove_tables(
            space.tables(),
            range,
            space.areas().hole_around(range, all),
            &mut gather,
        );
        gather.finish();
        Ok(())
    }

    /// Cuts areas so that none reaches over an end of `range`.
    ///
    /// # Errors
    /// As [`Memory::munmap`]; a first cut is undone when the second fails.
    pub(crate) fn isolate_range(&self, space: &AddressSpace, range: VirtRange) -> Result<(), MapError> {
        let is_cut = |at: VirtAddr| space.areas().containing(at).is_some_and(|vma| vma.start() < at);
        let nr_cuts = u32::from(is_cut(range.start())) + u32::from(is_cut(range.end()));
        self.isolate_range_for(space, range, nr_cuts)
    }

    /// [`Memory::isolate_range`] for an operation that leaves `nr_new` areas more than there are.
    fn isolate_range_for(&self, space: &AddressSpace, range: VirtRange, nr_new: u32) -> Result<(), MapError> {
        if !space.has_room_for_areas(nr_new) {
            return Err(MapError::NoSpace);
        }
        let cuts = [range.start(), range.end()];
        let lower = self.cut_at(space, cuts[0])?;
        if let Err(error) = self.cut_at(space, cuts[1]) {
            if let Some(upper) = lower {
                self.merge_area(space, upper);
            }
            return Err(error.into());
        }
        Ok(())
    }

    /// Cuts the area around `at`, if there is one, and the huge mapping that the cut goes through; returns the area
    /// that begins at the cut.
    fn cut_at(&self, space: &AddressSpace, at: VirtAddr) -> Result<Option<Handle<Vma>>, AllocError> {
        let Some(vma) = space.areas().containing(at).filter(|vma| vma.start() < at) else {
            return Ok(None);
        };
        let upper = self.split_area(space, vma, at)?;
        if !at.is_aligned(crate::addr::PMD_SIZE)
            && let Some(slot) = self.pmd_slot(space.tables(), at)
        {
            self.split_pmd_slot(space, slot);
        }
        Ok(Some(upper))
    }

    /// Moves the end of the heap to `end` and returns where it is now: `end`, or the old one if that cannot be
    /// (below its start, out of memory, something in the way). Linux `brk`.
    pub fn brk(&self, space: &AddressSpace, end: VirtAddr) -> VirtAddr {
        let mmap = space.lock().write(self.platform());
        let (start, old) = space.brk_bounds();
        let (new_page, old_page) = (
            end.as_u64().checked_next_multiple_of(PAGE_BYTES),
            old.align_up(PAGE_BYTES),
        );
        let Some(new_page) = new_page.filter(|&page| end >= start && page <= USER_END) else {
            return old;
        };
        let new_page = VirtAddr::new(new_page);
        let moved = if new_page > old_page {
            VirtRange::new(old_page, new_page).is_some_and(|range| self.grow_heap(space, range).is_ok())
        } else {
            VirtRange::new(new_page, old_page).is_some_and(|range| self.unmap_locked(space, range).is_ok())
        };
        if !moved {
            return old;
        }
        space.set_brk_end(end);
        let is_locked = space.future_locking().contains(VmaFlags::LOCKED);
        drop(mmap);
        if is_locked && new_page > old_page {
            self.populate_locked(space, old_page, new_page - old_page);
        }
        end
    }

    fn grow_heap(&self, space: &AddressSpace, range: VirtRange) -> Result<(), MapError> {
        if range.is_empty() {
            return Ok(());
        }
        // Like Linux: a page stays free between the heap and what lies above it.
        let is_free = space.areas().is_free_with_room(range, PAGE_BYTES);
        let flags = VmaFlags::from_prot(Prot::READ | Prot::WRITE) | VmaFlags::PRIVATE_ANON;
        let flags = flags | space.future_locking();
        let pages = range.nr_pages();
        let allowed = space.may_expand(flags, pages) && space.may_lock_more(flags, pages);
        if !is_free || !allowed || !space.has_room_for_areas(1) {
            return Err(MapError::NoSpace);
        }
        let vma = self.insert_area(space, Vma::new(space.handle(), range, flags))?;
        self.merge_area(space, vma);
        Ok(())
    }

    /// Joins areas that have become alike, in and around `range`.
    pub(crate) fn merge_range(&self, space: &AddressSpace, range: VirtRange) {
        let mut from = range.start();
        while let Some(vma) = space.areas().find(from).filter(|vma| vma.start() <= range.end()) {
            let merged = self.merge_area(space, vma);
            from = merged.end();
        }
    }
}

/// How many pages of `range` areas span.
fn covered_pages(space: &AddressSpace, range: VirtRange) -> u64 {
    let parts = space.areas().overlapping(range);
    parts
        .filter_map(|vma| vma.range().intersect(range))
        .map(VirtRange::nr_pages)
        .sum()
}

/// Whether areas cover all of `range`.
pub(crate) fn covered(space: &AddressSpace, range: VirtRange) -> Result<(), MapError> {
    let reached = space
        .areas()
        .overlapping(range)
        .try_fold(range.start(), |reached, vma| {
            (vma.start() <= reached).then(|| vma.end())
        });
    if reached.is_some_and(|reached| reached >= range.end()) {
        Ok(())
    } else {
        Err(MapError::NotMapped)
    }
}
