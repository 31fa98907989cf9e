//! What a sequence is made of, and how one is drawn.

use mm::{Advice, ClearRefs, Place, Prot, Remains, migrate::Reach};
use proptest::prelude::*;

use super::{Arena, PAGES};
use crate::{scenario::HUGE, sim::Config};

/// Most steps of a sequence.
pub const MAX_STEPS: usize = if cfg!(miri) { 8 } else { 100 };

/// Some of the arena: pages from its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// First page.
    pub at: u64,
    /// How many; what lies past the end of the arena is left out.
    pub pages: u64,
}

/// One step. Nothing happens if what it needs is not there: so that a sequence stays one when steps are taken out of it.
#[derive(Clone, Debug)]
pub enum Op {
    /// `mmap`.
    Map(Part, Prot, Place),
    /// `munmap`.
    Unmap(Part),
    /// `mprotect`.
    Protect(Part, Prot),
    /// `madvise`.
    Advise(Part, Advice),
    /// Stores a byte at this offset of a page.
    Write(u64, u16, u8),
    /// Stores a byte in every page.
    Fill(Part, u8),
    /// Loads the byte at this offset of a page.
    Read(u64, u16),
    /// Fetches from a page.
    Fetch(u64),
    /// Turns a PMD into PTEs.
    SplitPmd(u64),
    /// Splits the huge page itself, by one of its pages.
    SplitFolio(u64),
    /// Holds a page by its frame number, to be written to or read from.
    Pin(u64, Writing),
    /// Ends the nth pin.
    Unpin(usize),
    /// A device writes through the nth pin.
    WriteThroughPin(usize, u16, u8),
    /// `mremap`: the new length in pages, where to if not in place, what stays behind.
    Remap(Part, u64, Option<u64>, Remains),
    /// Moves pages to other frames: those that nobody else maps, or all.
    Migrate(Part, Reach),
    /// Forgets which pages were used, or written.
    ClearRefs(ClearRefs),
    /// Moves the end of the heap, in pages from its start.
    Brk(u64),
    /// Lets the next accesses come from the process's other CPU.
    OtherCpu,
    /// A child in the first free slot.
    Fork,
    /// The process ends.
    Exit,
    /// Drains so many pages of the deferred queue.
    Shrink(u32),
    /// Gives the huge zero page back if nobody uses it.
    ShrinkZero,
    /// Lets the nth allocation from now fail, if the next step makes so many.
    Fail(u64),
}

/// What a pin is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writing {
    /// Input: the device writes.
    Yes,
    /// Output: the device reads.
    No,
}

/// A step, and which of the living processes takes it: the nth, counted round and round.
pub type Step = (usize, Op);

fn place_in_span() -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(0u64), 2 => Just(7), 2 => Just(HUGE - 1), 2 => Just(HUGE / 2), 3 => 0..HUGE]
}

/// Mostly in the first span: operations should meet.
fn page() -> impl Strategy<Value = u64> {
    let span = prop_oneof![3 => Just(0u64), 4 => 0..PAGES / HUGE];
    (span, place_in_span()).prop_map(|(span, page)| span * HUGE + page)
}

fn part() -> impl Strategy<Value = Part> {
    let pages = prop_oneof![3 => Just(1u64), 1 => Just(2), 4 => Just(HUGE), 2 => Just(2 * HUGE), 1 => Just(HUGE - 7), 2 => 1..HUGE];
    (page(), pages).prop_map(|(at, pages)| Part { at, pages })
}

/// Bytes that catch copies of too little: the first, the last, any.
fn offset() -> impl Strategy<Value = u16> {
    prop_oneof![2 => Just(0u16), 1 => Just(4095), 1 => 0..4096u16]
}

fn prot() -> impl Strategy<Value = Prot> {
    prop_oneof![
        12 => Just(Prot::READ | Prot::WRITE),
        2 => Just(Prot::READ),
        1 => Just(Prot::empty()),
        1 => Just(Prot::READ | Prot::EXEC),
        1 => Just(Prot::WRITE),
        1 => Just(Prot::all()),
    ]
}

fn advice() -> impl Strategy<Value = Advice> {
    let about_fork = prop_oneof![
        Just(Advice::DontFork),
        Just(Advice::DoFork),
        Just(Advice::WipeOnFork),
        Just(Advice::KeepOnFork),
    ];
    let hints = prop_oneof![
        Just(Advice::Normal),
        Just(Advice::Sequential),
        Just(Advice::Random),
        Just(Advice::WillNeed),
        Just(Advice::DontDump),
        Just(Advice::DoDump),
    ];
    prop_oneof![
        6 => Just(Advice::DontNeed),
        1 => Just(Advice::DontNeedLocked),
        1 => Just(Advice::NoHugePage),
        2 => Just(Advice::HugePage),
        1 => Just(Advice::PopulateRead),
        2 => Just(Advice::PopulateWrite),
        1 => Just(Advice::Cold),
        3 => Just(Advice::Free),
        3 => Just(Advice::PageOut),
        2 => about_fork,
        2 => hints,
    ]
}

