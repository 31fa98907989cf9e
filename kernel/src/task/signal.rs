//! Signals of a process: what it asked for, what is blocked, what is pending.
//!
//! Dispositions, masks and the alternate stack are recorded exactly as a program sets them, and told back exactly.
//! Handlers are not called yet. So a signal that arrives either is ignored, because the program or its default says
//! so, or waits, because it is blocked, or ends the program, whatever handler it has; the log then says that a handler
//! was there. A signal whose default is to do nothing stays without effect if it has a handler, logged once: a shell
//! that wants to hear of its children can do without.
//!
//! A fault of the program itself is not sent through here: it always ends the program (`task::fault`).

use core::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

use linux_abi::{errno::Errno, raw::general as abi};

/// Signals are numbered from 1.
pub const NSIG: u32 = 64;

/// A signal's number: 1 to [`NSIG`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Signal(u8);

impl Signal {
    /// The interrupt key.
    pub const INT: Self = Self::of(abi::SIGINT);
    /// The quit key.
    pub const QUIT: Self = Self::of(abi::SIGQUIT);
    /// Illegal instruction.
    pub const ILL: Self = Self::of(abi::SIGILL);
    /// Breakpoint or trace.
    pub const TRAP: Self = Self::of(abi::SIGTRAP);
    /// Access to memory that is there but cannot be had.
    pub const BUS: Self = Self::of(abi::SIGBUS);
    /// Arithmetic.
    pub const FPE: Self = Self::of(abi::SIGFPE);
    /// Ended by force.
    pub const KILL: Self = Self::of(abi::SIGKILL);
    /// A write that nobody can ever read.
    pub const PIPE: Self = Self::of(abi::SIGPIPE);
    /// A child has ended.
    pub const CHLD: Self = Self::of(abi::SIGCHLD);
    /// Access to memory that is not there or not allowed.
    pub const SEGV: Self = Self::of(abi::SIGSEGV);

    #[expect(clippy::cast_possible_truncation, reason = "checked")]
    const fn of(number: u32) -> Self {
        assert!(number >= 1 && number <= NSIG);
        Self(number as u8)
    }

    /// Its name; real-time signals have none.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        const NAMES: [&str; 31] = [
            "SIGHUP",
            "SIGINT",
            "SIGQUIT",
            "SIGILL",
            "SIGTRAP",
            "SIGABRT",
            "SIGBUS",
            "SIGFPE",
            "SIGKILL",
            "SIGUSR1",
            "SIGSEGV",
            "SIGUSR2",
            "SIGPIPE",
            "SIGALRM",
            "SIGTERM",
            "SIGSTKFLT",
            "SIGCHLD",
            "SIGCONT",
            "SIGSTOP",
            "SIGTSTP",
            "SIGTTIN",
            "SIGTTOU",
            "SIGURG",
            "SIGXCPU",
            "SIGXFSZ",
            "SIGVTALRM",
            "SIGPROF",
            "SIGWINCH",
            "SIGIO",
            "SIGPWR",
            "SIGSYS",
        ];
        let index = self.index();
        if index < NAMES.len() {
            Some(NAMES[index])
        } else {
            None
        }
    }

    /// Returns the signal, or `None` if there is none of that number.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        u8::try_from(number)
            .ok()
            .filter(|&number| (1..=64).contains(&number))
            .map(Self)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    const fn is(self, number: u32) -> bool {
        self.0 as u32 == number
    }

    const fn index(self) -> usize {
        self.0 as usize - 1
    }

    /// Whether nobody may block, ignore or handle it.
    #[must_use]
    pub const fn is_final(self) -> bool {
        self.is(abi::SIGKILL) || self.is(abi::SIGSTOP)
    }

    /// Whether its default is to do nothing.
    const fn is_ignored_by_default(self) -> bool {
        self.is(abi::SIGCHLD) || self.is(abi::SIGURG) || self.is(abi::SIGWINCH) || self.is(abi::SIGCONT)
    }

    /// Whether its default is to stop the process. Linux discards these, all but `SIGSTOP`, in a process whose parent
    /// is in another session, as here. `SIGSTOP` ends the program instead: nobody could ever continue it.
    const fn stops_by_default(self) -> bool {
        self.is(abi::SIGSTOP) || self.is(abi::SIGTSTP) || self.is(abi::SIGTTIN) || self.is(abi::SIGTTOU)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "signal {}", self.0),
        }
    }
}

