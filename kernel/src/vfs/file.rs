//! Open files: what a descriptor stands for.
//!
//! A [`File`] is Linux's open file description: position and flags, shared by the descriptors that `dup` makes. Reads
//! fill a kernel buffer; copying to the program is the system call's business, so no lock here is ever held over a
//! user page fault.

use alloc::{boxed::Box, vec::Vec};

use linux_abi::{errno::Errno, raw::general as abi};
use mm::Nanos;
use spin::Mutex;

use super::{
    dev::Device,
    knob::Knob,
    pipe,
    proc::{self, Content, ControlFile, TextFile, WordFile},
    root,
    tree::{Kind, LastLink, NodeId, Place, Viewer},
    tty::{self, Stream, Wait},
};
use crate::{
    heap, random,
    task::{process::Pid, wait::WaitQueue},
};

/// What a file gives and takes.
#[derive(Debug)]
enum Object {
    Regular {
        node: NodeId,
        bytes: &'static [u8],
    },
    Directory(Place),
    Stream(Stream),
    PipeReader(pipe::Reader),
    PipeWriter(pipe::Writer),
    Device {
        node: NodeId,
        device: Device,
    },
    Text {
        place: Place,
        file: TextFile,
        text: Mutex<Option<Box<[u8]>>>,
    },
    Words {
        place: Place,
        file: WordFile,
    },
    Control {
        place: Place,
        file: ControlFile,
        text: Mutex<Option<Box<[u8]>>>,
    },
    Knob {
        node: NodeId,
        knob: Knob,
        text: Mutex<Option<Box<[u8]>>>,
    },
}

/// An open file.
#[derive(Debug)]
pub struct File {
    object: Object,
    /// `O_ACCMODE` part of the flags given to open.
    access: u32,
    /// `O_APPEND`, `O_NONBLOCK` and the like: what `fcntl` may change.
    status: Mutex<u32>,
    position: Mutex<u64>,
}

/// What `stat` tells.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stat {
    /// Inode number.
    pub ino: u64,
    /// File type and permissions.
    pub mode: u32,
    /// Number of names.
    pub nlink: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device that it stands for: major, minor.
    pub rdev: (u32, u32),
    /// Size in bytes.
    pub size: u64,
    /// Time of the last change, seconds since 1970.
    pub mtime: u64,
}

/// Where a seek counts from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whence {
    /// The beginning.
    Start,
    /// The current position.
    Current,
    /// The end.
    End,
}

/// What a poll found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Readiness {
    /// A read would not wait.
    pub read: bool,
    /// A write would not wait.
    pub write: bool,
    /// The other end, which wrote, is gone.
    pub hangup: bool,
    /// The other end, which read, is gone.
    pub error: bool,
}

impl Readiness {
    /// Nothing.
    pub const NONE: Self = Self {
        read: false,
        write: false,
        hangup: false,
        error: false,
    };
}

/// Where polls wait for any file to become ready.
static READINESS: WaitQueue = WaitQueue::new();

/// Wakes every poll: some file has become ready. To be called after the change.
pub fn tell_readiness_changed() {
    READINESS.wake_all();
}

/// Sleeps once, if `still` returns true, until some file has become ready, a signal arrives, or `deadline`.
///
/// # Context
/// May wait.
pub fn wait_for_readiness(deadline: Option<Nanos>, still: &mut dyn FnMut() -> bool) {
    READINESS.wait_while(deadline, still);
}

/// Flags that stay with the open file.
const STATUS_FLAGS: u32 = abi::O_APPEND | abi::O_NONBLOCK | abi::O_DIRECT | abi::O_NOATIME;
/// Flags that open understands; others it ignores, as Linux does.
const CREATING: u32 = abi::O_CREAT | abi::O_TRUNC;

