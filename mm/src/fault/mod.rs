//! F7: makes a translation exist that a program's access needs.
//!
//! ```text
//!   handle_fault ── no area ───────────────────────────> grow a stack, or SigSegv(NotMapped)
//!        │          area forbids it ───────────────────> SigSegv(Access)
//!        └─ PMD none, 2 MiB fit ──> huge ── no block ─┐
//!           PMD huge ─────────────> mark / allow write │  fallback
//!           else ─────────────────────────────────────┴> anon: one base page
//! ```
//! Every page is zeroed before it is mapped. A read fault also gets a page of its own: the shared zero page comes with
//! copy-on-write.
//!
//! Locks: takes the mmap lock for reading (for writing to grow a stack), inside it the locks of the tables it changes.
//! Everything that may fail is allocated before a table is locked; whoever finds the entry filled by somebody else
//! gives it back and is done.
//!
//! Origin: Linux `do_huge_pmd_anonymous_page`, `do_anonymous_page` as of v6.1; see A8 in `docs/design.md`.

mod anon;
mod huge;

use crate::{
    addr::{PAGE_BYTES, VirtAddr, VirtRange},
    address_space::{AddressSpace, STACK_GUARD_BYTES},
    anon_vma::AnonVma,
    counter::Counter,
    error::{AllocError, SegvReason, VmFault},
    flags::{Prot, VmaFlags},
    memory::Memory,
    pgtable::PmdEntry,
    platform::Platform,
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
    fn allowed_by(self, prot: Prot) -> bool {
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
    /// Errors: see [`VmFault`]. Whatever the outcome, nothing is half done: at most, tables without entries were added.
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
            PmdEntry::None if huge::eligible(vma, slot.span) => {
                match self.fault_new_huge(space, vma, slot, fault)? {
                    huge::Outcome::Resolved(outcome) => Ok(outcome),
                    huge::Outcome::Fallback => self.fault_small(space, vma, slot, fault),
                }
            }
            PmdEntry::None | PmdEntry::Table(_) => self.fault_small(space, vma, slot, fault),
            PmdEntry::Huge { .. } | PmdEntry::Migration { .. } => {
                Ok(self.fault_existing_huge(vma, slot, fault))
            }
        }
    }

    /// Gives the area the identity that its pages will name.
    fn prepare_anon_vma(&self, vma: Handle<Vma>) -> Result<(), AllocError> {
        if vma.anon_vma().is_some() {
            return Ok(());
        }
        let fresh = self.alloc_object(AnonVma::new())?;
        if !vma.init_anon_vma(fresh) {
            self.put_anon_vma(fresh);
        }
        Ok(())
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
            if !vma.flags().contains(VmaFlags::GROWSDOWN) || vma.end() - start > space.stack_limit() {
                return refused;
            }
            let below = space.areas().before(vma.start());
            if below.is_some_and(|below| below.end().as_u64() + STACK_GUARD_BYTES > start.as_u64()) {
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
