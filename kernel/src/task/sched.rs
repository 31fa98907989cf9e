//! The run queue, the switch, the time slice, idling.
//!
//! *The lock.* `SCHEDULER` guards every thread's `Scheduled` part and all queues. Only
//! tasks take it, never interrupt handlers. It is the innermost lock of the kernel: nothing is allocated, freed, logged
//! or dropped while it is held; what a switch leaves behind is dropped by `finish_switch` after unlocking.
//!
//! *The switch* happens with the lock held, so a thread is never picked up by another CPU before its registers are
//! stored.
//!
//! *Address spaces.* A kernel thread runs in whatever space is there (`Scheduler::active` keeps it alive); a thread
//! that ends leaves its program's space first, so its memory goes away at once.
//!
//! *Time.* The timer is set to the end of the running program's slice or to the next deadline, whatever comes first.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicPtr, Ordering};

use mm::{Nanos, WaitKey};
use spin::{Mutex, MutexGuard, Once};

use super::{
    process::Process,
    space::Space,
    thread::{self, State, Thread},
    usage::Switch,
};
use crate::{
    arch::{
        apic, context, cpu, interrupts_off, interrupts_on, paging,
        percpu::{self, Pending},
        wait_for_interrupt,
    },
    drivers::{clock, uart},
    vfs::tty,
};

/// Time a program runs before others get their turn.
const SLICE_NANOS: u64 = 10_000_000;
/// Number of wait queues; a power of two.
const BUCKETS: usize = 64;

/// A first-in first-out list, linked through the threads.
struct Queue {
    head: Option<Arc<Thread>>,
    tail: Option<Arc<Thread>>,
}

impl Queue {
    const fn new() -> Self {
        Self {
            head: None,
            tail: None,
        }
    }

    const fn is_empty(&self) -> bool {
        self.head.is_none()
    }

    fn push(&mut self, thread: Arc<Thread>) {
        match self.tail.replace(thread.clone()) {
            Some(last) => last.scheduled.next.set(Some(thread)),
            None => self.head = Some(thread),
        }
    }

    fn pop(&mut self) -> Option<Arc<Thread>> {
        let first = self.head.take()?;
        self.head = first.scheduled.next.take();
        if self.head.is_none() {
            self.tail = None;
        }
        Some(first)
    }

    /// Moves the threads that `wanted` accepts to `to`; the others keep their order.
    fn drain_into(&mut self, to: &mut Self, wanted: impl Fn(&Thread) -> bool) {
        let mut rest = core::mem::replace(self, Self::new());
        while let Some(thread) = rest.pop() {
            if wanted(&thread) {
                to.push(thread)
            } else {
                self.push(thread)
            }
        }
    }
}

/// All scheduling state.
pub(super) struct Scheduler {
    runnable: Queue,
    waiting: [Queue; BUCKETS],
    /// The earliest deadline of a waiting thread; an earlier one than there really is costs a look.
    next_deadline: Option<Nanos>,
    /// When the running thread's turn ends.
    slice_end: Nanos,
    /// Up to when the running thread's time was counted.
    counted_to: Nanos,
    /// The address space in use, kept alive by this.
    active: Option<Space>,
    /// The thread that the last switch left, until the next thread has dropped it.
    left: Option<Arc<Thread>>,
    /// The address space that the last switch left.
    left_space: Option<Space>,
}

static SCHEDULER: Mutex<Scheduler> = Mutex::new(Scheduler {
    runnable: Queue::new(),
    waiting: [const { Queue::new() }; BUCKETS],
    next_deadline: None,
    slice_end: Nanos(0),
    counted_to: Nanos(0),
    active: None,
    left: None,
    left_space: None,
});

/// The scheduler's state while its lock passes from one thread to the next.
static HELD: AtomicPtr<Scheduler> = AtomicPtr::new(core::ptr::null_mut());

/// The thread that runs when no other can.
static IDLE: Once<Arc<Thread>> = Once::new();

type Locked = MutexGuard<'static, Scheduler>;

/// Makes the code that runs now the boot thread, which becomes the idle one.
pub fn init() {
    let idle = IDLE.call_once(Thread::boot);
    percpu::this().set_current(Arc::into_raw(idle.clone()), idle.stack_top());
}

/// Whether threads exist.
#[must_use]
pub fn is_up() -> bool {
    IDLE.is_completed()
}

