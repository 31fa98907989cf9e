//! Atomics whose memory order is part of the method's name, so that every use of an order can be searched for.

#![expect(clippy::disallowed_types, reason = "this is the one door")]

use core::sync::atomic::Ordering;

macro_rules! atomic {
    ($name:ident, $std:ident, $int:ident) => {
        /// An integer in memory that several CPUs reach.
        #[derive(Debug)]
        #[repr(transparent)]
        pub struct $name(core::sync::atomic::$std);

        impl $name {
            /// Makes one.
            #[must_use]
            pub const fn new(value: $int) -> Self {
                Self(core::sync::atomic::$std::new(value))
            }

            /// Reads; orders nothing.
            #[inline]
            pub fn load_relaxed(&self) -> $int {
                self.0.load(Ordering::Relaxed)
            }

            /// Reads; what the writer did before its release is visible after this.
            #[inline]
            pub fn load_acquire(&self) -> $int {
                self.0.load(Ordering::Acquire)
            }

            /// Writes; orders nothing.
            #[inline]
            pub fn store_relaxed(&self, value: $int) {
                self.0.store(value, Ordering::Relaxed);
            }

            /// Writes; publishes everything written before.
            #[inline]
            pub fn store_release(&self, value: $int) {
                self.0.store(value, Ordering::Release);
            }

            /// Replaces the value.
            #[inline]
            pub fn swap_acqrel(&self, value: $int) -> $int {
                self.0.swap(value, Ordering::AcqRel)
            }

            /// Sets bits; returns what was there.
            #[inline]
            pub fn fetch_or_acqrel(&self, bits: $int) -> $int {
                self.0.fetch_or(bits, Ordering::AcqRel)
            }

            /// Keeps only `bits`; returns what was there.
            #[inline]
            pub fn fetch_and_acqrel(&self, bits: $int) -> $int {
                self.0.fetch_and(bits, Ordering::AcqRel)
            }

            /// Adds; returns what was there. Orders nothing: for a count whose owner already holds a reason to keep
            /// the object.
            #[inline]
            pub fn fetch_add_relaxed(&self, n: $int) -> $int {
                self.0.fetch_add(n, Ordering::Relaxed)
            }

            /// Subtracts; returns what was there. Whoever brings a count to zero sees all that others did before.
            #[inline]
            pub fn fetch_sub_acqrel(&self, n: $int) -> $int {
                self.0.fetch_sub(n, Ordering::AcqRel)
            }

            /// Replaces `current` by `new`, or returns what is there instead.
            #[inline]
            pub fn compare_exchange_acqrel(&self, current: $int, new: $int) -> Result<$int, $int> {
                self.0
                    .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
            }

            /// Applies `step` until it sticks; returns the value it was applied to, or that for which `step` refused.
            #[inline]
            pub fn try_update_acqrel(
                &self,
                mut step: impl FnMut($int) -> Option<$int>,
            ) -> Result<$int, $int> {
                let mut current = self.load_relaxed();
                loop {
                    let Some(new) = step(current) else {
                        return Err(current);
                    };
                    match self.compare_exchange_acqrel(current, new) {
                        Ok(old) => return Ok(old),
                        Err(found) => current = found,
                    }
                }
            }
        }
    };
}

atomic!(AtomicU32, AtomicU32, u32);
atomic!(AtomicU64, AtomicU64, u64);

/// A pointer in memory that several CPUs reach. Keeps the pointer's provenance, which an integer would lose.
#[derive(Debug)]
#[repr(transparent)]
pub struct AtomicPtr<T>(core::sync::atomic::AtomicPtr<T>);

impl<T> AtomicPtr<T> {
    /// Makes one.
    #[must_use]
    pub const fn new(pointer: *mut T) -> Self {
        Self(core::sync::atomic::AtomicPtr::new(pointer))
    }

    /// Reads; what it points to was written before it.
    #[inline]
    pub fn load_acquire(&self) -> *mut T {
        self.0.load(Ordering::Acquire)
    }

    /// Writes; publishes what it points to.
    #[inline]
    pub fn store_release(&self, pointer: *mut T) {
        self.0.store(pointer, Ordering::Release);
    }

    /// Replaces `current` by `new`, or returns what is there instead.
    #[inline]
    pub fn compare_exchange_acqrel(&self, current: *mut T, new: *mut T) -> Result<*mut T, *mut T> {
        self.0
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
    }
}

/// Tells the CPU that the caller spins.
#[inline]
pub fn spin_hint() {
    core::hint::spin_loop();
}
