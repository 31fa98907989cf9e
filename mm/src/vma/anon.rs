//! An area and its anon_vma: on the list, off the list.
//!
//! Locks: every change of the list, and of the ends of an area on it, under the anon_vma's lock for writing.

use super::Vma;
use crate::{
    addr::{PAGE_SHIFT, VirtAddr, VirtRange},
    address_space::AddressSpace,
    anon_vma::AnonVma,
    error::AllocError,
    flags::VmaFlags,
    memory::Memory,
    platform::Platform,
    slab::{Handle, Link},
};

/// An area's place on its anon_vma's list.
#[derive(Debug)]
pub(super) struct Node {
    next: Link<Vma>,
    prev: Link<Vma>,
}

impl Node {
    pub(super) fn new() -> Self {
        Self {
            next: Link::new(None),
            prev: Link::new(None),
        }
    }
}

fn first(anon_vma: &AnonVma) -> Option<Handle<Vma>> {
    // SAFETY: this module alone fills the list, with areas.
    anon_vma.areas().get().map(|area| unsafe { area.restore() })
}

impl<P: Platform> Memory<P> {
    /// Gives the area an identity of its own if it has none: what a first fault needs. The mmap lock is held for
    /// reading, so another fault may be doing the same; the lock of the fresh one decides nothing, the link does.
    pub(crate) fn prepare_anon_vma(&self, vma: Handle<Vma>) -> Result<(), AllocError> {
        if vma.anon_vma().is_some() {
            return Ok(());
        }
        if let Some(neighbour) = reusable(vma) {
            // The mmap lock keeps the neighbour, and the neighbour its identity.
            self.share_anon_vma(vma, neighbour);
            return Ok(());
        }
        let fresh = self.alloc_object(AnonVma::new())?;
        let lock = fresh.lock().write(self.platform());
        let is_ours = vma.anon_vma.set_if_none(fresh);
        if is_ours {
            push(fresh, vma);
        }
        drop(lock);
        if !is_ours {
            self.put_anon_vma(fresh);
        }
        Ok(())
    }

    /// Gives the area the identity of a neighbour, unless another fault has just given it one.
    fn share_anon_vma(&self, vma: Handle<Vma>, anon_vma: Handle<AnonVma>) {
        anon_vma.get(1);
        let lock = anon_vma.lock().write(self.platform());
        let is_ours = vma.anon_vma.set_if_none(anon_vma);
        if is_ours {
            push(anon_vma, vma);
        }
        drop(lock);
        if !is_ours {
            self.put_anon_vma(anon_vma);
        }
    }

    /// Puts an area that has no identity on the list of `anon_vma`, as a new user of it.
    pub(crate) fn join_anon_vma(&self, vma: Handle<Vma>, anon_vma: Handle<AnonVma>) {
        anon_vma.get(1);
        let _lock = anon_vma.lock().write(self.platform());
        vma.anon_vma.set(Some(anon_vma));
        push(anon_vma, vma);
    }

    /// Puts the copy of an area that `fork` makes on the list, as a new user of it, right behind the original. Entries go
    /// from the original to the copy under both tables' locks: a walk that comes to the original first finds each of
    /// them there, or later in the copy, and misses none.
    pub(crate) fn join_anon_vma_behind(
        &self,
        copy: Handle<Vma>,
        original: Handle<Vma>,
        anon_vma: Handle<AnonVma>,
    ) {
        anon_vma.get(1);
        let _lock = anon_vma.lock().write(self.platform());
        copy.anon_vma.set(Some(anon_vma));
        let next = original.on_list.next.get();
        copy.on_list.prev.set(Some(original));
        copy.on_list.next.set(next);
        original.on_list.next.set(Some(copy));
        if let Some(next) = next {
            next.on_list.prev.set(Some(copy));
        }
    }

    /// Takes an area off its list. From then on no rmap walk finds its page tables.
    pub(crate) fn leave_anon_vma(&self, vma: Handle<Vma>) {
        let Some(anon_vma) = vma.anon_vma() else { return };
        {
            let _lock = anon_vma.lock().write(self.platform());
            let (next, prev) = (vma.on_list.next.get(), vma.on_list.prev.get());
            match prev {
                Some(prev) => prev.on_list.next.set(next),
                None => anon_vma.areas().set(next.map(Handle::erase)),
            }
            if let Some(next) = next {
                next.on_list.prev.set(prev);
            }
            vma.anon_vma.set(None);
        }
        self.put_anon_vma(anon_vma);
    }

