//! Floating-point and vector state of programs.
//!
//! The kernel is compiled without vector registers, so a program's state survives system calls and interrupts where
//! it is. It is saved when its thread gives the CPU away and loaded when the thread gets one, always, and nothing is
//! done lazily: a lazy scheme saves a microsecond and costs a trap.

use alloc::{boxed::Box, vec};
use core::{
    arch::{asm, x86_64::__cpuid_count},
    cell::UnsafeCell,
};

use super::cpu::{self, Features};

/// Bytes of the FXSAVE format, which is also the start of XSAVE's.
const LEGACY_BYTES: usize = 512;
/// Where MXCSR lies in it, in 64-bit words, and its value at program start: all exceptions masked.
const MXCSR_WORD: usize = 3;
const MXCSR_INITIAL: u64 = 0x1f80;
/// The x87 control word at program start: extended precision, all exceptions masked.
const FCW_INITIAL: u64 = 0x037f;

const BLOCK_WORDS: usize = 8;

/// XSAVE wants 64-byte alignment.
#[repr(align(64))]
#[derive(Clone, Copy)]
struct Block([u64; BLOCK_WORDS]);

/// A thread's saved state.
pub struct FpuState {
    /// Touched only by the CPU that switches to or from the thread, with the scheduler's lock held.
    area: UnsafeCell<Box<[Block]>>,
}

// SAFETY: see the field: the scheduler's lock orders all accesses.
unsafe impl Sync for FpuState {}

impl FpuState {
    /// Returns the state with which a program begins.
    #[must_use]
    pub fn new() -> Self {
        let mut area =
            vec![Block([0; BLOCK_WORDS]); state_bytes().div_ceil(size_of::<Block>())].into_boxed_slice();
        // With XSAVE an all-zero header stands for the initial state of every component but MXCSR.
        area[0].0[0] = FCW_INITIAL;
        area[0].0[MXCSR_WORD] = MXCSR_INITIAL;
        Self {
            area: UnsafeCell::new(area),
        }
    }

    /// Returns a copy of the state of the program that the running thread works for.
    #[must_use]
    pub fn of_running() -> Self {
        let copy = Self::new();
        // SAFETY: nobody else knows the copy. The kernel uses no such registers, so what this CPU has is the program's.
        unsafe { copy.save() };
        copy
    }

    /// Gives the program that the running thread works for this state.
    pub fn load(&self) {
        // SAFETY: the kernel uses no such registers, so what they hold is the running program's.
        unsafe { self.restore() };
    }

    fn pointer(&self) -> *mut Block {
        // SAFETY: only the box's pointer is read; see `area` for who touches what it points to.
        unsafe { &*self.area.get() }.as_ptr().cast_mut()
    }

    /// Stores this CPU's state here.
    ///
    /// # Safety
    /// The state belongs to the running thread and the scheduler's lock is held, or nobody else knows it.
    pub unsafe fn save(&self) {
        if cpu::features().contains(Features::XSAVE) {
            // SAFETY: the area is aligned and as large as the processor said for the components in use.
            unsafe {
                asm!("xsave64 [{}]", in(reg) self.pointer(), in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
            }
        } else {
            // SAFETY: the area is aligned and holds the legacy format.
            unsafe { asm!("fxsave64 [{}]", in(reg) self.pointer(), options(nostack)) };
        }
    }

    /// Loads what is stored here into this CPU.
    ///
    /// # Safety
    /// The state belongs to the thread that is to run and the scheduler's lock is held, or nobody else changes it.
    pub unsafe fn restore(&self) {
        if cpu::features().contains(Features::XSAVE) {
            // SAFETY: the area holds what `new` or `save` wrote.
            unsafe {
                asm!("xrstor64 [{}]", in(reg) self.pointer(), in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
            }
        } else {
            // SAFETY: as above.
            unsafe { asm!("fxrstor64 [{}]", in(reg) self.pointer(), options(nostack)) };
        }
    }
}

impl Default for FpuState {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes that the enabled components need.
#[must_use]
pub fn state_bytes() -> usize {
    /// EBX: bytes for the components enabled in XCR0.
    const XSAVE_LEAF: u32 = 13;
    if cpu::features().contains(Features::XSAVE) {
        __cpuid_count(XSAVE_LEAF, 0).ebx as usize
    } else {
        LEGACY_BYTES
    }
}
