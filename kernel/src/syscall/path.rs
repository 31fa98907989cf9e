//! Names: opening, looking, and everything that a read-only root refuses.

use alloc::boxed::Box;

use linux_abi::{errno::Errno, raw::general as abi};

use super::{
    Call, Result,
    file::stat_bytes,
    unsupported,
    user::{UserAddr, UserSlice},
};
use crate::{
    task::process::{CurrentViewer, WorkingDirectory},
    vfs::{
        self,
        file::{self, Stat},
        tree::{Kind, LastLink, Place},
    },
};

/// "The working directory" in the place of a descriptor.
const AT_FDCWD: i32 = abi::AT_FDCWD;

/// A path of a call, and where it begins.
struct Name {
    start: Place,
    path: Box<[u8]>,
}

impl Name {
    /// The path in argument `index`, relative to the working directory.
    fn new(call: &Call<'_>, index: usize) -> core::result::Result<Self, Errno> {
        let path = UserAddr::new(call.raw(index))?.read_path()?;
        Ok(Self {
            start: call.process().working_directory().place,
            path,
        })
    }

    /// The path in argument `index`, relative to the directory in the argument before it.
    fn at(call: &Call<'_>, index: usize) -> core::result::Result<Self, Errno> {
        let path = UserAddr::new(call.raw(index))?.read_path()?;
        let start = match call.int(index - 1) {
            _ if path.starts_with(b"/") => Place::ROOT,
            AT_FDCWD => call.process().working_directory().place,
            // An empty path names the descriptor itself, directory or not; its users look at that first.
            _ if path.is_empty() => Place::ROOT,
            _ => call.file(index - 1)?.directory().ok_or(Errno::ENOTDIR)?,
        };
        Ok(Self { start, path })
    }

    fn walk(&self, last: LastLink) -> core::result::Result<Place, Errno> {
        vfs::root().walk(self.start, &self.path, last, &CurrentViewer)
    }

    fn open(&self, call: &Call<'_>, flags: u32) -> Result {
        if flags & abi::O_PATH != 0 {
            return unsupported!(Errno::EINVAL, "open with O_PATH");
        }
        if flags & abi::O_TMPFILE == abi::O_TMPFILE {
            return Err(Errno::EROFS);
        }
        let file = file::open(self.start, &self.path, flags, &CurrentViewer)?;
        call.install(file, flags)
    }
}

/// `open(path, flags, mode)`.
pub(super) fn open(call: &Call<'_>) -> Result {
    Name::new(call, 0)?.open(call, call.uint(1))
}

/// `openat(directory, path, flags, mode)`.
pub(super) fn openat(call: &Call<'_>) -> Result {
    Name::at(call, 1)?.open(call, call.uint(2))
}

/// `creat(path, mode)`.
pub(super) fn creat(call: &Call<'_>) -> Result {
    Name::new(call, 0)?.open(call, abi::O_CREAT | abi::O_WRONLY | abi::O_TRUNC)
}

fn write_stat(addr: u64, stat: &Stat) -> Result {
    UserAddr::new(addr)?.write(&stat_bytes(stat))?;
    Ok(0)
}

/// `stat(path, stat)`.
pub(super) fn stat(call: &Call<'_>) -> Result {
    let place = Name::new(call, 0)?.walk(LastLink::Follow)?;
    write_stat(call.raw(1), &file::stat(place))
}

/// `lstat(path, stat)`.
pub(super) fn lstat(call: &Call<'_>) -> Result {
    let place = Name::new(call, 0)?.walk(LastLink::Keep)?;
    write_stat(call.raw(1), &file::stat(place))
}

/// `newfstatat(directory, path, stat, flags)`.
pub(super) fn newfstatat(call: &Call<'_>) -> Result {
    let flags = call.uint(3);
    if flags & !(abi::AT_SYMLINK_NOFOLLOW | abi::AT_EMPTY_PATH | abi::AT_NO_AUTOMOUNT) != 0 {
        return Err(Errno::EINVAL);
    }
    let name = Name::at(call, 1)?;
    let stat = if name.path.is_empty() && flags & abi::AT_EMPTY_PATH != 0 {
        match call.int(0) {
            AT_FDCWD => file::stat(call.process().working_directory().place),
            _ => call.file(0)?.stat(),
        }
    } else {
        let last = if flags & abi::AT_SYMLINK_NOFOLLOW != 0 {
            LastLink::Keep
        } else {
            LastLink::Follow
        };
        file::stat(name.walk(last)?)
    };
    write_stat(call.raw(2), &stat)
}

fn read_link(name: &Name, buffer: u64, len: i32) -> Result {
    let len = u64::try_from(len)
        .ok()
        .filter(|&len| len > 0)
        .ok_or(Errno::EINVAL)?;
    let place = name.walk(LastLink::Keep)?;
    let target = vfs::root()
        .link_target(place, &CurrentViewer)?
        .ok_or(Errno::EINVAL)?;
    let buffer = UserSlice::new(buffer, len)?.first(target.len());
    buffer.write_at(0, &target[..buffer.len()])?;
    Ok(buffer.len() as u64)
}

/// `readlink(path, buffer, len)`.
pub(super) fn readlink(call: &Call<'_>) -> Result {
    read_link(&Name::new(call, 0)?, call.raw(1), call.int(2))
}

/// `readlinkat(directory, path, buffer, len)`.
pub(super) fn readlinkat(call: &Call<'_>) -> Result {
    read_link(&Name::at(call, 1)?, call.raw(2), call.int(3))
}

