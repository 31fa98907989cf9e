//! The system call interface, seen from ring 3: cases of `abi-check`, run by the monitor. After each the whole memory is
//! checked, and all of it must be back.

use std::time::Duration;

use boot::{capture::Captured, initrd::Root, machine::Machine};
use libtest_mimic::Failed;

use super::{
    Case, ensure,
    programs::{ended, run},
};
use crate::bench;

/// Status that the last command of a session asks for: whoever sees it knows that the session came to its end.
const LAST: u8 = 42;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("abi::arguments_environment_and_auxiliary_vector", arguments),
        Case::new("abi::descriptors_and_paths", || kept("files").map(drop)),
        Case::new("abi::memory_rows_and_their_counters", || kept("memory").map(drop)),
        Case::new("abi::areas_are_moved_advised_locked_and_limited", || {
            kept("areas").map(drop)
        }),
        Case::new("abi::views_of_memory_and_their_switches", || {
            kept("views").map(drop)
        }),
        Case::new("abi::signals_are_recorded", || kept("signals").map(drop)),
        Case::new("abi::processes_fork_exec_wait_and_end", || {
            kept("tasks").map(drop)
        }),
        Case::new("abi::pipes_wait_and_tell_who_is_gone", || kept("pipes").map(drop)),
        Case::new("abi::pages_in_pipes_are_pinned", || kept("splice").map(drop)),
        Case::new("abi::as_many_children_as_memory_allows", many_children),
        Case::new("abi::mounts_failures_waits_and_usage", || {
            kept("system").map(drop)
        }),
        Case::new("abi::nodes_have_policies_and_pages_move_between_them", two_nodes),
        Case::new("abi::one_node_is_what_bad_words_leave", one_node),
        Case::new("abi::wild_system_calls_hurt_nobody", wild_calls),
        Case::new("abi::vector_registers_survive_other_programs", vector_registers),
        Case::new("abi::bad_ends_have_their_status", bad_ends),
        Case::new("abi::memory_that_runs_out_ends_programs_only", memory_runs_out),
        Case::new("abi::stdin_comes_back_unchanged", stdin),
    ]
}

/// Gives the monitor these lines, then checks the memory.
pub(super) fn session(lines: &[String]) -> Result<Captured, Failed> {
    session_within(lines, bench::LIMIT)
}

/// As [`session`], for up to `limit`.
pub(super) fn session_within(lines: &[String], limit: Duration) -> Result<Captured, Failed> {
    session_on(&bench::machine()?, lines, limit)
}

/// As [`session_within`], on a machine of one's own.
pub(super) fn session_on(machine: &Machine, lines: &[String], limit: Duration) -> Result<Captured, Failed> {
    let input = format!("{}\ncheck\npoweroff {LAST}\n", lines.join("\n"));
    let captured = bench::run_within(machine, input.as_bytes(), limit)?;
    ended(&captured, LAST)?;
    ensure(captured.text().contains("all of memory is in order"), || {
        format!("the memory is not in order:\n{}", captured.text())
    })?;
    Ok(captured)
}

/// Expects that every promise was kept, and that there were some.
pub(super) fn all_kept(captured: &Captured) -> Result<(), Failed> {
    let text = captured.text();
    let is_right = text.contains("\nok ") && !text.contains("BROKEN") && !text.contains("ended with status");
    ensure(is_right, || {
        let lines = text
            .lines()
            .filter(|line| line.starts_with("BROKEN") || line.contains("ended"));
        format!("{}\nlog:\n{}", lines.collect::<Vec<_>>().join("\n"), captured.log)
    })
}

/// Runs a case whose promises must all be kept.
fn kept(case: &str) -> Result<Captured, Failed> {
    let captured = session(&[format!("run abi-check {case}")])?;
    all_kept(&captured)?;
    Ok(captured)
}

/// As the machine's own program: spaces and empty arguments arrive, and the environment.
fn arguments() -> Result<(), Failed> {
    let captured = run(
        &Root::default(),
        &["/bin/abi-check", "args", "two words", "", "é"],
        b"",
    )?;
    ended(&captured, 0)?;
    for line in [
        "arg 0 \"two words\"",
        "arg 1 \"\"",
        "arg 2 \"é\"",
        "env PATH=/bin",
    ] {
        ensure(captured.text().lines().any(|found| found == line), || {
            format!("no line `{line}` in:\n{}", captured.text())
        })?;
    }
    all_kept(&captured)
}

/// On a machine whose memory is cut in two.
fn two_nodes() -> Result<(), Failed> {
    let captured = with_words(&["numa=fake=2"], "run abi-check nodes 2")?;
    ensure(captured.log.contains("numa: node 1: frames"), || {
        format!("no second node in the log:\n{}", captured.log)
    })
}

