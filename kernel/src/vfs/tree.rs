//! The file tree: nodes in one table, built at boot, never changed afterwards.
//!
//! ```text
//!   nodes: [0 "/" dir] [1 bin dir] [2 bin/echo file] [3 proc dir] ...
//!             |  entries: name -> number
//!             +-- parent: number
//! ```
//! Because it never changes, walking it takes no lock and a [`NodeId`] stays good for ever. What does change, the
//! processes under `/proc`, is no node: `/proc/PID` is one directory of the table together with the process's number,
//! a [`Place`].

use alloc::{boxed::Box, collections::BTreeMap, vec::Vec};
use core::fmt;

use linux_abi::{errno::Errno, raw::general as abi};

use super::{dev::Device, knob::Knob, proc::ProcFile};
use crate::task::process::Pid;

/// Longest name of one path component.
const NAME_MAX: usize = 255;
/// Most symbolic links followed in one walk.
const LINKS_MAX: u32 = 40;

/// The number of a node in the tree. Having one tells you that the node exists.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NodeId(u32);

impl NodeId {
    /// The root directory.
    pub const ROOT: Self = Self(0);

    const fn index(self) -> usize {
        self.0 as usize
    }

    /// The inode number that programs see: never 0, which in a directory means "no entry".
    #[must_use]
    pub const fn ino(self) -> u64 {
        self.0 as u64 + 1
    }
}

/// What a node is.
#[derive(Debug)]
pub enum Kind {
    /// Names and their nodes.
    Directory(BTreeMap<Box<[u8]>, NodeId>),
    /// A file whose bytes lie in the archive.
    Regular(&'static [u8]),
    /// A path to go on with.
    Symlink(Box<[u8]>),
    /// A device this kernel has.
    Device(Device),
    /// A device, socket or pipe of the archive that this kernel does not have.
    Strange,
    /// A file that the kernel computes.
    Proc(ProcFile),
    /// A file that shows or changes how the kernel works.
    Knob(Knob),
    /// `/proc/self`: a link to the directory of whoever looks.
    ProcSelf,
    /// `/proc/PID/exe`: a link to the program that the process runs.
    ProcExe,
}

/// Owner, rights and time of a node.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// File type and permissions, as in `stat`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change, seconds since 1970.
    pub mtime: u32,
    /// Device that a device file stands for: major, minor.
    pub rdev: (u32, u32),
}

impl Attributes {
    /// Root's, changed never.
    #[must_use]
    pub const fn root(mode: u32) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            mtime: 0,
            rdev: (0, 0),
        }
    }
}

/// One file, directory or link.
#[derive(Debug)]
pub struct Node {
    kind: Kind,
    attributes: Attributes,
    parent: NodeId,
    nlink: u32,
}

impl Node {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Owner, rights and time.
    #[must_use]
    pub fn attributes(&self) -> Attributes {
        self.attributes
    }

    /// Number of names.
    #[must_use]
    pub fn nlink(&self) -> u32 {
        self.nlink
    }
}

/// A node, and for what is below `/proc/PID` the process it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The node.
    pub node: NodeId,
    /// The process, below `/proc/PID`.
    pub process: Option<Pid>,
}

impl Place {
    /// The root directory.
    pub const ROOT: Self = Self::of(NodeId::ROOT);

    /// A place that belongs to no process.
    #[must_use]
    pub const fn of(node: NodeId) -> Self {
        Self { node, process: None }
    }
}

/// What to do with a symbolic link at the end of a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LastLink {
    /// Go where it points.
    Follow,
    /// Take the link itself.
    Keep,
}

/// Who walks: `/proc` looks different to each process.
pub trait Viewer {
    /// The process that looks, for `/proc/self`.
    fn pid(&self) -> Option<Pid>;
    /// Whether a process of that number exists.
    fn exists(&self, pid: Pid) -> bool;
    /// The path of the program that `pid` runs, for `/proc/PID/exe`.
    fn exe(&self, pid: Pid) -> Option<Box<[u8]>>;
}

