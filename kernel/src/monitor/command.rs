//! The table of commands, and how their arguments are read.

use alloc::{sync::Arc, vec::Vec};
use core::{
    fmt,
    sync::atomic::{AtomicU32, Ordering},
};

use mm::{Pfn, Platform, VirtAddr};

use super::{After, dump, memory, programs, say};
use crate::{
    panic::{Crash, crash},
    platform::mm,
    task::process::{self, Pid, Process},
    vfs::proc::{TextFile, system},
};

/// What a command expected instead of what it got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// Its arguments.
    Usage,
    /// A frame number that the machine has.
    Frame,
    /// The number of a process that runs.
    Process,
    /// An address of a program.
    Address,
    /// A status.
    Status,
    /// A kind of crash.
    Crash,
    /// The name of something that can be dumped.
    Dump,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage => f.write_str("other arguments"),
            Self::Frame => {
                let last = mm().platform().frames().saturating_sub(1);
                write!(
                    f,
                    "frame numbers from 0 to {last:#x}, as 0x1f or 31, or two with `-` between them; `.` is the last one shown"
                )
            }
            Self::Process => f.write_str("the number of a process that runs (see `ps`)"),
            Self::Address => f.write_str("an address of a program, below 0x7ffffffff000"),
            Self::Status => f.write_str("a status from 0 to 255"),
            Self::Crash => f.write_str("panic, stack, fault or hang"),
            Self::Dump => f.write_str("kpageflags or kpagecount"),
        }
    }
}

/// What a handler returns.
pub type Answer = Result<After, Expected>;

/// A command's words behind its name, and what it may use.
struct Request<'a> {
    words: &'a [&'a str],
    background: &'a mut programs::Background,
}

struct Command {
    name: &'static str,
    arguments: &'static str,
    does: &'static str,
    handler: fn(&mut Request<'_>) -> Answer,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "help",
        arguments: "",
        does: "lists the commands",
        handler: |_| help(),
    },
    Command {
        name: "meminfo",
        arguments: "",
        does: "totals of memory",
        handler: |r| text(r, system::meminfo),
    },
    Command {
        name: "vmstat",
        arguments: "",
        does: "counters of events",
        handler: |r| text(r, system::vmstat),
    },
    Command {
        name: "buddyinfo",
        arguments: "",
        does: "free blocks by order",
        handler: |r| text(r, system::buddyinfo),
    },
    Command {
        name: "free",
        arguments: "",
        does: "what is used and what is free",
        handler: |r| none(r, memory::free),
    },
    Command {
        name: "map",
        arguments: "",
        does: "all memory, one cell per 2 MiB",
        handler: |r| none(r, memory::map),
    },
    Command {
        name: "kpageflags",
        arguments: "[PFN[-PFN]]",
        does: "states of frames, equal ones in one line",
        handler: |r| each_frame(r, memory::kpageflags),
    },
    Command {
        name: "kpagecount",
        arguments: "[PFN[-PFN]]",
        does: "how often frames are mapped",
        handler: |r| each_frame(r, memory::kpagecount),
    },
    Command {
        name: "page",
        arguments: "PFN | PID ADDRESS",
        does: "everything about one frame; it is `.` from then on",
        handler: page,
    },
    Command {
        name: "maps",
        arguments: "PID",
        does: "areas of a process",
        handler: maps,
    },
    Command {
        name: "smaps",
        arguments: "PID",
        does: "areas of a process, and what they have in memory",
        handler: smaps,
    },
    Command {
        name: "split",
        arguments: "PFN | PID ADDRESS",
        does: "splits a huge page, or one PMD mapping of it",
        handler: split,
    },
    Command {
        name: "shrink",
        arguments: "",
        does: "splits what waits to be split, drops the huge zero page",
        handler: |r| none(r, memory::shrink),
    },
    Command {
        name: "check",
        arguments: "",
        does: "recounts all of memory",
        handler: |r| none(r, memory::check),
    },
    Command {
        name: "ps",
        arguments: "",
        does: "processes",
        handler: |r| none(r, programs::list),
    },
    Command {
        name: "run",
        arguments: "PROGRAM [ARGUMENTS] [&]",
        does: "runs a program; with & goes on meanwhile",
        handler: run,
    },
    Command {
        name: "dump",
        arguments: "kpageflags | kpagecount",
        does: "raw words of all frames, for `cargo xtask undump`",
        handler: dump,
    },
    Command {
        name: "crash",
        arguments: "panic | stack | fault | hang",
        does: "ends the kernel badly",
        handler: crash_command,
    },
    Command {
        name: "poweroff",
        arguments: "[STATUS]",
        does: "ends the machine",
        handler: power_off,
    },
];

/// Executes one line. Whatever is wrong with it costs one line of output.
pub fn execute(line: &str, background: &mut programs::Background) -> After {
    let words: Vec<&str> = line.split_whitespace().collect();
    let Some((&name, words)) = words.split_first() else {
        return After::GoOn;
    };
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        say!("`{}`: no such command; `help` lists them", name.escape_debug());
        return After::GoOn;
    };
    (command.handler)(&mut Request { words, background }).unwrap_or_else(|expected| {
        match expected {
            Expected::Usage => say!("expected: {} {}", command.name, command.arguments),
            expected => say!("{}: expected {expected}", command.name),
        }
        After::GoOn
    })
}

