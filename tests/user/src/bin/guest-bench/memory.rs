//! Rows about mapping, touching and unmapping memory.

use std::{fs::File, io, io::Write};

use user::{HUGE, PAGE, mapping::Mapping};

use crate::clock::Clock;

/// Base pages of the rows that count by the page: two tables full.
const PAGES: usize = 1024;
/// Operations of the rows that repeat a call.
const CALLS: u64 = 100;
/// Huge pages of the rows that need no more than a few.
const BLOCKS: usize = 8;
/// A base page in the middle of a huge one.
const INNER: std::ops::Range<usize> = 7 * PAGE..8 * PAGE;

/// Memory that gets base pages only.
pub(crate) fn small(pages: usize) -> io::Result<Mapping> {
    let memory = Mapping::huge_aligned(pages * PAGE)?;
    memory.advise(0..memory.len(), libc::MADV_NOHUGEPAGE)?;
    Ok(memory)
}

/// Memory that gets huge pages, when it is touched.
pub(crate) fn huge(blocks: usize) -> io::Result<Mapping> {
    let memory = Mapping::huge_aligned(blocks * HUGE)?;
    memory.advise(0..memory.len(), libc::MADV_HUGEPAGE)?;
    Ok(memory)
}

/// Writes one byte every `step` bytes.
pub(crate) fn write_every(memory: &Mapping, step: usize) {
    (0..memory.len())
        .step_by(step)
        .for_each(|offset| memory.write(offset, 1));
}

/// One huge page, mapped by one entry.
fn one_huge() -> io::Result<Mapping> {
    let memory = huge(1)?;
    memory.write(0, 1);
    Ok(memory)
}

/// First write to each page.
pub(crate) fn small_fault(clock: Clock) -> io::Result<u64> {
    let memory = small(PAGES)?;
    Ok(clock.time(|| write_every(&memory, PAGE)) / PAGES as u64)
}

/// First read of each page.
pub(crate) fn zero_fault(clock: Clock) -> io::Result<u64> {
    let memory = small(PAGES)?;
    let read = || {
        (0..memory.len())
            .step_by(PAGE)
            .fold(0, |sum, offset| sum | memory.read(offset))
    };
    Ok(clock.time(read) / PAGES as u64)
}

/// First write to each huge page.
pub(crate) fn huge_fault(clock: Clock) -> io::Result<u64> {
    let memory = huge(BLOCKS)?;
    Ok(clock.time(|| write_every(&memory, HUGE)) / BLOCKS as u64)
}

/// `munmap` of many base pages, each written to.
pub(crate) fn munmap_small(clock: Clock) -> io::Result<u64> {
    let memory = small(PAGES)?;
    write_every(&memory, PAGE);
    unmap(clock, &memory, 0..memory.len()).map(|cost| cost / PAGES as u64)
}

/// `mmap` and `munmap` of a page that nobody touches.
pub(crate) fn map_and_unmap(clock: Clock) -> io::Result<u64> {
    let mut outcome = Ok(());
    let cost = clock.time(|| {
        for _ in 0..CALLS {
            // Dropping it unmaps it.
            if let Err(error) = Mapping::anywhere(PAGE) {
                outcome = Err(error);
            }
        }
    });
    outcome.map(|()| cost / CALLS)
}

/// `munmap` of exactly a huge page.
pub(crate) fn munmap_huge(clock: Clock) -> io::Result<u64> {
    unmap(clock, &one_huge()?, 0..HUGE)
}

/// `MADV_DONTNEED` of a base page in a huge one: splits the mapping.
pub(crate) fn dontneed_in_huge(clock: Clock) -> io::Result<u64> {
    let memory = one_huge()?;
    timed(clock, || memory.advise(INNER, libc::MADV_DONTNEED))
}

/// `mprotect` of a base page in a huge one: splits the mapping and the area.
pub(crate) fn mprotect_in_huge(clock: Clock) -> io::Result<u64> {
    let memory = one_huge()?;
    timed(clock, || memory.protect(INNER, libc::PROT_READ))
}

/// `munmap` of the first half of a huge page.
pub(crate) fn munmap_half(clock: Clock) -> io::Result<u64> {
    unmap(clock, &one_huge()?, 0..HUGE / 2)
}

/// `munmap` of what is left of a huge page whose mapping was split.
pub(crate) fn munmap_after_split(clock: Clock) -> io::Result<u64> {
    let memory = one_huge()?;
    memory.advise(INNER, libc::MADV_DONTNEED)?;
    unmap(clock, &memory, 0..HUGE)
}

/// Splits huge pages by debugfs.
pub(crate) fn split_huge_pages(clock: Clock) -> io::Result<u64> {
    let memory = huge(BLOCKS)?;
    write_every(&memory, HUGE);
    let mut file = File::options()
        .write(true)
        .open("/sys/kernel/debug/split_huge_pages")?;
    let (start, end) = (memory.addr(), memory.addr() + memory.len());
    let command = format!("{},{start:#x},{end:#x}", std::process::id());
    timed(clock, || file.write_all(command.as_bytes())).map(|cost| cost / BLOCKS as u64)
}

fn unmap(clock: Clock, memory: &Mapping, range: std::ops::Range<usize>) -> io::Result<u64> {
    timed(clock, || memory.unmap(range))
}

/// The cost of a call that may fail.
fn timed(clock: Clock, call: impl FnOnce() -> io::Result<()>) -> io::Result<u64> {
    let mut outcome = Ok(());
    let cost = clock.time(|| outcome = call());
    outcome.map(|()| cost)
}
