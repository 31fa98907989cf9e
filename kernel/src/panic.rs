//! The end of a kernel that cannot go on: a report, a backtrace for the host to symbolise, the panic code.
//!
//! The report goes out without taking any lock, because whoever holds it will not run again. A second failure while
//! reporting ends the machine at once.

use core::{
    arch::asm,
    fmt::{self, Write},
    panic::PanicInfo,
    sync::atomic::{AtomicU32, Ordering},
};

use linux_abi::wire::record;

use crate::{
    arch::{self, gdt, kstack, paging, percpu, trap, trap::TrapFrame},
    boot::early::WINDOW_BASE,
    drivers::{
        host::{self, End},
        uart::PanicLine,
    },
    log::{self, Level},
};

/// Bad ends on purpose, for tests: the monitor's command and the command-line word `crash=`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// A panic.
    Panic,
    /// The kernel stack runs over.
    Stack,
    /// A page fault of the kernel.
    Fault,
    /// Nothing happens any more.
    Hang,
}

impl Crash {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Panic, "panic"),
        (Self::Stack, "stack"),
        (Self::Fault, "fault"),
        (Self::Hang, "hang"),
    ];

    /// Returns the end called `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(crash, _)| *crash)
    }
}

/// Ends badly.
pub fn crash(how: Crash) -> ! {
    match how {
        Crash::Panic => panic!("asked to panic"),
        Crash::Stack => {
            let _ = run_over(0);
        }
        Crash::Fault => {
            /// In the hole between the window and the kernel stacks: nothing is ever mapped there.
            const NOWHERE: u64 = 0xffff_b000_dead_b000;
            let nowhere = core::ptr::with_exposed_provenance::<u8>(mm::addr::to_usize(NOWHERE));
            // SAFETY: not sound, on purpose: it must fault, and the kernel ends there.
            unsafe { nowhere.read_volatile() };
        }
        Crash::Hang => {}
    }
    arch::halt_forever()
}

/// Calls itself until the stack is used up.
#[inline(never)]
#[expect(unconditional_recursion, reason = "the end of the stack is what it is for")]
fn run_over(depth: u64) -> u64 {
    let mut room = [depth; 64];
    let room = core::hint::black_box(&mut room);
    room[0] = run_over(depth + 1);
    room.iter().fold(0, |sum, word| sum ^ word)
}

/// Failures so far: the first is reported, a second one during the report ends the machine.
static FAILURES: AtomicU32 = AtomicU32::new(0);

/// Most return addresses in a backtrace.
const MAX_DEPTH: usize = 64;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    arch::interrupts_off();
    let frame_pointer: u64;
    // SAFETY: reads a register; the kernel is compiled with frame pointers.
    unsafe { asm!("mov {}, rbp", out(reg) frame_pointer, options(nomem, nostack, preserves_flags)) };
    let place = info.location();
    report(frame_pointer, None, |line| {
        let _ = log::format_line(
            line,
            Level::Error,
            format_args!("kernel panic: {}", info.message()),
        );
        if let Some(place) = place {
            let _ = writeln!(line, "  at {place}");
        }
    })
}

/// Ends the kernel because of an exception of its own.
pub fn fatal_trap(frame: &TrapFrame, fault_address: u64) -> ! {
    arch::interrupts_off();
    let address = arch::cpu::read_cr2();
    let overflow = frame.vector() == u64::from(trap::DOUBLE_FAULT) && kstack::is_guard(address);
    let is_page_fault = frame.vector() == u64::from(trap::PAGE_FAULT);
    report(frame.rbp, Some(frame.rip), |line| {
        let _ = if overflow {
            log::format_line(
                line,
                Level::Error,
                format_args!(
                    "kernel panic: stack overflow: the kernel stack ran into its guard page at {address:#x}"
                ),
            )
        } else if is_page_fault {
            log::format_line(
                line,
                Level::Error,
                format_args!("kernel panic: {} at {fault_address:#x}", frame.name()),
            )
        } else {
            log::format_line(line, Level::Error, format_args!("kernel panic: {}", frame.name()))
        };
        let _ = writeln!(line, "{frame}");
        if overflow || is_page_fault || frame.vector() == u64::from(trap::DOUBLE_FAULT) {
            let _ = writeln!(line, "  page-table walk of {address:#x}:");
            let _ = paging::write_walk(line, address);
        }
    })
}

