//! From the boot loader's hand-over to a running memory manager.
//!
//! | module | does |
//! |---|---|
//! | [`early`] | memory before there is a memory manager: cut from the usable regions, never given back |
//! | [`args`] | what the host passed: command line, program, environment, initramfs, names of trials |
//! | [`config`] | the command line's words as typed settings |
//! | [`memory`] | hands every remaining frame to `mm` |
//!
//! The order in which these run is `main.rs`.

pub mod args;
pub mod config;
pub mod early;
pub mod memory;
