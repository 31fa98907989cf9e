//! Reading what `/proc` says about memory.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
};

use linux_abi::page::pm;

use crate::PAGE;

/// Returns one line of `/proc/meminfo`, in kB.
///
/// # Errors
/// The file cannot be read, or has no such line.
pub fn meminfo_kb(name: &str) -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    field(&text, name, ':').ok_or_else(|| missing("/proc/meminfo", name))
}

/// Returns one line of `/proc/vmstat`.
///
/// # Errors
/// The file cannot be read, or has no such line.
pub fn vmstat(name: &str) -> io::Result<u64> {
    let text = fs::read_to_string("/proc/vmstat")?;
    field(&text, name, ' ').ok_or_else(|| missing("/proc/vmstat", name))
}

fn field(text: &str, name: &str, separator: char) -> Option<u64> {
    let (_, value) = text
        .lines()
        .filter_map(|line| line.split_once(separator))
        .find(|(key, _)| *key == name)?;
    value.split_whitespace().next()?.parse().ok()
}

fn missing(file: &str, name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{file} has no line {name}"))
}

/// A file that is an array of u64, one per page.
#[derive(Debug)]
pub struct PageWords(File);

impl PageWords {
    /// Opens it.
    ///
    /// # Errors
    /// What `open` said.
    pub fn open(path: &str) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// Returns `count` words from `index` on.
    ///
    /// # Errors
    /// What `pread` said, or the file ends before.
    pub fn read(&self, index: u64, count: usize) -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; count * 8];
        self.0.read_exact_at(&mut bytes, index * 8)?;
        Ok(bytes
            .as_chunks()
            .0
            .iter()
            .map(|&word| u64::from_le_bytes(word))
            .collect())
    }
}

/// Returns the frame number of each base page from `addr` on, as `/proc/self/pagemap` tells it: `None` where nothing
/// is present, frame 0 where the reader has no right to know.
///
/// # Errors
/// The file cannot be opened or read.
pub fn frames(addr: usize, pages: usize) -> io::Result<Vec<Option<u64>>> {
    let words = PageWords::open("/proc/self/pagemap")?.read((addr / PAGE) as u64, pages)?;
    Ok(words.into_iter().map(frame).collect())
}

fn frame(word: u64) -> Option<u64> {
    (word >> pm::PRESENT & 1 == 1).then_some(word & ((1 << pm::PFN_BITS) - 1))
}
