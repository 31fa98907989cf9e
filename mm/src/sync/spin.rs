//! A spinning lock that holds off preemption and leaves interrupts on.

use core::{
    cell::UnsafeCell,
    ops::{Deref, DerefMut},
};

use super::{AtomicU32, spin_hint};
use crate::platform::Platform;

const FREE: u32 = 0;
const HELD: u32 = 1;

/// A value that one CPU at a time may reach.
#[derive(Debug)]
pub struct SpinLock<T> {
    state: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands out one guard at a time, so sharing the lock only ever moves access to `T` between threads.
unsafe impl<T: Send> Sync for SpinLock<T> {}

/// Proof that the lock is held; gives it back when dropped, then lets the task be preempted again.
#[must_use]
pub struct SpinGuard<'a, T, P: Platform> {
    lock: &'a SpinLock<T>,
    // Dropped after `Drop::drop` has released the lock.
    _preempt: P::PreemptGuard,
}

impl<T> SpinLock<T> {
    /// Makes a free lock around `value`.
    #[must_use]
    pub const fn new(value: T) -> Self {
        Self {
            state: AtomicU32::new(FREE),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the lock, spinning until it is free.
    pub fn lock<'a, P: Platform>(&'a self, platform: &P) -> SpinGuard<'a, T, P> {
        let preempt = platform.preempt_off();
        while self.state.swap_acqrel(HELD) == HELD {
            while self.state.load_relaxed() == HELD {
                spin_hint();
            }
        }
        SpinGuard {
            lock: self,
            _preempt: preempt,
        }
    }

    /// Takes the lock if it is free. Ignores the lock order, because it never waits.
    pub fn try_lock<'a, P: Platform>(&'a self, platform: &P) -> Option<SpinGuard<'a, T, P>> {
        let preempt = platform.preempt_off();
        (self.state.swap_acqrel(HELD) == FREE).then(|| SpinGuard {
            lock: self,
            _preempt: preempt,
        })
    }

    /// Reaches the value through exclusive access.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

impl<T, P: Platform> Deref for SpinGuard<'_, T, P> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard exists, so the lock is held and no other reference to the value exists.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T, P: Platform> DerefMut for SpinGuard<'_, T, P> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`, and `self` is borrowed exclusively.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T, P: Platform> Drop for SpinGuard<'_, T, P> {
    fn drop(&mut self) {
        self.lock.state.store_release(FREE);
    }
}