/// Opens what `path` names, beginning at `start`.
///
/// # Errors
/// Linux's: those of the walk; `EROFS` for anything that would write into the root; `EISDIR`, `ENOTDIR`, `EEXIST`,
/// `ELOOP`, `ENXIO`, `ENOMEM`.
pub fn open(start: Place, path: &[u8], flags: u32, viewer: &dyn Viewer) -> Result<File, Errno> {
    heap::reserve(size_of::<File>())?;
    let last = if flags & abi::O_NOFOLLOW != 0 {
        LastLink::Keep
    } else {
        LastLink::Follow
    };
    let place = match root().walk(start, path, last, viewer) {
        Err(Errno::ENOENT) if flags & abi::O_CREAT != 0 => return Err(creation_error(start, path, viewer)),
        other => other?,
    };
    if flags & abi::O_CREAT != 0 && flags & abi::O_EXCL != 0 {
        return Err(Errno::EEXIST);
    }
    let writes = flags & abi::O_ACCMODE != abi::O_RDONLY || flags & CREATING != 0;
    let node = root().node(place.node);
    if flags & abi::O_DIRECTORY != 0 && !matches!(node.kind(), Kind::Directory(_)) {
        return Err(Errno::ENOTDIR);
    }
    let object = match node.kind() {
        Kind::Directory(_) if writes => return Err(Errno::EISDIR),
        Kind::Directory(_) => Object::Directory(place),
        Kind::Regular(_) if flags & (abi::O_ACCMODE | abi::O_TRUNC) != abi::O_RDONLY => {
            return Err(Errno::EROFS);
        }
        Kind::Regular(bytes) => Object::Regular {
            node: place.node,
            bytes,
        },
        Kind::Symlink(_) | Kind::ProcSelf | Kind::ProcExe => return Err(Errno::ELOOP),
        Kind::Strange => return Err(Errno::ENXIO),
        Kind::Device(Device::Console) => Object::Stream(Stream::Both),
        Kind::Device(Device::Tty) if Stream::Both.is_terminal() => Object::Stream(Stream::Both),
        Kind::Device(Device::Tty) => return Err(Errno::ENXIO),
        Kind::Device(device) => Object::Device {
            node: place.node,
            device: *device,
        },
        Kind::Proc(file) if flags & abi::O_ACCMODE != abi::O_RDONLY => {
            // Root passes permission checks; the file then has no write operation.
            open_proc(place, *file)?
        }
        Kind::Proc(file) => open_proc(place, *file)?,
        Kind::Knob(knob) => {
            knob.check_open(flags & abi::O_ACCMODE)?;
            Object::Knob {
                node: place.node,
                knob: *knob,
                text: Mutex::new(None),
            }
        }
    };
    Ok(File::new(object, flags))
}

fn open_proc(place: Place, file: proc::ProcFile) -> Result<Object, Errno> {
    Ok(match file.content() {
        Content::Text(file) => Object::Text {
            place,
            file,
            text: Mutex::new(None),
        },
        Content::Words(file) => Object::Words { place, file },
        Content::Control(file) => Object::Control {
            place,
            file,
            text: Mutex::new(None),
        },
    })
}

/// Why a file that is not there cannot be made: `EROFS`, unless the directory it would be in is missing too.
#[must_use]
pub fn creation_error(start: Place, path: &[u8], viewer: &dyn Viewer) -> Errno {
    let parent = match path.iter().rposition(|&byte| byte == b'/') {
        Some(0) => return Errno::EROFS,
        Some(slash) => &path[..slash],
        None => return Errno::EROFS,
    };
    match root().walk(start, parent, LastLink::Follow, viewer) {
        Ok(place) if matches!(root().node(place.node).kind(), Kind::Directory(_)) => Errno::EROFS,
        Ok(_) => Errno::ENOTDIR,
        Err(error) => error,
    }
}

/// What `stat` tells about a place.
#[must_use]
pub fn stat(place: Place) -> Stat {
    let node = root().node(place.node);
    let attributes = node.attributes();
    let size = match node.kind() {
        Kind::Regular(bytes) => bytes.len(),
        Kind::Symlink(target) => target.len(),
        _ => 0,
    };
    Stat {
        ino: place.node.ino() | place.process.map_or(0, |pid| u64::from(pid.number()) << 32),
        mode: attributes.mode,
        nlink: u64::from(node.nlink()),
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.rdev,
        size: size as u64,
        mtime: u64::from(attributes.mtime),
    }
}

/// One entry of a directory.
#[derive(Clone, Debug)]
pub struct DirectoryEntry {
    /// Inode number.
    pub ino: u64,
    /// File type, as the top four bits of its mode.
    pub kind: u8,
    /// The name.
    pub name: Box<[u8]>,
}

impl File {
    fn new(object: Object, flags: u32) -> Self {
        Self {
            object,
            access: flags & abi::O_ACCMODE,
            status: Mutex::new(flags & STATUS_FLAGS),
            position: Mutex::new(0),
        }
    }

