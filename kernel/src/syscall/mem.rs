//! Memory: `mmap`, `munmap`, `mprotect`, `mremap`, `madvise`, `brk`.
//!
//! Only private anonymous memory exists. The checks here are those that Linux makes before it looks at the areas; the
//! rest is `mm`'s.

use linux_abi::{errno::Errno, raw::general as abi};
use mm::{
    Access, Advice, Destination, Locking, MapRequest, PAGE_BYTES, Place, Prot, Remains, Remap, USER_END,
    VirtAddr, VirtRange, VmaFlags,
};

use super::{Call, Result, unsupported};
use crate::{platform::mm, task::space::Space};

/// Bits of `prot` that mean rights.
const PROT_RIGHTS: u32 = abi::PROT_READ | abi::PROT_WRITE | abi::PROT_EXEC;
/// Flags that need nothing done: all memory is like that here, or Linux ignores them too.
const FLAGS_IGNORED: u32 = abi::MAP_STACK | abi::MAP_NONBLOCK | abi::MAP_DENYWRITE | abi::MAP_EXECUTABLE;
/// Flags that are done.
const FLAGS_DONE: u32 = abi::MAP_TYPE
    | abi::MAP_ANONYMOUS
    | abi::MAP_FIXED
    | abi::MAP_FIXED_NOREPLACE
    | abi::MAP_GROWSDOWN
    | abi::MAP_NORESERVE
    | abi::MAP_LOCKED
    | abi::MAP_POPULATE;

pub(super) fn space(call: &Call<'_>) -> core::result::Result<Space, Errno> {
    // A process that makes a system call has not ended.
    call.process().space().ok_or(Errno::ENOMEM)
}

/// The error of an operation of `mm`.
pub(super) fn errno(error: impl Into<mm::Errno>) -> Errno {
    match error.into() {
        mm::Errno::NoEnt => Errno::ENOENT,
        mm::Errno::Io => Errno::EIO,
        mm::Errno::Again => Errno::EAGAIN,
        mm::Errno::NoMem => Errno::ENOMEM,
        mm::Errno::Access => Errno::EACCES,
        mm::Errno::Fault => Errno::EFAULT,
        mm::Errno::Busy => Errno::EBUSY,
        mm::Errno::Exist => Errno::EEXIST,
        mm::Errno::Inval => Errno::EINVAL,
        mm::Errno::NoSys => Errno::ENOSYS,
    }
}

/// The rights in `prot`; other bits are not rights.
fn rights(prot: u32) -> Prot {
    let mut rights = Prot::empty();
    rights.set(Prot::READ, prot & abi::PROT_READ != 0);
    rights.set(Prot::WRITE, prot & abi::PROT_WRITE != 0);
    rights.set(Prot::EXEC, prot & abi::PROT_EXEC != 0);
    rights
}

/// `mmap(addr, len, prot, flags, fd, offset)`.
pub(super) fn mmap(call: &Call<'_>) -> Result {
    let [addr, len, offset] = [call.raw(0), call.raw(1), call.raw(5)];
    let (prot, flags) = (call.uint(2), call.uint(3));
    if offset % PAGE_BYTES != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & abi::MAP_ANONYMOUS == 0 {
        call.file(4)?;
        return unsupported!(Errno::ENODEV, "mmap of a file");
    }
    if flags & abi::MAP_HUGETLB != 0 {
        return unsupported!(
            Errno::ENOMEM,
            "mmap with MAP_HUGETLB: no page is set aside for it"
        );
    }
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    match flags & abi::MAP_TYPE {
        abi::MAP_PRIVATE => {}
        abi::MAP_SHARED | abi::MAP_SHARED_VALIDATE => {
            return unsupported!(Errno::ENODEV, "mmap with MAP_SHARED: there is no shared memory");
        }
        _ => return Err(Errno::EINVAL),
    }
    let unknown = flags & !(FLAGS_DONE | FLAGS_IGNORED);
    if unknown & abi::MAP_32BIT != 0 {
        return unsupported!(Errno::ENOMEM, "mmap with MAP_32BIT");
    }
    // Linux ignores flags it does not know in private mappings.
    map_anonymous(&space(call)?, addr, len, rights(prot), flags)
}

