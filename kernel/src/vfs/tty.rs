//! The terminal: standard streams, and a line discipline where a person sits at the other end.
//!
//! ```text
//!   host's stdin is          reads give                     TCGETS
//!   a terminal               edited lines, echoed           termios
//!   a pipe or file           bytes as they come             ENOTTY
//! ```
//! A program's output goes out unchanged in both cases: the host's terminal is raw for input only and goes on doing
//! what `OPOST` and `ONLCR` promise, whatever a program sets them to.
//!
//! Lock: the discipline's state, for a few instructions at a time, never while waiting for input.

use alloc::{collections::VecDeque, vec::Vec};

use linux_abi::{errno::Errno, raw::general as abi};
use spin::Mutex;

use crate::{
    boot::args::{StreamEnd, args},
    drivers::uart::{self, Read},
    task::{
        family,
        process::{self, Pid},
        signal::Signal,
    },
};

/// A standard stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// COM1, in.
    Stdin,
    /// COM1, out.
    Stdout,
    /// COM2, out.
    Stderr,
    /// COM1, both ways: `/dev/console` and `/dev/tty`.
    Both,
}

impl Stream {
    /// Whether there is a terminal at its other end.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        let ends = args().streams();
        let end = match self {
            Self::Stdin | Self::Both => ends.stdin,
            Self::Stdout => ends.stdout,
            Self::Stderr => ends.stderr,
        };
        end == StreamEnd::Tty
    }
}

/// Whether a read may wait for input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Until there is some.
    Yes,
    /// Not at all: `EAGAIN`.
    No,
}

/// What programs may set of a terminal; layout of the kernel's `struct termios` without padding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Termios {
    /// Input modes.
    pub iflag: u32,
    /// Output modes.
    pub oflag: u32,
    /// Control modes.
    pub cflag: u32,
    /// Local modes.
    pub lflag: u32,
    /// Line discipline.
    pub line: u8,
    /// Control characters.
    pub cc: [u8; 19],
}

/// Size of `struct termios` at the system call interface.
pub const TERMIOS_BYTES: usize = 36;

impl Termios {
    /// Linux's defaults, 38400 baud as its consoles say.
    const DEFAULT: Self = Self {
        iflag: abi::ICRNL | abi::IXON,
        oflag: abi::OPOST | abi::ONLCR,
        cflag: abi::B38400 | abi::CS8 | abi::CREAD | abi::HUPCL,
        lflag: abi::ISIG
            | abi::ICANON
            | abi::ECHO
            | abi::ECHOE
            | abi::ECHOK
            | abi::ECHOCTL
            | abi::ECHOKE
            | abi::IEXTEN,
        line: 0,
        cc: [3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22, 0, 0, 0],
    };

    /// As programs see it.
    #[must_use]
    pub fn to_bytes(self) -> [u8; TERMIOS_BYTES] {
        let mut bytes = [0; TERMIOS_BYTES];
        for (slot, word) in bytes
            .chunks_exact_mut(4)
            .zip([self.iflag, self.oflag, self.cflag, self.lflag])
        {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        bytes[16] = self.line;
        bytes[17..].copy_from_slice(&self.cc);
        bytes
    }

    /// As a program gave it.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; TERMIOS_BYTES]) -> Self {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut cc = [0; 19];
        cc.copy_from_slice(&bytes[17..]);
        Self {
            iflag: word(0),
            oflag: word(4),
            cflag: word(8),
            lflag: word(12),
            line: bytes[16],
            cc,
        }
    }

    fn has(&self, lflag: u32) -> bool {
        self.lflag & lflag != 0
    }

    fn is(&self, byte: u8, index: u32) -> bool {
        byte != 0 && self.cc[index as usize] == byte
    }
}

/// State of the line discipline.
struct Discipline {
    termios: Termios,
    /// The line being edited.
    editing: Vec<u8>,
    /// Finished input: bytes of whole lines, with the length of each.
    ready: VecDeque<u8>,
    lines: VecDeque<usize>,
}

/// What a byte of input was, besides input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    Taken,
    Interrupt(Signal),
}

