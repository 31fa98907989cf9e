//! F8: moves pages to the nodes that a program wants them on: `mbind`, `migrate_pages`, `move_pages`.
//!
//! ```text
//!   mbind          area by area: a policy, and perhaps all pages that lie elsewhere   ──┐
//!   migrate_pages  a whole space: from these nodes to those                           ──┼──> isolate, migrate
//!   move_pages     page by page: to the node that the caller gives (the kernel's loop) ──┘
//! ```
//! New pages follow the policy first, then old ones are moved: what is faulted in meanwhile is right already.
//!
//! Locks: none held on entry. The mmap lock is taken for writing to change policies and for reading to find pages; it
//! is not held while pages move.
//!
//! Origin: Linux `do_mbind`, `do_migrate_pages`, `do_move_pages_to_node` (v6.1). Differs: with `MPOL_MF_STRICT` pages
//! that others share and that are therefore left where they are count as not moved (as from Linux 6.7 on).

use crate::{
    addr::{PAGE_BYTES, USER_END, VirtAddr, VirtRange},
    address_space::AddressSpace,
    error::{AllocError, Errno, MapError},
    flags::AllocFlags,
    folio::IsolatedList,
    memory::Memory,
    migrate::{MigrateError, MigrateMode, Migrated, Reach, Targets},
    node::{NodeId, NodeMask},
    page::Page,
    platform::Platform,
    policy::{Mode, Placement, Policy},
};

/// What is to become of pages that lie elsewhere than the new policy of their area says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Misplaced {
    /// They stay.
    Stay,
    /// They stay; if there are any, nothing is changed.
    Refuse,
    /// They move if they can.
    Move(Reach),
    /// They move; if one cannot, the caller is told.
    MustMove(Reach),
}

/// Why `mbind` was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MbindError {
    /// The areas could not be given the policy; nothing changed.
    Areas(MapError),
    /// Pages lie elsewhere. With [`Misplaced::Refuse`] nothing changed; with [`Misplaced::MustMove`] the policy is set
    /// and what could be moved was.
    Misplaced,
}

impl From<MapError> for MbindError {
    fn from(error: MapError) -> Self {
        Self::Areas(error)
    }
}

impl From<MbindError> for Errno {
    fn from(error: MbindError) -> Self {
        match error {
            MbindError::Areas(error) => error.into(),
            MbindError::Misplaced => Self::Io,
        }
    }
}

