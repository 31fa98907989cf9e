//! F2: the page array: state and legal transitions of one page record.
//!
//! ```text
//!               pfn 0        1        2      …            7 columns, one word per frame in each
//!   state  u64 |flags,order|flags,…|        |            hot: flags, and order (head, buddy) or head link (tail)
//!   refs   u32 |           |       |        |            reference count; 0 on tails, always (I1)
//!   maps   u32 |           |       |        |            mapcount of this frame as mapped by PTEs (count, not raw)
//!   mapping u64, index u64                               anon_vma | 1, and the linear page index; on the first tail
//!                                                        `index` holds the compound mapcount (see `mapcount`)
//!   next, prev u32                                       the one list the page is on; of a large folio's second
//!                                                        tail: its links in the deferred split queue
//! ```
//! Why columns and not records: splitting one PMD touches 512 mapcounts. In 64-byte records that is 512 cache lines;
//! here it is 32. All columns together take [`RECORD_BYTES`] bytes a frame. [`columns`] alone knows where the bytes
//! lie; everything else holds a [`Page`], a handle that is the array plus a number.
//!
//! Who may write what: see the table in `docs/locking.md`. A column has one access width for everybody, and each word
//! is an atomic: reports read without any lock and may see stale values, never torn ones.
//!
//! Origin: the meaning of every field is Linux's `struct page` of v4.5 to v6.1 (53f9263baba6 and after); the layout is
//! our own.

pub mod columns;
pub mod compound;
pub mod list;
pub mod mapcount;
mod refs;
mod state;

pub use columns::{PageArray, RECORD_BYTES};
pub use compound::Destructor;
pub use list::PageList;
pub use mapcount::MapCounts;
pub use state::PageState;

use crate::{
    addr::{Pfn, to_usize},
    flags::PageFlags,
    order::Order,
    sync::{AtomicU32, AtomicU64, spin_hint},
};

/// Bit 0 of the `mapping` word: the rest names an `AnonVma`.
const MAPPING_ANON: u64 = 1;

/// A page record: the array and a frame number.
///
/// Having one tells you that the number is inside the array; not that there is memory, nor what state the page is in,
/// nor that it stays in that state.
///
/// # Invariants
/// `pfn` is below `array.frames()`.
#[derive(Clone, Copy)]
pub struct Page<'a> {
    array: &'a PageArray,
    pfn: Pfn,
}

impl PageArray {
    /// Returns the record of `pfn`, or `None` past the end of the array.
    #[must_use]
    pub fn get(&self, pfn: Pfn) -> Option<Page<'_>> {
        // INVARIANT: compared just here.
        (pfn.raw() < self.frames()).then_some(Page { array: self, pfn })
    }

    /// Returns the record of a frame that is known to be in the array: it came out of the array.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    #[inline]
    pub fn page(&self, pfn: Pfn) -> Page<'_> {
        if pfn.raw() >= self.frames() {
            past_the_array(pfn);
        }
        // INVARIANT: compared just here.
        Page { array: self, pfn }
    }
}

/// Out of line, so that what looks pages up stays small enough to be inlined.
#[cold]
#[inline(never)]
#[track_caller]
fn past_the_array(pfn: Pfn) -> ! {
    panic!("{pfn:?} is past the page array")
}

impl<'a> Page<'a> {
    /// The frame's number.
    #[must_use]
    pub fn pfn(self) -> Pfn {
        self.pfn
    }

    /// The record `n` frames further up.
    #[must_use]
    pub fn offset(self, n: u32) -> Self {
        self.array.page(self.pfn.offset(n))
    }