    /// The three files that every program begins with.
    #[must_use]
    pub fn standard_streams() -> [Self; 3] {
        [
            (Stream::Stdin, abi::O_RDWR),
            (Stream::Stdout, abi::O_RDWR),
            (Stream::Stderr, abi::O_RDWR),
        ]
        .map(|(stream, terminal_access)| {
            let access = match stream {
                // The ends of a pipe go one way; a terminal goes both.
                _ if stream.is_terminal() => terminal_access,
                Stream::Stdin => abi::O_RDONLY,
                _ => abi::O_WRONLY,
            };
            Self::new(Object::Stream(stream), access)
        })
    }

    /// The two ends of a new pipe: the one to read from, the one to write to. `flags` are those that stay with a file.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn pipe(flags: u32) -> Result<(Self, Self), Errno> {
        let (reader, writer) = pipe::new()?;
        let others = flags & STATUS_FLAGS;
        Ok((
            Self::new(Object::PipeReader(reader), abi::O_RDONLY | others),
            Self::new(Object::PipeWriter(writer), abi::O_WRONLY | others),
        ))
    }

    /// The end of a pipe that it is, if one writes to it.
    #[must_use]
    pub fn pipe_writer(&self) -> Option<&pipe::Writer> {
        match &self.object {
            Object::PipeWriter(writer) => Some(writer),
            _ => None,
        }
    }

    /// The end of a pipe that it is, if one reads from it.
    #[must_use]
    pub fn pipe_reader(&self) -> Option<&pipe::Reader> {
        match &self.object {
            Object::PipeReader(reader) => Some(reader),
            _ => None,
        }
    }

    /// The flags, as `fcntl(F_GETFL)` tells them.
    #[must_use]
    pub fn flags(&self) -> u32 {
        self.access | *self.status.lock()
    }

    /// Changes the flags that may change.
    pub fn set_status_flags(&self, flags: u32) {
        *self.status.lock() = flags & STATUS_FLAGS;
    }

    /// The place of a directory, for walks that begin there.
    #[must_use]
    pub fn directory(&self) -> Option<Place> {
        match self.object {
            Object::Directory(place) => Some(place),
            _ => None,
        }
    }

    /// Whether a terminal is at the other end.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        matches!(self.object, Object::Stream(stream) if stream.is_terminal())
    }

    /// Whether it gives and takes a stream of bytes, without a position.
    fn is_stream(&self) -> bool {
        matches!(
            self.object,
            Object::Stream(_) | Object::PipeReader(_) | Object::PipeWriter(_)
        )
    }

    /// Checks that it is open for reading.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn check_readable(&self) -> Result<(), Errno> {
        if self.access == abi::O_WRONLY {
            Err(Errno::EBADF)
        } else {
            Ok(())
        }
    }

    /// Checks that it is open for writing.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn check_writable(&self) -> Result<(), Errno> {
        if self.access == abi::O_RDONLY {
            Err(Errno::EBADF)
        } else {
            Ok(())
        }
    }

    /// Checks a whole read before its first part is done.
    ///
    /// # Errors
    /// `EINVAL`: files of words are read in words.
    pub fn check_read(&self, offset: u64, len: usize) -> Result<(), Errno> {
        match &self.object {
            Object::Words { .. }
                if !offset.is_multiple_of(WordFile::WORD) || !(len as u64).is_multiple_of(WordFile::WORD) =>
            {
                Err(Errno::EINVAL)
            }
            _ => Ok(()),
        }
    }

    /// Where the next read or write happens.
    #[must_use]
    pub fn position(&self) -> u64 {
        *self.position.lock()
    }

    /// Moves the position on by what was read or written.
    pub fn advance(&self, by: usize) {
        if !self.is_stream() {
            *self.position.lock() += by as u64;
        }
    }

    /// Reads at `offset` (a stream ignores it). 0: the end.
    ///
    /// # Errors
    /// Linux's: `EISDIR`, `EAGAIN`, `EINTR`, `ESRCH`.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        match &self.object {
            Object::Regular { bytes, .. } => Ok(copy_from(bytes, offset, buffer)),
            Object::Directory(_) => Err(Errno::EISDIR),
            Object::Stream(_) => tty::read(buffer, self.wait()),
            Object::PipeReader(reader) => reader.read(buffer, self.wait()),
            // Cannot be open for reading.
            Object::PipeWriter(_) => Err(Errno::EBADF),
            Object::Device {
                device: Device::Null, ..
            } => Ok(0),
            Object::Device {
                device: Device::Random,
                ..
            } => {
                random::fill(buffer);
                Ok(buffer.len())
            }
            Object::Device { .. } => {
                buffer.fill(0);
                Ok(buffer.len())
            }
            Object::Words { place, file } => file.read(place.process, offset, buffer),
            Object::Text { place, file, text } => {
                read_text(text, offset, buffer, || file.text(place.process))
            }
            Object::Control { place, file, text } => {
                read_text(text, offset, buffer, || file.show(place.process))
            }
            Object::Knob { knob, text, .. } => read_text(text, offset, buffer, || knob.show()),
        }
    }

    /// Writes (only streams, pipes, devices, knobs and controls take any bytes). Returns how many.
    ///
    /// # Errors
    /// Linux's: `ENOSPC` of `/dev/full`, `EIO` of files in `/proc`; `EPIPE`, `EAGAIN`, `EINTR` of pipes; those of
    /// [`Knob::store`].
    pub fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        match &self.object {
            Object::Stream(stream) => tty::write(*stream, bytes),
            Object::PipeWriter(writer) => return writer.write(bytes, self.wait()),
            Object::Device {
                device: Device::Full, ..
            } => return Err(Errno::ENOSPC),
            Object::Device { .. } => {}
            Object::Knob { knob, .. } => return knob.store(bytes),
            Object::Control { place, file, .. } => return file.store(place.process, bytes),
            Object::Text { .. } | Object::Words { .. } => return Err(Errno::EIO),
            // None of them can be opened for writing.
            Object::Regular { .. } | Object::Directory(_) | Object::PipeReader(_) => {
                return Err(Errno::EBADF);
            }
        }
        Ok(bytes.len())
    }

    /// Writes no bytes, which most files do not even notice.
    ///
    /// # Errors
    /// `ENOSPC` of `/dev/full`; `EINVAL` of debugfs, where nothing is a command without meaning.
    pub fn write_nothing(&self) -> Result<usize, Errno> {
        match &self.object {
            Object::Knob {
                knob: knob @ Knob::SplitHugePages,
                ..
            } => knob.store(&[]),
            Object::Device {
                device: Device::Full, ..
            } => Err(Errno::ENOSPC),
            _ => Ok(0),
        }
    }

    fn wait(&self) -> Wait {
        if *self.status.lock() & abi::O_NONBLOCK != 0 {
            Wait::No
        } else {
            Wait::Yes
        }
    }

    /// What a poll finds.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        match &self.object {
            Object::PipeReader(reader) => reader.readiness(),
            Object::PipeWriter(writer) => writer.readiness(),
            Object::Stream(Stream::Stdin | Stream::Both) => Readiness {
                read: tty::has_input(),
                write: true,
                ..Readiness::NONE
            },
            // A pipe's writing end is never ready for reading; a terminal's is when there is input.
            Object::Stream(stream) => Readiness {
                read: stream.is_terminal() && tty::has_input(),
                write: true,
                ..Readiness::NONE
            },
            _ => Readiness {
                read: true,
                write: true,
                ..Readiness::NONE
            },
        }
    }

    /// Refuses where there is no position.
    ///
    /// # Errors
    /// `ESPIPE`.
    pub fn check_seekable(&self) -> Result<(), Errno> {
        if self.is_stream() {
            Err(Errno::ESPIPE)
        } else {
            Ok(())
        }
    }

    /// Moves the position, and returns it.
    ///
    /// # Errors
    /// `ESPIPE` of streams, `EINVAL` of a place before the beginning.
    pub fn seek(&self, offset: i64, whence: Whence) -> Result<u64, Errno> {
        self.check_seekable()?;
        let mut position = self.position.lock();
        let base = match (whence, &self.object) {
            (Whence::Start, _) => 0,
            (Whence::Current, _) => *position,
            (Whence::End, Object::Text { .. }) => return Err(Errno::EINVAL),
            (Whence::End, _) => self.stat().size,
        };
        *position = base
            .checked_add_signed(offset)
            .filter(|&to| i64::try_from(to).is_ok())
            .ok_or(Errno::EINVAL)?;
        Ok(*position)
    }

    /// What `fstat` tells.
    #[must_use]
    pub fn stat(&self) -> Stat {
        match &self.object {
            Object::Regular { node, .. } | Object::Device { node, .. } | Object::Knob { node, .. } => {
                stat(Place::of(*node))
            }
            Object::Directory(place)
            | Object::Text { place, .. }
            | Object::Words { place, .. }
            | Object::Control { place, .. } => stat(*place),
            Object::PipeReader(reader) => pipe_stat(reader.ino()),
            Object::PipeWriter(writer) => pipe_stat(writer.ino()),
            Object::Stream(stream) if stream.is_terminal() => Stat {
                ino: 1,
                mode: abi::S_IFCHR | 0o620,
                nlink: 1,
                rdev: (5, 1),
                ..Stat::default()
            },
            Object::Stream(stream) => pipe_stat(2 + *stream as u64),
        }
    }

    /// The file's bytes, if they lie in memory as they are.
    #[must_use]
    pub fn bytes(&self) -> Option<&'static [u8]> {
        match self.object {
            Object::Regular { bytes, .. } => Some(bytes),
            _ => None,
        }
    }

    /// The entries of a directory from its position on. The caller moves the position by as many as it used.
    ///
    /// # Errors
    /// `ENOTDIR`, `ENOMEM`.
    pub fn entries(&self) -> Result<Vec<DirectoryEntry>, Errno> {
        let Object::Directory(place) = self.object else {
            return Err(Errno::ENOTDIR);
        };
        let from = usize::try_from(self.position()).unwrap_or(usize::MAX);
        let mut all = list(place)?;
        all.drain(..from.min(all.len()));
        Ok(all)
    }
}

