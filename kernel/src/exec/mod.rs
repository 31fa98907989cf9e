//! Starts programs: from a path to an address space that is ready to run.
//!
//! ```text
//!   0x0000_0000_0040_0000   ET_EXEC segments, where the file says
//!   0x0000_5555_5555_4000   static-PIE segments
//!   behind the last one     heap (brk)
//!   ...                     mmap, from the top down
//!   0x0000_7fff_ffff_f000   stack, from here down: strings, auxv, environment, arguments
//! ```
//! *Decode, then commit.* [`elf`] checks the whole header before any memory is taken; [`stack`] builds the initial stack
//! as bytes. [`load()`] then makes a new address space and fills it; if memory runs out, dropping the space gives all of
//! it back and the caller has lost nothing.
//!
//! Differences from Linux: no dynamic programs and no scripts (`ENOEXEC`, one log line says why); file pages are copied
//! into anonymous memory, there is no page cache; no address randomisation, so that runs can be compared.

pub mod elf;
mod load;
pub mod stack;

use core::fmt;

use linux_abi::errno::Errno;

pub use self::load::{Program, load, load_at, load_file};
use self::{elf::ElfError, stack::StackError};
use crate::heap::NoMemory;

/// Why a program cannot be started. Nothing is left of the attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExecError {
    /// The path leads nowhere, or not to a file that may be executed.
    Path(Errno),
    /// The file is no program for this kernel.
    Format(ElfError),
    /// Arguments and environment are too long.
    Stack(StackError),
    /// There is not enough memory.
    NoMemory,
}

impl ExecError {
    /// What `execve` returns for it.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::Path(errno) => errno,
            Self::Format(ElfError::TooLarge { .. } | ElfError::NoMemory)
            | Self::Stack(StackError::NoMemory)
            | Self::NoMemory => Errno::ENOMEM,
            Self::Format(_) => Errno::ENOEXEC,
            Self::Stack(StackError::TooLong { .. }) => Errno::E2BIG,
        }
    }
}

impl fmt::Display for ExecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(Errno::ENOENT) => {
                f.write_str("no such file in the root (--exec FILE puts one into /bin)")?
            }
            Self::Path(Errno::EACCES) => f.write_str("not an executable file")?,
            Self::Path(_) => f.write_str("the path cannot be followed")?,
            Self::Format(error) => error.fmt(f)?,
            Self::Stack(error) => error.fmt(f)?,
            Self::NoMemory => f.write_str("not enough memory")?,
        }
        write!(f, " ({})", self.errno())
    }
}

impl From<NoMemory> for ExecError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl From<ElfError> for ExecError {
    fn from(error: ElfError) -> Self {
        Self::Format(error)
    }
}

impl From<StackError> for ExecError {
    fn from(error: StackError) -> Self {
        Self::Stack(error)
    }
}
