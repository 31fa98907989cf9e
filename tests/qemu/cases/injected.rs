//! Programs whose allocations fail one at a time: each boot runs one program again and again under `fail-every`, and the
//! whole memory is checked at the end. `abi-check system` is not among them: it sets failures of its own.

use std::{env, time::Duration};

use libtest_mimic::Failed;

use super::{
    Case,
    abi::{all_kept, session_within},
};

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
        Case::new("injected::numbers", || survives(&["thp-numbers"])),
        Case::new("injected::pipes", || {
            survives(&["abi-check pipes", "abi-check splice"])
        }),
    ]
}

/// Runs programs with one failing allocation at a time.
fn survives(programs: &[&str]) -> Result<(), Failed> {
    let (how, limit) = match env::var_os(ALL) {
        Some(_) => ("--all ", 100 * LIMIT),
        None => ("", LIMIT),
    };
    let lines: Vec<_> = programs
        .iter()
        .map(|program| format!("run fail-every {how}/bin/{program}"))
        .collect();
    let captured = session_within(&lines, limit)?;
    if !how.is_empty() {
        println!("{}", captured.text());
    }
    all_kept(&captured)
}
