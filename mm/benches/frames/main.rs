//! Frame allocator and counter benches: `cargo bench -p mm`.
//!
//! Every row runs all its contenders in turns, in one process. "ours" is `mm`; "linux layout" is the model in
//! `linux_layout.rs`; "buddy_system_allocator" is the crate of that name behind a spin lock. A word of the command line
//! that is not an option selects the rows whose title contains it.
#![feature(thread_local)]
#![expect(
    clippy::disallowed_types,
    reason = "the yardsticks are not mm: they use what their authors would"
)]

mod harness;
mod huge;
mod linux_layout;
mod platform;

use std::{hint::black_box, sync::Barrier};

use buddy_system_allocator::FrameAllocator;
use harness::{Contender, Cost, Random, Timed, heading, row, time};
use linux_layout::{HUGE, Zone};
use mm::{AllocFlags, Memory, Order, PMD_ORDER, Pfn};
use platform::{BenchMachine, NR_CPUS, boot, run_as_cpu, set_threads};
use spin::Mutex;

/// 1 GiB.
const FRAMES: u32 = 1 << 18;
const TURNS: usize = 25;

type Rival = Mutex<FrameAllocator>;

/// What the rows need of an allocator.
trait Frames: Sync {
    fn take(&self, cpu: usize, order: usize) -> Option<u32>;
    fn give(&self, cpu: usize, pfn: u32, order: usize);
}

fn order_of(order: usize) -> Order {
    Order::new(u8::try_from(order).expect("small")).expect("an order")
}

impl Frames for Memory<BenchMachine> {
    fn take(&self, _: usize, order: usize) -> Option<u32> {
        self.alloc_pages(order_of(order), AllocFlags::empty())
            .ok()
            .map(Pfn::raw)
    }

    fn give(&self, _: usize, pfn: u32, order: usize) {
        self.free_pages(Pfn::new(pfn), order_of(order));
    }
}

impl Frames for Zone {
    fn take(&self, cpu: usize, order: usize) -> Option<u32> {
        self.alloc(cpu, order)
    }

    fn give(&self, cpu: usize, pfn: u32, order: usize) {
        self.put(cpu, pfn, order);
    }
}

impl Frames for Rival {
    fn take(&self, _: usize, order: usize) -> Option<u32> {
        self.lock()
            .alloc(1 << order)
            .map(|first| u32::try_from(first).expect("a frame number"))
    }

    fn give(&self, _: usize, pfn: u32, order: usize) {
        self.lock().dealloc(pfn as usize, 1 << order);
    }
}

/// The three allocators, each with a machine of its own.
struct Three {
    ours: Memory<BenchMachine>,
    linux: Zone,
    rival: Rival,
}

impl Three {
    fn boot() -> Self {
        let mut rival = FrameAllocator::new();
        rival.add_frame(0, FRAMES as usize);
        Self {
            ours: boot(FRAMES),
            linux: Zone::new(FRAMES),
            rival: Mutex::new(rival),
        }
    }

    fn all(&self) -> [(&'static str, &dyn Rows); 3] {
        [
            ("ours", &self.ours),
            ("linux layout", &self.linux),
            ("buddy_system_allocator", &self.rival),
        ]
    }

    /// Runs `turn` as a row with every allocator.
    fn row(&self, title: &str, turn: fn(&dyn Rows) -> Timed) -> Vec<Cost> {
        let contenders = self
            .all()
            .map(|(name, frames)| Contender::new(name, move || turn(frames)));
        row(title, TURNS, contenders.into())
    }
}

/// The rows. Each is a method of its own, so that its loop is compiled for the allocator it runs.
trait Rows: Sync {
    /// Takes and gives back one block `count` times.
    fn pairs(&self, cpu: usize, order: usize, count: u32) -> Timed;
    /// Takes 64k base pages, and gives them back in reverse order.
    fn bulk_alloc(&self) -> Timed;
    /// Gives 64k base pages back in random order.
    fn bulk_free(&self) -> Timed;
    /// Takes and gives blocks of many sizes with 1000 to 2000 alive: mostly base pages, some of every order, some huge.
    fn mixed(&self) -> Timed;
    /// Both CPUs take and give base pages at once; per pair of one CPU.
    fn two_threads(&self) -> Timed;
}

const BULK: u32 = 1 << 16;

fn take_bulk(frames: &impl Frames, taken: &mut Vec<u32>) {
    taken.extend((0..BULK).map(|_| frames.take(0, 0).expect("memory is there")));
}

impl<T: Frames> Rows for T {
    fn pairs(&self, cpu: usize, order: usize, count: u32) -> Timed {
        time(count, || {
            for _ in 0..count {
                let pfn = self.take(cpu, order).expect("memory is there");
                self.give(cpu, black_box(pfn), order);
            }
        })
    }

    fn bulk_alloc(&self) -> Timed {
        let mut taken = Vec::with_capacity(BULK as usize);
        let timed = time(BULK, || take_bulk(self, &mut taken));
        taken.iter().rev().for_each(|&pfn| self.give(0, pfn, 0));
        timed
    }

