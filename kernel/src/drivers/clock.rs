//! Time: nanoseconds since the kernel started, and the date.
//!
//! The time stamp counter is the clock. Its rate is measured once against channel 2 of the PIT, whose frequency is
//! fixed: both are read together at the start and at the end of a few milliseconds, and of several such readings
//! the one that took the least time counts, so that a host which stops the machine in between does no harm. Other
//! timers are measured against this clock in the same way ([`measure_rate`]). Under QEMU's instruction-count clock
//! all of them count the same virtual time, so the result is exact there.
//!
//! No locks: the rate is written once, before a second task exists.

use core::sync::atomic::{AtomicU64, Ordering};

use mm::Nanos;

use super::port::{inb, outb};

const PIT_HZ: u64 = 1_193_182;
const PIT_CHANNEL_2: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;
/// Channel 2, both bytes, mode 0: counts down once from what is written.
const PIT_ONE_SHOT: u8 = 0b1011_0000;
/// Freezes channel 2's count for the next two reads.
const PIT_LATCH: u8 = 0b1000_0000;
const SPEAKER_CONTROL: u16 = 0x61;
const SPEAKER_GATE: u8 = 1;
const SPEAKER_ON: u8 = 2;
/// Length of a measurement in counter steps of unknown length: 4 to 8 ms on the processors there are.
const WINDOW_TICKS: u64 = 16_000_000;
/// Readings of which the quickest counts.
const READINGS: usize = 8;

const CMOS_INDEX: u16 = 0x70;
const CMOS_DATA: u16 = 0x71;

/// Nanoseconds per counter step, as a 32.32 fixed-point number; 0 until measured.
static NANOS_PER_TICK: AtomicU64 = AtomicU64::new(0);
/// Counter value at [`init`].
static EPOCH: AtomicU64 = AtomicU64::new(0);
/// Seconds since 1970 at counter value [`EPOCH`].
static BOOT_DATE: AtomicU64 = AtomicU64::new(0);

/// Reads the time stamp counter.
#[must_use]
pub fn ticks() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Returns the time since the kernel started. Zero until the rate is known.
#[must_use]
pub fn now() -> Nanos {
    let elapsed = ticks().wrapping_sub(EPOCH.load(Ordering::Relaxed));
    Nanos(ticks_to_nanos(elapsed))
}

/// Converts counter steps to nanoseconds.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "584 years of nanoseconds fit 64 bits"
)]
pub fn ticks_to_nanos(ticks: u64) -> u64 {
    ((u128::from(ticks) * u128::from(NANOS_PER_TICK.load(Ordering::Relaxed))) >> 32) as u64
}

/// Returns the date: time since 1970 in UTC, as the real-time clock had it at start plus what has passed.
#[must_use]
pub fn wall_clock() -> Nanos {
    Nanos(BOOT_DATE.load(Ordering::Relaxed) * 1_000_000_000 + now().0)
}

/// Measures the counter's rate and reads the date.
pub fn init() {
    let epoch = ticks();
    EPOCH.store(epoch, Ordering::Relaxed);
    start_pit();
    let start = read_beside_tsc(read_pit);
    while ticks().wrapping_sub(start.ticks) < WINDOW_TICKS {
        core::hint::spin_loop();
    }
    let end = read_beside_tsc(read_pit);
    // It counts down.
    let pit_steps = u64::from((start.value - end.value) & 0xffff).max(1);
    let nanos = u128::from(pit_steps) * 1_000_000_000 / u128::from(PIT_HZ);
    let per_tick = (nanos << 32) / u128::from(end.ticks - start.ticks);
    NANOS_PER_TICK.store(u64::try_from(per_tick).unwrap_or(u64::MAX), Ordering::Relaxed);
    BOOT_DATE.store(rtc::read_unix_seconds(), Ordering::Relaxed);
}

/// Returns the counter's rate in kHz.
#[must_use]
pub fn tsc_khz() -> u64 {
    (1_000_000 << 32) / NANOS_PER_TICK.load(Ordering::Relaxed).max(1)
}

/// A counter's value and the moment it had it.
#[derive(Clone, Copy, Debug)]
struct Reading {
    ticks: u64,
    value: u32,
}

/// Reads a counter several times and returns the reading that took the least time.
fn read_beside_tsc(read: impl Fn() -> u32) -> Reading {
    let mut best = (u64::MAX, Reading { ticks: 0, value: 0 });
    for _ in 0..READINGS {
        let before = ticks();
        let value = read();
        let took = ticks() - before;
        if took < best.0 {
            best = (
                took,
                Reading {
                    ticks: before + took / 2,
                    value,
                },
            );
        }
    }
    best.1
}

