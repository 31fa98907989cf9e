//! F1: what a machine must supply so that `mm` can run on it, and nothing more.
//!
//! ```text
//!            kernel                    host tests
//!      Pc (physical memory,      SimMachine (one allocation,
//!      invlpg, APIC, tasks)      software TLBs, virtual clock)
//!               \                    /
//!                unsafe trait Platform
//!                         |
//!                   Memory<P: Platform>
//! ```
//! Interrupt handlers never enter `mm`, so nothing here turns interrupts off.

use crate::{
    addr::{PAGE_SIZE, Pfn, VirtRange},
    policy::Policy,
    table::Table,
    trace::Event,
};

/// Most CPUs a machine may have: the width of [`CpuMask`].
pub const MAX_CPUS: usize = 64;

/// The number of a CPU, below [`Platform::nr_cpus`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct CpuId(u8);

impl CpuId {
    /// Wraps a CPU number.
    ///
    /// # Panics
    /// From [`MAX_CPUS`] on.
    #[must_use]
    pub const fn new(number: u8) -> Self {
        assert!((number as usize) < MAX_CPUS);
        Self(number)
    }

    /// The number as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A set of CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuMask(u64);

impl CpuMask {
    /// No CPU.
    pub const EMPTY: Self = Self(0);

    /// Wraps a bit set, bit n for CPU n.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bit set.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The first `nr` CPUs.
    #[must_use]
    pub const fn first(nr: u32) -> Self {
        if nr >= 64 {
            Self(u64::MAX)
        } else {
            Self((1 << nr) - 1)
        }
    }

    /// Whether `cpu` is in the set.
    #[must_use]
    pub const fn contains(self, cpu: CpuId) -> bool {
        self.0 & (1 << cpu.0) != 0
    }
}

/// A point in time: nanoseconds since the machine started, never going back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Nanos(pub u64);

/// The step between translations that a flush must drop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stride {
    /// Base pages.
    Page,
    /// 2 MiB entries.
    Pmd,
}

/// What a sleeper waits for. Equal keys meet; a collision only costs a spurious return.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct WaitKey(u64);

impl WaitKey {
    const KIND_SHIFT: u32 = 60;

    /// The lock of the folio whose head is `pfn`.
    #[must_use]
    pub const fn folio(pfn: Pfn) -> Self {
        Self((1 << Self::KIND_SHIFT) | pfn.raw() as u64)
    }

    /// The lock at `address`.
    #[must_use]
    pub fn lock(address: *const ()) -> Self {
        let bits = address.addr() as u64 & ((1 << Self::KIND_SHIFT) - 1);
        Self((2 << Self::KIND_SHIFT) | bits)
    }

    /// A key of the platform's own users; `id` below 2^60.
    #[must_use]
    pub const fn external(id: u64) -> Self {
        Self((3 << Self::KIND_SHIFT) | (id & ((1 << Self::KIND_SHIFT) - 1)))
    }
}

/// A machine that `mm` runs on.
///
/// # Safety
/// An implementation promises:
/// * [`window`](Self::window) always returns the same pointer, valid for reads and writes of
///   `frames() * PAGE_SIZE` bytes (holes excepted, which `mm` never touches) for as long as `self` or a copy of the
///   pointer is used, aligned to 2 MiB, and its frames are not touched by anyone else once given to `mm`;
/// * [`flush_tlb`](Self::flush_tlb) returns only when every listed CPU has dropped every translation of the range
///   and has left each [`WalkGuard`](Self::WalkGuard) it was in when the flush began;
/// * a CPU that takes a page fault has dropped its own translation of the faulting address (x86 does so);
/// * [`cpu`](Self::cpu) is the running CPU and stays so while a `PreemptGuard` lives, and is below `nr_cpus()`.
pub unsafe trait Platform: Sized {
    /// While one lives, the task stays on its CPU and nobody else runs there. Not `Send`.
    type PreemptGuard;
    /// While one lives, no [`flush_tlb`](Self::flush_tlb) that includes this CPU returns.
    type WalkGuard;
    /// Whether [`trace`](Self::trace) is called at all.
    const TRACE: bool = false;