/// Checks rights as the superuser has them: everything but writing into the root and executing what nobody may.
fn check_access(name: &Name, mode: u32) -> Result {
    if mode & !(abi::R_OK | abi::W_OK | abi::X_OK) != 0 {
        return Err(Errno::EINVAL);
    }
    let place = name.walk(LastLink::Follow)?;
    let node = vfs::root().node(place.node);
    let is_directory = matches!(node.kind(), Kind::Directory(_));
    if mode & abi::X_OK != 0 && !is_directory && node.attributes().mode & 0o111 == 0 {
        return Err(Errno::EACCES);
    }
    if mode & abi::W_OK != 0 && matches!(node.kind(), Kind::Directory(_) | Kind::Regular(_)) {
        return Err(Errno::EROFS);
    }
    Ok(0)
}

/// `access(path, mode)`.
pub(super) fn access(call: &Call<'_>) -> Result {
    check_access(&Name::new(call, 0)?, call.uint(1))
}

/// `faccessat(directory, path, mode)`.
pub(super) fn faccessat(call: &Call<'_>) -> Result {
    check_access(&Name::at(call, 1)?, call.uint(2))
}

/// `faccessat2(directory, path, mode, flags)`.
pub(super) fn faccessat2(call: &Call<'_>) -> Result {
    if call.uint(3) & !(abi::AT_EACCESS | abi::AT_SYMLINK_NOFOLLOW | abi::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    if call.uint(3) & (abi::AT_SYMLINK_NOFOLLOW | abi::AT_EMPTY_PATH) != 0 {
        return unsupported!(Errno::EINVAL, "faccessat2 with flags {:#x}", call.uint(3));
    }
    check_access(&Name::at(call, 1)?, call.uint(2))
}

/// `getcwd(buffer, len)`: the length with its terminator.
pub(super) fn getcwd(call: &Call<'_>) -> Result {
    let path = call.process().working_directory().path;
    let bytes = [&path, &b"\0"[..]].concat();
    if (bytes.len() as u64) > call.raw(1) {
        return Err(Errno::ERANGE);
    }
    UserAddr::new(call.raw(0))?.write(&bytes)?;
    Ok(bytes.len() as u64)
}

/// `chdir(path)`.
pub(super) fn chdir(call: &Call<'_>) -> Result {
    let name = Name::new(call, 0)?;
    let place = name.walk(LastLink::Follow)?;
    enter(call, place)
}

/// `fchdir(fd)`.
pub(super) fn fchdir(call: &Call<'_>) -> Result {
    let place = call.file(0)?.directory().ok_or(Errno::ENOTDIR)?;
    enter(call, place)
}

fn enter(call: &Call<'_>, place: Place) -> Result {
    let tree = vfs::root();
    if !matches!(tree.node(place.node).kind(), Kind::Directory(_)) {
        return Err(Errno::ENOTDIR);
    }
    call.process().set_working_directory(WorkingDirectory {
        place,
        path: tree.path_of(place),
    });
    Ok(0)
}

/// Refuses to change what is there: `EROFS`, or what is wrong with the path itself.
fn refuse_change(name: &Name, last: LastLink) -> Result {
    name.walk(last)?;
    Err(Errno::EROFS)
}

/// Refuses to make something new: `EEXIST`, `EROFS`, or what is wrong with the path itself.
fn refuse_creation(name: &Name) -> Result {
    match name.walk(LastLink::Keep) {
        Ok(_) => Err(Errno::EEXIST),
        Err(Errno::ENOENT) if !name.path.is_empty() => {
            Err(file::creation_error(name.start, &name.path, &CurrentViewer))
        }
        Err(error) => Err(error),
    }
}

/// `unlink(path)`, `rmdir(path)`.
pub(super) fn remove(call: &Call<'_>) -> Result {
    refuse_change(&Name::new(call, 0)?, LastLink::Keep)
}

/// `unlinkat(directory, path, flags)`.
pub(super) fn unlinkat(call: &Call<'_>) -> Result {
    if call.uint(2) & !abi::AT_REMOVEDIR != 0 {
        return Err(Errno::EINVAL);
    }
    refuse_change(&Name::at(call, 1)?, LastLink::Keep)
}

/// `mkdir(path, mode)`, `mknod(path, mode, device)`.
pub(super) fn make(call: &Call<'_>) -> Result {
    refuse_creation(&Name::new(call, 0)?)
}

/// `mkdirat(directory, path, mode)`, `mknodat(directory, path, mode, device)`.
pub(super) fn make_at(call: &Call<'_>) -> Result {
    refuse_creation(&Name::at(call, 1)?)
}

/// `symlink(target, path)`, `link(old, path)`.
pub(super) fn link(call: &Call<'_>) -> Result {
    UserAddr::new(call.raw(0))?.read_path()?;
    refuse_creation(&Name::new(call, 1)?)
}

/// `rename(old, new)`.
pub(super) fn rename(call: &Call<'_>) -> Result {
    Name::new(call, 1)?;
    refuse_change(&Name::new(call, 0)?, LastLink::Keep)
}

/// `chmod(path, mode)`, `chown(path, owner, group)`, `truncate(path, len)`.
pub(super) fn change(call: &Call<'_>) -> Result {
    refuse_change(&Name::new(call, 0)?, LastLink::Follow)
}

/// `umask(mask)`.
pub(super) fn umask(call: &Call<'_>) -> Result {
    Ok(u64::from(call.process().set_umask(call.uint(0))))
}
