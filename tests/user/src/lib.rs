//! What the ring-3 programs of the tests share: anonymous mappings, and reading what `/proc` says about memory.
//!
//! The programs are ordinary static Linux programs. The same file runs on Linux and on Cleave, so that what they print
//! can be compared line by line.

pub mod mapping;
pub mod proc;

/// Bytes in a base page.
pub const PAGE: usize = 4096;
/// Bytes in a huge page.
pub const HUGE: usize = 2 << 20;
