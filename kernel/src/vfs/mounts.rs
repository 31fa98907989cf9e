//! What is mounted where: decided at boot, and not changed afterwards.

use alloc::collections::BTreeMap;

use linux_abi::raw::general as abi;

use super::{
    root,
    tree::{AddError, Attributes, Kind, LastLink, Nobody, NodeId, Place, Tree},
};

/// A file system in its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Type of the file system.
    pub kind: &'static str,
    /// Where it is.
    pub path: &'static str,
    /// How it is mounted, as `/proc/mounts` tells it.
    pub options: &'static str,
}

const fn mount(kind: &'static str, path: &'static str, options: &'static str) -> Mount {
    Mount { kind, path, options }
}

/// All of them, the root first. Nothing can be made in a file system that is read-only, be it a `tmpfs`.
pub const MOUNTS: [Mount; 6] = [
    mount("rootfs", "/", "ro"),
    mount("proc", "/proc", "rw,relatime"),
    mount("sysfs", "/sys", "rw,relatime"),
    mount("debugfs", "/sys/kernel/debug", "rw,relatime"),
    mount("tmpfs", "/dev/shm", "ro,relatime"),
    mount("tmpfs", "/tmp", "ro,relatime"),
];

/// Types that can be asked for, in the order of Linux's `/proc/filesystems`; none of them needs a device.
pub const TYPES: [&str; 4] = ["sysfs", "tmpfs", "proc", "debugfs"];

impl Mount {
    /// The directory that it is mounted on.
    #[must_use]
    pub fn place(&self) -> Option<NodeId> {
        let place = root().walk(Place::ROOT, self.path.as_bytes(), LastLink::Follow, &Nobody);
        place.ok().map(|place| place.node)
    }
}

/// Adds the directories that nothing else makes.
///
/// # Errors
/// See [`Tree::add`].
pub fn populate(tree: &mut Tree) -> Result<(), AddError> {
    for path in ["dev/shm", "tmp"] {
        let attributes = Attributes::root(abi::S_IFDIR | abi::S_ISVTX | 0o777);
        tree.add(path.as_bytes(), Kind::Directory(BTreeMap::new()), attributes)?;
    }
    Ok(())
}