/// Why an entry cannot be added to the tree. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddError {
    /// The path has `..` in it.
    OutsideRoot,
    /// A component on the way is not a directory.
    NotDirectory,
    /// A component is longer than 255 bytes.
    NameTooLong,
    /// A directory stands where something else is to go, or the other way round.
    KindChanges,
    /// The path names the root itself.
    Root,
    /// Too many symbolic links on the way.
    Loop,
}

impl fmt::Display for AddError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutsideRoot => "its path has `..` in it and might leave the root",
            Self::NotDirectory => "its path goes through something that is not a directory",
            Self::NameTooLong => "its path has a component longer than 255 bytes",
            Self::KindChanges => "it would replace a directory by something else, or the other way round",
            Self::Root => "it would replace the root directory",
            Self::Loop => "its path follows too many symbolic links",
        })
    }
}

/// All nodes.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    /// `/proc`, once it is there.
    proc_root: Option<NodeId>,
    /// What `/proc/PID` shows, once it is there; no name leads to it.
    proc_process: Option<NodeId>,
    /// What `/proc/PID/task/TID` shows, once it is there; no name leads to it.
    proc_thread: Option<NodeId>,
}

impl Tree {
    /// Makes a tree of one empty directory.
    #[must_use]
    pub fn new() -> Self {
        let root = Node {
            kind: Kind::Directory(BTreeMap::new()),
            attributes: Attributes::root(abi::S_IFDIR | 0o755),
            parent: NodeId::ROOT,
            nlink: 2,
        };
        Self {
            nodes: alloc::vec![root],
            proc_root: None,
            proc_process: None,
            proc_thread: None,
        }
    }

    /// Returns a node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// Number of nodes.
    #[must_use]
    pub fn nr_nodes(&self) -> usize {
        self.nodes.len()
    }

    fn push(&mut self, kind: Kind, attributes: Attributes, parent: NodeId) -> NodeId {
        let id = NodeId(
            u32::try_from(self.nodes.len()).expect("invariant: an archive has fewer entries than bytes"),
        );
        let nlink = if matches!(kind, Kind::Directory(_)) { 2 } else { 1 };
        self.nodes.push(Node {
            kind,
            attributes,
            parent,
            nlink,
        });
        id
    }

