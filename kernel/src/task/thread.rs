//! The record of a thread, its start and its end.

use alloc::{boxed::Box, sync::Arc};
use core::{
    cell::Cell,
    fmt,
    marker::PhantomData,
    ops::Deref,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use mm::{Nanos, VirtAddr, WaitKey};
use spin::Mutex;

use super::{process::Process, sched, wait};
use crate::{
    arch::{
        context,
        fpu::FpuState,
        interrupts_on,
        kstack::{KernelStack, StackError},
        msr::Msr,
        percpu,
        trap::{self, TrapFrame},
    },
    heap,
};

/// What a thread does in ring 0 first; it returns the registers to enter ring 3 with, or `None` to end.
pub type Body = Box<dyn FnOnce() -> Option<TrapFrame> + Send>;

/// Where a thread stands. See the picture in [`super`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// In the run queue.
    Runnable,
    /// On a CPU.
    Running,
    /// In a wait queue, and perhaps still on its CPU on the way to sleep.
    Waiting,
    /// It will not run again.
    Dead,
}

/// What belongs to the scheduler: only touched with its lock held.
pub(super) struct Scheduled {
    pub(super) state: Cell<State>,
    /// Whether a CPU runs on the thread's stack.
    pub(super) on_cpu: Cell<bool>,
    /// Next in the run queue or in a wait queue.
    pub(super) next: Cell<Option<Arc<Thread>>>,
    /// What it waits for.
    pub(super) key: Cell<Option<WaitKey>>,
    /// When it stops waiting.
    pub(super) deadline: Cell<Option<Nanos>>,
    /// Stack pointer while it does not run.
    pub(super) stack_pointer: Cell<u64>,
}

/// A thread: a kernel stack, and for a thread of a program also what of its registers the kernel keeps.
pub struct Thread {
    id: u64,
    name: &'static str,
    stack: KernelStack,
    pub(super) scheduled: Scheduled,
    /// Taken by the thread when it starts.
    body: Mutex<Option<Body>>,
    /// What it runs a program for; `None` for a kernel thread, and once it is ending.
    process: Mutex<Option<Arc<Process>>>,
    fpu: Option<FpuState>,
    fs_base: AtomicU64,
    gs_base: AtomicU64,
    /// It shall not return to ring 3.
    ending: AtomicBool,
    exited: AtomicBool,
}

// SAFETY: `scheduled` is only touched with the scheduler's lock held; everything else is `Sync` by itself.
unsafe impl Sync for Thread {}
// SAFETY: as above.
unsafe impl Send for Thread {}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// What a thread begins with in the registers that the kernel keeps for its program.
struct UserRegisters {
    fpu: Option<FpuState>,
    fs_base: u64,
    gs_base: u64,
}

impl UserRegisters {
    /// A kernel thread has none.
    const NONE: Self = Self {
        fpu: None,
        fs_base: 0,
        gs_base: 0,
    };

    /// As at the start of a program.
    fn initial() -> Self {
        Self {
            fpu: Some(FpuState::new()),
            ..Self::NONE
        }
    }

    /// Those of the running thread.
    fn of_running() -> Self {
        let me = current();
        Self {
            fpu: Some(FpuState::of_running()),
            fs_base: me.fs_base(),
            gs_base: me.gs_base(),
        }
    }
}

