//! Runs a scenario on a machine.

use core::fmt;

use linux_abi::page::pm;
use mm::{
    addr::{PAGE_BYTES, PAGE_SIZE, Pfn, VirtAddr, VirtRange},
    advise::Advice,
    check::{Owners, Violation},
    counter::{Counter, NR_COUNTERS},
    error::MapError,
    flags::{AllocFlags, Prot, VmaFlags},
    mapping::{MapRequest, Place},
    memory::Memory,
    order::{Order, PMD_ORDER},
    page::Page,
    platform::Platform,
    report,
};

use super::{HOME, HUGE, Op, Refused, Runner, Scenario};
use crate::oracle::Row;

/// A step that did not do what it should.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// The scenario.
    pub scenario: &'static str,
    /// Which step, from 0.
    pub step: usize,
    /// The step.
    pub op: Op,
    /// What was wrong.
    pub why: Why,
}

/// What was wrong with a step.
#[derive(Clone, Copy, Debug)]
pub enum Why {
    /// A value is not what it should be.
    Differs {
        /// What should be.
        expected: i128,
        /// What is.
        found: i128,
        /// The page, where there is one.
        page: u64,
    },
    /// The counters of the huge page are not what they should be; this is what they are.
    Row(Row),
    /// `mm` refused the operation.
    Map(MapError),
    /// The program's access was refused.
    Access(Refused),
    /// The access should have been refused.
    NotRefused,
    /// There is no page where one is needed.
    NoPage,
    /// The whole-memory checker found something after the step.
    Checker(Violation),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: step {} {:?}: ", self.scenario, self.step, self.op)?;
        match self.why {
            Why::Differs {
                expected,
                found,
                page,
            } => {
                write!(
                    f,
                    "page {page}: expected {expected:#x}, found {found:#x} ({expected} and {found})"
                )
            }
            Why::Checker(violation) => write!(f, "checker: {violation}"),
            why => write!(f, "{why:?}"),
        }
    }
}

/// Runs every step of `scenario`, and the checker after each.
///
/// # Errors
/// The first step that did not do what it should. The process keeps its memory; references and blocks that the scenario
/// took itself are given back.
#[expect(
    clippy::result_large_err,
    reason = "a failure ends the trial; its size costs nothing"
)]
pub fn run<R: Runner>(runner: &R, scenario: &Scenario) -> Result<(), Failure> {
    let mut state = State::new(runner);
    let mut result = Ok(());
    for (step, &op) in scenario.ops.iter().enumerate() {
        let done = state.step(op).and_then(|()| {
            // Under Miri a check takes a second: there it is made once, at the end.
            if cfg!(miri) && step + 1 < scenario.ops.len() {
                return Ok(());
            }
            runner.check(&state.held).map_err(Why::Checker)
        });
        if let Err(why) = done {
            result = Err(Failure {
                scenario: scenario.name,
                step,
                op,
                why,
            });
            break;
        }
    }
    state.give_back();
    result
}

/// What the scenario holds itself, for the checker.
#[derive(Default)]
struct Held {
    /// First of the blocks that [`Op::Exhaust`] took; each block's first bytes name the next.
    blocks: Option<Block>,
    /// The one page that is pinned, and how often.
    pinned: Option<Pfn>,
    pins: u32,
    /// How the checker follows the chain of blocks: the window's start, as an address would forget provenance.
    window: Option<*mut u8>,
}

/// A block, and a link to one.
#[derive(Clone, Copy)]
#[repr(C)]
struct Block {
    pfn: u32,
    order: u32,
}

/// The link in a block that ends the chain.
const LAST: Block = Block {
    pfn: 0,
    order: u32::MAX,
};

impl Held {
    fn link(&self, pfn: Pfn) -> *mut Block {
        let window = self.window.unwrap_or(core::ptr::null_mut());
        window.wrapping_add(pfn.index() * PAGE_SIZE).cast()
    }

    /// Puts a block that is ours on the chain.
    fn push(&mut self, pfn: Pfn, order: Order) {
        let next = self.blocks.unwrap_or(LAST);
        // SAFETY: the block was just allocated: its bytes are ours alone, inside the window and aligned.
        unsafe { self.link(pfn).write(next) };
        self.blocks = Some(Block {
            pfn: pfn.raw(),
            order: u32::from(order.raw()),
        });
    }

