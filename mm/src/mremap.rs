//! F7: `mremap`: makes an area larger or smaller, and moves it with its pages.
//!
//! ```text
//!   old:  ···[ cut here ]=========[ cut here ]···         new:  [=========|  grown part, empty  ]
//!                           │                                        ▲
//!                           └── entries move, pages stay ────────────┘
//!
//!   span   PMD huge, being moved, or a table of PTEs: the one entry moves     (both ends at a 2 MiB boundary)
//!   part   PMD huge: split_pmd, then as PTEs; PTEs move one by one
//! ```
//! No page is copied and no counter of a page changes: an entry goes from one place to another. What pages keep about
//! where they belong is an anon_vma and an index, not an address; the area takes both along, so rmap finds them where
//! they are now.
//!
//! Locks: the mmap lock for writing, inside it the area's anon_vma for writing while entries move: a walk that came by
//! in the middle would find an entry in neither place, or in both (Linux dd18dbc2d42a). Both tables' locks over each
//! step. What was present is flushed before the old table is unlocked: afterwards somebody may free the page through its
//! new place, and a CPU that still wrote through the old one would write into other people's memory (CVE-2018-18281).
//!
//! All that may fail comes first, but for the tables of the new place. If one of those is not to be had, the entries
//! move back, for which the tables are all there.
//!
//! Origin: Linux `move_vma`, `move_page_tables` as of v6.1; A12. Differs: bad arguments are found before anything is
//! unmapped for a fixed place; rmap walks are always kept out, not only where they could come in the wrong order.

use crate::{
    addr::{PAGE_BYTES, PMD_SIZE, USER_END, VirtAddr, VirtRange},
    address_space::{AddressSpace, MAX_AREAS},
    error::{AllocError, MapError},
    flags::VmaFlags,
    mapping::{MapRequest, Place},
    memory::Memory,
    pgtable::{Gather, PmdEntry, PmdSlot, PteEntry, RawPmd, RawPte, cursor::Level, entry::Marks},
    platform::{Platform, Stride},
    rmap::walk::pages,
    slab::Handle,
    vma::Vma,
};

/// Where the area may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// Nowhere: it grows where it is, or not at all.
    Stay,
    /// Anywhere, if it cannot grow where it is (`MREMAP_MAYMOVE`).
    Anywhere,
    /// Away from where it is: at the hint if there is room, else anywhere (`MREMAP_DONTUNMAP` alone).
    Hint(u64),
    /// Exactly there, in place of whatever is there (`MREMAP_FIXED`).
    Fixed(u64),
}

/// What is left where an area was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remains {
    /// Nothing.
    Nothing,
    /// The area, without its pages (`MREMAP_DONTUNMAP`).
    EmptyArea,
}

/// A wish to resize or move part of an area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remap {
    /// Where it begins.
    pub addr: u64,
    /// How many bytes of it; rounded up to pages.
    pub old_len: u64,
    /// How many bytes there shall be; rounded up to pages.
    pub new_len: u64,
    /// Where it may go.
    pub destination: Destination,
    /// What is left behind if it goes. [`Remains::EmptyArea`] needs both lengths to be equal.
    pub remains: Remains,
}

/// [`Remap`] in whole pages.
#[derive(Clone, Copy)]
struct Plan {
    addr: VirtAddr,
    old_len: u64,
    new_len: u64,
}

/// As Linux rounds: a length that wraps becomes 0.
fn round_up(len: u64) -> u64 {
    len.wrapping_add(PAGE_BYTES - 1) & !(PAGE_BYTES - 1)
}

impl Plan {
    /// Checks what can be checked without the areas.
    fn new(request: &Remap) -> Result<Self, MapError> {
        let (old_len, new_len) = (round_up(request.old_len), round_up(request.new_len));
        let resizes_what_stays = request.remains == Remains::EmptyArea && request.old_len != request.new_len;
        if !request.addr.is_multiple_of(PAGE_BYTES) || resizes_what_stays || new_len == 0 {
            return Err(MapError::Invalid);
        }
        if request.addr >= USER_END {
            return Err(MapError::BadRange);
        }
        Ok(Self {
            addr: VirtAddr::new(request.addr),
            old_len,
            new_len,
        })
    }

    /// The pages that move.
    fn moved(&self) -> Result<VirtRange, MapError> {
        VirtRange::user(self.addr.as_u64(), self.old_len.min(self.new_len)).ok_or(MapError::BadRange)
    }

    /// What is cut off when it shrinks.
    fn tail(&self) -> Result<Option<VirtRange>, MapError> {
        let cut = self.old_len.saturating_sub(self.new_len);
        if cut == 0 {
            return Ok(None);
        }
        let start = self.addr.as_u64().checked_add(self.new_len);
        let tail = start.and_then(|start| VirtRange::user(start, cut));
        tail.map(Some).ok_or(MapError::Invalid)
    }

