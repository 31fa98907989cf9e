//! F3: caches of fixed-size objects: areas, anon_vmas, address spaces.
//!
//! ```text
//!   one frame, SLAB flag                     its record: index = objects in use | first free slot << 32
//!   | object | object | free --> | object | free --> NONE |        next/prev = list of slabs with a free slot
//! ```
//! A free slot's first four bytes name the next free slot. A slab without objects goes back to the buddy allocator at
//! once, so that "nothing lost" can be checked to the page.
//!
//! One cache per type (`Object`), so that a slab holds objects of one size.
//!
//! [`Handle`] is a plain copyable reference: address spaces, areas and anon_vmas point to each other, and which lock
//! keeps an object alive is the business of the module that owns the type.
//!
//! Locks: the cache's spin lock; inside it the allocator's.

use core::{ops::Deref, ptr::NonNull};

use crate::{
    addr::{PAGE_SIZE, Pfn, PhysAddr},
    counter::Counter,
    error::AllocError,
    flags::{AllocFlags, PageFlags},
    memory::Memory,
    order::Order,
    page::{Page, PageList, PageState},
    platform::Platform,
    sync::{AtomicPtr, SpinLock},
};

const NO_SLOT: u32 = u32::MAX;

/// A live object in a slab.
///
/// Having one tells you where the object is. That it is still alive is promised by whoever may call
/// `Memory::free_object`, which is unsafe for that reason.
pub struct Handle<T> {
    object: NonNull<T>,
}

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Handle<T> {}

impl<T> PartialEq for Handle<T> {
    fn eq(&self, other: &Self) -> bool {
        self.object == other.object
    }
}

impl<T> Eq for Handle<T> {}

impl<T> core::fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}", self.object)
    }
}

// SAFETY: a handle is a shared reference in all but lifetime.
unsafe impl<T: Sync> Send for Handle<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Handle<T> {}

impl<T> Deref for Handle<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: INVARIANT of `Handle`: the object was written by `alloc_object` and lives until the unsafe
        // `free_object`, whose caller promises that no handle is used afterwards; only shared references are made.
        unsafe { self.object.as_ref() }
    }
}

impl<T> Handle<T> {
    /// The object's place as an offset into the window: fits page records and atomics.
    pub(crate) fn to_bits<P: Platform>(self, platform: &P) -> u64 {
        (self.object.as_ptr().addr() - platform.window().addr()) as u64
    }
}

impl<T> Handle<T> {
    /// The inverse of [`Handle::to_bits`].
    ///
    /// # Safety
    /// `bits` must come from `to_bits` of a handle to a `T` that is still alive.
    pub(crate) unsafe fn from_bits<P: Platform>(platform: &P, bits: u64) -> Option<Self> {
        let object = platform.window().wrapping_add(crate::addr::to_usize(bits)).cast();
        NonNull::new(object)
            .filter(|_| bits != 0)
            .map(|object| Self { object })
    }

    /// The same object, its type forgotten: for a lower floor to keep.
    pub(crate) fn erase(self) -> Handle<()> {
        Handle {
            object: self.object.cast(),
        }
    }
}

impl Handle<()> {
    /// The inverse of [`Handle::erase`].
    ///
    /// # Safety
    /// It must have been made from a handle to a `T`.
    pub(crate) unsafe fn restore<T>(self) -> Handle<T> {
        Handle {
            object: self.object.cast(),
        }
    }
}

/// A [`Handle`] or nothing, in memory that several CPUs reach: the links between objects.
///
/// Reads and writes order what they publish; who may write is the business of the lock that guards the link.
#[derive(Debug)]
pub struct Link<T> {
    object: AtomicPtr<T>,
}

impl<T> Link<T> {
    /// A link to `target`.
    #[must_use]
    pub fn new(target: Option<Handle<T>>) -> Self {
        Self {
            object: AtomicPtr::new(Self::pointer(target)),
        }
    }

    /// What it leads to.
    #[must_use]
    pub fn get(&self) -> Option<Handle<T>> {
        NonNull::new(self.object.load_acquire()).map(|object| Handle { object })
    }

    /// Leads it elsewhere.
    pub fn set(&self, target: Option<Handle<T>>) {
        self.object.store_release(Self::pointer(target));
    }

    /// Leads it to `target` if it leads nowhere; returns whether it did.
    pub fn set_if_none(&self, target: Handle<T>) -> bool {
        let none = core::ptr::null_mut();
        self.object
            .compare_exchange_acqrel(none, target.object.as_ptr())
            .is_ok()
    }

    fn pointer(target: Option<Handle<T>>) -> *mut T {
        target.map_or(core::ptr::null_mut(), |handle| handle.object.as_ptr())
    }
}

/// The caches there are, one per type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CacheId {
    /// Areas.
    Vma,
    /// What anonymous pages of areas have in common.
    AnonVma,
    /// Address spaces.
    AddressSpace,
}

/// Number of caches.
pub(crate) const NR_CACHES: usize = 3;

/// A type whose values live in a cache of their own.
pub(crate) trait Object: Sized {
    /// Which one. No two types may name the same.
    const CACHE: CacheId;

