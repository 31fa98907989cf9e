//! Chores that run cargo: `ci`, `miri`, `bench`, `compare-linux`.

use std::{env, fs, process::Command, time::Instant};

use crate::{Outcome, floors, root};

const KERNEL_TARGET: &str = "x86_64-unknown-none";
const USER_TARGET: &str = "x86_64-unknown-linux-musl";
const WARNINGS_ARE_ERRORS: [&str; 3] = ["--", "-D", "warnings"];

/// A named step of `ci`.
struct Step {
    name: &'static str,
    run: fn() -> Outcome,
}

const STEPS: [Step; 5] = [
    Step {
        name: "fmt",
        run: || cargo(&["fmt", "--all", "--check"]),
    },
    Step {
        name: "clippy",
        run: clippy,
    },
    Step {
        name: "floors",
        run: || floors::run(root(), &[]),
    },
    Step {
        name: "tests",
        run: || cargo(&["test"]),
    },
    Step {
        name: "doc",
        run: doc,
    },
];

/// Runs every step that is not skipped; stops at the first that fails.
pub(crate) fn ci(arguments: &[String]) -> Outcome {
    let skipped = skipped(arguments)?;
    let start = Instant::now();
    for Step { name, run } in STEPS.iter().filter(|step| !skipped.contains(&step.name)) {
        eprintln!("xtask: {name}");
        let start = Instant::now();
        run().map_err(|message| format!("step {name} failed: {message}"))?;
        eprintln!("xtask: {name}: done in {:.1} s", start.elapsed().as_secs_f64());
    }
    eprintln!("xtask: everything holds ({:.1} s)", start.elapsed().as_secs_f64());
    Ok(())
}

fn skipped(arguments: &[String]) -> Result<Vec<&str>, String> {
    let mut names = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if word != "--skip" {
            return Err(format!("expected --skip STEP, not `{word}`"));
        }
        let known = || STEPS.map(|step| step.name).join(", ");
        let name = words
            .next()
            .ok_or_else(|| format!("--skip needs a step: {}", known()))?;
        if STEPS.iter().all(|step| step.name != name) {
            return Err(format!("no step `{name}`; there are {}", known()));
        }
        names.push(name.as_str());
    }
    Ok(names)
}

/// Once for each target, because lints see only what is compiled; the kernel with and without its trials.
fn clippy() -> Outcome {
    let host = [
        "clippy",
        "--workspace",
        "--exclude",
        "kernel",
        "--exclude",
        "user",
        "--all-targets",
    ];
    let kernel = ["clippy", "--package", "kernel", "--target", KERNEL_TARGET];
    let user = ["clippy", "--package", "user", "--target", USER_TARGET];
    cargo(&[&host[..], &WARNINGS_ARE_ERRORS].concat())?;
    cargo(&[&kernel[..], &WARNINGS_ARE_ERRORS].concat())?;
    cargo(&[&kernel[..], &["--features", "ktest"], &WARNINGS_ARE_ERRORS].concat())?;
    cargo(&[&user[..], &WARNINGS_ARE_ERRORS].concat())
}

fn doc() -> Outcome {
    let host = [
        "doc",
        "--no-deps",
        "--workspace",
        "--exclude",
        "kernel",
        "--exclude",
        "user",
    ];
    let kernel = [
        "doc",
        "--no-deps",
        "--package",
        "kernel",
        "--target",
        KERNEL_TARGET,
    ];
    run(command(&host).env("RUSTDOCFLAGS", "-Dwarnings"))?;
    run(command(&kernel).env("RUSTDOCFLAGS", "-Dwarnings"))
}

/// Miri has a target directory of its own: its flags in the shared one would rebuild the boot loader.
///
/// Strict provenance: the way from a frame number to its bytes is a base pointer plus an offset, never an integer.
pub(crate) fn miri(arguments: &[String]) -> Outcome {
    let mut command = command(&[
        "miri",
        "test",
        "--package",
        "mm",
        "--package",
        "linux-abi",
        "--lib",
    ]);
    command.arg("--target-dir").arg(root().join("target/miri"));
    command.env(
        "MIRIFLAGS",
        "-Zmiri-strict-provenance -Zmiri-symbolic-alignment-check",
    );
    if !arguments.is_empty() {
        command.arg("--").args(arguments);
    }
    run(&mut command)
}

/// The benches of `mm`.
pub(crate) fn bench(arguments: &[String]) -> Outcome {
    let mut command = command(&["bench", "--package", "mm"]);
    if !arguments.is_empty() {
        command.arg("--").args(arguments);
    }
    run(&mut command)
}

/// Runs the trial that boots a Linux; it is told which by the environment.
pub(crate) fn compare_linux(arguments: &[String]) -> Outcome {
    let [option, kernel] = arguments else {
        return Err("expected --kernel BZIMAGE".into());
    };
    if option != "--kernel" {
        return Err(format!("expected --kernel BZIMAGE, not `{option}`"));
    }
    let kernel = fs::canonicalize(kernel).map_err(|error| format!("{kernel}: {error}"))?;
    let mut command = command(&["test", "--package", "tests", "--test", "qemu", "--"]);
    command.args(["--exact", "numbers::linux_prints_the_same"]);
    run(command.env("CLEAVE_LINUX_KERNEL", kernel))
}

fn cargo(arguments: &[&str]) -> Outcome {
    run(&mut command(arguments))
}

/// Cargo in the workspace, without what the cargo that runs us says about our own package.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars() {
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).current_dir(root());
    command
}

fn run(command: &mut Command) -> Outcome {
    let words: Vec<_> = command
        .get_args()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let line = format!("cargo {}", words.join(" "));
    let status = command
        .status()
        .map_err(|error| format!("cannot start {line}: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{line}: {status}"))
    }
}

#[cfg(test)]
mod tests {
    use super::skipped;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn only_known_steps_can_be_skipped() {
        assert_eq!(
            skipped(&words("--skip tests --skip doc")),
            Ok(vec!["tests", "doc"])
        );
        for bad in ["tests", "--skip", "--skip everything"] {
            assert!(skipped(&words(bad)).is_err(), "{bad}");
        }
    }
}
