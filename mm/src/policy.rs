//! F1: memory policies: on which nodes a program wants its pages.
//!
//! | mode | a new page comes from |
//! |---|---|
//! | default | the nearest node that has one; an area's default is its task's policy |
//! | local | the same |
//! | preferred | the one node given, then the nearest |
//! | preferred many | the nodes given, nearest first, then any |
//! | bind | the nodes given, nearest first, and no other: the allocation fails |
//! | interleave | the nodes given in turn, by the page's place in its area; then the nearest |
//!
//! A [`Policy`] is what a program asked for, checked; a [`Placement`] is what follows for one page: the allocator
//! understands only these. Areas and tasks each have a policy. Memory of the kernel's own (tables, records) has none: it
//! comes from the nearest node.
//!
//! Origin: Linux 6.1 `mm/mempolicy.c`. Differs: there are no cpusets, so a policy never has to be moved to other nodes;
//! kernel memory follows no policy.

use crate::{
    node::{NodeId, NodeMask},
    sync::{AtomicU32, AtomicU64},
};

/// How the nodes of a policy are used. The numbers are Linux's (`MPOL_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Mode {
    /// No wish.
    Default = 0,
    /// One node, if it has memory.
    Preferred = 1,
    /// These nodes and no other.
    Bind = 2,
    /// These nodes in turn.
    Interleave = 3,
    /// The nearest node.
    Local = 4,
    /// These nodes, if they have memory.
    PreferredMany = 5,
}

impl Mode {
    const ALL: [Self; 6] = [
        Self::Default,
        Self::Preferred,
        Self::Bind,
        Self::Interleave,
        Self::Local,
        Self::PreferredMany,
    ];

    /// The mode with this number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }
}

bitflags::bitflags! {
    /// What a policy's node numbers mean. The bits are Linux's (`MPOL_F_*`); they share a word with the mode.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct PolicyFlags: u32 {
        /// Pages that are used from elsewhere may be moved. Nothing moves by itself here: only remembered.
        const NUMA_BALANCING = 1 << 13;
        /// Numbers are places among the nodes there are.
        const RELATIVE_NODES = 1 << 14;
        /// Numbers are those of nodes, whatever nodes there are.
        const STATIC_NODES = 1 << 15;
    }
}

impl PolicyFlags {
    /// The two that say what numbers mean.
    const MEANING: Self = Self::RELATIVE_NODES.union(Self::STATIC_NODES);

    /// Whether they go together, and with `mode`.
    #[must_use]
    pub fn suit(self, mode: Mode) -> bool {
        let balancing = self.contains(Self::NUMA_BALANCING);
        !self.contains(Self::MEANING) && (!balancing || mode == Mode::Bind)
    }
}

/// A wish that means nothing: see [`Policy::new`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadPolicy;

/// On which nodes pages are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    mode: Mode,
    flags: PolicyFlags,
    /// As a program is told about them: with one of the two flags as it gave them, else the nodes that exist.
    nodes: NodeMask,
}

impl Default for Policy {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Policy {
    /// No wish.
    pub const DEFAULT: Self = Self {
        mode: Mode::Default,
        flags: PolicyFlags::empty(),
        nodes: NodeMask::EMPTY,
    };

    /// Checks a wish on a machine with the nodes `online`.
    ///
    /// # Errors
    /// Two flags that contradict each other; nodes for a mode that has none; no node that exists for one that needs
    /// some.
    ///
    /// Origin: Linux `mpol_new`, `mpol_set_nodemask`, `sanitize_mpol_flags`.
    pub fn new(mode: Mode, flags: PolicyFlags, nodes: NodeMask, online: NodeMask) -> Result<Self, BadPolicy> {
        if !flags.suit(mode) {
            return Err(BadPolicy);
        }
        let has_meaning = flags.intersects(PolicyFlags::MEANING);
        let local = Self {
            mode: Mode::Local,
            ..Self::DEFAULT
        };
        match mode {
            Mode::Default if nodes.is_empty() => return Ok(Self::DEFAULT),
            Mode::Local | Mode::Preferred if nodes.is_empty() && !has_meaning => return Ok(local),
            Mode::Default | Mode::Local => return Err(BadPolicy),
            _ => {}
        }
        let wish = Self { mode, flags, nodes };
        let meant = wish.nodes_meant(online);
        if meant.is_empty() {
            return Err(BadPolicy);
        }
        let nodes = if has_meaning { nodes } else { meant };
        Ok(Self { nodes, ..wish })
    }

