//! Signals as far as they are recorded.

use std::mem::MaybeUninit;

use crate::{Verdict, syscall};

/// `struct sigaction` of the kernel.
type Action = [u64; 4];

fn sigaction(signal: u64, new: Option<&Action>, old: Option<&mut Action>) -> Result<u64, i32> {
    let new = new.map_or(0, |new| new.as_ptr().expose_provenance() as u64);
    let old = old.map_or(0, |old| old.as_mut_ptr().expose_provenance() as u64);
    syscall(libc::SYS_rt_sigaction, [signal, new, old, 8, 0, 0])
}

fn sigprocmask(how: i32, set: Option<u64>) -> Result<u64, i32> {
    let new = set
        .as_ref()
        .map_or(0, |set| (&raw const *set).expose_provenance() as u64);
    let mut old = 0_u64;
    let out = (&raw mut old).expose_provenance() as u64;
    syscall(
        libc::SYS_rt_sigprocmask,
        [how.cast_unsigned().into(), new, out, 8, 0, 0],
    )?;
    // SAFETY: written by the call above.
    Ok(unsafe { (&raw const old).read_volatile() })
}

/// Checks what is recorded and told back.
pub(crate) fn check(_: &[String]) -> Verdict {
    let mut verdict = Verdict::default();
    dispositions(&mut verdict);
    masks(&mut verdict);
    sending(&mut verdict);
    alternate_stack(&mut verdict);
    verdict
}

fn dispositions(verdict: &mut Verdict) {
    let mut wrong = Vec::new();
    for signal in (1..=64).filter(|signal| ![9, 19].contains(signal)) {
        // Flags: SA_RESTORER, SA_RESTART. The mask must come back without SIGKILL and SIGSTOP.
        let new: Action = [0x40_0000 + signal, 0x1400_0000, 0x41_0000, u64::MAX];
        let mut old = Action::default();
        let told = sigaction(signal, Some(&new), None).and_then(|_| sigaction(signal, None, Some(&mut old)));
        if told.is_err() || old[..3] != new[..3] || old[3] != !(1 << 8 | 1 << 18) {
            wrong.push(signal);
        }
        let _ = sigaction(signal, Some(&Action::default()), None);
    }
    verdict.equal("each disposition is told back as it was set", wrong, vec![]);
    for signal in [0, 9, 19, 65] {
        let result = sigaction(signal, Some(&Action::default()), None);
        verdict.equal(
            &format!("signal {signal} cannot be handled"),
            result,
            Err(libc::EINVAL),
        );
    }
    let result = syscall(libc::SYS_rt_sigaction, [10, 8, 0, 8, 0, 0]);
    verdict.equal("a wild pointer is EFAULT", result, Err(libc::EFAULT));
    let result = syscall(libc::SYS_rt_sigaction, [10, 0, 0, 4, 0, 0]);
    verdict.equal("a set of another size is EINVAL", result, Err(libc::EINVAL));
}

fn masks(verdict: &mut Verdict) {
    let usr1 = 1 << (libc::SIGUSR1 - 1);
    verdict.equal(
        "nothing is blocked at first",
        sigprocmask(libc::SIG_SETMASK, Some(usr1)),
        Ok(0),
    );
    verdict.equal(
        "a mask is told back",
        sigprocmask(libc::SIG_BLOCK, Some(2)),
        Ok(usr1),
    );
    verdict.equal(
        "blocking adds",
        sigprocmask(libc::SIG_UNBLOCK, Some(usr1)),
        Ok(usr1 | 2),
    );
    verdict.equal(
        "unblocking takes away",
        sigprocmask(libc::SIG_SETMASK, Some(u64::MAX)),
        Ok(2),
    );
    let all = sigprocmask(libc::SIG_SETMASK, Some(0));
    verdict.equal(
        "SIGKILL and SIGSTOP are never blocked",
        all,
        Ok(!(1 << 8 | 1 << 18)),
    );
    verdict.equal(
        "an unknown change is EINVAL",
        sigprocmask(7, Some(0)),
        Err(libc::EINVAL),
    );
}

fn kill_self(signal: i32) -> Result<u64, i32> {
    syscall(
        libc::SYS_kill,
        [
            std::process::id().into(),
            signal.cast_unsigned().into(),
            0,
            0,
            0,
            0,
        ],
    )
}

fn sending(verdict: &mut Verdict) {
    verdict.equal("signal 0 finds this process", kill_self(0), Ok(0));
    verdict.equal("signal 65 is EINVAL", kill_self(65), Err(libc::EINVAL));
    let nobody = syscall(libc::SYS_kill, [99_999, 0, 0, 0, 0, 0]);
    verdict.equal("a process that is not there is ESRCH", nobody, Err(libc::ESRCH));
    verdict.equal("SIGCHLD is ignored by default", kill_self(libc::SIGCHLD), Ok(0));
    let ignore: Action = [1, 0, 0, 0];
    let ignored = sigaction(libc::SIGTERM.cast_unsigned().into(), Some(&ignore), None)
        .and_then(|_| kill_self(libc::SIGTERM));
    verdict.equal("an ignored SIGTERM does nothing", ignored, Ok(0));
    let usr2 = 1_u64 << (libc::SIGUSR2 - 1);
    let blocked = sigprocmask(libc::SIG_BLOCK, Some(usr2)).and_then(|_| kill_self(libc::SIGUSR2));
    verdict.equal("a blocked SIGUSR2 waits", blocked, Ok(0));
    verdict.equal("and is pending", pending(), Ok(usr2));
    let _ = sigaction(libc::SIGUSR2.cast_unsigned().into(), Some(&ignore), None);
    verdict.equal("ignoring it forgets it", pending(), Ok(0));
    let _ = sigprocmask(libc::SIG_UNBLOCK, Some(usr2));
}

fn pending() -> Result<u64, i32> {
    let mut set = MaybeUninit::<u64>::zeroed();
    let address = set.as_mut_ptr().expose_provenance() as u64;
    syscall(libc::SYS_rt_sigpending, [address, 8, 0, 0, 0, 0])?;
    // SAFETY: zeroed, then written by the call.
    Ok(unsafe { set.assume_init() })
}

fn sigaltstack(new: Option<&[u64; 3]>, old: Option<&mut [u64; 3]>) -> Result<u64, i32> {
    let new = new.map_or(0, |new| new.as_ptr().expose_provenance() as u64);
    let old = old.map_or(0, |old| old.as_mut_ptr().expose_provenance() as u64);
    syscall(libc::SYS_sigaltstack, [new, old, 0, 0, 0, 0])
}

fn alternate_stack(verdict: &mut Verdict) {
    let mut old = [0; 3];
    // Rust's runtime has set one for its stack guard.
    verdict.equal(
        "the alternate stack is told",
        sigaltstack(None, Some(&mut old)),
        Ok(0),
    );
    let mine = [0x10_0000, 0, 64 << 10];
    verdict.equal("another one is taken", sigaltstack(Some(&mine), None), Ok(0));
    let mut told = [0; 3];
    let _ = sigaltstack(None, Some(&mut told));
    verdict.equal("and told back", told, mine);
    verdict.equal(
        "one too small is ENOMEM",
        sigaltstack(Some(&[0x10_0000, 0, 2047]), None),
        Err(libc::ENOMEM),
    );
    verdict.equal(
        "unknown flags are EINVAL",
        sigaltstack(Some(&[0, 0x40, 65536]), None),
        Err(libc::EINVAL),
    );
    let _ = sigaltstack(Some(&old), None);
}
