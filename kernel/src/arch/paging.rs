//! The kernel's own page tables, which replace the boot loader's before `mm` starts.
//!
//! ```text
//!  0000_0000_0000_0000   programs: empty here, each address space has its own lower half
//!  ffff_8800_0000_0000   window: all RAM, frame 0 first      RW NX   1 GiB pages, else 2 MiB, 4 KiB at ragged ends
//!  ffff_c000_0000_0000   kernel stacks with guard pages      RW NX   4 KiB
//!  ffff_c100_0000_0000   kernel heap                         RW NX   2 MiB, else 4 KiB
//!  ffff_d000_0000_0000   device registers                    RW NX   uncached
//!  ffff_ffff_8000_0000   kernel image                        text RX, constants R, data RW
//! ```
//! Nothing is writable and executable at once through one mapping; the image's frames appear in the window too, as
//! data. The upper half's top-level entries are all made at start and never change, so a new address space copies
//! them once ([`copy_kernel_half`]) and sees every later change below them.
//!
//! Lock: `TABLES` for every change after start. Lock order: the heap's lock, then this, then `mm`'s.

use core::{
    arch::asm,
    fmt::{self, Write},
    sync::atomic::{AtomicU64, Ordering},
};

use elf::{
    abi::{PF_W, PF_X, PT_GNU_RELRO, PT_LOAD},
    endian::LittleEndian,
    file::{Class, FileHeader},
    segment::SegmentTable,
};
use mm::{PAGE_BYTES, PMD_SIZE, Pfn, PhysAddr, VirtAddr, addr::to_usize};
use spin::Mutex;

use super::cpu::{self, Features};
use crate::boot::early::{EarlyMemory, OutOfEarlyMemory, Run, WINDOW_BASE, window_ptr};

/// First address of kernel stacks.
pub const STACKS_BASE: u64 = 0xffff_c000_0000_0000;
/// First address of the kernel heap.
pub const HEAP_BASE: u64 = 0xffff_c100_0000_0000;
/// First address of device registers.
const DEVICES_BASE: u64 = 0xffff_d000_0000_0000;
/// Where the kernel image is linked.
const IMAGE_BASE: u64 = 0xffff_ffff_8000_0000;
/// What one top-level entry maps.
const ROOT_ENTRY_BYTES: u64 = 1 << 39;
const GIB: u64 = 1 << 30;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const WRITE_THROUGH: u64 = 1 << 3;
const UNCACHED: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const ENTRIES: usize = 512;

/// What may be done through a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
    /// Read.
    Read,
    /// Read and write.
    ReadWrite,
    /// Read and execute.
    ReadExecute,
    /// Read and write a device's registers.
    Device,
}

impl Protection {
    fn bits(self) -> u64 {
        let features = cpu::features();
        let no_execute = if features.contains(Features::NX) {
            NO_EXECUTE
        } else {
            0
        };
        let global = if features.contains(Features::PGE) {
            GLOBAL
        } else {
            0
        };
        let rights = match self {
            Self::Read => no_execute,
            Self::ReadWrite => WRITABLE | no_execute,
            Self::ReadExecute => 0,
            Self::Device => WRITABLE | WRITE_THROUGH | UNCACHED | no_execute,
        };
        PRESENT | global | rights
    }
}

/// Size of one mapping; the level of the table that holds its entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PageSize {
    /// 4 KiB.
    Page = 1,
    /// 2 MiB.
    Pmd = 2,
    /// 1 GiB.
    Pud = 3,
}

impl PageSize {
    /// Bytes of one mapping.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << shift(self as u32)
    }
}

/// Where the bits of a level's index begin in an address. Level 1 holds 4 KiB entries, level 4 is the root.
const fn shift(level: u32) -> u32 {
    12 + 9 * (level - 1)
}

/// No frame could be had for a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoTable;

impl From<OutOfEarlyMemory> for NoTable {
    fn from(_: OutOfEarlyMemory) -> Self {
        Self
    }
}

/// Where frames for tables come from: the early memory, and later `mm`.
trait TableSource {
    /// Returns a zeroed frame.
    fn table_frame(&mut self) -> Result<PhysAddr, NoTable>;
}

