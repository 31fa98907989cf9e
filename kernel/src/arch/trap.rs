//! Traps: exceptions and interrupts, from the vector to Rust and back.
//!
//! ```text
//!   stub n:  [error code or 0], n ----> common:  SWAPGS if from ring 3, save registers, call `trap_entry`
//!                                                 from ring 3: `exit_to_user` (work, slice), SWAPGS, IRETQ
//!            NMI, #DF, #MC ----------> paranoid: GS decided by its value, because they may come between
//!                                                 an entry and its SWAPGS
//! ```
//! An *interrupt* handler sets flags and returns. An *exception* of a program becomes a page fault for `mm` or the
//! end of the program (`task::fault`). An exception of the kernel itself is either a user copy that has a fixup
//! ([`super::user_copy`]) or the end of the kernel.
//!
//! Interrupts are off in every handler until an exception from ring 3 turns them on.

use core::{arch::global_asm, fmt};

use super::{
    apic, cpu,
    gdt::{USER_CODE, USER_DATA},
    user_copy,
};
use crate::{panic, task};

/// Divide error.
pub const DIVIDE: u8 = 0;
/// Debug.
pub const DEBUG: u8 = 1;
/// Non-maskable interrupt.
pub const NMI: u8 = 2;
/// INT3.
pub const BREAKPOINT: u8 = 3;
/// INTO.
pub const OVERFLOW: u8 = 4;
/// Invalid opcode.
pub const INVALID_OPCODE: u8 = 6;
/// A fault while a fault was being delivered.
pub const DOUBLE_FAULT: u8 = 8;
/// Stack segment fault.
pub const STACK_SEGMENT: u8 = 12;
/// General protection.
pub const GENERAL_PROTECTION: u8 = 13;
/// Page fault.
pub const PAGE_FAULT: u8 = 14;
/// x87 error.
pub const X87: u8 = 16;
/// Alignment check.
pub const ALIGNMENT: u8 = 17;
/// Machine check.
pub const MACHINE_CHECK: u8 = 18;
/// SSE error.
pub const SIMD: u8 = 19;

const EXCEPTIONS: u64 = 32;
/// In the place of the vector: this frame is of a system call.
pub const SYSCALL_VECTOR: u64 = 0x100;

/// Names of the exceptions, as the manuals abbreviate them.
const NAMES: [&str; 22] = [
    "#DE divide error",
    "#DB debug",
    "NMI",
    "#BP breakpoint",
    "#OF overflow",
    "#BR bound range",
    "#UD invalid opcode",
    "#NM no coprocessor",
    "#DF double fault",
    "coprocessor segment overrun",
    "#TS invalid task state",
    "#NP segment not present",
    "#SS stack segment",
    "#GP general protection",
    "#PF page fault",
    "reserved",
    "#MF x87 error",
    "#AC alignment check",
    "#MC machine check",
    "#XM SIMD error",
    "#VE virtualisation",
    "#CP control protection",
];

/// Flags that a program may have: carry to overflow, direction, trace, alignment check, identification.
const USER_FLAGS: u64 = 0x0024_0dd5;
/// Flags that are always set in ring 3: interrupts on, and the bit that is always 1.
const USER_FLAGS_SET: u64 = 0x202;

/// All registers of what was interrupted: Linux's `pt_regs`, with the vector beside the error code.
///
/// For a system call `vector` is [`SYSCALL_VECTOR`] and the error code's place holds the number as the program gave
/// it, so that RAX can take the result.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the registers' own names")]
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    vector: u64,
    error_code: u64,
    pub rip: u64,
    cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    ss: u64,
}

/// Offsets for the assembly.
const CS: usize = core::mem::offset_of!(TrapFrame, cs);
const _: () = assert!(CS == 18 * 8 && size_of::<TrapFrame>() == 22 * 8);

impl TrapFrame {
    /// Returns the registers with which a program begins: all zero but instruction and stack pointer.
    #[must_use]
    pub fn new_user(rip: mm::VirtAddr, rsp: mm::VirtAddr) -> Self {
        Self {
            rip: rip.as_u64(),
            rsp: rsp.as_u64(),
            cs: u64::from(USER_CODE),
            ss: u64::from(USER_DATA),
            rflags: USER_FLAGS_SET,
            vector: SYSCALL_VECTOR,
            ..Self::ZERO
        }
    }

