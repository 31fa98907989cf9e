//! Reading and writing a program's memory from ring 0.
//!
//! ```text
//!   copy_to_user(addr, bytes) -> assembly with SMAP open -> fault? -> trap::exception -> resolve():
//!        the program's page fault is handled exactly as if it had touched the address itself;
//!        if that fails, execution goes on at a fixup: a block is tried again byte by byte, a byte
//!        ends the copy, which returns how far it got
//! ```
//! The range is checked to lie in user space before anything is touched, so a wild pointer can only reach the
//! program's own memory.
//!
//! # Context
//! May wait (the fault may). Never called with a lock of `mm` held: the fault would need it again. The debug kernel
//! checks that no preemption guard lives.

use core::arch::{asm, global_asm};

use mm::{USER_END, VirtAddr};

use super::{
    cpu::{self, Features},
    percpu,
    trap::TrapFrame,
};
use crate::task::fault;

/// The program has no (suitable) memory somewhere in the range: EFAULT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Bytes that were copied all the same, from the start; exact.
    pub copied: usize,
}

/// What became of a string read by [`strncpy_from_user`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UserString {
    /// It ended within the buffer: its length without the terminator.
    Whole(usize),
    /// The buffer is full and the string goes on.
    TooLong,
}

global_asm!(
    ".pushsection .text.user_copy, \"ax\", @progbits",
    // user_copy(rdi = to, rsi = from, rdx = bytes) -> rax = bytes not copied
    ".balign 16",
    ".globl user_copy",
    "user_copy:",
    "mov rcx, rdx",
    "cmp rcx, 64",
    "jb 3f",
    "2:",
    "mov rax, [rsi]",
    "mov r8, [rsi + 8]",
    "mov r9, [rsi + 16]",
    "mov r10, [rsi + 24]",
    "mov [rdi], rax",
    "mov [rdi + 8], r8",
    "mov [rdi + 16], r9",
    "mov [rdi + 24], r10",
    "mov rax, [rsi + 32]",
    "mov r8, [rsi + 40]",
    "mov r9, [rsi + 48]",
    "mov r10, [rsi + 56]",
    "mov [rdi + 32], rax",
    "mov [rdi + 40], r8",
    "mov [rdi + 48], r9",
    "mov [rdi + 56], r10",
    "add rsi, 64",
    "add rdi, 64",
    "sub rcx, 64",
    "cmp rcx, 64",
    "jae 2b",
    "3:",
    ".globl user_copy_bytes",
    "user_copy_bytes:",
    "test rcx, rcx",
    "jz 5f",
    "4:",
    "mov al, [rsi]",
    "mov [rdi], al",
    "inc rsi",
    "inc rdi",
    "dec rcx",
    "jnz 4b",
    "5:",
    ".globl user_copy_end",
    "user_copy_end:",
    "mov rax, rcx",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    static user_copy: u8;
    static user_copy_bytes: u8;
    static user_copy_end: u8;
}

/// Opens user pages to ring 0.
fn open_access() {
    if cpu::features().contains(Features::SMAP) {
        // SAFETY: the processor has the instruction; `close_access` follows.
        unsafe { asm!("stac", options(nostack)) };
    }
}

/// Closes user pages to ring 0 again.
pub(super) fn close_access() {
    if cpu::features().contains(Features::SMAP) {
        // SAFETY: the processor has the instruction.
        unsafe { asm!("clac", options(nostack)) };
    }
}

/// Copies `bytes` with user access open and returns how many were not copied.
///
/// # Safety
/// One side must be memory the caller may read or write; the other lies below [`USER_END`].
unsafe fn copy_raw(to: *mut u8, from: *const u8, bytes: usize) -> usize {
    debug_assert_eq!(percpu::this().preempt_count(), 0, "a user copy may wait");
    let left: usize;
    open_access();
    // SAFETY: the caller vouches for the kernel's side; a fault on the program's side ends at `user_copy_end`, which
    // returns. The routine follows the C calling convention and needs no stack of its own.
    unsafe {
        asm!(
            "call user_copy",
            inout("rdi") to => _,
            inout("rsi") from => _,
            inout("rdx") bytes => _,
            out("rax") left,
            out("rcx") _,
            out("r8") _,
            out("r9") _,
            out("r10") _,
        );
    }
    close_access();
    left
}

