//! Commands that show memory.

use alloc::{string::String, sync::Arc, vec::Vec};
use core::{fmt::Write, ops::ControlFlow};

use linux_abi::page::{kpf, pm};
use mm::{AddressSpace, ENTRIES, PAGE_BYTES, PMD_SIZE, Pfn, Platform, VirtAddr, VirtRange};

use super::{Console, say};
use crate::{
    check,
    platform::mm,
    task::{
        process::{self, Process},
        space::Space,
    },
};

/// Names of the bits of a kpageflags word, as `page-types` calls them.
const FLAG_NAMES: &[(u32, &str)] = &[
    (kpf::LOCKED, "locked"),
    (kpf::ERROR, "error"),
    (kpf::REFERENCED, "referenced"),
    (kpf::UPTODATE, "uptodate"),
    (kpf::DIRTY, "dirty"),
    (kpf::LRU, "lru"),
    (kpf::ACTIVE, "active"),
    (kpf::SLAB, "slab"),
    (kpf::WRITEBACK, "writeback"),
    (kpf::RECLAIM, "reclaim"),
    (kpf::BUDDY, "buddy"),
    (kpf::MMAP, "mmap"),
    (kpf::ANON, "anonymous"),
    (kpf::SWAPCACHE, "swapcache"),
    (kpf::SWAPBACKED, "swapbacked"),
    (kpf::COMPOUND_HEAD, "compound_head"),
    (kpf::COMPOUND_TAIL, "compound_tail"),
    (kpf::HUGE, "huge"),
    (kpf::UNEVICTABLE, "unevictable"),
    (kpf::HWPOISON, "hwpoison"),
    (kpf::NOPAGE, "nopage"),
    (kpf::KSM, "ksm"),
    (kpf::THP, "thp"),
    (kpf::OFFLINE, "offline"),
    (kpf::ZERO_PAGE, "zero_page"),
    (kpf::IDLE, "idle_page"),
    (kpf::PGTABLE, "pgtable"),
    (kpf::RESERVED, "reserved"),
    (kpf::MLOCKED, "mlocked"),
    (kpf::MAPPEDTODISK, "anon_exclusive"),
    (kpf::PRIVATE, "private"),
    (kpf::PRIVATE_2, "double_map"),
    (kpf::SOFTDIRTY, "softdirty"),
];

fn has(flags: u64, bit: u32) -> bool {
    flags >> bit & 1 == 1
}

fn names(flags: u64) -> String {
    let known = FLAG_NAMES.iter().filter(|(bit, _)| has(flags, *bit));
    let names = known.map(|(_, name)| *name).collect::<Vec<_>>().join(",");
    if names.is_empty() { "-".into() } else { names }
}

/// Shows `word` of each frame from `first` to `last`, runs of equal ones in one line.
fn runs(first: Pfn, last: Pfn, word: fn(Pfn) -> u64, show: fn(u64) -> String) {
    let mut start = first.raw();
    let mut of_run = word(first);
    for number in first.raw() + 1..=last.raw() {
        let next = word(Pfn::new(number));
        if next != of_run {
            run_line(start, number - 1, &show(of_run));
            (start, of_run) = (number, next);
        }
    }
    run_line(start, last.raw(), &show(of_run));
}

fn run_line(start: u32, last: u32, text: &str) {
    let count = last - start + 1;
    say!("{start:#8x} - {last:#8x} {count:>8}  {text}");
}

/// `kpageflags`.
pub fn kpageflags(first: Pfn, last: Pfn) {
    runs(
        first,
        last,
        |pfn| mm::report::kpageflags(mm(), pfn),
        |flags| alloc::format!("{flags:#012x} {}", names(flags)),
    );
}

/// `kpagecount`.
pub fn kpagecount(first: Pfn, last: Pfn) {
    runs(
        first,
        last,
        |pfn| mm::report::kpagecount(mm(), pfn),
        |count| alloc::format!("mapped {count} times"),
    );
}

/// `free`.
pub fn free() {
    const PAGE_KB: u64 = PAGE_BYTES / 1024;
    let (total, free) = (mm().nr_managed_pages() * PAGE_KB, mm().nr_free_pages() * PAGE_KB);
    say!("{:>12} {:>12} {:>12}", "total kB", "used kB", "free kB");
    say!("{total:>12} {:>12} {free:>12}", total - free);
}

/// What a block of 2 MiB is used for.
#[derive(Default)]
struct Block {
    huge: bool,
    free: usize,
    reserved: usize,
    holes: usize,
    frames: usize,
}

impl Block {
    fn of(frames: impl Iterator<Item = Pfn>) -> Self {
        let mut block = Self::default();
        for pfn in frames {
            let flags = mm::report::kpageflags(mm(), pfn);
            block.huge |= has(flags, kpf::COMPOUND_HEAD) && has(flags, kpf::THP);
            block.free += usize::from(has(flags, kpf::BUDDY));
            block.reserved += usize::from(has(flags, kpf::RESERVED));
            block.holes += usize::from(has(flags, kpf::NOPAGE));
            block.frames += 1;
        }
        block
    }

