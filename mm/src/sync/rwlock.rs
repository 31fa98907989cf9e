//! A sleeping reader-writer lock: the mmap lock.
//!
//! ```text
//!   state = 0            free
//!   state = n            n readers
//!   state = WRITER       one writer
//!   … | SLEEPERS         somebody sleeps under WaitKey::lock(self); whoever frees the lock wakes them all
//! ```

use super::AtomicU32;
use crate::platform::{Platform, WaitKey};

const WRITER: u32 = 1 << 30;
const SLEEPERS: u32 = 1 << 31;

/// A lock that many may hold to read or one to write. It guards by convention: `docs/locking.md` says what.
#[derive(Debug)]
pub struct RwLock {
    state: AtomicU32,
}

/// Proof that the lock is held for reading.
#[must_use]
pub struct ReadGuard<'a, P: Platform> {
    lock: &'a RwLock,
    platform: &'a P,
}

/// Proof that the lock is held for writing.
#[must_use]
pub struct WriteGuard<'a, P: Platform> {
    lock: &'a RwLock,
    platform: &'a P,
}

impl Default for RwLock {
    fn default() -> Self {
        Self::new()
    }
}

impl RwLock {
    /// Makes a free lock.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            state: AtomicU32::new(0),
        }
    }

    /// Takes the lock for reading; sleeps while there is a writer.
    pub fn read<'a, P: Platform>(&'a self, platform: &'a P) -> ReadGuard<'a, P> {
        self.acquire(platform, |state| (state & WRITER == 0).then_some(state + 1));
        ReadGuard { lock: self, platform }
    }

    /// Takes the lock for writing; sleeps while anybody has it.
    pub fn write<'a, P: Platform>(&'a self, platform: &'a P) -> WriteGuard<'a, P> {
        self.acquire(platform, |state| {
            (state & !SLEEPERS == 0).then_some(state | WRITER)
        });
        WriteGuard { lock: self, platform }
    }

    /// Takes the lock for reading unless there is a writer.
    pub fn try_read<'a, P: Platform>(&'a self, platform: &'a P) -> Option<ReadGuard<'a, P>> {
        let taken = self
            .state
            .try_update_acqrel(|state| (state & WRITER == 0).then_some(state + 1));
        taken.ok().map(|_| ReadGuard { lock: self, platform })
    }

    fn acquire<P: Platform>(&self, platform: &P, take: impl Fn(u32) -> Option<u32>) {
        while self.state.try_update_acqrel(&take).is_err() {
            platform.wait(self.key(), None, &mut || {
                // Announce the sleeper; sleep only if the lock is still not to be had.
                let announced = self
                    .state
                    .try_update_acqrel(|state| take(state).is_none().then_some(state | SLEEPERS));
                announced.is_ok()
            });
        }
    }

    fn release<P: Platform>(&self, platform: &P, give: impl Fn(u32) -> u32) {
        let step = |state| {
            let left = give(state);
            Some(if left & !SLEEPERS == 0 { 0 } else { left })
        };
        let old = self.state.try_update_acqrel(step).unwrap_or_else(|state| state);
        if give(old) == SLEEPERS {
            platform.wake(self.key());
        }
    }

    fn key(&self) -> WaitKey {
        WaitKey::lock(core::ptr::from_ref(self).cast())
    }
}

impl<P: Platform> Drop for ReadGuard<'_, P> {
    fn drop(&mut self) {
        self.lock.release(self.platform, |state| state - 1);
    }
}

impl<P: Platform> Drop for WriteGuard<'_, P> {
    fn drop(&mut self) {
        self.lock.release(self.platform, |state| state & !WRITER);
    }
}
