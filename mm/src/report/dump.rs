//! Everything that one page's record says, in the words of Linux's `dump_page`.

use core::fmt::{self, Write};

use crate::{addr::Pfn, memory::Memory, order::Order, platform::Platform};

/// Writes what is known about a frame. Any number is accepted.
///
/// # Errors
/// Those of `out`.
pub fn dump_page<P: Platform>(mem: &Memory<P>, pfn: Pfn, reason: &str, out: &mut dyn Write) -> fmt::Result {
    let Some(page) = mem.pages().get(pfn) else {
        return writeln!(out, "page pfn:{pfn} is past the page array");
    };
    let head = page.head();
    let counts = page.map_counts();
    writeln!(
        out,
        "page:{pfn} refcount:{} mapcount:{} mapping:{:#x} index:{:#x} pfn:{pfn}",
        head.refs_hint(),
        page.mapcount(),
        page.mapping(),
        page.index(),
    )?;
    if head.compound_order() > Order::ZERO {
        writeln!(
            out,
            "head:pfn {} order:{} compound_mapcount:{} entries:{} double_map:{}",
            head.pfn(),
            head.compound_order().raw(),
            counts.entire,
            counts.total,
            head.is_double_mapped(),
        )?;
    }
    writeln!(out, "flags: {:?}", page.state())?;
    writeln!(
        out,
        "raw: state {:016x} refs {:08x} maps {:08x} mapping {:016x} index {:016x}",
        page.state().raw(),
        page.refs_hint(),
        page.raw_mapcount(),
        page.own_mapping(),
        page.index(),
    )?;
    writeln!(out, "page dumped because: {reason}")
}
