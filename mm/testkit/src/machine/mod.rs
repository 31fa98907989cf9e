//! The simulated machine: memory, CPUs with translation caches, a clock, sleepers.
//!
//! ```text
//!   test ── read/write ──> CPU n: Tlb ──miss──> page walk (hardware format, sets A and D)
//!                             |                      |
//!                             |                      └─ not present / no right ──> Memory::handle_fault, again
//!                             └─ hit: compared with the tables, a stale translation panics
//!   mm   ── flush_tlb ──────> drops entries exactly as INVLPG with that stride would
//! ```
//!
//! What it catches that real hardware only shows as corruption:
//! * a translation left in a CPU after its entry changed ([`SimMachine::check_tlbs`] and each use of it);
//! * a 2 MiB and a 4 KiB translation of one address alive together, or a small entry published before the flush of
//!   the large one (invariant I12);
//! * sleeping with preemption off, a sleep that nobody can end, a flush that waits for the caller's own walk.
//!
//! The page walk here shares no code with `mm`: it reads the format that the processor manual gives.
//!
//! Threads: the current CPU is a property of the thread ([`on_cpu`]). Two threads on one CPU take turns at the
//! granularity of preemption guards. The stale-translation check on use assumes that no operation of `mm` is under
//! way, so threads that touch an address space while another changes it turn it off with
//! [`SimMachine::allow_stale_use`]; the check at quiet points stays.
#![expect(
    clippy::disallowed_types,
    reason = "this is the hardware below mm: its atomics are not mm's protocols"
)]

mod interleave;
mod tlb;
mod walk;
mod watch;

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    cell::Cell,
    collections::HashMap,
    marker::PhantomData,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
    },
};

use mm::{
    addr::{PAGE_SIZE, PMD_SIZE, Pfn, VirtRange},
    platform::{CpuId, CpuMask, MAX_CPUS, Nanos, Platform, Stride, WaitKey},
    policy::Policy,
    trace::Event,
};

pub use self::{
    interleave::interleave,
    tlb::{Tlb, TlbEntry},
    walk::{Leaf, Walk, entry_bits},
    watch::{HeldFlush, with_copy_hook},
};

thread_local! {
    static CPU: Cell<u8> = const { Cell::new(0) };
    /// Guards of any machine that this thread holds.
    static GUARDS: Cell<u32> = const { Cell::new(0) };
    static THREAD: Cell<u64> = const { Cell::new(0) };
}

static NEXT_THREAD: AtomicU64 = AtomicU64::new(1);

/// A number of the running thread, never 0.
fn thread_number() -> u64 {
    THREAD.with(|cell| {
        if cell.get() == 0 {
            // Relaxed: only uniqueness matters.
            cell.set(NEXT_THREAD.fetch_add(1, Ordering::Relaxed));
        }
        cell.get()
    })
}

/// Runs `f` as if on CPU `cpu` of every machine.
///
/// # Panics
/// While a preemption guard lives.
pub fn on_cpu<T>(cpu: CpuId, f: impl FnOnce() -> T) -> T {
    /// Goes back, also when a test fails.
    struct Back(u8);
    impl Drop for Back {
        fn drop(&mut self) {
            let off = GUARDS.get() != 0 && !std::thread::panicking();
            assert!(!off, "the task changed its CPU with preemption off");
            CPU.set(self.0);
        }
    }
    let number = u8::try_from(cpu.index()).expect("invariant: a CpuId is below 64");
    assert_eq!(GUARDS.get(), 0, "the task changed its CPU with preemption off");
    let _back = Back(CPU.replace(number));
    f()
}

