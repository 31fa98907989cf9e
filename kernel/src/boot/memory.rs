//! Hands the machine's memory to `mm`.
//!
//! Every frame of RAM gets a record. Frames taken before `mm` started (kernel image, page tables, records themselves,
//! initramfs) stay reserved; the rest becomes free.

use core::fmt;

use mm::{NodeMap, PAGE_BYTES, Pfn, PfnRange};
use spin::Once;

use super::early::{EarlyMemory, OutOfEarlyMemory, Run, Runs};
use crate::{
    arch::paging::NoTable,
    platform::{self, Mm, Pc},
};

/// The least usable memory with which the kernel starts.
const MIN_USABLE_BYTES: u64 = 32 << 20;
/// What must be left free once everything of the kernel's own has its place.
const MIN_FREE_BYTES: u64 = 8 << 20;

/// Why memory is not enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TooLittleMemory {
    /// The machine has less than the kernel needs.
    Machine {
        /// Usable bytes.
        usable: u64,
    },
    /// No run is long enough for something the kernel needs at start.
    NoRun(OutOfEarlyMemory),
    /// Nearly everything went to the kernel and the initramfs.
    NothingLeft {
        /// Free bytes.
        free: u64,
    },
}

impl From<OutOfEarlyMemory> for TooLittleMemory {
    fn from(error: OutOfEarlyMemory) -> Self {
        Self::NoRun(error)
    }
}

impl From<NoTable> for TooLittleMemory {
    fn from(_: NoTable) -> Self {
        Self::NoRun(OutOfEarlyMemory { bytes: PAGE_BYTES })
    }
}

impl fmt::Display for TooLittleMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine { usable } => write!(
                f,
                "{} KiB usable, at least {} MiB are needed; give the machine 64 MiB or more",
                usable >> 10,
                MIN_USABLE_BYTES >> 20
            ),
            Self::NoRun(OutOfEarlyMemory { bytes }) => {
                write!(
                    f,
                    "no free run of {} KiB; give the machine more, or a smaller initramfs",
                    bytes >> 10
                )
            }
            Self::NothingLeft { free } => {
                write!(
                    f,
                    "only {} KiB left for programs; give the machine more, or a smaller initramfs",
                    free >> 10
                )
            }
        }
    }
}

/// Frames that were given to `mm` as free; all others are reserved.
static MANAGED: Once<Runs> = Once::new();

/// Checks that there is memory enough to begin at all.
///
/// # Errors
/// There is not.
pub fn check(memory: &EarlyMemory) -> Result<(), TooLittleMemory> {
    let usable = memory.usable().bytes();
    if usable < MIN_USABLE_BYTES {
        Err(TooLittleMemory::Machine { usable })
    } else {
        Ok(())
    }
}

/// The nodes that `ram` is to be cut into; one if it is not enough for so many.
fn cut_into_nodes(ram: &Runs, nr_nodes: u32) -> NodeMap {
    let runs = ram.as_slice().iter().map(|run| run.frames());
    NodeMap::cut(runs, nr_nodes).unwrap_or_else(|error| {
        crate::log::warn!(
            "numa: {nr_nodes} nodes would have {} KiB each; the memory stays one node",
            (error.pages * PAGE_BYTES) >> 10
        );
        NodeMap::ONE
    })
}

/// Starts `mm` with everything that `memory` still has.
///
/// # Errors
/// Nothing would be left; `mm` was not started.
pub fn init(memory: &mut EarlyMemory, nr_cpus: u32, nr_nodes: u32) -> Result<&'static Mm, TooLittleMemory> {
    let frames = memory
        .ram()
        .as_slice()
        .last()
        .map_or(0, |run| run.frames().end().raw());
    let bytes = Mm::metadata_size(frames, nr_cpus) as u64;
    let metadata = memory.alloc_pages(bytes.div_ceil(PAGE_BYTES))?;
    let free = memory.free().bytes();
    if free < MIN_FREE_BYTES {
        return Err(TooLittleMemory::NothingLeft { free });
    }
    let first = Pfn::containing(metadata).ok_or(OutOfEarlyMemory { bytes })?;
    let nodes = cut_into_nodes(memory.ram(), nr_nodes);
    // SAFETY: the metadata were just taken, zeroed, for nobody else, and lie in the window.
    let mm = platform::install(unsafe { Mm::with_nodes(Pc::new(frames, nr_cpus), first, nodes) });
    for run in memory.ram().as_slice() {
        mm.add_memory(run.frames());
    }
    for run in memory
        .free()
        .as_slice()
        .iter()
        .filter(|run| run.bytes() >= PAGE_BYTES)
    {
        mm.release(run.frames());
    }
    MANAGED.call_once(|| memory.free().clone());
    crate::log::info!(
        "memory: {} MiB RAM in {} runs, {} MiB free, {} bytes of records a frame for {frames} frames",
        memory.ram().bytes() >> 20,
        memory.ram().as_slice().len(),
        free >> 20,
        bytes / u64::from(frames.max(1)),
    );
    for node in mm.nodes_with_memory().iter().filter(|_| nr_nodes > 1) {
        let frames = mm.node_range(node);
        crate::log::info!(
            "numa: node {node}: frames {:#x} to {:#x}, {} MiB free",
            frames.start().raw(),
            frames.end().raw(),
            (mm.nr_free_pages_of(node) * PAGE_BYTES) >> 20
        );
    }
    if memory.ram().dropped_bytes() > 0 {
        crate::log::warn!(
            "memory: {} KiB in too many small runs are not used",
            memory.ram().dropped_bytes() >> 10
        );
    }
    Ok(mm)
}

/// Whether `pfn` was given to `mm`, and so has an owner that must be known.
#[must_use]
pub fn is_managed(pfn: Pfn) -> bool {
    let holds = |run: &Run| -> bool {
        let frames: PfnRange = run.frames();
        frames.contains(pfn)
    };
    MANAGED
        .get()
        .is_some_and(|runs| runs.as_slice().iter().any(holds))
}
