//! A reference to an address space that gives itself back.

use core::{fmt, ops::Deref};

use mm::{AddressSpace, AllocError, MapError, MmRef};

use crate::platform::{self, mm};

/// One counted reference to an address space (Linux's `mm_users`). The last one to go tears the space down.
///
/// # Context
/// Dropping one may wait. It must not be dropped on a CPU that still runs on the space's tables: the thread leaves
/// them first.
pub struct Space(Option<MmRef>);

impl Space {
    /// Makes an empty address space with the kernel in its upper half.
    ///
    /// # Errors
    /// No memory. Nothing changed.
    pub fn new() -> Result<Self, AllocError> {
        platform::new_space().map(|space| Self(Some(space)))
    }

    /// Makes an address space that shares all private memory of this one until one of them writes.
    ///
    /// # Errors
    /// No memory. Nothing is left of the copy.
    pub fn fork(&self) -> Result<Self, MapError> {
        platform::fork_space(self).map(|space| Self(Some(space)))
    }
}

impl Deref for Space {
    type Target = AddressSpace;

    fn deref(&self) -> &AddressSpace {
        self.0.as_deref().expect("invariant: taken only by drop")
    }
}

impl Clone for Space {
    fn clone(&self) -> Self {
        Self(self.0.as_ref().map(|space| mm().get_space(space)))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if let Some(space) = self.0.take() {
            mm().put_space(space);
        }
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Space").field("root", &self.root()).finish()
    }
}
