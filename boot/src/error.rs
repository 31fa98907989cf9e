//! Why a machine could not be built or started. Each variant names what the user does next.

use std::{fmt, io, path::PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure on the host side. Nothing is left behind: no machine runs, the terminal is as it was.
#[derive(Debug)]
pub enum Error {
    /// A program from the distribution is missing: install the package.
    Missing {
        /// What was looked for.
        what: String,
        /// The package that holds it, as Debian and Ubuntu name it.
        package: &'static str,
    },
    /// An option or a file given by the user cannot be used: correct it.
    BadInput(String),
    /// Cargo failed; its own messages say why (they were shown, or are in `output`).
    Build {
        /// What was being built.
        what: String,
        /// Cargo's messages.
        output: String,
    },
    /// A step that touches the system failed.
    Io {
        /// The step, as in "cannot STEP".
        doing: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A tool gave an answer that this program does not understand.
    Unexpected(String),
}

impl Error {
    /// Makes the wrapper for `map_err` that says which step failed.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// Says that the user's file `path` could not be read.
    pub fn unreadable(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::BadInput(format!("cannot read {}: {source}", path.display()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { what, package } => write!(
                f,
                "{what} is not installed: it is in package `{package}` (Debian, Ubuntu: apt-get install {package}; \
                 or run scripts/run once, which installs what is missing)"
            ),
            Self::BadInput(message) | Self::Unexpected(message) => f.write_str(message),
            Self::Build { what, output } if output.is_empty() => write!(f, "could not build {what}"),
            Self::Build { what, output } => write!(f, "could not build {what}:\n{output}"),
            Self::Io { doing, source } => write!(f, "cannot {doing}: {source}"),
        }
    }
}

impl std::error::Error for Error {}
