//! A CPU's own free blocks: one stack of frame numbers for each order that programs and the kernel ask for often.
//!
//! The owner's path has no locked operation. Who may touch a magazine:
//!
//! ```text
//!   owner                                       somebody who drains it (memory is short)
//!   enter a WalkGuard                           take the drain lock
//!   wanted == 0 ? push, pop : wait for the      wanted = 1 on every CPU
//!                 drain lock, start over        flush_tlb(all CPUs): returns when each has left the guard it was in
//!   leave the WalkGuard                         touch all magazines; wanted = 0; give the drain lock back
//! ```
//! An owner that entered before the flush is waited for; one that enters after it sees `wanted`.
//!
//! All-zero bytes are a valid, empty magazine: per-CPU memory starts zeroed.

use core::cell::UnsafeCell;

use crate::{
    addr::{Pfn, VirtAddr, VirtRange},
    memory::Memory,
    order::{Order, PMD_ORDER},
    platform::{CpuMask, Platform, Stride},
    sync::AtomicU32,
};

/// The orders that are cached, how many blocks of each, and where its stack begins in the array.
const CLASSES: [(Order, usize, usize); 5] = [
    (order(0), 256, 0),
    (order(1), 64, 256),
    (order(2), 32, 320),
    (order(3), 32, 352),
    (PMD_ORDER, 16, 384),
];
const SLOTS: usize = 400;

const fn order(raw: u8) -> Order {
    match Order::new(raw) {
        Some(order) => order,
        None => panic!("a small order"),
    }
}

/// The place of an order in [`CLASSES`].
const fn class(order: Order) -> Option<usize> {
    match order {
        PMD_ORDER => Some(CLASSES.len() - 1),
        small if small.index() < CLASSES.len() - 1 => Some(small.index()),
        _ => None,
    }
}

/// A CPU's stacks and the flag by which others ask for them.
#[repr(C)]
pub(crate) struct Cache {
    wanted: AtomicU32,
    /// Blocks on each stack. Written by whoever may touch the magazine; read by anybody as a hint.
    used: [AtomicU32; CLASSES.len()],
    pfns: UnsafeCell<[u32; SLOTS]>,
}

// SAFETY: the array is reached by one CPU at a time: see the protocol in the module's head. The rest is atomics.
unsafe impl Sync for Cache {}

impl Cache {
    /// Base pages in the magazine; a hint.
    pub(super) fn nr_pages_hint(&self) -> u64 {
        let of_class = |(used, (order, ..)): (&AtomicU32, (Order, usize, usize))| {
            u64::from(used.load_relaxed()) * u64::from(order.nr_pages())
        };
        self.used.iter().zip(CLASSES).map(of_class).sum()
    }

    /// Whether the magazine holds a block of `order`; a hint.
    pub(super) fn may_hold(&self, order: Order) -> bool {
        class(order).is_some_and(|class| self.used[class].load_relaxed() > 0)
    }

    /// Opens the magazine.
    ///
    /// # Safety
    /// Nobody else has it open: see the protocol in the module's head.
    #[expect(
        clippy::mut_from_ref,
        reason = "the protocol, not the borrow, makes it exclusive"
    )]
    unsafe fn pfns(&self) -> &mut [u32; SLOTS] {
        // SAFETY: the caller is alone with it.
        unsafe { &mut *self.pfns.get() }
    }
}

/// A CPU's magazine, open to one user.
pub(crate) struct Magazine<'a> {
    used: &'a [AtomicU32; CLASSES.len()],
    pfns: &'a mut [u32; SLOTS],
}

