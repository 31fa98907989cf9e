//! The streams between the machine and the host.
//!
//! ```text
//!   QEMU  ── COM1 ──►  mark ─► output          one thread per stream: a slow reader of stdout holds back the
//!         ── COM2 ──►  mark ─► log, its tail   machine's COM1 (and nothing else), nothing is dropped or reordered
//!         ── 0xe9 ──►  records
//!         ◄── COM1 ──  input   (from COM1's mark on)
//!         ◄── COM2 ──  `EOF n` (after the last byte of input, from COM2's mark on)
//! ```
//! Firmware writes on both serial ports and reads from them, so bytes flow in neither direction before the kernel's
//! mark ([`wire::MARK`]): what comes out earlier is set aside and shown only if the mark never comes.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use linux_abi::wire::{self, record};

/// How much of the log is kept for the report of a bad end.
const TAIL_BYTES: usize = 64 * 1024;
/// A longer record means that the stream is no longer in step.
const MAX_RECORD: usize = 1 << 30;

/// A message of the kernel to the host alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The status of an orderly end.
    Exit(u8),
    /// News of an in-kernel trial.
    Test {
        /// What happened to it.
        result: TestResult,
        /// Its name.
        name: String,
        /// Why it failed; empty otherwise.
        message: String,
    },
    /// A named piece of raw data.
    Dump {
        /// What it is.
        name: String,
        /// The data.
        bytes: Vec<u8>,
    },
    /// A coverage profile.
    Coverage(Vec<u8>),
    /// Return addresses, innermost first.
    Backtrace(Vec<u64>),
    /// A record that this program does not know, or whose payload makes no sense: its type.
    Unknown(u8),
}

/// What happened to a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TestResult {
    /// It begins.
    Started,
    /// It passed.
    Passed,
    /// It failed.
    Failed,
}

impl Record {
    fn decode(kind: u8, payload: &[u8]) -> Self {
        match kind {
            record::EXIT => payload
                .first()
                .map_or(Self::Unknown(kind), |status| Self::Exit(*status)),
            record::TEST => Self::decode_test(payload).unwrap_or(Self::Unknown(kind)),
            record::DUMP => {
                let (name, bytes) = split_at_nul(payload);
                Self::Dump {
                    name: text(name),
                    bytes: bytes.to_vec(),
                }
            }
            record::COVERAGE => Self::Coverage(payload.to_vec()),
            record::BACKTRACE => {
                let (addresses, _) = payload.as_chunks::<8>();
                Self::Backtrace(addresses.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect())
            }
            other => Self::Unknown(other),
        }
    }

    fn decode_test(payload: &[u8]) -> Option<Self> {
        let (result, rest) = payload.split_first()?;
        let result = match *result {
            record::TEST_STARTED => TestResult::Started,
            record::TEST_PASSED => TestResult::Passed,
            record::TEST_FAILED => TestResult::Failed,
            _ => return None,
        };
        let (name, message) = split_at_nul(rest);
        Some(Self::Test {
            result,
            name: text(name),
            message: text(message),
        })
    }
}

