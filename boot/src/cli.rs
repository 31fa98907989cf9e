//! What `cargo run -- OPTIONS -- PROGRAM ARGS` accepts, and what it does.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, IsTerminal, Read, Write},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM},
    iterator::Signals,
};

use crate::{
    Error, Result, capture, cargo,
    channels::Record,
    image::{Firmware, Kernel, KernelProfile},
    initrd::{self, Root},
    machine::{
        self, Accelerator, Clock, EndPoint, Finished, MAX_CPUS, MIN_MEMORY_MIB, Machine, Stopper, Streams,
    },
    outcome::End,
    terminal::{self, Keys, Raw},
};

const STATUS_BAD_USAGE: u8 = 2;
const STATUS_CANNOT_START: u8 = 1;

const USAGE: &str = "cargo run -- [OPTIONS] [-- PROGRAM [ARGS]...]";

const AFTER_HELP: &str = "\
Without PROGRAM the machine shows its monitor: type `help` there. On a terminal, ctrl-a x ends the machine.

Exit status: the program's own (128+n if it died of signal n), 101 after a kernel panic, 124 when the timeout ran out, \
125 for any other end, 2 for bad options, 1 when the machine could not be built or started.

Examples:
  cargo run                                               the demonstration, then the monitor
  cargo run -- -- /bin/thp-demo                           one of our own programs
  cargo run -- --exec /bin/busybox -- /bin/busybox echo hello
  echo 'buddyinfo' | cargo run                            the monitor, from a pipe
  cargo run -- --append numa=fake=2 -- /bin/abi-check nodes 2   memory cut into two NUMA nodes (1 to 8)";

/// Boots Cleave in QEMU and runs PROGRAM on it.
#[derive(Debug, Parser)]
#[command(name = "cargo run --", bin_name = "cargo run --", version, override_usage = USAGE, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Options {
    /// CPUs of the machine [default: 2, with --icount 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CPUS)))]
    smp: Option<u32>,

    /// Memory of the machine, like 512M or 8G (a bare number means MiB)
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_memory)]
    memory: u32,

    /// Put a host file into the machine as /bin/NAME, executable (may repeat)
    #[arg(long, value_name = "FILE")]
    exec: Vec<PathBuf>,

    /// Unpack a cpio newc archive, plain or gzip, over the built-in root
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,

    /// Boot through UEFI firmware (package ovmf) instead of BIOS
    #[arg(long)]
    uefi: bool,

    /// What executes the guest's instructions
    #[arg(long, value_name = "ACCEL", default_value = "tcg")]
    accel: Accelerator,

    /// Deterministic clock: one nanosecond for each instruction
    #[arg(long)]
    icount: bool,

    /// Kernel command line words (may repeat)
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    append: Vec<OsString>,

    /// Cut the machine off after so many seconds (exit status 124)
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = parse_seconds)]
    timeout: Option<Duration>,

    /// How much the kernel logs to stderr
    #[arg(long, value_name = "LEVEL")]
    log: Option<LogLevel>,

    /// Wait for a debugger on this port of the local host before the first instruction
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true, default_missing_value = "1234")]
    gdb: Option<u16>,

    /// Write a disk image with kernel and root to FILE, for a machine of your own, and start nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["gdb", "timeout", "program"])]
    image: Option<PathBuf>,

    /// Build of the kernel
    #[arg(long, value_name = "PROFILE", default_value = "release")]
    profile: KernelProfile,

    /// Program to run in ring 3, with its arguments
    #[arg(last = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

/// How much the kernel logs.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogLevel {
    /// Only what went wrong.
    Error,
    /// Also what is odd.
    Warn,
    /// Also the steps of the boot.
    Info,
    /// Also what helps to find a mistake.
    Debug,
}

/// Reads a memory size into MiB.
fn parse_memory(text: &str) -> std::result::Result<u32, String> {
    let expected = || format!("expected a size like 512M or 8G, at least {MIN_MEMORY_MIB}M");
    let digits = text.trim_end_matches(|character: char| !character.is_ascii_digit());
    let number: u32 = digits.parse().map_err(|_| expected())?;
    let mib = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "m" | "mb" | "mib" => Some(number),
        "g" | "gb" | "gib" => number.checked_mul(1024),
        "t" | "tb" | "tib" => number.checked_mul(1024 * 1024),
        _ => None,
    };
    let mib = mib.ok_or_else(expected)?;
    if mib < MIN_MEMORY_MIB {
        return Err(format!(
            "too small: the boot loader and the kernel need at least {MIN_MEMORY_MIB}M"
        ));
    }
    Ok(mib)
}

