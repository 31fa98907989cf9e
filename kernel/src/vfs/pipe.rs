//! Pipes: bytes from whoever has the writing end to whoever has the reading end.
//!
//! ```text
//!   write --> [ at most 64 KiB ] --> read
//!     |  full: sleep, EAGAIN            |  empty: sleep, EAGAIN
//!     |  no reader: EPIPE, SIGPIPE      |  empty and no writer: 0, the end
//! ```
//! An end is one open file, which descriptors and processes share; dropping the file closes the end.
//!
//! Protocol: change under the pipe's lock, unlock, then wake its queue and whoever polls. The lock is held for a copy to
//! or from a kernel buffer, never over a user copy or a wait.
//!
//! Differs from Linux: bytes lie in one ring, not in 16 pages, so a write of up to 4 KiB waits for as much room and not
//! for a free page.

use alloc::{collections::VecDeque, sync::Arc};
use core::sync::atomic::{AtomicU64, Ordering};

use linux_abi::errno::Errno;
use spin::Mutex;

use super::{
    file::{self, Readiness},
    tty::Wait,
};
use crate::task::{
    process::{self, Process},
    signal::Signal,
    wait::WaitQueue,
};

/// Bytes that a pipe holds: as Linux.
const CAPACITY: usize = 65536;
/// A write of up to so many bytes is never torn.
const ATOMIC: usize = 4096;

#[derive(Debug, Default)]
struct Contents {
    bytes: VecDeque<u8>,
    no_reader: bool,
    no_writer: bool,
}

/// What both ends share.
#[derive(Debug)]
struct Pipe {
    ino: u64,
    contents: Mutex<Contents>,
    changed: WaitQueue,
}

static LAST_INO: AtomicU64 = AtomicU64::new(0);
/// Inode numbers of pipes begin here.
const FIRST_INO: u64 = 1 << 40;

impl Pipe {
    fn tell_change(&self) {
        self.changed.wake_all();
        file::tell_readiness_changed();
    }

    /// Sleeps while `still` holds, for the running process.
    fn wait_while(&self, still: &dyn Fn(&Contents) -> bool) -> Result<(), Errno> {
        let is_interrupted = || process::current().as_deref().is_some_and(Process::is_interrupted);
        if is_interrupted() {
            return Err(Errno::EINTR);
        }
        self.changed
            .wait_while(None, &mut || !is_interrupted() && still(&self.contents.lock()));
        Ok(())
    }
}

/// The end that is read from.
#[derive(Debug)]
pub struct Reader(Arc<Pipe>);

/// The end that is written to.
#[derive(Debug)]
pub struct Writer(Arc<Pipe>);

/// Makes a pipe.
#[must_use]
pub fn new() -> (Reader, Writer) {
    let pipe = Arc::new(Pipe {
        // Relaxed: only the number matters.
        ino: FIRST_INO + LAST_INO.fetch_add(1, Ordering::Relaxed),
        contents: Mutex::default(),
        changed: WaitQueue::new(),
    });
    (Reader(Arc::clone(&pipe)), Writer(pipe))
}

impl Reader {
    /// Takes what is there, up to the size of `buffer`. 0: nobody will ever write any more.
    ///
    /// # Errors
    /// `EAGAIN` if nothing is there and `wait` is [`Wait::No`]; `EINTR`.
    ///
    /// # Context
    /// May wait.
    pub fn read(&self, buffer: &mut [u8], wait: Wait) -> Result<usize, Errno> {
        loop {
            {
                let mut contents = self.0.contents.lock();
                let count = contents.bytes.len().min(buffer.len());
                for (to, from) in buffer.iter_mut().zip(contents.bytes.drain(..count)) {
                    *to = from;
                }
                if count == 0 && !contents.no_writer && !buffer.is_empty() {
                    // Waits below.
                } else {
                    drop(contents);
                    if count > 0 {
                        self.0.tell_change();
                    }
                    return Ok(count);
                }
            }
            if wait == Wait::No {
                return Err(Errno::EAGAIN);
            }
            self.0
                .wait_while(&|contents| contents.bytes.is_empty() && !contents.no_writer)?;
        }
    }

    /// What a poll finds.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let contents = self.0.contents.lock();
        Readiness {
            read: !contents.bytes.is_empty(),
            hangup: contents.no_writer,
            ..Readiness::NONE
        }
    }

    /// Inode number.
    #[must_use]
    pub fn ino(&self) -> u64 {
        self.0.ino
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.contents.lock().no_reader = true;
        self.0.tell_change();
    }
}

impl Writer {
    /// Puts bytes in: all of them if they are at most 4 KiB, as many as there is room for if they are more. Returns how
    /// many.
    ///
    /// # Errors
    /// `EPIPE`: nobody will ever read them, and the running process has got `SIGPIPE`; `EAGAIN` if there is no room and
    /// `wait` is [`Wait::No`]; `EINTR`.
    ///
    /// # Context
    /// May wait.
    pub fn write(&self, bytes: &[u8], wait: Wait) -> Result<usize, Errno> {
        let wanted = bytes.len().min(ATOMIC);
        loop {
            {
                let mut contents = self.0.contents.lock();
                if contents.no_reader {
                    break;
                }
                let room = CAPACITY - contents.bytes.len();
                if room >= wanted {
                    let count = bytes.len().min(room);
                    contents.bytes.extend(&bytes[..count]);
                    drop(contents);
                    self.0.tell_change();
                    return Ok(count);
                }
            }
            if wait == Wait::No {
                return Err(Errno::EAGAIN);
            }
            self.0
                .wait_while(&|contents| CAPACITY - contents.bytes.len() < wanted && !contents.no_reader)?;
        }
        if let Some(process) = process::current() {
            process.raise(Signal::PIPE);
        }
        Err(Errno::EPIPE)
    }

    /// What a poll finds.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let contents = self.0.contents.lock();
        Readiness {
            write: CAPACITY - contents.bytes.len() >= ATOMIC,
            error: contents.no_reader,
            ..Readiness::NONE
        }
    }

    /// Inode number.
    #[must_use]
    pub fn ino(&self) -> u64 {
        self.0.ino
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.contents.lock().no_writer = true;
        self.0.tell_change();
    }
}
