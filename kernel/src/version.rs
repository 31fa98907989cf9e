//! What this kernel says it is.
//!
//! Programs compare the release with what they need, so it names the Linux whose interface this is; Cleave's own
//! version stands behind it.

/// `uname -s`.
pub const SYSNAME: &str = "Linux";
/// `uname -r`.
pub const RELEASE: &str = concat!("6.1.0-cleave-", env!("CARGO_PKG_VERSION"));
/// `uname -v`.
pub const VERSION: &str = "#1 Cleave";
/// `uname -m`.
pub const MACHINE: &str = "x86_64";
/// `uname -n`.
pub const NODENAME: &str = "cleave";
