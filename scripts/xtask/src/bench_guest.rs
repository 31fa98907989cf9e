//! `bench-guest`: what operations cost in instructions of the guest, beside what they cost under Linux 6.1.
//!
//! Boots a machine with one CPU and the deterministic clock, on which an instruction is a nanosecond, and runs the
//! ring-3 program `guest-bench` (tests/user), which knows how each row is measured. Here stands what the numbers are
//! compared with.
//!
//! Linux's numbers are of Debian's 6.1 kernel under the same QEMU and clock with `-cpu max`, at its fair best:
//! [`LINUX_OPTIONS`]. As Debian ships it, it zeroes a huge page twice by `rep stosb`: 4,234,943 instructions for a
//! huge fault.

use std::{
    fmt,
    io::{BufRead, BufReader},
    process::Stdio,
    time::Instant,
};

use crate::{Outcome, chores, none_left};

/// The command line of the Linux kernel that was measured.
const LINUX_OPTIONS: &str =
    "clearcpuid=erms,fsrm,rep_good init_on_alloc=0 mitigations=off cgroup_disable=memory";
/// Seconds after which the machine is cut off.
const LIMIT: &str = "600";

/// What a row is to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// Fewer than Linux.
    Below,
    /// At most a third of Linux: the rows of splitting, zapping and forking.
    Third,
}

impl Goal {
    /// The largest number that reaches it.
    const fn limit(self, linux: u64) -> u64 {
        match self {
            Self::Below => linux - 1,
            Self::Third => linux / 3,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Below => "below",
            Self::Third => "1/3",
        })
    }
}

/// The rows: name, instructions under Linux, goal.
const ROWS: [(&str, u64, Goal); 17] = [
    ("getppid", 359, Goal::Below),
    ("4K anonymous fault", 2_908, Goal::Below),
    ("zero-page read fault", 1_178, Goal::Below),
    ("THP fault", 387_841, Goal::Below),
    ("munmap per touched 4K page", 809, Goal::Third),
    ("mmap+munmap untouched", 10_443, Goal::Below),
    ("munmap of a PMD-mapped THP", 13_092, Goal::Third),
    ("DONTNEED of 4K in a THP", 43_251, Goal::Third),
    ("mprotect of 4K in a THP", 52_578, Goal::Third),
    ("munmap of half a THP", 166_114, Goal::Third),
    ("munmap after a split", 230_434, Goal::Third),
    ("fork+exit+wait of a small process", 98_278, Goal::Third),
    ("fork return with 64 THPs", 153_974, Goal::Third),
    ("fork return with 64 MiB of 4K pages", 2_255_229, Goal::Third),
    ("first copy-on-write touch of a shared THP", 46_781, Goal::Third),
    ("4K copy-on-write", 4_357, Goal::Below),
    ("split_huge_pages per THP", 1_059_448, Goal::Third),
];

/// Measures every row and prints the table.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    none_left(arguments)?;
    let measured = measure()?;
    let table = table(&measured)?;
    println!("{table}");
    println!(
        "Instructions of the guest: QEMU TCG, -cpu max, one CPU, -icount shift=0,sleep=off, 512 MiB, kernel in its release\n\
         profile. Linux: 6.1 (Debian) on the same machine with {LINUX_OPTIONS}."
    );
    let missed: Vec<_> = missed(&measured).collect();
    match missed.as_slice() {
        [] => println!("Every row reaches its goal."),
        rows => println!(
            "{} of {} rows miss their goal: {}.",
            rows.len(),
            ROWS.len(),
            rows.join(", ")
        ),
    }
    Ok(())
}

/// A row that was measured.
type Measured = (String, u64);

/// Boots the machine and reads what the program prints; the kernel's messages go to stderr as they come.
fn measure() -> Result<Vec<Measured>, String> {
    let mut command = chores::command(&["run", "--quiet", "--"]);
    command.args(["--icount", "--smp", "1", "--timeout", LIMIT, "--log", "warn"]);
    command.args(["--", "/bin/guest-bench"]);
    let start = Instant::now();
    eprintln!("xtask: building and booting; {} rows", ROWS.len());
    let mut machine = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    let mut measured = Vec::new();
    let mut complaints = Vec::new();
    for line in machine
        .stdout
        .take()
        .map(BufReader::new)
        .into_iter()
        .flat_map(BufRead::lines)
    {
        let line = line.map_err(|error| format!("cannot read what the machine prints: {error}"))?;
        match parse(&line) {
            Some(row) => {
                eprintln!("xtask: {:>5.1} s  {}", start.elapsed().as_secs_f64(), row.0);
                measured.push(row);
            }
            None => complaints.push(line),
        }
    }
    let status = machine
        .wait()
        .map_err(|error| format!("cannot wait for the machine: {error}"))?;
    if status.success() {
        Ok(measured)
    } else {
        complaints.push(format!(
            "the machine ended with {status} (124: it took more than {LIMIT} s)"
        ));
        Err(complaints.join("\n"))
    }
}

