//! A CPU's own free pages: two stacks of frame numbers, one for base pages and one for huge pages.
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

/// Base pages that a magazine holds.
pub const SMALL_SLOTS: usize = 256;
/// Huge pages that a magazine holds.
pub const HUGE_SLOTS: usize = 16;

/// A stack in an array.
#[repr(C)]
struct Stack<const SLOTS: usize> {
    /// Written by whoever may touch the magazine; read by anybody as a hint.
    used: AtomicU32,
    pfns: [u32; SLOTS],
}

impl<const SLOTS: usize> Stack<SLOTS> {
    fn used(&self) -> usize {
        self.used.load_relaxed() as usize
    }

    fn set_used(&mut self, used: usize) {
        self.used.store_relaxed(u32::try_from(used).unwrap_or(0));
    }

    fn push(&mut self, pfn: u32) {
        let used = self.used();
        self.pfns[used] = pfn;
        self.set_used(used + 1);
    }

    fn pop(&mut self) -> Option<u32> {
        let left = self.used().checked_sub(1)?;
        self.set_used(left);
        Some(self.pfns[left])
    }

    fn held(&self) -> &[u32] {
        &self.pfns[..self.used()]
    }

    /// Gives up the upper half, the whole if it is one.
    fn take_half(&mut self) -> &[u32] {
        let (end, keep) = (self.used(), self.used() / 2);
        self.set_used(keep);
        &self.pfns[keep..end]
    }
}

/// A CPU's magazine. See the module's head for who may touch it.
#[repr(C)]
pub struct Magazine {
    small: Stack<SMALL_SLOTS>,
    huge: Stack<HUGE_SLOTS>,
}

impl Magazine {
    pub(super) fn is_full(&self, order: Order) -> bool {
        self.held(order).len()
            == if order == PMD_ORDER {
                HUGE_SLOTS
            } else {
                SMALL_SLOTS
            }
    }

    pub(super) fn is_empty(&self, order: Order) -> bool {
        self.held(order).is_empty()
    }

    /// The first frames of the blocks of `order` that it holds.
    #[must_use]
    pub fn held(&self, order: Order) -> &[u32] {
        if order == PMD_ORDER {
            self.huge.held()
        } else {
            self.small.held()
        }
    }

    /// Base pages in all blocks together.
    #[must_use]
    pub fn nr_pages(&self) -> u64 {
        self.small.used() as u64 + self.huge.used() as u64 * u64::from(PMD_ORDER.nr_pages())
    }

    pub(super) fn push(&mut self, order: Order, pfn: Pfn) {
        if order == PMD_ORDER {
            self.huge.push(pfn.raw())
        } else {
            self.small.push(pfn.raw())
        }
    }

    /// Takes in `nr` base pages from `first`, so that they come out lowest first.
    pub(super) fn push_run(&mut self, first: Pfn, nr: u32) {
        let used = self.small.used();
        let end = first.raw() + nr;
        for (slot, pfn) in self.small.pfns[used..used + nr as usize]
            .iter_mut()
            .zip((first.raw()..end).rev())
        {
            *slot = pfn;
        }
        self.small.set_used(used + nr as usize);
    }

    pub(super) fn pop(&mut self, order: Order) -> Option<Pfn> {
        let pfn = if order == PMD_ORDER {
            self.huge.pop()
        } else {
            self.small.pop()
        };
        pfn.map(Pfn::new)
    }

    pub(super) fn take_spill(&mut self, order: Order) -> &[u32] {
        if order == PMD_ORDER {
            self.huge.take_half()
        } else {
            self.small.take_half()
        }
    }
}

/// A CPU's magazine and the flag by which others ask for it.
#[repr(C)]
pub(crate) struct Cache {
    wanted: AtomicU32,
    magazine: UnsafeCell<Magazine>,
}

// SAFETY: the magazine is reached by one CPU at a time: see the protocol in the module's head.
unsafe impl Sync for Cache {}

impl Cache {
    /// Base pages in the magazine; a hint.
    pub(super) fn nr_pages_hint(&self) -> u64 {
        self.hint(Magazine::nr_pages)
    }

    /// Whether the magazine holds a block of `order`; a hint.
    pub(super) fn may_hold(&self, order: Order) -> bool {
        self.hint(|magazine| match order {
            PMD_ORDER => magazine.huge.used() > 0,
            _ => magazine.small.used() > 0,
        })
    }

    fn hint<R>(&self, look: impl FnOnce(&Magazine) -> R) -> R {
        // SAFETY: callers of `hint` read the two `used` words only, which are atomics that are always valid.
        look(unsafe { &*self.magazine.get() })
    }
}

impl<P: Platform> Memory<P> {
    /// Runs `f` on the running CPU's magazine. `f` must not allocate or free.
    pub(super) fn with_own_magazine<R>(&self, f: impl FnOnce(&mut Magazine) -> R) -> R {
        let preempt = self.platform().preempt_off();
        let cache = self.this_cpu(&preempt).cache();
        loop {
            let walk = self.platform().lockless_walk();
            if cache.wanted.load_relaxed() == 0 {
                // SAFETY: preemption is off and `f` does not come back here, so this CPU is in here once; and nobody
                // drains: a drainer that began before we entered would have been seen, one that begins now waits for
                // the walk to end.
                let result = f(unsafe { &mut *cache.magazine.get() });
                drop(walk);
                return result;
            }
            drop(walk);
            drop(self.drain_lock().lock(self.platform()));
        }
    }

    /// Runs `f` on every CPU's magazine while no CPU uses its own.
    pub(crate) fn with_all_magazines(&self, f: &mut dyn FnMut(&mut Magazine)) {
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
            f(unsafe { &mut *cache.magazine.get() });
            cache.wanted.store_release(0);
        }
    }
}
