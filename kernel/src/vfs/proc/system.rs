//! Text about the whole machine.

use alloc::{boxed::Box, string::String};
use core::fmt::Write;

use mm::{Counter, PAGE_BYTES, PMD_SIZE};

use super::vmstat::{self, Otherwise};
use crate::{
    platform::mm,
    version,
    vfs::mounts::{MOUNTS, Mount, TYPES},
};

const _: () = assert!(
    vmstat::all_named(),
    "a counter of mm whose name Linux 6.1 does not print"
);

const KIB: u64 = 1024;
/// kB in a base page.
const PAGE_KB: u64 = PAGE_BYTES / KIB;

/// `/proc/meminfo`: the lines whose numbers exist here, in Linux's order.
///
/// What there cannot be yet is a true zero: pages of files, shared memory, swap, dirty pages, reclaimable slabs, hugetlb.
/// What nobody counts, or nothing acts on, has no line: kernel stacks, the commit limit (decision 0010), vmalloc, per-CPU
/// memory, the direct map.
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
        ("Buffers", 0),
        ("Cached", 0),
        ("SwapCached", 0),
        ("Active", active),
        ("Inactive", inactive),
        ("Active(anon)", active),
        ("Inactive(anon)", inactive),
        ("Active(file)", 0),
        ("Inactive(file)", 0),
        ("Unevictable", count(Counter::NrUnevictable)),
        ("Mlocked", count(Counter::NrMlock)),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Dirty", 0),
        ("Writeback", 0),
        ("AnonPages", count(Counter::NrAnonPages)),
        ("Mapped", 0),
        ("Shmem", 0),
        ("KReclaimable", 0),
        ("Slab", slab),
        ("SReclaimable", 0),
        ("SUnreclaim", slab),
        ("PageTables", count(Counter::NrPageTable)),
        ("SecPageTables", 0),
        ("NFS_Unstable", 0),
        ("Bounce", 0),
        ("WritebackTmp", 0),
        ("AnonHugePages", mm.count(Counter::NrAnonThps) * (PMD_SIZE / KIB)),
        ("ShmemHugePages", 0),
        ("ShmemPmdMapped", 0),
        ("FileHugePages", 0),
        ("FilePmdMapped", 0),
    ];
    text(|out| {
        lines.iter().try_for_each(|&(name, kb)| kb_line(out, name, kb))?;
        for name in ["Total", "Free", "Rsvd", "Surp"] {
            writeln!(out, "{:<16}{:>8}", alloc::format!("HugePages_{name}:"), 0)?;
        }
        kb_line(out, "Hugepagesize", PMD_SIZE / KIB)?;
        kb_line(out, "Hugetlb", 0)
    })
}

/// A line of Linux's table: name and colon take 16 columns, the number 8.
fn kb_line(out: &mut String, name: &str, kb: u64) -> core::fmt::Result {
    writeln!(out, "{:<16}{kb:>8} kB", alloc::format!("{name}:"))
}

/// `/proc/vmstat`: the counters that exist here, in Linux's order.
#[must_use]
pub fn vmstat() -> Box<[u8]> {
    let mm = mm();
    text(|out| {
        for &(name, otherwise) in vmstat::NAMES {
            let value = match name {
                "nr_free_pages" => Some(mm.nr_free_pages()),
                _ => vmstat::counter(name).map(|counter| mm.count(counter)),
            };
            match value {
                Some(value) => writeln!(out, "{name} {value}")?,
                None if otherwise == Otherwise::Zero => writeln!(out, "{name} 0")?,
                None => {}
            }
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
