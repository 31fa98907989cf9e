//! Text about one process.

use alloc::{boxed::Box, string::String, sync::Arc};
use core::{
    fmt::Write,
    ops::{ControlFlow, Range},
};

use linux_abi::errno::Errno;
use mm::{VirtAddr, VmaFlags, VmaInfo};

use super::system::text;
use crate::{
    heap,
    platform::mm,
    task::process::{self, Pid, Process},
};

/// Where the name of an area begins.
const NAME_COLUMN: usize = 73;

pub(super) fn find(pid: Pid) -> Result<Arc<Process>, Errno> {
    process::find(pid).ok_or(Errno::ESRCH)
}

/// `/proc/PID/maps`: one line per area. All memory here is anonymous: program text was copied, so no line has a file.
pub(super) fn maps(pid: Pid) -> Result<Box<[u8]>, Errno> {
    let process = find(pid)?;
    let Some(space) = process.space() else {
        return Ok(Box::default());
    };
    let (heap_start, heap_end) = space.brk_bounds();
    Ok(text(|out| {
        let flow = mm().for_each_vma(&space, &mut |vma| {
            if header_line(out, vma, heap_start..heap_end).is_ok() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        if flow.is_continue() {
            Ok(())
        } else {
            Err(core::fmt::Error)
        }
    }))
}

/// The line that `maps` and `smaps` have for an area.
pub(super) fn header_line(out: &mut String, vma: VmaInfo, heap: Range<VirtAddr>) -> core::fmt::Result {
    let line_start = out.len();
    let mark = |flag, letter| if vma.flags.contains(flag) { letter } else { '-' };
    write!(
        out,
        "{:08x}-{:08x} {}{}{}p 00000000 00:00 0 ",
        vma.range.start().as_u64(),
        vma.range.end().as_u64(),
        mark(VmaFlags::READ, 'r'),
        mark(VmaFlags::WRITE, 'w'),
        mark(VmaFlags::EXEC, 'x'),
    )?;
    let name = if vma.range.end().as_u64() == mm::USER_END {
        // The one that the program began with: others that grow down have no name.
        "[stack]"
    } else if vma.range.start() <= heap.end && heap.start <= vma.range.end() {
        "[heap]"
    } else {
        return out.write_char('\n');
    };
    pad_to_name(out, line_start)?;
    writeln!(out, "{name}")
}

/// Fills the line that began at `line_start` up to where a name stands.
pub(super) fn pad_to_name(out: &mut String, line_start: usize) -> core::fmt::Result {
    let padding = NAME_COLUMN.saturating_sub(out.len() - line_start);
    write!(out, "{:padding$}", "")
}

/// `/proc/PID/cmdline`: the arguments as given at exec, each ended by NUL.
pub(super) fn cmdline(pid: Pid) -> Result<Box<[u8]>, Errno> {
    let cmdline = find(pid)?.cmdline();
    let mut copy = heap::try_vec(cmdline.len())?;
    copy.extend_from_slice(&cmdline);
    Ok(copy.into())
}

/// `/proc/PID/comm`: the program's name, cut to 15 bytes.
pub(super) fn comm(pid: Pid) -> Result<Box<[u8]>, Errno> {
    let process = find(pid)?;
    let mut line = process.comm();
    line.push(b'\n');
    Ok(line.into())
}
