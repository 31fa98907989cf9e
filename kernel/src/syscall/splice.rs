//! Pages of programs in pipes: `vmsplice`. What it refuses, and what its relatives refuse.
//!
//! `splice` and `tee` check as Linux does, and then say what a Linux says of files that cannot be spliced: `EINVAL`.

use linux_abi::{errno::Errno, raw::general as abi};
use mm::{Access, PAGE_SIZE};

use super::{Call, Result, file::pieces, unsupported, user::UserSlice};
use crate::{
    heap,
    platform::mm,
    task::space::Space,
    vfs::{
        file::File,
        pipe::{PinnedPage, Reader, Writer},
        tty::Wait,
    },
};

/// Flags that the three calls understand. Whether pages are given for good or moved is only a hint.
const FLAGS: u32 = abi::SPLICE_F_MOVE | abi::SPLICE_F_NONBLOCK | abi::SPLICE_F_MORE | abi::SPLICE_F_GIFT;

fn wait_of(flags: u32) -> Wait {
    if flags & abi::SPLICE_F_NONBLOCK != 0 {
        Wait::No
    } else {
        Wait::Yes
    }
}

/// `vmsplice(fd, pieces, count, flags)`: gives the pages to the pipe, or fills the pieces from it.
pub(super) fn vmsplice(call: &Call<'_>) -> Result {
    let flags = call.uint(3);
    if flags & !FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let file = call.file(0)?;
    let pieces = pieces(call)?;
    if pieces.iter().all(|piece| piece.is_empty()) {
        return Ok(0);
    }
    if let Some(writer) = file.pipe_writer() {
        let space = call.process().space().ok_or(Errno::EFAULT)?;
        writer.wait_for_buffer(wait_of(flags))?;
        give(writer, &space, &pieces)
    } else if let Some(reader) = file.pipe_reader() {
        fill(reader, &pieces, wait_of(flags))
    } else {
        Err(Errno::EBADF)
    }
}

/// Puts the pages of `pieces` into the pipe, as many as there are buffers for.
fn give(writer: &Writer, space: &Space, pieces: &[UserSlice]) -> Result {
    let mut done = 0;
    for piece in pieces {
        let mut offset = 0;
        while offset < piece.len() {
            let addr = piece.start() + offset as u64;
            let start = mm::addr::to_usize(addr.as_u64()) % PAGE_SIZE;
            let len = (PAGE_SIZE - start).min(piece.len() - offset);
            let given = mm()
                .pin_user_page(space, addr, Access::Read)
                .map_err(|_| Errno::EFAULT)
                .and_then(|pinned| writer.give_page(PinnedPage::new(pinned), start, len));
            match given {
                Ok(()) => done += len as u64,
                Err(error) if done == 0 => return Err(error),
                Err(_) => return Ok(done),
            }
            offset += len;
        }
    }
    Ok(done)
}

/// Reads into `pieces` what is in the pipe.
fn fill(reader: &Reader, pieces: &[UserSlice], wait: Wait) -> Result {
    let mut chunk = heap::try_zeroed(PAGE_SIZE)?;
    let mut wait = wait;
    let mut done = 0;
    for piece in pieces {
        let mut offset = 0;
        while offset < piece.len() {
            let wanted = (piece.len() - offset).min(PAGE_SIZE);
            // What a pipe gives it cannot take back.
            let step = piece
                .part(offset, wanted)
                .make_writable()
                .and_then(|()| reader.read(&mut chunk[..wanted], wait))
                .and_then(|count| piece.write_at(offset, &chunk[..count]).map(|()| count));
            match step {
                Ok(0) => return Ok(done),
                Ok(count) => {
                    done += count as u64;
                    offset += count;
                    wait = Wait::No;
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => return Ok(done),
            }
        }
    }
    Ok(done)
}

/// `splice(in, in_offset, out, out_offset, len, flags)`.
pub(super) fn splice(call: &Call<'_>) -> Result {
    if call.raw(4) == 0 {
        return Ok(0);
    }
    let (source, target) = checked_files(call, (0, 2), call.uint(5))?;
    let has_offset = [call.raw(1) != 0, call.raw(3) != 0];
    let is_pipe = [source.pipe_reader().is_some(), target.pipe_writer().is_some()];
    if (0..2).any(|end| has_offset[end] && is_pipe[end]) {
        return Err(Errno::ESPIPE);
    }
    unsupported!(Errno::EINVAL, "splice")
}

/// `tee(in, out, len, flags)`.
pub(super) fn tee(call: &Call<'_>) -> Result {
    let flags = call.uint(3);
    if flags & !FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    if call.raw(2) == 0 {
        return Ok(0);
    }
    let (source, target) = checked_files(call, (0, 1), flags)?;
    if source.pipe_reader().is_none() || target.pipe_writer().is_none() {
        return Err(Errno::EINVAL);
    }
    unsupported!(Errno::EINVAL, "tee")
}

/// The two files of a call, open for what is done with them.
fn checked_files(
    call: &Call<'_>,
    (source, target): (usize, usize),
    flags: u32,
) -> core::result::Result<(alloc::sync::Arc<File>, alloc::sync::Arc<File>), Errno> {
    if flags & !FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let (source, target) = (call.file(source)?, call.file(target)?);
    source.check_readable()?;
    target.check_writable()?;
    Ok((source, target))
}
