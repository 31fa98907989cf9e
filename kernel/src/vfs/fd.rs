//! The table of descriptors of one process.

use alloc::{sync::Arc, vec::Vec};

use linux_abi::errno::Errno;

use super::file::File;
use crate::heap;

/// Descriptors a process may have unless it asks for more: Linux's default for `RLIMIT_NOFILE`.
pub const NOFILE: usize = 1024;
/// Most descriptors a process may ask for.
pub const NOFILE_MAX: usize = 4096;

/// What happens to a descriptor when its process runs another program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnExec {
    /// It stays open.
    Keep,
    /// It is closed.
    Close,
}

#[derive(Clone, Debug)]
struct Slot {
    file: Arc<File>,
    on_exec: OnExec,
}

/// Descriptors, by number.
#[derive(Debug, Default)]
pub struct FdTable {
    slots: Vec<Option<Slot>>,
}

impl FdTable {
    /// Makes a table with the standard streams at 0, 1 and 2.
    #[must_use]
    pub fn with_standard_streams() -> Self {
        let slots = File::standard_streams().map(|file| {
            Some(Slot {
                file: Arc::new(file),
                on_exec: OnExec::Keep,
            })
        });
        Self { slots: slots.into() }
    }

    /// Makes a table with the same files.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn try_clone(&self) -> Result<Self, Errno> {
        let mut slots = heap::try_vec(self.slots.len())?;
        slots.extend(self.slots.iter().cloned());
        Ok(Self { slots })
    }

    fn slot(&self, fd: usize) -> Result<&Slot, Errno> {
        self.slots.get(fd).and_then(Option::as_ref).ok_or(Errno::EBADF)
    }

    /// Returns the file behind a descriptor.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn get(&self, fd: usize) -> Result<Arc<File>, Errno> {
        self.slot(fd).map(|slot| Arc::clone(&slot.file))
    }

    /// Returns what happens to a descriptor at exec.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn on_exec(&self, fd: usize) -> Result<OnExec, Errno> {
        self.slot(fd).map(|slot| slot.on_exec)
    }

    /// Decides what happens to a descriptor at exec.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn set_on_exec(&mut self, fd: usize, on_exec: OnExec) -> Result<(), Errno> {
        let slot = self
            .slots
            .get_mut(fd)
            .and_then(Option::as_mut)
            .ok_or(Errno::EBADF)?;
        slot.on_exec = on_exec;
        Ok(())
    }

    /// Gives `file` the lowest free descriptor that is at least `from` and below `limit`.
    ///
    /// # Errors
    /// `EMFILE`: there is none. `ENOMEM`.
    pub fn open(
        &mut self,
        file: Arc<File>,
        on_exec: OnExec,
        from: usize,
        limit: usize,
    ) -> Result<usize, Errno> {
        let free = (from..)
            .find(|&fd| self.slots.get(fd).is_none_or(Option::is_none))
            .unwrap_or(limit);
        self.put(free, file, on_exec, limit)?;
        Ok(free)
    }

    /// Makes `fd` stand for `file`; what it stood for is closed.
    ///
    /// # Errors
    /// `EMFILE`: `fd` is not below `limit`. `ENOMEM`.
    pub fn put(&mut self, fd: usize, file: Arc<File>, on_exec: OnExec, limit: usize) -> Result<(), Errno> {
        if fd >= limit.min(NOFILE_MAX) {
            return Err(Errno::EMFILE);
        }
        if fd >= self.slots.len() {
            self.grow(fd + 1)?;
        }
        self.slots[fd] = Some(Slot { file, on_exec });
        Ok(())
    }

    /// Makes room for descriptors below `len`.
    fn grow(&mut self, len: usize) -> Result<(), Errno> {
        if len > self.slots.capacity() {
            let mut slots = heap::try_vec(len.next_power_of_two())?;
            slots.append(&mut self.slots);
            self.slots = slots;
        }
        self.slots.resize(len, None);
        Ok(())
    }

    /// Closes a descriptor.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn close(&mut self, fd: usize) -> Result<(), Errno> {
        self.slots
            .get_mut(fd)
            .and_then(Option::take)
            .map(drop)
            .ok_or(Errno::EBADF)
    }

    /// Takes out the next file, at `from` or above, that does not outlive an exec, for the caller to drop when it holds no
    /// lock. Returns its descriptor too.
    #[must_use]
    pub fn take_closed_on_exec(&mut self, from: usize) -> Option<(usize, Arc<File>)> {
        let closes = |slot: &mut Slot| slot.on_exec == OnExec::Close;
        let mut rest = self.slots.iter_mut().enumerate().skip(from);
        rest.find_map(|(fd, slot)| slot.take_if(closes).map(|slot| (fd, slot.file)))
    }
}
