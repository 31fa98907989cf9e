//! The areas of one address space, by address: a treap that knows the largest hole in each subtree.
//!
//! ```text
//!              key: start     heap order: priority (a hash of the start: no random numbers, the same tree every time)
//!            [40-50) gap 10
//!           /              \            gap     = hole between the previous area's end and this one's start
//!   [10-30) gap 10      [50-60) gap 0   max_gap = largest gap in the subtree
//! ```
//! Expected depth is logarithmic; recursion is as deep as the tree.
//!
//! Locks: the mmap lock, for writing to change anything.

use super::Vma;
use crate::{
    addr::{VirtAddr, VirtRange},
    slab::{Handle, Link},
    sync::AtomicU64,
};

type Subtree = Option<Handle<Vma>>;

/// An area's place in the tree.
#[derive(Debug)]
pub(super) struct Node {
    left: Link<Vma>,
    right: Link<Vma>,
    priority: AtomicU64,
    gap: AtomicU64,
    max_gap: AtomicU64,
}

impl Node {
    pub(super) fn new(start: VirtAddr) -> Self {
        // Fibonacci hashing: neighbours get unrelated priorities.
        let priority = (start.as_u64() >> 12)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_right(29);
        Self {
            left: Link::new(None),
            right: Link::new(None),
            priority: AtomicU64::new(priority.wrapping_mul(0xbf58_476d_1ce4_e5b9)),
            gap: AtomicU64::new(0),
            max_gap: AtomicU64::new(0),
        }
    }
}

/// The areas of one address space.
#[derive(Debug)]
pub struct VmaTree {
    root: Link<Vma>,
}

fn max_gap(subtree: Subtree) -> u64 {
    subtree.map_or(0, |vma| vma.node.max_gap.load_relaxed())
}

/// Recomputes what `vma` says about its subtree from its children.
fn update(vma: Handle<Vma>) -> Handle<Vma> {
    let node = &vma.node;
    let below = max_gap(node.left.get()).max(max_gap(node.right.get()));
    node.max_gap.store_relaxed(node.gap.load_relaxed().max(below));
    vma
}

/// Makes one tree of two, all of `left` before all of `right`.
fn join(left: Subtree, right: Subtree) -> Subtree {
    match (left, right) {
        (None, other) | (other, None) => other,
        (Some(left), Some(right))
            if left.node.priority.load_relaxed() > right.node.priority.load_relaxed() =>
        {
            left.node.right.set(join(left.node.right.get(), Some(right)));
            Some(update(left))
        }
        (left, Some(right)) => {
            right.node.left.set(join(left, right.node.left.get()));
            Some(update(right))
        }
    }
}

/// Cuts a tree in two: areas that start before `at`, and the others.
fn cut(subtree: Subtree, at: VirtAddr) -> (Subtree, Subtree) {
    let Some(vma) = subtree else { return (None, None) };
    if vma.start() < at {
        let (left, right) = cut(vma.node.right.get(), at);
        vma.node.right.set(left);
        (Some(update(vma)), right)
    } else {
        let (left, right) = cut(vma.node.left.get(), at);
        vma.node.left.set(right);
        (left, Some(update(vma)))
    }
}

impl Default for VmaTree {
    fn default() -> Self {
        Self::new()
    }
}

impl VmaTree {
    /// No areas.
    #[must_use]
    pub fn new() -> Self {
        Self {
            root: Link::new(None),
        }
    }

    /// The first area that ends above `addr`: the one around it or the next one up (Linux `find_vma`).
    #[must_use]
    pub fn find(&self, addr: VirtAddr) -> Option<Handle<Vma>> {
        let mut found = None;
        let mut at = self.root.get();
        while let Some(vma) = at {
            if vma.end() > addr {
                found = Some(vma);
                at = vma.node.left.get();
            } else {
                at = vma.node.right.get();
            }
        }
        found
    }

    /// The area around `addr`.
    #[must_use]
    pub fn containing(&self, addr: VirtAddr) -> Option<Handle<Vma>> {
        self.find(addr).filter(|vma| vma.start() <= addr)
    }