/// Whether `bytes` at `addr` lie in user space.
fn in_user_space(addr: VirtAddr, bytes: usize) -> bool {
    addr.as_u64()
        .checked_add(bytes as u64)
        .is_some_and(|end| end <= USER_END)
}

fn finish(wanted: usize, left: usize) -> Result<(), Fault> {
    if left == 0 {
        Ok(())
    } else {
        Err(Fault {
            copied: wanted - left,
        })
    }
}

/// Reads a program's memory into `to`.
///
/// # Errors
/// Some of it is not there, or not in user space; the copied part is in `to`.
pub fn copy_from_user(to: &mut [u8], from: VirtAddr) -> Result<(), Fault> {
    if !in_user_space(from, to.len()) {
        return Err(Fault { copied: 0 });
    }
    let pointer = user_ptr(from);
    // SAFETY: `to` is ours to write; the other side is in user space.
    let left = unsafe { copy_raw(to.as_mut_ptr(), pointer, to.len()) };
    finish(to.len(), left)
}

/// Writes `from` into a program's memory.
///
/// # Errors
/// Some of it is not there or not writable, or not in user space; the copied part is written.
pub fn copy_to_user(to: VirtAddr, from: &[u8]) -> Result<(), Fault> {
    if !in_user_space(to, from.len()) {
        return Err(Fault { copied: 0 });
    }
    let pointer = user_ptr(to);
    // SAFETY: `from` is ours to read; the other side is in user space.
    let left = unsafe { copy_raw(pointer, from.as_ptr(), from.len()) };
    finish(from.len(), left)
}

/// Writes zeroes into a program's memory.
///
/// # Errors
/// As [`copy_to_user`].
pub fn clear_user(to: VirtAddr, bytes: usize) -> Result<(), Fault> {
    static ZEROES: [u8; mm::PAGE_SIZE] = [0; mm::PAGE_SIZE];
    if !in_user_space(to, bytes) {
        return Err(Fault { copied: 0 });
    }
    let mut done = 0;
    while done < bytes {
        let chunk = &ZEROES[..(bytes - done).min(ZEROES.len())];
        copy_to_user(to + done as u64, chunk).map_err(|fault| Fault {
            copied: done + fault.copied,
        })?;
        done += chunk.len();
    }
    Ok(())
}

/// Reads a NUL-terminated string of a program into `to`.
///
/// # Errors
/// Memory is missing before the terminator.
pub fn strncpy_from_user(to: &mut [u8], from: VirtAddr) -> Result<UserString, Fault> {
    let mut done = 0;
    while done < to.len() {
        let at = from
            .as_u64()
            .checked_add(done as u64)
            .filter(|&at| at < USER_END)
            .ok_or(Fault { copied: done })?;
        // Up to the end of the page: the next may be missing, and the terminator may stand before it.
        let page_rest = mm::PAGE_SIZE - mm::addr::to_usize(at % mm::PAGE_BYTES);
        let end = to.len().min(done + page_rest);
        copy_from_user(&mut to[done..end], VirtAddr::new(at)).map_err(|fault| Fault {
            copied: done + fault.copied,
        })?;
        if let Some(length) = to[done..end].iter().position(|&byte| byte == 0) {
            return Ok(UserString::Whole(done + length));
        }
        done = end;
    }
    Ok(UserString::TooLong)
}

fn user_ptr(addr: VirtAddr) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(mm::addr::to_usize(addr.as_u64()))
}

/// Handles a page fault of ring 0. Returns whether execution may go on as `frame` now says: either the page is there,
/// or the copy goes on at its fixup.
pub(super) fn resolve(frame: &mut TrapFrame, address: u64) -> bool {
    let start = (&raw const user_copy).addr() as u64;
    let bytes = (&raw const user_copy_bytes).addr() as u64;
    let end = (&raw const user_copy_end).addr() as u64;
    if !(start..end).contains(&frame.rip) || address >= USER_END {
        return false;
    }
    super::interrupts_on();
    let resolved = fault::user_copy_fault(VirtAddr::new(address), frame.error_code());
    super::interrupts_off();
    if !resolved {
        // A block of 64 bytes that fails is tried again byte by byte, so that the count is exact; the registers are
        // those of the block's start.
        frame.rip = if frame.rip < bytes { bytes } else { end };
    }
    true
}
