//! The folio lock: one bit of the head's state word, for holders that may sleep.

use super::Folio;
use crate::{
    flags::PageFlags,
    memory::Memory,
    page::Page,
    platform::{Platform, WaitKey},
};

/// The lock of a folio, held. The folio's reference must outlive it.
#[must_use]
pub struct FolioLocked<'m, P: Platform> {
    mem: &'m Memory<P>,
    page: Page<'m>,
}

impl<P: Platform> Memory<P> {
    /// Takes the folio's lock unless somebody has it.
    pub fn try_lock_folio<'m>(&'m self, folio: &Folio<'m>) -> Option<FolioLocked<'m, P>> {
        let page = folio.page();
        let free = !page.set_flags(PageFlags::LOCKED).contains(PageFlags::LOCKED);
        // Made only if it is ours: dropping one gives the lock back, whoever has it.
        free.then(|| FolioLocked { mem: self, page })
    }

    /// Takes the folio's lock, sleeping while somebody has it.
    pub fn lock_folio<'m>(&'m self, folio: &Folio<'m>) -> FolioLocked<'m, P> {
        loop {
            if let Some(locked) = self.try_lock_folio(folio) {
                return locked;
            }
            let page = folio.page();
            self.platform().wait(WaitKey::folio(page.pfn()), None, &mut || {
                page.set_flags(PageFlags::WAITERS).contains(PageFlags::LOCKED)
            });
        }
    }
}

impl<P: Platform> Memory<P> {
    /// Takes charge of a lock that is taken.
    pub(crate) fn adopt_lock<'m>(&'m self, page: Page<'m>) -> FolioLocked<'m, P> {
        crate::vm_assert!(page.has(PageFlags::LOCKED), "{page:?}: not locked");
        FolioLocked { mem: self, page }
    }
}

impl<P: Platform> Drop for FolioLocked<'_, P> {
    fn drop(&mut self) {
        let before = self.page.clear_flags(PageFlags::LOCKED | PageFlags::WAITERS);
        crate::assert::vm_assert_on_drop!(
            before.contains(PageFlags::LOCKED),
            "{:?}: lock was not held",
            self.page
        );
        if before.contains(PageFlags::WAITERS) {
            self.mem.platform().wake(WaitKey::folio(self.page.pfn()));
        }
    }
}
