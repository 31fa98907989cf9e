//! Processes: made, turned into other programs, waited for.

use alloc::vec::Vec;

use linux_abi::{errno::Errno, raw::general as abi};

use super::{
    Call, Result,
    fields::Fields,
    time, unsupported,
    user::{UserAddr, UserSlice},
};
use crate::{
    exec::{self, stack::STACK_LIMIT},
    heap,
    task::{
        family::Wanted,
        process::{self, Memory, Outcome, Process},
        sched,
        usage::Used,
    },
};

/// Longest argument of a program, its terminator included: Linux's `MAX_ARG_STRLEN`.
const ARG_MAX: usize = 32 * mm::PAGE_SIZE;
/// Most bytes of arguments and environment together, a pointer for each included.
const ARGS_MAX: usize = mm::addr::to_usize(STACK_LIMIT) / 4;

/// `fork()`.
pub(super) fn fork(call: &Call<'_>) -> Result {
    make(call, &Clone::fork(Memory::Copied))
}

/// `vfork()`: the caller sleeps until the child runs another program or ends.
pub(super) fn vfork(call: &Call<'_>) -> Result {
    make(call, &Clone::fork(Memory::Borrowed))
}

/// What a `clone` is to do.
struct Clone {
    memory: Memory,
    /// Where the child's stack begins, if not where its parent's is.
    stack: u64,
    /// Where the child finds its own number, in its memory.
    child_tid: Option<UserAddr>,
    /// Where the parent finds it.
    parent_tid: Option<UserAddr>,
    /// The base of FS, if not the parent's.
    tls: Option<mm::VirtAddr>,
}

/// The part of the flags that is a signal.
const CSIGNAL: u64 = 0xff;

impl Clone {
    const fn fork(memory: Memory) -> Self {
        Self {
            memory,
            stack: 0,
            child_tid: None,
            parent_tid: None,
            tls: None,
        }
    }

    /// Decodes the arguments of `clone`.
    fn new(call: &Call<'_>) -> core::result::Result<Self, Errno> {
        const VM_VFORK: u64 = (abi::CLONE_VM | abi::CLONE_VFORK) as u64;
        const KNOWN: u64 = CSIGNAL
            | VM_VFORK
            | (abi::CLONE_CHILD_SETTID
                | abi::CLONE_CHILD_CLEARTID
                | abi::CLONE_PARENT_SETTID
                | abi::CLONE_SETTLS
                | abi::CLONE_DETACHED) as u64;
        let flags = call.raw(0) & u64::from(u32::MAX);
        let has = |flag: u32| flags & u64::from(flag) != 0;
        check_combination(&has)?;
        if flags & !KNOWN != 0 {
            return unsupported!(
                Errno::ENOSYS,
                "clone with flags {flags:#x}: threads and shared tables"
            );
        }
        if flags & CSIGNAL != u64::from(abi::SIGCHLD) {
            return unsupported!(Errno::ENOSYS, "clone with another signal than SIGCHLD");
        }
        let memory = match flags & VM_VFORK {
            0 => Memory::Copied,
            VM_VFORK => Memory::Borrowed,
            _ => return unsupported!(Errno::ENOSYS, "clone with one of CLONE_VM and CLONE_VFORK"),
        };
        // In memory that nobody else uses there is nobody to tell: the word is then never cleared, on Linux too.
        if has(abi::CLONE_CHILD_CLEARTID) && memory == Memory::Borrowed {
            return unsupported!(Errno::ENOSYS, "clone with CLONE_VM and CLONE_CHILD_CLEARTID");
        }
        let wanted = |flag, raw| {
            if has(flag) {
                UserAddr::new(raw).map(Some)
            } else {
                Ok(None)
            }
        };
        Ok(Self {
            memory,
            stack: call.raw(1),
            parent_tid: wanted(abi::CLONE_PARENT_SETTID, call.raw(2))?,
            // An address that is none is found out when it is written, and then ignored.
            child_tid: wanted(abi::CLONE_CHILD_SETTID, call.raw(3)).unwrap_or(None),
            tls: wanted(abi::CLONE_SETTLS, call.raw(4))
                .map_err(|_| Errno::EPERM)?
                .map(UserAddr::addr),
        })
    }
}

/// Refuses what makes no sense together.
fn check_combination(has: &dyn Fn(u32) -> bool) -> core::result::Result<(), Errno> {
    let thread_alone = has(abi::CLONE_THREAD) && !has(abi::CLONE_SIGHAND);
    let handlers_alone = has(abi::CLONE_SIGHAND) && !has(abi::CLONE_VM);
    let root_of_two = has(abi::CLONE_FS) && has(abi::CLONE_NEWNS);
    if thread_alone || handlers_alone || root_of_two {
        Err(Errno::EINVAL)
    } else {
        Ok(())
    }
}

/// `clone(flags, stack, parent_tid, child_tid, tls)`: as C libraries make processes. Threads are not supported.
pub(super) fn clone(call: &Call<'_>) -> Result {
    make(call, &Clone::new(call)?)
}

