//! Nodes: `set_mempolicy`, `get_mempolicy`, `mbind`, `migrate_pages`, `move_pages`, `getcpu`.
//!
//! | module | does |
//! |---|---|
//! | `mask` | sets of nodes in a program's memory |
//! | `policy` | where new pages come from |
//! | `moves` | where old pages go |
//!
//! Checks come in Linux's order. Everybody is the superuser, so nothing is refused for want of a right.

mod mask;
mod moves;
mod policy;

use linux_abi::errno::Errno;
use mm::Platform;
pub(super) use moves::{migrate_pages, move_pages};
pub(super) use policy::{get_mempolicy, mbind, set_mempolicy};

use super::{Call, Result, user::UserAddr};
use crate::{
    platform::mm,
    task::{
        process::{self, Pid},
        space::Space,
    },
};

/// `getcpu(cpu, node, unused)`.
pub(super) fn getcpu(call: &Call<'_>) -> Result {
    let cpu = {
        let guard = mm().platform().preempt_off();
        mm().platform().cpu(&guard)
    };
    let cpu = u32::try_from(cpu.index()).unwrap_or(0);
    for (index, number) in [cpu, mm().local_node().number()].into_iter().enumerate() {
        if let Some(addr) = UserAddr::optional(call.raw(index))? {
            addr.write(&number.to_le_bytes())?;
        }
    }
    Ok(0)
}

/// The memory of the process that argument 0 names; 0 names the caller.
///
/// # Errors
/// `ESRCH`: there is no such process. `EINVAL`: it has no memory any more.
fn space_of(call: &Call<'_>) -> core::result::Result<Space, Errno> {
    let space = match u32::try_from(call.int(0)) {
        Ok(0) => call.process().space(),
        Ok(pid) => process::find(Pid::new(pid)).ok_or(Errno::ESRCH)?.space(),
        Err(_) => return Err(Errno::ESRCH),
    };
    space.ok_or(Errno::EINVAL)
}
