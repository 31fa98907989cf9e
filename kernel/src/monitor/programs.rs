//! Commands about programs.

use alloc::{borrow::Cow, sync::Arc, vec::Vec};

use super::say;
use crate::{
    boot::args::args,
    drivers::uart,
    exec::ExecError,
    task::process::{self, Pid, Process},
    vfs::proc::TextFile,
};

/// Starts what `words` say; a name without `/` is looked for in `/bin`.
fn start(words: &[&str]) -> Result<Arc<Process>, ExecError> {
    let name = words.first().copied().unwrap_or_default();
    let path = if name.contains('/') {
        Cow::Borrowed(name)
    } else {
        alloc::format!("/bin/{name}").into()
    };
    let argv: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    let env: Vec<&[u8]> = args().env().collect();
    process::spawn(path.as_bytes(), &argv, &env)
}

fn could_not_start(words: &[&str], error: ExecError) {
    say!(
        "run: {}: {error}",
        words.first().copied().unwrap_or_default().escape_debug()
    );
}

/// Runs a program to its end.
pub fn run(words: &[&str]) {
    match start(words) {
        Ok(process) => report(&process),
        Err(error) => could_not_start(words, error),
    }
}

/// Waits for a program, and says how it ended unless all was well.
fn report(process: &Process) {
    let status = process.wait_in_foreground().status();
    if status != 0 {
        say!("{process:?} ended with status {status}");
    }
}

/// Programs that run while the monitor goes on.
#[derive(Debug, Default)]
pub struct Background(Vec<Arc<Process>>);

impl Background {
    /// None so far.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts one more.
    pub fn start(&mut self, words: &[&str]) {
        match start(words) {
            Ok(process) => {
                say!("{process:?} started");
                self.0.push(process);
            }
            Err(error) => could_not_start(words, error),
        }
    }

    /// Says which have ended, and forgets them.
    pub fn report_ended(&mut self) {
        self.0.retain(|process| {
            let ended = process.outcome().is_some();
            if ended {
                let status = process.wait().status();
                say!("{process:?} ended with status {status}");
            }
            !ended
        });
    }
}

/// `ps`.
pub fn list() {
    say!("{:>5} {:>5} {:>9} {:>9}  NAME", "PID", "PPID", "VSZ kB", "RSS kB");
    say!("{:>5} {:>5} {:>9} {:>9}  init (kernel)", Pid::INIT, 0, 0, 0);
    for process in process::all() {
        const PAGE_KB: u64 = mm::PAGE_BYTES / 1024;
        let (size, resident) = process.space().map_or((0, 0), |space| {
            (space.total_vm_pages() * PAGE_KB, space.rss_pages() * PAGE_KB)
        });
        let name = process.comm();
        let state = if process.outcome().is_some() {
            " (ended)"
        } else {
            ""
        };
        say!(
            "{:>5} {:>5} {size:>9} {resident:>9}  {}{state}",
            process.pid(),
            process.kin().parent(),
            name.escape_ascii()
        );
    }
}

/// `maps PID`, `smaps PID`.
pub fn show(pid: Pid, file: TextFile) {
    match file.text(Some(pid)) {
        Ok(text) => uart::com1_write(&text),
        // It ended after it was looked up.
        Err(error) => say!("process {pid}: {error}"),
    }
}
