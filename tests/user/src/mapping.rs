//! Private anonymous memory, mapped and given back by hand.

use std::{io, ops::Range, ptr::NonNull};

use crate::{HUGE, PAGE};

/// A run of private anonymous memory that this value owns.
///
/// Having one tells you that nothing else in the program uses these addresses, not that each page is still mapped:
/// [`unmap`](Self::unmap) takes parts away.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes, readable and writable, wherever the kernel likes.
    ///
    /// # Errors
    /// What `mmap` said.
    pub fn anywhere(len: usize) -> io::Result<Self> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(start.cast())
            .map(|start| Self { start, len })
            .ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// Maps `len` bytes at `addr`, where nothing is.
    ///
    /// # Errors
    /// What `mmap` said.
    pub fn placed(addr: usize, len: usize) -> io::Result<Self> {
        // SAFETY: nothing that is there is replaced.
        let start = unsafe {
            libc::mmap(
                std::ptr::without_provenance_mut(addr),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(start.cast())
            .map(|start| Self { start, len })
            .ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// Maps `len` bytes that start at a 2 MiB boundary: maps 2 MiB more and gives back what is before and behind.
    ///
    /// # Errors
    /// What `mmap` or `munmap` said.
    pub fn huge_aligned(len: usize) -> io::Result<Self> {
        let whole = Self::anywhere(len + HUGE)?;
        let head = whole.addr().next_multiple_of(HUGE) - whole.addr();
        whole.unmap(0..head)?;
        whole.unmap(head + len..whole.len)?;
        // SAFETY: `head` is at most `HUGE`, inside the mapping.
        let start = unsafe { whole.start.add(head) };
        std::mem::forget(whole);
        Ok(Self { start, len })
    }

    /// Maps `len` bytes that start at a 2 MiB boundary, between two areas that nobody may touch: no neighbour is ever
    /// merged with it.
    ///
    /// # Errors
    /// What `mmap` or `mprotect` said. The two neighbours stay mapped when the value is dropped.
    pub fn apart(len: usize) -> io::Result<Self> {
        let whole = Self::huge_aligned(len + 2 * HUGE)?;
        whole.protect(0..HUGE, libc::PROT_NONE)?;
        whole.protect(HUGE + len..whole.len, libc::PROT_NONE)?;
        // SAFETY: `HUGE` is inside the mapping.
        let start = unsafe { whole.start.add(HUGE) };
        std::mem::forget(whole);
        Ok(Self { start, len })
    }

    /// Address of the first byte.
    #[must_use]
    pub fn addr(&self) -> usize {
        self.start.as_ptr().addr()
    }

    /// Size in bytes, taken-away parts included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.len, "offset {offset:#x} is outside the mapping");
        self.start.as_ptr().wrapping_add(offset)
    }

    /// Writes one byte. Faults as any store does where the page is gone or not writable.
    pub fn write(&self, offset: usize, value: u8) {
        // SAFETY: inside memory this value owns; nobody holds a reference into it.
        unsafe { self.at(offset).write_volatile(value) }
    }

    /// Reads one byte. Faults as any load does where the page is gone or not readable.
    #[must_use]
    pub fn read(&self, offset: usize) -> u8 {
        // SAFETY: inside memory this value owns; a fresh anonymous page reads as zero, so it is initialised.
        unsafe { self.at(offset).read_volatile() }
    }

    /// Writes one byte to every base page.
    pub fn touch(&self) {
        (0..self.len)
            .step_by(PAGE)
            .for_each(|offset| self.write(offset, stamp(offset)));
    }

    /// Returns the first base page in `range` whose byte is not the one that [`touch`](Self::touch) wrote.
    #[must_use]
    pub fn first_damage(&self, range: Range<usize>) -> Option<usize> {
        range
            .step_by(PAGE)
            .find(|&offset| self.read(offset) != stamp(offset))
    }

    /// Gives the pages of `range` back.
    ///
    /// # Errors
    /// What `munmap` said. An empty range is nothing to do.
    pub fn unmap(&self, range: Range<usize>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        // SAFETY: the range is inside memory this value owns.
        check(unsafe { libc::munmap(self.at(range.start).cast(), range.len()) })
    }

    /// Changes what may be done with the pages of `range`.
    ///
    /// # Errors
    /// What `mprotect` said.
    pub fn protect(&self, range: Range<usize>, prot: i32) -> io::Result<()> {
        // SAFETY: the range is inside memory this value owns.
        check(unsafe { libc::mprotect(self.at(range.start).cast(), range.len(), prot) })
    }

    /// Gives advice about the pages of `range`.
    ///
    /// # Errors
    /// What `madvise` said.
    pub fn advise(&self, range: Range<usize>, advice: i32) -> io::Result<()> {
        // SAFETY: the range is inside memory this value owns.
        check(unsafe { libc::madvise(self.at(range.start).cast(), range.len(), advice) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Parts may be gone already; unmapping them again is harmless.
        let _ = self.unmap(0..self.len);
    }
}

/// The byte that marks the page at `offset`: never zero, so that a lost page shows.
fn stamp(offset: usize) -> u8 {
    u8::try_from((offset / PAGE) % 251).unwrap_or(0) + 1
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