    fn entries_mut(&mut self, id: NodeId) -> Option<&mut BTreeMap<Box<[u8]>, NodeId>> {
        match &mut self.nodes[id.index()].kind {
            Kind::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    fn link(&mut self, parent: NodeId, name: &[u8], child: NodeId) {
        if let Some(entries) = self.entries_mut(parent) {
            entries.insert(name.into(), child);
        }
        if matches!(self.node(child).kind, Kind::Directory(_)) {
            self.nodes[parent.index()].nlink += 1;
        }
    }

    /// Adds a node at `path`, taken from the root whether it begins with `/` or not. Missing directories on the way
    /// are made. A directory that is there keeps its entries and takes the new attributes; a file that is there is
    /// replaced.
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn add(&mut self, path: &[u8], kind: Kind, attributes: Attributes) -> Result<NodeId, AddError> {
        let (parent, name) = self.make_parent(path)?;
        let wants_directory = matches!(kind, Kind::Directory(_));
        let old = self.child(parent, name);
        match old {
            Some(old) if wants_directory != matches!(self.node(old).kind, Kind::Directory(_)) => {
                Err(AddError::KindChanges)
            }
            Some(old) if wants_directory => {
                self.nodes[old.index()].attributes = attributes;
                Ok(old)
            }
            _ => {
                let id = self.push(kind, attributes, parent);
                self.link(parent, name, id);
                Ok(id)
            }
        }
    }

    /// Adds one more name for a file.
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn add_hard_link(&mut self, path: &[u8], target: NodeId) -> Result<(), AddError> {
        let (parent, name) = self.make_parent(path)?;
        if let Some(old) = self.child(parent, name)
            && matches!(self.node(old).kind, Kind::Directory(_))
        {
            return Err(AddError::KindChanges);
        }
        self.link(parent, name, target);
        self.nodes[target.index()].nlink += 1;
        Ok(())
    }

    /// Gives a regular file its bytes: of hard links in an archive only the last carries them.
    pub fn set_contents(&mut self, file: NodeId, bytes: &'static [u8]) {
        if let Kind::Regular(contents) = &mut self.nodes[file.index()].kind {
            *contents = bytes;
        }
    }

    /// Takes `/proc`, the directory that is to be each `/proc/PID`, and the one that is to be each `/proc/PID/task/TID`;
    /// the latter two lose their names.
    pub fn set_proc(&mut self, proc_root: NodeId, process: NodeId, thread: NodeId) {
        for hidden in [process, thread] {
            let parent = self.node(hidden).parent;
            if let Some(entries) = self.entries_mut(parent) {
                entries.retain(|_, child| *child != hidden);
            }
            self.nodes[parent.index()].nlink -= 1;
        }
        self.nodes[process.index()].parent = proc_root;
        self.proc_root = Some(proc_root);
        self.proc_process = Some(process);
        self.proc_thread = Some(thread);
    }

    /// Splits `path` into the directory it is in, made if need be, and its last component.
    fn make_parent<'p>(&mut self, path: &'p [u8]) -> Result<(NodeId, &'p [u8]), AddError> {
        let mut components = components(path).peekable();
        let mut directory = NodeId::ROOT;
        while let Some(name) = components.next() {
            match name {
                b".." => return Err(AddError::OutsideRoot),
                _ if name.len() > NAME_MAX => return Err(AddError::NameTooLong),
                _ if components.peek().is_none() => return Ok((directory, name)),
                _ => directory = self.make_directory(directory, name)?,
            }
        }
        Err(AddError::Root)
    }

    fn make_directory(&mut self, parent: NodeId, name: &[u8]) -> Result<NodeId, AddError> {
        if self.child(parent, name).is_some() {
            // A link on the way may lead to a directory elsewhere in the tree; it cannot lead out of it.
            let place = self
                .walk(Place::of(parent), name, LastLink::Follow, &Nobody)
                .map_err(|error| match error {
                    Errno::ELOOP => AddError::Loop,
                    _ => AddError::NotDirectory,
                })?;
            return match self.node(place.node).kind {
                Kind::Directory(_) => Ok(place.node),
                _ => Err(AddError::NotDirectory),
            };
        }
        let attributes = Attributes::root(abi::S_IFDIR | 0o755);
        let id = self.push(Kind::Directory(BTreeMap::new()), attributes, parent);
        self.link(parent, name, id);
        Ok(id)
    }

    fn child(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.node(directory).kind {
            Kind::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    /// Whether `/proc` is this directory.
    #[must_use]
    pub fn is_proc_root(&self, id: NodeId) -> bool {
        self.proc_root == Some(id)
    }

    /// The directory that is each `/proc/PID`.
    #[must_use]
    pub fn proc_process(&self) -> Option<NodeId> {
        self.proc_process
    }

    /// The directory that shows the one thread of the process, if `place` is a `/proc/PID/task`.
    #[must_use]
    pub fn thread_in(&self, place: Place) -> Option<NodeId> {
        self.proc_thread
            .filter(|&thread| self.node(thread).parent == place.node)
    }

    /// Returns the directory that `place` is in; the root is in itself.
    #[must_use]
    pub fn parent(&self, place: Place) -> Place {
        let parent = self.node(place.node).parent;
        let keeps_process = self.proc_process != Some(place.node) && !self.is_proc_root(parent);
        Place {
            node: parent,
            process: place.process.filter(|_| keeps_process),
        }
    }

    /// The path of a directory, from the root.
    #[must_use]
    pub fn path_of(&self, place: Place) -> Box<[u8]> {
        let mut names = Vec::new();
        let mut here = place;
        while here.node != NodeId::ROOT {
            let parent = self.parent(here);
            names.push(self.name_in(parent, here));
            here = parent;
        }
        if names.is_empty() {
            return (*b"/").into();
        }
        names
            .iter()
            .rev()
            .flat_map(|name| [&b"/"[..], name].concat())
            .collect()
    }

    fn name_in(&self, parent: Place, child: Place) -> Box<[u8]> {
        if (self.proc_process == Some(child.node) || self.proc_thread == Some(child.node))
            && let Some(pid) = child.process
        {
            return alloc::format!("{pid}").into_bytes().into();
        }
        match &self.node(parent.node).kind {
            Kind::Directory(entries) => entries
                .iter()
                .find(|(_, node)| **node == child.node)
                .map(|(name, _)| name.clone())
                .unwrap_or_default(),
            _ => Box::default(),
        }
    }

    /// Finds what `path` names, beginning at `start` (at the root if `path` begins with `/`).
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ELOOP`, `ENAMETOOLONG`, as Linux.
    pub fn walk(
        &self,
        start: Place,
        path: &[u8],
        last: LastLink,
        viewer: &dyn Viewer,
    ) -> Result<Place, Errno> {
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        self.walk_counted(start, path, last, viewer, &mut 0)
    }

    fn walk_counted(
        &self,
        start: Place,
        path: &[u8],
        last: LastLink,
        viewer: &dyn Viewer,
        links: &mut u32,
    ) -> Result<Place, Errno> {
        let mut here = if path.starts_with(b"/") {
            Place::ROOT
        } else {
            start
        };
        let wants_directory = path.ends_with(b"/") || path.ends_with(b"/.");
        let mut components = components(path).peekable();
        while let Some(name) = components.next() {
            let is_last = components.peek().is_none();
            let next = self.step(here, name, viewer)?;
            let keep = is_last && last == LastLink::Keep && !wants_directory;
            here = match self.link_target(next, viewer)? {
                Some(target) if !keep => {
                    *links += 1;
                    if *links > LINKS_MAX {
                        return Err(Errno::ELOOP);
                    }
                    self.walk_counted(here, &target, LastLink::Follow, viewer, links)?
                }
                _ => next,
            };
        }
        if wants_directory && !matches!(self.node(here.node).kind, Kind::Directory(_)) {
            return Err(Errno::ENOTDIR);
        }
        Ok(here)
    }

    /// One component of a walk.
    fn step(&self, here: Place, name: &[u8], viewer: &dyn Viewer) -> Result<Place, Errno> {
        let Kind::Directory(entries) = &self.node(here.node).kind else {
            return Err(Errno::ENOTDIR);
        };
        if name == b".." {
            return Ok(self.parent(here));
        }
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if let Some(&child) = entries.get(name) {
            return Ok(Place {
                node: child,
                process: here.process,
            });
        }
        if let Some(thread) = self.thread_in(here)
            && Pid::parse(name) == here.process
        {
            return Ok(Place {
                node: thread,
                process: here.process,
            });
        }
        match (self.proc_process, Pid::parse(name)) {
            (Some(node), Some(pid)) if self.is_proc_root(here.node) && viewer.exists(pid) => Ok(Place {
                node,
                process: Some(pid),
            }),
            _ => Err(Errno::ENOENT),
        }
    }

    /// Where the symbolic link at `place` leads; `None` if it is no link.
    ///
    /// # Errors
    /// `ENOENT`: a link of `/proc` whose process is gone.
    pub fn link_target(&self, place: Place, viewer: &dyn Viewer) -> Result<Option<Box<[u8]>>, Errno> {
        match &self.node(place.node).kind {
            Kind::Symlink(target) => Ok(Some(target.clone())),
            Kind::ProcSelf => {
                let pid = viewer.pid().ok_or(Errno::ENOENT)?;
                Ok(Some(alloc::format!("{pid}").into_bytes().into()))
            }
            Kind::ProcExe => {
                let pid = place.process.ok_or(Errno::ENOENT)?;
                viewer.exe(pid).map(Some).ok_or(Errno::ENOENT)
            }
            _ => Ok(None),
        }
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

/// The kernel itself as a viewer, before there are processes.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

impl Viewer for Nobody {
    fn pid(&self) -> Option<Pid> {
        None
    }

    fn exists(&self, _: Pid) -> bool {
        false
    }

    fn exe(&self, _: Pid) -> Option<Box<[u8]>> {
        None
    }
}

/// The components of a path that mean something: no empty ones, no `.`.
fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
}
