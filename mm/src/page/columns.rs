//! Where the bytes of the page records lie. Nothing outside this file knows.

use core::{marker::PhantomData, ptr::NonNull};

use crate::sync::{AtomicU32, AtomicU64};

/// Bytes that one frame's record takes in all columns together.
pub const RECORD_BYTES: usize = 3 * size_of::<AtomicU64>() + 4 * size_of::<AtomicU32>();
const _: () = assert!(RECORD_BYTES <= 64);

/// One column: a word per frame.
struct Column<T> {
    start: NonNull<T>,
    len: usize,
    _owns: PhantomData<T>,
}

impl<T> Column<T> {
    /// Cuts a column of `len` words off the front of `rest`.
    ///
    /// # Safety
    /// `rest` must be aligned for `T` and start memory of at least `len` zeroed words that nobody else uses for as
    /// long as the column lives; all-zero bytes must be a valid `T`.
    unsafe fn cut(rest: &mut NonNull<u8>, len: usize) -> Self {
        let start = rest.cast::<T>();
        crate::vm_assert!(start.is_aligned());
        // SAFETY: the caller vouches for `len` words of memory from here.
        let end = unsafe { start.add(len) };
        *rest = end.cast();
        Self {
            start,
            len,
            _owns: PhantomData,
        }
    }

    fn slice(&self) -> &[T] {
        // SAFETY: by the contract of `cut` the memory holds `len` valid words, ours alone; they are atomics, so a
        // shared reference is all anybody ever takes.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

/// The records of all frames, holes included.
pub struct PageArray {
    state: Column<AtomicU64>,
    mapping: Column<AtomicU64>,
    index: Column<AtomicU64>,
    refs: Column<AtomicU32>,
    maps: Column<AtomicU32>,
    next: Column<AtomicU32>,
    prev: Column<AtomicU32>,
    frames: u32,
}

// SAFETY: the columns are memory of atomics that the array owns alone; a pointer is all that keeps this from being
// automatic.
unsafe impl Send for PageArray {}
// SAFETY: as above; every access through a shared array is atomic.
unsafe impl Sync for PageArray {}

impl PageArray {
    /// Bytes needed for `frames` records.
    #[must_use]
    pub const fn size(frames: u32) -> usize {
        // Rounded to a cache line, so that what follows starts on one.
        (frames as usize * RECORD_BYTES).next_multiple_of(64)
    }

    /// Makes the array of `frames` records in `memory`.
    ///
    /// # Safety
    /// `memory` must start [`PageArray::size`] zeroed bytes, aligned to 64, that nobody else uses while the array lives.
    pub(crate) unsafe fn new(memory: NonNull<u8>, frames: u32) -> Self {
        let mut rest = memory;
        let len = frames as usize;
        macro_rules! cut {
            () => {
                // SAFETY: the columns are cut one behind the other, wide words first, from memory large enough for all.
                unsafe { Column::cut(&mut rest, len) }
            };
        }
        Self {
            state: cut!(),
            mapping: cut!(),
            index: cut!(),
            refs: cut!(),
            maps: cut!(),
            next: cut!(),
            prev: cut!(),
            frames,
        }
    }

    /// Number of records: one more than the highest frame number.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.frames
    }

    pub(super) fn state(&self) -> &[AtomicU64] {
        self.state.slice()
    }

    pub(super) fn mapping(&self) -> &[AtomicU64] {
        self.mapping.slice()
    }

    pub(super) fn index(&self) -> &[AtomicU64] {
        self.index.slice()
    }

    pub(super) fn refs(&self) -> &[AtomicU32] {
        self.refs.slice()
    }

    pub(super) fn maps(&self) -> &[AtomicU32] {
        self.maps.slice()
    }

    pub(super) fn next(&self) -> &[AtomicU32] {
        self.next.slice()
    }

    pub(super) fn prev(&self) -> &[AtomicU32] {
        self.prev.slice()
    }
}
