//! Runs a program again and again, each time with another allocation of the kernel's failing on its behalf, through
//! Linux's `/proc/self/fail-nth`: `fail-every [--all] PROGRAM [ARGUMENTS]`.
//!
//! The program may end as it likes; what it prints is thrown away. What is promised: it ends, whatever it started ends
//! with it, and the machine then has as much free memory as before. The allocations of its `execve` fail in turn too.
//!
//! How many allocations there are is counted first, by a run whose failure never comes. With `--all` each of them fails
//! once. Without, each of the first [`EVERY`] does; later ones are mostly the same few places again and again (the pages of
//! a large area, one by one), so from there on the distance grows with the number.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::fd::AsRawFd,
    process::ExitCode,
    ptr,
    time::{Duration, Instant},
};

use user::proc::meminfo_kb;

/// So many allocations fail one by one.
const EVERY: u32 = 100;
/// Behind those, the distance is what is beyond them divided by this.
const DISTANCE: u32 = 10;
/// A program that takes longer is ended.
const PATIENCE: Duration = Duration::from_secs(20);
/// Whole runs before free memory is looked at: the kernel keeps what its own lists have grown to.
const WARM_UP: u32 = 2;

/// How one run went.
struct Run {
    /// Allocations that were left until the failure; 0: it happened.
    left: u32,
    /// As `wait4` tells it; `None`: it had to be ended.
    status: Option<i32>,
}

fn main() -> ExitCode {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let step = if words.first().is_some_and(|word| word == "--all") {
        words.remove(0);
        |_| 1
    } else {
        |nth: u32| 1 + nth.saturating_sub(EVERY) / DISTANCE
    };
    let argv: Vec<CString> = words
        .iter()
        .filter_map(|word| CString::new(word.as_str()).ok())
        .collect();
    if argv.is_empty() {
        println!("usage: fail-every [--all] PROGRAM [ARGUMENTS]");
        return ExitCode::from(2);
    }
    match all(&argv, step) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            println!("BROKEN {}: {what}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn all(argv: &[CString], step: fn(u32) -> u32) -> Result<(), String> {
    let name = argv
        .iter()
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ");
    let mut allocations = 0;
    for _ in 0..WARM_UP {
        let run = run(argv, u32::MAX)?;
        allocations = u32::MAX - run.left;
        if run.status != Some(0) {
            return Err(format!("without a failure it ends with {:?}", run.status));
        }
    }
    let free = free_kb()?;
    let start = Instant::now();
    let (mut nth, mut tried, mut refused) = (1, 0_u32, 0_u32);
    let mut reached = 0;
    loop {
        let Run { left, status } = run(argv, nth)?;
        if left > 0 {
            break;
        }
        let status = status.ok_or_else(|| format!("it does not end when allocation {nth} fails"))?;
        reached = nth;
        tried += 1;
        refused += u32::from(status != 0);
        nth += step(nth);
    }
    let lost = free.abs_diff(free_kb()?);
    println!(
        "ok     {name}: {tried} of {allocations} allocations failed, up to number {reached}; {refused} runs noticed; \
         {} ms",
        start.elapsed().as_millis()
    );
    if lost > 0 {
        return Err(format!("{free} kB were free before, {} kB are now", free_kb()?));
    }
    if tried == 0 || refused == 0 {
        return Err("no failure had any effect".into());
    }
    Ok(())
}

fn free_kb() -> Result<u64, String> {
    meminfo_kb("MemFree").map_err(|error| error.to_string())
}

/// One run whose `nth` allocation fails.
fn run(argv: &[CString], nth: u32) -> Result<Run, String> {
    let mut pointers: Vec<*const libc::c_char> = argv.iter().map(|word| word.as_ptr()).collect();
    pointers.push(ptr::null());
    let environment = [ptr::null::<libc::c_char>()];
    // SAFETY: the program has one thread.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(format!("no child: {}", std::io::Error::last_os_error())),
        0 => child(&pointers, environment.as_ptr(), nth),
        pid => pid,
    };
    let left = File::open(format!("/proc/{pid}/fail-nth"));
    let status = wait(pid);
    // Before the number is forgotten: what is left tells whether the failure came.
    let left = left.map_err(|error| format!("/proc/{pid}/fail-nth: {error}"))?;
    let left = number_in(left).map_err(|error| format!("/proc/{pid}/fail-nth: {error}"))?;
    // SAFETY: its own child and what that started.
    unsafe { libc::kill(-pid, libc::SIGKILL) };
    // SAFETY: room for nothing is needed.
    unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
    Ok(Run { left, status })
}

fn number_in(mut file: File) -> std::io::Result<u32> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_string(&mut text)?;
    text.trim()
        .parse()
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidData))
}

/// Waits until the child has ended or patience is over, and leaves it to be waited for.
fn wait(pid: i32) -> Option<i32> {
    let start = Instant::now();
    loop {
        // SAFETY: all zeroes are a siginfo.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let id = pid.unsigned_abs();
        // SAFETY: room for one siginfo.
        unsafe {
            libc::waitid(
                libc::P_PID,
                id,
                &raw mut info,
                libc::WEXITED | libc::WNOWAIT | libc::WNOHANG,
            )
        };
        // SAFETY: filled by the call, of a child or with zeroes.
        if unsafe { info.si_pid() } == pid {
            // SAFETY: as above.
            let status = unsafe { info.si_status() };
            let was_killed = info.si_code != libc::CLD_EXITED;
            return Some(if was_killed { 128 + status } else { status });
        }
        if start.elapsed() > PATIENCE {
            // SAFETY: its own child.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            // SAFETY: as above; it ends now.
            unsafe { libc::waitid(libc::P_PID, id, &raw mut info, libc::WEXITED | libc::WNOWAIT) };
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Becomes the program. Everything that it needs is there before the first allocation counts.
fn child(argv: &[*const libc::c_char], environment: *const *const libc::c_char, nth: u32) -> ! {
    let nothing = fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    let control = fs::OpenOptions::new().write(true).open("/proc/self/fail-nth");
    if let (Ok(nothing), Ok(mut control)) = (nothing, control) {
        for stream in 0..3 {
            // SAFETY: descriptors of this child.
            unsafe { libc::dup2(nothing.as_raw_fd(), stream) };
        }
        let number = nth.to_string();
        // SAFETY: the child is a group of its own, so that whatever it starts can be ended with it.
        unsafe { libc::setpgid(0, 0) };
        let armed = control.write_all(number.as_bytes()).is_ok();
        if armed {
            // SAFETY: null-terminated lists of strings that live.
            unsafe { libc::execve(argv[0], argv.as_ptr(), environment) };
        }
    }
    // SAFETY: ends the child without what the parent registered.
    unsafe { libc::_exit(126) }
}
