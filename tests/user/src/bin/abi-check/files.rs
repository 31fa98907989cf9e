//! Descriptors and paths.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::fd::{AsRawFd, FromRawFd},
};

use crate::{Verdict, syscall};

/// Copies stdin to stdout, byte by byte as they come.
pub(crate) fn echo(_: &[String]) -> Verdict {
    let mut verdict = Verdict::default();
    if let Err(error) = io::copy(&mut io::stdin().lock(), &mut io::stdout().lock()) {
        eprintln!("echo: {error}");
        verdict.broken += 1;
    }
    verdict
}

fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().and_then(|error| error.raw_os_error()).unwrap_or(0)
}

/// Checks errors and positions.
pub(crate) fn check(_: &[String]) -> Verdict {
    let mut verdict = Verdict::default();
    paths(&mut verdict);
    descriptors(&mut verdict);
    words(&mut verdict);
    devices(&mut verdict);
    verdict
}

fn paths(verdict: &mut Verdict) {
    verdict.equal(
        "a missing file is ENOENT",
        errno(File::open("/no-such-file")),
        libc::ENOENT,
    );
    verdict.equal(
        "a file below a file is ENOTDIR",
        errno(File::open("/proc/version/x")),
        libc::ENOTDIR,
    );
    verdict.equal(
        "a long name is ENAMETOOLONG",
        errno(File::open("x".repeat(256))),
        libc::ENAMETOOLONG,
    );
    verdict.equal(
        "a directory cannot be written",
        errno(File::create("/proc")),
        libc::EISDIR,
    );
    verdict.equal(
        "a directory cannot be read",
        errno(fs::read("/proc")),
        libc::EISDIR,
    );
    verdict.equal(
        "a null path is EFAULT",
        syscall(libc::SYS_open, [0; 6]),
        Err(libc::EFAULT),
    );
    let dots = fs::metadata("/proc/../proc/./self/../version");
    verdict.holds("dots lead through /proc", dots.is_ok());
    let names: Vec<String> = fs::read_dir("/proc")
        .map(|entries| {
            entries
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect()
        })
        .unwrap_or_default();
    let own = std::process::id().to_string();
    verdict.holds("/proc lists this process", names.contains(&own));
    let target = fs::read_link("/proc/self").ok();
    verdict.holds(
        "/proc/self leads there",
        target.is_some_and(|target| target.as_os_str() == own.as_str()),
    );
    verdict.equal(
        "the working directory",
        std::env::current_dir().ok(),
        Some("/".into()),
    );
    verdict.holds("it can change", std::env::set_current_dir("/proc/self").is_ok());
    let inside = std::env::current_dir().ok();
    verdict.equal(
        "it is a path without links",
        inside,
        Some(format!("/proc/{own}").into()),
    );
    verdict.holds("relative paths begin there", fs::metadata("maps").is_ok());
    verdict.holds("it changes back", std::env::set_current_dir("/").is_ok());
}

fn descriptors(verdict: &mut Verdict) {
    verdict.equal(
        "a closed descriptor is EBADF",
        syscall(libc::SYS_close, [77, 0, 0, 0, 0, 0]),
        Err(libc::EBADF),
    );
    let Ok(mut file) = File::open("/proc/version") else {
        verdict.holds("/proc/version can be opened", false);
        return;
    };
    let fd = file.as_raw_fd().cast_unsigned().into();
    // SAFETY: `dup` made a descriptor of its own, which the new file owns.
    let twin = syscall(libc::SYS_dup, [fd, 0, 0, 0, 0, 0])
        .map(|fd| unsafe { File::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) });
    let mut first = [0; 5];
    verdict.holds(
        "reading works",
        file.read_exact(&mut first).is_ok() && &first == b"Linux",
    );
    let position = twin.ok().and_then(|mut twin| twin.stream_position().ok());
    verdict.equal("a duplicate shares the position", position, Some(5));
    verdict.equal(
        "seeking before the start is EINVAL",
        errno(file.seek(SeekFrom::Current(-6))),
        libc::EINVAL,
    );
    verdict.equal(
        "a file open for reading cannot be written",
        errno(file.write(b"x")),
        libc::EBADF,
    );
    verdict.equal(
        "reading into nowhere is EFAULT",
        syscall(libc::SYS_read, [fd, 8, 4, 0, 0, 0]),
        Err(libc::EFAULT),
    );
    let past = syscall(libc::SYS_read, [fd, 0x7fff_ffff_e000, u64::MAX, 0, 0, 0]);
    verdict.equal("a length past user space is EFAULT", past, Err(libc::EFAULT));
    verdict.equal(
        "stdout of a pipe is no terminal",
        terminal_error(),
        Some(libc::ENOTTY),
    );
}

/// What asking stdout for its terminal settings says; `None` if it is a terminal.
fn terminal_error() -> Option<i32> {
    let mut settings = [0_u8; 64];
    let address = settings.as_mut_ptr().expose_provenance() as u64;
    syscall(
        libc::SYS_ioctl,
        [1, libc::TCGETS.cast_unsigned().into(), address, 0, 0, 0],
    )
    .err()
}

fn words(verdict: &mut Verdict) {
    let Ok(mut file) = File::open("/proc/self/pagemap") else {
        verdict.holds("/proc/self/pagemap can be opened", false);
        return;
    };
    verdict.equal(
        "words are read whole",
        errno(file.read(&mut [0; 12])),
        libc::EINVAL,
    );
    verdict.holds(
        "eight bytes are a word",
        file.read(&mut [0; 8]).is_ok_and(|count| count == 8),
    );
    let end = file.seek(SeekFrom::Start(0x7fff_ffff_f000 / 4096 * 8));
    verdict.holds(
        "nothing is past user space",
        end.is_ok() && file.read(&mut [0; 8]).is_ok_and(|count| count == 0),
    );
}

fn devices(verdict: &mut Verdict) {
    let mut bytes = [1; 100];
    let zero = File::open("/dev/zero").and_then(|mut file| file.read_exact(&mut bytes));
    verdict.holds("/dev/zero gives zeroes", zero.is_ok() && bytes == [0; 100]);
    let null = File::open("/dev/null").and_then(|mut file| file.read(&mut bytes));
    verdict.holds("/dev/null gives nothing", null.is_ok_and(|count| count == 0));
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .and_then(|mut file| file.write(b"x"));
    verdict.equal("/dev/full is full", errno(full), libc::ENOSPC);
}