impl Magazine<'_> {
    /// Whether blocks of `order` are cached at all.
    pub(super) fn caches(order: Order) -> bool {
        class(order).is_some()
    }

    /// The orders that are cached.
    pub(crate) fn orders() -> impl Iterator<Item = Order> {
        CLASSES.iter().map(|&(order, ..)| order)
    }

    fn used(&self, class: usize) -> usize {
        self.used[class].load_relaxed() as usize
    }

    fn set_used(&mut self, class: usize, used: usize) {
        // Relaxed: the owner alone writes it, others take it for a hint.
        self.used[class].store_relaxed(u32::try_from(used).unwrap_or(0));
    }

    /// How many blocks of `order` still fit.
    pub(super) fn room(&self, order: Order) -> usize {
        class(order).map_or(0, |class| CLASSES[class].1 - self.used(class))
    }

    /// The first frames of the blocks of `order` that it holds.
    pub(crate) fn held(&self, order: Order) -> &[u32] {
        let Some(class) = class(order) else { return &[] };
        let start = CLASSES[class].2;
        &self.pfns[start..start + self.used(class)]
    }

    /// Takes in as many blocks as fit, from the front; returns how many.
    pub(super) fn push(&mut self, order: Order, pfns: &[Pfn]) -> usize {
        let Some(class) = class(order) else { return 0 };
        let used = self.used(class);
        let (_, capacity, start) = CLASSES[class];
        let slots = &mut self.pfns[start + used..start + capacity];
        let taken = slots.len().min(pfns.len());
        for (slot, pfn) in slots.iter_mut().zip(pfns) {
            *slot = pfn.raw();
        }
        self.set_used(class, used + taken);
        taken
    }

    /// Takes in `nr` blocks of `order` that lie one behind the other, so that they come out lowest first. There must
    /// be room.
    pub(super) fn push_run(&mut self, order: Order, first: Pfn, nr: u32) {
        let Some(class) = class(order) else { return };
        let used = self.used(class);
        let start = CLASSES[class].2 + used;
        crate::vm_assert!(used + nr as usize <= CLASSES[class].1, "a magazine overflows");
        for (slot, i) in self.pfns[start..start + nr as usize]
            .iter_mut()
            .zip((0..nr).rev())
        {
            *slot = first.raw() + i * order.nr_pages();
        }
        self.set_used(class, used + nr as usize);
    }

    /// Gives out a block.
    pub(super) fn pop(&mut self, order: Order) -> Option<Pfn> {
        let class = class(order)?;
        let left = self.used(class).checked_sub(1)?;
        self.set_used(class, left);
        Some(Pfn::new(self.pfns[CLASSES[class].2 + left]))
    }

    /// Gives up the upper half of what it holds of `order`, the whole if it is one.
    pub(super) fn take_spill(&mut self, order: Order) -> &[u32] {
        let Some(class) = class(order) else { return &[] };
        let (end, start) = (self.used(class), CLASSES[class].2);
        self.set_used(class, end / 2);
        &self.pfns[start + end / 2..start + end]
    }
}

const _: () = {
    let mut at = 0;
    let mut i = 0;
    while i < CLASSES.len() {
        assert!(CLASSES[i].2 == at, "the stacks lie one behind the other");
        at += CLASSES[i].1;
        i += 1;
    }
    assert!(at == SLOTS);
};

impl<P: Platform> Memory<P> {
    /// Runs `f` on the running CPU's magazine. `f` must not allocate or free.
    pub(super) fn with_own_magazine<R>(&self, f: impl FnOnce(&mut Magazine<'_>) -> R) -> R {
        let preempt = self.platform().preempt_off();
        let cache = self.this_cpu(&preempt).cache();
        loop {
            let walk = self.platform().lockless_walk();
            if cache.wanted.load_acquire() == 0 {
                // SAFETY: preemption is off and `f` does not come back here, so this CPU is in here once; and nobody
                // drains: a drainer that began before we entered would have been seen, one that begins now waits for
                // the walk to end.
                let pfns = unsafe { cache.pfns() };
                let result = f(&mut Magazine {
                    used: &cache.used,
                    pfns,
                });
                drop(walk);
                return result;
            }
            drop(walk);
            drop(self.drain_lock().lock(self.platform()));
        }
    }

    /// Runs `f` on every CPU's magazine while no CPU uses its own.
    pub(crate) fn with_all_magazines(&self, f: &mut dyn FnMut(&mut Magazine<'_>)) {
        let _drain = self.drain_lock().lock(self.platform());
        let caches = || self.per_cpu_all().iter().map(|cpu| cpu.cache());
        caches().for_each(|cache| cache.wanted.store_release(1));
        let all = CpuMask::first(self.platform().nr_cpus());
        let nothing = VirtRange::new(VirtAddr::zero(), VirtAddr::zero());
        let nothing = nothing.unwrap_or_else(|| unreachable!("an empty range is one"));
        self.platform().flush_tlb(all, nothing, Stride::Page);
        for cache in caches() {
            // SAFETY: every CPU has left the walk it was in and sees `wanted` before it touches its magazine again;
            // other drainers wait for the lock.
            let pfns = unsafe { cache.pfns() };
            f(&mut Magazine {
                used: &cache.used,
                pfns,
            });
            cache.wanted.store_release(0);
        }
    }
}