impl TableSource for EarlyMemory {
    fn table_frame(&mut self) -> Result<PhysAddr, NoTable> {
        Ok(self.alloc_pages(1)?)
    }
}

/// Frames for tables from `mm`.
struct FromMm;

impl TableSource for FromMm {
    fn table_frame(&mut self) -> Result<PhysAddr, NoTable> {
        // The kernel's own needs come before those of programs: see `heap`.
        let flags = mm::AllocFlags::ZERO | mm::AllocFlags::RESERVE;
        let pfn = crate::platform::mm()
            .alloc_pages(mm::Order::ZERO, flags)
            .map_err(|_| NoTable)?;
        Ok(pfn.start())
    }
}

/// The root of the kernel's tables; 0 until they are in use.
static ROOT: AtomicU64 = AtomicU64::new(0);
/// Held while the tables change.
static TABLES: Mutex<()> = Mutex::new(());
/// First free address for device registers.
static NEXT_DEVICE: AtomicU64 = AtomicU64::new(DEVICES_BASE);

/// Returns the root of the kernel's tables, whose lower half is empty.
#[must_use]
pub fn kernel_root() -> PhysAddr {
    PhysAddr::new(ROOT.load(Ordering::Acquire))
}

/// One entry of a table in the window.
fn slot(table: PhysAddr, index: usize) -> &'static AtomicU64 {
    debug_assert!(index < ENTRIES);
    let entry = window_ptr(table).cast::<AtomicU64>().wrapping_add(index);
    // SAFETY: tables are whole frames in the window, entries are only accessed atomically, and kernel tables are
    // never freed.
    unsafe { &*entry }
}

fn index(address: u64, level: u32) -> usize {
    to_usize(address >> shift(level)) % ENTRIES
}

/// Returns the table of `level` that decides about `address`, making those that are missing.
fn table_for(
    root: PhysAddr,
    address: u64,
    level: u32,
    source: &mut dyn TableSource,
) -> Result<PhysAddr, NoTable> {
    let mut table = root;
    for above in (level + 1..=4).rev() {
        let entry = slot(table, index(address, above));
        let mut value = entry.load(Ordering::Relaxed);
        if value & PRESENT == 0 {
            value = source.table_frame()?.as_u64() | PRESENT | WRITABLE;
            // Release: the zeroed table is visible before the entry that leads to it.
            entry.store(value, Ordering::Release);
        }
        debug_assert_eq!(value & LARGE, 0, "a large page is in the way at {address:#x}");
        table = PhysAddr::new(value & ADDRESS);
    }
    Ok(table)
}

/// Writes one entry.
fn map_one(
    root: PhysAddr,
    virt: u64,
    phys: u64,
    size: PageSize,
    protection: Protection,
    source: &mut dyn TableSource,
) -> Result<(), NoTable> {
    let table = table_for(root, virt, size as u32, source)?;
    let large = if size == PageSize::Page { 0 } else { LARGE };
    slot(table, index(virt, size as u32)).store(phys | large | protection.bits(), Ordering::Release);
    Ok(())
}

/// Maps a run of memory with the largest pages that fit.
fn map_run(
    root: PhysAddr,
    base: u64,
    run: Run,
    protection: Protection,
    source: &mut dyn TableSource,
) -> Result<(), NoTable> {
    let gib_pages = cpu::features().contains(Features::GIB_PAGES);
    let mut at = run.start.next_multiple_of(PAGE_BYTES);
    let end = run.end & !(PAGE_BYTES - 1);
    while at < end {
        let fits = |size: PageSize| at.is_multiple_of(size.bytes()) && at + size.bytes() <= end;
        let size = match () {
            () if gib_pages && fits(PageSize::Pud) => PageSize::Pud,
            () if fits(PageSize::Pmd) => PageSize::Pmd,
            () => PageSize::Page,
        };
        map_one(root, base + at, at, size, protection, source)?;
        at += size.bytes();
    }
    Ok(())
}

/// A kernel stack's place, as [`build`] makes the first one.
#[derive(Clone, Copy, Debug)]
pub struct FirstStack {
    /// Lowest mapped address.
    pub bottom: u64,
    /// Bytes mapped.
    pub bytes: u64,
}

