//! Sets of nodes in a program's memory: words of 64 bits, and a number of bits that is one too many.
//!
//! Numbers from 64 on are refused, as by a Linux for at most 64 nodes (`NODES_SHIFT=6`, the default on x86-64).

use linux_abi::errno::Errno;
use mm::{NodeMask, PAGE_BYTES};

use crate::syscall::user::UserAddr;

/// Bytes of a word.
const WORD: u64 = 8;
/// Bits of a word.
const WORD_BITS: u64 = 64;

/// Reads the set at `addr`, of which the program says that it has one bit less than `max_node`. No address, and no
/// bits, mean an empty set.
///
/// # Errors
/// `EINVAL`: larger than a page, or a bit is set that no node can have. `EFAULT`.
///
/// # Origin
/// Linux `get_nodes`; like it, looks at all of the last word when that is not the first.
pub(super) fn read(addr: u64, max_node: u64) -> Result<NodeMask, Errno> {
    let bits = max_node.wrapping_sub(1);
    if bits == 0 || addr == 0 {
        return Ok(NodeMask::EMPTY);
    }
    if bits > PAGE_BYTES * 8 {
        return Err(Errno::EINVAL);
    }
    let word = |index: u64| word_at(addr, index)?.read_u64();
    for index in (1..=(bits - 1) / WORD_BITS).rev() {
        if word(index)? != 0 {
            return Err(Errno::EINVAL);
        }
    }
    let meant = u64::MAX >> (WORD_BITS - bits.min(WORD_BITS));
    Ok(NodeMask::from_bits(word(0)? & meant))
}

/// Writes a set to `addr`, where the program has room for one bit less than `max_node`; what is left over becomes zero.
///
/// # Errors
/// `EINVAL`: more room than a page. `EFAULT`; some may have been written.
///
/// # Origin
/// Linux `copy_nodes_to_user`.
pub(super) fn write(nodes: NodeMask, addr: u64, max_node: u64) -> Result<(), Errno> {
    let words = (max_node - 1).div_ceil(WORD_BITS);
    if words * WORD > PAGE_BYTES {
        return Err(Errno::EINVAL);
    }
    for index in 1..words {
        word_at(addr, index)?.write(&[0; 8])?;
    }
    if words > 0 {
        word_at(addr, 0)?.write(&nodes.bits().to_le_bytes())?;
    }
    Ok(())
}

fn word_at(addr: u64, index: u64) -> Result<UserAddr, Errno> {
    addr.checked_add(index * WORD)
        .ok_or(Errno::EFAULT)
        .and_then(UserAddr::new)
}
