//! F7: gives a child the memory of its parent.
//!
//! ```text
//!   parent: PMD -> folio, W          parent: PMD -> folio, read-only
//!                             ──>                  folio: C+1, one reference more, exclusive mark gone
//!                                    child:  PMD -> folio, read-only, old
//! ```
//! Nothing is copied but entries: both sides lose the right to write and the page its exclusive mark; whoever writes
//! first gets a copy (see `fault::cow`). PTEs go in runs: neighbouring entries that map neighbouring pages of one folio
//! cost one batch on its counters together.
//!
//! What may fail is allocated per PMD before its tables are locked. When an allocation fails the child is thrown away;
//! the parent keeps its pages, read-only, and gets its rights back fault by fault.
//!
//! Locks: the parent's mmap lock for writing (the child is not known to anybody yet), the child's table before the
//! parent's.
//!
//! Origin: Linux `copy_huge_pmd`, `copy_pte_range`; A11.

use crate::{
    addr::{HPAGE_PAGES, VirtRange},
    address_space::{AddressSpace, MmRef},
    error::{AllocError, MapError},
    flags::{Prot, VmaFlags},
    memory::Memory,
    order::Order,
    pgtable::{Gather, MigrationKind, PmdEntry, PmdSlot, PtLock, PteEntry, cursor::Level},
    platform::{Platform, Stride},
    rmap::{Run, walk::pages},
    slab::Handle,
    vma::Vma,
};

impl<P: Platform> Memory<P> {
    /// Makes an address space that shares all private memory of `parent` until one of them writes.
    ///
    /// # Errors
    /// [`MapError::NoMemory`]: nothing is left of the child; the parent is as before but for rights that come back by
    /// faults.
    pub fn fork_space(&self, parent: &AddressSpace) -> Result<MmRef, MapError> {
        let child = self.new_space()?;
        match self.copy_space(parent, &child) {
            Ok(()) => Ok(child),
            Err(error) => {
                self.put_space(child);
                Err(error.into())
            }
        }
    }

    fn copy_space(&self, parent: &AddressSpace, child: &AddressSpace) -> Result<(), AllocError> {
        let _mmap = parent.lock().write(self.platform());
        child.inherit(parent);
        let mut gather = Gather::new(self, parent.tables());
        let copied = parent
            .areas()
            .overlapping(crate::zap::user_range())
            .filter(|vma| !vma.flags().contains(VmaFlags::DONTCOPY))
            .try_for_each(|vma| self.copy_area(parent, child, vma, &mut gather));
        // The parent's writable translations are stale now, whether or not all went well.
        gather.finish();
        copied
    }

    fn copy_area(
        &self,
        parent: &AddressSpace,
        child: &AddressSpace,
        vma: Handle<Vma>,
        gather: &mut Gather<'_, P>,
    ) -> Result<(), AllocError> {
        let first_index = vma.linear_index(vma.start());
        let copy = Vma::moved(child.handle(), vma.range(), vma.flags(), first_index);
        let copy = self.insert_area(child, copy.with_policy(vma.policy()))?;
        if vma.flags().contains(VmaFlags::WIPEONFORK) {
            return Ok(());
        }
        let Some(anon_vma) = vma.anon_vma() else {
            return Ok(());
        };
        self.join_anon_vma_behind(copy, vma, anon_vma);
        let mut copied = Ok(());
        self.for_each_pmd(parent.tables(), vma.range(), &mut |slot, chunk| {
            if copied.is_ok() {
                copied = self.copy_chunk((parent, child), (slot, chunk), gather);
            }
        });
        copied
    }

    /// Copies the entries of `chunk`, which lies in the span of one PMD.
    fn copy_chunk(
        &self,
        (parent, child): (&AddressSpace, &AddressSpace),
        (from, chunk): (PmdSlot, VirtRange),
        gather: &mut Gather<'_, P>,
    ) -> Result<(), AllocError> {
        match self.table(from.table).pmd(from.index) {
            PmdEntry::None => Ok(()),
            PmdEntry::Table(_) => self.copy_ptes((parent, child), (from, chunk), gather),
            PmdEntry::Huge { pfn, .. } if self.must_copy(self.pages().page(pfn)) => {
                self.split_pmd_slot(parent, from);
                self.copy_ptes((parent, child), (from, chunk), gather)
            }
            PmdEntry::Huge { .. } | PmdEntry::Migration { .. } => self.copy_pmd(child, from, gather),
        }
    }

    /// Whether a page must not be shared: it is this process's alone and somebody holds its frame for input or output.
    fn must_copy(&self, page: crate::page::Page<'_>) -> bool {
        page.has(crate::flags::PageFlags::EXCLUSIVE) && page.maybe_pinned()
    }

