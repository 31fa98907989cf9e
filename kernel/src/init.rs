//! Process 1: the kernel task that the boot order ends in.
//!
//! ```text
//!   root from the initramfs
//!   PROGRAM given?  yes: run it, end the machine with its status
//!                   no:  run the demonstration, then the monitor
//! ```
//! A program that cannot be started ends the machine with the status a shell would give: 127 if there is none, 126 if it
//! is none.

use alloc::vec::Vec;

use linux_abi::errno::Errno;

use crate::{
    boot::{args::args, config::config},
    drivers::host,
    exec::ExecError,
    log, monitor, panic,
    task::process,
    vfs,
};

/// What a machine without PROGRAM runs before the monitor.
const DEMONSTRATION: &[u8] = b"/bin/thp-demo";
/// Status of a machine whose program is not there.
const STATUS_NOT_FOUND: u8 = 127;
/// Status of a machine whose program cannot be started.
const STATUS_NOT_EXECUTABLE: u8 = 126;

/// Runs what this boot is for, and ends the machine.
pub fn run() -> ! {
    if let Some(how) = config().crash() {
        panic::crash(how);
    }
    mount_root();
    let argv: Vec<&[u8]> = args().argv().collect();
    let status = match argv.first() {
        Some(program) => run_program(program, &argv),
        None => {
            run_demonstration();
            monitor::run()
        }
    };
    host::power_off(status)
}

/// Fills the file tree.
pub fn mount_root() {
    if args().initrd().is_none() {
        log::warn!("initramfs: there is none; the root is empty but for /dev and /proc");
    }
    match vfs::mount_root(args().initrd().unwrap_or_default()) {
        Ok(unpacked) => log::info!("initramfs: {} entries", unpacked.taken),
        Err(error) => log::error!("vfs: /dev or /proc cannot be added: {error}"),
    }
}

/// Runs a program to its end, and returns the status for the host.
fn run_program(program: &[u8], argv: &[&[u8]]) -> u8 {
    let env: Vec<&[u8]> = args().env().collect();
    match process::spawn(program, argv, &env) {
        Ok(process) => process.wait_in_foreground().status(),
        Err(error) => {
            log::error!("exec: {}: {error}", program.escape_ascii());
            status_of(error)
        }
    }
}

const fn status_of(error: ExecError) -> u8 {
    match error {
        ExecError::Path(Errno::ENOENT | Errno::ENOTDIR) => STATUS_NOT_FOUND,
        _ => STATUS_NOT_EXECUTABLE,
    }
}

/// The demonstration is for those who look; whether it worked does not decide what comes after.
fn run_demonstration() {
    if args().initrd().is_none() {
        return;
    }
    let status = run_program(DEMONSTRATION, &[DEMONSTRATION]);
    if status != 0 {
        log::warn!("init: the demonstration ended with status {status}");
    }
}