fn make(call: &Call<'_>, wanted: &Clone) -> Result {
    let mut frame = *call.frame();
    frame.rax = 0;
    if wanted.stack != 0 {
        frame.rsp = wanted.stack;
    }
    let (child_tid, tls) = (wanted.child_tid, wanted.tls);
    let child = process::fork(call.process(), wanted.memory, frame, move || {
        begin_child(child_tid, tls)
    })?;
    let pid = child.pid().number();
    if let Some(addr) = wanted.parent_tid {
        // As Linux: the child is there, whether the word is or not.
        let _ = addr.write(&pid.to_le_bytes());
    }
    if wanted.memory == Memory::Borrowed {
        child.wait_for_guest(call.process());
    }
    Ok(u64::from(pid))
}

/// What the child does before it returns to ring 3.
fn begin_child(child_tid: Option<UserAddr>, tls: Option<mm::VirtAddr>) {
    if let Some(base) = tls {
        crate::task::thread::current().set_fs_base(base);
    }
    if let (Some(addr), Some(process)) = (child_tid, process::current()) {
        // As Linux: a place that cannot be written is the program's own affair.
        let _ = addr.write(&process.pid().number().to_le_bytes());
    }
}

/// Reads a list of strings that a null pointer ends. `room`: how many bytes it may take; what it took is gone then.
fn read_strings(raw: u64, room: &mut usize) -> core::result::Result<Vec<Vec<u8>>, Errno> {
    const POINTER: usize = 8;
    let mut strings = Vec::new();
    if raw == 0 {
        return Ok(strings);
    }
    let mut at = raw;
    loop {
        let slot = UserSlice::new(at, POINTER as u64)?;
        let mut pointer = [0; POINTER];
        slot.read_at(0, &mut pointer)?;
        let pointer = u64::from_le_bytes(pointer);
        if pointer == 0 {
            return Ok(strings);
        }
        let string = UserAddr::new(pointer)?.read_string(ARG_MAX)?;
        strings.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        *room = room.checked_sub(string.len() + 1 + POINTER).ok_or(Errno::E2BIG)?;
        strings.push(string);
        at += POINTER as u64;
    }
}

fn slices(strings: &[Vec<u8>]) -> core::result::Result<Vec<&[u8]>, Errno> {
    let mut slices = heap::try_vec(strings.len())?;
    slices.extend(strings.iter().map(Vec::as_slice));
    Ok(slices)
}

/// `execve(path, argv, envp)`.
pub(super) fn execve(call: &Call<'_>) -> Result {
    let path = UserAddr::new(call.raw(0))?.read_path()?;
    let mut room = ARGS_MAX;
    let mut argv = read_strings(call.raw(1), &mut room)?;
    let env = read_strings(call.raw(2), &mut room)?;
    if argv.is_empty() {
        // As Linux since 5.18: no program is to find its environment where its name should be.
        argv.push(Vec::new());
    }
    let (argv, env) = (slices(&argv)?, slices(&env)?);
    let start = call.process().working_directory().place;
    let program = exec::load_at(start, &path, &argv, &env).map_err(exec::ExecError::errno)?;
    call.begin_program(call.process().run_program(program));
    Ok(0)
}

/// Options of a wait that a program may give. Nothing is ever stopped or continued here.
const WAIT_OPTIONS: u32 =
    abi::WNOHANG | abi::WUNTRACED | abi::WCONTINUED | abi::__WNOTHREAD | abi::__WCLONE | abi::__WALL;

/// `wait4(pid, status, options, usage)`.
pub(super) fn wait4(call: &Call<'_>) -> Result {
    let options = call.uint(2);
    if options & !WAIT_OPTIONS != 0 {
        return Err(Errno::EINVAL);
    }
    let wanted = match call.int(0) {
        i32::MIN => return Err(Errno::ESRCH),
        -1 => Wanted::Any,
        0 => Wanted::Group(call.process().kin().group().number()),
        group @ ..0 => Wanted::Group(group.unsigned_abs()),
        pid => Wanted::Child(pid.unsigned_abs()),
    };
    if options & abi::__WCLONE != 0 && options & abi::__WALL == 0 {
        // Children that tell their end by another signal than SIGCHLD: there are none.
        return Err(Errno::ECHILD);
    }
    let ended = if options & abi::WNOHANG != 0 {
        call.process().find_ended(wanted)?
    } else {
        Some(call.process().wait_for_child(wanted)?)
    };
    let Some(child) = ended else { return Ok(0) };
    call.process().reap(&child);
    if let Some(addr) = UserAddr::optional(call.raw(1))? {
        addr.write(&status_word(&child).to_le_bytes())?;
    }
    tell_usage(call.raw(3), &child)?;
    Ok(u64::from(child.pid().number()))
}

