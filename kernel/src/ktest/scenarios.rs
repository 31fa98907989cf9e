//! The rows of the memory manager's specification, in this kernel: the same lists of steps that run on the simulated
//! machine, on real memory, with the whole-memory checker after each.
//!
//! A program's accesses are made through the window, after the page-fault handler has been asked for the page: what the
//! translation caches see is the business of the ring-3 trials.

use alloc::{vec, vec::Vec};
use core::cell::RefCell;

use mm::{
    Access, AddressSpace, Memory, MmRef, Platform, VirtAddr, VmFault,
    check::{Owners, Tally, Violation},
    pin::UserBytes,
};
use mm_testkit::scenario::{self, Refused, Runner};

use super::Trial;
use crate::{
    check,
    platform::{Pc, mm},
};

/// Little memory: the checker looks at all of it after every step.
const MEMORY_MIB: u32 = 64;

macro_rules! rows {
    ($($name:literal: $row:literal,)*) => {
        crate::ktest::trials! {
            $(Trial::new(concat!("scenario::", $name), || play($row)).memory_mib(MEMORY_MIB),)*
        }

        const ROWS: &[&str] = &[$($row),*];
    };
}

rows! {
    "t1_1_one_pmd": "T1.1",
    "t2_2_every_subpage": "T2.2",
    "t2_5_reports_accept_everything": "T2.5",
    "t3_1_partial_unmap": "T3.1",
    "t3_3_every_other_page": "T3.3",
    "t3_4_all_ptes_at_once": "T3.4",
    "t3_5_whole_page": "T3.5",
    "t4_1_split_without_memory": "T4.1",
    "t4_2_split_while_pinned": "T4.2",
    "t4_3_split_twice": "T4.3",
    "t4_5_split_keeps_rights": "T4.5",
    "t7_1_tails_are_anonymous": "T7.1",
    "t10_1_tail_references": "T10.1",
    "t10_3_last_reference_through_a_tail": "T10.3",
    "f1_kpageflags": "F1",
    "demonstration": "demonstration",
}

crate::ktest::trials! {
    Trial::new("scenario::every_scenario_is_a_trial", every_scenario_is_a_trial),
}

fn every_scenario_is_a_trial() {
    for scenario in scenario::ALL {
        let named = ROWS.iter().any(|row| scenario.name.starts_with(row));
        assert!(named, "{} is no trial", scenario.name);
    }
}

/// An address space that no CPU runs.
struct Machine {
    space: MmRef,
    /// Lent to the checker; taken once, because a scenario may leave no memory for more.
    tallies: RefCell<Vec<Tally>>,
}

fn play(row: &str) {
    let frames = mm().platform().frames() as usize;
    let machine = Machine {
        tallies: RefCell::new(vec![Tally::default(); frames]),
        space: mm().new_space().expect("memory is there"),
    };
    let mut rows = scenario::ALL
        .iter()
        .filter(|scenario| scenario.name.starts_with(row));
    let scenario = rows.next().expect("a scenario of that name");
    if let Err(failure) = scenario::run(&machine, scenario) {
        panic!("{failure}");
    }
    mm().put_space(machine.space);
}

impl Machine {
    fn access(&self, addr: u64, access: Access, f: &mut dyn FnMut(&mut u8)) -> Result<(), Refused> {
        let touch = &mut |mut bytes: UserBytes<'_>| {
            let mut byte = [0];
            bytes.read(&mut byte);
            f(&mut byte[0]);
            if access == Access::Write {
                bytes.write(&byte);
            }
        };
        match mm().with_user_page(&self.space, VirtAddr::new(addr), access, touch) {
            Ok(()) => Ok(()),
            Err(VmFault::NeedMemory(_)) => Err(Refused::NoMemory),
            Err(_) => Err(Refused::Signal),
        }
    }
}

impl Runner for Machine {
    type Platform = Pc;

    fn mem(&self) -> &Memory<Pc> {
        mm()
    }

    fn space(&self) -> &AddressSpace {
        &self.space
    }

    fn read(&self, addr: u64) -> Result<u8, Refused> {
        let mut byte = 0;
        self.access(addr, Access::Read, &mut |there| byte = *there)
            .map(|()| byte)
    }

    fn write(&self, addr: u64, byte: u8) -> Result<(), Refused> {
        self.access(addr, Access::Write, &mut |there| *there = byte)
    }

    fn check(&self, held: &dyn Owners) -> Result<(), Violation> {
        check::check_with(&[&self.space], held, &mut self.tallies.borrow_mut())
    }
}
