//! Parents and children: who waits for whom, groups and sessions.
//!
//! ```text
//!   started by the kernel ---- Parent::Starter     the kernel task that started it waits with `Process::wait`
//!   forked --------------- Parent::Process(pid)    the parent finds it with `find_ended`, or has it forgotten
//!   parent ended ------------- Parent::Init        forgotten when it ends: process 1 waits for nobody in particular
//! ```
//! Locks: one spin lock per field, for a few instructions.
//!
//! Differs from Linux: a parent finds its children by looking through all processes; there are few. Groups and sessions
//! have no records of their own.

use alloc::sync::Arc;

use linux_abi::errno::Errno;
use spin::Mutex;

use super::{
    process::{self, Pid, Process},
    signal::Signal,
};

/// Who waits for a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Parent {
    /// The kernel task that started it.
    Starter,
    /// Another process.
    Process(Pid),
    /// Nobody: its parent is gone.
    Init,
}

/// Group and session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Membership {
    group: Pid,
    session: Pid,
}

/// What a process belongs to.
#[derive(Debug)]
pub struct Kin {
    parent: Mutex<Parent>,
    membership: Mutex<Membership>,
}

impl Kin {
    /// A program that the kernel starts: leader of its own group and session.
    #[must_use]
    pub fn leader(pid: Pid) -> Self {
        Self {
            parent: Mutex::new(Parent::Starter),
            membership: Mutex::new(Membership {
                group: pid,
                session: pid,
            }),
        }
    }

    /// What a child of `parent`, whose kin this is, belongs to.
    #[must_use]
    pub fn child_of(&self, parent: Pid) -> Self {
        Self {
            parent: Mutex::new(Parent::Process(parent)),
            membership: Mutex::new(*self.membership.lock()),
        }
    }

    /// Number of the parent.
    #[must_use]
    pub fn parent(&self) -> Pid {
        match *self.parent.lock() {
            Parent::Process(pid) => pid,
            Parent::Starter | Parent::Init => Pid::INIT,
        }
    }

    /// Makes it the leader of a session and a group of its own; `own` is its number.
    pub fn lead_session(&self, own: Pid) {
        *self.membership.lock() = Membership {
            group: own,
            session: own,
        };
    }

    /// Moves it to a group of its session.
    pub fn join_group(&self, group: Pid) {
        self.membership.lock().group = group;
    }

    /// Whether another process made it, and not the kernel.
    #[must_use]
    pub fn is_child(&self) -> bool {
        *self.parent.lock() != Parent::Starter
    }

    fn is_child_of(&self, pid: Pid) -> bool {
        *self.parent.lock() == Parent::Process(pid)
    }

    /// Number of its group's leader.
    #[must_use]
    pub fn group(&self) -> Pid {
        self.membership.lock().group
    }

    /// Number of its session's leader.
    #[must_use]
    pub fn session(&self) -> Pid {
        self.membership.lock().session
    }
}

/// Which children a wait is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// Any.
    Any,
    /// The one with this number.
    Child(u32),
    /// Those in the group with this number.
    Group(u32),
}

impl Wanted {
    fn matches(self, process: &Process) -> bool {
        match self {
            Self::Any => true,
            Self::Child(pid) => process.pid().number() == pid,
            Self::Group(group) => process.kin().group().number() == group,
        }
    }
}

impl Process {
    /// Finds one of the wanted children that has ended. `None`: they still run.
    ///
    /// # Errors
    /// `ECHILD`: there is no such child.
    pub fn find_ended(&self, wanted: Wanted) -> Result<Option<Arc<Self>>, Errno> {
        let own = self.pid();
        let mut is_there = false;
        let mut ended = None;
        process::for_each(&mut |process| {
            if process.kin().is_child_of(own) && wanted.matches(process) {
                is_there = true;
                if ended.is_none() && process.outcome().is_some() {
                    ended = Some(Arc::clone(process));
                }
            }
        });
        if is_there { Ok(ended) } else { Err(Errno::ECHILD) }
    }

    /// As [`find_ended`](Self::find_ended), and sleeps until there is one.
    ///
    /// # Errors
    /// `ECHILD`; `EINTR`: a signal has arrived.
    ///
    /// # Context
    /// The process's own thread. May wait.
    pub fn wait_for_child(&self, wanted: Wanted) -> Result<Arc<Self>, Errno> {
        loop {
            if let Some(ended) = self.find_ended(wanted)? {
                return Ok(ended);
            }
            let own = self.pid();
            let mut still = || {
                !process::exists_such(&|process| {
                    process.kin().is_child_of(own) && wanted.matches(process) && process.outcome().is_some()
                })
            };
            if self.sleep(None, &mut still).is_err() {
                // What has arrived may be the child's own end.
                return self.find_ended(wanted)?.ok_or(Errno::EINTR);
            }
        }
    }

    /// Forgets a child that has ended, and remembers what it had used.
    pub fn reap(&self, child: &Self) {
        let used = child.usage().so_far().plus(*child.children_used().lock());
        let mut children = self.children_used().lock();
        *children = children.plus(used);
        drop(children);
        process::forget(child.pid());
    }

    /// Tells the parent that the process has ended, and gives its own children to process 1.
    pub(super) fn report_end(&self) {
        let own = self.pid();
        let has_ended = |child: &Self| child.kin().is_child_of(own) && child.outcome().is_some();
        while let Some(child) = process::find_such(&has_ended) {
            process::forget(child.pid());
        }
        process::for_each(&mut |child| {
            if child.kin().is_child_of(own) {
                *child.kin().parent.lock() = Parent::Init;
            }
        });
        let parent = *self.kin().parent.lock();
        match parent {
            Parent::Starter => {}
            Parent::Init => process::forget(self.pid()),
            Parent::Process(pid) => match process::find(pid) {
                Some(parent) => parent.hear_end_of(self.pid()),
                None => process::forget(self.pid()),
            },
        }
    }

    fn hear_end_of(&self, child: Pid) {
        if self.signals().lock().forgets_children() {
            process::forget(child);
        }
        self.raise(Signal::CHLD);
        self.wake();
    }
}

/// Sends a signal to every process of a group. Returns whether there is one.
pub fn raise_in_group(group: Pid, signal: Option<Signal>) -> bool {
    let mut is_there = false;
    process::for_each(&mut |process| {
        if process.kin().group() == group {
            is_there = true;
            if let Some(signal) = signal {
                process.raise(signal);
            }
        }
    });
    is_there
}