    /// Returns the start of the window through which physical memory is reached. A pointer, not an integer: pointers
    /// made from it keep its provenance.
    fn window(&self) -> *mut u8;

    /// Returns the number of frames in the window, holes included: one more than the highest frame number.
    fn frames(&self) -> u32;

    /// Returns the bytes of a frame.
    fn frame_ptr(&self, pfn: Pfn) -> *mut u8 {
        debug_assert!(pfn.raw() < self.frames());
        self.window().wrapping_add(pfn.index() * PAGE_SIZE)
    }

    /// Returns the page table in a frame.
    ///
    /// # Safety
    /// The frame must hold a page table and go on to do so while the reference lives.
    unsafe fn table(&self, pfn: Pfn) -> &Table {
        // SAFETY: the frame lies in the window, is page aligned, and holds nothing but table entries for as long as
        // the caller promises; entries are only accessed atomically.
        unsafe { &*self.frame_ptr(pfn).cast::<Table>() }
    }

    /// Drops every translation of `range` on the CPUs in `cpus`. See the trait's safety section. An empty range drops
    /// none and still waits for walks: what the caller wrote before is seen by every walk that begins afterwards.
    /// Never called inside a walk of the same CPU.
    fn flush_tlb(&self, cpus: CpuMask, range: VirtRange, stride: Stride);

    /// Begins a walk of page tables without their locks.
    fn lockless_walk(&self) -> Self::WalkGuard;

    /// Keeps the task on its CPU. Nests.
    fn preempt_off(&self) -> Self::PreemptGuard;

    /// Returns the running CPU.
    fn cpu(&self, guard: &Self::PreemptGuard) -> CpuId;

    /// Returns how many CPUs there are: 1 to [`MAX_CPUS`].
    fn nr_cpus(&self) -> u32;

    /// Returns the time.
    fn now(&self) -> Nanos;

    /// Queues the caller under `key`, then calls `still`, and sleeps only while it returns true; returns after a
    /// [`wake`](Self::wake) of the key or at `deadline`. May return for no reason. Forbidden while a guard lives.
    fn wait(&self, key: WaitKey, deadline: Option<Nanos>, still: &mut dyn FnMut() -> bool);

    /// Wakes everybody queued under `key`. To be called after the change that they wait for.
    fn wake(&self, key: WaitKey);

    /// Returns the memory policy of the running task, for pages of areas that have none of their own.
    fn task_policy(&self) -> Policy {
        Policy::DEFAULT
    }

    /// Whether the allocation that the running task is about to make shall fail: how a machine finds out what becomes of
    /// a program when memory is short at this very place. Asked once for each block of frames and for each object; not
    /// for blocks taken with [`AllocFlags::RESERVE`](crate::AllocFlags::RESERVE), whose users cannot do without.
    fn must_fail(&self) -> bool {
        false
    }

    /// Takes note of an event. Called only if [`TRACE`](Self::TRACE).
    fn trace(&self, event: Event) {
        let _ = event;
    }

    /// Fills a page with zeroes.
    ///
    /// # Safety
    /// `page` must be a page-aligned frame pointer of this window that the caller owns.
    unsafe fn clear_page(&self, page: *mut u8) {
        // SAFETY: the caller owns the page's bytes.
        unsafe { core::ptr::write_bytes(page, 0, PAGE_SIZE) }
    }

    /// Copies a page.
    ///
    /// # Safety
    /// Both must be page-aligned frame pointers of this window, different, and the caller must own `to` and be
    /// allowed to read `from`.
    unsafe fn copy_page(&self, to: *mut u8, from: *const u8) {
        // SAFETY: distinct frames do not overlap; the caller vouches for access.
        unsafe { core::ptr::copy_nonoverlapping(from, to, PAGE_SIZE) }
    }
}
