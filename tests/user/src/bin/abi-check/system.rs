//! Mounts, allocations that fail on purpose, and what waits and processes tell about each other.
//!
//! `fail-nth` needs a Linux with fault injection; a second `tmpfs` in the place of the first is only refused here.

use std::{
    ffi::CStr,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    ptr,
};

use crate::{
    Verdict, syscall,
    tasks::{child, kill, status_of, wait},
};

/// Checks all of it.
pub(crate) fn check(_: &[String]) -> Verdict {
    let mut verdict = Verdict::default();
    mounts(&mut verdict);
    if let Err(error) = injection(&mut verdict) {
        verdict.holds(&format!("no call fails that must not: {error}"), false);
    }
    waits(&mut verdict);
    usage(&mut verdict);
    verdict
}

fn address(string: Option<&CStr>) -> u64 {
    string.map_or(0, |string| string.as_ptr().expose_provenance() as u64)
}

fn mount(target: Option<&CStr>, kind: Option<&CStr>, flags: u64) -> Result<u64, i32> {
    let arguments = [
        address(Some(c"none")),
        address(target),
        address(kind),
        flags,
        0,
        0,
    ];
    syscall(libc::SYS_mount, arguments)
}

fn mounts(verdict: &mut Verdict) {
    for (target, kind) in [
        (c"/proc", c"proc"),
        (c"/proc/", c"proc"),
        (c"/sys", c"sysfs"),
        (c"/sys/kernel/debug", c"debugfs"),
        (c"/dev/shm", c"tmpfs"),
        (c"/tmp", c"tmpfs"),
    ] {
        let result = mount(Some(target), Some(kind), 0);
        verdict.equal(
            &format!("{kind:?} is on {target:?} already"),
            result,
            Err(libc::EBUSY),
        );
    }
    for (what, target, kind, expected) in [
        ("an unknown type", c"/proc", Some(c"nofs"), libc::ENODEV),
        ("no type", c"/proc", None, libc::EINVAL),
        ("no such place", c"/nowhere", Some(c"proc"), libc::ENOENT),
        (
            "a place that is a file",
            c"/proc/meminfo",
            Some(c"proc"),
            libc::ENOTDIR,
        ),
        ("an empty place", c"", Some(c"proc"), libc::ENOENT),
    ] {
        verdict.equal(
            &format!("mount: {what}"),
            mount(Some(target), kind, 0),
            Err(expected),
        );
    }
    verdict.equal(
        "mount: a null place",
        mount(None, Some(c"proc"), 0),
        Err(libc::EFAULT),
    );
    let wild = [address(Some(c"none")), address(Some(c"/proc")), 8, 0, 0, 0];
    verdict.equal(
        "mount: a wild type",
        syscall(libc::SYS_mount, wild),
        Err(libc::EFAULT),
    );
    let umount =
        |target: &CStr, flags| syscall(libc::SYS_umount2, [address(Some(target)), flags, 0, 0, 0, 0]);
    verdict.equal("umount: no mount", umount(c"/proc/self", 0), Err(libc::EINVAL));
    verdict.equal(
        "umount: unknown flags",
        umount(c"/proc", 1 << 20),
        Err(libc::EINVAL),
    );
    verdict.equal("umount: no such place", umount(c"/nowhere", 0), Err(libc::ENOENT));
    let table = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for start in [
        "proc /proc proc ",
        "sysfs /sys sysfs ",
        "debugfs /sys/kernel/debug debugfs ",
        "tmpfs /dev/shm tmpfs ",
    ] {
        verdict.holds(
            &format!("/proc/mounts has {start:?}"),
            table.lines().any(|line| line.starts_with(start)),
        );
    }
    let types = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    for kind in ["proc", "sysfs", "debugfs", "tmpfs"] {
        let line = format!("nodev\t{kind}");
        verdict.holds(
            &format!("/proc/filesystems has {kind}"),
            types.lines().any(|found| found == line),
        );
    }
}

/// What is left until a failure, as the file says.
fn left(file: &File) -> io::Result<String> {
    let mut bytes = [0; 16];
    let count = file.read_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes[..count]).into_owned())
}

/// A call that takes one thing from the kernel's heap at least.
fn pipe() -> Result<[i32; 2], i32> {
    let mut ends = [0; 2];
    let start = ends.as_mut_ptr().expose_provenance() as u64;
    syscall(libc::SYS_pipe2, [start, 0, 0, 0, 0, 0])?;
    // SAFETY: written by the call above.
    Ok(unsafe { (&raw const ends).read_volatile() })
}