    fn overlaps(&self, to: VirtRange) -> bool {
        let end = self.addr.as_u64().saturating_add(self.old_len);
        end > to.start().as_u64() && to.end() > self.addr
    }
}

impl<P: Platform> Memory<P> {
    /// Resizes the pages of one area, and moves them if they do not fit where they are and may go elsewhere; returns
    /// where they begin now. Pages that are new in an area that is locked into memory are faulted in.
    ///
    /// # Errors
    /// [`MapError::Invalid`]: unaligned, no new length, source and fixed destination overlap, an old length of 0 (which
    /// means something for shared memory only). [`MapError::BadRange`]: no area there, or it ends before the old
    /// length does. [`MapError::LockLimit`]. [`MapError::NoSpace`]: no room, too many areas, a limit.
    /// [`MapError::NoMemory`].
    /// After all of them nothing has moved and nothing is resized; what a fixed destination was to replace may be gone
    /// after `NoMemory`, and so may be what was to be cut off.
    pub fn mremap(&self, space: &AddressSpace, request: Remap) -> Result<VirtAddr, MapError> {
        let plan = Plan::new(&request)?;
        let mmap = space.lock().write(self.platform());
        let vma = space.areas().containing(plan.addr).ok_or(MapError::BadRange)?;
        let is_locked = vma.flags().contains(VmaFlags::LOCKED);
        let start = match request.destination {
            Destination::Stay | Destination::Anywhere if plan.old_len >= plan.new_len => {
                if let Some(tail) = plan.tail()? {
                    self.unmap_locked(space, tail)?;
                }
                Ok(plan.addr)
            }
            Destination::Stay | Destination::Anywhere => {
                self.grow_area(space, vma, &plan, request.destination)
            }
            Destination::Hint(_) | Destination::Fixed(_) => self.move_to(space, vma, &plan, request),
        }?;
        drop(mmap);
        if is_locked && plan.new_len > plan.old_len {
            self.populate_locked(space, start + plan.old_len, plan.new_len - plan.old_len);
        }
        Ok(start)
    }

    fn grow_area(
        &self,
        space: &AddressSpace,
        vma: Handle<Vma>,
        plan: &Plan,
        destination: Destination,
    ) -> Result<VirtAddr, MapError> {
        check_resize(space, vma, plan)?;
        if plan.old_len == vma.end() - plan.addr {
            let len = (plan.addr - vma.start()).checked_add(plan.new_len);
            let grown = len.and_then(|len| VirtRange::user(vma.start().as_u64(), len));
            let more = grown.and_then(|grown| VirtRange::new(vma.end(), grown.end()));
            if let (Some(grown), Some(more)) = (grown, more)
                && space.areas().overlapping(more).next().is_none()
            {
                self.resize_area(space, vma, grown);
                self.merge_area(space, vma);
                return Ok(plan.addr);
            }
        }
        if destination == Destination::Stay {
            return Err(MapError::NoSpace);
        }
        let to = self.find_hole(space, plan.new_len)?;
        self.move_area(space, plan.moved()?, to, Remains::Nothing)?;
        Ok(to.start())
    }

    fn move_to(
        &self,
        space: &AddressSpace,
        vma: Handle<Vma>,
        plan: &Plan,
        request: Remap,
    ) -> Result<VirtAddr, MapError> {
        let (Destination::Hint(wish) | Destination::Fixed(wish)) = request.destination else {
            return Err(MapError::Invalid);
        };
        let at_wish = VirtRange::user(wish, plan.new_len).ok_or(MapError::Invalid)?;
        if plan.overlaps(at_wish) {
            return Err(MapError::Invalid);
        }
        // As Linux counts: source and destination may each be cut into three.
        if space.nr_areas() + 5 >= MAX_AREAS {
            return Err(MapError::NoSpace);
        }
        let tail = plan.tail()?;
        let old_len = plan.old_len.min(plan.new_len);
        check_resize(space, vma, &Plan { old_len, ..*plan })?;
        if request.remains == Remains::EmptyArea && !space.may_expand(vma.flags(), plan.old_len / PAGE_BYTES)
        {
            return Err(MapError::NoSpace);
        }
        let to = match request.destination {
            Destination::Fixed(_) => {
                self.unmap_locked(space, at_wish)?;
                at_wish
            }
            _ => self.find_place(
                space,
                MapRequest {
                    hint: wish,
                    len: plan.new_len,
                    prot: vma.prot(),
                    place: Place::Hint,
                    flags: vma.flags(),
                },
                plan.new_len,
            )?,
        };
        if let Some(tail) = tail {
            self.unmap_locked(space, tail)?;
        }
        self.move_area(space, plan.moved()?, to, request.remains)?;
        Ok(to.start())
    }

