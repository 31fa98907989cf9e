//! In-kernel trials (feature `ktest`).
//!
//! A trial is a static in the linker section `ktest_trials`, laid out as `linux_abi::wire` says, so that the host lists
//! names and wishes without a boot. The host passes the names to run; each begins and ends with a record. A trial
//! passes when its function returns and the whole memory is still in order; it fails by panicking, which ends this
//! boot (the host starts another one for the rest).
//!
//! ```
//! crate::ktest::trials! {
//!     Trial::new("wait::deadline_ends_a_wait", deadline_ends_a_wait),
//!     Trial::new("kstack::overflow_is_reported", overflow).panics(),
//! }
//! ```

use linux_abi::wire::{TrialHeader, record, trial_end};

use crate::{
    boot::args::args,
    check,
    drivers::host::{self, End},
    log,
};

pub mod abi;
pub mod cases;
pub mod injected;
pub mod scenarios;

/// One trial, as the host and the kernel read it.
#[repr(C)]
#[derive(Debug)]
pub struct Trial {
    header: TrialHeader,
    run: fn(),
}

const _: () = assert!(size_of::<Trial>() == linux_abi::wire::TRIAL_RECORD_SIZE);

impl Trial {
    /// A trial that shares a boot with others.
    ///
    /// # Panics
    /// At compile time, if the name is longer than the host's record has room for.
    #[must_use]
    pub const fn new(name: &'static str, run: fn()) -> Self {
        let mut header = TrialHeader {
            name: [0; 96],
            end: trial_end::RETURNS,
            own_boot: 0,
            memory_mib: 0,
            cpus: 0,
        };
        let bytes = name.as_bytes();
        assert!(bytes.len() < header.name.len(), "the name of a trial is too long");
        let (start, _) = header.name.split_at_mut(bytes.len());
        start.copy_from_slice(bytes);
        Self { header, run }
    }

    /// It is meant to end in a kernel panic.
    #[must_use]
    pub const fn panics(mut self) -> Self {
        self.header.end = trial_end::PANICS;
        self.header.own_boot = 1;
        self
    }

    /// It wants a boot of its own.
    #[must_use]
    pub const fn own_boot(mut self) -> Self {
        self.header.own_boot = 1;
        self
    }

    /// It wants a machine with that much memory.
    #[must_use]
    pub const fn memory_mib(mut self, mib: u32) -> Self {
        self.header.memory_mib = mib;
        self
    }

    /// It wants a machine with that many CPUs.
    #[must_use]
    pub const fn cpus(mut self, cpus: u32) -> Self {
        self.header.cpus = cpus;
        self
    }

    fn name(&self) -> &[u8] {
        let end = self
            .header
            .name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(self.header.name.len());
        &self.header.name[..end]
    }
}

/// Puts trials into the section that host and kernel read.
#[macro_export]
macro_rules! ktest_trials {
    ($($trial:expr),* $(,)?) => {
        $(
            const _: () = {
                #[used]
                #[unsafe(link_section = "ktest_trials")]
                static TRIAL: $crate::ktest::Trial = $trial;
            };
        )*
    };
}

pub use crate::ktest_trials as trials;

unsafe extern "C" {
    static __start_ktest_trials: TrialHeader;
    static __stop_ktest_trials: TrialHeader;
}

/// All trials of this kernel.
fn all() -> &'static [Trial] {
    let start = (&raw const __start_ktest_trials).cast::<Trial>();
    let bytes = (&raw const __stop_ktest_trials).addr() - start.addr();
    // SAFETY: the linker sets both symbols around the section, which holds nothing but trials.
    unsafe { core::slice::from_raw_parts(start, bytes / size_of::<Trial>()) }
}

/// Runs the trials that the host named, and ends the machine.
pub fn run() -> ! {
    let mut failed = 0;
    let mut passed = 0;
    for name in args().tests() {
        match run_one(name) {
            Ok(()) => {
                passed += 1;
                host::send_record(record::TEST, &[&[record::TEST_PASSED], name]);
            }
            Err(message) => {
                failed += 1;
                log::error!("ktest: {}: {message}", name.escape_ascii());
                host::send_record(
                    record::TEST,
                    &[&[record::TEST_FAILED], name, &[0], message.as_bytes()],
                );
            }
        }
    }
    log::info!("ktest: {passed} passed, {failed} failed");
    host::end(if failed == 0 {
        End::Status(0)
    } else {
        End::TestFailed
    })
}

fn run_one(name: &[u8]) -> Result<(), alloc::string::String> {
    host::send_record(record::TEST, &[&[record::TEST_STARTED], name]);
    let trial = all()
        .iter()
        .find(|trial| trial.name() == name)
        .ok_or("this kernel has no such trial")?;
    (trial.run)();
    check::check(&[]).map_err(|error| alloc::format!("the memory is not in order afterwards: {error}"))
}