    /// The array it belongs to.
    #[must_use]
    pub fn array(self) -> &'a PageArray {
        self.array
    }

    fn state_word(self) -> &'a AtomicU64 {
        // SAFETY: a `Page` is inside the array, and every column is as long as the array.
        unsafe { self.array.state().get_unchecked(self.pfn.index()) }
    }

    fn refs_word(self) -> &'a AtomicU32 {
        // SAFETY: a `Page` is inside the array, and every column is as long as the array.
        unsafe { self.array.refs().get_unchecked(self.pfn.index()) }
    }

    fn maps_word(self) -> &'a AtomicU32 {
        // SAFETY: a `Page` is inside the array, and every column is as long as the array.
        unsafe { self.array.maps().get_unchecked(self.pfn.index()) }
    }

    fn mapping_word(self) -> &'a AtomicU64 {
        // SAFETY: a `Page` is inside the array, and every column is as long as the array.
        unsafe { self.array.mapping().get_unchecked(self.pfn.index()) }
    }

    fn index_word(self) -> &'a AtomicU64 {
        // SAFETY: a `Page` is inside the array, and every column is as long as the array.
        unsafe { self.array.index().get_unchecked(self.pfn.index()) }
    }

    /// Flags and link or order, as one value read at once.
    #[must_use]
    pub fn state(self) -> PageState {
        PageState::from_raw(self.state_word().load_acquire())
    }

    /// Whether all of `flags` are set on this very record (a tail answers for itself, not for its head).
    #[must_use]
    pub fn has(self, flags: PageFlags) -> bool {
        self.state().flags().contains(flags)
    }

    /// Sets flags; returns those that were set before.
    pub(crate) fn set_flags(self, flags: PageFlags) -> PageFlags {
        PageState::from_raw(self.state_word().fetch_or_acqrel(u64::from(flags.bits()))).flags()
    }

    /// Clears flags; returns those that were set before.
    pub(crate) fn clear_flags(self, flags: PageFlags) -> PageFlags {
        PageState::from_raw(self.state_word().fetch_and_acqrel(!u64::from(flags.bits()))).flags()
    }

    /// Clears all flags but `kept`, and order or link.
    pub(crate) fn retain_flags(self, kept: PageFlags) {
        self.state_word().fetch_and_acqrel(u64::from(kept.bits()));
    }

    /// Replaces the whole state word of a page that nobody else can reach: one plain store.
    pub(crate) fn set_private_state(self, state: PageState) {
        self.state_word().store_release(state.raw());
    }

    /// Takes a bit lock of the state word, spinning. The caller holds off preemption.
    pub(crate) fn lock_bit(self, bit: PageFlags) {
        while self.set_flags(bit).contains(bit) {
            while self.has(bit) {
                spin_hint();
            }
        }
    }

    /// Gives a bit lock back.
    pub(crate) fn unlock_bit(self, bit: PageFlags) {
        let before = self.clear_flags(bit);
        crate::vm_assert!(before.contains(bit), "{:?}: bit lock was not held", self.pfn);
    }

    /// Returns the head of the compound page this page is part of now, or the page itself. A hint: without a
    /// reference the compound page may be split or freed at any moment.
    #[must_use]
    pub fn head(self) -> Page<'a> {
        match self.state().head_link() {
            // A link read from a record that is being rewritten may be anything: never leave the array.
            Some(head) => self.array.get(head).unwrap_or(self),
            None => self,
        }
    }

    /// Order of the compound page that starts here; 0 if none does.
    #[must_use]
    pub fn compound_order(self) -> Order {
        self.state().compound_order()
    }

    /// Whether the page, or the compound page it is part of, is anonymous memory (S7: valid on tails).
    #[must_use]
    pub fn is_anon(self) -> bool {
        self.head().mapping_word().load_relaxed() & MAPPING_ANON != 0
    }

    /// The object that the page, or its compound page, belongs to: an address in the window without the tag bit; 0
    /// if it belongs to none.
    #[must_use]
    pub fn mapping(self) -> u64 {
        self.head().mapping_word().load_relaxed() & !MAPPING_ANON
    }

    /// The raw mapping word of this very record, tag bit included; 0 on tails.
    #[must_use]
    pub fn own_mapping(self) -> u64 {
        self.mapping_word().load_relaxed()
    }

    /// Marks an order-0 or head page as anonymous memory of `anon_vma` (an address in the window) with linear page
    /// `index`.
    pub(crate) fn set_anon(self, anon_vma: u64, index: u64) {
        crate::vm_assert!(anon_vma & MAPPING_ANON == 0 && self.state().head_link().is_none());
        self.index_word().store_relaxed(index);
        self.mapping_word().store_relaxed(anon_vma | MAPPING_ANON);
    }

    /// Gives a page that comes out of a compound page its part of the identity: tag bit included.
    pub(crate) fn set_identity(self, own_mapping: u64, index: u64) {
        self.index_word().store_relaxed(index);
        self.mapping_word().store_relaxed(own_mapping);
    }

    /// Forgets what the page belonged to. At free only: a racing map may rely on it as long as there are references.
    pub(crate) fn clear_mapping(self) {
        self.mapping_word().store_relaxed(0);
        self.index_word().store_relaxed(0);
    }

    /// The record's index word: of anonymous memory, its linear page index.
    #[must_use]
    pub fn index(self) -> u64 {
        self.index_word().load_relaxed()
    }

    /// Stores an owner's own word: slab and table pages keep theirs here.
    pub(crate) fn set_index(self, value: u64) {
        self.index_word().store_relaxed(value);
    }

    /// The whole record, as it is stored: state, links of the page's list (next above previous), mapping, index,
    /// reference count above mapcount.
    #[must_use]
    pub fn raw_words(self) -> [u64; 5] {
        let index = self.pfn.index();
        let pair = |high: &AtomicU32, low: &AtomicU32| {
            u64::from(high.load_relaxed()) << 32 | u64::from(low.load_relaxed())
        };
        [
            self.state_word().load_relaxed(),
            pair(&self.array.next()[index], &self.array.prev()[index]),
            self.mapping_word().load_relaxed(),
            self.index_word().load_relaxed(),
            pair(self.refs_word(), self.maps_word()),
        ]
    }

    /// Position within its compound page; 0 for heads and order-0 pages.
    #[must_use]
    pub fn subpage(self) -> usize {
        to_usize(u64::from(
            self.pfn.raw() - self.head().pfn.raw().min(self.pfn.raw()),
        ))
    }
}

impl core::fmt::Debug for Page<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?} {:?}", self.pfn, self.state())
    }
}