    /// Moves the ends of an area in the tree of `space`. No rmap walk sees it half done.
    pub(crate) fn move_ends(&self, space: &AddressSpace, vma: Handle<Vma>, range: VirtRange) {
        let anon_vma = vma.anon_vma();
        let _lock = anon_vma
            .as_ref()
            .map(|anon_vma| anon_vma.lock().write(self.platform()));
        move_ends_locked(space, vma, range);
    }

    /// Cuts `upper`'s part off the top of `lower`: both are in the tree afterwards, on the same list.
    pub(crate) fn cut_off(&self, space: &AddressSpace, lower: Handle<Vma>, upper: Handle<Vma>) {
        let anon_vma = lower.anon_vma();
        let _lock = anon_vma
            .as_ref()
            .map(|anon_vma| anon_vma.lock().write(self.platform()));
        if let Some(anon_vma) = anon_vma {
            anon_vma.get(1);
            upper.anon_vma.set(Some(anon_vma));
            push(anon_vma, upper);
        }
        let kept = VirtRange::new(lower.start(), upper.start());
        move_ends_locked(
            space,
            lower,
            kept.unwrap_or_else(|| unreachable!("the cut lies inside")),
        );
        space.areas().insert(upper);
    }

    /// Makes `lower` span `upper` too, which goes out of the tree; it stays on the list, without pages of its own,
    /// until it is freed.
    pub(crate) fn take_over(&self, space: &AddressSpace, lower: Handle<Vma>, upper: Handle<Vma>) {
        let both = VirtRange::new(lower.start(), upper.end());
        let both = both.unwrap_or_else(|| unreachable!("neighbours in order"));
        if let (None, Some(anon_vma)) = (lower.anon_vma(), upper.anon_vma()) {
            self.join_anon_vma(lower, anon_vma);
        }
        lower.set_flags(lower.flags() | (upper.flags() & VmaFlags::SOFTDIRTY));
        // Where both are on the list, a walk may meet the pages of `upper` through either in between: it looks at
        // page tables and finds each entry once all the same, for the second time as one it knows.
        space.areas().remove(upper);
        self.move_ends(space, lower, both);
    }

    /// Shows `visit` every area on the list. The lock is held.
    pub(crate) fn for_each_area_of(&self, anon_vma: &AnonVma, visit: &mut dyn FnMut(Handle<Vma>)) {
        let mut at = first(anon_vma);
        while let Some(vma) = at {
            at = vma.on_list.next.get();
            visit(vma);
        }
    }
}

/// The identity of a neighbour that differs from `vma` in its rights at most: should they come to agree again, both can
/// be one area (Linux `find_mergeable_anon_vma`).
fn reusable(vma: Handle<Vma>) -> Option<Handle<AnonVma>> {
    let space = vma.space();
    let areas = space.areas();
    let alike = |other: &Vma| {
        (other.flags() ^ vma.flags()) & !(VmaFlags::ACCESS | VmaFlags::SOFTDIRTY) == VmaFlags::empty()
    };
    let below = areas
        .before(vma.start())
        .filter(|below| below.end() == vma.start());
    let below = below.filter(|below| below.linear_index(below.end()) == vma.linear_index(vma.start()));
    let above = areas.find(vma.end()).filter(|above| above.start() == vma.end());
    let above = above.filter(|above| vma.linear_index(vma.end()) == above.linear_index(above.start()));
    [below, above]
        .into_iter()
        .flatten()
        .filter(|other| alike(other))
        .find_map(|other| other.anon_vma())
}

fn move_ends_locked(space: &AddressSpace, vma: Handle<Vma>, range: VirtRange) {
    let index_at = |addr: VirtAddr| addr.as_u64() >> PAGE_SHIFT;
    let moved = index_at(range.start()).wrapping_sub(index_at(vma.start()));
    vma.first_index
        .store_relaxed(vma.first_index.load_relaxed().wrapping_add(moved));
    space.areas().resize(vma, range);
}

fn push(anon_vma: Handle<AnonVma>, vma: Handle<Vma>) {
    let old = first(&anon_vma);
    vma.on_list.prev.set(None);
    vma.on_list.next.set(old);
    if let Some(old) = old {
        old.on_list.prev.set(Some(vma));
    }
    anon_vma.areas().set(Some(vma.erase()));
}
