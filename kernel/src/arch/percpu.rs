//! What each CPU has for itself, reached through GS.
//!
//! ```text
//!   ring 3:  GS = the program's          KERNEL_GS = this block
//!   ring 0:  GS = this block             KERNEL_GS = the program's     (SWAPGS at every crossing)
//! ```
//! Every field is written by its own CPU only (other CPUs may set bits of `pending`), so plain loads and stores of
//! atomics are enough; assembly reads fields by their offsets. Interrupt handlers on the same CPU touch `pending`
//! alone.

use core::{
    arch::asm,
    sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering},
};

use mm::{CpuId, MAX_CPUS};

use super::msr::Msr;
use crate::task::thread::Thread;

/// A CPU's block.
#[repr(C)]
#[derive(Debug)]
pub struct PerCpu {
    /// Its own address, so that `gs:[0]` yields a pointer.
    this: AtomicPtr<PerCpu>,
    /// Top of the running thread's kernel stack: where SYSCALL goes on.
    kernel_stack: AtomicU64,
    /// Where SYSCALL keeps the program's stack pointer for two instructions.
    user_stack: AtomicU64,
    /// The running thread.
    current: AtomicPtr<Thread>,
    /// Where the task state segment holds the stack for traps from ring 3.
    trap_stack_slot: AtomicPtr<u64>,
    /// How many preemption guards live.
    preempt_count: AtomicU32,
    /// [`Pending`] bits.
    pending: AtomicU32,
    id: AtomicU8,
}

bitflags::bitflags! {
    /// What an interrupt handler asks the next task on its CPU to do.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Pending: u32 {
        /// The timer fired: look at deadlines and at the time slice.
        const TIMER = 1 << 0;
        /// A serial port has something to say.
        const UART = 1 << 1;
        /// Somebody became runnable, or the slice is over: give the CPU away.
        const RESCHEDULE = 1 << 2;
    }
}

impl PerCpu {
    const fn new() -> Self {
        Self {
            this: AtomicPtr::new(core::ptr::null_mut()),
            kernel_stack: AtomicU64::new(0),
            user_stack: AtomicU64::new(0),
            current: AtomicPtr::new(core::ptr::null_mut()),
            trap_stack_slot: AtomicPtr::new(core::ptr::null_mut()),
            preempt_count: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            id: AtomicU8::new(0),
        }
    }

    /// The CPU's number.
    #[must_use]
    pub fn id(&self) -> CpuId {
        CpuId::new(self.id.load(Ordering::Relaxed))
    }

    /// The thread that runs here; null before the scheduler has one.
    #[must_use]
    pub fn current(&self) -> *const Thread {
        self.current.load(Ordering::Relaxed)
    }

    /// Makes `thread` the running one, with its kernel stack ending at `stack_top`.
    pub fn set_current(&self, thread: *const Thread, stack_top: u64) {
        self.current.store(thread.cast_mut(), Ordering::Relaxed);
        self.kernel_stack.store(stack_top, Ordering::Relaxed);
        let slot = self.trap_stack_slot.load(Ordering::Relaxed);
        // SAFETY: points into this CPU's task state segment since `gdt::init`; the processor reads the field only on
        // a trap from ring 3, which cannot come before this CPU leaves ring 0 again.
        unsafe { slot.write_unaligned(stack_top) };
    }

    /// Tells where the task state segment keeps the stack for traps from ring 3.
    pub(super) fn set_trap_stack_slot(&self, slot: *mut u64) {
        self.trap_stack_slot.store(slot, Ordering::Relaxed);
    }

    /// How many preemption guards live here.
    #[must_use]
    pub fn preempt_count(&self) -> u32 {
        self.preempt_count.load(Ordering::Relaxed)
    }

    /// Asks this CPU's next task for something.
    pub fn ask(&self, what: Pending) {
        self.pending.fetch_or(what.bits(), Ordering::Release);
    }

    /// What was asked for, without taking it.
    #[must_use]
    pub fn asked(&self) -> Pending {
        Pending::from_bits_retain(self.pending.load(Ordering::Acquire))
    }

    /// Takes those of `what` that were asked for.
    pub fn take(&self, what: Pending) -> Pending {
        Pending::from_bits_retain(self.pending.fetch_and(!what.bits(), Ordering::AcqRel)) & what
    }
}

static BLOCKS: [PerCpu; MAX_CPUS] = [const { PerCpu::new() }; MAX_CPUS];

/// Offset of the kernel stack's top, for the SYSCALL entry.
pub(super) const KERNEL_STACK_OFFSET: usize = core::mem::offset_of!(PerCpu, kernel_stack);
/// Offset of the scratch slot, for the SYSCALL entry.
pub(super) const USER_STACK_OFFSET: usize = core::mem::offset_of!(PerCpu, user_stack);

/// Offset of the count of preemption guards, which `platform` changes by one instruction.
pub const PREEMPT_COUNT_OFFSET: usize = core::mem::offset_of!(PerCpu, preempt_count);

/// Points GS at the block of CPU `id`. Before any trap can come, once per CPU.
pub fn init(id: CpuId) {
    let block = &BLOCKS[id.index()];
    block
        .this
        .store(core::ptr::from_ref(block).cast_mut(), Ordering::Relaxed);
    #[expect(clippy::cast_possible_truncation, reason = "below MAX_CPUS")]
    block.id.store(id.index() as u8, Ordering::Relaxed);
    // SAFETY: the block lives for ever; ring 0 expects exactly it behind GS.
    unsafe { Msr::GS_BASE.write(core::ptr::from_ref(block).addr() as u64) };
    // SAFETY: a program begins with a GS base of 0.
    unsafe { Msr::KERNEL_GS_BASE.write(0) };
}

/// Returns this CPU's block. Without a preemption guard the task may be on another CPU by the time it looks; on this
/// kernel it only changes CPUs where it gives one away.
#[must_use]
pub fn this() -> &'static PerCpu {
    let block: *const PerCpu;
    // SAFETY: GS points at this CPU's block in all of ring 0, whose first field is its own address.
    unsafe { asm!("mov {}, gs:[0]", out(reg) block, options(nostack, preserves_flags, readonly, pure)) };
    // SAFETY: the block is a static.
    unsafe { &*block }
}

/// Whether [`this`] may be called.
#[must_use]
pub fn is_ready() -> bool {
    !BLOCKS[0].this.load(Ordering::Relaxed).is_null()
}
