//! As many children as the machine can hold, all sharing one page.

use std::io;

use user::{
    HUGE, PAGE,
    mapping::Mapping,
    proc::{self, PageWords},
};

use crate::{
    Verdict, syscall,
    tasks::{kill, status_of, wait},
};

/// Fewer are no test.
const AT_LEAST: u64 = 1000;

/// Forks until that is refused: `children [AT_LEAST]`.
pub(crate) fn check(words: &[String]) -> Verdict {
    let mut verdict = Verdict::default();
    let at_least = words
        .first()
        .and_then(|word| word.parse().ok())
        .unwrap_or(AT_LEAST);
    // In a child of its own: it is one group with its children.
    let status = status_of(|| {
        let mut verdict = Verdict::default();
        if let Err(error) = family(&mut verdict, at_least) {
            verdict.holds(&format!("no call fails that must not: {error}"), false);
        }
        i32::from(verdict.broken > 0)
    });
    verdict.equal("the parent of many outlives them", status, Ok(0));
    verdict
}

fn family(verdict: &mut Verdict, at_least: u64) -> io::Result<()> {
    syscall(libc::SYS_setpgid, [0; 6]).map_err(io::Error::from_raw_os_error)?;
    let small = Mapping::anywhere(PAGE)?;
    small.advise(0..PAGE, libc::MADV_NOHUGEPAGE)?;
    small.write(0, 0x5a);
    let huge = Mapping::huge_aligned(HUGE)?;
    huge.advise(0..HUGE, libc::MADV_HUGEPAGE)?;
    huge.touch();
    let frames = [frame_of(&small)?, frame_of(&huge)?];
    let counts = PageWords::open("/proc/kpagecount")?;
    let counts =
        || -> io::Result<[u64; 2]> { Ok([counts.read(frames[0], 1)?[0], counts.read(frames[1], 1)?[0]]) };
    verdict.equal("at first each page is mapped once", counts()?, [1, 1]);
    let mut children = 0;
    let refusal = loop {
        match fork() {
            Ok(0) => rest_for_ever(),
            Ok(_) => children += 1,
            Err(errno) => break errno,
        }
    };
    let while_many = counts()?;
    // Everybody but the caller, which ignores it.
    crate::tasks::set_disposition(libc::SIGTERM, libc::SIG_IGN);
    kill(0, libc::SIGTERM).map_err(io::Error::from_raw_os_error)?;
    // Those that ignored it too, because they inherited that, do not exist: it was set after the last fork.
    let mut ended = 0;
    while wait(-1, 0).is_ok() {
        ended += 1;
    }
    println!("       {children} children");
    verdict.holds(
        &format!("there are {at_least} children at least"),
        children >= at_least,
    );
    verdict.holds(
        &format!("a fork too many is EAGAIN or ENOMEM: {refusal}"),
        [libc::EAGAIN, libc::ENOMEM].contains(&refusal),
    );
    verdict.equal(
        "each child has each page",
        while_many,
        [children + 1, children + 1],
    );
    verdict.equal("all end", ended, children);
    verdict.equal("and leave the pages", counts()?, [1, 1]);
    small.write(0, 0xa5);
    huge.write(0, 0xa5);
    verdict.equal(
        "which are the parent's alone again: a write copies none",
        [frame_of(&small)?, frame_of(&huge)?],
        frames,
    );
    verdict.equal("and the bytes are right", huge.first_damage(PAGE..HUGE), None);
    Ok(())
}

/// The raw call: a C library would take memory of its own.
fn fork() -> Result<u64, i32> {
    syscall(libc::SYS_fork, [0; 6])
}

/// A child that touches nothing.
fn rest_for_ever() -> ! {
    loop {
        let _ = syscall(libc::SYS_pause, [0; 6]);
    }
}

fn frame_of(memory: &Mapping) -> io::Result<u64> {
    proc::frames(memory.addr(), 1)?[0].ok_or_else(|| io::ErrorKind::NotFound.into())
}