fn close(ends: [i32; 2]) {
    for end in ends {
        // SAFETY: nobody uses it any more.
        unsafe { libc::close(end) };
    }
}

fn injection(verdict: &mut Verdict) -> io::Result<()> {
    let pid = std::process::id();
    let by_thread = format!("/proc/self/task/{pid}/fail-nth");
    for path in [
        "/proc/self/fail-nth",
        &by_thread,
        &format!("/proc/{pid}/fail-nth"),
    ] {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let tell = |text: &str| {
            file.write_at(text.as_bytes(), 0)
                .map_err(|error| error.raw_os_error().unwrap_or(0))
        };
        verdict.equal(
            &format!("{path}: nothing is to fail at first"),
            left(&file)?,
            "0\n".into(),
        );
        verdict.equal("the first allocation is to fail", tell("1"), Ok(1));
        verdict.equal("that is still to come", left(&file)?, "1\n".into());
        let refused = pipe();
        verdict.equal("a pipe is refused", refused, Err(libc::ENOMEM));
        verdict.equal("that was it", left(&file)?, "0\n".into());
        let ends = pipe();
        verdict.holds("the next one is not", ends.is_ok());
        ends.into_iter().for_each(close);
        verdict.equal("a later one, with a newline", tell("1000\n"), Ok(5));
        let ends = pipe();
        verdict.holds(
            "is counted down to",
            left(&file)?.trim().parse::<u32>().is_ok_and(|left| left < 1000),
        );
        ends.into_iter().for_each(close);
        let of_child = status_of(|| {
            let own = File::open("/proc/self/fail-nth").and_then(|file| left(&file));
            i32::from(own.ok().as_deref() != Some("0\n"))
        });
        verdict.equal("a child has none", of_child, Ok(0));
        for (text, expected) in [
            ("0x10", "16\n"),
            ("010", "8\n"),
            ("4294967295", "4294967295\n"),
            ("0", "0\n"),
        ] {
            verdict.equal(&format!("{text:?} is a number"), tell(text), Ok(text.len()));
            verdict.equal("this one", left(&file)?, expected.into());
        }
        for (text, errno) in [
            ("x", libc::EINVAL),
            ("-1", libc::EINVAL),
            ("1 2", libc::EINVAL),
            ("4294967296", libc::ERANGE),
        ] {
            verdict.equal(&format!("{text:?} is none"), tell(text), Err(errno));
        }
        verdict.equal("and changes nothing", left(&file)?, "0\n".into());
    }
    let tasks: Vec<_> = fs::read_dir("/proc/self/task")?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    verdict.equal("/proc/self/task has the one thread", tasks, vec![pid.to_string()]);
    verdict.equal(
        "and no other",
        fs::metadata("/proc/self/task/1").err().map(|error| error.kind()),
        Some(io::ErrorKind::NotFound),
    );
    let pid = child(|| {
        loop {
            let _ = syscall(libc::SYS_pause, [0; 6]);
        }
    });
    let path = format!("/proc/{pid}/fail-nth");
    verdict.holds("another process can be told", fs::write(&path, "7").is_ok());
    verdict.equal("and asked", fs::read_to_string(&path)?, "7\n".into());
    let file = File::open(&path)?;
    let _ = kill(pid, libc::SIGKILL);
    let _ = wait(pid, 0);
    let errno = left(&file).err().and_then(|error| error.raw_os_error());
    verdict.equal("until it is gone", errno, Some(libc::ESRCH));
    Ok(())
}

/// `waitid`: the result, and signal, code, process and status of what it tells.
fn waitid(kind: u32, id: i32, options: i32) -> Result<[i32; 4], i32> {
    let mut info = [-1_i32; 32];
    let arguments = [
        u64::from(kind),
        i64::from(id).cast_unsigned(),
        info.as_mut_ptr().expose_provenance() as u64,
        i64::from(options).cast_unsigned(),
        0,
        0,
    ];
    syscall(libc::SYS_waitid, arguments)?;
    // SAFETY: written by the call above.
    let info = unsafe { (&raw const info).read_volatile() };
    Ok([info[0], info[2], info[4], info[6]])
}