/// Makes a new thread runnable.
pub(super) fn start(thread: &Arc<Thread>, stack_pointer: u64) {
    let mut scheduler = SCHEDULER.lock();
    thread.scheduled.stack_pointer.set(stack_pointer);
    scheduler.make_runnable(thread.clone());
}

impl Scheduler {
    fn make_runnable(&mut self, thread: Arc<Thread>) {
        thread.scheduled.state.set(State::Runnable);
        self.runnable.push(thread);
        percpu::this().ask(Pending::RESCHEDULE);
    }

    /// Ends a thread's wait. It is in no queue any more.
    fn wake_thread(&mut self, thread: Arc<Thread>) {
        thread.scheduled.key.set(None);
        thread.scheduled.deadline.set(None);
        if thread.scheduled.on_cpu.get() {
            // It has not gone to sleep yet, and will not.
            thread.scheduled.state.set(State::Running);
        } else {
            self.make_runnable(thread);
        }
    }

    fn bucket(&mut self, key: WaitKey) -> &mut Queue {
        &mut self.waiting[bucket_index(key)]
    }

    /// Wakes whoever `wanted` accepts in one queue.
    fn wake_in(&mut self, index: usize, wanted: impl Fn(&Thread) -> bool) {
        let mut woken = Queue::new();
        self.waiting[index].drain_into(&mut woken, wanted);
        while let Some(thread) = woken.pop() {
            self.wake_thread(thread);
        }
    }

    /// Wakes the threads whose deadline has passed.
    fn expire(&mut self, now: Nanos) {
        if self.next_deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        for index in 0..BUCKETS {
            if !self.waiting[index].is_empty() {
                self.wake_in(index, |thread| {
                    thread
                        .scheduled
                        .deadline
                        .get()
                        .is_some_and(|deadline| deadline <= now)
                });
            }
        }
        self.next_deadline = self.earliest_deadline();
    }

    /// Counts the time up to `now` as used by `running`.
    fn count_time(&mut self, running: &Thread, now: Nanos) {
        let since = core::mem::replace(&mut self.counted_to, now);
        running.with_process(|process| process.usage().add_time(now.0.saturating_sub(since.0)));
    }

    fn earliest_deadline(&self) -> Option<Nanos> {
        let mut earliest: Option<Nanos> = None;
        for queue in &self.waiting {
            let mut at = queue.head.clone();
            while let Some(thread) = at {
                let deadline = thread.scheduled.deadline.get();
                earliest = [earliest, deadline].into_iter().flatten().min();
                let next = thread.scheduled.next.take();
                thread.scheduled.next.set(next.clone());
                at = next;
            }
        }
        earliest
    }

    /// Sets the timer for what comes first. `running` is who has the CPU from now on.
    fn set_timer(&self, running: &Thread) {
        let slice_end = (!is_idle(running)).then_some(self.slice_end);
        apic::set_timer([slice_end, self.next_deadline].into_iter().flatten().min());
    }
}

fn bucket_index(key: WaitKey) -> usize {
    use core::hash::{Hash, Hasher};

    /// Multiplies by an odd number near 2^64 over the golden ratio; the top bits are well mixed.
    struct Mix(u64);
    impl Hasher for Mix {
        fn finish(&self) -> u64 {
            self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BUCKETS.trailing_zeros())
        }
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
            }
        }
        fn write_u64(&mut self, value: u64) {
            self.0 ^= value;
        }
    }
    let mut mix = Mix(0);
    key.hash(&mut mix);
    mm::addr::to_usize(mix.finish())
}

fn is_idle(thread: &Thread) -> bool {
    IDLE.get()
        .is_some_and(|idle| core::ptr::eq(Arc::as_ptr(idle), thread))
}

/// Gives the CPU to the next runnable thread, or to the idle one; returns when this thread runs again.
fn schedule(mut scheduler: Locked) {
    let block = percpu::this();
    debug_assert_eq!(
        block.preempt_count(),
        0,
        "a task switch with a preemption guard alive"
    );
    let _ = block.take(Pending::RESCHEDULE);
    let me = thread::current();
    if me.scheduled.state.get() == State::Running && !is_idle(&me) {
        if scheduler.runnable.is_empty() {
            return;
        }
        me.scheduled.state.set(State::Runnable);
        let arc = me.to_arc();
        scheduler.runnable.push(arc);
    }
    let Some(next) = scheduler.runnable.pop().or_else(|| IDLE.get().cloned()) else {
        return;
    };
    if core::ptr::eq(Arc::as_ptr(&next), &raw const *me) {
        next.scheduled.state.set(State::Running);
        return;
    }
    switch_to(scheduler, &me, next);
}

