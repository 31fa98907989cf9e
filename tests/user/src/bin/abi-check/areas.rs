//! Areas: moved, advised, locked and limited; and what bad ranges get, which change nothing.

use std::{fs, io};

use user::{
    HUGE, PAGE,
    mapping::Mapping,
    proc::{self, PageWords},
};

use crate::{Verdict, syscall};

const PAGE_LEN: u64 = PAGE as u64;
const RW: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;
const MAYMOVE: u64 = libc::MREMAP_MAYMOVE as u64;
const FIXED: u64 = libc::MREMAP_FIXED as u64;
const DONTUNMAP: u64 = 4;
const SOFT_DIRTY: u64 = 1 << 55;
const SPLIT: &str = "/sys/kernel/debug/split_huge_pages";

/// Checks all of it.
pub(crate) fn check(_: &[String]) -> Verdict {
    let mut verdict = Verdict::default();
    if let Err(error) = all(&mut verdict) {
        verdict.holds(&format!("no call fails: {error}"), false);
    }
    verdict
}

fn all(verdict: &mut Verdict) -> io::Result<()> {
    bad_ranges(verdict)?;
    moves(verdict)?;
    pieces_side_by_side(verdict)?;
    advice(verdict)?;
    children(verdict)?;
    locking(verdict)?;
    written_pages(verdict)?;
    limits(verdict)
}

fn call(number: i64, args: [u64; 5]) -> Result<u64, i32> {
    let [a, b, c, d, e] = args;
    syscall(number, [a, b, c, d, e, 0])
}

fn mremap(addr: u64, old: u64, new: u64, flags: u64, to: u64) -> Result<u64, i32> {
    call(libc::SYS_mremap, [addr, old, new, flags, to])
}

fn madvise(addr: u64, len: u64, advice: u64) -> Result<u64, i32> {
    call(libc::SYS_madvise, [addr, len, advice, 0, 0])
}

