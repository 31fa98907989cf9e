//! The kernel's heap: `linked_list_allocator` over a range of addresses that grows.
//!
//! ```text
//!   HEAP_BASE [ 2 MiB block | 2 MiB block | 4 KiB pages … ] -> grows towards HEAP_BASE + MAX_BYTES
//! ```
//! Frames come from `mm`, which itself never uses the heap: 2 MiB blocks, or single pages where no block is left. They
//! stay with the heap. Interrupt handlers never allocate.
//!
//! *Running out.* Rust's collections end the kernel when they get no memory, so whoever allocates for a program asks
//! first:
//!
//! | what | how | when memory is short |
//! |---|---|---|
//! | a record, a name, a short list | [`reserve`], then allocate | `ENOMEM` before anything was done |
//! | what grows with what the program asked for | [`try_vec`] | `ENOMEM` |
//! | the few hundred bytes of a system call's own notes | nothing | see below |
//!
//! [`KEPT_FREE`] bytes are free in the heap at the beginning of every system call that may allocate: one that finds less,
//! and no memory to get more, fails with `ENOMEM` before it begins ([`is_low`], [`refill`]). What a call then takes without
//! asking comes out of these, and where they are in pieces too small, out of the frames below the minimum watermark, which
//! only the kernel's own needs may use ([`AllocFlags::RESERVE`]); large blocks may not.
//!
//! Lock order: the heap's lock, then the kernel tables', then `mm`'s.

use alloc::vec::Vec;
use core::{
    alloc::{GlobalAlloc, Layout},
    ptr::NonNull,
    sync::atomic::{AtomicBool, Ordering},
};

use linked_list_allocator::Heap;
use linux_abi::errno::Errno;
use mm::{AllocFlags, Order, PAGE_BYTES, PMD_ORDER, PMD_SIZE, Pfn, VirtAddr, addr::to_usize};
use spin::Mutex;

use crate::{
    arch::paging::{self, HEAP_BASE, PageSize},
    platform::{mm, mm_is_up},
    task::fail_nth,
};

/// The heap never grows beyond this.
const MAX_BYTES: u64 = 64 << 30;
/// Bytes that are free when a system call begins.
pub const KEPT_FREE: usize = 64 << 10;
/// Blocks from this size on grow with what a program asks for, and do without the reserve.
const LARGE: usize = 32 << 10;

/// Whether less than [`KEPT_FREE`] was free when somebody last looked.
static LOW: AtomicBool = AtomicBool::new(false);

struct KernelHeap {
    state: Mutex<State>,
}

struct State {
    heap: Heap,
    /// Bytes mapped from [`HEAP_BASE`] on.
    mapped: u64,
    /// Whether `heap` knows its memory.
    begun: bool,
}

#[global_allocator]
static HEAP: KernelHeap = KernelHeap {
    state: Mutex::new(State {
        heap: Heap::empty(),
        mapped: 0,
        begun: false,
    }),
};

/// The memory manager has nothing left for the heap, or [`fail_nth`] says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMemory;

impl From<NoMemory> for Errno {
    fn from(_: NoMemory) -> Self {
        Self::ENOMEM
    }
}

/// Makes sure of room for `bytes` in small blocks, which the caller is about to allocate before it next waits.
///
/// # Errors
/// There is none. Nothing changed.
pub fn reserve(bytes: usize) -> Result<(), NoMemory> {
    if fail_nth::must_fail() {
        return Err(NoMemory);
    }
    HEAP.state.lock().keep_free(bytes + KEPT_FREE)
}

/// Makes an empty list with room for `capacity` elements.
///
/// # Errors
/// There is no room for so many. Nothing changed.
pub fn try_vec<T>(capacity: usize) -> Result<Vec<T>, NoMemory> {
    if fail_nth::must_fail() {
        return Err(NoMemory);
    }
    let mut list = Vec::new();
    list.try_reserve_exact(capacity).map_err(|_| NoMemory)?;
    Ok(list)
}

/// Makes a buffer of `len` zeroes.
///
/// # Errors
/// As [`try_vec`].
pub fn try_zeroed(len: usize) -> Result<Vec<u8>, NoMemory> {
    let mut buffer = try_vec(len)?;
    buffer.resize(len, 0);
    Ok(buffer)
}

/// Whether less may be free than a system call should find.
#[must_use]
pub fn is_low() -> bool {
    // Relaxed: a hint.
    LOW.load(Ordering::Relaxed)
}