/// One CPU as the machine sees it.
#[derive(Default)]
struct Cpu {
    /// The thread that holds preemption off here, 0 if none.
    owner: AtomicU64,
    /// How many preemption guards that thread holds. Written by the owner only.
    depth: AtomicU32,
    /// How many walk guards live here.
    walkers: AtomicU32,
    /// Grows each time the last walk guard here goes.
    walks_ended: AtomicU64,
    /// Policy of the task that runs here.
    policy: Mutex<Policy>,
    /// Runs a process.
    claimed: AtomicBool,
    tlb: Mutex<Tlb>,
    /// Held from translation to access: no flush comes in the middle of an instruction.
    instruction: Mutex<()>,
}

/// Sleepers and their alarm.
#[derive(Default)]
struct Sleepers {
    /// Wakes seen per key.
    wakes: HashMap<WaitKey, u64>,
    sleeping: u32,
    /// Threads that use the machine; if all of them sleep without a deadline, nobody is left to wake them.
    threads: u32,
}

/// A machine in the memory of the test: see the module's text.
///
/// # Invariants
/// `memory` is the one allocation of `layout` that this machine owns; every pointer into it is derived from it.
pub struct SimMachine {
    memory: *mut u8,
    layout: Layout,
    frames: u32,
    cpus: Vec<Cpu>,
    now: AtomicU64,
    sleepers: Mutex<Sleepers>,
    alarm: Condvar,
    check_use: AtomicBool,
    /// Where a test wants a flush to stop.
    gate: Mutex<Option<watch::Gate>>,
    recording: AtomicBool,
    events: Mutex<Vec<Event>>,
}

// SAFETY: the memory is reached through raw pointers whose users (mm, under its locks) decide who may touch what; the
// other fields are Sync by themselves.
unsafe impl Send for SimMachine {}
// SAFETY: as above.
unsafe impl Sync for SimMachine {}

/// Keeps the thread on its CPU; see [`Platform::PreemptGuard`].
pub struct PreemptGuard {
    cpu: *const Cpu,
    _not_send: PhantomData<*mut ()>,
}

/// Holds flushes off; see [`Platform::WalkGuard`].
pub struct WalkGuard {
    preempt: PreemptGuard,
}

