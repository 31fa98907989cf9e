//! Runs in-kernel trials: many in one boot.
//!
//! The first trial that asks for its verdict starts the machine with the names of all that were selected; the others
//! wait for theirs. A trial that panics, hangs or resets is told from the records, and what stands behind it in the
//! batch runs in a new boot.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use boot::{
    capture,
    channels::Record,
    image::Kernel,
    machine::{Machine, Streams},
};
use tests::{
    ledger::{Ledger, Verdict},
    list::{Expected, Shape},
};

use crate::bench;

/// How long a machine may take until its first trial starts.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How long a trial may take.
const TRIAL_LIMIT: Duration = Duration::from_secs(60);
/// How long a machine may take to end when its last trial is over.
const END_LIMIT: Duration = Duration::from_secs(20);

/// Trials that share a boot.
#[derive(Debug)]
pub(crate) struct Batch {
    names: Vec<String>,
    expected: Expected,
    shape: Shape,
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct State {
    started: bool,
    verdicts: HashMap<String, Verdict>,
}

impl Batch {
    pub(crate) fn new(names: Vec<String>, expected: Expected, shape: Shape) -> Arc<Self> {
        Arc::new(Self {
            names,
            expected,
            shape,
            state: Mutex::default(),
            news: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The verdict on `name`; starts the batch if nobody did yet, and waits.
    pub(crate) fn verdict(self: &Arc<Self>, name: &str) -> Verdict {
        let mut state = self.state();
        if !state.started {
            state.started = true;
            let batch = Arc::clone(self);
            thread::spawn(move || batch.run());
        }
        loop {
            if let Some(verdict) = state.verdicts.remove(name) {
                return verdict;
            }
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn publish(&self, verdicts: impl IntoIterator<Item = (String, Verdict)>) {
        self.state().verdicts.extend(verdicts);
        self.news.notify_all();
    }

    /// Boots until every trial has its verdict. Each boot decides at least one, so this ends.
    fn run(&self) {
        let mut rest: VecDeque<String> = self.names.iter().cloned().collect();
        while !rest.is_empty() {
            match self.boot(&rest) {
                Ok(left) => rest = left,
                Err(message) => self.publish(rest.drain(..).map(|name| (name, Err(message.clone())))),
            }
        }
    }

    /// One boot. Returns the trials that need another.
    fn boot(&self, names: &VecDeque<String>) -> Result<VecDeque<String>, String> {
        let kernel = bench::kernel()?;
        let mut machine = bench::machine()?;
        machine.trials = names.iter().cloned().collect();
        machine.memory_mib = self.shape.memory_mib.unwrap_or(machine.memory_mib);
        machine.cpus = self.shape.cpus.unwrap_or(machine.cpus);
        let ledger = Ledger::new(names.iter().cloned(), self.expected);
        self.watch(kernel, &machine, ledger)
    }

    fn watch(
        &self,
        kernel: &Kernel,
        machine: &Machine,
        mut ledger: Ledger,
    ) -> Result<VecDeque<String>, String> {
        let (sender, records) = mpsc::channel();
        let running = machine.start(Streams {
            input: Box::new(std::io::empty()),
            output: Box::new(std::io::sink()),
            log: Box::new(std::io::sink()),
            // The receiver may have given up on a machine that hangs.
            records: Box::new(move |record| drop(sender.send(record))),
        });
        let running = running.map_err(|error| error.to_string())?;
        let mut backtraces = Vec::new();
        let mut limit = BOOT_LIMIT;
        let in_time = loop {
            match records.recv_timeout(limit) {
                Ok(Record::Test {
                    result,
                    name,
                    message,
                }) => {
                    self.publish(ledger.record(&name, result, &message));
                    limit = TRIAL_LIMIT;
                }
                Ok(Record::Backtrace(addresses)) => backtraces.push(addresses),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => break false,
                Err(RecvTimeoutError::Disconnected) => break true,
            }
        };
        if !in_time {
            running.stopper().stop();
        }
        let finished = running.wait(Some(END_LIMIT)).map_err(|error| error.to_string())?;
        let mut report = capture::explain(&finished, kernel, backtraces.iter().map(Vec::as_slice));
        if !in_time {
            report = format!("nothing happened for {} s, so {report}", limit.as_secs());
        }
        let (verdicts, rest) = ledger.close(finished.end, &report);
        self.publish(verdicts);
        Ok(rest)
    }
}
