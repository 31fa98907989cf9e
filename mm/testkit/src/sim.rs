//! A booted simulated machine, and programs on it.
//!
//! [`Sim`] is a [`Memory`] on a [`SimMachine`] with the memory layout that a test asks for. [`Process`] is what a
//! process is to `mm`: an address space that a CPU runs. Its accesses go through the CPU's translation cache, the page
//! walk, and, where those fail, the page-fault handler, as an instruction's would.

use core::ops::{Deref, Range};

use mm::{
    addr::{PAGE_BYTES, PAGE_SIZE, Pfn, PfnRange, VirtAddr},
    address_space::{AddressSpace, MmRef},
    check::{self, Owners, Tally, Violation},
    error::{AllocError, SegvReason, VmFault},
    fault::{Access, FaultInfo},
    memory::Memory,
    node::NodeMap,
    platform::CpuId,
};

use crate::{
    machine::{SimMachine, on_cpu},
    scenario::{Refused, Runner},
};

/// Frames at the bottom that every machine keeps from the allocator, as firmware and the kernel's image would.
pub const FIRMWARE_FRAMES: u32 = 16;

/// A machine of ordinary size: 40 MiB, or as many huge pages where those are small.
pub const MANY_FRAMES: u32 = 20 * mm::HPAGE_PAGES;

/// What machine to boot.
#[derive(Clone, Debug)]
pub struct Config {
    /// Frames in the window, holes included.
    pub frames: u32,
    /// CPUs.
    pub nr_cpus: u32,
    /// Frame numbers without memory.
    pub holes: Vec<Range<u32>>,
}

impl Default for Config {
    /// Room for some tens of huge pages, and two CPUs.
    fn default() -> Self {
        Self {
            frames: MANY_FRAMES,
            nr_cpus: 2,
            holes: Vec::new(),
        }
    }
}

/// A booted machine.
pub struct Sim {
    mem: Memory<SimMachine>,
}

impl Deref for Sim {
    type Target = Memory<SimMachine>;

    fn deref(&self) -> &Self::Target {
        &self.mem
    }
}

/// Makes a range of frames out of bare numbers.
///
/// # Panics
/// If it ends before it starts.
#[must_use]
pub fn frames(range: Range<u32>) -> PfnRange {
    PfnRange::new(Pfn::new(range.start), Pfn::new(range.end)).expect("a range in order")
}

/// Why a program's access did not happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessError {
    /// The program gets SIGSEGV.
    Segv(SegvReason),
    /// The program gets SIGBUS.
    Bus,
    /// A page or table could not be had.
    NoMemory(AllocError),
}

impl Sim {
    /// Boots a machine: page records at the first place behind the firmware that is large enough, everything else
    /// that is memory given to the allocator.
    ///
    /// # Panics
    /// If the page records do not fit.
    #[must_use]
    pub fn boot(config: &Config) -> Self {
        Self::boot_nodes(config, 1)
    }