/// Switches from `me` to `next` and back some day.
fn switch_to(mut scheduler: Locked, me: &Thread, next: Arc<Thread>) {
    next.scheduled.state.set(State::Running);
    next.scheduled.on_cpu.set(true);
    me.scheduled.on_cpu.set(false);
    let now = clock::now();
    scheduler.count_time(me, now);
    let switch = if me.scheduled.state.get() == State::Runnable {
        Switch::Involuntary
    } else {
        Switch::Voluntary
    };
    me.with_process(|process| process.usage().add_switch(switch));
    scheduler.slice_end = Nanos(now.0 + SLICE_NANOS);
    scheduler.set_timer(&next);
    // SAFETY: `me` runs here and the lock is held.
    unsafe { me.save_user_registers() };
    if let Some(space) = next.process().and_then(|process| process.space()) {
        scheduler.activate(space);
    }
    // SAFETY: `next` is about to run here and the lock is held.
    unsafe { next.restore_user_registers() };
    let save = me.scheduled.stack_pointer.as_ptr();
    let stack_pointer = next.scheduled.stack_pointer.get();
    let top = next.stack_top();
    percpu::this().set_current(Arc::into_raw(next), top);
    // SAFETY: the pointer came from `Arc::into_raw` when `me` became the running thread; that count moves to `left`.
    scheduler.left = Some(unsafe { Arc::from_raw(me) });
    HELD.store(MutexGuard::leak(scheduler), Ordering::Relaxed);
    // SAFETY: `next` was left by a switch or prepared at its start, and has not run since: it was in the run queue.
    // The lock is held and passes on.
    unsafe { context::switch(save, stack_pointer) };
    finish_switch();
}

/// Takes over the lock from the thread that was left, gives it up, and drops what the switch left behind.
pub(super) fn finish_switch() {
    // SAFETY: `switch_to` leaked its guard into this pointer, the lock is still held, and nobody else looks.
    let scheduler = unsafe { &mut *HELD.load(Ordering::Relaxed) };
    let left = scheduler.left.take();
    let left_space = scheduler.left_space.take();
    // SAFETY: the guard was leaked by the thread that was left.
    unsafe { SCHEDULER.force_unlock() };
    drop(left);
    drop(left_space);
}

impl Scheduler {
    /// Makes this CPU use a program's address space.
    fn activate(&mut self, space: Space) {
        if self
            .active
            .as_ref()
            .is_some_and(|active| active.root() == space.root())
        {
            return;
        }
        let cpu = percpu::this().id();
        space.enter(cpu);
        // SAFETY: the root has the kernel's upper half, and `active` keeps it alive.
        unsafe { cpu::write_cr3(space.root().start()) };
        if let Some(old) = self.active.replace(space) {
            old.leave(cpu);
            self.left_space = Some(old);
        }
    }
}

/// Brings the running thread's processor time up to now.
pub fn count_running_time() {
    SCHEDULER.lock().count_time(&thread::current(), clock::now());
}

/// Makes this CPU use no program's address space.
pub(super) fn leave_address_space() {
    let old = {
        let mut scheduler = SCHEDULER.lock();
        // SAFETY: the kernel's own root maps all of the kernel.
        unsafe { cpu::write_cr3(paging::kernel_root()) };
        let old = scheduler.active.take();
        if let Some(old) = &old {
            old.leave(percpu::this().id());
        }
        old
    };
    drop(old);
}

/// Makes the running thread's process, which has just been given `space`, use it.
pub(super) fn change_address_space(space: Space) {
    let old = {
        let mut scheduler = SCHEDULER.lock();
        scheduler.activate(space);
        scheduler.left_space.take()
    };
    drop(old);
}

/// Ends the sleep of a process's thread, whatever it sleeps for: it looks again.
pub(super) fn interrupt(process: &Process) {
    let Some(thread) = process.thread() else { return };
    {
        let mut scheduler = SCHEDULER.lock();
        if let Some(key) = thread.scheduled.key.get() {
            scheduler.wake_in(bucket_index(key), |waiting| {
                core::ptr::eq(waiting, Arc::as_ptr(&thread))
            });
        }
    }
    drop(thread);
}

