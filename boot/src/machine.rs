//! One QEMU: its arguments, its start, its end.
//!
//! QEMU gets everything through file descriptors it inherits: three socket pairs (COM1, COM2, records) and one memory
//! file per fw_cfg file. So there are no temporary files, no names to collide, and nothing to clean up.
//!
//! A machine never outlives whoever started it: dropping [`Running`] kills it, and the system kills it when the
//! *thread* that called [`Machine::start`] dies ([`spawn`](self) asks for that), so start and wait in one thread.

pub mod firmware;
mod spawn;

use std::{
    ffi::{OsStr, OsString},
    fmt,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::Child,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use linux_abi::wire::fw_cfg;
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::{
    Error, Result,
    channels::{self, Gate, InputEnd, Record, StreamEnd, Tail},
    image::Firmware,
    outcome::{Cut, End},
};

/// Less than this the boot loader and the kernel do not fit in with room to work.
pub const MIN_MEMORY_MIB: u32 = 64;
/// The kernel's per-CPU data is laid out for this many.
pub const MAX_CPUS: u32 = 64;
const QEMU: &str = "qemu-system-x86_64";
const QEMU_PACKAGE: &str = "qemu-system-x86";
/// A fixed start of the guest's calendar for machines on the instruction clock.
const FIXED_DATE: &str = "2026-01-01T00:00:00";

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Accelerator {
    /// Translation by QEMU: works everywhere.
    #[default]
    Tcg,
    /// The host's processor.
    Kvm,
}

/// What the guest's time follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clock {
    /// The host's clock.
    #[default]
    Host,
    /// The number of instructions executed, one nanosecond each: the same in every run.
    InstructionCount,
}

/// Who stands beside the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Company {
    /// This program: fw_cfg files, records, the exit device.
    #[default]
    Host,
    /// Nobody: what a real computer would see. The fields that travel by fw_cfg have no effect.
    Nobody,
}

/// What is at the host's end of one of the guest's standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EndPoint {
    /// A pipe or a file.
    #[default]
    Pipe,
    /// A terminal.
    Terminal,
}

impl EndPoint {
    const fn word(self) -> &'static str {
        match self {
            Self::Pipe => "pipe",
            Self::Terminal => "tty",
        }
    }
}

/// The description of a machine. All fields are as the guest will see them.
#[derive(Debug, Clone)]
pub struct Machine {
    image: PathBuf,
    firmware: Firmware,
    /// Memory in MiB. Not checked against [`MIN_MEMORY_MIB`] here: tests start machines that are too small.
    pub memory_mib: u32,
    /// Number of CPUs.
    pub cpus: u32,
    /// What executes its instructions.
    pub accelerator: Accelerator,
    /// What its time follows.
    pub clock: Clock,
    /// Who stands beside it.
    pub company: Company,
    /// TCP port on the local host where it waits for a debugger before its first instruction.
    pub gdb_port: Option<u16>,
    /// Kernel command line words.
    pub words: Vec<OsString>,
    /// PROGRAM and its arguments; empty: the monitor.
    pub argv: Vec<OsString>,
    /// The program's environment, `NAME=value` each.
    pub environment: Vec<OsString>,
    /// The root directory's archives; `None`: the machine gets none by fw_cfg.
    pub initrd: Option<Arc<Vec<u8>>>,
    /// Names of in-kernel trials to run.
    pub trials: Vec<String>,
    /// What stdin, stdout and stderr are at the host's end.
    pub end_points: [EndPoint; 3],
}

/// Where a machine's streams begin and end.
pub struct Streams {
    /// Its stdin. An error of kind [`channels::STOP_REQUEST`] stops the machine.
    pub input: Box<dyn Read + Send>,
    /// Its stdout.
    pub output: Box<dyn Write + Send>,
    /// Its log and stderr.
    pub log: Box<dyn Write + Send>,
    /// Called for each record, in order, on a thread of its own.
    pub records: Box<dyn FnMut(Record) + Send>,
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Streams")
    }
}

/// A machine that runs. Dropping it kills the machine.
#[derive(Debug)]
pub struct Running {
    child: Child,
    shared: Arc<Shared>,
    readers: Vec<JoinHandle<()>>,
}

/// Stops a machine from any thread. Does nothing once the machine has ended.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<Shared>);

/// What is known when a machine has ended and every byte it sent was delivered.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub end: End,
    /// What the firmware wrote, if the kernel's mark never came on COM1 or COM2: the kernel did not start.
    pub before_mark: Option<String>,
    /// QEMU's own messages.
    pub qemu_messages: String,
    tail: Tail,
}