    fn cell(&self) -> char {
        let used = self.frames - self.free - self.reserved - self.holes;
        match used {
            _ if self.huge => 'H',
            0 if self.holes == self.frames => ' ',
            0 if self.free == 0 => 'r',
            0 => '.',
            1..128 => '-',
            128..384 => '+',
            _ => '#',
        }
    }
}

/// `map`: 64 cells of 2 MiB in a row.
pub fn map() {
    const CELLS: u32 = 64;
    let entries = u32::try_from(ENTRIES).unwrap_or(u32::MAX);
    let frames = mm().platform().frames();
    say!("one cell is 2 MiB:  H huge page  # used  + - partly used  . free  r reserved  blank: no memory");
    for row in (0..frames).step_by(mm::addr::to_usize(u64::from(CELLS * entries))) {
        let mut line = String::new();
        for cell in 0..CELLS {
            let first = row + cell * entries;
            if first >= frames {
                break;
            }
            line.push(Block::of((first..frames.min(first + entries)).map(Pfn::new)).cell());
        }
        say!("{:>8} MiB |{line}|", (u64::from(row) * PAGE_BYTES) >> 20);
    }
}

/// Where a frame is mapped.
struct Mapping {
    process: Arc<Process>,
    addr: VirtAddr,
}

/// Finds every mapping of a frame by looking through the page tables of all processes.
fn mappings(pfn: Pfn) -> Vec<Mapping> {
    let mut found = Vec::new();
    for process in process::all() {
        let Some(space) = process.space() else { continue };
        let mut areas: Vec<VirtRange> = Vec::new();
        let _ = mm().for_each_vma(&space, &mut |vma| {
            areas.push(vma.range);
            ControlFlow::Continue(())
        });
        let pages = areas
            .iter()
            .flat_map(|area| (0..area.nr_pages()).map(|page| area.start() + page * PAGE_BYTES));
        found.extend(
            pages
                .filter(|&addr| maps_to(mm::report::pagemap(mm(), &space, addr), pfn))
                .map(|addr| Mapping {
                    process: Arc::clone(&process),
                    addr,
                }),
        );
    }
    found
}

fn maps_to(word: u64, pfn: Pfn) -> bool {
    has(word, pm::PRESENT) && word & ((1 << pm::PFN_BITS) - 1) == u64::from(pfn.raw())
}

/// `page PFN`.
pub fn page(pfn: Pfn) {
    let flags = mm::report::kpageflags(mm(), pfn);
    say!("pfn {pfn}: physical {:#x}", pfn.start().as_u64());
    say!("kpageflags {flags:#012x} {}", names(flags));
    say!("kpagecount {}", mm::report::kpagecount(mm(), pfn));
    // The terminal never fails.
    let _ = mm::report::dump_page(mm(), pfn, "the monitor was asked", &mut Console);
    let mappings = mappings(pfn);
    if mappings.is_empty() {
        say!("no process maps it");
    }
    for Mapping { process, addr } in mappings {
        let mut line = String::new();
        let Some(space) = process.space() else { continue };
        if mm::report::leaf(mm(), &space, addr, &mut line).is_ok_and(|found| found) {
            let _ = write!(Console, "{process:?} at {line}");
        }
    }
}

/// `split PFN`: every mapping of the huge page that the frame belongs to.
pub fn split_frame(pfn: Pfn) {
    let mappings = mappings(pfn);
    if mappings.is_empty() {
        say!("split: no process maps frame {pfn}");
    }
    for Mapping { process, addr } in mappings {
        split_address(&process, addr);
    }
}

/// `split PID ADDRESS`.
pub fn split_address(process: &Process, addr: VirtAddr) {
    let Some(space) = process.space() else {
        say!("split: {process:?} has ended");
        return;
    };
    let before = mm().count(mm::Counter::ThpSplitPmd);
    mm().split_huge_pmd(&space, addr);
    let start = addr.align_down(PMD_SIZE).as_u64();
    if mm().count(mm::Counter::ThpSplitPmd) > before {
        say!("{process:?} at {start:#x}: the PMD mapping is now a table of 512 PTEs");
    } else {
        say!("{process:?} at {start:#x}: not mapped by a huge PMD entry; nothing was changed");
    }
}

/// `check`.
pub fn check() {
    say!("checking {} frames ...", mm().platform().frames());
    let spaces: Vec<Space> = process::all()
        .iter()
        .filter_map(|process| process.space())
        .collect();
    let spaces: Vec<&AddressSpace> = spaces.iter().map(|space| &**space).collect();
    match check::check(&spaces) {
        Ok(()) => say!("all of memory is in order"),
        Err(what) => say!("check: {what}"),
    }
}
