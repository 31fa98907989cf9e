//! COM1 and COM2, the machine's two serial lines.
//!
//! ```text
//!          out                              in
//!  COM1    the terminal: bytes unchanged    stdin, bytes unchanged
//!  COM2    kernel log, programs' stderr     control lines of the host: "EOF <n>"
//! ```
//! Both begin with a 16-byte mark, because firmware writes on them before the kernel does.
//!
//! *Output is never lost.* A port takes sixteen bytes when its transmitter is empty and none before; the writer
//! waits. That is also the flow control: a host that does not read stops the writer, not the bytes.
//!
//! *Input is never lost.* Bytes stay in the port's queue (and then in the host) until a task reads them. A receive
//! interrupt only means "look again": its handler switches the port's interrupts off, which drops the line, and
//! leaves a note; the next task to pass [`service`] wakes the readers, and a reader that finds nothing switches the
//! interrupt on again before it sleeps.
//!
//! *End of input.* The host says on COM2 how many bytes it sent on COM1 in all; when that many were read, COM1 is at
//! its end for ever.
//!
//! Locks: one spin lock per port and direction, taken by tasks only, never by interrupt handlers, never while
//! allocating.

use core::{
    fmt,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use linux_abi::wire::{CONTROL_EOF, MARK};
use spin::Mutex;
use uart_16550::{
    BaudRate, Config, Uart16550,
    backend::PioBackend,
    spec::registers::{FifoTriggerLevel, IER, LSR},
};

use super::port::{inb, outb, outsb};
use crate::task::wait::WaitQueue;

const COM1_BASE: u16 = 0x3f8;
const COM2_BASE: u16 = 0x2f8;
/// Offsets of the registers used directly.
const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const LINE_STATUS: u16 = 5;
/// Bytes the transmitter takes at once when it is empty.
const FIFO_BYTES: usize = 16;
/// Longest control line; a longer one is no control line.
const CONTROL_LINE_BYTES: usize = 64;

/// What a read of COM1 brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Read {
    /// That many bytes, at least one.
    Bytes(usize),
    /// There will never be more.
    Eof,
    /// Nothing yet.
    WouldBlock,
}

struct Port {
    base: u16,
    /// Held while bytes go out, so that two writers' bytes do not mix within one call.
    transmit: Mutex<()>,
    /// Held while bytes come in.
    receive: Mutex<()>,
    /// Whether the port exists and was initialised.
    present: AtomicBool,
    /// Set by the interrupt handler, cleared by [`service`].
    noticed: AtomicBool,
}

impl Port {
    const fn new(base: u16) -> Self {
        Self {
            base,
            transmit: Mutex::new(()),
            receive: Mutex::new(()),
            present: AtomicBool::new(false),
            noticed: AtomicBool::new(false),
        }
    }

    fn init(&self) {
        // SAFETY: the standard ports of a PC; nobody else has a handle yet.
        let Ok(mut uart) = (unsafe { Uart16550::<PioBackend>::new_port(self.base) }) else {
            return;
        };
        let config = Config {
            interrupts: IER::empty(),
            baud_rate: BaudRate::Baud115200,
            fifo_trigger_level: Some(FifoTriggerLevel::One),
            ..Config::default()
        };
        if uart.init(config).is_ok() {
            self.present.store(true, Ordering::Release);
        }
    }

    fn is_present(&self) -> bool {
        self.present.load(Ordering::Acquire)
    }

    fn line_status(&self) -> LSR {
        // SAFETY: reading the line status clears only error bits that nobody looks at.
        LSR::from_bits_retain(unsafe { inb(self.base + LINE_STATUS) })
    }

    fn transmit(&self, bytes: &[u8]) {
        let _whole = self.transmit.lock();
        self.transmit_unlocked(bytes);
    }

    fn transmit_unlocked(&self, bytes: &[u8]) {
        if !self.is_present() {
            return;
        }
        for chunk in bytes.chunks(FIFO_BYTES) {
            while !self.line_status().contains(LSR::THR_EMPTY) {
                core::hint::spin_loop();
            }
            // SAFETY: the transmitter is empty and takes this many bytes.
            unsafe { outsb(self.base + DATA, chunk) };
        }
    }

    /// Takes waiting bytes into `buffer`, at most `limit`, and returns how many.
    fn receive(&self, buffer: &mut [u8]) -> usize {
        let _one_reader = self.receive.lock();
        let mut taken = 0;
        for slot in buffer {
            if !self.has_input() {
                break;
            }
            // SAFETY: a byte waits in the queue; taking it is the read's effect.
            *slot = unsafe { inb(self.base + DATA) };
            taken += 1;
        }
        taken
    }

    fn has_input(&self) -> bool {
        self.is_present() && self.line_status().contains(LSR::DATA_READY)
    }

    fn set_receive_interrupt(&self, wanted: IER) {
        if self.is_present() {
            // SAFETY: decides only whether the port raises its line when a byte waits.
            unsafe { outb(self.base + INTERRUPT_ENABLE, wanted.bits()) };
        }
    }

    /// The interrupt handler's part.
    fn notice(&self) {
        self.set_receive_interrupt(IER::empty());
        self.noticed.store(true, Ordering::Release);
    }
}

static COM1: Port = Port::new(COM1_BASE);
static COM2: Port = Port::new(COM2_BASE);

/// Bytes read from COM1 so far.
static COM1_TAKEN: AtomicU64 = AtomicU64::new(0);
/// Bytes the host sent on COM1 in all, once it said so.
static COM1_TOTAL: AtomicU64 = AtomicU64::new(u64::MAX);
/// Readers of COM1.
static COM1_READERS: WaitQueue = WaitQueue::new();

