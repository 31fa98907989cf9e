//! `migrate_pages`, `move_pages`.

use linux_abi::{errno::Errno, raw::mempolicy as abi};
use mm::{
    NodeId, NodeMask, VirtAddr,
    folio::IsolatedList,
    migrate::{MigrateError, NotIsolated, Reach},
};

use super::{mask, space_of};
use crate::{
    platform::{Pc, mm},
    syscall::{Call, Result, mem::errno, user::UserAddr},
    task::space::Space,
};

/// `migrate_pages(pid, max_node, old_nodes, new_nodes)`: returns how many pages could not be moved.
pub(in super::super) fn migrate_pages(call: &Call<'_>) -> Result {
    let max_node = call.raw(1);
    let from = mask::read(call.raw(2), max_node)?;
    let to = mask::read(call.raw(3), max_node)?;
    let space = space_of(call)?;
    let to = to.intersection(mm().nodes_with_memory());
    if to.is_empty() {
        return Err(Errno::EINVAL);
    }
    // The superuser moves what others have too.
    mm().migrate_space(&space, (from, to), Reach::All).map_err(errno)
}

/// `move_pages(pid, count, pages, nodes, status, flags)`: moves page by page, or tells where pages are. Returns how many
/// were not moved after the first that could not be, which a program also finds by their statuses.
pub(in super::super) fn move_pages(call: &Call<'_>) -> Result {
    let flags = call.uint(5);
    if flags & !(abi::MPOL_MF_MOVE | abi::MPOL_MF_MOVE_ALL) != 0 {
        return Err(Errno::EINVAL);
    }
    let space = space_of(call)?;
    let arrays = Arrays {
        count: call.raw(1),
        pages: call.raw(2),
        nodes: call.raw(3),
        status: call.raw(4),
    };
    if arrays.nodes == 0 {
        return tell(&space, &arrays);
    }
    let all = flags & abi::MPOL_MF_MOVE_ALL != 0;
    let reach = if all { Reach::All } else { Reach::Own };
    Mover::new(&space, &arrays, reach).run()
}

/// A program's arrays, as it gave them.
struct Arrays {
    count: u64,
    pages: u64,
    nodes: u64,
    status: u64,
}

impl Arrays {
    fn page(&self, i: u64) -> core::result::Result<u64, Errno> {
        element(self.pages, i, 8)?.read_u64()
    }

    fn node(&self, i: u64) -> core::result::Result<i32, Errno> {
        Ok(element(self.nodes, i, 4)?.read_u32()?.cast_signed())
    }

    /// Says what became of page `i`: its node, or why not.
    fn store(&self, i: u64, outcome: core::result::Result<NodeId, Errno>) -> core::result::Result<(), Errno> {
        let status = match outcome {
            Ok(node) => node.number().cast_signed(),
            Err(error) => -i32::from(error.number()),
        };
        element(self.status, i, 4)?.write(&status.to_le_bytes())
    }
}

fn element(array: u64, i: u64, bytes: u64) -> core::result::Result<UserAddr, Errno> {
    let offset = i.checked_mul(bytes);
    offset
        .and_then(|offset| array.checked_add(offset))
        .ok_or(Errno::EFAULT)
        .and_then(UserAddr::new)
}

/// The node of the page at `addr`.
fn node_at(space: &Space, addr: u64) -> core::result::Result<NodeId, NotIsolated> {
    let addr = user_address(addr)?;
    Ok(mm().node_id(mm().resident_frame(space, addr)?))
}

fn user_address(addr: u64) -> core::result::Result<VirtAddr, NotIsolated> {
    UserAddr::new(addr)
        .map(UserAddr::addr)
        .map_err(|_| NotIsolated::NoArea)
}

/// Tells where pages are.
fn tell(space: &Space, arrays: &Arrays) -> Result {
    for i in 0..arrays.count {
        let node = node_at(space, arrays.page(i)?);
        arrays.store(i, node.map_err(errno))?;
    }
    Ok(0)
}

