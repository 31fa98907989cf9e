//! `vmsplice`: pages of a program in a pipe, where they hold huge pages together.

use std::{fs::OpenOptions, io, io::Write};

use user::{
    HUGE, PAGE,
    mapping::Mapping,
    proc::{self, PageWords},
};

use crate::{
    Verdict,
    pipes::{Pipe, poll},
    syscall,
    tasks::{set_disposition, status_of},
};

const SPLIT: &str = "/sys/kernel/debug/split_huge_pages";
/// Buffers of a pipe.
const BUFFERS: usize = 16;

/// One group of promises.
type Check = fn(&mut Verdict) -> io::Result<()>;

/// Checks all of it.
pub(crate) fn check(_: &[String]) -> Verdict {
    let mut verdict = Verdict::default();
    let checks: [Check; 6] = [contents, full, back, pinned, gone, refused];
    for check in checks {
        if let Err(error) = check(&mut verdict) {
            verdict.holds(&format!("no call fails that must not: {error}"), false);
        }
    }
    verdict
}

/// The raw call with one piece.
fn vmsplice(fd: i32, start: usize, len: usize, flags: u32) -> Result<u64, i32> {
    let piece = [start as u64, len as u64];
    let list = (&raw const piece).expose_provenance() as u64;
    let arguments = [u64::from(fd.cast_unsigned()), list, 1, u64::from(flags), 0, 0];
    syscall(libc::SYS_vmsplice, arguments)
}

/// A pipe that nobody waits at: what is missing is a broken promise, not a wait for ever.
fn new_pipe() -> io::Result<Pipe> {
    Pipe::new(libc::O_NONBLOCK).map_err(io::Error::from_raw_os_error)
}

fn bytes(count: usize) -> u64 {
    count as u64
}

fn contents(verdict: &mut Verdict) -> io::Result<()> {
    let pipe = new_pipe()?;
    let memory = Mapping::anywhere(2 * PAGE)?;
    memory.write(0, b'a');
    let mut buffer = vec![0; 2 * PAGE];
    verdict.equal(
        "a page is given",
        vmsplice(pipe.writer(), memory.addr(), PAGE, 0),
        Ok(bytes(PAGE)),
    );
    memory.write(0, b'b');
    verdict.equal("and read whole", pipe.read(&mut buffer), Ok(PAGE));
    verdict.equal("as it is when it is read", buffer[0], b'b');
    memory.write(PAGE - 1, b'x');
    memory.write(PAGE, b'y');
    let across = vmsplice(pipe.writer(), memory.addr() + PAGE - 1, 2, libc::SPLICE_F_GIFT);
    verdict.equal("two bytes of two pages", across, Ok(2));
    pipe.write(b"z").map_err(io::Error::from_raw_os_error)?;
    verdict.equal("come with what was written behind", pipe.read(&mut buffer), Ok(3));
    verdict.equal("in order", &buffer[..3], b"xyz");
    let fresh = Mapping::anywhere(PAGE)?;
    verdict.equal(
        "memory that nobody touched",
        vmsplice(pipe.writer(), fresh.addr(), PAGE, 0),
        Ok(bytes(PAGE)),
    );
    pipe.read(&mut buffer).map_err(io::Error::from_raw_os_error)?;
    verdict.holds("is zero", buffer[..PAGE].iter().all(|&byte| byte == 0));
    memory.write(0, b'k');
    vmsplice(pipe.writer(), memory.addr(), 1, 0).map_err(io::Error::from_raw_os_error)?;
    memory.unmap(0..2 * PAGE)?;
    verdict.equal(
        "a page outlives its mapping",
        (pipe.read(&mut buffer), buffer[0]),
        (Ok(1), b'k'),
    );
    Ok(())
}

fn full(verdict: &mut Verdict) -> io::Result<()> {
    let pipe = new_pipe()?;
    let memory = Mapping::anywhere((BUFFERS + 1) * PAGE)?;
    memory.touch();
    verdict.equal(
        "17 pages: 16 are taken",
        vmsplice(pipe.writer(), memory.addr(), (BUFFERS + 1) * PAGE, 0),
        Ok(bytes(BUFFERS * PAGE)),
    );
    verdict.equal(
        "then there is no room",
        vmsplice(pipe.writer(), memory.addr(), 1, libc::SPLICE_F_NONBLOCK),
        Err(libc::EAGAIN),
    );
    verdict.equal("and none for a write", poll(pipe.writer(), libc::POLLOUT, 0), 0);
    let mut buffer = vec![0; PAGE];
    pipe.read(&mut buffer).map_err(io::Error::from_raw_os_error)?;
    verdict.equal(
        "until one is read",
        vmsplice(pipe.writer(), memory.addr(), 1, libc::SPLICE_F_NONBLOCK),
        Ok(1),
    );
    Ok(())
}

