//! Pipes: what is written comes out, who waits is woken, and ends that are gone are noticed.

use std::time::{Duration, Instant};

use crate::{
    Verdict, syscall,
    tasks::{child, kill, set_disposition, status_of, wait},
};

/// Bytes that a pipe holds.
const CAPACITY: usize = 65536;

/// Both ends; closed when dropped.
pub(crate) struct Pipe([i32; 2]);

impl Pipe {
    /// The end that is read from.
    pub(crate) fn reader(&self) -> i32 {
        self.0[0]
    }

    /// The end that is written to.
    pub(crate) fn writer(&self) -> i32 {
        self.0[1]
    }

    pub(crate) fn new(flags: i32) -> Result<Self, i32> {
        let mut ends = [0_i32; 2];
        let arguments = [
            ends.as_mut_ptr().expose_provenance() as u64,
            i64::from(flags).cast_unsigned(),
            0,
            0,
            0,
            0,
        ];
        syscall(libc::SYS_pipe2, arguments)?;
        // SAFETY: written by the call above.
        Ok(Self(unsafe { (&raw const ends).read_volatile() }))
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<usize, i32> {
        transfer(
            libc::SYS_read,
            self.0[0],
            buffer.as_mut_ptr().expose_provenance(),
            buffer.len(),
        )
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> Result<usize, i32> {
        transfer(
            libc::SYS_write,
            self.0[1],
            bytes.as_ptr().expose_provenance(),
            bytes.len(),
        )
    }

    pub(crate) fn close(&mut self, end: usize) {
        // SAFETY: its own descriptor.
        unsafe { libc::close(self.0[end]) };
        self.0[end] = -1;
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.close(0);
        self.close(1);
    }
}

fn transfer(number: i64, fd: i32, start: usize, len: usize) -> Result<usize, i32> {
    let arguments = [u64::from(fd.cast_unsigned()), start as u64, len as u64, 0, 0, 0];
    syscall(number, arguments).map(|count| usize::try_from(count).unwrap_or(usize::MAX))
}

/// What a poll of one descriptor finds.
pub(crate) fn poll(fd: i32, events: i16, millis: i32) -> i16 {
    let mut list = [libc::pollfd {
        fd,
        events,
        revents: 0,
    }];
    // SAFETY: a list of one.
    unsafe { libc::poll(list.as_mut_ptr(), 1, millis) };
    list[0].revents
}

fn pause_ms(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

/// One group of promises; `Err` is the errno of a call that must not fail.
type Check = fn(&mut Verdict) -> Result<(), i32>;

/// Checks all of it.
pub(crate) fn check(_: &[String]) -> Verdict {
    let mut verdict = Verdict::default();
    let checks: [Check; 7] = [bytes, waiting, full, gone, polls, much, refused];
    for check in checks {
        if let Err(errno) = check(&mut verdict) {
            verdict.equal("no call fails that must not", errno, 0);
        }
    }
    verdict
}

fn bytes(verdict: &mut Verdict) -> Result<(), i32> {
    let pipe = Pipe::new(0)?;
    let mut buffer = [0; 16];
    verdict.equal("a write is taken", pipe.write(b"one"), Ok(3));
    verdict.equal("and another", pipe.write(b"two"), Ok(3));
    verdict.equal("a read gives what is there", pipe.read(&mut buffer), Ok(6));
    verdict.equal("in order", &buffer[..6], b"onetwo");
    verdict.equal("a read of nothing is nothing", pipe.read(&mut []), Ok(0));
    pipe.write(b"abcd")?;
    verdict.equal("a short read", pipe.read(&mut buffer[..3]), Ok(3));
    verdict.equal("leaves the rest", pipe.read(&mut buffer), Ok(1));
    Ok(())
}

fn waiting(verdict: &mut Verdict) -> Result<(), i32> {
    let mut pipe = Pipe::new(0)?;
    let pid = child(|| {
        pause_ms(50);
        i32::from(pipe.write(b"late") != Ok(4))
    });
    let start = Instant::now();
    let mut buffer = [0; 16];
    verdict.equal("a read waits for a write", pipe.read(&mut buffer), Ok(4));
    verdict.holds(
        "for as long as it takes",
        start.elapsed() >= Duration::from_millis(40),
    );
    wait(pid, 0)?;
    pipe.close(1);
    verdict.equal("without a writer it is the end", pipe.read(&mut buffer), Ok(0));

    let mut pipe = Pipe::new(0)?;
    let pid = child(|| {
        let mut buffer = [0; 16];
        pipe.close(1);
        i32::from(pipe.read(&mut buffer) != Ok(0))
    });
    pause_ms(30);
    pipe.close(1);
    verdict.equal("a waiting reader hears the end", wait(pid, 0), Ok((pid, 0)));

    let pipe = Pipe::new(0)?;
    let pid = child(|| i32::from(pipe.read(&mut [0; 16]).is_ok()));
    pause_ms(30);
    kill(pid, libc::SIGTERM)?;
    verdict.equal(
        "a waiting reader can be ended",
        wait(pid, 0),
        Ok((pid, libc::SIGTERM)),
    );
    Ok(())
}

fn full(verdict: &mut Verdict) -> Result<(), i32> {
    let pipe = Pipe::new(libc::O_NONBLOCK)?;
    let mut buffer = vec![0; 4096];
    verdict.equal(
        "nothing to read and no wait",
        pipe.read(&mut buffer),
        Err(libc::EAGAIN),
    );
    let mut taken = 0;
    let refusal = loop {
        match pipe.write(&buffer) {
            Ok(count) => taken += count,
            Err(errno) => break errno,
        }
    };
    verdict.equal("a full pipe refuses", refusal, libc::EAGAIN);
    verdict.equal("at 64 KiB", taken, CAPACITY);
    verdict.equal("a full pipe is not ready", poll(pipe.0[1], libc::POLLOUT, 0), 0);
    pipe.read(&mut buffer)?;
    verdict.equal(
        "with room it is",
        poll(pipe.0[1], libc::POLLOUT, 0),
        libc::POLLOUT,
    );
    verdict.equal(
        "a large write takes what fits",
        pipe.write(&vec![0; 3 * 4096]),
        Ok(4096),
    );

    let pipe = Pipe::new(0)?;
    let pid = child(|| {
        let all = vec![7; CAPACITY + 4096];
        i32::from(pipe.write(&all) != Ok(all.len()))
    });
    pause_ms(30);
    verdict.equal("a writer waits for room", wait(pid, libc::WNOHANG)?.0, 0);
    let mut left = CAPACITY + 4096;
    while left > 0 {
        left -= pipe.read(&mut buffer)?;
    }
    verdict.equal("and then goes on", wait(pid, 0), Ok((pid, 0)));
    Ok(())
}

fn gone(verdict: &mut Verdict) -> Result<(), i32> {
    let mut pipe = Pipe::new(0)?;
    pipe.close(0);
    verdict.equal(
        "without a reader a write fails",
        pipe.write(b"x"),
        Err(libc::EPIPE),
    );
    let status = status_of(|| {
        set_disposition(libc::SIGPIPE, libc::SIG_DFL);
        let _ = pipe.write(b"x");
        0
    });
    verdict.equal("and ends who does not ignore SIGPIPE", status, Ok(libc::SIGPIPE));
    Ok(())
}

fn polls(verdict: &mut Verdict) -> Result<(), i32> {
    let mut pipe = Pipe::new(0)?;
    verdict.equal("an empty pipe is not ready", poll(pipe.0[0], libc::POLLIN, 0), 0);
    let start = Instant::now();
    verdict.equal("a poll ends in time", poll(pipe.0[0], libc::POLLIN, 30), 0);
    verdict.holds("and not before", start.elapsed() >= Duration::from_millis(30));
    let pid = child(|| {
        pause_ms(30);
        i32::from(pipe.write(b"x") != Ok(1))
    });
    verdict.equal(
        "a write ends a poll",
        poll(pipe.0[0], libc::POLLIN, 10_000),
        libc::POLLIN,
    );
    wait(pid, 0)?;
    pipe.close(1);
    verdict.equal(
        "bytes and no writer",
        poll(pipe.0[0], libc::POLLIN, 0),
        libc::POLLIN | libc::POLLHUP,
    );
    pipe.read(&mut [0; 4])?;
    verdict.equal("no writer", poll(pipe.0[0], 0, 0), libc::POLLHUP);
    let mut pipe = Pipe::new(0)?;
    verdict.equal("room", poll(pipe.0[1], libc::POLLOUT, 0), libc::POLLOUT);
    pipe.close(0);
    verdict.equal(
        "no reader",
        poll(pipe.0[1], libc::POLLOUT, 0),
        libc::POLLOUT | libc::POLLERR,
    );
    Ok(())
}

/// One MiB of counted bytes through two processes.
fn much(verdict: &mut Verdict) -> Result<(), i32> {
    const ALL: usize = 1 << 20;
    let byte_at = |at: usize| u8::try_from(at * 7 / 5 % 251).unwrap_or(0);
    let mut pipe = Pipe::new(0)?;
    let pid = child(|| {
        let all: Vec<u8> = (0..ALL).map(byte_at).collect();
        let written: usize = all
            .chunks(10_007)
            .map(|chunk| pipe.write(chunk).unwrap_or(0))
            .sum();
        i32::from(written != ALL)
    });
    pipe.close(1);
    let mut got = Vec::new();
    let mut buffer = vec![0; 3000];
    loop {
        match pipe.read(&mut buffer)? {
            0 => break,
            count => got.extend_from_slice(&buffer[..count]),
        }
    }
    let is_right = got.len() == ALL && got.iter().enumerate().all(|(at, &byte)| byte == byte_at(at));
    verdict.holds("a MiB arrives as it was sent", is_right);
    verdict.equal("and the sender knows", wait(pid, 0), Ok((pid, 0)));
    Ok(())
}

fn refused(verdict: &mut Verdict) -> Result<(), i32> {
    let lowest = || {
        let pipe = Pipe::new(0);
        pipe.map(|pipe| pipe.0)
    };
    let before = lowest();
    let flags = Pipe::new(libc::O_APPEND).map(drop);
    verdict.equal("unknown flags are refused", flags, Err(libc::EINVAL));
    let nowhere = syscall(libc::SYS_pipe2, [8, 0, 0, 0, 0, 0]);
    verdict.equal("the ends must be told", nowhere, Err(libc::EFAULT));
    verdict.equal("nothing is left of either", lowest(), before);
    let pipe = Pipe::new(libc::O_CLOEXEC)?;
    for end in pipe.0 {
        // SAFETY: only asks.
        let flags = unsafe { libc::fcntl(end, libc::F_GETFD) };
        verdict.equal("O_CLOEXEC is for both", flags, libc::FD_CLOEXEC);
        // SAFETY: only asks.
        verdict.equal(
            "there is no position",
            unsafe { libc::lseek(end, 0, libc::SEEK_CUR) },
            -1,
        );
    }
    let mut buffer = [0; 4];
    let start = buffer.as_mut_ptr().expose_provenance();
    let wrong = transfer(libc::SYS_read, pipe.0[1], start, 4);
    verdict.equal("the writing end cannot be read", wrong, Err(libc::EBADF));
    let wrong = transfer(libc::SYS_write, pipe.0[0], start, 4);
    verdict.equal("the reading end cannot be written", wrong, Err(libc::EBADF));
    pipe.write(b"kept")?;
    let wild = transfer(libc::SYS_read, pipe.0[0], 8, 4);
    verdict.equal("a wild read fails", wild, Err(libc::EFAULT));
    verdict.equal("and takes nothing", pipe.read(&mut buffer), Ok(4));
    Ok(())
}