/// Reads `NUMBER NAME`.
fn parse(line: &str) -> Option<Measured> {
    let (number, name) = line.trim().split_once(' ')?;
    Some((name.trim().to_owned(), number.parse().ok()?))
}

/// The number of each row, in the order of the table.
///
/// # Errors
/// Names the rows that are missing, or that nobody asked for.
fn in_order(measured: &[Measured]) -> Result<Vec<u64>, String> {
    let unknown = measured
        .iter()
        .find(|(name, _)| ROWS.iter().all(|(known, ..)| known != name));
    if let Some((name, _)) = unknown {
        return Err(format!(
            "the program measured `{name}`, for which there is no number of Linux"
        ));
    }
    ROWS.iter()
        .map(|(name, ..)| {
            let found = measured.iter().find(|(row, _)| row == name);
            found
                .map(|&(_, number)| number)
                .ok_or_else(|| format!("the program did not measure `{name}`"))
        })
        .collect()
}

/// The table, in Markdown.
fn table(measured: &[Measured]) -> Result<String, String> {
    let mut text = format!(
        "| {:<42} | {:>9} | {:>9} | {:>5} | {:>5} | verdict |\n|{:-<44}|{:->11}|{:->11}|{:->7}|{:->7}|---------|\n",
        "operation", "Cleave", "Linux 6.1", "ratio", "goal", "", ":", ":", ":", ":"
    );
    for ((name, linux, goal), ours) in ROWS.iter().zip(in_order(measured)?) {
        let verdict = if ours <= goal.limit(*linux) {
            "ok"
        } else {
            "MISSED"
        };
        text.push_str(&format!(
            "| {name:<42} | {ours:>9} | {linux:>9} | {:>5} | {goal:>5} | {verdict:<7} |\n",
            ratio(ours, *linux)
        ));
    }
    Ok(text)
}

/// `ours / linux` to the hundredth.
fn ratio(ours: u64, linux: u64) -> String {
    let hundredths = (ours * 100 + linux / 2) / linux;
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

fn missed(measured: &[Measured]) -> impl Iterator<Item = &str> {
    measured.iter().filter_map(|(name, ours)| {
        let (name, linux, goal) = ROWS.iter().find(|(known, ..)| known == name)?;
        (*ours > goal.limit(*linux)).then_some(*name)
    })
}

#[cfg(test)]
mod tests {
    use super::{Goal, ROWS, missed, parse, ratio, table};

    fn at_goal() -> Vec<(String, u64)> {
        let limit = |&(name, linux, goal): &(&str, u64, Goal)| (name.to_owned(), goal.limit(linux));
        ROWS.iter().map(limit).collect()
    }

    #[test]
    fn lines_begin_with_the_number() {
        assert_eq!(
            parse("      2908  4K anonymous fault"),
            Some(("4K anonymous fault".to_owned(), 2908))
        );
        assert_eq!(parse("not measured: THP fault: out of memory"), None);
    }

    #[test]
    fn a_goal_is_reached_exactly_at_its_limit() {
        let mut measured = at_goal();
        assert_eq!(missed(&measured).count(), 0);
        measured[0].1 += 1;
        assert_eq!(missed(&measured).collect::<Vec<_>>(), ["getppid"]);
        assert!(table(&measured).is_ok_and(|text| text.matches("MISSED").count() == 1));
    }

    #[test]
    fn missing_and_unknown_rows_are_named() {
        let mut measured = at_goal();
        let last = measured.pop();
        assert!(table(&measured).is_err_and(|message| message.contains("split_huge_pages")));
        measured.extend(last);
        measured.push(("tea".to_owned(), 1));
        assert!(table(&measured).is_err_and(|message| message.contains("tea")));
    }

    #[test]
    fn ratios_are_rounded() {
        assert_eq!(
            (ratio(1, 3), ratio(2, 3), ratio(5, 2)),
            ("0.33".into(), "0.67".into(), "2.50".into())
        );
    }
}