fn pipe_stat(ino: u64) -> Stat {
    Stat {
        ino,
        mode: abi::S_IFIFO | 0o600,
        nlink: 1,
        ..Stat::default()
    }
}

fn list(place: Place) -> Result<Vec<DirectoryEntry>, Errno> {
    let tree = root();
    let in_tree = match tree.node(place.node).kind() {
        Kind::Directory(entries) => entries.len(),
        _ => 0,
    };
    let processes = if tree.is_proc_root(place.node) {
        crate::task::process::nr()
    } else {
        0
    };
    // `.`, `..`, and the one thread of a process.
    let most = in_tree + processes + 3;
    heap::reserve(most * NAME_ESTIMATE)?;
    let entry = |name: &[u8], at: Place| {
        let stat = stat(at);
        DirectoryEntry {
            ino: stat.ino,
            kind: kind_byte(stat.mode),
            name: name.into(),
        }
    };
    let mut all = heap::try_vec(most)?;
    all.extend([entry(b".", place), entry(b"..", tree.parent(place))]);
    if let Kind::Directory(entries) = tree.node(place.node).kind() {
        all.extend(entries.iter().map(|(name, &node)| {
            entry(
                name,
                Place {
                    node,
                    process: place.process,
                },
            )
        }));
    }
    if let (Some(node), Some(pid)) = (tree.thread_in(place), place.process) {
        let at = Place {
            node,
            process: Some(pid),
        };
        all.push(entry(alloc::format!("{pid}").as_bytes(), at));
    }
    if let Some(node) = tree.proc_process()
        && tree.is_proc_root(place.node)
    {
        crate::task::process::for_each(&mut |process| {
            let pid: Pid = process.pid();
            all.push(entry(
                alloc::format!("{pid}").as_bytes(),
                Place {
                    node,
                    process: Some(pid),
                },
            ));
        });
    }
    Ok(all)
}

/// Bytes that a name in a directory takes, as a rule.
const NAME_ESTIMATE: usize = 64;

fn kind_byte(mode: u32) -> u8 {
    u8::try_from((mode & abi::S_IFMT) >> 12).unwrap_or(0)
}

/// Text is made when it is read from the beginning, and stays the same until the end.
fn read_text(
    text: &Mutex<Option<Box<[u8]>>>,
    offset: u64,
    buffer: &mut [u8],
    make: impl FnOnce() -> Result<Box<[u8]>, Errno>,
) -> Result<usize, Errno> {
    let kept = if offset == 0 { None } else { text.lock().take() };
    let bytes = match kept {
        Some(bytes) => bytes,
        None => make()?,
    };
    let count = copy_from(&bytes, offset, buffer);
    *text.lock() = Some(bytes);
    Ok(count)
}

fn copy_from(bytes: &[u8], offset: u64, buffer: &mut [u8]) -> usize {
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| bytes.get(offset..))
        .unwrap_or(&[]);
    let count = rest.len().min(buffer.len());
    buffer[..count].copy_from_slice(&rest[..count]);
    count
}