    /// [`Sim::boot`] with the memory cut into `nr_nodes` nodes.
    ///
    /// # Panics
    /// Also if there is not enough memory for so many.
    #[must_use]
    pub fn boot_nodes(config: &Config, nr_nodes: u32) -> Self {
        let machine = SimMachine::new(config.frames, config.nr_cpus);
        let bytes = Memory::<SimMachine>::metadata_size(config.frames, config.nr_cpus);
        let metadata = u32::try_from(bytes.div_ceil(PAGE_SIZE)).expect("the records fit a machine");
        let banks = banks(config);
        let nodes = NodeMap::cut(banks.iter().cloned().map(frames), nr_nodes);
        let nodes = nodes.expect("memory for that many nodes");
        let first = banks.iter().map(|bank| bank.start.max(FIRMWARE_FRAMES)..bank.end);
        let home = first
            .into_iter()
            .find(|bank| bank.len() >= metadata as usize)
            .expect("no bank holds the records");
        let kept = home.start..home.start + metadata;
        // SAFETY: the machine's memory is zeroed, the frames are in a bank, and they are never released below.
        let mem = unsafe { Memory::with_nodes(machine, Pfn::new(kept.start), nodes) };
        for bank in &banks {
            mem.add_memory(frames(bank.clone()));
            for part in [
                bank.start.max(FIRMWARE_FRAMES)..bank.end.min(kept.start),
                bank.start.max(kept.end)..bank.end,
            ] {
                if part.start < part.end {
                    mem.release(frames(part));
                }
            }
        }
        Self { mem }
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &SimMachine {
        self.mem.platform()
    }

    /// Runs the whole-memory checker. `processes` are all there are.
    ///
    /// # Errors
    /// What it found.
    pub fn check(&self, processes: &[&Process<'_>], owners: &dyn Owners) -> Result<(), Violation> {
        let spaces: Vec<&AddressSpace> = processes.iter().map(|process| process.space()).collect();
        let mut scratch = vec![Tally::default(); self.mem.pages().frames() as usize];
        check::check(&self.mem, &spaces, owners, scratch.as_mut_slice())
    }

    /// Runs the whole-memory checker and compares every cached translation with the tables.
    ///
    /// # Panics
    /// With the description of what is wrong.
    #[track_caller]
    pub fn verify(&self, processes: &[&Process<'_>], owners: &dyn Owners) {
        if let Err(violation) = self.check(processes, owners) {
            panic!("{violation}");
        }
        if let Err(stale) = self.machine().check_tlbs() {
            panic!("{stale}");
        }
        assert_eq!(self.mem.nr_bad_pages(), 0);
    }

    /// Starts a process on `cpu`: a new address space, and the CPU switches to it.
    ///
    /// # Errors
    /// No memory for the address space; nothing changed.
    ///
    /// # Panics
    /// If the CPU has a process already.
    pub fn start(&self, cpu: CpuId) -> Result<Process<'_>, AllocError> {
        let space = on_cpu(cpu, || self.mem.new_space())?;
        let mut process = Process {
            sim: self,
            space: Some(space),
            cpu,
            cpus: Vec::new(),
        };
        process.run_on(cpu);
        Ok(process)
    }
}

/// The parts of the window that are memory.
fn banks(config: &Config) -> Vec<Range<u32>> {
    let mut holes = config.holes.clone();
    holes.sort_by_key(|hole| hole.start);
    let mut banks = Vec::new();
    let mut start = 0;
    for hole in holes {
        banks.push(start..hole.start.max(start));
        start = hole.end.max(start);
    }
    banks.push(start..config.frames);
    banks.retain(|bank| !bank.is_empty());
    banks
}

/// A process: an address space, and the CPUs that run its threads. A CPU belongs to one process at a time.
pub struct Process<'s> {
    sim: &'s Sim,
    space: Option<MmRef>,
    /// The CPU of the next access.
    cpu: CpuId,
    /// Every CPU that runs a thread of it.
    cpus: Vec<CpuId>,
}

impl Deref for Process<'_> {
    type Target = AddressSpace;

    fn deref(&self) -> &AddressSpace {
        self.space.as_ref().expect("invariant: there until dropped")
    }
}

