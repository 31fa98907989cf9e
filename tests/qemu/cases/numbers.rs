//! `thp-numbers`: every number of a huge page, compared with `tests/data/thp-numbers.txt` line by line, here and on
//! Linux 6.1.

use std::{
    env,
    ffi::OsString,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::Failed;
use tests::numbers::{self, EXPECTED, Kernel};

use super::{Case, Need, Scratch, abi, ensure};
use crate::bench;

/// Names a bzImage of Linux 6.1 to compare with.
const LINUX: &str = "CLEAVE_LINUX_KERNEL";
/// How long Linux may take.
const LIMIT: Duration = Duration::from_secs(180);

/// What is compared.
const SECTIONS: &str = "share queue pmd page pins nodes files";

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("numbers::huge_pages_have_the_expected_numbers", cleave),
        Case::needing("numbers::linux_prints_the_same", &[Need::LinuxKernel], linux),
    ]
}

/// The kernel to compare with, if somebody named one.
pub(super) fn linux_kernel() -> Option<OsString> {
    env::var_os(LINUX).filter(|path| !path.is_empty())
}

/// Prints the differences, and fails if there are any.
fn compare(kernel: Kernel, console: &str) -> Result<(), Failed> {
    let found = numbers::printed(console)?;
    let expected = numbers::expected(EXPECTED, kernel)?;
    Ok(numbers::compare(&expected, &found)?)
}

/// On a machine whose memory is cut in two, for the page that moves.
fn cleave() -> Result<(), Failed> {
    let mut machine = bench::machine()?;
    machine.words.push("numa=fake=2".into());
    let line = format!("run thp-numbers {SECTIONS}");
    let captured = abi::session_on(&machine, &[line], bench::LIMIT)?;
    compare(Kernel::Cleave, &captured.text())
}

/// Boots Linux with our programs as its root, and runs the same file.
fn linux() -> Result<(), Failed> {
    let kernel = linux_kernel().ok_or("there is no kernel any more")?;
    let scratch = Scratch::new("linux")?;
    let initrd = scratch.file("initrd", bench::built_in()?)?;
    let console = scratch.path().join("console");
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-display",
        "none",
        "-no-reboot",
        "-m",
        "1G",
        "-smp",
        "1",
        "-cpu",
        "max",
    ]);
    // Two nodes, for the page that moves.
    for (node, cpus) in [(0, ",cpus=0"), (1, "")] {
        qemu.arg("-object")
            .arg(format!("memory-backend-ram,size=512M,id=node{node}"));
        qemu.arg("-numa")
            .arg(format!("node,nodeid={node},memdev=node{node}{cpus}"));
    }
    qemu.arg("-kernel").arg(kernel).args(["-initrd", &initrd]);
    // Five levels of page tables would make user space larger; balancing would unmap pages behind the program's back.
    let parameters =
        "console=ttyS0 quiet loglevel=3 no5lvl numa_balancing=disable transparent_hugepage=always";
    qemu.arg("-append").arg(format!(
        "{parameters} rdinit=/bin/linux-init -- /bin/thp-numbers {SECTIONS}"
    ));
    qemu.arg("-serial").arg(format!("file:{}", console.display()));
    run(qemu.stdin(Stdio::null()))?;
    let text = std::fs::read(&console).map_err(|error| format!("Linux had no console: {error}"))?;
    compare(Kernel::Linux, &String::from_utf8_lossy(&text))
}

/// Runs a machine to its end, or for [`LIMIT`].
fn run(qemu: &mut Command) -> Result<(), Failed> {
    let mut machine = qemu
        .spawn()
        .map_err(|error| format!("cannot start QEMU: {error}"))?;
    let deadline = Instant::now() + LIMIT;
    loop {
        let ended = machine.try_wait().map_err(|error| error.to_string())?;
        if let Some(status) = ended {
            return ensure(status.success(), || format!("QEMU: {status}"));
        }
        if Instant::now() > deadline {
            // It may end by itself right now; either way it is gone then.
            let _ = machine.kill();
            let _ = machine.wait();
            return Err(format!("Linux did not end within {} s", LIMIT.as_secs()).into());
        }
        thread::sleep(Duration::from_millis(100));
    }
}
