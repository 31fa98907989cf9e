//! The demonstration: takes 8 MiB on huge pages, drops one base page out of the middle of a huge page, and shows what
//! that does to each page.
//!
//! It checks what it shows. Exit status 0: every promise was kept. 1: a promise was broken, and a line says which.
//! Runs on Linux too; what an ordinary user may not read there is named and left out.

use std::{io, process::ExitCode};

use linux_abi::page::kpf;
use user::{
    HUGE, PAGE,
    mapping::Mapping,
    proc::{self, PageWords},
};

const BLOCKS: usize = 4;
const PAGES: usize = HUGE / PAGE;
/// The base page of block 0 that is dropped.
const DROPPED: usize = 7;

fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(broken) => {
            println!("\n{broken} of the promises above were broken");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("thp-demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<u32> {
    println!("thp-demo: huge pages, one base page less");
    let mut verdict = Verdict::default();
    let before = Counters::read()?;

    let memory = Mapping::huge_aligned(BLOCKS * HUGE)?;
    // Linux may be set to give huge pages only to those who ask.
    memory.advise(0..memory.len(), libc::MADV_HUGEPAGE)?;
    memory.touch();
    let touched = Counters::read()?;
    println!(
        "\n1. 8 MiB mapped at {:#x}, one byte written to each of {} pages",
        memory.addr(),
        BLOCKS * PAGES
    );
    touched.print_since(&before);
    let frames = proc::frames(memory.addr(), BLOCKS * PAGES)?;
    let pages = Pages::open(&frames);
    pages.print(&frames)?;
    verdict.change("AnonHugePages, kB", before.huge_kb, touched.huge_kb, 8192);

    let hole = DROPPED * PAGE..(DROPPED + 1) * PAGE;
    memory.unmap(hole.clone())?;
    let dropped = Counters::read()?;
    println!(
        "\n2. munmap of one base page: [{:#x}, +4 KiB), page {DROPPED} of the first huge page",
        memory.addr() + hole.start
    );
    dropped.print_since(&touched);
    pages.print(&frames)?;
    println!(
        "\n   The first PMD entry became a table of 512 PTEs; the page itself is still one compound page."
    );
    println!(
        "   Its frame {DROPPED} is mapped by nobody and waits on the deferred split queue with the rest."
    );

    println!("\n3. promises");
    verdict.change("AnonHugePages, kB", touched.huge_kb, dropped.huge_kb, -2048);
    verdict.change("thp_split_pmd", touched.split_pmd, dropped.split_pmd, 1);
    verdict.change("thp_deferred_split_page", touched.deferred, dropped.deferred, 1);
    verdict.holds("all other pages keep their contents", {
        memory
            .first_damage(0..hole.start)
            .or(memory.first_damage(hole.end..memory.len()))
            .is_none()
    });
    let now = proc::frames(memory.addr(), BLOCKS * PAGES)?;
    verdict.holds("exactly the dropped page is gone from the page table", {
        (0..now.len()).all(|i| now[i] == if i == DROPPED { None } else { frames[i] })
    });
    if let Pages::Visible { counts, .. } = &pages {
        let unmapped = unmapped(counts, &frames)?;
        verdict.holds(
            "kpagecount is 0 for exactly the dropped page",
            unmapped == [DROPPED],
        );
    }
    Ok(verdict.broken)
}

/// Which of `frames` no page table maps.
fn unmapped(counts: &PageWords, frames: &[Option<u64>]) -> io::Result<Vec<usize>> {
    let mut found = Vec::new();
    for (index, pfn) in frames.iter().enumerate() {
        if let Some(pfn) = pfn
            && counts.read(*pfn, 1)? == [0]
        {
            found.push(index);
        }
    }
    Ok(found)
}

/// The numbers that the demonstration moves.
struct Counters {
    huge_kb: u64,
    split_pmd: u64,
    deferred: u64,
}

impl Counters {
    fn read() -> io::Result<Self> {
        Ok(Self {
            huge_kb: proc::meminfo_kb("AnonHugePages")?,
            split_pmd: proc::vmstat("thp_split_pmd")?,
            deferred: proc::vmstat("thp_deferred_split_page")?,
        })
    }

    fn print_since(&self, before: &Self) {
        let row = |name: &str, from: u64, to: u64| {
            println!(
                "   {name:<24}{from:>8} -> {to:<8}{:+}",
                to.cast_signed() - from.cast_signed()
            );
        };
        row("AnonHugePages (kB)", before.huge_kb, self.huge_kb);
        row("thp_split_pmd", before.split_pmd, self.split_pmd);
        row("thp_deferred_split_page", before.deferred, self.deferred);
    }
}

/// The promises checked so far.
#[derive(Default)]
struct Verdict {
    broken: u32,
}

impl Verdict {
    fn holds(&mut self, promise: &str, kept: bool) {
        println!("   {} {promise}", if kept { "ok    " } else { "BROKEN" });
        self.broken += u32::from(!kept);
    }

    fn change(&mut self, name: &str, from: u64, to: u64, expected: i64) {
        let change = to.cast_signed() - from.cast_signed();
        self.holds(
            &format!("{name}: {from} -> {to} (change {change:+}, expected {expected:+})"),
            change == expected,
        );
    }
}

/// The two files that tell about a frame, if we may read them.
enum Pages {
    Visible { flags: PageWords, counts: PageWords },
    Hidden,
}

impl Pages {
    /// Opens them, or says why it cannot.
    fn open(frames: &[Option<u64>]) -> Self {
        if frames.iter().flatten().all(|&pfn| pfn == 0) {
            println!("   /proc/self/pagemap hides frame numbers from this user: page states are left out");
            return Self::Hidden;
        }
        match (
            PageWords::open("/proc/kpageflags"),
            PageWords::open("/proc/kpagecount"),
        ) {
            (Ok(flags), Ok(counts)) => Self::Visible { flags, counts },
            (Err(error), _) | (_, Err(error)) => {
                println!("   /proc/kpageflags and kpagecount: {error}: page states are left out");
                Self::Hidden
            }
        }
    }

    /// Prints each block: a line of runs for an undisturbed one, a picture for one with a hole.
    fn print(&self, frames: &[Option<u64>]) -> io::Result<()> {
        let Self::Visible { flags, counts } = self else {
            return Ok(());
        };
        println!();
        for (block, frames) in frames.chunks(PAGES).enumerate() {
            let states = frames
                .iter()
                .map(|&pfn| State::read(pfn, flags, counts))
                .collect::<io::Result<Vec<_>>>()?;
            print_block(block, &states);
        }
        Ok(())
    }
}

/// What the two files say about one frame.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    pfn: u64,
    flags: u64,
    count: u64,
}

