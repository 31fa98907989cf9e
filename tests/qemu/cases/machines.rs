//! Machines of several sizes and kinds, machines that lack something, and machines made to crash.

use std::{ffi::OsString, time::Duration};

use boot::{
    capture::Captured,
    channels::Record,
    initrd::Root,
    machine::{Clock, Machine},
    outcome::End,
};
use libtest_mimic::Failed;

use super::{Case, Scratch, ensure, programs::demonstrated};
use crate::bench;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("machines::smallest_memory_runs_the_demonstration", || {
            demonstration(|m| m.memory_mib = 64)
        }),
        Case::new("machines::memory_above_4_gib_runs_the_demonstration", || {
            demonstration(|m| m.memory_mib = 8192)
        }),
        Case::new("machines::one_cpu_runs_the_demonstration", || {
            demonstration(|m| m.cpus = 1)
        }),
        Case::new("machines::instruction_clock_runs_the_demonstration", || {
            demonstration(|m| (m.clock, m.cpus) = (Clock::InstructionCount, 1))
        }),
        Case::new("machines::unknown_command_line_words_are_named", unknown_words),
        Case::new(
            "machines::without_initramfs_the_reason_is_told",
            without_initramfs,
        ),
        Case::new(
            "machines::damaged_initramfs_is_told_and_nothing_lost",
            damaged_initramfs,
        ),
        Case::new("machines::initramfs_cannot_leave_the_root", escaping_initramfs),
        Case::new(
            "machines::without_fw_cfg_the_image_brings_its_root",
            without_fw_cfg,
        ),
        Case::new("machines::deliberate_panic_has_a_symbolised_backtrace", || {
            crash("crash=panic", "panic")
        }),
        Case::new("machines::kernel_fault_prints_the_page_table_walk", || {
            crash("crash=fault", "page-table walk")
        }),
        Case::new("machines::kernel_stack_overflow_is_reported_as_such", || {
            crash("crash=stack", "stack overflow")
        }),
        Case::new("machines::deliberate_hang_is_cut_off", hang),
    ]
}

/// Runs the demonstration on a default machine after `change`.
fn demonstration(change: fn(&mut Machine)) -> Result<(), Failed> {
    let mut machine = bench::machine()?;
    machine.argv = vec!["/bin/thp-demo".into()];
    change(&mut machine);
    demonstrated(&bench::run(&machine, b"")?)
}

fn unknown_words() -> Result<(), Failed> {
    let mut machine = bench::machine()?;
    machine.argv = vec!["/bin/thp-demo".into()];
    machine.words = ["bogus=1", "nonsense", "crash=sometimes"]
        .map(OsString::from)
        .to_vec();
    let captured = bench::run(&machine, b"")?;
    demonstrated(&captured)?;
    for word in ["bogus", "nonsense", "sometimes"] {
        ensure(captured.log.contains(word), || {
            format!("{word} is not named in:\n{}", captured.log)
        })?;
    }
    Ok(())
}

/// The kernel must say why it cannot run the program, and must not panic.
fn without_initramfs() -> Result<(), Failed> {
    let mut machine = bench::machine()?;
    machine.initrd = None;
    machine.argv = vec!["/bin/thp-demo".into()];
    let captured = bench::run(&machine, b"")?;
    let kernel = bench::kernel()?;
    let is_right = matches!(captured.end(), End::Orderly(1..));
    ensure(is_right, || {
        format!(
            "expected an orderly end with an error: {}",
            captured.report(kernel)
        )
    })?;
    ensure(captured.log.contains("initramfs"), || {
        format!("no word of an initramfs in:\n{}", captured.log)
    })
}

/// Runs the demonstration with `archive` over the built-in root, which stays usable.
fn over_the_root(name: &str, archive: &[u8]) -> Result<Captured, Failed> {
    let scratch = Scratch::new(name)?;
    let root = Root {
        programs: Vec::new(),
        initramfs: Some(scratch.file("archive", archive)?.into()),
    };
    let mut machine = bench::machine_with(&root)?;
    machine.argv = vec!["/bin/thp-demo".into()];
    let captured = bench::run(&machine, b"")?;
    demonstrated(&captured)?;
    Ok(captured)
}

fn damaged_initramfs() -> Result<(), Failed> {
    let captured = over_the_root("damaged", &[b"070701".as_slice(), &[b'z'; 200]].concat())?;
    ensure(captured.log.contains("initramfs"), || {
        format!("no word of it in:\n{}", captured.log)
    })
}

fn escaping_initramfs() -> Result<(), Failed> {
    let mut archive = boot::initrd::Archive::new();
    archive
        .file(b"../../outside", 0o100_644, b"x")
        .map_err(|error| error.to_string())?;
    let captured = over_the_root("escaping", &archive.finish())?;
    ensure(captured.log.contains("outside"), || {
        format!("the path is not named in:\n{}", captured.log)
    })
}

/// Without us, everything is on COM1, and the end is a power-off.
fn without_fw_cfg() -> Result<(), Failed> {
    let scratch = Scratch::new("lonely")?;
    let machine = bench::lonely_machine(&scratch.path().join("image"))?;
    let captured = bench::run(&machine, b"poweroff\r")?;
    let kernel = bench::kernel()?;
    let is_right = captured.end() == End::Off && captured.text().contains("AnonHugePages");
    ensure(is_right, || {
        format!("no demonstration: {}", captured.report(kernel))
    })
}

fn crash(word: &str, explanation: &str) -> Result<(), Failed> {
    let mut machine = bench::machine()?;
    machine.words = vec![word.into()];
    let captured = bench::run(&machine, b"")?;
    let kernel = bench::kernel()?;
    let report = captured.report(kernel).to_string();
    ensure(captured.end() == End::Panicked, || {
        format!("expected a panic: {report}")
    })?;
    ensure(captured.log.contains(explanation), || {
        format!("no {explanation:?} in the log: {report}")
    })?;
    let has_backtrace = captured
        .records
        .iter()
        .any(|record| matches!(record, Record::Backtrace(_)));
    ensure(has_backtrace && report.contains("kernel::"), || {
        format!("no symbolised backtrace: {report}")
    })
}

fn hang() -> Result<(), Failed> {
    let mut machine = bench::machine()?;
    machine.words = vec!["crash=hang".into()];
    let captured =
        Captured::run(&machine, b"", Duration::from_secs(10)).map_err(|error| error.to_string())?;
    ensure(captured.end() == End::TimedOut, || {
        captured.finished.end.to_string()
    })
}
