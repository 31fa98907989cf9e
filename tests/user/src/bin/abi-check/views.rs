//! What `/proc/PID`, `/sys` and debugfs show about memory, and what writing to them does.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
};

use user::{HUGE, PAGE, mapping::Mapping, proc};

use crate::Verdict;

const THP: &str = "/sys/kernel/mm/transparent_hugepage";
const SPLIT: &str = "/sys/kernel/debug/split_huge_pages";
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

/// The lines of one huge page, written once, as Linux 6.1 shows them; without the header, and without what a machine or
/// a kernel may not have (`ProtectionKey`, the `ac` of a kernel that keeps a commit limit).
const ONE_THP: &str = "\
Size:               2048 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:                2048 kB
Pss:                2048 kB
Pss_Dirty:          2048 kB
Shared_Clean:          0 kB
Shared_Dirty:          0 kB
Private_Clean:         0 kB
Private_Dirty:      2048 kB
Referenced:         2048 kB
Anonymous:          2048 kB
LazyFree:              0 kB
AnonHugePages:      2048 kB
ShmemPmdMapped:        0 kB
FilePmdMapped:         0 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:       0 kB
Swap:                  0 kB
SwapPss:               0 kB
Locked:                0 kB
THPeligible:    1
VmFlags: rd wr mr mw me sd hg\x20
";

/// Checks layouts, numbers and switches.
pub(crate) fn check(_: &[String]) -> Verdict {
    let mut verdict = Verdict::default();
    if let Err(error) = all(&mut verdict) {
        verdict.holds(&format!("no call fails: {error}"), false);
    }
    verdict
}

fn all(verdict: &mut Verdict) -> io::Result<()> {
    one_huge_page(verdict)?;
    rollup(verdict)?;
    sizes(verdict)?;
    switches(verdict)?;
    zero_reads(verdict)?;
    dropping(verdict)?;
    splitting(verdict)
}

/// A huge page of its own area: advice keeps neighbours apart.
fn huge_page() -> io::Result<Mapping> {
    let page = Mapping::huge_aligned(HUGE)?;
    page.advise(0..HUGE, libc::MADV_HUGEPAGE)?;
    page.touch();
    Ok(page)
}

/// The lines of the area that begins at `addr`, header first.
fn area(addr: usize) -> io::Result<String> {
    let text = fs::read_to_string("/proc/self/smaps")?;
    let start = format!("{addr:08x}-");
    let is_header = |line: &&str| line.split(' ').next().is_some_and(|range| range.contains('-'));
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&start));
    let header = lines.next().unwrap_or_default();
    let rest = lines
        .take_while(|line| !is_header(line))
        .filter(|line| !line.starts_with("ProtectionKey"))
        .map(|line| line.replace("ac ", "") + "\n")
        .collect::<String>();
    Ok(format!("{header}\n{rest}"))
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

fn anon_huge(page: &Mapping) -> io::Result<Option<u64>> {
    Ok(field(&area(page.addr())?, "AnonHugePages"))
}

fn one_huge_page(verdict: &mut Verdict) -> io::Result<()> {
    let page = huge_page()?;
    let (start, end) = (page.addr(), page.addr() + HUGE);
    let expected = format!("{start:08x}-{end:08x} rw-p 00000000 00:00 0 \n{ONE_THP}");
    verdict.equal(
        "smaps of one huge page is laid out as on Linux",
        area(start)?,
        expected,
    );
    page.unmap(7 * PAGE..8 * PAGE)?;
    let lower = area(start)?;
    verdict.equal("smaps: below a hole", field(&lower, "Rss"), Some(28));
    verdict.equal(
        "smaps: nothing by PMD any more",
        field(&lower, "AnonHugePages"),
        Some(0),
    );
    verdict.equal(
        "smaps: too small for a huge page",
        field(&lower, "THPeligible"),
        Some(0),
    );
    let upper = area(start + 8 * PAGE)?;
    verdict.equal("smaps: above the hole", field(&upper, "Rss"), Some(2016));
    Ok(())
}

fn rollup(verdict: &mut Verdict) -> io::Result<()> {
    let page = huge_page()?;
    let text = fs::read_to_string("/proc/self/smaps_rollup")?;
    let header = text.lines().next().unwrap_or_default();
    verdict.holds(
        "smaps_rollup: the header ends in its name, at column 73",
        header.get(73..) == Some("[rollup]") && header.contains(" ---p 00000000 00:00 0 "),
    );
    let labels: Vec<&str> = text
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name)
        .collect();
    let expected = "Rss Pss Pss_Dirty Pss_Anon Pss_File Pss_Shmem Shared_Clean Shared_Dirty Private_Clean \
                    Private_Dirty Referenced Anonymous LazyFree AnonHugePages ShmemPmdMapped FilePmdMapped \
                    Shared_Hugetlb Private_Hugetlb Swap SwapPss Locked";
    verdict.equal("smaps_rollup: its lines", labels.join(" "), expected.to_owned());
    verdict.holds(
        "smaps_rollup: the huge page is in it",
        field(&text, "AnonHugePages").is_some_and(|kb| kb >= 2048),
    );
    drop(page);
    Ok(())
}

