//! The areas of one address space, by address: a balanced (AVL) tree that knows the largest hole in each subtree.
//!
//! ```text
//!            [40-50) gap 10 height 2
//!           /              \            gap     = hole between the previous area's end and this one's start
//!   [10-30) gap 10      [50-60) gap 0   max_gap = largest gap in the subtree
//! ```
//! A program chooses where its areas lie and in which order they come; the tree's height does not depend on that: it is
//! at most 1.44 log2 of the number of areas, 23 for as many as there may be. So recursion is safe on a kernel stack.
//!
//! Below an area that grows down the gap leaves out [`STACK_GUARD_BYTES`]: nothing is placed there unless a program
//! insists.
//!
//! Locks: the mmap lock, for writing to change anything.

use super::Vma;
use crate::{
    addr::{STACK_GUARD_BYTES, VirtAddr, VirtRange},
    flags::VmaFlags,
    slab::{Handle, Link},
    sync::{AtomicU32, AtomicU64},
};

/// More than any tree of [`MAX_AREAS`](crate::address_space::MAX_AREAS) areas is high.
const MAX_HEIGHT: u32 = 32;

type Subtree = Option<Handle<Vma>>;

/// An area's place in the tree.
#[derive(Debug)]
pub(super) struct Node {
    left: Link<Vma>,
    right: Link<Vma>,
    height: AtomicU32,
    gap: AtomicU64,
    max_gap: AtomicU64,
}

