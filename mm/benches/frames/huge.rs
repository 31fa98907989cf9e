//! Rows about huge pages: split, zap and fork, through `mm` and on the Linux layout.
//!
//! A turn does each operation on [`PAGES`] huge pages one after the other, twice over, and counts the second time: every
//! contender finds his records and tables in the second-level cache, where his first time left them. `mm` runs whole operations, from the system call's function down: areas, page tables, TLB batches
//! and counters included; the model does the page records' and entries' part alone.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use mm::{
    Access, Advice, FaultInfo, MapRequest, Memory, MmRef, PMD_SIZE, Place, Prot, VirtAddr, VirtRange,
    VmFault, VmaFlags, folio::Folio,
};

use crate::{
    FRAMES, TURNS, goal,
    harness::{Contender, Cost, Timed, row, time},
    linux_layout::{self as linux, HUGE, PageTable, Zone, make_huge, page_table, unmake_huge},
    platform::{BenchMachine, boot, prepare},
};

/// Huge pages per turn.
const PAGES: u32 = 16;

/// Huge pages of the process that is forked as a whole: enough for the process's own cost to vanish.
const FORKED: u32 = 256;

/// Our side: one process with [`PAGES`] huge pages, each written once.
struct Ours {
    mem: Memory<BenchMachine>,
}

/// A process of ours, and where its huge pages are.
struct Process {
    space: MmRef,
    start: VirtAddr,
    pages: u32,
}

impl Process {
    fn spans(&self) -> impl Iterator<Item = VirtRange> + use<> {
        let start = self.start;
        (0..u64::from(self.pages)).map(move |i| {
            let first = start + i * PMD_SIZE;
            VirtRange::new(first, first + PMD_SIZE).expect("in order")
        })
    }
}

impl Ours {
    fn boot() -> Self {
        Self { mem: boot(FRAMES) }
    }

    fn process(&self, pages: u32) -> Process {
        let space = self.mem.new_space().expect("memory is there");
        let request = MapRequest {
            hint: PMD_SIZE << 9,
            len: u64::from(pages) * PMD_SIZE,
            prot: Prot::READ | Prot::WRITE,
            place: Place::Fixed,
            flags: VmaFlags::empty(),
        };
        let start = self.mem.mmap(&space, request).expect("memory is there");
        let process = Process { space, start, pages };
        prepare(|| self.write_all(&process));
        process
    }

    fn split_pmds(&self, process: &Process) {
        process
            .spans()
            .for_each(|span| self.mem.split_huge_pmd(&process.space, span.start()));
    }

    fn exit(&self, process: Process) {
        self.mem.put_space(process.space);
    }

    fn split_pmd(&self) -> Timed {
        let process = self.process(PAGES);
        let timed = time(PAGES, || self.split_pmds(&process));
        self.exit(process);
        timed
    }

    fn zap_ptes(&self) -> Timed {
        let process = self.process(PAGES);
        self.split_pmds(&process);
        let timed = time(PAGES, || {
            process.spans().for_each(|span| {
                let done = self.mem.madvise(&process.space, span, Advice::DontNeed);
                done.expect("the range is mapped");
            });
        });
        self.exit(process);
        timed
    }

    fn split_folio(&self) -> Timed {
        let process = self.process(PAGES);
        let folios: Vec<Folio<'_>> = process
            .spans()
            .map(|span| self.mem.get_user_page(&process.space, span.start(), Access::Read))
            .map(|found| found.expect("it is mapped").0)
            .collect();
        let locked: Vec<_> = folios
            .into_iter()
            .map(|folio| {
                let lock = self.mem.try_lock_folio(&folio).expect("nobody holds it");
                (folio, lock)
            })
            .collect();
        let mut parts = Vec::with_capacity(PAGES as usize);
        let timed = time(PAGES, || {
            parts.extend(locked.into_iter().map(|(folio, lock)| {
                let split = self.mem.split_folio(folio, lock, 0);
                split.map_err(|(error, ..)| error).expect("nobody pins it")
            }));
        });
        for (folio, lock) in parts {
            drop(lock);
            self.mem.put(folio);
        }
        self.exit(process);
        timed
    }

    /// The child's last step, giving its tables back, is not timed.
    fn fork(&self, parent: &Process) -> Timed {
        let mut child = None;
        let timed = time(parent.pages, || child = self.mem.fork_space(&parent.space).ok());
        self.mem.put_space(child.expect("memory is there"));
        timed
    }

    /// Makes what a fork took away come back: every huge page is written once more.
    fn write_all(&self, process: &Process) {
        for span in process.spans() {
            let fault = FaultInfo {
                addr: span.start(),
                access: Access::Write,
            };
            assert_eq!(self.mem.handle_fault(&process.space, fault), VmFault::Done);
        }
    }
}

/// The other side: [`PAGES`] huge pages with records and tables as Linux lays them out.
struct Linux {
    zone: Zone,
    tables: Vec<Box<PageTable>>,
    child: Vec<Box<PageTable>>,
}

impl Linux {
    fn new() -> Self {
        let tables = || (0..PAGES).map(|_| Box::new(page_table())).collect();
        Self {
            zone: Zone::new(FRAMES),
            tables: tables(),
            child: tables(),
        }
    }

    fn huge_pages(&self, pages: u32) -> Vec<u32> {
        let take = |_| {
            let head = self.zone.alloc(0, HUGE).expect("memory is there");
            make_huge(&self.zone, head);
            head
        };
        (0..pages).map(take).collect()
    }

    fn give_back(&self, heads: &[u32]) {
        for &head in heads {
            unmake_huge(&self.zone, head);
            self.zone.put(0, head, HUGE);
        }
    }

