//! Project chores: `cargo xtask --help`.
//!
//! Depends on nothing of ours and on no other crate, so that it builds in a second and runs when the rest does not.
#![forbid(unsafe_code)]

mod bench_guest;
mod chores;
mod floors;
mod page_types;
mod undump;

use std::{env, path::Path, process::ExitCode};

/// What a chore says when it fails. Its cause has been told by then or is in the text.
type Outcome = Result<(), String>;

const HELP: &str = "\
Chores of the project.

Usage: cargo xtask CHORE [ARGS]

  ci [--skip STEP]...       everything that must hold, in order, with timings: fmt, clippy, floors, tests, doc
  floors                    fails when a module of `mm` uses one of a higher floor (table in mm/docs/design.md)
  miri [ARGS]               the unit tests of mm and linux-abi under Miri (ARGS go to the tests)
  bench [ARGS]              the benches of mm (ARGS go to them)
  bench-guest               what operations cost in guest instructions, beside Linux 6.1 (boots a machine; a minute)
  compare-linux --kernel BZIMAGE
                            runs thp-numbers on that Linux 6.1, in QEMU, and compares with tests/data/thp-numbers.txt
  undump [INPUT [OUTPUT]]   turns the console's `dump` text back into a file (default: standard input, NAME.bin)
  page-types [--no-download]
                            builds Linux's page-types from package linux-source-6.1, outside this repository, and
                            prints where it is; it then reads such a file: page-types -F kpageflags.bin
";

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let chore = arguments.next();
    let rest: Vec<String> = arguments.collect();
    let outcome = match chore.as_deref() {
        Some("ci") => chores::ci(&rest),
        Some("floors") => floors::run(root(), &rest),
        Some("miri") => chores::miri(&rest),
        Some("bench") => chores::bench(&rest),
        Some("bench-guest") => bench_guest::run(&rest),
        Some("compare-linux") => chores::compare_linux(&rest),
        Some("undump") => undump::run(&rest),
        Some("page-types") => page_types::run(&rest),
        Some("help" | "-h" | "--help") => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => Err(format!("no chore `{other}`; `cargo xtask --help` lists them")),
        None => Err(format!("which chore?\n\n{HELP}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The folder of the workspace.
fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).unwrap_or(package)
}

/// Refuses arguments that a chore does not take.
fn none_left(arguments: &[String]) -> Outcome {
    match arguments.first() {
        None => Ok(()),
        Some(argument) => Err(format!(
            "unexpected argument `{argument}`; see `cargo xtask --help`"
        )),
    }
}