/// The other way: from the pipe into memory.
fn back(verdict: &mut Verdict) -> io::Result<()> {
    let pipe = new_pipe()?;
    let memory = Mapping::anywhere(PAGE)?;
    let none = vmsplice(pipe.reader(), memory.addr(), 8, libc::SPLICE_F_NONBLOCK);
    verdict.equal("nothing is in the pipe", none, Err(libc::EAGAIN));
    pipe.write(b"12345").map_err(io::Error::from_raw_os_error)?;
    verdict.equal(
        "what is there is taken",
        vmsplice(pipe.reader(), memory.addr(), 8, 0),
        Ok(5),
    );
    verdict.equal(
        "to where it was asked for",
        (memory.read(0), memory.read(4)),
        (b'1', b'5'),
    );
    Ok(())
}

/// A huge page whose bytes were all written.
fn huge_page() -> io::Result<Mapping> {
    let page = Mapping::huge_aligned(HUGE)?;
    page.advise(0..HUGE, libc::MADV_HUGEPAGE)?;
    page.touch();
    Ok(page)
}

/// Asks for a split of what the caller maps there.
fn split(page: &Mapping) -> io::Result<usize> {
    let command = format!(
        "{},{:#x},{:#x}",
        std::process::id(),
        page.addr(),
        page.addr() + HUGE
    );
    let written = OpenOptions::new()
        .write(true)
        .open(SPLIT)?
        .write(command.as_bytes())?;
    Ok(command.len() - written)
}

/// kpagecount and kpageflags of the base page at `offset`.
fn frame_words(page: &Mapping, offset: usize) -> io::Result<(u64, u64)> {
    let frame = proc::frames(page.addr() + offset, 1)?[0].unwrap_or(0);
    let word = |file| PageWords::open(file)?.read(frame, 1).map(|words| words[0]);
    Ok((word("/proc/kpagecount")?, word("/proc/kpageflags")?))
}

/// The rows T5.2 and T6.2 of the specification, and T4.2: a pin keeps the page whole, and nothing else.
fn pinned(verdict: &mut Verdict) -> io::Result<()> {
    let pipe = new_pipe()?;
    let page = huge_page()?;
    let before = frame_words(&page, 7 * PAGE)?;
    let pin = vmsplice(pipe.writer(), page.addr() + 7 * PAGE, PAGE, 0);
    verdict.equal("page 7 of a huge page is pinned", pin, Ok(bytes(PAGE)));
    verdict.equal("a pin is no mapping", frame_words(&page, 7 * PAGE)?, before);
    let count = || -> io::Result<[u64; 3]> {
        Ok([
            proc::vmstat("thp_split_page")?,
            proc::vmstat("thp_split_page_failed")?,
            proc::vmstat("thp_split_pmd")?,
        ])
    };
    let at_first = count()?;
    verdict.equal(
        "a split is asked for, all of the command is taken",
        split(&page)?,
        0,
    );
    verdict.equal("nothing was split, and none failed", count()?, at_first);
    verdict.holds("it is a huge page still", is_huge(&page)?);
    page.protect(0..PAGE, libc::PROT_READ)?;
    page.protect(0..PAGE, libc::PROT_READ | libc::PROT_WRITE)?;
    verdict.equal("its PMD can be split all the same", count()?[2], at_first[2] + 1);
    page.write(7 * PAGE, 0xa7);
    let mut buffer = vec![0; PAGE];
    verdict.equal(
        "and the pin leads to the same page",
        (pipe.read(&mut buffer), buffer[0]),
        (Ok(PAGE), 0xa7),
    );
    let before = count()?[0];
    split(&page)?;
    verdict.equal("once it is read the page can be split", count()?[0], before + 1);
    let page = huge_page()?;
    vmsplice(pipe.writer(), page.addr(), 1, 0).map_err(io::Error::from_raw_os_error)?;
    drop(pipe);
    let before = count()?[0];
    split(&page)?;
    verdict.equal("and once the pipe is gone", count()?[0], before + 1);
    Ok(())
}

fn is_huge(page: &Mapping) -> io::Result<bool> {
    let frames = proc::frames(page.addr(), HUGE / PAGE)?;
    let first = frames[0].unwrap_or(0);
    let in_a_row = frames
        .iter()
        .zip(first..)
        .all(|(frame, expected)| *frame == Some(expected));
    Ok(in_a_row && first.is_multiple_of(bytes(HUGE / PAGE)))
}

