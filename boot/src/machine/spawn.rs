//! Starts a child that inherits chosen descriptors and dies with the thread that started it.
//!
//! The one place of this crate with unsafe code: only between `fork` and `exec` can a descriptor be made inheritable
//! without another thread's child inheriting it too (a second machine that held the first one's sockets open would
//! hide its end), and only there can the death signal be asked for.

#![expect(unsafe_code, reason = "work between fork and exec")]

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Child, Command, Stdio},
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    process::{Signal, getpid, getppid, set_parent_process_death_signal},
};

/// Starts `program` in a process group of its own, so that a ctrl-C at the terminal reaches only us.
///
/// The descriptors in `inherited` keep their numbers in the child and are closed here.
///
/// # Errors
/// What the system says; of kind `NotFound` when there is no such program.
pub(super) fn spawn(program: &str, arguments: &[OsString], inherited: Vec<OwnedFd>) -> io::Result<Child> {
    let parent = getpid();
    let prepare = move || {
        for descriptor in &inherited {
            fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() == Some(parent) {
            return Ok(());
        }
        Err(io::Error::from(io::ErrorKind::BrokenPipe))
    };
    let mut command = Command::new(OsStr::new(program));
    command.args(arguments).process_group(0);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // SAFETY: between fork and exec the closure makes system calls only (fcntl, prctl, getppid); it allocates
    // nothing and takes no lock.
    unsafe { command.pre_exec(prepare) };
    command.spawn()
}
