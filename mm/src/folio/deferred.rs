//! The deferred split queue: huge pages that are partly unmapped and could give memory back if they were split.
//!
//! Partial unmapping is found inside rmap removal, which holds a page-table lock and cannot split; so the page is put
//! here, once. Freeing it takes it off. (Who drains the queue stands on floor F8.)
//!
//! ```text
//!   queue: first ─> head A's tail 2 <─> head B's tail 2 <─ last        links lie in each second tail
//!                   QUEUED on head A     QUEUED on head B
//! ```
//! Locks: the queue's spin lock guards the links and the `QUEUED` flag. It may be taken under a mapcount lock, never
//! the other way round.
//!
//! Origin: Linux 9a982250f773 (v4.5). Differs: a page whose subpages are all unmapped by one batch is never queued.

use super::Folio;
use crate::{
    counter::Counter,
    flags::PageFlags,
    memory::Memory,
    node::NodeId,
    page::{Page, PageArray, PageList},
    platform::Platform,
};

/// Which of a large folio's pages carries the links.
const LINK_TAIL: u32 = 2;

/// The queue of one node, oldest first.
#[derive(Debug, Default)]
pub struct DeferredQueue {
    links: PageList,
}

impl DeferredQueue {
    pub(crate) const fn new() -> Self {
        Self {
            links: PageList::new(),
        }
    }

    /// How many folios wait.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.links.len()
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// The heads of the folios that wait, oldest first.
    pub fn iter<'a>(&self, array: &'a PageArray) -> impl Iterator<Item = Page<'a>> {
        self.links.iter(array).map(Page::head)
    }
}

impl DeferredQueue {
    /// Takes a folio off that is on the queue or not.
    pub(crate) fn forget(&mut self, head: Page<'_>) {
        if head.clear_flags(PageFlags::QUEUED).contains(PageFlags::QUEUED) {
            self.links.remove(head.offset(LINK_TAIL));
        }
    }
}

impl<P: Platform> Memory<P> {
    /// Takes the folio that waits longest off a node's queue, with a reference. Folios that are being freed are passed
    /// by: they find themselves off the queue.
    pub(crate) fn take_deferred(&self, node: NodeId) -> Option<Folio<'_>> {
        let mut queue = self.node(node).deferred().lock(self.platform());
        while let Some(link) = queue.links.first(self.pages()) {
            let head = link.head();
            queue.forget(head);
            if head.ref_get_unless_zero() {
                return Some(Folio::from_raw(head));
            }
        }
        None
    }

    /// How many huge pages of one node wait to be split.
    #[must_use]
    pub fn nr_deferred_splits_of(&self, node: NodeId) -> u32 {
        self.node(node).deferred().lock(self.platform()).len()
    }

    /// Puts a folio back that was taken off and is still huge. Counts nothing: it waits for the same reason as before.
    pub(crate) fn requeue_deferred(&self, head: Page<'_>) {
        let mut queue = self.node_of(head.pfn()).deferred().lock(self.platform());
        if head.has(PageFlags::HEAD) && !head.set_flags(PageFlags::QUEUED).contains(PageFlags::QUEUED) {
            queue.links.push_back(head.offset(LINK_TAIL));
        }
    }

    /// Puts a partly unmapped huge page on the queue, unless it is there.
    pub(crate) fn queue_deferred_split(&self, head: Page<'_>) {
        let mut queue = self.node_of(head.pfn()).deferred().lock(self.platform());
        if head.set_flags(PageFlags::QUEUED).contains(PageFlags::QUEUED) {
            return;
        }
        queue.links.push_back(head.offset(LINK_TAIL));
        self.add(Counter::ThpDeferredSplitPage, 1);
    }

    /// Takes a huge page that is being freed off the queue, if it is there.
    pub(crate) fn unqueue_deferred_split(&self, head: Page<'_>) {
        // Nobody can queue it any more: its last reference is gone. So a look without the lock is enough to skip it.
        if !head.has(PageFlags::QUEUED) {
            return;
        }
        #[cfg(feature = "sabotage")]
        if crate::sabotage::sabotage!(self, UnlockedUnlink) {
            let link = head.offset(LINK_TAIL);
            let neighbours = link.links();
            let mut queue = self.node_of(head.pfn()).deferred().lock(self.platform());
            head.clear_flags(PageFlags::QUEUED);
            return queue.links.remove_between(link, neighbours);
        }
        let mut queue = self.node_of(head.pfn()).deferred().lock(self.platform());
        queue.forget(head);
    }

    /// How many huge pages wait to be split.
    #[must_use]
    pub fn nr_deferred_splits(&self) -> u64 {
        self.nodes()
            .iter()
            .map(|node| u64::from(node.deferred().lock(self.platform()).len()))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{flags::AllocFlags, order::PMD_ORDER, testing::Bench};

    /// The drainer has the queue's lock; the folio's last reference has just gone, and whoever gave it back is about to
    /// ask for that lock. The drainer must not take the folio, and it must leave the queue once, not twice.
    #[test]
    fn t3_7_a_folio_that_is_being_freed_leaves_the_queue_once() {
        let mem = Bench::memory(6 * crate::addr::HPAGE_PAGES);
        let alloc = || mem.alloc_folio(PMD_ORDER, AllocFlags::empty()).expect("room");
        let (dying, living) = (alloc(), alloc());
        mem.queue_deferred_split(dying.page());
        mem.queue_deferred_split(living.page());
        let dead = dying.into_raw();
        assert!(dead.ref_sub_and_test(1), "the last reference");
        let taken = mem.take_deferred(NodeId::FIRST).expect("the other one is alive");
        assert_eq!(taken.pfn(), living.pfn());
        assert_eq!(
            (mem.nr_deferred_splits(), dead.has(PageFlags::QUEUED)),
            (0, false)
        );
        mem.requeue_deferred(taken.page());
        // The freer: it may have seen the flag before the drainer cleared it, so the locked part must look again.
        let mut queue = mem.node_of(dead.pfn()).deferred().lock(mem.platform());
        queue.forget(dead);
        assert_eq!(queue.len(), 1, "the other one stays");
        drop(queue);
        mem.unqueue_deferred_split(dead);
        mem.free_folio(dead);
        assert_eq!(mem.nr_deferred_splits(), 1);
        mem.put(taken);
        mem.put(living);
        assert_eq!(mem.nr_deferred_splits(), 0);
    }
}
