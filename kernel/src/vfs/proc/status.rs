//! `/proc/PID/status` and `statm`: a process in a few lines.
//!
//! Lines whose numbers are not kept here are left out: capabilities, queued signals, context switches. What cannot exist
//! yet is a true zero: pages of files, shared memory, swap, tracers.

use alloc::{boxed::Box, string::String};
use core::fmt::{self, Write};

use linux_abi::errno::Errno;
use mm::{AddressSpace, PAGE_BYTES, VmKind};

use super::{process::find, system::text};
use crate::task::{
    process::{self, Pid, Process},
    signal::{Action, NSIG, Signal, Signals},
};

const PAGE_KB: u64 = PAGE_BYTES / 1024;

/// Sizes of an address space, in pages.
struct Sizes {
    total: u64,
    resident: u64,
    text: u64,
    lib: u64,
    data: u64,
    stack: u64,
}

impl Sizes {
    fn of(space: &AddressSpace) -> Self {
        let (code_start, code_end) = space.code_bounds();
        let exec = space.vm_pages(VmKind::Exec);
        let text = ((code_end - code_start) / PAGE_BYTES).min(exec);
        Self {
            total: space.total_vm_pages(),
            resident: space.rss_pages(),
            text,
            lib: exec - text,
            data: space.vm_pages(VmKind::Data),
            stack: space.vm_pages(VmKind::Stack),
        }
    }
}

/// `statm`: size, resident, shared, text, (0), data and stack, (0), in pages.
pub(super) fn statm(pid: Pid) -> Result<Box<[u8]>, Errno> {
    let process = find(pid)?;
    let sizes = process.space().map(|space| Sizes::of(&space));
    Ok(text(|out| match sizes {
        None => out.write_str("0 0 0 0 0 0 0\n"),
        Some(sizes) => {
            let Sizes {
                total,
                resident,
                text,
                data,
                stack,
                ..
            } = sizes;
            writeln!(out, "{total} {resident} 0 {text} 0 {} 0", data + stack)
        }
    }))
}

/// `status`.
pub(super) fn status(pid: Pid) -> Result<Box<[u8]>, Errno> {
    let process = find(pid)?;
    Ok(text(|out| {
        identity(out, &process)?;
        if let Some(space) = process.space() {
            memory(out, &space)?;
        }
        writeln!(out, "Threads:\t1")?;
        signals(out, &process.signals().lock())?;
        writeln!(out, "NoNewPrivs:\t0")?;
        writeln!(out, "Seccomp:\t0")?;
        writeln!(out, "Seccomp_filters:\t0")
    }))
}

fn identity(out: &mut String, process: &Process) -> fmt::Result {
    let pid = process.pid();
    writeln!(out, "Name:\t{}", process.comm().escape_ascii())?;
    writeln!(out, "Umask:\t{:04o}", process.umask())?;
    if let Some(state) = state(process) {
        writeln!(out, "State:\t{state}")?;
    }
    writeln!(out, "Tgid:\t{pid}")?;
    writeln!(out, "Ngid:\t0")?;
    writeln!(out, "Pid:\t{pid}")?;
    writeln!(out, "PPid:\t{}", process.kin().parent())?;
    writeln!(out, "TracerPid:\t0")?;
    // Every program is root's.
    writeln!(out, "Uid:\t0\t0\t0\t0")?;
    writeln!(out, "Gid:\t0\t0\t0\t0")?;
    writeln!(out, "Groups:\t ")?;
    writeln!(out, "NStgid:\t{pid}")?;
    writeln!(out, "NSpid:\t{pid}")?;
    writeln!(out, "NSpgid:\t{}", process.kin().group())?;
    writeln!(out, "NSsid:\t{}", process.kin().session())
}

/// Left out of a process that is neither the reader nor ended: whether it waits is known to the scheduler alone.
fn state(process: &Process) -> Option<&'static str> {
    if process.outcome().is_some() {
        return Some("Z (zombie)");
    }
    let reads = process::current().is_some_and(|current| current.pid() == process.pid());
    reads.then_some("R (running)")
}

fn memory(out: &mut String, space: &AddressSpace) -> fmt::Result {
    let sizes = Sizes::of(space);
    let lines = [
        ("VmPeak", space.peak_vm_pages() * PAGE_KB),
        ("VmSize", sizes.total * PAGE_KB),
        ("VmLck", space.locked_pages() * PAGE_KB),
        ("VmPin", 0),
        ("VmHWM", space.peak_rss_pages() * PAGE_KB),
        ("VmRSS", sizes.resident * PAGE_KB),
        ("RssAnon", sizes.resident * PAGE_KB),
        ("RssFile", 0),
        ("RssShmem", 0),
        ("VmData", sizes.data * PAGE_KB),
        ("VmStk", sizes.stack * PAGE_KB),
        ("VmExe", sizes.text * PAGE_KB),
        ("VmLib", sizes.lib * PAGE_KB),
        ("VmPTE", space.pgtable_bytes() / 1024),
        ("VmSwap", 0),
        ("HugetlbPages", 0),
    ];
    for (name, kb) in lines {
        writeln!(out, "{name}:\t{kb:>8} kB")?;
    }
    writeln!(out, "CoreDumping:\t0")?;
    // No program can switch huge pages off for itself as a whole.
    writeln!(out, "THP_enabled:\t1")
}

fn signals(out: &mut String, signals: &Signals) -> fmt::Result {
    let with_handler = |wanted: fn(u64) -> bool| {
        (1..=NSIG)
            .filter_map(Signal::new)
            .filter(|&signal| wanted(signals.action(signal).handler))
            .fold(0u64, |set, signal| set | 1 << (signal.number() - 1))
    };
    let lines = [
        // One queue, whomever a signal was sent to: what `kill` sends is the process's.
        ("SigPnd", 0),
        ("ShdPnd", signals.pending().bits()),
        ("SigBlk", signals.mask().bits()),
        ("SigIgn", with_handler(|handler| handler == Action::IGNORE)),
        ("SigCgt", with_handler(|handler| handler > Action::IGNORE)),
    ];
    lines
        .iter()
        .try_for_each(|(name, set)| writeln!(out, "{name}:\t{set:016x}"))
}
