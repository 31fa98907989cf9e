//! Futexes: sleeping on a word of the program's memory until somebody says that it changed.
//!
//! ```text
//!   wait:  enter the list -> read the word -> as expected? sleep until woken or too late -> leave the list
//!   wake:  the program changed the word before -> mark waiters of that address -> wake them
//! ```
//! A waiter is in the list before it reads the word, so a change after the read finds it there. Memory is never shared
//! between processes, so a process and an address name a futex.
//!
//! Lock: the list, for a few instructions, never over a user copy or a sleep.

use alloc::vec::Vec;

use linux_abi::{errno::Errno, raw::general as abi};
use mm::Nanos;
use spin::Mutex;

use super::{Call, Result, time, unsupported, user::UserAddr};
use crate::{drivers::clock, task::process::Pid};

/// A futex.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Futex {
    process: Pid,
    addr: u64,
}

impl Futex {
    fn new(call: &Call<'_>) -> core::result::Result<(Self, UserAddr), Errno> {
        let raw = call.raw(0);
        if !raw.is_multiple_of(4) {
            return Err(Errno::EINVAL);
        }
        let addr = UserAddr::new(raw)?;
        Ok((
            Self {
                process: call.process().pid(),
                addr: raw,
            },
            addr,
        ))
    }
}

struct Waiter {
    ticket: u64,
    futex: Futex,
    bits: u32,
}

struct Waiters {
    list: Vec<Waiter>,
    next_ticket: u64,
}

/// Who waits. A waiter that is not in the list any more was woken.
static WAITERS: Mutex<Waiters> = Mutex::new(Waiters {
    list: Vec::new(),
    next_ticket: 0,
});

fn enter(futex: Futex, bits: u32) -> core::result::Result<u64, Errno> {
    let mut waiters = WAITERS.lock();
    waiters.list.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
    let ticket = waiters.next_ticket;
    waiters.next_ticket += 1;
    waiters.list.push(Waiter { ticket, futex, bits });
    Ok(ticket)
}

fn is_waiting(ticket: u64) -> bool {
    WAITERS.lock().list.iter().any(|waiter| waiter.ticket == ticket)
}

/// Leaves the list; false: somebody woke us before.
fn leave(ticket: u64) -> bool {
    let list = &mut WAITERS.lock().list;
    let position = list.iter().position(|waiter| waiter.ticket == ticket);
    position.map(|position| list.remove(position)).is_some()
}

/// `futex(word, operation, value, timeout, ...)`.
pub(super) fn futex(call: &Call<'_>) -> Result {
    const MODIFIERS: u32 = abi::FUTEX_PRIVATE_FLAG | abi::FUTEX_CLOCK_REALTIME;
    let operation = call.uint(1);
    match operation & !MODIFIERS {
        abi::FUTEX_WAIT => wait_for(call, u32::MAX, time::read_deadline(call.raw(3))?),
        abi::FUTEX_WAIT_BITSET => {
            let deadline = absolute_deadline(call, operation & abi::FUTEX_CLOCK_REALTIME != 0)?;
            wait_for(call, bitset(call)?, deadline)
        }
        abi::FUTEX_WAKE => wake(call, u32::MAX),
        abi::FUTEX_WAKE_BITSET => wake(call, bitset(call)?),
        other => unsupported!(Errno::ENOSYS, "futex with operation {other}"),
    }
}

fn bitset(call: &Call<'_>) -> core::result::Result<u32, Errno> {
    if call.uint(5) == 0 {
        Err(Errno::EINVAL)
    } else {
        Ok(call.uint(5))
    }
}

/// The deadline of a wait whose timeout is a moment; the two clocks differ by a constant.
fn absolute_deadline(call: &Call<'_>, is_wall_clock: bool) -> core::result::Result<Option<Nanos>, Errno> {
    // `read_deadline` counts from now; what is wanted counts from the clock's zero.
    let from_now = time::read_deadline(call.raw(3))?;
    let offset = if is_wall_clock {
        clock::wall_clock().0
    } else {
        clock::now().0
    };
    Ok(from_now.map(|deadline| Nanos(deadline.0.saturating_sub(offset))))
}

fn wait_for(call: &Call<'_>, bits: u32, deadline: Option<Nanos>) -> Result {
    let (futex, addr) = Futex::new(call)?;
    let ticket = enter(futex, bits)?;
    let word = addr.read_u32();
    if word != Ok(call.uint(2)) {
        leave(ticket);
        return Err(word.err().unwrap_or(Errno::EAGAIN));
    }
    while is_waiting(ticket) {
        if deadline.is_some_and(|deadline| clock::now() >= deadline) {
            return if leave(ticket) {
                Err(Errno::ETIMEDOUT)
            } else {
                Ok(0)
            };
        }
        if let Err(interrupted) = call.process().sleep(deadline, &mut || is_waiting(ticket)) {
            return if leave(ticket) { Err(interrupted) } else { Ok(0) };
        }
    }
    Ok(0)
}

fn wake(call: &Call<'_>, bits: u32) -> Result {
    let (futex, _) = Futex::new(call)?;
    let mut left = u64::try_from(call.int(2)).unwrap_or(0);
    let wanted = left;
    WAITERS.lock().list.retain(|waiter| {
        let chosen = left > 0 && waiter.futex == futex && waiter.bits & bits != 0;
        left -= u64::from(chosen);
        !chosen
    });
    if left < wanted {
        // Memory is not shared: whoever waited is the caller's own process.
        call.process().wake();
    }
    Ok(wanted - left)
}