fn help() -> Answer {
    for command in COMMANDS {
        say!(
            "  {:<10} {:<28} {}",
            command.name,
            command.arguments,
            command.does
        );
    }
    Ok(After::GoOn)
}

/// A command without arguments.
fn none(request: &Request<'_>, show: fn()) -> Answer {
    if !request.words.is_empty() {
        return Err(Expected::Usage);
    }
    show();
    Ok(After::GoOn)
}

/// A command without arguments that shows a text of `/proc`.
fn text(request: &Request<'_>, make: fn() -> alloc::boxed::Box<[u8]>) -> Answer {
    if !request.words.is_empty() {
        return Err(Expected::Usage);
    }
    crate::drivers::uart::com1_write(&make());
    Ok(After::GoOn)
}

/// A number as people write it: `0x1f` or `31`.
fn number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

/// The frame that `page` showed last.
static SHOWN: AtomicU32 = AtomicU32::new(0);

fn frame(word: &str) -> Result<Pfn, Expected> {
    if word == "." {
        // Relaxed: the monitor alone uses it.
        return Ok(Pfn::new(SHOWN.load(Ordering::Relaxed)));
    }
    let last = mm().platform().frames();
    let pfn = number(word).and_then(|number| u32::try_from(number).ok());
    pfn.filter(|&pfn| pfn < last).map(Pfn::new).ok_or(Expected::Frame)
}

/// `[PFN[-PFN]]`: first and last frame, both included; all if nothing is said.
fn frames(request: &Request<'_>) -> Result<(Pfn, Pfn), Expected> {
    match request.words {
        [] => Ok((Pfn::new(0), Pfn::new(mm().platform().frames().saturating_sub(1)))),
        [word] => match word.split_once('-') {
            None => frame(word).map(|pfn| (pfn, pfn)),
            Some((first, last)) => {
                let (first, last) = (frame(first)?, frame(last)?);
                if first <= last {
                    Ok((first, last))
                } else {
                    Err(Expected::Frame)
                }
            }
        },
        _ => Err(Expected::Usage),
    }
}

/// A command about a range of frames.
fn each_frame(request: &Request<'_>, show: fn(Pfn, Pfn)) -> Answer {
    let (first, last) = frames(request)?;
    show(first, last);
    Ok(After::GoOn)
}

fn process(word: &str) -> Result<Arc<Process>, Expected> {
    Pid::parse(word.as_bytes())
        .and_then(process::find)
        .ok_or(Expected::Process)
}

fn page(request: &mut Request<'_>) -> Answer {
    let pfn = match request.words {
        [pfn] => frame(pfn)?,
        [pid, address] => {
            let (process, addr) = (process(pid)?, address_of(address)?);
            let Some(pfn) = memory::mapped_frame(&process, addr) else {
                say!("page: {process:?} has nothing mapped at {:#x}", addr.as_u64());
                return Ok(After::GoOn);
            };
            pfn
        }
        _ => return Err(Expected::Usage),
    };
    // Relaxed: the monitor alone uses it.
    SHOWN.store(pfn.raw(), Ordering::Relaxed);
    memory::page(pfn);
    Ok(After::GoOn)
}

fn address_of(word: &str) -> Result<VirtAddr, Expected> {
    let address = number(word).filter(|&address| address < mm::USER_END);
    address.map(VirtAddr::new).ok_or(Expected::Address)
}

fn maps(request: &mut Request<'_>) -> Answer {
    let [word] = request.words else {
        return Err(Expected::Usage);
    };
    programs::show(process(word)?.pid(), TextFile::Maps);
    Ok(After::GoOn)
}

fn smaps(request: &mut Request<'_>) -> Answer {
    let [word] = request.words else {
        return Err(Expected::Usage);
    };
    programs::show(process(word)?.pid(), TextFile::Smaps);
    Ok(After::GoOn)
}

fn split(request: &mut Request<'_>) -> Answer {
    match request.words {
        [pfn] => memory::split_frame(frame(pfn)?),
        [pid, address] => {
            let process = process(pid)?;
            memory::split_address(&process, address_of(address)?);
        }
        _ => return Err(Expected::Usage),
    }
    Ok(After::GoOn)
}

fn run(request: &mut Request<'_>) -> Answer {
    match request.words {
        [] | ["&"] => return Err(Expected::Usage),
        [words @ .., "&"] => request.background.start(words),
        words => programs::run(words),
    }
    Ok(After::GoOn)
}

fn dump(request: &mut Request<'_>) -> Answer {
    let [name] = request.words else {
        return Err(Expected::Usage);
    };
    let (name, file) = dump::find(name).ok_or(Expected::Dump)?;
    dump::dump(name, file);
    Ok(After::GoOn)
}

fn crash_command(request: &mut Request<'_>) -> Answer {
    let [how] = request.words else {
        return Err(Expected::Usage);
    };
    crash(Crash::from_name(how).ok_or(Expected::Crash)?)
}

fn power_off(request: &mut Request<'_>) -> Answer {
    match request.words {
        [] => Ok(After::PowerOff(0)),
        [status] => status.parse().map(After::PowerOff).map_err(|_| Expected::Status),
        _ => Err(Expected::Usage),
    }
}
