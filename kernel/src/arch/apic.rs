//! Interrupt controllers: the local APIC with its timer, and the I/O APIC that routes the serial ports.
//!
//! The timer is set for one moment at a time ([`set_timer`]): the end of the time slice or the next deadline, whatever
//! comes first; an idle machine without deadlines gets no interrupt at all. Under TCG the local APIC is reached through
//! its page; where the processor has the x2APIC its registers are used instead.
//!
//! Handlers set flags in [`percpu`] and acknowledge; they take no lock.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use mm::{Nanos, VirtAddr, addr::to_usize};

use super::{
    acpi::Topology,
    cpu::{self, Features},
    msr::Msr,
    paging::{self, NoTable},
    percpu::{self, Pending},
};
use crate::{
    boot::early::EarlyMemory,
    drivers::{clock, uart},
};

const TIMER_VECTOR: u8 = 0x40;
const COM1_VECTOR: u8 = 0x44;
const COM2_VECTOR: u8 = 0x43;
const SPURIOUS_VECTOR: u8 = 0xff;
/// Old lines of the serial ports.
const COM1_LINE: usize = 4;
const COM2_LINE: usize = 3;

const REGISTER_EOI: u32 = 0xb0;
const REGISTER_SPURIOUS: u32 = 0xf0;
const REGISTER_TIMER: u32 = 0x320;
const REGISTER_TIMER_INITIAL: u32 = 0x380;
const REGISTER_TIMER_CURRENT: u32 = 0x390;
const REGISTER_TIMER_DIVIDER: u32 = 0x3e0;
const SOFTWARE_ENABLE: u32 = 1 << 8;
const DIVIDE_BY_16: u32 = 3;
const MASKED: u32 = 1 << 16;

const APIC_BASE_ENABLE: u64 = 1 << 11;
const APIC_BASE_X2APIC: u64 = 1 << 10;

/// Shortest time the timer is set for: a moment that has passed still gives an interrupt.
const MIN_TIMER_STEPS: u64 = 1;

/// The local APIC's page; 0 where registers are used.
static LOCAL: AtomicU64 = AtomicU64::new(0);
/// Timer steps per nanosecond, as a 32.32 fixed-point number.
static STEPS_PER_NANO: AtomicU64 = AtomicU64::new(0);
/// Timer interrupts so far.
static TICKS: AtomicU64 = AtomicU64::new(0);
/// Interrupts on vectors nobody uses.
static UNEXPECTED: AtomicU32 = AtomicU32::new(0);

fn read(register: u32) -> u32 {
    match LOCAL.load(Ordering::Relaxed) {
        #[expect(clippy::cast_possible_truncation, reason = "the register has 32 bits")]
        // SAFETY: in this mode every APIC register is a model-specific register.
        0 => unsafe { Msr::x2apic(register).read() as u32 },
        // SAFETY: the page is mapped uncached; reading a register has no effect.
        page => unsafe { register_pointer(page, register).read_volatile() },
    }
}

fn write(register: u32, value: u32) {
    match LOCAL.load(Ordering::Relaxed) {
        // SAFETY: in this mode every APIC register is a model-specific register.
        0 => unsafe { Msr::x2apic(register).write(value.into()) },
        // SAFETY: the page is mapped uncached; this module alone writes it.
        page => unsafe { register_pointer(page, register).write_volatile(value) },
    }
}

fn register_pointer(page: u64, register: u32) -> *mut u32 {
    core::ptr::with_exposed_provenance_mut(to_usize(page + u64::from(register)))
}

/// Switches this CPU's local APIC on, measures its timer and routes the serial ports.
///
/// # Errors
/// The early memory is too small to map the registers.
pub fn init(topology: &Topology, memory: &mut EarlyMemory) -> Result<(), NoTable> {
    let x2apic = cpu::features().contains(Features::X2APIC);
    // SAFETY: every processor with long mode has the register.
    let base = unsafe { Msr::APIC_BASE.read() };
    let mode = if x2apic {
        APIC_BASE_ENABLE | APIC_BASE_X2APIC
    } else {
        APIC_BASE_ENABLE
    };
    // SAFETY: switches the local APIC on in a mode that the processor has.
    unsafe { Msr::APIC_BASE.write(base | mode) };
    if !x2apic {
        let page = paging::map_device(topology.local_apic, memory)?;
        LOCAL.store(page.as_u64(), Ordering::Relaxed);
    }
    write(REGISTER_SPURIOUS, SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR));
    measure_timer();
    let io_apic = IoApic {
        page: paging::map_device(topology.io_apic, memory)?,
    };
    io_apic.route(topology.isa_inputs[COM1_LINE], COM1_VECTOR);
    io_apic.route(topology.isa_inputs[COM2_LINE], COM2_VECTOR);
    Ok(())
}

