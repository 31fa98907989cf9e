//! F8: splits the huge pages that wait on the deferred queue, so that their unmapped parts become free.
//!
//! A step takes a few folios off the front, tries each once, and puts those that could not be split back at the end: a
//! pinned folio waits its turn and starves nobody. One step does a bounded amount of work however long the queue is.
//! Each node has a queue; steps begin with one node after the other, so that none waits for another's pinned folios.
//!
//! Locks: none held on entry. The queue's lock is held only to take a folio off and put it back; between that the
//! folio is kept by a reference, which is only taken if there is one to share: otherwise it is being freed and leaves
//! the queue by itself.
//!
//! Origin: Linux `deferred_split_scan` (9a982250f773); differs: takes no more than its budget at once, and keeps the
//! queue's length in step with the queue.

use crate::{memory::Memory, node::NodeId, platform::Platform};

/// What a step did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Folios that were tried.
    pub scanned: u32,
    /// Folios that were split.
    pub split: u32,
}

impl<P: Platform> Memory<P> {
    /// Tries to split up to `budget` queued folios; fewer if the queues end.
    pub fn split_deferred(&self, budget: u32) -> Progress {
        let mut progress = Progress::default();
        for node in self.nodes_in_turn() {
            let of_node = self.split_deferred_of(node, budget - progress.scanned);
            progress.scanned += of_node.scanned;
            progress.split += of_node.split;
        }
        progress
    }

    /// [`Memory::split_deferred`] on the queue of one node.
    fn split_deferred_of(&self, node: NodeId, budget: u32) -> Progress {
        let mut progress = Progress::default();
        let budget = budget.min(self.nr_deferred_splits_of(node));
        while progress.scanned < budget {
            let Some(folio) = self.take_deferred(node) else {
                break;
            };
            progress.scanned += 1;
            let Some(locked) = self.try_lock_folio(&folio) else {
                self.requeue_deferred(folio.page());
                self.put(folio);
                continue;
            };
            match self.split_folio(folio, locked, 0) {
                Ok((folio, locked)) => {
                    progress.split += 1;
                    drop(locked);
                    self.put(folio);
                }
                Err((_, folio, locked)) => {
                    drop(locked);
                    self.requeue_deferred(folio.page());
                    self.put(folio);
                }
            }
        }
        progress
    }
}