fn gone(verdict: &mut Verdict) -> io::Result<()> {
    let mut pipe = new_pipe()?;
    let memory = Mapping::anywhere(PAGE)?;
    memory.touch();
    pipe.close(0);
    let alone = vmsplice(pipe.writer(), memory.addr(), 1, 0);
    verdict.equal("nobody will read it", alone, Err(libc::EPIPE));
    let status = status_of(|| {
        set_disposition(libc::SIGPIPE, libc::SIG_DFL);
        let _ = vmsplice(pipe.writer(), memory.addr(), 1, 0);
        0
    });
    verdict.equal("which ends who does not ignore it", status, Ok(libc::SIGPIPE));
    Ok(())
}

fn refused(verdict: &mut Verdict) -> io::Result<()> {
    let pipe = new_pipe()?;
    let memory = Mapping::anywhere(PAGE)?;
    let start = memory.addr();
    verdict.equal(
        "unknown flags",
        vmsplice(pipe.writer(), start, 1, 16),
        Err(libc::EINVAL),
    );
    verdict.equal("flags come first", vmsplice(-1, start, 1, 16), Err(libc::EINVAL));
    verdict.equal("no descriptor", vmsplice(-1, start, 1, 0), Err(libc::EBADF));
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&null);
    verdict.equal("no pipe", vmsplice(fd, start, 1, 0), Err(libc::EBADF));
    verdict.equal("nothing is nothing", vmsplice(pipe.writer(), 8, 0, 0), Ok(0));
    verdict.equal(
        "nothing is mapped there",
        vmsplice(pipe.writer(), 8, 1, 0),
        Err(libc::EFAULT),
    );
    let kernel = usize::MAX - PAGE;
    verdict.equal(
        "the kernel is nobody's to give",
        vmsplice(pipe.writer(), kernel, 1, 0),
        Err(libc::EFAULT),
    );
    verdict.equal(
        "nor what wraps",
        vmsplice(pipe.writer(), start, usize::MAX / 2, 0),
        Err(libc::EFAULT),
    );
    let list = |count| {
        let arguments = [u64::from(pipe.writer().cast_unsigned()), 8, count, 0, 0, 0];
        syscall(libc::SYS_vmsplice, arguments)
    };
    verdict.equal("a wild list", list(1), Err(libc::EFAULT));
    verdict.equal("too long a list", list(1025), Err(libc::EINVAL));
    verdict.equal("an empty list", list(0), Ok(0));
    memory.protect(0..PAGE, libc::PROT_NONE)?;
    verdict.equal(
        "what cannot be read cannot be given",
        vmsplice(pipe.writer(), start, 1, 0),
        Err(libc::EFAULT),
    );
    verdict.equal("nothing came of any", poll(pipe.reader(), libc::POLLIN, 0), 0);
    others(verdict, &pipe);
    Ok(())
}

/// What `splice` and `tee` refuse.
fn others(verdict: &mut Verdict, pipe: &Pipe) {
    let [reader, writer] = [pipe.reader(), pipe.writer()].map(|fd| u64::from(fd.cast_unsigned()));
    let none = u64::from(u32::MAX);
    let offset = 0_u64;
    let offset = (&raw const offset).expose_provenance() as u64;
    for (what, number, arguments, expected) in [
        (
            "splice of nothing",
            libc::SYS_splice,
            [none, 0, none, 0, 0, 0],
            Ok(0),
        ),
        (
            "splice: flags",
            libc::SYS_splice,
            [reader, 0, writer, 0, 1, 64],
            Err(libc::EINVAL),
        ),
        (
            "splice: descriptors",
            libc::SYS_splice,
            [none, 0, writer, 0, 1, 0],
            Err(libc::EBADF),
        ),
        (
            "splice: the wrong end",
            libc::SYS_splice,
            [writer, 0, writer, 0, 1, 0],
            Err(libc::EBADF),
        ),
        (
            "splice: a pipe has no offset",
            libc::SYS_splice,
            [reader, offset, writer, 0, 1, 0],
            Err(libc::ESPIPE),
        ),
        (
            "splice: to itself",
            libc::SYS_splice,
            [reader, 0, writer, 0, 1, 0],
            Err(libc::EINVAL),
        ),
        ("tee of nothing", libc::SYS_tee, [none, none, 0, 0, 0, 0], Ok(0)),
        (
            "tee: flags",
            libc::SYS_tee,
            [reader, writer, 1, 64, 0, 0],
            Err(libc::EINVAL),
        ),
        (
            "tee: descriptors",
            libc::SYS_tee,
            [none, writer, 1, 0, 0, 0],
            Err(libc::EBADF),
        ),
        (
            "tee: to itself",
            libc::SYS_tee,
            [reader, writer, 1, 0, 0, 0],
            Err(libc::EINVAL),
        ),
    ] {
        verdict.equal(what, syscall(number, arguments), expected);
    }
}
