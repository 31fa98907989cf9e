//! Prints every number that a program can see of one huge page, through the sequences that made Linux's huge pages what
//! they are: shared by fork, mapped by PMDs and PTEs at once, split, partly unmapped, waiting to be split, pinned.
//!
//! ```text
//!   thp-numbers [SECTION]...        all sections without arguments
//!
//!   ROW  change    what the step added to the counters of the machine
//!   ROW  pages     mcN: page-table entries that map subpage N; mapped: subpages that any entry maps;
//!                  entries and pmds: those of all processes together; anon and thps: what all steps so far added to
//!                  AnonPages (in pages) and to huge pages; free: subpages that are back with the allocator
//!   ROW  flags     kpageflags, as runs of equal subpages
//!   ROW  smaps P   the page's areas in process P, summed, in kB
//!   ROW  pagemap P the same words as runs; `+pfn`: the frame is the subpage's own
//!   ROW  sizes     what the step changed in /proc/self/status and statm
//! ```
//! It is an ordinary static Linux program, and prints no address, no frame number and no time: what it prints here and
//! on Linux 6.1 can be compared line by line (`tests/data/thp-numbers.txt` has both; `cargo xtask compare-linux`).
//! It must run as root, on a machine where nobody else uses memory meanwhile.

mod files;
mod observe;
mod rows;
mod scene;
mod twin;

use std::{io, process::ExitCode};

/// First line of what is printed.
const BEGIN: &str = "thp-numbers: begin";
/// Last line, unless something failed.
const END: &str = "thp-numbers: end";

/// One part of what is printed.
struct Section {
    name: &'static str,
    does: &'static str,
    print: fn() -> io::Result<()>,
}

const SECTIONS: &[Section] = &[
    Section {
        name: "share",
        does: "T1: one page, PMDs and PTEs of three processes",
        print: rows::share,
    },
    Section {
        name: "queue",
        does: "T3: partly unmapped pages, and what splits them",
        print: rows::queue,
    },
    Section {
        name: "pmd",
        does: "T4: one PMD split, whatever else happens",
        print: rows::pmd,
    },
    Section {
        name: "page",
        does: "T5: the page itself split, and refused",
        print: rows::page,
    },
    Section {
        name: "pins",
        does: "T3.6, T4.2, T5.2: a page that a pipe holds",
        print: rows::pins,
    },
    Section {
        name: "nodes",
        does: "C19: a page mapped by PTEs and a PMD moves to another node",
        print: rows::nodes,
    },
    Section {
        name: "files",
        does: "layouts, read rules and errors of the files",
        print: files::print,
    },
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted
        .iter()
        .find(|name| SECTIONS.iter().all(|section| section.name != **name))
    {
        println!("thp-numbers: no section {unknown:?}");
        SECTIONS
            .iter()
            .for_each(|section| println!("  {:<8} {}", section.name, section.does));
        return ExitCode::from(2);
    }
    let is_wanted = |section: &&Section| wanted.is_empty() || wanted.iter().any(|name| name == section.name);
    println!("{BEGIN}");
    for section in SECTIONS.iter().filter(is_wanted) {
        if let Err(error) = (section.print)() {
            println!("thp-numbers: {}: {error}", section.name);
            return ExitCode::FAILURE;
        }
    }
    println!("{END}");
    ExitCode::SUCCESS
}
