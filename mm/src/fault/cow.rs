//! Write faults on what is mapped without the right to write: copy, unless nobody else has it.
//!
//! ```text
//!   exclusive ────────────────────────> write allowed
//!   zero page ────────────────────────> a new zeroed page in its place
//!   PMD, sole reference ──────────────> exclusive again, write allowed
//!   PMD, shared ──────────────────────> split this PMD, then as a PTE fault: one base page is copied, not 2 MiB
//!   PTE, base page, sole reference ───> exclusive again, write allowed
//!   PTE, shared ──────────────────────> copy
//! ```
//! "Nobody else has it" is never guessed from a mapcount, which two processes may be changing: it is the exclusive mark,
//! or a reference count of one, read under the lock of the table whose entry holds that one (CVE-2020-29368 is the story
//! of the other way).
//!
//! Origin: Linux 5.19's PG_anon_exclusive; 5.8's split-and-copy-4K fallback (A9).

use super::{FaultInfo, anon::NEW_ANON};
use crate::{
    addr::{Pfn, VirtRange},
    address_space::AddressSpace,
    counter::Counter,
    error::{AllocError, VmFault},
    flags::{AllocFlags, PageFlags},
    folio::Folio,
    memory::Memory,
    order::Order,
    page::{Page, PageState},
    pgtable::{PmdSlot, PteEntry, cursor::Level, entry::Marks},
    platform::{Platform, Stride},
    policy::Placement,
    rmap::Run,
    slab::Handle,
    vma::Vma,
};

impl<P: Platform> Memory<P> {
    /// Whether the process whose entry maps `page` is the only one that has it. If so, it is marked. The table that
    /// holds the entry is locked, so the entry's own reference stays.
    pub(super) fn take_if_sole_owner(&self, page: Page<'_>) -> bool {
        if page.is_exclusive() {
            return true;
        }
        let sole = page.state().head_link().is_none() && page.refs_hint() == 1;
        if sole {
            page.set_flags(PageFlags::EXCLUSIVE);
            self.add(Counter::PgReuse, 1);
        }
        sole
    }

    /// A new page with the contents of `from`, not mapped yet.
    pub(crate) fn new_anon_copy(&self, from: Pfn, placement: Placement) -> Result<Folio<'_>, AllocError> {
        let folio = self.alloc_folio_from(placement, Order::ZERO, AllocFlags::empty())?;
        let (to, from) = (
            self.platform().frame_ptr(folio.pfn()),
            self.platform().frame_ptr(from),
        );
        // SAFETY: the new frame is ours; the caller keeps the old one mapped or referenced. Programs that write to it
        // meanwhile race with this as they would with each other.
        unsafe { self.platform().copy_page(to, from) };
        folio.page().set_private_state(PageState::of(NEW_ANON));
        Ok(folio)
    }

    /// Gives the process a page of its own in place of the one that `table` maps at the faulting address.
    pub(super) fn copy_on_write(
        &self,
        space: &AddressSpace,
        vma: Handle<Vma>,
        (slot, table): (PmdSlot, Pfn),
        fault: FaultInfo,
        seen: PteEntry,
    ) -> Result<VmFault, AllocError> {
        let PteEntry::Present { pfn, .. } = seen else {
            return Ok(VmFault::Retry);
        };
        let old = self.pages().page(pfn);
        let was_zero = self.is_zero_page(old);
        let placement = self.placement_in(vma, fault.addr, Order::ZERO);
        let folio = if was_zero {
            let folio = self.alloc_folio_from(placement, Order::ZERO, AllocFlags::ZERO)?;
            folio.page().set_private_state(PageState::of(NEW_ANON));
            folio
        } else {
            // The entry's reference may go any moment: take one of our own for the copy.
            let Some(held) = self.try_get(old) else {
                return Ok(VmFault::Retry);
            };
            let copy = self.new_anon_copy(pfn, placement);
            self.put(held);
            copy?
        };
        let index = Level::Pte.index(fault.addr);
        let range = VirtRange::page(fault.addr);
        let ptes = self.lock_table(table);
        if !same_page(ptes.pte(index), seen) || !self.is_linked(slot, table) {
            drop(ptes);
            self.put(folio);
            return Ok(VmFault::Retry);
        }
        let page = self.adopt_new_small(folio, vma, fault.addr);
        // Out, flushed, then in: no CPU may read the old page after another has written the new one.
        ptes.swap(index, 0);
        self.platform().flush_tlb(space.cpus(), range, Stride::Page);
        ptes.set_pte(
            index,
            PteEntry::Present {
                pfn: page.pfn(),
                prot: vma.prot(),
                marks: Marks::WRITTEN,
            },
        );
        if was_zero {
            space.add_rss(1);
        } else {
            let run = Run::of(old);
            self.rmap_remove_ptes(run);
            self.munlock_unmapped(run.head, vma);
            drop(ptes);
            self.put_refs(run.head, 1);
        }
        Ok(VmFault::Done)
    }
}

/// Whether both entries map the same frame; marks may have changed.
fn same_page(a: PteEntry, b: PteEntry) -> bool {
    match (a, b) {
        (PteEntry::Present { pfn: a, prot: x, .. }, PteEntry::Present { pfn: b, prot: y, .. }) => {
            a == b && x == y
        }
        _ => false,
    }
}
