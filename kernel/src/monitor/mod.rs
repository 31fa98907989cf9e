//! The console for whoever sits at the machine.

/// Answers commands until somebody switches the machine off; returns the status for the host.
pub fn run() -> u8 {
    0
}
