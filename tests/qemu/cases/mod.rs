//! Trials driven from the host. One file per family; a family is a list of [`Case`]s.

mod abi;
mod command_line;
mod console;
mod injected;
mod machines;
mod numbers;
mod programs;
mod tiny_elf;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::OnceLock,
};

use libtest_mimic::{Completion, Failed, Trial};
use object::Object;

/// What a case needs from the computer it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// UEFI firmware.
    Ovmf,
    /// A static busybox.
    Busybox,
    /// Linux's reader of kpageflags, or the source package that `cargo xtask page-types` builds it from.
    PageTypes,
    /// A kernel of Linux 6.1.
    LinuxKernel,
}

impl Need {
    fn is_met(self) -> bool {
        match self {
            Self::Ovmf => boot::machine::firmware::uefi_is_installed(),
            Self::Busybox => is_static(Path::new(programs::BUSYBOX)),
            Self::PageTypes => page_types().is_some(),
            Self::LinuxKernel => numbers::linux_kernel().is_some(),
        }
    }

    /// What is missing; packages as Debian and Ubuntu name them.
    const fn missing(self) -> &'static str {
        match self {
            Self::Ovmf => "package ovmf is not installed",
            Self::Busybox => "package busybox-static is not installed",
            Self::PageTypes => "package linux-source-6.1 is not installed",
            Self::LinuxKernel => {
                "no kernel of Linux 6.1 is named: cargo xtask compare-linux --kernel BZIMAGE"
            }
        }
    }
}

/// One trial.
#[derive(Debug)]
pub(crate) struct Case {
    name: &'static str,
    needs: &'static [Need],
    run: fn() -> Result<(), Failed>,
}

impl Case {
    const fn new(name: &'static str, run: fn() -> Result<(), Failed>) -> Self {
        Self {
            name,
            needs: &[],
            run,
        }
    }

    const fn needing(name: &'static str, needs: &'static [Need], run: fn() -> Result<(), Failed>) -> Self {
        Self { name, needs, run }
    }

    /// The trial that `cargo test` shows.
    pub(crate) fn into_trial(self) -> Trial {
        let Self { name, needs, run } = self;
        Trial::ignorable_test(name, move || match needs.iter().find(|need| !need.is_met()) {
            Some(need) => Ok(Completion::ignored_with(need.missing())),
            None => run().map(|()| Completion::Completed),
        })
    }
}

/// Every case.
pub(crate) fn all() -> Vec<Case> {
    [
        command_line::cases(),
        programs::cases(),
        abi::cases(),
        injected::cases(),
        machines::cases(),
        console::cases(),
        numbers::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Whether `file` is an ELF file that asks for no interpreter.
fn is_static(file: &Path) -> bool {
    let Ok(bytes) = fs::read(file) else { return false };
    object::File::parse(&*bytes).is_ok_and(|elf| elf.section_by_name(".interp").is_none())
}

/// Where page-types is; built on the first call, if that needs no download (`cargo xtask page-types` fetches it).
fn page_types() -> Option<&'static str> {
    static TOOL: OnceLock<Option<String>> = OnceLock::new();
    let find = || {
        let mut xtask = boot::cargo::command();
        xtask.args([
            "run",
            "--quiet",
            "--package",
            "xtask",
            "--",
            "page-types",
            "--no-download",
        ]);
        let output = xtask.output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    TOOL.get_or_init(find).as_deref()
}

/// Fails with `message` unless `condition`.
fn ensure(condition: bool, message: impl FnOnce() -> String) -> Result<(), Failed> {
    if condition { Ok(()) } else { Err(message().into()) }
}

/// A folder of a case's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self, Failed> {
        let path = env::temp_dir().join(format!("cleave-{name}-{}", process::id()));
        fs::create_dir_all(&path).map_err(|error| format!("cannot make {}: {error}", path.display()))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file and returns its path.
    fn file(&self, name: &str, contents: &[u8]) -> Result<String, Failed> {
        let path = self.0.join(name);
        fs::write(&path, contents).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        Ok(path.to_string_lossy().into_owned())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder that stays behind in the temporary directory is no reason to fail.
        let _ = fs::remove_dir_all(&self.0);
    }
}