static DISCIPLINE: Mutex<Discipline> = Mutex::new(Discipline {
    termios: Termios::DEFAULT,
    editing: Vec::new(),
    ready: VecDeque::new(),
    lines: VecDeque::new(),
});

/// Returns the terminal's settings.
#[must_use]
pub fn termios() -> Termios {
    DISCIPLINE.lock().termios
}

/// Changes the terminal's settings.
pub fn set_termios(termios: Termios) {
    DISCIPLINE.lock().termios = termios;
}

/// The group that gets the keys: the signals of interrupt keys, and the input that is taken while nobody reads.
static FOREGROUND: Mutex<Option<Pid>> = Mutex::new(None);

/// Most input that is kept for a program that does not read: as Linux.
const KEPT: usize = 4096;

/// Gives the terminal, with its default settings, to a process.
pub fn give_to(process: Pid) {
    DISCIPLINE.lock().termios = Termios::DEFAULT;
    *FOREGROUND.lock() = Some(process);
    // Begins the watch: nobody may be reading for a long time.
    take_keys();
}

/// Takes the terminal back from whoever has it. Input that the process left comes out of [`take_left`].
pub fn take_back() {
    *FOREGROUND.lock() = None;
    let mut state = DISCIPLINE.lock();
    state.termios = Termios::DEFAULT;
    state.lines.clear();
    let editing = core::mem::take(&mut state.editing);
    state.ready.extend(editing);
}

/// Takes a byte that was typed for a process that ended before it read it.
#[must_use]
pub fn take_left() -> Option<u8> {
    DISCIPLINE.lock().ready.pop_front()
}

/// Takes what was typed while a process has the terminal, whether it reads or not: an interrupt key must work for one
/// that does not.
///
/// # Context
/// A task that holds nothing.
pub fn take_keys() {
    if FOREGROUND.lock().is_none() || !Stream::Stdin.is_terminal() {
        return;
    }
    let mut byte = [0];
    while DISCIPLINE.lock().has_room() {
        match uart::com1_read(&mut byte) {
            Read::Bytes(_) => feed(byte[0]),
            Read::Eof | Read::WouldBlock => return uart::enable_interrupts(),
        }
    }
}

/// Fails if the running process is to end its wait for a signal.
fn check_signals() -> Result<(), Errno> {
    match process::current() {
        Some(process) if process.is_interrupted() => Err(Errno::EINTR),
        _ => Ok(()),
    }
}

/// Reads from the terminal. 0: the end of input.
///
/// # Errors
/// `EAGAIN` if nothing is there and `wait` is [`Wait::No`]; `EINTR` after an interrupt key, whose signal is then
/// pending.
pub fn read(buffer: &mut [u8], wait: Wait) -> Result<usize, Errno> {
    if buffer.is_empty() {
        return Ok(0);
    }
    if Stream::Stdin.is_terminal() {
        read_terminal(buffer, wait)
    } else {
        read_bytes(buffer, wait)
    }
}

fn read_bytes(buffer: &mut [u8], wait: Wait) -> Result<usize, Errno> {
    loop {
        match uart::com1_read(buffer) {
            Read::Bytes(count) => return Ok(count),
            Read::Eof => return Ok(0),
            Read::WouldBlock if wait == Wait::No => return Err(Errno::EAGAIN),
            Read::WouldBlock => {
                check_signals()?;
                uart::com1_wait(None);
            }
        }
    }
}

fn read_terminal(buffer: &mut [u8], wait: Wait) -> Result<usize, Errno> {
    loop {
        if let Some(count) = DISCIPLINE.lock().take(buffer) {
            return Ok(count);
        }
        check_signals()?;
        let mut byte = [0];
        match uart::com1_read(&mut byte) {
            Read::Bytes(_) => feed(byte[0]),
            // The end ends a line that was begun.
            Read::Eof if DISCIPLINE.lock().finish_line() => {}
            Read::Eof => return Ok(0),
            Read::WouldBlock if wait == Wait::No => return Err(Errno::EAGAIN),
            Read::WouldBlock => uart::com1_wait(None),
        }
    }
}

