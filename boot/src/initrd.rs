//! The root directory of the machine: cpio newc archives, one after the other.
//!
//! ```text
//!   built-in root            --initramfs FILE             --exec FILE ...
//!   /bin/<our programs>      as it is, or un-gzipped      /bin/<name>, mode 755
//!   /dev /etc /proc /sys /tmp
//! ```
//! Each archive is closed by its trailer and padded to 512 bytes; the kernel unpacks them in this order, so that a
//! later file replaces an earlier one of the same name. What stands inside a user's archive is the kernel's to judge
//! (it must not trust it anyway); here only what it *is* gets checked, to give the clear error before a machine starts.

use std::{
    ffi::OsStr,
    fs,
    io::Read,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::{Error, Result, cargo::Build, image};

const DIRECTORIES: [&str; 6] = ["bin", "dev", "etc", "proc", "sys", "tmp"];
const MODE_TYPE: u32 = 0o170_000;
const MODE_DIRECTORY: u32 = 0o040_755;
const MODE_STICKY_DIRECTORY: u32 = 0o041_777;
const MODE_PROGRAM: u32 = 0o100_755;
const USER_TARGET: &str = "x86_64-unknown-linux-musl";
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const NEWC_MAGICS: [&[u8]; 2] = [b"070701", b"070702"];

/// Writer of one cpio newc archive.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// An archive without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds directory `name`, a path without a leading slash.
    pub fn directory(&mut self, name: &str, mode: u32) {
        self.entry(name.as_bytes(), mode, &[]);
    }

    /// Adds the file `name` with `contents`.
    ///
    /// # Errors
    /// [`Error::BadInput`] when it is larger than the format can say (4 GiB).
    pub fn file(&mut self, name: &[u8], mode: u32, contents: &[u8]) -> Result<()> {
        if u32::try_from(contents.len()).is_err() {
            let name = String::from_utf8_lossy(name);
            return Err(Error::BadInput(format!(
                "{name} is too large for a cpio archive (4 GiB)"
            )));
        }
        self.entry(name, mode, contents);
        Ok(())
    }

    /// Closes the archive and returns its bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(b"TRAILER!!!", 0, &[]);
        pad(&mut self.bytes, 512);
        self.bytes
    }

    fn entry(&mut self, name: &[u8], mode: u32, contents: &[u8]) {
        self.entries += 1;
        let links = if mode & MODE_TYPE == MODE_DIRECTORY & MODE_TYPE {
            2
        } else {
            1
        };
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [
            self.entries as usize,
            mode as usize,
            0,
            0,
            links,
            0,
            contents.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        self.bytes.extend_from_slice(NEWC_MAGICS[0]);
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name);
        self.bytes.push(0);
        pad(&mut self.bytes, 4);
        self.bytes.extend_from_slice(contents);
        pad(&mut self.bytes, 4);
    }
}

fn pad(bytes: &mut Vec<u8>, unit: usize) {
    bytes.resize(bytes.len().next_multiple_of(unit), 0);
}

/// What the user wants in the machine's root directory.
#[derive(Debug, Default, Clone)]
pub struct Root {
    /// Host files to put into /bin.
    pub programs: Vec<PathBuf>,
    /// A cpio newc archive, plain or gzip, unpacked over the built-in root.
    pub initramfs: Option<PathBuf>,
}

/// The user's files, read and found to be what they should be.
#[derive(Debug, Clone)]
pub struct RootFiles(Vec<u8>);

impl Root {
    /// Reads the files. Builds nothing: a mistyped name must not wait for a compiler.
    ///
    /// # Errors
    /// [`Error::BadInput`] when a file cannot be read or is not what it should be.
    pub fn read(&self) -> Result<RootFiles> {
        let mut bytes = self
            .initramfs
            .as_deref()
            .map(read_initramfs)
            .transpose()?
            .unwrap_or_default();
        pad(&mut bytes, 512);
        bytes.extend_from_slice(&programs(&self.programs)?);
        Ok(RootFiles(bytes))
    }
}

impl RootFiles {
    /// The whole initrd: these files over the archive `built_in` (see [`built_in`]).
    #[must_use]
    pub fn over(&self, built_in: &[u8]) -> Vec<u8> {
        [built_in, &self.0].concat()
    }
}

/// The archive of the files given with `--exec`; empty when there are none.
fn programs(paths: &[PathBuf]) -> Result<Vec<u8>> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let mut archive = Archive::new();
    for path in paths {
        let contents = fs::read(path).map_err(Error::unreadable(path))?;
        let nameless = || Error::BadInput(format!("{} has no file name", path.display()));
        add_program(&mut archive, path.file_name().ok_or_else(nameless)?, &contents)?;
    }
    Ok(archive.finish())
}

fn add_program(archive: &mut Archive, name: &OsStr, contents: &[u8]) -> Result<()> {
    archive.file(&[b"bin/", name.as_bytes()].concat(), MODE_PROGRAM, contents)
}

/// The archive that every machine gets: empty directories and our own programs.
///
/// # Errors
/// [`Error::Build`] when they do not compile.
pub fn built_in() -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    for name in DIRECTORIES {
        archive.directory(
            name,
            if name == "tmp" {
                MODE_STICKY_DIRECTORY
            } else {
                MODE_DIRECTORY
            },
        );
    }
    for executable in Build::new("the ring-3 programs", "user", USER_TARGET, "release").run()? {
        let stripped = image::strip(&executable.path, &executable.path.with_extension("stripped"))?;
        let contents = fs::read(&stripped).map_err(Error::unreadable(stripped))?;
        add_program(&mut archive, OsStr::new(&executable.name), &contents)?;
    }
    Ok(archive.finish())
}

fn read_initramfs(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).map_err(Error::unreadable(path))?;
    let bytes = if bytes.starts_with(GZIP_MAGIC) {
        gunzip(path, &bytes)?
    } else {
        bytes
    };
    if NEWC_MAGICS.iter().any(|magic| bytes.starts_with(magic)) {
        return Ok(bytes);
    }
    let expected = "expected a cpio archive in newc format (`cpio -o -H newc`), plain or gzip";
    Err(Error::BadInput(format!(
        "{} is not an initramfs: {expected}",
        path.display()
    )))
}

fn gunzip(path: &Path, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    let read = flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut plain);
    read.map_err(|error| Error::BadInput(format!("{}: damaged gzip data: {error}", path.display())))?;
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::{Archive, MODE_PROGRAM};

    #[test]
    fn an_entry_has_the_newc_layout() {
        let mut archive = Archive::new();
        archive
            .file(b"bin/x", MODE_PROGRAM, b"abc")
            .expect("three bytes fit");
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[14..22], b"000081ed", "mode");
        assert_eq!(&bytes[54..62], b"00000003", "file size");
        assert_eq!(&bytes[94..102], b"00000006", "name size with its NUL");
        assert_eq!(&bytes[110..116], b"bin/x\0");
        assert_eq!(
            &bytes[116..120],
            b"abc\0",
            "contents at a multiple of 4, padded to the next"
        );
        assert_eq!(&bytes[120..126], b"070701");
        assert_eq!(bytes.len() % 512, 0);
    }
}