/// The areas that begin in `start..end`, with what they have in memory.
fn areas(start: u64, end: u64) -> io::Result<String> {
    let text = fs::read_to_string("/proc/self/smaps")?;
    let begin = |line: &str| {
        let (start, _) = line.split_once(' ')?.0.split_once('-')?;
        u64::from_str_radix(start, 16).ok()
    };
    let mut inside = false;
    let lines = text.lines().filter(|line| {
        if let Some(at) = begin(line) {
            inside = (start..end).contains(&at);
        }
        inside
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

fn field(text: &str, name: &str) -> Vec<u64> {
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    lines
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect()
}

/// Far below where the kernel puts mappings by itself, so that nothing else comes into a hole there.
const SANDBOX: usize = 0x10_0000_0000;

/// Sixteen pages: twelve written, two gone, two that may only be read.
fn sandbox() -> io::Result<Mapping> {
    let area = Mapping::placed(SANDBOX, 16 * PAGE)?;
    area.advise(0..16 * PAGE, libc::MADV_NOHUGEPAGE)?;
    area.touch();
    area.protect(14 * PAGE..16 * PAGE, libc::PROT_READ)?;
    area.unmap(12 * PAGE..14 * PAGE)?;
    Ok(area)
}

fn bad_ranges(verdict: &mut Verdict) -> io::Result<()> {
    let area = sandbox()?;
    let base = area.addr() as u64;
    let (page, all) = (PAGE_LEN, 16 * PAGE_LEN);
    let hole = base + 12 * page;
    let (kernel, wraps) = (1 << 63, u64::MAX - 5 * page + 1);
    let top = 0x7fff_ffff_f000;
    let before = areas(base, base + all)?;
    let (remap, advise, protect, unmap) = (
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_mprotect,
        libc::SYS_munmap,
    );
    let (lock, lock2, lock_all) = (libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_mlockall);
    let unlock = libc::SYS_munlock;
    let free = u64::from(libc::MADV_FREE.cast_unsigned());
    let (invalid, fault, no_memory) = (libc::EINVAL, libc::EFAULT, libc::ENOMEM);
    let move_fixed = MAYMOVE | FIXED;
    let cases = [
        (
            "mremap: unaligned",
            remap,
            [base + 1, page, 2 * page, MAYMOVE, 0],
            invalid,
        ),
        (
            "mremap: flags nobody knows",
            remap,
            [base, page, page, 8, 0],
            invalid,
        ),
        (
            "mremap: flags in the upper half",
            remap,
            [base, page, page, 1 << 40, 0],
            invalid,
        ),
        (
            "mremap: fixed but not to move",
            remap,
            [base, page, page, FIXED, hole],
            invalid,
        ),
        (
            "mremap: left behind but not to move",
            remap,
            [base, page, page, DONTUNMAP, 0],
            invalid,
        ),
        (
            "mremap: left behind and resized",
            remap,
            [base, page, 2 * page, MAYMOVE | DONTUNMAP, 0],
            invalid,
        ),
        ("mremap: to nothing", remap, [base, page, 0, MAYMOVE, 0], invalid),
        (
            "mremap: to a length that wraps",
            remap,
            [base, page, u64::MAX, MAYMOVE, 0],
            invalid,
        ),
        (
            "mremap: from no length",
            remap,
            [base, 0, page, MAYMOVE, 0],
            invalid,
        ),
        (
            "mremap: from a hole",
            remap,
            [hole, page, 2 * page, MAYMOVE, 0],
            fault,
        ),
        (
            "mremap: from the kernel",
            remap,
            [kernel, page, 2 * page, MAYMOVE, 0],
            fault,
        ),
        (
            "mremap: over a hole",
            remap,
            [base, 13 * page, 14 * page, MAYMOVE, 0],
            fault,
        ),
        (
            "mremap: over two areas",
            remap,
            [base + 13 * page, 3 * page, 4 * page, MAYMOVE, 0],
            fault,
        ),
        (
            "mremap: no room and not to move",
            remap,
            [base, 4 * page, 6 * page, 0, 0],
            no_memory,
        ),
        (
            "mremap: enormous",
            remap,
            [base, 12 * page, 0x7fff_0000_0000, MAYMOVE, 0],
            no_memory,
        ),
        (
            "mremap: to an unaligned place",
            remap,
            [base, page, page, move_fixed, hole + 1],
            invalid,
        ),
        (
            "mremap: onto itself",
            remap,
            [base, page, page, move_fixed, base],
            invalid,
        ),
        (
            "mremap: onto its second half",
            remap,
            [base, 4 * page, 4 * page, move_fixed, base + 2 * page],
            invalid,
        ),
        (
            "mremap: onto what is before it",
            remap,
            [base + page, 4 * page, 4 * page, move_fixed, base],
            invalid,
        ),
        (
            "mremap: past the end",
            remap,
            [base, 2 * page, 2 * page, move_fixed, top - page],
            invalid,
        ),
        (
            "mremap: into the kernel",
            remap,
            [base, page, page, move_fixed, kernel],
            invalid,
        ),
        ("munmap: unaligned", unmap, [base + 1, page, 0, 0, 0], invalid),
        ("munmap: nothing", unmap, [base, 0, 0, 0, 0], invalid),
        (
            "munmap: a length that wraps",
            unmap,
            [base, u64::MAX, 0, 0, 0],
            invalid,
        ),
        (
            "munmap: a range that wraps",
            unmap,
            [wraps, 6 * page, 0, 0, 0],
            invalid,
        ),
        (
            "munmap: past the end",
            unmap,
            [top - page, 3 * page, 0, 0, 0],
            invalid,
        ),
        (
            "mprotect: unaligned",
            protect,
            [base + 1, page, RW, 0, 0],
            invalid,
        ),
        (
            "mprotect: rights nobody knows",
            protect,
            [base, page, 0x40, 0, 0],
            invalid,
        ),
        (
            "mprotect: growing up and down",
            protect,
            [base, page, 0x0300_0000 | RW, 0, 0],
            invalid,
        ),
        (
            "mprotect: a length that wraps",
            protect,
            [base, u64::MAX - page, RW, 0, 0],
            no_memory,
        ),
        ("mprotect: a hole", protect, [hole, page, RW, 0, 0], no_memory),
        (
            "madvise: unaligned",
            advise,
            [base + 1, page, free, 0, 0],
            invalid,
        ),
        (
            "madvise: a length that wraps",
            advise,
            [base, u64::MAX, free, 0, 0],
            invalid,
        ),
        (
            "madvise: a range that wraps",
            advise,
            [wraps, 6 * page, free, 0, 0],
            invalid,
        ),
        ("madvise: a hole", advise, [hole, page, free, 0, 0], no_memory),
        (
            "madvise: the kernel",
            advise,
            [kernel, page, free, 0, 0],
            no_memory,
        ),
        (
            "madvise: advice nobody knows",
            advise,
            [base, page, 77, 0, 0],
            invalid,
        ),
        (
            "madvise: remove what has no file",
            advise,
            [base, page, 9, 0, 0],
            invalid,
        ),
        (
            "madvise: populate what may not be written",
            advise,
            [base + 14 * page, page, 23, 0, 0],
            invalid,
        ),
        (
            "madvise: populate a hole",
            advise,
            [hole, page, 23, 0, 0],
            no_memory,
        ),
        ("mlock: a hole", lock, [hole, page, 0, 0, 0], no_memory),
        ("mlock: the kernel", lock, [kernel, page, 0, 0, 0], no_memory),
        (
            "mlock: a range that wraps",
            lock,
            [wraps, 6 * page, 0, 0, 0],
            invalid,
        ),
        (
            "mlock2: flags nobody knows",
            lock2,
            [base, page, 2, 0, 0],
            invalid,
        ),
        ("munlock: a hole", unlock, [hole, page, 0, 0, 0], no_memory),
        ("mlockall: nothing", lock_all, [0, 0, 0, 0, 0], invalid),
        ("mlockall: on fault alone", lock_all, [4, 0, 0, 0, 0], invalid),
        ("mlockall: flags nobody knows", lock_all, [8, 0, 0, 0, 0], invalid),
    ];
    for (name, number, args, expected) in cases {
        verdict.equal(name, call(number, args), Err(expected));
        // One comparison per call: the first that changes something is named.
        if areas(base, base + all)? != before {
            verdict.holds(&format!("{name}: nothing has changed"), false);
            break;
        }
    }
    for (name, number, args) in [
        ("mprotect: nothing", protect, [base, 0, RW, 0, 0]),
        ("madvise: nothing", advise, [base, 0, free, 0, 0]),
        ("mlock: nothing", lock, [base, 0, 0, 0, 0]),
        (
            "mlock: a length that wraps to nothing",
            lock,
            [base, u64::MAX, 0, 0, 0],
        ),
        (
            "mremap: to the same length",
            remap,
            [base, 12 * page, 12 * page, 0, 0],
        ),
    ] {
        verdict.holds(name, call(number, args).is_ok());
    }
    verdict.equal(
        "all of that has changed nothing",
        areas(base, base + all)?,
        before,
    );
    verdict.equal("and no byte", area.first_damage(0..12 * PAGE), None);
    Ok(())
}

/// Row T27.2: a piece of each of four huge pages, in neighbouring addresses, split through there.
fn pieces_side_by_side(verdict: &mut Verdict) -> io::Result<()> {
    let pages = Mapping::huge_aligned(4 * HUGE)?;
    pages.advise(0..4 * HUGE, libc::MADV_HUGEPAGE)?;
    pages.touch();
    let base = pages.addr() as u64;
    let stamps: Vec<u8> = (0..4).map(|i| pages.read(i * (HUGE + PAGE))).collect();
    for i in 1..4 {
        let from = base + i * (HUGE as u64 + PAGE_LEN);
        let moved = mremap(from, PAGE_LEN, PAGE_LEN, MAYMOVE | FIXED, base + i * PAGE_LEN);
        verdict.equal("T27.2: a piece is moved", moved, Ok(base + i * PAGE_LEN));
    }
    let now = |pages: &Mapping| (0..4).map(|i| pages.read(i * PAGE)).collect::<Vec<u8>>();
    verdict.equal("T27.2: the bytes are side by side", now(&pages), stamps.clone());
    let huge = |pages: &Mapping| -> io::Result<Option<usize>> {
        let flags = PageWords::open("/proc/kpageflags");
        let frames = proc::frames(pages.addr(), 4)?;
        let (Ok(flags), [Some(1..), ..]) = (flags, frames.as_slice()) else {
            return Ok(None);
        };
        let words = frames
            .iter()
            .map(|frame| flags.read(frame.unwrap_or(0), 1))
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Some(words.iter().filter(|word| word[0] >> 22 & 1 == 1).count()))
    };
    let Some(of_four) = huge(&pages)? else {
        println!("       (page states cannot be read by this user)");
        return Ok(());
    };
    verdict.equal("T27.2: each is part of a huge page", of_four, 4);
    let command = format!("{},{base:#x},{:#x}\n", std::process::id(), base + 4 * PAGE_LEN);
    if fs::write(SPLIT, command).is_err() {
        println!("       (huge pages cannot be split by this user)");
        return Ok(());
    }
    verdict.equal("T27.2: none is part of one any more", huge(&pages)?, Some(0));
    verdict.equal("T27.2: the bytes are intact", now(&pages), stamps);
    Ok(())
}

fn moves(verdict: &mut Verdict) -> io::Result<()> {
    let split = || proc::vmstat("thp_split_pmd");
    let huge = Mapping::huge_aligned(4 * HUGE)?;
    huge.advise(0..4 * HUGE, libc::MADV_HUGEPAGE)?;
    let (base, len) = (huge.addr() as u64, HUGE as u64);
    (0..HUGE).step_by(PAGE).for_each(|offset| huge.write(offset, 7));
    let before = split()?;
    let moved = mremap(base, len, len, MAYMOVE | FIXED, base + 2 * len);
    verdict.equal("a huge page moves", moved, Ok(base + 2 * len));
    verdict.equal("as one", split()?, before);
    let kb = field(&areas(base + 2 * len, base + 3 * len)?, "AnonHugePages");
    verdict.equal("and is still mapped by a PMD", kb, vec![2048]);
    let bytes = (2 * HUGE..3 * HUGE)
        .step_by(PAGE)
        .all(|offset| huge.read(offset) == 7);
    verdict.holds("with all its bytes", bytes);
    verdict.equal("where it was is a hole", madvise(base, len, 0), Err(libc::ENOMEM));
    let back = base + 2 * len;
    let left = mremap(back, len, len, MAYMOVE | FIXED | DONTUNMAP, base);
    verdict.equal("it moves and leaves its area behind", left, Ok(base));
    verdict.equal("which is empty", huge.read(2 * HUGE), 0);
    verdict.equal("the page is not", huge.read(5 * PAGE), 7);
    let middle = mremap(base + PAGE_LEN, 3 * PAGE_LEN, 5 * PAGE_LEN, MAYMOVE, 0);
    verdict.holds("the middle of it grows elsewhere", middle.is_ok());
    verdict.equal("which splits the mapping", split()?, before + 1);
    let smaller = mremap(base + 8 * PAGE_LEN, 8 * PAGE_LEN, PAGE_LEN, 0, 0);
    verdict.equal("part of it shrinks", smaller, Ok(base + 8 * PAGE_LEN));
    let hole = madvise(base + 9 * PAGE_LEN, PAGE_LEN, 0);
    verdict.equal("by a hole", hole, Err(libc::ENOMEM));
    let grown = mremap(base + 8 * PAGE_LEN, PAGE_LEN, 8 * PAGE_LEN, 0, 0);
    verdict.equal("which it grows over again", grown, Ok(base + 8 * PAGE_LEN));
    verdict.equal("with zeroes", huge.read(9 * PAGE), 0);
    if let Ok(middle) = middle {
        call(libc::SYS_munmap, [middle, 5 * PAGE_LEN, 0, 0, 0]).map_err(io::Error::from_raw_os_error)?;
    }
    Ok(())
}

fn advice(verdict: &mut Verdict) -> io::Result<()> {
    let page = Mapping::huge_aligned(HUGE)?;
    page.advise(0..HUGE, libc::MADV_HUGEPAGE)?;
    let (base, len) = (page.addr() as u64, HUGE as u64);
    verdict.equal("memory is populated", madvise(base, len, 23), Ok(0));
    let kb = |name| areas(base, base + len).map(|text| field(&text, name).iter().sum::<u64>());
    verdict.equal("by a huge page", kb("AnonHugePages")?, 2048);
    page.touch();
    let split = proc::vmstat("thp_split_page")?;
    page.advise(16 * PAGE..32 * PAGE, libc::MADV_FREE)?;
    // Linux marks pages in batches, and may not have begun.
    verdict.holds("a part is freed lazily", matches!(kb("LazyFree")?, 0..=64));
    verdict.equal(
        "which splits the page",
        proc::vmstat("thp_split_page")?,
        split + 1,
    );
    verdict.equal("it is still there", page.first_damage(0..HUGE), None);
    page.write(20 * PAGE, 9);
    verdict.holds("what is written is kept", matches!(kb("LazyFree")?, 0..=60));
    page.advise(0..HUGE, 21)?;
    let gone = (16..32).filter(|&i| page.read(i * PAGE) == 0).count();
    verdict.equal("the rest can be dropped", gone, 15);
    verdict.equal("and nothing else", page.first_damage(32 * PAGE..HUGE), None);
    page.advise(32 * PAGE..HUGE, 20)?;
    verdict.equal("cold memory is there", page.first_damage(32 * PAGE..HUGE), None);
    page.advise(0..PAGE, libc::MADV_RANDOM)?;
    let flags = areas(base, base + PAGE_LEN)?;
    verdict.holds("advice shows", flags.lines().any(|line| line.contains(" rr ")));
    page.advise(0..PAGE, libc::MADV_NORMAL)?;
    let text = areas(base, base + len)?;
    verdict.equal("and is taken back", field(&text, "Size"), vec![2048]);
    Ok(())
}

fn children(verdict: &mut Verdict) -> io::Result<()> {
    let area = sandbox()?;
    area.advise(0..PAGE, libc::MADV_WIPEONFORK)?;
    area.advise(2 * PAGE..3 * PAGE, libc::MADV_DONTFORK)?;
    area.advise(4 * PAGE..5 * PAGE, libc::MADV_DONTFORK)?;
    area.advise(4 * PAGE..5 * PAGE, libc::MADV_DOFORK)?;
    // SAFETY: the program has one thread, and the child only looks and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let there = |page: usize| madvise((area.addr() + page * PAGE) as u64, PAGE_LEN, 0).is_ok();
        let found = [
            area.read(0) == 0,
            area.read(PAGE) == 2,
            !there(2),
            there(4) && area.read(4 * PAGE) == 5,
        ];
        let broken = found.iter().filter(|&&holds| !holds).count();
        // SAFETY: ends this process alone.
        unsafe { libc::_exit(i32::try_from(broken).unwrap_or(99)) }
    }
    let mut status = -1;
    // SAFETY: its own child; the status is a place of ours.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    verdict.equal("a child finds what advice lets it", status, 0);
    verdict.equal("the parent finds all", area.first_damage(0..12 * PAGE), None);
    Ok(())
}

/// VmLck in kB.
fn locked() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    Ok(field(&text, "VmLck").iter().sum())
}

