//! F0: nodes: parts of the memory that are near different CPUs, by number and as sets, and which frames are in which.
//!
//! ```text
//!   frames   0 ........................................................ frames
//!   RAM      [========]   [==========================]    [============]
//!   nodes    |--- node 0 ----------|--- node 1 -------|--- node 2 ------     numa=fake=3
//!                                  ^ starts[1]        ^ starts[2]
//! ```
//! A node is one run of frame numbers, holes included. [`NodeMap::cut`] cuts so that each has about the same amount of
//! RAM, at multiples of a huge page: no block that a fault may want is torn apart.
//!
//! Origin: Linux `numa=fake=N`. Differs: no firmware table is read, so what is not cut is one node; and nodes cut from
//! one machine are all equally near.

use core::fmt;

use crate::{
    addr::{HPAGE_PAGES, Pfn, PfnRange},
    order::PMD_ORDER,
};

/// Most nodes that a machine may have.
pub const MAX_NODES: usize = NUMBERS as usize;

/// Numbers that a node can have, as many as [`MAX_NODES`].
const NUMBERS: u32 = 8;

/// The number of a node, below [`MAX_NODES`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NodeId(u8);

impl NodeId {
    /// The first node. Every CPU is nearest to it, as on a Linux whose nodes are fake.
    pub const FIRST: Self = Self(0);

    /// Wraps a number; `None` from [`MAX_NODES`] on.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        if number < NUMBERS {
            #[expect(clippy::cast_possible_truncation, reason = "it was just compared")]
            return Some(Self(number as u8));
        }
        None
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0 as u32
    }

    /// The number as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of node numbers: bit n for node n. A program's set may name numbers that no node can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeMask(u64);

impl NodeMask {
    /// No node.
    pub const EMPTY: Self = Self(0);
    /// Every number.
    pub const ALL: Self = Self(u64::MAX);
    /// Numbers that a set has room for.
    pub const BITS: u32 = u64::BITS;

    /// Wraps a bit set.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bit set.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// One node.
    #[must_use]
    pub const fn of(node: NodeId) -> Self {
        Self(1 << node.0)
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many there are.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether `node` is in it.
    #[must_use]
    pub const fn contains(self, node: NodeId) -> bool {
        self.0 & (1 << node.0) != 0
    }

    /// The same with `node` in it.
    #[must_use]
    pub const fn with(self, node: NodeId) -> Self {
        Self(self.0 | Self::of(node).0)
    }

    /// Whether all of `other` is in it.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// What is in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in this one only.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The nodes, lowest first. Numbers that no node can have are passed over.
    pub fn iter(self) -> impl Iterator<Item = NodeId> + Clone {
        (0..NUMBERS)
            .filter_map(NodeId::new)
            .filter(move |&node| self.contains(node))
    }

    /// The lowest.
    #[must_use]
    pub fn first(self) -> Option<NodeId> {
        self.iter().next()
    }

    /// The one with `n` others below it.
    #[must_use]
    pub fn nth(self, n: u32) -> Option<NodeId> {
        self.iter().nth(n as usize)
    }

    /// How many are below `node`.
    #[must_use]
    pub const fn rank(self, node: NodeId) -> u32 {
        (self.0 & ((1 << node.0) - 1)).count_ones()
    }

    /// What stands for `self` when its numbers are places in `others`: place n is the nth of them, counted round and
    /// round (Linux `MPOL_F_RELATIVE_NODES`).
    #[must_use]
    pub fn relative_to(self, others: Self) -> Self {
        let nr = others.len().max(1);
        let places = (0..Self::BITS).filter(|n| self.0 >> n & 1 != 0);
        let nodes = places.filter_map(|n| others.nth(n % nr));
        nodes.fold(Self::EMPTY, Self::with)
    }
}

/// A node would have too little memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodesTooSmall {
    /// Base pages that each would have.
    pub pages: u64,
}

/// Least RAM of a node, in base pages: what is left of it after moving both ends is at least one huge page.
const MIN_NODE_PAGES: u64 = 2 * HPAGE_PAGES as u64;

/// Which frames are in which node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeMap {
    /// First frame of each node, rising; those past `nr` mean nothing.
    starts: [u32; MAX_NODES],
    nr: u32,
}

impl NodeMap {
    /// All memory in one node.
    pub const ONE: Self = Self {
        starts: [0; MAX_NODES],
        nr: 1,
    };

