//! Two operations on two CPUs, in one fixed order of their steps.
//!
//! ```text
//!   CPU of the test:  first ──o──o──o──────────────o──o──> done       o: preemption is about to be held off,
//!                                   │              ▲                     or translations are about to be flushed
//!   another thread:                 └── second ────┘
//! ```
//! Every lock of `mm` is taken, and every flush made, at such a point. A test runs the pair once for each point of the
//! first, from the first to the last: what can go wrong between two steps does so in one of the runs.
//!
//! The second runs to its end there, or until it waits for what the first holds; the first then goes on, and the second
//! gets what it waits for later.

use std::{
    cell::{Cell, RefCell},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Duration,
};

use super::SimMachine;

/// How long the second may take for a step before it counts as waiting.
const PATIENCE: Duration = Duration::from_millis(100);

thread_local! {
    /// Points to pass before the one that is wanted; 0: none is.
    static POINTS: Cell<u32> = const { Cell::new(0) };
    static SECOND: RefCell<Option<Second>> = const { RefCell::new(None) };
}

/// The way to the other thread.
struct Second {
    start: Sender<()>,
    done: Receiver<()>,
}

/// A point where another CPU may come in between.
pub(super) fn point() {
    let left = POINTS.get();
    if left == 0 {
        return;
    }
    POINTS.set(left - 1);
    if left == 1
        && let Some(second) = SECOND.take()
        && second.start.send(()).is_ok()
    {
        // It is done, has panicked, or waits for the first.
        let _ = second.done.recv_timeout(PATIENCE);
    }
}

/// While it lives, a point may be the one. Ends also when the first fails, so that the other thread does not wait for it.
struct Armed;

impl Drop for Armed {
    fn drop(&mut self) {
        POINTS.set(0);
        SECOND.take();
    }
}

/// Runs `first` and, when it reaches its `nth` point, `second` on a thread of its own. Returns whether it reached that
/// point; if not, `second` was not run.
///
/// # Panics
/// If one of them does.
pub fn interleave(
    machine: &SimMachine,
    nth: u32,
    first: impl FnOnce(),
    second: impl FnOnce() + Send,
) -> bool {
    let (start, started) = channel::<()>();
    let (tell, done) = channel();
    thread::scope(|scope| {
        let other = scope.spawn(move || {
            if started.recv().is_err() {
                return false;
            }
            let _counted = machine.join();
            second();
            // Nobody listens any more if it took long.
            let _ = tell.send(());
            true
        });
        SECOND.set(Some(Second { start, done }));
        POINTS.set(nth);
        let armed = Armed;
        first();
        drop(armed);
        other.join().unwrap_or_else(|why| std::panic::resume_unwind(why))
    })
}