fn parse_seconds(text: &str) -> std::result::Result<Duration, String> {
    let seconds = text
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds
        .filter(|limit| !limit.is_zero())
        .ok_or_else(|| "expected a number of seconds above 0".into())
}

/// Runs the default binary: parses the command line, runs the machine, and returns the exit status.
#[must_use]
pub fn main() -> ExitCode {
    restore_terminal_on_panic();
    let options = Options::parse();
    match run(&options) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("boot: {error}");
            ExitCode::from(if matches!(error, Error::BadInput(_)) {
                STATUS_BAD_USAGE
            } else {
                STATUS_CANNOT_START
            })
        }
    }
}

fn run(options: &Options) -> Result<u8> {
    options.check()?;
    let root = Root {
        programs: options.exec.clone(),
        initramfs: options.initramfs.clone(),
    };
    let files = root.read()?;
    let firmware = if options.uefi {
        Firmware::Uefi
    } else {
        Firmware::Bios
    };
    if options.image.is_none() {
        machine::find_tools(firmware)?;
    }
    if !firmware.is_built_in() {
        return run_again_with(firmware);
    }
    let kernel = Kernel::build(options.profile)?;
    let initrd = files.over(&initrd::built_in()?);
    if let Some(image) = &options.image {
        kernel.standalone_image(firmware, &initrd, image)?;
        eprintln!(
            "boot: {} is bootable; it talks on the first serial port",
            image.display()
        );
        return Ok(0);
    }
    let mut machine = options.machine(&kernel, firmware)?;
    machine.initrd = Some(Arc::new(initrd));
    if let Some(port) = options.gdb {
        eprintln!(
            "boot: waiting for a debugger: gdb {} -ex 'target remote :{port}'",
            kernel.elf().display()
        );
    }

    let raw = Raw::enter()?;
    if raw.is_some() {
        eprint!("boot: ctrl-a x ends the machine\r\n");
    }
    let backtraces = Arc::new(Mutex::new(Vec::new()));
    let running = machine.start(console(&backtraces, raw.is_some()))?;
    stop_on_signals(running.stopper())?;
    let finished = running.wait(options.timeout)?;
    drop(raw);
    let addresses = std::mem::take(&mut *backtraces.lock().unwrap_or_else(PoisonError::into_inner));
    report(&finished, &kernel, &addresses);
    Ok(finished.end.status())
}

impl Options {
    /// Finds what only becomes wrong in combination or by looking at the host.
    fn check(&self) -> Result<()> {
        if self.icount && self.accel == Accelerator::Kvm {
            return Err(Error::BadInput(
                "--icount counts translated instructions: it needs --accel tcg".into(),
            ));
        }
        if self.accel == Accelerator::Kvm {
            let device = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
            device.map_err(|error| Error::BadInput(format!("--accel kvm: cannot open /dev/kvm: {error}")))?;
        }
        if self.program.first().is_some_and(|program| program.is_empty()) {
            return Err(Error::BadInput("PROGRAM is empty".into()));
        }
        Ok(())
    }

    fn machine(&self, kernel: &Kernel, firmware: Firmware) -> Result<Machine> {
        let mut machine = Machine::new(kernel.disk_image(firmware)?, firmware);
        machine.memory_mib = self.memory;
        machine.cpus = self.smp.unwrap_or(if self.icount { 1 } else { 2 });
        machine.accelerator = self.accel;
        machine.clock = if self.icount {
            Clock::InstructionCount
        } else {
            Clock::Host
        };
        machine.gdb_port = self.gdb;
        machine.words = self.words();
        machine.argv.clone_from(&self.program);
        machine.environment = environment();
        machine.end_points = [
            end_point(io::stdin().is_terminal()),
            end_point(io::stdout().is_terminal()),
            end_point(io::stderr().is_terminal()),
        ];
        Ok(machine)
    }

    fn words(&self) -> Vec<OsString> {
        let level = self.log.and_then(|level| level.to_possible_value());
        let mut words: Vec<OsString> = level
            .map(|level| format!("loglevel={}", level.get_name()).into())
            .into_iter()
            .collect();
        for text in &self.append {
            // Words that are not UTF-8 travel as they are: the kernel says that it does not know them.
            match text.to_str() {
                Some(text) => words.extend(text.split_whitespace().map(OsString::from)),
                None => words.push(text.clone()),
            }
        }
        words
    }
}

const fn end_point(is_terminal: bool) -> EndPoint {
    if is_terminal {
        EndPoint::Terminal
    } else {
        EndPoint::Pipe
    }
}