/// Builds the kernel's tables and returns their root. The loader's stay in use.
///
/// # Errors
/// The early memory is too small.
pub fn build(memory: &mut EarlyMemory, stack: FirstStack) -> Result<PhysAddr, NoTable> {
    let root = memory.table_frame()?;
    for run in memory.ram().clone().as_slice() {
        map_run(root, WINDOW_BASE, *run, Protection::ReadWrite, memory)?;
    }
    map_image(root, memory)?;
    for base in [STACKS_BASE, HEAP_BASE, DEVICES_BASE] {
        table_for(root, base, 3, memory)?;
    }
    for page in (stack.bottom..stack.bottom + stack.bytes).step_by(to_usize(PAGE_BYTES)) {
        let frame = memory.alloc_pages(1)?;
        map_one(
            root,
            page,
            frame.as_u64(),
            PageSize::Page,
            Protection::ReadWrite,
            memory,
        )?;
    }
    ROOT.store(root.as_u64(), Ordering::Release);
    Ok(root)
}

/// Maps the image segment by segment, each with its rights, at the frames where the loader put it.
fn map_image(root: PhysAddr, memory: &mut EarlyMemory) -> Result<(), NoTable> {
    let loader = PhysAddr::new(cpu::read_cr3());
    for segment in segments()
        .iter()
        .filter(|segment| segment.p_type == PT_LOAD || segment.p_type == PT_GNU_RELRO)
    {
        let protection = match segment.p_type {
            // Written by nobody: the image is linked to its place.
            PT_GNU_RELRO => Protection::Read,
            _ if segment.p_flags & PF_X != 0 => Protection::ReadExecute,
            _ if segment.p_flags & PF_W != 0 => Protection::ReadWrite,
            _ => Protection::Read,
        };
        let mut page = segment.p_vaddr & !(PAGE_BYTES - 1);
        let end = match segment.p_type {
            // A page that data share with it stays writable.
            PT_GNU_RELRO => (segment.p_vaddr + segment.p_memsz) & !(PAGE_BYTES - 1),
            _ => segment.p_vaddr + segment.p_memsz,
        };
        while page < end {
            if let Some(frame) = translate_in(loader, VirtAddr::new(page)) {
                map_one(root, page, frame.as_u64(), PageSize::Page, protection, memory)?;
            }
            page += PAGE_BYTES;
        }
    }
    Ok(())
}

/// The image's program headers, which are part of its first segment. Relro comes after the segments it narrows.
fn segments() -> SegmentTable<'static, LittleEndian> {
    /// Size of an ELF identification and of a 64-bit header.
    const IDENT_BYTES: usize = 16;
    const HEADER_BYTES: usize = 64;
    let base = core::ptr::with_exposed_provenance::<u8>(to_usize(IMAGE_BASE));
    // SAFETY: the linker puts the file's first page, with its headers, at the start of the image.
    let page = unsafe { core::slice::from_raw_parts(base, to_usize(PAGE_BYTES)) };
    let ident = (LittleEndian, Class::ELF64, 0, 0);
    let header = FileHeader::parse_tail(ident, &page[IDENT_BYTES..HEADER_BYTES]);
    let header = header.expect("invariant: the kernel was loaded from a valid ELF file");
    let start = to_usize(header.e_phoff);
    let end = start + usize::from(header.e_phnum) * usize::from(header.e_phentsize);
    SegmentTable::new(LittleEndian, Class::ELF64, &page[start..end])
}

/// Calls `visit` with every mapping of the image: first address, end, protection bits (writable, executable).
pub fn for_each_image_segment(visit: &mut dyn FnMut(u64, u64, bool, bool)) {
    for segment in segments().iter().filter(|segment| segment.p_type == PT_LOAD) {
        let (writable, executable) = (segment.p_flags & PF_W != 0, segment.p_flags & PF_X != 0);
        visit(
            segment.p_vaddr,
            segment.p_vaddr + segment.p_memsz,
            writable,
            executable,
        );
    }
}

/// Switches to the kernel's tables and to another stack, and never comes back.
///
/// # Safety
/// `root` must come from [`build`], `stack_top` be the end of a stack that it maps.
pub unsafe fn switch_to(root: PhysAddr, stack_top: u64, go_on: extern "C" fn() -> !) -> ! {
    // SAFETY: the caller vouches for both; code and data stay where they are.
    unsafe {
        asm!(
            "mov cr3, {root}",
            "mov rsp, {stack}",
            "xor ebp, ebp",
            "call {go_on}",
            root = in(reg) root.as_u64(),
            stack = in(reg) stack_top,
            go_on = in(reg) go_on,
            options(noreturn)
        );
    }
}

