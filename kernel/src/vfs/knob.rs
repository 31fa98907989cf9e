//! Files that show and change how the kernel works: parts of `/sys`, `/proc/sys` and debugfs.
//!
//! | file | read | write |
//! |---|---|---|
//! | `/sys/kernel/mm/transparent_hugepage/enabled` | `[always] madvise never` | one of the three: which areas get huge pages |
//! | `.../use_zero_page` | 0 or 1 | what reading untouched memory finds |
//! | `.../hpage_pmd_size` | 2097152 | `EACCES` at open |
//! | `/proc/sys/vm/drop_caches` | `EACCES` at open | 2, 3: splits what waits on the deferred queue, gives the huge zero page back |
//! | `/sys/kernel/debug/split_huge_pages` | `EINVAL` | `1`: every huge page; `PID,0xSTART,0xEND`: those mapped there; `PATH,0xFIRST,0xLAST`: those of a file |
//!
//! Only what acts is here: Linux's other switches are absent until they do something. Bad input is `EINVAL` and changes
//! nothing.

use alloc::{boxed::Box, string::String};

use linux_abi::{errno::Errno, raw::general as abi};
use mm::{ThpMode, ZeroReads};

use super::{
    root,
    tree::{AddError, Attributes, Kind, LastLink, Place, Tree},
};
use crate::{
    log,
    platform::mm,
    task::process::{self, CurrentViewer, Pid},
    thp::{self, SplitCount},
};

/// A file that shows or changes how the kernel works.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Knob {
    /// Which areas get huge pages.
    ThpEnabled,
    /// Whether reads of untouched memory find the huge zero page.
    UseZeroPage,
    /// Bytes in a huge page.
    HpagePmdSize,
    /// Gives back what is kept for later.
    DropCaches,
    /// Splits huge pages.
    SplitHugePages,
}

/// Most bytes of a command that debugfs looks at, with the byte that ends it.
const COMMAND_MAX: usize = 255;

impl Knob {
    const ALL: [(&'static str, Self, u32); 5] = [
        (
            "sys/kernel/mm/transparent_hugepage/enabled",
            Self::ThpEnabled,
            0o644,
        ),
        (
            "sys/kernel/mm/transparent_hugepage/use_zero_page",
            Self::UseZeroPage,
            0o644,
        ),
        (
            "sys/kernel/mm/transparent_hugepage/hpage_pmd_size",
            Self::HpagePmdSize,
            0o444,
        ),
        ("proc/sys/vm/drop_caches", Self::DropCaches, 0o200),
        ("sys/kernel/debug/split_huge_pages", Self::SplitHugePages, 0o200),
    ];

    /// Checks whether root may open it so; `access` is the `O_ACCMODE` part of the flags.
    ///
    /// # Errors
    /// `EACCES`: sysfs lets nobody write a file without write permission, sysctl nobody read one without read
    /// permission.
    pub fn check_open(self, access: u32) -> Result<(), Errno> {
        let reads = access != abi::O_WRONLY;
        let writes = access != abi::O_RDONLY;
        match self {
            Self::HpagePmdSize if writes => Err(Errno::EACCES),
            Self::DropCaches if reads => Err(Errno::EACCES),
            _ => Ok(()),
        }
    }

    /// What it shows now.
    ///
    /// # Errors
    /// `EINVAL`: it is only written.
    pub fn show(self) -> Result<Box<[u8]>, Errno> {
        let text = match self {
            Self::ThpEnabled => modes(),
            Self::UseZeroPage => alloc::format!("{}\n", u8::from(mm().zero_reads() == ZeroReads::ZeroPage)),
            Self::HpagePmdSize => alloc::format!("{}\n", mm::PMD_SIZE),
            Self::DropCaches | Self::SplitHugePages => return Err(Errno::EINVAL),
        };
        Ok(text.into_bytes().into())
    }

    /// Does what was written; returns how many bytes were used.
    ///
    /// # Errors
    /// `EINVAL`: it means nothing. `ESRCH`: no such process. Nothing was changed.
    pub fn store(self, bytes: &[u8]) -> Result<usize, Errno> {
        match self {
            Self::ThpEnabled => {
                let word = without_newline(bytes);
                let named = |mode: &ThpMode| mode.name().as_bytes() == word;
                mm().set_thp_mode(ThpMode::ALL.into_iter().find(named).ok_or(Errno::EINVAL)?);
            }
            Self::UseZeroPage => mm().set_zero_reads(match without_newline(bytes) {
                b"0" => ZeroReads::OwnPage,
                b"1" => ZeroReads::ZeroPage,
                _ => return Err(Errno::EINVAL),
            }),
            Self::HpagePmdSize => return Err(Errno::EIO),
            Self::DropCaches => drop_caches(bytes)?,
            Self::SplitHugePages => return split_huge_pages(bytes),
        }
        Ok(bytes.len())
    }
}

/// Adds the files and the directories that they are in.
///
/// # Errors
/// See [`Tree::add`].
pub fn populate(tree: &mut Tree) -> Result<(), AddError> {
    for (path, knob, mode) in Knob::ALL {
        let attributes = Attributes::root(abi::S_IFREG | mode);
        tree.add(path.as_bytes(), Kind::Knob(knob), attributes)?;
    }
    Ok(())
}

fn modes() -> String {
    let current = mm().thp_mode();
    let names = ThpMode::ALL.map(|mode| {
        if mode == current {
            alloc::format!("[{}]", mode.name())
        } else {
            mode.name().into()
        }
    });
    names.join(" ") + "\n"
}

/// One newline at the end does not matter, as `echo` writes it.
fn without_newline(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"\n").unwrap_or(bytes)
}

