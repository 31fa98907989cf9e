//! Segments and the task state segment.
//!
//! ```text
//!  0x00 null   0x08 kernel code   0x10 kernel data   0x18 user data   0x20 user code   0x28 task state (two slots)
//! ```
//! The order is SYSRET's: it takes user data at base + 8 and user code at base + 16, with base 0x10.
//! Three traps have stacks of their own, because the current one may be the trouble: double fault, NMI, machine check.

use core::{arch::asm, cell::UnsafeCell, mem::size_of};

use super::percpu::PerCpu;

/// Kernel code selector.
pub const KERNEL_CODE: u16 = 0x08;
/// Kernel data selector.
pub const KERNEL_DATA: u16 = 0x10;
/// User data selector, with ring 3.
pub const USER_DATA: u16 = 0x18 | 3;
/// User code selector, with ring 3.
pub const USER_CODE: u16 = 0x20 | 3;
const TASK_STATE: u16 = 0x28;
/// What SYSRET adds to.
pub(super) const SYSRET_BASE: u16 = 0x10;

/// Traps with a stack of their own: their number in the task state segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TrapStack {
    /// Whatever stack is in use (ring 0) or the thread's (from ring 3).
    Current = 0,
    /// Double faults, and so stack overflows.
    DoubleFault = 1,
    /// Non-maskable interrupts.
    Nmi = 2,
    /// Machine checks.
    MachineCheck = 3,
}

const TRAP_STACKS: usize = 3;
const TRAP_STACK_BYTES: usize = 16 * 1024;

#[repr(C, packed(4))]
struct TaskState {
    reserved_0: u32,
    /// Stacks for rings 0 to 2; only the first is used.
    ring_stacks: [u64; 3],
    reserved_1: u64,
    trap_stacks: [u64; 7],
    reserved_2: u64,
    reserved_3: u16,
    /// Past the end: no I/O port is open to ring 3.
    io_map: u16,
}

#[expect(clippy::cast_possible_truncation, reason = "104")]
const TASK_STATE_BYTES: u16 = size_of::<TaskState>() as u16;

#[repr(C, align(16))]
struct Stack([u8; TRAP_STACK_BYTES]);

/// One CPU's tables. Written in [`init`] before the processor knows them; from then on the processor reads them, and
/// [`PerCpu::set_current`] writes the first ring stack.
struct Tables {
    segments: [u64; 7],
    task_state: TaskState,
    stacks: [Stack; TRAP_STACKS],
}

struct Shared(UnsafeCell<Tables>);

// SAFETY: only the CPU that the tables belong to touches them.
unsafe impl Sync for Shared {}

/// The boot CPU's tables.
static BOOT_CPU: Shared = Shared(UnsafeCell::new(Tables {
    segments: [0; 7],
    task_state: TaskState {
        reserved_0: 0,
        ring_stacks: [0; 3],
        reserved_1: 0,
        trap_stacks: [0; 7],
        reserved_2: 0,
        reserved_3: 0,
        io_map: TASK_STATE_BYTES,
    },
    stacks: [const { Stack([0; TRAP_STACK_BYTES]) }; TRAP_STACKS],
}));

const SEGMENT_KERNEL_CODE: u64 = 0x00af_9b00_0000_ffff;
const SEGMENT_KERNEL_DATA: u64 = 0x00cf_9300_0000_ffff;
const SEGMENT_USER_DATA: u64 = 0x00cf_f300_0000_ffff;
const SEGMENT_USER_CODE: u64 = 0x00af_fb00_0000_ffff;

/// The two descriptor words of a 64-bit task state segment at `base`.
const fn task_state_descriptor(base: u64) -> [u64; 2] {
    const AVAILABLE_TSS_PRESENT: u64 = 0x89;
    let limit = size_of::<TaskState>() as u64 - 1;
    let low = limit | (base & 0x00ff_ffff) << 16 | AVAILABLE_TSS_PRESENT << 40 | (base >> 24 & 0xff) << 56;
    [low, base >> 32]
}

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// Loads the boot CPU's segments and task state.
pub fn init(block: &PerCpu) {
    let tables = BOOT_CPU.0.get();
    // SAFETY: the boot CPU is the only user, and the processor does not know the tables yet.
    let tables = unsafe { &mut *tables };
    let [low, high] = task_state_descriptor((&raw const tables.task_state).addr() as u64);
    tables.segments = [
        0,
        SEGMENT_KERNEL_CODE,
        SEGMENT_KERNEL_DATA,
        SEGMENT_USER_DATA,
        SEGMENT_USER_CODE,
        low,
        high,
    ];
    let mut tops = [0; 7];
    for (top, stack) in tops.iter_mut().zip(&tables.stacks) {
        *top = core::ptr::from_ref(stack).addr() as u64 + TRAP_STACK_BYTES as u64;
    }
    tables.task_state.trap_stacks = tops;
    block.set_trap_stack_slot((&raw mut tables.task_state.ring_stacks).cast());
    #[expect(clippy::cast_possible_truncation, reason = "56 bytes")]
    let limit = size_of::<[u64; 7]>() as u16 - 1;
    let pointer = TablePointer {
        limit,
        base: tables.segments.as_ptr().addr() as u64,
    };
    load(&pointer);
}

fn load(pointer: &TablePointer) {
    // SAFETY: the table lives for ever, and its code and data segments are what long mode wants. FS and GS get null
    // selectors; their bases are set by registers of their own (GS's afterwards: loading a selector clears it).
    unsafe {
        asm!(
            "lgdt [{pointer}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ds, {data:x}",
            "mov es, {data:x}",
            "mov ss, {data:x}",
            "mov fs, {null:x}",
            "ltr {task:x}",
            pointer = in(reg) pointer,
            code = const KERNEL_CODE as u64,
            data = in(reg) KERNEL_DATA,
            null = in(reg) 0_u16,
            task = in(reg) TASK_STATE,
            scratch = out(reg) _,
        );
    }
}

/// Whether `address` lies in one of the boot CPU's trap stacks.
#[must_use]
pub fn is_trap_stack(address: u64) -> bool {
    let start = BOOT_CPU.0.get().addr() as u64;
    (start..start + size_of::<Tables>() as u64).contains(&address)
}