impl Thread {
    fn new(
        name: &'static str,
        stack: KernelStack,
        process: Option<Arc<Process>>,
        registers: UserRegisters,
        body: Option<Body>,
    ) -> Self {
        let UserRegisters {
            fpu,
            fs_base,
            gs_base,
        } = registers;
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            name,
            stack,
            scheduled: Scheduled {
                state: Cell::new(State::Runnable),
                on_cpu: Cell::new(false),
                next: Cell::new(None),
                key: Cell::new(None),
                deadline: Cell::new(None),
                stack_pointer: Cell::new(0),
            },
            body: Mutex::new(body),
            process: Mutex::new(process),
            fpu,
            fs_base: AtomicU64::new(fs_base),
            gs_base: AtomicU64::new(gs_base),
            ending: AtomicBool::new(false),
            exited: AtomicBool::new(false),
        }
    }

    /// Returns the record of the thread that has run since boot, on the first stack.
    pub(super) fn boot() -> Arc<Self> {
        let thread = Self::new("idle", KernelStack::first(), None, UserRegisters::NONE, None);
        thread.scheduled.state.set(State::Running);
        thread.scheduled.on_cpu.set(true);
        Arc::new(thread)
    }

    /// Its number, unlike any other's since boot.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// What it was called at its start.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The program it runs for; `None` for a kernel thread.
    #[must_use]
    pub fn process(&self) -> Option<Arc<Process>> {
        self.process.lock().clone()
    }

    /// Runs `f` on the program it runs for, if it does for one. `f` must not wait or take the scheduler's lock.
    pub(super) fn with_process<R>(&self, f: impl FnOnce(&Process) -> R) -> Option<R> {
        self.process.lock().as_deref().map(f)
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_exited(&self) -> bool {
        self.exited.load(Ordering::Acquire)
    }

    /// Sleeps until the thread has ended.
    ///
    /// # Context
    /// May wait.
    pub fn join(&self) {
        while !self.has_exited() {
            wait::wait(self.exit_key(), None, &mut || !self.has_exited());
        }
    }

    fn exit_key(&self) -> WaitKey {
        wait::key_of(&raw const self.exited)
    }

    /// Makes the thread end where it would return to ring 3 next. A sleeping thread is not woken by this.
    pub fn end_at_return(&self) {
        self.ending.store(true, Ordering::Release);
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    pub(super) fn stack_top(&self) -> u64 {
        self.stack.top()
    }

    /// Saves this CPU's program registers, when the thread gives the CPU away.
    ///
    /// # Safety
    /// The thread runs on this CPU and the scheduler's lock is held.
    pub(super) unsafe fn save_user_registers(&self) {
        if let Some(fpu) = &self.fpu {
            // SAFETY: as the caller promises.
            unsafe { fpu.save() };
        }
    }

    /// Loads the program registers, when the thread gets a CPU.
    ///
    /// # Safety
    /// The thread is about to run on this CPU and the scheduler's lock is held.
    pub(super) unsafe fn restore_user_registers(&self) {
        let Some(fpu) = &self.fpu else { return };
        // SAFETY: as the caller promises.
        unsafe { fpu.restore() };
        for (register, value) in [
            (Msr::FS_BASE, &self.fs_base),
            (Msr::KERNEL_GS_BASE, &self.gs_base),
        ] {
            // SAFETY: canonical, checked by the setters; only ring 3 uses it.
            unsafe { register.write(value.load(Ordering::Relaxed)) };
        }
    }
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {} ({})", self.id, self.name)
    }
}

/// The running thread. Having one tells you nothing about other threads; it cannot leave the thread.
pub struct Current {
    thread: *const Thread,
    _stays_here: PhantomData<*mut ()>,
}

impl Deref for Current {
    type Target = Thread;

    fn deref(&self) -> &Thread {
        // SAFETY: a running thread's record lives, and `Current` cannot leave the running thread.
        unsafe { &*self.thread }
    }
}

impl Current {
    /// Returns a reference that can leave the thread.
    #[must_use]
    pub fn to_arc(&self) -> Arc<Thread> {
        // SAFETY: the pointer came from `Arc::into_raw` and the CPU's reference still counts.
        unsafe { Arc::increment_strong_count(self.thread) };
        // SAFETY: the count was just taken.
        unsafe { Arc::from_raw(self.thread) }
    }

    /// Sets the base of FS that the thread's program sees.
    pub fn set_fs_base(&self, base: VirtAddr) {
        self.fs_base.store(base.as_u64(), Ordering::Relaxed);
        // SAFETY: canonical by its type; only ring 3 uses FS.
        unsafe { Msr::FS_BASE.write(base.as_u64()) };
    }

    /// Sets the base of GS that the thread's program sees.
    pub fn set_gs_base(&self, base: VirtAddr) {
        self.gs_base.store(base.as_u64(), Ordering::Relaxed);
        // SAFETY: canonical by its type; in ring 0 the program's base stands in this register.
        unsafe { Msr::KERNEL_GS_BASE.write(base.as_u64()) };
    }

    /// Gives the thread the registers that a program begins with.
    pub fn reset_user_registers(&self) {
        FpuState::new().load();
        self.set_fs_base(VirtAddr::new(0));
        self.set_gs_base(VirtAddr::new(0));
    }

