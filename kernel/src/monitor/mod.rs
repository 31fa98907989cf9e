//! The monitor: the console's commands, for whoever sits at the machine.
//!
//! ```text
//!   line (terminal: edited, with history; pipe: as it comes)
//!     -> words -> command table -> handler(&words) -> text on COM1, or one line that says what was expected
//! ```
//! | module | does |
//! |---|---|
//! | [`mod@line`] | reads a line |
//! | [`command`] | the table, and the reading of arguments |
//! | [`memory`] | commands that show memory |
//! | [`programs`] | commands about programs |
//! | [`dump`] | armoured dumps |
//!
//! What only shows changes nothing. Commands that take long print as they go.

#![forbid(unsafe_code)]

pub mod command;
pub mod dump;
pub mod line;
pub mod memory;
pub mod programs;

use core::fmt;

use self::line::{Input, LineReader};
use crate::{drivers::uart, vfs::tty::Stream};

/// What stands before each line on a terminal.
const PROMPT: &str = "cleave> ";

/// The terminal as a formatter's sink.
#[derive(Clone, Copy, Debug, Default)]
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        uart::com1_write(text.as_bytes());
        Ok(())
    }
}

/// Prints a line on the terminal.
macro_rules! say {
    ($($text:tt)*) => {{
        // The terminal never fails: it waits.
        let _ = core::fmt::Write::write_fmt(&mut $crate::monitor::Console, format_args!("{}\n", format_args!($($text)*)));
    }};
}
pub(crate) use say;

/// What comes after a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum After {
    /// The next one.
    GoOn,
    /// The end of the machine, with this status.
    PowerOff(u8),
}

/// Answers commands until the input ends or somebody switches the machine off; returns the status for the host.
pub fn run() -> u8 {
    if Stream::Stdin.is_terminal() {
        say!("\nType `help` for the commands, `poweroff` or ctrl-D to end.");
    }
    let mut reader = LineReader::new();
    let mut background = programs::Background::new();
    loop {
        background.report_ended();
        match reader.read(PROMPT) {
            Input::Line(line) => {
                if let After::PowerOff(status) = command::execute(&line, &mut background) {
                    return status;
                }
            }
            Input::End => return 0,
        }
    }
}