fn remap() -> impl Strategy<Value = Op> {
    let remains = prop_oneof![4 => Just(Remains::Nothing), 1 => Just(Remains::EmptyArea)];
    let to = prop_oneof![1 => Just(None), 4 => page().prop_map(Some)];
    let new_len = prop_oneof![3 => Just(None), 1 => (1..2 * HUGE).prop_map(Some)];
    (part(), new_len, to, remains)
        .prop_map(|(part, len, to, remains)| Op::Remap(part, len.unwrap_or(part.pages), to, remains))
}

fn clear_refs() -> impl Strategy<Value = Op> {
    let what = prop_oneof![
        3 => Just(ClearRefs::SoftDirty),
        1 => Just(ClearRefs::Referenced),
        1 => Just(ClearRefs::PeakRss),
    ];
    what.prop_map(Op::ClearRefs)
}

fn areas() -> impl Strategy<Value = Op> {
    let place =
        prop_oneof![3 => Just(Place::Fixed), 3 => Just(Place::FixedNoReplace), 1 => Just(Place::Hint)];
    prop_oneof![
        4 => (part(), prot(), place).prop_map(|(part, prot, place)| Op::Map(part, prot, place)),
        2 => part().prop_map(Op::Unmap),
        3 => (part(), prot()).prop_map(|(part, prot)| Op::Protect(part, prot)),
        4 => (part(), advice()).prop_map(|(part, advice)| Op::Advise(part, advice)),
        4 => remap(),
        1 => (0..HUGE).prop_map(Op::Brk),
        1 => clear_refs(),
    ]
}

fn accesses() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (page(), offset(), any::<u8>()).prop_map(|(page, offset, byte)| Op::Write(page, offset, byte)),
        4 => (part(), any::<u8>()).prop_map(|(part, byte)| Op::Fill(part, byte)),
        2 => (page(), offset()).prop_map(|(page, offset)| Op::Read(page, offset)),
        1 => page().prop_map(Op::Fetch),
    ]
}

fn folios() -> impl Strategy<Value = Op> {
    let writing = prop_oneof![2 => Just(Writing::Yes), 1 => Just(Writing::No)];
    prop_oneof![
        3 => page().prop_map(Op::SplitPmd),
        2 => page().prop_map(Op::SplitFolio),
        2 => (page(), writing).prop_map(|(page, writing)| Op::Pin(page, writing)),
        2 => (0..8usize).prop_map(Op::Unpin),
        1 => (0..8usize, offset(), any::<u8>())
            .prop_map(|(pin, offset, byte)| Op::WriteThroughPin(pin, offset, byte)),
        2 => (1..4u32).prop_map(Op::Shrink),
        1 => Just(Op::ShrinkZero),
        2 => part().prop_map(|part| Op::Migrate(part, Reach::Own)),
        3 => part().prop_map(|part| Op::Migrate(part, Reach::All)),
    ]
}

fn processes() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => Just(Op::Fork),
        2 => Just(Op::Exit),
        2 => Just(Op::OtherCpu),
        3 => (1..8u64).prop_map(Op::Fail),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![5 => areas(), 6 => accesses(), 4 => folios(), 3 => processes()]
}

/// Frames of a machine that has plenty, and of one that has not. Four processes that share nothing would need more
/// than either.
const FRAMES: [u32; 2] = if mm::ENTRIES == 512 {
    [4096, 2048]
} else {
    [640, 192]
};

/// A machine with holes in its memory.
fn machine() -> impl Strategy<Value = Config> {
    prop_oneof![4 => Just(FRAMES[0]), 1 => Just(FRAMES[1])].prop_map(|frames| Config {
        frames,
        nr_cpus: 8,
        holes: vec![frames / 2..frames / 2 + 3, frames - 9..frames - 8],
    })
}

/// A machine, and up to `steps` steps on it. Most begin with some huge pages, so that the others find them.
pub(super) fn game(slots: usize, steps: usize) -> impl Strategy<Value = (Config, Arena, Vec<Step>)> {
    let arena = prop_oneof![5 => Just(Arena::MIDDLE), 1 => Just(Arena::TOP)];
    let whole = Part { at: 0, pages: PAGES };
    let map = (0, Op::Map(whole, Prot::READ | Prot::WRITE, Place::Fixed));
    let fill = any::<u8>().prop_map(|byte| {
        (
            0,
            Op::Fill(
                Part {
                    at: 0,
                    pages: 2 * HUGE,
                },
                byte,
            ),
        )
    });
    let first = prop_oneof![
        1 => Just(vec![]),
        2 => Just(vec![map.clone()]),
        6 => fill.prop_map(move |fill| vec![map.clone(), fill]),
    ];
    let rest = prop::collection::vec((0..slots, op()), 1..steps - 2);
    let steps = (first, rest).prop_map(|(first, rest)| [first, rest].concat());
    (machine(), arena, steps)
}
