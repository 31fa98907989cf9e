//! The interrupt descriptor table: where each vector goes.
//!
//! All 256 vectors have a gate, so a vector nobody expects is counted and reported instead of becoming a fault.
//! Every gate is an interrupt gate: handlers begin with interrupts off.

use core::{arch::asm, cell::UnsafeCell, mem::size_of};

use super::{
    gdt::{KERNEL_CODE, TrapStack},
    trap,
};

const VECTORS: usize = 256;

#[repr(C, align(16))]
struct Table(UnsafeCell<[[u64; 2]; VECTORS]>);

// SAFETY: written once by `init` before any CPU loads it, read by processors only afterwards.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new([[0; 2]; VECTORS]));

/// A 64-bit interrupt gate. `ring` is the least privileged ring that may name the vector in an INT instruction.
const fn gate(handler: u64, stack: TrapStack, ring: u64) -> [u64; 2] {
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e;
    let low = handler & 0xffff
        | (KERNEL_CODE as u64) << 16
        | (stack as u64) << 32
        | (PRESENT_INTERRUPT_GATE | ring << 5) << 40
        | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

/// Which stack a vector's handler runs on.
const fn stack_of(vector: u8) -> TrapStack {
    match vector {
        trap::NMI => TrapStack::Nmi,
        trap::DOUBLE_FAULT => TrapStack::DoubleFault,
        trap::MACHINE_CHECK => TrapStack::MachineCheck,
        _ => TrapStack::Current,
    }
}

/// Which ring may raise a vector by an instruction: programs have INT3 and INTO.
const fn ring_of(vector: u8) -> u64 {
    match vector {
        trap::BREAKPOINT | trap::OVERFLOW => 3,
        _ => 0,
    }
}

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// Fills the table. Once.
pub fn init() {
    // SAFETY: no CPU has loaded the table yet.
    let table = unsafe { &mut *TABLE.0.get() };
    for (vector, slot) in (0..=u8::MAX).zip(table.iter_mut()) {
        *slot = gate(trap::entry_of(vector), stack_of(vector), ring_of(vector));
    }
    load();
}

/// Makes this CPU use the table.
pub fn load() {
    #[expect(clippy::cast_possible_truncation, reason = "4095")]
    let limit = size_of::<Table>() as u16 - 1;
    let pointer = TablePointer {
        limit,
        base: TABLE.0.get().addr() as u64,
    };
    // SAFETY: every gate leads to an entry stub.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags, readonly)) };
}
