//! Scenarios: what a row of the specification's tables does and expects, written once.
//!
//! A [`Scenario`] is a list of [`Op`]s on one process and the memory at [`HOME`]: some act, some compare. A [`Runner`]
//! is the machine it happens on: the simulated one on the host, the real kernel in QEMU. No heap is needed.
//!
//! Counters are compared as differences to the last [`Op::Mark`] (a scenario begins with one), so that a scenario runs
//! on a machine that is in use. Nothing else may use memory while it runs.

mod rows;
mod run;

use mm::{
    addr::{PAGE_BYTES, PMD_SIZE},
    address_space::AddressSpace,
    check::Violation,
    counter::Counter,
    flags::Prot,
    memory::Memory,
    platform::Platform,
};
pub use rows::ALL;
pub use run::{Failure, Why, run};

use crate::oracle::Row;

/// Where a scenario's memory lies: aligned to 2 MiB, far from everything else.
pub const HOME: u64 = if mm::ENTRIES == 512 {
    0x10_0000_0000
} else {
    0x40_0000
};

/// Pages in 2 MiB.
pub const HUGE: u64 = PMD_SIZE / PAGE_BYTES;

/// One step. Pages are counted from [`HOME`].
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// Maps private anonymous memory, readable and writable.
    Map {
        /// First page.
        first: u64,
        /// Number of pages.
        pages: u64,
    },
    /// Writes one byte to a page, as the program.
    Write {
        /// The page.
        page: u64,
        /// The byte; it goes to the page's first.
        byte: u8,
    },
    /// Writes the low byte of each page's number to it, as the program.
    Fill {
        /// First page.
        first: u64,
        /// Number of pages.
        pages: u64,
    },
    /// Reads what [`Op::Fill`] wrote.
    ExpectFilled {
        /// First page.
        first: u64,
        /// Number of pages.
        pages: u64,
    },
    /// Reads a page's first byte, as the program.
    ExpectByte {
        /// The page.
        page: u64,
        /// What it must hold.
        byte: u8,
    },
    /// The program may not write to the page.
    ExpectReadOnly {
        /// The page.
        page: u64,
    },
    /// `munmap`.
    Unmap {
        /// First page.
        first: u64,
        /// Number of pages.
        pages: u64,
    },
    /// `madvise(MADV_DONTNEED)`.
    DontNeed {
        /// First page.
        first: u64,
        /// Number of pages.
        pages: u64,
    },
    /// `madvise(MADV_DONTNEED)` of every other page of the first 2 MiB, the odd ones, one by one.
    DontNeedOdd,
    /// Drains the deferred split queue; so many of its huge pages must come apart.
    SplitDeferred {
        /// How many.
        split: u32,
    },
    /// `mprotect`.
    Protect {
        /// First page.
        first: u64,
        /// Number of pages.
        pages: u64,
        /// The new rights.
        prot: Prot,
    },
    /// Splits the PMD that maps the page.
    SplitPmd {
        /// The page.
        page: u64,
    },
    /// Takes references to the frame behind a page.
    Pin {
        /// The page.
        page: u64,
        /// How many.
        times: u32,
    },
    /// Gives them back. The page need not be mapped any more.
    Unpin {
        /// The page it was when it was pinned.
        page: u64,
        /// How many.
        times: u32,
    },
    /// Allocates all memory there is, reserves included.
    Exhaust,
    /// Frees what [`Op::Exhaust`] took.
    Refill,
    /// Begins to count anew.
    Mark,
    /// Compares the huge page's counters.
    ExpectRow(Row),
    /// Compares a counter with its value at the last mark.
    ExpectDelta(Counter, i64),
    /// Compares the number of free pages with that at the last mark.
    ExpectFree(i64),
    /// Compares the process's resident pages.
    ExpectRss(u64),
    /// Compares the length of the deferred split queue with that at the last mark.
    ExpectQueued(i64),
    /// Compares `/proc/kpageflags` of the frames that backed the pages when the huge page was first looked at.
    ExpectFlags {
        /// First page.
        first: u64,
        /// Number of pages.
        pages: u64,
        /// The word.
        word: u64,
    },
    /// Compares `/proc/kpagecount` likewise.
    ExpectCounts {
        /// First page.
        first: u64,
        /// Number of pages.
        pages: u64,
        /// The count.
        count: u64,
    },
    /// Every one of these frames answers that it is anonymous (S7), tails included.
    ExpectAnon {
        /// First page.
        first: u64,
        /// Number of pages.
        pages: u64,
    },
    /// The frames themselves hold no references: tails never do.
    ExpectNoReferences {
        /// First page.
        first: u64,
        /// Number of pages.
        pages: u64,
    },
    /// Reports accept every frame number there is, and beyond.
    ExpectReportsDefined,
    /// Every frame that backed [`HOME`]'s first 2 MiB is free.
    ExpectFreed,
}

/// A named list of steps.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Name: the row of the specification, and what it shows.
    pub name: &'static str,
    /// The steps.
    pub ops: &'static [Op],
}

/// What became of a program's access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The program would get a signal.
    Signal,
    /// There was no memory.
    NoMemory,
}

/// A machine with one process that scenarios can use.
pub trait Runner {
    /// The machine below `mm`.
    type Platform: Platform;

    /// The memory manager.
    fn mem(&self) -> &Memory<Self::Platform>;

    /// The process's address space.
    fn space(&self) -> &AddressSpace;

    /// Reads a byte as the program.
    ///
    /// # Errors
    /// Why the program could not.
    fn read(&self, addr: u64) -> Result<u8, Refused>;

    /// Writes a byte as the program.
    ///
    /// # Errors
    /// Why the program could not.
    fn write(&self, addr: u64, byte: u8) -> Result<(), Refused>;

    /// Runs the whole-memory checker; `blocks` and `pins` are what the scenario holds itself.
    ///
    /// # Errors
    /// What it found.
    fn check(&self, held: &dyn mm::check::Owners) -> Result<(), Violation>;
}
