//! The reference count of a page. One API, so that each change can be traced (Linux 0139aa7b7fa1).
//!
//! A tail's count is 0 for as long as it is a tail (I1): taking a reference to a tail means taking one to its head.
//! A count of 0 on a head or order-0 page means that it is free, being freed, or frozen by somebody who is rewriting
//! it; then nobody else gets in.

use super::Page;
use crate::order::Order;

/// What a pin of a base page adds to its reference count (Linux `GUP_PIN_COUNTING_BIAS`).
const PIN_BIAS: u32 = 1024;

impl Page<'_> {
    /// Takes `n` references to an order-0 or head page that the caller already has a reason to keep.
    pub(crate) fn ref_add(self, n: u32) {
        let before = self.refs_word().fetch_add_relaxed(n);
        crate::vm_assert!(before > 0, "{self:?}: reference taken to a page that has none");
    }

    /// Gives `n` references back; returns true for the one caller who gave the last: the page is then its own to free.
    #[must_use]
    pub(crate) fn ref_sub_and_test(self, n: u32) -> bool {
        let before = self.refs_word().fetch_sub_acqrel(n);
        crate::vm_assert!(before >= n, "{self:?}: {n} references given back of {before}");
        before == n
    }

    /// Takes a reference unless there is none to share: the page is free, frozen, or a tail.
    #[must_use]
    pub(crate) fn ref_get_unless_zero(self) -> bool {
        self.refs_word()
            .try_update_acqrel(|count| (count > 0).then(|| count + 1))
            .is_ok()
    }

    /// Gives a page its first reference: from here on others may find it.
    pub(crate) fn ref_init(self) {
        crate::vm_assert!(self.refs_hint() == 0, "{self:?}: new page has references");
        self.refs_word().store_release(1);
    }

    /// The count of this very record. A hint: it may change at once. 0 on tails.
    #[must_use]
    pub fn refs_hint(self) -> u32 {
        self.refs_word().load_relaxed()
    }

    /// Brings the count from `expected` to 0, so that nobody else gets in until it is thawed; false if others have
    /// references. The caller's own are among `expected`.
    #[must_use]
    pub(crate) fn ref_freeze(self, expected: u32) -> bool {
        self.refs_word().compare_exchange_acqrel(expected, 0).is_ok()
    }

    /// Ends a freeze: `count` references exist again. What was written while frozen is seen by whoever takes one.
    pub(crate) fn ref_thaw(self, count: u32) {
        crate::vm_assert!(
            self.refs_hint() == 0 && count > 0,
            "{self:?}: thawed but not frozen"
        );
        self.refs_word().store_release(count);
    }

    /// Notes that somebody will use the frame for input or output, whatever happens to its mappings: a pin. The caller
    /// has a reference as well.
    pub(crate) fn pin_add(self) {
        let head = self.head();
        match head.compound_order() < Order::MIN_WITH_QUEUE {
            true => drop(head.refs_word().fetch_add_relaxed(PIN_BIAS)),
            false => drop(head.pins_word().fetch_add_relaxed(1)),
        }
    }

    /// Takes back a [`Page::pin_add`].
    pub(crate) fn pin_sub(self) {
        let head = self.head();
        match head.compound_order() < Order::MIN_WITH_QUEUE {
            true => drop(head.refs_word().fetch_sub_acqrel(PIN_BIAS)),
            false => drop(head.pins_word().fetch_sub_acqrel(1)),
        }
    }

    /// What a pin adds to the reference count of the folio that this page is part of.
    pub(crate) fn pin_refs(self) -> u32 {
        if self.head().compound_order() < Order::MIN_WITH_QUEUE {
            PIN_BIAS
        } else {
            0
        }
    }

    /// Whether an order-0 page has so many references that some may be pins.
    pub(crate) fn has_many_refs(self) -> bool {
        self.refs_hint() >= PIN_BIAS
    }

    /// Whether the folio that this page is part of may be pinned. Exact for large folios; a base page with very many
    /// references counts as pinned too.
    #[must_use]
    pub fn maybe_pinned(self) -> bool {
        let head = self.head();
        if head.compound_order() < Order::MIN_WITH_QUEUE {
            return head.refs_hint() >= PIN_BIAS;
        }
        head.pins_word().load_relaxed() > 0
    }
}

impl<'a> Page<'a> {
    /// How often the large folio that starts here is pinned; 0 for anything smaller, whose pins are among its
    /// references. A hint: it may change at once.
    #[must_use]
    pub fn pins_hint(self) -> u32 {
        if self.compound_order() < Order::MIN_WITH_QUEUE {
            return 0;
        }
        self.pins_word().load_relaxed()
    }

    /// Where the large folio that starts here counts its pins: its first tail's `next` link, otherwise unused.
    fn pins_word(self) -> &'a crate::sync::AtomicU32 {
        &self.array.next()[self.pfn.index() + 1]
    }
}
