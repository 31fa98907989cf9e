//! Processes: made, turned into other programs, ended, waited for.

use std::{arch::asm, ffi::CString, ptr, time::Duration};

use user::mapping::Mapping;

use crate::{Verdict, syscall};

/// Size of a huge page.
const HUGE: usize = 2 << 20;

/// Makes a child that does `job` and exits with what it returns. Without one there is nothing more to check.
pub(crate) fn child(job: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the program has one thread.
    match unsafe { libc::fork() } {
        0 => {
            let status = job();
            // SAFETY: ends the child without what the parent registered.
            unsafe { libc::_exit(status) }
        }
        -1 => {
            println!("BROKEN no child: {}", std::io::Error::last_os_error());
            std::process::exit(1)
        }
        pid => pid,
    }
}

/// `wait4`: who ended, and the status word.
pub(crate) fn wait(pid: i32, options: i32) -> Result<(i32, i32), i32> {
    let mut status = -1_i32;
    let arguments = [
        i64::from(pid).cast_unsigned(),
        (&raw mut status).expose_provenance() as u64,
        i64::from(options).cast_unsigned(),
        0,
        0,
        0,
    ];
    let ended = syscall(libc::SYS_wait4, arguments)?;
    // SAFETY: written by the call above.
    let status = unsafe { (&raw const status).read_volatile() };
    Ok((i32::try_from(ended).unwrap_or(-1), status))
}

/// The status word of a child that does `job`.
pub(crate) fn status_of(job: impl FnOnce() -> i32) -> Result<i32, i32> {
    let pid = child(job);
    wait(pid, 0).map(|(_, status)| status)
}

fn pid() -> i32 {
    std::process::id().cast_signed()
}

/// A call without arguments.
fn ask(number: i64) -> Result<u64, i32> {
    syscall(number, [0; 6])
}

pub(crate) fn kill(pid: i32, signal: i32) -> Result<u64, i32> {
    let arguments = [
        i64::from(pid).cast_unsigned(),
        i64::from(signal).cast_unsigned(),
        0,
        0,
        0,
        0,
    ];
    syscall(libc::SYS_kill, arguments)
}

/// Sets a disposition that is no handler.
pub(crate) fn set_disposition(signal: i32, to: libc::sighandler_t) {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(signal, to) };
}

fn pause_for_ever() -> i32 {
    loop {
        let _ = ask(libc::SYS_pause);
    }
}

/// Checks all of it; `after-exec FD` is what the other program checks.
pub(crate) fn check(words: &[String]) -> Verdict {
    let mut verdict = Verdict::default();
    if let [first, fd] = words
        && first == "after-exec"
    {
        after_exec(&mut verdict, fd.parse().unwrap_or(-1));
        return verdict;
    }
    identity(&mut verdict);
    memory(&mut verdict);
    registers(&mut verdict);
    ends(&mut verdict);
    waits(&mut verdict);
    groups(&mut verdict);
    orphans(&mut verdict);
    forgotten(&mut verdict);
    many(
        &mut verdict,
        words.first().and_then(|word| word.parse().ok()).unwrap_or(300),
    );
    refused_programs(&mut verdict);
    other_programs(&mut verdict);
    verdict
}

fn identity(verdict: &mut Verdict) {
    let parent = pid();
    let status = status_of(|| {
        let own = ask(libc::SYS_getpid).map(u64::cast_signed);
        let is_right = ask(libc::SYS_getppid) == Ok(u64::from(parent.unsigned_abs()))
            && own != Ok(i64::from(parent))
            && ask(libc::SYS_gettid).map(u64::cast_signed) == own;
        i32::from(!is_right)
    });
    verdict.equal("a child knows itself and its parent", status, Ok(0));
    let pid = child(|| 0);
    verdict.equal("fork returns who ends", wait(-1, 0), Ok((pid, 0)));
}

/// Each side has its own memory from the fork on, in base pages and in huge ones.
fn memory(verdict: &mut Verdict) {
    let Ok(area) = Mapping::anywhere(3 * HUGE) else {
        verdict.holds("memory is there", false);
        return;
    };
    area.touch();
    let places: Vec<usize> = (0..3 * HUGE).step_by(4096 * 37).collect();
    places.iter().for_each(|&at| area.write(at, 1));
    let pid = child(|| {
        let had = places.iter().all(|&at| area.read(at) == 1);
        places.iter().for_each(|&at| area.write(at, 2));
        std::thread::sleep(Duration::from_millis(30));
        let kept = places.iter().all(|&at| area.read(at) == 2);
        i32::from(!had) | i32::from(!kept) << 1
    });
    places.iter().for_each(|&at| area.write(at, 3));
    verdict.equal(
        "a child sees the memory of the fork, and then its own",
        wait(pid, 0),
        Ok((pid, 0)),
    );
    let kept = places.iter().all(|&at| area.read(at) == 3);
    verdict.holds("the parent never sees the child's", kept);
}

