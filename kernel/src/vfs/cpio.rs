//! Reads cpio archives in the "newc" form, the form of an initramfs.
//!
//! ```text
//!   entry:   header 110 bytes | name, NUL | pad to 4 | data | pad to 4
//!   header:  "070701", then 13 numbers of 8 hex digits
//!   archive: entries, the last one named TRAILER!!!
//!   file:    archives one after the other, zero bytes between them
//! ```
//! Nothing is copied: names and data are slices of the archive. A damaged header ends the reading, since nobody can say
//! where the next one starts; what came before it stays good.

use core::fmt;

const HEADER: usize = 110;
const MAGIC: usize = 6;
const FIELDS: usize = 13;
const TRAILER: &[u8] = b"TRAILER!!!";
/// Longest name, its NUL included: Linux's `PATH_MAX`.
const NAME_MAX: usize = 4096;

/// One entry of an archive.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Which archive of the file it is in, counted from 0. Inode numbers mean something only within one.
    pub archive: u32,
    /// Device and inode number: equal for hard links.
    pub identity: (u32, u32, u32),
    /// File type and permissions, as in `stat`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub nlink: u32,
    /// Time of the last change, seconds since 1970.
    pub mtime: u32,
    /// Device that a device file stands for: major, minor.
    pub rdev: (u32, u32),
    /// The path, as written.
    pub name: &'a [u8],
    /// Contents; the target of a symbolic link.
    pub data: &'a [u8],
}

/// Why an archive cannot be read further. Each carries the offset of the entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpioError {
    /// The file ends inside the entry.
    Truncated(usize),
    /// No entry starts here.
    BadMagic(usize),
    /// A number is not eight hex digits.
    BadNumber(usize),
    /// The name is empty, longer than a path may be, or does not end in NUL.
    BadName(usize),
    /// The last archive has no trailer.
    NoTrailer(usize),
}

impl fmt::Display for CpioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated(at) => write!(f, "the archive ends inside the entry at byte {at}"),
            Self::BadMagic(at) => write!(f, "no cpio newc header (070701) at byte {at}"),
            Self::BadNumber(at) => write!(f, "a number in the header at byte {at} is not eight hex digits"),
            Self::BadName(at) => write!(f, "the entry at byte {at} has no usable name"),
            Self::NoTrailer(at) => write!(f, "the archive ends at byte {at} without its trailer"),
        }
    }
}

/// Reads the entries of all archives in a file, in order. After an error it yields nothing more.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    archive: u32,
    /// Inside an archive: its trailer has not been seen.
    open: bool,
}

impl<'a> Reader<'a> {
    /// Starts at the beginning of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            archive: 0,
            open: false,
        }
    }

    fn stop(&mut self) {
        self.at = self.bytes.len();
        self.open = false;
    }

    /// Takes one entry, trailers included.
    fn entry(&mut self) -> Result<Entry<'a>, CpioError> {
        let start = self.at;
        let truncated = CpioError::Truncated(start);
        let rest = &self.bytes[start..];
        let magic = rest.get(..MAGIC).ok_or(truncated)?;
        if magic != b"070701" && magic != b"070702" {
            return Err(CpioError::BadMagic(start));
        }
        let header = rest.get(..HEADER).ok_or(truncated)?;
        let mut fields = [0; FIELDS];
        for (field, digits) in fields.iter_mut().zip(header[MAGIC..].chunks_exact(8)) {
            *field = hex(digits).ok_or(CpioError::BadNumber(start))?;
        }
        let [
            ino,
            mode,
            uid,
            gid,
            nlink,
            mtime,
            size,
            major,
            minor,
            rmajor,
            rminor,
            name_size,
            _check,
        ] = fields;

        let name_size = name_size as usize;
        if !(2..=NAME_MAX).contains(&name_size) {
            return Err(CpioError::BadName(start));
        }
        let name = rest.get(HEADER..HEADER + name_size).ok_or(truncated)?;
        let Some((0, name)) = name.split_last() else {
            return Err(CpioError::BadName(start));
        };
        if name.contains(&0) {
            return Err(CpioError::BadName(start));
        }

        let data_at = (HEADER + name_size).next_multiple_of(4);
        let data_end = data_at + size as usize;
        let data = rest.get(data_at..data_end).ok_or(truncated)?;
        // The padding behind the last entry of a file may be missing.
        self.at = (start + data_end.next_multiple_of(4)).min(self.bytes.len());
        Ok(Entry {
            archive: self.archive,
            identity: (major, minor, ino),
            mode,
            uid,
            gid,
            nlink,
            mtime,
            rdev: (rmajor, rminor),
            name,
            data,
        })
    }

    fn skip_zeroes(&mut self) {
        let zeroes = self.bytes[self.at..]
            .iter()
            .take_while(|&&byte| byte == 0)
            .count();
        self.at += zeroes;
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Entry<'a>, CpioError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if !self.open {
                self.skip_zeroes();
            }
            if self.at == self.bytes.len() {
                let missing = core::mem::take(&mut self.open);
                return missing.then_some(Err(CpioError::NoTrailer(self.at)));
            }
            match self.entry() {
                Ok(entry) if entry.name == TRAILER => {
                    self.open = false;
                    self.archive += 1;
                }
                Ok(entry) => {
                    self.open = true;
                    return Some(Ok(entry));
                }
                Err(error) => {
                    self.stop();
                    return Some(Err(error));
                }
            }
        }
    }
}

/// Eight hex digits; nothing else, not even a sign.
fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |sum: u32, &digit| {
        Some(sum << 4 | char::from(digit).to_digit(16)?)
    })
}