fn locking(verdict: &mut Verdict) -> io::Result<()> {
    let area = Mapping::placed(SANDBOX, 16 * PAGE)?;
    area.advise(0..16 * PAGE, libc::MADV_NOHUGEPAGE)?;
    let base = area.addr() as u64;
    let before = locked()?;
    let lock = call(libc::SYS_mlock, [base + 5, 4 * PAGE_LEN - 6, 0, 0, 0]);
    verdict.equal("mlock: from page to page", lock, Ok(0));
    verdict.equal("mlock: VmLck", locked()? - before, 16);
    // The machine's pages: others lock some too, and Linux counts in batches.
    verdict.holds("mlock: meminfo counts them", proc::meminfo_kb("Mlocked").is_ok());
    let text = areas(base, base + PAGE_LEN)?;
    verdict.holds(
        "mlock: shows in smaps",
        text.contains(" lo ") && field(&text, "Locked") == [16],
    );
    verdict.equal(
        "mlock: what is locked stays",
        madvise(base, PAGE_LEN, 4),
        Err(libc::EINVAL),
    );
    verdict.equal("mlock: unless that is meant", madvise(base, PAGE_LEN, 24), Ok(0));
    let on_fault = call(libc::SYS_mlock2, [base + 8 * PAGE_LEN, 4 * PAGE_LEN, 1, 0, 0]);
    verdict.equal("mlock2: on fault", on_fault, Ok(0));
    let text = areas(base + 8 * PAGE_LEN, base + 9 * PAGE_LEN)?;
    verdict.equal("mlock2: nothing is there", field(&text, "Rss"), vec![0]);
    let all = call(libc::SYS_munlockall, [0; 5]);
    verdict.equal("munlockall", (all, locked()?), (Ok(0), 0));
    verdict.equal(
        "munlockall: the areas are one",
        field(&areas(base, base + 1)?, "Size"),
        vec![64],
    );
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
    let locked_area = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4 * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_LOCKED,
            -1,
            0,
        )
    };
    verdict.equal("MAP_LOCKED", locked()?, 16);
    // SAFETY: mapped just now, and used by nobody.
    unsafe { libc::munmap(locked_area, 4 * PAGE) };
    verdict.equal("and gone", locked()?, 0);
    Ok(())
}

