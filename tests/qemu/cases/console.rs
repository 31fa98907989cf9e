//! The monitor, fed through a pipe.

use std::{fs, path::Path, process::Command};

use boot::{capture::Captured, outcome::End};
use libtest_mimic::Failed;

use super::{Case, Need, Scratch, ensure, page_types, programs::ended};
use crate::bench;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("console::end_of_input_powers_off", || ended(&console("")?, 0)),
        Case::new("console::poweroff_carries_its_code", || {
            ended(&console("poweroff 3\n")?, 3)
        }),
        Case::new("console::last_line_needs_no_newline", || {
            ended(&console("poweroff 4")?, 4)
        }),
        Case::new("console::help_names_the_commands", help),
        Case::new(
            "console::bad_input_gets_one_line_and_the_monitor_goes_on",
            bad_input,
        ),
        Case::new("console::check_finds_memory_in_order", check),
        Case::new("console::crash_panic_ends_in_a_panic", crash),
        Case::new("console::page_names_mappings_and_holders", pinned_page),
        Case::new("console::shrink_and_split_do_what_they_say", shrink_and_split),
        Case::new("console::smaps_shows_the_areas_of_a_process", smaps),
        Case::new("console::dump_is_undone_by_undump", dump),
        Case::needing(
            "console::page_types_decodes_the_dump",
            &[Need::PageTypes],
            decoded_dump,
        ),
    ]
}

/// Runs the machine without PROGRAM: the demonstration, then the monitor with `input`.
fn console(input: &str) -> Result<Captured, Failed> {
    bench::run(&bench::machine()?, input.as_bytes())
}

fn help() -> Result<(), Failed> {
    let captured = console("help\n")?;
    ended(&captured, 0)?;
    for command in [
        "buddyinfo",
        "kpageflags",
        "page",
        "map",
        "vmstat",
        "check",
        "run",
        "dump",
        "poweroff",
    ] {
        ensure(captured.text().contains(command), || {
            format!("no {command} in:\n{}", captured.text())
        })?;
    }
    Ok(())
}

fn bad_input() -> Result<(), Failed> {
    let input = "frobnicate\npage\npage xyz\nkpageflags 5-\nrun\nrun /bin/does-not-exist\npoweroff soon\n\npoweroff 5\n";
    let captured = console(input)?;
    ended(&captured, 5)?;
    ensure(captured.text().contains("frobnicate"), || {
        format!("it is not named in:\n{}", captured.text())
    })
}

fn check() -> Result<(), Failed> {
    let captured = console("run /bin/thp-demo\ncheck\npoweroff 6\n")?;
    ended(&captured, 6)?;
    ensure(!captured.text().to_lowercase().contains("violation"), || {
        captured.text()
    })
}

/// Where `abi-check hold` has its page. It leaves it to a child, which is process 4: the demonstration was 2.
const HELD: &str = "0x1000000000";

/// Runs these commands, then checks the memory. Each of `expected` must be part of a line, in this order.
fn tells(commands: &str, expected: &[&str]) -> Result<(), Failed> {
    let captured = console(&format!("{commands}check\npoweroff 7\n"))?;
    ended(&captured, 7)?;
    let text = captured.text();
    let mut lines = text.lines();
    for part in expected.iter().chain(&["all of memory is in order"]) {
        ensure(lines.any(|line| line.contains(part)), || {
            format!("no line with `{part}` in its place in:\n{text}")
        })?;
    }
    Ok(())
}

fn pinned_page() -> Result<(), Failed> {
    let commands = format!(
        "run abi-check hold pin share\npage 4 {HELD}\nsplit .\nsplit 4 {HELD}\npage .\npage 4 0x2000000000\n"
    );
    tells(
        &commands,
        &[
            "compound_head,thp",
            "refcount:3 mapcount:2",
            "order:9 compound_mapcount:2 compound_pincount:1",
            "(referenced|uptodate|",
            "0x1000000000 by PMD",
            "0x1000000000 by PMD",
            "references: 4",
            "  2 of entries",
            "  1 of a pipe, which holds pfn",
            "  1 of this command",
            "a split would fail: it has 4 references",
            "split: it has 4 references",
            "is now a table of 512 PTEs",
            "compound_mapcount:1",
            "0x1000000000 by PMD",
            "references: 515",
            "  513 of entries",
            "has nothing mapped at 0x2000000000",
        ],
    )
}