    fn split_all(&self, heads: &[u32]) {
        for (&head, table) in heads.iter().zip(&self.tables) {
            linux::split_pmd(&self.zone, head, table);
        }
    }

    fn split_pmd(&self) -> Timed {
        let heads = self.huge_pages(PAGES);
        let timed = time(PAGES, || self.split_all(&heads));
        self.give_back(&heads);
        timed
    }

    fn zap_ptes(&self) -> Timed {
        let heads = self.huge_pages(PAGES);
        self.split_all(&heads);
        time(PAGES, || {
            self.tables
                .iter()
                .for_each(|table| linux::zap_ptes(&self.zone, table))
        })
    }

    fn split_folio(&self) -> Timed {
        let heads = self.huge_pages(PAGES);
        let timed = time(PAGES, || {
            for (&head, table) in heads.iter().zip(&self.tables) {
                linux::split_folio(&self.zone, head, table);
            }
        });
        self.give_back(&heads);
        timed
    }

    fn fork_ptes(&self) -> Timed {
        let heads = self.huge_pages(PAGES);
        self.split_all(&heads);
        let mut frames = Vec::with_capacity(PAGES as usize);
        let timed = time(PAGES, || {
            let pairs = self.tables.iter().zip(&self.child);
            frames.extend(pairs.filter_map(|(table, child)| linux::fork_ptes(&self.zone, table, child)));
        });
        frames.iter().for_each(|&frame| self.zone.put(0, frame, 0));
        self.give_back(&heads);
        timed
    }

    fn fork_pmd(&self) -> Timed {
        let heads = self.huge_pages(FORKED);
        let mut frames = Vec::with_capacity(FORKED as usize);
        let timed = time(FORKED, || {
            let entries = self.tables[0].iter().zip(self.child[0].iter());
            let forked = heads
                .iter()
                .zip(entries)
                .filter_map(|(&head, (parent, child))| linux::fork_pmd(&self.zone, head, parent, child));
            frames.extend(forked);
        });
        frames.iter().for_each(|&frame| self.zone.put(0, frame, 0));
        self.give_back(&heads);
        timed
    }
}

/// One locked increment in each of 512 records of 64 bytes, per huge page.
fn atomics(counters: &[AtomicU32]) -> Timed {
    time(PAGES, || {
        (0..PAGES).for_each(|_| {
            counters
                .iter()
                .step_by(16)
                .for_each(|count| _ = count.fetch_add(1, Relaxed))
        });
    })
}

/// Runs a turn twice; returns the second time.
fn again(turn: &dyn Fn() -> Timed) -> Timed {
    turn();
    turn()
}

fn wins(title: &str, costs: &[Cost], times: f64) {
    goal(
        &format!("{title}: {times} times faster than the Linux layout"),
        times * costs[0].min <= costs[1].min,
    );
    println!();
}

/// Runs the rows whose title is wanted.
pub(crate) fn rows(wanted: &dyn Fn(&str) -> bool) {
    let ours = Ours::boot();
    let linux = Linux::new();
    type Turns<'a> = (&'a str, f64, &'a dyn Fn() -> Timed, &'a dyn Fn() -> Timed);
    let against_the_layout: [Turns<'_>; 3] = [
        ("split_pmd of one huge page", 5.0, &|| ours.split_pmd(), &|| {
            linux.split_pmd()
        }),
        (
            "zap of 512 PTEs of a huge page",
            5.0,
            &|| ours.zap_ptes(),
            &|| linux.zap_ptes(),
        ),
        (
            "split_folio, PMD-mapped once",
            4.0,
            &|| ours.split_folio(),
            &|| linux.split_folio(),
        ),
    ];
    let counters: Vec<AtomicU32> = (0..512 * 16).map(|_| AtomicU32::new(0)).collect();
    for (title, times, mine, theirs) in against_the_layout {
        if wanted(title) {
            let mut contenders = vec![
                Contender::new("ours", mine),
                Contender::new("linux layout", theirs),
            ];
            if title.starts_with("split_pmd") {
                contenders.push(Contender::new("512 atomic increments", || atomics(&counters)));
            }
            wins(title, &row(title, TURNS, contenders), times);
        }
    }
    fork_rows(wanted, &ours, &linux);
}

fn fork_rows(wanted: &dyn Fn(&str) -> bool, ours: &Ours, linux: &Linux) {
    let title = "fork of a PTE-mapped huge page";
    if wanted(title) {
        let mine = || {
            let parent = ours.process(PAGES);
            ours.split_pmds(&parent);
            let timed = ours.fork(&parent);
            ours.exit(parent);
            timed
        };
        let contenders = vec![
            Contender::new("ours", || again(&mine)),
            Contender::new("linux layout", || again(&|| linux.fork_ptes())),
        ];
        wins(title, &row(title, TURNS, contenders), 5.0);
    }
    let title = "fork of a PMD-mapped huge page";
    if wanted(title) {
        let parent = ours.process(FORKED);
        let mine = || {
            ours.write_all(&parent);
            ours.fork(&parent)
        };
        let contenders = vec![
            Contender::new("ours", || again(&mine)),
            Contender::new("table, 2 stores, 2 adds", || again(&|| linux.fork_pmd())),
        ];
        let costs = row(title, TURNS, contenders);
        goal(
            &format!("{title}: within 2 times of the bare loop"),
            costs[0].min <= 2.0 * costs[1].min,
        );
        println!();
        ours.exit(parent);
    }
}

const _: () = assert!(size_of::<PageTable>() == size_of::<[AtomicU64; 512]>());
