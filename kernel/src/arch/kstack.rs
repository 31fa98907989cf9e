//! Kernel stacks, each over a guard.
//!
//! ```text
//!   slot n:  [ guard 32 KiB: never mapped | stack 32 KiB ]     64 KiB apart from STACKS_BASE
//! ```
//! Running over the low end hits the guard. The page fault cannot be delivered on the full stack, so it becomes a
//! double fault, which has a stack of its own and reports the overflow.
//!
//! Lock: the slot map's, for a moment.

use mm::{AllocError, AllocFlags, Order, PAGE_BYTES, VirtAddr};
use spin::Mutex;

use super::paging::{self, FirstStack, PageSize, STACKS_BASE};
use crate::platform::mm;

/// Bytes of a stack.
pub const STACK_BYTES: u64 = 32 * 1024;
const SLOT_BYTES: u64 = 64 * 1024;
const GUARD_BYTES: u64 = SLOT_BYTES - STACK_BYTES;
/// As many as Linux has process numbers by default; memory ends first.
const MAX_STACKS: usize = 32768;
const WORDS: usize = MAX_STACKS / 64;

/// Bit set of used slots. Slot 0 is the boot thread's.
static SLOTS: Mutex<[u64; WORDS]> = Mutex::new({
    let mut words = [0; WORDS];
    words[0] = 1;
    words
});

/// Why there is no stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StackError {
    /// No memory.
    NoMemory,
    /// All slots are in use.
    TooManyThreads,
}

impl From<AllocError> for StackError {
    fn from(_: AllocError) -> Self {
        Self::NoMemory
    }
}

/// A mapped stack. Dropping it unmaps it and gives its memory back; nobody may run on it then.
#[derive(Debug)]
pub struct KernelStack {
    slot: usize,
}

fn bottom_of(slot: usize) -> u64 {
    STACKS_BASE + slot as u64 * SLOT_BYTES + GUARD_BYTES
}

/// The boot thread's stack, mapped by [`paging::build`].
pub const FIRST: FirstStack = FirstStack {
    bottom: STACKS_BASE + GUARD_BYTES,
    bytes: STACK_BYTES,
};

impl KernelStack {
    /// Returns the stack that the boot thread runs on. Once.
    #[must_use]
    pub const fn first() -> Self {
        Self { slot: 0 }
    }

    /// Maps a new stack.
    ///
    /// # Errors
    /// No memory or no slot; nothing changed.
    pub fn new() -> Result<Self, StackError> {
        let mut stack = Self {
            slot: take_slot().ok_or(StackError::TooManyThreads)?,
        };
        stack.map()?;
        Ok(stack)
    }

    fn map(&mut self) -> Result<(), StackError> {
        for page in self.pages() {
            // Who runs already comes first: new threads are refused while there is still memory for page faults.
            let pfn = mm().alloc_pages(Order::ZERO, AllocFlags::OPPORTUNISTIC)?;
            if paging::map_kernel_page(page, pfn, PageSize::Page).is_err() {
                mm().free_pages(pfn, Order::ZERO);
                return Err(StackError::NoMemory);
            }
        }
        Ok(())
    }

    fn pages(&self) -> impl Iterator<Item = VirtAddr> + use<> {
        let bottom = bottom_of(self.slot);
        (0..STACK_BYTES / PAGE_BYTES).map(move |page| VirtAddr::new(bottom + page * PAGE_BYTES))
    }

    /// The address past the highest byte, where the stack begins to grow.
    #[must_use]
    pub fn top(&self) -> u64 {
        bottom_of(self.slot) + STACK_BYTES
    }
}

impl Drop for KernelStack {
    fn drop(&mut self) {
        for page in self.pages() {
            if let Some(pfn) = paging::unmap_kernel_page(page) {
                mm().free_pages(pfn, Order::ZERO);
            }
        }
        SLOTS.lock()[self.slot / 64] &= !(1 << (self.slot % 64));
    }
}

fn take_slot() -> Option<usize> {
    let mut words = SLOTS.lock();
    let (word, bits) = words
        .iter_mut()
        .enumerate()
        .find(|(_, bits)| **bits != u64::MAX)?;
    let bit = bits.trailing_ones() as usize;
    *bits |= 1 << bit;
    Some(word * 64 + bit)
}

/// Whether `address` lies in the guard below a stack.
#[must_use]
pub fn is_guard(address: u64) -> bool {
    let area = STACKS_BASE..STACKS_BASE + MAX_STACKS as u64 * SLOT_BYTES;
    area.contains(&address) && (address - STACKS_BASE) % SLOT_BYTES < GUARD_BYTES
}