    /// The block that follows `block`.
    fn next(&self, block: Block) -> Option<Block> {
        // SAFETY: `push` wrote a link to the first bytes of every block of the chain, which nobody else touches.
        let next = unsafe { self.link(Pfn::new(block.pfn)).read() };
        (next.order != u32::MAX).then_some(next)
    }
}

impl Block {
    fn order(self) -> Order {
        u8::try_from(self.order)
            .ok()
            .and_then(Order::new)
            .unwrap_or(Order::ZERO)
    }
}

impl Owners for Held {
    fn for_each_block(&self, visit: &mut dyn FnMut(Pfn, Order)) {
        let mut at = self.blocks;
        while let Some(block) = at {
            visit(Pfn::new(block.pfn), block.order());
            at = self.next(block);
        }
    }

    fn for_each_reference(&self, visit: &mut dyn FnMut(Pfn)) {
        for pfn in core::iter::repeat_n(self.pinned, self.pins as usize).flatten() {
            visit(pfn);
        }
    }
}

/// Counters at a mark.
struct Marked {
    counters: [u64; NR_COUNTERS],
    free: u64,
    queued: u64,
}

struct State<'r, R: Runner> {
    runner: &'r R,
    held: Held,
    marked: Marked,
    /// First frame of the huge page at [`HOME`], once it was looked at.
    head: Option<Pfn>,
}

fn page_addr(page: u64) -> u64 {
    HOME + page * PAGE_BYTES
}

fn range(first: u64, pages: u64) -> VirtRange {
    let start = VirtAddr::new(page_addr(first));
    VirtRange::new(start, start + pages * PAGE_BYTES).unwrap_or(VirtRange::page(start))
}

fn compare(page: u64, expected: impl Into<i128>, found: impl Into<i128>) -> Result<(), Why> {
    let (expected, found) = (expected.into(), found.into());
    if expected == found {
        Ok(())
    } else {
        Err(Why::Differs {
            expected,
            found,
            page,
        })
    }
}

fn fill_byte(page: u64) -> u8 {
    // Never 0, so that a page that lost its contents is noticed.
    (page % 255).to_le_bytes()[0] + 1
}

fn mark<P: Platform>(mem: &Memory<P>) -> Marked {
    let mut counters = [0; NR_COUNTERS];
    for (value, &counter) in counters.iter_mut().zip(Counter::ALL) {
        *value = mem.count(counter);
    }
    Marked {
        counters,
        free: mem.nr_free_pages(),
        queued: mem.nr_deferred_splits(),
    }
}

fn difference(now: u64, then: u64) -> i128 {
    i128::from(now) - i128::from(then)
}

impl<'r, R: Runner> State<'r, R> {
    fn new(runner: &'r R) -> Self {
        let window = Some(runner.mem().platform().window());
        Self {
            runner,
            held: Held {
                window,
                ..Held::default()
            },
            marked: mark(runner.mem()),
            head: None,
        }
    }

