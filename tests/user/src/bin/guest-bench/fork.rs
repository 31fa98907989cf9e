//! Rows about processes: the cheapest call, `fork`, and the first write to what was shared by it.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    thread,
    time::Duration,
};

use user::{HUGE, PAGE, mapping::Mapping};

use crate::{
    clock::Clock,
    memory::{huge, small, write_every},
};

/// Operations of the rows that repeat a call.
const CALLS: u64 = 1000;
/// Huge pages of the process that forks.
const FORKED_BLOCKS: usize = 64;
/// Base pages of the process that forks: 64 MiB.
const FORKED_PAGES: usize = 64 << 20 >> 12;
/// Huge pages that are written to after a fork.
const SHARED_BLOCKS: usize = 8;
/// Base pages that are written to after a fork.
const SHARED_PAGES: usize = 512;

/// A system call that does next to nothing.
pub(crate) fn getppid(clock: Clock) -> io::Result<u64> {
    let calls = || {
        for _ in 0..CALLS {
            // SAFETY: has no effect.
            unsafe { libc::getppid() };
        }
    };
    Ok(clock.time(calls) / CALLS)
}

/// A child from its making to its last trace.
pub(crate) fn fork_exit_wait(clock: Clock) -> io::Result<u64> {
    let mut outcome = Ok(());
    let cost = clock.time(|| outcome = fork(None).and_then(wait));
    outcome.map(|()| cost)
}

/// `fork`, until it returns in the parent.
fn fork_return(clock: Clock) -> io::Result<u64> {
    // Begins a new time slice: the child is not to have its turn before the parent has returned.
    thread::sleep(Duration::from_millis(1));
    let mut child = Ok(0);
    let cost = clock.time(|| child = fork(None));
    wait(child?)?;
    Ok(cost)
}

/// `fork` with huge pages to share.
pub(crate) fn fork_with_huge(clock: Clock) -> io::Result<u64> {
    let memory = huge(FORKED_BLOCKS)?;
    write_every(&memory, HUGE);
    fork_return(clock)
}

/// `fork` with many base pages to share.
pub(crate) fn fork_with_small(clock: Clock) -> io::Result<u64> {
    let memory = small(FORKED_PAGES)?;
    write_every(&memory, PAGE);
    fork_return(clock)
}

/// First write to each huge page that a child shares.
pub(crate) fn touch_shared_huge(clock: Clock) -> io::Result<u64> {
    let memory = huge(SHARED_BLOCKS)?;
    touch_shared(clock, &memory, HUGE)
}

/// First write to each base page that a child shares.
pub(crate) fn touch_shared_small(clock: Clock) -> io::Result<u64> {
    let memory = small(SHARED_PAGES)?;
    touch_shared(clock, &memory, PAGE)
}

fn touch_shared(clock: Clock, memory: &Mapping, step: usize) -> io::Result<u64> {
    write_every(memory, step);
    let child = WaitingChild::start()?;
    let cost = clock.time(|| write_every(memory, step));
    child.end()?;
    Ok(cost / (memory.len() / step) as u64)
}

/// A child that does nothing but keep its memory.
struct WaitingChild {
    pid: libc::pid_t,
    /// It ends when this is closed.
    leash: OwnedFd,
}

impl WaitingChild {
    /// Starts it, and returns when it has got as far as to wait.
    fn start() -> io::Result<Self> {
        let (until_read, leash) = pipe()?;
        let (ready, tell) = pipe()?;
        let pid = fork(Some(Orders {
            close: [leash.as_raw_fd(), ready.as_raw_fd()],
            tell: tell.as_raw_fd(),
            until: until_read.as_raw_fd(),
        }))?;
        drop(tell);
        File::from(ready).read_exact(&mut [0])?;
        Ok(Self { pid, leash })
    }

    fn end(self) -> io::Result<()> {
        drop(self.leash);
        wait(self.pid)
    }
}

/// What a child does before it ends: closes two descriptors, writes a byte to one, reads from one until its end.
#[derive(Clone, Copy)]
struct Orders {
    close: [RawFd; 2],
    tell: RawFd,
    until: RawFd,
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: there is room for two descriptors.
    if unsafe { libc::pipe(ends.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let own = |end| unsafe { OwnedFd::from_raw_fd(end) };
    Ok((own(ends[0]), own(ends[1])))
}

/// Forks; returns in the parent only. The child follows its orders and ends with status 0.
fn fork(orders: Option<Orders>) -> io::Result<libc::pid_t> {
    // SAFETY: this program has one thread, and the child makes system calls only.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => obey(orders),
        child => Ok(child),
    }
}

fn obey(orders: Option<Orders>) -> ! {
    if let Some(Orders { close, tell, until }) = orders {
        for end in close {
            // SAFETY: the parent owns its own copy; the child's goes with it anyway.
            unsafe { libc::close(end) };
        }
        let mut byte = 0_u8;
        // SAFETY: one byte is there to be written.
        unsafe { libc::write(tell, (&raw const byte).cast(), 1) };
        // SAFETY: there is room for one byte; the answer, an end or an error, means the same: leave.
        unsafe { libc::read(until, (&raw mut byte).cast(), 1) };
    }
    // SAFETY: ends this process.
    unsafe { libc::_exit(0) }
}

/// Waits for a child, which must have ended with status 0.
fn wait(child: libc::pid_t) -> io::Result<()> {
    let mut status = 0;
    // SAFETY: there is room for a status.
    if unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
        return Err(io::Error::last_os_error());
    }
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "a child ended with wait status {status:#x}"
        )))
    }
}
