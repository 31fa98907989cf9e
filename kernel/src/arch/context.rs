//! The switch between two kernel stacks.
//!
//! A thread that does not run has its callee-saved registers on top of its stack, and the stack pointer in its
//! record. Everything else is dead across the call, by the calling convention; flags are not kept, so both sides
//! switch with the same interrupt flag (see `task::sched`).

use core::arch::naked_asm;

/// Registers that [`switch`] keeps, besides the return address.
const SAVED_REGISTERS: u64 = 6;

/// Saves the running thread's registers, stores its stack pointer in `*save`, and goes on where the thread that left
/// `next` in its own record stopped.
///
/// # Safety
/// `next` must have been stored by a `switch` of a thread that has not run since, or come from [`prepare`]. The
/// scheduler's lock must be held; it passes to the thread that goes on.
#[unsafe(naked)]
pub unsafe extern "C" fn switch(save: *mut u64, next: u64) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// Lays out an empty stack so that the first [`switch`] to it calls `entry`, and returns the stack pointer to switch
/// to.
///
/// # Safety
/// `top` must be the 16-byte aligned end of a writable stack that nobody uses.
pub unsafe fn prepare(top: u64, entry: extern "C" fn() -> !) -> u64 {
    // After the return into `entry` the stack must look as after a call: eight bytes off alignment, with a return
    // address, which is zero and so ends backtraces.
    let words = [(entry as *const ()).addr() as u64, 0, 0, 0];
    let start = top - size_of_val(&words) as u64;
    let return_slot = core::ptr::with_exposed_provenance_mut::<[u64; 4]>(mm::addr::to_usize(start));
    // SAFETY: the caller vouches for the stack.
    unsafe { return_slot.write(words) };
    let registers = start - SAVED_REGISTERS * 8;
    let pointer = core::ptr::with_exposed_provenance_mut::<[u64; 6]>(mm::addr::to_usize(registers));
    // SAFETY: as above. A zero frame pointer ends backtraces.
    unsafe { pointer.write([0; 6]) };
    registers
}
