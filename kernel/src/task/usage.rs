//! What a process has used: processor time, page faults, task switches.
//!
//! Time is measured from switch to switch. It is not told apart into the program's and the kernel's: all of it counts as
//! the program's, as on a Linux whose timer never ticked inside the kernel. There are no swaps, disks and messages to
//! count.

use core::sync::atomic::{AtomicU64, Ordering};

use mm::Nanos;

/// Counters of one process, of which only its own thread and the scheduler add to. Each may be read at any time.
#[derive(Debug, Default)]
pub struct Usage {
    cpu_ns: AtomicU64,
    faults: AtomicU64,
    voluntary: AtomicU64,
    involuntary: AtomicU64,
    peak_rss: AtomicU64,
}

/// How a thread came to give the CPU away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Switch {
    /// It waits, or has ended.
    Voluntary,
    /// It could have gone on.
    Involuntary,
}

/// What was used, at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Used {
    /// Processor time.
    pub cpu: Nanos,
    /// Page faults that were resolved. None of them ever reads a disk.
    pub faults: u64,
    /// Times that it gave the CPU away because it had to wait.
    pub voluntary: u64,
    /// Times that the CPU was taken from it.
    pub involuntary: u64,
    /// Most resident pages at a time, of one process.
    pub peak_rss_pages: u64,
}

impl Usage {
    // Relaxed, all of them: the counts order nothing.

    /// Adds a turn on the CPU.
    pub(super) fn add_time(&self, nanos: u64) {
        self.cpu_ns.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Counts the end of a turn.
    pub(super) fn add_switch(&self, switch: Switch) {
        let counter = match switch {
            Switch::Voluntary => &self.voluntary,
            Switch::Involuntary => &self.involuntary,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a page fault.
    pub(super) fn add_fault(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes note of the most pages that an address space which it leaves, or looks at, ever had resident.
    pub fn note_peak(&self, pages: u64) {
        self.peak_rss.fetch_max(pages, Ordering::Relaxed);
    }

    /// What there is so far.
    #[must_use]
    pub fn so_far(&self) -> Used {
        Used {
            cpu: Nanos(self.cpu_ns.load(Ordering::Relaxed)),
            faults: self.faults.load(Ordering::Relaxed),
            voluntary: self.voluntary.load(Ordering::Relaxed),
            involuntary: self.involuntary.load(Ordering::Relaxed),
            peak_rss_pages: self.peak_rss.load(Ordering::Relaxed),
        }
    }
}

impl Used {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu: Nanos(self.cpu.0 + other.cpu.0),
            faults: self.faults + other.faults,
            voluntary: self.voluntary + other.voluntary,
            involuntary: self.involuntary + other.involuntary,
            peak_rss_pages: self.peak_rss_pages.max(other.peak_rss_pages),
        }
    }
}
