//! Threads, and who runs.
//!
//! ```text
//!              spawn                 picked
//!    (new) ------------> Runnable <---------> Running --exit--> Dead
//!                           ^     slice over     |
//!                           |wake / deadline     | wait
//!                           +------ Waiting <----+
//! ```
//! | module | does |
//! |---|---|
//! | [`thread`] | the record of a thread, its start and end |
//! | [`sched`] | the run queue, the switch, the time slice, idling |
//! | [`wait`] | sleeping until somebody wakes a key, or a deadline |
//! | [`fault`] | what a program's exceptions come to |
//! | [`process`], [`space`] | what threads of one program share; its memory |
//! | [`family`] | parents and children: who waits for whom, groups and sessions |
//! | [`fail_nth`] | allocations that fail on purpose |
//! | [`usage`] | what a process has used |
//! | [`signal`] | what a program wants done about signals, and what has arrived |
//!
//! One lock, [`sched`]'s, orders every change of a thread's state; it is held across the switch and passes from the
//! thread that leaves to the thread that goes on. Interrupt handlers never take it. Threads give the CPU away where
//! they wait, where they end, and on the way back to ring 3 when their slice is over; the kernel itself is never
//! preempted.

pub mod fail_nth;
pub mod family;
pub mod fault;
pub mod process;
pub mod sched;
pub mod signal;
pub mod space;
pub mod thread;
pub mod usage;
pub mod wait;