fn written_pages(verdict: &mut Verdict) -> io::Result<()> {
    let area = sandbox()?;
    let soft = || -> io::Result<Vec<usize>> {
        let words = PageWords::open("/proc/self/pagemap")?.read((area.addr() / PAGE) as u64, 16)?;
        Ok((0..16).filter(|&i| words[i] & SOFT_DIRTY != 0).collect())
    };
    for bad in ["0", "6", "-1", "x", ""] {
        let found = fs::write("/proc/self/clear_refs", bad).map_err(|error| error.raw_os_error());
        let expected = if bad.is_empty() {
            Ok(())
        } else {
            Err(Some(libc::EINVAL))
        };
        verdict.equal(&format!("clear_refs: {bad:?}"), found, expected);
    }
    if soft()?.is_empty() {
        println!("       (this kernel does not track what is written)");
        return Ok(());
    }
    verdict.equal("soft-dirty: new areas are", soft()?.len(), 14);
    fs::write("/proc/self/clear_refs", "4\n")?;
    verdict.equal("soft-dirty: nothing is, once cleared", soft()?, vec![]);
    let flags = areas(area.addr() as u64, area.addr() as u64 + 1)?;
    verdict.holds("soft-dirty: smaps says so", !flags.contains(" sd "));
    area.write(3 * PAGE, 4);
    let _ = area.read(5 * PAGE);
    verdict.equal("soft-dirty: what is written", soft()?, vec![3]);
    fs::write("/proc/self/clear_refs", "1")?;
    let text = areas(area.addr() as u64, area.addr() as u64 + 1)?;
    verdict.equal(
        "clear_refs: nothing was used",
        field(&text, "Referenced"),
        vec![0],
    );
    fs::write("/proc/self/clear_refs", "5")?;
    verdict.equal("no byte has changed", area.first_damage(0..12 * PAGE), None);
    Ok(())
}

