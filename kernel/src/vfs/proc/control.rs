//! Files of one process that can be written: what they show and what they do.

use alloc::boxed::Box;

use linux_abi::errno::Errno;
use mm::ClearRefs;

use super::process::find;
use crate::{
    platform::mm,
    task::process::{Pid, Process},
};

/// A file of a process that does something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlFile {
    /// Which allocation of the process is to fail: see [`fail_nth`](crate::task::fail_nth).
    FailNth,
    /// Forgets which pages were used or written.
    ClearRefs,
}

impl ControlFile {
    /// What reading it finds.
    ///
    /// # Errors
    /// `ESRCH`: the process is gone. `EINVAL`: it is only written.
    pub fn show(self, process: Option<Pid>) -> Result<Box<[u8]>, Errno> {
        let process = process.ok_or(Errno::ESRCH).and_then(find)?;
        match self {
            Self::FailNth => Ok(alloc::format!("{}\n", process.fail_nth().left())
                .into_bytes()
                .into()),
            Self::ClearRefs => Err(Errno::EINVAL),
        }
    }

    /// Does what was written; returns how many bytes were used.
    ///
    /// # Errors
    /// `ESRCH`: the process is gone. `EINVAL`, `ERANGE`: it is no number, or too large a one. Nothing was changed.
    pub fn store(self, process: Option<Pid>, bytes: &[u8]) -> Result<usize, Errno> {
        let process = process.ok_or(Errno::ESRCH).and_then(find)?;
        match self {
            Self::FailNth => process.fail_nth().set(parse_uint(bytes)?),
            Self::ClearRefs => return clear_refs(&process, bytes),
        }
        Ok(bytes.len())
    }
}

/// Bytes of a command that Linux looks at, and says it has used.
const CLEAR_REFS_MAX: usize = 12;

/// All memory is anonymous: what Linux does for anonymous pages (2) is the same as for all (1), for those of files (3)
/// nothing.
fn clear_refs(process: &Process, bytes: &[u8]) -> Result<usize, Errno> {
    let seen = &bytes[..bytes.len().min(CLEAR_REFS_MAX)];
    let text = core::str::from_utf8(seen).map_err(|_| Errno::EINVAL)?;
    let what = match text.trim().parse() {
        Ok(1 | 2) => Some(ClearRefs::Referenced),
        Ok(3) => None,
        Ok(4) => Some(ClearRefs::SoftDirty),
        Ok(5) => Some(ClearRefs::PeakRss),
        Ok(0_u8..) | Err(_) => return Err(Errno::EINVAL),
    };
    if let (Some(what), Some(space)) = (what, process.space()) {
        mm().clear_refs(&space, what);
    }
    Ok(seen.len())
}

/// Bytes of a number that Linux looks at.
const NUMBER_MAX: usize = 34;

/// An `unsigned int` as Linux reads it from a file: decimal, `0x` hexadecimal, `0` octal; one newline may follow.
fn parse_uint(bytes: &[u8]) -> Result<u32, Errno> {
    let seen = &bytes[..bytes.len().min(NUMBER_MAX)];
    let seen = seen.split(|&byte| byte == 0).next().unwrap_or_default();
    let text = core::str::from_utf8(seen).map_err(|_| Errno::EINVAL)?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, radix) = match text.strip_prefix('0') {
        Some(rest) => match rest.strip_prefix(['x', 'X']) {
            Some(digits) => (digits, 16),
            None if rest.is_empty() => (text, 10),
            None => (rest, 8),
        },
        None => (text, 10),
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(Errno::EINVAL);
    }
    u32::from_str_radix(digits, radix).map_err(|_| Errno::ERANGE)
}