/// VmSize, VmData, VmStk, VmExe and VmLib together, in kB.
fn status() -> io::Result<[i64; 4]> {
    let text = fs::read_to_string("/proc/self/status")?;
    let kb = |name| {
        field(&text, name)
            .and_then(|kb| i64::try_from(kb).ok())
            .unwrap_or(-1)
    };
    Ok([kb("VmSize"), kb("VmData"), kb("VmStk"), kb("VmExe") + kb("VmLib")])
}

fn change(before: [i64; 4]) -> io::Result<[i64; 4]> {
    let now = status()?;
    Ok([0, 1, 2, 3].map(|i| now[i] - before[i]))
}

fn raw_map(len: usize, prot: i32, flags: i32) -> io::Result<*mut libc::c_void> {
    // SAFETY: a new anonymous mapping at an address of the kernel's choice overlaps nothing.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            prot,
            flags | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(start)
}

fn raw_unmap(start: *mut libc::c_void, len: usize) {
    // SAFETY: mapped by `raw_map`, and used by nobody.
    unsafe { libc::munmap(start, len) };
}

fn sizes(verdict: &mut Verdict) -> io::Result<()> {
    // Once before: reading may make the heap grow.
    status()?;
    let before = status()?;
    let data = Mapping::anywhere(1 << 20)?;
    verdict.equal("T14.1: 1 MiB of data", change(before)?, [1024, 1024, 0, 0]);
    data.protect(0..16 * PAGE, libc::PROT_READ | libc::PROT_EXEC)?;
    verdict.equal(
        "T14.5: 64 KiB of it become code",
        change(before)?,
        [1024, 960, 0, 64],
    );
    drop(data);
    for (row, prot) in [
        ("T14.3: a read-only stack", libc::PROT_READ),
        ("T14.4: an executable stack", libc::PROT_READ | libc::PROT_EXEC),
    ] {
        let stack = raw_map(8 * PAGE, prot, libc::MAP_PRIVATE | libc::MAP_GROWSDOWN)?;
        verdict.equal(row, change(before)?, [32, 0, 32, 0]);
        raw_unmap(stack, 8 * PAGE);
    }
    let page = Mapping::anywhere(PAGE)?;
    page.touch();
    let (status, statm) = (
        fs::read_to_string("/proc/self/status")?,
        fs::read_to_string(format!("/proc/{}/statm", std::process::id()))?,
    );
    let pages: Vec<u64> = statm.split_whitespace().flat_map(str::parse).collect();
    verdict.equal("statm has seven numbers", pages.len(), 7);
    verdict.equal(
        "statm and status agree on the size",
        pages.first().map(|n| n * 4),
        field(&status, "VmSize"),
    );
    let data = field(&status, "VmData").zip(field(&status, "VmStk"));
    verdict.equal(
        "statm: data and stack",
        pages.get(5).map(|n| n * 4),
        data.map(|(data, stack)| data + stack),
    );
    verdict.equal(
        "statm: code",
        pages.get(3).map(|n| n * 4),
        field(&status, "VmExe"),
    );
    verdict.equal(
        "status: its number",
        field(&status, "Pid"),
        Some(u64::from(std::process::id())),
    );
    verdict.holds("status: it runs", status.contains("\nState:\tR (running)\n"));
    Ok(())
}

/// Writes `text` in one call; the errno, or how many bytes were taken.
fn tell(path: &str, text: &str) -> Result<usize, i32> {
    let write = || OpenOptions::new().write(true).open(path)?.write(text.as_bytes());
    write().map_err(|error| error.raw_os_error().unwrap_or(0))
}

fn switches(verdict: &mut Verdict) -> io::Result<()> {
    let enabled = format!("{THP}/enabled");
    let shown = || fs::read_to_string(&enabled);
    verdict.equal(
        "enabled: at first",
        shown()?,
        "[always] madvise never\n".to_owned(),
    );
    verdict.equal(
        "enabled: nonsense is refused",
        tell(&enabled, "sometimes"),
        Err(libc::EINVAL),
    );
    verdict.equal(
        "enabled: nothing is refused",
        tell(&enabled, "\n"),
        Err(libc::EINVAL),
    );
    verdict.equal("enabled: never", tell(&enabled, "never\n"), Ok(6));
    verdict.equal(
        "enabled: shows it",
        shown()?,
        "always madvise [never]\n".to_owned(),
    );
    let page = huge_page()?;
    verdict.equal("enabled: never means never", anon_huge(&page)?, Some(0));
    verdict.equal(
        "enabled: nothing is eligible",
        field(&area(page.addr())?, "THPeligible"),
        Some(0),
    );
    drop(page);
    verdict.equal("enabled: madvise", tell(&enabled, "madvise"), Ok(7));
    let page = huge_page()?;
    verdict.equal("enabled: advised memory is huge", anon_huge(&page)?, Some(2048));
    let plain = Mapping::huge_aligned(HUGE)?;
    let before = proc::vmstat("thp_fault_alloc")?;
    plain.touch();
    verdict.equal(
        "enabled: other memory is not",
        proc::vmstat("thp_fault_alloc")?,
        before,
    );
    verdict.equal("enabled: always again", tell(&enabled, "always"), Ok(6));
    let size = format!("{THP}/hpage_pmd_size");
    verdict.equal(
        "hpage_pmd_size",
        fs::read_to_string(&size)?,
        "2097152\n".to_owned(),
    );
    verdict.equal(
        "hpage_pmd_size cannot be written",
        tell(&size, "1"),
        Err(libc::EACCES),
    );
    Ok(())
}

