//! F1: events, for tests and for the platform's own use. Compiled out unless [`crate::Platform::TRACE`] is set.

use crate::{addr::Pfn, order::Order};

/// Something that happened to a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A block left the allocator.
    Alloc {
        /// First frame.
        pfn: Pfn,
        /// Size.
        order: Order,
    },
    /// A block went back to the allocator.
    Free {
        /// First frame.
        pfn: Pfn,
        /// Size.
        order: Order,
    },
    /// A reference count changed by `val` to `count` (Linux `page_ref_mod`, 0139aa7b7fa1).
    RefMod {
        /// The page.
        pfn: Pfn,
        /// The change.
        val: i32,
        /// The count after it.
        count: u32,
    },
    /// A PMD mapping became a table of PTEs.
    SplitPmd {
        /// Head of the page that it maps.
        pfn: Pfn,
    },
    /// Somebody went over all places where a page may be mapped, holding its anon_vma's lock.
    RmapWalk {
        /// Linear index of the page's first subpage.
        index: u64,
    },
}
