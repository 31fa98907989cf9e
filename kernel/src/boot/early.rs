//! Memory before there is a memory manager.
//!
//! ```text
//!   usable region      [==== taken ====>........free........]   taken from the low end, aligned up
//!   next usable region [........free........................]
//! ```
//! The loader's map is coalesced (UEFI reports dozens of small neighbours) and kept in a fixed table. What is taken
//! here is never given back; what is left goes to `mm` (see [`super::memory`]). Memory is reached through the
//! window at [`WINDOW_BASE`], where both the loader and the kernel's own tables map it.

use bootloader_api::info::{MemoryRegion, MemoryRegionKind};
use mm::{PAGE_BYTES, PAGE_SIZE, Pfn, PfnRange, PhysAddr, PhysAddr as Address, addr::to_usize};

/// Where all physical memory is mapped: frame 0 is at this address.
pub const WINDOW_BASE: u64 = 0xffff_8800_0000_0000;

/// Frames below this belong to the start code of other CPUs and to firmware: 64 KiB.
const LOW_MEMORY_END: u64 = 0x1_0000;
/// Most separate runs of memory kept; the smallest surplus ones are left unused and logged.
const MAX_RUNS: usize = 128;

/// No free run is as long as what was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfEarlyMemory {
    /// Bytes asked for.
    pub bytes: u64,
}

/// Bytes of physical memory, `start` included, `end` not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// First byte.
    pub start: u64,
    /// First byte past it.
    pub end: u64,
}

impl Run {
    const EMPTY: Self = Self { start: 0, end: 0 };

    /// Size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.end - self.start
    }

    /// Returns the whole frames in it.
    #[must_use]
    pub fn frames(self) -> PfnRange {
        let first = Pfn::containing(PhysAddr::new(self.start.next_multiple_of(PAGE_BYTES)));
        let end = Pfn::containing(PhysAddr::new(self.end));
        let range = first.zip(end).and_then(|(first, end)| PfnRange::new(first, end));
        range.unwrap_or(NO_FRAMES)
    }
}

const NO_FRAMES: PfnRange = match PfnRange::new(Pfn::new(0), Pfn::new(0)) {
    Some(range) => range,
    None => panic!("0 is not past 0"),
};

/// A sorted list of runs that do not touch.
#[derive(Clone, Debug)]
pub struct Runs {
    runs: [Run; MAX_RUNS],
    len: usize,
    /// Bytes that found no place in the table.
    dropped: u64,
}

impl Runs {
    const fn new() -> Self {
        Self {
            runs: [Run::EMPTY; MAX_RUNS],
            len: 0,
            dropped: 0,
        }
    }

    /// Collects the regions that `wanted` accepts. The loader's list is sorted.
    fn collect(regions: &[MemoryRegion], wanted: impl Fn(MemoryRegionKind) -> bool) -> Self {
        let mut runs = Self::new();
        for region in regions.iter().filter(|region| wanted(region.kind)) {
            runs.push(Run {
                start: region.start,
                end: region.end,
            });
        }
        runs
    }

    /// Appends a run that begins at or after the end of the last.
    fn push(&mut self, run: Run) {
        if run.start >= run.end {
            return;
        }
        if let Some(last) = self.len.checked_sub(1).map(|last| &mut self.runs[last])
            && last.end == run.start
        {
            last.end = run.end;
        } else if self.len < MAX_RUNS {
            self.runs[self.len] = run;
            self.len += 1;
        } else {
            self.dropped += run.bytes();
        }
    }

    /// The runs, lowest first.
    #[must_use]
    pub fn as_slice(&self) -> &[Run] {
        &self.runs[..self.len]
    }

    /// Bytes in all runs.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.as_slice().iter().map(|run| run.bytes()).sum()
    }

    /// Bytes that were left out because the table was full.
    #[must_use]
    pub const fn dropped_bytes(&self) -> u64 {
        self.dropped
    }
}

/// The machine's memory: what is there, what is still free.
#[derive(Debug)]
pub struct EarlyMemory {
    /// Everything that is RAM: usable, the loader's, firmware tables.
    ram: Runs,
    /// What the loader left to the kernel.
    usable: Runs,
    /// What is left of `usable`.
    free: Runs,
}

