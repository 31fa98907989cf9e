//! Processes: what belongs to one program that runs.
//!
//! ```text
//!   process 1 = kernel task (init)          Process 2, 3, ...: one program each, one thread each
//!        | spawn(path, argv, env)  ------------> exec::load, thread starts in ring 3
//!        |                                           | fork ----> another one, the same program
//!        |                                           | run_program: another program, the same process
//!        | wait ---------------- sleeps --------  exit_group or a fatal signal:
//!        | <------- outcome ---------------------    gives files and address space back, leaves its outcome
//! ```
//! A process is found by its number until somebody has waited for it; then the number is forgotten. Who that is, is in
//! [`super::family`].
//!
//! Locks: one spin lock per field, for a few instructions, never over a user copy, an operation of `mm`, or a wait.

use alloc::{
    boxed::Box,
    collections::BTreeMap,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{
    fmt,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use linux_abi::{errno::Errno, raw::general as abi};
use mm::{Nanos, Policy, policy::PolicyCell};
use spin::Mutex;

use super::{
    fail_nth::FailNth,
    family::Kin,
    sched,
    signal::{Delivery, Signal, Signals},
    space::Space,
    thread::{self, Thread},
    usage::{Usage, Used},
    wait::WaitQueue,
};
use crate::{
    arch::{kstack::StackError, trap::TrapFrame},
    exec::{self, ExecError, Program},
    heap::{self, NoMemory},
    log,
    vfs::{
        self,
        fd::{FdTable, NOFILE, NOFILE_MAX},
        tree::{Place, Viewer},
    },
};

/// The number of a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Pid(u32);

impl Pid {
    /// Process 1: the kernel task that starts programs.
    pub const INIT: Self = Self(1);

    /// Reads a number as it is written in `/proc`: digits, no leading zero.
    #[must_use]
    pub fn parse(digits: &[u8]) -> Option<Self> {
        let is_number = digits.iter().all(u8::is_ascii_digit) && digits.first() != Some(&b'0');
        core::str::from_utf8(digits)
            .ok()
            .filter(|_| is_number)?
            .parse()
            .ok()
            .map(Self)
    }

    /// The number of a process or a group that there is.
    #[must_use]
    pub(crate) const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It said so, with this status.
    Exited(u8),
    /// A signal, or a fault of its own.
    Killed(Signal),
}

impl Outcome {
    /// The status that a shell would give it.
    #[must_use]
    pub const fn status(self) -> u8 {
        match self {
            Self::Exited(status) => status,
            Self::Killed(signal) => 128 + signal.number(),
        }
    }
}

/// A limit: what holds now, and how far a process may raise it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    /// What holds.
    pub soft: u64,
    /// How far it may be raised.
    pub hard: u64,
}

impl Limit {
    /// No limit.
    pub const INFINITY: u64 = u64::MAX;

    const NONE: Self = Self {
        soft: Self::INFINITY,
        hard: Self::INFINITY,
    };
}

/// Number of limits.
pub const NR_LIMITS: usize = abi::RLIM_NLIMITS as usize;

/// Linux's defaults.
fn default_limits() -> [Limit; NR_LIMITS] {
    let mut limits = [Limit::NONE; NR_LIMITS];
    limits[abi::RLIMIT_STACK as usize].soft = exec::stack::STACK_LIMIT;
    limits[abi::RLIMIT_NOFILE as usize] = Limit {
        soft: NOFILE as u64,
        hard: NOFILE_MAX as u64,
    };
    limits[abi::RLIMIT_CORE as usize].soft = 0;
    limits[abi::RLIMIT_NICE as usize] = Limit { soft: 0, hard: 0 };
    limits[abi::RLIMIT_RTPRIO as usize] = Limit { soft: 0, hard: 0 };
    limits[abi::RLIMIT_MEMLOCK as usize] = Limit {
        soft: 8 << 20,
        hard: 8 << 20,
    };
    limits
}

/// Makes the limits of a process hold in its memory. `RLIMIT_MEMLOCK` does not: every program is the superuser's, whom
/// Linux lets lock what he likes (`CAP_IPC_LOCK`).
pub fn limit_memory(space: &Space, limits: &[Limit; NR_LIMITS]) {
    let of = |resource: u32| limits[resource as usize];
    let data = of(abi::RLIMIT_DATA);
    for (limit, bytes) in [
        (mm::Limit::Stack, of(abi::RLIMIT_STACK).soft),
        (mm::Limit::Total, of(abi::RLIMIT_AS).soft),
        (mm::Limit::Data, data.soft),
        (mm::Limit::DataCeiling, data.hard),
    ] {
        space.set_limit(limit, bytes);
    }
}

/// Where paths that do not begin with `/` begin.
#[derive(Clone, Debug)]
pub struct WorkingDirectory {
    /// The directory.
    pub place: Place,
    /// Its path.
    pub path: Box<[u8]>,
}

/// One program that runs, or has ended and was not waited for.
pub struct Process {
    pid: Pid,
    kin: Kin,
    /// Path of the program.
    exe: Mutex<Box<[u8]>>,
    /// Arguments, each ended by NUL.
    cmdline: Mutex<Arc<Box<[u8]>>>,
    comm: Mutex<Vec<u8>>,
    space: Mutex<Option<Space>>,
    files: Mutex<FdTable>,
    working_directory: Mutex<WorkingDirectory>,
    umask: AtomicU32,
    signals: Mutex<Signals>,
    limits: Mutex<[Limit; NR_LIMITS]>,
    /// Address of the list of robust futexes, as the program gave it.
    robust_list: Mutex<u64>,
    /// Where its new pages come from. It alone changes that.
    memory_policy: PolicyCell,
    /// Its one thread.
    thread: Mutex<Weak<Thread>>,
    fail_nth: FailNth,
    usage: Usage,
    /// What its children had used that it has waited for, theirs included.
    children: Mutex<Used>,
    /// How it is going to end, once that is decided.
    ending: Mutex<Option<Outcome>>,
    /// How it ended. Set when nothing is left of it but this.
    outcome: Mutex<Option<Outcome>>,
    ended: WaitQueue,
    /// It runs in the memory of its parent, which waits (`vfork`).
    is_guest: AtomicBool,
    /// Woken when it is no guest any more.
    left_parent: WaitQueue,
    /// Woken when something happens that a sleeping system call of its own must look at.
    events: WaitQueue,
}

/// Longest name of a program, without terminator.
const COMM_MAX: usize = 15;

static PROCESSES: Mutex<BTreeMap<Pid, Arc<Process>>> = Mutex::new(BTreeMap::new());
static LAST_PID: AtomicU32 = AtomicU32::new(Pid::INIT.0);
/// Most processes at a time: as many as Linux has numbers by default.
const MAX_PROCESSES: usize = 32768;

/// Whose memory a new process runs in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// Its own copy, made when one of the two writes.
    Copied,
    /// Its parent's, which waits until the child runs another program or ends.
    Borrowed,
}