    /// Makes an area like the one around `from` at `to`, where nothing is, and moves the pages of `from` to its
    /// beginning.
    ///
    /// # Errors
    /// [`MapError::NoSpace`], [`MapError::NoMemory`]; nothing has moved.
    fn move_area(
        &self,
        space: &AddressSpace,
        from: VirtRange,
        to: VirtRange,
        remains: Remains,
    ) -> Result<(), MapError> {
        if space.nr_areas() + 3 >= MAX_AREAS {
            return Err(MapError::NoSpace);
        }
        // For a moment both areas are counted: that is no peak.
        let peak = space.peak_vm_pages();
        let moved = self.move_area_counted(space, from, to, remains);
        space.set_peak_vm(peak);
        moved
    }

    fn move_area_counted(
        &self,
        space: &AddressSpace,
        from: VirtRange,
        to: VirtRange,
        remains: Remains,
    ) -> Result<(), MapError> {
        self.isolate_range(space, from)?;
        let old = space.areas().containing(from.start()).ok_or(MapError::BadRange)?;
        let new = match self.insert_area(space, twin(space, old, to)) {
            Ok(new) => new,
            Err(error) => {
                self.merge_range(space, from);
                return Err(error.into());
            }
        };
        if let Some(anon_vma) = old.anon_vma() {
            self.join_anon_vma(new, anon_vma);
        }
        if let Err(error) = self.move_entries(space, old, from, to) {
            self.remove_area(space, new);
            self.remove_tables_of(space, to);
            self.merge_range(space, from);
            return Err(error.into());
        }
        match remains {
            Remains::Nothing => {
                self.remove_area(space, old);
                self.remove_tables_of(space, from);
            }
            Remains::EmptyArea => {
                // None of its pages is left: it may begin anew, and it has nothing that could be locked.
                self.leave_anon_vma(old);
                self.set_area_flags(space, old, old.flags() & !VmaFlags::LOCK);
                self.merge_range(space, from);
            }
        }
        self.merge_range(space, to);
        Ok(())
    }

    /// Frees the tables under a range without pages that served nothing else.
    fn remove_tables_of(&self, space: &AddressSpace, range: VirtRange) {
        let mut gather = Gather::new(self, space.tables());
        let gap = space.areas().hole_around(range, crate::zap::user_range());
        self.remove_tables(space.tables(), range, gap, &mut gather);
        gather.finish();
    }

    /// Moves all entries of `from`, which are those of `vma`, to the beginning of `to`.
    ///
    /// # Errors
    /// No table; all entries are where they were.
    fn move_entries(
        &self,
        space: &AddressSpace,
        vma: Handle<Vma>,
        from: VirtRange,
        to: VirtRange,
    ) -> Result<(), AllocError> {
        // Without an identity it never had a page.
        let Some(anon_vma) = vma.anon_vma() else {
            return Ok(());
        };
        let _walks = anon_vma.lock().write(self.platform());
        let (reached, moved) = self.move_each(space, from, to.start());
        if moved.is_err()
            && let Some(back) = VirtRange::new(to.start(), to.start() + (reached - from.start()))
        {
            let (_, moved_back) = self.move_each(space, back, from.start());
            crate::vm_assert!(
                moved_back.is_ok(),
                "the tables that the entries came from are there"
            );
        }
        moved
    }

    /// Moves entries until one cannot be; returns how far it came.
    fn move_each(
        &self,
        space: &AddressSpace,
        from: VirtRange,
        to: VirtAddr,
    ) -> (VirtAddr, Result<(), AllocError>) {
        let (mut reached, mut moved) = (from.start(), Ok(()));
        self.for_each_pmd(space.tables(), from, &mut |slot, chunk| {
            if moved.is_err() {
                return;
            }
            // Where both places are not alike in their 2 MiB spans, a chunk ends in two of the new ones.
            let target = |addr: VirtAddr| to + (addr - from.start());
            let first = PMD_SIZE - target(chunk.start()).as_u64() % PMD_SIZE;
            let middle = chunk.start() + first.min(chunk.bytes());
            let parts = [
                VirtRange::new(chunk.start(), middle),
                VirtRange::new(middle, chunk.end()),
            ];
            for part in parts.into_iter().flatten().filter(|part| !part.is_empty()) {
                moved = self.move_part(space, slot, part, target(part.start()));
                if moved.is_err() {
                    return;
                }
                reached = part.end();
            }
        });
        (reached, moved)
    }

