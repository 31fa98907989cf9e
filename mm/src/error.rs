//! F0: the error enums, and the one place where they become errno values.
//!
//! Each variant names the caller's next step. A page fault's outcome ([`VmFault`]) is not an error.

use crate::order::Order;

/// No block could be had. The allocator never reclaims; nothing changed.
///
/// The next step is the outermost caller's: drop every lock, make progress elsewhere, try again, or give up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllocError {
    /// What was asked for.
    pub order: Order,
}

/// Why a mapping operation was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// No record, table or page could be had. What was done so far stays valid and the operation may be repeated.
    NoMemory(AllocError),
    /// No hole of that size is left, there would be too many areas, or a limit of the process is reached. Nothing
    /// changed.
    NoSpace,
    /// Part of the range is not mapped. What Linux does before it notices is done.
    NotMapped,
    /// The place is taken and the caller asked not to replace it. Nothing changed.
    Occupied,
    /// The arguments make no sense together. Nothing changed.
    Invalid,
    /// What is to be changed is no area, or reaches over the end of one. Nothing changed.
    BadRange,
    /// More would be locked into memory than the process may have locked. Nothing changed.
    LockLimit,
}

impl From<AllocError> for MapError {
    fn from(error: AllocError) -> Self {
        Self::NoMemory(error)
    }
}

/// What a fault that somebody else brought about comes to for him.
impl From<VmFault> for MapError {
    fn from(fault: VmFault) -> Self {
        match fault {
            VmFault::NeedMemory(error) => Self::NoMemory(error),
            VmFault::SigSegv(_) | VmFault::SigBus | VmFault::Done | VmFault::Retry => Self::NotMapped,
        }
    }
}

/// How a page fault ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum VmFault {
    /// The translation exists now (or exists again): return to the instruction.
    Done,
    /// The tables changed under us: let the instruction fault again.
    Retry,
    /// A page or table was needed and could not be had. Nothing changed; make progress elsewhere and retry.
    NeedMemory(AllocError),
    /// No area at the address, or the area forbids the access.
    SigSegv(SegvReason),
    /// The area is there but its contents are not.
    SigBus,
}

/// Why a fault is the program's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegvReason {
    /// No area there: `SEGV_MAPERR`.
    NotMapped,
    /// An area is there and does not allow this: `SEGV_ACCERR`.
    Access,
}

/// The errno values that memory management can answer with, as Linux numbers them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum Errno {
    /// Nothing is there.
    NoEnt = 2,
    /// It is not where it should be.
    Io = 5,
    /// It did not work now and may work later.
    Again = 11,
    /// Out of memory or of address space.
    NoMem = 12,
    /// Others have it too.
    Access = 13,
    /// No such memory.
    Fault = 14,
    /// It is in use, or of a kind that this is not done to.
    Busy = 16,
    /// The place is taken.
    Exist = 17,
    /// Arguments make no sense.
    Inval = 22,
    /// This is not done to such memory at all.
    NoSys = 38,
}

impl From<MapError> for Errno {
    fn from(error: MapError) -> Self {
        match error {
            MapError::NoMemory(_) | MapError::NoSpace | MapError::NotMapped => Self::NoMem,
            MapError::Occupied => Self::Exist,
            MapError::Invalid => Self::Inval,
            MapError::BadRange => Self::Fault,
            MapError::LockLimit => Self::Again,
        }
    }
}

impl From<AllocError> for Errno {
    fn from(_: AllocError) -> Self {
        Self::NoMem
    }
}