/// There is no page cache, so 1 finds nothing to drop.
fn drop_caches(bytes: &[u8]) -> Result<(), Errno> {
    const SLAB: u32 = 2;
    const QUIETLY: u32 = 4;
    let what = core::str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.trim_ascii().parse::<u32>().ok());
    let what = what.filter(|what| (1..=4).contains(what)).ok_or(Errno::EINVAL)?;
    if what & SLAB != 0 {
        let dropped = thp::drop_reclaimable();
        log::debug!("drop_caches: {dropped:?}");
    }
    if what & QUIETLY == 0 {
        log::info!("drop_caches: {what}");
    }
    Ok(())
}

/// What debugfs was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SplitCommand<'a> {
    All,
    Range {
        pid: u64,
        start: u64,
        end: u64,
    },
    /// The path, and nothing more: there is no page of any file to be split.
    File(&'a str),
}

impl<'a> SplitCommand<'a> {
    /// Reads `1`, or `PID,0xSTART,0xEND` with anything behind it, or `PATH,0xFIRST,0xLAST`. Linux takes any command that
    /// begins with the number 1 and is not of the second form for the first. (Without a comma behind a path Linux 6.1
    /// reads through a null pointer.)
    fn parse(text: &'a str) -> Option<Self> {
        if text.starts_with('/') {
            let mut fields = text.split(',');
            let path = fields.next()?;
            let mut offset = || leading(fields.next()?.strip_prefix("0x")?, 16);
            return offset().and_then(|_| offset()).map(|_| Self::File(path));
        }
        let mut fields = text.split(',');
        let pid = leading(fields.next()?, 10)?;
        let mut address = || leading(fields.next()?.strip_prefix("0x")?, 16);
        match (pid, address().and_then(|start| Some((start, address()?)))) {
            (pid, Some((start, end))) => Some(Self::Range { pid, start, end }),
            // A start without an end is neither form.
            (1, None) if text.split(',').nth(1).is_none_or(|field| !is_address(field)) => Some(Self::All),
            _ => None,
        }
    }
}

fn is_address(field: &str) -> bool {
    field
        .strip_prefix("0x")
        .is_some_and(|digits| leading(digits, 16).is_some())
}

/// The number that `text` begins with.
fn leading(text: &str, radix: u32) -> Option<u64> {
    let end = text.find(|c: char| !c.is_digit(radix)).unwrap_or(text.len());
    u64::from_str_radix(&text[..end], radix).ok()
}

fn split_huge_pages(bytes: &[u8]) -> Result<usize, Errno> {
    let seen = &bytes[..bytes.len().min(COMMAND_MAX - 1)];
    let seen = seen.split(|&byte| byte == 0).next().unwrap_or_default();
    let text = core::str::from_utf8(seen).map_err(|_| Errno::EINVAL)?;
    let SplitCount { tried, split } = match SplitCommand::parse(text).ok_or(Errno::EINVAL)? {
        SplitCommand::All => thp::split_all(),
        SplitCommand::Range { pid, start, end } => {
            let found = Pid::parse(alloc::format!("{pid}").as_bytes()).and_then(process::find);
            let space = found.ok_or(Errno::ESRCH)?.space().ok_or(Errno::EINVAL)?;
            thp::split_range(&space, start, end)
        }
        SplitCommand::File(path) => {
            // Linux says so whatever hinders it to open the file.
            let found = root().walk(Place::ROOT, path.as_bytes(), LastLink::Follow, &CurrentViewer);
            found.map_err(|_| Errno::EINVAL)?;
            SplitCount::default()
        }
    };
    log::debug!("split_huge_pages: {split} of {tried} THP split");
    Ok(seen.len())
}
