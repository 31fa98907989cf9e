//! Descriptors: reading, writing, seeking, duplicating, polling, terminals.

use alloc::{sync::Arc, vec::Vec};

use linux_abi::{
    errno::Errno,
    raw::{general as abi, ioctl},
};
use mm::{Nanos, PAGE_SIZE};

use super::{
    Call, Result,
    fields::{Fields, words},
    time, unsupported,
    user::{UserAddr, UserSlice},
};
use crate::{
    drivers::uart,
    heap,
    vfs::{
        fd::OnExec,
        file::{self, DirectoryEntry, File, Readiness, Stat, Whence},
        tty::{self, TERMIOS_BYTES, Termios},
    },
};

/// Most bytes one call moves: Linux's `MAX_RW_COUNT`.
const RW_MAX: usize = 0x7fff_f000;
/// Most pieces of a scattered read or write.
const IOV_MAX: u64 = abi::UIO_MAXIOV as u64;
/// Bytes that are moved at a time.
const CHUNK: usize = PAGE_SIZE;

impl Call<'_> {
    /// The open file that argument `index` stands for.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn file(&self, index: usize) -> core::result::Result<Arc<File>, Errno> {
        let fd = usize::try_from(self.int(index)).map_err(|_| Errno::EBADF)?;
        self.process().files().lock().get(fd)
    }

    /// The highest descriptor that the process may have, plus one.
    fn nofile(&self) -> usize {
        let soft = self.process().limits().lock()[abi::RLIMIT_NOFILE as usize].soft;
        usize::try_from(soft).unwrap_or(usize::MAX)
    }

    /// Gives a file the lowest free descriptor.
    pub(super) fn install(&self, file: File, flags: u32) -> Result {
        let on_exec = on_exec(flags & abi::O_CLOEXEC);
        let limit = self.nofile();
        self.process()
            .files()
            .lock()
            .open(Arc::new(file), on_exec, 0, limit)
            .map(|fd| fd as u64)
    }
}

fn on_exec(close: u32) -> OnExec {
    if close == 0 { OnExec::Keep } else { OnExec::Close }
}

/// Where a read or write happens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// At the file's position, which moves on.
    Position,
    /// There, and the position stays.
    Offset(u64),
}

impl At {
    fn offset(raw: u64) -> core::result::Result<Self, Errno> {
        if i64::try_from(raw).is_ok() {
            Ok(Self::Offset(raw))
        } else {
            Err(Errno::EINVAL)
        }
    }
}

