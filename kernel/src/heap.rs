//! The kernel's heap: `linked_list_allocator` over a range of addresses that grows.
//!
//! ```text
//!   HEAP_BASE [ 2 MiB block | 2 MiB block | 4 KiB pages … ] -> grows towards HEAP_BASE + MAX_BYTES
//! ```
//! Frames come from `mm`, which itself never uses the heap: 2 MiB blocks, or single pages where no block is left. They
//! stay with the heap. Interrupt handlers never allocate.
//!
//! Lock order: the heap's lock, then the kernel tables', then `mm`'s.

use core::{
    alloc::{GlobalAlloc, Layout},
    ptr::NonNull,
};

use linked_list_allocator::Heap;
use mm::{AllocFlags, Order, PAGE_BYTES, PMD_ORDER, PMD_SIZE, Pfn, VirtAddr, addr::to_usize};
use spin::Mutex;

use crate::{
    arch::paging::{self, HEAP_BASE, PageSize},
    platform::{mm, mm_is_up},
};

/// The heap never grows beyond this.
const MAX_BYTES: u64 = 64 << 30;

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

/// The memory manager has nothing left for the heap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct NoMemory;

impl State {
    fn allocate(&mut self, layout: Layout) -> *mut u8 {
        loop {
            if let Ok(block) = self.heap.allocate_first_fit(layout) {
                return block.as_ptr();
            }
            if self.grow(layout).is_err() {
                return core::ptr::null_mut();
            }
        }
    }

    /// Adds memory for at least one more block of `layout`.
    fn grow(&mut self, layout: Layout) -> Result<(), NoMemory> {
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
            result = self.map_more();
        }
        self.hand_over(before);
        result
    }

    /// Maps one more block at the end.
    fn map_more(&mut self) -> Result<(), NoMemory> {
        let at = HEAP_BASE + self.mapped;
        if at.is_multiple_of(PMD_SIZE) && map(at, PMD_ORDER, PageSize::Pmd).is_ok() {
            self.mapped += PMD_SIZE;
            return Ok(());
        }
        map(at, Order::ZERO, PageSize::Page)?;
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

fn map(at: u64, order: Order, size: PageSize) -> Result<(), NoMemory> {
    // The kernel's own needs come before those of programs, which stop at the watermark above the reserve.
    let block: Pfn = mm()
        .alloc_pages(order, AllocFlags::RESERVE)
        .map_err(|_| NoMemory)?;
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
