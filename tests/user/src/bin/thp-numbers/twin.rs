//! Children that have the page in common with the program, and do to their part of it what they are told.
//!
//! ```text
//!   parent ── command (24 bytes) ──> child: does it
//!          <── errno (4 bytes) ─────
//! ```

use std::{
    fs::File,
    io::{self, Read, Write},
    ops::Range,
    os::fd::{FromRawFd, OwnedFd},
};

use user::{PAGE, mapping::Mapping};

/// What a child is told to do.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    /// Nothing: to touch all that answering touches.
    Ping,
    /// Unmap these pages.
    Unmap(Range<usize>),
    /// Split the PMD that maps the page.
    SplitPmd,
    /// Write one byte to this page.
    Write(usize),
}

const END: u64 = u64::MAX;

impl Command {
    fn encode(&self) -> [u64; 3] {
        match self {
            Self::Ping => [0, 0, 0],
            Self::Unmap(pages) => [1, pages.start as u64, pages.end as u64],
            Self::SplitPmd => [2, 0, 0],
            Self::Write(page) => [3, *page as u64, 0],
        }
    }

    fn decode([what, first, last]: [u64; 3]) -> Option<Self> {
        let number = |word| usize::try_from(word).unwrap_or(usize::MAX);
        match what {
            0 => Some(Self::Ping),
            1 => Some(Self::Unmap(number(first)..number(last))),
            2 => Some(Self::SplitPmd),
            3 => Some(Self::Write(number(first))),
            _ => None,
        }
    }

    /// Does it to `block`.
    pub(crate) fn apply(&self, block: &Mapping) -> io::Result<()> {
        match self {
            Self::Ping => Ok(()),
            Self::Unmap(pages) => block.unmap(pages.start * PAGE..pages.end * PAGE),
            Self::SplitPmd => split_pmd(block),
            Self::Write(page) => {
                block.write(page * PAGE, 0xa5);
                Ok(())
            }
        }
    }
}

/// Splits the PMD, and leaves the area as it was: rights that change for one page cut the area in two, and two areas
/// cannot share a PMD.
fn split_pmd(block: &Mapping) -> io::Result<()> {
    block.protect(0..PAGE, libc::PROT_READ)?;
    block.protect(0..PAGE, libc::PROT_READ | libc::PROT_WRITE)
}

/// A child.
#[derive(Debug)]
pub(crate) struct Twin {
    pid: i32,
    commands: File,
    answers: File,
}

fn pipe() -> io::Result<(File, File)> {
    let mut ends = [-1; 2];
    // SAFETY: the call writes two numbers.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call made them, and nobody else has them.
    let [read, write] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    Ok((File::from(read), File::from(write)))
}

impl Twin {
    /// Makes a child that maps what this process maps.
    pub(crate) fn fork(block: &Mapping) -> io::Result<Self> {
        let (mut orders, commands) = pipe()?;
        let (answers, mut report) = pipe()?;
        // SAFETY: the program has one thread.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                obey(block, &mut orders, &mut report);
                // SAFETY: ends the child without what the parent registered.
                unsafe { libc::_exit(0) }
            }
            pid => Ok(Self {
                pid,
                commands,
                answers,
            }),
        }
    }

    /// The child's number.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Has a command done, and waits for that.
    pub(crate) fn ask(&mut self, command: &Command) -> io::Result<()> {
        self.commands.write_all(&bytes(command.encode()))?;
        let mut errno = [0; 4];
        self.answers.read_exact(&mut errno)?;
        match i32::from_le_bytes(errno) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        // A child that is gone already has nothing to be told.
        let _ = self.commands.write_all(&bytes([END, 0, 0]));
        // SAFETY: no status is asked for.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

fn bytes(words: [u64; 3]) -> [u8; 24] {
    let mut bytes = [0; 24];
    for (slot, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *slot = word.to_le_bytes();
    }
    bytes
}

/// The child: does what it is told until it is told to end, or nobody is left to tell it.
fn obey(block: &Mapping, orders: &mut File, report: &mut File) {
    let mut order = [0; 24];
    while orders.read_exact(&mut order).is_ok() {
        let words = order.as_chunks::<8>().0;
        let Some(command) = Command::decode([0, 1, 2].map(|at| u64::from_le_bytes(words[at]))) else {
            return;
        };
        let errno = match command.apply(block) {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
        };
        if report.write_all(&errno.to_le_bytes()).is_err() {
            return;
        }
    }
}
