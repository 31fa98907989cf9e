//! Unpacks the initramfs into the tree.
//!
//! Archives follow one another in one piece of memory; a later file replaces an earlier one of the same path. An entry
//! that cannot be taken costs one line in the log and nothing else. A damaged header ends the reading: what came before
//! it stays.

use alloc::collections::BTreeMap;

use linux_abi::raw::general as abi;

use super::{
    cpio::{Entry, Reader},
    tree::{AddError, Attributes, Kind, NodeId, Tree},
};
use crate::log;

/// How much was unpacked and how much refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Unpacked {
    /// Entries that are in the tree now.
    pub taken: usize,
    /// Entries that were refused; the log says why.
    pub refused: usize,
}

/// Adds every entry of `archives` to `tree`.
pub fn unpack(tree: &mut Tree, archives: &'static [u8]) -> Unpacked {
    let mut done = Unpacked::default();
    let mut links = HardLinks::new();
    for entry in Reader::new(archives) {
        match entry {
            Ok(entry) => match add(tree, &mut links, &entry) {
                Ok(()) => done.taken += 1,
                Err(error) => {
                    done.refused += 1;
                    log::error!("initramfs: `{}` refused: {error}", entry.name.escape_ascii());
                }
            },
            Err(error) => {
                done.refused += 1;
                log::error!("initramfs: reading stopped after {} entries: {error}", done.taken);
            }
        }
    }
    done
}

/// Files with several names, by archive, device and inode number.
type HardLinks = BTreeMap<(u32, (u32, u32, u32)), NodeId>;

fn add(tree: &mut Tree, links: &mut HardLinks, entry: &Entry<'static>) -> Result<(), AddError> {
    let attributes = Attributes {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        rdev: entry.rdev,
    };
    let kind = match entry.mode & abi::S_IFMT {
        abi::S_IFDIR => return add_directory(tree, entry.name, attributes),
        abi::S_IFREG => Kind::Regular(entry.data),
        abi::S_IFLNK => Kind::Symlink(entry.data.into()),
        _ => Kind::Strange,
    };
    let key = (entry.archive, entry.identity);
    let is_shared_file = entry.nlink > 1 && matches!(kind, Kind::Regular(_));
    if is_shared_file && let Some(&first) = links.get(&key) {
        tree.add_hard_link(entry.name, first)?;
        if !entry.data.is_empty() {
            tree.set_contents(first, entry.data);
        }
        return Ok(());
    }
    let id = tree.add(entry.name, kind, attributes)?;
    if is_shared_file {
        links.insert(key, id);
    }
    Ok(())
}

fn add_directory(tree: &mut Tree, name: &[u8], attributes: Attributes) -> Result<(), AddError> {
    match tree.add(name, Kind::Directory(BTreeMap::new()), attributes) {
        // `.` is in every archive made by find; the root is there already.
        Ok(_) | Err(AddError::Root) => Ok(()),
        Err(error) => Err(error),
    }
}