impl<P: Platform> Memory<P> {
    /// Gives the areas in `range` a policy; `nodes` are those where pages may lie without being misplaced.
    ///
    /// # Errors
    /// See [`MbindError`].
    pub fn mbind(
        &self,
        space: &AddressSpace,
        range: VirtRange,
        (policy, nodes): (Policy, NodeMask),
        misplaced: Misplaced,
    ) -> Result<(), MbindError> {
        let is_misplaced = |page: Page<'_>| !nodes.contains(self.node_id(page.pfn()));
        let mut list = IsolatedList::new(self);
        if misplaced == Misplaced::Refuse {
            let mut found = false;
            let mut look = |page: Page<'_>| {
                found |= is_misplaced(page);
                false
            };
            self.isolate_pages_in(space, range, Reach::All, &mut look, &mut list);
            if found {
                return Err(MbindError::Misplaced);
            }
        }
        self.set_policy(space, range, policy)?;
        let (Misplaced::Move(reach) | Misplaced::MustMove(reach)) = misplaced else {
            return Ok(());
        };
        let collected = self.isolate_pages_in(space, range, reach, &mut |page| is_misplaced(page), &mut list);
        let moved = self.migrate_by_policy(&mut list, policy);
        let all_moved = collected.refused == 0 && moved.failed == 0;
        if all_moved || matches!(misplaced, Misplaced::Move(_)) {
            Ok(())
        } else {
            Err(MbindError::Misplaced)
        }
    }

    /// Moves isolated pages to where their area's policy, or by default that of the task, puts them.
    fn migrate_by_policy<'m>(&'m self, list: &mut IsolatedList<'m, P>, policy: Policy) -> Migrated {
        let policy = match policy.mode() {
            Mode::Default => self.platform().task_policy(),
            _ => policy,
        };
        let online = self.nodes_with_memory();
        self.migrate_to(list, &|page| {
            let turn = page.index() >> page.compound_order().index();
            policy.placement(self.local_node(), online, turn)
        })
    }

    /// Moves isolated pages to `node`. What could not be moved is still on the list.
    pub fn migrate_to_node<'m>(&'m self, list: &mut IsolatedList<'m, P>, node: NodeId) -> Migrated {
        self.migrate_to(list, &|_| Placement::only(node))
    }

    fn migrate_to<'m>(
        &'m self,
        list: &mut IsolatedList<'m, P>,
        placement: &dyn Fn(Page<'m>) -> Placement,
    ) -> Migrated {
        let mut get_new = |page: Page<'m>| {
            self.alloc_folio_from(placement(page), page.compound_order(), AllocFlags::empty())
        };
        self.migrate_pages(list, &mut Targets::new(&mut get_new), MigrateMode::Sync)
    }

    /// Moves all pages of a space that lie on nodes of `from` to those of `to`, the first to the first, and so on round
    /// and round. If there are not as many of both, pages on a node that is in both stay. Returns how many folios were
    /// not moved.
    ///
    /// # Errors
    /// A node is full: what was moved before has moved.
    pub fn migrate_space(
        &self,
        space: &AddressSpace,
        (from, to): (NodeMask, NodeMask),
        reach: Reach,
    ) -> Result<u64, AllocError> {
        let mut left = from;
        let mut nr_stayed = 0;
        while let Some((source, target)) = next_move(left, from, to) {
            left = left.without(NodeMask::of(source));
            let mut list = IsolatedList::new(self);
            let mut wanted = |page: Page<'_>| self.node_id(page.pfn()) == source;
            self.isolate_pages_in(space, all_of_user_space(), reach, &mut wanted, &mut list);
            let moved = self.migrate_to_node(&mut list, target);
            if let Some(MigrateError::NoMemory(error)) = moved.error {
                return Err(error);
            }
            nr_stayed += u64::from(moved.failed);
        }
        Ok(nr_stayed)
    }
}

/// The next node to be emptied of those `left`, and where to. One whose target is no longer to be emptied itself comes
/// first, so that no page moves twice.
fn next_move(left: NodeMask, from: NodeMask, to: NodeMask) -> Option<(NodeId, NodeId)> {
    let moves = left.iter().filter_map(|source| {
        if from.len() != to.len() && to.contains(source) {
            return None;
        }
        let target = to.nth(from.rank(source).checked_rem(to.len())?)?;
        (source != target).then_some((source, target))
    });
    let free = moves.clone().find(|&(_, target)| !left.contains(target));
    free.or_else(|| moves.last())
}

fn all_of_user_space() -> VirtRange {
    VirtRange::new(VirtAddr::zero(), VirtAddr::new(USER_END))
        .unwrap_or(VirtRange::page(VirtAddr::new(PAGE_BYTES)))
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    fn moves(from: u64, to: u64) -> Vec<(u32, u32)> {
        let (from, to) = (NodeMask::from_bits(from), NodeMask::from_bits(to));
        let mut left = from;
        let mut moves = Vec::new();
        while let Some((source, target)) = next_move(left, from, to) {
            left = left.without(NodeMask::of(source));
            moves.push((source.number(), target.number()));
        }
        moves
    }

    #[test]
    fn nodes_are_emptied_in_an_order_that_moves_no_page_twice() {
        assert_eq!(moves(0b001, 0b010), [(0, 1)]);
        assert_eq!(moves(0b111, 0b1110), [(2, 3), (1, 2), (0, 1)]);
        assert_eq!(moves(0b11, 0b11), []);
        assert_eq!(moves(0b11, 0b01), [(1, 0)], "not as many: what is in both stays");
        assert_eq!(moves(0b1111, 0b1_0000), [(0, 4), (1, 4), (2, 4), (3, 4)]);
        assert_eq!(moves(0b11, 0), []);
        assert_eq!(moves(0b101, 0b110), [(0, 1)], "the second of both is the same");
    }
}
