//! The user's terminal while a machine owns it.
//!
//! Raw on the way in (the guest's tty echoes, edits and sees ctrl-C), unchanged on the way out. The setting is given
//! back by [`restore`], which is called on every way out of the process: return, panic, and the signals that `cli`
//! catches. Only SIGKILL leaves a raw terminal (`reset` helps).
//!
//! `ctrl-a x` ends the machine, `ctrl-a ctrl-a` sends one ctrl-a: as in QEMU itself.

use std::{
    io::{self, IsTerminal, Read},
    sync::{Mutex, PoisonError},
};

use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcsetattr};

use crate::{Error, Result, channels::STOP_REQUEST};

const ESCAPE: u8 = 0x01;

/// How the terminal was before [`Raw::enter`].
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Holds the terminal on stdin in raw mode; dropping it gives it back.
#[derive(Debug)]
#[must_use]
pub struct Raw(());

impl Raw {
    /// Makes the terminal on stdin raw; `None` when stdin is no terminal.
    ///
    /// # Errors
    /// [`Error::Io`] when the terminal refuses; it is unchanged then.
    pub fn enter() -> Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let refused = |error: rustix::io::Errno| Error::io("set up the terminal")(error.into());
        let before = tcgetattr(&stdin).map_err(refused)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Lines of the kernel log still begin at the left edge.
        raw.output_modes |= before.output_modes & (OutputModes::OPOST | OutputModes::ONLCR);
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        tcsetattr(&stdin, OptionalActions::Now, &raw).map_err(refused)?;
        Ok(Some(Self(())))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back its setting, if it was changed.
pub fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // There is nothing better to do with a terminal that is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

/// Reader of a raw terminal that understands the escape key.
#[derive(Debug)]
pub struct Keys<R> {
    inner: R,
    escaped: bool,
}

impl<R: Read> Keys<R> {
    /// Watches what is typed into `inner`.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            escaped: false,
        }
    }

    /// Removes escapes from `bytes`; `None`: the user wants the machine to stop.
    fn unescape(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut typed = Vec::with_capacity(bytes.len());
        for byte in bytes {
            match (std::mem::take(&mut self.escaped), *byte) {
                (false, ESCAPE) => self.escaped = true,
                (true, b'x' | b'X') => return None,
                (true, ESCAPE) | (false, _) => typed.push(*byte),
                // Not ours: the guest gets both.
                (true, _) => typed.extend([ESCAPE, *byte]),
            }
        }
        Some(typed)
    }
}

impl<R: Read> Read for Keys<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // An unescaped pair is one byte longer at most.
        let mut typed = vec![0; buffer.len().saturating_sub(1).max(1)];
        loop {
            let count = self.inner.read(&mut typed)?;
            let Some(bytes) = self.unescape(&typed[..count]) else {
                return Err(STOP_REQUEST.into());
            };
            if count == 0 || !bytes.is_empty() {
                buffer[..bytes.len()].copy_from_slice(&bytes);
                return Ok(bytes.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::Keys;
    use crate::channels::STOP_REQUEST;

    fn typed(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut found = Vec::new();
        Keys::new(bytes).read_to_end(&mut found).map(|_| found)
    }

    #[test]
    fn ctrl_a_x_asks_to_stop() {
        assert_eq!(typed(b"ab\x01x").map_err(|error| error.kind()), Err(STOP_REQUEST));
    }

    #[test]
    fn other_keys_pass() {
        assert_eq!(
            typed(b"a\x01\x01b\x01cx").ok().as_deref(),
            Some(b"a\x01b\x01cx".as_slice())
        );
    }
}
