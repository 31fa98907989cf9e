//! What a sequence is made of, and how one is drawn.

use mm::{Advice, Place, Prot};
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

/// One step. Those that name a process mean whoever is in that slot; nothing happens if nobody is, or if what they
/// need is not there: so that a sequence stays one when steps are taken out of it.
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

/// A step, and the slot of the process that takes it.
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
        6 => Just(Prot::READ | Prot::WRITE),
        2 => Just(Prot::READ),
        1 => Just(Prot::empty()),
        1 => Just(Prot::READ | Prot::EXEC),
        1 => Just(Prot::WRITE),
        1 => Just(Prot::all()),
    ]
}

fn advice() -> impl Strategy<Value = Advice> {
    prop_oneof![
        5 => Just(Advice::DontNeed),
        1 => Just(Advice::NoHugePage),
        1 => Just(Advice::HugePage),
        1 => Just(Advice::Normal),
    ]
}

fn areas() -> impl Strategy<Value = Op> {
    let place =
        prop_oneof![3 => Just(Place::Fixed), 3 => Just(Place::FixedNoReplace), 1 => Just(Place::Hint)];
    prop_oneof![
        5 => (part(), prot(), place).prop_map(|(part, prot, place)| Op::Map(part, prot, place)),
        3 => part().prop_map(Op::Unmap),
        3 => (part(), prot()).prop_map(|(part, prot)| Op::Protect(part, prot)),
        5 => (part(), advice()).prop_map(|(part, advice)| Op::Advise(part, advice)),
        1 => (0..HUGE).prop_map(Op::Brk),
    ]
}

fn accesses() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (page(), offset(), any::<u8>()).prop_map(|(page, offset, byte)| Op::Write(page, offset, byte)),
        3 => (part(), any::<u8>()).prop_map(|(part, byte)| Op::Fill(part, byte)),
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
    ]
}

fn processes() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => Just(Op::Fork),
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

/// A machine, and up to `steps` steps by processes in `slots` slots on it. The first step maps memory, so that the
/// others find some.
pub(super) fn game(slots: usize, steps: usize) -> impl Strategy<Value = (Config, Arena, Vec<Step>)> {
    let arena = prop_oneof![5 => Just(Arena::MIDDLE), 1 => Just(Arena::TOP)];
    let first = (part(), Just(Prot::READ | Prot::WRITE))
        .prop_map(|(part, prot)| (0, Op::Map(part, prot, Place::Fixed)));
    let rest = prop::collection::vec((0..slots, op()), 1..steps);
    let steps = (first, rest).prop_map(|(first, rest)| core::iter::once(first).chain(rest).collect());
    (machine(), arena, steps)
}
