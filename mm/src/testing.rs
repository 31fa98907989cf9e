//! The smallest machine that unit tests need: memory, one CPU, nothing to flush. Tests of what address spaces do live
//! in `mm-testkit`, whose machine has TLBs.

use std::alloc::{Layout, alloc_zeroed, dealloc};

use crate::{
    addr::{PAGE_SIZE, PMD_SIZE, Pfn, PfnRange, VirtRange, to_usize},
    memory::Memory,
    platform::{CpuId, CpuMask, Nanos, Platform, Stride, WaitKey},
};

pub(crate) struct Bench {
    memory: *mut u8,
    frames: u32,
}

impl Bench {
    fn layout(frames: u32) -> Layout {
        Layout::from_size_align(frames as usize * PAGE_SIZE, to_usize(PMD_SIZE)).expect("a sane size")
    }

    /// A machine of `frames` frames whose page records lie in the topmost ones; the others are free.
    pub(crate) fn memory(frames: u32) -> Memory<Bench> {
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(Self::layout(frames)) };
        assert!(!memory.is_null());
        let bench = Bench { memory, frames };
        let metadata = Memory::<Bench>::metadata_size(frames, 1).div_ceil(PAGE_SIZE);
        let metadata = Pfn::new(frames - u32::try_from(metadata).expect("small"));
        // SAFETY: these frames are zeroed and nobody else's: they are not added below.
        let mem = unsafe { Memory::new(bench, metadata) };
        let range = PfnRange::new(Pfn::new(0), metadata).expect("in order");
        mem.add_memory(range);
        mem.release(range);
        mem
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // SAFETY: allocated in `memory` with the same layout.
        unsafe { dealloc(self.memory, Self::layout(self.frames)) }
    }
}

// SAFETY: the memory is one allocation of the promised size; there is one CPU, no translation to flush, and
// nobody to preempt.
unsafe impl Platform for Bench {
    type PreemptGuard = ();
    type WalkGuard = ();

    fn window(&self) -> *mut u8 {
        self.memory
    }

    fn frames(&self) -> u32 {
        self.frames
    }

    fn flush_tlb(&self, _: CpuMask, _: VirtRange, _: Stride) {}

    fn lockless_walk(&self) {}

    fn preempt_off(&self) {}

    fn cpu(&self, (): &()) -> CpuId {
        CpuId::new(0)
    }

    fn nr_cpus(&self) -> u32 {
        1
    }

    fn now(&self) -> Nanos {
        Nanos(0)
    }

    fn wait(&self, key: WaitKey, _: Option<Nanos>, still: &mut dyn FnMut() -> bool) {
        assert!(!still(), "a wait for {key:?} that nobody will end");
    }

    fn wake(&self, _: WaitKey) {}
}
