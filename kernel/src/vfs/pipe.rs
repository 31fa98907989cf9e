//! Pipes: bytes from whoever has the writing end to whoever has the reading end.
//!
//! ```text
//!   write ----> [ at most 16 buffers: one page's worth of bytes, or a page of a program ] --> read
//!   vmsplice -->  |  full: sleep, EAGAIN            |  empty: sleep, EAGAIN
//!                 |  no reader: EPIPE, SIGPIPE      |  empty and no writer: 0, the end
//! ```
//! An end is one open file, which descriptors and processes share; dropping the file closes the end. What is short joins
//! the last buffer if it fits there whole.
//!
//! A page that was given with `vmsplice` is *pinned* until it was read or the pipe is gone: it is read where it lies, so
//! the reader finds what is there at that moment, and its huge page cannot be split meanwhile.
//!
//! Protocol: change under the pipe's lock, unlock, then wake its queue and whoever polls. The lock is held for a copy to
//! or from a kernel buffer, never over a user copy or a wait. Inside it, the heap's lock and `mm`'s spinning ones.
//!
//! Differs from Linux 6.1: a page is pinned as for input and output (`FOLL_PIN`), where Linux takes a plain reference; so
//! after a `fork` it is the child that gets a copy, and the page in the pipe stays the giver's.

use alloc::{
    collections::VecDeque,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{AtomicU64, Ordering};

use linux_abi::errno::Errno;
use mm::{PAGE_SIZE, Pfn, pin::Pinned};
use spin::Mutex;

use super::{
    file::{self, Readiness},
    tty::Wait,
};
use crate::{
    heap,
    platform::mm,
    task::{
        process::{self, Process},
        signal::Signal,
        wait::WaitQueue,
    },
};

/// Buffers that a pipe holds: as Linux.
const BUFFERS: usize = 16;

/// A page of a program that is kept where it is. Dropping it ends the pin.
#[derive(Debug)]
pub struct PinnedPage(Option<Pinned<'static>>);

impl PinnedPage {
    /// Takes over a pin.
    #[must_use]
    pub fn new(pinned: Pinned<'static>) -> Self {
        Self(Some(pinned))
    }

    fn pinned(&self) -> &Pinned<'static> {
        self.0.as_ref().expect("invariant: taken only by drop")
    }
}

impl Drop for PinnedPage {
    fn drop(&mut self) {
        if let Some(pinned) = self.0.take() {
            mm().unpin(pinned);
        }
    }
}

#[derive(Debug)]
enum Page {
    /// The pipe's own copy; always [`PAGE_SIZE`] bytes.
    Own(Vec<u8>),
    /// A program's page.
    Pinned(PinnedPage),
}

/// Bytes `start` to `end` of a page.
#[derive(Debug)]
struct Buffer {
    page: Page,
    start: usize,
    end: usize,
}

impl Buffer {
    /// Moves bytes from its front to `to`; returns how many.
    fn take(&mut self, to: &mut [u8]) -> usize {
        let count = to.len().min(self.end - self.start);
        match &self.page {
            Page::Own(bytes) => to[..count].copy_from_slice(&bytes[self.start..self.start + count]),
            Page::Pinned(page) => {
                let bytes = mm().pinned_bytes(page.pinned(), self.start);
                bytes.read(&mut to[..count]);
            }
        }
        self.start += count;
        count
    }

    /// Adds `bytes` behind what is there, if they fit and the page is the pipe's own.
    fn append(&mut self, bytes: &[u8]) -> bool {
        match &mut self.page {
            Page::Own(page) if self.end + bytes.len() <= PAGE_SIZE => {
                page[self.end..self.end + bytes.len()].copy_from_slice(bytes);
                self.end += bytes.len();
                true
            }
            _ => false,
        }
    }
}

#[derive(Debug, Default)]
struct Contents {
    buffers: VecDeque<Buffer>,
    /// A page that was read, kept for the next write.
    spare: Option<Vec<u8>>,
    no_reader: bool,
    no_writer: bool,
}

/// Why something was not put into a pipe. Nothing was.
enum Refused {
    NoReader,
    Full,
    NoMemory,
}

impl Contents {
    fn is_full(&self) -> bool {
        self.buffers.len() >= BUFFERS
    }

    /// Takes bytes out; returns how many.
    fn take(&mut self, to: &mut [u8]) -> usize {
        let mut done = 0;
        while done < to.len() {
            let Some(first) = self.buffers.front_mut() else {
                break;
            };
            done += first.take(&mut to[done..]);
            if first.start == first.end
                && let Some(Buffer {
                    page: Page::Own(page),
                    ..
                }) = self.buffers.pop_front()
            {
                self.spare = Some(page);
            }
        }
        done
    }

    /// Puts at most a page's worth of bytes in, all or none.
    fn put(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        if self.no_reader {
            return Err(Refused::NoReader);
        }
        if bytes.is_empty() || self.buffers.back_mut().is_some_and(|last| last.append(bytes)) {
            return Ok(());
        }
        if self.is_full() {
            return Err(Refused::Full);
        }
        let mut page = match self.spare.take() {
            Some(page) => page,
            None => heap::try_zeroed(PAGE_SIZE).map_err(|_| Refused::NoMemory)?,
        };
        page[..bytes.len()].copy_from_slice(bytes);
        self.push(Page::Own(page), 0, bytes.len())
    }

    fn push(&mut self, page: Page, start: usize, end: usize) -> Result<(), Refused> {
        self.buffers.try_reserve(1).map_err(|_| Refused::NoMemory)?;
        self.buffers.push_back(Buffer { page, start, end });
        Ok(())
    }

    /// Frames that are pinned.
    fn pins(&self) -> impl Iterator<Item = &Pinned<'static>> {
        self.buffers.iter().filter_map(|buffer| match &buffer.page {
            Page::Pinned(page) => Some(page.pinned()),
            Page::Own(_) => None,
        })
    }
}