/// Reads into the program's memory. What was read before an error counts; the error is told next time.
fn read_into(file: &File, buffer: UserSlice, at: At) -> Result {
    let buffer = buffer.first(RW_MAX);
    let start = if let At::Offset(offset) = at {
        offset
    } else {
        file.position()
    };
    file.check_read(start, buffer.len())?;
    let is_stream = file.check_seekable().is_err();
    if is_stream {
        // What a stream gives it cannot take back.
        buffer.first(CHUNK).make_writable()?;
    }
    let mut chunk = [0; CHUNK];
    let mut done = 0;
    while done < buffer.len() {
        let wanted = (buffer.len() - done).min(CHUNK);
        let step = file
            .read_at(start + done as u64, &mut chunk[..wanted])
            .and_then(|count| {
                buffer.write_at(done, &chunk[..count])?;
                Ok(count)
            });
        match step {
            Ok(count) => {
                done += count;
                if at == At::Position {
                    file.advance(count);
                }
                if count < wanted || is_stream {
                    break;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done as u64)
}

/// Writes from the program's memory. What was written before an error counts.
fn write_from(file: &File, buffer: UserSlice, at: At) -> Result {
    let buffer = buffer.first(RW_MAX);
    if buffer.is_empty() {
        return file.write_nothing().map(|count| count as u64);
    }
    let mut chunk = [0; CHUNK];
    let mut done = 0;
    while done < buffer.len() {
        let wanted = (buffer.len() - done).min(CHUNK);
        let step = buffer
            .read_at(done, &mut chunk[..wanted])
            .and_then(|()| file.write(&chunk[..wanted]));
        match step {
            Ok(count) => {
                done += count;
                if at == At::Position {
                    file.advance(count);
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done as u64)
}

/// `read(fd, buffer, len)`.
pub(super) fn read(call: &Call<'_>) -> Result {
    let file = call.file(0)?;
    file.check_readable()?;
    read_into(&file, UserSlice::new(call.raw(1), call.raw(2))?, At::Position)
}

/// `write(fd, buffer, len)`.
pub(super) fn write(call: &Call<'_>) -> Result {
    let file = call.file(0)?;
    file.check_writable()?;
    write_from(&file, UserSlice::new(call.raw(1), call.raw(2))?, At::Position)
}

/// `pread64(fd, buffer, len, offset)`.
pub(super) fn pread64(call: &Call<'_>) -> Result {
    let at = At::offset(call.raw(3))?;
    let file = call.file(0)?;
    file.check_seekable()?;
    file.check_readable()?;
    read_into(&file, UserSlice::new(call.raw(1), call.raw(2))?, at)
}

/// `pwrite64(fd, buffer, len, offset)`.
pub(super) fn pwrite64(call: &Call<'_>) -> Result {
    let at = At::offset(call.raw(3))?;
    let file = call.file(0)?;
    file.check_seekable()?;
    file.check_writable()?;
    write_from(&file, UserSlice::new(call.raw(1), call.raw(2))?, at)
}

/// Reads the list of pieces of a scattered read or write, and checks all before the first is used.
pub(super) fn pieces(call: &Call<'_>) -> core::result::Result<Vec<UserSlice>, Errno> {
    let count = call.raw(2);
    if count > IOV_MAX {
        return Err(Errno::EINVAL);
    }
    let list = UserSlice::new(call.raw(1), count * 16)?;
    let mut total = 0_usize;
    let mut pieces = heap::try_vec(mm::addr::to_usize(count))?;
    for index in 0..mm::addr::to_usize(count) {
        let mut bytes = [0; 16];
        list.read_at(index * 16, &mut bytes)?;
        let [start, len] = words(bytes);
        if i64::try_from(len).is_err() {
            return Err(Errno::EINVAL);
        }
        let piece = UserSlice::new(start, len)?.first(RW_MAX - total);
        total += piece.len();
        pieces.push(piece);
    }
    Ok(pieces)
}

fn each_piece(call: &Call<'_>, file: &File, step: fn(&File, UserSlice, At) -> Result) -> Result {
    let mut done = 0;
    for piece in pieces(call)? {
        if piece.is_empty() {
            continue;
        }
        match step(file, piece, At::Position) {
            Ok(count) => {
                done += count;
                if count < piece.len() as u64 {
                    break;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// `readv(fd, pieces, count)`.
pub(super) fn readv(call: &Call<'_>) -> Result {
    let file = call.file(0)?;
    file.check_readable()?;
    if file.check_seekable().is_err() {
        // A stream gives what it has once; waiting for more with part in hand would be wrong.
        let first = pieces(call)?.into_iter().find(|piece| !piece.is_empty());
        return first.map_or(Ok(0), |piece| read_into(&file, piece, At::Position));
    }
    each_piece(call, &file, read_into)
}

/// `writev(fd, pieces, count)`.
pub(super) fn writev(call: &Call<'_>) -> Result {
    let file = call.file(0)?;
    file.check_writable()?;
    each_piece(call, &file, write_from)
}

/// `sendfile(out, in, offset, count)`.
pub(super) fn sendfile(call: &Call<'_>) -> Result {
    let source = call.file(1)?;
    source.check_readable()?;
    let target = call.file(0)?;
    target.check_writable()?;
    // A stream cannot be the source; the caller then reads and writes itself.
    source.check_seekable().map_err(|_| Errno::EINVAL)?;
    let offset = UserAddr::optional(call.raw(2))?;
    let start = match offset {
        Some(addr) => addr.read_u64()?,
        None => source.position(),
    };
    // Offsets are signed; one whose end is not one is no offset.
    let room = u64::try_from(i64::MAX)
        .unwrap_or(0)
        .checked_sub(start)
        .ok_or(Errno::EINVAL)?;
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
    let count = usize::try_from(call.raw(3))
        .map_err(|_| Errno::EINVAL)?
        .min(RW_MAX)
        .min(room);
    let sent = send(&source, &target, start, count)?;
    match offset {
        Some(addr) => addr.write(&(start + sent as u64).to_le_bytes())?,
        None => source.advance(sent),
    }
    Ok(sent as u64)
}

fn send(source: &File, target: &File, start: u64, count: usize) -> core::result::Result<usize, Errno> {
    let mut chunk = [0; CHUNK];
    let mut sent = 0;
    while sent < count {
        let wanted = (count - sent).min(CHUNK);
        let step = source
            .read_at(start + sent as u64, &mut chunk[..wanted])
            .and_then(|got| target.write(&chunk[..got]));
        match step {
            Ok(0) => break,
            Ok(written) => sent += written,
            Err(error) if sent == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(sent)
}

/// `lseek(fd, offset, whence)`.
pub(super) fn lseek(call: &Call<'_>) -> Result {
    let file = call.file(0)?;
    let whence = match call.uint(2) {
        abi::SEEK_SET => Whence::Start,
        abi::SEEK_CUR => Whence::Current,
        abi::SEEK_END => Whence::End,
        abi::SEEK_DATA | abi::SEEK_HOLE => {
            return unsupported!(Errno::EINVAL, "lseek with SEEK_DATA or SEEK_HOLE");
        }
        _ => return Err(Errno::EINVAL),
    };
    file.seek(call.raw(1).cast_signed(), whence)
}

/// `close(fd)`.
pub(super) fn close(call: &Call<'_>) -> Result {
    let fd = usize::try_from(call.int(0)).map_err(|_| Errno::EBADF)?;
    call.process().files().lock().close(fd)?;
    Ok(0)
}

/// `pipe(ends)`.
pub(super) fn pipe(call: &Call<'_>) -> Result {
    make_pipe(call, 0)
}

/// `pipe2(ends, flags)`.
pub(super) fn pipe2(call: &Call<'_>) -> Result {
    let flags = call.uint(1);
    if flags & !(abi::O_CLOEXEC | abi::O_NONBLOCK | abi::O_DIRECT) != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & abi::O_DIRECT != 0 {
        return unsupported!(Errno::EINVAL, "pipe2 with O_DIRECT");
    }
    make_pipe(call, flags)
}

fn make_pipe(call: &Call<'_>, flags: u32) -> Result {
    let close = |fd: u64| call.process().files().lock().close(mm::addr::to_usize(fd));
    let (reader, writer) = File::pipe(flags)?;
    let reader = call.install(reader, flags)?;
    let writer = call.install(writer, flags).inspect_err(|_| {
        let _ = close(reader);
    })?;
    let mut ends = [0; 8];
    // Descriptors are small.
    for (to, from) in ends.chunks_exact_mut(4).zip([reader, writer]) {
        to.copy_from_slice(&from.to_le_bytes()[..4]);
    }
    let told = UserAddr::new(call.raw(0)).and_then(|addr| addr.write(&ends));
    if let Err(error) = told {
        close(reader)?;
        close(writer)?;
        return Err(error);
    }
    Ok(0)
}

/// `dup(fd)`.
pub(super) fn dup(call: &Call<'_>) -> Result {
    duplicate_from(call, 0, OnExec::Keep)
}

/// Gives the file of argument 0 another descriptor, at least `from`.
fn duplicate_from(call: &Call<'_>, from: usize, on_exec: OnExec) -> Result {
    let file = call.file(0)?;
    let limit = call.nofile();
    call.process()
        .files()
        .lock()
        .open(file, on_exec, from, limit)
        .map(|fd| fd as u64)
}

fn duplicate_to(call: &Call<'_>, on_exec: OnExec) -> Result {
    let file = call.file(0)?;
    let to = usize::try_from(call.int(1)).map_err(|_| Errno::EBADF)?;
    let limit = call.nofile();
    call.process()
        .files()
        .lock()
        .put(to, file, on_exec, limit)
        .map_err(|_| Errno::EBADF)?;
    Ok(to as u64)
}

/// `dup2(fd, to)`.
pub(super) fn dup2(call: &Call<'_>) -> Result {
    if call.int(0) == call.int(1) {
        call.file(0)?;
        return Ok(u64::from(call.uint(0)));
    }
    duplicate_to(call, OnExec::Keep)
}

/// `dup3(fd, to, flags)`.
pub(super) fn dup3(call: &Call<'_>) -> Result {
    let flags = call.uint(2);
    if flags & !abi::O_CLOEXEC != 0 || call.int(0) == call.int(1) {
        return Err(Errno::EINVAL);
    }
    duplicate_to(call, on_exec(flags))
}

/// `fcntl(fd, command, argument)`.
pub(super) fn fcntl(call: &Call<'_>) -> Result {
    let file = call.file(0)?;
    let fd = usize::try_from(call.int(0)).map_err(|_| Errno::EBADF)?;
    match call.uint(1) {
        command @ (abi::F_DUPFD | abi::F_DUPFD_CLOEXEC) => {
            let from = usize::try_from(call.raw(2))
                .ok()
                .filter(|&from| from < call.nofile())
                .ok_or(Errno::EINVAL)?;
            duplicate_from(call, from, on_exec(u32::from(command == abi::F_DUPFD_CLOEXEC)))
        }
        abi::F_GETFD => {
            let on_exec = call.process().files().lock().on_exec(fd)?;
            Ok(u64::from(if on_exec == OnExec::Close {
                abi::FD_CLOEXEC
            } else {
                0
            }))
        }
        abi::F_SETFD => {
            let on_exec = on_exec(call.uint(2) & abi::FD_CLOEXEC);
            call.process().files().lock().set_on_exec(fd, on_exec)?;
            Ok(0)
        }
        // The kernel itself opens with O_LARGEFILE on this machine, as Linux does.
        abi::F_GETFL => Ok(u64::from(file.flags() | LARGEFILE)),
        abi::F_SETFL => {
            file.set_status_flags(call.uint(2));
            Ok(0)
        }
        other => unsupported!(Errno::EINVAL, "fcntl with command {other}"),
    }
}

/// `O_LARGEFILE` as the kernel numbers it; the C library's constant is 0.
const LARGEFILE: u32 = 0o100_000;

/// Flag commands that apply to any file.
fn ioctl_any(call: &Call<'_>, file: &File) -> Option<Result> {
    let fd = usize::try_from(call.int(0)).ok()?;
    let set = |on_exec| call.process().files().lock().set_on_exec(fd, on_exec).map(|()| 0);
    match call.uint(1) {
        ioctl::FIOCLEX => Some(set(OnExec::Close)),
        ioctl::FIONCLEX => Some(set(OnExec::Keep)),
        ioctl::FIONBIO => {
            let wanted = UserAddr::new(call.raw(2)).and_then(UserAddr::read_u32);
            Some(wanted.map(|wanted| {
                let others = file.flags() & !abi::O_NONBLOCK;
                file.set_status_flags(if wanted == 0 {
                    others
                } else {
                    others | abi::O_NONBLOCK
                });
                0
            }))
        }
        _ => None,
    }
}

/// `ioctl(fd, command, argument)`.
pub(super) fn ioctl(call: &Call<'_>) -> Result {
    let file = call.file(0)?;
    if let Some(result) = ioctl_any(call, &file) {
        return result;
    }
    if !file.is_terminal() {
        return Err(Errno::ENOTTY);
    }
    let argument = UserAddr::new(call.raw(2));
    match call.uint(1) {
        ioctl::TCGETS => argument?.write(&tty::termios().to_bytes())?,
        ioctl::TCSETS | ioctl::TCSETSW | ioctl::TCSETSF => {
            let bytes = argument?.read::<TERMIOS_BYTES>()?;
            tty::set_termios(Termios::from_bytes(&bytes));
        }
        // Nobody told us the size: a serial line says 0, 0, as on Linux.
        ioctl::TIOCGWINSZ => argument?.write(&[0; 8])?,
        ioctl::TIOCGPGRP => argument?.write(&call.process().pid().number().to_le_bytes())?,
        other => return unsupported!(Errno::ENOTTY, "ioctl {other:#x} on a terminal"),
    }
    Ok(0)
}

/// `struct stat`.
pub(super) fn stat_bytes(stat: &Stat) -> [u8; 144] {
    const { assert!(size_of::<abi::stat>() == 144) }
    Fields::new()
        .u64(ROOT_DEVICE)
        .u64(stat.ino)
        .u64(stat.nlink)
        .u32(stat.mode)
        .u32(stat.uid)
        .u32(stat.gid)
        .pad(4)
        .u64(encode_device(stat.rdev))
        .u64(stat.size)
        .u64(PAGE_SIZE as u64)
        .u64(stat.size.div_ceil(512))
        .u64(stat.mtime)
        .u64(0)
        .u64(stat.mtime)
        .u64(0)
        .u64(stat.mtime)
        .u64(0)
        .done()
}

/// Number of the device that the root lies on.
const ROOT_DEVICE: u64 = 1;

/// A device number as `stat` has it.
fn encode_device((major, minor): (u32, u32)) -> u64 {
    let (major, minor) = (u64::from(major), u64::from(minor));
    minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12 | (major & !0xfff) << 32
}

/// `fstat(fd, stat)`.
pub(super) fn fstat(call: &Call<'_>) -> Result {
    let stat = call.file(0)?.stat();
    UserAddr::new(call.raw(1))?.write(&stat_bytes(&stat))?;
    Ok(0)
}

/// `getdents64(fd, buffer, len)`.
pub(super) fn getdents64(call: &Call<'_>) -> Result {
    let file = call.file(0)?;
    let buffer = UserSlice::new(call.raw(1), u64::from(call.uint(2)))?;
    let mut done = 0;
    let first = file.position();
    for (entry, next) in file.entries()?.iter().zip(first + 1..) {
        let record = directory_record(entry, next);
        if done + record.len() > buffer.len() {
            return if done == 0 {
                Err(Errno::EINVAL)
            } else {
                Ok(done as u64)
            };
        }
        match buffer.write_at(done, &record) {
            Ok(()) => {}
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
        done += record.len();
        file.advance(1);
    }
    Ok(done as u64)
}

/// `struct linux_dirent64`: a header of 19 bytes, the name, NUL, padding to 8.
fn directory_record(entry: &DirectoryEntry, next: u64) -> Vec<u8> {
    const HEADER: usize = 19;
    let len = (HEADER + entry.name.len() + 1).next_multiple_of(8);
    let mut record = Vec::with_capacity(len);
    record.extend(entry.ino.to_le_bytes());
    record.extend(next.to_le_bytes());
    // A name has at most 255 bytes.
    record.extend(u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes());
    record.push(entry.kind);
    record.extend(&entry.name);
    record.resize(len, 0);
    record
}

/// One descriptor of a poll.
struct Polled {
    fd: i32,
    events: u16,
}

impl Polled {
    const BYTES: usize = 8;

    fn read(list: UserSlice, index: usize) -> core::result::Result<Self, Errno> {
        let mut bytes = [0; Self::BYTES];
        list.read_at(index * Self::BYTES, &mut bytes)?;
        let [word] = words(bytes);
        let [f0, f1, f2, f3, e0, e1, ..] = word.to_le_bytes();
        Ok(Self {
            fd: i32::from_le_bytes([f0, f1, f2, f3]),
            events: u16::from_le_bytes([e0, e1]),
        })
    }

    /// What can be said about it now.
    fn look(&self, call: &Call<'_>) -> u16 {
        let Ok(fd) = usize::try_from(self.fd) else {
            return 0;
        };
        let Ok(file) = call.process().files().lock().get(fd) else {
            return bits(abi::POLLNVAL);
        };
        let Readiness {
            read,
            write,
            hangup,
            error,
        } = file.readiness();
        let mut found = 0;
        let mut always = 0;
        if hangup {
            always |= bits(abi::POLLHUP);
        }
        if error {
            always |= bits(abi::POLLERR);
        }
        if read && file.check_readable().is_ok() {
            found |= bits(abi::POLLIN) | bits(abi::POLLRDNORM);
        }
        if write && file.check_writable().is_ok() {
            found |= bits(abi::POLLOUT) | bits(abi::POLLWRNORM);
        }
        found & self.events | always
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the constants of poll fit its field"
)]
const fn bits(event: u32) -> u16 {
    event as u16
}

/// `poll(list, count, milliseconds)`.
pub(super) fn poll(call: &Call<'_>) -> Result {
    let timeout = call.int(2);
    let deadline = u64::try_from(timeout)
        .ok()
        .map(|millis| time::after(Nanos(millis * 1_000_000)));
    poll_until(call, deadline)
}

/// `ppoll(list, count, timeout, mask, mask_size)`. The mask is not swapped in: no handler could run anyway.
pub(super) fn ppoll(call: &Call<'_>) -> Result {
    if call.raw(3) != 0 {
        return unsupported!(Errno::EINVAL, "ppoll with a signal mask");
    }
    let deadline = time::read_deadline(call.raw(2))?;
    poll_until(call, deadline)
}

fn poll_until(call: &Call<'_>, deadline: Option<Nanos>) -> Result {
    let count = u64::from(call.uint(1));
    if count > call.nofile() as u64 {
        return Err(Errno::EINVAL);
    }
    let list = UserSlice::new(call.raw(0), count * Polled::BYTES as u64)?;
    let mut polled = heap::try_vec(mm::addr::to_usize(count))?;
    for index in 0..mm::addr::to_usize(count) {
        polled.push(Polled::read(list, index)?);
    }
    let mut found: Vec<u16> = heap::try_vec(polled.len())?;
    loop {
        found.clear();
        found.extend(polled.iter().map(|one: &Polled| one.look(call)));
        let ready = found.iter().filter(|&&events| events != 0).count() as u64;
        let over = deadline.is_some_and(|deadline| crate::drivers::clock::now() >= deadline);
        if ready > 0 || over {
            for (index, events) in found.iter().enumerate() {
                list.write_at(index * Polled::BYTES + 6, &events.to_le_bytes())?;
            }
            return Ok(ready);
        }
        wait_for_poll(call, &polled, deadline)?;
    }
}

/// Sleeps until something polled may have changed: the terminal's input, or a pipe.
fn wait_for_poll(
    call: &Call<'_>,
    polled: &[Polled],
    deadline: Option<Nanos>,
) -> core::result::Result<(), Errno> {
    if call.process().is_interrupted() {
        return Err(Errno::EINTR);
    }
    uart::expect_input();
    file::wait_for_readiness(deadline, &mut || {
        !call.process().is_interrupted() && polled.iter().all(|one| one.look(call) == 0)
    });
    Ok(())
}