    /// Cuts `ram`, given in rising order, into `nr` nodes.
    ///
    /// # Errors
    /// There is not enough RAM for so many, or more are asked for than [`MAX_NODES`], or none.
    pub fn cut(ram: impl Iterator<Item = PfnRange> + Clone, nr: u32) -> Result<Self, NodesTooSmall> {
        let all: u64 = ram.clone().map(|run| u64::from(run.nr_pages())).sum();
        let pages = all / u64::from(nr.max(1));
        if nr == 0 || nr as usize > MAX_NODES || (nr > 1 && pages < MIN_NODE_PAGES) {
            return Err(NodesTooSmall { pages });
        }
        let mut starts = [0; MAX_NODES];
        for (k, start) in (0..u64::from(nr)).zip(&mut starts).skip(1) {
            let mut before = all * k / u64::from(nr);
            for run in ram.clone() {
                let Some(past) = before.checked_sub(u64::from(run.nr_pages())) else {
                    let within = u32::try_from(before).unwrap_or(0);
                    *start = run.start().offset(within).align_down(PMD_ORDER).raw();
                    break;
                };
                before = past;
            }
        }
        Ok(Self { starts, nr })
    }

    /// How many nodes there are.
    #[must_use]
    pub const fn nr(&self) -> u32 {
        self.nr
    }

    /// All nodes.
    #[must_use]
    pub const fn nodes(&self) -> NodeMask {
        NodeMask((1 << self.nr) - 1)
    }

    /// The node that a frame belongs to.
    #[must_use]
    pub fn node_of(&self, pfn: Pfn) -> NodeId {
        let mut node = 0;
        // A handful of comparisons at most, and none on a machine of one node.
        while node + 1 < self.nr && self.starts[node as usize + 1] <= pfn.raw() {
            node += 1;
        }
        NodeId::new(node).unwrap_or(NodeId::FIRST)
    }

    /// The frames of a node, on a machine of `frames` frames; none if there is no such node.
    #[must_use]
    pub fn range(&self, node: NodeId, frames: u32) -> PfnRange {
        let bound = |n: u32| match n {
            n if n < self.nr => self.starts[n as usize],
            _ => u32::MAX,
        };
        let start = Pfn::new(bound(node.number()).min(frames));
        let end = Pfn::new(bound(node.number() + 1).min(frames));
        PfnRange::new(start, end).unwrap_or_else(|| unreachable!("starts rise"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(runs: &[(u32, u32)]) -> impl Iterator<Item = PfnRange> + Clone {
        let range =
            |&(start, end): &(u32, u32)| PfnRange::new(Pfn::new(start), Pfn::new(end)).expect("in order");
        runs.iter().map(range)
    }

    fn node(number: u32) -> NodeId {
        NodeId::new(number).expect("a small number")
    }

    #[test]
    fn nodes_have_equal_ram_and_whole_huge_pages() {
        const H: u32 = HPAGE_PAGES;
        let map = NodeMap::cut(runs(&[(1, 10 * H), (100 * H, 120 * H)]), 3).expect("enough");
        assert_eq!((map.nr(), map.nodes().bits()), (3, 0b111));
        let ranges = [0, 1, 2].map(|n| map.range(node(n), 200 * H));
        assert_eq!(ranges[0].start(), Pfn::new(0));
        // 30 H - 1 frames of RAM: a third of them each, cut at the huge page below.
        assert_eq!(ranges[1].start(), Pfn::new(100 * H));
        assert_eq!(ranges[2].start(), Pfn::new(110 * H));
        assert_eq!(ranges[2].end(), Pfn::new(200 * H));
        for (n, range) in (0..).zip(ranges) {
            assert_eq!(map.node_of(range.start()), node(n));
            assert_eq!(map.node_of(Pfn::new(range.end().raw() - 1)), node(n));
        }
        assert_eq!(map.range(node(3), 200 * H).nr_pages(), 0);
    }

    #[test]
    fn too_many_nodes_are_refused() {
        let ram = || runs(&[(0, 7 * HPAGE_PAGES)]);
        assert_eq!(NodeMap::cut(ram(), 1), Ok(NodeMap::ONE));
        assert!(NodeMap::cut(ram(), 3).is_ok());
        assert!(NodeMap::cut(ram(), 4).is_err());
        assert!(NodeMap::cut(ram(), 0).is_err());
        assert!(NodeMap::cut(runs(&[(0, 1 << 20)]), 9).is_err());
    }

    #[test]
    fn relative_numbers_go_round_and_round() {
        let others = NodeMask::from_bits(0b1010);
        assert_eq!(NodeMask::from_bits(0b0001).relative_to(others).bits(), 0b0010);
        assert_eq!(NodeMask::from_bits(0b0110).relative_to(others).bits(), 0b1010);
        assert_eq!(NodeMask::from_bits(1 << 63).relative_to(others).bits(), 0b1000);
        assert_eq!(
            NodeMask::from_bits(7).relative_to(NodeMask::EMPTY),
            NodeMask::EMPTY
        );
        assert_eq!((others.rank(node(3)), others.nth(1)), (1, Some(node(3))));
    }
}