    /// The base of FS that the thread's program sees.
    #[must_use]
    pub fn fs_base(&self) -> u64 {
        self.fs_base.load(Ordering::Relaxed)
    }

    /// The base of GS that the thread's program sees.
    #[must_use]
    pub fn gs_base(&self) -> u64 {
        self.gs_base.load(Ordering::Relaxed)
    }
}

/// Returns the running thread.
///
/// # Panics
/// Before the scheduler is up.
#[must_use]
pub fn current() -> Current {
    let thread = percpu::this().current();
    assert!(!thread.is_null(), "no thread runs yet");
    Current {
        thread,
        _stays_here: PhantomData,
    }
}

/// Returns the program that the running thread works for; `None` in a kernel thread and before there are threads.
#[must_use]
pub fn current_process() -> Option<Arc<Process>> {
    with_running(Thread::process).flatten()
}

/// Runs `f` on the program that the running thread works for, if it works for one. `f` must not wait.
pub fn with_current_process<R>(f: impl FnOnce(&Process) -> R) -> Option<R> {
    with_running(|thread| thread.with_process(f)).flatten()
}

/// Runs `f` on the running thread; `None` before there are threads.
fn with_running<R>(f: impl FnOnce(&Thread) -> R) -> Option<R> {
    let is_up = percpu::is_ready() && !percpu::this().current().is_null();
    is_up.then(|| f(&current()))
}

/// Starts a kernel thread.
///
/// # Errors
/// No memory for its stack, or too many threads; nothing was started.
pub fn spawn_kernel(
    name: &'static str,
    body: impl FnOnce() + Send + 'static,
) -> Result<Arc<Thread>, StackError> {
    spawn(
        name,
        None,
        UserRegisters::NONE,
        Box::new(|| {
            body();
            None
        }),
    )
}

/// Starts a thread of `process`. `body` runs in ring 0, with the process's memory in place, and returns the registers
/// to enter ring 3 with; `None` ends the thread. What `body` owns is dropped before ring 3.
///
/// # Errors
/// As [`spawn_kernel`].
pub fn spawn_user(
    name: &'static str,
    process: Arc<Process>,
    body: impl FnOnce() -> Option<TrapFrame> + Send + 'static,
) -> Result<Arc<Thread>, StackError> {
    spawn(name, Some(process), UserRegisters::initial(), Box::new(body))
}

/// As [`spawn_user`], and the thread begins with the floating-point state and the segment bases of the running one.
///
/// # Errors
/// As [`spawn_kernel`].
pub fn spawn_copy(
    name: &'static str,
    process: Arc<Process>,
    body: impl FnOnce() -> Option<TrapFrame> + Send + 'static,
) -> Result<Arc<Thread>, StackError> {
    spawn(name, Some(process), UserRegisters::of_running(), Box::new(body))
}

fn spawn(
    name: &'static str,
    process: Option<Arc<Process>>,
    registers: UserRegisters,
    body: Body,
) -> Result<Arc<Thread>, StackError> {
    heap::reserve(size_of::<Thread>()).map_err(|_| StackError::NoMemory)?;
    let stack = KernelStack::new()?;
    let thread = Arc::new(Thread::new(name, stack, process, registers, Some(body)));
    thread.with_process(|process| process.set_thread(&thread));
    // SAFETY: the stack is new, mapped, and nobody's.
    let stack_pointer = unsafe { context::prepare(thread.stack_top(), start) };
    sched::start(&thread, stack_pointer);
    Ok(thread)
}

/// Where a new thread begins, with the scheduler's lock passed to it.
extern "C" fn start() -> ! {
    sched::finish_switch();
    interrupts_on();
    let body = current().body.lock().take();
    match body.and_then(|body| body()) {
        Some(frame) if !current().is_ending() => {
            crate::log::debug!("ring 3: first instruction of {}", current().name());
            trap::enter_user(frame)
        }
        _ => exit(),
    }
}

/// Ends the running thread. What its stack owns is not dropped: callers on the way here own nothing.
pub fn exit() -> ! {
    let me = current();
    sched::count_running_time();
    let process = me.process.lock().take();
    if let Some(process) = process {
        sched::leave_address_space();
        process.on_thread_exit();
    }
    me.exited.store(true, Ordering::Release);
    wait::wake(me.exit_key());
    sched::finish_current()
}