/// Why there is no new process. Nothing is left of the attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ForkError {
    /// There are as many as there can be.
    TooMany,
    /// There is not enough memory.
    NoMemory,
}

impl From<ForkError> for Errno {
    fn from(error: ForkError) -> Self {
        match error {
            ForkError::TooMany => Self::EAGAIN,
            ForkError::NoMemory => Self::ENOMEM,
        }
    }
}

impl From<NoMemory> for ForkError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl From<StackError> for ForkError {
    fn from(error: StackError) -> Self {
        match error {
            StackError::NoMemory => Self::NoMemory,
            StackError::TooManyThreads => Self::TooMany,
        }
    }
}

fn next_pid() -> Pid {
    Pid(LAST_PID.fetch_add(1, Ordering::AcqRel) + 1)
}

fn name_of(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
}

impl Process {
    fn new(program: &Program) -> Self {
        let pid = next_pid();
        let process = Self {
            pid,
            kin: Kin::leader(pid),
            exe: Mutex::new(program.exe.clone()),
            cmdline: Mutex::new(program.cmdline.clone()),
            comm: Mutex::new(Vec::new()),
            space: Mutex::new(Some(program.space.clone())),
            files: Mutex::new(FdTable::with_standard_streams()),
            working_directory: Mutex::new(WorkingDirectory {
                place: Place::ROOT,
                path: (*b"/").into(),
            }),
            umask: AtomicU32::new(0o022),
            signals: Mutex::new(Signals::new()),
            limits: Mutex::new(default_limits()),
            robust_list: Mutex::new(0),
            memory_policy: PolicyCell::new(Policy::DEFAULT),
            thread: Mutex::default(),
            fail_nth: FailNth::default(),
            usage: Usage::default(),
            children: Mutex::default(),
            ending: Mutex::new(None),
            outcome: Mutex::new(None),
            ended: WaitQueue::new(),
            is_guest: AtomicBool::new(false),
            left_parent: WaitQueue::new(),
            events: WaitQueue::new(),
        };
        process.set_comm(name_of(&program.path));
        process
    }

