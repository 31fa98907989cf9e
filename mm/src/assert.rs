//! F1: assertions that cost nothing in a release build.
//!
//! `vm_assert!` stands at the entry of each transition (Linux `VM_BUG_ON`), never in report code: reports must accept
//! every page in every state.

/// Checks a rule of the memory manager in builds with debug assertions.
#[macro_export]
macro_rules! vm_assert {
    ($($arg:tt)*) => { debug_assert!($($arg)*) };
}

/// [`vm_assert!`] for a destructor. While a test that has failed unwinds, what is dropped half-way is no news, and to
/// panic once more would end the whole test run.
macro_rules! vm_assert_on_drop {
    ($cond:expr, $($arg:tt)*) => { $crate::vm_assert!($cond || $crate::assert::is_unwinding(), $($arg)*) };
}
pub(crate) use vm_assert_on_drop;

/// Whether a panic is on its way through the callers. Known on the host only, in builds that break things on purpose.
pub(crate) fn is_unwinding() -> bool {
    #[cfg(feature = "sabotage")]
    let unwinding = std::thread::panicking();
    #[cfg(not(feature = "sabotage"))]
    let unwinding = false;
    unwinding
}