impl Process<'_> {
    /// Its address space.
    #[must_use]
    pub fn space(&self) -> &AddressSpace {
        self
    }

    /// Lets the next accesses come from a thread on `cpu`. Threads on other CPUs stay, with their translations.
    ///
    /// # Panics
    /// If the CPU runs another process.
    pub fn run_on(&mut self, cpu: CpuId) {
        self.cpu = cpu;
        if !self.cpus.contains(&cpu) {
            self.sim.machine().claim(cpu);
            self.enter(cpu);
            self.cpus.push(cpu);
        }
    }

    /// The CPU of its next access.
    #[must_use]
    pub fn cpu(&self) -> CpuId {
        self.cpu
    }

    /// Runs `f` on the process's CPU.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> T {
        on_cpu(self.cpu, f)
    }

    /// Starts a child on `cpu` that shares all memory of this process (`fork`).
    ///
    /// # Errors
    /// No memory for it; nothing is left of the child.
    ///
    /// # Panics
    /// If the CPU runs a process already.
    pub fn fork(&self, cpu: CpuId) -> Result<Self, mm::error::MapError> {
        let space = on_cpu(self.cpu, || self.sim.fork_space(self))?;
        let mut child = Self {
            sim: self.sim,
            space: Some(space),
            cpu,
            cpus: Vec::new(),
        };
        child.run_on(cpu);
        Ok(child)
    }

    /// Reads memory as the program would.
    ///
    /// # Errors
    /// What the program gets instead. Pages before the failing one have been read.
    pub fn read(&self, addr: u64, bytes: &mut [u8]) -> Result<(), AccessError> {
        let mut at = addr;
        for part in by_page(addr, bytes.len()) {
            let (start, end) = (part.start, part.end);
            let piece = &mut bytes[start..end];
            self.retry(at, Access::Read, |machine, root| machine.load(root, at, piece))?;
            at += (end - start) as u64;
        }
        Ok(())
    }

    /// Writes memory as the program would.
    ///
    /// # Errors
    /// What the program gets instead. Pages before the failing one have been written.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), AccessError> {
        let mut at = addr;
        for part in by_page(addr, bytes.len()) {
            let piece = &bytes[part];
            self.retry(at, Access::Write, |machine, root| machine.store(root, at, piece))?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Reads one byte.
    ///
    /// # Errors
    /// As [`Process::read`].
    pub fn read_byte(&self, addr: u64) -> Result<u8, AccessError> {
        let mut byte = [0];
        self.read(addr, &mut byte).map(|()| byte[0])
    }

    /// Writes one byte.
    ///
    /// # Errors
    /// As [`Process::write`].
    pub fn write_byte(&self, addr: u64, byte: u8) -> Result<(), AccessError> {
        self.write(addr, &[byte])
    }

    /// Fetches an instruction byte.
    ///
    /// # Errors
    /// As [`Process::read`].
    pub fn fetch(&self, addr: u64) -> Result<u8, AccessError> {
        self.retry(addr, Access::Exec, |machine, root| machine.fetch(root, addr))
    }

    /// Runs an access until it succeeds or the fault handler refuses.
    fn retry<T>(
        &self,
        addr: u64,
        access: Access,
        mut attempt: impl FnMut(&SimMachine, Pfn) -> Option<T>,
    ) -> Result<T, AccessError> {
        /// A fault that is said to be resolved this often and still happens never ends.
        const LIMIT: u32 = 8;
        on_cpu(self.cpu, || {
            for _ in 0..LIMIT {
                if let Some(done) = attempt(self.sim.machine(), self.root()) {
                    return Ok(done);
                }
                let Ok(address) = VirtAddr::try_new(addr) else {
                    return Err(AccessError::Segv(SegvReason::NotMapped));
                };
                match self.sim.handle_fault(
                    self,
                    FaultInfo {
                        addr: address,
                        access,
                    },
                ) {
                    VmFault::Done | VmFault::Retry => {}
                    VmFault::NeedMemory(error) => return Err(AccessError::NoMemory(error)),
                    VmFault::SigSegv(reason) => return Err(AccessError::Segv(reason)),
                    VmFault::SigBus => return Err(AccessError::Bus),
                }
            }
            panic!("a fault at {addr:#x} for {access:?} is resolved again and again, and happens again")
        })
    }
}

impl Drop for Process<'_> {
    /// Exits: the CPUs switch away, then the address space goes. Not when a test has failed: its message is worth more
    /// than what a broken machine would say to an orderly exit.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for cpu in std::mem::take(&mut self.cpus) {
            self.sim.machine().load_cr3(cpu);
            self.leave(cpu);
            self.sim.machine().disclaim(cpu);
        }
        if let Some(space) = self.space.take() {
            on_cpu(self.cpu, || self.sim.put_space(space));
        }
    }
}

impl From<AccessError> for Refused {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::Segv(_) | AccessError::Bus => Self::Signal,
            AccessError::NoMemory(_) => Self::NoMemory,
        }
    }
}

impl Runner for Process<'_> {
    type Platform = SimMachine;

    fn mem(&self) -> &Memory<SimMachine> {
        self.sim
    }

    fn space(&self) -> &AddressSpace {
        self
    }

    fn read(&self, addr: u64) -> Result<u8, Refused> {
        Ok(self.read_byte(addr)?)
    }

    fn write(&self, addr: u64, byte: u8) -> Result<(), Refused> {
        Ok(self.write_byte(addr, byte)?)
    }

    /// With the translation caches. For machines whose only process this is.
    fn check(&self, held: &dyn Owners) -> Result<(), Violation> {
        if let Err(stale) = self.sim.machine().check_tlbs() {
            panic!("{stale}");
        }
        self.sim.check(&[self], held)
    }
}

/// Cuts `len` bytes at `addr` at page ends: ranges of the bytes.
fn by_page(addr: u64, len: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    core::iter::from_fn(move || {
        if start == len {
            return None;
        }
        let at = addr.wrapping_add(start as u64);
        let room = usize::try_from(PAGE_BYTES - at % PAGE_BYTES).expect("invariant: at most a page");
        let part = start..len.min(start + room);
        start = part.end;
        Some(part)
    })
}