/// The program's environment: what a program needs to find its way, and nothing that differs between two runs.
fn environment() -> Vec<OsString> {
    let mut list: Vec<OsString> = vec!["PATH=/bin".into(), "HOME=/".into()];
    if io::stdin().is_terminal() {
        let mut terminal = OsString::from("TERM=");
        terminal.push(env::var_os("TERM").unwrap_or_else(|| "dumb".into()));
        list.push(terminal);
    }
    list
}

/// This build lacks the boot loader for `firmware`: let cargo build one that has it, and become that.
fn run_again_with(firmware: Firmware) -> Result<u8> {
    let feature = if firmware == Firmware::Uefi {
        "uefi"
    } else {
        "bios"
    };
    eprintln!("boot: building with the {feature} boot loader (a minute or two the first time)");
    let mut command = cargo::command();
    // Cargo starts the program where it is started itself: relative file names must stay right.
    let here = env::current_dir().map_err(Error::io("find the current directory"))?;
    let manifest = cargo::workspace_root().join("Cargo.toml");
    command
        .arg("run")
        .arg("--manifest-path")
        .arg(manifest)
        .current_dir(here);
    command.args([
        "--package",
        "boot",
        "--no-default-features",
        "--features",
        feature,
        "--",
    ]);
    command.args(env::args_os().skip(1));
    let status = command.status().map_err(Error::io("start cargo"))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.unwrap_or(linux_abi::wire::STATUS_UNKNOWN))
}

/// The streams of `cargo run`: our own three, and backtraces kept for the report.
fn console(backtraces: &Arc<Mutex<Vec<Vec<u64>>>>, is_raw: bool) -> Streams {
    let backtraces = Arc::clone(backtraces);
    let input: Box<dyn Read + Send> = if is_raw {
        Box::new(Keys::new(io::stdin()))
    } else {
        Box::new(io::stdin())
    };
    Streams {
        input,
        output: Box::new(io::stdout()),
        log: Box::new(io::stderr()),
        records: Box::new(move |record| match record {
            Record::Backtrace(addresses) => {
                backtraces
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(addresses);
            }
            Record::Unknown(kind) => eprintln!("boot: the kernel sent a record of unknown type {kind}"),
            _ => {}
        }),
    }
}

/// Says on stderr what the streams did not say: backtraces, and the reason of an end that is not the program's.
fn report(finished: &Finished, kernel: &Kernel, backtraces: &[Vec<u64>]) {
    let backtraces = backtraces.iter().map(Vec::as_slice);
    let text = if finished.end.needs_log() {
        format!("boot: {}", capture::explain(finished, kernel, backtraces))
    } else {
        let mut text: String = backtraces
            .map(|addresses| capture::symbolised(kernel, addresses))
            .collect();
        if !matches!(finished.end, End::Orderly(_)) {
            text.push_str(&format!("boot: {}\n", finished.end));
        }
        text
    };
    // Nobody is left to tell if this fails.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// On a signal that ends us: stop the machine, give the terminal back, end as the signal would have ended us.
fn stop_on_signals(stopper: Stopper) -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM]).map_err(Error::io("catch signals"))?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            stopper.stop();
            terminal::restore();
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

fn restore_terminal_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        terminal::restore();
        report(info);
    }));
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Options, parse_memory, parse_seconds};

    #[test]
    fn the_options_are_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn memory_sizes() {
        assert_eq!(parse_memory("512M"), Ok(512));
        assert_eq!(parse_memory("8G"), Ok(8192));
        assert_eq!(parse_memory("64"), Ok(64));
        assert!(parse_memory("16M").is_err_and(|message| message.contains("at least 64M")));
        for bad in ["", "M", "lots", "-1M", "1.5G", "5K", "4294967295G", "8é"] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn timeouts_are_positive() {
        assert!(parse_seconds("10").is_ok() && parse_seconds("0.5").is_ok());
        for bad in ["0", "-1", "x", "", "nan", "1e30"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_program_keeps_its_options() {
        let options = Options::parse_from(["boot", "--icount", "--", "/bin/x", "--smp", "--", "-a"]);
        assert_eq!(options.program, ["/bin/x", "--smp", "--", "-a"]);
        assert!(options.icount && options.smp.is_none());
    }

    #[test]
    fn command_line_words_are_split() {
        let options = Options::parse_from(["boot", "--append", "a  b", "--append", "-c", "--log", "debug"]);
        assert_eq!(options.words(), ["loglevel=debug", "a", "b", "-c"]);
    }
}