    /// Values that fit a frame.
    const PER_PAGE: u32 = {
        assert!(size_of::<Self>() >= 4 && align_of::<Self>() <= PAGE_SIZE && size_of::<Self>() <= PAGE_SIZE);
        #[expect(clippy::cast_possible_truncation, reason = "at most 1024")]
        let fitting = (PAGE_SIZE / size_of::<Self>()) as u32;
        fitting
    };
}

/// The caches of one machine: of each, the slabs that have a free slot.
pub(crate) struct Caches {
    partial: [SpinLock<PageList>; NR_CACHES],
}

impl Caches {
    pub(crate) const fn new() -> Self {
        Self {
            partial: [const { SpinLock::new(PageList::new()) }; NR_CACHES],
        }
    }
}

/// What a slab page's index word holds.
#[derive(Clone, Copy)]
struct Fill {
    used: u32,
    free: u32,
}

impl Fill {
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the word")]
    fn of(page: Page<'_>) -> Self {
        let word = page.index();
        Self {
            used: word as u32,
            free: (word >> 32) as u32,
        }
    }

    fn store(self, page: Page<'_>) {
        page.set_index(u64::from(self.used) | u64::from(self.free) << 32);
    }
}

impl<P: Platform> Memory<P> {
    /// Places `value` in its type's cache.
    ///
    /// # Errors
    /// No frame for a new slab; `value` is dropped, nothing else changed.
    pub(crate) fn alloc_object<T: Object>(&self, value: T) -> Result<Handle<T>, AllocError> {
        if self.allocation_must_fail(AllocFlags::empty()) {
            return Err(AllocError { order: Order::ZERO });
        }
        let mut partial = self.caches().partial[T::CACHE as usize].lock(self.platform());
        let page = match partial.first(self.pages()) {
            Some(page) => page,
            None => {
                let page = self.new_slab::<T>()?;
                partial.push_front(page);
                page
            }
        };
        let fill = Fill::of(page);
        let slot = self.slot::<T>(page.pfn(), fill.free);
        // SAFETY: a free slot holds the number of the next one and belongs to this cache, whose lock we hold.
        let next = unsafe { slot.cast::<u32>().read() };
        let fill = Fill {
            used: fill.used + 1,
            free: next,
        };
        fill.store(page);
        if fill.free == NO_SLOT {
            partial.remove(page);
        }
        // SAFETY: the slot is off the free chain, large and aligned enough for a `T`, and nobody else knows it.
        unsafe { slot.write(value) };
        Ok(Handle { object: slot })
    }

    /// Drops an object and takes its place back.
    ///
    /// # Safety
    /// The object must be alive, and no handle to it may be used from now on.
    pub(crate) unsafe fn free_object<T: Object>(&self, handle: Handle<T>) {
        // SAFETY: the caller gives up the last use of a live object.
        unsafe { handle.object.drop_in_place() };
        let page = self.pages().page(self.frame_of(handle));
        crate::vm_assert!(page.has(PageFlags::SLAB), "{page:?}: not a slab");
        let mut partial = self.caches().partial[T::CACHE as usize].lock(self.platform());
        let fill = Fill::of(page);
        // SAFETY: the slot is ours again and at least four bytes long.
        unsafe { handle.object.cast::<u32>().write(fill.free) };
        let offset = handle.object.as_ptr().addr() % PAGE_SIZE;
        let slot = u32::try_from(offset / size_of::<T>()).unwrap_or(NO_SLOT);
        if fill.free == NO_SLOT {
            partial.push_front(page);
        }
        let fill = Fill {
            used: fill.used - 1,
            free: slot,
        };
        fill.store(page);
        if fill.used == 0 {
            partial.remove(page);
            drop(partial);
            self.free_slab(page);
        }
    }

    /// The frame that holds an object.
    fn frame_of<T>(&self, handle: Handle<T>) -> Pfn {
        let addr = PhysAddr::new(handle.to_bits(self.platform()));
        Pfn::containing(addr).unwrap_or_else(|| unreachable!("objects lie in frames"))
    }

    fn slot<T>(&self, pfn: Pfn, slot: u32) -> NonNull<T> {
        let start = self.platform().frame_ptr(pfn).cast::<T>();
        NonNull::new(start.wrapping_add(slot as usize))
            .unwrap_or_else(|| unreachable!("frames are not at null"))
    }

    fn new_slab<T: Object>(&self) -> Result<Page<'_>, AllocError> {
        let pfn = self.alloc_pages(Order::ZERO, AllocFlags::empty())?;
        let page = self.pages().page(pfn);
        page.set_private_state(PageState::of(PageFlags::SLAB));
        for slot in 0..T::PER_PAGE {
            let next = if slot + 1 < T::PER_PAGE { slot + 1 } else { NO_SLOT };
            // SAFETY: the frame is ours alone and the slot lies inside it.
            unsafe { self.slot::<T>(pfn, slot).cast::<u32>().write(next) };
        }
        Fill { used: 0, free: 0 }.store(page);
        self.add(Counter::NrSlabUnreclaimable, 1);
        Ok(page)
    }

    fn free_slab(&self, page: Page<'_>) {
        page.set_private_state(PageState::CLEAR);
        page.set_index(0);
        self.add(Counter::NrSlabUnreclaimable, -1);
        self.free_pages(page.pfn(), Order::ZERO);
    }
}
