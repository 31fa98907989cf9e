//! The first program of a Linux that is booted to be compared with: mounts what the programs read, runs one, ends the
//! machine.
//!
//! ```text
//!   kernel command line:   ... -- PROGRAM [ARGUMENTS]
//!   console:               what the program printed, then linux-init: STATUS
//! ```

use std::{ffi::CString, fs, io, process::Command};

/// File systems, and where they go.
const MOUNTS: [(&str, &str); 3] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("debugfs", "/sys/kernel/debug"),
];

fn mount((kind, place): (&str, &str)) -> io::Result<()> {
    let (kind, place) = (CString::new(kind)?, CString::new(place)?);
    // SAFETY: strings that end in NUL, and no data.
    let result = unsafe { libc::mount(kind.as_ptr(), place.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Keeps khugepaged from making huge pages behind the program's back.
fn calm() -> io::Result<()> {
    fs::write(
        "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs",
        "1000000000",
    )
}

fn run() -> io::Result<i32> {
    MOUNTS.into_iter().try_for_each(mount)?;
    calm()?;
    let mut words = std::env::args().skip(1);
    let program = words.next().unwrap_or_else(|| "/bin/thp-numbers".to_owned());
    Ok(Command::new(program).args(words).status()?.code().unwrap_or(-1))
}

fn main() {
    match run() {
        Ok(status) => println!("linux-init: {status}"),
        Err(error) => println!("linux-init: {error}"),
    }
    // SAFETY: nothing is left to be saved.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
}
