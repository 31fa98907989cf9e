//! The whole-memory checker on this machine: names every block that `mm` cannot see, so that its sums come out exact.
//!
//! | holder | blocks |
//! |---|---|
//! | heap, kernel stacks | what is mapped in their areas |
//! | kernel page tables | the tables that map those areas |
//! | pipes | pages that `vmsplice` gave them |
//!
//! Everything else that the kernel uses was taken before `mm` started and is reserved.

use alloc::vec::Vec;
use core::fmt;

use mm::{
    AddressSpace, Order, PMD_ORDER, Pfn, Platform,
    check::{Owners, Tally, Violation},
};

use crate::{
    arch::paging::{self, Owned, PageSize},
    boot::memory::is_managed,
    platform::mm,
    vfs::pipe,
};

/// What the checker found.
#[derive(Debug)]
pub enum CheckError {
    /// No memory for the checker's own notes; nothing was checked.
    NoMemory,
    /// The first rule that is broken.
    Violation(Violation),
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory => write!(f, "no memory for the checker's notes"),
            Self::Violation(violation) => violation.fmt(f),
        }
    }
}

/// The kernel as a holder of memory.
struct Kernel;

impl Owners for Kernel {
    fn for_each_block(&self, visit: &mut dyn FnMut(Pfn, Order)) {
        paging::for_each_owned(&mut |pfn, owned| {
            let order = match owned {
                Owned::Mapped(PageSize::Pmd) => PMD_ORDER,
                Owned::Mapped(_) | Owned::Table => Order::ZERO,
            };
            if is_managed(pfn) {
                visit(pfn, order);
            }
        });
    }

    fn for_each_reference(&self, visit: &mut dyn FnMut(Pfn)) {
        pipe::for_each_pinned(&mut |pfn, references| (0..references).for_each(|_| visit(pfn)));
    }
}

/// The kernel, and somebody else.
struct Both<'o>(&'o dyn Owners);

impl Owners for Both<'_> {
    fn for_each_block(&self, visit: &mut dyn FnMut(Pfn, Order)) {
        Kernel.for_each_block(visit);
        self.0.for_each_block(visit);
    }

    fn for_each_reference(&self, visit: &mut dyn FnMut(Pfn)) {
        Kernel.for_each_reference(visit);
        self.0.for_each_reference(visit);
    }
}

/// Checks all of memory. `spaces` are all address spaces there are.
///
/// # Context
/// A quiet point: no thread is inside an operation of `mm`.
///
/// # Errors
/// See [`CheckError`]; nothing was changed.
pub fn check(spaces: &[&AddressSpace]) -> Result<(), CheckError> {
    let frames = mm().platform().frames() as usize;
    let mut tallies = Vec::new();
    // Taken before the check, so that the heap's own growth is part of what is checked.
    tallies
        .try_reserve_exact(frames)
        .map_err(|_| CheckError::NoMemory)?;
    tallies.resize(frames, Tally::default());
    check_with(spaces, &(), &mut tallies).map_err(CheckError::Violation)
}

/// Checks all of memory, of which `others` hold a part that neither `mm` nor this module knows. `tallies` has one for
/// every frame. See [`check`].
///
/// # Errors
/// The first rule that is broken; nothing was changed.
pub fn check_with(
    spaces: &[&AddressSpace],
    others: &dyn Owners,
    tallies: &mut [Tally],
) -> Result<(), Violation> {
    mm::check::check(mm(), spaces, &Both(others), tallies)
}