fn map_anonymous(space: &Space, addr: u64, len: u64, prot: Prot, flags: u32) -> Result {
    let len = len
        .checked_next_multiple_of(PAGE_BYTES)
        .filter(|&len| len <= USER_END)
        .ok_or(Errno::ENOMEM)?;
    let place = if flags & abi::MAP_FIXED_NOREPLACE != 0 {
        Place::FixedNoReplace
    } else if flags & abi::MAP_FIXED != 0 {
        Place::Fixed
    } else {
        Place::Hint
    };
    let hint = match place {
        Place::Hint => addr,
        Place::Fixed | Place::FixedNoReplace if !addr.is_multiple_of(PAGE_BYTES) => {
            return Err(Errno::EINVAL);
        }
        Place::Fixed | Place::FixedNoReplace => addr,
    };
    if place != Place::Hint && VirtRange::user(hint, len).is_none() {
        return Err(Errno::ENOMEM);
    }
    let mut area_flags = VmaFlags::empty();
    area_flags.set(VmaFlags::GROWSDOWN, flags & abi::MAP_GROWSDOWN != 0);
    area_flags.set(VmaFlags::NORESERVE, flags & abi::MAP_NORESERVE != 0);
    area_flags.set(VmaFlags::LOCKED, flags & abi::MAP_LOCKED != 0);
    let start = mm()
        .mmap(
            space,
            MapRequest {
                hint,
                len,
                prot,
                place,
                flags: area_flags,
            },
        )
        .map_err(errno)?;
    if flags & abi::MAP_POPULATE != 0
        && flags & abi::MAP_NONBLOCK == 0
        && let Some(range) = VirtRange::user(start.as_u64(), len)
    {
        populate(space, range, prot);
    }
    Ok(start.as_u64())
}

/// Faults every page in. As on Linux the mapping stands whether this succeeds or not.
fn populate(space: &Space, range: VirtRange, prot: Prot) {
    let access = match prot {
        _ if prot.contains(Prot::WRITE) => Access::Write,
        _ if prot.contains(Prot::READ) => Access::Read,
        _ if prot.contains(Prot::EXEC) => Access::Exec,
        _ => return,
    };
    // What is missing comes by page faults later.
    let _ = mm().populate(space, range, access);
}

/// `munmap(addr, len)`.
pub(super) fn munmap(call: &Call<'_>) -> Result {
    let range = VirtRange::user(call.raw(0), call.raw(1)).ok_or(Errno::EINVAL)?;
    let space = space(call)?;
    mm().munmap(&space, range).map_err(errno)?;
    Ok(0)
}