fn measure_timer() {
    write(REGISTER_TIMER_DIVIDER, DIVIDE_BY_16);
    write(REGISTER_TIMER, MASKED | u32::from(TIMER_VECTOR));
    write(REGISTER_TIMER_INITIAL, u32::MAX);
    // It counts down.
    let rate = clock::measure_rate(|| u32::MAX - read(REGISTER_TIMER_CURRENT));
    STEPS_PER_NANO.store(rate, Ordering::Relaxed);
    write(REGISTER_TIMER_INITIAL, 0);
    write(REGISTER_TIMER, u32::from(TIMER_VECTOR));
}

/// The timer's rate in kHz.
#[must_use]
pub fn timer_khz() -> u64 {
    (STEPS_PER_NANO.load(Ordering::Relaxed) * 1_000_000) >> 32
}

/// Sets this CPU's timer to fire at `deadline`, or never. What was set before is forgotten.
pub fn set_timer(deadline: Option<Nanos>) {
    let steps = deadline.map_or(0, |deadline| {
        let nanos = deadline.0.saturating_sub(clock::now().0);
        let steps = (u128::from(nanos) * u128::from(STEPS_PER_NANO.load(Ordering::Relaxed))) >> 32;
        // A moment too far for the register gives an early interrupt, which sets the timer again.
        u32::try_from(steps.max(MIN_TIMER_STEPS.into())).unwrap_or(u32::MAX)
    });
    write(REGISTER_TIMER_INITIAL, steps);
}

/// Timer interrupts so far, on all CPUs.
#[must_use]
pub fn ticks() -> u64 {
    TICKS.load(Ordering::Relaxed)
}

/// Interrupts that nobody expected, so far.
#[must_use]
pub fn unexpected_interrupts() -> u32 {
    UNEXPECTED.load(Ordering::Relaxed)
}

/// Handles the interrupt on `vector`. Interrupt context.
pub(super) fn interrupt(vector: u64) {
    let block = percpu::this();
    match u8::try_from(vector) {
        Ok(TIMER_VECTOR) => {
            TICKS.fetch_add(1, Ordering::Relaxed);
            block.ask(Pending::TIMER);
        }
        Ok(COM1_VECTOR) => {
            uart::com1_interrupt();
            block.ask(Pending::UART);
        }
        Ok(COM2_VECTOR) => {
            uart::com2_interrupt();
            block.ask(Pending::UART);
        }
        // A spurious interrupt is not acknowledged.
        Ok(SPURIOUS_VECTOR) => return,
        _ => {
            UNEXPECTED.fetch_add(1, Ordering::Relaxed);
        }
    }
    write(REGISTER_EOI, 0);
}

/// The I/O APIC's two registers: which entry, and its value.
struct IoApic {
    page: VirtAddr,
}

impl IoApic {
    const SELECT: u32 = 0;
    const WINDOW: u32 = 0x10;
    const FIRST_ENTRY: u32 = 0x10;

    fn write(&self, register: u32, value: u32) {
        let page = self.page.as_u64();
        // SAFETY: the page is mapped uncached; nobody else uses it.
        unsafe { register_pointer(page, Self::SELECT).write_volatile(register) };
        // SAFETY: as above.
        unsafe { register_pointer(page, Self::WINDOW).write_volatile(value) };
    }

    /// Sends `input` to `vector` of the boot CPU, edge triggered, active high: the old bus's way.
    fn route(&self, input: u8, vector: u8) {
        let entry = Self::FIRST_ENTRY + 2 * u32::from(input);
        self.write(entry + 1, boot_cpu_apic_id() << 24);
        self.write(entry, vector.into());
    }
}

fn boot_cpu_apic_id() -> u32 {
    const INITIAL_ID: u32 = 24;
    core::arch::x86_64::__cpuid_count(1, 0).ebx >> INITIAL_ID
}
