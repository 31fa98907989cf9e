//! What the operations of memory management cost, in steps of the time stamp counter.
//!
//! Under QEMU's instruction-count clock (`-icount shift=0,sleep=off`, one CPU) one step is one instruction of the guest,
//! and the numbers are the same on every computer; `cargo xtask bench-guest` runs it so. Elsewhere they are whatever the
//! counter counts. It is an ordinary Linux program: the same file measures Linux by the same loops.
//!
//! Prints one line per row, the number first; with an argument, only the rows that have it in their name. Exit status
//! 0: every row was measured. 1: a line names the one that was not.
//!
//! Each row is repeated and its median counts, so that a timer interrupt or the first, cold turn does no harm. The
//! counter's own cost is subtracted.

mod clock;
mod fork;
mod memory;

use std::{env, io, process::ExitCode};

use clock::Clock;

/// Times each row is measured.
const REPETITIONS: usize = 9;

/// One turn of a row: sets up, measures, cleans up; returns the cost of one operation.
type Turn = fn(Clock) -> io::Result<u64>;

const ROWS: [(&str, Turn); 17] = [
    ("getppid", fork::getppid),
    ("4K anonymous fault", memory::small_fault),
    ("zero-page read fault", memory::zero_fault),
    ("THP fault", memory::huge_fault),
    ("munmap per touched 4K page", memory::munmap_small),
    ("mmap+munmap untouched", memory::map_and_unmap),
    ("munmap of a PMD-mapped THP", memory::munmap_huge),
    ("DONTNEED of 4K in a THP", memory::dontneed_in_huge),
    ("mprotect of 4K in a THP", memory::mprotect_in_huge),
    ("munmap of half a THP", memory::munmap_half),
    ("munmap after a split", memory::munmap_after_split),
    ("fork+exit+wait of a small process", fork::fork_exit_wait),
    ("fork return with 64 THPs", fork::fork_with_huge),
    ("fork return with 64 MiB of 4K pages", fork::fork_with_small),
    (
        "first copy-on-write touch of a shared THP",
        fork::touch_shared_huge,
    ),
    ("4K copy-on-write", fork::touch_shared_small),
    ("split_huge_pages per THP", memory::split_huge_pages),
];

fn main() -> ExitCode {
    let clock = Clock::calibrated();
    let mut status = ExitCode::SUCCESS;
    let wanted = env::args().nth(1).unwrap_or_default();
    for (name, turn) in ROWS.into_iter().filter(|(name, _)| name.contains(&wanted)) {
        match median(clock, turn) {
            Ok(cost) => println!("{cost:>10}  {name}"),
            Err(error) => {
                println!("not measured: {name}: {error}");
                status = ExitCode::FAILURE;
            }
        }
    }
    status
}

fn median(clock: Clock, turn: Turn) -> io::Result<u64> {
    let mut costs = [0; REPETITIONS];
    for cost in &mut costs {
        *cost = turn(clock)?;
    }
    costs.sort_unstable();
    Ok(costs[REPETITIONS / 2])
}