    /// A child that has everything that this process has, but for what has arrived of signals.
    fn child(&self, memory: Memory) -> Result<Self, ForkError> {
        heap::reserve(size_of::<Self>() + self.exe.lock().len())?;
        let files = self.files.lock().try_clone().map_err(|_| ForkError::NoMemory)?;
        let space = self.space().ok_or(ForkError::NoMemory)?;
        let space = match memory {
            Memory::Copied => space.fork().map_err(|_| ForkError::NoMemory)?,
            Memory::Borrowed => space,
        };
        Ok(Self {
            pid: next_pid(),
            kin: self.kin.child_of(self.pid),
            exe: Mutex::new(self.exe()),
            cmdline: Mutex::new(self.cmdline()),
            comm: Mutex::new(self.comm()),
            space: Mutex::new(Some(space)),
            files: Mutex::new(files),
            working_directory: Mutex::new(self.working_directory()),
            umask: AtomicU32::new(self.umask.load(Ordering::Acquire)),
            signals: Mutex::new(self.signals.lock().of_child()),
            limits: Mutex::new(*self.limits.lock()),
            robust_list: Mutex::new(0),
            memory_policy: PolicyCell::new(self.memory_policy.get()),
            thread: Mutex::default(),
            fail_nth: FailNth::default(),
            usage: Usage::default(),
            children: Mutex::default(),
            ending: Mutex::new(None),
            outcome: Mutex::new(None),
            ended: WaitQueue::new(),
            is_guest: AtomicBool::new(memory == Memory::Borrowed),
            left_parent: WaitQueue::new(),
            events: WaitQueue::new(),
        })
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Path of the program.
    #[must_use]
    pub fn exe(&self) -> Box<[u8]> {
        self.exe.lock().clone()
    }

    /// Arguments, each ended by NUL.
    #[must_use]
    pub fn cmdline(&self) -> Arc<Box<[u8]>> {
        Arc::clone(&self.cmdline.lock())
    }

    /// Its parent, its group, its session.
    #[must_use]
    pub fn kin(&self) -> &Kin {
        &self.kin
    }

    /// The name shown in lists.
    #[must_use]
    pub fn comm(&self) -> Vec<u8> {
        self.comm.lock().clone()
    }

    /// Changes the name shown in lists; what is too long is cut.
    pub fn set_comm(&self, name: &[u8]) {
        *self.comm.lock() = name[..name.len().min(COMM_MAX)].into();
    }

    /// A reference to its address space; `None` once it has ended.
    #[must_use]
    pub fn space(&self) -> Option<Space> {
        self.space.lock().clone()
    }

    /// Its descriptors.
    #[must_use]
    pub fn files(&self) -> &Mutex<FdTable> {
        &self.files
    }

    /// Its working directory.
    #[must_use]
    pub fn working_directory(&self) -> WorkingDirectory {
        self.working_directory.lock().clone()
    }

    /// Changes its working directory.
    pub fn set_working_directory(&self, to: WorkingDirectory) {
        *self.working_directory.lock() = to;
    }

    /// Sets the rights that new files lack, and returns what it was.
    pub fn set_umask(&self, mask: u32) -> u32 {
        self.umask.swap(mask & 0o777, Ordering::AcqRel)
    }

    /// The rights that new files lack.
    #[must_use]
    pub fn umask(&self) -> u32 {
        self.umask.load(Ordering::Acquire)
    }

    /// Its signals.
    #[must_use]
    pub fn signals(&self) -> &Mutex<Signals> {
        &self.signals
    }

    /// Its limits, by `RLIMIT_` number.
    #[must_use]
    pub fn limits(&self) -> &Mutex<[Limit; NR_LIMITS]> {
        &self.limits
    }

    /// Address of its list of robust futexes.
    #[must_use]
    pub fn robust_list(&self) -> &Mutex<u64> {
        &self.robust_list
    }

    /// Where its new pages come from, in areas that do not say. Stays when it runs another program.
    #[must_use]
    pub fn memory_policy(&self) -> &PolicyCell {
        &self.memory_policy
    }

    /// Its thread; `None` before there is one, and when that has ended.
    pub(super) fn thread(&self) -> Option<Arc<Thread>> {
        self.thread.lock().upgrade()
    }

    /// Takes note of its thread.
    pub(super) fn set_thread(&self, thread: &Arc<Thread>) {
        *self.thread.lock() = Arc::downgrade(thread);
    }

    /// Which of its allocations is to fail.
    #[must_use]
    pub fn fail_nth(&self) -> &FailNth {
        &self.fail_nth
    }

    /// What it has used.
    #[must_use]
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// What its children had used that it has waited for, and theirs.
    #[must_use]
    pub fn children_used(&self) -> &Mutex<Used> {
        &self.children
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        *self.outcome.lock()
    }

    /// Sends it a signal. It takes effect when the process next leaves the kernel; a sleep ends for it, whatever it
    /// sleeps for. One that has ended takes no notice.
    pub fn raise(&self, signal: Signal) {
        let is_urgent = {
            let mut signals = self.signals.lock();
            signals.raise(signal);
            signals.is_urgent()
        };
        if is_urgent {
            sched::interrupt(self);
        }
    }

    /// Wakes its sleeping system call, to look again at what it waits for.
    pub fn wake(&self) {
        self.events.wake_all();
    }

    /// Whether a signal has arrived that a sleep must end for.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.signals.lock().is_urgent()
    }

