//! Identity, limits, names, random bytes, and the end.

use linux_abi::{
    errno::Errno,
    raw::{general as abi, prctl},
};
use mm::{PAGE_BYTES, PAGE_SIZE, Platform, USER_END, VirtAddr};

use super::{
    Call, Result,
    fields::{Fields, words},
    unsupported,
    user::{UserAddr, UserSlice},
};
use crate::{
    drivers::clock,
    log,
    platform::mm,
    random,
    task::{
        family::Kin,
        process::{self, Limit, NR_LIMITS, Outcome, Pid, Process, limit_memory},
        sched, thread,
    },
    version,
    vfs::fd::NOFILE_MAX,
};

/// `exit(status)`, `exit_group(status)`: a process has one thread.
pub(super) fn exit(call: &Call<'_>) -> Result {
    let [status, ..] = call.int(0).to_le_bytes();
    call.process().end(Outcome::Exited(status));
    Ok(0)
}

/// `getpid()`, `gettid()`.
pub(super) fn getpid(call: &Call<'_>) -> Result {
    Ok(u64::from(call.process().pid().number()))
}

/// `getppid()`.
pub(super) fn getppid(call: &Call<'_>) -> Result {
    Ok(u64::from(call.process().kin().parent().number()))
}

/// `getuid()` and relatives: everybody is the superuser.
pub(super) fn getuid(_: &Call<'_>) -> Result {
    Ok(0)
}

/// `getresuid(real, effective, saved)`, `getresgid(...)`.
pub(super) fn getresuid(call: &Call<'_>) -> Result {
    for index in 0..3 {
        UserAddr::new(call.raw(index))?.write(&[0; 4])?;
    }
    Ok(0)
}

/// `getgroups(count, list)`: no supplementary groups.
pub(super) fn getgroups(call: &Call<'_>) -> Result {
    if call.int(0) < 0 {
        Err(Errno::EINVAL)
    } else {
        Ok(0)
    }
}

/// What `of` says about the process that argument 0 names; 0 names the caller. Process 1 leads a group and a session.
fn membership(call: &Call<'_>, of: fn(&Kin) -> Pid) -> Result {
    let wanted = call.uint(0);
    if wanted == Pid::INIT.number() {
        return Ok(u64::from(wanted));
    }
    let found = if wanted == 0 {
        of(call.process().kin())
    } else {
        of(process::find(Pid::new(wanted)).ok_or(Errno::ESRCH)?.kin())
    };
    Ok(u64::from(found.number()))
}

/// `getpgid(pid)`.
pub(super) fn getpgid(call: &Call<'_>) -> Result {
    membership(call, Kin::group)
}

/// `getsid(pid)`.
pub(super) fn getsid(call: &Call<'_>) -> Result {
    membership(call, Kin::session)
}

/// `getpgrp()`.
pub(super) fn getpgrp(call: &Call<'_>) -> Result {
    Ok(u64::from(call.process().kin().group().number()))
}

/// `setsid()`. The leader of a group cannot leave it.
pub(super) fn setsid(call: &Call<'_>) -> Result {
    let own = call.process().pid();
    if process::exists_such(&|process| process.kin().group() == own) {
        return Err(Errno::EPERM);
    }
    call.process().kin().lead_session(own);
    Ok(u64::from(own.number()))
}

/// `setpgid(pid, group)`: for the caller and for its children.
pub(super) fn setpgid(call: &Call<'_>) -> Result {
    if call.int(1) < 0 {
        return Err(Errno::EINVAL);
    }
    let (wanted, group) = (call.uint(0), call.uint(1));
    let own = call.process();
    let target = match wanted {
        0 => own.pid(),
        _ => Pid::new(wanted),
    };
    let target = process::find(target).ok_or(Errno::ESRCH)?;
    let is_own = target.pid() == own.pid();
    if !is_own && target.kin().parent() != own.pid() {
        return Err(Errno::ESRCH);
    }
    let session = own.kin().session();
    if target.kin().session() != session || target.kin().session() == target.pid() {
        return Err(Errno::EPERM);
    }
    let group = if group == 0 { target.pid().number() } else { group };
    let is_there = group == target.pid().number()
        || process::exists_such(&|process| {
            process.kin().group().number() == group && process.kin().session() == session
        });
    if !is_there {
        return Err(Errno::EPERM);
    }
    target.kin().join_group(Pid::new(group));
    Ok(0)
}

/// `uname(names)`: six strings of 65 bytes.
pub(super) fn uname(call: &Call<'_>) -> Result {
    const LEN: usize = 65;
    let strings = [
        version::SYSNAME,
        version::NODENAME,
        version::RELEASE,
        version::VERSION,
        version::MACHINE,
        "(none)",
    ];
    let mut bytes = [0; LEN * 6];
    for (slot, string) in bytes.chunks_exact_mut(LEN).zip(strings) {
        slot[..string.len()].copy_from_slice(string.as_bytes());
    }
    UserAddr::new(call.raw(0))?.write(&bytes)?;
    Ok(0)
}