fn feed(byte: u8) {
    let mut echo = Vec::new();
    let key = DISCIPLINE.lock().key(byte, &mut echo);
    uart::com1_write(&echo);
    if let Key::Interrupt(signal) = key {
        let foreground = *FOREGROUND.lock();
        if let Some(group) = foreground {
            family::raise_in_group(group, Some(signal));
        }
    }
}

impl Discipline {
    fn has_room(&self) -> bool {
        self.ready.len() + self.editing.len() < KEPT
    }

    /// Gives out what is ready: at most one line, or `None` if there is nothing yet.
    fn take(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let available = match self.lines.front() {
            Some(&line) => line,
            None if !self.termios.has(abi::ICANON) && !self.ready.is_empty() => self.ready.len(),
            None => return None,
        };
        let count = available.min(buffer.len());
        for (slot, byte) in buffer.iter_mut().zip(self.ready.drain(..count)) {
            *slot = byte;
        }
        if let Some(line) = self.lines.front_mut() {
            *line -= count;
            if *line == 0 {
                self.lines.pop_front();
            }
        }
        Some(count)
    }

    /// Hands the edited line over, and says whether there was one.
    fn finish_line(&mut self) -> bool {
        let begun = !self.editing.is_empty();
        if begun {
            self.commit();
        }
        begun
    }

    fn commit(&mut self) {
        self.lines.push_back(self.editing.len());
        self.ready.extend(self.editing.drain(..));
    }

    fn key(&mut self, byte: u8, echo: &mut Vec<u8>) -> Key {
        let termios = self.termios;
        let byte = if byte == b'\r' && termios.iflag & abi::ICRNL != 0 {
            b'\n'
        } else {
            byte
        };
        if termios.has(abi::ISIG) {
            for (index, signal) in [(abi::VINTR, Signal::INT), (abi::VQUIT, Signal::QUIT)] {
                if termios.is(byte, index) {
                    self.editing.clear();
                    self.show(byte, echo);
                    return Key::Interrupt(signal);
                }
            }
        }
        if termios.has(abi::ICANON) {
            self.edit(byte, echo);
        } else {
            self.ready.push_back(byte);
            self.show(byte, echo);
        }
        Key::Taken
    }

    fn edit(&mut self, byte: u8, echo: &mut Vec<u8>) {
        let termios = self.termios;
        if termios.is(byte, abi::VERASE) || byte == 8 {
            self.erase(echo);
        } else if termios.is(byte, abi::VKILL) {
            while self.erase(echo) {}
        } else if termios.is(byte, abi::VEOF) {
            self.commit();
        } else {
            self.editing.push(byte);
            self.show(byte, echo);
            if byte == b'\n' {
                self.commit();
            }
        }
    }

    /// Takes the last character off the line, and off the screen.
    fn erase(&mut self, echo: &mut Vec<u8>) -> bool {
        // A character may be several bytes of UTF-8: the last one that is no continuation begins it.
        let Some(start) = self.editing.iter().rposition(|byte| byte & 0xc0 != 0x80) else {
            return false;
        };
        let columns = if self.editing[start] < 32 { 2 } else { 1 };
        self.editing.truncate(start);
        if self.termios.has(abi::ECHO) {
            (0..columns).for_each(|_| echo.extend_from_slice(b"\x08 \x08"));
        }
        true
    }

    fn show(&self, byte: u8, echo: &mut Vec<u8>) {
        if !self.termios.has(abi::ECHO) {
            return;
        }
        match byte {
            b'\n' | b'\t' => echo.push(byte),
            0..32 | 127 => echo.extend_from_slice(&[b'^', byte ^ 0x40]),
            _ => echo.push(byte),
        }
    }
}

/// Whether a read would return at once.
#[must_use]
pub fn has_input() -> bool {
    // On a terminal a byte need not make a line; a poll may then be told too much, which poll allows.
    !DISCIPLINE.lock().ready.is_empty() || uart::com1_ready()
}

/// Writes to a stream. Returns when the bytes have left the kernel.
pub fn write(stream: Stream, bytes: &[u8]) {
    match stream {
        Stream::Stderr => uart::com2_write(bytes),
        Stream::Stdin | Stream::Stdout | Stream::Both => uart::com1_write(bytes),
    }
}
