//! The one place where `mm` meets this machine.
//!
//! ```text
//!   mm: Memory<Pc> --- trait Platform ---> Pc --- window, page_ops --> RAM
//!                                           |---- percpu ------------> CPU number, preemption count
//!                                           |---- task::wait --------> sleepers
//!                                           `---- paging ------------> INVLPG
//! ```
//! One CPU runs so far; the others stay parked until they can be told to flush.

use core::{arch::asm, marker::PhantomData};

use mm::{
    AddressSpace, AllocError, CpuId, CpuMask, MapError, Memory, MmRef, Nanos, Platform, Policy, Stride,
    VirtAddr, VirtRange, WaitKey,
};
use spin::Once;

use crate::{
    arch::{page_ops::PageOps, paging, percpu},
    boot::early::window_ptr,
    drivers::clock,
    task::{fail_nth, thread, wait},
};

/// The memory of this machine.
pub type Mm = Memory<Pc>;

static MM: Once<Mm> = Once::new();

/// Returns the memory manager.
///
/// # Panics
/// Before `boot::memory` started it.
#[must_use]
pub fn mm() -> &'static Mm {
    MM.get()
        .expect("invariant: the boot order starts mm before its users")
}

/// Whether [`mm()`] may be called.
#[must_use]
pub fn mm_is_up() -> bool {
    MM.is_completed()
}

/// Makes `memory` the machine's. Once.
pub fn install(memory: Mm) -> &'static Mm {
    MM.call_once(|| memory)
}

/// Returns a new address space in which the kernel is mapped.
///
/// # Errors
/// No memory; nothing changed.
pub fn new_space() -> Result<MmRef, AllocError> {
    let space = mm().new_space()?;
    // SAFETY: the root is new and ours; `mm` leaves its upper half to the platform.
    unsafe { paging::copy_kernel_half(space.root()) };
    Ok(space)
}

/// Returns a new address space that shares all private memory of `parent`, and in which the kernel is mapped.
///
/// # Errors
/// No memory; nothing is left of the new one.
pub fn fork_space(parent: &AddressSpace) -> Result<MmRef, MapError> {
    let space = mm().fork_space(parent)?;
    // SAFETY: as in `new_space`.
    unsafe { paging::copy_kernel_half(space.root()) };
    Ok(space)
}

/// This PC.
#[derive(Debug)]
pub struct Pc {
    frames: u32,
    nr_cpus: u32,
}

impl Pc {
    /// A machine with frames below `frames` and `nr_cpus` running CPUs.
    #[must_use]
    pub const fn new(frames: u32, nr_cpus: u32) -> Self {
        Self { frames, nr_cpus }
    }
}

/// While one lives, this task keeps its CPU.
#[derive(Debug)]
pub struct PreemptGuard {
    _stays_here: PhantomData<*mut ()>,
}

impl PreemptGuard {
    fn new() -> Self {
        // SAFETY: the field is this CPU's; one instruction, so no interrupt handler sees half of it.
        unsafe {
            asm!("inc dword ptr gs:[{}]", const percpu::PREEMPT_COUNT_OFFSET, options(nostack));
        }
        Self {
            _stays_here: PhantomData,
        }
    }
}

impl Drop for PreemptGuard {
    fn drop(&mut self) {
        // SAFETY: as in `new`, whose count this takes back.
        unsafe {
            asm!("dec dword ptr gs:[{}]", const percpu::PREEMPT_COUNT_OFFSET, options(nostack));
        }
    }
}

/// Above this many pages one flush of everything is cheaper than one instruction per page.
const FLUSH_ALL_PAGES: u64 = 64;

// SAFETY: the window maps all RAM for ever at one address, 2 MiB aligned, and `boot::memory` gives `mm` only frames
// nobody else uses. One CPU runs: its translations are dropped before `flush_tlb` returns, and a walk on it is over
// by then because a walk is never interrupted by a task that flushes. A task stays on the only CPU.
unsafe impl Platform for Pc {
    type PreemptGuard = PreemptGuard;
    type WalkGuard = PreemptGuard;

    fn window(&self) -> *mut u8 {
        window_ptr(mm::PhysAddr::zero())
    }

    fn frames(&self) -> u32 {
        self.frames
    }

    fn flush_tlb(&self, cpus: CpuMask, range: VirtRange, stride: Stride) {
        if !cpus.contains(percpu::this().id()) {
            return;
        }
        let step = match stride {
            Stride::Page => mm::PAGE_BYTES,
            Stride::Pmd => mm::PMD_SIZE,
        };
        if range.bytes() / step > FLUSH_ALL_PAGES {
            paging::flush_user();
            return;
        }
        let mut at = range.start().as_u64();
        while at < range.end().as_u64() {
            paging::flush_page(VirtAddr::new(at));
            at += step;
        }
    }

    fn lockless_walk(&self) -> Self::WalkGuard {
        PreemptGuard::new()
    }

    fn preempt_off(&self) -> Self::PreemptGuard {
        PreemptGuard::new()
    }

    fn cpu(&self, _guard: &Self::PreemptGuard) -> CpuId {
        percpu::this().id()
    }

    fn nr_cpus(&self) -> u32 {
        self.nr_cpus
    }

    fn task_policy(&self) -> Policy {
        thread::current_process().map_or(Policy::DEFAULT, |process| process.memory_policy().get())
    }

    fn now(&self) -> Nanos {
        clock::now()
    }

    fn wait(&self, key: WaitKey, deadline: Option<Nanos>, still: &mut dyn FnMut() -> bool) {
        wait::wait(key, deadline, still);
    }

    fn wake(&self, key: WaitKey) {
        wait::wake(key);
    }

    fn must_fail(&self) -> bool {
        fail_nth::must_fail()
    }

    unsafe fn clear_page(&self, page: *mut u8) {
        // SAFETY: as the caller promises.
        unsafe { PageOps::chosen().clear(page) }
    }

    unsafe fn copy_page(&self, to: *mut u8, from: *const u8) {
        // SAFETY: as the caller promises.
        unsafe { PageOps::chosen().copy(to, from) }
    }
}