/// `sysinfo(info)`. The load is not accounted and stays 0.
pub(super) fn sysinfo(call: &Call<'_>) -> Result {
    const LOADS: usize = 3 * 8;
    let uptime = clock::now().0 / 1_000_000_000;
    let processes = u16::try_from(process::nr()).unwrap_or(u16::MAX);
    let info: [u8; 112] = Fields::new()
        .u64(uptime)
        .pad(LOADS)
        .u64(mm().nr_managed_pages() * PAGE_BYTES)
        .u64(mm().nr_free_pages() * PAGE_BYTES)
        // No shared memory, no buffers, no swap.
        .pad(4 * 8)
        .u16(processes)
        .pad(6)
        // No high memory.
        .pad(2 * 8)
        .u32(1)
        .done();
    UserAddr::new(call.raw(0))?.write(&info)?;
    Ok(0)
}

/// `getrandom(buffer, len, flags)`.
pub(super) fn getrandom(call: &Call<'_>) -> Result {
    let flags = call.uint(2);
    let both = abi::GRND_RANDOM | abi::GRND_INSECURE;
    if flags & !(both | abi::GRND_NONBLOCK) != 0 || flags & both == both {
        return Err(Errno::EINVAL);
    }
    let len = call.raw(1).min(i32::MAX.unsigned_abs().into());
    let buffer = UserSlice::new(call.raw(0), len)?;
    let mut done = 0;
    let mut chunk = [0; PAGE_SIZE];
    while done < buffer.len() {
        let chunk = &mut chunk[..(buffer.len() - done).min(PAGE_SIZE)];
        random::fill(chunk);
        match buffer.write_at(done, chunk) {
            Ok(()) => done += chunk.len(),
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done as u64)
}

fn limit_index(raw: u32) -> core::result::Result<usize, Errno> {
    usize::try_from(raw)
        .ok()
        .filter(|&index| index < NR_LIMITS)
        .ok_or(Errno::EINVAL)
}

fn write_limit(addr: UserAddr, limit: Limit) -> core::result::Result<(), Errno> {
    let bytes: [u8; 16] = Fields::new().u64(limit.soft).u64(limit.hard).done();
    addr.write(&bytes)
}

/// Reads a new limit and checks it: the superuser may raise any, descriptors up to what a table can hold.
fn read_limit(addr: UserAddr, index: usize) -> core::result::Result<Limit, Errno> {
    let [soft, hard] = words(addr.read::<16>()?);
    if soft > hard {
        return Err(Errno::EINVAL);
    }
    if index == abi::RLIMIT_NOFILE as usize && hard > NOFILE_MAX as u64 {
        return Err(Errno::EPERM);
    }
    Ok(Limit { soft, hard })
}

/// What is limited here, or could not be: there are no files to write, no core dumps, no real-time tasks, resident sizes
/// Linux does not limit either, and locked memory and processes not for the superuser, which everybody is. The rest
/// cannot be limited yet, so it is not pretended.
const LIMITS_THAT_HOLD: [u32; 15] = [
    abi::RLIMIT_AS,
    abi::RLIMIT_DATA,
    abi::RLIMIT_NPROC,
    abi::RLIMIT_NOFILE,
    abi::RLIMIT_STACK,
    abi::RLIMIT_FSIZE,
    abi::RLIMIT_CORE,
    abi::RLIMIT_RSS,
    abi::RLIMIT_MEMLOCK,
    abi::RLIMIT_LOCKS,
    abi::RLIMIT_SIGPENDING,
    abi::RLIMIT_MSGQUEUE,
    abi::RLIMIT_NICE,
    abi::RLIMIT_RTPRIO,
    abi::RLIMIT_RTTIME,
];

/// Makes `limit` hold for `process` from now on.
fn set_limit(process: &Process, index: usize, limit: Limit) -> core::result::Result<(), Errno> {
    let holds = LIMITS_THAT_HOLD.iter().any(|&known| known as usize == index);
    let old = process.limits().lock()[index];
    if !holds && limit.soft != old.soft {
        return unsupported!(
            Errno::EINVAL,
            "setrlimit of resource {index} to {:#x}",
            limit.soft
        );
    }
    let limits = {
        let mut limits = process.limits().lock();
        limits[index] = limit;
        *limits
    };
    if let Some(space) = process.space() {
        limit_memory(&space, &limits);
    }
    Ok(())
}

/// `getrlimit(resource, limit)`.
pub(super) fn getrlimit(call: &Call<'_>) -> Result {
    let index = limit_index(call.uint(0))?;
    let limit = call.process().limits().lock()[index];
    write_limit(UserAddr::new(call.raw(1))?, limit)?;
    Ok(0)
}

/// `setrlimit(resource, limit)`.
pub(super) fn setrlimit(call: &Call<'_>) -> Result {
    let index = limit_index(call.uint(0))?;
    let limit = read_limit(UserAddr::new(call.raw(1))?, index)?;
    set_limit(call.process(), index, limit)?;
    Ok(0)
}

/// `prlimit64(pid, resource, new, old)`.
pub(super) fn prlimit64(call: &Call<'_>) -> Result {
    let index = limit_index(call.uint(1))?;
    let new = match UserAddr::optional(call.raw(2))? {
        Some(addr) => Some(read_limit(addr, index)?),
        None => None,
    };
    let old = {
        let wanted = call.uint(0);
        let other = process::find(Pid::new(wanted));
        let target = match &other {
            _ if wanted == 0 => call.process(),
            Some(other) => other,
            None => return Err(Errno::ESRCH),
        };
        let old = target.limits().lock()[index];
        if let Some(new) = new {
            set_limit(target, index, new)?;
        }
        old
    };
    if let Some(addr) = UserAddr::optional(call.raw(3))? {
        write_limit(addr, old)?;
    }
    Ok(0)
}

/// A base of FS or GS that a program may have.
fn segment_base(raw: u64) -> core::result::Result<VirtAddr, Errno> {
    if raw < USER_END {
        Ok(VirtAddr::new(raw))
    } else {
        Err(Errno::EPERM)
    }
}

/// `arch_prctl(code, address)`.
pub(super) fn arch_prctl(call: &Call<'_>) -> Result {
    let thread = thread::current();
    match call.uint(0) {
        ARCH_SET_FS => thread.set_fs_base(segment_base(call.raw(1))?),
        ARCH_SET_GS => thread.set_gs_base(segment_base(call.raw(1))?),
        ARCH_GET_FS => UserAddr::new(call.raw(1))?.write(&thread.fs_base().to_le_bytes())?,
        ARCH_GET_GS => UserAddr::new(call.raw(1))?.write(&thread.gs_base().to_le_bytes())?,
        // Shadow stacks and the like: a processor without them answers the same.
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

const ARCH_SET_GS: u32 = 0x1001;
const ARCH_SET_FS: u32 = 0x1002;
const ARCH_GET_FS: u32 = 0x1003;
const ARCH_GET_GS: u32 = 0x1004;

/// `set_tid_address(address)`: the number of the thread. Linux clears the word at the thread's end only if others share
/// its memory, which nobody does here.
pub(super) fn set_tid_address(call: &Call<'_>) -> Result {
    getpid(call)
}

/// Size of the head of a list of robust futexes.
const ROBUST_HEAD: u64 = 24;

/// `set_robust_list(head, len)`.
pub(super) fn set_robust_list(call: &Call<'_>) -> Result {
    if call.raw(1) != ROBUST_HEAD {
        return Err(Errno::EINVAL);
    }
    *call.process().robust_list().lock() = call.raw(0);
    Ok(0)
}

/// `get_robust_list(pid, head, len)`.
pub(super) fn get_robust_list(call: &Call<'_>) -> Result {
    let wanted = call.uint(0);
    let head = match wanted {
        0 => *call.process().robust_list().lock(),
        _ => {
            let other = process::find(Pid::new(wanted));
            *other.ok_or(Errno::ESRCH)?.robust_list().lock()
        }
    };
    UserAddr::new(call.raw(2))?.write(&ROBUST_HEAD.to_le_bytes())?;
    UserAddr::new(call.raw(1))?.write(&head.to_le_bytes())?;
    Ok(0)
}

/// `sched_yield()`.
pub(super) fn sched_yield(_: &Call<'_>) -> Result {
    sched::yield_now();
    Ok(0)
}

/// `sched_getaffinity(pid, len, mask)`: all CPUs that run. Returns the bytes written.
pub(super) fn sched_getaffinity(call: &Call<'_>) -> Result {
    const MASK: u64 = 8;
    let len = u64::from(call.uint(1));
    if len < MASK || len % MASK != 0 {
        return Err(Errno::EINVAL);
    }
    let wanted = call.uint(0);
    if wanted != 0 && process::find(Pid::new(wanted)).is_none() {
        return Err(Errno::ESRCH);
    }
    let cpus = mm().platform().nr_cpus();
    let mask = u64::MAX >> (64 - cpus);
    UserAddr::new(call.raw(2))?.write(&mask.to_le_bytes())?;
    Ok(MASK)
}

/// Longest name that `prctl` takes and gives, its terminator included.
const COMM: usize = 16;

/// `prctl(option, ...)`.
pub(super) fn prctl(call: &Call<'_>) -> Result {
    match call.uint(0) {
        prctl::PR_SET_NAME => {
            let name = UserAddr::new(call.raw(1))?.read_string_cut(COMM - 1)?;
            call.process().set_comm(&name);
        }
        prctl::PR_GET_NAME => {
            let mut bytes = [0; COMM];
            let name = call.process().comm();
            bytes[..name.len()].copy_from_slice(&name);
            UserAddr::new(call.raw(1))?.write(&bytes)?;
        }
        other => return unsupported!(Errno::EINVAL, "prctl with option {other}"),
    }
    Ok(0)
}

/// Calls that C libraries try and can do without: refused as by a Linux built without them, not worth a warning.
pub(super) fn optional(call: &Call<'_>) -> Result {
    log::debug!("syscall: {:?} tried an optional call", call.process());
    Err(Errno::ENOSYS)
}