/// Maps one page of the stack or heap area to a frame.
///
/// # Errors
/// No frame could be had for a table; nothing changed.
pub fn map_kernel_page(virt: VirtAddr, frame: Pfn, size: PageSize) -> Result<(), NoTable> {
    debug_assert!((STACKS_BASE..DEVICES_BASE).contains(&virt.as_u64()));
    let _changing = TABLES.lock();
    map_one(
        kernel_root(),
        virt.as_u64(),
        frame.start().as_u64(),
        size,
        Protection::ReadWrite,
        &mut FromMm,
    )
}

/// Takes a 4 KiB mapping away and returns its frame, or `None` if there was none. When it returns, this CPU has
/// dropped the translation.
pub fn unmap_kernel_page(virt: VirtAddr) -> Option<Pfn> {
    let _changing = TABLES.lock();
    let walk = walk(kernel_root(), virt.as_u64());
    let entry = walk
        .last()
        .filter(|step| step.level == 1 && step.value & PRESENT != 0)?;
    slot(entry.table, index(virt.as_u64(), 1)).store(0, Ordering::Release);
    flush_page(virt);
    Pfn::containing(PhysAddr::new(entry.value & ADDRESS))
}

/// Drops this CPU's translation of one page.
pub fn flush_page(virt: VirtAddr) {
    // SAFETY: only drops a cached translation.
    unsafe { asm!("invlpg [{}]", in(reg) virt.as_u64(), options(nostack, preserves_flags)) };
}

/// Drops this CPU's translations of the lower half.
pub fn flush_user() {
    let root = PhysAddr::new(cpu::read_cr3());
    // SAFETY: the table in use stays in use; the write drops everything that is not global.
    unsafe { cpu::write_cr3(root) };
}

/// Maps a page of device registers and returns where.
///
/// # Errors
/// The early memory is too small.
pub fn map_device(frame: PhysAddr, memory: &mut EarlyMemory) -> Result<VirtAddr, NoTable> {
    let _changing = TABLES.lock();
    let virt = NEXT_DEVICE.fetch_add(PAGE_BYTES, Ordering::Relaxed);
    let start = frame.as_u64() & !(PAGE_BYTES - 1);
    map_one(
        kernel_root(),
        virt,
        start,
        PageSize::Page,
        Protection::Device,
        memory,
    )?;
    Ok(VirtAddr::new(virt + (frame.as_u64() - start)))
}

/// Writes the upper half of the kernel's root into another root.
///
/// # Safety
/// `root` must be a top-level table of the caller, not in use on any CPU.
pub unsafe fn copy_kernel_half(root: Pfn) {
    for entry in ENTRIES / 2..ENTRIES {
        let value = slot(kernel_root(), entry).load(Ordering::Relaxed);
        // Release: with the root, everything it leads to is visible.
        slot(root.start(), entry).store(value, Ordering::Release);
    }
}

/// One step of a walk.
#[derive(Clone, Copy, Debug)]
struct Step {
    level: u32,
    table: PhysAddr,
    value: u64,
}

/// A walk from the root: up to four steps, ending at a page or at nothing.
#[derive(Clone, Copy, Debug)]
struct Walk {
    steps: [Option<Step>; 4],
}

impl Walk {
    fn iter(&self) -> impl Iterator<Item = Step> {
        self.steps.iter().flatten().copied()
    }

    fn last(&self) -> Option<Step> {
        self.iter().last()
    }
}

fn walk(root: PhysAddr, address: u64) -> Walk {
    let mut walk = Walk { steps: [None; 4] };
    let mut table = root;
    for (step, level) in walk.steps.iter_mut().zip((1..=4).rev()) {
        let value = slot(table, index(address, level)).load(Ordering::Acquire);
        *step = Some(Step { level, table, value });
        if value & PRESENT == 0 || value & LARGE != 0 {
            break;
        }
        table = PhysAddr::new(value & ADDRESS);
    }
    walk
}

