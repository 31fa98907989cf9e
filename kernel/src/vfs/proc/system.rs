//! Text about the whole machine.

use alloc::{boxed::Box, string::String};
use core::fmt::Write;

use mm::{Counter, PAGE_BYTES, PMD_SIZE};

use crate::{
    platform::mm,
    version,
    vfs::mounts::{MOUNTS, Mount, TYPES},
};

const KIB: u64 = 1024;
/// kB in a base page.
const PAGE_KB: u64 = PAGE_BYTES / KIB;

/// `/proc/meminfo`: the lines whose numbers exist here, in Linux's order.
#[must_use]
pub fn meminfo() -> Box<[u8]> {
    let mm = mm();
    let count = |counter| mm.count(counter) * PAGE_KB;
    let free = mm.nr_free_pages() * PAGE_KB;
    let active = count(Counter::NrActiveAnon);
    let inactive = count(Counter::NrInactiveAnon);
    let slab = count(Counter::NrSlabUnreclaimable);
    let lines = [
        ("MemTotal", mm.nr_managed_pages() * PAGE_KB),
        ("MemFree", free),
        // Nothing can be reclaimed yet, so what is free is what a program can have.
        ("MemAvailable", free),
        ("Active", active),
        ("Inactive", inactive),
        ("Active(anon)", active),
        ("Inactive(anon)", inactive),
        ("Unevictable", count(Counter::NrUnevictable)),
        ("Mlocked", count(Counter::NrMlock)),
        // There is no swap device: these are true zeroes.
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("AnonPages", count(Counter::NrAnonPages)),
        ("Slab", slab),
        ("SUnreclaim", slab),
        ("PageTables", count(Counter::NrPageTable)),
        ("AnonHugePages", mm.count(Counter::NrAnonThps) * (PMD_SIZE / KIB)),
        ("Hugepagesize", PMD_SIZE / KIB),
    ];
    text(|out| {
        for (name, kb) in lines {
            // The column of Linux's table: name and colon take 16, the number 8.
            writeln!(out, "{:<16}{kb:>8} kB", alloc::format!("{name}:"))?;
        }
        Ok(())
    })
}

/// `/proc/vmstat`: the counters that exist here, in Linux's order.
#[must_use]
pub fn vmstat() -> Box<[u8]> {
    let mm = mm();
    text(|out| {
        writeln!(out, "nr_free_pages {}", mm.nr_free_pages())?;
        for &counter in Counter::ALL {
            writeln!(out, "{} {}", counter.name(), mm.count(counter))?;
        }
        Ok(())
    })
}

/// `/proc/buddyinfo`: for each zone, how many free blocks of each order.
#[must_use]
pub fn buddyinfo() -> Box<[u8]> {
    text(|out| {
        let mut result = Ok(());
        mm::report::buddyinfo(mm(), &mut |node, zone, blocks| {
            result = result.and_then(|()| buddyinfo_line(out, node, zone, blocks));
        });
        result
    })
}

fn buddyinfo_line(out: &mut String, node: usize, zone: &str, blocks: &[u64]) -> core::fmt::Result {
    write!(out, "Node {node}, zone {zone:>8} ")?;
    blocks.iter().try_for_each(|count| write!(out, "{count:>6} "))?;
    writeln!(out)
}

/// `/proc/filesystems`.
#[must_use]
pub fn filesystems() -> Box<[u8]> {
    text(|out| TYPES.iter().try_for_each(|kind| writeln!(out, "nodev\t{kind}")))
}

/// `/proc/PID/mounts`. The name of a device, where there is none, is that of the type.
#[must_use]
pub fn mounts() -> Box<[u8]> {
    text(|out| {
        MOUNTS
            .iter()
            .try_for_each(|Mount { kind, path, options }| writeln!(out, "{kind} {path} {kind} {options} 0 0"))
    })
}

/// `/proc/version`.
#[must_use]
pub fn version() -> Box<[u8]> {
    text(|out| {
        writeln!(
            out,
            "{} version {} {}",
            version::SYSNAME,
            version::RELEASE,
            version::VERSION
        )
    })
}

/// Collects text; a `String` takes everything, so there is no error to hand on.
pub(in crate::vfs) fn text(write: impl FnOnce(&mut String) -> core::fmt::Result) -> Box<[u8]> {
    let mut text = String::new();
    let _ = write(&mut text);
    text.into_bytes().into()
}