fn split_at_nul(bytes: &[u8]) -> (&[u8], &[u8]) {
    let nul = bytes.iter().position(|byte| *byte == 0);
    nul.map_or((bytes, &[]), |at| (&bytes[..at], &bytes[at + 1..]))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Cuts a byte stream into records, however its pieces arrive.
#[derive(Debug, Default)]
pub struct RecordParser {
    pending: Vec<u8>,
    lost: bool,
}

impl RecordParser {
    /// Takes the next piece and hands every record that is complete to `sink`.
    ///
    /// A length beyond reason is reported once as [`Record::Unknown`]; from there on the stream is ignored.
    pub fn feed(&mut self, bytes: &[u8], sink: &mut dyn FnMut(Record)) {
        if self.lost {
            return;
        }
        self.pending.extend_from_slice(bytes);
        let mut done = 0;
        while let Some((head, rest)) = self.pending[done..].split_first_chunk::<5>() {
            let [kind, length @ ..] = *head;
            let length = u32::from_le_bytes(length) as usize;
            if length > MAX_RECORD {
                self.lost = true;
                sink(Record::Unknown(kind));
                break;
            }
            let Some(payload) = rest.get(..length) else { break };
            sink(Record::decode(kind, payload));
            done += head.len() + length;
        }
        self.pending.drain(..done);
    }
}

/// Passes a stream on from behind its mark.
#[derive(Debug, Default)]
pub struct MarkFilter {
    before: Vec<u8>,
    seen: bool,
}

impl MarkFilter {
    /// Takes the next piece and returns the part of it that lies behind the mark.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.seen {
            return bytes.to_vec();
        }
        let searched = self.before.len().saturating_sub(wire::MARK.len());
        self.before.extend_from_slice(bytes);
        let found = self.before[searched..]
            .windows(wire::MARK.len())
            .position(|window| window == wire::MARK);
        let Some(at) = found else { return Vec::new() };
        self.seen = true;
        let behind = self.before.split_off(searched + at + wire::MARK.len());
        self.before.truncate(searched + at);
        behind
    }

    /// Whether the mark has come.
    #[must_use]
    pub const fn seen(&self) -> bool {
        self.seen
    }

    /// What came before the mark, or everything if it never came.
    #[must_use]
    pub fn into_before(self) -> Vec<u8> {
        self.before
    }
}

/// Opens once, when a mark is seen, or breaks when the stream ends without one.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum GateState {
    #[default]
    Shut,
    Open,
    Broken,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, GateState> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets every present and future [`Gate::pass`] through.
    pub fn open(&self) {
        *self.state() = GateState::Open;
        self.0.1.notify_all();
    }

    /// Turns every [`Gate::pass`] away, unless the gate is open already.
    pub fn give_up(&self) {
        let mut state = self.state();
        if *state == GateState::Shut {
            *state = GateState::Broken;
        }
        self.0.1.notify_all();
    }

    /// Waits until the gate opens (true) or breaks (false).
    #[must_use]
    pub fn pass(&self) -> bool {
        let state = self.state();
        let state = self.0.1.wait_while(state, |state| *state == GateState::Shut);
        *state.unwrap_or_else(PoisonError::into_inner) == GateState::Open
    }
}

/// The last bytes of a stream.
#[derive(Debug, Default)]
pub struct Tail(Vec<u8>);

impl Tail {
    /// Appends, and forgets what is too old.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        if self.0.len() > 2 * TAIL_BYTES {
            self.0.drain(..self.0.len() - TAIL_BYTES);
        }
    }

    /// The last `count` lines.
    #[must_use]
    pub fn last_lines(&self, count: usize) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

/// Why [`copy_out`] came to its end.
#[derive(Debug)]
pub enum StreamEnd {
    /// The machine closed the stream.
    Closed(MarkFilter),
    /// The sink refused the bytes.
    SinkFailed(MarkFilter),
}

/// Carries one serial port of the machine to `sink` until it ends; opens `gate` at the mark.
pub fn copy_out(
    mut from: UnixStream,
    gate: &Gate,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> StreamEnd {
    let mut filter = MarkFilter::default();
    let mut buffer = vec![0; 64 * 1024];
    while let Some(count) = read_some(&mut from, &mut buffer) {
        let bytes = filter.feed(&buffer[..count]);
        if filter.seen() {
            gate.open();
        }
        if !bytes.is_empty() && sink(&bytes).is_err() {
            gate.give_up();
            return StreamEnd::SinkFailed(filter);
        }
    }
    gate.give_up();
    StreamEnd::Closed(filter)
}

/// Carries the records of the machine to `sink` until they end.
pub fn copy_records(mut from: UnixStream, sink: &mut dyn FnMut(Record)) {
    let mut parser = RecordParser::default();
    let mut buffer = vec![0; 64 * 1024];
    while let Some(count) = read_some(&mut from, &mut buffer) {
        parser.feed(&buffer[..count], sink);
    }
}

/// Why [`copy_in`] came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputEnd {
    /// The input ended and the machine has been told, or there is no machine any more.
    Ended,
    /// The reader asked to stop the machine, with an error of kind [`STOP_REQUEST`].
    StopRequest,
}

