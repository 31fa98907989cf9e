//! Fills a new address space with a program.

use alloc::{boxed::Box, sync::Arc};
use core::arch::x86_64::__cpuid;

use linux_abi::errno::Errno;
use mm::{
    Access, MapError, MapRequest, PAGE_BYTES, Place as MapPlace, Prot, VirtAddr, VirtRange, VmFault, VmaFlags,
};

use super::{
    ExecError,
    elf::{self, Image, Segment},
    stack::{Facts, InitialStack, STACK_LIMIT},
};
use crate::{
    arch::{fpu, trap::TrapFrame},
    heap,
    platform::mm,
    random,
    task::{process::CurrentViewer, space::Space},
    vfs::{
        self,
        tree::{Kind, LastLink, Place},
    },
};

/// Address space kept free below the stack's top: Linux's least distance to the first mapping.
const STACK_RESERVE: u64 = 128 << 20;
/// Room for a signal's frame beside the processor's extended state.
const SIGNAL_FRAME: u64 = 1024;

/// A program that is ready to run.
#[derive(Debug)]
pub struct Program {
    /// Its memory.
    pub space: Space,
    /// The registers it begins with.
    pub frame: TrapFrame,
    /// The path it was started by.
    pub path: Box<[u8]>,
    /// Where its file is, from the root.
    pub exe: Box<[u8]>,
    /// Its arguments, each ended by NUL.
    pub cmdline: Arc<Box<[u8]>>,
}

/// Makes the program at `path` ready to run. Paths begin at the root.
///
/// # Errors
/// See [`ExecError`]; all memory is given back.
///
/// # Context
/// May wait.
pub fn load(path: &[u8], argv: &[&[u8]], env: &[&[u8]]) -> Result<Program, ExecError> {
    load_at(Place::ROOT, path, argv, env)
}

/// As [`load`], for a path that begins at `start` unless it begins with `/`.
///
/// # Errors
/// See [`ExecError`]; all memory is given back.
///
/// # Context
/// May wait.
pub fn load_at(start: Place, path: &[u8], argv: &[&[u8]], env: &[&[u8]]) -> Result<Program, ExecError> {
    let (place, file) = find(start, path).map_err(ExecError::Path)?;
    Ok(Program {
        exe: vfs::root().path_of(place),
        ..load_file(file, path, argv, env)?
    })
}

/// Makes the program in `file` ready to run; `path` is what it is told that it was started by.
///
/// # Errors
/// See [`ExecError`]; all memory is given back.
///
/// # Context
/// May wait.
pub fn load_file(file: &[u8], path: &[u8], argv: &[&[u8]], env: &[&[u8]]) -> Result<Program, ExecError> {
    let image = elf::parse(file, mm().nr_managed_pages() * PAGE_BYTES)?;
    let mut own_random = [0; 16];
    random::fill(&mut own_random);
    let facts = Facts {
        image: &image,
        path,
        hwcap: u64::from(__cpuid(1).edx),
        // Nothing that the kernel would have to enable is.
        hwcap2: 0,
        min_signal_stack: fpu::state_bytes() as u64 + SIGNAL_FRAME,
        random: own_random,
    };
    let stack = InitialStack::build(argv, env, &facts)?;
    let mut cmdline = heap::try_vec(argv.iter().map(|arg| arg.len() + 1).sum())?;
    cmdline.extend(argv.iter().flat_map(|arg| arg.iter().chain(&[0])));
    heap::reserve(2 * path.len())?;

    let space = Space::new().map_err(|_| ExecError::NoMemory)?;
    for segment in &image.segments {
        map_segment(&space, segment, file)?;
    }
    map_stack(&space, &image, &stack)?;
    set_code_bounds(&space, &image);
    space.set_brk_base(image.brk);
    space.set_limit(mm::Limit::Stack, STACK_LIMIT);
    space.set_mmap_top(VirtAddr::new(InitialStack::TOP - STACK_RESERVE));
    Ok(Program {
        frame: TrapFrame::new_user(image.entry, stack.pointer()),
        space,
        path: path.into(),
        exe: path.into(),
        cmdline: Arc::new(cmdline.into()),
    })
}

/// Tells the space where the instructions are: what `/proc/PID/status` calls VmExe.
fn set_code_bounds(space: &Space, image: &Image) {
    let code = || {
        image
            .segments
            .iter()
            .filter(|segment| segment.prot.contains(Prot::EXEC))
    };
    let (first, last) = (
        code().map(|segment| segment.pages.start()).min(),
        code().map(|segment| segment.pages.end()).max(),
    );
    if let (Some(start), Some(end)) = (first, last) {
        space.set_code_bounds(start, end);
    }
}

/// The bytes of the program file at `path`.
fn find(start: Place, path: &[u8]) -> Result<(Place, &'static [u8]), Errno> {
    let tree = vfs::root();
    let place = tree.walk(start, path, LastLink::Follow, &CurrentViewer)?;
    let node = tree.node(place.node);
    match node.kind() {
        Kind::Regular(bytes) if node.attributes().mode & 0o111 != 0 => Ok((place, bytes)),
        _ => Err(Errno::EACCES),
    }
}

fn map_segment(space: &Space, segment: &Segment, file: &[u8]) -> Result<(), ExecError> {
    // Writable while it is filled; no other thread sees it.
    map(space, segment.pages, Prot::READ | Prot::WRITE, VmaFlags::empty())?;
    let bytes = &file[segment.file_start..segment.file_end];
    fill(space, segment.pages.start(), bytes)?;
    mm().mprotect(space, segment.pages, segment.prot)
        .map_err(map_error)
}

fn map_stack(space: &Space, image: &Image, stack: &InitialStack) -> Result<(), ExecError> {
    map(space, stack.pages(), image.stack_prot, VmaFlags::GROWSDOWN)?;
    fill(space, stack.pointer(), stack.bytes())
}

fn map(space: &Space, pages: VirtRange, prot: Prot, flags: VmaFlags) -> Result<(), ExecError> {
    let request = MapRequest {
        hint: pages.start().as_u64(),
        len: pages.bytes(),
        prot,
        place: MapPlace::Fixed,
        flags,
    };
    mm().mmap(space, request).map(|_| ()).map_err(map_error)
}

/// Everything was checked before, so whatever goes wrong now is for want of memory.
fn map_error(_: MapError) -> ExecError {
    ExecError::NoMemory
}

/// Copies `bytes` to `addr` of a space that does not run.
fn fill(space: &Space, addr: VirtAddr, bytes: &[u8]) -> Result<(), ExecError> {
    let mut addr = addr;
    let mut rest = bytes;
    while !rest.is_empty() {
        let mut done = 0;
        mm().with_user_page(space, addr, Access::Write, &mut |mut page| {
            done = page.write(rest)
        })
        .map_err(|_: VmFault| ExecError::NoMemory)?;
        rest = &rest[done..];
        addr += done as u64;
    }
    Ok(())
}
