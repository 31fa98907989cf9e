//! How a test watches the machine and stops it in the middle of an operation.
//!
//! ```text
//!   test                               thread that runs an operation of mm
//!   hold_next_flush() ─┐
//!   HeldFlush::wait() ─┼── flush_tlb: translations dropped; here it stands, with every lock that it holds
//!   anything           │
//!   drop(HeldFlush) ───┴── flush_tlb returns
//! ```
//! A copy of a page is another such place: there the test's own thread runs what the test wants ([`with_copy_hook`]).
//! So a race is one fixed order of steps and not a matter of luck.

use std::{
    cell::Cell,
    sync::mpsc::{Receiver, Sender, channel},
};

use mm::trace::Event;

use super::{Ordering, SimMachine, lock};

/// The next flush, which stands still until this is dropped.
#[must_use = "the flush goes on when this is dropped"]
pub struct HeldFlush {
    reached: Receiver<()>,
    /// Dropping it is what lets the flush go on.
    _go: Sender<()>,
}

/// The other end, with the flush.
pub(super) struct Gate {
    reached: Sender<()>,
    go: Receiver<()>,
}

impl HeldFlush {
    /// Waits until the flush is there.
    ///
    /// # Panics
    /// If the machine went away without one.
    pub fn wait(&self) {
        self.reached.recv().expect("a flush comes");
    }
}

impl SimMachine {
    /// Lets the next flush, on whatever CPU, stop after it has dropped its translations.
    pub fn hold_next_flush(&self) -> HeldFlush {
        let (tell, reached) = channel();
        let (go, wait) = channel();
        *lock(&self.gate) = Some(Gate {
            reached: tell,
            go: wait,
        });
        HeldFlush { reached, _go: go }
    }

    /// Stops where a test wants it.
    pub(super) fn stop_at_gate(&self) {
        let gate = lock(&self.gate).take();
        if let Some(gate) = gate
            && gate.reached.send(()).is_ok()
        {
            // Nothing is ever sent: it ends when the other end is dropped.
            let _ = gate.go.recv();
        }
    }

    /// Runs `f` and returns what happened to pages meanwhile, on all CPUs.
    pub fn events_of<T>(&self, f: impl FnOnce() -> T) -> (T, Vec<Event>) {
        lock(&self.events).clear();
        self.recording.store(true, Ordering::Relaxed);
        let result = f();
        self.recording.store(false, Ordering::Relaxed);
        (result, core::mem::take(&mut *lock(&self.events)))
    }

    pub(super) fn record(&self, event: Event) {
        if self.recording.load(Ordering::Relaxed) {
            lock(&self.events).push(event);
        }
    }
}

thread_local! {
    static COPY_HOOK: Cell<Option<*const dyn Fn()>> = const { Cell::new(None) };
}

/// Takes the hook away, however what it was set for ends.
struct Unhook;

impl Drop for Unhook {
    fn drop(&mut self) {
        COPY_HOOK.set(None);
    }
}

/// Runs `f`, and `hook` when this thread first copies a page in it, before the copy. A page that is being moved has
/// migration entries at that moment, and no lock but those of folios is held.
pub fn with_copy_hook<T>(hook: &dyn Fn(), f: impl FnOnce() -> T) -> T {
    let hook = core::ptr::from_ref(hook);
    // SAFETY: only the lifetime changes, and `Unhook` takes the pointer away before this function returns.
    let hook = unsafe { core::mem::transmute::<*const (dyn Fn() + '_), *const (dyn Fn() + 'static)>(hook) };
    COPY_HOOK.set(Some(hook));
    let _unhook = Unhook;
    f()
}

/// Runs the hook that is set, once.
pub(super) fn run_copy_hook() {
    if let Some(hook) = COPY_HOOK.take() {
        // SAFETY: `with_copy_hook`, which set it, is still running on this thread.
        let hook = unsafe { &*hook };
        hook();
    }
}
