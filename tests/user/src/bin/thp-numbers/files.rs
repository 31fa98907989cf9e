//! Layouts, read rules and errors of the files.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
};

use user::{HUGE, PAGE, mapping::Mapping};

use crate::{observe, rows::tell, scene::pid};

/// Prints them.
pub(crate) fn print() -> io::Result<()> {
    for path in ["/proc/meminfo", "/proc/vmstat", "/proc/self/status"] {
        layout(path)?;
    }
    layout_of_smaps()?;
    maps()?;
    for path in ["/proc/kpageflags", "/proc/kpagecount"] {
        words(path)?;
    }
    pagemap()?;
    splitting();
    Ok(())
}

/// Names of the lines of a file, and how wide they are where they have columns.
fn layout(path: &str) -> io::Result<()> {
    for line in fs::read_to_string(path)?.lines() {
        let name = line.split([':', ' ']).next().unwrap_or_default();
        match line.strip_suffix(" kB") {
            Some(columns) => println!("{path} {name} {} columns", columns.len()),
            None => println!("{path} {name}"),
        }
    }
    Ok(())
}

/// What `maps` says of areas of several kinds.
fn maps() -> io::Result<()> {
    let area = |name: &str, addr: usize| -> io::Result<()> {
        let start = format!("{addr:08x}-");
        let maps = fs::read_to_string("/proc/self/maps")?;
        let line = maps
            .lines()
            .find(|line| line.starts_with(&start))
            .unwrap_or("- none");
        println!("maps {name} |{}|", &line[line.find(' ').unwrap_or(0)..]);
        Ok(())
    };
    let page = Mapping::apart(HUGE)?;
    area("readable and writable", page.addr())?;
    page.protect(0..HUGE, libc::PROT_READ | libc::PROT_EXEC)?;
    area("executable", page.addr())?;
    // SAFETY: an area that this program owns is replaced.
    let stack = unsafe {
        libc::mmap(
            std::ptr::with_exposed_provenance_mut(page.addr()),
            HUGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_GROWSDOWN,
            -1,
            0,
        )
    };
    area("grows down", stack.addr())?;
    let here = 0_u8;
    let here = (&raw const here).addr();
    let maps = fs::read_to_string("/proc/self/maps")?;
    let own = maps
        .lines()
        .find(|line| observe::range_of(line).is_some_and(|range| range.contains(&here)));
    // Addresses may be as long as they like: the name stands in a column of its own.
    println!(
        "maps stack {:?} at {:?}",
        own.and_then(|line| line.get(73..)),
        own.and_then(|line| line.find('['))
    );
    Ok(())
}

/// All lines of one huge page. `ProtectionKey` is there or not, as the processor has such keys.
fn layout_of_smaps() -> io::Result<()> {
    let page = Mapping::apart(HUGE)?;
    page.advise(0..HUGE, libc::MADV_HUGEPAGE)?;
    page.touch();
    for (header, lines) in observe::areas(pid(), &(page.addr()..page.addr() + HUGE))? {
        println!("smaps |{}|", &header[header.find(' ').unwrap_or(0)..]);
        for line in lines.iter().filter(|line| !line.starts_with("ProtectionKey")) {
            println!("smaps |{line}|");
        }
    }
    Ok(())
}

/// How many bytes a read gives, or its errno.
fn reads(file: &File, len: usize, offset: u64) -> String {
    match file.read_at(&mut vec![0; len], offset) {
        Ok(count) => count.to_string(),
        Err(error) => format!("errno {}", error.raw_os_error().unwrap_or(0)),
    }
}

/// Files of one word per frame.
fn words(path: &str) -> io::Result<()> {
    let file = File::open(path)?;
    let mode = {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(path)?.mode()
    };
    println!("{path} mode={mode:o}");
    for (len, offset) in [
        (8, 0),
        (16, 8),
        (0, 0),
        (8, 4),
        (7, 0),
        (12, 0),
        (8, 1 << 40),
        (4, 1 << 40),
    ] {
        println!("{path} read({len}, {offset:#x})={}", reads(&file, len, offset));
    }
    let mut end = 0_u64;
    for bit in (3..40).rev() {
        let next = end + (1 << bit);
        if reads(&file, 8, next - 8) == "8" {
            end = next;
        }
    }
    println!("{path} read(64, end-16)={}", reads(&file, 64, end - 16));
    println!("{path} read(64, end)={}", reads(&file, 64, end));
    Ok(())
}

fn pagemap() -> io::Result<()> {
    let file = File::open("/proc/self/pagemap")?;
    let page = Mapping::apart(HUGE)?;
    let at = (page.addr() / PAGE * 8) as u64;
    for (len, more) in [(8, 0), (4, 0), (8, 4), (0, 0), (24, 8)] {
        println!("pagemap read({len}, +{more})={}", reads(&file, len, at + more));
    }
    println!("pagemap read(8, 1<<60)={}", reads(&file, 8, 1 << 60));
    println!(
        "pagemap read(64, end of user space - 2 pages)={}",
        reads(&file, 64, ((1 << 47) - 2 * 4096) / 4096 * 8)
    );
    let word = |offset: usize| observe::pagemap(pid(), page.addr() + offset, 1);
    println!("pagemap untouched={:#x}", word(0)?[0]);
    println!(
        "pagemap read={} then={:#x}",
        page.read(0),
        word(0)?[0] >> 55 << 55
    );
    page.unmap(PAGE..2 * PAGE)?;
    println!("pagemap hole={:#x}", word(PAGE)?[0]);
    Ok(())
}

/// What debugfs refuses. A path without a comma is left out: Linux 6.1 reads through a null pointer then.
fn splitting() {
    let path = "/sys/kernel/debug/split_huge_pages";
    let pid = pid();
    let range = |rest: &str| (format!("PID,{rest}"), format!("{pid},{rest}"));
    let plain = |text: &str| (text.to_owned(), text.to_owned());
    let commands = [
        plain("2"),
        plain("x"),
        plain(""),
        plain("0"),
        plain("1,0x1000"),
        plain("1,0x1000,2000"),
        plain("1 "),
        plain("1x"),
        plain("01"),
        plain("+1"),
        plain("-1"),
        plain("4194000,0x1000,0x2000"),
        range("0x1000,0x2000"),
        range("0x2000,0x1000"),
        range("0x1000,0x2000,0"),
        range("1000,2000"),
        plain("/none,0x0"),
        plain("/none,0x0,0x1"),
        plain("/,0x0,0x1"),
        plain("/proc/self/exe,0x0,0x1"),
        plain("/proc/self/exe,0,1"),
        ("1 300 times".to_owned(), "1".repeat(300)),
    ];
    for (shown, command) in commands {
        // Process numbers have other lengths elsewhere.
        let answer = match tell(path, &command) {
            Ok(taken) if taken == command.len() => "all".to_owned(),
            Ok(taken) => format!("{taken} bytes"),
            Err(errno) => format!("errno {errno}"),
        };
        println!("split_huge_pages {shown:?} = {answer}");
    }
}