struct ControlLine {
    bytes: [u8; CONTROL_LINE_BYTES],
    len: usize,
}

static CONTROL: Mutex<ControlLine> = Mutex::new(ControlLine {
    bytes: [0; CONTROL_LINE_BYTES],
    len: 0,
});

/// Where the log and programs' stderr go: COM2, or COM1 on a machine whose host does not listen to COM2.
static LOG_ON_COM1: AtomicBool = AtomicBool::new(false);

/// Sets both ports up and sends the marks.
pub fn init() {
    for port in [&COM1, &COM2] {
        port.init();
        port.transmit(&MARK);
    }
}

/// Sends everything to COM1 from now on: there is no host program that listens to COM2.
pub fn use_com1_for_everything() {
    LOG_ON_COM1.store(true, Ordering::Release);
}

fn log_port() -> &'static Port {
    if LOG_ON_COM1.load(Ordering::Acquire) {
        &COM1
    } else {
        &COM2
    }
}

/// Writes `bytes` unchanged to the terminal. Returns when they have left the kernel.
pub fn com1_write(bytes: &[u8]) {
    COM1.transmit(bytes);
}

/// Writes `bytes` unchanged to the log's line. Returns when they have left the kernel.
pub fn com2_write(bytes: &[u8]) {
    log_port().transmit(bytes);
}

/// Reads what waits on COM1 without waiting for it.
pub fn com1_read(buffer: &mut [u8]) -> Read {
    if buffer.is_empty() {
        return Read::Bytes(0);
    }
    let taken = COM1.receive(buffer);
    if taken > 0 {
        COM1_TAKEN.fetch_add(taken as u64, Ordering::AcqRel);
        return Read::Bytes(taken);
    }
    take_control_lines();
    if com1_at_end() {
        Read::Eof
    } else {
        Read::WouldBlock
    }
}

/// Whether [`com1_read`] would return something else than [`Read::WouldBlock`].
#[must_use]
pub fn com1_ready() -> bool {
    COM1.has_input() || com1_at_end()
}

fn com1_at_end() -> bool {
    COM1_TAKEN.load(Ordering::Acquire) >= COM1_TOTAL.load(Ordering::Acquire)
}

/// Sleeps until COM1 has something to say, or until `deadline`. May return for no reason.
///
/// # Context
/// May wait.
pub fn com1_wait(deadline: Option<mm::Nanos>) {
    COM1_READERS.wait_while(deadline, &mut || {
        expect_input();
        !com1_ready()
    });
}

/// Makes sure that what arrives from now on is told. To be called before a look at [`com1_ready`].
pub fn expect_input() {
    enable_interrupts();
    take_control_lines();
}

/// Switches receive interrupts on for the first time; they are routed by then.
pub fn enable_interrupts() {
    for port in [&COM1, &COM2] {
        port.set_receive_interrupt(IER::DATA_READY);
    }
}

/// Handles the interrupt of COM1. Interrupt context.
pub fn com1_interrupt() {
    COM1.notice();
}

/// Handles the interrupt of COM2. Interrupt context.
pub fn com2_interrupt() {
    COM2.notice();
}

/// Does in a task what the interrupt handlers noted: reads control lines, wakes readers.
pub fn service() {
    let com2 = COM2.noticed.swap(false, Ordering::AcqRel);
    if com2 {
        take_control_lines();
        COM2.set_receive_interrupt(IER::DATA_READY);
    }
    if COM1.noticed.swap(false, Ordering::AcqRel) || com2 {
        COM1_READERS.wake_all();
        crate::vfs::file::tell_readiness_changed();
    }
}

/// Whether [`service`] has something to do.
#[must_use]
pub fn needs_service() -> bool {
    COM1.noticed.load(Ordering::Acquire) || COM2.noticed.load(Ordering::Acquire)
}

/// Reads COM2 and obeys every complete line.
fn take_control_lines() {
    let mut line = CONTROL.lock();
    let mut bytes = [0; FIFO_BYTES];
    loop {
        let taken = COM2.receive(&mut bytes);
        if taken == 0 {
            return;
        }
        for &byte in &bytes[..taken] {
            line.push(byte);
        }
    }
}

impl ControlLine {
    fn push(&mut self, byte: u8) {
        if byte == b'\n' {
            self.obey();
            self.len = 0;
        } else if self.len < CONTROL_LINE_BYTES {
            self.bytes[self.len] = byte;
            self.len += 1;
        }
    }

    fn obey(&self) {
        let words = core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("");
        let mut words = words.split_ascii_whitespace();
        let total = match (words.next(), words.next()) {
            (Some(CONTROL_EOF), Some(total)) => total.parse().ok(),
            _ => None,
        };
        match total {
            Some(total) => COM1_TOTAL.store(total, Ordering::Release),
            None => crate::log::warn!("uart: a control line that is not `{CONTROL_EOF} <bytes>` was ignored"),
        }
    }
}

/// The log's line as a formatter's sink; keeps the line to itself while it lives.
pub struct LogLine {
    port: &'static Port,
    _whole: spin::MutexGuard<'static, ()>,
}

impl LogLine {
    /// Takes the line.
    #[must_use]
    pub fn lock() -> Self {
        let port = log_port();
        Self {
            port,
            _whole: port.transmit.lock(),
        }
    }
}

impl fmt::Write for LogLine {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.port.transmit_unlocked(text.as_bytes());
        Ok(())
    }
}

/// The log's line without its lock, for a kernel that will not run on: whoever holds the lock may be the one that
/// failed.
pub struct PanicLine;

impl fmt::Write for PanicLine {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        log_port().transmit_unlocked(text.as_bytes());
        Ok(())
    }
}
