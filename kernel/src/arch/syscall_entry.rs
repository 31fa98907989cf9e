//! SYSCALL and SYSRET.
//!
//! ```text
//!  SYSCALL: RIP -> RCX, RFLAGS -> R11, interrupts off, stack still the program's
//!     SWAPGS; stack := this thread's kernel stack; save a whole TrapFrame
//!     interrupts on; syscall_dispatch; exit_to_user; interrupts off
//!  SYSRET, if RIP and RFLAGS are still what RCX and R11 say (they go back through those registers); else IRETQ
//! ```
//! SYSRET to a non-canonical address would fault in ring 0 on the program's stack. It never sees one: user space ends
//! a page below the canonical limit, and `exit_to_user` refuses every address beyond.

use core::arch::global_asm;

use super::{
    gdt::{KERNEL_CODE, SYSRET_BASE, USER_CODE, USER_DATA},
    msr::Msr,
    percpu::{KERNEL_STACK_OFFSET, USER_STACK_OFFSET},
    trap::{self, SYSCALL_VECTOR, TrapFrame, restore_registers, save_registers},
};

/// Cleared on entry: trace, interrupts, direction, I/O privilege, nested task, alignment check.
const CLEARED_FLAGS: u64 = 0x0004_7700;
/// Flags that SYSRET must not restore: resume, trace.
const FLAGS_FOR_IRET: u64 = 0x0001_0100;

global_asm!(
    ".pushsection .text.syscall_entry, \"ax\", @progbits",
    ".balign 16",
    ".globl syscall_entry",
    "syscall_entry:",
    "swapgs",
    "mov gs:[{user_stack}], rsp",
    "mov rsp, gs:[{kernel_stack}]",
    "push {user_data}",
    "push qword ptr gs:[{user_stack}]",
    "push r11",
    "push {user_code}",
    "push rcx",
    "push rax",
    "push {vector}",
    save_registers!(),
    "mov rdi, rsp",
    "call {enter}",
    // RCX and R11 as SYSRET will use them must be what the frame says.
    "mov rcx, [rsp + {rcx}]",
    "cmp rcx, [rsp + {rip}]",
    "jne trap_return_user",
    "mov r11, [rsp + {r11}]",
    "cmp r11, [rsp + {rflags}]",
    "jne trap_return_user",
    "test r11, {iret_flags}",
    "jnz trap_return_user",
    restore_registers!(),
    "mov rsp, [rsp + {rsp_after}]",
    "swapgs",
    "sysretq",
    ".popsection",
    user_stack = const USER_STACK_OFFSET,
    kernel_stack = const KERNEL_STACK_OFFSET,
    user_data = const USER_DATA as u64,
    user_code = const USER_CODE as u64,
    vector = const SYSCALL_VECTOR,
    enter = sym syscall_enter,
    rcx = const core::mem::offset_of!(TrapFrame, rcx),
    rip = const core::mem::offset_of!(TrapFrame, rip),
    r11 = const core::mem::offset_of!(TrapFrame, r11),
    rflags = const core::mem::offset_of!(TrapFrame, rflags),
    // With the fifteen registers popped.
    rsp_after = const core::mem::offset_of!(TrapFrame, rsp) - 15 * 8,
    iret_flags = const FLAGS_FOR_IRET,
);

unsafe extern "C" {
    static syscall_entry: u8;
}

extern "C" fn syscall_enter(frame: &mut TrapFrame) {
    super::interrupts_on();
    crate::syscall::syscall_dispatch(frame);
    trap::exit_to_user(frame);
}

/// Tells this CPU where SYSCALL goes.
pub fn init() {
    let star = u64::from(SYSRET_BASE) << 48 | u64::from(KERNEL_CODE) << 32;
    let entry = (&raw const syscall_entry).addr() as u64;
    for (register, value) in [
        (Msr::STAR, star),
        (Msr::LSTAR, entry),
        (Msr::SFMASK, CLEARED_FLAGS),
    ] {
        // SAFETY: SYSCALL is enabled; the entry and the segments are what it expects.
        unsafe { register.write(value) };
    }
}
