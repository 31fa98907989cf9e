//! What the threads of one program share.

use mm::{AddressSpace, MmRef};
use spin::Mutex;

use crate::platform::mm;

/// A program in execution.
#[derive(Debug)]
pub struct Process {
    /// Taken when the process is dropped.
    space: Option<MmRef>,
    /// How it ended: 0 to 255, or nothing yet.
    status: Mutex<Option<u8>>,
}

impl Process {
    /// Wraps an address space.
    #[must_use]
    pub const fn new(space: MmRef) -> Self {
        Self {
            space: Some(space),
            status: Mutex::new(None),
        }
    }

    /// Its memory.
    ///
    /// # Panics
    /// Never: the space is there as long as the process is.
    #[must_use]
    pub fn space(&self) -> &AddressSpace {
        self.space.as_ref().expect("invariant: only drop takes the space")
    }

    /// Records how the program ends, unless that is known already.
    pub fn end(&self, status: u8) {
        self.status.lock().get_or_insert(status);
    }

    /// How it ended.
    #[must_use]
    pub fn status(&self) -> Option<u8> {
        *self.status.lock()
    }

    /// Its number and name, for log lines.
    #[must_use]
    pub const fn label(&self) -> (u32, &str) {
        (0, "program")
    }

    /// Called by each of its threads as the last thing it does.
    pub fn on_thread_exit(&self) {}
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(space) = self.space.take() {
            mm().put_space(space);
        }
    }
}