    /// Lets its own thread sleep once, if `still` returns true, until [`wake`](Self::wake), a signal, or `deadline`. May
    /// return for no reason.
    ///
    /// # Errors
    /// `EINTR`: a signal has arrived.
    ///
    /// # Context
    /// May wait.
    pub fn sleep(&self, deadline: Option<Nanos>, still: &mut dyn FnMut() -> bool) -> Result<(), Errno> {
        self.events
            .wait_while(deadline, &mut || !self.is_interrupted() && still());
        if self.is_interrupted() {
            Err(Errno::EINTR)
        } else {
            Ok(())
        }
    }

    /// Sleeps until it has ended, forgets its number, and returns how it ended.
    ///
    /// # Context
    /// May wait.
    pub fn wait(&self) -> Outcome {
        loop {
            if let Some(outcome) = self.outcome() {
                forget(self.pid);
                return outcome;
            }
            self.ended.wait_while(None, &mut || self.outcome().is_none());
        }
    }

    /// As [`wait`](Self::wait), and meanwhile the terminal's keys are the process's.
    ///
    /// # Context
    /// May wait.
    pub fn wait_in_foreground(&self) -> Outcome {
        vfs::tty::give_to(self.pid);
        let outcome = self.wait();
        vfs::tty::take_back();
        outcome
    }

    /// Decides how it ends, unless that is decided already, and lets the running thread, which is its own, end where
    /// it would return to ring 3.
    pub fn end(&self, outcome: Outcome) {
        self.ending.lock().get_or_insert(outcome);
        thread::current().end_at_return();
    }