fn zero_reads(verdict: &mut Verdict) -> io::Result<()> {
    let file = format!("{THP}/use_zero_page");
    verdict.equal(
        "use_zero_page: at first",
        fs::read_to_string(&file)?,
        "1\n".to_owned(),
    );
    verdict.equal("use_zero_page: 2 is refused", tell(&file, "2"), Err(libc::EINVAL));
    verdict.equal("use_zero_page: off", tell(&file, "0\n"), Ok(2));
    let page = Mapping::huge_aligned(HUGE)?;
    page.advise(0..HUGE, libc::MADV_HUGEPAGE)?;
    verdict.equal("use_zero_page: zero is read", page.read(PAGE), 0);
    verdict.equal(
        "use_zero_page: from a page of its own",
        anon_huge(&page)?,
        Some(2048),
    );
    verdict.equal("use_zero_page: on", tell(&file, "1"), Ok(1));
    page.advise(0..HUGE, libc::MADV_DONTNEED)?;
    verdict.equal("use_zero_page: zero is read again", page.read(PAGE), 0);
    verdict.equal(
        "use_zero_page: from nobody's page",
        field(&area(page.addr())?, "Rss"),
        Some(0),
    );
    Ok(())
}

fn dropping(verdict: &mut Verdict) -> io::Result<()> {
    for bad in ["0", "5", "x"] {
        verdict.equal(
            &format!("drop_caches: {bad:?}"),
            tell(DROP_CACHES, bad),
            Err(libc::EINVAL),
        );
    }
    let opened = File::open(DROP_CACHES).map_err(|error| error.raw_os_error());
    verdict.equal(
        "drop_caches cannot be read",
        opened.err(),
        Some(Some(libc::EACCES)),
    );
    let page = huge_page()?;
    page.unmap(7 * PAGE..8 * PAGE)?;
    let split = proc::vmstat("thp_split_page")?;
    verdict.equal(
        "drop_caches: 1 is the page cache",
        tell(DROP_CACHES, "1\n"),
        Ok(2),
    );
    verdict.equal(
        "drop_caches: 1 splits nothing",
        proc::vmstat("thp_split_page")?,
        split,
    );
    verdict.equal("drop_caches: 2", tell(DROP_CACHES, "2\n"), Ok(2));
    verdict.equal(
        "drop_caches: 2 splits what waits",
        proc::vmstat("thp_split_page")?,
        split + 1,
    );
    verdict.equal(
        "drop_caches: the bytes are the same",
        page.first_damage(8 * PAGE..HUGE),
        None,
    );
    Ok(())
}

fn splitting(verdict: &mut Verdict) -> io::Result<()> {
    for bad in ["2", "x", "1,0x1000", "1,0x1000,2000"] {
        verdict.equal(
            &format!("split_huge_pages: {bad:?}"),
            tell(SPLIT, bad),
            Err(libc::EINVAL),
        );
    }
    verdict.equal(
        "split_huge_pages: no such process",
        tell(SPLIT, "4194000,0x1000,0x2000"),
        Err(libc::ESRCH),
    );
    let mut nothing = [0; 8];
    let read = File::open(SPLIT).and_then(|mut file| file.read(&mut nothing));
    verdict.equal(
        "split_huge_pages cannot be read",
        read.map_err(|error| error.raw_os_error()).err(),
        Some(Some(libc::EINVAL)),
    );
    let page = huge_page()?;
    let (pid, addr) = (std::process::id(), page.addr());
    let (split, failed) = (
        proc::vmstat("thp_split_page")?,
        proc::vmstat("thp_split_page_failed")?,
    );
    let command = format!("{pid},{addr:#x},{:#x}\n", addr + HUGE);
    verdict.equal(
        "split_huge_pages: a range",
        tell(SPLIT, &command),
        Ok(command.len()),
    );
    verdict.equal("split_huge_pages: no PMD is left", anon_huge(&page)?, Some(0));
    verdict.equal(
        "split_huge_pages: one was split",
        proc::vmstat("thp_split_page")?,
        split + 1,
    );
    verdict.equal(
        "split_huge_pages: none failed",
        proc::vmstat("thp_split_page_failed")?,
        failed,
    );
    verdict.equal(
        "split_huge_pages: the bytes are the same",
        page.first_damage(0..HUGE),
        None,
    );
    let other = huge_page()?;
    verdict.equal("split_huge_pages: all", tell(SPLIT, "1\n"), Ok(2));
    verdict.equal("split_huge_pages: this one too", anon_huge(&other)?, Some(0));
    verdict.equal(
        "split_huge_pages: its bytes are the same",
        other.first_damage(0..HUGE),
        None,
    );
    Ok(())
}
