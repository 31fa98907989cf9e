//! How a machine ended, and the exit status that follows.
//!
//! | what happened | QEMU's status | end | `cargo run` exits with |
//! |---|---|---|---|
//! | the guest said 0x10 and sent an EXIT record | 33 | [`End::Orderly`] | the record's status |
//! | the guest said 0x11 | 35 | [`End::Panicked`] | 101 |
//! | the guest said 0x12 | 37 | [`End::TestFailed`] | 125 |
//! | `--timeout` ran out | killed | [`End::TimedOut`] | 124 |
//! | whoever started it stopped it | killed | [`End::Stopped`] | 125 |
//! | nobody reads our standard output any more | killed | [`End::OutputClosed`] | 141 |
//! | a reset or power-off without a word: a triple fault, for one | 0 | [`End::Off`] | 125 |
//! | anything else, or 0x10 without a record | any | [`End::Unknown`] | 125 |
//!
//! The exit device carries seven bits only, which is why the status itself travels in a record.

use std::{fmt, process::ExitStatus};

use linux_abi::wire;

/// What a shell reports for a program that died of SIGPIPE.
const STATUS_BROKEN_PIPE: u8 = 141;

/// How a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// In order, with this status.
    Orderly(u8),
    /// The kernel panicked.
    Panicked,
    /// An in-kernel trial failed.
    TestFailed,
    /// It was cut off when its time was over.
    TimedOut,
    /// It was stopped from outside: by the user, a signal, or the harness.
    Stopped,
    /// It was stopped because its output had nowhere to go.
    OutputClosed,
    /// The machine reset or switched itself off without saying how it ended.
    Off,
    /// In no way that was agreed upon: QEMU's own status (if it was not killed by a signal).
    Unknown(Option<i32>),
}

/// Why the host cut a machine off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Its time was over.
    Timeout,
    /// Somebody wanted it to stop.
    Stop,
    /// Its output had nowhere to go.
    OutputClosed,
}

impl End {
    /// Reads the end off QEMU's exit status, the EXIT record if one came, and what the host itself did.
    #[must_use]
    pub fn new(qemu: ExitStatus, exit_record: Option<u8>, cut: Option<Cut>) -> Self {
        const ORDERLY: i32 = wire::qemu_status(wire::EXIT_ORDERLY);
        const PANIC: i32 = wire::qemu_status(wire::EXIT_PANIC);
        const TEST_FAILED: i32 = wire::qemu_status(wire::EXIT_TEST_FAILED);
        match (qemu.code(), exit_record, cut) {
            // A machine that ended by itself at the last moment has ended by itself.
            (Some(ORDERLY), Some(status), _) => Self::Orderly(status),
            (Some(PANIC), ..) => Self::Panicked,
            (Some(TEST_FAILED), ..) => Self::TestFailed,
            (_, _, Some(Cut::Timeout)) => Self::TimedOut,
            (_, _, Some(Cut::Stop)) => Self::Stopped,
            (_, _, Some(Cut::OutputClosed)) => Self::OutputClosed,
            (Some(0), ..) => Self::Off,
            (other, ..) => Self::Unknown(other),
        }
    }

    /// The exit status of `cargo run`.
    #[must_use]
    pub const fn status(self) -> u8 {
        match self {
            Self::Orderly(status) => status,
            Self::Panicked => wire::STATUS_PANIC,
            Self::TimedOut => wire::STATUS_TIMEOUT,
            Self::OutputClosed => STATUS_BROKEN_PIPE,
            Self::TestFailed | Self::Stopped | Self::Off | Self::Unknown(_) => wire::STATUS_UNKNOWN,
        }
    }

    /// Whether the end is one that only the log can explain.
    #[must_use]
    pub const fn needs_log(self) -> bool {
        matches!(self, Self::Off | Self::Unknown(_) | Self::TestFailed)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Orderly(status) => write!(f, "the machine ended in order with status {status}"),
            Self::Panicked => f.write_str("the kernel panicked"),
            Self::TestFailed => f.write_str("an in-kernel trial failed"),
            Self::TimedOut => f.write_str("the machine was cut off when its time was over"),
            Self::Stopped => f.write_str("the machine was stopped"),
            Self::OutputClosed => f.write_str("the machine was stopped: its output was closed"),
            Self::Off => f.write_str(
                "the machine reset or switched itself off without an exit record (a triple fault?)",
            ),
            Self::Unknown(Some(status)) => write!(f, "QEMU ended with status {status} and no exit record"),
            Self::Unknown(None) => f.write_str("QEMU was killed by a signal"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

    use super::{Cut, End};

    fn exited(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    #[test]
    fn the_record_carries_the_status() {
        assert_eq!(End::new(exited(33), Some(139), None), End::Orderly(139));
        assert_eq!(End::Orderly(139).status(), 139);
    }

    #[test]
    fn an_orderly_end_needs_its_record() {
        assert_eq!(End::new(exited(33), None, None), End::Unknown(Some(33)));
        assert_eq!(End::new(exited(33), None, None).status(), 125);
    }

    #[test]
    fn panic_timeout_and_reset_have_their_own_ends() {
        assert_eq!(End::new(exited(35), None, None).status(), 101);
        assert_eq!(
            End::new(ExitStatus::from_raw(9), None, Some(Cut::Timeout)).status(),
            124
        );
        assert_eq!(End::new(exited(0), None, None), End::Off);
        assert_eq!(End::new(exited(1), Some(0), None), End::Unknown(Some(1)));
    }

    #[test]
    fn a_machine_that_ends_while_it_is_cut_off_has_ended_by_itself() {
        assert_eq!(End::new(exited(33), Some(7), Some(Cut::Timeout)), End::Orderly(7));
    }
}
