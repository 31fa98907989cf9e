//! The rows.

use mm::{HPAGE_PAGES, counter::Counter, flags::Prot};

use super::{HUGE, Op, Scenario};
use crate::oracle::Row;

/// Fixture F1: one private anonymous huge page, mapped by PMD, written once.
const F1: [Op; 2] = [
    Op::Map {
        first: 0,
        pages: HUGE,
    },
    Op::Write { page: 0, byte: 0x5a },
];

/// C, raw0, raw7, mc0, mc7, total and references of a huge page that is not double mapped.
const fn row(entire: u32, raw: (i32, i32), mapcount: (u32, u32), total: u32, refs: u32) -> Op {
    Op::ExpectRow(Row {
        entire,
        double_map: false,
        raw0: raw.0,
        raw7: raw.1,
        mapcount0: mapcount.0,
        mapcount7: mapcount.1,
        total,
        refs,
    })
}

/// T1.1.
const ROW_F1: Op = row(1, (-1, -1), (1, 1), 1, 1);
/// F1 with its PMD split.
const ROW_SPLIT: Op = row(0, (0, 0), (1, 1), N, N);
/// F1 split, subpage 7 unmapped.
const ROW_SPLIT_LESS_7: Op = row(0, (0, -1), (1, 0), N - 1, N - 1);

/// [`HUGE`] in the width of counts, and of differences.
const N: u32 = HPAGE_PAGES;
const DELTA: i64 = HPAGE_PAGES as i64;

const ALL_PAGES: (u64, u64) = (0, HUGE);

const fn flags((first, pages): (u64, u64), word: u64) -> Op {
    Op::ExpectFlags { first, pages, word }
}

const fn counts((first, pages): (u64, u64), count: u64) -> Op {
    Op::ExpectCounts { first, pages, count }
}

