//! The trials that need a machine, each with its own name, verdict and filter.
//!
//! ```text
//!   ktest::MODULE::BEHAVIOUR   in-kernel trials: listed from the kernel's ELF file, many in one boot (batch)
//!   FAMILY::BEHAVIOUR          driven from the host: a program, the monitor, the command line (cases)
//! ```
//! Listing builds the kernel (unless no in-kernel trial can match the filter) and never boots; a machine starts only for a trial that was selected. A trial that needs
//! a package which is not installed reports itself as ignored and names the package.
#![forbid(unsafe_code)]

mod batch;
mod bench;
mod cases;

use std::{collections::BTreeMap, sync::Arc};

use batch::Batch;
use boot::cargo;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tests::list::{self, Expected, KernelTrial};

/// Prefix of the names of in-kernel trials.
const PREFIX: &str = "ktest::";

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = kernel_trials(&arguments);
    trials.extend(cases::all().into_iter().map(cases::Case::into_trial));
    libtest_mimic::run(&arguments, trials).exit();
}

/// The in-kernel trials; one failing trial if they cannot be listed.
fn kernel_trials(arguments: &Arguments) -> Vec<Trial> {
    let sources = cargo::workspace_root().join("kernel/src");
    let filter = arguments.filter.as_deref().unwrap_or_default();
    if !PREFIX.contains(filter) && !list::may_match(&sources, filter) {
        return Vec::new();
    }
    match bench::kernel().and_then(|kernel| list::read(kernel.elf())) {
        Ok(found) => batched(arguments, found),
        Err(message) => vec![Trial::test(format!("{PREFIX}kernel_builds"), || {
            Err(Failed::from(message))
        })],
    }
}

/// Gives each trial its batch. Only trials that will run are in one: a filter must not boot for more than it selects.
fn batched(arguments: &Arguments, found: Vec<KernelTrial>) -> Vec<Trial> {
    let selected = |trial: &KernelTrial| !arguments.is_filtered_out(&empty(&trial.name));
    let mut shared: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for trial in found.iter().filter(|trial| !trial.own_boot && selected(trial)) {
        shared.entry(trial.shape).or_default().push(trial.name.clone());
    }
    let shared: BTreeMap<_, Arc<Batch>> = shared
        .into_iter()
        .map(|(shape, names)| (shape, Batch::new(names, Expected::Returns, shape)))
        .collect();
    let batch_of = |trial: &KernelTrial| match shared.get(&trial.shape) {
        Some(batch) if !trial.own_boot => Arc::clone(batch),
        _ => Batch::new(vec![trial.name.clone()], trial.expected, trial.shape),
    };
    found
        .into_iter()
        .map(|trial| named(batch_of(&trial), trial.name))
        .collect()
}

fn named(batch: Arc<Batch>, name: String) -> Trial {
    let public = format!("{PREFIX}{name}");
    Trial::test(public, move || batch.verdict(&name).map_err(Failed::from))
}

/// A trial that only has its name, to ask the filter about.
fn empty(name: &str) -> Trial {
    Trial::ignorable_test(format!("{PREFIX}{name}"), || Ok(Completion::Completed))
}
