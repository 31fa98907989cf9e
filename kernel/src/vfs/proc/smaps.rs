//! `/proc/PID/smaps` and `smaps_rollup`: what each area, and all of them together, have in memory.
//!
//! All memory of a program is anonymous, nothing is swapped, and there are no huge pages of the other kind (hugetlb): the
//! lines about those are true zeroes. `ProtectionKey` is left out, as by a Linux
//! on a machine without such keys. `VmFlags` has no `ac`: nothing is charged against a commit limit here.

use alloc::{boxed::Box, string::String};
use core::fmt::{self, Write};

use linux_abi::errno::Errno;
use mm::{
    PAGE_BYTES, VirtAddr, VmaFlags, VmaInfo,
    report::{self, Residency},
};

use super::{
    process::{find, header_line, pad_to_name},
    system::text,
};
use crate::{platform::mm, task::process::Pid};

const KIB: u64 = 1024;

/// Two-letter codes of the flags of an area, in the order of Linux's bits. A flag without a code shows as "??", there too.
const FLAG_CODES: [(VmaFlags, &str); 19] = [
    (VmaFlags::READ, "rd"),
    (VmaFlags::WRITE, "wr"),
    (VmaFlags::EXEC, "ex"),
    (VmaFlags::SHARED, "sh"),
    (VmaFlags::MAYREAD, "mr"),
    (VmaFlags::MAYWRITE, "mw"),
    (VmaFlags::MAYEXEC, "me"),
    (VmaFlags::GROWSDOWN, "gd"),
    (VmaFlags::LOCKED, "lo"),
    (VmaFlags::SEQ_READ, "sr"),
    (VmaFlags::RAND_READ, "rr"),
    (VmaFlags::DONTCOPY, "dc"),
    (VmaFlags::LOCKONFAULT, "??"),
    (VmaFlags::NORESERVE, "nr"),
    (VmaFlags::WIPEONFORK, "wf"),
    (VmaFlags::DONTDUMP, "dd"),
    (VmaFlags::SOFTDIRTY, "sd"),
    (VmaFlags::HUGEPAGE, "hg"),
    (VmaFlags::NOHUGEPAGE, "nh"),
];

/// Which lines the totals have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Totals {
    OfArea,
    OfAll,
}

/// `smaps`: every area, with what it has in memory.
pub(super) fn smaps(pid: Pid) -> Result<Box<[u8]>, Errno> {
    let process = find(pid)?;
    let Some(space) = process.space() else {
        return Ok(Box::default());
    };
    let (heap_start, heap_end) = space.brk_bounds();
    Ok(text(|out| {
        let mut result = Ok(());
        report::smaps(mm(), &space, &mut |vma, residency| {
            if result.is_ok() {
                result = header_line(out, vma, heap_start..heap_end).and_then(|()| area(out, vma, residency));
            }
        });
        result
    }))
}

/// `smaps_rollup`: all areas together.
pub(super) fn rollup(pid: Pid) -> Result<Box<[u8]>, Errno> {
    let process = find(pid)?;
    // Linux: no memory to look at is ESRCH here, unlike for `smaps`.
    let space = process.space().ok_or(Errno::ESRCH)?;
    let mut sum = Residency::default();
    let mut bounds: Option<(VirtAddr, VirtAddr)> = None;
    report::smaps(mm(), &space, &mut |vma, residency| {
        let start = bounds.map_or(vma.range.start(), |(start, _)| start);
        bounds = Some((start, vma.range.end()));
        sum.merge(residency);
    });
    let (start, end) = bounds.unwrap_or((VirtAddr::zero(), VirtAddr::zero()));
    Ok(text(|out| {
        let line_start = out.len();
        write!(
            out,
            "{:08x}-{:08x} ---p 00000000 00:00 0 ",
            start.as_u64(),
            end.as_u64()
        )?;
        pad_to_name(out, line_start)?;
        out.write_str("[rollup]\n")?;
        totals(out, &sum, Totals::OfAll)
    }))
}

fn area(out: &mut String, vma: VmaInfo, residency: &Residency) -> fmt::Result {
    line(out, "Size", vma.range.bytes())?;
    line(out, "KernelPageSize", PAGE_BYTES)?;
    line(out, "MMUPageSize", PAGE_BYTES)?;
    totals(out, residency, Totals::OfArea)?;
    writeln!(out, "THPeligible:    {}", u8::from(mm().thp_eligible(vma)))?;
    out.write_str("VmFlags: ")?;
    let mut set = FLAG_CODES.iter().filter(|(flag, _)| vma.flags.contains(*flag));
    set.try_for_each(|(_, code)| write!(out, "{code} "))?;
    out.write_char('\n')
}

fn totals(out: &mut String, residency: &Residency, which: Totals) -> fmt::Result {
    let pss = residency.share.bytes();
    line(out, "Rss", residency.resident)?;
    line(out, "Pss", pss)?;
    line(out, "Pss_Dirty", residency.share_dirty.bytes())?;
    if which == Totals::OfAll {
        line(out, "Pss_Anon", pss)?;
        line(out, "Pss_File", 0)?;
        line(out, "Pss_Shmem", 0)?;
    }
    let lines = [
        ("Shared_Clean", residency.shared.clean),
        ("Shared_Dirty", residency.shared.dirty),
        ("Private_Clean", residency.private.clean),
        ("Private_Dirty", residency.private.dirty),
        ("Referenced", residency.referenced),
        ("Anonymous", residency.resident),
        ("LazyFree", residency.lazy_free),
        ("AnonHugePages", residency.by_pmd),
        ("ShmemPmdMapped", 0),
        ("FilePmdMapped", 0),
        ("Shared_Hugetlb", 0),
        ("Private_Hugetlb", 0),
        ("Swap", 0),
        ("SwapPss", 0),
        ("Locked", residency.share_locked.bytes()),
    ];
    lines.iter().try_for_each(|&(name, bytes)| line(out, name, bytes))
}

/// One line: name and colon in 16 columns, kB in 8; a name of 16 letters takes one column from the number.
fn line(out: &mut String, name: &str, bytes: u64) -> fmt::Result {
    let label = name.len() + 1;
    let padding = 16_usize.saturating_sub(label).max(usize::from(label > 15));
    let width = 24 - label - padding;
    writeln!(out, "{name}:{:padding$}{:>width$} kB", "", bytes / KIB)
}
