//! Leaves a process behind that keeps a huge page at a known address, for somebody to look at from the monitor.
//!
//! `hold WAY...`: `pin` puts its subpage 100 into a pipe, `hole` unmaps its subpage 7, `share` makes a second process.

use std::{ffi::c_void, io, os::fd::AsRawFd, time::Duration};

use user::{HUGE, PAGE};

use crate::{Verdict, tasks};

/// Where the page is.
const ADDRESS: usize = 0x10_0000_0000;

/// Makes the page, and the process that keeps it; returns when all is as was asked for.
pub(crate) fn hold(words: &[String]) -> Verdict {
    let mut verdict = Verdict::default();
    let made = make(words);
    verdict.holds(
        &format!("a huge page is held at {ADDRESS:#x}: {made:?}"),
        made.is_ok(),
    );
    verdict
}

fn make(words: &[String]) -> io::Result<()> {
    let (mut told, tell) = io::pipe()?;
    let wants = |way: &str| words.iter().any(|word| word == way);
    let (pin, hole, share) = (wants("pin"), wants("hole"), wants("share"));
    tasks::child(|| {
        let page = map();
        // Before it is pinned: of a pinned page a child would get a copy.
        if share {
            tasks::child(|| {
                std::thread::sleep(Duration::from_secs(1000));
                0
            });
        }
        let kept = page.and_then(|page| {
            let pipe = if pin { Some(give(page)?) } else { None };
            if hole {
                cut(page)?;
            }
            Ok(pipe)
        });
        let is_done = kept.is_ok() && io::Write::write_all(&mut &tell, b"!").is_ok();
        if is_done {
            std::thread::sleep(Duration::from_secs(1000));
        }
        i32::from(!is_done)
    });
    drop(tell);
    io::Read::read_exact(&mut told, &mut [0])
}

fn check(is_done: bool) -> io::Result<()> {
    is_done.then_some(()).ok_or_else(io::Error::last_os_error)
}

/// Maps the page and writes it.
fn map() -> io::Result<*mut c_void> {
    let wanted = std::ptr::without_provenance_mut(ADDRESS);
    // SAFETY: nothing is mapped there, or the call fails.
    let start = unsafe {
        libc::mmap(
            wanted,
            HUGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    check(start == wanted)?;
    // SAFETY: just mapped, and nobody else's.
    unsafe { start.cast::<u8>().write_bytes(1, HUGE) };
    Ok(start)
}

/// Puts subpage 100 into a pipe, which keeps it for as long as what is returned.
fn give(page: *mut c_void) -> io::Result<(io::PipeReader, io::PipeWriter)> {
    let (read, write) = io::pipe()?;
    let piece = libc::iovec {
        iov_base: page.wrapping_byte_add(100 * PAGE),
        iov_len: PAGE,
    };
    // SAFETY: the page is mapped, and only read.
    let given = unsafe { libc::vmsplice(write.as_raw_fd(), &raw const piece, 1, 0) };
    check(given >= 0).map(|()| (read, write))
}

/// Unmaps subpage 7.
fn cut(page: *mut c_void) -> io::Result<()> {
    // SAFETY: part of what was mapped.
    check(unsafe { libc::munmap(page.wrapping_byte_add(7 * PAGE), PAGE) } == 0)
}