impl Finished {
    /// The last `count` lines of the log.
    #[must_use]
    pub fn log_tail(&self, count: usize) -> String {
        self.tail.last_lines(count)
    }
}

#[derive(Debug)]
struct Shared {
    process: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    cut: Option<Cut>,
    exit_record: Option<u8>,
    before_mark: Vec<u8>,
    tail: Tail,
    qemu_messages: Vec<u8>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self, reason: Cut) {
        self.state().cut.get_or_insert(reason);
        // It fails only when the process is gone, which is what was wanted.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }
}

impl Stopper {
    /// Kills the machine; its end will be [`End::Stopped`] if it has not ended otherwise.
    pub fn stop(&self) {
        self.0.cut(Cut::Stop);
    }
}

impl Machine {
    /// A machine with the defaults of `cargo run` that boots `image`.
    #[must_use]
    pub fn new(image: PathBuf, firmware: Firmware) -> Self {
        Self {
            image,
            firmware,
            memory_mib: 512,
            cpus: 2,
            accelerator: Accelerator::default(),
            clock: Clock::default(),
            company: Company::default(),
            gdb_port: None,
            words: Vec::new(),
            argv: Vec::new(),
            environment: Vec::new(),
            initrd: None,
            trials: Vec::new(),
            end_points: [EndPoint::Pipe; 3],
        }
    }

    /// Starts it. Call from the thread that will wait: the machine dies with that thread.
    ///
    /// # Errors
    /// [`Error::Missing`] without QEMU or OVMF, [`Error::Io`] when the system has no more processes or descriptors.
    /// Nothing runs then.
    pub fn start(&self, streams: Streams) -> Result<Running> {
        let (com1, com1_guest) = pair()?;
        let (com2, com2_guest) = pair()?;
        let (records, records_guest) = pair()?;
        let mut arguments = self.arguments()?;
        let mut inherited = Vec::new();
        for (id, guest) in [
            ("com1", com1_guest),
            ("com2", com2_guest),
            ("records", records_guest),
        ] {
            arguments.extend([
                "-chardev".into(),
                format!("socket,id={id},fd={}", guest.as_raw_fd()).into(),
            ]);
            inherited.push(OwnedFd::from(guest));
        }
        for (name, contents) in self.fw_cfg_files() {
            let file = memory_file(&contents)?;
            let argument = format!("name={name},file=/dev/fd/{}", file.as_raw_fd());
            arguments.extend(["-fw_cfg".into(), argument.into()]);
            inherited.push(file);
        }
        let child = spawn::spawn(QEMU, &arguments, inherited).map_err(cannot_start)?;
        Running::new(child, Ports { com1, com2, records }, streams)
    }

