//! Everything that one page's record says, in the words of Linux 6.1's `dump_page`.
//!
//! ```text
//!   page:00000007 refcount:1 mapcount:1 mapping:00000000000a1400 index:0x7ffff7a07 pfn:0x1607
//!   head:00000000 order:9 compound_mapcount:1 compound_pincount:0
//!   anon flags: 0x2000c028(uptodate|lru|head|mappedtodisk|swapbacked|node=0|zone=1)
//!   raw: 0000160000010000 0000000000000000 0000000000000000 0000000000000000     this record
//!   raw: 0000000000000000
//!   head: ...                                                                    of a tail: the head's too
//!   page dumped because: ...
//! ```
//! As in Linux the reference count, the mapping and the flags are the head's, of whatever page is asked about; an
//! exclusive page is `mappedtodisk`. Differs: a record has no address, so its frame number stands where Linux has a
//! pointer; a record is five words, not eight (state, links of its list, mapping, index, counts); flags that only this
//! memory manager has come last.

use core::fmt::{self, Write};

use crate::{
    addr::Pfn, buddy::ZoneKind, flags::PageFlags, memory::Memory, order::Order, page::Page,
    platform::Platform,
};

/// Flags by the names that Linux prints, in its order; then our own.
const NAMES: &[(PageFlags, &str)] = &[
    (PageFlags::LOCKED, "locked"),
    (PageFlags::WAITERS, "waiters"),
    (PageFlags::ERROR, "error"),
    (PageFlags::REFERENCED, "referenced"),
    (PageFlags::UPTODATE, "uptodate"),
    (PageFlags::DIRTY, "dirty"),
    (PageFlags::LRU, "lru"),
    (PageFlags::ACTIVE, "active"),
    (PageFlags::SLAB, "slab"),
    (PageFlags::RESERVED, "reserved"),
    (PageFlags::WRITEBACK, "writeback"),
    (PageFlags::HEAD, "head"),
    (PageFlags::EXCLUSIVE, "mappedtodisk"),
    (PageFlags::RECLAIM, "reclaim"),
    (PageFlags::SWAPBACKED, "swapbacked"),
    (PageFlags::UNEVICTABLE, "unevictable"),
    (PageFlags::MLOCKED, "mlocked"),
    (PageFlags::HWPOISON, "hwpoison"),
    (PageFlags::BUDDY, "buddy"),
    (PageFlags::PGTABLE, "table"),
    (PageFlags::OFFLINE, "offline"),
    (PageFlags::ZERO, "zero"),
    (PageFlags::NOPAGE, "nopage"),
    (PageFlags::QUEUED, "queued"),
];

/// Writes what is known about a frame. Any number is accepted.
///
/// # Errors
/// Those of `out`.
pub fn dump_page<P: Platform>(mem: &Memory<P>, pfn: Pfn, reason: &str, out: &mut dyn Write) -> fmt::Result {
    let Some(page) = mem.pages().get(pfn) else {
        return writeln!(out, "page:{pfn} is past the page array");
    };
    let head = page.head();
    writeln!(
        out,
        "page:{:08x} refcount:{} mapcount:{} mapping:{:016x} index:{:#x} pfn:{:#x}",
        pfn.raw(),
        head.refs_hint(),
        mapcount(page, head),
        head.mapping(),
        head.index() + page.subpage() as u64,
        pfn.raw(),
    )?;
    if head.compound_order() > Order::ZERO {
        writeln!(
            out,
            "head:{:08x} order:{} compound_mapcount:{} compound_pincount:{}",
            head.pfn().raw(),
            head.compound_order().raw(),
            head.map_counts().entire,
            head.pins_hint(),
        )?;
    }
    write!(out, "{}flags: ", if head.is_anon() { "anon " } else { "" })?;
    flags(mem, head, out)?;
    raw(page, "raw", out)?;
    if head.pfn() != pfn {
        raw(head, "head", out)?;
    }
    writeln!(out, "page dumped because: {reason}")
}

/// What is no page of a program has other things in its counter.
fn mapcount(page: Page<'_>, head: Page<'_>) -> u32 {
    let typed = PageFlags::SLAB | PageFlags::BUDDY | PageFlags::PGTABLE;
    if head.state().flags().intersects(typed) {
        0
    } else {
        page.mapcount()
    }
}

fn flags<P: Platform>(mem: &Memory<P>, page: Page<'_>, out: &mut dyn Write) -> fmt::Result {
    let flags = page.state().flags();
    write!(out, "{:#x}(", flags.bits())?;
    for (_, name) in NAMES.iter().filter(|(flag, _)| flags.contains(*flag)) {
        write!(out, "{name}|")?;
    }
    let zone = mem.zone_of(page.pfn()).kind();
    let zone = ZoneKind::ALL.iter().take_while(|kind| **kind != zone).count();
    writeln!(out, "node={}|zone={zone})", mem.node_id(page.pfn()).index())
}

fn raw(page: Page<'_>, label: &str, out: &mut dyn Write) -> fmt::Result {
    for line in page.raw_words().chunks(4) {
        write!(out, "{label}:")?;
        line.iter().try_for_each(|word| write!(out, " {word:016x}"))?;
        writeln!(out)?;
    }
    Ok(())
}