/// Pages that lie one behind the other in the array and go to the same node move together.
///
/// ```text
///   pages    a b c d e f g          c is not mapped, f is on node 1 already
///   nodes    0 0 0 0 1 1 1
///            ^^^   ^ ^   ^          four batches
/// ```
struct Mover<'a> {
    space: &'a Space,
    arrays: &'a Arrays,
    reach: Reach,
    list: IsolatedList<'static, Pc>,
    /// Where the batch goes; `None`: there is no batch.
    target: Option<NodeId>,
    /// First page of the batch.
    start: u64,
}

impl<'a> Mover<'a> {
    fn new(space: &'a Space, arrays: &'a Arrays, reach: Reach) -> Self {
        Self {
            space,
            arrays,
            reach,
            list: IsolatedList::new(mm()),
            target: None,
            start: 0,
        }
    }

    fn run(mut self) -> Result {
        for i in 0..self.arrays.count {
            match self.take(i) {
                Ok(0) => {}
                Ok(not_moved) => return Ok(not_moved),
                Err(error) => {
                    // What was asked for before is done all the same.
                    let _ = self.flush(i);
                    return Err(error);
                }
            }
        }
        self.flush(self.arrays.count)
    }

    /// Adds page `i` to the batch, or says why not. Returns how many pages were not moved if one could not be.
    fn take(&mut self, i: u64) -> Result {
        let addr = self.arrays.page(i)?;
        let target = online(self.arrays.node(i)?)?;
        if self.target != Some(target) {
            let not_moved = self.flush(i)?;
            if not_moved != 0 {
                return Ok(not_moved);
            }
            self.target = Some(target);
            self.start = i;
        }
        let Err(outcome) = self.isolate(addr, target) else {
            return Ok(0);
        };
        self.arrays.store(i, outcome.map_err(errno))?;
        // This page has its answer.
        let not_moved = self.flush(i)?.saturating_sub(1);
        Ok(not_moved)
    }

    /// Puts a page on the list, unless it lies there already (`Ok`) or cannot be had (`Err`).
    fn isolate(
        &mut self,
        addr: u64,
        target: NodeId,
    ) -> core::result::Result<(), core::result::Result<NodeId, NotIsolated>> {
        if node_at(self.space, addr).map_err(Err)? == target {
            return Err(Ok(target));
        }
        let addr = user_address(addr).map_err(Err)?;
        mm().isolate_page_at(self.space, addr, self.reach, &mut self.list)
            .map_err(Err)
    }

    /// Moves the batch, which ends before page `end`, and says what became of it.
    ///
    /// # Errors
    /// `ENOMEM`: the node is full. `EFAULT`.
    fn flush(&mut self, end: u64) -> Result {
        let (Some(target), false) = (self.target.take(), self.list.is_empty()) else {
            return Ok(0);
        };
        let moved = mm().migrate_to_node(&mut self.list, target);
        // What is still on it goes back to its LRU list.
        self.list = IsolatedList::new(mm());
        let reason = match moved.error {
            Some(MigrateError::NoMemory(_)) => Errno::ENOMEM,
            _ => Errno::EBUSY,
        };
        for i in self.start..end {
            let arrived = moved.failed == 0 || node_at(self.space, self.arrays.page(i)?) == Ok(target);
            self.arrays
                .store(i, if arrived { Ok(target) } else { Err(reason) })?;
        }
        match (moved.failed, reason) {
            (0, _) => Ok(0),
            (_, Errno::ENOMEM) => Err(Errno::ENOMEM),
            (failed, _) => Ok(u64::from(failed) + self.arrays.count - end),
        }
    }
}

/// The node with this number.
///
/// # Errors
/// `ENODEV`: there is none, or it has no memory.
fn online(number: i32) -> core::result::Result<NodeId, Errno> {
    let node = u32::try_from(number).ok().and_then(NodeId::new);
    let online: NodeMask = mm().nodes_with_memory();
    node.filter(|&node| online.contains(node)).ok_or(Errno::ENODEV)
}
