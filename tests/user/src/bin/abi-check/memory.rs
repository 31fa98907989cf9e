//! Memory: rules of the calls, and the counters that huge pages move.

use std::ops::Range;

use user::{
    HUGE, PAGE,
    mapping::Mapping,
    proc::{self, PageWords},
};

use crate::{Verdict, syscall};

const RW: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;
const ANON: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
const NO_FD: u64 = u64::MAX;

fn mmap(addr: u64, len: u64, prot: u64, flags: u64) -> Result<u64, i32> {
    syscall(libc::SYS_mmap, [addr, len, prot, flags, NO_FD, 0])
}

fn munmap(addr: u64, len: u64) -> Result<u64, i32> {
    syscall(libc::SYS_munmap, [addr, len, 0, 0, 0, 0])
}

fn mprotect(addr: u64, len: u64, prot: u64) -> Result<u64, i32> {
    syscall(libc::SYS_mprotect, [addr, len, prot, 0, 0, 0])
}

fn madvise(addr: u64, len: u64, advice: i32) -> Result<u64, i32> {
    syscall(
        libc::SYS_madvise,
        [addr, len, advice.cast_unsigned().into(), 0, 0, 0],
    )
}

/// Checks all of it.
pub(crate) fn check(_: &[String]) -> Verdict {
    let mut verdict = Verdict::default();
    arguments(&mut verdict);
    places(&mut verdict);
    contents(&mut verdict);
    heap(&mut verdict);
    partial_unmap(&mut verdict);
    split_twice(&mut verdict);
    rights_survive_a_split(&mut verdict);
    verdict
}

fn arguments(verdict: &mut Verdict) {
    let flags = u64::from(libc::MAP_FIXED.cast_unsigned());
    let invalid = Err(libc::EINVAL);
    let no_memory = Err(libc::ENOMEM);
    verdict.equal("mmap of nothing", mmap(0, 0, RW, ANON), invalid);
    verdict.equal("mmap of too much", mmap(0, 1 << 47, RW, ANON), no_memory);
    verdict.equal(
        "mmap of a length that wraps",
        mmap(0, u64::MAX, RW, ANON),
        no_memory,
    );
    verdict.equal(
        "mmap neither private nor shared",
        mmap(0, 4096, RW, 0x20),
        invalid,
    );
    verdict.equal(
        "mmap at a fixed place off the page grid",
        mmap(0x10_0001, 4096, RW, ANON | flags),
        invalid,
    );
    verdict.equal(
        "mmap at a fixed place in the kernel",
        mmap(1 << 63, 4096, RW, ANON | flags),
        no_memory,
    );
    let odd_offset = syscall(libc::SYS_mmap, [0, 4096, RW, ANON, NO_FD, 1]);
    verdict.equal("mmap with an offset off the page grid", odd_offset, invalid);
    let bad_fd = syscall(libc::SYS_mmap, [0, 4096, RW, libc::MAP_PRIVATE as u64, 99, 0]);
    verdict.equal("mmap of a file that is not open", bad_fd, Err(libc::EBADF));
    verdict.equal("munmap of nothing", munmap(0x10_0000, 0), invalid);
    verdict.equal("munmap off the page grid", munmap(0x10_0001, 4096), invalid);
    verdict.equal(
        "munmap past user space",
        munmap(0x7fff_ffff_e000, 0x2000),
        invalid,
    );
    verdict.equal("munmap where nothing is", munmap(0x10_0000, 4096), Ok(0));
    verdict.equal(
        "mprotect off the page grid",
        mprotect(0x10_0001, 4096, RW),
        invalid,
    );
    verdict.equal("mprotect of nothing", mprotect(0x10_0000, 0, RW), Ok(0));
    verdict.equal(
        "mprotect where nothing is",
        mprotect(0x10_0000, 4096, RW),
        no_memory,
    );
    verdict.equal(
        "madvise off the page grid",
        madvise(0x10_0001, 4096, libc::MADV_DONTNEED),
        invalid,
    );
    verdict.equal(
        "madvise where nothing is",
        madvise(0x10_0000, 4096, libc::MADV_DONTNEED),
        no_memory,
    );
    verdict.equal(
        "madvise with advice nobody knows",
        madvise(0, 4096, 9999),
        invalid,
    );
}

