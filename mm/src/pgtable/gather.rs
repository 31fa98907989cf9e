//! Removed mappings on their way out: flush first, free afterwards.
//!
//! ```text
//!   remove entry ─> gather.page(folio, n refs, where) … ─> finish(): one TLB flush for all, then the references
//!                   gather.table(pfn)                                 and the tables are given back
//! ```
//! A full gather flushes and frees what it has and goes on, so it needs no memory of its own.

use super::PageTables;
use crate::{
    addr::{Pfn, VirtRange},
    flags::PageFlags,
    memory::Memory,
    page::Page,
    platform::{Platform, Stride},
};

const SLOTS: usize = 64;

#[derive(Clone, Copy)]
enum Held {
    /// `refs` references to the folio at `head`.
    Folio { head: Pfn, refs: u32 },
    /// A page table.
    Table(Pfn),
}

/// Frames that must outlive the TLB flush.
#[must_use = "what was gathered is freed by finish"]
pub struct Gather<'m, P: Platform> {
    mem: &'m Memory<P>,
    tree: &'m PageTables,
    held: [Held; SLOTS],
    used: usize,
    range: Option<VirtRange>,
    stride: Stride,
    shared: bool,
}

impl<'m, P: Platform> Gather<'m, P> {
    /// Begins to gather what is removed from `tree` while others may fault in the same place: the mmap lock is held for
    /// reading only.
    pub fn shared(mem: &'m Memory<P>, tree: &'m PageTables) -> Self {
        let mut gather = Self::new(mem, tree);
        gather.shared = true;
        gather
    }

    /// Flushes now if others may fault in the same place. Called with the table locked whose huge entry was removed.
    pub(crate) fn flush_if_shared(&mut self) {
        if self.shared {
            self.flush();
        }
    }

    /// Begins to gather what is removed from `tree`, which nobody else changes: the mmap lock is held for writing.
    pub fn new(mem: &'m Memory<P>, tree: &'m PageTables) -> Self {
        let held = [Held::Table(Pfn::new(0)); SLOTS];
        Self {
            mem,
            tree,
            held,
            used: 0,
            range: None,
            stride: Stride::Pmd,
            shared: false,
        }
    }

    /// Notes that the translations of `range` were changed or removed. `stride` is what the entries spanned: 512 PTEs in
    /// a row span as much as a PMD, and each had a translation of its own.
    pub fn stale(&mut self, range: VirtRange, stride: Stride) {
        if stride == Stride::Page {
            self.stride = Stride::Page;
        }
        let all = self.range.map_or(Some(range), |old| {
            VirtRange::new(old.start().min(range.start()), old.end().max(range.end()))
        });
        self.range = all;
    }

    /// Takes over `refs` references to the folio at `head` that entries of `range` held, each `stride` wide.
    pub(crate) fn page(&mut self, head: Page<'_>, refs: u32, range: VirtRange, stride: Stride) {
        self.stale(range, stride);
        if let Some(Held::Folio {
            head: last,
            refs: more,
        }) = self.held[..self.used].last_mut()
            && *last == head.pfn()
        {
            *more += refs;
            return;
        }
        self.push(Held::Folio {
            head: head.pfn(),
            refs,
        });
    }

    /// Takes over the reference to a base page that an entry in `row` held. That the translations of `row` are stale has
    /// been noted before.
    pub(crate) fn base_page(&mut self, page: Page<'_>, row: VirtRange) {
        if self.used == SLOTS {
            self.flush();
            self.stale(row, Stride::Page);
        }
        self.held[self.used] = Held::Folio {
            head: page.pfn(),
            refs: 1,
        };
        self.used += 1;
    }

    /// Takes over a table that is no longer linked.
    pub(crate) fn table(&mut self, table: Pfn, range: VirtRange) {
        // The table's own translations went when its entries did; any step drops what CPUs remember of upper levels.
        self.stale(range, Stride::Pmd);
        self.push(Held::Table(table));
    }

    /// Flushes, then gives everything back.
    pub fn finish(mut self) {
        self.flush();
    }

    fn push(&mut self, held: Held) {
        if self.used == SLOTS {
            // The entry of what is pushed now was removed, and its range noted, before this flush: it is covered too.
            self.flush();
        }
        self.held[self.used] = held;
        self.used += 1;
    }

    fn flush(&mut self) {
        if let Some(range) = self.range.take()
            && !crate::sabotage::sabotage!(self.mem, MissedFlush)
        {
            self.mem
                .platform()
                .flush_tlb(self.tree.cpus(), range, self.stride);
        }
        // Base pages that nobody has any more are freed together.
        let mut unused = [Pfn::new(0); SLOTS];
        let mut nr_unused = 0;
        for held in &self.held[..self.used] {
            match *held {
                Held::Table(table) => self.mem.free_table(table),
                Held::Folio { head, refs } => {
                    let page = self.mem.pages().page(head);
                    if page.state().flags().contains(PageFlags::HEAD) {
                        self.mem.put_refs(page, refs);
                    } else if self.mem.drop_refs(page, refs) {
                        unused[nr_unused] = head;
                        nr_unused += 1;
                    }
                }
            }
        }
        self.mem.free_small_pages(&mut unused[..nr_unused]);
        self.used = 0;
        self.stride = Stride::Pmd;
    }
}

impl<P: Platform> Drop for Gather<'_, P> {
    fn drop(&mut self) {
        crate::assert::vm_assert_on_drop!(
            self.used == 0 && self.range.is_none(),
            "a gather was dropped without finish"
        );
    }
}