/// What both ends share.
#[derive(Debug)]
struct Pipe {
    ino: u64,
    contents: Mutex<Contents>,
    changed: WaitQueue,
}

/// Pipes that were ever given a page: who is asked what is pinned.
static GIVEN_PAGES: Mutex<Vec<Weak<Pipe>>> = Mutex::new(Vec::new());

/// Shows `visit` every frame that a pipe has pinned, and how many references the pin is.
pub fn for_each_pinned(visit: &mut dyn FnMut(Pfn, u32)) {
    for pipe in GIVEN_PAGES.lock().iter().filter_map(Weak::upgrade) {
        for pinned in pipe.contents.lock().pins() {
            visit(pinned.pfn(), mm().nr_pin_refs(pinned));
        }
    }
}

static LAST_INO: AtomicU64 = AtomicU64::new(0);
/// Inode numbers of pipes begin here.
const FIRST_INO: u64 = 1 << 40;

/// Says why, and what comes with it.
fn refuse(refused: Refused) -> Errno {
    match refused {
        Refused::NoReader => {
            if let Some(process) = process::current() {
                process.raise(Signal::PIPE);
            }
            Errno::EPIPE
        }
        Refused::Full => Errno::EAGAIN,
        Refused::NoMemory => Errno::ENOMEM,
    }
}

impl Pipe {
    /// Remembers that there may be pinned pages in it.
    fn note_given_page(self: &Arc<Self>) -> Result<(), Errno> {
        let mut pipes = GIVEN_PAGES.lock();
        if !pipes.iter().any(|pipe| pipe.as_ptr() == Arc::as_ptr(self)) {
            pipes.retain(|pipe| pipe.strong_count() > 0);
            pipes.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            pipes.push(Arc::downgrade(self));
        }
        Ok(())
    }

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
///
/// # Errors
/// `ENOMEM`.
pub fn new() -> Result<(Reader, Writer), Errno> {
    heap::reserve(size_of::<Pipe>())?;
    let pipe = Arc::new(Pipe {
        // Relaxed: only the number matters.
        ino: FIRST_INO + LAST_INO.fetch_add(1, Ordering::Relaxed),
        contents: Mutex::default(),
        changed: WaitQueue::new(),
    });
    Ok((Reader(Arc::clone(&pipe)), Writer(pipe)))
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
            let (count, is_end) = {
                let mut contents = self.0.contents.lock();
                (contents.take(buffer), contents.no_writer)
            };
            if count > 0 {
                self.0.tell_change();
            }
            if count > 0 || is_end || buffer.is_empty() {
                return Ok(count);
            }
            if wait == Wait::No {
                return Err(Errno::EAGAIN);
            }
            self.0
                .wait_while(&|contents| contents.buffers.is_empty() && !contents.no_writer)?;
        }
    }

    /// What a poll finds.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let contents = self.0.contents.lock();
        Readiness {
            read: !contents.buffers.is_empty(),
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
    /// Puts at most 4 KiB in, all of them, and returns how many they are.
    ///
    /// # Errors
    /// `EPIPE`: nobody will ever read them, and the running process has got `SIGPIPE`; `EAGAIN` if there is no room and
    /// `wait` is [`Wait::No`]; `EINTR`, `ENOMEM`. Nothing was written.
    ///
    /// # Context
    /// May wait.
    pub fn write(&self, bytes: &[u8], wait: Wait) -> Result<usize, Errno> {
        let bytes = &bytes[..bytes.len().min(PAGE_SIZE)];
        loop {
            let result = self.0.contents.lock().put(bytes);
            match result {
                Ok(()) => {
                    self.0.tell_change();
                    return Ok(bytes.len());
                }
                Err(Refused::Full) => self.wait_for_buffer(wait)?,
                Err(refused) => return Err(refuse(refused)),
            }
        }
    }

    /// Sleeps until a buffer may be free.
    ///
    /// # Errors
    /// `EPIPE`, with `SIGPIPE`; `EAGAIN`, `EINTR`.
    ///
    /// # Context
    /// May wait.
    pub fn wait_for_buffer(&self, wait: Wait) -> Result<(), Errno> {
        loop {
            let (no_reader, is_full) = {
                let contents = self.0.contents.lock();
                (contents.no_reader, contents.is_full())
            };
            match (no_reader, is_full, wait) {
                (true, ..) => return Err(refuse(Refused::NoReader)),
                (_, false, _) => return Ok(()),
                (_, _, Wait::No) => return Err(Errno::EAGAIN),
                _ => self
                    .0
                    .wait_while(&|contents| contents.is_full() && !contents.no_reader)?,
            }
        }
    }

    /// Puts `len` bytes of a page in, from `start` on, where they lie.
    ///
    /// # Errors
    /// `EPIPE`, with `SIGPIPE`; `EAGAIN`: there is no buffer; `ENOMEM`. The page is not pinned any more.
    pub fn give_page(&self, page: PinnedPage, start: usize, len: usize) -> Result<(), Errno> {
        self.0.note_given_page()?;
        let result = {
            let mut contents = self.0.contents.lock();
            match (contents.no_reader, contents.is_full()) {
                (true, _) => Err(Refused::NoReader),
                (_, true) => Err(Refused::Full),
                _ => contents.push(Page::Pinned(page), start, start + len),
            }
        };
        result.map_err(refuse)?;
        self.0.tell_change();
        Ok(())
    }

    /// What a poll finds.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let contents = self.0.contents.lock();
        Readiness {
            write: !contents.is_full(),
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
