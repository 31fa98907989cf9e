//! `/proc/PID/pagemap`: one word per virtual page.
//!
//! Bit 56 (mapped exactly once) is told per base page, also under a PMD mapping; Linux 6.1 computes it from the head for
//! all 512 and is wrong for subpages that a second process maps or has unmapped (decision 0004).

use core::fmt::Write;

use crate::{
    addr::{PAGE_BYTES, PMD_SIZE, Pfn, VirtAddr, VirtRange},
    address_space::AddressSpace,
    flags::Prot,
    memory::Memory,
    page::Page,
    pgtable::{MigrationKind, PmdEntry, PteEntry, Visit, entry::Marks},
    platform::Platform,
};

const SOFT_DIRTY: u64 = 1 << 55;
const EXCLUSIVE: u64 = 1 << 56;
/// Not anonymous: of all that is mapped here, the huge zero page.
const FILE: u64 = 1 << 61;
const SWAP: u64 = 1 << 62;
const PRESENT: u64 = 1 << 63;
/// Bits of a swap entry's type; above them stands the offset.
const SWAP_TYPE_BITS: u32 = 5;
/// The type that Linux 6.1 gives a migration entry that comes back read-only and shared, with everything configured
/// that takes types too. Read-only and exclusive, then writable, follow.
const FIRST_MIGRATION_TYPE: u64 = 23;

/// Returns the word for the page at `addr`; 0 where nothing is mapped. Takes the mmap lock for reading.
///
/// In an area that is soft-dirty as a whole every page has bit 55, untouched ones nothing else. As in Linux a PTE of the
/// 4 KiB zero page is no page of anything and has neither bit 56 nor bit 61.
#[must_use]
pub fn pagemap<P: Platform>(mem: &Memory<P>, space: &AddressSpace, addr: VirtAddr) -> u64 {
    let _mmap = space.lock().read(mem.platform());
    let vma = space.areas().containing(addr);
    let all_soft = vma.is_some_and(|vma| !vma.tracks_writes());
    let soft = |marks: Marks| {
        if all_soft || marks.soft_dirty {
            SOFT_DIRTY
        } else {
            0
        }
    };
    let present = |pfn: Pfn, marks| {
        let once = mem.pages().get(pfn).is_some_and(|page| page.mapcount() == 1);
        PRESENT | soft(marks) | if once { EXCLUSIVE } else { 0 } | u64::from(pfn.raw())
    };
    let subpage = |start: VirtAddr| u32::try_from((addr - start) % PMD_SIZE / PAGE_BYTES).unwrap_or(0);
    let file = |pfn: Pfn| {
        let is_anon = mem.pages().get(pfn).is_some_and(Page::is_anon);
        if is_anon { 0 } else { FILE }
    };
    match mem.leaf(space.tables(), addr) {
        Some(Visit::Pte(_, PteEntry::Present { pfn, marks, .. })) => present(pfn, marks),
        Some(Visit::Pmd(start, PmdEntry::Huge { pfn, marks, .. })) => {
            present(pfn.offset(subpage(start)), marks) | file(pfn)
        }
        Some(Visit::Pte(_, PteEntry::Migration { pfn, kind, marks })) => moving(pfn, kind) | soft(marks),
        Some(Visit::Pmd(start, PmdEntry::Migration { pfn, kind, marks })) => {
            moving(pfn.offset(subpage(start)), kind) | soft(marks)
        }
        _ => soft(Marks::default()),
    }
}

/// The word of a page that is being moved: a swap entry whose type is a kind of migration and whose offset is the frame
/// that the page is in still.
fn moving(pfn: Pfn, kind: MigrationKind) -> u64 {
    let swap_type = FIRST_MIGRATION_TYPE + kind as u64;
    SWAP | u64::from(pfn.raw()) << SWAP_TYPE_BITS | swap_type
}

/// What the entry that translates an address maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped {
    /// The frame of the address.
    pub pfn: Pfn,
    /// The addresses that the entry spans: a base page or 2 MiB.
    pub span: VirtRange,
}

/// Returns what is mapped at `addr`; `None` if nothing is, or what is being moved. Takes the mmap lock for reading.
#[must_use]
pub fn mapped_at<P: Platform>(mem: &Memory<P>, space: &AddressSpace, addr: VirtAddr) -> Option<Mapped> {
    let _mmap = space.lock().read(mem.platform());
    match mem.leaf(space.tables(), addr)? {
        Visit::Pte(_, PteEntry::Present { pfn, .. }) => Some(Mapped {
            pfn,
            span: VirtRange::page(addr),
        }),
        Visit::Pmd(_, PmdEntry::Huge { pfn, .. }) => {
            let span = VirtRange::pmd(addr);
            let subpage = u32::try_from((addr - span.start()) / PAGE_BYTES).unwrap_or(0);
            Some(Mapped {
                pfn: pfn.offset(subpage),
                span,
            })
        }
        _ => None,
    }
}

/// Describes in words the entry that translates `addr`: for the console. Returns whether there is one.
pub fn leaf<P: Platform>(
    mem: &Memory<P>,
    space: &AddressSpace,
    addr: VirtAddr,
    out: &mut dyn Write,
) -> Result<bool, core::fmt::Error> {
    let _mmap = space.lock().read(mem.platform());
    let rights = |prot: Prot| {
        let letter = |flag, letter| if prot.contains(flag) { letter } else { '-' };
        [
            letter(Prot::READ, 'r'),
            letter(Prot::WRITE, 'w'),
            letter(Prot::EXEC, 'x'),
        ]
    };
    let (level, pfn, prot) = match mem.leaf(space.tables(), addr) {
        Some(Visit::Pte(_, PteEntry::Present { pfn, prot, .. })) => ("PTE", pfn, prot),
        Some(Visit::Pmd(_, PmdEntry::Huge { pfn, prot, .. })) => ("PMD", pfn, prot),
        Some(_) => {
            writeln!(out, "{:#x}: the page is being moved", addr.as_u64())?;
            return Ok(true);
        }
        None => return Ok(false),
    };
    let [r, w, x] = rights(prot);
    writeln!(out, "{:#x}: {level} -> pfn {pfn} {r}{w}{x}", addr.as_u64())?;
    Ok(true)
}
