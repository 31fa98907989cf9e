//! Programs whose allocations fail one at a time: each boot runs one program again and again under `fail-every`, and the
//! whole memory is checked at the end. `abi-check system` is not among them: it sets failures of its own.

use std::{env, time::Duration};

use boot::machine::Machine;
use libtest_mimic::Failed;

use super::{
    Case,
    abi::{all_kept, session_on},
};
use crate::bench;

/// With this variable in the environment every single allocation fails, which takes hours for some programs.
const ALL: &str = "CLEAVE_FAIL_ALL";
/// How long a session may take, unless everything is to fail.
const LIMIT: Duration = Duration::from_secs(300);

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("injected::demonstration", || survives(&["thp-demo"])),
        Case::new("injected::files_and_signals", || {
            survives(&["abi-check files", "abi-check signals", "abi-check args"])
        }),
        Case::new("injected::memory", || survives(&["abi-check memory"])),
        Case::new("injected::areas", || survives(&["abi-check areas"])),
        Case::new("injected::views", || survives(&["abi-check views"])),
        Case::new("injected::tasks", || survives(&["abi-check tasks 10"])),
        Case::new("injected::numbers", || {
            survives_on(&two_nodes()?, &["thp-numbers"])
        }),
        Case::new("injected::pipes", || {
            survives(&["abi-check pipes", "abi-check splice"])
        }),
        Case::new("injected::nodes", || {
            survives_on(&two_nodes()?, &["abi-check nodes 2"])
        }),
        Case::new("injected::vector_registers", || survives(&["abi-check fpu 100"])),
    ]
}

/// A machine whose memory is cut in two, so that pages move.
fn two_nodes() -> Result<Machine, Failed> {
    let mut machine = bench::machine()?;
    machine.words.push("numa=fake=2".into());
    Ok(machine)
}

/// Runs programs with one failing allocation at a time, on a default machine.
fn survives(programs: &[&str]) -> Result<(), Failed> {
    survives_on(&bench::machine()?, programs)
}

/// As [`survives`], on a machine of one's own.
fn survives_on(machine: &Machine, programs: &[&str]) -> Result<(), Failed> {
    let (how, limit) = match env::var_os(ALL) {
        Some(_) => ("--all ", 100 * LIMIT),
        None => ("", LIMIT),
    };
    let lines: Vec<_> = programs
        .iter()
        .map(|program| format!("run fail-every {how}/bin/{program}"))
        .collect();
    let captured = session_on(machine, &lines, limit)?;
    if !how.is_empty() {
        println!("{}", captured.text());
    }
    all_kept(&captured)
}
