//! Files: a read-only tree, devices, `/proc`, and what a program holds open.
//!
//! ```text
//!   descriptor (small number)  --> File (position, flags) --> Object: bytes of the archive, directory, device,
//!   table of one process            shared by dup               terminal, pipe, text or words of /proc
//!                                                                    ^
//!   path --walk--> Place (node, process) ----------------open--------+
//! ```
//! | module | does |
//! |---|---|
//! | [`cpio`], [`initramfs`] | the archive, and its entries into the tree |
//! | [`tree`] | nodes and path walks |
//! | [`mod@file`] | open files and what can be done with them |
//! | [`fd`] | the table of descriptors |
//! | [`pipe`] | pipes |
//! | [`mounts`] | what is mounted where |
//! | [`dev`], [`tty`] | devices; the terminal's line discipline |
//! | [`knob`] | files that show and change how the kernel works, in `/sys`, `/proc/sys` and debugfs |
//! | [`node`] | the nodes of the memory, in `/sys` |
//! | [`proc`] | `/proc`: formats only, the data come from `mm::report` and the process table |
//!
//! The root cannot be written. Opening for writing gives `EROFS`, as on a Linux whose root is mounted read-only.

#![forbid(unsafe_code)]

pub mod cpio;
pub mod dev;
pub mod fd;
pub mod file;
pub mod initramfs;
pub mod knob;
pub mod mounts;
pub mod node;
pub mod pipe;
pub mod proc;
pub mod tree;
pub mod tty;

use spin::Once;

use self::{
    initramfs::Unpacked,
    tree::{AddError, Tree},
};

static ROOT: Once<Tree> = Once::new();

/// Returns the file tree: an empty one before [`mount_root`].
#[must_use]
pub fn root() -> &'static Tree {
    ROOT.call_once(Tree::new)
}

/// Builds the file tree from the archives of the initramfs, then puts `/dev`, `/proc` and `/sys` into it.
///
/// # Errors
/// The archive has something in the way of `/dev`, `/proc` or `/sys`. The tree then lacks those.
pub fn mount_root(archives: &'static [u8]) -> Result<Unpacked, AddError> {
    let mut tree = Tree::new();
    let unpacked = initramfs::unpack(&mut tree, archives);
    let mounted = dev::populate(&mut tree)
        .and_then(|()| proc::populate(&mut tree))
        .and_then(|()| knob::populate(&mut tree))
        .and_then(|()| mounts::populate(&mut tree))
        .and_then(|()| node::populate(&mut tree));
    ROOT.call_once(|| tree);
    mounted.map(|()| unpacked)
}
