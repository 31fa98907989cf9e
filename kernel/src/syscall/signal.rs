//! Signals: dispositions, masks, the alternate stack, sending.
//!
//! What is recorded and what arrives: `task::signal`.

use linux_abi::{errno::Errno, raw::general as abi};

use super::{
    Call, Result,
    fields::{Fields, words},
    unsupported,
    user::UserAddr,
};
use crate::task::{
    family,
    process::{self, Pid},
    signal::{Action, AltStack, MaskChange, Signal, SignalSet},
};

/// Bytes of a signal set at the interface.
const SET_BYTES: u64 = 8;
/// Flags of an alternate stack that a program may give.
const ALT_STACK_FLAGS: u32 = abi::SS_ONSTACK | abi::SS_DISABLE | abi::SS_AUTODISARM;

fn check_set_size(size: u64) -> core::result::Result<(), Errno> {
    if size == SET_BYTES {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

/// `rt_sigaction(signal, new, old, set_size)`.
pub(super) fn rt_sigaction(call: &Call<'_>) -> Result {
    check_set_size(call.raw(3))?;
    let new = match UserAddr::optional(call.raw(1))? {
        Some(addr) => {
            let [handler, flags, restorer, mask] = words(addr.read::<32>()?);
            Some(Action {
                handler,
                flags,
                restorer,
                mask: SignalSet::from_bits(mask),
            })
        }
        None => None,
    };
    let signal = Signal::new(call.uint(0)).ok_or(Errno::EINVAL)?;
    let mut signals = call.process().signals().lock();
    let old = signals.action(signal);
    if let Some(new) = new {
        signals.set_action(signal, new)?;
    }
    drop(signals);
    if let Some(addr) = UserAddr::optional(call.raw(2))? {
        let bytes: [u8; 32] = Fields::new()
            .u64(old.handler)
            .u64(old.flags)
            .u64(old.restorer)
            .u64(old.mask.bits())
            .done();
        addr.write(&bytes)?;
    }
    Ok(0)
}

/// `rt_sigprocmask(how, set, old, set_size)`.
pub(super) fn rt_sigprocmask(call: &Call<'_>) -> Result {
    check_set_size(call.raw(3))?;
    let old = call.process().signals().lock().mask();
    if let Some(addr) = UserAddr::optional(call.raw(1))? {
        let set = SignalSet::from_bits(addr.read_u64()?);
        let how = match call.uint(0) {
            abi::SIG_BLOCK => MaskChange::Block,
            abi::SIG_UNBLOCK => MaskChange::Unblock,
            abi::SIG_SETMASK => MaskChange::Set,
            _ => return Err(Errno::EINVAL),
        };
        call.process().signals().lock().change_mask(how, set);
    }
    if let Some(addr) = UserAddr::optional(call.raw(2))? {
        addr.write(&old.bits().to_le_bytes())?;
    }
    Ok(0)
}

/// `rt_sigpending(set, set_size)`.
pub(super) fn rt_sigpending(call: &Call<'_>) -> Result {
    if call.raw(1) > SET_BYTES {
        return Err(Errno::EINVAL);
    }
    let pending = call.process().signals().lock().pending().bits().to_le_bytes();
    UserAddr::new(call.raw(0))?.write(&pending[..mm::addr::to_usize(call.raw(1))])?;
    Ok(0)
}

/// `sigaltstack(new, old)`.
pub(super) fn sigaltstack(call: &Call<'_>) -> Result {
    let new = match UserAddr::optional(call.raw(0))? {
        Some(addr) => {
            let [start, flags, size] = words(addr.read::<24>()?);
            // The upper half is padding.
            let flags = u32::try_from(flags & u64::from(u32::MAX)).unwrap_or(0);
            Some(AltStack { start, flags, size })
        }
        None => None,
    };
    let old = call.process().signals().lock().alt_stack();
    if let Some(new) = new {
        if new.flags & !ALT_STACK_FLAGS != 0 {
            return Err(Errno::EINVAL);
        }
        if new.flags & abi::SS_DISABLE == 0 && new.size < u64::from(abi::MINSIGSTKSZ) {
            return Err(Errno::ENOMEM);
        }
        let new = AltStack {
            flags: new.flags & !abi::SS_ONSTACK,
            ..new
        };
        call.process().signals().lock().set_alt_stack(new);
    }
    if let Some(addr) = UserAddr::optional(call.raw(1))? {
        let bytes: [u8; 24] = Fields::new()
            .u64(old.start)
            .u32(old.flags)
            .pad(4)
            .u64(old.size)
            .done();
        addr.write(&bytes)?;
    }
    Ok(0)
}

/// Takes the signal of a sending call; 0 only asks whether the receiver exists.
fn signal_to_send(number: u32) -> core::result::Result<Option<Signal>, Errno> {
    match number {
        0 => Ok(None),
        _ => Signal::new(number).map(Some).ok_or(Errno::EINVAL),
    }
}

/// Sends to one process.
fn send(target: u32, signal: Option<Signal>) -> Result {
    if target == Pid::INIT.number() {
        // The kernel task has no handlers, and init gets only what it handles.
        return Ok(0);
    }
    let target = process::find(Pid::new(target)).ok_or(Errno::ESRCH)?;
    if let Some(signal) = signal {
        target.raise(signal);
    }
    Ok(0)
}

/// Sends to a group.
fn send_group(group: Pid, signal: Option<Signal>) -> Result {
    if family::raise_in_group(group, signal) {
        Ok(0)
    } else {
        Err(Errno::ESRCH)
    }
}

/// `pause()`: until a signal has arrived that is not ignored.
pub(super) fn pause(call: &Call<'_>) -> Result {
    loop {
        call.process().sleep(None, &mut || true)?;
    }
}

/// `kill(pid, signal)`.
pub(super) fn kill(call: &Call<'_>) -> Result {
    let signal = signal_to_send(call.uint(1))?;
    let own = call.process().pid().number();
    match call.int(0) {
        0 => send_group(call.process().kin().group(), signal),
        // Everybody but init and the caller.
        -1 => {
            let mut others = 0;
            process::for_each(&mut |process| {
                if process.pid().number() != own {
                    others += 1;
                    if let Some(signal) = signal {
                        process.raise(signal);
                    }
                }
            });
            if others == 0 { Err(Errno::ESRCH) } else { Ok(0) }
        }
        i32::MIN => Err(Errno::ESRCH),
        group @ ..0 => send_group(Pid::new(group.unsigned_abs()), signal),
        target => send(target.unsigned_abs(), signal),
    }
}

/// `tkill(tid, signal)`: a process has one thread, whose number is its own.
pub(super) fn tkill(call: &Call<'_>) -> Result {
    let target = u32::try_from(call.int(0))
        .ok()
        .filter(|&target| target > 0)
        .ok_or(Errno::EINVAL)?;
    send(target, signal_to_send(call.uint(1))?)
}

/// `tgkill(tgid, tid, signal)`.
pub(super) fn tgkill(call: &Call<'_>) -> Result {
    let group = u32::try_from(call.int(0))
        .ok()
        .filter(|&group| group > 0)
        .ok_or(Errno::EINVAL)?;
    let thread = u32::try_from(call.int(1))
        .ok()
        .filter(|&thread| thread > 0)
        .ok_or(Errno::EINVAL)?;
    let signal = signal_to_send(call.uint(2))?;
    if group == thread {
        send(thread, signal)
    } else {
        Err(Errno::ESRCH)
    }
}

/// `rt_sigreturn()`: no handler was called, so there is nothing to return from.
pub(super) fn rt_sigreturn(_: &Call<'_>) -> Result {
    unsupported!(Errno::ENOSYS, "rt_sigreturn: handlers are not called yet")
}