    const ZERO: Self = Self {
        r15: 0,
        r14: 0,
        r13: 0,
        r12: 0,
        rbp: 0,
        rbx: 0,
        r11: 0,
        r10: 0,
        r9: 0,
        r8: 0,
        rax: 0,
        rcx: 0,
        rdx: 0,
        rsi: 0,
        rdi: 0,
        vector: 0,
        error_code: 0,
        rip: 0,
        cs: 0,
        rflags: 0,
        rsp: 0,
        ss: 0,
    };

    /// Whether this is a program's.
    #[must_use]
    pub const fn is_user(&self) -> bool {
        self.cs & 3 == 3
    }

    /// The exception or interrupt, or [`SYSCALL_VECTOR`].
    #[must_use]
    pub const fn vector(&self) -> u64 {
        self.vector
    }

    /// What the processor said about the exception; 0 where it says nothing.
    #[must_use]
    pub const fn error_code(&self) -> u64 {
        self.error_code
    }

    /// The system call's number as the program gave it. Meaningful in a system call only.
    #[must_use]
    pub const fn syscall_number(&self) -> u64 {
        self.error_code
    }

    /// The system call's arguments as the program gave them: raw numbers until a checked constructor took them.
    #[must_use]
    pub const fn syscall_args(&self) -> [u64; 6] {
        [self.rdi, self.rsi, self.rdx, self.r10, self.r8, self.r9]
    }

    /// The exception's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match usize::try_from(self.vector)
            .ok()
            .and_then(|vector| NAMES.get(vector))
        {
            Some(name) => name,
            None if self.vector == SYSCALL_VECTOR => "system call",
            None => "interrupt",
        }
    }

    /// Forces what ring 3 may not choose: segments and system flags.
    const fn sanitize(&mut self) {
        self.cs = USER_CODE as u64;
        self.ss = USER_DATA as u64;
        self.rflags = self.rflags & USER_FLAGS | USER_FLAGS_SET;
    }
}

impl fmt::Display for TrapFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let f_flags = self.rflags;
        writeln!(
            f,
            "  rip {:016x}  rsp {:016x}  rflags {f_flags:08x}",
            self.rip, self.rsp
        )?;
        writeln!(
            f,
            "  rax {:016x}  rbx {:016x}  rcx {:016x}  rdx {:016x}",
            self.rax, self.rbx, self.rcx, self.rdx
        )?;
        writeln!(
            f,
            "  rsi {:016x}  rdi {:016x}  rbp {:016x}  r8  {:016x}",
            self.rsi, self.rdi, self.rbp, self.r8
        )?;
        writeln!(
            f,
            "  r9  {:016x}  r10 {:016x}  r11 {:016x}  r12 {:016x}",
            self.r9, self.r10, self.r11, self.r12
        )?;
        writeln!(
            f,
            "  r13 {:016x}  r14 {:016x}  r15 {:016x}",
            self.r13, self.r14, self.r15
        )?;
        write!(
            f,
            "  cs {:x}  ss {:x}  vector {:#x}  error code {:#x}",
            self.cs, self.ss, self.vector, self.error_code
        )
    }
}

/// Pushes the general registers as [`TrapFrame`] wants them.
macro_rules! save_registers {
    () => {
        "push rdi; push rsi; push rdx; push rcx; push rax; push r8; push r9; push r10; push r11; \
         push rbx; push rbp; push r12; push r13; push r14; push r15"
    };
}
/// Pops what [`save_registers`] pushed.
macro_rules! restore_registers {
    () => {
        "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx; \
         pop r11; pop r10; pop r9; pop r8; pop rax; pop rcx; pop rdx; pop rsi; pop rdi"
    };
}
pub(super) use restore_registers;
pub(super) use save_registers;

global_asm!(
    // AT&T syntax: in Intel syntax a pushed symbol would be a memory operand.
    ".pushsection .text.trap_stubs, \"ax\", @progbits",
    ".balign 16",
    ".globl trap_stubs",
    "trap_stubs:",
    ".set trap_vector, 0",
    ".rept 256",
    ".balign 16",
    // Vectors with an error code: 8, 10 to 14, 17, 21, 29, 30.
    ".if (trap_vector != 8) && (trap_vector != 10) && (trap_vector != 11) && (trap_vector != 12) && (trap_vector != 13) && (trap_vector != 14) && (trap_vector != 17) && (trap_vector != 21) && (trap_vector != 29) && (trap_vector != 30)",
    "pushq $0",
    ".endif",
    "pushq $trap_vector",
    ".if (trap_vector == 2) || (trap_vector == 8) || (trap_vector == 18)",
    "jmp trap_paranoid",
    ".else",
    "jmp trap_common",
    ".endif",
    ".set trap_vector, trap_vector + 1",
    ".endr",
    ".popsection",
    options(att_syntax)
);