    fn copy_pmd(
        &self,
        child: &AddressSpace,
        from: PmdSlot,
        gather: &mut Gather<'_, P>,
    ) -> Result<(), AllocError> {
        let to = self.pmd_slot_alloc(child.tables(), from.span.start())?;
        let deposit = self.alloc_deposit()?;
        let into = self.lock_table(to.table);
        let out = self.lock_table(from.table);
        let entry = match out.pmd(from.index) {
            PmdEntry::Huge {
                pfn,
                prot,
                marks,
                valid,
            } => {
                let head = self.pages().page(pfn);
                self.get_refs(head, 1);
                let prot = prot & !Prot::WRITE;
                if !self.is_zero_page(head) {
                    self.rmap_dup_pmd(head);
                    child.add_rss(i64::from(HPAGE_PAGES));
                    self.set_pmd_keeping_marks(
                        &out,
                        from.index,
                        PmdEntry::Huge {
                            pfn,
                            prot,
                            marks,
                            valid,
                        },
                    );
                    gather.stale(from.span, Stride::Pmd);
                }
                PmdEntry::Huge {
                    pfn,
                    prot,
                    marks: marks.old(),
                    valid,
                }
            }
            PmdEntry::Migration { pfn, marks, .. } => {
                let shared = PmdEntry::Migration {
                    pfn,
                    kind: MigrationKind::Read,
                    marks,
                };
                out.set_pmd(from.index, shared);
                child.add_rss(i64::from(HPAGE_PAGES));
                shared
            }
            PmdEntry::None | PmdEntry::Table(_) => unreachable!("the mmap lock is held for writing"),
        };
        self.deposit_table(&into, deposit);
        child.tables().count(1);
        into.set_pmd(to.index, entry);
        Ok(())
    }

    fn copy_ptes(
        &self,
        (parent, child): (&AddressSpace, &AddressSpace),
        (from, chunk): (PmdSlot, VirtRange),
        gather: &mut Gather<'_, P>,
    ) -> Result<(), AllocError> {
        let PmdEntry::Table(source) = self.table(from.table).pmd(from.index) else {
            return Ok(());
        };
        let to = self.pmd_slot_alloc(child.tables(), chunk.start())?;
        let PmdEntry::Table(target) = self.pte_table(child.tables(), to)? else {
            unreachable!("nobody else knows the child")
        };
        let mut rest = Some(chunk);
        // A page that must be copied needs a frame, which is not to be had under a lock: stop there, and go on.
        while let Some(range) = rest.take() {
            let stopped = {
                let into = self.lock_table(target);
                let out = self.lock_table(source);
                self.share_ptes((parent, child), (&out, &into), range, gather)
            };
            if let Some(at) = stopped {
                self.copy_pinned_page(child, (source, target), at)?;
                rest =
                    VirtRange::new(at + crate::addr::PAGE_BYTES, chunk.end()).filter(|rest| !rest.is_empty());
            }
        }
        Ok(())
    }

    /// Copies entries until one whose page must be copied; returns its address.
    fn share_ptes(
        &self,
        (_parent, child): (&AddressSpace, &AddressSpace),
        (out, into): (&PtLock<'_, P>, &PtLock<'_, P>),
        range: VirtRange,
        gather: &mut Gather<'_, P>,
    ) -> Option<crate::addr::VirtAddr> {
        let mut batch: Option<Run<'_>> = None;
        let mut rss = 0;
        let mut stopped = None;
        for addr in pages(range) {
            let index = Level::Pte.index(addr);
            match out.pte(index) {
                PteEntry::None => {}
                PteEntry::Migration { pfn, marks, .. } => {
                    let shared = PteEntry::Migration {
                        pfn,
                        kind: MigrationKind::Read,
                        marks,
                    };
                    out.set_pte(index, shared);
                    into.set_pte(index, shared);
                    rss += 1;
                }
                PteEntry::Present { pfn, prot, marks } => {
                    let page = self.pages().page(pfn);
                    let shared = prot & !Prot::WRITE;
                    if !self.is_zero_page(page) {
                        if self.must_copy(page) {
                            stopped = Some(addr);
                            break;
                        }
                        batch = Some(match batch.take() {
                            Some(run) if run.is_followed_by(page) => run.grown(),
                            full => {
                                self.share_run(full);
                                Run::of(page)
                            }
                        });
                        rss += 1;
                        if shared != prot {
                            let entry = PteEntry::Present {
                                pfn,
                                prot: shared,
                                marks,
                            };
                            self.set_pte_keeping_marks(out, index, entry);
                            gather.stale(VirtRange::page(addr), Stride::Page);
                        }
                    }
                    into.set_pte(
                        index,
                        PteEntry::Present {
                            pfn,
                            prot: shared,
                            marks: marks.old(),
                        },
                    );
                }
            }
        }
        self.share_run(batch);
        child.add_rss(rss);
        stopped
    }

    fn share_run(&self, run: Option<Run<'_>>) {
        let Some(run) = run else { return };
        self.get_refs(run.head, run.nr);
        self.rmap_dup_ptes(run);
    }

    /// Gives the child a copy of the page that `source` maps at `addr`.
    fn copy_pinned_page(
        &self,
        child: &AddressSpace,
        (source, target): (crate::addr::Pfn, crate::addr::Pfn),
        addr: crate::addr::VirtAddr,
    ) -> Result<(), AllocError> {
        let index = Level::Pte.index(addr);
        let PteEntry::Present { pfn, prot, marks } = self.table(source).pte(index) else {
            unreachable!("the mmap lock is held for writing")
        };
        let vma = child
            .areas()
            .containing(addr)
            .unwrap_or_else(|| unreachable!("its area was copied first"));
        let folio = self.new_anon_copy(pfn, self.placement_in(vma, addr, Order::ZERO))?;
        let page = self.adopt_new_small(folio, vma, addr);
        self.lock_table(target).set_pte(
            index,
            PteEntry::Present {
                pfn: page.pfn(),
                prot,
                marks: marks.old(),
            },
        );
        child.add_rss(1);
        Ok(())
    }
}