fn places(verdict: &mut Verdict) {
    let Ok(there) = Mapping::anywhere(4 * PAGE) else {
        verdict.holds("four pages can be mapped", false);
        return;
    };
    let addr = there.addr() as u64;
    let taken = mmap(
        addr,
        4096,
        RW,
        ANON | libc::MAP_FIXED_NOREPLACE.cast_unsigned() as u64,
    );
    verdict.equal(
        "a taken place is not replaced unless asked",
        taken,
        Err(libc::EEXIST),
    );
    there.write(0, 9);
    let replaced = mmap(addr, 4096, RW, ANON | libc::MAP_FIXED.cast_unsigned() as u64);
    verdict.equal("a fixed place is replaced", replaced, Ok(addr));
    verdict.equal("by zeroes", there.read(0), 0);
    verdict.holds("a hole can be made", there.unmap(PAGE..2 * PAGE).is_ok());
    verdict.equal(
        "a hint at the hole is taken",
        mmap(addr + 4096, 4096, RW, ANON),
        Ok(addr + 4096),
    );
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    verdict.holds(
        "/proc/self/maps has the stack",
        maps.lines().any(|line| line.ends_with("[stack]")),
    );
    verdict.holds("its lines are in order and do not overlap", in_order(&maps));
}

fn in_order(maps: &str) -> bool {
    let ends = |line: &str| -> Option<Range<u64>> {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
    };
    let ranges: Vec<_> = maps.lines().filter_map(ends).collect();
    !ranges.is_empty() && ranges.windows(2).all(|pair| pair[0].end <= pair[1].start)
}

fn contents(verdict: &mut Verdict) {
    let Ok(pages) = Mapping::anywhere(16 * PAGE) else {
        verdict.holds("sixteen pages can be mapped", false);
        return;
    };
    verdict.holds(
        "new memory is zero",
        (0..16).all(|page| pages.read(page * PAGE) == 0),
    );
    pages.touch();
    verdict.holds(
        "what is written stays",
        pages.first_damage(0..pages.len()).is_none(),
    );
    verdict.holds(
        "rights can be taken away",
        pages.protect(0..pages.len(), libc::PROT_NONE).is_ok(),
    );
    let hidden = syscall(libc::SYS_write, [2, pages.addr() as u64, 1, 0, 0, 0]);
    verdict.equal("and the kernel respects it", hidden, Err(libc::EFAULT));
    verdict.holds(
        "and given again",
        pages
            .protect(0..pages.len(), libc::PROT_READ | libc::PROT_WRITE)
            .is_ok(),
    );
    verdict.holds("with the contents", pages.first_damage(0..pages.len()).is_none());
    verdict.holds(
        "memory can be dropped",
        pages.advise(4 * PAGE..8 * PAGE, libc::MADV_DONTNEED).is_ok(),
    );
    verdict.holds(
        "and is zero again",
        (4..8).all(|page| pages.read(page * PAGE) == 0),
    );
    verdict.holds(
        "the rest is not",
        pages.first_damage(8 * PAGE..16 * PAGE).is_none(),
    );
}

fn brk(end: u64) -> u64 {
    syscall(libc::SYS_brk, [end, 0, 0, 0, 0, 0]).unwrap_or(0)
}

fn heap(verdict: &mut Verdict) {
    let start = brk(0);
    verdict.holds("the heap has an end", start > 0);
    verdict.equal("it grows", brk(start + 3 * 4096), start + 3 * 4096);
    verdict.equal("it shrinks", brk(start + 4096), start + 4096);
    verdict.equal("it does not go below its start", brk(1), start + 4096);
    verdict.equal("it does not grow over the kernel", brk(1 << 63), start + 4096);
    verdict.equal("it goes back", brk(start), start);
}

/// The numbers that huge pages move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Counters {
    huge_kb: u64,
    split_pmd: u64,
    deferred: u64,
    fault_alloc: u64,
}

impl Counters {
    fn read() -> Self {
        let vmstat = |name| proc::vmstat(name).unwrap_or(0);
        Self {
            huge_kb: proc::meminfo_kb("AnonHugePages").unwrap_or(0),
            split_pmd: vmstat("thp_split_pmd"),
            deferred: vmstat("thp_deferred_split_page"),
            fault_alloc: vmstat("thp_fault_alloc"),
        }
    }

    /// How much larger these are than `before`.
    fn since(self, before: Self) -> [i64; 4] {
        let change = |now: u64, then: u64| now.cast_signed() - then.cast_signed();
        [
            change(self.huge_kb, before.huge_kb),
            change(self.split_pmd, before.split_pmd),
            change(self.deferred, before.deferred),
            change(self.fault_alloc, before.fault_alloc),
        ]
    }
}

/// One huge page, mapped by a PMD entry, and what the counters were before.
fn one_huge_page(verdict: &mut Verdict) -> Option<(Mapping, Counters)> {
    let before = Counters::read();
    let page = Mapping::huge_aligned(HUGE).ok()?;
    page.advise(0..HUGE, libc::MADV_HUGEPAGE).ok()?;
    page.touch();
    let moved = Counters::read().since(before);
    verdict.equal(
        "a touched huge page: AnonHugePages, split_pmd, deferred, fault_alloc",
        moved,
        [2048, 0, 0, 1],
    );
    Some((page, Counters::read()))
}