impl EarlyMemory {
    /// Reads the loader's memory map.
    #[must_use]
    pub fn new(regions: &[MemoryRegion]) -> Self {
        let mut usable = Runs::collect(regions, |kind| kind == MemoryRegionKind::Usable);
        for run in &mut usable.runs[..usable.len] {
            run.start = run.start.max(LOW_MEMORY_END).min(run.end);
        }
        Self {
            ram: Runs::collect(regions, is_ram),
            free: usable.clone(),
            usable,
        }
    }

    /// Everything that is RAM.
    #[must_use]
    pub const fn ram(&self) -> &Runs {
        &self.ram
    }

    /// What the loader left to the kernel, taken or not.
    #[must_use]
    pub const fn usable(&self) -> &Runs {
        &self.usable
    }

    /// What nobody took.
    #[must_use]
    pub const fn free(&self) -> &Runs {
        &self.free
    }

    /// Returns one more than the highest usable frame number.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.usable
            .as_slice()
            .last()
            .map_or(0, |run| run.frames().end().raw())
    }

    /// Takes `bytes` of zeroed memory, aligned to `align` (a power of two), above 1 MiB. It stays taken.
    ///
    /// # Errors
    /// No run is that long; nothing was taken.
    pub fn alloc(&mut self, bytes: u64, align: u64) -> Result<Address, OutOfEarlyMemory> {
        /// Below lie the start code of other CPUs and holes; nothing here is large.
        const FLOOR: u64 = 1 << 20;
        let fits = |run: &Run| {
            let start = run.start.max(FLOOR).next_multiple_of(align);
            start.checked_add(bytes).is_some_and(|end| end <= run.end)
        };
        let len = self.free.len;
        let run = self.free.runs[..len]
            .iter_mut()
            .find(|run| fits(run))
            .ok_or(OutOfEarlyMemory { bytes })?;
        // A run that begins below the floor loses what lies below; the loader's maps end a run there anyway.
        let start = run.start.max(FLOOR).next_multiple_of(align);
        run.start = start + bytes;
        let pointer = window_ptr(PhysAddr::new(start));
        // SAFETY: the run is usable RAM that nobody has, mapped writable in the window.
        unsafe { core::ptr::write_bytes(pointer, 0, to_usize(bytes)) };
        Ok(PhysAddr::new(start))
    }

    /// Takes whole zeroed pages.
    ///
    /// # Errors
    /// As [`alloc`](Self::alloc).
    pub fn alloc_pages(&mut self, pages: u64) -> Result<Address, OutOfEarlyMemory> {
        self.alloc(pages * PAGE_BYTES, PAGE_BYTES)
    }

    /// Takes whole pages, at least `bytes`, and lets `fill` write the first `bytes` of them by any means.
    ///
    /// # Errors
    /// As [`alloc`](Self::alloc).
    pub fn alloc_filled(
        &mut self,
        bytes: u64,
        fill: impl FnOnce(PhysAddr, *mut u8),
    ) -> Result<&'static [u8], OutOfEarlyMemory> {
        let start = self.alloc(bytes.next_multiple_of(PAGE_BYTES), PAGE_BYTES)?;
        let pointer = window_ptr(start);
        fill(start, pointer);
        // SAFETY: zeroed, then filled, memory of ours for ever; nobody writes it from here on.
        Ok(unsafe { core::slice::from_raw_parts(pointer, to_usize(bytes)) })
    }
}

/// Whether memory of this kind is RAM that the kernel may have to read.
fn is_ram(kind: MemoryRegionKind) -> bool {
    /// E820: ACPI tables, ACPI non-volatile storage.
    const BIOS_RAM: [u32; 2] = [3, 4];
    /// UEFI: run-time services code and data, ACPI tables, ACPI non-volatile storage.
    const UEFI_RAM: [u32; 4] = [5, 6, 9, 10];
    match kind {
        MemoryRegionKind::Usable | MemoryRegionKind::Bootloader => true,
        MemoryRegionKind::UnknownBios(tag) => BIOS_RAM.contains(&tag),
        MemoryRegionKind::UnknownUefi(tag) => UEFI_RAM.contains(&tag),
        _ => false,
    }
}

/// Returns where physical memory at `address` is mapped.
#[must_use]
pub fn window_ptr(address: PhysAddr) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut::<u8>(to_usize(WINDOW_BASE + address.as_u64()))
}

const _: () = assert!(PAGE_SIZE == 4096);