impl Node {
    pub(super) fn new() -> Self {
        Self {
            left: Link::new(None),
            right: Link::new(None),
            height: AtomicU32::new(1),
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

fn height(subtree: Subtree) -> u32 {
    subtree.map_or(0, |vma| vma.node.height.load_relaxed())
}

/// Recomputes what `vma` says about its subtree from its children.
fn update(vma: Handle<Vma>) -> Handle<Vma> {
    let node = &vma.node;
    let (left, right) = (node.left.get(), node.right.get());
    let below = max_gap(left).max(max_gap(right));
    node.max_gap.store_relaxed(node.gap.load_relaxed().max(below));
    node.height.store_relaxed(height(left).max(height(right)) + 1);
    vma
}

/// Lets the left child take the place of `top`.
fn rotate_right(top: Handle<Vma>) -> Handle<Vma> {
    let Some(left) = top.node.left.get() else {
        return top;
    };
    top.node.left.set(left.node.right.get());
    left.node.right.set(Some(update(top)));
    update(left)
}

/// Lets the right child take the place of `top`.
fn rotate_left(top: Handle<Vma>) -> Handle<Vma> {
    let Some(right) = top.node.right.get() else {
        return top;
    };
    top.node.right.set(right.node.left.get());
    right.node.left.set(Some(update(top)));
    update(right)
}

/// Brings a subtree whose children differ in height by at most two into balance; returns its new top.
fn balance(top: Handle<Vma>) -> Handle<Vma> {
    let (left, right) = (top.node.left.get(), top.node.right.get());
    if height(left) > height(right) + 1 {
        let inner = left.filter(|left| height(left.node.right.get()) > height(left.node.left.get()));
        if let Some(left) = inner {
            top.node.left.set(Some(rotate_left(left)));
        }
        return rotate_right(top);
    }
    if height(right) > height(left) + 1 {
        let inner = right.filter(|right| height(right.node.left.get()) > height(right.node.right.get()));
        if let Some(right) = inner {
            top.node.right.set(Some(rotate_right(right)));
        }
        return rotate_left(top);
    }
    update(top)
}

fn inserted(subtree: Subtree, vma: Handle<Vma>) -> Handle<Vma> {
    let Some(top) = subtree else { return update(vma) };
    let side = if vma.start() < top.start() {
        &top.node.left
    } else {
        &top.node.right
    };
    side.set(Some(inserted(side.get(), vma)));
    balance(top)
}

/// Takes the lowest area out of a subtree; returns it and what is left.
fn without_first(top: Handle<Vma>) -> (Handle<Vma>, Subtree) {
    let Some(left) = top.node.left.get() else {
        return (top, top.node.right.get());
    };
    let (first, rest) = without_first(left);
    top.node.left.set(rest);
    (first, Some(balance(top)))
}

fn removed(subtree: Subtree, vma: Handle<Vma>) -> Subtree {
    let top = subtree?;
    if top != vma {
        let side = if vma.start() < top.start() {
            &top.node.left
        } else {
            &top.node.right
        };
        side.set(removed(side.get(), vma));
        return Some(balance(top));
    }
    let (left, right) = (top.node.left.get(), top.node.right.get());
    let Some(right) = right else { return left };
    let (first, rest) = without_first(right);
    first.node.left.set(left);
    first.node.right.set(rest);
    Some(balance(first))
}

/// Where what lies below an area has to end: its start, or the guard below a stack.
fn guarded_start(vma: &Vma) -> u64 {
    let guard = if vma.flags().contains(VmaFlags::GROWSDOWN) {
        STACK_GUARD_BYTES
    } else {
        0
    };
    vma.start().as_u64().saturating_sub(guard)
}

/// Compares what an area remembers about its subtree with a recount; returns the height, or the area that is wrong. Goes
/// no deeper than a tree of any number of areas may be.
fn checked_height(subtree: Subtree, depth_left: u32) -> Result<u32, Handle<Vma>> {
    let Some(vma) = subtree else { return Ok(0) };
    let depth_left = depth_left.checked_sub(1).ok_or(vma)?;
    let node = &vma.node;
    let left = checked_height(node.left.get(), depth_left)?;
    let right = checked_height(node.right.get(), depth_left)?;
    let below = max_gap(node.left.get()).max(max_gap(node.right.get()));
    let sound = left.abs_diff(right) <= 1
        && height(subtree) == left.max(right) + 1
        && max_gap(subtree) == below.max(node.gap.load_relaxed());
    if sound { Ok(height(subtree)) } else { Err(vma) }
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

    /// Whether nothing is in `range`, nor an area that grows down so close above it that it is its guard.
    #[must_use]
    pub fn is_free(&self, range: VirtRange) -> bool {
        self.is_free_with_room(range, 0)
    }

    /// [`Self::is_free`], with `room` bytes above the range that no area may be in either.
    #[must_use]
    pub(crate) fn is_free_with_room(&self, range: VirtRange, room: u64) -> bool {
        self.find(range.start())
            .is_none_or(|above| guarded_start(&above) >= range.end().as_u64() + room)
    }

    /// Areas on the longest way down: what a lookup costs at most.
    #[must_use]
    pub fn height(&self) -> u32 {
        height(self.root.get())
    }

    /// Recounts heights, balance and gaps (for the checker).
    ///
    /// # Errors
    /// An area about which the tree remembers something that is not so.
    pub(crate) fn check(&self) -> Result<(), Handle<Vma>> {
        checked_height(self.root.get(), MAX_HEIGHT)?;
        let mut end = VirtAddr::zero();
        while let Some(vma) = self.find(end) {
            let gap = guarded_start(&vma).saturating_sub(end.as_u64());
            if vma.node.gap.load_relaxed() != gap {
                return Err(vma);
            }
            end = vma.end();
        }
        Ok(())
    }

    /// Makes the tree remember a height that it does not have.
    #[cfg(feature = "sabotage")]
    pub(crate) fn misremember(&self) {
        if let Some(top) = self.root.get() {
            top.node.height.store_relaxed(height(Some(top)) + 1);
        }
    }

    /// Adds an area, which overlaps none.
    pub(crate) fn insert(&self, vma: Handle<Vma>) {
        vma.node.left.set(None);
        vma.node.right.set(None);
        self.root.set(Some(inserted(self.root.get(), vma)));
        self.refresh_gap(vma.start());
        self.refresh_gap(vma.end());
    }

    /// Takes an area out.
    pub(crate) fn remove(&self, vma: Handle<Vma>) {
        self.root.set(removed(self.root.get(), vma));
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
        vma.node
            .gap
            .store_relaxed(guarded_start(&vma).saturating_sub(below));
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
        // The hole that reaches over the upper limit: above it may be no area to carry the gap.
        let above = self
            .find(limits.end())
            .map_or(limits.end().as_u64(), |vma| guarded_start(&vma));
        let end = above.min(limits.end().as_u64());
        let below = self.before(limits.end()).map_or(0, |vma| vma.end().as_u64());
        if end >= below.max(limits.start().as_u64()).saturating_add(len) {
            return Some(VirtAddr::new_truncate(end));
        }
        Self::highest_hole_in(self.root.get(), len, limits)
    }

    fn highest_hole_in(subtree: Subtree, len: u64, limits: VirtRange) -> Option<VirtAddr> {
        let vma = subtree.filter(|vma| vma.node.max_gap.load_relaxed() >= len)?;
        if vma.start() < limits.end() {
            if let Some(found) = Self::highest_hole_in(vma.node.right.get(), len, limits) {
                return Some(found);
            }
            let end = guarded_start(&vma).min(limits.end().as_u64());
            let bottom = guarded_start(&vma) - vma.node.gap.load_relaxed();
            if end >= bottom.max(limits.start().as_u64()).saturating_add(len) {
                return Some(VirtAddr::new_truncate(end));
            }
        }
        Self::highest_hole_in(vma.node.left.get(), len, limits)
    }
}