impl State {
    fn read(pfn: Option<u64>, flags: &PageWords, counts: &PageWords) -> io::Result<Self> {
        let pfn = pfn.unwrap_or(0);
        Ok(Self {
            pfn,
            flags: flags.read(pfn, 1)?[0],
            count: counts.read(pfn, 1)?[0],
        })
    }

    fn has(self, bit: u32) -> bool {
        self.flags >> bit & 1 == 1
    }

    /// One letter: what the page is, and whether it is mapped.
    fn cell(self) -> char {
        match (
            self.count,
            self.has(kpf::COMPOUND_HEAD),
            self.has(kpf::COMPOUND_TAIL),
        ) {
            (0, ..) => '.',
            (_, true, _) => 'H',
            (_, _, true) => 't',
            _ => '4',
        }
    }

    fn same_kind(self, other: Self) -> bool {
        (self.flags, self.count) == (other.flags, other.count)
    }
}

fn print_block(block: usize, states: &[State]) {
    println!(
        "   block {block}: frames {:#x} to {:#x}",
        states[0].pfn,
        states[states.len() - 1].pfn
    );
    if states.iter().any(|state| state.count == 0) {
        println!("            H head, t tail, . mapped by nobody");
        for row in states.chunks(64) {
            println!(
                "            {}",
                row.iter().map(|state| state.cell()).collect::<String>()
            );
        }
    }
    let mut first = 0;
    for run in states.chunk_by(|a, b| a.same_kind(*b)) {
        let last = first + run.len() - 1;
        let name = if first == last {
            format!("page {first}")
        } else {
            format!("pages {first}-{last}")
        };
        println!(
            "     {name:<15} kpagecount {} kpageflags {:#011x} {}",
            run[0].count,
            run[0].flags,
            names(run[0].flags)
        );
        first = last + 1;
    }
}

/// The names of the bits that matter here.
fn names(flags: u64) -> String {
    let known = [
        (kpf::UPTODATE, "uptodate"),
        (kpf::DIRTY, "dirty"),
        (kpf::LRU, "lru"),
        (kpf::ACTIVE, "active"),
        (kpf::BUDDY, "buddy"),
        (kpf::MMAP, "mmap"),
        (kpf::ANON, "anon"),
        (kpf::SWAPBACKED, "swapbacked"),
        (kpf::COMPOUND_HEAD, "head"),
        (kpf::COMPOUND_TAIL, "tail"),
        (kpf::THP, "thp"),
        (kpf::MAPPEDTODISK, "exclusive"),
    ];
    known
        .iter()
        .filter(|(bit, _)| flags >> bit & 1 == 1)
        .map(|(_, name)| *name)
        .collect::<Vec<_>>()
        .join(",")
}