fn shrink_and_split() -> Result<(), Failed> {
    let commands = format!(
        "run abi-check hold hole\npage 4 {HELD}\nshrink\npage .\nrun abi-check hold\npage 6 {HELD}\nsplit .\nsplit .\n"
    );
    tells(
        &commands,
        &[
            "by 504 PTEs",
            "by 7 PTEs",
            "it waits on the deferred split queue",
            "it could be split",
            "deferred queue: 1 of 1 huge pages split, 0 wait",
            "references: 2",
            "0x1000000000 by PMD",
            "is 512 base pages now",
            "the frame is not part of a huge page",
        ],
    )
}

fn smaps() -> Result<(), Failed> {
    tells(
        "run abi-check hold hole\nsmaps 4\nsmaps 99\n",
        &[
            "1000000000-1000007000 rw-p 00000000 00:00 0",
            "Rss:                  28 kB",
            "1000008000-1000200000 rw-p 00000000 00:00 0",
            "Rss:                2016 kB",
            "AnonHugePages:         0 kB",
            "smaps: expected the number of a process that runs",
        ],
    )
}

fn crash() -> Result<(), Failed> {
    let captured = console("crash panic\n")?;
    let kernel = bench::kernel()?;
    ensure(captured.end() == End::Panicked, || {
        captured.report(kernel).to_string()
    })
}

/// Lets the monitor dump kpageflags, and turns it into a file in `scratch`.
fn undumped(scratch: &Scratch) -> Result<String, Failed> {
    let captured = console("dump kpageflags\n")?;
    ended(&captured, 0)?;
    let text = scratch.file("session", &captured.stdout)?;
    let file = scratch.file("kpageflags.bin", b"")?;
    let mut undump = boot::cargo::command();
    undump.args([
        "run",
        "--quiet",
        "--package",
        "xtask",
        "--",
        "undump",
        &text,
        &file,
    ]);
    succeed(&mut undump)?;
    Ok(file)
}

fn dump() -> Result<(), Failed> {
    let scratch = Scratch::new("dump")?;
    let bytes = fs::read(undumped(&scratch)?).map_err(|error| error.to_string())?;
    let (words, rest) = bytes.as_chunks::<8>();
    ensure(rest.is_empty(), || {
        format!("{} bytes are no 64-bit words", bytes.len())
    })?;
    // The firmware keeps a little of the 512 MiB at the top.
    ensure(words.len() >= 500 * 256, || format!("only {} words", words.len()))?;
    // page-types stops at a bit without a name.
    let unnamed = words
        .iter()
        .map(|word| u64::from_le_bytes(*word))
        .find(|word| word >> 42 != 0);
    ensure(unnamed.is_none(), || {
        format!("{unnamed:#x?} has a bit that has no name")
    })
}

fn decoded_dump() -> Result<(), Failed> {
    let scratch = Scratch::new("page-types")?;
    let file = undumped(&scratch)?;
    let tool = page_types().ok_or("page-types was there a moment ago")?;
    let table = succeed(Command::new(tool).args(["-F", &file]))?;
    for name in ["buddy", "total"] {
        ensure(table.contains(name), || format!("no {name} in:\n{table}"))?;
    }
    Ok(())
}

/// Runs a command that must succeed; returns its stdout.
fn succeed(command: &mut Command) -> Result<String, Failed> {
    let name = Path::new(command.get_program()).display().to_string();
    let output = command
        .output()
        .map_err(|error| format!("cannot start {name}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure(output.status.success(), || {
        format!("{name}: {}\n{}", output.status, text(&output.stderr))
    })?;
    Ok(text(&output.stdout))
}
