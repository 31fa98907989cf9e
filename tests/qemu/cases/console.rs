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
