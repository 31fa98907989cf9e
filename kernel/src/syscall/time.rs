//! Clocks and sleeping.

use linux_abi::{errno::Errno, raw::general as abi};
use mm::Nanos;

use super::{
    Call, Result,
    fields::{Fields, words},
    unsupported,
    user::UserAddr,
};
use crate::{
    drivers::clock,
    task::{process, sched},
};

/// Steps a second of `times` and of `AT_CLKTCK`.
pub const USER_HZ: u64 = 100;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A time that a program gave: seconds and nanoseconds, checked.
fn read_timespec(addr: UserAddr) -> core::result::Result<Nanos, Errno> {
    let [seconds, nanos] = words(addr.read::<16>()?);
    if i64::try_from(seconds).is_err() || nanos >= NANOS_PER_SECOND {
        return Err(Errno::EINVAL);
    }
    // Centuries are for ever.
    Ok(Nanos(
        seconds.saturating_mul(NANOS_PER_SECOND).saturating_add(nanos),
    ))
}

/// Reads a relative timeout and returns when it is over; `None` for a null pointer, which means never.
pub(super) fn read_deadline(raw: u64) -> core::result::Result<Option<Nanos>, Errno> {
    let Some(addr) = UserAddr::optional(raw)? else {
        return Ok(None);
    };
    read_timespec(addr).map(|span| Some(after(span)))
}

/// The moment that is `span` from now.
pub(super) fn after(span: Nanos) -> Nanos {
    Nanos(clock::now().0.saturating_add(span.0))
}

/// `struct timespec`.
pub(super) fn timespec(time: Nanos) -> [u8; 16] {
    Fields::new()
        .u64(time.0 / NANOS_PER_SECOND)
        .u64(time.0 % NANOS_PER_SECOND)
        .done()
}

/// `struct timeval`.
pub(super) fn timeval(time: Nanos) -> [u8; 16] {
    Fields::new()
        .u64(time.0 / NANOS_PER_SECOND)
        .u64(time.0 % NANOS_PER_SECOND / 1000)
        .done()
}

fn read_clock(id: u32) -> core::result::Result<Nanos, Errno> {
    match id {
        abi::CLOCK_REALTIME | abi::CLOCK_REALTIME_COARSE | abi::CLOCK_TAI => Ok(clock::wall_clock()),
        // The machine never sleeps, and nobody adjusts its clock.
        abi::CLOCK_MONOTONIC
        | abi::CLOCK_MONOTONIC_COARSE
        | abi::CLOCK_MONOTONIC_RAW
        | abi::CLOCK_BOOTTIME => Ok(clock::now()),
        abi::CLOCK_PROCESS_CPUTIME_ID | abi::CLOCK_THREAD_CPUTIME_ID => {
            sched::count_running_time();
            let used = process::current().map(|process| process.usage().so_far().cpu);
            Ok(used.unwrap_or(Nanos(0)))
        }
        _ => Err(Errno::EINVAL),
    }
}

/// `clock_gettime(clock, time)`.
pub(super) fn clock_gettime(call: &Call<'_>) -> Result {
    let time = read_clock(call.uint(0))?;
    UserAddr::new(call.raw(1))?.write(&timespec(time))?;
    Ok(0)
}

/// `clock_getres(clock, resolution)`.
pub(super) fn clock_getres(call: &Call<'_>) -> Result {
    read_clock(call.uint(0))?;
    if let Some(addr) = UserAddr::optional(call.raw(1))? {
        addr.write(&timespec(Nanos(1)))?;
    }
    Ok(0)
}

/// `gettimeofday(time, zone)`.
pub(super) fn gettimeofday(call: &Call<'_>) -> Result {
    if let Some(time) = UserAddr::optional(call.raw(0))? {
        time.write(&timeval(clock::wall_clock()))?;
    }
    if let Some(zone) = UserAddr::optional(call.raw(1))? {
        // UTC: no minutes west, no daylight saving.
        zone.write(&[0; 8])?;
    }
    Ok(0)
}

/// `time(seconds)`.
pub(super) fn time(call: &Call<'_>) -> Result {
    let seconds = clock::wall_clock().0 / NANOS_PER_SECOND;
    if let Some(addr) = UserAddr::optional(call.raw(0))? {
        addr.write(&seconds.to_le_bytes())?;
    }
    Ok(seconds)
}

/// Sleeps until `deadline`.
fn sleep(call: &Call<'_>, deadline: Nanos) -> core::result::Result<(), Errno> {
    while clock::now() < deadline {
        call.process().sleep(Some(deadline), &mut || true)?;
    }
    Ok(())
}

/// `nanosleep(span, left)`.
pub(super) fn nanosleep(call: &Call<'_>) -> Result {
    let span = read_timespec(UserAddr::new(call.raw(0))?)?;
    relative_sleep(call, span, call.raw(1))
}

/// Sleeps for `span`; if a signal ends the sleep, `left` is told what is missing.
fn relative_sleep(call: &Call<'_>, span: Nanos, left: u64) -> Result {
    let deadline = after(span);
    let slept = sleep(call, deadline);
    if slept.is_err()
        && let Some(addr) = UserAddr::optional(left)?
    {
        addr.write(&timespec(Nanos(deadline.0.saturating_sub(clock::now().0))))?;
    }
    slept.map(|()| 0)
}

/// `clock_nanosleep(clock, flags, time, left)`.
pub(super) fn clock_nanosleep(call: &Call<'_>) -> Result {
    match call.uint(0) {
        abi::CLOCK_THREAD_CPUTIME_ID => return Err(Errno::EINVAL),
        abi::CLOCK_PROCESS_CPUTIME_ID => {
            return unsupported!(Errno::EOPNOTSUPP, "clock_nanosleep by CPU time");
        }
        _ => {}
    }
    let now = read_clock(call.uint(0))?;
    let time = read_timespec(UserAddr::new(call.raw(2))?)?;
    if call.uint(1) & abi::TIMER_ABSTIME == 0 {
        return relative_sleep(call, time, call.raw(3));
    }
    let span = Nanos(time.0.saturating_sub(now.0));
    sleep(call, after(span)).map(|()| 0)
}
