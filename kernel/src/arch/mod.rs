//! The processor.
//!
//! ```text
//!  ring 3 --- syscall ----> syscall_entry --> syscall::syscall_dispatch
//!     |   --- exception --> trap (idt) -----> task::fault
//!     |   --- interrupt --> trap (idt) -----> flags only; work is done on the way back to ring 3 or when idle
//!     <------ exit_to_user: pending work, time slice, signals
//! ```
//! | module | does |
//! |---|---|
//! | [`cpu`] | features, control registers |
//! | [`msr`] | model-specific registers |
//! | [`percpu`] | the block behind GS |
//! | [`gdt`], [`idt`] | segments, task state, gates |
//! | [`trap`] | the register frame, entry and exit of every trap |
//! | [`syscall_entry`] | SYSCALL and SYSRET |
//! | [`context`] | the switch between two kernel stacks |
//! | [`fpu`] | floating-point and vector state |
//! | [`paging`] | the kernel's own page tables |
//! | [`kstack`] | kernel stacks with guard pages |
//! | [`page_ops`] | zeroing and copying pages |
//! | [`user_copy`] | reading and writing a program's memory |
//! | [`acpi`], [`apic`] | which CPUs and interrupt controllers there are; timer and routing |

use core::arch::asm;

pub mod acpi;
pub mod apic;
pub mod context;
pub mod cpu;
pub mod fpu;
pub mod gdt;
pub mod idt;
pub mod kstack;
pub mod msr;
pub mod page_ops;
pub mod paging;
pub mod percpu;
pub mod syscall_entry;
pub mod trap;
pub mod user_copy;

/// Stops this CPU for good.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: with interrupts off nothing runs on this CPU any more.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Lets interrupts in.
pub fn interrupts_on() {
    // SAFETY: handlers only set flags, so they may come anywhere in Rust code.
    unsafe { asm!("sti", options(nostack)) };
}

/// Keeps interrupts out.
pub fn interrupts_off() {
    // SAFETY: delays interrupts, nothing else.
    unsafe { asm!("cli", options(nostack)) };
}

/// Whether interrupts may come in.
#[must_use]
pub fn interrupts_are_on() -> bool {
    const INTERRUPT_FLAG: u64 = 1 << 9;
    let flags: u64;
    // SAFETY: reads the flags through the stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) };
    flags & INTERRUPT_FLAG != 0
}

/// Lets interrupts in and sleeps until one came. Called with interrupts off: none can slip in between.
pub fn wait_for_interrupt() {
    // SAFETY: `sti` takes effect after the next instruction, so an interrupt that is already due ends the halt.
    unsafe { asm!("sti", "hlt", options(nostack)) };
}
