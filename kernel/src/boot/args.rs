//! What the host passed to this boot.
//!
//! Everything comes as fw_cfg files of NUL-terminated strings (contract: `linux_abi::wire::fw_cfg`). On a machine
//! without the device the boot loader's ramdisk is the initramfs, everything else is empty, and all text goes to
//! COM1, because no host program listens anywhere else.

use linux_abi::wire::fw_cfg as names;
use spin::Once;

use super::early::{EarlyMemory, OutOfEarlyMemory};
use crate::drivers::fw_cfg::FwCfg;

/// What is at the host's end of a standard stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum StreamEnd {
    /// A pipe or a file.
    #[default]
    Pipe,
    /// A terminal.
    Tty,
}

/// What is at the host's end of each standard stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StreamEnds {
    /// Of COM1's input.
    pub stdin: StreamEnd,
    /// Of COM1's output.
    pub stdout: StreamEnd,
    /// Of COM2's output.
    pub stderr: StreamEnd,
}

/// What the host passed.
#[derive(Clone, Copy, Debug)]
pub struct Args {
    cmdline: &'static [u8],
    argv: &'static [u8],
    env: &'static [u8],
    tests: &'static [u8],
    initrd: Option<&'static [u8]>,
    streams: StreamEnds,
    host_listens: bool,
}

static ARGS: Once<Args> = Once::new();

/// Returns what the host passed.
///
/// # Panics
/// Before [`read`].
#[must_use]
pub fn args() -> &'static Args {
    ARGS.get()
        .expect("invariant: the boot order reads the arguments first")
}

/// Reads everything into memory that stays. `ramdisk` is the boot loader's, for a machine without fw_cfg.
///
/// # Errors
/// A file is larger than the free memory.
pub fn read(
    memory: &mut EarlyMemory,
    ramdisk: Option<&'static [u8]>,
) -> Result<&'static Args, OutOfEarlyMemory> {
    let args = match FwCfg::probe(memory)? {
        Some(device) => from_fw_cfg(&device, memory, ramdisk)?,
        None => Args {
            initrd: ramdisk,
            ..Args::EMPTY
        },
    };
    Ok(ARGS.call_once(|| args))
}

fn from_fw_cfg(
    device: &FwCfg,
    memory: &mut EarlyMemory,
    ramdisk: Option<&'static [u8]>,
) -> Result<Args, OutOfEarlyMemory> {
    let mut file = |name| {
        device
            .find(name)
            .map(|file| device.read(file, memory))
            .transpose()
    };
    let cmdline = file(names::CMDLINE)?;
    let streams = file(names::TTY)?;
    Ok(Args {
        cmdline: cmdline.unwrap_or_default(),
        argv: file(names::ARGV)?.unwrap_or_default(),
        env: file(names::ENV)?.unwrap_or_default(),
        tests: file(names::TESTS)?.unwrap_or_default(),
        initrd: file(names::INITRD)?.or(ramdisk),
        streams: StreamEnds::parse(streams.unwrap_or_default()),
        // QEMU has the device also when somebody starts the image by hand; only `boot` passes these.
        host_listens: cmdline.is_some() || streams.is_some(),
    })
}

impl Args {
    const EMPTY: Self = Self {
        cmdline: &[],
        argv: &[],
        env: &[],
        tests: &[],
        initrd: None,
        streams: StreamEnds {
            stdin: StreamEnd::Tty,
            stdout: StreamEnd::Tty,
            stderr: StreamEnd::Tty,
        },
        host_listens: false,
    };

    /// The kernel command line's words.
    pub fn cmdline_words(&self) -> impl Iterator<Item = &'static [u8]> + Clone + use<> {
        self.cmdline
            .split(|byte| matches!(byte, 0 | b' ' | b'\t' | b'\n'))
            .filter(|word| !word.is_empty())
    }

    /// PROGRAM and its arguments; nothing if there is no program.
    pub fn argv(&self) -> impl Iterator<Item = &'static [u8]> + Clone + use<> {
        let is_program = self.argv.first().is_some_and(|&byte| byte != 0);
        strings(if is_program { self.argv } else { &[] })
    }

    /// The program's environment, `NAME=value` each.
    pub fn env(&self) -> impl Iterator<Item = &'static [u8]> + Clone + use<> {
        strings(self.env).filter(|word| !word.is_empty())
    }

    /// Names of the in-kernel trials to run, in order.
    pub fn tests(&self) -> impl Iterator<Item = &'static [u8]> + Clone + use<> {
        strings(self.tests).filter(|word| !word.is_empty())
    }

    /// The initramfs, if there is one.
    #[must_use]
    pub const fn initrd(&self) -> Option<&'static [u8]> {
        self.initrd
    }

    /// What is at the host's end of each stream.
    #[must_use]
    pub const fn streams(&self) -> StreamEnds {
        self.streams
    }

    /// Whether the host program is there, which listens to COM2 and to records.
    #[must_use]
    pub const fn host_listens(&self) -> bool {
        self.host_listens
    }
}

/// Splits a list of NUL-terminated strings. The last may lack its terminator.
fn strings(list: &'static [u8]) -> impl Iterator<Item = &'static [u8]> + Clone + use<> {
    let list = list
        .strip_suffix(&[0])
        .map_or((list, list.is_empty()), |inner| (inner, false));
    let (bytes, none) = list;
    bytes
        .split(|&byte| byte == 0)
        .take(if none { 0 } else { usize::MAX })
}

impl StreamEnds {
    fn parse(list: &'static [u8]) -> Self {
        let mut ends = Self::default();
        for word in strings(list) {
            let end = if word.ends_with(b"=tty") {
                StreamEnd::Tty
            } else {
                StreamEnd::Pipe
            };
            match word.split(|&byte| byte == b'=').next() {
                Some(b"stdin") => ends.stdin = end,
                Some(b"stdout") => ends.stdout = end,
                Some(b"stderr") => ends.stderr = end,
                _ => {}
            }
        }
        ends
    }
}
