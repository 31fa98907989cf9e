//! Checks of the system call interface, seen from ring 3. `abi-check CASE [ARGUMENTS]`; without a case it lists them.
//!
//! A case prints a line per promise and exits with 0 if all were kept. Ends that are bad on purpose are `end`'s. All but
//! `fuzz` also run on Linux, where they must say the same.

mod areas;
mod args;
mod children;
mod ends;
mod files;
mod fpu;
mod fuzz;
mod hold;
mod memory;
mod nodes;
mod pipes;
mod signals;
mod splice;
mod system;
mod tasks;
mod views;

use std::process::ExitCode;

/// One case.
struct Case {
    name: &'static str,
    does: &'static str,
    run: fn(&[String]) -> Verdict,
}

const CASES: &[Case] = &[
    Case {
        name: "areas",
        does: "mremap, madvise, mlock, clear_refs, limits; bad ranges change nothing",
        run: areas::check,
    },
    Case {
        name: "args",
        does: "arguments, environment, auxiliary vector, alignment",
        run: args::check,
    },
    Case {
        name: "children",
        does: "forks until there is no room, all sharing two pages: [AT_LEAST]",
        run: children::check,
    },
    Case {
        name: "echo",
        does: "copies stdin to stdout",
        run: files::echo,
    },
    Case {
        name: "end",
        does: "ends in the way the argument says",
        run: ends::end,
    },
    Case {
        name: "files",
        does: "descriptors, paths, errors of a read-only root",
        run: files::check,
    },
    Case {
        name: "fpu",
        does: "vector registers across switches and system calls, for so many ms",
        run: fpu::check,
    },
    Case {
        name: "fuzz",
        does: "every system call with wild arguments: [SEED [CALLS]]",
        run: fuzz::check,
    },
    Case {
        name: "hold",
        does: "leaves a process with a huge page behind: [pin] [hole] [share]",
        run: hold::hold,
    },
    Case {
        name: "memory",
        does: "mmap, munmap, mprotect, madvise, brk, and their counters",
        run: memory::check,
    },
    Case {
        name: "nodes",
        does: "memory policies, moving pages between nodes: NUMBER of nodes",
        run: nodes::check,
    },
    Case {
        name: "pipes",
        does: "bytes between processes, waits, ends that are gone, polls",
        run: pipes::check,
    },
    Case {
        name: "signals",
        does: "dispositions, masks, alternate stack",
        run: signals::check,
    },
    Case {
        name: "splice",
        does: "pages in pipes, and the huge pages that they pin",
        run: splice::check,
    },
    Case {
        name: "system",
        does: "mounts, failing allocations, waitid, getrusage",
        run: system::check,
    },
    Case {
        name: "views",
        does: "smaps, status, statm, and the switches of huge pages",
        run: views::check,
    },
    Case {
        name: "tasks",
        does: "fork, exec, wait, kill, groups, orphans",
        run: tasks::check,
    },
];

/// What a case found.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Verdict {
    broken: u32,
}

impl Verdict {
    /// Notes whether a promise was kept, and prints it.
    pub(crate) fn holds(&mut self, promise: &str, kept: bool) {
        println!("{} {promise}", if kept { "ok    " } else { "BROKEN" });
        self.broken += u32::from(!kept);
    }

    /// Notes whether two values are equal, and prints them if not.
    pub(crate) fn equal<T: PartialEq + std::fmt::Debug>(&mut self, promise: &str, found: T, expected: T) {
        if found == expected {
            self.holds(promise, true);
        } else {
            self.holds(
                &format!("{promise}: found {found:?}, expected {expected:?}"),
                false,
            );
        }
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let case = words
        .get(1)
        .and_then(|name| CASES.iter().find(|case| case.name == name));
    let Some(case) = case else {
        println!("usage: abi-check CASE [ARGUMENTS]");
        CASES
            .iter()
            .for_each(|case| println!("  {:<8} {}", case.name, case.does));
        return ExitCode::from(2);
    };
    let verdict = (case.run)(&words[2..]);
    if verdict.broken > 0 {
        println!("{}: {} promises were broken", case.name, verdict.broken);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Makes a system call; `Err` is the errno.
pub(crate) fn syscall(number: i64, args: [u64; 6]) -> Result<u64, i32> {
    let result: i64;
    // SAFETY: the callers choose arguments that change nothing but what they own; the kernel preserves everything but
    // RAX, RCX and R11.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    match result {
        -4095..=-1 => Err(i32::try_from(-result).unwrap_or(i32::MAX)),
        value => Ok(value.cast_unsigned()),
    }
}
