//! Host side of Cleave: builds the disk image, runs the machine in QEMU, carries its bytes, and tells how it ended.
//!
//! ```text
//!   cargo run -- OPTIONS -- PROGRAM        cargo test
//!              │                               │
//!             cli ──────────┐      ┌──── tests/qemu
//!                           ▼      ▼
//!      cargo ─► image ─► machine::Machine ─► machine::Running ─► outcome::End
//!              initrd ─┘            │ COM1, COM2, 0xe9 (linux_abi::wire)
//!                               channels ─► stdout, stderr, records ─► symbols
//! ```
//!
//! * [`cargo`]: runs cargo for the kernel and the ring-3 programs and finds what it built.
//! * [`image`]: kernel → stripped copy → disk image for BIOS or UEFI.
//! * [`initrd`]: the root directory, as concatenated cpio newc archives.
//! * [`machine`]: QEMU's arguments, start, stop. A machine never outlives the process that started it.
//! * [`channels`]: the three streams out of the machine and the two into it.
//! * [`capture`]: a machine run from beginning to end, everything it said kept: what tests want.
//! * [`outcome`]: how a machine ended, and the exit status that follows.
//! * [`symbols`]: addresses of a kernel backtrace → functions, files, lines.
//! * [`terminal`]: the user's terminal in raw mode, restored however the process ends.
//! * [`cli`]: what `cargo run` accepts.
//!
//! The library never guesses from text: it knows how a machine ended from the exit device and the records only.

#![deny(unsafe_code)]

pub mod capture;
pub mod cargo;
pub mod channels;
pub mod cli;
pub mod error;
pub mod image;
pub mod initrd;
pub mod machine;
pub mod outcome;
pub mod symbols;
pub mod terminal;

pub use error::{Error, Result};
