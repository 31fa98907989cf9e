//! F7: makes a translation exist that a program's access needs.
//!
//! ```text
//!   handle_fault ── no area ───────────────────────────> grow a stack, or SigSegv(NotMapped)
//!        │          area forbids it ───────────────────> SigSegv(Access)
//!        └─ PMD none, 2 MiB fit ──> huge, or the huge zero page ── no block ─┐
//!           PMD huge ─────────────> mark, allow write, or split and copy    │  fallback
//!           being moved ──────────> wait                                    │
//!           else ───────────────────────────────────────────────────────────┴> anon: one base page, or the zero page
//! ```
//! Every page is zeroed before it is mapped. What is read before it is written is a zero page (`zero`); what is
//! written while others have it too is copied (`cow`).
//!
//! Locks: takes the mmap lock for reading (for writing to grow a stack), inside it the locks of the tables it changes.
//! Everything that may fail is allocated before a table is locked; whoever finds the entry filled by somebody else
//! gives it back and is done.
//!
//! Origin: Linux `do_huge_pmd_anonymous_page`, `do_anonymous_page` as of v6.1; see A8 in `docs/design.md`.

mod anon;
mod cow;
mod huge;
mod zero;

use crate::{
    addr::{PAGE_BYTES, STACK_GUARD_BYTES, VirtAddr, VirtRange},
    address_space::{AddressSpace, Limit, MIN_ADDR},
    counter::Counter,
    error::{AllocError, SegvReason, VmFault},
    flags::{Prot, VmaFlags},
    memory::Memory,
    page::Page,
    pgtable::{PmdEntry, PteEntry, Visit},
    platform::{Platform, WaitKey},
    settings::ZeroReads,
    slab::Handle,
    vma::Vma,
};

/// What a program tried to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Load.
    Read,
    /// Store.
    Write,
    /// Fetch an instruction.
    Exec,
}

/// A fault as the hardware reports it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultInfo {
    /// Where.
    pub addr: VirtAddr,
    /// What for.
    pub access: Access,
}

impl Access {
    /// Whether an area with these rights allows it. On x86 what can be written or executed can also be read.
    pub(crate) fn allowed_by(self, prot: Prot) -> bool {
        match self {
            Self::Read => !prot.is_empty(),
            Self::Write => prot.contains(Prot::WRITE),
            Self::Exec => prot.contains(Prot::EXEC),
        }
    }
}

impl<P: Platform> Memory<P> {
    /// Resolves a page fault of `space`.
    ///
    /// Context: may wait for the mmap lock; no lock of mm is held.
    ///
    /// Errors: see [`VmFault`]. Whatever the outcome, nothing is half done: at most, a stack has grown, an
    /// area has its anon_vma, and tables without entries were added.
    pub fn handle_fault(&self, space: &AddressSpace, fault: FaultInfo) -> VmFault {
        let outcome = match self.fault_in_area(space, fault) {
            VmFault::SigSegv(SegvReason::NotMapped) => self.grow_stack(space, fault),
            outcome => outcome,
        };
        if outcome == VmFault::Done {
            self.add(Counter::PgFault, 1);
        }
        outcome
    }

    fn fault_in_area(&self, space: &AddressSpace, fault: FaultInfo) -> VmFault {
        let _mmap = space.lock().read(self.platform());
        let Some(vma) = space.areas().containing(fault.addr) else {
            return VmFault::SigSegv(SegvReason::NotMapped);
        };
        if !fault.access.allowed_by(vma.prot()) {
            return VmFault::SigSegv(SegvReason::Access);
        }
        self.fault_pages(space, vma, fault)
            .unwrap_or_else(VmFault::NeedMemory)
    }

