//! What the machine trials (`qemu/main.rs`) are made of, as far as it can be tested without a machine.
//!
//! * [`list`]: the in-kernel trials of a kernel, read from its ELF file.
//! * [`ledger`]: which trial a machine's records and its end are news of.
//! * [`numbers`]: what `thp-numbers` is expected to print, here and on Linux.
#![forbid(unsafe_code)]

pub mod ledger;
pub mod list;
pub mod numbers;
