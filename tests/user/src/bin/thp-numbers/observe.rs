//! Reading the numbers without moving them.
//!
//! A step's counters are read right before and right after it, and what its frames became before anything else may use
//! them: into buffers that are there and touched beforehand, with nothing allocated in between.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::FileExt,
};

use linux_abi::page::{kpf, pm};
use user::{HUGE, PAGE};

/// Base pages in a huge page.
pub(crate) const PAGES: usize = HUGE / PAGE;

/// The counters of `/proc/vmstat` that are followed.
pub(crate) const COUNTERS: [&str; 7] = [
    "thp_fault_alloc",
    "thp_split_pmd",
    "thp_split_page",
    "thp_split_page_failed",
    "thp_deferred_split_page",
    "nr_anon_pages",
    "nr_anon_transparent_hugepages",
];

/// Values of [`COUNTERS`].
pub(crate) type Counts = [i64; COUNTERS.len()];

/// `/proc/vmstat`, read into a buffer of its own.
#[derive(Debug)]
pub(crate) struct Vmstat {
    file: File,
    /// Linux keeps parts of the counters per CPU; reading this file adds them up.
    refresh: Option<File>,
    text: Vec<u8>,
}

impl Vmstat {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            file: File::open("/proc/vmstat")?,
            refresh: File::open("/proc/sys/vm/stat_refresh").ok(),
            text: vec![1; 32 << 10],
        })
    }

    /// Reads the counters.
    pub(crate) fn read(&mut self) -> io::Result<Counts> {
        if let Some(refresh) = &self.refresh {
            refresh.read_at(&mut self.text[..16], 0)?;
        }
        let text = whole(&self.file, &mut self.text)?;
        Ok(COUNTERS.map(|name| counter(text, name)))
    }
}

/// Reads a file from its beginning into `buffer`.
fn whole<'a>(file: &File, buffer: &'a mut [u8]) -> io::Result<&'a str> {
    let mut len = 0;
    loop {
        match file.read_at(&mut buffer[len..], len as u64)? {
            0 => return std::str::from_utf8(&buffer[..len]).map_err(io::Error::other),
            more => len += more,
        }
    }
}

/// The value of a counter; -1 of one that is not there.
fn counter(text: &str, name: &str) -> i64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
        .unwrap_or(-1)
}

/// A file of one word per frame, and a buffer for those of one huge page.
#[derive(Debug)]
pub(crate) struct Words {
    file: File,
    bytes: Vec<u8>,
}

impl Words {
    pub(crate) fn open(path: &str) -> io::Result<Self> {
        Ok(Self {
            file: File::open(path)?,
            bytes: vec![1; PAGES * 8],
        })
    }

    /// Reads the words of a huge page from `first` on.
    pub(crate) fn fetch(&mut self, first: u64) -> io::Result<()> {
        self.file.read_exact_at(&mut self.bytes, first * 8)
    }

    /// Those that were read last.
    pub(crate) fn get(&self) -> Vec<u64> {
        let words = self.bytes.as_chunks().0.iter();
        words.map(|&word| u64::from_le_bytes(word)).collect()
    }
}

/// Whether a frame with these flags is back with the allocator: marked so, or bare in a CPU's own list.
pub(crate) fn is_free(flags: u64) -> bool {
    flags == 0 || flags == 1 << kpf::BUDDY
}

/// Reads a process's `pagemap` for the pages from `addr` on.
pub(crate) fn pagemap(pid: i32, addr: usize, pages: usize) -> io::Result<Vec<u64>> {
    user::proc::PageWords::open(&format!("/proc/{pid}/pagemap"))?.read((addr / PAGE) as u64, pages)
}

/// A pagemap word in words: marks, and the frame as its distance from the one it should be.
pub(crate) fn describe_entry(word: u64, own: u64) -> String {
    let pfn = word & ((1 << pm::PFN_BITS) - 1);
    let marks = word & !((1 << pm::PFN_BITS) - 1);
    if word >> pm::PRESENT & 1 == 0 {
        format!("{word:#x}")
    } else if pfn == own {
        format!("{marks:#x}+pfn")
    } else {
        format!("{marks:#x}+other")
    }
}

