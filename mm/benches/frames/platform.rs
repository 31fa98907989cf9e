//! The smallest machine `mm` can be measured on: memory, CPU numbers, and no checks.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    arch::x86_64::{__m128i, _mm_setzero_si128, _mm_sfence, _mm_stream_si128},
    cell::Cell,
    marker::PhantomData,
    sync::atomic::{AtomicBool, Ordering, compiler_fence},
};

use mm::{
    addr::{PAGE_SIZE, PMD_SIZE, Pfn, PfnRange, VirtRange},
    memory::Memory,
    platform::{CpuId, CpuMask, Nanos, Platform, Stride, WaitKey},
};

// What is a CPU's own lies in its segment, one instruction away, in the kernel as here: `thread_local!` would put a
// function call around each.
#[thread_local]
static CPU: Cell<u8> = Cell::new(0);
#[thread_local]
static WALKING: Cell<u32> = Cell::new(0);
#[thread_local]
static FLUSH_WAITS: Cell<bool> = Cell::new(false);
#[thread_local]
static PREEMPT_COUNT: Cell<u32> = Cell::new(0);

/// What a kernel does to begin and end a walk without locks: set a flag of the CPU, clear it, and look whether a flush
/// waits.
pub(crate) struct WalkFlag(PhantomData<*mut ()>);

impl Drop for WalkFlag {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        WALKING.set(WALKING.get() - 1);
        assert!(!FLUSH_WAITS.get(), "nobody flushes in a bench");
    }
}

/// Makes the calling thread CPU `number`.
pub(crate) fn run_as_cpu(number: u8) {
    CPU.set(number);
}

/// Whether more than one thread runs.
static THREADS: AtomicBool = AtomicBool::new(false);

/// Says whether more than one thread runs from now on.
pub(crate) fn set_threads(several: bool) {
    THREADS.store(several, Ordering::Relaxed);
}

/// Whether a row is being prepared: pages are zeroed past the caches then, because what a row measures must not depend on
/// how much was zeroed before it.
static PREPARING: AtomicBool = AtomicBool::new(false);

/// Runs `f` as the preparation of a row.
pub(crate) fn prepare<R>(f: impl FnOnce() -> R) -> R {
    PREPARING.store(true, Ordering::Relaxed);
    let prepared = f();
    PREPARING.store(false, Ordering::Relaxed);
    prepared
}

/// Number of CPUs of every bench machine.
pub(crate) const NR_CPUS: u32 = 2;

/// A window of zeroed memory.
pub(crate) struct BenchMachine {
    memory: *mut u8,
    layout: Layout,
    frames: u32,
}

/// What a kernel does to hold preemption off: add one to a counter of the CPU, and take it away again.
pub(crate) struct PreemptCount(PhantomData<*mut ()>);

impl Drop for PreemptCount {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        PREEMPT_COUNT.set(PREEMPT_COUNT.get() - 1);
    }
}

// SAFETY: the window is reached by raw pointers only, whose users answer for it; the rest never changes.
unsafe impl Send for BenchMachine {}
// SAFETY: as above.
unsafe impl Sync for BenchMachine {}

impl BenchMachine {
    fn new(frames: u32) -> Self {
        let align = usize::try_from(PMD_SIZE).expect("invariant: usize is 64 bits");
        let layout = Layout::from_size_align(frames as usize * PAGE_SIZE, align).expect("fits");
        // SAFETY: the size is not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        if memory.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: just allocated, zeroed, with this size; the borrow ends with the call.
        back_by_huge_pages(unsafe { core::slice::from_raw_parts(memory, layout.size()) });
        Self {
            memory,
            layout,
            frames,
        }
    }
}

impl Drop for BenchMachine {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; the machine's users are gone.
        unsafe { dealloc(self.memory, self.layout) }
    }
}

// SAFETY: the window is one aligned allocation that lives as long as the machine; each thread is one CPU (see
// `run_as_cpu`), and there are no translation caches and no walkers.
unsafe impl Platform for BenchMachine {
    type PreemptGuard = PreemptCount;
    type WalkGuard = WalkFlag;