    /// Its mode.
    #[must_use]
    pub const fn mode(self) -> Mode {
        self.mode
    }

    /// What its numbers mean.
    #[must_use]
    pub const fn flags(self) -> PolicyFlags {
        self.flags
    }

    /// Its nodes, as a program is told about them.
    #[must_use]
    pub const fn nodes(self) -> NodeMask {
        self.nodes
    }

    /// The nodes that it means on a machine with the nodes `online`.
    #[must_use]
    pub fn nodes_meant(self, online: NodeMask) -> NodeMask {
        let nodes = if self.flags.contains(PolicyFlags::RELATIVE_NODES) {
            self.nodes.relative_to(online)
        } else {
            self.nodes.intersection(online)
        };
        match self.mode {
            Mode::Preferred => nodes.first().map_or(NodeMask::EMPTY, NodeMask::of),
            _ => nodes,
        }
    }

    /// Where the page number `turn` should come from, asked for near the node `local`.
    #[must_use]
    pub fn placement(self, local: NodeId, online: NodeMask, turn: u64) -> Placement {
        let nodes = self.nodes_meant(online);
        match self.mode {
            Mode::Default | Mode::Local => Placement::near(local),
            Mode::Preferred => Placement::near(nodes.first().unwrap_or(local)),
            Mode::Bind => Placement::within(nodes, local),
            Mode::PreferredMany => Placement {
                otherwise: NodeMask::ALL,
                ..Placement::within(nodes, local)
            },
            Mode::Interleave => {
                let turn = turn.checked_rem(u64::from(nodes.len())).unwrap_or(0);
                let node = u32::try_from(turn).ok().and_then(|turn| nodes.nth(turn));
                Placement::near(node.unwrap_or(local))
            }
        }
    }
}

/// From which nodes one block of frames may come, and in which order they are asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placement {
    first: NodeId,
    allowed: NodeMask,
    otherwise: NodeMask,
}

impl Placement {
    /// From `node`, else from the next that has one.
    #[must_use]
    pub const fn near(node: NodeId) -> Self {
        Self {
            first: node,
            allowed: NodeMask::ALL,
            otherwise: NodeMask::EMPTY,
        }
    }

    /// From `node` only.
    #[must_use]
    pub const fn only(node: NodeId) -> Self {
        Self {
            first: node,
            allowed: NodeMask::of(node),
            otherwise: NodeMask::EMPTY,
        }
    }

    /// From `nodes` only, those nearest to `local` first.
    fn within(nodes: NodeMask, local: NodeId) -> Self {
        let above = nodes.iter().find(|&node| node >= local);
        Self {
            first: above.or(nodes.first()).unwrap_or(local),
            allowed: nodes,
            otherwise: NodeMask::EMPTY,
        }
    }

    /// The node that is asked first.
    #[must_use]
    pub const fn first(self) -> NodeId {
        self.first
    }

    /// Whether `node` may be asked at all.
    #[must_use]
    pub const fn allows(self, node: NodeId) -> bool {
        self.allowed.contains(node) || self.otherwise.contains(node)
    }

    /// The nodes asked after the [first](Self::first), of a machine's `online`: upwards from it, then from the bottom.
    pub fn others(self, online: NodeMask) -> impl Iterator<Item = NodeId> {
        let first = NodeMask::of(self.first);
        let allowed = online.intersection(self.allowed).without(first);
        let otherwise = online
            .intersection(self.otherwise)
            .without(self.allowed)
            .without(first);
        let round = move |mask: NodeMask| {
            let (above, below) = (mask.iter(), mask.iter());
            let above = above.filter(move |&node| node > self.first);
            above.chain(below.filter(move |&node| node < self.first))
        };
        round(allowed).chain(round(otherwise))
    }
}

/// A place to keep a policy: in an area, under its locks, or in a task, which alone writes it.
#[derive(Debug)]
pub struct PolicyCell {
    /// Mode and flags.
    word: AtomicU32,
    nodes: AtomicU64,
}