/// Ends the running thread's turn for ever.
pub(super) fn finish_current() -> ! {
    let scheduler = SCHEDULER.lock();
    thread::current().scheduled.state.set(State::Dead);
    schedule(scheduler);
    unreachable!("a dead thread was picked")
}

/// Gives the CPU to the next runnable thread, if there is one.
///
/// # Context
/// May wait.
pub fn yield_now() {
    schedule(SCHEDULER.lock());
}

/// Puts the running thread into the queue of `key`. It goes on running.
pub(super) fn begin_wait(key: WaitKey, deadline: Option<Nanos>) {
    let me = thread::current();
    assert!(!is_idle(&me), "the idle thread never waits");
    let mut scheduler = SCHEDULER.lock();
    me.scheduled.state.set(State::Waiting);
    me.scheduled.key.set(Some(key));
    me.scheduled.deadline.set(deadline);
    let arc = me.to_arc();
    scheduler.bucket(key).push(arc);
    if let Some(deadline) = deadline
        && scheduler.next_deadline.is_none_or(|next| deadline < next)
    {
        scheduler.next_deadline = Some(deadline);
    }
}

/// Sleeps, unless somebody has woken the thread since [`begin_wait`].
pub(super) fn sleep() {
    let scheduler = SCHEDULER.lock();
    if thread::current().scheduled.state.get() == State::Waiting {
        schedule(scheduler);
    }
}

/// Takes the running thread out of its queue, if it still is in one.
pub(super) fn end_wait() {
    let me = thread::current();
    let mut scheduler = SCHEDULER.lock();
    if let Some(key) = me.scheduled.key.take() {
        let mut mine = Queue::new();
        scheduler
            .bucket(key)
            .drain_into(&mut mine, |thread| core::ptr::eq(thread, &raw const *me));
        // `me` stays alive through the CPU's own reference.
        drop(mine.pop());
        me.scheduled.deadline.set(None);
        me.scheduled.state.set(State::Running);
    }
}

/// Wakes everybody who waits for `key`.
pub(super) fn wake(key: WaitKey) {
    let mut scheduler = SCHEDULER.lock();
    scheduler.wake_in(bucket_index(key), |thread| {
        let waits_for = thread.scheduled.key.get();
        waits_for == Some(key)
    });
}

/// Whether [`attend`] has something to do.
#[must_use]
pub fn needs_attention() -> bool {
    !percpu::this().asked().is_empty() || thread::current().is_ending()
}

/// Does what interrupt handlers asked for: deadlines, serial input, the end of a time slice. Acts on signals; ends the
/// running thread if that was asked.
///
/// # Context
/// A task that owns nothing: on the way back to ring 3, or idle. May wait.
pub fn attend() {
    if thread::current().is_ending() {
        thread::exit();
    }
    let asked = percpu::this().take(Pending::all());
    if asked.contains(Pending::UART) {
        uart::service();
        tty::take_keys();
    }
    give_way();
    // An interrupt key, or another program, may have sent this one a signal.
    if let Some(process) = thread::current_process() {
        process.deliver_signals();
    }
}

/// Wakes those whose deadline is over, and gives the CPU away at the end of a time slice.
fn give_way() {
    let mut scheduler = SCHEDULER.lock();
    let now = clock::now();
    scheduler.expire(now);
    let me = thread::current();
    let slice_is_over = now >= scheduler.slice_end;
    if slice_is_over && scheduler.runnable.is_empty() {
        scheduler.slice_end = Nanos(now.0 + SLICE_NANOS);
    }
    if is_idle(&me) || (slice_is_over && !scheduler.runnable.is_empty()) {
        // The idle thread also gives way to nobody, which leaves the timer to be set.
        if !scheduler.runnable.is_empty() {
            schedule(scheduler);
            return;
        }
    }
    scheduler.set_timer(&me);
}

/// What the boot thread does for the rest of its life: lets others run, and halts the CPU when nobody can.
pub fn idle() -> ! {
    loop {
        attend();
        interrupts_off();
        if percpu::this().asked().is_empty() {
            wait_for_interrupt();
        } else {
            interrupts_on();
        }
    }
}

/// Number of threads that could run but do not.
#[must_use]
pub fn nr_runnable() -> usize {
    let scheduler = SCHEDULER.lock();
    let mut count = 0;
    let mut at = scheduler.runnable.head.clone();
    while let Some(thread) = at {
        count += 1;
        let next = thread.scheduled.next.take();
        thread.scheduled.next.set(next.clone());
        at = next;
    }
    count
}