/// How a child ended, as `wait4` tells it.
fn status_word(child: &Process) -> u32 {
    match child.outcome() {
        Some(Outcome::Exited(status)) => u32::from(status) << 8,
        // No core is ever written, so its bit is never set.
        Some(Outcome::Killed(signal)) => u32::from(signal.number()),
        None => 0,
    }
}

/// Tells what a child used, if somebody wants to know.
fn tell_usage(raw: u64, child: &Process) -> core::result::Result<(), Errno> {
    let Some(addr) = UserAddr::optional(raw)? else {
        return Ok(());
    };
    let used = child.usage().so_far().plus(*child.children_used().lock());
    addr.write(&rusage(used))
}

/// `struct rusage`.
fn rusage(used: Used) -> [u8; 144] {
    const { assert!(size_of::<abi::rusage>() == 144) }
    Fields::new()
        .bytes(&time::timeval(used.cpu))
        // System time.
        .pad(16)
        .u64(used.peak_rss_pages * (mm::PAGE_BYTES / 1024))
        // Three sizes that Linux does not fill either.
        .pad(3 * 8)
        .u64(used.faults)
        // Faults that read a disk, swaps, blocks, messages, signals.
        .pad(7 * 8)
        .u64(used.voluntary)
        .u64(used.involuntary)
        .done()
}

/// `getrusage(who, usage)`.
pub(super) fn getrusage(call: &Call<'_>) -> Result {
    sched::count_running_time();
    if let Some(space) = call.process().space() {
        call.process().usage().note_peak(space.peak_rss_pages());
    }
    let used = match call.int(0) {
        // The process has one thread.
        RUSAGE_SELF | RUSAGE_THREAD => call.process().usage().so_far(),
        RUSAGE_CHILDREN => *call.process().children_used().lock(),
        _ => return Err(Errno::EINVAL),
    };
    UserAddr::new(call.raw(1))?.write(&rusage(used))?;
    Ok(0)
}

const RUSAGE_SELF: i32 = 0;
const RUSAGE_CHILDREN: i32 = -1;
const RUSAGE_THREAD: i32 = 1;

/// Options of `waitid`.
const WAITID_OPTIONS: u32 = abi::WNOHANG
    | abi::WNOWAIT
    | abi::WEXITED
    | abi::WSTOPPED
    | abi::WCONTINUED
    | abi::__WNOTHREAD
    | abi::__WCLONE
    | abi::__WALL;

/// `waitid(kind, id, info, options, usage)`.
pub(super) fn waitid(call: &Call<'_>) -> Result {
    let options = call.uint(3);
    let has = |option| options & option != 0;
    if options & !WAITID_OPTIONS != 0 || !has(abi::WEXITED | abi::WSTOPPED | abi::WCONTINUED) {
        return Err(Errno::EINVAL);
    }
    let id = u32::try_from(call.int(1));
    let wanted = match call.uint(0) {
        abi::P_ALL => Wanted::Any,
        abi::P_PID => Wanted::Child(id.ok().filter(|&id| id > 0).ok_or(Errno::EINVAL)?),
        abi::P_PGID => match id.map_err(|_| Errno::EINVAL)? {
            0 => Wanted::Group(call.process().kin().group().number()),
            group => Wanted::Group(group),
        },
        abi::P_PIDFD => return unsupported!(Errno::EBADF, "waitid with P_PIDFD"),
        _ => return Err(Errno::EINVAL),
    };
    if has(abi::__WCLONE) && !has(abi::__WALL) {
        return Err(Errno::ECHILD);
    }
    let child = if !has(abi::WEXITED) {
        // Nothing is ever stopped or continued here.
        let _ = call.process().find_ended(wanted)?;
        if !has(abi::WNOHANG) {
            super::signal::pause(call)?;
        }
        None
    } else if has(abi::WNOHANG) {
        call.process().find_ended(wanted)?
    } else {
        Some(call.process().wait_for_child(wanted)?)
    };
    if let Some(child) = &child {
        if !has(abi::WNOWAIT) {
            call.process().reap(child);
        }
        tell_usage(call.raw(4), child)?;
    }
    if let Some(addr) = UserAddr::optional(call.raw(2))? {
        addr.write(&child_info(child.as_deref()))?;
    }
    Ok(0)
}

/// The part of `siginfo_t` that tells of a child; all zeroes: of none.
fn child_info(child: Option<&Process>) -> [u8; 28] {
    let Some((child, outcome)) = child.and_then(|child| Some((child, child.outcome()?))) else {
        return [0; 28];
    };
    let (code, status) = match outcome {
        Outcome::Exited(status) => (abi::CLD_EXITED, u32::from(status)),
        Outcome::Killed(signal) => (abi::CLD_KILLED, u32::from(signal.number())),
    };
    Fields::new()
        .u32(abi::SIGCHLD)
        .u32(0)
        .u32(code)
        .pad(4)
        .u32(child.pid().number())
        // Everybody is the superuser.
        .u32(0)
        .u32(status)
        .done()
}
