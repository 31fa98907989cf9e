//! Parents and children: who waits for whom, groups and sessions.
//!
//! ```text
//!   started by the kernel ---- Parent::Starter     the kernel task that started it waits with `Process::wait`
//!   forked --------------- Parent::Process(pid)    the parent finds it with `take_ended`, or has it forgotten
//!   parent ended ------------- Parent::Init        forgotten when it ends: process 1 waits for nobody in particular
//! ```
//! Locks: one spin lock per field, for a few instructions.
//!
//! Differs from Linux: a parent finds its children by looking through all processes; there are few. Groups and sessions
//! have no records of their own.

use alloc::{sync::Arc, vec::Vec};

use linux_abi::errno::Errno;
use spin::Mutex;

use super::{
    process::{self, Outcome, Pid, Process},
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
    fn children(&self) -> impl Iterator<Item = Arc<Self>> {
        let own = self.pid();
        process::all()
            .into_iter()
            .filter(move |process| process.kin().is_child_of(own))
    }

    /// Takes one of the wanted children that has ended: its number is forgotten. `None`: they still run.
    ///
    /// # Errors
    /// `ECHILD`: there is no such child.
    pub fn take_ended(&self, wanted: Wanted) -> Result<Option<(Pid, Outcome)>, Errno> {
        let children: Vec<_> = self
            .children()
            .filter(|process| wanted.matches(process))
            .collect();
        if children.is_empty() {
            return Err(Errno::ECHILD);
        }
        let ended = children
            .iter()
            .find_map(|process| process.outcome().map(|outcome| (process.pid(), outcome)));
        if let Some((pid, _)) = ended {
            process::forget(pid);
        }
        Ok(ended)
    }

    /// As [`take_ended`](Self::take_ended), and sleeps until there is one.
    ///
    /// # Errors
    /// `ECHILD`; `EINTR`: a signal has arrived.
    ///
    /// # Context
    /// The process's own thread. May wait.
    pub fn wait_for_child(&self, wanted: Wanted) -> Result<(Pid, Outcome), Errno> {
        loop {
            if let Some(ended) = self.take_ended(wanted)? {
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
                return self.take_ended(wanted)?.ok_or(Errno::EINTR);
            }
        }
    }

    /// Tells the parent that the process has ended, and gives its own children to process 1.
    pub(super) fn report_end(&self) {
        for child in self.children() {
            *child.kin().parent.lock() = Parent::Init;
            if child.outcome().is_some() {
                process::forget(child.pid());
            }
        }
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
    let members: Vec<_> = process::all()
        .into_iter()
        .filter(|process| process.kin().group() == group)
        .collect();
    if let Some(signal) = signal {
        members.iter().for_each(|process| process.raise(signal));
    }
    !members.is_empty()
}
