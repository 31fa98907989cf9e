//! What the checker says when a rule does not hold, and the comparisons that say it.

use core::fmt;

use crate::{
    addr::{Pfn, VirtAddr},
    counter::Counter,
    flags::PageFlags,
    page::Page,
};

/// Which rule was broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// I1: a tail has no references of its own.
    TailReferences,
    /// I1: tails lead to a head that spans them, and heads have all their tails.
    CompoundLinks,
    /// I1: what a tail belongs to is written on its head alone.
    TailMapping,
    /// I2: references of a folio or block.
    References,
    /// I3: mapcount of one page.
    Mapcount,
    /// I4: PMD mappings of a folio.
    EntireMapcount,
    /// I4: all mappings of a folio.
    TotalMapcount,
    /// I5: the DOUBLE_MAP flag.
    DoubleMap,
    /// I7 and the other sums: a vmstat counter.
    Count(Counter),
    /// What is marked as one process's alone is mapped once at the most.
    Exclusive,
    /// Pins of a folio, each of which has a reference.
    Pins,
    /// I8: who is on the deferred split queue, and that everybody is who should be.
    DeferredQueue,
    /// I9: deposited tables of one PMD table.
    DepositedTables,
    /// I10: an entry that must not outlive its operation.
    TransientEntry,
    /// I11: a free frame is on one list, once.
    FreeListed,
    /// I11: a free frame's record is clear.
    FreeRecord,
    /// I11: two free buddies are one block.
    FreeMerged,
    /// I11: nobody wrote to a free frame.
    FreeContents,
    /// The number of free pages.
    FreeCount,
    /// The number of managed pages.
    ManagedCount,
    /// A frame that is neither free nor anybody's.
    Lost,
    /// A hole or reserved frame is used by somebody.
    NotMemory,
    /// A record that was found corrupt earlier.
    BadPage,
    /// The LRU flag and the lists.
    Lru,
    /// A page table that is linked twice, or whose record does not say that it is one.
    Table,
    /// An entry outside every area, or with rights that its area does not give.
    EntryRights,
    /// A mapped page names another anon_vma or index than the area that maps it.
    Relation,
    /// I13: resident pages of a space.
    Rss,
    /// Page tables of a space.
    SpaceTables,
    /// Areas of a space: order, number, size.
    Areas,
    /// The tree of a space's areas: balance, and what it remembers of heights and gaps.
    AreaTree,
    /// Objects in the slabs.
    SlabObjects,
}

impl Rule {
    /// The invariant's name in the design, or `-` for rules without a number.
    #[must_use]
    pub const fn invariant(self) -> &'static str {
        match self {
            Self::TailReferences | Self::CompoundLinks | Self::TailMapping => "I1",
            Self::References => "I2",
            Self::Mapcount => "I3",
            Self::EntireMapcount | Self::TotalMapcount => "I4",
            Self::DoubleMap => "I5",
            Self::Count(Counter::NrAnonPages | Counter::NrAnonThps) => "I7",
            Self::DeferredQueue => "I8",
            Self::DepositedTables => "I9",
            Self::TransientEntry => "I10",
            Self::FreeListed | Self::FreeRecord | Self::FreeMerged | Self::FreeContents => "I11",
            Self::Rss => "I13",
            _ => "-",
        }
    }
}

/// The record of a page at the moment of a violation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// The page.
    pub pfn: Pfn,
    /// Its own flags.
    pub flags: PageFlags,
    /// Its own reference count.
    pub refs: u32,
    /// `page_mapcount`.
    pub mapcount: u32,
    /// Its own raw mapcount.
    pub raw_mapcount: i32,
    /// Its own mapping word.
    pub mapping: u64,
    /// Its own index word.
    pub index: u64,
    /// First page of its compound page.
    pub head: Pfn,
}

impl Snapshot {
    fn of(page: Page<'_>) -> Self {
        Self {
            pfn: page.pfn(),
            flags: page.state().flags(),
            refs: page.refs_hint(),
            mapcount: page.mapcount(),
            raw_mapcount: page.raw_mapcount(),
            mapping: page.own_mapping(),
            index: page.index(),
            head: page.head().pfn(),
        }
    }
}

/// A rule that does not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// What the recount says.
    pub expected: u64,
    /// What the record or counter says.
    pub found: u64,
    /// The page that it is about, if it is about one.
    pub page: Option<Snapshot>,
    /// The address that it is about, if it is about one.
    pub addr: Option<VirtAddr>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:?}: expected {:#x}, found {:#x}",
            self.rule.invariant(),
            self.rule,
            self.expected,
            self.found
        )?;
        if let Some(addr) = self.addr {
            write!(f, " at {:#x}", addr.as_u64())?;
        }
        if let Some(page) = self.page {
            write!(
                f,
                "; page: pfn:{} refcount:{} mapcount:{} raw:{} mapping:{:#x} index:{:#x} head:{} flags:{:?}",
                page.pfn,
                page.refs,
                page.mapcount,
                page.raw_mapcount,
                page.mapping,
                page.index,
                page.head,
                page.flags
            )?;
        }
        Ok(())
    }
}

pub(super) fn ensure(holds: bool, violation: impl FnOnce() -> Violation) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(violation()) }
}

pub(super) fn sum_violation(rule: Rule, expected: u64, found: u64) -> Violation {
    Violation {
        rule,
        expected,
        found,
        page: None,
        addr: None,
    }
}

pub(super) fn equal(rule: Rule, expected: u64, found: u64) -> Result<(), Violation> {
    ensure(expected == found, || sum_violation(rule, expected, found))
}

pub(super) fn about(
    page: Page<'_>,
    rule: Rule,
    expected: impl Into<u64>,
    found: impl Into<u64>,
) -> Result<(), Violation> {
    let (expected, found) = (expected.into(), found.into());
    ensure(expected == found, || Violation {
        page: Some(Snapshot::of(page)),
        ..sum_violation(rule, expected, found)
    })
}
