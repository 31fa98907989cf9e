//! The files that are arrays of u64, one per page frame or per page of an address space.

use linux_abi::errno::Errno;
use mm::{Pfn, VirtAddr};

use crate::{
    platform::mm,
    task::process::{self, Pid},
};

/// A file of one u64 per page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WordFile {
    /// State of each frame.
    Kpageflags,
    /// The same with the DoubleMap flag: what the console dumps.
    Dumpflags,
    /// How often each frame is mapped.
    Kpagecount,
    /// What each page of an address space maps.
    Pagemap,
}

impl WordFile {
    /// Bytes in a word.
    pub const WORD: u64 = 8;

    /// Reads whole words at `offset`, both of which the caller has checked to be multiples of [`Self::WORD`]. 0: past
    /// the last frame, or past user space.
    ///
    /// # Errors
    /// `ESRCH`: the process is gone.
    pub fn read(self, process: Option<Pid>, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let first = offset / Self::WORD;
        match self {
            Self::Kpageflags => Ok(fill(first, frames(), buffer, |pfn| {
                mm::report::kpageflags(mm(), frame(pfn))
            })),
            Self::Dumpflags => Ok(fill(first, frames(), buffer, |pfn| {
                mm::report::kpageflags_with_double_map(mm(), frame(pfn))
            })),
            Self::Kpagecount => Ok(fill(first, frames(), buffer, |pfn| {
                mm::report::kpagecount(mm(), frame(pfn))
            })),
            Self::Pagemap => {
                let process = process.and_then(process::find).ok_or(Errno::ESRCH)?;
                // A process that is ending has no address space any more: nothing is mapped.
                let Some(space) = process.space() else {
                    return Ok(0);
                };
                let pages = mm::USER_END / mm::PAGE_BYTES;
                Ok(fill(first, pages, buffer, |page| {
                    mm::report::pagemap(mm(), &space, VirtAddr::new(page * mm::PAGE_BYTES))
                }))
            }
        }
    }
}

fn frames() -> u64 {
    u64::from(mm::Platform::frames(mm().platform()))
}

/// The frame of an index that [`fill`] has checked against [`frames`].
fn frame(index: u64) -> Pfn {
    Pfn::new(u32::try_from(index).unwrap_or(u32::MAX))
}

/// Fills `buffer` with the words from `first` on that lie below `end`; returns the bytes filled.
fn fill(first: u64, end: u64, buffer: &mut [u8], word: impl Fn(u64) -> u64) -> usize {
    let (slots, _) = buffer.as_chunks_mut::<8>();
    let mut filled = 0;
    for (slot, index) in slots.iter_mut().zip(first..end) {
        *slot = word(index).to_le_bytes();
        filled += slot.len();
    }
    filled
}
