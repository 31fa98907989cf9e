//! F7: takes a reference to a mapped page without any lock (Linux's GUP-fast).
//!
//! ```text
//!   enter a walk ── read each entry once, from the root down ── take a reference unless there is none to share
//!        │                                                         │
//!        │   what frees tables and pages waits for the walk        └─ read the entries again: the same? keep it
//!        └──────────────── leave the walk ──────────────────────────────────── else give it back: the slow way
//! ```
//! *What keeps the tables.* Whoever unlinks a table or removes an entry flushes the CPUs of the space before the frame is
//! freed ([`Gather`](crate::pgtable::Gather)), and a flush does not return while a CPU that it is for is inside a
//! [`WalkGuard`](Platform::WalkGuard). So this way is open only to a CPU that the space counts among its own.
//!
//! *What keeps the page.* The reference, once taken; and that it is the page's own is what the second look at the entries
//! is for: a page that was being split, moved or copied away meanwhile is none that the address maps any more (C13).
//! A frozen page has no reference to share.
//!
//! *What is refused.* Everything that needs a change: entries that are not present, being moved, or hidden while a PMD is
//! split or changed; rights that are missing; marks that the access would have to leave. There is no "being split" to
//! wait for (S9): an entry says it all.
//!
//! Cost: one atomic operation, whether the page is mapped by a PMD or a PTE, and whether it is a tail or not (S10).
//!
//! Locks: none. Nothing is allocated and nothing waits.
//!
//! Origin: Linux `internal_get_user_pages_fast` as of v6.1; that the PMD is read again 70cbc3cc78a9. Differs: the walk is
//! kept by the platform's guard, not by switching interrupts off.

use crate::{
    addr::{PAGE_BYTES, PMD_SIZE, Pfn, USER_END, VirtAddr},
    address_space::AddressSpace,
    fault::Access,
    flags::Prot,
    folio::Folio,
    memory::Memory,
    page::Page,
    pgtable::{PmdEntry, PteEntry, RawPmd, RawPte, cursor::Level, entry::Marks},
    pin::marks_of,
    platform::Platform,
};

/// The entries that lead to a page, as they were read, once each.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Path {
    pmd_table: Pfn,
    pmd: u64,
    /// Table and entry, if the page is mapped by a PTE.
    pte: Option<(Pfn, u64)>,
}

/// Something that a walk took and could not keep: given back when the walk is over.
enum Taken<'m> {
    Kept(Folio<'m>, Pfn),
    Changed(Folio<'m>),
}

impl<P: Platform> Memory<P> {
    /// Takes a reference to the page that `addr` is mapped to, if the entry allows `access` as it stands and has its
    /// marks. Returns the folio and the frame of the very page; `None` says nothing but "not this way".
    ///
    /// Context: any, also with locks held; never inside a walk.
    #[must_use]
    pub fn get_user_page_fast(
        &self,
        space: &AddressSpace,
        addr: VirtAddr,
        access: Access,
    ) -> Option<(Folio<'_>, Pfn)> {
        if addr.as_u64() >= USER_END {
            return None;
        }
        let taken = {
            let preempt = self.platform().preempt_off();
            // Another CPU's walks are not waited for when this space's translations are flushed.
            if !space.cpus().contains(self.platform().cpu(&preempt)) {
                return None;
            }
            let _walk = self.platform().lockless_walk();
            self.take_mapped(space, addr, access)?
        };
        match taken {
            Taken::Kept(folio, pfn) => Some((folio, pfn)),
            Taken::Changed(folio) => {
                // Not inside the walk: to free a page may wait for everybody to leave theirs.
                self.put(folio);
                None
            }
        }
    }

    /// Inside a walk.
    fn take_mapped(&self, space: &AddressSpace, addr: VirtAddr, access: Access) -> Option<Taken<'_>> {
        let path = self.path_to(space, addr)?;
        let page = self.page_of(path, addr, access)?;
        let head = page.head();
        if !head.ref_get_unless_zero() {
            return None;
        }
        let folio = Folio::from_raw(head);
        let is_same = page.head() == head && self.path_to(space, addr) == Some(path);
        Some(if is_same {
            self.trace_ref(head, 1);
            Taken::Kept(folio, page.pfn())
        } else {
            Taken::Changed(folio)
        })
    }

    /// Reads the entries for `addr`.
    fn path_to(&self, space: &AddressSpace, addr: VirtAddr) -> Option<Path> {
        let slot = self.pmd_slot(space.tables(), addr)?;
        let pmd = self.table(slot.table).load(slot.index);
        let pte = match RawPmd(pmd).decode() {
            PmdEntry::Table(table) => Some((table, self.table(table).load(Level::Pte.index(addr)))),
            _ => None,
        };
        Some(Path {
            pmd_table: slot.table,
            pmd,
            pte,
        })
    }

    /// The page that the entries lead to, if they allow `access` without any change.
    fn page_of(&self, path: Path, addr: VirtAddr, access: Access) -> Option<Page<'_>> {
        let allows = |prot: Prot, marks: Marks| access.allowed_by(prot) && marks.contains(marks_of(access));
        let pfn = match (RawPmd(path.pmd).decode(), path.pte) {
            (
                PmdEntry::Huge {
                    pfn,
                    prot,
                    marks,
                    valid: true,
                },
                None,
            ) if allows(prot, marks) => {
                let subpage = u32::try_from(addr.as_u64() % PMD_SIZE / PAGE_BYTES).ok()?;
                pfn.offset(subpage)
            }
            (_, Some((_, pte))) => match RawPte(pte).decode() {
                PteEntry::Present { pfn, prot, marks } if allows(prot, marks) => pfn,
                _ => return None,
            },
            _ => return None,
        };
        self.pages().get(pfn)
    }
}