/// The error kind by which an input asks that the machine be stopped.
pub const STOP_REQUEST: io::ErrorKind = io::ErrorKind::ConnectionAborted;

/// Carries `input` to COM1, then says on COM2 how much it was.
///
/// A read error is the end of the input, as it is for any filter.
pub fn copy_in(input: &mut dyn Read, com1: (UnixStream, &Gate), com2: (UnixStream, &Gate)) -> InputEnd {
    let ((mut com1, com1_gate), (mut com2, com2_gate)) = (com1, com2);
    if !com1_gate.pass() {
        return InputEnd::Ended;
    }
    let mut sent: u64 = 0;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == STOP_REQUEST => return InputEnd::StopRequest,
            Err(_) => break,
        };
        if com1.write_all(&buffer[..count]).is_err() {
            return InputEnd::Ended;
        }
        sent += count as u64;
    }
    if com2_gate.pass() {
        // A machine that is gone needs no end of input.
        let _ = com2.write_all(format!("{} {sent}\n", wire::CONTROL_EOF).as_bytes());
    }
    InputEnd::Ended
}

/// Reads at least one byte; `None` at the end, which a reset connection is too.
fn read_some(from: &mut UnixStream, buffer: &mut [u8]) -> Option<usize> {
    loop {
        match from.read(buffer) {
            Ok(0) => return None,
            Ok(count) => return Some(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use linux_abi::wire;

    use super::{MarkFilter, Record, RecordParser, Tail, TestResult};

    fn records(pieces: &[&[u8]]) -> Vec<Record> {
        let mut found = Vec::new();
        let mut parser = RecordParser::default();
        for piece in pieces {
            parser.feed(piece, &mut |record| found.push(record));
        }
        found
    }

    #[test]
    fn records_survive_being_cut_anywhere() {
        let stream = b"\x02\x06\0\0\0\x02a::b\0\x02\x08\0\0\0\x02a::b\0no\x01\x01\0\0\0\x8b";
        let expected = records(&[stream]);
        assert_eq!(expected.len(), 3);
        for cut in 0..stream.len() {
            assert_eq!(records(&[&stream[..cut], &stream[cut..]]), expected);
        }
        assert_eq!(expected[2], Record::Exit(139));
        let failed = Record::Test {
            result: TestResult::Failed,
            name: "a::b".into(),
            message: "no".into(),
        };
        assert_eq!(expected[1], failed);
    }

    #[test]
    fn a_senseless_length_is_reported_once() {
        assert_eq!(
            records(&[b"\x09\xff\xff\xff\xff", b"\x01\x01\0\0\0\0"]),
            [Record::Unknown(9)]
        );
    }

    #[test]
    fn a_backtrace_is_whole_addresses() {
        let found = records(&[b"\x05\x0b\0\0\0\x01\0\0\0\0\0\0\x80abc"]);
        assert_eq!(found, [Record::Backtrace(vec![0x8000_0000_0000_0001])]);
    }

    #[test]
    fn the_mark_is_found_wherever_it_is_cut() {
        let stream = [b"BdsDxe: text\x02CLEAVE".as_slice(), &wire::MARK, b"hello"].concat();
        for cut in 0..stream.len() {
            let mut filter = MarkFilter::default();
            let mut behind = filter.feed(&stream[..cut]);
            behind.extend(filter.feed(&stream[cut..]));
            assert_eq!(behind, b"hello", "cut at {cut}");
            assert_eq!(filter.into_before(), b"BdsDxe: text\x02CLEAVE");
        }
    }

    #[test]
    fn a_stream_without_a_mark_is_set_aside() {
        let mut filter = MarkFilter::default();
        assert!(filter.feed(b"no mark here").is_empty());
        assert!(!filter.seen());
        assert_eq!(filter.into_before(), b"no mark here");
    }

    #[test]
    fn the_tail_is_whole_lines() {
        let mut tail = Tail::default();
        tail.push(b"one\ntwo\nthree\n");
        assert_eq!(tail.last_lines(2), "two\nthree");
        assert_eq!(tail.last_lines(9), "one\ntwo\nthree");
    }
}
