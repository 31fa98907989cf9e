//! `set_mempolicy`, `get_mempolicy`, `mbind`.

use linux_abi::{errno::Errno, raw::mempolicy as abi};
use mm::{
    Access, Mode, NodeMask, PAGE_BYTES, Policy, PolicyFlags, USER_END, VirtAddr, VirtRange,
    mempolicy::Misplaced, migrate::Reach,
};

use super::mask;
use crate::{
    platform::mm,
    syscall::{
        Call, Result,
        mem::{errno, space},
        user::UserAddr,
    },
    task::space::Space,
};

/// A mode and its flags, which do not contradict each other.
#[derive(Clone, Copy)]
struct Wish {
    mode: Mode,
    flags: PolicyFlags,
}

impl Wish {
    /// Reads the word that says both.
    fn parse(word: u32) -> core::result::Result<Self, Errno> {
        let flags = PolicyFlags::from_bits_truncate(word);
        let mode = Mode::from_number(word & !flags.bits()).ok_or(Errno::EINVAL)?;
        if flags.suit(mode) {
            Ok(Self { mode, flags })
        } else {
            Err(Errno::EINVAL)
        }
    }

    fn of(self, nodes: NodeMask) -> core::result::Result<Policy, Errno> {
        Policy::new(self.mode, self.flags, nodes, mm().nodes_with_memory()).map_err(|_| Errno::EINVAL)
    }
}

/// `set_mempolicy(mode, nodes, max_node)`.
pub(in super::super) fn set_mempolicy(call: &Call<'_>) -> Result {
    let wish = Wish::parse(call.uint(0))?;
    let nodes = mask::read(call.raw(1), call.raw(2))?;
    call.process().memory_policy().set(wish.of(nodes)?);
    Ok(0)
}

/// `get_mempolicy(mode, nodes, max_node, addr, flags)`.
pub(in super::super) fn get_mempolicy(call: &Call<'_>) -> Result {
    let [mode_at, nodes_at, max_node] = [call.raw(0), call.raw(1), call.raw(2)];
    if nodes_at != 0 && max_node < u64::from(mm().nr_nodes()) {
        return Err(Errno::EINVAL);
    }
    let (mode, nodes) = ask(call, call.raw(3), call.raw(4))?;
    if let Some(at) = UserAddr::optional(mode_at)? {
        at.write(&mode.to_le_bytes())?;
    }
    if nodes_at != 0 {
        mask::write(nodes, nodes_at, max_node)?;
    }
    Ok(0)
}

/// What `get_mempolicy` is to tell: mode or node, and a set of nodes.
fn ask(call: &Call<'_>, addr: u64, flags: u64) -> core::result::Result<(u32, NodeMask), Errno> {
    const NODE: u64 = abi::MPOL_F_NODE as u64;
    const ADDR: u64 = abi::MPOL_F_ADDR as u64;
    const BOTH: u64 = NODE | ADDR;
    const MEMS_ALLOWED: u64 = abi::MPOL_F_MEMS_ALLOWED as u64;
    let of_task = || call.process().memory_policy().get();
    match flags {
        MEMS_ALLOWED => Ok((0, mm().nodes_with_memory())),
        ADDR => policy_at(call, addr).map(told),
        BOTH => {
            let (policy, space) = (policy_at(call, addr)?, space(call)?);
            Ok((node_at(&space, addr)?, policy.nodes()))
        }
        0 | NODE if addr != 0 => Err(Errno::EINVAL),
        0 => Ok(told(of_task())),
        // The node of the next page: nothing but faults follows a policy, and they go by addresses.
        NODE if of_task().mode() == Mode::Interleave => {
            let next = of_task().nodes_meant(mm().nodes_with_memory()).first();
            Ok((next.map_or(0, mm::NodeId::number), of_task().nodes()))
        }
        _ => Err(Errno::EINVAL),
    }
}

/// A policy as a program sees it.
fn told(policy: Policy) -> (u32, NodeMask) {
    (policy.mode() as u32 | policy.flags().bits(), policy.nodes())
}

fn policy_at(call: &Call<'_>, addr: u64) -> core::result::Result<Policy, Errno> {
    let addr = UserAddr::new(addr)?.addr();
    let space = space(call)?;
    mm().policy_at(&space, addr).ok_or(Errno::EFAULT)
}

/// The node of the page at `addr`, which is brought in if it is not there.
fn node_at(space: &Space, addr: u64) -> core::result::Result<u32, Errno> {
    let page = mm().get_user_page(space, VirtAddr::new(addr), Access::Read);
    let (folio, pfn) = page.map_err(|_| Errno::EFAULT)?;
    mm().put(folio);
    Ok(mm().node_id(pfn).number())
}

/// `mbind(addr, len, mode, nodes, max_node, flags)`.
pub(in super::super) fn mbind(call: &Call<'_>) -> Result {
    let wish = Wish::parse(call.uint(2))?;
    let nodes = mask::read(call.raw(3), call.raw(4))?;
    let misplaced = misplaced(wish.mode, call.uint(5))?;
    let (start, len) = (call.raw(0), call.raw(1));
    if !start.is_multiple_of(PAGE_BYTES) {
        return Err(Errno::EINVAL);
    }
    // A length that no multiple of the page size is left for is as good as none.
    let len = len.checked_next_multiple_of(PAGE_BYTES).unwrap_or(0);
    let end = start.checked_add(len).ok_or(Errno::EINVAL)?;
    if len == 0 {
        return Ok(0);
    }
    let policy = wish.of(nodes)?;
    // Nothing is mapped past user space: a hole, over which only the default policy may be set.
    let reachable = end.min(USER_END);
    if reachable < end && policy != Policy::DEFAULT {
        return Err(Errno::EFAULT);
    }
    let range = reachable
        .checked_sub(start)
        .and_then(|len| VirtRange::user(start, len))
        .ok_or(Errno::EFAULT)?;
    let space = space(call)?;
    mm().mbind(&space, range, (policy, nodes), misplaced)
        .map_err(errno)?;
    Ok(0)
}

/// What the flags say about pages that lie elsewhere.
fn misplaced(mode: Mode, flags: u32) -> core::result::Result<Misplaced, Errno> {
    const STRICT: u32 = abi::MPOL_MF_STRICT;
    const MOVE_ALL: u32 = abi::MPOL_MF_MOVE_ALL;
    if flags & !abi::MPOL_MF_VALID != 0 {
        return Err(Errno::EINVAL);
    }
    let reach = if flags & MOVE_ALL != 0 {
        Reach::All
    } else {
        Reach::Own
    };
    // No page can be where the default policy does not want it.
    let is_strict = flags & STRICT != 0 && mode != Mode::Default;
    Ok(match (flags & !STRICT != 0, is_strict) {
        (true, true) => Misplaced::MustMove(reach),
        (true, false) => Misplaced::Move(reach),
        (false, true) => Misplaced::Refuse,
        (false, false) => Misplaced::Stay,
    })
}
