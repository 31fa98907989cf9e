//! A machine run from beginning to end, with everything it said kept.

use std::{
    fmt,
    io::{self, Cursor, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    Result,
    channels::Record,
    image::Kernel,
    machine::{Finished, Machine, Streams},
    outcome::End,
    symbols::Symbols,
};

/// Lines of the log in a report.
const TAIL_LINES: usize = 40;

/// What a machine did.
#[derive(Debug)]
pub struct Captured {
    /// Its stdout.
    pub stdout: Vec<u8>,
    /// Its log and stderr.
    pub log: String,
    /// Its records, in order.
    pub records: Vec<Record>,
    /// How it ended.
    pub finished: Finished,
}

impl Captured {
    /// Runs `machine` with `input` on stdin until it ends or `limit` is over.
    ///
    /// # Errors
    /// When the machine cannot be started. A machine that ends badly is no error here: see [`Finished::end`].
    pub fn run(machine: &Machine, input: &[u8], limit: Duration) -> Result<Self> {
        let (stdout, log) = (Shared::default(), Shared::default());
        let records = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&records);
        let running = machine.start(Streams {
            input: Box::new(Cursor::new(input.to_vec())),
            output: Box::new(stdout.clone()),
            log: Box::new(log.clone()),
            records: Box::new(move |record| lock(&sink).push(record)),
        })?;
        let finished = running.wait(Some(limit))?;
        let records = std::mem::take(&mut *lock(&records));
        let log = String::from_utf8_lossy(&taken(&log)).into_owned();
        Ok(Self {
            stdout: taken(&stdout),
            log,
            records,
            finished,
        })
    }

    /// How it ended.
    #[must_use]
    pub const fn end(&self) -> End {
        self.finished.end
    }

    /// Its stdout as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Everything that helps to understand it: the end, backtraces, the output and the tail of the log.
    #[must_use]
    pub fn report<'a>(&'a self, kernel: &'a Kernel) -> impl fmt::Display + 'a {
        fmt::from_fn(move |f| {
            let records = self.records.iter();
            let backtraces = records.filter_map(|record| match record {
                Record::Backtrace(addresses) => Some(addresses.as_slice()),
                _ => None,
            });
            write!(f, "{}", explain(&self.finished, kernel, backtraces))?;
            let text = self.text();
            section(f, "the last lines of stdout", &last_lines(&text, TAIL_LINES))
        })
    }
}

/// Tells in words how a machine ended, with its backtraces and the tail of its log.
#[must_use]
pub fn explain<'a>(
    finished: &Finished,
    kernel: &Kernel,
    backtraces: impl IntoIterator<Item = &'a [u64]>,
) -> String {
    let backtraces: String = backtraces
        .into_iter()
        .map(|addresses| symbolised(kernel, addresses))
        .collect();
    fmt::from_fn(|f| {
        writeln!(f, "{}", finished.end)?;
        f.write_str(&backtraces)?;
        section(f, "QEMU says", &finished.qemu_messages)?;
        section(
            f,
            "before the kernel's first line came",
            finished.before_mark.as_deref().unwrap_or_default(),
        )?;
        section(f, "the last lines of the log", &finished.log_tail(TAIL_LINES))
    })
    .to_string()
}

/// The lines of one backtrace; bare addresses when the symbols cannot be read.
#[must_use]
pub fn symbolised(kernel: &Kernel, addresses: &[u64]) -> String {
    match Symbols::load(kernel.elf()) {
        Ok(symbols) => symbols.backtrace(addresses),
        Err(error) => format!("{error}\nbacktrace: {addresses:#018x?}\n"),
    }
}

/// Writes a titled block of quoted lines, or nothing if there is nothing to quote.
fn section(f: &mut fmt::Formatter<'_>, title: &str, body: &str) -> fmt::Result {
    if body.trim().is_empty() {
        return Ok(());
    }
    writeln!(f, "{title}:")?;
    let shown = |c: char| if c.is_control() && c != '\t' { '.' } else { c };
    body.lines()
        .try_for_each(|line| writeln!(f, "  | {}", line.chars().map(shown).collect::<String>()))
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// A sink whose bytes can be read afterwards.
#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn taken(shared: &Shared) -> Vec<u8> {
    std::mem::take(&mut *lock(&shared.0))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
