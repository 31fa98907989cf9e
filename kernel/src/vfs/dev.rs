//! `/dev`: the devices that are not backed by anything.

use alloc::collections::BTreeMap;

use linux_abi::raw::general as abi;

use super::tree::{AddError, Attributes, Kind, Tree};

/// A character device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// Takes everything, gives nothing.
    Null,
    /// Gives zeroes without end.
    Zero,
    /// Gives zeroes; is full when written.
    Full,
    /// Gives random bytes without end.
    Random,
    /// The terminal, whoever asks.
    Console,
    /// The terminal of a process that has one.
    Tty,
}

impl Device {
    const ALL: [(&'static str, Self, u32, (u32, u32)); 7] = [
        ("dev/null", Self::Null, 0o666, (1, 3)),
        ("dev/zero", Self::Zero, 0o666, (1, 5)),
        ("dev/full", Self::Full, 0o666, (1, 7)),
        ("dev/random", Self::Random, 0o666, (1, 8)),
        ("dev/urandom", Self::Random, 0o666, (1, 9)),
        ("dev/console", Self::Console, 0o600, (5, 1)),
        ("dev/tty", Self::Tty, 0o666, (5, 0)),
    ];
}

/// Adds the devices.
///
/// # Errors
/// See [`Tree::add`].
pub fn populate(tree: &mut Tree) -> Result<(), AddError> {
    tree.add(
        b"dev",
        Kind::Directory(BTreeMap::new()),
        Attributes::root(abi::S_IFDIR | 0o755),
    )?;
    for (path, device, mode, rdev) in Device::ALL {
        let attributes = Attributes {
            rdev,
            ..Attributes::root(abi::S_IFCHR | mode)
        };
        tree.add(path.as_bytes(), Kind::Device(device), attributes)?;
    }
    Ok(())
}
