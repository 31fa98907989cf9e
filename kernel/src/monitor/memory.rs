//! Commands that show memory.

use alloc::{string::String, vec::Vec};
use core::fmt;

use linux_abi::page::kpf;
use mm::{
    AddressSpace, ENTRIES, PAGE_BYTES, PMD_ORDER, PMD_SIZE, PageFlags, Pfn, Platform, VirtAddr,
    folio::Folio,
    rmap::{MappedBy, Mapping},
    split_folio::SplitError,
};

use super::{Console, say};
use crate::{
    check,
    platform::mm,
    task::{
        process::{self, Process},
        space::Space,
    },
    thp::{self, Dropped, Refusal},
    vfs::pipe,
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
        |pfn| mm::report::kpageflags_with_double_map(mm(), pfn),
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

/// Neighbouring entries of one process that map a folio in the same way.
struct MappedRun {
    root: Pfn,
    by: MappedBy,
    start: VirtAddr,
    /// Entries.
    count: u64,
}

/// Most runs that are listed: of a folio of 512 pages, two processes' worth in the worst case.
const RUNS_MAX: usize = 1024;

impl MappedRun {
    fn entry_bytes(&self) -> u64 {
        if self.by == MappedBy::Pmd {
            PMD_SIZE
        } else {
            PAGE_BYTES
        }
    }

    fn is_followed_by(&self, next: &Mapping) -> bool {
        (self.root, self.by) == (next.root, next.by)
            && self.start + self.count * self.entry_bytes() == next.addr
    }

    fn show(&self) {
        let owner = process::all()
            .into_iter()
            .find(|process| process.space().is_some_and(|space| space.root() == self.root));
        // The tables may belong to a process that is just ending.
        let owner = owner.map_or_else(
            || alloc::format!("tables at pfn {}", self.root),
            |process| alloc::format!("{process:?}"),
        );
        let (start, count) = (self.start.as_u64(), self.count);
        match self.by {
            MappedBy::Pmd => say!("  {owner}: {start:#x} by PMD"),
            MappedBy::Pte => say!("  {owner}: {start:#x} and on by {count} PTEs"),
            MappedBy::Migration => say!("  {owner}: {start:#x} and on, {count} entries: being moved"),
        }
    }
}

/// Lists every entry that maps the folio, as rmap finds them; returns how many hold a reference to it.
fn list_mappings(folio: &Folio<'_>) -> u64 {
    // Table locks are held while entries are visited, so the list gets its room before.
    let mut runs: Vec<MappedRun> = Vec::with_capacity(RUNS_MAX);
    let (mut missed, mut holding) = (0_u64, 0_u64);
    mm().for_each_mapping(folio.page(), &mut |mapping| {
        holding += u64::from(mapping.by != MappedBy::Migration);
        if let Some(last) = runs.last_mut().filter(|last| last.is_followed_by(&mapping)) {
            last.count += 1;
        } else if runs.len() < RUNS_MAX {
            runs.push(MappedRun {
                root: mapping.root,
                by: mapping.by,
                start: mapping.addr,
                count: 1,
            });
        } else {
            missed += 1;
        }
    });
    if runs.is_empty() {
        say!("no process maps it");
    }
    runs.iter().for_each(MappedRun::show);
    if missed > 0 {
        say!("  and {missed} more entries");
    }
    holding
}

/// Says whose the references to the folio are, as far as anybody keeps account of them.
fn list_holders(folio: &Folio<'_>, entries: u64) {
    let head = folio.page();
    let refs = u64::from(head.refs_hint());
    let mut pinned = 0;
    say!("references: {refs}");
    say!("  {entries} of entries");
    pipe::for_each_pinned(&mut |pfn, references| {
        if mm().pages().page(pfn).head().pfn() == head.pfn() {
            say!("  {references} of a pipe, which holds pfn {pfn}");
            pinned += u64::from(references);
        }
    });
    say!("  1 of this command");
    let unknown = refs.saturating_sub(entries + pinned + 1);
    if unknown > 0 {
        say!("  {unknown} of somebody else: a system call that is under way");
    }
    let flags = head.state().flags();
    for (flag, text) in [
        (PageFlags::LOCKED, "it is locked"),
        (PageFlags::QUEUED, "it waits on the deferred split queue"),
    ] {
        if flags.contains(flag) {
            say!("{text}");
        }
    }
    if head.is_anon() && !flags.contains(PageFlags::LRU) {
        say!("it is on no LRU list: somebody has taken it off to move it");
    }
}

/// The frame that a process has mapped at `addr`.
pub fn mapped_frame(process: &Process, addr: VirtAddr) -> Option<Pfn> {
    thp::mapped_frame(&*process.space()?, addr)
}

/// `page PFN`.
pub fn page(pfn: Pfn) {
    let flags = mm::report::kpageflags_with_double_map(mm(), pfn);
    say!("pfn {pfn}: physical {:#x}", pfn.start().as_u64());
    say!("kpageflags {flags:#012x} {}", names(flags));
    say!("kpagecount {}", mm::report::kpagecount(mm(), pfn));
    // The terminal never fails.
    let _ = mm::report::dump_page(mm(), pfn, "the monitor was asked", &mut Console);
    let Some(folio) = mm().pages().get(pfn).and_then(|page| mm().try_get(page.head())) else {
        say!("nobody holds it");
        return;
    };
    let entries = list_mappings(&folio);
    list_holders(&folio, entries);
    if folio.page().compound_order() == PMD_ORDER {
        match mm().split_hindrance(folio.page()) {
            None => say!("it could be split"),
            Some(error) => say!("a split would fail: {}", Why(Refusal::Split(error))),
        }
    }
    mm().put(folio);
}

/// A refusal in words.
struct Why(Refusal);

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Refusal::NotHuge | Refusal::Split(SplitError::NotHuge) => {
                f.write_str("the frame is not part of a huge page")
            }
            Refusal::Gone => f.write_str("nobody holds the page"),
            Refusal::Locked => f.write_str("somebody has the page locked"),
            Refusal::Split(SplitError::Busy) => f.write_str("nothing maps it, or it is the zero page"),
            Refusal::Split(SplitError::Pinned { expected, found }) => write!(
                f,
                "it has {found} references, and its mappings and the asker account for {expected}: somebody uses its frames"
            ),
        }
    }
}

/// `split PFN`: the huge page that the frame belongs to, into base pages.
pub fn split_frame(pfn: Pfn) {
    match thp::split_frame(pfn) {
        Ok(()) => say!("split: the huge page of frame {pfn} is 512 base pages now"),
        Err(refusal) => say!("split: {}", Why(refusal)),
    }
}

/// `shrink`.
pub fn shrink() {
    let Dropped {
        scanned,
        split,
        zero_pages,
    } = thp::drop_reclaimable();
    say!(
        "deferred queue: {split} of {scanned} huge pages split, {} wait",
        mm().nr_deferred_splits()
    );
    say!("huge zero page: {zero_pages} pages given back");
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
    let mut spaces = spaces;
    // A guest runs in the memory of its parent.
    spaces.sort_by_key(|space| space.root().start());
    spaces.dedup_by_key(|space| space.root().start());
    let spaces: Vec<&AddressSpace> = spaces.iter().map(|space| &**space).collect();
    match check::check(&spaces) {
        Ok(()) => say!("all of memory is in order"),
        Err(what) => say!("check: {what}"),
    }
}
