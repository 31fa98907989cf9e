//! Allocations that fail because somebody said so: Linux's `/proc/PID/fail-nth`.
//!
//! ```text
//!   write 3:   allocation 1, 2 succeed    3 fails    4, 5, ... succeed
//!   read:            3  2                 1    0     0                    0: the failure has happened (or none is set)
//! ```
//! Counted is what a process asks for while it is in the kernel, and what its page faults need: blocks of frames, objects
//! of `mm`, and what the kernel [takes from its heap](crate::heap::reserve) on its behalf. Not counted is what is taken
//! on the reserve, which is small and which its users cannot do without, and what a process gives back at its end.
//! A child begins without a failure set; another program in the same process inherits what is left.
//!
//! Origin: Linux e41d58185f14 (v4.14) fault-inject: support systematic fault injection. Differs: no configuration is
//! needed, and order-0 frames of programs count too, which Linux leaves out by default.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::thread;

/// Whether anybody has ever asked for a failure: what every allocation pays for this is one look here.
static ARMED: AtomicBool = AtomicBool::new(false);

/// How many allocations of one process are left until one fails; 0: none will. (Of its one thread.)
#[derive(Debug, Default)]
pub struct FailNth(AtomicU32);

impl FailNth {
    /// Allocations up to and with the one that fails; 0: it has failed, or none was to.
    #[must_use]
    pub fn left(&self) -> u32 {
        // Relaxed, here and below: the count orders nothing.
        self.0.load(Ordering::Relaxed)
    }

    /// Lets the `nth` allocation from now fail; 0 cancels.
    pub fn set(&self, nth: u32) {
        if nth > 0 {
            ARMED.store(true, Ordering::Relaxed);
        }
        self.0.store(nth, Ordering::Relaxed);
    }

    /// Counts one allocation; returns whether it is the one to fail.
    fn strikes(&self) -> bool {
        let counted = self
            .0
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        counted == Ok(1)
    }
}

/// Counts an allocation on behalf of the running process; returns whether it must fail.
#[must_use]
pub fn must_fail() -> bool {
    ARMED.load(Ordering::Relaxed)
        && thread::with_current_process(|process| process.fail_nth().strikes()) == Some(true)
}