/// Writes a report, sends the backtrace, and ends the machine with the panic code.
fn report(frame_pointer: u64, ip: Option<u64>, write: impl FnOnce(&mut dyn Write)) -> ! {
    if FAILURES.fetch_add(1, Ordering::AcqRel) > 0 {
        let _ = writeln!(PanicLine, "kernel panic: failed again while reporting");
        host::end(End::Panic);
    }
    write(&mut PanicLine);
    if percpu::is_ready() {
        let _ = write_task(&mut PanicLine);
    }
    let mut addresses = Addresses {
        bytes: [0; MAX_DEPTH * 8],
        len: 0,
    };
    ip.into_iter().for_each(|ip| addresses.push(ip));
    walk_frames(frame_pointer, &mut addresses);
    let _ = write_addresses(&mut PanicLine, &addresses);
    host::send_record_in_panic(record::BACKTRACE, &[addresses.as_bytes()]);
    host::end(End::Panic)
}

fn write_task(line: &mut dyn Write) -> fmt::Result {
    let block = percpu::this();
    if block.current().is_null() {
        return writeln!(line, "  on cpu {}, before threads", block.id().index());
    }
    writeln!(
        line,
        "  on cpu {} in {:?}",
        block.id().index(),
        *crate::task::thread::current()
    )
}

fn write_addresses(line: &mut dyn Write, addresses: &Addresses) -> fmt::Result {
    write!(line, "  backtrace:")?;
    addresses
        .iter()
        .try_for_each(|address| write!(line, " {address:#x}"))?;
    writeln!(line)
}

/// Return addresses as the record wants them.
struct Addresses {
    bytes: [u8; MAX_DEPTH * 8],
    len: usize,
}

impl Addresses {
    /// Appends an address. Of a run of equal ones (a function that calls itself) the first few stand for all, so that
    /// the rest of the way shows how it began.
    fn push(&mut self, address: u64) {
        const MAX_REPEATS: usize = 3;
        let bytes = address.to_le_bytes();
        if self
            .as_bytes()
            .rchunks_exact(8)
            .take_while(|last| **last == bytes)
            .count()
            >= MAX_REPEATS
        {
            return;
        }
        if let Some(slot) = self.bytes.get_mut(self.len..self.len + 8) {
            slot.copy_from_slice(&bytes);
            self.len += 8;
        }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn iter(&self) -> impl Iterator<Item = u64> {
        let words = self.as_bytes().as_chunks::<8>().0;
        words.iter().map(|word| u64::from_le_bytes(*word))
    }
}

/// Follows frame pointers outwards: `[rbp]` is the caller's, `[rbp + 8]` the return address.
fn walk_frames(mut frame_pointer: u64, addresses: &mut Addresses) {
    /// Enough for a whole kernel stack of the smallest frames.
    const MAX_FRAMES: usize = 2048;
    for _ in 0..MAX_FRAMES {
        if !is_readable(frame_pointer) {
            return;
        }
        let words = core::ptr::with_exposed_provenance::<[u64; 2]>(mm::addr::to_usize(frame_pointer));
        // SAFETY: aligned, in the kernel's half, and both words are mapped.
        let [next, return_address] = unsafe { words.read_volatile() };
        if return_address < WINDOW_BASE {
            return;
        }
        addresses.push(return_address);
        // Stacks grow down: a caller's frame lies higher, except where a trap changed stacks.
        if next <= frame_pointer && !gdt::is_trap_stack(frame_pointer) {
            return;
        }
        frame_pointer = next;
    }
}

/// Whether two words can be read there.
fn is_readable(address: u64) -> bool {
    let is_mapped =
        |address| mm::VirtAddr::try_new(address).is_ok_and(|address| paging::translate(address).is_some());
    address >= WINDOW_BASE
        && address.is_multiple_of(8)
        && address < u64::MAX - 16
        && is_mapped(address)
        && is_mapped(address + 8)
}