/// Grows the heap until [`KEPT_FREE`] bytes are free.
///
/// # Errors
/// There is no memory for that.
pub fn refill() -> Result<(), NoMemory> {
    HEAP.state.lock().keep_free(KEPT_FREE)
}

impl State {
    fn allocate(&mut self, layout: Layout) -> *mut u8 {
        let flags = if layout.size() < LARGE {
            // The kernel's own needs come before those of programs, which stop at the watermark above the reserve.
            AllocFlags::RESERVE
        } else {
            AllocFlags::empty()
        };
        loop {
            if let Ok(block) = self.heap.allocate_first_fit(layout) {
                if self.heap.free() < KEPT_FREE {
                    LOW.store(true, Ordering::Relaxed);
                }
                return block.as_ptr();
            }
            if self.grow(layout, flags).is_err() {
                return core::ptr::null_mut();
            }
        }
    }

    /// Grows until `bytes` are free, without touching the reserve.
    fn keep_free(&mut self, bytes: usize) -> Result<(), NoMemory> {
        let free = if self.begun { self.heap.free() } else { 0 };
        if free < bytes {
            let missing = Layout::from_size_align(bytes - free, 1).map_err(|_| NoMemory)?;
            self.grow(missing, AllocFlags::empty())?;
        }
        LOW.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Adds memory for at least one more block of `layout`.
    fn grow(&mut self, layout: Layout, flags: AllocFlags) -> Result<(), NoMemory> {
        if !mm_is_up() {
            return Err(NoMemory);
        }
        // Room for the block itself, its alignment, and the allocator's bookkeeping.
        let wanted = (layout.size() as u64)
            .checked_add(layout.align() as u64 + PAGE_BYTES)
            .ok_or(NoMemory)?;
        let goal = self
            .mapped
            .checked_add(wanted)
            .filter(|goal| *goal <= MAX_BYTES)
            .ok_or(NoMemory)?;
        let before = self.mapped;
        let mut result = Ok(());
        while result.is_ok() && self.mapped < goal {
            result = self.map_more(flags);
        }
        self.hand_over(before);
        result
    }

    /// Maps one more block at the end.
    fn map_more(&mut self, flags: AllocFlags) -> Result<(), NoMemory> {
        let at = HEAP_BASE + self.mapped;
        if at.is_multiple_of(PMD_SIZE) && map(at, (PMD_ORDER, PageSize::Pmd), flags).is_ok() {
            self.mapped += PMD_SIZE;
            return Ok(());
        }
        map(at, (Order::ZERO, PageSize::Page), flags)?;
        self.mapped += PAGE_BYTES;
        Ok(())
    }

    /// Tells the allocator of what was mapped since `before`.
    fn hand_over(&mut self, before: u64) {
        let bytes = to_usize(self.mapped - before);
        if bytes == 0 {
            return;
        }
        if self.begun {
            // SAFETY: the range right behind the heap is mapped and nobody else's.
            unsafe { self.heap.extend(bytes) };
        } else {
            let bottom = core::ptr::with_exposed_provenance_mut(to_usize(HEAP_BASE));
            // SAFETY: the range is mapped for ever and nobody else's.
            unsafe { self.heap.init(bottom, bytes) };
            self.begun = true;
        }
    }
}

fn map(at: u64, (order, size): (Order, PageSize), flags: AllocFlags) -> Result<(), NoMemory> {
    let block: Pfn = mm().alloc_pages(order, flags).map_err(|_| NoMemory)?;
    paging::map_kernel_page(VirtAddr::new(at), block, size).map_err(|_| {
        mm().free_pages(block, order);
        NoMemory
    })
}

// SAFETY: the lock makes the inner allocator one at a time, and its blocks lie in memory mapped for ever.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.state.lock().allocate(layout)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller got the block from `alloc` with this layout.
            unsafe { self.state.lock().heap.deallocate(block, layout) };
        }
    }
}

/// What the heap holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Bytes in blocks handed out.
    pub used_bytes: usize,
    /// Bytes mapped.
    pub mapped_bytes: u64,
}

/// Returns what the heap holds.
#[must_use]
pub fn usage() -> Usage {
    let state = HEAP.state.lock();
    Usage {
        used_bytes: if state.begun { state.heap.used() } else { 0 },
        mapped_bytes: state.mapped,
    }
}