    fn fault_pages(
        &self,
        space: &AddressSpace,
        vma: Handle<Vma>,
        fault: FaultInfo,
    ) -> Result<VmFault, AllocError> {
        self.prepare_anon_vma(vma)?;
        let slot = self.pmd_slot_alloc(space.tables(), fault.addr)?;
        match self.table(slot.table).pmd(slot.index) {
            PmdEntry::None if huge::eligible(self.thp_mode(), vma, slot.span) => {
                let attempt = match fault.access {
                    Access::Read | Access::Exec if self.zero_reads() == ZeroReads::ZeroPage => {
                        self.fault_zero_huge(space, slot)?
                    }
                    _ => self.fault_new_huge(space, vma, slot, fault)?,
                };
                match attempt {
                    huge::Outcome::Resolved(outcome) => Ok(outcome),
                    huge::Outcome::Fallback => self.fault_small(space, vma, slot, fault),
                }
            }
            PmdEntry::None | PmdEntry::Table(_) => self.fault_small(space, vma, slot, fault),
            PmdEntry::Migration { .. } => Ok(self.wait_for_migration(space, fault)),
            PmdEntry::Huge { .. } => match self.fault_existing_huge(vma, slot, fault) {
                anon::Existing::Resolved(outcome) => Ok(outcome),
                anon::Existing::Shared => {
                    self.split_pmd_slot(space, slot);
                    self.fault_small(space, vma, slot, fault)
                }
            },
        }
    }

    /// Sleeps while the entry for the faulting address says that its page is being moved. The mmap lock is held, which
    /// keeps the tables.
    fn wait_for_migration(&self, space: &AddressSpace, fault: FaultInfo) -> VmFault {
        self.wait_while_moved(space, fault.addr);
        VmFault::Retry
    }

    /// Sleeps while the entry for `addr` says that its page is being moved. The mmap lock is held, for reading or
    /// writing: whoever moves a page waits for none.
    pub(crate) fn wait_while_moved(&self, space: &AddressSpace, addr: VirtAddr) {
        let seen = self.leaf(space.tables(), addr);
        let moving = match seen {
            Some(
                Visit::Pte(_, PteEntry::Migration { pfn, .. })
                | Visit::Pmd(_, PmdEntry::Migration { pfn, .. }),
            ) => pfn,
            _ => return,
        };
        // Whoever moves the page rewrites the entry before waking: so to look again after queueing loses nothing. The
        // key too, because the page may have been freed, and the frame begun a new life, before it was read.
        let page = self.pages().page(moving);
        let key = self.migration_key(page);
        self.platform().wait(key, None, &mut || {
            self.leaf(space.tables(), addr) == seen && self.migration_key(page) == key
        });
    }

    /// What those wait for who find `page` being moved: one key for all pages of an anon_vma, so that a folio's 512
    /// entries need one wake.
    pub(crate) fn migration_key(&self, page: Page<'_>) -> WaitKey {
        WaitKey::lock(
            self.platform()
                .window()
                .wrapping_add(crate::addr::to_usize(page.mapping()))
                .cast_const()
                .cast(),
        )
    }

    /// Extends the stack above a faulting address down to it (Linux `expand_stack`).
    fn grow_stack(&self, space: &AddressSpace, fault: FaultInfo) -> VmFault {
        let refused = VmFault::SigSegv(SegvReason::NotMapped);
        {
            let _mmap = space.lock().write(self.platform());
            let Some(vma) = space.areas().find(fault.addr) else {
                return refused;
            };
            let start = fault.addr.align_down(PAGE_BYTES);
            if vma.start() <= start {
                return VmFault::Retry;
            }
            let grown = (vma.start() - start) / PAGE_BYTES;
            let allowed = vma.end() - start <= space.limit(Limit::Stack)
                && space.may_expand(vma.flags(), grown)
                && space.may_lock_more(vma.flags(), grown);
            if !vma.flags().contains(VmaFlags::GROWSDOWN) || !allowed {
                return refused;
            }
            let crowded = space.areas().before(vma.start()).is_some_and(|below| {
                let harmless = below.flags().contains(VmaFlags::GROWSDOWN) || below.prot().is_empty();
                !harmless && below.end().as_u64() + STACK_GUARD_BYTES > start.as_u64()
            });
            let below = space
                .areas()
                .before(vma.start())
                .map_or(MIN_ADDR, |below| below.end().as_u64());
            if crowded || start.as_u64() < below.max(MIN_ADDR) {
                return refused;
            }
            let Some(range) = VirtRange::new(start, vma.end()) else {
                return refused;
            };
            self.resize_area(space, vma, range);
        }
        self.fault_in_area(space, fault)
    }
}