/// Words of the huge page's 512 frames: flags and counts. `None` where we may not read them.
fn states(page: &Mapping) -> Option<Vec<(u64, u64)>> {
    let first = (*proc::frames(page.addr(), 1).ok()?.first()?)?;
    if first == 0 {
        return None;
    }
    let flags = PageWords::open("/proc/kpageflags")
        .ok()?
        .read(first, HUGE / PAGE)
        .ok()?;
    let counts = PageWords::open("/proc/kpagecount")
        .ok()?
        .read(first, HUGE / PAGE)
        .ok()?;
    Some(flags.into_iter().zip(counts).collect())
}

/// Row T3.1: one base page of a huge page is unmapped.
fn partial_unmap(verdict: &mut Verdict) {
    let Some((page, before)) = one_huge_page(verdict) else {
        return;
    };
    if let Some(states) = states(&page) {
        verdict.equal("head of a huge page", states[0], (0x4_0040_d828, 1));
        let tails = &states[1..];
        // Linux shows the head's own flags on tails from 6.10 on.
        verdict.holds(
            "its tails",
            tails
                .iter()
                .all(|&state| state == (0x41_1800, 1) || state == (0x4_0041_5828, 1)),
        );
    } else {
        println!("       (page states cannot be read by this user)");
    }
    verdict.holds(
        "T3.1: one page is unmapped",
        page.unmap(7 * PAGE..8 * PAGE).is_ok(),
    );
    verdict.equal("T3.1: counters", Counters::read().since(before), [-2048, 1, 1, 0]);
    if let Some(states) = states(&page) {
        let unmapped: Vec<usize> = (0..states.len()).filter(|&index| states[index].1 == 0).collect();
        verdict.equal("T3.1: exactly that frame is mapped by nobody", unmapped, vec![7]);
    }
    let rest = page
        .first_damage(0..7 * PAGE)
        .or(page.first_damage(8 * PAGE..HUGE));
    verdict.equal("T3.1: the others keep their contents", rest, None);
    verdict.holds("T3.1: the rest is unmapped", page.unmap(0..HUGE).is_ok());
    verdict.equal(
        "T3.1: counters at the end",
        Counters::read().since(before),
        [-2048, 1, 1, 0],
    );
}

/// Row T4.3: a second split of the same mapping is none.
fn split_twice(verdict: &mut Verdict) {
    let Some((page, before)) = one_huge_page(verdict) else {
        return;
    };
    let read = libc::PROT_READ;
    verdict.holds("T4.3: a split by mprotect", page.protect(0..PAGE, read).is_ok());
    verdict.holds("T4.3: another", page.protect(8 * PAGE..9 * PAGE, read).is_ok());
    verdict.equal(
        "T4.3: split_pmd moved once, nothing is queued",
        Counters::read().since(before),
        [-2048, 1, 0, 0],
    );
    verdict.equal("T4.3: contents stay", page.first_damage(0..HUGE), None);
}

/// Row T4.5: what a huge mapping allows, its parts allow.
fn rights_survive_a_split(verdict: &mut Verdict) {
    let Some((page, before)) = one_huge_page(verdict) else {
        return;
    };
    verdict.holds(
        "T4.5: the whole page becomes read-only",
        page.protect(0..HUGE, libc::PROT_READ).is_ok(),
    );
    verdict.equal(
        "T4.5: which splits nothing",
        Counters::read().since(before),
        [0, 0, 0, 0],
    );
    let writable = page.protect(4 * PAGE..5 * PAGE, libc::PROT_READ | libc::PROT_WRITE);
    verdict.holds("T4.5: one part becomes writable", writable.is_ok());
    verdict.equal(
        "T4.5: which splits",
        Counters::read().since(before),
        [-2048, 1, 0, 0],
    );
    page.write(4 * PAGE, page.read(4 * PAGE));
    // A system call that writes there tells without dying whether it may.
    let into = |page_number: usize| {
        let address = (page.addr() + page_number * PAGE) as u64;
        syscall(libc::SYS_getrandom, [address + 100, 1, 0, 0, 0, 0])
    };
    verdict.equal("T4.5: that part can be written", into(4), Ok(1));
    let others: Vec<usize> = (0..512)
        .filter(|&other| other != 4 && into(other) != Err(libc::EFAULT))
        .collect();
    verdict.equal("T4.5: the others cannot", others, vec![]);
    verdict.equal("T4.5: contents stay", page.first_damage(0..HUGE), None);
}