fn waits(verdict: &mut Verdict) {
    let exited = libc::WEXITED;
    verdict.equal(
        "waitid: no children",
        waitid(libc::P_ALL, 0, exited),
        Err(libc::ECHILD),
    );
    verdict.equal(
        "waitid: for nothing",
        waitid(libc::P_ALL, 0, 0),
        Err(libc::EINVAL),
    );
    verdict.equal(
        "waitid: unknown options",
        waitid(libc::P_ALL, 0, exited | 1 << 20),
        Err(libc::EINVAL),
    );
    verdict.equal("waitid: unknown kind", waitid(9, 0, exited), Err(libc::EINVAL));
    verdict.equal(
        "waitid: process 0",
        waitid(libc::P_PID, 0, exited),
        Err(libc::EINVAL),
    );
    let pid = child(|| 7);
    let told = [libc::SIGCHLD, libc::CLD_EXITED, pid, 7];
    let looks = exited | libc::WNOWAIT;
    verdict.equal(
        "waitid: a child that exits",
        waitid(libc::P_PID, pid, looks),
        Ok(told),
    );
    verdict.equal("is still there", waitid(libc::P_ALL, 0, looks), Ok(told));
    verdict.equal("and waited for", waitid(libc::P_PID, pid, exited), Ok(told));
    verdict.equal("once", waitid(libc::P_PID, pid, exited), Err(libc::ECHILD));
    let pid = child(|| {
        loop {
            let _ = syscall(libc::SYS_pause, [0; 6]);
        }
    });
    let early = waitid(libc::P_PID, pid, exited | libc::WNOHANG);
    verdict.equal(
        "waitid: nobody has ended",
        early.map(|info| (info[0], info[2])),
        Ok((0, 0)),
    );
    let _ = kill(pid, libc::SIGTERM);
    let told = [libc::SIGCHLD, libc::CLD_KILLED, pid, libc::SIGTERM];
    verdict.equal(
        "waitid: a child that was killed",
        waitid(libc::P_ALL, 0, exited),
        Ok(told),
    );
}

fn used_by(who: i32) -> libc::rusage {
    // SAFETY: all zeroes are a usage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: room for one usage.
    unsafe { libc::getrusage(who, &raw mut usage) };
    usage
}

fn micros(usage: &libc::rusage) -> i64 {
    let of = |time: libc::timeval| time.tv_sec * 1_000_000 + time.tv_usec;
    of(usage.ru_utime) + of(usage.ru_stime)
}

fn usage(verdict: &mut Verdict) {
    let before = used_by(libc::RUSAGE_SELF);
    let start = std::time::Instant::now();
    while start.elapsed().as_millis() < 40 {
        std::hint::spin_loop();
    }
    let after = used_by(libc::RUSAGE_SELF);
    // Others may have had the processor for a part of it.
    verdict.holds(
        "what is computed is counted",
        micros(&after) > micros(&before) + 4_000,
    );
    verdict.holds("and not more", micros(&after) < micros(&before) + 4_000_000);
    let pid = child(|| {
        let memory = user::mapping::Mapping::anywhere(100 * user::PAGE);
        if let Ok(memory) = memory {
            let _ = memory.advise(0..100 * user::PAGE, libc::MADV_NOHUGEPAGE);
            memory.touch();
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
        0
    });
    let children = used_by(libc::RUSAGE_CHILDREN);
    // SAFETY: all zeroes are a usage.
    let mut of_child: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: room for one usage.
    let ended = unsafe { libc::wait4(pid, ptr::null_mut(), 0, &raw mut of_child) };
    verdict.equal("wait4 with usage", ended, pid);
    verdict.holds(
        "a child's faults are told",
        (100..1000).contains(&of_child.ru_minflt),
    );
    verdict.holds("and its memory", (400..100_000).contains(&of_child.ru_maxrss));
    verdict.equal("none read a disk", of_child.ru_majflt, 0);
    verdict.holds("and that it slept", of_child.ru_nvcsw >= 1);
    let both = used_by(libc::RUSAGE_CHILDREN);
    verdict.equal(
        "which is added to the children's",
        both.ru_minflt,
        children.ru_minflt + of_child.ru_minflt,
    );
    let wild = syscall(libc::SYS_getrusage, [0, 8, 0, 0, 0, 0]);
    verdict.equal("getrusage: nowhere to put it", wild, Err(libc::EFAULT));
    let wrong = syscall(libc::SYS_getrusage, [5, 8, 0, 0, 0, 0]);
    verdict.equal("getrusage: nobody's", wrong, Err(libc::EINVAL));
}
