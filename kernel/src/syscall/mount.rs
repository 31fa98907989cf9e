//! `mount` and `umount2`: everything is in its place since boot, and stays there.

use linux_abi::{errno::Errno, raw::general as abi};

use super::{Call, Result, unsupported, user::UserAddr};
use crate::{
    task::process::CurrentViewer,
    vfs::{
        self,
        mounts::{MOUNTS, TYPES},
        tree::{Kind, LastLink, Place},
    },
};

/// Flags that ask for something else than a new mount.
const CHANGES: u32 = abi::MS_REMOUNT
    | abi::MS_BIND
    | abi::MS_MOVE
    | abi::MS_SHARED
    | abi::MS_PRIVATE
    | abi::MS_SLAVE
    | abi::MS_UNBINDABLE;
/// What the upper half of the flags was before Linux 2.4.
const MAGIC: u32 = 0xc0ed_0000;
const MAGIC_MASK: u32 = 0xffff_0000;

/// The directory that argument `index` names.
fn target(call: &Call<'_>, index: usize) -> core::result::Result<Place, Errno> {
    let path = UserAddr::new(call.raw(index))?.read_path()?;
    let start = call.process().working_directory().place;
    vfs::root().walk(start, &path, LastLink::Follow, &CurrentViewer)
}

/// `mount(source, target, type, flags, options)`.
pub(super) fn mount(call: &Call<'_>) -> Result {
    let kind = match UserAddr::optional(call.raw(2))? {
        Some(addr) => Some(addr.read_path()?),
        None => None,
    };
    if let Some(source) = UserAddr::optional(call.raw(0))? {
        source.read_path()?;
    }
    if let Some(options) = UserAddr::optional(call.raw(4))? {
        options.read::<1>()?;
    }
    let place = target(call, 1)?;
    let mut flags = call.uint(3);
    if flags & MAGIC_MASK == MAGIC {
        flags &= !MAGIC_MASK;
    }
    if flags & CHANGES != 0 {
        return unsupported!(Errno::EPERM, "mount with flags {flags:#x}: mounts do not change");
    }
    let kind = kind.ok_or(Errno::EINVAL)?;
    if !TYPES.iter().any(|known| known.as_bytes() == &*kind) {
        return Err(Errno::ENODEV);
    }
    if !matches!(vfs::root().node(place.node).kind(), Kind::Directory(_)) {
        return Err(Errno::ENOTDIR);
    }
    let is_there = MOUNTS
        .iter()
        .any(|mount| mount.kind.as_bytes() == &*kind && mount.place() == Some(place.node));
    if is_there {
        return Err(Errno::EBUSY);
    }
    unsupported!(Errno::EPERM, "mount in another place than at boot")
}

/// `umount2(target, flags)`.
pub(super) fn umount2(call: &Call<'_>) -> Result {
    const KNOWN: u32 = abi::MNT_FORCE | abi::MNT_DETACH | abi::MNT_EXPIRE | abi::UMOUNT_NOFOLLOW;
    let flags = call.uint(1);
    let expires = flags & abi::MNT_EXPIRE != 0 && flags & (abi::MNT_FORCE | abi::MNT_DETACH) != 0;
    if flags & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    let place = target(call, 0)?;
    if expires || !MOUNTS.iter().any(|mount| mount.place() == Some(place.node)) {
        return Err(Errno::EINVAL);
    }
    // The kernel itself uses them.
    Err(Errno::EBUSY)
}