    fn window(&self) -> *mut u8 {
        self.memory
    }

    fn frames(&self) -> u32 {
        self.frames
    }

    /// Where more than one thread runs nobody may flush: there is no way here to interrupt the other.
    fn flush_tlb(&self, _: CpuMask, _: VirtRange, _: Stride) {
        assert!(
            !THREADS.load(Ordering::Relaxed),
            "a bench with threads ran out of memory or changed mappings"
        );
    }

    fn lockless_walk(&self) -> WalkFlag {
        WALKING.set(WALKING.get() + 1);
        compiler_fence(Ordering::SeqCst);
        WalkFlag(PhantomData)
    }

    fn preempt_off(&self) -> PreemptCount {
        PREEMPT_COUNT.set(PREEMPT_COUNT.get() + 1);
        compiler_fence(Ordering::SeqCst);
        PreemptCount(PhantomData)
    }

    fn cpu(&self, _: &PreemptCount) -> CpuId {
        CpuId::new(CPU.get())
    }

    fn nr_cpus(&self) -> u32 {
        NR_CPUS
    }

    fn now(&self) -> Nanos {
        Nanos(0)
    }

    fn wait(&self, _: WaitKey, _: Option<Nanos>, still: &mut dyn FnMut() -> bool) {
        if still() {
            std::thread::yield_now();
        }
    }

    fn wake(&self, _: WaitKey) {}

    unsafe fn clear_page(&self, page: *mut u8) {
        if !PREPARING.load(Ordering::Relaxed) {
            // SAFETY: the caller owns the page's bytes.
            return unsafe { core::ptr::write_bytes(page, 0, PAGE_SIZE) };
        }
        // SAFETY: SSE2 is part of x86_64.
        let zero = unsafe { _mm_setzero_si128() };
        for at in (0..PAGE_SIZE).step_by(size_of::<__m128i>()) {
            // SAFETY: inside the page, which the caller owns.
            let at = unsafe { page.add(at) };
            // SAFETY: as above; a page is aligned to 16 bytes.
            unsafe { _mm_stream_si128(at.cast(), zero) };
        }
        // SAFETY: only orders the stores above.
        unsafe { _mm_sfence() };
    }
}

unsafe extern "C" {
    fn madvise(addr: *mut core::ffi::c_void, len: usize, advice: core::ffi::c_int) -> core::ffi::c_int;
}

/// Asks the host to back `len` bytes at `memory` by huge pages, as a kernel's direct map and page records are. A host
/// that cannot leaves all contenders with base pages.
pub(crate) fn back_by_huge_pages<T>(memory: &[T]) {
    const MADV_COLLAPSE: core::ffi::c_int = 25;
    let align = usize::try_from(PMD_SIZE).expect("invariant: usize is 64 bits");
    let bytes = memory.as_ptr_range();
    let (start, end) = (
        bytes.start.addr().next_multiple_of(align),
        bytes.end.addr() / align * align,
    );
    if start < end {
        let first = bytes.start.with_addr(start).cast_mut().cast();
        // SAFETY: advice on memory that is ours; it changes no contents.
        let _ = unsafe { madvise(first, end - start, MADV_COLLAPSE) };
    }
}

/// A machine with `frames` frames, all but the page records' own given to the allocator.
pub(crate) fn boot(frames: u32) -> Memory<BenchMachine> {
    let machine = BenchMachine::new(frames);
    let bytes = Memory::<BenchMachine>::metadata_size(frames, NR_CPUS);
    let first = u32::try_from(bytes.div_ceil(PAGE_SIZE))
        .expect("fits")
        .next_multiple_of(1024);
    // SAFETY: the frames from 0 on are zeroed, are kept out of `release` below, and nobody else knows them.
    let mem = unsafe { Memory::new(machine, Pfn::new(0)) };
    let range = |start, end| PfnRange::new(Pfn::new(start), Pfn::new(end)).expect("in order");
    mem.add_memory(range(0, frames));
    mem.release(range(first, frames));
    mem
}