    /// QEMU's arguments, except for the descriptors it inherits.
    fn arguments(&self) -> Result<Vec<OsString>> {
        let mut list = Vec::new();
        let mut add = |words: &[&str]| list.extend(words.iter().map(OsString::from));
        add(&[
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-name",
            "cleave",
            "-monitor",
            "none",
        ]);
        // Not `-vga none`: the boot loader's BIOS stages need VBE.
        add(&[
            "-machine", "q35", "-vga", "std", "-display", "none", "-cpu", "max",
        ]);
        add(&[
            "-m",
            &format!("{}M", self.memory_mib),
            "-smp",
            &self.cpus.to_string(),
        ]);
        add(&["-accel", self.accelerator_argument()]);
        if self.clock == Clock::InstructionCount {
            let date = format!("base={FIXED_DATE},clock=vm");
            add(&[
                "-icount",
                "shift=0,align=off,sleep=off",
                "-rtc",
                &date,
                "-seed",
                "0",
            ]);
        }
        if let Some(port) = self.gdb_port {
            add(&["-gdb", &format!("tcp:127.0.0.1:{port}"), "-S"]);
        }
        add(&["-serial", "chardev:com1", "-serial", "chardev:com2"]);
        if self.company == Company::Host {
            add(&["-device", "isa-debugcon,iobase=0xe9,chardev=records"]);
            add(&["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
        }
        if self.firmware == Firmware::Uefi {
            list.extend(firmware::Ovmf::find()?.arguments());
        }
        list.extend([
            "-drive".into(),
            drive("format=raw,snapshot=on,file=", &self.image),
        ]);
        Ok(list)
    }

    const fn accelerator_argument(&self) -> &'static str {
        match (self.accelerator, self.clock) {
            (Accelerator::Kvm, _) => "kvm",
            (Accelerator::Tcg, Clock::Host) => "tcg,thread=multi",
            // QEMU refuses to count instructions of several threads.
            (Accelerator::Tcg, Clock::InstructionCount) => "tcg,thread=single",
        }
    }

    fn fw_cfg_files(&self) -> Vec<(&'static str, Vec<u8>)> {
        if self.company == Company::Nobody {
            return Vec::new();
        }
        let names = ["stdin", "stdout", "stderr"];
        let ends: Vec<String> = names
            .iter()
            .zip(self.end_points)
            .map(|(name, end)| format!("{name}={}", end.word()))
            .collect();
        let mut files = vec![
            (fw_cfg::CMDLINE, strings(&self.words)),
            (fw_cfg::ARGV, strings(&self.argv)),
            (fw_cfg::ENV, strings(&self.environment)),
            (fw_cfg::TTY, strings(&ends)),
        ];
        if let Some(initrd) = self.initrd.as_ref().filter(|bytes| !bytes.is_empty()) {
            files.push((fw_cfg::INITRD, initrd.to_vec()));
        }
        if !self.trials.is_empty() {
            files.push((fw_cfg::TESTS, strings(&self.trials)));
        }
        files
    }
}

/// NUL-terminated strings; a list without any is one empty string, because QEMU refuses empty files.
fn strings(list: &[impl AsRef<OsStr>]) -> Vec<u8> {
    let mut bytes: Vec<u8> = list
        .iter()
        .flat_map(|text| [text.as_ref().as_bytes(), b"\0"].concat())
        .collect();
    if bytes.is_empty() {
        bytes.push(0);
    }
    bytes
}

/// A `-drive` value: QEMU wants commas inside a path doubled.
fn drive(options: &str, path: &Path) -> OsString {
    let mut value = options.as_bytes().to_vec();
    for byte in path.as_os_str().as_bytes() {
        value.push(*byte);
        if *byte == b',' {
            value.push(b',');
        }
    }
    OsStr::from_bytes(&value).to_owned()
}

fn pair() -> Result<(UnixStream, UnixStream)> {
    UnixStream::pair().map_err(Error::io("make a pair of sockets"))
}

fn memory_file(contents: &[u8]) -> Result<OwnedFd> {
    let file = rustix::fs::memfd_create("fw_cfg", rustix::fs::MemfdFlags::CLOEXEC);
    let file = file.map_err(|error| Error::io("make a memory file")(error.into()))?;
    let mut file = std::fs::File::from(file);
    file.write_all(contents)
        .map_err(Error::io("fill a memory file"))?;
    Ok(file.into())
}

fn cannot_start(error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::NotFound {
        return no_qemu();
    }
    Error::io(format!("start {QEMU}"))(error)
}

fn no_qemu() -> Error {
    Error::Missing {
        what: format!("QEMU ({QEMU})"),
        package: QEMU_PACKAGE,
    }
}

/// Looks for QEMU and the firmware, so that their absence is told before anything is built.
///
/// # Errors
/// [`Error::Missing`] names the package.
pub fn find_tools(firmware: Firmware) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|folder| folder.join(QEMU).is_file()) {
        return Err(no_qemu());
    }
    match firmware {
        Firmware::Bios => Ok(()),
        Firmware::Uefi => firmware::Ovmf::find().map(drop),
    }
}

/// The host's ends of the channels.
struct Ports {
    com1: UnixStream,
    com2: UnixStream,
    records: UnixStream,
}

impl Running {
    fn new(mut child: Child, ports: Ports, streams: Streams) -> Result<Self> {
        let pid = Pid::from_child(&child);
        let process = pidfd_open(pid, PidfdFlags::empty());
        let process = process.map_err(|error| Error::io("watch QEMU")(error.into()))?;
        let shared = Arc::new(Shared {
            process,
            state: Mutex::default(),
        });
        let mut readers = Vec::new();
        if let Some(mut messages) = child.stderr.take() {
            let shared = Arc::clone(&shared);
            readers.push(thread::spawn(move || {
                let mut bytes = Vec::new();
                // What could be read is what can be reported.
                let _ = messages.read_to_end(&mut bytes);
                shared.state().qemu_messages = bytes;
            }));
        }
        let mut running = Self {
            child,
            shared,
            readers,
        };
        running.connect(ports, streams)?;
        Ok(running)
    }

