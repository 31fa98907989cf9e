//! `/proc`: what the kernel knows, in Linux's formats.
//!
//! Formats only. Every number is asked from the memory manager's report, the process table or the clock at the moment
//! of reading; a number that this kernel does not have is left out, never made up; a zero is a true one. So `meminfo`,
//! `vmstat` and `status` have fewer lines than Linux's, in the same order and with the same columns (decision 0013).
//!
//! | file | kind |
//! |---|---|
//! | `kpageflags`, `kpagecount`, `PID/pagemap` | [`words`]: one u64 per page |
//! | `meminfo`, `vmstat`, `buddyinfo`, `version` | [`system`]: text |
//! | `PID/maps`, `PID/cmdline`, `PID/comm` | [`process`]: text |
//! | `PID/smaps`, `PID/smaps_rollup` | [`smaps`]: text |
//! | `PID/status`, `PID/statm` | [`status`]: text |
//! | `PID/fail-nth`, `PID/clear_refs` | [`control`]: what can be written |
//! | `self`, `PID/exe` | links |
//!
//! `PID/task` holds one directory, of the process's one thread.

pub mod control;
pub mod process;
pub mod smaps;
pub mod status;
pub mod system;
mod vmstat;
pub mod words;

use alloc::{boxed::Box, collections::BTreeMap};

use linux_abi::{errno::Errno, raw::general as abi};

pub use self::{control::ControlFile, words::WordFile};
use super::{
    node::NodeFile,
    tree::{AddError, Attributes, Kind, Tree},
};
use crate::{heap, task::process::Pid};

/// A file of text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TextFile {
    /// Totals of memory.
    Meminfo,
    /// Counters of events.
    Vmstat,
    /// Free blocks by order.
    Buddyinfo,
    /// What kernel this is.
    Version,
    /// Types of file systems.
    Filesystems,
    /// What is mounted where.
    Mounts,
    /// Areas of a process.
    Maps,
    /// Areas of a process, and what they have in memory.
    Smaps,
    /// What a process has in memory.
    SmapsRollup,
    /// A process in a few lines.
    Status,
    /// Sizes of a process, in pages.
    Statm,
    /// Arguments of a process.
    Cmdline,
    /// Name of a process.
    Comm,
    /// Something about the nodes of the memory.
    Node(NodeFile),
}

impl TextFile {
    /// Makes the text as of now.
    ///
    /// # Errors
    /// `ESRCH`: the process is gone. `ENOMEM`.
    pub fn text(self, process: Option<Pid>) -> Result<Box<[u8]>, Errno> {
        self.make_room(process)?;
        let of_process =
            |make: fn(Pid) -> Result<Box<[u8]>, Errno>| process.ok_or(Errno::ESRCH).and_then(make);
        match self {
            Self::Meminfo => Ok(system::meminfo()),
            Self::Vmstat => Ok(system::vmstat()),
            Self::Buddyinfo => Ok(system::buddyinfo()),
            Self::Version => Ok(system::version()),
            Self::Filesystems => Ok(system::filesystems()),
            // The same for every process.
            Self::Mounts => Ok(system::mounts()),
            Self::Maps => of_process(process::maps),
            Self::Smaps => of_process(smaps::smaps),
            Self::SmapsRollup => of_process(smaps::rollup),
            Self::Status => of_process(status::status),
            Self::Statm => of_process(status::statm),
            Self::Cmdline => of_process(process::cmdline),
            Self::Comm => of_process(process::comm),
            Self::Node(file) => Ok(file.text()),
        }
    }
}

impl TextFile {
    /// Makes sure that the text can be put together without asking again.
    fn make_room(self, process: Option<Pid>) -> Result<(), Errno> {
        let bytes_per_area = match self {
            Self::Maps => 128,
            Self::Smaps => 1024,
            _ => return Ok(heap::reserve(MOST_TEXTS)?),
        };
        let space = process.and_then(|pid| process::find(pid).ok()?.space());
        let areas = space.map_or(0, |space| space.nr_areas());
        // A text that grows is moved to twice the room while the old one is still there. The room is given back at once:
        // it is for the text, and nobody waits before that is made.
        let room = heap::try_vec::<u8>(3 * bytes_per_area * mm::addr::to_usize(areas.into()) + MOST_TEXTS)?;
        drop(room);
        Ok(())
    }
}

