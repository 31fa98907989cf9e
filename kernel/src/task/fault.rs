//! What a program's exceptions come to.
//!
//! A page fault goes to `mm` with the mmap lock not held; everything that cannot be resolved ends the program with
//! 128 + signal, whatever its dispositions say (handlers are not called yet), and one log line says where:
//!
//! | exception | signal | status |
//! |---|---|---|
//! | page fault outside the program's areas or against their rights, #GP, #SS | SIGSEGV | 139 |
//! | page fault whose contents cannot be had | SIGBUS | 135 |
//! | no memory left for a page | SIGKILL | 137 |
//! | #DE, #MF, #XM | SIGFPE | 136 |
//! | #UD | SIGILL | 132 |
//! | #BP, #DB | SIGTRAP | 133 |
//! | #AC | SIGBUS | 135 |

use core::fmt;

use mm::{Access, FaultInfo, SegvReason, VirtAddr, VmFault};

use super::{
    process::{Outcome, Process},
    signal::Signal,
    thread::{self, current_process},
};
use crate::{
    arch::trap::{self, TrapFrame},
    platform::mm,
    thp::{self, Dropped},
};

/// Error code bits of a page fault.
const WRITE: u64 = 1 << 1;
const FETCH: u64 = 1 << 4;

const fn access_of(error_code: u64) -> Access {
    if error_code & FETCH != 0 {
        Access::Exec
    } else if error_code & WRITE != 0 {
        Access::Write
    } else {
        Access::Read
    }
}

/// Why a program's page fault could not be resolved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unresolved {
    /// Not the program's to touch.
    Segv(&'static str),
    /// There, but the contents cannot be had.
    Bus,
    /// No memory is left.
    NoMemory,
}

/// Lets `mm` resolve a page fault of the running program.
fn resolve(process: &Process, addr: VirtAddr, error_code: u64) -> Result<(), Unresolved> {
    let fault = FaultInfo {
        addr,
        access: access_of(error_code),
    };
    let Some(space) = process.space() else {
        return Err(Unresolved::Segv("its memory is gone"));
    };
    loop {
        return match mm().handle_fault(&space, fault) {
            VmFault::Done => {
                process.usage().add_fault();
                Ok(())
            }
            VmFault::Retry => continue,
            VmFault::NeedMemory(_) => Err(Unresolved::NoMemory),
            VmFault::SigSegv(SegvReason::NotMapped) => Err(Unresolved::Segv("nothing is mapped there")),
            VmFault::SigSegv(SegvReason::Access) => Err(Unresolved::Segv("the mapping does not allow it")),
            VmFault::SigBus => Err(Unresolved::Bus),
        };
    }
}

/// As [`resolve`], and when memory is missing gives back what is kept for later and tries again, as long as there is
/// something.
fn resolve_with_reclaim(process: &Process, addr: VirtAddr, error_code: u64) -> Result<(), Unresolved> {
    loop {
        let outcome = resolve(process, addr, error_code);
        if outcome != Err(Unresolved::NoMemory) {
            return outcome;
        }
        let Dropped {
            split, zero_pages, ..
        } = thp::drop_reclaimable();
        if split == 0 && zero_pages == 0 {
            return outcome;
        }
    }
}

/// Handles a page fault of a user copy. Returns whether the copy can go on; if not it fails with EFAULT.
///
/// # Context
/// A task that holds no lock of `mm`. May wait.
pub fn user_copy_fault(addr: VirtAddr, error_code: u64) -> bool {
    current_process().is_some_and(|process| resolve_with_reclaim(&process, addr, error_code).is_ok())
}

/// Handles an exception of the running program: resolves a page fault, or ends the program.
///
/// # Context
/// A task that holds nothing, on the way back to ring 3. May wait.
pub fn user_exception(frame: &TrapFrame, fault_address: u64) {
    let vector = u8::try_from(frame.vector()).unwrap_or(u8::MAX);
    if vector == trap::PAGE_FAULT {
        user_page_fault(frame, fault_address);
        return;
    }
    let signal = match vector {
        trap::DIVIDE | trap::X87 | trap::SIMD => Signal::FPE,
        trap::INVALID_OPCODE => Signal::ILL,
        trap::BREAKPOINT | trap::DEBUG => Signal::TRAP,
        trap::ALIGNMENT => Signal::BUS,
        _ => Signal::SEGV,
    };
    end_program(
        signal,
        frame,
        format_args!("{} (error code {:#x})", frame.name(), frame.error_code()),
    );
}

fn user_page_fault(frame: &TrapFrame, address: u64) {
    let verb = match access_of(frame.error_code()) {
        Access::Read => "read of",
        Access::Write => "write to",
        Access::Exec => "jump to",
    };
    let outcome = match VirtAddr::try_new(address)
        .ok()
        .filter(|addr| addr.as_u64() < mm::USER_END)
    {
        Some(addr) => match current_process() {
            Some(process) => match resolve_with_reclaim(&process, addr, frame.error_code()) {
                // As on Linux, a fault of ring 3 outlives one allocation that was made to fail.
                Err(Unresolved::NoMemory) => resolve(&process, addr, frame.error_code()),
                outcome => outcome,
            },
            None => Err(Unresolved::Segv("no program runs here")),
        },
        None => Err(Unresolved::Segv("not an address of a program")),
    };
    match outcome {
        Ok(()) => {}
        Err(Unresolved::Segv(why)) => {
            end_program(Signal::SEGV, frame, format_args!("{verb} {address:#x}: {why}"));
        }
        Err(Unresolved::Bus) => {
            end_program(
                Signal::BUS,
                frame,
                format_args!("{verb} {address:#x}: its contents cannot be had"),
            );
        }
        Err(Unresolved::NoMemory) => {
            end_program(
                Signal::KILL,
                frame,
                format_args!("{verb} {address:#x}: out of memory"),
            );
        }
    }
}

/// Ends a program that would return to an address that is not a program's.
pub fn bad_return_address(frame: &TrapFrame) {
    end_program(
        Signal::SEGV,
        frame,
        format_args!("jump to {:#x}: not an address of a program", frame.rip),
    );
}

/// Ends the running program with `signal`; its thread ends where it would return to ring 3.
fn end_program(signal: Signal, frame: &TrapFrame, why: fmt::Arguments<'_>) {
    let me = thread::current();
    if let Some(process) = me.process() {
        crate::log::error!(
            "fault: {process:?} ended by {signal}: {why}, at ip {:#x} sp {:#x}",
            frame.rip,
            frame.rsp
        );
        process.end(Outcome::Killed(signal));
    }
    me.end_at_return();
}
