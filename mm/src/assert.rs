//! F1: assertions that cost nothing in a release build.
//!
//! `vm_assert!` stands at the entry of each transition (Linux `VM_BUG_ON`), never in report code: reports must accept
//! every page in every state.

/// Checks a rule of the memory manager in builds with debug assertions.
#[macro_export]
macro_rules! vm_assert {
    ($($arg:tt)*) => { debug_assert!($($arg)*) };
}
