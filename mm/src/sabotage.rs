//! F3: broken versions of the memory manager: each takes back the cure of a bug that was once real, so that tests can
//! show that they would have caught it.
//!
//! `sabotage!(mem, MissedFlush)` is a question to that machine in builds with feature `sabotage`, and the constant
//! `false` in all others, where nothing of it is left. Which test catches which is told in `docs/sequences.md` and shown
//! by `testkit/small/tests/sabotage.rs`.

/// What is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Broken {
    /// `fork` forgets to count one of the PTEs that it copies.
    LostMapcount = 1,
    /// What is unmapped or write-protected is not flushed from the CPUs (Linux 687cb0884a71 is one such story).
    MissedFlush,
    /// A PMD is counted off first, and the bias for those that are left follows: in between, the last of them goes and
    /// finds no bias to take away (S1).
    LateBias,
    /// A folio that is freed looks up its neighbours on the deferred queue before it takes the queue's lock (C15).
    UnlockedUnlink,
    /// The target of a migration gets its identity before it is certain that the page moves (8bdd63809160, C9).
    TargetTouchedEarly,
    /// A target that was not used is given back twice (S19).
    DoublePutNew,
    /// A page that arrives is made writable by what its entry said before the lock was taken, without asking the area
    /// (d3cb8bf6081b, S17).
    StaleWriteRight,
    /// A huge entry is empty while it is being changed (f72e7dcdd252, C2, C11).
    TransientNonePmd,
    /// `fork` leaves the exclusive mark, so that both sides think that they have the page alone (C1).
    ExclusiveAfterFork,
    /// After a split the caller's reference is the head's, whichever page it was for (a3e0f9e47d5e, C18).
    ReferenceOnHead,
}

impl Broken {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::LostMapcount,
        Self::MissedFlush,
        Self::LateBias,
        Self::UnlockedUnlink,
        Self::TargetTouchedEarly,
        Self::DoublePutNew,
        Self::StaleWriteRight,
        Self::TransientNonePmd,
        Self::ExclusiveAfterFork,
        Self::ReferenceOnHead,
    ];
}

/// Which broken version a machine runs; none at first.
#[cfg(feature = "sabotage")]
#[derive(Debug)]
pub(crate) struct Switch(crate::sync::AtomicU32);

#[cfg(feature = "sabotage")]
impl Switch {
    pub(crate) const fn new() -> Self {
        Self(crate::sync::AtomicU32::new(0))
    }

    pub(crate) fn is(&self, broken: Broken) -> bool {
        self.0.load_relaxed() == broken as u32
    }
}

/// Whether this machine runs a broken version.
macro_rules! sabotage {
    ($mem:expr, $broken:ident) => {{
        #[cfg(feature = "sabotage")]
        let on = $mem.broken().is($crate::sabotage::Broken::$broken);
        #[cfg(not(feature = "sabotage"))]
        let on = {
            let _ = ($mem, $crate::sabotage::Broken::$broken);
            false
        };
        on
    }};
}
pub(crate) use sabotage;

#[cfg(feature = "sabotage")]
impl<P: crate::platform::Platform> crate::memory::Memory<P> {
    /// Breaks this machine, for good.
    pub fn run_broken(&self, broken: Broken) {
        self.broken().0.store_relaxed(broken as u32);
    }
}
