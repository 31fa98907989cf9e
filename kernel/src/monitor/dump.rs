//! Armoured dumps: raw words of all frames as text that survives a terminal.
//!
//! ```text
//!   -----BEGIN DUMP kpageflags 1048576-----        name, number of bytes
//!   KNgEAAAAAAAo2AQAAAAAAA...                      base64, 76 columns
//!   -----END DUMP kpageflags 1c291ca3-----         name, CRC-32 of the bytes
//! ```
//! `cargo xtask undump` turns it into a file that `page-types -F` reads. Bit 36 (private_2) of a first tail is shown
//! here and by the console's other commands, and not in `/proc`: PMDs and PTEs map the huge page at once.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::say;
use crate::{drivers::uart, platform::mm, vfs::proc::WordFile};

/// Bytes in a line of 76 columns.
const LINE: usize = 57;
/// Lines that are sent at a time: enough that a call costs little, a multiple of eight bytes.
const BLOCK: usize = LINE * 8;

/// What can be dumped, by name.
#[must_use]
pub fn find(name: &str) -> Option<(&'static str, WordFile)> {
    let known = [
        ("kpageflags", WordFile::Dumpflags),
        ("kpagecount", WordFile::Kpagecount),
    ];
    known.into_iter().find(|(known, _)| *known == name)
}

/// Dumps the words of all frames. `file` must be one of [`find`]'s.
pub fn dump(name: &str, file: WordFile) {
    let bytes = u64::from(mm::Platform::frames(mm().platform())) * WordFile::WORD;
    say!("-----BEGIN DUMP {name} {bytes}-----");
    let mut checksum = crc32fast::Hasher::new();
    let mut block = [0; BLOCK];
    let mut offset = 0;
    // Neither file belongs to a process, so reading cannot fail; 0 is the end.
    while let Ok(count @ 1..) = file.read(None, offset, &mut block) {
        checksum.update(&block[..count]);
        send(&block[..count]);
        offset += count as u64;
    }
    say!("-----END DUMP {name} {:08x}-----", checksum.finalize());
}

fn send(bytes: &[u8]) {
    let mut text = alloc::string::String::with_capacity(BLOCK * 2);
    for line in bytes.chunks(LINE) {
        STANDARD.encode_string(line, &mut text);
        text.push('\n');
    }
    uart::com1_write(text.as_bytes());
}