macro_rules! scenarios {
    ($($(#[$doc:meta])* $id:ident = $name:literal: [$($op:expr,)*];)*) => {
        $($(#[$doc])* const $id: Scenario = Scenario { name: $name, ops: &[$($op,)*] };)*
        /// All scenarios.
        pub const ALL: &[Scenario] = &[$($id,)*];
    };
}

scenarios! {
    T1_1 = "T1.1 a huge page mapped by one PMD": [
        F1[0], F1[1], ROW_F1,
        Op::ExpectDelta(Counter::NrAnonPages, DELTA),
        Op::ExpectDelta(Counter::NrAnonThps, 1),
        Op::ExpectDelta(Counter::ThpFaultAlloc, 1),
        Op::ExpectDelta(Counter::ThpFaultFallback, 0),
        Op::ExpectDelta(Counter::ThpDeferredSplitPage, 0),
        Op::ExpectDelta(Counter::PgFault, 1),
        Op::ExpectDelta(Counter::NrInactiveAnon, DELTA),
        Op::ExpectRss(HUGE),
    ];
    T2_2 = "T2.2 every subpage counts one mapping and is anonymous": [
        F1[0], F1[1],
        counts(ALL_PAGES, 1),
        Op::ExpectAnon { first: 0, pages: HUGE },
    ];
    T2_5 = "T2.5 reports accept free, reserved, missing and impossible frames": [
        F1[0], F1[1],
        Op::ExpectReportsDefined,
        Op::Unmap { first: 0, pages: HUGE },
        Op::ExpectReportsDefined,
    ];
    T3_1 = "T3.1 unmapping one base page queues the huge page and frees nothing": [
        F1[0], F1[1], ROW_F1, Op::Mark,
        Op::Unmap { first: 7, pages: 1 },
        ROW_SPLIT_LESS_7,
        Op::ExpectDelta(Counter::ThpDeferredSplitPage, 1),
        Op::ExpectDelta(Counter::ThpSplitPmd, 1),
        Op::ExpectDelta(Counter::ThpSplitPage, 0),
        Op::ExpectDelta(Counter::NrAnonPages, -1),
        Op::ExpectDelta(Counter::NrAnonThps, -1),
        Op::ExpectQueued(1),
        Op::ExpectRss(HUGE - 1),
        counts((7, 1), 0), counts((0, 7), 1), counts((8, HUGE - 8), 1),
        // The flag M speaks for the whole compound page: the unmapped subpage still shows it.
        Op::ExpectAnon { first: 0, pages: HUGE },
        // The second area needs a record; a slab for it may come from the page allocator, the huge page does not go.
        Op::Unmap { first: 0, pages: 7 },
        Op::Unmap { first: 8, pages: HUGE - 8 },
        Op::ExpectQueued(0), Op::ExpectFreed,
        Op::ExpectDelta(Counter::ThpDeferredSplitPage, 1),
    ];
    T3_3 = "T3.3 unmapping every other page queues the huge page once, and splitting it frees them": [
        F1[0], F1[1], ROW_F1, Op::Mark,
        Op::DontNeedOdd,
        row(0, (0, -1), (1, 0), N / 2, N / 2),
        Op::ExpectDelta(Counter::ThpDeferredSplitPage, 1),
        Op::ExpectDelta(Counter::ThpSplitPmd, 1),
        Op::ExpectDelta(Counter::ThpSplitPage, 0),
        Op::ExpectDelta(Counter::NrAnonPages, -DELTA / 2),
        Op::ExpectQueued(1),
        Op::ExpectFree(0),
        Op::ExpectRss(HUGE / 2),
        Op::SplitDeferred { split: 1 },
        Op::ExpectDelta(Counter::ThpDeferredSplitPage, 1),
        Op::ExpectDelta(Counter::ThpSplitPmd, 1),
        Op::ExpectDelta(Counter::ThpSplitPage, 1),
        Op::ExpectDelta(Counter::ThpSplitPageFailed, 0),
        Op::ExpectDelta(Counter::NrAnonPages, -DELTA / 2),
        Op::ExpectQueued(0),
        Op::ExpectFree(DELTA / 2),
        Op::ExpectRss(HUGE / 2),
        Op::ExpectByte { page: 0, byte: 0x5a },
        Op::ExpectByte { page: HUGE - 2, byte: 0 },
    ];
    T3_4 = "T3.4 unmapping all PTEs at once never queues the page": [
        F1[0], F1[1], ROW_F1, Op::Mark,
        Op::SplitPmd { page: 0 },
        Op::Unmap { first: 0, pages: HUGE },
        Op::ExpectDelta(Counter::ThpDeferredSplitPage, 0),
        Op::ExpectQueued(0), Op::ExpectFreed,
    ];
    T3_5 = "T3.5 unmapping the whole huge page at once splits and queues nothing": [
        F1[0], F1[1], ROW_F1, Op::Mark,
        Op::Unmap { first: 0, pages: HUGE },
        Op::ExpectDelta(Counter::ThpDeferredSplitPage, 0),
        Op::ExpectDelta(Counter::ThpSplitPmd, 0),
        Op::ExpectDelta(Counter::NrAnonPages, -DELTA),
        Op::ExpectDelta(Counter::NrAnonThps, -1),
        Op::ExpectFreed,
    ];
    T4_1 = "T4.1 a PMD split needs no memory": [
        F1[0], F1[1], ROW_F1,
        Op::Exhaust, Op::Mark,
        Op::SplitPmd { page: HUGE / 4 },
        Op::ExpectDelta(Counter::ThpSplitPmd, 1),
        Op::ExpectDelta(Counter::PgAlloc, 0),
        ROW_SPLIT,
        Op::ExpectByte { page: 0, byte: 0x5a },
        Op::ExpectByte { page: HUGE - 1, byte: 0 },
        Op::Refill,
    ];
    T4_2 = "T4.2 a pinned huge page's PMD splits, and the pin stays good": [
        F1[0], F1[1], ROW_F1,
        Op::Pin { page: 9, times: 1 },
        row(1, (-1, -1), (1, 1), 1, 2), Op::Mark,
        Op::SplitPmd { page: 0 },
        row(0, (0, 0), (1, 1), N, N + 1),
        Op::ExpectByte { page: 0, byte: 0x5a },
        Op::Unpin { page: 9, times: 1 },
        ROW_SPLIT,
    ];
    T4_3 = "T4.3 splitting a PMD twice is splitting it once": [
        F1[0], F1[1], ROW_F1, Op::Mark,
        Op::SplitPmd { page: 0 },
        ROW_SPLIT,
        Op::SplitPmd { page: HUGE - 1 },
        ROW_SPLIT,
        Op::ExpectDelta(Counter::ThpSplitPmd, 1),
        Op::ExpectDelta(Counter::ThpDeferredSplitPage, 0),
        Op::ExpectDelta(Counter::NrAnonThps, -1),
        Op::ExpectDelta(Counter::NrAnonPages, 0),
        Op::ExpectRss(HUGE),
        Op::ExpectFree(0),
    ];
    T4_5 = "T4.5 a read-only PMD becomes read-only PTEs": [
        Op::Map { first: 0, pages: HUGE }, Op::Fill { first: 0, pages: HUGE },
        Op::Protect { first: 0, pages: HUGE, prot: Prot::READ },
        ROW_F1,
        Op::SplitPmd { page: 0 },
        ROW_SPLIT,
        Op::ExpectReadOnly { page: 0 }, Op::ExpectReadOnly { page: HUGE / 2 + 1 }, Op::ExpectReadOnly { page: HUGE - 1 },
        Op::ExpectFilled { first: 0, pages: HUGE },
        // The PMD was dirty, so now the page is.
        flags((0, 1), 0x4_0040_d838),
        Op::Protect { first: 0, pages: HUGE, prot: Prot::READ.union(Prot::WRITE) },
        Op::Write { page: HUGE / 2 + 1, byte: 1 },
        Op::ExpectByte { page: HUGE / 2 + 1, byte: 1 },
        ROW_SPLIT,
    ];
    T7_1 = "T7.1 tails answer for the head's mapping": [
        F1[0], F1[1],
        Op::ExpectAnon { first: 1, pages: HUGE - 1 },
        Op::SplitPmd { page: 0 },
        Op::ExpectAnon { first: 1, pages: HUGE - 1 },
    ];
    T10_1 = "T10.1 references to a tail are the head's": [
        F1[0], F1[1], ROW_F1,
        Op::Pin { page: 7, times: 1000 },
        row(1, (-1, -1), (1, 1), 1, 1001),
        Op::ExpectNoReferences { first: 1, pages: HUGE - 1 },
        counts((7, 1), 1),
        Op::Unpin { page: 7, times: 1000 },
        ROW_F1,
    ];
    T10_3 = "T10.3 giving back the last reference through a tail frees the whole block": [
        F1[0], F1[1], ROW_F1,
        Op::Pin { page: 7, times: 1 },
        Op::Unmap { first: 0, pages: HUGE },
        row(0, (-1, -1), (0, 0), 0, 1), Op::Mark,
        Op::Unpin { page: 7, times: 1 },
        // The block, and the slab of the anon_vma that nobody names any more.
        Op::ExpectDelta(Counter::PgFree, DELTA + 1),
        Op::ExpectFree(DELTA + 1),
        Op::ExpectFreed,
    ];
    F1_FLAGS = "F1 kpageflags are those of Linux 6.1": [
        F1[0], F1[1],
        flags((0, 1), 0x4_0040_d828),
        flags((1, HUGE - 1), 0x41_1800),
        counts(ALL_PAGES, 1),
        Op::SplitPmd { page: 0 },
        // The dirty bit moves from the PMD to the page.
        flags((0, 1), 0x4_0040_d838),
        Op::Unmap { first: 7, pages: 1 },
        flags((0, 1), 0x4_0040_d838),
        counts((7, 1), 0),
    ];
    DEMONSTRATION = "demonstration: 8 MiB of huge pages lose one base page": [
        Op::Map { first: 0, pages: 4 * HUGE },
        Op::Fill { first: 0, pages: 4 * HUGE },
        Op::ExpectDelta(Counter::NrAnonThps, 4),
        Op::ExpectDelta(Counter::NrAnonPages, 4 * DELTA),
        Op::ExpectRss(4 * HUGE),
        Op::Mark,
        Op::DontNeed { first: HUGE + HUGE / 2, pages: 1 },
        Op::ExpectDelta(Counter::NrAnonThps, -1),
        Op::ExpectDelta(Counter::NrAnonPages, -1),
        Op::ExpectDelta(Counter::ThpSplitPmd, 1),
        Op::ExpectDelta(Counter::ThpDeferredSplitPage, 1),
        Op::ExpectQueued(1),
        Op::ExpectFree(0),
        Op::ExpectFilled { first: 0, pages: HUGE + HUGE / 2 },
        Op::ExpectByte { page: HUGE + HUGE / 2, byte: 0 },
        Op::ExpectFilled { first: HUGE + HUGE / 2 + 1, pages: 3 * HUGE - HUGE / 2 - 1 },
        Op::Unmap { first: 0, pages: 4 * HUGE },
        Op::ExpectQueued(0),
        Op::ExpectDelta(Counter::NrAnonPages, -4 * DELTA),
    ];
}
