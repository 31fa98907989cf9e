//! Starts Cleave in QEMU: see [`boot::cli`] and `cargo run -- --help`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    boot::cli::main()
}