/// A set of signals: bit n for signal n + 1, as in the system calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SignalSet(u64);

impl SignalSet {
    /// Takes a set as a program gave it.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The set as a program sees it.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    const fn of(signal: Signal) -> Self {
        Self(1 << signal.index())
    }

    /// Whether `signal` is in it.
    #[must_use]
    pub const fn contains(self, signal: Signal) -> bool {
        self.0 & Self::of(signal).0 != 0
    }

    /// The set without those that nobody may block.
    const fn blockable(self) -> Self {
        Self(self.0 & !(1 << (abi::SIGKILL - 1) | 1 << (abi::SIGSTOP - 1)))
    }

    fn lowest(self) -> Option<Signal> {
        Signal::new(self.0.trailing_zeros() + 1)
    }
}

/// What a program wants done about a signal; the kernel's `struct sigaction`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Action {
    /// `SIG_DFL`, `SIG_IGN`, or the handler's address.
    pub handler: u64,
    /// `SA_` flags.
    pub flags: u64,
    /// Where a handler returns to.
    pub restorer: u64,
    /// Blocked while the handler runs.
    pub mask: SignalSet,
}

impl Action {
    /// `SIG_DFL`.
    const DEFAULT: u64 = 0;
    /// `SIG_IGN`.
    pub const IGNORE: u64 = 1;
}

/// The alternate stack, as `sigaltstack` takes and tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AltStack {
    /// Lowest address.
    pub start: u64,
    /// `SS_DISABLE` if there is none, and `SS_AUTODISARM`.
    pub flags: u32,
    /// Size in bytes.
    pub size: u64,
}

impl AltStack {
    const NONE: Self = Self {
        start: 0,
        flags: abi::SS_DISABLE,
        size: 0,
    };
}

/// How `rt_sigprocmask` changes the mask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MaskChange {
    /// Adds the set.
    Block,
    /// Takes the set away.
    Unblock,
    /// Replaces the mask.
    Set,
}

/// What is to happen about pending signals before the program runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// Nothing.
    Nothing,
    /// The program ends by this signal.
    End {
        /// Which.
        signal: Signal,
        /// The program has a handler for it, which is not called.
        had_handler: bool,
    },
}

/// Says once that such a handler is not called.
fn note_handler_not_called(signal: Signal) -> bool {
    static LOGGED: AtomicBool = AtomicBool::new(false);
    // Relaxed: it orders nothing.
    if !LOGGED.swap(true, Ordering::Relaxed) {
        crate::log::info!("signal: a handler of {signal} is not called: that is not supported yet");
    }
    true
}

/// Signals of one process (of its one thread).
#[derive(Clone, Debug)]
pub struct Signals {
    actions: [Action; NSIG as usize],
    mask: SignalSet,
    pending: SignalSet,
    alt_stack: AltStack,
}

impl Signals {
    /// All at their defaults, nothing blocked: a process at its start.
    #[must_use]
    pub fn new() -> Self {
        Self {
            actions: [Action::default(); NSIG as usize],
            mask: SignalSet::default(),
            pending: SignalSet::default(),
            alt_stack: AltStack::NONE,
        }
    }

    /// What a child begins with: the same, but nothing has arrived.
    #[must_use]
    pub fn of_child(&self) -> Self {
        Self {
            pending: SignalSet::default(),
            ..self.clone()
        }
    }

