//! System calls: Linux's numbers, arguments, results and errors.
//!
//! ```text
//!   SYSCALL -> arch saves a TrapFrame -> syscall_dispatch
//!       table[number] -> handler(&Call) -> Ok(value) | Err(Errno) -> RAX
//!       then: the process may have ended itself, or a signal may end it
//! ```
//! | module | family |
//! |---|---|
//! | [`table`] | number -> name and handler |
//! | [`mem`] | `mmap` and relatives |
//! | [`numa`] | memory policies, moving pages |
//! | [`mod@file`], [`path`] | descriptors; names |
//! | [`proc`] | identity, limits, ends, futex |
//! | [`task`] | fork, exec, wait |
//! | [`mount`] | file systems, which stay in their places |
//! | [`splice`] | pages of programs in pipes |
//! | [`signal`] | dispositions, masks, kill |
//! | [`time`] | clocks and sleeping |
//! | [`user`] | the program's memory: the only way from a raw argument to an address |
//! | `fields` | structures of the interface, byte by byte |
//!
//! Rules. A raw argument becomes an address only through [`user`]. Checks come in Linux's order where a program could
//! tell. What is not supported is refused with the error that a Linux without that part gives, and logged once per
//! number or place. No handler holds a lock over a user copy.

#![forbid(unsafe_code)]

mod fields;
pub mod file;
pub mod futex;
pub mod mem;
pub mod mount;
pub mod numa;
pub mod path;
pub mod proc;
pub mod signal;
pub mod splice;
pub mod table;
pub mod task;
pub mod time;
pub mod user;

use alloc::sync::Arc;
use core::cell::Cell;

use linux_abi::errno::Errno;

use crate::{
    arch::trap::TrapFrame,
    task::process::{self, Process},
};

/// What a handler returns: the value for RAX, or why not.
pub type Result = core::result::Result<u64, Errno>;

/// One system call in progress.
#[derive(Debug)]
pub struct Call<'a> {
    process: &'a Arc<Process>,
    args: [u64; 6],
    frame: &'a TrapFrame,
    /// The registers of another program, which the process goes on with instead of getting a result.
    program: Cell<Option<TrapFrame>>,
}

impl Call<'_> {
    /// The calling process.
    #[must_use]
    pub fn process(&self) -> &Process {
        self.process
    }

    /// The registers with which the program made the call.
    #[must_use]
    pub const fn frame(&self) -> &TrapFrame {
        self.frame
    }

    /// Lets the process go on with these registers.
    fn begin_program(&self, frame: TrapFrame) {
        self.program.set(Some(frame));
    }

    /// Argument `index` as the program gave it.
    #[must_use]
    pub const fn raw(&self, index: usize) -> u64 {
        self.args[index]
    }

    /// Argument `index` where C has an `int`: only the lower half counts.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the interface says that the upper half is ignored"
    )]
    pub const fn int(&self, index: usize) -> i32 {
        self.args[index] as i32
    }

    /// Argument `index` where C has an `unsigned int`.
    #[must_use]
    pub const fn uint(&self, index: usize) -> u32 {
        self.int(index).cast_unsigned()
    }
}

/// Refuses something that this kernel does not support, with one log line per place however often it is asked.
macro_rules! unsupported {
    ($errno:expr, $($text:tt)*) => {{
        static LOGGED: core::sync::atomic::AtomicBool = core::sync::atomic::AtomicBool::new(false);
        // Relaxed: it orders nothing.
        if !LOGGED.swap(true, core::sync::atomic::Ordering::Relaxed) {
            $crate::log::warn!("syscall: {} -> {}", format_args!($($text)*), $errno);
        }
        Err($errno)
    }};
}
use unsupported;

/// Handles one system call and puts its result into the frame.
///
/// If the call or a signal ends the process, its thread ends where it would return to ring 3.
///
/// # Context
/// On the thread's own kernel stack, interrupts on, nothing held. May wait.
pub fn syscall_dispatch(frame: &mut TrapFrame) {
    // Without a process there would be no ring 3 to call from.
    let Some(process) = process::current() else { return };
    let call = Call {
        process: &process,
        args: frame.syscall_args(),
        frame,
        program: Cell::new(None),
    };
    let result = table::call(frame.syscall_number(), &call);
    let program = call.program.take();
    match program {
        Some(program) => *frame = program,
        None => frame.rax = result.unwrap_or_else(Errno::to_result_register),
    }
    process.deliver_signals();
}
