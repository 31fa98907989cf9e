//! The test bench: what all trials share, built when the first one asks for it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use boot::{
    capture::Captured,
    cargo::Build,
    image::{Firmware, Kernel, KernelProfile},
    initrd::{self, Root},
    machine::{Company, Machine},
};
use libtest_mimic::Failed;

/// How long a machine that runs one program may take. Generous: the computer may be busy with other things.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// Builds once, and tells everybody the same.
struct Once<T>(OnceLock<Result<T, String>>);

impl<T> Once<T> {
    const fn new() -> Self {
        Self(OnceLock::new())
    }

    fn get(&self, build: impl FnOnce() -> boot::Result<T>) -> Result<&T, String> {
        self.0
            .get_or_init(|| build().map_err(|error| error.to_string()))
            .as_ref()
            .map_err(Clone::clone)
    }
}

/// The kernel of the trials: optimised, with debug assertions and the in-kernel trials.
pub(crate) fn kernel() -> Result<&'static Kernel, String> {
    static KERNEL: Once<Kernel> = Once::new();
    KERNEL.get(|| Kernel::build(KernelProfile::Ktest))
}

fn image() -> Result<&'static PathBuf, String> {
    static IMAGE: Once<PathBuf> = Once::new();
    let kernel = kernel()?;
    IMAGE.get(|| kernel.disk_image(Firmware::Bios))
}

/// The root directory that every machine gets.
pub(crate) fn built_in() -> Result<&'static Vec<u8>, String> {
    static BUILT_IN: Once<Vec<u8>> = Once::new();
    BUILT_IN.get(initrd::built_in)
}

/// A copy of the binary behind `cargo run`: `--uefi` lets cargo replace the original.
pub(crate) fn binary() -> Result<&'static PathBuf, String> {
    static BINARY: Once<PathBuf> = Once::new();
    BINARY.get(|| {
        let executables = Build::for_host("the default binary", "boot").run()?;
        let found = executables
            .into_iter()
            .find(|executable| executable.name == "boot");
        let missing = || boot::Error::Unexpected("cargo built no `boot`".into());
        let original = found.ok_or_else(missing)?.path;
        let copy = original.with_extension("trials");
        // In two steps: a copy that runs cannot be written to, but it can be replaced.
        let new = original.with_extension(format!("trials-{}", std::process::id()));
        let copied = fs::copy(&original, &new).and_then(|_| fs::rename(&new, &copy));
        copied.map_err(boot::Error::io("copy the default binary"))?;
        Ok(copy)
    })
}

/// A default machine with the built-in root.
pub(crate) fn machine() -> Result<Machine, String> {
    machine_with(&Root::default())
}

/// A default machine with `root` over the built-in one.
pub(crate) fn machine_with(root: &Root) -> Result<Machine, String> {
    let mut machine = Machine::new(image()?.clone(), Firmware::Bios);
    let files = root.read().map_err(|error| error.to_string())?;
    machine.initrd = Some(Arc::new(files.over(built_in()?)));
    Ok(machine)
}

/// A machine as it is without us beside it, whose image holds the built-in root; `image` is where to write that.
pub(crate) fn lonely_machine(image: &Path) -> Result<Machine, String> {
    let written = kernel()?.standalone_image(Firmware::Bios, built_in()?, image);
    written.map_err(|error| error.to_string())?;
    let mut machine = Machine::new(image.to_owned(), Firmware::Bios);
    machine.company = Company::Nobody;
    Ok(machine)
}

/// Runs `machine` to its end, or for [`LIMIT`].
pub(crate) fn run(machine: &Machine, input: &[u8]) -> Result<Captured, Failed> {
    run_within(machine, input, LIMIT)
}

/// Runs `machine` to its end, or for `limit`.
pub(crate) fn run_within(machine: &Machine, input: &[u8], limit: Duration) -> Result<Captured, Failed> {
    Captured::run(machine, input, limit).map_err(|error| Failed::from(error.to_string()))
}