/// Bytes that most texts stay below.
const MOST_TEXTS: usize = 16 << 10;

impl TextFile {
    /// The file as a node of the tree.
    #[must_use]
    pub const fn kind(self) -> Kind {
        text(self)
    }
}

/// What a computed file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Text.
    Text(TextFile),
    /// One word per page.
    Words(WordFile),
    /// What can be written.
    Control(ControlFile),
}

/// A computed file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProcFile(Content);

impl ProcFile {
    /// What it holds.
    #[must_use]
    pub const fn content(self) -> Content {
        self.0
    }
}

const fn text(file: TextFile) -> Kind {
    Kind::Proc(ProcFile(Content::Text(file)))
}

const fn words(file: WordFile) -> Kind {
    Kind::Proc(ProcFile(Content::Words(file)))
}

const fn control(file: ControlFile) -> Kind {
    Kind::Proc(ProcFile(Content::Control(file)))
}

/// Adds `/proc`.
///
/// # Errors
/// See [`Tree::add`].
pub fn populate(tree: &mut Tree) -> Result<(), AddError> {
    let directory = || Kind::Directory(BTreeMap::new());
    let directory_mode = Attributes::root(abi::S_IFDIR | 0o555);
    let proc_root = tree.add(b"proc", directory(), directory_mode)?;
    let process = tree.add(b"proc/PID", directory(), directory_mode)?;
    tree.add(b"proc/PID/task", directory(), directory_mode)?;
    let thread = tree.add(b"proc/PID/task/TID", directory(), directory_mode)?;
    let files = [
        ("proc/meminfo", text(TextFile::Meminfo), 0o444),
        ("proc/vmstat", text(TextFile::Vmstat), 0o444),
        ("proc/buddyinfo", text(TextFile::Buddyinfo), 0o444),
        ("proc/version", text(TextFile::Version), 0o444),
        ("proc/filesystems", text(TextFile::Filesystems), 0o444),
        ("proc/PID/mounts", text(TextFile::Mounts), 0o444),
        ("proc/kpageflags", words(WordFile::Kpageflags), 0o400),
        ("proc/kpagecount", words(WordFile::Kpagecount), 0o400),
        ("proc/PID/maps", text(TextFile::Maps), 0o444),
        ("proc/PID/smaps", text(TextFile::Smaps), 0o444),
        ("proc/PID/smaps_rollup", text(TextFile::SmapsRollup), 0o444),
        ("proc/PID/status", text(TextFile::Status), 0o444),
        ("proc/PID/statm", text(TextFile::Statm), 0o444),
        ("proc/PID/cmdline", text(TextFile::Cmdline), 0o444),
        ("proc/PID/comm", text(TextFile::Comm), 0o444),
        ("proc/PID/pagemap", words(WordFile::Pagemap), 0o400),
        ("proc/PID/clear_refs", control(ControlFile::ClearRefs), 0o200),
        ("proc/PID/fail-nth", control(ControlFile::FailNth), 0o644),
        ("proc/PID/task/TID/fail-nth", control(ControlFile::FailNth), 0o644),
    ];
    for (path, kind, mode) in files {
        tree.add(path.as_bytes(), kind, Attributes::root(abi::S_IFREG | mode))?;
    }
    tree.add(
        b"proc/self",
        Kind::ProcSelf,
        Attributes::root(abi::S_IFLNK | 0o777),
    )?;
    tree.add(
        b"proc/mounts",
        Kind::Symlink((*b"self/mounts").into()),
        Attributes::root(abi::S_IFLNK | 0o777),
    )?;
    tree.add(
        b"proc/PID/exe",
        Kind::ProcExe,
        Attributes::root(abi::S_IFLNK | 0o777),
    )?;
    tree.set_proc(proc_root, process, thread);
    Ok(())
}