fn set_limit(resource: i32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the structure is ours.
    let result = unsafe { libc::setrlimit(resource, &raw const limit) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn status_kb(name: &str) -> io::Result<u64> {
    Ok(field(&fs::read_to_string("/proc/self/status")?, name)
        .first()
        .copied()
        .unwrap_or(0))
}

fn raw_map(pages: u64, prot: i32, flags: i32) -> Result<u64, i32> {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let [prot, flags] = [prot, flags].map(|bits| u64::from(bits.cast_unsigned()));
    syscall(libc::SYS_mmap, [0, pages * PAGE_LEN, prot, flags, u64::MAX, 0])
}

/// Row T14.6, and its neighbours: each limit holds for what it is about.
fn limits(verdict: &mut Verdict) -> io::Result<()> {
    let no_memory = Err(libc::ENOMEM);
    let (read, write) = (libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE);
    let infinity = libc::RLIM_INFINITY;
    let mut mapped = Vec::new();
    // Room for what this program's own heap may need meanwhile.
    let data = (status_kb("VmData")? + 1024) * 1024;
    set_limit(libc::RLIMIT_DATA, data, infinity)?;
    let too_much = raw_map(1024, write, 0);
    let no_data = raw_map(1024, read, 0);
    let stack = raw_map(1024, write, libc::MAP_GROWSDOWN);
    let turned = no_data.map(|addr| call(libc::SYS_mprotect, [addr, 1024 * PAGE_LEN, RW, 0, 0]));
    let grown = raw_map(1, write, 0);
    let larger = grown.map(|addr| mremap(addr, PAGE_LEN, 1024 * PAGE_LEN, MAYMOVE, 0));
    set_limit(libc::RLIMIT_DATA, infinity, infinity)?;
    verdict.equal("T14.6: data past RLIMIT_DATA", too_much, no_memory);
    verdict.holds("T14.6: read-only memory is no data", no_data.is_ok());
    verdict.holds("T14.6: a stack is no data", stack.is_ok());
    verdict.equal("T14.6: until it becomes data", turned, Ok(no_memory));
    verdict.equal("T14.6: or grows", larger, Ok(no_memory));
    mapped.extend([no_data, stack].into_iter().flatten().map(|addr| (addr, 1024)));
    mapped.extend(grown.ok().map(|addr| (addr, 1)));
    let size = (status_kb("VmSize")? + 1024) * 1024;
    set_limit(libc::RLIMIT_AS, size, infinity)?;
    let too_large = raw_map(1024, read, 0);
    let fits = raw_map(16, read, 0);
    set_limit(libc::RLIMIT_AS, infinity, infinity)?;
    verdict.equal("memory past RLIMIT_AS", too_large, no_memory);
    verdict.holds("memory within it", fits.is_ok());
    mapped.extend(fits.ok().map(|addr| (addr, 16)));
    let peak = status_kb("VmPeak")?;
    verdict.holds("VmPeak is no less than VmSize", peak >= status_kb("VmSize")?);
    for (addr, pages) in mapped {
        call(libc::SYS_munmap, [addr, pages * PAGE_LEN, 0, 0, 0]).map_err(io::Error::from_raw_os_error)?;
    }
    verdict.equal("VmPeak stays", status_kb("VmPeak")?, peak);
    verdict.holds(
        "VmHWM is no less than VmRSS",
        status_kb("VmHWM")? >= status_kb("VmRSS")?,
    );
    Ok(())
}