impl PolicyCell {
    /// Holds `policy`.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            word: AtomicU32::new(policy.mode as u32 | policy.flags.bits()),
            nodes: AtomicU64::new(policy.nodes.bits()),
        }
    }

    /// What it holds.
    #[must_use]
    pub fn get(&self) -> Policy {
        let word = self.word.load_relaxed();
        let flags = PolicyFlags::from_bits_truncate(word);
        Policy {
            mode: Mode::from_number(word & !flags.bits()).unwrap_or(Mode::Default),
            flags,
            nodes: NodeMask::from_bits(self.nodes.load_relaxed()),
        }
    }

    /// Replaces it.
    pub fn set(&self, policy: Policy) {
        self.word.store_relaxed(policy.mode as u32 | policy.flags.bits());
        self.nodes.store_relaxed(policy.nodes.bits());
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    const ONLINE: NodeMask = NodeMask::from_bits(0b1111);

    fn node(number: u32) -> NodeId {
        NodeId::new(number).expect("a small number")
    }

    fn policy(mode: Mode, nodes: u64) -> Result<Policy, BadPolicy> {
        Policy::new(mode, PolicyFlags::empty(), NodeMask::from_bits(nodes), ONLINE)
    }

    fn order(placement: Placement) -> Vec<u32> {
        let others = placement.others(ONLINE).map(NodeId::number);
        core::iter::once(placement.first().number())
            .chain(others)
            .collect()
    }

    #[test]
    fn wishes_without_sense_are_refused() {
        for mode in [Mode::Bind, Mode::Interleave, Mode::PreferredMany] {
            assert_eq!(policy(mode, 0), Err(BadPolicy), "{mode:?} without nodes");
            assert_eq!(
                policy(mode, 1 << 20),
                Err(BadPolicy),
                "{mode:?} of a node that is not there"
            );
        }
        assert_eq!(policy(Mode::Default, 1), Err(BadPolicy));
        assert_eq!(policy(Mode::Local, 1), Err(BadPolicy));
        assert_eq!(policy(Mode::Default, 0), Ok(Policy::DEFAULT));
        assert_eq!(policy(Mode::Preferred, 0).map(Policy::mode), Ok(Mode::Local));
        let flagged = |mode, flags, nodes| Policy::new(mode, flags, NodeMask::from_bits(nodes), ONLINE);
        let both = PolicyFlags::STATIC_NODES | PolicyFlags::RELATIVE_NODES;
        assert_eq!(flagged(Mode::Bind, both, 1), Err(BadPolicy));
        assert_eq!(
            flagged(Mode::Interleave, PolicyFlags::NUMA_BALANCING, 1),
            Err(BadPolicy)
        );
        assert_eq!(
            flagged(Mode::Preferred, PolicyFlags::STATIC_NODES, 0),
            Err(BadPolicy)
        );
    }

    #[test]
    fn what_a_program_is_told_depends_on_the_flag() {
        let nodes = NodeMask::from_bits(0b11_0110);
        let told = |flags| Policy::new(Mode::Bind, flags, nodes, ONLINE).expect("good");
        let plain = told(PolicyFlags::empty());
        assert_eq!(
            (plain.nodes().bits(), plain.nodes_meant(ONLINE).bits()),
            (0b0110, 0b0110)
        );
        let fixed = told(PolicyFlags::STATIC_NODES);
        assert_eq!((fixed.nodes(), fixed.nodes_meant(ONLINE).bits()), (nodes, 0b0110));
        let relative = told(PolicyFlags::RELATIVE_NODES);
        assert_eq!(
            (relative.nodes(), relative.nodes_meant(ONLINE).bits()),
            (nodes, 0b0111)
        );
    }

    #[test]
    fn nodes_are_asked_in_order() {
        let at = |mode, nodes, turn| {
            let policy = policy(mode, nodes).expect("good");
            order(policy.placement(node(1), ONLINE, turn))
        };
        assert_eq!(at(Mode::Default, 0, 0), [1, 2, 3, 0]);
        assert_eq!(at(Mode::Preferred, 0b1000, 0), [3, 0, 1, 2]);
        assert_eq!(at(Mode::Bind, 0b1101, 0), [2, 3, 0]);
        assert_eq!(at(Mode::Bind, 0b0001, 0), [0]);
        assert_eq!(at(Mode::PreferredMany, 0b1001, 0), [3, 0, 1, 2]);
        let turns = [0, 1, 2, 3].map(|turn| at(Mode::Interleave, 0b1101, turn)[0]);
        assert_eq!(turns, [0, 2, 3, 0]);
    }

    #[test]
    fn a_cell_gives_back_what_it_was_given() {
        for mode in Mode::ALL {
            let flags = PolicyFlags::STATIC_NODES;
            let nodes = NodeMask::from_bits(0b101);
            let held = Policy { mode, flags, nodes };
            assert_eq!(PolicyCell::new(held).get(), held);
        }
    }
}