    /// Called by its thread as the last thing it does, when no CPU uses the address space any more: gives back what the
    /// process holds and leaves its outcome.
    pub fn on_thread_exit(&self) {
        // Taken out under the lock, torn down after it.
        let files = core::mem::take(&mut *self.files.lock());
        drop(files);
        let space = self.space.lock().take();
        if let Some(space) = &space {
            self.usage.note_peak(space.peak_rss_pages());
        }
        drop(space);
        self.leave_parent();
        // A thread that ends without a word was ended from outside.
        let outcome = self.ending.lock().unwrap_or(Outcome::Killed(Signal::KILL));
        *self.outcome.lock() = Some(outcome);
        self.ended.wake_all();
        self.report_end();
    }

    /// Lets the parent of a guest go on.
    fn leave_parent(&self) {
        if self.is_guest.swap(false, Ordering::AcqRel) {
            self.left_parent.wake_all();
        }
    }

    /// Sleeps until the process is no guest in the caller's memory any more. A signal that the caller cannot outlive
    /// ends the wait.
    ///
    /// # Context
    /// The parent's thread. May wait.
    pub fn wait_for_guest(&self, parent: &Self) {
        let waits = || self.is_guest.load(Ordering::Acquire) && !parent.signals.lock().is_killed();
        while waits() {
            self.left_parent.wait_while(None, &mut || waits());
        }
    }

    /// Makes the running process, which is this one, run another program. It begins when the caller returns to ring 3
    /// with the registers that come back.
    ///
    /// # Context
    /// The process's own thread. May wait.
    pub fn run_program(&self, program: Program) -> TrapFrame {
        let Program {
            space,
            frame,
            path,
            exe,
            cmdline,
        } = program;
        limit_memory(&space, &self.limits.lock());
        let old = self.space.lock().replace(space.clone());
        sched::change_address_space(space);
        if let Some(old) = &old {
            self.usage.note_peak(old.peak_rss_pages());
        }
        drop(old);
        self.leave_parent();
        thread::current().reset_user_registers();
        self.close_on_exec();
        self.signals.lock().exec();
        *self.robust_list.lock() = 0;
        self.set_comm(name_of(&path));
        *self.exe.lock() = exe;
        *self.cmdline.lock() = cmdline;
        frame
    }

    /// Closes the files that do not outlive an exec. Allocates nothing: there is no way back any more.
    fn close_on_exec(&self) {
        let mut from = 0;
        loop {
            let closed = self.files.lock().take_closed_on_exec(from);
            // Dropped out of the lock.
            let Some((fd, file)) = closed else { return };
            drop(file);
            from = fd + 1;
        }
    }

    /// Acts on signals that have arrived: one of them may end the process.
    pub fn deliver_signals(&self) {
        let delivery = self.signals.lock().deliver();
        let Delivery::End { signal, had_handler } = delivery else {
            return;
        };
        if had_handler {
            log::warn!(
                "signal: {self:?} ended by {signal}; its handler was not called: that is not supported yet"
            );
        } else if self.kin.is_child() {
            // Its parent hears of it.
            log::debug!("signal: {self:?} ended by {signal}");
        } else {
            log::info!("signal: {self:?} ended by {signal}");
        }
        self.end(Outcome::Killed(signal));
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} ({})", self.pid, self.comm().escape_ascii())
    }
}

/// Starts a program.
///
/// # Errors
/// See [`ExecError`]; nothing is left of the attempt.
pub fn spawn(path: &[u8], argv: &[&[u8]], env: &[&[u8]]) -> Result<Arc<Process>, ExecError> {
    exec::load(path, argv, env).and_then(start)
}

/// Starts a program that is ready to run.
///
/// # Errors
/// [`ExecError::NoMemory`]; nothing is left of it.
pub fn start(program: Program) -> Result<Arc<Process>, ExecError> {
    start_with(program, Some)
}