/// Forks with a pattern in a vector register; the child tells its own by its status.
fn registers(verdict: &mut Verdict) {
    const PATTERN: u64 = 0x0123_4567_89ab_cdef;
    let (pid, found): (i64, u64);
    // SAFETY: a fork; the child ends below. The kernel preserves everything but RAX, RCX and R11.
    unsafe {
        asm!(
            "movq xmm7, {pattern}",
            "syscall",
            "movq {found}, xmm7",
            pattern = in(reg) PATTERN,
            found = lateout(reg) found,
            inlateout("rax") libc::SYS_fork => pid,
            lateout("rcx") _,
            lateout("r11") _,
            out("xmm7") _,
        );
    }
    if pid == 0 {
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(found != PATTERN)) };
    }
    let pid = i32::try_from(pid).unwrap_or(-1);
    verdict.equal(
        "a child begins with its parent's vector registers",
        wait(pid, 0),
        Ok((pid, 0)),
    );
    verdict.equal("the parent keeps them", found, PATTERN);
}

fn ends(verdict: &mut Verdict) {
    verdict.equal("an exit tells its status", status_of(|| 7), Ok(7 << 8));
    verdict.equal("of which eight bits count", status_of(|| 0x1ff), Ok(0xff << 8));
    let wild = status_of(|| {
        // SAFETY: not sound, on purpose: it must fault.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(8).write_volatile(1) };
        0
    });
    verdict.equal(
        "a wild write tells SIGSEGV",
        wild.map(|status| status & 0x7f),
        Ok(libc::SIGSEGV),
    );
    for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGUSR1, libc::SIGALRM] {
        let pid = child(pause_for_ever);
        verdict.equal(&format!("signal {signal} is sent"), kill(pid, signal), Ok(0));
        verdict.equal("it ends a child that pauses", wait(pid, 0), Ok((pid, signal)));
    }
    let pid = child(|| {
        set_disposition(libc::SIGTERM, libc::SIG_IGN);
        let own = pid_of_caller();
        let sent = kill(own, libc::SIGTERM);
        i32::from(sent != Ok(0))
    });
    verdict.equal("an ignored signal ends nobody", wait(pid, 0), Ok((pid, 0)));
    let pid = child(|| {
        loop {
            std::hint::spin_loop();
        }
    });
    std::thread::sleep(Duration::from_millis(30));
    verdict.equal("a busy child is sent SIGKILL", kill(pid, libc::SIGKILL), Ok(0));
    verdict.equal("it ends too", wait(pid, 0), Ok((pid, libc::SIGKILL)));
}

/// Asks the kernel: a child must not trust what its parent may have noted.
fn pid_of_caller() -> i32 {
    ask(libc::SYS_getpid)
        .ok()
        .and_then(|pid| i32::try_from(pid).ok())
        .unwrap_or(-1)
}

fn waits(verdict: &mut Verdict) {
    verdict.equal(
        "without children there is none to wait for",
        wait(-1, 0),
        Err(libc::ECHILD),
    );
    verdict.equal("nor with WNOHANG", wait(-1, libc::WNOHANG), Err(libc::ECHILD));
    let pid = child(pause_for_ever);
    verdict.equal("WNOHANG does not wait", wait(pid, libc::WNOHANG), Ok((0, -1)));
    verdict.equal(
        "the caller is no child of its own",
        wait(pid_of_caller(), 0),
        Err(libc::ECHILD),
    );
    verdict.equal("unknown options are refused", wait(pid, 0x10), Err(libc::EINVAL));
    verdict.equal(
        "the least number is nobody's",
        wait(i32::MIN, 0),
        Err(libc::ESRCH),
    );
    verdict.equal("signal 0 finds a child", kill(pid, 0), Ok(0));
    let _ = kill(pid, libc::SIGTERM);
    let ended = loop {
        match wait(pid, libc::WNOHANG) {
            Ok((0, _)) => std::thread::sleep(Duration::from_millis(1)),
            other => break other,
        }
    };
    verdict.equal("WNOHANG finds who has ended", ended, Ok((pid, libc::SIGTERM)));
    verdict.equal("nobody ends twice", wait(pid, 0), Err(libc::ECHILD));
    verdict.equal("a forgotten number is nobody's", kill(pid, 0), Err(libc::ESRCH));
    let first = child(|| 1);
    let second = child(|| 2);
    verdict.equal(
        "the second can be waited for first",
        wait(second, 0),
        Ok((second, 2 << 8)),
    );
    verdict.equal("and the first then", wait(first, 0), Ok((first, 1 << 8)));
    let dead = child(|| 0);
    std::thread::sleep(Duration::from_millis(30));
    verdict.equal(
        "who has ended and was not waited for takes signals",
        kill(dead, libc::SIGKILL),
        Ok(0),
    );
    verdict.equal("and they change nothing", wait(dead, 0), Ok((dead, 0)));
}