fn one_node() -> Result<(), Failed> {
    let bad = ["numa=fake=9", "numa=fake=0", "numa=fake=512M", "numa=on"];
    let captured = with_words(&bad, "run abi-check nodes 1")?;
    let is_told = |word: &&str| captured.log.contains(&format!("unknown word `{word}`"));
    ensure(bad.iter().all(is_told), || captured.log.clone())
}

/// Runs a case whose promises must all be kept, on a machine with these words on the kernel's command line.
fn with_words(words: &[&str], line: &str) -> Result<Captured, Failed> {
    let mut machine = bench::machine()?;
    machine.words.extend(words.iter().map(Into::into));
    let captured = session_on(&machine, &[line.to_owned()], bench::LIMIT)?;
    all_kept(&captured)?;
    Ok(captured)
}

fn wild_calls() -> Result<(), Failed> {
    let lines: Vec<_> = (1..=4).map(|seed| format!("run abi-check fuzz {seed}")).collect();
    let captured = session(&lines)?;
    all_kept(&captured)?;
    let rounds = captured.text().matches("calls were answered").count();
    ensure(rounds == lines.len(), || format!("only {rounds} rounds"))
}

/// Four programs at once, each with its own patterns.
fn vector_registers() -> Result<(), Failed> {
    let background = "run abi-check fpu 1500 &".to_owned();
    let mut lines = vec![background; 3];
    lines.push("run abi-check fpu 2500".to_owned());
    let captured = session(&lines)?;
    let text = captured.text();
    let kept = text.matches("ok     vector registers are kept").count();
    let ended = text.matches("ended with status 0").count();
    ensure((kept, ended) == (4, 3), || {
        format!("{kept} of 4 kept them:\n{text}")
    })
}

const ENDS: &[(&str, u8)] = &[
    ("status 200", 200),
    ("null-read", 139),
    ("null-write", 139),
    ("kernel-read", 139),
    ("non-canonical-read", 139),
    ("past-user-space", 139),
    ("text-write", 139),
    ("null-jump", 139),
    ("kernel-jump", 139),
    ("data-jump", 139),
    ("stack-overflow", 139),
    ("privileged", 139),
    ("divide", 136),
    ("illegal", 132),
    ("breakpoint", 133),
    ("abort", 134),
    ("panic", 134),
    ("terminate", 143),
    ("eat-memory", 137),
];

fn bad_ends() -> Result<(), Failed> {
    let lines: Vec<_> = ENDS
        .iter()
        .map(|(way, _)| format!("run abi-check end {way}"))
        .collect();
    let captured = session(&lines)?;
    let text = captured.text();
    let found: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_once(" ended with status "))
        .map(|(_, status)| status)
        .collect();
    let expected: Vec<_> = ENDS.iter().map(|(_, status)| status.to_string()).collect();
    ensure(found == expected, || {
        format!("expected {expected:?}, found {found:?}\nlog:\n{}", captured.log)
    })
}

/// On a small machine: one program takes all there is and is ended; then one keeps nearly everything for a while, others
/// start, or are refused, want more, and end as they must.
fn memory_runs_out() -> Result<(), Failed> {
    let input = format!(
        "run abi-check end eat-memory\n\
         run abi-check end hold-memory 1500 &\nrun abi-check signals\nrun abi-check end eat-memory\n\
         run abi-check files\nrun abi-check end hold-memory 0\nrun abi-check memory\ncheck\npoweroff {LAST}\n"
    );
    let mut machine = bench::machine()?;
    machine.memory_mib = 64;
    let captured = bench::run(&machine, input.as_bytes())?;
    ended(&captured, LAST)?;
    let text = captured.text();
    let is_right = text.contains("all of memory is in order") && text.contains("ended with status 137");
    ensure(is_right, || format!("{text}\nlog:\n{}", captured.log))
}

/// Until a fork is refused, and then again: what they had must have come back.
fn many_children() -> Result<(), Failed> {
    let input = format!(
        "run abi-check children\ncheck\nrun abi-check children\nrun abi-check tasks\ncheck\npoweroff {LAST}\n"
    );
    let mut machine = bench::machine()?;
    machine.memory_mib = 256;
    let captured = bench::run(&machine, input.as_bytes())?;
    ended(&captured, LAST)?;
    let text = captured.text();
    ensure(text.matches("all of memory is in order").count() == 2, || {
        format!("the memory is not in order:\n{text}\nlog:\n{}", captured.log)
    })?;
    all_kept(&captured)
}

fn stdin() -> Result<(), Failed> {
    let input: Vec<u8> = (0..=u8::MAX).cycle().take(3000).collect();
    let captured = run(&Root::default(), &["/bin/abi-check", "echo"], &input)?;
    ended(&captured, 0)?;
    ensure(captured.stdout == input, || {
        format!("{} of {} bytes came back", captured.stdout.len(), input.len())
    })
}
