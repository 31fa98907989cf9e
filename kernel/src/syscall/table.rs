//! Which handler answers which number.

use core::sync::atomic::{AtomicU64, Ordering};

use linux_abi::{errno::Errno, raw::general as nr};

use super::{Call, Result, file, futex, mem, mount, numa, path, proc, signal, splice, task, time};
use crate::{heap, log};

/// Answers one call.
type Handler = fn(&Call<'_>) -> Result;

/// One system call.
#[derive(Clone, Copy)]
struct Entry {
    name: &'static str,
    handler: Handler,
}

/// Numbers from here on are not in the table.
const NUMBERS: usize = 512;

macro_rules! table {
    ($($number:ident $name:literal => $handler:path,)*) => {
        /// The table, by number.
        static TABLE: [Option<Entry>; NUMBERS] = {
            let mut table = [None; NUMBERS];
            $(table[nr::$number as usize] = Some(Entry { name: $name, handler: $handler });)*
            table
        };
    };
}

table! {
    __NR_read "read" => file::read,
    __NR_write "write" => file::write,
    __NR_open "open" => path::open,
    __NR_close "close" => file::close,
    __NR_stat "stat" => path::stat,
    __NR_fstat "fstat" => file::fstat,
    __NR_lstat "lstat" => path::lstat,
    __NR_poll "poll" => file::poll,
    __NR_lseek "lseek" => file::lseek,
    __NR_mmap "mmap" => mem::mmap,
    __NR_mprotect "mprotect" => mem::mprotect,
    __NR_munmap "munmap" => mem::munmap,
    __NR_brk "brk" => mem::brk,
    __NR_rt_sigaction "rt_sigaction" => signal::rt_sigaction,
    __NR_rt_sigprocmask "rt_sigprocmask" => signal::rt_sigprocmask,
    __NR_rt_sigreturn "rt_sigreturn" => signal::rt_sigreturn,
    __NR_ioctl "ioctl" => file::ioctl,
    __NR_pread64 "pread64" => file::pread64,
    __NR_pwrite64 "pwrite64" => file::pwrite64,
    __NR_readv "readv" => file::readv,
    __NR_writev "writev" => file::writev,
    __NR_access "access" => path::access,
    __NR_pipe "pipe" => file::pipe,
    __NR_sched_yield "sched_yield" => proc::sched_yield,
    __NR_mremap "mremap" => mem::mremap,
    __NR_mlock "mlock" => mem::mlock,
    __NR_munlock "munlock" => mem::munlock,
    __NR_mlockall "mlockall" => mem::mlockall,
    __NR_munlockall "munlockall" => mem::munlockall,
    __NR_mlock2 "mlock2" => mem::mlock2,
    __NR_madvise "madvise" => mem::madvise,
    __NR_dup "dup" => file::dup,
    __NR_dup2 "dup2" => file::dup2,
    __NR_pause "pause" => signal::pause,
    __NR_nanosleep "nanosleep" => time::nanosleep,
    __NR_getpid "getpid" => proc::getpid,
    __NR_sendfile "sendfile" => file::sendfile,
    __NR_clone "clone" => task::clone,
    __NR_fork "fork" => task::fork,
    __NR_vfork "vfork" => task::vfork,
    __NR_execve "execve" => task::execve,
    __NR_exit "exit" => proc::exit,
    __NR_wait4 "wait4" => task::wait4,
    __NR_kill "kill" => signal::kill,
    __NR_uname "uname" => proc::uname,
    __NR_fcntl "fcntl" => file::fcntl,
    __NR_truncate "truncate" => path::change,
    __NR_getdents64 "getdents64" => file::getdents64,
    __NR_getcwd "getcwd" => path::getcwd,
    __NR_chdir "chdir" => path::chdir,
    __NR_fchdir "fchdir" => path::fchdir,
    __NR_rename "rename" => path::rename,
    __NR_mkdir "mkdir" => path::make,
    __NR_rmdir "rmdir" => path::remove,
    __NR_creat "creat" => path::creat,
    __NR_link "link" => path::link,
    __NR_unlink "unlink" => path::remove,
    __NR_symlink "symlink" => path::link,
    __NR_readlink "readlink" => path::readlink,
    __NR_chmod "chmod" => path::change,
    __NR_chown "chown" => path::change,
    __NR_umask "umask" => path::umask,
    __NR_gettimeofday "gettimeofday" => time::gettimeofday,
    __NR_getrlimit "getrlimit" => proc::getrlimit,
    __NR_getrusage "getrusage" => task::getrusage,
    __NR_sysinfo "sysinfo" => proc::sysinfo,
    __NR_getuid "getuid" => proc::getuid,
    __NR_getgid "getgid" => proc::getuid,
    __NR_geteuid "geteuid" => proc::getuid,
    __NR_getegid "getegid" => proc::getuid,
    __NR_setpgid "setpgid" => proc::setpgid,
    __NR_getppid "getppid" => proc::getppid,
    __NR_getpgrp "getpgrp" => proc::getpgrp,
    __NR_setsid "setsid" => proc::setsid,
    __NR_getgroups "getgroups" => proc::getgroups,
    __NR_getresuid "getresuid" => proc::getresuid,
    __NR_getresgid "getresgid" => proc::getresuid,
    __NR_getpgid "getpgid" => proc::getpgid,
    __NR_getsid "getsid" => proc::getsid,
    __NR_rt_sigpending "rt_sigpending" => signal::rt_sigpending,
    __NR_sigaltstack "sigaltstack" => signal::sigaltstack,
    __NR_mknod "mknod" => path::make,
    __NR_prctl "prctl" => proc::prctl,
    __NR_arch_prctl "arch_prctl" => proc::arch_prctl,
    __NR_setrlimit "setrlimit" => proc::setrlimit,
    __NR_gettid "gettid" => proc::getpid,
    __NR_tkill "tkill" => signal::tkill,
    __NR_time "time" => time::time,
    __NR_futex "futex" => futex::futex,
    __NR_sched_getaffinity "sched_getaffinity" => proc::sched_getaffinity,
    __NR_set_tid_address "set_tid_address" => proc::set_tid_address,
    __NR_clock_gettime "clock_gettime" => time::clock_gettime,
    __NR_clock_getres "clock_getres" => time::clock_getres,
    __NR_clock_nanosleep "clock_nanosleep" => time::clock_nanosleep,
    __NR_exit_group "exit_group" => proc::exit,
    __NR_tgkill "tgkill" => signal::tgkill,
    __NR_mbind "mbind" => numa::mbind,
    __NR_set_mempolicy "set_mempolicy" => numa::set_mempolicy,
    __NR_get_mempolicy "get_mempolicy" => numa::get_mempolicy,
    __NR_migrate_pages "migrate_pages" => numa::migrate_pages,
    __NR_waitid "waitid" => task::waitid,
    __NR_openat "openat" => path::openat,
    __NR_mkdirat "mkdirat" => path::make_at,
    __NR_mknodat "mknodat" => path::make_at,
    __NR_newfstatat "newfstatat" => path::newfstatat,
    __NR_unlinkat "unlinkat" => path::unlinkat,
    __NR_readlinkat "readlinkat" => path::readlinkat,
    __NR_faccessat "faccessat" => path::faccessat,
    __NR_splice "splice" => splice::splice,
    __NR_tee "tee" => splice::tee,
    __NR_vmsplice "vmsplice" => splice::vmsplice,
    __NR_mount "mount" => mount::mount,
    __NR_umount2 "umount2" => mount::umount2,
    __NR_ppoll "ppoll" => file::ppoll,
    __NR_set_robust_list "set_robust_list" => proc::set_robust_list,
    __NR_get_robust_list "get_robust_list" => proc::get_robust_list,
    __NR_move_pages "move_pages" => numa::move_pages,
    __NR_getcpu "getcpu" => numa::getcpu,
    __NR_dup3 "dup3" => file::dup3,
    __NR_pipe2 "pipe2" => file::pipe2,
    __NR_prlimit64 "prlimit64" => proc::prlimit64,
    __NR_getrandom "getrandom" => proc::getrandom,
    __NR_membarrier "membarrier" => proc::optional,
    __NR_rseq "rseq" => proc::optional,
    __NR_faccessat2 "faccessat2" => path::faccessat2,
}

/// Calls the handler of `number`.
///
/// # Errors
/// The handler's; `ENOSYS` for a number without one, logged once per number.
pub(super) fn call(number: u64, call: &Call<'_>) -> Result {
    match usize::try_from(number)
        .ok()
        .and_then(|number| TABLE.get(number))
        .copied()
        .flatten()
    {
        Some(entry) => {
            let result = room(number).and_then(|()| (entry.handler)(call));
            log::debug!(
                "syscall: {:?}: {}{:x?} -> {result:x?}",
                call.process(),
                entry.name,
                call.args
            );
            result
        }
        None => {
            log_absent(number);
            Err(Errno::ENOSYS)
        }
    }
}

/// What a process needs to end, to wait for others to end, and to give things back: these allocate nothing.
const ALWAYS_RUN: [u32; 6] = [
    nr::__NR_exit,
    nr::__NR_exit_group,
    nr::__NR_close,
    nr::__NR_munmap,
    nr::__NR_wait4,
    nr::__NR_kill,
];

/// Makes sure that the kernel has room for the notes of a call.
fn room(number: u64) -> core::result::Result<(), Errno> {
    if !heap::is_low() || ALWAYS_RUN.iter().any(|&always| u64::from(always) == number) {
        return Ok(());
    }
    Ok(heap::refill()?)
}

const WORD_BITS: usize = u64::BITS as usize;
/// Which numbers were logged as absent; the last bit stands for all that are out of range.
static LOGGED: [AtomicU64; NUMBERS / WORD_BITS] = [const { AtomicU64::new(0) }; NUMBERS / WORD_BITS];

fn log_absent(number: u64) {
    let slot = usize::try_from(number).unwrap_or(NUMBERS).min(NUMBERS - 1);
    let bit = 1 << (slot % WORD_BITS);
    // Relaxed: it orders nothing.
    if LOGGED[slot / WORD_BITS].fetch_or(bit, Ordering::Relaxed) & bit == 0 {
        log::warn!("syscall: number {number} is not supported -> ENOSYS");
    }
}