    /// Moves the entries of `part`, which lies in one PMD span and goes to one.
    fn move_part(
        &self,
        space: &AddressSpace,
        slot: PmdSlot,
        part: VirtRange,
        to: VirtAddr,
    ) -> Result<(), AllocError> {
        if self.table(slot.table).pmd(slot.index) == PmdEntry::None {
            return Ok(());
        }
        let target = self.pmd_slot_alloc(space.tables(), to)?;
        if part == slot.span && target.span.start() == to && self.move_span(space, slot, target) {
            return Ok(());
        }
        self.split_pmd_slot(space, slot);
        let PmdEntry::Table(old) = self.table(slot.table).pmd(slot.index) else {
            return Ok(());
        };
        let PmdEntry::Table(new) = self.pte_table(space.tables(), target)? else {
            unreachable!("nothing was mapped at the destination")
        };
        self.move_ptes(space, (old, part), (new, to));
        Ok(())
    }

    /// Moves one PMD entry, whatever it is; returns false if there is an (empty) table in its new place.
    fn move_span(&self, space: &AddressSpace, from: PmdSlot, to: PmdSlot) -> bool {
        let pmds = self.lock_tables(from.table, to.table);
        let (old, new) = pmds.both();
        if new.pmd(to.index) != PmdEntry::None {
            return false;
        }
        let entry = RawPmd(old.swap(from.index, RawPmd::NONE.0)).decode();
        let (entry, stale) = match entry {
            PmdEntry::None => return true,
            PmdEntry::Table(_) => (entry, Some(Stride::Page)),
            PmdEntry::Huge {
                pfn,
                prot,
                marks,
                valid,
            } => {
                let marks = written(marks);
                let moved = PmdEntry::Huge {
                    pfn,
                    prot,
                    marks,
                    valid,
                };
                (moved, Some(Stride::Pmd))
            }
            PmdEntry::Migration { pfn, kind, marks } => {
                let marks = written(marks);
                (PmdEntry::Migration { pfn, kind, marks }, None)
            }
        };
        if from.table != to.table && !matches!(entry, PmdEntry::Table(_)) {
            let table = self.withdraw_table(old);
            self.deposit_table(new, table);
        }
        new.set_pmd(to.index, entry);
        if let Some(stride) = stale {
            self.platform().flush_tlb(space.cpus(), from.span, stride);
        }
        true
    }

    fn move_ptes(
        &self,
        space: &AddressSpace,
        (old, part): (crate::addr::Pfn, VirtRange),
        (new, to): (crate::addr::Pfn, VirtAddr),
    ) {
        let ptes = self.lock_tables(old, new);
        let (old, new) = ptes.both();
        let mut stale = false;
        for addr in pages(part) {
            let index = Level::Pte.index(addr);
            if old.load(index) == RawPte::NONE.0 {
                continue;
            }
            let entry = match RawPte(old.swap(index, RawPte::NONE.0)).decode() {
                PteEntry::None => continue,
                PteEntry::Present { pfn, prot, marks } => {
                    stale = true;
                    let marks = written(marks);
                    PteEntry::Present { pfn, prot, marks }
                }
                PteEntry::Migration { pfn, kind, marks } => {
                    let marks = written(marks);
                    PteEntry::Migration { pfn, kind, marks }
                }
            };
            new.set_pte(Level::Pte.index(to + (addr - part.start())), entry);
        }
        if stale {
            self.platform().flush_tlb(space.cpus(), part, Stride::Page);
        }
    }
}

/// A page that turns up at another address counts as written there since `clear_refs`.
fn written(marks: Marks) -> Marks {
    Marks {
        soft_dirty: true,
        ..marks
    }
}

/// An area like `old`, at `to`. One that has no pages yet is as new; otherwise its pages keep their indices.
fn twin(space: &AddressSpace, old: Handle<Vma>, to: VirtRange) -> Vma {
    let new = match old.anon_vma() {
        Some(_) => Vma::moved(space.handle(), to, old.flags(), old.linear_index(old.start())),
        None => Vma::new(space.handle(), to, old.flags()),
    };
    new.with_policy(old.policy())
}

/// Whether part of `vma` may be resized.
///
/// Origin: Linux `vma_to_resize`.
fn check_resize(space: &AddressSpace, vma: Handle<Vma>, plan: &Plan) -> Result<(), MapError> {
    if plan.old_len == 0 {
        return Err(MapError::Invalid);
    }
    if plan.old_len > vma.end() - plan.addr {
        return Err(MapError::BadRange);
    }
    let more = plan.new_len.saturating_sub(plan.old_len) / PAGE_BYTES;
    if !space.may_lock_more(vma.flags(), more) {
        return Err(MapError::LockLimit);
    }
    if !space.may_expand(vma.flags(), more) {
        return Err(MapError::NoSpace);
    }
    Ok(())
}