/// Counts the thread as one that may wake others; see [`SimMachine::join`].
pub struct ThreadGuard<'a> {
    machine: &'a SimMachine,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock means that another thread's check has failed already; its message is the one that counts.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimMachine {
    /// Makes a machine with zeroed memory.
    ///
    /// # Panics
    /// Without frames, or with no or too many CPUs.
    #[must_use]
    pub fn new(frames: u32, nr_cpus: u32) -> Self {
        assert!(frames > 0 && (1..=MAX_CPUS).contains(&(nr_cpus as usize)));
        let align = usize::try_from(PMD_SIZE).expect("invariant: usize is 64 bits");
        let layout =
            Layout::from_size_align(frames as usize * PAGE_SIZE, align).expect("the size fits an isize");
        // SAFETY: the size is not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        if memory.is_null() {
            handle_alloc_error(layout);
        }
        // INVARIANT: `memory` was just allocated with `layout`.
        Self {
            memory,
            layout,
            frames,
            cpus: (0..nr_cpus).map(|_| Cpu::default()).collect(),
            now: AtomicU64::new(0),
            sleepers: Mutex::new(Sleepers {
                threads: 1,
                ..Sleepers::default()
            }),
            alarm: Condvar::new(),
            check_use: AtomicBool::new(true),
            gate: Mutex::new(None),
            recording: AtomicBool::new(false),
            events: Mutex::new(Vec::new()),
        }
    }

    /// Moves the clock forward.
    pub fn advance(&self, ns: u64) {
        self.now.fetch_add(ns, Ordering::Relaxed);
    }

    /// Lets CPUs use translations that the tables no longer hold: for tests whose threads touch memory while another
    /// thread changes its mapping, which hardware allows until the flush.
    pub fn allow_stale_use(&self) {
        self.check_use.store(false, Ordering::Relaxed);
    }

    /// Counts the calling thread as a user of the machine until the guard is dropped. The thread that made the
    /// machine is counted from the start.
    pub fn join(&self) -> ThreadGuard<'_> {
        lock(&self.sleepers).threads += 1;
        ThreadGuard { machine: self }
    }

    /// The CPU that the calling thread runs on.
    ///
    /// # Panics
    /// If this machine does not have it.
    #[must_use]
    pub fn current_cpu(&self) -> CpuId {
        let number = CPU.get();
        assert!(
            usize::from(number) < self.cpus.len(),
            "the thread is on CPU {number}, which this machine lacks"
        );
        CpuId::new(number)
    }

    /// All CPUs of this machine.
    #[must_use]
    pub fn all_cpus(&self) -> CpuMask {
        CpuMask::from_bits(u64::MAX >> (64 - self.cpus.len()))
    }

    /// Gives `cpu` to a process.
    pub(crate) fn claim(&self, cpu: CpuId) {
        let taken = self.cpus[cpu.index()].claimed.swap(true, Ordering::Relaxed);
        assert!(!taken, "{cpu:?} runs another process");
    }

    /// Gives the task that runs on `cpu` a memory policy. It is back to the default one when another process runs there.
    pub fn set_task_policy(&self, cpu: CpuId, policy: Policy) {
        *lock(&self.cpus[cpu.index()].policy) = policy;
    }

    /// Takes it back.
    pub(crate) fn disclaim(&self, cpu: CpuId) {
        self.set_task_policy(cpu, Policy::DEFAULT);
        self.cpus[cpu.index()].claimed.store(false, Ordering::Relaxed);
    }

    /// Drops all translations of `cpu`, as loading CR3 does.
    pub fn load_cr3(&self, cpu: CpuId) {
        lock(&self.cpus[cpu.index()].tlb).clear();
    }

    /// Returns how many translations `cpu` holds.
    #[must_use]
    pub fn tlb_len(&self, cpu: CpuId) -> usize {
        lock(&self.cpus[cpu.index()].tlb).len()
    }

    /// Copies the bytes of `nr` frames that nobody writes to meanwhile.
    ///
    /// # Panics
    /// Past the end of memory.
    #[must_use]
    pub fn frame_bytes(&self, pfn: Pfn, nr: u32) -> Vec<u8> {
        assert!(pfn.raw() + nr <= self.frames);
        let mut bytes = vec![0; nr as usize * PAGE_SIZE];
        // SAFETY: the frames are inside the allocation, which no Rust reference aliases.
        unsafe { core::ptr::copy_nonoverlapping(self.frame_ptr(pfn), bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    /// Copies the bytes of one frame that nobody writes to meanwhile.
    ///
    /// # Panics
    /// Past the end of memory.
    pub fn read_frame(&self, pfn: Pfn, bytes: &mut [u8; PAGE_SIZE]) {
        assert!(pfn.raw() < self.frames);
        // SAFETY: as for `frame_bytes`.
        unsafe { core::ptr::copy_nonoverlapping(self.frame_ptr(pfn), bytes.as_mut_ptr(), PAGE_SIZE) };
    }

    /// Reads one byte of memory that nobody writes to meanwhile.
    ///
    /// # Panics
    /// Past the end of memory.
    #[must_use]
    pub fn byte(&self, address: u64) -> u8 {
        let offset = usize::try_from(address).expect("invariant: usize is 64 bits");
        assert!(offset < self.layout.size());
        // SAFETY: as for `frame_bytes`.
        unsafe { self.memory.wrapping_add(offset).read() }
    }

    /// Writes one byte of memory, as a device would.
    ///
    /// # Panics
    /// Past the end of memory.
    pub fn set_byte(&self, address: u64, byte: u8) {
        let offset = usize::try_from(address).expect("invariant: usize is 64 bits");
        assert!(offset < self.layout.size());
        // SAFETY: as for `frame_bytes`.
        unsafe { self.memory.wrapping_add(offset).write(byte) };
    }

    /// Fills `nr` frames, as a device or a stray pointer would.
    ///
    /// # Panics
    /// Past the end of memory.
    pub fn fill_frames(&self, pfn: Pfn, nr: u32, byte: u8) {
        assert!(pfn.raw() + nr <= self.frames);
        // SAFETY: as for `frame_bytes`.
        unsafe { core::ptr::write_bytes(self.frame_ptr(pfn), byte, nr as usize * PAGE_SIZE) };
    }

    /// Compares every cached translation with the tables. For quiet points: no operation of `mm` is under way.
    ///
    /// # Errors
    /// A description of the first translation that must not be there.
    pub fn check_tlbs(&self) -> Result<(), String> {
        for (number, cpu) in self.cpus.iter().enumerate() {
            for entry in lock(&cpu.tlb).entries() {
                let now = self.walk(entry.root, entry.start);
                if let Some(why) = entry.staleness(&now) {
                    return Err(format!(
                        "CPU {number} holds a stale translation: {entry:?}: {why}; tables: {now:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// A translation in the tables for part of `entry`'s range in the other page size.
    fn other_size(&self, entry: &TlbEntry) -> Option<Leaf> {
        let steps = (entry.start..entry.start + entry.size).step_by(PAGE_SIZE);
        steps
            .map(|addr| self.walk(entry.root, addr))
            .find_map(|walk| match walk {
                Walk::Mapped(leaf) if leaf.size != entry.size => Some(leaf),
                _ => None,
            })
    }

    /// Panics if the caller could not sleep here.
    fn assert_may_sleep(&self) {
        assert_eq!(
            GUARDS.get(),
            0,
            "sleeping or touching user memory with preemption off"
        );
    }

    /// Waits until `cpu` has left each walk guard it was in when this was called.
    fn wait_for_walkers(&self, cpu: CpuId) {
        let state = &self.cpus[cpu.index()];
        let ended = state.walks_ended.load(Ordering::Acquire);
        while state.walkers.load(Ordering::Acquire) > 0 && state.walks_ended.load(Ordering::Acquire) == ended
        {
            let own = state.owner.load(Ordering::Relaxed) == thread_number();
            assert!(
                !own,
                "flush_tlb inside the caller's own lock-free walk never returns"
            );
            std::thread::yield_now();
        }
    }
}

impl Drop for SimMachine {
    fn drop(&mut self) {
        // SAFETY: by the type's invariant the memory came from `alloc_zeroed` with this layout; nobody is left who
        // could use a pointer into it.
        unsafe { dealloc(self.memory, self.layout) }
    }
}

impl Drop for ThreadGuard<'_> {
    fn drop(&mut self) {
        lock(&self.machine.sleepers).threads -= 1;
        // Whoever still sleeps finds out whether it is the last one.
        self.machine.alarm.notify_all();
    }
}

impl PreemptGuard {
    fn cpu(&self) -> &Cpu {
        // SAFETY: the machine outlives its guards: mm holds them only inside calls that borrow the machine.
        unsafe { &*self.cpu }
    }
}

impl Drop for PreemptGuard {
    fn drop(&mut self) {
        let cpu = self.cpu();
        assert_eq!(
            cpu.owner.load(Ordering::Relaxed),
            thread_number(),
            "a preemption guard moved to another thread"
        );
        let depth = cpu.depth.load(Ordering::Relaxed) - 1;
        cpu.depth.store(depth, Ordering::Relaxed);
        if depth == 0 {
            cpu.owner.store(0, Ordering::Release);
        }
        GUARDS.set(GUARDS.get() - 1);
    }
}

impl Drop for WalkGuard {
    fn drop(&mut self) {
        let cpu = self.preempt.cpu();
        if cpu.walkers.fetch_sub(1, Ordering::AcqRel) == 1 {
            cpu.walks_ended.fetch_add(1, Ordering::AcqRel);
        }
    }
}

// SAFETY: the window is one allocation of `frames` pages aligned to 2 MiB that lives as long as the machine; flush_tlb
// empties the listed CPUs' caches and waits for their walkers before it returns; a preemption guard owns its CPU, and
// `on_cpu` refuses to move a thread that has one.
unsafe impl Platform for SimMachine {
    type PreemptGuard = PreemptGuard;
    type WalkGuard = WalkGuard;
    const TRACE: bool = true;

    fn window(&self) -> *mut u8 {
        self.memory
    }

    fn frames(&self) -> u32 {
        self.frames
    }

    fn flush_tlb(&self, cpus: CpuMask, range: VirtRange, stride: Stride) {
        interleave::point();
        fence(Ordering::SeqCst);
        for (number, state) in self.cpus.iter().enumerate() {
            let cpu = CpuId::new(u8::try_from(number).expect("invariant: at most 64 CPUs"));
            if !cpus.contains(cpu) {
                continue;
            }
            self.wait_for_walkers(cpu);
            let between = lock(&state.instruction);
            let dropped = lock(&state.tlb).invalidate(range, stride);
            drop(between);
            for entry in dropped {
                if let Some(now) = self.other_size(&entry) {
                    panic!("I12: {now:?} was published while CPU {number} could still hold {entry:?}");
                }
            }
        }
        self.stop_at_gate();
    }

    fn lockless_walk(&self) -> WalkGuard {
        let preempt = self.preempt_off();
        preempt.cpu().walkers.fetch_add(1, Ordering::AcqRel);
        // With the one in flush_tlb: either the flusher sees this walk, or the walk sees what was done before the flush.
        fence(Ordering::SeqCst);
        WalkGuard { preempt }
    }

    fn preempt_off(&self) -> PreemptGuard {
        interleave::point();
        let cpu = &self.cpus[self.current_cpu().index()];
        let me = thread_number();
        if cpu.owner.load(Ordering::Relaxed) != me {
            while cpu
                .owner
                .compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed)
                .is_err()
            {
                std::thread::yield_now();
            }
        }
        cpu.depth
            .store(cpu.depth.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        GUARDS.set(GUARDS.get() + 1);
        PreemptGuard {
            cpu,
            _not_send: PhantomData,
        }
    }

    fn cpu(&self, guard: &PreemptGuard) -> CpuId {
        debug_assert_eq!(guard.cpu().owner.load(Ordering::Relaxed), thread_number());
        self.current_cpu()
    }

    fn nr_cpus(&self) -> u32 {
        u32::try_from(self.cpus.len()).expect("invariant: at most 64 CPUs")
    }

    fn task_policy(&self) -> Policy {
        *lock(&self.cpus[self.current_cpu().index()].policy)
    }

    fn now(&self) -> Nanos {
        Nanos(self.now.load(Ordering::Relaxed))
    }

    fn wait(&self, key: WaitKey, deadline: Option<Nanos>, still: &mut dyn FnMut() -> bool) {
        self.assert_may_sleep();
        let seen = *lock(&self.sleepers).wakes.entry(key).or_default();
        if !still() {
            return;
        }
        let mut sleepers = lock(&self.sleepers);
        sleepers.sleeping += 1;
        while sleepers.wakes.get(&key).copied().unwrap_or_default() == seen {
            if sleepers.sleeping >= sleepers.threads {
                // Nobody runs, so time passes until the next deadline, if there is one.
                let Some(at) = deadline else {
                    panic!("sleeping for {key:?}, which nobody is left to wake: a deadlock")
                };
                self.now.fetch_max(at.0, Ordering::Relaxed);
            }
            if deadline.is_some_and(|at| self.now() >= at) {
                break;
            }
            sleepers = self.alarm.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
        }
        sleepers.sleeping -= 1;
    }

    fn trace(&self, event: Event) {
        self.record(event);
    }

    unsafe fn copy_page(&self, to: *mut u8, from: *const u8) {
        watch::run_copy_hook();
        // SAFETY: distinct frames do not overlap; the caller vouches for access.
        unsafe { core::ptr::copy_nonoverlapping(from, to, PAGE_SIZE) }
    }

    fn wake(&self, key: WaitKey) {
        *lock(&self.sleepers).wakes.entry(key).or_default() += 1;
        self.alarm.notify_all();
    }
}

impl SimMachine {
    /// Returns the bytes of user memory at `addr` that `leaf` translates, as a pointer good to the end of its page.
    fn leaf_ptr(&self, leaf: &Leaf, addr: u64) -> *mut u8 {
        let offset = usize::try_from(addr - leaf.start).expect("invariant: an address inside a leaf");
        let first = usize::try_from(leaf.pfn).expect("invariant: usize is 64 bits") * PAGE_SIZE;
        assert!(
            first + offset < self.layout.size(),
            "the tables translate {addr:#x} to memory that does not exist"
        );
        self.memory.wrapping_add(first + offset)
    }

    /// Translates `addr` for one access, through the current CPU's cache. `None` is a page fault.
    fn translate(&self, root: Pfn, addr: u64, need: u64) -> Option<Leaf> {
        let tlb = &self.cpus[self.current_cpu().index()].tlb;
        let cached = lock(tlb).lookup(root, addr);
        if let Some(entry) = cached {
            self.check_use(&entry, addr);
            if entry.allows(need) {
                return Some(entry.leaf());
            }
            // A cached translation without the right faults without a new walk, and the fault drops it. One that only
            // lacks D is walked again.
            lock(tlb).invalidate_page(addr);
            if !entry.allows(need & !entry_bits::DIRTY) {
                return None;
            }
        }
        let leaf = self.walk_and_mark(root, addr, need)?;
        let clash = lock(tlb).insert(root, &leaf);
        assert!(clash.is_none(), "I12: {leaf:?} cached beside {clash:?}");
        Some(leaf)
    }

    fn check_use(&self, entry: &TlbEntry, addr: u64) {
        if !self.check_use.load(Ordering::Relaxed) {
            return;
        }
        let now = self.walk(entry.root, addr);
        if let Some(why) = entry.staleness(&now) {
            panic!("a stale translation was used for {addr:#x}: {entry:?}: {why}; tables: {now:?}");
        }
    }

    /// Reads user memory inside one page. `None` is a page fault.
    pub(crate) fn load(&self, root: Pfn, addr: u64, bytes: &mut [u8]) -> Option<()> {
        self.assert_may_sleep();
        let _instruction = lock(&self.cpus[self.current_cpu().index()].instruction);
        let leaf = self.translate(root, addr, entry_bits::USER)?;
        let from = self.leaf_ptr(&leaf, addr);
        // SAFETY: the range is inside one page of a mapped frame, which is user memory: nobody holds a reference.
        unsafe { core::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        Some(())
    }

    /// Writes user memory inside one page. `None` is a page fault.
    pub(crate) fn store(&self, root: Pfn, addr: u64, bytes: &[u8]) -> Option<()> {
        self.assert_may_sleep();
        let _instruction = lock(&self.cpus[self.current_cpu().index()].instruction);
        let leaf = self.translate(
            root,
            addr,
            entry_bits::USER | entry_bits::WRITE | entry_bits::DIRTY,
        )?;
        let to = self.leaf_ptr(&leaf, addr);
        // SAFETY: as for `load`; user memory may be written by any CPU that has the right.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Some(())
    }

    /// Fetches an instruction byte. `None` is a page fault.
    pub(crate) fn fetch(&self, root: Pfn, addr: u64) -> Option<u8> {
        self.assert_may_sleep();
        let _instruction = lock(&self.cpus[self.current_cpu().index()].instruction);
        let leaf = self.translate(root, addr, entry_bits::USER | entry_bits::EXEC)?;
        let from = self.leaf_ptr(&leaf, addr);
        // SAFETY: as for `load`.
        Some(unsafe { from.read() })
    }
}
