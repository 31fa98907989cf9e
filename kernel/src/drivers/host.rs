//! The machine's way to talk to the program that started it: records, and the end.
//!
//! A record on the debugcon port is `type u8, length u32 LE, payload` (contract: `linux_abi::wire`). The exit device
//! carries only seven bits, so it says *how* the machine ended; the status travels in the last record.
//! Without the devices (a real PC, or QEMU started by hand) records go nowhere and the end is an ACPI power-off, then
//! a halt.

use core::sync::atomic::{AtomicU8, Ordering};

use linux_abi::wire::{EXIT_ORDERLY, EXIT_PANIC, EXIT_PORT, EXIT_TEST_FAILED, RECORD_PORT, record};
use spin::Mutex;

use super::port::{inb, outb, outsb, outw};

/// What the debugcon port reads as when the device is there.
const DEBUGCON_PRESENT: u8 = 0xe9;
/// PM1a control block of QEMU's q35, where writing SLP_EN with sleep type 0 switches the machine off.
const Q35_PM1A_CONTROL: u16 = 0x604;
const SLP_EN: u16 = 1 << 13;

/// One record at a time: the bytes of two must not mix.
static RECORDS: Mutex<()> = Mutex::new(());
/// Whether the debugcon device answered: 0 not asked, 1 no, 2 yes.
static PRESENT: AtomicU8 = AtomicU8::new(0);

fn debugcon_present() -> bool {
    // Relaxed: the answer is the same whoever asks.
    match PRESENT.load(Ordering::Relaxed) {
        0 => {
            // SAFETY: reading the port has no effect, with or without the device.
            let present = unsafe { inb(RECORD_PORT) } == DEBUGCON_PRESENT;
            PRESENT.store(1 + u8::from(present), Ordering::Relaxed);
            present
        }
        answer => answer == 2,
    }
}

/// Sends a record whose payload is the concatenation of `parts`.
pub fn send_record(kind: u8, parts: &[&[u8]]) {
    let _one_at_a_time = RECORDS.lock();
    send_parts(kind, parts);
}

/// Sends a record even though its lock may be held by code that will never run on. For the panic handler only.
pub fn send_record_in_panic(kind: u8, parts: &[&[u8]]) {
    send_parts(kind, parts);
}

fn send_parts(kind: u8, parts: &[&[u8]]) {
    if !debugcon_present() {
        return;
    }
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let Ok(length) = u32::try_from(length) else { return };
    let mut header = [kind, 0, 0, 0, 0];
    header[1..].copy_from_slice(&length.to_le_bytes());
    // SAFETY: the device only takes bytes.
    unsafe { outsb(RECORD_PORT, &header) };
    for part in parts {
        // SAFETY: as above.
        unsafe { outsb(RECORD_PORT, part) };
    }
}

/// How the machine ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// In order; the host exits with this status.
    Status(u8),
    /// A trial failed; its record tells which.
    TestFailed,
    /// The kernel panicked.
    Panic,
}

/// Ends the machine. Everything written to the serial ports before has left the kernel.
pub fn end(how: End) -> ! {
    let code = match how {
        End::Status(status) => {
            send_parts(record::EXIT, &[&[status]]);
            EXIT_ORDERLY
        }
        End::TestFailed => EXIT_TEST_FAILED,
        End::Panic => EXIT_PANIC,
    };
    // SAFETY: with the device QEMU ends here; without it the write is ignored.
    unsafe { outb(EXIT_PORT, code) };
    if how != End::Panic {
        // SAFETY: switches a q35 off; on a machine without that register the write is ignored.
        unsafe { outw(Q35_PM1A_CONTROL, SLP_EN) };
    }
    crate::arch::halt_forever()
}

/// Ends the machine in order with `status`.
pub fn power_off(status: u8) -> ! {
    end(End::Status(status))
}