/// As [`start`], and `first` runs in ring 0 on the process's thread before the program does; it is given the registers
/// that the program is to begin with, and returns those that it does. `None` ends the process.
///
/// # Errors
/// As [`start`]; `first` was not run.
pub fn start_with(
    program: Program,
    first: impl FnOnce(TrapFrame) -> Option<TrapFrame> + Send + 'static,
) -> Result<Arc<Process>, ExecError> {
    let process = Arc::new(Process::new(&program));
    remember(&process);
    let frame = program.frame;
    // Only the process is to keep the space.
    drop(program);
    match thread::spawn_user("program", Arc::clone(&process), move || first(frame)) {
        Ok(_) => Ok(process),
        Err(_) => {
            forget(process.pid);
            Err(ExecError::NoMemory)
        }
    }
}

/// Makes a child of the running process, `parent`, which enters ring 3 with `frame`. `first` runs before that, in the
/// child.
///
/// # Errors
/// See [`ForkError`]. Nothing is left of the child.
///
/// # Context
/// The parent's thread. May wait.
///
/// # Origin
/// Linux `kernel_clone`.
pub fn fork(
    parent: &Process,
    memory: Memory,
    frame: TrapFrame,
    first: impl FnOnce() + Send + 'static,
) -> Result<Arc<Process>, ForkError> {
    if PROCESSES.lock().len() >= MAX_PROCESSES {
        return Err(ForkError::TooMany);
    }
    let child = Arc::new(parent.child(memory)?);
    remember(&child);
    let started = thread::spawn_copy("program", Arc::clone(&child), move || {
        first();
        Some(frame)
    });
    match started {
        Ok(_) => Ok(child),
        Err(error) => {
            forget(child.pid);
            Err(error.into())
        }
    }
}

fn remember(process: &Arc<Process>) {
    PROCESSES.lock().insert(process.pid, Arc::clone(process));
}

/// Forgets a number. Whoever holds the process still has it.
pub(super) fn forget(pid: Pid) {
    let process = PROCESSES.lock().remove(&pid);
    // Out of the lock.
    drop(process);
}

/// The process of the running thread; `None` in a kernel task.
#[must_use]
pub fn current() -> Option<Arc<Process>> {
    thread::current_process()
}

/// Finds a process by its number.
#[must_use]
pub fn find(pid: Pid) -> Option<Arc<Process>> {
    PROCESSES.lock().get(&pid).cloned()
}

/// How many processes there are.
#[must_use]
pub fn nr() -> usize {
    PROCESSES.lock().len()
}

/// Shows `visit` every process, by number. `visit` may look at its fields and send it a signal, but look at no other
/// process.
pub fn for_each(visit: &mut dyn FnMut(&Arc<Process>)) {
    PROCESSES.lock().values().for_each(visit);
}

/// All processes, by number.
#[must_use]
pub fn all() -> Vec<Arc<Process>> {
    PROCESSES.lock().values().cloned().collect()
}

/// Finds a process that is as `wanted` says. `wanted` may look at its fields, but at no other process.
#[must_use]
pub fn find_such(wanted: &dyn Fn(&Process) -> bool) -> Option<Arc<Process>> {
    PROCESSES.lock().values().find(|process| wanted(process)).cloned()
}

/// Whether a process is as `wanted` says. `wanted` may look at its fields, but at no other process.
#[must_use]
pub fn exists_such(wanted: &dyn Fn(&Process) -> bool) -> bool {
    PROCESSES.lock().values().any(|process| wanted(process))
}

/// The running process's view of `/proc`.
#[derive(Clone, Copy, Debug, Default)]
pub struct CurrentViewer;

impl Viewer for CurrentViewer {
    fn pid(&self) -> Option<Pid> {
        current().map(|process| process.pid)
    }

    fn exists(&self, pid: Pid) -> bool {
        PROCESSES.lock().contains_key(&pid)
    }

    fn exe(&self, pid: Pid) -> Option<Box<[u8]>> {
        find(pid).map(|process| process.exe())
    }
}
