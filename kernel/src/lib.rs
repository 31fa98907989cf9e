//! Cleave's kernel: everything that touches this machine or speaks the Linux ABI, around the memory manager `mm`.
//!
//! ```text
//!  ring 3    static Linux programs
//!  ------------------------------------------------------------------ system call / page fault
//!  kernel    syscall  vfs  exec  task  monitor
//!            platform  <- the only door ->  arch  drivers
//!  ------------------------------------------------------------------ trait Platform
//!  mm        knows no CPU, no device, no task
//! ```
//! The order in which all this comes up is `main.rs`.
#![no_std]
#![cfg(target_os = "none")]

extern crate alloc;

pub mod arch;
pub mod boot;
pub mod check;
pub mod drivers;
pub mod exec;
pub mod heap;
pub mod init;
#[cfg(feature = "ktest")]
pub mod ktest;
pub mod log;
pub mod monitor;
pub mod panic;
pub mod platform;
pub mod random;
pub mod syscall;
pub mod task;
pub mod thp;
pub mod version;
pub mod vfs;