/// Returns where `virt` leads by the table at `root`.
fn translate_in(root: PhysAddr, virt: VirtAddr) -> Option<PhysAddr> {
    let last = walk(root, virt.as_u64())
        .last()
        .filter(|step| step.value & PRESENT != 0)?;
    let offset_bits = (1_u64 << shift(last.level)) - 1;
    Some(PhysAddr::new(
        (last.value & ADDRESS & !offset_bits) | (virt.as_u64() & offset_bits),
    ))
}

/// Returns where `virt` leads by the table in use, or `None` if nowhere.
#[must_use]
pub fn translate(virt: VirtAddr) -> Option<PhysAddr> {
    translate_in(PhysAddr::new(cpu::read_cr3()), virt)
}

/// What the table in use allows at an address of the kernel.
#[must_use]
pub fn rights(virt: VirtAddr) -> Option<(bool, bool)> {
    let walk = walk(PhysAddr::new(cpu::read_cr3()), virt.as_u64());
    let present = walk.last().is_some_and(|step| step.value & PRESENT != 0);
    let writable = walk.iter().all(|step| step.value & WRITABLE != 0);
    let executable = walk.iter().all(|step| step.value & NO_EXECUTE == 0);
    present.then_some((writable, executable))
}

/// Writes the walk of `address` by the table in use, one line a level.
///
/// # Errors
/// The sink's.
pub fn write_walk(sink: &mut dyn Write, address: u64) -> fmt::Result {
    const NAMES: [&str; 5] = ["", "pte", "pmd", "pud", "pgd"];
    for step in walk(PhysAddr::new(cpu::read_cr3()), address).iter() {
        let Step { level, table, value } = step;
        let position = index(address, level);
        write!(
            sink,
            "  {}[{position:3}] at {:#014x} = {value:#018x}",
            NAMES[level as usize],
            table.as_u64()
        )?;
        let described = [
            (PRESENT, "present"),
            (WRITABLE, "writable"),
            (1 << 2, "user"),
            (UNCACHED, "uncached"),
            (1 << 5, "accessed"),
            (1 << 6, "dirty"),
            (NO_EXECUTE, "no-execute"),
        ];
        for (_, name) in described.iter().filter(|(bit, _)| value & bit != 0) {
            write!(sink, " {name}")?;
        }
        let large = level > 1 && value & LARGE != 0;
        writeln!(
            sink,
            "{}{}",
            if value & PRESENT == 0 { " not present" } else { "" },
            if large { " large" } else { "" }
        )?;
    }
    Ok(())
}

/// What [`for_each_owned`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owned {
    /// A frame mapped as stack or heap, and how much it maps.
    Mapped(PageSize),
    /// A table below the top two levels.
    Table,
}

/// Calls `visit` with every frame that the stack and heap areas use: the mapped ones and the tables that map them.
/// Nobody changes the areas meanwhile.
pub fn for_each_owned(visit: &mut dyn FnMut(Pfn, Owned)) {
    let _unchanged = TABLES.lock();
    for base in [STACKS_BASE, HEAP_BASE] {
        let root_entry = slot(kernel_root(), index(base, 4)).load(Ordering::Acquire);
        visit_table(PhysAddr::new(root_entry & ADDRESS), 3, visit);
    }
}

fn visit_table(table: PhysAddr, level: u32, visit: &mut dyn FnMut(Pfn, Owned)) {
    for entry in 0..ENTRIES {
        let value = slot(table, entry).load(Ordering::Acquire);
        let Some(pfn) = Pfn::containing(PhysAddr::new(value & ADDRESS)).filter(|_| value & PRESENT != 0)
        else {
            continue;
        };
        match level {
            1 => visit(pfn, Owned::Mapped(PageSize::Page)),
            2 if value & LARGE != 0 => visit(pfn, Owned::Mapped(PageSize::Pmd)),
            _ => {
                visit(pfn, Owned::Table);
                visit_table(pfn.start(), level - 1, visit);
            }
        }
    }
}

const _: () =
    assert!(STACKS_BASE.is_multiple_of(ROOT_ENTRY_BYTES) && HEAP_BASE.is_multiple_of(ROOT_ENTRY_BYTES));
const _: () = assert!(PageSize::Pmd.bytes() == PMD_SIZE && PageSize::Pud.bytes() == GIB);
