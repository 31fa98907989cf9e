//! The kernel log: one line per event, on COM2.
//!
//! ```text
//! [    0.041223] warn: config: unknown word `foo`
//! ```
//! Seconds since start, the level unless it is `info`, the subsystem, the event. `loglevel=` chooses what is written.
//!
//! Lock: the line's transmit lock, for one whole line. Interrupt handlers never log.

use core::{
    fmt::{self, Write},
    sync::atomic::{AtomicU8, Ordering},
};

use crate::drivers::{clock, uart::LogLine};

/// How much a line matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Level {
    /// Something is lost or refused.
    Error,
    /// Something is unusual; the kernel does its job all the same.
    Warn,
    /// What a user may want to know.
    Info,
    /// What somebody who looks for a fault wants to know.
    Debug,
}

impl Level {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Error, "error"),
        (Self::Warn, "warn"),
        (Self::Info, "info"),
        (Self::Debug, "debug"),
    ];

    /// Returns the level called `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(level, _)| *level)
    }

    /// Returns the level's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// The least important level that is written.
static LIMIT: AtomicU8 = AtomicU8::new(Level::Info as u8);

/// Writes lines of `level` and what matters more from now on.
pub fn set_limit(level: Level) {
    // Relaxed: it orders nothing.
    LIMIT.store(level as u8, Ordering::Relaxed);
}

/// Writes one line. Called through [`error!`](crate::log::error), [`warn!`](crate::log::warn),
/// [`info!`](crate::log::info) and [`debug!`](crate::log::debug).
pub fn write_line(level: Level, text: fmt::Arguments<'_>) {
    // Relaxed: it orders nothing.
    if level as u8 > LIMIT.load(Ordering::Relaxed) {
        return;
    }
    let mut line = LogLine::lock();
    // The line never fails: it waits.
    let _ = format_line(&mut line, level, text);
}

/// Formats a line as the log does.
///
/// # Errors
/// The sink's.
pub fn format_line(sink: &mut dyn Write, level: Level, text: fmt::Arguments<'_>) -> fmt::Result {
    let micros = clock::now().0 / 1000;
    write!(sink, "[{:5}.{:06}] ", micros / 1_000_000, micros % 1_000_000)?;
    if level != Level::Info {
        write!(sink, "{}: ", level.name())?;
    }
    writeln!(sink, "{text}")
}

/// Logs that something is lost or refused.
#[doc(hidden)]
#[macro_export]
macro_rules! log_error {
    ($($arg:tt)*) => {
        $crate::log::write_line($crate::log::Level::Error, format_args!($($arg)*))
    };
}

/// Logs something unusual.
#[doc(hidden)]
#[macro_export]
macro_rules! log_warn {
    ($($arg:tt)*) => {
        $crate::log::write_line($crate::log::Level::Warn, format_args!($($arg)*))
    };
}

/// Logs what a user may want to know.
#[doc(hidden)]
#[macro_export]
macro_rules! log_info {
    ($($arg:tt)*) => {
        $crate::log::write_line($crate::log::Level::Info, format_args!($($arg)*))
    };
}

/// Logs what helps to find a fault.
#[doc(hidden)]
#[macro_export]
macro_rules! log_debug {
    ($($arg:tt)*) => {
        $crate::log::write_line($crate::log::Level::Debug, format_args!($($arg)*))
    };
}

pub use crate::{log_debug as debug, log_error as error, log_info as info, log_warn as warn};