/// Lets channel 2 of the PIT count down from its largest value: 55 ms.
fn start_pit() {
    // SAFETY: reading the speaker's control port has no effect.
    let speaker = unsafe { inb(SPEAKER_CONTROL) } & !(SPEAKER_GATE | SPEAKER_ON);
    let sequence = [
        (SPEAKER_CONTROL, speaker | SPEAKER_GATE),
        (PIT_COMMAND, PIT_ONE_SHOT),
        (PIT_CHANNEL_2, 0xff),
        (PIT_CHANNEL_2, 0xff),
    ];
    for (port, value) in sequence {
        // SAFETY: programs channel 2 and the speaker's gate, which nothing else uses.
        unsafe { outb(port, value) };
    }
}

fn read_pit() -> u32 {
    // SAFETY: freezes channel 2's count, which nothing else uses.
    unsafe { outb(PIT_COMMAND, PIT_LATCH) };
    let bytes = [(); 2].map(|()| {
        // SAFETY: reads one byte of the frozen count.
        unsafe { inb(PIT_CHANNEL_2) }
    });
    u32::from(u16::from_le_bytes(bytes))
}

/// Measures a counter that runs upwards, and returns its steps per nanosecond as a 32.32 fixed-point number.
pub fn measure_rate(read: impl Fn() -> u32) -> u64 {
    let start = read_beside_tsc(&read);
    spin_for(ticks_to_nanos(WINDOW_TICKS));
    let end = read_beside_tsc(&read);
    let nanos = ticks_to_nanos(end.ticks - start.ticks).max(1);
    (u64::from(end.value.wrapping_sub(start.value)) << 32) / nanos
}

/// Lets `nanos` pass without giving the CPU away.
pub fn spin_for(nanos: u64) {
    let end = now().0 + nanos;
    while now().0 < end {
        core::hint::spin_loop();
    }
}

/// The battery-backed clock.
mod rtc {
    use super::{CMOS_DATA, CMOS_INDEX, inb, outb};

    const SECONDS: u8 = 0;
    const MINUTES: u8 = 2;
    const HOURS: u8 = 4;
    const DAY: u8 = 7;
    const MONTH: u8 = 8;
    const YEAR: u8 = 9;
    const STATUS_A: u8 = 0xa;
    const STATUS_B: u8 = 0xb;
    const UPDATE_IN_PROGRESS: u8 = 0x80;
    const BINARY: u8 = 4;
    const HOURS_24: u8 = 2;
    const PM: u8 = 0x80;

    fn read(register: u8) -> u8 {
        // SAFETY: selects a clock register; the other bits keep NMI on.
        unsafe { outb(CMOS_INDEX, register) };
        // SAFETY: reading a clock register has no effect.
        unsafe { inb(CMOS_DATA) }
    }

    fn read_fields() -> [u8; 6] {
        while read(STATUS_A) & UPDATE_IN_PROGRESS != 0 {
            core::hint::spin_loop();
        }
        [SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR].map(read)
    }

    /// Returns seconds since 1970. The clock counts UTC; two-digit years are of this century.
    pub(super) fn read_unix_seconds() -> u64 {
        // Two equal readings: an update between two registers cannot go unnoticed.
        let mut fields = read_fields();
        loop {
            let again = read_fields();
            if again == fields {
                break;
            }
            fields = again;
        }
        let status = read(STATUS_B);
        let decode = |value: u8| {
            let value = u64::from(value);
            if status & BINARY != 0 {
                value
            } else {
                (value >> 4) * 10 + (value & 15)
            }
        };
        let [second, minute, hour, day, month, year] = fields;
        let mut hours = decode(hour & !PM);
        if status & HOURS_24 == 0 {
            hours = hours % 12 + if hour & PM != 0 { 12 } else { 0 };
        }
        let days = days_since_1970(2000 + decode(year), decode(month).max(1), decode(day).max(1));
        ((days * 24 + hours) * 60 + decode(minute)) * 60 + decode(second)
    }

    /// Days from 1970-01-01 to a date of the Gregorian calendar, counted in years that begin in March so that the
    /// leap day is the last.
    const fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
        let (year, month) = if month > 2 {
            (year, month - 3)
        } else {
            (year - 1, month + 9)
        };
        let days_before_month = (153 * month + 2) / 5;
        year * 365 + year / 4 - year / 100 + year / 400 + days_before_month + day - 1 - 719_468
    }

    const _: () = assert!(days_since_1970(1970, 1, 1) == 0);
    const _: () = assert!(days_since_1970(2000, 3, 1) == 11_017);
    const _: () = assert!(days_since_1970(2026, 11, 20) == 20_777);
}