fn groups(verdict: &mut Verdict) {
    let group = ask(libc::SYS_getpgrp);
    let status = status_of(|| i32::from(ask(libc::SYS_getpgrp) != group));
    verdict.equal("a child is in its parent's group", status, Ok(0));
    let pid = child(|| {
        let moved = ask(libc::SYS_setsid);
        let own = ask(libc::SYS_getpid);
        let is_leader = moved == own && ask(libc::SYS_getpgrp) == own;
        i32::from(!is_leader) | i32::from(ask(libc::SYS_setsid) != Err(libc::EPERM)) << 1
    });
    verdict.equal("a child can lead a session, once", wait(pid, 0), Ok((pid, 0)));
    let pid = child(|| {
        let _ = ask(libc::SYS_setpgid);
        pause_for_ever()
    });
    let own = syscall(
        libc::SYS_setpgid,
        [
            u64::from(pid.unsigned_abs()),
            u64::from(pid.unsigned_abs()),
            0,
            0,
            0,
            0,
        ],
    );
    verdict.equal("a parent can give its child a group", own, Ok(0));
    verdict.equal("a group is sent a signal", kill(-pid, libc::SIGTERM), Ok(0));
    verdict.equal("and waited for", wait(-pid, 0), Ok((pid, libc::SIGTERM)));
    verdict.equal("then there is no such group", kill(-pid, 0), Err(libc::ESRCH));
}

fn orphans(verdict: &mut Verdict) {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    unsafe { libc::pipe(ends.as_mut_ptr()) };
    let middle = child(|| {
        let own = ask(libc::SYS_getpid);
        child(|| {
            while ask(libc::SYS_getppid) == own {
                std::thread::sleep(Duration::from_millis(1));
            }
            let told = [u8::from(ask(libc::SYS_getppid) == Ok(1))];
            // SAFETY: one byte that lives.
            unsafe { libc::write(ends[1], told.as_ptr().cast(), 1) };
            0
        });
        0
    });
    verdict.equal("a parent may end first", wait(middle, 0), Ok((middle, 0)));
    let mut told = [0_u8];
    // SAFETY: room for one byte.
    unsafe { libc::read(ends[0], told.as_mut_ptr().cast(), 1) };
    verdict.equal("its child then is process 1's", told, [1]);
    verdict.equal("and not its grandparent's", wait(-1, 0), Err(libc::ECHILD));
    for end in ends {
        // SAFETY: nobody uses it any more.
        unsafe { libc::close(end) };
    }
}

fn forgotten(verdict: &mut Verdict) {
    set_disposition(libc::SIGCHLD, libc::SIG_IGN);
    let pid = child(|| 0);
    verdict.equal(
        "with SIGCHLD ignored a child leaves no trace",
        wait(pid, 0),
        Err(libc::ECHILD),
    );
    set_disposition(libc::SIGCHLD, libc::SIG_DFL);
}

/// Many children share what their parent touched.
fn many(verdict: &mut Verdict, children: usize) {
    let pids: Vec<i32> = (0..children).map(|_| child(pause_for_ever)).collect();
    verdict.holds(
        &format!("{children} children at a time"),
        pids.iter().all(|&pid| pid > 0),
    );
    let sent = pids
        .iter()
        .filter(|&&pid| kill(pid, libc::SIGKILL).is_ok())
        .count();
    verdict.equal("all are there", sent, children);
    let ended = pids.iter().filter(|_| wait(-1, 0).is_ok()).count();
    verdict.equal("all end", ended, children);
}