    /// Starts one thread per stream.
    fn connect(&mut self, ports: Ports, streams: Streams) -> Result<()> {
        let Ports { com1, com2, records } = ports;
        let Streams {
            mut input,
            mut output,
            mut log,
            records: mut on_record,
        } = streams;
        let clone = |socket: &UnixStream| socket.try_clone().map_err(Error::io("copy a socket"));
        let (com1_in, com2_in) = (clone(&com1)?, clone(&com2)?);
        let (com1_gate, com2_gate) = (Gate::default(), Gate::default());

        let (shared, gate) = (Arc::clone(&self.shared), com1_gate.clone());
        self.readers.push(thread::spawn(move || {
            let end = channels::copy_out(com1, &gate, &mut |bytes| {
                output.write_all(bytes)?;
                output.flush()
            });
            shared.stream_ended(end);
        }));

        let (shared, gate) = (Arc::clone(&self.shared), com2_gate.clone());
        self.readers.push(thread::spawn(move || {
            let end = channels::copy_out(com2, &gate, &mut |bytes| {
                shared.state().tail.push(bytes);
                // A log that nobody reads is no reason to stop the machine.
                let _ = log.write_all(bytes).and_then(|()| log.flush());
                Ok(())
            });
            shared.stream_ended(end);
        }));

        let shared = Arc::clone(&self.shared);
        self.readers.push(thread::spawn(move || {
            channels::copy_records(records, &mut |record| {
                if let Record::Exit(status) = record {
                    shared.state().exit_record = Some(status);
                }
                on_record(record);
            });
        }));

        // Never joined: it may wait for a user who types nothing.
        let shared = Arc::clone(&self.shared);
        thread::spawn(move || {
            let end = channels::copy_in(&mut *input, (com1_in, &com1_gate), (com2_in, &com2_gate));
            if end == InputEnd::StopRequest {
                shared.cut(Cut::Stop);
            }
        });
        Ok(())
    }

    /// A handle that stops this machine.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.shared))
    }

    /// Waits until the machine ends, at most for `limit`, and until every byte it sent was delivered.
    ///
    /// # Errors
    /// [`Error::Io`] when the system cannot wait; the machine is killed then.
    pub fn wait(mut self, limit: Option<Duration>) -> Result<Finished> {
        if !self.wait_for_exit(limit)? {
            self.shared.cut(Cut::Timeout);
        }
        let status = self.child.wait().map_err(Error::io("wait for QEMU"))?;
        for reader in self.readers.drain(..) {
            // A reader that panicked has printed why; what the others delivered stands.
            let _ = reader.join();
        }
        let mut state = self.shared.state();
        let end = End::new(status, state.exit_record, state.cut);
        let before = std::mem::take(&mut state.before_mark);
        Ok(Finished {
            end,
            before_mark: (!before.is_empty()).then(|| printable(&before)),
            qemu_messages: String::from_utf8_lossy(&std::mem::take(&mut state.qemu_messages)).into_owned(),
            tail: std::mem::take(&mut state.tail),
        })
    }

    /// Whether the process ended within `limit`.
    fn wait_for_exit(&self, limit: Option<Duration>) -> Result<bool> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            let rest = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let rest = rest
                .map(rustix::event::Timespec::try_from)
                .transpose()
                .unwrap_or(None);
            match poll(
                &mut [PollFd::new(&self.shared.process, PollFlags::IN)],
                rest.as_ref(),
            ) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::io("wait for QEMU")(error.into())),
            }
        }
    }
}

impl Shared {
    fn stream_ended(&self, end: StreamEnd) {
        match end {
            StreamEnd::Closed(filter) if filter.seen() => {}
            StreamEnd::Closed(filter) => self.state().before_mark.extend(filter.into_before()),
            StreamEnd::SinkFailed(_) => self.cut(Cut::OutputClosed),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when the process is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Text without the control characters with which firmware draws.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars()
        .filter(|character| !character.is_control() || *character == '\n')
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Clock, Machine, drive, strings};
    use crate::image::Firmware;

    fn arguments(machine: &Machine) -> String {
        let list = machine.arguments().expect("no firmware file is needed");
        list.iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn commas_in_a_path_are_doubled() {
        assert_eq!(drive("file=", Path::new("/a,b")), "file=/a,,b");
    }

    #[test]
    fn string_lists_are_never_empty_files() {
        assert_eq!(strings(&["a b", "c"]), b"a b\0c\0");
        assert_eq!(strings(&[] as &[&str]), b"\0");
    }

    #[test]
    fn the_instruction_clock_means_one_thread_and_a_fixed_date() {
        let mut machine = Machine::new("/i".into(), Firmware::Bios);
        assert!(arguments(&machine).contains("-accel tcg,thread=multi"));
        machine.clock = Clock::InstructionCount;
        let arguments = arguments(&machine);
        for word in [
            "-accel tcg,thread=single",
            "-icount shift=0",
            "clock=vm",
            "-seed 0",
        ] {
            assert!(arguments.contains(word), "{word} in {arguments}");
        }
    }
}
