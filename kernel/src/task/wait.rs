//! Sleeping until somebody wakes a key, or a deadline.
//!
//! The order that loses no wake-up: queue first, then look whether there is anything to wait for, then sleep only if
//! nobody woke the queue meanwhile; and whoever changes something wakes *after* the change.
//! A sleeper may also return for no reason, so callers look again.

use mm::{Nanos, WaitKey};

use super::sched;
use crate::arch::percpu;

/// Queues the running thread under `key`, calls `still`, and sleeps only while it returns true; returns after a
/// [`wake`] of the key, at `deadline`, or for no reason.
///
/// # Context
/// A thread, not the idle one; no preemption guard lives.
///
/// # Panics
/// With a preemption guard alive.
pub fn wait(key: WaitKey, deadline: Option<Nanos>, still: &mut dyn FnMut() -> bool) {
    assert_eq!(
        percpu::this().preempt_count(),
        0,
        "waiting with a preemption guard alive"
    );
    sched::begin_wait(key, deadline);
    if still() {
        sched::sleep();
    }
    sched::end_wait();
}

/// Wakes everybody who waits for `key`. To be called after the change they wait for.
pub fn wake(key: WaitKey) {
    if sched::is_up() {
        sched::wake(key);
    }
}

/// Returns a key that stands for the object at `address`, for objects of the kernel's own.
#[must_use]
pub fn key_of<T>(address: *const T) -> WaitKey {
    WaitKey::external(address.addr() as u64)
}

/// Sleeps until `deadline`.
pub fn sleep_until(deadline: Nanos) {
    let mut here = 0_u8;
    let key = key_of(&raw mut here);
    while crate::drivers::clock::now() < deadline {
        wait(key, Some(deadline), &mut || {
            crate::drivers::clock::now() < deadline
        });
    }
}

/// A place where threads wait for a condition. Its address is its key, so it must not move while somebody waits.
#[derive(Debug)]
pub struct WaitQueue {
    /// Gives the queue an address of its own.
    _place: u64,
}

impl WaitQueue {
    /// An empty queue.
    #[must_use]
    pub const fn new() -> Self {
        Self { _place: 0 }
    }

    /// Sleeps once, if `still` returns true, until the queue is woken or `deadline`. Callers look again.
    pub fn wait_while(&self, deadline: Option<Nanos>, still: &mut dyn FnMut() -> bool) {
        wait(key_of(self), deadline, still);
    }

    /// Wakes everybody who waits here.
    pub fn wake_all(&self) {
        wake(key_of(self));
    }
}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}