/// The raw call, so that the errno is the kernel's.
fn execve(path: *const libc::c_char, argv: *const *const libc::c_char) -> Result<u64, i32> {
    let arguments = [
        path.expose_provenance() as u64,
        argv.expose_provenance() as u64,
        0,
        0,
        0,
        0,
    ];
    syscall(libc::SYS_execve, arguments)
}

fn refused_programs(verdict: &mut Verdict) {
    let nothing = [ptr::null()];
    for (path, error) in [
        (c"/there/is/nothing", libc::ENOENT),
        (c"", libc::ENOENT),
        (c"/", libc::EACCES),
        (c"/proc/meminfo", libc::EACCES),
        (c"/proc/meminfo/x", libc::ENOTDIR),
    ] {
        let result = execve(path.as_ptr(), nothing.as_ptr());
        verdict.equal(&format!("{path:?} is no program"), result, Err(error));
    }
    let own = c"/proc/self/exe".as_ptr();
    verdict.equal(
        "a path must be there",
        execve(ptr::null(), nothing.as_ptr()),
        Err(libc::EFAULT),
    );
    verdict.equal(
        "arguments must be there",
        execve(own, ptr::without_provenance(8)),
        Err(libc::EFAULT),
    );
    verdict.equal(
        "each of them",
        execve(own, [ptr::without_provenance(8), ptr::null()].as_ptr()),
        Err(libc::EFAULT),
    );
    let long = CString::new(vec![b'a'; 132_000]).unwrap_or_default();
    verdict.equal(
        "an argument can be too long",
        execve(own, [long.as_ptr(), ptr::null()].as_ptr()),
        Err(libc::E2BIG),
    );
}

/// Spawns this program again, through the C library: its ways to a child (`vfork` or the like), `execve`, pipes.
fn other_programs(verdict: &mut Verdict) {
    let spawned = std::process::Command::new("/proc/self/exe")
        .args(["end", "status", "9"])
        .status();
    verdict.equal(
        "another program tells its status",
        spawned.ok().and_then(|status| status.code()),
        Some(9),
    );
    let output = std::process::Command::new("/proc/self/exe")
        .env_clear()
        .env("ONLY", "this")
        .args(["args", "a word", ""])
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let text = text.unwrap_or_default();
    for line in ["arg 0 \"a word\"", "arg 1 \"\"", "env ONLY=this"] {
        verdict.holds(
            &format!("it is given {line}"),
            text.lines().any(|found| found == line),
        );
    }
    verdict.equal(
        "and nothing else",
        text.lines().filter(|line| line.starts_with("env ")).count(),
        1,
    );
    set_disposition(libc::SIGUSR2, libc::SIG_IGN);
    // SAFETY: a descriptor of its own, closed below.
    let fd = unsafe { libc::fcntl(1, libc::F_DUPFD_CLOEXEC, 20) };
    let words = [c"x", c"tasks", c"after-exec"].map(|word| word.to_owned());
    let number = CString::new(fd.to_string()).unwrap_or_default();
    let mut argv: Vec<*const libc::c_char> = words.iter().map(|word| word.as_ptr()).collect();
    argv.extend([number.as_ptr(), ptr::null()]);
    let status = status_of(|| {
        // The C library's handlers would do as well; this one is never called.
        set_disposition(libc::SIGUSR1, 0x40_0000);
        let _ = execve(c"/proc/self/exe".as_ptr(), argv.as_ptr());
        99
    });
    verdict.equal("what another program keeps is right", status, Ok(0));
    set_disposition(libc::SIGUSR2, libc::SIG_DFL);
    // SAFETY: nobody uses it any more.
    unsafe { libc::close(fd) };
}

fn disposition(signal: i32) -> libc::sighandler_t {
    // SAFETY: all zeroes are an action.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: room for one action.
    unsafe { libc::sigaction(signal, ptr::null(), &raw mut old) };
    old.sa_sigaction
}

fn after_exec(verdict: &mut Verdict, fd: i32) {
    // SAFETY: only asks.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    verdict.equal("a descriptor with CLOEXEC is closed", flags, -1);
    // SAFETY: only asks.
    verdict.holds("others are not", unsafe { libc::fcntl(1, libc::F_GETFD) } >= 0);
    verdict.equal("a handler is gone", disposition(libc::SIGUSR1), libc::SIG_DFL);
    verdict.equal(
        "an ignored signal stays ignored",
        disposition(libc::SIGUSR2),
        libc::SIG_IGN,
    );
}
