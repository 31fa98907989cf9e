//! The channels between the machine and `boot`, the host program that started it.
//!
//! ```text
//!   COM1 (0x3f8)   in: stdin         out: stdout of PROGRAM, or the monitor. Bytes unchanged both ways.
//!   COM2 (0x2f8)   in: control lines out: kernel log and stderr of PROGRAM
//!   0xe9           out only: records for the host, `type u8, length u32 LE, payload`
//!   0xf4           isa-debug-exit: how the machine ended (seven bits only)
//!   fw_cfg         in: command line, argv, environment, initramfs, names of trials
//! ```
//! The first bytes the kernel sends on COM1 and on COM2 are [`MARK`]: firmware also writes text there, and the host
//! drops what comes before the mark.

/// The first sixteen bytes on COM1 and COM2.
pub const MARK: [u8; 16] = *b"\x02CLEAVE-CHANNEL\x03";

/// I/O port of the records.
pub const RECORD_PORT: u16 = 0xe9;
/// I/O port of isa-debug-exit.
pub const EXIT_PORT: u16 = 0xf4;
/// Written to [`EXIT_PORT`]: ended in order, the status is in the [`record::EXIT`] record. QEMU ends with 33.
pub const EXIT_ORDERLY: u8 = 0x10;
/// Written to [`EXIT_PORT`]: the kernel panicked. QEMU ends with 35, the host with [`STATUS_PANIC`].
pub const EXIT_PANIC: u8 = 0x11;
/// Written to [`EXIT_PORT`]: a trial failed. QEMU ends with 37.
pub const EXIT_TEST_FAILED: u8 = 0x12;

/// What QEMU's own exit status is when the guest writes `code` to [`EXIT_PORT`].
#[must_use]
pub const fn qemu_status(code: u8) -> i32 {
    (((code as i32) << 1) | 1) & 0xff
}

/// The host's exit status for a kernel panic.
pub const STATUS_PANIC: u8 = 101;
/// The host's exit status when the machine was cut off by `--timeout`.
pub const STATUS_TIMEOUT: u8 = 124;
/// The host's exit status for any end it cannot account for.
pub const STATUS_UNKNOWN: u8 = 125;

/// Names of the fw_cfg files. Each holds NUL-terminated strings (never an empty file: QEMU refuses those), except
/// [`INITRD`](fw_cfg::INITRD), which is raw.
pub mod fw_cfg {
    /// Kernel command line words.
    pub const CMDLINE: &str = "opt/cleave/cmdline";
    /// PROGRAM and its arguments. Absent or one empty string: no program, the monitor.
    pub const ARGV: &str = "opt/cleave/argv";
    /// The program's environment.
    pub const ENV: &str = "opt/cleave/env";
    /// cpio newc archives, concatenated; a later file replaces an earlier one of the same name.
    pub const INITRD: &str = "opt/cleave/initrd";
    /// `stdin=tty|pipe`, `stdout=tty|pipe`, `stderr=tty|pipe`: what is at the host's end of each stream.
    pub const TTY: &str = "opt/cleave/tty";
    /// Names of the in-kernel trials to run, in order.
    pub const TESTS: &str = "opt/cleave/tests";
}

/// Control line on COM2, host to machine: `EOF <n>\n`: stdin ended after n bytes on COM1.
pub const CONTROL_EOF: &str = "EOF";

/// Type bytes of the records on [`RECORD_PORT`].
pub mod record {
    /// Payload: status u8. The last record of an orderly end.
    pub const EXIT: u8 = 1;
    /// Payload: result u8 ([`TEST_STARTED`] and so on), then the trial's name in UTF-8, then optionally NUL and a message.
    pub const TEST: u8 = 2;
    /// Payload: name in UTF-8, NUL, raw bytes.
    pub const DUMP: u8 = 3;
    /// Payload: a coverage profile.
    pub const COVERAGE: u8 = 4;
    /// Payload: return addresses, u64 little-endian each, innermost first.
    pub const BACKTRACE: u8 = 5;

    /// A trial begins.
    pub const TEST_STARTED: u8 = 0;
    /// It passed.
    pub const TEST_PASSED: u8 = 1;
    /// It failed; the message says why.
    pub const TEST_FAILED: u8 = 2;
}

/// Name of the ELF section of [`TrialHeader`]s in a `ktest` kernel.
pub const TRIAL_SECTION: &str = "ktest_trials";
/// How a trial is expected to end.
pub mod trial_end {
    /// It returns.
    pub const RETURNS: u32 = 0;
    /// The kernel panics. Such a trial needs its own boot.
    pub const PANICS: u32 = 1;
}

/// What the host can read about an in-kernel trial without booting: the head of each record in [`TRIAL_SECTION`].
///
/// Records are [`TRIAL_RECORD_SIZE`] bytes each; after this header comes the function's address, which only the
/// kernel uses. All integers little-endian.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TrialHeader {
    /// Name, zero-padded UTF-8: `module::behaviour_it_shows`.
    pub name: [u8; 96],
    /// One of [`trial_end`].
    pub end: u32,
    /// 1: wants a boot of its own.
    pub own_boot: u32,
    /// Memory the machine must have, MiB; 0: no wish.
    pub memory_mib: u32,
    /// CPUs the machine must have; 0: no wish.
    pub cpus: u32,
}

/// Size of one record of [`TRIAL_SECTION`]: header and function pointer.
pub const TRIAL_RECORD_SIZE: usize = core::mem::size_of::<TrialHeader>() + 8;
