//! F1: the one data structure that hardware and software change at the same time: a page of 512 page-table words.
//!
//! What the words mean is floor F4's business.

use crate::{addr::ENTRIES, sync::AtomicU64};

/// The entries of one table page.
///
/// The hardware walks them and sets accessed and dirty bits at any time; so every access is atomic, and an entry that
/// the hardware may be using is taken out by exchange, never by a plain store over it.
#[repr(C, align(4096))]
pub struct Table {
    entries: [AtomicU64; ENTRIES],
}

impl Table {
    /// Reads an entry. What it leads to was written before it.
    #[must_use]
    pub fn load(&self, index: usize) -> u64 {
        self.entries[index].load_acquire()
    }

    /// Publishes an entry.
    pub fn store(&self, index: usize, raw: u64) {
        self.entries[index].store_release(raw);
    }

    /// Writes every entry of a table that no entry leads to yet: plain stores, published by the entry that will.
    pub fn fill(&self, raw: impl Fn(u64) -> u64) {
        for (entry, index) in self.entries.iter().zip(0..) {
            entry.store_relaxed(raw(index));
        }
    }

    /// `nr` entries from `index`.
    pub(crate) fn entries(&self, index: usize, nr: usize) -> &[AtomicU64] {
        &self.entries[index..index + nr]
    }

    /// Replaces an entry; returns the old one with the marks the hardware had set by then.
    pub fn swap(&self, index: usize, raw: u64) -> u64 {
        self.entries[index].swap_acqrel(raw)
    }

    /// Sets bits in an entry, as the hardware does.
    pub fn or(&self, index: usize, bits: u64) -> u64 {
        self.entries[index].fetch_or_acqrel(bits)
    }

    /// Replaces an entry if it is still `current`: how software sets marks without losing a change.
    ///
    /// # Errors
    /// What is there instead.
    pub fn compare_exchange(&self, index: usize, current: u64, new: u64) -> Result<u64, u64> {
        self.entries[index].compare_exchange_acqrel(current, new)
    }

    /// Whether no entry is used.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.iter().all(|entry| entry.load_relaxed() == 0)
    }
}