    fn mem(&self) -> &'r Memory<R::Platform> {
        self.runner.mem()
    }

    fn step(&mut self, op: Op) -> Result<(), Why> {
        let (mem, space) = (self.mem(), self.runner.space());
        match op {
            Op::Map { first, pages } => self.map(first, pages),
            Op::Write { page, byte } => self.write(page, byte),
            Op::Fill { first, pages } => {
                (first..first + pages).try_for_each(|page| self.write(page, fill_byte(page)))
            }
            Op::ExpectFilled { first, pages } => {
                (first..first + pages).try_for_each(|page| self.expect_byte(page, fill_byte(page)))
            }
            Op::ExpectByte { page, byte } => self.expect_byte(page, byte),
            Op::ExpectReadOnly { page } => match self.runner.write(page_addr(page), 0xee) {
                Err(Refused::Signal) => Ok(()),
                Err(refused) => Err(Why::Access(refused)),
                Ok(()) => Err(Why::NotRefused),
            },
            Op::Unmap { first, pages } => mem.munmap(space, range(first, pages)).map_err(Why::Map),
            Op::DontNeed { first, pages } => mem
                .madvise(space, range(first, pages), Advice::DontNeed)
                .map_err(Why::Map),
            Op::DontNeedOdd => (1..HUGE).step_by(2).try_for_each(|page| {
                mem.madvise(space, range(page, 1), Advice::DontNeed)
                    .map_err(Why::Map)
            }),
            Op::SplitDeferred { split } => compare(0, split, mem.split_deferred(u32::MAX).split),
            Op::Protect { first, pages, prot } => {
                mem.mprotect(space, range(first, pages), prot).map_err(Why::Map)
            }
            Op::SplitPmd { page } => {
                mem.split_huge_pmd(space, VirtAddr::new(page_addr(page)));
                Ok(())
            }
            Op::Pin { page, times } => self.pin(page, times),
            Op::Unpin { times, .. } => self.unpin(times),
            Op::Exhaust => {
                self.exhaust();
                Ok(())
            }
            Op::Refill => {
                self.refill();
                Ok(())
            }
            Op::Mark => {
                self.marked = mark(mem);
                Ok(())
            }
            expectation => self.expect(expectation),
        }
    }

    fn expect(&mut self, op: Op) -> Result<(), Why> {
        let mem = self.mem();
        match op {
            Op::ExpectRow(row) => self.expect_row(row),
            Op::ExpectDelta(counter, delta) => {
                let then = self.marked.counters[counter as usize];
                compare(0, delta, difference(mem.count(counter), then))
            }
            Op::ExpectFree(delta) => compare(0, delta, difference(mem.nr_free_pages(), self.marked.free)),
            Op::ExpectRss(pages) => compare(0, pages, self.runner.space().rss_pages()),
            Op::ExpectQueued(delta) => {
                compare(0, delta, difference(mem.nr_deferred_splits(), self.marked.queued))
            }
            Op::ExpectFlags { first, pages, word } => self.each_frame(first, pages, |page, at| {
                compare(at, word, report::kpageflags(mem, page.pfn()))
            }),
            Op::ExpectCounts { first, pages, count } => self.each_frame(first, pages, |page, at| {
                compare(at, count, report::kpagecount(mem, page.pfn()))
            }),
            Op::ExpectAnon { first, pages } => self.each_frame(first, pages, |page, at| {
                compare(at, 1, i128::from(page.is_anon()))
            }),
            Op::ExpectNoReferences { first, pages } => {
                self.each_frame(first, pages, |page, at| compare(at, 0, page.refs_hint()))
            }
            Op::ExpectReportsDefined => self.expect_reports_defined(),
            Op::ExpectFreed => self.each_frame(0, HUGE, |page, at| {
                let word = report::kpageflags(mem, page.pfn());
                // Free in a zone, or in a CPU's magazine, where Linux shows nothing either.
                compare(at, 0, word & !(1 << linux_abi::page::kpf::BUDDY))
            }),
            _ => Ok(()),
        }
    }

    fn map(&self, first: u64, pages: u64) -> Result<(), Why> {
        let request = MapRequest {
            hint: page_addr(first),
            len: pages * PAGE_BYTES,
            prot: Prot::READ | Prot::WRITE,
            place: Place::FixedNoReplace,
            flags: VmaFlags::empty(),
        };
        let at = self.mem().mmap(self.runner.space(), request).map_err(Why::Map)?;
        compare(first, page_addr(first), at.as_u64())
    }

    fn write(&self, page: u64, byte: u8) -> Result<(), Why> {
        self.runner.write(page_addr(page), byte).map_err(Why::Access)
    }

    fn expect_byte(&self, page: u64, byte: u8) -> Result<(), Why> {
        let found = self.runner.read(page_addr(page)).map_err(Why::Access)?;
        compare(page, byte, found)
    }

    /// The record of the frame that maps `page` now.
    fn backing(&self, page: u64) -> Result<Page<'r>, Why> {
        let word = report::pagemap(self.mem(), self.runner.space(), VirtAddr::new(page_addr(page)));
        if word >> pm::PRESENT & 1 == 0 {
            return Err(Why::NoPage);
        }
        let pfn = u32::try_from(word & ((1 << pm::PFN_BITS) - 1)).map_err(|_| Why::NoPage)?;
        self.mem().pages().get(Pfn::new(pfn)).ok_or(Why::NoPage)
    }

    /// The huge page at home, remembered from when it was first asked for.
    fn head(&mut self) -> Result<Page<'r>, Why> {
        if let Some(pfn) = self.head {
            return self.mem().pages().get(pfn).ok_or(Why::NoPage);
        }
        let page = self.backing(0)?;
        self.head = Some(page.pfn());
        Ok(page)
    }

    fn each_frame(
        &mut self,
        first: u64,
        pages: u64,
        mut visit: impl FnMut(Page<'r>, u64) -> Result<(), Why>,
    ) -> Result<(), Why> {
        let head = self.head()?;
        (first..first + pages).try_for_each(|at| {
            let offset = u32::try_from(at).map_err(|_| Why::NoPage)?;
            visit(head.offset(offset), at)
        })
    }

    fn expect_row(&mut self, expected: Row) -> Result<(), Why> {
        let head = self.head()?;
        let seven = head.offset(7);
        let counts = head.map_counts();
        let found = Row {
            entire: counts.entire,
            double_map: head.is_double_mapped(),
            raw0: head.raw_mapcount(),
            raw7: seven.raw_mapcount(),
            mapcount0: head.mapcount(),
            mapcount7: seven.mapcount(),
            total: counts.total,
            refs: head.refs_hint(),
        };
        if found == expected {
            Ok(())
        } else {
            Err(Why::Row(found))
        }
    }

    /// Every frame number has an answer: no bit that the format does not know, and a hole for what does not exist.
    fn expect_reports_defined(&self) -> Result<(), Why> {
        const KNOWN: u64 = 0x3ff_07ff_ffff;
        const NOPAGE: u64 = 1 << linux_abi::page::kpf::NOPAGE;
        let mem = self.mem();
        let frames = mem.platform().frames();
        let beyond = [
            frames,
            frames.saturating_add(1),
            u32::MAX / 2,
            u32::MAX - 1,
            u32::MAX,
        ];
        for raw in (0..frames).chain(beyond) {
            let pfn = Pfn::new(raw);
            let (flags, count) = (report::kpageflags(mem, pfn), report::kpagecount(mem, pfn));
            compare(raw.into(), 0, flags & !KNOWN)?;
            let free = flags & (1 << linux_abi::page::kpf::BUDDY | NOPAGE) != 0;
            compare(raw.into(), 0, i128::from(free && count != 0))?;
            if raw >= frames {
                compare(raw.into(), NOPAGE, flags)?;
            }
            // Asked directly, records answer too.
            if let Some(page) = mem.pages().get(pfn) {
                compare(raw.into(), count, page.mapcount())?;
                let _ = (
                    page.is_anon(),
                    page.is_mapped(),
                    page.is_double_mapped(),
                    page.head(),
                );
            }
        }
        Ok(())
    }

    fn pin(&mut self, page: u64, times: u32) -> Result<(), Why> {
        let page = self.backing(page)?;
        for _ in 0..times {
            let folio = self.mem().try_get(page).ok_or(Why::NoPage)?;
            self.held.pinned = Some(folio.leak(page));
            self.held.pins += 1;
        }
        Ok(())
    }

    fn unpin(&mut self, times: u32) -> Result<(), Why> {
        for _ in 0..times {
            let pfn = self
                .held
                .pinned
                .filter(|_| self.held.pins > 0)
                .ok_or(Why::NoPage)?;
            self.held.pins -= 1;
            // SAFETY: `pin` leaked one reference for each of `pins`.
            unsafe { self.mem().put_leaked(pfn) };
        }
        Ok(())
    }

    fn exhaust(&mut self) {
        let mem = self.mem();
        for order in Order::all().rev() {
            while let Ok(pfn) = mem.alloc_pages(order, AllocFlags::RESERVE) {
                self.held.push(pfn, order);
            }
        }
    }

    fn refill(&mut self) {
        while let Some(block) = self.held.blocks {
            self.held.blocks = self.held.next(block);
            self.mem().free_pages(Pfn::new(block.pfn), block.order());
        }
    }

    fn give_back(&mut self) {
        self.refill();
        let pins = self.held.pins;
        // There are that many.
        let _ = self.unpin(pins);
    }
}

const _: () = assert!(HUGE == PMD_ORDER.nr_pages() as u64);