    fn bulk_free(&self) -> Timed {
        let mut taken = Vec::with_capacity(BULK as usize);
        take_bulk(self, &mut taken);
        Random::new(42).shuffle(&mut taken);
        time(BULK, || taken.iter().for_each(|&pfn| self.give(0, pfn, 0)))
    }

    fn mixed(&self) -> Timed {
        const ORDERS: [usize; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 6, 8, 9];
        const STEPS: u32 = 50_000;
        let mut random = Random::new(7);
        let mut alive: Vec<(u32, usize)> = Vec::with_capacity(8192);
        let timed = time(STEPS, || {
            for _ in 0..STEPS {
                let grow = alive.len() < 1000 || (alive.len() < 2000 && random.below(2) == 0);
                if grow {
                    let order = ORDERS[random.below(ORDERS.len())];
                    if let Some(pfn) = self.take(0, order) {
                        alive.push((pfn, order));
                        continue;
                    }
                }
                let (pfn, order) = alive.swap_remove(random.below(alive.len()));
                self.give(0, pfn, order);
            }
        });
        alive.iter().for_each(|&(pfn, order)| self.give(0, pfn, order));
        timed
    }

    fn two_threads(&self) -> Timed {
        const PAIRS: u32 = 50_000;
        let barrier = Barrier::new(NR_CPUS as usize);
        let run = |cpu: u8| {
            run_as_cpu(cpu);
            barrier.wait();
            let timed = self.pairs(usize::from(cpu), 0, PAIRS);
            run_as_cpu(0);
            timed
        };
        set_threads(true);
        let slowest = std::thread::scope(|scope| {
            let other = scope.spawn(|| run(1));
            let mine = run(0);
            let other = other.join().expect("the other CPU ran");
            Timed {
                ns: mine.ns.max(other.ns),
                operations: PAIRS,
            }
        });
        set_threads(false);
        slowest
    }
}

/// Prints whether a goal was met.
pub(crate) fn goal(what: &str, met: bool) {
    println!("goal: {what}: {}", if met { "met" } else { "MISSED" });
}

fn allocator_rows(wanted: &dyn Fn(&str) -> bool) {
    let three = Three::boot();
    let mut verdicts: Vec<(String, Vec<Cost>)> = Vec::new();
    let mut run = |title: &str, turn: fn(&dyn Rows) -> Timed| {
        if wanted(title) {
            verdicts.push((title.to_owned(), three.row(title, turn)));
        }
    };
    run("order-0 pair", |frames| frames.pairs(0, 0, 100_000));
    run("order-9 pair", |frames| frames.pairs(0, HUGE, 50_000));
    run("order-0 pair, 2 threads", |frames| frames.two_threads());
    run("bulk: allocate 64k base pages", |frames| frames.bulk_alloc());
    run("bulk: free them in random order", |frames| frames.bulk_free());
    run("mixed orders, 1000-2000 alive", |frames| frames.mixed());
    for (title, costs) in &verdicts {
        goal(
            &format!("{title}: not slower than the Linux layout"),
            costs[0].min <= costs[1].min,
        );
        if title == "order-0 pair" {
            goal(
                "order-0 pair: 3 times faster than buddy_system_allocator",
                3.0 * costs[0].min <= costs[2].min,
            );
        }
    }
    println!();
}

/// T10.2: a reference to a tail must cost what a reference to a base page costs, and at most one load more.
fn reference_rows(wanted: &dyn Fn(&str) -> bool) {
    let title = "T10.2 get + put";
    if !wanted(title) {
        return;
    }
    let mem = boot(FRAMES);
    let small = mem
        .alloc_folio(Order::ZERO, AllocFlags::empty())
        .expect("memory is there");
    let large = mem
        .alloc_folio(PMD_ORDER, AllocFlags::empty())
        .expect("memory is there");
    let turn = |page: mm::page::Page<'_>| {
        time(200_000, || {
            for _ in 0..200_000 {
                let folio = mem.try_get(black_box(page)).expect("it is alive");
                mem.put(folio);
            }
        })
    };
    let (base, tail) = (small.page(), large.page().offset(7));
    row(
        title,
        TURNS,
        vec![
            Contender::new("of a base page", || turn(base)),
            Contender::new("of tail 7 of a huge page", || turn(tail)),
        ],
    );
    mem.put(small);
    mem.put(large);
}

fn main() {
    // `cargo bench` passes `--bench`; `cargo test --benches` does not and wants no measurement.
    let words: Vec<String> = std::env::args().skip(1).collect();
    if !words.iter().any(|word| word == "--bench") {
        return;
    }
    let filters: Vec<String> = words.into_iter().filter(|word| !word.starts_with('-')).collect();
    let wanted =
        |title: &str| filters.is_empty() || filters.iter().any(|filter| title.contains(filter.as_str()));
    println!(
        "{} CPUs on the host; {TURNS} turns; 1 GiB of frames\n",
        std::thread::available_parallelism().map_or(0, usize::from)
    );
    heading();
    allocator_rows(&wanted);
    reference_rows(&wanted);
    huge::rows(&wanted);
}
