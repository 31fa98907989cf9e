//! System calls.

use crate::arch::trap::TrapFrame;

/// Answers the system call that `frame` holds: reads the number and arguments, writes RAX.
///
/// # Context
/// The calling thread, interrupts on, no lock held. May wait.
pub fn syscall_dispatch(frame: &mut TrapFrame) {
    /// Linux's ENOSYS.
    const NO_SUCH_CALL: i64 = 38;
    crate::log::warn!("syscall: number {} is not supported", frame.syscall_number());
    frame.rax = (-NO_SUCH_CALL).cast_unsigned();
}