/// Values as runs: `0:a 1-511:b`.
pub(crate) fn runs(values: &[String]) -> String {
    let mut first = 0;
    let mut shown = Vec::new();
    for run in values.chunk_by(|a, b| a == b) {
        let last = first + run.len() - 1;
        shown.push(if first == last {
            format!("{first}:{}", run[0])
        } else {
            format!("{first}-{last}:{}", run[0])
        });
        first = last + 1;
    }
    shown.join(" ")
}

/// The lines of `smaps` that are summed.
pub(crate) const SMAPS: [&str; 10] = [
    "Rss",
    "Pss",
    "Pss_Dirty",
    "Shared_Clean",
    "Shared_Dirty",
    "Private_Clean",
    "Private_Dirty",
    "Referenced",
    "Anonymous",
    "AnonHugePages",
];

/// The text of the areas of a process that lie in `range`: header and lines of each.
pub(crate) fn areas(pid: i32, range: &Range<usize>) -> io::Result<Vec<(String, Vec<String>)>> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut areas: Vec<(String, Vec<String>)> = Vec::new();
    let mut is_inside = false;
    for line in text.lines() {
        if let Some(area) = range_of(line) {
            is_inside = range.contains(&area.start);
            if is_inside {
                areas.push((line.to_owned(), Vec::new()));
            }
        } else if let Some((_, lines)) = areas.last_mut().filter(|_| is_inside) {
            lines.push(line.to_owned());
        }
    }
    Ok(areas)
}

/// The addresses that an area's header begins with.
pub(crate) fn range_of(line: &str) -> Option<Range<usize>> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    let number = |digits| usize::from_str_radix(digits, 16).ok();
    Some(number(start)?..number(end)?)
}

/// The [`SMAPS`] of all areas of a process in `range`, summed.
pub(crate) fn smaps(pid: i32, range: &Range<usize>) -> io::Result<[u64; SMAPS.len()]> {
    let mut sums = [0; SMAPS.len()];
    for (_, lines) in areas(pid, range)? {
        for (sum, name) in sums.iter_mut().zip(SMAPS) {
            *sum += lines.iter().find_map(|line| field(line, name)).unwrap_or(0);
        }
    }
    Ok(sums)
}

/// The number on a line that begins with `name` and a colon.
pub(crate) fn field(line: &str, name: &str) -> Option<u64> {
    let rest = line.strip_prefix(name)?.strip_prefix(':')?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Sizes of this process: lines of `status` in kB, and two numbers of `statm` in pages.
pub(crate) const SIZES: [&str; 6] = ["VmSize", "VmData", "VmPTE", "RssAnon", "statm.size", "statm.data"];
/// Where those of `statm` begin.
const STATM: usize = 4;

/// Values of [`SIZES`].
pub(crate) type Sizes = [i64; SIZES.len()];

/// The two files about this process.
#[derive(Debug)]
pub(crate) struct SizeFiles {
    status: File,
    statm: File,
    text: Vec<u8>,
}

impl SizeFiles {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            status: File::open("/proc/self/status")?,
            statm: File::open("/proc/self/statm")?,
            text: vec![1; 8 << 10],
        })
    }

    pub(crate) fn read(&mut self) -> io::Result<Sizes> {
        let mut sizes = [-1; SIZES.len()];
        let status = whole(&self.status, &mut self.text)?;
        for (size, name) in sizes.iter_mut().zip(SIZES) {
            let kb = status.lines().find_map(|line| field(line, name));
            *size = kb.and_then(|kb| i64::try_from(kb).ok()).unwrap_or(*size);
        }
        let statm = whole(&self.statm, &mut self.text)?;
        let mut pages = statm.split_whitespace().map(|word| word.parse().unwrap_or(-1));
        sizes[STATM] = pages.next().unwrap_or(-1);
        sizes[STATM + 1] = pages.nth(4).unwrap_or(-1);
        Ok(sizes)
    }
}