/// `mprotect(addr, len, prot)`.
pub(super) fn mprotect(call: &Call<'_>) -> Result {
    let (addr, len, prot) = (call.raw(0), call.raw(1), call.uint(2));
    let grows = prot & (abi::PROT_GROWSDOWN | abi::PROT_GROWSUP);
    if grows == abi::PROT_GROWSDOWN | abi::PROT_GROWSUP || addr % PAGE_BYTES != 0 {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    // A length that wraps, or reaches past user space, names memory that is not mapped.
    let range = VirtRange::user(addr, len).ok_or(Errno::ENOMEM)?;
    if prot & !(PROT_RIGHTS | abi::PROT_SEM | grows) != 0 {
        return Err(Errno::EINVAL);
    }
    if grows != 0 {
        return unsupported!(Errno::EINVAL, "mprotect with PROT_GROWSDOWN or PROT_GROWSUP");
    }
    let space = space(call)?;
    mm().mprotect(&space, range, rights(prot)).map_err(errno)?;
    Ok(0)
}

/// `mremap(addr, old_len, new_len, flags, new_addr)`.
pub(super) fn mremap(call: &Call<'_>) -> Result {
    const KNOWN: u64 = (abi::MREMAP_MAYMOVE | abi::MREMAP_FIXED | abi::MREMAP_DONTUNMAP) as u64;
    let [addr, old_len, new_len, flags, new_addr, _] = [0, 1, 2, 3, 4, 5].map(|index| call.raw(index));
    let has = |flag: u32| flags & u64::from(flag) != 0;
    let must_move = has(abi::MREMAP_FIXED) || has(abi::MREMAP_DONTUNMAP);
    if flags & !KNOWN != 0 || (must_move && !has(abi::MREMAP_MAYMOVE)) {
        return Err(Errno::EINVAL);
    }
    let destination = match (has(abi::MREMAP_FIXED), must_move, has(abi::MREMAP_MAYMOVE)) {
        (true, ..) => Destination::Fixed(new_addr),
        (false, true, _) => Destination::Hint(new_addr),
        (false, false, true) => Destination::Anywhere,
        (false, false, false) => Destination::Stay,
    };
    let remains = if has(abi::MREMAP_DONTUNMAP) {
        Remains::EmptyArea
    } else {
        Remains::Nothing
    };
    let request = Remap {
        addr,
        old_len,
        new_len,
        destination,
        remains,
    };
    let space = space(call)?;
    let start = mm().mremap(&space, request).map_err(errno)?;
    Ok(start.as_u64())
}

/// What `madvise` is told. Advice about KSM, broken memory, shared memory and collapsing is refused as by a Linux that
/// was built without them.
fn advice(number: u32) -> Option<Advice> {
    Some(match number {
        abi::MADV_NORMAL => Advice::Normal,
        abi::MADV_RANDOM => Advice::Random,
        abi::MADV_SEQUENTIAL => Advice::Sequential,
        abi::MADV_WILLNEED => Advice::WillNeed,
        abi::MADV_DONTNEED => Advice::DontNeed,
        abi::MADV_DONTNEED_LOCKED => Advice::DontNeedLocked,
        abi::MADV_FREE => Advice::Free,
        abi::MADV_COLD => Advice::Cold,
        abi::MADV_PAGEOUT => Advice::PageOut,
        abi::MADV_POPULATE_READ => Advice::PopulateRead,
        abi::MADV_POPULATE_WRITE => Advice::PopulateWrite,
        abi::MADV_HUGEPAGE => Advice::HugePage,
        abi::MADV_NOHUGEPAGE => Advice::NoHugePage,
        abi::MADV_DONTFORK => Advice::DontFork,
        abi::MADV_DOFORK => Advice::DoFork,
        abi::MADV_WIPEONFORK => Advice::WipeOnFork,
        abi::MADV_KEEPONFORK => Advice::KeepOnFork,
        abi::MADV_DONTDUMP => Advice::DontDump,
        abi::MADV_DODUMP => Advice::DoDump,
        _ => return None,
    })
}

/// `madvise(addr, len, advice)`.
pub(super) fn madvise(call: &Call<'_>) -> Result {
    let (addr, len) = (call.raw(0), call.raw(1));
    let Some(advice) = advice(call.uint(2)) else {
        return unsupported!(Errno::EINVAL, "madvise with advice {}", call.uint(2));
    };
    if addr % PAGE_BYTES != 0 {
        return Err(Errno::EINVAL);
    }
    let rounded = len.checked_next_multiple_of(PAGE_BYTES).ok_or(Errno::EINVAL)?;
    addr.checked_add(rounded).ok_or(Errno::EINVAL)?;
    if rounded == 0 {
        return Ok(0);
    }
    let range = VirtRange::user(addr, rounded).ok_or(Errno::ENOMEM)?;
    let space = space(call)?;
    let populates = matches!(advice, Advice::PopulateRead | Advice::PopulateWrite);
    mm().madvise(&space, range, advice).map_err(|error| match error {
        // Advice can wait: Linux tells a shortage of its own from a hole in the range.
        mm::MapError::NoMemory(_) | mm::MapError::NoSpace if !populates => Errno::EAGAIN,
        other => errno(other),
    })?;
    Ok(0)
}

/// The pages that `mlock` and relatives mean: from the one around `addr` to the one in which `len` bytes end, cut off
/// where user space ends. As on Linux a length that wraps when it is rounded up means none.
fn pages_around(addr: u64, len: u64) -> core::result::Result<Option<VirtRange>, Errno> {
    let start = addr & !(PAGE_BYTES - 1);
    let len = len.wrapping_add(addr - start).wrapping_add(PAGE_BYTES - 1) & !(PAGE_BYTES - 1);
    let end = start.checked_add(len).ok_or(Errno::EINVAL)?;
    if len == 0 {
        return Ok(None);
    }
    let end = end.min(USER_END);
    VirtRange::user(start, end.saturating_sub(start))
        .map(Some)
        .ok_or(Errno::ENOMEM)
}

fn lock(call: &Call<'_>, locking: Locking) -> Result {
    let (addr, len) = (call.raw(0), call.raw(1));
    let Some(range) = pages_around(addr, len)? else {
        return Ok(0);
    };
    let space = space(call)?;
    mm().mlock(&space, range, locking).map_err(errno)?;
    if range.end().as_u64() - addr < len {
        return Err(Errno::ENOMEM);
    }
    if locking == Locking::Whole {
        // POSIX: no memory for the pages is EAGAIN, no pages there is ENOMEM.
        mm().populate_areas(&space, range).map_err(|error| match error {
            mm::MapError::NoMemory(_) => Errno::EAGAIN,
            _ => Errno::ENOMEM,
        })?;
    }
    Ok(0)
}

/// `mlock(addr, len)`.
pub(super) fn mlock(call: &Call<'_>) -> Result {
    lock(call, Locking::Whole)
}

/// `mlock2(addr, len, flags)`.
pub(super) fn mlock2(call: &Call<'_>) -> Result {
    match call.uint(2) {
        0 => lock(call, Locking::Whole),
        MLOCK_ONFAULT => lock(call, Locking::OnFault),
        _ => Err(Errno::EINVAL),
    }
}

/// Of `mlock2`: nothing is faulted in.
const MLOCK_ONFAULT: u32 = 1;

/// `munlock(addr, len)`.
pub(super) fn munlock(call: &Call<'_>) -> Result {
    lock(call, Locking::Unlocked)
}

/// `mlockall(flags)`.
pub(super) fn mlockall(call: &Call<'_>) -> Result {
    let flags = call.uint(0);
    let known = abi::MCL_CURRENT | abi::MCL_FUTURE | abi::MCL_ONFAULT;
    if flags == 0 || flags & !known != 0 || flags == abi::MCL_ONFAULT {
        return Err(Errno::EINVAL);
    }
    let locking = if flags & abi::MCL_ONFAULT != 0 {
        Locking::OnFault
    } else {
        Locking::Whole
    };
    let current = (flags & abi::MCL_CURRENT != 0).then_some(locking);
    let future = if flags & abi::MCL_FUTURE != 0 {
        locking
    } else {
        Locking::Unlocked
    };
    let space = space(call)?;
    mm().mlock_all(&space, current, future).map_err(errno)?;
    if current == Some(Locking::Whole) {
        mm().populate_all_locked(&space);
    }
    Ok(0)
}

/// `munlockall()`.
pub(super) fn munlockall(call: &Call<'_>) -> Result {
    let none = Locking::Unlocked;
    mm().mlock_all(&*space(call)?, Some(none), none).map_err(errno)?;
    Ok(0)
}

/// `brk(end)`: returns the end that holds afterwards, changed or not.
pub(super) fn brk(call: &Call<'_>) -> Result {
    let space = space(call)?;
    let wanted = call.raw(0);
    // Outside user space is as good as no wish: the answer is the present end.
    let wanted = if wanted < USER_END {
        VirtAddr::new(wanted)
    } else {
        VirtAddr::zero()
    };
    Ok(mm().brk(&space, wanted).as_u64())
}
