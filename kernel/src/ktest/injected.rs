//! Trials in which each allocation of fork, vfork and execve fails in turn.
//!
//! They run in ring 0 on the thread of a process, so that [`fail_nth`](crate::task::fail_nth) counts for it, and look at
//! what a program cannot see: frames and heap to the last byte.

use alloc::{sync::Arc, vec::Vec};

use mm::{PAGE_BYTES, VirtAddr};

use super::{Trial, abi};
use crate::{
    arch::trap::TrapFrame,
    exec::{ExecError, load_file},
    heap,
    platform::mm,
    task::{
        family::Wanted,
        process::{self, ForkError, Memory, Outcome, Process},
    },
};

crate::ktest::trials! {
    Trial::new("injected::every_allocation_of_fork_may_fail", || in_process(forks)),
    Trial::new("injected::every_allocation_of_vfork_may_fail", || in_process(vforks)),
    Trial::new("injected::every_allocation_of_execve_may_fail", || in_process(execs)),
}

/// What is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Used {
    free_pages: u64,
    heap_bytes: usize,
    processes: usize,
}

impl Used {
    fn now() -> Self {
        Self {
            free_pages: mm().nr_free_pages(),
            heap_bytes: heap::usage().used_bytes,
            processes: process::nr(),
        }
    }
}

/// The program of all processes here, with some memory.
fn file() -> Vec<u8> {
    abi::program(abi::EXIT_7, 64 * PAGE_BYTES)
}

/// Runs `trial` in ring 0 of a new process, which then runs its program to its end.
fn in_process(trial: fn(&Process, TrapFrame)) {
    let program = load_file(&file(), b"/bin/seven", &[b"seven"], &[]).expect("memory is there");
    let process = process::start_with(program, move |frame| {
        // The reference must not outlive this: the thread may never come back here.
        process::current().inspect(|process| trial(process, frame));
        Some(frame)
    });
    let process = process.expect("memory is there");
    assert_eq!(process.wait(), Outcome::Exited(7));
}

/// Runs `attempt` with one failing allocation after the other, until none fails any more. It says whether it failed, and
/// leaves nothing behind in either case.
fn fail_each(process: &Process, attempt: &mut dyn FnMut() -> bool) {
    // The first may let lists grow that stay.
    (0..2).for_each(|_| assert!(!attempt(), "without a failure it works"));
    let before = Used::now();
    let mut failed = 0;
    for nth in 1.. {
        process.fail_nth().set(nth);
        let has_failed = attempt();
        let left = process.fail_nth().left();
        process.fail_nth().set(0);
        assert_eq!(Used::now(), before, "after allocation {nth} failed");
        if left > 0 {
            assert!(!has_failed, "it failed without reason");
            break;
        }
        failed += u32::from(has_failed);
        assert!(nth < 10_000, "it never runs through");
    }
    assert!(failed > 10, "only {failed} allocations made a difference");
}

fn fork_and_wait(parent: &Process, memory: Memory, frame: TrapFrame) -> bool {
    let child: Arc<Process> = match process::fork(parent, memory, frame, || ()) {
        Ok(child) => child,
        Err(error) => {
            assert_eq!(error, ForkError::NoMemory);
            return true;
        }
    };
    // What the child is denied from here on is not the parent's affair.
    let left = parent.fail_nth().left();
    if memory == Memory::Borrowed {
        child.wait_for_guest(parent);
    }
    let wanted = Wanted::Child(child.pid().number());
    let ended = parent.wait_for_child(wanted).expect("it is there");
    assert_eq!(ended.outcome(), Some(Outcome::Exited(7)));
    parent.reap(&ended);
    assert_eq!(parent.fail_nth().left(), left, "waiting allocates nothing");
    false
}

/// Gives the process something to share: pages of its own beside the program's.
fn touch_some(process: &Process) {
    let space = process.space().expect("it runs");
    for page in 0..8 {
        let addr = VirtAddr::new(abi::BASE + (8 + page) * PAGE_BYTES);
        let written = mm().with_user_page(&space, addr, mm::Access::Write, &mut |mut bytes| {
            bytes.write(b"x");
        });
        assert_eq!(written, Ok(()));
    }
}

fn forks(process: &Process, frame: TrapFrame) {
    touch_some(process);
    fail_each(process, &mut || fork_and_wait(process, Memory::Copied, frame));
}

fn vforks(process: &Process, frame: TrapFrame) {
    fail_each(process, &mut || fork_and_wait(process, Memory::Borrowed, frame));
}

fn execs(process: &Process, _: TrapFrame) {
    let file = file();
    fail_each(process, &mut || {
        let arguments: [&[u8]; 3] = [b"seven", b"", b"an argument"];
        match load_file(&file, b"/bin/seven", &arguments, &[b"A=1"]) {
            Ok(program) => {
                drop(program);
                false
            }
            Err(error) => {
                assert_eq!(error.errno(), ExecError::NoMemory.errno());
                true
            }
        }
    });
}
