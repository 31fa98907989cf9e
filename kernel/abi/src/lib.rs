//! Numbers and layouts that both sides of a boundary must agree on.
//!
//! * [`wire`]: the channels between the machine and the host program that started it.
//! * [`page`]: the bits of `/proc/kpageflags` and `/proc/PID/pagemap`.
//! * [`errno`]: error numbers as a type.
//!
//! System call numbers and structures come from `linux-raw-sys`, re-exported here as [`raw`].
#![no_std]
#![forbid(unsafe_code)]

pub mod errno;
pub mod page;
pub mod wire;

pub use linux_raw_sys as raw;