    /// What remains for another program: handlers are gone with the old one, and so is the alternate stack.
    pub fn exec(&mut self) {
        for action in &mut self.actions {
            let kept = if action.handler == Action::IGNORE {
                Action::IGNORE
            } else {
                Action::DEFAULT
            };
            *action = Action {
                handler: kept,
                ..Action::default()
            };
        }
        self.alt_stack = AltStack::NONE;
    }

    /// Whether children are to be forgotten as they end, without anybody waiting for them.
    #[must_use]
    pub fn forgets_children(&self) -> bool {
        let action = self.action(Signal::CHLD);
        action.handler == Action::IGNORE || action.flags & u64::from(abi::SA_NOCLDWAIT) != 0
    }

    /// Whether it has been killed: nothing can keep it from ending.
    #[must_use]
    pub fn is_killed(&self) -> bool {
        self.pending.contains(Signal::KILL)
    }

    /// What is to be done about `signal`.
    #[must_use]
    pub fn action(&self, signal: Signal) -> Action {
        self.actions[signal.index()]
    }

    /// Sets what is to be done about `signal`. If that is to ignore it, a pending one is forgotten.
    ///
    /// # Errors
    /// `EINVAL` for signals that nobody may handle. Nothing changed.
    pub fn set_action(&mut self, signal: Signal, action: Action) -> Result<(), Errno> {
        if signal.is_final() {
            return Err(Errno::EINVAL);
        }
        self.actions[signal.index()] = Action {
            mask: action.mask.blockable(),
            ..action
        };
        if self.ignores(signal) {
            self.pending.0 &= !SignalSet::of(signal).0;
        }
        Ok(())
    }

    /// What is blocked.
    #[must_use]
    pub fn mask(&self) -> SignalSet {
        self.mask
    }

    /// Changes what is blocked. `SIGKILL` and `SIGSTOP` never are.
    pub fn change_mask(&mut self, how: MaskChange, set: SignalSet) {
        let mask = match how {
            MaskChange::Block => self.mask.0 | set.0,
            MaskChange::Unblock => self.mask.0 & !set.0,
            MaskChange::Set => set.0,
        };
        self.mask = SignalSet(mask).blockable();
    }

    /// What has arrived and is blocked.
    #[must_use]
    pub fn pending(&self) -> SignalSet {
        SignalSet(self.pending.0 & self.mask.0)
    }

    /// The alternate stack.
    #[must_use]
    pub fn alt_stack(&self) -> AltStack {
        self.alt_stack
    }

    /// Sets the alternate stack.
    pub fn set_alt_stack(&mut self, stack: AltStack) {
        self.alt_stack = if stack.flags & abi::SS_DISABLE != 0 {
            AltStack::NONE
        } else {
            stack
        };
    }

    /// Takes note that `signal` was sent.
    pub fn raise(&mut self, signal: Signal) {
        if self.mask.contains(signal) || !self.ignores(signal) {
            self.pending.0 |= SignalSet::of(signal).0;
        }
    }

    fn ignores(&self, signal: Signal) -> bool {
        match self.action(signal).handler {
            Action::IGNORE => true,
            Action::DEFAULT => {
                signal.is_ignored_by_default() || signal.stops_by_default() && !signal.is_final()
            }
            _ => signal.is_ignored_by_default() && note_handler_not_called(signal),
        }
    }

    /// Whether something is pending that is not blocked: a sleep must end.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        self.pending.0 & !self.mask.0 != 0
    }

    /// Takes the next pending signal that is not blocked and says what is to happen.
    #[must_use]
    pub fn deliver(&mut self) -> Delivery {
        while let Some(signal) = SignalSet(self.pending.0 & !self.mask.0).lowest() {
            self.pending.0 &= !SignalSet::of(signal).0;
            if !self.ignores(signal) {
                return Delivery::End {
                    signal,
                    had_handler: self.action(signal).handler > Action::IGNORE,
                };
            }
        }
        Delivery::Nothing
    }
}

impl Default for Signals {
    fn default() -> Self {
        Self::new()
    }
}
