//! I/O ports: one byte, word or long word, and whole strings of bytes by one instruction.
//!
//! Under emulation each separate port access leaves the translated code, so byte strings go by `rep outsb`.

use core::arch::asm;

/// Reads a byte.
///
/// # Safety
/// Reading `port` must have no effect that breaks memory safety or another driver's protocol.
pub unsafe fn inb(port: u16) -> u8 {
    let value: u8;
    // SAFETY: the caller vouches for the port.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) };
    value
}

/// Writes a byte.
///
/// # Safety
/// As for [`inb`], of writing `value`.
pub unsafe fn outb(port: u16, value: u8) {
    // SAFETY: the caller vouches for the port.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

/// Writes a word.
///
/// # Safety
/// As for [`outb`].
pub unsafe fn outw(port: u16, value: u16) {
    // SAFETY: the caller vouches for the port.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags)) };
}

/// Writes a long word.
///
/// # Safety
/// As for [`outb`]; a device that starts a transfer must only reach memory that it may.
pub unsafe fn outl(port: u16, value: u32) {
    // SAFETY: the caller vouches for the port.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) };
}

/// Writes `bytes` one after the other.
///
/// # Safety
/// As for [`outb`].
pub unsafe fn outsb(port: u16, bytes: &[u8]) {
    // SAFETY: reads exactly the slice; the direction flag is clear in all Rust code; the caller vouches for the port.
    unsafe {
        asm!(
            "rep outsb",
            in("dx") port,
            inout("rsi") bytes.as_ptr() => _,
            inout("rcx") bytes.len() => _,
            options(nostack, preserves_flags, readonly)
        );
    }
}

/// Fills `buffer` with successive reads of one byte each.
///
/// # Safety
/// As for [`inb`].
pub unsafe fn insb(port: u16, buffer: &mut [u8]) {
    // SAFETY: writes exactly the slice; the direction flag is clear in all Rust code; the caller vouches for the port.
    unsafe {
        asm!(
            "rep insb",
            in("dx") port,
            inout("rdi") buffer.as_mut_ptr() => _,
            inout("rcx") buffer.len() => _,
            options(nostack, preserves_flags)
        );
    }
}