global_asm!(
    ".pushsection .text.trap_common, \"ax\", @progbits",
    "trap_common:",
    "cld",
    "test byte ptr [rsp + 24], 3",
    "jz 2f",
    "swapgs",
    "2:",
    save_registers!(),
    "mov rdi, rsp",
    "call {entry}",
    "test byte ptr [rsp + {cs}], 3",
    "jnz trap_return_user",
    restore_registers!(),
    "add rsp, 16",
    "iretq",

    ".globl trap_return_user",
    "trap_return_user:",
    restore_registers!(),
    "add rsp, 16",
    "swapgs",
    "iretq",

    "trap_paranoid:",
    "cld",
    save_registers!(),
    // The kernel's GS base is in the upper half, a program's in the lower.
    "mov ecx, 0xc0000101",
    "rdmsr",
    "xor ebx, ebx",
    "test edx, edx",
    "js 2f",
    "swapgs",
    "mov ebx, 1",
    "2:",
    "mov rdi, rsp",
    "call {paranoid}",
    "test ebx, ebx",
    "jz 3f",
    "swapgs",
    "3:",
    restore_registers!(),
    "add rsp, 16",
    "iretq",
    ".popsection",
    entry = sym trap_entry,
    paranoid = sym paranoid_entry,
    cs = const CS,
);

unsafe extern "C" {
    static trap_stubs: [[u8; 16]; 256];
    fn trap_return_user() -> !;
}

/// Returns the address of a vector's entry stub.
pub(super) fn entry_of(vector: u8) -> u64 {
    (&raw const trap_stubs).addr() as u64 + u64::from(vector) * 16
}

extern "C" fn trap_entry(frame: &mut TrapFrame) {
    // A fault in a user copy arrives with access to user pages still open.
    user_copy::close_access();
    if frame.vector < EXCEPTIONS {
        exception(frame);
    } else {
        apic::interrupt(frame.vector);
    }
    if frame.is_user() {
        exit_to_user(frame);
    }
}

extern "C" fn paranoid_entry(frame: &mut TrapFrame) {
    // None of the three can be survived: a double fault and a machine check say that state is lost, and nobody sends
    // NMIs on purpose.
    panic::fatal_trap(frame, 0)
}

fn exception(frame: &mut TrapFrame) {
    let fault_address = cpu::read_cr2();
    if frame.is_user() {
        super::interrupts_on();
        task::fault::user_exception(frame, fault_address);
        return;
    }
    if frame.vector == u64::from(PAGE_FAULT) && user_copy::resolve(frame, fault_address) {
        return;
    }
    panic::fatal_trap(frame, fault_address)
}

/// Does what is due before a return to ring 3, and leaves interrupts off.
///
/// # Context
/// May wait; may not come back, if the thread is to end.
pub(super) fn exit_to_user(frame: &mut TrapFrame) {
    loop {
        super::interrupts_off();
        if !task::sched::needs_attention() {
            break;
        }
        super::interrupts_on();
        task::sched::attend();
    }
    frame.sanitize();
    if frame.rip >= mm::USER_END {
        // Neither IRETQ nor SYSRET may see such an address: the fault would be the kernel's.
        super::interrupts_on();
        task::fault::bad_return_address(frame);
        exit_to_user(frame);
    }
}

/// Leaves the kernel for the program that `frame` describes. What is on the kernel stack is forgotten.
pub fn enter_user(frame: TrapFrame) -> ! {
    let mut frame = frame;
    exit_to_user(&mut frame);
    // SAFETY: the frame is sane and interrupts are off; the next entry into the kernel begins at the stack's top, so
    // nothing below it is needed any more.
    unsafe {
        core::arch::asm!(
            "mov rsp, {frame}",
            "jmp {target}",
            frame = in(reg) &raw const frame,
            target = sym trap_return_user,
            options(noreturn)
        );
    }
}
