//! What the memory of one node is used for, as far as `/sys/devices/system/node/nodeN/meminfo` tells.

use crate::{flags::PageFlags, memory::Memory, node::NodeId, page::Page, platform::Platform};

/// Base pages of one node, by use; huge pages are counted in huge pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeUses {
    /// Anonymous memory that some page table maps.
    pub anon: u64,
    /// Huge pages that some PMD maps.
    pub huge: u64,
    /// Page tables.
    pub tables: u64,
    /// On the active LRU list.
    pub active: u64,
    /// On the inactive LRU list.
    pub inactive: u64,
}

/// Counts what the frames of a node are used for. Linux keeps these sums for each node; here somebody who asks has the
/// records of the node looked through.
#[must_use]
pub fn node_uses<P: Platform>(mem: &Memory<P>, node: NodeId) -> NodeUses {
    let mut uses = NodeUses::default();
    let frames = mem.node_range(node).iter().filter_map(|pfn| mem.pages().get(pfn));
    frames.for_each(|page| uses.add(page));
    uses
}

impl NodeUses {
    fn add(&mut self, page: Page<'_>) {
        let state = page.state();
        let flags = state.flags();
        self.tables += u64::from(flags.contains(PageFlags::PGTABLE));
        if page.is_anon() {
            self.anon += u64::from(page.mapcount() > 0);
            let is_head = flags.contains(PageFlags::HEAD);
            self.huge += u64::from(is_head && page.map_counts().entire > 0);
        }
        if flags.contains(PageFlags::LRU) {
            let pages = u64::from(state.compound_order().nr_pages());
            match flags.contains(PageFlags::ACTIVE) {
                true => self.active += pages,
                false => self.inactive += pages,
            }
        }
    }
}
