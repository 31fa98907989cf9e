//! F9: what Linux would show. Reads only, accepts any page in any state, takes no sleeping lock, never asserts.
//!
//! The numbers may be stale the moment they are returned, and mixed if the page changes in between; they are exact when
//! nobody is running.

mod dump;
mod kpage;
mod node;
mod pagemap;
mod smaps;

pub use dump::dump_page;
pub use kpage::{kpagecount, kpageflags, kpageflags_with_double_map};
pub use node::{NodeUses, node_uses};
pub use pagemap::{Mapped, leaf, mapped_at, pagemap};
pub use smaps::{Residency, Share, Split, smaps};

use crate::{memory::Memory, order::Order, platform::Platform};

/// Shows `row` the free blocks of each zone, as `/proc/buddyinfo` does: node, zone, blocks of order 0 to 10.
pub fn buddyinfo<P: Platform>(mem: &Memory<P>, row: &mut dyn FnMut(usize, &str, &[u64; Order::COUNT])) {
    for (number, node) in mem.nodes().iter().enumerate() {
        for zone in node.zones().iter().filter(|zone| zone.nr_managed() > 0) {
            row(number, zone.kind().name(), &zone.blocks(mem));
        }
    }
}