    /// The last area that starts below `addr`.
    #[must_use]
    pub fn before(&self, addr: VirtAddr) -> Option<Handle<Vma>> {
        let mut found = None;
        let mut at = self.root.get();
        while let Some(vma) = at {
            if vma.start() < addr {
                found = Some(vma);
                at = vma.node.right.get();
            } else {
                at = vma.node.left.get();
            }
        }
        found
    }

    /// All areas in address order that overlap `range`. Each is looked up when the previous one has been used, so
    /// the tree may change in between.
    pub fn overlapping(&self, range: VirtRange) -> impl Iterator<Item = Handle<Vma>> {
        let mut from = range.start();
        core::iter::from_fn(move || {
            let vma = self
                .find(from)
                .filter(|vma| vma.start() < range.end() && from < range.end())?;
            from = vma.end();
            Some(vma)
        })
    }

    /// The hole around `range`, which no area overlaps: from the end of the area below to the start of the one above.
    #[must_use]
    pub fn hole_around(&self, range: VirtRange, limits: VirtRange) -> VirtRange {
        let start = self.before(range.start()).map_or(limits.start(), |vma| vma.end());
        let end = self.find(range.start()).map_or(limits.end(), |vma| vma.start());
        VirtRange::new(start, end).unwrap_or(range)
    }

    /// Adds an area, which overlaps none.
    pub(crate) fn insert(&self, vma: Handle<Vma>) {
        let (left, right) = cut(self.root.get(), vma.start());
        self.root.set(join(join(left, Some(vma)), right));
        self.refresh_gap(vma.start());
        self.refresh_gap(vma.end());
    }

    /// Takes an area out.
    pub(crate) fn remove(&self, vma: Handle<Vma>) {
        let (left, rest) = cut(self.root.get(), vma.start());
        let (_, right) = cut(rest, vma.start() + 1);
        vma.node.left.set(None);
        vma.node.right.set(None);
        self.root.set(join(left, right));
        self.refresh_gap(vma.start());
    }

    /// Moves the ends of an area that is in the tree; it must not come to overlap, nor pass, another.
    pub(crate) fn resize(&self, vma: Handle<Vma>, range: VirtRange) {
        vma.start.store_relaxed(range.start().as_u64());
        vma.end.store_relaxed(range.end().as_u64());
        self.refresh_gap(range.start());
        self.refresh_gap(range.end());
    }

    /// Recomputes the gap below the first area at or above `addr`.
    fn refresh_gap(&self, addr: VirtAddr) {
        let Some(vma) = self.find(addr) else { return };
        let below = self.before(vma.start()).map_or(0, |before| before.end().as_u64());
        vma.node.gap.store_relaxed(vma.start().as_u64() - below);
        self.update_path(self.root.get(), vma.start());
    }

    fn update_path(&self, subtree: Subtree, start: VirtAddr) {
        let Some(vma) = subtree else { return };
        if start < vma.start() {
            self.update_path(vma.node.left.get(), start);
        } else if start > vma.start() {
            self.update_path(vma.node.right.get(), start);
        }
        update(vma);
    }

    /// Finds the highest hole of `len` bytes inside `limits` and returns its upper end.
    #[must_use]
    pub fn highest_hole(&self, len: u64, limits: VirtRange) -> Option<VirtAddr> {
        // The hole above the last area has no area to carry its gap.
        let above = self
            .before(limits.end())
            .map_or(limits.start(), |vma| vma.end())
            .max(limits.start());
        if limits.end().as_u64().saturating_sub(above.as_u64()) >= len {
            return Some(limits.end());
        }
        Self::highest_hole_in(self.root.get(), len, limits)
    }

    fn highest_hole_in(subtree: Subtree, len: u64, limits: VirtRange) -> Option<VirtAddr> {
        let vma = subtree.filter(|vma| vma.node.max_gap.load_relaxed() >= len)?;
        if vma.start() < limits.end() {
            if let Some(found) = Self::highest_hole_in(vma.node.right.get(), len, limits) {
                return Some(found);
            }
            let end = vma.start().as_u64();
            let bottom = (end - vma.node.gap.load_relaxed()).max(limits.start().as_u64());
            if end >= bottom + len {
                return Some(vma.start());
            }
        }
        Self::highest_hole_in(vma.node.left.get(), len, limits)
    }
}
